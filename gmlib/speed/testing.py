"""The classes that a trained network predicts for many images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..runtime import in_time
from .forward import Forward, fast_forward
from .memory import Memory
from .passes import CPU_CACHE_TEST, fitting
from .precision import has_bf16

PASS = 2048  # images in one pass at most
CHECKED = 256  # images that show how much bfloat16 changes the logits
SAFETY = 4  # two logits are close if they differ by less than this times the largest change


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    """Predict the class of every image.

    A CPU that multiplies in bfloat16 computes the logits of the ConvNet in bfloat16 first, and in float32 again for
    the images whose two largest logits are close. The classes are those of float32.

    Parameters
    ----------
    network : nn.Module
        Left in training mode.
    x : Tensor
        (N, channels, height, width).

    Returns
    -------
    Tensor
        (N,) int64, -1 for an image with an output that is NaN or infinite.
    """
    network.eval()
    exact = fast_forward(network, x)
    rough = exact
    if has_bf16(x.device) and x.dtype == torch.float32 and len(x) >= PASS:
        rough = fast_forward(network, x, torch.bfloat16)
    fits = fitting(network, x, CPU_CACHE_TEST) or PASS
    memory = Memory(largest=PASS)
    for attempt in memory:
        with attempt:
            size = min(memory.chunk or PASS, fits)
            # On CUDA, and for other networks, `fast_forward` has returned the network both times.
            logits = _logits(exact, x, size) if rough is exact else _logits_in_two_steps(exact, rough, x, size)
    network.train()
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def _logits(forward: Forward, x: Tensor, size: int) -> Tensor:
    return torch.cat([forward(part) for part in in_time(x.split(size))])


def _logits_in_two_steps(exact: Forward, rough: Forward, x: Tensor, size: int) -> Tensor:
    """Logits by ``rough``, and by ``exact`` where its error might change the class."""
    logits = _logits(rough, x, size)
    some = slice(None, None, max(1, len(x) // CHECKED))  # of all classes, also if images are sorted
    error = logits[some] - _logits(exact, x[some], size)
    change = (error.amax(1) - error.amin(1)).max()  # of the difference of two logits
    largest, second = logits.topk(2, 1).values.unbind(1)
    close = ~(largest - second > SAFETY * change)  # also where a logit is NaN
    if close.any():
        logits[close] = _logits(exact, x[close], size)
    return logits
