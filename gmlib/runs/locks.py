"""One process at a time in the folder of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime import OutOfTime, deadline_passed

LOCK = ".lock"  # the file in the folder of a run that is locked; it stays there
POLL = 0.2  # seconds between two tries


class Busy(OutOfTime):
    """Another process works in the folder, and the caller does not want to wait."""


@contextmanager
def locked(folder: Path, deadline: float | None = None, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if it is missing. The lock is the system's and ends with the process.

    Raises
    ------
    Busy
        If another process holds the lock and `wait` is False.
    OutOfTime
        If another process still holds it at `deadline` (`time.monotonic()`).
    OSError
        If the folder cannot be made.
    """
    from filelock import FileLock, Timeout  # comes with torch

    make_folder(folder)
    lock = FileLock(folder / LOCK)
    while True:
        try:
            lock.acquire(timeout=0 if not wait or deadline_passed(deadline) else POLL)
            break
        except Timeout:
            if not wait:
                raise Busy(f"another process works in {folder}: run again once it has ended") from None
            if deadline_passed(deadline):
                raise OutOfTime(f"out of time while another process works in {folder}: run again to go on") from None
    try:
        yield
    finally:
        lock.release()


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder and those above it; OSError, in one sentence, if that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make {folder} ({error.strerror}): choose another results_dir") from error
