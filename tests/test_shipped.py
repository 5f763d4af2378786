"""Sets that come with the repository: found by name, and listed in tables."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_data
from messages import refuses
from stored import change, content_of

import gmlib as gm
from gmlib import files
from gmlib import recipe as recipes
from gmlib.maxmin import noise_set
from gmlib.runs import layout, overview, readback, shipped, store

ROOT = Path(__file__).parent.parent
TINY = recipes.Budget(
    recipe={"width": 4, "depth": 2, "batch_real": 4, "outer_loops": 2}, many={"inner_loops": 2, "zeta_theta": 1},
    sets=2, networks=3, epochs=4,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def budgets():
    """Two budgets of milliseconds under the names of the real ones."""
    paper = replace(TINY, recipe={**TINY.recipe, "outer_loops": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.BUDGETS, "lite", TINY)
        patch.setitem(recipes.BUDGETS, "paper", paper)
        yield


@pytest.fixture(scope="module")
def data():
    return make_data((12, 12, 12), dtype=torch.float32, n_test=30)


def run(data, root, method="M", ipc=1, budget="paper", **options):
    options = {"device": "cpu", "progress": False, "results_dir": shipped.folder(budget, root), **options}
    return store.run(data, method, ipc, budget=budget, **options)


@pytest.fixture(scope="module")
def made(budgets, data, tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    run(data, root, "M", seed=0)
    run(data, root, "M", seed=0, budget="lite")
    run(data, root, "M", seed=1, budget="lite")
    run(data, root, "DC", budget="lite", targets=["mlp", "convnet"])
    run(data, root, "random", ipc=10, budget="lite")
    return root


@pytest.fixture
def results(made, tmp_path):
    return shutil.copytree(made, tmp_path / "results")


# ---- a set by its name -----------------------------------------------------------------------------------


def test_a_loaded_set_is_what_was_stored(results, data):
    S = gm.load_condensed("made-up", 1, "M", seed=1, results_dir=results)
    stored = run(data, results, "M", seed=1, budget="lite")  # read back
    assert (
        isinstance(S, gm.SyntheticSet) and torch.equal(S.images, stored.S.images) and S.images.dtype == torch.float32
    )
    assert S.labels.tolist() == [0, 1, 2] and (S.mean, S.std, S.classes) == (data.mean, data.std, data.classes)
    assert S.recipe == gm.Recipe.for_method("M", "made-up", 1, "lite", 1).as_dict() and S.record == stored.record
    assert S.evaluations == stored.evaluations and S.accuracy == stored.evaluation
    assert S.record["data"]["fingerprint"] == data.fingerprint and len(S.history) == 2
    assert len(S.to_dataset()) == 3


def test_networks_trained_on_a_loaded_set_have_the_stored_accuracy(results, data):
    """With the same seed and protocol, bit for bit on one machine's CPU."""
    for method, ipc in (("M", 1), ("DC", 1)):
        S = gm.load_condensed("made-up", ipc, method, results_dir=results, budget="lite")
        e = S.accuracy
        again = gm.evaluate(
            S, data, e.network, e.n, e.seed, epochs=e.protocol["epochs"], device="cpu", progress=False
        )
        assert again.accuracies == e.accuracies and again.protocol == e.protocol


def test_the_papers_budget_comes_first_and_is_shown(results):
    for budget, K in ((None, 3), ("paper", 3), ("lite", 2)):
        S = gm.load_condensed("made-up", 1, "M", budget=budget, results_dir=results)
        assert (S.budget, S.recipe["outer_loops"]) == (budget or "paper", K)
    assert repr(S).startswith("CondensedSet(M, lite budget: 3 images of (1, 8, 8), 1 for each of 3 classes")
    assert repr(S).endswith(f", {S.accuracy}")
    assert gm.load_condensed("made-up", 1, "M", seed=1, results_dir=results).budget == "lite"


