"""How long a run will take and how much memory, from a few of its steps (the command `gmlib estimate`).

An outer iteration of Algorithm 1 has three kinds of pieces: an update of S (lines 5-9), a step of theta (line 12)
and, if the recipe updates until overfitting, a look at the losses. They are timed, and the run is added up from them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import nn

from .. import where
from ..checks import check_number
from ..condensation import as_set, check, with_precisions
from ..data import Data, check_data
from ..evaluation import Protocol, evaluate, resolve_protocol
from ..lines import (
    class_weights,
    fresh_network,
    initial,
    match,
    measure_losses,
    real_gradients,
    runner_for,
    sample,
    streams_of,
)
from ..recipe import Recipe
from ..runtime import device_of, plain_torch
from ..sets import SyntheticSet
from ..speed.memory import PeakMemory
from ..speed.precision import matmul_precision
from ..speed.recording import WARM_UP, recordable, renew
from ..speed.training import train_one_pass
from .provenance import environment

STEPS = 10  # steps of theta timed together: one alone is short
LOOKS = 5  # the same for looks at the losses
TESTED = 100  # test images while epochs are timed
ROUNDS = 5  # how often the pieces are timed, if there is time


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take.

    Attributes
    ----------
    seconds_condensing : float
        Of all outer iterations. If the recipe updates until overfitting, the most they can take.
    seconds_evaluating : float
        Of training and testing ``n_networks`` networks on the set.
    memory_bytes : float
        The largest peak of both above the memory in use before, data on the device included. NaN if the system does
        not report it.
    recipe : Recipe
        With the precision that would be used.
    n_networks : int
    outer_iteration : float
        Seconds of one.
    measured : int
        How often the pieces were timed.
    device, device_name : str
    threads : int
    """

    seconds_condensing: float
    seconds_evaluating: float
    memory_bytes: float
    recipe: Recipe
    n_networks: int
    outer_iteration: float
    measured: int
    device: str
    device_name: str
    threads: int

    def __str__(self) -> str:
        r = self.recipe
        at_most = "at most " if r.where in where.STOP else ""
        memory = "unknown" if math.isnan(self.memory_bytes) else f"{self.memory_bytes / 1e9:.1f} GB"
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        return "\n".join(
            [
                f"{r.dataset}, {r.ipc} per class, {r.method}, on {self.device_name} ({self.device}{threads}), "
                f"{r.precision}",
                f"condensing: {at_most}{duration(self.seconds_condensing)}, {r.outer_loops} outer iterations of "
                f"{self.outer_iteration:.2g} s",
                f"training and testing {self.n_networks} networks: {duration(self.seconds_evaluating)}",
                f"memory: {memory}",
            ]
        )


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    for unit, name in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}" if seconds < 10 * unit else f"{seconds / unit:.0f} {name}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


@plain_torch()
def estimate(
    data: Data,
    recipe: Recipe,
    device: torch.device | str | None = None,
    n_networks: int = 50,
    protocol: Protocol | None = None,
    *,
    seconds: float = 20.0,
) -> Estimate:
    """Time a few steps of a run, and add up how long all of it will take.

    Nothing is stored. Other work on the machine counts as if it went on for the whole run.

    Parameters
    ----------
    data : Data
    recipe : Recipe
    device : torch.device or str, optional
        None takes CUDA if it is available, else the CPU.
    n_networks : int
        Networks that are trained on the set, at least 1.
    protocol : Protocol, optional
        How they are trained. None takes the paper's protocol with the recipe's width and depth.
    seconds : float
        About how long to measure. One round of pieces and one short training are always done.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If the recipe or the protocol does not fit the data, before any work.
    """
    check_data(data)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe is a {type(recipe).__name__}: give a Recipe")
    check(data, recipe)
    n_networks = check_number("n_networks", n_networks, least=1, whole=True)
    seconds = check_number("seconds", seconds, above=0)
    device = device_of(device)
    peak = PeakMemory(device)
    S = as_set(initial(data, recipe), data, recipe, [])
    resolve_protocol(S, data, "convnet", protocol)
    here = data.to(device)
    (recipe,) = with_precisions(here, [recipe])
    pieces, drawing = _time_pieces(here, recipe, seconds / 2)
    times = {name: median(piece[name] for piece in pieces) for name in pieces[0]}
    of_one = drawing + seconds_per_outer_iteration(recipe, times)
    made_on = environment(device)
    return Estimate(
        seconds_condensing=recipe.outer_loops * of_one,
        seconds_evaluating=_time_networks(S, data, "convnet", n_networks, protocol, device, seconds / 2),
        memory_bytes=peak(),
        recipe=recipe,
        n_networks=n_networks,
        outer_iteration=of_one,
        measured=len(pieces),
        device=device.type,
        device_name=made_on["device_name"],
        threads=made_on["threads"],
    )


def seconds_per_outer_iteration(recipe: Recipe, times: Mapping[str, float]) -> float:
    """Add up an outer iteration from what `Pieces` timed, without drawing its network.

    If the recipe updates until overfitting, it is the most that an outer iteration can take.
    """
    T, zeta = recipe.schedule()
    steps = where.steps_per_outer_iteration(recipe.where, T, zeta)
    looks = steps + T - 1 if recipe.where in where.STOP else 0
    seconds = T * recipe.zeta_S * times["seconds_per_update"] + steps * times["seconds_per_step"]
    return seconds + (looks * times["seconds_per_look"] if looks else 0.0)


