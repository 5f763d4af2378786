"""Phase 2: train networks from scratch on a synthetic set S, and test them on real images (Section 4.1).

A step on ten images keeps a GPU busy for less time than it takes to launch. So on CUDA many networks take their steps together,
as one recorded graph that spreads over several streams; each by the same operations, and with the same numbers drawn, as alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import networks
from .augment import (
    canonical_name,
    independent_for_each,
    one_of_for_each,
    operations_for,
    strategy_of,
)
from .checks import check_number, choose
from .data import Data
from .runtime import OutOfTime, deadline_passed, device_of, generator, progress_bar
from .sets import SyntheticSet, check_pair
from .speed.memory import Memory
from .speed.passes import on_cores, pass_size
from .speed.precision import matmul_precision
from .speed.recording import step_recorder
from .speed.training import OPTIMISERS, fit

TEST_BATCH = 2048  # images in one forward pass of the test
LARGE = 2**20  # bytes of the widest activation in a step that is worth a thread of its own
TOGETHER = 1024  # on CUDA as many networks are trained side by side as have sets of so many images between them
PRECISIONS = ("float32", "tf32")


@dataclass(frozen=True)
class Protocol:
    """How networks are trained on S; the defaults are the paper's. The accuracy after the last epoch counts, never the best.

    Checked when made: a ValueError says in a sentence what to change.
    """

    width: int = 128  # of a ConvNet
    depth: int = 3
    epochs: int | None = None  # None: 300, or 1000 where images are varied
    optimiser: str = "sgd"  # or adam; the learning rate is divided by 10 after half the epochs
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    # paper: as its scripts do, for MNIST and for networks with BatchNorm; none; or dsa, or dsa:crop+scale, as `Recipe.augment`
    augment: str = "paper"
    precision: str = "float32"  # tf32: products on CUDA in TF32, training and testing

    def __post_init__(self) -> None:
        for name in ("width", "depth", "batch"):
            check_number(name, getattr(self, name), least=1, whole=True)
        if self.epochs is not None:
            check_number("epochs", self.epochs, least=1, whole=True)
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, least=0, below=1)
        check_number("weight_decay", self.weight_decay, least=0)
        choose(OPTIMISERS, "optimiser", self.optimiser)
        object.__setattr__(self, "augment", canonical_name(self.augment, ("paper", "none")))
        choose(dict.fromkeys(PRECISIONS), "precision", self.precision)

    def settled(self, data: Data, network: nn.Module) -> dict[str, Any]:
        """What this comes to for these data and this network: plain JSON types, epochs a number, augment canonical_name out."""
        if self.augment in ("paper", "none"):
            operations = operations_for(data.name, networks.has_batchnorm(network)) if self.augment == "paper" else ()
        else:
            operations = ("dsa", *strategy_of(self.augment, data.name))
        epochs = self.epochs or (1000 if operations else 300)
        return asdict(self) | {"epochs": epochs, "augment": "+".join(operations) or "none"}


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies, in percent, of networks trained on one synthetic set."""

    accuracies: tuple[float, ...]
    network: str
    seed: int
    protocol: dict[str, Any] = field(default_factory=dict)  # `Protocol.settled`
    seconds: float = 0.0

    @property
    def n(self) -> int:
        return len(self.accuracies)

    @property
    def mean(self) -> float:
        return math.fsum(self.accuracies) / self.n

    @property
    def std(self) -> float:
        """Standard deviation between networks (n - 1 in the denominator); NaN for a single network."""
        if self.n < 2:
            return math.nan
        return math.sqrt(math.fsum((a - self.mean) ** 2 for a in self.accuracies) / (self.n - 1))

    @property
    def ci95(self) -> tuple[float, float]:
        """95% t interval of the mean over networks, for this one set: it says nothing about other sets."""
        from .analysis.statistics import t_half_width  # needs the extra "analysis"

        half = t_half_width(self.std, self.n)
        return self.mean - half, self.mean + half

    def first(self, n: int) -> Evaluation:
        """The first n networks of these."""
        return replace(self, accuracies=self.accuracies[:n])

    def __str__(self) -> str:
        spread = f"±{self.std:.1f}" if self.n > 1 else ""
        return f"{self.mean:.1f}{spread} % (n = {self.n})"


