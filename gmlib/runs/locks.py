"""One process at a time in the folder of a run.

The lock is a file that stays in the folder after the lock is released, empty and ignored by git. Deleting it while
another process waits for it would let two processes in.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checks import check_flag
from ..runtime import OutOfTime, check_deadline

log = logging.getLogger(__name__)

LOCK = ".lock"
POLL = 0.2  # seconds between two tries


class Busy(OutOfTime):
    """Another process works in the folder, and the caller chose not to wait."""


@contextmanager
def locked(folder: Path, deadline: float | None = None, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder against other processes, and against other threads of this one.

    The operating system releases the lock if the process is killed. A file system that knows no locks is used without
    one, with a warning. Do not take the lock of a folder inside itself.

    Parameters
    ----------
    folder : Path
        It is made if it is missing. If it is read-only, no lock is taken, because its files can only be read.
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

    check_deadline(deadline)
    check_flag("wait", wait)
    make_folder(folder)
    if not os.access(folder, os.W_OK):
        yield
        return
    lock = FileLock(folder / LOCK, mode=0o666)  # another user of the folder may take it too
    if not wait:
        seconds = 0.0
    elif deadline is None:
        seconds = -1.0  # without limit
    else:
        seconds = max(0.0, deadline - time.monotonic())
    try:
        lock.acquire(timeout=seconds, poll_interval=POLL)
    except Timeout:
        if not wait:
            raise Busy(f"another process works in {folder}: run again when it has ended") from None
        raise OutOfTime(f"out of time while another process works in {folder}: run again to continue") from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): let no second process work in it", folder, error.strerror)
    try:
        yield
    finally:
        lock.release()  # nothing happens if it is not held


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
