"""Readers of data sets: scikit-learn's digits, small files in every published layout, and damaged files."""

import gzip
import hashlib
import os
import pickle
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
from messages import refuses
from PIL import Image
from sklearn.datasets import load_digits
from test_data import arrays, pixels_of

from gmlib.datasets import BINARY, LOADERS, NORMALISATION, load_data

# ---- digits ------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_images_split_once(digits):
    assert digits.shape == (1, 8, 8) and digits.classes == tuple("0123456789") and digits.n_classes == 10
    assert digits.train_images.shape == (1200, 1, 8, 8) and digits.train_images.dtype == torch.float32
    assert digits.test_images.shape == (597, 1, 8, 8) and digits.train_labels.dtype == torch.int64

    x, y = load_digits(return_X_y=True)
    originals = {tuple(row): label for row, label in zip(x.astype(int).tolist(), y.tolist(), strict=True)}
    assert len(originals) == 1797, "no two images are equal, so finding each one gives the split"
    found = []
    for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)):
        exact = pixels_of(digits, images) * 16
        assert (exact - exact.round()).abs().max() < 1e-5
        rows = [tuple(row) for row in exact.round().int().flatten(1).tolist()]
        assert [originals[row] for row in rows] == labels.tolist()
        found.append(set(rows))
    assert not found[0] & found[1] and found[0] | found[1] == originals.keys()


def test_digits_are_stratified_sorted_and_normalised_by_their_own_constants(digits):
    _, y = load_digits(return_X_y=True)
    assert np.abs(np.array(digits.counts) - np.bincount(y) * 1200 / 1797).max() < 1
    assert sum(digits.counts) == 1200 and (digits.train_labels.diff() >= 0).all()
    assert digits.train_images.mean().abs() < 1e-3 and abs(digits.train_images.std() - 1) < 1e-3
    pixels = pixels_of(digits, digits.train_images)
    measured = round(pixels.mean().item(), 4), round(pixels.std(correction=0).item(), 4)
    assert measured == (NORMALISATION["digits"][0][0], NORMALISATION["digits"][1][0])
    assert load_data("digits", seed=5).fingerprint == digits.fingerprint, "the split does not depend on the seed"


def test_the_fingerprint_of_digits_is_the_same_everywhere(digits):
    digest = hashlib.sha256()
    for part in (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels):
        digest.update(str(tuple(part.shape)).encode() + part.numpy().tobytes())
    assert digits.fingerprint == digest.hexdigest() == digits.to(dtype=torch.float64).fingerprint
    assert digits.fingerprint.startswith("eee39cbf5330b879")


# ---- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        None,
        7,
        b"digits",
        ["digits"],
        "mnist",
        "CIFAR-10",
        "",
        "imagefolder",
        "imagefolder:",
        "digits:",
        "digits:x",
        "MNIST:x",
    ],
)
def test_an_unknown_name_lists_the_known_ones(name):
    known = {"imagefolder:PATH" if known == "imagefolder" else known for known in LOADERS}
    with pytest.raises(ValueError, match="unknown data set") as error:
        load_data(name)
    assert all(known in str(error.value) for known in known) and repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mnist", "MNIST"),
        ("cifar-10", "CIFAR10"),
        ("cifar 100", "CIFAR100"),
        ("Fashion-MNIST", "FashionMNIST"),
        ("fmnist", "FashionMNIST"),
        ("tiny-imagenet-200", "TinyImageNet"),
        ("imagefolder", "imagefolder:PATH"),
    ],
)
def test_a_name_spelt_in_another_way_suggests_the_right_one(name, meant):
    with refuses(ValueError, f"did you mean {meant!r}?"):
        load_data(name)


def test_the_path_of_a_folder_suggests_an_image_folder(tmp_path):
    for path in (tmp_path, str(tmp_path)):
        with refuses(ValueError, f"did you mean 'imagefolder:{tmp_path}"[:50]):
            load_data(path)


def test_constants_may_be_given(digits):
    data = load_data("digits", mean=0.5, std=0.25)
    expected = (digits.train_images * 0.376 + 0.3053 - 0.5) / 0.25
    assert (data.mean, data.std) == ((0.5,), (0.25,)) and torch.allclose(data.train_images, expected, atol=1e-5)
    assert load_data("digits", std=0.25).mean == digits.mean, "the other one stays"


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_constants_that_do_not_fit_are_no_damage(name, tmp_path, monkeypatch, offline):
    """They are refused before a file is read."""
    mean, std = NORMALISATION[name]
    for given in (
        {"mean": [255 * each for each in mean], "std": [255 * each for each in std]},
        {"mean": [each / 255 for each in mean], "std": [each / 255 for each in std]},
        {"std": [0.0] * len(std)},
        {"std": [1e-30] * len(std)},
        {"mean": (0.5, 0.5)},
        {"mean": "0.5"},
    ):
        with pytest.raises(ValueError, match=name) as error:
            load_data(name, data_dir=tmp_path, **given)
        assert "damaged" not in str(error.value)
    WRITERS[name](tmp_path, monkeypatch)
    data = load_data(name, data_dir=tmp_path, mean=std, std=mean)
    assert (data.mean, data.std) == (std, mean)


def test_a_path_is_not_a_name(tmp_path):
    with pytest.raises(ValueError, match=type(tmp_path).__name__) as error:
        load_data(tmp_path)
    assert "imagefolder:PATH" in str(error.value)


def test_size_applies_to_image_files_only():
    with refuses(ValueError, "size=", "imagefolder:PATH", "TinyImageNet"):
        load_data("digits", size=16)


# ---- torchvision's sets ------------------------------------------------------------------------------------


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


def class_names(C):
    return [f"class {c:02d}" for c in range(C)]


