"""What runs look like on disk: one safetensors file for runs that are made together, replaced atomically.

The tensors of run i are "i.S", "i.momentum" (of S) and "i.snapshot-<k>"; inside an outer iteration also
"i.theta.<name>" and "i.momentum.<name>". The metadata are "format", "runs" (the recipes, the data's fingerprint and
dtype), "states" (for each run k, the history, the unfinished outer iteration, and how it diverged, if it did) and
"sha256", the digest of all the rest. No random state is stored, because every inner iteration has its own streams,
see `gmlib.lines.streams_of`. Of a run that diverged only S, its snapshots and the history are kept.

Networks in training have a file of their own, see `TrainingCheckpoint`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from .algorithm import State
from .data import Data
from .files import as_path, check_tensor_path, damaged, json_digest, read_tensors, remove_leftovers, write_tensors
from .lines import fresh_network
from .recipe import Recipe
from .speed.recording import Later
from .speed.training import Training

log = logging.getLogger(__name__)

FORMAT = "gmlib-checkpoint-4"
TRAINING_FORMAT = "gmlib-training-1"
TRAINING_SECONDS = 60.0  # between two writes of networks in training, at least
ADVICE = "restart the run"
TRAINING_ADVICE = "run again"

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Detection = tuple[Count, Count, float | None, float | None]


class HistoryEntry(msgspec.Struct):
    """A finished outer iteration, in a checkpoint and in a run.json."""

    k: Count
    loss: float
    theta_steps: Count
    seconds: Seconds
    detections: list[Detection]


class Inside(msgspec.Struct, forbid_unknown_fields=True):
    """The unfinished outer iteration in a checkpoint."""

    t: Annotated[int, Meta(ge=1)]
    losses: list[float]
    theta_steps: Count
    detections: list[Detection]
    seconds: Seconds


class StoredState(msgspec.Struct):
    """A run in a checkpoint, without its tensors."""

    k: Count
    history: list[HistoryEntry]
    inside: Inside | None
    diverged: tuple[str, Count, Count, str] | None


class Runs(msgspec.Struct):
    """What the runs in a checkpoint are."""

    recipes: list[dict[str, Any]]
    data: str
    dtype: str


@dataclass(eq=False)
class OuterIteration:
    """The history of an outer iteration that is unfinished, or whose losses were not all read from the device.

    Attributes
    ----------
    k : int
    losses : list of float
        Matching losses of the updates of S.
    theta_steps : int
        Steps of theta.
    detections : list of list
        ``[t, i, L(S, theta), L(T, theta)]`` for each overfitting that was seen. A loss that is not finite is None on
        disk and in the history, because JSON has no such number.
    seconds : float
        Time spent, including drawing the network. Of the work that several runs share, each has an equal part.
    unread : list of (int, Later)
        t and matching loss of each update that was not read yet. It is empty when a checkpoint is written.
    S : Tensor or None
        A copy of S at the end; None before.
    """

    k: int
    losses: list[float] = field(default_factory=list)
    theta_steps: int = 0
    detections: list[list] = field(default_factory=list)
    seconds: float = 0.0
    unread: list[tuple[int, Later]] = field(default_factory=list)
    S: Tensor | None = None

    @property
    def so_far(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain JSON types."""
        return {
            "losses": self.losses,
            "theta_steps": self.theta_steps,
            "detections": [[t, i, *map(_finite, losses)] for t, i, *losses in self.detections],
            "seconds": self.seconds,
        }

    @property
    def entry(self) -> dict[str, Any]:
        """The entry in the history of a run."""
        so_far = self.so_far
        losses = so_far.pop("losses")
        return {"k": self.k, "loss": sum(losses) / len(losses), **so_far}


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


@dataclass
class Progress:
    """A run so far: the state of Algorithm 1, and what `gmlib.condensation` keeps with it.

    Attributes
    ----------
    state : State
    history : list of dict
        One entry for each finished outer iteration.
    begun : list of OuterIteration
        The outer iterations that are not in the history yet. The last one is unfinished.
    snapshots : dict
        {number of outer iterations: S after them}.
    last_good : Tensor
        S at the last time that losses were read and were finite.
    diverged : tuple or None
        The message, k, t and layer of a `gmlib.Diverged` that ended the run.
    """

    state: State
    history: list[dict] = field(default_factory=list)
    begun: list[OuterIteration] = field(default_factory=list)
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    diverged: tuple[str, int, int, str] | None = None
    last_good: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.last_good = self.state.S.detach().clone()
        self.begun = self.begun or [OuterIteration(self.state.k)]


