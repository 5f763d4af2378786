"""Phase 2: the protocol step by step, statistics against numpy and scipy, networks side by side."""

import copy
import dataclasses
import functools
import itertools
import logging
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from conftest import make_data
from messages import refuses
from torch import nn

import gmlib as gm
from gmlib import evaluation, networks, runtime
from gmlib.evaluation import TOGETHER, Evaluation, Protocol, _group_size, accuracy, resolve_protocol
from gmlib.runs import layout
from gmlib.runtime import OutOfTime, generator
from gmlib.speed import forward, testing, training

QUICK = {"n_networks": 2, "epochs": 3, "width": 4, "depth": 2, "device": "cpu", "progress": False}


def first_network():
    """Network 0 of `gm.evaluate` with the choices of QUICK and seed 0, before training."""
    rng = generator(0, "evaluate", 0)
    return networks.build("convnet", (1, 8, 8), 3, generator=rng, width=4, depth=2, dtype=torch.float64)


def test_the_protocol_step_by_step():
    """SGD with momentum and weight decay, written out. The second half has lr / 10, and the last epoch counts."""
    data = make_data(dtype=torch.float64, n_test=60)
    S = gm.coreset("random", data, 2)
    found = gm.evaluate(S, data, **{**QUICK, "epochs": 4, "n_networks": 1}, lr=0.05)
    f = first_network()
    parameters, buffers = list(f.parameters()), None
    for epoch in range(4):
        gradient = torch.autograd.grad(F.cross_entropy(f(S.images), S.labels), parameters)
        gradient = [g + 5e-4 * p.detach() for g, p in zip(gradient, parameters, strict=True)]
        buffers = gradient if buffers is None else [0.9 * b + g for b, g in zip(buffers, gradient, strict=True)]
        with torch.no_grad():
            for p, b in zip(parameters, buffers, strict=True):
                p -= (0.05 if epoch < 2 else 0.005) * b
    images_and_labels = zip(data.test_images, data.test_labels, strict=True)
    right = sum(int(f(image[None]).argmax() == label) for image, label in images_and_labels)
    assert found.accuracies == (100 * right / 60,)
    assert found.protocol == {
        "width": 4,
        "depth": 2,
        "epochs": 4,
        "optimiser": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch": 256,
        "augment": "none",
        "precision": "float32",
    }


def test_the_same_seed_gives_the_same_accuracies_and_fewer_networks_are_the_first_of_more():
    data = make_data(dtype=torch.float32, n_test=90)
    S = gm.coreset("random", data, 3)
    three = gm.evaluate(S, data, **{**QUICK, "n_networks": 3})
    assert gm.evaluate(S, data, **{**QUICK, "n_networks": 3}).accuracies == three.accuracies
    assert gm.evaluate(S, data, **QUICK).accuracies == three.accuracies[:2]
    assert gm.evaluate(S, data, **{**QUICK, "n_networks": 3}, seed=1).accuracies != three.accuracies


@pytest.fixture
def predicted(monkeypatch):
    """A list of (n_test,) predictions of the networks 0, 1, ..., for `evaluate` to return in place of its own."""
    given = []
    monkeypatch.setattr(evaluation, "predict", lambda network, x: given.pop(0))
    return given


def test_the_recall_of_each_class_against_a_loop(predicted):
    """Class 1 has most test images, and class 2 has none."""
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 3, 1])
    images = make_data((3, 3, 3, 3), n_test=8).test_images
    data = dataclasses.replace(make_data((3, 3, 3, 3)), test_images=images, test_labels=labels)
    S = gm.coreset("random", data, 1)
    predictions = torch.randint(4, (3, 8), generator=generator(0, "predictions"))
    diverged = torch.tensor([0, 1, 1, 0, -1, 1, 3, 1])
    predicted.extend([predictions[0], diverged, predictions[1], predictions[2]])
    found = gm.evaluate(S, data, **{**QUICK, "n_networks": 4})
    for row, recalls, accuracy_ in zip(predictions.tolist(), found.per_class, found.accuracies, strict=True):
        right = [[p == y for p, y in zip(row, labels.tolist(), strict=True) if y == c] for c in range(4)]
        expected = [100 * sum(of_class) / len(of_class) if of_class else math.nan for of_class in right]
        assert recalls == pytest.approx(expected, nan_ok=True)
        assert accuracy_ == 100 * sum(map(sum, right)) / 8
    assert found.failed == (1,)
    table = np.array(found.per_class)
    assert found.mean_per_class == pytest.approx(table.mean(0), nan_ok=True)
    assert found.balanced == pytest.approx(np.nanmean(table))
    assert found.first(3).per_class == found.per_class[:2] and f"{found.balanced:.1f}" in repr(found)
    assert math.isnan(Evaluation((70.0,), "convnet", 0).balanced) and "nan" not in repr(Evaluation((70.0,), "mlp", 0))


def test_recalls_continue_only_those_that_are_known():
    data = make_data(dtype=torch.float32, n_test=90)
    S, three = gm.coreset("random", data, 3), {**QUICK, "n_networks": 3}
    whole = gm.evaluate(S, data, **three)
    assert len(whole.per_class) == 3 and gm.evaluate(S, data, **three, side_by_side=3).per_class == whole.per_class
    rest = gm.evaluate(S, data, **three, known=whole.first(1))
    assert (rest.accuracies, rest.per_class) == (whole.accuracies, whole.per_class)
    assert gm.evaluate(S, data, **three, known=whole).per_class == whole.per_class
    for known in (whole.accuracies[:1], dataclasses.replace(whole.first(2), per_class=())):
        rest = gm.evaluate(S, data, **three, known=known)
        assert rest.accuracies == whole.accuracies and rest.per_class == ()
    for per_class in (whole.per_class[:1], tuple(row[:2] for row in whole.per_class)):
        with refuses(ValueError, "per_class", "3 recalls"):
            gm.evaluate(S, data, **three, known=dataclasses.replace(whole, per_class=per_class))


