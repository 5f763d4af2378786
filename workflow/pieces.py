"""The pieces of work of a campaign: what is left to do of each, and how to do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gmlib import BUDGETS, CORESETS, Data, Recipe, SyntheticSet, reach
from gmlib.analysis.matching import pulls
from gmlib.maxmin import noise_set
from gmlib.recipe import milestones
from gmlib.runs import layout, shipped, store, work

# Section 5: when a descent ends, as in notebooks/hypothesis.md, and from how many starts for each set.
DESCENT = {"eps": [0.5, 0.2, 0.1], "lr": 0.1, "max_steps": 500}
STARTS, FEW_STARTS = 16, 4
# (method, images per class, seed) whose sets are kept along a run by the paper's protocol, and how many networks then
# train on each.
KEPT_ALONG, FEW_NETWORKS = {("DC", 1, 0), ("MD", 1, 0)}, 5
# Networks trained on all training images. They need fewer epochs than on the few images of a set.
WHOLE, SHORT_WHOLE = {"networks": 5, "epochs": 30}, {"networks": 2, "epochs": 10}


@dataclass(frozen=True)
class Asked:
    """The choices of the command line.

    Empty tables or methods mean all. precision: of the pass over real images. changes: recipe fields to change.
    """

    budget: str
    results_dir: Path
    data_dir: Path | None = None
    device: torch.device | None = None
    progress: bool = False
    tables: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    precision: str = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> Iterator[work.Stage]:
        """The stages with the chosen methods. Only condensed sets can be made with changes."""
        for stage in work.STAGES:
            methods = tuple(m for m in stage.methods if not self.methods or m in self.methods)
            if self.changes:
                methods = tuple(m for m in methods if m not in CORESETS) if stage.kind == "sets" else ()
            if methods and (not self.tables or stage.name in self.tables):
                yield replace(stage, methods=methods)

    @property
    def folder(self) -> Path:
        """Where the results of this budget go."""
        at = shipped.probe_folder(self.changes, self.results_dir) if self.changes else self.results_dir
        return shipped.folder(self.budget, at)


Do = Callable[[float | None, bool, Sequence[store.Job]], str]


@dataclass(frozen=True)
class Piece:
    """Work that the log reports in one line.

    Attributes
    ----------
    key : tuple
        Equal for two pieces that are the same work.
    name : str
    left : callable
        Returns what is not stored yet: {"network": 2, "set": 1}.
    do : callable
        ``do(deadline, wait, others)`` does it, or reads back what is stored, and returns the result in words. Sets of
        the jobs in ``others`` are made with its own if they share networks.
    job : Job or None
        The run, if the work is one set and its networks.
    """

    key: tuple
    name: str
    left: Callable[[], dict[str, int]]
    do: Do
    job: store.Job | None = None


def set_piece(
    asked: Asked,
    data: Data,
    method: str,
    ipc: int,
    seed: int,
    targets: Sequence[str] | None = None,
    networks: int | None = None,
) -> Piece:
    """One set, condensed or selected, and the networks trained on it; None for as many as the budget has.

    Under a budget shorter than the paper's, the first set of a method is also evaluated half-way, to show what
    more iterations would bring. Under the paper's, some first sets are kept along the run for the pages. They are
    evaluated with few networks, once the sets have all of theirs.
    """
    options: dict[str, Any] = {"budget": asked.budget, "seed": seed, "targets": targets, "dtype": shipped.DTYPE}
    options |= {"networks": networks, "precision": asked.precision, "results_dir": asked.folder, **asked.changes}
    job = store.plan_run(data, method, ipc, **options)
    if asked.changes and job.budget == asked.budget and "precision" not in asked.changes:
        spelled = shipped.spell_changes(asked.changes)
        raise ValueError(
            f"{data.name}, {method}: {spelled} is already in the budget {asked.budget}: choose another value"
        )
    outer_loops = job.recipe.outer_loops
    half = outer_loops // 2 if seed == 0 and outer_loops < Recipe.outer_loops and job.coreset is None else 0
    if half:
        job = replace(job, snapshots=(half,))
    elif (method, ipc, seed) in KEPT_ALONG:
        few = FEW_NETWORKS if job.n_networks == BUDGETS[asked.budget].networks else 0
        job = replace(job, snapshots=tuple(milestones(outer_loops)), n_trace=few)

    def left() -> dict[str, int]:
        stored = shipped.evaluations(job.folder)
        made = (job.folder / "run.json").is_file()
        networks = sum(max(0, job.n_networks - (stored[n].n if n in stored else 0)) for n in job.targets)
        keeps_half = not made or (job.folder / "snapshots.safetensors").is_file()  # a finished run may have kept none
        if keeps_half and job.n_trace:
            trace = layout.read_trace(job.folder / "trace.json")
            networks += sum(max(0, job.n_trace - (trace[k].n if k in trace else 0)) for k in job.snapshots)
        return _counts(network=networks, set=int(not made))

    def do(deadline: float | None, wait: bool, others: Sequence[store.Job]) -> str:
        how_run: dict[str, Any] = {"device": asked.device, "progress": asked.progress, "deadline": deadline}
        run = store.do(job, others=others, wait=wait, **how_run)
        along = [f"after {k} of {outer_loops} outer iterations {e}" for k, (_, e) in run.trace.items()]
        return ", ".join([str(run), *along])

    key = ("set", data.name, ipc, method, seed, job.targets, job.n_networks)
    return Piece(key, _name(data, method, seed), left, do, job)


def descent_piece(asked: Asked, data: Data, method: str, ipc: int, seed: int, targets: object = None) -> Piece:
    """Section 5: how far from its start training on a set stops. Method "noise" is the control."""
    recipe = Recipe.for_method("M", data.name, ipc, asked.budget)
    starts = STARTS if asked.budget == "paper" else FEW_STARTS
    settings = {**DESCENT, "n_starts": starts, "width": recipe.width, "depth": recipe.depth}
    folder = layout.run_folder(asked.folder, data.name, ipc, method, seed)
    path = folder / "reach.json"

    def do(deadline: float | None, wait: bool, others: Sequence[store.Job]) -> str:
        of = {"data": data.fingerprint}
        if method == "noise":
            S = noise_set(data, ipc, seed)
        else:
            if not (folder / "set.safetensors").is_file():
                set_piece(asked, data, method, ipc, seed).do(deadline, wait, others)
            S = SyntheticSet.load(folder / "set.safetensors")
            of["set"] = S.fingerprint
        table = store.cached_table(
            path,
            {**settings, **of},
            lambda: reach(S, data=data, device=asked.device, progress=asked.progress, deadline=deadline, **settings),
            deadline=deadline,
            device=asked.device,
            wait=wait,
        )
        closest = table[table["eps"] == min(DESCENT["eps"])]
        trapped = closest["reached"].sum()
        nearest = f", the nearest at {closest['distance'].min():.2f}" if trapped else ""
        return f"{trapped} of {len(closest)} starts are trapped{nearest}"

    return _file_piece(path, _name(data, method, seed), "descent", do)


def pull_piece(asked: Asked, data: Data, method: str, ipc: int, seed: int, targets: object = None) -> Piece:
    """Section 3.3: how far each part of the loss moves S along one outer iteration, as in notebooks/what.md."""
    recipe = Recipe.for_method(method, data.name, ipc, asked.budget, seed)
    path = layout.run_folder(asked.folder, data.name, ipc, method, seed) / "pulls.json"

    def do(deadline: float | None, wait: bool, others: Sequence[store.Job]) -> str:
        table = store.cached_table(
            path,
            {"recipe": recipe.as_dict(), "data": data.fingerprint},
            lambda: pulls(data, recipe, device=asked.device, deadline=deadline),
            deadline=deadline,
            device=asked.device,
            wait=wait,
        )
        most = table.loc[table["step"].idxmax()]
        part = f"{most['what']} {most['how']}"
        return f"{part} moves S most, by {most['step']:.1%} of its norm in one step at t = {most['t']}"

    return _file_piece(path, _name(data, method, seed), "measurement", do)


def whole_piece(asked: Asked, data: Data, *_: object) -> Piece:
    """ConvNets trained on all training images: no method, and one piece for all sets."""
    protocol = WHOLE if asked.budget == "paper" else SHORT_WHOLE
    folder = layout.whole_data_folder(asked.folder, data.name)

    def left() -> dict[str, int]:
        stored = shipped.evaluations(folder)
        return _counts(network=protocol["networks"] - (stored["convnet"].n if "convnet" in stored else 0))

    def do(deadline: float | None, wait: bool, others: Sequence[store.Job]) -> str:
        options = {"budget": asked.budget, "results_dir": asked.folder, "device": asked.device, **protocol}
        return str(store.whole_data(data, progress=asked.progress, deadline=deadline, wait=wait, **options))

    return Piece(("whole", data.name), f"{data.name}, all training images", left, do)


PIECES: dict[str, Callable[..., Piece]] = {
    "sets": set_piece,
    "descents": descent_piece,
    "pulls": pull_piece,
    "whole": whole_piece,
}


def _file_piece(path: Path, name: str, what: str, do: Do) -> Piece:
    """Work that makes one file."""
    return Piece(path.parts, name, lambda: _counts(**{what: not path.is_file()}), do)


def _name(data: Data, method: str, seed: int) -> str:
    return f"{data.name}, {method}, set {seed}"


def _counts(**counts: int) -> dict[str, int]:
    return {name: int(n) for name, n in counts.items() if n > 0}
