"""The message of "What held up", and a row for each claim in words, which opens to its cells and runs."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import HTML

from gmlib.runs import readback

from . import paper
from .claims import stored_claims
from .hypothesis import (
    ANSWERS,
    CHANGES,
    QUESTIONS,
    TRAIN_BETTER,
    correlation_outcome,
    descents_by_cell,
    reach_correlations,
    reach_points,
    trap_verdicts,
)
from .orders import ORDERINGS, Ordering, ordering_cells, outcome_of, together
from .style import SIGNS, counted, display_name, listed, per_class, sign, signed

POINTS = 4.0  # where the axis of differences ends, in points of accuracy
MOST_NAMED = 4  # contradictions that the first line names
LINE = 14  # height of a line of a drawing, in pixels

# Title of a group of claims -> its chapter.
CHAPTERS = {
    "What to match": "notebooks/what",
    "How to measure the distance": "notebooks/how",
    "Where to match": "notebooks/where",
    "Side by side": "notebooks/comparison",
    "Across architectures": "notebooks/architectures",
    "The max-min hypothesis": "notebooks/hypothesis",
    "What it costs": "notebooks/efficiency",
}
_OF_TABLE = dict(zip(("Table 1", "Table 2"), CHAPTERS, strict=False)) | {"Table 4": "Across architectures"}
_OF_ID = dict.fromkeys(("overfitting-helps-dc", "mda-like-mdo"), "Where to match")

_SECTION_5 = (
    'Our question on Section 5: "We maximize the distance between any pairs of the local minimum (Equation 14) and '
    'the initialization point (Equation 15)"'
)
# What Section 5 says of the paper's own changes: id, the claim, the paper's words, and the pair that decides.
_TRAPS = (
    (
        "levels", "Matching both levels moves the nearest trap farther than DC does",
        'Section 5: "our proposed techniques are used to remove the local minimum in the reachable region of the '
        'parameter space"',
        CHANGES[0],
    ),
    (
        "magnitude", "The magnitude moves the nearest trap farther than M does",
        'Section 5: "With the distance function considering the magnitude, we can mitigate the internal local '
        'minimum and enlarge the reachable area"',
        CHANGES[1],
    ),
)  # fmt: skip
# Claims on time and steps: id, the claim, the paper's words, the ids of its numbers.
_COSTS = (
    (
        "m-and-d-are-cheap",
        "M and D add less than 1% of the time",
        'Section 4.5: "introduces less than 1% extra computation time"',
        ("m-and-d-extra-time-at-most",),
    ),
    (
        "a-saves-time",
        "A saves 25% to 30% of the time at ten images per class",
        'Section 4.5: "can reduce the computation time by 25% ∼ 30% for the experiments with 10 images per class"',
        ("a-saving-at-least", "a-saving-at-most"),
    ),
    (
        "a-saves-steps",
        "A takes 190 steps of θ in place of 450",
        'Section 4.4: "the original algorithm updates θ 450 times in one iteration of the outer loop, while we only '
        'update it 190 times"',
        ("theta-updates-fixed", "theta-updates-adaptive"),
    ),
)


# ---- drawings --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A line of a drawing: our value against zero.

    Attributes
    ----------
    outcome : str
        Gives the colour.
    value, low, high : float
        Ours and its interval.
    paper : float
        The paper's value.
    margin : float
        A band around zero.
    dots : sequence of float
        Single networks.
    faint : bool
        True if it does not count, because it has another budget or other data.
    """

    outcome: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    paper: float = math.nan
    margin: float = math.nan
    dots: Sequence[float] = ()
    faint: bool = False


