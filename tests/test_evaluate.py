"""Phase 2: the protocol step by step, statistics against numpy and scipy, augmentation pixel by pixel."""

import dataclasses
import logging
import math
import time

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from conftest import make_data

import gmlib as gm
from gmlib import evaluation, networks
from gmlib.evaluation import TOGETHER, Evaluation, Protocol, _fitting, accuracy, settle
from gmlib.runtime import OutOfTime, generator
from gmlib.speed import training

QUICK = {"n_networks": 2, "epochs": 3, "width": 4, "depth": 2, "device": "cpu", "progress": False}


def test_the_protocol_step_by_step():
    """SGD with momentum and weight decay written out; lr / 10 from half the epochs on; the last epoch counts."""
    data = make_data(dtype=torch.float64, n_test=60)
    S = gm.coreset("random", data, 2)
    found = gm.evaluate(S, data, **{**QUICK, "epochs": 4, "n_networks": 1}, lr=0.05)
    f = networks.build(
        "convnet", (1, 8, 8), 3, generator=generator(0, "evaluate", 0), width=4, depth=2, dtype=torch.float64
    )
    parameters, buffers = list(f.parameters()), None
    for epoch in range(4):
        gradient = torch.autograd.grad(F.cross_entropy(f(S.images), S.labels), parameters)
        gradient = [g + 5e-4 * p.detach() for g, p in zip(gradient, parameters, strict=True)]
        buffers = gradient if buffers is None else [0.9 * b + g for b, g in zip(buffers, gradient, strict=True)]
        with torch.no_grad():
            for p, b in zip(parameters, buffers, strict=True):
                p -= (0.05 if epoch < 2 else 0.005) * b
    right = sum(
        int(f(image[None]).argmax() == label) for image, label in zip(data.test_images, data.test_labels, strict=True)
    )
    assert found.accuracies == (100 * right / 60,)
    assert found.protocol == {
        "width": 4, "depth": 2, "epochs": 4, "optimiser": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4,
        "batch": 256, "augment": "none", "precision": "float32",
    }  # fmt: skip


def test_same_seed_same_accuracies_and_fewer_networks_are_the_first_of_more():
    data = make_data(dtype=torch.float32, n_test=90)
    S = gm.coreset("random", data, 3)
    three = gm.evaluate(S, data, **{**QUICK, "n_networks": 3})
    assert gm.evaluate(S, data, **{**QUICK, "n_networks": 3}).accuracies == three.accuracies
    assert gm.evaluate(S, data, **QUICK).accuracies == three.accuracies[:2]
    assert gm.evaluate(S, data, **{**QUICK, "n_networks": 3}, seed=1).accuracies != three.accuracies


def test_copies_of_a_set_teach_the_same_as_the_set():
    data = make_data(n_test=60)
    S = gm.coreset("random", data, 2)
    copies = gm.SyntheticSet(
        S.images.repeat_interleave(3, 0), S.labels.repeat_interleave(3), S.classes, S.mean, S.std, S.recipe
    )
    assert gm.evaluate(copies, data, **QUICK).accuracies == gm.evaluate(S, data, **QUICK).accuracies


def test_the_recipes_network_is_the_default():
    data = make_data(dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    small = gm.SyntheticSet(S.images, S.labels, S.classes, S.mean, S.std, {"width": 4, "depth": 2})
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
    monkeypatch.setitem(accuracy.__wrapped__.__globals__, "TEST_BATCH", 3)
    x, y = torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]], torch.tensor([0, 1, 2, 3, 1, 1, 0])
    assert accuracy(torch.nn.Identity(), x, y) == pytest.approx(100 * 5 / 7)


