"""What happens while S is updated: losses along the path, the pull of each part of the loss, angles and lengths of gradients."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .. import how, networks
from ..algorithm import State, algorithm_1
from ..checks import check_number
from ..condensation import check
from ..data import Data
from ..lines import (
    class_weights,
    fresh_network,
    gradients,
    initial,
    loss_on,
    matching_loss,
    runner_for,
    sample,
    streams_of,
)
from ..recipe import Recipe
from ..runtime import OutOfTime, deadline_passed, device_of, progress_bar
from ..sets import SyntheticSet, check_pair
from ..speed.precision import matmul_precision
from ..what import union


def losses_along(
    data: Data,
    recipe: Recipe,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Condense, and note the losses at every theta (Figure 3).

    Parameters
    ----------
    data, recipe, device, progress, deadline
        As in `gmlib.condense`.

    Returns
    -------
    DataFrame
        Columns k, t, i, loss_S, loss_T (nats). i = 0 is theta right after the update of S at t, i the theta after i steps;
        S is updated next at the last one. loss_T is measured on one batch of real images for each t, as the overfitting
        test does.

    Raises
    ------
    ValueError
        If the recipe does not fit the data.
    OutOfTime
        At the deadline.
    """
    check(data, recipe)
    data = data.to(device_of(device))
    total = recipe.outer_loops * recipe.schedule()[0]
    rows: list[tuple[float, ...]] = []
    with progress_bar(recipe.method, total, "update", progress) as bar, matmul_precision(recipe.precision):
        for update in algorithm_1(data, recipe, State.initial(data, recipe), watch=True):
            bar.update()
            path = update.path.losses if update.path else []
            rows += [(update.k, update.t, i, *losses) for i, losses in enumerate(path)]
            if deadline_passed(deadline) and bar.n < total:
                raise OutOfTime(f"out of time after {bar.n} of {total} updates of S: give it more time")
    return pd.DataFrame(rows, columns=["k", "t", "i", "loss_S", "loss_T"])


def held(data: Data, recipe: Recipe, S: Tensor, k: int) -> tuple[State, Recipe]:
    """A state and a recipe that run outer iteration k alone, with S held: S has a learning rate of 0."""
    S = S.detach().clone().requires_grad_()
    return State(S, torch.optim.SGD([S], lr=0.0), k), replace(recipe, outer_loops=k + 1)


def pulls(
    data: Data,
    recipe: Recipe,
    S: SyntheticSet | None = None,
    *,
    k: int = 0,
    device: torch.device | str | None = None,
) -> pd.DataFrame:
    """How far each part of the matching loss moves S, at every t of outer iteration k, while S itself is held.

    The parts are the terms of D, within classes and across them as `recipe.what` says. theta is trained on S between the t as
    `recipe.where` says.

    Parameters
    ----------
    data : Data
    recipe : Recipe
        With `inter_batches="classes"`: sampled batches are not of one class.
    S : SyntheticSet, optional
        None takes S_0.
    k : int
        Outer iteration; K or more is allowed, which gives a network that the run never meets.
    device : torch.device or str, optional
        None takes CUDA where there is one, else the CPU.

    Returns
    -------
    DataFrame
        One row per t and part. t; steps of theta so far; loss_S, L(S, theta) in nats; what, how: the part; gradient, the norm of
        S's gradients that the part compares, over classes and layers; loss, its matching loss, lambda included; pull, the norm of
        that loss's gradient with respect to S, per normalised pixel; step, lr_images * pull / |S|: how far the part alone would
        move S in one step without momentum, as a share of S.

    Raises
    ------
    ValueError
        If the inputs do not fit together; before any work.

    Source: Eq. 6 and 9, along lines 4 to 13.
    """
    check(data, recipe)
    check_number("k", k, least=0, whole=True)
    if S is not None:
        check_pair(S, data)
        if len(S.labels) != data.n_classes * recipe.ipc:
            raise ValueError(
                f"the set has {S.ipc} images per class and the recipe {recipe.ipc}: make one with ipc={S.ipc}"
            )
    if recipe.inter_batches != "classes":
        raise ValueError('pulls compares the gradients of class batches: take a recipe with inter_batches="classes"')
    data = data.to(device_of(device))
    state, only_k = held(data, recipe, initial(data, recipe) if S is None else S.images.to(data.train_images), k)
    x, labels, weights = state.S, data.labels_of(recipe.ipc), class_weights(data, recipe)
    both = ("intra", "inter")
    levels = {"multi": both, "interleaved": (both[k % 2],)}.get(recipe.what, (recipe.what,))
    parts = [(level, how.spell_distance([term])) for level in levels for term in how.parse_distance(recipe.how)]
    run, length = runner_for(data, recipe), x.detach().norm().item()
    rows, taken = [], 0
    with matmul_precision(recipe.precision):
        state.start(
            fresh_network(data, recipe, k), recipe
        )  # as the generator will, so that t = 0 can be looked at before
        updates = algorithm_1(data, only_k, state)
        for t in range(recipe.schedule()[0]):
            theta, B = state.theta, sample(data, recipe, streams_of(recipe, k, t))
            networks.freeze_batchnorm(theta, B.for_batchnorm)
            loss_S = loss_on(theta, x, labels)
            for attempt in run.memory:
                with attempt:
                    g = gradients(theta, x, labels, B, recipe, run.chunk)
            for level, term in parts:
                part = replace(recipe, what=level, how=term)
                loss, dS = matching_loss(g, x, weights, part, k, retain_graph=True)
                compared = union(g.detached.S, weights) if level == "inter" else g.detached.S
                pull, size = dS.norm().item(), get_total_norm(compared).item()
                rows.append(
                    (t, taken, loss_S, level, term, size, loss.item(), pull, recipe.lr_images * pull / length)
                )
            path = next(updates).path
            taken += path.steps if path else 0
    return pd.DataFrame(rows, columns=["t", "steps", "loss_S", "what", "how", "gradient", "loss", "pull", "step"])