def drawing(marks: Sequence[Mark], reach: float = POINTS) -> str:
    """Intervals against zero as SVG, one line each, on an axis from -reach to reach. What lies beyond has an arrow.

    It is hidden from screen readers: the text next to it says the same.
    """
    height = LINE * len(marks)

    def x(value: float) -> str:
        return f"{50 + 50 * max(-1.0, min(1.0, value / reach)):.1f}%"

    parts = f'<line class="gm-zero" x1="50%" x2="50%" y1="0" y2="{height}"/>'
    for i, mark in enumerate(marks):
        y, inside = LINE * (i + 0.5), ""
        if not math.isnan(mark.margin):
            wide = 100 * min(1.0, mark.margin / reach)
            inside += f'<rect class="gm-band" x="{x(-mark.margin)}" width="{wide:.1f}%" y="{y - 6:g}" height="12"/>'
        inside += "".join(
            f'<circle class="gm-net" cx="{x(dot)}" cy="{y:g}" r="2"/>' for dot in mark.dots if abs(dot) <= reach
        )
        if abs(mark.paper) <= reach:
            inside += f'<circle class="gm-papers" cx="{x(mark.paper)}" cy="{y:g}" r="4"/>'
        if not math.isnan(mark.low):
            inside += f'<line class="gm-range" x1="{x(mark.low)}" x2="{x(mark.high)}" y1="{y:g}" y2="{y:g}"/>'
        if abs(mark.value) <= reach:
            inside += f'<circle class="gm-ours" cx="{x(mark.value)}" cy="{y:g}" r="2.6"/>'
        ends = [v for v in (mark.value, mark.low, mark.high) if not math.isnan(v)]
        if ends and min(ends) < -reach:
            inside += f'<text x="0" y="{y + 4.5:g}">‹</text>'
        if ends and max(ends) > reach:
            inside += f'<text x="100%" y="{y + 4.5:g}" text-anchor="end">›</text>'
        faint = " gm-faint" if mark.faint else ""
        parts += f'<g class="gm-{SIGNS[mark.outcome][1]}{faint}">{inside}</g>'
    return f'<svg class="gm-against-zero" width="100%" height="{height}" aria-hidden="true">{parts}</svg>'


def interval(low: float, high: float, digits: int = 2) -> str:
    """Such as "(−1.29 to −0.86)"."""
    return "(no interval)" if math.isnan(low) else f"({signed(low, digits)} to {signed(high, digits)})"


# ---- the claims ------------------------------------------------------------------------------------------

Key = tuple[str, int, str, str, str]  # dataset, images per class, method, budget, trained network


@dataclass(frozen=True)
class ClaimCell:
    """One cell of a claim: a data set and size where it was judged, or could be.

    Attributes
    ----------
    name : str
    mark : Mark
        Its outcome is that of the cell.
    ours, papers : str
        What ours and the paper's own numbers say, or "".
    note : str
    budget, data : str
        "" without a run; other data than the paper's, or "".
    runs : tuple of Key
        The runs behind it.
    """

    name: str
    mark: Mark
    ours: str = ""
    papers: str = ""
    note: str = ""
    budget: str = ""
    data: str = ""
    runs: tuple[Key, ...] = ()

    @property
    def outcome(self) -> str:
        """Of this cell, by its own rule."""
        return self.mark.outcome

    @property
    def place(self) -> str:
        """Its name, with the budget and the data if they are not the paper's."""
        return ", ".join(filter(None, (self.name, self.marks)))

    @property
    def marks(self) -> str:
        """The budget and the data, if they are not the paper's."""
        budget = f"{self.budget} budget" if self.budget not in ("", "paper") else ""
        return "; ".join(filter(None, (self.data, budget)))


@dataclass(frozen=True)
class Claim:
    """A claim of the paper in words, or a question of ours on it.

    Attributes
    ----------
    id, sentence, quote : str
        A sentence with a question mark is a question of ours.
    group : str
        A title in CHAPTERS.
    outcome, word : str
        By `orders.together`.
    shown : str
        In how many of its cells the paper's own numbers agree, or "".
    reach : float
        Where the axis of its drawing ends.
    cells : tuple of ClaimCell
    """

    id: str
    sentence: str
    quote: str
    group: str
    outcome: str
    word: str
    shown: str
    reach: float
    cells: tuple[ClaimCell, ...]

    @property
    def is_ours(self) -> bool:
        """Whether it is a question of ours."""
        return self.sentence.endswith("?")

    @property
    def run(self) -> list[ClaimCell]:
        """The cells that were run, or counted."""
        return [cell for cell in self.cells if cell.outcome != "not run"]


