"""Every number of the paper with ours, to filter and to sort, and the runs behind them.

The page holds a plain table, which is complete without a script and in print. ``_static/explorer.js`` adds the
controls.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import pandas as pd
from IPython.display import HTML

from gmlib.recipe import BUDGETS
from gmlib.runs import readback, shipped
from gmlib.runs.shipped import CondensedSet

from . import paper
from .cards import Shipped, picture_html
from .claims import CELL, ours_and_theirs, stored_claims
from .matrix import POINTS, Key, Mark, drawing, interval, legend
from .style import SIGNS, counted, display_name, method_order, per_class, sign, signed
from .summaries import Verdict, verdict


@dataclass(frozen=True, eq=False)
class StoredRun(Shipped):
    """A stored set with the files of its run as text. Its evaluations are all that are stored.

    Attributes
    ----------
    files : dict
        Name -> text. The history of losses is left out.
    """

    files: dict[str, str]

    @property
    def id(self) -> str:
        """The id of its element in the page."""
        return f"run-{self.name}"


@dataclass(frozen=True)
class Runs:
    """The stored runs, to be shown in a page. Their pictures are files that `cards.write_downloads` writes.

    Attributes
    ----------
    runs : list of StoredRun
    """

    runs: list[StoredRun] = field(default_factory=list)

    @classmethod
    def stored(cls, results_dir=None) -> Runs:
        """All runs of the repository, or of another folder of results."""
        found = []
        for run in shipped.stored_runs(results_dir):
            record = json.loads((run["path"] / "run.json").read_text("utf-8"))
            if history := record.get("history"):
                record["history"] = f"{len(history)} outer iterations, left out here"
            files = {"run.json": json.dumps(record, indent=1, ensure_ascii=False)}
            for path in sorted(run["path"].glob("*.json")):
                if path.name.startswith("accuracy-"):
                    files[path.name] = path.read_text("utf-8").strip()
            found.append(StoredRun(shipped.load(run["path"]), run["path"] / "set.safetensors", files))
        return cls(found)

    def of(self, key: Key) -> list[StoredRun]:
        """The sets of a method, those with a network of the right kind."""
        dataset, ipc, method, budget, network = key
        asked = (dataset, ipc, method, budget)
        return [run for run in self.runs if _cell(run) == asked and network in run.S.evaluations]

    def short(self, keys: Sequence[Key]) -> str:
        """HTML of some runs: pictures, accuracies, and links to the files."""
        items = ""
        for key in dict.fromkeys(keys):
            for run in self.of(key):
                items += f"<li>{self._one(run, key[-1])}</li>"
        return f'<ul class="gm-some-runs">{items}</ul>' if items else "<p>The sets are not among the stored runs.</p>"

    def _one(self, run: StoredRun, network: str) -> str:
        e = run.S.evaluations[network]
        networks = "networks" if network == "convnet" else f"networks ({network})"
        return (
            f"<p><b>{html.escape(run.title)}</b>: {e.mean:.1f} % "
            f"<small>mean of {e.n} {html.escape(networks)}</small></p>"
            f'{_picture(run)}<p class="gm-accuracies">{_accuracies(e.accuracies)}</p>'
            f'<p><a href="#{run.id}">files of this run</a></p>'
        )

    def section(self) -> HTML:
        """Every run with its picture, its accuracies and its files, folded."""
        groups: dict[tuple, list[StoredRun]] = {}
        for run in self.runs:
            groups.setdefault((*run.size, run.S.budget), []).append(run)
        body = ""
        for (dataset, ipc, budget), some in groups.items():
            title = f"{dataset}, {per_class(ipc)}, {budget} budget: {counted(len(some), 'set')}"
            body += f'<details class="gm-run-group"><summary>{html.escape(title)}</summary>'
            body += "".join(map(self._full, some)) + "</details>"
        return HTML(f'<div class="gm-runs">{body}</div>' if body else "<p>Nothing was run yet.</p>")

    def _full(self, run: StoredRun) -> str:
        files = "".join(
            f"<details><summary>{html.escape(name)}</summary>"
            f'<pre tabindex="0">{html.escape(text, quote=False)}</pre></details>'
            for name, text in run.files.items()
        )
        accuracies = "".join(
            f'<p class="gm-accuracies">{html.escape(network)}: {_accuracies(e.accuracies)}</p>'
            for network, e in run.S.evaluations.items()
        )
        mean = f": {run.S.accuracy.mean:.1f} %" if run.S.accuracy else ""
        return (
            f'<div class="gm-run" id="{run.id}"><p><b>{html.escape(run.title)}</b>{mean}</p>{_picture(run)}'
            f"{accuracies}{files}</div>"
        )


def _cell(run: StoredRun) -> tuple[str, int, str, str]:
    S = run.S
    # Under the paper's budget the pass over real images may be in bfloat16: it is no change (`readback`).
    budget = S.budget.removesuffix(shipped.CHANGED) if not _changed(S) else S.budget
    return *run.size, run.method, budget


def _changed(S: CondensedSet) -> bool:
    known = S.budget.removesuffix(shipped.CHANGED) in BUDGETS
    return "method" in S.record["recipe"] or not known or bool(shipped.changes_in(S.record))


def _picture(run: StoredRun) -> str:
    return f'<div class="gm-picture">{picture_html(run, run.title)}</div>'


def _accuracies(values: Iterable[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


# ---- every number ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explorer:
    """Every number of the paper with its outcome, ours, every network, and the difference to other methods.

    Attributes
    ----------
    found : DataFrame
        From `judge_claims`.
    results : DataFrame
        Long form. May have no rows.
    runs : Runs
    """

    found: pd.DataFrame
    results: pd.DataFrame
    runs: Runs = field(default_factory=Runs)

    @classmethod
    def stored(cls, runs: Runs | None = None) -> Explorer:
        """Of the results in the repository."""
        return cls(stored_claims(), readback.stored_accuracies(), Runs.stored() if runs is None else runs)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of ``found`` with dataset, ipc, method and network, in the order of the paper."""
        printed = pd.concat([paper.published(name) for name in paper.TABLES])
        return self.found.merge(printed[["claim", *CELL]], on="claim", validate="one_to_one")

    @cached_property
    def differences(self) -> dict[tuple, list[Verdict]]:
        """(dataset, ipc, network) -> each pair of methods compared, by the budget nearest to the paper's."""
        made: dict[tuple, dict[frozenset, Verdict]] = {}
        order = {name: i for i, name in enumerate(reversed(BUDGETS))}
        cells = self.results.groupby(["dataset", "ipc", "network", "budget"], sort=False) if len(self.results) else ()
        for (*at, _), cell in sorted(cells, key=lambda one: order.get(one[0][-1], len(order))):
            of = made.setdefault(tuple(at), {})
            for one, other in combinations(method_order(cell["method"]), 2):
                if frozenset((one, other)) not in of:
                    of[frozenset((one, other))] = verdict(cell, other, one)
        return {at: list(pairs.values()) for at, pairs in made.items()}

    def _repr_html_(self) -> str:
        heads = ("verdict", "number", "ours", "paper", "ours minus the paper's")
        head = "".join(f'<th role="columnheader" scope="col">{name}</th>' for name in heads)
        body = "".join(self._row(i, c) for i, c in enumerate(self.rows.itertuples()))
        data = json.dumps(self.data(), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        caption = (
            "● our mean with its 95% interval, small dots: single networks; the band is the tolerance around the "
            f"paper's number (two of its standard deviations). The axis ends at ±{POINTS:g} points."
        )
        return (
            f'<div class="gm-explorer"><div class="gm-controls" hidden></div>'
            f'<table role="table"><caption>{caption}</caption>'
            f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
            f'<tbody role="rowgroup">{body}</tbody></table>{legend(self.found["outcome"])}'
            f'<script type="application/json">{data}</script></div>'
        )

    def __repr__(self) -> str:
        return f"Explorer: {len(self.found)} numbers"

    def _key(self, c) -> Key:
        return c.dataset, c.ipc, c.method, c.budget, c.network

    def _dots(self, c) -> pd.Series:
        """Accuracies of every network behind a number."""
        if pd.isna(c.ipc) or c.unit != "percent" or self.results.empty:
            return pd.Series(dtype=float)
        same = self.results[[*CELL, "budget"]].apply(tuple, axis=1) == (
            c.dataset,
            c.ipc,
            c.method,
            c.network,
            c.budget,
        )
        return self.results.loc[same, "accuracy"]

    def _row(self, i: int, c) -> str:
        (ours, *more), (theirs, *_) = ours_and_theirs(c)
        run = not math.isnan(c.ours)
        verdict_ = sign(c.outcome) if c.outcome != "not run" else _MISSING
        where = f"{name_of_place(c)} · {'text' if c.table == 'text' else c.table}"
        small = "".join(f"<small>{html.escape(line)}</small>" for line in more if not line.startswith("alone"))
        note = f"<small>{html.escape(c.note)}</small>" if run and c.note else ""
        first = f"<span>ours </span>{html.escape(ours)}" if run else ""
        drawn = ""
        if run and not math.isnan(c.low) and c.unit == "percent":
            dots = [value - c.paper for value in self._dots(c)]
            margin = paper.tolerance(c.paper, c.paper_std, c.unit)
            value, low, high = (number - c.paper for number in (c.ours, c.low, c.high))
            drawn = drawing([Mark(c.outcome, value, low, high, margin=margin, dots=dots)])
        cells = (
            f'<td role="cell" class="gm-verdict">{verdict_}</td>'
            f'<th role="rowheader" scope="row">{html.escape(name_of(c))} <small>{html.escape(where)}</small></th>'
            f'<td role="cell" class="gm-count">{first}{small}{note}</td>'
            f'<td role="cell" class="gm-theirs"><span>paper </span>{html.escape(theirs)}</td>'
            f'<td role="cell" class="gm-drawn">{drawn}</td>'
        )
        if inside := self._inside(c) if run else "":
            cells += f'<td role="cell" class="gm-more">{inside}</td>'
        return f'<tr role="row" data-i="{i}">{cells}</tr>'

    def _inside(self, c) -> str:
        """Pictures, accuracies and differences to other methods, folded."""
        if pd.isna(c.ipc) or c.method is None or not self.runs.of(self._key(c)):
            return ""
        lines = ""
        for v in self.differences.get((c.dataset, c.ipc, c.network), []):
            if c.method in (v.better, v.worse):
                v = v if v.better == c.method else _turned(v)
                numbers = f"{signed(v.difference)} {interval(v.low, v.high)}"
                budget = "" if v.budget == "paper" else f" <small>{html.escape(v.budget)} budget</small>"
                mark = Mark(v.outcome, v.difference, v.low, v.high, faint=v.budget != "paper")
                lines += (
                    f"<li>{_against(v)}<span>{html.escape(display_name(v.worse))}: {numbers}{budget}</span>"
                    f"{drawing([mark])}</li>"
                )
        own = [line for line in ours_and_theirs(c)[0] if line.startswith("alone")]
        alone = f"<p>95% interval from its own sets {html.escape(own[0])}.</p>" if own else ""
        others = f'<p>Minus other methods, in points:</p><ul class="gm-others">{lines}</ul>' if lines else ""
        shown = self.runs.short([self._key(c)])
        return f"<details><summary>images, networks, other methods</summary>{shown}{alone}{others}</details>"

    def data(self) -> dict:
        """What the script needs: a row for each number, and the compared pairs."""
        rows = []
        for c in self.rows.itertuples():
            known = not math.isnan(c.ours)
            rows.append(
                {
                    "dataset": "time and steps" if pd.isna(c.dataset) else c.dataset,
                    "ipc": None if pd.isna(c.ipc) else int(c.ipc),
                    "method": name_of(c),
                    "key": None if pd.isna(c.method) else c.method,
                    "network": c.network,
                    "outcome": c.outcome,
                    "unit": c.unit,
                    "paper": c.paper,
                    "ours": round(c.ours, 3) if known else None,
                }
            )
        pairs = [
            {"at": list(at), "a": v.better, "b": v.worse, "d": _short(v.difference), "low": _short(v.low)}
            | {"high": _short(v.high), "budget": v.budget}
            for at, some in self.differences.items()
            for v in some
        ]
        signs = {outcome: list(pair) for outcome, pair in SIGNS.items()}
        return {"reach": POINTS, "rows": rows, "pairs": pairs, "signs": signs, "names": self._names()}

    def _names(self) -> dict[str, str]:
        """Methods that a number can be compared with."""
        methods = [m for m in self.rows["method"].dropna().unique() if m != "whole" and "@" not in m]
        return {method: display_name(method) for method in method_order(methods)}


_MISSING = '<span class="gm-sign gm-waits"><b aria-hidden="true">–</b><span class="gm-hidden">not run</span></span>'


def _short(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def _turned(v: Verdict) -> Verdict:
    outcome = {"held": "reversed", "reversed": "held"}.get(v.outcome, v.outcome)
    return Verdict(
        v.worse, v.better, v.dataset, v.ipc, v.budget, -v.difference, -v.high, -v.low, v.n[::-1], v.test, outcome
    )


def _against(v: Verdict) -> str:
    words = {"held": "above", "reversed": "below"}
    return sign(v.outcome, words.get(v.outcome, v.outcome))


def name_of(c) -> str:
    """A number of the paper in words, such as "MD" or "MD from mlp, to lenet"."""
    if pd.isna(c.method):
        return c.column.replace("theta", "θ")
    if c.method == "whole":
        return "whole training set"
    name = display_name(c.method) + (", relative" if c.unit == "percent of whole" else "")
    return name if c.table != "Table 4" else f"{name}, to {c.network}"


def name_of_place(c) -> str:
    """Its data set and images per class."""
    if pd.isna(c.dataset):
        return "10 per class" if "A " in c.column or "updates" in c.column else "time"
    return c.dataset if pd.isna(c.ipc) else f"{c.dataset}, {c.ipc} per class"
