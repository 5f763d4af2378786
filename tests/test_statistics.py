"""Intervals and rank correlations, against scipy and by hand."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from messages import refuses

from gmlib.analysis.statistics import (
    cochran_p,
    pooled_std,
    pooled_std_of_differences,
    rank_correlation,
    sample_size,
    t_half_width,
)
from gmlib.runtime import generator


@pytest.mark.parametrize("half", [0.01, 0.3, 5.0])
def test_the_sample_size_is_the_smallest_that_is_enough(half):
    n = sample_size(1.0, half)
    assert n >= 2 and t_half_width(1.0, n) <= half and not t_half_width(1.0, n - 1) <= half


# ---- pooled variances ------------------------------------------------------------------------------------


def arrays(*groups):
    return [np.array(values, float) for values in groups]


def test_a_pooled_standard_deviation_by_hand():
    """Variances 2 (one degree of freedom) and 3 (two); a single value adds nothing. t(0.975; 3) is printed."""
    found = pooled_std(arrays([1, 3], [2, 2, 5], [70]))
    assert (found.std, found.freedom) == (pytest.approx(math.sqrt((2 + 2 * 3) / 3)), 3)
    assert found.half_width(2) == pytest.approx(3.182446305 * math.sqrt(8 / 3 / 2))
    alone = pooled_std(arrays([1, 3]))
    assert (alone.freedom, alone.half_width(2)) == (1, pytest.approx(t_half_width(math.sqrt(2), 2)))
    for nothing in (pooled_std(arrays([1], [2])), pooled_std([])):
        assert nothing.freedom == 0 and math.isnan(nothing.std) and math.isnan(nothing.half_width(2))


def test_two_pooled_groups_against_scipy():
    a, b = arrays([80, 83, 81], [70, 74, 71, 72])
    expected = scipy.stats.ttest_ind(a, b, equal_var=True).confidence_interval(0.95)
    pooled = pooled_std([a, b])
    half = scipy.stats.t.ppf(0.975, pooled.freedom) * pooled.std * math.sqrt(1 / 3 + 1 / 4)
    assert half == pytest.approx((expected.high - expected.low) / 2, rel=1e-12)


def test_pooled_differences_by_hand():
    """Without the means of rows, 3 and 4, and of columns, 1.5, 3.5 and 5.5: 0, -1, 1 and 0, 1, -1."""
    found = pooled_std_of_differences(np.array([[1.0, 2, 6], [2, 5, 5]]))
    assert (found.std, found.freedom) == (pytest.approx(math.sqrt(2 * 4 / 2)), 2)
    one_row = pooled_std_of_differences(np.array([[1.0, 2, 6]]))
    assert one_row.freedom == 0 and math.isnan(one_row.half_width(1))


def test_pooled_differences_with_missing_values_are_what_least_squares_leaves():
    """Three methods; the third has no set of seed 2, and only it has one of seed 3, which says nothing."""
    values = np.array([[1.0, 2, 6], [2, 5, 5], [3, 6, np.nan]])
    design = np.array([[i == row for i in range(3)] + [j == column for j in range(3)] for row, column in KNOWN])
    y = np.array([values[at] for at in KNOWN])
    left = y - design @ np.linalg.pinv(design.astype(float)) @ y
    found = pooled_std_of_differences(values)
    assert (found.std, found.freedom) == (pytest.approx(math.sqrt(2 * (left**2).sum() / 3)), 3)
    more = pooled_std_of_differences(np.vstack([values, [np.nan, np.nan, 9.0]]))
    assert (more.std, more.freedom) == (pytest.approx(found.std), 3)
    complete = pooled_std_of_differences(values[:2])
    one_apart = pooled_std_of_differences(np.vstack([values[:2], [np.nan, np.nan, 9.0]]))
    assert (one_apart.std, one_apart.freedom) == (pytest.approx(complete.std), complete.freedom)


KNOWN = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


def test_pooled_differences_are_the_mean_over_all_pairs():
    values = np.random.default_rng(0).normal(size=(4, 5))
    variances = [np.var(values[:, i] - values[:, j], ddof=1) for i in range(5) for j in range(i)]
    assert pooled_std_of_differences(values).std == pytest.approx(math.sqrt(np.mean(variances)), rel=1e-12)
    expected = scipy.stats.ttest_rel(values[:, 0], values[:, 1]).confidence_interval(0.95)
    half = pooled_std_of_differences(values[:, :2]).half_width(4)
    assert half == pytest.approx((expected.high - expected.low) / 2, rel=1e-12)


def test_pooled_intervals_hold_what_they_promise():
    """Two sets of each of five methods, made with the same seeds; 95 % of the intervals contain the true value."""
    rng, R = np.random.default_rng(0), 2000
    mean = difference = 0
    for _ in range(R):
        values = rng.normal(size=(2, 1)) + rng.normal(size=(2, 5))  # what the seeds share, and the rest
        own = rng.normal(size=(5, 2))  # sets that share nothing
        mean += abs(own[0].mean()) <= pooled_std(list(own)).half_width(2)
        gain = values[:, 0].mean() - values[:, 1].mean()
        difference += abs(gain) <= pooled_std_of_differences(values).half_width(2)
    assert mean / R == pytest.approx(0.95, abs=0.015) and difference / R == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("groups", "size", "critical", "level"),
    [(3, 2, 0.9669, 0.05), (3, 2, 0.9933, 0.01), (5, 2, 0.8412, 0.05), (5, 2, 0.9279, 0.01), (3, 3, 0.9423, 0.01)],
)
def test_cochrans_test_has_the_printed_critical_values(groups, size, critical, level):
    """C is the largest variance over the sum of all. Here the others are equal."""
    variances = [critical] + [(1 - critical) / (groups - 1)] * (groups - 1)
    values = np.arange(size) / np.std(np.arange(size), ddof=1)
    assert cochran_p([math.sqrt(v) * values for v in variances]) == pytest.approx(level, rel=0.02)


def test_unequal_variances_in_special_cases():
    """Two groups: twice the one-sided p-value of the F test, whatever their sizes."""
    a, b = arrays([0, 1, 2, 4], [0, 9])
    ratio = np.var(b, ddof=1) / np.var(a, ddof=1)
    assert cochran_p([a, b]) == pytest.approx(2 * scipy.stats.f.sf(ratio, 1, 3))
    assert cochran_p(arrays([1, 2], [3, 4], [5, 6])) == 1, "a p-value is at most 1"
    assert cochran_p(arrays([1, 1], [2, 2])) == 1 and cochran_p(arrays([1, 1], [2, 2], [3, 4])) == 0
    assert math.isnan(cochran_p(arrays([1, 2], [3])))


# ---- rank correlation --------------------------------------------------------------------------------------


def numbers(n, seed=0, ties=False):
    """Three lists of n numbers that correlate."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    x, y = z + rng.normal(size=n), 0.5 * z + rng.normal(size=n)
    return tuple(np.round(v) if ties else v for v in (x, y, z))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [3, 6, 40])
