"""Means, intervals and verdicts over stored accuracies.

The paper (Section 4.1) reports mean and standard deviation over all networks of all sets together. Those are kept, to
compare with its tables. But two networks trained on one set are not two independent draws of the method, so every
interval below is a t interval on the set means: the sets are the random effect.

Two sets alone have one degree of freedom, t = 12.7, and decide nothing. So the standard deviation between sets is
pooled over the condensed methods with the same data set, images per class, trained network and budget (`spreads`).
Coresets are not pooled: random images differ more from draw to draw than condensed sets do, and herding looks for the
same images each time, so one of them does not show how the other spreads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from IPython.display import Markdown

from gmlib.analysis.statistics import (
    Pooled,
    between_sets,
    cochran_p,
    pooled_std,
    pooled_std_of_differences,
    welch_half_width,
)
from gmlib.coresets import CORESETS
from gmlib.data import Data
from gmlib.lines import initial
from gmlib.networks import NETWORKS
from gmlib.recipe import Recipe
from gmlib.runs.readback import COLUMNS
from gmlib.runs.store import Run

from .differences import forest_html
from .style import counted, display_name, md, method_order, per_class

OUTCOMES = ("held", "reversed", "not decided", "too few sets")  # of a `Verdict`
SLACK = 1e-9  # for rounding errors such as in 83.8 - 83.2 <= 0.6
CELL = ["dataset", "ipc", "method", "network", "budget"]
POOL = ["dataset", "ipc", "network", "budget"]
UNEQUAL = 0.01  # a pool is not used if the test of equal variances has a p-value below this


def checked(results: pd.DataFrame) -> pd.DataFrame:
    """These results, if they are in long form and complete; ValueError otherwise."""
    missing = [c for c in COLUMNS if c not in results.columns]
    if missing:
        raise ValueError(f"results lack {', '.join(missing)}: give the columns {', '.join(COLUMNS)}")
    if results.empty:
        raise ValueError("results have no rows: run or load at least one evaluation first")
    if not np.isfinite(results["accuracy"].to_numpy(float)).all():
        raise ValueError("results have an accuracy that is not a finite number: drop that network or run it again")
    twice = results.duplicated(list(COLUMNS[:-1]))
    if twice.any():
        first = ", ".join(f"{c}={results.loc[twice, c].iloc[0]}" for c in COLUMNS[:-1])
        raise ValueError(f"results have the same network twice (first: {first}): load each run once")
    return results


def _accuracy(percent: float) -> float:
    return percent if math.isnan(percent) else min(max(percent, 0.0), 100.0)


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Mean, spread and interval of each (dataset, ipc, method, network, budget).

    Parameters
    ----------
    results
        Long form.

    Returns
    -------
    DataFrame
        One row per cell. Columns beyond those of the cell, in percent unless they count:

        - mean: of the set means; if all sets have equally many networks, that over all networks, as in the paper.
        - std: over all n networks of all sets together (with n - 1), as in the paper.
        - n, n_sets: networks, sets.
        - n_least: networks on the set with the fewest.
        - ci95: half width of the 95% t interval on the set means, t(0.975; freedom) * s / sqrt(n_sets), with the s of
          `spreads` if it is pooled, else that of the cell's own sets; NaN with one set.
        - freedom: degrees of freedom of s; 0 with one set.
        - low, high: mean - ci95 and mean + ci95, but from 0 to 100 at most.
        - low_alone, high_alone: the interval with the s of the cell's own sets, NaN if low and high are that one.
        - std_within_sets: between the networks of one set, from the pooled variance; NaN if every set has one
          network.
        - std_set_means: standard deviation of the set means; NaN with one set.
        - std_between_sets: between the sets alone, by `between_sets`; between_low, between_high: its 95% interval.
        - precision: of the recipes, or "" if it is not in the results.
        - note: why there is no ci95, or "".
    """
    results = checked(results)
    pools = {
        tuple(s[name] for name in POOL): Pooled(s["std"], s["freedom"])
        for s in spreads(results).to_dict("records")
        if s["pooled"]
    }
    rows = []
    for key, group in results.groupby(CELL, sort=False):
        cell = dict(zip(CELL, key, strict=True))
        by_set = group.groupby("set")["accuracy"]
        set_means = by_set.mean().to_numpy()
        counts = by_set.count().to_numpy()
        freedom = int((counts - 1).sum())
        squares = float(((group["accuracy"] - by_set.transform("mean")) ** 2).sum())
        own = pooled_std([set_means])
        poolable = len(set_means) > 1 and is_condensed(cell["method"])
        used = pools.get(tuple(cell[name] for name in POOL), own) if poolable else own
        ci95 = used.half_width(len(set_means))
        alone = math.nan if used is own else own.half_width(len(set_means))
        centre = float(set_means.mean())
        std_within = math.sqrt(squares / freedom) if freedom else math.nan
        between, between_low, between_high = between_sets(set_means, counts, std_within)
        rows.append(
            cell
            | {
                "mean": centre,
                "std": float(group["accuracy"].std(ddof=1)) if len(group) > 1 else math.nan,
                "n": len(group),
                "n_sets": len(set_means),
                "n_least": int(counts.min()),
                "ci95": ci95,
                "freedom": used.freedom,
                "low": _accuracy(centre - ci95),
                "high": _accuracy(centre + ci95),
                "low_alone": _accuracy(centre - alone),
                "high_alone": _accuracy(centre + alone),
                "std_within_sets": std_within,
                "std_set_means": own.std,
                "std_between_sets": between,
                "between_low": between_low,
                "between_high": between_high,
                "precision": " and ".join(sorted(set(group["precision"]))) if "precision" in group else "",
                "note": "" if len(set_means) > 1 else "one set: no interval over sets",
            }
        )
    return pd.DataFrame(rows)


