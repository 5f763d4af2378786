"""Tables, figures, verdicts and sliders that the pages show. Nothing here runs an experiment.

Every function that takes `results` expects the long form: a DataFrame with one row per trained network
and the columns dataset, ipc, method, budget, set (integer seed of the condensed set), network, net (index
of the network) and accuracy (percent).

The paper (Section 4.1) reports mean and standard deviation pooled over all networks of all sets. Those are
kept, because they compare with its tables, but two networks trained on one set are not two independent draws
of the method: every interval below treats the SETS as the random effect and is a t interval on set means.
"""

import base64
import hashlib
import html
import inspect
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from scipy import stats

from .store import COLUMNS

# One colour per method, on every page. Paul Tol's "muted" scheme, made to stay apart under colour blindness.
COLOURS = {
    "random": "#8C8C8C", "herding": "#999933", "DC": "#332288", "Inter": "#44AA99", "Interleaved": "#88CCEE",
    "M": "#117733", "MD": "#CC6677", "MDO": "#AA4499", "MDA": "#882255",
}  # fmt: skip
OTHER_COLOUR = "#555555"  # a method of the reader's own

# The font ships with matplotlib, so a figure looks the same on every machine.
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 150, "font.sans-serif": ["DejaVu Sans"], "font.size": 10,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlesize": 11, "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip

_CELL = ["dataset", "ipc", "method", "network", "budget"]


def use_style() -> None:
    """Give every figure drawn after this call the report's one style."""
    sns.set_theme(style="whitegrid", rc=STYLE)


def colour(method: str) -> str:
    """The method's colour as "#RRGGBB"; grey for a name that the paper does not have."""
    return COLOURS.get(method, OTHER_COLOUR)


def method_order(methods: Iterable[str]) -> list[str]:
    """Each method once: the paper's in the order of its tables, then others in order of appearance."""
    seen = list(dict.fromkeys(methods))
    return [m for m in COLOURS if m in seen] + [m for m in seen if m not in COLOURS]


def _per_class(ipc: int) -> str:
    return f"{ipc} image{'' if ipc == 1 else 's'} per class"


# ---------------------------------------------------------------------------------------------- numbers


def _checked(results: pd.DataFrame) -> pd.DataFrame:
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


