"""Tables of accuracies and of other measurements, with the paper's numbers where it has them."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from IPython.display import Markdown

from gmlib import how
from gmlib.recipe import Recipe
from gmlib.runs.layout import LEAST_NETWORKS

from .paper import tolerance
from .style import SIGNS, counted, display_name, md, method_order, per_class, sign
from .summaries import SLACK, checked, select, summarise, within

FIRST = ("outcome", "verdict")  # columns that stand right after the name of a row


@dataclass(frozen=True)
class Cell:
    """What a page shows in a cell of a `Table`.

    Attributes
    ----------
    main : str
        The first line.
    small : sequence of str
        The lines below it.
    outcome : str
        A name in `style.SIGNS`, whose sign stands in front, or "". Its word is in the legend of the table.
    reason : str
        Why there is no number. It is in the legend of the table too.
    """

    main: str = ""
    small: Sequence[str] = ()
    outcome: str = ""
    reason: str = ""

    @classmethod
    def of(cls, lines: Sequence[str]) -> Cell:
        """The cell of these lines. "not run: why" and "not applicable: why" become a sign."""
        first, *rest = map(str, lines)
        for outcome in ("not run", "not applicable"):
            if first == outcome or first.startswith(f"{outcome}: "):
                return cls("", rest, outcome, first.removeprefix(outcome).removeprefix(": "))
        return cls(first, rest)

    def to_html(self) -> str:
        small = "".join(f"<small>{html.escape(line)}</small>" for line in self.small)
        if not self.outcome and self.main in SIGNS:
            return sign(self.main) + small  # a cell that is a verdict has its word too
        mark = ""
        if self.outcome:
            shown, tone = SIGNS[self.outcome]
            mark = f'<span class="gm-sign gm-{tone}" title="{self.outcome}"><b aria-hidden="true">{shown}</b>'
            mark += f'<span class="gm-hidden">{self.outcome}: </span></span> '
        unbroken = ' class="gm-main"' if len(self.main) < 16 else ""  # a number with its sign
        return f"<span{unbroken}>{mark}{html.escape(self.main)}</span>{small}"


@dataclass(frozen=True)
class Table:
    """A table of text: HTML in a page, plain text elsewhere.

    In a page a verdict is a sign. A column named "outcome" or "verdict" stands right after the names of the rows,
    which stay in sight while the rest scrolls. A legend says what signs mean and why something was not run.

    Attributes
    ----------
    rows, columns : list of str
    cells : dict
        (row, column) -> lines of text. Lines after the first are small.
    caption : str
    corner : str
        What the rows are. Methods and distances are shown by `display_name`.
    tabs : dict
        Name of a tab -> its columns, of which one tab is shown at a time. Empty for a table without tabs.
    heads : dict
        Column -> its head in a page, if that is not its name. Lines after the first are small.
    shown : dict
        (row, column) -> `Cell` that a page shows in place of the lines.
    legend : sequence of str
        Sentences below the table.
    """

    # HTML by hand: great_tables adds 9 kB of CSS to every table and has no caption; pandas' Styler writes no scope
    # attribute, which screen readers need.
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], list[str]]
    caption: str
    corner: str = "method"
    tabs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[tuple[str, str], Cell] = field(default_factory=dict)
    legend: Sequence[str] = ()

    def _repr_html_(self) -> str:
        caption = html.escape(self.caption)
        if len(self.tabs) < 2:
            inside = f'<p class="gm-caption">{caption}</p>{self._one(self.columns, caption)}'
        else:
            parts = ""
            for i, (name, columns) in enumerate(self.tabs.items()):
                tab, checked = html.escape(name), "" if i else " checked"
                parts += f'<label><input type="radio" name="tab" autocomplete="off"{checked}>{tab}</label>'
                parts += f'<div class="gm-tab">{self._one(columns, tab)}</div>'
            # Radio buttons of one form belong together, so no id is needed, and no script.
            inside = (
                f'<p class="gm-caption">{caption}</p><form class="gm-tabs"><fieldset>'
                f'<legend class="gm-hidden">Which part of the table</legend>{parts}</fieldset></form>'
            )
        legend = "".join(f"<li>{line}</li>" for line in self._legend())
        below = f'<ul class="gm-legend">{legend}</ul>' if legend else ""
        return f'<div class="gm-table">{inside}{below}</div>'

    def _one(self, columns: Sequence[str], caption: str) -> str:
        columns = sorted(columns, key=lambda column: column not in FIRST)
        head, body = "", ""
        for column in columns:
            first, *rest = str(self.heads.get(column, column)).split("\n")
            small = "".join(f"<small>{html.escape(line)}</small>" for line in rest)
            head += f'<th scope="col">{html.escape(first)}{small}</th>'
        for row in self.rows:
            cells = "".join(f"<td>{self._cell(row, column).to_html()}</td>" for column in columns)
            body += f'<tr><th scope="row">{html.escape(self._name(row))}</th>{cells}</tr>'
        return (
            f'<div class="gm-scroll" role="region" tabindex="0" aria-label="{caption}"><table>'
            f'<caption>{caption}</caption><thead><tr><th scope="col">{html.escape(str(self.corner))}</th>{head}</tr>'
            f"</thead><tbody>{body}</tbody></table></div>"
        )

    def _name(self, row: str) -> str:
        return display_name(str(row)) if self.corner in ("method", "distance") else str(row)

    def _cell(self, row: str, column: str) -> Cell:
        return self.shown.get((row, column)) or Cell.of(self.cells[row, column])

    def _legend(self) -> list[str]:
        reasons: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for column in self.columns:
                cell = self._cell(row, column)
                if cell.outcome:
                    reasons.setdefault(cell.outcome, {}).setdefault(cell.reason)
        lines = []
        for outcome in (name for name in SIGNS if name in reasons):
            why = "; ".join(html.escape(reason) for reason in reasons[outcome] if reason)
            lines.append(sign(outcome) + (f": {why}" if why else ""))
        return lines + [html.escape(line) for line in self.legend]

    def __str__(self) -> str:
        text = {c: ["; ".join(self.cells[r, c]) for r in self.rows] for c in self.columns}
        return f"{self.caption}\n{pd.DataFrame(text, index=map(self._name, self.rows)).to_string()}"

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

    The interval of a mean is that of `summarise`, over all of ``results``, whether shown or not. If the runs had
    another budget than "paper", ours is not compared with the paper's number. The caption names the budget; if there
    are several, each cell names its own. Several data sets are tabs.

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
        Method -> the text of its row, if that is not its display name.
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
    rows = [(labels or {}).get(method, method) for method in methods]
    if len(set(rows)) < len(rows):
        raise ValueError(f"two rows have the same label ({', '.join(rows)}): give each method its own")
    cells, shown, common = {}, {}, {}
    for dataset, ipc in columns:
        inside = summary[(summary["dataset"] == dataset) & (summary["ipc"] == ipc)]
        inside = inside.sort_values("budget", key=lambda b: b != "paper").drop_duplicates("method")
        counts = Counter(map(_how_many, inside.to_dict("records"))).most_common(1)
        common[dataset, ipc] = counts[0][0] if counts and counts[0][1] > 1 else ""
    for method, row in zip(methods, rows, strict=True):
        for dataset, ipc in columns:
            where = (summary["dataset"] == dataset) & (summary["ipc"] == ipc) & (summary["method"] == method)
            ours = summary[where].to_dict("records")
            theirs = _published(paper, dataset, ipc, method)
            lines = [line for s in ours for line in _cell_lines(s, decimals, name_budget=len(budgets) > 1)]
            lines = lines or [_not_run((why or {}).get((dataset, ipc, method), ""))]
            if paper is not None:
                lines += [_against_paper(theirs, ours, decimals)]
            at = row, f"{dataset}, IPC {ipc}"
            cells[at] = lines
            shown[at] = _cell(lines, ours, theirs, decimals, budgets, common[dataset, ipc])
    note = "mean±std over all networks; 95% t interval over sets"
    if not budgets:
        note += "; nothing was run"
    elif len(budgets) > 1:
        note += f'; budgets: {", ".join(budgets)}; only "paper" is the paper\'s protocol'
    elif budgets != ["paper"]:
        note += f"; budget: {budgets[0]}, not the paper's protocol"
    names = [f"{d}, IPC {i}" for d, i in columns]
    tabs: dict[str, list[str]] = {}
    for name, (dataset, _) in zip(names, columns, strict=True):
        tabs.setdefault(dataset, []).append(name)
    heads = {
        name: (f"{i} per class" if len(tabs) > 1 else f"{d}, {i} per class") + f"\n{common[d, i]}".rstrip()
        for name, (d, i) in zip(names, columns, strict=True)
    }
    return Table(rows, names, cells, f"{caption} ({note}).", corner, tabs, heads, shown)


def _cell(
    lines: Sequence[str],
    ours: Sequence[Mapping],
    theirs: tuple[float, float] | None,
    decimals: int,
    budgets: Sequence[str],
    common: str,
) -> Cell:
    """The short form of these lines: the verdict on the paper's number, ours, its interval, the paper's."""
    paper = [] if theirs is None else [f"paper {_plus_minus(*theirs, decimals)}"]
    if not ours:
        return replace(Cell.of(lines), small=paper)
    first, *others = sorted(ours, key=lambda s: s["budget"] != "paper")
    outcome = "" if theirs is None else outcome_against(*theirs, first)
    if outcome == "another budget" and len(budgets) == 1:
        outcome = ""  # the caption says so
    small = [
        "one set" if math.isnan(first["ci95"]) else f"{first['low']:.{decimals}f} to {first['high']:.{decimals}f}"
    ]
    small += [] if _how_many(first) == common else [_how_many(first)]
    small += [f"{first['budget']} budget"] if first["budget"] != "paper" and len(budgets) > 1 else []
    small += [f"{s['budget']} budget: {_plus_minus(s['mean'], s['std'], decimals)}" for s in others]
    return Cell(_plus_minus(first["mean"], first["std"], decimals), [*small, *paper], outcome)


def outcome_against(value: float, std: float, ours: Mapping, unit: str = "percent") -> str:
    """The outcome for a number of the paper, by the rule of `judge_claims`.

    Parameters
    ----------
    value, std
        The paper's number and its standard deviation.
    ours
        A row of `summarise`, or its budget, n_least, low and high.
    unit
        Of the paper's number.
    """
    if ours["budget"] != "paper":
        return "another budget"
    if ours["n_least"] < LEAST_NETWORKS:
        return "too few networks"
    if math.isnan(ours["low"]):
        return "too few sets"
    return agreement(value, std, ours["low"], ours["high"], unit)


def agreement(value: float, std: float, low: float, high: float, unit: str = "percent") -> str:
    """Whether an interval reproduces a number of the paper, by the tolerance around that number."""
    margin = tolerance(value, std, unit) + SLACK
    return within(low - value, high - value, margin, "reproduced", "differs")


def _how_many(s: Mapping) -> str:
    return f"n={s['n']}, {counted(s['n_sets'], 'set')}"


def _plus_minus(value: float, std: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" + ("" if math.isnan(std) else f"±{std:.{decimals}f}")


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


def noise(results: pd.DataFrame) -> Markdown:
    """The spread between sets and between the networks of one set (see `between_sets`), in a few sentences.

    Parameters
    ----------
    results
        Long form, of one network and budget.
    """
    found = summarise(select(checked(results), network=None, budget=None))
    within_sets = found["std_within_sets"].dropna()
    networks = f"{_range(within_sets)} points" if len(within_sets) else "not known"
    text = f"The networks of one set have a standard deviation of {networks}. "
    known = found[found["between_low"].notna()]
    if known.empty:
        return Markdown(
            f"{text}No method has two sets with several networks, so the spread between sets is not known."
        )
    decided = known[known["between_low"] > 0]
    named = [
        f"{md(display_name(s.method))} at {md(s.dataset)}, {per_class(s.ipc)}: {s.std_between_sets:.2f} points "
        f"(95% interval {s.between_low:.2f} to {s.between_high:.2f})"
        for s in decided.itertuples()
    ]
    open_ones = len(known) - len(decided)
    if named:
        text += f"**The spread between sets is above 0** for {'; '.join(named)}. "
    if open_ones:
        means = known.loc[known["between_low"] <= 0, "std_set_means"]
        text += (
            f"{'For the others' if named else 'For each method'} ({counted(open_ones, 'cell')} of "
            f"{_range(known['n_sets'], 0)} sets) **no spread between sets is shown**: their set means have "
            f"a standard deviation of {_range(means)} points, and the networks alone may explain it."
        )
    return Markdown(text.strip())


def _range(values: pd.Series, decimals: int = 2) -> str:
    low, high = (f"{value:.{decimals}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


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


def _cell_lines(s: Mapping, decimals: int, name_budget: bool) -> list[str]:
    ours = f"{_plus_minus(s['mean'], s['std'], decimals)} ({_how_many(s)})"
    interval = s["note"] if math.isnan(s["ci95"]) else f"95% CI [{s['low']:.{decimals}f}, {s['high']:.{decimals}f}]"
    return [ours, interval] + ([f"budget: {s['budget']}"] if name_budget else [])


def _published(paper: pd.DataFrame | None, dataset: str, ipc: int, method: str) -> tuple[float, float] | None:
    if paper is None:
        return None
    row = paper[(paper["dataset"] == dataset) & (paper["ipc"] == ipc) & (paper["method"] == method)]
    return None if row.empty else (float(row["value"].iloc[0]), float(row["std"].iloc[0]))


def _against_paper(theirs: tuple[float, float] | None, ours: Sequence[Mapping], decimals: int) -> str:
    if theirs is None:
        return "not in the paper"
    outcomes = [outcome_against(*theirs, s) for s in ours if s["budget"] == "paper"]
    return f"paper: {_plus_minus(*theirs, decimals)}" + "".join(f" ({outcome})" for outcome in outcomes)