def test_any_folder_of_runs_can_be_read(data, tmp_path):
    """Runs nested deeper, as a page stores its own, are ignored."""
    run(data, tmp_path, "MD", budget="lite", results_dir=tmp_path / "runs")
    run(data, tmp_path, "MD", budget="lite", results_dir=tmp_path / "runs" / "efficiency", outer_loops=1)
    S = gm.load_condensed("made-up", 1, "MD", results_dir=tmp_path / "runs")
    assert (S.budget, S.recipe["outer_loops"], len(readback.sets_table(tmp_path / "runs"))) == ("lite", 2, 1)


def test_the_accuracy_of_a_set_with_several_networks_is_the_convnets(results):
    S = gm.load_condensed("made-up", 1, "DC", results_dir=results)
    assert set(S.evaluations) == {"mlp", "convnet"} and S.accuracy.network == "convnet"


def test_a_set_without_accuracies_is_still_a_set(results):
    shutil.rmtree(results / "made-up")
    (results / "lite" / "made-up" / "ipc1" / "M" / "set0" / "accuracy-convnet.json").unlink()
    S = gm.load_condensed("made-up", 1, "M", results_dir=results)
    assert S.accuracy is None and repr(S).endswith("not evaluated")
    row = readback.sets_table(results).query("method == 'M' and seed == 0").iloc[0]
    assert row["n"] == 0 and row["accuracy"] != row["accuracy"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            {"method": "XX"},
            r"'XX', seed=0: .*ipc=1 M seed 0 \(paper budget\); ipc=1 DC seed 0 \(lite budget\); "
            r"ipc=1 M seed 0, 1 \(lite budget\); ipc=10 random seed 0 \(lite budget\)$",
        ),
        ({"seed": 7}, r"seed=7: for made-up"),
        ({"budget": "paper", "seed": 1}, r"seed=1, paper budget: .*ipc=1 M seed 0 \(paper budget\)$"),
        ({"budget": "huge"}, r"budget 'huge'"),
        ({"dataset": "MNIST"}, r"'MNIST' .*sets of made-up$"),
        ({"dataset": "Made up"}, r"'Made up' .*sets of made-up; did you mean 'made-up'\?$"),
        ({"ipc": 50}, r"ipc=50 .*ipc=1, 10$"),
        ({"ipc": 50, "method": None}, r"ipc=50: .*ipc=1, 10$"),
        ({"ipc": 10, "method": None}, r"ipc=10: .*ipc=10 random seed 0 \(lite budget\)$"),
        ({"method": None, "seed": 7}, r"seed=7: for made-up"),
        ({"budget": "smoke"}, r"smoke budget: .*ipc=1 M seed 0 \(paper budget\); "),
    ],
)
def test_the_error_for_a_missing_set_lists_the_existing_ones(call, words, results):
    with pytest.raises(ValueError, match=words):
        gm.load_condensed(**{"dataset": "made-up", "ipc": 1, "method": "M", "results_dir": results, **call})


def test_at_one_image_per_class_md_is_found_for_mda(results, data):
    with pytest.raises(ValueError, match="ipc=1 by 'MDA'"):
        gm.load_condensed("made-up", 1, "MDA", results_dir=results)
    for method in ("MD", "MDA"):
        run(data, results, method, budget="lite", networks=1)
        S = gm.load_condensed("made-up", 1, "MDA", results_dir=results)
        assert S.record["method"] == method, "its own set comes before that of MD"


def with_accuracies(root, place, *accuracies):
    """Change the stored accuracies of a set."""
    change(root / place / "accuracy-convnet.json", accuracies=list(accuracies))


def test_without_a_method_the_best_set_is_taken_and_named(results, caplog):
    lite = "lite/made-up/ipc1"
    with_accuracies(results, "made-up/ipc1/M/set0", 40.0, 41.0, 42.0)
    with_accuracies(results, f"{lite}/M/set0", 60.0, 61.0, 62.0)
    with_accuracies(results, f"{lite}/M/set1", 70.0, 71.0, 72.0)
    with_accuracies(results, f"{lite}/DC/set0", 80.0, 81.0)  # of the three networks of its budget
    for options, made, n in (
        ({}, ("M", 0, "paper"), 1),  # the largest budget comes before the accuracy
        ({"budget": "lite"}, ("M", 1, "lite"), 2),
        ({"budget": "lite", "seed": 0}, ("M", 0, "lite"), 1),
        ({"seed": 1}, ("M", 1, "lite"), 1),
    ):
        caplog.clear()
        S = gm.load_condensed("made-up", 1, results_dir=results, **options)
        assert (S.record["method"], S.recipe["seed"], S.budget) == made
        said = caplog.text
        assert f"{made[0]} with seed {made[1]}" in said and f"({made[2]})" in said and f"of {n} " in said
        assert str(S.accuracy) in said
    caplog.clear()
    gm.load_condensed("made-up", 1, "M", results_dir=results)
    assert not caplog.records, "a set that was asked for needs no word"
    shutil.rmtree(results / "made-up")
    shutil.rmtree(results / lite / "M")
    with refuses(ValueError, "ipc=1", "enough networks", "DC seed 0"):
        gm.load_condensed("made-up", 1, results_dir=results)


@pytest.mark.parametrize("method", ["M", None])
def test_a_set_no_better_than_random_images_says_so(method, results, data, caplog):
    run(data, results, "random", ipc=1, budget="lite")
    lite = "lite/made-up/ipc1"
    with_accuracies(results, f"{lite}/random/set0", 60.0, 61.0, 62.0)
    for accuracies, is_better in (
        ((64.0, 65.0, 66.0), True),
        ((55.0, 62.0, 69.0), False),
        ((40.0, 41.0, 42.0), False),
    ):
        caplog.clear()
        for place in ("M/set0", "M/set1", "DC/set0"):
            with_accuracies(results, f"{lite}/{place}", *accuracies)
        S = gm.load_condensed("made-up", 1, method, budget="lite", results_dir=results)
        warned = [record.getMessage() for record in caplog.records if "random" in record.getMessage()]
        assert len(warned) == (not is_better)
        assert is_better or ("61.0 %" in warned[0] and str(S.accuracy) in warned[0])
    caplog.clear()
    gm.load_condensed("made-up", 1, "random", budget="lite", results_dir=results)
    gm.load_condensed("made-up", 1, "M", budget="paper", results_dir=results)  # without random images of its budget
    assert not caplog.records


READERS = {
    "load_condensed": lambda **at: gm.load_condensed("MNIST", 1, **at),
    "condensed": shipped.condensed,
    "probes": shipped.probes,
    "stored_runs": shipped.stored_runs,
    "accuracies": readback.stored_accuracies,
    "whole_data": readback.stored_whole_data,
    "descents": readback.stored_descents,
    "pulls": readback.stored_pulls,
    "sets_table": readback.sets_table,
    "made_with": overview.made_with,
}


