"""The first page: a run as a film, five answers, and ours against the paper's numbers; the same for the README.

``python -m gmreport.front`` writes the README's beginning and book/_static/hero.png from the stored results.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from gmlib import where
from gmlib.checks import as_list
from gmlib.evaluation import Evaluation
from gmlib.recipe import BUDGETS
from gmlib.runs import readback, shipped
from gmlib.runs.estimates import duration
from gmlib.runs.layout import run_folder
from gmlib.runs.store import stored_snapshots
from gmlib.sets import SyntheticSet

from . import paper
from .differences import reach_of
from .drawing import Pictures
from .figures import sheet_of, show_sheet
from .hypothesis import (
    AGAINST_REAL,
    CHANGES,
    TRAIN_BETTER,
    correlation_outcome,
    descents_by_cell,
    learned_points,
    reach_correlations,
    reach_points,
    trap_verdicts,
)
from .matrix import Mark, drawing
from .style import INK, MUTED, STYLE, colour, counted, display_name, md, per_class, sign, signed
from .summaries import Verdict, verdict

FILM = ("MNIST", 1, "MD", 0)  # dataset, images per class, method and seed of the run that is shown
DIGIT = 2  # the class in the small pictures below the curve
WORDS = {"held": "yes", "reversed": "no"}
CLOSED_FROM = 30  # judged numbers from which the figure opens its first table only
LIMIT = 4.0  # points on each side of the paper's mean that the figure shows


# ---- one run as a film -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Film:
    """A stored run, from noise to its set, and as many random real images.

    Attributes
    ----------
    learned, real : CondensedSet
    states : dict of int to SyntheticSet
        The set by number of outer iterations. The last one is ``learned``.
    accuracies : dict of int to Evaluation
        Of networks trained on the states, where there are any.
    """

    learned: shipped.CondensedSet
    real: shipped.CondensedSet
    states: Mapping[int, SyntheticSet]
    accuracies: Mapping[int, Evaluation]

    @property
    def last(self) -> int:
        """The number of outer iterations of the run."""
        return max(self.states)

    @property
    def stills(self) -> list[int]:
        """The states of a page without script: the first, one on the way, and the last."""
        ks = sorted(self.states)
        return sorted({ks[0], ks[len(ks) // 4], ks[-1]})

    def title(self, k: int) -> str:
        """What the images are after k outer iterations."""
        n = _number(len(self.learned.images))
        if k == 0:
            return f"{n} blobs of noise, the start"
        return f"{n} learned images" if k == self.last else f"After {k} outer iterations"

    @property
    def real_title(self) -> str:
        """What the images of ``real`` are."""
        return f"{_number(len(self.real.images))} random real images"


def _number(n: int) -> str:
    return {10: "Ten"}.get(n, str(n))


def stored_film(results_dir: Path | None = None) -> Film | None:
    """The run FILM by the paper's protocol, or None if it is not stored here."""
    dataset, ipc, method, seed = FILM
    root = shipped.folder("paper", results_dir)
    run, chosen = (run_folder(root, dataset, ipc, name, seed) for name in (method, "random"))
    if not all((path / "run.json").is_file() for path in (run, chosen)):
        return None
    learned, real = shipped.load(run), shipped.load(chosen)
    states = stored_snapshots(run, learned, learned.record["set"])
    last = learned.recipe["outer_loops"]
    final = {last: learned.accuracy} if learned.accuracy else {}
    return Film(learned, real, states | {last: learned}, learned.trace | final)