def test_recalls_are_not_stored_and_do_not_tell_evaluations_apart():
    data = make_data(dtype=torch.float32)
    found = gm.evaluate(gm.coreset("random", data, 1), data, **QUICK)
    stored = layout.evaluation_to_json(found)
    assert set(stored) == {"network", "seed", "accuracies", "failed", "protocol", "seconds"}
    assert found.per_class and layout.evaluation_from_json(stored) == found


def uneven(data, counts, seed=0):
    """A set with counts[c] training images of class c."""
    images = [data.of_class(c)[seed : seed + n] for c, n in enumerate(counts)]
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return gm.SyntheticSet(torch.cat(images), labels, data.classes, data.mean, data.std)


@pytest.mark.parametrize("augment", ["none", "dsa"])
def test_a_set_with_different_numbers_of_images_per_class(trained, augment):
    """The mini-batches are drawn from all images, whatever their class."""
    data = make_data((9, 9, 9), n_test=60)
    S = uneven(data, (1, 4, 2))
    found = gm.evaluate(S, data, **QUICK, augment=augment, batch=3)
    as_data = dataclasses.replace(data, train_images=S.images, train_labels=S.labels)
    assert found.accuracies == gm.evaluate(as_data, data, **QUICK, augment=augment, batch=3).accuracies
    assert [len(group) for group in trained] == [1] * 4
    if augment == "none":
        f = first_network()
        parameters, rng = list(f.parameters()), generator(0, "evaluate batches", 0)
        optimiser = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
        for epoch in range(3):
            optimiser.param_groups[0]["lr"] = 0.01 if epoch < 1 else 0.001
            for chosen in torch.randperm(7, generator=rng).split(3):
                optimiser.zero_grad()
                F.cross_entropy(f(S.images[chosen]), S.labels[chosen]).backward()
                optimiser.step()
        for (key, p), q in zip(f.state_dict().items(), trained[0][0].values(), strict=True):
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-12), key


def test_copies_of_the_images_change_no_accuracy():
    data = make_data(n_test=60)
    S = gm.coreset("random", data, 2)
    copies = dataclasses.replace(S, images=S.images.repeat_interleave(3, 0), labels=S.labels.repeat_interleave(3))
    assert gm.evaluate(copies, data, **QUICK).accuracies == gm.evaluate(S, data, **QUICK).accuracies


def test_the_default_network_has_the_size_in_the_recipe():
    data = make_data(dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    small = dataclasses.replace(S, recipe={"width": 4, "depth": 2})
    found = gm.evaluate(small, data, n_networks=1, epochs=1, device="cpu", progress=False)
    assert (found.protocol["width"], found.protocol["depth"]) == (4, 2)


def test_statistics_against_numpy_and_scipy():
    values = (71.2, 70.1, 73.9, 69.5)
    e = Evaluation(values, "convnet", 0)
    assert e.mean == pytest.approx(np.mean(values), rel=1e-14)
    assert e.std == pytest.approx(np.std(values, ddof=1), rel=1e-14)
    interval = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert e.ci95 == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert math.isnan(Evaluation((70.0,), "convnet", 0).std)
    assert str(e) == "71.2±1.9 % (n = 4)"


def test_accuracy_counts_every_image_once(monkeypatch):
    monkeypatch.setattr(testing, "PASS", 3)
    x, y = torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]], torch.tensor([0, 1, 2, 3, 1, 1, 0])
    assert accuracy(torch.nn.Identity(), x, y) == pytest.approx(100 * 5 / 7)


def test_the_paper_augments_mnist_and_networks_with_batchnorm():
    S = gm.coreset("random", make_data((5, 5), dtype=torch.float32), 1)
    data = make_data((5, 5), dtype=torch.float32)
    mnist = dataclasses.replace(data, name="MNIST")

    def augmented(data, network="convnet", **changes):
        found = resolve_protocol(S, data, network, width=4, depth=1, **changes)
        return found["augment"], found["epochs"]

    assert augmented(data) == ("none", 300)
    assert augmented(data, "convnet:norm=batch") == ("shift+noise", 1000)
    assert augmented(mnist) == ("shift+stretch+turn", 1000)
    assert augmented(mnist, epochs=7) == ("shift+stretch+turn", 7)
    assert augmented(mnist, augment="none") == ("none", 300)
    assert augmented(mnist, augment="dsa") == ("dsa+crop+cutout+scale+rotate+colour", 1000)
    found = gm.evaluate(S, mnist, **{**QUICK, "n_networks": 1, "depth": 1})
    assert found.protocol["augment"] == "shift+stretch+turn", "evaluate resolves its protocol in the same way"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "vit"}, ["unknown network 'vit'", "convnet"]),
        ({"optimiser": "lbfgs"}, ["unknown optimiser 'lbfgs'", "sgd, adam"]),
        ({"colour": 1}, ["unknown protocol field 'colour'", "width, depth"]),
        ({"augment": "cutout"}, ["unknown augment 'cutout'", "paper, none, dsa"]),
        ({"precision": "bf16"}, ["unknown precision 'bf16'", "float32, tf32"]),
        ({"device": "cudax"}, ["'cudax'", "cpu"]),
        ({"protocol": {"epochs": 5}}, ["protocol is a dict", "epochs=100"]),
        ({"lr": -1}, ["lr=-1", "positive"]),
        ({"width": 0}, ["width=0", "at least 1"]),
        ({"side_by_side": 0}, ["side_by_side=0", "at least 1"]),
        ({"depth": -1}, ["depth=-1"]),
        ({"lr": "a"}, ["lr='a'"]),
        ({"epochs": True}, ["epochs=True"]),
        ({"epochs": 0}, ["epochs=0"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"n_networks": 0}, ["n_networks=0"]),
        ({"momentum": 1.5}, ["momentum=1.5"]),
        ({"weight_decay": -1e-3}, ["weight_decay=-0.001"]),
    ],
)
def test_bad_values_are_refused(change, words):
    data = make_data(dtype=torch.float32)
    with refuses(ValueError, *words):
        gm.evaluate(gm.coreset("random", data, 1), data, **{**QUICK, **change})


