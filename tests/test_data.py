"""Data: arrays in every layout, scales, draws, fingerprints, memory, and arrays that do not fit."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data
from messages import refuses

from gmlib.data import Data, check_ipc
from gmlib.datasets import load_data


def cpu(seed=0):
    return torch.Generator().manual_seed(seed)


def arrays(n=12, shape=(5, 4, 3), classes=3, seed=0):
    """uint8 images, with labels 0, 1, ..., C-1, 0, 1, ..."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % classes


def pixels_of(data, images):
    """Images back in [0, 1], in float64."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (data.mean, data.std))
    return images.double() * std + mean


# ---- from_arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_float", [None, np.float32, np.float64, np.float16])
@pytest.mark.parametrize("in_torch", [False, True])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)], ids=["grey", "colour"])
def test_from_arrays_sorts_and_normalises_every_layout(shape, in_torch, as_float):
    x, y = arrays(shape=shape)
    channels = 3 if len(shape) == 3 else 1
    given = (x / 255).astype(as_float) if as_float else x
    if in_torch:
        given = torch.from_numpy(np.moveaxis(given, -1, 1).copy() if channels == 3 else given)
    before = given.clone() if in_torch else given.copy()
    data = Data.from_arrays("mine", given, y, given[:4], y[:4], mean=(0.5,) * channels, std=(0.25,) * channels)
    assert (given == before).all(), "the caller's arrays are not changed"
    expected = (x.reshape(12, 5, 4, -1).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    order = np.argsort(y, kind="stable")
    assert data.train_labels.tolist() == sorted(y.tolist()) and data.shape == (channels, 5, 4)
    tolerance = 2e-3 if as_float == np.float16 else 1e-5
    np.testing.assert_allclose(data.train_images, expected[order], atol=tolerance)
    np.testing.assert_allclose(data.test_images, expected[:4], atol=tolerance)
    assert data.test_labels.tolist() == [0, 1, 2, 0]
    assert data.train_images.is_contiguous() and data.test_images.is_contiguous()


@pytest.mark.parametrize("in_torch", [False, True])
def test_channels_may_come_before_or_after_height_and_width(in_torch):
    x, y = arrays()
    expected = Data.from_arrays("mine", x, y, x, y)
    first = x.transpose(0, 3, 1, 2)
    for given, layout in ((x, None), (first, None), (x, "HWC"), (first, "CHW")):
        given = torch.from_numpy(given.copy()) if in_torch else given
        found = Data.from_arrays("mine", given, y, given, y, layout=layout)
        assert found.shape == (3, 5, 4) and found.fingerprint == expected.fingerprint
    with refuses(ValueError, "(12, 5, 4, 3)", "layout='HWC'"):
        Data.from_arrays("mine", x, y, x, y, layout="CHW")
    with refuses(ValueError, "layout 'hwc'", "HWC"):
        Data.from_arrays("mine", x, y, x, y, layout="hwc")


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 7, 3), (3, 5, 1)])
def test_a_shape_with_two_readings_needs_a_layout(shape):
    x, y = arrays(shape=shape)
    with refuses(ValueError, 'layout="CHW"', 'layout="HWC"'):
        Data.from_arrays("mine", x, y, x, y)
    chw = Data.from_arrays("mine", x, y, x, y, layout="CHW")
    hwc = Data.from_arrays("mine", x, y, x, y, layout="HWC")
    assert chw.shape == shape and hwc.shape == (shape[2], *shape[:2]) and chw.fingerprint != hwc.fingerprint
    assert Data.from_arrays("mine", torch.from_numpy(x), y, x, y, layout="CHW").fingerprint == chw.fingerprint
    in_torch = torch.from_numpy(x)
    assert Data.from_arrays("mine", in_torch, y, in_torch, y).fingerprint == chw.fingerprint, "as all of torch"


def test_labels_may_be_names():
    x, y = arrays()
    names = np.array(["dog", "cat", "eel"])[y]
    data = Data.from_arrays("mine", x, names, x, list(names))
    assert data.classes == ("cat", "dog", "eel")
    assert data.test_labels.tolist() == [1, 0, 2] * 4 and data.train_labels.tolist() == sorted([0, 1, 2] * 4)
    assert torch.equal(data.of_class(0), data.test_images[1::3])
    ordered = Data.from_arrays("mine", x, names.astype(object), x, names, classes=["eel", "dog", "cat"])
    assert ordered.classes == ("eel", "dog", "cat") and ordered.test_labels.tolist() == [1, 2, 0] * 4
    for train, test, classes, words in (
        (names, names, ["eel", "dog"], ["training label 'cat'"]),
        (names, np.where(names == "cat", "cow", names), None, ["test label 'cow'"]),
        (names, names, ["cat", "dog", "eel", "cow"], ["'cow'", "no training image"]),
        (names, y, None, ["names", "numbers"]),
        (y, names, None, ["numbers", "names"]),
        (np.where(names == "cat", " ", names), names, None, ["empty"]),
    ):
        with refuses(ValueError, *words):
            Data.from_arrays("mine", x, train, x, test, classes=classes)


def test_labels_may_be_other_numbers_if_they_are_named():
    x, y = arrays()
    for classes, labels in ((range(1, 4), y + 1), ([0, 5, 10], 5 * y), ([1, -1, 7], np.array([1, -1, 7])[y])):
        data = Data.from_arrays("mine", x, labels[:, None], x, labels, classes=classes)
        assert data.classes == tuple(map(str, classes)) and data.test_labels.tolist() == y.tolist()
    assert Data.from_arrays("mine", x, y, x, y, classes=[2, 1, 0]).test_labels.tolist() == y.tolist(), (
        "numbers of them"
    )
    for labels, classes, words in (
        (y + 1, None, ["1 to 3", "subtract 1", "classes=range(1, 4)"]),
        (5 * y, None, ["no training image", "classes=[0, 5, 10]"]),
        (y - 1, None, ["-1", "classes=range(-1, 2)"]),
        (y + 1, ["a", "b", "c"], ["label 3", "from 0"]),
        (y * 1.0, None, ["float64", "astype"]),
    ):
        with refuses(ValueError, *words):
            Data.from_arrays("mine", x, labels, x, labels, classes=classes)
    with refuses(ValueError, "test label 0"):
        Data.from_arrays("mine", x, y + 1, x, y, classes=range(1, 4))


def test_without_test_images_a_part_of_each_class_is_kept():
    x = np.random.default_rng(0).integers(0, 256, (36, 5, 4), dtype=np.uint8)
    y = np.array([0] * 20 + [1] * 13 + [2] * 2 + [3])
    data, again, other = (Data.from_arrays("mine", x, y, seed=seed, origin="here") for seed in (3, 3, 4))
    assert data.counts == (16, 10, 1, 1) and data.test_labels.bincount().tolist() == [4, 3, 1]
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert data.origin == "here, 20 % of each class for testing, split with seed 3"
    pixels = torch.cat([pixels_of(data, data.train_images), pixels_of(data, data.test_images)]) * 255
    assert sorted(pixels.round().int().flatten(1).tolist()) == sorted(x.reshape(36, -1).tolist())
    kept = pixels_of(data, data.train_images).float()
    assert data.mean == (round(kept.mean().item(), 4),), "measured on the training images alone"
    half = Data.from_arrays("mine", x, y, test_share=0.5)
    assert half.counts == (10, 7, 1, 1)
    most = Data.from_arrays("mine", x, y, test_share=0.99)
    assert most.counts == (1, 1, 1, 1), "a class keeps one image for training"
    for options, words in (
        ({"test_share": 0}, "test_share=0"),
        ({"test_share": 1}, "test_share=1"),
        ({"seed": -1}, "seed=-1"),
        ({"test_images": x}, "no test labels"),
        ({"test_labels": y}, "no test images"),
    ):
        with refuses(ValueError, words):
            Data.from_arrays("mine", x, y, **options)
    with refuses(ValueError, "each class has one image"):
        Data.from_arrays("mine", x[:3], [0, 1, 2])


def test_read_only_and_strided_arrays_are_accepted():
    x, y = arrays()
    x.flags.writeable = False
    data = Data.from_arrays("mine", x[::-1], y[::-1], x, y)
    np.testing.assert_array_equal(data.train_images[0], data.test_images[9])
    grey = x[..., 0].copy()
    grey.flags.writeable = False  # torch warns of these
    assert Data.from_arrays("mine", grey, y, grey, y).shape == (1, 5, 4)
    big_endian = (x / 255).astype(">f8")
    expected = Data.from_arrays("mine", x / 255, y, x, y).fingerprint
    assert Data.from_arrays("mine", big_endian, y.astype(">i2"), x, torch.from_numpy(y)).fingerprint == expected
    half = torch.from_numpy(x / 255).permute(0, 3, 1, 2).bfloat16().requires_grad_()
    assert not Data.from_arrays("mine", half, y, half, y).train_images.requires_grad


@pytest.mark.parametrize("scale", [1, 255])
def test_measured_mean_and_std_match_numpy(scale):
    x, y = arrays(n=3000)  # more than one chunk
    x[..., 2] = 7  # a constant channel
    given = x if scale == 1 else x / 255
    data = Data.from_arrays("mine", given, y, given[:3], y[:3])
    assert data.mean == tuple(np.round((x / 255).mean((0, 1, 2)), 4))
    assert data.std == (*np.round((x / 255).std((0, 1, 2)), 4)[:2], 1.0)


def test_grey_images_take_single_numbers_as_mean_and_std():
    x, y = np.eye(4, dtype=np.uint8)[np.arange(24).reshape(6, 4) % 4] * 255, np.arange(6) % 2
    x[0] = 0
    data = Data.from_arrays("mine", x, y, x, y, mean=0.5, std=np.float32(0.25))
    assert (data.mean, data.std) == ((0.5,), (0.25,)) and data.train_images.unique().tolist() == [-2.0, 2.0]


def test_a_small_range_keeps_its_digits():
    random = np.random.default_rng(0)
    x, y = random.random((400, 8, 8, 3)), np.arange(400) % 2
    whole = Data.from_arrays("mine", x, y, x, y)
    for scale, shift in ((1e-4, 0), (1e-6, 0), (1e-4, 0.5), (1e-30, 0)):
        dim = (x * scale + shift).astype(np.float32)
        data = Data.from_arrays("mine", dim, y, dim, y)
        np.testing.assert_allclose(data.mean, dim.mean((0, 1, 2), dtype=float), atol=1e-5 * scale)
        np.testing.assert_allclose(data.std, dim.std((0, 1, 2), dtype=float), rtol=1e-5)
        assert (data.train_images - whole.train_images).abs().max() < (0.01 if shift else 1e-3)
        assert all(float(f"{std:.6g}") == std for std in data.std), "six digits, as one would write it"
    almost = np.full((400, 8, 8), 0.5, np.float32)
    almost[0, 0, 0] = np.nextafter(np.float32(0.5), 1, dtype=np.float32)
    data = Data.from_arrays("mine", almost, y, almost, y)
    assert data.std[0] == pytest.approx(almost.std(dtype=float), rel=1e-5)
    mixed = x.copy()
    mixed[..., 1] *= 1e-4
    data = Data.from_arrays("mine", mixed, y, mixed, y)
    assert (data.mean[::2], data.std[::2]) == (whole.mean[::2], whole.std[::2])
    assert data.std[1] == pytest.approx(mixed[..., 1].std(), rel=1e-5)


PIXELS = np.random.default_rng(0).random((40, 5, 4, 3)).astype(np.float32)  # mean 0.5, std 0.29
LABELS = np.arange(40) % 2


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("dark", [1, 0.05, 0.002])
@pytest.mark.parametrize("times", [255, 1 / 255])
def test_mean_and_std_of_another_scale_are_refused(times, dark, as_bytes):
    x = PIXELS * dark
    if as_bytes:
        x = np.rint(x * 400).clip(0, 255).astype(np.uint8)
    pixels = x / (255 if as_bytes else 1)
    mean, std = (values.astype(float) * times for values in (pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))))
    with refuses(ValueError, "another scale", "[0, 1]"):
        Data.from_arrays("mine", x, LABELS, x, LABELS, mean=mean, std=std)
    Data.from_arrays("mine", x, LABELS, x, LABELS, mean=mean / times, std=std / times)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((33.3,) * 3, (78.6,) * 3), (0.5, 70), (120, 0.3), (-0.1, 0.3), (0, 255), (0.5, 1e-300), (0.5, 1e-45)],
)
def test_numbers_that_no_pixels_have_are_refused(mean, std):
    with refuses(ValueError, "another scale"):
        Data.from_arrays("mine", PIXELS[..., 0], LABELS, PIXELS[..., 0], LABELS, mean=np.min(mean), std=np.min(std))


@pytest.mark.parametrize(
    ("mean", "std"), [(0, 1), (0.5, 0.5), (0.485, 0.229), (0.1307, 0.3081), (np.float32(0.5), 0.25)]
)
def test_usual_constants_are_taken(mean, std, caplog):
    data = Data.from_arrays("mine", PIXELS[..., 0], LABELS, PIXELS[..., 0], LABELS, mean=mean, std=std)
    assert (data.mean, data.std) == ((float(mean),), (float(std),)) and not caplog.records
    assert json.dumps([data.mean, data.std])


def test_constants_far_from_the_pixels_are_logged(caplog):
    dim = PIXELS * 1e-4
    Data.from_arrays("mine", dim, LABELS, dim, LABELS, mean=(0, 0, 0), std=(1, 1, 1))
    assert "has a std of 2.9e-05" in caplog.text


@pytest.mark.parametrize("part", ["train", "test"])
def test_training_and_test_images_have_one_scale(part):
    given = {"train_images": PIXELS, "test_images": PIXELS}
    given[f"{part}_images"] = PIXELS / 255
    with refuses(ValueError, "different scales", "255"):
        Data.from_arrays("mine", **given, train_labels=LABELS, test_labels=LABELS)


@pytest.mark.parametrize("images", [np.zeros_like(PIXELS), np.full_like(PIXELS, 0.3), PIXELS[:1].repeat(40, 0)])
def test_equal_images_are_refused(images):
    with refuses(ValueError, "all training images are equal"):
        Data.from_arrays("mine", images, LABELS, PIXELS, LABELS)


def test_constant_channels_and_flat_images_are_logged(caplog):
    x = PIXELS.copy()
    x[..., 1] = 0.7
    data = Data.from_arrays("mine", x, LABELS, x, LABELS)
    assert "channel 1 is the same" in caplog.text and data.std[1] == 1
    caplog.clear()
    flat = PIXELS[:, :1, :1].repeat(5, 1).repeat(4, 2)
    Data.from_arrays("mine", flat, LABELS, flat, LABELS)
    assert "one colour" in caplog.text
    caplog.clear()
    Data.from_arrays("mine", PIXELS, LABELS, flat[:2] * 0, LABELS[:2])  # test images may look like anything
    assert not caplog.records


def test_classes_without_test_images_are_logged(caplog):
    y = np.arange(40) % 4
    data = Data.from_arrays("mine", PIXELS, y, PIXELS[:2], [3, 1], classes=["a", "b", "c", "d"])
    assert data.test_labels.tolist() == [3, 1] and "2 of 4 classes have no test image (a, c)" in caplog.text


def with_pixel(value):
    def change(x):
        x = x / np.float32(255)
        x[1, 2, 3, 0] = value
        return x

    return change


def with_label(label):
    return lambda y: np.where(np.arange(len(y)) == 4, label, y)


BROKEN = {
    "label above the classes": ({"test_labels": with_label(3)}, "test label 3"),
    "negative label": ({"train_labels": with_label(-1)}, "training label -1"),
    "label without a name": ({"classes": ("a", "b")}, "training label 2"),
    "empty class": ({"classes": ("a", "b", "c", "d")}, "'d'", "no training image"),
    "huge label": ({"train_labels": with_label(10**9)}, "'3'", "no training image", "gaps"),
    "huge test label": ({"test_labels": with_label(10**9)}, "test label 1000000000"),
    "gap in the labels": ({"train_labels": with_label(5)}, "'3'", "no training image"),
    "one class": ({"train_labels": np.zeros(12, int)}, "at least 2"),
    "NaN": ({"train_images": with_pixel(np.nan)}, "training images", "NaN"),
    "infinite": ({"test_images": with_pixel(np.inf)}, "test images", "inf"),
    "above 1": ({"train_images": with_pixel(1.5)}, "to 1.5", "[0, 1]"),
    "below 0": ({"train_images": with_pixel(-0.5)}, "from -0.5"),
    "integer pixels": ({"train_images": lambda x: x.astype(int)}, "int64", "uint8"),
    "integer tensor": ({"test_images": torch.zeros(12, 3, 5, 4).long()}, "torch.int64"),
    "flat": ({"train_images": np.zeros((12, 60), np.uint8)}, "(12, 60)"),
    "transparency": ({"train_images": np.zeros((12, 5, 4, 4), np.uint8)}, "(12, 5, 4, 4)", "transparency"),
    "floats to 255": ({"train_images": lambda x: x * 1.0}, "to 255", "divide by 255"),
    "normalised": ({"train_images": lambda x: (x / 255 - 0.5) / 0.5}, "from -1 to 1", "normalises"),
    "no image": ({"test_images": lambda x: x[:0], "test_labels": []}, "at least one image"),
    "sizes differ": ({"test_images": np.zeros((12, 5, 5, 3), np.uint8)}, "(3, 5, 4)", "(3, 5, 5)"),
    "too few labels": ({"train_labels": lambda y: y[:-1]}, "training labels", "12"),
    "float labels": ({"train_labels": lambda y: y / 2}, "training labels", "float64"),
    "unequal lists": ({"train_labels": [[1], [2, 3]]}, "training labels"),
    "labels as text": ({"train_labels": list("012" * 4)}, "training labels", "names"),
    "one-hot labels": ({"train_labels": lambda y: np.eye(3, dtype=int)[y]}, "(12, 3)", "argmax"),
    "no labels": ({"test_labels": None}, "test labels"),
    "labels in bytes": ({"test_labels": b"012" * 4}, "test labels"),
    "no images": ({"train_images": None}, "training images", "object"),
    "a path": ({"train_images": __file__}, "training images"),
    "unequal images": ({"test_images": [np.zeros((5, 4, 3)), np.zeros((4, 4, 3))]}, "test images"),
    "big-endian integers": ({"test_images": np.zeros((12, 5, 4, 3), ">u2")}, "test images", "u2"),
    "complex": ({"train_images": torch.zeros(12, 3, 5, 4, dtype=torch.complex64)}, "complex64"),
    "sparse": ({"train_images": torch.zeros(12, 3, 5, 4).to_sparse()}, "training images", "sparse"),
    "without values": ({"train_images": torch.zeros(12, 3, 5, 4, device="meta")}, "training images", "meta"),
    "no name": ({"name": " "}, "name"),
    "a path as name": ({"name": Path("mine")}, "name="),
    "origin in bytes": ({"origin": b"here"}, "origin="),
    "number of classes": ({"classes": 3}, "classes=3", "list"),
    "one class in an array": ({"classes": np.array("abc")}, "classes=", "list"),
    "classes in a text": ({"classes": "abc"}, "classes='abc'", "list"),
    "classes without order": ({"classes": {"a", "b", "c"}}, "list"),
    "classes in a dict": ({"classes": {"a": 0, "b": 1, "c": 2}}, "list"),
    "classes in bytes": ({"classes": [b"a", b"b", b"c"]}, "b'a'", "name"),
    "a class without name": ({"classes": ["a", None, "c"]}, "None", "name"),
    "mean as text": ({"mean": "0.5"}, "mean='0.5'", "3 finite numbers"),
    "nested std": ({"std": [[0.1, 0.2, 0.3]]}, "std=", "3 finite numbers"),
    "unequal std": ({"std": [0.1, [0.2], 0.3]}, "std=", "3 finite numbers"),
    "std in bytes": ({"std": b"123"}, "std=", "3 finite numbers"),
    "std of bools": ({"std": [True] * 3}, "std=", "3 finite numbers"),
    "huge mean": ({"mean": [0.5, 0.5, 10**400]}, "mean=", "3 finite numbers"),
    "one mean for three channels": ({"mean": (0.5,)}, "3 finite numbers"),
    "std of zero": ({"std": (0.1, 0.0, 0.1)}, "above 0"),
    "NaN mean": ({"mean": (0.1, float("nan"), 0.1)}, "finite"),
    "one name twice": ({"classes": ["a", "b", "a"]}, "two classes", "'a'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_arrays_that_do_not_fit_are_refused(case):
    changes, *words = BROKEN[case]
    x, y = arrays()
    given = {"train_images": x, "train_labels": y, "test_images": x, "test_labels": y}
    changed = {key: change(given[key]) if callable(change) else change for key, change in changes.items()}
    with refuses(ValueError, *words):
        Data.from_arrays(**{"name": "mine"} | given | changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"std": (0.0, 1.0, 1.0)}, "std=0.0"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean=nan"),
        ({"mean": (127.0, 127.0, 127.0), "std": (70.0, 70.0, 70.0)}, "mean=127.0"),
        ({"classes": (0, 1, 2)}, "classes=(0, 1, 2)"),
        ({"classes": ("a", "b", "c", "d")}, "0 to 3"),
        ({"train_labels": torch.tensor([1, 0] + [2] * 10)}, "sorted"),
        ({"train_labels": torch.tensor([0, 1] + [10**9] * 10)}, "0 to 2"),
        ({"test_labels": torch.tensor([0, 1] + [3] * 10)}, "test label 3"),
    ],
)
def test_data_made_by_hand_are_checked(change, words):
    good = Data.from_arrays("mine", *arrays(), *arrays())
    with refuses(ValueError, words):
        dataclasses.replace(good, **change)


def test_constants_of_data_are_numbers_of_python():
    good = Data.from_arrays("mine", *arrays(), *arrays())
    data = dataclasses.replace(good, mean=tuple(map(np.float32, good.mean)), std=tuple(map(np.float64, good.std)))
    assert {type(value) for value in data.mean + data.std} == {float}


@pytest.mark.parametrize("label", [2**62, 2**63 - 1])
def test_a_huge_label_needs_no_memory(label):
    x, y = arrays()
    tracemalloc.start()
    with refuses(ValueError, "training"):
        Data.from_arrays("mine", x, with_label(label)(y), x, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_names_of_classes_may_be_numbers_or_an_array():
    x, y = arrays()
    for classes in (np.array([7, 8, 9]), torch.tensor([7, 8, 9]), range(7, 10), ("7", np.str_("8"), np.int64(9))):
        names = Data.from_arrays("mine", x, y, x, y, classes=classes).classes
        assert names == ("7", "8", "9") and json.dumps(names)


# The peaks of memory while arrays become data, in bytes above what was there before.
PEAKS = """
import numpy as np, torch
from gmlib.data import Data
from gmlib.speed.memory import PeakMemory