@pytest.mark.parametrize("name", READERS)
def test_gmlib_without_its_repository_says_where_the_results_are(name, tmp_path, monkeypatch):
    """An installed gmlib has no results. A repository without runs has none yet, which is no error."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "site-packages" / "results")
    for at in ({}, {"results_dir": tmp_path / "nowhere"}):
        with pytest.raises(FileNotFoundError, match=r"no results .*clone it .*results_dir"):
            READERS[name](**at)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "results")
    if name == "load_condensed":
        with pytest.raises(ValueError, match="none exists"):
            READERS[name]()
    else:
        assert len(READERS[name]()) == 0


def test_damaged_files_are_named(results):
    folder = results / "made-up" / "ipc1" / "M" / "set0"
    whole = (folder / "set.safetensors").read_bytes()
    (folder / "set.safetensors").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"set\.safetensors"):
        gm.load_condensed("made-up", 1, "M", results_dir=results)
    (folder / "set.safetensors").write_bytes(whole)
    (folder / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        gm.load_condensed("made-up", 1, "M", results_dir=results)


# ---- all of them -----------------------------------------------------------------------------------------


def test_the_table_of_all_sets(results):
    t = readback.sets_table(results)
    assert list(t) == readback.SET_COLUMNS
    assert t[["dataset", "ipc", "method", "seed", "budget", "images", "network", "n"]].values.tolist() == [
        ["made-up", 1, "M", 0, "paper", 3, "convnet", 3],
        ["made-up", 1, "DC", 0, "lite", 3, "convnet", 3],
        ["made-up", 1, "M", 0, "lite", 3, "convnet", 3],
        ["made-up", 1, "M", 1, "lite", 3, "convnet", 3],
        ["made-up", 10, "random", 0, "lite", 30, "convnet", 3],
    ]
    assert t["path"].iloc[1] == "lite/made-up/ipc1/DC/set0/set.safetensors"
    assert t["bytes"].tolist() == [(results / path).stat().st_size for path in t["path"]]
    accuracies = json.loads((results / "lite/made-up/ipc10/random/set0/accuracy-convnet.json").read_text())[
        "accuracies"
    ]
    assert t["accuracy"].iloc[4] == pytest.approx(sum(accuracies) / 3)
    assert t["std"].iloc[4] == pytest.approx(torch.tensor(accuracies, dtype=torch.float64).std().item())


def test_all_sets_have_their_stored_records(results):
    sets = shipped.condensed(results)
    assert [(S.record["method"], S.record["recipe"]["seed"], S.budget) for S in sets] == list(
        readback.sets_table(results)[["method", "seed", "budget"]].itertuples(index=False, name=None)
    )
    assert set(sets[1].evaluations) == {"mlp", "convnet"}


FILES_OF_A_RUN = ("run.json", "accuracy-convnet.json")


def test_the_descents_that_come_with_the_repository(results, data):
    """One row for each start and threshold, with the set's accuracy. Noise, a control, has none."""
    options = {"eps": [0.5, 0.1], "n_starts": 2, "max_steps": 5, "width": 4, "depth": 2}
    for method, S in (
        ("M", gm.load_condensed("made-up", 1, "M", results_dir=results)),
        ("noise", noise_set(data, 1)),
    ):
        place = layout.run_folder(results, "made-up", 1, method, 0)
        settings = options if method == "noise" else {**options, "set": S.fingerprint}
        store.cached_table(
            place / "reach.json",
            settings,
            lambda S=S: gm.reach(S, data=data, device="cpu", progress=False, **options),
        )
    copied = results / "lite" / "made-up" / "ipc1" / "DC" / "set0" / "reach.json"
    content = files.read_json(place / "reach.json", layout.StoredTable)
    content["settings"]["set"] = gm.SyntheticSet.load(copied.with_name("set.safetensors")).fingerprint
    files.write_json(copied, content)
    made_with = content_of(place / "reach.json")
    assert made_with["seconds"] > 0 and made_with["threads"] == 1
    before, after = (
        content_of(results / "made-up" / "ipc1" / "M" / "set0" / name)["seconds"] for name in FILES_OF_A_RUN
    )
    found = overview.made_with(results).set_index("folder").loc["made-up/ipc1"]
    descended = sum(content_of(path)["seconds"] for path in results.glob("made-up/*/*/*/reach.json"))
    assert found["seconds"] == pytest.approx(before + after + descended) and found["sets"] == 1, (
        "noise does not count as a set"
    )
    assert "--tables 'Table 3' 'Section 5' --methods M noise --precision float32" in found["command"]
    t = readback.stored_descents(results)
    assert t.groupby(["budget", "method", "set"], sort=False).size().to_dict() == {
        ("paper", "M", 0): 4, ("paper", "noise", 0): 4, ("lite", "DC", 0): 4
    }  # fmt: skip
    M = gm.load_condensed("made-up", 1, "M", results_dir=results)
    assert set(t.loc[(t["method"] == "M"), "accuracy"]) == {M.accuracy.mean}
    assert t.loc[t["method"] == "noise", "accuracy"].isna().all() and set(t["max_steps"]) == {5}
    assert set(t["dataset"]) == {"made-up"} and set(t["ipc"]) == {1} and t["eps"].tolist() == [0.5, 0.1] * 6
    DC = gm.load_condensed("made-up", 1, "DC", results_dir=results)
    assert set(t.loc[t["method"] == "DC", "accuracy"]) == {DC.evaluations["convnet"].mean}
    for settings in (options, {**options, "set": M.fingerprint}):
        files.write_json(copied, {**content, "settings": settings})
        with refuses(ValueError, f"{copied} belongs to another set: delete it and run again"):
            readback.stored_descents(results)


