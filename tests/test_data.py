"""gmlib.data against scikit-learn's own arrays, against files made up in every layout, and against damage."""

import errno
import gzip
import hashlib
import json
import os
import pickle
import re
import socket
import struct
import tarfile
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from gmlib.data import Data
from gmlib.datasets import LOADERS, NORMALISATION, load_data
from gmlib.files import write_atomically
from gmlib.sets import SyntheticSet


def rng(seed=0):
    return np.random.default_rng(seed)


def cpu(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels_of(data, images):
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (data.mean, data.std))
    return images.double() * std + mean


def arrays(n=12, shape=(5, 4, 3), classes=3, seed=0):
    """uint8 images and labels that go round the classes."""
    return rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % classes


def assert_one_sentence(error):
    message = str(error.value)
    assert "\n" not in message and ". " not in message and len(message) > 20, message


# ---- digits ------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_images_split_once():
    data = load_data("digits")
    assert data.shape == (1, 8, 8) and data.classes == tuple("0123456789") and data.n_classes == 10
    assert data.train_images.shape == (1200, 1, 8, 8) and data.train_images.dtype == torch.float32
    assert data.test_images.shape == (597, 1, 8, 8) and data.train_labels.dtype == torch.int64

    x, y = load_digits(return_X_y=True)
    originals = {tuple(row): label for row, label in zip(x.astype(int).tolist(), y.tolist(), strict=True)}
    assert len(originals) == 1797  # no two alike: finding each one is finding the split
    found = []
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        exact = pixels_of(data, images) * 16
        assert (exact - exact.round()).abs().max() < 1e-5
        rows = [tuple(row) for row in exact.round().int().flatten(1).tolist()]
        assert [originals[row] for row in rows] == labels.tolist()
        found.append(set(rows))
    assert not found[0] & found[1] and found[0] | found[1] == originals.keys()


def test_digits_are_stratified_sorted_and_normalised_by_their_own_constants():
    data = load_data("digits", seed=0)
    _, y = load_digits(return_X_y=True)
    assert np.abs(np.array(data.counts) - np.bincount(y) * 1200 / 1797).max() < 1
    assert sum(data.counts) == 1200 and (data.train_labels.diff() >= 0).all()
    assert data.train_images.mean().abs() < 1e-3 and abs(data.train_images.std() - 1) < 1e-3
    pixels = pixels_of(data, data.train_images)
    measured = round(pixels.mean().item(), 4), round(pixels.std(correction=0).item(), 4)
    assert measured == (NORMALISATION["digits"][0][0], NORMALISATION["digits"][1][0])
    assert load_data("digits", seed=5).fingerprint == data.fingerprint  # the split is fixed


def test_digits_fingerprint_is_the_same_everywhere():
    data = load_data("digits")
    digest = hashlib.sha256()
    for part in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(str(tuple(part.shape)).encode() + part.numpy().tobytes())
    assert data.fingerprint == digest.hexdigest() == data.to(dtype=torch.float64).fingerprint
    assert data.fingerprint.startswith("eee39cbf5330b879")