def evaluate(
    S: SyntheticSet | Data,
    data: Data,
    network: str = "convnet",
    n_networks: int = 50,
    seed: int = 0,
    *,
    protocol: Protocol | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    known: Sequence[float] = (),
    each: Callable[[Evaluation], None] | None = None,
    deadline: float | None = None,
    side_by_side: int | None = None,
    **changes: Any,
) -> Evaluation:
    """Train `n_networks` fresh networks on S and test each, after its last epoch, on `data`'s test images.

    S: a synthetic set, or data whose training images are all taken (Table 3's last column).
    protocol, changes: a Protocol, and fields of it to change. Without either the paper's is followed, but with the width
    and depth of ConvNet that S was condensed with: name them to compare sets of different origin.
    known: accuracies of the first networks, if they were trained before; they are not trained again.
    side_by_side: networks trained at once in one step, halved where memory runs out. None: on CUDA many, the smaller the set the
    more; on a CPU one to a thread, where a step is large enough. It changes a network's training by rounding at most.
    each: called after every network, or every group of them, with what there is so far.
    deadline: time.monotonic() after which no network or group is begun; what has begun is finished.

    Returns an Evaluation with n_networks accuracies in percent. The same seed gives the same bits on one machine's CPU.
    Raises ValueError where S does not fit the data, for unknown names and for numbers out of range; OutOfTime at the deadline.
    """
    check_number("n_networks", n_networks, least=1, whole=True)
    check_number("seed", seed, least=0, whole=True)
    if side_by_side is not None:
        check_number("side_by_side", side_by_side, least=1, whole=True)
    settled = settle(S, data, network, protocol, **changes)
    device = device_of(device)
    x, y = (S.train_images, S.train_labels) if isinstance(S, Data) else (S.images, S.labels)
    x, y = x.to(device), y.to(device)
    x_test, y_test = data.test_images.to(device, x.dtype), data.test_labels.to(device)
    begun = time.monotonic()
    found = Evaluation(tuple(known)[:n_networks], network, seed, settled)
    bar = progress_bar(f"{network} on {_named(S)}", n_networks, "network", progress, initial=found.n)
    cores = 1 if side_by_side else _cores(n_networks, x, settled)
    at_once = side_by_side or (cores if device.type == "cpu" else _fitting(n_networks - found.n, len(y)))
    memory = Memory(largest=at_once * len(y))
    while found.n < n_networks:
        if deadline_passed(deadline):
            bar.close()
            kept = "run again to go on" if each else "give it more time, or each= to keep what there is"
            raise OutOfTime(f"out of time after {found.n} of {n_networks} networks: {kept}")
        group = range(found.n, min(found.n + at_once, n_networks))
        train = partial(_trained, network=network, data=data, settled=settled, seed=seed, x=x, y=y, memory=memory)

        def scores(group: Sequence[int], train: Callable[..., list[nn.Module]] = train) -> list[float]:
            return [accuracy(f, x_test, y_test) for f in train(group)]

        with matmul_precision(settled["precision"]):
            parts = [[j] for j in group] if cores > 1 else [group]
            accuracies = [score for part in on_cores(scores, parts, cores) for score in part]
        found = replace(found, accuracies=(*found.accuracies, *accuracies), seconds=time.monotonic() - begun)
        bar.update(len(accuracies))
        if each:
            each(found)
    bar.close()
    return found


