"""The playground in a page: recordings that play without a kernel, and the picture of a live run."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from gmlib.exchange import png_bytes
from gmlib.sets import SyntheticSet

from .figures import sheet_of, show_sheet
from .listing import code_html
from .sessions import ROWS, SESSIONS, Session, stored_sessions
from .style import INTER, INTRA, STYLE, counted, listed, md, per_class

# Level in the table of `angles` -> (words, colour of the term that matches this level alone, marker).
LEVELS = {"class": ("inside classes", INTRA, "o"), "union": ("across classes", INTER, "s")}
TERMS = {"class": "intra", "union": "inter"}  # level -> the term, which has a colour in the style sheet
CURVES = {"accuracy": "accuracy", "cosine": "cosine", "ratio": "|gS| / |gT|", "loss": "matching loss"}
NEAR = 3.0  # points within which two runs are called near
BASE = "d1 + d2"  # the session with which the others are compared
HEIGHT = 40.0  # of a curve, in its own units; its width is 100


# ---- things to try: what was asked, and what happened


@dataclass(frozen=True)
class Thing:
    """One of the things to try.

    Attributes
    ----------
    id : str
        Of its element in the page.
    title, question : str
    sessions : dict
        The words above a run -> its name in `sessions.SESSIONS`.
    answer : callable
        The sessions in this order -> what happened, as text.
    """

    id: str
    title: str
    question: str
    sessions: Mapping[str, str]
    answer: Callable[..., str]


def _reach(*sessions: Session) -> str:
    """What networks reach that were trained on the last images of each session."""
    reached = [f"{np.mean(a):.1f}±{np.std(a, ddof=1):.1f}" for a in (s.accuracies[-1] for s in sessions)]
    n, random = len(sessions[0].accuracies[-1]), sessions[0].random
    against = f"; on random real images {random:.1f}" if math.isfinite(random) else ""
    return f"Accuracy in percent: {listed(reached)} (mean and deviation of {n} networks{against})."


def _went(values: Sequence[float]) -> str:
    first, last = values[0], values[-1]
    word = "rose" if last > first + 0.02 else "fell" if last < first - 0.02 else "stayed"
    return f"stayed at {last:.2f}" if word == "stayed" else f"{word} from {first:.2f} to {last:.2f}"


def _ends(sessions: Iterable[Session], column: str, level: str = "class", t: int = 0) -> list[str]:
    return [f"{s.along(column, level, t)[-1]:.2f}" for s in sessions]


def _length_alone(d2: Session, both: Session) -> str:
    layer, n, cosine = d2.lowest_layer
    return (
        f"With d2 alone the cosine inside classes {_went(d2.along('cosine'))}; with d1 + d2 it ended at "
        f"{_ends([both], 'cosine')[0]}. Layer {layer} of {n} stays behind, at {cosine:.2f}. "
        f"{_reach(d2, both)}"
    )


def _angle_alone(d1: Session, both: Session) -> str:
    alone, sum_ = _ends((d1, both), "ratio")
    return (
        f"With d1 alone the gradient of S ended {alone} times as long as that of T, inside classes; with d1 + d2 "
        f"{sum_} times. {_reach(d1, both)}"
    )


def _which_level(inter: Session, intra: Session) -> str:
    return (
        f"Inter: the cosine across classes {_went(inter.along('cosine', 'union'))}, inside them it "
        f"{_went(inter.along('cosine'))}. Intra: inside classes it {_went(intra.along('cosine'))}, across them it "
        f"{_went(intra.along('cosine', 'union'))}. {_reach(inter, intra)}"
    )


def _weight(*runs: Session) -> str:
    inside, across = _ends(runs, "cosine"), _ends(runs, "cosine", "union")
    ends = f"The cosine ended at {listed(inside)} inside classes, and at {listed(across)} across them."
    return f"{ends} {_reach(*runs)}"


def _position(still: Session, moving: Session) -> str:
    first, last = (_ends((still, moving), "ratio", t=t) for t in (0, -1))
    return (
        f"If theta takes 50 steps, the gradient of S inside classes is {last[1]} times as long as that of T at the "
        f"last update, and {first[1]} times at the first. Without steps it is {last[0]} and {first[0]} times. "
        f"{_reach(still, moving)}"
    )


def _schedule(eq12: Session, still: Session) -> str:
    first, last = (_ends((eq12, still), "cosine", t=t) for t in (0, -1))
    return (
        f"With Eq. 12 the cosine inside classes is {first[0]} at the first update and {last[0]} at the last; without "
        f"steps {first[1]} and {last[1]}. {_reach(eq12, still)}"
    )


def _real_start(real: Session, noise: Session) -> str:
    return (
        f"From real images the cosine inside classes {_went(real.along('cosine'))}, from noise it "
        f"{_went(noise.along('cosine'))}. The accuracy began at {real.accuracy[0]:.1f} and {noise.accuracy[0]:.1f}. "
        f"{_reach(real, noise)}"
    )


def _too_fast(*runs: Session) -> str:
    left = [f"{100 * s.losses[-1] / s.losses[0]:.0f} %" for s in runs]
    return f"The matching loss ended at {listed(left)} of its first value. {_reach(*runs)}"


def _how_many(run: Session) -> str:
    better = next((k for k, a in zip(run.ks, run.accuracy, strict=True) if a > run.random), None)
    near = next(k for k, a in zip(run.ks, run.accuracy, strict=True) if a >= max(run.accuracy) - 2)
    lead = "S never was better." if better is None else f"S was better from k = {better} on."
    return f"{lead} From k = {near} on it was within two points of its best. {_reach(run)}"


THINGS = (
    Thing(
        "length-without-angle", "Length without angle",
        "Leave out d1. Does the direction of the gradient still become right? This is the question of Table 2.",
        {"d2 alone": "d2", "d1 + d2": "d1 + d2"}, _length_alone,
    ),
    Thing(
        "angle-without-length", "Angle without length",
        "Leave out d2. Does the length of the gradient still become right?",
        {"d1 alone": "d1", "d1 + d2": "d1 + d2"}, _angle_alone,
    ),
    Thing(
        "which-level", "Which level?",
        "Match only across classes, or only inside them. Does the other level follow?",
        {"inter: across classes": "inter", "intra: inside classes": "intra"}, _which_level,
    ),
    Thing(
        "weight", "The weight between them",
        "Match both levels and change the weight λ of the second. When does it look like one level alone?",
        {"λ = 0.01": "lam 0.01", "λ = C = 10": "d1 + d2", "λ = 100": "lam 100"}, _weight,
    ),
    Thing(
        "position", "Where theta is",
        "Two images per class and four updates of S for each network. Theta takes no step between them, or 50.",
        {"0 steps": "steps 0", "50 steps": "steps 50"}, _position,
    ),
    Thing(
        "schedule", "The schedule of Eq. 12",
        "Two images per class again. Theta takes 50, 40 and 30 steps, as Eq. 12 says, or none.",
        {"Eq. 12": "Eq. 12", "0 steps": "steps 0"}, _schedule,
    ),
    Thing(
        "real-start", "Start from real images",
        "S starts as random real images, not as noise. Is there a difference at the end?",
        {"from real images": "real", "from noise": "d1 + d2"}, _real_start,
    ),
    Thing(
        "too-fast", "Too fast",
        "Raise the rate of the images. What happens to the loss, and to the images?",
        {"rate 0.1": "d1 + d2", "rate 1": "rate 1", "rate 10": "rate 10"}, _too_fast,
    ),
    Thing(
        "how-many", "How many outer iterations?",
        "When is S better than random real images? Does the matching loss show it?",
        {"150 outer iterations": "long"}, _how_many,
    ),
)  # fmt: skip


# ---- a recording in a page


@dataclass(frozen=True)
class Recording:
    """Sessions side by side in a page, with one slider through their outer iterations.

    ``_static/session.js`` plays them. Without scripts and in print the images are shown at the first, a middle and
    the last outer iteration. The curves are whole in both.

    Attributes
    ----------
    sessions : dict
        Words above a session -> the session. All have equally many frames.
    title, question, answer : str
        Plain text, may be empty.
    code : str
        Python that makes the sets.
    id : str
        Of the element.

    Raises
    ------
    ValueError
        If the sessions have different numbers of frames.
    """

    sessions: Mapping[str, Session]
    title: str = ""
    question: str = ""
    answer: str = ""
    code: str = ""
    id: str = ""

    def __post_init__(self):
        if len({session.ks for session in self.sessions.values()}) != 1:
            raise ValueError("the sessions have different frames: show sessions with the same outer iterations")

    def __repr__(self) -> str:
        return f"Recording: {self.title or ', '.join(self.sessions)}"

    def _repr_html_(self) -> str:
        every = list(self.sessions.values())
        limits = _limits(every)
        data = {"ks": every[0].ks, "runs": [_played(session) for session in every]}
        runs = "".join(_run_html(words, session, limits) for words, session in self.sessions.items())
        parts = {"h3": self.title, 'p class="gm-ask"': self.question}
        head = "".join(f"<{tag}>{html.escape(text)}</{tag.split()[0]}>" for tag, text in parts.items() if text)
        tail = ""
        if self.answer:
            tail += f'<p class="gm-happened"><strong>What happened.</strong> {html.escape(self.answer)}</p>'
        if self.code:
            tail += f"<details><summary>The same in code</summary>{code_html(self.code)}</details>"
        mark = f' id="{html.escape(self.id)}"' if self.id else ""
        payload = json.dumps(data).replace("<", "\\u003c")
        return (
            f'<section class="gm-session"{mark}>{head}<div class="gm-session-runs">{runs}</div>{tail}'
            f'<script type="application/json">{payload}</script></section>'
        )


class Recordings(list):
    """Recordings of which a page shows one at a time. Without scripts and in print it shows them all."""

    def _repr_html_(self) -> str:
        if not self:
            return "<p>Nothing is recorded here: <code>python -m gmreport.sessions</code> does it.</p>"
        links = "".join(f'<li><a href="#{r.id}">{html.escape(r.title)}</a></li>' for r in self)
        shown = "".join(r._repr_html_() for r in self)
        return f'<div class="gm-sessions"><nav aria-label="Things to try"><ul>{links}</ul></nav>{shown}</div>'


def recordings(path: str | os.PathLike | None = None) -> Recordings:
    """All THINGS whose sessions are stored.

    Parameters
    ----------
    path : path, optional
        As in `stored_sessions`.
    """
    found, _ = stored_sessions(path)
    shown = Recordings()
    for thing in THINGS:
        if set(thing.sessions.values()) <= set(found):
            some = {words: found[name] for words, name in thing.sessions.items()}
            told = {"answer": thing.answer(*some.values()), "code": _code(thing), "id": f"try-{thing.id}"}
            shown.append(Recording(some, thing.title, thing.question, **told))
    return shown


def _code(thing: Thing) -> str:
    lines = ["import gmlib as gm", 'data = gm.load_data("digits")']
    for words, name in thing.sessions.items():
        method, ipc, changes = SESSIONS[name]
        given = [f'"{method}"', '"digits"', str(ipc), '"smoke"', *(f"{k}={v!r}" for k, v in changes.items())]
        lines += [f"S = gm.condense(data, gm.Recipe.for_method({', '.join(given)}))  # {words}"]
    return "\n".join(lines) + "\n"


def recordings_answer(path: str | os.PathLike | None = None) -> HTML:
    """What the recordings show together, in two lines.

    Parameters
    ----------
    path : path, optional
        As in `stored_sessions`.
    """
    found, _ = stored_sessions(path)
    if BASE not in found:
        return HTML("")
    reached = found[BASE].accuracy[-1]
    lines = [
        f"Networks trained on one learned image of each class of the digits reach {reached:.1f} percent; on one "
        f"random real image of each class {found[BASE].random:.1f}."
    ]
    words = {name: words for thing in THINGS for words, name in thing.sessions.items()}
    others = {
        words[name]: s.accuracy[-1]
        for name, s in found.items()
        if s.recipe.ipc == 1 and name != BASE and name in words
    }
    if others:
        near = sum(abs(other - reached) <= NEAR for other in others.values())
        lowest = min(others, key=others.get)
        lines.append(
            f"Of {len(others)} other choices, {near} end within {NEAR:g} points of that. The lowest, “{lowest}”, "
            f"ends at {others[lowest]:.1f}."
        )
    return HTML('<div class="gm-answer">' + "".join(f"<p>{html.escape(line)}</p>" for line in lines) + "</div>")


def recordings_sentence(path: str | os.PathLike | None = None) -> Markdown:
    """How the recordings were made.

    Parameters
    ----------
    path : path, optional
        As in `stored_sessions`.
    """
    found, about = stored_sessions(path)
    if not found:
        return Markdown("")
    recipe, (n, at_end) = next(iter(found.values())).recipe, about["protocol"]["networks"]
    here = about["made_with"]
    return Markdown(
        f"Each recording is one run on the handwritten digits of scikit-learn with the smoke budget: a ConvNet of "
        f"width {recipe.width} and depth {recipe.depth}, {recipe.batch_real} real images of each class for an update "
        f"of S, seed {recipe.seed}. On each S that is shown {counted(n, 'network')} were trained, on the last "
        f"one {at_end}. A difference of two points may be chance. Random real images: the mean of "
        f"{about['protocol']['random_sets']} sets. Made by `python -m gmreport.sessions` with gmlib "
        f"{md(here['gmlib'])} on {md(here['device_name'])}, {counted(here['threads'], 'thread')}."
    )


def _played(session: Session) -> dict[str, Any]:
    """What the script shows at each frame: the part of the sprite, and the text of each value."""
    return {
        "png": base64.b64encode(session.sprite).decode(),
        "size": list(_frames(session)[0].size),
        "at": [k / session.ks[-1] for k in session.ks],
        "text": [[_value(session, name, i) for i in range(len(session.ks))] for name in CURVES],
    }


def _frames(session: Session) -> list[Image.Image]:
    whole = Image.open(io.BytesIO(session.sprite))
    height = whole.height // len(session.ks)
    return [whole.crop((0, i * height, whole.width, (i + 1) * height)) for i in range(len(session.ks))]


def _updates(session: Session) -> list[int]:
    """The updates of S that were measured: the first, and the last if there is another one."""
    return sorted(set(session.angles["t"]))


def _value(session: Session, name: str, i: int) -> str:
    """The value of a curve at the i-th frame, as HTML."""
    if name == "accuracy":
        return f"{session.accuracy[i]:.0f} %"
    if name == "loss":
        k = session.ks[i]
        return _short(session.losses[k - 1]) if k else "–"
    return " ".join(
        f'<b class="gm-{term}">{" → ".join(f"{session.along(name, level, t)[i]:.2f}" for t in _updates(session))}</b>'
        for level, term in TERMS.items()
    )


def _limits(sessions: Sequence[Session]) -> dict[str, tuple[float, float]]:
    """The common scales of the curves of one recording. The loss has its own for each session."""
    accuracies = [a for s in sessions for a in (*s.accuracy, s.random) if math.isfinite(a)]
    means = pd.concat([s.means for s in sessions])
    ratios = means["ratio"][(means["ratio"] > 0) & (means["ratio"] < math.inf)]
    return {
        "accuracy": (10.0 * (min(accuracies) // 10), min(100.0, 10.0 * math.ceil(max(accuracies) / 10))),
        "cosine": (min(0.0, math.floor(10 * means["cosine"].min()) / 10), 1.0),
        "ratio": (min(0.5, ratios.min()), max(2.0, ratios.max())),
    }


def _run_html(words: str, session: Session, limits: Mapping[str, tuple[float, float]]) -> str:
    """One session: its images at three outer iterations, and its curves with their values at the end."""
    frames, last = _frames(session), len(session.ks) - 1
    stills = "".join(
        f'<div><span>k = {session.ks[i]}</span><img alt="{_alt(session, i)}" '
        f'src="data:image/png;base64,{base64.b64encode(png_bytes(frames[i])).decode()}"></div>'
        for i in sorted({0, last // 2, last})
    )
    curves = "".join(_curve(name, session, limits.get(name)) for name in CURVES)
    return (
        f'<div class="gm-session-run"><p class="gm-session-name"><strong>{html.escape(words)}</strong></p>'
        f'<div class="gm-stills">{stills}</div><div class="gm-curves">{curves}</div></div>'
    )


def _alt(session: Session, i: int) -> str:
    n = min(session.recipe.ipc, ROWS)
    of = f"{n} of {per_class(session.recipe.ipc)}" if n < session.recipe.ipc else per_class(n)
    return f"The images after {counted(session.ks[i], 'outer iteration')}: {of}, a column for each class."


def _curve(name: str, session: Session, limits: tuple[float, float] | None) -> str:
    """A curve along k as SVG that fills its box, with its last value as text."""
    if name == "loss":
        limits = (0.0, max((x for x in session.losses if math.isfinite(x)), default=1.0))
        lines = [("", range(1, len(session.losses) + 1), session.losses)]
    elif name == "accuracy":
        lines = [("", session.ks, session.accuracy)]
    else:
        lines = [
            (f"gm-{term}{' gm-dashed' * (t > 0)}", session.ks, session.along(name, level, t))
            for level, term in TERMS.items()
            for t in _updates(session)
        ]
    low, high = limits
    scale = (lambda v: math.log(max(v, low))) if name == "ratio" else float

    def y(value: float) -> float:
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return HEIGHT * (1 - min(max(share, 0), 1))

    level = {"accuracy": session.random, "ratio": 1.0}.get(name, math.nan)
    drawn = ""
    if math.isfinite(level):
        drawn = f'<line class="gm-level" x2="100" y1="{y(level):.4g}" y2="{y(level):.4g}"/>'
    for look, ks, values in lines:
        points = (
            f"{100 * k / session.ks[-1]:.4g},{y(v):.4g}" for k, v in zip(ks, values, strict=True) if math.isfinite(v)
        )
        drawn += f'<polyline class="{look}" points="{" ".join(points)}"/>'
    unit = " %" if name == "accuracy" else ""
    ends = "".join(f"<span>{_short(value)}{unit}</span>" for value in (high, low))
    return (
        f'<div class="gm-along"><p>{CURVES[name]} <output>{_value(session, name, -1)}</output></p>'
        f'<div class="gm-box"><div class="gm-ticks" aria-hidden="true">{ends}</div>'
        f'<svg viewBox="0 0 100 40" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg></div></div>'
    )


def _short(value: float) -> str:
    """A loss, or the end of a scale."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


