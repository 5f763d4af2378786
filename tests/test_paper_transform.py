"""`gm.augment.paper_transform`, for training loops outside gmlib: the same operation as in phase 2."""

import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_data
from messages import refuses
from torch.utils.data import DataLoader, TensorDataset

import gmlib as gm
from gmlib import evaluation, networks
from gmlib.augment import apply_operations
from gmlib.runtime import generator

SMALL = {"width": 4, "depth": 2}


@pytest.fixture
def data():
    return replace(make_data((4, 4, 4), shape=(1, 12, 12), dtype=torch.float32), name="MNIST")


def test_one_image_can_be_varied_too(data):
    x = data.train_images[0]
    vary = [gm.augment.paper_transform("MNIST", rng=generator(0, "x")) for _ in range(2)]
    assert torch.equal(vary[0](x), vary[1](x[None])[0]) and vary[0](x).shape == x.shape
    assert not torch.equal(vary[0](x), x)


def test_a_plain_loop_trains_the_network_that_evaluate_trains(data, monkeypatch):
    """With the generators of network 0, the weights are the same."""
    x, y = data.train_images, data.train_labels
    trained = []
    monkeypatch.setattr(
        evaluation, "predict", lambda network, x: trained.append(network) or torch.zeros(len(x), dtype=int)
    )
    e = gm.evaluate(data, data, n_networks=1, epochs=6, device="cpu", progress=False, **SMALL)
    assert e.protocol["augment"] == "shift+stretch+turn"

    rng = generator(0, "evaluate batches", 0)
    vary = gm.augment.paper_transform("MNIST", rng=rng)
    network = networks.build("convnet", data.shape, 3, generator=generator(0, "evaluate", 0), **SMALL)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for epoch in range(6):
        if epoch == 3:
            optimiser.param_groups[0]["lr"] = 0.001
        varied = vary(x)
        order = torch.randperm(len(y), generator=rng)
        optimiser.zero_grad()
        F.cross_entropy(network(varied[order]), y[order]).backward()
        optimiser.step()
    for ours, theirs in zip(network.parameters(), trained[0].parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_every_call_varies_anew_and_a_seed_repeats_it(data):
    x, vary = data.train_images, gm.augment.paper_transform("MNIST")
    torch.manual_seed(5)
    first, second = vary(x), vary(x)
    torch.manual_seed(5)
    assert torch.equal(vary(x), first) and not torch.equal(first, second) and not torch.equal(first, x)
    assert first.shape == x.shape and first.dtype == x.dtype
    rng = torch.Generator().manual_seed(5)
    expected = apply_operations(x, ("shift", "stretch", "turn"), [torch.Generator().manual_seed(5)])[0]
    state = torch.get_rng_state()
    assert torch.equal(gm.augment.paper_transform("MNIST", rng=rng)(x), expected)
    assert torch.equal(torch.get_rng_state(), state), "a generator of one's own leaves torch's alone"


def test_batches_of_a_loader(data):
    vary = pickle.loads(pickle.dumps(gm.augment.paper_transform("MNIST")))  # as for worker processes
    loader = DataLoader(TensorDataset(data.train_images, data.train_labels), batch_size=5)
    assert [len(vary(images)) for images, _ in loader] == [5, 5, 2]


def test_other_data_sets_have_no_augmentation_without_batchnorm(data):
    x = data.train_images
    assert torch.equal(gm.augment.paper_transform("FashionMNIST")(x), x)
    torch.manual_seed(0)
    varied = gm.augment.paper_transform("FashionMNIST", has_batchnorm=True)(x)
    noise = (varied - x).abs().amax((1, 2, 3)) < 0.01
    assert 0 < noise.sum() < len(x), "some get a little noise, the others are shifted"


def test_another_spelling_is_refused():
    with refuses(ValueError, "'mnist'", "'MNIST'"):
        gm.augment.paper_transform("mnist")