def test_where_results_of_a_budget_go(tmp_path):
    assert shipped.folder("paper") == ROOT / "results" and shipped.folder("lite") == ROOT / "results" / "lite"
    assert shipped.folder("lite", tmp_path) == tmp_path / "lite"
    with pytest.raises(ValueError, match="'huge'"):
        shipped.folder("huge")


def test_how_the_results_were_made(results, data):
    store.whole_data(data, budget="lite", networks=2, device="cpu", results_dir=results / "lite", progress=False)
    for path, seconds in {
        "made-up/ipc1/M/set0/run.json": 3600.0,
        "made-up/ipc1/M/set0/accuracy-convnet.json": 120.0,
    }.items():
        machine = {"device": "cuda", "device_name": "a GPU", "commit": "0123456789ab"}
        change(results / path, seconds=seconds, **machine)
    t = overview.made_with(results).set_index("folder")
    assert list(t.index) == ["made-up/ipc1", "lite/made-up/ipc1", "lite/made-up/ipc10", "lite/made-up/whole"]
    assert t[["sets", "networks"]].values.tolist() == [[1, 3], [3, 12], [1, 3], [0, 2]]
    start = ".venv/bin/gmlib run --budget"
    options = "--tables 'Table 3' --methods M --precision float32"
    command = f"{start} paper --datasets made-up --ipc 1 {options}"
    assert t.loc["made-up/ipc1"].tolist() == [1, 3, 3720.0, "a GPU", "0123456789ab", command]
    whole = f"{start} lite --datasets made-up --tables 'Whole data'"
    assert t.loc["lite/made-up/whole", "command"] == whole
    assert t.loc["lite/made-up/ipc1", "device"].endswith(", 1 thread")
    text = overview.readme(f"before\n{overview.BEGIN}\nstale{overview.END}\nafter\n", results)
    assert text.startswith(f"before\n{overview.BEGIN}\n\n| folder |") and text.endswith(
        f"\n\n{overview.END}\nafter\n"
    )
    assert (
        f"| <code>made-up/ipc1</code> | 1 | 3 | 1 h 2 min | a GPU | 0123456789ab | <code>{command}</code> |" in text
    )
    assert "stale" not in text and overview.readme(text, results) == text


def test_a_folder_with_two_precisions_is_continued_by_the_default(data, tmp_path):
    options = {"budget": "smoke", "device": "cpu", "progress": False, "results_dir": tmp_path / "smoke"}
    options |= {"networks": 1, "outer_loops": 1, "width": 2}
    for seed, precision in enumerate(("float32", "bf16")):
        store.run(data, "DC", 1, seed=seed, precision=precision, **options)
    (row,) = overview.made_with(tmp_path).itertuples()
    assert "--precision" not in row.command


def test_a_probe_counts_when_it_has_all_its_networks(data, tmp_path):
    options = {"budget": "smoke", "device": "cpu", "progress": False, "lr_images": 0.05}
    place = shipped.probe_folder({"lr_images": 0.05}, tmp_path) / "smoke"
    for n in (1, gm.BUDGETS["smoke"].networks):
        store.run(data, "DC", 1, networks=n, results_dir=place, **options)
        ((change, S),) = shipped.probes(tmp_path)
        assert change == "lr_images=0.05" and bool(S.evaluations) == (n > 1)


def test_a_readme_without_the_marks(tmp_path):
    tmp_path.joinpath("results").mkdir()
    assert "No run is here yet." in overview.readme(f"{overview.BEGIN}{overview.END}", tmp_path / "results")
    with pytest.raises(ValueError, match="README"):
        overview.readme(f"{overview.BEGIN} and no end", tmp_path / "results")
