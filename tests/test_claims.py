"""The rules for the paper's numbers, bounds and orderings, on made-up runs with intervals computed by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from scipy import stats

import gmreport as report
from gmlib import Recipe
from gmlib.evaluation import Evaluation
from gmlib.files import json_digest, write_json
from gmlib.runs import layout, readback, shipped
from gmlib.runs.provenance import environment
from gmreport import chapters, paper
from gmreport.orders import together

T2 = 4.302652729911275  # t(0.975; 2 degrees of freedom): three sets
NOTHING = pd.DataFrame(columns=readback.COLUMNS)
NO_DATA = "data not available"


def runs(method, set_means, *, dataset="MNIST", ipc=1, budget="paper", network="convnet", spread=0.0, networks=10):
    """On each set as many networks as the rule needs: half of them at its mean minus `spread`, half at plus."""
    rows = [
        (dataset, ipc, method, budget, seed, network, net, mean + (-1) ** net * spread)
        for seed, mean in enumerate(set_means)
        for net in range(networks)
    ]
    return pd.DataFrame(rows, columns=readback.COLUMNS)


def judged(results, claim, **more):
    return report.judge_claims(results, **more).set_index("claim").loc[claim]


def evaluation(accuracies, **changes):
    """Networks trained by the paper's protocol with these changes."""
    protocol = {"width": 128, "depth": 3, "epochs": 300, "optimiser": "sgd", "lr": 0.01, "momentum": 0.9}
    protocol |= {"weight_decay": 5e-4, "batch": 256, "augment": "none", "precision": "float32"}
    return Evaluation(tuple(accuracies), "convnet", 0, protocol | changes)


# ---- numbers ---------------------------------------------------------------------------------------------


def test_a_number_by_hand():
    """Set means 91, 92, 93: standard deviation 1, half width t / sqrt(3). The paper's DC on MNIST at 1: 91.7±0.5."""
    c = judged(runs("DC", [91, 92, 93], spread=0.5), "table1-mnist-1-intra-class")
    assert (c["paper"], c["paper_std"], c["unit"]) == (91.7, 0.5, "percent")
    assert (c["ours"], c["n"], c["n_sets"]) == (92.0, 30, 3)
    # 90.5, 91.5, 91.5, 92.5, 92.5 and 93.5, five times each
    assert c["ours_std"] == pytest.approx(math.sqrt(5 * (2 * 1.5**2 + 4 * 0.5**2) / 29))
    assert (c["low"], c["high"]) == (pytest.approx(92 - T2 / math.sqrt(3)), pytest.approx(92 + T2 / math.sqrt(3)))
    assert (c["budget"], c["outcome"], c["note"]) == ("paper", "not decided", "")


@pytest.mark.parametrize(
    ("middle", "outcome"),
    [
        # Set means middle - 0.1, middle, middle + 0.1: the interval reaches 0.1 * T2 / sqrt(3) = 0.248 to each side.
        # The tolerance is 2 * 0.5, so 90.7 to 92.7.
        (91.7, "reproduced"),
        (92.44, "reproduced"),  # up to 92.688
        (92.46, "not decided"),  # up to 92.708
        (92.94, "not decided"),  # from 92.692
        (92.96, "differs"),  # from 92.712
        (90.96, "reproduced"),  # from 90.712
        (90.94, "not decided"),  # from 90.692
        (90.44, "differs"),  # up to 90.688
    ],
)
def test_the_rule_for_numbers(middle, outcome):
    results = runs("DC", [middle - 0.1, middle, middle + 0.1])
    for claim in ("table1-mnist-1-intra-class", "table3-mnist-1-dc"):  # one run, printed twice
        assert judged(results, claim)["outcome"] == outcome


def test_the_edge_of_the_tolerance_counts_in_spite_of_rounding():
    """MNIST at 10, multi-level: 97.6±0.1. Equal sets have an interval of width 0."""
    assert judged(runs("M", [97.6, 97.6], ipc=10), "table1-mnist-10-multi-level")["outcome"] == "reproduced"
    at_the_edge = judged(runs("M", [97.8, 97.8], ipc=10), "table1-mnist-10-multi-level")
    assert at_the_edge["outcome"] == "reproduced"
    assert judged(runs("M", [97.81, 97.81], ipc=10), "table1-mnist-10-multi-level")["outcome"] == "differs"


def test_two_printed_numbers_of_one_run_are_judged_separately():
    """CIFAR-10 at 1, M: 29.7±0.7 in Table 1, 29.5±0.7 in Table 3."""
    results = runs("M", [31.0, 31.0], dataset="CIFAR10")
    assert judged(results, "table1-cifar10-1-multi-level")["outcome"] == "reproduced"  # up to 31.1
    assert judged(results, "table3-cifar10-1-m")["outcome"] == "differs"  # up to 30.9


def test_too_few_sets():
    c = judged(runs("DC", [91.7]), "table1-mnist-1-intra-class")
    assert (c["outcome"], c["n"], c["n_sets"], c["ours"]) == ("too few sets", 10, 1, pytest.approx(91.7))
    assert math.isnan(c["low"]) and c["note"] == "one set: no interval over sets"


@pytest.mark.parametrize(("networks", "outcome"), [(9, "too few networks"), (10, "reproduced"), (50, "reproduced")])
def test_a_number_needs_ten_networks_on_each_set(networks, outcome):
    c = judged(runs("DC", [91.6, 91.7, 91.8], networks=networks), "table1-mnist-1-intra-class")
    assert (c["outcome"], c["n"]) == (outcome, 3 * networks)
    one_less = pd.concat([runs("DC", [91.6, 91.7]), runs("DC", [91.6, 91.7, 91.8], networks=9).query("set == 2")])
    assert judged(one_less, "table1-mnist-1-intra-class")["outcome"] == "too few networks"