def claims_in_words(
    results: pd.DataFrame | None = None, found: pd.DataFrame | None = None, descents: pd.DataFrame | None = None
) -> list[Claim]:
    """Every claim of the paper in words, judged: ORDERINGS, Section 5 with our QUESTIONS, and time and steps.

    Parameters
    ----------
    results
        Long form. None takes the results in the repository, here and below.
    found
        From `judge_claims`.
    descents
        From `readback.stored_descents`.

    Raises
    ------
    FileNotFoundError
        If there are no stored results.
    """
    if results is found is descents is None:
        return _stored_claims_in_words()
    results = readback.stored_accuracies() if results is None else results
    found = stored_claims() if found is None else found
    descents = readback.stored_descents() if descents is None else descents
    cells = ordering_cells(results)
    made = [_of_ordering(o, cells[cells["id"] == o.id]) for o in ORDERINGS]
    made += _of_section_5(descents)
    made += [_of_costs(found, *claim) for claim in _COSTS]
    groups = list(CHAPTERS)
    return sorted(made, key=lambda claim: groups.index(claim.group))


@readback.while_unchanged
def _stored_claims_in_words(results_dir: str | os.PathLike | None = None) -> list[Claim]:
    results = readback.stored_accuracies(results_dir)
    return claims_in_words(results, stored_claims(results_dir), readback.stored_descents(results_dir))


def _of_ordering(o: Ordering, rows: pd.DataFrame) -> Claim:
    of_paper = rows[rows["data"] == ""].drop_duplicates(["dataset", "ipc", "at"])
    outcome, word = outcome_of(o, rows)
    cells = []
    for c in rows.itertuples():
        pair = f"{display_name(c.better)} − {display_name(c.worse)}"
        ours = f"{pair}: {signed(c.difference)} {interval(c.low, c.high)}" if c.budget else ""
        alike = "" if math.isnan(c.margin) else f", alike within ±{c.margin:.2f}"
        name = f"{c.dataset}, {c.ipc} per class"
        if o.names == "network":
            name += f", from {display_name(c.at)}"
            runs = tuple((c.dataset, c.ipc, c.at, c.budget, network) for network in (*o.better, *o.worse))
        else:
            name += "" if c.at == "convnet" else f", to {c.at}"
            runs = tuple((c.dataset, c.ipc, method, c.budget, c.at) for method in (*o.better, *o.worse))
        faint = bool(c.data) or c.budget not in ("", "paper")
        mark = Mark(c.outcome, c.difference, c.low, c.high, c.paper, c.margin, faint=faint)
        papers = "" if math.isnan(c.paper) else signed(c.paper, 1) if c.budget else f"{pair} {signed(c.paper, 1)}"
        runs = runs if c.budget else ()
        cells.append(ClaimCell(name, mark, f"{ours}{alike}", papers, c.note, c.budget, c.data, runs))
    group = _OF_ID.get(o.id) or _OF_TABLE.get(o.table, "Side by side")
    shown = f"{of_paper['shown'].sum():.0f} of {len(of_paper)}"
    return Claim(o.id, o.sentence, o.quote, group, outcome, word, shown, POINTS, tuple(cells))


