"""Smaller passes when memory runs out, and the peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

log = logging.getLogger(__name__)


class Memory:
    """The number of images per pass, halved whenever the device runs out of memory.

    Use it as a loop that repeats its body after an out-of-memory error::

        memory = Memory(largest=256)
        for attempt in memory:
            with attempt:
                g = class_gradients(network, batches, chunk=memory.chunk)

    Parameters
    ----------
    largest : int
        Images in the largest batch, where halving starts; 1 for work that cannot be split.

    Attributes
    ----------
    chunk : int or None
        Images in one pass at most; None until memory ran out.
    """

    def __init__(self, largest: int):
        self.chunk: int | None = None
        self.largest = largest

    def __iter__(self) -> Iterator[Memory]:
        self.done = False
        while not self.done:
            yield self
            if not self.done and torch.cuda.is_available():
                torch.cuda.empty_cache()  # not in __exit__, where the error still holds the tensors of its calls

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> bool:
        self.done = error is None
        chunk = (self.chunk or self.largest) // 2
        if error is None or not _is_out_of_memory(error) or chunk < 1:
            return False
        self.chunk = chunk
        log.warning("out of memory: continuing with at most %d images per pass", chunk)
        return True


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class PeakMemory:
    """Measure the peak memory of a piece of work, in bytes above the memory in use when the object was made.

    Call the object after the work. The result is NaN if the system does not report it.

    Parameters
    ----------
    device : torch.device
        On CUDA the memory of tensors is measured, on a CPU the resident memory of the process (Linux only).
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.before = math.nan
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        with suppress(OSError, AttributeError, TypeError):  # another system, or no permission
            ctypes.CDLL(None).malloc_trim(0)  # work that reuses freed memory would not show
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak VmHWM to the current VmRSS
            self.before = _resident_bytes("VmRSS")

    def __call__(self) -> float:
        """Return the peak since construction, in bytes."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device) - self.before)
        if math.isnan(self.before):
            return math.nan
        return max(0.0, _resident_bytes("VmHWM") - self.before)  # the kernel may have taken unused pages away since


def _resident_bytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(name))