def test_two_sets_are_decided_by_the_pooled_spread():
    """DC: 91.7±0.5, so 90.7 to 92.7. Sets of 91.6 and 91.8 reach t(0.975; 1) * 0.1 = 1.27 to each side.

    Three methods whose two sets differ by 0.2 have the same standard deviation with three degrees of freedom:
    t(0.975; 3) * 0.1 = 0.318.
    """
    claim, alone = "table1-mnist-1-intra-class", runs("DC", [91.6, 91.8])
    c = judged(alone, claim)
    assert (c["outcome"], c["high"] - 91.7) == ("not decided", pytest.approx(12.706204736 * 0.1))
    assert math.isnan(c["low_alone"]), "one method: there is nothing to pool"
    together = pd.concat([alone, runs("M", [90.8, 91.0]), runs("multi,d2,fixed", [80.2, 80.0], networks=12)])
    p = judged(together, claim)
    assert (p["outcome"], p["high"] - 91.7) == ("reproduced", pytest.approx(3.182446305 * 0.1))
    assert (p["low_alone"], p["high_alone"]) == (pytest.approx(c["low"]), pytest.approx(c["high"]))
    for other in ({"budget": "lite"}, {"network": "mlp"}, {"ipc": 10}, {"dataset": "FashionMNIST"}):
        elsewhere = together.assign(**other)[together["method"] != "DC"]
        assert judged(pd.concat([alone, elsewhere]), claim)["outcome"] == "not decided"
    coresets = [runs("random", [60.0, 60.2]), runs("herding", [89.0, 89.2])]
    assert judged(pd.concat([alone, *coresets]), claim)["outcome"] == "not decided"
    with_coresets = report.judge_claims(pd.concat([together, *coresets])).set_index("claim")
    assert with_coresets.loc[claim, "high"] == p["high"]
    herding = with_coresets.loc["table3-mnist-1-herding"]
    assert herding["high"] - 89.1 == pytest.approx(12.706204736 * 0.1) and math.isnan(herding["low_alone"])
    cells = report.claims_table(found := report.judge_claims(together)).cells
    assert cells["Table 1, MNIST 1: intra-class", "ours"][1:3] == ["91.4 to 92.0", "alone: 90.4 to 93.0"]
    one = report.paper_table("Table 1", together).shown["DC", "MNIST, IPC 1"]
    assert one.small[0] == "91.4 to 92.0", "the methods of other tables count here too"
    assert report.paper_table("Table 3", together).columns[0] == "MNIST, IPC 1" and found["claim"].is_unique


def test_unequal_spreads_are_not_pooled():
    """Standard deviations of 0.14, 0.14 and 14 with two sets each: F = 10000 with 1 and 2 degrees of freedom."""
    sets = pd.concat([runs("DC", [91.6, 91.8]), runs("M", [90.8, 91.0]), runs("MD", [80.0, 100.0])])
    (spread,) = report.spreads(sets).to_dict("records")
    assert spread["p"] == pytest.approx(3 * stats.f.sf(1e4, 1, 2)) and not spread["pooled"]
    c = judged(sets, "table1-mnist-1-intra-class")
    assert (c["outcome"], c["high"] - 91.7) == ("not decided", pytest.approx(12.706204736 * 0.1))
    assert math.isnan(c["low_alone"]), "it is the interval itself"
    sentence = report.spreads_sentence(report.spreads(sets)).data
    assert "MNIST, IPC 1, paper budget: 3 methods" in sentence and "p = 0.0003 (**not equal" in sentence


def test_no_sets_and_no_pool():
    for few in (NOTHING, runs("DC", [91.6, 91.8]), pd.concat([runs("DC", [91.6, 91.8]), runs("M", [91.0])])):
        assert report.spreads(few).empty and "nothing is pooled" in report.spreads_sentence(report.spreads(few)).data


def test_the_precision_is_in_the_note():
    claim, sets = "table1-mnist-1-intra-class", runs("DC", [91.6, 91.7, 91.8])
    for precision, note in (("float32", ""), ("bf16", "precision bf16")):
        assert tuple(judged(sets.assign(precision=precision), claim)[["outcome", "note"]]) == ("reproduced", note)
    mixed = sets.assign(precision=["bf16"] * 10 + ["float32"] * 20)
    assert judged(mixed, claim)["note"] == "precision bf16 and float32"


def store(root, method="DC", seed=0, networks=10, budget="paper", **changes):
    """The files of a run that `readback.stored_accuracies` reads."""
    if method == "random":
        recipe = {"method": method, "dataset": "MNIST", "ipc": 1, "seed": seed}
    else:
        recipe = Recipe.for_method(method, "MNIST", 1, "paper", seed, **changes).as_dict()
    folder = layout.run_folder(root, "MNIST", 1, method, seed)
    folder.mkdir(parents=True)
    digest = json_digest(recipe)
    made_with = {**environment(torch.device("cpu")), "seconds": 1.0}
    of = {"name": "MNIST", "fingerprint": digest, "origin": ""}
    record = {"recipe": recipe, "recipe_hash": digest, "method": method, "budget": budget, "data": of, "set": digest}
    write_json(folder / "run.json", record | made_with | {"peak_memory_bytes": None, "history": []})
    e = replace(evaluation([91.6 + 0.1 * seed] * networks), seed=seed)
    write_json(folder / "accuracy-convnet.json", layout.evaluation_to_json(e) | made_with | {"set": digest})


def test_which_stored_runs_count(tmp_path):
    """Ten networks of the budget's 50 are enough. Of changed recipes only those with products in bfloat16 count."""
    for seed, networks in enumerate((9, 10, 50)):
        store(tmp_path, seed=seed, networks=networks)
    for seed, changes in enumerate(({"precision": "bf16"}, {"precision": "tf32"}, {"lr_images": 0.2})):
        store(tmp_path, "M", seed, budget="paper, changed", **changes)
    store(tmp_path, "MD", precision="bf16", lr_images=0.2, budget="paper, changed")
    store(tmp_path, "random", budget="paper, changed")
    stored = readback.stored_accuracies(tmp_path)
    counted = stored.groupby(["method", "set", "budget", "precision"]).size().reset_index(name="n")
    assert sorted(counted.itertuples(index=False, name=None)) == [
        ("DC", 1, "paper", "float32", 10),
        ("DC", 2, "paper", "float32", 50),
        ("M", 0, "paper", "bf16", 10),
        ("M", 1, "paper, changed", "tf32", 10),
        ("M", 2, "paper, changed", "float32", 10),
        ("MD", 0, "paper, changed", "bf16", 10),
        ("random", 0, "paper, changed", "", 10),
    ]
    c = judged(stored, "table1-mnist-1-intra-class")
    assert (c["n"], c["n_sets"], c["outcome"], c["note"]) == (60, 2, "reproduced", "")


