"""The results that come with the repository: condensed sets to use, and what each was made with.

results/ holds the runs by the paper's protocol, results/<budget>/ those of a shorter budget, each laid out as `store` says, and
results/probes/<change>/, laid out as results/, sets made by a budget's recipe with something changed. Other folders of runs are
read in the same way.

"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checks import choose
from ..coresets import CORESETS
from ..evaluation import Evaluation
from ..files import slug
from ..recipe import BUDGETS, METHODS, Recipe
from ..sets import SyntheticSet
from .layout import is_complete, read_evaluation, read_json, read_trace
from .provenance import HOME
from .store import CHANGED

FOLDER = HOME / "results"
# Whose images the sets were made from, and on what terms these are given.
SOURCES = {
    "MNIST": "MNIST is by Y. LeCun, C. Cortes and C. J. C. Burges, derived from databases of NIST; it is commonly given under "
    "CC BY-SA 3.0",
    "FashionMNIST": "Fashion-MNIST is by Zalando SE (H. Xiao, K. Rasul, R. Vollgraf), under the MIT licence",
}


PROBES = "probes"


MEASUREMENTS = {
    "reach.json": "Section 5",
    "pulls.json": "Section 3.3",
}  # of a set, beside it: file -> the campaign's name


@dataclass(frozen=True, eq=False, repr=False)
class CondensedSet(SyntheticSet):
    """A SyntheticSet with what its run left beside it.

    Attributes, further to those of a SyntheticSet:
        record: run.json: method, budget, recipe, data with fingerprint and origin, versions, device, seconds, history.
        evaluations: name of a network -> accuracies of such networks trained on the set, from scratch.
        trace: number of outer iterations -> accuracies of networks trained on what the set was then, where that was kept.
    """

    record: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    trace: dict[int, Evaluation] = field(default_factory=dict)

    def __repr__(self) -> str:
        made = f"{self.record['method']}, {self.budget} budget"
        return (
            super().__repr__().replace("SyntheticSet(", f"CondensedSet({made}: ")
            + f", {self.accuracy or 'not evaluated'}"
        )

    @property
    def budget(self) -> str:
        """The budget it was made under; only "paper" is the paper's protocol."""
        return self.record["budget"]

    @property
    def accuracy(self) -> Evaluation | None:
        """Of the ConvNets trained on it, or of another network where there are none; None where none was trained."""
        return self.evaluations.get("convnet") or next(iter(self.evaluations.values()), None)


def folder(budget: str, results_dir: str | os.PathLike | None = None) -> Path:
    """Where runs of a budget are committed: results/ for the paper's, results/<budget>/ for another."""
    choose(BUDGETS, "budget", budget)
    return Path(results_dir or FOLDER) / ("" if budget == "paper" else budget)


def load_condensed(
    dataset: str,
    ipc: int,
    method: str = "MDA",
    seed: int = 0,
    budget: str | None = None,
    results_dir: str | os.PathLike | None = None,
) -> CondensedSet:
    """A condensed set that comes with the repository: normalised images, labels, how it was made and how well it trains.

    dataset, ipc, method, seed: as in `table`; at one image per class MDO and MDA are MD, and found as such. budget: None takes
    the paper's where it is there, else the one nearest to it; the set's `budget` says which. results_dir: any folder of runs;
    None: the repository's results/.

    Raises ValueError, which lists what is there, for a set that is not, and FileNotFoundError where there is no such folder.
    """
    if budget is not None:
        choose(BUDGETS, "budget", budget)
    every = stored_runs(results_dir)
    known = [run for run in every if budget in (None, run["budget"])]
    for name in (method, "MD") if ipc == 1 and method in ("MDO", "MDA") else (method,):
        asked = (dataset, ipc, name, seed)
        found = [run for run in known if (run["dataset"], run["ipc"], run["method"], run["seed"]) == asked]
        if found:
            return load(max(found, key=lambda run: rank_of(BUDGETS, run["budget"]))["path"])
    wanted = f"{dataset!r} with ipc={ipc!r} by {method!r}, seed={seed!r}" + (f", {budget} budget" if budget else "")
    raise ValueError(f"there is no condensed set of {wanted}: {_at_hand(known or every, dataset)}")


def condensed(results_dir: str | os.PathLike | None = None) -> list[CondensedSet]:
    """Every set that comes with the repository (or is in another folder of runs), in the order of `table`.

    Among its evaluations are those with all the networks of its budget: of others the run is still under way.
    """
    root = Path(results_dir or FOLDER)
    sets = [load(run["path"]) for run in stored_runs(root)] if root.is_dir() else []
    wanted = [
        {n: e for n, e in S.evaluations.items() if is_complete(S.budget.removesuffix(CHANGED), e.n)} for S in sets
    ]
    return [replace(S, evaluations=whole) for S, whole in zip(sets, wanted, strict=True)]


