"""The jobs of workflow/Snakefile: which cells each of them does, what it waits for, and how long it takes.

As a command it times a few steps of every kind of set on the machine at hand, for the time limits of the jobs:

    python workflow/plan.py FOLDER '{"budget": "lite", "datasets": "MNIST"}'
"""

from __future__ import annotations

import heapq
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec
import torch

from gmlib import BUDGETS, CORESETS, Data, Protocol, load_data
from gmlib.checks import choose
from gmlib.files import read_json, slug, write_json
from gmlib.runs import tasks
from gmlib.runs.cells import FILE, Cell, Wanted, read_lines
from gmlib.runs.estimates import duration, time_kind
from gmlib.runs.provenance import environment
from gmlib.runtime import device_of

# They train a network on all training images first.
SLOW_CORESETS = ("herding", "kcenter")
KEYS = (
    "budget cells chapters data_dir datasets device folder gpu ipc longest mem_mb methods precision results_dir "
    "retries seeds tables threads"
)
ByKind = dict[str, dict[str, float]]  # by `kind_of` a set, what `time_kind` found


@dataclass
class Job:
    """Some cells that one process does.

    Attributes
    ----------
    kind : str
        "sets" for sets that share networks, "networks" for those trained on one set, or a measure.
    name : str
        Of its files.
    table : str
    words : list of str
        The options of `gmlib run` that choose its cells.
    needs : list of str
        Names of the jobs before it.
    priority : int
        What tells most has the highest.
    left : dict
        What is not stored yet, as in `gmlib.runs.tasks.left`, and what no job before it does.
    seconds, memory : float
        What is left should take so long, and so many bytes, as far as that is known.
    """

    kind: str
    name: str
    table: str
    words: list[str]
    needs: list[str] = field(default_factory=list)
    priority: int = 0
    left: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    memory: float = 0.0


def jobs_of(cells: Sequence[Cell], options: tasks.Options, times: ByKind, shared: float = 0.0) -> list[Job]:
    """The jobs of these cells.

    Parameters
    ----------
    cells : sequence of Cell
    options : Options
    times : dict
        By `kind_of` a set, what `gmlib.runs.estimates.time_kind` found.
    shared : float
        The part of the time of a set that sets made together spend once for all of them. 0 counts each as if alone.
    """
    found: dict[str, Job] = {}
    to_make: dict[tuple, bool] = {}  # of each set that a job condenses
    last: dict[tuple, str] = {}  # the job before that works in the folder of the same set
    for number, n in enumerate(options.rounds):
        trained: dict[tuple, set[str]] = {}  # the kinds of networks that a cell before trains on a set
        for place, cell in enumerate(cells):
            if number and cell.measure != "networks":
                continue
            of_set = (cell.dataset, cell.ipc, cell.method, cell.seed)
            priority = (len(options.rounds) - number) * len(cells) - place
            group = _set_name(cell, options)
            if group and of_set not in to_make:
                made = replace(cell, measure="networks")
                sets = found.setdefault(group, Job("sets", group, cell.table, _words(made), priority=priority))
                sets.words.append(cell.method)
                new_set = _left(made, replace(options, only_sets=True), n)
                _add(sets, cell, new_set, times)
                to_make[of_set] = bool(new_set)
            networks = _networks(cell, options)
            earlier = trained.setdefault(of_set, set())
            before = tuple(network for network in networks if network in earlier)
            new = [network for network in networks if network not in earlier]
            earlier.update(networks)
            job = Job(cell.measure, _name(cell, n), cell.table, [*_words(cell), cell.method], priority=priority)
            left = _left(cell, options, n, before)
            if cell.measure == "networks":
                job.words += ["--networks", str(n), *(["--tables", cell.table] if cell.table else [])]
                if number:
                    left -= _left(cell, options, options.rounds[number - 1], before)
            if group:
                left.pop("set", None)
                if to_make[of_set]:
                    job.needs.append(group)
            _add(job, cell, left, times, new)
            if of_set in last and found[last[of_set]].left:
                job.needs.append(last[of_set])
            last[of_set] = job.name
            found[job.name] = job
    for job in found.values():
        if job.kind == "sets" and job.left.get("set"):
            job.seconds *= 1 - shared * (1 - 1 / job.left["set"])
    return list(found.values())


