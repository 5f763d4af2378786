"""workflow/campaign.py: the order of its work, what it skips, where it stops, and what it says."""

import json
import logging
import math
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_data

import gmlib as gm
import gmreport as report
from gmlib import condensation, evaluation, how
from gmlib import recipe as recipes
from gmlib.analysis.matching import pulls
from gmlib.runs import layout, locks, overview, readback, shipped, store, work
from gmreport import paper

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import campaign  # noqa: E402
import pieces as pieces_of_work  # noqa: E402

TINY = recipes.Budget(
    recipe={"width": 2, "depth": 2, "batch_real": 2, "outer_loops": 2}, many={"inner_loops": 2, "zeta_theta": 1},
    sets=2, networks=2, epochs=1,
)  # fmt: skip
NAMES = ("made-up", "other")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two small data sets, a budget of milliseconds, and logging restored at the end."""
    monkeypatch.setitem(recipes.BUDGETS, "tiny", TINY)
    monkeypatch.setattr(store, "PeakMemory", lambda device: lambda: math.nan)  # it takes longer than the runs
    monkeypatch.setattr(pieces_of_work, "DESCENT", {"eps": [0.5], "lr": 0.1, "max_steps": 3})
    monkeypatch.setattr(pieces_of_work, "FEW_STARTS", 1)
    monkeypatch.setattr(pieces_of_work, "SHORT_WHOLE", {"networks": 2, "epochs": 1})
    data = {name: small_data(name, seed) for seed, name in enumerate(NAMES)}

    def load_data(name, **options):
        if name == "SVHN":
            raise FileNotFoundError("SVHN could not be downloaded: put its files there")
        return data[name] if name in data else gm.load_data(name)

    monkeypatch.setattr(campaign, "load_data", load_data)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield data
    for handler in [h for h in root.handlers if h not in handlers]:
        handler.close()
    root.handlers[:], root.level = handlers, level


def small_data(name, seed=0):
    return replace(make_data(dtype=torch.float32, n_test=12, seed=seed), name=name)


FEW_STAGES = (
    work.Stage("Table 3", 1, ("random", "DC")),
    work.Stage("Section 5", 1, ("noise", "DC"), kind="descents"),
    work.Stage("Table 4", 1, ("DC", "DC@mlp"), targets=("mlp", "convnet"), only="MNIST"),
    work.Stage("Whole data", None, ("whole",), kind="whole"),
    work.Stage("Table 3", 10, ("random",)),
)


@pytest.fixture
def few_stages(monkeypatch):
    monkeypatch.setattr(work, "STAGES", FEW_STAGES)


def arguments(folder, *more, datasets=("made-up",), ipc=(1,)):
    what = [
        "--precision",
        "float32",
        "--budget",
        "tiny",
        "--datasets",
        *datasets,
        "--ipc",
        *map(str, ipc),
        "--device",
        "cpu",
    ]
    return [*what, "--results-dir", str(folder), "--log", str(folder.with_suffix(".log")), *more]


def run(folder, *more, **what):
    return campaign.main(arguments(folder, *more, **what))


def contents(folder):
    """The stored files. Lock files stay behind empty and do not count."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != locks.LOCK]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def planned(small, ipcs=(1, 10, 50), names=NAMES, budget="paper", folder=Path("nowhere")):
    pieces, refused = campaign.plan(campaign.Asked(budget, folder), [small[name] for name in names], ipcs)
    assert refused == []
    return pieces


def done_in_order(log):
    """Names of the pieces in the lines of a log."""
    return re.findall(r"^\S+ \S+ [^:]*: ([^:]+(?:, set \d|, all training images)): ", log, re.MULTILINE)


def same_numbers(a, b):
    """True if two folders of runs hold the same files, sets and accuracies. The seconds in them differ."""
    first, second = contents(a), contents(b)
    assert set(first) == set(second)
    for name, content in first.items():
        if name.endswith(".safetensors"):
            assert content == second[name], name
        elif Path(name).name.startswith("accuracy-"):
            assert json.loads(content)["accuracies"] == json.loads(second[name])["accuracies"], name
        elif name.endswith("reach.json"):
            assert json.loads(content)["columns"] == json.loads(second[name])["columns"], name
    return True


# ---- the tables ------------------------------------------------------------------------------------------


def test_the_stages_are_the_rows_and_columns_of_the_papers_tables():
    for table in ("Table 1", "Table 2", "Table 3", "Table 4"):
        figures = paper.published(table)
        figures = figures[figures["ipc"].notna()]
        declared = {(s.ipc, m) for s in work.STAGES if s.name == table for m in s.methods}
        control = {(1, "random")} if table == "Table 4" else set()
        assert declared - control == set(figures[["ipc", "method"]].itertuples(index=False, name=None)), table
    for four in (s for s in work.STAGES if s.name == "Table 4"):
        assert set(four.targets) == set(paper.published("Table 4")["network"]) and four.only == "MNIST"
    (two,) = (s for s in work.STAGES if s.name == "Table 2")
    assert {two.only} == set(paper.published("Table 2")["dataset"])


@pytest.fixture
def all_but_table_4(monkeypatch):
    """Every stage except Table 4. Its networks are too large for 8x8 pixels."""
    monkeypatch.setattr(work, "STAGES", [s for s in work.STAGES if s.name != "Table 4"])
    monkeypatch.setitem(recipes.BUDGETS, "paper", TINY)