# ---- Data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("layout", ["grey numpy", "colour numpy", "grey torch", "colour torch"])
def test_from_arrays_sorts_and_normalises_every_layout(layout, as_float):
    colour, in_torch = "colour" in layout, "torch" in layout
    x, y = arrays(shape=(5, 4, 3) if colour else (5, 4))
    given = x / np.float32(255) if as_float else x
    if in_torch:
        given = torch.from_numpy(np.moveaxis(given, -1, 1).copy() if colour else given)
    before = given.clone() if in_torch else given.copy()
    data = Data.from_arrays(
        "mine", given, y, given[:4], y[:4], mean=(0.5,) * x[0, 0, 0].size, std=(0.25,) * x[0, 0, 0].size
    )
    assert (given == before).all()  # the caller's arrays are left alone
    expected = (x.reshape(12, 5, 4, -1).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    order = np.argsort(y, kind="stable")
    assert data.train_labels.tolist() == sorted(y.tolist()) and data.shape == ((3 if colour else 1), 5, 4)
    np.testing.assert_allclose(data.train_images, expected[order], atol=1e-5)
    np.testing.assert_allclose(data.test_images, expected[:4], atol=1e-5)
    assert data.test_labels.tolist() == [0, 1, 2, 0]
    assert data.train_images.is_contiguous() and data.test_images.is_contiguous()


def test_read_only_and_strided_arrays_are_fine():
    x, y = arrays()
    x.flags.writeable = False
    same = Data.from_arrays("mine", x[::-1], y[::-1], x, y)
    np.testing.assert_array_equal(same.train_images[0], same.test_images[9])
    grey = x[..., 0].copy()
    grey.flags.writeable = False  # torch warns of these, and numpy's own loaders make them
    assert Data.from_arrays("mine", grey, y, grey, y).shape == (1, 5, 4)


@pytest.mark.parametrize("scale", [1, 255])
def test_measured_normalisation_matches_numpy(scale):
    x, y = arrays(n=3000)  # more than one chunk
    x[..., 2] = 7  # a channel that never varies
    data = Data.from_arrays("mine", x if scale == 1 else x / 255, y, x[:3] if scale == 1 else x[:3] / 255, y[:3])
    assert data.mean == tuple(np.round((x / 255).mean((0, 1, 2)), 4))
    assert data.std == (*np.round((x / 255).std((0, 1, 2)), 4)[:2], 1.0)


def test_views_counts_and_weights():
    x, _ = arrays(n=10)
    y = [0, 2, 1, 0, 0, 2, 0, 0, 0, 0]
    data = Data.from_arrays("mine", x, y, x, y, classes=["a", "b", "c"])
    assert data.counts == (7, 1, 2) and data.classes == ("a", "b", "c")
    assert data.class_weights.dtype == torch.float64 and data.class_weights.tolist() == [0.7, 0.1, 0.2]
    assert torch.equal(data.of_class(2), data.test_images[[1, 5]])
    assert data.of_class(2).data_ptr() == data.train_images[8].data_ptr()
    for c in (-1, 3):
        with pytest.raises(ValueError, match=rf"class {c} is outside 0..2"):
            data.of_class(c)


def test_sample_draws_without_replacement_and_repeats():
    data = load_data("digits")
    draw = data.sample(3, 50, cpu(1))
    assert draw.shape == (50, 1, 8, 8)
    assert torch.equal(draw, data.sample(3, 50, cpu(1))) and not torch.equal(draw, data.sample(3, 50, cpu(2)))
    members = {image.numpy().tobytes() for image in data.of_class(3)}
    drawn = {image.numpy().tobytes() for image in draw}
    assert len(drawn) == 50 and drawn < members
    everything = data.sample(3, 10_000, cpu())
    assert {image.numpy().tobytes() for image in everything} == members and len(everything) == data.counts[3]
    expected = torch.randperm(data.counts[3], generator=cpu(1))[:50]
    assert torch.equal(draw, data.of_class(3)[expected])
    with pytest.raises(ValueError, match="n must be at least 1"):
        data.sample(3, 0, cpu())


def test_to_changes_images_only():
    data = load_data("digits").to(dtype=torch.float64)
    assert data.train_images.dtype == data.test_images.dtype == torch.float64
    assert data.train_labels.dtype == torch.int64
    elsewhere = data.to("meta")
    assert elsewhere.train_images.is_meta and elsewhere.test_labels.is_meta and elsewhere.name == "digits"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_holds_the_same_data_and_draws():
    data = load_data("digits")
    gpu = data.to("cuda")
    assert gpu.fingerprint == data.fingerprint and gpu.class_weights.is_cuda
    assert torch.equal(gpu.sample(1, 20, cpu(3)).cpu(), data.sample(1, 20, cpu(3)))
    assert gpu.sample(1, 20, torch.Generator("cuda").manual_seed(0)).is_cuda


def test_fingerprint_sees_pixels_labels_and_shapes():
    x, y = arrays()
    constants = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    one = Data.from_arrays("one", x, y, x, y, **constants)
    assert Data.from_arrays("two", x.copy(), y, x, y, **constants).fingerprint == one.fingerprint
    other_pixel, other_label = x.copy(), y.copy()
    other_pixel[3, 2, 1, 0] ^= 1
    other_label[0] = 1
    changed = [
        Data.from_arrays("one", other_pixel, y, x, y, **constants),
        Data.from_arrays("one", x, y, x, other_label, **constants),
        Data.from_arrays("one", x.swapaxes(1, 2), y, x.swapaxes(1, 2), y, **constants),
    ]
    assert len({one.fingerprint, *(data.fingerprint for data in changed)}) == 4


def broken(**changes):
    x, y = arrays()
    given = {"train_images": x, "train_labels": y, "test_images": x, "test_labels": y}
    return given | {key: change(given[key]) if callable(change) else change for key, change in changes.items()}


def with_value(value):
    def change(x):
        x = x / np.float32(255)
        x[1, 2, 3, 0] = value
        return x

    return change


def relabelled(label):
    return lambda y: np.where(np.arange(len(y)) == 4, label, y)


BROKEN = {
    "label above the classes": (broken(test_labels=relabelled(3)), "test label 3 is outside 0..2"),
    "negative label": (broken(train_labels=relabelled(-1)), "training label -1 is outside 0..2"),
    "label without a name": (broken(classes=("a", "b")), "training label 2 is outside 0..1"),
    "empty class": (broken(classes=("a", "b", "c", "d")), r"class 'd' \(label 3\) has no training image"),
    "gap in the labels": (broken(train_labels=relabelled(5)), r"class '3' \(label 3\) has no training image"),
    "one class": (broken(train_labels=np.zeros(12, int)), "at least 2"),
    "NaN": (broken(train_images=with_value(np.nan)), "training images hold NaN"),
    "infinite": (broken(test_images=with_value(np.inf)), "test images hold values from .* to inf"),
    "above 1": (broken(train_images=with_value(1.5)), r"to 1.5: floats must lie in \[0, 1\]"),
    "below 0": (broken(train_images=with_value(-0.5)), "values from -0.5"),
    "integer pixels": (broken(train_images=lambda x: x.astype(int)), "type int64: give uint8"),
    "integer tensor": (broken(test_images=torch.zeros(12, 3, 5, 4).long()), "torch.int64"),
    "channels first in numpy": (broken(train_images=lambda x: x.reshape(12, 3, 5, 4)), "shape .12, 3, 5, 4"),
    "channels last in torch": (broken(train_images=torch.zeros(12, 5, 4, 3)), r"shape \(12, 5, 4, 3\)"),
    "flat": (broken(train_images=np.zeros((12, 60), np.uint8)), r"shape \(12, 60\)"),
    "no image": (broken(test_images=lambda x: x[:0], test_labels=[]), "N above 0"),
    "sizes differ": (broken(test_images=np.zeros((12, 5, 5, 3), np.uint8)), r"\(3, 5, 4\) and \(3, 5, 5\)"),
    "too few labels": (broken(train_labels=lambda y: y[:-1]), "an integer for each of 12 images"),
    "float labels": (broken(train_labels=lambda y: y / 2), "training labels are float64"),
    "one mean for three channels": (broken(mean=(0.5,)), "must each be 3 finite numbers"),
    "std of zero": (broken(std=(0.1, 0.0, 0.1)), "std above 0"),
    "NaN mean": (broken(mean=(0.1, float("nan"), 0.1)), "finite"),
    "one name twice": (broken(classes=["a", "b", "a"]), "two classes have one name, 'a': give each its own"),
}  # fmt: skip


def test_mean_and_std_of_grey_images_are_numbers():
    x, y = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2
    data = Data.from_arrays("mine", x, y, x, y, mean=0.5, std=np.float32(0.25))
    assert (data.mean, data.std) == ((0.5,), (0.25,)) and data.train_images.unique().tolist() == [-2.0]


@pytest.mark.parametrize("case", BROKEN)
def test_arrays_that_do_not_fit_are_refused(case):
    given, sentence = BROKEN[case]
    with pytest.raises(ValueError, match=sentence) as error:
        Data.from_arrays("mine", **given)
    assert_one_sentence(error)


# ---- names and torchvision's sets --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "CIFAR-10", "", "imagefolder", "imagefolder:", "digits:x", "MNIST:x"])
def test_unknown_names_list_the_known(name):
    known = "digits, MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, TinyImageNet, imagefolder:PATH"
    with pytest.raises(ValueError, match=f"unknown data set {name!r}: choose one of {known}$"):
        load_data(name)


def test_size_is_for_image_files_only():
    with pytest.raises(
        ValueError, match="size= is for imagefolder:PATH and TinyImageNet, and digits has a size of its own"
    ):
        load_data("digits", size=16)


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, name="MNIST", n=40):
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for part, seed in (("train", 0), ("t10k", 1)):
        x, y = arrays(n=n, shape=(28, 28), classes=10, seed=seed)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(x))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(y.astype(np.uint8)))
    return raw


