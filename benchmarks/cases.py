"""The cases that are measured: each is a piece of the algorithm, done by the library and by plain.

`cases` names them. Each case prepares a `Pair` of calls on a device. README.md in this folder describes them.
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
import torch.nn.functional as F
from ceiling import Work, clock
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import gmlib as gm
from gmlib import networks, where
from gmlib.evaluation import accuracy, resolve_protocol
from gmlib.lines import class_weights, fresh_network, initial, match, real_gradients, runner_for, sample, streams_of
from gmlib.runtime import generator
from gmlib.speed.forward import Forward, fast_forward
from gmlib.speed.gradients import IMPLEMENTATIONS, class_gradients

Seconds = Callable[[], float]
Prepare = Callable[[torch.device], "Pair"]
# On CUDA a run begins with work that is done once, such as recording its steps. K = 1000 outer iterations
# make up for it, so the first updates of S are not timed.
WARM_UP_UPDATES = 4
# Outer iterations are timed on CUDA until both numbers are reached.
TIMED_UPDATES = 20
TIMED_ITERATIONS = 4
# Gradients in one call: the first ones get new memory from the system.
GRADIENTS = 20


@dataclass(frozen=True)
class Size:
    """The sizes of a case. The defaults are the paper's, with as many grey images per class as CIFAR-10 has.

    Attributes
    ----------
    shape : tuple of int
        (channels, height, width).
    C, ipc : int
        Classes, and synthetic images per class.
    B : int
        Real images per class in one step.
    width, depth : int
        Of the ConvNet.
    T, zeta : int or None
        Inner iterations and steps of theta; None for the paper's.
    per_class, n_test : int
        Training images per class, and test images.
    precision : str
        The library gets it in its recipe; it is set for both sides.
    """

    shape: tuple[int, int, int] = (1, 28, 28)
    C: int = 10
    ipc: int = 1
    B: int = 256
    width: int = 128
    depth: int = 3
    T: int | None = None
    zeta: int | None = None
    per_class: int = 5000
    n_test: int = 10_000
    precision: str = "float32"

    @property
    def data(self) -> str:
        """The name of the data: "1x28x28/C10"."""
        return "x".join(map(str, self.shape)) + f"/C{self.C}"

    @property
    def name(self) -> str:
        """The name of the size: "1x28x28/C10/ipc1"."""
        return f"{self.data}/ipc{self.ipc}"


@dataclass(frozen=True)
class Pair:
    """The two sides of a case.

    Attributes
    ----------
    ours, plain : callable
        Do the work and return the seconds of one unit of it.
    work : Work
        Of one unit of ours.
    calls : Work
        Of one call of ours and one of plain together.
    unit : str
        What one unit is.
    untimed : int
        Calls of each side before the timed ones.
    """

    ours: Seconds
    plain: Seconds
    work: Work
    calls: Work
    unit: str
    untimed: int = 1


# ---- what is measured -------------------------------------------------------------------------------------


def step(size: Size, method: str, device: torch.device) -> Pair:
    """One update of S, lines 5-9 of Algorithm 1: draw batches, match gradients, move S."""
    data, recipe = random_data(size, device), recipe_of(size, method)
    network, S, optimiser_S = _start(data, recipe)
    labels, weights = data.labels_of(size.ipc), class_weights(data, recipe)
    run, updates = runner_for(data, recipe), count()

    def ours() -> None:
        B = sample(data, recipe, streams_of(recipe, next(updates), 0))
        gT = real_gradients(network, B, recipe, run)
        _, S.grad, _ = match(network, S, labels, B, gT, weights, recipe, 0, run)
        optimiser_S.step()

    plain_network, plain_S, plain_optimiser_S = _start(data, recipe)
    batches = data.train_images, plain.indices_by_class(data.train_labels), size.B, np.random.default_rng(0)
    plainly = partial(plain.update, method, plain_network, plain_S, plain_optimiser_S, *batches)
    one = step_work(size)
    untimed = WARM_UP_UPDATES if device.type == "cuda" else 1
    return Pair(
        partial(clock, device, ours), partial(clock, device, plainly), one, 2 * one, "one update of S", untimed
    )


def outer(size: Size, method: str, plain_method: str, device: torch.device) -> Pair:
    """One outer iteration of Algorithm 1: ours of ``method``, plain of ``plain_method``.

    On CUDA ours is the mean over several iterations after the first, by the difference of two runs.
    """
    data = random_data(size, device)
    recipe, plain_recipe = recipe_of(size, method), recipe_of(size, plain_method)
    T, zeta = plain_recipe.schedule()
    first, more = 1, 0
    if device.type == "cuda":
        first, more = ceil(WARM_UP_UPDATES / T), max(TIMED_ITERATIONS, ceil(TIMED_UPDATES / T))

    def condense(K: int) -> float:
        return clock(device, partial(gm.condense, data, replace(recipe, outer_loops=K), device, progress=False))

    def ours() -> float:
        seconds = condense(first)
        return (condense(first + more) - seconds) / more if more else seconds

    _, S, optimiser_S = _start(data, plain_recipe)
    indices, rng, iterations = plain.indices_by_class(data.train_labels), np.random.default_rng(0), count()

    def plainly() -> None:
        network = fresh_network(data, plain_recipe, next(iterations))
        plain.outer_iteration(
            plain_method, network, S, optimiser_S, data.train_images, indices, T=T, zeta=zeta, batch=size.B, rng=rng
        )

    one, plain_one = outer_work(size, recipe), outer_work(size, plain_recipe)
    calls = (2 * first + more if more else 1) * one + plain_one
    unit = "one outer iteration"
    if more:
        unit += f", the mean of {more} after the first" + (f" {first}" if first > 1 else "")
    return Pair(ours, partial(clock, device, plainly), one, calls, unit)


def whole_set(size: Size, method: str, device: torch.device) -> Pair:
    """A whole set, computed as K times one outer iteration: all of them are alike."""
    pair = outer(size, method, method, device)
    K = gm.Recipe().outer_loops
    unit = f"a whole set, computed: K = {K} times {pair.unit}"
    return replace(pair, ours=lambda: K * pair.ours(), plain=lambda: K * pair.plain(), work=K * pair.work, unit=unit)


def real_pass(
    size: Size,
    device: torch.device,
    implementation: str | None = None,
    *,
    channels_last: bool = False,
    compiler: str | None = None,
) -> Pair:
    """The class gradients gT of one step alone: C batches of B real images. The options are for ours only.

    Parameters
    ----------
    size : Size
    device : torch.device
    implementation : str, optional
        A name in ``IMPLEMENTATIONS``; None for the library's choice.
    channels_last : bool
        Keep weights and images in this memory format.
    compiler : str, optional
        Backend of torch.compile for the network's forward pass.
    """
    data, recipe = random_data(size, device), recipe_of(size, "DC")
    network, rng = fresh_network(data, recipe, 0), generator(0, "batches")
    batches = [data.sample(c, size.B, rng) for c in range(size.C)]
    our_network, our_batches = network, batches
    if channels_last:
        our_network = copy.deepcopy(network).to(memory_format=torch.channels_last)
        our_batches = [x.contiguous(memory_format=torch.channels_last) for x in batches]
    if compiler:
        our_network = torch.compile(network, backend=compiler, dynamic=False)

    def plainly() -> None:
        for c, x in enumerate(batches):
            plain.class_gradient(network, x, c)

    one = size.C * work(ceiling.gradient, size, size.B)
    ours = partial(class_gradients, our_network, our_batches, implementation=implementation)
    unit = "the gradients of all classes"
    return Pair(partial(clock, device, ours), partial(clock, device, plainly), one, 2 * one, unit)


def derivative(size: Size, device: torch.device, implementation: str) -> Pair:
    """The class gradients gS of one step, and the derivative in the images of the sum of all their entries."""
    network, S, _ = _start(random_data(size, device), recipe_of(size, "DC"))

    def ours() -> None:
        g = class_gradients(network, S.split(size.ipc), create_graph=True, implementation=implementation)
        _derivative(g, S)

    def plainly() -> None:
        each = [plain.class_gradient(network, x, c, create_graph=True) for c, x in enumerate(S.split(size.ipc))]
        _derivative([layer for g in each for layer in g if layer.ndim > 1], S)

    one = size.C * work(ceiling.derivative, size, size.ipc)
    unit = "the gradients of all classes of S, and their derivative"
    return Pair(partial(clock, device, ours), partial(clock, device, plainly), one, 2 * one, unit)


def gradient(size: Size, device: torch.device) -> Pair:
    """The gradient of the loss on S: by `fast_forward`, and by the layers of the network as plain."""
    network, y = _network(size).to(device), torch.arange(size.C, device=device).repeat_interleave(size.ipc)
    x = torch.randn(len(y), *size.shape, generator=generator(0, "S")).to(device)

    def by(forward: Forward) -> Seconds:
        def gradients() -> None:
            for _ in range(GRADIENTS):
                F.cross_entropy(forward(x), y).backward()

        return lambda: clock(device, gradients) / GRADIENTS

    one = work(ceiling.gradient, size, len(y))
    unit = f"the gradient of {len(y)} images, the mean of {GRADIENTS}"
    return Pair(by(fast_forward(network, x)), by(network), one, 2 * GRADIENTS * one, unit)


def train(size: Size, varied: bool, n: tuple[int, int], epochs: int, device: torch.device) -> Pair:
    """Training on S: n[0] networks of ours and n[1] of plain. They are tested on only one image per class."""
    ours, plainly, one, _ = _evaluation(size, size.C, varied, n, epochs, device)
    n_ours, n_plain = n
    return Pair(
        lambda: clock(device, ours) / (n_ours * epochs),
        lambda: clock(device, plainly) / (n_plain * epochs),
        one,
        (n_ours + n_plain) * epochs * one,
        f"per network and epoch; {n_ours} networks ({n_plain} plain), {epochs} epochs",
    )


def evaluation(size: Size, varied: bool, n: tuple[int, int], epochs: int | None, device: torch.device) -> Pair:
    """All of phase 2: train and test n[0] networks of ours and n[1] of plain. epochs: None for the protocol's."""
    ours, plainly, one_epoch, epochs = _evaluation(size, size.n_test, varied, n, epochs, device)
    one = epochs * one_epoch + work(ceiling.forward, size, size.n_test)
    n_ours, n_plain = n
    return Pair(
        lambda: clock(device, ours) / n_ours,
        lambda: clock(device, plainly) / n_plain,
        one,
        (n_ours + n_plain) * one,
        f"per network; {n_ours} networks ({n_plain} plain), {epochs} epochs, {size.n_test} test images",
    )