def hero(film: Film | None) -> HTML:
    """The film in a page: images and a slider on the left, accuracies on the right.

    The script front.js shows one state at a time, at first the last one. Without it and in print the page shows
    `Film.stills`.

    Parameters
    ----------
    film
        From `stored_film`.
    """
    if film is None:
        return HTML("<p>The run that is shown here is not stored: <code>make results</code> makes it.</p>")
    ks = sorted(film.states)
    states = "".join(
        f'<div class="gm-hero-state{" gm-still" * (k in film.stills)}{" gm-now" * (k == ks[-1])}">'
        f"{_set_html(film.title(k), film.states[k], film.accuracies.get(k))}</div>"
        for k in ks
    )
    names = [f"{film.title(k)}{_reached(film.accuracies.get(k))}" for k in ks]
    control = ""
    if len(ks) > 1:
        control = (
            f'<label hidden><span>From noise to digits: scroll or move the slider</span><input type="range" min="0" '
            f'max="{len(ks) - 1}" step="1" value="{len(ks) - 1}" aria-label="outer iterations" '
            f'aria-valuetext="{html.escape(names[-1])}"></label>'
        )
    shown = (
        f'<figure class="gm-hero" style="--gm-stops:{len(ks)}"><div class="gm-hero-sets">'
        f"<div>{_set_html(film.real_title, film.real, film.real.accuracy)}</div>"
        f'<div class="gm-hero-states">{states}</div>{control}</div>{_curve(film)}'
        f"<figcaption>{html.escape(_about(film))}</figcaption>"
        f'<script type="application/json">{json.dumps(names).replace("<", chr(92) + "u003c")}</script></figure>'
    )
    return HTML(shown)


def _set_html(title: str, S: SyntheticSet, e: Evaluation | None) -> str:
    value = f"<b>{e.mean:.1f} %</b> " if e else ""
    pictures = Pictures({"": sheet_of(S.pixels(), S.n_classes, math.nan)[0]}, S.n_classes).to_html(title)
    return f"<p>{value}<span>{html.escape(title)}</span></p>{pictures}"


def _reached(e: Evaluation | None) -> str:
    return f": {e.mean:.1f} %" if e else ""


def _about(film: Film) -> str:
    """How to read the figure."""
    dataset, ipc, method, seed = FILM
    counts = sorted({e.n for e in film.accuracies.values()})
    return (
        f"Test accuracy of networks that saw these images only, a mean of {' or '.join(map(str, counts))}. One "
        f"set of each kind (seed {seed}); {dataset}, {per_class(ipc)}, learned by {display_name(method)} with the "
        f"paper's protocol. k: outer iterations."
    )


def _curve(film: Film) -> str:
    """Accuracy against outer iterations, above small pictures of one class at the same places."""
    ks = sorted(film.states)
    at = {k: (100 * (i + 0.5) / len(ks), film.accuracies[k].mean) for i, k in enumerate(ks) if k in film.accuracies}
    line = "".join(f"{'L' if i else 'M'}{x:.2f} {100 - y:.2f}" for i, (x, y) in enumerate(at.values()))
    marks = "".join(
        f'<i class="gm-hero-dot{" gm-now" * (k == ks[-1])}{" gm-under" * (y > 50)}" data-stop="{ks.index(k)}" '
        f'style="left:{x:.2f}%;bottom:{y:.2f}%">'
        f"{f'<b>{y:.1f} %</b>' if k in (ks[0], ks[-1]) else ''}</i>"
        for k, (x, y) in at.items()
    )
    real = film.real.accuracy
    across = f'<path class="gm-hero-real" d="M0 {100 - real.mean:.2f}H100"/>' if real else ""
    named = (
        f'<span class="gm-hero-real" style="bottom:{real.mean:.2f}%">{film.real_title}: {real.mean:.1f} %</span>'
        if real
        else ""
    )
    words = "; ".join(f"{film.title(k)}{_reached(film.accuracies.get(k))}" for k in ks)
    spoken = f"Accuracy along the run. {words}. {film.real_title}{_reached(real)}."
    small = ""
    for i, k in enumerate(ks if len(ks) > 1 else ()):
        one = film.states[k].pixels()[[min(DIGIT, len(film.learned.images) - 1)]]
        picture = Pictures({"": sheet_of(one, 1)[0]}, 1).to_html(film.title(k))
        now = " gm-now" * (k == ks[-1])
        small += f'<span class="gm-hero-stop{now}">{picture}<small>{"k = " * (i == 0)}{k}</small></span>'
    scale = "".join(
        f'<span class="gm-hero-scale" style="bottom:{at}%">{name}</span>'
        for at, name in ((0, "0"), (50, "50"), (100, "100 %"))
    )
    return (
        f'<div class="gm-hero-way" role="img" aria-label="{html.escape(spoken)}"><div class="gm-hero-plot">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="gm-hero-axis" d="M0 0H100M0 50H100M0 100H100"/>{across}'
        f'<path class="gm-hero-line" d="{line}"/></svg>{scale}{named}{marks}</div>'
        f'<div class="gm-hero-film">{small}</div></div>'
    )


