"""Every number that the paper prints, judged against our runs by rules fixed beforehand.

The paper's claims in words are in `orders`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pandas as pd
from IPython.display import Markdown

from gmlib import where
from gmlib.checks import check_number, choose
from gmlib.coresets import CORESETS
from gmlib.evaluation import Evaluation
from gmlib.recipe import BUDGETS
from gmlib.runs import readback

from . import paper
from .deviations import Departure, protocol_departures
from .style import SIGNS, counted, listed, md, per_class
from .summaries import summarise
from .tables import Cell, Table, accuracy_table, agreement, outcome_against
from .transfer import transfer_table

OUTCOMES = list(SIGNS)
CELL = ["dataset", "ipc", "method", "network"]
Interval = tuple[float, float, float]  # value, low, high


def judge_claims(
    results: pd.DataFrame,
    measured: Mapping[str, Interval] | None = None,
    whole: Mapping[str, Evaluation] | None = None,
    measured_budget: str = "paper",
    unfinished: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Every number of the paper with ours and an outcome.

    A number is judged if it was run under the budget "paper", with at least two sets and LEAST_NETWORKS networks on
    each. Its interval is that of `summarise`. Its tolerance is two of the paper's standard deviations, but at least
    the rounding of the printed number. A run counts only for its own cell (data set, images per class, method, target
    network): an image folder never counts as one of the paper's data sets. The outcomes:

    - reproduced: our whole interval lies within the tolerance around the paper's number.
    - differs: the whole interval lies outside.
    - not decided: the interval crosses the edge.
    - too few sets: fewer than two, so there is no interval.
    - too few networks: fewer than LEAST_NETWORKS on a set, or on the whole training set.
    - by counting: steps of theta that follow from a schedule, without a run.
    - another budget: only other budgets were run. The number is shown but not judged.
    - not run: the note says why.
    - held, reversed: for a bound ("at most", "at least"), the interval lies on its side, or on the other. It is not
      decided if the bound lies inside the interval.

    A relative accuracy is 100 times ours over the mean of ``whole``. It ignores the spread of ``whole``.

    Parameters
    ----------
    results
        Long form. May have no rows.
    measured
        Claims on computing time: claim id -> (value, low, high) with a 95% interval. Steps are always counted from
        the schedules, so a measured number of steps is ignored.
    whole
        Data set -> networks trained on all its training images (`readback.stored_whole_data`).
    measured_budget
        Budget of ``measured``. Under another budget than "paper" these claims are shown but not judged.
    unfinished
        Long form: sets with too few networks (`readback.unfinished_accuracies`). Those of the budget "paper" are
        shown, as "too few networks", where ``results`` have fewer than two sets of that budget.

    Returns
    -------
    DataFrame
        One row for each row of paper.csv, in its order. Columns: claim, table, row, column, unit, as in the file;
        paper, paper_std; ours, ours_std, over all networks as in the paper; low, high, the 95% t interval of ours
        over sets (over networks for whole training sets); low_alone, high_alone, the same with the standard deviation
        of its own sets, if low and high have a pooled one; n (networks), n_sets; budget; outcome; note, also on a
        precision other than float32. Missing where there is no value.

    Raises
    ------
    ValueError
        If the results are not in long form, or if an id or an interval in ``measured`` does not fit.
    """
    numbers = [c for name in paper.TABLES for c in paper.published(name).itertuples(index=False)]
    on_time = {c.claim: c for c in numbers if c.unit in ("percent of time", "steps")}
    measured, whole = measured or {}, whole or {}
    for claim, interval in measured.items():
        _check_measured(claim, interval, on_time)
    steps = _steps_of_schedules()
    runs: dict[tuple, dict[str, dict]] = {}  # cell -> budget -> row of the summary
    for s in summarise(results).to_dict("records") if len(results) else ():
        runs.setdefault(tuple(s[name] for name in CELL), {})[s["budget"]] = s
    for cell, s in _with_unfinished(results, unfinished).items():
        if runs.get(cell, {}).get("paper", {"n_sets": 0})["n_sets"] < 2:
            runs.setdefault(cell, {})["paper"] = s
    substitutes = {name: paper.substitutes(name, results) for name in paper.TABLES}
    rows = []
    for c in numbers:
        if c.claim in steps:
            low = high = steps[c.claim]
            outcome = "by counting" if agreement(c.value, c.std, low, high, c.unit) == "reproduced" else "differs"
            ours = {"ours": low, "low": low, "high": high, "outcome": outcome}
            ours["note"] = "from the schedule, without a run"
        elif c.claim in measured:
            ours = _judge_bound(c, measured[c.claim])
            if measured_budget != "paper":
                ours |= {"outcome": "another budget", "note": f"{measured_budget} budget"}
        elif c.claim in on_time:
            ours = {"outcome": "not run", "note": "no time was measured"}
        elif c.method == "whole":
            ours = _judge_whole(c, whole.get(c.dataset))
        else:
            ours = _judge_run(c, runs.get((c.dataset, c.ipc, c.method, c.network), {}), whole.get(c.dataset))
        if ours["outcome"] == "not run" and "note" not in ours:
            ours["note"] = paper.why_not_run(c.dataset, c.ipc, results)
            others = [name for name, ipc in substitutes[c.table] if (name, ipc, c.method, c.network) in runs]
            ours["note"] += f"; run on {', '.join(others)} instead" if others else ""
        printed = {"claim": c.claim, "table": c.table, "row": c.row, "column": c.column}
        rows.append(printed | {"paper": c.value, "paper_std": c.std, "unit": c.unit} | _nothing() | ours)
    return pd.DataFrame(rows).astype({"n": "Int64", "n_sets": "Int64"})


