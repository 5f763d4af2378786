"""What the page "Across architectures" shows: sizes of networks, source x target tables, three sentences, runs."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

import gmlib as gm
import gmreport as report
from gmlib.checks import as_list
from gmlib.runs import readback, store
from gmlib.runtime import deadline_in
from gmreport import paper

SOURCES = {"MD": "convnet", "MD@lenet": "lenet", "MD@mlp": "mlp"}


def transferred(accuracies, dataset="MNIST", budget="paper"):
    """{(method, target): {set seed: [accuracies]}} as the long form."""
    rows = [
        (dataset, 1, method, budget, seed, target, net, accuracy)
        for (method, target), sets in accuracies.items()
        for seed, values in sets.items()
        for net, accuracy in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=readback.COLUMNS)


def around(level):
    """Three sets of two networks with this mean, a point apart from set to set."""
    return {seed: [level + seed - 1.25, level + seed - 0.75] for seed in range(3)}


@pytest.fixture
def results():
    """The means of the paper's Table 4 for three sources and targets, and random images at 60."""
    theirs = paper.published("Table 4")
    levels = {(r.method, r.network): r.value for r in theirs.itertuples()}
    targets = ("convnet", "lenet", "mlp")
    cells = {(m, t): around(levels[m, t]) for m in SOURCES for t in targets}
    return transferred(cells | {("random", t): around(60.0) for t in targets})


# ---------------------------------------------------------------------------------------------- sizes


def test_parameters_by_hand():
    sizes = report.network_sizes(["mlp", "convnet", "mlp"], (1, 28, 28), 10, width=128, depth=3).set_index("network")
    assert list(sizes.index) == ["mlp", "convnet"]
    # weights and biases of 784-128-128-10
    assert sizes.loc["mlp", "parameters"] == 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    # three convolutions with bias, norm's scale and shift, one linear layer on 128 maps of 4x4
    convolutions = 128 * 9 + 2 * 128 * 128 * 9 + 3 * 128
    assert sizes.loc["convnet", "parameters"] == convolutions + 3 * 2 * 128 + 2048 * 10 + 10
    assert sizes.loc["convnet", "weights"] == [(128, 1, 3, 3), (128, 128, 3, 3), (128, 128, 3, 3), (10, 2048)]
    assert sizes["convolutional"].tolist() == [False, True] and (sizes["reason"] == "").all()


def test_a_network_that_does_not_fit_has_a_reason_but_an_unknown_one_is_an_error():
    sizes = report.network_sizes(["lenet", "convnet:norm=batch"], (1, 8, 8), 10, width=4, depth=2).set_index(
        "network"
    )
    assert "too small for LeNet" in sizes.loc["lenet", "reason"]
    assert sizes.loc["convnet:norm=batch", "reason"] == ""
    with pytest.raises(ValueError, match="unknown network"):
        report.network_sizes(["lenett"], (1, 28, 28), 10)


def test_network_table_shows_sizes_and_reasons():
    names = ["lenet", "mlp"]
    large, small = (report.network_sizes(names, (1, side, side), 10) for side in (28, 8))
    table = report.network_table({"large": large, "small": small})
    assert (table.rows, table.columns) == (names, ["large", "small"])
    assert table.cells["mlp", "large"] == ["118,282", "3: 128×784 to 10×128"]
    assert table.cells["lenet", "small"] == [small["reason"].iloc[0]]


def test_the_cells_of_table_4_in_a_sentence():
    """Three numbers are the paper's, and one is far below."""
    theirs = paper.published("Table 4").set_index(["method", "network"])["value"]
    ours = {("MD", "mlp"): 40.0}
    ours |= {at: theirs[at] for at in (("MD", "convnet"), ("MD@mlp", "convnet"), ("MD@mlp", "mlp"))}
    rows = [
        ("MNIST", 1, method, "paper", seed, network, net, mean + 0.01 * (net + seed))
        for (method, network), mean in ours.items()
        for seed in range(2)
        for net in range(10)
    ]
    found = report.judge_claims(pd.DataFrame(rows, columns=readback.COLUMNS))
    said = report.transfer_sentence(found).data
    assert "**Of the paper's 36 cells, 4 were run: 3 reproduced and 1 different.**" in said
    assert "The different ones: ConvNet to MLP 40.1 (paper " in said
    assert "the highest mean is ConvNet for 1 and MLP for 1 of the 2 targets" in said
    nothing = report.judge_claims(pd.DataFrame(columns=readback.COLUMNS))
    assert "No cell of Table 4 was run" in report.transfer_sentence(nothing).data


