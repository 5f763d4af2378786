"""Phase 1: `condense` runs Algorithm 1 with checkpoints, a deadline, a progress bar, snapshots and a check for NaN."""

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
from .speed.precision import matmul_precision


class Diverged(FloatingPointError):
    """The matching loss, or its gradient, became NaN or infinite.

    Attributes
    ----------
    k, t : int
        Outer and inner iteration.
    layer : str
        The weight whose distance is not finite, else the one with the largest distance. On CUDA losses are read once per
        outer iteration, and the layer is the one seen then.
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
    """Learn `recipe.ipc` images per class of `data` by gradient matching (Algorithm 1).

    Parameters
    ----------
    data : Data
        The training set T. The dtype of its images (float32, or float64 to check) is the dtype of the run.
    recipe : Recipe
        All choices of the run.
    device : torch.device or str, optional
        None takes CUDA where there is one, else the CPU.
    checkpoint : path, optional
        A file for the state of the run. If it exists, the run goes on from it and ends with the same bits, on one machine, as
        a run that was never interrupted.
    progress : bool
        Show a progress bar.
    snapshots : collection of int
        Numbers of outer iterations, 0 to K, after which S is kept in the result's `snapshots`.
    checkpoint_seconds : float
        Write the checkpoint when it is older than this, after an update of S; also at `deadline` and at the end.
    deadline : float, optional
        `time.monotonic()` after which the run stops with OutOfTime, at the end of an inner iteration.

    Returns
    -------
    SyntheticSet
        Its `history` has one dict per outer iteration: k, loss (mean matching loss over t), theta_steps, seconds and
        detections ([t, i, L(S, theta), L(T, theta)] for each overfitting that was seen). The same seed gives the same bits on
        one machine's CPU.

    Raises
    ------
    ValueError
        If the recipe does not fit the data or the checkpoint is of another run; before any work.
    Diverged
        If the matching loss is no longer finite.
    OutOfTime
        At the deadline.

    Source: Algorithm 1, Sections 2 and 3.
    """
    check(data, recipe, snapshots)
    device = device_of(device)
    file = Checkpoint(checkpoint, data, recipe)
    data = data.to(device)
    run = file.progress(data, recipe)
    state, K, T = run.state, recipe.outer_loops, recipe.schedule()[0]
    if state.k in snapshots and not state.t:
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
                go_on = f"go on from {file.path}" if file.path else "begin anew, with a checkpoint this time"
                raise OutOfTime(f"out of time after {state.k} of {K} outer iterations: run again to {go_on}")
    return as_set(state.S, data, recipe, run.history, run.snapshots)


def follow(data: Data, recipe: Recipe, run: Progress, rescue: Path | None = None) -> Iterator[Update]:
    """Algorithm 1 from `run.state`, with its history kept in `run`.

    Losses are read at the end of an outer iteration, on a CPU after every update; reading one makes a GPU wait.

    Raises
    ------
    Diverged
        If a loss that was read is not finite; see `read_losses`.
    """
    begun = time.monotonic()
    for update in algorithm_1(data, recipe, run.state):
        run.unread += [(update.t, loss) for loss in update.losses]
        now, ended = run.now, run.state.t == 0
        now.t = update.t + 1
        if update.path is not None:
            now.theta_steps += update.path.steps
            now.detections += [[update.t, *update.path.detection]] if update.path.detection else []
        if ended or run.state.S.device.type != "cuda":
            read_losses(data, recipe, run, update, rescue)
        now.seconds += time.monotonic() - begun
        if ended:
            run.history.append(now.entry(update.k))
            run.now = OuterIteration()
        yield update
        begun = time.monotonic()


def read_losses(data: Data, recipe: Recipe, run: Progress, update: Update, rescue: Path | None = None) -> None:
    """Move the unread losses into the history.

    Raises
    ------
    Diverged
        If one is not finite. The last good S is saved beside `rescue`, if that is given.
    """
    if not run.unread:
        return
    values = torch.stack([loss for _, loss in run.unread]).tolist()
    bad_t = next((t for (t, _), value in zip(run.unread, values, strict=True) if not math.isfinite(value)), None)
    run.now.losses += values
    run.unread = []
    if bad_t is not None:
        raise _diverged(as_set(run.last_good, data, recipe, run.history), run.state, update, bad_t, rescue)
    run.last_good = run.state.S.detach().clone()


def check(data: Data, recipe: Recipe, snapshots: Collection[int] = ()) -> None:
    """Raise ValueError if `recipe` cannot be run on `data`. Nothing is computed or written."""
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
    outside = [k for k in snapshots if not 0 <= k <= recipe.outer_loops]
    if outside:
        raise ValueError(
            f"snapshot {outside[0]} is outside 0..{recipe.outer_loops}, the outer iterations of this run"
        )


def as_set(
    S: Tensor, data: Data, recipe: Recipe, history: list[dict], snapshots: dict[int, Tensor] | None = None
) -> SyntheticSet:
    """A copy of S, as the set that `condense` returns."""
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
    """The error for a matching loss that is not finite; the last good S is saved beside the checkpoint."""
    distances = how.layer_distances(S.recipe["how"], update.gS, update.gT)
    layers = [name for name, _ in networks.matched(state.theta)]
    bad = [layer for layer, d in zip(layers, distances, strict=True) if not d.isfinite().all()]
    # Where every distance is finite, its gradient was not; the largest distance is then the likeliest source.
    layer = bad[0] if bad else max(zip(distances, layers, strict=True), key=lambda pair: pair[0].sum().item())[1]
    saved = ""
    if checkpoint is not None:
        rescue = checkpoint.with_name(f"{checkpoint.stem}-last-good.safetensors")
        S.save(rescue)
        saved = f"; the last good S is saved as {rescue}"
    k = update.k
    return Diverged(
        f"the matching loss is not finite at outer iteration k={k}, t={t}, layer {layer}: lower lr_images or lr_network{saved}",
        k,
        t,
        layer,
        S,
    )
