"""Schedules against values by hand from Eq. 12 and Section 4.4, and the two overfitting criteria."""

import pytest
import reference

from gmlib import where
from gmlib.where import Losses


def test_zeta_theta_at_every_t():
    by_hand = [50, 40, 30, 20, 10, 10, 10, 10, 10, 10] + [5] * 40
    assert [where.adaptive(t) for t in range(50)] == by_hand
    assert [reference.zeta_adaptive(t) for t in range(50)] == by_hand
    assert [where.fixed(t, 7) for t in range(3)] == [7, 7, 7]


@pytest.mark.parametrize(("ipc", "fixed", "adaptive"), [(1, 0, 0), (10, 450, 190), (50, 490, 395)])
def test_steps_per_outer_iteration(ipc, fixed, adaptive):
    T, zeta = where.FIXED[ipc]
    assert where.steps_per_outer_iteration("fixed", T, zeta) == fixed
    assert where.steps_per_outer_iteration("adaptive", T, zeta) == adaptive


def test_loops_of_the_baseline():
    assert where.FIXED == {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def test_overfitting_criteria():
    before, worse, better = Losses(1.0, 1.0), Losses(0.5, 1.01), Losses(0.5, 0.99)
    assert where.STOP["overfit"](before, worse, 0.1)
    assert not where.STOP["overfit"](before, better, 0.1)
    assert not where.STOP["overfit"](before, before, 0.1), "an equal loss does not rise"
    assert where.STOP["overfit-gap"](before, better, 0.48)
    assert not where.STOP["overfit-gap"](before, better, 0.5)
    assert {name for name in where.WHERE if where.WHERE[name](3, 1) == where.MAX_STEPS} == {"overfit", "overfit-gap"}


def test_schedules_of_a_recipe():
    assert [where.steps("steps:9,4,1", t, 50) for t in range(5)] == [9, 4, 1, 1, 1]
    assert where.steps("fixed", 3, 7) == 7 and where.steps("adaptive", 3, 7) == 20
    eq12 = "steps:50,40,30,20,10,10,10,10,10,10,5"
    assert where.steps_per_outer_iteration(eq12, 10, 1) == 190 and where.steps_per_outer_iteration(eq12, 50, 1) == 395
    for bad in ("steps:", "steps:5,,3", "steps:-1", "steps:2.5", "never", "fixed:3"):
        with pytest.raises(ValueError, match="fixed, adaptive, overfit, overfit-gap, or a schedule"):
            where.parse_schedule(bad)


def test_fit_schedule_finds_eq_12_in_a_log_made_from_it():
    """Every outer iteration has an outlier, which the medians ignore."""
    history = []
    for k in range(7):
        detections = [[t, where.adaptive(t) - 1 + (40 if t == k else 0), 0.1, 0.2] for t in range(11)]
        history.append({"k": k, "detections": [d for d in detections if d[1] < where.MAX_STEPS]})
    assert where.fit_schedule(history, 12) == [50, 40, 30, 20, 10, 10, 10, 10, 10, 10, 5]


def test_a_fitted_schedule_never_increases_and_takes_the_bound_if_nothing_overfits():
    up_and_down = [{"detections": [[0, 9, 0, 0], [1, 19, 0, 0], [2, 2, 0, 0]]}]
    assert where.fit_schedule(up_and_down, 4) == [15, 15, 3]  # 10, 20 -> their mean twice
    assert where.fit_schedule([{"detections": []}], 3) == [where.MAX_STEPS, where.MAX_STEPS]
    for history, T in (([], 5), (up_and_down, 1)):
        with pytest.raises(ValueError, match="at least one outer iteration"):
            where.fit_schedule(history, T)
