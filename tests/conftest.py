"""Small data and recipes that many tests share."""

import pytest
import torch

from gmlib import Data, Recipe, load_data
from gmlib.speed import recording

# The tensors here are tiny: a second thread gains nothing, and where tests run side by side it costs.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread():
    """Some tests choose another number of threads, and a campaign leaves its own: each leaves one to the next."""
    yield
    torch.set_num_threads(1)


def make_data(counts=(12, 12, 12), shape=(1, 8, 8), n_test=9, seed=0, dtype=torch.float64) -> Data:
    """Made-up images of classes that differ in brightness and structure; `counts` training images of each class."""
    rng = torch.Generator().manual_seed(seed)
    pattern = torch.rand(len(counts), *shape, generator=rng)

    def draw(labels):
        return (0.7 * pattern[labels] + 0.3 * torch.rand(len(labels), *shape, generator=rng)).clamp(0, 1)

    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y_test = torch.arange(n_test) % len(counts)
    return Data.from_arrays("made-up", draw(y), y, draw(y_test), y_test).to(dtype=dtype)


def tiny_recipe(**overrides) -> Recipe:
    """A recipe for `make_data` that takes milliseconds."""
    tiny = {
        "dataset": "made-up",
        "width": 4,
        "depth": 2,
        "outer_loops": 2,
        "batch_real": 5,
        "how": "d1",
        "where": "fixed",
    }
    return Recipe(**{**tiny, **overrides})


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data("digits")


class Echo:
    """Stands in for a CUDA graph on a CPU: a replay calls the function again, on its own inputs, into its first outputs."""

    made = 0

    def __init__(self, function, inputs, device):
        self.function, self.inputs, self.outputs = function, [x.detach().clone() for x in inputs], None
        Echo.made += 1

    def __call__(self, *inputs):
        for here, x in zip(self.inputs, inputs, strict=True):
            here.copy_(x)
        new = self.function(*self.inputs)
        if self.outputs is None:
            self.outputs = new
        for here, value in zip(tensors(self.outputs), tensors(new), strict=True):
            here.data.copy_(value)
        return self.outputs


def tensors(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for part in outputs or () for tensor in tensors(part)]


@pytest.fixture
def recorded(monkeypatch):
    """Steps are recorded and replayed as on CUDA, by graphs that are made up: what is left of an earlier call shows."""
    monkeypatch.setattr(recording, "recordable", lambda device: True)
    monkeypatch.setattr(recording, "Graph", Echo)
    monkeypatch.setattr(Echo, "made", 0)
    return Echo
