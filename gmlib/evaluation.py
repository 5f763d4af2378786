"""Phase 2: train networks from scratch on a synthetic set S, and test them on real images (Section 4.1).

A training step on a small set takes a GPU less time than its launch. So on CUDA many networks train side by side. One
recorded graph contains a step of each network, spread over several streams. Each network gets the same operations and
random numbers as if it were trained alone.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from . import networks
from .augment import apply_operations, apply_transforms, canonical_name, operations_for, strategy_of
from .checkpoint import TrainingCheckpoint, training_folder
from .checks import check_function, check_number, choose, first_sentence, shown
from .data import Data, fingerprint
from .files import slug
from .runtime import check_deadline, check_time, device_of, generator, plain_torch, progress_bar, time_limit
from .sets import SyntheticSet, check_pair, images_of
from .speed.memory import Memory
from .speed.passes import map_in_threads
from .speed.precision import matmul_precision
from .speed.recording import step_recorder
from .speed.testing import predict
from .speed.training import OPTIMISERS, fit

log = logging.getLogger(__name__)

LARGE = 2**20  # bytes of the widest activation from which a CPU trains one network per thread
TOGETHER = 1024  # on CUDA, the largest product of images in S and networks that train side by side
PRECISIONS = ("float32", "tf32")
Network: TypeAlias = "str | nn.Module | Callable[..., nn.Module] | Architecture"  # what `evaluate` takes


@dataclass(frozen=True)
class Protocol:
    """How networks are trained on S, by default as in the paper. The accuracy after the last epoch counts.

    Attributes
    ----------
    width, depth : int
        Of a ConvNet.
    epochs : int or None
        None means 1000 if images are augmented, else 300.
    optimiser : str
        ``"sgd"`` or ``"adam"``.
    lr : float
        Learning rate, divided by 10 after half the epochs.
    momentum : float
        The first beta of Adam.
    weight_decay : float
        This multiple of the weights is added to their gradient.
    batch : int
        Images per training step.
    augment : str
        ``"paper"`` augments like the paper's scripts: MNIST always, other data for networks with BatchNorm.
        ``"none"``, ``"dsa"`` and ``"dsa:crop+scale"`` are as in `Recipe`.
    precision : str
        ``"float32"``, or ``"tf32"`` to train and test with TF32 products on CUDA.

    Raises
    ------
    ValueError
        If a value is out of range or unknown.
    """

    width: int = 128
    depth: int = 3
    epochs: int | None = None
    optimiser: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    augment: str = "paper"
    precision: str = "float32"

    def __post_init__(self) -> None:
        def number(name: str, **bounds: Any) -> None:
            object.__setattr__(self, name, check_number(name, getattr(self, name), **bounds))

        for name in ("width", "depth", "batch"):
            number(name, least=1, whole=True)
        if self.epochs is not None:
            number("epochs", least=1, whole=True)
        number("lr", above=0)
        number("momentum", least=0, below=1)
        number("weight_decay", least=0)
        choose(OPTIMISERS, "optimiser", self.optimiser)
        object.__setattr__(self, "augment", canonical_name(self.augment, ("paper", "none")))
        choose(dict.fromkeys(PRECISIONS), "precision", self.precision)

    def resolve(self, data: Data, network: nn.Module) -> dict[str, Any]:
        """The protocol for these data and this network.

        Returns
        -------
        dict
            The fields in plain JSON types. ``epochs`` is a number and ``augment`` lists the operations.
        """
        operations: tuple[str, ...] = ()
        if self.augment == "paper":
            operations = operations_for(data.name, networks.has_batchnorm(network))
        elif self.augment != "none":
            operations = ("dsa", *strategy_of(self.augment, data.name))
        epochs = self.epochs or (1000 if operations else 300)
        return asdict(self) | {"epochs": epochs, "augment": "+".join(operations) or "none"}


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies of networks trained on one synthetic set.

    Attributes
    ----------
    accuracies : tuple of float
        In percent of the test images, one for each network that did not diverge. Classes without test images do not
        count.
    network : str
    seed : int
    protocol : dict
        What `Protocol.resolve` returned.
    seconds : float
        Time spent on training and testing.
    failed : tuple of int
        The numbers of the networks that diverged: their outputs ended as NaN or infinite. They have no accuracy.
    per_class : tuple of tuple of float
        For each network with an accuracy, the percent of the test images of each class that it classifies correctly
        (the recall of the class). NaN for a class without test images. Empty if unknown: files hold no recalls, so an
        evaluation that was read from disk has none, and neither has one that continues it.
    """

    accuracies: tuple[float, ...]
    network: str
    seed: int
    protocol: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    failed: tuple[int, ...] = ()
    per_class: tuple[tuple[float, ...], ...] = field(default=(), compare=False)

    @property
    def n(self) -> int:
        """Number of accuracies."""
        return len(self.accuracies)

    @property
    def trained(self) -> int:
        """Number of networks, with those that diverged."""
        return self.n + len(self.failed)

    @property
    def mean(self) -> float:
        """Mean accuracy, in percent. NaN if all networks diverged."""
        return math.fsum(self.accuracies) / self.n if self.n else math.nan

    @property
    def std(self) -> float:
        """Standard deviation between networks (n - 1 in the denominator). NaN for a single network."""
        if self.n < 2:
            return math.nan
        mean = self.mean
        return math.sqrt(math.fsum((a - mean) ** 2 for a in self.accuracies) / (self.n - 1))

    @property
    def ci95(self) -> tuple[float, float]:
        """95% t interval of the mean, in percent. It covers networks trained on this set, not other sets."""
        from .analysis.statistics import t_half_width  # needs the extra "analysis"

        half = t_half_width(self.std, self.n)
        return self.mean - half, self.mean + half

    @property
    def mean_per_class(self) -> tuple[float, ...]:
        """The recall of each class, in percent, as the mean over networks. Empty if unknown."""
        return tuple(math.fsum(of_class) / self.n for of_class in zip(*self.per_class, strict=True))

    @property
    def balanced(self) -> float:
        """Balanced accuracy, in percent: the mean over classes of their recalls. NaN if unknown.

        Each class counts the same, however many test images it has. Classes without test images do not count.
        """
        tested = [recall for recall in self.mean_per_class if not math.isnan(recall)]
        return math.fsum(tested) / len(tested) if tested else math.nan

    def first(self, n: int) -> Evaluation:
        """The evaluation of only the first n networks."""
        failed = tuple(j for j in self.failed if j < n)
        sound = max(0, n - len(failed))
        return replace(self, accuracies=self.accuracies[:sound], failed=failed, per_class=self.per_class[:sound])

    def then(
        self, accuracies: Sequence[float], seconds: float, per_class: Sequence[tuple[float, ...]] = ()
    ) -> Evaluation:
        """The evaluation with further networks, of which those with accuracy NaN diverged.

        ``per_class`` holds one tuple of recalls for each of ``accuracies``, or nothing.
        """
        failed = [j for j, a in enumerate(accuracies, self.trained) if math.isnan(a)]
        sound = [i for i, a in enumerate(accuracies) if not math.isnan(a)]
        # Recalls of some networks only would look like those of all.
        known = len(self.per_class) == self.n and len(per_class) == len(accuracies)
        return replace(
            self,
            accuracies=(*self.accuracies, *(accuracies[i] for i in sound)),
            failed=(*self.failed, *failed),
            seconds=seconds,
            per_class=(*self.per_class, *(per_class[i] for i in sound)) if known else (),
        )

    def __repr__(self) -> str:
        balanced = "" if math.isnan(self.balanced) else f", balanced {self.balanced:.1f} %"
        return f"Evaluation({self.network}, seed {self.seed}: {self}{balanced})"

    def __str__(self) -> str:
        counts = [f"n = {self.n}"]
        if self.failed:
            counts.append(f"{len(self.failed)} diverged")
        spread = f"±{self.std:.1f}" if self.n > 1 else ""
        return f"{self.mean:.1f}{spread} % ({', '.join(counts)})" if self.n else f"no accuracy ({counts[-1]})"


