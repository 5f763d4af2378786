"""Figures: each function turns given numbers into a matplotlib Figure and computes no experiment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gmlib import how, where
from gmlib.recipe import preset

from .style import STYLE, colour, counted, in_figure, method_order, per_class
from .summaries import checked, select, summarise

MARKED = ("#CC6677", "#DDAA33", "#AA4499", "#117733")  # gradients in a plane


def accuracy_figure(
    results: pd.DataFrame, *, network: str | None = None, labels: Mapping[str, str] | None = None
) -> Figure:
    """The accuracy of every network as a dot, a strip for each set, a panel for each (dataset, ipc, budget).

    A short bar marks the mean of a set. The black point with whiskers is the mean over sets, with the 95% interval of
    `summarise`.

    Parameters
    ----------
    results
        Long form.
    network
        The trained network, needed if ``results`` have several.
    labels
        Method -> its text on the axis, if that is not its name. These methods come first, in this order.
    """
    results = select(checked(results), network=network)
    panels = list(results.groupby(["dataset", "ipc", "budget"], sort=False))
    several = results["budget"].nunique() > 1
    methods, names = _named(results["method"], labels)
    halves = summarise(results).set_index(["dataset", "ipc", "budget", "method"])["ci95"]
    with sns.axes_style("whitegrid", rc=STYLE):
        across = min(len(panels), 2)  # two panels fill the width of a page
        down = math.ceil(len(panels) / across)
        fig = Figure(figsize=(3.7 * across if across > 1 else 5.5, 3.2 * down), layout="constrained")
        axes = fig.subplots(down, across, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax, (cell, panel) in zip(axes.flat, panels, strict=False):
            for x, method in enumerate(methods):
                _strip(ax, x, panel[panel["method"] == method], colour(method), halves.get((*cell, method)))
            slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(methods) > 4 else {}
            ax.set_xticks(range(len(methods)), names, **slant)
            ax.set_xlim(-0.6, len(methods) - 0.4)
            dataset, ipc, budget = cell
            ax.set_title(f"{in_figure(dataset)}, {per_class(ipc)}" + (f" ({in_figure(budget)})" if several else ""))
            ax.grid(visible=False, axis="x")
        for ax in axes[:, 0]:
            ax.set_ylabel("test accuracy (%)")
    return fig


def _named(methods: Iterable[str], labels: Mapping[str, str] | None) -> tuple[list[str], list[str]]:
    """Methods, those with a label first, and the text of each."""
    labels = labels or {}
    known = method_order(methods)
    ordered = [m for m in labels if m in known] + [m for m in known if m not in labels]
    return ordered, [in_figure(labels.get(m, m)) for m in ordered]


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
    look = {"fmt": "o", "color": "black", "markersize": 4, "capsize": 3, "linewidth": 1.2}
    ax.errorbar(x + 0.4, np.mean(means), yerr=whiskers, **look)


def reach_figure(sums: pd.DataFrame, along: pd.DataFrame) -> Figure:
    """Section 5 in two panels: accuracy against the distance to the nearest trap, and that distance along a run.

    Parameters
    ----------
    sums
        One row per set: method, min_distance, accuracy (percent).
    along
        One row per snapshot of one run: method, k, min_distance. May have no rows.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, 3.2), layout="constrained")
        left, right = fig.subplots(1, 2)
    for method in method_order(sums["method"]):
        rows = sums[sums["method"] == method]
        left.plot(
            rows["min_distance"], rows["accuracy"], "o", color=colour(method), label=in_figure(method), markersize=5
        )
    left.set(xlabel="distance to the nearest trap", ylabel="test accuracy (%)")
    left.legend(fontsize=8)
    for method, rows in along.groupby("method"):
        right.plot(rows["k"], rows["min_distance"], "o-", color=colour(method), label=in_figure(method), markersize=4)
    right.set(xlabel="outer iteration k", ylabel="distance to the nearest trap")
    if len(along):
        right.legend(fontsize=8)
    return fig