def angles(
    S: SyntheticSet, data: Data, recipe: Recipe, k: int, *, device: torch.device | str | None = None
) -> pd.DataFrame:
    """Angle and length of gS against gT, layer by layer, where a run of `recipe` would update S in outer iteration k.

    The network, the real batches and the steps of theta are those of outer iteration k, with S held.

    Parameters
    ----------
    S : SyntheticSet
    data : Data
    recipe : Recipe
        Its `ipc` must be that of S.
    k : int
        Outer iteration. K or more gives a network that the run never meets, the same for every S of the run, so that sets can be
        compared.
    device : torch.device or str, optional
        None takes CUDA where there is one, else the CPU.

    Returns
    -------
    DataFrame
        One row per t (0 and T - 1, the first and the last update), level and matched layer: t, level, layer (the weight's
        name), cosine, ratio. Level "class": the mean over the classes of the cosine of gS_c and gT_c, and the mean of |gS_c|
        over the mean of |gT_c|. Level "union": the same of the mean gradient (Eq. 5). They are of a layer's whole gradient,
        where d1 takes every row by itself. The cosine is NaN where a gradient is zero.

    Raises
    ------
    ValueError
        If the set, the recipe and the data do not fit together; before any work.

    Source: Section 3.2, Eq. 5 to 9.
    """
    check_number("k", k, least=0, whole=True)
    check(data, recipe)
    check_pair(S, data)
    if S.ipc != recipe.ipc:
        raise ValueError(
            f"the set has {S.ipc} images per class but the recipe {recipe.ipc}: give the recipe it was made by"
        )
    data = data.to(device_of(device))
    state, only_k = held(data, recipe, S.images.to(data.train_images), k)
    weights, T = class_weights(data, recipe), recipe.schedule()[0]
    rows = []
    with matmul_precision("float32"):
        for update in algorithm_1(data, only_k, state):
            if update.t not in (0, T - 1):
                continue
            layers = [name for name, _ in networks.matched(state.theta)]
            unions = [[layer[None] for layer in union(g, weights)] for g in (update.gS, update.gT)]
            for level, pair in (("class", (update.gS, update.gT)), ("union", unions)):
                for layer, a, b in zip(layers, *pair, strict=True):
                    cosine, ratio = _cosine_and_ratio(a.flatten(1), b.flatten(1))
                    rows.append({"t": update.t, "level": level, "layer": layer, "cosine": cosine, "ratio": ratio})
    return pd.DataFrame(rows)


def _cosine_and_ratio(A: Tensor, B: Tensor) -> tuple[float, float]:
    """Mean cosine of the rows, and ratio of their mean norms. A, B: (rows, n)."""
    norm_A, norm_B = A.norm(dim=1), B.norm(dim=1)
    cosine = ((A / norm_A[:, None]) * (B / norm_B[:, None])).sum(1).mean()
    return cosine.item(), (norm_A.mean() / norm_B.mean()).item()
