"""Phase 2: the protocol step by step, statistics against numpy and scipy, augmentation pixel by pixel."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from conftest import make_data

import gmlib as gm
from gmlib import networks
from gmlib.evaluate import OPERATIONS, Evaluation, accuracy, augmented
from gmlib.recipe import generator

QUICK = {"n_networks": 2, "epochs": 3, "width": 4, "depth": 2, "device": "cpu", "progress": False}


def test_the_protocol_step_by_step():
    """SGD with momentum and weight decay written out; lr / 10 from half the epochs on; the last epoch counts."""
    data = make_data(dtype=torch.float64, n_test=60)
    S = gm.coreset("random", data, 2)
    found = gm.evaluate(S, data, **{**QUICK, "epochs": 4, "n_networks": 1}, lr=0.05)
    f = networks.build("convnet", (1, 8, 8), 3, generator=generator(0, "evaluate", 0), width=4, depth=2, dtype=torch.float64)
    parameters, buffers = list(f.parameters()), None
    for epoch in range(4):
        gradient = torch.autograd.grad(F.cross_entropy(f(S.images), S.labels), parameters)
        gradient = [g + 5e-4 * p.detach() for g, p in zip(gradient, parameters, strict=True)]
        buffers = gradient if buffers is None else [0.9 * b + g for b, g in zip(buffers, gradient, strict=True)]
        with torch.no_grad():
            for p, b in zip(parameters, buffers, strict=True):
                p -= (0.05 if epoch < 2 else 0.005) * b
    right = sum(int(f(image[None]).argmax() == label) for image, label in zip(data.test_images, data.test_labels, strict=True))
    assert found.accuracies == (100 * right / 60,)
    assert found.protocol == {
        "width": 4, "depth": 2, "epochs": 4, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "batch": 256, "augment": "none"
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


# ---- augmentation


def image_with_dot(n, row, column, side=28):
    x = torch.zeros(n, 1, side, side)
    x[:, :, row, column] = 1.0
    return x


def test_crop_moves_by_whole_pixels_and_fills_with_the_mean():
    x = image_with_dot(200, 14, 14)
    y = augmented(x, ("crop",), generator(0, "crop"))
    dots = [divmod(int(image.argmax()), 28) for image in y]
    assert all(image.max() == pytest.approx(1, abs=1e-4) for image in y), "nothing is blurred"
    rows, columns = zip(*dots, strict=True)
    assert set(rows) == set(columns) == set(range(10, 19)), "every shift from -4 to 4 occurs, and no other"
    corner = augmented(torch.ones(50, 1, 28, 28) + image_with_dot(50, 0, 0), ("crop",), generator(1, "crop"))
    mean = 1 + 1 / 784
    assert torch.isclose(corner.amin((1, 2, 3)), torch.ones(50)).all()
    assert (torch.isclose(corner, torch.tensor(mean), atol=1e-5).sum((1, 2, 3)) > 0).any()


def test_rotate_and_scale_stay_in_their_ranges():
    far = image_with_dot(300, 13, 24)  # about 10 pixels right of the centre (13.5, 13.5)
    turned = [divmod(int(i.argmax()), 28) for i in augmented(far, ("rotate",), generator(0, "r"))]
    angles = [math.degrees(math.atan2(r - 13.5, c - 13.5)) for r, c in turned]
    assert -49 < min(angles) < -38 and 38 < max(angles) < 49
    radii = [math.hypot(r - 13.5, c - 13.5) for r, c in turned]
    assert max(abs(r - 10.51) for r in radii) < 1.2, "turning keeps the distance from the centre"
    scaled = [divmod(int(i.argmax()), 28) for i in augmented(far, ("scale",), generator(0, "s"))]
    radii = [math.hypot(r - 13.5, c - 13.5) for r, c in scaled]
    assert 8.0 < min(radii) < 9.2 and 11.8 < max(radii) < 13.2, "between 0.8 and 1.2 times as far"


def test_each_image_gets_exactly_one_operation():
    """Cropping only shifts, scaling keeps the centre: a dot off the centre tells which was drawn."""
    assert set(OPERATIONS) == {"crop", "scale", "rotate"}
    x = image_with_dot(300, 13, 13)
    both = augmented(x, ("crop", "scale"), generator(0, "both"))
    sharp = (both.amax((1, 2, 3)) > 0.999).float().mean().item()
    assert 0.4 < sharp < 0.6


def test_only_mnist_is_augmented_by_the_papers_protocol():
    data = make_data((5, 5), (1, 28, 28), dtype=torch.float32)
    mnist = gm.Data.from_arrays(
        "MNIST", torch.rand(10, 28, 28, generator=generator(0)), data.train_labels, torch.rand(4, 28, 28), [0, 1, 0, 1]
    )
    S = gm.coreset("random", mnist, 1)
    quick = {**QUICK, "n_networks": 1}
    assert gm.evaluate(S, mnist, **quick).protocol["augment"] == "crop+scale+rotate"
    assert gm.evaluate(S, mnist, **quick, augment="none").protocol["augment"] == "none"
    assert gm.evaluate(gm.coreset("random", data, 1), data, **quick).protocol["augment"] == "none"
    assert gm.evaluate(S, mnist, **{**quick, "epochs": None, "width": 1, "depth": 1}).protocol["epochs"] == 1000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"network": "vit"}, "unknown network 'vit': choose from convnet"),
        ({"augment": "cutout"}, "unknown augmentation 'cutout': choose from paper, none"),
        ({"n_networks": 0}, "n_networks=0 does not fit"),
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


def test_a_set_of_other_data_is_refused():
    S = gm.coreset("random", make_data((3, 3), dtype=torch.float32), 1)
    with pytest.raises(ValueError, match=r"the set has 2 classes .* but made-up has 3"):
        gm.evaluate(S, make_data((3, 3, 3), dtype=torch.float32), **QUICK)
