"""How the work grows with more workers: the plan, benchmarks/workflow.py, and the tables of the page on cost."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gmlib as gm
import gmreport as report
from gmlib.runs import tasks
from gmlib.runs.cells import Cell

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "workflow")]
bench, plan = map(importlib.import_module, ("workflow", "plan"))


@pytest.fixture
def options(tmp_path):
    """The paper's budget, with nothing stored."""
    return tasks.Options(results_dir=tmp_path)


def job(name, seconds, needs=(), priority=0, **more):
    return plan.Job("networks", name, "", [], list(needs), priority, seconds=seconds, **{"left": {"set": 1}} | more)


# ---- the jobs --------------------------------------------------------------------------------------------


def test_a_free_worker_takes_the_ready_job_of_highest_priority():
    jobs = [job("a", 4), job("b", 2, priority=1), job("c", 3, ["b"], priority=9), job("d", 1)]
    assert plan.wall_time(jobs, 1) == 10
    # Two workers: b and a; c follows b at 2 and ends at 5; d follows a at 4.
    assert plan.wall_time(jobs, 2) == 5 == plan.wall_time(jobs, 9)
    low = [*jobs[:2], replace(jobs[2], priority=-9), jobs[3]]
    assert plan.wall_time(low, 2) == 6, "d comes before c"


def test_what_is_stored_or_not_among_the_jobs_takes_no_time():
    jobs = [job("a", 4, left={}), job("b", 2, ["a", "elsewhere"]), job("c", 0, ["b"])]
    assert plan.wall_time(jobs, 3) == 2
    assert plan.wall_time([], 3) == 0


def test_no_network_and_no_set_counts_twice(options):
    """A round counts what the round before leaves. Table 4 trains ConvNets on a set of Table 3, which has them."""
    cells = [Cell("MNIST", 1, "MD", 1), Cell("MNIST", 1, "MD", 1, ("mlp", "convnet"))]
    jobs = {job.name: job for job in plan.jobs_of(cells, options, {})}
    assert jobs["MNIST-ipc1-convnet-set1-sets"].left == {"set": 1}
    assert jobs["MNIST-ipc1-MD-set1-10"].left == {"network": 10}
    assert jobs["MNIST-ipc1-MD-set1-50"].left == {"network": 40}
    assert jobs["MNIST-ipc1-MD-set1-mlp-convnet-10"].left == {"network": 10}
    assert jobs["MNIST-ipc1-MD-set1-mlp-convnet-50"].left == {"network": 40}


def test_the_first_round_counts_what_random_images_need_once(options):
    jobs = {job.name: job.left for job in plan.jobs_of([Cell("MNIST", 1, "random")], options, {})}
    assert jobs == {
        "MNIST-ipc1-random-set0-10": {"set": 1, "network": 10},
        "MNIST-ipc1-random-set0-50": {"network": 40},
    }


def test_a_kind_of_network_has_its_own_time(options):
    times = {"MNIST 1 MD": {"set": 100.0, "network convnet": 1.0, "network mlp": 3.0}}
    (some,) = [
        job
        for job in plan.jobs_of([Cell("MNIST", 1, "MD", 1, ("mlp", "convnet"))], options, times)
        if job.name.endswith("-10")
    ]
    assert some.left == {"network": 20} and some.seconds == 10 * 3 + 10 * 1
    both = plan.jobs_of([Cell("MNIST", 1, "MD", 1), Cell("MNIST", 1, "MD", 1, ("mlp", "convnet"))], options, times)
    assert {job.name: job.seconds for job in both}["MNIST-ipc1-MD-set1-mlp-convnet-10"] == 10 * 3


def test_sets_made_together_spend_the_shared_part_once(options):
    cells = [Cell("MNIST", 1, method, 1) for method in ("DC", "M", "MD", "Inter")]
    times = {plan.kind_of(cell): {"set": 100.0, "network convnet": 0.0} for cell in cells}
    for shared, seconds in ((0.0, 400.0), (1.0, 100.0), (0.9, 130.0)):
        jobs = plan.jobs_of(cells, options, times, shared)
        assert sum(job.seconds for job in jobs) == pytest.approx(seconds)


# ---- the benchmark ---------------------------------------------------------------------------------------


