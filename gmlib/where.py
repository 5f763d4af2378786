"""Where on the training path S is updated: after how many steps of theta (Section 3.3, Eq. 11 and Eq. 12; Figure 3).

Either the number of steps is known in advance (``fixed``, ``adaptive``, a schedule), or theta moves until it overfits
S (``overfit``, ``overfit-gap``), for at most ``MAX_STEPS`` steps. One step of theta is one pass over S (line 12 of
Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np

from .checks import require, unknown

MAX_STEPS = 50  # the released scripts' bound on updating until overfitting
VALIDATION_BATCH = 256  # real images, drawn once per t, that represent T in the overfitting test

# Images per class -> (T, zeta_theta) of the baseline; the paper gives no others (Section 4.4).
FIXED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def baseline(ipc: int) -> tuple[int, int]:
    """T and zeta_theta of the baseline for any number of images per class.

    Where the paper gives no values, T is ``ipc``, but at most 50, as at all points that it gives. zeta_theta lies on
    the straight line between its neighbours, rounded. Below 10 it is 50, and above 50 it is 10.

    Parameters
    ----------
    ipc : int
        Images per class.

    Returns
    -------
    T, zeta_theta : int

    Source
    ------
    Section 4.4 for the values in ``FIXED``. The rule between them is ours.
    """
    if ipc in FIXED:
        return FIXED[ipc]
    given = sorted(FIXED)[1:]
    return min(ipc, given[-1]), round(np.interp(ipc, given, [FIXED[n][1] for n in given]))


def fixed(t: int, zeta: int) -> int:
    """The same number of steps of theta at every t, zeta, as in the baseline (Eq. 11)."""
    return zeta


def adaptive(t: int, zeta: int | None = None) -> int:
    """Adaptive learning steps: the number of steps of theta at t.

    The authors found the schedule from runs on CIFAR-10. It falls with t, because theta overfits sooner later on.

    Parameters
    ----------
    t : int
        Inner iteration.
    zeta : int, optional
        Ignored.

    Returns
    -------
    int
        zeta_theta(t).

    Source
    ------
    Eq. 12, Section 4.4.
    """
    if t < 4:
        return 50 - 10 * t
    return 10 if t < 10 else 5


def max_steps(t: int, zeta: int | None = None) -> int:
    """The largest number of steps of theta when overfitting ends them."""
    return MAX_STEPS


WHERE: dict[str, Callable[[int, int], int]] = {
    "fixed": fixed,
    "adaptive": adaptive,
    "overfit": max_steps,
    "overfit-gap": max_steps,
}


def steps(where: str, t: int, zeta: int) -> int:
    """The number of steps of theta after the update of S at t. It is an upper bound if overfitting ends them.

    Parameters
    ----------
    where : str
        A name in ``WHERE``, or a schedule such as "steps:50,40,30". The last number of a schedule holds for every
        later t.
    t : int
        Inner iteration.
    zeta : int
        The number for "fixed".

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If ``where`` is unknown.

    Source
    ------
    Eq. 11, Section 3.3.
    """
    if where in WHERE:
        return WHERE[where](t, zeta)
    schedule = parse_schedule(where)
    return schedule[min(t, len(schedule) - 1)]


def parse_schedule(where: str) -> list[int]:
    """Read the numbers of a schedule such as "steps:50,40,30".

    Raises
    ------
    ValueError
        If ``where`` is not a schedule. The message lists the known names.
    """
    word, _, numbers = str(where).partition(":")
    found = [int(n) if n.strip().isdecimal() else -1 for n in numbers.split(",")]
    if word != "steps" or min(found) < 0:
        raise unknown(WHERE, "where", where, "a schedule such as steps:50,40,30,10")
    return found


class Losses(NamedTuple):
    """L(S, theta) and L(T, theta) at one theta, in nats."""

    S: float
    T: float


def loss_rises(before: Losses, after: Losses, gap: float) -> bool:
    """True if a step of theta raised the loss on T.

    Parameters
    ----------
    before, after : Losses
        At theta_i and theta_i+1.
    gap : float
        Ignored.

    Returns
    -------
    bool

    Source
    ------
    Section 4.4.
    """
    # L(T, theta_i) < L(T, theta_i+1)
    return before.T < after.T


def gap_opens(before: Losses, after: Losses, gap: float) -> bool:
    """True if the loss on T exceeds the loss on S by more than a threshold after a step of theta.

    Parameters
    ----------
    before, after : Losses
        At theta_i and theta_i+1.
    gap : float
        The threshold in nats. The paper gives none, so the recipe does.

    Returns
    -------
    bool

    Source
    ------
    Section 3.3.
    """
    # gap < L(T, theta_i+1) - L(S, theta_i+1)
    return gap < after.T - after.S


STOP: dict[str, Callable[[Losses, Losses, float], bool]] = {"overfit": loss_rises, "overfit-gap": gap_opens}
NEED_S = frozenset({"overfit-gap"})  # the criteria that also use L(S, theta)


def overfits(path: Sequence[Losses], criterion: str, gap: float) -> list[bool]:
    """For each step along a path of theta: True if it overfits S.

    Parameters
    ----------
    path : list of Losses
        At every theta: before the first step, between the steps, and after the last.
    criterion : str
        A name in ``STOP``.
    gap : float
        See `gap_opens`.

    Returns
    -------
    list of bool
        One for each step.
    """
    return [STOP[criterion](before, after, gap) for before, after in pairwise(path)]


def steps_per_outer_iteration(where: str, T: int, zeta: int) -> int:
    """The number of steps of theta in one outer iteration. It is an upper bound if overfitting ends them.

    No step follows the last update of S (t = T - 1). At T = 10 this gives 450 steps for "fixed" with zeta = 50, and
    190 for "adaptive".

    Parameters
    ----------
    where : str
        See `steps`.
    T : int
        Inner iterations.
    zeta : int
        See `steps`.

    Returns
    -------
    int

    Source
    ------
    Section 4.4.
    """
    return sum(steps(where, t, zeta) for t in range(T - 1))


def steps_until_overfitting(history: Sequence[dict], T: int) -> list[list[int]]:
    """The number of steps of theta until overfitting was seen.

    Parameters
    ----------
    history : list of dict
        The history of a set condensed with where="overfit" or "overfit-gap" (``SyntheticSet.history``). Each outer
        iteration has its detections, ``[t, i, L(S, theta), L(T, theta)]``.
    T : int
        Inner iterations of that run.

    Returns
    -------
    list of list of int
        T - 1 numbers, over t, for each outer iteration; ``MAX_STEPS`` if no overfitting was seen.

    Raises
    ------
    ValueError
        If the history is empty or T is less than 2.
    """
    if not history or T < 2:
        raise ValueError(
            "a schedule is learned from at least one outer iteration with T of at least 2: condense with both first"
        )
    taken = []
    for entry in history:
        seen = {t: i + 1 for t, i, *_ in entry["detections"]}
        taken.append([seen.get(t, MAX_STEPS) for t in range(T - 1)])
    return taken


def fit_schedule(history: Sequence[dict], T: int) -> list[int]:
    """Learn zeta_theta(t) from where a run saw overfitting.

    At each t the median of `steps_until_overfitting` over the outer iterations is taken. The schedule is the
    non-increasing sequence nearest to these medians, rounded to whole steps of at least 1.

    Parameters
    ----------
    history, T
        See `steps_until_overfitting`.

    Returns
    -------
    list of int
        T - 1 numbers. A recipe takes them as "steps:...".

    Raises
    ------
    ValueError
        If the history is empty or T is less than 2.

    Source
    ------
    Section 4.4: the authors found Eq. 12 from runs on CIFAR-10.
    """
    isotonic = require("sklearn.isotonic", "data")
    medians = [median(column) for column in zip(*steps_until_overfitting(history, T), strict=True)]
    fitted = isotonic.isotonic_regression(medians, increasing=False)
    return [max(1, round(value)) for value in fitted.tolist()]
