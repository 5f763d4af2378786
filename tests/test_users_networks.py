"""Class gradients of networks that are not gmlib's: whatever way is taken, they are those of the plain definition."""

import logging
import threading
import time
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import make_data, tiny_recipe
from messages import refuses
from torch import nn
from torch.nn.utils import parametrizations

import gmlib as gm
from gmlib import condensation, networks
from gmlib.runtime import generator
from gmlib.speed import gradients, passes, trust


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(trust, "_RESULTS", {})
    monkeypatch.setattr(trust, "_LOGGED", set())
    monkeypatch.setitem(gm.NETWORKS, "own", None)  # it is taken out again


class Branch(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else 2 * x)


class Counter(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Centred(nn.Sequential):
    """Subtracts the mean image of the batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


class Rows(nn.Module):
    """Takes an image as a sequence of rows."""

    def __init__(self, kind, side):
        super().__init__()
        self.kind = kind
        if kind == "gru":
            self.body = nn.GRU(side, 6, batch_first=True)
        elif kind == "attention":
            self.body = nn.MultiheadAttention(side, 2, batch_first=True)
        else:
            self.body = nn.TransformerEncoderLayer(side, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6 if kind == "gru" else side, 2)

    def forward(self, x):
        x = x[:, 0]
        x = self.body(x, x, x)[0] if self.kind == "attention" else self.body(x)
        return self.head((x[0] if self.kind == "gru" else x).mean(1))


def small(*activations, side, width=4):
    first, second = activations
    return [
        nn.Conv2d(1, width, 3, padding=1), first, nn.AvgPool2d(2), nn.Conv2d(width, width, 3, padding=1), second,
        nn.Flatten(), nn.Linear(width * (side // 2) ** 2, 2),
    ]  # fmt: skip


def plain(side, kind=nn.Sequential):
    return kind(*small(nn.Sigmoid(), nn.Sigmoid(), side=side))


IN_PLACE = [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish]
NETWORKS = {
    **{
        f"{kind.__name__} in place": lambda side, kind=kind: nn.Sequential(
            *small(kind(inplace=True), kind(inplace=True), side=side)
        )
        for kind in IN_PLACE
    },
    "linear in place": lambda side: nn.Sequential(
        nn.Flatten(), nn.Linear(side**2, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)
    ),
    "branch": lambda side: plain(side, Branch),
    "counter": lambda side: plain(side, Counter),
    "centred": lambda side: plain(side, Centred),
    "gru": lambda side: Rows("gru", side),
    "attention": lambda side: Rows("attention", side),
    "transformer": lambda side: Rows("transformer", side),
    "eval dropout": lambda side: nn.Sequential(nn.Dropout(0.5), *plain(side)).eval(),
}


def build(name, side):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[name](side).double()
    return network, torch.randn(2, 4, 1, side, side, generator=generator(0, name), dtype=torch.float64)


def by_definition(network, batches, create_graph=False):
    """One backward pass per class, with attention as torch can differentiate it twice."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        losses = [F.cross_entropy(network(x), torch.full((len(x),), c)) for c, x in enumerate(batches)]
    by_class = [torch.autograd.grad(loss, weights, create_graph=create_graph) for loss in losses]
    return [torch.stack(layer).flatten(2) for layer in zip(*by_class, strict=True)]


def same(found, expected):
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_definition(name, side):
    network, images = build(name, side)
    assert same(gradients.class_gradients(network, list(images)), by_definition(network, images)), "gT"
    S = images.clone().requires_grad_()
    found = gradients.class_gradients(network, list(S), create_graph=True)
    expected = by_definition(network, S, create_graph=True)
    assert same(found, expected), "gS"
    v = [torch.randn_like(layer) for layer in expected]
    derivatives = [torch.autograd.grad(g, S, grad_outputs=v)[0] for g in (found, expected)]
    assert same(*[[d] for d in derivatives]) and derivatives[0].abs().max() > 0


@pytest.mark.parametrize("name", ["ReLU in place", "linear in place", "counter", "gru"])
def test_a_wrong_way_is_found_and_logged_once(name, caplog):
    network, images = build(name, 8)
    way = "grouped" if "place" in name else "vmap"
    with caplog.at_level(logging.INFO, "gmlib.speed.trust"):
        for _ in range(2):
            assert not trust.is_right(way, gradients.IMPLEMENTATIONS[way], gradients._loop, network, images, True)
    assert len(caplog.records) == 1 and way in caplog.text


def test_a_right_way_is_taken():
    network, images = build("eval dropout", 8)
    assert not trust.is_own(network)
    assert gradients.fastest_implementation(network, list(images), True, None) == "vmap"
    assert gradients.fastest_implementation(network, list(images), False, None) == "grouped"
    network.train()
    assert gradients.fastest_implementation(network, list(images), False, None) == "loop", "random numbers"


def test_a_comparison_changes_nothing():
    network, images = build("counter", 8)
    state = torch.get_rng_state()
    assert not trust.is_right("vmap", gradients._vmap, gradients._loop, network, images, True)
    assert network.calls == 0 and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())