def test(size: Size, device: torch.device) -> Pair:
    """The test of one network."""
    data, network = random_data(size, device), _network(size).to(device)
    one = work(ceiling.forward, size, size.n_test)
    ours = partial(clock, device, partial(accuracy, network, data.test_images, data.test_labels))
    plainly = partial(clock, device, partial(plain.accuracy, network, _test_set(data)))
    return Pair(ours, plainly, one, 2 * one, f"per network; {size.n_test} test images")


# ---- data, recipes and work -------------------------------------------------------------------------------


def random_data(size: Size, device: torch.device) -> gm.Data:
    """Random images on the device, equally many per class: the time does not depend on what they show."""
    return _random_data(size.shape, size.C, size.per_class, size.n_test, device)


@lru_cache(maxsize=1)  # cases of the same data follow each other
def _random_data(shape: tuple[int, int, int], C: int, per_class: int, n_test: int, device: torch.device) -> gm.Data:
    rng = torch.Generator().manual_seed(0)

    def draw(labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.randint(256, (len(labels), *shape), dtype=torch.uint8, generator=rng), labels

    train = draw(torch.arange(C).repeat_interleave(per_class))
    test = draw(torch.arange(n_test) % C)
    return gm.Data.from_arrays("random", *train, *test).to(device)


def recipe_of(size: Size, method: str) -> gm.Recipe:
    """The paper's recipe at this size, with one outer iteration."""
    sizes = {"width": size.width, "depth": size.depth, "batch_real": size.B, "precision": size.precision}
    return gm.Recipe.for_method(
        method, "random", size.ipc, **sizes, inner_loops=size.T, zeta_theta=size.zeta, outer_loops=1
    )


def work(passes: Callable[[nn.Module, Tensor, Tensor], None], size: Size, n: int) -> Work:
    """The work of ``passes`` over n images."""
    return _work(passes, size.shape, size.C, size.width, size.depth, n)


@cache  # counting takes about as long as a toy case
def _work(passes: Callable, shape: tuple[int, int, int], C: int, width: int, depth: int, n: int) -> Work:
    return ceiling.work(passes, _network(Size(shape, C, width=width, depth=depth)), n, shape)


def step_work(size: Size) -> Work:
    """The work of one update of S."""
    return size.C * work(ceiling.gradient, size, size.B) + size.C * work(ceiling.derivative, size, size.ipc)


def outer_work(size: Size, recipe: gm.Recipe) -> Work:
    """The work of one outer iteration."""
    T, zeta = recipe.schedule()
    one_pass = work(ceiling.gradient, size, size.C * size.ipc)
    return T * step_work(size) + where.steps_per_outer_iteration(recipe.where, T, zeta) * one_pass


def _start(data: gm.Data, recipe: gm.Recipe) -> tuple[nn.Module, Tensor, torch.optim.Optimizer]:
    S = initial(data, recipe).requires_grad_()
    optimiser_S = torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images)
    return fresh_network(data, recipe, 0), S, optimiser_S


