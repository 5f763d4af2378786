"""Every ordering that the paper claims in words, judged against our runs by rules fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pandas as pd

from . import paper
from .style import display_name
from .summaries import SLACK, Verdict, checked, verdict, within


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
    most : bool
        True if the claim is about most cells of the table, and not about each.
    """

    id: str
    sentence: str
    quote: str
    table: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    names: str = "method"
    alike: bool = False
    most: bool = False


_OTHER_SOURCES = ("MD@mlp", "MD@lenet", "MD@alexnet", "MD@vgg11bn", "MD@resnet18bn")

_MOST = (
    'Section 4.5: "our proposed multi-level gradient matching and angle-magnitude distance function outperform the '
    'baseline gradient matching method [30] in most benchmarks"'
)

ORDERINGS = [
    Ordering(
        "multi-level-best", "Multi-level matching is best in most cells",
        'Section 4.2: "In most cases, the multi-level gradient matching achieves the best results"',
        "Table 1", ("M",), ("DC", "Inter", "Interleaved"), most=True,
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
    Ordering("m-beats-dc", "M beats DC in most cells", _MOST, "Table 3", ("M",), ("DC",), most=True),
    Ordering("md-beats-dc", "MD beats DC in most cells", _MOST, "Table 3", ("MD",), ("DC",), most=True),
    Ordering(
        "md-beats-m", "MD beats M in most cells", "from the table; Section 4.3 says it in words for SVHN only",
        "Table 3", ("MD",), ("M",), most=True,
    ),
    Ordering(
        "mda-beats-dc", "MDA beats DC in most cells",
        'Section 4.5: "With Ours-MDA, we cut down unnecessary steps in the later optimization stage, leading to '
        'higher learning efficiency while maintaining our advantages in test accuracy"',
        "Table 3", ("MDA",), ("DC",), most=True,
    ),
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


def ordering_cells(results: pd.DataFrame) -> pd.DataFrame:
    """Each cell of the paper in which one of ORDERINGS can be judged, in the paper's own numbers and in our runs.

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
        One row for each cell and budget, and one with budget "" for a cell without a run. Columns:

        - id, dataset, ipc.
        - at: the trained network, or the method if the ordering is one of networks.
        - budget; data: "", or the data that were run instead of the paper's.
        - shown: whether the paper's own means are in this order (ties count; for "like", they differ by two standard
          deviations at most). None on other data.
        - outcome: held, reversed, not decided, too few sets or not run.
        - better, worse: the pair of names that decides, in our runs, or in the paper's numbers if there is no run.
        - paper: their difference in the paper's numbers. NaN on other data.
        - difference, low, high: their difference in our runs, with its 95% interval, in points.
        - margin: for "like", within which the interval has to lie; NaN otherwise.
        - in_order: whether our means are in this order.
        - note: why there is no run.

    Raises
    ------
    ValueError
        If the results are not in long form.
    """
    results = checked(results) if len(results) else results
    return pd.DataFrame([row for o in ORDERINGS for row in _rows_of(o, results)])


def _rows_of(o: Ordering, results: pd.DataFrame) -> Iterator[dict]:
    cells, substitutes, run = _cells_of(o), paper.substitutes(o.table, results), set()
    needed, there = [*o.better, *o.worse], {}  # names with runs by the paper's protocol, for each cell
    for (*cell, budget), runs in results.groupby([*_cell_columns(o), "budget"], sort=False):
        dataset, ipc, at = cell
        replaced, names = substitutes.get((dataset, ipc)), set(runs[o.names])
        if budget == "paper":
            there[tuple(cell)] = names
        if not (tuple(cell) in cells or replaced) or not names.issuperset(needed):
            continue
        row = {"id": o.id, "dataset": dataset, "ipc": ipc, "at": at, "budget": budget}
        row |= {"data": f"{dataset} instead of {replaced}" if replaced else "", "shown": None, "paper": math.nan}
        ours = _outcome(o, runs)
        if numbers := cells.get(tuple(cell)):
            row |= {"shown": _shown(o, numbers), "paper": numbers[ours["better"]][0] - numbers[ours["worse"]][0]}
            run.add(tuple(cell))
        yield row | ours | {"note": ""}
    for cell, numbers in cells.items():
        if cell not in run:
            dataset, ipc, at = cell
            better, worse = min(
                product(o.better, o.worse), key=lambda pair: numbers[pair[0]][0] - numbers[pair[1]][0]
            )
            row = {"id": o.id, "dataset": dataset, "ipc": ipc, "at": at, "budget": "", "data": ""}
            row |= {"shown": _shown(o, numbers), "outcome": "not run", "better": better, "worse": worse}
            row |= {"paper": numbers[better][0] - numbers[worse][0]}
            row |= dict.fromkeys(("difference", "low", "high", "margin"), math.nan) | {"in_order": False}
            missing = [name for name in needed if name not in there.get(cell, ())]
            some = f"{paper.LACKS} {', '.join(map(display_name, missing))}" if len(missing) < len(needed) else ""
            yield row | {"note": some or paper.why_not_run(dataset, ipc, results)}


def _shown(o: Ordering, numbers: dict[str, tuple[float, float]]) -> bool:
    differences = [numbers[b][0] - numbers[w][0] for b, w in product(o.better, o.worse)]
    return _in_order(o, differences, paper.tolerance(*numbers[o.worse[0]]))


def together(cells: pd.DataFrame, most_of: int = 0) -> tuple[str, str]:
    """The outcome of a claim from the outcomes of its cells, and the word for it.

    - held: at least one cell is held, and none is reversed.
    - reversed: at least one cell is reversed, and none is held.
    - not decided: otherwise. If some are held and others reversed, the word is "mixed".
    - too few sets: no cell has an interval.

    A claim about most cells is held once more than half of the paper's cells are, and reversed once half of them are.
    Before that it is not decided, and the word is "held so far", "reversed so far" or as above.

    Only cells by the paper's protocol on its own data count. If there is none, the outcome is "another budget", and
    the word says what those of another budget, or on other data, show. Without any run it is "not run".

    Parameters
    ----------
    cells
        Rows with the columns outcome, budget and data.
    most_of
        For a claim about most cells: how many cells the paper has.
    """
    own = cells[cells["data"] == ""]
    judged = own[own["budget"] == "paper"]
    if len(judged):
        outcome, word = _together(set(judged["outcome"]))
        counts = judged["outcome"].value_counts()
        if most_of and 2 * counts.get("held", 0) > most_of:
            return "held", "held"
        if most_of and 2 * counts.get("reversed", 0) >= most_of:
            return "reversed", "reversed"
        if most_of and outcome in ("held", "reversed"):
            return "not decided", f"{word} so far"
        return outcome, word
    if len(shorter := own[own["budget"] != ""]):
        return "another budget", f"shorter run: {_together(set(shorter['outcome']))[1]}"
    if len(other := cells[cells["data"] != ""]):
        return "another budget", f"other data: {_together(set(other['outcome']))[1]}"
    return "not run", "not run"


def outcome_of(o: Ordering, cells: pd.DataFrame) -> tuple[str, str]:
    """`together` for an ordering and its rows of `ordering_cells`."""
    return together(cells, len(_cells_of(o)) if o.most else 0)


def _together(outcomes: set[str]) -> tuple[str, str]:
    if {"held", "reversed"} <= outcomes:
        return "not decided", "mixed"
    outcome = next(name for name in ("held", "reversed", "not decided", "too few sets") if name in outcomes)
    return outcome, outcome


def orderings(results: pd.DataFrame) -> pd.DataFrame:
    """Each of ORDERINGS with its cells counted.

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
          means are in this order.
        - budget; data: "", or the data that were run instead of the paper's, which have a row of their own.
        - run: the number of cells with all the runs; in_order: in how many of them our means are in this order.
        - held, reversed, not_decided, too_few: the number of cells with this outcome.
        - deciding: for each cell the difference that decides, in words.
        - outcome, word: of the ordering as a whole, by `together`.
        - note: why there is no run.

    Raises
    ------
    ValueError
        If the results are not in long form.
    """
    every = ordering_cells(results)
    rows = []
    for o in ORDERINGS:
        cells = every[every["id"] == o.id]
        of_paper = cells[cells["data"] == ""].drop_duplicates(["dataset", "ipc", "at"])
        stated = {"id": o.id, "sentence": o.sentence, "quote": o.quote, "table": o.table}
        stated |= {"cells": len(of_paper), "shown": int(of_paper["shown"].sum())}
        stated |= dict(zip(("outcome", "word"), outcome_of(o, cells), strict=True))
        run = cells[cells["budget"] != ""]
        found = list(run.groupby(["data", "budget"], sort=False))
        if not (run["data"] == "").any():
            found = [(("", ""), run[:0]), *found]
        for (data, budget), some in found:
            rows.append(
                stated
                | {"budget": budget, "data": data, "run": len(some), "in_order": int(some["in_order"].sum())}
                | {column: int((some["outcome"] == name).sum()) for column, name in _COUNTS.items()}
                | {"deciding": tuple(_words(o, c) for c in some.itertuples())}
                | {"note": "" if len(some) else _why_no_cell(of_paper)}
            )
    return pd.DataFrame(rows)


_COUNTS = {"held": "held", "reversed": "reversed", "not_decided": "not decided", "too_few": "too few sets"}


def _why_no_cell(cells: pd.DataFrame) -> str:
    """The reason that all cells share, unless it is only that there is no run; else what the nearest cell lacks."""
    reasons = set(cells["note"])
    if len(reasons) == 1 and paper.NO_RUN not in reasons:
        return reasons.pop()
    lacking = sorted(note for note in reasons if note.startswith(paper.LACKS))
    nearest = min(lacking, key=lambda note: note.count(", "), default="")
    return f"no cell has all its runs: {nearest}" if nearest else "no cell has all its runs"


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


def _outcome(o: Ordering, runs: pd.DataFrame) -> dict:
    """The outcome of one cell, and the difference that decides it."""
    if o.names == "network":
        runs = runs.rename(columns={"method": "network", "network": "method"})  # `verdict` compares methods
    found = [verdict(runs, b, w) for b, w in product(o.better, o.worse)]
    margin = 2 * runs.loc[runs["method"] == o.worse[0], "accuracy"].std()
    each = [within(v.low, v.high, margin + SLACK) if o.alike and not math.isnan(v.low) else v.outcome for v in found]
    outcome = next(name for name in ("too few sets", "reversed", "not decided", "held") if name in each)
    # Among the pairs with this outcome, the one with the lowest interval decides.
    decides = min((v for v, name in zip(found, each, strict=True) if name == outcome), key=_height)
    return {
        "outcome": outcome,
        **{name: getattr(decides, name) for name in ("better", "worse", "difference", "low", "high")},
        "margin": margin if o.alike else math.nan,
        "in_order": _in_order(o, [v.difference for v in found], margin),
    }


def _height(v: Verdict) -> float:
    if math.isnan(v.low):
        return v.difference
    return v.high if v.high < 0 else v.low


def _words(o: Ordering, c) -> str:
    """The difference that decides a cell, as a sentence without a verb."""
    names = {}
    if o.table == "Table 2":  # its columns are shorter than our names for them
        printed = paper.published(o.table)
        names = dict(zip(printed["method"], printed["column"], strict=True))
    better, worse = (names.get(method, method) for method in (c.better, c.worse))
    interval = "no interval" if math.isnan(c.low) else f"{c.low:+.2f} to {c.high:+.2f}"
    return f"{cell_name(o, c)}: {better} minus {worse} {c.difference:+.2f} ({interval})"


def cell_name(o: Ordering, c) -> str:
    """A cell of `ordering_cells`, such as "MNIST, IPC 1, to mlp"."""
    if o.names == "network":
        return f"{c.dataset}, IPC {c.ipc}, from {c.at}"
    return f"{c.dataset}, IPC {c.ipc}" + ("" if c.at == "convnet" else f", to {c.at}")