def python2_pickle(entry):
    """Like the published batches: protocol 2, numpy's old module, and dtypes built with align=0."""
    blob = pickle.dumps(entry, protocol=2)
    return blob.replace(b"\x89\x88\x87", b"K\x00K\x01\x87").replace(b"numpy._core", b"numpy.core")


def write_cifar(folder, name, monkeypatch):
    """A CIFAR of a few images; torchvision's published checksums are replaced by those of our files."""
    source = getattr(torchvision.datasets, name)
    inner = folder / source.base_folder
    inner.mkdir(parents=True)
    n, C = (10, 10) if name == "CIFAR10" else (100, 100)

    def written(file, entry):
        (inner / file).write_bytes(python2_pickle(entry))
        return [file, hashlib.md5((inner / file).read_bytes()).hexdigest()]

    def batches(files, first):
        """Batch i from arrays(seed=first + i)."""
        label = "labels" if name == "CIFAR10" else "fine_labels"
        made = [arrays(n=n, shape=(3072,), classes=C, seed=first + i) for i in range(len(files))]
        return [written(f, {"data": x, label: y.tolist()}) for (f, _), (x, y) in zip(files, made, strict=True)]

    train, test = batches(source.train_list, 0), batches(source.test_list, 10)
    _, md5 = written(source.meta["filename"], {source.meta["key"]: [f"class {c}" for c in range(C)]})
    monkeypatch.setattr(source, "train_list", train)
    monkeypatch.setattr(source, "test_list", test)
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5})
    return inner


