"""Measure the library beside a plain implementation and the ceiling of the machine, in one process and one run:

    python benchmarks/bench.py                                # every case that fits into the time a case has
    python benchmarks/bench.py --cases 'step/*' --repeats 5 --seconds 600 --out step.json
    python benchmarks/bench.py --quick                        # toy sizes, to see that everything runs

README.md beside this file says what the cases and the columns are. Exit status: 0 done; 1 FILE could not be written;
2 bad input, nothing was measured; 130 interrupted, FILE holds the cases that were done.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import cache, lru_cache, partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import ceiling
import numpy as np
import plain
import torch
from ceiling import Machine, Work, clock, work
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import gmlib as gm
from gmlib import networks, where
from gmlib.condense import STREAMS, fresh_network, initial, match, sample
from gmlib.cost import PeakMemory
from gmlib.data import write_atomically
from gmlib.evaluate import accuracy, settle
from gmlib.gradients import class_gradients
from gmlib.memory import Memory
from gmlib.recipe import check_number, choose, device_of, generator
from gmlib.store import environment

Seconds = Callable[[], float]
MORE = 4  # outer iterations beyond the first that are timed on CUDA


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

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape)) + f"/C{self.C}/ipc{self.ipc}"


@dataclass(frozen=True)
class Pair:
    """The two sides of a case: each call does the work and returns the seconds of one unit of it."""

    ours: Seconds
    plain: Seconds
    work: Work  # of one unit of ours
    calls: Work  # of a call of ours and one of plain together
    unit: str


# ---- what is measured -------------------------------------------------------------------------------------


def step(size: Size, method: str, device: torch.device) -> Pair:
    """One update of S, lines 5-9 of Algorithm 1: batches drawn, gradients matched, S moved."""
    data, recipe = made_up(size, device), recipe_of(size, method)
    network, S, optimise_S = _start(data, recipe)
    labels, weights = _labels(size, device), torch.full((size.C,), 1 / size.C, dtype=torch.float64, device=device)
    memory, updates = Memory(largest=max(size.B, size.ipc)), count()

    def ours() -> None:
        streams = {use: generator(recipe.seed, use, next(updates)) for use in STREAMS}
        _, S.grad, _, _ = match(network, S, labels, sample(data, recipe, streams), weights, recipe, 0, memory)
        optimise_S.step()

    network_too, S_too, optimise_S_too = _start(data, recipe)
    batches = data.train_images, plain.indices_by_class(data.train_labels), size.B, np.random.default_rng(0)
    written_plainly = partial(plain.update, method, network_too, S_too, optimise_S_too, *batches)
    one = step_work(size)
    return Pair(partial(clock, device, ours), partial(clock, device, written_plainly), one, 2 * one, "one update of S")


def outer(size: Size, method: str, beside: str, device: torch.device) -> Pair:
    """One outer iteration of Algorithm 1: ours of `method`, plain of the method `beside`."""
    data, recipe, recipe_too = made_up(size, device), recipe_of(size, method), recipe_of(size, beside)
    iterations = (1, 1 + MORE) if device.type == "cuda" else (1,)

    def ours() -> float:
        runs = [partial(gm.condense, data, replace(recipe, outer_loops=K), device, progress=False) for K in iterations]
        first, *more = (clock(device, run) for run in runs)
        # A run on CUDA begins with what is done once (captures, say), and has K = 1000 iterations to make up for it.
        return (more[0] - first) / MORE if more else first

    _, S, optimise_S = _start(data, recipe_too)
    indices, rng, drawn = plain.indices_by_class(data.train_labels), np.random.default_rng(0), count()
    T, zeta = recipe_too.schedule()

    def written_plainly() -> None:
        network = fresh_network(data, recipe_too, next(drawn))
        plain.outer_iteration(beside, network, S, optimise_S, data.train_images, indices, T=T, zeta=zeta, batch=size.B, rng=rng)

    one, one_too = outer_work(size, recipe), outer_work(size, recipe_too)
    calls = sum(iterations) * one + one_too
    unit = "one outer iteration" + (f", the mean of {MORE} after the first" if len(iterations) > 1 else "")
    return Pair(ours, partial(clock, device, written_plainly), one, calls, unit)


def real_pass(size: Size, device: torch.device) -> Pair:
    """The class gradients gT of one step alone: C batches of B real images."""
    data, recipe = made_up(size, device), recipe_of(size, "DC")
    network, rng = fresh_network(data, recipe, 0), generator(0, "batches")
    batches = [data.sample(c, size.B, rng) for c in range(size.C)]

    def written_plainly() -> None:
        for c, x in enumerate(batches):
            plain.class_gradient(network, x, c)

    one = size.C * work(ceiling.gradient, network, size.B, size.shape)
    ours = partial(clock, device, partial(class_gradients, network, batches))
    return Pair(ours, partial(clock, device, written_plainly), one, 2 * one, "the gradients of all classes")


def train(size: Size, varied: bool, n: tuple[int, int], epochs: int, device: torch.device) -> Pair:
    """Training on S: n networks of ours and n of plain. The test is one image of each class, so that it costs nothing."""
    ours, written_plainly, one, _ = _evaluation(size, size.C, varied, n, epochs, device)
    unit = f"per network and epoch; {n[0]} networks ({n[1]} plain), {epochs} epochs"
    each = n[0] * epochs, n[1] * epochs
    return Pair(
        lambda: clock(device, ours) / each[0], lambda: clock(device, written_plainly) / each[1], one, sum(each) * one, unit
    )


def evaluation(size: Size, varied: bool, n: tuple[int, int], epochs: int | None, device: torch.device) -> Pair:
    """Phase 2 whole: n networks of ours and n of plain trained on S, for the epochs of the protocol, and tested."""
    ours, written_plainly, one_epoch, epochs = _evaluation(size, size.n_test, varied, n, epochs, device)
    one = epochs * one_epoch + work(ceiling.forward, _network(size), size.n_test, size.shape)
    unit = f"per network; {n[0]} networks ({n[1]} plain), {epochs} epochs, {size.n_test} test images"
    return Pair(lambda: clock(device, ours) / n[0], lambda: clock(device, written_plainly) / n[1], one, sum(n) * one, unit)


def test(size: Size, device: torch.device) -> Pair:
    """The test of one network."""
    data, network = made_up(size, device), _network(size).to(device)
    one = work(ceiling.forward, network, size.n_test, size.shape)
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
    sizes = {"width": size.width, "depth": size.depth, "batch_real": size.B}
    return gm.Recipe.for_method(method, "random", size.ipc, **sizes, inner_loops=size.T, zeta_theta=size.zeta, outer_loops=1)


@cache  # counting takes about as long as a toy case
def step_work(size: Size) -> Work:
    """Of one update of S."""
    network = _network(size)
    real = size.C * work(ceiling.gradient, network, size.B, size.shape)
    return real + size.C * work(ceiling.derivative, network, size.ipc, size.shape)


def outer_work(size: Size, recipe: gm.Recipe) -> Work:
    """Of one outer iteration."""
    T, zeta = recipe.schedule()
    one_pass = work(ceiling.gradient, _network(size), size.C * size.ipc, size.shape)
    return T * step_work(size) + where.steps_per_outer_iteration(recipe.where, T, zeta) * one_pass


def _start(data: gm.Data, recipe: gm.Recipe) -> tuple[nn.Module, Tensor, torch.optim.Optimizer]:
    S = initial(data, recipe).requires_grad_()
    return fresh_network(data, recipe, 0), S, torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images)


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
    protocol = {"width": size.width, "depth": size.depth, "epochs": epochs}
    epochs = settle(S, data, "convnet", **protocol)["epochs"]
    ours = partial(gm.evaluate, S, data, n_networks=n[0], device=device, progress=False, **protocol)
    vary = partial(plain.augmented, rng=np.random.default_rng(0)) if varied else None

    def written_plainly() -> None:
        fresh = (_network(size, j).to(device) for j in range(n[1]))
        plain.evaluate(fresh, S.images, S.labels, _test_set(data), epochs, vary)

    return ours, written_plainly, work(ceiling.gradient, _network(size), len(S.labels), size.shape), epochs


# ---- the cases --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The sizes of all cases, and how many networks and epochs stand for phase 2."""

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
    # On a CPU networks are trained one after another, and one tells as much as fifty.
    "cpu": Plan(**FULL, n_train=(1, 1), epochs_train=3, n_evaluate=(1, 1)),
    "cuda": Plan(**FULL, n_train=(50, 2), epochs_train=20, n_evaluate=(50, 1)),
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
    ),
}