def _derivative(g: list[Tensor], S: Tensor) -> None:
    torch.autograd.grad(g, S, [torch.ones_like(layer) for layer in g])


def _network(size: Size, j: int = 0) -> nn.Module:
    sizes = {"width": size.width, "depth": size.depth}
    return networks.build("convnet", size.shape, size.C, generator=generator(0, "benchmark", j), **sizes)


def _test_set(data: gm.Data) -> TensorDataset:
    return TensorDataset(data.test_images.cpu(), data.test_labels.cpu())


def _evaluation(
    size: Size, n_test: int, varied: bool, n: tuple[int, int], epochs: int | None, device: torch.device
) -> tuple[Callable[[], object], Callable[[], object], Work, int]:
    """Phase 2 by ours (n[0] networks) and by plain (n[1]), the work of one epoch, and the number of epochs."""
    data = random_data(size, device)
    data = replace(data, test_images=data.test_images[:n_test], test_labels=data.test_labels[:n_test])
    if varied:
        data = replace(data, name="MNIST")  # the protocol varies the images of MNIST
    x = torch.randn(size.C * size.ipc, *size.shape, generator=generator(0, "S")).to(device)
    S = gm.SyntheticSet(x, data.labels_of(size.ipc), data.classes, data.mean, data.std)
    protocol = {"width": size.width, "depth": size.depth, "epochs": epochs, "precision": size.precision}
    epochs = resolve_protocol(S, data, "convnet", **protocol)["epochs"]
    ours = partial(gm.evaluate, S, data, n_networks=n[0], device=device, progress=False, **protocol)
    vary = partial(plain.augmented, rng=np.random.default_rng(0)) if varied else None

    def plainly() -> None:
        fresh = (_network(size, j).to(device) for j in range(n[1]))
        plain.evaluate(fresh, S.images, S.labels, _test_set(data), epochs, vary)

    return ours, plainly, work(ceiling.gradient, size, len(S.labels)), epochs


