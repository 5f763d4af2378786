"""Committed results match their records, and the report shows the right numbers."""

import hashlib
import json
import math
import re
import shlex
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_data
from safetensors import safe_open
from stored import change

import gmlib as gm
import gmreport as report
from gmlib import CORESETS, Recipe, where
from gmlib import recipe as recipes
from gmlib.runs import cells, layout, overview, readback, shipped, store

RESULTS = Path(__file__).parent.parent / "results"
TEST_IMAGES = {"MNIST": 10_000, "FashionMNIST": 10_000, "made-up": 9}  # if their number is known


def problems(root):
    """What is wrong with the runs in a folder laid out like results/, in sentences. Reads the files by itself."""
    found, raw, protocols = [], {}, {}
    for path in sorted(root.glob("**/ipc*/*/set*/run.json")):
        run, record = path.parent, json.loads(path.read_text())
        S, recipe = gm.SyntheticSet.load(run / "set.safetensors"), record["recipe"]
        name = run.relative_to(root).as_posix()
        top, changes = changes_in(root, run)
        within = run.relative_to(top).as_posix()
        budget = within.split("/")[0] if within.count("/") == 4 else "paper"
        # The pass over real images in bfloat16 does not make another budget.
        precision = {"precision": "bf16"} if recipe.get("precision") == "bf16" else {}
        wrong = list(wrong_recipe(record, changes | precision))
        expected = f"{budget}, changed" if changes.keys() - {"precision"} else budget
        if record["budget"] != expected:
            wrong.append(f"budget {record['budget']} in the place of {expected}")
        place = top / ("" if budget == "paper" else budget)
        if layout.run_folder(place, recipe["dataset"], recipe["ipc"], record["method"], recipe["seed"]) != run:
            wrong.append("holds the run of another place")
        as_json = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
        if record.get("recipe_hash") != hashlib.sha256(as_json.encode()).hexdigest():
            wrong.append("another recipe hash than its recipe's")
        if S.recipe != recipe:
            wrong.append("the set has another recipe than run.json")
        with safe_open(run / "set.safetensors", framework="pt") as file:
            if file.metadata()["sha256"] != record["set"]:
                wrong.append("the set is not that of run.json")
        if S.ipc != recipe["ipc"]:
            wrong.append(f"{S.ipc} images per class in the set")
        if record["data"]["name"] != recipe["dataset"] or not re.fullmatch(
            "[0-9a-f]{64}", record["data"]["fingerprint"]
        ):
            wrong.append(f"no fingerprint of {recipe['dataset']}")
        if (run / "checkpoint.safetensors").exists():
            wrong.append("a checkpoint was left")
        for file in sorted(run.glob("accuracy-*.json")):
            stored, n = json.loads(file.read_text()), recipes.BUDGETS[budget].networks
            accuracies, protocol = stored["accuracies"], stored["protocol"]
            kind = (recipe["dataset"], budget, stored["network"])
            if protocols.setdefault(kind, protocol) != protocol:
                wrong.append(f"{file.name} has another protocol than others of its kind")
            n_test = TEST_IMAGES.get(recipe["dataset"])
            if n_test and any(abs(a * n_test / 100 - round(a * n_test / 100)) > 1e-6 for a in accuracies):
                wrong.append(f"{file.name} holds an accuracy that is no share of the test images")
            if not (0 < len(accuracies) <= n and all(0 <= a <= 100 for a in accuracies)):
                wrong.append(f"{file.name} does not hold the accuracies of up to {n} networks")
            if stored["seed"] != recipe["seed"]:
                wrong.append(f"{file.name} is of seed {stored['seed']}")
            cell = (recipe["dataset"], recipe["ipc"], record["method"], budget, stored["network"])
            enough = min(10, n) if budget == "paper" else n
            if len(accuracies) >= enough and not changes:  # unfinished runs and probes are not in the means
                raw.setdefault(cell, []).append(accuracies)
        found += [f"{name}: {sentence}" for sentence in wrong]
    return found + [f"in the report: {sentence}" for sentence in misreported(root, raw)]