@plain_torch()
def evaluate(
    S: SyntheticSet | Data,
    data: Data,
    network: Network = "convnet",
    n_networks: int = 50,
    seed: int = 0,
    *,
    protocol: Protocol | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    known: Evaluation | Sequence[float] = (),
    each: Callable[[Evaluation], None] | None = None,
    deadline: float | None = None,
    side_by_side: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    **changes: Any,
) -> Evaluation:
    """Train ``n_networks`` new networks on S and test each of them on the test images of ``data``.

    Parameters
    ----------
    S : SyntheticSet or Data
        Its classes may have different numbers of images. A Data means all its training images (last column of Table
        3).
    data : Data
    network : str, nn.Module or callable
        A name that `networks.build` knows, or a network of your own. A callable makes one, like a factory that is
        given to `networks.register`: a class or function of (channels, size, n_classes). It also gets the protocol's
        width and depth if it has parameters of these names. A module is only taken as an architecture. Each network
        is a copy of it that starts with new weights, drawn by the ``reset_parameters`` of all its layers. What the
        module has learned is not used, and the module does not change. Give the class or function instead if it draws
        first weights in its own way. The evaluation has the name of the class or function.
    n_networks : int
    seed : int
        The same seed gives the same bits on one machine's CPU.
    protocol : Protocol, optional
        None takes the paper's protocol, with the width and depth that S was condensed with. Give a protocol to
        compare sets of different origin.
    device : torch.device or str, optional
        None takes CUDA if there is a GPU, else the CPU.
    progress : bool
        Show a progress bar.
    known : Evaluation or sequence of float
        Accuracies of the first networks, from an earlier call. These networks are not trained again. If they come
        without recalls per class, the result has none either.
    each : callable, optional
        Called with the evaluation so far after each network, or each group of networks.
    deadline : float, optional
        In the unit of ``time.monotonic()``. Networks that are in training then are lost without ``checkpoint``.
    side_by_side : int, optional
        How many networks train in one step. The number is halved if memory runs out. None chooses: on CUDA, more for
        smaller sets; on a CPU, one per thread if steps are large, else one. It changes results by rounding at most.
    checkpoint : path, optional
        A folder for this S alone, which exists. Networks in training are stored there after an epoch, at most once a
        minute, and deleted after their accuracies were given to ``each``. The same call continues them, on a CPU with
        the same bits.
    **changes
        Fields of the protocol to change, as in ``epochs=100``.

    Returns
    -------
    Evaluation
        Of ``n_networks`` networks. Those that diverged are counted, but have no accuracy.

    Raises
    ------
    ValueError
        If S does not fit the data, a name is unknown, a network of your own cannot be built or cannot start again, or
        a number is out of range.
    OutOfTime
        At the deadline.
    """
    n_networks = check_number("n_networks", n_networks, least=1, whole=True)
    seed = check_number("seed", seed, least=0, whole=True)
    if side_by_side is not None:
        side_by_side = check_number("side_by_side", side_by_side, least=1, whole=True)
    check_deadline(deadline)
    check_function("each", each, "an Evaluation")
    folder = training_folder(checkpoint)
    architecture = architecture_of(network)
    resolved = resolve_protocol(S, data, architecture, protocol, **changes)
    name = architecture.name
    if not isinstance(known, Evaluation):
        if not isinstance(known, Collection) or isinstance(known, str):
            raise ValueError(f"known is a {type(known).__name__}: give an Evaluation or a list of accuracies")
        known = Evaluation(tuple(known), name, seed)
    known = _checked(known, name, data.n_classes, seed, resolved)
    device = device_of(device)
    x, y = (part.to(device) for part in images_of(S))
    x_test = data.test_images.to(device, x.dtype)
    y_test = data.test_labels.to(device)
    start = time.monotonic()
    found = replace(known, network=name, seed=seed, protocol=resolved, seconds=0.0).first(n_networks)
    before = found.trained
    threads = 1 if side_by_side else _threads(n_networks, x, resolved)
    if side_by_side is None:
        side_by_side = threads if device.type == "cpu" else _group_size(n_networks - found.trained, len(y))
    memory = Memory(largest=side_by_side * len(y))

    def out_of_time() -> str:
        more = "give it more time" if found.trained == before and folder is None else "run again to continue"
        what_to_do = more if each else "give it more time, or each= to keep partial results"
        return f"out of time after {found.trained} of {n_networks} networks: {what_to_do}"

    of = {"network": name, "seed": seed, "protocol": resolved, "images": fingerprint(x, y) if folder else ""}

    def kept(numbers: Sequence[int]) -> TrainingCheckpoint:
        path = folder and folder / f"training-{slug(name)}-{numbers[0]}.safetensors"
        return TrainingCheckpoint(path, of | {"numbers": list(numbers)})

    def train_and_test(numbers: Sequence[int]) -> list[tuple[float, tuple[float, ...]]]:
        group = _train(numbers, architecture, data, resolved, seed, x, y, memory, kept)
        predictions = [predict(trained, x_test) for trained in group]
        return [(_accuracy(p, y_test), _recalls(p, y_test, data.n_classes)) for p in predictions]

    for j in range(before):
        kept([j]).delete()  # of a process that was killed right after it had stored the accuracy
    earlier = 0.0  # seconds that stopped calls spent on networks that continue here
    trained_on = f"all of {S.name}" if isinstance(S, Data) else f"{len(y)} images"
    bar = progress_bar(f"{name} on {trained_on}", n_networks, "network", progress, initial=found.trained)
    with bar, time_limit(deadline, out_of_time):
        while found.trained < n_networks:
            check_time()
            numbers = range(found.trained, min(found.trained + side_by_side, n_networks))
            groups: list[Sequence[int]] = [[j] for j in numbers] if threads > 1 else [numbers]
            earlier += max(kept(group).seconds() for group in groups)  # they train at the same time
            with matmul_precision(resolved["precision"]):
                tested = [one for group in map_in_threads(train_and_test, groups, threads) for one in group]
            seconds = earlier + time.monotonic() - start
            found = found.then([a for a, _ in tested], seconds, [recalls for _, recalls in tested])
            bar.update(len(tested))
            if each:
                each(found)
            for group in groups:
                kept(group).delete()
    if found.failed:
        log.warning(
            "%d of %d networks on %s diverged and have no accuracy", len(found.failed), found.trained, trained_on
        )
    return found


