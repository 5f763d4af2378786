"""Coresets against brute force, against cases computed by hand, and against a second feature network."""

import json

import numpy as np
import pytest
import torch
from conftest import make_data
from messages import refuses
from sklearn.metrics import pairwise_distances

import gmlib as gm
from gmlib import coresets, networks
from gmlib.runtime import generator
from gmlib.speed import training

SMALL = {"width": 4, "depth": 2, "epochs": 3, "device": "cpu"}


@pytest.fixture(autouse=True)
def without_networks_of_earlier_tests(monkeypatch):
    monkeypatch.setattr(coresets, "_trained", {})


def line(*classes):
    """Data of 1x1 grey images with mean 0 and std 1: one tuple of pixel values, in sixteenths, for each class."""
    x = np.array([v for values in classes for v in values])[:, None, None] / 16
    y = [c for c, values in enumerate(classes) for _ in values]
    return gm.Data.from_arrays("line", x, y, x, y, mean=(0.0,), std=(1.0,))


def sixteenths(S):
    return (S.images.flatten() * 16).tolist()


def brute_herding(x, ipc):
    """At every step try every image: which one brings the mean of the chosen closest to the mean of all?"""
    chosen = []
    for _ in range(ipc):
        gaps = {i: np.linalg.norm(x[[*chosen, i]].mean(0) - x.mean(0)) for i in range(len(x)) if i not in chosen}
        chosen.append(min(gaps, key=gaps.get))
    return chosen


def brute_kcenter(x, ipc):
    """At every step try every image: which one is farthest from its nearest chosen neighbour?"""
    chosen = [int(pairwise_distances(x, x.mean(0, keepdims=True))[:, 0].argmin())]
    between = pairwise_distances(x)
    while len(chosen) < ipc:
        gaps = {i: min(between[i, j] for j in chosen) for i in range(len(x)) if i not in chosen}
        chosen.append(max(gaps, key=gaps.get))
    return chosen


BRUTE = {"herding": brute_herding, "kcenter": brute_kcenter}


# ---- random ------------------------------------------------------------------------------------------------


def test_random_draws_different_real_images_of_each_class():
    data = make_data((6, 4, 9))
    S = gm.coreset("random", data, 4, seed=2)
    assert S.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for c, images in enumerate(S.images.split(4)):
        assert all((data.of_class(c) == image).flatten(1).all(1).any() for image in images)
        drawn = torch.randperm(data.counts[c], generator=generator(2, "coreset", "random", c))[:4]
        assert torch.equal(images, data.of_class(c)[drawn])
    assert len({image.numpy().tobytes() for image in S.images}) == 12
    assert S.recipe == {"method": "random", "dataset": "made-up", "ipc": 4, "seed": 2}


def test_random_depends_on_the_seed():
    data = make_data((30, 30))
    assert torch.equal(gm.coreset("random", data, 3, 1).images, gm.coreset("random", data, 3, 1).images)
    assert not torch.equal(gm.coreset("random", data, 3, 1).images, gm.coreset("random", data, 3, 2).images)


@pytest.mark.parametrize("method", ["random", "herding-pixel", "kcenter-pixel"])
def test_the_set_does_not_share_memory_with_the_data(method):
    data = make_data((3, 3))
    S = gm.coreset(method, data, 3)
    before = data.train_images.clone()
    S.images.zero_()
    assert torch.equal(data.train_images, before)


def test_random_draws_images_as_condensation_does():
    data = make_data((7, 7))
    drawn = data.of_class(1)[coresets.random_choice(data.of_class(1), 3, generator(4))]
    assert torch.equal(drawn, data.of_class(1)[torch.randperm(7, generator=generator(4))[:3]])
    assert torch.equal(drawn, data.sample(1, 3, generator(4))), "initial images with init='real'"


# ---- herding and k-centre, by distances --------------------------------------------------------------------


@pytest.mark.parametrize("method", BRUTE)
@pytest.mark.parametrize(("n", "d"), [(1, 3), (7, 1), (20, 2), (30, 50)])
def test_the_choice_is_that_of_brute_force(method, n, d):
    x = torch.randn(n, d, generator=generator(n), dtype=torch.float64) * 3 + 5
    assert coresets.CORESETS[method](x, n, None).tolist() == BRUTE[method](x.numpy(), n)
    rounded = x.float()  # rows may have any shape and precision
    expected = BRUTE[method](rounded.double().numpy(), n)
    assert coresets.CORESETS[method](rounded.reshape(n, d, 1, 1), n, None).tolist() == expected


