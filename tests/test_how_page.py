"""What the pages "How to measure" and "Comparison" show, against values computed by hand."""

import json
import math
import re
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_data, tiny_recipe
from scipy import stats

import gmreport as report
from gmlib import how
from gmlib.lines import initial
from gmlib.runs import readback


def long_form(accuracies, dataset="digits", ipc=1):
    """{method: [accuracies of the networks of each set]} as the long form."""
    rows = [
        (dataset, ipc, method, "smoke", seed, "convnet", net, accuracy)
        for method, sets in accuracies.items()
        for seed, values in enumerate(sets)
        for net, accuracy in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=readback.COLUMNS)


def test_a_distance_has_one_row_though_cifar10_gives_it_two_names():
    """Footnote 5: at 50 images per class MD is d1 + 0.1 d2, so d1 + d2 has another name there."""
    names, labels = report.distance_names("CIFAR10", [1, 50], ["d1", "d1+d2", "d1 + 0.1*d2"])
    assert labels == {"M": "d1", "MD": "d1 + d2", "multi,d1+0.1*d2,fixed": "d1 + 0.1 d2"}
    assert names == {
        (1, "M"): "M",
        (1, "MD"): "MD",
        (1, "multi,d1+0.1*d2,fixed"): "multi,d1+0.1*d2,fixed",
        (50, "M"): "M",
        (50, "multi,d1+d2,fixed"): "MD",
        (50, "MD"): "multi,d1+0.1*d2,fixed",
    }
    assert list(names) == sorted(names, key=lambda at: at[0]), "sizes follow each other"
    results = pd.concat(
        [
            long_form({"M": [[51.0]], "MD": [[61.0]]}, "CIFAR10"),
            long_form({"M": [[100.0]], "multi,d1+d2,fixed": [[110.0]]}, "CIFAR10", 50),
        ]
    )
    results["method"] = [names[at] for at in zip(results["ipc"], results["method"], strict=True)]
    columns = [("CIFAR10", 1), ("CIFAR10", 50)]
    shown = report.accuracy_table(results, methods=list(labels), columns=columns, labels=labels, corner="distance")
    assert shown.rows == ["d1", "d1 + d2", "d1 + 0.1 d2"] and shown.columns == ["CIFAR10, IPC 1", "CIFAR10, IPC 50"]
    assert [shown.cells["d1 + d2", column][0][:5] for column in shown.columns] == ["61.0 ", "110.0"]
    assert [shown.cells["d1 + 0.1 d2", column] for column in shown.columns] == [["not run"]] * 2


# ---- tables ----------------------------------------------------------------------------------------------


def test_rows_have_the_labels_of_their_methods():
    results = long_form({"M": [[80.0], [82.0]], "multi,d2,fixed": [[70.0], [72.0]]})
    labels = {"M": "d1", "multi,d2,fixed": "d2"}
    paper = pd.DataFrame(
        [("digits", 1, "multi,d2,fixed", 23.6, 2.1)], columns=["dataset", "ipc", "method", "value", "std"]
    )
    found = report.accuracy_table(results, paper, methods=list(labels), labels=labels, corner="distance")
    assert found.rows == ["d1", "d2"] and found.corner == "distance"
    assert found.cells["d1", "digits, IPC 1"][0] == "81.0±1.4 (n=2, 2 sets)"
    assert found.cells["d2", "digits, IPC 1"][-1] == "paper: 23.6±2.1"
    assert report.accuracy_table(results, labels={"M": "d1"}).rows == ["d1", "multi,d2,fixed"]
    with pytest.raises(ValueError, match="same label"):
        report.accuracy_table(results, labels=dict.fromkeys(labels, "d"))


def test_the_table_marks_a_method_that_does_not_apply():
    why = {("digits", 1, "MDO"): "not applicable: T = 1", ("digits", 1, "MDA"): "no time"}
    found = report.accuracy_table(long_form({"M": [[80.0]]}), methods=["MDO", "MDA", "M"], why=why)
    assert found.cells["MDO", "digits, IPC 1"] == ["not applicable: T = 1"]
    assert found.cells["MDA", "digits, IPC 1"] == ["not run: no time"]


