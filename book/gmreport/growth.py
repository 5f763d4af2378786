"""How the work grows with more workers: the smoke grid as measured, and the whole paper as added up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from IPython.display import Markdown

from .benchmarks import read_stored
from .style import counted, md, per_class
from .tables import Table, filled

Stored = Mapping[str, Mapping[str, Any]]  # name of the file -> what benchmarks/workflow.py wrote


class Way(msgspec.Struct):
    """How the grid was run. ``per_job`` is None for the one process."""

    workers: int
    seconds: list[float]
    median: float
    per_job: float | None


class Grid(msgspec.Struct):
    """The first of its ways is the one process."""

    cells: str
    jobs: int
    ways: dict[str, Way]


class Group(msgspec.Struct):
    """Some jobs of the paper. ``hours`` is by the number of workers; ``at_most_hours`` is the part of MDO's sets."""

    jobs: int
    sets: int
    networks: int
    worker_hours: float
    hours: dict[str, float]
    at_most_hours: float
    longest_job: str
    longest_job_hours: float
    shortest_possible_hours: float


class Paper(msgspec.Struct):
    """Its groups are "all", and numbers of images per class."""

    figures: int
    figures_of_cells: int
    outer_loops: int
    networks_each: int
    groups: dict[str, Group]
    not_timed: dict[str, int]
    shared: float


class Growth(msgspec.Struct):
    """A file that benchmarks/workflow.py wrote."""

    device: str
    device_name: str
    threads: int
    torch: str
    commit: str | None
    grid: Grid | None = None
    paper: Paper | None = None


def stored_growth(folder: str | os.PathLike | None = None) -> dict[str, dict[str, Any]]:
    """The stored files of benchmarks/workflow.py, by their name without .json.

    Parameters
    ----------
    folder
        None for results/benchmarks/workflow/ in the repository.

    Raises
    ------
    FileNotFoundError
        If the repository's results are not here.
    ValueError
        If a file is damaged.
    """
    return read_stored("benchmarks/workflow", folder, Growth)


def grid_sentence(stored: Stored) -> Markdown:
    """What an engine adds to a job, on each machine."""
    parts = []
    for m in stored.values():
        if m.get("grid"):
            (_, alone), *others = m["grid"]["ways"].items()
            ways = "; ".join(
                f"{md(name)} takes {way['median']:.0f} s, {way['per_job']:.1f} worker-seconds more for each job"
                for name, way in others
            )
            parts.append(
                f"The {m['grid']['jobs']} jobs of the smoke grid take {alone['median']:.0f} s in one process; {ways} "
                f"({md(m['device_name'])})."
            )
    if not parts:
        return Markdown("**The smoke grid has not been measured yet.**")
    return Markdown(
        f"**{' '.join(parts)}** Every job is a process of its own, which starts Python and torch, and the engine "
        "first plans all of them. So an engine pays where jobs take minutes and there is more than one worker."
    )


def grid_table(measured: Mapping[str, Any]) -> Table:
    """Seconds of the smoke grid by the way it is run. ``measured`` is a file with a grid."""
    grid, cells = measured["grid"], {}
    for name, way in grid["ways"].items():
        seconds = way["seconds"]
        cells[name, "workers"] = [str(way["workers"])]
        cells[name, "seconds"] = [
            f"{way['median']:.0f}",
            f"{min(seconds):.0f} to {max(seconds):.0f}, n={len(seconds)}",
        ]
        more = way["per_job"]
        cells[name, "more per job"] = ["" if more is None else f"{more:.1f} s"]
    jobs = counted(grid["jobs"], "job")
    caption = f"The smoke grid, {jobs}: medians of whole processes, each from an empty folder. {_on(measured)}"
    legend = ["More per job: seconds times workers, without those of the one process, divided by the jobs."]
    return replace(filled(list(grid["ways"]), cells, caption, "way"), legend=legend)


def hours_sentence(stored: Stored) -> Markdown:
    """How long the whole paper takes with more workers, on each machine."""
    parts = []
    for m in stored.values():
        if m.get("paper"):
            p = m["paper"]
            every = p["groups"]["all"]
            more = " and ".join(f"{hours_of(h)} with {n}" for n, h in every["hours"].items() if n != "1")
            parts.append(
                f"**By the paper's protocol (K = {p['outer_loops']}, {p['networks_each']} networks on each set) the "
                f"cells take {hours_of(every['worker_hours'])} with one worker, {more}.** They make "
                f"{p['figures_of_cells']} of the paper's {p['figures']} numbers. No number of workers ends before "
                f"{hours_of(every['shortest_possible_hours'])}: one job, {md(every['longest_job'])}, takes "
                f"{hours_of(every['longest_job_hours'])} and cannot be shared (MDO counts the most that it can "
                f"take). A worker is {'one GPU' if m['device'] == 'cuda' else 'one CPU thread'}: "
                f"{md(m['device_name'])}."
            )
    if not parts:
        return Markdown("**The time of the whole paper has not been added up yet.**")
    if not any(m.get("paper") and m["device"] == "cuda" for m in stored.values()):
        parts.append("No GPU was measured, so there are no GPU-hours here.")
    return Markdown(" ".join(parts))


def hours_table(measured: Mapping[str, Any]) -> Table:
    """Hours of the paper's cells by the number of workers. ``measured`` is a file with a paper."""
    paper, cells, rows = measured["paper"], {}, []
    for name, group in paper["groups"].items():
        row = "all" if name == "all" else per_class(int(name))
        rows.append(row)
        for n, hours in group["hours"].items():
            cells[row, counted(int(n), "worker")] = [hours_of(hours)]
        if group["at_most_hours"]:
            cells[row, counted(1, "worker")].append(f"MDO: {hours_of(group['at_most_hours'])}")
        cells[row, "jobs"] = [
            str(group["jobs"]),
            counted(group["sets"], "set"),
            f"{group['networks']:,} networks",
        ]
    missing = ", ".join(f"{n} {what}" for what, n in paper["not_timed"].items())
    legend = [
        "Added up from pieces that were timed on random images of the same sizes: an update of S, a step of theta, a "
        "look at the losses, an epoch, a test. Jobs start by priority, as soon as what they need is there. Each row "
        "is for its jobs alone.",
        "SVHN counts as CIFAR10, and sets of FashionMNIST as those of MNIST: their images have the same size. "
        "CIFAR100 counts as CIFAR10 with ten times the classes. MDO counts the most "
        "that it can take, with all steps of theta up to its bound.",
        f"Sets made together share {paper['shared']:.0%} of the time of one of them. That was measured on grey "
        "images, and is taken for all."
        if paper["shared"]
        else "Each set counts as if made alone.",
        *([f"Not timed, and counted as nothing: {missing}."] if missing else []),
    ]
    caption = f"The whole paper, with nothing stored yet. {_on(measured)}"
    return replace(filled(rows, cells, caption, "images per class"), legend=legend)


def hours_of(hours: float) -> str:
    """Such as "0.5 h", "12 h", "3 days" or "1.2 years"."""
    for unit, name in ((24 * 365.25, "years"), (24.0, "days")):
        if hours >= 2 * unit:
            value = hours / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:,.0f} {name}"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def _on(measured: Mapping[str, Any]) -> str:
    return (
        f"{measured['device_name']}, {counted(measured['threads'], 'thread')} for each worker; torch "
        f"{measured['torch']}, gmlib at commit {measured['commit']}."
    )
