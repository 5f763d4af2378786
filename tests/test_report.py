"""Numbers of the report against hand computation and scipy, and how tables, figures and sliders show them."""

import base64
import io
import math
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

import gmreport as report
from gmlib.analysis.statistics import RankCorrelation, between_sets, pooled_std_of_differences
from gmlib.runs import readback

PNG = b"\x89PNG\r\n\x1a\n"


def long_form(accuracies, dataset="digits", ipc=1, budget="paper", network="convnet"):
    """{method: {set seed: [accuracy of each network]}} as the long form."""
    rows = [
        (dataset, ipc, method, budget, seed, network, net, accuracy)
        for method, sets in accuracies.items()
        for seed, values in sets.items()
        for net, accuracy in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=readback.COLUMNS)


@pytest.fixture
def noisy():
    """Three methods, four sets of five networks, two numbers of images per class."""
    rng = np.random.default_rng(0)
    parts = []
    for ipc in (1, 10):
        sets = {
            method: {seed: list(level + rng.normal() + rng.normal(size=5)) for seed in range(4)}
            for method, level in (("M", 80.0), ("DC", 75.0), ("random", 60.0))
        }
        parts.append(long_form(sets, ipc=ipc))
    return pd.concat(parts, ignore_index=True)


def test_no_public_name_hides_a_module():
    modules = {file.stem for file in Path(report.__file__).parent.glob("*.py")}
    assert not modules & set(report.__all__), "`import gmreport.NAME as m` would give the function"
    assert not modules & sys.stdlib_module_names, "a script started in this folder would import ours"


# ---------------------------------------------------------------------------------------------- summarise


def test_summary_by_hand():
    row = report.summarise(long_form({"M": {0: [80.0, 82.0], 1: [86.0, 88.0]}})).iloc[0]
    assert (row["mean"], row["n"], row["n_sets"], row["note"]) == (84.0, 4, 2, "")
    assert row["std"] == pytest.approx(math.sqrt((16 + 4 + 4 + 16) / 3))
    assert row["std_within_sets"] == pytest.approx(math.sqrt((1 + 1 + 1 + 1) / 2))
    assert row["std_set_means"] == pytest.approx(math.sqrt(18))  # 81 and 87
    assert row["std_between_sets"] == pytest.approx(math.sqrt(18 - 2 / 2))  # minus the part of two networks
    assert row["between_low"] == pytest.approx(math.sqrt(18 / 5.02388619 - 1))  # chi^2(0.975; 1) from a printed table
    assert row["between_high"] == pytest.approx(math.sqrt(18 / 0.000982069 - 1), rel=1e-5)  # chi^2(0.025; 1)
    assert row["ci95"] == pytest.approx(12.706204736 * 3)  # t(0.975; 1) * sqrt(18) / sqrt(2)
    assert (row["low"], row["high"]) == (pytest.approx(84 - row["ci95"]), 100), "no accuracy is above 100 %"
    near_zero = report.summarise(long_form({"M": {0: [2.0], 1: [4.0]}})).iloc[0]
    assert (near_zero["low"], near_zero["high"]) == (0, pytest.approx(3 + 12.706204736)), "and none below 0"


def test_the_intervals_are_those_of_scipy_on_set_means(noisy):
    """M and DC share a standard deviation. Random images have their own."""
    set_means = noisy.groupby(["ipc", "method", "set"])["accuracy"].mean()
    for _, row in report.summarise(noisy).iterrows():
        means = set_means[row["ipc"], row["method"]]
        expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
        if row["method"] == "random":
            assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), rel=1e-12)
            assert row["freedom"] == 3 and math.isnan(row["low_alone"])
        else:
            assert (row["low_alone"], row["high_alone"]) == pytest.approx((expected.low, expected.high), rel=1e-12)
            both = [set_means[row["ipc"], method] for method in ("M", "DC")]
            difference = stats.ttest_ind(*both, equal_var=True).confidence_interval(0.95)
            # The difference of two means of four sets has twice the variance of one.
            assert 2 * row["ci95"] == pytest.approx((difference.high - difference.low) / math.sqrt(2), rel=1e-12)
            assert (row["low"] + row["high"]) / 2 == pytest.approx(means.mean()) and row["freedom"] == 6


def test_a_method_with_one_set_is_not_pooled():
    """M: 80 and 82; DC: 70 and 73, 73, 73; one set of MD. Variances 2 and 4.5, each with one degree of freedom."""
    sets = {"M": {0: [80.0], 1: [82.0]}, "DC": {0: [70.0], 1: [73.0] * 3}, "MD": {0: [81.0]}}
    summary = report.summarise(long_form(sets)).set_index("method")
    half = 4.302652730 * math.sqrt((2 + 4.5) / 2) / math.sqrt(2)
    assert summary.loc[["M", "DC"], "ci95"].tolist() == [pytest.approx(half)] * 2
    assert math.isnan(summary.loc["MD", "ci95"]) and summary.loc["MD", "freedom"] == 0
    assert summary["n_least"].to_dict() == {"M": 1, "DC": 1, "MD": 1}
    (pool,) = report.spreads(long_form(sets)).to_dict("records")
    assert (pool["methods"], pool["freedom"], pool["pooled"]) == (2, 2, True)


def test_a_set_counts_once_however_many_networks_it_has():
    row = report.summarise(long_form({"M": {0: [50.0, 50.0, 50.0], 1: [52.0]}})).iloc[0]
    assert row["mean"] == 51.0 and (row["low"] + row["high"]) / 2 == pytest.approx(51.0)


def test_one_set_has_no_interval():
    row = report.summarise(long_form({"M": {0: [80.0, 82.0]}})).iloc[0]
    assert row[["ci95", "std_set_means", "std_between_sets", "between_low", "between_high"]].isna().all()
    assert row["note"] == "one set: no interval over sets"
    assert row["std_within_sets"] == row["std"] == pytest.approx(math.sqrt(2))


def test_one_network_has_no_spread():
    row = report.summarise(long_form({"M": {0: [80.0]}})).iloc[0]
    assert row["mean"] == 80.0 and math.isnan(row["std"]) and math.isnan(row["std_within_sets"])
    row = report.summarise(long_form({"M": {0: [80.0], 1: [82.0]}})).iloc[0]
    assert row["std_set_means"] == pytest.approx(math.sqrt(2))
    assert math.isnan(row["std_between_sets"]), "sets and networks cannot be separated"


def test_the_spread_between_sets_does_not_include_that_of_networks():
    """Sets have a standard deviation of 2, networks of 3; set means of four networks have sqrt(4 + 9 / 4) = 2.5."""
    rng, estimates, inside = np.random.default_rng(0), [], 0
    for _ in range(300):
        accuracies = 70 + 2 * rng.normal(size=(8, 1)) + 3 * rng.normal(size=(8, 4))
        within = math.sqrt(accuracies.var(1, ddof=1).mean())
        std, low, high = between_sets(accuracies.mean(1), np.full(8, 4), within)
        estimates.append(std)
        inside += low <= 2 <= high
    assert math.sqrt(np.mean(np.square(estimates))) == pytest.approx(2, abs=0.15)
    assert 0.92 <= inside / 300 <= 0.99