def test_the_most_informative_comes_first(small, all_but_table_4):
    pieces = planned(small, ipcs=(1, 10))
    stages = list(dict.fromkeys(stage for stage, _ in pieces))
    assert stages == [
        "Table 3, IPC 1", "Table 1, IPC 1", "Table 2, IPC 1", "Section 5, IPC 1", "Table 3, IPC 10",
        "Section 3.3, IPC 10", "Table 1, IPC 10", "Whole data",
    ]  # fmt: skip
    names = [piece.name for _, piece in pieces]
    assert names[:4] == [f"made-up, {method}, set 0" for method in ("random", "DC", "M", "MD")]
    assert names[4] == "made-up, random, set 1" and names[8] == "other, random, set 0"


def test_nothing_is_planned_twice(small, all_but_table_4):
    pieces = planned(small, ipcs=(1,))
    assert len({piece.key for _, piece in pieces}) == len(pieces)
    of_1 = {piece.name.split(", ")[1] for stage, piece in pieces if stage == "Table 1, IPC 1"}
    assert of_1 == {"Inter", "Interleaved"}, "Table 3 has DC and M too"
    of_2 = [piece for stage, piece in pieces if stage == "Table 2, IPC 1"]
    assert not any(piece.name.startswith("other") for piece in of_2), "one data set"
    assert len(of_2) == 5 * 2


def test_a_table_of_one_data_set_takes_the_papers_if_it_is_available():
    stage = work.Stage("Table 2", 1, ("M",), only="b")
    a, b, c = (replace(make_data(), name=name) for name in "abc")
    assert [cell[0].name for cell in stage.cells([a, b, c], 1)] == ["b"]
    assert [cell[0].name for cell in stage.cells([a, c], 1)] == ["a"]
    assert [cell[0].name for cell in stage.cells([a, c], 1, {"c"})] == ["c"], "c already replaces it"
    assert list(stage.cells([a, c], 1, {"d"})) == [], "no second one replaces it"
    assert [cell[0].name for cell in stage.cells([a, b, c], 1, {"c"})] == ["b"]
    assert list(stage.cells([], 1)) == []


def test_several_data_sets_can_replace_the_papers():
    stage = work.Stage("Table 2", 1, ("M",), only="b", instead=("c", "d"))
    a, b, c, d = (replace(make_data(), name=name) for name in "abcd")

    def names(found, begun=()):
        return [cell[0].name for cell in stage.cells(found, 1, begun)]

    assert names([a, c, d]) == ["c", "d"], "both"
    assert names([a, d]) == ["d"] and names([a]) == ["a"], "as many as are requested, else the first"
    assert names([a, b, c, d]) == ["b"], "the paper's"
    assert names([a, c, d], {"c"}) == ["c", "d"], "one was begun"
    assert names([a, c], {"a"}) == ["a", "c"] and names([a], {"c"}) == []
    (two,) = (s for s in work.STAGES if s.name == "Table 2")
    assert two.instead == ("CIFAR10", "FashionMNIST")


def test_the_data_that_replace_a_tables_stay_the_same(small, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "STAGES", [s for s in work.STAGES if s.name in ("Table 2", "Table 3")])
    options = {"budget": "tiny", "device": "cpu", "results_dir": tmp_path / "tiny", "progress": False}

    def replaces():
        pieces = planned(small, (1,), budget="tiny", folder=tmp_path)
        return {piece.name.split(",")[0] for stage, piece in pieces if stage == "Table 2, IPC 1"}

    assert replaces() == {"made-up"}
    store.run(small["other"], "M", 1, **options)
    assert replaces() == {"made-up"}, "Table 3 has M too"
    store.run(small["other"], "multi,d2,fixed", 1, **options)
    assert replaces() == {"other"}
    pieces, left_out = campaign.plan(campaign.Asked("tiny", tmp_path), [small["made-up"]], (1,))
    assert {stage for stage, _ in pieces} == {"Table 3, IPC 1"}
    assert left_out == ["Table 2, IPC 1: other already replaces SVHN: add it to the data sets to continue"]


# ---- running ---------------------------------------------------------------------------------------------


def test_a_campaign_from_beginning_to_end(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, ipc=(1, 10), datasets=NAMES) == 0
    files = [name for name in contents(folder / "tiny") if name.startswith("made-up")]
    assert set(files) == {
        *(f"made-up/ipc1/{m}/set{s}/{file}" for m in ("random", "DC") for s in (0, 1)
          for file in ("accuracy-convnet.json", "run.json", "set.safetensors")),
        *(f"made-up/ipc1/{m}/set{s}/reach.json" for m in ("noise", "DC") for s in (0, 1)),
        *(f"made-up/ipc1/DC/set{s}/accuracy-mlp.json" for s in (0, 1)),
        *(f"made-up/ipc1/{m}/set0/{file}" for m in ("DC", "DC@mlp")
          for file in ("snapshots.safetensors", "trace.json")),
        *(f"made-up/ipc1/DC@mlp/set{s}/{file}" for s in (0, 1)
          for file in ("accuracy-convnet.json", "accuracy-mlp.json", "run.json", "set.safetensors")),
        "made-up/whole/accuracy-convnet.json",
        *(f"made-up/ipc10/random/set{s}/{file}" for s in (0, 1)
          for file in ("accuracy-convnet.json", "run.json", "set.safetensors")),
    }  # fmt: skip
    assert list((folder / "tiny").glob("other/ipc1/DC@mlp")) == [], "a table of one data set"
    results = readback.load_results(folder / "tiny")
    assert results.groupby(["dataset", "ipc", "method", "network"]).size().eq(4).all()
    assert set(results["budget"]) == {"tiny"}
    # the same numbers as store.run
    options = {"budget": "tiny", "seed": 1, "device": "cpu", "results_dir": tmp_path / "b", "progress": False}
    by_hand = store.run(campaign.load_data("made-up"), "DC", 1, dtype=torch.float16, **options)
    mine = gm.load_condensed("made-up", 1, "DC", seed=1, results_dir=folder)
    assert torch.equal(mine.images, mine.images.half().float()), "stored as float16, and read as float32"
    assert torch.equal(mine.images, by_hand.S.images) and mine.accuracy.accuracies == by_hand.evaluation.accuracies
    printed = capsys.readouterr()
    assert len(done_in_order(printed.out)) == 2 * (4 + 4) + 4 + 2 + 2 * 2
    log = (tmp_path / "results.log").read_text()
    assert [line.split(" ", 2)[2] for line in log.splitlines()] == [
        line.split(" ", 2)[2] for line in printed.out.splitlines()
    ]
    assert "26/26" in printed.err, "the progress bar counts pieces"


