"""What each folder of committed results was made with, and the table of it in results/README.md."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..checks import require

require("pandas", "analysis")

import pandas as pd

from .layout import read_evaluation, read_json
from .shipped import FOLDER, MEASUREMENTS, changes_in, files_of, order_key, probe_folders, read_record, spell_changes
from .work import methods_of

MADE_WITH = ["folder", "sets", "networks", "seconds", "device", "commit", "command"]
BEGIN, END = (
    "<!-- runs: written by workflow/campaign.py, not by hand -->",
    "<!-- end of runs -->",
)  # in results/README.md


def made_with(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """One row for each folder <dataset>/ipc<N> and <dataset>/whole, and those of probes, read from the files in it.

    Columns: folder, relative; sets; networks trained on them; seconds that took, both phases and what was measured beside them;
    device; commit ("+": with changes that were not committed; several, where runs went on at another); command, which makes it.
    """
    root = Path(results_dir or FOLDER)
    rows = [row for place in (root, *probe_folders(root)) for row in _made_with(root, place)]
    return pd.DataFrame(rows, columns=MADE_WITH)


def _made_with(root: Path, place: Path) -> list[dict[str, Any]]:
    """Of the runs in one place that is laid out as results/: the root itself, or a probe."""
    rows: list[dict[str, Any]] = []
    found: dict[Path, dict[Path, None]] = {}
    for name in ("run.json", *MEASUREMENTS):
        for path in files_of(place, f"*/ipc*/*/set*/{name}"):
            found.setdefault(path.parents[2], {})[path.parent] = None
    for path in files_of(place, "*/whole/accuracy-*.json"):
        found[path.parent] = {path.parent: None}
    for at, runs in found.items():
        files = [path for run in runs for path in sorted(run.glob("accuracy-*.json"))]
        made_by = {run: read_record(run) for run in runs if (run / "run.json").is_file()}
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
        change = "" if place == root else f" --change {spell_changes(changes_in(records[0]))}"
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


def _tables(
    methods: Collection[str], networks: Collection[str], measured: Collection[str], ipc: int | None
) -> list[str]:
    """The campaign's names of those tables of the paper, the first before the others, that these runs are of."""
    if ipc is None:
        return ["Whole data"]
    left, found = set(methods), []
    for name in ("Table 3", "Table 2", "Table 1"):
        if theirs := left & methods_of(name):
            found.append(name)
            left -= theirs
    transfer = any("@" in method for method in methods) or set(networks) - {"convnet"}
    return found + [of for name, of in MEASUREMENTS.items() if name in measured] + ["Table 4"] * bool(transfer)


def _command(
    budget: str, dataset: str, ipc: int | None, tables: Collection[str], methods: Collection[str], change: str
) -> str:
    at, parts = "" if ipc is None else f' IPC="{ipc}"', [f'"{name}"' for name in tables]
    spelt = [f'"{m}"' if "*" in m else m for m in sorted(methods, key=order_key)]  # the shell would look for files
    only = f" --methods {' '.join(spelt)}" if spelt else ""
    return (
        f"make results BUDGET={budget} DATASETS=\"{dataset}\"{at} CAMPAIGN='--tables {' '.join(parts)}{only}{change}'"
    )


def readme(text: str, results_dir: str | os.PathLike | None = None) -> str:
    """The text of a README with what stands between its two markers, BEGIN and END, made anew from `made_with`.

    Raises ValueError where a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(
            f"the README needs the two lines {BEGIN!r} and {END!r}: what was run is written between them"
        )
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
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )
