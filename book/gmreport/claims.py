"""Every figure the paper prints, and every ordering it asserts in words, against our runs, each by a rule stated beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
from IPython.display import Markdown

from gmlib import where
from gmlib.checks import check_number, choose
from gmlib.evaluation import Evaluation
from gmlib.recipe import BUDGETS
from gmlib.runs import readback

from . import paper
from .deviations import Departure, protocol_departures
from .numbers import OUTCOMES as VERDICTS
from .numbers import Verdict, checked, summarise, verdict, within
from .style import counted
from .tables import Table, accuracy_table, transfer_table

OUTCOMES = ["reproduced", "differs", "as counted", *VERDICTS, "another budget", "not run"]
_CELL = ["dataset", "ipc", "method", "network"]
# Data that the machines behind results/ did not have.
_NOT_AT_HAND = dict.fromkeys(("SVHN", "CIFAR100", "TinyImageNet"), "the data were not at hand")
_NOT_AT_HAND["CIFAR10"] = "the authors' files were not at hand"
_DIGITS = {"percent": 1, "percent of whole": 0, "percent of time": 0, "steps": 0}  # printed after the point, at least
_NO_RUN = "no run of it is stored"
_SLACK = 1e-9  # for 83.8 - 83.2 <= 0.6


def claims(
    results: pd.DataFrame,
    measured: Mapping[str, tuple[float, float, float]] | None = None,
    whole: Mapping[str, Evaluation] | None = None,
) -> pd.DataFrame:
    """One row for every figure in paper.csv, in its order, with ours and an outcome.

    results: long form. Only runs of the paper's own cell count (data set, images per class, method, target network): an image
    folder is never taken for one of the paper's data sets.
    measured: (value, low, high), a 95% interval, for claims on computing time or steps, by claim id.
    whole: networks trained on all training images (`store.whole_data`), by data set.

    Columns: claim, table, row, column, unit as in the file; paper, paper_std; ours, ours_std, pooled over all networks as the
    paper does; low, high, the 95% t interval of ours over sets (for whole training sets over networks); n networks, n_sets;
    budget; outcome; note, why it is so where that needs saying. Missing where there is none.

    Outcomes. A figure is judged where it was run under the budget "paper". Its tolerance is 2 of the paper's standard
    deviations, and at least the rounding of the printed figure:
      reproduced      low and high both lie within the tolerance around the paper's figure
      differs         the whole interval lies outside it
      not decided     the interval reaches across its edge
      too few sets    fewer than two sets (networks, for whole training sets), so no interval
      as counted      steps of theta that follow from a schedule: arithmetic, no run
      another budget  only other budgets were run: shown, not judged
      not run         note says why
    A relative accuracy is 100 times ours over the mean of `whole`, whose own spread is left out. Steps of theta are counted
    from the schedules, unless measured. A bound ("at most", "at least") is held if the interval lies on its side, reversed if
    on the other, not decided if the bound is inside it.

    Raises ValueError for results that are not in long form, and for a measured id or interval that fits no such claim.
    """
    every = _every_claim()
    timed = {c.claim: c for c in every if c.unit in ("percent of time", "steps")}
    counted, measured = _counted_steps(), measured or {}
    for claim, interval in measured.items():
        choose(timed, "claim on time or steps", claim)
        if len(interval) != 3 or not interval[1] <= interval[0] <= interval[2]:
            raise ValueError(
                f"measured[{claim!r}] is {interval!r}: give (value, low, high) with low <= value <= high"
            )
        for number in interval:
            check_number(f"measured[{claim!r}]", number)
    runs: dict[tuple, dict[str, dict]] = {}  # cell -> budget -> row of the summary
    for s in summarise(results).to_dict("records") if len(results) else ():
        runs.setdefault(tuple(s[name] for name in _CELL), {})[s["budget"]] = s
    instead = {name: _instead(name, results) for name in paper.TABLES}
    rows = []
    for c in every:
        if c.claim in timed:
            ours = _measured(c, measured.get(c.claim, counted.get(c.claim)))
            if c.claim in counted and c.claim not in measured:
                ours["note"] = "from the schedule, without a run"
                ours["outcome"] = "as counted" if ours["outcome"] == "reproduced" else ours["outcome"]
        elif c.method == "whole":
            ours = _whole(c, (whole or {}).get(c.dataset))
        else:
            ours = _run(c, runs.get((c.dataset, c.ipc, c.method, c.network), {}), (whole or {}).get(c.dataset))
        if ours["outcome"] == "not run" and not ours.get("note"):
            ours["note"] = _reason(c.dataset, c.ipc, results)
            there = [dataset for dataset, ipc in instead[c.table] if (dataset, ipc, c.method, c.network) in runs]
            ours["note"] += f"; run on {', '.join(there)} in their place" if there else ""
        stated = {
            "claim": c.claim,
            "table": c.table,
            "row": c.row,
            "column": c.column,
            "paper": c.value,
            "paper_std": c.std,
        }
        rows.append(stated | {"unit": c.unit} | _nothing() | ours)
    return pd.DataFrame(rows).astype({"n": "Int64", "n_sets": "Int64"})


def _instead(table: str, results: pd.DataFrame) -> dict[tuple[str, int], str]:
    return paper.stand_ins(table, results) if len(results) else {}


def _every_claim() -> list:
    return [c for name in paper.TABLES for c in paper.published(name).itertuples(index=False)]


def _nothing() -> dict:
    nan = math.nan
    return {
        "ours": nan, "ours_std": nan, "low": nan, "high": nan, "n": None, "n_sets": None, "budget": "", "outcome": "not run",
        "note": "",
    }  # fmt: skip


def _run(c, runs: Mapping[str, dict], whole: Evaluation | None) -> dict:
    """An accuracy, or an accuracy relative to that of the whole training set; runs: rows of `summarise` by budget."""
    if not runs:
        return {"outcome": "not run"}
    budget = next((b for b in reversed(BUDGETS) if b in runs), next(iter(runs)))  # the one nearest to the paper's
    s, scale = runs[budget], 1.0
    if c.unit == "percent of whole":
        if whole is None:
            return {"outcome": "not run", "note": "no network trained on the whole training set is stored"}
        scale, other = 100 / whole.mean, _other_protocol(c.dataset, whole)
        budget = "mixed" if other else budget
    ours = {
        name: scale * s[key]
        for name, key in (("ours", "mean"), ("ours_std", "std"), ("low", "low"), ("high", "high"))
    }
    ours |= {"n": s["n"], "n_sets": s["n_sets"], "budget": budget, "note": s["note"]}
    if c.unit == "percent of whole" and other:
        ours["note"] = "; ".join(filter(None, (s["note"], f"the networks on whole data: {_listed(other)}")))
    return ours | _judged(c, ours)


def _whole(c, e: Evaluation | None) -> dict:
    if e is None:
        return {"outcome": "not run"}
    (low, high), other = e.ci95, _other_protocol(c.dataset, e)
    note = "no set: interval over networks" if e.n > 1 else "one network: no interval"
    note += f"; {_listed(other)}" if other else ""
    budget = "another protocol" if other else "paper"
    ours = {"ours": e.mean, "ours_std": e.std, "low": low, "high": high, "n": e.n, "budget": budget, "note": note}
    return ours | _judged(c, ours)


def _other_protocol(dataset: str, e: Evaluation) -> list[Departure]:
    """In what these networks are no ConvNets trained by the paper's protocol."""
    network = [] if e.network == "convnet" else [Departure("network", e.network, "convnet")]
    return network + protocol_departures(dataset, e)


