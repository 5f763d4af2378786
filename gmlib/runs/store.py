"""What a run leaves behind, and reading it back.

One run is one folder, results/<dataset>/ipc<N>/<method>/set<seed>/:

    set.safetensors             the synthetic set (`SyntheticSet.load`)
    run.json                    recipe, versions, device, seconds, peak memory, history, fingerprint and origin of the data
    accuracy-<network>.json     the accuracy of each network trained on it, with the protocol; grows network by network
    trace.json, snapshots.safetensors     where asked for: S and its accuracies after some outer iterations
    checkpoint.safetensors, begun.json    only while S is unfinished

results/<dataset>/whole/accuracy-<network>.json holds networks trained on all training images.
Every file is written whole or not at all, and run.json only once S is finished; what is there is read back and never redone.

"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from ..checks import as_list, check_number, choose
from ..condensation import check, condense
from ..coresets import CORESETS, coreset, recipe_of
from ..data import Data
from ..evaluation import Evaluation, Protocol, evaluate, settle
from ..files import slug, write_atomically
from ..recipe import BUDGETS, METHODS, Recipe
from ..runtime import OutOfTime, deadline_passed, device_of, progress_bar
from ..sets import STORED_DTYPES, SyntheticSet
from ..speed.memory import PeakMemory
from .layout import (
    evaluation_to_json,
    read_evaluation,
    read_json,
    read_trace,
    recipe_hash,
    run_folder,
    whole_data_folder,
    write_json,
)
from .locks import locked
from .provenance import HOME, environment, made_with_here

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


CHECKPOINT, BEGUN = "checkpoint.safetensors", "begun.json"  # of an unfinished run


CHECKPOINT, BEGUN = "checkpoint.safetensors", "begun.json"  # of an unfinished run


CHANGED = ", changed"  # behind the name of a budget whose recipe is not the budget's


@dataclass(frozen=True)
class Run:
    """One condensed (or selected) set with its accuracies, as stored in `folder`."""

    folder: Path
    S: SyntheticSet
    evaluations: dict[str, Evaluation]  # target network -> its accuracies
    record: dict[str, Any]  # run.json
    trace: dict[int, tuple[SyntheticSet, Evaluation]]  # number of outer iterations -> S after them, its accuracies

    @property
    def evaluation(self) -> Evaluation:
        """Of the first target network, the one S was condensed with unless others were asked for."""
        return next(iter(self.evaluations.values()))


@dataclass(frozen=True)
class Job:
    """A run that was asked for, everything about it checked and nothing done."""

    data: Data
    recipe: Recipe  # for a coreset: only its sizes count
    coreset: str | None
    budget: str
    n_networks: int
    protocol: Protocol
    targets: tuple[str, ...]  # networks of phase 2
    folder: Path
    snapshots: tuple[int, ...]
    dtype: torch.dtype | None  # of the stored images
    coreset_options: dict[str, Any]  # of `coreset` and `recipe_of`

    @property
    def method(self) -> str:
        return self.coreset or self.recipe.method

    @property
    def made_by(self) -> dict[str, Any]:
        """The recipe as run.json and the set hold it."""
        if not self.coreset:
            return self.recipe.as_dict()
        return recipe_of(self.coreset, self.data, self.recipe.ipc, self.recipe.seed, **self.coreset_options)


def default_folder(budget: str) -> Path:
    """Where runs go that name no folder: runs/<budget> in the repository, or here where gmlib is installed elsewhere."""
    return (HOME if (HOME / "pyproject.toml").is_file() else Path()) / "runs" / budget


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
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> Job:
    """The job that `run` does for these arguments. Raises its ValueErrors; nothing is computed or written."""
    size = choose(BUDGETS, "budget", budget)
    chosen = method if isinstance(method, str) and method in CORESETS else None
    if not (chosen or (isinstance(method, str) and "," in method)):
        choose({**METHODS, **CORESETS}, "method", method)
    own = sorted({"dataset", "ipc", "seed"} & set(overrides))
    if own:
        raise ValueError(f"{own[0]} is an argument of its own and no override: leave it out of the overrides")
    preset = "DC" if chosen else method  # a coreset takes only the sizes of a recipe
    any_ipc = {"inner_loops": 1, "zeta_theta": 1} if chosen else {}
    recipe = Recipe.for_method(preset, data.name, ipc, budget, seed, **{**any_ipc, **overrides})
    check(data, recipe, () if chosen else snapshots)
    n_networks = size.networks if networks is None else networks
    check_number("networks", n_networks, least=1, whole=True)
    if dtype not in (None, *STORED_DTYPES):
        raise ValueError(f"images cannot be stored as {dtype}: choose one of {', '.join(map(str, STORED_DTYPES))}")
    usual = Recipe.for_method(preset, data.name, ipc, budget, seed, network=recipe.network, **any_ipc)
    folder = run_folder(results_dir or default_folder(budget), data.name, ipc, chosen or recipe.method, seed)
    if _settled(recipe) != _settled(usual):  # no longer that budget's protocol, and never to be taken for it
        budget += CHANGED
    protocol = Protocol(recipe.width, recipe.depth, size.epochs)
    targets = (recipe.network,) if targets is None else tuple(dict.fromkeys(as_list(targets)))
    if not targets:
        raise ValueError("targets is empty: name a network, or give None for the recipe's own")
    snapshots = () if chosen else tuple(snapshots)
    features = {name: getattr(recipe, name) for name in ("network", "width", "depth")} | {
        "epochs": size.coreset_epochs
    }
    job = Job(data, recipe, chosen, budget, n_networks, protocol, targets, folder, snapshots, dtype, features)
    _finished(job)
    for network in targets:
        _known(job.folder, network, seed, settle(data, data, network, protocol))
    return job


def run(
    data: Data,
    method: str,
    ipc: int,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
    **options: Any,
) -> Run:
    """Both phases for one set: condense (or select) and evaluate, or read back what is stored.

    method: a name in METHODS or CORESETS, or one spelt "what,how,where" (`recipe.preset`).
    device, progress, deadline (time.monotonic()): see `condense` and `evaluate`.
    options: budget; seed; networks (None takes the budget's number; fewer than are stored takes the first of them); targets,
    names of the networks to train on S (None takes the recipe's own);
    results_dir (None takes `default_folder(budget)`); snapshots, numbers of outer iterations after which S is kept and evaluated
    too (a stored run returns those it has); dtype to store images as, torch.float16 for half the size (networks are trained on
    what was stored); and Recipe fields. A run whose what, how, where or network are changed so is
    stored under the name that `Recipe.method` gives it; one with any other field changed has "changed" behind its budget's name.

    Raises ValueError for unknown names, a recipe that does not fit the data, or a folder that holds a run of another recipe,
    protocol or copy of the data, before any work; OutOfTime at the deadline, after which the same call goes on.
    """
    return _do(plan_run(data, method, ipc, **options), device_of(device), progress, deadline)


def _do(job: Job, device: torch.device, progress: bool, deadline: float | None, partly: bool = False) -> Run:
    with locked(job.folder, deadline):
        return _done(job, device, progress, deadline, partly)


def _done(job: Job, device: torch.device, progress: bool, deadline: float | None, partly: bool) -> Run:
    """partly: at the deadline a set with some of its target networks trained is returned with these."""
    record = _finished(job)
    if record is None:
        if deadline_passed(deadline):
            raise OutOfTime(f"out of time before {job.folder} was begun: run again to go on")
        record = _make(job, device, progress, deadline)
    for leftover in [
        *job.folder.glob("checkpoint*.safetensors"),
        *job.folder.glob(BEGUN),
        *job.folder.glob(".*.tmp"),
    ]:
        leftover.unlink()  # also those of a kill
    S = SyntheticSet.load(job.folder / "set.safetensors")
    n, seed = job.n_networks, job.recipe.seed
    evaluations, trace = {}, {}
    try:
        for network in sorted(
            job.targets, key=lambda network: not _complete(job, network)
        ):  # what needs no time comes first
            evaluations[network] = _evaluated(
                job.folder, S, job.data, network, n, seed, job.protocol, device, progress, deadline
            )
        own = (
            job.recipe.network if job.recipe.network in job.targets else job.targets[0]
        )  # the same, whatever else is asked for
        trace = _traced(job, S, evaluations[own], device, progress, deadline)
    except OutOfTime:
        if not (partly and evaluations):
            raise
    in_order = {network: evaluations[network] for network in job.targets if network in evaluations}
    return Run(job.folder, S, in_order, record, trace)


def _complete(job: Job, network: str) -> bool:
    stored = _known(job.folder, network, job.recipe.seed, settle(job.data, job.data, network, job.protocol))
    return stored is not None and stored.n >= job.n_networks


def _make(job: Job, device: torch.device, progress: bool, deadline: float | None) -> dict[str, Any]:
    """Phase 1: condense or select, store the set, its snapshots and its record."""
    begun, peak, r = time.monotonic(), PeakMemory(device), job.recipe
    made_with = made_with_here(device, read_json(job.folder / BEGUN) if (job.folder / BEGUN).is_file() else {})
    write_json(job.folder / BEGUN, made_with)  # for a run that goes on from the checkpoint, perhaps at another commit
    if job.coreset:
        S = coreset(job.coreset, job.data, r.ipc, r.seed, device=device, **job.coreset_options)
        seconds = time.monotonic() - begun
    else:
        S = condense(
            job.data, r, device, job.folder / CHECKPOINT, progress, snapshots=job.snapshots, deadline=deadline
        )
        seconds = sum(entry["seconds"] for entry in S.history)  # those before a restart count too
    S.save(job.folder / "set.safetensors", job.dtype)
    if S.snapshots:
        tensors = {f"k{k}": images.to("cpu", job.dtype).contiguous() for k, images in S.snapshots.items()}
        write_atomically(job.folder / "snapshots.safetensors", to_safetensors(tensors))
    record = {
        "method": job.method, "budget": job.budget, "recipe": job.made_by, "recipe_hash": recipe_hash(job.made_by),
        "data": {"name": job.data.name, "fingerprint": job.data.fingerprint, "origin": job.data.origin},
        **made_with, "seconds": seconds,
        "peak_memory_bytes": None if math.isnan(most := peak()) else most, "history": S.history,
    }  # fmt: skip
    write_json(job.folder / "run.json", record)
    return record


def sweep(
    data: Data,
    methods: Collection[str] | str,
    ipc: Collection[int] | int,
    *,
    budget: str = "paper",
    sets: int | None = None,
    seed: int = 0,
    trace: Mapping[tuple[str, int], Collection[int]] | None = None,
    deadline: float | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[list[Run], dict[tuple[str, int, str], str]]:
    """`run` every method at every ipc for `sets` sets with seeds seed, seed + 1, ... (None: as many as the budget says).

    methods, ipc: lists, or what papermill passes on: "DC,M", 1. Every set of a method comes after the same set of the others,
    so that a sweep cut short can still compare. trace: snapshots to keep of the first set of a (method, ipc).
    deadline: time.monotonic() after which nothing more is begun; what is stored is still read back, a set that only some of its
    target networks were trained on with these. options: see `run`.
    All jobs are checked before the first is begun.

    Returns the runs and, for each (dataset, ipc, method) that time left without any set, the reason.
    """
    methods, ipcs = as_list(methods), as_list(ipc)
    sets = choose(BUDGETS, "budget", budget).sets if sets is None else sets
    check_number("sets", sets, least=1, whole=True)
    check_number("seed", seed, least=0, whole=True)
    jobs = []
    for n in ipcs:
        for s in range(seed, seed + sets):
            for m in methods:
                snapshots = (trace or {}).get((m, n), ()) if s == seed else ()
                jobs.append(plan_run(data, m, n, budget=budget, seed=s, snapshots=snapshots, **options))
    device = device_of(device)
    runs, why = [], {}
    bar = progress_bar(f"{data.name}, {budget} budget", len(jobs), "set", progress)
    for job in jobs:
        try:
            runs.append(_do(job, device, progress and budget != "smoke", deadline, partly=True))
        except OutOfTime:
            if not any((r.S.ipc, r.record["method"]) == (job.recipe.ipc, job.method) for r in runs):
                why[data.name, job.recipe.ipc, job.method] = "the time budget was used up"
        bar.update()
    bar.close()
    return runs, why


def whole_data(
    data: Data,
    network: str = "convnet",
    *,
    budget: str = "paper",
    networks: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    results_dir: str | os.PathLike | None = None,
    progress: bool = True,
    deadline: float | None = None,
    **protocol: Any,
) -> Evaluation:
    """Networks trained on all training images, kept in results/<dataset>/whole/ (Table 3's last column).

    networks: None takes the budget's number; protocol: fields of `Protocol` to change. Raises as `run` does.
    """
    size = choose(BUDGETS, "budget", budget)
    n = size.networks if networks is None else networks
    check_number("networks", n, least=1, whole=True)
    check_number("seed", seed, least=0, whole=True)
    sizes = {name: value for name, value in size.recipe.items() if name in ("width", "depth")}
    how_trained = Protocol(**{**sizes, "epochs": size.epochs, **protocol})
    folder = whole_data_folder(results_dir or default_folder(budget), data.name)
    with locked(folder, deadline):
        return _evaluated(folder, data, data, network, n, seed, how_trained, device_of(device), progress, deadline)


def cached_table(
    path: str | os.PathLike,
    settings: dict[str, Any],
    compute: Callable[[], pd.DataFrame],
    *,
    deadline: float | None = None,
    device: torch.device | str | None = None,
) -> pd.DataFrame:
    """The table in a file, or compute()'s, which is then stored there with its settings (plain JSON types).

    Finite numbers come back bit for bit, others as NaN. device: where compute() works, which is stored with its seconds; None
    takes a GPU where there is one. Of two processes that want one file, the second reads what the first made.
    Raises ValueError where the file was made with other settings or is damaged, and OutOfTime
    where nothing is stored and `deadline` (time.monotonic()) is past.
    """
    path = Path(path)
    if path.is_file():
        return _table(path, settings)
    if deadline_passed(deadline):
        raise OutOfTime(f"out of time before {path} was made: run again to go on")
    with locked(path.parent, deadline):
        if path.is_file():
            return _table(path, settings)
        begun, made_with = time.monotonic(), environment(device_of(device))
        table = compute()
        missing = (math.inf, -math.inf)  # JSON has neither NaN nor infinities
        columns = {
            name: [None if pd.isna(v) or v in missing else v for v in column.tolist()]
            for name, column in table.items()
        }
        stored = {"settings": settings, "columns": columns, "dtypes": table.dtypes.astype(str).to_dict()}
        write_json(path, stored | made_with | {"seconds": time.monotonic() - begun})
    return table


def _table(path: Path, settings: dict[str, Any]) -> pd.DataFrame:
    content = read_json(path, "settings", "columns", "dtypes")
    if content["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(f"{path} was made with other settings: delete it or choose another results_dir")
    return pd.DataFrame(content["columns"]).astype(content["dtypes"])


def _settled(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe, T and zeta_theta worked out."""
    T, zeta = recipe.schedule()
    return {**recipe.as_dict(), "inner_loops": T, "zeta_theta": zeta}


def _finished(job: Job) -> dict[str, Any] | None:
    """run.json of a finished run, or None; ValueError where it is another run's."""
    path = job.folder / "run.json"
    if not path.is_file():
        return None
    record = read_json(path, "recipe", "data", "method", "budget")
    stored, asked = record["recipe"], job.made_by
    if record.get("recipe_hash", recipe_hash(stored)) != recipe_hash(stored):
        raise ValueError(f"the recipe in {path} was changed after the run: delete the folder or restore the file")
    name = _differing(stored, asked)
    if name is not None:
        raise ValueError(
            f"{job.folder} holds a run with {name}={stored.get(name)!r} where {name}={asked.get(name)!r} is asked for: "
            "delete it or choose another results_dir"
        )
    if record["data"].get("fingerprint") != job.data.fingerprint:
        raise ValueError(
            f"{job.folder} was made from another copy of {job.data.name}: delete it or choose another results_dir"
        )
    return record


def _differing(stored: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """The first name, in alphabetical order, under which the two hold different values; None where they agree."""
    return min((name for name in {*stored, *asked} if stored.get(name) != asked.get(name)), default=None)


def _known(folder: Path, network: str, seed: int, protocol: dict[str, Any]) -> Evaluation | None:
    """The stored accuracies; ValueError where they came about with another seed or by another protocol."""
    path = folder / f"accuracy-{slug(network)}.json"
    if not path.is_file():
        return None
    stored = read_evaluation(path)
    found, asked = {"seed": stored.seed, **stored.protocol}, {"seed": seed, **protocol}
    name = _differing(found, asked)
    if name is not None:
        raise ValueError(
            f"{path} holds networks trained with {name}={found.get(name)!r} where {name}={asked.get(name)!r} is "
            "asked for: delete it or choose another results_dir"
        )
    return stored


def _evaluated(
    folder: Path,
    S: SyntheticSet | Data,
    data: Data,
    network: str,
    n: int,
    seed: int,
    protocol: Protocol,
    device: torch.device,
    progress: bool,
    deadline: float | None,
) -> Evaluation:
    """Phase 2, network by network, going on from what is stored."""
    path, settled = folder / f"accuracy-{slug(network)}.json", settle(S, data, network, protocol)
    stored = _known(folder, network, seed, settled)
    if stored and stored.n >= n:
        return stored.first(n)
    before = stored.seconds if stored else 0.0
    made_with = made_with_here(device, read_json(path) if stored else {})

    def write(found: Evaluation) -> None:
        write_json(path, evaluation_to_json(replace(found, seconds=before + found.seconds)) | made_with)

    evaluate(
        S, data, network, n, seed, protocol=protocol, device=device, progress=progress,
        known=stored.accuracies if stored else (), each=write, deadline=deadline,
    )  # fmt: skip
    return _known(folder, network, seed, settled)


def _traced(
    job: Job, S: SyntheticSet, final: Evaluation, device: torch.device, progress: bool, deadline: float | None
) -> dict[int, tuple[SyntheticSet, Evaluation]]:
    """The stored snapshots of S with their accuracies, those asked for."""
    snapshots, path = job.folder / "snapshots.safetensors", job.folder / "trace.json"
    if not snapshots.is_file():
        return {}
    try:
        tensors = load_file(snapshots)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{snapshots} is damaged ({error}): delete {job.folder} and run again") from error
    stored = read_trace(path)
    trace = {}
    for k in sorted(int(name[1:]) for name in tensors):
        at = replace(S, images=tensors[f"k{k}"].to(S.images.dtype))
        by = stored.get(k)
        alike = by is not None and (by.network, by.seed, by.protocol) == (final.network, final.seed, final.protocol)
        before = by if alike else None

        def write(found: Evaluation, k: int = k) -> None:
            stored[k] = found
            write_json(path, {str(at): evaluation_to_json(e) for at, e in stored.items()})

        def more(found: Evaluation, before: Evaluation | None = before, write: Callable = write) -> None:
            write(replace(found, seconds=found.seconds + (before.seconds if before else 0.0)))

        if before is None or before.n < job.n_networks:
            if torch.equal(at.images, S.images):
                write(final)
            else:
                evaluate(
                    at, job.data, final.network, job.n_networks, job.recipe.seed, protocol=job.protocol, device=device,
                    progress=progress, known=before.accuracies if before else (), each=more, deadline=deadline,
                )  # fmt: skip
        trace[k] = (at, stored[k].first(job.n_networks))
    return trace
