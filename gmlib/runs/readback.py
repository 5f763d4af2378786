"""Stored results as tables, one row per trained network, set or measurement.

Functions that take ``results_dir`` read the results that come with the repository if it is None. An installed gmlib
has none, and they raise FileNotFoundError.
"""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..checks import require
from ..evaluation import Evaluation
from ..files import as_path, read_json
from ..recipe import BUDGETS, Recipe
from ..sets import SyntheticSet

require("pandas", "analysis")

import msgspec
import pandas as pd

from .jobs import CHANGED
from .layout import Digest, Positive, StoredTable, check_place, is_complete, load_set, read_evaluation, read_record
from .shipped import changes_in, evaluations, files_of, load, method_of, results_folder, stored_runs
from .store import Run, cached_table

COLUMNS = ["dataset", "ipc", "method", "budget", "set", "network", "net", "accuracy"]
FURTHER = ["precision", "diverged"]
SET_COLUMNS = [
    "dataset", "ipc", "method", "seed", "budget", "images", "bytes", "network", "accuracy", "std", "n", "path",
]  # fmt: skip


STORED = ("*/ipc*/*/set*/*", "*/whole/*")  # the files of runs in the folder of a budget
Found = TypeVar("Found")


class DescentSettings(msgspec.Struct):
    """What `stored_descents` needs from the settings in a reach.json. ``set`` is the set's fingerprint."""

    max_steps: Positive
    set: Digest | None = None  # noise has none


class StoredDescents(msgspec.Struct):
    """reach.json."""

    settings: DescentSettings


def load_results(results_dir: str | os.PathLike) -> pd.DataFrame:
    """Every accuracy stored in one folder of runs, one row per trained network ("long form").

    A run by the paper's protocol with the pass over real images in bfloat16 has the budget "paper".

    Returns
    -------
    DataFrame
        Columns dataset, ipc, method, budget, set (seed of the set), network (architecture), net (index of the
        network), accuracy (percent).

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a file is damaged.
    """
    return _load(as_path(results_dir))[COLUMNS]


