"""Networks: shapes and parameter counts by hand, names, seeding, BatchNorm's statistics, and training."""

import contextlib
import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from gmlib import networks
from gmlib.runtime import generator
from gmlib.speed import gradients, training

# For each network: its smallest size of colour images, and its parameters for 1x28x28 and 3x32x32 with ten classes.
# conv: k*k*in*out + out, linear: in*out + out, norm: 2*out
CONVNET = 2 * (9 * 128 * 128 + 128 + 256) + 128 * 4 * 4 * 10 + 10  # all but the first block
MLP = (128 * 128 + 128) + (128 * 10 + 10)  # all but the first layer
# after the first convolution, whose output is 28x28 for both (1x28x28 is padded): 28 -> 14 -> 10 -> 5
LENET = (25 * 6 * 16 + 16) + (16 * 5 * 5 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
ALEXNET = (
    (25 * 128 * 192 + 192) + (9 * 192 * 256 + 256) + (9 * 256 * 192 + 192) + (9 * 192 * 192 + 192)
    + 192 * 4 * 4 * 10 + 10
)  # fmt: skip
VGG = (
    (9 * 64 * 128 + 3 * 128) + (9 * 128 * 256 + 3 * 256) + (9 * 256 * 256 + 3 * 256)
    + (9 * 256 * 512 + 3 * 512) + 3 * (9 * 512 * 512 + 3 * 512) + 512 * 10 + 10
)  # fmt: skip
# Blocks have no bias. A stage of `out` channels has four 3x3 convolutions, the first from out / 2 channels, a 1x1
# shortcut from out / 2, and five norms: 9*out*out/2 + 3*9*out*out + out*out/2 + 5*2*out = 32*out*out + 10*out. The
# first stage (64 to 64 channels) has no shortcut: 4*9*64*64 + 4*2*64. The norm of the stem: 2*64.
RESNET = 2 * 64 + (36 * 64 * 64 + 8 * 64) + sum(32 * out * out + 10 * out for out in (128, 256, 512))
TABLE_4 = {
    "convnet": (8, 9 * 128 + 128 + 256 + CONVNET, 27 * 128 + 128 + 256 + CONVNET),
    "mlp": (8, 784 * 128 + 128 + MLP, 3072 * 128 + 128 + MLP),
    "lenet": (16, 25 * 6 + 6 + LENET, 75 * 6 + 6 + LENET),
    "alexnet": (8, 25 * 128 + 128 + ALEXNET, 75 * 128 + 128 + ALEXNET),
    "vgg11": (32, 9 * 64 + 3 * 64 + VGG, 27 * 64 + 3 * 64 + VGG),
    "vgg11bn": (32, 9 * 64 + 3 * 64 + VGG, 27 * 64 + 3 * 64 + VGG),
    # 28 -> 14 -> 7 -> 4 and 32 -> 16 -> 8 -> 4, the average pool leaves 1x1
    "resnet18": (25, 9 * 64 + RESNET + 512 * 10 + 10, 27 * 64 + RESNET + 512 * 10 + 10),
    # pools round down: 28 -> 14 -> 7 -> 3
    "resnet18bn": (8, 9 * 64 + RESNET + 512 * 9 * 10 + 10, 27 * 64 + RESNET + 512 * 16 * 10 + 10),
}
SMALLEST = [(name, smallest) for name, (smallest, _, _) in TABLE_4.items()]
# Published totals for colour images (and of LeNet-5 for MNIST).
KNOWN = {("lenet", 1): 61_706, ("lenet", 3): 62_006, ("vgg11bn", 3): 9_231_114, ("resnet18", 3): 11_173_962}

VARIANTS = [
    f"convnet:norm={norm},pooling={pooling},activation={activation}"
    for norm, pooling, activation in itertools.product(
        ("none", "batch", "layer", "instance", "group"), ("none", "max", "avg"), ("sigmoid", "relu", "leaky")
    )
]


def build(shape, n_classes=10, name="convnet", seed=0, **size):
    return networks.build(name, shape, n_classes, generator=generator(seed, "test"), **size)


def count(network):
    return sum(p.numel() for p in network.parameters())


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed, "noise"), dtype=dtype)


@pytest.fixture
def registry():
    """Removes what a test registers."""
    known = dict(networks.NETWORKS)
    yield
    networks.NETWORKS.clear()
    networks.NETWORKS.update(known)


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


