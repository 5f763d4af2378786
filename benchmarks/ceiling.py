"""The best that a machine can do: its measured rates, and the counted work of a piece of the algorithm.

The ceiling of a piece of work is the least time it can take: max(operations / rate of matrix products, bytes / rate
of copying). It is the maximum and not the sum because a good program computes while it moves data. Only necessary
work is counted: the operations of convolutions and matrix products, and their operands and results once each. Norm,
activation, pooling, distances and updates count as free.
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

PRODUCTS = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # sides of the square matrices to multiply
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes of the tensor to copy: far more than a cache holds


# ---- rates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Measured rates of one device.

    Attributes
    ----------
    products : dict
        Precision ("float32", on CUDA also "tf32") -> operations per second.
    copying : float
        Bytes per second; reads and writes both count.
    """

    products: dict[str, float]
    copying: float


def measure(device: torch.device, seconds: float = 0.5) -> Machine:
    """Measure the best rates of a device. Each matrix size and the copy take about ``seconds``."""
    rates = {}
    for precision in ("float32", "tf32") if device.type == "cuda" else ("float32",):
        with matmul_precision(precision):
            rates[precision] = max(_products(device, side, seconds) for side in PRODUCTS[device.type])
    n = COPIED[device.type] // 4
    source, target = torch.ones(n, device=device), torch.zeros(n, device=device)
    return Machine(rates, 2 * 4 * n / _best(device, lambda: target.copy_(source), seconds))


def clock(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds until the device has done all work of ``call``."""
    _synchronise(device)
    started = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _products(device: torch.device, side: int, seconds: float) -> float:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=rng).to(device) for _ in range(2))
    result = torch.empty_like(a)
    return 2 * side**3 / _best(device, lambda: torch.mm(a, b, out=result), seconds)


def _best(device: torch.device, call: Callable[[], object], seconds: float) -> float:
    """The shortest of as many calls as fit into ``seconds``, but at least one. The first call is not timed."""
    call()
    once = clock(device, call)
    return min([once, *(clock(device, call) for _ in range(int(seconds / once)))])


# ---- work -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Operations (a multiplication and an addition count as two), and bytes read and written."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> Work:
        return Work(times * self.flops, times * self.bytes)

    def seconds(self, machine: Machine, precision: str = "float32") -> float:
        """The least time on a machine."""
        return max(self.flops / machine.products[precision], self.bytes / machine.copying)


def forward(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """A test pass."""
    with torch.no_grad():
        network(x)


def gradient(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """The gradient in the weights, of real images or of a step of theta."""
    torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters()))


def derivative(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """The gradient in the weights for one class of S, and the derivative of a function of it in the images."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    x = x.detach().requires_grad_()
    # FlopCounterMode's hooks fail on the leaf itself (torch 2.14), so pass a copy.
    g = torch.autograd.grad(F.cross_entropy(network(x.clone()), y), weights, create_graph=True)
    torch.autograd.grad(g, x, grad_outputs=[torch.ones_like(each) for each in g])


def work(
    passes: Callable[[nn.Module, Tensor, Tensor], None], network: nn.Module, n: int, shape: tuple[int, int, int]
) -> Work:
    """Count the work of ``passes`` over n images of ``shape`` (channels, height, width). Nothing is computed."""
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
