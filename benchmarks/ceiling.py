"""What the machine can do at best: its measured rates, and the counted work of a piece of the algorithm.

The ceiling of a piece of work is the least time it can take: max(operations / rate of matrix products, bytes / rate of copying).
The maximum, because arithmetic and traffic can go on at once: their sum is the time of a program that does one after the other,
and a better one would pass it. What is counted is what cannot be left out: the operations of convolutions and matrix products,
and their operands and results once each, as if norm, activation, pooling, distances and updates were free.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from gmlib.speed.precision import matmul_precision

PRODUCTS = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # sides of the square matrices that are multiplied
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes of the tensor that is copied: far more than a cache holds


# ---- rates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Measured rates of one device."""

    products: dict[str, float]  # precision -> operations per second: "float32", and on CUDA "tf32"
    copying: float  # bytes per second, read and written counted


def measure(device: torch.device, seconds: float = 0.5) -> Machine:
    """Best rates seen on `device`, each size and the copy tried for about `seconds`; the first call of each is not counted."""
    rates = {}
    for precision in ("float32", "tf32") if device.type == "cuda" else ("float32",):
        with matmul_precision(precision):
            rates[precision] = max(_products(device, side, seconds) for side in PRODUCTS[device.type])
    n = COPIED[device.type] // 4
    source, target = torch.ones(n, device=device), torch.zeros(n, device=device)
    return Machine(rates, 2 * 4 * n / _best(device, lambda: target.copy_(source), seconds))


def clock(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds that `call` takes, until the device has done all of it."""
    synchronise(device)
    begun = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _products(device: torch.device, side: int, seconds: float) -> float:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=rng).to(device) for _ in range(2))
    result = torch.empty_like(a)
    return 2 * side**3 / _best(device, lambda: torch.mm(a, b, out=result), seconds)


def _best(device: torch.device, call: Callable[[], object], seconds: float) -> float:
    """The shortest of the calls that fit into `seconds`, at least one."""
    call()
    once = clock(device, call)
    return min([once, *(clock(device, call) for _ in range(int(seconds / once)))])


# ---- work -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Operations (a multiplication and an addition are two), and bytes read and written."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> Work:
        return Work(times * self.flops, times * self.bytes)

    def seconds(self, machine: Machine, precision: str = "float32") -> float:
        """The ceiling on this machine."""
        return max(self.flops / machine.products[precision], self.bytes / machine.copying)


def forward(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """A test pass."""
    with torch.no_grad():
        network(x)


def gradient(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """The gradient in the weights: of real images, or of a step of theta."""
    torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters()))


def derivative(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """The gradient in the weights, and the derivative of a function of it in the images: of one class of S."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    x = x.detach().requires_grad_()
    # A copy, because FlopCounterMode's hooks cannot stand the leaf itself (torch 2.14).
    g = torch.autograd.grad(F.cross_entropy(network(x.clone()), y), weights, create_graph=True)
    torch.autograd.grad(g, x, grad_outputs=[torch.ones_like(each) for each in g])


def work(
    passes: Callable[[nn.Module, Tensor, Tensor], None], network: nn.Module, n: int, shape: tuple[int, int, int]
) -> Work:
    """The counted work of `passes` over n images of `shape` (channels, height, width); nothing is computed."""
    network = copy.deepcopy(network).to("meta")
    x, y = torch.empty(n, *shape, device="meta"), torch.zeros(n, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, _Traffic() as traffic:
        passes(network, x, y)
    return Work(counter.get_total_flops(), traffic.bytes)


class _Traffic(TorchDispatchMode):
    """Counts the bytes of operands and results of the operations whose flops FlopCounterMode counts."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor))
        return result
