"""t and chi-squared intervals, and rank correlations. All intervals of the project are computed here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2, f, rankdata, t

from ..checks import check_number
from ..runtime import generator


def t_half_width(std: float, n: int, freedom: int | None = None) -> float:
    """Half width of the 95% t interval for the mean of n values: t(0.975; freedom) * std / sqrt(n).

    Parameters
    ----------
    std : float
        Standard deviation of one value.
    n : int
    freedom : int, optional
        Degrees of freedom of ``std``. None takes n - 1: ``std`` is that of the same n values.

    Returns
    -------
    float
        In the unit of ``std``. NaN without a degree of freedom.
    """
    freedom = n - 1 if freedom is None else freedom
    return float(t.ppf(0.975, freedom) * std / math.sqrt(n)) if freedom > 0 else math.nan


def half_width(values: np.ndarray) -> float:
    """`t_half_width` of these values."""
    return t_half_width(np.std(values, ddof=1), len(values)) if len(values) > 1 else math.nan


def welch_half_width(a: np.ndarray, b: np.ndarray) -> float:
    """Half width of Welch's 95% interval for the difference of two means; NaN if a or b has fewer than 2 values."""
    if min(len(a), len(b)) < 2:
        return math.nan
    va = np.var(a, ddof=1) / len(a)
    vb = np.var(b, ddof=1) / len(b)
    if va + vb == 0:
        return 0.0
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))  # Welch-Satterthwaite
    return float(t.ppf(0.975, freedom) * math.sqrt(va + vb))


@dataclass(frozen=True)
class Pooled:
    """A standard deviation that several groups of values share.

    Attributes
    ----------
    std : float
        In the unit of the values. NaN without a degree of freedom.
    freedom : int
        Degrees of freedom.
    """

    std: float
    freedom: int

    def half_width(self, n: int) -> float:
        """Half width of the 95% interval for the mean of n of the values."""
        return t_half_width(self.std, n, self.freedom)


def pooled_std(groups: Sequence[np.ndarray]) -> Pooled:
    """Standard deviation within groups: sqrt(sum (n_i - 1) s_i^2 / sum (n_i - 1)).

    Each group has a mean of its own. The groups may differ in size; one with a single value adds nothing.

    Parameters
    ----------
    groups : sequence of ndarray
        (n_i,) independent values of group i. Their true variances must be equal, see `cochran_p`.

    Returns
    -------
    Pooled
        With sum (n_i - 1) degrees of freedom.
    """
    freedom = sum(len(values) - 1 for values in groups)
    squares = math.fsum(float(((values - values.mean()) ** 2).sum()) for values in groups)
    return Pooled(math.sqrt(squares / freedom) if freedom else math.nan, freedom)


def pooled_std_of_differences(values: np.ndarray) -> Pooled:
    """Standard deviation of a paired difference between two columns, pooled over all pairs of columns.

    It is sqrt(2 * sum r_ij^2 / ((n - 1) (m - 1))), where r_ij is a value without the means of its row and of its
    column (a randomised block design). Its square is the mean over all pairs of columns of the variance of their
    differences. The pairs share columns, so they have only (n - 1) (m - 1) degrees of freedom. Two columns give the
    paired t test. If values are missing, rows and columns are fitted to the others by least squares, and the degrees
    of freedom are those that the fit leaves. The true variances of all differences must be equal. `cochran_p` does
    not test that: it compares columns, not their differences.

    Parameters
    ----------
    values : ndarray
        (n, m): rows are what the pairs share (seeds), columns are what is compared (methods). NaN is a missing value.

    Returns
    -------
    Pooled
    """
    rows, columns = values.shape
    known = ~np.isnan(values)
    if known.all():
        freedom = (rows - 1) * (columns - 1)
        left = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    else:
        i, j = np.nonzero(known)
        design = np.hstack([np.eye(rows)[i], np.eye(columns)[j]])
        fitted, _, rank, _ = np.linalg.lstsq(design, values[known], rcond=None)
        freedom = len(i) - int(rank)
        left = values[known] - design @ fitted
    return Pooled(math.sqrt(2 * float((left**2).sum()) / freedom) if freedom else math.nan, freedom)


