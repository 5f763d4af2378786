"""A forest plot: differences with their intervals against zero, a line each. It is a plain table as well."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from .style import SIGNS, counted, display_name, per_class, sign, signed

if TYPE_CHECKING:
    from .summaries import Verdict

SPAN, HEIGHT = 300, 22  # of a drawing, in its own units
MARKS = {name: SIGNS[name][0] for name in ("held", "reversed", "not decided", "too few sets")}
WORDS = {
    "held": "the interval lies right of 0",
    "reversed": "it lies left of 0",
    "not decided": "it contains 0",
    "too few sets": "there is no interval",
}
WORDS_ALIKE = {
    "held": "the interval lies within the band of two standard deviations of the networks",
    "reversed": "it lies outside the band",
    "not decided": "it crosses an edge of the band",
    "too few sets": "there is no interval",
}


# What is compared, its unit, and what is true of the method named first if the difference lies right of 0.
ACCURACY = ("mean accuracy", "in points", "is better")


def forest_html(
    found: Sequence[Verdict],
    caption: str | None = None,
    notes: Iterable[str] = (),
    measure: tuple[str, str, str] = ACCURACY,
) -> str:
    """The HTML of a forest plot, with one scale for all lines.

    Parameters
    ----------
    found
        Verdicts. Those of one cell follow each other.
    caption
        What is compared. A text on how to read the plot follows.
    notes
        Sentences below the plot, such as on pairs that were not run.
    measure
        What is compared, its unit or "", and what the method named first does right of 0.
    """
    reach = _reach(found)
    body = ""
    for (dataset, ipc, budget), rows in groupby(found, key=lambda v: (v.dataset, v.ipc, v.budget)):
        lines = list(rows)
        where = f"{dataset}, {per_class(ipc)}" + ("" if budget == "paper" else f", {budget} budget")
        numbers = {v.n for v in lines}
        common = numbers.pop() if len(numbers) == 1 else None
        where += "" if common is None else f": {_sets(common)}"
        head = f'<tr class="gm-cell"><th colspan="4" scope="rowgroup">{html.escape(where)}</th></tr>'
        body += f"<tbody>{head}{''.join(_line(v, reach, named=common is None) for v in lines)}</tbody>"
    axis = f'<td></td><td></td><td class="gm-plot">{axis_html(reach)}</td><td></td>'
    foot = f'<tfoot aria-hidden="true"><tr>{axis}</tr></tfoot>'
    heads = ("verdict", "comparison", "drawing", f"difference {measure[1]}".strip() + ", 95% interval")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return (
        f'<figure class="gm-figure"><table class="gm-forest"><thead class="gm-hidden"><tr>{head}</tr></thead>'
        f'{body}{foot if found else ""}</table>{below}<figcaption class="gm-numbered">'
        f"{html.escape(' '.join(filter(None, (caption, _how_to_read(found, reach, measure)))))}</figcaption></figure>"
    )


def _how_to_read(found: Sequence[Verdict], reach: float, measure: tuple[str, str, str]) -> str:
    if not found:
        return "Nothing could be compared."
    what, unit, says = measure
    parts = [f"Dot: difference in {what}{f', {unit}' if unit else ''}; line: its 95% interval.", ""]
    if all(math.isnan(v.margin) for v in found):
        parts[1] = f"Right of 0 the method named first {says}."
    known = dict.fromkeys((v.outcome, not math.isnan(v.margin)) for v in found)
    said = [
        f"{MARKS[name]} {(WORDS_ALIKE if alike else WORDS)[name]}"
        for name in MARKS
        for alike in (False, True)
        if (name, alike) in known
    ]
    parts.append(f"{'; '.join(said)}.")
    if any(_extent(v) > reach for v in found):
        parts.append("An arrow goes on beyond the scale.")
    return " ".join(filter(None, parts))


def _extent(v: Verdict) -> float:
    """How far from 0 anything of this line is."""
    return max(abs(x) for x in (v.difference, v.low, v.high, v.margin) if not math.isnan(x))


def _reach(found: Sequence[Verdict]) -> float:
    return reach_of([_extent(v) for v in found])


def reach_of(extents: Sequence[float]) -> float:
    """Where a scale around 0 ends, as a round number, for what lies so far from 0. A few far ones go beyond it."""
    extents = sorted(extents) or [1.0]
    most = 4 * extents[(len(extents) - 1) // 2]
    reach = max(max(x for x in extents if x <= most), 0.05) * 1.05
    unit = 10 ** math.floor(math.log10(reach))
    return next(step * unit for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * unit >= reach)


def _sets(n: tuple[int, int]) -> str:
    return f"{counted(n[0], 'set')} of each" if n[0] == n[1] else f"{n[0]} and {n[1]} sets"


def _line(v: Verdict, reach: float, named: bool) -> str:
    first, second = (html.escape(display_name(name)) for name in (v.better, v.worse))
    joined = "−" if math.isnan(v.margin) else "like"
    interval = "no interval" if math.isnan(v.low) else f"{signed(v.low)} to {signed(v.high)}"
    return (
        f"<tr><td>{sign(v.outcome)}</td>"
        f'<th scope="row">{first} <span class="gm-minus">{joined}</span> {second}</th>'
        f'<td class="gm-plot" aria-hidden="true">{against_zero(v, reach)}</td>'
        f'<td class="gm-number" title="{html.escape(v.test)}"><b>{signed(v.difference)}</b> '
        f"<small>{interval}{f', {_sets(v.n)}' if named else ''}</small></td></tr>"
    )


def against_zero(v: Verdict, reach: float) -> str:
    """An interval against zero as SVG. ``v`` needs difference, low, high, margin and outcome."""

    def at(value: float) -> float:
        return round(SPAN / 2 * (1 + max(-1.0, min(1.0, value / reach))), 1)

    middle, parts = HEIGHT / 2, ""
    if not math.isnan(v.margin):
        left, right = at(-v.margin), at(v.margin)
        parts += f'<rect class="gm-band" x="{left}" width="{right - left:.1f}" height="{HEIGHT}"/>'
    parts += f'<path class="gm-zero" d="M{SPAN / 2:g} 0v{HEIGHT}"/>'
    if not math.isnan(v.low):
        left, right = at(v.low), at(v.high)
        parts += f'<path d="M{left} {middle:g}H{right}"/>'
        parts += _end(left, middle, v.low < -reach, -1) + _end(right, middle, v.high > reach, 1)
    if abs(v.difference) <= reach:
        parts += f'<circle cx="{at(v.difference)}" cy="{middle:g}" r="4.5"/>'
    elif math.isnan(v.low):
        parts += _end(at(v.difference), middle, True, int(math.copysign(1, v.difference)))
    tone = sign(v.outcome).split("gm-sign ")[1].split('"')[0]
    return f'<svg class="{tone}" viewBox="-6 0 {SPAN + 12} {HEIGHT}">{parts}</svg>'


def _end(x: float, y: float, goes_on: bool, side: int) -> str:
    if goes_on:
        return f'<path d="M{x - 6 * side:g} {y - 5:g}L{x:g} {y:g}L{x - 6 * side:g} {y + 5:g}" fill="none"/>'
    return f'<path d="M{x} {y - 4:g}v8"/>'


def axis_html(reach: float) -> str:
    """The ends of the scale and its middle, as text."""
    ends = [f"−{reach:g}", "0", f"+{reach:g}"]
    return '<div class="gm-axis">' + "".join(f"<span>{text}</span>" for text in ends) + "</div>"
