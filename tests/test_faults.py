"""A short part of `make faults`."""

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

if sys.platform == "win32":
    pytest.skip("needs fork and POSIX signals", allow_module_level=True)

import faults
from conftest import make_data, tiny_recipe

import gmlib as gm


@pytest.mark.parametrize(
    ("kind", "works"),
    [
        ("kills", ["condense_together", "store.run"]),
        ("disks", ["store.run"]),
        ("side", ["store.run"]),
        ("files", []),
        ("exports", []),
        ("inputs", []),
    ],
)
def test_faults_are_survived(kind, works):
    rows = list(faults.run([kind], quick=True, works=works, seed=1))
    assert sum(row.tried for row in rows) >= {"inputs": 200, "files": 20, "exports": 20}.get(kind, 1)
    failed = [example for row in rows for example in row.examples]
    assert not failed and all(row.held == row.tried for row in rows)


def test_a_fault_that_is_not_survived_is_counted(tmp_path):
    """Every result that is not held, by work that fails in that way."""
    row = faults.Row("kill", "made up")
    expected = {}

    def broken(folder):
        raise KeyError("inside")

    def refused(folder):
        gm.Recipe(ipc=-1)

    def other(folder):
        (folder / "run.json").write_text('{"accuracy": 1}')
        (folder / ".set.safetensors.12.tmp").touch()

    for work in (broken, refused, other):
        faults.finish(row, work, tmp_path / work.__name__, expected)
    assert (row.tried, row.held, row.lost, row.silent, row.traceback, row.leftovers) == (3, 0, 1, 1, 1, 1)
    faults.judge(row, lambda: {}["x"], lambda found: True, "a call")
    faults.judge(row, lambda: 2, lambda found: found == 1, "a call")
    faults.judge(row, lambda: 1, lambda found: found == 1, "a call")
    assert (row.tried, row.held, row.silent, row.traceback) == (6, 1, 2, 2)


@pytest.mark.parametrize(
    ("name", "strange", "module", "reader", "unsafe"),
    [
        ("set.npz", "code.npz", np, "load", {"allow_pickle": True}),
        ("script.pt", "pair and code.pt", torch, "load", {"weights_only": False}),
        ("labels.pt", "old code.pt", torch, "load", {"weights_only": False}),
    ],
)
def test_code_in_a_file_that_runs_is_counted(name, strange, module, reader, unsafe, tmp_path, monkeypatch):
    faults.make_exports(tmp_path)
    faults.strange_files(tmp_path / "strange", tmp_path / faults.RAN)
    (tmp_path / "exports" / name).write_bytes((tmp_path / "strange" / strange).read_bytes())
    row = faults.Row("code", name)
    read = getattr(module, reader)
    for options in ({}, unsafe):
        monkeypatch.setattr(module, reader, lambda *args, _more=options, **given: read(*args, **given | _more))
        faults.judge(row, partial(faults.read_exports, tmp_path), lambda found: False, name)
    assert (row.held, row.traceback) == (1, 1) and "CodeRan" in row.examples[0]


def test_good_arguments_are_taken(tmp_path, monkeypatch):
    """Or else a refusal of bad ones would show nothing."""
    monkeypatch.chdir(tmp_path)
    for _, function, good, _ in faults.calls(tmp_path):
        with suppress(*[gm.OutOfTime] * (good.get("deadline") == 0.0)):
            function(**faults.with_deadline(good))
    del gm.NETWORKS["own"]


@pytest.mark.parametrize(
    ("call", "is_one"),
    [
        (lambda: gm.Recipe(ipc=-1), True),
        (lambda: Path("/nowhere/at/all").read_bytes(), True),
        (lambda: float("a"), False),
        (lambda: torch.zeros(2) @ torch.zeros(3), False),
        (lambda: {}["a long enough message"], False),
        (lambda: gm.checks.choose({"First part. Second": 1}, "name", "x"), False),
    ],
)
def test_a_refusal_is_one_sentence_of_our_own(call, is_one):
    with pytest.raises(Exception) as error:
        call()
    assert faults.is_refusal(error.value) == is_one


def test_stored_work_that_is_done_again_is_lost(tmp_path):
    def condenses(folder):
        path, recipe = folder / "run.safetensors", tiny_recipe(outer_loops=8)
        gm.condense(make_data(), recipe, "cpu", path, False, checkpoint_seconds=0).save(folder / "set.safetensors")

    def forgets(folder):
        (folder / "run.safetensors").unlink(missing_ok=True)
        condenses(folder)

    row = faults.Row("kill", "made up")
    expected, _, _ = faults.expected_of(condenses, tmp_path / "whole")
    for i, work in enumerate((condenses, forgets)):
        faults.end(faults.start(condenses, tmp_path / str(i), partial(faults.die_in_write, 3, "after")))
        assert faults.checkpoints(tmp_path / str(i))
        faults.finish(row, work, tmp_path / str(i), expected)
    assert (row.held, row.lost) == (1, 1)


def test_a_stored_network_that_is_trained_again_is_lost(tmp_path):
    def trains(folder):
        small = {"networks": 2, "width": 4, "depth": 2, "epochs": 2}
        data = make_data(dtype=torch.float32)
        faults.store.whole_data(data, budget="smoke", results_dir=folder, device="cpu", progress=False, **small)

    def forgets(folder):
        for path in folder.rglob("accuracy-*.json"):
            path.unlink()
        trains(folder)

    row = faults.Row("kill", "made up")
    expected, _, _ = faults.expected_of(trains, tmp_path / "whole")
    for i, work in enumerate((trains, forgets)):
        faults.end(faults.start(trains, tmp_path / str(i), partial(faults.die_in_write, 0, "after")))
        assert faults.networks(tmp_path / str(i)) == 1
        faults.finish(row, work, tmp_path / str(i), expected)
    assert (row.held, row.lost) == (1, 1), row.examples


def test_rows_that_are_made_again_replace_those_before():
    def table(commit, seconds, *rows):
        rows = [{"kind": kind, "what": what, "lost": lost} for kind, what, lost in rows]
        return {"rows": rows, "commit": commit, "machine": commit, "seconds": seconds}

    before = table("a", 60.0, ("kill", "x", 1), ("side by side", "x", 1), ("kill", "y", 0))
    found = faults.with_kept_rows(before, table("b", 5.0, ("side by side", "x", 0), ("side by side", "z", 0)))
    assert [(row["kind"], row["what"], row["lost"]) for row in found["rows"]] == [
        ("kill", "x", 1), ("side by side", "x", 0), ("kill", "y", 0), ("side by side", "z", 0),
    ]  # fmt: skip
    assert (found["commit"], found["seconds"], found["machine"]) == ("a, b", 65.0, "b")

    before = table("a", 60.0, ("kill", "condense, x", 1), ("kill", "store.run, x", 1), ("kill", "of old, x", 1))
    found = faults.with_kept_rows(before, table("b", 5.0, ("kill", "store.run, x", 0)), ["store.run"])
    assert [(row["what"], row["lost"]) for row in found["rows"]] == [("condense, x", 1), ("store.run, x", 0)]