def cases(plan: Plan) -> dict[str, Callable[[torch.device], Pair]]:
    """Every case of a plan: its name -> the function that prepares it on a device."""
    return dict(_cases(plan))


def _cases(plan: Plan) -> Iterator[tuple[str, Callable[[torch.device], Pair]]]:
    for base in (plan.grey, plan.colour, plan.many):
        sizes = [replace(base, ipc=ipc) for ipc in plan.ipcs]
        yield f"pass/{base.name.rpartition('/')[0]}", partial(real_pass, base)
        for size in sizes:
            for method in plain.METHODS:
                yield f"step/{method}/{size.name}", partial(step, size, method)
        if base == plan.many:
            continue
        for size in sizes:
            for method in plain.METHODS:
                yield f"outer/{method}-beside-DC/{size.name}", partial(outer, size, method, "DC")
        yield f"test/{base.name.partition('/')[0]}", partial(test, base)
        for size in sizes:
            for varied in (False, True) if base == plan.grey else (False,):
                name = f"{size.name}/{'varied' if varied else 'as-is'}"
                yield f"train/{name}", partial(train, size, varied, plan.n_train, plan.epochs_train)
                yield f"evaluate/{name}", partial(evaluation, size, varied, plan.n_evaluate, plan.epochs_evaluate)
    for axis, values in plan.axes.items():
        for value in values:
            size = replace(plan.growing, **{axis: value})
            yield f"growth/{axis}/{value}", partial(outer, size, "DC", "DC") if axis == "T" else partial(step, size, "DC")