def test_only_mnist_is_augmented_by_the_papers_protocol():
    data = make_data((5, 5), (1, 28, 28), dtype=torch.float32)
    mnist = gm.Data.from_arrays(
        "MNIST",
        torch.rand(10, 28, 28, generator=generator(0)),
        data.train_labels,
        torch.rand(4, 28, 28),
        [0, 1, 0, 1],
    )
    S = gm.coreset("random", mnist, 1)
    quick = {**QUICK, "n_networks": 1}
    assert gm.evaluate(S, mnist, **quick).protocol["augment"] == "crop+scale+rotate"
    assert gm.evaluate(S, mnist, **quick, augment="none").protocol["augment"] == "none"
    assert gm.evaluate(gm.coreset("random", data, 1), data, **quick).protocol["augment"] == "none"
    assert gm.evaluate(S, mnist, **quick, augment="dsa").protocol["augment"] == "dsa+crop+cutout+scale+rotate+colour"
    batchnorm = settle(gm.coreset("random", data, 1), data, "convnet:norm=batch", width=4, depth=1)
    assert (batchnorm["augment"], batchnorm["epochs"]) == ("crop+noise", 1000)
    assert [settle(S, mnist, "convnet", epochs=n)["epochs"] for n in (None, 7)] == [1000, 7]
    assert settle(gm.coreset("random", data, 1), data, "convnet")["epochs"] == 300


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"network": "vit"}, "unknown network 'vit': choose from .*convnet"),
        ({"optimiser": "lbfgs"}, "unknown optimiser 'lbfgs': choose from sgd, adam"),
        ({"colour": 1}, "unknown protocol field 'colour': choose from width, depth"),
        ({"width": 0}, "width=0 does not fit: give a whole number of at least 1"),
        ({"depth": -1}, "depth=-1 does not fit"),
        ({"lr": "a"}, "lr='a' does not fit"),
        ({"epochs": True}, "epochs=True does not fit"),
        ({"seed": -1}, "seed=-1 does not fit"),
        ({"device": "cudax"}, "the device 'cudax' cannot be used here .*: try cpu"),
        ({"augment": "cutout"}, "unknown augment 'cutout': choose from paper, none, dsa, or dsa: and operations"),
        ({"protocol": {"epochs": 5}}, "protocol is a dict: give a Protocol, or its fields by name, as in epochs=100"),
        ({"precision": "bf16"}, "unknown precision 'bf16': choose from float32, tf32"),
        ({"n_networks": 0}, "n_networks=0 does not fit"),
        ({"side_by_side": 0}, "side_by_side=0 does not fit: give a whole number of at least 1"),
        ({"epochs": 0}, "epochs=0 does not fit"),
        ({"lr": -1}, "lr=-1 does not fit: give a positive number"),
        ({"momentum": 1.5}, "momentum=1.5 does not fit"),
        ({"weight_decay": -1e-3}, "weight_decay=-0.001 does not fit"),
    ],
)
def test_bad_values(change, sentence):
    data = make_data(dtype=torch.float32)
    with pytest.raises(ValueError, match=sentence):
        gm.evaluate(gm.coreset("random", data, 1), data, **{**QUICK, **change})


