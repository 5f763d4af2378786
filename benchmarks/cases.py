"""What is measured: the cases, each a piece of the algorithm as the library and as plain do it.

`cases` names them; each prepares a `Pair` of calls on a device. README.md beside this file says what they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import count
from math import ceil

import ceiling
import numpy as np
import plain
import torch
from ceiling import Work, clock
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import gmlib as gm
from gmlib import networks, where
from gmlib.evaluation import accuracy, settle
from gmlib.lines import fresh_network, initial, match, sample, streams_of
from gmlib.runtime import generator
from gmlib.speed.gradients import WAYS, class_gradients
from gmlib.speed.memory import Memory
from gmlib.speed.recording import Recorder

Seconds = Callable[[], float]
# A run on CUDA begins with what is done once: the third step of a kind is recorded, say. It has K = 1000 outer iterations to make
# up for it, so the first four updates of S are not timed, and of outer iterations the next four, and twenty updates, at least.
BEFORE, UPDATES, ITERATIONS = 4, 20, 4


@dataclass(frozen=True)
class Size:
    """What a case is measured on; the defaults are the paper's, with as many grey images as a class of CIFAR-10 has."""

    shape: tuple[int, int, int] = (1, 28, 28)  # channels, height, width
    C: int = 10
    ipc: int = 1
    B: int = 256  # real images of each class in one step
    width: int = 128
    depth: int = 3
    T: int | None = None  # None: the paper's
    zeta: int | None = None
    per_class: int = 5000  # training images
    n_test: int = 10_000
    precision: str = "float32"  # that the library is told; it is set for both sides

    @property
    def data(self) -> str:
        return "x".join(map(str, self.shape)) + f"/C{self.C}"

    @property
    def name(self) -> str:
        return f"{self.data}/ipc{self.ipc}"


@dataclass(frozen=True)
class Pair:
    """The two sides of a case: each call does the work and returns the seconds of one unit of it."""

    ours: Seconds
    plain: Seconds
    work: Work  # of one unit of ours
    calls: Work  # of a call of ours and one of plain together
    unit: str
    untimed: int = 1  # calls of either side before those that are timed


# ---- what is measured -------------------------------------------------------------------------------------


def step(size: Size, method: str, device: torch.device) -> Pair:
    """One update of S, lines 5-9 of Algorithm 1: batches drawn, gradients matched, S moved."""
    data, recipe = made_up(size, device), recipe_of(size, method)
    network, S, optimise_S = _start(data, recipe)
    labels, weights = _labels(size, device), torch.full((size.C,), 1 / size.C, dtype=torch.float64, device=device)
    memory, record, updates = Memory(largest=max(size.B, size.ipc)), Recorder(device), count()

    def ours() -> None:
        batches = sample(data, recipe, streams_of(recipe, next(updates), 0))
        _, S.grad, _, _ = match(network, S, labels, batches, weights, recipe, 0, memory, record)
        optimise_S.step()

    network_too, S_too, optimise_S_too = _start(data, recipe)
    batches = data.train_images, plain.indices_by_class(data.train_labels), size.B, np.random.default_rng(0)
    written_plainly = partial(plain.update, method, network_too, S_too, optimise_S_too, *batches)
    one, untimed = step_work(size), BEFORE if device.type == "cuda" else 1
    return Pair(
        partial(clock, device, ours),
        partial(clock, device, written_plainly),
        one,
        2 * one,
        "one update of S",
        untimed,
    )


def outer(size: Size, method: str, beside: str, device: torch.device) -> Pair:
    """One outer iteration of Algorithm 1: ours of `method`, plain of the method `beside`."""
    data, recipe, recipe_too = made_up(size, device), recipe_of(size, method), recipe_of(size, beside)
    T, zeta = recipe_too.schedule()
    first, more = (ceil(BEFORE / T), max(ITERATIONS, ceil(UPDATES / T))) if device.type == "cuda" else (1, 0)

    def ours() -> float:
        runs = [
            partial(gm.condense, data, replace(recipe, outer_loops=K), device, progress=False)
            for K in (first, first + more)
        ]
        begun = clock(device, runs[0])
        return (clock(device, runs[1]) - begun) / more if more else begun

    _, S, optimise_S = _start(data, recipe_too)
    indices, rng, drawn = plain.indices_by_class(data.train_labels), np.random.default_rng(0), count()

    def written_plainly() -> None:
        network = fresh_network(data, recipe_too, next(drawn))
        plain.outer_iteration(
            beside, network, S, optimise_S, data.train_images, indices, T=T, zeta=zeta, batch=size.B, rng=rng
        )

    one, one_too = outer_work(size, recipe), outer_work(size, recipe_too)
    calls = (2 * first + more if more else 1) * one + one_too
    unit = "one outer iteration" + (
        f", the mean of {more} after the first{f' {first}' if first > 1 else ''}" if more else ""
    )
    return Pair(ours, partial(clock, device, written_plainly), one, calls, unit)