def write_cifar(folder, name, monkeypatch):
    """A CIFAR of a few images. The checksums of these files replace the published ones in torchvision."""
    source = getattr(torchvision.datasets, name)
    inner = folder / source.base_folder
    inner.mkdir(parents=True)
    n, C = (10, 10) if name == "CIFAR10" else (100, 100)

    def write(file, entry):
        (inner / file).write_bytes(python2_pickle(entry))
        return [file, hashlib.md5((inner / file).read_bytes()).hexdigest()]

    def write_batches(files, first):
        """Batch i from arrays(seed=first + i)."""
        label = "labels" if name == "CIFAR10" else "fine_labels"
        made = [arrays(n=n, shape=(3072,), classes=C, seed=first + i) for i in range(len(files))]
        return [write(f, {"data": x, label: y.tolist()}) for (f, _), (x, y) in zip(files, made, strict=True)]

    train, test = write_batches(source.train_list, 0), write_batches(source.test_list, 10)
    _, md5 = write(source.meta["filename"], {source.meta["key"]: class_names(C)})
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
        # in the published files X is (height, width, channels, N), and the digit 0 is labelled 10
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
    """A test fails if it uses the network."""

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def unreachable(monkeypatch):
    """No host answers, as on a machine without a network."""

    def fail(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", fail)


@pytest.mark.parametrize("name", WRITERS)
def test_existing_files_are_read_without_a_network(name, tmp_path, monkeypatch, offline):
    assert WRITERS.keys() == LOADERS.keys() - {"digits", "TinyImageNet", "imagefolder"}
    WRITERS[name](tmp_path, monkeypatch)
    monkeypatch.setenv("GMLIB_DATA", str(tmp_path))
    data = load_data(name)
    C = 100 if name == "CIFAR100" else 10
    grey = "MNIST" in name
    assert data.shape == ((1, 28, 28) if grey else (3, 32, 32)) and data.n_classes == C
    assert (data.mean, data.std) == NORMALISATION[name]
    # the same pixels again, from the generator of the files
    n = {"SVHN": 20, "CIFAR10": 10, "CIFAR100": 100}.get(name, 40)
    layout = (28, 28) if grey else (32, 32, 3) if name == "SVHN" else (3, 32, 32)
    batches = [arrays(n=n, shape=layout, classes=C, seed=i) for i in range(5 if name == "CIFAR10" else 1)]
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    test_x, test_y = arrays(n=n, shape=layout, classes=C, seed=10 if "CIFAR" in name else 1)
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
    names = {"CIFAR10": "class 03", "CIFAR100": "class 03", "FashionMNIST": "Dress"}
    assert data.classes[3] == names.get(name, "3")


def test_warnings_about_old_files_are_not_shown(tmp_path, monkeypatch, offline):
    load = pickle.load

    def load_with_warning(*args, **options):  # like numpy 2.4.0 to 2.4.4
        warnings.warn("align should be passed as bool", np.exceptions.VisibleDeprecationWarning, stacklevel=2)
        return load(*args, **options)

    write_cifar(tmp_path, "CIFAR10", monkeypatch)
    monkeypatch.setattr(pickle, "load", load_with_warning)
    assert load_data("CIFAR10", data_dir=tmp_path).counts == (5,) * 10


def test_data_dir_comes_before_the_environment_and_that_before_the_default(tmp_path, monkeypatch, offline):
    write_mnist(tmp_path / "given")
    monkeypatch.setenv("GMLIB_DATA", str(tmp_path / "missing"))
    assert load_data("MNIST", data_dir=tmp_path / "given").counts == (4,) * 10
    with refuses(FileNotFoundError, str(tmp_path / "missing" / "MNIST" / "raw")):
        load_data("MNIST", download=False)
    monkeypatch.delenv("GMLIB_DATA")
    monkeypatch.chdir(tmp_path)
    with refuses(FileNotFoundError, str(tmp_path / "data" / "MNIST" / "raw")):
        load_data("MNIST", download=False)


# The files, and the folders they belong into.
WANTED = {
    "MNIST": ("t10k-labels-idx1-ubyte into {}/MNIST/raw", ".gz into {}/MNIST/raw"),
    "FashionMNIST": ("train-images-idx3-ubyte, train-labels-idx1-ubyte", "into {}/FashionMNIST/raw"),
    "SVHN": ("train_32x32.mat and test_32x32.mat into {}",),
    "CIFAR10": (
        "test_batch and batches.meta into {}/cifar-10-batches-py",
        "cifar-10-python.tar.gz or cifar-10-binary.tar.gz into {}",
    ),
    "CIFAR100": (
        "train, test and meta into {}/cifar-100-python",
        "cifar-100-python.tar.gz or cifar-100-binary.tar.gz into {}",
    ),
}


@pytest.mark.parametrize("name", WANTED)
def test_a_missing_set_names_its_files_and_folders(name, tmp_path, offline):
    folder = tmp_path / "new"
    with refuses(FileNotFoundError, name, *(part.format(folder) for part in WANTED[name])):
        load_data(name, data_dir=folder, download=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WANTED)
def test_a_failed_download_says_so_and_leaves_nothing(name, tmp_path, unreachable):
    folder = tmp_path / "new" / "deep"
    with pytest.raises(FileNotFoundError, match="not known") as error:
        load_data(name, data_dir=folder)
    assert all(part.format(folder) in str(error.value) for part in (name, "downloaded", *WANTED[name]))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    assert socket.getdefaulttimeout() is None, "the timeout of the download is reset"


def test_an_interrupted_download_leaves_no_partial_file(tmp_path, monkeypatch):
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

    # a host with one wrong file: the good files are kept
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", [*resources[:3], (resources[3][0], "0" * 32)])
    with pytest.raises(FileNotFoundError, match="corrupted"):
        load_data("MNIST", data_dir=tmp_path / "new", progress=progress)
    left = {path.name for path in (tmp_path / "new" / "MNIST" / "raw").iterdir()}
    assert left == {name for file, _ in resources[:3] for name in (file, file.removesuffix(".gz"))}


@pytest.mark.parametrize("download", [True, False])
def test_existing_archives_are_unpacked_without_a_network(download, tmp_path, monkeypatch, offline):
    source = torchvision.datasets.CIFAR10
    inner = write_cifar(tmp_path / "made", "CIFAR10", monkeypatch)
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inner, source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert load_data("CIFAR10", data_dir=tmp_path / "data", download=download).counts == (5,) * 10


IDX_CUTS = [slice(length) for length in (0, 3, 10, 16, 40, -1)]
CUTS = [slice(-1), slice(0), slice(None, None, -1), "half"]
DAMAGED = [
    *(("MNIST", file, cut) for file in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte") for cut in IDX_CUTS),
    *(
        (name, file, cut)
        for name, file in (
            ("CIFAR10", "data_batch_3"),
            ("CIFAR10", "batches.meta"),
            ("CIFAR100", "test"),
            ("SVHN", "train_32x32.mat"),
            ("SVHN", "test_32x32.mat"),
        )
        for cut in CUTS
    ),
]


@pytest.mark.parametrize(("name", "file", "cut"), DAMAGED)
def test_a_damaged_file_is_named_and_kept(name, file, cut, tmp_path, monkeypatch, offline):
    path = WRITERS[name](tmp_path, monkeypatch) / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if cut == "half" else whole[cut])
    with refuses(ValueError, f"{name} is damaged", f"delete {file} in {path.parent}"):
        load_data(name, data_dir=tmp_path)
    assert path.exists()


def test_labels_outside_the_classes_count_as_damage(tmp_path, offline):
    raw = write_mnist(tmp_path)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.full(40, 77, np.uint8)))
    with refuses(ValueError, "MNIST is damaged", "label 77", "delete train-images"):
        load_data("MNIST", data_dir=tmp_path)


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path, monkeypatch, offline):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    path = write_cifar(tmp_path, "CIFAR10", monkeypatch) / "test_batch"
    path.write_bytes(pickle.dumps({"data": Trap()}))
    with refuses(ValueError, "delete test_batch"):
        load_data("CIFAR10", data_dir=tmp_path)
    assert not (tmp_path / "opened").exists()