# ---- five answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The answer to one question of the paper.

    Attributes
    ----------
    question : str
    outcome : str
        As in `Verdict`, "another budget", or "not run".
    sentence : str
        The answer with its number.
    basis : str
        What it rests on: data, budget, and how many cells agree.
    chapter, title : str
        The page with the details, without its ending, and its title.
    value, low, high : float
        The number with its 95% interval, NaN where there is none.
    limit : float
        The end of its axis, or NaN if the interval sets it.
    said : str
        The outcome in a word, or "" for the usual one.
    """

    question: str
    outcome: str
    sentence: str
    basis: str
    chapter: str
    title: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    limit: float = math.nan
    said: str = ""

    @property
    def word(self) -> str:
        """The outcome as an answer, such as "yes", "no", "not decided" or "not run"."""
        return self.said or WORDS.get(self.outcome, self.outcome)


# What two methods decide: question, better, worse, the sentence around "x points higher", the chapter and its title.
_COMPARED = (
    (
        "Does condensing work?", "MD", "random",
        "Networks trained on learned images (MD) score {higher} than on as many random real ones",
        "notebooks/comparison", "Side by side",
    ),
    (
        "What: is it better to match both levels than class by class?", "M", "DC",
        "Both levels (M) score {higher} than class by class (DC)",
        "notebooks/what", "What to match",
    ),
    (
        "How: does it help to measure the magnitude too?", "MD", "M",
        "Angle and magnitude (MD) score {higher} than the angle alone (M)",
        "notebooks/how", "How to measure the distance",
    ),
    (
        "Where: does the adaptive schedule help?", "MDA", "MD",
        "The schedule (MDA) scores {higher} than fixed steps (MD)",
        "notebooks/where", "Where to match",
    ),
)  # fmt: skip


MAXMIN = ("notebooks/hypothesis", "The max-min hypothesis")  # the chapter of the fifth answer, and its title


def five_answers(results: pd.DataFrame | None = None, descents: pd.DataFrame | None = None) -> list[Answer]:
    """Does condensing work; what, how and where to match; does the max-min hypothesis hold?

    The first four compare two methods by `verdict`, in the cells (data set and images per class) of the paper's
    Table 3. The largest budget with an interval counts. The outcome is that of more than half of the cells with an
    interval, if no cell has the opposite one; otherwise it is "not decided", and "mixed" if cells have opposite ones.
    The number is that of the first cell with this outcome, in the order of Table 3; of mixed ones, the first held.
    Under a shorter budget than the paper's the outcome is "another budget", and the word says what the shorter run
    shows.

    The hypothesis holds in a cell if matching raises the distance to the nearest trap against random real images,
    and if sets with a farther trap train better networks, both by `correlation_outcome`. It is reversed if one of
    them is. The cells of the largest budget decide as above. It holds in part if it holds, but one of the paper's
    changes to its baseline moves the trap nearer in a cell, and farther in none (`trap_verdicts`).

    Parameters
    ----------
    results
        Long form. None takes the stored results.
    descents
        From `readback.stored_descents`, which None takes.
    """
    results = readback.stored_accuracies() if results is None else results
    descents = readback.stored_descents() if descents is None else descents
    return [*(_compared(results, *asked) for asked in _COMPARED), _maxmin(descents)]


def answer_to(chapter: str, results: pd.DataFrame | None = None) -> Answer:
    """The one of `five_answers` that a chapter, such as "what", gives in detail."""
    place = f"notebooks/{chapter}"
    if place == MAXMIN[0]:
        return _maxmin(readback.stored_descents())
    results = readback.stored_accuracies() if results is None else results
    return next(_compared(results, *asked) for asked in _COMPARED if place in asked)


def _verdicts_of(results: pd.DataFrame, better: str, worse: str) -> list[Verdict]:
    """The verdicts in the cells of Table 3 under the largest budget that gives an interval, in its order."""
    order = paper.order_of_cells()
    found: list[Verdict] = []
    for budget in reversed(BUDGETS):
        some = results[(results["budget"] == budget) & (results["network"] == "convnet")]
        of_budget = [
            verdict(cell, better, worse)
            for at, cell in some.groupby(["dataset", "ipc"], sort=False)
            if at in order and {better, worse} <= set(cell["method"])
        ]
        found = found or of_budget
        if any(v.outcome != "too few sets" for v in of_budget):
            found = of_budget
            break
    return sorted(found, key=lambda v: (v.outcome == "too few sets", order[v.dataset, v.ipc]))


def _majority(outcomes: Sequence[str]) -> str:
    outcomes = [name for name in outcomes if name != "too few sets"] or list(outcomes)
    if len(set(outcomes)) == 1:
        return outcomes[0]
    for name, opposite in (("held", "reversed"), ("reversed", "held")):
        if 2 * outcomes.count(name) > len(outcomes) and opposite not in outcomes:
            return name
    return "not decided"


def _compared(
    results: pd.DataFrame, question: str, better: str, worse: str, pattern: str, chapter: str, title: str
) -> Answer:
    found = _verdicts_of(results, better, worse)
    if not found:
        sentence = f"{display_name(better)} and {display_name(worse)} were not run together"
        return Answer(question, "not run", f"{sentence}.", "", chapter, title)
    first = {v.outcome: v for v in reversed(found)}
    outcome, opposite = _majority([v.outcome for v in found]), {"held", "reversed"} <= set(first)
    said = "mixed" if opposite else ""
    v = first["held" if opposite else outcome] if opposite or outcome in first else found[0]
    sentence = f"{pattern.format(higher=_higher(v))} ({_interval(v.low, v.high)})"
    if opposite:
        other = first["reversed"]
        sentence += f" on {v.dataset}, and {_higher(other)} on {other.dataset} ({_interval(other.low, other.high)})"
    sentence += "."
    if where_ := _steps(v, better, worse):
        sentence += f" {where_}"
    here = results[(results["dataset"] == v.dataset) & (results["ipc"] == v.ipc)]
    if worse == "random":
        sentence += _against("images chosen by herding", here, better, "herding", v.budget)
    if better == "MDA":
        sentence += _against("class by class (DC)", here[here["budget"] == v.budget], better, "DC", v.budget)
    basis = f"{v.dataset}, {per_class(v.ipc)}, {_protocol(v.budget)}"
    if len(found) > 1:
        each = (f"{v.dataset}, {v.ipc}: {signed(v.difference, 1)}, {WORDS.get(v.outcome, v.outcome)}" for v in found)
        basis += f". All data sets and images per class that were run: {'; '.join(each)}"
    if v.budget != "paper" and outcome != "too few sets":
        outcome, said = "another budget", f"shorter run: {said or WORDS.get(outcome, outcome)}"
    return Answer(question, outcome, sentence, f"{basis}.", chapter, title, v.difference, v.low, v.high, said=said)


def _higher(v: Verdict) -> str:
    return f"{abs(v.difference):.1f} points {'higher' if v.difference >= 0 else 'lower'}"


def _steps(v: Verdict, better: str, worse: str) -> str:
    """The steps of theta that the schedule saves."""
    if better != "MDA" or v.ipc not in where.FIXED:
        return ""
    T, zeta = where.FIXED[v.ipc]
    fewer, usual = (where.steps_per_outer_iteration(name, T, zeta) for name in ("adaptive", "fixed"))
    return f"It trains the network for {fewer} steps instead of {usual} in an outer iteration."


def _against(what: str, results: pd.DataFrame, better: str, worse: str, budget: str) -> str:
    """A second comparison, if there is one, beside one under this budget."""
    found = _verdicts_of(results, better, worse)
    if not found:
        return ""
    v = found[0]
    short = "" if v.budget == budget else f", {v.budget}"
    word = WORDS.get(v.outcome, v.outcome)
    return f" Against {what}: {word}, {signed(v.difference, 1)} ({_interval(v.low, v.high)}{short})."


def _maxmin(descents: pd.DataFrame) -> Answer:
    asked = ("Does the max-min hypothesis hold?",)
    order = paper.order_of_cells()
    cells = [
        some
        for (dataset, ipc, budget), some in descents_by_cell(descents)
        if (dataset, ipc) in order and budget in BUDGETS
        if len(learned_points(some)) and "random" in set(some["method"])
    ]
    if not cells:
        return Answer(*asked, "not run", "No descent was run.", "", *MAXMIN)
    some, *others = cells
    first = some.iloc[0]
    points = reach_points(some)
    answers = reach_correlations(points)
    better, (outcome, reasons) = answers[TRAIN_BETTER][0], _section_5(answers)
    of_learned, of_random = learned_points(points), points[points["method"] == "random"]
    far, real = (float(some["min_distance"].mean()) for some in (of_learned, of_random))
    others = [rows for rows in others if rows["budget"].iloc[0] == first["budget"]]
    sentence = (
        f"The nearest trap, where training stalls, is {'farther' if far > real else 'nearer'} for learned sets "
        f"(distance {far:.2f}) than for random real images ({real:.2f}). Rank correlation of this distance with "
        f"accuracy: {signed(better.rho, 2)} ({_interval(better.low, better.high, 2)})"
    )
    outcomes = [outcome]
    for rows in others:
        found = reach_correlations(reach_points(rows))
        word, rho = _section_5(found)[0], found[TRAIN_BETTER][0].rho
        number = "" if math.isnan(rho) else f"{signed(rho, 2)}, "
        cell = f"{rows['dataset'].iloc[0]}, {per_class(int(rows['ipc'].iloc[0]))}"
        sentence += f"; {cell}: {number}{WORDS.get(word, word)}"
        outcomes.append(word)
    outcome = _majority(outcomes)
    said = "mixed" if {"held", "reversed"} <= set(outcomes) else ""
    changes, against = _changes([some, *others])
    said = "in part" if outcome == "held" and against else said
    basis = f"{first['dataset']}, {per_class(int(first['ipc']))}, {_protocol(first['budget'])}"
    basis += f": {reasons}." if reasons else f", {counted(better.n, 'set')}."
    outcome = "not decided" if said else outcome
    return Answer(
        *asked, outcome, f"{sentence}.{changes}", basis, *MAXMIN, better.rho, better.low, better.high, 1.0, said
    )


def _changes(cells: Sequence[pd.DataFrame]) -> tuple[str, bool]:
    """What the paper's own changes do to the trap, as a sentence, and whether one of them moves it nearer only."""
    found = [v for some in cells for v in trap_verdicts(some)]
    parts, against = [], False
    for pair in CHANGES:
        outcomes = [v.outcome for v in found if (v.better, v.worse) == pair]
        nearer, farther = outcomes.count("reversed"), outcomes.count("held")
        if not nearer + farther:
            continue
        against |= nearer > 0 and not farther
        better, worse = map(display_name, pair)
        moved = " and ".join(
            f"{word} than {worse}'s in {n} of {counted(len(outcomes), 'cell')}"
            for word, n in (("farther", farther), ("nearer", nearer))
            if n
        )
        parts.append(f"{better}'s trap is {moved}")
    said = f" The paper's own changes, in cells of a data set and size: {'; '.join(parts)}." if parts else ""
    return said, against