def is_condensed(method: str) -> bool:
    """False for a coreset, and for a network where networks take the place of methods."""
    return method not in CORESETS and method.partition(":")[0] not in NETWORKS


def spreads(results: pd.DataFrame) -> pd.DataFrame:
    """The standard deviation between sets, pooled over the condensed methods of each (dataset, ipc, network, budget).

    Parameters
    ----------
    results
        Long form. May have no rows.

    Returns
    -------
    DataFrame
        One row for each pool of two methods or more with two sets or more. Columns beyond those that name it:

        - methods: their number.
        - std, freedom: by `pooled_std` of the set means, in percentage points. Numbers of sets, and of networks on
          them, may differ.
        - p: of `cochran_p`.
        - pooled: whether p is at least UNEQUAL. If not, each method has only its own standard deviation.
    """
    results = checked(results) if len(results) else results
    rows = []
    for key, group in results[results["method"].map(is_condensed).astype(bool)].groupby(POOL, sort=False):
        set_means = group.groupby(["method", "set"])["accuracy"].mean()
        of_methods = [means.to_numpy() for _, means in set_means.groupby("method") if len(means) > 1]
        if len(of_methods) > 1:
            pool, p = pooled_std(of_methods), cochran_p(of_methods)
            rows.append((*key, len(of_methods), pool.std, pool.freedom, p, p >= UNEQUAL))
    return pd.DataFrame(rows, columns=[*POOL, "methods", "std", "freedom", "p", "pooled"])


def data_sentence(data: Data) -> Markdown:
    """What the data are: their name, how many images of which size, and their origin."""
    channels, height, width = data.shape
    return Markdown(
        f"**{md(data.name)}**: {len(data.train_labels)} training and {len(data.test_labels)} test images of "
        f"{height}×{width} pixels, {counted(channels, 'channel')}, {data.n_classes} classes. "
        f"Source: {md(data.origin)}."
    )


def spreads_sentence(found: pd.DataFrame) -> Markdown:
    """Each pool with its standard deviation and its test of equal variances.

    Parameters
    ----------
    found
        From `spreads`. May have no rows.
    """
    if found.empty:
        return Markdown("No data set and size has two condensed methods with two sets each, so nothing is pooled.")
    several = found["network"].nunique() > 1
    pools = [
        f"{md(s.dataset)}, IPC {s.ipc}, {md(s.budget)} budget{f', to {md(s.network)}' if several else ''}: "
        f"{s.methods} methods, {s.std:.2f} points with {s.freedom} degrees of freedom, p = {s.p:.2g}"
        + ("" if s.pooled else " (**not equal: each method has only its own**)")
        for s in found.itertuples()
    ]
    return Markdown(f"Standard deviation between sets, pooled, with the test of equal variances: {'; '.join(pools)}.")