# ---------------------------------------------------------------------------------------------- table and figure


def test_transfer_table_has_ours_and_the_papers(results):
    rows = {"random": "random images", **SOURCES}
    table = report.transfer_table(
        results, paper.published("Table 4"), sources=rows, targets=["convnet", "mlp"], dataset="MNIST", ipc=1
    )
    assert (table.rows, table.columns) == (list(rows.values()), ["convnet", "mlp"])
    first, interval, theirs = table.cells["convnet", "convnet"]
    assert first.startswith("91.9±0.9") and "n=6, 3 sets" in first and interval.startswith("95% CI [")
    assert theirs.startswith("paper: 91.9±0.4")
    assert table.cells["lenet", "mlp"][-1].startswith("paper: 62.8±1.6")
    assert table.cells["random images", "mlp"][-1] == "not in the paper"


def test_transfer_table_has_reasons_and_leaves_out_a_paper_without_the_data(results):
    digits = results.assign(dataset="digits")[results["method"] == "MD"]
    table = report.transfer_table(
        digits,
        paper.published("Table 4"),
        sources=SOURCES,
        targets=["convnet", "vgg11"],
        dataset="digits",
        ipc=1,
        why={("digits", 1, "MD@lenet"): "too small", ("digits", 10, "MD@mlp"): "of other images"},
        unfit={"vgg11": "no room"},
    )
    assert table.cells["lenet", "convnet"] == ["not run: too small"]
    assert table.cells["mlp", "convnet"] == ["not run"]
    assert table.cells["convnet", "vgg11"] == ["not run: no room"]
    assert len(table.cells["convnet", "convnet"]) == 2
    assert "nothing was run" not in table.caption


