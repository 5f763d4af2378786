"""The published numbers, each with its table: paper.csv, transcribed from arXiv 2208.00311.

Columns of the file: claim (a unique id), table, row, column (as printed), value and std (in `unit`).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FILE = Path(__file__).with_name("paper.csv")

# The paper's names for what METHODS calls otherwise.
_METHODS = {"intra-class": "DC", "inter-class": "Inter", "interleaved": "Interleaved", "multi-level": "M"}


def published(table: str) -> pd.DataFrame:
    """The rows of one table: the file's columns, with dataset, ipc (images per class) and method as gmlib spells them.

    table: "Table 1". Raises ValueError for a table that paper.csv does not hold, listing those it does.
    """
    numbers = pd.read_csv(FILE, dtype={"value": float, "std": float})
    known = sorted(numbers["table"].unique())
    if table not in known:
        raise ValueError(f"unknown table {table!r}: paper.csv holds {', '.join(known)}")
    rows = numbers[numbers["table"] == table].reset_index(drop=True)
    cell = rows["row"].str.extract(r"^(?P<dataset>\S+) (?P<ipc>\d+)$")
    rows["dataset"], rows["ipc"] = cell["dataset"], cell["ipc"].astype(int)
    rows["method"] = rows["column"].map(_METHODS)
    return rows