def test_text_table_shows_the_frame():
    frame = pd.DataFrame({"a": ["1\n(small)", "2"], 5: ["x", "y"]}, index=["p", "q"])
    found = report.text_table(frame, "What it is.", corner="row")
    assert (found.rows, found.columns, found.corner) == (["p", "q"], ["a", "5"], "row")
    assert found.cells == {("p", "a"): ["1", "(small)"], ("p", "5"): ["x"], ("q", "a"): ["2"], ("q", "5"): ["y"]}


def test_components_table_by_hand():
    results = pd.concat(
        [
            long_form({"random": [[60.0], [64.0]], "M": [[80.0], [82.0]]}),
            long_form({"random": [[70.0]], "M": [[69.0]], "MDA": [[75.5]]}, ipc=10),
        ]
    )
    found = report.components_table(report.components(results, {"digits": 90.0}))
    interval = stats.ttest_rel([80, 82], [60, 64]).confidence_interval()
    assert found.rows == ["M", "MDA"]
    assert found.cells["M", "IPC 1: IOR"] == ["+19.0", f"95% CI [{interval.low:+.1f}, {interval.high:+.1f}]"]
    assert found.cells["M", "IPC 1: HLR"] == ["9.0"] and found.cells["M", "IPC 1: relative"] == ["90.0 %"]
    assert found.cells["M", "IPC 10: IOR"] == ["-1.0"], "one set each: no interval"
    assert found.cells["MDA", "IPC 1: IOR"] == ["not run"]
    unknown = report.components_table(report.components(results[results["method"] != "random"]))
    assert unknown.cells["M", "IPC 1: IOR"] == unknown.cells["M", "IPC 1: HLR"] == ["not known"]
    two = pd.concat([results, results.assign(dataset="MNIST")])
    assert "MNIST, IPC 10: HLR" in report.components_table(report.components(two)).columns


def test_components_sentence_names_methods_beyond_noise():
    rows = [("M", 1, 2.0, 3.0), ("DC", 1, -1.0, 1.0), ("M", 10, -3.0, -1.0), ("MD", 10, math.nan, math.nan)]
    found = pd.DataFrame(rows, columns=["method", "ipc", "ior_low", "ior_high"])
    assert "beyond noise: M at 1. Worse: M at 10." in report.components_sentence(found).data
    assert "beyond noise: none. Worse: none." in report.components_sentence(found[1:2]).data


def test_random_alone_has_no_components():
    found = report.components(long_form({"random": [[60.0]]}))
    assert found.empty and {"method", "ior", "hlr"} <= set(found.columns)


def test_noise_is_a_sentence():
    apart = report.noise(long_form({"M": [[80.0, 82.0], [86.0, 88.0]], "DC": [[70.0, 71.0], [70.5, 70.5]]})).data
    low, high = (math.sqrt(18 / quantile - 1) for quantile in (5.02389, 0.000982069))  # of chi^2
    assert f"M at digits, 1 image per class: 4.12 points (95% interval {low:.2f} to {high:.2f})" in apart
    assert "For the others (1 cell of 2 sets) **no spread" in apart
    alike = report.noise(long_form({"M": [[80.0, 82.0], [80.5, 82.5]]})).data
    assert "**no spread between sets is shown**" in alike and "0.35 points" in alike
    assert "above 0**" not in alike
    assert "not known" in report.noise(long_form({"M": [[80.0, 82.0]]})).data


def test_neighbours_table_has_every_number():
    dc, dm = ("DC", "ICLR 2021", "MNIST"), ("DM", "WACV 2023", "CIFAR10")
    rows = [(*dc, 1, 91.7), (*dc, 10, 97.4), (*dm, 50, 63.0)]
    found = report.neighbours_table(pd.DataFrame(rows, columns=["method", "venue", "dataset", "ipc", "value"]))
    assert found.cells["DC (ICLR 2021)", "MNIST"] == ["91.7 / 97.4", "IPC 1 / 10"]
    assert found.cells["DM (WACV 2023)", "CIFAR10"] == ["63.0", "IPC 50"]
    assert found.cells["DM (WACV 2023)", "MNIST"] == ["none"]