def cochran_p(groups: Sequence[np.ndarray]) -> float:
    """Cochran's C test: is one variance too large to be that of the others? Its p-value.

    The variance of each group is divided by the pooled variance of the others and compared with the F distribution.
    The smallest of these p-values is multiplied by the number of groups. For normal values this is never too small,
    for any sizes of the groups. Still, two values in each group say little: if one of five standard deviations is ten
    times the others, a level of 0.01 finds it in half of the cases. Bartlett's test finds it in a fifth, and Levene's
    test has nothing to work with.

    Parameters
    ----------
    groups : sequence of ndarray
        (n_i,) independent values of group i. Groups with one value are ignored.

    Returns
    -------
    float
        At most 1. NaN for fewer than two groups.

    Source
    ------
    R. U. E. 't Lam, "Scrutiny of variance results for outliers: Cochran's test optimized", Analytica Chimica Acta
    659, 2010.
    """
    groups = [values for values in groups if len(values) > 1]
    if len(groups) < 2:
        return math.nan
    smallest = 1.0
    for i, values in enumerate(groups):
        own, others = pooled_std([values]), pooled_std([*groups[:i], *groups[i + 1 :]])
        if others.std > 0:
            smallest = min(smallest, float(f.sf((own.std / others.std) ** 2, own.freedom, others.freedom)))
        elif own.std > 0:
            smallest = 0.0  # the others do not vary at all
    return min(1.0, len(groups) * smallest)


def sample_size(std: float, half: float) -> int:
    """Smallest number of values, at least 2, with a 95% t interval of at most this half width.

    Parameters
    ----------
    std : float
        Standard deviation of the values.
    half : float
        Half width, in the unit of ``std``.
    """
    n = max(2, math.floor((t.ppf(0.975, math.inf) * std / half) ** 2))  # by the normal quantile: slightly too few
    while t_half_width(std, n) > half:
        n += 1
    return n


