"""The results that come with the repository: condensed sets to use, and what each was made with.

results/ holds runs by the paper's protocol and results/<budget>/ those of a shorter budget, with the layout of
`store`. results/probes/<change>/ has the same layout and holds sets made by a budget's recipe with something changed.
Any other folder of runs is read in the same way.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..checks import check_number, choose, shown
from ..coresets import CORESETS
from ..datasets import meant
from ..evaluation import Evaluation
from ..files import as_path, path_or, slug
from ..recipe import BUDGETS, METHODS, Recipe
from ..sets import SyntheticSet
from .jobs import CHANGED
from .layout import (
    MadeWith,
    check_place,
    evaluation_from_json,
    is_complete,
    load_set,
    read_accuracies,
    read_record,
    read_trace,
)
from .provenance import PLACE

log = logging.getLogger(__name__)

FOLDER = PLACE / "results"
PROBES = "probes"
DTYPE = torch.float16  # of the stored images: half the size, and networks are trained on what was stored

# Authors and licences of the images that the sets were made from.
SOURCES = {
    "MNIST": "MNIST is by Y. LeCun, C. Cortes and C. J. C. Burges, derived from databases of NIST; it is commonly "
    "distributed under CC BY-SA 3.0",
    "FashionMNIST": "Fashion-MNIST is by Zalando SE (H. Xiao, K. Rasul, R. Vollgraf), under the MIT licence",
    "CIFAR10": "CIFAR-10 is by A. Krizhevsky, V. Nair and G. Hinton, who ask to cite A. Krizhevsky, Learning "
    "Multiple Layers of Features from Tiny Images, 2009; they name no licence",
}

# Files of measurements in the folder of a set -> the section whose cells make them, in workflow/cells.csv.
MEASUREMENTS = {"reach.json": "Section 5", "pulls.json": "Section 3.3"}


@dataclass(frozen=True, eq=False, repr=False)
class CondensedSet(SyntheticSet):
    """A SyntheticSet with what its run stored with it.

    Attributes
    ----------
    record : dict
        run.json: method, budget, recipe, data with fingerprint and origin, versions, device, seconds, history.
    evaluations : dict of str to Evaluation
        Accuracies of networks trained on the set, by architecture.
    trace : dict of int to Evaluation
        Accuracies of networks trained on earlier states of the set, by number of outer iterations.
    trained_with : dict of str to dict
        The versions, device and threads of the networks in ``evaluations``.
    """

    record: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    trace: dict[int, Evaluation] = field(default_factory=dict)
    trained_with: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        accuracy = self.accuracy or "not evaluated"
        return f"CondensedSet({self._made()}: {self._sizes(str(self.shape))}, {self._range()}), {accuracy}"

    def _made(self) -> str:
        return f"{self.record['method']}, {self.budget} budget"

    @property
    def summary(self) -> str:
        """What it is, in a few words: method, budget, numbers of images and classes, and their size."""
        return f"{self._made()}: {super().summary}"

    @property
    def budget(self) -> str:
        """The budget it was made under; only "paper" is the paper's protocol."""
        return self.record["budget"]

    @property
    def accuracy(self) -> Evaluation | None:
        """Accuracies of the ConvNets trained on it, else of another architecture; None if there are none."""
        return self.evaluations.get("convnet") or next(iter(self.evaluations.values()), None)


def results_folder(results_dir: str | os.PathLike | None = None) -> Path:
    """``results_dir``, or the results/ of the repository.

    Raises
    ------
    FileNotFoundError
        If there is no such folder. An installed gmlib comes without results.
    """
    root = path_or(results_dir, FOLDER)
    if not root.is_dir():
        raise FileNotFoundError(
            f"there are no results at {root}: they come with the repository, so clone it or name another results_dir"
        )
    return root


def folder(budget: str, results_dir: str | os.PathLike | None = None) -> Path:
    """Where runs of a budget go: results/ for the paper's budget, results/<budget>/ for another.

    Raises
    ------
    ValueError
        For an unknown budget.
    """
    choose(BUDGETS, "budget", budget)
    return path_or(results_dir, FOLDER) / ("" if budget == "paper" else budget)


