"""Data: arrays in every layout, draws, fingerprints, and arrays that do not fit."""

import numpy as np
import pytest
import torch
from messages import refuses

from gmlib.data import Data
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


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("in_torch", [False, True])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)], ids=["grey", "colour"])
def test_from_arrays_sorts_and_normalises_every_layout(shape, in_torch, as_float):
    x, y = arrays(shape=shape)
    channels = 3 if len(shape) == 3 else 1
    given = x / np.float32(255) if as_float else x
    if in_torch:
        given = torch.from_numpy(np.moveaxis(given, -1, 1).copy() if channels == 3 else given)
    before = given.clone() if in_torch else given.copy()
    data = Data.from_arrays("mine", given, y, given[:4], y[:4], mean=(0.5,) * channels, std=(0.25,) * channels)
    assert (given == before).all(), "the caller's arrays are not changed"
    expected = (x.reshape(12, 5, 4, -1).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    order = np.argsort(y, kind="stable")
    assert data.train_labels.tolist() == sorted(y.tolist()) and data.shape == (channels, 5, 4)
    np.testing.assert_allclose(data.train_images, expected[order], atol=1e-5)
    np.testing.assert_allclose(data.test_images, expected[:4], atol=1e-5)
    assert data.test_labels.tolist() == [0, 1, 2, 0]
    assert data.train_images.is_contiguous() and data.test_images.is_contiguous()


def test_read_only_and_strided_arrays_are_accepted():
    x, y = arrays()
    x.flags.writeable = False
    data = Data.from_arrays("mine", x[::-1], y[::-1], x, y)
    np.testing.assert_array_equal(data.train_images[0], data.test_images[9])
    grey = x[..., 0].copy()
    grey.flags.writeable = False  # torch warns of these
    assert Data.from_arrays("mine", grey, y, grey, y).shape == (1, 5, 4)


@pytest.mark.parametrize("scale", [1, 255])
def test_measured_mean_and_std_match_numpy(scale):
    x, y = arrays(n=3000)  # more than one chunk
    x[..., 2] = 7  # a constant channel
    given = x if scale == 1 else x / 255
    data = Data.from_arrays("mine", given, y, given[:3], y[:3])
    assert data.mean == tuple(np.round((x / 255).mean((0, 1, 2)), 4))
    assert data.std == (*np.round((x / 255).std((0, 1, 2)), 4)[:2], 1.0)


def test_grey_images_take_single_numbers_as_mean_and_std():
    x, y = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2
    data = Data.from_arrays("mine", x, y, x, y, mean=0.5, std=np.float32(0.25))
    assert (data.mean, data.std) == ((0.5,), (0.25,)) and data.train_images.unique().tolist() == [-2.0]


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
    "gap in the labels": ({"train_labels": with_label(5)}, "'3'", "no training image"),
    "one class": ({"train_labels": np.zeros(12, int)}, "at least 2"),
    "NaN": ({"train_images": with_pixel(np.nan)}, "training images", "NaN"),
    "infinite": ({"test_images": with_pixel(np.inf)}, "test images", "inf"),
    "above 1": ({"train_images": with_pixel(1.5)}, "to 1.5", "[0, 1]"),
    "below 0": ({"train_images": with_pixel(-0.5)}, "from -0.5"),
    "integer pixels": ({"train_images": lambda x: x.astype(int)}, "int64", "uint8"),
    "integer tensor": ({"test_images": torch.zeros(12, 3, 5, 4).long()}, "torch.int64"),
    "channels first in numpy": ({"train_images": lambda x: x.reshape(12, 3, 5, 4)}, "(12, 3, 5, 4)"),
    "channels last in torch": ({"train_images": torch.zeros(12, 5, 4, 3)}, "(12, 5, 4, 3)"),
    "flat": ({"train_images": np.zeros((12, 60), np.uint8)}, "(12, 60)"),
    "no image": ({"test_images": lambda x: x[:0], "test_labels": []}, "N above 0"),
    "sizes differ": ({"test_images": np.zeros((12, 5, 5, 3), np.uint8)}, "(3, 5, 4)", "(3, 5, 5)"),
    "too few labels": ({"train_labels": lambda y: y[:-1]}, "training labels", "12"),
    "float labels": ({"train_labels": lambda y: y / 2}, "training labels", "float64"),
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
        Data.from_arrays("mine", **given | changed)


# ---- classes, draws, devices -------------------------------------------------------------------------------


def test_views_counts_and_weights():
    x, _ = arrays(n=10)
    y = [0, 2, 1, 0, 0, 2, 0, 0, 0, 0]
    data = Data.from_arrays("mine", x, y, x, y, classes=["a", "b", "c"])
    assert data.counts == (7, 1, 2) and data.classes == ("a", "b", "c")
    assert data.class_weights.dtype == torch.float64 and data.class_weights.tolist() == [0.7, 0.1, 0.2]
    assert torch.equal(data.of_class(2), data.test_images[[1, 5]])
    assert data.of_class(2).data_ptr() == data.train_images[8].data_ptr(), "a view, not a copy"
    for c in (-1, 3):
        with pytest.raises(ValueError, match=f"class {c}"):
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
    with pytest.raises(ValueError, match="at least 1"):
        digits.sample(3, 0, cpu())


def test_to_changes_the_dtype_of_images_only():
    data = load_data("digits").to(dtype=torch.float64)
    assert data.train_images.dtype == data.test_images.dtype == torch.float64
    assert data.train_labels.dtype == torch.int64
    elsewhere = data.to("meta")
    assert elsewhere.train_images.is_meta and elsewhere.test_labels.is_meta and elsewhere.name == "digits"


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