def _section_5(answers: dict[str, tuple]) -> tuple[str, str]:
    """The outcome for one data set, which needs two answers of `reach_correlations`, and the reasons."""
    each = [correlation_outcome(*answers[question]) for question in (AGAINST_REAL, TRAIN_BETTER)]
    outcome = next(name for name in ("reversed", "too few sets", "not decided", "held") if name in dict(each))
    return outcome, "; ".join(dict.fromkeys(reason for _, reason in each if reason))


def _protocol(budget: str) -> str:
    return "the paper's protocol" if budget == "paper" else f"a shorter run than the paper's ({budget})"


def _interval(low: float, high: float, digits: int = 1) -> str:
    if math.isnan(low):
        return "no interval: too few sets"
    if any(0 < abs(end) < 0.5 * 10**-digits for end in (low, high)):
        digits += 1  # a rounded zero would hide on which side the end lies
    return f"95% interval {signed(low, digits)} to {signed(high, digits)}"


def answers_html(answers: Sequence[Answer]) -> HTML:
    """The answers in a page, each with its interval against zero."""
    items = ""
    for a in answers:
        drawn = ""
        if not math.isnan(a.low):
            limit = reach_of([max(map(abs, (a.low, a.high, a.value)))]) if math.isnan(a.limit) else a.limit
            ends = (f"−{limit:g}", f"+{limit:g}")
            axis = f'<small aria-hidden="true"><span>{ends[0]}</span><span>0</span><span>{ends[1]}</span></small>'
            drawn = (
                f'<div class="gm-zero-axis">{drawing([Mark(a.outcome, a.value, a.low, a.high)], limit)}{axis}</div>'
            )
        basis = f"<small>{html.escape(a.basis)}</small> " if a.basis else ""
        items += (
            f'<li><p class="gm-question"><strong>{html.escape(a.question)}</strong> {sign(a.outcome, a.word)}</p>'
            f'<p class="gm-sentence">{html.escape(a.sentence)} {basis}'
            f'<a href="{html.escape(a.chapter)}.html">{html.escape(a.title)}</a></p>{drawn}</li>'
        )
    return HTML(f'<ol class="gm-answers">{items}</ol>')