@pytest.mark.parametrize("method", BRUTE)
def test_the_choice_in_each_class_is_that_of_brute_force(method):
    data = make_data((9, 6, 12), shape=(3, 4, 4))
    S = gm.coreset(f"{method}-pixel", data, 5)
    for c, images in enumerate(S.images.split(5)):
        expected = BRUTE[method](data.of_class(c).flatten(1).numpy(), 5)
        assert torch.equal(images, data.of_class(c)[expected])
    assert S.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert S.recipe == {"method": f"{method}-pixel", "dataset": "made-up", "ipc": 5, "seed": 0, "space": "pixel"}
    alias = gm.coreset(method, data, 5, seed=3, space="pixel")
    assert torch.equal(alias.images, S.images)
    assert alias.recipe == {"method": method, "dataset": "made-up", "ipc": 5, "seed": 3, "space": "pixel"}


def test_herding_by_hand():
    # mean 4: first 4; then (4+2)/2 = 3 is closer than (4+0)/2 = 2 and (4+10)/2 = 7; then (4+2+10)/3 than (4+2+0)/3
    # mean 9: 7 is closest, then (7+15)/2 = 11 beats (7+5)/2 = 6, and 5 is left
    data = line((0, 2, 4, 10), (15, 7, 5))
    assert sixteenths(gm.coreset("herding", data, 3, space="pixel")) == [4, 2, 10, 7, 15, 5]


def test_kcenter_by_hand():
    # mean 4: 3 is closest, then 14 is farthest from it, then 0; 1 and 2 are both 1 away from the chosen, 1 is first
    # mean 7: 7 itself, then 16 (9 away, 0 only 7), then 0
    data = line((0, 1, 2, 3, 14), (7, 0, 16, 5, 7))
    assert sixteenths(gm.coreset("kcenter", data, 4, space="pixel")) == [3, 14, 0, 1, 7, 16, 0, 5]


def test_the_first_of_equals_is_taken():
    cross = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    # (0, -1) brings the mean back to 0, then the others are equal
    assert coresets.herding(cross, 4).tolist() == [0, 3, 1, 2]
    assert coresets.kcenter(cross, 4).tolist() == [0, 3, 1, 2]  # (0, -1) is 2 away from (0, 1), the others sqrt(2)
    centre = torch.tensor([[0.0, 2.0], [0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, -2.0], [0.0, 0.0]])
    assert coresets.herding(centre, 3).tolist() == [1, 5, 0]
    assert coresets.kcenter(centre, 4).tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("method", BRUTE)
def test_each_of_equal_images_is_taken_once(method):
    assert coresets.CORESETS[method](torch.ones(6, 3), 6, None).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("method", coresets.CORESETS)
def test_a_whole_class_can_be_chosen(method):
    data = make_data((6, 6), dtype=torch.float32)
    S = gm.coreset(method, data, 6, **SMALL)
    for c, images in enumerate(S.images.split(6)):
        assert {i.numpy().tobytes() for i in images} == {i.numpy().tobytes() for i in data.of_class(c)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["herding-pixel", "kcenter-pixel"])
def test_a_gpu_chooses_the_same_images(method, digits):
    S = gm.coreset(method, digits.to("cuda"), 10)
    assert S.images.is_cuda and torch.equal(S.images.cpu(), gm.coreset(method, digits, 10, device="cpu").images)


# ---- features of a network ---------------------------------------------------------------------------------


def test_features_are_the_inputs_of_the_last_linear_layer(monkeypatch):
    monkeypatch.setattr(coresets, "FEATURE_BATCH", 4)
    network = networks.build("convnet", (3, 8, 8), 5, generator=generator(0), width=6, depth=2)
    x = torch.randn(10, 3, 8, 8, generator=generator(1))
    f = coresets.features(network, x)
    assert f.shape == (10, 6 * 2 * 2) and not f.requires_grad
    body, last = network[:-1], network[-1]
    assert torch.allclose(f, body(x), atol=1e-6)
    assert torch.allclose(f @ last.weight.T + last.bias, network(x), atol=1e-6)
    assert not last._forward_pre_hooks  # the hook is removed


