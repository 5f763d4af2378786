"""Measurements while S is updated: losses along the path, pulls of the loss terms, angles between gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checks import require

require("pandas", "analysis")

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .. import how, networks
from ..algorithm import State, algorithm_1
from ..checkpoint import Progress
from ..checks import check_number
from ..condensation import check, follow, with_precisions
from ..data import Data
from ..lines import (
    class_weights,
    fresh_network,
    gradients,
    initial,
    loss_on,
    matching_loss,
    real_gradients,
    runner_for,
    sample,
    streams_of,
)
from ..recipe import Recipe
from ..runtime import check_deadline, device_of, in_time, progress_bar, time_limit
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
    """Condense, and measure the losses at every theta (Figure 3).

    Parameters
    ----------
    data, recipe, device, progress, deadline
        As in `gmlib.condense`.

    Returns
    -------
    DataFrame
        Columns k, t, i, loss_S, loss_T. Losses are in nats. i counts the steps of theta since the update of S at t.
        The next update of S uses the last theta. loss_T is measured on one batch of real images for each t, as the
        overfitting test does.

    Raises
    ------
    ValueError
        If the recipe does not fit the data.
    Diverged
        If the matching loss is no longer finite.
    OutOfTime
        At the deadline.

    Source
    ------
    Figure 3, Section 3.3.
    """
    check_deadline(deadline)
    check(data, recipe)
    data = data.to(device_of(device))
    (recipe,) = with_precisions(data, [recipe])
    total = recipe.outer_loops * recipe.schedule()[0]
    run = Progress(State.initial(data, recipe))
    rows: list[tuple[float, ...]] = []
    bar = progress_bar(recipe.method, total, "update", progress)
    with bar, matmul_precision(recipe.precision), time_limit(deadline):
        for update in follow(data, recipe, run, watch=True):
            bar.update()
            path = update.path.losses if update.path else []
            rows += [(update.k, update.t, i, *losses) for i, losses in enumerate(path)]
    return pd.DataFrame(rows, columns=["k", "t", "i", "loss_S", "loss_T"])


def constant_S(data: Data, recipe: Recipe, S: Tensor, k: int) -> tuple[State, Recipe]:
    """A state and a recipe that run only outer iteration k. The optimiser does not hold S, so S does not change."""
    S = S.detach().clone().requires_grad_()
    idle = torch.optim.SGD([torch.zeros((), requires_grad=True)])
    return State(S, idle, k), replace(recipe, outer_loops=k + 1, zeta_S=1)


def pulls(
    data: Data,
    recipe: Recipe,
    S: SyntheticSet | None = None,
    *,
    k: int = 0,
    device: torch.device | str | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """How far each part of the matching loss moves S, at every t of outer iteration k. S itself does not change.

    The parts are the terms of D, within classes and across them as ``recipe.what`` says. theta is trained on S
    between the updates as ``recipe.where`` says.

    Parameters
    ----------
    data : Data
    recipe : Recipe
        With ``inter_batches="classes"``, since sampled batches are not of one class.
    S : SyntheticSet, optional
        None takes S_0.
    k : int
        Outer iteration. K or more gives a network that the run never uses.
    device : torch.device or str, optional
        None takes CUDA if there is a GPU, else the CPU.
    deadline : float, optional
        In the unit of ``time.monotonic()``.

    Returns
    -------
    DataFrame
        One row per t and part, with these columns:

        - t
        - steps: steps of theta so far
        - loss_S: L(S, theta), in nats
        - what, how: the part
        - gradient: norm of the gradients of S that the part compares, over classes and layers
        - loss: the part's matching loss, including lambda
        - pull: norm of the gradient of this loss with respect to S, per normalised pixel
        - step: lr_images * pull / norm(S). One step without momentum, of this part alone, moves S by this share.

    Raises
    ------
    ValueError
        If the inputs do not fit together. This is checked before any work.
    OutOfTime
        At the deadline.

    Source
    ------
    Eq. 6 and Eq. 9; lines 4 to 13 of Algorithm 1.
    """
    check(data, recipe)
    check_number("k", k, least=0, whole=True)
    check_deadline(deadline)
    if S is not None:
        _check_set(S, data, recipe)
    if recipe.inter_batches != "classes":
        raise ValueError('pulls compares the gradients of class batches: take a recipe with inter_batches="classes"')
    data = data.to(device_of(device))
    (recipe,) = with_precisions(data, [recipe])
    state, only_k = constant_S(
        data, recipe, initial(data, recipe) if S is None else S.images.to(data.train_images), k
    )
    x = state.S
    labels = data.labels_of(recipe.ipc)
    weights = class_weights(data, recipe)
    both = ("intra", "inter")
    levels = {"multi": both, "interleaved": (both[k % 2],)}.get(recipe.what, (recipe.what,))
    parts = [(level, how.spell_distance([term])) for level in levels for term in how.parse_distance(recipe.how)]
    run = runner_for(data, recipe)
    norm_of_S = x.detach().norm().item()
    rows = []
    steps = 0
    T = recipe.schedule()[0]
    with matmul_precision(recipe.precision), time_limit(deadline):
        state.start(fresh_network(data, recipe, k), recipe)  # line 3, as the generator does, to measure before t = 0
        updates = algorithm_1(data, only_k, state)
        for t in in_time(range(T)):
            theta = state.theta
            B = sample(data, recipe, streams_of(recipe, k, t))
            loss_S = loss_on(theta, x, labels)  # in training mode, so BatchNorm is frozen after it
            gT = real_gradients(theta, B, recipe, run)
            for attempt in run.memory:
                with attempt:
                    found = []
                    g = gradients(theta, x, labels, B, gT, recipe, run.chunk)
                    for level, term in parts:
                        part = replace(recipe, what=level, how=term)
                        loss, dS = matching_loss(g, x, weights, part, k, retain_graph=True)
                        compared = union(g.detached.S, weights) if level == "inter" else g.detached.S
                        gradient = get_total_norm(compared).item()
                        pull = dS.norm().item()
                        step = recipe.lr_images * pull / norm_of_S
                        found.append((t, steps, loss_S, level, term, gradient, loss.item(), pull, step))
            rows += found
            del g  # its graph is large
            if t < T - 1:  # the generator takes the steps of theta; after the last update there are none
                path = next(updates).path
                steps += path.steps if path else 0
    return pd.DataFrame(rows, columns=["t", "steps", "loss_S", "what", "how", "gradient", "loss", "pull", "step"])


def angles(
    S: SyntheticSet,
    data: Data,
    recipe: Recipe,
    k: int,
    *,
    device: torch.device | str | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Angle and length of gS compared with gT, layer by layer, in outer iteration k of a run of ``recipe``.

    The network, the real batches and the steps of theta are those of the run. S does not change.

    Parameters
    ----------
    S : SyntheticSet
    data : Data
    recipe : Recipe
        With the ``ipc`` of S.
    k : int
        Outer iteration. K or more gives a network that the run never uses. It is the same for every S of the run,
        so sets can be compared.
    device : torch.device or str, optional
        None takes CUDA if there is a GPU, else the CPU.
    deadline : float, optional
        In the unit of ``time.monotonic()``.

    Returns
    -------
    DataFrame
        One row per t, level and matched layer, with these columns:

        - t: 0 and T - 1, the first and the last update
        - level: "class" or "union"
        - layer: the name of the weight
        - cosine: mean cosine of gS_c and gT_c over the classes; NaN if a gradient is zero
        - ratio: mean norm of gS_c divided by mean norm of gT_c

        "union" takes the mean gradients over the classes (Eq. 5) in place of gS_c and gT_c. Both columns take the
        whole gradient of a layer, while d1 compares each row separately.

    Raises
    ------
    ValueError
        If the set, the recipe and the data do not fit together. This is checked before any work.
    OutOfTime
        At the deadline.

    Source
    ------
    Eq. 5 to Eq. 9, Section 3.2.
    """
    check_number("k", k, least=0, whole=True)
    check_deadline(deadline)
    check(data, recipe)
    _check_set(S, data, recipe)
    data = data.to(device_of(device))
    (recipe,) = with_precisions(data, [recipe])
    state, only_k = constant_S(data, recipe, S.images.to(data.train_images), k)
    weights = class_weights(data, recipe)
    T = recipe.schedule()[0]
    rows = []
    with matmul_precision("float32"), time_limit(deadline):
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


