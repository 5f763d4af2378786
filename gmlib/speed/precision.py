"""TF32 or float32 for matrix products on CUDA, and bfloat16 or float32 for the pass over real images."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .gradients import class_gradients

log = logging.getLogger(__name__)

_LOCK = threading.Lock()
_active: list[tuple[int, bool]] = []  # the thread of each `matmul_precision` block that runs, and whether with TF32
_previous: list[bool] = []  # settings to restore when the last block ends


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Run a block with CUDA matrix products and convolutions in TF32 or full float32, then restore the old settings.

    Blocks in blocks of one thread may differ.

    Parameters
    ----------
    precision : str
        TF32 if it contains "tf32", else float32.

    Raises
    ------
    RuntimeError
        If another thread is in a block with the other setting. The settings hold for the whole process.
    """
    # Reading these two names works after torch's older and its newer names were set. The reverse does not.
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = "tf32" in precision
    block = (threading.get_ident(), tf32)
    with _LOCK:
        if any(thread != block[0] and other != tf32 for thread, other in _active):
            raise RuntimeError(
                "one thread needs TF32 and another float32: run them one after the other or in processes"
            )
        if not _active:
            _previous[:] = [matmul.allow_tf32, convolution.allow_tf32]
        matmul.allow_tf32 = convolution.allow_tf32 = tf32
        _active.append(block)
    try:
        yield
    finally:
        with _LOCK:
            _active.remove(block)
            settings = [_active[-1][1]] * 2 if _active else _previous  # back to the block around this one
            matmul.allow_tf32, convolution.allow_tf32 = settings


MEASURED = 64  # images that a precision is timed with on a CPU
GAIN = 1.25  # bfloat16 must be faster than float32 by this factor


def fastest_precision(network: nn.Module, batches: Sequence[Tensor]) -> str:
    """Measure whether the pass over real images should run in bfloat16.

    Parameters
    ----------
    network : nn.Module
    batches : sequence of Tensor
        Real images of each class.

    Returns
    -------
    str
        "bf16" if the device has instructions for it and it is faster by ``GAIN``, else "float32".
    """
    first = batches[0]
    if not has_bf16(first.device) or first.dtype != torch.float32:
        return "float32"
    # A GPU takes all classes at once. A CPU takes one class after another, so a part of one tells.
    measured = batches if first.device.type == "cuda" else [first[:MEASURED]]
    seconds = {"float32": math.inf, "bf16": math.inf}
    with matmul_precision("float32"):
        for precision in (*seconds, *seconds, *seconds):  # in turn, and the best of three
            seconds[precision] = min(seconds[precision], _seconds(network, measured, precision))
    gain = seconds["float32"] / seconds["bf16"]
    log.info("bfloat16 is faster than float32 by a factor of %.2f for the pass over real images", gain)
    return "bf16" if gain >= GAIN else "float32"


def has_bf16(device: torch.device) -> bool:
    """True if the device multiplies matrices in bfloat16. Without AMX or AVX512-BF16 a CPU is slower with it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _seconds(network: nn.Module, batches: Sequence[Tensor], precision: str) -> float:
    started = time.perf_counter()
    g = class_gradients(network, batches, precision=precision)
    g[0].sum().item()  # waits for the device
    return time.perf_counter() - started