def test_stored_sets_with_too_few_networks_are_named(tmp_path):
    """Nine networks on a set are too few. Once two sets have ten, a third with nine is left out."""
    claim = "table1-mnist-1-intra-class"

    def from_files():
        results, unfinished = readback.stored_accuracies(tmp_path), readback.unfinished_accuracies(tmp_path)
        assert len(results) + len(unfinished) == len(readback.load_results(tmp_path))
        return judged(results, claim, unfinished=unfinished)

    assert readback.unfinished_accuracies(tmp_path).empty and from_files()["outcome"] == "not run"
    store(tmp_path, seed=0, networks=9)
    assert tuple(from_files()[["outcome", "budget", "n", "n_sets"]]) == ("too few networks", "paper", 9, 1)
    store(tmp_path, seed=1, networks=10)
    assert tuple(from_files()[["outcome", "n", "n_sets"]]) == ("too few networks", 19, 2)
    assert judged(readback.stored_accuracies(tmp_path), claim)["outcome"] == "too few sets"
    store(tmp_path, seed=2, networks=10)
    c = from_files()
    assert tuple(c[["outcome", "n", "n_sets"]]) == ("reproduced", 20, 2)
    assert c.equals(judged(readback.stored_accuracies(tmp_path), claim))


def test_unfinished_sets_of_another_budget_do_not_count():
    c = judged(NOTHING, "table3-mnist-1-dc", unfinished=runs("DC", [80, 81], budget="lite", networks=1))
    assert (c["outcome"], c["note"]) == ("not run", paper.NO_RUN)
    lite = runs("DC", [80, 81], budget="lite")
    both = judged(lite, "table3-mnist-1-dc", unfinished=runs("DC", [90, 91], networks=9))
    assert (both["outcome"], both["budget"], both["ours"]) == ("too few networks", "paper", pytest.approx(90.5))


def test_another_budget_is_shown_and_not_judged():
    results = pd.concat([runs("DC", [80, 81], budget="smoke"), runs("DC", [90, 92], budget="lite")])
    c = judged(results, "table3-mnist-1-dc")
    assert (c["outcome"], c["budget"], c["ours"]) == ("another budget", "lite", 91.0)  # nearest to the paper's
    both = judged(pd.concat([results, runs("DC", [91.6, 91.7, 91.8])]), "table3-mnist-1-dc")
    assert (both["outcome"], both["budget"]) == ("reproduced", "paper")


def test_a_number_that_was_not_run_has_a_reason():
    found = report.judge_claims(runs("DC", [91, 92, 93])).set_index("claim")
    assert tuple(found.loc["table1-mnist-1-inter-class", ["outcome", "note"]]) == ("not run", paper.NO_RUN)
    for claim in ("table2-svhn-1-d1", "table3-cifar100-1-md", "text-tinyimagenet-1-ours", "table3-svhn-whole"):
        assert tuple(found.loc[claim, ["outcome", "note"]]) == ("not run", NO_DATA)
    assert "no schedule" in found.loc["text-cifar10-200-relative-ours", "note"]
    assert found.loc["table3-cifar10-1-md", "note"] == "no stored run"
    assert found.loc["table1-mnist-1-inter-class", ["ours", "low", "n", "n_sets"]].isna().all()
    available = report.judge_claims(runs("DC", [30, 31], dataset="SVHN")).set_index("claim")
    assert available.loc["table3-svhn-1-m", "note"] == paper.NO_RUN


def test_an_image_folder_does_not_count_as_cifar10():
    results = runs("DC", [28.2, 28.3, 28.4], dataset="imagefolder:cifar10-jpeg")
    assert set(report.judge_claims(results)["outcome"]) == {"not run", "by counting"}
    assert judged(results, "table1-cifar10-1-intra-class")["outcome"] == "not run"
    assert judged(results.assign(dataset="CIFAR10"), "table1-cifar10-1-intra-class")["outcome"] == "reproduced"
    assert report.orderings(pd.concat([results, results.assign(method="M")]))["run"].sum() == 0


def test_cells_of_table_4_do_not_share_runs():
    """MD from LeNet to ResNet: 88.1±1.1. A run with another target or another source does not count."""
    claim = "table4-lenet-resnet"
    results = runs("MD@lenet", [88.0, 88.1, 88.2], network="resnet18")
    assert judged(results, claim)["outcome"] == "reproduced"
    for changed in (results.assign(network="convnet"), results.assign(method="MD")):
        assert judged(changed, claim)["outcome"] == "not run"


def test_without_runs():
    found = report.judge_claims(NOTHING)
    assert len(found) == len(pd.read_csv(paper.FILE)) and found["claim"].is_unique
    columns = "claim table row column paper paper_std unit ours ours_std low high low_alone high_alone n n_sets"
    assert list(found) == [*columns.split(), "budget", "outcome", "note"]
    assert (found[found["outcome"] == "not run"]["note"] != "").all()
    orders = report.orderings(NOTHING)
    assert (orders["run"] == 0).all()
    assert set(orders["outcome"]) == {"not run"}


def test_results_must_be_in_long_form():
    for judge in (report.judge_claims, report.orderings):
        with pytest.raises(ValueError, match="lack net"):
            judge(runs("DC", [91, 92]).drop(columns="net"))


# ---- the whole training set, and relative accuracies -----------------------------------------------------


def test_whole_training_sets():
    """MNIST 99.6±0.0: the tolerance is half a unit of the last digit, 99.55 to 99.65. FashionMNIST 93.5±0.1."""
    c = judged(
        NOTHING,
        "table3-mnist-whole",
        whole={"MNIST": evaluation([99.6] * 10, epochs=1000, augment="shift+stretch+turn")},
    )
    assert (c["outcome"], c["n"], c["budget"]) == ("reproduced", 10, "paper") and pd.isna(c["n_sets"])
    accuracies = [92.0, 93.0, 94.0] * 4
    c = judged(NOTHING, "table3-fashionmnist-whole", whole={"FashionMNIST": evaluation(accuracies)})
    expected = stats.ttest_1samp(accuracies, 0).confidence_interval(0.95)
    assert (c["low"], c["high"]) == pytest.approx((expected.low, expected.high)) and c["outcome"] == "not decided"
    for n in (1, 9):
        few = judged(NOTHING, "table3-fashionmnist-whole", whole={"FashionMNIST": evaluation([93.5] * n)})
        assert few["outcome"] == "too few networks"