def load_condensed(
    dataset: str,
    ipc: int,
    method: str | None = None,
    seed: int | None = None,
    budget: str | None = None,
    results_dir: str | os.PathLike | None = None,
) -> CondensedSet:
    """Load a condensed set that comes with the repository.

    A warning is logged if networks do no better on the set than on random real images of the same number and budget.

    Parameters
    ----------
    dataset : str
    ipc : int
        Images per class.
    method : str, optional
        None takes the best set: the highest mean accuracy of ConvNets (`rank`) among those of the largest budget with
        enough networks. The choice is logged. At one image per class MDO and MDA are the same as MD, so MD is loaded.
    seed : int, optional
        None takes 0 if there is a method, else the best set's.
    budget : str, optional
        None takes the paper's budget if there is such a set, else the largest. `CondensedSet.budget` says which.
    results_dir : path, optional
        Any folder of runs. None takes the repository's results/, or ./results if gmlib is used outside a checkout.

    Returns
    -------
    CondensedSet

    Raises
    ------
    ValueError
        If there is no such set. The message lists the sets that exist.
    FileNotFoundError
        If there is no folder of results.
    """
    for name, value in {"dataset": dataset, "method": "" if method is None else method}.items():
        if not isinstance(value, str):
            raise ValueError(f"{name}={shown(value)} does not fit: give the name of a {name}")
    ipc = check_number("ipc", ipc, least=1, whole=True)
    if seed is not None:
        seed = check_number("seed", seed, least=0, whole=True)
    if budget is not None:
        choose(BUDGETS, "budget", budget)
    runs = stored_runs(results_dir)
    candidates = [run for run in runs if budget in (None, run["budget"])]
    of_size = [run for run in candidates if (run["dataset"], run["ipc"]) == (dataset, ipc)]
    if method is None:
        usable = _usable([run for run in of_size if seed in (None, run["seed"])])
        found = max(usable, key=lambda each: rank(each[0]["budget"], each[1]))[0] if usable else None
    else:
        names = (method, "MD") if ipc == 1 and method in ("MDO", "MDA") else (method,)
        asked = [(name, seed or 0) for name in names]
        matching = [run for each in asked for run in of_size if (run["method"], run["seed"]) == each]
        found = matching[0] if matching else None  # the largest budget comes first
    if found is None:
        by = f" by {method!r}, seed={seed or 0}" if method is not None else "" if seed is None else f", seed={seed}"
        wanted = f"{dataset!r} with ipc={ipc!r}{by}" + (f", {budget} budget" if budget else "")
        if method is None and any(run["method"] not in CORESETS for run in of_size if seed in (None, run["seed"])):
            wanted += " whose accuracy is known from enough networks"
        raise ValueError(f"there is no condensed set of {wanted}: {_available(candidates or runs, dataset, ipc)}")
    S = load(found["path"])
    if method is None:  # a warning, since the choice is the library's and may change with its results
        log.warning(
            "%s, ipc=%d: took the set of %s with seed %d, which has the highest mean accuracy, %s, of %d sets of the "
            "largest budget (%s) with enough networks. As the best of several on the test images it looks a little "
            "better than it is: give method= and seed= for a set that was not chosen by it",
            dataset, ipc, found["method"], found["seed"], S.evaluations["convnet"],
            sum(run["budget"] == found["budget"] for run, _ in usable), found["budget"],
        )  # fmt: skip
    _warn_if_random_is_as_good(S, found, of_size)
    return S


def rank(budget: str, e: Evaluation) -> tuple[int, float]:
    """The larger, the better a set: first by its budget, then by the mean accuracy of networks trained on it."""
    return _rank(BUDGETS, budget), e.mean


def _complete(run: Mapping[str, Any]) -> Evaluation | None:
    """The accuracies of ConvNets trained on the set of a run, if they are enough."""
    e = evaluations(run["path"]).get("convnet")
    return e if e is not None and e.n and is_complete(run["budget"].removesuffix(CHANGED), e.trained) else None


def _usable(runs: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Evaluation]]:
    """The runs of condensed sets that enough networks were trained on, with the accuracies of these."""
    condensed_sets = [run for run in runs if run["method"] not in CORESETS]
    return [(run, e) for run in condensed_sets if (e := _complete(run))]


