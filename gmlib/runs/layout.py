"""Where the files of a run are, and how they are written, read and checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation import Evaluation
from ..files import slug, write_atomically
from ..recipe import BUDGETS

# By the paper's protocol a set counts from this many networks on. The paper trains 50 (Section 4.1), but the sets are
# the sample, and the mean of ten networks adds little to how much sets differ.
LEAST_NETWORKS = 10


def run_folder(results_dir: str | os.PathLike, dataset: str, ipc: int, method: str, seed: int) -> Path:
    """The folder of one run: <dataset>/ipc<N>/<method>/set<seed>."""
    return Path(results_dir, slug(dataset), f"ipc{ipc}", slug(method), f"set{seed}")


def whole_data_folder(results_dir: str | os.PathLike, dataset: str) -> Path:
    """The folder of the networks trained on all training images."""
    return Path(results_dir, slug(dataset), "whole")


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """The sha256, in hexadecimal digits, of a recipe as JSON with sorted names and without spaces."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def evaluation_to_json(e: Evaluation) -> dict[str, Any]:
    """An evaluation in plain JSON types."""
    return {
        "network": e.network,
        "seed": e.seed,
        "accuracies": list(e.accuracies),
        "protocol": e.protocol,
        "seconds": e.seconds,
    }


def evaluation_from_json(stored: Mapping[str, Any]) -> Evaluation:
    """The evaluation that `evaluation_to_json` stored."""
    return Evaluation(
        accuracies=tuple(stored["accuracies"]),
        network=stored["network"],
        seed=stored["seed"],
        protocol=stored["protocol"],
        seconds=stored["seconds"],
    )


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in an accuracy-<network>.json.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    return evaluation_from_json(read_json(path, "network", "seed", "accuracies", "protocol", "seconds"))


def read_trace(path: Path) -> dict[int, Evaluation]:
    """The evaluations in a trace.json by number of outer iterations; empty if there is no such file.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    return {int(k): evaluation_from_json(e) for k, e in read_json(path).items()} if path.is_file() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    ValueError
        If the file holds no JSON object, or one without these keys.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        missing = [key for key in keys if key not in content]
        if missing or not isinstance(content, dict):
            raise ValueError(f"it lacks {', '.join(missing) or 'everything'}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete its folder and run again") from error
    return content


def is_complete(budget: str, n: int) -> bool:
    """True if n networks on a set are enough to count it: all of its budget, but ten by the paper's protocol."""
    if budget not in BUDGETS:
        return True
    networks = BUDGETS[budget].networks
    return n >= (min(LEAST_NETWORKS, networks) if budget == "paper" else networks)