def write_svhn(folder, monkeypatch):
    folder.mkdir(parents=True, exist_ok=True)
    splits = dict(torchvision.datasets.SVHN.split_list)
    for seed, split in enumerate(("train", "test")):
        x, y = arrays(n=20, shape=(32, 32, 3), classes=10, seed=seed)
        url, file = splits[split][:2]
        # their files: X is (height, width, channels, N), and the digit 0 is labelled 10
        mat = {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)[:, None]}
        scipy.io.savemat(folder / file, mat, do_compression=True)
        splits[split] = [url, file, hashlib.md5((folder / file).read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    return folder


WRITERS = {
    "MNIST": lambda folder, monkeypatch: write_mnist(folder),
    "FashionMNIST": lambda folder, monkeypatch: write_mnist(folder, "FashionMNIST"),
    "SVHN": write_svhn,
    "CIFAR10": lambda folder, monkeypatch: write_cifar(folder, "CIFAR10", monkeypatch),
    "CIFAR100": lambda folder, monkeypatch: write_cifar(folder, "CIFAR100", monkeypatch),
}


@pytest.fixture
def offline(monkeypatch):
    """Every attempt to reach a host is an error of the test."""

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def unreachable(monkeypatch):
    """No host answers, as on a machine without a network."""

    def fail(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", fail)


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_are_there_are_read_without_a_network(name, tmp_path, monkeypatch, offline):
    assert WRITERS.keys() == LOADERS.keys() - {"digits", "TinyImageNet", "imagefolder"}
    WRITERS[name](tmp_path, monkeypatch)
    monkeypatch.setenv("GMLIB_DATA", str(tmp_path))
    data = load_data(name)
    C = 100 if name == "CIFAR100" else 10
    grey = "MNIST" in name
    assert data.shape == ((1, 28, 28) if grey else (3, 32, 32)) and data.n_classes == C
    assert (data.mean, data.std) == NORMALISATION[name]
    # the same pixels again, straight from the generator of the made-up files
    n_train, n_test = {"SVHN": (20, 20), "CIFAR10": (10, 10), "CIFAR100": (100, 100)}.get(name, (40, 40))
    layout = (28, 28) if grey else (32, 32, 3) if name == "SVHN" else (3, 32, 32)
    batches = [arrays(n=n_train, shape=layout, classes=C, seed=i) for i in range(5 if name == "CIFAR10" else 1)]
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    test_x, test_y = arrays(n=n_test, shape=layout, classes=C, seed=10 if "CIFAR" in name else 1)
    order = np.argsort(y, kind="stable")
    for images, labels, given_x, given_y in (
        (data.train_images, data.train_labels, x[order], y[order]),
        (data.test_images, data.test_labels, test_x, test_y),
    ):
        if grey:
            given_x = given_x[:, None]
        elif name == "SVHN":
            given_x = given_x.transpose(0, 3, 1, 2)
        np.testing.assert_allclose(pixels_of(data, images) * 255, given_x, atol=1e-3)
        np.testing.assert_array_equal(labels, given_y)
    names = {"CIFAR10": "class 3", "CIFAR100": "class 3", "FashionMNIST": "Dress"}
    assert data.classes[3] == names.get(name, "3")


def test_warnings_about_how_old_files_were_made_are_not_passed_on(tmp_path, monkeypatch, offline):
    load = pickle.load

    def warning_load(*args, **options):  # as numpy 2.4.0 to 2.4.4 do
        warnings.warn("align should be passed as bool", np.exceptions.VisibleDeprecationWarning, stacklevel=2)
        return load(*args, **options)

    write_cifar(tmp_path, "CIFAR10", monkeypatch)
    monkeypatch.setattr(pickle, "load", warning_load)
    assert load_data("CIFAR10", data_dir=tmp_path).counts == (5,) * 10


def test_data_dir_goes_before_the_environment(tmp_path, monkeypatch, offline):
    write_mnist(tmp_path / "given")
    monkeypatch.setenv("GMLIB_DATA", str(tmp_path / "missing"))
    assert load_data("MNIST", data_dir=tmp_path / "given").counts == (4,) * 10
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "missing" / "MNIST" / "raw"))):
        load_data("MNIST", download=False)
    monkeypatch.delenv("GMLIB_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "data" / "MNIST" / "raw"))):
        load_data("MNIST", download=False)


WANTED = {
    "MNIST": ("t10k-labels-idx1-ubyte into {}/MNIST/raw", "the same as .gz into {}/MNIST/raw"),
    "FashionMNIST": ("train-images-idx3-ubyte, train-labels-idx1-ubyte", "into {}/FashionMNIST/raw"),
    "SVHN": ("put train_32x32.mat and test_32x32.mat into {}",),
    "CIFAR10": ("test_batch and batches.meta into {}/cifar-10-batches-py", "cifar-10-python.tar.gz into {}"),
    "CIFAR100": ("put train, test and meta into {}/cifar-100-python", "cifar-100-python.tar.gz into {}"),
}


@pytest.mark.parametrize("name", WANTED)
def test_a_missing_set_says_which_files_go_where(name, tmp_path, offline):
    with pytest.raises(FileNotFoundError, match=f"^{name} is not there: put ") as error:
        load_data(name, data_dir=tmp_path / "new", download=False)
    assert all(part.format(tmp_path / "new") in str(error.value) for part in WANTED[name])
    assert_one_sentence(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WANTED)
def test_a_failing_download_says_so_and_leaves_nothing(name, tmp_path, unreachable):
    with pytest.raises(FileNotFoundError, match=f"^{name} could not be downloaded .*not known.*: put ") as error:
        load_data(name, data_dir=tmp_path / "new" / "deep")
    assert all(part.format(tmp_path / "new" / "deep") in str(error.value) for part in WANTED[name])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    assert socket.getdefaulttimeout() is None  # what was set for the download is taken back


def test_an_interrupted_download_leaves_no_half_file(tmp_path, monkeypatch):
    write_mnist(tmp_path / "old")
    (tmp_path / "old" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()

    def half_then_stop(url, root, filename=None, md5=None, **_):
        (Path(root) / filename).write_bytes(b"half an archive")
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.utils.download_url", half_then_stop)
    for folder in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            load_data("MNIST", data_dir=tmp_path / folder)
    assert not (tmp_path / "new").exists()
    kept = sorted(path.name for path in (tmp_path / "old" / "MNIST" / "raw").iterdir())
    assert kept == ["t10k-images-idx3-ubyte", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"]


@pytest.fixture
def host(tmp_path):
    """(folder, address) of a web server on this machine."""
    (tmp_path / "served").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served"))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("progress", [True, False])
def test_a_missing_set_is_downloaded(progress, host, tmp_path, monkeypatch, capsys):
    served, address = host
    resources = []
    for file in write_mnist(tmp_path / "made").iterdir():
        packed = gzip.compress(file.read_bytes())
        (served / f"{file.name}.gz").write_bytes(packed)
        resources.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    data = load_data("MNIST", data_dir=tmp_path / "got", progress=progress)
    assert data.fingerprint == load_data("MNIST", data_dir=tmp_path / "made").fingerprint
    assert ("100%" in capsys.readouterr().err) == progress

    # a host that serves something else, or only some of the files
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", [*resources[:3], (resources[3][0], "0" * 32)])
    with pytest.raises(FileNotFoundError, match=r"MNIST could not be downloaded .*corrupted"):
        load_data("MNIST", data_dir=tmp_path / "new", progress=progress)
    left = {path.name for path in (tmp_path / "new" / "MNIST" / "raw").iterdir()}
    assert left == {name for file, _ in resources[:3] for name in (file, file.removesuffix(".gz"))}


@pytest.mark.parametrize("download", [True, False])
def test_archives_that_are_there_are_unpacked_without_a_network(download, tmp_path, monkeypatch, offline):
    source = torchvision.datasets.CIFAR10
    inner = write_cifar(tmp_path / "made", "CIFAR10", monkeypatch)
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inner, source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    data = load_data("CIFAR10", data_dir=tmp_path / "data", download=download)
    assert data.counts == (5,) * 10


@pytest.mark.parametrize("length", [0, 3, 10, 16, 40, -1])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_truncated_idx_file_is_named(file, length, tmp_path, offline):
    path = write_mnist(tmp_path) / file
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"^MNIST is damaged .*: delete {file} in .*raw and load again$") as error:
        load_data("MNIST", data_dir=tmp_path)
    assert_one_sentence(error)
    assert path.exists()  # deleting is for the user


def test_labels_outside_the_classes_count_as_damage(tmp_path, offline):
    raw = write_mnist(tmp_path)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.full(40, 77, np.uint8)))
    with pytest.raises(ValueError, match=r"MNIST is damaged .*label 77 is outside 0..9.*: delete train-images"):
        load_data("MNIST", data_dir=tmp_path)


DAMAGED = [
    ("CIFAR10", "data_batch_3"),
    ("CIFAR10", "batches.meta"),
    ("CIFAR100", "test"),
    ("SVHN", "train_32x32.mat"),
    ("SVHN", "test_32x32.mat"),
]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b[::-1]])
@pytest.mark.parametrize(("name", "file"), DAMAGED)
def test_a_damaged_file_is_named(name, file, damage, tmp_path, monkeypatch, offline):
    path = WRITERS[name](tmp_path, monkeypatch) / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"^{name} is damaged .*: delete {file} in .* and load again$") as error:
        load_data(name, data_dir=tmp_path)
    assert_one_sentence(error)


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path, monkeypatch, offline):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    path = write_cifar(tmp_path, "CIFAR10", monkeypatch) / "test_batch"
    path.write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(ValueError, match="delete test_batch in"):
        load_data("CIFAR10", data_dir=tmp_path)
    assert not (tmp_path / "opened").exists()


@pytest.mark.skipif("GMLIB_TEST_DATA" not in os.environ, reason="GMLIB_TEST_DATA names no folder of data sets")
def test_the_real_mnist(offline):
    data = load_data("MNIST", data_dir=os.environ["GMLIB_TEST_DATA"])
    assert data.counts == (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    assert data.test_labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    pixels = pixels_of(data, data.train_images)
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)


# ---- image folders -----------------------------------------------------------------------------------------


