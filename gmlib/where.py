"""Where on the training path S is updated: how many steps theta takes in between (Section 3.3, Eq. 11-12; Figure 3).

Two kinds of answers: a number of steps known beforehand (`fixed`, `adaptive`), or steps until theta overfits S (`overfit`,
`overfit-gap`), at most `MAX_STEPS`. One step of theta is one pass over S (line 12 of Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MAX_STEPS = 50  # the released scripts' bound on updating until overfitting
VALIDATION_BATCH = 256  # real images, drawn once per t, that stand for T in the overfitting test

# Images per class -> (T, zeta_theta) of the baseline; the paper gives no others (Section 4.4).
FIXED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def fixed(t: int, zeta: int) -> int:
    """The same number of steps at every t (the baseline)."""
    return zeta


def adaptive(t: int, zeta: int | None = None) -> int:
    """zeta_theta(t) of Eq. 12, read off CIFAR-10 runs by the authors: long at first, short once theta overfits sooner."""
    if t < 4:
        return 50 - 10 * t
    return 10 if t < 10 else 5


def until_stopped(t: int, zeta: int | None = None) -> int:
    """The bound on the steps of the two overfitting criteria."""
    return MAX_STEPS


WHERE: dict[str, Callable[[int, int], int]] = {
    "fixed": fixed,
    "adaptive": adaptive,
    "overfit": until_stopped,
    "overfit-gap": until_stopped,
}


class Losses(NamedTuple):
    """L(S, theta) and L(T, theta) at one theta, in nats."""

    S: float
    T: float


def loss_rises(before: Losses, after: Losses, gap: float) -> bool:
    """L(T, theta_i) < L(T, theta_i+1): the step made theta worse on T (Section 4.4)."""
    return before.T < after.T


def gap_opens(before: Losses, after: Losses, gap: float) -> bool:
    """L(T, theta_i+1) - L(S, theta_i+1) > gap (Section 3.3). The paper names no threshold: `gap`, in nats, is the recipe's."""
    return gap < after.T - after.S


STOP: dict[str, Callable[[Losses, Losses, float], bool]] = {"overfit": loss_rises, "overfit-gap": gap_opens}


def steps_per_outer_iteration(where: str, T: int, zeta: int) -> int:
    """Steps of theta in one outer iteration, an upper bound for the overfitting criteria.

    Nothing follows the last update of S (t = T - 1), so theta moves T - 1 times: 450 at T = 10 with zeta = 50, 190 with
    Eq. 12 (Section 4.4).
    """
    return sum(WHERE[where](t, zeta) for t in range(T - 1))
