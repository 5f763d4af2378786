"""Where the files of a run are, and how they are written, read and checked.

Each kind of JSON file has a `msgspec.Struct` here that says what it must hold. Keys that it does not name are kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..checkpoint import Count, HistoryEntry, Seconds
from ..evaluation import Evaluation
from ..files import as_path, fit, json_digest, read_json, slug
from ..networks import NETWORKS
from ..recipe import BUDGETS, Recipe
from ..sets import SyntheticSet

# By the paper's protocol a set counts from this many networks on. The paper trains 50 (Section 4.1), but the sets are
# the sample, and the mean of ten networks adds little to how much sets differ.
LEAST_NETWORKS = 10
REST = "the rest of its folder, and run again"  # what to delete besides a damaged file of a run
MOST_NETWORKS = 10_000  # on one set; a file with more accuracies is damaged

Positive = Annotated[int, Meta(ge=1)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
OuterLoops = Annotated[str, Meta(pattern="^[0-9]{1,9}$")]  # a number, as a key


class MadeWith(msgspec.Struct):
    """`gmlib.runs.provenance.made_with_here`: in every JSON file of a run but trace.json."""

    gmlib: str
    commit: str | None
    python: str
    torch: str
    device: str
    device_name: str
    threads: Positive | list[Positive]
    made_together: Positive = 1


class Timed(msgspec.Struct):
    """What all files of finished work hold."""

    seconds: Seconds


class Origin(msgspec.Struct):
    """The data in a run.json."""

    name: str
    fingerprint: Digest
    origin: str


class AnyRecipe(msgspec.Struct):
    """What every recipe in a run.json holds. A coreset has a method too, another set all fields of `Recipe`."""

    dataset: str
    ipc: Positive
    seed: Count
    method: str = ""


class Record(msgspec.Struct):
    """run.json. ``set`` is the digest of set.safetensors."""

    method: str
    budget: str
    recipe: dict[str, Any]
    recipe_hash: Digest
    data: Origin
    set: Digest
    peak_memory_bytes: Seconds | None
    history: list[HistoryEntry]
    schedule: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.recipe_hash != json_digest(self.recipe):
            raise ValueError("the recipe was changed after the run")
        try:
            fit(self.recipe, AnyRecipe)
            made = self.recipe.get("method") or _method(self.recipe)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise ValueError(f"its recipe does not fit: {error}") from error
        if self.method != made:
            raise ValueError(f"the recipe makes {made}, but the method is named {self.method}")


def _method(recipe: dict[str, Any]) -> str:
    """The method of a recipe. Its network may have been registered by the process that made the set."""
    network = recipe["network"]
    if isinstance(network, str) and network.partition(":")[0] not in NETWORKS:
        return f"{Recipe(**recipe | {'network': 'convnet'}).method}@{network}"
    return Recipe(**recipe).method


class StoredProtocol(msgspec.Struct):
    """`gmlib.Protocol.resolve`."""

    width: Positive
    depth: Positive
    epochs: Positive
    optimiser: str
    lr: float
    momentum: float
    weight_decay: float
    batch: Positive
    augment: str
    precision: str


class StoredEvaluation(msgspec.Struct):
    """The part of an accuracy-<network>.json that a trace.json has too. ``failed`` are networks that diverged."""

    network: str
    seed: Count
    accuracies: Annotated[list[Percent], Meta(max_length=MOST_NETWORKS)]
    protocol: StoredProtocol
    seconds: Seconds
    failed: Annotated[list[Count], Meta(max_length=MOST_NETWORKS)] = []

    def __post_init__(self) -> None:
        trained = len(self.accuracies) + len(self.failed)
        if not trained or self.failed != sorted({j for j in self.failed if j < trained}):
            raise ValueError(f"failed={self.failed} does not fit its {len(self.accuracies)} accuracies")


class Belongs(msgspec.Struct):
    """What accuracies belong to: ``set`` is the digest of a set, or the fingerprint of the data if there is none."""

    set: Digest


class StoredTrace(msgspec.Struct):
    """trace.json: evaluations by number of outer iterations."""

    trace: dict[OuterLoops, StoredEvaluation]


class StoredTable(msgspec.Struct):
    """reach.json, pulls.json and other tables."""

    settings: dict[str, Any]
    columns: dict[str, list[Any]]
    dtypes: dict[str, str]

    def __post_init__(self) -> None:
        if set(self.columns) != set(self.dtypes) or len({len(column) for column in self.columns.values()}) > 1:
            raise ValueError("its columns do not fit together")


def run_folder(results_dir: str | os.PathLike, dataset: str, ipc: int, method: str, seed: int) -> Path:
    """The folder of one run: <dataset>/ipc<N>/<method>/set<seed>."""
    return as_path(results_dir) / slug(dataset) / f"ipc{ipc}" / slug(method) / f"set{seed}"


def check_place(path: Path, recipe: Mapping[str, Any], method: str) -> None:
    """ValueError unless a file is in the `run_folder` of its recipe."""
    own = run_folder("", recipe["dataset"], recipe["ipc"], method, recipe["seed"])
    if path.absolute().parent.parts[-4:] != own.parts[-4:]:
        raise ValueError(f"{path} belongs in the folder {own}: move it there, or delete {REST}")


def whole_data_folder(results_dir: str | os.PathLike, dataset: str) -> Path:
    """The folder of the networks trained on all training images."""
    return as_path(results_dir) / slug(dataset) / "whole"


def read_record(run: Path) -> dict[str, Any]:
    """The run.json in the folder of a run.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    return read_json(run / "run.json", Record, MadeWith, Timed, advice=REST)