def probes(results_dir: str | os.PathLike | None = None) -> list[tuple[str, CondensedSet]]:
    """(change, set) of every set that was made by a budget's recipe with a change, as `spell_changes` spells it."""
    return [
        (spell_changes(changes_in(S.record)), S)
        for at in probe_folders(Path(results_dir or FOLDER))
        for S in condensed(at)
    ]


def probe_folder(changes: Mapping[str, Any], results_dir: str | os.PathLike | None = None) -> Path:
    """Where runs with these recipe fields changed are committed: results/probes/lr_images=0.01, laid out as results/."""
    return Path(results_dir or FOLDER) / PROBES / slug(spell_changes(changes).replace(" ", ","))


def spell_changes(changes: Mapping[str, Any]) -> str:
    """As the campaign takes them: {"lr_images": 0.01, "lam": None} is "lam=null lr_images=0.01"."""
    return " ".join(f"{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in sorted(changes.items()))


def changes_in(record: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe fields in a run.json that are not those of its method under its budget."""
    made, usual = (
        Recipe(**record["recipe"]).as_dict(),
        usual_recipe(record, record["budget"].removesuffix(CHANGED)).as_dict(),
    )
    return {name: value for name, value in made.items() if value != usual[name]}


def usual_recipe(record: Mapping[str, Any], budget: str) -> Recipe:
    """That of the run's method, data, size, seed and source network under a budget. record: a run.json of no coreset."""
    made = Recipe(**record["recipe"])
    return Recipe.for_method(
        record["method"].partition("@")[0], made.dataset, made.ipc, budget, made.seed, network=made.network
    )


def probe_folders(root: Path) -> list[Path]:
    return sorted(path for path in (root / PROBES).glob("*=*") if path.is_dir())


def method_of(run: Path) -> str:
    """Of the run in a folder; the folder's own name lacks the characters that file systems refuse."""
    return read_record(run)["method"] if (run / "run.json").is_file() else run.parent.name


def evaluations(run: str | os.PathLike) -> dict[str, Evaluation]:
    """The accuracies in a folder, by the name of the network. ValueError for a damaged file."""
    found = [read_evaluation(path) for path in sorted(Path(run).glob("accuracy-*.json"))]
    return {e.network: e for e in found}


def load(run: str | os.PathLike) -> CondensedSet:
    """The set in the folder of one run, with what lies beside it."""
    run = Path(run)
    S, record = SyntheticSet.load(run / "set.safetensors"), read_record(run)
    made = {name: getattr(S, name) for name in ("images", "labels", "classes", "mean", "std", "recipe")}
    history, trace = record.get("history") or [], read_trace(run / "trace.json")
    return CondensedSet(**made, history=history, record=record, evaluations=evaluations(run), trace=trace)


def read_record(run: Path) -> dict[str, Any]:
    return read_json(run / "run.json", "recipe", "method", "budget", "data")


def files_of(root: Path, pattern: str) -> list[Path]:
    """Files of runs by the paper's protocol, then those of each budget. What lies deeper is nobody's."""
    return [
        path for folder in (root, *(root / budget for budget in BUDGETS)) for path in sorted(folder.glob(pattern))
    ]


def stored_runs(results_dir: str | os.PathLike | None) -> list[dict[str, Any]]:
    """dataset, ipc, method, seed, budget and path (a folder) of every finished run, in the order of the paper's columns."""
    root = Path(results_dir or FOLDER)
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder of results {root}: condensed sets come with the repository, not with the installed package, so "
            'clone it and name its folder, results_dir="PATH/results"'
        )
    found = []
    for path in files_of(root, "*/ipc*/*/set*/run.json"):
        record = read_record(path.parent)
        made = {name: record["recipe"][name] for name in ("dataset", "ipc", "seed")}
        found.append(made | {"method": record["method"], "budget": record["budget"], "path": path.parent})

    def key(run: dict[str, Any]) -> tuple:
        return run["dataset"], run["ipc"], -rank_of(BUDGETS, run["budget"]), *order_key(run["method"]), run["seed"]

    return sorted(found, key=key)


def order_key(method: str) -> tuple[int, str]:
    """Coresets, then the paper's columns, then what is spelt out."""
    known = [*CORESETS, *METHODS]
    return known.index(method) if method in known else len(known), method


def rank_of(known: dict[str, Any], name: str) -> int:
    return list(known).index(name) if name in known else -1


def _at_hand(runs: list[dict[str, Any]], dataset: str) -> str:
    """What there is, of this data set if there is any of it."""
    of_it = [run for run in runs if run["dataset"] == dataset]
    if not of_it:
        there = ", ".join(sorted({run["dataset"] for run in runs}))
        return (
            f"there are sets of {there}" if there else "there are none yet; gm.condense, or make results, makes them"
        )
    seeds: dict[tuple, list[str]] = {}
    for run in of_it:
        seeds.setdefault((run["ipc"], run["budget"], run["method"]), []).append(str(run["seed"]))
    listed = [
        f"ipc={ipc} {method} seed {', '.join(some)} ({budget} budget)"
        for (ipc, budget, method), some in seeds.items()
    ]
    return f"of {dataset} there are {'; '.join(listed)}"