# ---- the cases --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The sizes of all cases.

    Attributes
    ----------
    grey, colour, many : Size
        Grey images, colour images, and colour images of many classes.
    growing : Size
        The size from which one number at a time grows.
    axes : dict
        Name of a number -> its values.
    ipcs : tuple of int
    n_train, n_evaluate : tuple of int
        Networks of ours and of plain.
    epochs_train : int
    epochs_evaluate : int or None
        None for the protocol's.
    for_gpu : bool
        Include whole sets and passes over the real images of all classes. On a CPU they take hours and gigabytes.
    compiler : str
        Backend of torch.compile.
    """

    grey: Size
    colour: Size
    many: Size
    growing: Size
    axes: dict[str, tuple[int, ...]]
    ipcs: tuple[int, ...]
    n_train: tuple[int, int]
    epochs_train: int
    n_evaluate: tuple[int, int]
    epochs_evaluate: int | None
    for_gpu: bool
    compiler: str = "inductor"

    def in_precision(self, precision: str) -> Plan:
        """The same plan with matrix products in "float32" or "tf32"."""
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
    # On a CPU the library trains one network per thread, plain one after another: two networks show as much as fifty.
    "cpu": Plan(**FULL, n_train=(2, 1), epochs_train=10, n_evaluate=(2, 1), for_gpu=False),
    "cuda": Plan(**FULL, n_train=(50, 2), epochs_train=50, n_evaluate=(50, 1), for_gpu=True),
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
        for_gpu=True,
        compiler="eager",  # traces without compiling, which would take longer than everything else
    ),
}


def cases(plan: Plan) -> dict[str, Prepare]:
    """All cases of a plan: name -> the function that prepares the case on a device."""
    return dict(_cases(plan))


def _cases(plan: Plan) -> Iterator[tuple[str, Prepare]]:
    for base in (plan.grey, plan.colour, plan.many):
        sizes = [replace(base, ipc=ipc) for ipc in plan.ipcs]
        yield f"pass/{base.data}", partial(real_pass, base)
        for size in sizes:
            for method in plain.METHODS:
                yield f"step/{method}/{size.name}", partial(step, size, method)
        if base != plan.many:
            yield from _whole_run_cases(plan, base, sizes)
        yield from _implementation_cases(plan, base, sizes)
    for axis, values in plan.axes.items():
        for value in values:
            size = replace(plan.growing, **{axis: value})
            prepare = partial(outer, size, "DC", "DC") if axis == "T" else partial(step, size, "DC")
            yield f"growth/{axis}/{value}", prepare


def _implementation_cases(plan: Plan, base: Size, sizes: list[Size]) -> Iterator[tuple[str, Prepare]]:
    for name in IMPLEMENTATIONS if plan.for_gpu else ("loop",):
        yield f"implementation/{name}/{base.data}", partial(real_pass, base, implementation=name)
        if plan.for_gpu:
            prepare = partial(real_pass, base, implementation=name, channels_last=True)
            yield f"implementation/{name}+channels_last/{base.data}", prepare
    prepare = partial(real_pass, base, implementation="loop", compiler=plan.compiler)
    yield f"implementation/compiled/{base.data}", prepare
    for size in sizes:
        for name in IMPLEMENTATIONS:
            yield f"implementation/{name}/{size.name}", partial(derivative, size, implementation=name)


def _whole_run_cases(plan: Plan, base: Size, sizes: list[Size]) -> Iterator[tuple[str, Prepare]]:
    for size in sizes:
        for method in plain.METHODS:
            yield f"outer/{method}-vs-DC/{size.name}", partial(outer, size, method, "DC")
    if plan.for_gpu and base == plan.colour:
        for size in sizes[:2]:
            yield f"set/MDA/{size.name}", partial(whole_set, size, "MDA")
    yield f"gradient/{base.data}", partial(gradient, base)
    yield f"test/{base.data.partition('/')[0]}", partial(test, base)
    for size in sizes:
        for varied in (False, True) if base == plan.grey else (False,):
            name = f"{size.name}/{'varied' if varied else 'as-is'}"
            yield f"train/{name}", partial(train, size, varied, plan.n_train, plan.epochs_train)
            yield f"evaluate/{name}", partial(evaluation, size, varied, plan.n_evaluate, plan.epochs_evaluate)