def test_what_is_stored_is_not_done_again(tmp_path, few_stages, monkeypatch, capsys):
    folder = tmp_path / "results"
    assert run(folder, ipc=(1, 10)) == 0
    before, log = contents(folder), capsys.readouterr().out
    assert "0 of 15 are stored" in log
    for module, name in (
        (store, "condense_together"),
        (store, "coreset"),
        (store, "evaluate"),
        (evaluation, "fit"),
        (pieces_of_work, "reach"),
    ):
        monkeypatch.setattr(module, name, None)
    assert run(folder, ipc=(1, 10)) == 0
    assert contents(folder) == before
    log = capsys.readouterr().out
    assert "15 of 15 are stored" in log and len(log.splitlines()) == 3


def test_a_stored_set_that_is_damaged_is_reported(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, "--tables", "Table 3", "--methods", "random") == 0
    path = folder / "tiny" / "made-up" / "ipc1" / "random" / "set1" / "set.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    capsys.readouterr()
    assert run(folder, "--tables", "Table 3", "--methods", "random") == 1
    assert re.search("set 1: .*set1/set.safetensors", capsys.readouterr().out)


def test_no_time_leaves_nothing(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, "--time-budget", "0") == 3
    assert not folder.exists()
    last = capsys.readouterr().out.splitlines()[-1]
    assert "13 of 13 are left (Table 3, IPC 1: 4; Section 5, IPC 1: 4; Table 4, IPC 1: 4; Whole data: 1)" in last


def stop_after(n, monkeypatch):
    """Raise KeyboardInterrupt when networks are trained for the (n + 1)-th time."""
    trained = []

    def stop(network, *args, real=evaluation.fit, **options):
        if len(trained) == n:
            raise KeyboardInterrupt
        trained.append(1)
        return real(network, *args, **options)

    monkeypatch.setattr(evaluation, "fit", stop)


def test_it_continues_after_the_end_of_the_time_and_after_a_stop(tmp_path, few_stages, monkeypatch, capsys):
    """Stopped inside a set by the deadline, then inside phase 2: the same bits as in one run."""
    at_once, folder = tmp_path / "at-once", tmp_path / "results"
    assert run(at_once) == 0
    capsys.readouterr()

    class Late(float):
        """A deadline that passes inside the first condensation."""

        is_past = False

        def __lt__(self, now):  # `now > deadline` asks here first, since this is a subclass of float
            Late.is_past |= sys._getframe(2).f_code.co_name == "_outer_iteration"
            return Late.is_past

    with monkeypatch.context() as patch:
        patch.setattr(campaign, "deadline_in", lambda seconds: Late(1e12))
        assert run(folder) == 3
    assert "run again to continue" in capsys.readouterr().out
    half = contents(folder)
    unfinished = {name for name in half if name.endswith(("checkpoint.safetensors", "begun.json"))}
    assert unfinished and set(half) < {*contents(at_once), *unfinished}

    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert run(folder) == 130
    assert "continues from what is stored" in capsys.readouterr().err
    assert run(folder) == 0
    assert same_numbers(folder, at_once)


def test_a_terminated_campaign_continues_later(tmp_path, few_stages, monkeypatch):
    folder, at_once = tmp_path / "results", tmp_path / "at-once"
    only = ("--tables", "Table 3")
    assert run(at_once, *only) == 0

    def terminate(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not terminated")

    before = signal.signal(signal.SIGTERM, campaign.terminated)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "fit", terminate)
            with pytest.raises(SystemExit) as ended:
                run(folder, *only)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert run(folder, *only) == 0 and same_numbers(folder, at_once)


def without_times(printed):
    """The lines of a dry run without how long it takes."""
    return re.sub(r"(, about|; condensed sets and their networks: about) [0-9.]+ (s|min|h)$", "", printed, flags=re.M)