def test_data_without_test_images_are_refused_before_any_training():
    data = make_data(dtype=torch.float32)
    nothing = dataclasses.replace(data, test_images=data.test_images[:0], test_labels=data.test_labels[:0])
    with refuses(ValueError, "has no test images", "test_share"):
        gm.evaluate(gm.coreset("random", data, 1), nothing, **QUICK)


def test_a_set_that_does_not_fit_the_data_is_refused():
    data = make_data((3, 3), dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    with refuses(ValueError, "mean (0.9,)", str(data.mean)):
        gm.evaluate(dataclasses.replace(S, mean=(0.9,)), data, **QUICK)
    with refuses(ValueError, "lacks", "'2'"):
        gm.evaluate(S, make_data((3, 3, 3), dtype=torch.float32), **QUICK)
    with refuses(ValueError, "SyntheticSet", "list"):
        gm.evaluate([1], data, **QUICK)


@pytest.fixture
def two_diverge(monkeypatch):
    """The networks 0 and 3 end with NaN, if the list of trained networks is not None."""
    numbers = [None]
    train = evaluation._train

    def train_some(group, *args):
        trained = train(group, *args)
        if numbers == [None]:
            return trained
        numbers.extend(group)
        with torch.no_grad():
            for j, network in zip(group, trained, strict=True):
                if j in (0, 3):
                    network[-1].bias[0] = math.nan
        return trained

    monkeypatch.setattr(evaluation, "_train", train_some)
    return numbers


def test_networks_that_diverge_have_no_accuracy(two_diverge, caplog):
    data = make_data(dtype=torch.float32, n_test=90)
    S, five = gm.coreset("random", data, 3), {**QUICK, "n_networks": 5}
    whole = gm.evaluate(S, data, **five).accuracies
    two_diverge.clear()
    found = gm.evaluate(S, data, **five)
    assert (found.n, found.trained, found.failed) == (3, 5, (0, 3)) and "2 of 5" in caplog.text
    assert found.accuracies == (whole[1], whole[2], whole[4]) and "n = 3, 2 diverged" in str(found)
    assert found.first(4).accuracies == found.accuracies[:2] and found.first(4).failed == (0, 3)
    assert found.first(1).n == 0 and math.isnan(found.first(1).mean) and "1 diverged" in str(found.first(1))
    two_diverge.clear()
    again = gm.evaluate(S, data, **five, known=found.first(4))
    assert (again.accuracies, again.failed, two_diverge) == (found.accuracies, found.failed, [4])


def test_a_learning_rate_that_is_too_high_gives_no_accuracy():
    """Class 0 has most of the test images, so NaN counted as class 0 would look good."""
    data = make_data((4, 4), dtype=torch.float32, n_test=90)
    S = gm.coreset("random", data, 3)
    found = gm.evaluate(S, data, **{**QUICK, "epochs": 60}, lr=1e12)
    assert found.n == 0 and found.trained == QUICK["n_networks"]


def test_a_last_image_for_batchnorm_joins_the_batch_before():
    data = make_data((5, 5, 5), (1, 4, 4), dtype=torch.float32)
    S = gm.coreset("random", data, 3)  # 9 images: 4, 4 and 1
    options = {**QUICK, "width": 4, "depth": 2, "batch": 4}
    assert gm.evaluate(S, data, "convnet:norm=batch", **options).n == QUICK["n_networks"]
    with refuses(ValueError, "batch=1", "2"):
        gm.evaluate(S, data, "convnet:norm=batch", **{**options, "batch": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline", "soon"),
        ("each", 5),
        ("progress", "no"),
        ("known", "x"),
        ("known", [True]),
        ("known", [101.0]),
        ("known", [100.7]),
        ("known", Evaluation((math.nan,), "convnet", 0)),
        ("known", Evaluation((150.0,), "convnet", 0)),
        ("known", Evaluation((50.0,), "mlp", 0)),
        ("known", Evaluation((50.0,), "convnet", 1)),
        ("known", Evaluation((50.0,), "convnet", 0, {"epochs": 7})),
        ("failed", Evaluation((50.0,), "convnet", 0, failed=(5,))),
        ("failed", Evaluation((50.0,), "convnet", 0, failed=(0, 0))),
    ],
)
def test_slips_are_refused_before_any_training(trained, name, value):
    data = make_data(dtype=torch.float32)
    with refuses(ValueError, name):
        given = {"known" if name == "failed" else name: value}
        gm.evaluate(gm.coreset("random", data, 1), data, **{**QUICK, **given})
    with refuses(ValueError, "Data", "NoneType"):
        gm.evaluate(gm.coreset("random", data, 1), None, **QUICK)
    assert not trained


def test_augmented_training_differs_and_repeats():
    data = make_data(dtype=torch.float32, n_test=90)
    S = gm.coreset("random", data, 2)
    plain, augmented, again = (
        gm.evaluate(S, data, **{**QUICK, "epochs": 20}, augment=a) for a in ("none", "dsa", "dsa")
    )
    assert augmented.accuracies == again.accuracies != plain.accuracies


def test_training_on_data_uses_every_training_image():
    """It equals training on a set of all training images."""
    data = make_data((4, 4, 4), dtype=torch.float64, n_test=60)
    whole = gm.evaluate(data, data, **QUICK)
    everything = gm.SyntheticSet(data.train_images, data.train_labels, data.classes, data.mean, data.std)
    assert whole.accuracies == gm.evaluate(everything, data, **QUICK).accuracies


def test_adam_can_be_chosen():
    data = make_data(dtype=torch.float64, n_test=90)
    S = gm.coreset("random", data, 2)
    assert gm.evaluate(S, data, **QUICK, optimiser="adam").protocol["optimiser"] == "adam"
    f = first_network()
    before = [p.detach().clone() for p in f.parameters()]
    rng = generator(0, "x")
    training.fit(f, S.images, S.labels, epochs=1, rng=rng, optimiser="adam", lr=0.01, weight_decay=0.0)
    # A single epoch counts as the second half, with lr / 10. This is the size of Adam's first step if the gradient is
    # well above its epsilon.
    moved = torch.cat([(p - q).abs().flatten() for p, q in zip(f.parameters(), before, strict=True)])
    assert moved.max().item() == pytest.approx(0.001, rel=1e-3)
    assert moved.median().item() == pytest.approx(0.001, rel=1e-2)


def test_known_accuracies_are_not_trained_again_and_each_network_is_reported():
    data = make_data(dtype=torch.float32, n_test=90)
    S = gm.coreset("random", data, 3)
    whole = gm.evaluate(S, data, **{**QUICK, "n_networks": 3})
    seen = []
    rest = gm.evaluate(S, data, **{**QUICK, "n_networks": 3}, known=whole.accuracies[:1], each=seen.append)
    assert rest.accuracies == whole.accuracies
    assert [e.accuracies for e in seen] == [whole.accuracies[:2], whole.accuracies]
    with refuses(OutOfTime, "0 of 2 networks", "more time"):
        gm.evaluate(S, data, **QUICK, deadline=time.monotonic() - 1)


def test_a_protocol_can_be_given_and_changed():
    data = make_data(dtype=torch.float32)
    S, protocol = gm.coreset("random", data, 1), Protocol(4, 2, epochs=1)
    found = gm.evaluate(S, data, n_networks=1, protocol=protocol, device="cpu", progress=False, lr=0.2)
    assert (found.protocol["width"], found.protocol["epochs"], found.protocol["lr"]) == (4, 1, 0.2)


# ---- networks of one's own ---------------------------------------------------------------------------------


class Own(torch.nn.Module):
    """A network of a user with BatchNorm and layers inside layers."""

    def __init__(self, channels=1, size=8, n_classes=3):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(channels, 6, 3, padding=1), torch.nn.BatchNorm2d(6))
        self.last = torch.nn.Linear(6 * size * size, n_classes)

    def forward(self, x):
        return self.last(self.body(x).relu().flatten(1))


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = torch.nn.Linear(64, 3)

    def forward(self, x):
        rows = x[:, 0]
        return self.last(self.rows(rows, rows, rows, need_weights=False)[0].flatten(1))


