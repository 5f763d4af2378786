"""Means, intervals and verdicts over stored accuracies.

The paper (Section 4.1) reports mean and standard deviation pooled over all networks of all sets. Those are
kept, because they compare with its tables, but two networks trained on one set are not two independent draws
of the method: every interval below treats the SETS as the random effect and is a t interval on set means.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from IPython.display import Markdown

from gmlib.analysis.statistics import between_sets, half_width, rank_correlation, welch_half_width
from gmlib.analysis.training import by_eps
from gmlib.coresets import CORESETS
from gmlib.data import Data
from gmlib.lines import initial
from gmlib.recipe import Recipe
from gmlib.runs.readback import COLUMNS
from gmlib.runs.store import Run

from .style import counted, method_order, per_class

OUTCOMES = ("held", "reversed", "not decided", "too few sets")  # of a `Verdict`
CELL = ["dataset", "ipc", "method", "network", "budget"]


def checked(results: pd.DataFrame) -> pd.DataFrame:
    missing = [c for c in COLUMNS if c not in results.columns]
    if missing:
        raise ValueError(f"results lack {', '.join(missing)}: the long form needs {', '.join(COLUMNS)}.")
    if results.empty:
        raise ValueError("results hold no row: run or load at least one evaluation first.")
    if not np.isfinite(results["accuracy"].to_numpy(float)).all():
        raise ValueError("results hold an accuracy that is not a finite number: drop or rerun that network.")
    twice = results.duplicated(list(COLUMNS[:-1]))
    if twice.any():
        first = ", ".join(f"{c}={results.loc[twice, c].iloc[0]}" for c in COLUMNS[:-1])
        raise ValueError(f"results hold the same network twice (first: {first}): load each run once.")
    return results


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row per (dataset, ipc, method, network, budget).

    Columns, in percent unless they count:
      mean, std         over all n networks of all sets together (std with n - 1), as the paper pools them
      n, n_sets         networks, sets
      ci95              half width of the 95% t interval on the n_sets set means; NaN when there is one set
      low, high         that interval, centred on the mean of the set means (which is `mean` when all sets
                        have equally many networks)
      std_within_sets   between the networks of one set: root of the pooled variance inside the sets (NaN when every set has one
                        network)
      std_set_means     standard deviation of the set means as they are (NaN when there is one set)
      std_between_sets  between the sets alone, by `between_sets`
      between_low, between_high   its 95% interval
      note              why ci95 is missing, or ""
    """
    rows = []
    for key, group in checked(results).groupby(CELL, sort=False):
        by_set = group.groupby("set")["accuracy"]
        set_means = by_set.mean().to_numpy()
        counts = by_set.count().to_numpy()
        freedom = int((counts - 1).sum())
        squares = float(((group["accuracy"] - by_set.transform("mean")) ** 2).sum())
        ci95 = half_width(set_means)
        centre = float(set_means.mean())
        std_within = math.sqrt(squares / freedom) if freedom else math.nan
        between, between_low, between_high = between_sets(set_means, counts, std_within)
        rows.append(
            dict(zip(CELL, key, strict=True))
            | {
                "mean": float(group["accuracy"].mean()),
                "std": float(group["accuracy"].std(ddof=1)) if len(group) > 1 else math.nan,
                "n": len(group),
                "n_sets": len(set_means),
                "ci95": ci95,
                "low": centre - ci95,
                "high": centre + ci95,
                "std_within_sets": std_within,
                "std_set_means": float(np.std(set_means, ddof=1)) if len(set_means) > 1 else math.nan,
                "std_between_sets": between,
                "between_low": between_low,
                "between_high": between_high,
                "note": "" if len(set_means) > 1 else "one set: no interval over sets",
            }
        )
    return pd.DataFrame(rows)


