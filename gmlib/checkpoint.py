"""What a `State` looks like on disk: one safetensors file, replaced atomically.

Tensors: "S" and "momentum" (of S), "snapshot-<k>", and inside an outer iteration "theta.<name>" and "momentum.<name>".
Metadata: "format", "run" (the recipe, the data's fingerprint and dtype) and "state" (k, the history, and the outer iteration
so far). There is no random state: every inner iteration has streams of its own (`lines.streams_of`).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from .algorithm import State
from .data import Data
from .files import write_atomically
from .lines import fresh_network
from .recipe import Recipe

FORMAT = "gmlib-checkpoint-2"


@dataclass
class OuterIteration:
    """What an outer iteration has come to after t inner ones. Seconds include drawing the network."""

    t: int = 0
    losses: list[float] = field(default_factory=list)
    theta_steps: int = 0
    detections: list[list] = field(default_factory=list)
    seconds: float = 0.0

    def entry(self, k: int) -> dict:
        """Its entry in the history of a run."""
        return {
            "k": k,
            "loss": sum(self.losses) / len(self.losses),
            "theta_steps": self.theta_steps,
            "seconds": self.seconds,
            "detections": self.detections,
        }


@dataclass
class Progress:
    """A run so far: the state of the algorithm, and what `condense` keeps beside it.

    Attributes
    ----------
    state : State
    history : list of dict
        One entry per finished outer iteration.
    now : OuterIteration
        The unfinished one.
    snapshots : dict
        {number of outer iterations: S after them}.
    unread : list of (int, Tensor)
        t and matching loss of the updates whose loss still lies unread on the device. A checkpoint is written without any.
    last_good : Tensor
        S at the last time that losses were read, and were finite.
    """

    state: State
    history: list[dict] = field(default_factory=list)
    now: OuterIteration = field(default_factory=OuterIteration)
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    unread: list[tuple[int, Tensor]] = field(default_factory=list)
    last_good: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.last_good = self.state.S.detach().clone()


class Checkpoint:
    """The checkpoint file of one run; with path None nothing is read or written.

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        If the file cannot be used: its folder is missing or cannot be written to, it is damaged, or it is of another run.
        All are raised on construction, before any work.
    """

    def __init__(self, path: str | os.PathLike | None, data: Data, recipe: Recipe):
        self.path = Path(path) if path is not None else None
        self.written = time.monotonic()
        self.run = {"recipe": recipe.as_dict(), "data": data.fingerprint, "dtype": str(data.train_images.dtype)}
        self.tensors: dict[str, Tensor] = {}
        self.stored = {"k": 0, "history": [], "inside": {}}
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of the checkpoint {self.path} does not exist: make it first")
        if self.path.is_dir():
            raise ValueError(f"the checkpoint {self.path} is a folder: name a file in it")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"the folder of the checkpoint {self.path} cannot be written to: choose another")
        if self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"the checkpoint {path} is damaged ({error}): delete it to start the run afresh"
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of gmlib: choose another file")
        run, self.stored = json.loads(metadata["run"]), json.loads(metadata["state"])
        if run != self.run:
            there, here = ({**r["recipe"], "data": r["data"], "dtype": r["dtype"]} for r in (run, self.run))
            name = next(name for name in {**here, **there} if there.get(name) != here.get(name))
            values = "other data" if name == "data" else f"{name}={there.get(name)!r} instead of {here.get(name)!r}"
            raise ValueError(
                f"the checkpoint {path} is of another run, with {values}: delete it or choose another file"
            )

    def progress(self, data: Data, recipe: Recipe) -> Progress:
        """The stored run, or the beginning of a new one, on the data's device."""
        state = State.initial(data, recipe)
        tensors, self.tensors = self.tensors, {}
        if not tensors:
            return Progress(state)
        now = OuterIteration(**self.stored["inside"])
        state.k, state.t = self.stored["k"], now.t
        with torch.no_grad():
            state.S.copy_(tensors["S"])
        if "momentum" in tensors:
            state.optimiser_S.state[state.S]["momentum_buffer"] = tensors["momentum"].to(state.S)
        if state.t:
            _restore_theta(state, tensors, data, recipe)
        kept = {
            int(name.removeprefix("snapshot-")): tensor.to(state.S.device)
            for name, tensor in tensors.items()
            if name.startswith("snapshot-")
        }
        return Progress(state, self.stored["history"], now, kept)

    def age(self) -> float:
        """Seconds since the last write."""
        return time.monotonic() - self.written

    def write(self, run: Progress) -> None:
        """Replace the file by the state of this run, atomically."""
        if self.path is None:
            return
        state = run.state
        tensors = {"S": state.S.detach()} | {f"snapshot-{k}": images for k, images in run.snapshots.items()}
        momentum = state.optimiser_S.state[state.S].get("momentum_buffer")
        if momentum is not None:
            tensors["momentum"] = momentum
        stored = {"k": state.k, "history": run.history, "inside": {}}
        if state.t and state.theta is not None and state.optimiser_theta is not None:
            stored["inside"] = asdict(run.now)
            tensors |= {f"theta.{name}": value.detach() for name, value in _tensors(state.theta).items()}
            for name, parameter in state.theta.named_parameters():
                momentum = state.optimiser_theta.state[parameter].get("momentum_buffer")
                if momentum is not None:
                    tensors[f"momentum.{name}"] = momentum
        metadata = {"format": FORMAT, "run": json.dumps(self.run), "state": json.dumps(stored)}
        blob = to_safetensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)
        write_atomically(self.path, blob)
        self.written = time.monotonic()


def _restore_theta(state: State, tensors: dict[str, Tensor], data: Data, recipe: Recipe) -> None:
    network = fresh_network(data, recipe, state.k)
    state.start(network, recipe)
    with torch.no_grad():
        for name, value in _tensors(network).items():
            value.copy_(tensors[f"theta.{name}"])
    for name, parameter in network.named_parameters():
        if f"momentum.{name}" in tensors and state.optimiser_theta is not None:
            momentum = tensors[f"momentum.{name}"].to(parameter)
            state.optimiser_theta.state[parameter]["momentum_buffer"] = momentum


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return dict(network.named_parameters()) | dict(network.named_buffers())