def _networks(cell: Cell, options: tasks.Options) -> tuple[str, ...]:
    """The kinds of networks that are trained on the set of a cell."""
    if cell.measure != "networks":
        return ()
    return cell.targets or (tasks.set_of(cell, options)[1].network,)


def _left(cell: Cell, options: tasks.Options, n: int, before: tuple[str, ...] = ()) -> Counter[str]:
    """What is left of a cell, without the networks that a cell before it trains.

    A damaged file counts as work: the job says what to delete, and the others go on.
    """
    try:
        left = tasks.left(cell, options, n)
        return left - tasks.left(replace(cell, targets=before), options, n) if before else left
    except (ValueError, OSError):
        return Counter(damaged=1)


def _add(job: Job, cell: Cell, left: Counter[str], times: ByKind, networks: Sequence[str] = ()) -> None:
    """Add what is left of a cell, with networks of these kinds, to a job."""
    job.left = dict(Counter(job.left) + left)
    known = _known(times, cell)
    job.seconds += sum(tasks.seconds_of(left, networks, known))
    if left.get("set") and cell.method in SLOW_CORESETS:
        job.seconds = 0.0  # most of it is spent on the choice, which is not timed
    job.memory = max(job.memory, known.get("memory", 0.0))


def _known(times: ByKind, cell: Cell) -> dict[str, float]:
    """The times of a kind of set. Networks take as long on any other set of its size, as on real images."""
    known: dict[str, float] = {}
    for kind, of in times.items():
        if kind.startswith(f"{cell.dataset} {cell.ipc} "):
            known |= {what: at for what, at in of.items() if what.startswith("network ")}
    return known | times.get(kind_of(cell), {})


def kind_of(cell: Cell) -> str:
    """The name of sets that differ in their seed only."""
    return f"{cell.dataset} {cell.ipc} {cell.method}"


def _name(cell: Cell, n: int = 0) -> str:
    """The name of the job of a cell. It has no comma: Snakemake hands names to a cluster in a list with commas."""
    parts = [cell.dataset] if cell.ipc is None else [f"{cell.dataset}-ipc{cell.ipc}-{cell.method}-set{cell.seed}"]
    parts += [*(cell.targets or ()), str(n)] if cell.measure == "networks" else [cell.measure]
    return slug("-".join(parts).replace(",", "_"))


def _set_name(cell: Cell, options: tasks.Options) -> str:
    """The name of the job that condenses the set of a cell, the same for all that are made together.

    "" if it needs none: for real images, and measurements without a set.
    """
    if cell.measure in ("whole", "pulls") or cell.method in ("noise", *CORESETS):
        return ""
    _, recipe = tasks.set_of(cell, options)
    made_by = recipe.network if recipe.schedule()[0] == 1 else cell.method
    return _name(replace(cell, method=made_by, measure="sets"))


def _words(cell: Cell) -> list[str]:
    """The options of `gmlib run` for a cell, up to the names of methods."""
    size = [] if cell.ipc is None else ["--ipc", str(cell.ipc), "--seeds", str(cell.seed)]
    return ["--datasets", cell.dataset, "--measures", cell.measure, *size, "--methods"]


def wall_time(jobs: Sequence[Job], workers: int) -> float:
    """Seconds until the last of these jobs ends, if so many workers take them by priority as soon as they can begin.

    Jobs that are stored, and jobs of unknown time, take none. What a job needs outside of ``jobs`` is there.
    """
    todo = {job.name: job for job in jobs if job.left}
    order = TopologicalSorter({name: [need for need in job.needs if need in todo] for name, job in todo.items()})
    order.prepare()
    ready: list[tuple[int, str]] = []
    running: list[tuple[float, str]] = []
    now = 0.0
    while order.is_active():
        for name in order.get_ready():
            heapq.heappush(ready, (-todo[name].priority, name))
        while ready and len(running) < workers:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + todo[name].seconds, name))
        now, name = heapq.heappop(running)
        order.done(name)
    return now


def summary(jobs: Sequence[Job]) -> Iterator[str]:
    """What is stored and what is left of each table, and how long that takes one worker."""
    for table in dict.fromkeys(job.table for job in jobs):
        some = [job for job in jobs if job.table == table]
        left: Counter[str] = sum((Counter(job.left) for job in some), Counter())
        stored = sum(not job.left for job in some)
        todo = f"; left: {tasks.in_words(left)}, {_time_of(some)}" if left else ""
        yield f"{table or 'cells'}: {stored} of {len(some)} jobs are stored{todo}"
    yield f"all: {_time_of(jobs)} of one worker"


