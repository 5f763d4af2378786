"""Do cells of the paper's tables in one process: what is left of each, and in which order (the command `gmlib run`).

First every set gets the networks that a verdict needs, then those that are left. Sets that meet the same networks and
real images are made together. What is stored is read back, and what another process works on is tried again later,
so several processes can share the work.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from ..checks import check_number, choose, require
from ..condensation import Diverged
from ..coresets import CORESETS
from ..data import Data
from ..evaluation import Evaluation, resolve_protocol
from ..maxmin import noise_set, reach
from ..networks import parse_name
from ..recipe import BUDGETS, PRECISIONS, Recipe, milestones
from ..runtime import OutOfTime, deadline_passed, progress_bar
from ..sets import SyntheticSet
from . import shipped, store
from .cells import Cell, at
from .estimates import duration, time_kind
from .jobs import Job, Unusable, choose_recipe, plan_run
from .layout import LEAST_NETWORKS, MOST_NETWORKS, read_trace, run_folder, whole_data_folder
from .locks import Busy

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

# Section 5: when a descent ends, as in notebooks/hypothesis.md, and from how many starts for each set.
DESCENT: dict[str, Any] = {"eps": [0.5, 0.2, 0.1], "lr": 0.1, "max_steps": 500}
STARTS, FEW_STARTS = 16, 4
REAL_STARTS = 2  # of STARTS: with the real data, whose passes take most of the time
# (method, images per class, seed) whose sets are kept along a run by the paper's protocol, and how many networks then
# train on each.
KEPT_ALONG, FEW_NETWORKS = {("DC", 1, 0), ("MD", 1, 0)}, 5
# Networks trained on all training images. They need fewer epochs than on the few images of a set.
WHOLE, SHORT_WHOLE = {"networks": 5, "epochs": 30}, {"networks": 2, "epochs": 10}


@dataclass(frozen=True)
class Options:
    """How cells are done.

    Attributes
    ----------
    budget : str
    results_dir : Path or None
        None takes results/ of the repository.
    networks : int or None
        For each set; None for the budget's number.
    precision : str
        Of the pass over real images.
    changes : mapping
        Recipe fields to change. Such sets go to a folder of their own.
    only_sets : bool
        Train no networks.
    device, progress
        As in `gmlib.runs.store.run`.
    pulls : callable or None
        ``pulls(data, recipe, device=, deadline=)`` as in `gmlib.analysis.matching`, for the cells that measure it.
    """

    budget: str = "paper"
    results_dir: Path | None = None
    networks: int | None = None
    precision: str = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)
    only_sets: bool = False
    device: torch.device | None = None
    progress: bool = False
    pulls: Callable[..., pd.DataFrame] | None = None

    def __post_init__(self) -> None:
        choose(BUDGETS, "budget", self.budget)
        choose(dict.fromkeys((*PRECISIONS, "auto")), "precision", self.precision)
        if self.networks is not None:
            check_number("networks", self.networks, least=1, below=MOST_NETWORKS + 1, whole=True)

    @property
    def folder(self) -> Path:
        """Where the results of this budget go."""
        changed = shipped.probe_folder(self.changes, self.results_dir) if self.changes else self.results_dir
        return shipped.folder(self.budget, changed)

    @property
    def rounds(self) -> list[int]:
        """Numbers of networks: every set gets the first of them before any gets the next."""
        n = self.networks or BUDGETS[self.budget].networks
        return [n] if self.networks or self.only_sets else sorted({min(LEAST_NETWORKS, n), n})


# ---- what is left, from the files alone ------------------------------------------------------------------


def left(cell: Cell, options: Options, networks: int) -> Counter[str]:
    """What is not stored of a cell, such as {"set": 1, "network": 10}. The data are not needed.

    Raises
    ------
    ValueError
        For unknown names, or a damaged file.
    """
    if cell.measure == "whole":
        folder = whole_data_folder(options.folder, cell.dataset)
        return _counts(network=_missing(_whole(options)["networks"], ["convnet"], shipped.evaluations(folder)))
    folder, recipe = set_of(cell, options)
    if cell.measure != "networks":
        return _counts(measurement=not (folder / f"{cell.measure}.json").is_file())
    made = (folder / "run.json").is_file()
    if options.only_sets:
        return _counts(set=not made)
    n = _missing(networks, cell.targets or [recipe.network], shipped.evaluations(folder))
    along, few = kept_along(cell, options, recipe, networks)
    if along and few and (not made or (folder / store.SNAPSHOTS).is_file()):  # a finished run may have kept none
        n += _missing(few, along, read_trace(folder / "trace.json"))
    return _counts(set=not made, network=n)


def _missing(n: int, names: Iterable[Any], stored: Mapping[Any, Evaluation]) -> int:
    """How many networks are missing, if there are to be n by each of the names."""
    return sum(max(0, n - (stored[name].trained if name in stored else 0)) for name in names)


def _counts(**counts: int) -> Counter[str]:
    return Counter({name: int(n) for name, n in counts.items() if n})


def in_words(left: Mapping[str, int]) -> str:
    """What is left in words, such as "1 set, 10 networks"."""
    return ", ".join(f"{n} {what}{'s' if n > 1 else ''}" for what, n in left.items())


def set_of(cell: Cell, options: Options) -> tuple[Path, Recipe]:
    """The folder of the set of a cell, and its recipe. Of a coreset's recipe only the sizes count."""
    ipc = cell.ipc or 1
    is_noise = (cell.method, cell.measure) == ("noise", "reach")
    method = "random" if is_noise else cell.method
    chosen, recipe = choose_recipe(method, cell.dataset, ipc, options.budget, cell.seed, _changes(options))
    name = "noise" if is_noise else chosen or recipe.method
    return run_folder(options.folder, cell.dataset, ipc, name, cell.seed), recipe