def alignment_figure(table: pd.DataFrame) -> Figure:
    """Cosine and norm ratio of the gradients of S and T, by layer, along training on S (mean over starts).

    Parameters
    ----------
    table
        From `alignment`, with columns start, step, layer, cosine, ratio.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, 3.0), layout="constrained")
        axes = fig.subplots(1, 2)
    shades = sns.color_palette("viridis", table["layer"].nunique())
    for ax, column, label in zip(
        axes, ("cosine", "ratio"), ("cosine of the two gradients", "|gS| / |gT|"), strict=True
    ):
        for shade, (layer, rows) in zip(shades, table.groupby("layer", sort=False), strict=True):
            line = rows.groupby("step")[column].mean()
            ax.plot(line.index, line.to_numpy(), color=shade, label=in_figure(layer))
        ax.set(xlabel="steps of theta on S", ylabel=label)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8)
    return fig


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
    with sns.axes_style("white", rc=STYLE):
        fig = Figure(figsize=(2.2 + 1.1 * len(targets), 1.2 + 0.5 * len(sources)), layout="constrained")
        ax = fig.subplots()
        bar = {"label": "test accuracy (%)"}
        sns.heatmap(means, ax=ax, annot=True, fmt=".1f", cmap="cividis", linewidths=1, cbar_kws=bar)
    ax.set(xlabel="target network", ylabel="source")
    ax.set_facecolor("#CCCCCC")
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


def distance_figure(expressions: Sequence[str], gT: Sequence[float], gS: Mapping[str, Sequence[float]]) -> Figure:
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
    along = np.linspace(-reach, reach, 120)  # an even number: it skips the origin, which has no angle
    x, y = np.meshgrid(along, along)
    plane = np.stack([x.ravel(), y.ravel()], axis=1)
    with sns.axes_style("white", rc=STYLE):
        fig = Figure(figsize=(2.6 * max(len(expressions), 1.4), 3.3), layout="constrained")
        axes = fig.subplots(1, len(expressions), squeeze=False)[0]
    for ax, expression in zip(axes, expressions, strict=True):
        heights = plane_distances(expression, plane, gT).reshape(x.shape)
        ax.contourf(x, y, heights, levels=np.linspace(0, heights.max(), 13), cmap="Blues")
        values = plane_distances(expression, marked, gT)
        named = zip(gS, marked, cycle(MARKED), (f": {v:.2f}" for v in values), strict=False)
        for name, end, shade, value in [("gT", gT, "black", ""), *named]:
            look = {"color": shade, "linewidth": 2, "markersize": 6, "markevery": [1]}
            ax.plot([0, end[0]], [0, end[1]], "o-", label=f"{in_figure(name)}{value}", **look)
        ax.set_title(in_figure(expression))
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=9, frameon=False)
    return fig


def loss_figure(found: pd.DataFrame, labels: Mapping[str, str] | None = None) -> Figure:
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
    across = min(len(methods), 4)
    down = math.ceil(len(methods) / across)
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(1.9 * across, 1.8 * down), layout="constrained")
        axes = fig.subplots(down, across, squeeze=False)
    for ax in axes.flat[len(methods) :]:
        ax.remove()
    for ax, method, name in zip(axes.flat, methods, names, strict=False):
        for losses in found[found["method"] == method]["losses"]:
            ax.plot(range(len(losses)), losses, color=colour(method), linewidth=1)
        ax.set_ylim(bottom=0)
        ax.set_title(name)
    fig.supxlabel("outer iteration k", fontsize=10)
    fig.supylabel("matching loss", fontsize=10)
    return fig


def sets_figure(
    sets: Mapping[str, object], n_classes: int, *, titles: Sequence[str] | None = None, inch: float = 0.6
) -> Figure:
    """Several sets, one per row, each with the first image of every class.

    Parameters
    ----------
    sets
        Name -> images, as in `image_grid`.
    n_classes
        Number of classes.
    titles
        Names of the classes.
    inch
        Side of an image on paper.
    """
    first = [np.asarray(images, dtype=float)[:: len(images) // n_classes] for images in sets.values()]
    stacked = np.stack(first, axis=1).reshape(-1, *first[0].shape[1:])  # sorted by class, then by set
    fig = image_grid(stacked, n_classes, titles=titles, inch=inch)
    (ax,) = fig.axes
    middle = (stacked.shape[2] - 1) / 2
    bottom = ax.images[0].get_array().shape[0] - 1
    names = list(map(in_figure, sets))
    fig.set_figwidth(fig.get_figwidth() + 0.08 * max(map(len, names)))  # inches; a grid of few classes is narrow
    ax.set_yticks(np.linspace(middle, bottom - middle, len(sets)), names, fontsize=9)
    ax.tick_params(left=False)
    return fig


def paths_figure(table: pd.DataFrame, eps: float) -> Figure:
    """Figure 2, measured: training on each S and on T from one theta_0, in the plane that fits all paths best.

    The second panel has the norm of each path's gradient. A cross marks where this norm is first below eps: the trap.

    Parameters
    ----------
    table
        From `paths`, with columns path, step, x, y, distance, gradient_norm.
    eps
        Threshold of the norm.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, 3.6), layout="constrained")
        left, right = fig.subplots(1, 2)
    paths = dict(list(table.groupby("path", sort=False)))
    for name in method_order(paths):
        rows = paths[name]
        look = {"color": "black" if name == "T" else colour(name), "linewidth": 1.5}
        left.plot(rows["x"], rows["y"], label=in_figure(name), **look)
        right.plot(rows["step"], rows["gradient_norm"], **look)
        trap = rows[rows["gradient_norm"] < eps][:1]
        for ax, x, y in ((left, "x", "y"), (right, "step", "gradient_norm")):
            ax.plot(trap[x], trap[y], "X", color=look["color"], markersize=9, markeredgecolor="white", zorder=3)
    left.plot(0, 0, "o", color="black", markersize=6)
    left.annotate(r"$\theta_0$", (0, 0), xytext=(-6, 6), textcoords="offset points", ha="right")
    shares = table[["x", "y"]].pow(2).sum() / table["distance"].pow(2).sum()
    for axis, nth in (("x", "first"), ("y", "second")):
        left.set(**{f"{axis}label": f"{nth} principal direction ({shares[axis]:.0%})"})
    left.set_aspect("equal", adjustable="datalim")
    left.legend(fontsize=8)
    right.axhline(eps, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="steps of theta", ylabel="norm of the gradient on its own set", yscale="log")
    return fig


