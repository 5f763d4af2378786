"""Checks of arguments: numbers of every kind, names, and what messages show of a value."""

import json
from enum import IntEnum
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import refuses

from gmlib.checks import as_list, check_flag, check_number, choose, shown
from gmlib.runtime import progress_bar


class Two(IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    "number", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8), Two.TWO]
)
def test_whole_numbers_of_every_library_are_taken(number):
    taken = check_number("n", number, least=1, below=3, whole=True)
    assert taken == 2 and isinstance(taken, int) and json.dumps(taken) == "2"


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)])
def test_numbers_of_every_library_are_taken(number):
    taken = check_number("lr", number, above=0)
    assert taken == 0.5 and type(taken) is float


NO_NUMBERS = [
    *(None, "1", b"1", True, np.True_, torch.tensor(True), [1], (1,), {}, np.array([1]), torch.ones(2, 2), Path("1")),
    *(float("nan"), float("inf"), np.float32("nan"), 10**400, -(10**5000), 1j, np.datetime64(1, "s"), object(), int),
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=range(len(NO_NUMBERS)))
def test_anything_else_is_refused_in_one_sentence(value):
    for whole in (True, False):
        with refuses(ValueError, "n=", "does not fit"):
            check_number("n", value, whole=whole)


@pytest.mark.parametrize("value", [0, 3, 1.0, np.float32(2), torch.tensor(2.0)])
def test_bounds_and_kind_are_kept(value):
    with refuses(ValueError, "whole number of at least 1 and less than 3"):
        check_number("n", value, least=1, below=3, whole=True)


def test_a_flag_is_true_or_false():
    assert [check_flag("progress", flag) for flag in (True, np.False_, torch.tensor(True))] == [True, False, True]
    for value in (None, 0, 1, "yes", [], np.ones(2, bool)):
        with refuses(ValueError, "progress=", "True or False"):
            check_flag("progress", value)


def test_a_message_shows_a_short_line():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert [shown(value) for value in (3, "a", None, Path)] == ["3", "'a'", "None", "<class 'pathlib.Path'>"]
    assert shown("x" * 10**6) == "'" + "x" * 58 + "…" and "\n" not in shown({"a": ["\n" * 9, 1]})
    assert [shown(value) for value in (np.eye(2), torch.ones(3), 10**5000, Broken())] == [
        *("<ndarray>", "<Tensor>", "<int>", "<Broken>"),
    ]


@pytest.mark.parametrize("name", [None, 7, b"DC", ["DC"], {"DC"}, np.array(["DC"]), Path("DC"), "x" * 10**6])
def test_what_is_no_known_name_is_refused(name):
    with refuses(ValueError, "unknown method", "DC, M"):
        choose({"DC": 1, "M": 2}, "method", name)


def test_lists_of_words_and_of_numbers():
    assert as_list("DC, M") == ["DC", "M"] and as_list("1,10") == [1, 10] and as_list("9" * 5000) == ["9" * 5000]
    assert as_list(np.array(3)) == as_list(torch.tensor(3)) == as_list(np.int64(3)) == as_list(3) == [3]
    assert as_list((1, 2)) == [1, 2] and as_list(None) == [None]


def test_a_progress_bar_in_a_file_has_a_line_for_each_state(capsys):
    with progress_bar("outer", 4, "step", True) as outer:
        for _ in range(2):
            with progress_bar("inner", 2, "step", True) as inner:
                inner.update(2)
            outer.update(2)
    said = capsys.readouterr().err
    assert "\r" not in said and "\x1b" not in said
    lines = [line for line in said.splitlines() if line]
    assert any(line.startswith("outer:   0%") for line in lines) and any("outer: 100%" in line for line in lines)
    assert all(line.startswith(("outer", "inner")) for line in lines)
    assert all(one != next_one for one, next_one in pairwise(lines))
