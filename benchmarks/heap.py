"""The settings of the C heap under which each side runs on a CPU.

gmlib lets glibc keep freed memory for the next pass (``gmlib.runtime.keep_freed_memory``). This setting holds
for the whole process, so plain would profit from it too. Plain gets the settings that glibc reaches without it:
when blocks of up to 32 MiB are freed, glibc raises the size above which blocks are mapped separately to 32 MiB, and
the free memory that it keeps at the top of the heap to twice that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from gmlib.runtime import HEAP_SETTINGS

DEFAULT = {"M_MMAP_THRESHOLD": 2**25, "M_TRIM_THRESHOLD": 2**26, "M_TOP_PAD": 2**17}  # bytes


@contextmanager
def settings_of(side: str, device: torch.device) -> Iterator[None]:
    """Run a block under the settings of "ours" or "plain" and without freed memory on the heap, then restore gmlib's.

    Does nothing on CUDA, where gmlib does not change the heap, and with C libraries that do not have these settings.
    """
    if device.type != "cpu":
        yield
        return
    gmlibs = {name: value for name, (_, value) in HEAP_SETTINGS.items()}
    _set(DEFAULT if side == "plain" else gmlibs)
    _call("malloc_trim", 0)  # returns freed memory to the system
    try:
        yield
    finally:
        _set(gmlibs)


def _set(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        _call("mallopt", HEAP_SETTINGS[name][0], size)


def _call(name: str, *arguments: int) -> None:
    with suppress(AttributeError, OSError, TypeError):  # another C library
        getattr(ctypes.CDLL(None), name)(*arguments)
