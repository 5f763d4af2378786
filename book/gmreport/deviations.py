"""Why a figure of ours may deviate from the paper's: what differs in the runs behind it, read from what is stored with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from gmlib.augment import operations_for
from gmlib.coresets import SPACES_OF
from gmlib.evaluation import Evaluation, Protocol
from gmlib.recipe import BUDGETS, Recipe
from gmlib.runs.readback import as_table
from gmlib.runs.shipped import CondensedSet, usual_recipe
from gmlib.runs.store import CHANGED

from . import paper
from .numbers import CELL, half_width, summarise
from .style import counted
from .tables import Table

# How a reader would call a field; one that is not here goes by its own name.
_WORDS = {
    "outer_loops": "outer iterations", "inner_loops": "updates of S per network", "zeta_theta": "steps of theta between updates",
    "batch_real": "real images per class and update", "lr_images": "learning rate of S", "init": "S begins as",
    "precision": "precision of products", "space": "images are chosen by distances in space",
}  # fmt: skip
_SELECTION = {"epochs": "epochs of the network that images are chosen by"}
LEAST = 20  # outer iterations in a tenth of a run, for its trend to be told
_PHASE_2 = {"epochs": "epochs in phase 2", "augment": "augmentation in phase 2", "precision": "precision in phase 2"}


@dataclass(frozen=True)
class Departure:
    """One choice in which a run is not one of the budget "paper"."""

    what: str
    ours: Any
    papers: Any
    evidence: str = ""  # what the runs themselves say of its effect

    def __str__(self) -> str:
        return f"{self.what}: {self.ours} instead of {self.papers}" + (f"; {self.evidence}" if self.evidence else "")


def recipe_departures(record: Mapping[str, Any]) -> list[Departure]:
    """Where the recipe in a run.json is not that of its method under the budget "paper", field by field."""
    recipe, preset = record["recipe"], record["method"].partition("@")[0]
    if "method" in recipe:  # a coreset
        spaces = SPACES_OF.get(preset, ())
        papers = {
            "space": next(iter(spaces), None), "network": Recipe.network, "width": Recipe.width, "depth": Recipe.depth,
            "epochs": BUDGETS["paper"].coreset_epochs,
        }  # fmt: skip
        return _differing({name: recipe[name] for name in papers if name in recipe}, papers, _WORDS | _SELECTION)
    ours = Recipe(**recipe)
    return _differing(ours.as_dict(), usual_recipe(record, "paper").as_dict(), _WORDS)


def protocol_departures(dataset: str, e: Evaluation) -> list[Departure]:
    """Where networks were trained by another protocol than the paper's for that data set (networks without BatchNorm)."""
    augment = "+".join(operations_for(dataset)) or "none"
    papers = asdict(Protocol()) | {"augment": augment, "epochs": 300 if augment == "none" else 1000}
    # What an older version did not store it could not change.
    return _differing({name: e.protocol.get(name, papers[name]) for name in papers}, papers, _PHASE_2)


def _differing(ours: Mapping[str, Any], papers: Mapping[str, Any], words: Mapping[str, str]) -> list[Departure]:
    return [
        Departure(words.get(name, name), value, papers[name]) for name, value in ours.items() if value != papers[name]
    ]


def trend(losses: Sequence[float]) -> tuple[float, float]:
    """Whether matching has come to rest: by how many percent the mean loss changed from the last tenth but one of the outer
    iterations to the last, and the half width of the 95% interval of that.

    The interval is over iterations, each of which draws a network of its own. NaN with fewer than LEAST of them in a tenth.
    """
    tenth = len(losses) // 10
    if tenth < LEAST:
        return math.nan, math.nan
    last, before = np.asarray(losses[-tenth:]), np.asarray(losses[-2 * tenth : -tenth])
    spread = math.sqrt((last.var(ddof=1) + before.var(ddof=1)) / tenth)
    return 100 * (float(last.mean() / before.mean()) - 1), 1.96 * 100 * spread / float(before.mean())