@pytest.mark.parametrize("change", [{"width": 32}, {"epochs": 100}, {"augment": "shift"}, {"optimiser": "adam"}])
def test_whole_training_sets_by_another_protocol(change):
    c = judged(NOTHING, "table3-fashionmnist-whole", whole={"FashionMNIST": evaluation([93.5, 93.5], **change)})
    assert (c["outcome"], c["ours"], c["budget"]) == ("another budget", 93.5, "another protocol")
    (name, value), papers = *change.items(), {"width": 128, "epochs": 300, "augment": "none", "optimiser": "sgd"}
    assert c["note"].startswith("no set: interval over networks; ")
    assert name in c["note"] and f": {value} instead of {papers[name]}" in c["note"]


def test_relative_accuracy():
    """64 % in the paper, without a standard deviation: 63.5 to 64.5. Set means 54, 54.4, 54.8 of 85."""
    claim, results = "text-cifar10-50-relative-baseline", runs("DC", [54, 54.4, 54.8], dataset="CIFAR10", ipc=50)
    c = judged(results, claim, whole={"CIFAR10": evaluation([84.0, 86.0] * 5)})
    half = T2 * 0.4 / math.sqrt(3) / 0.85
    assert (c["ours"], c["low"], c["high"]) == (pytest.approx(64), pytest.approx(64 - half), pytest.approx(64 + half))
    assert c["outcome"] == "not decided" and c["budget"] == "paper"
    sharp = runs("DC", [54.3, 54.4, 54.5], dataset="CIFAR10", ipc=50)
    assert judged(sharp, claim, whole={"CIFAR10": evaluation([85.0] * 10)})["outcome"] == "reproduced"
    assert judged(sharp, claim, whole={"CIFAR10": evaluation([100.0] * 10)})["outcome"] == "differs"
    assert judged(sharp, claim, whole={"CIFAR10": evaluation([85.0] * 9)})["outcome"] == "too few networks"
    other = judged(sharp, claim, whole={"CIFAR10": evaluation([85.0], width=32)})
    assert tuple(other[["outcome", "budget"]]) == ("another budget", "mixed")
    assert other["note"] == "the networks on whole data: width: 32 instead of 128"
    without = judged(sharp, claim)
    assert without["outcome"] == "not run" and "whole training set" in without["note"]


# ---- time and steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "interval", "outcome"),
    [
        ("text-efficiency-m-and-d-extra-time-at-most", (0.5, 0.2, 0.9), "held"),
        ("text-efficiency-m-and-d-extra-time-at-most", (0.5, -0.5, 1.5), "not decided"),
        ("text-efficiency-m-and-d-extra-time-at-most", (2.0, 1.5, 2.5), "reversed"),
        ("text-efficiency-a-saving-at-least", (28, 26, 30), "held"),
        ("text-efficiency-a-saving-at-least", (28, 24, 32), "not decided"),
        ("text-efficiency-a-saving-at-least", (20, 18, 22), "reversed"),
        ("text-efficiency-a-saving-at-most", (28, 26, 29), "held"),
        ("text-efficiency-a-saving-at-most", (40, 38, 42), "reversed"),
    ],
)
def test_bounds(claim, interval, outcome):
    c = judged(NOTHING, claim, measured={claim: interval})
    assert (c["outcome"], c["ours"], c["low"], c["high"], c["note"]) == (outcome, *interval, "")


@pytest.mark.parametrize("measured", [None, {"text-efficiency-theta-updates-adaptive": (250, 250, 250)}])
@pytest.mark.parametrize("budget", ["paper", "smoke"])
def test_steps_are_counted_and_times_are_not(measured, budget):
    """A page that measures steps under another schedule does not change the outcome of the paper's number."""
    found = report.judge_claims(NOTHING, measured, measured_budget=budget).set_index("claim")
    fixed, adaptive = (found.loc[f"text-efficiency-theta-updates-{name}"] for name in ("fixed", "adaptive"))
    # At T = 10 theta moves between the ten updates, nine times: 9 * 50, and 50 + 40 + 30 + 20 + 5 * 10.
    assert (fixed["ours"], adaptive["ours"]) == (450, 190) and fixed["outcome"] == adaptive[
        "outcome"
    ] == "by counting"
    for name in ("m-and-d-extra-time-at-most", "a-saving-at-least", "a-saving-at-most"):
        assert tuple(found.loc[f"text-efficiency-{name}", ["outcome", "note"]]) == ("not run", "no time was measured")


def test_measurements_under_another_budget_are_not_judged():
    claim = "text-efficiency-a-saving-at-least"
    c = judged(NOTHING, claim, measured={claim: (28, 26, 30)}, measured_budget="lite")
    assert (c["outcome"], c["ours"], c["note"]) == ("another budget", 28, "lite budget")


def test_bad_measurements_are_refused():
    with pytest.raises(ValueError, match="unknown claim"):
        report.judge_claims(NOTHING, {"table1-mnist-1-intra-class": (1, 0, 2)})
    for interval in ((3, 0, 2), (1, 0)):
        with pytest.raises(ValueError, match="low <= value"):
            report.judge_claims(NOTHING, {"text-efficiency-a-saving-at-least": interval})
    with pytest.raises(ValueError, match="does not fit"):
        report.judge_claims(NOTHING, {"text-efficiency-a-saving-at-least": (1, 0, math.inf)})


# ---- orderings -------------------------------------------------------------------------------------------


def ordering(results, which, budget="paper"):
    found = report.orderings(results)
    rows = found[(found["id"] == which) & (found["budget"] == budget) & (found["data"] == "")]
    assert len(rows) == 1
    return rows.iloc[0]


def counts(row):
    return tuple(row[["run", "held", "reversed", "not_decided", "too_few"]])