def _listed(departures: list[Departure]) -> str:
    return ", ".join(map(str, departures))


def _judged(c, ours: dict) -> dict:
    if ours["budget"] != "paper":
        return {"outcome": "another budget"}
    if math.isnan(ours["low"]):
        return {"outcome": "too few sets"}
    return {"outcome": _against(c, ours["low"], ours["high"])}


def _against(c, low: float, high: float) -> str:
    return within(low - c.value, high - c.value, _tolerance(c.value, c.std, c.unit) + _SLACK, "reproduced", "differs")


def _tolerance(value: float, std: float, unit: str) -> float:
    """Two standard deviations, and at least half a unit of the last digit that is printed."""
    return max(0.0 if math.isnan(std) else 2 * std, 0.5 * 10 ** -_digits(value, unit))


def _digits(value: float, unit: str) -> int:
    return max(_DIGITS[unit], len(f"{value:g}".partition(".")[2]))


def _counted_steps() -> dict[str, tuple[float, float, float]]:
    """Steps of theta in one outer iteration at ten images per class: a property of the schedules, exact without a run."""
    T, zeta = where.FIXED[10]
    counts = {name: float(where.steps_per_outer_iteration(name, T, zeta)) for name in ("fixed", "adaptive")}
    return {f"text-efficiency-theta-updates-{name}": (count, count, count) for name, count in counts.items()}