def test_transfer_figure_has_means_and_gaps(results):
    some = results[~((results["method"] == "MD@mlp") & (results["network"] == "lenet"))]
    fig = report.transfer_figure(some, SOURCES, ["convnet", "lenet"])
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["convnet", "lenet", "mlp"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["convnet", "lenet"]
    means = [t.get_text() for t in ax.texts]
    assert means == ["91.9", "84.1", "87.2", "81.8", "71.2"]  # row by row, without the gap
    assert np.ma.getmaskarray(ax.collections[0].get_array()).sum() == 1


# ---------------------------------------------------------------------------------------------- the three sentences


def test_generalisation_counts_pairs_of_different_networks(results):
    convolutional = {"MD": "convnet", "MD@lenet": "lenet"}
    sentence = report.generalisation(results, convolutional, ["convnet", "lenet"]).data
    assert sentence.startswith("**In 2 of 2 pairs") and "others" not in sentence
    worse = results.copy()
    lenet = (worse["method"] == "MD@lenet") & (worse["network"] == "convnet")
    worse.loc[lenet, "accuracy"] -= 40
    sentence = report.generalisation(worse, convolutional, ["convnet", "lenet"]).data
    assert sentence.startswith("**In 1 of 2 pairs") and "reversed: lenet to convnet." in sentence
    without = results[results["method"] != "random"]
    assert "cannot say" in report.generalisation(without, convolutional, ["convnet", "lenet"]).data


def test_best_source_counts_targets(results):
    # In the paper's table ConvNet's row is the highest in every column, here by more than the sets differ.
    sentence = report.best_source(results, "MD", SOURCES, ["convnet", "lenet", "mlp"]).data
    assert "highest mean of 3 sources for 3 of 3 targets (convnet, lenet, mlp)" in sentence
    assert "above every other source beyond noise for 3 of 3 targets" in sentence
    assert sentence.endswith("below one of them beyond noise for 0 of 3 targets.")
    sentence = report.best_source(results, "MD@lenet", SOURCES, ["convnet", "mlp"]).data
    assert "for 0 of 2 targets." in sentence
    assert "below one of them beyond noise for 2 of 2 targets (convnet, mlp)" in sentence


def test_best_source_needs_all_sources(results):
    gap = results[~((results["method"] == "MD@mlp") & (results["network"] == "lenet"))]
    assert "1 of 1 target (convnet)" in report.best_source(gap, "MD", SOURCES, ["convnet", "lenet"]).data
    one = {"MD": "convnet"}
    assert "cannot say" in report.best_source(results, "MD", one, ["convnet"]).data
    assert "cannot say" in report.best_source(results, "MD@vgg11bn", SOURCES, ["convnet"]).data


def test_best_target_is_the_papers_resnet_on_the_papers_means():
    theirs = paper.published("Table 4")
    sources = {m: m for m in dict.fromkeys(theirs["method"])}
    targets = list(dict.fromkeys(theirs["network"]))
    results = transferred({(r.method, r.network): around(r.value) for r in theirs.itertuples()})
    sentence = report.best_target(results, sources, targets).data
    # ResNet is first or second in every row of the table, as ConvNet is in all; and 2 of 6 is the best third.
    rank = theirs.pivot(index="row", columns="column", values="value").rank(axis=1, ascending=False)
    assert (rank["ResNet"] <= 2).all()
    assert "**resnet18 is among the best 2 of 6 targets for 6 of 6 sources**" in sentence
    assert ("convnet is among" in sentence) == bool((rank["ConvNet"] <= 2).all())


def test_best_target_needs_a_difference_beyond_noise(results):
    sentence = report.best_target(results, SOURCES, ["convnet", "lenet", "mlp"]).data
    assert sentence.startswith("**convnet is the best of 3 targets for 3 of 3 sources**")
    assert sentence.endswith("beyond noise for 3.")
    noisy = results.copy()
    chosen = (noisy["network"] == "convnet") & (noisy["set"] == 0)
    noisy.loc[chosen, "accuracy"] += 30  # the mean rises, and so does the spread of the difference
    sentence = report.best_target(noisy, SOURCES, ["convnet", "lenet", "mlp"]).data
    assert "3 of 3 sources" in sentence and sentence.endswith("beyond noise for 0.")
    assert "cannot say" in report.best_target(results, SOURCES, ["convnet", "vgg11"]).data


# ---------------------------------------------------------------------------------------------- the runs behind it


def test_sources_with_options_are_stored_and_read_back(tmp_path):
    data = gm.load_data("digits")
    small = {"width": 4, "depth": 1, "outer_loops": 1, "batch_real": 2}
    targets = ["mlp", "convnet:pooling=max,norm=none"]
    options = {"budget": "smoke", "sets": 1, "networks": 1, "targets": targets, "results_dir": tmp_path}
    options |= {"progress": False, **small}
    runs, why = store.sweep(data, ["MD"], 1, network="convnet:norm=batch", **options)
    (run,) = runs
    assert not why and run.record["method"] == "MD@convnet:norm=batch"
    assert list(run.evaluations) == ["mlp", "convnet:pooling=max,norm=none"] and run.evaluation.network == "mlp"
    files = {f.name for f in run.folder.glob("accuracy-*")}
    assert files == {"accuracy-convnet_pooling=max,norm=none.json", "accuracy-mlp.json"}
    made = (run.folder / "set.safetensors").stat().st_mtime_ns
    again, _ = store.sweep(data, ["MD"], 1, network="convnet:norm=batch", deadline=deadline_in(0), **options)
    assert again[0].evaluations == run.evaluations and (run.folder / "set.safetensors").stat().st_mtime_ns == made
    stored = readback.load_results(tmp_path).sort_values("network", ascending=False, ignore_index=True)
    pd.testing.assert_frame_equal(stored, readback.as_table(again))


def test_a_name_with_one_option_survives_the_command_line():
    assert as_list("convnet:norm=batch, mlp") == ["convnet:norm=batch", "mlp"]
