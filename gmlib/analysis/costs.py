"""What condensing costs, in time and in memory (Sections 4.4 and 4.5).

An outer iteration of Algorithm 1 is made of three pieces: an update of S (lines 5-9), a step of theta (line 12) and, where the
updates wait for overfitting, a look for it: L(T, theta), and L(S, theta) for the gap. Methods differ in what an update costs
and in how many of the other pieces they need. So the pieces are timed, many times and turn by turn, and an outer iteration
is added up from them: minutes of running that are all alike are not needed, and a machine that slows down hurts all methods
alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from .. import where
from ..algorithm import State
from ..checks import as_list, check_number
from ..condensation import check
from ..data import Data
from ..lines import (
    class_weights,
    fresh_network,
    initial,
    match,
    runner_for,
    sample,
    streams_of,
)
from ..lines import measure as losses_at
from ..recipe import PRECISIONS, Recipe
from ..runs.provenance import environment
from ..runs.store import Run
from ..runtime import OutOfTime, deadline_passed, device_of, progress_bar
from ..speed.memory import PeakMemory
from ..speed.precision import matmul_precision
from ..speed.recording import WARM_UP, recordable
from ..speed.training import train_one_pass

STEPS, LOOKS = 10, 5  # steps of theta and looks for overfitting that are timed together: one alone is short


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
    """Time the pieces of an outer iteration, `rounds` times for every method; nothing is condensed or stored.

    Each round takes the methods in turn, beginning with another one each time. A first round warms up (on CUDA two, before steps
    are recorded), a next measures memory; neither is timed. The pieces begin with S as a run does and a fresh network, the same
    for all methods. Where methods do the same work, each gets the mean over them of the round: updates of S with the same what
    and how, and every step of theta.
    methods: names in METHODS, or spelt "what,how,where"; a list or "DC,M". budget, device: see `store.run`. fields: of Recipe.

    Returns one row per (method, round), rounds from 1:
      method, what, how, where, round
      seconds_per_update    of S, lines 5-9; with zeta_S = 1
      seconds_per_step      of theta, line 12: one pass over S
      seconds_per_look      for overfitting; NaN where the method does not look
      peak_memory_bytes     most that the pieces hold above what was held before (`PeakMemory`), the same in every round
      device, device_name, threads      what it was measured on

    Raises ValueError for a recipe that does not fit the data, before any work; OutOfTime at `deadline` (time.monotonic()).
    """
    recipes = {m: Recipe.for_method(m, data.name, ipc, budget, seed, **fields) for m in as_list(methods)}
    check_number("rounds", rounds, least=2, whole=True)
    for recipe in recipes.values():
        check(data, recipe)
    device = device_of(device)
    data = data.to(device)
    pieces = {m: _Pieces(data, recipe) for m, recipe in recipes.items()}
    peaks, rows, names = {}, [], list(recipes)
    warm_up = -WARM_UP if recordable(device) else -1
    bar = progress_bar(f"timing ipc {ipc}", (rounds + 1 - warm_up) * len(names), "piece", progress)
    for r in range(warm_up, rounds + 1):  # those below 0 warm up, 0 measures memory
        turn = r % len(names)
        for m in names[turn:] + names[:turn]:
            if deadline_passed(deadline):
                bar.close()
                raise OutOfTime(f"out of time after {max(r - 1, 0)} of {rounds} rounds: run again to begin anew")
            peak = PeakMemory(device) if r == 0 else None
            seconds = pieces[m](max(r, 0))
            if peak:
                peaks[m] = peak()
            if r > 0:
                choice = {name: getattr(recipes[m], name) for name in ("what", "how", "where")}
                rows.append({"method": m, **choice, "round": r, **seconds, "peak_memory_bytes": peaks[m]})
            bar.update()
    bar.close()
    table = pd.DataFrame(rows)
    for name, alike in {"update": ["round", "what", "how"], "step": ["round"], "look": ["round", "where"]}.items():
        means = table.groupby(alike)[f"seconds_per_{name}"].transform("mean")
        table[f"seconds_per_{name}"] = means.where(table[f"seconds_per_{name}"].notna())
    made_on = environment(device)
    return table.assign(**{name: made_on[name] for name in ("device", "device_name", "threads")})


class _Pieces:
    """The pieces of one method's outer iterations, recorded on CUDA as those of a run are."""

    def __init__(self, data: Data, recipe: Recipe):
        self.data, self.recipe = data, recipe
        self.S, self.weights = initial(data, recipe).requires_grad_(), class_weights(data, recipe)
        self.labels, self.run = data.labels_of(recipe.ipc), runner_for(data, recipe)
        self.state = State(self.S, torch.optim.SGD([self.S], lr=recipe.lr_images, momentum=recipe.momentum_images))

    def __call__(self, k: int) -> dict[str, float]:
        """Seconds of one update of S, one step of theta and one look for overfitting, with the network of outer iteration k."""
        data, recipe, S, labels = self.data, self.recipe, self.S, self.labels
        with torch.no_grad():
            S.copy_(initial(data, recipe))
        optimise_S = torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images)
        self.state.start(fresh_network(data, recipe, k), recipe)
        theta, optimise_theta = self.state.theta, self.state.optimiser_theta

        with matmul_precision(recipe.precision):
            begun = _now(S.device)
            streams = streams_of(recipe, k, 0)
            B = sample(data, recipe, streams)
            _, S.grad, _ = match(theta, S, labels, B, self.weights, recipe, k, self.run)
            optimise_S.step()
            updated = _now(S.device)
            for _ in range(STEPS):
                train_one_pass(
                    theta, optimise_theta, S.detach(), labels, recipe.batch_theta, streams["shuffle"], self.run
                )
            moved = _now(S.device)
            found = {"seconds_per_update": updated - begun, "seconds_per_step": (moved - updated) / STEPS}
            found["seconds_per_look"] = math.nan
            if recipe.where in where.STOP:
                validation = data.sample_any(where.VALIDATION_BATCH, streams["validation"])
                begun = _now(S.device)
                for _ in range(LOOKS):
                    losses_at(theta, S.detach(), labels, validation, recipe.where in where.NEED_S)
                found["seconds_per_look"] = (_now(S.device) - begun) / LOOKS
        return found


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
    """What an update of S takes in each precision of `Recipe`, and how far it is from the one in float32.

    Every round has a fresh network and fresh batches, the same for all precisions; S is as at k = 0. A first round warms up.
    TF32 is CUDA's: elsewhere the precisions with it are left out. Arguments: see `measure`.

    Returns one row per (precision, round): precision, round, seconds_per_update, change_in_loss (|loss - loss32| / loss32),
    change_in_dS (norm of the difference of the derivatives in S, divided by the norm of that in float32), device.
    """
    recipe = Recipe.for_method(method, data.name, ipc, budget, seed, **fields)
    check_number("rounds", rounds, least=1, whole=True)
    check(data, recipe)
    device = device_of(device)
    data, weights = data.to(device), class_weights(data.to(device), recipe)
    S, labels, run = initial(data, recipe).requires_grad_(), data.labels_of(recipe.ipc), runner_for(data, recipe)
    rows = []
    for r in range(rounds + 1):
        network, B = fresh_network(data, recipe, r), sample(data, recipe, streams_of(recipe, r, 0))
        exact = None
        for precision in (name for name in PRECISIONS if device.type == "cuda" or "tf32" not in name):
            begun = _now(device)
            with matmul_precision(precision):
                loss, dS, _ = match(network, S, labels, B, weights, replace(recipe, precision=precision), r, run)
            seconds = _now(device) - begun
            exact = exact or (loss, dS)  # float32 is the first
            changes = (loss - exact[0]).abs() / exact[0], (dS - exact[1]).norm() / exact[1].norm()
            found = dict(zip(("change_in_loss", "change_in_dS"), (change.item() for change in changes), strict=True))
            rows.append(
                {"precision": precision, "round": r, "seconds_per_update": seconds, **found, "device": device.type}
            )
    table = pd.DataFrame(rows)
    return table[table["round"] > 0].reset_index(drop=True)


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def outer_iteration(
    pieces: pd.DataFrame, T: int, zeta: int, steps: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """What an outer iteration costs with so many inner iterations T and steps zeta of "fixed": `pieces` and further columns.

    T, zeta; theta_steps, the number of steps of theta, as the schedule has it or, where the steps end with overfitting, at most;
    loss_evaluations, of one loss on S or T each; seconds_matching, of the T updates of S; seconds_moving, of the steps of theta;
    seconds_looking, of the losses; seconds, their sum, without the drawing of the network, as in a run's history.
    steps: steps of theta by method, where they were counted in a run.
    """
    check_number("T", T, least=1, whole=True)
    check_number("zeta", zeta, least=1, whole=True)
    taken = {
        m: where.steps_per_outer_iteration(at, T, zeta)
        for m, at in zip(pieces["method"], pieces["where"], strict=True)
    }
    theta_steps = pieces["method"].map({**taken, **(steps or {})}).astype(float)
    # The losses before the first step are needed too, at every t but the last: after it theta does not move.
    looks = (theta_steps + T - 1).where(pieces["where"].isin(where.STOP), 0.0)
    evaluated = looks * (1 + pieces["where"].isin(where.NEED_S))
    parts = {
        "seconds_matching": T * pieces["seconds_per_update"],
        "seconds_moving": theta_steps * pieces["seconds_per_step"],
        "seconds_looking": looks * pieces["seconds_per_look"].fillna(0.0),
    }
    return pieces.assign(
        T=T, zeta=zeta, theta_steps=theta_steps, loss_evaluations=evaluated, **parts, seconds=sum(parts.values())
    )  # fmt: skip


def taken(runs: Collection[Run]) -> pd.DataFrame:
    """What an outer iteration of these runs really took: method, set, seconds (median) and theta_steps (mean)."""
    rows = []
    for r in runs:
        history = pd.DataFrame(r.record["history"])
        found = {"seconds": history["seconds"].median(), "theta_steps": history["theta_steps"].mean()}
        rows.append({"method": r.record["method"], "set": r.record["recipe"]["seed"], **found})
    return pd.DataFrame(rows, columns=["method", "set", "seconds", "theta_steps"])


def along(runs: Collection[Run]) -> pd.DataFrame:
    """Accuracy against time: one row for every snapshot of these runs.

    Columns: method, set, k outer iterations, seconds that these took, accuracy (percent, mean over the networks), networks.
    """
    rows = []
    for r in runs:
        at = {"method": r.record["method"], "set": r.record["recipe"]["seed"]}
        for k, (_, e) in r.trace.items():
            seconds = sum(entry["seconds"] for entry in r.record["history"][:k])
            rows.append({**at, "k": k, "seconds": seconds, "accuracy": e.mean, "networks": e.n})
    return pd.DataFrame(rows, columns=["method", "set", "k", "seconds", "accuracy", "networks"])