def _of_section_5(descents: pd.DataFrame) -> list[Claim]:
    group, claims = "The max-min hypothesis", []
    cells: dict[str, list[ClaimCell]] = {question: [] for question in QUESTIONS}
    moved: dict[tuple[str, str], list[ClaimCell]] = {pair: [] for pair in CHANGES}
    for (dataset, ipc, budget), some in descents_by_cell(descents):
        name, faint = f"{dataset}, {ipc} per class", budget != "paper"
        for v in trap_verdicts(some):
            pair = f"{display_name(v.better)} − {display_name(v.worse)}"
            ours = f"{pair}: {signed(v.difference)} {interval(v.low, v.high)}"
            mark = Mark(v.outcome, v.difference, v.low, v.high, faint=faint)
            moved[v.better, v.worse].append(ClaimCell(name, mark, ours, budget=budget))
        points = reach_points(some)
        methods = dict.fromkeys(points.loc[points["accuracy"].notna(), "method"])
        runs = tuple((dataset, ipc, method, budget, "convnet") for method in methods)
        for question, (rho, groups) in reach_correlations(points).items():
            outcome, reason = correlation_outcome(rho, groups)
            numbers = "" if math.isnan(rho.rho) else f"rho {signed(rho.rho)} {interval(rho.low, rho.high)}, "
            mark = Mark(outcome, rho.rho, rho.low, rho.high, faint=faint)
            ours = f"{numbers}{counted(rho.n, 'set')}"
            # All are about the same runs, which make the page large: they are shown once, with the accuracies.
            shown = runs if question == TRAIN_BETTER else ()
            cells[question].append(ClaimCell(name, mark, ours, "", reason, budget, "", shown))
    for id, sentence, quote, pair in _TRAPS:
        outcome, word = _of_cells(moved[pair])
        claims.append(Claim(f"section-5-{id}", sentence, quote, group, outcome, word, "", 1.0, tuple(moved[pair])))
    for i, (question, each) in enumerate(cells.items()):
        outcome, word = _of_cells(each)
        word = ANSWERS.get(word, word)
        claims.append(Claim(f"section-5-{i + 1}", question, _SECTION_5, group, outcome, word, "", 1.0, tuple(each)))
    return claims


def _of_cells(cells: Sequence[ClaimCell]) -> tuple[str, str]:
    rows = [{"outcome": cell.outcome, "budget": cell.budget, "data": ""} for cell in cells]
    return together(pd.DataFrame(rows, columns=["outcome", "budget", "data"]))


def _of_costs(found: pd.DataFrame, id: str, sentence: str, quote: str, numbers: Sequence[str]) -> Claim:
    rows = found.set_index("claim").loc[[f"text-efficiency-{name}" for name in numbers]]
    cells = []
    for c in rows.itertuples():
        unit = "%" if c.unit == "percent of time" else c.unit
        value = "" if math.isnan(c.ours) else f"{c.ours:.0f} {unit}"
        if value and c.low < c.high:
            value += f" ({c.low:.1f} to {c.high:.1f})"
        name = c.column.replace("theta updates", "steps of θ,")
        budget = "" if c.outcome == "not run" else "paper"
        cells.append(ClaimCell(name, Mark(c.outcome), value, f"{c.paper:g} {unit}", c.note, budget))
    outcomes = list(dict.fromkeys(rows["outcome"]))
    if len(outcomes) == 1:
        outcome = word = outcomes[0]
    else:
        judged = rows.assign(budget="paper", data="").query("outcome in ('held', 'reversed', 'not decided')")
        outcome, word = together(judged)
    return Claim(id, sentence, quote, "What it costs", outcome, word, "", POINTS, tuple(cells))


# ---- as the page shows them ------------------------------------------------------------------------------

_JUDGED = ("reproduced", "differs", "not decided")
_DECIDED = ("held", "by counting", "reversed", "not decided")


def message(found: pd.DataFrame, claims: Sequence[Claim]) -> HTML:
    """The message of the page in a few lines, and how many numbers, claims and questions have which outcome.

    Parameters
    ----------
    found
        From `judge_claims`.
    claims
        From `claims_in_words`.
    """
    outcomes = found["outcome"].value_counts()
    other, missing = (int(outcomes.get(name, 0)) for name in ("another budget", "not run"))
    third = (
        f"Of the {len(found)} numbers that the paper prints, {missing} were not run"
        + (f", and {other} only under another, shorter budget, which does not count" if other else "")
        + "."
    )
    if missing + other > len(found) / 2:
        third = f"<b>Most of it is not tested.</b> {third}"
    papers, ours = ([claim for claim in claims if claim.is_ours == which] for which in (False, True))
    said = [_first_line(found), _line_of(papers, "its {n} claims in words")]
    said += [_line_of(ours, "our {n} questions on its hypothesis (Section 5)")] if ours else []
    lines = "".join(f"<p>{line}</p>" for line in (*said, third))
    totals = "".join(
        _counts(f"{len(some)} {what}", pd.Series([claim.outcome for claim in some]).value_counts())
        for some, what in ((papers, "claims in words"), (ours, "questions on Section 5"))
        if some
    )
    return HTML(
        f'<div class="gm-message">{lines}<div class="gm-totals">'
        f"{_counts(f'{len(found)} numbers', outcomes, '#every-number')}"
        f"{totals}</div></div>"
    )


