"""Why our numbers may deviate from the paper's: what differs in our runs, read from their stored records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from gmlib.analysis.statistics import half_width, welch_half_width
from gmlib.augment import operations_for
from gmlib.coresets import SPACES_OF
from gmlib.evaluation import Evaluation, Protocol
from gmlib.recipe import BUDGETS, Recipe
from gmlib.runs.readback import as_table
from gmlib.runs.shipped import CondensedSet, usual_recipe
from gmlib.runs.store import CHANGED

from . import paper
from .style import counted, display_name, md
from .summaries import CELL, summarise
from .tables import Table

# Names of fields in plain words. A field that is not here keeps its own name.
_WORDS = {
    "outer_loops": "outer iterations",
    "inner_loops": "updates of S per network",
    "zeta_theta": "steps of theta between updates",
    "batch_real": "real images per class and update",
    "lr_images": "learning rate of S",
    "init": "first images of S",
    "precision": "precision of products",  # in bf16 that of one pass only: `recipe_departures`
    "space": "space of distances between images",
}
_CORESET = _WORDS | {"epochs": "epochs of the network that chooses images"}
_PHASE_2 = {
    "epochs": "epochs in phase 2",
    "augment": "augmentation in phase 2",
    "precision": "precision in phase 2",
}
MIN_TENTH = 20  # outer iterations in a tenth of a run; with fewer, `trend` has no value


@dataclass(frozen=True)
class Departure:
    """One choice in which a run differs from the budget "paper".

    Attributes
    ----------
    what : str
        The choice, in plain words.
    ours, papers
        Its two values.
    evidence : str
        What the runs show of its effect, or that the paper leaves the choice open, or "".
    """

    what: str
    ours: Any
    papers: Any
    evidence: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.ours} instead of {self.papers}" + (f"; {self.evidence}" if self.evidence else "")


def recipe_departures(record: Mapping[str, Any]) -> list[Departure]:
    """How the recipe in a run.json differs from that of its method under the budget "paper", field by field."""
    recipe, preset = record["recipe"], record["method"].partition("@")[0]
    if "method" in recipe:  # a coreset
        spaces = SPACES_OF.get(preset, ())
        papers = {
            "space": next(iter(spaces), None),
            "network": Recipe.network,
            "width": Recipe.width,
            "depth": Recipe.depth,
            "epochs": BUDGETS["paper"].coreset_epochs,
        }
        return _differing({name: recipe[name] for name in papers if name in recipe}, papers, _CORESET)
    ours = Recipe(**recipe)
    only_real = {"precision": "precision of the pass over real images"} if ours.precision == "bf16" else {}
    return _differing(ours.as_dict(), usual_recipe(record, "paper").as_dict(), _WORDS | only_real)


def protocol_departures(dataset: str, e: Evaluation) -> list[Departure]:
    """How the training of networks differs from the paper's protocol for a data set (networks without BatchNorm)."""
    augment = "+".join(operations_for(dataset)) or "none"
    papers = asdict(Protocol()) | {"augment": augment, "epochs": 300 if augment == "none" else 1000}
    # A field that an older version did not store could not be changed there.
    return _differing({name: e.protocol.get(name, papers[name]) for name in papers}, papers, _PHASE_2)


def _differing(ours: Mapping[str, Any], papers: Mapping[str, Any], words: Mapping[str, str]) -> list[Departure]:
    silent = {"precision": "the paper names no precision"}  # float32 is our reading
    return [
        Departure(words.get(name, name), value, papers[name], silent.get(name, ""))
        for name, value in ours.items()
        if value != papers[name]
    ]


def trend(losses: Sequence[float]) -> tuple[float, float]:
    """Whether matching was still changing at the end of a run.

    Parameters
    ----------
    losses
        The matching loss of each outer iteration.

    Returns
    -------
    change, half : float
        How the mean loss of the last tenth of the outer iterations differs from that of the tenth before, in percent,
        and the half width of its 95% interval (Welch's t: each iteration draws a network of its own). NaN if a tenth
        has fewer than MIN_TENTH iterations.
    """
    tenth = len(losses) // 10
    if tenth < MIN_TENTH:
        return math.nan, math.nan
    last = np.asarray(losses[-tenth:])
    before = np.asarray(losses[-2 * tenth : -tenth])
    change = 100 * (float(last.mean() / before.mean()) - 1)
    return change, 100 * welch_half_width(last, before) / float(before.mean())


