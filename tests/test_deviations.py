"""What differs in our runs, by hand, and that every difference is found in the stored recipes and protocols."""

import math
import re
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import gmreport as report
from gmlib import BUDGETS, Evaluation, Recipe
from gmreport.deviations import protocol_departures, recipe_departures, trend

PROTOCOL = {
    "width": 128,
    "depth": 3,
    "epochs": 1000,
    "optimiser": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch": 256,
    "augment": "shift+stretch+turn",
    "precision": "float32",
}
NOT_MNIST = {"epochs": 300, "augment": "none"}
SIZE = ", the root mean square of the pixels was 3.5 (of the training images: 1)"
FALLING = [4.0, 4.2] * 190 + [2.0, 2.2] * 10  # 400 outer iterations, as the lite budget has at one image per class


def a_set(
    method, accuracies, *, dataset="MNIST", seed=0, budget="lite", losses=FALLING, network="convnet", **protocol
):
    """The parts of a CondensedSet that `find_deviations` reads."""
    recipe = Recipe.for_method(method, dataset, 1, budget.removesuffix(", changed"), seed).as_dict()
    return stored(method, recipe, accuracies, budget, losses, network, protocol)


def stored(method, recipe, accuracies, budget="lite", losses=(), network="convnet", protocol=None):
    record = {"method": method, "budget": budget, "recipe": recipe, "history": [{"loss": loss} for loss in losses]}
    how = PROTOCOL | ({} if recipe["dataset"] == "MNIST" else NOT_MNIST) | (protocol or {})
    evaluation = Evaluation(tuple(accuracies), network, recipe["seed"], how)
    images = torch.tensor([3.0, -4.0]).repeat(5, 1, 1, 1)  # root mean square 3.54
    return SimpleNamespace(
        record=record, evaluations={network: evaluation}, trace={}, accuracy=evaluation, images=images, budget=budget
    )  # fmt: skip


def words(departures):
    return [str(d) for d in departures]


def test_ours_minus_the_papers_by_hand():
    """DC on MNIST at 1: 91.7±0.5 in Tables 1 and 3. Set means 90 and 92: half width 12.706 * sqrt(2) / sqrt(2)."""
    found = report.find_deviations([a_set("DC", [89.5, 90.5]), a_set("DC", [92.0, 92.0], seed=1)])
    assert len(found) == 1
    c = found.iloc[0]
    assert (c["dataset"], c["ipc"], c["method"], c["budget"]) == ("MNIST", 1, "DC", "lite")
    assert c["tables"] == "Table 1, Table 3"
    assert (c["paper"], c["paper_std"], c["ours"], c["n"], c["n_sets"]) == (91.7, 0.5, 91.0, 4, 2)
    assert c["difference"] == pytest.approx(-0.7)
    assert (c["low"], c["high"]) == (pytest.approx(-0.7 - 12.7062047), pytest.approx(100 - 91.7))
    K = BUDGETS["lite"].recipe
    assert words(c["departures"]) == [
        f"outer iterations: {K['outer_loops']} instead of 1000; "
        "over the last tenth the matching loss still fell (-24.4±5.6 %)",
        f"real images per class and update: {K['batch_real']} instead of 256",
        "networks trained on each: 2 instead of 50",
    ]
    table = report.deviations_table(found)
    assert table.rows == ["MNIST, IPC 1: DC (lite)"]
    assert table.cells[table.rows[0], "ours minus the paper's"] == ["-0.7", "95% interval -13.4 to +8.3"]
    assert table.cells[table.rows[0], "what differs in the run"] == words(c["departures"])
    sentence = report.deviations_sentence(found).data
    assert (
        "2 accuracies of the paper have one of ours" in sentence  # Tables 1 and 3
        and "Ours minus the paper's is -0.7 to -0.7 points, with a median of -0.7." in sentence
    )
    assert (
        "inside our 95% interval in 2, below it in 0, above it in 0 (its half width is 12.7 to 12.7 points)"
        in sentence
    )


def test_the_sentence_counts_numbers_on_each_side():
    """DC's 91.7, M's 90.9 and MD's 91.9 on MNIST, each printed twice. Equal sets have an interval of width 0."""
    far = [a_set(m, [v, v], seed=s) for m, v in (("DC", 95.0), ("M", 80.0), ("MD", 91.9)) for s in (0, 1)]
    sentence = report.deviations_sentence(report.find_deviations(far)).data
    assert "Ours minus the paper's is -10.9 to +3.3 points, with a median of +0.0." in sentence
    assert (
        "inside our 95% interval in 2, below it in 2, above it in 2 (its half width is 0.0 to 0.0 points)" in sentence
    )