class Checkpoint:
    """The checkpoint file of runs that are made together.

    Parameters
    ----------
    path : path or None
        None reads and writes nothing.
    data : Data
    recipes : sequence of Recipe

    Attributes
    ----------
    recipes : list of Recipe
        As given. But where one has precision="auto", it has the precision of the stored run, if there is one.

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        On construction, before any work, if the file cannot be used. Its folder is missing or not writable, or the
        file is damaged or belongs to other runs.
    """

    def __init__(self, path: str | os.PathLike | None, data: Data, recipes: Sequence[Recipe]):
        self.path = check_tensor_path(path) if path is not None else None
        self.written = time.monotonic()
        self.recipes = list(recipes)
        self.made_from: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.stored: list[dict[str, Any]] = []  # each fits a StoredState
        if self.path is None:
            return
        self.made_from = {"data": data.fingerprint, "dtype": str(data.train_images.dtype)}
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of the checkpoint {self.path} does not exist: create it first")
        if self.path.is_dir():
            raise ValueError(f"the checkpoint {self.path} is a folder: name a file in it")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"the folder of the checkpoint {self.path} is not writable: choose another")
        remove_leftovers(self.path.parent, self.path.name)
        if self.path.exists():
            self._read(self.path, data)

    def _read(self, path: Path, data: Data) -> None:
        self.tensors, metadata = read_tensors(path, FORMAT, ADVICE)
        try:
            there = msgspec.convert(json.loads(metadata["runs"]), Runs)
            self.stored = json.loads(metadata["states"])
            states = msgspec.convert(self.stored, list[StoredState])
        except (msgspec.MsgspecError, ValueError, KeyError) as error:
            raise damaged(path, error, ADVICE) from error
        if len(there.recipes) != len(self.recipes):
            raise ValueError(
                f"the checkpoint {path} belongs to {len(there.recipes)} runs, not {len(self.recipes)}: "
                "delete it or choose another file"
            )
        for i, stored in enumerate(there.recipes):
            if self.recipes[i].precision == "auto":
                self.recipes[i] = replace(self.recipes[i], precision=stored.get("precision", "auto"))
            here = {**self.recipes[i].as_dict(), **self.made_from}
            stored |= {"data": there.data, "dtype": there.dtype}
            differing = [name for name in {**here, **stored} if stored.get(name) != here.get(name)]
            if differing:
                name = differing[0]
                values = (
                    "other data" if name == "data" else f"{name}={stored.get(name)!r} instead of {here.get(name)!r}"
                )
                raise ValueError(
                    f"the checkpoint {path} belongs to another run, with {values}: delete it or choose another file"
                )
        try:
            if len(states) != len(self.recipes):
                raise ValueError(f"it holds {len(states)} states for {len(self.recipes)} runs")
            for i, recipe in enumerate(self.recipes):
                _check_state(states[i], self._tensors_of(i), data, recipe)
        except ValueError as error:
            raise damaged(path, error, ADVICE) from error

    def _tensors_of(self, i: int) -> dict[str, Tensor]:
        start = f"{i}."
        return {name.removeprefix(start): x for name, x in self.tensors.items() if name.startswith(start)}

    def progress(self, data: Data) -> list[Progress]:
        """The stored runs, or new ones if none are stored.

        Parameters
        ----------
        data : Data
            On the device to compute on.

        Returns
        -------
        list of Progress
        """
        runs = [Progress(State.initial(data, recipe)) for recipe in self.recipes]
        if self.stored:
            runs = [self._restored(i, run.state, data) for i, run in enumerate(runs)]
        self.tensors = {}  # they are not needed a second time
        return runs

    def _restored(self, i: int, state: State, data: Data) -> Progress:
        tensors, stored = self._tensors_of(i), self.stored[i]
        inside = stored["inside"] or {}
        state.k, state.t = stored["k"], inside.pop("t", 0)
        with torch.no_grad():
            state.S.copy_(tensors["S"])
        if "momentum" in tensors:
            state.optimiser_S.state[state.S]["momentum_buffer"] = tensors["momentum"].to(state.S)
        if state.t:
            _restore_theta(state, tensors, data, self.recipes[i])
        kept = {
            int(name.removeprefix("snapshot-")): tensor.to(state.S.device)
            for name, tensor in tensors.items()
            if name.startswith("snapshot-")
        }
        diverged = tuple(stored["diverged"]) if stored["diverged"] else None
        return Progress(state, stored["history"], [OuterIteration(state.k, **inside)], kept, diverged)

    def age(self) -> float:
        """Seconds since the last write."""
        return time.monotonic() - self.written

    def write(self, runs: Sequence[Progress]) -> None:
        """Replace the file by the state of these runs, atomically. All their losses must have been read."""
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {}
        states = []
        for i, run in enumerate(runs):
            tensors |= {f"{i}.{name}": tensor for name, tensor in _run_tensors(run).items()}
            continues = run.state.t > 0 and not run.diverged
            inside = {"t": run.state.t, **run.begun[-1].so_far} if continues else None
            states.append({"k": run.state.k, "history": run.history, "inside": inside, "diverged": run.diverged})
        made = {"recipes": [recipe.as_dict() for recipe in self.recipes], **self.made_from}
        metadata = {"format": FORMAT, "runs": json.dumps(made), "states": json.dumps(states, allow_nan=False)}
        write_tensors(self.path, tensors, metadata)
        self.written = time.monotonic()


