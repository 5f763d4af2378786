"""Phase 1: `condense` and `condense_together` run Algorithm 1.

They add checkpoints, a deadline, a progress bar, snapshots and a check for NaN.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import how, networks
from .algorithm import State, Update, algorithm_1
from .checkpoint import Checkpoint, OuterIteration, Progress
from .checks import check_function, check_number, first_sentence
from .data import Data, check_ipc
from .draws import Draws, groups
from .lines import fresh_network, sample, streams_of
from .recipe import Recipe
from .runtime import (
    OutOfTime,
    check_deadline,
    deadline_passed,
    device_of,
    generator,
    plain_torch,
    progress_bar,
    saving_on_signals,
    time_limit,
)
from .sets import SyntheticSet
from .speed import recording
from .speed.gradients import attention
from .speed.precision import fastest_precision, matmul_precision

log = logging.getLogger(__name__)

GRACE = 2.0  # seconds for which an inner iteration may go on after the deadline. A longer one is lost
MOST_SNAPSHOTS = 10_000  # they are kept in memory, and in every checkpoint
BLOWN_UP = 100  # pixels of S that are larger than those of the data by this factor are worth a warning
_MEASURED: dict[tuple, str] = {}  # kind of work -> its fastest precision, so that all runs of a process agree


class Diverged(FloatingPointError):
    """The matching loss or its gradient became NaN or infinite.

    Attributes
    ----------
    k, t : int
        Outer and inner iteration of the first such update.
    layer : str
        The first weight with a distance that is not finite, or else the weight with the largest distance. On CUDA
        losses are read later, so the layer is that of a later update.
    S : SyntheticSet
        The last good set.
    """

    def __init__(self, message: str, k: int, t: int, layer: str, S: SyntheticSet):
        super().__init__(message)
        self.k, self.t, self.layer, self.S = k, t, layer, S


def condense(
    data: Data,
    recipe: Recipe,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    *,
    snapshots: Collection[int] = (),
    checkpoint_seconds: float = 60.0,
    deadline: float | None = None,
    each: Callable[[int, SyntheticSet], None] | None = None,
) -> SyntheticSet:
    """Learn ``recipe.ipc`` images per class of ``data`` by gradient matching.

    Parameters
    ----------
    data : Data
        The training set T. The run has the dtype of its images: float32, or float64 for checks.
    recipe : Recipe
        All choices of the run.
    device : torch.device or str, optional
        None takes CUDA if it is available, else the CPU.
    checkpoint : path, optional
        A file for the state of the run. If it exists, the run continues from it. It then ends with the same bits as
        an uninterrupted run on the same machine's CPU; on CUDA the two agree to rounding.
    progress : bool
        Show a progress bar.
    snapshots : collection of int
        Numbers of outer iterations, 0 to K. After each of them S is kept in the result's ``snapshots``.
    checkpoint_seconds : float
        Write the checkpoint after an update of S if it is older than this. It is also written at the deadline, at
        the end, and at Ctrl-C or SIGTERM, which then stop the run.
    deadline : float, optional
        A ``time.monotonic()``. The run stops at the end of the inner iteration in which it passes. If that takes
        longer than some seconds, the run stops inside, and goes on later from the inner iteration before.
    each : callable, optional
        Called after every outer iteration, with their number and a copy of the set. On CUDA the run waits for the
        copy. An error that it raises ends the run.

    Returns
    -------
    SyntheticSet
        Its ``history`` has one dict per outer iteration: k, loss (mean matching loss over t), theta_steps, seconds
        and detections (``[t, i, L(S, theta), L(T, theta)]`` for each overfitting that was seen). The same seed gives
        the same bits on the same machine's CPU with the same number of threads.

    Raises
    ------
    ValueError
        Before any work, if the recipe does not fit the data or the checkpoint belongs to another run.
    Diverged
        If the matching loss is no longer finite.
    OutOfTime
        At the deadline.

    Source
    ------
    Algorithm 1, Sections 2 and 3.
    """
    check_function("each", each, "a number and a set")
    (S,) = condense_together(
        data, [recipe], device, checkpoint, progress,
        snapshots=snapshots, checkpoint_seconds=checkpoint_seconds, deadline=deadline,
        each=each and (lambda i, k, S: each(k, S)),
    )  # fmt: skip
    return S


@plain_torch()
def condense_together(
    data: Data,
    recipes: Sequence[Recipe],
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    progress: bool = True,
    *,
    snapshots: Collection[int] | Sequence[Collection[int]] = (),
    checkpoint_seconds: float = 60.0,
    deadline: float | None = None,
    finished: Callable[[int, SyntheticSet], None] | None = None,
    each: Callable[[int, int, SyntheticSet], None] | None = None,
) -> list[SyntheticSet]:
    """Condense one set for each recipe, and compute once what several recipes share.

    Recipes that agree in ``gmlib.draws.COMMON`` meet the same networks and the same real batches. They take turns
    with each network, and share the real gradients at t = 0. With one image per class these are nearly all the work.
    Each set has the same bits as the one that `condense` makes. Recipes that agree in less are run one group after
    another.

    Parameters
    ----------
    data : Data
        As in `condense`.
    recipes : sequence of Recipe
        All different, in any order.
    device, progress, checkpoint_seconds, deadline
        As in `condense`.
    checkpoint : path, or one for each recipe, optional
        A file for the state of all runs; else as in `condense`. A run with a file of its own can be continued alone,
        or together with others.
    snapshots : collection of int, or one for each recipe
        As in `condense`.
    finished : callable, optional
        Called with the position of a recipe and its set as soon as the set is finished. A set that was finished
        before a restart is passed again.
    each : callable, optional
        Called with the position of a recipe, and then as in `condense`.

    Returns
    -------
    list of SyntheticSet
        In the order of the recipes.

    Raises
    ------
    ValueError
        Before any work, if a recipe does not fit the data, two recipes are equal, or the checkpoint belongs to other
        runs.
    Diverged
        If a matching loss is no longer finite. The other sets are finished first, and passed to ``finished``.
    OutOfTime
        At the deadline.

    Source
    ------
    Algorithm 1, Sections 2 and 3.
    """
    checkpoint_seconds = check_number("checkpoint_seconds", checkpoint_seconds, least=0)
    check_deadline(deadline)
    check_function("finished", finished, "a number and a set")
    check_function("each", each, "two numbers and a set")
    if not isinstance(recipes, Collection) or isinstance(recipes, str):
        raise ValueError(f"recipes is a {type(recipes).__name__}: give a list of Recipe")
    recipes = list(recipes)
    if not recipes:
        raise ValueError("there is no recipe: give at least one")
    kept = _snapshots_of(snapshots, len(recipes))
    for recipe, numbers in zip(recipes, kept, strict=True):
        check(data, recipe, numbers)
    if len(set(recipes)) < len(recipes):
        raise ValueError("two recipes are equal: give each once")
    device = device_of(device)
    paths = checkpoint if isinstance(checkpoint, Sequence) and not isinstance(checkpoint, str) else [checkpoint]
    if len(paths) not in (1, len(recipes)):
        raise ValueError(f"checkpoint has {len(paths)} files for {len(recipes)} recipes: give one, or one for each")
    named = [os.path.realpath(path) for path in paths if isinstance(path, str | os.PathLike)]
    if len(set(named)) < len(named):
        raise ValueError("two recipes have the same checkpoint: give each its own file, or one file for all")
    owned = [recipes] if len(paths) == 1 else [[recipe] for recipe in recipes]
    files = [Checkpoint(path, data, own) for path, own in zip(paths, owned, strict=True)]
    data = data.to(device)
    settled = iter(with_precisions(data, [recipe for file in files for recipe in file.recipes]))
    for file in files:
        file.recipes = [next(settled) for _ in file.recipes]
    work = _Work(data, files, kept, checkpoint_seconds, deadline, finished, each, progress)
    signals = saving_on_signals(any(file.path for file in files))
    with work.bar, signals, time_limit(deadline, work.out_of_time, GRACE):
        for group in groups(work.recipes):
            work.do(group)
    if work.diverged:
        raise work.diverged[min(work.diverged)]
    return [work.set_of(i) for i in range(len(recipes))]


def _snapshots_of(snapshots: Collection[int] | Sequence[Collection[int]], n: int) -> list[Collection[int]]:
    """The snapshots of each of n recipes. None keeps none."""
    snapshots = () if snapshots is None else snapshots
    if isinstance(snapshots, Sequence) and not isinstance(snapshots, str | range):
        several = [isinstance(each, Collection) and getattr(each, "ndim", 1) > 0 for each in snapshots]
        if any(several):
            if not all(several) or len(several) != n:
                raise ValueError(f"snapshots has {len(several)} entries for {n} recipes: give one for each")
            return list(snapshots)
    return [snapshots] * n  # type: ignore[list-item]


class _Work:
    """The runs of `condense_together`."""

    def __init__(
        self,
        data: Data,
        files: list[Checkpoint],
        snapshots: list[Collection[int]],
        checkpoint_seconds: float,
        deadline: float | None,
        finished: Callable[[int, SyntheticSet], None] | None,
        each: Callable[[int, int, SyntheticSet], None] | None,
        progress: bool,
    ):
        self.data, self.files, self.snapshots = data, files, snapshots
        self.on_disk = [file for file in files if file.path]  # all are written together
        self.recipes = [recipe for file in files for recipe in file.recipes]
        self.checkpoint_seconds, self.deadline, self.finished, self.each = (
            checkpoint_seconds,
            deadline,
            finished,
            each,
        )
        self.runs = [run for file in files for run in file.progress(data)]
        self.last: dict[int, Update] = {}  # the last update of each run
        self.diverged = {i: self._diverged_before(i) for i, run in enumerate(self.runs) if run.diverged}
        lengths = [(recipe.outer_loops, recipe.schedule()[0]) for recipe in self.recipes]
        self.total = sum(K for K, _ in lengths)
        done = sum(run.state.k * T + run.state.t for run, (_, T) in zip(self.runs, lengths, strict=True))
        first, several = self.recipes[0], f"{len(self.recipes)} sets"
        what = f"{first.method if len(self.recipes) == 1 else several} ipc {first.ipc}"
        self.bar = progress_bar(what, sum(K * T for K, T in lengths), "update", progress, initial=done)

    def do(self, group: list[int]) -> None:
        """Run the recipes of a group. In every outer iteration they take turns."""
        for i in group:
            self._keep(i)
            if self._is_done(i):  # before a restart
                self._finish(i)
        live = [i for i in group if not self._is_done(i)]
        with matmul_precision(self.recipes[group[0]].precision):
            for i in live:
                if self.runs[i].state.t > 0 and len(live) > 1:
                    self._catch_up(i)
            if live := [i for i in live if not self._is_done(i)]:
                self._take_turns(live)

    def _take_turns(self, live: list[int]) -> None:
        """Run these to the end. In every outer iteration each has its turn with the network."""
        K = max(self.recipes[i].outer_loops for i in live)
        draws = Draws(self.data, self.recipes[live[0]], len(live), K)
        share_theta([self.runs[i].state for i in live], [self.recipes[i] for i in live], draws)
        updates = {i: follow(self.data, self.recipes[i], self.runs[i], draws, self._rescue(i)) for i in live}
        while updates:
            k = min(self.runs[i].state.k for i in updates)
            taking_turns = [i for i in updates if self.runs[i].state.k == k]
            draws.n_runs = len(taking_turns)
            for i in taking_turns:
                with self._noting_divergence(i):
                    self._outer_iteration(i, k, updates[i])
            for i in [i for i in updates if self._is_done(i)]:
                updates.pop(i)

    def _catch_up(self, i: int) -> None:
        """Finish the outer iteration that run i is in, alone. Its theta was trained, so it shares nothing now."""
        run = self.runs[i]
        draws = Draws(self.data, self.recipes[i])
        with self._noting_divergence(i):
            self._outer_iteration(i, run.state.k, follow(self.data, self.recipes[i], run, draws, self._rescue(i)))
        del run.state.theta, run.state.optimiser_theta

    @contextmanager
    def _noting_divergence(self, i: int) -> Iterator[None]:
        """Note an error of run i, so that the others go on."""
        try:
            yield
        except Diverged as error:
            self.diverged[i] = error
            self.runs[i].diverged = (str(error), error.k, error.t, error.layer)

    def _outer_iteration(self, i: int, k: int, updates: Iterator[Update]) -> None:
        """Finish outer iteration k of run i."""
        run = self.runs[i]
        while run.state.k == k:
            self.last[i] = self._next(run.state, updates)
            out_of_time = deadline_passed(self.deadline)
            if run.state.t == 0:
                if run.history:
                    self.bar.set_postfix(loss=f"{run.history[-1]['loss']:.4g}", refresh=False)
                self._keep(i)
                if self.each and run.state.S.isfinite().all():  # if not, the next loss says so
                    history = [{**entry} for entry in run.history]
                    self.each(i, run.state.k, as_set(run.state.S, self.data, self.recipes[i], history))
            self.bar.update()
            if out_of_time or self._is_done(i) or self._is_due():
                self._write()
                if i in self.diverged:
                    return
            if self._is_done(i):
                self._finish(i)
            if out_of_time and not all(map(self._is_done, range(len(self.runs)))):
                raise OutOfTime(self.out_of_time())

    def _next(self, state: State, updates: Iterator[Update]) -> Update:
        """The next update. If time runs out inside, the checkpoint gets the state before it."""
        before = _copy(state) if self.on_disk else None
        try:
            return next(updates)
        except OutOfTime:
            if before:
                _restore(state, *before)
                self._write()
            raise

    def _is_due(self) -> bool:
        return bool(self.on_disk) and self.on_disk[0].age() > self.checkpoint_seconds

    def _is_done(self, i: int) -> bool:
        return self.runs[i].state.k == self.recipes[i].outer_loops or i in self.diverged

    def _keep(self, i: int) -> None:
        """Keep a snapshot of S if one is asked for here."""
        run = self.runs[i]
        if run.state.t == 0 and run.state.k in self.snapshots[i]:
            run.snapshots[run.state.k] = run.state.S.detach().clone()

    def _write(self) -> None:
        """Read the losses of all runs, and write the checkpoint."""
        for i, update in self.last.items():
            if i not in self.diverged:
                with self._noting_divergence(i):
                    read_losses(self.data, self.recipes[i], self.runs[i], update, rescue=self._rescue(i))
        runs = iter(self.runs)
        for file in self.files:
            file.write([next(runs) for _ in file.recipes])

    def _diverged_before(self, i: int) -> Diverged:
        """The error of run i, as the checkpoint keeps it."""
        run = self.runs[i]
        assert run.diverged is not None
        message, k, t, layer = run.diverged
        S = as_set(run.last_good, self.data, self.recipes[i], run.history)
        return Diverged(f"{message}; delete {self._path(i)} to try again", k, t, layer, S)

    def _finish(self, i: int) -> None:
        if i in self.diverged:
            return
        largest = self.runs[i].state.S.detach().abs().max().item()
        if largest > BLOWN_UP * self.usual:
            log.warning(
                "%s has pixels up to %.2g, but the real images only up to %.2g: lower lr_images, or look for classes "
                "of constant images", self.recipes[i].method, largest, self.usual,
            )  # fmt: skip
        if self.finished:
            self.finished(i, self.set_of(i))

    @cached_property
    def usual(self) -> float:
        """The largest pixel of the real images, without a copy of them."""
        return max(abs(bound.item()) for bound in self.data.train_images.aminmax())

    def set_of(self, i: int) -> SyntheticSet:
        """The set of run i."""
        run = self.runs[i]
        return as_set(run.state.S, self.data, self.recipes[i], run.history, run.snapshots)

    def _rescue(self, i: int) -> Path | None:
        """Where the last good S of run i goes if its loss is no longer finite."""
        path = self._path(i)
        number = f"-{i}" if len(self.runs) > len(self.files) else ""
        return path and path.with_name(f"{path.stem}{number}-last-good.safetensors")

    def _path(self, i: int) -> Path | None:
        """The checkpoint of run i."""
        return self.files[min(i, len(self.files) - 1)].path

    def out_of_time(self) -> str:
        """What `OutOfTime` says."""
        paths = ", ".join(str(file.path) for file in self.files if file.path)
        advice = f"run again to continue from {paths}" if paths else "give more time or a checkpoint"
        if not self.last:
            advice = "give time for one inner iteration at least"
        return f"out of time after {sum(run.state.k for run in self.runs)} of {self.total} outer iterations: {advice}"


def _optimisers(state: State) -> list[torch.optim.Optimizer]:
    return [state.optimiser_S, *([state.optimiser_theta] if state.t else [])]  # at t = 0 line 3 makes another theta


def _tensors(state: State) -> list[Tensor]:
    parameters = [p for each in _optimisers(state) for group in each.param_groups for p in group["params"]]
    return [*parameters, *(state.theta.buffers() if state.t else ())]


def _copy(state: State) -> tuple[list[Tensor], list[dict]]:
    """What an inner iteration changes of a state."""
    tensors = [tensor.detach().clone() for tensor in _tensors(state)]
    return tensors, [copy.deepcopy(each.state_dict()) for each in _optimisers(state)]


@torch.no_grad()
def _restore(state: State, tensors: list[Tensor], optimisers: list[dict]) -> None:
    for tensor, before in zip(_tensors(state), tensors, strict=True):
        tensor.copy_(before)
    for optimiser, its_state in zip(_optimisers(state), optimisers, strict=True):
        optimiser.load_state_dict(its_state)


def with_precisions(data: Data, recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes with a measured precision in place of "auto". Each kind of work is measured once in a process.

    Parameters
    ----------
    data : Data
        On the device to compute on.
    recipes : sequence of Recipe
    """
    settled = []
    for recipe in recipes:
        if recipe.precision == "auto":
            sizes = (recipe.network, recipe.width, recipe.depth, recipe.batch_real)
            kind = (*sizes, data.shape, data.n_classes, data.train_images.dtype, data.train_images.device)
            if kind not in _MEASURED:
                B = sample(data, recipe, streams_of(recipe, 0, 0))
                _MEASURED[kind] = fastest_precision(fresh_network(data, recipe, 0), B.images[0].split(B.sizes))
            recipe = replace(recipe, precision=_MEASURED[kind])
        settled.append(recipe)
    return settled