def test_a_dry_run_lists_what_is_left_and_writes_nothing(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, "--dry-run") == 0
    assert not folder.exists() and not (tmp_path / "results.log").exists()
    printed = capsys.readouterr().out
    assert re.search(r"made-up, DC, set 0: 4 networks, 1 set, about [0-9.]+ s$", printed, flags=re.M)
    assert re.search(r"13 are left; condensed sets and their networks: about [0-9.]+ s$", printed)
    listed = without_times(printed).splitlines()
    assert listed[:3] == ["Table 3, IPC 1", "  made-up, random, set 0: 2 networks, 1 set",
                          "  made-up, DC, set 0: 4 networks, 1 set"], "half-way too, for the first set"  # fmt: skip
    assert "  made-up, DC, set 1: 2 networks, 1 set" in listed
    assert "  made-up, DC@mlp, set 0: 6 networks, 1 set" in listed
    assert listed[-3:] == ["Whole data", "  made-up, all training images: 2 networks", "13 of 13 are left"]
    data = campaign.load_data("made-up")
    store.run(data, "random", 1, budget="tiny", networks=1, device="cpu", results_dir=folder / "tiny", progress=False)
    store.run(data, "DC", 1, budget="tiny", device="cpu", results_dir=folder / "tiny", progress=False)
    before = contents(folder)
    assert run(folder, "--dry-run") == 0 and contents(folder) == before
    listed = without_times(capsys.readouterr().out).splitlines()
    assert listed[1:3] == ["  made-up, random, set 0: 1 network", "  made-up, DC, set 0: done"]
    assert listed[-1] == "12 of 13 are left"
    assert "  made-up, DC, set 0: 2 networks" in listed, "the other target"


def test_networks_of_the_set_half_way_are_work_too_and_continue(tmp_path, few_stages, monkeypatch, capsys):
    folder, only = tmp_path / "results", ["--tables", "Table 3", "--methods", "DC"]
    assert run(tmp_path / "at-once", *only) == 0
    with monkeypatch.context() as patch:
        stop_after(3, patch)  # two on the set, one on its state half-way
        assert run(folder, *only) == 130
    capsys.readouterr()
    assert run(folder, *only, "--dry-run") == 0
    assert "  made-up, DC, set 0: 1 network\n" in without_times(capsys.readouterr().out)
    assert run(folder, *only) == 0
    traces = [layout.read_trace(f / "tiny/made-up/ipc1/DC/set0/trace.json") for f in (folder, tmp_path / "at-once")]
    assert traces[0][1].accuracies == traces[1][1].accuracies and list(traces[0]) == [1]


def test_a_damaged_run_does_not_stop_the_others(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, "--tables", "Table 3") == 0
    (folder / "README.md").write_text(f"{overview.BEGIN}\n{overview.END}\n")
    damaged = folder / "tiny" / "made-up" / "ipc1" / "DC" / "set1" / "accuracy-convnet.json"
    damaged.write_text("{")
    capsys.readouterr()
    assert run(folder, "--tables", "Table 3", "Section 5") == 1
    printed = capsys.readouterr().out
    assert re.search(r"left out: Table 3, IPC 1: .*DC/set1/accuracy-convnet.json is damaged", printed)
    assert "README.md was not updated: " in printed
    assert len(list(folder.rglob("reach.json"))) == 4


# ---- ten networks first, then the others; sets along the run ---------------------------------------------


def test_every_set_gets_the_networks_of_a_verdict_before_any_gets_more(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "STAGES", (work.Stage("Table 3", 1, ("random", "DC")), FEW_STAGES[-2], FEW_STAGES[-1]))
    assert run(tmp_path / "at-once", ipc=(1, 10)) == 0
    capsys.readouterr()
    monkeypatch.setattr(layout, "LEAST_NETWORKS", 1)
    assert run(tmp_path / "results", ipc=(1, 10)) == 0
    log = capsys.readouterr().out
    assert "0 of 13 are stored" in log
    sets = ["random, set 0", "DC, set 0", "random, set 1", "DC, set 1"]
    first = [*sets, "all training images", "random, set 0", "random, set 1"]
    last = [*sets, "random, set 0", "random, set 1"]
    assert done_in_order(log) == [f"made-up, {name}" for name in first + last]
    pieces = planned(small, (1, 10), ("made-up",), "tiny")
    assert [piece.job.n_networks for _, piece in pieces if piece.job] == [1] * 6 + [2] * 6
    assert same_numbers(tmp_path / "results", tmp_path / "at-once")


def test_sets_along_a_run_are_kept_and_evaluated_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "STAGES", (work.Stage("Table 3", 1, ("DC", "M")),))
    monkeypatch.setattr(gm.Recipe, "outer_loops", 2)  # so the budget has all of the paper's iterations
    monkeypatch.setattr(layout, "LEAST_NETWORKS", 1)
    monkeypatch.setattr(pieces_of_work, "FEW_NETWORKS", 1)
    folder = tmp_path / "results"
    along = folder / "tiny" / "made-up" / "ipc1" / "DC" / "set0"

    with monkeypatch.context() as patch:
        stop_after(4, patch)  # one network on each set
        assert run(folder) == 130
    assert (along / "snapshots.safetensors").is_file() and not (along / "trace.json").exists()
    assert [p.parent.parent.name for p in folder.rglob("snapshots.safetensors")] == ["DC"], "one method, one set"
    capsys.readouterr()
    assert run(folder, "--dry-run") == 0
    listed = without_times(capsys.readouterr().out).splitlines()
    assert listed[1:5] == [f"  made-up, {m}, set {s}: done" for s in (0, 1) for m in ("DC", "M")]
    assert listed[5:7] == ["  made-up, DC, set 0: 4 networks", "  made-up, M, set 0: 1 network"]
    assert run(folder) == 0
    trace = layout.read_trace(along / "trace.json")
    assert {k: e.n for k, e in trace.items()} == {0: 1, 1: 1, 2: 1}
    log = capsys.readouterr().out
    assert "made-up, DC, set 0: " in log and "after 1 of 2 outer iterations" in log
    assert run(folder, "--dry-run") == 0 and capsys.readouterr().out.splitlines()[-1] == "0 of 8 are left"


