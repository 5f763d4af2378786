"""What a run looks like on disk: one safetensors file, replaced atomically.

Its tensors are "S", "momentum" (of S) and "snapshot-<k>"; inside an outer iteration also "theta.<name>" and
"momentum.<name>". Its metadata are "format", "run" (the recipe, the data's fingerprint and dtype) and "state" (k, the
history and the unfinished outer iteration). No random state is stored, because every inner iteration has its own
streams, see `gmlib.lines.streams_of`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
    """The history of an unfinished outer iteration.

    Attributes
    ----------
    losses : list of float
        Matching losses of the updates of S.
    theta_steps : int
        Steps of theta.
    detections : list of list
        ``[t, i, L(S, theta), L(T, theta)]`` for each overfitting that was seen.
    seconds : float
        Time spent, including drawing the network.
    """

    losses: list[float] = field(default_factory=list)
    theta_steps: int = 0
    detections: list[list] = field(default_factory=list)
    seconds: float = 0.0

    def entry(self, k: int) -> dict:
        """The entry of outer iteration k in the history of a run."""
        return {
            "k": k,
            "loss": sum(self.losses) / len(self.losses),
            "theta_steps": self.theta_steps,
            "seconds": self.seconds,
            "detections": self.detections,
        }


@dataclass
class Progress:
    """A run so far: the state of Algorithm 1, and what `gmlib.condensation.condense` keeps with it.

    Attributes
    ----------
    state : State
    history : list of dict
        One entry for each finished outer iteration.
    now : OuterIteration
        The unfinished one.
    snapshots : dict
        {number of outer iterations: S after them}.
    unread : list of (int, Tensor)
        t and matching loss of each update, for losses that were not read from the device yet. It is empty when a
        checkpoint is written.
    last_good : Tensor
        S at the last time that losses were read and were finite.
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
    """The checkpoint file of one run.

    Parameters
    ----------
    path : path or None
        None reads and writes nothing.
    data : Data
    recipe : Recipe

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        On construction, before any work, if the file cannot be used. Its folder is missing or not writable, or the
        file is damaged or belongs to another run.
    """

    def __init__(self, path: str | os.PathLike | None, data: Data, recipe: Recipe):
        self.path = Path(path) if path is not None else None
        self.written = time.monotonic()
        self.run = {"recipe": recipe.as_dict(), "data": data.fingerprint, "dtype": str(data.train_images.dtype)}
        self.tensors: dict[str, Tensor] = {}
        self.stored: dict[str, Any] = {}
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of the checkpoint {self.path} does not exist: create it first")
        if self.path.is_dir():
            raise ValueError(f"the checkpoint {self.path} is a folder: name a file in it")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"the folder of the checkpoint {self.path} is not writable: choose another")
        if self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self.tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the checkpoint {path} is damaged ({error}): delete it to restart the run") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of gmlib: choose another file")
        self.stored = json.loads(metadata["state"])
        there, here = _flat(json.loads(metadata["run"])), _flat(self.run)
        differing = [name for name in {**here, **there} if there.get(name) != here.get(name)]
        if differing:
            name = differing[0]
            values = "other data" if name == "data" else f"{name}={there.get(name)!r} instead of {here.get(name)!r}"
            raise ValueError(
                f"the checkpoint {path} belongs to another run, with {values}: delete it or choose another file"
            )

    def progress(self, data: Data, recipe: Recipe) -> Progress:
        """The stored run, or a new one if none is stored.

        Parameters
        ----------
        data : Data
            On the device to compute on.
        recipe : Recipe

        Returns
        -------
        Progress
        """
        state = State.initial(data, recipe)
        tensors, self.tensors = self.tensors, {}  # the file's tensors are not needed a second time
        if not tensors:
            return Progress(state)
        inside = self.stored["inside"]
        state.k, state.t = self.stored["k"], inside.pop("t", 0)
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
        return Progress(state, self.stored["history"], OuterIteration(**inside), kept)

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
        inside = {}
        if state.t:
            inside = {"t": state.t, **asdict(run.now)}
            tensors |= {f"theta.{name}": value.detach() for name, value in _tensors(state.theta).items()}
            for name, parameter in state.theta.named_parameters():
                momentum = state.optimiser_theta.state[parameter].get("momentum_buffer")
                if momentum is not None:
                    tensors[f"momentum.{name}"] = momentum
        stored = {"k": state.k, "history": run.history, "inside": inside}
        metadata = {"format": FORMAT, "run": json.dumps(self.run), "state": json.dumps(stored)}
        blob = to_safetensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)
        write_atomically(self.path, blob)
        self.written = time.monotonic()


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """All that identifies a run, as one dictionary."""
    return {**run["recipe"], "data": run["data"], "dtype": run["dtype"]}


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