def _run_tensors(run: Progress) -> dict[str, Tensor]:
    """The tensors of a run by name. Those of theta are needed only inside an outer iteration."""
    state = run.state
    tensors = {f"snapshot-{k}": images for k, images in run.snapshots.items()}
    if run.diverged:
        finite = {name: images for name, images in tensors.items() if images.isfinite().all()}
        return finite | {"S": run.last_good}
    tensors["S"] = state.S
    momentum = state.optimiser_S.state[state.S].get("momentum_buffer")
    if momentum is not None:
        tensors["momentum"] = momentum
    if state.t:
        tensors |= {f"theta.{name}": value for name, value in _tensors(state.theta).items()}
        for name, parameter in state.theta.named_parameters():
            momentum = state.optimiser_theta.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
    return tensors


def _check_state(stored: StoredState, tensors: dict[str, Tensor], data: Data, recipe: Recipe) -> None:
    """Check that a stored run can be continued. ValueError if its numbers or tensors do not fit the recipe."""
    K, (T, _) = recipe.outer_loops, recipe.schedule()
    k, inside = stored.k, stored.inside
    t = inside.t if inside else 0
    if not (k < K and t < T if t else k <= K):
        raise ValueError(f"k={k}, t={t} is outside its {K} outer and {T} inner iterations")
    finished = [entry.k for entry in stored.history]
    if finished != list(range(len(finished) if stored.diverged else k)):
        raise ValueError(f"its history is not that of {k} outer iterations")
    if inside and len(inside.losses) != t * recipe.zeta_S:
        raise ValueError(f"it has {len(inside.losses)} losses at t={t}")
    like_S = {"S"} | {name for name in tensors if name.startswith("snapshot-") and name[9:].isdecimal()}
    if recipe.momentum_images and (k or t) and not stored.diverged:
        like_S.add("momentum")
    shape, dtype = (data.n_classes * recipe.ipc, *data.shape), data.train_images.dtype
    needed: dict[str, Any] = dict.fromkeys(like_S, (shape, dtype))
    possible = {}
    if t:
        theta = fresh_network(data, recipe, k)
        needed |= {f"theta.{name}": (tuple(x.shape), x.dtype) for name, x in _tensors(theta).items()}
        possible = {f"momentum.{name}": (tuple(x.shape), x.dtype) for name, x in theta.named_parameters()}
    if inside and inside.theta_steps and recipe.momentum_network:
        trained = [name for name, x in theta.named_parameters() if x.requires_grad]
        needed |= {f"momentum.{name}": possible[f"momentum.{name}"] for name in trained}
    found = {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}
    for name in sorted({*needed, *found}):
        expected = needed.get(name) or possible.get(name)
        if found.get(name) != expected:
            raise ValueError(f"its {name} is {_spell(found.get(name))} and not {_spell(expected)}")
    if not all(tensors[name].isfinite().all() for name in like_S):
        raise ValueError("S, its momentum or a snapshot is not finite")