@pytest.mark.skipif("GMLIB_TEST_DATA" not in os.environ, reason="GMLIB_TEST_DATA names no folder of data sets")
def test_the_real_mnist(offline):
    data = load_data("MNIST", data_dir=os.environ["GMLIB_TEST_DATA"])
    assert data.counts == (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    assert data.test_labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    pixels = pixels_of(data, data.train_images)
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)


# ---- binary CIFAR ------------------------------------------------------------------------------------------


def write_binary(folder, name, monkeypatch):
    """The images of `write_cifar` in the binary layout. Their numbers replace the official ones."""
    binary, C = BINARY[name], 10 if name == "CIFAR10" else 100
    inner = folder / binary.folder
    inner.mkdir(parents=True)
    for files, first in ((binary.train, 0), (binary.test, 10)):
        for i, file in enumerate(files):
            x, y = arrays(n=C, shape=(3072,), classes=C, seed=first + i)
            labels = [y] if name == "CIFAR10" else [y // 5, y]
            (inner / file).write_bytes(np.column_stack([*labels, x]).astype(np.uint8).tobytes())
    (inner / binary.names).write_text("\n".join(class_names(C)) + "\n\n")
    fewer = {"train": dict.fromkeys(binary.train, C), "test": dict.fromkeys(binary.test, C)}
    monkeypatch.setitem(BINARY, name, binary._replace(**fewer))
    return inner


def pack(inner, archive, name, monkeypatch):
    """Pack a folder into an archive, whose checksum replaces the official one."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inner, inner.name)
        tar.add(inner / BINARY[name].names, f"{inner.name}/../../outside")
    monkeypatch.setitem(BINARY, name, BINARY[name]._replace(sha256=hashlib.sha256(archive.read_bytes()).hexdigest()))
    return archive


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def light(monkeypatch):
    """No extra of gmlib is installed, and nothing is unpickled."""

    def refuse(*_, **__):
        raise ModuleNotFoundError("not installed")

    monkeypatch.setattr("gmlib.datasets.require", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)


def test_the_binary_layout_has_the_official_numbers():
    assert [sum(part.values()) for b in BINARY.values() for part in (b.train, b.test)] == [50_000, 10_000] * 2
    sizes = [(len(b.labels) + 3072) * n for b in BINARY.values() for n in b.train.values()]
    assert sizes == [30_730_000] * 5 + [153_700_000]


@pytest.mark.parametrize("name", BINARY)
def test_both_versions_of_cifar_give_the_same_data(name, tmp_path, monkeypatch, offline, request):
    write_cifar(tmp_path / "python", name, monkeypatch)
    python = load_data(name, data_dir=tmp_path / "python")
    write_binary(tmp_path / "binary", name, monkeypatch)
    request.getfixturevalue("light")
    binary = load_data(name, data_dir=tmp_path / "binary")
    assert binary.fingerprint == python.fingerprint
    assert (binary.classes, binary.mean, binary.std) == (python.classes, python.mean, python.std)
    assert BINARY[name].folder in binary.origin and "torchvision" in python.origin


def test_the_binary_version_comes_first_if_it_is_complete(tmp_path, monkeypatch, offline):
    write_cifar(tmp_path, "CIFAR10", monkeypatch)
    inner = write_binary(tmp_path, "CIFAR10", monkeypatch)
    assert "binary" in load_data("CIFAR10", data_dir=tmp_path).origin
    (inner / "test_batch.bin").unlink()
    pack(inner, tmp_path / "cifar-10-binary.tar.gz", "CIFAR10", monkeypatch)
    assert "torchvision" in load_data("CIFAR10", data_dir=tmp_path).origin
    assert not (inner / "test_batch.bin").exists()


@pytest.mark.parametrize("torchvision", ["with", "without"])
def test_missing_files_of_binary_cifar_are_named(torchvision, tmp_path, monkeypatch, unreachable, request):
    inner = write_binary(tmp_path, "CIFAR10", monkeypatch)
    for file in ("data_batch_3.bin", "batches.meta.txt"):
        (inner / file).unlink()
    if torchvision == "without":
        request.getfixturevalue("light")
    missing, archive = f"put data_batch_3.bin and batches.meta.txt into {inner},", "or cifar-10-binary.tar.gz into"
    with refuses(FileNotFoundError, "is incomplete and could not be downloaded", missing, f"{archive} {tmp_path}"):
        load_data("CIFAR10", data_dir=tmp_path)
    with refuses(FileNotFoundError, "CIFAR10 is incomplete: ", missing, f"{archive} {tmp_path}", "download=True"):
        load_data("CIFAR10", data_dir=tmp_path, download=False)
    assert names_in(tmp_path) == {inner.name}


def test_an_incomplete_binary_cifar_is_downloaded_for_torchvision(host, tmp_path, monkeypatch):
    served, address = host
    source = torchvision.datasets.CIFAR10
    (write_binary(tmp_path / "data", "CIFAR10", monkeypatch) / "test_batch.bin").unlink()
    python = write_cifar(tmp_path / "made", "CIFAR10", monkeypatch)
    with tarfile.open(served / source.filename, "w:gz") as tar:
        tar.add(python, source.base_folder)
    monkeypatch.setattr(source, "url", address + source.filename)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5((served / source.filename).read_bytes()).hexdigest())
    data = load_data("CIFAR10", data_dir=tmp_path / "data", progress=False)
    assert data.fingerprint == load_data("CIFAR10", data_dir=tmp_path / "made").fingerprint
    assert "torchvision" in data.origin


def with_byte(at, value):
    """Changes one byte of a file."""

    def change(blob):
        blob = bytearray(blob)
        blob[at] = value
        return bytes(blob)

    return change


TRAIN = "data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, data_batch_4.bin and data_batch_5.bin"
ORDER = "in alphabetical order"
DAMAGED_BINARY = {
    "a byte too few": ("CIFAR10", "data_batch_3.bin", lambda b: b[:-1], "has 30729 bytes, not 30730"),
    "a record too few": ("CIFAR10", "test_batch.bin", lambda b: b[3073:], "has 27657 bytes, not 30730"),
    "a record too many": ("CIFAR100", "train.bin", lambda b: b + b[:3074], "has 310474 bytes, not 307400"),
    "empty file": ("CIFAR100", "test.bin", lambda b: b"", "has 0 bytes"),
    "label 10": ("CIFAR10", "data_batch_3.bin", with_byte(3073, 10), "a label in data_batch_3.bin"),
    "coarse label 20": ("CIFAR100", "test.bin", with_byte(0, 20), "a label in test.bin"),
    "fine label 255": ("CIFAR100", "test.bin", with_byte(1, 255), "a label in test.bin"),
    "two test images of a class": (
        "CIFAR10",
        "test_batch.bin",
        with_byte(0, 1),
        "'class 00' has 0 test images, not 1",
    ),
    "a class too large": ("CIFAR100", "train.bin", with_byte(1, 7), "'class 00' has 0 training images, not 1"),
    "a name too few": ("CIFAR10", "batches.meta.txt", lambda b: b[9:], ORDER),
    "a name twice": ("CIFAR10", "batches.meta.txt", lambda b: b.replace(b"03", b"04"), ORDER),
    "other order": ("CIFAR100", "fine_label_names.txt", lambda b: b.replace(b"03", b"x"), ORDER),
    "not text": ("CIFAR100", "fine_label_names.txt", lambda b: bytes(range(256)), ORDER),
}


@pytest.mark.parametrize("case", DAMAGED_BINARY)
def test_damage_to_binary_cifar_is_found(case, tmp_path, monkeypatch, light):
    name, file, damage, words = DAMAGED_BINARY[case]
    inner = write_binary(tmp_path, name, monkeypatch)
    (inner / file).write_bytes(damage((inner / file).read_bytes()))
    before = names_in(inner)
    advice = f"delete {file} in {inner} and unpack {BINARY[name].archive} again"
    with refuses(ValueError, f"{name} is damaged", words, advice):
        load_data(name, data_dir=tmp_path)
    assert names_in(inner) == before, "nothing is deleted"


def test_training_files_with_too_few_images_of_a_class_are_all_named(tmp_path, monkeypatch, light):
    inner = write_binary(tmp_path, "CIFAR10", monkeypatch)
    path = inner / "data_batch_5.bin"
    path.write_bytes(with_byte(3 * 3073, 8)(path.read_bytes()))
    with refuses(ValueError, "'class 03' has 4 training images, not 5", f"delete {TRAIN} in"):
        load_data("CIFAR10", data_dir=tmp_path)


def test_an_unreadable_file_is_no_damage(tmp_path, monkeypatch, light):
    def fail(*_):
        raise PermissionError("Permission denied")

    write_binary(tmp_path, "CIFAR10", monkeypatch)
    monkeypatch.setattr("numpy.fromfile", fail)
    with pytest.raises(PermissionError):
        load_data("CIFAR10", data_dir=tmp_path)


@pytest.mark.parametrize("name", BINARY)
def test_the_archive_of_binary_cifar_is_unpacked(name, tmp_path, monkeypatch, light):
    made = write_binary(tmp_path / "made", name, monkeypatch)
    (made / "readme.html").write_text("not needed")
    data_dir, inner = tmp_path / "data", tmp_path / "data" / made.name
    data_dir.mkdir()
    archive = pack(made, data_dir / BINARY[name].archive, name, monkeypatch)
    data = load_data(name, data_dir=data_dir)
    assert data.fingerprint == load_data(name, data_dir=tmp_path / "made").fingerprint
    assert names_in(inner) == names_in(made) - {"readme.html"}, "only the files that are read"
    assert names_in(data_dir) == {archive.name, inner.name} and names_in(tmp_path) == {"made", "data"}

    # if a file is missing later, only that one is taken from the archive
    first, *others = sorted(inner.iterdir())
    first.unlink()
    before = [path.stat().st_ino for path in others]
    assert load_data(name, data_dir=data_dir).fingerprint == data.fingerprint
    assert [path.stat().st_ino for path in others] == before


def test_an_archive_that_is_not_the_published_one_is_never_opened(tmp_path, monkeypatch, light):
    made = write_binary(tmp_path / "made", "CIFAR10", monkeypatch)
    archive = pack(made, tmp_path / "cifar-10-binary.tar.gz", "CIFAR10", monkeypatch)
    archive.write_bytes(archive.read_bytes()[:-1])
    advice = f"delete {archive.name} in {tmp_path} and download it again"
    with refuses(ValueError, "CIFAR10 is damaged", "not the published file", advice):
        load_data("CIFAR10", data_dir=tmp_path)
    assert names_in(tmp_path) == {"made", archive.name}


def test_unpacking_that_fails_leaves_nothing(tmp_path, monkeypatch, light):
    made = write_binary(tmp_path / "made", "CIFAR10", monkeypatch)
    archive = pack(made, tmp_path / "cifar-10-binary.tar.gz", "CIFAR10", monkeypatch)
    extract = tarfile.TarFile.extractfile

    def fill(tar, member):
        if "test_batch" in member:
            raise OSError("No space left on device")
        return extract(tar, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", fill)
    with pytest.raises(OSError, match="No space left"):
        load_data("CIFAR10", data_dir=tmp_path)
    assert names_in(tmp_path) == {"made", archive.name}


REAL_BINARY = Path(os.environ.get("GMLIB_TEST_DATA", ""), "cifar-10-batches-bin")


@pytest.mark.skipif(not REAL_BINARY.is_dir(), reason="GMLIB_TEST_DATA names no folder with cifar-10-batches-bin")
def test_the_real_binary_cifar10(light):
    data = load_data("CIFAR10", data_dir=REAL_BINARY.parent)
    assert data.counts == (5000,) * 10 and torch.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.classes[:4] == ("airplane", "automobile", "bird", "cat")
    measured = [torch.std_mean(data.train_images[:, c].double(), correction=0) for c in range(3)]
    mean = [m.item() * std + mean for (_, m), mean, std in zip(measured, data.mean, data.std, strict=True)]
    std = [s.item() * std for (s, _), std in zip(measured, data.std, strict=True)]
    assert mean == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=3e-8)
    assert std == pytest.approx([0.24703223, 0.24348513, 0.26158784], abs=3e-8)


# ---- image folders -----------------------------------------------------------------------------------------


def write_images(folder, labels=("ant", "bee"), n=5, mode="RGB", size=(6, 5), suffix="png", seed=0):
    """Write n images of ``size`` (width, height) for each class. Returns {path: uint8 array}."""
    random, written = np.random.default_rng(seed), {}
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


def test_images_are_grey_unless_one_has_colour(tmp_path):
    written = write_images(tmp_path, mode="L", n=6)
    Image.new("1", (6, 5), 1).save(tmp_path / "ant" / "000.png")  # black and white counts as grey
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


def test_constants_of_three_channels_read_grey_files_in_colour(tmp_path):
    write_images(tmp_path, mode="L")
    data = load_data(f"imagefolder:{tmp_path}", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    pixels = pixels_of(data, data.train_images)
    assert data.shape == (3, 5, 6) and torch.allclose(pixels[:, 0], pixels[:, 2], atol=1e-6)
    with refuses(ValueError, "mean=", "1 finite number"):
        load_data(f"imagefolder:{tmp_path}", mean=(0.5, 0.5), std=0.2)


def test_the_split_of_a_folder_never_changes(tmp_path):
    """Stored runs of a folder belong to it."""
    write_images(tmp_path, labels=("ant", "bee"), n=10)
    data = load_data(f"imagefolder:{tmp_path}", seed=3)
    rng = torch.Generator().manual_seed(3)
    chosen = [sorted(torch.randperm(10, generator=rng)[:2].tolist()) for _ in range(2)]
    files = [tmp_path / c / f"{i:03d}.png" for c, some in zip(("ant", "bee"), chosen, strict=True) for i in some]
    expected = np.stack([np.asarray(Image.open(path)) for path in files]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels_of(data, data.test_images) * 255, expected, atol=1e-3)


def test_a_split_is_seeded_stratified_disjoint_and_complete(tmp_path):
    written = write_images(tmp_path, labels=("ant", "bee", "cat"), n=10)
    written |= write_images(tmp_path, labels=("dog",), n=2, seed=9)
    data, again, other = (load_data(f"imagefolder:{tmp_path}", seed=seed) for seed in (3, 3, 4))
    assert data.classes == ("ant", "bee", "cat", "dog") and data.counts == (8, 8, 8, 1)
    assert torch.bincount(data.test_labels).tolist() == [2, 2, 2, 1]
    assert data.fingerprint == again.fingerprint != other.fingerprint
    pixels = torch.cat([pixels_of(data, data.train_images), pixels_of(data, data.test_images)]) * 255
    found = {tuple(x) for x in pixels.mul(1000).round().int().flatten(1).tolist()}
    expected = {tuple((x.transpose(2, 0, 1).astype(int) * 1000).flatten().tolist()) for x in written.values()}
    assert found == expected and len(found) == 32


def test_images_of_different_sizes_need_size(tmp_path):
    write_images(tmp_path, n=5)
    write_images(tmp_path, labels=("cat",), n=5, size=(8, 9))
    ant, cat = Path("ant", "000.png"), Path("cat", "000.png")
    with refuses(ValueError, f"{ant} is 6x5", f"{cat} is 8x9", "size="):
        load_data(f"imagefolder:{tmp_path}")
    for size, (h, w) in ((7, (7, 7)), ((4, 10), (4, 10)), ([np.int64(4), np.int32(10)], (4, 10))):
        assert load_data(f"imagefolder:{tmp_path}", size=size).shape == (3, h, w)


@pytest.mark.parametrize(
    ("option", "given"),
    [
        *(("size", size) for size in (0, (4, -1), 8.5, "16", b"16", (1, 2, 3), [], {}, [[1], [2, 3]], [None, 4])),
        *(("size", size) for size in (10**9, 10**400, (4, 2**16), np.float32(4), np.zeros((2, 2)), True)),
        *(("seed", seed) for seed in ("a", -1, 2**64, 0.5, None, [1])),
    ],
)
def test_a_size_or_seed_that_does_not_fit_is_refused(option, given, tmp_path):
    write_images(tmp_path)
    with refuses(ValueError, f"{option}=", "does not fit"):
        load_data(f"imagefolder:{tmp_path}", **{"size": 7, option: given})


def test_numbers_of_numpy_and_torch_are_sizes_and_seeds(tmp_path):
    write_images(tmp_path)
    name = f"imagefolder:{tmp_path}"
    expected = load_data(name, size=(4, 10), seed=3)
    for size, seed in ((np.array([4, 10]), np.int64(3)), (torch.tensor([4, 10]), np.uint8(3)), ((4, np.int8(10)), 3)):
        assert load_data(name, size=size, seed=seed).fingerprint == expected.fingerprint
    assert load_data(name, size=np.int64(6)).shape == (3, 6, 6)


def test_images_that_need_too_much_memory_are_refused(tmp_path, monkeypatch):
    write_images(tmp_path)  # 10 images of 6x5
    monkeypatch.setattr("gmlib.datasets.LARGEST", 10 * 6 * 5 * 3)
    assert load_data(f"imagefolder:{tmp_path}").shape == (3, 5, 6)
    for size in (6, 2**16 - 1):
        with refuses(ValueError, f"10 images of {size}x{size}", "size="):
            load_data(f"imagefolder:{tmp_path}", size=size)
    write_images(tmp_path, labels=("cat",), n=2)
    with refuses(ValueError, "12 images of 6x5"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("option", ["download", "progress"])
def test_a_word_is_no_flag(option):
    with refuses(ValueError, f"{option}='no'", "True or False"):
        load_data("digits", **{option: "no"})


@pytest.mark.parametrize("given", [b"x", 7, ["x"], "a\0b"], ids=repr)
def test_a_folder_of_data_must_be_a_path(given):
    with refuses(ValueError, "not a path"):
        load_data("MNIST", data_dir=given, download=False)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "TinyImageNet"])
def test_a_path_that_is_too_long_is_missing(name):
    with refuses(FileNotFoundError, name):
        load_data(name, data_dir="x" * 5000, download=False)
    with refuses(FileNotFoundError, "no folder"):
        load_data(f"imagefolder:{'x' * 5000}")


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_images(tmp_path / "mine")
    data = load_data("imagefolder:~/mine")
    assert data.name == "imagefolder:~/mine" and data.counts == (4, 4)
    write_mnist(tmp_path / "sets")
    monkeypatch.setenv("GMLIB_DATA", "~/sets")
    assert load_data("MNIST").fingerprint == load_data("MNIST", data_dir=Path("~/sets")).fingerprint
    with refuses(FileNotFoundError, "no folder", "nobody-here"):
        load_data("imagefolder:~nobody-here/x")


def test_a_slash_at_the_end_changes_nothing(tmp_path):
    write_images(tmp_path)
    names = {load_data(f"imagefolder:{tmp_path}{slash}").name for slash in ("", "/")}
    assert names == {f"imagefolder:{tmp_path}"}


def test_resizing_keeps_flat_images_flat(tmp_path):
    for label, value in (("ant", 51), ("bee", 204)):
        (tmp_path / label).mkdir()
        for side in (4, 9):
            Image.new("L", (side, side), value).save(tmp_path / label / f"{side}.png")
    data = load_data(f"imagefolder:{tmp_path}", size=6)
    for c, value in ((0, 0.2), (1, 0.8)):
        assert torch.allclose(pixels_of(data, data.of_class(c)), torch.tensor(value).double(), atol=1e-6)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "bmp", "gif", "webp", "tiff", "ppm"])
def test_other_formats(suffix, tmp_path, caplog):
    write_images(tmp_path, suffix=suffix)
    assert load_data(f"imagefolder:{tmp_path}").shape == (3, 5, 6)
    assert not caplog.records


def test_photos_of_several_images_are_read(tmp_path):
    write_images(tmp_path, n=4)
    two = [Image.new("RGB", (6, 5), value) for value in ("red", "blue")]
    two[0].save(tmp_path / "ant" / "photo.jpg", format="MPO", save_all=True, append_images=two[1:])
    assert sum(load_data(f"imagefolder:{tmp_path}").counts) == 7


def test_no_other_format_is_opened(tmp_path, caplog):
    write_images(tmp_path)
    Image.new("RGB", (6, 5), "red").save(tmp_path / "ant" / "more.ico")
    (tmp_path / "bee" / "notes.txt").write_text("not an image")
    assert load_data(f"imagefolder:{tmp_path}").counts == (4, 4)
    assert "2 files are skipped" in caplog.text and "more.ico" in caplog.text
    Image.new("RGB", (6, 5), "red").save(tmp_path / "ant" / "000.png", "ICO")
    with refuses(ValueError, "000.png cannot be read"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("limit", [20, 10], ids=["a warning of Pillow", "an error of Pillow"])
def test_an_image_with_too_many_pixels_is_refused(limit, tmp_path, monkeypatch):
    write_images(tmp_path)  # 30 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with refuses(ValueError, "000.png cannot be read", "bomb"):
        load_data(f"imagefolder:{tmp_path}")


def test_images_in_folders_of_a_class_are_read_in_the_order_of_torchvision(tmp_path):
    for inner in ("", "2024", "2024/may", "2024 b", "10", "Z"):
        for label, seed in (("ant", 1), ("bee", 2)):
            write_images(tmp_path / "train", labels=(f"{label}/{inner}",), n=2, seed=seed + 10 * len(inner))
    write_images(tmp_path / "test", n=1)
    expected = torchvision.datasets.ImageFolder(tmp_path / "train")
    assert len(expected) == 24
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.classes == tuple(expected.classes) and data.train_labels.tolist() == expected.targets
    pixels = np.stack([np.asarray(image) for image, _ in expected]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels_of(data, data.train_images) * 255, pixels, atol=1e-3)


def test_a_circle_of_links_ends(tmp_path):
    write_images(tmp_path)
    write_images(tmp_path, labels=("ant/more",), seed=1)
    try:
        (tmp_path / "ant" / "more" / "again").symlink_to(tmp_path / "ant", target_is_directory=True)
        (tmp_path / "bee" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links here")
    write_images(tmp_path, labels=("elsewhere",), seed=2)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "bee", target_is_directory=True)
    data = load_data(f"imagefolder:{tmp_path}")
    totals = torch.bincount(torch.cat([data.train_labels, data.test_labels]))
    assert totals.tolist() == [10, 10, 10]


def test_hidden_files_are_left_out(tmp_path, caplog):
    write_images(tmp_path)
    for inner in ("ant", "bee"):
        (tmp_path / inner / "._000.png").write_bytes(b"what macOS adds")
        (tmp_path / inner / ".DS_Store").write_bytes(b"")
        write_images(tmp_path / inner, labels=(".thumbnails",))
    write_images(tmp_path, labels=(".cache",))
    assert load_data(f"imagefolder:{tmp_path}").counts == (4, 4) and not caplog.records


# What a camera stores of an upright image, for each EXIF orientation.
STORED = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: np.rot90,
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_images_are_turned_as_their_exif_data_say(suffix, tmp_path):
    upright = write_images(tmp_path / "train", n=8, mode="RGB")
    write_images(tmp_path / "test", n=1)
    for i, (path, x) in enumerate(upright.items()):
        orientation = 1 + i % 8
        exif = Image.Exif()
        exif[0x0112] = orientation
        path.unlink()
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](x)))
        stored.save(path.with_suffix(f".{suffix}"), exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.shape == (3, 5, 6), "also portraits of the same size"
    expected = np.stack(list(upright.values())).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels_of(data, data.train_images) * 255, expected, atol=1e-3)


def fifo(path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(path)


def test_a_pipe_or_a_broken_link_is_refused(tmp_path):
    write_images(tmp_path)
    pipe = tmp_path / "ant" / "pipe.png"
    fifo(pipe)
    with refuses(ValueError, "pipe.png cannot be read", "regular file"):
        load_data(f"imagefolder:{tmp_path}")
    pipe.unlink()
    pipe.symlink_to(tmp_path / "nothing.png")
    with refuses(ValueError, "pipe.png cannot be read", "regular file"):
        load_data(f"imagefolder:{tmp_path}")


def test_pipes_among_published_files_count_as_missing(tmp_path, offline):
    root = write_tiny(tmp_path)
    (root / "wnids.txt").unlink()
    fifo(root / "wnids.txt")
    with refuses(FileNotFoundError, "wnids.txt is missing"):
        load_data("TinyImageNet", data_dir=tmp_path)
    raw = write_mnist(tmp_path)
    (raw / "train-images-idx3-ubyte").unlink()
    fifo(raw / "train-images-idx3-ubyte")
    with refuses(FileNotFoundError, "MNIST is missing"):
        load_data("MNIST", data_dir=tmp_path, download=False)


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


BEE = str(Path("bee", "002.png"))
FOLDERS = {
    "empty class": (lambda p: (p / "cat").mkdir(), "cat has no image"),
    "16 bits": (in_16_bits, f"{Path('ant', '000.png')} cannot be read", "8 bits"),
    "half the pixels": (with_bee(lambda png: png[:-40]), BEE),
    "half a header": (with_bee(lambda png: png[:20]), BEE),
    "flipped bits": (with_bee(lambda png: png[:50] + bytes(b ^ 255 for b in png[50:])), BEE),
    "empty file": (with_bee(lambda png: b""), BEE),
    "not an image": (with_bee(lambda png: b"hello"), BEE),
    "train alone": (lambda p: (p / "train").mkdir(), "train has no image"),
    "train without test": (lambda p: write_images(p / "train"), "only folders", "both train and test"),
    "test without classes": (
        lambda p: [write_images(p / "train"), write_images(p, ("test",))],
        "both train and test",
    ),
    "capital letters": (lambda p: [write_images(p / part) for part in ("Train", "Test")], "only folders", "small"),
    "val instead of test": (lambda p: [write_images(p / part) for part in ("train", "val")], "train has only"),
    "images beside classes": (
        lambda p: [write_images(p / "train", ("", "a")), write_images(p / "test", ("a",))],
        "000.png is in no class",
    ),
    "test without images": (
        lambda p: [write_images(p / "train"), (p / "test" / "ant").mkdir(parents=True)],
        "test has no image",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_cannot_be_used_are_refused(case, tmp_path):
    spoil, *words = FOLDERS[case]
    write_images(tmp_path)
    spoil(tmp_path)
    with refuses(ValueError, *words):
        load_data(f"imagefolder:{tmp_path}")


def test_classes_can_be_called_train_and_test(tmp_path):
    write_images(tmp_path, labels=("bus", "test", "train"))
    write_images(tmp_path, labels=("train/steam",), seed=1)
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.classes == ("bus", "test", "train") and data.counts == (4, 4, 8)
    write_images(tmp_path / "parts" / "train", labels=("train", "test"))
    write_images(tmp_path / "parts" / "test", labels=("train", "test"))
    data = load_data(f"imagefolder:{tmp_path}/parts")
    assert data.classes == ("test", "train") and data.counts == (5, 5) and len(data.test_labels) == 10


def test_a_class_may_have_no_test_image(tmp_path, caplog):
    write_images(tmp_path / "train", labels=("ant", "bee", "cat"))
    write_images(tmp_path / "test", labels=("cat",), n=3)
    (tmp_path / "test" / "bee").mkdir()
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.classes == ("ant", "bee", "cat") and data.test_labels.tolist() == [2, 2, 2]
    assert "2 of 3 classes have no test image (ant, bee)" in caplog.text
    write_images(tmp_path / "test", labels=("wasp",))
    with refuses(ValueError, "'wasp'", "training images"):
        load_data(f"imagefolder:{tmp_path}")


def test_a_class_of_one_image_is_for_training(tmp_path):
    write_images(tmp_path, labels=("ant", "bee"), n=1)
    with refuses(ValueError, "none is left for testing"):
        load_data(f"imagefolder:{tmp_path}")
    write_images(tmp_path, labels=("cat",), n=2, seed=1)
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.counts == (1, 1, 1) and data.test_labels.tolist() == [2]


def test_folders_and_images_that_are_not_read_are_logged(tmp_path, caplog):
    write_images(tmp_path, labels=("", "ant", "bee"), n=2)
    load_data(f"imagefolder:{tmp_path}")
    assert "2 files are skipped" in caplog.text and str(tmp_path / "000.png") in caplog.text
    for part in ("train", "test", "val"):
        write_images(tmp_path / "parts" / part)
    load_data(f"imagefolder:{tmp_path}/parts")
    assert "only train and test are read, not val" in caplog.text


def test_a_folder_must_exist_and_have_classes(tmp_path):
    with refuses(FileNotFoundError, "no folder", "nowhere"):
        load_data(f"imagefolder:{tmp_path}/nowhere")
    with refuses(ValueError, "no class folders"):
        load_data(f"imagefolder:{tmp_path}")


# ---- TinyImageNet ------------------------------------------------------------------------------------------

WNIDS = ("n03", "n01", "n02")  # the classes are in this order


def write_tiny(folder, grey=("train/n01/images/n01_1.JPEG", "val/images/val_4.JPEG")):
    """A TinyImageNet of 3 classes, 4 training images of each, 7 images in val and one in test. Returns its folder."""
    root, random = folder / "tiny-imagenet-200", np.random.default_rng(0)
    val = {f"val_{i}.JPEG": WNIDS[i % 3] for i in range(7)}
    names = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(4)]
    for name in [*names, *(f"val/images/{name}" for name in val), "test/images/test_0.JPEG"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shape = (8, 8) if name in grey or grey == "all" else (8, 8, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(root / name, "JPEG")
    (root / "train" / "n01" / "n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t7\t7\n")
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    table = "".join(f"{name}\t{wnid}\t0\t0\t7\t7\n" for name, wnid in val.items())
    (root / "val" / "val_annotations.txt").write_text(table)
    return root


def test_tinyimagenet_is_read_from_its_unpacked_folder(tmp_path, monkeypatch, offline):
    root = write_tiny(tmp_path)
    for folder in ("train/n01/images", "val/images"):
        (root / folder / "._hidden.JPEG").write_bytes(b"what macOS adds")
    monkeypatch.setenv("GMLIB_DATA", str(tmp_path))
    data = load_data("TinyImageNet", progress=False)
    assert (data.name, data.classes, data.shape, data.counts) == ("TinyImageNet", WNIDS, (3, 8, 8), (4, 4, 4))
    assert (data.mean, data.std) == NORMALISATION["TinyImageNet"]
    assert data.test_labels.tolist() == [0, 0, 0, 1, 1, 2, 2]  # val_0, 3, 6, then 1, 4, then 2, 5
    train = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(4)]
    test = [f"val/images/val_{i}.JPEG" for i in (0, 3, 6, 1, 4, 2, 5)]
    for images, files in ((data.train_images, train), (data.test_images, test)):
        expected = np.stack([np.asarray(Image.open(root / file).convert("RGB")) for file in files])
        np.testing.assert_allclose(pixels_of(data, images) * 255, expected.transpose(0, 3, 1, 2), atol=1e-3)
    grey = pixels_of(data, data.of_class(1))[1]
    assert torch.allclose(grey[0], grey[2], atol=1e-6) and grey.std() > 0.1


def test_tinyimagenet_can_be_resized_and_is_always_in_colour(tmp_path):
    write_tiny(tmp_path, grey="all")
    whole, small = (load_data("TinyImageNet", data_dir=tmp_path, size=size, progress=False) for size in (None, 4))
    assert whole.shape == (3, 8, 8) and small.shape == (3, 4, 4)
    assert "resized" in small.origin and "resized" not in whole.origin
    kept = pixels_of(small, small.train_images).mean((1, 2, 3)) - pixels_of(whole, whole.train_images).mean((1, 2, 3))
    assert kept.abs().max() < 0.05, "an image keeps its brightness"


@pytest.mark.parametrize("part", ["", "wnids.txt", "val/val_annotations.txt", "train", "val/images"])
def test_a_missing_part_of_tinyimagenet_is_named(part, tmp_path, offline):
    root = write_tiny(tmp_path)
    (root / part).rename(tmp_path / "elsewhere")
    missing = root / (part or "wnids.txt")
    with refuses(FileNotFoundError, f"{missing} is missing", "never downloaded", f"into {tmp_path}"):
        load_data("TinyImageNet", data_dir=tmp_path)


def rewritten(file, change):
    """Damages one file of the set."""

    def spoil(root):
        (root / file).write_bytes(change((root / file).read_bytes()))

    return spoil


TABLE = "val/val_annotations.txt"
LINE, DIFFER = "a line of val_annotations.txt", "val/images differ"
CLASSES = "different classes"
DAMAGED_TINY = {
    "half a table": (rewritten(TABLE, lambda b: b[: len(b) // 2]), "val_annotations.txt"),
    "a table cut between lines": (rewritten(TABLE, lambda b: b[: b.index(b"val_5")]), DIFFER),
    "empty table": (rewritten(TABLE, lambda b: b""), DIFFER),
    "binary table": (rewritten(TABLE, lambda b: bytes(range(256))), LINE),
    "one column": (rewritten(TABLE, lambda b: b + b"val_7.JPEG\n"), LINE),
    "unknown class": (rewritten(TABLE, lambda b: b.replace(b"n02", b"n04")), LINE),
    "a file twice": (rewritten(TABLE, lambda b: b + b"val_0.JPEG\tn01\t0\n"), LINE),
    "a file too many": (rewritten(TABLE, lambda b: b + b"val_7.JPEG\tn01\t0\n"), DIFFER),
    "a file too few": (lambda root: (root / "val/images/val_2.JPEG").unlink(), DIFFER),
    "class without images": (lambda root: (root / "train/n02").rename(root / "n02"), "train/n02/images"),
    "unknown class folder": (rewritten("wnids.txt", lambda b: b + b"n09\n"), "train/n09/images"),
    "class named twice": (rewritten("wnids.txt", lambda b: b + b"n01\n"), CLASSES),
    "no class": (rewritten("wnids.txt", lambda b: b""), CLASSES),
    "a class too few": (rewritten("wnids.txt", lambda b: b[4:]), LINE),
}


@pytest.mark.parametrize("case", DAMAGED_TINY)
def test_damage_to_tinyimagenet_is_found(case, tmp_path):
    spoil, word = DAMAGED_TINY[case]
    root = write_tiny(tmp_path)
    spoil(root)
    with refuses(ValueError, "TinyImageNet is damaged", word, f"delete {root}"):
        load_data("TinyImageNet", data_dir=tmp_path)
    assert root.is_dir(), "nothing is deleted"


def test_a_damaged_jpeg_of_tinyimagenet_is_named(tmp_path):
    rewritten("val/images/val_3.JPEG", lambda b: b[:100])(write_tiny(tmp_path))
    with refuses(ValueError, "val_3.JPEG cannot be read", "replace it by a copy"):
        load_data("TinyImageNet", data_dir=tmp_path, progress=False)