class Token(torch.nn.Module):
    """Its own weight has no reset_parameters."""

    def __init__(self):
        super().__init__()
        self.token, self.last = torch.nn.Parameter(torch.ones(3)), torch.nn.Linear(64, 3)

    def forward(self, x):
        return self.last(x.flatten(1)) + self.token


class Forgets(Token):
    """Its reset_parameters leaves its weight as it is."""

    def reset_parameters(self):
        pass


class Fails(Token):
    def reset_parameters(self, scale):
        torch.nn.init.normal_(self.token, 0, scale)


def linear(*layers, n_out=3, n_in=64):
    return torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(n_in, n_out))


def frozen():
    network = linear()
    network[1].bias.requires_grad_(False)
    return network


@pytest.mark.parametrize(("instance", "factory"), [(Own, Own), (Attention, lambda *_: Attention())])
def test_a_module_is_an_architecture_whose_copies_start_like_new_ones(instance, factory):
    """Whatever it has learned, in whatever dtype and mode. It stays as it is."""
    data = make_data(dtype=torch.float32, n_test=90)
    S = gm.coreset("random", data, 2)
    network = instance().double().eval()
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(7.0)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    found = gm.evaluate(S, data, network, **QUICK)
    assert found.per_class == gm.evaluate(S, data, factory, **QUICK).per_class
    assert found.accuracies != gm.evaluate(S, data, network, **QUICK, seed=1).accuracies
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not network.training and torch.equal(torch.get_rng_state(), state)
    assert found.network == instance.__name__ and found.network not in networks.NETWORKS


