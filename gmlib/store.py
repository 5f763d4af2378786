"""What a run leaves behind, and reading it back.

One run is one folder, results/<dataset>/ipc<N>/<method>/set<seed>/:

    run.json                    recipe, versions, device, seconds, peak memory, history, fingerprint and origin of the data
    set.safetensors             the synthetic set (`SyntheticSet.load`)
    accuracy-<network>.json     the accuracy of each network trained on it, with the protocol
    trace.json, snapshots.safetensors     where asked for: S and its accuracies after some outer iterations
    checkpoint.safetensors      only while the run is unfinished

Every file is written whole or not at all, run.json last; what is finished is read back and never redone.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from tqdm import tqdm

from .condense import check, condense
from .coreset import CORESETS, check_ipc, coreset
from .data import Data, SyntheticSet, write_atomically
from .evaluate import Evaluation, evaluate
from .recipe import BUDGETS, METHODS, Recipe, choose

COLUMNS = ["dataset", "ipc", "method", "budget", "set", "network", "net", "accuracy"]
HOME = Path(__file__).resolve().parent.parent  # the repository, where gmlib is used from a checkout


@dataclass(frozen=True)
class Run:
    """One condensed (or selected) set with its accuracies, as stored in `folder`."""

    folder: Path
    S: SyntheticSet
    evaluation: Evaluation
    record: dict[str, Any]  # run.json
    trace: dict[int, tuple[SyntheticSet, Evaluation]]  # number of outer iterations -> S after them, its accuracies


def default_folder(budget: str) -> Path:
    """Where runs go that name no folder: runs/<budget> in the repository, or here where gmlib is installed elsewhere."""
    return (HOME if (HOME / "pyproject.toml").is_file() else Path()) / "runs" / budget


def run_folder(results_dir: str | os.PathLike, dataset: str, ipc: int, method: str, seed: int) -> Path:
    """The folder of one run; characters that file systems refuse become "_"."""
    parts = (dataset, f"ipc{ipc}", method, f"set{seed}")
    return Path(results_dir, *(re.sub(r"[^\w.,+=-]+", "_", part) for part in parts))


def run(
    data: Data,
    method: str,
    ipc: int,
    *,
    budget: str = "paper",
    seed: int = 0,
    networks: int | None = None,
    results_dir: str | os.PathLike | None = None,
    snapshots: Collection[int] = (),
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
    **overrides: Any,
) -> Run:
    """Both phases for one set: condense (or select) and evaluate, or read back what is stored.

    method: a name in METHODS or CORESETS. overrides: Recipe fields. networks: None takes the budget's number; fewer than are
    stored takes the first of them. snapshots: numbers of outer iterations after which S is kept and
    evaluated too.
    results_dir: None takes `default_folder(budget)`. deadline: see `condense`.

    Raises ValueError for unknown names, a recipe that does not fit the data, or a folder that holds another recipe's run or
    was made from other data, before any work; TimeoutError at the deadline, with a checkpoint in the folder to go on from.
    """
    size = choose(BUDGETS, "budget", budget)
    choose({**METHODS, **CORESETS}, "method", method)
    base = Recipe.for_method(method if method in METHODS else "DC", data.name, ipc, budget, seed, **overrides)
    check_ipc(data, ipc)
    if method in METHODS:
        check(data, base, snapshots)
        recipe = base.as_dict()
    else:
        recipe = coreset(method, data, ipc, seed).recipe
    networks = size.networks if networks is None else networks
    folder = run_folder(results_dir or default_folder(budget), data.name, ipc, method, seed)
    record = _finished(folder, recipe, data)
    folder.mkdir(parents=True, exist_ok=True)

    traced: dict[int, SyntheticSet] = {}
    if record is not None:
        S = SyntheticSet.load(folder / "set.safetensors")
        traced = _read_snapshots(folder, S)
        if not set(snapshots) <= set(traced):
            raise ValueError(f"{folder} was run without the snapshots asked for: delete it or choose another results_dir")
    else:
        begun, peak = time.monotonic(), _PeakMemory(device)
        checkpoint = folder / "checkpoint.safetensors"
        if method in METHODS:
            S = condense(
                data, base, device, checkpoint, progress, snapshots=snapshots, deadline=deadline
            )
        else:
            S = coreset(method, data, ipc, seed)
        S = replace(S, images=S.images.cpu(), labels=S.labels.cpu())
        S.save(folder / "set.safetensors")
        if S.snapshots:
            tensors = {f"k{k}": images.cpu().contiguous() for k, images in S.snapshots.items()}
            write_atomically(folder / "snapshots.safetensors", to_safetensors(tensors))
            traced = {k: replace(S, images=images.cpu(), snapshots={}) for k, images in S.snapshots.items()}
        record = {
            "method": method, "budget": budget, "recipe": recipe,
            "data": {"name": data.name, "fingerprint": data.fingerprint, "origin": data.origin},
            **environment(device), "seconds": time.monotonic() - begun, "peak_memory_bytes": peak(), "history": S.history,
        }  # fmt: skip
        _write_json(folder / "run.json", record)
        checkpoint.unlink(missing_ok=True)

    options = {"width": base.width, "depth": base.depth, "epochs": size.epochs, "device": device, "progress": progress}
    trace = _stored_trace(folder, traced, data, networks, seed, base.network, options)
    evaluation = _stored_evaluation(folder, S, data, networks, seed, base.network, options)
    return Run(folder, S, evaluation, record, trace)


def sweep(
    data: Data,
    methods: Collection[str] | str,
    ipc: Collection[int] | int,
    *,
    budget: str = "paper",
    sets: int | None = None,
    seed: int = 0,
    trace: Mapping[tuple[str, int], Collection[int]] | None = None,
    time_budget: float | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[list[Run], dict[tuple[str, int, str], str]]:
    """`run` every method at every ipc for `sets` sets with seeds seed, seed + 1, ... (None: as many as the budget says).

    methods, ipc: lists, or what papermill passes on: "DC,M", 1. Every set of a method comes after the same set of the others,
    so that a sweep cut short can still compare. trace: snapshots to keep of the first set of a (method, ipc).
    time_budget: seconds after which no more is done. options: see `run`.

    Returns the runs and, for each (dataset, ipc, method) that time left without any set, the reason.
    """
    methods, ipcs = listed(methods), listed(ipc)
    sets = choose(BUDGETS, "budget", budget).sets if sets is None else sets
    if not isinstance(sets, int) or sets < 1:
        raise ValueError(f"sets={sets!r} does not fit: give a whole number of at least 1")
    for m in methods:
        choose({**METHODS, **CORESETS}, "method", m)
    for n in ipcs:
        check_ipc(data, n)
    deadline = None if time_budget is None else time.monotonic() + time_budget
    jobs = [(n, s, m) for n in ipcs for s in range(seed, seed + sets) for m in methods]
    runs, why = [], {}
    bar = tqdm(jobs, desc=f"{data.name}, {budget} budget", unit="set", disable=not progress, mininterval=1)
    for n, s, m in bar:
        snapshots = (trace or {}).get((m, n), ()) if s == seed else ()
        try:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            runs.append(
                run(
                    data, m, n, budget=budget, seed=s, snapshots=snapshots, deadline=deadline,
                    progress=progress and budget != "smoke", **options,
                )
            )
        except TimeoutError:
            if not any((r.record["recipe"]["ipc"], r.record["method"]) == (n, m) for r in runs):
                why[data.name, n, m] = f"the time budget of {time_budget:g} s was used up"
    return runs, why


def listed(values: Any) -> list:
    """A list from a list, from one value, or from words with commas: "DC, M" as a command line gives it."""
    if isinstance(values, str):
        return [word.strip() for word in values.split(",")]
    return list(values) if isinstance(values, Collection) else [values]


def load_results(results_dir: str | os.PathLike) -> pd.DataFrame:
    """Every stored accuracy in long form, one row for each trained network.

    Columns: dataset, ipc, method, budget, set (seed of the set), network, net (index of the network), accuracy (percent).
    Raises FileNotFoundError where there is no such folder and ValueError for a damaged file.
    """
    root = Path(results_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no results folder {root}: run something first, or name another")
    rows = []
    for path in sorted(root.glob("*/ipc*/*/set*/run.json")):
        record = _read_json(path)
        for file in sorted(path.parent.glob("accuracy-*.json")):
            stored = _read_json(file)
            rows += rows_of(record, stored["network"], stored["accuracies"])
    return pd.DataFrame(rows, columns=COLUMNS)


def as_table(runs: Collection[Run]) -> pd.DataFrame:
    """The accuracies of these runs in the long form of `load_results`."""
    rows = [row for r in runs for row in rows_of(r.record, r.evaluation.network, r.evaluation.accuracies)]
    return pd.DataFrame(rows, columns=COLUMNS)


def rows_of(record: dict[str, Any], network: str, accuracies: Collection[float]) -> list[dict[str, Any]]:
    """The rows of one run and one network in the long form of `load_results`."""
    recipe = record["recipe"]
    return [
        {
            "dataset": recipe["dataset"], "ipc": recipe["ipc"], "method": record["method"], "budget": record["budget"],
            "set": recipe["seed"], "network": network, "net": j, "accuracy": accuracy,
        }
        for j, accuracy in enumerate(accuracies)
    ]  # fmt: skip


# ---- the pieces ------------------------------------------------------------------------------------------


def _finished(folder: Path, recipe: dict[str, Any], data: Data) -> dict[str, Any] | None:
    """run.json of a finished run, or None; ValueError where it is another run's."""
    if not (folder / "run.json").is_file():
        return None
    record = _read_json(folder / "run.json")
    stored = record.get("recipe", {})
    differing = sorted(name for name in {*stored, *recipe} if stored.get(name) != recipe.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder} holds a run with {name}={stored.get(name)!r} where {name}={recipe.get(name)!r} is asked for: "
            "delete it or choose another results_dir"
        )
    if record.get("data", {}).get("fingerprint") != data.fingerprint:
        raise ValueError(f"{folder} was made from another copy of {data.name}: delete it or choose another results_dir")
    return record