def _warn_if_random_is_as_good(S: CondensedSet, run: Mapping[str, Any], runs: list[dict[str, Any]]) -> None:
    """Log if the 95 % interval of a condensed set's accuracy reaches down to the mean of random images.

    ``runs`` are those of the same data set and number of images per class.
    """
    e = S.evaluations.get("convnet")
    same = [each for each in runs if (each["method"], each["budget"]) == ("random", run["budget"])]
    random = [found.mean for each in same if (found := _complete(each))]
    if run["method"] in CORESETS or e is None or not e.n or not random:
        return
    mean = sum(random) / len(random)
    try:
        low, high = e.ci95 if e.n > 1 else (e.mean, e.mean)
    except ModuleNotFoundError:  # an interval needs the extra "analysis", and loading a set does not
        return
    if low <= mean:
        log.warning(
            "%s, ipc=%d: the set of %s with seed %d (%s budget) is not clearly better than random real images: "
            "networks reach %s on it, 95 %% interval %.1f to %.1f, and %.1f %% on random images (mean of %d sets)",
            run["dataset"], run["ipc"], run["method"], run["seed"], run["budget"], e, low, high, mean, len(random),
        )  # fmt: skip


def condensed(results_dir: str | os.PathLike | None = None) -> list[CondensedSet]:
    """Every set that comes with the repository, or is in another folder of runs, in the order of `stored_runs`.

    Its evaluations hold only architectures with enough networks (`layout.is_complete`): ten under the paper's budget,
    else all that the budget trains.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.
    """
    sets = []
    for run in stored_runs(results_dir):
        S = load(run["path"])
        budget = S.budget.removesuffix(CHANGED)
        complete = {network: e for network, e in S.evaluations.items() if is_complete(budget, e.trained)}
        sets.append(replace(S, evaluations=complete))
    return sets


def probes(results_dir: str | os.PathLike | None = None) -> list[tuple[str, CondensedSet]]:
    """Every set made by a budget's recipe with a change, as (change, set); the change is spelled by `spell_changes`.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.
    """
    folders = probe_folders(results_folder(results_dir))
    return [(spell_changes(changes_in(S.record, at)), S) for at in folders for S in condensed(at)]


def probe_folder(changes: Mapping[str, Any], results_dir: str | os.PathLike | None = None) -> Path:
    """Where runs with these recipe fields changed go: results/probes/lr_images=0.01, laid out like results/."""
    return path_or(results_dir, FOLDER) / PROBES / slug(spell_changes(changes).replace(" ", ","))


def probe_folders(root: Path) -> list[Path]:
    """The folders of probes under a folder of results."""
    return sorted(path for path in (root / PROBES).glob("*=*") if path.is_dir())


