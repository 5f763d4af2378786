"""workflow/: the cells of the tables as jobs, on this machine and on a SLURM cluster of one node."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import slurm
import torch

from gmlib.runs import tasks
from gmlib.runs.cells import FILE, MEASURES, Cell, Wanted, read_lines

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import plan  # noqa: E402

# Eight cells, in ten jobs.
GRID = """table,dataset,ipc,method,seed,targets,measure
Table 3,digits,1,"random DC multi,d2,fixed MD",0,,
Table 4,digits,1,MD@mlp,0,mlp convnet,
Table 3,digits,10,DC,0,,
Section 5,digits,1,noise MD,0,,reach
"""
# Four cells, in five jobs. One makes two sets together, and three wait for it or for each other.
SMALL_GRID = """table,dataset,ipc,method,seed,targets,measure
Table 3,digits,1,random DC MD,0,,
Section 5,digits,1,MD,0,,reach
"""


def options(folder, budget="smoke", **more):
    return tasks.Options(budget=budget, results_dir=folder, **more)


# ---- the plan --------------------------------------------------------------------------------------------


def chosen_by(job, lines, budget):
    """The cells that `gmlib run` does with the words of a job."""
    words, of = iter(job.words), {}
    for word in words:
        if word.startswith("--"):
            name = of.setdefault(word[2:], [])
        else:
            name.append(word)
    of.pop("networks", None)
    numbers = {name: list(map(int, of.pop(name))) for name in ("ipc", "seeds") if name in of}
    return Wanted(**of, **numbers).of(lines, plan.BUDGETS[budget].sets)


@pytest.mark.parametrize("budget", ["smoke", "paper"])
def test_every_cell_of_every_table_is_in_a_job_that_chooses_it(budget, tmp_path):
    lines = read_lines(FILE)
    cells = Wanted().of(lines, plan.BUDGETS[budget].sets)
    how = options(tmp_path, budget)
    jobs = plan.jobs_of(cells, how, {})
    assert len({job.name for job in jobs}) == len(jobs)
    assert all(re.fullmatch(r"[^/\s,]+", job.name) for job in jobs), "Snakemake splits names at commas"
    done = Counter()
    for job in jobs:
        found = chosen_by(job, lines, budget)
        assert found, job.name
        if job.kind == "sets":
            assert {cell.measure for cell in found} == {"networks"}
            assert len({(cell.dataset, cell.ipc, cell.seed) for cell in found}) == 1
        else:
            done.update(found)
            assert len(found) == 1, job.name
    assert done == Counter({cell: len(how.rounds) if cell.measure == "networks" else 1 for cell in cells})
    assert {job.kind for job in jobs} == {"sets", *MEASURES}


def test_what_a_job_needs_comes_before_it(tmp_path):
    (tmp_path / "cells.csv").write_text(GRID)
    cells = Wanted().of(read_lines(tmp_path / "cells.csv"), 1)
    jobs = {job.name: job for job in plan.jobs_of(cells, options(tmp_path, "paper"), {})}
    together = jobs["digits-ipc1-convnet-set0-sets"]
    assert together.left == {"set": 3} and together.kind == "sets"
    assert jobs["digits-ipc1-MD-set0-10"].needs == ["digits-ipc1-convnet-set0-sets"]
    assert jobs["digits-ipc1-MD-set0-reach"].needs == ["digits-ipc1-convnet-set0-sets", "digits-ipc1-MD-set0-10"]
    assert jobs["digits-ipc1-MD-set0-50"].needs[-1] == "digits-ipc1-MD-set0-reach", "one at a time in a folder"
    assert jobs["digits-ipc1-noise-set0-reach"].needs == jobs["digits-ipc1-random-set0-10"].needs == []
    assert jobs["digits-ipc1-mlp-set0-sets"].left == jobs["digits-ipc10-DC-set0-sets"].left == {"set": 1}
    first = [job.priority for name, job in jobs.items() if not name.endswith("-50")]
    assert min(first) > max(job.priority for name, job in jobs.items() if name.endswith("-50"))
    assert jobs["digits-ipc1-random-set0-10"].priority == max(first), "the first line of the file"


def test_a_stored_set_does_not_wait_for_those_it_is_made_together_with(tmp_path):
    cells = [Cell("digits", 1, method) for method in ("DC", "MD")]
    folder = tmp_path / "smoke" / "digits" / "ipc1" / "DC" / "set0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "accuracy-convnet.json").write_text("{}")
    jobs = {job.name: job for job in plan.jobs_of(cells, options(tmp_path), {})}
    assert jobs["digits-ipc1-convnet-set0-sets"].left == {"set": 1}
    assert jobs["digits-ipc1-DC-set0-3"].needs == [] and jobs["digits-ipc1-DC-set0-3"].left == {"damaged": 1}
    assert jobs["digits-ipc1-MD-set0-3"].needs == ["digits-ipc1-convnet-set0-sets"]


def test_section_5_alone_makes_its_sets_together(tmp_path):
    cells = [Cell("digits", 1, method, measure="reach") for method in ("noise", "random", "DC", "MD")]
    jobs = {job.name: job for job in plan.jobs_of(cells, options(tmp_path), {})}
    assert jobs["digits-ipc1-convnet-set0-sets"].left == {"set": 2}
    assert jobs["digits-ipc1-MD-set0-reach"].needs == ["digits-ipc1-convnet-set0-sets"]
    assert jobs["digits-ipc1-noise-set0-reach"].needs == jobs["digits-ipc1-random-set0-reach"].needs == []


def test_times_that_were_measured_make_the_limits(tmp_path):
    cells = [Cell("digits", 1, "MD"), Cell("digits", 1, "random"), Cell("digits", 1, "MD", measure="reach")]
    times = {"digits 1 MD": {"set": 100.0, "network convnet": 7.0, "memory": 6e9}}
    jobs = plan.jobs_of(cells, options(tmp_path), times)
    left = {job.name: (job.seconds, job.left) for job in jobs}
    assert left["digits-ipc1-convnet-set0-sets"] == (100, {"set": 1})
    assert left["digits-ipc1-MD-set0-3"] == (6 * 7, {"network": 6}), "half-way too"
    assert left["digits-ipc1-random-set0-3"] == (3 * 7, {"set": 1, "network": 3}), "as on any other set of its size"
    said = list(plan.summary(jobs))
    assert "1 job of unknown time" in said[-1] and "2.7 min" in said[-1]


def test_measuring_times_each_kind_once(tmp_path, monkeypatch, capsys):
    """Networks take as long on every set of a size, and the budget says for how many epochs."""
    asked = []

    def time_kind(data, recipe, networks, device, protocol, known):
        asked.append((recipe.method, tuple(networks), protocol.epochs, sorted(known)))
        return {"set": 5.0, **{f"network {name}": 2.0 for name in networks}, **known}

    monkeypatch.setattr(plan, "time_kind", time_kind)
    cells = [
        Cell("digits", 1, "MD", seed=1),
        Cell("digits", 1, "MD"),
        Cell("digits", 1, "random"),
        Cell("digits", 1, "MD@mlp", targets=("mlp", "convnet")),
        Cell("digits", 1, "MD", targets=("mlp",)),
        Cell("digits", 1, "MD", measure="reach"),
    ]
    how = options(tmp_path, device=torch.device("cpu"))
    plan.measure(cells, how, None, tmp_path / "times.json")
    epochs = plan.BUDGETS["smoke"].epochs
    assert asked == [
        ("MD", ("convnet",), epochs, []),
        ("MD@mlp", ("mlp", "convnet"), epochs, ["network convnet"]),
    ]
    assert "digits 1 MD@mlp: set 5.0 s, network mlp 2.0 s" in capsys.readouterr().out
    plan.measure(cells, how, None, tmp_path / "times.json")
    assert len(asked) == 2, "nothing is timed again"
    jobs = plan.jobs_of(cells[3:4], how, plan.known_times(tmp_path / "times.json"))
    assert {job.name: job.seconds for job in jobs} == {
        "digits-ipc1-mlp-set0-sets": 5,
        "digits-ipc1-MD@mlp-set0-mlp-convnet-3": 9 * 2,  # three of them half-way
    }


# ---- snakemake -------------------------------------------------------------------------------------------


def snakemake(folder, profile, *more, **changes):
    """The command of the engine for the grid in a folder."""
    given = {
        "cells": folder / "cells.csv",
        "budget": "smoke",
        "results_dir": folder / "results",
        "folder": folder / "jobs",
        "precision": FIXED,
    }
    words = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile"]
    words += ["--profile", ROOT / "workflow" / "profiles" / profile, "--directory", folder, *more]
    if profile == "slurm":  # this cluster may be asked often
        words += ["--seconds-between-status-checks", 1, "--slurm-init-seconds-before-status-checks", 1]
    return [*map(str, words), "--config", *(f"{name}={value}" for name, value in (given | changes).items())]


def run(folder, profile="local", *more, **changes):
    done = subprocess.run(snakemake(folder, profile, *more, **changes), capture_output=True, text=True, env=ENV)
    return done.returncode, done.stdout + done.stderr


ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
FIXED = "float32"  # "auto" measures the machine, and may choose another one in another process


def in_one_process(folder):
    """The same cells by `gmlib run` without an engine. Returns what it stored."""
    words = ["--cells", folder / "cells.csv", "--budget", "smoke", "--results-dir", folder / "alone", "--quiet"]
    command = [sys.executable, "-m", "gmlib.cli", "run", *map(str, words), "--precision", FIXED, "--threads", "1"]
    subprocess.run(command, check=True, capture_output=True, env=ENV)
    return numbers(folder / "alone")


def numbers(folder):
    """What was computed: the bytes of the sets, the accuracies and the measurements."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".json" and path.name not in ("run.json", "begun.json"):
            content = json.loads(path.read_text())
            found[name] = content.get("accuracies") or content.get("columns") or list(content.get("trace", ()))
    return found