def stored_accuracies(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """Accuracies under every budget, in long form. Only sets with enough networks count (`layout.is_complete`).

    Returns
    -------
    DataFrame
        The columns of `load_results`; precision: that of the recipe, "" for a coreset; diverged: how many more
        networks were trained on the set and diverged.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.
    """
    return complete(_load_all(results_dir))


def unfinished_accuracies(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """The rows that `stored_accuracies` leaves out: those of sets with too few networks.

    Returns and raises what `stored_accuracies` does.
    """
    results = _load_all(results_dir)
    return results[~_is_complete(results)].reset_index(drop=True)


def while_unchanged(read: Callable[[str | os.PathLike | None], Found]) -> Callable[..., Found]:
    """A function of a results folder that reads it again only if a file of a run was changed, added or removed.

    Each call returns a copy: that of `copy.copy`, which copies all of a DataFrame.
    """
    kept: dict[Path, tuple[set, Found]] = {}

    @functools.wraps(read)
    def read_once(results_dir: str | os.PathLike | None = None) -> Found:
        root = results_folder(results_dir).resolve()
        paths = (path for name in STORED for path in files_of(root, name))
        state = {(path, s.st_ino, s.st_mtime_ns, s.st_size) for path in paths if (s := _status(path))}
        if root not in kept or kept[root][0] != state:
            kept[root] = state, read(results_dir)
        return copy.copy(kept[root][1])

    return read_once


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # a run has just removed it, such as its checkpoint
        return None


@while_unchanged
def _load_all(results_dir: str | os.PathLike | None) -> pd.DataFrame:
    found = [table for table in map(_load, _folders(results_dir)) if len(table)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*COLUMNS, *FURTHER])


def _load(root: Path) -> pd.DataFrame:
    """The rows of `load_results` with the further columns of `stored_accuracies`."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no results folder {root}: run something first, or name another folder")
    rows = []
    for path in sorted(root.glob("*/ipc*/*/set*/run.json")):
        record = read_record(path.parent)
        check_place(path, record["recipe"], record["method"])
        if (path.parent / "set.safetensors").is_file():
            load_set(path.parent, record)
        budget, precision = _budget(record), record["recipe"].get("precision", "")
        for file in sorted(path.parent.glob("accuracy-*.json")):
            stored = read_evaluation(file, record["set"])
            found = rows_of(record | {"budget": budget}, stored)
            rows += [row | {"precision": precision, "diverged": len(stored.failed)} for row in found]
    return pd.DataFrame(rows, columns=[*COLUMNS, *FURTHER])


def _budget(record: Mapping[str, Any]) -> str:
    """The budget in a run.json. An older version wrote "paper, changed" if only the precision was bf16."""
    changed_set = record["budget"] == "paper" + CHANGED and "method" not in record["recipe"]  # no coreset
    return "paper" if changed_set and not changes_in(record) else record["budget"]


def complete(results: pd.DataFrame) -> pd.DataFrame:
    """The rows, in long form, of sets on which enough networks were trained (`layout.is_complete`)."""
    return results[_is_complete(results)].reset_index(drop=True)


def _is_complete(results: pd.DataFrame) -> pd.Series:
    """For each row whether its set has enough networks."""
    n = results.groupby(COLUMNS[:-2])["net"].transform("size") + results.get("diverged", 0)
    enough = [is_complete(*pair) for pair in zip(results["budget"], n, strict=True)]
    return pd.Series(enough, results.index, dtype=bool)


def stored_whole_data(results_dir: str | os.PathLike | None = None) -> dict[str, Evaluation]:
    """Accuracies of ConvNets trained on all training images, by data set. Those of the largest budget count.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.
    """
    folders = _folders(results_dir)
    paths = [path for folder in folders for path in sorted(folder.glob("*/whole/accuracy-convnet.json"))]
    found = {}
    for path in reversed(paths):
        name, fingerprint = _data_of(path.parents[1])
        found[name] = read_evaluation(path, fingerprint)
    return found


def _data_of(folder: Path) -> tuple[str, str | None]:
    """Name and fingerprint of the data in a folder of runs: its own name and None if it has no finished run."""
    for path in sorted(folder.glob("ipc*/*/set*/run.json"))[:1]:
        record = read_record(path.parent)
        return record["recipe"]["dataset"], record["data"]["fingerprint"]
    return folder.name, None


def _folders(results_dir: str | os.PathLike | None) -> list[Path]:
    """The folder of the paper's budget, then those of the others, the largest budget first."""
    root = results_folder(results_dir)
    return [folder for folder in (root, *(root / budget for budget in reversed(BUDGETS))) if folder.is_dir()]


def as_table(runs: Collection[Run]) -> pd.DataFrame:
    """The accuracies of these runs in the long form of `load_results`."""
    rows = [row for r in runs for e in r.evaluations.values() for row in rows_of(r.record, e)]
    return pd.DataFrame(rows, columns=COLUMNS)


def rows_of(record: dict[str, Any], e: Evaluation) -> list[dict[str, Any]]:
    """The rows of one run and one architecture in the long form of `load_results`."""
    recipe = record["recipe"]
    same = {
        "dataset": recipe["dataset"],
        "ipc": recipe["ipc"],
        "method": record["method"],
        "budget": record["budget"],
        "set": recipe["seed"],
        "network": e.network,
    }
    numbers = [j for j in range(e.trained) if j not in e.failed]
    return [{**same, "net": j, "accuracy": accuracy} for j, accuracy in zip(numbers, e.accuracies, strict=True)]


def sets_table(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """One row for each set that comes with the repository, or is in another folder of runs.

    Returns
    -------
    DataFrame
        Columns dataset, ipc, method, seed and budget, as `load_condensed` takes them; images, their number; bytes
        of the file; network, the architecture trained on it, with accuracy (mean, percent), std and n of these
        networks; path of the file, relative to the folder.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.
    """
    root = results_folder(results_dir)
    rows = []
    for run in stored_runs(root):
        file = run["path"] / "set.safetensors"
        S = load(run["path"])
        e = S.accuracy
        row = run | {
            "images": len(S.images),
            "bytes": file.stat().st_size,
            "network": e.network if e else "",
            "accuracy": e.mean if e else math.nan,
            "std": e.std if e else math.nan,
            "n": e.n if e else 0,
            "path": file.relative_to(root).as_posix(),
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=SET_COLUMNS)


@while_unchanged
def stored_descents(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """The rows of every reach.json: how far from its start training on a set stops.

    Returns
    -------
    DataFrame
        Columns dataset, ipc, method ("noise" is a control: S before the first update), budget, set (seed of the
        set), accuracy (mean over the ConvNets trained on the set, NaN without), max_steps of a descent, then those
        of `gmlib.reach`. Empty if nothing was measured.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged, or belongs to another set than the one in its folder.

    Source
    ------
    Section 5.
    """
    tables = []
    for path, of, settings, rows in _measurements(results_dir, "reach.json", StoredDescents):
        made_set = path.with_name("set.safetensors")
        if made_set.is_file() and settings.get("set") != SyntheticSet.load(made_set).fingerprint:
            raise ValueError(f"{path} belongs to another set: delete it and run again")
        trained = evaluations(path.parent)
        of["accuracy"] = trained["convnet"].mean if "convnet" in trained else math.nan
        of["max_steps"] = settings["max_steps"]
        tables.append(rows.assign(**of)[[*of, *rows]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def stored_pulls(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """The rows of every pulls.json: how far each part of the matching loss moves S.

    Returns
    -------
    DataFrame
        Columns dataset, ipc, method, budget, set (the seed), then those of `gmlib.analysis.matching.pulls`. Empty
        if nothing was measured.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.

    Source
    ------
    Section 3.3.
    """
    tables = [
        rows.assign(**of)[[*of, *rows]] for _, of, _, rows in _measurements(results_dir, "pulls.json", StoredTable)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _measurements(
    results_dir: str | os.PathLike | None, name: str, kind: type
) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any], pd.DataFrame]]:
    """(path, columns that identify the run, settings, rows) of every file of that name in the folders of runs."""
    root = results_folder(results_dir)
    paths = files_of(root, f"*/ipc*/*/set*/{name}")
    data_in = {folder: _data_of(folder) for folder in dict.fromkeys(path.parents[3] for path in paths)}
    for path in paths:
        *budget, _, ipc, _, seed = path.parent.relative_to(root).parts
        settings = read_json(path, kind)["settings"]
        dataset, fingerprint = data_in[path.parents[3]]
        if isinstance(recipe := settings.get("recipe"), dict):
            check_place(path, recipe, Recipe(**recipe).method)
        if None not in (fingerprint, settings.get("data")) and settings["data"] != fingerprint:
            raise ValueError(f"{path} was measured on other data than the runs next to it: delete it and run again")
        of = {
            "dataset": dataset,
            "ipc": int(ipc.removeprefix("ipc")),
            "method": method_of(path.parent),
            "budget": budget[0] if budget else "paper",
            "set": int(seed.removeprefix("set")),
        }
        yield path, of, settings, cached_table(path, settings, pd.DataFrame)  # only reads: the file exists
