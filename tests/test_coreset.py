"""Random coresets: real images, of the right class, without repeats."""

import pytest
import torch
from conftest import make_data

import gmlib as gm


def test_random_takes_different_real_images_of_each_class():
    data = make_data((6, 4, 9))
    S = gm.coreset("random", data, 4, seed=2)
    assert S.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for c, images in enumerate(S.images.split(4)):
        assert all((data.of_class(c) == image).flatten(1).all(1).any() for image in images)
    assert len({image.numpy().tobytes() for image in S.images}) == 12
    assert S.recipe == {"method": "random", "dataset": "made-up", "ipc": 4, "seed": 2}


def test_the_seed_decides():
    data = make_data((30, 30))
    assert torch.equal(gm.coreset("random", data, 3, 1).images, gm.coreset("random", data, 3, 1).images)
    assert not torch.equal(gm.coreset("random", data, 3, 1).images, gm.coreset("random", data, 3, 2).images)


def test_the_set_does_not_share_memory_with_the_data():
    data = make_data((3, 3))
    S = gm.coreset("random", data, 3)
    before = data.train_images.clone()
    S.images.zero_()
    assert torch.equal(data.train_images, before)


@pytest.mark.parametrize("ipc", [0, -1, 5, 1.5, True])
def test_ipc_outside_the_smallest_class(ipc):
    with pytest.raises(ValueError, match="does not fit made-up: give a whole number from 1 to 4"):
        gm.coreset("random", make_data((6, 4)), ipc)


def test_unknown_coreset():
    with pytest.raises(ValueError, match="unknown coreset 'best': choose from random"):
        gm.coreset("best", make_data((6, 4)), 1)