x = np.random.default_rng(0).integers(0, 256, (100, 256, 256, 3), dtype=np.uint8)
y = np.arange(100) % 2
Data.from_arrays("small", x[:4], y[:4], x[:4], y[:4])
for given in (x, x / 255, torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(x / 255).permute(0, 3, 1, 2)):
    peak = PeakMemory(torch.device("cpu"))
    data = Data.from_arrays("large", given, y, given[:4], y[:4])
    print(peak() - data.train_images.nbytes)
    del data
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system does not report peak memory")
def test_arrays_become_data_in_little_more_memory_than_the_result():
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, timeout=60)
    peaks = [float(line) for line in run.stdout.split()]
    assert len(peaks) == 4 and max(peaks) < 160e6, peaks  # the result takes 79 MB


# ---- classes, draws, devices -------------------------------------------------------------------------------


def test_views_counts_and_weights():
    x, _ = arrays(n=10)
    y = [0, 2, 1, 0, 0, 2, 0, 0, 0, 0]
    data = Data.from_arrays("mine", x, y, x, y, classes=["a", "b", "c"])
    assert data.counts == (7, 1, 2) and data.classes == ("a", "b", "c")
    assert data.class_weights.dtype == torch.float64 and data.class_weights.tolist() == [0.7, 0.1, 0.2]
    assert torch.equal(data.of_class(2), data.test_images[[1, 5]])
    assert data.of_class(2).data_ptr() == data.train_images[8].data_ptr(), "a view, not a copy"
    assert torch.equal(data.of_class(np.int8(2)), data.of_class(torch.tensor(2)))
    for c in (-1, 3, 1.0, "a", None, [1]):
        with refuses(ValueError, f"class {c!r} is outside 0..2"):
            data.of_class(c)


