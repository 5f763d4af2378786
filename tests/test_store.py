"""Stored runs are complete, read back, never done again, and refused if they belong to another run."""

import dataclasses
import errno
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial

import filelock
import pandas as pd
import pytest
import torch
from conftest import contents, held, make_data
from messages import refuses
from safetensors.torch import load_file
from stored import change, content_of

import gmlib as gm
from gmlib import condensation, evaluation, files, how
from gmlib import recipe as recipes
from gmlib.checks import as_list
from gmlib.files import json_digest, read_tensors, write_json, write_tensors
from gmlib.runs import cells, layout, locks, overview, provenance, readback, shipped, store
from gmlib.runtime import OutOfTime, deadline_in
from gmlib.speed import memory, training
from gmlib.speed.memory import PeakMemory

TINY = recipes.Budget(
    recipe={"width": 4, "depth": 2, "batch_real": 4, "outer_loops": 4},
    many={},
    sets=2,
    networks=2,
    epochs=2,
)


@pytest.fixture
def data():
    return make_data((8, 8, 8), dtype=torch.float32, n_test=30)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A budget of milliseconds."""
    monkeypatch.setitem(recipes.BUDGETS, "tiny", TINY)


def run(data, folder, method="DC", ipc=1, **options):
    options = {"budget": "tiny", "device": "cpu", "progress": False, "results_dir": folder, **options}
    return store.run(data, method, ipc, **options)


class AfterOneLook(float):
    """A deadline that passes after it is first looked at."""

    looks = 0

    def __lt__(self, now):  # `now > deadline` asks here first, since this is a subclass of float
        self.looks += 1
        return self.looks > 1


def test_a_run_is_kept_when_the_kernel_took_memory_away_meanwhile(data, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PeakMemory", PeakMemory)
    used = {"VmRSS": 2e9, "VmHWM": 1e9}  # before the run, and the peak since
    monkeypatch.setattr(memory, "_resident_bytes", used.get)
    assert layout.read_record(run(data, tmp_path).folder)["peak_memory_bytes"] in (0.0, None)  # None: not on Linux


def test_a_run_and_its_folder(data, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PeakMemory", PeakMemory)
    r = run(data, tmp_path, seed=3)
    assert r.folder == tmp_path / "made-up" / "ipc1" / "DC" / "set3"
    assert sorted(contents(r.folder)) == ["accuracy-convnet.json", "run.json", "set.safetensors"]
    record = json.loads((r.folder / "run.json").read_text())
    assert gm.Recipe(**record["recipe"]) == gm.Recipe.for_method("DC", "made-up", 1, "tiny", 3)
    assert record["data"] == {"name": "made-up", "fingerprint": data.fingerprint, "origin": data.origin}
    assert record["torch"] == torch.__version__ and record["gmlib"] == gm.__version__ and record["device"] == "cpu"
    assert record["seconds"] > 0 and (record["peak_memory_bytes"] is None or record["peak_memory_bytes"] >= 0)
    assert [h["k"] for h in record["history"]] == [0, 1, 2, 3]
    alone = gm.condense(data, gm.Recipe(**record["recipe"]), "cpu", progress=False)
    assert torch.equal(gm.SyntheticSet.load(r.folder / "set.safetensors").images, alone.images)
    expected = gm.evaluate(alone, data, "convnet", 2, 3, width=4, depth=2, epochs=2, device="cpu", progress=False)
    assert json.loads((r.folder / "accuracy-convnet.json").read_text())["accuracies"] == list(expected.accuracies)


def test_what_is_finished_is_read_back_and_never_done_again(data, tmp_path, monkeypatch):
    first = run(data, tmp_path, snapshots=(0, 2, 4))
    before = contents(tmp_path)
    monkeypatch.setattr(store, "condense_together", None)
    monkeypatch.setattr(evaluation, "fit", None)
    monkeypatch.setattr(store, "evaluate", None)
    again = run(data, tmp_path, snapshots=(0, 2, 4))
    assert again.evaluation == first.evaluation and torch.equal(again.S.images, first.S.images)
    assert [e for _, e in again.trace.values()] == [e for _, e in first.trace.values()]
    assert run(data, tmp_path, networks=1).evaluation.accuracies == first.evaluation.accuracies[:1]
    assert contents(tmp_path) == before


def test_accuracies_of_another_protocol_are_refused(data, tmp_path, monkeypatch):
    """The recipe of a coreset holds no networks, and no recipe holds epochs. So protocols are compared."""
    run(data, tmp_path, "random")
    run(data, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"width=4, .* width=5"):
        run(data, tmp_path, "random", width=5)
    monkeypatch.setitem(recipes.BUDGETS, "tiny", dataclasses.replace(TINY, epochs=3))
    with pytest.raises(ValueError, match=r"epochs=2, .* epochs=3"):
        run(data, tmp_path)
    assert contents(tmp_path) == before


def test_a_changed_what_how_or_where_is_stored_under_its_own_name(data, tmp_path):
    r = run(data, tmp_path, "DC", what="multi")
    assert r.record["method"] == "M" and r.folder.parent.name == "M"
    r = run(data, tmp_path, "DC", how="d2 + 0.5*d4")
    assert r.record["method"] == "intra,d2+0.5*d4,fixed" and r.folder.parent.name == "intra,d2+0.5_d4,fixed"


def test_phase_2_continues_network_by_network(data, tmp_path, monkeypatch):
    """Stopped after the first network: it is stored, and only the second one is trained then."""
    whole = run(data, tmp_path / "whole").evaluation
    trained = []

    def stop_after_one(group, *args, real=training.fit, **options):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(group)
        return real(group, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "fit", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path)
    assert readback.load_results(tmp_path)["accuracy"].tolist() == list(whole.accuracies[:1])
    count = []
    monkeypatch.setattr(evaluation, "fit", lambda *a, real=training.fit, **o: count.append(1) or real(*a, **o))
    assert run(data, tmp_path).evaluation.accuracies == whole.accuracies
    assert len(count) == 1


def test_a_record_that_was_changed_after_the_run_is_refused(data, tmp_path):
    path = run(data, tmp_path).folder / "run.json"
    record = json.loads(path.read_text())
    assert record["recipe_hash"] == json_digest(record["recipe"]) and len(record["recipe_hash"]) == 64
    for changes in ({"recipe": {**record["recipe"], "outer_loops": 7}}, {"seconds": 0}):
        path.write_text(json.dumps({**record, **changes}))
        with pytest.raises(ValueError, match=r"run\.json is damaged .*changed"):
            run(data, tmp_path)
    path.write_text(json.dumps(record))  # other spaces are no other content
    run(data, tmp_path)


def test_seconds_count_what_came_before_a_restart(data, tmp_path):
    with pytest.raises(OutOfTime):
        run(data, tmp_path, deadline=AfterOneLook())
    record = run(data, tmp_path).record
    assert record["seconds"] == pytest.approx(sum(h["seconds"] for h in record["history"]))


def test_more_networks_are_trained_on_request(data, tmp_path):
    two = run(data, tmp_path).evaluation
    four = run(data, tmp_path, networks=4).evaluation
    assert four.n == 4 and four.accuracies[:2] == two.accuracies


def test_the_trace_holds_sets_and_accuracies_along_the_run(data, tmp_path):
    r = run(data, tmp_path, snapshots=(0, 2, 4))
    assert list(r.trace) == [0, 2, 4]
    assert torch.equal(r.trace[4][0].images, r.S.images)
    assert r.trace[4][1].accuracies == r.evaluation.accuracies
    assert not torch.equal(r.trace[0][0].images, r.trace[2][0].images)
    assert list(run(data, tmp_path, snapshots=(0, 1)).trace) == [0, 2, 4], "a finished run returns what it has"


def test_networks_are_trained_on_what_was_stored(data, tmp_path):
    whole = run(data, tmp_path / "float32")
    half = run(data, tmp_path / "float16", dtype=torch.float16, snapshots=(0, 4))
    assert load_file(half.folder / "set.safetensors")["images"].dtype == torch.float16
    assert half.S.images.dtype == torch.float32 and torch.equal(half.S.images, whole.S.images.half().float())
    assert not torch.equal(half.S.images, whole.S.images)
    again = gm.evaluate(half.S, data, "convnet", 2, 0, epochs=2, device="cpu", progress=False)
    assert half.evaluation.accuracies == again.accuracies
    assert torch.equal(half.trace[4][0].images, half.S.images) and half.trace[4][1] == half.evaluation
    assert half.trace[0][0].images.dtype == torch.float32
    assert torch.equal(run(data, tmp_path / "float16").S.images, half.S.images), "a stored run is read back as it is"


def test_shipped_results_of_several_budgets(data, tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.BUDGETS, "other", TINY)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "results")
    assert readback.stored_accuracies().empty and readback.stored_whole_data() == {}
    for budget, folder, n in (("tiny", "results", 1), ("other", "results/other", 2)):
        run(data, tmp_path / folder, budget=budget)
        store.whole_data(data, budget=budget, networks=n, device="cpu", results_dir=tmp_path / folder, progress=False)
    assert readback.stored_accuracies().groupby("budget").size().to_dict() == {"tiny": 2, "other": 2}
    assert readback.stored_whole_data()["made-up"].n == 1, "not the one in the folder of another budget"


def test_a_run_that_continued_at_another_commit_names_both(data, tmp_path, monkeypatch):
    """Each phase names the commits of its own work. The next run also deletes what a killed process left."""

    def at(commit):
        monkeypatch.setattr(provenance, "_commit", lambda home: commit)

    folder = tmp_path / "made-up" / "ipc1" / "DC" / "set0"
    at("a")
    with pytest.raises(OutOfTime):
        run(data, tmp_path, deadline=AfterOneLook())
    at("b")
    run(data, tmp_path, networks=1)
    at("c")
    run(data, tmp_path, networks=2)
    commits = {path.name: content_of(path)["commit"] for path in folder.glob("*.json")}
    assert commits == {"run.json": "a, b", "accuracy-convnet.json": "b, c"}
    before = contents(folder)
    for name in (
        "checkpoint.safetensors",
        "checkpoint-last-good.safetensors",
        "begun.json",
        ".run.json.0123456789abcdef.tmp",
    ):
        (folder / name).write_text("{}")
    at("d")
    run(data, tmp_path)
    assert contents(folder) == before


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    """Results that a run wrote do not change the code. Changed code does, staged or not, when it is loaded."""
    monkeypatch.setattr(provenance, "HOME", tmp_path)

    def made_with():
        provenance._commit.cache_clear()
        return provenance.environment(torch.device("cpu"))

    assert made_with()["commit"] is None, "not a checkout"

    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *command], capture_output=True, text=True, check=True
        ).stdout.strip()

    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/README.md"):
        (tmp_path / name).write_text("before")
    git("init", "-q")
    assert made_with()["commit"] is None, "nothing is committed"
    git("add", "."), git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")[:12]
    assert made_with()["commit"] == commit
    (tmp_path / "results" / "README.md").write_text("after")
    (tmp_path / "untracked").write_text("new")
    assert made_with()["commit"] == commit
    (tmp_path / "code.py").write_text("after")
    assert made_with()["commit"] == commit + "+"
    git("add", "code.py")
    assert made_with()["commit"] == commit + "+"
    git("commit", "-qm", "second")
    commit_of_loaded_code = provenance.environment(torch.device("cpu"))["commit"]
    assert commit_of_loaded_code == commit + "+"
    assert made_with()["commit"] == git("rev-parse", "HEAD")[:12]


def test_a_coreset_is_evaluated_with_the_budgets_network(data, tmp_path):
    r = run(data, tmp_path, "random", 2, inner_loops=1, zeta_theta=1)
    assert torch.equal(r.S.images, gm.coreset("random", data, 2, 0).images)
    assert (r.evaluation.protocol["width"], r.evaluation.protocol["depth"]) == (4, 2)


def test_another_recipe_or_other_data_in_the_folder_is_an_error(data, tmp_path):
    run(data, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"lr_images=0\.1, .* lr_images=0\.2"):
        run(data, tmp_path, lr_images=0.2)
    with pytest.raises(ValueError, match="another copy"):
        run(make_data((8, 8, 8), dtype=torch.float32, n_test=30, seed=9), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"networks": 0}, "networks=0"),
        ({"dataset": "digits"}, "dataset has its own argument"),
        ({"method": "random", "depth": 9}, "depth 9"),
        ({"device": "cudax"}, "'cudax'"),
        ({"method": "XX"}, "'XX': choose from DC, M, .*, random"),
        ({"budget": "huge"}, "budget 'huge'"),
        ({"method": "random", "ipc": 9}, "ipc=9"),
        ({"snapshots": [9]}, "snapshot=9"),
        ({"lr_images": -1.0}, "lr_images=-1.0"),
        ({"dtype": torch.int8}, "int8"),
    ],
)
def test_bad_input_writes_nothing(call, words, data, tmp_path):
    with pytest.raises(ValueError, match=words):
        run(data, tmp_path, **call)
    assert list(tmp_path.iterdir()) == []


def test_a_deadline_leaves_a_checkpoint_from_which_the_next_run_continues(data, tmp_path):
    with pytest.raises(OutOfTime, match="1 of 4"):
        run(data, tmp_path, deadline=AfterOneLook())
    folder = tmp_path / "made-up" / "ipc1" / "DC" / "set0"
    assert sorted(contents(folder)) == ["begun.json", "checkpoint.safetensors"]
    stopped = run(data, tmp_path)
    whole = run(data, tmp_path / "elsewhere")
    assert torch.equal(stopped.S.images, whole.S.images)
    assert stopped.evaluation.accuracies == whole.evaluation.accuracies
    assert sorted(contents(folder)) == ["accuracy-convnet.json", "run.json", "set.safetensors"]


def test_damaged_files_are_named(data, tmp_path):
    folder = run(data, tmp_path).folder
    (folder / "run.json").write_text((folder / "run.json").read_text()[:50])
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        run(data, tmp_path)
    with pytest.raises(ValueError, match="is damaged"):
        readback.load_results(tmp_path)


def test_json_without_the_needed_keys_is_damaged_too(data, tmp_path):
    folder = run(data, tmp_path).folder
    whole = (folder / "run.json").read_text()
    for name, text in (("accuracy-convnet.json", "{}"), ("run.json", "[]")):
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            run(data, tmp_path)
        (folder / "run.json").write_text(whole)


def test_a_sweep_out_of_time_still_reads_what_is_stored(data, tmp_path):
    options = {"budget": "tiny", "results_dir": tmp_path, "device": "cpu", "progress": False}
    store.sweep(data, ["random"], 1, **options)
    runs, left = store.sweep(data, ["random", "DC"], 1, deadline=time.monotonic(), **options)
    assert [r.record["method"] for r in runs] == ["random", "random"]
    assert list(left) == [("made-up", 1, "DC")]


def test_sweep_and_results(data, tmp_path, capsys):
    options = {"budget": "tiny", "results_dir": tmp_path, "device": "cpu"}
    runs, left = store.sweep(data, "random, DC", 1, trace={("DC", 1): (0, 4)}, **options)
    assert "4/4" in capsys.readouterr().err, "the progress bar counts sets"
    assert left == {}
    assert [(r.record["method"], r.record["recipe"]["seed"]) for r in runs] == [
        ("random", 0), ("DC", 0), ("random", 1), ("DC", 1)
    ]  # fmt: skip
    assert [list(r.trace) for r in runs] == [[], [0, 4], [], []]
    table = readback.as_table(runs)
    assert len(table) == 2 * 2 * 2
    stored = readback.load_results(tmp_path)
    order = ["method", "set", "net"]
    pd.testing.assert_frame_equal(
        table.sort_values(order, ignore_index=True), stored.sort_values(order, ignore_index=True)
    )
    assert set(stored["budget"]) == {"tiny"} and set(stored["network"]) == {"convnet"}


def test_a_sweep_out_of_time_says_what_it_left(data, tmp_path):
    options = {"budget": "tiny", "results_dir": tmp_path, "device": "cpu", "progress": False}
    runs, left = store.sweep(data, ["random", "DC"], [1], deadline=time.monotonic(), **options)
    assert runs == [] and set(left) == {("made-up", 1, m) for m in ("random", "DC")}
    assert all("time" in reason for reason in left.values())
    assert list(readback.as_table(runs).columns) == readback.COLUMNS


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"methods": ["DC", "XX"]}, "'XX'"),
        ({"methods": ["random"], "ipc": [1, 99]}, "ipc=99"),
        ({"networks": -1}, "networks=-1"),
        ({"networks": 10**9}, "networks=10{9}"),
        ({"trace_networks": 10**9}, "trace_networks=10{9}"),
        ({"sets": 0}, "sets=0"),
        ({"sets": 10**9}, "sets=10{9}"),
    ],
)
def test_a_sweep_checks_everything_before_it_starts(call, words, data, tmp_path):
    arguments = {"methods": ["DC"], "ipc": [1], "budget": "tiny", "results_dir": tmp_path, **call}
    with pytest.raises(ValueError, match=words):
        store.sweep(data, progress=False, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_name_has_no_characters_that_file_systems_refuse(tmp_path):
    folder = layout.run_folder(tmp_path, "imagefolder:/home/me/my pictures", 1, "multi,d1+100*d4,fixed", 0)
    assert folder.relative_to(tmp_path).parts == (
        "imagefolder_home_me_my_pictures",
        "ipc1",
        "multi,d1+100_d4,fixed",
        "set0",
    )


def test_no_results_yet(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results folder"):
        readback.load_results(tmp_path / "nowhere")


def test_lists_as_a_command_line_gives_them():
    assert as_list("DC, M") == ["DC", "M"]
    assert as_list(["DC"]) == ["DC"] and as_list((1, 10)) == [1, 10]
    assert as_list(1) == [1] and as_list("1,10") == [1, 10]


def test_a_results_folder_that_cannot_be_made(data, tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(OSError, match=r"cannot make .*set0"):
        run(data, tmp_path / "results")
    assert (tmp_path / "results").read_text() == "a file"


def test_a_stored_table_comes_back_bit_for_bit_and_only_for_its_settings(tmp_path):
    table = pd.DataFrame(
        {"a": [1 / 3, float("nan"), 1e-17], "b": [1, 2, 3], "c": [True, False, True], "d": ["x", "y", "z"]}
    )
    calls = []

    def compute():
        calls.append(1)
        return table

    for _ in range(2):
        found = store.cached_table(tmp_path / "folder" / "t.json", {"eps": (0.5, 0.1)}, compute)
        pd.testing.assert_frame_equal(found, table, check_exact=True)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="other settings"):
        store.cached_table(tmp_path / "folder" / "t.json", {"eps": (0.5,)}, compute)


def test_targets_are_stored_side_by_side_and_added_later(data, tmp_path):
    first = run(data, tmp_path, targets="mlp")
    assert list(first.evaluations) == ["mlp"] and first.evaluation.network == "mlp"
    both = run(data, tmp_path, targets=["convnet", "mlp", "convnet:norm=batch"])
    assert list(both.evaluations) == ["convnet", "mlp", "convnet:norm=batch"]
    assert both.evaluations["mlp"] == first.evaluation, "not trained again"
    assert both.evaluations["convnet"] == run(data, tmp_path).evaluation
    table = readback.as_table([both])
    assert table.groupby("network").size().to_dict() == {"convnet": 2, "convnet:norm=batch": 2, "mlp": 2}
    assert set(readback.load_results(tmp_path)["network"]) == set(both.evaluations)
    with pytest.raises(ValueError, match="'lenin'"):
        run(data, tmp_path, targets="lenin")
    with pytest.raises(ValueError, match="targets is empty"):
        run(data, tmp_path, targets=[])
    spelled = "convnet:norm=batch,pooling=max"
    assert list(run(data, tmp_path / "source", network=spelled).evaluations) == [spelled], "a comma in the name"
    assert list(run(data, tmp_path / "source", targets=spelled).evaluations) == [spelled]


def test_another_source_network_is_another_method(data, tmp_path):
    r = run(data, tmp_path, network="mlp")
    assert r.record["method"] == "DC@mlp" and r.folder.parent.name == "DC@mlp"
    assert list(r.evaluations) == ["mlp"]
    assert r.record["recipe"]["lr_images"] == 0.01, "the rate of the released scripts for this source"
    assert set(readback.load_results(tmp_path)["method"]) == {"DC@mlp"}


def test_a_method_can_be_spelled_out(data, tmp_path):
    r = run(data, tmp_path, method="multi, d1 + 100*d4, steps:2,1")
    assert r.record["method"] == "multi,d1+100*d4,steps:2,1"
    assert (r.record["recipe"]["what"], r.record["recipe"]["how"]) == ("multi", "d1 + 100*d4")
    assert run(data, tmp_path, method="multi,d1+d2,fixed").record["method"] == "MD", "one name for one method"
    with pytest.raises(ValueError, match="unknown distance"):
        run(data, tmp_path, method="multi,d7,fixed")
    with pytest.raises(ValueError, match=r"'multi': choose from DC, .*, random"):
        run(data, tmp_path, method="multi")


def test_networks_trained_on_all_images_are_stored(data, tmp_path):
    options = {"budget": "tiny", "results_dir": tmp_path, "device": "cpu", "progress": False}
    whole = store.whole_data(data, **options)
    assert whole.n == 2 and whole.protocol["width"] == 4 and whole.protocol["epochs"] == 2
    path = tmp_path / "made-up" / "whole" / "accuracy-convnet.json"
    assert json.loads(path.read_text())["accuracies"] == list(whole.accuracies)
    by_hand = gm.evaluate(data, data, "convnet", 3, protocol=gm.Protocol(4, 2, 2), device="cpu", progress=False)
    assert store.whole_data(data, networks=3, **options).accuracies == by_hand.accuracies
    assert (
        store.whole_data(data, networks=1, deadline=time.monotonic(), **options).accuracies == by_hand.accuracies[:1]
    )
    with pytest.raises(OutOfTime):
        store.whole_data(data, networks=4, deadline=time.monotonic(), **options)
    with pytest.raises(ValueError, match=r"seed=0, .* seed=1"):
        store.whole_data(data, seed=1, **options)
    assert readback.load_results(tmp_path).empty


def test_a_stored_table_is_not_started_after_the_deadline(tmp_path):
    table, path = pd.DataFrame({"a": [1.5]}), tmp_path / "new" / "table.json"
    with pytest.raises(OutOfTime, match=r"before .*table\.json"):
        store.cached_table(path, {}, lambda: table, deadline=time.monotonic() - 1)
    assert not path.parent.exists()
    pd.testing.assert_frame_equal(store.cached_table(path, {}, lambda: table, device="cpu"), table)
    content = json.loads(path.read_text())
    assert content["device"] == "cpu" and content["seconds"] >= 0
    assert {"commit", "torch", "threads", "device_name"} <= set(content)
    pd.testing.assert_frame_equal(store.cached_table(path, {}, lambda: 0, deadline=time.monotonic() - 1), table)


def test_deadline():
    assert deadline_in(None) is None
    assert 4 < deadline_in(5) - time.monotonic() <= 5
    with pytest.raises(ValueError, match="time_budget='5'"):
        deadline_in("5")


def test_two_threads_that_need_the_same_run_take_turns(data, tmp_path):
    folder = layout.run_folder(tmp_path, data.name, 1, "DC", 0)
    with held(folder) as release:
        with pytest.raises(OutOfTime, match="another process"):
            run(data, tmp_path, deadline=time.monotonic())
        with pytest.raises(locks.Busy, match="another process"):
            run(data, tmp_path, wait=False)
        assert contents(folder) == {}
        threading.Timer(0.3, release).start()
        begun = time.monotonic()
        assert run(data, tmp_path).evaluation.n == 2
        assert time.monotonic() - begun > 0.25
    run(data, tmp_path, wait=False)  # free again


def test_everything_that_is_stored_waits_for_its_folder_or_not(data, tmp_path):
    options = {"budget": "tiny", "device": "cpu", "results_dir": tmp_path, "progress": False}
    with held(layout.whole_data_folder(tmp_path, data.name)), pytest.raises(locks.Busy):
        store.whole_data(data, wait=False, **options)
    with held(tmp_path / "tables"), pytest.raises(locks.Busy):
        store.cached_table(tmp_path / "tables" / "t.json", {}, pd.DataFrame, wait=False)
    table = store.cached_table(tmp_path / "tables" / "t.json", {}, lambda: pd.DataFrame({"a": [1]}), wait=False)
    with held(tmp_path / "tables"):  # what is stored needs no lock
        again = store.cached_table(tmp_path / "tables" / "t.json", {}, pd.DataFrame, wait=False)
    pd.testing.assert_frame_equal(again, table)


HOLD = """
import pathlib, sys, time
from gmlib.runs.locks import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_no_lock_and_its_file_stays(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(locks.Busy), locks.locked(tmp_path, wait=False):
            pass
    finally:
        process.kill()
        process.communicate()
    file = tmp_path / locks.LOCK
    before = file.stat()
    with locks.locked(tmp_path, wait=False):
        pass
    assert file.stat().st_ino == before.st_ino and file.read_bytes() == b""


def test_no_two_threads_hold_a_lock_at_once(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(5):
            with locks.locked(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_another_user_may_take_the_lock(tmp_path):
    mask = os.umask(0)
    try:
        with locks.locked(tmp_path):
            assert (tmp_path / locks.LOCK).stat().st_mode & 0o666 == 0o666
    finally:
        os.umask(mask)


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(self, **options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locks.locked(tmp_path):
        assert "cannot be locked" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_read_without_a_lock(data, tmp_path, monkeypatch):
    stored = run(data, tmp_path)
    (stored.folder / locks.LOCK).unlink()
    monkeypatch.setattr(locks.os, "access", lambda path, mode: False)
    assert run(data, tmp_path).evaluation == stored.evaluation
    assert not (stored.folder / locks.LOCK).exists()


def test_a_changed_recipe_does_not_have_the_budgets_name(data, tmp_path):
    usual = run(data, tmp_path / "a", inner_loops=1)  # as in the schedule for one image per class
    assert usual.record["budget"] == "tiny"
    assert run(data, tmp_path / "b", lr_images=0.2).record["budget"] == "tiny, changed"
    assert run(data, tmp_path / "c", method="random", ipc=3).record["budget"] == "tiny", "a coreset has no schedule"
    assert set(readback.load_results(tmp_path / "b")["budget"]) == {"tiny, changed"}


def test_a_stored_table_with_infinities_is_stored(tmp_path):
    table = pd.DataFrame({"a": [1.5, float("inf"), float("nan")]})
    store.cached_table(tmp_path / "table.json", {}, lambda: table)
    assert store.cached_table(tmp_path / "table.json", {}, lambda: 0)["a"].isna().tolist() == [False, True, True]


def test_a_sweep_cut_short_keeps_the_networks_that_were_trained(tmp_path, monkeypatch):
    """Without the second target the sweep returns the set with the first, and `run` for both is out of time."""
    data, real = make_data(dtype=torch.float32), store.evaluate
    options = {
        "budget": "smoke",
        "sets": 1,
        "networks": 2,
        "results_dir": tmp_path,
        "device": "cpu",
        "progress": False,
    }
    options |= {"targets": ["mlp", "convnet"], "width": 4, "depth": 2}

    def until_the_mlp(S, data, network, *args, **kwargs):
        if network != "mlp":
            raise gm.OutOfTime("out of time")
        return real(S, data, network, *args, **kwargs)

    monkeypatch.setattr(store, "evaluate", until_the_mlp)
    runs, left = store.sweep(data, ["random"], 1, **options)
    assert [list(r.evaluations) for r in runs] == [["mlp"]] and left == {} and runs[0].evaluation.n == 2
    with pytest.raises(gm.OutOfTime):
        store.run(data, "random", 1, **{k: v for k, v in options.items() if k != "sets"})
    monkeypatch.setattr(store, "evaluate", real)
    (whole,), _ = store.sweep(data, ["random"], 1, **options)
    assert list(whole.evaluations) == ["mlp", "convnet"]


# ---- sets that are made together -------------------------------------------------------------------------

SHARING = ("DC", "M", "MD", "multi,d2,fixed")


def plan(data, folder, methods=SHARING, ipc=1, **options):
    return [store.plan_run(data, m, ipc, **{"budget": "tiny", "results_dir": folder, **options}) for m in methods]


def do(job, others=(), **options):
    return store.do(job, others=others, device="cpu", progress=False, **options)


def same_sets(a, b):
    """True if two folders of runs hold the same sets and snapshots, with the same losses and accuracies."""
    first, second = contents(a), contents(b)
    for name, content in first.items():
        if name.endswith(".safetensors"):
            assert content == second[name], name
        elif name.endswith("run.json"):
            one, other = ([h["loss"] for h in json.loads(file[name])["history"]] for file in (first, second))
            assert one == other, name
        else:
            assert json.loads(content)["accuracies"] == json.loads(second[name])["accuracies"], name
    return set(first) == set(second)


@pytest.fixture
def made(monkeypatch):
    """The methods of each call of condense_together."""
    calls = []

    def counted(data, recipes, *args, real=store.condense_together, **options):
        calls.append(sorted(recipe.method for recipe in recipes))
        return real(data, recipes, *args, **options)

    monkeypatch.setattr(store, "condense_together", counted)
    return calls


def test_sets_made_together_have_the_bits_of_their_own_runs(data, tmp_path, made):
    options = {"dtype": torch.float16, "snapshots": (0, 2), "trace_networks": 0}
    jobs = plan(data, tmp_path / "a", **options)
    assert do(jobs[0], jobs).evaluation.n == 2
    assert made == [sorted(SHARING)]
    for job in jobs[1:]:
        assert sorted(contents(job.folder)) == ["run.json", "set.safetensors", "snapshots.safetensors"]
        assert json.loads((job.folder / "run.json").read_text())["made_together"] == 4
    do(jobs[1], jobs)
    assert len(made) == 1, "what is stored is not made again"
    for method in SHARING:
        run(data, tmp_path / "a", method, **options)
        assert "made_together" not in run(data, tmp_path / "b", method, **options).record
    assert same_sets(tmp_path / "a", tmp_path / "b")


def test_only_jobs_that_share_at_one_inner_iteration_are_made_together(tmp_path, made):
    data = make_data(dtype=torch.float32)
    jobs = [
        *plan(data, tmp_path, ("random", "DC", "M", "DC")),
        *plan(data, tmp_path, ("DC",), seed=1),
        *plan(data, tmp_path, ("DC", "M"), network="mlp"),
        *plan(data, tmp_path, ("DC", "M"), ipc=10),
        *plan(make_data((9, 9, 9), dtype=torch.float32), tmp_path / "other", ("DC",)),
    ]
    found = [[other.method for other in store.sharing(job, jobs)] for job in jobs]
    assert found == [[], ["M"], ["DC"], ["M"], [], ["M@mlp"], ["DC@mlp"], [], [], []]
    for job in (jobs[0], jobs[1], jobs[5]):
        do(job, jobs)
    assert made == [["DC", "M"], ["DC@mlp", "M@mlp"]]
    assert len(list(tmp_path.rglob("run.json"))) == 5
    run(data, tmp_path, seed=2)
    dc, m = plan(data, tmp_path, ("DC", "M"), seed=2)
    assert store.sharing(m, [dc]) == [], "it is stored"


def test_a_folder_of_another_process_is_left_out(data, tmp_path, made):
    jobs = plan(data, tmp_path, ("DC", "M", "MD"))
    with held(jobs[1].folder):
        do(jobs[0], jobs)
        with pytest.raises(locks.Busy):
            do(jobs[1], jobs, wait=False)
    assert made == [["DC", "MD"]] and contents(jobs[1].folder) == {}
    with locks.locked(jobs[2].folder, wait=False):
        pass  # it is free again


def test_a_job_whose_folder_is_in_use_does_not_start_the_others(data, tmp_path, made):
    jobs = plan(data, tmp_path, ("DC", "M"))
    with held(jobs[0].folder) as release:
        with pytest.raises(locks.Busy):
            do(jobs[0], jobs, wait=False)
        with pytest.raises(OutOfTime, match="another process"):
            do(jobs[0], jobs, deadline=time.monotonic())
        assert made == [] and contents(tmp_path) == {}
        threading.Timer(0.3, release).start()
        begun = time.monotonic()
        do(jobs[0], jobs)
        assert time.monotonic() - begun > 0.25
    assert made == [["DC", "M"]]


def test_a_set_that_was_begun_with_others_can_be_finished_alone(data, tmp_path, made):
    jobs = plan(data, tmp_path / "a")
    with pytest.raises(OutOfTime, match=r"before .* was started"):
        do(jobs[0], jobs, deadline=time.monotonic() - 1)
    assert contents(tmp_path / "a") == {}
    with pytest.raises(OutOfTime, match=r"1 of 16 outer iterations: run again"):
        do(jobs[0], jobs, deadline=AfterOneLook())
    assert all(sorted(contents(job.folder)) == ["begun.json", "checkpoint.safetensors"] for job in jobs)
    assert run(data, tmp_path / "a", "M").record["made_together"] == 4, "as the first part was"
    assert do(jobs[0], jobs).record["made_together"] == 4
    assert made[1:] == [["M"], sorted({*SHARING} - {"M"})]
    for method in SHARING:
        run(data, tmp_path / "a", method)
        run(data, tmp_path / "b", method)
    assert same_sets(tmp_path / "a", tmp_path / "b")


def test_a_diverged_set_does_not_lose_the_others(data, tmp_path, monkeypatch):
    monkeypatch.setitem(how.DISTANCES, "d2", lambda A, B, real=how.d2: real(A, B) * math.nan)
    jobs = plan(data, tmp_path, ("DC", "multi,d2,fixed", "M"))
    with pytest.raises(gm.Diverged, match="not finite"):
        do(jobs[1], jobs)
    assert [(job.folder / "run.json").is_file() for job in jobs] == [True, False, True]
    again = [replace_folder(job, tmp_path / "again") for job in jobs]
    assert do(again[0], again).record["made_together"] == 3, "no error for this one"
    with pytest.raises(gm.Diverged, match="not finite"):
        do(again[1], again)
    assert do(again[2], again).evaluation.n == 2


def foreign_checkpoint(job):
    """Put the checkpoint of an unfinished run of another recipe there."""
    (other,) = plan(job.data, job.folder / "other", (job.method,), lr_images=0.7)
    with pytest.raises(OutOfTime):
        do(other, deadline=AfterOneLook())
    (other.folder / store.CHECKPOINT).replace(job.folder / store.CHECKPOINT)


def foreign_record(job):
    """Put a finished run of another recipe there."""
    (other,) = plan(job.data, job.folder / "other", (job.method,), lr_images=0.7)
    do(other)
    for name in ("run.json", "set.safetensors"):
        (other.folder / name).replace(job.folder / name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda job: (job.folder / "run.json").write_text("{"), r"run\.json is damaged"),
        (foreign_record, "holds a run with lr_images=0.7"),
        (lambda job: (job.folder / store.BEGUN).write_text("{"), r"begun\.json is damaged"),
        (lambda job: (job.folder / store.CHECKPOINT).write_bytes(b"damaged"), "checkpoint.* is damaged"),
        (foreign_checkpoint, "belongs to another run, with lr_images=0.7"),
    ],
    ids=["damaged run.json", "another run", "damaged begun.json", "damaged checkpoint", "another checkpoint"],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_an_error_of_its_own_job_only(spoil, words, data, tmp_path, made):
    jobs = plan(data, tmp_path, ("DC", "M", "MD"))
    jobs[1].folder.mkdir(parents=True)
    spoil(jobs[1])
    made.clear()
    before = contents(jobs[1].folder)
    do(jobs[0], jobs)
    assert made == [["DC", "MD"]] and contents(jobs[1].folder) == before
    with pytest.raises(ValueError, match=words):
        do(jobs[1], jobs)
    assert do(jobs[2], jobs).evaluation.n == 2


def test_what_is_stored_is_read_once_and_that_of_others_never(data, tmp_path, monkeypatch):
    jobs = plan(data, tmp_path, ("DC", "M", "MD"))
    do(jobs[0], jobs)
    read = []
    monkeypatch.setattr(store, "stored_record", lambda job, real=store.stored_record: read.append(job) or real(job))
    for job in jobs:
        do(job, jobs)
    assert read == jobs


def replace_folder(job, root):
    return dataclasses.replace(job, folder=root / job.method)


def test_a_sweep_makes_sets_together_seed_by_seed(data, tmp_path, made, monkeypatch):
    trained = []
    monkeypatch.setattr(
        evaluation, "fit", lambda *a, real=training.fit, **o: trained.append(len(made)) or real(*a, **o)
    )
    runs, left = store.sweep(data, SHARING, 1, budget="tiny", results_dir=tmp_path, device="cpu", progress=False)
    assert made == [sorted(SHARING)] * 2 and left == {} and len(runs) == 8
    assert trained[0] == 1, "networks are trained before the next seed begins"


def test_a_sweep_can_make_each_set_alone_so_that_its_seconds_are_its_own(data, tmp_path, made):
    options = {"budget": "tiny", "sets": 1, "results_dir": tmp_path, "device": "cpu", "progress": False}
    runs, _ = store.sweep(data, ["DC", "M"], 1, together=False, **options)
    assert made == [["DC"], ["M"]] and not any("made_together" in r.record for r in runs)


# ---- precision -------------------------------------------------------------------------------------------


def measures(monkeypatch, precision):
    """A process in which this precision is the fastest."""
    monkeypatch.setattr(condensation, "fastest_precision", lambda *_: precision)
    monkeypatch.setattr(condensation, "_MEASURED", {})


def test_the_measured_precision_is_stored_and_accepted_later(data, tmp_path, monkeypatch):
    measures(monkeypatch, "bf16")
    jobs = plan(data, tmp_path, ("DC", "M"), precision="auto")
    do(jobs[0], jobs)
    first = run(data, tmp_path, precision="auto")
    assert (first.record["recipe"]["precision"], first.record["budget"]) == ("bf16", "tiny")
    assert first.S.recipe["precision"] == "bf16"
    before = contents(first.folder)
    measures(monkeypatch, "float32")
    for precision in ("auto", "bf16"):
        run(data, tmp_path, precision=precision)
    with pytest.raises(ValueError, match=r"precision='bf16', but precision='float32'"):
        run(data, tmp_path, precision="float32")
    assert contents(first.folder) == before
    assert run(data, tmp_path, precision="auto", seed=1).record["recipe"]["precision"] == "float32"
    found = shipped.load_condensed("made-up", 1, "DC", budget="tiny", results_dir=folder_of_tiny(tmp_path))
    assert found.recipe["precision"] == "bf16"


def folder_of_tiny(root):
    """A folder laid out like results/, with these runs in the place of the budget."""
    (root / "results").mkdir()
    (root / "results" / "tiny").symlink_to(root)
    return root / "results"


@pytest.mark.parametrize(
    ("method", "precision", "budget"),
    [
        ("DC", "auto", "tiny"),
        ("DC", "bf16", "tiny"),
        ("DC", "tf32", "tiny, changed"),
        ("DC", "tf32+bf16", "tiny, changed"),
        ("random", "tf32", "tiny"),
    ],
)
def test_bfloat16_is_the_budgets_own_protocol(method, precision, budget, data, tmp_path):
    (job,) = plan(data, tmp_path, (method,), precision=precision)
    assert job.budget == budget


def test_a_source_network_in_the_name_of_a_method(data, tmp_path):
    r = run(data, tmp_path, "DC@mlp")
    assert r.record["method"] == "DC@mlp" and r.record["budget"] == "tiny"
    assert run(data, tmp_path, network="mlp").evaluation == r.evaluation
    assert str(r) == str(r.evaluation)
    with pytest.raises(ValueError, match="two source networks"):
        run(data, tmp_path, "DC@mlp", network="lenet")
    for coreset in ("random", "herding"):
        with pytest.raises(ValueError, match=f"{coreset}@mlp names a source network, .*: write {coreset}$"):
            run(data, tmp_path, f"{coreset}@mlp")


# ---- stored files are checked


def accuracies_of(values, **changes):
    return lambda folder: change(folder / "accuracy-convnet.json", accuracies=values, **changes)


WRONG = {
    "above 100": accuracies_of([150.0, 50.0]),
    "below 0": accuracies_of([-5.0, 50.0]),
    "true": accuracies_of([True, 50.0]),
    "null": accuracies_of([None, 50.0]),
    "a word": accuracies_of(["50", 50.0]),
    "no list": accuracies_of(None),
    "none at all": accuracies_of([]),
    "a million": accuracies_of([50.0] * 10**6),
    "a network that failed twice": accuracies_of([50.0], failed=[1, 1]),
    "a network that failed and is not there": accuracies_of([50.0], failed=[7]),
    "a protocol without epochs": accuracies_of([50.0, 50.0], protocol={"epochs": None}),
    "a seed below 0": accuracies_of([50.0, 50.0], seed=-1),
    "no digest of a set": accuracies_of([50.0, 50.0], set="x"),
    "NaN": lambda folder: (folder / "accuracy-convnet.json").write_text('{"accuracies": [NaN]}'),
}


@pytest.mark.parametrize("name", WRONG)
def test_accuracies_that_cannot_be_are_refused_and_never_averaged(name, stored_run, data):
    root, folder = stored_run
    WRONG[name](folder)
    before = contents(root)
    for read in (lambda: run(data, root, networks=3), lambda: readback.load_results(root)):
        with refuses(ValueError, "accuracy-convnet.json is damaged", "delete it"):
            read()
    assert contents(root) == before


@pytest.fixture(scope="module")
def stored_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.BUDGETS, "tiny", TINY)
        run(make_data((8, 8, 8), dtype=torch.float32, n_test=30), root, snapshots=(0, 4))
    return root


@pytest.fixture
def stored_run(stored_once, tmp_path):
    """A folder of runs with one run, and the folder of this run."""
    root = shutil.copytree(stored_once, tmp_path / "runs")
    return root, root / "made-up" / "ipc1" / "DC" / "set0"


def nulls(content, place=()):
    """The paths of all values in nested dicts, and of the first element of each list."""
    items = content.items() if isinstance(content, dict) else list(enumerate(content))[:1]
    for key, value in items:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from nulls(value, (*place, key))


@pytest.mark.parametrize("name", ["run.json", "accuracy-convnet.json", "trace.json"])
@pytest.mark.parametrize("value", [None, "x", -1, {}], ids=str)
def test_a_stored_value_of_another_kind_is_refused_or_harmless(name, value, stored_run, data):
    """Never an error from inside. The digest is right each time."""
    root, folder = stored_run
    whole, refused = (folder / name).read_bytes(), 0
    for place in nulls(content_of(folder / name)):
        content = content_of(folder / name)
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = value
        if "recipe" in content and isinstance(content["recipe"], dict) and "recipe_hash" in content:
            content["recipe_hash"] = (
                json_digest(content["recipe"]) if place[0] == "recipe" else content["recipe_hash"]
            )
        write_json(folder / name, content)
        for read in (
            lambda: store.plan_run(data, "DC", 1, budget="tiny", results_dir=root),
            lambda: readback.load_results(root),
            lambda: shipped.load(folder),
            lambda: overview.made_with(root),
        ):
            try:
                read()
            except ValueError as error:
                refused += 1
                assert str(folder) in str(error) and "delete" in str(error) and ". " not in str(error), error
        (folder / name).write_bytes(whole)
    assert refused > 10


def test_a_set_of_another_run_does_not_get_these_accuracies(stored_run, data):
    root, folder = stored_run
    other = run(data, root, seed=1).folder
    shutil.copy(other / "set.safetensors", folder)
    for read in (lambda: run(data, root), lambda: shipped.load(folder)):
        with pytest.raises(ValueError, match=r"set\.safetensors is not the set"):
            read()


def test_accuracies_of_a_set_that_is_gone_are_refused_before_a_new_one_is_made(stored_run, data, monkeypatch):
    root, folder = stored_run
    (folder / "run.json").unlink()
    monkeypatch.setattr(store, "condense_together", None)
    for name in ("accuracy-convnet.json", "trace.json"):
        with refuses(ValueError, name, "another set", "delete it"):
            run(make_data((8, 8, 8), dtype=torch.float32, n_test=30, seed=9), root)
        (folder / name).unlink()


def test_accuracies_of_another_set_are_refused(stored_run, data):
    root, folder = stored_run
    other = run(data, root, seed=1).folder
    for name in ("accuracy-convnet.json", "trace.json"):
        before = (folder / name).read_bytes()
        change(folder / name, set=content_of(other / "run.json")["set"])
        for read in (lambda: run(data, root), lambda: shipped.load(folder)):
            with refuses(ValueError, name, "another set"):
                read()
        (folder / name).write_bytes(before)
    run(data, root)


def test_networks_trained_on_other_data_are_refused(data, tmp_path):
    options = {"budget": "tiny", "device": "cpu", "results_dir": tmp_path, "progress": False}
    store.whole_data(data, **options)
    with refuses(ValueError, "accuracy-convnet.json", "other data"):
        store.whole_data(make_data((8, 8, 8), dtype=torch.float32, n_test=30, seed=9), **options)


def test_snapshots_of_another_set_or_that_are_damaged_are_refused(stored_run, data):
    root, folder = stored_run
    path = folder / "snapshots.safetensors"
    whole = path.read_bytes()
    tensors, metadata = read_tensors(path, store.SNAPSHOTS_FORMAT, "")
    del metadata["sha256"]
    for wrong in (
        (tensors, metadata | {"set": "0" * 64}),
        ({"k0": tensors["k0"][:1].clone()}, metadata),
        ({"k0": tensors["k0"] * math.nan}, metadata),
        ({"other": tensors["k0"]}, metadata),
    ):
        write_tensors(path, *wrong)
        with refuses(ValueError, "snapshots.safetensors is damaged", "delete it"):
            run(data, root)
    path.write_bytes(whole[:-1])
    with refuses(ValueError, "snapshots.safetensors is damaged"):
        run(data, root)


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": None},
        {"columns": {"a": [1, 2, 3]}},
        {"columns": {"more": [1, 2]}},
        {"dtypes": {"a": "no dtype"}},
        {"columns": {"a": ["x", "y"]}},
        {"settings": None},
    ],
    ids=str,
)
def test_a_damaged_table_is_named(changes, tmp_path):
    path = tmp_path / "t.json"
    store.cached_table(path, {}, lambda: pd.DataFrame({"a": [1.5, 2.5], "b": [1, 2]}))
    change(path, **changes)
    with refuses(ValueError, "t.json is damaged", "delete it"):
        store.cached_table(path, {}, pytest.fail)


