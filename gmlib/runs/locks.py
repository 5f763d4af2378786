"""One process at a time in the folder of a run.

The lock is a file that stays in the folder after the lock is released, empty and ignored by git. Deleting it while
another process waits for it would let two processes in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime import OutOfTime

LOCK = ".lock"
POLL = 0.2  # seconds between two tries


class Busy(OutOfTime):
    """Another process works in the folder, and the caller does not want to wait."""


@contextmanager
def locked(folder: Path, deadline: float | None = None, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder against other processes, and against other threads of this one.

    The operating system releases the lock if the process is killed.

    Parameters
    ----------
    folder : Path
        It is made if it is missing. If it cannot be written to, no lock is taken: then there is only reading to do.
    deadline : float, optional
        ``time.monotonic()`` at which to stop waiting.
    wait : bool
        Wait for a process that holds the lock.

    Raises
    ------
    Busy
        If another process holds the lock and ``wait`` is False.
    OutOfTime
        If another process still holds the lock at the deadline.
    OSError
        If the folder cannot be made.
    """
    from filelock import FileLock, Timeout  # torch depends on it

    make_folder(folder)
    if not os.access(folder, os.W_OK):
        yield
        return
    lock = FileLock(folder / LOCK)
    if not wait:
        seconds = 0.0
    elif deadline is None:
        seconds = -1.0  # for ever
    else:
        seconds = max(0.0, deadline - time.monotonic())
    try:
        lock.acquire(timeout=seconds, poll_interval=POLL)
    except Timeout:
        if not wait:
            raise Busy(f"another process works in {folder}: run again when it has ended") from None
        raise OutOfTime(f"out of time while another process works in {folder}: run again to go on") from None
    try:
        yield
    finally:
        lock.release()


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder and its parents.

    Raises
    ------
    OSError
        If that fails.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make {folder} ({error.strerror}): choose another results_dir") from error