def spell_changes(changes: Mapping[str, Any]) -> str:
    """Changes as `gmlib run --change` takes them: {"lr_images": 0.01, "lam": None} is "lam=null lr_images=0.01"."""
    return " ".join(f"{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in sorted(changes.items()))


# Changing one of these makes another method, or networks of another size, which are trained by another protocol.
NOT_A_PROBE = ("dataset", "ipc", "seed", "what", "how", "where", "network", "width", "depth")


def read_changes(spelled: Collection[str], fixed: Collection[str] = NOT_A_PROBE) -> dict[str, Any]:
    """The recipe fields in strings such as "lr_images=0.01": {"lr_images": 0.01}.

    Raises
    ------
    ValueError
        For an unknown field, one of ``fixed``, or a bad value.
    """
    usual = {f.name: f.default for f in fields(Recipe) if f.name not in fixed}
    found: dict[str, Any] = {}
    for change in spelled:
        name, equals, value = change.partition("=")
        choose(usual, "recipe field to change", name)
        if not equals:
            example = spell_changes({name: usual[name]})
            raise ValueError(f"the change {change} does not fit: give a value too, as in {example}")
        if name in found:
            raise ValueError(f"there are two changes of {name}: give it one value")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value  # a word
        if isinstance(usual[name], float) and type(found[name]) is int:
            found[name] = float(found[name])
    made = Recipe(**found)
    return {name: getattr(made, name) for name in found}


def changes_in(record: Mapping[str, Any], place: Path | None = None) -> dict[str, Any]:
    """The recipe fields in a run.json that differ from those of its method under its budget.

    The pass over real images in bfloat16 is no change, because the paper names no precision. But in a probe of the
    precision it is what was changed.

    Parameters
    ----------
    record : dict
    place : Path, optional
        The folder of the probe.
    """
    made = Recipe(**record["recipe"]).as_dict()
    usual = usual_recipe(record, record["budget"].removesuffix(CHANGED)).as_dict()
    of_precision = place is not None and "precision=" in place.name
    if of_precision or made["precision"] == "bf16":
        usual["precision"] = None if of_precision else "bf16"
    return {name: value for name, value in made.items() if value != usual[name]}


def usual_recipe(record: Mapping[str, Any], budget: str) -> Recipe:
    """The recipe under a budget for the choices in the run.json of a condensed set.

    The method, data set, images per class, seed and source network are taken from it.
    """
    made = Recipe(**record["recipe"])
    preset = record["method"].partition("@")[0]
    return Recipe.for_method(preset, made.dataset, made.ipc, budget, made.seed, network=made.network)


def method_of(run: Path) -> str:
    """The method of the run in a folder. In the folder's name some characters are replaced."""
    return read_record(run)["method"] if (run / "run.json").is_file() else run.parent.name


def evaluations(run: str | os.PathLike) -> dict[str, Evaluation]:
    """The accuracies in the folder of a run, or of networks trained on all images, by architecture.

    Raises
    ------
    ValueError
        If a file is damaged, or the accuracies are not of its set.
    """
    return {network: evaluation_from_json(found) for network, found in _accuracies(as_path(run)).items()}


def _accuracies(run: Path) -> dict[str, dict[str, Any]]:
    """The contents of the accuracy-*.json in a folder, by architecture."""
    of = read_record(run)["set"] if (run / "run.json").is_file() else None  # networks trained on all images have none
    contents = [read_accuracies(path, of) for path in sorted(run.glob("accuracy-*.json"))]
    return {content["network"]: content for content in contents}


def load(run: str | os.PathLike) -> CondensedSet:
    """The set in the folder of one run.

    Raises
    ------
    ValueError
        If a file is damaged, or they do not belong together.
    """
    run = as_path(run)
    record = read_record(run)
    S, accuracies = load_set(run, record), _accuracies(run)
    return CondensedSet(
        **{name: getattr(S, name) for name in ("images", "labels", "classes", "mean", "std", "recipe")},
        history=record["history"],
        record=record,
        evaluations={network: evaluation_from_json(found) for network, found in accuracies.items()},
        trained_with={
            network: {name: found[name] for name in MadeWith.__struct_fields__ if name in found}
            for network, found in accuracies.items()
        },
        trace=read_trace(run / "trace.json", record["set"]),
    )


def files_of(root: Path, pattern: str) -> list[Path]:
    """Files of runs by the paper's protocol, then those of each budget. Files nested deeper are ignored."""
    folders = [root, *(root / budget for budget in BUDGETS)]
    return [path for folder in folders for path in sorted(folder.glob(pattern))]


def stored_runs(results_dir: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """Every finished run as a dict with dataset, ipc, method, seed, budget and path (its folder).

    The order is that of the paper's columns, for each data set and ipc, with the largest budget first.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.
    """
    found = []
    for path in files_of(results_folder(results_dir), "*/ipc*/*/set*/run.json"):
        record = read_record(path.parent)
        check_place(path, record["recipe"], record["method"])
        made = {name: record["recipe"][name] for name in ("dataset", "ipc", "seed")}
        found.append(made | {"method": record["method"], "budget": record["budget"], "path": path.parent})

    def key(run: dict[str, Any]) -> tuple:
        return run["dataset"], run["ipc"], -_rank(BUDGETS, run["budget"]), *order_key(run["method"]), run["seed"]

    return sorted(found, key=key)


def order_key(method: str) -> tuple[int, str]:
    """Sorts methods: coresets, then the paper's columns, then those spelled out."""
    known = [*CORESETS, *METHODS]
    return known.index(method) if method in known else len(known), method


def _rank(known: Collection[str], name: str) -> int:
    """Position of a name; -1 if it is unknown."""
    return list(known).index(name) if name in known else -1


def _available(runs: list[dict[str, Any]], dataset: str, ipc: int) -> str:
    """The available sets: those of this data set and number of images per class, if it has any."""
    of_it = [run for run in runs if run["dataset"] == dataset]
    if not of_it:
        known = sorted({run["dataset"] for run in runs})
        return (
            f"there are sets of {', '.join(known)}{meant(dataset, known)}"
            if known
            else "none exists yet: make some by gm.condense or make results"
        )
    if ipc not in (sizes := sorted({run["ipc"] for run in of_it})):
        return f"for {dataset} there are sets with ipc={', '.join(map(str, sizes))}"
    seeds: dict[tuple, list[str]] = {}
    for run in of_it:
        seeds.setdefault((run["ipc"], run["budget"], run["method"]), []).append(str(run["seed"]))
    listed = [
        f"ipc={ipc} {method} seed {', '.join(some)} ({budget} budget)"
        for (ipc, budget, method), some in seeds.items()
    ]
    return f"for {dataset} there are {'; '.join(listed)}"