@pytest.mark.parametrize("settings", [{"lr": math.nan}, {"S": torch.zeros(1)}])
def test_settings_that_json_lacks_are_refused_before_the_table_is_made(settings, tmp_path):
    with refuses(ValueError, "settings", "JSON"):
        store.cached_table(tmp_path / "t.json", settings, pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_diverged_is_stored_and_counts_as_done(data, tmp_path, monkeypatch):
    outcomes = iter([50.0, math.nan, 70.0, 80.0, 90.0])
    monkeypatch.setattr(evaluation, "_accuracy", lambda *_: next(outcomes))
    found = run(data, tmp_path, "random", networks=3).evaluation
    assert (found.accuracies, found.failed) == ((50.0, 70.0), (1,))
    assert run(data, tmp_path, "random", networks=3).evaluation == found
    assert run(data, tmp_path, "random", networks=2).evaluation == found.first(2)
    more = run(data, tmp_path, "random", networks=4).evaluation
    assert (more.accuracies, more.failed) == ((50.0, 70.0, 80.0), (1,))
    table = readback.load_results(tmp_path)
    assert table["accuracy"].tolist() == [50.0, 70.0, 80.0]


def test_a_set_with_a_diverged_network_is_complete_once_all_are_trained(stored_run, monkeypatch):
    root, folder = stored_run
    results = folder_of_tiny(root)
    change(folder / "accuracy-convnet.json", accuracies=[50.0], failed=[0])
    assert readback.stored_accuracies(results)[["accuracy", "diverged"]].values.tolist() == [[50.0, 1]]
    (S,) = shipped.condensed(results)
    assert S.accuracy.trained == 2
    change(folder / "accuracy-convnet.json", accuracies=[50.0], failed=[])
    assert readback.stored_accuracies(results).empty and len(readback.unfinished_accuracies(results)) == 1


def test_the_threads_of_every_part_of_a_run_are_recorded(data, tmp_path):
    with pytest.raises(OutOfTime):
        run(data, tmp_path, deadline=AfterOneLook())
    torch.set_num_threads(2)
    record = run(data, tmp_path, networks=1).record
    torch.set_num_threads(1)
    r = run(data, tmp_path, networks=2)
    trained = content_of(r.folder / "accuracy-convnet.json")
    assert (record["threads"], trained["threads"]) == ([1, 2], [2, 1])
    assert {"1 then 2 threads", "2 then 1 threads"} == {
        overview._device(part).rpartition(", ")[2] for part in (record, trained)
    }


@pytest.mark.parametrize("name", ["..", ".", "", "../../elsewhere", "/etc", "x" * 275, "~"])
def test_every_data_set_has_a_folder_of_its_own_inside_the_results(name, tmp_path):
    for folder, depth in (
        (layout.run_folder(tmp_path, name, 1, "DC", 0), 4),
        (layout.whole_data_folder(tmp_path, name), 2),
    ):
        inside = folder.resolve().relative_to(tmp_path.resolve())
        assert len(inside.parts) == depth and max(map(len, inside.parts)) < 150


def test_results_may_be_named_with_a_tilde(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert run(data, "~/runs", "random").folder.is_relative_to(tmp_path / "runs")
    assert len(readback.load_results("~/runs")) == 2
    store.cached_table("~/t.json", {}, lambda: pd.DataFrame({"a": [1]}))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "runs", "t.json"]


def test_runs_of_a_network_that_another_process_registered_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(gm.NETWORKS, "mine", gm.NETWORKS["mlp"])
    data = make_data(dtype=torch.float32)
    options = {"budget": "smoke", "networks": 1, "results_dir": tmp_path, "progress": False, "outer_loops": 1}
    store.run(data, "DC@mine", 1, **options)
    monkeypatch.undo()
    assert set(readback.load_results(tmp_path)["method"]) == {"DC@mine"}
    assert [run["method"] for run in shipped.stored_runs(tmp_path)] == ["DC@mine"]


def test_a_record_says_which_schedule_was_used(tmp_path):
    data = make_data(dtype=torch.float32)
    options = {"budget": "smoke", "networks": 1, "results_dir": tmp_path, "progress": False, "outer_loops": 1}
    found = store.run(data, "DC", 2, inner_loops=None, zeta_theta=None, **options)
    assert found.record["schedule"] == {"T": 2, "zeta_theta": 50, "source": "between points of Section 4.4"}
    del options["outer_loops"]
    assert "schedule" not in store.run(data, "random", 2, **options).record


def test_a_set_that_is_damaged_or_missing_says_how_to_go_on(tmp_path):
    data = make_data(dtype=torch.float32)
    options = {"budget": "smoke", "networks": 1, "results_dir": tmp_path, "progress": False, "width": 4, "depth": 2}
    file = store.run(data, "random", 1, **options).folder / "set.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with refuses(ValueError, "damaged", "rest of its folder"):
        store.run(data, "random", 1, **options)
    file.unlink()
    with refuses(ValueError, "missing", "rest of its folder"):
        store.run(data, "random", 1, **options)
    shutil.rmtree(file.parent)
    assert store.run(data, "random", 1, **options).S.ipc == 1


# ---- files in another place --------------------------------------------------------------------------------


@pytest.fixture
def two_runs(tmp_path):
    data = make_data(dtype=torch.float32)
    for method in ("DC", "random"):
        store.run(data, method, 1, budget="smoke", results_dir=tmp_path, device="cpu", progress=False, **SMALL_RUN)
    store.whole_data(
        data,
        budget="smoke",
        networks=1,
        results_dir=tmp_path,
        device="cpu",
        progress=False,
        width=4,
        depth=1,
        epochs=1,
    )
    return tmp_path


SMALL_RUN = {"networks": 1, "width": 4, "depth": 1, "batch_real": 3, "outer_loops": 1}


def copy_accuracies(root):
    run = next(root.glob("*/ipc1/DC/set0"))
    shutil.copy(run / "accuracy-convnet.json", run / "accuracy-mlp.json")


def copy_to(place):
    def copy(root):
        (made,) = root.glob("*/ipc1/DC/set0")
        shutil.copytree(made, made.parents[3] / made.parents[2].name / place)

    return copy


def swap_sets(root):
    (made,) = root.glob("*/ipc1/DC/set0/set.safetensors")
    shutil.copy(next(root.glob("*/ipc1/random/set0/set.safetensors")), made)


def copy_whole(root):
    (whole,) = root.glob("*/whole")
    (made,) = root.glob("*/ipc1/DC/set0")
    other = root / "other" / made.relative_to(root / made.parents[2].name)
    shutil.copytree(made, other)
    record = json.loads((other / "run.json").read_text())
    del record["sha256"]
    record["recipe"]["dataset"] = record["data"]["name"] = "other"
    record["data"]["fingerprint"] = "0" * 64
    record["recipe_hash"] = files.json_digest(record["recipe"])
    files.write_json(other / "run.json", record)
    shutil.copytree(whole, root / "other" / "whole")


@pytest.mark.parametrize(
    ("fault", "read", "words"),
    [
        (copy_accuracies, readback.load_results, "accuracy-mlp.json holds accuracies of convnet"),
        (copy_to("ipc1/DC/set5"), readback.load_results, "belongs in the folder"),
        (copy_to("ipc1/DC/set5"), shipped.stored_runs, "belongs in the folder"),
        (copy_to("ipc10/DC/set0"), readback.load_results, "belongs in the folder"),
        (copy_to("ipc1/M/set0"), readback.load_results, "belongs in the folder"),
        (swap_sets, readback.load_results, "is not the set of the run.json"),
        (copy_whole, readback.stored_whole_data, "belongs to another set or other data"),
    ],
)
def test_files_in_another_place_are_refused(fault, read, words, two_runs):
    read(two_runs)
    fault(two_runs)
    with refuses(ValueError, words):
        read(two_runs)


def test_tables_name_the_data_and_not_their_folder(tmp_path):
    data = dataclasses.replace(make_data(dtype=torch.float32), name="a/b c")
    run = store.run(data, "DC", 1, budget="smoke", results_dir=tmp_path, device="cpu", progress=False, **SMALL_RUN)
    settings = {"max_steps": 3, "set": run.S.fingerprint, "data": data.fingerprint}
    descend = partial(gm.reach, run.S, [0.5], 1, max_steps=3, width=4, depth=1, device="cpu", progress=False)
    store.cached_table(run.folder / "reach.json", settings, descend)
    recipe = {"recipe": run.record["recipe"], "data": data.fingerprint}
    store.cached_table(run.folder / "pulls.json", recipe, lambda: pd.DataFrame({"t": [0]}))
    for table in (readback.load_results, readback.stored_descents, readback.stored_pulls):
        assert set(table(tmp_path)["dataset"]) == {"a/b c"}
    elsewhere = tmp_path / "a_b_c" / "ipc1" / "M" / "set0" / "pulls.json"
    elsewhere.parent.mkdir(parents=True)
    shutil.move(run.folder / "pulls.json", elsewhere)
    with refuses(ValueError, "belongs in the folder"):
        readback.stored_pulls(tmp_path)


@pytest.mark.parametrize("deadline", ["soon", True, math.nan, [1]])
def test_a_deadline_that_is_none_is_refused_with_nothing_written(deadline, tmp_path):
    data, given = (
        make_data(dtype=torch.float32),
        {"results_dir": tmp_path / "runs", "device": "cpu", "deadline": deadline},
    )
    calls = [
        lambda: store.run(data, "DC", 1, budget="smoke", **given),
        lambda: store.sweep(data, ["DC"], 1, budget="smoke", **given),
        lambda: store.whole_data(data, budget="smoke", **given),
        lambda: store.cached_table(tmp_path / "runs" / "t.json", {}, pytest.fail, deadline=deadline),
    ]
    for call in calls:
        with refuses(ValueError, "deadline="):
            call()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("option", "value"), [("progress", "no"), ("wait", 1)])
