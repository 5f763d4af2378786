"""Every ordering that the paper claims in words, judged against our runs by rules fixed beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from . import paper
from .style import counted
from .summaries import SLACK, Verdict, checked, summarise, verdict, within
from .tables import Table


@dataclass(frozen=True)
class Ordering:
    """A claim that every name in ``better`` beats every name in ``worse``.

    Attributes
    ----------
    id : str
    sentence : str
        The claim in short.
    quote : str
        The section of the paper and its words.
    table : str
        A cell of this table counts if it has numbers for all the names.
    better, worse : tuple of str
    names : str
        "method", or "network" if the names are networks trained on the set.
    alike : bool
        True if the claim is that neither is better.
    """

    id: str
    sentence: str
    quote: str
    table: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    names: str = "method"
    alike: bool = False


_OTHER_SOURCES = ("MD@mlp", "MD@lenet", "MD@alexnet", "MD@vgg11bn", "MD@resnet18bn")

_MOST = 'Section 4.5: "outperform the baseline gradient matching method in most benchmarks"'

ORDERINGS = [
    Ordering(
        "multi-level-best", "Multi-level matching is best",
        'Section 4.2: "In most cases, the multi-level gradient matching achieves the best results"',
        "Table 1", ("M",), ("DC", "Inter", "Interleaved"),
    ),
    Ordering(
        "d1-best-alone", "Alone, d1 is the best distance",
        'Section 4.3: "when using only one of these distance functions, the test accuracy with d1 is the highest"',
        "Table 2", ("M",), ("multi,d2,fixed", "multi,d3,fixed", "multi,100*d4,fixed"),
    ),
    Ordering(
        "magnitude-helps-d1", "d1 with a magnitude term beats d1",
        'Section 4.3: "we get improvement compared with pure d1"',
        "Table 2", ("MD", "multi,d1+d3,fixed", "multi,d1+100*d4,fixed"), ("M",),
    ),
    Ordering(
        "overfitting-helps-dc", "DC updated at overfitting beats DC", 'Section 4.4: "improved the test accuracy"',
        "text", ("intra,d1,overfit",), ("DC",),
    ),
    Ordering("m-beats-dc", "M beats DC", _MOST, "Table 3", ("M",), ("DC",)),
    Ordering("md-beats-dc", "MD beats DC", _MOST, "Table 3", ("MD",), ("DC",)),
    Ordering(
        "md-beats-m", "MD beats M", "from the table; Section 4.3 says it in words for SVHN only",
        "Table 3", ("MD",), ("M",),
    ),
    Ordering("mda-beats-dc", "MDA beats DC", _MOST, "Table 3", ("MDA",), ("DC",)),
    Ordering(
        "mda-like-mdo", "MDA is like MDO", 'Section 4.5: "the results of Ours-MDO and Ours-MDA are similar"',
        "Table 3", ("MDA",), ("MDO",), alike=True,
    ),
    Ordering(
        "learned-beat-chosen", "MD beats chosen real images",
        'Section 1: "dataset synthesis outperforms the coreset construction"',
        "Table 3", ("MD",), ("random", "herding"),
    ),
    Ordering(
        "tiny-imagenet", "MD beats DC on Tiny ImageNet", "Section 4.5, from the accuracies of both",
        "text", ("MD",), ("DC",),
    ),
    Ordering(
        "large-sets", "Ours beats DC from 50 to 1000 images per class",
        "Section 4.5, from the relative accuracies of both",
        "text", ("MDO",), ("DC",),
    ),
    Ordering(
        "convnet-best-source", "For every target, the ConvNet is the best source",
        'Appendix A.2: "all the target networks achieve the highest test accuracy when trained from the dataset" of '
        "the ConvNet",
        "Table 4", ("MD",), _OTHER_SOURCES,
    ),
    Ordering(
        "resnet-among-best-targets", "From every source, ResNet beats all targets but the ConvNet",
        'Appendix A.2, less strictly: "ResNet achieves one of the highest test accuracies among all target networks"',
        "Table 4", ("resnet18",), ("mlp", "lenet", "alexnet", "vgg11"), names="network",
    ),
]  # fmt: skip


def orderings(results: pd.DataFrame) -> pd.DataFrame:
    """Each of ORDERINGS, in the paper's own numbers and in our runs.

    A cell is held if every ``better`` is above every ``worse`` beyond noise (`verdict`, with the variance of a paired
    difference pooled over all condensed methods of the cell, but not over target networks), reversed if one is below
    beyond noise, and not decided otherwise. If the claim is "like", a cell is held if the 95% interval of the
    difference lies within two standard deviations of the second method's networks, reversed if it lies outside, and
    not decided otherwise. Only cells of the paper count: the chapters judge other data and sizes.

    Parameters
    ----------
    results
        Long form. May have no rows.

    Returns
    -------
    DataFrame
        One row for each ordering and budget, or one with budget "" if it was not run. Columns:

        - id, sentence, quote, table.
        - cells: how many cells of the paper's table have all the numbers; shown: in how many of them the paper's own
          means are in this order (ties count; for "like", they differ by two standard deviations at most).
        - budget; data: "", or the data that were run instead of the paper's, which have a row of their own.
        - run: the number of cells with all the runs; in_order: in how many of them our means are in this order.
        - held, reversed, not_decided, too_few: the number of cells with this outcome.
        - deciding: for each cell the difference that decides, in words.
        - note: why there is no run.

    Raises
    ------
    ValueError
        If the results are not in long form.
    """
    results = checked(results) if len(results) else results
    rows = []
    for o in ORDERINGS:
        cells = _cells_of(o)
        shown = 0
        for numbers in cells.values():
            differences = [numbers[b][0] - numbers[w][0] for b in o.better for w in o.worse]
            shown += _in_order(o, differences, paper.tolerance(*numbers[o.worse[0]]))
        stated = {
            "id": o.id,
            "sentence": o.sentence,
            "quote": o.quote,
            "table": o.table,
            "cells": len(cells),
            "shown": shown,
        }
        substitutes = paper.substitutes(o.table, results)
        found: dict[tuple[str, str], list[tuple[str, str, bool]]] = {}  # (data, budget) -> `_outcome` of each cell
        for (*cell, budget), runs in results.groupby([*_cell_columns(o), "budget"], sort=False):
            replaced = substitutes.get((cell[0], cell[1]))
            if (tuple(cell) in cells or replaced) and {*o.better, *o.worse} <= set(runs[o.names]):
                data = f"{cell[0]} instead of {replaced}" if replaced else ""
                found.setdefault((data, budget), []).append(_outcome(o, runs))
        if not any(data == "" for data, _ in found):
            found = {("", ""): [], **found}
        for (data, budget), outcomes in found.items():
            names = [name for name, *_ in outcomes]
            rows.append(
                stated
                | {"budget": budget, "data": data, "run": len(outcomes)}
                | {"in_order": sum(in_order for *_, in_order in outcomes)}
                | {column: names.count(name) for column, name in _COUNTS.items()}
                | {"deciding": tuple(words for _, words, _ in outcomes)}
                | {"note": "" if outcomes else _why_no_cell(list(cells), results)}
            )
    return pd.DataFrame(rows)


_COUNTS = {"held": "held", "reversed": "reversed", "not_decided": "not decided", "too_few": "too few sets"}


def _why_no_cell(cells: list[tuple], results: pd.DataFrame) -> str:
    """The reason that all cells share, unless it is only that there is no run."""
    reasons = {paper.why_not_run(dataset, ipc, results) for dataset, ipc, _ in cells}
    return reasons.pop() if len(reasons) == 1 and paper.NO_RUN not in reasons else "no cell has all its runs"


def _cell_columns(o: Ordering) -> list[str]:
    return ["dataset", "ipc", "network" if o.names == "method" else "method"]


def _cells_of(o: Ordering) -> dict[tuple, dict[str, tuple[float, float]]]:
    """Cells in which the paper gives every number: (dataset, ipc, method or network) -> {name: (value, std)}."""
    cells: dict[tuple, dict[str, tuple[float, float]]] = {}
    for c in paper.published(o.table).dropna(subset="ipc").to_dict("records"):
        cells.setdefault(tuple(c[name] for name in _cell_columns(o)), {})[c[o.names]] = (c["value"], c["std"])
    return {cell: numbers for cell, numbers in cells.items() if {*o.better, *o.worse} <= set(numbers)}


def _in_order(o: Ordering, differences: list[float], margin: float) -> bool:
    return all(abs(d) <= margin + SLACK if o.alike else d >= 0 for d in differences)


def _outcome(o: Ordering, runs: pd.DataFrame) -> tuple[str, str, bool]:
    """The outcome of one cell, the difference that decides it in words, and whether our means are in this order."""
    first = runs.iloc[0]
    cell = f"{first['dataset']}, IPC {first['ipc']}"
    if o.names == "network":
        cell += f", from {first['method']}"
        runs = runs.rename(columns={"method": "network", "network": "method"})  # `verdict` compares methods
    elif first["network"] != "convnet":
        cell += f", to {first['network']}"
    found = [verdict(runs, b, w) for b in o.better for w in o.worse]
    margin = 2 * summarise(runs[runs["method"] == o.worse[0]])["std"].iloc[0]
    each = [within(v.low, v.high, margin + SLACK) if o.alike and not math.isnan(v.low) else v.outcome for v in found]
    outcome = next(name for name in ("too few sets", "reversed", "not decided", "held") if name in each)
    # Among the pairs with this outcome, the one with the lowest interval decides.
    decides = min((v for v, name in zip(found, each, strict=True) if name == outcome), key=_height)
    return outcome, f"{cell}: {_difference(decides, o.table)}", _in_order(o, [v.difference for v in found], margin)


def _height(v: Verdict) -> float:
    if math.isnan(v.low):
        return v.difference
    return v.high if v.high < 0 else v.low


def _difference(v: Verdict, table: str) -> str:
    names = {}
    if table == "Table 2":  # its columns are shorter than our names for them
        printed = paper.published(table)
        names = dict(zip(printed["method"], printed["column"], strict=True))
    better, worse = (names.get(method, method) for method in (v.better, v.worse))
    interval = "no interval" if math.isnan(v.low) else f"{v.low:+.2f} to {v.high:+.2f}"
    return f"{better} minus {worse} {v.difference:+.2f} ({interval})"


# ---- as the page shows them ------------------------------------------------------------------------------


def cells_by_outcome(rows: pd.DataFrame) -> str:
    """Cells counted by outcome, in words.

    Parameters
    ----------
    rows
        Some rows of `orderings`.
    """
    counts = ", ".join(f"{name} in {rows[column].sum()}" for column, name in _COUNTS.items() if rows[column].any())
    return f"{counts} of {counted(rows['run'].sum(), 'cell')}"


def orderings_table(found: pd.DataFrame) -> Table:
    """Each ordering in the paper's numbers and in ours, those with runs first.

    Each budget, and each data set that replaces the paper's, has a line. The deciding differences follow.

    Parameters
    ----------
    found
        From `orderings`.
    """
    run = found.groupby("sentence", sort=False)["run"].sum()
    cells = {}
    for sentence, rows in found.groupby("sentence", sort=False):
        first = rows.iloc[0]
        place = "in the text" if first["table"] == "text" else f"in {first['table']}"
        cells[sentence, "in the paper"] = [
            f"{first['shown']} of {counted(first['cells'], 'cell')} {place}",
            first["quote"],
        ]
        cells[sentence, "ours"] = [
            line for _, row in rows.iterrows() for line in (*_result_lines(row), *row["deciding"])
        ]
    caption = "What the paper claims in words. In brackets: the 95% interval of a difference, in points."
    order = [*run[run > 0].index, *run[run == 0].index]
    return Table(order, ["in the paper", "ours"], cells, caption, corner="ordering")


def _result_lines(row: pd.Series) -> list[str]:
    if not row["run"]:
        return [f"not run: {row['note']}"]
    marks = [f"budget: {row['budget']}"] * (row["budget"] != "paper") + [row["data"]] * bool(row["data"])
    marked = f" ({'; '.join(marks)})" if marks else ""
    return [cells_by_outcome(row.to_frame().T) + marked, f"the means are in this order in {row['in_order']}"]