def test_the_ways_take_turns_and_the_rest_is_for_the_jobs(tmp_path):
    seen = []
    seconds = {"gmlib run, one process": 10.0, "Snakemake, one core": 14.0, "Snakemake, two cores": 9.0}

    def once(way, cells, folder):
        assert folder.is_dir() and not list(folder.iterdir())
        seen.append((way.name, folder))
        return seconds[way.name]

    (tmp_path / "cells.csv").write_text("dataset,ipc,method,seed\ndigits,1,random,0 1\n")
    found = bench.grid([bench.ALONE, *bench.LOCAL], 2, tmp_path / "cells.csv", once)
    names = list(seconds)
    assert [name for name, _ in seen] == [*names, *names[1:], names[0]]
    assert len({folder for _, folder in seen}) == 6
    assert found["jobs"] == 2 and found["ways"]["Snakemake, one core"]["seconds"] == [14, 14]
    assert [way["per_job"] for way in found["ways"].values()] == [None, 2.0, 4.0]


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    code = "import sys; sys.exit('there is no file')"
    monkeypatch.setattr(bench, "command", lambda way, cells, folder: [sys.executable, "-c", code])
    with pytest.raises(RuntimeError, match=r"status 1.*no file"):
        bench.run_once(bench.ALONE, tmp_path / "none.csv", tmp_path)


PIECES = {"seconds_per_update": 2.0, "seconds_per_step": 0.01, "seconds_per_look": 0.1, "seconds_drawing": 0.5}
NETWORK = {"epochs": 300, "epoch": 0.01, "test_image": 0.001}


@pytest.mark.parametrize(
    ("method", "ipc", "of_one"),
    [
        ("MD", 1, 2.0 + 0.5),
        ("MD", 10, 10 * 2 + 450 * 0.01 + 0.5),
        ("MDA", 10, 10 * 2 + 190 * 0.01 + 0.5),
        ("MDO", 10, 10 * 2 + 450 * (0.01 + 0.1) + 9 * 0.1 + 0.5),
    ],
)
def test_a_set_is_added_up_from_its_pieces(method, ipc, of_one, options):
    cells = [Cell(name, ipc, method) for name in ("CIFAR10", "SVHN", "CIFAR100")]
    name = f"CIFAR10 {ipc} convnet"
    times = bench.times_of(cells, options, {"pieces": {name: PIECES}, "networks": {name: NETWORK}})
    assert times[f"CIFAR10 {ipc} {method}"]["set"] == pytest.approx(1000 * of_one)
    assert times[f"SVHN {ipc} {method}"]["set"] == pytest.approx(1000 * of_one)
    assert times[f"CIFAR100 {ipc} {method}"]["set"] == pytest.approx(1000 * (10 * (of_one - 0.5) + 0.5))
    networks = [at["network convnet"] for at in times.values()]
    assert networks == pytest.approx([3 + 10, 3 + 26.032, 30 + 10])


def test_the_hours_of_the_paper_are_those_of_its_jobs(options):
    cells, _ = plan.asked({"budget": "paper", "results_dir": str(options.folder)})
    names = {n for cell in cells if cell.measure == "networks" for n in bench.networks_of(cell, options).values()}
    pieces = {
        bench.pieces_of(cell, options): PIECES
        for cell in cells
        if cell.measure == "networks" and cell.method not in gm.CORESETS
    }
    found = {"pieces": pieces, "networks": dict.fromkeys(names, NETWORK)}
    made = bench.hours(cells, options, found, 0.9)
    every, *some = made["groups"].values()
    assert list(made["groups"]) == ["all", "1", "10", "50"]
    alone = {"noise", "random"}  # a job of Section 5 makes these itself, in no time
    with_set = [c for c in cells if c.measure == "networks" or (c.measure == "reach" and c.method not in alone)]
    assert every["sets"] == len({(c.dataset, c.ipc, c.method, c.seed) for c in with_set})
    for group in made["groups"].values():
        hours = group["hours"]
        assert hours["1"] == pytest.approx(group["worker_hours"])
        assert hours["1"] / 64 <= hours["64"] <= hours["8"] <= hours["1"]
        assert group["longest_job_hours"] <= group["shortest_possible_hours"] <= hours["64"]
    assert every["longest_job"] == "CIFAR100-ipc10-MDO-set0-sets"
    mdo = {(c.dataset, c.ipc, c.seed): bench.times_of([c], options, found) for c in cells if c.method == "MDO"}
    assert every["at_most_hours"] == pytest.approx(
        sum(at["set"] for times in mdo.values() for at in times.values()) / 3600
    )
    assert sum(group["worker_hours"] for group in some) == pytest.approx(every["worker_hours"])
    assert made["not_timed"]["measurements of Section 5"] == sum(cell.measure == "reach" for cell in cells)
    assert some[0]["at_most_hours"] == 0
    numbers = bench.figures(cells, options)
    assert (
        0
        < numbers["figures_of_cells"]
        < numbers["figures"]
        == sum(len(report.paper.published(table)) for table in report.paper.TABLES)
    )


