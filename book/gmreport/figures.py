"""Figures: each function turns given numbers into a Figure, Panels or Pictures, and computes no experiment.

A panel is at most 3.4 inches wide, so two stand side by side on a page, and one fills the screen of a phone. It has
letters of at least 9 points, 12 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from gmlib import how, where
from gmlib.recipe import preset

from .drawing import SHAPES, Panels, Pictures, legend_of
from .style import (
    GRID,
    HUES,
    INK,
    INTER,
    INTRA,
    MUTED,
    OTHER_COLOUR,
    PAPER,
    STYLE,
    colour,
    counted,
    display_name,
    distance_name,
    in_figure,
    method_order,
    per_class,
)
from .summaries import checked, select, summarise

WIDTH, HEIGHT = 3.4, 2.6  # inches
QUARTER = 1.68  # four side by side, two on a phone
ACCURACY_CAPTION = (
    "Each dot is one trained network, and each strip of dots one condensed set, with a bar at its mean. The point "
    "with whiskers is the mean over the sets with its 95% interval. Whiskers without an end go on; without whiskers "
    "there is one set."
)


def panel(width: float = WIDTH, height: float = HEIGHT, style: str = "whitegrid"):
    """A figure in the style of the report, and its axes."""
    with sns.axes_style(style, rc=STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        return fig, fig.subplots()


def accuracy_figure(
    results: pd.DataFrame, *, network: str | None = None, labels: Mapping[str, str] | None = None
) -> Panels:
    """The accuracy of every network as a dot, a strip for each set, a panel for each (dataset, ipc, budget).

    A short bar marks the mean of a set. The point with whiskers is the mean over sets, with the 95% interval of
    `summarise`. ACCURACY_CAPTION says this in words.

    Parameters
    ----------
    results
        Long form.
    network
        The trained network, needed if ``results`` have several.
    labels
        Method -> its text on the axis, if that is not its display name. These methods come first, in this order.
    """
    results = select(checked(results), network=network)
    several = results["budget"].nunique() > 1
    methods, names = _named(results["method"], labels)
    halves = summarise(results).set_index(["dataset", "ipc", "budget", "method"])["ci95"]
    figures = []
    for cell, rows in results.groupby(["dataset", "ipc", "budget"], sort=False):
        fig, ax = panel()
        here = [(method, name) for method, name in zip(methods, names, strict=True) if method in set(rows["method"])]
        for x, (method, _) in enumerate(here):
            _strip(ax, x, rows[rows["method"] == method], colour(method), halves.get((*cell, method)))
        texts = [name for _, name in here]
        crowded = max(map(len, texts)) * len(texts) > 40
        slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        ax.set_xticks(range(len(texts)), texts, **slant)
        ax.set_xlim(-0.6, len(texts) - 0.4)
        # The dots set the scale. Two sets of random images have whiskers that would press all else together.
        low, high = rows["accuracy"].min(), rows["accuracy"].max()
        room = 0.08 * max(high - low, 0.5)
        ax.set_ylim(low - room, high + room)
        dataset, ipc, budget = cell
        ax.set_title(f"{in_figure(dataset)}, {per_class(ipc)}" + (f" ({in_figure(budget)})" if several else ""))
        ax.set_ylabel("test accuracy (%)")
        ax.grid(visible=False, axis="x")
        figures.append(fig)
    return Panels(figures)


def _named(methods: Iterable[str], labels: Mapping[str, str] | None) -> tuple[list[str], list[str]]:
    """Methods, those with a label first, and the text of each."""
    labels = labels or {}
    known = method_order(methods)
    ordered = [m for m in labels if m in known] + [m for m in known if m not in labels]
    return ordered, [in_figure(labels.get(m, display_name(m))) for m in ordered]


def _strip(ax, x: float, rows: pd.DataFrame, shade: str, half: float | None) -> None:
    sets = sorted(rows["set"].unique())
    if not sets:
        return
    width = 0.6 / len(sets)
    means = []
    for i, seed in enumerate(sets):
        values = rows[rows["set"] == seed].sort_values("net")["accuracy"].to_numpy()
        centre = x - 0.3 + width * (i + 0.5)
        # The offset depends on the index of the network, not on a random number: same results, same picture.
        spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * width * 0.7
        ax.plot(centre + spread, values, "o", color=shade, alpha=0.55, markersize=4, markeredgewidth=0)
        ax.hlines(values.mean(), centre - width * 0.45, centre + width * 0.45, color=shade, linewidth=2)
        means.append(values.mean())
    whiskers = None if half is None or math.isnan(half) else half
    look = {"fmt": "o", "color": INK, "markersize": 4, "capsize": 3, "linewidth": 1.2}
    ax.errorbar(x + 0.4, np.mean(means), yerr=whiskers, **look)


def reach_figure(sums: pd.DataFrame, along: pd.DataFrame) -> Panels:
    """Section 5 in two panels: accuracy against the distance to the nearest trap, and that distance along a run.

    Parameters
    ----------
    sums
        One row per set: method, min_distance, accuracy (percent).
    along
        One row per snapshot of one run: method, k, min_distance. If it has no rows, there is no second panel.
    """
    points, left = panel()
    marks = dict(zip(method_order([*sums["method"], *along["method"]]), cycle(SHAPES), strict=False))
    for method in method_order(sums["method"]):
        rows = sums[sums["method"] == method]
        look = {"color": colour(method), "label": in_figure(display_name(method)), "markersize": 6}
        left.plot(rows["min_distance"], rows["accuracy"], marks[method], **look)
    left.set(xlabel="distance to the nearest trap", ylabel="test accuracy (%)")
    if not len(along):
        return Panels([points], legend_of(left))
    run, right = panel()
    for method, rows in along.groupby("method"):
        look = {"color": colour(method), "label": in_figure(display_name(method)), "markersize": 5}
        right.plot(rows["k"], rows["min_distance"], f"{marks[method]}-", **look)
    right.set(xlabel="outer iteration k", ylabel="distance to the nearest trap")
    _whole(right.xaxis)
    return Panels([points, run], legend_of(left))


def alignment_figure(table: pd.DataFrame) -> Panels:
    """Cosine and norm ratio of the gradients of S and T, by layer, along training on S (mean over starts).

    Layers go from light to dark, first to last.

    Parameters
    ----------
    table
        From `alignment`, with columns start, step, layer, cosine, ratio.
    """
    (one, cosine), (two, ratio) = panel(), panel()
    layers = list(table.groupby("layer", sort=False))
    for i, (layer, rows) in enumerate(layers):
        look = {"color": HUES[i % len(HUES)], "linestyle": ("-", "--", ":", "-.")[i % 4], "label": in_figure(layer)}
        for ax, column in ((cosine, "cosine"), (ratio, "ratio")):
            line = rows.groupby("step")[column].mean()
            ax.plot(line.index, line.to_numpy(), **look)
    cosine.set(xlabel="steps of theta on S", ylabel="cosine of the two gradients")
    ratio.set(xlabel="steps of theta on S", ylabel="|gS| / |gT|", yscale="log")
    _plain_log(ratio.yaxis)
    return Panels([one, two], legend_of(cosine))


def _whole(axis) -> None:
    """Whole numbers only."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _plain_log(axis) -> None:
    """Numbers such as 0.2 and 5 on a logarithmic axis, in letters of full size."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def transfer_figure(results: pd.DataFrame, sources: Mapping[str, str], targets: Sequence[str]) -> Figure:
    """Table 4 as a heat map: mean accuracy by source (rows) and target (columns).

    Parameters
    ----------
    results
        Long form, of one (dataset, ipc, budget). A pair without a run is grey.
    sources
        Method -> the text of its row.
    targets
        Networks.
    """
    means = checked(results).groupby(["method", "network"])["accuracy"].mean().unstack()
    means = means.reindex(index=list(sources), columns=list(targets))
    means = means.rename(index=lambda method: in_figure(sources[method]), columns=in_figure)
    fig, ax = panel(min(WIDTH, 1.4 + 0.55 * len(targets)), 1.2 + 0.34 * len(sources), style="white")
    sns.heatmap(
        means,
        ax=ax,
        annot=True,
        fmt=".1f",
        annot_kws={"size": 9},
        cmap="cividis",
        linewidths=1,
        linecolor=PAPER,
        cbar=False,
    )
    ax.set(xlabel="target network", ylabel="source")
    ax.set_facecolor(GRID)
    ax.tick_params(axis="x", rotation=30)
    ax.tick_params(axis="y", rotation=0)
    for label in ax.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    return fig


def plane_distances(expression: str, gS, gT) -> np.ndarray:
    """The distance d(gS, gT) for gradients of one row with two entries.

    Parameters
    ----------
    expression
        As `how.parse_distance` reads it.
    gS
        (n, 2).
    gT
        (2,).

    Returns
    -------
    ndarray
        (n,).
    """
    gS = torch.as_tensor(np.asarray(gS, dtype=float))[:, None]  # (n, rows, 2) with one row
    gT = torch.as_tensor(np.asarray(gT, dtype=float)).expand_as(gS)
    return how.distance(expression)([gS], [gT]).numpy()


def distance_figure(expressions: Sequence[str], gT: Sequence[float], gS: Mapping[str, Sequence[float]]) -> Panels:
    """Contours of the distance to gT over the plane of gS, with the distances of a few gS, for each expression.

    Each panel has its own scale, from 0 to its largest value.

    Parameters
    ----------
    expressions
        As `how.parse_distance` reads them.
    gT
        (2,).
    gS
        Name -> (2,).
    """
    gT = np.asarray(gT, dtype=float)
    marked = np.asarray(list(gS.values()), dtype=float)
    reach = 1.4 * max(np.abs(gT).max(), np.abs(marked).max())
    along = np.linspace(-reach, reach, 60)  # an even number: it skips the origin, which has no angle
    x, y = np.meshgrid(along, along)
    plane = np.stack([x.ravel(), y.ravel()], axis=1)
    figures = []
    for expression in expressions:
        fig, ax = panel(QUARTER, 2.5, style="white")
        heights = plane_distances(expression, plane, gT).reshape(x.shape)
        # Shades of one grey that is opaque nowhere suit a light page and a dark one.
        levels = np.linspace(0, heights.max(), 10)
        ax.contourf(
            x, y, heights, levels=levels, colors=[(0.25, 0.5, 0.75, 0.08 * i) for i in range(len(levels) - 1)]
        )
        values = plane_distances(expression, marked, gT)
        named = zip(gS, marked, cycle(HUES[1:]), (f": {v:.2f}" for v in values), strict=False)
        for name, end, shade, value in [("gT", gT, INK, ""), *named]:
            look = {"color": shade, "linewidth": 2, "markersize": 5, "markevery": [1]}
            ax.plot([0, end[0]], [0, end[1]], "o-", label=f"{in_figure(name)}{value}", **look)
        ax.set_title(in_figure(distance_name(expression)))
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False)
        figures.append(fig)
    return Panels(figures)


def loss_figure(found: pd.DataFrame, labels: Mapping[str, str] | None = None) -> Panels:
    """The matching loss along the outer iterations, a panel for each method and a line for each set.

    Each panel has its own scale, from 0.

    Parameters
    ----------
    found
        From `matching`.
    labels
        As in `accuracy_figure`.
    """
    methods, names = _named(found["method"], labels)
    figures = []
    for method, name in zip(methods, names, strict=True):
        fig, ax = panel(2.2, 1.9)
        for losses in found[found["method"] == method]["losses"]:
            ax.plot(range(len(losses)), losses, color=colour(method), linewidth=1.2)
        ax.set_ylim(bottom=0)
        _whole(ax.xaxis)
        ax.set(title=name, xlabel="outer iteration k", ylabel="matching loss")
        figures.append(fig)
    return Panels(figures)


def sets_figure(
    sets: Mapping[str, object], n_classes: int, *, titles: Sequence[str] | None = None, inch: float = 0.6
) -> Pictures:
    """Several sets, one below the other, each with the first image of every class.

    Parameters
    ----------
    sets
        Name -> images, as in `image_grid`.
    n_classes
        Number of classes.
    titles
        Names of the classes.
    inch
        Largest side of an image on a page, in inches of 96 pixels.
    """
    first = {name: images[:: len(images) // n_classes] for name, images in sets.items()}
    _check_titles(titles, n_classes)
    strips = {name: sheet_of(images, n_classes, math.nan)[0] for name, images in first.items()}
    return Pictures(strips, n_classes, titles, inch * 96)


def paths_figure(table: pd.DataFrame, eps: float) -> Panels:
    """Figure 2, measured: training on each S and on T from one theta_0, in the plane that fits all paths best.

    The second panel has the norm of each path's gradient. A cross marks where this norm is first below eps: the trap.

    Parameters
    ----------
    table
        From `paths`, with columns path, step, x, y, distance, gradient_norm.
    eps
        Threshold of the norm.
    """
    (one, left), (two, right) = panel(height=3.0), panel(height=3.0)
    paths = dict(list(table.groupby("path", sort=False)))
    for name, dashes in zip(method_order(paths), cycle(("-", "--", ":", "-.")), strict=False):
        rows = paths[name]
        look = {"color": INK if name == "T" else colour(name), "linewidth": 1.5, "linestyle": dashes}
        left.plot(rows["x"], rows["y"], label=in_figure(display_name(name)), **look)
        right.plot(rows["step"], rows["gradient_norm"], **look)
        trap = rows[rows["gradient_norm"] < eps][:1]
        for ax, x, y in ((left, "x", "y"), (right, "step", "gradient_norm")):
            ax.plot(trap[x], trap[y], "X", color=look["color"], markersize=9, markeredgecolor=PAPER, zorder=3)
    left.plot(0, 0, "o", color=INK, markersize=6)
    left.annotate("θ₀", (0, 0), xytext=(-6, 6), textcoords="offset points", ha="right")
    shares = table[["x", "y"]].pow(2).sum() / table["distance"].pow(2).sum()
    for axis, nth in (("x", "first"), ("y", "second")):
        left.set(**{f"{axis}label": f"{nth} principal direction ({shares[axis]:.0%})"})
    left.set_aspect("equal", adjustable="datalim")
    right.axhline(eps, color=INK, linewidth=0.8, linestyle=":")
    right.set(xlabel="steps of theta", ylabel="norm of the gradient", yscale="log")
    _plain_log(right.yaxis)
    return Panels([one, two], legend_of(left))


_UPDATES = {
    "fixed": "fixed steps",
    "adaptive": "schedule, Eq. 12",
    "overfit": "until L(T) rises",
    "overfit-gap": "until the gap opens",
}


def overfitting_figure(losses: pd.DataFrame, k: int) -> Panels:
    """Figure 3, measured: L(S, theta) and L(T, theta) along the steps of theta in one outer iteration.

    Each method has a panel. A vertical line is an update of S, a dot a step that raised L(T). The axes fit every k,
    so that figures of several k can be compared.

    Parameters
    ----------
    losses
        From `losses_along`, for one or more methods, with a column method.
    k
        The outer iteration.
    """
    panels = list(losses[losses["k"] == k].groupby("method", sort=False))
    most = losses[losses["i"] > 0].groupby(["method", "k"]).size().max()
    top = losses[["loss_S", "loss_T"]].to_numpy().max() * 1.03
    figures = []
    for method, rows in panels:
        fig, ax = panel(style="white")
        steps = (rows["i"] > 0).cumsum()  # theta does not move while S is updated: i = 0 has the step before
        updates = [*steps[rows["i"] == 0], steps.iloc[-1]]  # S is updated once more after the last step
        ax.vlines(updates, 0, 1, transform=ax.get_xaxis_transform(), color=GRID, linewidth=0.9, zorder=0)
        ax.plot(steps, rows["loss_T"], color=colour(method), label="L(T, θ)")
        ax.plot(steps, rows["loss_S"], color=colour(method), linestyle=(0, (4, 1.5)), linewidth=1.2, label="L(S, θ)")
        worse = steps[rows["i"] > 0][overfitting(rows, "overfit", gap=0.0)]
        look = {"color": INK, "markersize": 3, "label": "a step that raised L(T)"}
        ax.plot(worse, rows.loc[worse.index, "loss_T"], ".", **look)
        chosen = preset(method.partition("@")[0], "", 0)["where"]
        ax.set_title(f"{in_figure(display_name(method))}\n{in_figure(_UPDATES.get(chosen, chosen))}")
        ax.set(xlim=(0, most), ylim=(0, top), xlabel="steps of theta", ylabel="cross-entropy (nats)")
        figures.append(fig)
    legend = (
        ("L(T, θ)", INK, "-"),
        ("L(S, θ)", INK, "--"),
        ("a step that raised L(T)", INK, "."),
        ("an update of S", GRID, "|"),
    )
    return Panels(figures, legend)


def overfitting(rows: pd.DataFrame, criterion: str, gap: float) -> np.ndarray:
    """Whether each step of theta overfits (`where.overfits`), for the rows with i > 0.

    Parameters
    ----------
    rows
        Of one outer iteration, as in `overfitting_figure`.
    criterion
        A name in `where.STOP`.
    gap
        Threshold of "overfit-gap", in nats.

    Returns
    -------
    ndarray of bool
        In the order of the rows.
    """
    paths = [list(map(where.Losses, part["loss_S"], part["loss_T"])) for _, part in rows.groupby("t")]
    return np.array([worse for path in paths for worse in where.overfits(path, criterion, gap)], dtype=bool)


def pulls_figure(pulls: pd.DataFrame) -> Panels:
    """How far each part of the matching loss would move S in one step, along the steps of theta; a panel per method.

    Shares of ``|S|``, on a logarithmic scale.

    Parameters
    ----------
    pulls
        From `pulls`, for one or more methods, with a column method.
    """
    panels = list(pulls.groupby("method", sort=False))
    looks = {"intra": (INTRA, "o"), "inter": (INTER, "s")}
    low, high = pulls["step"][pulls["step"] > 0].min(), pulls["step"].max()
    figures = []
    for method, rows in panels:
        fig, ax = panel()
        for (what, term), part in rows.groupby(["what", "how"], sort=False):
            shade, marker = looks.get(what, (OTHER_COLOUR, "^"))
            dashes = "-" if term.endswith("d1") else (0, (4, 1.5))
            look = {"color": shade, "linestyle": dashes, "markersize": 5}
            ax.plot(part["steps"], part["step"], marker, label=in_figure(f"{what}, {term}"), **look)
        ax.set(title=in_figure(display_name(method)), xlabel="steps of theta so far", yscale="log")
        ax.set(ylabel="one step of S, as a share of |S|", ylim=(0.7 * low, 1.4 * high))
        _plain_log(ax.yaxis)
        _whole(ax.xaxis)
        figures.append(fig)
    entries = [entry for fig in figures for entry in legend_of(fig.axes[0])]
    return Panels(figures, list(dict.fromkeys(entries)))


def schedule_figure(seen: Mapping[str, Sequence[Sequence[int]]], learned: Mapping[str, Sequence[int]]) -> Panels:
    """Steps until overfitting along t, the schedule learned from them, and Eq. 12; a panel for each log.

    Parameters
    ----------
    seen
        Name of the log -> `where.steps_until_overfitting`.
    learned
        Name of the log -> `where.fit_schedule`.
    """
    figures = []
    for name, log in seen.items():
        fig, ax = panel()
        low, middle, high = np.quantile(np.array(log), (0.25, 0.5, 0.75), axis=0)
        t = np.arange(len(middle))
        look = {"fmt": "o", "color": MUTED, "markersize": 4, "capsize": 2, "linewidth": 1}
        label = "steps until overfitting: median and quartiles"
        ax.errorbar(t, middle, yerr=(middle - low, high - middle), label=label, **look)
        ax.plot(t, learned[name], drawstyle="steps-mid", color=colour("MDO"), label="learned from them")
        eq12 = list(map(where.adaptive, t))
        ax.plot(t, eq12, drawstyle="steps-mid", color=colour("MDA"), linestyle="--", label="Eq. 12")
        ax.set_title(f"{in_figure(name)}, {counted(len(log), 'outer iteration')}")
        _whole(ax.xaxis)
        ax.set(xlabel="inner iteration t", ylabel="steps of theta", ylim=(0, where.MAX_STEPS * 1.06))
        figures.append(fig)
    return Panels(figures, legend_of(figures[0].axes[0]) if figures else ())


def cost_figure(costs: pd.DataFrame) -> Panels:
    """Where the time of an outer iteration goes: a bar for each method with its parts (mean over rounds).

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    """
    methods = method_order(costs["method"])
    mean = costs.groupby("method")[["seconds_matching", "seconds_moving", "seconds_looking"]].mean().loc[methods]
    opacity = {"updates of S": 1.0, "steps of theta": 0.55, "looking for overfitting": 0.25}
    fig, ax = panel(height=0.9 + 0.32 * len(methods))
    names = [in_figure(display_name(m)) for m in methods]
    left = np.zeros(len(methods))
    for alpha, column in zip(opacity.values(), mean, strict=True):
        widths = mean[column].to_numpy()
        ax.barh(names, widths, left=left, color=list(map(colour, methods)), alpha=alpha, edgecolor=PAPER)
        left += widths
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_axisbelow(True)
    schedule = f"T = {costs['T'].iloc[0]}, zeta = {costs['zeta'].iloc[0]}"
    ax.set(title=schedule, xlabel="seconds per outer iteration")
    return Panels([fig], [(part, INK, f"bar {alpha:g}") for part, alpha in opacity.items()])


def time_figure(along: pd.DataFrame) -> Panels:
    """Accuracy against the time of condensing, on a logarithmic axis: a line for each run.

    Parameters
    ----------
    along
        From `costs.accuracy_over_time`.
    """
    fig, ax = panel(height=3.0)
    looks = zip(method_order(along["method"]), cycle("os^Xo"), cycle(("-", "--")), strict=False)
    for method, marker, dashes in looks:
        runs = along[along["method"] == method].sort_values("k").groupby("set")
        for i, (_, rows) in enumerate(runs):
            look = {"color": colour(method), "markersize": 5, "label": "_" if i else in_figure(display_name(method))}
            ax.plot(rows["seconds"], rows["accuracy"], f"{marker}{dashes}", **look)
    ax.set_xscale("log")
    _plain_log(ax.xaxis)
    ax.set(xlabel="seconds of condensing", ylabel="test accuracy (%)")
    return Panels([fig], legend_of(ax))


def image_grid(images, n_classes: int, *, titles: Sequence[str] | None = None, inch: float = 0.8) -> Pictures:
    """Condensed images as a grid: a column for each class, a row for each image of the class.

    Parameters
    ----------
    images
        (C * ipc, channels, height, width), array or tensor, sorted by class, grey or RGB. Values are clipped to [0,
        1].
    n_classes
        Number of classes C.
    titles
        Names of the classes.
    inch
        Largest side of an image on a page, in inches of 96 pixels.

    Raises
    ------
    ValueError
        If the images have another shape, or if the classes or the titles do not fit.
    """
    sheet, _ = sheet_of(images, n_classes, math.nan)
    _check_titles(titles, n_classes)
    return Pictures({"": sheet}, n_classes, titles, inch * 96)


def _check_titles(titles: Sequence[str] | None, n_classes: int) -> None:
    if titles is not None and len(titles) != n_classes:
        raise ValueError(f"{len(titles)} titles for {n_classes} classes: give one per class")


def sheet_of(images, n_classes: int, between: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The grid as one picture, and the x of the centre of each class's column.

    Parameters
    ----------
    images, n_classes
        As in `image_grid`.
    between
        Grey of the gaps between images. NaN is transparent in `Pictures`.
    """
    if hasattr(images, "detach"):
        images = images.detach().cpu()
    images = np.asarray(images, dtype=float)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have the shape {images.shape}: give (n, 1 or 3, height, width)")
    n, channels, height, width = images.shape
    if n_classes < 1 or n == 0 or n % n_classes:
        raise ValueError(f"{n} images do not divide into {n_classes} classes: give equally many of each class")
    ipc = n // n_classes
    gap = max(1, width // 14)
    sheet = np.full((ipc * (height + gap) - gap, n_classes * (width + gap) - gap, channels), between)
    for i, image in enumerate(images):
        c, j = divmod(i, ipc)
        top, left = j * (height + gap), c * (width + gap)
        sheet[top : top + height, left : left + width] = image.clip(0, 1).transpose(1, 2, 0)
    return sheet[..., 0] if channels == 1 else sheet, np.arange(n_classes) * (width + gap) + (width - 1) / 2


def show_sheet(ax, sheet: np.ndarray, centres: np.ndarray, titles: Sequence[str] | None) -> None:
    """Draw the result of `sheet_of` on matplotlib axes, with the class names above."""
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(yticks=[], xticks=[])
    ax.spines[:].set_visible(False)
    if titles is not None:
        ax.set_xticks(centres, [in_figure(title, 14) for title in titles], fontsize=9)
        ax.tick_params(top=False, bottom=False, labeltop=True, labelbottom=False, pad=2)