def test_orderings_in_the_papers_own_numbers():
    """Counted by hand in the printed tables. A tie for the best counts as best."""
    found = report.orderings(NOTHING).set_index("id")
    expected = {
        "multi-level-best": (6, 8),
        "d1-best-alone": (1, 1),
        "magnitude-helps-d1": (1, 1),
        "overfitting-helps-dc": (1, 1),
        "m-beats-dc": (9, 14),
        "md-beats-dc": (11, 14),
        "md-beats-m": (12, 14),
        "mda-beats-dc": (7, 9),
        "mda-like-mdo": (7, 9),
        "learned-beat-chosen": (14, 14),
        "tiny-imagenet": (1, 1),
        "large-sets": (5, 5),
        "convnet-best-source": (6, 6),
        "resnet-among-best-targets": (6, 6),
    }
    assert {name: (row["shown"], row["cells"]) for name, row in found.iterrows()} == expected
    assert found.loc["d1-best-alone", "note"] == NO_DATA
    assert found.loc["m-beats-dc", "note"] == "no cell has all its runs"


@pytest.fixture
def m_against_dc():
    """Differences of sets: 2, 2.1, 2.2 held; -2, -2.1, -2.2 reversed; -1, 0, 1 not decided; one set too few."""
    cells = [
        runs("DC", [90, 90, 90]),
        runs("M", [92, 92.1, 92.2]),
        runs("DC", [90, 90, 90], ipc=10),
        runs("M", [88, 87.9, 87.8], ipc=10),
        runs("DC", [90, 90, 90], ipc=50),
        runs("M", [89, 90, 91], ipc=50),
        runs("DC", [90], dataset="SVHN"),
        runs("M", [92], dataset="SVHN"),
        runs("DC", [90, 90], budget="lite"),
        runs("M", [92, 92], budget="lite"),
    ]
    without_m = runs("DC", [70, 71], dataset="FashionMNIST")
    not_in_the_paper = [runs("DC", [70, 71], ipc=20), runs("M", [70, 71], ipc=20)]
    return pd.concat([*cells, without_m, *not_in_the_paper])


def test_orderings_count_cells(m_against_dc):
    assert counts(ordering(m_against_dc, "m-beats-dc")) == (4, 1, 1, 1, 1)
    assert counts(ordering(m_against_dc, "m-beats-dc", "lite")) == (1, 1, 0, 0, 0)


def test_a_cell_that_was_run_in_part_says_what_it_lacks():
    some = [runs(name, [88, 88]) for name in ("MD", "MD@mlp", "MD@lenet")]
    others = [runs("MD", [80, 80], network="lenet"), runs("MD@alexnet", [80, 80], budget="lite")]
    cells = pd.concat([*some, *others])
    row = report.orderings(cells).set_index("id").loc["convnet-best-source"]
    assert row["outcome"] == "not run"
    assert row["note"].endswith(f"{paper.LACKS} MD from alexnet, MD from vgg11bn, MD from resnet18bn")
    found = report.ordering_cells(cells)
    to_lenet = found[(found["id"] == "convnet-best-source") & (found["at"] == "lenet")].iloc[0]
    assert to_lenet["note"].startswith(f"{paper.LACKS} MD from mlp, ")


def test_a_box_names_what_is_not_run_at_all_only_if_nothing_says_more():
    notes = [paper.NO_RUN, f"{paper.LACKS} MDA", "data not available"]

    def shown(*notes):
        return list(chapters._notes(SimpleNamespace(note=note) for note in notes))

    assert shown(*notes) == notes[1:] and shown(notes[0], notes[2], "") == [notes[0], notes[2]]


def test_orderings_have_deciding_differences(m_against_dc):
    found = report.orderings(m_against_dc)
    half = T2 * 0.1 / math.sqrt(3)
    row = found[(found["id"] == "m-beats-dc") & (found["budget"] == "paper")].iloc[0]
    assert f"MNIST, IPC 1: M minus DC +2.10 ({2.1 - half:+.2f} to {2.1 + half:+.2f})" in row["deciding"]
    assert "SVHN, IPC 1: M minus DC +2.00 (no interval)" in row["deciding"] and len(row["deciding"]) == 4
    assert (row["outcome"], row["word"]) == ("not decided", "mixed")
    assert row["in_order"] == 3  # 92.1 and 90; 87.9 and 90; 90 and 90; 92 and 90


OWN, LITE, OTHER = ("paper", ""), ("lite", ""), ("lite", "FashionMNIST instead of SVHN")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([], ("not run", "not run")),
        ([("", "", "not run")], ("not run", "not run")),
        ([(*OWN, "held"), (*OWN, "not decided"), ("", "", "not run")], ("held", "held")),
        ([(*OWN, "reversed"), (*OWN, "too few sets"), (*LITE, "held")], ("reversed", "reversed")),
        ([(*OWN, "held"), (*OWN, "reversed")], ("not decided", "mixed")),
        ([(*OWN, "not decided"), (*OWN, "too few sets")], ("not decided", "not decided")),
        ([(*OWN, "too few sets")], ("too few sets", "too few sets")),
        ([(*LITE, "held"), (*OTHER, "reversed")], ("another budget", "shorter run: held")),
        ([(*OTHER, "held"), ("", "", "not run")], ("another budget", "other data: held")),
        ([("paper", "FashionMNIST instead of SVHN", "held")], ("another budget", "other data: held")),
    ],
)
def test_the_rule_for_a_claim_with_several_cells(cells, expected):
    assert together(pd.DataFrame(cells, columns=["budget", "data", "outcome"])) == expected