def _with_unfinished(results: pd.DataFrame, unfinished: pd.DataFrame | None) -> dict[tuple, dict]:
    """Cell -> its row of the summary over all sets of the budget "paper", for cells with unfinished ones."""
    tables = [] if unfinished is None else [table[table["budget"] == "paper"] for table in (unfinished, results)]
    if not tables or tables[0].empty:
        return {}
    cells = set(tables[0][CELL].itertuples(index=False, name=None))
    every = pd.concat([table for table in tables if len(table)])
    found = {tuple(s[name] for name in CELL): s for s in summarise(every).to_dict("records")}
    return {cell: found[cell] for cell in cells}


def _check_measured(claim: str, interval: Interval, on_time: Mapping) -> None:
    choose(on_time, "claim on time or steps", claim)
    if len(interval) != 3 or not interval[1] <= interval[0] <= interval[2]:
        raise ValueError(f"measured[{claim!r}] is {interval!r}: give (value, low, high) with low <= value <= high")
    for number in interval:
        check_number(f"measured[{claim!r}]", number)


def _nothing() -> dict:
    missing = dict.fromkeys(("ours", "ours_std", "low", "high", "low_alone", "high_alone"), math.nan)
    return missing | {"n": None, "n_sets": None, "budget": "", "outcome": "not run", "note": ""}


def _judge_run(c, runs: Mapping[str, dict], whole: Evaluation | None) -> dict:
    """An accuracy, or one relative to that of the whole training set. runs: rows of `summarise` by budget."""
    if not runs:
        return {"outcome": "not run"}
    budget = next((b for b in reversed(BUDGETS) if b in runs), next(iter(runs)))  # the nearest to the paper's
    s = runs[budget]
    scale, least, note = 1.0, s["n_least"], s["note"]
    if s["precision"] not in ("", "float32"):
        note = "; ".join(filter(None, (note, f"precision {s['precision']}")))
    if c.unit == "percent of whole":
        if whole is None:
            return {"outcome": "not run", "note": "no stored network was trained on the whole training set"}
        scale, least = 100 / whole.mean, min(least, whole.n)
        if departures := _other_protocol(c.dataset, whole):
            budget = "mixed"
            note = "; ".join(filter(None, (note, f"the networks on whole data: {departures}")))
    names = {"ours": "mean", "ours_std": "std"} | {name: name for name in ("low", "high", "low_alone", "high_alone")}
    ours = {name: scale * s[key] for name, key in names.items()}
    ours |= {"n": s["n"], "n_sets": s["n_sets"], "budget": budget, "note": note}
    return ours | {"outcome": _outcome(c, ours, least)}