def components(results: pd.DataFrame, whole: Mapping[str, float] | None = None, *, network=None) -> pd.DataFrame:
    """What condensation adds, in parts instead of one score: one row per (dataset, ipc, method, network, budget).

    whole: mean test accuracy in percent after training on the whole data set, by data set.
    Columns, in percentage points:
      mean              as in `summarise`
      ior, ior_low, ior_high   improvement over random: the gain over equally many random real images under the same
                        protocol, with `verdict`'s 95% interval over sets; NaN where "random" was not run
      hlr               hard-label recovery gap: whole-data accuracy minus mean; NaN where it is not given
      relative          mean over whole-data accuracy, in percent
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


def compression(n_real: int, n_synthetic: int, shape: Sequence[int], bytes_per_value: int = 4) -> dict[str, float]:
    """How much smaller the synthetic set is, in images and in bytes.

    shape: (channels, height, width). Real pixels take one byte, synthetic ones `bytes_per_value` (4 for float32).
    Returns real_bytes, synthetic_bytes, and the ratios real / synthetic in "images" and in "bytes".
    """
    values = math.prod(shape)
    real, synthetic = n_real * values, n_synthetic * values * bytes_per_value
    return {
        "real_bytes": real,
        "synthetic_bytes": synthetic,
        "images": n_real / n_synthetic,
        "bytes": real / synthetic,
    }


@dataclass(frozen=True)
class Verdict:
    """Whether `better` beats `worse` in one cell of a table. Differences are in percentage points.

    outcome: "held" (the interval lies above 0), "reversed" (below 0), "not decided" (it holds 0), or
    "too few sets" (fewer than two of one of them can be compared, so low and high are NaN).
    """

    better: str
    worse: str
    dataset: str
    ipc: int
    budget: str
    difference: float
    low: float
    high: float
    n: tuple[int, int]  # sets of `better` and of `worse` that were compared
    test: str
    outcome: str

    def _sentence(self, mark: str) -> str:
        where = f"{self.dataset}, {per_class(self.ipc)}"
        if self.budget != "paper":
            where += f", {self.budget} budget"
        head = f"{where}: {self.better} minus {self.worse} is "
        if self.outcome == "too few sets":
            sets = f"sets compared: {self.n[0]} and {self.n[1]}, an interval needs two of each"
            return f"{head}{self.difference:+.2f} points ({sets}): {mark}{self.outcome}{mark}."
        interval = f"95% interval {self.low:+.2f} to {self.high:+.2f}"
        return f"{head}{self.difference:+.2f} points ({interval}, {self.test}): {mark}{self.outcome}{mark}."

    def __str__(self) -> str:
        return self._sentence("")

    def _repr_markdown_(self) -> str:
        return self._sentence("**")


class Verdicts(list):
    """A list of `Verdict` that shows itself as one sentence per line."""

    def __str__(self) -> str:
        return "\n".join(str(v) for v in self)

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {v._repr_markdown_()}" for v in self)

    def counted(self) -> Markdown:
        """One sentence: how many of them had which outcome."""
        if not self:
            return Markdown("Nothing can be compared: no two of these methods were run together.")
        outcomes = [v.outcome for v in self]
        told = ", ".join(f"{outcome} in {outcomes.count(outcome)}" for outcome in OUTCOMES if outcome in outcomes)
        return Markdown(f"**Of {len(self)} comparison{'' if len(self) == 1 else 's'}: {told}.**")


def select(results: pd.DataFrame, **wanted) -> pd.DataFrame:
    """The rows with the wanted values; a column of which nothing is wanted must hold one value only."""
    for column, value in wanted.items():
        known = list(dict.fromkeys(results[column]))
        if value is not None and value not in known:
            raise ValueError(f"no results for {column}={value!r}; known: {', '.join(map(str, known))}.")
        if value is None and len(known) > 1:
            raise ValueError(f"results hold several values of {column}: pass {column}= one of {known}.")
        if value is not None:
            results = results[results[column] == value]
    return results


def verdict(
    results: pd.DataFrame, better: str, worse: str, *, dataset=None, ipc=None, network=None, budget=None
) -> Verdict:
    """Compare two methods in one cell: difference of the means over sets, with a two-sided 95% t interval.

    Where the methods have at least two set seeds in common, these sets alone are compared, pair by pair, and the interval is
    that of the paired t test; otherwise it is Welch's, over all sets. A method with one set is compared on that seed.
    dataset, ipc, network and budget choose the cell and may be left out where `results` hold one value only.
    """
    cell = select(checked(results), dataset=dataset, ipc=ipc, network=network, budget=budget)
    a, b = (select(cell, method=m).groupby("set")["accuracy"].mean() for m in (better, worse))
    shared = a.index.intersection(b.index)
    paired = len(shared) > 1 or (len(shared) == 1 and min(len(a), len(b)) == 1)
    if paired:
        a, b = a[shared], b[shared]
    n = (len(a), len(b))
    difference = float(a.mean() - b.mean())
    if paired:
        test = f"paired t over the {n[0]} set seeds both have"
        half = half_width((a - b).to_numpy())  # pandas pairs by index, which is the seed
    else:
        test = f"Welch's t over {n[0]} and {n[1]} sets"
        half = welch_half_width(a.to_numpy(), b.to_numpy())
    low, high = difference - half, difference + half
    if math.isnan(half):
        outcome, test = "too few sets", "none"
    else:
        outcome = "held" if low > 0 else "reversed" if high < 0 else "not decided"
    first = cell.iloc[0]
    return Verdict(
        better, worse, str(first["dataset"]), int(first["ipc"]), str(first["budget"]),
        difference, low, high, n, test, outcome,
    )  # fmt: skip


def verdicts(results, better: str, worse: str, *, network=None) -> Verdicts:
    """`verdict` for every (dataset, ipc, budget) in which both methods were run."""
    results = select(checked(results), network=network)
    cells = results[["dataset", "ipc", "budget"]].drop_duplicates().itertuples(index=False)
    found = Verdicts()
    for dataset, ipc, budget in cells:
        cell = select(results, dataset=dataset, ipc=ipc, budget=budget)
        if {better, worse} <= set(cell["method"]):
            found.append(verdict(cell, better, worse))
    if not found:
        known = ", ".join(method_order(results["method"]))
        raise ValueError(f"{better!r} and {worse!r} were run together in no cell; known methods: {known}.")
    return found


def claim(results: pd.DataFrame, best: str, others: Sequence[str], *, network=None) -> Markdown:
    """One sentence on whether `best` is the best of these methods, by the rule of `verdict` in each cell.

    It counts the cells (dataset, ipc, budget) that hold all of them: in how many `best` has the highest mean, in how
    many it is above every other beyond noise, and in how many another one is above it beyond noise.
    """
    cells = top = above = beaten = 0
    results = select(checked(results), network=network) if len(results) else results
    for _, cell in results.groupby(["dataset", "ipc", "budget"], sort=False):
        if not {best, *others} <= set(cell["method"]):
            continue
        found = [verdict(cell, best, other, network=network) for other in others]
        cells += 1
        top += all(v.difference > 0 for v in found)
        above += all(v.outcome == "held" for v in found)
        beaten += any(v.outcome == "reversed" for v in found)
    names = ", ".join(others)
    if not cells:
        return Markdown(f"Whether {best} is best cannot be said: no cell holds it together with {names}.")
    return Markdown(
        f"**{best} has the highest mean, against {names}, in {top} of {cells} cell{'s' if cells > 1 else ''}.** "
        f"It is above all of them beyond noise in {above}, and below one of them beyond noise in {beaten}."
    )


def within(low: float, high: float, tolerance: float, inside: str = "held", outside: str = "reversed") -> str:
    """How the interval of a difference lies to plus/minus a tolerance: "not decided" where it reaches across an edge."""
    if -tolerance <= low and high <= tolerance:
        return inside
    return outside if low > tolerance or high < -tolerance else "not decided"


def alike(results: pd.DataFrame, one: str, other: str, *, network=None) -> Markdown:
    """Whether two methods do equally well, which takes more than no difference found: a line for each cell with both.

    Rule: "held" if the 95% interval of `verdict` lies within two standard deviations of the other's networks (all sets
    together, as the paper prints them), "reversed" if it lies outside, "not decided" otherwise.
    Raises ValueError where they were run together in no cell.
    """
    results = select(checked(results), network=network)
    lines = []
    for v in verdicts(results, one, other):
        cell = select(results, dataset=v.dataset, ipc=v.ipc, budget=v.budget, method=other)
        margin = 2 * summarise(cell)["std"].iloc[0]
        outcome = v.outcome
        if outcome != "too few sets":
            outcome = within(v.low, v.high, margin)
        interval = "no interval" if math.isnan(v.low) else f"95% interval {v.low:+.2f} to {v.high:+.2f}"
        lines.append(
            f"- {v.dataset}, {per_class(v.ipc)}: {one} is like {other} if their difference, {v.difference:+.2f} points "
            f"({interval}), is within {'two standard deviations' if math.isnan(margin) else f'±{margin:.2f}'}: **{outcome}**."
        )
    return Markdown("\n".join(lines))


def matching(runs: Collection[Run], data: Data) -> pd.DataFrame:
    """How far matching came, one row for each condensed set; coresets have none.

    data: what they were condensed from. Columns: dataset, ipc, method, set (its seed); losses, a list with the matching loss
    of each outer iteration; first and last, its mean over the first and the last tenth of them (one at least); left, last
    over first in percent; moved, |S - S_0| / |S_0| in normalised pixels. A loss is in the units of its own distance.
    """
    rows = []
    for r in (r for r in runs if r.record["history"]):
        recipe = Recipe(**r.record["recipe"])
        losses = [entry["loss"] for entry in r.record["history"]]
        tenth = max(1, len(losses) // 10)
        first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
        S_0 = initial(data, recipe).to(r.S.images)
        moved = float((r.S.images - S_0).norm() / S_0.norm())
        cell = (recipe.dataset, recipe.ipc, r.record["method"], recipe.seed)
        rows.append((*cell, losses, first, last, 100 * last / first, moved))
    return pd.DataFrame(rows, columns=["dataset", "ipc", "method", "set", "losses", "first", "last", "left", "moved"])


def correlation(question: str, found) -> Markdown:
    """A question and its answer by a rank correlation (`reach.RankCorrelation`) over sets.

    Rule: "yes" if the 95% interval lies above 0, "no, the other way round" if below, "not decided" otherwise.
    """
    if math.isnan(found.rho):
        return Markdown(f"- {question} **not decided** ({found.note}).")
    answer = "yes" if found.low > 0 else "no, the other way round" if found.high < 0 else "not decided"
    return Markdown(f"- {question} Spearman's rho {found}: **{answer}**.")


def reach_points(table: pd.DataFrame) -> pd.DataFrame:
    """`reach.by_eps` at the smallest threshold, a row for each set (method, set), with the set's accuracy.

    table: rows of `gmlib.reach` of several sets, with method, set and accuracy.
    """
    sums, trained = by_eps(table, by=["method", "set"]), table[["method", "set", "accuracy"]].drop_duplicates()
    return sums[sums["eps"] == sums["eps"].min()].merge(trained, on=["method", "set"])


def reach_answers(points: pd.DataFrame, condensing: pd.DataFrame | None = None) -> Markdown:
    """Section 5's questions, each answered by `correlation` over sets, and how many sets have no distance to go by.

    points: as `reach_points` returns them; of the methods "noise" and "real data" are controls, without accuracy.
    condensing: the columns of `reach.by_eps` and k, for one run of M along its outer iterations, where it was looked at.
    """
    trained = points[points["accuracy"].notna()]
    real = trained["method"] == "random"
    matched = trained[~real & ~trained["method"].isin(list(CORESETS))]
    of_noise = points[points["method"].isin(["noise", *matched["method"]])]
    far, right, loss = trained["min_distance"], trained["accuracy"], trained["train_loss"]
    along = [] if condensing is None else [
        ("Does the distance rise while M condenses?", condensing["k"], condensing["min_distance"])
    ]  # fmt: skip
    asked = (
        ("Does matching raise the distance, against noise?", of_noise["method"] != "noise", of_noise["min_distance"]),
        ("Does it raise the distance against random real images?", ~real, far),
        *along,
        ("Do sets with a farther trap train better networks?", far, right),
        ("Among the matched sets alone?", matched["min_distance"], matched["accuracy"]),
        ("Does the distance tell more than the training loss at the trap does?", far, right, loss),
        (
            "Does a smaller gradient on the real data at the trap go with better networks?",
            -trained["real_gradient_norm"],
            right,
        ),
    )
    sets = points[points["method"] != "real data"]
    without, eps = sets[sets["min_distance"].isna()], points["eps"].iloc[0]
    count = f"All {len(sets)} sets, noise included, have a start that reaches ε = {eps:g}."
    if len(without):
        names = ", ".join(f"{method} {n}" for method, n in without["method"].value_counts(sort=False).items())
        count = (
            f"**From {len(without)} of {counted(len(sets), 'set')}, noise included, no start reaches ε = {eps:g}** ({names}): "
            "without a distance they are left out of the correlations."
        )
    answers = [correlation(question, rank_correlation(*pair)).data for question, *pair in asked]
    return Markdown("\n".join([count, "", *answers]))
