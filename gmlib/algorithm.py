"""Algorithm 1: gradient matching as a generator over its state.

::

    state = State.initial(data, recipe)
    for update in algorithm_1(data, recipe, state):
        print(update.k, update.t, update.losses)

A numbered comment names the lines of the printed algorithm. The functions of these lines are in `gmlib.lines`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .data import Data
from .draws import Draws
from .how import Gradient
from .lines import ThetaPath, class_weights, initial, match, runner_for, streams_of
from .recipe import Recipe
from .speed.recording import renew
from .speed.training import train_one_pass
from .where import steps


@dataclass(eq=False)
class State:
    """What Algorithm 1 keeps between two inner iterations. `algorithm_1` changes it in place; a checkpoint stores it.

    Attributes
    ----------
    S : Tensor
        (C*ipc, channels, height, width), a leaf that requires a gradient.
    optimiser_S : torch.optim.Optimizer
        Holds the momentum of S.
    k, t : int
        The next inner iteration: 0 <= k <= K, 0 <= t < T.
    theta : nn.Module
        The network. Line 3 sets it, so a new state has none.
    optimiser_theta : torch.optim.Optimizer
        Holds the momentum of theta. It is set together with theta.
    """

    S: Tensor
    optimiser_S: torch.optim.Optimizer
    k: int = 0
    t: int = 0
    theta: nn.Module = field(init=False, repr=False)
    optimiser_theta: torch.optim.Optimizer = field(init=False, repr=False)

    @classmethod
    def initial(cls, data: Data, recipe: Recipe) -> State:
        """The state before the first iteration. S has the device and the dtype of the data."""
        S = initial(data, recipe).requires_grad_()
        return cls(S, torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images))

    def start(self, fresh: nn.Module, recipe: Recipe) -> None:
        """Begin an outer iteration: theta gets the weights of ``fresh``, and its optimiser has no momentum."""
        theta, optimiser = getattr(self, "theta", None), getattr(self, "optimiser_theta", None)
        options = {"lr": recipe.lr_network, "momentum": recipe.momentum_network}
        self.theta, self.optimiser_theta = renew(theta, optimiser, fresh, **options)


class Update(NamedTuple):
    """What happened in inner iteration (k, t).

    Attributes
    ----------
    k, t : int
        Outer and inner iteration.
    losses : list of Tensor
        The matching loss of each of the zeta_S updates of S: scalars on the device, NaN if S is no longer finite.
    path : ThetaPath or None
        The steps of theta after the update; None after the last update of S (t = T - 1).
    gS, gT : list of Tensor
        Class gradients of the last update, (C, rows, n) per matched layer. On CUDA the next update overwrites them.
    """

    k: int
    t: int
    losses: list[Tensor]
    path: ThetaPath | None
    gS: Gradient
    gT: Gradient


def algorithm_1(
    data: Data, recipe: Recipe, state: State, draws: Draws | None = None, *, watch: bool = False
) -> Iterator[Update]:
    """Run Algorithm 1 from a state to the end.

    Parameters
    ----------
    data : Data
        T, on the device and in the dtype to compute in.
    recipe : Recipe
        All choices of the run.
    state : State
        Changed in place. A new generator continues from any state and gives the same bits on the same machine's CPU.
    draws : Draws, optional
        Shared with other runs. None draws for this run alone, with the same bits.
    watch : bool
        Measure the losses at every theta (``Update.path``). This costs time and changes nothing else.

    Yields
    ------
    Update
        One for each inner iteration.

    Source
    ------
    Algorithm 1, Sections 2 and 3.
    """
    K = recipe.outer_loops
    T, zeta = recipe.schedule()
    labels = data.labels_of(recipe.ipc)
    weights = class_weights(data, recipe)
    runner = runner_for(data, recipe)
    draws = draws or Draws(data, recipe)
    S = state.S  # 1: S_0 follows a Gaussian distribution, see State.initial
    for k in range(state.k, K):  # 2: for k = 0, ..., K - 1
        if state.t == 0:
            state.start(draws.network(k), recipe)  # 3: theta_0 ~ P_theta0
        theta, optimiser = state.theta, state.optimiser_theta
        for t in range(state.t, T):  # 4: for t = 0, ..., T - 1
            losses = []
            path = None
            for update in range(recipe.zeta_S):  # Eq. 10; the print updates S once at each theta
                B = draws.batches(k, t, update)  # 5-6: mini-batches B_c of every class c
                # 7: gT_c = grad L(B_c^T, theta); gS_c = grad L(B_c^S, theta) is part of the next step
                gT = draws.real_gradients(theta, B, t)
                # 8: loss = sum_c D(gS_c, gT_c) + lam * D(mean_c gS_c, mean_c gT_c)
                loss, S.grad, gS = match(theta, S, labels, B, gT, weights, recipe, k, runner)
                state.optimiser_S.step()  # 9: S <- S - lr_images * grad_S loss (Eq. 3)
                losses.append(torch.where(S.isfinite().all(), loss, math.nan))
            if t < T - 1:  # the last update of S is followed by a new theta
                streams = streams_of(recipe, k, t)
                images = S.detach()
                path = ThetaPath(theta, images, labels, data, recipe, streams["validation"], watch)  # 10
                for _ in range(steps(recipe.where, t, zeta)):  # 11: for i = 0, ..., zeta_theta(t) - 1
                    # 12: theta <- theta - lr_network * grad_theta L(S, theta)
                    train_one_pass(theta, optimiser, images, labels, recipe.batch_theta, streams["shuffle"], runner)
                    if path.step_overfits():  # updating until overfitting (Section 3.3)
                        break
            state.k, state.t = (k, t + 1) if t < T - 1 else (k + 1, 0)  # 13: the state moves on
            yield Update(k, t, losses, path, gS, gT.classes)
