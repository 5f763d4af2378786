"""What every run needs besides the paper: random streams, the device, progress bars and deadlines."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

import torch
from tqdm import tqdm

from .checks import check_number
from .speed.memory import keep_heap


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator for one purpose of one run: the same (seed, path) gives the same numbers, another one others.

    Giving each purpose its own stream ("network", k) makes a run restartable at any outer iteration without storing random
    states, and lets methods that share a seed meet the same networks and the same real batches.
    """
    digest = hashlib.sha256(repr((int(seed), *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def device_of(device: torch.device | str | None) -> torch.device:
    """The device to compute on; None takes CUDA where there is one, else the CPU. ValueError for one that is not there."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"the device {device!r} cannot be used here ({str(error).splitlines()[0]}): try cpu"
        ) from error
    if found.type == "cpu":
        keep_heap()
    return found


def progress_bar(what: str, total: int, unit: str, show: bool, **options: Any) -> tqdm:
    """A bar on stderr with the time left; a line every ten seconds where that is a file or a notebook and no terminal."""
    mininterval = 0.5 if sys.stderr is not None and sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, desc=what, unit=unit, disable=not show, mininterval=mininterval, dynamic_ncols=True, **options
    )


def deadline_passed(deadline: float | None) -> bool:
    """Whether a deadline, in time.monotonic(), is past; None never is."""
    return deadline is not None and time.monotonic() > deadline


def deadline_in(time_budget: float | None) -> float | None:
    """The time.monotonic() at which so many seconds from now are used up; None for no limit."""
    if time_budget is None:
        return None
    check_number("time_budget", time_budget, least=0, otherwise="None for no limit")
    return time.monotonic() + time_budget


class OutOfTime(Exception):
    """The time given to a run is used up. The message says whether what was done is kept, so that the same call goes on."""