def find_deviations(sets: Collection[CondensedSet]) -> pd.DataFrame:
    """Our cells with the paper's numbers for them, and what differs in our runs.

    Parameters
    ----------
    sets
        From `shipped.condensed`.

    Returns
    -------
    DataFrame
        One row for each cell with runs and each number that the paper prints for it, and for each cell on data that
        replace the paper's. If a cell was run under several budgets, the one nearest to the paper's counts, as in
        `judge_claims`. Columns:

        - dataset, ipc, method, network, budget.
        - tables: where the paper prints the number. If two tables print the same number, they share a row.
        - numbers: how many numbers of the paper this is; 0 on other data.
        - paper, paper_std; ours, n, n_sets, as in `summarise`.
        - difference, low, high: ours minus the paper's in points, with the 95% interval of ours over sets. The
          paper's number counts as exact. Missing for data that replace the paper's.
        - departures: a tuple of `Departure`, empty if recipe and protocol are the paper's.
    """
    columns = [
        *CELL,
        "tables",
        "numbers",
        "paper",
        "paper_std",
        "ours",
        "n",
        "n_sets",
        "difference",
        "low",
        "high",
        "departures",
    ]
    results = as_table(sets)
    if results.empty:
        return pd.DataFrame(columns=columns)
    published = _published()
    replaced = {  # (dataset, ipc, method) -> the table, and its data
        (*cell, method): (table, on)
        for table in paper.TABLES
        for cell, on in paper.substitutes(table, results).items()
        for method in paper.published(table)["method"]
    }
    rows = []
    nearest: dict[tuple, dict] = {}  # cell -> its row under the budget nearest to the paper's
    for s in sorted(summarise(results).to_dict("records"), key=lambda s: _rank(s["budget"])):
        nearest.setdefault(tuple(s[name] for name in ("dataset", "ipc", "method", "network")), s)
    for cell, s in nearest.items():
        found = _departures_of([S for S in sets if _is_of(S, s)], s["network"])
        ours = {name: s[name] for name in CELL} | {"ours": s["mean"], "n": s["n"], "n_sets": s["n_sets"]}
        for (value, std), tables in published.get(cell, {}).items():
            printed = {"tables": ", ".join(tables), "numbers": len(tables), "paper": value, "paper_std": std}
            against = {"difference": s["mean"] - value, "low": s["low"] - value, "high": s["high"] - value}
            rows.append(ours | printed | against | {"departures": found})
        if cell not in published and cell[:3] in replaced:
            table, on = replaced[cell[:3]]
            missing = dict.fromkeys(("paper", "paper_std", "difference", "low", "high"), math.nan)
            other = Departure("data", s["dataset"], on)
            rows.append(
                ours | {"tables": f"{table} is on {on}", "numbers": 0} | missing | {"departures": (other, *found)}
            )
    return pd.DataFrame(rows, columns=columns)


def _rank(budget: str) -> int:
    """0 for the paper's budget, more for shorter ones."""
    nearest = list(reversed(BUDGETS))
    return nearest.index(budget) if budget in nearest else len(nearest)


def _published() -> dict[tuple, dict[tuple[float, float], list[str]]]:
    """(dataset, ipc, method, network) -> {(value, std): the tables that print it}."""
    found: dict[tuple, dict[tuple[float, float], list[str]]] = {}
    for name in paper.TABLES:
        for c in paper.published(name).dropna(subset="ipc").itertuples():
            if c.unit == "percent":
                numbers = found.setdefault((c.dataset, c.ipc, c.method, c.network), {})
                numbers.setdefault((c.value, c.std), []).append("the text" if name == "text" else name)
    return found


