"""ConvNet's shapes and parameter counts, worked out by hand, and its seeding."""

import pytest
import torch

from gmlib import networks
from gmlib.recipe import generator


def build(shape, n_classes=10, **size):
    return networks.build("convnet", shape, n_classes, generator=generator(0, "test"), **size)


@pytest.mark.parametrize(
    ("shape", "size", "parameters"),
    [
        # conv 3*3*in*w + w, norm 2w, linear w*side^2*10 + 10
        ((3, 32, 32), {}, (27 * 128 + 128 + 256) + 2 * (9 * 128 * 128 + 128 + 256) + 128 * 16 * 10 + 10),
        ((1, 28, 28), {}, (9 * 128 + 128 + 256) + 2 * (9 * 128 * 128 + 128 + 256) + 128 * 16 * 10 + 10),
        ((1, 8, 8), {"width": 4, "depth": 2}, (9 * 4 + 4 + 8) + (9 * 16 + 4 + 8) + 4 * 4 * 10 + 10),
        ((3, 64, 64), {"width": 8, "depth": 4}, (27 * 8 + 8 + 16) + 3 * (9 * 64 + 8 + 16) + 8 * 16 * 10 + 10),
        ((3, 20, 20), {"width": 8, "depth": 1}, (27 * 8 + 8 + 16) + 8 * 100 * 10 + 10),
    ],
)
def test_parameter_counts_by_hand(shape, size, parameters):
    network = build(shape, **size)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(2, *shape)).shape == (2, 10)


def test_each_image_is_normalised_by_itself():
    """Instance norm: an image's scores do not depend on its batch."""
    network = build((1, 8, 8), width=8, depth=2)
    x = torch.randn(5, 1, 8, 8, generator=generator(1, "x"))
    assert torch.allclose(network(x)[2:3], network(x[2:3]), atol=1e-6)


def test_only_weights_with_rows_are_matched():
    names = [name for name, _ in networks.matched(build((1, 8, 8), width=8, depth=2))]
    assert names == ["0.weight", "4.weight", "9.weight"]


def test_seeding_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b = build((1, 8, 8), width=8, depth=2), build((1, 8, 8), width=8, depth=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    other = networks.build("convnet", (1, 8, 8), 10, generator=generator(1, "test"), width=8, depth=2)
    assert not torch.equal(next(a.parameters()), next(other.parameters()))
    double = build((1, 8, 8), width=8, depth=2, dtype=torch.float64)
    assert torch.equal(next(double.parameters()).float(), next(a.parameters())), "the same weights in every dtype"


@pytest.mark.parametrize(
    ("shape", "size", "sentence"),
    [
        ((1, 8, 8), {"depth": 4}, "images of 8x8 pixels are too small for a ConvNet of depth 4: use depth 3 or less"),
        ((3, 32, 24), {}, "images of 32x24 pixels are not square"),
    ],
)
def test_images_that_do_not_fit(shape, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(shape, **size)


def test_unknown_network():
    with pytest.raises(ValueError, match="unknown network 'vit': choose from convnet"):
        networks.build("vit", (1, 8, 8), 10, generator=generator(0))