def components(results: pd.DataFrame, whole: Mapping[str, float] | None = None, *, network=None) -> pd.DataFrame:
    """What condensation adds, in parts, for each (dataset, ipc, method, network, budget).

    Parameters
    ----------
    results
        Long form.
    whole
        Data set -> mean test accuracy in percent after training on the whole data set.
    network
        The trained network, needed if ``results`` have several.

    Returns
    -------
    DataFrame
        Columns, in percentage points:

        - mean: as in `summarise`.
        - ior, ior_low, ior_high: improvement over random, the gain over equally many random real images under the
          same protocol, with the 95% interval of `verdict`; NaN if "random" was not run.
        - hlr: hard-label recovery gap, whole-data accuracy minus mean; NaN if there is no whole-data accuracy.
        - relative: mean over whole-data accuracy, in percent.
    """
    summary = summarise(select(checked(results), network=network))
    rows = []
    for _, s in summary[summary["method"] != "random"].iterrows():
        at = {name: s[name] for name in ("dataset", "ipc", "network", "budget")}
        cell = select(results, **at)
        gain = verdict(cell, s["method"], "random") if "random" in set(cell["method"]) else None
        full = (whole or {}).get(s["dataset"], math.nan)
        rows.append(
            {
                **{name: s[name] for name in CELL},
                "mean": s["mean"],
                "ior": gain.difference if gain else math.nan,
                "ior_low": gain.low if gain else math.nan,
                "ior_high": gain.high if gain else math.nan,
                "hlr": full - s["mean"],
                "relative": 100 * s["mean"] / full,
            }
        )
    return pd.DataFrame(rows, columns=[*CELL, "mean", "ior", "ior_low", "ior_high", "hlr", "relative"])


def components_sentence(found: pd.DataFrame) -> Markdown:
    """Which methods are better or worse than random real images beyond noise.

    Parameters
    ----------
    found
        From `components`.
    """

    def names(chosen: pd.Series) -> str:
        return ", ".join(f"{md(display_name(c.method))} at {c.ipc}" for c in found[chosen].itertuples()) or "none"

    better, worse = names(found["ior_low"] > 0), names(found["ior_high"] < 0)
    return Markdown(
        f"**Better than random real images beyond noise: {better}. Worse: {worse}.** The others are not decided."
    )


def compression(n_real: int, n_synthetic: int, shape: Sequence[int], bytes_per_value: int = 4) -> dict[str, float]:
    """How much smaller the synthetic set is, in images and in bytes.

    Parameters
    ----------
    n_real, n_synthetic
        Numbers of images.
    shape
        (channels, height, width).
    bytes_per_value
        Of a synthetic pixel: 4 for float32. A real pixel takes one byte.

    Returns
    -------
    dict
        real_bytes, synthetic_bytes, and the ratios real / synthetic of "images" and of "bytes".
    """
    values = math.prod(shape)
    real = n_real * values
    synthetic = n_synthetic * values * bytes_per_value
    return {
        "real_bytes": real,
        "synthetic_bytes": synthetic,
        "images": n_real / n_synthetic,
        "bytes": real / synthetic,
    }


@dataclass(frozen=True)
class Verdict:
    """Whether ``better`` beats ``worse`` in one cell of a table.

    Attributes
    ----------
    better, worse : str
        Methods.
    dataset, ipc, budget
        The cell.
    difference, low, high : float
        Difference of the means over sets and its 95% interval, in percentage points.
    n : tuple of int
        Sets of ``better`` and of ``worse`` in the comparison.
    test : str
        The kind of interval, or "none".
    outcome : str
        "held" (the interval lies above 0), "reversed" (below 0), "not decided" (0 lies in it), or "too few sets"
        (fewer than two sets of one of them, so low and high are NaN).
    margin : float
        For a claim that two methods do equally well (`alike`): how much the difference may be, in percentage points.
        Then the outcome is "held" if the interval lies within ±margin, "reversed" if it lies outside, and "not
        decided" if it crosses an edge. NaN otherwise.
    """

    better: str
    worse: str
    dataset: str
    ipc: int
    budget: str
    difference: float
    low: float
    high: float
    n: tuple[int, int]
    test: str
    outcome: str
    margin: float = math.nan

    def _sentence(self, mark: str) -> str:
        show = md if mark else str
        where = f"{show(self.dataset)}, {per_class(self.ipc)}"
        if self.budget != "paper":
            where += f", {show(self.budget)} budget"
        better, worse = (show(display_name(method)) for method in (self.better, self.worse))
        head = f"{where}: {better} minus {worse} is "
        if self.outcome == "too few sets":
            sets = f"{self.n[0]} and {self.n[1]} sets: an interval needs two of each"
            return f"{head}{self.difference:+.2f} points ({sets}): {mark}{self.outcome}{mark}."
        interval = f"95% interval {self.low:+.2f} to {self.high:+.2f}"
        if not math.isnan(self.margin):
            interval += f", alike within ±{self.margin:.2f}"
        return f"{head}{self.difference:+.2f} points ({interval}, {self.test}): {mark}{self.outcome}{mark}."

    def __str__(self) -> str:
        return self._sentence("")

    def _repr_markdown_(self) -> str:
        return self._sentence("**")