def test_a_hook_or_another_function_is_noticed():
    network, images = build("eval dropout", 8)
    first = gradients.class_gradients(network, list(images))
    network[1].register_forward_hook(lambda layer, x, y: 2 * y)
    assert same(gradients.class_gradients(network, list(images)), by_definition(network, images))
    assert not same(first, by_definition(network, images))


class Function(nn.Sequential):
    def __init__(self, function, *layers):
        super().__init__(*layers)
        self.function = function

    def forward(self, x):
        return self.function(super().forward(x))


def test_networks_that_differ_in_a_function_are_compared_apart():
    layers = [nn.Flatten(), nn.Linear(64, 2)]
    for function in (torch.tanh, lambda y: F.dropout(y, 0.5)):
        network = Function(function, *layers).double()
        right = trust.is_right("vmap", gradients._vmap, gradients._loop, network, list(build("gru", 8)[1]), True)
        assert right == (function is torch.tanh)


def test_a_network_that_counts_its_calls_is_compared_once(monkeypatch):
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    network = Counting(*plain(8)).double()
    images = list(build("gru", 8)[1])
    for _ in range(3):
        gradients.class_gradients(network, images, create_graph=True)
    assert len(trust._RESULTS) <= 3 and network.calls >= 3


def test_a_comparison_leaves_the_weights_of_other_threads_alone(monkeypatch):
    """Networks draw their weights from torch's global generator, in any thread."""
    network, images = build("eval dropout", 8)

    def weights():
        return networks.build("mlp", (1, 8, 8), 2, generator=generator(0))[1].weight

    expected, found, begun = weights(), [], threading.Event()
    real = trust._same_results

    def slow(*arguments):
        begun.set()
        time.sleep(0.2)
        return real(*arguments)

    monkeypatch.setattr(trust, "_same_results", slow)
    thread = threading.Thread(target=lambda: begun.wait() and found.append(weights()))
    thread.start()
    trust.is_right("vmap", gradients._vmap, gradients._loop, network, list(images), True)
    thread.join()
    assert torch.equal(found[0], expected)


def test_a_batch_whose_images_mix_stays_whole(monkeypatch):
    monkeypatch.setattr(passes, "CPU_CACHE", 1)
    for name, whole in (("centred", True), ("counter", True), ("ReLU in place", False), ("transformer", True)):
        network, images = build(name, 8)
        assert (passes.pass_size(network, images[0], 1) is None) == whole, name
    own = gm.NETWORKS["convnet"](1, 8, 2, width=4, depth=1)
    assert trust.is_own(own) and passes.pass_size(own, images[0], 1) == 1
    own[0].register_forward_hook(lambda *_: None)
    assert not trust.is_own(own)


def test_condensing_with_an_attention_network_works(monkeypatch):
    monkeypatch.setitem(gm.NETWORKS, "rows", lambda channels, size, n_classes: Rows("transformer", size))
    data = make_data((8, 8), dtype=torch.float32)
    S = gm.condense(
        data, gm.Recipe(dataset=data.name, network="rows", outer_loops=2, batch_real=4), "cpu", progress=False
    )
    assert S.images.isfinite().all() and S.history[-1]["loss"] > 0


def condense(factory, **changes):
    gm.register_network("own", factory)
    return gm.condense(make_data(dtype=torch.float32), tiny_recipe(network="own", **changes), "cpu", progress=False)


def layers(*middle):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *middle, nn.ReLU(), nn.Linear(8, 3))


def compute(mode, x):
    if mode == "branch" and x.sum() > 0:
        return 2 * x
    return F.dropout(x, 0.5) if mode == "drop" else x


class Configured(nn.Module):
    """What it computes is an attribute: a dict, a function with its arguments, or a list of objects."""

    def __init__(self, form, mode):
        super().__init__()
        self.body = layers()
        self.how = {"dict": {"mode": [mode]}, "partial": partial(compute, mode), "object": [Mode(mode)]}[form]

    def forward(self, x):
        if isinstance(self.how, partial):
            return self.body(self.how(x))
        mode = self.how["mode"][0] if isinstance(self.how, dict) else self.how[0].name
        return self.body(compute(mode, x))


class Mode:
    def __init__(self, name):
        self.name = name


