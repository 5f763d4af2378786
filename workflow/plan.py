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
from pathlib import Path
from typing import Any

import msgspec
import torch

from gmlib import BUDGETS, CORESETS, load_data
from gmlib.files import read_json, slug, write_atomically, write_json
from gmlib.runs import tasks
from gmlib.runs.cells import FILE, Cell, Wanted, read_lines
from gmlib.runs.estimates import duration, estimate
from gmlib.runs.jobs import choose_recipe
from gmlib.runtime import device_of


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


def jobs_of(
    cells: Sequence[Cell],
    options: tasks.Options,
    times: Mapping[str, Mapping[str, float]],
    shared: float = 0.0,
) -> list[Job]:
    """The jobs of these cells.

    Parameters
    ----------
    cells : sequence of Cell
    options : Options
    times : mapping
        What `measured` found, by `kind_of` a set. A key such as "network mlp" is for one kind of network.
    shared : float
        The part of the time of a set that sets made together spend once for all of them. 0 counts each as if alone.
    """
    found: dict[str, Job] = {}
    before = _before(cells, options)
    for at, n in enumerate(options.rounds):
        for place, cell in enumerate(cells):
            priority = (len(options.rounds) - at) * len(cells) - place
            if cell.measure == "networks":
                group = _set_name(cell, options)
                if group and at == 0:
                    words = _words(cell)[:-1]
                    sets = found.setdefault(group, Job("sets", group, cell.table, words, priority=priority))
                    if cell.method not in sets.words:
                        _add(sets, cell, tasks.left(cell, replace(options, only_sets=True), n), times)
                        sets.words.insert(sets.words.index("--methods") + 1, cell.method)
                name = "-".join([_name(cell), *(cell.targets or ()), str(n)])
                words = [*_words(cell), "--networks", str(n), *(["--tables", cell.table] if cell.table else [])]
                job = Job("networks", name, cell.table, words, [group], priority)
                left = _left(cell, options, n, before[place])
                if at:  # the networks of the round before
                    job.needs.append("-".join([_name(cell), *(cell.targets or ()), str(options.rounds[at - 1])]))
                    left -= _left(cell, options, options.rounds[at - 1], before[place])
                if group:
                    left.pop("set", None)
                _add(job, cell, left, times, before[place])
            elif at == 0:
                needs = [_set_name(cell, options)] if cell.measure == "reach" and cell.method != "noise" else []
                name = f"{_name(cell)}-{cell.measure}"
                job = Job(cell.measure, name, cell.table, _words(cell), needs, priority)
                _add(job, cell, tasks.left(cell, options, n), times)
            else:
                continue
            found[job.name] = job
    for job in found.values():
        job.needs = [name for name in job.needs if name in found and found[name].left]
        if job.kind == "sets" and job.left:
            job.seconds *= 1 - shared * (1 - 1 / job.left["set"])
    return list(found.values())


def _before(cells: Sequence[Cell], options: tasks.Options) -> list[tuple[str, ...]]:
    """For each cell: the kinds of networks that a cell before it trains on the same set."""
    trained: dict[tuple, dict[str, None]] = {}
    found: list[tuple[str, ...]] = []
    for cell in cells:
        if cell.measure != "networks":
            found.append(())
            continue
        networks = cell.targets or (tasks.set_of(cell, options)[1].network,)
        known = trained.setdefault((cell.dataset, cell.ipc, cell.method, cell.seed), {})
        found.append(tuple(network for network in networks if network in known))
        known.update(dict.fromkeys(networks))
    return found


def _left(cell: Cell, options: tasks.Options, n: int, before: tuple[str, ...]) -> Counter[str]:
    """What is left of a cell, without the networks that a cell before it trains."""
    left = Counter(tasks.left(cell, options, n))
    return left - Counter(tasks.left(replace(cell, targets=before), options, n)) if before else left


def _add(
    job: Job,
    cell: Cell,
    left: Mapping[str, int],
    times: Mapping[str, Mapping[str, float]],
    before: tuple[str, ...] = (),
) -> None:
    """Add what is left of a cell to a job."""
    job.left = dict(Counter(job.left) + Counter(left))
    known = times.get(kind_of(cell), {})
    if not known:  # networks on real images take as long as those on as many others
        same_size = [at for kind, at in times.items() if kind.startswith(f"{cell.dataset} {cell.ipc} ")]
        known = {what: at for what, at in same_size[0].items() if what.startswith("network")} if same_size else {}
    new = [network for network in cell.targets or () if network not in before]
    of_kind = [known.get(f"network {network}", known.get("network", 0.0)) for network in new]
    if of_kind:
        known = {**known, "network": sum(of_kind) / len(of_kind)}
    job.seconds += sum(number * known.get(what, 0.0) for what, number in left.items())
    job.memory = max(job.memory, known.get("memory", 0.0))


def kind_of(cell: Cell) -> str:
    """The name of sets that differ in their seed only."""
    return f"{cell.dataset} {cell.ipc} {cell.method}"


def _name(cell: Cell) -> str:
    if cell.ipc is None:
        return slug(cell.dataset)
    return slug(f"{cell.dataset}-ipc{cell.ipc}-{cell.method}-set{cell.seed}")


def _set_name(cell: Cell, options: tasks.Options) -> str:
    """The name of the job that condenses a set, the same for all that are made together. "" for real images."""
    chosen, recipe = choose_recipe(
        cell.method, cell.dataset, cell.ipc or 1, options.budget, cell.seed, options.changes
    )
    if chosen:
        return ""
    if recipe.schedule()[0] > 1:
        return f"{_name(cell)}-sets"
    return slug(f"{cell.dataset}-ipc{cell.ipc}-{recipe.network}-set{cell.seed}") + "-sets"