def test_networks_of_ones_own_have_the_names_of_their_classes_and_functions(trained):
    def mlp(channels, size, n_classes, width):
        return networks.mlp(channels, size, n_classes)

    data = make_data(dtype=torch.float32)
    S, one = gm.coreset("random", data, 1), {**QUICK, "n_networks": 1}
    names = {
        "Own": Own(),
        "Sequential": linear(),
        "lambda": lambda channels, size, n_classes: linear(),
        "mlp": networks.NETWORKS["mlp"],
        f"{__name__}.mlp": mlp,  # not the built-in one
        "Branching": functools.partial(Branching),
        "branching": Branching,  # registered
    }
    known = dict(networks.NETWORKS)
    for name, network in names.items():
        assert gm.evaluate(S, data, network, **one).network == name and known == networks.NETWORKS
    found = gm.evaluate(S, data, mlp, **QUICK)
    assert found.accuracies == gm.evaluate(S, data, "mlp", **QUICK).accuracies
    assert gm.evaluate(S, data, mlp, **QUICK, known=found.first(1)).accuracies == found.accuracies
    with refuses(ValueError, "known has network"):
        gm.evaluate(S, data, "mlp", **QUICK, known=found)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Token(), ["Token", "no reset_parameters", "function of"]),
        (Forgets(), ["Forgets", "token"]),
        (Fails(), ["Fails", "fails"]),
        (Token, ["Token cannot be called", "function"]),
        (frozen(), ["1.bias", "frozen", "function of"]),
        (linear(torch.nn.LazyLinear(64)), ["no shape", "call it on an image"]),
        (torch.nn.utils.parametrizations.spectral_norm(linear()[1]), ["ParametrizationList", "function of"]),
        (linear(n_out=7), ["'Sequential'", "(2, 7)", "(2, 3)"]),
        (linear(n_in=63), ["'Sequential'", "(1, 8, 8)"]),
        (lambda channels, size, n_classes: 5, ["'lambda'", "int", "torch.nn.Module"]),
        (lambda: linear(), ["lambda", "(channels, size, n_classes)"]),
        (5, ["network=5", "'convnet'", "torch.nn.Module"]),
        (None, ["network=None"]),
    ],
)
def test_networks_that_cannot_start_again_are_refused_before_any_training(trained, network, words):
    data = make_data(dtype=torch.float32)
    state = torch.get_rng_state()
    with refuses(ValueError, *words):
        gm.evaluate(gm.coreset("random", data, 1), data, network, **QUICK)
    assert not trained and torch.equal(torch.get_rng_state(), state)


def test_a_network_that_is_registered_meanwhile_stays(trained):
    data = make_data(dtype=torch.float32)
    found = gm.evaluate(
        gm.coreset("random", data, 1),
        data,
        Own,
        **QUICK,
        each=lambda e: e.n == 1 and networks.register("Own", Branching),
    )
    assert found.network == "Own" and networks.NETWORKS["Own"] is Branching


def test_a_factory_gets_the_width_unless_it_is_fixed():
    def factory(channels, size, n_classes, width=5):
        widths.append(width)
        return linear(torch.nn.Linear(64, 64))

    data, widths = make_data(dtype=torch.float32), []
    S = gm.coreset("random", data, 1)
    gm.evaluate(S, data, factory, **QUICK)
    assert set(widths) == {QUICK["width"]}
    widths.clear()
    assert gm.evaluate(S, data, functools.partial(factory, width=7), **QUICK).network == "factory"
    assert set(widths) == {7}


def test_batchnorm_of_ones_own_network_is_noticed():
    data = make_data(dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    assert resolve_protocol(S, data, Own())["augment"] == "shift+noise"
    with refuses(ValueError, "batch=1", "Own"):
        gm.evaluate(S, data, Own, **QUICK, batch=1)


# ---- many networks side by side ----------------------------------------------------------------------------


class Branching(torch.nn.Module):
    """What it computes depends on the pixels, so that its steps cannot be recorded."""

    def __init__(self, channels, size, n_classes):
        super().__init__()
        self.last = torch.nn.Linear(channels * size * size, n_classes)

    def forward(self, x):
        return self.last(x.flatten(1) if x.mean() > 0 else 2 * x.flatten(1))


@pytest.fixture
def trained(monkeypatch):
    """A list to which `evaluate` appends the final weights of each group that it trains."""
    known, fit, groups = dict(networks.NETWORKS), training.fit, []

    def keep(group, *args, **options):
        groups.append([network.state_dict() for network in fit(group, *args, **options)])
        return group

    monkeypatch.setattr(evaluation, "fit", keep)
    networks.register("branching", Branching)
    yield groups
    networks.NETWORKS.clear()
    networks.NETWORKS.update(known)


def named(name, shape):
    """Made-up data with the name of a real set, which decides the augmentation."""
    return dataclasses.replace(make_data((6, 6, 6), shape, n_test=60), name=name)


SIDE_BY_SIDE = [
    ("MNIST", (1, 28, 28), {}),  # shift, stretch, turn
    ("MNIST", (1, 28, 28), {"augment": "none", "batch": 4}),
    ("made-up", (1, 8, 8), {"augment": "dsa", "batch": 4}),
    ("made-up", (3, 8, 8), {"augment": "dsa"}),
    ("made-up", (3, 8, 8), {"batch": 7}),
    ("made-up", (3, 8, 8), {"batch": 4, "network": "convnet:norm=batch"}),  # shift, noise
    ("made-up", (1, 8, 8), {"batch": 4, "optimiser": "adam"}),
    pytest.param("made-up", (1, 8, 8), {"batch": 4, "network": "branching"}, id="branching"),
]


def check_side_by_side(trained, name, shape, change, device, exact):
    """Train one by one, three at once, and all at once. Returns the weights of one by one."""
    data = named(name, shape)
    S, quick = gm.coreset("random", data, 3), {**QUICK, "n_networks": 4, "device": device, **change}
    found = []
    for side_by_side, groups in ((1, [1, 1, 1, 1]), (3, [3, 1]), (4, [4]), (9, [4])):
        trained.clear()
        accuracies = gm.evaluate(S, data, **quick, side_by_side=side_by_side).accuracies
        found.append((accuracies, [weights for group in trained for weights in group]))
        assert [len(group) for group in trained] == groups
    (accuracies, alone), *side_by_side = found
    near = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-9}
    for their_accuracies, weights in side_by_side:
        assert their_accuracies == pytest.approx(accuracies, abs=0 if exact else 2)
        for one, other in zip(alone, weights, strict=True):
            assert all(torch.allclose(one[key], other[key], **near) for key in one)
    return alone


