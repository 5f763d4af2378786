"""The C heap under which each side runs, where that is the CPU's.

gmlib lets glibc keep freed memory for the next pass (`gmlib.memory.keep_heap`). The setting is of the whole process, so plain
would profit from it too. It gets what a process comes to by itself instead: as blocks of up to 32 MiB are freed, glibc raises
the threshold above which a block is mapped by itself, and the free memory that it keeps at the top of the heap to twice that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gmlib.speed.memory import HEAP

BY_ITSELF = {"M_MMAP_THRESHOLD": 2**25, "M_TRIM_THRESHOLD": 2**26, "M_TOP_PAD": 2**17}  # bytes


@contextmanager
def of(side: str, device: torch.device) -> Iterator[None]:
    """Run under the settings of "ours" or "plain", from a heap that has handed back what was free; then gmlib's hold again.

    On CUDA, where gmlib leaves the heap alone, and with a C library that has no such settings nothing is done.
    """
    gmlibs = {name: value for name, (_, value) in HEAP.items()}
    if device.type != "cpu":
        yield
        return
    _set(BY_ITSELF if side == "plain" else gmlibs)
    _hand_back()
    try:
        yield
    finally:
        _set(gmlibs)


def _set(sizes: dict[str, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, size in sizes.items() if mallopt else ():
        mallopt(HEAP[name][0], size)


def _hand_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