def _spell(kind: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return f"{kind[1]} of shape {kind[0]}" if kind else "missing"


def _restore_theta(state: State, tensors: dict[str, Tensor], data: Data, recipe: Recipe) -> None:
    theta = fresh_network(data, recipe, state.k)
    state.start(theta, recipe)
    with torch.no_grad():
        for name, value in _tensors(theta).items():
            value.copy_(tensors[f"theta.{name}"])
    for name, parameter in theta.named_parameters():
        if f"momentum.{name}" in tensors:
            momentum = tensors[f"momentum.{name}"].to(parameter)
            state.optimiser_theta.state[parameter]["momentum_buffer"] = momentum


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name. Shared ones appear once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def training_folder(path: str | os.PathLike | None) -> Path | None:
    """The folder for networks in training that a caller gave. ValueError if it does not exist."""
    folder = None if path is None else as_path(path)
    if folder is not None and not folder.is_dir():
        raise ValueError(f"there is no folder {folder} for networks in training: create it, or leave checkpoint= out")
    return folder


class TrainingCheckpoint:
    """The file of networks that `gmlib.speed.training.fit` trains side by side.

    It is replaced after an epoch, at most once a minute. Its tensors are "network.i.<name>",
    "optimiser.i.<name>.<key>" and "rng.i", the state of the generator of network i. Its metadata are "format", "of",
    "networks" (their layers and tensors), "epochs", "seconds" (the time spent so far) and "sha256".

    Parameters
    ----------
    path : Path or None
        None keeps nothing.
    of : dict
        What decides the trained networks besides their layers, in plain JSON types. A file of other networks is
        replaced.
    """

    def __init__(self, path: Path | None, of: dict[str, Any]):
        self.path, self.of = path, json.dumps(of, sort_keys=True)
        self.started = self.written = time.monotonic()
        self.before = 0.0  # seconds spent by earlier processes

    def _read(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            tensors, metadata = read_tensors(self.path, TRAINING_FORMAT, TRAINING_ADVICE)
        except FileNotFoundError:  # deleted meanwhile
            return None
        return (tensors, metadata) if metadata.get("of") == self.of else None

    def seconds(self) -> float:
        """The time that the stored state took. 0 if there is none. ValueError if the file is damaged."""
        stored = self._read()
        return float(stored[1]["seconds"]) if stored else 0.0

    def restore(self, training: Training) -> int:
        """Continue from the file: set the networks, their optimiser and generators to what it holds.

        Returns
        -------
        int
            The number of finished epochs; 0 if there is no file of these networks, and nothing has changed.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        networks, optimiser, rngs = training
        stored = self._read()
        if stored is None or self.path is None or stored[1].get("networks") != _spelled(networks):
            return 0
        tensors, metadata = stored
        try:
            epochs, self.before = int(metadata["epochs"]), float(metadata["seconds"])
            with torch.no_grad():
                for i, (network, rng) in enumerate(zip(networks, rngs, strict=True)):
                    for name, value in _tensors(network).items():
                        value.copy_(tensors[f"network.{i}.{name}"])
                    for name, parameter in network.named_parameters():
                        start = f"optimiser.{i}.{name}."
                        state = {key: tensors[key] for key in tensors if key.startswith(start)}
                        for key, value in state.items():
                            if value.shape == parameter.shape:  # in the layout of the parameter
                                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                            optimiser.state[parameter][key.removeprefix(start)] = value.to(parameter.device)
                    rng.set_state(tensors[f"rng.{i}"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise damaged(self.path, error, TRAINING_ADVICE) from error
        return epochs

    def keep(self, epochs: int, training: Training) -> None:
        """Replace the file by the state after so many epochs, if the last one is old enough.

        If it cannot be written, that is logged, and the training goes on.
        """
        if self.path is None or time.monotonic() - self.written < TRAINING_SECONDS:
            return
        networks, optimiser, rngs = training
        tensors: dict[str, Tensor] = {}
        for i, (network, rng) in enumerate(zip(networks, rngs, strict=True)):
            tensors |= {f"network.{i}.{name}": value for name, value in _tensors(network).items()}
            for name, parameter in network.named_parameters():
                state = optimiser.state[parameter].items()
                tensors |= {f"optimiser.{i}.{name}.{key}": value for key, value in state if value is not None}
            tensors[f"rng.{i}"] = rng.get_state()
        self.written = time.monotonic()
        seconds = self.before + self.written - self.started
        about = {
            "format": TRAINING_FORMAT,
            "of": self.of,
            "networks": _spelled(networks),
            "epochs": str(epochs),
            "seconds": str(seconds),
        }
        try:
            write_tensors(self.path, tensors, about)
        except OSError as error:
            log.warning("networks in training are not kept: %s", error)

    def delete(self) -> None:
        """Delete the file, if there is one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _spelled(networks: Sequence[nn.Module]) -> str:
    """A digest of the layers and tensors of networks, without the values."""
    tensors = [[name, tuple(x.shape), str(x.dtype)] for each in networks for name, x in _tensors(each).items()]
    return json_digest([*map(str, networks), tensors])