class Verdicts(list):
    """A list of `Verdict`, shown as a forest plot: one line each, its interval against zero.

    Attributes
    ----------
    caption : str, optional
        What is compared.
    missing : list of (str, str)
        Pairs of methods without a common cell.
    """

    def __init__(self, verdicts: Iterable[Verdict] = (), caption: str | None = None, missing=()):
        super().__init__(verdicts)
        self.caption = caption
        self.missing = list(missing)

    def __str__(self) -> str:
        return "\n".join(map(str, [*self, *self._notes()]))

    def _repr_html_(self) -> str:
        return forest_html(self, self.caption, self._notes())

    def _notes(self) -> list[str]:
        names = "; ".join(f"{display_name(a)} and {display_name(b)}" for a, b in self.missing)
        return [f"Not compared, because they were not run together: {names}."] if names else []

    def counted(self) -> Markdown:
        """How many of them have which outcome, in a sentence."""
        if not self:
            return Markdown("Nothing can be compared: no two of these methods were run together.")
        outcomes = [v.outcome for v in self]
        counts = ", ".join(f"{name} in {outcomes.count(name)}" for name in OUTCOMES if name in outcomes)
        return Markdown(f"**Of {counted(len(self), 'comparison')}: {counts}.**")


def select(results: pd.DataFrame, **wanted) -> pd.DataFrame:
    """The rows with these values. None means that the column has only one value; ValueError otherwise."""
    for column, value in wanted.items():
        known = list(dict.fromkeys(results[column]))
        if value is not None and value not in known:
            raise ValueError(f"no results for {column}={value!r}; known: {', '.join(map(str, known))}")
        if value is None and len(known) > 1:
            raise ValueError(f"results have several values of {column}: give {column}= one of {known}")
        if value is not None:
            results = results[results[column] == value]
    return results


def verdict(
    results: pd.DataFrame, better: str, worse: str, *, dataset=None, ipc=None, network=None, budget=None
) -> Verdict:
    """Compare two methods in one cell: difference of the means over sets, with a two-sided 95% t interval.

    If the methods share at least two set seeds, only these sets are compared, in pairs: sets of one seed start alike,
    and the networks trained on them start alike. If both methods are condensed and `spreads` pools the cell, the
    variance of the difference is pooled over the pairs of its condensed methods, with all their seeds
    (`pooled_std_of_differences`); of methods with the same source network if these two share theirs. If not, the
    interval is that of the paired t test. Without two shared seeds it is Welch's, over all sets. If one method has a
    single set, it is compared on that seed.

    Parameters
    ----------
    results
        Long form. The other methods in the cell count for the pool.
    better, worse
        Methods.
    dataset, ipc, network, budget
        The cell. Each may be left out if ``results`` have one value of it.

    Raises
    ------
    ValueError
        If the results are not in long form, or if the cell is not there or not unique.
    """
    cell = select(checked(results), dataset=dataset, ipc=ipc, network=network, budget=budget)
    set_means = cell.groupby(["set", "method"])["accuracy"].mean().unstack()
    a, b = (set_means[select(cell, method=m)["method"].iloc[0]].dropna() for m in (better, worse))
    shared = a.index.intersection(b.index)
    paired = len(shared) > 1 or (len(shared) == 1 and min(len(a), len(b)) == 1)
    if paired:
        a, b = a[shared], b[shared]
    n = (len(a), len(b))
    difference = float(a.mean() - b.mean())
    if paired:
        pool = _pooled_with(cell, better, worse) if n[0] > 1 else [better, worse]
        pairs = set_means[pool] if len(pool) > 2 else set_means.loc[shared, pool]
        test = f"paired t over the {n[0]} set seeds both have"
        if len(pool) > 2:
            test += f", variance pooled over {len(pool)} methods"
        half = pooled_std_of_differences(pairs.to_numpy()).half_width(n[0])
    else:
        test = f"Welch's t over {n[0]} and {n[1]} sets"
        half = welch_half_width(a.to_numpy(), b.to_numpy())
    low, high = difference - half, difference + half
    if math.isnan(half):
        outcome, test = "too few sets", "none"
    else:
        outcome = "held" if low > 0 else "reversed" if high < 0 else "not decided"
    first = cell.iloc[0]
    at = {"dataset": str(first["dataset"]), "ipc": int(first["ipc"]), "budget": str(first["budget"])}
    return Verdict(better, worse, **at, difference=difference, low=low, high=high, n=n, test=test, outcome=outcome)