# ---- sentences -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "spread", "outcome"),
    [(0.1, 0.1, "held"), (30.0, 0.1, "reversed"), (0.1, 9.0, "not decided")],
)
def test_alike_needs_an_interval_inside_the_margin(difference, spread, outcome):
    other = [[80.0, 84.0]] * 3
    one = [[v + difference + spread * (s - 1) for v in values] for s, values in enumerate(other)]
    results = long_form({"MDA": one, "MDO": other})
    (found,) = report.alike(results, "MDA", "MDO")
    assert found.outcome == outcome and found.margin == pytest.approx(2 * np.std([80, 84] * 3, ddof=1))
    assert f"alike within ±{found.margin:.2f}" in str(found) and f"{difference:+.2f} points" in str(found)


def test_alike_of_one_set_is_not_decided():
    (found,) = report.alike(long_form({"MDA": [[80.0, 84.0]], "MDO": [[80.0, 84.0]]}), "MDA", "MDO")
    assert found.outcome == "too few sets" and found.margin > 0
    with pytest.raises(ValueError, match="no cell"):
        report.alike(long_form({"MDA": [[80.0]]}), "MDA", "MDO")


def test_verdicts_are_counted():
    results = long_form({"A": [[80.0], [81.0], [80.5]], "B": [[60.0], [61.0], [60.4]], "C": [[80.0], [70.0], [90.0]]})
    found = report.Verdicts(v for pair in ("AB", "BA", "CA", "AC") for v in report.verdicts(results, *pair))
    assert found.counted().data == "**Of 4 comparisons: held in 1, reversed in 1, not decided in 2.**"
    assert report.Verdicts(found[:1]).counted().data == "**Of 1 comparison: held in 1.**"
    assert "Nothing can be compared" in report.Verdicts().counted().data


# ---- how far matching came -------------------------------------------------------------------------------


def run_of(data, factor, losses, **recipe):
    """A run that ends with `factor` times its first images."""
    recipe = tiny_recipe(**recipe)
    S = SimpleNamespace(images=factor * initial(data, recipe))
    history = [{"loss": loss} for loss in losses]
    return SimpleNamespace(S=S, record={"method": recipe.method, "recipe": recipe.as_dict(), "history": history})


def test_matching_by_hand():
    data = make_data()
    losses = [100.0, 80.0, *[50.0] * 16, 30.0, 15.0]  # twenty: a tenth is two
    coreset = SimpleNamespace(S=None, record={"method": "random", "recipe": {}, "history": []})
    found = report.matching([run_of(data, 3.0, losses, seed=4), coreset, run_of(data, 1.0, [7.0])], data)
    assert found["set"].tolist() == [4, 0] and found["losses"][0] == losses
    assert found.loc[0, ["first", "last", "left", "moved"]].tolist() == pytest.approx([90.0, 22.5, 25.0, 2.0])
    assert found.loc[1, ["first", "last", "left", "moved"]].tolist() == pytest.approx([7.0, 7.0, 100.0, 0.0])
    assert report.matching([coreset], data).empty


def test_the_figure_of_losses_uses_labels():
    data = make_data()
    runs = [
        run_of(data, 2.0, [10.0, 4.0]),
        run_of(data, 4.0, [10.0, 6.0], seed=1),
        run_of(data, 2.0, [8.0, 2.0], how="d2"),
    ]
    found, labels = report.matching(runs, data), {"multi,d2,fixed": "d2", "M": "d1"}
    axes = report.loss_figure(found, labels).axes
    assert [ax.get_title() for ax in axes] == ["d2", "d1"]
    assert [line.get_ydata().tolist() for line in axes[1].lines] == [[10.0, 4.0], [10.0, 6.0]]
    assert [ax.get_title() for ax in report.loss_figure(found).axes] == ["M", "d2"]


# ---- figures ---------------------------------------------------------------------------------------------


def test_accuracy_figure_has_the_order_of_the_labels():
    results = long_form({"M": [[80.0]], "MD": [[81.0]], "multi,d2,fixed": [[70.0]]})
    ax = report.accuracy_figure(results, labels={"multi,d2,fixed": "d2", "M": "d1"}).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["d2", "d1", "MD"]
    shown = {line.get_ydata()[0]: line.get_color() for line in ax.lines if line.get_alpha()}
    assert shown == {70.0: report.style.OTHER_COLOUR, 80.0: report.COLOURS["M"], 81.0: report.COLOURS["MD"]}