# ---- measuring --------------------------------------------------------------------------------------------


def measure(
    prepare: Callable[[torch.device], Pair],
    device: torch.device,
    machine: Machine,
    *,
    repeats: int,
    seconds: float,
    precision: str = "float32",
) -> dict[str, Any]:
    """Time both sides of a case in turn, `repeats` times or as often as fits into `seconds`, once at least.

    The first call of each side is not timed, and tells how long a call takes and its peak memory. Returns plain JSON types; for a
    case whose two sides cannot be called once in `seconds`, or not at all, "not_run" says why.
    """
    pair = prepare(device)
    least = pair.calls.seconds(machine, precision)
    if least > seconds:
        return {"unit": pair.unit, "not_run": f"would take about {(1 + repeats) * least:.0f} s or more"}
    once, peaks = 0.0, {}
    for side in ("ours", "plain"):
        peak = PeakMemory(device)
        try:
            once += clock(device, getattr(pair, side))
        except torch.OutOfMemoryError:
            return {"unit": pair.unit, "not_run": f"{side} ran out of memory"}
        peaks[side] = peak()
    if once > seconds:
        return {"unit": pair.unit, "not_run": f"would take about {(1 + repeats) * once:.0f} s"}
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for r in range(max(1, min(repeats, int(seconds / once)))):
        for side in ("ours", "plain") if r % 2 else ("plain", "ours"):
            times[side].append(getattr(pair, side)())
    ours, beside, best = median(times["ours"]), median(times["plain"]), pair.work.seconds(machine, precision)
    return {
        "unit": pair.unit, "repeats": len(times["ours"]), "plain": beside, "ours": ours, "ratio": beside / ours,
        "ceiling": best, "fraction_of_ceiling": best / ours, "flops": pair.work.flops, "bytes": pair.work.bytes,
        **{f"seconds_{side}": each for side, each in times.items()},
        **{f"peak_memory_bytes_{side}": None if each != each else each for side, each in peaks.items()},  # NaN: not known
    }  # fmt: skip