def write_images(folder, labels=("ant", "bee"), n=5, mode="RGB", size=(6, 5), suffix="png", seed=0):
    """n images of `size` (width, height) for each class; returns {path: uint8 array}."""
    random, written = rng(seed), {}
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            x = random.integers(0, 256, (size[1], size[0]) + ((3,) if mode == "RGB" else ()), dtype=np.uint8)
            path = folder / label / f"{i:03d}.{suffix}"
            Image.fromarray(x).save(path)
            written[path] = x
    return written


def test_a_folder_in_colour_keeps_its_own_split(tmp_path):
    train = write_images(tmp_path / "train", n=3)
    test = write_images(tmp_path / "test", n=2, seed=1)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "val").mkdir()
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.name == f"imagefolder:{tmp_path}" and data.classes == ("ant", "bee") and data.shape == (3, 5, 6)
    assert data.counts == (3, 3) and data.test_labels.tolist() == [0, 0, 1, 1]
    for images, written in ((data.train_images, train), (data.test_images, test)):
        expected = np.stack(list(written.values())).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(pixels_of(data, images) * 255, expected, atol=1e-3)
    x = np.stack(list(train.values())) / 255
    assert data.mean == tuple(np.round(x.mean((0, 1, 2)), 4)) and data.std == tuple(np.round(x.std((0, 1, 2)), 4))


def test_grey_stays_one_channel_until_one_image_has_colour(tmp_path):
    written = write_images(tmp_path, mode="L", n=6)
    Image.new("1", (6, 5), 1).save(tmp_path / "ant" / "000.png")  # black and white is grey, too
    grey = load_data(f"imagefolder:{tmp_path}")
    assert grey.shape == (1, 5, 6)
    everything = torch.cat([grey.train_images, grey.test_images])
    found = {tuple(x) for x in (pixels_of(grey, everything) * 255).round().int().flatten(1).tolist()}
    expected = {tuple(x.flatten().tolist()) for x in list(written.values())[1:]} | {(255,) * 30}
    assert found == expected

    write_images(tmp_path, labels=("bee",), n=1)
    colour = load_data(f"imagefolder:{tmp_path}")
    assert colour.shape == (3, 5, 6)
    ant = colour.of_class(0)
    assert torch.allclose(pixels_of(colour, ant)[:, 0], pixels_of(colour, ant)[:, 2], atol=1e-6)


def test_a_split_is_seeded_stratified_disjoint_and_complete(tmp_path):
    write_images(tmp_path, labels=("ant", "bee", "cat"), n=10)
    write_images(tmp_path, labels=("dog",), n=2, seed=9)

    def rows(images):
        return [tuple(row) for row in images.flatten(1).mul(1000).round().int().tolist()]

    data, again = (load_data(f"imagefolder:{tmp_path}", seed=3) for _ in range(2))
    other = load_data(f"imagefolder:{tmp_path}", seed=4)
    assert data.counts == (8, 8, 8, 1)
    assert torch.bincount(data.test_labels).tolist() == [2, 2, 2, 1]
    assert data.fingerprint == again.fingerprint != other.fingerprint
    fixed = {"classes": data.classes, "mean": data.mean, "std": data.std}
    assert fixed["classes"] == ("ant", "bee", "cat", "dog")
    constant = {path: np.asarray(Image.open(path)) for path in tmp_path.rglob("*.png")}
    pixels = torch.cat([pixels_of(data, data.train_images), pixels_of(data, data.test_images)]) * 255
    assert len(set(rows(pixels))) == 32
    assert set(rows(pixels)) == {
        tuple(row)
        for x in constant.values()
        for row in [(x.transpose(2, 0, 1).astype(int) * 1000).flatten().tolist()]
    }


def test_images_of_different_sizes_need_size(tmp_path):
    write_images(tmp_path, n=5)
    write_images(tmp_path, labels=("cat",), n=5, size=(8, 9))
    with pytest.raises(ValueError, match=r"ant/000.png is 6x5 but .*cat/000.png is 8x9: .* size=") as error:
        load_data(f"imagefolder:{tmp_path}")
    assert_one_sentence(error)
    assert load_data(f"imagefolder:{tmp_path}", size=7).shape == (3, 7, 7)
    assert load_data(f"imagefolder:{tmp_path}", size=(4, 10)).shape == (3, 4, 10)
    assert load_data(f"imagefolder:{tmp_path}", size=[np.int64(4), np.int32(10)]).shape == (3, 4, 10)
    for size, sentence in {
        0: "size=0 does not fit: give a whole number of at least 1", (4, -1): "size=-1 does not fit",
        8.5: "size=8.5 does not fit", "16": "size='16' does not fit",
        (1, 2, 3): r"size=\(1, 2, 3\) does not fit: give \(height, width\) in pixels, or one",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            load_data(f"imagefolder:{tmp_path}", size=size)
    with pytest.raises(ValueError, match="seed='a' does not fit"):
        load_data(f"imagefolder:{tmp_path}", size=7, seed="a")


def test_a_slash_at_the_end_makes_no_other_data(tmp_path):
    write_images(tmp_path)
    assert (
        load_data(f"imagefolder:{tmp_path}/").name
        == load_data(f"imagefolder:{tmp_path}").name
        == f"imagefolder:{tmp_path}"
    )


def test_a_path_is_no_name_and_parts_have_names(tmp_path):
    with pytest.raises(
        ValueError, match="the data set is of type PosixPath: name it, a folder of images by imagefolder:PATH"
    ):
        load_data(tmp_path)
    for part in ("Train", "Test"):
        write_images(tmp_path / part)
    with pytest.raises(
        ValueError, match=r"Test holds no image file, only folders \(two parts are named train and test"
    ):
        load_data(f"imagefolder:{tmp_path}")


def test_resizing_keeps_flat_images_flat(tmp_path):
    for label, value in (("ant", 51), ("bee", 204)):
        (tmp_path / label).mkdir()
        for side in (4, 9):
            Image.new("L", (side, side), value).save(tmp_path / label / f"{side}.png")
    data = load_data(f"imagefolder:{tmp_path}", size=6)
    assert torch.allclose(pixels_of(data, data.of_class(0)), torch.tensor(0.2).double(), atol=1e-6)
    assert torch.allclose(pixels_of(data, data.of_class(1)), torch.tensor(0.8).double(), atol=1e-6)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "bmp", "gif", "webp", "tiff", "ppm"])
