"""The published numbers: paper.csv has every number of arXiv 2208.00311, neighbours.csv those of related methods.

Columns of paper.csv: claim (a unique id), table ("text" for numbers in the prose of Sections 4.4 and 4.5), row,
column (as printed, with the data sets spelled as in gmlib), value and std (in ``unit``; no std where none is
printed). Cells printed as "-" are left out.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pandas as pd

from gmlib import where
from gmlib.checks import choose

FILE = Path(__file__).with_name("paper.csv")
TABLES = ("Table 1", "Table 2", "Table 3", "Table 4", "text")

# The paper's names for our methods, table by table.
_METHODS = {
    "Table 1": {"intra-class": "DC", "inter-class": "Inter", "interleaved": "Interleaved", "multi-level": "M"},
    "Table 2": {  # multi-level gradients, fixed steps: Section 4.3
        "d1": "M",
        "d2": "multi,d2,fixed",
        "d3": "multi,d3,fixed",
        "100d4": "multi,100*d4,fixed",
        "d1 + d2": "MD",
        "d1 + d3": "multi,d1+d3,fixed",
        "d1 + 100d4": "multi,d1+100*d4,fixed",
    },
    "Table 4": {  # by source network; VGG and ResNet have batch norm as sources, not as targets
        "ConvNet": "MD",
        "MLP": "MD@mlp",
        "LeNet": "MD@lenet",
        "AlexNet": "MD@alexnet",
        "VGG": "MD@vgg11bn",
        "ResNet": "MD@resnet18bn",
    },
    # With one image per class O and A change nothing, so "ours" is MD on Tiny ImageNet. The relative accuracies name
    # no variant: at 50 images per class the number fits MDO in Table 3 and no other column.
    "text": {
        ("1", "baseline"): "DC",
        ("1", "ours"): "MD",
        ("relative", "baseline"): "DC",
        ("relative", "ours"): "MDO",
        ("overfitting", "fixed"): "DC",
        ("overfitting", "detection"): "intra,d1,overfit",
    },
}
_TARGETS = {
    "MLP": "mlp",
    "ConvNet": "convnet",
    "LeNet": "lenet",
    "AlexNet": "alexnet",
    "VGG": "vgg11",
    "ResNet": "resnet18",
}
# Data sets that were not available on the machines behind results/.
_NOT_AVAILABLE = dict.fromkeys(("SVHN", "CIFAR100", "TinyImageNet"), "data not available")
NO_RUN = "no stored run"
LACKS = "no run by the paper's protocol of"  # some of the runs of a cell
_MIN_DIGITS = {"percent": 1, "percent of whole": 0, "percent of time": 0, "steps": 0}  # after the decimal point


def published(table: str) -> pd.DataFrame:
    """Rows of one table of the paper, with the run that each number belongs to.

    Parameters
    ----------
    table
        A name in TABLES.

    Returns
    -------
    DataFrame
        The columns of paper.csv, then dataset; ipc, images per class (Int64); method, as `Recipe.method` spells it,
        the name of a coreset, or "whole" for the whole training set; network, the one trained on the set. A value is
        missing where it does not apply, such as ipc for the whole training set.

    Raises
    ------
    ValueError
        If the table is unknown.
    """
    choose(dict.fromkeys(TABLES), "table", table)
    return _published(table).copy()


def order_of_cells() -> dict[tuple[str, int], int]:
    """The data sets and images per class of Table 3, each with its place in it."""
    printed = published("Table 3").dropna(subset="ipc")
    cells = printed[["dataset", "ipc"]].drop_duplicates().itertuples(index=False, name=None)
    return {(dataset, int(ipc)): i for i, (dataset, ipc) in enumerate(cells)}


@cache
def _published(table: str) -> pd.DataFrame:
    numbers = pd.read_csv(FILE, dtype={"value": float, "std": float})
    rows = numbers[numbers["table"] == table].reset_index(drop=True)
    if table == "Table 4":
        rows["dataset"], rows["ipc"] = "MNIST", 1
        rows["method"] = rows["row"].map(_METHODS[table])
        rows["network"] = rows["column"].map(_TARGETS)
    else:
        cell = rows["row"].str.extract(r"^(?P<dataset>\S+) (?P<ipc>\d+|whole)")
        rows["dataset"], rows["ipc"] = cell["dataset"], pd.to_numeric(cell["ipc"], errors="coerce")
        rows["method"] = rows["column"]  # as Table 3 prints it
        if table == "text":
            kind = rows["row"].str.split().str[-1]
            rows["method"] = [_METHODS[table].get(key) for key in zip(kind, rows["column"], strict=True)]
        elif table in _METHODS:
            rows["method"] = rows["column"].map(_METHODS[table])
        rows["network"] = "convnet"
    return rows.astype({"ipc": "Int64"})


def substitutes(table: str, results: pd.DataFrame) -> dict[tuple[str, int], str]:
    """Other data sets on which a table was run, if the paper has that table for one data set only.

    Parameters
    ----------
    table
        A name in TABLES.
    results
        Columns dataset, ipc and method. May be empty.

    Returns
    -------
    dict
        (dataset, ipc) of a run -> the data set of the paper's table.

    Raises
    ------
    ValueError
        If the table is unknown.
    """
    choose(dict.fromkeys(TABLES), "table", table)
    if table == "text":
        return {}
    printed = _published(table)
    here = printed["dataset"].unique()
    if len(here) > 1:
        return {}
    others = set().union(*(_published(name)["method"] for name in TABLES[:-1] if name != table))
    own = set(printed["method"]) - others
    rows = results[
        results["method"].isin(own) & results["ipc"].isin(printed["ipc"]) & (results["dataset"] != here[0])
    ]
    return {(row.dataset, row.ipc): here[0] for row in rows.itertuples()}


def why_not_run(dataset: str, ipc: int, results: pd.DataFrame) -> str:
    """Why a number of the paper has no run among these results."""
    if not pd.isna(ipc) and ipc not in where.FIXED:
        return "the paper gives no schedule for this many images per class"
    if dataset in _NOT_AVAILABLE and dataset not in set(results["dataset"]):
        return _NOT_AVAILABLE[dataset]
    return NO_RUN


def tolerance(value: float, std: float, unit: str = "percent") -> float:
    """Two standard deviations of a printed number, but at least half a unit of its last digit."""
    return max(0.0 if math.isnan(std) else 2 * std, 0.5 * 10 ** -decimals(value, unit))


def decimals(value: float, unit: str = "percent") -> int:
    """Digits after the decimal point of a printed number."""
    return max(_MIN_DIGITS[unit], len(f"{value:g}".partition(".")[2]))


def neighbours() -> pd.DataFrame:
    """Published test accuracy of related methods on a ConvNet of three blocks.

    Later papers quote these numbers, and each has its own protocol: they give context, not a comparison.

    Returns
    -------
    DataFrame
        Columns method, venue, dataset, ipc, value (percent).
    """
    return pd.read_csv(FILE.with_name("neighbours.csv"))