HEADER = "{:<46} {:>11} {:>11} {:>7} {:>8} {:>9} {:>9} {:>3}  {}".format(
    "case", "plain s", "ours s", "ratio", "ceiling", "MB ours", "MB plain", "n", "unit"
)


def row(name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    if "not_run" in found:
        return f"{name:<46} not run: {found['not_run']}"
    held = [found[f"peak_memory_bytes_{side}"] for side in ("ours", "plain")]
    ours, beside = ("?" if bytes_ is None else f"{bytes_ / 1e6:.1f}" for bytes_ in held)
    return (
        f"{name:<46} {found['plain']:>11.4g} {found['ours']:>11.4g} {found['ratio']:>7.2f} "
        f"{found['fraction_of_ceiling']:>8.1%} {ours:>9} {beside:>9} {found['repeats']:>3}  {found['unit']}"
    )


def run(
    pattern: str = "*",
    *,
    repeats: int = 3,
    seconds: float = 120.0,
    out: str | os.PathLike | None = None,
    quick: bool = False,
    device: torch.device | str | None = None,
    tf32: bool = False,
) -> dict[str, Any]:
    """Measure the cases whose name fits `pattern`, print the table, and store all of it in `out` after every case.

    seconds: that the repeats of one case may take. Returns what is stored. Raises ValueError, in one sentence, for input that
    does not fit, before anything is measured; OSError where `out` cannot be written.
    """
    check_number("repeats", repeats, least=1, whole=True)
    check_number("seconds", seconds, above=0)
    device = device_of(device)
    choose(ceiling.PRODUCTS, "device", device.type)
    if tf32 and device.type != "cuda":
        raise ValueError(f"TF32 is of CUDA devices, and this is {device}: leave out --tf32")
    every = cases(PLANS["quick" if quick else device.type])
    chosen = {name: prepare for name, prepare in every.items() if fnmatch(name, pattern)}
    if not chosen:
        raise ValueError(f"no case fits {pattern!r}: choose from {', '.join(every)}")
    out = Path(out or f"runs/{'benchmarks-quick' if quick else 'benchmarks'}.json")
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"the output {out} does not fit: give a file that ends in .json")

    machine, precision = ceiling.measure(device, 0.01 if quick else 0.5), "tf32" if tf32 else "float32"
    settings = {"repeats": repeats, "seconds": seconds, "quick": quick, "precision": precision}
    stored = {"environment": environment(device), "settings": settings, "machine": asdict(machine), "cases": {}}
    made_on = stored["environment"]
    print(f"{made_on['device_name']}, {made_on['threads']} threads, torch {made_on['torch']}, {precision}")
    rates = ", ".join(f"{name} {rate / 1e9:.1f} GFLOP/s" for name, rate in machine.products.items())
    print(f"matrix products: {rates}; copying: {machine.copying / 1e9:.1f} GB/s\n\n{HEADER}", flush=True)
    with ceiling.precision(tf32):
        for name, prepare in chosen.items():
            found = measure(prepare, device, machine, repeats=repeats, seconds=seconds, precision=precision)
            stored["cases"][name] = found
            write_atomically(out, json.dumps(stored, indent=1, allow_nan=False).encode())
            print(row(name, found), flush=True)
    print(f"\nstored in {out}")
    return stored


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python benchmarks/bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", metavar="GLOB", default="*", dest="pattern", help="names, as 'step/*/ipc10' (all)")
    parser.add_argument("--repeats", metavar="N", type=int, default=3, help="timed calls of each side (%(default)s)")
    parser.add_argument("--seconds", metavar="S", type=float, default=120.0, help="that one case may take (%(default)s)")
    parser.add_argument("--out", metavar="FILE", help="a .json file (runs/benchmarks.json, with --quick benchmarks-quick.json)")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--device", help="cpu or cuda (CUDA where there is one)")
    parser.add_argument("--tf32", action="store_true", help="TF32 for both sides, on CUDA")
    gc.freeze()  # what is there by now stays: the collector need not look through it again before every case
    try:
        run(**vars(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
