"""How many images go through a network in one pass, and how passes share the cores of a CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..runtime import stop_with
from .trust import mixes_images

Item = TypeVar("Item")
Result = TypeVar("Result")

CPU_CACHE = 2**24  # bytes for the widest activation of one pass on a CPU
CPU_CACHE_TEST = 2**23  # the same for a test, which is a forward pass only
# Activations as large as the widest that a pass of the ConvNet holds at once: four per layer, and their gradients.
ACTIVATIONS_HELD = 16


def pass_size(network: nn.Module, x: Tensor, cpu_cache: int = CPU_CACHE) -> int | None:
    """Return how many images of ``x`` to take in one pass; None for all of them.

    On CUDA this is what fits into memory. On a CPU passes are faster if their widest activation stays in the cache,
    because larger activations are fresh memory at every layer. Seconds on one core with ConvNet-3-128, whole and in
    parts: class gradients of 256 grey 28x28 images 1.9 and 1.1, a training pass over 256 colour 32x32 images 1.9 and
    1.2, a forward pass over 512 grey 28x28 images 1.5 and 0.8.

    Parameters
    ----------
    network : nn.Module
        If it mixes images, as BatchNorm does in train mode, the batch must stay whole: the result is None.
    x : Tensor
        (n, channels, height, width).
    cpu_cache : int
        Bytes for the widest activation on a CPU.
    """
    return None if mixes_images(network, x) else fitting(network, x, cpu_cache)


def fitting(network: nn.Module, x: Tensor, cpu_cache: int = CPU_CACHE) -> int | None:
    """`pass_size` for a network that does not mix images, as in eval mode. The parameters are the same."""
    if x.device.type not in ("cpu", "cuda"):
        return None
    # The first convolution has the widest output: later ones have more channels, but fewer pixels.
    width = next((p.shape[0] for p in network.parameters() if p.ndim == 4), x.shape[1])
    bytes_per_image = width * x[0, 0].numel() * x.element_size()
    available = cpu_cache if x.device.type == "cpu" else _cuda_bytes_per_activation(x.device)
    return max(1, available // bytes_per_image)


@cache  # asked once, so that all passes of a run have the same size; `memory.Memory` helps if it was too much
def _cuda_bytes_per_activation(device: torch.device) -> int:
    """Bytes for the widest activation: half of the free memory, divided by the activations held at once."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own cache
    return free // (2 * ACTIVATIONS_HELD)


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], n_threads: int) -> list[Result]:
    """Return [function(item) for item in items], computed by ``n_threads`` threads that share torch's CPU threads.

    Torch's threads wait for each other at the end of every layer. Threads with separate work do not: on two cores
    with ConvNet-3-128, class gradients of 256 grey 28x28 images take 0.50 s with two threads and 0.86 s with one.
    """
    if n_threads == 1:
        return [function(item) for item in items]
    torch_threads = torch.get_num_threads()

    stop = threading.Event()

    def call(item: Item) -> Result:
        torch.set_num_threads(max(1, torch_threads // n_threads))  # applies to the calling thread
        stop_with(stop)
        return function(item)

    try:
        with ThreadPoolExecutor(n_threads) as pool:
            # A thread does not inherit the time limit, which is a context variable.
            calls = [pool.submit(copy_context().run, call, item) for item in items]
            try:
                for each in as_completed(calls):
                    each.result()  # the first error, in whichever thread
                return [each.result() for each in calls]
            except BaseException:  # Ctrl-C, or an error in one thread: the others need not finish
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(torch_threads)  # also the number that later threads start with
