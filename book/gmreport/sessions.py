"""The picture of a run at one outer iteration: S, the matching loss so far, and gS against gT for each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gmlib.evaluation import Evaluation
from gmlib.sets import SyntheticSet

from .figures import sheet_of, show_sheet
from .sliders import Slider
from .style import STYLE, colour

# Level in the table of `angles` -> (words, colour of the method that matches this level alone, marker).
LEVELS = {"class": ("inside classes", colour("DC"), "o"), "union": ("across classes", colour("Inter"), "s")}


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


def session_slider(
    trace: Mapping[int, tuple[SyntheticSet, Evaluation]], losses: Sequence[float], table: pd.DataFrame, *, method: str
) -> Slider:
    """A slider through the outer iterations of a stored run. It starts at the last one.

    Parameters
    ----------
    trace : mapping
        {number of outer iterations: (S, its evaluation)}, as in `gmlib.runs.store.Run`.
    losses : sequence of float
        Matching loss of every outer iteration of the run.
    table : DataFrame
        What `gmlib.analysis.matching.angles` returns for each S, with the number of outer iterations in a column k.
    method : str

    Returns
    -------
    Slider
        Its frames are drawn by `session_figure`.
    """
    K, limits = len(losses), ratio_limits(table)
    frames = []
    for k, (S, accuracy) in trace.items():
        rows = table[table["k"] == k]
        reached = f"networks trained on these images reach {accuracy.mean:.1f} % (mean of {accuracy.n})"
        caption = f"{method}, k = {k}: {in_words(rows)}; {reached}"
        frames.append((caption, session_figure(S, losses, rows, k=k, K=K, ratios=limits), alt_text(k, K, rows)))
    return Slider(frames, label="outer iterations k", names=list(trace), start=len(frames) - 1)


def alt_text(k: int, K: int, table: pd.DataFrame) -> str:
    """The alternative text of a `session_figure`."""
    return (
        f"The images at k = {k} of {K} outer iterations, one column for each class; below them the matching loss so "
        f"far, and for each layer the cosine of gS and gT and the ratio of their lengths: {in_words(table)}."
    )