def between_sets(set_means: np.ndarray, counts: np.ndarray, std_within: float) -> tuple[float, float, float]:
    """Standard deviation between sets, without the variation that their networks add, and its 95% interval.

    One-way random effects: the mean over n networks of a set has variance between^2 + within^2 / n. So
    between = sqrt(max(0, s_means^2 - within^2 / n)). If n differs, the mean of 1 / n takes its place.

    The interval is the chi-squared interval of s_means, with one degree of freedom less than sets, minus the same
    share. It takes ``std_within`` as exact. With two sets it spans more than a factor of 70 in s_means, so it says
    little.

    Parameters
    ----------
    set_means : ndarray
        (sets,) mean accuracy of each set.
    counts : ndarray
        (sets,) number of networks of each set.
    std_within : float
        Standard deviation between networks of one set.

    Returns
    -------
    std, low, high : float
        All NaN for fewer than two sets, or if ``std_within`` is NaN.
    """
    freedom = len(set_means) - 1
    if freedom < 1 or math.isnan(std_within):
        return math.nan, math.nan, math.nan
    variance = float(np.var(set_means, ddof=1))
    share_of_networks = std_within**2 * float((1 / counts).mean())

    def between(variance_of_means: float) -> float:
        return math.sqrt(max(0.0, variance_of_means - share_of_networks))

    low, high = (between(variance * freedom / chi2.ppf(q, freedom)) for q in (0.975, 0.025))
    return between(variance), low, high


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho, or the partial rho given a control, with a 95% bootstrap interval.

    Attributes
    ----------
    rho, low, high : float
        NaN if rho has no value.
    n : int
        Number of pairs used.
    p : float
        Two-sided p-value by the t approximation, which is rough for few pairs.
    note : str
        What to know before reading it, for example why rho is NaN.
    """

    rho: float
    low: float
    high: float
    n: int
    p: float
    note: str = ""

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.rho:.2f} [{self.low:.2f}, {self.high:.2f}] (n = {self.n}{note})"


def rank_correlation(
    x: Sequence[float], y: Sequence[float], control: Sequence[float] | None = None, n_boot: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Do x and y rank the sets in the same order? Spearman's rho with a 95% interval.

    The interval is a percentile bootstrap interval from resampling the sets. Ties share their mean rank. Pairs with
    a NaN are left out. Each resample is ranked again. Resamples in which rho has no value are left out.

    Parameters
    ----------
    x, y : sequence of float
        (n,) one number per set.
    control : sequence of float, optional
        (n,) gives the partial correlation: the ranks of x and y are first reduced by linear regression on the ranks
        of ``control``. Example: does the distance predict the accuracy beyond what the training loss
        predicts?
    n_boot : int
        Number of resamples.
    seed : int

    Returns
    -------
    RankCorrelation
        rho is NaN, with a note, for fewer than 3 pairs (4 with a control), if x or y is constant, or if the control
        leaves nothing of x or y.

    Raises
    ------
    ValueError
        If the lengths differ or n_boot < 1.
    """
    columns = [np.asarray(v, dtype=float) for v in (x, y, control) if v is not None]
    if any(v.ndim != 1 or len(v) != len(columns[0]) for v in columns):
        raise ValueError(f"x, y and control must be equally long lists, not of shapes {[v.shape for v in columns]}")
    check_number("n_boot", n_boot, least=1, whole=True)
    given = np.stack(columns)  # (2 or 3, n)
    values = given[:, ~np.isnan(given).any(0)]
    n = values.shape[1]
    notes = []
    if n < given.shape[1]:
        notes.append(f"{given.shape[1] - n} of {given.shape[1]} left out, a value is missing")
    fewest = len(values) + 1
    if n < fewest:
        return _no_correlation(n, [*notes, f"rho needs {fewest} pairs or more"])
    rho = float(_spearman(values))
    constant = [name for name, v in zip(("x", "y", "control"), values, strict=False) if (v == v[0]).all()]
    if math.isnan(rho):
        blamed = [name for name in constant if name != "control"]
        why = (
            f"{' and '.join(blamed)} constant over the sets"
            if blamed
            else "nothing of x or y is left beyond the control"
        )
        return _no_correlation(n, [*notes, why])
    if constant:
        notes.append("the control is constant and has no effect")
    drawn = torch.randint(n, (n_boot, n), generator=generator(seed, "rank correlation")).numpy()
    resampled = _spearman(values[:, drawn])
    resampled = resampled[~np.isnan(resampled)]
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (math.nan, math.nan)
    df = n - len(values)  # n - 2, one less with a control
    p = 2 * t.sf(abs(rho) * math.sqrt(df / ((1 - rho) * (1 + rho))), df) if abs(rho) < 1 else 0.0
    return RankCorrelation(rho, float(low), float(high), n, float(p), "; ".join(notes))


def _no_correlation(n: int, notes: Sequence[str]) -> RankCorrelation:
    return RankCorrelation(math.nan, math.nan, math.nan, n, math.nan, "; ".join(notes))


def _spearman(values: np.ndarray) -> np.ndarray:
    """rho of x and y given a control, if any: (2 or 3, ..., n) -> (...). NaN if no variation of x or y is left."""
    ranks = rankdata(values, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    x, y, *control = ranks
    varied_x, varied_y = (x**2).sum(-1), (y**2).sum(-1)
    if control:
        (z,) = control
        zz = (z**2).sum(-1, keepdims=True)
        z = z / np.sqrt(np.where(zz > 0, zz, 1))  # unit length; a constant control stays 0 and has no effect
        x, y = (v - z * (v * z).sum(-1, keepdims=True) for v in (x, y))
    xx, yy = (x**2).sum(-1), (y**2).sum(-1)
    # If less than this share of the ranks' variation remains after the control, it is rounding error.
    known = (xx > 1e-12 * varied_x) & (yy > 1e-12 * varied_y)
    rho = (x * y).sum(-1) / np.sqrt(np.where(known, xx * yy, 1))
    return np.where(known, rho.clip(-1, 1), math.nan)