def share_theta(states: Sequence[State], recipes: Sequence[Recipe], draws: Draws) -> None:
    """Let the runs of a group share one network on CUDA, where recorded steps hold its tensors.

    The runs take turns, and each overwrites its weights at the start of an outer iteration. So all must be at t = 0.
    """
    if len(states) > 1 and recording.recordable(states[0].S.device):
        theta = draws.network(min(state.k for state in states))
        for state, recipe in zip(states, recipes, strict=True):
            state.start(theta, recipe)


def follow(
    data: Data,
    recipe: Recipe,
    run: Progress,
    draws: Draws | None = None,
    rescue: Path | None = None,
    *,
    watch: bool = False,
) -> Iterator[Update]:
    """Run Algorithm 1 from ``run.state``, and keep the history in ``run``.

    Losses are read after every update. On CUDA those of an outer iteration are read at the end of the next, so that
    the host never waits for the device.

    Parameters
    ----------
    data : Data
        On the device to compute on.
    recipe : Recipe
    run : Progress
        Changed in place.
    draws : Draws, optional
        As in `gmlib.algorithm.algorithm_1`.
    rescue : path, optional
        See `read_losses`.
    watch : bool
        See `gmlib.algorithm.algorithm_1`.

    Yields
    ------
    Update

    Raises
    ------
    Diverged
        If a loss that was read is not finite.
    """
    draws = draws or Draws(data, recipe)
    deferred = recording.recordable(run.state.S.device)
    started, shared = time.monotonic(), draws.shared_seconds
    for update in algorithm_1(data, recipe, run.state, draws, watch=watch):
        now, ended = run.begun[-1], run.state.t == 0
        now.unread += [(update.t, recording.Later(loss)) for loss in update.losses]
        if update.path is not None:
            now.theta_steps += update.path.steps
            if update.path.detection is not None:
                now.detections.append([update.t, *update.path.detection])
        now.seconds += time.monotonic() - started - (draws.shared_seconds - shared)
        if update.t == 0:
            now.seconds += (draws.shared_seconds - draws.shared_seconds_before) / draws.n_runs
        if ended:
            now.S = run.state.S.detach().clone()
            run.begun.append(OuterIteration(run.state.k))
        if ended or not deferred:
            read_losses(data, recipe, run, update, delay=int(deferred), rescue=rescue)
        yield update
        started, shared = time.monotonic(), draws.shared_seconds