def test_each_image_is_normalised_separately():
    """With instance norm, scores of an image do not depend on its batch."""
    network = build((1, 8, 8), width=8, depth=2)
    x = torch.randn(5, 1, 8, 8, generator=generator(1, "x"))
    assert torch.allclose(network(x)[2:3], network(x[2:3]), atol=1e-6)


def test_only_weights_with_two_or_more_dimensions_are_matched():
    names = [name for name, _ in networks.matched(build((1, 8, 8), width=8, depth=2))]
    assert names == ["0.weight", "4.weight", "9.weight"]


def test_the_seed_decides_the_weights_and_the_global_random_state_stays():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b = build((1, 8, 8), width=8, depth=2), build((1, 8, 8), width=8, depth=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    other = networks.build("convnet", (1, 8, 8), 10, generator=generator(1, "test"), width=8, depth=2)
    assert not torch.equal(next(a.parameters()), next(other.parameters()))
    double = build((1, 8, 8), width=8, depth=2, dtype=torch.float64)
    assert torch.equal(next(double.parameters()).float(), next(a.parameters())), "weights are the same in every dtype"


@pytest.mark.parametrize(
    ("shape", "size", "word"),
    [
        ((1, 8, 8), {"depth": 4}, "depth 3"),
        ((3, 32, 6), {}, "depth 2"),
        ((3, 1, 24), {}, "larger"),
    ],
)
def test_images_that_do_not_fit(shape, size, word):
    with pytest.raises(ValueError, match=word):
        build(shape, **size)


# Height and width of the last feature map of images 33x65, after rounding down at every pool.
RECTANGLES = {
    "convnet": 128 * 4 * 8,
    "mlp": 3 * 33 * 65,
    "lenet": 16 * 5 * 13,
    "alexnet": 192 * 4 * 8,
    "vgg11": 512 * 1 * 2,
    "vgg11bn": 512 * 1 * 2,
    "resnet18": 512 * 1 * 2,
    "resnet18bn": 512 * 4 * 8,
}


@pytest.mark.parametrize("name", RECTANGLES)
def test_rectangular_images_fit_every_network(name):
    for sides in ((33, 65), (65, 33)):
        network = build((3, *sides), n_classes=5, name=name)
        linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
        assert linear[0].in_features == RECTANGLES[name]
        with torch.no_grad():
            assert network(noise(2, 3, *sides)).shape == (2, 5)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "leaky" in name])
def test_rectangular_images_fit_every_convnet(name):
    network = build((1, 6, 10), n_classes=3, name=name, width=4, depth=2)
    assert network(noise(2, 1, 6, 10)).shape == (2, 3)
    assert not any(isinstance(m, networks.HalvingPool) for m in network), "it is for squares"


def test_rectangular_images_that_do_not_fit():
    for name, words in (("lenet", "12x40"), ("vgg11", "12x40"), ("convnet", "depth 3"), ("resnet18", "25x25")):
        with pytest.raises(ValueError, match=words):
            build((3, 12, 40), name=name, depth=4)


def test_unknown_network():
    with pytest.raises(ValueError, match=r"'vit'.*convnet"):
        networks.build("vit", (1, 8, 8), 10, generator=generator(0))


# ---- the networks of Table 4 -----------------------------------------------------------------------------


def test_table_4_lists_every_network():
    assert set(TABLE_4) == set(networks.NETWORKS)