def _is_of(S: CondensedSet, s: Mapping[str, Any]) -> bool:
    return _key(S)[:-1] == (s["dataset"], s["ipc"], s["method"], s["budget"]) and s["network"] in S.evaluations


def _key(S: CondensedSet) -> tuple:
    recipe = S.record["recipe"]
    return recipe["dataset"], recipe["ipc"], S.record["method"], S.record["budget"], recipe["seed"]


def _departures_of(sets: Sequence[CondensedSet], network: str) -> tuple[Departure, ...]:
    """The departures of any of these sets, each once. Fewer outer iterations come with evidence from the runs."""
    found: dict[Departure, None] = {}
    for S in sets:
        protocol = protocol_departures(S.record["recipe"]["dataset"], S.evaluations[network])
        found |= dict.fromkeys(recipe_departures(S.record) + protocol)
    size = BUDGETS["paper"]
    networks = sorted({S.evaluations[network].n for S in sets})
    if len(sets) != size.sets:
        found[Departure("sets", len(sets), size.sets)] = None
    if networks != [size.networks]:
        found[Departure("networks trained on each", " or ".join(map(str, networks)), size.networks)] = None
    evidence = _evidence(sets, network)
    return tuple(replace(d, evidence=evidence) if d.what == _WORDS["outer_loops"] else d for d in found)


def _evidence(sets: Sequence[CondensedSet], network: str) -> str:
    """What more outer iterations might bring: by the accuracy half-way, if stored, or else by the matching loss."""
    gains = [gain for S in sets for gain in _gains_of_later_iterations(S, network)]
    losses = [[entry["loss"] for entry in S.record["history"]] for S in sets if S.record["history"]]
    changes = [trend(of_set) for of_set in losses]
    if not changes or any(math.isnan(change) for change, _ in changes):  # too short for a trend
        return ", ".join(gains + _start_and_end(sets, losses))
    if gains:
        return ", ".join(gains)
    change = np.mean([change for change, _ in changes])
    half = math.sqrt(sum(half**2 for _, half in changes)) / len(changes)  # the sets are independent
    numbers = f"({change:+.1f}±{half:.1f} %)"
    if abs(change) <= half:
        return f"over the last tenth the matching loss did not change beyond noise {numbers}"
    return f"over the last tenth the matching loss still {'fell' if change < 0 else 'rose'} {numbers}"


def _gains_of_later_iterations(S: CondensedSet, network: str) -> list[str]:
    final = S.evaluations[network]
    K = S.record["recipe"].get("outer_loops", 0)
    found = []
    for k, e in S.trace.items():
        gains = _gains(final, e)
        if 0 < k < K and (e.network, e.seed) == (final.network, final.seed) and len(gains) > 1:
            gain = f"{gains.mean():+.1f}±{half_width(gains):.1f} points (n={len(gains)})"
            found.append(f"the last {K - k} of them brought {gain}")
    return found


def _gains(later: Evaluation, earlier: Evaluation) -> np.ndarray:
    """Gain of each network in points. The nth network has the same start and batches in both evaluations."""
    n = min(later.n, earlier.n)
    return np.subtract(later.accuracies[:n], earlier.accuracies[:n])


def _start_and_end(sets: Sequence[CondensedSet], losses: Sequence[Sequence[float]]) -> list[str]:
    """Highest and final matching loss, relative to the first, and the size of pixels; means over sets."""
    if len({len(of_set) for of_set in losses}) != 1 or len(losses[0]) < 2:
        return []
    shares = np.mean([100 * np.asarray(of_set) / of_set[0] for of_set in losses], axis=0)
    highest = int(shares.argmax())
    end = f"ended at {shares[-1]:.0f} %"
    if highest:
        peak = f"rose to {shares[highest]:.0f} % of its first value in outer iteration {highest + 1}"
        course = f"the matching loss {peak} and {end}"
    else:
        course = f"the matching loss {end} of its first value"
    size = f"{np.mean([rms(S) for S in sets]):.1f}"
    return [course, f"the root mean square of the pixels was {size} (of the training images: 1)"]