def read_losses(
    data: Data, recipe: Recipe, run: Progress, update: Update, *, delay: int = 0, rescue: Path | None = None
) -> None:
    """Read losses from the device, and move finished outer iterations into the history.

    Parameters
    ----------
    data : Data
    recipe : Recipe
    run : Progress
        Changed in place.
    update : Update
        The last one.
    delay : int
        Leave the losses of so many finished outer iterations, and of the unfinished one after them, for later.
    rescue : path, optional
        A file. If a loss is not finite, the last good S is saved there.

    Raises
    ------
    Diverged
        If a loss is not finite.
    """
    for iteration in run.begun[: -1 - delay] if delay else list(run.begun):
        values = [loss.read() for _, loss in iteration.unread]
        bad = [t for (t, _), value in zip(iteration.unread, values, strict=True) if not math.isfinite(value)]
        iteration.losses += values
        iteration.unread = []
        if bad:
            S = as_set(run.last_good, data, recipe, run.history)
            raise _diverged(S, run.state, update, iteration.k, bad[0], rescue)
        if iteration.S is not None:
            run.history.append(iteration.entry)
            run.begun.remove(iteration)
            run.last_good = iteration.S
        elif values:
            run.last_good = run.state.S.detach().clone()


def check(data: Data, recipe: Recipe, snapshots: Collection[int] | None = ()) -> None:
    """Check that a recipe can be run on the data. Nothing is written.

    Parameters
    ----------
    data : Data
    recipe : Recipe
    snapshots : collection of int, optional
        None if nothing is condensed, as for a coreset. The network is then only built.

    Raises
    ------
    ValueError
        If something does not fit.
    """
    if not (isinstance(data, Data) and isinstance(recipe, Recipe)):
        raise ValueError(f"condense takes data and a recipe, not {type(data).__name__} and {type(recipe).__name__}")
    if recipe.dataset != data.name:
        raise ValueError(
            f"the recipe is for {recipe.dataset!r} but the data are {data.name!r}: make it with dataset=data.name"
        )
    try:
        check_ipc(data, recipe.ipc, from_real=recipe.init == "real")
    except ValueError as error:
        raise ValueError(f'{error}; or take init="noise" for more' if recipe.init == "real" else error) from None
    if snapshots is None:
        fresh_network(data, recipe, 0)  # the architecture must fit the images
        return
    _check_network(data, recipe)
    if not isinstance(snapshots, Collection) or isinstance(snapshots, str):
        raise ValueError(f"snapshots={snapshots!r} does not fit: give a list of numbers of outer iterations")
    if len(snapshots) > MOST_SNAPSHOTS:
        raise ValueError(f"there are {len(snapshots)} snapshots: give at most {MOST_SNAPSHOTS}")
    for k in snapshots:
        check_number("a snapshot", k, least=0, below=recipe.outer_loops + 1, whole=True)