def _first_line(found: pd.DataFrame) -> str:
    judged = found[found["n"].notna() & found["outcome"].isin(_JUDGED)]
    if judged.empty:
        return "<b>No accuracy of the paper could be judged yet.</b>"
    counts = judged["outcome"].value_counts()
    against = int(counts.get("differs", 0))
    verb = "contradict" if against > 1 else "contradicts"
    differing = judged[judged["outcome"] == "differs"].itertuples()
    names = [f"{c.row}{' to ' if c.table == 'Table 4' else ', '}{c.column}" for c in differing]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    named = f" ({'; '.join(names[:MOST_NAMED])}{more})" if names else ""
    rest = [f"{counts[name]} {name}" for name in ("reproduced", "not decided") if name in counts]
    return (
        f"<b>{against or 'None'} of the {len(judged)} accuracies that we could judge {verb} the paper"
        f"{html.escape(named)}.</b> "
        f"{html.escape(', '.join(rest)).capitalize()}, at {html.escape(_where(judged['claim']))}."
    )


def _where(claims: pd.Series) -> str:
    """The data sets and sizes of these numbers, such as "1 image per class of MNIST and FashionMNIST"."""
    printed = pd.concat([paper.published(name) for name in paper.TABLES])
    of = printed[printed["claim"].isin(claims)]
    sizes: dict[str, list[str]] = {}
    for dataset, ipc in of[["dataset", "ipc"]].drop_duplicates().itertuples(index=False, name=None):
        sizes.setdefault("all training images" if pd.isna(ipc) else per_class(int(ipc)), []).append(dataset)
    return "; ".join(f"{size} of {listed(names)}" for size, names in sizes.items())


def _line_of(claims: Sequence[Claim], what: str) -> str:
    """How many of these claims or questions were run by the paper's protocol, and what each of them shows."""
    run = [claim for claim in claims if claim.outcome in _DECIDED]
    named: dict[tuple[str, str], list[str]] = {}
    for claim in sorted(run, key=lambda one: (_DECIDED.index(one.outcome), one.word)):
        same = ("held", "held") if claim.outcome == "by counting" else (claim.outcome, claim.word)
        named.setdefault(same, []).append(_link(claim))
    said = " ".join(
        f'<span class="gm-said">{sign(*each)}: {"; ".join(some)}{"" if some[-1].endswith("?</a>") else "."}</span>'
        for each, some in named.items()
    )
    verb = "was" if len(run) == 1 else "were"
    against = any(claim.word.startswith("reversed") and claim.shown for claim in run)
    why = " A claim compares methods, so it can fail although every accuracy agrees." if against else ""
    return f"<b>{len(run) or 'None'} of {what.format(n=len(claims))} {verb} put to the test.</b> {said}{why}"


def _link(claim: Claim) -> str:
    own, of_paper = _cells_run(claim)
    agree = {name: sum(cell.outcome == name for cell in own) for name in ("held", "reversed")}
    counts = " and ".join(f"{name} in {n}" for name, n in agree.items() if n)
    where = ""
    if claim.shown:
        where = f" ({counts or 'none decided'} of {counted(len(own), 'cell')} run; the paper has {of_paper})"
    elif any(not math.isnan(cell.mark.value) for cell in own):
        counts = counts.replace("held", "yes").replace("reversed", "no") if claim.is_ours else counts
        where = f" ({counts or 'none decided'} of {counted(len(own), 'data set')} run)"
    return f'<a href="#claim-{claim.id}">{html.escape(claim.sentence)}</a>{where}'