def _measured(c, interval: tuple[float, float, float] | None) -> dict:
    if interval is None:
        return {"outcome": "not run", "note": "no time was measured"}
    value, low, high = interval
    ours = {"ours": value, "low": low, "high": high}
    if c.unit == "steps":
        return ours | {"outcome": _against(c, low, high)}
    if c.column.endswith("at most"):
        outcome = "held" if high <= c.value else "reversed" if low > c.value else "not decided"
    else:
        outcome = "held" if low >= c.value else "reversed" if high < c.value else "not decided"
    return ours | {"outcome": outcome}


def _reason(dataset: str, ipc: int, results: pd.DataFrame) -> str:
    if not pd.isna(ipc) and ipc not in where.FIXED:
        return "the paper gives no schedule for so many images per class"
    if dataset in _NOT_AT_HAND and dataset not in set(results["dataset"]):
        return _NOT_AT_HAND[dataset]
    return _NO_RUN


# ---- what the paper says in words ------------------------------------------------------------------------


@dataclass(frozen=True)
class Ordering:
    """Every name in `better` beats every one in `worse`, in the cells of a table that give all their figures."""

    id: str
    sentence: str
    said: str  # where, and in the paper's own words
    table: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    names: str = "method"  # what better and worse are: methods, or the "network" that is trained on the set
    alike: bool = False  # neither is better: they are alike


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
        "magnitude-helps-d1", "d1 with a magnitude term beats d1", 'Section 4.3: "we get improvement compared with pure d1"',
        "Table 2", ("MD", "multi,d1+d3,fixed", "multi,d1+100*d4,fixed"), ("M",),
    ),
    Ordering(
        "overfitting-helps-dc", "DC updated at overfitting beats DC", 'Section 4.4: "improved the test accuracy"',
        "text", ("intra,d1,overfit",), ("DC",),
    ),
    Ordering("m-beats-dc", "M beats DC", _MOST, "Table 3", ("M",), ("DC",)),
    Ordering("md-beats-dc", "MD beats DC", _MOST, "Table 3", ("MD",), ("DC",)),
    Ordering("md-beats-m", "MD beats M", "read off the table; in words Section 4.3 says it of SVHN", "Table 3", ("MD",), ("M",)),
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
        "tiny-imagenet", "MD beats DC on Tiny ImageNet", "Section 4.5, by the accuracies of both",
        "text", ("MD",), ("DC",),
    ),
    Ordering(
        "large-sets", "Ours beats DC from 50 to 1000 images per class", "Section 4.5, by relative accuracies of both",
        "text", ("MDO",), ("DC",),
    ),
    Ordering(
        "convnet-best-source", "For every target, the ConvNet is the best source",
        'Appendix A.2: "all the target networks achieve the highest test accuracy when trained from the dataset" of the ConvNet',
        "Table 4", ("MD",), _OTHER_SOURCES,
    ),
    Ordering(
        "resnet-among-best-targets", "From every source, ResNet beats all targets but the ConvNet",
        'Appendix A.2, less strictly: "ResNet achieves one of the highest test accuracies among all target networks"',
        "Table 4", ("resnet18",), ("mlp", "lenet", "alexnet", "vgg11"), names="network",
    ),
]  # fmt: skip


