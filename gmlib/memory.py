"""Going on in smaller passes where a device runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch

log = logging.getLogger(__name__)


class Memory:
    """The chunk size of a run, halved whenever the device runs out of memory.

        for attempt in memory:  # again where memory ran out
            with attempt:
                g = class_gradients(network, batches, chunk=memory.chunk)  # None: no limit
    """

    def __init__(self, largest: int):
        """largest: images in the largest batch, from which halving starts; 1 for work that cannot be split."""
        self.chunk: int | None = None
        self.largest = largest

    def __iter__(self) -> Iterator[Memory]:
        self.done = False
        while not self.done:
            yield self

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> bool:
        self.done = error is None
        chunk = (self.chunk or self.largest) // 2
        if error is None or not _out_of_memory(error) or chunk < 1:
            return False
        self.chunk = chunk
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory: going on with at most %d images in one pass", chunk)
        return True


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