def test_two_printed_numbers_of_one_run_have_a_row_each():
    """CIFAR-10 at 1, M: 29.7 in Table 1, 29.5 in Table 3."""
    found = report.find_deviations([a_set("M", [30.0, 31.0], dataset="CIFAR10")])
    assert found[["tables", "paper"]].values.tolist() == [["Table 1", 29.7], ["Table 3", 29.5]]
    assert found["low"].isna().all()
    table = report.deviations_table(found)
    assert len(set(table.rows)) == 2
    assert table.cells[table.rows[0], "ours minus the paper's"][1] == "one set: no interval"
    sentence = report.deviations_sentence(found).data
    assert "above it in 0, and there is no interval, with one set, in 2." in sentence


def test_a_run_by_the_papers_protocol_has_no_departures():
    found = report.find_deviations([a_set("MD", [91.0, 92.0] * 25, budget="paper", seed=s) for s in (0, 1)])
    assert set(found["departures"]) == {()} and "(paper)" not in report.deviations_table(found).rows[0]
    assert "nothing in recipe or protocol" in report.deviations_sentence(found).data
    cells = report.deviations_table(found).cells
    assert cells["MNIST, IPC 1: MD", "what differs in the run"] == ["recipe and protocol are the paper's"]


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe) if f.name not in ("dataset", "ipc", "seed")])
def test_every_field_of_a_recipe_is_compared(name):
    other = {"what": "inter", "how": "d2", "where": "adaptive", "lam": 3.0, "inter_batches": "sampled", "gap": 0.2}
    other |= {"class_weights": "share", "network": "mlp", "inner_loops": 5, "zeta_theta": 5, "init": "real"}
    other |= {"augment": "dsa", "precision": "tf32"}
    recipe = Recipe.for_method("MD", "MNIST", 1).as_dict()
    recipe[name] = other.get(name, 2 if isinstance(recipe[name], int) else 0.25)
    record = {"method": "MD", "recipe": recipe, "history": []}
    found = recipe_departures(record)
    if name == "network":  # another source: the released scripts have another learning rate for the MLP
        assert [(d.what, d.papers) for d in found] == [("learning rate of S", 0.01)]
    else:
        assert [d.ours for d in found] == [Recipe(**recipe).as_dict()[name]]


@pytest.mark.parametrize("name", list(PROTOCOL))
def test_every_field_of_a_protocol_is_compared(name):
    other = {"optimiser": "adam", "augment": "none", "precision": "tf32"}
    e = Evaluation((1.0,), "convnet", 0, PROTOCOL | {name: other.get(name, 7)})
    assert protocol_departures("MNIST", Evaluation((1.0,), "convnet", 0, PROTOCOL)) == []
    (found,) = protocol_departures("MNIST", e)
    assert (found.ours, found.papers) == (other.get(name, 7), PROTOCOL[name])
    fashion = protocol_departures("FashionMNIST", Evaluation((1.0,), "convnet", 0, PROTOCOL))
    epochs, augmentation = words(fashion)
    assert epochs == "epochs in phase 2: 1000 instead of 300"
    assert augmentation == "augmentation in phase 2: shift+stretch+turn instead of none"


def test_bfloat16_is_named_where_it_is_used():
    recipe = Recipe.for_method("MD", "MNIST", 1, precision="bf16").as_dict()
    (found,) = recipe_departures({"method": "MD", "recipe": recipe, "history": []})
    silent = "instead of float32; the paper names no precision"
    assert str(found) == f"precision of the pass over real images: bf16 {silent}"
    (found,) = recipe_departures({"method": "MD", "recipe": recipe | {"precision": "tf32"}, "history": []})
    assert str(found) == f"precision of products: tf32 {silent}"
    (found,) = protocol_departures("MNIST", Evaluation((1.0,), "convnet", 0, PROTOCOL | {"precision": "tf32"}))
    assert str(found) == f"precision in phase 2: tf32 {silent}"


def test_the_precision_of_an_unchanged_set_is_that_of_its_recipe():
    base, after = a_set("MD", [70.0]), a_set("MD", [70.0], budget="lite, changed")
    base.record["recipe"]["precision"] = "bf16"
    found = report.probes([("precision=bf16", after)], [base])
    assert found["base_precision"].tolist() == ["bf16"] and report.precision_pairs(found).empty