@pytest.mark.parametrize("method", BRUTE)
def test_distances_are_between_features_of_a_network_trained_on_the_data(method):
    data = make_data((9, 14))
    S = gm.coreset(method, data, 5, seed=7, **SMALL)
    rng = generator(7, "coreset network")
    network = networks.build("convnet", (1, 8, 8), 2, generator=rng, width=4, depth=2, dtype=torch.float64)
    rng = generator(7, "coreset batches")
    training.fit(network, data.train_images, data.train_labels, epochs=3, rng=rng, batch=64)
    with torch.no_grad():
        x = [network[:-1](data.of_class(c)).numpy() for c in range(2)]
    expected = [data.of_class(c)[BRUTE[method](x[c], 5)] for c in range(2)]
    assert torch.equal(S.images, torch.cat(expected))
    assert not torch.equal(S.images, gm.coreset(method, data, 5, space="pixel").images)  # the space matters here
    assert S.recipe == {
        "method": method,
        "dataset": "made-up",
        "ipc": 5,
        "seed": 7,
        "space": "network",
        "network": "convnet",
        "width": 4,
        "depth": 2,
        "epochs": 3,
    }
    assert coresets.recipe_of(method, data, 5, 7, width=4, depth=2, epochs=3) == S.recipe


def test_the_feature_network_learns_the_digits(digits):
    recipe = coresets.recipe_of("herding", digits, 1, width=32, depth=2)
    network = coresets.feature_network(digits, recipe, torch.device("cpu"))
    assert not network.training
    with torch.no_grad():
        assert (network(digits.train_images).argmax(1) == digits.train_labels).float().mean() > 0.97


def test_a_feature_network_is_trained_once_and_the_last_few_are_kept(monkeypatch):
    trained, fit = [], training.fit
    monkeypatch.setattr(coresets, "fit", lambda f, *args, **options: trained.append(f) or fit(f, *args, **options))
    data = make_data((9, 9))
    first = gm.coreset("herding", data, 2, **SMALL)
    assert torch.equal(gm.coreset("herding", make_data((9, 9)), 3, **SMALL).images[:2], first.images[:2])
    gm.coreset("kcenter", data, 1, **SMALL)
    gm.coreset("kcenter", data, 1, space="pixel")
    assert len(trained) == 1, "for another ipc, another coreset, and an equal copy of the data"
    for change in ({"seed": 1}, {"width": 5}, {"depth": 1}, {"epochs": 2}):
        gm.coreset("herding", data, 2, **{**SMALL, **change})
    gm.coreset("herding", make_data((9, 9), seed=5), 2, **SMALL)
    gm.coreset("herding", data.to(dtype=torch.float32), 2, **SMALL)
    assert len(trained) == 7
    for seed in range(2, 5):
        gm.coreset("herding", data, 2, seed, **SMALL)
    assert len(coresets._trained) == coresets.KEPT == 8 and len(trained) == 10
    again = gm.coreset("herding", data, 2, **SMALL)
    assert len(trained) == 11, "the first network was dropped, and is trained again with the same result"
    assert torch.equal(again.images, first.images)


def test_a_registered_network_gives_features(monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", dict(networks.NETWORKS))
    data = make_data((9, 9), shape=(1, 2, 2), dtype=torch.float32)

    def plain(channels, size, n_classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size * size, n_classes))

    networks.register("mine", plain)
    S = gm.coreset("herding", data, 3, network="mine")
    assert torch.equal(S.images, gm.coreset("herding-pixel", data, 3).images)  # its features are the pixels
    networks.register("mine", lambda *given: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Tanh(), plain(*given)))
    assert not torch.equal(S.images, gm.coreset("herding", data, 3, network="mine").images)
    networks.register("mine", lambda *given: torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten()))
    with refuses(ValueError, "'mine'", "no linear layer"):
        gm.coreset("herding", data, 3, network="mine")


def test_the_global_random_state_is_neither_used_nor_changed():
    data = make_data((9, 9))
    torch.manual_seed(1)
    one, state = gm.coreset("herding", data, 3, **SMALL), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    coresets._trained.clear()
    torch.manual_seed(2)
    assert torch.equal(gm.coreset("herding", data, 3, **SMALL).images, one.images)


def test_progress_is_shown_only_on_request(capsys):
    data = make_data((5, 5))
    gm.coreset("herding", data, 2, **SMALL)
    assert capsys.readouterr().err == ""
    coresets._trained.clear()
    gm.coreset("herding", data, 2, progress=True, **SMALL)
    shown = capsys.readouterr().err
    assert "feature network: 100%" in shown and "herding: 100%" in shown


