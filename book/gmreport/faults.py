"""What `make faults` found: how often faults, kills and bad inputs lost something or went unnoticed."""

from __future__ import annotations

import os
from typing import Annotated, Any

import msgspec
import pandas as pd
from IPython.display import Markdown

from gmlib.files import as_path, read_json
from gmlib.runs.shipped import results_folder

from .style import counted, md
from .tables import Table, filled

Count = Annotated[int, msgspec.Meta(ge=0)]


class Row(msgspec.Struct):
    """Trials of one kind.

    Attributes
    ----------
    kind : str
        For instance "kill".
    what : str
        What it was done to.
    tried, held, lost, silent, traceback, leftovers : int
        How many trials there were; and how many of them ended as they should, lost something that was stored, gave
        another result without a word, ended in a traceback, or left files or processes behind.
    """

    kind: str
    what: str
    tried: Count
    held: Count
    lost: Count
    silent: Count
    traceback: Count
    leftovers: Count


class Faults(msgspec.Struct):
    """The file that `make faults` writes."""

    machine: dict[str, Any]
    commit: str | None
    rows: Annotated[list[Row], msgspec.Meta(min_length=1)]
    seconds: float


COUNTS = ["tried", "held", "lost", "silent", "traceback", "leftovers"]
HEADINGS = dict(zip(COUNTS, ["tried", "held", "lost", "silently different", "traceback", "leftovers"], strict=True))


def stored_faults(path: str | os.PathLike | None = None) -> dict | None:
    """The result of `make faults`.

    Parameters
    ----------
    path
        None for results/faults.json in the repository.

    Returns
    -------
    dict or None
        None if there is no such file.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    path = results_folder() / "faults.json" if path is None else as_path(path)
    try:
        return read_json(path, Faults, advice="run `make faults` again", sealed=False)
    except FileNotFoundError:
        return None


def faults_table(stored: dict, each: bool = True) -> Table:
    """The trials with their counts, and their sums.

    Parameters
    ----------
    stored
        From `stored_faults`.
    each
        A line for each thing that it was done to; False gives one for each kind.
    """
    found = pd.DataFrame(stored["rows"])
    cells = {}
    for at, counts in found.groupby(["kind", "what"] if each else ["kind"], sort=False)[COUNTS].sum().iterrows():
        name = ": ".join(at) if isinstance(at, tuple) else at
        cells |= {(name, HEADINGS[column]): [f"{n}"] for column, n in counts.items()}
    cells |= {("all", HEADINGS[column]): [f"{n}"] for column, n in found[COUNTS].sum().items()}
    rows = list(dict.fromkeys(row for row, _ in cells))
    machine = ", ".join(f"{name} {value}" for name, value in stored["machine"].items())
    minutes, commit = f"{stored['seconds'] / 60:.0f} minutes", stored["commit"] or "unknown"
    caption = f"Trials and how they ended, in {minutes}; commit {commit}; {machine}."
    return filled(rows, cells, caption, "what was done")


def faults_sentence(stored: dict | None) -> Markdown:
    """How many trials held, and what happened in the others. ``stored`` is from `stored_faults`."""
    if stored is None:
        return Markdown("**The faults were not tried yet:** `make faults` tries them and writes results/faults.json.")
    sums = pd.DataFrame(stored["rows"])[COUNTS].sum()
    kinds = md(", ".join(dict.fromkeys(row["kind"] for row in stored["rows"])))
    return Markdown(
        f"**{sums['held']} of {counted(sums['tried'], 'trial')} ended as they should** ({kinds}). "
        f"{sums['lost']} lost something that was stored, {sums['silent']} gave another result without a word, "
        f"{sums['traceback']} ended in a traceback, and {sums['leftovers']} left files or processes behind."
    )