def _half_width(values: np.ndarray) -> float:
    """Half width of the two-sided 95% t interval for the mean of `values`; NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return math.nan
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row per (dataset, ipc, method, network, budget).

    Columns, in percent unless they count:
      mean, std         over all n networks of all sets together (std with n - 1), as the paper pools them
      n, n_sets         networks, sets
      ci95              half width of the 95% t interval on the n_sets set means; NaN when there is one set
      low, high         that interval, centred on the mean of the set means (which is `mean` when all sets
                        have equally many networks)
      std_between_sets  standard deviation of the set means (NaN when there is one set)
      std_within_sets   root of the pooled variance inside the sets (NaN when every set has one network)
      note              why ci95 is missing, or ""
    """
    rows = []
    for key, group in _checked(results).groupby(_CELL, sort=False):
        by_set = group.groupby("set")["accuracy"]
        set_means = by_set.mean().to_numpy()
        counts = by_set.count().to_numpy()
        freedom = int((counts - 1).sum())
        squares = float(((group["accuracy"] - by_set.transform("mean")) ** 2).sum())
        ci95 = _half_width(set_means)
        centre = float(set_means.mean())
        rows.append(
            dict(zip(_CELL, key, strict=True))
            | {
                "mean": float(group["accuracy"].mean()),
                "std": float(group["accuracy"].std(ddof=1)) if len(group) > 1 else math.nan,
                "n": len(group),
                "n_sets": len(set_means),
                "ci95": ci95,
                "low": centre - ci95,
                "high": centre + ci95,
                "std_between_sets": float(np.std(set_means, ddof=1)) if len(set_means) > 1 else math.nan,
                "std_within_sets": math.sqrt(squares / freedom) if freedom else math.nan,
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
    summary = summarise(_select(_checked(results), network=network))
    rows = []
    for _, s in summary[summary["method"] != "random"].iterrows():
        at = {name: s[name] for name in ("dataset", "ipc", "network", "budget")}
        cell = _select(results, **at)
        gain = verdict(cell, s["method"], "random") if "random" in set(cell["method"]) else None
        full = (whole or {}).get(s["dataset"], math.nan)
        rows.append(
            {
                **{name: s[name] for name in _CELL},
                "mean": s["mean"],
                "ior": gain.difference if gain else math.nan,
                "ior_low": gain.low if gain else math.nan,
                "ior_high": gain.high if gain else math.nan,
                "hlr": full - s["mean"],
                "relative": 100 * s["mean"] / full,
            }
        )
    return pd.DataFrame(rows)


def compression(n_real: int, n_synthetic: int, shape: Sequence[int], bytes_per_value: int = 4) -> dict[str, float]:
    """How much smaller the synthetic set is, in images and in bytes.

    shape: (channels, height, width). Real pixels take one byte, synthetic ones `bytes_per_value` (4 for float32).
    Returns real_bytes, synthetic_bytes, and the ratios real / synthetic in "images" and in "bytes".
    """
    values = math.prod(shape)
    real, synthetic = n_real * values, n_synthetic * values * bytes_per_value
    return {"real_bytes": real, "synthetic_bytes": synthetic, "images": n_real / n_synthetic, "bytes": real / synthetic}


@dataclass(frozen=True)
class Verdict:
    """Whether `better` beats `worse` in one cell of a table. Differences are in percentage points.

    outcome: "held" (the interval lies above 0), "reversed" (below 0), "not decided" (it holds 0), or
    "too few sets" (one of the methods has fewer than two sets, so low and high are NaN).
    """

    better: str
    worse: str
    dataset: str
    ipc: int
    budget: str
    difference: float
    low: float
    high: float
    n: tuple[int, int]  # sets of `better`, sets of `worse`
    test: str
    outcome: str

    def _sentence(self, mark: str) -> str:
        where = f"{self.dataset}, {_per_class(self.ipc)}"
        if self.budget != "paper":
            where += f", {self.budget} budget"
        head = f"{where}: {self.better} minus {self.worse} is "
        if self.outcome == "too few sets":
            sets = f"sets per method: {self.n[0]} and {self.n[1]}, an interval needs two of each"
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


def _select(results: pd.DataFrame, **wanted) -> pd.DataFrame:
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

    When both methods have the same set seeds, the sets are paired by seed and the interval is that of the
    paired t test; otherwise it is Welch's. dataset, ipc, network and budget choose the cell and may be left
    out where `results` hold one value only.
    """
    cell = _select(_checked(results), dataset=dataset, ipc=ipc, network=network, budget=budget)
    a, b = (_select(cell, method=m).groupby("set")["accuracy"].mean() for m in (better, worse))
    n = (len(a), len(b))
    difference = float(a.mean() - b.mean())
    if set(a.index) == set(b.index):
        test = f"paired t over the {n[0]} set seeds both have"
        half = _half_width((a - b).to_numpy())  # pandas pairs by index, which is the seed
    else:
        test = f"Welch's t over {n[0]} and {n[1]} sets"
        half = _welch_half_width(a.to_numpy(), b.to_numpy())
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


def _welch_half_width(a: np.ndarray, b: np.ndarray) -> float:
    if min(len(a), len(b)) < 2:
        return math.nan
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    if va + vb == 0:
        return 0.0
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))  # Welch-Satterthwaite
    return float(stats.t.ppf(0.975, freedom) * math.sqrt(va + vb))


def verdicts(results, better: str, worse: str, *, network=None) -> Verdicts:
    """`verdict` for every (dataset, ipc, budget) in which both methods were run."""
    results = _select(_checked(results), network=network)
    cells = results[["dataset", "ipc", "budget"]].drop_duplicates().itertuples(index=False)
    found = Verdicts()
    for dataset, ipc, budget in cells:
        cell = _select(results, dataset=dataset, ipc=ipc, budget=budget)
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
    results = _select(_checked(results), network=network) if len(results) else results
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


# ---------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """Cells of text: `cells[row, column]` is a list of lines. HTML in a page, plain text elsewhere."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], list[str]]
    caption: str
    corner: str = "method"

    def _repr_html_(self) -> str:
        def esc(text):
            return html.escape(str(text))

        head = "".join(f'<th scope="col">{esc(c)}</th>' for c in self.columns)
        body = ""
        for row in self.rows:
            cells = ""
            for column in self.columns:
                first, *rest = self.cells[row, column]
                small = "".join(f"<br><small>{esc(line)}</small>" for line in rest)
                cells += f"<td>{esc(first)}{small}</td>"
            body += f'<tr><th scope="row">{esc(row)}</th>{cells}</tr>'
        return (
            f'<div class="gm-table"><table class="table"><caption>{esc(self.caption)}</caption><thead><tr>'
            f'<th scope="col">{esc(self.corner)}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def __str__(self) -> str:
        text = {c: ["; ".join(self.cells[r, c]) for r in self.rows] for c in self.columns}
        return f"{self.caption}\n{pd.DataFrame(text, index=self.rows).to_string()}"

    __repr__ = __str__


def table(
    results: pd.DataFrame,
    paper: pd.DataFrame | None = None,
    *,
    methods: Sequence[str] | None = None,
    columns: Sequence[tuple[str, int]] | None = None,
    network: str | None = None,
    why: Mapping[tuple[str, int, str], str] | None = None,
    caption: str = "Test accuracy in percent",
    decimals: int = 1,
) -> Table:
    """Methods in rows, (dataset, images per class) in columns; in a cell ours, the paper's under it.

    methods, columns: what to show (default: what `results` hold); a cell that was not run says so, with the
    reason from `why[dataset, ipc, method]` where there is one.
    paper: the published numbers, columns dataset, ipc, method, value, std (percent).
    network: the trained architecture, needed when `results` hold several.
    A cell run under another budget than "paper" is not set against the paper's figure; the caption or, where
    budgets are mixed, the cell names the budget.
    """
    if results.empty and methods is not None and columns is not None:
        summary = results.assign(mean=0.0, std=0.0, n=0, n_sets=0, ci95=0.0)  # no row: every cell says "not run"
    else:
        summary = summarise(_select(_checked(results), network=network))
    methods = list(methods) if methods is not None else method_order(summary["method"])
    if columns is None:
        columns = list(summary[["dataset", "ipc"]].drop_duplicates().itertuples(index=False, name=None))
    budgets = list(dict.fromkeys(summary["budget"]))
    cells = {}
    for method in methods:
        for dataset, ipc in columns:
            where = (summary["dataset"] == dataset) & (summary["ipc"] == ipc) & (summary["method"] == method)
            theirs = _published(paper, dataset, ipc, method)
            lines = []
            for _, s in summary[where].iterrows():
                lines += _cell_lines(s, decimals, name_budget=len(budgets) > 1)
            if not lines:
                reason = (why or {}).get((dataset, ipc, method))
                lines = ["not run" + (f": {reason}" if reason else "")]
            if paper is not None:
                lines += [_against_paper(theirs, summary[where], decimals)]
            cells[method, f"{dataset}, IPC {ipc}"] = lines
    note = "mean±std over all networks, n networks, 95% t interval over sets"
    if not budgets:
        note += "; nothing was run"
    elif len(budgets) > 1:
        note += f'; budgets: {", ".join(budgets)}, of which only "paper" is the paper\'s protocol'
    elif budgets != ["paper"]:
        note += f"; budget: {budgets[0]}, not the paper's protocol"
    return Table(methods, [f"{d}, IPC {i}" for d, i in columns], cells, f"{caption} ({note}).")


def _cell_lines(s: pd.Series, decimals: int, name_budget: bool) -> list[str]:
    spread = "" if math.isnan(s["std"]) else f"±{s['std']:.{decimals}f}"
    sets = "1 set" if s["n_sets"] == 1 else f"{s['n_sets']} sets"
    ours = f"{s['mean']:.{decimals}f}{spread} (n={s['n']}, {sets})"
    interval = s["note"] if math.isnan(s["ci95"]) else f"95% CI [{s['low']:.{decimals}f}, {s['high']:.{decimals}f}]"
    return [ours, interval] + ([f"budget: {s['budget']}"] if name_budget else [])


def _published(paper: pd.DataFrame | None, dataset: str, ipc: int, method: str) -> tuple[float, float] | None:
    if paper is None:
        return None
    row = paper[(paper["dataset"] == dataset) & (paper["ipc"] == ipc) & (paper["method"] == method)]
    return None if row.empty else (float(row["value"].iloc[0]), float(row["std"].iloc[0]))


def _against_paper(theirs: tuple[float, float] | None, ours: pd.DataFrame, decimals: int) -> str:
    if theirs is None:
        return "not in the paper"
    value, std = theirs
    text = f"paper: {value:.{decimals}f}" + ("" if math.isnan(std) else f"±{std:.{decimals}f}")
    same = ours[(ours["budget"] == "paper") & ours["ci95"].notna()]
    if same.empty:  # another budget, or one set: nothing to compare with
        return text
    low, high = same["low"].iloc[0], same["high"].iloc[0]
    side = "ours above" if low > value else "ours below" if high < value else "inside our interval"
    return f"{text} ({side})"


# ---------------------------------------------------------------------------------------------- figures


def accuracy_figure(results: pd.DataFrame, *, network: str | None = None) -> Figure:
    """Every network's accuracy as a dot, one strip per set, methods side by side, a panel per (dataset, ipc).

    A short bar marks each set's mean; the black point with whiskers is the mean over sets, with 95% interval.
    """
    results = _select(_checked(results), network=network)
    panels = list(results.groupby(["dataset", "ipc"], sort=False))
    methods = method_order(results["method"])
    with sns.axes_style("whitegrid", rc=STYLE):
        across = min(len(panels), 2)  # two panels fill the width of a page
        down = math.ceil(len(panels) / across)
        fig = Figure(figsize=(3.7 * across if across > 1 else 5.5, 3.2 * down), layout="constrained")
        axes = fig.subplots(down, across, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax, ((dataset, ipc), panel) in zip(axes.flat, panels, strict=False):
            for x, method in enumerate(methods):
                _strip(ax, x, panel[panel["method"] == method], colour(method))
            slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(methods) > 4 else {}
            ax.set_xticks(range(len(methods)), methods, **slant)
            ax.set_xlim(-0.6, len(methods) - 0.4)
            ax.set_title(f"{dataset}, {_per_class(ipc)}")
            ax.grid(visible=False, axis="x")
        for ax in axes[:, 0]:
            ax.set_ylabel("test accuracy (%)")
    return fig


def _strip(ax, x: float, rows: pd.DataFrame, shade: str) -> None:
    sets = sorted(rows["set"].unique())
    if not sets:
        return
    width = 0.6 / len(sets)
    means = []
    for i, seed in enumerate(sets):
        values = rows[rows["set"] == seed].sort_values("net")["accuracy"].to_numpy()
        centre = x - 0.3 + width * (i + 0.5)
        # Spread by the network's index, not by a random number: the same results give the same picture.
        spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * width * 0.7
        ax.plot(centre + spread, values, "o", color=shade, alpha=0.55, markersize=4, markeredgewidth=0)
        ax.hlines(values.mean(), centre - width * 0.45, centre + width * 0.45, color=shade, linewidth=2)
        means.append(values.mean())
    half = _half_width(np.array(means))
    ax.errorbar(
        x + 0.4, np.mean(means), yerr=None if math.isnan(half) else half,
        fmt="o", color="black", markersize=4, capsize=3, linewidth=1.2,
    )  # fmt: skip


def reach_figure(sums: pd.DataFrame, along: pd.DataFrame) -> Figure:
    """Section 5 in two panels: accuracy against the distance to the nearest trap, and that distance while S is condensed.

    sums: one row per set: method, min_distance, accuracy (percent). along: one row per snapshot of one run: method, k,
    min_distance.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, 3.2), layout="constrained")
        left, right = fig.subplots(1, 2)
    for method in method_order(sums["method"]):
        rows = sums[sums["method"] == method]
        left.plot(rows["min_distance"], rows["accuracy"], "o", color=colour(method), label=method, markersize=5)
    left.set(xlabel="distance to the nearest trap", ylabel="test accuracy (%)")
    left.legend(fontsize=8)
    for method, rows in along.groupby("method"):
        right.plot(rows["k"], rows["min_distance"], "o-", color=colour(method), label=method, markersize=4)
    right.set(xlabel="outer iteration k", ylabel="distance to the nearest trap")
    if len(along):
        right.legend(fontsize=8)
    return fig


def alignment_figure(table: pd.DataFrame) -> Figure:
    """Cosine and norm ratio of S's and T's gradients, layer by layer, along training on S (mean over starts).

    table: as `reach.alignment` returns it: start, step, layer, cosine, ratio.
    """
    with sns.axes_style("whitegrid", rc=STYLE):
        fig = Figure(figsize=(7.4, 3.0), layout="constrained")
        axes = fig.subplots(1, 2)
    shades = sns.color_palette("viridis", table["layer"].nunique())
    for ax, column, label in zip(axes, ("cosine", "ratio"), ("cosine of the two gradients", "|gS| / |gT|"), strict=True):
        for shade, (layer, rows) in zip(shades, table.groupby("layer", sort=False), strict=True):
            line = rows.groupby("step")[column].mean()
            ax.plot(line.index, line.to_numpy(), color=shade, label=layer)
        ax.set(xlabel="steps of theta on S", ylabel=label)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8)
    return fig


def reach_table(sums: pd.DataFrame, budget: str) -> Table:
    """Distances to the nearest trap, methods in rows, thresholds in columns; one row of `sums` per set and threshold.

    sums: `reach.by_eps(..., by=["method", "set"])`.
    """
    methods, eps = method_order(sums["method"]), sorted(sums["eps"].unique(), reverse=True)
    cells = {}
    for method in methods:
        for e in eps:
            rows = sums[(sums["method"] == method) & (sums["eps"] == e)]
            distances = rows["min_distance"].dropna()
            spread = f"±{distances.std():.2f}" if len(distances) > 1 else ""
            first = f"{distances.mean():.2f}{spread}" if len(distances) else "not reached"
            starts, arrived = rows["starts"].sum(), (rows["starts"] * rows["reached"]).sum()
            sets = f"{len(rows)} set{'s' if len(rows) > 1 else ''}"
            cells[method, f"eps = {e:g}"] = [first, f"{sets}, {arrived:.0f} of {starts} starts"]
    caption = (
        f"Distance from the start to the nearest trap, mean±std over sets; sets, and starts that reached it (budget: {budget})."
    )
    return Table(methods, [f"eps = {e:g}" for e in eps], cells, caption)


def correlation(question: str, found) -> Markdown:
    """A question and its answer by a rank correlation (`reach.RankCorrelation`) over sets.

    Rule: "yes" if the 95% interval lies above 0, "no, the other way round" if below, "not decided" otherwise.
    """
    if math.isnan(found.rho):
        answer = f"not decided ({found.note})"
    else:
        answer = "yes" if found.low > 0 else "no, the other way round" if found.high < 0 else "not decided"
    return Markdown(f"- {question} Spearman's rho {found}: **{answer}**.")


def image_grid(images, n_classes: int, *, titles: Sequence[str] | None = None, inch: float = 0.8) -> Figure:
    """Condensed images as a grid: one column per class, one row per image of the class.

    images: (C * ipc, channels, height, width), array or tensor, sorted by class, in [0, 1] (clipped to it),
    grey or RGB. titles: the C class names. inch: side of one image on paper.
    """
    sheet, centres = _sheet(images, n_classes)
    if titles is not None and len(titles) != n_classes:
        raise ValueError(f"{len(titles)} titles for {n_classes} classes: pass one per class.")
    across = inch * n_classes
    with sns.axes_style("white", rc=STYLE):
        size = (across, across * sheet.shape[0] / sheet.shape[1] + (0.3 if titles is not None else 0))
        fig = Figure(figsize=size, layout="constrained")
        _show_sheet(fig.subplots(), sheet, centres, titles)
    return fig


def _sheet(images, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The grid as one picture, and the x of the middle of each class's column."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
    images = np.asarray(images, dtype=float)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (n, 1 or 3, height, width), not {images.shape}.")
    n, channels, height, width = images.shape
    if n_classes < 1 or n == 0 or n % n_classes:
        raise ValueError(f"{n} images cannot be shared evenly by {n_classes} classes.")
    ipc = n // n_classes
    gap = max(1, width // 14)
    sheet = np.ones((ipc * (height + gap) - gap, n_classes * (width + gap) - gap, channels))
    for i, image in enumerate(images):
        c, j = divmod(i, ipc)
        top, left = j * (height + gap), c * (width + gap)
        sheet[top : top + height, left : left + width] = image.clip(0, 1).transpose(1, 2, 0)
    return sheet[..., 0] if channels == 1 else sheet, np.arange(n_classes) * (width + gap) + (width - 1) / 2


def _show_sheet(ax, sheet: np.ndarray, centres: np.ndarray, titles: Sequence[str] | None) -> None:
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(yticks=[], xticks=[])
    ax.spines[:].set_visible(False)
    if titles is not None:
        ax.set_xticks(centres, titles, fontsize=9)
        ax.tick_params(top=False, bottom=False, labeltop=True, labelbottom=False, pad=2)


def _png(fig: Figure) -> bytes:
    """The figure as PNG; it is closed, so that no notebook front end shows it a second time."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=STYLE["savefig.dpi"], bbox_inches="tight")
    plt.close(fig)
    return buffer.getvalue()


def _img(png: bytes, alt: str) -> str:
    source = base64.b64encode(png).decode()
    return f'<img class="gm-card" alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'


def show(fig: Figure, alt: str) -> None:
    """Display a figure as an image with alternative text, on a card that stays white in dark mode.

    The figure is closed.
    """
    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows.")
    display({"text/html": _img(_png(fig), alt), "text/plain": alt}, raw=True)


def source(*functions) -> Markdown:
    """The source of these functions, to stand beside their equation."""
    return Markdown("```python\n" + "\n\n".join(inspect.getsource(f).rstrip() for f in functions) + "\n```")


# ---------------------------------------------------------------------------------------------- sliders

# Where a page has several copies of one slider they share the id, so each copy is wired by itself, once.
_SCRIPT = """
document.querySelectorAll('#%(id)s:not([data-ready])').forEach(function (box) {
  var input = box.querySelector('input'), name = box.querySelector('output');
  var frames = box.querySelectorAll('.gm-frame'), names = %(names)s;
  function show() {
    frames.forEach(function (frame, i) { frame.hidden = i !== Number(input.value); });
    name.textContent = names[input.value];
    input.setAttribute('aria-valuetext', names[input.value]);
  }
  input.addEventListener('input', show);
  box.dataset.ready = '1'; input.value = %(start)d; input.parentElement.hidden = false; show();
});
"""


@dataclass
class Slider:
    """A slider through pictures, with two faces: ipywidgets where a kernel runs, plain HTML in a static page.

    frames: (caption, content, alt) each, where content is PNG bytes, a Figure (drawn and closed) or a string
    of HTML, and alt says in words what is to be seen.
    label: what the slider moves along; names: what it reads at each frame (default: 0, 1, ...).
    start: the frame shown first, in print and where scripts are off, so it should carry the message.
    """

    frames: Sequence[tuple[str, bytes | Figure | str, str]]
    label: str = "outer iteration k"
    names: Sequence[object] | None = None
    start: int = 0
    _html: list[str] = field(default_factory=list, init=False, repr=False)
    _live: object = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if not self.frames:
            raise ValueError("a slider needs at least one frame.")
        self.names = [str(n) for n in (range(len(self.frames)) if self.names is None else self.names)]
        if len(self.names) != len(self.frames):
            raise ValueError(f"{len(self.names)} names for {len(self.frames)} frames: pass one per frame.")
        if not -len(self.frames) <= self.start < len(self.frames):
            raise ValueError(f"start={self.start} is outside the {len(self.frames)} frames.")
        self.start %= len(self.frames)
        for caption, content, alt in self.frames:
            if not alt.strip():
                raise ValueError(f"frame {caption!r} has no alt: say in a sentence what it shows.")
            if isinstance(content, str):
                body = f'<div role="group" aria-label="{html.escape(alt)}">{content}</div>'
            else:
                body = _img(_png(content) if isinstance(content, Figure) else content, alt)
            self._html.append(f"{body}<figcaption>{html.escape(caption)}</figcaption>")

    def __repr__(self) -> str:
        return f"Slider: {len(self.frames)} frames along {self.label}"

    @property
    def id(self) -> str:
        """Made from the content alone: the same slider has the same id in every build."""
        content = json.dumps([self.label, self.names, self.start, self._html])
        return "gm-slider-" + hashlib.sha256(content.encode()).hexdigest()[:12]

    def _repr_html_(self) -> str:
        hidden = ["" if i == self.start else " hidden" for i in range(len(self._html))]
        frames = "".join(
            f'<figure class="gm-frame"{h}>{f}</figure>' for h, f in zip(hidden, self._html, strict=True)
        )
        name = html.escape(self.names[self.start])
        control = (
            f"<label hidden><span>{html.escape(self.label)}: <output>{name}</output></span>"
            f'<input type="range" min="0" max="{len(self._html) - 1}" step="1" value="{self.start}" '
            f'aria-label="{html.escape(self.label)}" aria-valuetext="{name}"></label>'
        )
        # "<" is escaped because a name that holds "</script>" would end the script.
        names = json.dumps(self.names).replace("<", "\\u003c")
        script = _SCRIPT % {"id": self.id, "names": names, "start": self.start}
        return f'<div class="gm-slider" id="{self.id}">{control}{frames}</div><script>{script}</script>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        bundle = {"text/plain": repr(self), "text/html": self._repr_html_()}
        return self._widget_bundle() | bundle

    def _widget_bundle(self) -> dict[str, object]:
        """The ipywidgets face, or nothing where there is no kernel to answer it."""
        try:
            import ipywidgets
            from IPython import get_ipython
        except ImportError:
            return {}
        if getattr(get_ipython(), "kernel", None) is None:
            return {}
        if self._live is None:
            options = [(name, i) for i, name in enumerate(self.names)]
            pick = ipywidgets.SelectionSlider(
                options=options,
                value=self.start,
                description=self.label,
                style={"description_width": "initial"},
                layout={"width": "100%", "max_width": "40em"},
            )
            view = ipywidgets.HTML(value=self._html[self.start])
            pick.observe(lambda change: setattr(view, "value", self._html[change["new"]]), names="value")
            self._live = ipywidgets.VBox([pick, view])
        return self._live._repr_mimebundle_()


def trace_slider(trace: Mapping[int, tuple[object, Sequence[float]]], n_classes: int, *, method: str, titles=None) -> Slider:
    """A slider through the outer iterations of one run: the images, and where their accuracy stands on its way.

    trace: {number of outer iterations k: (images as `image_grid` takes them, accuracies in percent of the
    networks trained on them)}. It opens at the last k.
    """
    ks = list(trace)
    means = [float(np.mean(accuracies)) for _, accuracies in trace.values()]
    frames = []
    for k, mean, (images, accuracies) in zip(ks, means, trace.values(), strict=True):
        sheet, centres = _sheet(images, n_classes)
        tall = 7.2 * sheet.shape[0] / sheet.shape[1] + 0.3
        with sns.axes_style("whitegrid", rc=STYLE):
            fig = Figure(figsize=(7.2, tall + 2.0), layout="constrained")
            pictures, way = fig.subplots(2, 1, height_ratios=[tall, 2.0])
        pictures.grid(visible=False)
        _show_sheet(pictures, sheet, centres, titles)
        for at, (_, each) in trace.items():
            way.plot([at] * len(each), each, "o", color=colour(method), alpha=0.35, markersize=3, markeredgewidth=0)
        way.plot(ks, means, color=colour(method), linewidth=1.5)
        way.plot([k], [mean], "o", color="black", markersize=7)
        way.set(xlabel="outer iteration k", ylabel="test accuracy (%)")
        caption = f"k = {k}: networks trained on these images reach {mean:.1f} % (mean of {len(accuracies)})"
        alt = f"The images after {k} outer iterations of {method}, one column for each class; below them accuracy against k"
        frames.append((caption, fig, alt))
    return Slider(frames, names=ks, start=len(ks) - 1)
