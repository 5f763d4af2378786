"""How each folder of results was made, and the table of it in results/README.md."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..checks import as_list, require

require("pandas", "analysis")

import pandas as pd

from ..files import read_json
from .cells import FILE, methods_of, read_lines
from .layout import MadeWith, StoredTable, Timed, evaluation_from_json, read_accuracies, read_record
from .shipped import (
    MEASUREMENTS,
    changes_in,
    files_of,
    order_key,
    probe_folders,
    results_folder,
    spell_changes,
)

COLUMNS = ["folder", "sets", "networks", "seconds", "device", "commit", "command"]

# The marks in results/README.md. The text between them is replaced.
BEGIN = "<!-- runs: written by gmlib run, not by hand -->"
END = "<!-- end of runs -->"


def made_with(results_dir: str | os.PathLike | None = None) -> pd.DataFrame:
    """One row for each folder <dataset>/ipc<N> and <dataset>/whole of results and of probes, read from its files.

    Returns
    -------
    DataFrame
        Columns folder (relative); sets and networks, their numbers; seconds for condensing, training networks and
        measurements; device; commit, or several if runs were continued at another ("+": with changes that were
        not committed); command that makes the contents of the folder.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.
    """
    root = results_folder(results_dir)
    rows = [row for place in (root, *probe_folders(root)) for row in _made_with(root, place)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _made_with(root: Path, place: Path) -> list[dict[str, Any]]:
    """The rows of one place that is laid out like results/: the root itself, or a probe."""
    runs_in: dict[Path, dict[Path, None]] = {}
    for name in ("run.json", *MEASUREMENTS):
        for path in files_of(place, f"*/ipc*/*/set*/{name}"):
            runs_in.setdefault(path.parents[2], {})[path.parent] = None
    for path in files_of(place, "*/whole/accuracy-*.json"):
        runs_in[path.parent] = {path.parent: None}
    rows = []
    for folder, runs in runs_in.items():
        accuracies = [path for run in runs for path in sorted(run.glob("accuracy-*.json"))]
        made_by = {run: read_record(run) for run in runs if (run / "run.json").is_file()}
        records = list(made_by.values())
        contents = [read_accuracies(path, made_by.get(path.parent, {}).get("set")) for path in accuracies]
        trained = [evaluation_from_json(content) for content in contents]
        measured = [path for name in MEASUREMENTS for run in runs for path in run.glob(name)]
        stored = [*records, *contents, *(read_json(path, StoredTable, Timed, MadeWith) for path in measured)]
        ipc = None if folder.name == "whole" else int(folder.name.removeprefix("ipc"))
        methods = {record["method"] for record in records}
        tables = _tables(methods, {e.network for e in trained}, {path.name for path in measured}, ipc)
        if ipc is not None:
            methods |= {run.parent.name for run in runs if run not in made_by}  # Section 5's control has no set
        # Runs that chose for themselves are continued by "auto", which is the default.
        precisions = {record["recipe"].get("precision") for record in records} - {None}
        changes = {} if place == root else changes_in(records[0], place)
        row = {
            "folder": folder.relative_to(root).as_posix(),
            "sets": len(records),
            "networks": sum(e.n for e in trained),
            "seconds": math.fsum(part["seconds"] for part in stored),
            "device": _listed(_device(part) for part in stored),
            "commit": _listed(commit for part in stored for commit in (part["commit"] or "unknown").split(", ")),
            "command": _command(
                budget="paper" if folder.parents[1] == place else folder.parents[1].name,
                dataset=records[0]["recipe"]["dataset"] if records else folder.parent.name,
                ipc=ipc,
                tables=tables,
                methods=methods,
                precision=precisions.pop() if len(precisions) == 1 and "precision" not in changes else "auto",
                changes=[spell_changes({name: value}) for name, value in sorted(changes.items())],
            ),
        }
        rows.append(row)
    return rows


def _tables(
    methods: Collection[str], networks: Collection[str], measured: Collection[str], ipc: int | None
) -> list[str]:
    """The tables whose cells make these runs, as few as possible."""
    if ipc is None:
        return ["Whole data"]
    left, lines = set(methods), read_lines() if FILE.is_file() else []  # a wheel comes without that file
    found = []
    for name in ("Table 3", "Table 2", "Table 1"):
        if in_table := left & methods_of(name, lines):
            found.append(name)
            left -= in_table
    found += [section for name, section in MEASUREMENTS.items() if name in measured]
    if any("@" in method for method in methods) or set(networks) - {"convnet"}:
        found.append("Table 4")
    return found


def _command(
    budget: str,
    dataset: str,
    ipc: int | None,
    tables: Collection[str],
    methods: Collection[str],
    precision: str,
    changes: Collection[str],
) -> str:
    """A line for the shell."""
    words = [".venv/bin/gmlib", "run", "--budget", budget, "--datasets", dataset]
    words += [] if ipc is None else ["--ipc", str(ipc)]
    words += ["--tables", *tables]
    words += ["--methods", *sorted(methods, key=order_key)] if methods else []
    words += [] if precision == "auto" else ["--precision", precision]
    words += ["--change", *changes] if changes else []
    return shlex.join(words)


def readme(text: str, results_dir: str | os.PathLike | None = None) -> str:
    """The text of a README with the part between BEGIN and END replaced by the table of `made_with`.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a mark is missing or a file is damaged.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(
            f"the README lacks {BEGIN!r} or {END!r}: add both lines, and the table is written between them"
        )
    lines = ["| folder | sets | networks | time | device | commit | command |", "| --- " * 7 + "|"]
    for r in made_with(results_dir).itertuples():
        folder, device, commit, command = map(in_markdown, (r.folder, r.device, r.commit, r.command))
        cells = [f"<code>{folder}</code>", r.sets, r.networks, _duration(r.seconds)]
        cells += [device, commit, f"<code>{command}</code>"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    body = "\n".join(lines) if len(lines) > 2 else "No run is here yet."
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def in_markdown(text: object) -> str:
    """A name in Markdown, so that it is shown as it is.

    Everything written into Markdown from a file or from a caller goes through this function: it may hold HTML, links
    or the marks of Markdown. Line breaks become spaces.

    Parameters
    ----------
    text : object
        It is shown as ``str(text)``.

    Returns
    -------
    str
        With a numeric character reference for each mark. Not for the inside of backticks.
    """
    line = " ".join(str(text).split())
    marks = r"[\\`*{}\[\]<>|$&~]|(?<![^\W_])_|_(?![^\W_])"  # _ means nothing inside a word
    line = re.sub(marks, lambda mark: f"&#{ord(mark[0])};", line)
    starts = r"\A\d+[.)](?=\s|\Z)|\A[^\w\s&.,/'\"]"  # of a list, a heading, a rule or a comment
    return re.sub(starts, lambda mark: f"{mark[0][:-1]}&#{ord(mark[0][-1])};", line)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(set(words)))


def _device(part: dict[str, Any]) -> str:
    if part["device"] != "cpu":
        return part["device_name"]
    threads = as_list(part["threads"])
    return f"{part['device_name']}, {' then '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