def _judge_whole(c, e: Evaluation | None) -> dict:
    if e is None:
        return {"outcome": "not run"}
    low, high = e.ci95
    note = "no set: interval over networks" if e.n > 1 else "one network: no interval"
    departures = _other_protocol(c.dataset, e)
    note += f"; {departures}" if departures else ""
    budget = "another protocol" if departures else "paper"
    ours = {"ours": e.mean, "ours_std": e.std, "low": low, "high": high, "n": e.n, "budget": budget, "note": note}
    return ours | {"outcome": _outcome(c, ours, e.n)}


def _other_protocol(dataset: str, e: Evaluation) -> str:
    """How these networks differ from ConvNets trained by the paper's protocol, or ""."""
    network = [] if e.network == "convnet" else [Departure("network", e.network, "convnet")]
    return ", ".join(map(str, network + protocol_departures(dataset, e)))


def _outcome(c, ours: dict, least: int) -> str:
    return outcome_against(c.value, c.std, ours | {"n_least": least}, c.unit)


def _steps_of_schedules() -> dict[str, float]:
    """Steps of theta in one outer iteration at ten images per class, from the schedules."""
    T, zeta = where.FIXED[10]
    counts = {name: float(where.steps_per_outer_iteration(name, T, zeta)) for name in ("fixed", "adaptive")}
    return {f"text-efficiency-theta-updates-{name}": count for name, count in counts.items()}


def _judge_bound(c, interval: Interval) -> dict:
    value, low, high = interval
    if c.column.endswith("at most"):
        outcome = "held" if high <= c.value else "reversed" if low > c.value else "not decided"
    else:
        outcome = "held" if low >= c.value else "reversed" if high < c.value else "not decided"
    return {"ours": value, "low": low, "high": high, "outcome": outcome}


@readback.while_unchanged
def stored_claims(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """`judge_claims` of the results that come with the repository: the outcome of a number on every page.

    Parameters
    ----------
    results_dir
        Another folder of results.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    """
    return judge_claims(
        readback.stored_accuracies(results_dir),
        whole=readback.stored_whole_data(results_dir),
        unfinished=readback.unfinished_accuracies(results_dir),
    )


# ---- as the page shows them ------------------------------------------------------------------------------


def claims_table(found: pd.DataFrame, live: Mapping[str, Interval] | None = None) -> Table:
    """Each claim with its outcome, ours, our interval and the paper's number.

    Parameters
    ----------
    found
        Some or all rows of `judge_claims`.
    live
        Claim id -> (value, low, high), measured by the page itself. It has a column of its own and no outcome.
    """
    one_table = found["table"].nunique() == 1
    one_unit = found["unit"].nunique() == 1
    cells, rows = {}, []
    for c in found.itertuples():
        row = f"{c.row}: {c.column}" if one_table else f"{c.table}, {c.row}: {c.column}"
        rows.append(row)
        missing = c.outcome == "not run"
        cells[row, "outcome"] = [f"not run: {c.note}"] if missing else [c.outcome, *([c.note] if c.note else [])]
        cells[row, "ours"], cells[row, "paper"] = ours_and_theirs(c)
        cells[row, "paper"] += [] if one_unit else [c.unit]
        if live is not None:
            value, low, high = live.get(c.claim, (math.nan,) * 3)
            digits = paper.decimals(c.paper, c.unit) if c.unit == "steps" else 1
            text = f"{value:.{digits}f}" + ("" if low == high else f" ({low:.{digits}f} to {high:.{digits}f})")
            cells[row, "this page"] = ["–" if math.isnan(value) else text]
    unit = f" in {found['unit'].iloc[0]}" if one_unit else ""
    caption = (
        f"Numbers{unit}, ±std over all networks; 95% t interval over sets. If its standard deviation is pooled, "
        "that with the number's own sets follows (alone)."
    )
    if live is not None:
        caption += " This page: what it measured itself, with the 95% interval; this is not judged."
    columns = ["outcome", "ours", "paper"] + (["this page"] if live is not None else [])
    return Table(rows, columns, cells, caption, corner="number")


def ours_and_theirs(c) -> tuple[list[str], list[str]]:
    """Our number in a row of `judge_claims`, with interval and size of the sample, and the paper's, as text."""
    printed = paper.decimals(c.paper, c.unit)
    more = printed if c.unit == "steps" else max(printed, 1)
    theirs = [_number(c.paper, c.paper_std, printed)]
    if math.isnan(c.ours):
        return ["–"], theirs
    ours = [_number(c.ours, c.ours_std, more)]
    if not math.isnan(c.low) and c.low < c.high:
        ours.append(f"{c.low:.{more}f} to {c.high:.{more}f}")
    if not math.isnan(c.low_alone):
        ours.append(f"alone: {c.low_alone:.{more}f} to {c.high_alone:.{more}f}")
    if not pd.isna(c.n):
        sets = "" if pd.isna(c.n_sets) else f", {counted(c.n_sets, 'set')}"
        ours.append(f"n={c.n}{sets}" + ("" if c.budget == "paper" else f", budget: {c.budget}"))
    return ours, theirs


def _number(value: float, std: float, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if math.isnan(std) else f"±{std:.{digits}f}")


def paper_table(name: str, results: pd.DataFrame | None = None) -> Table:
    """A table of the paper with our runs in each cell, or the reason why there is none. `judge_claims` judges them.

    Rows are methods. Columns are data sets with images per class, those with runs first. Data that replace the
    paper's (`paper.substitutes`) have columns of their own. In Table 4, on MNIST, rows and columns are source and
    target networks.

    Parameters
    ----------
    name
        "Table 1" to "Table 4".
    results
        Long form. None takes the results in the repository (`stored_claims`).

    Raises
    ------
    ValueError
        If the table is unknown.
    FileNotFoundError
        If ``results`` is None and there are no stored results here.
    """
    choose(dict.fromkeys(t for t in paper.TABLES if t != "text"), "table", name)
    stored = results is None
    results = readback.stored_accuracies() if stored else results
    published = paper.published(name)
    theirs = published[published["ipc"].notna()].astype({"ipc": int})
    substitutes = paper.substitutes(name, results)
    methods = list(dict.fromkeys(theirs["method"]))

    wanted = set(theirs[CELL].itertuples(index=False, name=None))
    wanted |= {(*at, method, network) for at in substitutes for _, _, method, network in wanted}
    cells = list(results[CELL].itertuples(index=False, name=None))
    run = {(dataset, ipc) for dataset, ipc, *_ in wanted.intersection(cells)}
    # Methods of other tables stay, because the intervals have the spread of the sets of all methods.
    sizes = {(dataset, ipc, network) for dataset, ipc, _, network in wanted.intersection(cells)}
    shown = [(dataset, ipc, network) in sizes for dataset, ipc, _, network in cells]
    mine = results.loc[pd.Series(shown, results.index, dtype=bool)]

    columns = [*theirs[["dataset", "ipc"]].drop_duplicates().itertuples(index=False, name=None), *substitutes]
    columns.sort(key=lambda at: at not in run)

    applicable = {(dataset, ipc, method) for dataset, ipc, method, _ in wanted}
    not_applicable = "not applicable: with one image per class, O and A change nothing"
    why = {
        (*at, method): paper.why_not_run(*at, results) if (*at, method) in applicable else not_applicable
        for method in methods
        for at in columns
    }
    judged = stored_claims() if stored else judge_claims(results)
    shown = dict(zip(theirs[CELL].itertuples(index=False, name=None), _cells_of(judged, theirs), strict=True))
    if name == "Table 4":
        sources = {method: method.partition("@")[2] or "convnet" for method in methods}
        targets = list(dict.fromkeys(theirs["network"]))
        made = transfer_table(mine, theirs, sources=sources, targets=targets, dataset="MNIST", ipc=1, why=why)
        mine = {
            (sources[method], target): shown["MNIST", 1, method, target] for method in methods for target in targets
        }
        return replace(made, shown=mine)
    by_distance = name == "Table 2"
    labels = dict(zip(theirs["method"], theirs["column"], strict=True)) if by_distance else None
    replaced = "".join(f", {dataset} instead of {on}" for (dataset, _), on in substitutes.items())
    made = accuracy_table(
        mine,
        theirs,
        methods=methods,
        columns=columns,
        why=why,
        labels=labels,
        corner="distance" if by_distance else "method",
        caption=f"{name}: test accuracy in percent{replaced}",
    )
    names = labels or {method: method for method in methods}
    shown = {(names[method], f"{dataset}, IPC {ipc}"): cell for (dataset, ipc, method, _), cell in shown.items()}
    made = replace(made, shown={**made.shown, **shown}, legend=())
    whole = published[published["method"] == "whole"]
    if whole.empty:
        return made
    numbers = ", ".join(f"{c.dataset} {_number(c.value, c.std, 1)}" for c in whole.itertuples())
    return replace(made, caption=f"{made.caption} The paper's numbers on whole training sets: {numbers}.")


def _cells_of(judged: pd.DataFrame, theirs: pd.DataFrame) -> Iterator[Cell]:
    """What `paper_table` shows for these numbers: the outcome by `judge_claims`, ours, and the paper's."""
    for c in judged.set_index("claim").loc[theirs["claim"]].itertuples():
        (first, *rest), (printed, *_) = ours_and_theirs(c)
        run = not math.isnan(c.ours)
        small = [line for line in rest if not line.startswith("alone")] if run else []
        yield Cell(first if run else "", [*small, f"paper {printed}"], c.outcome, "" if run else c.note)


def coresets_sentence(found: pd.DataFrame) -> Markdown:
    """In how many cells herding is below random images, in the paper's numbers and in ours by its protocol.

    Parameters
    ----------
    found
        From `judge_claims`.
    """
    rows = found[(found["table"] == "Table 3") & found["column"].isin(["random", "herding"])]
    rows = rows.assign(ours=rows["ours"].where(rows["budget"] == "paper"))
    by_column = rows.pivot(index="row", columns="column").loc[rows["row"].unique()]
    tables = [by_column[name].dropna() for name in ("paper", "ours")]
    parts = []
    for whose, values in zip(("the paper's", "our"), tables, strict=True):
        worse = [md(row) for row in values.index[values["herding"] < values["random"]]]
        which = f" ({listed(worse)})" if worse else ""
        parts.append(f"in {len(worse)} of {whose} {counted(len(values), 'cell')}{which}")
    return Markdown(
        f"Herding is worse than random images {listed(parts)}. The paper says only that it takes images whose center "
        "is close to that of the distribution. Ours adds images one by one, each time the one that brings the mean "
        "of the chosen features nearest to that of the class."
    )


def substitutes_sentence(name: str, results: pd.DataFrame) -> Markdown:
    """How much the choice of a matching method matters on substitute data and on the paper's, by the paper's numbers.

    Empty if there is no substitute, or if the paper has fewer than two common methods for the two data sets.

    Parameters
    ----------
    name
        A table of one data set, such as "Table 2".
    results
        Long form. May have no rows.
    """
    printed = pd.concat([paper.published(table) for table in ("Table 1", "Table 2", "Table 3")])
    printed = printed[~printed["method"].isin(["whole", *CORESETS])]
    lines = []
    for (other, ipc), on in paper.substitutes(name, results).items():
        numbers = printed[printed["ipc"].eq(ipc)].groupby(["method", "dataset"])["value"].mean().unstack()
        common = numbers.reindex(columns=[on, other]).dropna()
        if len(common) < 2:
            continue
        spread = common.max() - common.min()
        line = (
            f"The paper prints accuracies on both {on} and {md(other)}, at {per_class(ipc)}, for {len(common)} "
            f"methods that match gradients. They span {spread[on]:.1f} points on {on} and "
            f"{spread[other]:.1f} on {md(other)}."
        )
        if spread[other] < spread[on]:
            line += f" On {md(other)} the choice matters less, and a different order there refutes nothing."
        lines.append(line)
    return Markdown("\n\n".join(lines))