def test_where_herding_is_worse_than_random_images():
    """The paper: 93.7 and 95.1 on MNIST at ten, 94.8 and 97.9 at 50; better at one image. Lite runs do not count."""
    ours = pd.concat(
        [
            runs("random", [95.0, 95.2], ipc=10), runs("herding", [96.0, 96.2], ipc=10),
            runs("random", [64.0, 65.0]), runs("herding", [60.0, 61.0]),
            runs("random", [97.0, 97.2], ipc=50, budget="lite"), runs("herding", [90.0, 90.2], ipc=50, budget="lite"),
        ]
    )  # fmt: skip
    said = report.coresets_sentence(report.judge_claims(ours)).data
    worse = "MNIST 10, MNIST 50, FashionMNIST 10, FashionMNIST 50 and CIFAR10 50"
    assert f"in 5 of the paper's 14 cells ({worse})" in said
    assert "in 1 of our 2 cells (MNIST 1)." in said
    assert "in 0 of our 0 cells." in report.coresets_sentence(report.judge_claims(NOTHING)).data


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["held"] * 3, ("held", "held")),
        (["held"] * 3 + ["reversed"], ("held", "held")),
        (["held"] * 2, ("not decided", "held so far")),
        (["reversed"], ("not decided", "reversed so far")),
        (["reversed"] * 2, ("reversed", "reversed")),
        (["held", "reversed"], ("not decided", "mixed")),
        (["not decided"] * 4, ("not decided", "not decided")),
    ],
)
def test_a_claim_about_most_of_four_cells_needs_most_of_them(outcomes, expected):
    rows = [(*OWN, outcome) for outcome in outcomes] + [(*LITE, "held")] * 9
    assert together(pd.DataFrame(rows, columns=["budget", "data", "outcome"]), most_of=4) == expected


def test_claims_about_most_cells_know_how_many_the_paper_has(m_against_dc):
    """Of 14 cells of Table 3, M is held in one of four that were run by the paper's protocol, and reversed in one."""
    of = {o.id: o.most for o in report.ORDERINGS}
    assert of["m-beats-dc"] and of["multi-level-best"] and not of["learned-beat-chosen"]
    held = m_against_dc[(m_against_dc["dataset"] == "MNIST") & (m_against_dc["ipc"] == 1)]
    row = report.orderings(held).set_index("id").loc["m-beats-dc"]
    assert set(row["word"]) == {"held so far"} and set(row["outcome"]) == {"not decided"}


def test_a_cell_without_a_run_has_the_papers_smallest_difference():
    """Table 1 on MNIST at 10: M 97.6, DC 97.4, Interleaved 97.1, Inter 96.9."""
    cells = report.ordering_cells(NOTHING)
    best = cells[cells["id"] == "multi-level-best"].set_index(["dataset", "ipc"])
    c = best.loc[("MNIST", 10)]
    assert (c["better"], c["worse"], c["shown"], c["outcome"]) == ("M", "DC", True, "not run")
    assert c["paper"] == pytest.approx(0.2) and best.loc[("MNIST", 1), "paper"] == pytest.approx(-0.8)


def test_the_smallest_difference_decides():
    results = pd.concat([runs("MD", [92, 92, 92]), runs("random", [90, 90, 90]), runs("herding", [91, 91, 91])])
    found = report.orderings(results)
    (deciding,) = found.set_index("id").loc["learned-beat-chosen", "deciding"]
    assert deciding == "MNIST, IPC 1: MD minus herding +1.00 (+1.00 to +1.00)"


TABLE_2 = list(paper.published("Table 2")["method"])  # d1, d2, d3, 100d4, then the sums


@pytest.fixture
def on_other_data():
    """Table 2's distances on FashionMNIST: d1 above d2 to d4, below the sums. MNIST has two methods of Table 3."""
    means = [80, 70, 71, 72, 82, 83, 84]
    fashion = [
        runs(m, [v, v + 0.5], dataset="FashionMNIST", budget="lite") for m, v in zip(TABLE_2, means, strict=True)
    ]
    return pd.concat([*fashion, runs("M", [90, 91], budget="lite"), runs("MD", [92, 93], budget="lite")])


def test_substitute_data_are_named_and_counted_separately(on_other_data):
    assert paper.substitutes("Table 2", on_other_data) == {("FashionMNIST", 1): "SVHN"}
    found = report.orderings(on_other_data)
    rows = found[found["id"].isin(["d1-best-alone", "magnitude-helps-d1"])]
    assert rows["data"].tolist() == ["", "FashionMNIST instead of SVHN"] * 2
    assert [counts(r) for _, r in rows.iterrows()] == [(0, 0, 0, 0, 0), (1, 1, 0, 0, 0)] * 2
    assert ordering(on_other_data, "d1-best-alone", "")["note"] == NO_DATA
    (deciding,) = rows[rows["id"] == "d1-best-alone"].iloc[1]["deciding"]
    assert deciding == "FashionMNIST, IPC 1: d1 minus 100d4 +8.00 (+8.00 to +8.00)"
    assert set(rows["outcome"]) == {"another budget"} and set(rows["word"]) == {"other data: held"}
    numbers = report.judge_claims(on_other_data[on_other_data["method"] != "multi,d3,fixed"]).set_index("claim")
    note = f"{NO_DATA}; run on FashionMNIST instead"
    assert tuple(numbers.loc["table2-svhn-1-d2", ["outcome", "note"]]) == ("not run", note)
    assert numbers.loc["table2-svhn-1-d3", "note"] == NO_DATA, "d3 was run nowhere"


def test_the_deciding_pair_has_the_outcome_of_the_cell():
    """M minus DC: a wide interval. M minus Inter: reversed, although its interval is the higher one."""
    sets = {"M": [50.0, 50.0], "DC": [53.0, 49.0], "Inter": [51.0, 51.05], "Interleaved": [40.0, 40.0]}
    found = ordering(pd.concat([runs(m, v) for m, v in sets.items()]), "multi-level-best")
    assert counts(found) == (1, 0, 1, 0, 0)
    assert found["deciding"][0].startswith("MNIST, IPC 1: M minus Inter -1.02 (-1.34 to -0.71)")


def test_no_substitute_where_the_papers_data_were_run(on_other_data):
    svhn = pd.concat([runs(m, [30, 31], dataset="SVHN") for m in TABLE_2])
    assert paper.substitutes("Table 2", svhn) == {}
    found = report.orderings(pd.concat([svhn, on_other_data]))
    rows = found[found["id"] == "d1-best-alone"]
    assert sorted(zip(rows["data"], rows["budget"], rows["run"], strict=True)) == [
        ("", "paper", 1), ("FashionMNIST instead of SVHN", "lite", 1)
    ]  # fmt: skip


