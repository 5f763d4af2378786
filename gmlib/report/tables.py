"""Tables: ours beside the paper's."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from .numbers import checked, select, summarise
from .style import method_order


@dataclass(frozen=True)
class Table:
    """Cells of text: `cells[row, column]` is a list of lines. HTML in a page, plain text elsewhere."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], list[str]]
    caption: str
    corner: str = "method"

    def _repr_html_(self) -> str:
        def esc(text):
            return html.escape(str(text))

        head = "".join(f'<th scope="col">{esc(c)}</th>' for c in self.columns)
        body = ""
        for row in self.rows:
            cells = ""
            for column in self.columns:
                first, *rest = self.cells[row, column]
                small = "".join(f"<br><small>{esc(line)}</small>" for line in rest)
                cells += f"<td>{esc(first)}{small}</td>"
            body += f'<tr><th scope="row">{esc(row)}</th>{cells}</tr>'
        return (
            f'<div class="gm-table"><table class="table"><caption>{esc(self.caption)}</caption><thead><tr>'
            f'<th scope="col">{esc(self.corner)}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def __str__(self) -> str:
        text = {c: ["; ".join(self.cells[r, c]) for r in self.rows] for c in self.columns}
        return f"{self.caption}\n{pd.DataFrame(text, index=self.rows).to_string()}"

    __repr__ = __str__


def table(
    results: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    *,
    methods: Sequence[str] | None = None,
    columns: Sequence[tuple[str, int]] | None = None,
    network: str | None = None,
    why: Mapping[tuple[str, int, str], str] | None = None,
    caption: str = "Test accuracy in percent",
    decimals: int = 1,
) -> Table:
    """Methods in rows, (dataset, images per class) in columns; in a cell ours, the paper's under it.

    methods, columns: what to show (default: what `results` hold); a cell that was not run says so, with the
    reason from `why[dataset, ipc, method]` where there is one.
    paper: the published numbers, columns dataset, ipc, method, value, std (percent).
    network: the trained architecture, needed when `results` hold several.
    A cell run under another budget than "paper" is not set against the paper's figure; the caption or, where
    budgets are mixed, the cell names the budget.
    """
    if results.empty and methods is not None and columns is not None:
        summary = results.assign(mean=0.0, std=0.0, n=0, n_sets=0, ci95=0.0)  # no row: every cell says "not run"
    else:
        summary = summarise(select(checked(results), network=network))
    methods = list(methods) if methods is not None else method_order(summary["method"])
    if columns is None:
        columns = list(summary[["dataset", "ipc"]].drop_duplicates().itertuples(index=False, name=None))
    budgets = list(dict.fromkeys(summary["budget"]))
    cells = {}
    for method in methods:
        for dataset, ipc in columns:
            where = (summary["dataset"] == dataset) & (summary["ipc"] == ipc) & (summary["method"] == method)
            theirs = _published(paper, dataset, ipc, method)
            lines = []
            for _, s in summary[where].iterrows():
                lines += _cell_lines(s, decimals, name_budget=len(budgets) > 1)
            if not lines:
                reason = (why or {}).get((dataset, ipc, method))
                lines = ["not run" + (f": {reason}" if reason else "")]
            if paper is not None:
                lines += [_against_paper(theirs, summary[where], decimals)]
            cells[method, f"{dataset}, IPC {ipc}"] = lines
    note = "mean±std over all networks, n networks, 95% t interval over sets"
    if not budgets:
        note += "; nothing was run"
    elif len(budgets) > 1:
        note += f'; budgets: {", ".join(budgets)}, of which only "paper" is the paper\'s protocol'
    elif budgets != ["paper"]:
        note += f"; budget: {budgets[0]}, not the paper's protocol"
    return Table(methods, [f"{d}, IPC {i}" for d, i in columns], cells, f"{caption} ({note}).")


def _cell_lines(s: pd.Series, decimals: int, name_budget: bool) -> list[str]:
    spread = "" if math.isnan(s["std"]) else f"±{s['std']:.{decimals}f}"
    sets = "1 set" if s["n_sets"] == 1 else f"{s['n_sets']} sets"
    ours = f"{s['mean']:.{decimals}f}{spread} (n={s['n']}, {sets})"
    interval = s["note"] if math.isnan(s["ci95"]) else f"95% CI [{s['low']:.{decimals}f}, {s['high']:.{decimals}f}]"
    return [ours, interval] + ([f"budget: {s['budget']}"] if name_budget else [])


def _published(paper: pd.DataFrame | None, dataset: str, ipc: int, method: str) -> tuple[float, float] | None:
    if paper is None:
        return None
    row = paper[(paper["dataset"] == dataset) & (paper["ipc"] == ipc) & (paper["method"] == method)]
    return None if row.empty else (float(row["value"].iloc[0]), float(row["std"].iloc[0]))


def _against_paper(theirs: tuple[float, float] | None, ours: pd.DataFrame, decimals: int) -> str:
    if theirs is None:
        return "not in the paper"
    value, std = theirs
    text = f"paper: {value:.{decimals}f}" + ("" if math.isnan(std) else f"±{std:.{decimals}f}")
    same = ours[(ours["budget"] == "paper") & ours["ci95"].notna()]
    if same.empty:  # another budget, or one set: nothing to compare with
        return text
    low, high = same["low"].iloc[0], same["high"].iloc[0]
    side = "ours above" if low > value else "ours below" if high < value else "inside our interval"
    return f"{text} ({side})"


def reach_table(sums: pd.DataFrame, budget: str) -> Table:
    """Distances to the nearest trap, methods in rows, thresholds in columns; one row of `sums` per set and threshold.

    sums: `reach.by_eps(..., by=["method", "set"])`.
    """
    methods, eps = method_order(sums["method"]), sorted(sums["eps"].unique(), reverse=True)
    cells = {}
    for method in methods:
        for e in eps:
            rows = sums[(sums["method"] == method) & (sums["eps"] == e)]
            distances = rows["min_distance"].dropna()
            spread = f"±{distances.std():.2f}" if len(distances) > 1 else ""
            first = f"{distances.mean():.2f}{spread}" if len(distances) else "not reached"
            starts, arrived = rows["starts"].sum(), (rows["starts"] * rows["reached"]).sum()
            sets = f"{len(rows)} set{'s' if len(rows) > 1 else ''}"
            cells[method, f"eps = {e:g}"] = [first, f"{sets}, {arrived:.0f} of {starts} starts"]
    caption = (
        f"Distance from the start to the nearest trap, mean±std over sets; sets, and starts that reached it (budget: {budget})."
    )
    return Table(methods, [f"eps = {e:g}" for e in eps], cells, caption)