# ---- ours against the paper's ----------------------------------------------------------------------------

_TABLES = {
    "Table 1": "what is matched",
    "Table 2": "how the distance is measured",
    "Table 3": "all methods",
    "Table 4": "other networks",
    "text": "numbers in the text",
}
_JUDGED = ("reproduced", "differs", "not decided")


def ours_against_paper(found: pd.DataFrame) -> HTML:
    """Every judged accuracy: our interval next to the paper's mean and deviation, grouped by table.

    Parameters
    ----------
    found
        From `judge_claims`.
    """
    judged = found[found["outcome"].isin(_JUDGED) & found["n"].notna()]
    if judged.empty:
        return HTML("<p>No number of the paper is judged yet.</p>")
    printed = pd.concat([paper.published(name) for name in paper.TABLES]).set_index("claim")
    groups = ""
    for i, (table, rows) in enumerate(judged.groupby("table", sort=False)):
        about = _TABLES[str(table)]
        name = "Text" if table == "text" else str(table)
        opened = " open" if i == 0 or len(judged) < CLOSED_FROM else ""
        items, above = "", ""
        for row in rows.itertuples():
            cell = _cell_name(printed.loc[row.claim])
            items += f'<li class="gm-against-cell">{html.escape(cell)}</li>' if cell != above else ""
            items, above = items + _judged_row(row, printed.loc[row.claim]), cell
        groups += (
            f"<details{opened}><summary><b>{name}</b>, {about}<small>{_counts(rows)}</small></summary>"
            f"<ul>{items}</ul></details>"
        )
    band, interval = drawing([Mark("not run", margin=2)], 4), drawing([Mark("not run", 0, -3, 3)], 4)
    key = (
        f"<ul><li><span>{band}</span> within two standard deviations of the paper's mean</li>"
        f"<li><span>{interval}</span> our mean, 95% interval</li>"
        f"<li>The axis ends {LIMIT:g} points from the paper's mean; ‹ and › mark what goes on.</li></ul>"
    )
    twice = len(judged) - len(printed.loc[judged["claim"], ["dataset", "ipc", "method", "network"]].drop_duplicates())
    again = f" {twice} of them {'stand' if twice > 1 else 'stands'} in two tables." if twice else ""
    total = f"{len(judged)} of the paper's {len(found)} numbers are judged: {_counts(judged)}."
    each = (judged["n"] / judged["n_sets"].fillna(1)).astype(float)
    bf16 = int(judged["note"].str.contains("precision bf16").sum())
    how = f"At least {each.min():.0f} networks were trained on each set; the paper has 50."
    how += f" For {bf16} numbers the pass over real images was in bfloat16." if bf16 else ""
    head = f"<p><strong>{total}</strong>{again} {how}</p>"
    return HTML(f'<div class="gm-against">{head}<div class="gm-against-key">{key}</div>{groups}</div>')


