"""workflow/campaign.py: the order of its work, what it skips, where it stops, and what it says."""

import importlib.util
import json
import logging
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_data
from gmreport import paper

import gmlib as gm
from gmlib import networks
from gmlib import recipe as recipes
from gmlib.analysis.matching import pulls
from gmlib.runs import layout, overview, readback, shipped, store
from gmlib.speed import training

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("campaign", ROOT / "workflow" / "campaign.py")
campaign = sys.modules["campaign"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(campaign)

TINY = recipes.Budget(
    recipe={"width": 4, "depth": 2, "batch_real": 4, "outer_loops": 2}, many={"inner_loops": 2, "zeta_theta": 1},
    sets=2, networks=2, epochs=2,
)  # fmt: skip
NAMES = ("made-up", "other")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two small data sets at hand, a budget of milliseconds, and logging left as it was."""
    monkeypatch.setitem(recipes.BUDGETS, "tiny", TINY)
    monkeypatch.setattr(campaign, "DESCENT", {"eps": [0.5], "lr": 0.1, "max_steps": 3})
    monkeypatch.setattr(campaign, "FEW_STARTS", 1)
    monkeypatch.setattr(campaign, "SHORT_WHOLE", {"networks": 2, "epochs": 1})
    data = {
        name: replace(make_data(dtype=torch.float32, n_test=30, seed=i), name=name) for i, name in enumerate(NAMES)
    }

    def load_data(name, **_):
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


@pytest.fixture
def few_stages(monkeypatch):
    stages = (
        campaign.Stage("Table 3", 1, ("random", "DC")),
        campaign.Stage("Section 5", 1, ("noise", "DC"), piece=campaign.descended),
        campaign.Stage("Table 4", 1, ("DC", "DC@mlp"), targets=("mlp", "convnet"), only="MNIST"),
        campaign.Stage("Whole data", None, ("whole",), piece=campaign.whole),
        campaign.Stage("Table 3", 10, ("random",)),
    )
    monkeypatch.setattr(campaign, "STAGES", stages)


def run(folder, *more, datasets=("made-up",), ipc=(1,)):
    arguments = ["--budget", "tiny", "--datasets", *datasets, "--ipc", *map(str, ipc), "--device", "cpu"]
    where = ["--results-dir", str(folder), "--log", str(folder.with_suffix(".log"))]
    return campaign.main([*arguments, *where, *more])


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def planned(small, ipcs=(1, 10, 50), names=NAMES, budget="paper", folder=Path("nowhere")):
    pieces, refused = campaign.plan(campaign.Asked(budget, folder), [small[name] for name in names], ipcs)
    assert refused == []
    return pieces


# ---- the tables ------------------------------------------------------------------------------------------


def test_the_stages_are_the_rows_and_columns_of_the_papers_tables():
    for table in ("Table 1", "Table 2", "Table 3", "Table 4"):
        figures = paper.published(table)
        figures = figures[figures["ipc"].notna()]
        declared = {(s.ipc, m) for s in campaign.STAGES if s.name == table for m in s.methods}
        control = {(1, "random")} if table == "Table 4" else set()
        assert declared - control == set(figures[["ipc", "method"]].itertuples(index=False, name=None)), table
    (four,) = (s for s in campaign.STAGES if s.name == "Table 4")
    assert set(four.targets) == set(paper.published("Table 4")["network"]) and four.only == "MNIST"
    (two,) = (s for s in campaign.STAGES if s.name == "Table 2")
    assert {two.only} == set(paper.published("Table 2")["dataset"])


def test_what_tells_most_comes_first(small, monkeypatch):
    monkeypatch.setattr(
        campaign, "STAGES", [s for s in campaign.STAGES if s.name != "Table 4"]
    )  # too large for 8x8 pixels
    monkeypatch.setitem(recipes.BUDGETS, "paper", TINY)
    pieces = planned(small, ipcs=(1, 10))
    stages = list(dict.fromkeys(stage for stage, _ in pieces))
    assert stages == [
        "Table 3, IPC 1", "Table 1, IPC 1", "Table 2, IPC 1", "Section 5, IPC 1", "Table 3, IPC 10", "Section 3.3, IPC 10",
        "Table 1, IPC 10", "Whole data",
    ]  # fmt: skip
    names = [piece.name for _, piece in pieces]
    assert names[:4] == [f"made-up, {method}, set 0" for method in ("random", "DC", "M", "MD")]
    assert names[4] == "made-up, random, set 1" and names[8] == "other, random, set 0"


def test_nothing_is_planned_twice(small, monkeypatch):
    monkeypatch.setattr(campaign, "STAGES", [s for s in campaign.STAGES if s.name != "Table 4"])
    monkeypatch.setitem(recipes.BUDGETS, "paper", TINY)
    pieces = planned(small, ipcs=(1,))
    assert len({piece.key for _, piece in pieces}) == len(pieces)
    of_1 = {piece.name.split(", ")[1] for stage, piece in pieces if stage == "Table 1, IPC 1"}
    assert of_1 == {"Inter", "Interleaved"}, "DC and M are Table 3's too"
    assert not any(piece.name.startswith("other") for stage, piece in pieces if stage == "Table 2, IPC 1"), (
        "one data set"
    )
    assert sum(stage == "Table 2, IPC 1" for stage, _ in pieces) == 5 * 2


def test_a_table_of_one_data_set_takes_the_papers_where_it_is_there():
    stage = campaign.Stage("Table 2", 1, ("M",), only="b")
    a, b, c = (replace(make_data(), name=name) for name in "abc")
    assert [cell[0].name for cell in stage.cells([a, b, c], 1)] == ["b"]
    assert [cell[0].name for cell in stage.cells([a, c], 1)] == ["a"]
    assert [cell[0].name for cell in stage.cells([a, c], 1, {"c"})] == ["c"], "one that stands in already"
    assert list(stage.cells([a, c], 1, {"d"})) == [], "no second one beside it"
    assert [cell[0].name for cell in stage.cells([a, b, c], 1, {"c"})] == ["b"]
    assert list(stage.cells([], 1)) == []


def test_the_data_in_the_place_of_a_tables_stay_the_same(small, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "STAGES", [s for s in campaign.STAGES if s.name == "Table 2"])
    options = {"budget": "tiny", "device": "cpu", "results_dir": tmp_path / "tiny", "progress": False}
    assert {piece.key[0] for _, piece in planned(small, budget="tiny", folder=tmp_path)} == {"made-up"}
    store.run(small["other"], "M", 1, **options)
    assert {piece.key[0] for _, piece in planned(small, budget="tiny", folder=tmp_path)} == {"made-up"}, (
        "other tables have M too"
    )
    store.run(small["other"], "multi,d2,fixed", 1, **options)
    assert {piece.key[0] for _, piece in planned(small, budget="tiny", folder=tmp_path)} == {"other"}
    pieces, left_out = campaign.plan(campaign.Asked("tiny", tmp_path), [small["made-up"]], (1,))
    assert pieces == [] and left_out == ["Table 2, IPC 1: other stands in for SVHN already: name it to go on"]


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
        *(f"made-up/ipc1/{m}/set0/{file}" for m in ("DC", "DC@mlp") for file in ("snapshots.safetensors", "trace.json")),
        *(f"made-up/ipc1/DC@mlp/set{s}/{file}" for s in (0, 1)
          for file in ("accuracy-convnet.json", "accuracy-mlp.json", "run.json", "set.safetensors")),
        "made-up/whole/accuracy-convnet.json",
        *(f"made-up/ipc10/random/set{s}/{file}" for s in (0, 1)
          for file in ("accuracy-convnet.json", "run.json", "set.safetensors")),
    }  # fmt: skip
    assert list((folder / "tiny").glob("other/ipc1/DC@mlp")) == [], "a table of one data set"
    results = readback.load_results(folder / "tiny")
    assert results.groupby(["dataset", "ipc", "method", "network"]).size().eq(4).all() and set(results["budget"]) == {
        "tiny"
    }
    # as a run by hand
    options = {"budget": "tiny", "seed": 1, "device": "cpu", "results_dir": tmp_path / "b", "progress": False}
    by_hand = store.run(campaign.load_data("made-up"), "DC", 1, dtype=torch.float16, **options)
    mine = gm.load_condensed("made-up", 1, "DC", seed=1, results_dir=folder)
    assert torch.equal(mine.images, mine.images.half().float()), "stored as float16, and read as float32"
    assert torch.equal(mine.images, by_hand.S.images) and mine.accuracy.accuracies == by_hand.evaluation.accuracies
    lines = capsys.readouterr().out.splitlines()
    sets = [line for line in lines if ", set " in line or "all training images" in line]
    assert len(sets) == 2 * (4 + 4) + 4 + 2 + 2 * 2
    log = (tmp_path / "results.log").read_text()
    assert [line.split(" ", 2)[2] for line in log.splitlines()] == [line.split(" ", 2)[2] for line in lines]


def test_what_is_there_is_not_done_again(tmp_path, few_stages, monkeypatch, capsys):
    folder = tmp_path / "results"
    assert run(folder, ipc=(1, 10)) == 0
    before, log = contents(folder), capsys.readouterr().out
    assert "0 of 15 are there; 15 left: no measure yet for 15" in log
    for module, name in ((store, "condense"), (store, "coreset"), (networks, "fit"), (campaign, "reach")):
        monkeypatch.setattr(module, name, None)
    assert run(folder, ipc=(1, 10)) == 0
    assert contents(folder) == before
    log = capsys.readouterr().out
    assert "15 of 15 are there; nothing left" in log and len(log.splitlines()) == 3


def test_no_time_leaves_nothing(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, "--time-budget", "0") == 0
    assert not folder.exists()
    log = capsys.readouterr().out
    assert (
        "the time budget is used up and 13 of 13 are left (Table 3, IPC 1: 4; Section 5, IPC 1: 4; Table 4, IPC 1: 4"
        in log
    )
    assert log.splitlines()[-1].endswith("Whole data: 1): run again to go on")


def test_it_goes_on_after_the_end_of_the_time_and_after_a_kill(tmp_path, few_stages, monkeypatch, capsys):
    """Stopped inside a set by the deadline, then killed inside phase 2: in the end the same bits as in one go."""
    at_once, folder = tmp_path / "at-once", tmp_path / "results"
    assert run(at_once) == 0

    class Late(float):
        looks = 0

        def __lt__(self, now):  # `now > deadline` asks here first
            Late.looks += 1
            return Late.looks > 6

    with monkeypatch.context() as patch:
        patch.setattr(store, "deadline", lambda seconds: Late())
        assert run(folder) == 0
    assert "run again to go on" in capsys.readouterr().out
    half = contents(folder)
    unfinished = {name for name in half if name.endswith(("checkpoint.safetensors", "begun.json"))}
    assert unfinished and set(half) < {*contents(at_once), *unfinished}

    trained = []

    def stop(network, *args, real=training.fit, **options):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(1)
        return real(network, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(networks, "fit", stop)
        assert run(folder) == 130
    assert "goes on from what is stored" in capsys.readouterr().err
    assert run(folder) == 0
    assert set(contents(folder)) == set(contents(at_once))
    for name in ("random/set0", "DC/set1", "DC@mlp/set0"):
        of = [root / "tiny" / "made-up" / "ipc1" / name for root in (folder, at_once)]
        assert (of[0] / "set.safetensors").read_bytes() == (of[1] / "set.safetensors").read_bytes()
        assert shipped.evaluations(of[0])["convnet"].accuracies == shipped.evaluations(of[1])["convnet"].accuracies


def test_a_dry_run_says_what_is_left_and_writes_nothing(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, "--dry-run") == 0
    assert not folder.exists() and not (tmp_path / "results.log").exists()
    listed = capsys.readouterr().out.splitlines()
    assert listed[:3] == ["Table 3, IPC 1", "  made-up, random, set 0: 2 networks, 1 set",
                          "  made-up, DC, set 0: 4 networks, 1 set"], "half-way too, for the first set"  # fmt: skip
    assert (
        "  made-up, DC, set 1: 2 networks, 1 set" in listed
        and "  made-up, DC@mlp, set 0: 6 networks, 1 set" in listed
    )
    assert listed[-3:] == ["Whole data", "  made-up, all training images: 2 networks", "13 of 13 are left"]
    data = campaign.load_data("made-up")
    store.run(data, "random", 1, budget="tiny", networks=1, device="cpu", results_dir=folder / "tiny", progress=False)
    store.run(data, "DC", 1, budget="tiny", device="cpu", results_dir=folder / "tiny", progress=False)
    before = contents(folder)
    assert run(folder, "--dry-run") == 0 and contents(folder) == before
    listed = capsys.readouterr().out.splitlines()
    assert listed[1:3] == ["  made-up, random, set 0: 1 network", "  made-up, DC, set 0: done"]
    assert listed[-1] == "12 of 13 are left"
    assert "  made-up, DC, set 0: 2 networks" in listed, "the other target"


def test_networks_of_the_set_half_way_are_work_too_and_go_on(tmp_path, few_stages, monkeypatch, capsys):
    folder, arguments = tmp_path / "results", ["--tables", "Table 3", "--methods", "DC"]
    assert run(tmp_path / "at-once", *arguments) == 0
    trained = []

    def stop(network, *args, real=training.fit, **options):
        if len(trained) == 3:  # two on the set, one on what it was half-way
            raise KeyboardInterrupt
        trained.append(1)
        return real(network, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(networks, "fit", stop)
        assert run(folder, *arguments) == 130
    capsys.readouterr()
    assert run(folder, *arguments, "--dry-run") == 0
    assert "  made-up, DC, set 0: 1 network\n" in capsys.readouterr().out
    assert run(folder, *arguments) == 0
    traces = [layout.read_trace(f / "tiny/made-up/ipc1/DC/set0/trace.json") for f in (folder, tmp_path / "at-once")]
    assert traces[0][1].accuracies == traces[1][1].accuracies and list(traces[0]) == [1]
    assert "nothing left" in capsys.readouterr().out


def test_a_damaged_run_stops_no_other(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, "--tables", "Table 3") == 0
    (folder / "README.md").write_text(f"{overview.BEGIN}\n{overview.END}\n")
    damaged = folder / "tiny" / "made-up" / "ipc1" / "DC" / "set1" / "accuracy-convnet.json"
    damaged.write_text("{")
    capsys.readouterr()
    assert run(folder, "--tables", "Table 3", "Section 5") == 1
    told = capsys.readouterr().out
    assert re.search(r"left out: Table 3, IPC 1: .*DC/set1/accuracy-convnet.json is damaged", told)
    assert "README.md is not brought up to date: " in told and "nothing left" in told
    assert len(list(folder.rglob("reach.json"))) == 4


def test_campaigns_that_share_the_work_begin_with_their_own(tmp_path, few_stages, capsys):
    assert run(tmp_path / "alone") == 0
    told_of = re.compile(r"^\S+ \S+ (.*(?:, set \d|, all training images)):", re.MULTILINE)
    in_order = told_of.findall(capsys.readouterr().out)
    assert run(tmp_path / "second", "--share", "1/3") == 0
    told = told_of.findall(capsys.readouterr().out)
    own = in_order[1::3]
    assert told == own + [name for name in reversed(in_order) if name not in own] and len(in_order) > 6
    alone, second = contents(tmp_path / "alone"), contents(tmp_path / "second")
    assert set(alone) == set(second)
    assert all(content == second[name] for name, content in alone.items() if name.endswith(".safetensors"))


def test_workers_are_campaigns_that_share_the_work(tmp_path, monkeypatch):
    """In processes of their own, on real digits: each set is made once, and the folder is complete."""
    command = [
        sys.executable, str(ROOT / "workflow" / "campaign.py"), "--budget", "smoke", "--datasets", "digits", "--ipc", "1",
        "--tables", "Table 3", "--methods", "random", "--workers", "2", "--device", "cpu", "--results-dir", str(tmp_path / "r"),
        "--log", str(tmp_path / "log"),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "r" / "smoke").rglob("accuracy-convnet.json"))) == 3
    assert (tmp_path / "log").read_text().count("--share") == 2 and done.stdout.count("the results are in") == 2
    started, ends = [], iter([0, 2, 1, 0, -9])

    class Process:
        def __init__(self, command):
            started.append(command)

        def wait(self):
            return next(ends)

    monkeypatch.setattr(campaign.subprocess, "Popen", Process)
    assert run(tmp_path / "none", "--workers", "3", "--threads", "2") == 2, "the worst of them"
    assert [c[-6:] for c in started] == [["--workers", "1", "--threads", "2", "--share", f"{i}/3"] for i in range(3)]
    assert run(tmp_path / "none", "--workers", "2") == 137, "one was killed"


def test_a_terminated_campaign_ends_its_workers_and_goes_on_later(tmp_path):
    """Its output ends once no worker has it any more; what they left is whole or goes on."""
    command = [
        sys.executable, str(ROOT / "workflow" / "campaign.py"), "--budget", "smoke", "--datasets", "digits", "--ipc", "1",
        "--tables", "Table 3", "--methods", "random", "--device", "cpu", "--results-dir", str(tmp_path / "r"),
    ]  # fmt: skip
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.PIPE, "text": True}
    begun = subprocess.Popen([*command, "--workers", "2", "--log", str(tmp_path / "log")], **options)
    try:
        while not list(tmp_path.glob("r/smoke/*/*/*/*/run.json")):
            assert begun.poll() is None
            time.sleep(0.05)
        begun.terminate()
        begun.communicate(timeout=60)
        assert begun.returncode == 143
    finally:
        begun.kill()
    assert "the results are in" not in (tmp_path / "log").read_text(), "no worker went on to the end of its work"
    done = subprocess.run([*command, "--log", str(tmp_path / "log2")], **options, timeout=300)
    assert done.returncode == 0 and "nothing left" in done.stdout


def test_only_some_tables_and_methods(tmp_path, few_stages, capsys):
    assert run(tmp_path, "--tables", "Table 3", "--methods", "DC", "--dry-run") == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0] == "Table 3, IPC 1" and "made-up, DC, set 1" in told
    assert not re.search("random|Table 4|Section 5", told)


def test_one_thing_changed_goes_to_a_place_of_its_own(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder) == 0
    before = contents(folder)
    (folder / "README.md").write_text(f"{overview.BEGIN}\n{overview.END}\n")
    assert run(folder, "--change", "lr_images=0.05", "init=real", "--tables", "Table 3") == 0
    assert before.items() <= contents(folder).items()
    probe = folder / "probes" / "init=real,lr_images=0.05" / "tiny" / "made-up" / "ipc1"
    assert {p.parent.relative_to(probe).as_posix() for p in probe.rglob("run.json")} == {"DC/set0", "DC/set1"}, (
        "no coreset"
    )
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
    more = shlex.split(dict(word.partition("=")[::2] for word in shlex.split(row.command))["CAMPAIGN"])
    assert more[-3:] == ["--change", "init=real", "lr_images=0.05"]
    capsys.readouterr()
    assert run(folder, *more, "--dry-run") == 0 and capsys.readouterr().out.splitlines()[-1] == "0 of 2 are left"


@pytest.mark.parametrize(
    ("spelt", "folder", "said"),
    [
        ("lam=null", None, "left out: Table 3, IPC 1: made-up, DC: lam=null is what the budget tiny has anyway"),
        ("lr_images=0.10", None, "lr_images=0.1 is what the budget tiny has anyway"),
        ("lr_images=1", "lr_images=1.0", None),
        ("augment=dsa: scale+crop", "augment=dsa_scale+crop", None),  # a colon in a name would end make
        ("lam=2", "lam=2", None),
    ],
)
def test_a_change_has_one_spelling_and_changes_something(
    spelt, folder, said, tmp_path, few_stages, monkeypatch, capsys
):
    monkeypatch.setattr(campaign, "STAGES", (campaign.Stage("Table 3", 1, ("DC",)),))
    assert run(tmp_path / "results", "--change", spelt) == (1 if said else 0)
    if said:
        assert said in capsys.readouterr().out
        assert not list(tmp_path.rglob("run.json"))
        return
    assert [p.name for p in (tmp_path / "results" / "probes").iterdir()] == [folder]
    (row,) = overview.made_with(tmp_path / "results").itertuples()
    more = shlex.split(dict(word.partition("=")[::2] for word in shlex.split(row.command))["CAMPAIGN"])
    capsys.readouterr()
    assert run(tmp_path / "results", *more, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 2 are left"


def test_a_probe_counts_once_it_has_all_its_networks(tmp_path, few_stages, monkeypatch):
    folder = tmp_path / "results"
    options = {"budget": "tiny", "device": "cpu", "progress": False, "lr_images": 0.05}
    place = shipped.probe_folder({"lr_images": 0.05}, folder) / "tiny"
    for n in (1, 2):
        store.run(campaign.load_data("made-up"), "DC", 1, networks=n, results_dir=place, **options)
        ((change, S),) = shipped.probes(folder)
        assert change == "lr_images=0.05" and bool(S.evaluations) == (n == 2)


def test_how_hard_each_part_pulls_is_measured_beside_the_set(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        campaign, "STAGES", (campaign.Stage("Section 3.3", 10, ("MD", "MDA"), piece=campaign.pulled),)
    )
    folder = tmp_path / "results"
    assert run(folder, ipc=(10,)) == 0
    told = r"made-up, MD, set 0: (intra|inter) d[12] moves S most, by [0-9.]+% of its norm in one step at t = [01]\b"
    assert re.search(told, capsys.readouterr().out)
    t = readback.pulls(folder)
    assert set(t[["dataset", "ipc", "method", "budget", "set"]].itertuples(index=False, name=None)) == {
        ("made-up", 10, method, "tiny", seed) for method in ("MD", "MDA") for seed in (0, 1)
    }
    again = pulls(small["made-up"], gm.Recipe.for_method("MDA", "made-up", 10, "tiny", 1), device="cpu")
    stored = t[(t["method"] == "MDA") & (t["set"] == 1)].reset_index(drop=True)
    assert stored[again.columns].equals(again)
    (row,) = overview.made_with(folder).itertuples()
    assert row.sets == row.networks == 0 and row.seconds > 0
    assert row.command.endswith("""CAMPAIGN='--tables "Section 3.3" --methods MD MDA'""")
    assert run(folder, "--dry-run", ipc=(10,)) == 0 and capsys.readouterr().out.splitlines()[-1] == "0 of 4 are left"


def test_a_data_set_that_is_not_at_hand_is_left_out_and_the_others_go_on(tmp_path, few_stages, capsys):
    assert run(tmp_path / "results", datasets=("SVHN", "made-up")) == 1
    log = capsys.readouterr().out
    assert "left out: SVHN could not be downloaded: put its files there" in log
    assert {p.name for p in (tmp_path / "results" / "tiny").iterdir()} == {"made-up"}


def test_a_piece_that_cannot_be_done_is_said_and_the_others_go_on(tmp_path, few_stages, monkeypatch, capsys):
    def diverges(data, recipe, *args, real=store.condense, **options):
        if recipe.seed == 0 and recipe.network == "convnet":
            raise gm.Diverged("the matching loss is nan", 0, 0, "", None)
        return real(data, recipe, *args, **options)

    monkeypatch.setattr(store, "condense", diverges)
    assert run(tmp_path / "results") == 1
    log = capsys.readouterr().out
    assert "Table 3, IPC 1: made-up, DC, set 0: the matching loss is nan" in log
    assert "Section 5, IPC 1: made-up, DC, set 0: the matching loss is nan" in log, (
        "what it needs cannot be made there either"
    )
    there = {p.parent.relative_to(tmp_path / "results").as_posix() for p in (tmp_path / "results").rglob("run.json")}
    made = ("random/set0", "random/set1", "DC/set1", "DC@mlp/set0", "DC@mlp/set1")
    assert there == {f"tiny/made-up/ipc1/{name}" for name in made}


def test_networks_that_do_not_fit_the_images_are_left_out(small, tmp_path):
    pieces, refused = campaign.plan(campaign.Asked("tiny", tmp_path), [small["made-up"]], (1,))
    assert (
        refused
        and all(sentence.startswith("Table 4, IPC 1: ") for sentence in refused)
        and len(set(refused)) == len(refused)
    )
    assert {stage for stage, _ in pieces} >= {"Table 3, IPC 1", "Section 5, IPC 1", "Whole data"}
    told = " ".join(refused)
    assert "too small for LeNet" in told and "MLP" not in told and "ConvNet" not in told
    four = {piece.key[2]: piece.key[4] for stage, piece in pieces if stage == "Table 4, IPC 1"}
    assert four["MD"] == four["MD@mlp"] == ("mlp", "convnet", "alexnet"), "the table's other cells"
    assert not {"MD@lenet", "MD@vgg11bn"} & set(four)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--datasets", "MNISTT"], "unknown data set 'MNISTT'"),
        (["--ipc", "7"], "no table has 7 images per class: choose from 1, 10, 50"),
        (["--budget", "huge"], "unknown budget 'huge': choose from smoke, lite, paper"),
        (["--time-budget", "-1"], "time_budget=-1.0 does not fit"),
        (["--threads", "0"], "threads=0 does not fit"),
        (["--workers", "0"], "workers=0 does not fit"),
        (["--share", "2/2"], "--share 2/2 does not fit: give the number of this campaign, from 0, and of all"),
        (["--tables", "Table 9"], "unknown table 'Table 9': choose from Table 3, Table 1"),
        (["--methods", "MTT"], "unknown method 'MTT': choose from random, DC"),
        (["--device", "cudax"], "the device 'cudax' cannot be used here"),
        (["--change", "rate=0.1"], "unknown recipe field to change 'rate': choose from lam"),
        (["--change", "how=d2"], "unknown recipe field to change 'how'"),
        (["--change", "lr_images"], "--change lr_images does not fit: give a value too, as in lr_images=0.1"),
        (["--change", "lr_images=-1"], "lr_images=-1.0 does not fit"),
        (
            ["--change", "lr_images=1", "--change", "gap=1", "lr_images=2"],
            "--change has lr_images twice: give it one value",
        ),
        (["--change", "lam"], "--change lam does not fit: give a value too, as in lam=null"),
        (["--change", "width=8"], "unknown recipe field to change 'width'"),
        (
            ["--change", "lr_images=1", "--tables", "Section 5"],
            "--change is for condensed sets, and none is asked for",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_run(more, sentence, tmp_path, capsys):
    folder = tmp_path / "results"
    assert run(folder, *more) == 2
    assert sentence in capsys.readouterr().err and not folder.exists()


def test_another_recipe_in_the_folder_is_refused(tmp_path, few_stages, monkeypatch, capsys):
    assert run(tmp_path / "results") == 0
    before = contents(tmp_path / "results")
    monkeypatch.setitem(recipes.BUDGETS, "tiny", replace(TINY, recipe={**TINY.recipe, "outer_loops": 3}))
    capsys.readouterr()
    assert run(tmp_path / "results") == 1
    log = capsys.readouterr().out
    assert "holds a run with outer_loops=2 where outer_loops=3 is asked for" in log
    after = contents(tmp_path / "results")
    assert all(after[name] == before[name] for name in before)


# ---- the time left ---------------------------------------------------------------------------------------


def test_the_time_left_is_that_of_what_was_measured():
    def piece(work):
        return campaign.Piece((), "", lambda: Counter(work), None)

    one, networks_, other = ("set", "MNIST", 1, "DC"), ("networks", "MNIST", 1, "convnet"), ("descents", "MNIST", 1)
    clock = campaign.Clock()
    pieces = [piece({one: 1, networks_: 50}), piece({networks_: 10}), piece({}), piece({other: 1, networks_: 1})]
    assert clock.left(pieces) == "3 left: no measure yet for 3"
    clock.note({one: (600.0, 1), networks_: (20.0, 10)})
    clock.note({networks_: (40.0, 10)})  # 3 s for each
    assert clock.left(pieces) == "3 left: about 0:13:00 for 2, no measure yet for 1"
    clock.note({other: (7.0, 1)})
    assert clock.left(pieces) == "3 left: about 0:13:10 for 3"
    assert clock.left([piece({})]) == "nothing left"


def test_a_method_not_run_yet_counts_as_the_longest_of_the_same_size():
    clock = campaign.Clock()
    clock.note({("set", "MNIST", 1, "random"): (1.0, 1), ("set", "MNIST", 1, "DC"): (1200.0, 2)})
    assert clock.rate(("set", "MNIST", 1, "M")) == 600
    for unlike in (("set", "MNIST", 10, "M"), ("set", "FashionMNIST", 1, "M"), ("set", "MNIST", 1, "MD@mlp"),
                   ("networks", "MNIST", 1, "mlp")):  # fmt: skip
        assert math.isnan(clock.rate(unlike))


def test_estimates_come_from_what_earlier_campaigns_stored(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    options = {"budget": "tiny", "sets": 1, "device": "cpu", "results_dir": folder / "tiny", "progress": False}
    store.sweep(campaign.load_data("made-up"), ["random", "DC"], 1, **options)
    for path in folder.rglob("*.json"):  # as if a set had taken 1000 s, and a network 50 s
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "seconds": 100.0 if "accuracies" in content else 1000.0}))
    assert run(folder, "--time-budget", "0") == 0
    # random and DC, set 1, 2 * (1000 + 2 * 50); nothing tells of descents, of another network or of another size
    assert "2 of 13 are there; 11 left: about 0:36:40 for 2, no measure yet for 9" in capsys.readouterr().out


def test_the_results_readme_is_brought_up_to_date(tmp_path, few_stages):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "README.md").write_text(f"# Results\n\n{overview.BEGIN}\nstale\n{overview.END}\nmore\n")
    assert run(folder) == 0
    text = (folder / "README.md").read_text()
    assert text.startswith("# Results\n") and text.endswith(f"{overview.END}\nmore\n") and "stale" not in text
    assert "| `tiny/made-up/ipc1` | 6 | 20 |" in text
    assert text == overview.readme(text, folder)


def test_the_readme_is_true_after_each_piece(tmp_path, few_stages, monkeypatch):
    """Whatever ends the campaign, and where nothing is there to end it with."""
    folder, seen = tmp_path / "results", []
    folder.mkdir()
    (folder / "README.md").write_text(f"{overview.BEGIN}\n{overview.END}\n")

    def work(*arguments, real=campaign.work):
        *others, after = arguments

        def look():
            after()
            text = (folder / "README.md").read_text()
            seen.append(text == overview.readme(text, folder))

        return real(*others, look)

    monkeypatch.setattr(campaign, "work", work)
    assert run(folder) == 0 and seen == [True] * 13


def test_the_command_in_the_readme_makes_what_is_in_the_folder(tmp_path, few_stages, capsys):
    folder = tmp_path / "results"
    assert run(folder, ipc=(1, 10)) == 0
    for row in overview.made_with(folder).itertuples():
        capsys.readouterr()
        asked = dict(word.partition("=")[::2] for word in shlex.split(row.command.removeprefix("make results ")))
        assert (asked["BUDGET"], asked["DATASETS"]) == ("tiny", "made-up")
        more = shlex.split(asked["CAMPAIGN"])
        assert run(folder, *more, "--dry-run", ipc=asked.get("IPC", "1").split()) == 0
        listed = capsys.readouterr().out.splitlines()
        n = listed[-1].removeprefix("0 of ").removesuffix(" are left")
        assert int(n) == {"tiny/made-up/ipc1": 12, "tiny/made-up/ipc10": 2, "tiny/made-up/whole": 1}[row.folder]


def test_it_needs_no_notebook(tmp_path):
    """From a command line, in a Python that has nothing to run or to show notebooks with."""
    without = ["papermill", "jupytext", "nbclient", "nbformat", "IPython", "ipywidgets", "matplotlib", "seaborn"]
    arguments = [
        "--dry-run",
        "--datasets",
        "digits",
        "--ipc",
        "10",
        "--budget",
        "smoke",
        "--results-dir",
        str(tmp_path),
    ]
    code = (
        f"import sys, runpy; sys.modules |= dict.fromkeys({without}); sys.argv = ['campaign', *{arguments}]; "
        "runpy.run_path('workflow/campaign.py', run_name='__main__')"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    networks = gm.BUDGETS["smoke"].networks
    assert f"Table 3, IPC 10\n  digits, random, set 0: {networks} networks, 1 set\n" in found.stdout
