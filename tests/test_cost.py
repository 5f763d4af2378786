"""What condensing costs: the timed pieces are those of a run and add up as in a run; the page reports them."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_data
from messages import refuses

import gmlib as gm
import gmreport as report
from gmlib import lines
from gmlib.analysis import costs
from gmlib.runs import estimates, readback, store
from gmlib.runtime import OutOfTime
from gmlib.speed import recording
from gmlib.speed.memory import PeakMemory

TINY = {"width": 4, "depth": 2, "batch_real": 4}


@pytest.fixture
def data():
    return make_data((8, 8, 8), dtype=torch.float32)


def measure(data, methods=("DC", "MDO"), ipc=2, **options):
    options = {"rounds": 2, "device": "cpu", "progress": False, "inner_loops": 3, "zeta_theta": 2, **TINY, **options}
    return costs.measure(data, methods, ipc, **options)


def counted(monkeypatch, module, name):
    calls, real = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **o: calls.append(real(*a, **o)) or calls[-1])
    return calls


def made_up(seconds, **columns):
    """Outer iterations of 450 steps (190 for MDA), all of their time for theta. seconds: {method: one per round}."""
    rows = [
        {"method": m, "where": "adaptive" if m == "MDA" else "fixed", "round": r, "seconds": s, "seconds_moving": s}
        for m, each in seconds.items()
        for r, s in enumerate(each, 1)
    ]
    rest = {"T": 10, "zeta": 50, "seconds_matching": 0.0, "seconds_looking": 0.0, "loss_evaluations": 0.0,
            "seconds_per_update": 0.0, "seconds_per_step": 0.02, "peak_memory_bytes": math.nan, "device": "cpu",
            "device_name": "a processor", "threads": 1}  # fmt: skip
    table = pd.DataFrame(rows).assign(**rest)
    return table.assign(theta_steps=np.where(table["method"] == "MDA", 190.0, 450.0), **columns)


# ---- the pieces -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["DC", "MDA", "MDO"])
def test_steps_and_losses_are_those_of_a_run(data, method, monkeypatch):
    recipe = gm.Recipe.for_method(method, data.name, 2, inner_loops=3, zeta_theta=2, outer_loops=2, **TINY)
    looked = counted(monkeypatch, lines, "measure_losses")
    history = gm.condense(data, recipe, "cpu", progress=False).history
    taken = sum(entry["theta_steps"] for entry in history) / 2
    seconds = {"seconds_per_update": 1.0, "seconds_per_step": 1.0}
    seconds["seconds_per_look"] = 1.0 if method == "MDO" else math.nan
    pieces = pd.DataFrame([{"method": method, "where": recipe.where, **seconds}])
    from_run = costs.outer_iteration(pieces, 3, 2, {method: taken}).iloc[0]
    assert from_run["loss_evaluations"] == len(looked) / 2  # one loss per look, two outer iterations
    planned = costs.outer_iteration(pieces, 3, 2).iloc[0]
    assert planned["theta_steps"] == taken if method != "MDO" else 0 < taken < planned["theta_steps"]


def test_an_outer_iteration_is_added_up_from_its_pieces():
    pieces = pd.DataFrame({"method": ["MD", "MDA", "MDO"], "where": ["fixed", "adaptive", "overfit"]})
    pieces = pieces.assign(seconds_per_update=2.0, seconds_per_step=0.1, seconds_per_look=[math.nan, math.nan, 0.01])
    o = costs.outer_iteration(pieces, 10, 50).set_index("method")
    assert o["theta_steps"].tolist() == [450, 190, 450] and o["loss_evaluations"].tolist() == [0, 0, 9 * 51]
    assert o["seconds"].tolist() == pytest.approx([20 + 45, 20 + 19, 20 + 45 + 4.59])
    one = costs.outer_iteration(pieces, 1, 1)
    assert one["theta_steps"].eq(0).all() and one["loss_evaluations"].eq(0).all() and one["seconds"].eq(2).all()
    with pytest.raises(ValueError, match="T=0"):
        costs.outer_iteration(pieces, 0, 50)


def test_the_timed_update_is_a_runs_first(data, monkeypatch):
    matched = counted(monkeypatch, estimates, "match")
    steps, looks = (
        counted(monkeypatch, estimates, "train_one_pass"),
        counted(monkeypatch, estimates, "measure_losses"),
    )
    recipe = gm.Recipe.for_method("MDO", data.name, 2, inner_loops=1, outer_loops=1, **TINY)
    found = estimates.Pieces(data, recipe)(0)
    assert (len(matched), len(steps), len(looks)) == (1, estimates.STEPS, estimates.LOOKS)
    assert matched[0][0] == gm.condense(data, recipe, "cpu", progress=False).history[0]["loss"]
    assert all(seconds > 0 for seconds in found.values())


def test_recorded_pieces_give_what_unrecorded_ones_do(data, recorded, monkeypatch):
    """Each round starts again with S and theta."""
    recipe = gm.Recipe.for_method("MD", data.name, 2, inner_loops=2, zeta_theta=2, outer_loops=1, **TINY)
    sets = []
    for again in (True, False):
        monkeypatch.setattr(recording, "recordable", lambda device, again=again: again)
        recorded.made = 0
        pieces = estimates.Pieces(data, recipe)
        for k in (0, 1, 2, 3):
            pieces(k)
        sets.append(pieces.S.detach().clone())
        assert recorded.made == (3 if again else 0)  # T, S, theta
    assert torch.allclose(*sets, atol=1e-6)


def test_the_clock_stops_once_for_each_piece(data, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(estimates, "now", lambda device: next(ticks))
    table = measure(data).set_index(["method", "round"])
    assert table["seconds_per_update"].eq(1).all() and table["seconds_per_step"].eq(1 / estimates.STEPS).all()
    assert (
        table.loc["MDO", "seconds_per_look"].eq(1 / estimates.LOOKS).all()
        and table.loc["DC", "seconds_per_look"].isna().all()
    )


def test_methods_take_turns_and_equal_work_is_averaged(data, monkeypatch):
    calls = []

    def pieces(self, k):
        calls.append((self.recipe.method, k))
        seconds = {"DC": 1.0, "MD": 2.0, "MDA": 4.0}[self.recipe.method] * 10**k
        return {"seconds_per_update": seconds, "seconds_per_step": seconds, "seconds_per_look": math.nan}

    monkeypatch.setattr(costs.Pieces, "__call__", pieces)
    table = measure(data, "DC, MD, MDA", rounds=3).set_index(["round", "method"])
    assert [m for m, k in calls[6:]] == ["MD", "MDA", "DC", "MDA", "DC", "MD", "DC", "MD", "MDA"]
    assert [k for _, k in calls] == [0] * 6 + [1] * 3 + [2] * 3 + [3] * 3 and len(table) == 9
    assert table.loc[(2, "DC"), "seconds_per_update"] == 100  # no other method has the update of DC
    assert table.loc[(2, "MD"), "seconds_per_update"] == table.loc[(2, "MDA"), "seconds_per_update"] == 300
    assert table.loc[2, "seconds_per_step"].tolist() == pytest.approx([700 / 3] * 3)
    assert table["seconds_per_look"].isna().all()


def test_a_measurement_is_stored_and_read_back(data, tmp_path):
    table = measure(data)
    assert (
        table["threads"].eq(torch.get_num_threads()).all()
        and table["device"].eq("cpu").all()
        and table["device_name"].all()
    )
    stored = store.cached_table(tmp_path / "cost.json", {}, lambda: table)
    again = store.cached_table(tmp_path / "cost.json", {}, lambda: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(again, table)
    assert stored is table


def test_refusals(data):
    with pytest.raises(ValueError, match="rounds=1"):
        measure(data, rounds=1)
    with pytest.raises(ValueError, match="'random': choose from DC, M"):
        measure(data, "DC,random")
    with pytest.raises(OutOfTime, match="more time"):
        measure(data, deadline=time.monotonic() - 1)
    for work in (costs.measure, costs.precisions):
        with refuses(ValueError, "data is a NoneType"):
            work(None, "DC", 1)


@pytest.mark.parametrize("bytes_each", [64_000_000, 100_000])  # mapped one by one, or taken from the heap
def test_peak_memory_counts_what_was_held_and_freed(bytes_each):
    found = []
    for _ in range(2):  # the second time, the heap holds what the first has freed
        peak = PeakMemory(torch.device("cpu"))
        held = [np.ones(bytes_each, np.uint8) for _ in range(64_000_000 // bytes_each)]
        del held
        found.append(peak())
    if math.isnan(found[0]):
        pytest.skip("the peak of the resident set cannot be reset on this system")
    assert all(63e6 < peak < 80e6 for peak in found)


def test_time_and_accuracy_along_runs():
    record = {"method": "MD", "recipe": {"seed": 3}, "history": [
        {"seconds": 9.0, "theta_steps": 10}, {"seconds": 1.0, "theta_steps": 20}, {"seconds": 2.0, "theta_steps": 60},
    ]}  # fmt: skip
    trace = {k: (None, SimpleNamespace(mean=50.0 + k, n=2)) for k in (0, 1, 3)}
    run = SimpleNamespace(record=record, trace=trace)
    assert costs.measured_seconds([run]).to_dict("records") == [
        {"method": "MD", "set": 3, "seconds": 2.0, "theta_steps": 30.0}
    ]
    way = costs.accuracy_over_time([run])
    assert way[["k", "seconds", "accuracy"]].to_numpy().tolist() == [[0, 0, 50], [1, 9, 51], [3, 12, 53]]
    assert costs.accuracy_over_time([]).empty and costs.measured_seconds([]).empty


# ---- the page -----------------------------------------------------------------------------------


def test_ratios_are_taken_within_rounds():
    """Slow rounds do not change the ratio. By hand: 101, 102, 103, t(0.975, 2) = 4.3027, s = 1."""
    value, low, high = report.cost_ratio(made_up({"DC": [1.0, 2.0, 10.0], "MD": [1.01, 2.04, 10.3]}), "MD", "DC")
    assert value == pytest.approx(102) and high - value == value - low == pytest.approx(
        4.30265 / math.sqrt(3), abs=1e-4
    )


def test_measured_claims_are_judged():
    costs = made_up({"DC": [1.0, 1.0, 1.0], "MD": [1.004, 1.005, 1.006], "MDA": [0.7228, 0.7236, 0.7244]})
    nothing = pd.DataFrame(columns=readback.COLUMNS)
    found = report.judge_claims(nothing, report.cost_measured(costs, 10)).set_index("claim")
    judged = {c: (round(r.ours, 6), r.outcome) for c, r in found[found["row"] == "efficiency"].iterrows()}
    saving = 100 - 100 * np.mean([0.7228 / 1.004, 0.7236 / 1.005, 0.7244 / 1.006])
    assert judged == {
        "text-efficiency-m-and-d-extra-time-at-most": (0.5, "held"),
        "text-efficiency-a-saving-at-least": (round(saving, 6), "held"),
        "text-efficiency-a-saving-at-most": (round(saving, 6), "held"),
        "text-efficiency-theta-updates-fixed": (450, "by counting"),
        "text-efficiency-theta-updates-adaptive": (190, "by counting"),
    }
    assert list(report.cost_measured(costs, 1)) == ["text-efficiency-m-and-d-extra-time-at-most"]
    assert report.cost_measured(made_up({"DC": [1.0], "MD": [1.0]}), 10) == {}  # no interval
    assert report.cost_measured(made_up({"MDA": [1.0, 1.0]}), 10) == {}


def test_the_saving_is_the_share_of_time_times_the_steps_saved():
    costs = made_up({"MD": [2.0, 2.0], "MDA": [1.0, 1.0]}, seconds_moving=1.0)
    text = report.saving_sentence(costs).data
    assert "450 steps of theta" in text and "50 % of its time here (95% interval 50 to 50)" in text
    assert "58 % fewer: **it saves 29 % of the time**" in text  # 0.5 * (1 - 190/450)
    assert "25 to 30 % where the steps of theta take 43 to 52 % of the time" in text  # 25 and 30 over 1 - 190/450
    few = costs.assign(theta_steps=np.where(costs["method"] == "MDA", 120.0, 15.0), zeta=5, T=4)
    assert "700 % more: **it takes 350 % more time and saves none**" in report.saving_sentence(few).data
    assert "no schedule can save any time" in report.saving_sentence(costs.assign(theta_steps=0.0, T=1)).data


def test_noise_is_reported():
    exact = made_up({"DC": [1.0, 1.0, 1.0], "MD": [1.001, 1.002, 1.003]})
    assert "narrow enough" in report.timing_sentence(exact).data
    noisy = made_up({"DC": [1.0, 1.0, 1.0], "MD": [0.9, 1.0, 1.1]})  # s = 10: (1.96 * 10 / 0.5)^2 = 1537 rounds
    text = report.timing_sentence(noisy).data
    assert "too wide" in text and "±24.84 after 3 rounds" in text and "about 2000 to reach ±0.5" in text


def test_the_table_of_costs():
    costs = made_up({"DC": [4.0, 8.0], "MDO": [8.0, 16.0]}).assign(peak_memory_bytes=[2e6, 2e6, math.nan, math.nan])
    costs["loss_evaluations"] = costs["method"].map({"DC": 0.0, "MDO": 918.0})
    made = report.cost_table(costs)
    assert made.cells["DC", "time"] == ["6.00 s"] and made.cells["MDO", "time"] == ["at most 12.00 s"]
    assert made.cells["MDO", "against DC"] == ["at most 200.0 %", "95% CI [200.0, 200.0]"]
    assert made.cells["DC", "against DC"] == ["100.0 %"] and made.cells["DC", "looking for overfitting"] == ["none"]
    assert made.cells["MDO", "looking for overfitting"][1] == "918 losses"
    assert made.cells["DC", "steps of theta"][1] == "450 of 20.0 ms"
    assert (made.cells["DC", "peak memory"], made.cells["MDO", "peak memory"]) == (["2 MB"], ["not measured"])
    assert "2 rounds" in made.caption and "a processor (cpu), 1 CPU thread." in made.caption
    fig = report.cost_figure(costs)
    widths = {bar.get_width() for bar in fig.axes[0].patches}
    assert {6.0, 12.0} <= widths


def test_added_up_pieces_compared_with_runs():
    added_up = made_up({"DC": [1.0, 3.0]})
    taken = pd.DataFrame({"method": ["DC", "DC"], "set": [0, 1], "seconds": [2.0, 4.0], "theta_steps": [15.0, 15.0]})
    text = report.added_up_sentence(added_up, taken).data
    assert "took 1.50 times" in text and "not equally fast" in text
    alike = report.added_up_sentence(added_up, taken.assign(seconds=2.2)).data
    assert "took 1.10 times" in alike and "the pieces tell the whole" in alike


def test_costs_in_a_sentence():
    costs = made_up({"DC": [1.0, 1.0], "MD": [1.1, 0.8], "MDA": [0.55, 0.4]})
    assert report.costs_sentence(costs) == "M and D add −5.0 % (−195.6 to 185.6), A saves 50.0 % (50.0 to 50.0)"
    assert report.costs_sentence(made_up({"DC": [1.0, 1.0]})) == ""


def test_the_time_to_an_accuracy():
    rows = [
        ("DC", 1, 1.0, 60.0),
        ("DC", 2, 2.0, 80.0),
        ("MD", 1, 1.5, 80.0),
        ("MD", 2, 3.0, 85.0),
        ("MDO", 2, 9.0, 79.9),
    ]
    way = pd.DataFrame(rows, columns=["method", "k", "seconds", "accuracy"]).assign(set=0, networks=2)
    text = report.time_to(way).data
    assert "**DC ends at 80.0 % after 2.00 s.**" in text and "MD after 1.50 s (k = 1)" in text
    assert "MDO not within 9.00 s" in text and "2 networks for each of 1 set," in text
    assert "First at or above that: no other method was run." in report.time_to(way[way["method"] == "DC"]).data
    assert "was not run to its end" in report.time_to(way[way["method"] != "DC"]).data
    ax = report.time_figure(way).axes[0]
    assert ax.get_xscale() == "log" and [line.get_label() for line in ax.lines] == ["DC", "MD", "MDO"]
    assert ax.lines[0].get_color() == report.colour("DC")


# ---- precision --------------------------------------------------------------------------------------------


def test_what_less_precision_changes(data):
    table = costs.precisions(data, "MD", 1, rounds=3, device="cpu", width=8, depth=2, batch_real=8)
    assert table.groupby("precision", sort=False)["round"].apply(list).to_dict() == {
        "float32": [1, 2, 3],
        "bf16": [1, 2, 3],
    }
    exact, rough = (rows for _, rows in table.groupby("precision", sort=False))
    assert (exact[["change_in_loss", "change_in_dS"]] == 0).all(axis=None)
    assert ((rough["change_in_dS"] > 1e-6) & (rough["change_in_dS"] < 0.2)).all() and (
        rough["change_in_loss"] < 0.05
    ).all()
    assert (table["seconds_per_update"] > 0).all()
    made_up = table.assign(
        seconds_per_update=[4.0, 4.0, 8.0, 1.0, 2.0, 4.0], change_in_dS=[0.0] * 3 + [0.01, 0.02, 0.04]
    )
    made_up["precision"] = ["float32"] * 3 + ["bf16"] * 3
    made_up["round"] = [1, 2, 3] * 2
    shown = report.precision_table(made_up).cells
    assert shown["bf16", "seconds of an update"] == ["2", "50 %"] and shown["bf16", "change of dS"] == ["2.0e-02"]
    with pytest.raises(ValueError, match="rounds=0"):
        costs.precisions(data, "MD", 1, rounds=0)


def test_precisions_are_compared_without_recorded_steps(data, recorded):
    """A recorded step would repeat the first network and the first precision."""
    table = costs.precisions(data, "MD", 1, rounds=3, device="cpu", width=8, depth=2, batch_real=8)
    assert recorded.made == 0
    assert (table.loc[table["precision"] == "bf16", "change_in_dS"] > 1e-6).all()