def _counts(rows: pd.DataFrame) -> str:
    counts = rows["outcome"].value_counts()
    return ", ".join(f"{counts[name]} {name}" for name in _JUDGED if name in counts)


def _cell_name(c: pd.Series) -> str:
    if pd.isna(c["ipc"]):
        return f"{c['dataset']}, all training images"
    return f"{c['dataset']}, {per_class(int(c['ipc']))}"


def _judged_row(row, c: pd.Series) -> str:
    name = "whole training set" if c["method"] == "whole" else display_name(str(c["method"]))
    name += f" to {c['network']}" if row.table == "Table 4" else ""
    digits = max(1, paper.decimals(row.paper, row.unit))
    spread = "" if math.isnan(row.paper_std) else f" ± {row.paper_std:.{digits}f}"
    shift = row.low - row.paper, row.high - row.paper
    return (
        f'<li><span class="gm-against-name">{html.escape(name)}</span>{sign(row.outcome)}'
        f"{drawing([Mark(row.outcome, row.ours - row.paper, *shift, margin=2 * row.paper_std)], LIMIT)}"
        f'<span class="gm-against-numbers"><span>paper {row.paper:.{digits}f}{spread}</span> '
        f"<span><b>ours {row.ours:.{digits}f}</b> ({row.low:.{digits}f} to {row.high:.{digits}f})</span></span></li>"
    )


