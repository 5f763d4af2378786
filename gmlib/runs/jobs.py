"""The description of a run. Everything is checked here; nothing is computed or written."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checks import as_list, check_number, choose
from ..condensation import check
from ..coresets import CORESETS, recipe_of
from ..data import Data, check_data
from ..evaluation import Evaluation, Protocol, resolve_protocol
from ..files import as_json, path_or, slug
from ..recipe import BUDGETS, METHODS, Recipe
from ..sets import check_dtype
from .layout import MOST_NETWORKS, read_evaluation, read_record, read_trace, run_folder
from .provenance import PLACE

NO_SET = "no set yet"  # in the place of its digest, so that accuracies of an earlier set are refused
CHANGED = ", changed"  # follows the budget's name if the recipe is not the budget's


class Unusable(ValueError):
    """What is stored in the folder of a run is damaged, or of another run. What was asked for may be right."""


@dataclass(frozen=True)
class Job:
    """A checked description of a run.

    Attributes
    ----------
    data : Data
    recipe : Recipe
        For a coreset only its sizes count.
    coreset : str or None
        Name in CORESETS; None for a condensed set.
    budget : str
        Name of the budget, followed by ", changed" if the recipe is not the budget's.
    n_networks : int
        Networks to train on the set, of each architecture.
    protocol : Protocol
        How they are trained.
    targets : tuple of str
        Their architectures.
    folder : Path
    snapshots : tuple of int
        Numbers of outer iterations after which the set is kept and evaluated too.
    n_trace : int
        Networks to train on each of these; 0 keeps them without.
    dtype : torch.dtype or None
        Of the stored images; None keeps that of the run.
    coreset_options : dict
        Options of `gmlib.coreset`.
    """

    data: Data
    recipe: Recipe
    coreset: str | None
    budget: str
    n_networks: int
    protocol: Protocol
    targets: tuple[str, ...]
    folder: Path
    snapshots: tuple[int, ...]
    n_trace: int
    dtype: torch.dtype | None
    coreset_options: dict[str, Any]

    @property
    def method(self) -> str:
        """Name of the coreset, or of the recipe's method."""
        return self.coreset or self.recipe.method

    @property
    def made_by(self) -> dict[str, Any]:
        """The recipe in the form stored with the run and in the set."""
        if not self.coreset:
            return self.recipe.as_dict()
        return recipe_of(self.coreset, self.data, self.recipe.ipc, self.recipe.seed, **self.coreset_options)

    @property
    def source(self) -> str:
        """The target that the trace is evaluated with: the recipe's network, or the first target."""
        return self.recipe.network if self.recipe.network in self.targets else self.targets[0]


def default_folder(budget: str) -> Path:
    """runs/<budget>: in the repository, or in the working directory if gmlib is used outside a checkout."""
    return PLACE / "runs" / budget


def choose_recipe(
    method: str, dataset: str, ipc: int, budget: str, seed: int, overrides: Mapping[str, Any]
) -> tuple[str | None, Recipe]:
    """The name of a coreset, or None, and the recipe of a run. Of a coreset's recipe only the sizes count.

    Parameters
    ----------
    method, dataset, ipc, budget, seed, overrides
        As in `store.run`, for which the data are not needed yet.

    Returns
    -------
    coreset : str or None
    recipe : Recipe

    Raises
    ------
    ValueError
        For unknown names, or values that do not fit.
    """
    preset, _, source = str(method).partition("@")
    chosen = preset if preset in CORESETS else None
    if not (chosen or "," in preset):
        choose({**METHODS, **CORESETS}, "method", preset)
    own = sorted({"dataset", "ipc", "seed"} & set(overrides))
    if own:
        raise ValueError(f"{own[0]} has its own argument: leave it out of the overrides")
    if chosen and source:
        raise ValueError(f"{method} names a source network, but no set is condensed with it: write {chosen}")
    changed = {"network": source, **overrides} if source else dict(overrides)
    if source and changed["network"] != source:
        raise ValueError(f"{method} and network={changed['network']!r} name two source networks: give one")
    if chosen:  # the schedule and the precision have no meaning there
        changed = {"inner_loops": 1, "zeta_theta": 1, **changed} | {"precision": "float32"}
    return chosen, Recipe.for_method("DC" if chosen else preset, dataset, ipc, budget, seed, **changed)


