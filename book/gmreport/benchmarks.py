"""Stored runs of the benchmarks (see benchmarks/README.md): what they measured, and which of the library's aims they bear out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from IPython.display import Markdown

from gmlib.runs.layout import read_json
from gmlib.runs.provenance import HOME

from .style import counted
from .tables import Table, filled

Stored = Mapping[str, Mapping[str, Any]]  # name of the file -> what benchmarks/bench.py wrote


@dataclass(frozen=True)
class Aim:
    """A bound that every case whose name fits `cases` is to keep on a kind of device."""

    what: str
    device: str  # cpu or cuda
    cases: str
    number: str  # of a case: "ratio" to plain, "fraction_of_ceiling", or "ours" in seconds
    bound: float

    @property
    def asked(self) -> str:
        return ("at most " if self.number == "ours" else "at least ") + self.said(self.bound)

    def said(self, value: float) -> str:
        return {"ratio": f"{value:.3g} times as fast", "ours": f"{value:.3g} s"}.get(
            self.number, f"{100 * value:.0f} %"
        )

    def kept(self, value: float) -> bool:
        return value <= self.bound if self.number == "ours" else value >= self.bound


AIMS = (
    Aim("a matching step, beside plain", "cpu", "step/*", "ratio", 1.3),
    Aim("evaluation, beside plain", "cpu", "evaluate/*", "ratio", 1.5),
    Aim("a matching step, 1 image per class, beside plain", "cuda", "step/*/ipc1", "ratio", 10),
    Aim(
        "an outer iteration of MDA, 10 images per class, beside plain DC",
        "cuda",
        "outer/MDA-beside-DC/*/ipc10",
        "ratio",
        25,
    ),
    Aim("evaluation of 50 networks, beside plain", "cuda", "evaluate/*", "ratio", 25),
    Aim("the pass over real images, of the ceiling", "cuda", "pass/*", "fraction_of_ceiling", 0.5),
    Aim("a set of CIFAR-10's size, 1 image per class", "cuda", "set/*/ipc1", "ours", 20),
    Aim("a set of CIFAR-10's size, 10 images per class", "cuda", "set/*/ipc10", "ours", 300),
)


def stored_benchmarks(folder: str | os.PathLike | None = None) -> dict[str, dict[str, Any]]:
    """The runs stored in a folder, by the name of their file without .json; None: those committed, results/benchmarks/.

    Empty where there is no such folder. Raises ValueError for a file that is damaged.
    """
    folder = Path(folder or HOME / "results" / "benchmarks")
    return {
        path.stem: read_json(path, "environment", "settings", "runs", "cases")
        for path in sorted(folder.glob("*.json"))
    }


def benchmarks_table(stored: Mapping[str, Any]) -> Table:
    """Every case of one run; what it was measured on is in the caption."""
    cells: dict[tuple[str, str], list[str]] = {}
    for name, case in stored["cases"].items():
        missing = [
            f"{word}: {case[key]}" for word, key in (("not run", "not_run"), ("failed", "failed")) if key in case
        ]
        if missing:
            cells[name, "plain / ours"] = missing
            continue
        cells[name, "plain / ours"] = [f"{case['ratio']:.2f}"]
        cells[name, "plain"], cells[name, "ours"] = (
            [f"{case['plain']:.3g} s"],
            [f"{case['ours']:.3g} s", case["unit"]],
        )
        cells[name, "of the ceiling"] = [f"{100 * case['fraction_of_ceiling']:.1f} %"]
        held = [case[f"peak_memory_bytes_{side}"] for side in ("ours", "plain")]
        ours, beside = ("?" if each is None else f"{each / 1e6:.0f} MB" for each in held)
        cells[name, "peak memory"] = [ours, f"plain {beside}"]
        cells[name, "n"] = [str(case["repeats"])]
    return filled(list(stored["cases"]), cells, f"{measured_on(stored)}.", "case", empty="")


def measured_on(stored: Mapping[str, Any]) -> str:
    """Device, threads, precision, versions, rates of the machine and days of a run."""
    made_on, machines = stored["environment"], [each["machine"] for each in stored["runs"]]

    def rate(values: list[float]) -> str:
        return _span(f"{value / 1e9:.0f}" for value in (min(values), max(values)))

    precisions = machines[0]["products"]
    products = [f"{name} products {rate([m['products'][name] for m in machines])} GFLOP/s" for name in precisions]
    days = sorted(each["date"][:10] for each in stored["runs"])
    return (
        f"{made_on['device_name']} ({made_on['device']}), {counted(made_on['threads'], 'CPU thread')}, "
        f"{stored['settings']['precision']}; {', '.join(products)}, copying {rate([m['copying'] for m in machines])} GB/s; "
        f"torch {made_on['torch']}, gmlib {made_on['gmlib']} at commit {made_on['commit']}; {_span((days[0], days[-1]))}"
    )


def _span(said: Iterable[str]) -> str:
    """What is said of the least and the largest, once where it is the same."""
    return " to ".join(dict.fromkeys(said))


def aims_table(runs: Stored) -> Table:
    """Each of AIMS beside what the runs measured, and whether every case of every run keeps it."""
    cells, names = {}, [f"{'CPU' if aim.device == 'cpu' else 'GPU'}: {aim.what}" for aim in AIMS]
    for aim, row in zip(AIMS, names, strict=True):
        cells[row, "asked"] = [aim.asked]
        found = _measured(aim, runs)
        spans = {name: _span(map(aim.said, (min(values), max(values)))) for name, values in found.items()}
        said = [f"{name}: {span}, {counted(len(found[name]), 'case')}" for name, span in spans.items()]
        cells[row, "measured"] = said or ["not measured yet"]
        kept = [aim.kept(value) for values in found.values() for value in values]
        cells[row, "kept"] = ["yes" if all(kept) else f"in {sum(kept)} of {len(kept)} cases"] if kept else [""]
    return filled(names, cells, "What the library is meant to reach, and what the stored runs measured.", "aim")


def aims_sentence(runs: Stored) -> Markdown:
    """How many of AIMS the stored runs keep, miss, and do not tell of."""
    if not runs:
        return Markdown("**No run of the benchmarks is stored yet**, so none of the aims is measured.")
    outcomes = [[aim.kept(value) for values in _measured(aim, runs).values() for value in values] for aim in AIMS]
    kept, told = sum(bool(each) and all(each) for each in outcomes), sum(map(bool, outcomes))
    unknown = f"{len(AIMS) - told} not measured yet"
    return Markdown(
        f"**Of {len(AIMS)} aims {kept} are kept in every case that was measured, {told - kept} are not, {unknown}.**"
    )


def _measured(aim: Aim, runs: Stored) -> dict[str, list[float]]:
    """Name of a run on such a device -> the number of each case that fits; runs without one are left out."""
    found = {}
    for name, stored in runs.items():
        cases = stored["cases"].items() if stored["environment"]["device"].startswith(aim.device) else ()
        values = [case[aim.number] for each, case in cases if fnmatch(each, aim.cases) and aim.number in case]
        found |= {name: values} if values else {}
    return found