def test_table_2_shows_substitute_data_and_its_own(on_other_data):
    two = report.paper_table("Table 2", on_other_data)
    assert two.columns == ["FashionMNIST, IPC 1", "SVHN, IPC 1"] and "FashionMNIST instead of SVHN" in two.caption
    ours = two.cells["d2", "FashionMNIST, IPC 1"]
    assert ours[0].startswith("70.2±") and ours[-1] == "not in the paper"
    assert two.cells["d2", "SVHN, IPC 1"] == [f"not run: {NO_DATA}", "paper: 23.6±2.1"]
    without = report.paper_table("Table 2", on_other_data[on_other_data["method"] != "multi,d3,fixed"])
    assert without.cells["d3", "FashionMNIST, IPC 1"] == [f"not run: {paper.NO_RUN}", "not in the paper"]
    three = report.paper_table("Table 3", pd.concat([on_other_data, runs("DC", [97, 98], ipc=50)]))
    assert three.columns[:3] == ["MNIST, IPC 1", "MNIST, IPC 50", "FashionMNIST, IPC 1"], "runs come first"


def test_best_means_above_every_other():
    results = pd.concat([runs("M", [92, 92.1, 92.2]), runs("DC", [90, 90, 90]), runs("Inter", [89, 89, 89])])
    assert counts(ordering(results, "multi-level-best", "")) == (0, 0, 0, 0, 0)  # Interleaved was not run
    tie, worse, better = (
        pd.concat([results, runs("Interleaved", means)]) for means in ([91, 92, 93], [88] * 3, [95] * 3)
    )
    assert counts(ordering(worse, "multi-level-best")) == (1, 1, 0, 0, 0)
    assert counts(ordering(tie, "multi-level-best")) == (1, 0, 0, 1, 0)
    assert counts(ordering(better, "multi-level-best")) == (1, 0, 1, 0, 0)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        # Standard deviation of MDO's 30 networks: sqrt(30 * 0.348 / 29) = 0.6, so "like" is within 1.2. The interval
        # of the differences, 0.1 apart, reaches 0.1 * T2 / sqrt(3) = 0.248 to each side.
        ([0.8, 0.9, 1.0], (1, 1, 0, 0, 0)),  # up to 1.148
        ([0.9, 1.0, 1.1], (1, 0, 0, 1, 0)),  # up to 1.248
        ([-1.6, -1.5, -1.4], (1, 0, 1, 0, 0)),  # up to -1.252
        ([0.0], (1, 0, 0, 0, 1)),
    ],
)
def test_like_needs_an_interval_within_the_spread_of_networks(differences, expected):
    mda = runs("MDA", [50 + d for d in differences], dataset="CIFAR10", ipc=10)
    mdo = runs("MDO", [50.0] * len(differences), dataset="CIFAR10", ipc=10, spread=math.sqrt(0.348))
    assert counts(ordering(pd.concat([mda, mdo]), "mda-like-mdo")) == expected


def test_orderings_have_the_pooled_spread_of_paired_differences():
    """Two seeds. M minus DC: 1.0 and 1.2, alone t(0.975; 1) * 0.1 = 1.27 to each side of 1.1.

    With MD and Inter, the methods gain 0.2, 0.4, 0.2 and 0.4 from seed 0 to seed 1. The variance of a difference is
    half the square of what two gains differ by: over all pairs 0.04 / 3, with three degrees of freedom.
    """
    pair = [runs("DC", [90.0, 90.2]), runs("M", [91.0, 91.4])]
    assert counts(ordering(pd.concat(pair), "m-beats-dc")) == (1, 0, 0, 1, 0)
    every = pd.concat([*pair, runs("MD", [80.0, 80.2]), runs("Inter", [70.0, 70.4]), runs("random", [50.0, 70.0])])
    found = ordering(every, "m-beats-dc")
    half = 3.182446305 * math.sqrt(0.04 / 3) / math.sqrt(2)
    assert counts(found) == (1, 1, 0, 0, 0)
    assert found["deciding"] == (f"MNIST, IPC 1: M minus DC +1.10 ({1.1 - half:+.2f} to {1.1 + half:+.2f})",)


def test_orderings_of_targets_are_not_pooled():
    """The differences of two target networks have their own spread: 1.0 and 1.2."""
    targets = {"resnet18": [91.0, 91.4], "mlp": [90.0, 90.2], "lenet": [80.0, 80.2], "alexnet": [70.0, 70.4]}
    results = pd.concat([runs("MD", v, network=n) for n, v in {**targets, "vgg11": [60.0, 60.2]}.items()])
    assert counts(ordering(results, "resnet-among-best-targets")) == (1, 0, 0, 1, 0)


def test_orderings_of_table_4_are_by_target_and_by_source():
    """The ConvNet's sets are best for ResNet and worst for the MLP; from the ConvNet, ResNet beats the others."""
    sources = ["MD@mlp", "MD@lenet", "MD@alexnet", "MD@vgg11bn", "MD@resnet18bn"]
    to_resnet = [runs("MD", [90, 90, 90], network="resnet18")] + [
        runs(s, [80, 80, 80], network="resnet18") for s in sources
    ]
    to_mlp = [runs("MD", [60, 60, 60], network="mlp")] + [runs(s, [70, 70, 70], network="mlp") for s in sources]
    from_convnet = [runs("MD", [80, 80, 80], network=n) for n in ("lenet", "alexnet", "vgg11")]
    results = pd.concat([*to_resnet, *to_mlp, *from_convnet])
    assert counts(ordering(results, "convnet-best-source")) == (2, 1, 1, 0, 0)
    assert counts(ordering(results, "resnet-among-best-targets")) == (1, 1, 0, 0, 0)


# ---- what the page shows ---------------------------------------------------------------------------------


@pytest.fixture
def some():
    """A number that is reproduced, one that differs, one set too few, another budget."""
    return pd.concat(
        [
            runs("DC", [91.6, 91.7, 91.8], spread=0.4), runs("random", [50, 50, 50]), runs("herding", [89.0]),
            runs("M", [90, 91], budget="lite"), runs("MD@mlp", [83, 83.2], network="resnet18"),
        ]
    )  # fmt: skip