def whole_set(size: Size, method: str, device: torch.device) -> Pair:
    """The condensation of a whole set, computed from its outer iterations: all K of them are alike."""
    pair, K = outer(size, method, method, device), gm.Recipe().outer_loops
    unit = f"a whole set, computed: K = {K} times {pair.unit}"
    return replace(pair, ours=lambda: K * pair.ours(), plain=lambda: K * pair.plain(), work=K * pair.work, unit=unit)


def real_pass(
    size: Size,
    device: torch.device,
    way: str | None = None,
    *,
    channels_last: bool = False,
    compiler: str | None = None,
) -> Pair:
    """The class gradients gT of one step alone: C batches of B real images.

    way: a name in WAYS; None: the library's choice. channels_last: weights and images in that order in memory. compiler: the
    backend of torch.compile, for the network's forward pass. Plain stays as it is.
    """
    data, recipe = made_up(size, device), recipe_of(size, "DC")
    network, rng = fresh_network(data, recipe, 0), generator(0, "batches")
    batches = [data.sample(c, size.B, rng) for c in range(size.C)]
    own_network, own_batches = network, batches
    if channels_last:
        own_network = copy.deepcopy(network).to(memory_format=torch.channels_last)
        own_batches = [x.contiguous(memory_format=torch.channels_last) for x in batches]
    if compiler:
        own_network = torch.compile(network, backend=compiler, dynamic=False)

    def written_plainly() -> None:
        for c, x in enumerate(batches):
            plain.class_gradient(network, x, c)

    one = size.C * work(ceiling.gradient, size, size.B)
    ours = partial(clock, device, partial(class_gradients, own_network, own_batches, way=way))
    return Pair(ours, partial(clock, device, written_plainly), one, 2 * one, "the gradients of all classes")


def derivative(size: Size, device: torch.device, way: str) -> Pair:
    """The class gradients gS of one step, and the derivative in the images of the sum over all of them."""
    network, S, _ = _start(made_up(size, device), recipe_of(size, "DC"))

    def ours() -> None:
        _derivative(class_gradients(network, S.split(size.ipc), create_graph=True, way=way), S)

    def written_plainly() -> None:
        each = [plain.class_gradient(network, x, c, create_graph=True) for c, x in enumerate(S.split(size.ipc))]
        _derivative([layer for g in each for layer in g if layer.ndim > 1], S)

    one = size.C * work(ceiling.derivative, size, size.ipc)
    unit = "the gradients of all classes of S, and their derivative"
    return Pair(partial(clock, device, ours), partial(clock, device, written_plainly), one, 2 * one, unit)


def train(size: Size, varied: bool, n: tuple[int, int], epochs: int, device: torch.device) -> Pair:
    """Training on S: n networks of ours and n of plain. The test is one image of each class, so that it costs nothing."""
    ours, written_plainly, one, _ = _evaluation(size, size.C, varied, n, epochs, device)
    unit = f"per network and epoch; {n[0]} networks ({n[1]} plain), {epochs} epochs"
    each = n[0] * epochs, n[1] * epochs
    return Pair(
        lambda: clock(device, ours) / each[0],
        lambda: clock(device, written_plainly) / each[1],
        one,
        sum(each) * one,
        unit,
    )


def evaluation(size: Size, varied: bool, n: tuple[int, int], epochs: int | None, device: torch.device) -> Pair:
    """Phase 2 whole: n networks of ours and n of plain trained on S, for the epochs of the protocol, and tested."""
    ours, written_plainly, one_epoch, epochs = _evaluation(size, size.n_test, varied, n, epochs, device)
    one = epochs * one_epoch + work(ceiling.forward, size, size.n_test)
    unit = f"per network; {n[0]} networks ({n[1]} plain), {epochs} epochs, {size.n_test} test images"
    return Pair(
        lambda: clock(device, ours) / n[0], lambda: clock(device, written_plainly) / n[1], one, sum(n) * one, unit
    )


def test(size: Size, device: torch.device) -> Pair:
    """The test of one network."""
    data, network = made_up(size, device), _network(size).to(device)
    one = work(ceiling.forward, size, size.n_test)
    ours = partial(clock, device, partial(accuracy, network, data.test_images, data.test_labels))
    written_plainly = partial(clock, device, partial(plain.accuracy, network, _test_set(data)))
    return Pair(ours, written_plainly, one, 2 * one, f"per network; {size.n_test} test images")


# ---- what it takes ----------------------------------------------------------------------------------------


