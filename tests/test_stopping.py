"""Ctrl-C and SIGTERM save the work first, and slips in the arguments are refused before any work."""

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

import gmlib as gm
from gmlib import condensation, runtime
from gmlib.analysis import matching, training
from gmlib.maxmin import noise_set
from gmlib.runtime import OutOfTime, deadline_passed, saving_on_signals

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
    ],
)
def test_slips_are_refused_before_any_work(options, words, tmp_path, monkeypatch):
    monkeypatch.setattr(condensation._Work, "do", None)
    with refuses(ValueError, *words):
        gm.condense(make_data(), tiny_recipe(), "cpu", tmp_path / "x", progress=False, **options)
    assert not list(tmp_path.iterdir())
    with refuses(ValueError, "finished=5"):
        gm.condense_together(make_data(), [tiny_recipe()], "cpu", progress=False, finished=5)


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
    with refuses(ValueError, "ipc=4", "2"):
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
    answers = iter([False, False, True])
    monkeypatch.setattr(runtime, "deadline_passed", lambda deadline: next(answers))
    with refuses(OutOfTime, "out of time after 2 steps of a measurement, none saved: run again with more time"):
        measure(deadline=1.0)
