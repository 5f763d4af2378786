"""The command `gmlib run`: the order of its work, what it skips, where it stops, and what it says."""

import json
import math
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import contents, held, make_data
from messages import refuses

import gmlib as gm
from gmlib import cli, condensation, evaluation, how
from gmlib import recipe as recipes
from gmlib.analysis.matching import pulls
from gmlib.runs import layout, overview, readback, shipped, store, tasks
from gmlib.runs.cells import Cell

TINY = recipes.Budget(
    recipe={"width": 2, "depth": 2, "batch_real": 2, "outer_loops": 2}, many={"inner_loops": 2, "zeta_theta": 1},
    sets=2, networks=2, epochs=1,
)  # fmt: skip
HEADER = "table,dataset,ipc,method,targets,measure\n"
FEW = f"""{HEADER}Table 3,made-up,1,random DC,,
Section 5,made-up,1,noise DC,,reach
Table 4,made-up,1,DC DC@mlp,mlp convnet,
Whole data,made-up,,,,whole
Table 3,made-up,10,random,,
"""
TABLE_3, CONDENSED = f"{HEADER}Table 3,made-up,1,random DC,,\n", f"{HEADER}Table 3,made-up,1,DC,,\n"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two small data sets, and a budget of milliseconds."""
    monkeypatch.setitem(recipes.BUDGETS, "tiny", TINY)
    monkeypatch.setattr(tasks, "DESCENT", {"eps": [0.5], "lr": 0.1, "max_steps": 3})
    monkeypatch.setattr(tasks, "FEW_STARTS", 1)
    monkeypatch.setattr(tasks, "SHORT_WHOLE", {"networks": 2, "epochs": 1})
    monkeypatch.setattr(tasks, "LEAST_NETWORKS", 10)
    made = (make_data(dtype=torch.float32, n_test=12, seed=seed) for seed in (0, 1))
    data = {name: replace(each, name=name) for name, each in zip(("made-up", "other"), made, strict=True)}

    def load_data(name, **options):
        if name == "SVHN":
            raise FileNotFoundError("SVHN could not be downloaded: put its files there")
        return data[name]

    monkeypatch.setattr(cli, "load_data", load_data)
    return data


def words(folder, text, *more):
    """The command for a file of cells with this text. Its results go to ``folder``."""
    folder.parent.mkdir(exist_ok=True)
    file = folder.with_suffix(".csv")
    file.write_text(text)
    usual = ["--cells", file, "--results-dir", folder, "--budget", "tiny", "--device", "cpu"]
    usual += [] if "--precision" in more else ["--precision", "float32"]
    return ["run", *map(str, [*usual, *more])]


def run(folder, text=FEW, *more):
    return cli.main(words(folder, text, *more))


def same_numbers(a, b):
    """True if two folders hold the same files with the same sets, accuracies and measurements. Seconds differ."""
    numbers = rb'"accuracies": *\[[^]]*\]|"columns": *\{[^}]*\}'
    first, second = (
        {name: c if name.endswith(".safetensors") else re.findall(numbers, c) for name, c in contents(folder).items()}
        for folder in (a, b)
    )
    assert all(found for name, found in first.items() if not name.endswith("run.json"))
    return first == second


def done(printed, is_new=True):
    """The cells in the lines on the standard output, such as "DC, set 0", in order: new ones, or those read back."""
    lines = [line for line in printed.splitlines() if line.endswith(" (stored)") != is_new and "waiting" not in line]
    return [re.search(r"(?:made-up|other), (?:IPC \d+, )?(.*?): ", line)[1] for line in lines]


def left(capsys, folder, text=FEW, *more):
    """The lines of a dry run by cell, without how long it takes, and what the last line says."""
    capsys.readouterr()
    assert run(folder, text, "--dry-run", *more) == 0
    printed = capsys.readouterr().out
    times = r"(, about|; condensed sets and their networks: about) [0-9.]+ (s|min|h)$"
    *lines, last = re.sub(times, "", printed, flags=re.M).splitlines()
    return [line.split("made-up, ")[1] for line in lines], last


def stop_after(n, monkeypatch):
    """Raise KeyboardInterrupt when networks are trained for the (n + 1)-th time."""
    times = iter(range(n))

    def stop(*args, real=evaluation.fit, **options):
        if next(times, None) is None:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(evaluation, "fit", stop)


# ---- from beginning to end -------------------------------------------------------------------------------


def test_all_tables_from_beginning_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder, log = tmp_path / "results", ["--log", "~/logs/all.log"]
    assert run(folder, FEW, *log) == 0
    files = ("accuracy-convnet.json", "run.json", "set.safetensors")
    assert set(contents(folder / "tiny" / "made-up")) == {
        *(f"ipc1/{m}/set{s}/{file}" for m in ("random", "DC", "DC@mlp") for s in (0, 1) for file in files),
        *(f"ipc1/{m}/set{s}/reach.json" for m in ("noise", "DC") for s in (0, 1)),
        *(f"ipc1/{m}/set{s}/accuracy-mlp.json" for m in ("DC", "DC@mlp") for s in (0, 1)),
        *(f"ipc1/{m}/set0/{file}" for m in ("DC", "DC@mlp") for file in ("snapshots.safetensors", "trace.json")),
        *(f"ipc10/random/set{s}/{file}" for s in (0, 1) for file in files),
        "whole/accuracy-convnet.json",
    }
    results = readback.load_results(folder / "tiny")
    assert results.groupby(["dataset", "ipc", "method", "network"]).size().eq(4).all()
    assert set(results["budget"]) == {"tiny"}
    # the same numbers as store.run
    options = {"budget": "tiny", "seed": 1, "device": "cpu", "results_dir": tmp_path / "b", "progress": False}
    by_hand = store.run(cli.load_data("made-up"), "DC", 1, dtype=torch.float16, **options)
    mine = gm.load_condensed("made-up", 1, "DC", seed=1, results_dir=folder)
    assert torch.equal(mine.images, mine.images.half().float()), "stored as float16, and read as float32"
    assert torch.equal(mine.images, by_hand.S.images) and mine.accuracy.accuracies == by_hand.evaluation.accuracies
    printed = capsys.readouterr()
    assert len(done(printed.out)) == 15 and "15/15" in printed.err

    # nothing is done again
    before = contents(folder)
    for module, name in (
        (store, "condense_together"), (store, "coreset"), (store, "evaluate"), (evaluation, "fit"), (tasks, "reach")
    ):  # fmt: skip
        monkeypatch.setattr(module, name, None)
    assert run(folder, FEW, *log) == 0 and contents(folder) == before
    again = capsys.readouterr()
    assert done(again.out) == [] and sorted(done(again.out, is_new=False)) == sorted(done(printed.out))
    assert (tmp_path / "logs" / "all.log").read_text() == printed.out + again.out


def test_the_first_lines_come_first_and_a_cell_of_two_tables_once(tmp_path, capsys):
    text = f"{HEADER}Table 3,other made-up,1,random DC,,\nTable 1,made-up,1,DC Inter,,\nTable 3,other,10,random,,\n"
    assert run(tmp_path / "results", text, "--dry-run") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    in_order = [re.match(r"(.*), IPC (\d+), (.*), set (\d): ", line).groups() for line in lines]
    assert in_order == [
        *((f"Table 3: {d}", "1", m, s) for d in ("other", "made-up") for s in "01" for m in ("random", "DC")),
        *(("Table 1: made-up", "1", "Inter", s) for s in "01"),
        *(("Table 3: other", "10", "random", s) for s in "01"),
    ]
    assert last.startswith("12 of 12 are left; condensed sets and their networks: about ")


def test_a_dry_run_lists_what_is_left_and_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "results"
    assert run(folder, FEW, "--dry-run", "--log", tmp_path / "log") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    printed = capsys.readouterr().out
    assert re.search(r"DC, set 0: 1 set, 4 networks, about [0-9.]+ s$", printed, flags=re.M)
    assert re.search(r"15 are left; condensed sets and their networks: about [0-9.]+ s$", printed)
    listed, last = left(capsys, folder)
    assert listed[:2] == ["IPC 1, random, set 0: 1 set, 2 networks", "IPC 1, DC, set 0: 1 set, 4 networks"]
    assert {"IPC 1, DC, set 1: 1 set, 2 networks", "IPC 1, DC@mlp, set 0: 1 set, 6 networks"} <= set(listed)
    assert {"IPC 1, noise, set 0, reach: 1 measurement", "all training images: 2 networks"} <= set(listed)
    assert last == "15 of 15 are left"
    options = {"budget": "tiny", "device": "cpu", "results_dir": folder / "tiny", "progress": False}
    store.run(cli.load_data("made-up"), "random", 1, networks=1, **options)
    store.run(cli.load_data("made-up"), "DC", 1, **options)
    before = contents(folder)
    listed, last = left(capsys, folder)
    assert contents(folder) == before and last == "14 of 15 are left"
    assert listed[:2] == ["IPC 1, random, set 0: 1 network", "IPC 1, DC, set 0: done"]
    assert "IPC 1, DC, set 0: 2 networks" in listed, "the other target"


def test_sets_of_one_seed_are_made_together(tmp_path, monkeypatch):
    made = []

    def counted(data, recipes, *args, real=store.condense_together, **options):
        made.append(sorted(recipe.method for recipe in recipes))
        return real(data, recipes, *args, **options)

    monkeypatch.setattr(store, "condense_together", counted)
    text = f"{HEADER}Section 5,made-up,1,DC,,reach\nTable 3,made-up,1,random DC M DC@mlp,,\n"
    assert run(tmp_path / "results", text, "--networks", 1, "--threads", 1) == 0
    assert made == [["DC", "M"]] * 2 + [["DC@mlp"]] * 2


def test_the_pull_of_each_part_of_the_loss_is_stored_with_the_set(small, tmp_path, capsys):
    folder, text = tmp_path / "results", f"{HEADER}Section 3.3,made-up,10,MD MDA,,pulls\n"
    assert run(folder, text) == 0
    said = r"MD, set 0, pulls: (intra|inter) d[12] moves S most, by [0-9.]+% of its norm in one step at t = [01], in "
    assert re.search(said, capsys.readouterr().out)
    t = readback.stored_pulls(folder)
    of = t[["dataset", "ipc", "method", "budget", "set"]].itertuples(index=False, name=None)
    assert set(of) == {("made-up", 10, method, "tiny", seed) for method in ("MD", "MDA") for seed in (0, 1)}
    again = pulls(small["made-up"], gm.Recipe.for_method("MDA", "made-up", 10, "tiny", 1), device="cpu")
    stored = t[(t["method"] == "MDA") & (t["set"] == 1)].reset_index(drop=True)
    assert stored[again.columns].equals(again)
    (row,) = overview.made_with(folder).itertuples()
    assert row.sets == row.networks == 0 and row.seconds > 0
    assert row.command.endswith(" --tables 'Section 3.3' --methods MD MDA")
    assert left(capsys, folder, text)[1] == "0 of 4 are left"


def test_section_5_uses_the_real_data_from_few_starts_and_not_for_noise(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.BUDGETS, "paper", TINY)
    monkeypatch.setattr(tasks, "STARTS", 3)
    folder, text = tmp_path / "results", f"{HEADER}Section 5,made-up,1,noise DC,,reach\n"
    assert run(folder, text, "--seeds", 0) == run(folder, text, "--seeds", 0, "--budget", "paper") == 0
    starts = readback.stored_descents(folder).astype({"start": str}).groupby(["budget", "method"])["start"].nunique()
    assert starts.to_dict() == {
        ("paper", "DC"): 3, ("paper", "noise"): 3, ("tiny", "DC"): 1, ("tiny", "noise"): 1
    }  # fmt: skip
    settings = json.loads((folder / "made-up/ipc1/DC/set0/reach.json").read_text())["settings"]
    assert (settings["n_starts"], settings["n_real"]) == (3, tasks.REAL_STARTS)
    used = []

    def seen(S, *, data, real=tasks.reach, **settings):
        used.append((S.recipe.get("method"), data is not None))
        return real(S, data=data, **settings)

    monkeypatch.setattr(tasks, "reach", seen)
    assert run(tmp_path / "again", text, "--seeds", 0) == 0
    assert used == [("noise", False), (None, True)]


# ---- ten networks first, then the others; sets along the run ---------------------------------------------


def test_every_set_gets_the_networks_of_a_verdict_before_any_gets_more(tmp_path, monkeypatch, capsys):
    text = f"{TABLE_3}Whole data,made-up,,,,whole\nTable 3,made-up,10,random,,\n"
    assert run(tmp_path / "at-once", text) == 0
    capsys.readouterr()
    monkeypatch.setattr(tasks, "LEAST_NETWORKS", 1)
    assert run(tmp_path / "results", text, "--time-budget", 0) == 3 and not (tmp_path / "results").exists()
    assert "7 of 7 cells are left (Table 3: 6; Whole data: 1)" in capsys.readouterr().err, "each once"
    assert run(tmp_path / "results", text) == 0
    sets = ["random, set 0", "DC, set 0", "random, set 1", "DC, set 1"]
    last = [*sets, "random, set 0", "random, set 1"]
    assert done(capsys.readouterr().out) == [*sets, "all training images", *last[-2:], *last]
    assert same_numbers(tmp_path / "results", tmp_path / "at-once")


def test_sets_along_a_run_are_kept_and_evaluated_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gm.Recipe, "outer_loops", 2)  # so the budget has all of the paper's iterations
    monkeypatch.setattr(tasks, "LEAST_NETWORKS", 1)
    monkeypatch.setattr(tasks, "FEW_NETWORKS", 1)
    folder, text = tmp_path / "results", f"{HEADER}Table 3,made-up,1,DC M,,\n"
    along = folder / "tiny" / "made-up" / "ipc1" / "DC" / "set0"
    with monkeypatch.context() as patch:
        stop_after(4, patch)  # one network on each set
        assert run(folder, text) == 130
    assert (along / "snapshots.safetensors").is_file() and not (along / "trace.json").exists()
    assert [p.parent.parent.name for p in folder.rglob("snapshots.safetensors")] == ["DC"], "one method, one set"
    listed, _ = left(capsys, folder, text)
    assert listed[:4] == [f"IPC 1, {m}, set {s}: done" for s in (0, 1) for m in ("DC", "M")]
    assert listed[4:6] == ["IPC 1, DC, set 0: 4 networks", "IPC 1, M, set 0: 1 network"]
    assert run(folder, text) == 0
    assert {k: e.n for k, e in layout.read_trace(along / "trace.json").items()} == {0: 1, 1: 1, 2: 1}
    assert re.search("DC, set 0: .*after 1 of 2 outer iterations", capsys.readouterr().out)
    assert left(capsys, folder, text)[1] == "0 of 8 are left"


def test_networks_that_end_with_nan_are_not_trained_again(tmp_path, monkeypatch, capsys):
    def diverges(group, *args, real=evaluation.fit, **options):
        real(group, *args, **options)
        for parameter in (p for network in group for p in network.parameters()):
            parameter.data.fill_(math.nan)

    monkeypatch.setattr(evaluation, "fit", diverges)
    assert run(tmp_path / "results", CONDENSED) == 0
    assert left(capsys, tmp_path / "results", CONDENSED)[1] == "0 of 2 are left"


# ---- stopped, and continued ------------------------------------------------------------------------------


def test_it_continues_after_the_end_of_the_time_and_after_a_stop(tmp_path, monkeypatch, capsys):
    """Stopped inside a set by the deadline, then inside phase 2: the same bits as in one run."""
    at_once, folder = tmp_path / "at-once", tmp_path / "results"
    assert run(at_once) == 0

    class Late(float):
        """A deadline that passes inside the first condensation."""

        is_past = False

        def __lt__(self, now):  # `now > deadline` asks here first, since this is a subclass of float
            Late.is_past |= sys._getframe(2).f_code.co_name == "_outer_iteration"
            return Late.is_past

    with monkeypatch.context() as patch:
        patch.setattr(cli, "deadline_in", lambda seconds: Late(1e12))
        assert run(folder) == 3
    assert "run again to continue" in capsys.readouterr().err
    half = contents(folder)
    unfinished = {name for name in half if name.endswith(("checkpoint.safetensors", "begun.json"))}
    assert unfinished and set(half) < {*contents(at_once), *unfinished}
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert run(folder) == 130
    assert "continue" in capsys.readouterr().err
    assert left(capsys, folder)[0][1] == "IPC 1, DC, set 0: 1 network", "half-way"
    assert run(folder) == 0 and same_numbers(folder, at_once)


@pytest.mark.parametrize("at", ["fit", "algorithm_1"])
def test_a_terminated_command_continues_later(at, tmp_path, monkeypatch, capsys):
    folder, at_once = tmp_path / "results", tmp_path / "at-once"
    assert run(at_once, TABLE_3) == 0
    before = signal.getsignal(signal.SIGTERM)
    module = evaluation if at == "fit" else condensation
    real = getattr(module, at)

    def terminate(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **options)  # a condensation saves first

    with monkeypatch.context() as patch:
        patch.setattr(module, at, terminate)
        with pytest.raises(SystemExit) as ended:
            run(folder, TABLE_3)
    assert "gmlib: terminated: " in capsys.readouterr().err
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert bool(list(folder.rglob("checkpoint.safetensors"))) == (at == "algorithm_1")
    assert run(folder, TABLE_3) == 0 and same_numbers(folder, at_once)


# ---- precision, and changes ------------------------------------------------------------------------------


def options_of(row):
    """The budget, data set and IPC in the command of a row of `overview.made_with`, and its other options."""
    command, first, *given = shlex.split(row.command)
    assert (command, first) == (".venv/bin/gmlib", "run")
    more = given.index("--tables")
    return dict(zip(given[:more:2], given[1:more:2], strict=True)), given[more:]


def measures(monkeypatch, precision):
    """A process in which this precision is the fastest."""
    monkeypatch.setattr(condensation, "fastest_precision", lambda *_: precision)
    monkeypatch.setattr(condensation, "_MEASURED", {})


def test_the_measured_precision_is_kept_and_named(tmp_path, monkeypatch, capsys):
    folder, auto, change = tmp_path / "results", ["--precision", "auto"], ["--change", "lr_images=0.05"]
    measures(monkeypatch, "bf16")
    assert run(folder, TABLE_3, *auto) == 0 and run(folder, TABLE_3, *auto, *change) == 0
    measures(monkeypatch, "float32")
    for row in overview.made_with(folder).itertuples():
        assert " --precision bf16" in row.command
        for more in (options_of(row)[1], [*auto, *(change if "probes" in row.folder else [])]):
            assert re.fullmatch("0 of [24] are left", left(capsys, folder, TABLE_3, *more)[1])
    records = [json.loads(p.read_text()) for p in sorted(folder.rglob("run.json"))]
    assert {(r["budget"], r["recipe"].get("precision")) for r in records} == {
        ("tiny", None), ("tiny", "bf16"), ("tiny, changed", "bf16")
    }  # fmt: skip
    assert gm.load_condensed("made-up", 1, "DC", budget="tiny", results_dir=folder).recipe["precision"] == "bf16"
    assert {change for change, _ in shipped.probes(folder)} == {"lr_images=0.05"}
    assert run(folder, TABLE_3, "--precision", "float32") == 1, "sets in another precision are not mixed in"
    assert "precision='bf16', but precision='float32'" in capsys.readouterr().err


def test_sets_with_a_change_go_to_their_own_folder(tmp_path, capsys):
    folder = tmp_path / "results"
    assert run(folder, TABLE_3) == 0
    before = contents(folder)
    (folder / "README.md").write_text(f"{overview.BEGIN}\n{overview.END}\n")
    text = f"{TABLE_3}Section 5,made-up,1,DC,,reach\nWhole data,made-up,,,,whole\n"
    assert run(folder, text, "--change", "lr_images=0.05", "init=real") == 0
    assert before.items() <= contents(folder).items()
    probe = folder / "probes" / "init=real,lr_images=0.05" / "tiny" / "made-up"
    made_there = {p.parent.relative_to(probe).as_posix() for p in probe.rglob("*.json")}
    assert made_there == {"ipc1/DC/set0", "ipc1/DC/set1"}, "no coreset, and no measurement"
    record = json.loads((probe / "ipc1/DC/set0/run.json").read_text())
    usual = gm.Recipe.for_method("DC", "made-up", 1, "tiny").as_dict()
    assert {name for name, value in record["recipe"].items() if value != usual[name]} == {"init", "lr_images"}
    made = [(change, S.record["recipe"]["seed"]) for change, S in shipped.probes(folder)]
    assert made == [("init=real lr_images=0.05", s) for s in (0, 1)]
    assert not [S for S in shipped.condensed(folder) if "changed" in S.budget], "they are counted nowhere else"
    (row,) = (row for row in overview.made_with(folder).itertuples() if row.folder.startswith("probes/"))
    assert row.sets == 2 and row.folder in (folder / "README.md").read_text()
    _, more = options_of(row)
    assert more[-3:] == ["--change", "init=real", "lr_images=0.05"]
    assert left(capsys, folder, text, *more)[1] == "0 of 2 are left"


@pytest.mark.parametrize(
    ("spelled", "folder", "said"),
    [
        ("lam=null", None, "lam=null is already in the budget tiny"),
        ("lr_images=0.10", None, "lr_images=0.1 is already in the budget tiny"),
        ("lr_images=1", "lr_images=1.0", None),
        ("augment=dsa: scale+crop", "augment=dsa_scale+crop", None),  # make cannot have a colon in a name
        ("lam=2", "lam=2", None),
        ("precision=bf16", "precision=bf16", None),
    ],
)
def test_a_change_has_one_spelling_and_changes_something(spelled, folder, said, tmp_path, capsys):
    results = tmp_path / "results"
    assert run(results, CONDENSED, "--change", spelled) == (2 if said else 0)
    if said:
        assert said in capsys.readouterr().err and not results.exists()
        return
    assert [p.name for p in (results / "probes").iterdir()] == [folder]
    (row,) = overview.made_with(results).itertuples()
    _, more = options_of(row)
    assert ("--precision" in more) != spelled.startswith("precision")
    assert left(capsys, results, CONDENSED, *more)[1] == "0 of 2 are left"


# ---- several processes -----------------------------------------------------------------------------------

# A copy of the command on a small grid, in a process of its own. It is ready when all is imported, and then waits.
COPY = """
import math, pickle, sys, time
from pathlib import Path
import torch
from gmlib import cli
from gmlib.recipe import BUDGETS, Budget
from gmlib.runs import store