def made_up(size: Size, device: torch.device) -> gm.Data:
    """Random images on the device, as many for each class: the time does not depend on what they show."""
    return _made_up(size.shape, size.C, size.per_class, size.n_test, device)


@lru_cache(maxsize=1)  # cases of the same data follow each other
def _made_up(shape: tuple[int, int, int], C: int, per_class: int, n_test: int, device: torch.device) -> gm.Data:
    rng = torch.Generator().manual_seed(0)

    def draw(labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.randint(256, (len(labels), *shape), dtype=torch.uint8, generator=rng), labels

    train, test = draw(torch.arange(C).repeat_interleave(per_class)), draw(torch.arange(n_test) % C)
    return gm.Data.from_arrays("random", *train, *test).to(device)


def recipe_of(size: Size, method: str) -> gm.Recipe:
    """The paper's recipe at this size."""
    sizes = {"width": size.width, "depth": size.depth, "batch_real": size.B, "precision": size.precision}
    return gm.Recipe.for_method(
        method, "random", size.ipc, **sizes, inner_loops=size.T, zeta_theta=size.zeta, outer_loops=1
    )


def work(passes: Callable[[nn.Module, Tensor, Tensor], None], size: Size, n: int) -> Work:
    """Of `passes` over n images."""
    return _work(passes, size.shape, size.C, size.width, size.depth, n)


@cache  # counting takes about as long as a toy case
def _work(passes: Callable, shape: tuple[int, int, int], C: int, width: int, depth: int, n: int) -> Work:
    return ceiling.work(passes, _network(Size(shape, C, width=width, depth=depth)), n, shape)


def step_work(size: Size) -> Work:
    """Of one update of S."""
    return size.C * work(ceiling.gradient, size, size.B) + size.C * work(ceiling.derivative, size, size.ipc)


def outer_work(size: Size, recipe: gm.Recipe) -> Work:
    """Of one outer iteration."""
    T, zeta = recipe.schedule()
    one_pass = work(ceiling.gradient, size, size.C * size.ipc)
    return T * step_work(size) + where.steps_per_outer_iteration(recipe.where, T, zeta) * one_pass


def _start(data: gm.Data, recipe: gm.Recipe) -> tuple[nn.Module, Tensor, torch.optim.Optimizer]:
    S = initial(data, recipe).requires_grad_()
    return (
        fresh_network(data, recipe, 0),
        S,
        torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images),
    )


def _derivative(g: list[Tensor], S: Tensor) -> None:
    torch.autograd.grad(g, S, [torch.ones_like(layer) for layer in g])


def _labels(size: Size, device: torch.device) -> Tensor:
    return torch.arange(size.C, device=device).repeat_interleave(size.ipc)


def _network(size: Size, j: int = 0) -> nn.Module:
    sizes = {"width": size.width, "depth": size.depth}
    return networks.build("convnet", size.shape, size.C, generator=generator(0, "benchmark", j), **sizes)


def _test_set(data: gm.Data) -> TensorDataset:
    return TensorDataset(data.test_images.cpu(), data.test_labels.cpu())


def _evaluation(
    size: Size, n_test: int, varied: bool, n: tuple[int, int], epochs: int | None, device: torch.device
) -> tuple[Callable[[], object], Callable[[], object], Work, int]:
    """Phase 2 on n[0] networks of ours, on n[1] of plain, the work of one epoch and the number of epochs."""
    data = made_up(size, device)
    data = replace(data, test_images=data.test_images[:n_test], test_labels=data.test_labels[:n_test])
    if varied:  # the protocol varies MNIST's images: the name alone makes it do so
        data = replace(data, name="MNIST")
    x = torch.randn(size.C * size.ipc, *size.shape, generator=generator(0, "S")).to(device)
    S = gm.SyntheticSet(x, _labels(size, device), data.classes, data.mean, data.std)
    protocol = {"width": size.width, "depth": size.depth, "epochs": epochs, "precision": size.precision}
    epochs = settle(S, data, "convnet", **protocol)["epochs"]
    ours = partial(gm.evaluate, S, data, n_networks=n[0], device=device, progress=False, **protocol)
    vary = partial(plain.augmented, rng=np.random.default_rng(0)) if varied else None

    def written_plainly() -> None:
        fresh = (_network(size, j).to(device) for j in range(n[1]))
        plain.evaluate(fresh, S.images, S.labels, _test_set(data), epochs, vary)

    return ours, written_plainly, work(ceiling.gradient, size, len(S.labels)), epochs


