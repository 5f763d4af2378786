"""Figures: one function each, from numbers that are already there to a matplotlib Figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .numbers import checked, half_width, select
from .style import STYLE, colour, method_order, per_class


def accuracy_figure(results: pd.DataFrame, *, network: str | None = None) -> Figure:
    """Every network's accuracy as a dot, one strip per set, methods side by side, a panel per (dataset, ipc).

    A short bar marks each set's mean; the black point with whiskers is the mean over sets, with 95% interval.
    """
    results = select(checked(results), network=network)
    panels = list(results.groupby(["dataset", "ipc"], sort=False))
    methods = method_order(results["method"])
    with sns.axes_style("whitegrid", rc=STYLE):
        across = min(len(panels), 2)  # two panels fill the width of a page
        down = math.ceil(len(panels) / across)
        fig = Figure(figsize=(3.7 * across if across > 1 else 5.5, 3.2 * down), layout="constrained")
        axes = fig.subplots(down, across, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax, ((dataset, ipc), panel) in zip(axes.flat, panels, strict=False):
            for x, method in enumerate(methods):
                _strip(ax, x, panel[panel["method"] == method], colour(method))
            slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(methods) > 4 else {}
            ax.set_xticks(range(len(methods)), methods, **slant)
            ax.set_xlim(-0.6, len(methods) - 0.4)
            ax.set_title(f"{dataset}, {per_class(ipc)}")
            ax.grid(visible=False, axis="x")
        for ax in axes[:, 0]:
            ax.set_ylabel("test accuracy (%)")
    return fig


def _strip(ax, x: float, rows: pd.DataFrame, shade: str) -> None:
    sets = sorted(rows["set"].unique())
    if not sets:
        return
    width = 0.6 / len(sets)
    means = []
    for i, seed in enumerate(sets):
        values = rows[rows["set"] == seed].sort_values("net")["accuracy"].to_numpy()
        centre = x - 0.3 + width * (i + 0.5)
        # Spread by the network's index, not by a random number: the same results give the same picture.
        spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * width * 0.7
        ax.plot(centre + spread, values, "o", color=shade, alpha=0.55, markersize=4, markeredgewidth=0)
        ax.hlines(values.mean(), centre - width * 0.45, centre + width * 0.45, color=shade, linewidth=2)
        means.append(values.mean())
    half = half_width(np.array(means))
    ax.errorbar(
        x + 0.4, np.mean(means), yerr=None if math.isnan(half) else half,
        fmt="o", color="black", markersize=4, capsize=3, linewidth=1.2,
    )  # fmt: skip


def reach_figure(sums: pd.DataFrame, along: pd.DataFrame) -> Figure:
    """Section 5 in two panels: accuracy against the distance to the nearest trap, and that distance while S is condensed.

    sums: one row per set: method, min_distance, accuracy (percent). along: one row per snapshot of one run: method, k,
    min_distance.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, 3.2), layout="constrained")
        left, right = fig.subplots(1, 2)
    for method in method_order(sums["method"]):
        rows = sums[sums["method"] == method]
        left.plot(rows["min_distance"], rows["accuracy"], "o", color=colour(method), label=method, markersize=5)
    left.set(xlabel="distance to the nearest trap", ylabel="test accuracy (%)")
    left.legend(fontsize=8)
    for method, rows in along.groupby("method"):
        right.plot(rows["k"], rows["min_distance"], "o-", color=colour(method), label=method, markersize=4)
    right.set(xlabel="outer iteration k", ylabel="distance to the nearest trap")
    if len(along):
        right.legend(fontsize=8)
    return fig


def alignment_figure(table: pd.DataFrame) -> Figure:
    """Cosine and norm ratio of S's and T's gradients, layer by layer, along training on S (mean over starts).

    table: as `reach.alignment` returns it: start, step, layer, cosine, ratio.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, 3.0), layout="constrained")
        axes = fig.subplots(1, 2)
    shades = sns.color_palette("viridis", table["layer"].nunique())
    for ax, column, label in zip(axes, ("cosine", "ratio"), ("cosine of the two gradients", "|gS| / |gT|"), strict=True):
        for shade, (layer, rows) in zip(shades, table.groupby("layer", sort=False), strict=True):
            line = rows.groupby("step")[column].mean()
            ax.plot(line.index, line.to_numpy(), color=shade, label=layer)
        ax.set(xlabel="steps of theta on S", ylabel=label)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8)
    return fig


def image_grid(images, n_classes: int, *, titles: Sequence[str] | None = None, inch: float = 0.8) -> Figure:
    """Condensed images as a grid: one column per class, one row per image of the class.

    images: (C * ipc, channels, height, width), array or tensor, sorted by class, in [0, 1] (clipped to it),
    grey or RGB. titles: the C class names. inch: side of one image on paper.
    """
    sheet, centres = sheet_of(images, n_classes)
    if titles is not None and len(titles) != n_classes:
        raise ValueError(f"{len(titles)} titles for {n_classes} classes: pass one per class.")
    across = inch * n_classes
    with sns.axes_style("white", rc=STYLE):
        size = (across, across * sheet.shape[0] / sheet.shape[1] + (0.3 if titles is not None else 0))
        fig = Figure(figsize=size, layout="constrained")
        show_sheet(fig.subplots(), sheet, centres, titles)
    return fig


def sheet_of(images, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The grid as one picture, and the x of the middle of each class's column."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
    images = np.asarray(images, dtype=float)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (n, 1 or 3, height, width), not {images.shape}.")
    n, channels, height, width = images.shape
    if n_classes < 1 or n == 0 or n % n_classes:
        raise ValueError(f"{n} images cannot be shared evenly by {n_classes} classes.")
    ipc = n // n_classes
    gap = max(1, width // 14)
    sheet = np.ones((ipc * (height + gap) - gap, n_classes * (width + gap) - gap, channels))
    for i, image in enumerate(images):
        c, j = divmod(i, ipc)
        top, left = j * (height + gap), c * (width + gap)
        sheet[top : top + height, left : left + width] = image.clip(0, 1).transpose(1, 2, 0)
    return sheet[..., 0] if channels == 1 else sheet, np.arange(n_classes) * (width + gap) + (width - 1) / 2


def show_sheet(ax, sheet: np.ndarray, centres: np.ndarray, titles: Sequence[str] | None) -> None:
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(yticks=[], xticks=[])
    ax.spines[:].set_visible(False)
    if titles is not None:
        ax.set_xticks(centres, titles, fontsize=9)
        ax.tick_params(top=False, bottom=False, labeltop=True, labelbottom=False, pad=2)