def test_other_formats(suffix, tmp_path):
    write_images(tmp_path, suffix=suffix)
    assert load_data(f"imagefolder:{tmp_path}").shape == (3, 5, 6)


def test_transparency_is_dropped_without_a_warning(tmp_path):
    write_images(tmp_path)
    Image.new("RGBA", (6, 5), (255, 0, 0, 9)).save(tmp_path / "ant" / "000.png")
    palette = Image.new("P", (6, 5), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "ant" / "001.png", transparency=b"\x00\x7f")
    data = load_data(f"imagefolder:{tmp_path}")
    ants = torch.cat([data.of_class(0), data.test_images[data.test_labels == 0]])
    firsts = (pixels_of(data, ants)[:, :, 0, 0] * 255).round().int().tolist()
    assert [255, 0, 0] in firsts and [0, 0, 255] in firsts


def with_bee(damage):
    """Damages the bytes of one image."""

    def spoil(folder):
        path = folder / "bee" / "002.png"
        path.write_bytes(damage(path.read_bytes()))

    return spoil


def in_16_bits(folder):
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(folder / "ant" / "000.png")


FOLDERS = {
    "empty class": (lambda p: (p / "cat").mkdir(), "class folder .*cat holds no image file"),
    "one image": (lambda p: write_images(p, labels=("cat",), n=1), "class 'cat' has one image"),
    "16 bits": (in_16_bits, "ant/000.png cannot be read .*more than the 8 bits"),
    "half the pixels": (with_bee(lambda png: png[:-40]), "bee/002.png cannot be read"),
    "half a header": (with_bee(lambda png: png[:20]), "bee/002.png cannot be read"),
    "flipped bits": (
        with_bee(lambda png: png[:50] + bytes(b ^ 255 for b in png[50:])),
        "bee/002.png cannot be read",
    ),
    "empty file": (with_bee(lambda png: b""), "bee/002.png cannot be read"),
    "not an image": (with_bee(lambda png: b"hello"), "bee/002.png cannot be read"),
    "train alone": (lambda p: (p / "train").mkdir(), "train holds no class folders"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_cannot_be_used(case, tmp_path):
    spoil, sentence = FOLDERS[case]
    write_images(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=sentence) as error:
        load_data(f"imagefolder:{tmp_path}")
    assert_one_sentence(error)


def test_train_and_test_must_both_be_there_with_the_same_classes(tmp_path):
    write_images(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*test") as error:
        load_data(f"imagefolder:{tmp_path}")
    assert_one_sentence(error)
    write_images(tmp_path / "test", labels=("ant", "wasp"))
    with pytest.raises(ValueError, match="class 'bee' is in only one of train and test") as error:
        load_data(f"imagefolder:{tmp_path}")
    assert_one_sentence(error)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_data(f"imagefolder:{tmp_path}/nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="holds no class folders"):
        load_data(f"imagefolder:{tmp_path}/bare")


# ---- TinyImageNet ------------------------------------------------------------------------------------------

WNIDS = ("n03", "n01", "n02")  # their order is the order of the classes


def write_tiny(folder, grey=("train/n01/images/n01_1.JPEG", "val/images/val_4.JPEG")):
    """A TinyImageNet of 3 classes, 4 training images of each, 7 images in val and one in test; returns its folder."""
    root, random = folder / "tiny-imagenet-200", rng()
    val = {f"val_{i}.JPEG": WNIDS[i % 3] for i in range(7)}
    names = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(4)]
    for name in [*names, *(f"val/images/{name}" for name in val), "test/images/test_0.JPEG"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shape = (8, 8) if name in grey or grey == "all" else (8, 8, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(root / name, "JPEG")
    (root / "train" / "n01" / "n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t7\t7\n")
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"{name}\t{wnid}\t0\t0\t7\t7\n" for name, wnid in val.items())
    )
    return root


def test_tinyimagenet_is_read_from_its_unpacked_folder(tmp_path, monkeypatch, offline):
    root = write_tiny(tmp_path)
    monkeypatch.setenv("GMLIB_DATA", str(tmp_path))
    data = load_data("TinyImageNet", progress=False)
    assert (
        data.name == "TinyImageNet" and data.classes == WNIDS and data.shape == (3, 8, 8) and data.counts == (4, 4, 4)
    )
    assert (data.mean, data.std) == NORMALISATION["TinyImageNet"]
    assert data.test_labels.tolist() == [0, 0, 0, 1, 1, 2, 2]  # val_0, 3, 6, then 1, 4, then 2, 5
    train = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(4)]
    for images, files in (
        (data.train_images, train),
        (data.test_images, [f"val/images/val_{i}.JPEG" for i in (0, 3, 6, 1, 4, 2, 5)]),
    ):
        expected = np.stack([np.asarray(Image.open(root / file).convert("RGB")) for file in files])
        np.testing.assert_allclose(pixels_of(data, images) * 255, expected.transpose(0, 3, 1, 2), atol=1e-3)
    grey = pixels_of(data, data.of_class(1))[1]
    assert torch.allclose(grey[0], grey[2], atol=1e-6) and grey.std() > 0.1


def test_tinyimagenet_can_be_shrunk_and_is_in_colour_whatever_its_files(tmp_path):
    write_tiny(tmp_path, grey="all")
    whole, small = (load_data("TinyImageNet", data_dir=tmp_path, size=size, progress=False) for size in (None, 4))
    assert whole.shape == (3, 8, 8) and small.shape == (3, 4, 4)
    assert "resized" in small.origin and "resized" not in whole.origin
    kept = pixels_of(small, small.train_images).mean((1, 2, 3)) - pixels_of(whole, whole.train_images).mean((1, 2, 3))
    assert kept.abs().max() < 0.05  # an image keeps its brightness


@pytest.mark.parametrize("part", ["", "wnids.txt", "val/val_annotations.txt", "train", "val/images"])
def test_a_missing_tinyimagenet_says_which_folder_goes_where(part, tmp_path, offline):
    root = write_tiny(tmp_path)
    (root / part).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"^TinyImageNet is not there, .*never downloaded$") as error:
        load_data("TinyImageNet", data_dir=tmp_path)
    missing = root / (part or "wnids.txt")
    assert f"{missing} is missing: put the unpacked folder tiny-imagenet-200 into {tmp_path}," in str(error.value)
    assert_one_sentence(error)


def rewritten(file, change):
    """Damages a text file of the set."""

    def spoil(root):
        (root / file).write_bytes(change((root / file).read_bytes()))

    return spoil


TABLE = "val/val_annotations.txt"
LINE = "a line of val_annotations.txt is not a new file and a class"
DAMAGED_TINY = {
    "half a table": (rewritten(TABLE, lambda b: b[: len(b) // 2]), LINE + "|val_annotations.txt and val/images differ"),
    "a table cut between lines": (rewritten(TABLE, lambda b: b[: b.index(b"val_5")]), "and val/images differ"),
    "empty table": (rewritten(TABLE, lambda b: b""), "and val/images differ"),
    "binary table": (rewritten(TABLE, lambda b: bytes(range(256))), LINE),
    "one column": (rewritten(TABLE, lambda b: b + b"val_7.JPEG\n"), LINE),
    "unknown class": (rewritten(TABLE, lambda b: b.replace(b"n02", b"n04")), LINE),
    "a file twice": (rewritten(TABLE, lambda b: b + b"val_0.JPEG\tn01\t0\n"), LINE),
    "a file too many": (rewritten(TABLE, lambda b: b + b"val_7.JPEG\tn01\t0\n"), "and val/images differ"),
    "a file too few": (lambda root: (root / "val/images/val_2.JPEG").unlink(), "and val/images differ"),
    "class without images": (lambda root: (root / "train/n02").rename(root / "n02"), "train/n02/images holds no image"),
    "unknown class folder": (rewritten("wnids.txt", lambda b: b + b"n09\n"), "train/n09/images holds no image"),
    "class named twice": (rewritten("wnids.txt", lambda b: b + b"n01\n"), "wnids.txt does not name different classes"),
    "no class": (rewritten("wnids.txt", lambda b: b""), "wnids.txt does not name different classes"),
    "a class too few": (rewritten("wnids.txt", lambda b: b[4:]), LINE),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED_TINY)
def test_a_damaged_tinyimagenet_is_told(case, tmp_path):
    spoil, what = DAMAGED_TINY[case]
    root = write_tiny(tmp_path)
    spoil(root)
    with pytest.raises(
        ValueError, match=rf"^TinyImageNet is damaged \(.*({what})\): delete .* and unpack it again$"
    ) as error:
        load_data("TinyImageNet", data_dir=tmp_path)
    assert_one_sentence(error)
    assert root.is_dir()  # deleting is for the user


def test_a_damaged_jpeg_of_tinyimagenet_is_named(tmp_path):
    rewritten("val/images/val_3.JPEG", lambda b: b[:100])(write_tiny(tmp_path))
    with pytest.raises(
        ValueError, match=r"val_3.JPEG cannot be read .*: delete it or put a good copy there"
    ) as error:
        load_data("TinyImageNet", data_dir=tmp_path, progress=False)
    assert_one_sentence(error)


# ---- synthetic sets ----------------------------------------------------------------------------------------


def make_set(dtype=torch.float32, ipc=2, shape=(3, 4, 5), **changes):
    given = {
        "images": torch.randn(3 * ipc, *shape, generator=cpu(), dtype=dtype),
        "labels": torch.arange(3).repeat_interleave(ipc),
        "classes": ("ant", "bee", "müll"),
        "mean": (0.1, 0.2, 1 / 3),
        "std": (0.5, 0.25, 0.1),
        "recipe": {"method": "MDA", "ipc": ipc, "lam": None, "lr": 0.1, "list": [1, 2]},
    }
    return SyntheticSet(**given | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_set_comes_back_bit_for_bit(dtype, tmp_path):
    S = make_set(dtype, history=[{"loss": 1.0}], snapshots={0: torch.zeros(1)})
    S.save(tmp_path / "set.safetensors")
    back = SyntheticSet.load(tmp_path / "set.safetensors")
    assert back.images.dtype == dtype and torch.equal(back.images, S.images) and torch.equal(back.labels, S.labels)
    assert (back.classes, back.mean, back.std, back.recipe) == (S.classes, S.mean, S.std, S.recipe)
    assert back.history == [] and back.snapshots == {}  # not part of the file
    assert (back.ipc, back.n_classes, back.shape) == (2, 3, (3, 4, 5))


def test_a_set_in_float16_comes_back_as_float32(tmp_path):
    S = make_set()
    S.save(tmp_path / "half.safetensors", dtype=torch.float16)
    S.save(tmp_path / "full.safetensors")
    back = SyntheticSet.load(tmp_path / "half.safetensors")
    assert back.images.dtype == torch.float32 and torch.equal(back.images, S.images.half().float())
    saved = (tmp_path / "full.safetensors").stat().st_size - (tmp_path / "half.safetensors").stat().st_size
    assert saved >= 2 * S.images.numel() - 8
    with pytest.raises(ValueError, match=r"beyond the range of torch.float16"):
        make_set(images=S.images * 1e6).save(tmp_path / "huge.safetensors", dtype=torch.float16)
    with pytest.raises(
        ValueError, match=r"torch.bfloat16: choose one of torch.float16, torch.float32, torch.float64"
    ):
        S.save(tmp_path / "huge.safetensors", dtype=torch.bfloat16)
    assert not (tmp_path / "huge.safetensors").exists()


def test_the_file_is_plain_safetensors_and_always_the_same(tmp_path):
    contents = set()
    for i in range(8):  # the library alone would shuffle the metadata
        make_set().save(tmp_path / f"{i}.safetensors")
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("images"), make_set().images)
    assert metadata["format"] == "gmlib-set-1"
    assert json.loads(metadata["recipe"])["method"] == "MDA" and json.loads(metadata["classes"])[2] == "müll"


def test_a_set_that_needs_grad_or_is_strided_can_be_saved(tmp_path):
    images = make_set().images.transpose(2, 3).requires_grad_()
    make_set(images=images).save(tmp_path / "set.safetensors")
    back = SyntheticSet.load(tmp_path / "set.safetensors")
    assert torch.equal(back.images, images) and not back.images.requires_grad


def test_pixels_and_dataset():
    S = make_set()
    pixels = S.pixels()
    for channel, (mean, std) in enumerate(zip(S.mean, S.std, strict=True)):
        expected = np.clip(S.images[:, channel].numpy() * std + mean, 0, 1)
        np.testing.assert_allclose(pixels[:, channel], expected, atol=1e-6)
    assert pixels.min() == 0 and pixels.max() == 1  # some were clipped, and only in the copy
    assert S.images.min() < -1
    images, labels = next(iter(DataLoader(S.to_dataset(), batch_size=6)))
    assert torch.equal(images, S.images) and torch.equal(labels, S.labels)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": torch.zeros(6, 20)}, r"not torch.float32 of shape \(6, 20\)"),
        ({"images": torch.zeros(6, 3, 4, 5, dtype=torch.int64)}, "must be floats"),
        (
            {"images": torch.zeros(0, 3, 4, 5), "labels": torch.zeros(0, dtype=torch.int64)},
            "must be floats of shape",
        ),
        ({"images": torch.full((6, 3, 4, 5), float("nan"))}, "NaN or infinite"),
        ({"images": torch.full((6, 3, 4, 5), float("-inf"))}, "NaN or infinite"),
        ({"mean": (0.5,)}, "must each be 3 numbers"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, "label 3 is outside 0..2"),
        ({"labels": torch.tensor([-1, 0, 1, 1, 2, 2])}, "label -1 is outside 0..2"),
        ({"labels": torch.tensor([0, 1, 2, 0, 1, 2])}, "sorted"),
        ({"labels": torch.tensor([0, 0, 0, 1, 1, 2])}, "the same number"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2])}, "the same number"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32)}, "int64"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make_set(**changes)
    assert_one_sentence(error)