def test_sample_draws_without_replacement_and_repeats(digits):
    draw = digits.sample(3, 50, cpu(1))
    assert draw.shape == (50, 1, 8, 8)
    assert torch.equal(draw, digits.sample(3, 50, cpu(1))) and not torch.equal(draw, digits.sample(3, 50, cpu(2)))
    members = {image.numpy().tobytes() for image in digits.of_class(3)}
    drawn = {image.numpy().tobytes() for image in draw}
    assert len(drawn) == 50 and drawn < members
    everything = digits.sample(3, 10_000, cpu())
    assert {image.numpy().tobytes() for image in everything} == members and len(everything) == digits.counts[3]
    expected = torch.randperm(digits.counts[3], generator=cpu(1))[:50]
    assert torch.equal(draw, digits.of_class(3)[expected])
    assert torch.equal(draw, digits.sample(np.int64(3), np.int64(50), cpu(1)))


@pytest.mark.parametrize("draw", ["sample", "sample_classes", "choose_classes", "sample_any", "choose_any"])
def test_draws_that_make_no_sense_are_refused(draw, digits):
    method = getattr(digits, draw)
    first = (3,) if draw == "sample" else ()
    for n in (0, -1, 1.5, "5", None, True, [5]):
        with refuses(ValueError, f"n={n!r}", "at least 1"):
            method(*first, n, cpu())
    for generator in (None, 7, np.random.default_rng(0)):
        with refuses(ValueError, "torch.Generator"):
            method(*first, 5, generator)