# ---- the README ------------------------------------------------------------------------------------------

BEGIN = "<!-- From the stored results, by: python -m gmreport.front -->"
BEGIN_TIMES = "<!-- Times of the stored sets, by: python -m gmreport.front -->"
END = "<!-- until here -->"
PICTURE = "book/_static/hero.png"


def readme_part(film: Film | None, answers: Sequence[Answer]) -> str:
    """The part of the README between BEGIN and END: the picture and the answers, as Markdown."""
    lines = [BEGIN, ""]
    if film:
        lines += [f"![{_readme_alt(film)}]({PICTURE})", ""]
    lines += ["What our runs say about [the paper](https://arxiv.org/abs/2208.00311):", ""]
    for i, a in enumerate(answers, 1):
        mark = {"held": "✓", "reversed": "✗"}.get(a.outcome, "?")
        basis = f" {md(a.basis)}" if a.basis else ""
        lines.append(
            f"{i}. **{a.question}** {mark} **{a.word}.** {md(a.sentence)}{basis} [{a.title}]({a.chapter}.md)"
        )
    return "\n".join([*lines, "", END])


def times_part(sets: Sequence[shipped.CondensedSet]) -> str:
    """The part of the README between BEGIN_TIMES and END: how long the stored sets took, as Markdown."""
    of_sets: dict[tuple, dict[tuple, list[float]]] = {}
    of_networks: dict[tuple, dict[str, list[float]]] = {}
    for S in sets:
        if not S.history:  # a coreset has none
            continue
        what = (f"{S.record['data']['name']}, {per_class(S.ipc)}", S.budget)
        # A small source network, as in Table 4, takes much less time.
        source = "" if S.recipe["network"] == "convnet" else f", from {S.recipe['network']}"
        shared = "together" if S.record.get("made_together", 1) > 1 else "each alone"
        made = (source, _device(S.record), S.recipe["precision"], shared)
        of_sets.setdefault(what, {}).setdefault(made, []).append(S.record["seconds"])
        if e := S.evaluations.get("convnet"):
            device = _device(S.trained_with.get("convnet", S.record))
            of_networks.setdefault(what, {}).setdefault(device, []).append(e.seconds / e.trained)
    rows: list[tuple[str, ...]] = []
    for (data, budget), groups in of_sets.items():
        trained = {device: duration(median(each)) for device, each in of_networks.get((data, budget), {}).items()}
        for (source, device, precision, shared), some in groups.items():
            made = (f"{len(some)}, made {shared}", duration(median(some)), trained.get(device, ""))
            rows.append((data + source, budget, device, precision, *made))
        there = {device for _, device, *_ in groups}
        rows += [(data, budget, device, "", "", "", each) for device, each in trained.items() if device not in there]
    lines = [
        "| data | budget | device | precision | sets | a set | a ConvNet on it |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(map(md, row))} |" for row in rows]
    return "\n".join([BEGIN_TIMES, "", *lines, "", END])