def changes_in(root, run):
    """(the folder laid out like results/, the changes of the recipe in its name as {field: value})."""
    parts = run.relative_to(root).parts
    if parts[0] != "probes":
        return root, {}
    spelled = dict(one.split("=") for one in parts[1].split(","))
    values = {name: v if re.fullmatch("[a-z].*", v) and v != "null" else json.loads(v) for name, v in spelled.items()}
    return root / parts[0] / parts[1], values


def wrong_recipe(record, changes):
    """Why a recipe is not that of its method under its budget, with the changes, as this version makes it."""
    recipe, method = record["recipe"], record["method"]
    if "method" in recipe:
        if recipe["method"] != method or method not in CORESETS:
            yield "its recipe is of no known coreset"
        return
    try:
        again = Recipe(**recipe)
    except (TypeError, ValueError):
        again = None
    if again is None or again.as_dict() != recipe:
        yield "its recipe cannot be made again"
        return
    preset = method.partition("@")[0]
    at = (again.dataset, again.ipc, record["budget"].removesuffix(", changed"), again.seed)
    if Recipe.for_method(preset, *at, network=again.network, **changes) != again:
        yield f"its recipe is not that of the budget {record['budget']}"


def misreported(root, raw):
    """Numbers of the report that are not those of the raw accuracies {cell: [accuracies of each set]}."""
    folders = [root, *(root / budget for budget in recipes.BUDGETS if (root / budget).is_dir())]
    try:
        tables = [table for table in map(readback.load_results, folders) if len(table)]
        summary = report.summarise(readback.complete(pd.concat(tables))) if tables else pd.DataFrame()
    except ValueError as error:
        yield str(error)
        return
    reported = {(r.dataset, r.ipc, r.method, r.budget, r.network): r for r in summary.itertuples()}
    yield from (f"{cell} is not stored" for cell in set(reported) - set(raw))
    for cell, sets in raw.items():
        every = [a for accuracies in sets for a in accuracies]
        r = reported.get(cell)
        if r is None or (r.n, r.n_sets) != (len(every), len(sets)):
            yield f"the count of {cell}"
        elif not math.isclose(r.mean, statistics.fmean(map(statistics.fmean, sets)), abs_tol=1e-9):
            yield f"the mean of {cell}"
        elif len(every) > 1 and not math.isclose(r.std, statistics.stdev(every), abs_tol=1e-9):
            yield f"the deviation of {cell}"
        elif not same_components(r, sets):
            yield f"the spread between and within the sets of {cell}"


def same_components(r, sets):
    """True if the two components of the spread are those of a one-way analysis of variance."""
    freedom = sum(len(accuracies) - 1 for accuracies in sets)
    if len(sets) < 2 or not freedom:
        return math.isnan(r.std_between_sets)
    means = [statistics.fmean(accuracies) for accuracies in sets]
    within = sum((a - mean) ** 2 for mean, accuracies in zip(means, sets, strict=True) for a in accuracies) / freedom
    between = statistics.variance(means) - within * statistics.fmean(1 / len(accuracies) for accuracies in sets)
    wanted = (math.sqrt(within), math.sqrt(max(0.0, between)), statistics.stdev(means))
    reported = (r.std_within_sets, r.std_between_sets, r.std_set_means)
    return all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(reported, wanted, strict=True))


# ---- what is committed -----------------------------------------------------------------------------------


def test_the_committed_runs_match_their_records():
    assert problems(RESULTS) == []


def test_the_committed_table_is_that_of_the_raw_files():
    for row in readback.sets_table().itertuples():
        file = RESULTS / row.path
        assert row.bytes == file.stat().st_size
        if not row.network:  # random images that Section 5 alone needs
            assert row.method == "random" and not row.n and not [*file.parent.glob("accuracy-*")]
            continue
        stored = json.loads((file.parent / f"accuracy-{row.network}.json").read_text())["accuracies"]
        assert row.n == len(stored) and row.accuracy == pytest.approx(statistics.fmean(stored))