def test_a_number_of_images_per_class_must_fit():
    data = make_data((6, 4))
    assert check_ipc(data, 4) == 4 and type(check_ipc(data, np.int64(3))) is int
    assert check_ipc(data, 5, from_real=False) == 5, "noise needs no real images"
    for ipc in (0, -1, 1.5, "1", None, True, [1]):
        for from_real in (True, False):
            with refuses(ValueError, f"ipc={ipc!r}", "from 1 to"):
                check_ipc(data, ipc, from_real)
    with refuses(ValueError, "from 1 to 4,"):
        check_ipc(data, 5)
    with refuses(ValueError, f"from 1 to {2**30 // 128},"):
        check_ipc(data, 10**9, from_real=False)
    for ipc in (0, -1, 1.5, None):
        with refuses(ValueError, f"ipc={ipc!r}"):
            data.labels_of(ipc)


def test_tensors_that_do_not_fit_together_are_refused():
    data = make_data((6, 4))
    for changes in (
        {"train_images": data.train_images.numpy()},
        {"test_images": data.test_images[0]},
        {"train_images": data.train_images.long()},
        {"train_labels": data.train_labels[1:]},
        {"test_labels": data.test_labels.int()},
        {"test_labels": data.test_labels.tolist()},
    ):
        with refuses(ValueError, next(iter(changes)).split("_")[0], "from_arrays"):
            replace(data, **changes)
    for changes in ({"name": None}, {"classes": ["a", "b"]}, {"mean": 0.5}, {"std": (0.1, 0.2)}):
        with refuses(ValueError, "do not fit", "tuples"):
            replace(data, **changes)