def _device(made_with: Mapping[str, Any]) -> str:
    threads = " and ".join(map(str, as_list(made_with["threads"])))
    return f"{made_with['device_name']}, {threads} thread{'' if threads == '1' else 's'}"


def _readme_alt(film: Film) -> str:
    ways = [f"{film.title(k)}{_reached(film.accuracies.get(k))}" for k in film.stills]
    return f"{'; '.join(ways)}. {film.real_title}{_reached(film.real.accuracy)}."


def write_part(text: str, part: str) -> str:
    """A README with a part replaced: that between the first line of ``part`` and END.

    Raises
    ------
    ValueError
        If the README has no such part.
    """
    begin = part.partition("\n")[0]
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(END)}", re.DOTALL)
    if not between.search(text):
        raise ValueError(f"the README lacks the lines {begin!r} and {END!r}")
    return between.sub(lambda _: part, text, count=1)


def fingerprint(film: Film) -> str:
    """A digest of what hero.png shows, which the picture holds as text."""
    shown = [_readme_alt(film), _about(film)]
    shown += [S.pixels().numpy().tobytes().hex() for S in (film.real, *film.states.values())]
    shown += [f"{k} {e.mean:.3f}" for k, e in film.accuracies.items()]
    return hashlib.sha256("\n".join(shown).encode()).hexdigest()


def save_picture(film: Film, path: Path) -> None:
    """Draw `Film.stills` under the real images, with the accuracies, as a PNG of 1200 x 630 pixels."""
    rows = [(film.real_title, film.real, film.real.accuracy)]
    rows += [(film.title(k), film.states[k], film.accuracies.get(k)) for k in film.stills]
    with sns.axes_style("white", rc=STYLE):
        fig = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
        for i, (title, S, e) in enumerate(rows):
            top = 0.955 - 0.242 * i
            fig.text(0.04, top, title, fontsize=17, va="center", color=INK)
            ax = fig.add_axes((0.04, top - 0.205, 0.74, 0.175))
            show_sheet(ax, *sheet_of(S.pixels(), S.n_classes), None)
            shade = colour("random" if S is film.real else FILM[2])
            value = f"{e.mean:.0f} %" if e else ""
            if S is film.real:
                fig.text(0.965, top, "test accuracy", fontsize=17, ha="right", va="center", color=MUTED)
            fig.text(0.965, top - 0.118, value, fontsize=44, weight="bold", ha="right", va="center", color=shade)
        fig.savefig(path, metadata={"Software": None, "gmlib": fingerprint(film)})


def picture_shows(path: Path) -> str:
    """The fingerprint in a hero.png."""
    with Image.open(path) as picture:
        return picture.info.get("gmlib", "")


def main(root: Path = shipped.PLACE) -> int:
    """Write the README's part and the picture."""
    film, readme = stored_film(), root / "README.md"
    text = readme.read_text("utf-8")
    for part in (readme_part(film, five_answers()), times_part(shipped.condensed())):
        text = write_part(text, part)
    readme.write_text(text, "utf-8")
    if film:
        save_picture(film, root / PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