# ---- the cases --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The sizes of all cases, how many networks and epochs stand for phase 2, and what is of a GPU only."""

    grey: Size
    colour: Size
    many: Size  # of more classes
    growing: Size  # from which one number at a time grows
    axes: dict[str, tuple[int, ...]]
    ipcs: tuple[int, ...]
    n_train: tuple[int, int]  # networks, of ours and of plain
    epochs_train: int
    n_evaluate: tuple[int, int]
    epochs_evaluate: int | None  # None: the protocol's
    of_gpu: bool  # whole sets, real images of all classes in one pass: hours and gigabytes elsewhere
    compiler: str = "inductor"

    def in_precision(self, precision: str) -> Plan:
        """The same cases with products in "float32" or "tf32"."""
        sizes = ("grey", "colour", "many", "growing")
        return replace(self, **{name: replace(getattr(self, name), precision=precision) for name in sizes})


FULL = {
    "grey": Size(),
    "colour": Size(shape=(3, 32, 32)),
    "many": Size(shape=(3, 32, 32), C=100, per_class=500),
    "growing": Size(ipc=10, B=64, zeta=10, per_class=500, n_test=100),
    "axes": {
        "C": (10, 20, 50, 100),
        "ipc": (1, 10, 20, 50),
        "B": (32, 64, 128, 256),
        "width": (32, 64, 128, 256),
        "T": (1, 2, 5, 10),
    },
    "ipcs": (1, 10, 50),
    "epochs_evaluate": None,
}
TOY = Size(shape=(1, 8, 8), C=3, B=4, width=4, depth=2, T=2, zeta=2, per_class=6, n_test=9)
PLANS = {
    # On a CPU the library trains a network to a thread, plain one after another: two tell as much as fifty.
    "cpu": Plan(**FULL, n_train=(2, 1), epochs_train=10, n_evaluate=(2, 1), of_gpu=False),
    "cuda": Plan(**FULL, n_train=(50, 2), epochs_train=50, n_evaluate=(50, 1), of_gpu=True),
    "quick": Plan(
        grey=TOY,
        colour=replace(TOY, shape=(3, 8, 8)),
        many=replace(TOY, shape=(3, 8, 8), C=5),
        growing=TOY,
        axes={"C": (2, 3), "ipc": (1, 2), "B": (2, 4), "width": (2, 4), "T": (1, 2)},
        ipcs=(1, 2),
        n_train=(2, 1),
        epochs_train=2,
        n_evaluate=(2, 1),
        epochs_evaluate=2,
        of_gpu=True,
        compiler="eager",  # traced, but not compiled, which would take longer than everything else
    ),
}


def cases(plan: Plan) -> dict[str, Callable[[torch.device], Pair]]:
    """Every case of a plan: its name -> the function that prepares it on a device."""
    return dict(_cases(plan))


def _cases(plan: Plan) -> Iterator[tuple[str, Callable[[torch.device], Pair]]]:
    for base in (plan.grey, plan.colour, plan.many):
        sizes = [replace(base, ipc=ipc) for ipc in plan.ipcs]
        yield f"pass/{base.data}", partial(real_pass, base)
        for size in sizes:
            for method in plain.METHODS:
                yield f"step/{method}/{size.name}", partial(step, size, method)
        if base != plan.many:
            yield from _of_whole_runs(plan, base, sizes)
        for way in WAYS if plan.of_gpu else ("loop",):
            yield f"ways/{way}/{base.data}", partial(real_pass, base, way=way)
            if plan.of_gpu:
                yield f"ways/{way}+channels_last/{base.data}", partial(real_pass, base, way=way, channels_last=True)
        yield f"ways/compiled/{base.data}", partial(real_pass, base, way="loop", compiler=plan.compiler)
        for size in sizes:
            for way in WAYS:
                yield f"ways/{way}/{size.name}", partial(derivative, size, way=way)
    for axis, values in plan.axes.items():
        for value in values:
            size = replace(plan.growing, **{axis: value})
            yield (
                f"growth/{axis}/{value}",
                partial(outer, size, "DC", "DC") if axis == "T" else partial(step, size, "DC"),
            )


def _of_whole_runs(plan: Plan, base: Size, sizes: list[Size]) -> Iterator[tuple[str, Callable[[torch.device], Pair]]]:
    for size in sizes:
        for method in plain.METHODS:
            yield f"outer/{method}-beside-DC/{size.name}", partial(outer, size, method, "DC")
    for size in sizes[:2] if plan.of_gpu and base == plan.colour else ():
        yield f"set/MDA/{size.name}", partial(whole_set, size, "MDA")
    yield f"test/{base.data.partition('/')[0]}", partial(test, base)
    for size in sizes:
        for varied in (False, True) if base == plan.grey else (False,):
            name = f"{size.name}/{'varied' if varied else 'as-is'}"
            yield f"train/{name}", partial(train, size, varied, plan.n_train, plan.epochs_train)
            yield f"evaluate/{name}", partial(evaluation, size, varied, plan.n_evaluate, plan.epochs_evaluate)