def test_the_spread_between_sets_in_special_cases():
    alike = report.summarise(long_form({"M": {0: [80.0, 84.0], 1: [80.0, 84.0]}})).iloc[0]
    assert alike["std_between_sets"] == alike["between_low"] == 0, "the networks explain all of it"
    unequal = report.summarise(long_form({"M": {0: [80.0, 82.0], 1: [86.0, 88.0, 86.0, 88.0]}})).iloc[0]
    within = (2 + 4) / (1 + 3)  # pooled variance
    assert unequal["std_between_sets"] == pytest.approx(math.sqrt(18 - within * (1 / 2 + 1 / 4) / 2))


def test_each_cell_has_its_own_row(noisy):
    other = noisy.assign(budget="smoke"), noisy.assign(network="mlp"), noisy.assign(dataset="MNIST")
    assert len(report.summarise(pd.concat([noisy, *other]))) == 4 * 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.drop(columns=["set", "net"]), "lack set, net"),
        (lambda r: r.iloc[:0], "no rows"),
        (lambda r: r.assign(accuracy=math.nan), "finite"),
        (lambda r: pd.concat([r, r.iloc[[3]]]), "twice"),
    ],
)
def test_bad_results_are_refused(noisy, change, words):
    with pytest.raises(ValueError, match=words):
        report.summarise(change(noisy))


# ---------------------------------------------------------------------------------------------- verdict


