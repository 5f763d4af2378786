"""Phase 1: condense a training set T into a synthetic set S by gradient matching (Algorithm 1)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from . import how, networks, where
from .augment import siamese_for
from .checks import check_number
from .coreset import check_ipc, random
from .data import Data, SyntheticSet, check_pair, write_atomically
from .gradients import Recorder, Resident, batch_gradient, class_gradients, products, recordable
from .memory import Memory
from .recipe import OutOfTime, Recipe, device_of, generator, late, progress_bar
from .what import WHAT, union

# The released scripts' mixed mini-batches for the inter-class gradient, and the real images of each class from which
# BatchNorm's running statistics are taken before each update.
MIXED_REAL, MIXED_IMAGES, BATCHNORM_IMAGES = 1024, 256, 16
STREAMS = ("batches", "mixed", "augment", "validation", "shuffle")
CHECKPOINT_FORMAT = "gmlib-checkpoint-2"

Watch = Callable[[int, int, int, where.Losses], None]


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
    watch: Watch | None = None,
) -> SyntheticSet:
    """Learn `recipe.ipc` images per class of `data` (Algorithm 1, Section 2 and 3).

    data: its images' dtype (float32, or float64 to check) is the dtype of the run.
    device: None takes CUDA where there is one, else the CPU.
    checkpoint: a file that holds the state after some update of S, written every `checkpoint_seconds`, at `deadline` and at
        the end. Where it exists the run goes on from it and ends bit-identical, on one machine, to a run never interrupted.
    snapshots: numbers of outer iterations, 0 to K, after which S is kept in the result's `snapshots`; a run that goes on from
        a checkpoint has those before it only if they were asked for then.
    deadline: time.monotonic() after which the run stops with OutOfTime, at the end of an inner iteration.
    watch: called with k, t, i, (L(S, theta), L(T, theta)) before (i = 0) and after every step of theta; it costs as much as
        the overfitting test, whose batch of real images it sees, and changes nothing.

    Returns S with `history`, one dict for each outer iteration: k, loss (mean matching loss over t), theta_steps, seconds and
    detections ([t, i, L(S, theta), L(T, theta)] wherever overfitting was seen). One seed, one machine's CPU: the same bits.

    Raises ValueError for a recipe that does not fit the data or a checkpoint of another run, before any work;
    Diverged where the matching loss is no longer finite; OutOfTime at the deadline.
    """
    check(data, recipe, snapshots)
    device = device_of(device)
    saved = _Checkpoint(checkpoint, data, recipe)
    with products(recipe.precision):
        return _algorithm_1(data.to(device), recipe, saved, progress, snapshots, checkpoint_seconds, deadline, watch)


def _algorithm_1(
    data: Data,
    recipe: Recipe,
    saved: _Checkpoint,
    progress: bool,
    snapshots: Collection[int],
    checkpoint_seconds: float,
    deadline: float | None,
    watch: Watch | None,
) -> SyntheticSet:
    """`condense` on checked input, where the data lie; comments name the lines of Algorithm 1."""
    device, C, K = data.train_images.device, data.n_classes, recipe.outer_loops
    T, zeta = recipe.schedule()
    memory = memory_for_matching(recipe, C, device)

    S = initial(data, recipe).requires_grad_()  # line 1: (C*ipc, channels, height, width)
    labels = torch.arange(C, device=device).repeat_interleave(recipe.ipc)
    optimise_S = torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images)
    weights = class_weights(data, recipe)
    theta, record = Resident(device, recipe.lr_network, recipe.momentum_network), Recorder(device)
    k0, kept, history = saved.restore(S, optimise_S)
    losses = _Losses(S)

    bar = progress_bar(f"{recipe.method} ipc {recipe.ipc}", K * T, "update", progress, initial=k0 * T + saved.log.t)
    for k in range(k0, K):  # line 2: outer loop, one network each
        network, optimise_theta = theta.start(fresh_network(data, recipe, k))  # line 3: theta_0 ~ P_theta0
        log = saved.resume(network, optimise_theta)
        if k in snapshots and log.t == 0:
            kept[k] = S.detach().clone()

        for t in range(log.t, T):  # line 4: inner loop
            begun = time.monotonic()
            streams = streams_of(recipe, k, t)
            for _ in range(recipe.zeta_S):  # Eq. 10; the paper finds one update at each theta best
                B = sample(data, recipe, streams)  # lines 5-6
                loss, S.grad, gS, gT = match(network, S, labels, B, weights, recipe, k, memory, record)  # lines 7-8
                optimise_S.step()  # line 9
                losses.add(t, loss)
            at_end, stop = t == T - 1, late(deadline)
            due = stop or saved.age() > checkpoint_seconds  # what is written has been looked at
            if at_end or due or not record.possible:
                wrong = losses.read(log.losses)
                if wrong is not None:
                    raise saved.diverged(_as_set(losses.last_good, labels, data, recipe, history), network, gS, gT, k, wrong)
            if not at_end:  # after the last update of S theta would move for nothing: it is drawn anew
                most, see = where.steps(recipe.where, t, zeta), watch and partial(watch, k, t)
                now = S.detach()
                taken, seen = move(network, optimise_theta, now, labels, data, recipe, most, streams, see, record)  # lines 10-13
                log.theta_steps += taken
                log.detections += [[t, *seen]] if seen else []
            log.t, log.seconds = t + 1, log.seconds + time.monotonic() - begun

            done = k + at_end
            if at_end:
                history.append(log.entry(k))
                bar.set_postfix(loss=f"{history[-1]['loss']:.4g}", refresh=False)
            bar.update()
            stop = stop and done < K
            if due or done == K:
                inside = (log, network, optimise_theta) if done == k else None
                saved.write(S, optimise_S, done, kept, history, inside)
            if stop:
                bar.close()
                raise OutOfTime(f"out of time after {done} of {K} outer iterations: run again to " + saved.whereabouts())
    bar.close()
    if K in snapshots:
        kept[K] = S.detach().clone()
    return _as_set(S, labels, data, recipe, history, kept)  # output


def losses_on_the_way(
    data: Data,
    recipe: Recipe,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Condense, and note the losses at every theta (Figure 3): columns k, t, i, loss_S, loss_T (nats).

    i = 0 is theta right after S was updated at t, i the theta after i steps; S is updated at the last one next.
    loss_T is measured on one batch of real images for each t, as the overfitting test does. Raises as `condense` does.
    """
    rows: list[tuple[float, ...]] = []
    condense(
        data, recipe, device, progress=progress, deadline=deadline,
        watch=lambda k, t, i, losses: rows.append((k, t, i, *losses)),
    )  # fmt: skip
    return pd.DataFrame(rows, columns=["k", "t", "i", "loss_S", "loss_T"])