def kept_along(cell: Cell, options: Options, recipe: Recipe, networks: int) -> tuple[tuple[int, ...], int]:
    """After which outer iterations the set is kept too, and how many networks are then trained on it.

    Under a budget shorter than the paper's, the first set of a method is also evaluated half-way, to show what more
    iterations would bring. Under the paper's, some first sets are kept along the run for the pages. Few networks
    train on them, once the sets have all of theirs.
    """
    if cell.seed or cell.method in CORESETS:
        return (), 0
    if (half := recipe.outer_loops // 2) and recipe.outer_loops < Recipe.outer_loops:
        return (half,), networks
    if (cell.method, cell.ipc, cell.seed) in KEPT_ALONG:
        few = FEW_NETWORKS if networks == BUDGETS[options.budget].networks else 0
        return tuple(milestones(recipe.outer_loops)), few
    return (), 0


def _changes(options: Options) -> dict[str, Any]:
    return {"precision": options.precision, **options.changes}


def _whole(options: Options) -> dict[str, int]:
    return WHOLE if options.budget == "paper" else SHORT_WHOLE


# ---- tasks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A checked cell with its data.

    Attributes
    ----------
    cell : Cell
    left : callable
        Returns what is not stored yet, as `left` does.
    do : callable
        ``do(deadline, wait, others)`` does it, or reads back what is stored, and returns the result in words. Sets of
        the jobs in ``others`` are made with its own if they share networks.
    job : Job or None
        The run, if it is a set with its networks.
    """

    cell: Cell
    left: Callable[[], dict[str, int]]
    do: Callable[[float | None, bool, Sequence[Job]], str]
    job: Job | None = None


def plan(
    cells: Sequence[Cell], load: Callable[..., Data], options: Options, *, download: bool = True
) -> tuple[list[Task], list[str]]:
    """Check cells before any work.

    Parameters
    ----------
    cells : sequence of Cell
    load : callable
        ``load(name, download=True)`` returns the data set. Nothing is downloaded before the names of all methods and
        data sets are checked.
    options : Options
    download : bool

    Returns
    -------
    tasks : list of Task
        In order, each once.
    left_out : list of str
        A sentence for each data set that is missing, each network that does not fit the images, and each cell with a
        folder that cannot be used: a file there is damaged, or of another run.

    Raises
    ------
    ValueError
        For unknown names, or if a cell cannot be done. The message names its line.
    """
    if options.changes:
        cells = [cell for cell in cells if cell.measure == "networks" and cell.method not in CORESETS]
        if not cells:
            raise ValueError("a change is for condensed sets, and none is selected: choose other tables or methods")
    data: dict[str, Data] = {}
    missing: dict[str, str] = {}  # why a data set was not loaded
    for may_download in (False, True) if download else (False,):
        missing.clear()
        for cell in cells:
            with at(cell.place):
                _check_names(cell, options)
                if cell.dataset not in (*data, *missing):
                    try:
                        data[cell.dataset] = load(cell.dataset, download=may_download)
                    except FileNotFoundError as error:
                        missing[cell.dataset] = str(error)
    left_out = dict.fromkeys(missing.values())
    tasks: dict[Any, Task] = {}
    for networks in options.rounds:
        for cell in cells:
            if cell.dataset in missing:
                continue
            found = data[cell.dataset]
            with at(cell.place):
                targets, too_large = fitting(found, cell, options)
                table = f"{cell.table}: " if cell.table else ""
                left_out |= dict.fromkeys(f"{table}{sentence}" for sentence in too_large)
                if targets == ():
                    continue
                cell = replace(cell, targets=targets)
                key = (cell, networks if cell.measure == "networks" else 0)
                if key not in tasks:
                    try:
                        tasks[key] = DO[cell.measure](cell, found, options, networks)
                    except (Unusable, OSError) as error:
                        left_out[f"{cell.name}: {error}"] = None
    return list(tasks.values()), list(left_out)


def _check_names(cell: Cell, options: Options) -> None:
    """Check what can be checked without the data."""
    for network in cell.targets or ():
        parse_name(network)
    if cell.measure != "whole":
        set_of(cell, options)
    if cell.measure == "pulls":
        Recipe.for_method(cell.method, cell.dataset, cell.ipc or 1, options.budget, cell.seed)
    if cell.measure in ("reach", "pulls"):
        require("pandas", "analysis")  # before hours of work, not when the table is written


def fitting(data: Data, cell: Cell, options: Options) -> tuple[tuple[str, ...] | None, list[str]]:
    """The networks of a cell that take images of this size, and why the others do not, in sentences.

    There are none if the network that the set is made with does not.
    """
    if cell.measure != "networks":
        return None, []
    _, recipe = set_of(cell, options)
    too_large = {}
    for network in dict.fromkeys((recipe.network, *(cell.targets or ()))):
        try:
            resolve_protocol(data, data, network, width=recipe.width, depth=recipe.depth)
        except ValueError as error:
            too_large[network] = str(error)
    if recipe.network in too_large:
        return (), [too_large[recipe.network]]
    targets = cell.targets and tuple(network for network in cell.targets if network not in too_large)
    return targets, list(too_large.values())


def set_task(cell: Cell, data: Data, options: Options, networks: int) -> Task:
    """One set, condensed or selected, and the networks trained on it."""
    _, recipe = set_of(cell, options)
    along, few = kept_along(cell, options, recipe, networks)
    job = plan_run(
        data,
        cell.method,
        recipe.ipc,
        budget=options.budget,
        seed=cell.seed,
        targets=cell.targets,
        networks=networks,
        results_dir=options.folder,
        dtype=shipped.DTYPE,
        snapshots=along,
        trace_networks=few,
        **_changes(options),
    )
    if options.changes and job.budget == options.budget and "precision" not in options.changes:
        spelled = shipped.spell_changes(options.changes)
        raise ValueError(
            f"{data.name}, {cell.method}: {spelled} is already in the budget {options.budget}: choose another value"
        )

    def do(deadline: float | None, wait: bool, others: Sequence[Job]) -> str:
        run = store.do(job, others=others, wait=wait, only_set=options.only_sets, **_how_run(options, deadline))
        of = f"of {job.recipe.outer_loops} outer iterations"
        return ", ".join([str(run), *(f"after {k} {of} {e}" for k, (_, e) in run.trace.items())])

    return Task(cell, partial(left, cell, options, networks), do, job)


def reach_task(cell: Cell, data: Data, options: Options, networks: int) -> Task:
    """Section 5: how far from its start training on a set stops. Method "noise" is the control: distances only."""
    folder, recipe = set_of(cell, options)
    many = options.budget == "paper"
    starts = {"n_starts": STARTS, "n_real": REAL_STARTS} if many else {"n_starts": FEW_STARTS}
    settings: dict[str, Any] = {**DESCENT, **starts, "width": recipe.width, "depth": recipe.depth}

    def do(deadline: float | None, wait: bool, others: Sequence[Job]) -> str:
        of = {"data": data.fingerprint}
        on_real: Data | None = data
        if cell.method == "noise":
            S, on_real = noise_set(data, recipe.ipc, cell.seed), None
        else:
            if not (folder / "set.safetensors").is_file():
                set_task(cell, data, replace(options, only_sets=True), networks).do(deadline, wait, others)
            S = SyntheticSet.load(folder / "set.safetensors")
            of["set"] = S.fingerprint
        table = store.cached_table(
            folder / "reach.json",
            settings | of,
            lambda: reach(S, data=on_real, **_how_run(options, deadline), **settings),
            deadline=deadline,
            device=options.device,
            wait=wait,
        )
        closest = table[table["eps"] == min(DESCENT["eps"])]
        trapped = closest["reached"].sum()
        nearest = f", the nearest at {closest['distance'].min():.2f}" if trapped else ""
        return f"{trapped} of {len(closest)} starts are trapped{nearest}"

    return Task(cell, partial(left, cell, options, networks), do)


def pulls_task(cell: Cell, data: Data, options: Options, networks: int) -> Task:
    """Section 3.3: how far each part of the loss moves S along one outer iteration, as in notebooks/what.md."""
    recipe = Recipe.for_method(cell.method, data.name, cell.ipc or 1, options.budget, cell.seed)
    folder, _ = set_of(cell, options)
    measure = options.pulls
    if measure is None:
        raise ValueError("pulls cannot be measured here: use the command gmlib run")

    def do(deadline: float | None, wait: bool, others: Sequence[Job]) -> str:
        table = store.cached_table(
            folder / "pulls.json",
            {"recipe": recipe.as_dict(), "data": data.fingerprint},
            lambda: measure(data, recipe, device=options.device, deadline=deadline),
            deadline=deadline,
            device=options.device,
            wait=wait,
        )
        most = table.loc[table["step"].idxmax()]
        part = f"{most['what']} {most['how']}"
        return f"{part} moves S most, by {most['step']:.1%} of its norm in one step at t = {most['t']}"

    return Task(cell, partial(left, cell, options, networks), do)


def whole_task(cell: Cell, data: Data, options: Options, networks: int) -> Task:
    """ConvNets trained on all training images."""

    def do(deadline: float | None, wait: bool, others: Sequence[Job]) -> str:
        of: dict[str, Any] = {"budget": options.budget, "results_dir": options.folder, **_whole(options)}
        return str(store.whole_data(data, wait=wait, **of, **_how_run(options, deadline)))

    return Task(cell, partial(left, cell, options, networks), do)


DO = {"networks": set_task, "reach": reach_task, "pulls": pulls_task, "whole": whole_task}


def _how_run(options: Options, deadline: float | None) -> dict[str, Any]:
    return {"device": options.device, "progress": options.progress, "deadline": deadline}


# ---- doing them ------------------------------------------------------------------------------------------


def do_all(
    tasks: Sequence[Task],
    deadline: float | None = None,
    after_each: Callable[[], object] = lambda: None,
    progress: bool = True,
) -> tuple[list[Task], list[str]]:
    """Do tasks in order. Those that another process works on are tried again after the others.

    Each gets one line in the log. ``after_each`` is called after each that something was done for.

    Returns
    -------
    undone : list of Task
        That were not done before the deadline.
    failed : list of str
        A sentence for each that could not be done: its loss is not finite, or a file in its folder is damaged or
        cannot be used.
    """
    failed: list[str] = []
    jobs = [task.job for task in tasks if task.job]

    def attempt(task: Task, is_new: bool, wait: bool) -> None:
        started = time.monotonic()
        try:
            found = task.do(deadline, wait, jobs)
        except (Diverged, ValueError, OSError, RuntimeError) as error:
            failed.append(f"{task.cell.name}: {error}")
            log.warning("%s", failed[-1])
        else:
            seconds = timedelta(seconds=round(time.monotonic() - started))
            log.info("%s: %s%s", task.cell.name, found, f", in {seconds}" if is_new else " (stored)")
            if is_new:
                after_each()

    todo = []
    for task in tasks:
        with suppress(ValueError, OSError):  # a damaged file: reading back says so
            if task.left():
                todo.append(task)
                continue
        try:
            attempt(task, False, wait=False)  # reading back checks it
        except Busy:
            log.info("%s: stored, and another process works in its folder", task.cell.name)
        except OutOfTime:
            todo.append(task)
    with progress_bar("cells", len(tasks), "cell", progress, initial=len(tasks) - len(todo)) as bar:
        wait = False
        while todo:
            held: list[Task] = []
            for n, task in enumerate(todo):
                if deadline_passed(deadline):
                    return held + todo[n:], failed
                try:
                    attempt(task, True, wait and n == 0)
                except Busy:
                    held.append(task)
                    continue
                except OutOfTime as stopped:
                    log.info("%s: %s", task.cell.name, stopped)
                    return held + todo[n:], failed
                bar.update()
            wait = len(held) == len(todo)
            if wait:
                log.info("other processes work on everything that is left: waiting for them")
            todo = held
    return [], failed


def listing(tasks: Sequence[Task], device: torch.device) -> Iterator[str]:
    """A line for each task with what is left of it and how long that takes here, and one for all."""
    timed: dict[tuple, dict[str, float]] = {}  # recipes that differ in their seed only are timed once
    total: dict[Path, tuple[float, float]] = {}  # of the set in a folder: seconds for it, and for its networks
    number = 0
    for task in tasks:
        try:
            of_it = task.left()
        except (ValueError, OSError) as error:
            yield f"{task.cell.name}: {error}"
            number += 1
            continue
        number += bool(of_it)
        said = in_words(of_it) or "done"
        job = task.job
        if of_it and job and not job.coreset:
            kind = (job.data.fingerprint, replace(job.recipe, seed=0))
            timed[kind] = time_kind(job.data, job.recipe, job.targets, device, job.protocol, timed.get(kind))
            of_set, of_networks = seconds_of(of_it, job.targets, timed[kind])
            before = total.get(job.folder, (0.0, 0.0))
            total[job.folder] = (max(of_set, before[0]), max(of_networks, before[1]))
            said += f", about {duration(of_set + of_networks)}"
        yield f"{task.cell.name}: {said}"
    hours = f"; condensed sets and their networks: about {duration(sum(map(sum, total.values())))}" if total else ""
    yield f"{number} of {len(tasks)} are left{hours}"


def seconds_of(left: Mapping[str, int], networks: Sequence[str], times: Mapping[str, float]) -> tuple[float, float]:
    """Seconds for a set, made alone, and for networks of these kinds, as far as they are in ``left``.

    ``times`` is as from `gmlib.runs.estimates.time_kind`. An unknown time counts as 0.
    """
    of_network = mean([times.get(f"network {network}", 0.0) for network in networks] or [0.0])
    return left.get("set", 0) * times.get("set", 0.0), left.get("network", 0) * of_network