def test_common_seeds_give_the_paired_interval_of_scipy(noisy):
    v = report.verdict(noisy, "M", "DC", ipc=10)
    ten = noisy[noisy["ipc"] == 10]
    m, dc = (ten[ten["method"] == x].groupby("set")["accuracy"].mean() for x in ("M", "DC"))
    expected = stats.ttest_rel(m, dc).confidence_interval(0.95)
    assert (v.low, v.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert v.difference == pytest.approx(m.mean() - dc.mean()) and v.n == (4, 4) and "paired" in v.test


def test_the_paired_interval_is_pooled_over_the_condensed_methods(noisy):
    """Random images are no condensed set, one set shows no spread, and sets from an MLP met other networks."""
    md = noisy[noisy["method"] == "DC"].assign(method="MD", accuracy=lambda r: r["accuracy"] + r["set"] ** 2 / 5)
    inter = noisy[(noisy["method"] == "M") & (noisy["set"] == 1)].assign(method="Inter")
    mlp = noisy[noisy["method"] == "M"].assign(method="MD@mlp", set=lambda r: 3 - r["set"])
    v = report.verdict(pd.concat([noisy, md, inter, mlp]), "M", "DC", ipc=1)
    means = noisy[noisy["ipc"] == 1].groupby(["set", "method"])["accuracy"].mean().unstack()
    means["MD"] = means["DC"] + np.arange(4) ** 2 / 5
    pairs = [means[a] - means[b] for a, b in (("M", "DC"), ("M", "MD"), ("DC", "MD"))]
    half = stats.t.ppf(0.975, 6) * math.sqrt(np.mean([d.var(ddof=1) for d in pairs]) / 4)
    assert (v.high - v.low) / 2 == pytest.approx(half, rel=1e-12) and v.difference == pytest.approx(pairs[0].mean())
    assert v.test == "paired t over the 4 set seeds both have, variance pooled over 3 methods"
    wild = md.assign(accuracy=lambda r: r["accuracy"] + 1000 * r["set"])
    alone = report.verdict(pd.concat([noisy, wild]), "M", "DC", ipc=1)
    assert alone == report.verdict(noisy, "M", "DC", ipc=1), "not pooled: the spreads are not equal"
    assert "pooled" not in report.verdict(pd.concat([noisy, md]), "MD", "random", ipc=1).test
    across = report.verdict(pd.concat([noisy, md, mlp]), "MD", "MD@mlp", ipc=1)
    assert across.test.endswith("pooled over 4 methods"), "for two sources all methods count"
    one = report.verdict(pd.concat([noisy, md, inter]), "M", "Inter", ipc=1)
    assert one.outcome == "too few sets" and math.isnan(one.low)


def test_a_third_seed_of_two_methods_does_not_take_the_others_from_the_pool(noisy):
    """MD and Inter have two of the seeds of M and DC, and the pool has all the sets."""
    some = noisy[noisy["set"] < 2]
    others = [some[some["method"] == "DC"].assign(method=name) for name in ("MD", "Inter")]
    rng = np.random.default_rng(3)
    for table in others:
        table["accuracy"] += rng.normal(size=len(table))
    results = pd.concat([noisy, *others])
    v = report.verdict(results, "M", "DC", ipc=1)
    one = results[(results["ipc"] == 1) & (results["method"] != "random")]
    table = one.groupby(["set", "method"])["accuracy"].mean().unstack()
    pooled = pooled_std_of_differences(table.to_numpy())
    assert v.n == (4, 4) and v.test.endswith("pooled over 4 methods") and pooled.freedom == 5
    assert (v.high - v.low) / 2 == pytest.approx(pooled.half_width(4), rel=1e-12)


def test_sets_are_paired_by_seed_not_by_order():
    ordered = long_form({"M": {0: [80.0], 1: [90.0]}, "DC": {0: [79.0], 1: [88.0]}})
    assert report.verdict(ordered.iloc[::-1], "M", "DC") == report.verdict(ordered, "M", "DC")
    shuffled = long_form({"M": {0: [80.0], 1: [90.0]}, "DC": {1: [88.0], 0: [79.0]}})
    assert report.verdict(shuffled, "M", "DC") == report.verdict(ordered, "M", "DC")


def test_different_seeds_give_the_welch_interval_of_scipy():
    rng = np.random.default_rng(1)
    a = {seed: list(80 + 2 * rng.normal() + rng.normal(size=3)) for seed in range(5)}
    b = {seed: list(78 + rng.normal() + rng.normal(size=3)) for seed in range(5, 8)}
    v = report.verdict(long_form({"M": a, "DC": b}), "M", "DC")
    means = [[np.mean(x) for x in sets.values()] for sets in (a, b)]
    expected = stats.ttest_ind(*means, equal_var=False).confidence_interval(0.95)
    assert (v.low, v.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert v.n == (5, 3) and "Welch" in v.test


def test_only_common_seeds_are_compared():
    M, DC = {0: [80.0], 1: [83.0], 2: [99.0]}, {1: [81.0], 0: [79.0], 7: [10.0]}
    v = report.verdict(long_form({"M": M, "DC": DC}), "M", "DC")
    assert v.difference == 1.5 and v.n == (2, 2) and "paired t over the 2 set seeds" in v.test
    one = report.verdict(long_form({"M": M, "DC": {2: [98.0]}}), "M", "DC")
    assert (one.difference, one.n, one.outcome) == (1.0, (1, 1), "too few sets")
    many = report.verdict(long_form({"M": M, "DC": {2: [98.0], 8: [70.0], 9: [80.0]}}), "M", "DC")
    assert many.n == (3, 3) and "Welch" in many.test, "one pair would not use the other sets"


def test_outcomes(noisy):
    assert report.verdict(noisy, "M", "random", ipc=1).outcome == "held"
    assert report.verdict(noisy, "random", "M", ipc=1).outcome == "reversed"
    tie = long_form({"M": {0: [80.0], 1: [82.0]}, "DC": {0: [82.0], 1: [80.0]}})
    v = report.verdict(tie, "M", "DC")
    assert (v.difference, v.outcome) == (0.0, "not decided")
    same = long_form({"M": {0: [80.0], 1: [80.0]}, "DC": {0: [80.0], 1: [80.0]}})
    assert report.verdict(same, "M", "DC").outcome == "not decided"
    constant = long_form({"M": {0: [80.0], 1: [80.0]}, "DC": {2: [79.0], 3: [79.0]}})
    v = report.verdict(constant, "M", "DC")  # no spread at all: an interval of width 0, not a division by 0
    assert (v.low, v.high, v.outcome) == (1.0, 1.0, "held")


def test_one_set_is_too_few():
    for seeds in ((0, 0), (0, 1)):
        one = long_form({"M": {seeds[0]: [80.0, 81.0]}, "DC": {seeds[1]: [70.0, 71.0]}})
        v = report.verdict(one, "M", "DC")
        assert v.outcome == "too few sets" and math.isnan(v.low) and v.difference == 10.0
        assert str(v).endswith("too few sets.") and "1 and 1" in str(v)


def test_the_sentence_has_the_numbers(noisy):
    v = report.verdict(noisy, "M", "DC", ipc=1)
    assert str(v) == (
        f"digits, 1 image per class: M minus DC is {v.difference:+.2f} points "
        f"(95% interval {v.low:+.2f} to {v.high:+.2f}, paired t over the 4 set seeds both have): held."
    )
    assert v._repr_markdown_().endswith("**held**.")
    assert "smoke budget" in str(report.verdict(noisy.assign(budget="smoke"), "M", "DC", ipc=1))


def test_verdicts_cover_every_cell(noisy):
    found = report.verdicts(noisy, "M", "DC")
    assert [v.ipc for v in found] == [1, 10] and found[0] == report.verdict(noisy, "M", "DC", ipc=1)
    assert str(found) == "\n".join(map(str, found))
    with pytest.raises(ValueError, match="random, DC, M"):
        report.verdicts(noisy, "M", "MDA")


def test_a_verdict_needs_one_cell(noisy):
    with pytest.raises(ValueError, match=r"\[1, 10\]"):
        report.verdict(noisy, "M", "DC")
    with pytest.raises(ValueError, match="M, DC, random"):
        report.verdict(noisy, "MDA", "DC", ipc=1)


# ---------------------------------------------------------------------------------------------- forest plot


def some_verdict(difference, low, high, outcome, **changes):
    values = {"dataset": "d", "ipc": 1, "budget": "paper", "n": (2, 2), "test": "t"} | changes
    return report.Verdict("M", "DC", difference=difference, low=low, high=high, outcome=outcome, **values)


def lines_of(html):
    """The lines of a forest plot: the numbers of its drawing, and its text."""
    rows = re.findall("<tr><td>(.*?)</tr>", html.partition("<tfoot")[0])
    return [(re.search("<svg.*?</svg>", row)[0], re.sub("<.*?>", "", row)) for row in rows]


def test_a_forest_plot_draws_intervals_against_zero():
    """The scale ends at 2, and the drawing is 300 wide: a point is 75."""
    found = report.Verdicts([some_verdict(1.0, 0.5, 1.5, "held"), some_verdict(-0.4, -1.9, 0.2, "not decided")])
    html = found._repr_html_()
    (first, words), (second, _) = lines_of(html)
    assert 'M187.5 11H262.5"' in first and 'cx="225.0"' in first and 'M150 0v22"' in first and "gm-yes" in first
    assert 'M7.5 11H165.0"' in second and 'cx="120.0"' in second and "gm-open" in second
    assert words == "✓ heldM − DC+1.00 +0.50 to +1.50"
    assert "−2" in html and "d, 1 image per class: 2 sets of each" in html
    assert "✓ the interval lies right of 0; ? it contains 0." in html and "arrow" not in html


def test_a_forest_plot_is_not_pressed_together_by_one_wide_line():
    few = [some_verdict(0.4, 0.1, 0.7, "held"), some_verdict(0.5, 0.2, 0.8, "held")]
    html = report.Verdicts([*few, some_verdict(22.0, -1.0, 45.0, "not decided", ipc=10)])._repr_html_()
    *_, (wide, words) = lines_of(html)
    assert "<circle" not in wide and "An arrow goes on" in html and "+22.00" in words
    assert html.count('scope="rowgroup"') == 2, "a head for each cell"


def test_a_forest_plot_names_what_it_lacks(noisy):
    found = report.forest(noisy, [("M", "DC"), ("M", "MDA"), ("M", "random")], caption="Why <b>.")
    assert [(v.worse, v.ipc) for v in found] == [("DC", 1), ("random", 1), ("DC", 10), ("random", 10)]
    assert found[0] == report.verdict(noisy, "M", "DC", ipc=1)
    html = found._repr_html_()
    assert "not run together: M and MDA." in html and "Why &lt;b&gt;. Dot: " in html
    assert "M and MDA" in str(found)
    assert "Nothing could be compared" in report.forest(noisy.iloc[:0], [("M", "DC")])._repr_html_()


def test_a_forest_plot_shows_the_band_of_likeness():
    close = some_verdict(0.5, -0.5, 1.5, "held", margin=2.0)
    ((drawn, words),) = lines_of(report.Verdicts([close])._repr_html_())
    assert '<rect class="gm-band" x="30.0" width="240.0"' in drawn and "M like DC" in words, "the scale ends at 2.5"
    one = some_verdict(0.5, math.nan, math.nan, "too few sets", n=(1, 1))
    ((drawn, words),) = lines_of(report.Verdicts([one])._repr_html_())
    assert "H" not in drawn.partition("<path")[2].replace("H2", "") and "no interval" in words


# ---------------------------------------------------------------------------------------------- table


def test_the_table_has_every_number(noisy):
    table = report.accuracy_table(noisy)
    html, text = table._repr_html_(), str(table)
    for _, s in report.summarise(noisy).iterrows():
        assert f"{s['mean']:.1f}±{s['std']:.1f} (n=20, 4 sets)" in text
        assert f"95% CI [{s['low']:.1f}, {s['high']:.1f}]" in text
        assert f"{s['mean']:.1f}±{s['std']:.1f}</span><small>{s['low']:.1f} to {s['high']:.1f}</small></td>" in html
    rows = re.findall(r'<th scope="row">(.*?)</th>', html)
    assert rows == ["random images", "DC", "M"]  # the paper's order, whatever the order of the rows
    assert "digits, 1 per class<small>n=20, 4 sets<" in html and "digits, 10 per class<" in html
    assert "budget" not in html and "gm-legend" not in html


def test_the_table_has_the_papers_figures(noisy):
    paper = pd.DataFrame(
        [("digits", 1, "M", 0.5, 0.25), ("digits", 1, "DC", 99.5, 0.75), ("digits", 1, "MDA", 88.0, 0.5)],
        columns=["dataset", "ipc", "method", "value", "std"],
    )
    mean = noisy[(noisy["method"] == "random") & (noisy["ipc"] == 1)].groupby("set")["accuracy"].mean().mean()
    paper.loc[3] = ("digits", 1, "random", mean, math.nan)
    shown = report.accuracy_table(
        noisy, paper, methods=["random", "DC", "M", "MDA"], why={("digits", 10, "MDA"): "no <time>"}
    )
    one, ten = "digits, IPC 1", "digits, IPC 10"
    assert shown.cells["M", one][-1] == "paper: 0.5±0.2 (too few networks)"
    assert shown.cells["DC", one][-1] == "paper: 99.5±0.8 (too few networks)"
    assert shown.cells["random", one][-1] == f"paper: {mean:.1f} (too few networks)"
    assert shown.cells["MDA", one] == ["not run", "paper: 88.0±0.5"]
    assert shown.cells["MDA", ten] == ["not run: no <time>", "not in the paper"]
    assert "no &lt;time&gt;" in shown._repr_html_() and "not run" in str(shown)
    with_ten = pd.concat([noisy.assign(net=noisy["net"] + 5), noisy])
    outcomes = {row: report.accuracy_table(with_ten, paper).shown[row, one].outcome for row in ("M", "DC", "random")}
    assert outcomes == {"M": "differs", "DC": "differs", "random": "not decided"}


def test_a_number_of_the_paper_is_judged_by_one_rule():
    """80 and 81 with 10 networks each: the interval is 80.5 ± 6.35."""
    s = report.summarise(long_form({"M": {0: [80.0] * 10, 1: [81.0] * 10}})).iloc[0].to_dict()
    assert report.outcome_against(80.5, 3.5, s) == "reproduced"
    assert report.outcome_against(80.5, 3.0, s) == "not decided"
    assert report.outcome_against(99.0, 3.0, s) == "differs"
    assert report.outcome_against(80.5, 3.5, s | {"n_least": 9}) == "too few networks"
    assert report.outcome_against(80.5, 3.5, s | {"low": math.nan}) == "too few sets"
    assert report.outcome_against(80.5, 3.5, s | {"budget": "lite"}) == "another budget"


def test_signs_stand_for_outcomes_and_the_legend_says_why():
    cells = {
        ("a", "value"): ["1.0"], ("a", "outcome"): ["reproduced"],
        ("b", "value"): ["not run: no <data>", "paper: 2.0"], ("b", "outcome"): ["not run: no time"],
        ("c", "value"): ["not applicable: T = 1"], ("c", "outcome"): ["-"],
    }  # fmt: skip
    html = report.Table(list("abc"), ["value", "outcome"], cells, "C.", "row")._repr_html_()
    assert re.findall(r'<th scope="col">(.*?)</th>', html) == ["row", "outcome", "value"], "verdicts come first"
    body, _, legend = html.partition("</table>")
    assert "✓</b> reproduced" in body and "no time" not in body and "no &lt;data&gt;" not in body
    assert "<small>paper: 2.0</small>" in body
    assert [re.sub("<.*?>", "", line) for line in re.findall("<li>(.*?)</li>", legend)] == [
        "– not run: no &lt;data&gt;; no time", "∅ not applicable: T = 1"
    ]  # fmt: skip


def test_data_sets_are_tabs(noisy):
    two = pd.concat([noisy, noisy.assign(dataset="<b>")])
    table = report.accuracy_table(two)
    html = table._repr_html_()
    assert html.count('type="radio"') == 2 and html.count(" checked>") == 1 and html.count("<table>") == 2
    assert "</label><div" in html and "&lt;b&gt;</label>" in html and "<b></label>" not in html
    first, second = html.split('<div class="gm-tab">')[1:]
    assert first.count("per class<") == second.count("per class<") == 2
    assert 'type="radio"' not in report.accuracy_table(noisy)._repr_html_()


def test_the_table_names_another_budget(noisy):
    paper = pd.DataFrame([("digits", 1, "M", 0.5, 0.2)], columns=["dataset", "ipc", "method", "value", "std"])
    smoke = noisy.assign(budget="smoke")
    shown = report.accuracy_table(smoke, paper)
    assert "budget: smoke, not the paper's protocol" in shown.caption
    assert shown.cells["M", "digits, IPC 1"][-1] == "paper: 0.5±0.2"  # no comparison across budgets
    mixed = report.accuracy_table(pd.concat([noisy, smoke]), paper)
    assert "budgets: paper, smoke" in mixed.caption
    assert {"budget: paper", "budget: smoke"} <= set(mixed.cells["M", "digits, IPC 1"])
    assert any(line.startswith("smoke budget: ") for line in mixed.shown["M", "digits, IPC 1"].small)


def test_the_table_of_one_set_and_one_network():
    shown = report.accuracy_table(long_form({"M": {0: [80.0]}}))
    assert shown.cells["M", "digits, IPC 1"] == ["80.0 (n=1, 1 set)", "one set: no interval over sets"]


def test_the_table_needs_one_network(noisy):
    both = pd.concat([noisy, noisy.assign(network="mlp")])
    with pytest.raises(ValueError, match="network"):
        report.accuracy_table(both)
    assert report.accuracy_table(both, network="mlp").cells == report.accuracy_table(noisy).cells


# ---------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_puts_each_image_in_its_place(channels):
    classes, ipc, side = 4, 3, 6
    shades = np.linspace(0, 1, classes * ipc * channels).reshape(classes * ipc, channels, 1, 1)
    pictures = report.image_grid(np.broadcast_to(shades, (classes * ipc, channels, side, side)), classes)
    sheet = pictures.strips[""].reshape(ipc * 7 - 1, classes * 7 - 1, channels)
    for c in range(classes):
        for j in range(ipc):
            tile = sheet[j * 7 : j * 7 + side, c * 7 : c * 7 + side]
            np.testing.assert_allclose(tile, np.broadcast_to(shades[c * ipc + j, :, 0, 0], tile.shape))
    assert np.isnan(sheet[6]).all() and np.isnan(sheet[:, 6]).all(), "gaps are transparent"


def test_pictures_have_one_pixel_for_each_pixel():
    torch = pytest.importorskip("torch")
    values = [[[-1.0, 0.25], [0.5, 2.0]], [[0.0, 0.0], [1.0, 1.0]]]
    images = torch.tensor(values, requires_grad=True).reshape(2, 1, 2, 2)
    html = report.image_grid(images, 2, titles=["<zero>", "one"]).to_html('"two" images')
    assert "<span>&lt;zero&gt;</span><span>one</span>" in html and 'alt="&quot;two&quot; images"' in html
    png = base64.b64decode(re.search('base64,([^"]*)"', html)[1])
    grey, alpha = np.moveaxis(np.asarray(Image.open(io.BytesIO(png))), 2, 0)
    assert grey.tolist() == [[0, 64, 0, 0, 0], [128, 255, 0, 255, 255]], "clipped, not stretched to its own range"
    assert alpha.tolist() == [[255, 255, 0, 255, 255]] * 2


@pytest.mark.parametrize(
    ("shape", "classes", "titles", "words"),
    [
        ((5, 1, 8, 8), 2, None, "2 classes"),
        ((4, 2, 8, 8), 2, None, "shape"),
        ((4, 8, 8), 2, None, "shape"),
        ((4, 1, 8, 8), 2, ["a"], "1 titles"),
    ],
)
def test_image_grid_checks_its_input(shape, classes, titles, words):
    with pytest.raises(ValueError, match=words):
        report.image_grid(np.zeros(shape), classes, titles=titles)


def test_accuracy_figure_draws_every_network_in_the_methods_colour(noisy):
    panels = report.accuracy_figure(noisy)
    assert [ax.get_title() for ax in panels.axes] == ["digits, 1 image per class", "digits, 10 images per class"]
    for ax, ipc in zip(panels.axes, (1, 10), strict=True):
        assert [t.get_text() for t in ax.get_xticklabels()] == ["random images", "DC", "M"]
        for method in ("random", "DC", "M"):
            drawn = [line.get_ydata() for line in ax.lines if line.get_color() == report.COLOURS[method]]
            wanted = noisy[(noisy["method"] == method) & (noisy["ipc"] == ipc)]["accuracy"]
            np.testing.assert_allclose(np.sort(np.concatenate(drawn)), np.sort(wanted))
            low, high = ax.get_ylim()
            assert low < wanted.min() and wanted.max() < high
        whiskers = [drawn.lines[2][0].get_segments()[0][:, 1] for drawn in ax.containers]
        of_panel = report.summarise(noisy).query("ipc == @ipc").set_index("method").loc[["random", "DC", "M"]]
        np.testing.assert_allclose(whiskers, of_panel[["low", "high"]])
    assert all(fig.get_figwidth() <= 3.4 for fig in panels), "two stand side by side, one fills a phone"
    assert report.accuracy_figure(noisy).to_html("x") == panels.to_html("x")  # no random jitter


def test_accuracy_figure_leaves_out_a_method_without_runs(noisy):
    some = noisy[(noisy["ipc"] == 1) | (noisy["method"] != "DC")]
    names = [[t.get_text() for t in ax.get_xticklabels()] for ax in report.accuracy_figure(some).axes]
    assert names == [["random images", "DC", "M"], ["random images", "M"]]


def test_accuracy_figure_has_a_panel_for_each_budget(noisy):
    """One set has no interval. Its panel does not take that of another budget."""
    ten = noisy[noisy["ipc"] == 10]
    one = ten[ten["set"] == 0].assign(budget="smoke")
    wide = ten.assign(budget="lite", accuracy=ten["accuracy"] + ten["set"])
    fig = report.accuracy_figure(pd.concat([one, ten, wide]))
    titles = [f"digits, 10 images per class ({budget})" for budget in ("smoke", "paper", "lite")]
    assert [ax.get_title() for ax in fig.axes] == titles
    assert not any(drawn.lines[2] for drawn in fig.axes[0].containers), "no whiskers"
    for ax, results in zip(fig.axes[1:], (ten, wide), strict=True):
        whiskers = [drawn.lines[2][0].get_segments()[0][:, 1] for drawn in ax.containers]
        summary = report.summarise(results).set_index("method").loc[["random", "DC", "M"]]
        np.testing.assert_allclose(whiskers, summary[["low", "high"]])


def test_accuracy_figure_of_one_set_and_an_unknown_method():
    fig = report.accuracy_figure(long_form({"mine": {0: [80.0, 81.0]}, "M": {0: [82.0]}}))
    assert {line.get_color() for line in fig.axes[0].lines} >= {report.style.OTHER_COLOUR, report.COLOURS["M"]}


def test_every_method_has_its_own_colour():
    assert len(set(report.COLOURS.values())) == len(report.COLOURS)
    assert set(report.COLOURS) >= {"random", "herding", "DC", "Inter", "Interleaved", "M", "MD", "MDO", "MDA"}


def test_a_figure_in_a_page_has_the_colours_of_the_page():
    def drawn():
        fig, ax = report.figures.panel()
        ax.plot([0, 1, 2], [0.123456, 1, 0.5], "o-", color=report.colour("DC"), label="a <b>")
        ax.plot([0, 1], [1, 0], color="#123456")
        ax.set_xlabel("$5 & more".replace("$", r"\$"))
        ax.legend(frameon=False)
        return report.svg(fig, hidden=False, label='a "line"')

    text = drawn()
    assert text == drawn(), "the same figure gives the same bytes"
    assert 'role="img" aria-label="a &quot;line&quot;"' in text
    assert "var(--gm-DC, #332288)" in text and "stroke:#123456" in text, "other colours stay as they are"
    assert "currentColor" in text and "#ffffff" not in text and "#000000" not in text and "font-family" not in text
    assert "a &lt;b&gt;" in text and "$5 &amp; more" in text, "letters stay letters"
    assert "<style" not in text and "<!--" not in text, "it would hold for the whole page"
    ids = re.findall(r' id="([^"]*)"', text)
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
    assert {name for pair in used for name in pair if name} == set(ids) and len(set(ids)) == len(ids)
    other = report.svg(plt.figure(figsize=(1, 1)))
    mark = ids[0][:9]
    assert all(name.startswith(mark) for name in ids) and mark not in other and 'aria-hidden="true"' in other


def test_every_colour_has_a_light_and_a_dark_value_that_can_be_read():
    css = (Path(__file__).parents[1] / "book" / "_static" / "gmlib.css").read_text("utf-8")

    def values(selector):
        block = re.search(re.escape(selector) + r" \{\s*(--gm-random[^}]*)\}", css)[1]
        return dict(re.findall(r"(--gm-[\w-]+): (#\w+);", block))

    def contrast(one, other):
        def light(shade):
            linear = [
                c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(shade)
            ]
            return np.dot(linear, [0.2126, 0.7152, 0.0722])

        high, low = sorted([light(one), light(other)], reverse=True)
        return (high + 0.05) / (low + 0.05)

    light, dark = values(":root"), values('html[data-theme="dark"]')
    names = {paint[4:].partition(",")[0]: shade for shade, paint in report.style.PAINT.items() if "--gm-" in paint}
    assert set(light) == set(dark) == set(names), "the style sheet has the colours of the figures"
    for name, shade in names.items():
        assert matplotlib.colors.to_hex(light[name]) == shade, name
        if name != "--gm-grid":
            assert contrast(light[name], "#ffffff") >= 4.5 and contrast(dark[name], "#1a1d21") >= 4.5, name


def test_show_displays_a_figure_with_alt_and_caption_and_closes_it(monkeypatch):
    shown = []
    monkeypatch.setattr(report.drawing, "display", lambda data, raw: shown.append(data))
    fig, ax = plt.subplots()
    ax.plot([0, 1])
    report.show(fig, 'a "line" <up>', "Dots <are> networks.")
    assert not plt.fignum_exists(fig.number)
    html = shown[0]["text/html"]
    assert 'role="img" aria-label="a &quot;line&quot; &lt;up&gt;"' in html and html.count("<svg") == 1
    assert "<figcaption class=gm-numbered>Dots &lt;are&gt; networks.</figcaption>" in html
    assert shown[0]["text/plain"] == 'a "line" <up>'
    report.show(plt.figure(), "b", "Not counted.", number=False)
    assert "<figcaption>Not counted." in shown[1]["text/html"]
    report.show(plt.figure(), "b")
    assert "figcaption" not in shown[2]["text/html"]
    with pytest.raises(ValueError, match="alt"):
        report.show(fig, " ")


def test_panels_share_a_legend(noisy):
    fig, ax = plt.subplots()
    ax.plot([0, 1], "--", color=report.colour("M"), label="dashed <i>")
    ax.errorbar([0], [1], yerr=[1], fmt="o", color="#123456", label="dots")
    entries = report.legend_of(ax)
    assert entries == [("dashed <i>", report.COLOURS["M"], "--"), ("dots", "#123456", "o")]
    html = report.Panels([fig], [*entries, ("a bar", "#000000", "bar 0.5")]).to_html("x")
    items = re.findall("<li>(.*?)</li>", html)
    assert "stroke-dasharray" in items[0] and "var(--gm-M, " in items[0] and "dashed &lt;i&gt;" in items[0]
    assert "<circle" in items[1] and "stroke=" not in items[1] and 'opacity="0.5"' in items[2]


def test_use_style_sets_the_one_style():
    with matplotlib.rc_context():
        report.use_style()
        assert matplotlib.rcParams["font.sans-serif"] == ["DejaVu Sans"]
        assert matplotlib.rcParams["axes.spines.top"] is False


# ---------------------------------------------------------------------------------------------- slider


def frames():
    return [("start", PNG, "noise <0>"), ("end & after", "<b>done</b>", 'the "end"')]


def test_slider_in_a_static_page():
    slider = report.Slider(frames(), names=[0, "</script>"], start=-1)
    bundle = slider._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}  # no kernel here, so no widget
    html = bundle["text/html"]
    assert 'alt="noise &lt;0&gt;"' in html and 'aria-label="the &quot;end&quot;"' in html
    assert "data:image/png;base64,iVBORw0KGgo=" in html
    assert "<b>done</b>" in html and "end &amp; after" in html
    assert '<input type="range" min="0" max="1" step="1" value="1" aria-label="outer iteration k"' in html
    first, second = re.findall(r"<figure[^>]*>", html)
    assert "hidden" in first and "hidden" not in second  # start=-1 shows the last one
    assert html.count("</script>") == 1  # a name cannot end the script
    assert f'id="{slider.id}"' in html and f"#{slider.id}:not" in html


def test_slider_is_deterministic():
    assert report.Slider(frames())._repr_html_() == report.Slider(frames())._repr_html_()
    others = [{"start": 1}, {"label": "t"}, {"names": "ab"}]
    assert len({report.Slider(frames(), **changed).id for changed in [{}, *others]}) == 4


def test_slider_with_a_kernel(monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    import IPython

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    slider = report.Slider(frames(), names=["zero", "one"])
    bundle = slider._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    pick, view = slider._live.children
    assert isinstance(pick, ipywidgets.SelectionSlider) and "noise" in view.value
    pick.value = 1
    assert "<b>done</b>" in view.value
    assert slider._repr_mimebundle_() == bundle  # shown twice, it is one widget


def test_slider_takes_figures():
    fig, ax = plt.subplots()
    ax.plot([0, 1])
    html = report.Slider([("c", fig, "a line")])._repr_html_()
    assert '<div class="gm-panels" role="img" aria-label="a line"><svg' in html and not plt.fignum_exists(fig.number)


def test_what_is_below_the_frames_moves_with_them():
    html = report.Slider(frames(), start=1, below='<circle data-places="1.0,2;3.5,4"/>')._repr_html_()
    assert html.count("<circle") == 1 and '<circle data-places="1.0,2;3.5,4" transform="translate(3.5,4)"/>' in html


def test_a_slider_lists_its_captions_for_pages_without_scripts():
    assert (
        '<ul class="gm-captions"><li>start</li><li>end &amp; after</li></ul>' in report.Slider(frames())._repr_html_()
    )
    assert "gm-captions" not in report.Slider(frames()[:1])._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"frames": []}, "at least one frame"),
        ({"frames": frames(), "names": ["a"]}, "1 names for 2 frames"),
        ({"frames": frames(), "start": 2}, "start=2 is outside"),
        ({"frames": [("c", PNG, "")]}, "'c' has no alt"),
    ],
)
def test_slider_checks_its_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        report.Slider(**arguments)