def test_a_set_of_another_normalisation_is_refused():
    data = make_data((3, 3), dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    other = gm.SyntheticSet(S.images, S.labels, S.classes, (0.9,), (0.1,), S.recipe)
    with pytest.raises(ValueError, match=r"normalised by mean \(0\.9,\) .* bring one to the other's"):
        gm.evaluate(other, data, **QUICK)


def test_augmented_training_differs_and_repeats():
    data = make_data(dtype=torch.float32, n_test=90)
    S = gm.coreset("random", data, 2)
    plain, varied, again = (
        gm.evaluate(S, data, **{**QUICK, "epochs": 20}, augment=a) for a in ("none", "dsa", "dsa")
    )
    assert varied.accuracies == again.accuracies != plain.accuracies


def test_whole_data_training_takes_every_training_image():
    """The same as a set that happens to hold all of them."""
    data = make_data((4, 4, 4), dtype=torch.float64, n_test=60)
    whole = gm.evaluate(data, data, **QUICK)
    everything = gm.SyntheticSet(data.train_images, data.train_labels, data.classes, data.mean, data.std)
    assert whole.accuracies == gm.evaluate(everything, data, **QUICK).accuracies


def test_adam_is_another_optimiser():
    data = make_data(dtype=torch.float64, n_test=90)
    S = gm.coreset("random", data, 2)
    assert gm.evaluate(S, data, **QUICK, optimiser="adam").protocol["optimiser"] == "adam"
    f = networks.build(
        "convnet", (1, 8, 8), 3, generator=generator(0, "evaluate", 0), width=4, depth=2, dtype=torch.float64
    )
    before = [p.detach().clone() for p in f.parameters()]
    rng = generator(0, "x")
    training.fit(f, S.images, S.labels, epochs=1, rng=rng, optimiser="adam", lr=0.01, weight_decay=0.0)
    # A single epoch is its own second half, at lr / 10; Adam's first step is that much wherever a gradient is well above eps.
    moved = torch.cat([(p - q).abs().flatten() for p, q in zip(f.parameters(), before, strict=True)])
    assert moved.max().item() == pytest.approx(0.001, rel=1e-3) and moved.median().item() == pytest.approx(
        0.001, rel=1e-2
    )


def test_known_accuracies_are_not_trained_again_and_each_network_is_reported():
    data = make_data(dtype=torch.float32, n_test=90)
    S = gm.coreset("random", data, 3)
    whole = gm.evaluate(S, data, **{**QUICK, "n_networks": 3})
    seen = []
    rest = gm.evaluate(S, data, **{**QUICK, "n_networks": 3}, known=whole.accuracies[:1], each=seen.append)
    assert rest.accuracies == whole.accuracies
    assert [e.accuracies for e in seen] == [whole.accuracies[:2], whole.accuracies]
    with pytest.raises(
        OutOfTime, match="out of time after 0 of 2 networks: give it more time, or each= to keep what there is"
    ):
        gm.evaluate(S, data, **QUICK, deadline=time.monotonic() - 1)


def test_a_protocol_can_be_given_whole():
    data = make_data(dtype=torch.float32)
    S, protocol = gm.coreset("random", data, 1), Protocol(4, 2, epochs=1)
    found = gm.evaluate(S, data, n_networks=1, protocol=protocol, device="cpu", progress=False, lr=0.2)
    assert (found.protocol["width"], found.protocol["epochs"], found.protocol["lr"]) == (4, 1, 0.2)


def test_a_set_of_other_data_is_refused():
    S = gm.coreset("random", make_data((3, 3), dtype=torch.float32), 1)
    with pytest.raises(ValueError, match=r"the set has 2 classes .* but made-up has 3"):
        gm.evaluate(S, make_data((3, 3, 3), dtype=torch.float32), **QUICK)


# ---- many networks side by side ----------------------------------------------------------------------------


class Loose(torch.nn.Module):
    """Which way it goes depends on the pixels."""

    def __init__(self, channels, size, n_classes):
        super().__init__()
        self.last = torch.nn.Linear(channels * size * size, n_classes)

    def forward(self, x):
        return self.last(x.flatten(1) if x.mean() > 0 else 2 * x.flatten(1))


@pytest.fixture
def trained(monkeypatch):
    """Fills with the groups that `evaluate` trains: the final weights of each network."""
    known, fit, groups = dict(networks.NETWORKS), training.fit, []

    def keep(group, *args, **options):
        groups.append([network.state_dict() for network in fit(group, *args, **options)])
        return group

    monkeypatch.setattr(evaluation, "fit", keep)
    networks.register("loose", Loose)
    yield groups
    networks.NETWORKS.clear()
    networks.NETWORKS.update(known)


def named(name, shape):
    """Made-up data under the name of a real set, whose images the paper's protocol may vary."""
    return dataclasses.replace(make_data((6, 6, 6), shape, n_test=60), name=name)


SIDE_BY_SIDE = [
    ("MNIST", (1, 28, 28), {}),  # crop, scale, rotate
    ("MNIST", (1, 28, 28), {"augment": "none", "batch": 4}),
    ("made-up", (1, 8, 8), {"augment": "dsa", "batch": 4}),
    ("made-up", (3, 8, 8), {"augment": "dsa"}),
    ("made-up", (3, 8, 8), {"batch": 7}),
    ("made-up", (3, 8, 8), {"batch": 4, "network": "convnet:norm=batch"}),  # crop, noise
    ("made-up", (1, 8, 8), {"batch": 4, "optimiser": "adam"}),
    ("made-up", (1, 8, 8), {"batch": 4, "network": "loose"}),
]


def check_sides(trained, name, shape, change, device, exact):
    """One by one, by threes and all at once; returns the accuracies of one by one."""
    data = named(name, shape)
    S, quick = gm.coreset("random", data, 3), {**QUICK, "n_networks": 4, "device": device, **change}
    found = []
    for side_by_side, groups in ((1, [1, 1, 1, 1]), (3, [3, 1]), (4, [4]), (9, [4])):
        trained.clear()
        accuracies = gm.evaluate(S, data, **quick, side_by_side=side_by_side).accuracies
        found.append((accuracies, [weights for group in trained for weights in group]))
        assert [len(group) for group in trained] == groups
    (accuracies, alone), *others = found
    near = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-9}
    for others_accuracies, weights in others:
        assert others_accuracies == pytest.approx(accuracies, abs=0 if exact else 2)
        for one, other in zip(alone, weights, strict=True):
            assert all(torch.allclose(one[key], other[key], **near) for key in one)
    return alone


