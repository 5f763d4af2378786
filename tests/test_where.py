"""Schedules against values written by hand from Eq. 12 and Section 4.4."""

import pytest
import reference

from gmlib import where
from gmlib.where import Losses


def test_zeta_theta_at_every_t():
    by_hand = [50, 40, 30, 20, 10, 10, 10, 10, 10, 10] + [5] * 40
    assert [where.adaptive(t) for t in range(50)] == by_hand
    assert [reference.zeta_adaptive(t) for t in range(50)] == by_hand
    assert [where.fixed(t, 7) for t in range(3)] == [7, 7, 7]


@pytest.mark.parametrize(
    ("ipc", "fixed", "adaptive"), [(1, 0, 0), (10, 450, 190), (50, 490, 395)]
)
def test_steps_per_outer_iteration(ipc, fixed, adaptive):
    T, zeta = where.FIXED[ipc]
    assert where.steps_per_outer_iteration("fixed", T, zeta) == fixed
    assert where.steps_per_outer_iteration("adaptive", T, zeta) == adaptive


def test_the_baselines_loops():
    assert where.FIXED == {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def test_overfitting_criteria():
    before, worse, better = Losses(1.0, 1.0), Losses(0.5, 1.01), Losses(0.5, 0.99)
    assert where.STOP["overfit"](before, worse, 0.1)
    assert not where.STOP["overfit"](before, better, 0.1)
    assert not where.STOP["overfit"](before, before, 0.1), "an equal loss is no rise"
    assert where.STOP["overfit-gap"](before, better, 0.48)
    assert not where.STOP["overfit-gap"](before, better, 0.5)
    assert {name for name in where.WHERE if where.WHERE[name](3, 1) == where.MAX_STEPS} == {"overfit", "overfit-gap"}