def _counts(title: str, outcomes: Mapping[str, int], link: str = "") -> str:
    """A row of counts with signs over a bar of their shares. With a link, each shows what it counts (explorer.js)."""
    items = bar = ""
    for outcome, (mark, tone) in SIGNS.items():
        if n := int(outcomes.get(outcome, 0)):
            inside = f'<b>{n}</b> <i aria-hidden="true">{mark}</i> {outcome}'
            inside = f'<a href="{link}" data-outcome="{outcome}">{inside}</a>' if link else f"<span>{inside}</span>"
            items += f'<li class="gm-{tone}">{inside}</li>'
            bar += f'<span class="gm-{tone}" style="flex-grow:{n}"></span>'
    return f'<div><p>{title}</p><ul>{items}</ul><div class="gm-shares" aria-hidden="true">{bar}</div></div>'


def claims_matrix(claims: Sequence[Claim], show_runs: Callable[[Sequence[Key]], str] | None = None) -> HTML:
    """A row for each claim, the verdict first. It opens to its cells, and each cell to its runs.

    Parameters
    ----------
    claims
        From `claims_in_words`.
    show_runs
        HTML of runs, such as `Runs.short`. None shows no runs.
    """
    body, above = "", None
    heads = ("verdict", "claim", "paper", "ours", "against zero")
    head = "".join(f"<span>{name}</span>" for name in heads)
    for claim in claims:
        if claim.group != above:
            chapter = f'<a href="{CHAPTERS[claim.group]}.html">{html.escape(claim.group)}</a>'
            body += f'<p class="gm-group">{chapter}</p>'
        above = claim.group
        body += _row(claim, show_runs)
    return HTML(
        f'<div class="gm-matrix"><p class="gm-how">{_HOW_TO_READ}</p>'
        f'<div class="gm-heads" aria-hidden="true">{head}</div>{body}</div>'
    )


_HOW_TO_READ = (
    "Open a row for its cells (a data set and a number of images), and a cell for its runs. <b>Paper</b>: in how "
    "many cells its own means agree with the claim. <b>Ours</b>: how many of them we ran; after ~ those that do not "
    "count, by a shorter budget or on other data (faint in the drawing). <b>Against zero</b>: ● our difference with "
    "its 95% interval and ○ the paper's, in points of accuracy; right of the line the claim is right. "
    f"The axis ends at ±{POINTS:g} points, for rank correlations and distances to traps at ±1; "
    "‹ and › mark what goes on."
)


def _row(claim: Claim, show_runs: Callable | None) -> str:
    drawn = [cell for cell in claim.run if not math.isnan(cell.mark.value)]
    shown = f'<span class="gm-hidden">paper: </span>{claim.shown}' if claim.shown else ""
    ours = f'<span class="gm-hidden">ours: </span>{_ours(claim)}'
    summary = (
        f'<span class="gm-verdict">{sign(claim.outcome, claim.word)}</span>'
        f'<span class="gm-sentence">{html.escape(claim.sentence)}</span>'
        f'<span class="gm-shown">{shown}</span><span class="gm-count">{ours}</span>'
        f'<span class="gm-drawn">{drawing([cell.mark for cell in drawn], claim.reach) if drawn else ""}</span>'
    )
    run = "".join(_cell(cell, claim.reach, show_runs) for cell in claim.run)
    missing = [cell for cell in claim.cells if cell.outcome == "not run"]
    return (
        f'<details class="gm-claim" id="claim-{claim.id}"><summary>{summary}</summary><div class="gm-inside">'
        f'<p class="gm-quote">{html.escape(claim.quote)}</p>{run}{_missing(missing)}</div></details>'
    )


def _ours(claim: Claim) -> str:
    """How many cells were run by the paper's protocol on its data, and how many others."""
    own, of_paper = _cells_run(claim)
    counts = [f"{len(own)} of {of_paper}"] if claim.shown or own else []
    if others := len(claim.run) - len(own):
        counts.append(f"{SIGNS['another budget'][0]}{others}")
    return " ".join(counts) or "0"