# --------------------------------------------------------------------------------------- the book's check

check = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("check_book.py"))))

SOUND = """<html><head><link rel="stylesheet" href="a.css"><link rel="canonical" href="https://x.org/"></head>
<body><a href="https://x.org">out</a> <a href="b%20c.html?q=1#there">in</a> <a href="#top" id="top">up</a>
<img alt="dot" src="data:image/png;base64,AA//BB=="><script>var url = "https://x.org";</script></body></html>"""


def book(folder, page=SOUND):
    (folder / "page.html").write_text(page, "utf-8")
    (folder / "b c.html").write_text('<p id="there">x</p>', "utf-8")
    (folder / "a.css").write_text("@import 'b.css'; p { background: url(data:image/png,//AA) }", "utf-8")
    return check.problems(folder)


def test_a_sound_book_passes(tmp_path):
    assert book(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ('<div class="output traceback highlight">', "shows a traceback"),
        ('<script src="https://unpkg.com/x.js"></script>', "loads https://unpkg.com/x.js from another host"),
        ('<script>load("https://unpkg.com/x.js")</script>', "names the CDN unpkg.com"),
        ('<script>fetch("https://x.org/x.json")</script>', "loads https://x.org/x.json"),
        ('<link href="//x.org/a.css" rel="stylesheet">', "loads //x.org/a.css"),
        ('<link href="https://x.org/f.woff2" rel="preload">', "loads https://x.org/f.woff2"),
        ('<iframe src="http://x.org"></iframe>', "loads http://x.org"),
        ('<img alt="a" srcset="top.png 1x, https://x.org/b.png 2x">', "loads https://x.org/b.png"),
        ("<p style=\"background: url('https://x.org/c.png')\">", "loads https://x.org/c.png"),
        ('<style>@import "https://x.org/d.css";</style>', "loads https://x.org/d.css"),
        ('<img src="data:,">', "without alternative text"),
        ('<img src="data:," alt=" ">', "without alternative text"),
        ('<img src="gone.png" alt="a">', "links to gone.png, which is not there"),
        ('<a href="gone.html">', "links to gone.html, which is not there"),
        ('<a href="b%20c.html#nowhere">', "no such anchor"),
        ('<a href="#nowhere">', "no such anchor"),
        ('<a href="../../../../../../../../etc/hostname">', "etc/hostname"),
    ],
)
def test_each_fault_is_named_with_its_page(tmp_path, fault, words):
    found = book(tmp_path, SOUND.replace("</body>", fault + "</body>"))
    assert found and all(line.startswith("page.html: ") for line in found) and words in "\n".join(found)