def test_the_table_of_claims_shows_all(some):
    found = report.judge_claims(some)
    every = report.claims_table(found)
    assert len(every.rows) == len(set(every.rows)) == len(found)
    cells = {column: every.cells["Table 3, MNIST 1: DC", column] for column in every.columns}
    assert cells == {
        "outcome": ["reproduced"],
        "ours": ["91.7±0.4", "91.5 to 91.9", "n=30, 3 sets"],
        "paper": ["91.7±0.5", "percent"],
    }
    assert every.columns[0] == "outcome"
    assert every.cells["Table 3, MNIST 1: M", "ours"][-1] == "n=20, 2 sets, budget: lite"
    assert every.cells["Table 3, SVHN 1: M", "outcome"] == [f"not run: {NO_DATA}"]
    assert every.cells["text, TinyImageNet 1: ours", "paper"] == ["4.93±0.23", "percent"]
    assert every.cells["text, CIFAR10 50 relative: ours", "paper"] == ["71", "percent of whole"]
    one = report.claims_table(found[found["table"] == "Table 3"])
    assert one.cells["MNIST 1: DC", "paper"] == ["91.7±0.5"] and "percent" in one.caption
    assert "<table" in one._repr_html_() and "nan" not in str(every).lower()


def test_what_a_page_measured_itself_is_not_judged():
    found = report.judge_claims(NOTHING)
    times = found[found["unit"].eq("percent of time") | found["unit"].eq("steps")]
    claim = "text-efficiency-a-saving-at-least"
    table = report.claims_table(times, live={claim: (28.0, 26.0, 30.0)})
    assert table.cells["efficiency: A saving at least", "this page"] == ["28.0 (26.0 to 30.0)"]
    assert table.cells["efficiency: A saving at least", "outcome"] == ["not run: no time was measured"]
    assert table.cells["efficiency: theta updates fixed", "this page"] == ["–"]
    assert table.cells["efficiency: theta updates fixed", "outcome"][0] == "by counting"


def test_a_number_has_one_outcome_in_every_table(some):
    """`paper_table` shows what `judge_claims` says, also if two budgets were run."""
    both = pd.concat([some, runs("DC", [80, 81], budget="lite"), runs("M", [90, 91], budget="lite", dataset="SVHN")])
    found = report.judge_claims(both).set_index("claim")
    shown = report.paper_table("Table 1", both).shown
    for c in paper.published("Table 1").itertuples():
        cell, judged_ = shown[c.method, f"{c.dataset}, IPC {c.ipc}"], found.loc[c.claim]
        assert cell.outcome == judged_["outcome"] and cell.small[-1] == f"paper {c.value:.1f}±{c.std:.1f}"
        assert (cell.main == "") == (judged_["outcome"] == "not run")
    assert shown["DC", "MNIST, IPC 1"].main == "91.7±0.4"
    four = report.paper_table("Table 4", both).shown
    assert four["mlp", "resnet18"].outcome == found.loc["table4-mlp-resnet", "outcome"] == "reproduced"


def test_papers_tables_have_every_number():
    for name in paper.TABLES[:-1]:
        text = str(report.paper_table(name, NOTHING))
        published = paper.published(name)
        for c in published[published["method"] != "whole"].itertuples():
            assert f"paper: {c.value:.1f}±{c.std:.1f}" in text
        assert text.count("paper: ") == (published["method"] != "whole").sum()
    assert "CIFAR100 56.2±0.3" in report.paper_table("Table 3", NOTHING).caption


def test_papers_tables_show_both_numbers(some):
    three = report.paper_table("Table 3", pd.concat([some, runs("DC", [1, 2], dataset="digits")]))
    assert three.rows == ["random", "herding", "DC", "M", "MD", "MDO", "MDA"] and len(three.columns) == 14
    dc = three.cells["DC", "MNIST, IPC 1"]
    assert dc[0] == "91.7±0.4 (n=30, 3 sets)" and dc[-1].startswith("paper: 91.7±0.5")
    assert three.cells["MD", "MNIST, IPC 1"] == [f"not run: {paper.NO_RUN}", "paper: 91.9±0.4"]
    assert three.cells["DC", "SVHN, IPC 1"] == [f"not run: {NO_DATA}", "paper: 31.2±1.4"]
    assert three.cells["MDA", "MNIST, IPC 1"][0].startswith("not applicable: ")
    assert report.paper_table("Table 2", some).rows == ["d1", "d2", "d3", "100d4", "d1 + d2", "d1 + d3", "d1 + 100d4"]


def test_papers_table_4_has_sources_in_rows_and_targets_in_columns(some):
    four = report.paper_table("Table 4", some)
    assert four.rows == ["mlp", "convnet", "lenet", "alexnet", "vgg11bn", "resnet18bn"]  # batch norm as sources only
    assert four.columns == ["mlp", "convnet", "lenet", "alexnet", "vgg11", "resnet18"]
    ours = four.cells["mlp", "resnet18"]
    assert ours[0].startswith("83.1±") and ours[-1].startswith("paper: 83.2±2.1")
    assert four.cells["resnet18bn", "mlp"] == [f"not run: {paper.NO_RUN}", "paper: 62.2±1.8"]


def test_papers_tables_use_the_stored_results_by_default(some, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)  # the judged results of a folder are kept
    monkeypatch.setattr(readback, "stored_accuracies", lambda results_dir=None: some)
    assert report.paper_table("Table 1").cells["DC", "MNIST, IPC 1"][0] == "91.7±0.4 (n=30, 3 sets)"
    with pytest.raises(ValueError, match="unknown table"):
        report.paper_table("text")


def test_papers_tables_without_stored_results_are_an_error(monkeypatch):
    def no_results():
        raise FileNotFoundError("There are no results here.")

    monkeypatch.setattr(readback, "stored_accuracies", no_results)
    with pytest.raises(FileNotFoundError, match="no results here"):
        report.paper_table("Table 1")


def test_the_choice_of_a_method_on_substitute_data(on_other_data):
    """DC, Inter, Interleaved, M and MD: 29.8 to 34.5 on SVHN, 70.2 to 71.4 on FashionMNIST."""
    sentence = report.substitutes_sentence("Table 2", on_other_data).data
    assert "5 methods" in sentence and "span 4.7 points on SVHN and 1.2 on FashionMNIST" in sentence
    assert "matters less" in sentence
    assert report.substitutes_sentence("Table 2", NOTHING).data == ""
    digits = on_other_data.replace({"dataset": {"FashionMNIST": "digits"}})
    assert report.substitutes_sentence("Table 2", digits).data == "", "the paper has no number for digits"