def _read_snapshots(folder: Path, S: SyntheticSet) -> dict[int, SyntheticSet]:
    path = folder / "snapshots.safetensors"
    if not path.is_file():
        return {}
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete {folder} and run again") from error
    return {int(name[1:]): replace(S, images=tensors[name]) for name in sorted(tensors, key=lambda name: int(name[1:]))}


def _stored_evaluation(
    folder: Path, S: SyntheticSet, data: Data, n: int, seed: int, network: str, options: dict[str, Any]
) -> Evaluation:
    path = folder / f"accuracy-{network}.json"
    if path.is_file():
        stored = _from_json(_read_json(path))
        if stored.n >= n:
            return replace(stored, accuracies=stored.accuracies[:n])
    found = evaluate(S, data, network, n, seed, **options)
    _write_json(path, {**_to_json(found), **environment(options["device"])})
    return found


def _stored_trace(
    folder: Path, traced: dict[int, SyntheticSet], data: Data, n: int, seed: int, network: str, options: dict[str, Any]
) -> dict[int, tuple[SyntheticSet, Evaluation]]:
    if not traced:
        return {}
    path = folder / "trace.json"
    stored = {int(k): _from_json(e) for k, e in _read_json(path).items()} if path.is_file() else {}
    for k, S in traced.items():
        if k not in stored or stored[k].n < n:
            stored[k] = evaluate(S, data, network, n, seed, **options)
            _write_json(path, {str(at): _to_json(e) for at, e in stored.items()})
    return {k: (S, replace(stored[k], accuracies=stored[k].accuracies[:n])) for k, S in traced.items()}


def _to_json(e: Evaluation) -> dict[str, Any]:
    return {
        "network": e.network, "seed": e.seed, "accuracies": list(e.accuracies), "protocol": e.protocol, "seconds": e.seconds
    }  # fmt: skip


def _from_json(stored: dict[str, Any]) -> Evaluation:
    return Evaluation(
        tuple(stored["accuracies"]), stored["network"], stored["seed"], stored["protocol"], stored["seconds"]
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete its folder and run again") from error


def environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """What a number may depend on beside the recipe: versions, commit, device, threads."""
    from . import __version__

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "gmlib": __version__, "commit": _commit(), "python": platform.python_version(), "torch": torch.__version__,
        "device": str(device), "device_name": name, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout gmlib is used from, with "+" where tracked files were changed; None outside one."""
    if not (HOME / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(HOME), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class _PeakMemory:
    """Peak memory in bytes: of the device since construction on CUDA, of the whole process on a CPU."""

    def __init__(self, device: torch.device | str | None):
        self.cuda = torch.cuda.is_available() and torch.device(device or "cuda").type == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(device)
        self.device = device

    def __call__(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