def test_the_readme_lists_every_file_and_every_folder_of_runs():
    readme = (RESULTS / "README.md").read_text()
    runs = {RESULTS / folder for folder in overview.made_with()["folder"]}
    files = [p for p in RESULTS.rglob("*") if p.is_file() and p.name != "README.md" and not runs & set(p.parents)]
    assert files and all(f"`{p.relative_to(RESULTS).as_posix()}`" in readme for p in files)
    assert overview.readme(readme) == readme, "update it with gmlib run --time-budget 0"


def test_the_commands_in_the_readme_choose_what_is_in_their_folders():
    lines = cells.read_lines()
    for row in overview.made_with().itertuples():
        options: dict[str, list[str]] = {}
        for word in shlex.split(row.command)[2:]:
            if word.startswith("--"):
                options[word] = []
            else:
                options[list(options)[-1]].append(word)
        ((budget,), sizes) = options["--budget"], [int(ipc) for ipc in options.get("--ipc", ())]
        wanted = cells.Wanted(options["--tables"], options["--datasets"], sizes, options.get("--methods", ()))
        chosen = {(cell.method, cell.seed) for cell in wanted.of(lines, gm.BUDGETS[budget].sets)}
        runs = (RESULTS / row.folder).glob("*/set*")
        stored = {(shipped.method_of(run), int(run.name.removeprefix("set"))) for run in runs}
        assert stored <= chosen, row.command


def test_a_network_trained_on_a_committed_set_of_mnist_is_as_good_as_the_stored_ones():
    """Other machines round differently, so the bound is the spread of the stored networks."""
    sets = readback.sets_table().query("dataset == 'MNIST' and ipc == 1 and n > 1 and network == 'convnet'")
    if sets.empty:
        pytest.skip("no set of MNIST is committed")
    try:
        data = gm.load_data("MNIST", download=False)
    except FileNotFoundError:
        pytest.skip("MNIST is not downloaded")
    best = sets.loc[sets["accuracy"].idxmax()]
    S = gm.load_condensed("MNIST", 1, best["method"], int(best["seed"]), best["budget"])
    assert S.record["data"]["fingerprint"] == data.fingerprint
    same = {name: S.accuracy.protocol[name] for name in ("width", "depth", "epochs")}
    e = gm.evaluate(S, data, n_networks=1, seed=S.accuracy.seed, progress=False, **same)
    assert e.protocol == S.accuracy.protocol
    half_width = statistics.NormalDist().inv_cdf(0.9995) * S.accuracy.std + 0.5
    assert e.mean == pytest.approx(S.accuracy.mean, abs=half_width)


# ---- the checks themselves, on a made-up folder ----------------------------------------------------------