def pulls(
    data: Data,
    recipe: Recipe,
    S: SyntheticSet | None = None,
    *,
    k: int = 0,
    device: torch.device | str | None = None,
) -> pd.DataFrame:
    """How hard each part of the matching loss pulls at S, at every t of outer iteration k, while S itself is held.

    The parts are D's terms, within classes and across them as `recipe.what` says. S: None takes S_0. theta is trained on S
    between the t as `recipe.where` says.

    Columns: t; steps, of theta so far; loss_S, L(S, theta) in nats; what, how: the part; gradient, the norm of S's gradients that
    it compares, over classes and layers; loss, its matching loss with lambda in it; pull, the norm of that loss's gradient with
    respect to S, per normalised pixel; step, lr_images * pull / |S|: how far, as a share of S, the part alone would move it in
    one step without momentum. Raises ValueError before any work, as `condense` does, and for inter_batches="sampled", whose
    batches are no class's. Source: Eq. 6 and 9, along lines 4 to 13.
    """
    check(data, recipe)
    check_number("k", k, least=0, whole=True)
    if S is not None:
        check_pair(S, data)
        if len(S.labels) != data.n_classes * recipe.ipc:
            raise ValueError(f"the set has {S.ipc} images per class and the recipe {recipe.ipc}: make one with ipc={S.ipc}")
    if recipe.inter_batches != "classes":
        raise ValueError('pulls compares the gradients of class batches: take a recipe with inter_batches="classes"')
    data = data.to(device_of(device))
    x = (initial(data, recipe) if S is None else S.images.to(data.train_images)).detach().requires_grad_()
    labels = torch.arange(data.n_classes, device=x.device).repeat_interleave(recipe.ipc)
    both = ("intra", "inter")
    levels = {"multi": both, "interleaved": (both[k % 2],)}.get(recipe.what, (recipe.what,))
    parts = [(what, how.spell([term])) for what in levels for term in how.parse(recipe.how)]
    memory, weights = memory_for_matching(recipe, data.n_classes, x.device), class_weights(data, recipe)
    length = x.detach().norm().item()
    with products(recipe.precision):
        theta = Resident(x.device, recipe.lr_network, recipe.momentum_network)
        network, optimiser = theta.start(fresh_network(data, recipe, k))
        (T, zeta), taken, rows = recipe.schedule(), 0, []
        for t in range(T):
            streams = streams_of(recipe, k, t)
            B, loss_S = sample(data, recipe, streams), loss_on(network, x, labels)
            for what, term in parts:
                loss, dS, gS, _ = match(network, x, labels, B, weights, replace(recipe, what=what, how=term), k, memory)
                compared = union(gS, weights) if what == "inter" else gS
                pull, size = dS.norm().item(), get_total_norm(compared).item()
                rows.append((t, taken, loss_S, what, term, size, loss.item(), pull, recipe.lr_images * pull / length))
            if t < T - 1:
                taken += move(
                    network, optimiser, x.detach(), labels, data, recipe, where.steps(recipe.where, t, zeta), streams
                )[0]  # fmt: skip
    return pd.DataFrame(rows, columns=["t", "steps", "loss_S", "what", "how", "gradient", "loss", "pull", "step"])


