"""What the page "Where to match" shows: counts, schedules and sentences against values computed by hand."""

from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import make_data, tiny_recipe

import gmreport as report
from gmlib import Recipe, condense, lines, where
from gmlib.analysis.matching import losses_along
from gmlib.where import Losses

# One outer iteration of two inner ones: L(T) rises at the first and at the last of three steps.
PATH = [(0, 0, 2.0, 2.0), (0, 1, 1.5, 2.1), (0, 2, 1.2, 1.9), (1, 0, 1.6, 1.8), (1, 1, 1.1, 1.85)]


def losses(**paths):
    rows = [(method, 3, *row) for method, path in paths.items() for row in path]
    return pd.DataFrame(rows, columns=["method", "k", "t", "i", "loss_S", "loss_T"])


def run(method, steps, seconds, loss=1.0, detections=()):
    recipe = Recipe.for_method(method, "digits", 10).as_dict()
    history = [
        {"k": k, "loss": loss, "theta_steps": n, "seconds": s, "detections": list(detections)}
        for k, (n, s) in enumerate(zip(steps, seconds, strict=True))
    ]
    return SimpleNamespace(record={"method": method, "recipe": recipe, "history": history})


def test_overfitting_along_a_path():
    path = [Losses(2.0, 2.0), Losses(1.5, 2.1), Losses(1.2, 1.9), Losses(1.2, 1.9)]
    assert where.overfits(path, "overfit", 0.0) == [True, False, False], "an equal loss is no rise"
    assert where.overfits(path, "overfit-gap", 0.65) == [False, True, True]
    assert where.overfits(path[:1], "overfit", 0.0) == []


def test_steps_until_overfitting_by_hand():
    history = [{"detections": [[0, 9, 1.0, 2.0], [2, 0, 1.0, 2.0]]}, {"detections": []}]
    assert where.steps_until_overfitting(history, 4) == [[10, where.MAX_STEPS, 1], [where.MAX_STEPS] * 3]
    assert where.fit_schedule(history, 4) == [40, 40, 26]  # medians 30, 50, 25.5: the first two pool
    with pytest.raises(ValueError, match="condense"):
        where.steps_until_overfitting([], 4)


def test_the_measured_path_overfits_where_the_run_detected_it():
    """The black dots of Figure 3 against the detections in the history of the same run."""
    data, recipe = make_data(), tiny_recipe(ipc=2, where="overfit", outer_loops=2, inner_loops=4, lr_network=0.5)
    history, found = condense(data, recipe, progress=False).history, losses_along(data, recipe, progress=False)
    seen = [(entry["k"], t, i) for entry in history for t, i, *_ in entry["detections"]]
    dots = []
    for (k, t), rows in found.groupby(["k", "t"]):
        path = list(map(Losses, rows["loss_S"], rows["loss_T"]))
        dots += [(k, t, i) for i, worse in enumerate(where.overfits(path, "overfit", 0.0)) if worse]
    assert dots == seen and seen, "a step that raises L(T) is the last before an update"
    assert (found["i"] > 0).sum() == sum(entry["theta_steps"] for entry in history)


def test_overfitting_figure_by_hand():
    fig = report.overfitting_figure(losses(MD=PATH, MDA=PATH[:3]), 3)
    left, right = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["MD\nfixed steps", "MDA\nschedule, Eq. 12"]
    on_T, on_S, worse = left.lines
    # theta does not move while S is updated.
    assert list(on_T.get_xdata()) == list(on_S.get_xdata()) == [0, 1, 2, 2, 3]
    assert list(on_T.get_ydata()) == [2.0, 2.1, 1.9, 1.8, 1.85]
    assert list(on_S.get_ydata()) == [2.0, 1.5, 1.2, 1.6, 1.1]
    assert (list(worse.get_xdata()), list(worse.get_ydata())) == ([1, 3], [2.1, 1.85])
    updates = [[segment[0, 0] for segment in ax.collections[0].get_segments()] for ax in (left, right)]
    assert updates == [[0, 2, 3], [0, 2]]
    assert left.get_xlim() == right.get_xlim() == (0, 3)
    (one,) = report.overfitting_figure(losses(**{"multi,d1,steps:2,1@mlp": PATH}), 3).axes
    assert one.get_title() == "multi,d1,steps:2,1 from mlp\nsteps:2,1"


def test_overfitting_table_by_hand():
    twice = pd.concat([losses(MD=PATH), losses(MD=PATH).assign(k=4, loss_T=5.0)])
    shown = report.overfitting_table(twice, 0.65)
    row = {column: shown.cells["MD", column] for column in shown.columns}
    assert row == {
        "steps of theta": ["6"],
        "raised L(T)": ["2", "33 %"],
        "left a gap over 0.65": ["5", "83 %"],  # 0.6, 0.7 and 0.75 at k = 3; at k = 4 all three
        "L(S) at the end": ["1.10"],
        "L(T) at the end": ["3.42"],
    }
    assert "2 outer iterations" in shown.caption