def test_plane_distances_by_hand():
    gT, gS = (3.0, 4.0), [(3.0, 4.0), (0.3, 0.4), (4.0, -3.0), (-3.0, -4.0)]
    wanted = {
        "d1": [0, 0, 1, 2], "d2": [0, 4.5, math.sqrt(50), 10], "d3": [0, 20.25, 50, 100], "d4": [0, 10.125, 25, 50],
        "d1 + 0.1*d2": [0, 0.45, 1 + 0.1 * math.sqrt(50), 3],
    }  # fmt: skip
    for expression, values in wanted.items():
        np.testing.assert_allclose(report.plane_distances(expression, gS, gT), values, atol=1e-12)
    with pytest.raises(ValueError, match="unknown distance"):
        report.plane_distances("d9", gS, gT)


def test_distance_figure_marks_each_gradient_with_its_distance():
    fig = report.distance_figure(["d1", "d2"], (1, 0), {"A": (0.25, 0), "B": (0, 1)})
    assert [ax.get_title() for ax in fig.axes] == ["d1", "d2"]
    legends = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in fig.axes]
    assert legends == [["gT", "A: 0.00", "B: 1.00"], ["gT", "A: 0.75", "B: 1.41"]]
    ends = [line.get_xydata()[-1].tolist() for line in fig.axes[0].lines]
    assert ends == [[1, 0], [0.25, 0], [0, 1]]


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_sets_figure_puts_each_set_in_a_row(kind):
    shades = {"random": [0.1, 0.2, 0.3, 0.4], "M": [0.6, 0.7]}  # two classes: two images of each, one of each
    sets = {
        name: kind(np.broadcast_to(np.reshape(v, (-1, 1, 1, 1)), (len(v), 1, 3, 3)).copy())
        for name, v in shades.items()
    }
    pictures = report.sets_figure(sets, 2, titles=["zero", "one"])
    assert list(pictures.strips) == ["random", "M"]
    for strip, shades in zip(pictures.strips.values(), ([0.1, 0.3], [0.6, 0.7]), strict=True):
        assert strip.shape == (3, 7)
        np.testing.assert_allclose(strip[1, [1, 5]], shades)
    html = pictures.to_html("x")
    assert html.count("<span>zero</span>") == 1 and 'alt="random: x"' in html and 'alt="M: x"' in html


# ---- what chapters share -----------------------------------------------------------------------------------


def test_equations_stand_beside_their_code():
    page = report.equation_and_code(
        ("a < b", [how.d1], 8), ("c", [how.improved, how.d2]), colours={"d1": "gm-angle"}
    ).data
    first, second = page.split('<div class="gm-pair"')[1:]
    assert r"\[a &lt; b\tag{8}\]" in first and 'id="eq-8"' in first and "def" in first
    assert r"\[c\]" in second and "id=" not in second and second.count("<pre>") == 2
    assert '<span class="nf gm-angle">d1</span>' in first and '<span class="n gm-angle">d1</span>' in second
    assert "Euclidean distance of each row" not in page, "docstrings are left out"


def test_the_answer_box_has_the_verdict_and_what_decides():
    results = pd.concat([long_form({"M": [[80.0], [81.0]], "MD": [[90.0], [91.2]]}, "MNIST").assign(budget="paper")])
    page = report.answer_box(results, ["md-beats-m", "tiny-imagenet"]).data
    first, second = page.split("<p>")[1:]
    assert "held so far" in first and "MD beats M in most cells." in first
    assert "MNIST, IPC 1: MD minus M +10.10" in first
    assert "not run" in second and "<small>" not in second
    with pytest.raises(ValueError, match="unknown"):
        report.answer_box(results, ["no-claim"])
    first, second = report.answer_box(results, ["md-beats-m"], report.answer_to("how", results)).data.split("<p>")[1:]
    assert "How: does it help" in first and "10.1 points higher" in first and "MD beats M in most" in second


def test_the_plane_knows_the_weights_of_its_distances():
    plane = report.Plane({"a <b>": (0.5, 0.0), "c": (0, 1)}, ["d1 + 100*d4", "d2"], marked=["c"], caption="<Drag>")
    assert plane.settings()["distances"] == {"d1 + 100 d4": {"d1": 1, "d4": 100}, "d2": {"d2": 1}}
    page = plane._repr_html_()
    data = json.loads(re.search(r'<script type="application/json">(.*)</script>', page)[1])
    assert data == plane.settings() and "&lt;Drag&gt;" in page and "a <b>" not in page
    assert "d1: c is at 1.00" in page and "is at 0." not in page
