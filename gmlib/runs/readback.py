"""Stored accuracies as tables in long form."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..checks import require
from ..evaluation import Evaluation
from ..recipe import BUDGETS

require("pandas", "analysis")

import pandas as pd

from .layout import is_complete, read_evaluation, read_json
from .provenance import HOME
from .shipped import FOLDER, evaluations, files_of, load, method_of, stored_runs
from .store import Run, cached_table

COLUMNS = ["dataset", "ipc", "method", "budget", "set", "network", "net", "accuracy"]


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
        record = read_json(path, "recipe", "method", "budget")
        for file in sorted(path.parent.glob("accuracy-*.json")):
            stored = read_json(file, "network", "accuracies")
            rows += rows_of(record, stored["network"], stored["accuracies"])
    return pd.DataFrame(rows, columns=COLUMNS)


def accuracies() -> pd.DataFrame:
    """`load_results` of the runs committed under results/ and results/<budget>/; no rows where gmlib is used without them.

    A set counts for a network once it has all the networks of its budget, so that no run under way is taken for a whole one.
    """
    found = [table for table in map(load_results, _folders()) if len(table)]
    return complete(pd.concat(found)) if found else pd.DataFrame(columns=COLUMNS)


def complete(results: pd.DataFrame) -> pd.DataFrame:
    """The rows, in long form, of sets on which all the networks of their budget were trained."""
    n = results.groupby(COLUMNS[:-2])["net"].transform("size")
    return results[[is_complete(*pair) for pair in zip(results["budget"], n, strict=True)]].reset_index(drop=True)


def whole_data() -> dict[str, Evaluation]:
    """Data set -> the accuracies committed under results/ of ConvNets trained on all its training images.

    Those beside the runs by the paper's protocol come before those of another budget.
    """
    paths = [path for folder in _folders() for path in sorted(folder.glob("*/whole/accuracy-convnet.json"))]
    return {path.parts[-3]: read_evaluation(path) for path in reversed(paths)}


def _folders() -> list[Path]:
    """Of the paper's budget first, then the others, the one nearest to it first."""
    root = HOME / "results"
    return [folder for folder in (root, *(root / budget for budget in reversed(BUDGETS))) if folder.is_dir()]


def as_table(runs: Collection[Run]) -> pd.DataFrame:
    """The accuracies of these runs in the long form of `load_results`."""
    rows = [row for r in runs for e in r.evaluations.values() for row in rows_of(r.record, e.network, e.accuracies)]
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


SET_COLUMNS = [
    "dataset", "ipc", "method", "seed", "budget", "images", "bytes", "network", "accuracy", "std", "n", "path",
]  # fmt: skip


def sets_table(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """One row for each set that comes with the repository (or is in another folder of runs); none where there is none.

    Columns: dataset, ipc, method, seed, budget: as `load_condensed` takes them; images, how many; bytes of the file; network,
    trained on it, with accuracy (mean, percent), std and n of these networks; path of the file, relative to the folder.
    """
    root, rows = Path(results_dir or FOLDER), []
    for run in stored_runs(root) if root.is_dir() else ():
        file, S = run["path"] / "set.safetensors", load(run["path"])
        e = S.accuracy
        trained = (e.network, e.mean, e.std, e.n) if e else ("", math.nan, math.nan, 0)
        size = {"images": len(S.images), "bytes": file.stat().st_size}
        measured = dict(zip(("network", "accuracy", "std", "n"), trained, strict=True))
        rows.append(run | size | measured | {"path": file.relative_to(root).as_posix()})
    return pd.DataFrame(rows, columns=SET_COLUMNS)


def descents(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """Section 5's measurements that come with the repository: the rows of every reach.json, with what they are of.

    Columns: dataset, ipc, method ("noise": what runs begin with, a control), budget, set (its seed), accuracy (mean of the
    ConvNets trained on the set, NaN for noise), max_steps of a descent, then those of `gmlib.reach`. No rows where none is
    stored. Raises ValueError for a damaged file.
    """
    tables = []
    for path, of, settings, rows in _measured(results_dir, "reach.json"):
        trained = evaluations(path.parent)
        of["accuracy"] = trained["convnet"].mean if "convnet" in trained else math.nan
        of["max_steps"] = settings["max_steps"]
        tables.append(rows.assign(**of)[[*of, *rows]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def pulls(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """What `condense.pulls` measured and comes with the repository: the rows of every pulls.json, with what they are of.

    Columns: dataset, ipc, method, budget, set (the seed), then those of `condense.pulls`. Otherwise as `descents`.
    """
    tables = [rows.assign(**of)[[*of, *rows]] for _, of, _, rows in _measured(results_dir, "pulls.json")]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _measured(
    results_dir: str | os.PathLike | None, name: str
) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any], pd.DataFrame]]:
    """(path, what it is of, settings, rows) of every file of that name that `store.cached_table` left beside a run."""
    root = Path(results_dir or FOLDER)
    for path in files_of(root, f"*/ipc*/*/set*/{name}"):
        *budget, dataset, ipc, _, seed = path.parent.relative_to(root).parts
        of = {"dataset": dataset, "ipc": int(ipc.removeprefix("ipc")), "method": method_of(path.parent)}
        of |= {"budget": (*budget, "paper")[0], "set": int(seed.removeprefix("set"))}
        settings = read_json(path, "settings")["settings"]
        yield path, of, settings, cached_table(path, settings, pd.DataFrame)  # it is there: nothing is computed