def test_the_shared_part_gives_the_measured_ratio():
    of_ten = {"apart, float32": 40.0, "together, float32": 7.6}
    shared = bench.shared_part({"methods": list("abcdefghij"), "median": of_ten}, "float32")
    assert shared == pytest.approx(0.9) and 40 * (1 - shared * (1 - 1 / 10)) == pytest.approx(7.6)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--rounds", "0"], "rounds=0"),
        (["--together", "none.json"], "none.json"),
        (["--device", "cuda"], "cuda" if not torch.cuda.is_available() else "--only paper"),
        (["--only", "grid", "--slurm"], "SLURM"),
    ],
)
def test_bad_input_measures_nothing(words, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("slurm.why_not", lambda: "it is not installed")
    assert bench.main([*words, "--out", str(tmp_path / "x.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("workflow: ") and reason in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_part_of_another_commit_is_not_kept(tmp_path, capsys):
    (tmp_path / "x.json").write_text(json.dumps({"grid": {}, "commit": "abc"}))
    assert bench.main(["--only", "paper", "--out", str(tmp_path / "x.json")]) == 2
    assert "was measured with" in capsys.readouterr().err


# ---- the page --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A file in toy sizes: its paper is measured, and the seconds of its grid are made up."""
    out = tmp_path_factory.mktemp("growth") / "here.json"
    assert bench.main(["--quick", "--only", "paper", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    content["grid"] = bench.grid(
        [bench.ALONE, *bench.LOCAL], 1, once=lambda way, cells, folder: {None: 60}.get(way.words, 80 / way.workers)
    )
    out.write_text(json.dumps(content))
    return out.parent


def test_the_page_shows_what_was_measured(quick):
    (stored,) = report.stored_growth(quick).values()
    jobs = stored["grid"]["jobs"]
    text = report.grid_sentence({"here": stored}).data
    assert f"The {jobs} jobs of the smoke grid take 60 s" in text and f"{20 / jobs:.1f} worker-seconds" in text
    table = report.grid_table(stored)
    assert table.cells["Snakemake, two cores", "seconds"] == ["40", "40 to 40, n=1"]
    assert table.cells["gmlib run, one process", "more per job"] == [""]
    hours = report.hours_table(stored)
    every = stored["paper"]["groups"]["all"]
    assert hours.columns[:3] == ["1 worker", "8 workers", "64 workers"] and hours.rows == ["all", "1 image per class"]
    assert hours.cells["all", "1 worker"] == [report.growth.hours_of(every["worker_hours"])]
    assert "herding" in hours._repr_html_() and "SVHN" in hours._repr_html_()
    said = report.hours_sentence({"here": stored}).data
    assert "187 numbers" in said and "No GPU was measured" in said and "K = 1000" in said
    assert "one CPU thread" in said
    of_gpu = stored | {"device": "cuda", "paper": stored["paper"] | {"shared": 0.0}}
    said = report.hours_sentence({"here": stored, "there": of_gpu}).data
    assert "one GPU" in said and "No GPU was measured" not in said
    assert "as if made alone" in report.hours_table(of_gpu)._repr_html_()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_can_be_the_worker(tmp_path):
    out = tmp_path / "gpu.json"
    assert bench.main(["--quick", "--only", "paper", "--device", "cuda", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["device"] == "cuda" and content["paper"]["shared"] == 0
    assert content["paper"]["groups"]["all"]["worker_hours"] > 0


def test_nothing_stored_is_said(tmp_path):
    assert report.stored_growth(tmp_path) == {}
    for stored in ({}, {"here": {"device_name": "x"}}):
        assert "not been measured yet" in report.grid_sentence(stored).data
        assert "not been added up yet" in report.hours_sentence(stored).data
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json is damaged"):
        report.stored_growth(tmp_path)


@pytest.mark.parametrize(
    ("hours", "words"), [(0.25, "0.2 h"), (12.4, "12 h"), (72, "3.0 days"), (10 * 8766, "10 years"), (0, "0.0 h")]
)
def test_hours_in_words(hours, words):
    assert report.growth.hours_of(hours) == words


def test_committed_files_are_complete_and_named_after_their_device():
    for name, stored in report.stored_growth().items():
        assert name == re.sub(r"[^a-z0-9]+", "-", stored["device_name"].lower()).strip("-")
        assert stored["grid"] and stored["paper"] and not stored["commit"].endswith("+")