def test_faults_in_style_sheets_and_scripts_are_found(tmp_path):
    (tmp_path / "x.css").write_text("@font-face { src: url(https://x.org/f.woff2) }", "utf-8")
    (tmp_path / "x.js").write_text("importScripts('https://x.org/w.js')", "utf-8")
    found = book(tmp_path)
    assert found == [
        "x.css: loads https://x.org/f.woff2 from another host",
        "x.js: loads https://x.org/w.js from another host",
    ]


def test_an_empty_book_is_not_sound(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_book.py", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(Path(__file__).with_name("check_book.py")), run_name="__main__")
    assert stop.value.code == 1 and "holds no page" in capsys.readouterr().out


def test_trace_slider_opens_at_the_end_and_names_every_k():
    trace = {k: (np.full((4, 1, 3, 3), k / 10), [50.0 + k, 52.0 + k]) for k in (0, 2, 9)}
    slider = report.trace_slider(trace, 2, method="M", titles=["a", "b"])
    assert slider.names == ["0", "2", "9"] and slider.start == 2
    assert [caption for caption, _, _ in slider.frames][
        2
    ] == "k = 9: networks trained on these images reach 60.0 % (mean of 2)"
    html = slider._repr_html_()
    assert html.count("<img") == 3 and html.count("<svg") == 1, "the curve is drawn once"
    xs, ys = zip(
        *(map(float, at.split(",")) for at in re.search('data-places="(.*?)"', html)[1].split(";")), strict=True
    )
    assert xs[0] < xs[1] < xs[2] and ys[0] > ys[1] > ys[2], "accuracy rises with k: 51, 53, 60"
    assert (ys[0] - ys[1]) / (ys[1] - ys[2]) == pytest.approx(2 / 7, abs=0.02)


def test_source_shows_the_code():
    text = report.source(report.colour).data
    assert text.startswith("```python\ndef colour(method: str)") and text.endswith("```")


def test_a_table_without_runs_says_so_in_every_cell():
    empty = pd.DataFrame(columns=readback.COLUMNS)
    found = report.accuracy_table(
        empty, methods=["DC", "M"], columns=[("digits", 1)], why={("digits", 1, "M"): "no time"}
    )
    assert found.cells == {("DC", "digits, IPC 1"): ["not run"], ("M", "digits, IPC 1"): ["not run: no time"]}
    assert "nothing was run" in found.caption


def test_components_by_hand():
    rows = []
    for method, means in {"random": [60.0, 64.0], "M": [80.0, 82.0]}.items():
        rows += [("d", 1, method, "paper", s, "convnet", 0, m) for s, m in enumerate(means)]
    rows += [("e", 1, "M", "paper", 0, "convnet", 0, 70.0)]
    results = pd.DataFrame(rows, columns=readback.COLUMNS)
    found = report.components(results, {"d": 90.0}).set_index("dataset")
    d = found.loc["d"]
    assert (d["mean"], d["ior"], d["hlr"], d["relative"]) == pytest.approx((81.0, 19.0, 9.0, 90.0))
    interval = stats.ttest_rel([80, 82], [60, 64]).confidence_interval()
    assert (d["ior_low"], d["ior_high"]) == pytest.approx((interval.low, interval.high))
    assert found.loc["e", ["ior", "hlr", "relative"]].isna().all(), "nothing to compare with"


def test_compression_by_hand():
    found = report.compression(60000, 10, (1, 28, 28))
    assert found == {"real_bytes": 47_040_000, "synthetic_bytes": 31_360, "images": 6000.0, "bytes": 1500.0}
    assert report.compression(50000, 100, (3, 32, 32), bytes_per_value=2)["bytes"] == 250


WALKED = pd.DataFrame(
    [
        # path, step, x, y, distance, gradient_norm, gradient_norm_T
        ("M", 0, 0.0, 0.0, 0.0, 1.0, 2.0),
        ("M", 10, 3.0, 4.0, 5.0, 0.05, 1.5),
        ("M", 20, 3.0, 4.0, 10.0, 0.01, 1.4),
        ("DC", 0, 0.0, 0.0, 0.0, 1.0, 2.0),
        ("DC", 20, 0.0, 2.0, 2.0, 0.5, 1.2),
        ("T", 0, 0.0, 0.0, 0.0, 2.0, 2.0),
        ("T", 20, 6.0, 8.0, 20.0, 0.3, 0.3),
    ],
    columns=["path", "step", "x", "y", "distance", "gradient_norm", "gradient_norm_T"],
).assign(test_accuracy=70.0, explained=0.8)


def test_paths_table_has_traps_and_ends():
    cells = report.paths_table(WALKED, 0.1, "What was run.").cells
    trap = ["5.00 from the start, step 10", "gradient 0.05, on T 1.5", "test accuracy 70.0 %"]
    assert cells["M", "first recorded below 0.1"] == trap
    assert cells["DC", "first recorded below 0.1"] == cells["T", "first recorded below 0.1"] == ["not reached"]
    assert cells["T", "after 20 steps"][0] == "20.00 from the start, step 20"


def test_paths_sentence_counts_traps_as_in_figure_2():
    """M is trapped before T, DC is not trapped. The plane shows 50 of 125 for M, all for DC, a quarter for T."""
    sentence = report.paths_sentence(WALKED, 0.1).data
    assert "**1 of 2 paths" in sentence and "a norm of 1.5 to 1.5" in sentence and "norm is 2." in sentence
    assert "80%" in sentence and "25% to 100%" in sentence
    later = WALKED.assign(gradient_norm=WALKED["gradient_norm"].where(WALKED["path"] != "T", 0.01))
    assert "**0 of 2 paths" in report.paths_sentence(later, 0.1).data, "the path on T is trapped first"
    assert "At the traps" not in report.paths_sentence(WALKED, 0.001).data


def test_alignment_sentence_has_means_over_layers_and_starts():
    rows = [(0, "a", 0.2, 1.0), (0, "b", 0.4, 3.0), (5, "a", 0.1, 8.0), (5, "b", 0.1, 4.0)]
    aligned = pd.DataFrame(rows, columns=["step", "layer", "cosine", "ratio"])
    sentence = report.alignment_sentence(aligned).data
    assert "step 0 to step 5" in sentence and "from 2 to 6" in sentence and "from 0.30 to 0.10" in sentence


def test_benchmarks_without_stored_results_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        report.stored_benchmarks(tmp_path / "nothing")


def test_reach_table_counts_sets_and_starts():
    sums = pd.DataFrame(
        {
            "method": ["M", "M", "random"], "set": [0, 1, 0], "eps": 0.1, "starts": [4, 4, 4],
            "reached": [1.0, 0.5, 0.0], "min_distance": [2.0, 3.0, math.nan],
        }
    )  # fmt: skip
    cells = report.reach_table(sums, "smoke").cells
    assert cells["M", "eps = 0.1"] == ["2.50±0.71", "2 sets, 6 of 8 starts"]
    assert cells["random", "eps = 0.1"] == ["not reached", "1 set, 0 of 4 starts"]


@pytest.mark.parametrize(
    ("rho", "low", "high", "n", "answer"),
    [
        (0.8, 0.1, 0.9, 10, "yes"),
        (0.3, 0.1, 0.5, 40, "yes"),
        (-0.8, -0.9, -0.1, 10, "no, the other way round"),
        (0.3, -0.2, 0.6, 10, "not decided"),
        (0.29, 0.1, 0.5, 40, "not decided"),  # too weak, however sure
        (-0.07, -0.44, -0.02, 12, "not decided"),
        (-0.07, -0.44, -0.02, 8, "too few sets"),
        (0.8, 0.1, 0.9, 9, "too few sets"),
        (math.nan, math.nan, math.nan, 12, "not decided"),
        (math.nan, math.nan, math.nan, 2, "too few sets"),
    ],
)
def test_correlation_answers_by_its_rule(rho, low, high, n, answer):
    found = RankCorrelation(rho, low, high, n, 0.5, "why")
    sentence = report.correlation("So?", found).data
    assert f"**{answer}**" in sentence and sentence.startswith("- So?")
    assert ("rho" in sentence.replace("|rho|", "")) == math.isfinite(rho)
    reasons = {"too few sets": "of at least 10", "not decided": "why" if math.isnan(rho) else ""}
    assert reasons.get(answer, "") in sentence


@pytest.mark.parametrize(("first", "outcome"), [(4, "too few sets"), (5, "held"), (8, "too few sets")])
def test_two_groups_need_five_sets_each(first, outcome):
    groups = [i < first for i in range(12)]
    assert report.correlation_outcome(RankCorrelation(0.8, 0.4, 0.9, 12, 0.01), groups)[0] == outcome


def test_points_have_the_smallest_threshold_and_the_accuracy_of_each_set():
    rows = [("M", 0, 81.0, j, eps, True, 10 * eps + j) for j in (0, 1) for eps in (0.5, 0.1)]
    rows += [("noise", 0, math.nan, 0, 0.1, False, math.nan), ("noise", 0, math.nan, 0, 0.5, True, 7.0)]
    table = pd.DataFrame(rows, columns=["method", "set", "accuracy", "start", "eps", "reached", "distance"])
    table = table.assign(steps=1.0, test_accuracy=1.0, train_loss=1.0, real_loss=1.0, real_gradient_norm=1.0)
    points = report.reach_points(table).set_index("method")
    assert points["eps"].tolist() == [0.1, 0.1] and points["starts"].to_dict() == {"M": 2, "noise": 1}
    assert points.loc["M", ["accuracy", "min_distance"]].tolist() == [81.0, 1.0]
    assert points.loc["noise", ["accuracy", "min_distance"]].isna().all()


def test_descents_stand_in_the_order_of_table_3_with_the_largest_budget_first():
    cells = [
        ("CIFAR10", 1, "paper"),
        ("MNIST", 1, "lite"),
        ("digits", 1, "paper"),
        ("MNIST", 10, "paper"),
        ("MNIST", 1, "paper"),
    ]
    table = pd.DataFrame([*cells, *cells], columns=["dataset", "ipc", "budget"]).assign(distance=range(10))
    found = report.descents_by_cell(table)
    assert [cell for cell, _ in found] == [cells[i] for i in (4, 3, 0, 2, 1)]
    assert [rows["distance"].tolist() for _, rows in found] == [[i, i + 5] for i in (4, 3, 0, 2, 1)]
    assert report.descents_by_cell(pd.DataFrame()) == []


def test_sets_without_a_distance_are_counted_and_named():
    """Accuracy rises with the distance. One set of M has no distance; noise and real data are controls."""
    methods = ["noise", "noise", "random", "random", "herding", "DC", "DC", "M", "M", "MD", "real data", "random"]
    far = [1.0, 1.1, 2.0, 2.1, 2.5, 3.0, 3.1, 4.0, math.nan, 5.0, 9.0, 2.2]
    points = pd.DataFrame(
        {"method": methods, "min_distance": far, "eps": 0.1, "train_loss": 0.1, "real_gradient_norm": 1.0}
    )
    points["accuracy"] = [math.nan if m in ("noise", "real data") else 50.0 + i for i, m in enumerate(methods)]
    points.loc[11, "accuracy"] = math.nan  # no network was trained on the third random set
    lines = report.reach_answers(points).data.splitlines()
    assert lines[0].startswith("**From 1 of 11 sets, noise included, no start reaches ε = 0.1** (M 1)")
    answers = {line.partition("?")[0].removeprefix("- "): line for line in lines[2:]}
    assert len(answers) == 6
    # Against noise: two of noise and DC, DC, M, MD; herding and random are chosen, not matched.
    assert all("**too few sets** (" in answer for answer in answers.values())
    assert "(n = 6; 1 of 7 left out" in answers["Does matching raise the distance, against noise"]
    assert "(n = 7; 1 of 8 left out" in answers["Does matching raise the distance, against random real images"]
    assert "rho 1.00" in answers["Do sets with a farther trap train better networks"]
    assert "(n = 7; 1 of 8 left out" in answers["Do sets with a farther trap train better networks"]
    assert "(n = 4; 1 of 5 left out" in answers["Does this also hold among the matched sets alone"]
    along = pd.DataFrame({"k": [0, 5, 10, 20], "min_distance": [1.0, 2.0, 3.0, 4.0]})
    text = report.reach_answers(points.dropna(subset="min_distance"), along).data
    assert text.startswith("All 10 sets, noise included, have a start that reaches ε = 0.1.")
    assert "Does the distance rise while M condenses? Spearman's rho 1.00" in text


def test_figures_of_section_5_show_every_method_and_layer():
    sums = pd.DataFrame({"method": ["M", "DC"], "min_distance": [2.0, 3.0], "accuracy": [80.0, 70.0]})
    along = pd.DataFrame({"method": "M", "k": [0, 5], "min_distance": [1.0, 2.0]})
    panels = report.reach_figure(sums, along)
    _, right = panels.axes
    assert [words for words, *_ in panels.legend] == ["DC", "M"]
    assert right.lines[0].get_xydata().tolist() == [[0, 1], [5, 2]]
    table = pd.DataFrame(
        {"start": [0, 1, 0, 1], "step": 0, "layer": ["a", "a", "b", "b"], "cosine": [0.2, 0.4, 1, 1], "ratio": 1.0}
    )
    cosine, _ = report.alignment_figure(table).axes
    assert cosine.lines[0].get_ydata().tolist() == pytest.approx([0.3])
    assert len(report.reach_figure(sums, along.iloc[:0]).axes) == 1, "a run without snapshots"
    methods = [f"multi,{weight}*d4,fixed" for weight in range(2, 15)]
    many = pd.DataFrame({"method": methods, "min_distance": 1.0, "accuracy": 50.0})
    page = report.reach_figure(many, along.iloc[:0]).to_html("sets")
    drawn = re.findall(r"<svg.*?</svg>", page.partition("<ul")[2])
    assert len(drawn) == len(set(drawn)) == 13, "methods outside the paper are all grey, so each has its own shape"


def test_jupyter_gets_the_style_sheets_and_the_book_does_not(monkeypatch):
    shown = []
    monkeypatch.setattr(report.style, "display", shown.append)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    with matplotlib.rc_context():
        report.use_style()
        assert not shown
        monkeypatch.setenv("JPY_SESSION_NAME", "what.md")
        report.use_style()
    sheet = shown[0].data
    assert ".gm-table" in sheet and "--jp-content-font-color1" in sheet
    assert "html[data-theme" not in sheet and ":root" not in sheet and sheet.count("{") == sheet.count("}")