TINY = recipes.Budget(
    recipe={"width": 4, "depth": 2, "batch_real": 4, "outer_loops": 2}, sets=2, networks=2, epochs=2
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root, data = tmp_path_factory.mktemp("whole"), make_data(dtype=torch.float32)
    tiny = {"lite": TINY, "paper": replace(TINY, recipe={**TINY.recipe, "outer_loops": 3})}
    with pytest.MonkeyPatch.context() as patch:
        for name, budget in tiny.items():
            patch.setitem(recipes.BUDGETS, name, budget)
            options = {"budget": name, "device": "cpu", "progress": False, "results_dir": shipped.folder(name, root)}
            store.sweep(data, ["random", "M", "multi,d2,fixed"], 1, **options)
        store.sweep(data, "MD", 1, network="mlp", targets=["convnet", "mlp"], **options)
        for changes in ({"lr_images": 0.05, "init": "real"}, {"class_weights": "share"}):
            place = shipped.folder("lite", shipped.probe_folder(changes, root))
            store.sweep(data, "M", 1, **options | {"budget": "lite", "results_dir": place, "sets": 1} | changes)
    return root


@pytest.fixture
def results(whole, tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.BUDGETS, "lite", TINY)
    monkeypatch.setitem(recipes.BUDGETS, "paper", replace(TINY, recipe={**TINY.recipe, "outer_loops": 3}))
    return shutil.copytree(whole, tmp_path / "results")


def test_complete_results_have_no_problem(results):
    assert len(list(results.glob("**/run.json"))) == 16 and problems(results) == []


def test_results_are_read_again_only_after_a_change(results, monkeypatch):
    read = []
    monkeypatch.setattr(readback, "_load", lambda root, load=readback._load: read.append(root) or load(root))
    first, n = readback.stored_accuracies(results), len(read)
    first["accuracy"] = 0.0  # a copy
    second = readback.stored_accuracies(str(results))
    assert len(read) == n > 0 and second["accuracy"].any()
    change(next(results.glob("lite/made-up/ipc1/M/set0/accuracy-convnet.json")), accuracies=[1.0, 2.0])
    third = readback.stored_accuracies(results)
    assert len(read) == 2 * n and set(third["accuracy"]) - set(second["accuracy"]) == {1.0, 2.0}
    shutil.rmtree(results / "lite" / "made-up" / "ipc1" / "M")
    assert len(readback.stored_accuracies(results)) < len(third)
    (results / "lite" / "made-up" / "ipc1" / "random" / "set0" / "accuracy-convnet.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            readback.stored_accuracies(results)


def test_bfloat16_is_no_change_and_tf32_is_one(results):
    data = make_data(dtype=torch.float32)
    options = {"budget": "paper", "device": "cpu", "progress": False, "precision": "bf16"}
    store.run(data, "DC", 1, results_dir=results, **options)
    store.run(data, "DC", 1, results_dir=shipped.probe_folder({"gap": 1.0}, results), gap=1.0, **options)
    assert problems(results) == []
    S = gm.load_condensed("made-up", 1, "DC", budget="paper", results_dir=results)
    assert (S.budget, S.recipe["precision"]) == ("paper", "bf16")
    assert "gap=1.0" in {change for change, _ in shipped.probes(results)}
    store.run(data, "DC", 1, seed=1, results_dir=results, **options | {"precision": "tf32"})
    assert "made-up/ipc1/DC/set1: budget paper, changed in the place of paper" in problems(results)


def store_again(path, **changes):
    replace(gm.SyntheticSet.load(path), **changes).save(path)


DAMAGE = {
    "budget lite in the place of paper": lambda run: change(run / "run.json", budget="lite"),
    "its recipe is not that of the budget paper": lambda run: change(run / "run.json", recipe={"outer_loops": 2}),
    "holds the run of another place": lambda run: change(run / "run.json", recipe={"seed": 5}),
    "the set has another recipe than run.json": lambda run: store_again(run / "set.safetensors", recipe={"ipc": 1}),
    "no fingerprint of made-up": lambda run: change(run / "run.json", data={"name": "digits"}),
    "the set is not that of run.json": lambda run: store_again(run / "set.safetensors", classes=("a", "b", "c")),
    "a checkpoint was left": lambda run: (run / "checkpoint.safetensors").write_bytes(b""),
    "accuracy-convnet.json does not hold the accuracies of up to 2 networks": lambda run: change(
        run / "accuracy-convnet.json", accuracies=[1.0, 2.0, 3.0]
    ),
    "accuracy-convnet.json is of seed 1": lambda run: change(run / "accuracy-convnet.json", seed=1),
    "accuracy-convnet.json holds an accuracy that is no share of the test images": lambda run: change(
        run / "accuracy-convnet.json", accuracies=[12.5, 25.0]
    ),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_each_check_can_fail(sentence, results):
    DAMAGE[sentence](results / "made-up" / "ipc1" / "M" / "set0")
    assert f"made-up/ipc1/M/set0: {sentence}" in problems(results)


@pytest.mark.parametrize(
    "changes",
    [{"recipe_hash": "0" * 64}, {"recipe": {"wide": 4}}, {"data": {"fingerprint": ""}}],
    ids=["recipe hash", "recipe", "fingerprint"],
)
def test_a_record_that_does_not_fit_is_refused(changes, results):
    change(results / "made-up" / "ipc1" / "M" / "set0" / "run.json", **changes)
    assert any("run.json is damaged" in sentence for sentence in problems(results))


def test_another_protocol_is_found(results):
    change(results / "made-up" / "ipc1" / "M" / "set1" / "accuracy-convnet.json", protocol={"epochs": 1})
    assert "made-up/ipc1/M/set1: accuracy-convnet.json has another protocol than others of its kind" in problems(
        results
    )


def test_an_unfinished_run_is_no_problem_and_in_no_table(results):
    """It has no networks, or fewer than its budget, as after a command that was stopped."""
    run = results / "made-up" / "ipc1" / "M"
    (run / "set0" / "accuracy-convnet.json").unlink()
    one = json.loads((run / "set1" / "accuracy-convnet.json").read_text())["accuracies"][:1]
    change(run / "set1" / "accuracy-convnet.json", accuracies=one)
    assert problems(results) == []
    assert not [
        S for S in shipped.condensed(results) if (S.budget, S.record["method"]) == ("paper", "M") and S.evaluations
    ]
    table = readback.complete(readback.load_results(results))
    assert "random" in set(table["method"]) and "M" not in set(table["method"])


def test_too_few_images_and_an_unknown_coreset(results):
    path = results / "lite" / "made-up" / "ipc1" / "random" / "set0" / "set.safetensors"
    S = gm.SyntheticSet.load(path)
    replace(S, images=S.images.repeat(2, 1, 1, 1), labels=S.labels.repeat_interleave(2)).save(path)
    change(path.with_name("run.json"), recipe={"method": "rondom"}, method="rondom")
    found = problems(results)
    assert "lite/made-up/ipc1/random/set0: 2 images per class in the set" in found
    assert "lite/made-up/ipc1/random/set0: its recipe is of no known coreset" in found


@pytest.mark.parametrize("what", ["mean", "std", "n", "std_between_sets", "std_within_sets", "std_set_means"])
def test_a_wrong_number_in_the_report_is_found(what, results, monkeypatch):
    def wrong(table, real=report.summarise):
        return real(table).assign(**{what: lambda t: t[what] + 1})

    monkeypatch.setattr(report, "summarise", wrong)
    words = {"mean": "the mean of", "std": "the deviation of", "n": "the count of"}.get(
        what, "the spread between and within"
    )
    assert len([s for s in problems(results) if s.startswith(f"in the report: {words}")]) == 8


# ---- single findings -------------------------------------------------------------------------------------


def test_the_schedule_learned_from_cifar10_is_not_eq_12s():
    """Section 4.4 derives Eq. 12 from such logs. Ours, of a smaller network, also falls, but lower and sooner."""
    log = json.loads((RESULTS / "overfitting" / "cifar10-jpeg-ipc10-mdo.json").read_text())
    recipe = Recipe(**log["recipe"])
    T, _ = recipe.schedule()
    assert (recipe.method, recipe.ipc, T) == ("MDO", 10, 10) and len(log["history"]) == log["outer_iterations"]
    for first in (0, 10, 20):  # from the start, and after S has taken shape
        learned = where.fit_schedule(log["history"][first:], T)
        eq12 = [where.adaptive(t) for t in range(T - 1)]
        assert learned == sorted(learned, reverse=True)
        assert learned[0] == eq12[0] == where.MAX_STEPS, "at first neither stops before the bound"
        assert max(learned[4:]) < min(eq12[4:]), "later theta overfits in fewer steps than Eq. 12 allows"