def load_set(run: Path, record: Mapping[str, Any]) -> SyntheticSet:
    """The set in the folder of a run.

    Parameters
    ----------
    run : Path
    record : mapping
        Its run.json.

    Raises
    ------
    ValueError
        If it is missing or damaged, or not the one that run.json describes.
    """
    path = run / "set.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing: delete {REST}")
    S, digest = SyntheticSet.load_with_digest(path, REST)
    if digest != record["set"]:
        raise ValueError(f"{path} is not the set of the run.json next to it: delete {run} and run again")
    if S.counts != (record["recipe"]["ipc"],) * S.n_classes:
        raise ValueError(f"{path} has other numbers of images per class than its recipe: delete {run} and run again")
    return S


def evaluation_to_json(e: Evaluation) -> dict[str, Any]:
    """An evaluation in plain JSON types."""
    return {
        "network": e.network,
        "seed": e.seed,
        "accuracies": list(e.accuracies),
        "failed": list(e.failed),
        "protocol": e.protocol,
        "seconds": e.seconds,
    }


def evaluation_from_json(stored: Mapping[str, Any]) -> Evaluation:
    """The evaluation that `evaluation_to_json` stored."""
    return Evaluation(
        accuracies=tuple(map(float, stored["accuracies"])),
        network=stored["network"],
        seed=stored["seed"],
        protocol=stored["protocol"],
        seconds=stored["seconds"],
        failed=tuple(stored.get("failed", ())),
    )


def read_accuracies(path: Path, of: str | None = None) -> dict[str, Any]:
    """The content of an accuracy-<network>.json.

    Parameters
    ----------
    path : Path
    of : str, optional
        The digest of the set, or the fingerprint of the data, that the networks must have been trained on.

    Raises
    ------
    ValueError
        If the file is damaged, or the networks were trained on something else.
    """
    content = read_json(path, StoredEvaluation, Belongs, MadeWith)
    _check_set(path, content, of)
    network = content["network"]
    if path.name != f"accuracy-{slug(network)}.json":
        raise ValueError(f"{path} holds accuracies of {network}: delete it, or give it its own name back")
    return content


def read_evaluation(path: Path, of: str | None = None) -> Evaluation:
    """The evaluation in an accuracy-<network>.json, with the parameters and errors of `read_accuracies`."""
    return evaluation_from_json(read_accuracies(path, of))


def read_trace(path: Path, of: str | None = None) -> dict[int, Evaluation]:
    """The evaluations in a trace.json by number of outer iterations; empty if there is no such file.

    Parameters and errors are those of `read_accuracies`.
    """
    if not path.exists():
        return {}
    content = read_json(path, StoredTrace, Belongs)
    _check_set(path, content, of)
    return {int(k): evaluation_from_json(e) for k, e in content["trace"].items()}


def _check_set(path: Path, content: Mapping[str, Any], of: str | None) -> None:
    if of is not None and content["set"] != of:
        raise ValueError(f"{path} belongs to another set or other data: delete it and run again")


def is_complete(budget: str, n: int) -> bool:
    """True if n networks on a set are enough to count it: all of its budget, but ten by the paper's protocol."""
    if budget not in BUDGETS:
        return True
    networks = BUDGETS[budget].networks
    return n >= (min(LEAST_NETWORKS, networks) if budget == "paper" else networks)
