"""What runs of the same seed have in common: networks, real batches, and the real gradients at t = 0.

theta_0 and the real batches depend on the seed, k and t, but not on S. At t = 0 theta was not trained on S yet, so
the real gradients of line 7 do not depend on S either. Runs that share a `Draws` compute them once. With one image
per class T is 1, and this is nearly all the work.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from .data import Data
from .lines import (
    Batches,
    Chosen,
    RealGradients,
    choose_images,
    fresh_network,
    gather,
    real_gradients,
    runner_for,
    streams_of,
)
from .networks import freeze_batchnorm
from .recipe import Recipe
from .runtime import in_time
from .speed import recording

# Runs that agree in these fields meet the same networks and the same real batches.
COMMON = (
    "dataset", "seed", "network", "width", "depth", "batch_real", "augment", "precision", "inter_batches", "zeta_S",
)  # fmt: skip


def groups(recipes: list[Recipe]) -> list[list[int]]:
    """Group the recipes that can share a `Draws`.

    Returns
    -------
    list of list of int
        Positions in ``recipes``, in the order of the first of each group.
    """
    found: dict[tuple, list[int]] = {}
    for i, recipe in enumerate(recipes):
        # A batch of mixed classes takes indices of S, which depend on its size.
        key = [getattr(recipe, name) for name in COMMON] + [recipe.ipc if recipe.inter_batches == "sampled" else 0]
        found.setdefault(tuple(key), []).append(i)
    return list(found.values())


@dataclass
class Drawn:
    """What was drawn for inner iteration (k, t).

    Attributes
    ----------
    network : nn.Module or None
        theta_0 if t is 0.
    chosen : list of Chosen
        For each of the zeta_S updates of S.
    batches : dict of int to Batches
        The mini-batches of these updates, if several runs use them.
    """

    network: nn.Module | None
    chosen: list[Chosen]
    batches: dict[int, Batches] = field(default_factory=dict)


class Draws:
    """Networks, mini-batches and real gradients of one run, or of several that agree in ``COMMON``.

    On CUDA a thread draws for the next inner iteration while the device works.

    Parameters
    ----------
    data : Data
        On the device to compute on.
    recipe : Recipe
        Of one of the runs.
    n_runs : int
        How many runs take turns. Each finishes its outer iteration before the next run begins it. The number may
        change between outer iterations.
    outer_loops : int, optional
        The largest K of the runs; None for that of ``recipe``. Nothing beyond it is drawn ahead.

    Attributes
    ----------
    shared_seconds : float
        Time spent on what all runs share, so far.
    shared_seconds_before : float
        The same before the current outer iteration.
    """

    def __init__(self, data: Data, recipe: Recipe, n_runs: int = 1, outer_loops: int | None = None):
        self.data, self.recipe, self.n_runs = data, recipe, n_runs
        self.runner = runner_for(data, recipe)
        self.shared_seconds = self.shared_seconds_before = 0.0
        self.outer_loops = outer_loops or recipe.outer_loops
        self.kept: dict[tuple[int, int], Drawn] = {}  # the current (k, t), and (k, 0) for the runs that follow
        self.ahead: dict[tuple[int, int], Future[Drawn]] = {}
        self.thread = ThreadPoolExecutor(1) if recording.recordable(data.train_images.device) else None

    def network(self, k: int) -> nn.Module:
        """A new theta_0 of outer iteration k, on the data's device and in its dtype (line 3)."""
        with self._shared(0):
            network = self._at(k, 0).network
            assert network is not None
            network.to(self.data.train_images)
        return copy.deepcopy(network) if self.n_runs > 1 else network

    def batches(self, k: int, t: int, update: int) -> Batches:
        """The mini-batches for one of the zeta_S updates of S in inner iteration (k, t) (lines 5 and 6)."""
        with self._shared(t):
            drawn = self._at(k, t)
            B = drawn.batches.get(update) or gather(self.data, drawn.chosen[update])
            if t == 0 and self.n_runs > 1:
                drawn.batches[update] = B
        return B

    def real_gradients(self, theta: nn.Module, B: Batches, t: int) -> RealGradients:
        """`gmlib.lines.real_gradients`. At t = 0 they are computed for the first run, and kept for the others.

        Parameters
        ----------
        theta : nn.Module
        B : Batches
            From `batches`.
        t : int
        """
        if B.gT is not None:
            freeze_batchnorm(theta, B.for_batchnorm)
            return B.gT
        with self._shared(t):
            gT = real_gradients(theta, B, self.recipe, self.runner)
            if t == 0 and self.n_runs > 1:
                # On CUDA the next call overwrites the tensors.
                B.gT = gT = RealGradients(*([layer.clone() for layer in part] for part in gT))
        return gT

    def _at(self, k: int, t: int) -> Drawn:
        key = (k, t)
        if key not in self.kept:
            ahead = self.ahead.pop(key, None)
            drawn = ahead.result() if ahead else self._draw(k, t)
            self.kept = {at: it for at, it in self.kept.items() if at == (k, 0) and self.n_runs > 1} | {key: drawn}
            self._draw_ahead(k, t)
            if t == 0:
                self.shared_seconds_before = self.shared_seconds
        return self.kept[key]

    def _draw(self, k: int, t: int) -> Drawn:
        """The random choices of inner iteration (k, t). They are made on the CPU."""
        streams = streams_of(self.recipe, k, t)
        network = fresh_network(self.data, self.recipe, k, "cpu") if t == 0 else None
        updates = in_time(range(self.recipe.zeta_S))
        return Drawn(network, [choose_images(self.data, self.recipe, streams) for _ in updates])

    def _draw_ahead(self, k: int, t: int) -> None:
        """Let the thread draw for the next inner iteration."""
        if self.thread is None:
            return
        T = self.recipe.schedule()[0]
        following = (k, t + 1) if t < T - 1 else (k + 1, 0)
        self.ahead = {at: future for at, future in self.ahead.items() if at[0] >= k}
        if following[0] < self.outer_loops and following not in self.ahead:
            self.ahead[following] = self.thread.submit(self._draw, *following)

    @contextmanager
    def _shared(self, t: int) -> Iterator[None]:
        """Count the time of a block as shared if t is 0."""
        started = time.monotonic()
        yield
        if t == 0:
            self.shared_seconds += time.monotonic() - started