def _check_network(data: Data, recipe: Recipe) -> None:
    """Try a network on two images. ValueError if its gradients cannot be matched, or it cannot be trained."""
    name = recipe.network
    network = fresh_network(data, recipe, 0, "cpu")
    x = torch.randn(2, *data.shape, generator=generator(recipe.seed, "try"))
    x = x.to(data.train_images.dtype).requires_grad_()
    with networks.SEEDING, torch.random.fork_rng(devices=[]):
        if recipe.batch_theta == 1 and recipe.schedule()[0] > 1 and networks.has_batchnorm(network):
            try:
                network(x[:1])
            except ValueError:
                raise ValueError(
                    f"batch_theta=1 does not fit {name}, since BatchNorm cannot normalise one image: give at least 2"
                ) from None
        if networks.is_built_in(name):
            return
        networks.freeze_batchnorm(network, x.detach())
        weights, unused = networks.matched(network), [w for w, p in networks.matched(network) if not p.requires_grad]
        try:
            if not unused:
                with attention(True):
                    loss = F.cross_entropy(network(x), torch.tensor([0, 1]))
                g = torch.autograd.grad(loss, [p for _, p in weights], create_graph=True, allow_unused=True)
                unused = [w for (w, _), layer in zip(weights, g, strict=True) if layer is None]
            if not unused:
                torch.autograd.grad(torch.stack([layer.square().sum() for layer in g]).sum(), x)
        except RuntimeError as error:
            reason = first_sentence(error)
            raise ValueError(f"the network {name!r} cannot be differentiated twice ({reason}): change it") from error
    if unused:
        raise ValueError(
            f"the weight {unused[0]} of the network {name!r} has no gradient: use it, and do not freeze it"
        )