def _words(cell: Cell) -> list[str]:
    size = [] if cell.ipc is None else ["--ipc", str(cell.ipc), "--seeds", str(cell.seed)]
    return ["--datasets", cell.dataset, "--measures", cell.measure, *size, "--methods", cell.method]


def wall_time(jobs: Sequence[Job], workers: int) -> float:
    """Seconds until the last of these jobs ends, if so many workers take them by priority as soon as they can begin.

    Jobs that are stored, and jobs of unknown time, take none. What a job needs outside of ``jobs`` is there.
    """
    todo = {job.name: job for job in jobs if job.left}
    needs = {name: {need for need in job.needs if need in todo} for name, job in todo.items()}
    then: dict[str, list[str]] = {}
    for name, some in needs.items():
        for need in some:
            then.setdefault(need, []).append(name)
    ready = [(-todo[name].priority, name) for name, some in needs.items() if not some]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + todo[name].seconds, name))
        now, done = heapq.heappop(running)
        for name in then.get(done, ()):
            needs[name].remove(done)
            if not needs[name]:
                heapq.heappush(ready, (-todo[name].priority, name))
    return now


def summary(jobs: Sequence[Job]) -> Iterator[str]:
    """What is stored and what is left of each table, and how long that takes one worker."""
    for table in dict.fromkeys(job.table for job in jobs):
        some = [job for job in jobs if job.table == table]
        left: Counter[str] = sum((Counter(job.left) for job in some), Counter())
        stored = sum(not job.left for job in some)
        words = ", ".join(f"{n} {what}{'s' if n > 1 else ''}" for what, n in left.items())
        todo = f"; left: {words}, {_time_of(some)}" if words else ""
        yield f"{table or 'cells'}: {stored} of {len(some)} jobs are stored{todo}"
    yield f"all: {_time_of(jobs)} of one worker"


def _time_of(jobs: Sequence[Job]) -> str:
    unknown = sum(bool(job.left) and not job.seconds for job in jobs)
    known = f"about {duration(sum(job.seconds for job in jobs))}"
    return known + (f" and {unknown} job{'s' * (unknown > 1)} of unknown time" if unknown else "")


def asked(config: Mapping[str, Any]) -> tuple[list[Cell], tasks.Options]:
    """The cells and options of the engine's configuration, whose values may be words with spaces between them."""

    def words(name: str) -> list[str]:
        return str(config.get(name) or "").split()

    budget = str(config.get("budget", "paper"))
    tables = [part.strip() for part in str(config.get("tables") or "").split(",") if part.strip()]
    results_dir = config.get("results_dir")
    options = tasks.Options(
        budget=budget,
        results_dir=Path(results_dir) if results_dir else None,
        precision=str(config.get("precision", "auto")),
    )
    wanted = Wanted(
        tables=tables,
        datasets=words("datasets"),
        ipc=[int(n) for n in words("ipc")],
        methods=words("methods"),
        seeds=[int(n) for n in words("seeds")],
    )
    return wanted.of(read_lines(config.get("cells") or FILE), BUDGETS[budget].sets), options


def write_plan(config: Mapping[str, Any], folder: Path) -> list[Job]:
    """Plan the jobs, and write them for the processes that do them. Markers of what is left are removed."""
    cells, options = asked(config)
    jobs = jobs_of(cells, options, known_times(folder / "times.json"))
    for job in jobs:
        if job.left:
            (folder / "done" / job.name).unlink(missing_ok=True)
    content = json.dumps({"jobs": [asdict(job) for job in jobs]}, indent=1).encode()
    write_atomically(folder / "plan.json", content)
    return jobs


class Times(msgspec.Struct):
    """times.json: seconds for one set and for one network, and bytes, by `kind_of` a set."""

    device: str
    times: dict[str, dict[str, float]]


def known_times(file: Path) -> dict[str, dict[str, float]]:
    """What was measured before."""
    return read_json(file, Times, advice="measure again")["times"] if file.is_file() else {}


def measured(
    cells: Sequence[Cell], options: tasks.Options, data_dir: str | None, known: Mapping[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Time every kind of set that is not known yet. Sets that are made together count as if alone."""
    found = dict(known)
    for cell in cells:
        key = kind_of(cell)
        if cell.measure != "networks" or cell.method.partition("@")[0] in CORESETS or key in found:
            continue
        try:
            data = load_data(cell.dataset, data_dir=data_dir, progress=False)
        except FileNotFoundError as error:
            print(f"not timed: {error}", flush=True)
            continue
        _, recipe = tasks.set_of(replace(cell, seed=0), options)
        e = estimate(data, recipe, options.device, 1, seconds=4)
        found[key] = {"set": e.seconds_condensing, "network": e.seconds_evaluating, "memory": e.memory_bytes}
        print(
            f"{key}: a set {duration(e.seconds_condensing)}, a network {duration(e.seconds_evaluating)}", flush=True
        )
    return found


def main(folder: str, config: str) -> int:
    """Measure, and write what was found to times.json in a folder."""
    given, file = json.loads(config), Path(folder) / "times.json"
    if given.get("threads"):
        torch.set_num_threads(int(given["threads"]))
    cells, options = asked(given)
    device = device_of(given.get("device"))
    found = measured(cells, replace(options, device=device), given.get("data_dir"), known_times(file))
    write_json(file, {"device": str(device), "times": found})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