def test_a_job_that_fails_leaves_the_others_running(tmp_path):
    """A damaged file of one set, which is made together with another, costs that set only."""
    (tmp_path / "cells.csv").write_text("dataset,ipc,method,seed\ndigits,1,DC M random,0\n")
    damaged = tmp_path / "results" / "smoke" / "digits" / "ipc1" / "M" / "set0"
    damaged.mkdir(parents=True)
    (damaged / "begun.json").write_text("{}")
    status, said = run(tmp_path)
    assert status == 1
    log = (tmp_path / "jobs" / "logs" / "digits-ipc1-M-set0-3.log").read_text()
    assert "begun.json is damaged" in log and "Traceback" not in log
    done = {path.parents[1].name for path in (tmp_path / "results").rglob("accuracy-convnet.json")}
    assert done == {"DC", "random"}
    (damaged / "accuracy-convnet.json").write_text("{}")
    status, said = run(tmp_path, "local", "-n")
    assert status == 0 and "1 damaged" in said, "the plan is made all the same"


def test_a_job_that_was_out_of_time_is_started_again(tmp_path):
    """The first attempt has no time at all, and ends with status 3."""
    (tmp_path / "cells.csv").write_text("dataset,ipc,method,seed\ndigits,1,random,0\n")
    text = (ROOT / "workflow" / "Snakefile").read_text()
    limit = "$(( {resources.runtime} * 60"
    assert limit in text
    changed = text.replace(limit, "$(( ({resources.attempt} - 1) * 600 + 120")
    changed = changed.replace("Path(workflow.basedir).parent", f"Path({str(ROOT)!r})")
    (tmp_path / "Snakefile").write_text(changed)
    words = snakemake(tmp_path, "local")
    words[words.index("--snakefile") + 1] = str(tmp_path / "Snakefile")
    done = subprocess.run(words, capture_output=True, text=True, env=ENV)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    assert "Trying to restart job" in said
    assert (
        tmp_path / "results" / "smoke" / "digits" / "ipc1" / "random" / "set0" / "accuracy-convnet.json"
    ).is_file()