def test_sets_of_one_seed_are_made_together(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "STAGES", (work.Stage("Table 3", 1, ("random", "DC", "M")), *FEW_STAGES[1:3]))
    made = []

    def counted(data, recipes, *args, real=store.condense_together, **options):
        made.append(sorted(recipe.method for recipe in recipes))
        return real(data, recipes, *args, **options)

    monkeypatch.setattr(store, "condense_together", counted)
    assert run(tmp_path / "results") == 0
    assert made == [["DC", "M"]] * 2 + [["DC@mlp"]] * 2


def test_a_method_that_diverges_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "STAGES", (work.Stage("Table 3", 1, ("DC", "multi,d2,fixed")),))
    monkeypatch.setitem(how.DISTANCES, "d2", lambda A, B, real=how.d2: real(A, B) * math.nan)
    assert run(tmp_path / "results") == 1
    log = capsys.readouterr().out
    assert len(re.findall("multi,d2,fixed, set [01]: the matching loss is not finite", log)) == 2
    results = readback.load_results(tmp_path / "results" / "tiny")
    assert results.groupby(["method", "set"]).size().to_dict() == {("DC", 0): 2, ("DC", 1): 2}


# ---- precision -------------------------------------------------------------------------------------------


def measures(monkeypatch, precision):
    """A process in which this precision is the fastest."""
    monkeypatch.setattr(condensation, "fastest_precision", lambda *_: precision)
    monkeypatch.setattr(condensation, "_MEASURED", {})


def test_the_measured_precision_is_kept_and_named(tmp_path, few_stages, monkeypatch, capsys):
    folder, only = tmp_path / "results", ["--tables", "Table 3", "--precision", "auto"]
    measures(monkeypatch, "bf16")
    assert run(folder, *only) == 0
    assert run(folder, *only, "--change", "lr_images=0.05") == 0
    measures(monkeypatch, "float32")
    for row in overview.made_with(folder).itertuples():
        assert " --precision bf16" in row.command
        for more in (
            campaign_options(row)[1],
            [*only, *(["--change", "lr_images=0.05"] if "probes" in row.folder else [])],
        ):
            capsys.readouterr()
            assert run(folder, *more, "--dry-run") == 0
            assert re.search("0 of [24] are left", capsys.readouterr().out)
    records = [json.loads(p.read_text()) for p in sorted(folder.rglob("run.json"))]
    assert {(r["budget"], r["recipe"].get("precision")) for r in records} == {
        ("tiny", None), ("tiny", "bf16"), ("tiny, changed", "bf16")
    }  # fmt: skip
    assert gm.load_condensed("made-up", 1, "DC", budget="tiny", results_dir=folder).recipe["precision"] == "bf16"
    assert {change for change, _ in shipped.probes(folder)} == {"lr_images=0.05"}
    assert run(folder, *only[:2], "--precision", "float32") == 1, "sets in another precision are not mixed in"
    assert "precision='bf16', but precision='float32'" in capsys.readouterr().out


def test_a_folder_with_two_precisions_is_continued_by_the_default(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    options = {"budget": "tiny", "device": "cpu", "results_dir": folder / "tiny", "progress": False}
    for seed, precision in enumerate(("float32", "bf16")):
        store.run(campaign.load_data("made-up"), "DC", 1, seed=seed, precision=precision, **options)
    (row,) = overview.made_with(folder).itertuples()
    assert "--precision" not in row.command
    assert run(folder, *campaign_options(row)[1], "--precision", "auto", "--dry-run") == 0
    assert "0 of 2 are left" in capsys.readouterr().out


# ---- several processes -----------------------------------------------------------------------------------

# A copy of the command on a small grid, in a process of its own. It is ready when all is imported, and then waits.
COPY = """
import math, pickle, sys, time
from pathlib import Path
sys.path.insert(0, {workflow!r})
import campaign, torch
from gmlib.recipe import BUDGETS, Budget
from gmlib.runs import store, work
from gmlib.runs.work import Stage

torch.set_num_threads(1)
torch.optim.SGD([torch.zeros(1)], lr=1)  # the first optimiser imports much
folder = Path(sys.argv[1])
BUDGETS["tiny"] = {budget}
work.STAGES = {stages}
campaign.load_data = lambda name, **options: pickle.loads((folder / "data").read_bytes())
store.PeakMemory = lambda device: lambda: math.nan

def noted(job, *args, real=store._store):
    print("made", job.method, job.recipe.seed)
    return real(job, *args)

store._store = noted
(folder / "ready").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
sys.exit(campaign.main(sys.argv[2:]))
"""


def test_two_copies_of_the_command_share_the_work(small, tmp_path, monkeypatch):
    """Each set is made once, with the same bits as by one copy alone."""
    monkeypatch.setattr(work, "STAGES", (work.Stage("Table 3", 1, ("random", "DC", "M")),))
    assert run(tmp_path / "alone") == 0
    made_here = []

    def noted(job, *args, real=store._store):
        made_here.append((job.method, str(job.recipe.seed)))
        return real(job, *args)

    monkeypatch.setattr(store, "_store", noted)
    (tmp_path / "data").write_bytes(pickle.dumps(small["made-up"]))
    code = COPY.format(workflow=str(ROOT / "workflow"), budget=TINY, stages=work.STAGES)
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *arguments(tmp_path / "results")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not (tmp_path / "ready").exists() and other.poll() is None:
            time.sleep(0.01)
        (tmp_path / "go").touch()
        assert run(tmp_path / "results") == 0
        printed, errors = other.communicate(timeout=120)
    finally:
        other.kill()
    assert other.returncode == 0, errors
    made_there = re.findall(r"^made (\w+) (\d)$", printed, re.MULTILINE)
    assert sorted(made_here + made_there) == [(method, seed) for method in ("DC", "M", "random") for seed in "01"]
    assert made_here and made_there, "both took part"
    assert same_numbers(tmp_path / "alone", tmp_path / "results")


class Held:
    """A lock held by another thread, as by another process."""

    def __init__(self, folder):
        self.is_held, self.release = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.hold, args=[folder])

    def hold(self, folder):
        with locks.locked(folder):
            self.is_held.set()
            self.release.wait(60)

    def __enter__(self):
        self.thread.start()
        self.is_held.wait(60)
        return self

    def __exit__(self, *_):
        self.release.set()
        self.thread.join()