def test_a_coreset_with_fewer_epochs_of_its_network():
    recipe = {"method": "herding", "dataset": "MNIST", "ipc": 1, "seed": 0, "space": "network"}
    recipe |= {"network": "convnet", "width": 128, "depth": 3, "epochs": 2}
    found = report.find_deviations([stored("herding", recipe, [88.0])])
    assert words(found["departures"].iloc[0]) == [
        f"epochs of the network that chooses images: 2 instead of {BUDGETS['paper'].coreset_epochs}",
        "sets: 1 instead of 2",
        "networks trained on each: 1 instead of 50",
    ]
    random = {"method": "random", "dataset": "MNIST", "ipc": 1, "seed": 0}
    assert recipe_departures({"method": "random", "recipe": random, "history": []}) == []


def test_substitute_data_are_not_compared():
    sets = [
        a_set(m, [50.0 + s, 51.0 + s], dataset="FashionMNIST", seed=s)
        for m in ("M", "multi,d2,fixed")
        for s in (0, 1)
    ]
    found = report.find_deviations(sets).set_index("method")
    other = found.loc["multi,d2,fixed"]
    assert math.isnan(other["difference"]) and math.isnan(other["paper"]) and other["tables"] == "Table 2 is on SVHN"
    assert words(other["departures"])[0] == "data: FashionMNIST instead of SVHN"
    assert found.loc["M", "tables"] == "Table 1, Table 3"
    assert "data" not in {d.what for d in found.loc["M", "departures"]}
    cells = report.deviations_table(report.find_deviations(sets)).cells
    assert cells["FashionMNIST, IPC 1: d2 (lite)", "ours minus the paper's"] == ["not comparable"]
    assert found["numbers"].to_dict() == {"M": 2, "multi,d2,fixed": 0}
    assert "2 accuracies of the paper have one" in report.deviations_sentence(report.find_deviations(sets)).data


def test_the_run_that_is_judged_is_the_one_that_is_explained():
    """One number has one outcome, so it has one row: that of the budget nearest to the paper's."""
    sets = [a_set("MD", [90.0, 91.0], budget=budget, seed=s) for budget in ("lite", "paper") for s in (0, 1)]
    found = report.find_deviations([*sets, a_set("MD", [80.0], budget="smoke")])
    assert found["budget"].tolist() == ["paper"]
    assert found["numbers"].tolist() == [2]  # Tables 3 and 4


def test_cells_that_are_not_in_the_paper_are_left_out():
    assert report.find_deviations([a_set("M", [90.0], dataset="digits")]).empty
    nothing = report.find_deviations([])
    assert nothing.empty and "nothing to compare" in report.deviations_sentence(nothing).data


def test_trend_compares_the_last_tenth_with_the_one_before():
    rng = np.random.default_rng(0)
    before, last = rng.normal(10, 1, 30), rng.normal(9, 2, 30)
    change, half = trend([*([99.0] * 240), *before, *last])
    assert change == pytest.approx(100 * (last.mean() / before.mean() - 1))
    interval = stats.ttest_ind(last, before, equal_var=False).confidence_interval(0.95)
    assert half == pytest.approx(100 * (interval.high - interval.low) / 2 / before.mean(), rel=1e-9)
    assert trend([5.0] * 400) == (0.0, 0.0)
    assert all(map(math.isnan, trend([5.0] * 199))), "too few iterations"


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ([[3.0, 3.1] * 200], "over the last tenth the matching loss did not change beyond noise (+0.0±0.7 %)"),
        ([[2.0, 2.1] * 180 + [3.0, 3.1] * 20], "over the last tenth the matching loss still rose (+48.8±1.1 %)"),
        # The mean of 0 and 48.8, with independent errors: half the root of 0.7^2 + 1.1^2.
        (
            [[3.0, 3.1] * 200, [2.0, 2.1] * 180 + [3.0, 3.1] * 20],
            "over the last tenth the matching loss still rose (+24.4±0.7 %)",
        ),
        ([[4.0, 3.0, 3.5, 2.0]], f"the matching loss ended at 50 % of its first value{SIZE}"),
        # Shares of the first: 1, 1.5, 0.75 and 1, 1.1, 1.05.
        (
            [[2.0, 3.0, 1.5], [10.0, 11.0, 10.5]],
            f"the matching loss rose to 130 % of its first value in outer iteration 2 and ended at 90 %{SIZE}",
        ),
        ([[3.0, 3.1] * 200, [3.0] * 10], ""), ([[3.0]], ""),
    ],
)  # fmt: skip
def test_evidence_from_the_matching_loss(losses, sentence):
    found = report.find_deviations([a_set("DC", [90.0, 91.0], losses=some, seed=s) for s, some in enumerate(losses)])
    (fewer,) = (d for d in found["departures"].iloc[0] if d.what == "outer iterations")
    assert fewer.evidence == sentence


