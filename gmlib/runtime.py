"""Random streams, the device, progress bars and deadlines, which every run needs."""

from __future__ import annotations

import ctypes
import hashlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, TextIO, TypeVar

import torch
from tqdm import tqdm

from .checks import check_flag, check_number, first_sentence, plain, shown

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
        if number == signal.SIGINT and sys.stderr is not None:
            print("\nsaving; press Ctrl-C again to stop at once without saving", file=sys.stderr, flush=True)
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


# mallopt's parameters and the bytes they are set to: the largest block that the heap serves, the free memory that it
# keeps at its top, and how much it asks for at a time.
HEAP_SETTINGS = {"M_MMAP_THRESHOLD": (-3, 2**25), "M_TRIM_THRESHOLD": (-1, 2**30), "M_TOP_PAD": (-2, 2**26)}


@cache
def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory for the next pass. Does nothing with another C library.

    By default glibc returns the memory of a pass to the system, and the next pass gets it back as new, zeroed pages,
    with one page fault each. Measured with ConvNet-3-128 on grey 28x28 images and two threads: a training step on 10
    images takes 33 ms without and 23 ms with this setting, a test of 2048 images 2.2 s and 1.5 s.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in HEAP_SETTINGS.values():
            mallopt(parameter, value)


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


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a small tensor, from the host to CUDA without waiting for the device."""
    from_host = device.type == "cuda" and not x.is_cuda
    return x.pin_memory().to(device, non_blocking=True) if from_host else x.to(device)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Run a block, or a function, whatever state the caller has left torch in, and restore that state.

    Inside, gradients are recorded, nothing is cast, and tensors are made in float32 on the CPU if nothing else is
    said. Otherwise the same recipe and seed would give another set, or none.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # with it, each call of torch takes longer
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


def progress_bar(what: str, total: int, unit: str, show: bool, **options: Any) -> tqdm:
    """Make a progress bar on stderr that estimates the time left.

    A terminal is updated twice a second, and anything else every ten seconds, a file with a line of its own.

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

    Raises
    ------
    ValueError
        If ``show`` is not True or False.
    """
    show = check_flag("progress", show)
    stream = sys.stderr
    is_terminal = stream is not None and getattr(stream, "isatty", bool)()
    if stream is not None and not is_terminal and "ipykernel" not in type(stream).__module__:
        options["file"] = _Lines(stream)
    mininterval = 0.5 if is_terminal else 10.0
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        disable=not show,
        mininterval=mininterval,
        maxinterval=mininterval if is_terminal else 1e9,  # its monitor would write between two intervals
        dynamic_ncols=True,
        **options,
    )


class _Lines:
    """A file or pipe in which each state of a progress bar is a line."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None)
        self.last = ""

    def write(self, text: str) -> None:
        """Write a state without what moves a terminal's cursor, unless it was the last one."""
        state = text.replace("\r", "").replace("\n", "").replace("\x1b[A", "").rstrip()
        if state and state != self.last:
            self.stream.write(f"{state}\n")
            self.last = state

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()


def deadline_passed(deadline: float | None) -> bool:
    """True if this ``time.monotonic()`` has passed, or after `stop_soon`. None never passes."""
    return _stopping.is_set() or (deadline is not None and time.monotonic() > deadline)


@dataclass
class _Limit:
    """The deadline of a block, see `time_limit`."""

    deadline: float | None
    message: Callable[[], str]
    grace: float
    noticed: float = math.inf  # when `check_time` saw first that the deadline has passed


_limit: ContextVar[_Limit | None] = ContextVar("limit", default=None)


def nothing_saved() -> str:
    """What `OutOfTime` says of a measurement."""
    return "out of time, and nothing of this measurement is saved: run again with more time"


@contextmanager
def time_limit(
    deadline: float | None, message: Callable[[], str] = nothing_saved, grace: float = 0.0
) -> Iterator[None]:
    """Let `check_time` end this block at a deadline. The loops that take long call it, however deep they are.

    Parameters
    ----------
    deadline : float or None
        In the unit of ``time.monotonic()``.
    message : callable
        Returns the message of the `OutOfTime`.
    grace : float
        Seconds that the block may go on after the deadline, to finish what it does.

    Raises
    ------
    OutOfTime
        From `check_time`, after the deadline.
    """
    before = _limit.set(_Limit(deadline, message, grace))
    try:
        yield
    finally:
        _limit.reset(before)


_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


def stop_with(stop: threading.Event) -> None:
    """Let `check_time` end what runs in this context once ``stop`` is set."""
    _stop.set(stop)


def check_time() -> None:
    """Raise `OutOfTime` if the `time_limit` of the innermost such block has passed, or after `stop_with`."""
    stop, limit = _stop.get(), _limit.get()
    if stop and stop.is_set():
        raise OutOfTime("stopped, because another thread was")
    if limit and deadline_passed(limit.deadline):
        now = time.monotonic()
        limit.noticed = min(limit.noticed, now)
        if now - limit.noticed >= limit.grace:
            raise OutOfTime(limit.message())


def in_time(steps: Iterable[Item]) -> Iterator[Item]:
    """The same steps, with `check_time` before each."""
    for step in steps:
        check_time()
        yield step


def check_deadline(deadline: float | None) -> None:
    """Check that a deadline is a number, as ``time.monotonic()`` gives it, or None.

    Raises
    ------
    ValueError
        If it is something else.
    """
    number = plain(deadline)
    if not isinstance(number, (int, float, type(None))) or isinstance(number, bool) or number != number:
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