def test_what_another_process_holds_comes_last(tmp_path, few_stages, monkeypatch, capsys):
    folder, only = tmp_path / "results", ["--tables", "Table 3"]

    def info(message, *args, real=campaign.log.info):
        real(message, *args)
        if "waiting" in message:
            other.release.set()

    monkeypatch.setattr(campaign.log, "info", info)
    with Held(layout.run_folder(folder / "tiny", "made-up", 1, "random", 0)) as other:
        assert run(folder, *only) == 0
    in_order = [f"made-up, {name}" for name in ("DC, set 0", "random, set 1", "DC, set 1", "random, set 0")]
    assert done_in_order(capsys.readouterr().out) == in_order
    assert run(tmp_path / "alone", *only) == 0 and same_numbers(folder, tmp_path / "alone")


def test_what_another_process_holds_until_the_end_of_the_time_is_left(tmp_path, few_stages, monkeypatch, capsys):
    class Now(float):
        """A deadline that leaves time for work but none for waiting."""

        def __lt__(self, now):
            return False

    monkeypatch.setattr(campaign, "deadline_in", lambda seconds: Now(0))
    folder, only = tmp_path / "results", ["--tables", "Table 3", "--methods", "random"]
    with Held(layout.run_folder(folder / "tiny", "made-up", 1, "random", 0)):
        assert run(folder, *only) == 3
    log = capsys.readouterr().out
    assert done_in_order(log)[0] == "made-up, random, set 1"
    assert "1 of 2 are left" in log
    assert run(folder, *only, "--dry-run") == 0 and "1 of 2 are left" in capsys.readouterr().out


# ---- parts of the list -----------------------------------------------------------------------------------


def test_only_some_tables_and_methods(tmp_path, few_stages, capsys):
    assert run(tmp_path, "--tables", "Table 3", "--methods", "DC", "--dry-run") == 0
    listed = capsys.readouterr().out
    assert listed.splitlines()[0] == "Table 3, IPC 1" and "made-up, DC, set 1" in listed
    assert not re.search("random|Table 4|Section 5", listed)


def campaign_options(row):
    """The budget, data set and IPC in the command of a row of `overview.made_with`, and its other options."""
    python, script, *words = shlex.split(row.command)
    assert (python, script) == (".venv/bin/python", "workflow/campaign.py")
    more = words.index("--tables")
    return dict(zip(words[:more:2], words[1:more:2], strict=True)), words[more:]


def test_sets_with_a_change_go_to_their_own_folder(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, "--tables", "Table 3") == 0
    before = contents(folder)
    (folder / "README.md").write_text(f"{overview.BEGIN}\n{overview.END}\n")
    assert run(folder, "--change", "lr_images=0.05", "init=real", "--tables", "Table 3") == 0
    assert before.items() <= contents(folder).items()
    probe = folder / "probes" / "init=real,lr_images=0.05" / "tiny" / "made-up" / "ipc1"
    made_there = {p.parent.relative_to(probe).as_posix() for p in probe.rglob("run.json")}
    assert made_there == {"DC/set0", "DC/set1"}, "no coreset"
    record = json.loads((probe / "DC" / "set0" / "run.json").read_text())
    assert record["budget"] == "tiny, changed"
    usual = gm.Recipe.for_method("DC", "made-up", 1, "tiny").as_dict()
    assert {name for name, value in record["recipe"].items() if value != usual[name]} == {"init", "lr_images"}
    made = shipped.probes(folder)
    assert [(change, S.record["recipe"]["seed"]) for change, S in made] == [
        ("init=real lr_images=0.05", s) for s in (0, 1)
    ]
    assert not [S for S in shipped.condensed(folder) if "changed" in S.budget], "they are counted nowhere else"
    (row,) = (row for row in overview.made_with(folder).itertuples() if row.folder.startswith("probes/"))
    assert row.sets == 2 and row.folder in (folder / "README.md").read_text()
    _, more = campaign_options(row)
    assert more[-3:] == ["--change", "init=real", "lr_images=0.05"]
    capsys.readouterr()
    assert run(folder, *more, "--dry-run") == 0 and capsys.readouterr().out.splitlines()[-1] == "0 of 2 are left"


def test_a_probe_of_the_precision_pairs_with_the_same_sets(tmp_path, few_stages, capsys):
    folder, only = tmp_path / "results", ("--tables", "Table 3", "--methods", "DC")
    assert run(folder, *only) == 0 and run(folder, *only, "--change", "precision=bf16") == 0
    made = shipped.probes(folder)
    assert [change for change, _ in made] == ["precision=bf16"] * 2
    assert {S.recipe["precision"] for _, S in made} == {"bf16"}
    assert {S.recipe["precision"] for S in shipped.condensed(folder)} == {"float32"}
    pairs = report.precision_pairs(report.probes(made, shipped.condensed(folder)))
    assert pairs[["method", "set", "budget"]].to_numpy().tolist() == [["DC", 0, "tiny"], ["DC", 1, "tiny"]]
    (row,) = (row for row in overview.made_with(folder).itertuples() if row.folder.startswith("probes/"))
    _, more = campaign_options(row)
    assert more[-2:] == ["--change", "precision=bf16"] and "--precision" not in more
    capsys.readouterr()
    assert run(folder, *more, "--dry-run") == 0 and capsys.readouterr().out.splitlines()[-1] == "0 of 2 are left"