def test_steps_table_by_hand():
    runs = [
        run("MD", [450, 450], [4.0, 6.0], 8.0),
        run("MD", [450, 450], [5.0, 5.0], 6.0),
        run("MDO", [100, 120], [4.0, 4.0]),
    ]
    runs += [run("MDA", [190], [2.0]), SimpleNamespace(record={"method": "random", "history": []})]
    shown = report.steps_table(
        runs, ["MD", "MDO", "MDA", "random", "M"], {("digits", 10, "M"): "the time budget was used up"}
    )
    cells = {method: [shown.cells[method, column] for column in shown.columns] for method in shown.rows}
    assert cells["MD"] == [["450"], ["450", "4 outer iterations, 2 sets"], ["0"], ["5", "100 %"], ["7"]]
    taken = ["110", "100 to 120", "2 outer iterations, 1 set"]
    assert cells["MDO"] == [["at most 450"], taken, ["119"], ["4", "80 %"], ["1"]]
    assert cells["MDA"] == [["190"], ["190", "1 outer iteration, 1 set"], ["0"], ["2", "40 %"], ["1"]]
    assert cells["random"][0] == ["not run"]
    assert cells["M"][:2] == [["not run", "the time budget was used up"], ["not run"]]


def test_evaluations_of_the_loss_are_counted_as_in_a_run(monkeypatch):
    data, recipe = make_data(), tiny_recipe(ipc=2, where="overfit", outer_loops=2, inner_loops=3)
    calls = []
    measure_losses = lines.measure_losses
    monkeypatch.setattr(lines, "measure_losses", lambda *given: calls.append(1) or measure_losses(*given))
    history = condense(data, recipe, progress=False).history
    record = {"method": recipe.method, "recipe": recipe.as_dict(), "history": history}
    shown = report.steps_table([SimpleNamespace(record=record)], [recipe.method])
    assert float(shown.cells[recipe.method, "L(T) evaluated"][0]) == pytest.approx(len(calls) / 2, abs=0.51)


def test_schedule_figure_by_hand():
    seen, learned = {"a log": [[50, 10], [50, 20], [40, 60]]}, {"a log": [50, 20]}
    (ax,) = report.schedule_figure(seen, learned).axes
    shown = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert shown["learned from them"] == [50, 20] and shown["Eq. 12"] == [50, 40]
    (bars,) = ax.containers
    assert list(bars.lines[0].get_ydata()) == [50, 20]
    assert [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()] == [[45, 50], [15, 40]]


def test_a_log_has_its_origin_and_settings():
    recipe = tiny_recipe(ipc=10, how="d1 + d2", where="overfit", width=4, batch_real=5).as_dict()
    data = {"name": "a copy", "origin": "a copy of made-up data"}
    log = {"recipe": recipe, "data": data, "outer_iterations": 1, "stopped": "by hand"}
    sentence = report.log_sentence(log).data
    assert "**a copy**" in sentence and data["origin"] in sentence
    assert "width 4 and 5 real images" in sentence and "128 and 256" in sentence
    assert "Method MDO, 10 images per class, 1 outer iteration, stopped by hand" in sentence


@pytest.mark.parametrize(
    ("seen", "learned", "falls", "sides", "has"),
    [
        ([[50, 41, 25], [50, 39, 35]], [50, 40, 30], "falls", "between the quartiles at every t", "has"),
        (
            [[50, 45, 9], [50, 47, 11]],
            [50, 46, 10],
            "falls",
            "above the quartiles at t = 2 and below the quartiles at t = 1",
            "does not have",
        ),
        (
            [[40, 10, 1], [60, 60, 60]],
            [45, 45, 45],
            "does not fall",
            "between the quartiles at every t",
            "does not have",
        ),
    ],
)
def test_schedule_sentence_by_hand(seen, learned, falls, sides, has):
    sentence = report.schedule_sentence("digits", seen, learned).data
    assert f"It {falls}," in sentence and f"lies {sides}:" in sentence and f"**it {has} Eq. 12's shape**" in sentence
    assert "digits, 2 outer iterations" in sentence
    assert f"`steps:{learned[0]},{learned[1]},{learned[2]}`, {sum(learned)} steps against Eq. 12's 120" in sentence


def test_pulls_sentence_and_figure_by_hand():
    """Which part moves S most in the end, and how much the others do, for two methods."""
    rows = [
        ("MD", 0, 0, 2.0, "intra", "d1", 10.0, 0.02), ("MD", 0, 0, 2.0, "inter", "d1", 4.0, 0.05),
        ("MD", 1, 50, 0.5, "intra", "d1", 9.0, 0.03), ("MD", 1, 50, 0.5, "inter", "d1", 1.0, 0.8),
        ("DC", 0, 0, 2.0, "intra", "d1", 10.0, 0.02), ("DC", 1, 1, 1.9, "intra", "d1", 5.0, 0.04),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "t", "steps", "loss_S", "what", "how", "gradient", "step"])
    md, dc = report.pulls_sentence("digits", table).data.split("\n")
    assert "digits, MD: in 50 steps of theta L(S, θ) goes from 2.00 to 0.50 nats" in md
    assert "**inter, d1**: its step goes from 5.0% of |S| to 80%" in md and "at most 3.0%" in md and "to 25% of" in md
    assert "digits, DC: in 1 step of theta L(S, θ) goes from 2.00 to 1.90 nats" in dc
    assert "**intra, d1**: its step goes from 2.0% of |S| to 4.0%." in dc and "to 50% of" in dc
    left, right = report.pulls_figure(table).axes
    assert (left.get_title(), right.get_title(), left.get_yscale()) == ("MD", "DC", "log")
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert drawn == {"intra, d1": [0.02, 0.03], "inter, d1": [0.05, 0.8]}
    assert list(left.lines[0].get_xdata()) == [0, 50]
