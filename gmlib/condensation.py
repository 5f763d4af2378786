"""Phase 1: `condense` runs Algorithm 1, with checkpoints, a deadline, a progress bar, snapshots and a NaN check."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import how, networks
from .algorithm import State, Update, algorithm_1
from .checkpoint import Checkpoint, OuterIteration, Progress
from .data import Data, check_ipc
from .lines import fresh_network
from .recipe import Recipe
from .runtime import OutOfTime, deadline_passed, device_of, progress_bar
from .sets import SyntheticSet
from .speed import recording
from .speed.precision import matmul_precision


class Diverged(FloatingPointError):
    """The matching loss or its gradient became NaN or infinite.

    Attributes
    ----------
    k, t : int
        Outer and inner iteration of the first such update.
    layer : str
        The first weight with a distance that is not finite, or else the weight with the largest distance. On CUDA
        losses are read once per outer iteration, so the layer is that of its last update.
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
        an uninterrupted run on the same machine.
    progress : bool
        Show a progress bar.
    snapshots : collection of int
        Numbers of outer iterations, 0 to K. After each of them S is kept in the result's ``snapshots``.
    checkpoint_seconds : float
        Write the checkpoint after an update of S if it is older than this. It is also written at the deadline and at
        the end.
    deadline : float, optional
        A ``time.monotonic()``. The run stops at the end of the inner iteration in which it passes.

    Returns
    -------
    SyntheticSet
        Its ``history`` has one dict per outer iteration: k, loss (mean matching loss over t), theta_steps, seconds
        and detections (``[t, i, L(S, theta), L(T, theta)]`` for each overfitting that was seen). The same seed gives
        the same bits on the same machine's CPU.

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
    check(data, recipe, snapshots)
    device = device_of(device)
    file = Checkpoint(checkpoint, data, recipe)
    data = data.to(device)
    run = file.progress(data, recipe)
    state = run.state
    K = recipe.outer_loops
    T, _ = recipe.schedule()
    if state.k in snapshots and state.t == 0:
        run.snapshots[state.k] = state.S.detach().clone()

    bar = progress_bar(f"{recipe.method} ipc {recipe.ipc}", K * T, "update", progress, initial=state.k * T + state.t)
    with bar, matmul_precision(recipe.precision):
        for update in follow(data, recipe, run, file.path):
            out_of_time = deadline_passed(deadline)
            if state.t == 0:
                bar.set_postfix(loss=f"{run.history[-1]['loss']:.4g}", refresh=False)
                if state.k in snapshots:
                    run.snapshots[state.k] = state.S.detach().clone()
            bar.update()
            if out_of_time or file.age() > checkpoint_seconds or state.k == K:
                read_losses(data, recipe, run, update, file.path)
                file.write(run)
            if out_of_time and state.k < K:
                advice = f"run again to continue from {file.path}" if file.path else "give more time or a checkpoint"
                raise OutOfTime(f"out of time after {state.k} of {K} outer iterations: {advice}")
    return as_set(state.S, data, recipe, run.history, run.snapshots)


def follow(
    data: Data, recipe: Recipe, run: Progress, rescue: Path | None = None, *, watch: bool = False
) -> Iterator[Update]:
    """Run Algorithm 1 from ``run.state``, and keep the history in ``run``.

    Losses are read after every update. On CUDA they are read at the end of an outer iteration, because the GPU
    must wait for each read.

    Parameters
    ----------
    data : Data
        On the device to compute on.
    recipe : Recipe
    run : Progress
        Changed in place.
    rescue : path, optional
        The checkpoint; see `read_losses`.
    watch : bool
        See `algorithm_1`.

    Yields
    ------
    Update

    Raises
    ------
    Diverged
        If a loss that was read is not finite.
    """
    deferred = recording.recordable(run.state.S.device)
    started = time.monotonic()
    for update in algorithm_1(data, recipe, run.state, watch=watch):
        now, ended = run.now, run.state.t == 0
        run.unread += [(update.t, loss) for loss in update.losses]
        if update.path is not None:
            now.theta_steps += update.path.steps
            if update.path.detection is not None:
                now.detections.append([update.t, *update.path.detection])
        if ended or not deferred:
            read_losses(data, recipe, run, update, rescue)
        now.seconds += time.monotonic() - started
        if ended:
            run.history.append(now.entry(update.k))
            run.now = OuterIteration()
        yield update
        started = time.monotonic()


def read_losses(data: Data, recipe: Recipe, run: Progress, update: Update, rescue: Path | None = None) -> None:
    """Move the unread losses into the history.

    Parameters
    ----------
    data : Data
    recipe : Recipe
    run : Progress
        Changed in place.
    update : Update
        The last one.
    rescue : path, optional
        The checkpoint. If a loss is not finite, the last good S is saved in the same folder.

    Raises
    ------
    Diverged
        If a loss is not finite.
    """
    if not run.unread:
        return
    values = torch.stack([loss for _, loss in run.unread]).tolist()
    bad = [t for (t, _), value in zip(run.unread, values, strict=True) if not math.isfinite(value)]
    run.now.losses += values
    run.unread = []
    if bad:
        raise _diverged(as_set(run.last_good, data, recipe, run.history), run.state, update, bad[0], rescue)
    run.last_good = run.state.S.detach().clone()


def check(data: Data, recipe: Recipe, snapshots: Collection[int] = ()) -> None:
    """Check that a recipe can be run on the data. Nothing is computed or written.

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
    check_ipc(data, recipe.ipc)
    fresh_network(data, recipe, 0)  # the architecture must fit the images
    if not isinstance(snapshots, Collection) or isinstance(snapshots, str):
        raise ValueError(f"snapshots={snapshots!r} does not fit: give a list of numbers of outer iterations")
    K = recipe.outer_loops
    outside = [k for k in snapshots if not 0 <= k <= K]
    if outside:
        raise ValueError(f"snapshot {outside[0]} does not fit: give numbers of outer iterations from 0 to {K}")


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


def _diverged(S: SyntheticSet, state: State, update: Update, t: int, checkpoint: Path | None) -> Diverged:
    """The error for a matching loss that is not finite. The last good S is saved in the folder of the checkpoint."""
    distances = how.layer_distances(S.recipe["how"], update.gS, update.gT)
    layers = [name for name, _ in networks.matched(state.theta)]
    bad = [layer for layer, d in zip(layers, distances, strict=True) if not d.isfinite().all()]
    # If every distance is finite, its gradient was not. The largest distance is then the likeliest source.
    layer = bad[0] if bad else max(zip(distances, layers, strict=True), key=lambda pair: pair[0].sum().item())[1]
    message = (
        f"the matching loss is not finite at outer iteration k={update.k}, t={t}, layer {layer}: "
        "lower lr_images or lr_network"
    )
    if checkpoint is not None:
        rescue = checkpoint.with_name(f"{checkpoint.stem}-last-good.safetensors")
        S.save(rescue)
        message += f"; the last good S is saved as {rescue}"
    return Diverged(message, update.k, t, layer, S)