# ---- one thing changed -----------------------------------------------------------------------------------


def probes(made: Sequence[tuple[str, CondensedSet]], sets: Collection[CondensedSet]) -> pd.DataFrame:
    """The gain from one change of a budget's recipe.

    Parameters
    ----------
    made
        From `shipped.probes`.
    sets
        From `shipped.condensed`.

    Returns
    -------
    DataFrame
        One row for each changed set that has an unchanged partner with the same evaluation. Columns:

        - dataset, ipc, method, budget, set (the seed), change.
        - base_precision: the precision of the unchanged set's recipe, "" for a coreset.
        - before, after: accuracy of the ConvNets.
        - gain: in points; half: the half width of its 95% interval over n networks, paired.
        - random: accuracy with real images of the same seed, NaN if there are none.
        - rms_before, rms_after: `rms` of the images.
    """
    columns = [
        *("dataset", "ipc", "method", "budget", "set", "change", "base_precision"),
        *("before", "after", "gain", "half", "n", "random", "rms_before", "rms_after"),
    ]
    known = {_key(S): S for S in sets if S.accuracy}
    rows = []
    for change, S in made:
        *cell, budget, seed = _key(S)
        same = known.get((*cell, budget.removesuffix(CHANGED), seed))
        if same is None or not S.accuracy or _evaluated_by(S) != _evaluated_by(same):
            continue
        gains = _gains(S.accuracy, same.accuracy)
        n = len(gains)
        control = known.get((*cell[:2], "random", same.budget, seed))
        precision = same.record["recipe"].get("precision", "")
        row = dict(zip(columns, (*cell, same.budget, seed, change, precision), strict=False))
        row |= {"before": np.mean(same.accuracy.accuracies[:n]), "after": np.mean(S.accuracy.accuracies[:n])}
        row |= {"gain": gains.mean(), "half": half_width(gains), "n": n}
        row |= {"random": control.accuracy.mean if control else math.nan}
        rows.append(row | {"rms_before": rms(same), "rms_after": rms(S)})
    return pd.DataFrame(rows, columns=columns)


def _evaluated_by(S: CondensedSet) -> tuple:
    return S.accuracy.network, S.accuracy.seed, S.accuracy.protocol


def rms(S: CondensedSet) -> float:
    """Root mean square of the normalised pixels: 1 for all training images together, and for noise."""
    return float(S.images.double().square().mean().sqrt())


def probes_table(found: pd.DataFrame) -> Table:
    """Changed sets with the same set unchanged and with random real images.

    Parameters
    ----------
    found
        From `probes`.
    """
    cells, rows = {}, []
    for p in found.itertuples():
        row = f"{p.dataset}, IPC {p.ipc}: {display_name(p.method)}, set {p.set} ({p.budget}), {p.change}"
        rows.append(row)
        cells[row, "random images"] = ["not run" if math.isnan(p.random) else f"{p.random:.1f}"]
        cells[row, "unchanged"] = [f"{p.before:.1f}", f"pixels {p.rms_before:.2f}"]
        cells[row, "changed"] = [f"{p.after:.1f}", f"pixels {p.rms_after:.2f}"]
        cells[row, "gain"] = [f"{p.gain:+.1f}" + ("" if math.isnan(p.half) else f"±{p.half:.1f}"), f"n={p.n}"]
    caption = (
        "Test accuracy in percent, mean over networks. Gain: in points, each network against the same one on the "
        "unchanged set, with the 95% interval over networks. Pixels: root mean square of normalised S; the training "
        "images have 1."
    )
    columns = ["gain", "unchanged", "changed", "random images"]
    return Table(rows, columns, cells, caption, corner="set, and what was changed")