def _cells_run(claim: Claim) -> tuple[list[ClaimCell], int]:
    """The cells in which the claim was run by the paper's protocol on its data, and how many the paper has."""
    own = [cell for cell in claim.run if cell.budget == "paper" and not cell.data]
    return own, len({cell.name for cell in claim.cells if not cell.data})


def _cell(cell: ClaimCell, reach: float, show_runs: Callable | None) -> str:
    marks = f" <small>{html.escape(cell.marks)}</small>" if cell.marks else ""
    drawn = "" if math.isnan(cell.mark.value) else drawing([cell.mark], reach)
    papers = f"<small>paper: {html.escape(cell.papers)}</small>" if cell.papers else ""
    note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
    inside = (
        f'<span class="gm-verdict">{sign(cell.outcome)}</span>'
        f'<span class="gm-sentence">{html.escape(cell.name)}{marks}</span>'
        f'<span class="gm-count">{html.escape(cell.ours)} {papers} {note}</span>'
        f'<span class="gm-drawn">{drawn}</span>'
    )
    if show_runs is None or not cell.runs:
        return f'<div class="gm-cell-row">{inside}</div>'
    return f'<details class="gm-cell-row"><summary>{inside}</summary>{show_runs(cell.runs)}</details>'


def _missing(cells: Sequence[ClaimCell]) -> str:
    if not cells:
        return ""
    by_note: dict[str, list[str]] = {}
    for cell in cells:
        papers = f' <span class="gm-number">{html.escape(cell.papers)}</span>'
        by_note.setdefault(cell.note, []).append(f"<li>{html.escape(cell.name)}:{papers}</li>")
    lists = ""
    for note, items in by_note.items():
        why = f" ({html.escape(note)})" if note else ""
        lists += f"<p>{sign('not run')}{why}. What the paper prints:</p><ul>{''.join(items)}</ul>"
    return f'<div class="gm-missing">{lists}</div>'


def not_run_table(found: pd.DataFrame) -> HTML:
    """Every number as a sign, by table and data set, and why some were not run.

    Parameters
    ----------
    found
        From `judge_claims`.
    """
    where = pd.concat([paper.published(name) for name in paper.TABLES]).set_index("claim")["dataset"]
    rows = found.assign(dataset=found["claim"].map(where).fillna("time and steps"))
    body = ""
    for (table, dataset), some in rows.groupby(["table", "dataset"], sort=False):
        missing = some[some["outcome"] == "not run"]
        signs = "".join(
            f'<span class="gm-{SIGNS[c.outcome][1]}" title="{html.escape(f"{c.row}, {c.column}: {c.outcome}")}">'
            f"{SIGNS[c.outcome][0]}</span>"
            for c in some.itertuples()
        )
        why = "; ".join(f"{note} ({n})" for note, n in missing["note"].value_counts(sort=False).items())
        name = "Text" if table == "text" else table
        cells = (
            f'<td role="cell">{len(missing)} of {len(some)}</td>'
            f'<th role="rowheader" scope="row">{html.escape(f"{name}, {dataset}")}</th>'
            f'<td role="cell" class="gm-signs"><span aria-hidden="true">{signs}</span></td>'
            f'<td role="cell">{html.escape(why)}</td>'
        )
        body += f'<tr role="row">{cells}</tr>'
    heads = "".join(
        f'<th role="columnheader" scope="col">{name}</th>' for name in ("not run", "where", "each number", "why")
    )
    return HTML(
        f'<div class="gm-not-run"><table role="table"><caption>{len(found)} numbers, a sign each.</caption>'
        f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead><tbody role="rowgroup">{body}</tbody></table>'
        f"{legend(found['outcome'])}</div>"
    )


def legend(outcomes: Any) -> str:
    """What the signs of these outcomes mean, as an HTML list."""
    met = set(outcomes)
    items = "".join(f"<li>{sign(outcome)}</li>" for outcome in SIGNS if outcome in met)
    return f'<ul class="gm-legend" aria-label="What the signs mean">{items}</ul>'