# ---- a cluster -------------------------------------------------------------------------------------------


def jobs_in_queue():
    """(number, state) of the jobs in SLURM's queue."""
    said = subprocess.run(["squeue", "-h", "-o", "%i %T"], capture_output=True, text=True, check=True).stdout
    return [tuple(line.split()) for line in said.splitlines()]


def wait_for_one(folder, pattern, seconds=90):
    """Wait until a file is there."""
    deadline = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} after {seconds} s"
        time.sleep(0.1)


def running(seconds=90):
    """Wait for a job that runs; its number."""
    deadline = time.monotonic() + seconds
    while True:
        if found := [number for number, state in jobs_in_queue() if state == "RUNNING"]:
            return found[0]
        assert time.monotonic() < deadline, "no job runs"
        time.sleep(0.1)


def test_make_results_runs_the_plan(tmp_path):
    """The Makefile's own line, in a folder with a space, for a cell that takes a second."""
    folder = tmp_path / "my cells"
    folder.mkdir()
    (folder / "cells.csv").write_text("dataset,ipc,method,seed\ndigits,1,random,0\n")
    given = {"BUDGET": "smoke", "DATASETS": "digits", "IPC": "1", "CELLS": folder / "cells.csv"}
    given["MORE"] = f"results_dir='{folder / 'results'}' folder='{folder / 'jobs'}'"
    given |= {"BIN": Path(sys.executable).parent, "CORES": 1}
    command = ["make", "--no-print-directory", "-o", "setup", "results", *(f"{k}={v}" for k, v in given.items())]
    dry = subprocess.run([*command, "DRY_RUN=1"], cwd=ROOT, capture_output=True, text=True, env=ENV)
    assert dry.returncode == 0, dry.stderr[-2000:]
    assert "left: 1 set, 3 networks" in dry.stderr and not (folder / "results").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((folder / "results").rglob("accuracy-convnet.json"))) == 1


