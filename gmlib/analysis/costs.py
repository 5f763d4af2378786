"""What condensing costs, in time and in memory (Sections 4.4 and 4.5).

An outer iteration of Algorithm 1 has three kinds of pieces: an update of S (lines 5-9), a step of theta (line 12)
and, if the recipe updates until overfitting, a look at the losses L(T, theta) and perhaps L(S, theta). Methods
differ in what an update costs and in how many of the other pieces they need. So the pieces are timed many times,
and an outer iteration is added up from them. The methods take turns, so a machine that slows down slows all of them.
No long runs are needed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..checks import require

require("pandas", "analysis")

import pandas as pd
import torch

from .. import where
from ..checks import as_list, check_number
from ..condensation import check, with_precisions
from ..data import Data, check_data
from ..lines import class_weights, fresh_network, initial, match, real_gradients, runner_for, sample, streams_of
from ..recipe import PRECISIONS, Recipe
from ..runs.estimates import Pieces, now
from ..runs.provenance import environment
from ..runs.store import Run
from ..runtime import check_deadline, device_of, in_time, progress_bar, time_limit
from ..speed.memory import PeakMemory
from ..speed.precision import matmul_precision
from ..speed.recording import WARM_UP, recordable


def measure(
    data: Data,
    methods: Collection[str] | str,
    ipc: int,
    *,
    budget: str = "paper",
    rounds: int = 10,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
    **fields: Any,
) -> pd.DataFrame:
    """Time the pieces of an outer iteration. Nothing is condensed or stored.

    Each round times every method, starting with a different one each time. Before that, one round warms up (on CUDA
    two, before steps are recorded) and one measures memory. The pieces start from S_0 and a new
    network, the same for all methods. Methods that do the same work share the mean of the round: updates of S with
    the same what and how, and all steps of theta.

    Parameters
    ----------
    data : Data
    methods : list, or str with commas
        Names in METHODS, or spelled "what,how,where".
    ipc : int
        Images per class.
    budget, seed, device, progress
        As in `store.run`.
    rounds : int
        At least 2.
    deadline : float, optional
        ``time.monotonic()`` at which to stop.
    **fields
        Fields of `Recipe` to change.

    Returns
    -------
    DataFrame
        One row per (method, round), rounds from 1. Columns:

        - method, what, how, where, round
        - seconds_per_update: of S, lines 5-9; with zeta_S = 1
        - seconds_per_step: of theta, line 12: one pass over S
        - seconds_per_look: at the losses; NaN if the method does not need them
        - peak_memory_bytes: the peak of the pieces above the memory in use before, equal in all rounds
        - device, device_name, threads: what it was measured on

    Raises
    ------
    ValueError
        If a recipe does not fit the data; before any work.
    OutOfTime
        At the deadline. Nothing is saved.

    Source
    ------
    Sections 4.4 and 4.5.
    """
    check_data(data)
    recipes = {m: Recipe.for_method(m, data.name, ipc, budget, seed, **fields) for m in as_list(methods)}
    check_number("rounds", rounds, least=2, whole=True)
    check_deadline(deadline)
    for recipe in recipes.values():
        check(data, recipe)
    device = device_of(device)
    data = data.to(device)
    recipes = dict(zip(recipes, with_precisions(data, list(recipes.values())), strict=True))
    pieces = {m: Pieces(data, recipe) for m, recipe in recipes.items()}
    names = list(recipes)
    peaks = {}
    rows = []
    first = -WARM_UP if recordable(device) else -1  # rounds below 0 warm up, round 0 measures memory
    bar = progress_bar(f"timing ipc {ipc}", (rounds + 1 - first) * len(names), "piece", progress)
    with bar, time_limit(deadline):
        for r in range(first, rounds + 1):
            turn = r % len(names)
            for m in in_time(names[turn:] + names[:turn]):
                peak = PeakMemory(device) if r == 0 else None
                seconds = pieces[m](max(r, 0))
                if peak:
                    peaks[m] = peak()
                if r > 0:
                    choice = {name: getattr(recipes[m], name) for name in ("what", "how", "where")}
                    rows.append({"method": m, **choice, "round": r, **seconds, "peak_memory_bytes": peaks[m]})
                bar.update()
    table = pd.DataFrame(rows)
    for name, alike in {"update": ["round", "what", "how"], "step": ["round"], "look": ["round", "where"]}.items():
        means = table.groupby(alike)[f"seconds_per_{name}"].transform("mean")
        table[f"seconds_per_{name}"] = means.where(table[f"seconds_per_{name}"].notna())
    made_on = environment(device)
    return table.assign(**{name: made_on[name] for name in ("device", "device_name", "threads")})


def precisions(
    data: Data,
    method: str,
    ipc: int,
    *,
    budget: str = "paper",
    rounds: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
    **fields: Any,
) -> pd.DataFrame:
    """Time and error of an update of S in each precision of `Recipe`, compared with float32.

    Every round has a new network and new batches, the same for all precisions; S is as at k = 0. One more
    round, before the others, warms up. Precisions with TF32 are left out on devices other than CUDA.

    Parameters
    ----------
    data, method, ipc, budget, rounds, seed, device, fields
        As in `measure`; rounds may be 1.

    Returns
    -------
    DataFrame
        One row per (precision, round): precision, round, seconds_per_update, change_in_loss (abs(loss - loss32) /
        loss32), change_in_dS (norm of the difference of the derivatives in S, divided by the norm of that in
        float32), device.

    Raises
    ------
    ValueError
        If the recipe does not fit the data; before any work.
    """
    check_data(data)
    recipe = Recipe.for_method(method, data.name, ipc, budget, seed, **fields)
    check_number("rounds", rounds, least=1, whole=True)
    check(data, recipe)
    device = device_of(device)
    data = data.to(device)
    weights = class_weights(data, recipe)
    S = initial(data, recipe).requires_grad_()
    labels = data.labels_of(recipe.ipc)
    run = runner_for(data, recipe)
    run.records_steps = False  # every call has another network or precision, so none can be replayed
    usable = [name for name in PRECISIONS if device.type == "cuda" or "tf32" not in name]  # float32 is the first
    rows = []
    for r in range(rounds + 1):
        network = fresh_network(data, recipe, r)
        B = sample(data, recipe, streams_of(recipe, r, 0))
        exact = None
        for precision in usable:
            started = now(device)
            with matmul_precision(precision):
                rounded = replace(recipe, precision=precision)
                gT = real_gradients(network, B, rounded, run)
                loss, dS, _ = match(network, S, labels, B, gT, weights, rounded, r, run)
            seconds = now(device) - started
            exact = exact or (loss, dS)
            row = {
                "precision": precision,
                "round": r,
                "seconds_per_update": seconds,
                "change_in_loss": ((loss - exact[0]).abs() / exact[0]).item(),
                "change_in_dS": ((dS - exact[1]).norm() / exact[1].norm()).item(),
                "device": device.type,
            }
            rows.append(row)
    table = pd.DataFrame(rows)
    return table[table["round"] > 0].reset_index(drop=True)


def outer_iteration(
    pieces: pd.DataFrame, T: int, zeta: int, steps: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Add up what an outer iteration costs.

    Parameters
    ----------
    pieces : DataFrame
        From `measure`.
    T : int
        Inner iterations.
    zeta : int
        Steps of theta after an update with where="fixed".
    steps : dict, optional
        Steps of theta in an outer iteration, by method, if they were counted in a run.

    Returns
    -------
    DataFrame
        ``pieces`` with the columns T, zeta; theta_steps, by the schedule, or the most there can be if overfitting
        ends the steps; loss_evaluations, each of one loss, on S or T; seconds_matching for the T updates of S,
        seconds_moving for the steps of theta, seconds_looking for the losses; and seconds, their sum, without
        drawing the network (some milliseconds), which the history of a run counts.

    Raises
    ------
    ValueError
        If T or zeta is below 1.
    """
    check_number("T", T, least=1, whole=True)
    check_number("zeta", zeta, least=1, whole=True)
    by_schedule = {
        m: where.steps_per_outer_iteration(at, T, zeta)
        for m, at in zip(pieces["method"], pieces["where"], strict=True)
    }
    theta_steps = pieces["method"].map({**by_schedule, **(steps or {})}).astype(float)
    # A look before the first step of each t but the last, after which theta does not move, and one after every step.
    looks = (theta_steps + T - 1).where(pieces["where"].isin(where.STOP), 0.0)
    parts = {
        "seconds_matching": T * pieces["seconds_per_update"],
        "seconds_moving": theta_steps * pieces["seconds_per_step"],
        "seconds_looking": looks * pieces["seconds_per_look"].fillna(0.0),
    }
    return pieces.assign(
        T=T,
        zeta=zeta,
        theta_steps=theta_steps,
        loss_evaluations=looks * (1 + pieces["where"].isin(where.NEED_S)),
        **parts,
        seconds=sum(parts.values()),
    )


def measured_seconds(runs: Collection[Run]) -> pd.DataFrame:
    """What an outer iteration took in these runs: columns method, set, seconds (median) and theta_steps (mean)."""
    rows = []
    for r in runs:
        history = pd.DataFrame(r.record["history"])
        row = {
            "method": r.record["method"],
            "set": r.record["recipe"]["seed"],
            "seconds": history["seconds"].median(),
            "theta_steps": history["theta_steps"].mean(),
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=["method", "set", "seconds", "theta_steps"])


def accuracy_over_time(runs: Collection[Run]) -> pd.DataFrame:
    """Accuracy against time, one row per snapshot of these runs.

    Returns
    -------
    DataFrame
        Columns method, set, k (outer iterations), seconds that these took, accuracy (percent, mean over the
        networks), networks.
    """
    rows = []
    for r in runs:
        for k, (_, e) in r.trace.items():
            row = {
                "method": r.record["method"],
                "set": r.record["recipe"]["seed"],
                "k": k,
                "seconds": sum(entry["seconds"] for entry in r.record["history"][:k]),
                "accuracy": e.mean,
                "networks": e.n,
            }
            rows.append(row)
    return pd.DataFrame(rows, columns=["method", "set", "k", "seconds", "accuracy", "networks"])