class Batches(NamedTuple):
    """What one update of S sees beside S itself."""

    real: list[Tensor]  # C mini-batches of T, one of each class: (batch_real, channels, height, width)
    transforms: list[Callable[[Tensor], Tensor]]  # C augmentations, each for both sides of its class
    mixed_T: tuple[Tensor, Tensor] | None  # real images of any class, and labels
    mixed_S: Tensor | None  # indices of condensed images of any class


def sample(data: Data, recipe: Recipe, streams: dict[str, torch.Generator]) -> Batches:
    """Lines 5-6: mini-batches of each class of T; S is small and is taken whole."""
    real = data.sample_classes(recipe.batch_real, streams["batches"])
    transforms = [siamese_for(recipe.augment, data.name, streams["augment"]) for _ in real]
    if recipe.inter_batches == "classes":
        return Batches(real, transforms, None, None)
    chosen = torch.randperm(data.n_classes * recipe.ipc, generator=streams["mixed"])[:MIXED_IMAGES]
    return Batches(real, transforms, draw(data, MIXED_REAL, streams["mixed"]), chosen.to(data.train_labels.device))


def match(
    network: nn.Module,
    S: Tensor,
    labels: Tensor,
    B: Batches,
    weights: Tensor,
    recipe: Recipe,
    k: int,
    memory: Memory,
    record: Recorder | None = None,
) -> tuple[Tensor, Tensor, how.Gradient, how.Gradient]:
    """Lines 7-8: the matching loss, a scalar, its gradient with respect to S, and the class gradients of S and T.

    record: on CUDA, the `Recorder` of a run whose tensors stay; what is returned is then overwritten by the next call.
    """
    D, loss_of = how.distance(recipe.how), WHAT[recipe.what]
    lam = len(B.real) if recipe.lam is None else recipe.lam
    sizes, precision = [len(real) for real in B.real], recipe.precision
    networks.freeze_batchnorm(network, torch.cat([real[:BATCHNORM_IMAGES] for real in B.real]))

    def lines_7_and_8(real: Tensor, *mixed_batches: Tensor) -> tuple[Tensor, Tensor, how.Gradient, how.Gradient]:
        chunk = memory.chunk
        B_S = [transform(images) for transform, images in zip(B.transforms, S.split(recipe.ipc), strict=True)]
        B_T = [transform(images) for transform, images in zip(B.transforms, real.split(sizes), strict=True)]
        gS = class_gradients(network, B_S, create_graph=True, chunk=chunk)  # line 7
        gT = class_gradients(network, B_T, chunk=chunk, precision=precision)
        mixed = None
        if mixed_batches:
            some, x, y = mixed_batches
            mixed = (
                batch_gradient(network, S[some], labels[some], create_graph=True, chunk=chunk),
                batch_gradient(network, x, y, chunk=chunk, precision=precision),
            )
        loss = loss_of(D, gS, gT, lam=lam, weights=weights, k=k, mixed=mixed)  # line 8
        (dS,) = torch.autograd.grad(loss, S)
        return loss.detach(), dS, [g.detach() for g in gS], gT

    inputs = (torch.cat(B.real), *(() if B.mixed_T is None else (B.mixed_S, *B.mixed_T)))
    for attempt in memory:  # again, in smaller passes, where memory runs out
        with attempt:
            if record is None or recipe.augment != "none":  # other transformations each time
                found = lines_7_and_8(*inputs)
            else:
                found = record(("match", memory.chunk, recipe.what == "interleaved" and k % 2), lines_7_and_8, *inputs)
    return found


