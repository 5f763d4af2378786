"""Intervals and rank correlations, against scipy and by hand."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from messages import refuses

from gmlib.analysis.statistics import rank_correlation, sample_size, t_half_width
from gmlib.runtime import generator


@pytest.mark.parametrize("half", [0.01, 0.3, 5.0])
def test_the_sample_size_is_the_smallest_that_is_enough(half):
    n = sample_size(1.0, half)
    assert n >= 2 and t_half_width(1.0, n) <= half and not t_half_width(1.0, n - 1) <= half


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