_UPDATES = {
    "fixed": "fixed steps",
    "adaptive": "schedule, Eq. 12",
    "overfit": "until L(T) rises",
    "overfit-gap": "until the gap opens",
}


def overfitting_figure(losses: pd.DataFrame, k: int) -> Figure:
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
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    with sns.axes_style("white", rc=STYLE):
        fig = Figure(figsize=(2.5 * across if across > 1 else 4.0, 2.6 * down), layout="constrained")
        axes = fig.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (method, rows) in zip(axes.flat, panels, strict=False):
        steps = (rows["i"] > 0).cumsum()  # theta does not move while S is updated: i = 0 has the step before
        updates = [*steps[rows["i"] == 0], steps.iloc[-1]]  # S is updated once more after the last step
        ax.vlines(updates, 0, 1, transform=ax.get_xaxis_transform(), color="#BBBBBB", linewidth=0.7, zorder=0)
        ax.plot(steps, rows["loss_T"], color=colour(method), label="L(T, θ)")
        ax.plot(steps, rows["loss_S"], color=colour(method), linestyle=(0, (4, 1.5)), linewidth=1, label="L(S, θ)")
        worse = steps[rows["i"] > 0][overfitting(rows, "overfit", gap=0.0)]
        ax.plot(worse, rows.loc[worse.index, "loss_T"], ".", color="black", markersize=3, label="L(T) rises")
        chosen = preset(method.partition("@")[0], "", 0)["where"]
        ax.set_title(f"{in_figure(method)}\n{in_figure(_UPDATES.get(chosen, chosen))}", fontsize=10)
    axes[0, 0].set_xlim(0, most)
    axes[0, 0].set_ylim(0, losses[["loss_S", "loss_T"]].to_numpy().max() * 1.03)
    axes[0, 0].legend(fontsize=7, loc="lower left")
    fig.supxlabel("steps of theta; vertical lines: updates of S", fontsize=9)
    fig.supylabel("cross-entropy (nats)", fontsize=9)
    return fig


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


def pulls_figure(pulls: pd.DataFrame) -> Figure:
    """How far each part of the matching loss would move S in one step, along the steps of theta; a panel per method.

    Shares of ``|S|``, on a logarithmic scale.

    Parameters
    ----------
    pulls
        From `pulls`, for one or more methods, with a column method.
    """
    panels = list(pulls.groupby("method", sort=False))
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(3.4 * len(panels) if len(panels) > 1 else 4.6, 2.9), layout="constrained")
        axes = fig.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    looks = {"intra": ("#777777", "o"), "inter": ("#0072B2", "s")}
    for ax, (method, rows) in zip(axes, panels, strict=True):
        for (what, term), part in rows.groupby(["what", "how"], sort=False):
            shade, marker = looks.get(what, ("#D55E00", "^"))
            dashes = "-" if term.endswith("d1") else (0, (4, 1.5))
            look = {"color": shade, "linestyle": dashes, "markersize": 4}
            ax.plot(part["steps"], part["step"], marker, label=in_figure(f"{what}, {term}"), **look)
        ax.set(title=in_figure(method), xlabel="steps of theta so far", yscale="log")
    axes[0].set_ylabel("one step of S, as a share of |S|")
    axes[0].legend(fontsize=7, handlelength=3.5)
    return fig