def memory_for_matching(recipe: Recipe, n_classes: int, device: torch.device) -> Memory:
    """How far the passes of `match` may be split: on a GPU all classes may be in one, on a CPU it is a class at most."""
    largest = max(recipe.batch_real, recipe.ipc, MIXED_REAL if recipe.inter_batches == "sampled" else 0)
    return Memory(largest=largest * n_classes if recordable(device) else largest)


def move(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    S: Tensor,
    labels: Tensor,
    data: Data,
    recipe: Recipe,
    most: int,
    streams: dict[str, torch.Generator],
    see: Callable[[int, where.Losses], None] | None = None,
    record: Recorder | None = None,
) -> tuple[int, tuple[int, float, float] | None]:
    """Lines 10-13: `most` steps of theta on S, or fewer where overfitting ends them; `see` is told of the losses at each.

    Returns the number of steps taken and, where overfitting was seen, (i, L(S, theta), L(T, theta)) at that step.
    """
    stop = where.STOP.get(recipe.where)
    look, on_S = bool(stop or see), bool(see) or recipe.where in where.NEED_S
    validation = draw(data, where.VALIDATION_BATCH, streams["validation"]) if look else None
    now = measure(network, S, labels, validation, on_S) if look else None
    if see:
        see(0, now)
    memory = networks.memory_for(network, recipe.batch_theta)
    for i in range(most):  # line 11
        networks.train_one_pass(network, optimiser, S, labels, recipe.batch_theta, streams["shuffle"], memory, record)  # line 12
        if look:
            before, now = now, measure(network, S, labels, validation, on_S)
        if see:
            see(i + 1, now)
        if stop and stop(before, now, recipe.gap):
            return i + 1, (i, now.S if on_S else loss_on(network, S, labels), now.T)
    return most, None


# ---- the pieces ------------------------------------------------------------------------------------------


def check(data: Data, recipe: Recipe, snapshots: Collection[int] = ()) -> None:
    """ValueError where `recipe` cannot be run on `data`; nothing is computed or written."""
    if not (isinstance(data, Data) and isinstance(recipe, Recipe)):
        raise ValueError(f"condense takes data and a recipe, not {type(data).__name__} and {type(recipe).__name__}")
    if recipe.dataset != data.name:
        raise ValueError(f"the recipe is for {recipe.dataset!r} but the data are {data.name!r}: make it with dataset=data.name")
    check_ipc(data, recipe.ipc)
    fresh_network(data, recipe, 0)  # the architecture must fit the images
    if not isinstance(snapshots, Collection) or isinstance(snapshots, str):
        raise ValueError(f"snapshots={snapshots!r} does not fit: give a list of numbers of outer iterations")
    outside = [k for k in snapshots if not 0 <= k <= recipe.outer_loops]
    if outside:
        raise ValueError(f"snapshot {outside[0]} is outside 0..{recipe.outer_loops}, the outer iterations of this run")


def initial(data: Data, recipe: Recipe) -> Tensor:
    """S_0: N(0, 1) in normalised pixels, or random real images. (C*ipc, channels, height, width), sorted by class."""
    if recipe.init == "real":
        return torch.cat(
            [random(data.of_class(c), recipe.ipc, generator(recipe.seed, "init", c)) for c in range(data.n_classes)]
        ).clone()
    noise = torch.randn(data.n_classes * recipe.ipc, *data.shape, generator=generator(recipe.seed, "init"))
    return noise.to(data.train_images)


def class_weights(data: Data, recipe: Recipe) -> Tensor:
    """Eq. 5's weight of each class, (C,), with sum 1."""
    return data.class_weights if recipe.class_weights == "share" else torch.full_like(data.class_weights, 1 / data.n_classes)


def streams_of(recipe: Recipe, k: int, t: int) -> dict[str, torch.Generator]:
    """One stream for each purpose: runs that differ only in `where` still meet the same networks and real batches."""
    return {use: generator(recipe.seed, use, k, t) for use in STREAMS}


def fresh_network(data: Data, recipe: Recipe, k: int) -> nn.Module:
    """The network of outer iteration k, on the data's device and in its dtype."""
    return networks.build(
        recipe.network, data.shape, data.n_classes, width=recipe.width, depth=recipe.depth,
        generator=generator(recipe.seed, "network", k), device=data.train_images.device, dtype=data.train_images.dtype,
    )  # fmt: skip