def _pooled_with(cell: pd.DataFrame, better: str, worse: str) -> list[str]:
    """The methods whose sets say how much the difference of these two varies.

    Sets from other source networks met other networks and gradients. So their differences say nothing on two methods
    that share a source.
    """
    if is_condensed(better) and is_condensed(worse) and spreads(cell)["pooled"].any():
        source, other = _source(better), _source(worse)
        several = cell.groupby("method", sort=False)["set"].nunique() > 1
        return [m for m in several.index[several] if is_condensed(m) and (source != other or _source(m) == source)]
    return [better, worse]


def _source(method: str) -> str:
    return method.partition("@")[2]


def verdicts(results, better: str, worse: str, *, network=None) -> Verdicts:
    """`verdict` for every (dataset, ipc, budget) in which both methods were run; ValueError if there is none."""
    results = select(checked(results), network=network)
    cells = results[["dataset", "ipc", "budget"]].drop_duplicates().itertuples(index=False)
    found = Verdicts()
    for dataset, ipc, budget in cells:
        cell = select(results, dataset=dataset, ipc=ipc, budget=budget)
        if {better, worse} <= set(cell["method"]):
            found.append(verdict(cell, better, worse))
    if not found:
        known = ", ".join(method_order(results["method"]))
        raise ValueError(f"no cell has runs of both {better!r} and {worse!r}; known methods: {known}")
    return found


def forest(
    results: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    *,
    network: str | None = None,
    caption: str | None = None,
) -> Verdicts:
    """`verdict` for pairs of methods in every (dataset, ipc, budget) in which both were run, as a forest plot.

    Parameters
    ----------
    results
        Long form. May have no rows.
    pairs
        (better, worse) of each line. A pair without a common cell is named below the plot.
    network
        The trained network, needed if ``results`` have several.
    caption
        What is compared.
    """
    pairs = list(pairs)
    results = select(checked(results), network=network) if len(results) else results
    found = []
    for _, cell in results.groupby(["dataset", "ipc", "budget"], sort=False):
        run = set(cell["method"])
        found += [verdict(cell, better, worse) for better, worse in pairs if {better, worse} <= run]
    compared = {(v.better, v.worse) for v in found}
    return Verdicts(found, caption, [pair for pair in pairs if pair not in compared])


def within(low: float, high: float, tolerance: float, inside: str = "held", outside: str = "reversed") -> str:
    """Whether an interval lies inside ±tolerance or outside; "not decided" if it crosses an edge."""
    if -tolerance <= low and high <= tolerance:
        return inside
    return outside if low > tolerance or high < -tolerance else "not decided"


def alike(results: pd.DataFrame, one: str, other: str, *, network=None) -> Verdicts:
    """Whether two methods do equally well, a line for each cell with both. "No difference found" is not enough.

    A cell is held if the 95% interval of `verdict` lies within two standard deviations of the other's networks (over
    all sets, as the paper prints them), reversed if it lies outside, and not decided otherwise.

    Raises
    ------
    ValueError
        If no cell has runs of both.
    """
    results = select(checked(results), network=network)
    found = Verdicts()
    for v in verdicts(results, one, other):
        cell = select(results, dataset=v.dataset, ipc=v.ipc, budget=v.budget, method=other)
        margin = 2 * summarise(cell)["std"].iloc[0]
        outcome = v.outcome if v.outcome == "too few sets" else within(v.low, v.high, margin)
        found.append(replace(v, outcome=outcome, margin=margin))
    return found


def matching(runs: Collection[Run], data: Data) -> pd.DataFrame:
    """How far matching came in each condensed set. Coresets are left out.

    Parameters
    ----------
    runs
        As `store.sweep` returns them.
    data
        The data that were condensed.

    Returns
    -------
    DataFrame
        Columns dataset, ipc, method, set (its seed); losses, a list with the matching loss of each outer iteration,
        in the units of its own distance; first and last, its mean over the first and the last tenth of them (at least
        one); left, last over first in percent; moved, ``|S - S_0| / |S_0|`` in normalised pixels.
    """
    rows = []
    for r in (r for r in runs if r.record["history"]):
        recipe = Recipe(**r.record["recipe"])
        losses = [entry["loss"] for entry in r.record["history"]]
        tenth = max(1, len(losses) // 10)
        first = float(np.mean(losses[:tenth]))
        last = float(np.mean(losses[-tenth:]))
        S_0 = initial(data, recipe).to(r.S.images)
        moved = float((r.S.images - S_0).norm() / S_0.norm())
        cell = (recipe.dataset, recipe.ipc, r.record["method"], recipe.seed)
        rows.append((*cell, losses, first, last, 100 * last / first, moved))
    return pd.DataFrame(rows, columns=["dataset", "ipc", "method", "set", "losses", "first", "last", "left", "moved"])