def deviations(sets: Collection[CondensedSet]) -> pd.DataFrame:
    """One row for each cell that was run and each figure the paper prints for it, and for cells on data in place of the paper's.

    sets: as `shipped.condensed` reads them. Columns: dataset, ipc, method, network, budget; tables, where the paper prints the
    figure (a figure printed twice alike has one row); paper, paper_std; ours, n, n_sets, as in `summarise`; difference, low,
    high: ours minus the paper's in points, with the 95% interval of ours over sets, the paper's taken as it is printed (missing
    for data in place of the paper's); departures, a tuple of `Departure`, none where recipe and protocol are the paper's.
    """
    columns = [
        *CELL,
        "tables",
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
    published, rows = _published(), []
    elsewhere = {  # (dataset, ipc, method) -> the table, and the data it is of
        (*cell, method): (table, on)
        for table in paper.TABLES
        for cell, on in paper.stand_ins(table, results).items()
        for method in paper.published(table)["method"]
    }
    for s in summarise(results).to_dict("records"):
        cell = tuple(s[name] for name in ("dataset", "ipc", "method", "network"))
        found = _departures_of([S for S in sets if _is_of(S, s)], s["network"])
        ours = {name: s[name] for name in CELL} | {"ours": s["mean"], "n": s["n"], "n_sets": s["n_sets"]}
        for (value, std), tables in published.get(cell, {}).items():
            against = {"difference": s["mean"] - value, "low": s["low"] - value, "high": s["high"] - value}
            stated = {"tables": ", ".join(tables), "paper": value, "paper_std": std}
            rows.append(ours | stated | against | {"departures": found})
        if cell not in published and cell[:3] in elsewhere:
            table, on = elsewhere[cell[:3]]
            missing = dict.fromkeys(("paper", "paper_std", "difference", "low", "high"), math.nan)
            other = Departure("data", s["dataset"], on)
            rows.append(ours | {"tables": f"{table} is on {on}"} | missing | {"departures": (other, *found)})
    return pd.DataFrame(rows, columns=columns)


def _published() -> dict[tuple, dict[tuple[float, float], list[str]]]:
    """(dataset, ipc, method, network) -> {(value, std): the tables that print it}."""
    found: dict[tuple, dict[tuple[float, float], list[str]]] = {}
    for name in paper.TABLES:
        for c in paper.published(name).dropna(subset="ipc").itertuples():
            if c.unit == "percent":
                figures = found.setdefault((c.dataset, c.ipc, c.method, c.network), {})
                figures.setdefault((c.value, c.std), []).append("the text" if name == "text" else name)
    return found


def _is_of(S: CondensedSet, s: Mapping[str, Any]) -> bool:
    return _key(S)[:-1] == (s["dataset"], s["ipc"], s["method"], s["budget"]) and s["network"] in S.evaluations


def _key(S: CondensedSet) -> tuple:
    recipe = S.record["recipe"]
    return recipe["dataset"], recipe["ipc"], S.record["method"], S.record["budget"], recipe["seed"]


def _departures_of(sets: Sequence[CondensedSet], network: str) -> tuple[Departure, ...]:
    """Those of any of these sets, each once; fewer outer iterations with what the runs say of more."""
    found: dict[Departure, None] = {}
    for S in sets:
        every = recipe_departures(S.record) + protocol_departures(
            S.record["recipe"]["dataset"], S.evaluations[network]
        )
        found |= dict.fromkeys(every)
    size, networks = BUDGETS["paper"], sorted({S.evaluations[network].n for S in sets})
    if len(sets) != size.sets:
        found[Departure("sets", len(sets), size.sets)] = None
    if networks != [size.networks]:
        found[Departure("networks trained on each", " or ".join(map(str, networks)), size.networks)] = None
    told, fewer = _of_going_on(sets, network), _WORDS["outer_loops"]
    return tuple(replace(d, evidence=told) if d.what == fewer else d for d in found)


def _course(sets: Sequence[CondensedSet], losses: Sequence[Sequence[float]]) -> list[str]:
    """Of runs too short for a trend: the matching loss at its highest and in the end, as shares of the first, and how large the
    images have become; means over sets."""
    if len({len(of_set) for of_set in losses}) != 1 or len(losses[0]) < 2:
        return []
    shares = np.mean([100 * np.asarray(of_set) / of_set[0] for of_set in losses], axis=0)
    highest = int(shares.argmax())
    rose = (
        f"rose to {shares[highest]:.0f} % of its first value in outer iteration {highest + 1} and " if highest else ""
    )
    return [
        f"the matching loss {rose}ended at {shares[-1]:.0f} %" + ("" if highest else " of its first value"),
        f"the root mean square of the pixels at {np.mean([rms(S) for S in sets]):.1f} (of the training images it is 1)",
    ]


def _gains(later: Evaluation, earlier: Evaluation) -> np.ndarray:
    """By how many points each network is better, which begins and goes alike on both; those that both have."""
    n = min(later.n, earlier.n)
    return np.subtract(later.accuracies[:n], earlier.accuracies[:n])


def _of_going_on(sets: Sequence[CondensedSet], network: str) -> str:
    """What the runs say of further outer iterations: by the accuracy half-way, where that was kept, else by the matching loss."""
    told = []
    for S in sets:
        final, K = S.evaluations[network], S.record["recipe"].get("outer_loops", 0)
        for k, e in S.trace.items():
            gains = _gains(final, e)
            if 0 < k < K and (e.network, e.seed) == (final.network, final.seed) and len(gains) > 1:
                brought = f"{gains.mean():+.1f}±{half_width(gains):.1f} points (n={len(gains)})"
                told.append(f"the last {K - k} of them brought {brought}")
    losses = [[entry["loss"] for entry in S.record["history"]] for S in sets if S.record["history"]]
    changes = [trend(of_set) for of_set in losses]
    short = not changes or any(math.isnan(change) for change, _ in changes)
    if told or short:
        return ", ".join(told + (_course(sets, losses) if short else []))
    change, half = np.mean([c for c, _ in changes]), math.sqrt(sum(h**2 for _, h in changes)) / len(changes)
    if abs(change) <= half:
        return f"over the last tenth the matching loss was at rest within noise ({change:+.1f}±{half:.1f} %)"
    return (
        f"over the last tenth the matching loss still {'fell' if change < 0 else 'rose'} ({change:+.1f}±{half:.1f} %)"
    )


# ---- one thing changed -----------------------------------------------------------------------------------


def probes(made: Sequence[tuple[str, CondensedSet]], sets: Collection[CondensedSet]) -> pd.DataFrame:
    """What one change of a budget's recipe brings: one row for each changed set whose like is there unchanged and tested alike.

    made: as `shipped.probes` reads them; sets: as `shipped.condensed` does. Columns: dataset, ipc, method, budget, set (the
    seed); change; before, after: accuracy of the ConvNets; gain, in points, and half, the half width of its 95% interval over n
    networks, each of which begins and goes alike on both sets; n; random: accuracy with real images of the same seed, NaN where
    there are none; rms_before, rms_after: `rms` of the images.
    """
    columns = [
        "dataset", "ipc", "method", "budget", "set", "change", "before", "after", "gain", "half", "n", "random", "rms_before",
        "rms_after",
    ]  # fmt: skip
    known = {_key(S): S for S in sets if S.accuracy}
    rows = []
    for change, S in made:
        *cell, budget, seed = _key(S)
        same = known.get((*cell, budget.removesuffix(CHANGED), seed))
        if same is None or not S.accuracy or _tested(S) != _tested(same):
            continue
        gains = _gains(S.accuracy, same.accuracy)
        n = len(gains)
        after, before = (np.mean(e.accuracies[:n]) for e in (S.accuracy, same.accuracy))
        control = known.get((*cell[:2], "random", same.budget, seed))
        rows.append((
            *cell, same.budget, seed, change, before, after, gains.mean(), half_width(gains), n,
            control.accuracy.mean if control else math.nan, rms(same), rms(S),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _tested(S: CondensedSet) -> tuple:
    return S.accuracy.network, S.accuracy.seed, S.accuracy.protocol


def rms(S: CondensedSet) -> float:
    """Root mean square of the pixels, normalised: 1 for the training images together, and for noise."""
    return float(S.images.double().square().mean().sqrt())


def probes_table(found: pd.DataFrame) -> Table:
    """Changed sets in rows, beside the same set unchanged and random real images; found: as `probes` returns it."""
    cells, rows = {}, []
    for p in found.itertuples():
        row = f"{p.dataset}, IPC {p.ipc}: {p.method}, set {p.set} ({p.budget}), {p.change}"
        rows.append(row)
        cells[row, "random real images"] = ["not run" if math.isnan(p.random) else f"{p.random:.1f}"]
        cells[row, "unchanged"] = [f"{p.before:.1f}", f"pixels {p.rms_before:.2f}"]
        cells[row, "changed"] = [f"{p.after:.1f}", f"pixels {p.rms_after:.2f}"]
        cells[row, "gain"] = [f"{p.gain:+.1f}" + ("" if math.isnan(p.half) else f"±{p.half:.1f}"), f"n={p.n}"]
    caption = (
        "Test accuracy in percent, mean over networks. Gain: in points, each network against the same one on the unchanged set, "
        "with the 95% interval over networks. Pixels: root mean square of S, normalised; that of the training images is 1."
    )
    return Table(
        rows,
        ["random real images", "unchanged", "changed", "gain"],
        cells,
        caption,
        corner="set, and what was changed",
    )


# ---- as the page shows them ------------------------------------------------------------------------------


def deviations_sentence(found: pd.DataFrame) -> Markdown:
    """How often the paper's figure is inside our interval, and what differs how often; found: as `deviations` returns it."""
    known = found[found["difference"].notna()]
    if known.empty:
        return Markdown("**No cell of the paper's tables has a run,** so there is nothing to compare.")
    judged = known[known["low"].notna()]
    above, below = (judged["low"] > 0).sum(), (judged["high"] < 0).sum()
    few = (
        f", and without an interval, from one set, in {len(known) - len(judged)}" if len(known) > len(judged) else ""
    )
    counts: dict[str, int] = {}
    for departures in known["departures"]:
        for d in departures:
            counts[d.what] = counts.get(d.what, 0) + 1
    none = sum(not departures for departures in known["departures"])
    told = [f"{what} ({n})" for what, n in sorted(counts.items(), key=lambda pair: -pair[1])]
    told += [f"nothing in recipe or protocol ({none})"] if none else []
    least, most = known["difference"].min(), known["difference"].max()
    halves = (judged["high"] - judged["low"]) / 2
    wide = f" (its half width is {halves.min():.1f} to {halves.max():.1f} points)" if len(judged) else ""
    return Markdown(
        f"**The paper prints {counted(len(known), 'figure')} for what was run, counting once what two tables print alike. Ours "
        f"minus the paper's is {least:+.1f} to {most:+.1f} points, {known['difference'].median():+.1f} in the median; the "
        f"paper's is inside our 95% interval in {len(judged) - above - below}, below it in {above}, above it in {below}{few}"
        f"{wide}.** What differs, and for how many of them: {'; '.join(told)}."
    )


def deviations_table(found: pd.DataFrame) -> Table:
    """Cells in rows: the paper's figure, ours minus it, and what differs in the run; found: as `deviations` returns it."""
    cells, rows = {}, []
    for c in found.itertuples():
        row = f"{c.dataset}, IPC {c.ipc}: {c.method}" + (f" to {c.network}" if c.network != "convnet" else "")
        row += "" if c.budget == "paper" else f" ({c.budget})"
        row = row if row not in rows else f"{row}, {c.tables}"
        rows.append(row)
        printed = "none on these data" if math.isnan(c.paper) else _number(c.paper, c.paper_std)
        cells[row, "paper"] = [printed, c.tables]
        cells[row, "ours"] = [f"{c.ours:.1f}", f"n={c.n}, {counted(c.n_sets, 'set')}"]
        if math.isnan(c.difference):
            cells[row, "ours minus the paper's"] = ["not comparable"]
        else:
            interval = "one set: no interval" if math.isnan(c.low) else f"95% interval {c.low:+.1f} to {c.high:+.1f}"
            cells[row, "ours minus the paper's"] = [f"{c.difference:+.1f}", interval]
        cells[row, "what differs in the run"] = [str(d) for d in c.departures] or [
            "recipe and protocol are the paper's"
        ]
    caption = (
        "In points; 95% t interval of our mean over sets. What differs is read from the stored recipes and protocols."
    )
    return Table(
        rows, ["paper", "ours", "ours minus the paper's", "what differs in the run"], cells, caption, corner="cell"
    )


def _number(value: float, std: float) -> str:
    return f"{value:.1f}" + ("" if math.isnan(std) else f"±{std:.1f}")
