"""Tables of accuracies and of other measurements, with the paper's numbers where it has them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from gmlib import how
from gmlib.recipe import Recipe

from .style import counted, method_order
from .summaries import checked, select, summarise


@dataclass(frozen=True)
class Table:
    """A table of text: HTML in a page, plain text elsewhere.

    Attributes
    ----------
    rows, columns : list of str
    cells : dict
        (row, column) -> lines of text. Lines after the first are small.
    caption : str
    corner : str
        What the rows are.
    """

    # HTML by hand: great_tables adds 9 kB of CSS to every table and has no caption; pandas' Styler writes no scope
    # attribute, which screen readers need.
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


def accuracy_table(
    results: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    *,
    methods: Sequence[str] | None = None,
    columns: Sequence[tuple[str, int]] | None = None,
    network: str | None = None,
    why: Mapping[tuple[str, int, str], str] | None = None,
    labels: Mapping[str, str] | None = None,
    corner: str = "method",
    caption: str = "Test accuracy in percent",
    decimals: int = 1,
) -> Table:
    """Accuracies with methods in rows and (dataset, images per class) in columns; the paper's number is under ours.

    The interval of a mean is that of `summarise`, over all of ``results``, whether shown or not. If it has a pooled
    standard deviation, the interval with that of the cell's own sets follows ("alone").

    If the runs had another budget than "paper", ours is not compared with the paper's number. The caption names the
    budget; if there are several, each cell names its own.

    Parameters
    ----------
    results
        Long form. May have no rows if ``methods`` and ``columns`` are given.
    paper
        The published numbers: columns dataset, ipc, method, value, std (percent).
    methods, columns
        What to show. By default everything in ``results``.
    network
        The trained network, needed if ``results`` have several.
    why
        (dataset, ipc, method) -> why a cell was not run. A reason "not applicable: ..." is shown without "not run".
    labels
        Method -> the text of its row, if that is not its name.
    corner
        What the rows are.
    caption
        Without the full stop: a note on numbers and budgets follows.
    decimals
        Digits after the decimal point.

    Raises
    ------
    ValueError
        If the results are not in long form, or if two rows would have the same text.
    """
    if results.empty and methods is not None and columns is not None:
        summary = results.assign(ci95=0.0)
    else:
        summary = summarise(select(checked(results), network=network))
    methods = list(methods) if methods is not None else method_order(summary["method"])
    if columns is None:
        columns = list(summary[["dataset", "ipc"]].drop_duplicates().itertuples(index=False, name=None))
    known = summary[["dataset", "ipc", "method"]].itertuples(index=False)
    shown = [method in methods and (dataset, ipc) in columns for dataset, ipc, method in known]
    summary = summary[pd.Series(shown, summary.index, dtype=bool)]
    budgets = list(dict.fromkeys(summary["budget"]))
    cells, rows = {}, [(labels or {}).get(method, method) for method in methods]
    if len(set(rows)) < len(rows):
        raise ValueError(f"two rows have the same label ({', '.join(rows)}): give each method its own")
    for method, row in zip(methods, rows, strict=True):
        for dataset, ipc in columns:
            where = (summary["dataset"] == dataset) & (summary["ipc"] == ipc) & (summary["method"] == method)
            theirs = _published(paper, dataset, ipc, method)
            lines = []
            for _, s in summary[where].iterrows():
                lines += _cell_lines(s, decimals, name_budget=len(budgets) > 1)
            if not lines:
                lines = [_not_run((why or {}).get((dataset, ipc, method), ""))]
            if paper is not None:
                lines += [_against_paper(theirs, summary[where], decimals)]
            cells[row, f"{dataset}, IPC {ipc}"] = lines
    note = "mean±std over all networks, n networks, 95% t interval over sets"
    if len(summary) and summary["low_alone"].notna().any():
        note += " with a pooled standard deviation; alone: with that of the cell's own sets"
    if not budgets:
        note += "; nothing was run"
    elif len(budgets) > 1:
        note += f'; budgets: {", ".join(budgets)}; only "paper" is the paper\'s protocol'
    elif budgets != ["paper"]:
        note += f"; budget: {budgets[0]}, not the paper's protocol"
    return Table(rows, [f"{d}, IPC {i}" for d, i in columns], cells, f"{caption} ({note}).", corner)


def _not_run(reason: str) -> str:
    if reason.startswith("not applicable"):
        return reason
    return f"not run: {reason}" if reason else "not run"


def distance_names(
    dataset: str, ipcs: Sequence[int], distances: Sequence[str]
) -> tuple[dict[tuple[int, str], str], dict[str, str]]:
    """One name for each distance, as rows of a table, whatever the number of images per class.

    With multi-level matching and fixed steps, a distance can be one method at one size and another at the next: on
    CIFAR-10, MD is d1 + d2 at 1 image per class and d1 + 0.1*d2 at 50 (footnote 5). So each distance has the name of
    its method at 1 image per class.

    Parameters
    ----------
    dataset
        Its name.
    ipcs
        Numbers of images per class.
    distances
        As `how.parse_distance` reads them.

    Returns
    -------
    names : dict
        (ipc, method) -> the distance's name, in the order of ``ipcs`` and ``distances``.
    labels : dict
        The distance's name -> the text of its row, such as "d1 + 0.1 d2".
    """

    def method(distance: str, ipc: int) -> str:
        return Recipe(dataset=dataset, ipc=ipc, what="multi", how=distance, where="fixed").method

    spelled = [how.spell_distance(how.parse_distance(d)) for d in distances]
    names = {(ipc, method(d, ipc)): method(d, 1) for ipc in ipcs for d in spelled}
    return names, {method(d, 1): d.replace("*", " ") for d in spelled}


def components_table(found: pd.DataFrame) -> Table:
    """What condensation adds, in parts, methods in rows.

    Parameters
    ----------
    found
        From `components`, of one network and budget.
    """
    cells, column = {}, _column_names(found)
    for c in found.itertuples():
        at = column(c.dataset, c.ipc)
        interval = f"95% CI [{c.ior_low:+.1f}, {c.ior_high:+.1f}]"
        cells[c.method, f"{at}: IOR"] = _unless_missing(c.ior, "{:+.1f}") + (
            [] if math.isnan(c.ior_low) else [interval]
        )
        cells[c.method, f"{at}: HLR"] = _unless_missing(c.hlr, "{:.1f}")
        cells[c.method, f"{at}: relative"] = _unless_missing(c.relative, "{:.1f} %")
    caption = (
        "Improvement over random (IOR) and hard-label recovery gap (HLR) in points; accuracy relative to whole data."
    )
    return filled(method_order(found["method"]), cells, caption)


def noise_table(results: pd.DataFrame) -> Table:
    """Standard deviations between sets, and between the networks of one set (see `between_sets`); methods in rows.

    Parameters
    ----------
    results
        Long form, of one network and budget.
    """
    cells, column = {}, _column_names(results)
    for s in summarise(select(checked(results), network=None, budget=None)).itertuples():
        at = column(s.dataset, s.ipc)
        between = _unless_missing(s.std_between_sets, "{:.2f}")
        if not math.isnan(s.std_between_sets):
            between += [f"95% interval {s.between_low:.2f} to {s.between_high:.2f}"]
        if not math.isnan(s.std_set_means):
            between += [f"of the set means: {s.std_set_means:.2f}"]
        cells[s.method, f"{at}: between sets"] = [*between, counted(s.n_sets, "set")]
        cells[s.method, f"{at}: between networks"] = [*_unless_missing(s.std_within_sets, "{:.2f}"), f"n={s.n}"]
    caption = (
        "Standard deviation of test accuracy, in points: between sets, without the part that comes from their "
        "networks, and between the networks of one set."
    )
    return filled(method_order(results["method"]), cells, caption)


def matching_table(found: pd.DataFrame, labels: Mapping[str, str] | None = None, corner: str = "method") -> Table:
    """How far matching came, mean±std over sets, methods in rows.

    Parameters
    ----------
    found
        From `matching`.
    labels, corner
        As in `accuracy_table`.
    """
    columns = {
        "loss at first": ("first", 0),
        "loss at the end": ("last", 0),
        "of the first, in percent": ("left", 0),
        "images moved by": ("moved", 2),
    }
    cells = {}
    for method, rows in found.groupby("method", sort=False):
        row = (labels or {}).get(method, method)
        for name, (column, decimals) in columns.items():
            std = f"±{rows[column].std():.{decimals}f}" if len(rows) > 1 else ""
            cells[row, name] = [f"{rows[column].mean():.{decimals}f}{std}"]
    caption = (
        "Matching loss over the first and the last tenth of the outer iterations, in the units of its own distance, "
        "and how far S moved, relative to its norm at the start; mean±std over sets."
    )
    return filled(list(dict.fromkeys(row for row, _ in cells)), cells, caption, corner)


def neighbours_table(found: pd.DataFrame) -> Table:
    """Published numbers of other methods, data sets in columns.

    Parameters
    ----------
    found
        From `paper.neighbours`.
    """
    cells: dict[tuple[str, str], list[str]] = {}
    for (method, venue, dataset), rows in found.groupby(["method", "venue", "dataset"], sort=False):
        numbers = " / ".join(f"{value:.1f}" for value in rows["value"])
        ipcs = " / ".join(map(str, rows["ipc"]))
        cells[f"{method} ({venue})", dataset] = [numbers, f"IPC {ipcs}"]
    caption = (
        "Published test accuracy in percent, by images per class, as later papers quote it. Each method has its own "
        "protocol."
    )
    return filled(list(dict.fromkeys(row for row, _ in cells)), cells, caption, empty="none")


def _column_names(found: pd.DataFrame) -> Callable[[str, int], str]:
    """How to name a column: with the data set if there are several."""
    several = found["dataset"].nunique() > 1
    return lambda dataset, ipc: f"{dataset}, IPC {ipc}" if several else f"IPC {ipc}"


def _unless_missing(value: float, form: str) -> list[str]:
    return ["not known" if math.isnan(value) else form.format(value)]


def filled(
    rows: list[str],
    cells: dict[tuple[str, str], list[str]],
    caption: str,
    corner: str = "method",
    empty: str = "not run",
) -> Table:
    """A table of these cells. A missing cell says ``empty``."""
    columns = list(dict.fromkeys(column for _, column in cells))
    return Table(rows, columns, {(r, c): cells.get((r, c), [empty]) for r in rows for c in columns}, caption, corner)


def text_table(frame: pd.DataFrame, caption: str, corner: str = "method") -> Table:
    """A table from a DataFrame of text. Lines after the first in a cell are small."""
    rows = list(map(str, frame.index))
    columns = list(map(str, frame.columns))
    cells = {
        (row, column): str(frame.iat[i, j]).split("\n")
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    }
    return Table(rows, columns, cells, caption, corner)


def _cell_lines(s: pd.Series, decimals: int, name_budget: bool) -> list[str]:
    spread = "" if math.isnan(s["std"]) else f"±{s['std']:.{decimals}f}"
    ours = f"{s['mean']:.{decimals}f}{spread} (n={s['n']}, {counted(s['n_sets'], 'set')})"
    interval = s["note"] if math.isnan(s["ci95"]) else f"95% CI [{s['low']:.{decimals}f}, {s['high']:.{decimals}f}]"
    alone = f"alone: [{s['low_alone']:.{decimals}f}, {s['high_alone']:.{decimals}f}]"
    lines = [ours, interval] + ([] if math.isnan(s["low_alone"]) else [alone])
    return lines + ([f"budget: {s['budget']}"] if name_budget else [])


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
