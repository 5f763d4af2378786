"""How long a run will take, from a few of its steps."""

import math

import pytest
import torch
from conftest import make_data, tiny_recipe
from messages import refuses

import gmlib as gm
from gmlib.runs import estimates

PIECES = {"seconds_per_update": 0.5, "seconds_per_step": 0.01, "seconds_per_look": 0.002}


@pytest.fixture
def timed(monkeypatch):
    """Pieces that take fixed times, and a clock that counts epochs and test images."""
    calls = []
    monkeypatch.setattr(estimates, "_time_pieces", lambda data, recipe, seconds: ([PIECES] * 3, 0.25))

    def evaluate(S, data, network, n, *, epochs, **options):
        calls.append((n, epochs))
        clock[0] += n * (2.0 * epochs + len(data.test_labels) / 10)

    clock = [0.0]
    monkeypatch.setattr(estimates, "evaluate", evaluate)
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: clock[0])
    return calls


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"where": "fixed", "inner_loops": 1}, 0.25 + 0.5),
        ({"where": "fixed", "inner_loops": 3, "zeta_theta": 7}, 0.25 + 3 * 0.5 + 2 * 7 * 0.01),
        ({"where": "fixed", "inner_loops": 3, "zeta_theta": 7, "zeta_S": 2}, 0.25 + 6 * 0.5 + 2 * 7 * 0.01),
        ({"where": "steps:4,2", "inner_loops": 3}, 0.25 + 3 * 0.5 + 6 * 0.01),
        (
            {"where": "overfit", "inner_loops": 3, "zeta_theta": 7},
            0.25 + 3 * 0.5 + 100 * 0.01 + 102 * 0.002,
        ),  # at most 50 at each t
    ],
)
def test_a_run_is_added_up_from_its_pieces(fields, seconds, timed):
    found = gm.estimate(make_data(dtype=torch.float32), tiny_recipe(outer_loops=20, **fields), "cpu", 4)
    assert found.outer_iteration == pytest.approx(seconds)
    assert found.seconds_condensing == pytest.approx(20 * seconds)
    assert ("at most" in str(found)) == (fields["where"] == "overfit")


def test_networks_are_added_up_from_epochs_and_their_test(timed):
    data = make_data(dtype=torch.float32, n_test=130)
    found = gm.estimate(data, tiny_recipe(), "cpu", 6, gm.Protocol(width=4, depth=2, epochs=40))
    assert found.seconds_evaluating == pytest.approx(6 * (2.0 * 40 + 13.0), rel=0.05)
    assert max(epochs for _, epochs in timed) < 40, "not all epochs are run"


def test_each_kind_of_network_is_timed_once(timed, monkeypatch):
    """The clock takes 2 s for an epoch and 0.1 s for a test image. The MLP trains for 40 epochs too."""
    data, recipe = make_data(dtype=torch.float32, n_test=130), tiny_recipe(outer_loops=20, inner_loops=1)
    protocol = gm.Protocol(width=4, depth=2, epochs=40)
    found = estimates.time_kind(data, recipe, ["convnet", "mlp"], torch.device("cpu"), protocol)
    assert found.pop("memory", 0) >= 0
    assert found.pop("set") == pytest.approx(20 * (0.25 + 0.5))
    assert found == {f"network {name}": pytest.approx(2.0 * 40 + 13.0, rel=0.05) for name in ("convnet", "mlp")}
    timed.clear()
    monkeypatch.setattr(estimates, "_time_pieces", pytest.fail)
    again = estimates.time_kind(data, recipe, ["mlp"], torch.device("cpu"), protocol, {"set": 1.0, **found})
    assert again == {"set": 1.0, **found} and not timed


def test_a_short_run_is_measured_and_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(inner_loops=2, precision="auto")
    found = gm.estimate(data, recipe, "cpu", 2, seconds=0.2)
    assert 0 < found.outer_iteration < 5 and 0 < found.seconds_evaluating < 60 and found.measured >= 1
    assert math.isnan(found.memory_bytes) or found.memory_bytes >= 0
    assert found.recipe.precision in ("float32", "bf16") and found.device == "cpu" and found.threads >= 1
    assert "2 networks" in str(found) and recipe.dataset in str(found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": None}, "Data"),
        ({"recipe": "MD"}, "give a Recipe"),
        ({"recipe": tiny_recipe(ipc=10**6, init="real")}, "ipc"),
        ({"n_networks": 0}, "n_networks=0"),
        ({"seconds": 0}, "seconds=0"),
        ({"device": "cudax"}, "cudax"),
        ({"protocol": 3}, "protocol"),
    ],
)
def test_bad_input_is_refused_before_any_work(change, words, monkeypatch):
    monkeypatch.setattr(estimates, "_time_pieces", pytest.fail)
    given = {"data": make_data(dtype=torch.float32), "recipe": tiny_recipe(), "device": "cpu"}
    with refuses((ValueError, TypeError), words):
        gm.estimate(**{**given, **change})


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (75, "75 s"), (90, "1.5 min"), (5400, "1.5 h"), (360000, "100 h")],
)
def test_durations_are_short(seconds, words):
    assert estimates.duration(seconds) == words
