"""The published numbers against the sentences the paper says about them."""

import pytest

from gmlib import METHODS, paper


def test_table_1_is_whole():
    t = paper.published("Table 1")
    assert len(t) == 32 and t["claim"].is_unique
    assert set(t["dataset"]) == {"MNIST", "FashionMNIST", "SVHN", "CIFAR10"}
    assert set(t["ipc"]) == {1, 10} and set(t["method"]) == {"DC", "Inter", "Interleaved", "M"} <= set(METHODS)
    assert t["value"].between(25, 98).all() and t["std"].between(0.1, 2).all() and (t["unit"] == "percent").all()


def test_some_cells_as_printed():
    t = paper.published("Table 1").set_index(["dataset", "ipc", "method"])
    assert tuple(t.loc[("MNIST", 1, "DC"), ["value", "std"]]) == (91.7, 0.5)
    assert tuple(t.loc[("SVHN", 10, "Inter"), ["value", "std"]]) == (72.7, 1.0)
    assert tuple(t.loc[("CIFAR10", 10, "M"), ["value", "std"]]) == (48.6, 0.5)


def test_in_most_cases_multi_level_is_best():
    """Section 4.2: "in most cases, the multi-level gradient matching achieves the best results"."""
    t = paper.published("Table 1").pivot_table(index=["dataset", "ipc"], columns="method", values="value")
    assert (t["M"] >= t.max(axis=1)).sum() == 6


def test_unknown_table():
    with pytest.raises(ValueError, match=r"unknown table 'Table 9': .*Table 1"):
        paper.published("Table 9")
