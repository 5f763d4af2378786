"""Small data and recipes that many tests share."""

import pytest
import torch

from gmlib import Data, Recipe, load_data

# The tensors here are tiny: a second thread gains nothing, and where tests run side by side it costs.
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
    tiny = {"dataset": "made-up", "width": 4, "depth": 2, "outer_loops": 2, "batch_real": 5, "how": "d1", "where": "fixed"}
    return Recipe(**{**tiny, **overrides})


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data("digits")