@pytest.mark.parametrize(("name", "shape", "change"), SIDE_BY_SIDE)
def test_side_by_side_equals_one_by_one_on_a_cpu_bit_for_bit(trained, name, shape, change):
    check_side_by_side(trained, name, shape, change, "cpu", exact=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "shape", "change"), SIDE_BY_SIDE)
def test_side_by_side_on_a_gpu_equals_one_by_one_on_a_cpu(trained, caplog, name, shape, change):
    """Steps are recorded on several streams. If they cannot be recorded, each group logs one line."""
    change = {"epochs": 8, **change}
    there = check_side_by_side(trained, name, shape, change, "cuda", exact=False)
    lines = [r.getMessage() for r in caplog.records if "CUDA graph" in r.getMessage()]
    assert len(lines) == (4 + 2 + 1 + 1 if change.get("network") == "branching" else 0)
    trained.clear()
    gm.evaluate(
        gm.coreset("random", named(name, shape), 3), named(name, shape), **{**QUICK, "n_networks": 4, **change}
    )
    for one, (other,) in zip(there, trained, strict=True):
        assert all(torch.allclose(one[key].cpu(), other[key], rtol=1e-4, atol=1e-6) for key in one)


def test_groups_continue_after_known_networks_and_stop_at_the_deadline(trained, monkeypatch):
    data = make_data(dtype=torch.float32, n_test=90)
    S, five = gm.coreset("random", data, 3), {**QUICK, "n_networks": 5}
    whole, seen = gm.evaluate(S, data, **five), []
    trained.clear()
    rest = gm.evaluate(S, data, **five, side_by_side=2, known=whole.accuracies[:2], each=seen.append)
    assert rest.accuracies == whole.accuracies and [len(group) for group in trained] == [2, 1]
    assert [e.accuracies for e in seen] == [whole.accuracies[:4], whole.accuracies]
    steps = 1 + QUICK["epochs"] + 3  # the time is checked before each group, each step and each test
    for in_time in (steps, steps + 2):  # until the second group, and into its training
        calls = itertools.count()
        monkeypatch.setattr(runtime, "deadline_passed", lambda _, n=in_time, calls=calls: next(calls) >= n)
        seen.clear()
        with refuses(OutOfTime, "3 of 5 networks", "run again"):
            gm.evaluate(S, data, **five, side_by_side=3, each=seen.append)
        assert [e.accuracies for e in seen] == [whole.accuracies[:3]] and next(calls) == in_time + 1
    monkeypatch.undo()
    assert gm.evaluate(S, data, **five, known=whole.accuracies, side_by_side=3).accuracies == whole.accuracies


@pytest.mark.parametrize("room", [1, 2])
def test_fewer_networks_train_side_by_side_after_memory_ran_out(trained, monkeypatch, caplog, room):
    """The device has room for this many networks. With more, training fails after the first epoch."""
    data = make_data(dtype=torch.float32, n_test=90)
    S, five = gm.coreset("random", data, 3), {**QUICK, "n_networks": 5}
    whole = gm.evaluate(S, data, **five)
    trained.clear()
    fit_and_keep = evaluation.fit

    def fit_with_little_memory(group, *args, **options):
        if len(group) > room:
            training.fit(group, *args, **options | {"epochs": 1})
            raise torch.OutOfMemoryError("made up")
        return fit_and_keep(group, *args, **options)

    monkeypatch.setattr(evaluation, "fit", fit_with_little_memory)
    caplog.set_level(logging.WARNING)
    assert gm.evaluate(S, data, **five, side_by_side=5).accuracies == whole.accuracies
    assert [len(group) for group in trained] == {1: [1, 1, 1, 1, 1], 2: [2, 2, 1]}[room]
    halved = [str(n) for n in (22, 11)]  # from 5 networks on 9 images each
    assert [[n for n in halved if n in r.getMessage()] for r in caplog.records] == [[n] for n in halved[: 3 - room]]


def test_out_of_memory_with_one_network_is_an_error(trained, monkeypatch):
    data = make_data(dtype=torch.float32)

    def full(group, *args, **options):
        trained.append(group)
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(evaluation, "fit", full)
    with pytest.raises(torch.OutOfMemoryError):
        gm.evaluate(gm.coreset("random", data, 1), data, **{**QUICK, "n_networks": 4}, side_by_side=4)
    assert [len(group) for group in trained] == [4, 2, 1]


def test_on_a_gpu_groups_are_few_and_of_even_size():
    """A group has at most TOGETHER images in all. A large set gives groups of one network."""
    assert TOGETHER == 1024
    sizes = {10: 50, 50: 17, 100: 10, 500: 2, 1000: 1, 60_000: 1}  # with 50 images: three groups of 17, 17 and 16
    assert {n: _group_size(50, n) for n in sizes} == sizes
    assert (_group_size(7, 200), _group_size(0, 10)) == (4, 0)