def changes_sentence(found: pd.DataFrame) -> Markdown:
    """What each change does to a method: the means over its sets, the unchanged one first.

    Parameters
    ----------
    found
        From `probes`: sets of one cell and method.
    """
    same = found.drop_duplicates("set")
    steps = [("unchanged", same["before"], same["n"], same["rms_before"])]
    steps += [(change, of["after"], of["n"], of["rms_after"]) for change, of in found.groupby("change", sort=False)]
    reached = [
        f"{after.mean():.1f} % {md(change)} ({counted(len(after), 'set')}, n={n.sum()}, pixels {size.mean():.1f})"
        for change, after, n, size in steps
    ]
    return Markdown(f"**ConvNets reach {', '.join(reached)}.** Pixels: root mean square; the training images have 1.")


# ---- as the page shows them ------------------------------------------------------------------------------


def deviations_sentence(found: pd.DataFrame) -> Markdown:
    """How often the paper's number is inside our interval, and what differs in our runs.

    Parameters
    ----------
    found
        From `find_deviations`.
    """
    known = found[found["difference"].notna()]
    if known.empty:
        return Markdown("**No cell of the paper's tables has a run,** so there is nothing to compare.")
    numbers = known.loc[known.index.repeat(known["numbers"].astype(int))]
    judged = numbers[numbers["low"].notna()]
    above = (judged["low"] > 0).sum()
    below = (judged["high"] < 0).sum()
    without = len(numbers) - len(judged)
    one_set = f", and there is no interval, with one set, in {without}" if without else ""
    halves = judged[["low", "high"]].sub(judged["difference"], axis=0).abs().max(axis=1)  # an interval ends at 100 %
    width = f" (its half width is {halves.min():.1f} to {halves.max():.1f} points)" if len(judged) else ""
    counts = Counter(d.what for departures in numbers["departures"] for d in departures)
    reasons = [f"{md(what)} ({n})" for what, n in counts.most_common()]
    if none := sum(not departures for departures in numbers["departures"]):
        reasons.append(f"nothing in recipe or protocol ({none})")
    difference = numbers["difference"]
    return Markdown(
        f"**{len(numbers)} {'accuracy' if len(numbers) == 1 else 'accuracies'} of the paper "
        f"{'has' if len(numbers) == 1 else 'have'} one of ours, under some budget. Ours minus the paper's is "
        f"{difference.min():+.1f} to {difference.max():+.1f} points, with a median of {difference.median():+.1f}.** "
        f"The paper's is inside our 95% interval in "
        f"{len(judged) - above - below}, below it in {above}, above it in {below}{one_set}{width}. "
        f"What differs, and for how many numbers: {'; '.join(reasons)}."
    )


def deviations_table(found: pd.DataFrame) -> Table:
    """Each cell with both numbers, the difference, and what differs in the run.

    Parameters
    ----------
    found
        From `find_deviations`.
    """
    cells, rows = {}, []
    for c in found.itertuples():
        row = f"{c.dataset}, IPC {c.ipc}: {display_name(c.method)}"
        row += f" to {c.network}" if c.network != "convnet" else ""
        row += "" if c.budget == "paper" else f" ({c.budget})"
        row = row if row not in rows else f"{row}, {c.tables}"
        rows.append(row)
        std = "" if math.isnan(c.paper_std) else f"±{c.paper_std:.1f}"
        cells[row, "paper"] = ["none on these data" if math.isnan(c.paper) else f"{c.paper:.1f}{std}", c.tables]
        cells[row, "ours"] = [f"{c.ours:.1f}", f"n={c.n}, {counted(c.n_sets, 'set')}"]
        if math.isnan(c.difference):
            cells[row, "ours minus the paper's"] = ["not comparable"]
        else:
            interval = "one set: no interval" if math.isnan(c.low) else f"95% interval {c.low:+.1f} to {c.high:+.1f}"
            cells[row, "ours minus the paper's"] = [f"{c.difference:+.1f}", interval]
        departures = [str(d) for d in c.departures]
        cells[row, "what differs in the run"] = departures or ["recipe and protocol are the paper's"]
    caption = (
        "In points; 95% t interval of our mean over sets. What differs comes from the stored recipes and protocols."
    )
    columns = ["ours minus the paper's", "ours", "paper", "what differs in the run"]
    return Table(rows, columns, cells, caption, corner="cell")
