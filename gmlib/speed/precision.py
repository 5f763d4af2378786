"""TF32 or full float32 for matrix products on CUDA."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.Lock()
_active: list[str] = []  # precisions of all `matmul_precision` blocks that are running, in any thread
_previous: list[bool] = []  # settings to restore when the last block ends


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Run a block with CUDA matrix products and convolutions in TF32 or full float32, then restore the old settings.

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
    with _LOCK:
        if any(tf32 != ("tf32" in other) for other in _active):
            raise RuntimeError(
                "one thread needs TF32 and another float32: run them one after the other or in processes"
            )
        if not _active:
            _previous[:] = [matmul.allow_tf32, convolution.allow_tf32]
            matmul.allow_tf32 = convolution.allow_tf32 = tf32
        _active.append(precision)
    try:
        yield
    finally:
        with _LOCK:
            _active.remove(precision)
            if not _active:
                matmul.allow_tf32, convolution.allow_tf32 = _previous