def plan_run(
    data: Data,
    method: str,
    ipc: int,
    *,
    budget: str = "paper",
    seed: int = 0,
    networks: int | None = None,
    targets: Collection[str] | str | None = None,
    results_dir: str | os.PathLike | None = None,
    snapshots: Collection[int] = (),
    trace_networks: int | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> Job:
    """Check a run and what is stored in its folder.

    Parameters
    ----------
    data, method, ipc, budget, seed, networks, targets, results_dir, snapshots, trace_networks, dtype, overrides
        As in `store.run`.

    Returns
    -------
    Job

    Raises
    ------
    ValueError
        As in `store.run`; `Unusable` if only what is stored does not fit.
    """
    check_data(data)
    size = choose(BUDGETS, "budget", budget)
    chosen, recipe = choose_recipe(method, data.name, ipc, budget, seed, overrides)
    snapshots = () if snapshots is None else snapshots
    check(data, recipe, None if chosen else snapshots)
    n_networks = size.networks if networks is None else networks
    n_networks = check_number("networks", n_networks, least=1, below=MOST_NETWORKS + 1, whole=True)
    n_trace = n_networks if trace_networks is None else trace_networks
    n_trace = check_number("trace_networks", n_trace, least=0, below=MOST_NETWORKS + 1, whole=True)
    if dtype is not None:
        check_dtype(dtype)
    targets = recipe.network if targets is None else targets
    # A text is one network, since a name may have a comma.
    targets = tuple(dict.fromkeys([targets] if isinstance(targets, str) else as_list(targets)))
    if not targets:
        raise ValueError("targets is empty: name a network, or give None for the recipe's own")
    _, usual = choose_recipe(method, data.name, ipc, budget, seed, {"network": recipe.network})
    is_usual = _settled(recipe) == _settled(usual)
    job = Job(
        data=data,
        recipe=recipe,
        coreset=chosen,
        budget=budget if is_usual else budget + CHANGED,  # must not be mistaken for the budget's protocol
        n_networks=n_networks,
        protocol=Protocol(recipe.width, recipe.depth, size.epochs),
        targets=targets,
        folder=run_folder(
            path_or(results_dir, default_folder(budget)), data.name, ipc, chosen or recipe.method, seed
        ),
        snapshots=() if chosen else tuple(snapshots),
        n_trace=n_trace,
        dtype=dtype,
        coreset_options={
            "network": recipe.network,
            "width": recipe.width,
            "depth": recipe.depth,
            "epochs": size.coreset_epochs,
        },
    )
    as_json({"recipe": job.made_by, "data": [data.name, data.origin, *data.classes]}, "what is stored of a run")
    protocols = {network: resolve_protocol(data, data, network, job.protocol) for network in targets}
    try:
        of = (stored_record(job) or {"set": NO_SET})["set"]
        for network, protocol in protocols.items():
            stored_evaluation(job.folder, network, seed, protocol, of)
        read_trace(job.folder / "trace.json", of)
    except ValueError as error:
        raise Unusable(str(error)) from error
    return job


def stored_record(job: Job) -> dict[str, Any] | None:
    """The run.json of a finished run; None if the run is not finished.

    Raises
    ------
    ValueError
        If the folder holds another run, or the file is damaged.
    """
    if not (job.folder / "run.json").exists():
        return None
    record = read_record(job.folder)
    stored = record["recipe"]
    asked = job.made_by
    if asked.get("precision") == "auto":  # what was measured then counts
        asked = asked | {"precision": stored.get("precision")}
    name = _first_difference(stored, asked)
    if name is not None:
        raise ValueError(
            f"{job.folder} holds a run with {name}={stored.get(name)!r}, but {name}={asked.get(name)!r} is "
            "needed: delete it or choose another results_dir"
        )
    if record["data"]["fingerprint"] != job.data.fingerprint:
        raise ValueError(
            f"{job.folder} was made from another copy of {job.data.name}: delete it or choose another results_dir"
        )
    return record


def stored_evaluation(
    folder: Path, network: str, seed: int, protocol: Mapping[str, Any], of: str
) -> Evaluation | None:
    """The stored accuracies of one architecture; None if there are none.

    Parameters
    ----------
    folder : Path
    network : str
    seed : int
    protocol : mapping
        A resolved one.
    of : str
        What they belong to, see `gmlib.runs.layout.read_accuracies`.

    Raises
    ------
    ValueError
        If the networks were trained on another set, with another seed or by another protocol, or the file is damaged.
    """
    path = folder / f"accuracy-{slug(network)}.json"
    if not path.exists():
        return None
    stored = read_evaluation(path, of)
    found = {"seed": stored.seed, **stored.protocol}
    asked = {"seed": seed, **protocol}
    name = _first_difference(found, asked)
    if name is not None:
        raise ValueError(
            f"{path} holds networks trained with {name}={found.get(name)!r}, but {name}={asked.get(name)!r} is "
            "needed: delete it or choose another results_dir"
        )
    return stored


def _settled(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe, with T and zeta_theta as numbers. bfloat16 does not make another protocol."""
    T, zeta = recipe.schedule()
    precision = "float32" if recipe.precision in ("auto", "bf16") else recipe.precision
    return {**recipe.as_dict(), "inner_loops": T, "zeta_theta": zeta, "precision": precision}


def _first_difference(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first name, in alphabetical order, with different values."""
    return min((name for name in {*stored, *asked} if stored.get(name) != asked.get(name)), default=None)