def _time_of(jobs: Sequence[Job]) -> str:
    unknown = sum(bool(job.left) and not job.seconds for job in jobs)
    known = f"about {duration(sum(job.seconds for job in jobs))}"
    return known + (f" and {unknown} job{'s' * (unknown > 1)} of unknown time" if unknown else "")


def asked(config: Mapping[str, Any]) -> tuple[list[Cell], tasks.Options]:
    """The cells and options of the engine's configuration, whose values may be words with spaces between them."""

    def words(name: str, between: str | None = None) -> list[str]:
        return [word.strip() for word in str(config.get(name) or "").split(between) if word.strip()]

    for name in config:
        choose(dict.fromkeys(KEYS.split()), "name after --config", name)
    options = tasks.Options(
        budget=str(config.get("budget", "paper")),
        results_dir=Path(config["results_dir"]) if config.get("results_dir") else None,
        precision=str(config.get("precision", "auto")),
    )
    wanted = Wanted(
        tables=words("tables", ","),
        datasets=words("datasets"),
        ipc=[int(n) for n in words("ipc")],
        methods=words("methods"),
        seeds=[int(n) for n in words("seeds")],
    )
    return wanted.of(read_lines(config.get("cells") or FILE), BUDGETS[options.budget].sets), options


def write_plan(config: Mapping[str, Any], folder: Path) -> list[Job]:
    """Plan the jobs, and write a file for each, for the process that does it. Markers of what is left are removed."""
    cells, options = asked(config)
    jobs = jobs_of(cells, options, known_times(times_file(config, folder)))
    for job in jobs:
        if job.left:
            (folder / "done" / job.name).unlink(missing_ok=True)
            write_json(folder / "jobs" / f"{job.name}.json", asdict(job))
    return jobs


def times_file(config: Mapping[str, Any], folder: Path) -> Path:
    """Where the times of a kind of machine are."""
    return folder / f"times-{'gpu' if int(config.get('gpu', 0)) else 'cpu'}.json"


class Times(msgspec.Struct):
    """A file of times."""

    device: str
    times: ByKind


def known_times(file: Path) -> ByKind:
    """What was measured before."""
    return read_json(file, Times, advice="measure again")["times"] if file.is_file() else {}


def measure(cells: Sequence[Cell], options: tasks.Options, data_dir: str | None, file: Path) -> None:
    """Time every kind of set and of network that is not in the file yet. Each set counts as if made alone."""
    found = known_times(file)
    data: dict[str, Data | None] = {}
    for cell in cells:
        if cell.measure != "networks" or cell.method.partition("@")[0] in CORESETS:
            continue
        key = kind_of(cell)
        known = _known(found, cell)
        if {"set", *(f"network {name}" for name in _networks(cell, options))} <= known.keys():
            continue
        if cell.dataset not in data:
            try:
                data[cell.dataset] = load_data(cell.dataset, data_dir=data_dir, progress=False)
            except FileNotFoundError as error:
                data[cell.dataset] = None
                print(f"not timed: {error}", flush=True)
        images = data[cell.dataset]
        if images is None:
            continue
        networks, too_large = tasks.fitting(images, cell, options)
        _, recipe = tasks.set_of(replace(cell, seed=0), options)
        if networks == ():
            print(f"not timed: {too_large[0]}", flush=True)
            continue
        protocol = Protocol(recipe.width, recipe.depth, BUDGETS[options.budget].epochs)
        found[key] = time_kind(images, recipe, networks or (recipe.network,), options.device, protocol, known)
        new = [f"{what} {duration(at)}" for what, at in found[key].items() if what != "memory" and what not in known]
        if new:
            write_json(file, {"device": environment(options.device)["device_name"], "times": found})
            print(f"{key}: {', '.join(new)}", flush=True)


def main(folder: str, config: str) -> int:
    """Measure, and write what was found into a folder."""
    given = json.loads(config)
    torch.set_num_threads(int(given.get("threads", 1)))
    cells, options = asked(given)
    file = times_file(given, Path(folder))
    measure(cells, replace(options, device=device_of(given.get("device"))), given.get("data_dir"), file)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
