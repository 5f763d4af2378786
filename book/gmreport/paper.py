"""The published numbers: paper.csv, every figure of arXiv 2208.00311, and neighbours.csv, those of related methods.

Columns of paper.csv: claim (a unique id), table ("text" for figures in prose, which stand in Sections
4.4 and 4.5), row, column (as printed, data sets as gmlib spells them), value and std (in `unit`; no std where none is
printed). Cells printed "-" are left out.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from gmlib.checks import choose
from gmlib.runs import work

FILE = Path(__file__).with_name("paper.csv")
TABLES = ("Table 1", "Table 2", "Table 3", "Table 4", "text")

# The paper's names for what gmlib calls otherwise, table by table.
_METHODS = {
    "Table 1": {"intra-class": "DC", "inter-class": "Inter", "interleaved": "Interleaved", "multi-level": "M"},
    "Table 2": {  # multi-level gradients, fixed steps: Section 4.3
        "d1": "M", "d2": "multi,d2,fixed", "d3": "multi,d3,fixed", "100d4": "multi,100*d4,fixed",
        "d1 + d2": "MD", "d1 + d3": "multi,d1+d3,fixed", "d1 + 100d4": "multi,d1+100*d4,fixed",
    },
    "Table 4": {  # by source network; VGG and ResNet have batch norm as sources, not as targets
        "ConvNet": "MD", "MLP": "MD@mlp", "LeNet": "MD@lenet", "AlexNet": "MD@alexnet",
        "VGG": "MD@vgg11bn", "ResNet": "MD@resnet18bn",
    },
    # One image per class leaves nothing for O and A to change, so "ours" is MD on Tiny ImageNet. The relative accuracies name
    # no variant; at 50 images per class the figure is that of MDO in Table 3, and of no other column.
    "text": {
        ("1", "baseline"): "DC", ("1", "ours"): "MD", ("relative", "baseline"): "DC", ("relative", "ours"): "MDO",
        ("overfitting", "fixed"): "DC", ("overfitting", "detection"): "intra,d1,overfit",
    },
}  # fmt: skip
_TARGETS = {
    "MLP": "mlp",
    "ConvNet": "convnet",
    "LeNet": "lenet",
    "AlexNet": "alexnet",
    "VGG": "vgg11",
    "ResNet": "resnet18",
}


def published(table: str) -> pd.DataFrame:
    """The rows of one table: the file's columns, then how gmlib spells the run that each figure is of.

    Further columns: dataset; ipc, images per class (Int64); method, as `Recipe.method` gives it, a coreset's name, or "whole"
    for the whole training set; network, which was trained on the set. They are missing where the paper's figure has none, as
    ipc has of the whole training set.
    table: a name in TABLES. Raises ValueError for another, listing those.
    """
    choose(dict.fromkeys(TABLES), "table", table)
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


def stand_ins(table: str, results: pd.DataFrame) -> dict[tuple[str, int], str]:
    """`gmlib.runs.work.stand_ins` of results with the columns dataset, ipc and method. ValueError for an unknown table."""
    choose(dict.fromkeys(TABLES), "table", table)
    return work.stand_ins(table, results[["dataset", "ipc", "method"]].itertuples(index=False, name=None))


def neighbours() -> pd.DataFrame:
    """Published test accuracy of related methods on a ConvNet of three blocks: method, venue, dataset, ipc, value (percent).

    The figures are as later papers quote them, each by its own protocol: context, not a comparison.
    """
    return pd.read_csv(FILE.with_name("neighbours.csv"))