def test_evidence_from_a_set_stored_half_way():
    """Differences of the networks 1, 2 and 3: mean 2, half width 4.303 * 1 / sqrt(3). It comes before the loss."""
    kept, other = a_set("DC", [91.0, 93.0, 95.0]), a_set("DC", [90.0, 91.0, 92.0], seed=1)
    how = kept.evaluations["convnet"].protocol
    of = {"convnet": (90.0, 91.0, 92.0), "mlp": (1.0, 2.0, 3.0)}
    kept.trace = {
        k: Evaluation(of[network], network, 0, how) for k, network in ((0, "convnet"), (200, "convnet"), (300, "mlp"))
    }
    (fewer,) = (
        d for d in report.find_deviations([kept, other])["departures"].iloc[0] if d.what == "outer iterations"
    )
    assert str(fewer) == "outer iterations: 400 instead of 1000; the last 200 of them brought +2.0±2.5 points (n=3)"
    for S in (kept, other):
        S.record["history"] = [{"loss": 2.0}, {"loss": 1.0}]
    (fewer,) = (
        d for d in report.find_deviations([kept, other])["departures"].iloc[0] if d.what == "outer iterations"
    )
    assert str(fewer).endswith(f"+2.0±2.5 points (n=3), the matching loss ended at 50 % of its first value{SIZE}")


def test_fewer_sets_and_networks_are_departures_of_real_images_too():
    recipe = {"method": "random", "dataset": "MNIST", "ipc": 1, "seed": 0}
    found = report.find_deviations([stored("random", recipe, [64.0, 65.0])])
    assert words(found["departures"].iloc[0]) == ["sets: 1 instead of 2", "networks trained on each: 2 instead of 50"]


# ---- one thing changed -----------------------------------------------------------------------------------


def test_the_gain_of_a_change_is_paired_by_network():
    """Gains 2, 3 and 7: mean 4, half width 4.303 * 2.646 / sqrt(3). The fourth network has no partner."""
    before, after = a_set("MD", [70.0, 71.0, 72.0]), a_set("MD", [72.0, 74.0, 79.0, 99.0], budget="lite, changed")
    after.images = torch.ones(5, 1, 1, 2)
    real = stored("random", {"method": "random", "dataset": "MNIST", "ipc": 1, "seed": 0}, [60.0, 62.0])
    made = [("lr_images=0.01", after), ("init=real", a_set("MD", [1.0], seed=1, budget="lite, changed"))]
    found = report.probes(made, [before, real, a_set("MD", [9.0], dataset="FashionMNIST"), a_set("DC", [9.0])])
    assert len(found) == 1, "a set with another seed is no partner"
    p = found.iloc[0]
    assert tuple(p[name] for name in found.columns[:7]) == ("MNIST", 1, "MD", "lite", 0, "lr_images=0.01", "float32")
    assert (p["before"], p["after"], p["gain"], p["n"], p["random"]) == (71.0, 75.0, 4.0, 3, 61.0)
    assert p["half"] == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem([2.0, 3.0, 7.0]))
    assert (p["rms_before"], p["rms_after"]) == (pytest.approx(math.sqrt(12.5)), 1.0)
    table = report.probes_table(found)
    row = "MNIST, IPC 1: MD, set 0 (lite), lr_images=0.01"
    assert table.rows == [row] and table.cells[row, "gain"] == ["+4.0±6.6", "n=3"]
    assert [table.cells[row, c] for c in table.columns[1:]] == [
        ["71.0", "pixels 3.54"],
        ["75.0", "pixels 1.00"],
        ["61.0"],
    ]


def test_a_change_without_an_unchanged_set_or_real_images():
    assert report.probes([], []).empty
    after, before = a_set("MD", [72.0], budget="lite, changed"), a_set("MD", [70.0])
    assert report.probes([("init=real", after)], []).empty
    cells = report.probes_table(report.probes([("init=real", after)], [before])).cells
    assert [cells[at] for at in cells if at[1] in ("random images", "gain")] == [["not run"], ["+2.0", "n=1"]]


def test_changes_are_means_over_sets():
    before = [a_set("MD", [70.0, 72.0]), a_set("MD", [74.0, 76.0], seed=1)]
    changed = [("a=1", [60.0, 62.0], 0), ("a=1", [64.0, 66.0], 1), ("b=2", [50.0, 52.0], 1)]
    after = [(change, a_set("MD", values, seed=seed, budget="lite, changed")) for change, values, seed in changed]
    said = report.changes_sentence(report.probes(after, before)).data
    assert re.findall(r"([\d.]+) % (\S+) \((\d sets?), n=(\d)", said) == [
        ("73.0", "unchanged", "2 sets", "4"),
        ("63.0", "a=1", "2 sets", "4"),
        ("51.0", "b=2", "1 set", "2"),
    ]