@pytest.mark.parametrize(("name", "shape", "change"), SIDE_BY_SIDE)
def test_side_by_side_is_one_by_one(trained, name, shape, change):
    """On a CPU to the bit, whoever stands beside a network."""
    check_sides(trained, name, shape, change, "cpu", exact=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "shape", "change"), SIDE_BY_SIDE)
def test_side_by_side_on_a_gpu_is_one_by_one_on_a_cpu(trained, caplog, name, shape, change):
    """Steps are recorded, on several streams; where they cannot be, one line for every group says so."""
    change = {"epochs": 8, **change}
    there = check_sides(trained, name, shape, change, "cuda", exact=False)
    said = [r.getMessage() for r in caplog.records if "cannot be recorded as a CUDA graph" in r.getMessage()]
    assert len(said) == (4 + 2 + 1 + 1 if change.get("network") == "loose" else 0)
    trained.clear()
    gm.evaluate(
        gm.coreset("random", named(name, shape), 3), named(name, shape), **{**QUICK, "n_networks": 4, **change}
    )
    for one, (other,) in zip(there, trained, strict=True):
        assert all(torch.allclose(one[key].cpu(), other[key], rtol=1e-4, atol=1e-6) for key in one)


def test_groups_go_on_from_known_networks_and_stop_at_the_deadline(trained, monkeypatch):
    data = make_data(dtype=torch.float32, n_test=90)
    S, five = gm.coreset("random", data, 3), {**QUICK, "n_networks": 5}
    whole, seen = gm.evaluate(S, data, **five), []
    trained.clear()
    rest = gm.evaluate(S, data, **five, side_by_side=2, known=whole.accuracies[:2], each=seen.append)
    assert rest.accuracies == whole.accuracies and [len(group) for group in trained] == [2, 1]
    assert [e.accuracies for e in seen] == [whole.accuracies[:4], whole.accuracies]
    looked = iter([False, True])
    monkeypatch.setattr(evaluation, "deadline_passed", lambda deadline: next(looked))
    seen.clear()
    with pytest.raises(OutOfTime, match="out of time after 3 of 5 networks: run again to go on"):
        gm.evaluate(S, data, **five, side_by_side=3, each=seen.append)
    assert [e.accuracies for e in seen] == [whole.accuracies[:3]]
    assert gm.evaluate(S, data, **five, known=whole.accuracies, side_by_side=3).accuracies == whole.accuracies