@pytest.mark.parametrize(
    ("spelled", "folder", "said"),
    [
        ("lam=null", None, "lam=null is already in the budget tiny"),
        ("lr_images=0.10", None, "lr_images=0.1 is already in the budget tiny"),
        ("lr_images=1", "lr_images=1.0", None),
        ("augment=dsa: scale+crop", "augment=dsa_scale+crop", None),  # make cannot have a colon in a name
        ("lam=2", "lam=2", None),
    ],
)
def test_a_change_has_one_spelling_and_changes_something(
    spelled, folder, said, tmp_path, few_stages, monkeypatch, capsys
):
    monkeypatch.setattr(work, "STAGES", (work.Stage("Table 3", 1, ("DC",)),))
    assert run(tmp_path / "results", "--change", spelled) == (1 if said else 0)
    if said:
        assert said in capsys.readouterr().out
        assert not list(tmp_path.rglob("run.json"))
        return
    assert [p.name for p in (tmp_path / "results" / "probes").iterdir()] == [folder]
    (row,) = overview.made_with(tmp_path / "results").itertuples()
    capsys.readouterr()
    assert run(tmp_path / "results", *campaign_options(row)[1], "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 2 are left"


def test_a_probe_counts_when_it_has_all_its_networks(tmp_path):
    folder = tmp_path / "results"
    options = {"budget": "tiny", "device": "cpu", "progress": False, "lr_images": 0.05}
    place = shipped.probe_folder({"lr_images": 0.05}, folder) / "tiny"
    for n in (1, 2):
        store.run(campaign.load_data("made-up"), "DC", 1, networks=n, results_dir=place, **options)
        ((change, S),) = shipped.probes(folder)
        assert change == "lr_images=0.05" and bool(S.evaluations) == (n == 2)


def test_the_pull_of_each_part_of_the_loss_is_stored_with_the_set(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "STAGES", (work.Stage("Section 3.3", 10, ("MD", "MDA"), kind="pulls"),))
    folder = tmp_path / "results"
    assert run(folder, ipc=(10,)) == 0
    said = r"made-up, MD, set 0: (intra|inter) d[12] moves S most, by [0-9.]+% of its norm in one step at t = [01]\b"
    assert re.search(said, capsys.readouterr().out)
    t = readback.stored_pulls(folder)
    assert set(t[["dataset", "ipc", "method", "budget", "set"]].itertuples(index=False, name=None)) == {
        ("made-up", 10, method, "tiny", seed) for method in ("MD", "MDA") for seed in (0, 1)
    }
    again = pulls(small["made-up"], gm.Recipe.for_method("MDA", "made-up", 10, "tiny", 1), device="cpu")
    stored = t[(t["method"] == "MDA") & (t["set"] == 1)].reset_index(drop=True)
    assert stored[again.columns].equals(again)
    (row,) = overview.made_with(folder).itertuples()
    assert row.sets == row.networks == 0 and row.seconds > 0
    assert row.command.endswith(" --tables 'Section 3.3' --methods MD MDA")
    assert run(folder, "--dry-run", ipc=(10,)) == 0 and capsys.readouterr().out.splitlines()[-1] == "0 of 4 are left"


# ---- what cannot be done ---------------------------------------------------------------------------------


def test_a_data_set_that_cannot_be_loaded_is_left_out_and_the_others_run(tmp_path, few_stages, capsys):
    assert run(tmp_path / "results", "--methods", "random", datasets=("SVHN", "made-up")) == 1
    assert "left out: SVHN could not be downloaded: put its files there" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "results" / "tiny").iterdir()} == {"made-up"}


def test_a_piece_that_fails_is_reported_and_the_others_run(tmp_path, few_stages, monkeypatch, capsys):
    def diverges(data, recipes, *args, real=store.condense_together, **options):
        if recipes[0].seed == 0 and recipes[0].network == "convnet":
            raise gm.Diverged("the matching loss is nan", 0, 0, "", None)
        return real(data, recipes, *args, **options)

    monkeypatch.setattr(store, "condense_together", diverges)
    assert run(tmp_path / "results") == 1
    log = capsys.readouterr().out
    assert "Table 3, IPC 1: made-up, DC, set 0: the matching loss is nan" in log
    assert "Section 5, IPC 1: made-up, DC, set 0: the matching loss is nan" in log, "it needs the same set"
    stored = {p.parent.relative_to(tmp_path / "results").as_posix() for p in (tmp_path / "results").rglob("run.json")}
    made = ("random/set0", "random/set1", "DC/set1", "DC@mlp/set0", "DC@mlp/set1")
    assert stored == {f"tiny/made-up/ipc1/{name}" for name in made}