def test_a_coreset_by_features_can_be_stored(tmp_path):
    S = gm.coreset("kcenter", make_data((5, 5)), 2, **SMALL)
    S.save(tmp_path / "set.safetensors")
    assert gm.SyntheticSet.load(tmp_path / "set.safetensors").recipe == S.recipe


# ---- bad values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["random", "herding", "kcenter-pixel"])
@pytest.mark.parametrize("ipc", [0, -1, 5, 1.5, True, None, "1", [1], 10**400])
def test_ipc_must_fit_the_smallest_class(method, ipc):
    with refuses(ValueError, f"ipc={ipc!r}"[:50], "from 1 to 4"):
        gm.coreset(method, make_data((6, 4)), ipc)


def test_numpy_numbers_become_python_numbers():
    numbers = {
        "ipc": np.int64(1),
        "seed": np.int32(3),
        "epochs": np.int64(1),
        "width": np.uint8(4),
        "depth": torch.tensor(2),
    }
    recipe = gm.coreset("herding", make_data((6, 4), dtype=torch.float32), **numbers).recipe
    assert json.loads(json.dumps(recipe)) == recipe and (recipe["seed"], recipe["width"]) == (3, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"method": "best"}, ["unknown coreset 'best'", "random, herding, herding-pixel, kcenter, kcenter-pixel"]),
        ({"space": "fourier"}, ["unknown space 'fourier'", "network, pixel"]),
        ({"method": "random", "space": "pixel"}, ["'random'", "space='pixel'"]),
        ({"method": "herding-pixel", "space": "network"}, ["'herding-pixel'", "space='network'"]),
        ({"network": "vit"}, ["unknown network 'vit'"]),
        ({"depth": 4}, ["8x8", "depth 4"]),
        ({"width": 0}, ["width=0", "at least 1"]),
        ({"epochs": 2.5}, ["epochs=2.5"]),
        ({"epochs": True}, ["epochs=True"]),
        ({"seed": 1.7}, ["seed=1.7", "at least 0"]),
        ({"seed": None}, ["seed=None"]),
        ({"width": "4"}, ["width='4'"]),
        ({"epochs": [3]}, ["epochs=[3]"]),
        ({"network": None}, ["unknown network None"]),
        ({"network": ["convnet"]}, ["unknown network"]),
        ({"method": None}, ["unknown coreset None"]),
        ({"method": b"random"}, ["unknown coreset b'random'"]),
        ({"space": 1}, ["unknown space 1"]),
        ({"device": "gpu"}, ["device 'gpu'"]),
        ({"device": 1.5}, ["device 1.5"]),
        ({"data": "herding"}, ["Data", "str"]),
    ],
)
def test_bad_values_are_refused_before_any_work(call, words, monkeypatch):
    monkeypatch.setattr(coresets, "fit", None)
    with refuses(ValueError, *words):
        gm.coreset(**{"method": "kcenter", "data": make_data((6, 4)), "ipc": 1, **call})


@pytest.mark.parametrize("method", coresets.CORESETS)
@pytest.mark.parametrize("ipc", [0, -1, 7, 1.5, None, True])
def test_no_more_rows_are_chosen_than_there_are(method, ipc):
    with refuses(ValueError, f"ipc={ipc}", "at least 1 and less than 7"):
        coresets.CORESETS[method](torch.rand(6, 3), ipc, generator(0))


def test_choices_need_rows_and_a_random_stream():
    for x in (None, [[1.0]], np.ones((6, 3)), torch.ones(6)):
        for choice in coresets.CORESETS.values():
            with refuses(ValueError, "tensor", "row"):
                choice(x, 1, generator(0))
    with refuses(ValueError, "torch.Generator"):
        coresets.random_choice(torch.rand(6, 3), 1, None)


def test_features_need_a_network_and_a_recipe_of_one():
    data = make_data((6, 4))
    with refuses(ValueError, "str", "Tensor"):
        coresets.features("convnet", data.train_images)
    recipe = coresets.recipe_of("random", data, 1)
    with refuses(ValueError, "recipe_of"):
        coresets.feature_network(data, recipe, "cpu")


def test_features_of_a_network_that_diverged_are_refused(monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", dict(networks.NETWORKS))

    class Diverged(torch.nn.Flatten):
        def forward(self, x):
            return super().forward(x) * torch.inf

    networks.register("mine", lambda c, size, n: torch.nn.Sequential(Diverged(), torch.nn.Linear(c * size * size, n)))
    with refuses(ValueError, "diverged", "space='pixel'"):
        gm.coreset("herding", make_data((6, 4)), 1, network="mine", epochs=1)