@pytest.mark.parametrize("room", [1, 2])
def test_where_memory_runs_out_fewer_are_trained_side_by_side(trained, monkeypatch, caplog, room):
    """A device with room for so many networks; the first attempt fails after a step."""
    data = make_data(dtype=torch.float32, n_test=90)
    S, five = gm.coreset("random", data, 3), {**QUICK, "n_networks": 5}
    whole, fit = gm.evaluate(S, data, **five), training.fit
    trained.clear()

    def short(group, *args, **options):
        if len(group) > room:
            fit(group, *args, **options | {"epochs": 1})
            trained.clear()
            raise torch.OutOfMemoryError("made up")
        return fit(group, *args, **options)

    monkeypatch.setattr(evaluation, "fit", short)
    caplog.set_level(logging.WARNING)
    assert gm.evaluate(S, data, **five, side_by_side=5).accuracies == whole.accuracies
    assert [len(group) for group in trained] == {1: [1, 1, 1, 1, 1], 2: [2, 2, 1]}[room]
    lines = [f"out of memory: going on with at most {n} images in one pass" for n in (22, 11)]  # of 5 x 9
    assert [r.getMessage() for r in caplog.records] == lines[: 3 - room]


def test_out_of_memory_with_one_network_is_an_error(trained, monkeypatch):
    data = make_data(dtype=torch.float32)

    def full(group, *args, **options):
        trained.append(group)
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(evaluation, "fit", full)
    with pytest.raises(torch.OutOfMemoryError):
        gm.evaluate(gm.coreset("random", data, 1), data, **{**QUICK, "n_networks": 4}, side_by_side=4)
    assert [len(group) for group in trained] == [4, 2, 1]


def test_how_many_stand_side_by_side():
    """On CUDA their sets come to TOGETHER images, shared out evenly; large sets take one after the other."""
    assert TOGETHER == 1024
    sizes = {
        10: 50,
        50: 17,
        100: 10,
        500: 2,
        1000: 1,
        60_000: 1,
    }  # of 50 networks: with 50 images three groups of 17, 17, 16
    assert {n: _fitting(50, n) for n in sizes} == sizes
    assert (_fitting(7, 200), _fitting(0, 10)) == (4, 0)


def test_on_a_cpu_large_steps_take_a_thread_each(monkeypatch):
    """Two threads: two networks at once, one thread for each also where one is left over, and the bits of one thread alone."""
    data, module = make_data(dtype=torch.float32, n_test=60), evaluation
    S, seen, told = gm.coreset("random", data, 2), [], []
    options = {**QUICK, "n_networks": 5}
    alone = gm.evaluate(S, data, **options)
    monkeypatch.setattr(
        networks, "fit", lambda *a, real=training.fit, **o: seen.append(torch.get_num_threads()) or real(*a, **o)
    )
    torch.set_num_threads(2)
    gm.evaluate(S, data, **options)
    assert seen == [2] * 5, "a step of a few kilobytes is not worth it"
    seen.clear()
    monkeypatch.setattr(module, "LARGE", 1)
    found = gm.evaluate(S, data, **options, each=lambda e: told.append(e.n))
    assert seen == [1] * 5 and told == [2, 4, 5] and torch.get_num_threads() == 2
    assert found.accuracies == alone.accuracies
    known = gm.evaluate(S, data, **options, known=found.accuracies[:4])
    assert seen == [1] * 6 and known.accuracies == alone.accuracies


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_precision_holds_while_networks_are_trained_and_tested(monkeypatch, precision):
    seen, before = [], (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)

    def watched(real):
        def function(*args, **options):
            seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return real(*args, **options)

        return function

    monkeypatch.setattr(evaluation, "fit", watched(training.fit))
    monkeypatch.setattr(evaluation, "accuracy", watched(accuracy))
    data = make_data(dtype=torch.float32)
    gm.evaluate(gm.coreset("random", data, 1), data, **{**QUICK, "n_networks": 1}, precision=precision)
    assert seen == [(precision == "tf32",) * 2] * 2
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
