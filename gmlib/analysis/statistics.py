"""The one home of intervals: t and chi-squared intervals, rank correlations, sums over starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2, rankdata, t

from ..checks import check_number
from ..runtime import generator


def t_half_width(std: float, n: int) -> float:
    """Half width of the two-sided 95% t interval for a mean of n values with this standard deviation; NaN for n < 2."""
    return float(t.ppf(0.975, n - 1) * std / math.sqrt(n)) if n > 1 else math.nan


def half_width(values: np.ndarray) -> float:
    """`t_half_width` of these values."""
    return t_half_width(np.std(values, ddof=1), len(values)) if len(values) > 1 else math.nan


def welch_half_width(a: np.ndarray, b: np.ndarray) -> float:
    if min(len(a), len(b)) < 2:
        return math.nan
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    if va + vb == 0:
        return 0.0
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))  # Welch-Satterthwaite
    return float(t.ppf(0.975, freedom) * math.sqrt(va + vb))


def between_sets(set_means: np.ndarray, counts: np.ndarray, std_within: float) -> tuple[float, float, float]:
    """Standard deviation between sets without the share of their networks, and its 95% interval: (std, low, high).

    One-way random effects: the mean of a set of n networks varies with variance between^2 + within^2 / n, so
    between = sqrt(max(0, s_means^2 - within^2 / n)); where the sets have different n, the mean of 1 / n stands for it. The
    interval is that of s_means by chi^2 with one degree of freedom less than there are sets, less the same share; it takes
    `std_within` as exact. With two sets it spans more than a factor of 70 in s_means: hardly more than a hint.
    All NaN for fewer than two sets, or where std_within is not known.
    """
    freedom = len(set_means) - 1
    if freedom < 1 or math.isnan(std_within):
        return math.nan, math.nan, math.nan
    variance, share = float(np.var(set_means, ddof=1)), std_within**2 * float((1 / counts).mean())
    likely = (variance, *(variance * freedom / chi2.ppf(q, freedom) for q in (0.975, 0.025)))
    return tuple(math.sqrt(max(0.0, v - share)) for v in likely)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho, or the partial one given a control, with a 95% bootstrap interval; NaN where it has no value."""

    rho: float
    low: float
    high: float
    n: int  # pairs used
    p: float  # two-sided, t approximation: rough for few pairs
    note: str = ""  # what to know before reading it; why rho is NaN

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.rho:.2f} [{self.low:.2f}, {self.high:.2f}] (n = {self.n}{note})"


def rank_correlation(
    x: Sequence[float], y: Sequence[float], control: Sequence[float] | None = None, n_boot: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Do x and y order the sets alike? Spearman's rho, with a percentile 95% interval from resampling the sets.

    x, y, control: (n,), one number per set. control: the partial correlation, of what is left of the ranks of x and y after
    linear regression on the ranks of `control`: does the distance predict accuracy beyond what the training loss predicts?
    Ties share their mean rank. Pairs with a NaN are left out. Ranks are taken anew in each resample; resamples in which rho has
    no value are left out. rho is NaN, with a note, for fewer than 3 pairs (4 with a control), for a constant x or y, and where
    the control's ranks leave nothing of either.
    Raises ValueError for inputs of different lengths or n_boot < 1.
    """
    columns = [np.asarray(v, dtype=float) for v in (x, y, control) if v is not None]
    if any(v.ndim != 1 or len(v) != len(columns[0]) for v in columns):
        raise ValueError(f"x, y and control must be equally long lists, not of shapes {[v.shape for v in columns]}")
    check_number("n_boot", n_boot, least=1, whole=True)
    values = np.stack(columns)  # (2 or 3, n)
    kept = values[:, ~np.isnan(values).any(0)]
    n, fewest = kept.shape[1], len(kept) + 1
    notes = (
        [f"{values.shape[1] - n} of {values.shape[1]} left out, a value is missing"] if n < values.shape[1] else []
    )
    why = ""
    if n < fewest:
        why = f"rho needs {fewest} pairs or more"
    else:
        constant = [name for name, v in zip(("x", "y", "the control"), kept, strict=False) if (v == v[0]).all()]
        rho = float(_spearman(kept))
        if math.isnan(rho):
            blamed = [name for name in constant if name != "the control"]
            why = (
                f"{' and '.join(blamed)} constant over the sets"
                if blamed
                else "nothing of x or y is left beyond the control"
            )
        elif constant:
            notes.append("the control is constant and takes nothing away")
    if why:
        return RankCorrelation(math.nan, math.nan, math.nan, n, math.nan, "; ".join([*notes, why]))
    drawn = torch.randint(n, (n_boot, n), generator=generator(seed, "rank correlation")).numpy()
    resampled = _spearman(kept[:, drawn])
    low, high = (
        np.percentile(resampled[~np.isnan(resampled)], [2.5, 97.5])
        if (~np.isnan(resampled)).any()
        else (math.nan,) * 2
    )
    df = n - len(kept)  # n - 2, one less with a control
    p = 2 * t.sf(abs(rho) * math.sqrt(df / ((1 - rho) * (1 + rho))), df) if abs(rho) < 1 else 0.0
    return RankCorrelation(rho, float(low), float(high), n, float(p), "; ".join(notes))


def _spearman(values: np.ndarray) -> np.ndarray:
    """(2 or 3, ..., n): x, y and perhaps a control -> (...) rho, NaN where x or y has no variation of its own."""
    ranks = rankdata(values, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    x, y, *z = ranks
    varied = (x**2).sum(-1), (y**2).sum(-1)
    if z:
        zz = (z[0] ** 2).sum(-1, keepdims=True)
        z = z[0] / np.sqrt(np.where(zz > 0, zz, 1))  # unit length; zero where constant, which takes nothing away
        x, y = (v - z * (v * z).sum(-1, keepdims=True) for v in (x, y))
    xx, yy = (x**2).sum(-1), (y**2).sum(-1)
    # Below this share of the ranks' variation, what the control leaves is rounding.
    known = (xx > 1e-12 * varied[0]) & (yy > 1e-12 * varied[1])
    rho = (x * y).sum(-1) / np.sqrt(np.where(known, xx * yy, 1))
    return np.where(known, rho.clip(-1, 1), math.nan)
