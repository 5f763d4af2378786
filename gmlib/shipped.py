"""The results that come with the repository: condensed sets to use, and what each was made with.

results/ holds the runs by the paper's protocol, results/<budget>/ those of a shorter budget, each laid out as `store` says, and
results/probes/<change>/, laid out as results/, sets made by a budget's recipe with something changed. Other folders of runs are
read in the same way.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from . import paper
from .coreset import CORESETS
from .data import SyntheticSet
from .evaluate import Evaluation
from .recipe import BUDGETS, METHODS, Recipe, choose
from .store import CHANGED, HOME, kept, read_evaluation, read_json, read_trace, slug, whole_number

FOLDER = HOME / "results"
COLUMNS = [
    "dataset", "ipc", "method", "seed", "budget", "images", "bytes", "network", "accuracy", "std", "n", "path",
]  # fmt: skip
MADE_WITH = ["folder", "sets", "networks", "seconds", "device", "commit", "command"]
# Whose images the sets were made from, and on what terms these are given.
SOURCES = {
    "MNIST": "MNIST is by Y. LeCun, C. Cortes and C. J. C. Burges, derived from databases of NIST; it is commonly given under "
    "CC BY-SA 3.0",
    "FashionMNIST": "Fashion-MNIST is by Zalando SE (H. Xiao, K. Rasul, R. Vollgraf), under the MIT licence",
}
PROBES = "probes"
MEASUREMENTS = {"reach.json": "Section 5", "pulls.json": "Section 3.3"}  # of a set, beside it: file -> the campaign's name
BEGIN, END = "<!-- runs: written by workflow/campaign.py, not by hand -->", "<!-- end of runs -->"  # in results/README.md


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
        return super().__repr__().replace("SyntheticSet(", f"CondensedSet({made}: ") + f", {self.accuracy or 'not evaluated'}"

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
    every = _runs(results_dir)
    known = [run for run in every if budget in (None, run["budget"])]
    for name in (method, "MD") if ipc == 1 and method in ("MDO", "MDA") else (method,):
        asked = (dataset, ipc, name, seed)
        found = [run for run in known if (run["dataset"], run["ipc"], run["method"], run["seed"]) == asked]
        if found:
            return load(max(found, key=lambda run: _rank(BUDGETS, run["budget"]))["path"])
    wanted = f"{dataset!r} with ipc={ipc!r} by {method!r}, seed={seed!r}" + (f", {budget} budget" if budget else "")
    raise ValueError(f"there is no condensed set of {wanted}: {_at_hand(known or every, dataset)}")


def table(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """One row for each set that comes with the repository (or is in another folder of runs); none where there is none.

    Columns: dataset, ipc, method, seed, budget: as `load_condensed` takes them; images, how many; bytes of the file; network,
    trained on it, with accuracy (mean, percent), std and n of these networks; path of the file, relative to the folder.
    """
    root, rows = Path(results_dir or FOLDER), []
    for run in _runs(root) if root.is_dir() else ():
        file, S = run["path"] / "set.safetensors", load(run["path"])
        e = S.accuracy
        trained = (e.network, e.mean, e.std, e.n) if e else ("", math.nan, math.nan, 0)
        size = {"images": len(S.images), "bytes": file.stat().st_size}
        measured = dict(zip(("network", "accuracy", "std", "n"), trained, strict=True))
        rows.append(run | size | measured | {"path": file.relative_to(root).as_posix()})
    return pd.DataFrame(rows, columns=COLUMNS)


def condensed(results_dir: str | os.PathLike | None = None) -> list[CondensedSet]:
    """Every set that comes with the repository (or is in another folder of runs), in the order of `table`.

    Among its evaluations are those with all the networks of its budget: of others the run is still under way.
    """
    root = Path(results_dir or FOLDER)
    sets = [load(run["path"]) for run in _runs(root)] if root.is_dir() else []
    wanted = [{n: e for n, e in S.evaluations.items() if whole_number(S.budget.removesuffix(CHANGED), e.n)} for S in sets]
    return [replace(S, evaluations=whole) for S, whole in zip(sets, wanted, strict=True)]


def probes(results_dir: str | os.PathLike | None = None) -> list[tuple[str, CondensedSet]]:
    """(change, set) of every set that was made by a budget's recipe with a change, as `spell` spells it."""
    return [(spell(changes_in(S.record)), S) for at in _probes(Path(results_dir or FOLDER)) for S in condensed(at)]


def probe_folder(changes: Mapping[str, Any], results_dir: str | os.PathLike | None = None) -> Path:
    """Where runs with these recipe fields changed are committed: results/probes/lr_images=0.01, laid out as results/."""
    return Path(results_dir or FOLDER) / PROBES / slug(spell(changes).replace(" ", ","))