# ---- the picture of a live run


def session_figure(
    S: SyntheticSet,
    losses: Sequence[float],
    table: pd.DataFrame,
    *,
    k: int,
    K: int,
    ratios: tuple[float, float] | None = None,
) -> Figure:
    """Draw S after k of K outer iterations: its images, the matching loss so far, and gS against gT for each layer.

    Parameters
    ----------
    S : SyntheticSet
    losses : sequence of float
        Matching loss of each outer iteration. Those after the k-th only set the scale.
    table : DataFrame
        What `gmlib.analysis.matching.angles` returns for S.
    k, K : int
        Outer iterations.
    ratios : (float, float), optional
        Limits of the axis of ``|gS| / |gT|``, for several figures with one scale. None takes them from ``table``.

    Returns
    -------
    Figure
    """
    sheet, centres = sheet_of(S.pixels(), S.n_classes)
    height = min(7.4 * sheet.shape[0] / sheet.shape[1] + 0.3, 4.0)
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, height + 2.7), layout="constrained")
        grid = fig.add_gridspec(2, 3, height_ratios=[height, 2.7])
        images = fig.add_subplot(grid[0, :])
        loss, cosine, ratio = (fig.add_subplot(grid[1, i]) for i in range(3))
    images.grid(visible=False)
    show_sheet(images, sheet, centres, S.classes if S.n_classes <= 20 else None)
    loss.plot(range(1, k + 1), losses[:k], color="black", linewidth=1.5)
    top = max((value for value in losses if math.isfinite(value)), default=1.0)
    loss.set(xlim=(0, K), ylim=(0, 1.05 * top), xlabel="outer iterations", ylabel="matching loss")
    for (t, level), rows in table.groupby(["t", "level"]):
        words, shade, marker = LEVELS[level]
        # The last update is dashed and hollow, to be seen without colour too.
        line, fill = ("--", "white") if t > 0 else ("-", shade)
        for ax, column in ((cosine, "cosine"), (ratio, "ratio")):
            ax.plot(
                range(1, len(rows) + 1), rows[column], marker + line, color=shade, label=f"{words}, t = {t}",
                markerfacecolor=fill, markersize=5, clip_on=False,
            )  # fmt: skip
    n_layers = table["layer"].nunique()
    for ax in (cosine, ratio):
        ax.set(xlabel="layer, first to last", xticks=range(1, n_layers + 1), xlim=(0.7, n_layers + 0.3))
        ax.axhline(1, color="gray", linewidth=0.8)
    cosine.set(ylim=(min(-0.1, table["cosine"].min() - 0.1), 1.05), ylabel="cos(gS, gT)")
    ratio.set(ylabel="|gS| / |gT|", yscale="log", ylim=ratios or ratio_limits(table))
    ratio.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ratio.yaxis.set_major_formatter("{x:g}")
    ratio.yaxis.set_minor_formatter("")
    handles, labels = cosine.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return fig


def ratio_limits(table: pd.DataFrame) -> tuple[float, float]:
    """Limits of a logarithmic axis for ``|gS| / |gT|``. They contain all ratios, and a factor of three around 1."""
    known = table["ratio"][(table["ratio"] > 0) & (table["ratio"] < math.inf)]
    return min(1 / 3, 0.8 * known.min()), max(3.0, 1.25 * known.max())


def in_words(table: pd.DataFrame) -> str:
    """The means over the layers at the first update of S, as text."""
    means = table[table["t"] == 0].groupby("level")[["cosine", "ratio"]].mean()
    parts = [
        f"{words} cosine {means.loc[level, 'cosine']:.2f}, |gS|/|gT| {means.loc[level, 'ratio']:.2f}"
        for level, (words, *_) in LEVELS.items()
    ]
    return f"{'; '.join(parts)} (means over the layers, at t = 0)"


def alt_text(k: int, K: int, table: pd.DataFrame) -> str:
    """The alternative text of a `session_figure`."""
    return (
        f"The images at k = {k} of {K} outer iterations, one column for each class; below them the matching loss so "
        f"far, and for each layer the cosine of gS and gT and the ratio of their lengths: {in_words(table)}."
    )
