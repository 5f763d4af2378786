"""Stored runs of the benchmarks (see benchmarks/README.md): what they measured, and which aims are kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Annotated, Any

import msgspec
from IPython.display import Markdown

from gmlib.files import read_json
from gmlib.runs.shipped import results_folder

from .style import counted
from .tables import Table, filled

Stored = Mapping[str, Mapping[str, Any]]  # name of the file -> what benchmarks/bench.py wrote


class Environment(msgspec.Struct):
    """Of a stored run."""

    device: str
    device_name: str
    threads: int
    torch: str
    gmlib: str
    commit: str | None


class Machine(msgspec.Struct):
    """Its speed: operations per second by precision, and bytes per second."""

    products: dict[str, float]
    copying: float


class OneRun(msgspec.Struct):
    """When it was, and on which machine."""

    date: str
    machine: Machine


class Settings(msgspec.Struct):
    """What was asked for."""

    precision: str


class Benchmarks(msgspec.Struct):
    """A file that benchmarks/bench.py wrote."""

    environment: Environment
    settings: Settings
    runs: Annotated[list[OneRun], msgspec.Meta(min_length=1)]
    cases: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Aim:
    """A bound for every case with a matching name, on one kind of device.

    Attributes
    ----------
    what : str
        What is measured, in plain words.
    device : str
        "cpu" or "cuda".
    cases : str
        Pattern of the names of cases.
    number : str
        Which number of a case: "ratio" to plain, "fraction_of_ceiling", or "ours" in seconds.
    bound : float
        The least value, or for "ours" the largest.
    """

    what: str
    device: str
    cases: str
    number: str
    bound: float

    @property
    def goal(self) -> str:
        """The bound in words."""
        return ("at most " if self.number == "ours" else "at least ") + self.format(self.bound)

    def format(self, value: float) -> str:
        """A value with its unit."""
        if self.number == "ratio":
            return f"{value:.3g} times as fast"
        return f"{value:.3g} s" if self.number == "ours" else f"{100 * value:.0f} %"

    def is_kept(self, value: float) -> bool:
        """True if a value is on the right side of the bound."""
        return value <= self.bound if self.number == "ours" else value >= self.bound


AIMS = (
    Aim("a matching step, against plain", "cpu", "step/*", "ratio", 1.3),
    Aim("evaluation, against plain", "cpu", "evaluate/*", "ratio", 1.5),
    Aim("a matching step, 1 image per class, against plain", "cuda", "step/*/ipc1", "ratio", 10),
    Aim(
        "an outer iteration of MDA, 10 images per class, against plain DC",
        "cuda",
        "outer/MDA-vs-DC/*/ipc10",
        "ratio",
        25,
    ),
    Aim("evaluation of 50 networks, against plain", "cuda", "evaluate/*", "ratio", 25),
    Aim("the pass over real images, of the ceiling", "cuda", "pass/*", "fraction_of_ceiling", 0.5),
    Aim("a set of CIFAR-10's size, 1 image per class", "cuda", "set/*/ipc1", "ours", 20),
    Aim("a set of CIFAR-10's size, 10 images per class", "cuda", "set/*/ipc10", "ours", 300),
)


def stored_benchmarks(folder: str | os.PathLike | None = None) -> dict[str, dict[str, Any]]:
    """The stored runs in a folder, by the name of their file without .json.

    Parameters
    ----------
    folder
        None for results/benchmarks/ in the repository.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or if the repository's results are not here.
    ValueError
        If a file is damaged.
    """
    return read_stored("benchmarks", folder, Benchmarks)


def read_stored(place: str, folder: str | os.PathLike | None, kind: type) -> dict[str, dict[str, Any]]:
    """The JSON files of a kind in a folder, by name without .json. None is ``place`` in the results."""
    root = results_folder(folder) if folder else results_folder() / place
    files = sorted(root.glob("*.json"))
    return {path.stem: read_json(path, kind, advice="measure again", sealed=False) for path in files}


def benchmarks_table(stored: Mapping[str, Any]) -> Table:
    """Every case of one run. The caption has the machine and the versions."""
    cells: dict[tuple[str, str], list[str]] = {}
    for name, case in stored["cases"].items():
        if "not_run" in case or "failed" in case:
            outcome, key = ("not run", "not_run") if "not_run" in case else ("failed", "failed")
            cells[name, "plain / ours"] = [f"{outcome}: {case[key]}"]
            continue
        ours, plain = (_megabytes(case[f"peak_memory_bytes_{side}"]) for side in ("ours", "plain"))
        cells[name, "plain / ours"] = [f"{case['ratio']:.2f}"]
        cells[name, "plain"] = [f"{case['plain']:.3g} s"]
        cells[name, "ours"] = [f"{case['ours']:.3g} s", case["unit"]]
        cells[name, "of the ceiling"] = [f"{100 * case['fraction_of_ceiling']:.1f} %"]
        cells[name, "peak memory"] = [ours, f"plain {plain}"]
        cells[name, "n"] = [str(case["repeats"])]
    return filled(list(stored["cases"]), cells, f"{measured_on(stored)}.", "case", empty="")


def _megabytes(n_bytes: float | None) -> str:
    return "?" if n_bytes is None else f"{n_bytes / 1e6:.0f} MB"


def measured_on(stored: Mapping[str, Any]) -> str:
    """Device, threads, precision, versions, speed of the machine and days of a run."""
    environment = stored["environment"]
    machines = [run["machine"] for run in stored["runs"]]

    def rate(values: list[float]) -> str:
        return _span(f"{value / 1e9:.0f}" for value in (min(values), max(values)))

    products = [
        f"{precision} products {rate([m['products'][precision] for m in machines])} GFLOP/s"
        for precision in machines[0]["products"]
    ]
    days = sorted(run["date"][:10] for run in stored["runs"])
    return (
        f"{environment['device_name']} ({environment['device']}), {counted(environment['threads'], 'CPU thread')}, "
        f"{stored['settings']['precision']}; {', '.join(products)}, "
        f"copying {rate([m['copying'] for m in machines])} GB/s; "
        f"torch {environment['torch']}, gmlib {environment['gmlib']} at commit {environment['commit']}; "
        f"{_span((days[0], days[-1]))}"
    )


def _span(ends: Iterable[str]) -> str:
    """ "1 to 3", or "1" if both ends are the same."""
    return " to ".join(dict.fromkeys(ends))


def aims_table(runs: Stored) -> Table:
    """Each of AIMS with what the runs measured, and whether every case of every run keeps it."""
    cells, rows = {}, []
    for aim in AIMS:
        row = f"{'CPU' if aim.device == 'cpu' else 'GPU'}: {aim.what}"
        rows.append(row)
        found = _measured(aim, runs)
        lines = [
            f"{name}: {_span(map(aim.format, (min(values), max(values))))}, {counted(len(values), 'case')}"
            for name, values in found.items()
        ]
        kept = [aim.is_kept(value) for values in found.values() for value in values]
        outcome = "yes" if all(kept) else f"in {sum(kept)} of {len(kept)} cases"
        cells[row, "aim"] = [aim.goal]
        cells[row, "measured"] = lines or ["not measured yet"]
        cells[row, "kept"] = [outcome if kept else ""]
    return filled(rows, cells, "The aims of the library, and what the stored runs measured.", "what")


def aims_sentence(runs: Stored) -> Markdown:
    """How many of AIMS are kept, missed, or not measured yet."""
    if not runs:
        return Markdown("**The benchmarks were not run yet**, so none of the aims is measured.")
    outcomes = [[aim.is_kept(value) for values in _measured(aim, runs).values() for value in values] for aim in AIMS]
    kept = sum(bool(each) and all(each) for each in outcomes)
    measured = sum(map(bool, outcomes))
    unknown = f"{len(AIMS) - measured} not measured yet"
    return Markdown(
        f"**Of {len(AIMS)} aims {kept} are kept in every case that was measured, {measured - kept} are not, "
        f"{unknown}.**"
    )


def _measured(aim: Aim, runs: Stored) -> dict[str, list[float]]:
    """Name of a run on this kind of device -> the number of each matching case. Runs without one are left out."""
    found = {}
    for name, stored in runs.items():
        cases = stored["cases"].items() if stored["environment"]["device"].startswith(aim.device) else ()
        values = [case[aim.number] for each, case in cases if fnmatch(each, aim.cases) and aim.number in case]
        if values:
            found[name] = values
    return found