def _check_set(S: SyntheticSet, data: Data, recipe: Recipe) -> None:
    check_pair(S, data)
    if S.counts != (recipe.ipc,) * data.n_classes:
        raise ValueError(
            f"the set has {S.ipc} images per class but the recipe {recipe.ipc}: give a recipe with ipc={S.ipc}"
        )


def angles_along(
    sets: Mapping[int, SyntheticSet],
    data: Data,
    recipe: Recipe,
    *,
    device: torch.device | str | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """`angles` of the sets along a run, all at one network that the run never uses.

    Parameters
    ----------
    sets : dict
        Number of outer iterations -> S after them.
    data, recipe, device, deadline
        As in `angles`.

    Returns
    -------
    DataFrame
        The columns of `angles`, and k, the number of outer iterations.
    """
    at: dict[str, Any] = {"k": recipe.outer_loops, "device": device, "deadline": deadline}
    return pd.concat(angles(S, data, recipe, **at).assign(k=k) for k, S in sets.items())


def _cosine_and_ratio(A: Tensor, B: Tensor) -> tuple[float, float]:
    """Mean cosine of the rows, and ratio of their mean norms. A, B: (rows, n)."""
    norm_A, norm_B = A.norm(dim=1), B.norm(dim=1)
    cosine = ((A / norm_A[:, None]) * (B / norm_B[:, None])).sum(1).mean()
    return cosine.item(), (norm_A.mean() / norm_B.mean()).item()