def _checked(known: Evaluation, network: str, n_classes: int, seed: int, resolved: dict[str, Any]) -> Evaluation:
    """An evaluation to continue. ValueError if it is of other networks, or an accuracy or a number is impossible."""
    here = {"network": network, "seed": seed, "protocol": resolved}
    for name, value in here.items():
        its = getattr(known, name)
        if its != value and its != {}:  # an evaluation may lack its protocol
            raise ValueError(f"known has {name}={shown(its)}, not {shown(value)}: leave it out to train all networks")
    accuracies = tuple(check_number("known", a, least=0) for a in known.accuracies)
    if any(a > 100 for a in accuracies):
        raise ValueError(f"known has the accuracy {max(accuracies)}: give percent, at most 100")
    failed = tuple(check_number("failed", j, least=0, below=known.trained, whole=True) for j in known.failed)
    if len(set(failed)) < len(failed):
        raise ValueError(f"known has failed={shown(failed)}: give each number once")
    if known.per_class and (len(known.per_class) != known.n or {len(row) for row in known.per_class} != {n_classes}):
        raise ValueError(
            f"known has per_class={shown(known.per_class)}: give {n_classes} recalls for each accuracy, or none"
        )
    return replace(known, accuracies=accuracies, failed=failed)


def resolve_protocol(
    S: SyntheticSet | Data,
    data: Data,
    network: Network,
    protocol: Protocol | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Check the arguments of `evaluate` and resolve its protocol, without any training.

    Parameters
    ----------
    S, data, network, protocol, **changes
        As in `evaluate`.

    Returns
    -------
    dict
        What `Protocol.resolve` returns.

    Raises
    ------
    ValueError
        If S does not fit the data, a name is unknown, or a number is out of range.
    """
    if data is None:
        raise ValueError("there is no data to test on: give the Data that the set was made from, not a NoneType")
    check_pair(S, data)
    if not len(data.test_images):
        raise ValueError(
            f"{data.name} has no test images: give some to Data.from_arrays, or let it keep a part (test_share=)"
        )
    protocol = protocol_for(S, protocol, **changes)
    architecture = architecture_of(network)
    first = architecture.build(data, asdict(protocol), generator(0, "settle"))
    if protocol.batch == 1 and networks.has_batchnorm(first):
        raise ValueError(
            f"batch=1 does not fit {architecture.name}, since BatchNorm cannot normalise one image: give at least 2"
        )
    return protocol.resolve(data, first)


def protocol_for(S: SyntheticSet | Data, protocol: Protocol | None = None, **changes: Any) -> Protocol:
    """The protocol that `evaluate` uses: the given one or the paper's, with the changes.

    Raises
    ------
    ValueError
        If a name is unknown, or a value does not fit.
    """
    for name in changes:
        choose(Protocol.__dataclass_fields__, "protocol field", name)
    if not isinstance(protocol, Protocol | None):
        raise ValueError(f"protocol is a {type(protocol).__name__}: give a Protocol, or its fields as in epochs=100")
    if protocol is None:
        recipe = {} if isinstance(S, Data) else S.recipe
        protocol = Protocol(**{name: recipe[name] for name in ("width", "depth") if name in recipe})
    return replace(protocol, **{name: value for name, value in changes.items() if value is not None})


# ---- networks of one's own ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """A network that can be built any number of times.

    Attributes
    ----------
    name : str
        What `networks.build` knows it by, or the name of the user's class or function.
    factory : callable or None
        Makes the user's network, see `networks.register`. None for a name that `networks.build` knows.
    """

    name: str
    factory: networks.Factory | None = None

    def build(self, data: Data, sizes: Mapping[str, Any], rng: torch.Generator) -> nn.Module:
        """A network with new weights for these data. ``sizes`` has the width and depth of a ConvNet."""
        build = partial(
            networks.build, self.name, data.shape, data.n_classes,
            generator=rng, width=sizes["width"], depth=sizes["depth"],
        )  # fmt: skip
        if self.factory is None:
            return build()
        with networks.SEEDING:  # no other thread builds a network meanwhile
            before = networks.NETWORKS.get(self.name)
            networks.NETWORKS[self.name] = self.factory
            try:
                return build()
            finally:
                del networks.NETWORKS[self.name]
                if before:
                    networks.NETWORKS[self.name] = before


def architecture_of(network: Network) -> Architecture:
    """The architecture that a caller gave as a name, a module, or a class or function that makes a module.

    ValueError if it is something else, or a module that cannot start with new weights.
    """
    if isinstance(network, Architecture):
        return network
    if isinstance(network, str):
        return Architecture(network)
    if isinstance(network, nn.Module):
        with networks.SEEDING, torch.random.fork_rng(devices=[]):
            _with_new_weights(network)  # raises if that is not possible
        return Architecture(_own_name(type(network)), partial(_with_new_weights, network))
    if not callable(network):
        raise ValueError(
            f"network={shown(network)} does not fit: give a name such as 'convnet', a torch.nn.Module, or a class or "
            "function of (channels, size, n_classes) that makes one"
        )
    known = [name for name, factory in networks.NETWORKS.items() if factory is network]
    if known:
        return Architecture(known[0])
    name = _own_name(network)
    try:
        signature = inspect.signature(network)
        sizes = {each: 1 for each in ("width", "depth") if each in signature.parameters}
        signature.bind("channels", "size", "n_classes", **sizes)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} cannot be called with (channels, size, n_classes): give a function of these that returns a "
            "network, or a network itself"
        ) from None
    if isinstance(network, partial) and network.keywords.keys() & {"width", "depth"}:
        bound = network  # what it has fixed stays
        return Architecture(name, lambda channels, size, n_classes: bound(channels, size, n_classes))
    return Architecture(name, network)


def _own_name(made_by: Any) -> str:
    """The name of a user's class or function, in characters that file names and `networks.parse_name` allow."""
    while isinstance(made_by, partial):
        made_by = made_by.func
    if not hasattr(made_by, "__name__"):
        made_by = type(made_by)

    def plain(name: str) -> str:
        return "".join(c for c in name if c.isalnum() or c in "-_.") or "network"

    name = plain(made_by.__name__)
    if name in networks.NETWORKS:  # another network has it
        name = plain(f"{made_by.__module__}.{name}")
    while name in networks.NETWORKS:
        name += "-own"
    return name


def _with_new_weights(network: nn.Module, *_: Any) -> nn.Module:
    """A copy of a module, in float32 on the CPU, with weights drawn from torch's global generator.

    The layers draw in the order in which Python makes them: those inside a layer before the layer itself.
    """
    name = type(network).__name__
    advice = "give a function of (channels, size, n_classes) that makes the network"
    for key, p in network.named_parameters():
        if nn.parameter.is_lazy(p):
            raise ValueError(f"the weights of {name} have no shape yet: call it on an image before, or {advice}")
        if not p.requires_grad:
            raise ValueError(f"{key} of {name} is frozen, but a copy starts with new weights everywhere: {advice}")
    try:
        found = copy.deepcopy(network).to("cpu", torch.float32)
    except Exception as error:  # a module may hold anything
        raise ValueError(f"{name} cannot be copied ({first_sentence(error)}): {advice}") from error
    with torch.no_grad():
        for p in found.parameters():
            p.fill_(math.nan)
    for layer in _inner_first(found):
        # torch's attention layers have only the private name.
        reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        if reset is not None:
            try:
                reset()
            except Exception as error:  # code of the user
                raise ValueError(
                    f"reset_parameters of {type(layer).__name__} in {name} fails ({first_sentence(error)}): {advice}"
                ) from error
        elif any(p is not None for p in layer._parameters.values()):
            raise ValueError(
                f"{name} has weights in {type(layer).__name__}, which has no reset_parameters: add one, or {advice}"
            )
    left = [key for key, p in found.named_parameters() if not p.isfinite().all()]
    if left:
        raise ValueError(f"no reset_parameters in {name} sets {left[0]} anew: {advice}")
    return found


def _inner_first(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _inner_first(child)
    yield module


# ---- training and testing ----------------------------------------------------------------------------------


def _group_size(n_networks: int, n_images: int) -> int:
    """How many networks train side by side on CUDA: as few groups as possible, all of about the same size."""
    groups = math.ceil(n_networks / max(1, TOGETHER // n_images))
    return math.ceil(n_networks / max(1, groups))


def _threads(n_networks: int, x: Tensor, resolved: dict[str, Any]) -> int:
    """How many networks a CPU trains at once, one per thread.

    Threads that share one network wait for each other after every layer. But a small step is mostly Python, which
    only one thread runs at a time.
    """
    widest = min(len(x), resolved["batch"]) * resolved["width"] * x[0, 0].numel() * x.element_size()
    return min(torch.get_num_threads(), n_networks) if x.device.type == "cpu" and widest >= LARGE else 1


def _train(
    numbers: Sequence[int],
    architecture: Architecture,
    data: Data,
    resolved: dict[str, Any],
    seed: int,
    x: Tensor,
    y: Tensor,
    memory: Memory,
    kept: Callable[[Sequence[int]], TrainingCheckpoint],
) -> list[nn.Module]:
    """Train the networks of these numbers on x and y side by side, or as many of the first ones as fit into memory.

    Network j has its own generators for weights, mini-batches and augmentation, so the group does not matter.
    """
    options = {name: resolved[name] for name in ("epochs", "optimiser", "lr", "momentum", "weight_decay", "batch")}
    as_recorded = step_recorder(x.device)

    def train(numbers: Sequence[int]) -> list[nn.Module]:
        starts = [architecture.build(data, resolved, generator(seed, "evaluate", j)) for j in numbers]
        group = [network.to(x.device, x.dtype) for network in starts]
        rngs = [generator(seed, "evaluate batches", j) for j in numbers]
        vary = _augmentation(resolved["augment"], rngs)
        fit(group, x, y, rng=rngs, vary=vary, as_recorded=as_recorded, checkpoint=kept(numbers), **options)
        return group

    for attempt in memory:  # memory runs out in the first steps, so a new start loses little
        numbers = numbers[: max(1, (memory.chunk or memory.largest) // len(y))]
        if len(numbers) == 1:
            break  # `fit` splits the passes of a single network itself
        with attempt:
            return train(numbers)
    return train(numbers)


def _augmentation(augment: str, rngs: Sequence[torch.Generator]) -> Callable[[Tensor], Tensor] | None:
    """The function that augments S for each epoch and network. ``augment`` is spelled as in `Protocol.resolve`."""
    if augment == "none":
        return None
    first, *rest = operations = augment.split("+")
    if first == "dsa":
        return lambda x: apply_transforms(x, rest, rngs)
    return lambda x: apply_operations(x, operations, rngs)


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of images that ``network`` classifies correctly. NaN if an output is NaN or infinite.

    Parameters
    ----------
    network : nn.Module
        Left in training mode.
    x : Tensor
        (N, channels, height, width) images.
    y : Tensor
        (N,) labels.
    """
    return _accuracy(predict(network, x), y)


def _accuracy(predicted: Tensor, y: Tensor) -> float:
    """Percent of right predictions. NaN if one is -1, as `predict` returns it for an output that is not finite."""
    right, wrong = torch.stack([(predicted == y).sum(), (predicted < 0).sum()]).tolist()
    return math.nan if wrong else 100.0 * right / len(y)


def _recalls(predicted: Tensor, y: Tensor, n_classes: int) -> tuple[float, ...]:
    """Percent of right predictions among the images of each class. NaN for a class without images."""
    images, right = (torch.bincount(labels, minlength=n_classes).tolist() for labels in (y, y[predicted == y]))
    return tuple(100.0 * r / n if n else math.nan for r, n in zip(right, images, strict=True))