@pytest.mark.parametrize("name", TABLE_4)
def test_parameter_counts_of_table_4_by_hand(name):
    _, grey, colour = TABLE_4[name]
    for shape, expected in (((1, 28, 28), grey), ((3, 32, 32), colour)):
        network = build(shape, name=name)
        assert count(network) == expected == KNOWN.get((name, shape[0]), expected)
        with torch.no_grad():
            assert network(noise(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(("name", "smallest"), SMALLEST)
def test_sizes_from_the_smallest_to_64(name, smallest):
    for channels, size in {(3, smallest), (1, smallest), (1, 28), (3, 28), (3, 33), (3, 64)}:
        if size >= smallest or (channels, size) == (1, 28):
            network = build((channels, size, size), n_classes=3, name=name)
            with torch.no_grad():
                assert network(noise(2, channels, size, size)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("lenet", (3, 15, 15), ["15x15", "LeNet", "16x16"]),
        ("alexnet", (1, 7, 7), ["7x7", "AlexNet", "8x8"]),
        ("vgg11", (3, 31, 31), ["31x31", "VGG-11", "32x32"]),
        ("vgg11bn", (3, 28, 28), ["28x28", "VGG-11", "32x32"]),
        ("vgg11", (1, 8, 8), ["8x8", "VGG-11", "32x32", "28x28"]),
        ("resnet18", (1, 24, 24), ["24x24", "ResNet-18", "25x25"]),
        ("resnet18bn", (1, 7, 7), ["7x7", "ResNet-18", "8x8"]),
        ("convnet:pooling=max", (1, 8, 8), ["8x8", "depth 4", "depth 3"]),
        ("convnet:norm=group", (1, 16, 16), ["6", "multiple of 4"]),
    ],
)
def test_errors_say_which_sizes_fit(name, shape, words):
    with pytest.raises(ValueError) as error:
        build(shape, name=name, width=6, depth=4)
    assert all(word in str(error.value) for word in words)
    assert ("padded" in str(error.value)) == (name == "vgg11" and shape[0] == 1), "only grey images are padded"


@pytest.mark.parametrize("name", ["mlp", "lenet", "alexnet"])
def test_only_the_convnet_uses_width_and_depth(name):
    a, b = (build((3, 16, 16), name=name, width=width, depth=depth) for width, depth in ((128, 3), (2, 9)))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_norms_of_table_4():
    kinds = {name: {type(m) for m in build((1, 28, 28), name=name).modules()} for name in TABLE_4}
    assert {name for name, found in kinds.items() if nn.BatchNorm2d in found} == {"vgg11bn", "resnet18bn"}
    assert {name for name in TABLE_4 if networks.has_batchnorm(build((1, 28, 28), name=name))} == {
        "vgg11bn",
        "resnet18bn",
    }
    assert {name for name, found in kinds.items() if nn.GroupNorm in found} == {"convnet", "vgg11", "resnet18"}
    groups = [m for m in build((3, 32, 32), name="resnet18").modules() if isinstance(m, nn.GroupNorm)]
    assert len(groups) == 1 + 4 * 4 + 3 and all(m.num_groups == m.num_channels and m.affine for m in groups)


def test_resnet_halves_by_stride_or_by_average_pool():
    strided, pooled = (build((3, 32, 32), name=name) for name in ("resnet18", "resnet18bn"))
    strides = [[m.stride[0] for m in n.modules() if isinstance(m, nn.Conv2d)].count(2) for n in (strided, pooled)]
    calls = []
    for network in (strided, pooled):
        for m in network.modules():
            if isinstance(m, nn.AvgPool2d):
                m.register_forward_hook(lambda m, x, out: calls.append((m.kernel_size, tuple(out.shape[1:]))))
        with torch.no_grad():
            network(noise(2, 3, 32, 32))
    assert strides == [6, 0], "a convolution and a shortcut in each of three stages"
    halves = [
        (2, (width, side, side)) for width, side in ((128, 16), (256, 8), (512, 4)) for _ in ("body", "shortcut")
    ]
    assert calls == [(4, (512, 1, 1)), *halves]


@pytest.mark.parametrize(("name", "smallest"), SMALLEST)
def test_every_network_learns(name, smallest):
    """Three images, each twice. Networks without norm start with scores near zero and need a higher rate."""
    x, y = noise(3, 1, smallest, smallest).repeat(2, 1, 1, 1), torch.arange(6) % 3
    network = build((1, smallest, smallest), n_classes=3, name=name, width=16)

    def loss():
        with torch.no_grad():
            return nn.functional.cross_entropy(network(x), y).item()

    before = loss()
    lr = 0.05 if name in ("lenet", "alexnet") else 0.01
    training.fit(network, x, y, epochs=8, rng=generator(0, "fit"), lr=lr)
    assert loss() < before - 0.005


# ---- ConvNet's variants ----------------------------------------------------------------------------------


def test_the_default_convnet_never_changes():
    """Its layers, their order and their seed are those of stored runs."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(0, "test").initial_seed())
        by_hand = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=3), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(4 * 8 * 8, 10),
        )  # fmt: skip
    x = noise(3, 1, 28, 28)
    for name in ("convnet", "convnet:activation=relu,norm=instance,pooling=avg"):
        network = build((1, 28, 28), name=name, width=4, depth=2)
        assert list(network.state_dict()) == list(by_hand.state_dict())
        assert all(torch.equal(p, q) for p, q in zip(network.parameters(), by_hand.parameters(), strict=True))
        assert torch.equal(network(x), by_hand(x))


@pytest.mark.parametrize("name", VARIANTS)
def test_convnet_variants(name):
    network = build((3, 8, 8), name=name, width=4, depth=2)
    options = networks.parse_name(name)[1]
    side = 8 if options["pooling"] == "none" else 2
    norms = {
        "none": 0,
        "layer": 2 * 4 * (8 * 8 + (64 if options["pooling"] == "none" else 16)),
    }  # weight and bias each
    expected = (27 * 4 + 4) + (9 * 16 + 4) + norms.get(options["norm"], 2 * 2 * 4) + 4 * side * side * 10 + 10
    assert count(network) == expected
    assert network(noise(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("convnet:norm=batch,pooling=max,activation=leaky", [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU, nn.MaxPool2d]),
        ("convnet:activation=sigmoid,norm=layer", [nn.Conv2d, networks.LayerNorm, nn.Sigmoid, networks.HalvingPool]),
        ("convnet:pooling=none,norm=none", [nn.Conv2d, nn.ReLU]),
    ],
)
def test_layers_of_convnet_variants(name, layers):
    assert [type(m) for m in build((1, 28, 28), name=name, width=4, depth=1)] == [*layers, nn.Flatten, nn.Linear]


def test_group_norm_has_four_groups_and_leaky_relu_a_slope_of_001():
    assert build((1, 8, 8), name="convnet:norm=group", width=8, depth=1)[1].num_groups == 4
    leaky = build((1, 8, 8), name="convnet:activation=leaky", width=4, depth=1)[2]
    assert torch.allclose(leaky(torch.tensor([-2.0, 3.0])), torch.tensor([-0.02, 3.0]))


def test_layer_norm_is_matched_with_one_row_per_channel():
    network = build((1, 8, 8), n_classes=2, name="convnet:norm=layer", width=4, depth=1)
    assert [name for name, _ in networks.matched(network)] == ["0.weight", "1.weight", "1.bias", "5.weight"]
    g = gradients.class_gradients(network, [noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=1)])
    assert [tuple(layer.shape) for layer in g] == [(2, 4, 9), (2, 4, 64), (2, 4, 64), (2, 2, 64)]


def test_layer_norm_equals_torchs():
    ours = build((1, 8, 8), name="convnet:norm=layer", width=4, depth=1)[1]
    theirs = nn.LayerNorm((4, 8, 8))
    for norm in (ours, theirs):
        norm.load_state_dict({"weight": noise(4, 8, 8, seed=1), "bias": noise(4, 8, 8, seed=2)})
    assert torch.allclose(ours(noise(3, 4, 8, 8)), theirs(noise(3, 4, 8, 8)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", ("mlp", {})),
        ("convnet:norm=batch", ("convnet", {"norm": "batch"})),
        ("convnet:activation=leaky, pooling=max", ("convnet", {"activation": "leaky", "pooling": "max"})),
    ],
)
def test_valid_names(name, expected):
    assert networks.parse_name(name) == expected


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("vit:norm=batch", "'vit'"),
        (None, "None"),
        ([], r"\[\]"),
        ("convnet:bias=no", "'bias'"),
        ("convnet:width=3", "'width'"),
        ("convnet:", "option .*''"),
        ("convnet:norm", "norm ''"),
        ("convnet:norm=weight", "norm 'weight'"),
        ("convnet:pooling=min", "pooling 'min'"),
        ("convnet:activation=tanh", "activation 'tanh'"),
        ("convnet:norm=batch,norm=none", "'norm' twice"),
        ("mlp:norm=batch", "no options"),
    ],
)
def test_invalid_names(name, word):
    with pytest.raises(ValueError, match=word):
        networks.parse_name(name)
    with pytest.raises(ValueError, match=word):
        build((1, 8, 8), name=name)


# ---- registered networks ------------------------------------------------------------------------------


def linear(channels, size, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, n_classes))


def test_a_registered_factory(registry):
    networks.register("linear-1", linear)
    assert networks.parse_name("linear-1") == ("linear-1", {})
    a, b, c = (build((3, 8, 8), 4, name="linear-1", seed=seed, width=7) for seed in (0, 0, 1))
    assert count(a) == 3 * 64 * 4 + 4 and a.training
    assert torch.equal(a[1].weight, b[1].weight) and not torch.equal(a[1].weight, c[1].weight)
    networks.register("linear-1", lambda channels, size, C: nn.Sequential(nn.Flatten(), nn.LazyLinear(C, bias=False)))
    assert count(build((3, 8, 8), 4, name="linear-1")) == 3 * 64 * 4, "registered again, with a lazy layer"


def test_a_factory_gets_height_and_width_of_rectangular_images(registry):
    seen = []

    def any_size(channels, size, n_classes):
        seen.append(size)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(n_classes))

    networks.register("any-size", any_size)
    for shape in ((1, 6, 10), (1, 8, 8)):
        assert build(shape, 3, name="any-size")(noise(2, *shape)).shape == (2, 3)
    assert seen == [(6, 10), 8]
    networks.register("square", linear)
    with pytest.raises(ValueError, match=r"'square'.*\(height, width\)"):
        build((1, 6, 10), 3, name="square")


class Net(nn.Module):
    """A network that was given where a name is expected."""


@pytest.mark.parametrize("given", [Net(), Net, lambda channels, size, C: Net()])
def test_a_network_in_place_of_its_name_says_how_to_register_it(given):
    for use in (networks.parse_name, lambda network: build((1, 8, 8), name=network)):
        with pytest.raises(ValueError, match=r"name is expected.*gm\.register_network\('mine', factory\)"):
            use(given)


def test_checking_a_factory_does_not_change_its_batchnorm(registry):
    networks.register("normed", lambda *shape: nn.Sequential(nn.BatchNorm2d(shape[0]), linear(*shape)))
    norm = build((1, 8, 8), name="normed")[0]
    assert norm.running_mean.item() == 0 and norm.running_var.item() == 1 and norm.training


def test_width_and_depth_reach_a_factory_that_takes_them(registry):
    seen = []

    def wide(channels, size, n_classes, width):
        seen.append({"width": width})
        return linear(channels, size, n_classes)

    def both(channels, size, n_classes, **sizes):
        seen.append(sizes)
        return linear(channels, size, n_classes)

    for name, factory in (("wide", wide), ("both", both)):
        networks.register(name, factory)
        build((1, 8, 8), name=name, width=7, depth=2)
    assert seen == [{"width": 7}, {"width": 7, "depth": 2}]


def test_registered_networks_that_fail(registry):
    networks.register("blind", lambda: linear(1, 8, 3))
    with pytest.raises(ValueError, match=r"'blind'.*positional arguments"):
        build((1, 8, 8), 3, name="blind")
    networks.register("small", lambda *shape: nn.Sequential(nn.Flatten(), nn.Linear(5, 3)))
    with pytest.raises(ValueError, match=r"'small'.*mat1 and mat2"):
        build((1, 8, 8), 3, name="small")


@pytest.mark.parametrize(
    ("name", "factory", "word"),
    [
        ("mlp", linear, "built in"),
        ("my:net", linear, "'my:net'"),
        ("my/net", linear, "'my/net'"),
        ("", linear, "''"),
        (7, linear, "7 cannot"),
        ("mine", nn.Linear(2, 2).weight, "called"),
    ],
)
def test_names_and_factories_that_cannot_be_registered(registry, name, factory, word):
    with pytest.raises(ValueError, match=word):
        networks.register(name, factory)
    assert set(networks.NETWORKS) == set(TABLE_4)


@pytest.mark.parametrize(
    ("factory", "word"),
    [
        (lambda channels, size, n_classes: "net", "a str"),
        (lambda channels, size, n_classes: linear(channels, size, 7), r"\(2, 7\).*\(2, 64\)"),
        (lambda channels, size, n_classes: nn.Flatten(), "dimensions"),
    ],
)
def test_factories_that_do_not_fit(registry, factory, word):
    networks.register("mine", factory)
    with pytest.raises(ValueError, match=word):
        build((1, 8, 8), 64, name="mine")


# ---- BatchNorm -------------------------------------------------------------------------------------------


def frozen(name="convnet:norm=batch", n=12, size=8, dtype=torch.float64, **sizes):
    """A network with BatchNorm. Training changed its statistics, which were then taken from n images."""
    network = build((3, size, size), n_classes=3, name=name, dtype=dtype, **sizes)
    training.fit(
        network, noise(6, 3, size, size, seed=9, dtype=dtype), torch.arange(6) % 3, epochs=1, rng=generator(0)
    )
    x = 2 * noise(n, 3, size, size, dtype=dtype) + 1
    assert networks.freeze_batchnorm(network, x) is True
    return network, x


def test_frozen_statistics_equal_those_of_the_images():
    network, x = frozen(width=4, depth=2)
    conv, first, relu, pool, second_conv, second = network[:6]
    z = conv(x).detach().numpy()
    # In the same pass the first norm normalised its output by the biased variance of the batch.
    normal = (z - z.mean((0, 2, 3), keepdims=True)) / np.sqrt(z.var((0, 2, 3), keepdims=True) + 1e-5)
    scale, shift = (p.detach().numpy()[:, None, None] for p in (first.weight, first.bias))
    z2 = second_conv(pool(relu(torch.from_numpy(scale * normal + shift)))).detach().numpy()
    for layer, values in ((first, z), (second, z2)):
        np.testing.assert_allclose(layer.running_mean.numpy(), values.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(layer.running_var.numpy(), values.var((0, 2, 3), ddof=1), rtol=1e-10)
        assert not layer.training and layer.momentum == 0.1
    assert network.training and conv.training, "only BatchNorm is in eval mode"


@pytest.mark.parametrize("name", ["convnet:norm=batch", "resnet18bn"])
def test_frozen_scores_do_not_depend_on_the_batch(name):
    network, x = frozen(name, width=4, depth=2)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(image[None]) for image in x])
        network.train()
        whole, part = network(x), network(x[:4])
    assert torch.allclose(together, alone, atol=1e-10)
    assert not torch.allclose(whole[:4], part, atol=1e-3), "in train mode they do"


def test_freezing_again_takes_the_new_images():
    """This happens if S is updated more than once between steps of theta (zeta_S)."""
    network, x = frozen(width=4, depth=1)
    networks.freeze_batchnorm(network, x[:5] + 3)
    z = network[0](x[:5] + 3).detach().numpy()
    np.testing.assert_allclose(network[1].running_mean.numpy(), z.mean((0, 2, 3)), rtol=1e-10)


def test_training_unfreezes_batchnorm():
    network, x = frozen(width=4, depth=1)
    mean = network[1].running_mean.clone()
    training.fit(network, x + 1, torch.arange(12) % 3, epochs=1, rng=generator(0))
    assert network[1].training and not torch.equal(network[1].running_mean, mean)
    network.eval()
    training.fit(network, x, torch.arange(12) % 3, epochs=1, rng=generator(0))
    assert network.training


def test_one_training_pass_normalises_by_the_batch():
    """Compared with the same step written out with batch statistics."""
    network, x = frozen(width=4, depth=1)
    y = torch.arange(12) % 3
    conv, norm, last = network[0], network[1], network[5]
    z = conv(x)
    z = nn.functional.batch_norm(z, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    loss = nn.functional.cross_entropy(last(nn.functional.avg_pool2d(z.relu(), 2).flatten(1)), y)
    (g,) = torch.autograd.grad(loss, conv.weight)
    expected = conv.weight.detach() - 0.1 * g
    training.train_one_pass(network, torch.optim.SGD(network.parameters(), lr=0.1), x, y, 12, generator(0))
    assert torch.allclose(conv.weight, expected, atol=1e-10)


@pytest.mark.parametrize("name", ["convnet", "convnet:norm=none", "mlp"])
def test_networks_without_batchnorm_are_not_changed(name):
    network = build((1, 8, 8), name=name, width=4, depth=1)
    network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert networks.freeze_batchnorm(network, noise(4, 1, 8, 8)) is False
    assert not network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_batchnorm_without_statistics_cannot_be_frozen():
    with pytest.raises(ValueError, match="track_running_stats"):
        networks.freeze_batchnorm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), noise(4, 3, 8, 8))


def small_resnet(channels, size, n_classes):
    """One stage of "resnet18bn"."""
    block = networks.ResidualBlock(channels, 4, halve=True, pooled=True, norm=nn.BatchNorm2d)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(4 * (size // 2) ** 2, n_classes))


@pytest.mark.parametrize(
    "name",
    [
        "convnet:norm=batch",
        "convnet:norm=batch,pooling=max,activation=leaky",
        "convnet:norm=layer,pooling=none,activation=sigmoid",
        "convnet:norm=group",
        "convnet:norm=none,pooling=max",
        "mlp",
        "small-resnet",
    ],
)
def test_all_implementations_of_class_gradients_agree(registry, name):
    """So do their derivatives in the images, one of which is also compared with a finite difference."""
    networks.register("small-resnet", small_resnet)
    network = build((3, 8, 8), n_classes=3, name=name, dtype=torch.float64, width=4, depth=2)
    networks.freeze_batchnorm(network, noise(9, 3, 8, 8, dtype=torch.float64))
    x = noise(6, 3, 8, 8, dtype=torch.float64).requires_grad_()

    def gradients_of(x, implementation):
        return gradients.class_gradients(network, x.split(2), create_graph=True, implementation=implementation)

    def total(x, implementation="loop"):
        return sum((layer.sin() + layer).sum() for layer in gradients_of(x, implementation))

    grouped = gradients._supports_grouped(network)
    assert grouped == (name != "small-resnet" and "norm=layer" not in name)
    supported = [each for each in gradients.IMPLEMENTATIONS if grouped or each != "grouped"]
    found = [[*gradients_of(x, each), *torch.autograd.grad(total(x, each), x)] for each in supported]
    for looped, *others in zip(*found, strict=True):
        assert all(torch.allclose(other, looped, rtol=1e-8, atol=1e-12) for other in others)
    step = torch.zeros_like(x)
    step[2, 1, 3, 3] = 1e-6
    difference = (total(x + step) - total(x - step)) / 2e-6
    assert difference.item() == pytest.approx(found[0][-1][2, 1, 3, 3].item(), rel=1e-5) and abs(difference) > 1e-6


@pytest.mark.parametrize("side", [2, 8, 7])
def test_the_pool_as_a_matrix_product_equals_torchs(side):
    x = torch.randn(3, 2, side, side, dtype=torch.float64, requires_grad=True)
    ours, theirs = networks.HalvingPool(side), nn.AvgPool2d(2)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-15)
    v = torch.randn_like(theirs(x))
    assert torch.allclose(*(torch.autograd.grad(pool(x), x, v)[0] for pool in (ours, theirs)), rtol=1e-15)
    # It also pools other sizes than its own, and images batched by vmap.
    other = torch.randn(2, 3, 1, 6, 4)
    assert torch.equal(torch.func.vmap(ours)(other), torch.func.vmap(theirs)(other))


def test_the_pool_is_not_part_of_the_state():
    network = build((1, 8, 8), width=4, depth=2)
    assert not list(network.buffers()) and not any("average" in name for name in network.state_dict())


# ---- several networks side by side -----------------------------------------------------------------------


class DataDependent(nn.Module):
    """Its control flow depends on the pixels."""

    def __init__(self, channels, size, n_classes):
        super().__init__()
        self.last = nn.Linear(channels * size * size, n_classes)

    def forward(self, x):
        return self.last(x.flatten(1) if x.mean() > 0 else 2 * x.flatten(1))


def group_of(n, name="convnet", **size):
    return [
        build((1, 8, 8), 3, name, seed=j, dtype=torch.float64, **{"width": 4, "depth": 2, **size}) for j in range(n)
    ]


def same_weights(one, other, **tolerance):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, **{"rtol": 0, "atol": 0, **tolerance}) for a, b in pairs)


@pytest.mark.parametrize("optimiser", training.OPTIMISERS)
@pytest.mark.parametrize("name", ["convnet", "convnet:norm=batch", "mlp", "data-dependent"])
def test_networks_trained_side_by_side_equal_those_trained_alone(registry, name, optimiser):
    """Each network has its own mini-batches of 4, 4 and 1 images, from its own generator."""
    networks.register("data-dependent", DataDependent)
    x, y = noise(9, 1, 8, 8, dtype=torch.float64), torch.arange(9) % 3
    options = {"epochs": 4, "batch": 4, "optimiser": optimiser}
    alone, group = group_of(3, name), group_of(3, name)
    for j, network in enumerate(alone):
        training.fit(network, x, y, rng=generator(j, "batches"), **options)
    assert training.fit(group, x, y, rng=[generator(j, "batches") for j in range(3)], **options) is group
    assert all(same_weights(*pair) for pair in zip(alone, group, strict=True))
    assert not same_weights(*group[:2]) and not same_weights(group[0], group_of(1, name)[0])


@pytest.mark.parametrize("optimiser", training.OPTIMISERS)
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_recordable_step_equals_a_normal_one(optimiser, momentum):
    """Its learning rate is on the device, in float32, and falls there after half the epochs."""
    x, y = noise(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    (usual,), (fallen,), (recorded,) = (group_of(1) for _ in range(3))
    steps = []

    def record(step):
        return lambda *batch: steps.append([len(b) for b in batch]) or step(*batch)

    options = {"lr": 0.05, "momentum": momentum, "optimiser": optimiser, "batch": 4}
    training.fit(usual, x, y, epochs=6, rng=generator(1), **options)
    training.fit(recorded, x, y, epochs=6, rng=generator(1), as_recorded=record, **options)
    assert steps == [[1, 1]] * 12
    assert same_weights(usual, recorded, rtol=1e-6, atol=1e-9)
    training.fit(fallen, x, y, epochs=6, rng=generator(1), **options | {"lr": 0.005})
    assert not same_weights(fallen, recorded, rtol=1e-3)


@pytest.mark.parametrize("optimiser", training.OPTIMISERS)
@pytest.mark.parametrize("make", [networks.convnet, networks.vgg11bn, networks.mlp, DataDependent])
def test_a_recordable_step_reads_no_values(make, optimiser):
    """Reading a value of a fake tensor is an error, as it is while a CUDA graph is recorded."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, y = torch.empty(5, 3, 32, 32), torch.zeros(5, dtype=torch.long)
        group = [make(3, 32, 10) for _ in range(2)]
        train = functools.partial(
            training.fit, group, x, y, epochs=3, rng=[generator(0), generator(1)], batch=4, optimiser=optimiser
        )
        if make is DataDependent:
            with pytest.raises(DataDependentOutputException):
                train(as_recorded=lambda step: step)
        else:
            train(as_recorded=lambda step: step)


class TwoImages(nn.Module):
    """Runs out of memory with more than two images in a pass."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("made up")
        return self.network(x)


def test_only_a_single_network_takes_smaller_passes():
    """With several networks the error is raised, so that the caller can train fewer at once."""
    x, y = noise(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    group = group_of(2)
    with pytest.raises(torch.OutOfMemoryError, match="made up"):
        training.fit([TwoImages(network) for network in group], x, y, epochs=1, rng=[generator(0), generator(1)])
    for network, untouched in zip(group, group_of(2), strict=True):
        assert same_weights(network, untouched)
    (whole,) = group_of(1)
    training.fit(whole, x, y, epochs=2, rng=generator(0))
    training.fit([TwoImages(group[0])], x, y, epochs=2, rng=[generator(0)])
    assert same_weights(whole, group[0], rtol=1e-10, atol=1e-13)


def test_work_is_distributed_to_streams_in_turn(monkeypatch):
    """Streams wait for earlier work, and later work waits for all streams, also after an error."""
    events, current = [], []

    class Stream:
        def __init__(self, name):
            self.name, self.device = name, None

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def inside(stream):
        current.append(stream.name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", inside)
    work = [lambda j=j: events.append(f"{j} on {current[-1]}") for j in range(3)]
    forked, joined = ["a waits for main", "b waits for main"], ["main waits for a", "main waits for b"]
    training._run_on_streams([Stream("a"), Stream("b")], work)
    assert events == [*forked, "0 on a", "1 on b", "2 on a", *joined]
    events.clear()
    with pytest.raises(ZeroDivisionError):
        training._run_on_streams([Stream("a"), Stream("b")], [work[0], lambda: 1 / 0, work[2]])
    assert events == [*forked, "0 on a", *joined]


def test_the_number_of_streams_is_limited_by_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device.type)
    assert training._streams(50, noise(10, 1, 8, 8), 10, None) == []
    with FakeTensorMode():
        x = torch.empty(10, 1, 8, 8, device="cuda")
    counts = {
        (50, 10, None): 16,
        (3, 10, None): 3,
        (1, 10, None): 0,
        (50, 10, 45): 4,
        (50, 10, 1000): 16,
        (50, 256, 300): 0,
    }
    assert {case: len(training._streams(case[0], x, *case[1:])) for case in counts} == counts