def test_networks_that_do_not_fit_the_images_are_left_out(small, tmp_path):
    pieces, refused = campaign.plan(campaign.Asked("tiny", tmp_path), [small["made-up"]], (1,))
    assert refused and len(set(refused)) == len(refused)
    assert all(sentence.startswith("Table 4, IPC 1: ") for sentence in refused)
    assert {stage for stage, _ in pieces} >= {"Table 3, IPC 1", "Section 5, IPC 1", "Whole data"}
    sentences = " ".join(refused)
    assert "LeNet" in sentences and "MLP" not in sentences and "ConvNet" not in sentences
    *_, targets, _ = next(p.key for stage, p in pieces if stage == "Table 4, IPC 1" and "MD@mlp" in p.name)
    assert targets == ("mlp", "convnet", "alexnet"), "the other cells of the table"
    assert not any("MD@lenet" in piece.name or "MD@vgg11bn" in piece.name for _, piece in pieces)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--datasets", "MNISTT"], ["MNISTT", "choose from"]),
        (["--ipc", "7"], ["7 images per class", "1, 10, 50"]),
        (["--budget", "huge"], ["budget 'huge'", "smoke, lite, paper"]),
        (["--time-budget", "-1"], ["time_budget=-1.0"]),
        (["--threads", "0"], ["threads=0"]),
        (["--tables", "Table 9"], ["table 'Table 9'", "Table 3, Table 1"]),
        (["--methods", "MTT"], ["method 'MTT'", "random, DC"]),
        (["--precision", "half"], ["precision 'half'", "float32, tf32, bf16, tf32+bf16, auto"]),
        (["--device", "cudax"], ["'cudax'"]),
        (["--change", "rate=0.1"], ["'rate'", "lam"]),
        (["--change", "how=d2"], ["'how'"]),
        (["--change", "lr_images"], ["lr_images=0.1"]),
        (["--change", "lr_images=-1"], ["lr_images=-1.0"]),
        (["--change", "lr_images=1", "--change", "gap=1", "lr_images=2"], ["lr_images", "one value"]),
        (["--change", "lam"], ["lam=null"]),
        (["--change", "width=8"], ["'width'"]),
        (["--change", "lr_images=1", "--tables", "Section 5"], ["--change", "--tables"]),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_run(more, words, tmp_path, capsys):
    folder = tmp_path / "results"
    assert run(folder, *more) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("campaign: ")]
    assert all(word in sentence for word in words), sentence
    assert not folder.exists()


def test_another_recipe_in_the_folder_is_refused(tmp_path, few_stages, monkeypatch, capsys):
    only = ["--tables", "Table 3", "--methods", "DC"]
    assert run(tmp_path / "results", *only) == 0
    before = contents(tmp_path / "results")
    monkeypatch.setitem(recipes.BUDGETS, "tiny", replace(TINY, recipe={**TINY.recipe, "outer_loops": 3}))
    capsys.readouterr()
    assert run(tmp_path / "results", *only) == 1
    log = capsys.readouterr().out
    assert "outer_loops=2" in log and "outer_loops=3" in log
    assert contents(tmp_path / "results") == before


# ---- the README of the results ---------------------------------------------------------------------------


def test_the_readme_is_true_after_each_piece(tmp_path, few_stages, monkeypatch):
    """So it is true however the campaign ends, even by a kill."""
    folder, seen = tmp_path / "results", []
    folder.mkdir()
    (folder / "README.md").write_text(f"# Results\n\n{overview.BEGIN}\nstale\n{overview.END}\nmore\n")

    def do_all(pieces, deadline, after_each, real=campaign.do_all):
        def look():
            after_each()
            text = (folder / "README.md").read_text()
            seen.append(text == overview.readme(text, folder))

        return real(pieces, deadline, look)

    monkeypatch.setattr(campaign, "do_all", do_all)
    assert run(folder) == 0 and seen == [True] * 13
    text = (folder / "README.md").read_text()
    assert text.startswith("# Results\n") and text.endswith(f"{overview.END}\nmore\n") and "stale" not in text
    assert "| <code>tiny/made-up/ipc1</code> | 6 | 20 |" in text


def test_the_command_in_the_readme_makes_what_is_in_the_folder(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, ipc=(1, 10)) == 0
    for row in overview.made_with(folder).itertuples():
        capsys.readouterr()
        words, more = campaign_options(row)
        assert (words["--budget"], words["--datasets"]) == ("tiny", "made-up")
        assert run(folder, *more, "--dry-run", ipc=words.get("--ipc", "1").split()) == 0
        listed = capsys.readouterr().out.splitlines()
        n = listed[-1].removeprefix("0 of ").removesuffix(" are left")
        assert int(n) == {"tiny/made-up/ipc1": 12, "tiny/made-up/ipc10": 2, "tiny/made-up/whole": 1}[row.folder]


def test_it_needs_neither_notebooks_nor_the_report(tmp_path):
    """From a command line, in a Python without the packages of notebooks, figures and the report."""
    without = [
        "gmreport", "papermill", "jupytext", "nbclient", "nbformat", "IPython", "ipywidgets", "matplotlib", "seaborn",
    ]  # fmt: skip
    what = ["--dry-run", "--datasets", "digits", "--ipc", "10", "--budget", "smoke", "--results-dir", str(tmp_path)]
    code = (
        f"import sys, runpy; sys.modules |= dict.fromkeys({without}); sys.argv = ['campaign', *{what}]; "
        "sys.path.insert(0, 'workflow'); runpy.run_path('workflow/campaign.py', run_name='__main__')"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    networks = gm.BUDGETS["smoke"].networks
    assert f"Table 3, IPC 10\n  digits, random, set 0: {networks} networks, 1 set\n" in found.stdout


def test_the_log_goes_to_the_home_folder_if_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    campaign.start_log(Path("~/logs/l.log"))
    campaign.start_log(None)
    assert (tmp_path / "logs" / "l.log").is_file()
