"""The same sets and accuracies, whatever state the caller has left torch in, and that state afterwards."""

import sys
from contextlib import contextmanager

import pytest
import torch
from conftest import make_data, tiny_recipe

import gmlib as gm
from gmlib import networks
from gmlib.runtime import generator, progress_bar


@contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": float64_by_default,
    "device": lambda: torch.device("meta"),
}


def state():
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(), torch.get_default_device(),
    )  # fmt: skip


def everything(data):
    """A set, a coreset, the accuracies of networks, distances to traps, and weights."""
    S = gm.condense(data, tiny_recipe(augment="dsa"), device="cpu", progress=False)
    small = {"width": 4, "depth": 2, "device": "cpu"}
    herded = gm.coreset("herding", data, 1, epochs=1, **small)
    e = gm.evaluate(S, data, n_networks=2, epochs=2, progress=False, **small)
    reached = gm.reach(S, [0.5], 1, data=data, max_steps=3, progress=False, **small)
    network = networks.build("convnet", (1, 8, 8), 3, generator=generator(0, "test"), width=4, depth=2)
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    return S.images, herded.images, weights, [*e.accuracies, *reached["distance"].fillna(-1)]


@pytest.mark.parametrize("name", STATES)
def test_the_callers_state_changes_nothing(name):
    data = make_data(dtype=torch.float32)
    usual = everything(data)
    with STATES[name]():
        before = state()
        digits = gm.load_data("digits")
        found = everything(data)
        assert state() == before
    assert digits.train_images.dtype == torch.float32 and digits.train_images.device.type == "cpu"
    for ours, theirs in zip(found[:3], usual[:3], strict=True):
        assert ours.dtype == theirs.dtype == torch.float32 and torch.equal(ours, theirs)
    assert found[3] == usual[3]


def test_a_stream_that_can_only_write_takes_a_progress_bar(monkeypatch):
    class Writer:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stderr", Writer())
    for show in (True, False):
        with progress_bar("runs", 2, "run", show) as bar:
            bar.update(2)
    assert "2/2" in sys.stderr.text