def as_set(
    S: Tensor, data: Data, recipe: Recipe, history: list[dict], snapshots: dict[int, Tensor] | None = None
) -> SyntheticSet:
    """A copy of S as the set that `condense` returns."""
    return SyntheticSet(
        images=S.detach().clone(),
        labels=data.labels_of(recipe.ipc),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        recipe=recipe.as_dict(),
        history=history,
        snapshots=snapshots or {},
    )


def _diverged(S: SyntheticSet, state: State, update: Update, k: int, t: int, rescue: Path | None) -> Diverged:
    """The error for a matching loss of (k, t) that is not finite. The last good S is saved."""
    distances = how.layer_distances(S.recipe["how"], update.gS, update.gT)
    layers = [name for name, _ in networks.matched(state.theta)]
    bad = [layer for layer, d in zip(layers, distances, strict=True) if not d.isfinite().all()]
    # If every distance is finite, its gradient was not. The largest distance is then the likeliest source.
    layer = bad[0] if bad else max(zip(distances, layers, strict=True), key=lambda pair: pair[0].sum().item())[1]
    message = (
        f"the matching loss is not finite at outer iteration k={k}, t={t}, layer {layer}: "
        "lower lr_images or lr_network"
    )
    if rescue is not None:
        S.save(rescue)
        message += f"; the last good S is saved as {rescue}"
    return Diverged(message, k, t, layer, S)