@contextmanager
def started(folder):
    """The cluster. The test is skipped, with the reason, where its daemons do not start."""
    with ExitStack() as stack:
        try:
            stack.enter_context(slurm.cluster(folder))
        except slurm.NoCluster as reason:
            pytest.skip(str(reason))
        yield


@pytest.mark.skipif(bool(slurm.why_not()), reason=slurm.why_not())
def test_a_cluster_whose_jobs_are_cancelled_ends_with_the_same_bits(tmp_path):
    (tmp_path / "cells.csv").write_text(SMALL_GRID)
    with started(tmp_path / "slurm"):
        engine = subprocess.Popen(
            snakemake(tmp_path, "slurm", gpu=1), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=ENV
        )
        try:
            first = running()
            said = subprocess.run(["scontrol", "show", "job", first], capture_output=True, text=True).stdout
            assert re.search("TresPerJob=gres.gpu.1", said), "the node has one GPU, a pretend one"
            subprocess.run(["scancel", first], check=True)  # one job: the engine submits it again
            wait_for_one(tmp_path / "results", "**/run.json")
            subprocess.run(["scancel", "--user", "root"], check=True)  # all of them, and the engine is killed
        finally:
            engine.send_signal(signal.SIGKILL)
            engine.wait()
        before = numbers(tmp_path / "results")
        status, said = run(tmp_path, "slurm", "--unlock")
        assert status == 0, said[-2000:]
        status, said = run(tmp_path, "slurm")
        assert status == 0, said[-3000:]
        assert "slurm" in said.lower()
    stored = numbers(tmp_path / "results")
    finished = {name for name in before if name.endswith("/set.safetensors")}
    assert finished and all(stored[name] == before[name] for name in finished), "what was finished stayed"
    assert stored == in_one_process(tmp_path)
    assert len([name for name in stored if name.endswith("/set.safetensors")]) == 3
    status, said = run(tmp_path, "local", "-n")
    assert status == 0 and "jobs are stored" in said and "left:" not in said