def orderings(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each of ORDERINGS and budget it was run under, or one with budget "" where it was not run.

    Columns: id, sentence, said, table; cells, those of the paper's table that give all the figures; shown, in how many of them
    the paper's own means bear the sentence out (a tie does); budget; data, "" or what was run in place of the paper's, in a row
    of its own (`paper.stand_ins`); run, in how many cells results hold all the runs; in_order, in how many of those our means
    bear it out by the same rule as the paper's; and in how many it came out held, reversed, not_decided, too_few (sets); told,
    for each of them the difference that decides, in words; note, why it was not run.

    A cell is held if every `better` is above every `worse` beyond noise (`verdict`), reversed if one is below, not decided
    otherwise. Where the sentence says "like", it is held if the 95% interval of the difference lies within two standard
    deviations of the second one's networks, reversed if it lies outside, not decided otherwise; the paper's own means bear it
    out within two of its own. Only the paper's cells count: other data and sizes are judged in the chapters.

    Raises ValueError for results that are not in long form.
    """
    results = checked(results) if len(results) else results
    rows = []
    for o in ORDERINGS:
        cells = _cells_of(o)
        stated = {"id": o.id, "sentence": o.sentence, "said": o.said, "table": o.table, "cells": len(cells)}
        stated["shown"] = sum(_borne_out(o, *_compared(o, figures)) for figures in cells.values())
        instead = _instead(o.table, results)
        found: dict[
            tuple[str, str], list[tuple[str, str, bool]]
        ] = {}  # (data, budget) -> of each cell, what `_outcome` tells
        for (*cell, budget), runs in results.groupby([*_cell_columns(o), "budget"], sort=False):
            stands_in = instead.get((cell[0], cell[1]))
            if (tuple(cell) in cells or stands_in) and {*o.better, *o.worse} <= set(runs[o.names]):
                data = f"{cell[0]} in place of {stands_in}" if stands_in else ""
                found.setdefault((data, budget), []).append(_outcome(o, runs))
        if not any(data == "" for data, _ in found):
            found = {("", ""): [], **found}
        for (data, budget), became in found.items():
            outcomes, told = [outcome for outcome, *_ in became], tuple(words for _, words, _ in became)
            counts = {name.replace(" ", "_"): outcomes.count(name) for name in ("held", "reversed", "not decided")}
            counts["too_few"] = outcomes.count("too few sets")
            why = "" if outcomes else _why_no_cell(list(cells), results)
            rows.append({
                **stated, "budget": budget, "data": data, "run": len(outcomes),
                "in_order": sum(in_order for *_, in_order in became), **counts, "told": told, "note": why,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _why_no_cell(cells: list[tuple], results: pd.DataFrame) -> str:
    """The reason that all cells share, where it is more than that runs are wanting."""
    reasons = {_reason(dataset, ipc, results) for dataset, ipc, _ in cells}
    return reasons.pop() if len(reasons) == 1 and _NO_RUN not in reasons else "no cell has all its runs"


def _cell_columns(o: Ordering) -> list[str]:
    return [name for name in _CELL if name != o.names]


def _cells_of(o: Ordering) -> dict[tuple, dict[str, tuple[float, float]]]:
    """The cells in which the paper gives every figure: (dataset, ipc, method or network) -> {name: (value, std)}."""
    cells: dict[tuple, dict[str, tuple[float, float]]] = {}
    for c in paper.published(o.table).dropna(subset="ipc").to_dict("records"):
        cells.setdefault(tuple(c[name] for name in _cell_columns(o)), {})[c[o.names]] = (c["value"], c["std"])
    return {cell: figures for cell, figures in cells.items() if {*o.better, *o.worse} <= set(figures)}


def _compared(o: Ordering, figures: Mapping[str, tuple[float, float]]) -> tuple[list[float], float]:
    """The differences of the paper's means, and two of its standard deviations; figures: name -> (mean, std)."""
    return [figures[b][0] - figures[w][0] for b in o.better for w in o.worse], _tolerance(
        *figures[o.worse[0]], "percent"
    )


def _borne_out(o: Ordering, differences: list[float], margin: float) -> bool:
    """Whether means bear the ordering out."""
    return all(abs(d) <= margin + _SLACK if o.alike else d >= 0 for d in differences)


def _outcome(o: Ordering, runs: pd.DataFrame) -> tuple[str, str, bool]:
    """What became of an ordering in one cell, the difference that decides it, in words, and whether our means bear it out."""
    at = runs.iloc[0]
    named = {"method": at["method"], "network": at["network"]}
    if o.names == "network":
        runs = runs.rename(
            columns={"method": "network", "network": "method"}
        )  # `verdict` compares what stands in "method"
    found = [verdict(runs, b, w) for b in o.better for w in o.worse]
    cell = f"{at['dataset']}, IPC {at['ipc']}"
    if o.names == "network":
        cell += f", from {named['method']}"
    elif named["network"] != "convnet":
        cell += f", to {named['network']}"
    margin = 2 * summarise(runs[runs["method"] == o.worse[0]])["std"].iloc[0]
    each = [
        within(v.low, v.high, margin + _SLACK) if o.alike and not math.isnan(v.low) else v.outcome for v in found
    ]  # fmt: skip
    outcome = _together(each)
    # Of those that came out so, the one with the lowest interval, or of those without an interval the lowest.
    decides = min((v for v, became in zip(found, each, strict=True) if became == outcome), key=_height)
    return outcome, f"{cell}: {_difference(decides, o.table)}", _borne_out(o, [v.difference for v in found], margin)


def _height(v: Verdict) -> float:
    return v.difference if math.isnan(v.low) else v.high if v.high < 0 else v.low


def _together(outcomes: list[str]) -> str:
    """The outcome of all pairs: the first of these that any of them has."""
    return next(name for name in ("too few sets", "reversed", "not decided", "held") if name in outcomes)


def _difference(v: Verdict, table: str) -> str:
    printed = (
        paper.published(table) if table == "Table 2" else None
    )  # whose columns are shorter than our names for them
    names = {} if printed is None else dict(zip(printed["method"], printed["column"], strict=True))
    better, worse = (names.get(method, method) for method in (v.better, v.worse))
    interval = "no interval" if math.isnan(v.low) else f"{v.low:+.2f} to {v.high:+.2f}"
    return f"{better} minus {worse} {v.difference:+.2f} ({interval})"


# ---- as the page shows them ------------------------------------------------------------------------------


def claims_sentence(found: pd.DataFrame, orders: pd.DataFrame) -> Markdown:
    """What was tested, under which budget, and what came out, in a few sentences; as `claims` and `orderings` return them."""
    run = found[found["n"].notna()]
    budgets, counts = run["budget"], found["outcome"].value_counts()
    outcomes = ", ".join(f"{name} {counts[name]}" for name in OUTCOMES if name in counts)
    names = ", ".join(dict.fromkeys(budget for budget in budgets if budget != "paper"))
    if budgets.empty:
        first = (
            "**No run is stored yet, so no accuracy of the paper was put to the test;** what is judged here was counted or "
            "measured."
        )
    else:
        first = (
            f"**Of the paper's {len(found)} figures, {(budgets == 'paper').sum()} were run by its own protocol, and "
            f"{(budgets != 'paper').sum()} with another budget only{f' ({names})' if names else ''}.**"
        )
    tested, every = orders[orders["run"] > 0], counted(orders["id"].nunique(), "ordering")
    own, instead = tested[tested["data"] == ""], tested[tested["data"] != ""]
    if own.empty:
        second = f"None of its {every} was run."
    else:
        told = "; ".join(f"{of}, {_cells_told(rows)}" for of, rows in _by(own, "budget"))
        n = own["id"].nunique()
        second = f"**Of its {every}, {n} {'was' if n == 1 else 'were'} run: {told}.**"
    second += "".join(
        f" On other data, {of}, {_cells_told(rows)}." for of, rows in _by(instead, "table", "data", "budget")
    )
    return Markdown(f"{first} {second} Outcomes of all {len(found)} figures: {outcomes}.")


def _by(orders: pd.DataFrame, *names: str) -> list[tuple[str, pd.DataFrame]]:
    """(what they have in common, in words; rows) of `orderings`."""
    found = []
    for at, rows in orders.groupby(list(names), sort=False):
        found.append(
            (", ".join(f"budget {v}" if name == "budget" else v for name, v in zip(names, at, strict=True)), rows)
        )
    return found


def _cells_told(rows: pd.DataFrame) -> str:
    columns = {"held": "held", "reversed": "reversed", "not decided": "not_decided", "too few sets": "too_few"}
    told = ", ".join(f"{name} in {rows[column].sum()}" for name, column in columns.items() if rows[column].any())
    return f"{told} of {counted(rows['run'].sum(), 'cell')}"


def claims_summary(found: pd.DataFrame) -> Table:
    """Outcomes counted by table, the budgets named and why the rest was not run; found: as `claims` returns them."""
    outcomes, cells = [name for name in OUTCOMES if name in set(found["outcome"])], {}
    rows = {**dict(iter(found.groupby("table", sort=False))), "all": found}
    for row, some in rows.items():
        cells[row, "figures"] = [f"{len(some)}"]
        for name in outcomes:
            these = some[some["outcome"] == name]
            of = these["budget" if name == "another budget" else "note"].value_counts()
            named = name in ("another budget", "not run")
            cells[row, name] = [f"{len(these)}", *(f"{what}: {n}" for what, n in of.items() if named)]
    caption = "Figures of the paper by outcome, with the budget they were run under and the reason they were not run."
    return Table(list(rows), ["figures", *outcomes], cells, caption, corner="where")


def claims_table(found: pd.DataFrame) -> Table:
    """Claims in rows: the paper's figure, ours, our interval, the outcome; found: as `claims` returns them, or some of them."""
    one_table, one_unit = found["table"].nunique() == 1, found["unit"].nunique() == 1
    cells, rows = {}, []
    for c in found.itertuples():
        row = f"{c.row}: {c.column}" if one_table else f"{c.table}, {c.row}: {c.column}"
        rows.append(row)
        digits = _digits(c.paper, c.unit)
        cells[row, "paper"] = [_number(c.paper, c.paper_std, digits)] + ([] if one_unit else [c.unit])
        more = digits if c.unit == "steps" else max(digits, 1)
        cells[row, "ours"] = ["" if math.isnan(c.ours) else _number(c.ours, c.ours_std, more)]
        if not pd.isna(c.n):
            sets = "" if pd.isna(c.n_sets) else f", {counted(c.n_sets, 'set')}"
            cells[row, "ours"].append(f"n={c.n}{sets}" + ("" if c.budget == "paper" else f", budget: {c.budget}"))
        cells[row, "95% interval"] = ["" if math.isnan(c.low) else f"{c.low:.{more}f} to {c.high:.{more}f}"]
        cells[row, "outcome"] = [c.outcome] + ([c.note] if c.note else [])
    caption = f"Figures{' in ' + found['unit'].iloc[0] if one_unit else ''}, ±std over all networks; 95% t interval over sets."
    return Table(rows, ["paper", "ours", "95% interval", "outcome"], cells, caption, corner="figure")


def _number(value: float, std: float, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if math.isnan(std) else f"±{std:.{digits}f}")


def orderings_table(found: pd.DataFrame) -> Table:
    """Orderings in rows, those that were run first: in how many cells the paper's figures show them, and what became of ours.

    A line for each budget, and for other data in place of the paper's; under it the difference that decides in each cell.
    """
    cells, tried = {}, found.groupby("sentence", sort=False)["run"].sum()
    for sentence, rows in found.groupby("sentence", sort=False):
        first = rows.iloc[0]
        at = "in the text" if first["table"] == "text" else f"in {first['table']}"
        cells[sentence, "in the paper"] = [
            f"{first['shown']} of {counted(first['cells'], 'cell')} {at}",
            first["said"],
        ]
        cells[sentence, "ours"] = [line for r in rows.itertuples() for line in (*_became(r), *r.told)]
    columns = ["in the paper", "ours"]
    caption = "What the paper says in words. In brackets the 95% interval of a difference, in points."
    return Table([*tried[tried > 0].index, *tried[tried == 0].index], columns, cells, caption, corner="ordering")


def _became(r) -> list[str]:
    if not r.run:
        return [f"not run: {r.note}"]
    marks = [f"budget: {r.budget}"] * (r.budget != "paper") + [r.data] * bool(r.data)
    told = _cells_told(pd.DataFrame([r])) + (f" ({'; '.join(marks)})" if marks else "")
    return [told, f"the means are in this order in {r.in_order}"]


def paper_table(name: str, results: pd.DataFrame | None = None) -> Table:
    """A table of the paper with our runs in each cell beside its figure, or "not run" and why.

    name: "Table 1" to "Table 4". results: long form; None takes those committed under results/ (`readback.accuracies`).
    Rows are methods and columns data sets with images per class, those with runs before the others, data that stood in for the
    paper's (`paper.stand_ins`) among them; in Table 4, on MNIST, source and target networks, as gmlib names them.
    Raises ValueError for an unknown table.
    """
    choose(dict.fromkeys(t for t in paper.TABLES if t != "text"), "table", name)
    theirs = paper.published(name)
    whole = theirs[theirs["method"] == "whole"]
    theirs = theirs[theirs["ipc"].notna()].astype({"ipc": int})
    results = readback.accuracies() if results is None else results
    instead = _instead(name, results)
    wanted = set(theirs[_CELL].itertuples(index=False, name=None))
    wanted |= {(*at, method, network) for at in instead for _, _, method, network in wanted}
    shown = [cell in wanted for cell in results[_CELL].itertuples(index=False, name=None)]
    mine = results.loc[pd.Series(shown, results.index, dtype=bool)]
    methods = list(dict.fromkeys(theirs["method"]))
    columns = [*theirs[["dataset", "ipc"]].drop_duplicates().itertuples(index=False, name=None), *instead]
    run = set(mine[["dataset", "ipc"]].itertuples(index=False, name=None))
    columns.sort(key=lambda at: at not in run)
    printed = set(theirs[["dataset", "ipc", "method"]].itertuples(index=False, name=None))
    printed |= {(*at, method) for at in instead for method in methods}
    why = {
        (dataset, ipc, method): _reason(dataset, ipc, results)
        if (dataset, ipc, method) in printed
        else "not applicable: with one image per class, O and A change nothing"
        for method in methods
        for dataset, ipc in columns
    }
    if name == "Table 4":
        sources = {method: method.partition("@")[2] or "convnet" for method in methods}
        targets = list(dict.fromkeys(theirs["network"]))
        return transfer_table(mine, theirs, sources=sources, targets=targets, dataset="MNIST", ipc=1, why=why)
    labels, corner = (
        (dict(zip(methods, theirs["column"], strict=True)), "distance") if name == "Table 2" else (None, "method")
    )
    caption = f"{name}: test accuracy in percent"
    caption += "".join(f", {dataset} in place of {on}" for (dataset, _), on in instead.items())
    made = accuracy_table(
        mine, theirs, methods=methods, columns=columns, why=why, labels=labels, corner=corner, caption=caption
    )
    if whole.empty:
        return made
    figures = ", ".join(f"{c.dataset} {_number(c.value, c.std, 1)}" for c in whole.itertuples())
    return replace(made, caption=f"{made.caption} The paper's figures on whole training sets: {figures}.")