def test_a_recipe_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="plain JSON types only") as error:
        make_set(recipe={"seed": torch.zeros(1)}).save(tmp_path / "set.safetensors")
    assert_one_sentence(error)
    assert not list(tmp_path.iterdir())


def test_a_truncated_set_is_refused_at_every_length(tmp_path):
    path = tmp_path / "set.safetensors"
    make_set().save(path)
    blob = path.read_bytes()
    for length in [*range(0, 40), *range(40, len(blob), 97), len(blob) - 1]:
        path.write_bytes(blob[:length])
        with pytest.raises(ValueError, match=r"set.safetensors is not a whole gmlib set \(") as error:
            SyntheticSet.load(path)
        assert_one_sentence(error)
    path.write_bytes(blob + b"more")
    with pytest.raises(ValueError, match="not a whole gmlib set"):
        SyntheticSet.load(path)
    path.write_bytes(blob)
    SyntheticSet.load(path)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "set.pt"
    with pytest.raises(FileNotFoundError, match=r"there is no synthetic set .*set.pt") as error:
        SyntheticSet.load(path)
    assert_one_sentence(error)
    with pytest.raises(FileNotFoundError):
        SyntheticSet.load(tmp_path)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    for blob in (pickle.dumps(Trap()), b"hello, this is not a set at all"):
        path.write_bytes(blob)
        with pytest.raises(ValueError, match="not a whole gmlib set") as error:
            SyntheticSet.load(path)
        assert_one_sentence(error)
    torch.save({"images": make_set().images}, path)
    with pytest.raises(ValueError, match="not a whole gmlib set"):
        SyntheticSet.load(path)
    assert not (tmp_path / "opened").exists()