def draw(data: Data, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """min(n, N) training images of any class with their labels, without replacement."""
    chosen = torch.randperm(len(data.train_labels), generator=rng)[:n].to(data.train_labels.device, non_blocking=True)
    return data.train_images[chosen], data.train_labels[chosen]


def measure(
    network: nn.Module, S: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor], on_S: bool = True
) -> where.Losses:
    """L(S, theta), NaN unless `on_S`, and L(T, theta) on one batch of real images."""
    return where.Losses(loss_on(network, S, labels) if on_S else math.nan, loss_on(network, *validation))


@torch.no_grad()
def loss_on(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """L in nats, as in training (BatchNorm goes by the batch)."""
    network.train()
    return F.cross_entropy(network(x), y).item()


def _as_set(
    S: Tensor, labels: Tensor, data: Data, recipe: Recipe, history: list[dict], kept: dict[int, Tensor] | None = None
) -> SyntheticSet:
    return SyntheticSet(
        images=S.detach().clone(), labels=labels, classes=data.classes, mean=data.mean, std=data.std,
        recipe=recipe.as_dict(), history=history, snapshots=kept or {},
    )  # fmt: skip


# ---- stopping and going on -------------------------------------------------------------------------------


class Diverged(FloatingPointError):
    """The matching loss, or its gradient, became NaN or infinite. Attributes: k, t, layer, S (the last good set).

    On CUDA, where losses are looked at once for each k, the layer is as seen then.
    """

    def __init__(self, message: str, k: int, t: int, layer: str, S: SyntheticSet):
        super().__init__(message)
        self.k, self.t, self.layer, self.S = k, t, layer, S


class _Losses:
    """The matching losses since they were last read. Reading waits for the device, so on CUDA it is done once for each k."""

    def __init__(self, S: Tensor):
        self.S, self.last_good = S, S.detach().clone()
        self.unread: list[tuple[int, Tensor]] = []

    def add(self, t: int, loss: Tensor) -> None:
        """The loss that led to S as it is now; NaN where S is no longer finite."""
        self.unread.append((t, torch.where(self.S.isfinite().all(), loss, math.nan)))

    def read(self, into: list[float]) -> int | None:
        """Add them to a list, and return the first t whose loss is not finite, if there is one."""
        values = torch.stack([loss for _, loss in self.unread]).tolist()
        wrong = next((t for (t, _), value in zip(self.unread, values, strict=True) if not math.isfinite(value)), None)
        into += values
        self.unread = []
        if wrong is None:
            self.last_good = self.S.detach().clone()
        return wrong


@dataclass
class _Log:
    """What an outer iteration has come to after t inner ones."""

    t: int = 0
    losses: list[float] = field(default_factory=list)
    theta_steps: int = 0
    detections: list[list] = field(default_factory=list)
    seconds: float = 0.0

    def entry(self, k: int) -> dict:
        """Its line in the history."""
        mean = sum(self.losses) / len(self.losses)
        return {
            "k": k, "loss": mean, "theta_steps": self.theta_steps, "seconds": self.seconds, "detections": self.detections
        }  # fmt: skip


class _Checkpoint:
    """S, its momentum, the snapshots and the history after k outer iterations, in one safetensors file.

    Written inside an outer iteration it holds theta and its momentum too. No random state: every inner iteration draws from
    streams of its own (`recipe.generator`).
    """

    def __init__(self, path: str | os.PathLike | None, data: Data, recipe: Recipe):
        self.path = Path(path) if path is not None else None
        self.written = time.monotonic()
        self.run = {"recipe": recipe.as_dict(), "data": data.fingerprint, "dtype": str(data.train_images.dtype)}
        self.tensors: dict[str, Tensor] = {}
        self.state = {"k": 0, "history": [], "inside": {}}
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of the checkpoint {self.path} does not exist: make it first")
        if self.path.is_dir():
            raise ValueError(f"the checkpoint {self.path} is a folder: name a file in it")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):  # said before the work, not after it
            raise PermissionError(f"the folder of the checkpoint {self.path} cannot be written to: choose another")
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the checkpoint {self.path} is damaged ({error}): delete it to start the run afresh") from error
        if metadata.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(f"{self.path} is not a checkpoint of gmlib: choose another file")
        run, self.state = json.loads(metadata["run"]), json.loads(metadata["state"])
        if run != self.run:
            there, here = ({**r["recipe"], "data": r["data"], "dtype": r["dtype"]} for r in (run, self.run))
            name = next(name for name in {**here, **there} if there.get(name) != here.get(name))
            values = "other data" if name == "data" else f"{name}={there.get(name)!r} instead of {here.get(name)!r}"
            raise ValueError(f"the checkpoint {self.path} is of another run, with {values}: delete it or choose another file")

    def restore(self, S: Tensor, optimiser: torch.optim.Optimizer) -> tuple[int, dict[int, Tensor], list[dict]]:
        """Put the saved S and momentum in place; returns the next k, the snapshots and the history."""
        if "S" in self.tensors:
            with torch.no_grad():
                S.copy_(self.tensors["S"])
        if "momentum" in self.tensors:
            optimiser.state[S]["momentum_buffer"] = self.tensors["momentum"].to(S)
        kept = {
            int(name.removeprefix("snapshot-")): tensor.to(S.device)
            for name, tensor in self.tensors.items()
            if name.startswith("snapshot-")
        }
        return self.state["k"], kept, self.state["history"]

    @property
    def log(self) -> _Log:
        """Of the outer iteration that the checkpoint broke off; empty where there is none."""
        return _Log(**self.state["inside"])

    def resume(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> _Log:
        """Put the saved theta and momentum in place, once; returns the log of the iteration so far."""
        log = self.log
        if log.t:
            with torch.no_grad():
                for name, value in _state(network).items():
                    value.copy_(self.tensors[f"theta.{name}"])
            for name, parameter in network.named_parameters():
                if f"momentum.{name}" in self.tensors:
                    optimiser.state[parameter]["momentum_buffer"] = self.tensors[f"momentum.{name}"].to(parameter)
        self.tensors, self.state["inside"] = {}, {}
        return log

    def age(self) -> float:
        """Seconds since the last write."""
        return time.monotonic() - self.written

    def whereabouts(self) -> str:
        """How the run can go on, after "run again to"."""
        return f"go on from {self.path}" if self.path else "begin anew, with a checkpoint this time: without one nothing is kept"

    def write(
        self,
        S: Tensor,
        optimiser: torch.optim.Optimizer,
        k: int,
        kept: dict[int, Tensor],
        history: list[dict],
        inside: tuple[_Log, nn.Module, torch.optim.Optimizer] | None,
    ) -> None:
        """Replace the file by the state after k outer iterations, and `inside` the next, whole or not at all."""
        if self.path is None:
            return
        tensors = {"S": S.detach()} | {f"snapshot-{at}": images for at, images in kept.items()}
        momentum = optimiser.state[S].get("momentum_buffer")
        if momentum is not None:
            tensors["momentum"] = momentum
        state = {"k": k, "history": history, "inside": {}}
        if inside:
            log, network, optimise_theta = inside
            state["inside"] = asdict(log)
            tensors |= {f"theta.{name}": value.detach() for name, value in _state(network).items()}
            for name, parameter in network.named_parameters():
                momentum = optimise_theta.state[parameter].get("momentum_buffer")
                if momentum is not None:
                    tensors[f"momentum.{name}"] = momentum
        metadata = {"format": CHECKPOINT_FORMAT, "run": json.dumps(self.run), "state": json.dumps(state)}
        write_atomically(self.path, to_safetensors({name: x.cpu().contiguous() for name, x in tensors.items()}, metadata))
        self.written = time.monotonic()

    def diverged(
        self, S: SyntheticSet, network: nn.Module, gS: how.Gradient, gT: how.Gradient, k: int, t: int
    ) -> Diverged:
        """The error for a matching loss that is no longer finite; the last good S goes beside the checkpoint."""
        distances = how.layer_distances(S.recipe["how"], gS, gT)
        layers = [name for name, _ in networks.matched(network)]
        bad = [layer for layer, d in zip(layers, distances, strict=True) if not d.isfinite().all()]
        # Where every distance is finite, its gradient was not; the largest distance is then the likeliest source.
        layer = bad[0] if bad else max(zip(distances, layers, strict=True), key=lambda pair: pair[0].sum().item())[1]
        saved = ""
        if self.path is not None:
            rescue = self.path.with_name(f"{self.path.stem}-last-good.safetensors")
            S.save(rescue)
            saved = f"; the last good S is saved as {rescue}"
        return Diverged(
            f"the matching loss is not finite at outer iteration k={k}, t={t}, layer {layer}: "
            f"lower lr_images or lr_network{saved}",
            k, t, layer, S,
        )  # fmt: skip


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return dict(network.named_parameters()) | dict(network.named_buffers())