@pytest.mark.parametrize("form", ["dict", "partial", "object"])
def test_networks_that_differ_in_any_attribute_are_compared_apart(form):
    batches = list(make_data().train_images[:12].reshape(3, 4, 1, 8, 8))

    def way(mode):
        return gradients.fastest_implementation(Configured(form, mode).double(), batches, True, None)

    assert [way(mode) for mode in ("plain", "branch", "drop", "plain")] == ["vmap", "loop", "loop", "vmap"]
    for mode in ("plain", "branch", "drop"):
        assert condense(lambda *_, mode=mode: Configured(form, mode), ipc=2).images.isfinite().all()


def test_networks_with_equal_options_are_compared_once(monkeypatch):
    monkeypatch.setattr(trust, "_RESULTS", {})
    condense(lambda *_: Configured("object", "plain"), ipc=2, outer_loops=4)
    once = len(trust._RESULTS)
    condense(lambda *_: Configured("object", "plain"), ipc=2, outer_loops=4, seed=1)
    assert len(trust._RESULTS) == once

    functions = [Mode(lambda x: x), Mode(lambda x: 2 * x), Mode(torch.nn.ReLU), Mode(torch.nn.Tanh)]
    assert len({trust._as_key(each) for each in functions}) == 4, "functions and classes are what they are"
    assert trust._as_key(Mode(torch.nn.ReLU)) == trust._as_key(Mode(torch.nn.ReLU))
    tangled = Mode("plain")
    tangled.itself = tangled
    assert isinstance(hash(trust._as_key(tangled)), int)


def test_a_comparison_seeds_no_other_device(monkeypatch):
    """`torch.manual_seed` seeds every GPU, and only those that are used get their state back."""
    images = list(make_data().train_images[:12].reshape(3, 4, 1, 8, 8))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: 1 / 0)
    monkeypatch.setattr(trust, "_RESULTS", {})
    assert trust.is_right("vmap", gradients._vmap, gradients._loop, layers().double(), images, True)


@pytest.mark.parametrize("error", [KeyError, AttributeError, ZeroDivisionError])
def test_whatever_a_factory_raises_is_named(error):
    def fails(*_):
        raise error("oh")

    with pytest.raises(ValueError, match=r"the factory of 'own' fails .*oh"):
        condense(fails)


def test_a_layer_with_a_parametrization_keeps_its_state(monkeypatch, caplog):
    """To read the weight of this layer changes it."""

    def factory(channels, size, n_classes):
        return nn.Sequential(
            nn.Flatten(), parametrizations.spectral_norm(nn.Linear(64, 8)), nn.ReLU(), nn.Linear(8, n_classes)
        )

    with caplog.at_level(logging.INFO, "gmlib.speed.trust"):
        found = condense(factory, ipc=2, outer_loops=4, inner_loops=2, zeta_theta=2)
    assert len(caplog.records) == len({record.getMessage() for record in caplog.records})
    monkeypatch.setattr(gradients, "fastest_implementation", lambda *_: "loop")
    assert torch.equal(condense(factory, ipc=2, outer_loops=4, inner_loops=2, zeta_theta=2).images, found.images)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.other = layers(), nn.Linear(5, 5)

    def forward(self, x):
        return self.body(x)


def frozen():
    network = layers()
    network[1].weight.requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (lambda: layers(nn.Hardsigmoid()), ["twice", "hardsigmoid"]),
        (Unused, ["other.weight", "no gradient"]),
        (frozen, ["1.weight", "no gradient"]),
    ],
)
def test_a_network_that_cannot_be_matched_is_refused_before_any_work(factory, words, monkeypatch):
    gm.register_network("own", lambda channels, size, n_classes: factory())
    data, state = make_data(dtype=torch.float32), torch.get_rng_state()
    with refuses(ValueError, "'own'", *words):
        condensation.check(data, tiny_recipe(network="own"))
    assert torch.equal(torch.get_rng_state(), state)
    condensation.check(data, tiny_recipe(network="own"), None)  # a coreset needs no gradients
    found = gm.evaluate(data, data, "own", 1, epochs=1, device="cpu", progress=False)
    assert found.n == 1


def test_batchnorm_refuses_single_images_only_where_it_cannot_take_them():
    gm.register_network("own", lambda channels, size, n_classes: layers(nn.BatchNorm1d(8)))
    single = partial(condensation.check, make_data(), snapshots=())
    one = {"ipc": 3, "zeta_theta": 2, "batch_theta": 1, "network": "own"}
    with refuses(ValueError, "batch_theta=1", "at least 2"):
        single(tiny_recipe(**one, inner_loops=3))
    single(tiny_recipe(**one, inner_loops=1))  # theta takes no step
    single(tiny_recipe(**{**one, "network": "convnet:norm=batch"}, inner_loops=3))  # it has many pixels
    single(tiny_recipe(**{**one, "batch_theta": 2}, inner_loops=3))