def spell(changes: Mapping[str, Any]) -> str:
    """As the campaign takes them: {"lr_images": 0.01, "lam": None} is "lam=null lr_images=0.01"."""
    return " ".join(f"{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in sorted(changes.items()))


def changes_in(record: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe fields in a run.json that are not those of its method under its budget."""
    made, usual = Recipe(**record["recipe"]).as_dict(), usual_recipe(record, record["budget"].removesuffix(CHANGED)).as_dict()
    return {name: value for name, value in made.items() if value != usual[name]}


def usual_recipe(record: Mapping[str, Any], budget: str) -> Recipe:
    """That of the run's method, data, size, seed and source network under a budget. record: a run.json of no coreset."""
    made = Recipe(**record["recipe"])
    return Recipe.for_method(
        record["method"].partition("@")[0], made.dataset, made.ipc, budget, made.seed, network=made.network
    )


def _probes(root: Path) -> list[Path]:
    return sorted(path for path in (root / PROBES).glob("*=*") if path.is_dir())


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
    """(path, what it is of, settings, rows) of every file of that name that `store.kept` left beside a run."""
    root = Path(results_dir or FOLDER)
    for path in _files(root, f"*/ipc*/*/set*/{name}"):
        *budget, dataset, ipc, _, seed = path.parent.relative_to(root).parts
        of = {"dataset": dataset, "ipc": int(ipc.removeprefix("ipc")), "method": _method(path.parent)}
        of |= {"budget": (*budget, "paper")[0], "set": int(seed.removeprefix("set"))}
        settings = read_json(path, "settings")["settings"]
        yield path, of, settings, kept(path, settings, pd.DataFrame)  # it is there: nothing is computed


def _method(run: Path) -> str:
    """Of the run in a folder; the folder's own name lacks the characters that file systems refuse."""
    return _record(run)["method"] if (run / "run.json").is_file() else run.parent.name


def evaluations(run: str | os.PathLike) -> dict[str, Evaluation]:
    """The accuracies in a folder, by the name of the network. ValueError for a damaged file."""
    found = [read_evaluation(path) for path in sorted(Path(run).glob("accuracy-*.json"))]
    return {e.network: e for e in found}


def load(run: str | os.PathLike) -> CondensedSet:
    """The set in the folder of one run, with what lies beside it."""
    run = Path(run)
    S, record = SyntheticSet.load(run / "set.safetensors"), _record(run)
    made = {name: getattr(S, name) for name in ("images", "labels", "classes", "mean", "std", "recipe")}
    history, trace = record.get("history") or [], read_trace(run / "trace.json")
    return CondensedSet(**made, history=history, record=record, evaluations=evaluations(run), trace=trace)


def _record(run: Path) -> dict[str, Any]:
    return read_json(run / "run.json", "recipe", "method", "budget", "data")


def _files(root: Path, pattern: str) -> list[Path]:
    """Files of runs by the paper's protocol, then those of each budget. What lies deeper is nobody's."""
    return [path for folder in (root, *(root / budget for budget in BUDGETS)) for path in sorted(folder.glob(pattern))]


def _runs(results_dir: str | os.PathLike | None) -> list[dict[str, Any]]:
    """dataset, ipc, method, seed, budget and path (a folder) of every finished run, in the order of the paper's columns."""
    root = Path(results_dir or FOLDER)
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder of results {root}: condensed sets come with the repository, not with the installed package, so "
            'clone it and name its folder, results_dir="PATH/results"'
        )
    found = []
    for path in _files(root, "*/ipc*/*/set*/run.json"):
        record = _record(path.parent)
        made = {name: record["recipe"][name] for name in ("dataset", "ipc", "seed")}
        found.append(made | {"method": record["method"], "budget": record["budget"], "path": path.parent})
    def key(run: dict[str, Any]) -> tuple:
        return run["dataset"], run["ipc"], -_rank(BUDGETS, run["budget"]), *_order(run["method"]), run["seed"]

    return sorted(found, key=key)


def _order(method: str) -> tuple[int, str]:
    """Coresets, then the paper's columns, then what is spelt out."""
    known = [*CORESETS, *METHODS]
    return known.index(method) if method in known else len(known), method


def _rank(known: dict[str, Any], name: str) -> int:
    return list(known).index(name) if name in known else -1


def _at_hand(runs: list[dict[str, Any]], dataset: str) -> str:
    """What there is, of this data set if there is any of it."""
    of_it = [run for run in runs if run["dataset"] == dataset]
    if not of_it:
        there = ", ".join(sorted({run["dataset"] for run in runs}))
        return f"there are sets of {there}" if there else "there are none yet; gm.condense, or make results, makes them"
    seeds: dict[tuple, list[str]] = {}
    for run in of_it:
        seeds.setdefault((run["ipc"], run["budget"], run["method"]), []).append(str(run["seed"]))
    listed = [f"ipc={ipc} {method} seed {', '.join(some)} ({budget} budget)" for (ipc, budget, method), some in seeds.items()]
    return f"of {dataset} there are {'; '.join(listed)}"


# ---- what they were made with ----------------------------------------------------------------------------


def made_with(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """One row for each folder <dataset>/ipc<N> and <dataset>/whole, and those of probes, read from the files in it.

    Columns: folder, relative; sets; networks trained on them; seconds that took, both phases and what was measured beside them;
    device; commit ("+": with changes that were not committed; several, where runs went on at another); command, which makes it.
    """
    root = Path(results_dir or FOLDER)
    rows = [row for place in (root, *_probes(root)) for row in _made_with(root, place)]
    return pd.DataFrame(rows, columns=MADE_WITH)


def _made_with(root: Path, place: Path) -> list[dict[str, Any]]:
    """Of the runs in one place that is laid out as results/: the root itself, or a probe."""
    rows: list[dict[str, Any]] = []
    found: dict[Path, dict[Path, None]] = {}
    for name in ("run.json", *MEASUREMENTS):
        for path in _files(place, f"*/ipc*/*/set*/{name}"):
            found.setdefault(path.parents[2], {})[path.parent] = None
    for path in _files(place, "*/whole/accuracy-*.json"):
        found[path.parent] = {path.parent: None}
    for at, runs in found.items():
        files = [path for run in runs for path in sorted(run.glob("accuracy-*.json"))]
        made_by = {run: _record(run) for run in runs if (run / "run.json").is_file()}
        records = list(made_by.values())
        measured = [path for name in MEASUREMENTS for run in runs for path in run.glob(name)]
        made = ("seconds", "device", "device_name", "commit", "threads")
        stored = records + [read_json(path, *made) for path in [*files, *measured]]
        trained = [read_evaluation(path) for path in files]
        budget = "paper" if at.parents[1] == place else at.parents[1].name
        dataset = records[0]["recipe"]["dataset"] if records else at.parent.name
        ipc = None if at.name == "whole" else int(at.name.removeprefix("ipc"))
        of_sets = {record["method"] for record in records}
        methods = of_sets | {run.parent.name for run in runs if ipc and run not in made_by}  # the control has no set
        tables = _tables(of_sets, {e.network for e in trained}, {path.name for path in measured}, ipc)
        change = "" if place == root else f" --change {spell(changes_in(records[0]))}"
        rows.append({
            "folder": at.relative_to(root).as_posix(),
            "sets": len(records),
            "networks": sum(e.n for e in trained),
            "seconds": math.fsum(part["seconds"] for part in stored),
            "device": _each(_device(part) for part in stored),
            "commit": _each(commit for part in stored for commit in (part["commit"] or "unknown").split(", ")),
            "command": _command(budget, dataset, ipc, tables, methods, change),
        })  # fmt: skip
    return rows


def _tables(methods: Collection[str], networks: Collection[str], measured: Collection[str], ipc: int | None) -> list[str]:
    """The campaign's names of those tables of the paper, the first before the others, that these runs are of."""
    if ipc is None:
        return ["Whole data"]
    left, found = set(methods), []
    for name in ("Table 3", "Table 2", "Table 1"):
        if theirs := left & set(paper.published(name)["method"]):
            found.append(name)
            left -= theirs
    transfer = any("@" in method for method in methods) or set(networks) - {"convnet"}
    return found + [of for name, of in MEASUREMENTS.items() if name in measured] + ["Table 4"] * bool(transfer)


def _command(
    budget: str, dataset: str, ipc: int | None, tables: Collection[str], methods: Collection[str], change: str
) -> str:
    at, parts = "" if ipc is None else f' IPC="{ipc}"', [f'"{name}"' for name in tables]
    spelt = [f'"{m}"' if "*" in m else m for m in sorted(methods, key=_order)]  # the shell would look for files
    only = f" --methods {' '.join(spelt)}" if spelt else ""
    return f"make results BUDGET={budget} DATASETS=\"{dataset}\"{at} CAMPAIGN='--tables {' '.join(parts)}{only}{change}'"


def readme(text: str, results_dir: str | os.PathLike | None = None) -> str:
    """The text of a README with what stands between its two markers, BEGIN and END, made anew from `made_with`.

    Raises ValueError where a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README needs the two lines {BEGIN!r} and {END!r}: what was run is written between them")
    lines = ["| folder | sets | networks | time | device | commit | command |", "| --- " * 7 + "|"]
    for r in made_with(results_dir).itertuples():
        lines.append(
            f"| `{r.folder}` | {r.sets} | {r.networks} | {_duration(r.seconds)} | {r.device} | {r.commit} | `{r.command}` |"
        )
    body = "\n".join(lines) if len(lines) > 2 else "No run is here yet."
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def _each(words) -> str:
    return ", ".join(sorted(set(words)))


def _device(part: dict[str, Any]) -> str:
    n = part["threads"]
    return part["device_name"] + (f", {n} thread{'s' if n > 1 else ''}" if part["device"] == "cpu" else "")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"
