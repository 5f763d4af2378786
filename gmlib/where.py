"""Where on the training path S is updated: how many steps theta takes in between (Section 3.3, Eq. 11-12; Figure 3).

Two kinds of answers: a number of steps known beforehand (`fixed`, `adaptive`), or steps until theta overfits S (`overfit`,
`overfit-gap`), at most `MAX_STEPS`. One step of theta is one pass over S (line 12 of Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
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


def steps(where: str, t: int, zeta: int) -> int:
    """Steps of theta after the update of S at t, at most, for a name in WHERE or a schedule "steps:50,40,30,10,5".

    Of such a schedule the last number holds for every later t.
    """
    if where in WHERE:
        return WHERE[where](t, zeta)
    schedule = parse_schedule(where)
    return schedule[min(t, len(schedule) - 1)]


def parse_schedule(where: str) -> list[int]:
    """The numbers in "steps:50,40,30": a schedule of one's own. ValueError, listing what is known, for anything else."""
    word, _, numbers = str(where).partition(":")
    found = [int(n) if n.strip().isdecimal() else -1 for n in numbers.split(",")]
    if word != "steps" or min(found) < 0:
        raise ValueError(
            f"unknown where {where!r}: choose from {', '.join(WHERE)}, or spell a schedule as steps:50,40,30,10"
        )
    return found


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
NEED_S = frozenset({"overfit-gap"})  # criteria that look at L(S, theta) too


def overfits(path: Sequence[Losses], criterion: str, gap: float) -> list[bool]:
    """Whether each step along a path of theta overfits, by a criterion in STOP. path: the losses before, between and after."""
    return [STOP[criterion](before, after, gap) for before, after in pairwise(path)]


def steps_per_outer_iteration(where: str, T: int, zeta: int) -> int:
    """Steps of theta in one outer iteration, an upper bound for the overfitting criteria.

    Nothing follows the last update of S (t = T - 1), so theta moves T - 1 times: 450 at T = 10 with zeta = 50, 190 with
    Eq. 12 (Section 4.4).
    """
    return sum(steps(where, t, zeta) for t in range(T - 1))


def steps_until_overfitting(history: Sequence[dict], T: int) -> list[list[int]]:
    """Steps of theta after which overfitting was seen, or MAX_STEPS where it was not: a list of T - 1, over t, for each k.

    history: of a set condensed with where="overfit" or "overfit-gap" (`SyntheticSet.history`), one dict for each outer
    iteration with its detections [t, i, L(S, theta), L(T, theta)]. T: its inner iterations.
    Raises ValueError without history, or for T < 2.
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
    """zeta_theta(t) learned from where a run saw overfitting, as the authors read Eq. 12 off CIFAR-10 runs (Section 4.4).

    At each t `steps_until_overfitting` (which see for history and T) are summed up by their median over the outer iterations;
    the schedule is the non-increasing sequence nearest to those medians, in whole steps of at least 1.

    Returns T - 1 numbers, which "steps:..." takes in a recipe. Raises ValueError without history, or for T < 2.
    """
    from sklearn.isotonic import isotonic_regression

    medians = [median(column) for column in zip(*steps_until_overfitting(history, T), strict=True)]
    return [max(1, round(value)) for value in isotonic_regression(medians, increasing=False).tolist()]