def test_on_a_cpu_each_thread_trains_a_network_if_steps_are_large(monkeypatch):
    """Two threads train two networks at once, one thread each. The bits are those of one thread."""
    data = make_data(dtype=torch.float32, n_test=60)
    S = gm.coreset("random", data, 2)
    options = {**QUICK, "n_networks": 5}
    alone = gm.evaluate(S, data, **options)
    threads, reported = [], []

    def fit(*args, **given):
        threads.append(torch.get_num_threads())
        return training.fit(*args, **given)

    monkeypatch.setattr(evaluation, "fit", fit)
    torch.set_num_threads(2)
    gm.evaluate(S, data, **options)
    assert threads == [2] * 5, "a step of a few kilobytes is too small"
    threads.clear()
    monkeypatch.setattr(evaluation, "LARGE", 1)
    found = gm.evaluate(S, data, **options, each=lambda e: reported.append(e.n))
    assert threads == [1] * 5 and reported == [2, 4, 5] and torch.get_num_threads() == 2
    assert found.accuracies == alone.accuracies
    known = gm.evaluate(S, data, **options, known=found.accuracies[:4])
    assert threads == [1] * 6 and known.accuracies == alone.accuracies


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_precision_applies_while_networks_are_trained_and_tested(monkeypatch, precision):
    seen, before = [], (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)

    def watched(real):
        def function(*args, **options):
            seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return real(*args, **options)

        return function

    monkeypatch.setattr(evaluation, "fit", watched(training.fit))
    monkeypatch.setattr(evaluation, "predict", watched(testing.predict))
    data = make_data(dtype=torch.float32)
    gm.evaluate(gm.coreset("random", data, 1), data, **{**QUICK, "n_networks": 1}, precision=precision)
    assert seen == [(precision == "tf32",) * 2] * 2
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


# ---- the faster forward pass on a CPU -------------------------------------------------------------------------


@pytest.fixture
def any_size(monkeypatch):
    """Small networks use the faster forward pass too."""
    monkeypatch.setattr(forward, "SMALLEST", 0)


def build(name="convnet", shape=(1, 28, 28), dtype=torch.float64, **size):
    """A network with norm parameters and biases as after some training, and ten images with labels."""
    network = networks.build(name, shape, 3, generator=generator(0, "network"), **{"width": 6, **size}).to(dtype)
    rng = generator(0, "images")
    with torch.no_grad():
        for p in network.parameters():
            p += 0.2 * torch.randn(p.shape, generator=rng)
    images = F.avg_pool2d(torch.randn(10, *shape, generator=rng), 3, 1, 1)
    return network, images.to(dtype), torch.arange(10) % 3


SHAPES = [((1, 28, 28), 3), ((3, 32, 32), 3), ((3, 16, 16), 4), ((2, 12, 12), 2), ((3, 8, 8), 1)]


@pytest.mark.parametrize(("shape", "depth"), SHAPES)
def test_the_faster_forward_pass_has_the_values_and_gradients_of_the_network(any_size, shape, depth):
    network, x, y = build(shape=shape, depth=depth)
    fast = forward.fast_forward(network, x)
    assert fast is not network
    torch.testing.assert_close(fast(x), network(x), rtol=1e-11, atol=1e-11)
    parameters = list(network.parameters())
    expected, found = (torch.autograd.grad(F.cross_entropy(f(x), y), parameters) for f in (network, fast))
    for g, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, g, rtol=1e-10, atol=1e-13)


def test_a_convolution_is_as_exact_as_torchs():
    """Winograd's method with the usual points has five times the error of a direct convolution."""
    x, weight = torch.rand(4, 16, 16, 128, generator=generator(0, "x")), build(depth=2, width=128)[0][4].weight
    exact = F.conv2d(x.permute(0, 3, 1, 2).double(), weight, padding=1)
    direct = F.conv2d(x.permute(0, 3, 1, 2), weight.float(), padding=1)
    fast = forward._convolve(x, weight.float()).permute(0, 3, 1, 2)
    assert 0 < (fast - exact).norm() < 3.5 * (direct - exact).norm() < 1e-5 * exact.norm()


FIRST_ON_FAKE_TENSORS = """
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from gmlib import networks
from gmlib.speed.forward import fast_forward
network = networks.build("convnet", (3, 32, 32), 3, generator=torch.Generator().manual_seed(0))
images = torch.randn(4, 3, 32, 32)
with FakeTensorMode(allow_non_fake_inputs=True):
    assert isinstance(fast_forward(network, torch.empty(4, 3, 32, 32))(torch.empty(4, 3, 32, 32)), FakeTensor)
torch.set_default_device("meta")
logits = fast_forward(network, images)(images)
assert type(logits) is torch.Tensor and logits.device.type == "cpu"
torch.testing.assert_close(logits, network(images), rtol=1e-4, atol=1e-5)
"""


def test_a_first_pass_on_fake_tensors_leaves_nothing_behind():
    """A tensor that is kept from a first pass must serve later ones, whatever mode or device was set then."""
    code = [sys.executable, "-c", FIRST_ON_FAKE_TENSORS]
    found = subprocess.run(code, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr


def test_a_network_with_a_hook_is_used_as_it_is(any_size):
    network, x, _ = build()
    seen = []
    handle = network[0].register_forward_hook(lambda *call: seen.append(call))
    assert forward.fast_forward(network, x) is network
    handle.remove()
    assert forward.fast_forward(network, x) is not network and not seen


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("convnet:norm=batch", (1, 28, 28), {}),
        ("convnet:norm=group", (1, 28, 28), {"width": 8}),
        ("convnet:pooling=max", (1, 28, 28), {}),
        ("convnet:activation=leaky", (1, 28, 28), {}),
        ("convnet", (3, 28, 28), {}),  # the last feature map has 7x7 pixels
        ("mlp", (1, 28, 28), {}),
        ("lenet", (1, 28, 28), {}),
    ],
)
def test_other_networks_keep_their_own_forward_pass(any_size, name, shape, size):
    network, x, _ = build(name, shape, **size)
    assert forward.fast_forward(network, x) is network


