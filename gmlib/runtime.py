"""Random streams, the device, progress bars and deadlines, which every run needs."""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from .checks import check_number, first_sentence, shown
from .speed.memory import keep_freed_memory

Item = TypeVar("Item")


class OutOfTime(Exception):
    """The time given to a run is used up. The message says if the work so far was saved for the next call."""

    was_raised = False  # in this process: a batch job asks at its end if something is left

    def __init__(self, *arguments: object):
        super().__init__(*arguments)
        if type(self) is OutOfTime:  # `Busy` only says that another process does the work
            OutOfTime.was_raised = True


_stopping = threading.Event()


def stop_soon() -> None:
    """Let every deadline of this process pass now, also where none was given. Work is saved as at a deadline."""
    _stopping.set()


@contextmanager
def saving_on_signals(enabled: bool = True) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM take effect at the next time that a deadline is checked, when work can be saved.

    A second signal takes effect at once. Signals that the process ignores stay ignored. Outside the main thread
    nothing is changed.

    Parameters
    ----------
    enabled : bool
        False changes nothing.
    """
    received: list[int] = []

    def on_signal(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop_soon()

    if not enabled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            _stopping.clear()
            signal.raise_signal(received[0])  # if it returns, the `OutOfTime` from the block goes on


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Make the random stream of one purpose of one run.

    The same seed and path always give the same numbers. Each purpose has its own stream, such as ``("network",
    k)``. So a run can be restarted at any iteration without stored random states, and methods that share a seed use
    the same networks and the same real batches.

    Parameters
    ----------
    seed : int
        The seed of the run.
    *path : str or int
        The purpose.

    Returns
    -------
    torch.Generator
        On the CPU.
    """
    digest = hashlib.sha256(repr((int(seed), *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def device_of(device: torch.device | str | None) -> torch.device:
    """Find the device to compute on.

    Parameters
    ----------
    device : torch.device, str or None
        None takes CUDA if it is available, else the CPU.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If this machine has no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = first_sentence(error)
        raise ValueError(f"the device {shown(device)} cannot be used here ({reason}): try cpu") from error
    if found.type == "cpu":
        keep_freed_memory()
    return found


def progress_bar(what: str, total: int, unit: str, show: bool, **options: Any) -> tqdm:
    """Make a progress bar on stderr that estimates the time left.

    A terminal is updated twice a second. A file or a notebook gets a line every ten seconds.

    Parameters
    ----------
    what : str
        The text in front of the bar.
    total : int
        Total number of units.
    unit : str
        Name of one unit.
    show : bool
        False shows nothing.
    **options
        Further options of ``tqdm``.

    Returns
    -------
    tqdm
    """
    mininterval = 0.5 if sys.stderr is not None and sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, desc=what, unit=unit, disable=not show, mininterval=mininterval, dynamic_ncols=True, **options
    )


def deadline_passed(deadline: float | None) -> bool:
    """True if this ``time.monotonic()`` has passed, or after `stop_soon`. None never passes."""
    return _stopping.is_set() or (deadline is not None and time.monotonic() > deadline)


def until(deadline: float | None, steps: Iterable[Item]) -> Iterator[Item]:
    """The steps of a measurement, as long as there is time.

    Parameters
    ----------
    deadline : float or None
        In the unit of ``time.monotonic()``.
    steps : iterable
        Not used any further after the deadline.

    Raises
    ------
    OutOfTime
        At the deadline.
    """
    for n, step in enumerate(steps):
        if deadline_passed(deadline):
            raise OutOfTime(f"out of time after {n} steps of a measurement, none saved: run again with more time")
        yield step


def check_deadline(deadline: float | None) -> None:
    """Check that a deadline is a number, as ``time.monotonic()`` gives it, or None.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if deadline is not None and (not isinstance(deadline, (int, float)) or isinstance(deadline, bool)):
        raise ValueError(f"deadline={shown(deadline)} does not fit: give a time.monotonic(), or None")


def deadline_in(time_budget: float | None) -> float | None:
    """The ``time.monotonic()`` at which a time budget is used up.

    Parameters
    ----------
    time_budget : float or None
        Seconds from now; None for no limit.

    Returns
    -------
    float or None

    Raises
    ------
    ValueError
        If the time budget is negative or not a number.
    """
    if time_budget is None:
        return None
    check_number("time_budget", time_budget, least=0, otherwise="None for no limit")
    return time.monotonic() + time_budget