def valid_metadata(**changes):
    metadata = {
        "format": "gmlib-set-1",
        "classes": '["a", "b"]',
        "mean": "[0.5]",
        "std": "[0.5]",
        "recipe": "{}",
    }
    return {key: value for key, value in (metadata | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "metadata", "sentence"),
    [
        ({}, None, "its format is None"),
        ({}, valid_metadata(format="gmlib-set-2"), "its format is 'gmlib-set-2' and not 'gmlib-set-1'"),
        ({}, valid_metadata(recipe=None), "recipe"),
        ({}, valid_metadata(classes="[broken"), "Expecting value"),
        ({}, valid_metadata(mean='"x"'), "convert string to float"),
        ({}, valid_metadata(recipe="3"), "not iterable"),
        ({}, valid_metadata(std="[1, 2]"), "must each be 1 numbers"),
        ({"labels": torch.tensor([0, 2])}, valid_metadata(), "label 2 is outside 0..1"),
        ({"images": torch.full((2, 1, 3, 3), float("nan"))}, valid_metadata(), "NaN"),
        ({"images": None}, valid_metadata(), "images"),
    ],
)
def test_safetensors_files_that_are_no_set_are_refused(tensors, metadata, sentence, tmp_path):
    whole = {"images": torch.zeros(2, 1, 3, 3), "labels": torch.tensor([0, 1])} | tensors
    save_file({k: v for k, v in whole.items() if v is not None}, tmp_path / "set.safetensors", metadata)
    with pytest.raises(ValueError, match=f"set.safetensors is not a whole gmlib set .*{sentence}") as error:
        SyntheticSet.load(tmp_path / "set.safetensors")
    assert_one_sentence(error)


# ---- atomic writing ----------------------------------------------------------------------------------------


def test_write_atomically_makes_folders_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"one")
    write_atomically(str(path), b"two")
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["file"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode  # as readable as any other file


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_keeps_the_old_file_and_no_other(step, fault, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise fault

    monkeypatch.setattr(step, fail)
    with pytest.raises(type(fault)) as error:
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
    if isinstance(fault, OSError):
        assert error.value.errno == errno.ENOSPC
        assert re.search(r"cannot write .*file \(No space left on device\): free some space", str(error.value))


def test_where_nothing_can_be_written_the_reason_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"cannot write .*file/set.safetensors \(File exists\)"):
        make_set().save(tmp_path / "file" / "set.safetensors")
    with pytest.raises(IsADirectoryError, match="cannot write"):
        write_atomically(tmp_path, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_forbidden_folder_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write"):
        write_atomically(tmp_path / "file", b"x")