def _fitting(n_networks: int, n_images: int) -> int:
    """How many networks to train side by side on a GPU: those left are shared out evenly over groups that fill it."""
    groups = math.ceil(n_networks / max(1, TOGETHER // n_images))
    return math.ceil(n_networks / max(1, groups))


def _cores(n_networks: int, x: Tensor, settled: dict[str, Any]) -> int:
    """How many networks a CPU trains at once, each by its share of the threads: two threads that meet at the end of every layer
    are slower than two that train a network each. One where a step is so small that it is mostly Python."""
    step = (
        min(len(x), settled["batch"]) * settled["width"] * x[0, 0].numel() * x.element_size()
    )  # bytes of the widest activation
    return min(torch.get_num_threads(), n_networks) if x.device.type == "cpu" and step >= LARGE else 1


def _trained(
    numbers: Sequence[int],
    network: str,
    data: Data,
    settled: dict[str, Any],
    seed: int,
    x: Tensor,
    y: Tensor,
    memory: Memory,
) -> list[nn.Module]:
    """The networks of these numbers, or the first of them as memory allows, trained side by side on x and y.

    Network j draws its weights, mini-batches and varied images from generators of its own, whoever stands beside it.
    """
    training = {name: settled[name] for name in ("epochs", "optimiser", "lr", "momentum", "weight_decay", "batch")}
    as_recorded = step_recorder(x.device)

    def train(numbers: Sequence[int]) -> list[nn.Module]:
        group = [
            _build(network, data, settled, generator(seed, "evaluate", j)).to(x.device, x.dtype) for j in numbers
        ]
        rngs = [generator(seed, "evaluate batches", j) for j in numbers]
        return fit(
            group, x, y, rng=rngs, vary=_varying(settled["augment"], rngs), as_recorded=as_recorded, **training
        )

    for attempt in memory:  # again, from the start with fewer, where memory runs out: it does so in the first steps
        numbers = numbers[: max(1, (memory.chunk or memory.largest) // len(y))]
        if len(numbers) == 1:
            break  # whose passes are split
        with attempt:
            return train(numbers)
    return train(numbers)


def _named(S: SyntheticSet | Data) -> str:
    return f"all of {S.name}" if isinstance(S, Data) else f"{len(S.labels)} images"


def settle(
    S: SyntheticSet | Data, data: Data, network: str, protocol: Protocol | None = None, **changes: Any
) -> dict[str, Any]:
    """The protocol by which `evaluate` would train these networks on this set (`Protocol.settled`), all inputs checked."""
    check_pair(S, data)
    for name in changes:
        choose(Protocol.__dataclass_fields__, "protocol field", name)
    if not isinstance(protocol, Protocol | None):
        raise ValueError(
            f"protocol is a {type(protocol).__name__}: give a Protocol, or its fields by name, as in epochs=100"
        )
    if protocol is None:
        recipe = {} if isinstance(S, Data) else S.recipe
        protocol = Protocol(**{name: recipe[name] for name in ("width", "depth") if name in recipe})
    protocol = replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    return protocol.settled(data, _build(network, data, asdict(protocol), generator(0, "settle")))


def _build(network: str, data: Data, settled: dict[str, Any], rng: torch.Generator) -> nn.Module:
    size = {"width": settled["width"], "depth": settled["depth"]}
    return networks.build(network, data.shape, data.n_classes, generator=rng, **size)


def _varying(augment: str, rngs: Sequence[torch.Generator]) -> Callable[[Tensor], Tensor] | None:
    """The function that varies S anew for each epoch and network, from the spelling in `Protocol.settled`."""
    if augment == "none":
        return None
    first, *rest = operations = augment.split("+")
    if first == "dsa":
        return lambda x: independent_for_each(x, rest, rngs)
    return lambda x: one_of_for_each(x, operations, rngs)


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of images (N, channels, height, width) that `network` puts into their class y (N,)."""
    network.eval()
    memory = Memory(largest=TEST_BATCH)
    fits = pass_size(network, x) or TEST_BATCH
    for attempt in memory:
        with attempt:
            size = min(memory.chunk or TEST_BATCH, fits)
            right = sum(
                (network(part).argmax(1) == labels).sum()
                for part, labels in zip(x.split(size), y.split(size), strict=True)
            )
    network.train()
    return 100.0 * right.item() / len(y)