torch.set_num_threads(1)
torch.optim.SGD([torch.zeros(1)], lr=1)  # the first optimiser imports much
folder = Path(sys.argv[1])
BUDGETS["tiny"] = {budget}
cli.load_data = lambda name, **options: pickle.loads((folder / "data").read_bytes())
store.PeakMemory = lambda device: lambda: math.nan

def noted(job, *args, real=store._store):
    print("made", job.method, job.recipe.seed)
    return real(job, *args)

store._store = noted
(folder / "ready").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
sys.exit(cli.main(sys.argv[2:]))
"""


def test_two_copies_of_the_command_share_the_work(small, tmp_path, monkeypatch):
    """Each set is made once, with the same bits as by one copy alone."""
    text = f"{HEADER}Table 3,made-up,1,random DC M,,\n"
    assert run(tmp_path / "alone", text) == 0
    made_here = []

    def noted(job, *args, real=store._store):
        made_here.append((job.method, str(job.recipe.seed)))
        time.sleep(0.3)  # so that the other takes part
        return real(job, *args)

    monkeypatch.setattr(store, "_store", noted)
    (tmp_path / "data").write_bytes(pickle.dumps(small["made-up"]))
    code = [sys.executable, "-c", COPY.format(budget=TINY), str(tmp_path), *words(tmp_path / "results", text)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    other = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        while not (tmp_path / "ready").exists() and other.poll() is None:
            time.sleep(0.01)
        (tmp_path / "go").touch()
        assert run(tmp_path / "results", text) == 0
        printed, errors = other.communicate(timeout=120)
    finally:
        other.kill()
    assert other.returncode == 0, errors
    made_there = re.findall(r"^made (\w+) (\d)$", printed, re.MULTILINE)
    assert sorted(made_here + made_there) == [(method, seed) for method in ("DC", "M", "random") for seed in "01"]
    assert made_here and made_there, "both took part"
    assert same_numbers(tmp_path / "alone", tmp_path / "results")


def test_what_another_process_holds_comes_last(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results"

    def info(message, *args, real=tasks.log.info):
        real(message, *args)
        if "waiting" in message:
            release()

    monkeypatch.setattr(tasks.log, "info", info)
    with held(layout.run_folder(folder / "tiny", "made-up", 1, "random", 0)) as release:
        assert run(folder, TABLE_3) == 0
    assert done(capsys.readouterr().out) == ["DC, set 0", "random, set 1", "DC, set 1", "random, set 0"]
    assert run(tmp_path / "alone", TABLE_3) == 0 and same_numbers(folder, tmp_path / "alone")


def test_what_another_process_holds_until_the_end_of_the_time_is_left(tmp_path, monkeypatch, capsys):
    class Now(float):
        """A deadline that leaves time for work but none for waiting."""

        def __lt__(self, now):
            return False

    folder, only = tmp_path / "results", ["--methods", "random"]
    with monkeypatch.context() as patch:
        patch.setattr(cli, "deadline_in", lambda seconds: Now(0))
        with held(layout.run_folder(folder / "tiny", "made-up", 1, "random", 0)):
            assert run(folder, TABLE_3, *only) == 3
    printed = capsys.readouterr()
    assert done(printed.out)[0] == "random, set 1" and "1 of 2 cells are left" in printed.err
    assert left(capsys, folder, TABLE_3, *only)[1] == "1 of 2 are left"


def test_what_is_stored_is_done_even_if_another_process_holds_it(tmp_path, capsys):
    """It trains networks for another target there, perhaps for hours."""
    folder = tmp_path / "results"
    assert run(folder, TABLE_3, "--only-sets") == 0
    capsys.readouterr()
    with held(layout.run_folder(folder / "tiny", "made-up", 1, "random", 0)):
        assert run(folder, TABLE_3, "--only-sets") == 0
    assert "random, set 0: stored, and another process works" in capsys.readouterr().out


# ---- what cannot be done ---------------------------------------------------------------------------------


def test_a_data_set_that_cannot_be_loaded_is_left_out_and_the_others_run(tmp_path, capsys):
    assert run(tmp_path / "results", f"{HEADER}Table 3,SVHN made-up,1,random,,\n") == 1
    error = capsys.readouterr().err
    assert error.count("gmlib: left out: SVHN could not be downloaded: put its files there\n") == 1
    assert {p.name for p in (tmp_path / "results" / "tiny").iterdir()} == {"made-up"}


def test_a_cell_that_fails_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(how.DISTANCES, "d2", lambda A, B, real=how.d2: real(A, B) * math.nan)
    text = f'{HEADER}Table 2,made-up,1,"DC multi,d2,fixed",,\nSection 5,made-up,1,"multi,d2,fixed",,reach\n'
    assert run(tmp_path / "results", text, "--log", tmp_path / "log") == 1
    of = {"Table 2": "", "Section 5": ", reach"}
    failed = [f"{t}: made-up, IPC 1, multi,d2,fixed, set {s}{what}" for t, what in of.items() for s in (0, 1)]
    printed = capsys.readouterr()
    assert "not finite" not in printed.out, "it is said once"
    errors = [line for line in printed.err.splitlines() if line.startswith("gmlib: ")]
    assert [line.split(": the matching loss is not finite")[0] for line in errors] == [f"gmlib: {x}" for x in failed]
    assert all(line.removeprefix("gmlib: ") in (tmp_path / "log").read_text() for line in errors)
    results = readback.load_results(tmp_path / "results" / "tiny")
    assert results.groupby(["method", "set"]).size().to_dict() == {("DC", 0): 2, ("DC", 1): 2}


@pytest.mark.parametrize("file", ["accuracy-convnet.json", "run.json", "set.safetensors", "trace.json", "reach.json"])
def test_a_damaged_file_does_not_stop_the_others(file, tmp_path, capsys):
    folder, text = tmp_path / "results", f"{TABLE_3}Section 5,made-up,1,noise DC,,reach\n"
    assert run(folder, text if file == "reach.json" else TABLE_3) == 0
    (folder / "README.md").write_text(f"{overview.BEGIN}\n{overview.END}\n")
    damaged = folder / "tiny/made-up/ipc1/DC/set0" / file
    damaged.write_bytes(damaged.read_bytes()[:-9])
    before, _ = damaged.read_bytes(), capsys.readouterr()
    assert run(folder, text) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("gmlib: ")]
    assert re.search(rf"(Table 3|Section 5): made-up, IPC 1, DC, set 0.*DC/set0/{file}", errors[0]), printed.err
    assert damaged.read_bytes() == before
    assert {"noise, set 0, reach", "noise, set 1, reach"} <= {*done(printed.out), *done(printed.out, is_new=False)}
    assert run(folder, text, "--dry-run") == (1 if file in ("accuracy-convnet.json", "run.json", "trace.json") else 0)


def test_another_recipe_in_the_folder_is_refused(tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "results", CONDENSED) == 0
    before = contents(tmp_path / "results")
    monkeypatch.setitem(recipes.BUDGETS, "tiny", replace(TINY, recipe={**TINY.recipe, "outer_loops": 3}))
    for more in ((), ("--dry-run",)):
        capsys.readouterr()
        assert run(tmp_path / "results", TABLE_3, *more) == 1
        error = capsys.readouterr().err
        assert "left out: Table 3: made-up, IPC 1, DC, set 1: " in error
        assert "outer_loops=2" in error and "outer_loops=3" in error
    assert before.items() <= contents(tmp_path / "results").items(), "and the sets of the other method are made"


def test_networks_that_do_not_fit_the_images_are_left_out(tmp_path, capsys):
    sources, targets = "random MD MD@mlp MD@lenet MD@vgg11bn", "mlp convnet lenet alexnet vgg11 resnet18"
    text = f"{TABLE_3}Table 4,made-up,1,{sources},{targets},\n"
    assert run(tmp_path / "results", text, "--dry-run") == 1
    printed = capsys.readouterr()
    sentences = printed.err.splitlines()
    assert sentences and len(set(sentences)) == len(sentences)
    assert all(sentence.startswith("gmlib: left out: Table 4: ") for sentence in sentences)
    assert "LeNet" in printed.err and "MLP" not in printed.err and "ConvNet" not in printed.err
    assert "MD@mlp, set 1: 1 set, 6 networks" in printed.out, "on mlp, convnet and alexnet"
    assert "MD@lenet" not in printed.out and "MD@vgg11bn" not in printed.out
    assert "Table 3: made-up, IPC 1, DC, set 1: 1 set, 2 networks" in printed.out


# ---- the README of the results ---------------------------------------------------------------------------


def test_the_readme_is_true_after_each_cell(tmp_path, monkeypatch, capsys):
    """So it is true however the command ends, even by a kill. Its commands make what is in the folders."""
    folder, seen = tmp_path / "results", []
    folder.mkdir()
    (folder / "README.md").write_text(f"# Results\n\n{overview.BEGIN}\nstale\n{overview.END}\nmore\n")

    def is_true():
        text = (folder / "README.md").read_text()
        return text == overview.readme(text, folder)

    def do_all(found, deadline, after_each, *more, real=tasks.do_all):
        return real(found, deadline, lambda: (after_each(), seen.append(is_true())), *more)

    monkeypatch.setattr(tasks, "do_all", do_all)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert run(folder) == 130 and seen == [True] and is_true(), "with the networks of the set that was stopped"
    assert "| <code>tiny/made-up/ipc1</code> | 2 | 3 |" in (folder / "README.md").read_text()
    assert run(folder) == 0 and seen == [True] * 15
    text = (folder / "README.md").read_text()
    assert text.startswith("# Results\n") and text.endswith(f"{overview.END}\nmore\n") and "stale" not in text
    assert "| <code>tiny/made-up/ipc1</code> | 6 | 20 |" in text
    for row in overview.made_with(folder).itertuples():
        given, more = options_of(row)
        assert (given["--budget"], given["--datasets"]) == ("tiny", "made-up")
        n = {"tiny/made-up/ipc1": 12, "tiny/made-up/ipc10": 2, "tiny/made-up/whole": 1}[row.folder]
        more += ["--ipc", given["--ipc"]] if "--ipc" in given else []
        assert left(capsys, folder, FEW, *more)[1] == f"0 of {n} are left"


def test_it_needs_neither_notebooks_nor_the_report(tmp_path):
    """From a command line, in a Python without the packages of notebooks, figures and the report."""
    without = [
        "gmreport", "papermill", "jupytext", "nbclient", "nbformat", "IPython", "ipywidgets", "matplotlib", "seaborn",
    ]  # fmt: skip
    (tmp_path / "cells.csv").write_text("dataset,ipc,method\ndigits,10,random\n")
    what = ["run", "--cells", "cells.csv", "--budget", "smoke", "--results-dir", "results", "--dry-run"]
    code = f"import sys; sys.modules |= dict.fromkeys({without}); from gmlib import cli; sys.exit(cli.main({what}))"
    options = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    found = subprocess.run([sys.executable, "-c", code], **options)
    assert (found.returncode, found.stderr) == (0, "")
    networks = gm.BUDGETS["smoke"].networks
    assert f"digits, IPC 10, random, set 0: 1 set, {networks} networks\n" in found.stdout


def test_a_method_that_is_not_measured_is_refused_before_its_data_are_asked_for(tmp_path):
    cells_of = [Cell("MNIST", 10, "random", measure="pulls", place="line 2")]
    with refuses(ValueError, "random"):
        tasks.plan(cells_of, pytest.fail, tasks.Options(budget="smoke", results_dir=tmp_path))