def test_a_switch_that_is_none_is_refused_with_nothing_written(option, value, tmp_path):
    data, given = make_data(dtype=torch.float32), {"budget": "smoke", "results_dir": tmp_path / "runs"}
    for call in (lambda **more: store.run(data, "DC", 1, **more), lambda **more: store.whole_data(data, **more)):
        with refuses(ValueError, f"{option}={value!r}"):
            call(**given, device="cpu", **{option: value})
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    os.mkfifo(tmp_path / "set.safetensors")
    with refuses(ValueError, "run.json", "no regular file"):
        layout.read_record(tmp_path)
    with refuses((ValueError, OSError), "set.safetensors"):
        gm.SyntheticSet.load(tmp_path / "set.safetensors")
    with refuses(ValueError, "no regular file"):
        files.read_tensors(tmp_path / "set.safetensors", "x", "run again")
    with refuses((ValueError, OSError), "there is no file"):
        cells.read_lines(tmp_path / "run.json")


def test_a_copy_without_git_can_be_told_its_commit(tmp_path, monkeypatch):
    provenance._commit.cache_clear()
    monkeypatch.setenv("GMLIB_COMMIT", "abc123")
    assert provenance._commit(tmp_path) == "abc123"
    provenance._commit.cache_clear()
    monkeypatch.setenv("GMLIB_COMMIT", "")
    assert provenance._commit(tmp_path) is None
    provenance._commit.cache_clear()
