"""Ctrl-C and SIGTERM save the work first, and slips in the arguments are refused before any work."""

import math
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, tiny_recipe
from messages import refuses
from torch import nn

import gmlib as gm
from gmlib import condensation, maxmin, runtime
from gmlib.analysis import matching, training
from gmlib.maxmin import noise_set
from gmlib.runs import store
from gmlib.runtime import OutOfTime, deadline_passed, saving_on_signals
from gmlib.speed import gradients, passes, trust

RUN = """
import sys
sys.path.insert(0, {tests!r})
import gmlib as gm
from conftest import make_data, tiny_recipe
recipe = tiny_recipe(outer_loops=100_000)
gm.condense(make_data(), recipe, "cpu", {path!r}, progress=False, checkpoint_seconds=1e6)
"""


def waits_for(process, number):
    """True if the process handles a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_run_first(number, tmp_path, request):
    path = tmp_path / "run.safetensors"
    script = RUN.format(tests=str(request.path.parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    while not waits_for(process, signal.SIGTERM):  # until the run has begun
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.3)
    assert not path.exists()
    process.send_signal(number)
    errors = process.communicate(timeout=30)[1]
    if number == signal.SIGTERM:
        assert process.returncode == -number, errors
    else:
        assert process.returncode and errors.rstrip().endswith("KeyboardInterrupt")
    data = make_data()
    done = condensation.Checkpoint(path, data, [tiny_recipe(outer_loops=100_000)]).progress(data)[0].state.k
    assert done > 0


def test_a_signal_makes_deadlines_pass_until_the_block_ends():
    with pytest.raises(KeyboardInterrupt), saving_on_signals():
        assert not deadline_passed(None)
        signal.raise_signal(signal.SIGINT)
        assert deadline_passed(None)
        raise OutOfTime
    assert not deadline_passed(None)
    with pytest.raises(KeyboardInterrupt), saving_on_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal takes effect at once")
    with pytest.raises(OutOfTime), saving_on_signals():
        raise OutOfTime
    handler = signal.getsignal(signal.SIGINT)
    seen = []
    try:  # a signal that is only noted, or ignored, loses nothing
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        with pytest.raises(OutOfTime), saving_on_signals():
            signal.raise_signal(signal.SIGINT)
            raise OutOfTime
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with saving_on_signals():
            signal.raise_signal(signal.SIGINT)
            assert not deadline_passed(None)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert seen.pop() == signal.SIGINT and not seen
    with saving_on_signals(enabled=False):
        seen.append(signal.getsignal(signal.SIGINT))
    thread = threading.Thread(target=lambda: saving_on_signals().__enter__() or seen.append(signal.getsignal(2)))
    thread.start()
    thread.join()
    assert seen == [handler, handler]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"snapshots": ["a"]}, ["snapshot", "'a'"]),
        ({"snapshots": [-1]}, ["snapshot", "-1"]),
        ({"snapshots": 3}, ["snapshots=3"]),
        ({"checkpoint_seconds": "x"}, ["checkpoint_seconds='x'"]),
        ({"checkpoint_seconds": -1}, ["checkpoint_seconds=-1"]),
        ({"deadline": "soon"}, ["deadline='soon'"]),
        ({"deadline": True}, ["deadline=True"]),
        ({"deadline": math.nan}, ["deadline=nan"]),
        ({"snapshots": range(10**9)}, ["1000000000 snapshots"]),
        ({"progress": "no"}, ["progress='no'"]),
    ],
)
def test_slips_are_refused_before_any_work(options, words, tmp_path, monkeypatch):
    monkeypatch.setattr(condensation._Work, "do", None)
    with refuses(ValueError, *words):
        gm.condense(make_data(), tiny_recipe(), "cpu", tmp_path / "x", **{"progress": False, **options})
    assert not list(tmp_path.iterdir())
    with refuses(ValueError, "finished=5"):
        gm.condense_together(make_data(), [tiny_recipe()], "cpu", progress=False, finished=5)
    with refuses(ValueError, "each='show'"):
        gm.condense(make_data(), tiny_recipe(), "cpu", progress=False, each="show")


def test_sizes_that_no_machine_has_are_refused():
    for call, words in {
        lambda: tiny_recipe(zeta_S=10**9): ["zeta_S"],
        lambda: gm.condense(make_data(), tiny_recipe(width=10**6), "cpu", progress=False): ["width 1000000"],
        lambda: store.sweep(make_data(), "DC", range(1, 10**9), device="cpu"): ["999999999 values"],
        lambda: gm.register_network("own", int): ["'own'", "(channels, size, n_classes)"],
        lambda: training.paths({"a": noise_set(make_data(), 1)}, None): ["NoneType"],
        lambda: training.alignment(noise_set(make_data(), 1), None): ["NoneType"],
    }.items():
        with refuses(ValueError, *words):
            call()


def test_numbers_of_numpy_are_numbers():
    data = make_data()
    S = gm.condense(
        data, tiny_recipe(), "cpu", progress=False, snapshots=np.array([1]), checkpoint_seconds=np.int64(5)
    )
    assert list(S.snapshots) == [1]
    found = gm.evaluate(S, data, n_networks=np.int64(1), seed=np.uint8(1), epochs=np.int32(1), width=4, depth=1)
    assert found.protocol["epochs"] == 1 and type(found.seed) is int


def test_more_images_per_class_than_real_ones_can_start_from_noise():
    data = make_data((2, 3))
    S = gm.condense(data, tiny_recipe(ipc=4, init="noise"), "cpu", progress=False)
    assert S.ipc == 4
    with refuses(ValueError, "ipc=4", "2", 'init="noise"'):
        gm.condense(data, tiny_recipe(ipc=4, init="real"), "cpu", progress=False)


def test_images_that_blow_up_are_reported(caplog):
    data = make_data(dtype=torch.float32)
    gm.condense(data, tiny_recipe(lr_images=1e-3), "cpu", progress=False)
    assert not caplog.text
    gm.condense(data, tiny_recipe(lr_images=1e7), "cpu", progress=False)
    assert "lower lr_images" in caplog.text


MEASURES = {
    "pulls": lambda data, S, recipe, **given: matching.pulls(data, recipe, S, **given),
    "angles": lambda data, S, recipe, **given: matching.angles(S, data, recipe, 0, **given),
    "angles_along": lambda data, S, recipe, **given: matching.angles_along({0: S, 1: S}, data, recipe, **given),
    "paths": lambda data, S, recipe, **given: training.paths(
        {"S": S}, data, steps=4, every=1, width=4, depth=2, **given
    ),
    "alignment": lambda data, S, recipe, **given: training.alignment(
        S, data, steps=4, every=1, width=4, depth=2, **given
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_measurements_stop_at_a_deadline(name, monkeypatch):
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(ipc=2, inner_loops=4, zeta_theta=1)
    measure = partial(MEASURES[name], data, noise_set(data, 2), recipe, device="cpu")
    assert len(measure(deadline=time.monotonic() + 1000))
    with refuses(ValueError, "deadline='soon'"):
        measure(deadline="soon")
    looks = 0

    def passed(deadline):
        nonlocal looks
        looks += 1
        return looks > 2

    monkeypatch.setattr(runtime, "deadline_passed", passed)
    with refuses(OutOfTime, "out of time", "run again with more time"):
        measure(deadline=1.0)
    assert looks == 3


# ---- deadlines inside an inner iteration, and other work that takes long


class After(float):
    """A deadline that passes after it was looked at so many times."""

    def __lt__(self, now):  # `now > deadline` asks here first, since this is a subclass of float
        self.looks = getattr(self, "looks", 0) + 1
        return self.looks > int(self)


LONG = {"ipc": 3, "inner_loops": 2, "zeta_theta": 2, "zeta_S": 2, "batch_theta": 5, "momentum_network": 0.9}


@pytest.mark.parametrize("steps", ["called", "recorded"])
@pytest.mark.parametrize("network", ["convnet", "convnet:norm=batch"])
def test_a_run_can_stop_anywhere_and_gives_the_same_set(network, steps, tmp_path, monkeypatch, request):
    if steps == "recorded":
        request.getfixturevalue("recorded")
    monkeypatch.setattr(condensation, "GRACE", 0)
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(network=network, **LONG)
    condense = partial(gm.condense, data, recipe, "cpu", progress=False)
    whole, inside = condense(), 0
    for looks in range(0, 60, 3):
        path = tmp_path / f"{looks}.safetensors"
        try:
            condense(path, deadline=After(looks))
        except OutOfTime:
            state = condensation.Checkpoint(path, data, [recipe]).progress(data)[0].state
            inside += state.t > 0
            assert torch.equal(condense(path).images, whole.images), looks
        else:
            break
    assert inside > 1 and looks > 10


def test_an_inner_iteration_that_would_end_soon_is_finished(tmp_path):
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(**LONG)
    with refuses(OutOfTime, "0 of 2 outer iterations", "run again to continue"):
        gm.condense(data, recipe, "cpu", tmp_path / "c", progress=False, deadline=time.monotonic() - 100)
    assert condensation.Checkpoint(tmp_path / "c", data, [recipe]).progress(data)[0].state.t == 1


@pytest.mark.parametrize("endless", [{"zeta_theta": 10**9}, {"where": "steps:1000000000"}])
def test_a_long_inner_iteration_does_not_outlast_the_deadline(endless, tmp_path, monkeypatch):
    monkeypatch.setattr(condensation, "GRACE", 0.1)
    recipe = tiny_recipe(**{**LONG, **endless})
    with refuses(OutOfTime, "0 of 2 outer iterations", "one inner iteration"):
        gm.condense(make_data(), recipe, "cpu", tmp_path / "c", progress=False, deadline=time.monotonic() + 0.1)
    assert (tmp_path / "c").is_file()


def test_every_long_work_looks_at_the_time(monkeypatch):
    data, many = make_data((12, 12, 12)), make_data((40, 40, 40))
    S = gm.coreset("random", data, 2)
    size = {"width": 4, "depth": 2, "device": "cpu", "progress": False}
    monkeypatch.setattr(maxmin, "BATCH", 50)
    works = {
        "coreset": lambda deadline: gm.coreset("herding", data, 2, epochs=10**9, deadline=deadline, **size),
        "pixels": lambda deadline: gm.coreset(
            "kcenter-pixel", data, 9, device="cpu", progress=False, deadline=deadline
        ),
        "evaluate": lambda deadline: gm.evaluate(S, data, epochs=10**9, n_networks=1, deadline=deadline, **size),
        "reach": lambda deadline: gm.reach(many, [1e-9], deadline=deadline, **size),
    }
    for name, work in works.items():
        after = After(4)
        with refuses(OutOfTime, "out of time", "more time"):
            work(after)
        assert after.looks == 5, name
        with refuses(ValueError, "deadline="):
            work(math.nan)


def test_time_is_kept_in_threads_too():
    def work(i):
        runtime.check_time()
        return i

    assert passes.map_in_threads(work, range(4), 2) == [0, 1, 2, 3]
    with refuses(OutOfTime, "out of time"), runtime.time_limit(-1.0):
        passes.map_in_threads(work, range(4), 2)
    runtime.check_time()


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_in_one_thread_ends_the_others(error, failing):
    ended = []

    def work(i):
        if i == failing:
            raise error
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                runtime.check_time()
            except OutOfTime:
                ended.append(i)
                raise
            time.sleep(0.01)

    started = time.monotonic()
    with pytest.raises(error):
        passes.map_in_threads(work, range(9), 2)
    assert time.monotonic() - started < 30 and len(ended) <= 2
    runtime.check_time()


def test_a_deadline_inside_a_comparison_decides_nothing(monkeypatch):
    monkeypatch.setattr(trust, "_RESULTS", {})
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)).eval()
    batches = list(make_data().train_images.float()[:6].reshape(3, 2, 1, 8, 8))
    with refuses(OutOfTime, "out of time"), runtime.time_limit(-1.0):
        gradients.class_gradients(network, batches)
    assert all(trust._RESULTS.values())
    assert gradients.fastest_implementation(network, batches, False, None) == "grouped"


def test_numbers_of_numpy_are_deadlines():
    runtime.check_deadline(np.int64(5))
    runtime.check_deadline(np.float32(math.inf))
    with refuses(ValueError, "deadline=", "nan"):
        runtime.check_deadline(np.float64("nan"))