def test_to_changes_the_dtype_of_images_only():
    data = load_data("digits").to(dtype=torch.float64)
    assert data.train_images.dtype == data.test_images.dtype == torch.float64
    assert data.train_labels.dtype == torch.int64
    elsewhere = data.to("meta")
    assert elsewhere.train_images.is_meta and elsewhere.test_labels.is_meta and elsewhere.name == "digits"
    for dtype in (torch.int64, "float32", float, 7):
        with refuses(ValueError, "floats"):
            data.to(dtype=dtype)
    for device in ("gpu", torch.float64, [], 10**9):
        with pytest.raises(ValueError, match="device"):
            data.to(device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_same_data_and_draws(digits):
    gpu = digits.to("cuda")
    assert gpu.fingerprint == digits.fingerprint and gpu.class_weights.is_cuda
    assert torch.equal(gpu.sample(1, 20, cpu(3)).cpu(), digits.sample(1, 20, cpu(3)))
    assert gpu.sample(1, 20, torch.Generator("cuda").manual_seed(0)).is_cuda


def test_the_fingerprint_depends_on_pixels_labels_and_shapes_only():
    x, y = arrays()
    constants = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    one = Data.from_arrays("one", x, y, x, y, **constants)
    assert Data.from_arrays("two", x.copy(), y, x, y, **constants).fingerprint == one.fingerprint
    other_pixel, other_label = x.copy(), y.copy()
    other_pixel[3, 2, 1, 0] ^= 1
    other_label[0] = 1
    turned = x.swapaxes(1, 2)
    changed = [(other_pixel, y, x, y), (x, y, x, other_label), (turned, y, turned, y)]
    fingerprints = {Data.from_arrays("one", *given, **constants).fingerprint for given in changed}
    assert len({one.fingerprint, *fingerprints}) == 4


def test_large_images_keep_their_order():
    """They are read one by one, and have three channels, as each index into numpy has one number."""
    values = np.array([50, 10, 40, 20], np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (4, 600, 600, 3)).copy()
    images[:, 0, 0] = 255 - images[:, 0, 0]
    data = Data.from_arrays("large", images, [1, 0, 1, 0], images[:2], [1, 0], mean=[0.1] * 3, std=[0.2] * 3)
    found = (data.train_images[:, :, 1, 1] * 0.2 + 0.1) * 255
    assert found.round().int().tolist() == [[v] * 3 for v in (10, 20, 50, 40)]