def _time_pieces(data: Data, recipe: Recipe, seconds: float) -> tuple[list[dict[str, float]], float]:
    """Time the pieces after a warm-up, ROUNDS times or until the time is up; and how long drawing a network takes."""
    pieces, found = Pieces(data, recipe), list[dict[str, float]]()
    end = time.monotonic() + seconds
    warm_up = pieces.warm_up
    for _ in range(warm_up + ROUNDS):
        found.append(pieces(len(found)))
        if time.monotonic() > end:
            break
    started = time.perf_counter()
    fresh_network(data, recipe, 0)
    return found[min(warm_up, len(found) - 1) :], now(data.train_images.device) - started


def _time_networks(
    S: SyntheticSet,
    data: Data,
    network: str,
    n_networks: int,
    protocol: Protocol | None,
    device: torch.device,
    seconds: float,
) -> float:
    """Time trainings of one group of networks, and their test. The trainings are tested on a few images only."""
    epochs = resolve_protocol(S, data, network, protocol)["epochs"]
    n = min(n_networks, torch.get_num_threads()) if device.type == "cpu" else n_networks
    few = replace(data, test_images=data.test_images[:TESTED], test_labels=data.test_labels[:TESTED])

    def timed(some: int, on: Data = few) -> float:
        started = time.perf_counter()
        evaluate(S, on, network, n, protocol=protocol, device=device, progress=False, epochs=some)
        return now(device) - started

    timed(1)  # warms up
    short, many = timed(1), 1
    testing = max(0.0, timed(1, data) - short)
    last = short
    while many < epochs and (many == 1 or last < seconds / 4):
        many = min(5 * many, epochs)
        last = timed(many)
    per_epoch = max(0.0, last - short) / max(1, many - 1)
    return (last + per_epoch * (epochs - many) + testing) * n_networks / n


def time_kind(
    data: Data,
    recipe: Recipe,
    networks: Collection[str] = ("convnet",),
    device: torch.device | None = None,
    protocol: Protocol | None = None,
    known: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Time a set that is made alone, and one network of each kind trained on it, for some seconds each.

    Parameters
    ----------
    data, recipe, device, protocol
        As for `estimate`.
    networks : collection of str
        Names of the kinds.
    known : mapping, optional
        What was found before. It is not timed again.

    Returns
    -------
    dict
        Seconds: "set", and "network NAME" for each kind. On a CPU also "memory" in bytes.
    """
    found = dict(known or {})
    if "set" not in found:
        e = estimate(data, recipe, device, 1, protocol, seconds=4)
        found |= {"set": e.seconds_condensing, "network convnet": e.seconds_evaluating}
        if e.device == "cpu" and not math.isnan(e.memory_bytes):
            found["memory"] = e.memory_bytes
    for network in networks:
        if f"network {network}" not in found:
            S = as_set(initial(data, recipe), data, recipe, [])
            found[f"network {network}"] = _time_networks(S, data, network, 1, protocol, device_of(device), 2)
    return found


class Pieces:
    """The pieces of one method's outer iterations; on CUDA they are recorded like those of a run.

    Their first ``warm_up`` calls take longer than later ones.
    """

    def __init__(self, data: Data, recipe: Recipe):
        self.data = data
        self.recipe = recipe
        self.S = initial(data, recipe).requires_grad_()
        self.weights = class_weights(data, recipe)
        self.labels = data.labels_of(recipe.ipc)
        self.run = runner_for(data, recipe)
        self.warm_up = WARM_UP + 1 if recordable(data.train_images.device) else 1
        self.theta: nn.Module | None = None
        self.optimiser_theta: torch.optim.Optimizer | None = None

    def __call__(self, k: int) -> dict[str, float]:
        """Seconds of one update of S, one step of theta and one look, with the network of outer iteration k."""
        data, recipe, S, labels = self.data, self.recipe, self.S, self.labels
        with torch.no_grad():
            S.copy_(initial(data, recipe))
        optimiser_S = torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images)
        fresh = fresh_network(data, recipe, k)
        theta, optimiser = renew(self.theta, self.optimiser_theta, fresh, recipe.lr_network, recipe.momentum_network)
        self.theta, self.optimiser_theta = theta, optimiser

        with matmul_precision(recipe.precision):
            started = now(S.device)
            streams = streams_of(recipe, k, 0)
            B = sample(data, recipe, streams)
            gT = real_gradients(theta, B, recipe, self.run)
            _, S.grad, _ = match(theta, S, labels, B, gT, self.weights, recipe, k, self.run)
            optimiser_S.step()
            updated = now(S.device)
            for _ in range(STEPS):
                train_one_pass(theta, optimiser, S.detach(), labels, recipe.batch_theta, streams["shuffle"], self.run)
            stepped = now(S.device)
            found = {"seconds_per_update": updated - started, "seconds_per_step": (stepped - updated) / STEPS}
            found["seconds_per_look"] = math.nan
            if recipe.where in where.STOP:
                validation = data.sample_any(where.VALIDATION_BATCH, streams["validation"])
                started = now(S.device)
                for _ in range(LOOKS):
                    measure_losses(theta, S.detach(), labels, validation, recipe.where in where.NEED_S)
                found["seconds_per_look"] = (now(S.device) - started) / LOOKS
        return found


def now(device: torch.device) -> float:
    """Seconds on a clock, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