def schedule_figure(seen: Mapping[str, Sequence[Sequence[int]]], learned: Mapping[str, Sequence[int]]) -> Figure:
    """Steps until overfitting along t, the schedule learned from them, and Eq. 12; a panel for each log.

    Parameters
    ----------
    seen
        Name of the log -> `where.steps_until_overfitting`.
    learned
        Name of the log -> `where.fit_schedule`.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(3.7 * len(seen) if len(seen) > 1 else 5.0, 3.0), layout="constrained")
        axes = fig.subplots(1, len(seen), squeeze=False, sharey=True)[0]
    for ax, (name, log) in zip(axes, seen.items(), strict=True):
        low, middle, high = np.quantile(np.array(log), (0.25, 0.5, 0.75), axis=0)
        t = np.arange(len(middle))
        look = {"fmt": "o", "color": "#555555", "markersize": 4, "capsize": 2, "linewidth": 1}
        label = "until overfitting:\nmedian, quartiles"
        ax.errorbar(t, middle, yerr=(middle - low, high - middle), label=label, **look)
        ax.plot(t, learned[name], drawstyle="steps-mid", color=colour("MDO"), label="learned from it")
        eq12 = list(map(where.adaptive, t))
        ax.plot(t, eq12, drawstyle="steps-mid", color=colour("MDA"), linestyle="--", label="Eq. 12")
        ax.set_title(f"{in_figure(name)}, {counted(len(log), 'outer iteration')}")
        ax.set(xlabel="inner iteration t", ylim=(0, where.MAX_STEPS * 1.06))
    axes[0].set_ylabel("steps of theta")
    axes[-1].legend(fontsize=8)
    return fig


def cost_figure(costs: pd.DataFrame) -> Figure:
    """Where the time of an outer iteration goes: a bar for each method with its parts (mean over rounds).

    Parameters
    ----------
    costs
        From `costs.outer_iteration`.
    """
    methods = method_order(costs["method"])
    mean = costs.groupby("method")[["seconds_matching", "seconds_moving", "seconds_looking"]].mean().loc[methods]
    opacity = {"updates of S": 1.0, "steps of theta": 0.55, "looking for overfitting": 0.25}
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(6.5, 0.9 + 0.4 * len(methods)), layout="constrained")
        ax = fig.subplots()
    left = np.zeros(len(methods))
    for (part, alpha), column in zip(opacity.items(), mean, strict=True):
        widths = mean[column].to_numpy()
        ax.barh(
            list(map(in_figure, methods)),
            widths,
            left=left,
            color=[colour(m) for m in methods],
            alpha=alpha,
            edgecolor="white",
        )
        ax.barh([in_figure(methods[0])], [0], color="black", alpha=alpha, label=part)  # a grey entry in the legend
        left += widths
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_axisbelow(True)
    ax.set(xlabel=f"seconds per outer iteration (T = {costs['T'].iloc[0]}, zeta = {costs['zeta'].iloc[0]})")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def time_figure(along: pd.DataFrame) -> Figure:
    """Accuracy against the time of condensing, on a logarithmic axis: a line for each run.

    Parameters
    ----------
    along
        From `costs.accuracy_over_time`.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(6.0, 3.4), layout="constrained")
        ax = fig.subplots()
    for method in method_order(along["method"]):
        runs = along[along["method"] == method].sort_values("k").groupby("set")
        for i, (_, rows) in enumerate(runs):
            label = "_" if i else in_figure(method)
            ax.plot(rows["seconds"], rows["accuracy"], "o-", color=colour(method), markersize=4, label=label)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.set(xlabel="seconds of condensing", ylabel="test accuracy (%)")
    ax.legend(fontsize=8)
    return fig


def image_grid(images, n_classes: int, *, titles: Sequence[str] | None = None, inch: float = 0.8) -> Figure:
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
        Side of an image on paper.

    Raises
    ------
    ValueError
        If the images have another shape, or if the classes or the titles do not fit.
    """
    sheet, centres = sheet_of(images, n_classes)
    if titles is not None and len(titles) != n_classes:
        raise ValueError(f"{len(titles)} titles for {n_classes} classes: give one per class")
    across = inch * n_classes
    with sns.axes_style("white", rc=STYLE):
        size = (across, across * sheet.shape[0] / sheet.shape[1] + (0.3 if titles is not None else 0))
        fig = Figure(figsize=size, layout="constrained")
        show_sheet(fig.subplots(), sheet, centres, titles)
    return fig


def sheet_of(images, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The grid as one picture, and the x of the centre of each class's column.

    Parameters
    ----------
    images, n_classes
        As in `image_grid`.
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
    sheet = np.ones((ipc * (height + gap) - gap, n_classes * (width + gap) - gap, channels))
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
