"""TF32 or full float32 for products on CUDA."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_PRODUCTS = threading.Lock()
_inside: list[str] = []  # the precisions of the runs that are inside `products` now, in any thread
_outside: list[bool] = []  # the settings to go back to


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Matrix products and convolutions on CUDA in TF32 where "tf32" is in `precision`, else in full float32, for these lines.

    The settings are the whole process's: threads may be inside together where they want the same, else RuntimeError.
    """
    # By these names torch can be asked afterwards by its older and its newer ones; set by the newer, the older raise.
    settings, tf32 = (torch.backends.cuda.matmul, torch.backends.cudnn), "tf32" in precision
    with _PRODUCTS:
        if any(tf32 != ("tf32" in other) for other in _inside):
            raise RuntimeError(
                "one thread wants TF32 and another does not: run them one after the other, or in processes"
            )
        if not _inside:
            _outside[:] = [each.allow_tf32 for each in settings]
            for each in settings:
                each.allow_tf32 = tf32
        _inside.append(precision)
    try:
        yield
    finally:
        with _PRODUCTS:
            _inside.remove(precision)
            if not _inside:
                for each, value in zip(settings, _outside, strict=True):
                    each.allow_tf32 = value