@pytest.mark.parametrize(
    ("options", "n", "is_product"),
    [
        ({"padding": 1}, 3, True),
        ({"padding": 1, "bias": False}, 3, True),
        ({"padding": (2, 0), "stride": (1, 2)}, 3, True),
        ({"padding": 2, "dilation": 2}, 3, True),
        ({"padding": 1}, 17, False),  # 272 pixels, 256 channels
        ({"padding": 1, "groups": 2}, 3, False),
        ({"padding": "same"}, 3, False),
        ({"padding": 1, "padding_mode": "reflect"}, 3, True),
    ],
)
def test_a_wide_convolution_of_small_maps_is_a_product(options, n, is_product, monkeypatch):
    rng = generator(0, "x")
    network = nn.Sequential(nn.Conv2d(256, 6, 3, **options), nn.ReLU(), nn.Conv2d(6, 2, 1)).double()
    x, products = torch.randn(n, 256, 4, 4, generator=rng, dtype=torch.float64, requires_grad=True), []
    unfold = F.unfold
    monkeypatch.setattr(F, "unfold", lambda *arguments: products.append(1) or unfold(*arguments))
    fast = forward.fast_forward(network, x)
    wanted = [x, *network.parameters()]
    expected, found = ([y := f(x), *torch.autograd.grad(y.square().sum(), wanted)] for f in (network, fast))
    assert len(products) == is_product
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-11)
    assert forward.fast_forward(network, x, torch.bfloat16) is network, "so that a pass in bfloat16 is one"
    with torch.no_grad():
        assert forward.fast_forward(network, x) is network, "a forward pass alone is faster with torch's layers"


def test_small_feature_maps_are_faster_with_torchs_layers():
    for shape, width, faster in (((1, 28, 28), 128, True), ((3, 32, 32), 32, False), ((1, 8, 8), 128, False)):
        network, x, _ = build(shape=shape, width=width)
        assert (forward.fast_forward(network, x) is not network) == faster


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("batch", [256, 4])
def test_training_and_test_are_the_same_with_the_faster_forward_pass(any_size, monkeypatch, dtype, tolerance, batch):
    network, x, y = build(dtype=dtype, width=16)
    trained = {}
    for name, function in (("fast", forward.fast_forward), ("torch", lambda network, *_: network)):
        monkeypatch.setattr(training, "fast_forward", function)
        monkeypatch.setattr(testing, "fast_forward", function)
        options = {"epochs": 5, "lr": 0.02, "batch": batch}
        trained[name] = training.fit(copy.deepcopy(network), x, y, rng=generator(0, "rng"), **options)
        trained[name].score = accuracy(trained[name], x, y)
    start = dict(network.named_parameters())
    for (name, p), q in zip(trained["fast"].named_parameters(), trained["torch"].parameters(), strict=True):
        assert (p - q).norm() <= tolerance * q.norm() and not torch.equal(p, start[name])
    assert trained["fast"].score == trained["torch"].score


def test_a_test_in_bfloat16_predicts_the_classes_of_float32(any_size, monkeypatch):
    network, *_ = build(shape=(1, 16, 16), dtype=torch.float32, width=32)
    x = F.avg_pool2d(torch.randn(2000, 1, 16, 16, generator=generator(0, "test images")), 3, 1, 1)
    with torch.no_grad():
        exact, rough = (forward.fast_forward(network, x, dtype)(x).argmax(1) for dtype in (None, torch.bfloat16))
    assert not torch.equal(rough, exact)
    dtypes, again = [], []

    def watched(network, x, dtype=None):
        function = forward.fast_forward(network, x, dtype)
        dtypes.append(dtype)
        return lambda part: (again.append(len(part)) if dtype is None else None, function(part))[1]

    monkeypatch.setattr(testing, "fast_forward", watched)
    monkeypatch.setattr(testing, "PASS", 500)
    monkeypatch.setattr(testing, "has_bf16", lambda device: True)
    assert torch.equal(testing.predict(network, x), exact) and network.training
    assert dtypes == [None, torch.bfloat16] and testing.CHECKED < sum(again) < 1000, "only a part is computed again"
    monkeypatch.setattr(testing, "SAFETY", 0)
    assert torch.equal(testing.predict(network, x), rough)
    again.clear()
    network[-1].bias.data[1] = math.nan
    assert torch.equal(testing.predict(network, x), -torch.ones_like(exact)) and sum(again) > len(x)


def test_small_tests_and_other_machines_stay_in_float32(any_size, monkeypatch):
    network, x, _ = build(dtype=torch.float32)
    x = x.repeat(60, 1, 1, 1)
    monkeypatch.setattr(testing, "PASS", 500)
    for usable, images in ((False, x), (True, x[:499]), (True, x.double())):
        monkeypatch.setattr(testing, "has_bf16", lambda device, usable=usable: usable)
        monkeypatch.setattr(testing, "_logits_in_two_steps", None)
        assert len(testing.predict(network.to(images.dtype), images)) == len(images)


def test_threads_do_not_change_the_bits_of_the_faster_forward_pass(any_size, trained, monkeypatch):
    data = named("MNIST", (1, 28, 28))
    S, options = gm.coreset("random", data, 1), {**QUICK, "width": 16, "depth": 3, "n_networks": 4}
    monkeypatch.setattr(evaluation, "LARGE", 1)
    weights = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        trained.clear()
        found = gm.evaluate(S, data, **options)
        weights.append((found.accuracies, sorted(float(w["0.weight"].sum()) for (w,) in trained)))
    assert weights[0] == weights[1] == weights[2]