def test_spearman_against_scipy(n, ties):
    x, y, _ = numbers(n, seed=2, ties=ties)
    found, expected = rank_correlation(x, y), scipy.stats.spearmanr(x, y)
    assert found.rho == pytest.approx(expected.statistic, abs=1e-12) and found.n == n
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.low <= found.rho <= found.high


@pytest.mark.parametrize("ties", [False, True])
def test_partial_correlation_against_the_closed_formula(ties):
    x, y, z = numbers(30, seed=1, ties=ties)
    xy, xz, yz = (scipy.stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    found = rank_correlation(x, y, control=z)
    assert found.rho == pytest.approx(expected, abs=1e-12)
    assert abs(expected - xy) > 0.1, "the control matters here"
    t = expected * math.sqrt(27 / (1 - expected**2))  # n - 3 degrees of freedom
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(t), 27), rel=1e-9)


def test_partial_correlation_by_hand():
    """Ranks: x 1 2 3 4, y 2 1 4 3, z 1 3 2 4. r_xy = .6, r_xz = .8, r_yz = 0: .6 / (.6 * 1) = 1."""
    found = rank_correlation([10, 20, 30, 40], [5, 1, 9, 7], control=[0.1, 0.3, 0.2, 0.4])
    assert found.rho == pytest.approx(1, abs=1e-12)


def test_the_interval_is_that_of_the_percentile_bootstrap():
    """Against scipy for each resample, and against scipy's own bootstrap with other resamples."""
    x, y, z = numbers(25, seed=3)
    found = rank_correlation(x, y, n_boot=300, seed=7)
    drawn = torch.randint(25, (300, 25), generator=generator(7, "rank correlation")).numpy()
    resampled = [scipy.stats.spearmanr(x[i], y[i]).statistic for i in drawn]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=1e-12)
    theirs = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert rank_correlation(x, y) == rank_correlation(x, y) != rank_correlation(x, y, seed=1)
    assert (rank_correlation(x, y).low, rank_correlation(x, y).high) == pytest.approx(tuple(theirs), abs=0.05)
    partial = rank_correlation(x, y, control=z)
    assert partial.low < partial.rho < partial.high


@pytest.mark.parametrize(
    ("x", "y", "control", "why"),
    [
        ([1, 1, 1, 1], [1, 2, 3, 4], None, "x constant"),
        ([1, 2, 3, 4], [7, 7, 7, 7], None, "y constant"),
        ([2, 2, 2, 2], [7, 7, 7, 7], [1, 2, 3, 4], "x and y constant"),
        ([1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [10, 20, 30, 40, 50], "nothing"),
        ([1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [4, 5, 3, 1, 2], "nothing"),
        ([1, 2], [1, 2], None, "3 pairs"),
        ([1, 2, 3], [1, 3, 2], [1, 1, 2], "4 pairs"),
        ([1, math.nan, 3], [1, 3, 2], None, "1 of 3"),
        ([], [], None, "3 pairs"),
    ],
)
def test_a_missing_value_has_a_note_that_says_why(x, y, control, why):
    found = rank_correlation(x, y, control)
    assert all(math.isnan(v) for v in (found.rho, found.low, found.high, found.p))
    assert why in found.note and found.note in str(found)


def test_missing_values_and_a_constant_control():
    x, y, _ = numbers(12)
    with_gap = np.insert(x, 5, math.nan), np.insert(y, 5, 3.0)
    found = rank_correlation(*with_gap)
    assert (found.rho, found.n) == (rank_correlation(x, y).rho, 12) and "1 of 13" in found.note
    plain = rank_correlation(x, y, control=[3] * 12)
    assert plain.rho == pytest.approx(rank_correlation(x, y).rho, abs=1e-12) and "control" in plain.note


def test_resamples_without_a_value_are_left_out():
    """Of three pairs, one resample in nine has the same pair three times, and no rho. All others have rho 1."""
    found = rank_correlation([1, 2, 3], [1, 2, 3])
    assert (found.rho, found.low, found.high, found.p) == (1, 1, 1, 0)
    assert str(found) == "1.00 [1.00, 1.00] (n = 3)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": [1, 2, 3], "y": [1, 2]}, "equally long"),
        ({"x": [1, 2, 3], "y": [1, 2, 3], "control": [1, 2]}, "equally long"),
        ({"x": [1, 2, 3], "y": [1, 2, 3], "n_boot": 0}, "n_boot=0"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(arguments, words):
    with refuses(ValueError, words):
        rank_correlation(**arguments)
