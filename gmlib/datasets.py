"""Readers of data sets by name (digits, torchvision's, binary CIFAR, TinyImageNet, folders) and of torch Datasets."""

from __future__ import annotations

import difflib
import hashlib
import io
import logging
import os
import socket
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset

from .checks import check_flag, check_number, first_sentence, plain, require, shown
from .data import Data, _checked_images, check_constants, split
from .files import as_path
from .runtime import plain_torch, progress_bar

log = logging.getLogger(__name__)

# (mean, std) of the training pixels in [0, 1], per channel.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3053,), (0.3760,)),  # measured on the 1200 training images of _load_digits
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2861,), (0.3530,)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "TinyImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
TORCHVISION = ("MNIST", "FashionMNIST", "SVHN", "CIFAR10", "CIFAR100")
OTHER_NAMES = {  # what people call data sets too, in small letters and digits -> their name here
    "fmnist": "FashionMNIST",
    "fashion": "FashionMNIST",
    "mnistfashion": "FashionMNIST",
    "cifar": "CIFAR10",
    "streetviewhousenumbers": "SVHN",
    "tinyimagenet200": "TinyImageNet",
}
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte after which a download fails
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # of image files, as Pillow names them
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")  # usual names of parts of a data set
LARGEST = 2**33  # numbers in all images of a folder (8 GiB in uint8, 32 GiB in float32)
Size = tuple[int, int] | None  # (height, width) in pixels
Files = dict[str, list[Path]]  # {class: its image files}


class Binary(NamedTuple):
    """A binary version of CIFAR, as its authors publish it, and the numbers that its files must have.

    Each record is one byte for each label, then 32x32 bytes of red, of green and of blue, row by row. The last label
    is the class.
    """

    folder: str
    archive: str  # it contains the folder
    sha256: str  # of the archive
    train: dict[str, int]  # {file: its number of records}
    test: dict[str, int]
    names: str  # the file of class names
    labels: tuple[int, ...]  # how many values each label has


BINARY = {
    "CIFAR10": Binary(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9dddda3db29a59bca1dd",
        train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
        test={"test_batch.bin": 10_000},
        names="batches.meta.txt",
        labels=(10,),
    ),
    "CIFAR100": Binary(
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        train={"train.bin": 50_000},
        test={"test.bin": 10_000},
        names="fine_label_names.txt",
        labels=(20, 100),  # coarse and fine
    ),
}


def usual_name(name: str) -> str:
    """The name of the data set: that of a folder of images is the same with and without a slash at the end."""
    kind, _, path = name.partition(":")
    return f"{kind}:{path.rstrip('/') or '/'}" if path else name


@plain_torch()
def load_data(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    progress: bool = True,
) -> Data:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        One of these:

        - ``"digits"``: 1,797 handwritten digits of 8x8 pixels, which come with scikit-learn.
        - ``"MNIST"``, ``"FashionMNIST"``, ``"SVHN"``.
        - ``"CIFAR10"``, ``"CIFAR100"``: if the official binary version is in ``data_dir``, it is read without
          torchvision and without pickle. Its folder (``cifar-10-batches-bin``, ``cifar-100-binary``) comes first,
          then torchvision's files. Without both, its archive (``cifar-10-binary.tar.gz``,
          ``cifar-100-binary.tar.gz``) is unpacked. Without all three, torchvision's files are downloaded.
        - ``"TinyImageNet"``: read from ``data_dir/tiny-imagenet-200``, never downloaded.
        - ``"imagefolder:PATH"``: your own images in ``PATH/train/CLASS`` and ``PATH/test/CLASS``, or in
          ``PATH/CLASS``. See Notes. PATH is part of the data's name, so always spell it the same way.
    data_dir : path, optional
        Folder of the downloaded sets, in torchvision's layout or CIFAR's binary one. None takes the environment
        variable ``GMLIB_DATA``, or ``./data`` if it is not set. ``~`` is the home folder, also in PATH.
    download : bool
        Download a set that is missing. Files and archives in ``data_dir`` are used without a network.
    size : int or (int, int), optional
        Resize the images to (height, width) in pixels, or to a square. For image folders and TinyImageNet only.
    seed : int
        Decides which images of ``PATH/CLASS`` become test images.
    mean, std : sequence of float, optional
        Normalise by these constants, one number per channel for pixels in [0, 1]: those of a condensed set, for
        images that are added later, ``mean=S.mean, std=S.std``. Three numbers read grey image files in colour too.
        None takes the published constants of a known set. For image folders it measures them on the training images.
    progress : bool
        Show progress bars while downloading and reading image files.

    Returns
    -------
    Data
        On the CPU.

    Raises
    ------
    ValueError
        If the name is unknown, a file is damaged, or images and labels do not fit together.
    FileNotFoundError
        If files are missing, and ``download`` is False or the download fails.
    OSError
        If the system cannot read a file.

    Notes
    -----
    If ``PATH/train`` and ``PATH/test`` both exist and hold folders, they are the two parts, and a class of ``train``
    may be missing in ``test``. Otherwise each folder in PATH is a class, even if it is called train or test. A fifth
    of its images become test images, and none if there is only one image.

    All images of a class are read, those in folders inside it too, in the order of torchvision's ``ImageFolder``:
    folders sorted by path, the class folder first, and in each of them the files sorted by name. The formats are PNG,
    JPEG, BMP, GIF, WebP, TIFF and PPM (also PGM and PBM). Images are turned as their EXIF data say. Files and folders
    whose names begin with a dot are left out without a word, other files with one warning.
    """
    kind, colon, path = str(name).partition(":")
    is_folder = kind == "imagefolder"
    if not isinstance(name, str) or kind not in LOADERS or (bool(colon), bool(path)) != (is_folder, is_folder):
        known = [f"{k}:PATH" if k == "imagefolder" else k for k in LOADERS]
        raise ValueError(f"unknown data set {shown(name)}: choose from {', '.join(known)}{meant(name, LOADERS)}")
    if size is not None and kind not in ("imagefolder", "TinyImageNet"):
        raise ValueError(f"size= does not apply to {name}: leave it out, or take imagefolder:PATH or TinyImageNet")
    seed = check_number("seed", seed, least=0, below=2**63, whole=True)
    download, progress = check_flag("download", download), check_flag("progress", progress)
    if data_dir is None or (isinstance(data_dir, str) and not data_dir):
        data_dir = os.environ.get("GMLIB_DATA") or "data"
    folder = as_path(data_dir)
    if path:
        folder = as_path(path)
        name = usual_name(name)
    usual_mean, usual_std = NORMALISATION.get(name, (None, None))
    check_constants(name, mean, std, NORMALISATION.get(name))
    return LOADERS[kind](
        name,
        folder,
        download=download,
        size=_height_and_width(size),
        seed=seed,
        mean=usual_mean if mean is None else mean,
        std=usual_std if std is None else std,
        progress=progress,
    )


def meant(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown data set: the known name that was probably meant, "" if none is close.

    Capitals, spaces and signs do not matter: "cifar-10" means CIFAR10. The path of a folder means "imagefolder:PATH".
    """
    known = list(known)
    if "imagefolder" in known and isinstance(name, str | os.PathLike) and name and os.path.isdir(name):
        return f"; did you mean {shown(f'imagefolder:{os.fspath(name)!s}')}?"
    if not isinstance(name, str):
        return ""

    def squeezed(name: str) -> str:
        return "".join(c for c in name[:100].casefold() if c.isalnum())

    meanings = {other: each for other, each in OTHER_NAMES.items() if each in known}
    meanings |= {squeezed(each): "imagefolder:PATH" if each == "imagefolder" else each for each in known}
    close = difflib.get_close_matches(squeezed(name), meanings, n=1)
    return f"; did you mean {meanings[close[0]]!r}?" if close else ""


def _height_and_width(size: Any) -> Size:
    if size is None:
        return None
    sides = size if isinstance(size, (list, tuple)) else np.atleast_1d(plain(size)).tolist()
    if len(sides) not in (1, 2):
        raise ValueError(
            f"size={shown(size)} does not fit: give (height, width) in pixels, or one number for a square"
        )
    bounds: dict[str, Any] = {"least": 1, "below": 2**16, "whole": True, "otherwise": "(height, width)"}
    height, width = (check_number("size", side, **bounds) for side in (sides[0], sides[-1]))
    return height, width


def _load_digits(name: str, folder: Path, *, mean: Any, std: Any, **_: Any) -> Data:
    """scikit-learn's digits, with a fixed split into 1200 training and 597 test images."""
    train_test_split = require("sklearn.model_selection", "data").train_test_split
    pixels, y = require("sklearn.datasets", "data").load_digits(return_X_y=True)
    x = (pixels / 16).reshape(-1, 8, 8)  # 0..16 -> [0, 1]
    train, test = train_test_split(np.arange(len(y)), train_size=1200, stratify=y, random_state=0)
    train, test = np.sort(train), np.sort(test)
    origin = "scikit-learn's load_digits (1,797 real digits of 8x8 pixels), stratified split with seed 0"
    return Data.from_arrays(name, x[train], y[train], x[test], y[test], mean=mean, std=std, origin=origin)


def _load_torchvision(
    name: str, folder: Path, *, download: bool, progress: bool, mean: Any, std: Any, **_: Any
) -> Data:
    """A set that torchvision knows. If a file is missing, it is unpacked or downloaded first."""
    if name == "SVHN":
        require("scipy.io", "data")  # torchvision reads SVHN's files with it
    files, archives = _files_of(name, folder)
    if not all(os.path.isfile(path) for path in files):
        what_to_do = f"put {_names(files)} into {_folder(files)}"
        if archives:
            packed = "the same as .gz" if len(archives) == len(files) else _names(archives)
            if name in BINARY:
                packed += f" or {BINARY[name].archive}"
            what_to_do += f", or {packed} into {_folder(archives)}"
        can_unpack = archives and all(_is_complete(path, md5) for path, md5 in archives.items())
        if not (download or can_unpack):
            raise FileNotFoundError(f"{name} is missing: {what_to_do}, or allow the download (download=True)")
        try:
            _download(name, folder, files | archives, progress)
        except Exception as error:
            raise FileNotFoundError(
                f"{name} could not be downloaded ({first_sentence(error)}): {what_to_do}"
            ) from error
    try:
        train = _open(name, folder, train=True)
        test = _open(name, folder, train=False)
        if name == "SVHN":  # its images are (N, channels, height, width), and its classes have no names
            arrays = [torch.from_numpy(train.data), train.labels, torch.from_numpy(test.data), test.labels]
            classes = None
        else:
            arrays = [train.data, train.targets, test.data, test.targets]
            classes = [label.split(" - ")[0] for label in train.classes]  # MNIST's "3 - three" -> "3"
        origin = f"the {name} files that torchvision reads"
        return Data.from_arrays(name, *arrays, classes=classes, mean=mean, std=std, origin=origin)
    except (OSError, MemoryError):  # no sign of damage, and their messages say what is wrong
        raise
    except Exception as error:  # a damaged file can raise anything
        damaged = [path for path, md5 in files.items() if not _is_complete(path, md5)] or files
        raise _damaged(name, first_sentence(error), damaged, "load again") from error


def _damaged(name: str, problem: str, paths: Iterable[Path], then: str) -> ValueError:
    paths = list(paths)
    return ValueError(f"{name} is damaged ({problem}): delete {_names(paths)} in {_folder(paths)} and {then}")


def _files_of(name: str, folder: Path) -> tuple[dict[Path, str | None], dict[Path, str | None]]:
    """The files that torchvision reads, and the archives that contain them, as {path: md5 if known}."""
    source = getattr(require("torchvision.datasets", "data"), name)
    if name == "SVHN":
        splits = (source.split_list["train"], source.split_list["test"])
        return {folder / file: md5 for _, file, md5 in splits}, {}
    if name in ("CIFAR10", "CIFAR100"):
        files = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
        archives = {folder / source.filename: source.tgz_md5}
        return {folder / source.base_folder / file: md5 for file, md5 in files}, archives
    archives = {folder / name / "raw" / file: md5 for file, md5 in source.resources}
    return {path.with_suffix(""): None for path in archives}, archives


def _open(name: str, folder: Path, train: bool, download: bool = False) -> Any:
    """torchvision's object for the training or the test split."""
    datasets = require("torchvision.datasets", "data")
    split = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    with warnings.catch_warnings():
        # numpy 2.4.0 to 2.4.4 warn of CIFAR's old pickles, Python 3.12 and 3.13 of how torchvision unpacks archives
        warnings.simplefilter("ignore")
        return getattr(datasets, name)(folder, download=download, **split)


def _download(name: str, folder: Path, files: dict[Path, str | None], progress: bool) -> None:
    """Download and unpack with torchvision. If that fails, delete incomplete files and empty folders."""
    new_files = [path for path in files if not path.exists()]
    new_folders = {parent for path in files for parent in path.parents if not parent.exists()}
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none and would wait without limit
        with nullcontext() if progress else redirect_stderr(io.StringIO()):
            for train in (True, False):
                _open(name, folder, train, download=True)
    except BaseException:  # also Ctrl-C
        with suppress(OSError):
            for path in new_files:
                if path.exists() and not _is_complete(path, files[path]):
                    path.unlink()
        for path in sorted(new_folders, reverse=True):  # inner folders first
            with suppress(OSError):  # not empty, or never made
                path.rmdir()
        raise
    finally:
        socket.setdefaulttimeout(timeout)


def _is_complete(path: Path, md5: str | None) -> bool:
    """True if a file has this md5. Without one it is an IDX file, which must be as long as its header says."""
    if md5 is not None:
        return require("torchvision.datasets.utils", "data").check_integrity(path, md5)
    try:
        require("torchvision.datasets.mnist", "data").read_sn3_pascalvincent_tensor(path)
    except (OSError, ValueError, RuntimeError, AssertionError, KeyError):
        return False
    return True


def _names(paths: Iterable[Path]) -> str:
    *most, last = (path.name for path in paths)
    return f"{', '.join(most)} and {last}" if most else last


def _folder(paths: Iterable[Path]) -> Path:
    return next(iter(paths)).parent.absolute()


def _load_cifar(name: str, folder: Path, *, mean: Any, std: Any, **options: Any) -> Data:
    """The binary version if its folder is there, else torchvision's files, else the binary version's archive."""
    binary = BINARY[name]
    root, archive = folder / binary.folder, folder / binary.archive
    missing = [
        path for file in (*binary.train, *binary.test, binary.names) if not os.path.isfile(path := root / file)
    ]
    if missing and os.path.isfile(archive) and not _torchvision_has(name, folder):
        _unpack(name, archive, missing)
    elif missing:
        try:
            return _load_torchvision(name, folder, mean=mean, std=std, **options)
        except (FileNotFoundError, ModuleNotFoundError) as error:
            if not os.path.exists(root):
                raise
            what_to_do = f"put {_names(missing)} into {_folder(missing)}, or {archive.name} into {_folder([archive])}"
            if options["download"]:
                problem = "incomplete and could not be downloaded"
            else:
                problem, what_to_do = "incomplete", f"{what_to_do}, or allow the download (download=True)"
            raise FileNotFoundError(f"{name} is {problem}: {what_to_do}") from error
    return _read_cifar(name, root, mean, std)


def _read_cifar(name: str, root: Path, mean: Any, std: Any) -> Data:
    """The binary version. Its classes are in alphabetical order and have equally many images."""
    binary = BINARY[name]
    n_labels, C = len(binary.labels), binary.labels[-1]

    def damaged(problem: str, *files: str) -> ValueError:
        return _damaged(name, problem, [root / file for file in files], f"unpack {binary.archive} again")

    def read_records(file: str, n: int) -> np.ndarray:
        """(n, labels + 3072) uint8."""
        size, found = n * (n_labels + 3 * 32 * 32), (root / file).stat().st_size
        if found != size:
            raise damaged(f"{file} has {found} bytes, not {size}", file)
        records = np.fromfile(root / file, np.uint8).reshape(n, -1)
        if (records[:, :n_labels] >= binary.labels).any():
            raise damaged(f"a label in {file} is too large", file)
        return records

    classes = (root / binary.names).read_text("utf-8", errors="replace").strip().splitlines()
    if len(classes) != C or classes != sorted(set(classes)):
        raise damaged(f"{binary.names} is not a list of {C} names in alphabetical order", binary.names)
    arrays: list[Any] = []
    for part, files in (("training", binary.train), ("test", binary.test)):
        records = np.concatenate([read_records(*item) for item in files.items()])
        images, labels = records[:, n_labels:].reshape(-1, 3, 32, 32), records[:, n_labels - 1]
        counts = np.bincount(labels, minlength=C)
        if (wrong := np.flatnonzero(counts * C != len(labels))).size:
            found = f"{counts[wrong[0]]} {part} images, not {len(labels) // C}"
            raise damaged(f"class {classes[wrong[0]]!r} has {found}", *files)
        arrays += [torch.from_numpy(images), labels]
    # "in the layout", because copies exist that have the same images in another order
    origin = f"binary files in the official layout ({binary.folder})"
    return Data.from_arrays(name, *arrays, classes=classes, mean=mean, std=std, origin=origin)


def _torchvision_has(name: str, folder: Path) -> bool:
    """True if torchvision is installed and none of the files that it reads is missing."""
    try:
        return all(os.path.isfile(path) for path in _files_of(name, folder)[0])
    except ModuleNotFoundError:
        return False


def _unpack(name: str, archive: Path, paths: list[Path]) -> None:
    """Take missing files from the archive. They are moved to their folder when all are complete."""
    with archive.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != BINARY[name].sha256:
            raise _damaged(name, f"{archive.name} is not the published file", [archive], "download it again")
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch, tarfile.open(archive) as tar:
        for path in paths:
            packed = tar.extractfile(f"{path.parent.name}/{path.name}")
            assert packed is not None  # the published archive holds files of these names
            Path(scratch, path.name).write_bytes(packed.read())
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            Path(scratch, path.name).replace(path)


def _load_tinyimagenet(name: str, folder: Path, *, size: Size, mean: Any, std: Any, progress: bool, **_: Any) -> Data:
    """folder/tiny-imagenet-200, unpacked. Its val images are the test set, since the test labels are not public.

    wnids.txt lists the classes in order. Training images are in train/WNID/images, test images in val/images. Each
    line of val/val_annotations.txt starts with a file name and its WNID, separated by tabs.
    """
    root = (folder / "tiny-imagenet-200").absolute()
    lists = (root / "wnids.txt", root / "val" / "val_annotations.txt")
    for path in (*lists, root / "train", root / "val" / "images"):
        if not (os.path.isfile(path) if path in lists else os.path.isdir(path)):
            raise FileNotFoundError(
                f"{name} is incomplete, {path} is missing: it is never downloaded, "
                f"so put the unpacked folder tiny-imagenet-200 into {root.parent}"
            )
    wnids, table = (path.read_text("utf-8", errors="replace") for path in lists)
    classes = wnids.split()
    rows = [line.split("\t") for line in table.splitlines()]
    class_of = {row[0]: row[1] for row in rows if len(row) > 1 and row[1] in classes}
    train = {wnid: sorted((root / "train" / wnid / "images").glob("[!.]*.JPEG")) for wnid in classes}
    val = sorted((root / "val" / "images").glob("[!.]*.JPEG"))
    problems = {f"train/{wnid}/images has no image": not paths for wnid, paths in train.items()} | {
        "wnids.txt does not name different classes": len(train) < max(2, len(classes)),
        "a line of val_annotations.txt is not a new file and a class": len(class_of) < len(rows),
        "val_annotations.txt and val/images differ": sorted(class_of) != [path.name for path in val],
    }
    for problem, found in problems.items():
        if found:
            raise ValueError(f"{name} is damaged ({problem}): delete {root} and unpack it again")
    test = {wnid: [path for path in val if class_of[path.name] == wnid] for wnid in classes}
    origin = "the unpacked files of tiny-imagenet-200, val for testing" + ("" if size is None else ", resized")
    return _from_files(name, train, test, size, (mean, std), progress, origin)


def _load_imagefolder(
    name: str, folder: Path, *, size: Size, seed: int, mean: Any, std: Any, progress: bool, **_: Any
) -> Data:
    """folder/train/CLASS and folder/test/CLASS, or folder/CLASS with a seeded split of each class."""
    parts = [folder / "train", folder / "test"]
    if all(os.path.isdir(part) and _folders(part) for part in parts):
        if stray := [path for part in parts for path in _images_of(part)]:
            raise ValueError(f"{stray[0]} is in no class: move it into the folder of its class, or delete it")
        train, test = _list_images(folder / "train"), _list_images(folder / "test", may_be_empty=True)
        if odd := sorted(test.keys() - train.keys()):
            raise ValueError(f"class {odd[0]!r} is in {folder / 'test'} only: give it training images or remove it")
        if not any(test.values()):
            raise ValueError(f"{folder / 'test'} has no image: add some, or move the classes of train into {folder}")
        if ignored := [path.name for path in _folders(folder) if path.name not in ("train", "test")]:
            log.warning("%s: only train and test are read, not %s", name, ", ".join(ignored))
        test = {c: test.get(c, []) for c in train}
        origin = "the user's own images, in train and test folders"
    else:
        for part in (path for path in _folders(folder) if path.name.casefold() in PARTS):
            if _folders(part) and not _images_of(part):
                raise ValueError(
                    f"{part} has only folders, so it can be a class or a part: give both train and test, in small "
                    "letters, with one folder for each class, or give the class another name"
                )
        train, test = _split(name, _list_images(folder), seed)
        origin = f"the user's own images, a fifth of each class for testing, split with seed {seed}"
    return _from_files(name, train, test, size, (mean, std), progress, origin)


def _from_files(
    name: str, train: Files, test: Files, size: Size, constants: tuple[Any, Any], progress: bool, origin: str
) -> Data:
    """Read the images of both parts, in colour if ``constants``, mean and std, are for three channels."""
    paths = [path for part in (train, test) for paths in part.values() for path in paths]
    x = _read_images(paths, size, progress, colour=any(np.size(each) == 3 for each in constants))
    y, y_test = ([c for c, paths in enumerate(part.values()) for _ in paths] for part in (train, test))
    n, layout = len(y), None if x.ndim == 3 else "HWC"
    arrays = x[:n], y, x[n:], y_test
    mean, std = constants
    return Data.from_arrays(name, *arrays, classes=list(train), layout=layout, mean=mean, std=std, origin=origin)


def _suffixes() -> set[str]:
    """The endings of image files in `FORMATS`, in small letters."""
    known = require("PIL.Image", "data").registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in FORMATS}


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones."""
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise FileNotFoundError(
                f"{folder} is a file: give the folder that holds a folder of images for each class"
            )
        raise FileNotFoundError(f"there is no folder {folder}: make it, with one folder of images for each class")
    return sorted((p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."), key=lambda path: path.name)


def _images_of(folder: Path) -> list[Path]:
    """The image files directly in a folder, without hidden ones."""
    suffixes = _suffixes()
    return [p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "." and not p.is_dir()]


def _list_images(folder: Path, may_be_empty: bool = False) -> Files:
    """{class: its image files}. Classes are sorted by name, since file systems list files in different orders."""
    folders, suffixes = _folders(folder), _suffixes()
    classes, skipped = {}, sorted(_images_of(folder))
    for inner in folders:
        files = _walk(inner)
        classes[inner.name] = [path for path in files if path.suffix.lower() in suffixes]
        skipped += [path for path in files if path.suffix.lower() not in suffixes]
        if not (classes[inner.name] or may_be_empty):
            raise ValueError(f"class folder {inner} has no image file: add some or remove the folder")
    if not classes:
        raise ValueError(f"{folder} has no class folders: put the images of each class into its own folder")
    if skipped:
        kinds = ", ".join(FORMATS)
        some = "1 file is" if len(skipped) == 1 else f"{len(skipped)} files are"
        log.warning("%s skipped, in no class or not %s: %s", some, kinds, skipped[0])
    return classes


def _walk(folder: Path) -> list[Path]:
    """All files in a folder and the folders inside it, without hidden ones, in the order of torchvision."""

    def stop(error: OSError) -> None:
        raise error

    found, seen = [], {folder.resolve()}
    for root, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        inside = {name: Path(root, name).resolve() for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name, target in inside.items() if target not in seen]  # links can form a circle
        seen.update(inside.values())
        found += [Path(root, name) for name in files if name[0] != "."]
    return sorted(found, key=lambda path: (path.parent.as_posix(), path.name))


def _split(name: str, classes: Files, seed: int) -> tuple[Files, Files]:
    """(train, test): a fifth of each class goes to test, at least one image if there are two."""
    of_class = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(paths) for paths in classes.values()]))
    _, chosen = split(name, of_class, 1 / 5, seed)
    paths = [path for some in classes.values() for path in some]
    tests = {paths[i] for i in chosen}
    parts = (
        {c: [path for path in some if (path in tests) is wanted] for c, some in classes.items()}
        for wanted in (False, True)
    )
    train, test = parts
    return train, test


def _read_images(paths: list[Path], size: Size, progress: bool, colour: bool = False) -> np.ndarray:
    """uint8, (N, height, width) if all images are grey and ``colour`` is False, else (N, height, width, 3)."""
    Image = require("PIL.Image", "data")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # PIL's smaller limit for pixels in one image
        return _stacked(((path, _read_image(path, size)) for path in paths), len(paths), size, progress, colour)


def _check_amount(n: int, height: int, width: int) -> None:
    if n * height * width * 3 > LARGEST:
        raise ValueError(f"{n} images of {width}x{height} pixels need too much memory: give a smaller size=")


def _stacked(
    images: Iterable[tuple[Any, np.ndarray]], n: int, size: Size, progress: bool, colour: bool = False
) -> np.ndarray:
    """n images in one array like that of `_read_images`. Each comes after its place, which messages name."""
    if size is not None:
        _check_amount(n, *size)
    bar = progress_bar("reading images", n, "image", progress, leave=False)
    for i, (place, image) in enumerate(images):
        bar.update()
        if i == 0:
            first = place
            h, w = image.shape[:2]
            _check_amount(n, h, w)
            x = np.empty((n, h, w, 3) if colour else (n, *image.shape), image.dtype)
        if image.shape[:2] != (h, w):
            odd_h, odd_w = image.shape[:2]
            raise ValueError(
                f"images differ in size, {first} is {w}x{h} but {place} is {odd_w}x{odd_h}: "
                "make them equal or give size= to resize them"
            )
        if image.dtype != x.dtype:
            raise ValueError(
                f"images differ in type, {first} is {x.dtype} but {place} is {image.dtype}: give one type"
            )
        if image.ndim > x.ndim - 1:  # the first image in colour after grey ones
            x = np.stack([x] * 3, axis=-1)
        x[i] = image if image.ndim == x.ndim - 1 else image[..., None]
    bar.close()
    return x


def _read_image(path: Path, size: Size) -> np.ndarray:
    """The pixels of a file, as `_levels` gives them."""
    Image = require("PIL.Image", "data")
    try:
        if not os.path.isfile(path):  # a pipe would wait for ever
            raise ValueError("it is not a regular file")
        with Image.open(path, formats=FORMATS) as image:
            return _levels(image, size)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({first_sentence(error)}): replace it by a copy with 8 bits per channel that can "
            "be read, or move it out of the folder, and load again"
        ) from error


def _levels(image: Any, size: Size) -> np.ndarray:
    """uint8, (height, width) for PIL's modes L and 1, else (height, width, 3) without transparency, upright."""
    if image.mode[0] in "IF":  # PIL would silently turn most of these pixels white
        raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
    image = require("PIL.ImageOps", "data").exif_transpose(image)  # a copy
    if image.mode == "P":  # PIL warns if a palette loses its transparency directly
        image = image.convert("RGBA")
    image = image.convert("L" if image.mode in ("L", "1") else "RGB")
    return np.asarray(image if size is None else image.resize((size[1], size[0])))


# ---- torch Datasets ----------------------------------------------------------------------------------------


def read_datasets(
    train: Any, test: Any, classes: Any, layout: str | None, size: int | tuple[int, int] | None, progress: bool
) -> tuple[str, dict[str, Any]]:
    """Read what `Data.from_dataset` takes.

    Returns
    -------
    kind : str
        The type of the training set.
    arrays : dict
        The arguments of `Data.from_arrays` for its images (in the layout HWC), labels and classes.
    """
    sides, progress = _height_and_width(size), check_flag("progress", progress)
    parts = {"training": _items(train, "training")}
    if test is not None:
        parts["test"] = _items(test, "test")
    labels: dict[str, list[int | str]] = {part: [] for part in parts}

    def read() -> Iterator[tuple[str, np.ndarray]]:
        for part, (items, n) in parts.items():
            for i in range(n):
                place = f"{part} image {i}"
                image, label = _pair(items[i], place)
                labels[part].append(_label(label, place))
                yield place, _pixels(image, place, layout, sides)

    x = _stacked(read(), sum(n for _, n in parts.values()), sides, progress)
    names = {"training": _class_names(train), "test": None if test is None else _class_names(test)}
    n = len(labels["training"])
    arrays: dict[str, Any] = {"train_images": x[:n], "train_labels": labels["training"]}
    if test is not None:
        arrays |= {"test_images": x[n:], "test_labels": labels["test"]}
    return _kind(train), arrays | _named(labels, names, classes)


def _items(dataset: Any, part: str) -> tuple[Any, int]:
    """A dataset that takes positions 0 to n - 1, and n."""
    if isinstance(dataset, DataLoader):
        raise ValueError(f"the {part} set is a DataLoader, which makes batches: give its dataset, loader.dataset")
    known = isinstance(dataset, str | bytes | os.PathLike | Mapping | Data | np.ndarray | np.generic | Tensor)
    if known or not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")):
        advice = "arrays and tensors become data by Data.from_arrays"
        if isinstance(dataset, str | bytes | os.PathLike):
            advice = 'a folder of images is read by gmlib.load_data("imagefolder:PATH")'
        kind = type(dataset).__name__
        raise ValueError(f"the {part} set is a {kind}: give a torch Dataset, or a list of (image, label); {advice}")
    in_order = isinstance(dataset, IterableDataset)  # it may have a length, but takes no positions
    if in_order or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        dataset = list(dataset)
    if not len(dataset):
        raise ValueError(f"the {part} set has no item: give at least one image of each class")
    return dataset, len(dataset)


def _pair(item: Any, place: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        images, labels = ([item[key] for key in keys if key in item] for keys in (("image", "img"), ("label",)))
        if len(images) == len(labels) == 1:
            return images[0], labels[0]
        found = f"is a dict with {shown(list(item))}"
    elif isinstance(item, tuple | list):
        if len(item) == 2:
            return item[0], item[1]
        found = f"has {len(item)} parts"
    else:
        found = f"is a {type(item).__name__}"
    raise ValueError(
        f"the item of {place} {found}: give a dataset of (image, label), or of dicts with image and label, "
        "or give arrays to Data.from_arrays"
    )


def _label(label: Any, place: str) -> int | str:
    value = plain(label.reshape(()) if getattr(label, "shape", None) == (1,) else label)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"the label of {place} is {shown(label)}: give a whole number or the name of a class")
    return value


def _pixels(image: Any, place: str, layout: str | None, size: Size) -> np.ndarray:
    """(height, width) or (height, width, 3), uint8 or float32."""
    if type(image).__module__.partition(".")[0] == "PIL":
        try:
            return _levels(image, size)
        except Exception as error:
            raise ValueError(f"{place} cannot be read ({first_sentence(error)}): convert it to L or RGB") from error
    x = _checked_images(image, place, layout, one=True)[0]
    x = np.moveaxis((x if x.dtype == torch.uint8 else x.float()).cpu().numpy() if isinstance(x, Tensor) else x, 0, -1)
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    if size is not None and x.shape[:2] != size:
        x = _resized(x, place, size)
    return x[..., 0] if x.shape[-1] == 1 else x


def _resized(x: np.ndarray, place: str, size: tuple[int, int]) -> np.ndarray:
    """(height, width, channels) of this size, each channel like those of a PIL image."""
    Image = require("PIL.Image", "data")
    if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= 1):  # or else the cut below would hide it
        raise ValueError(
            f"{place} has values from {x.min():.4g} to {x.max():.4g}: floats must lie in [0, 1], so leave out a step "
            "that normalises them, as Data does that itself"
        )
    channels = [Image.fromarray(np.ascontiguousarray(x[..., c])) for c in range(x.shape[-1])]
    # bicubic, which is PIL's default for whole images of 8 bits, overshoots at edges
    resized = [np.asarray(each.resize((size[1], size[0]), Image.Resampling.BICUBIC)) for each in channels]
    found = np.stack(resized, axis=-1)
    return found if found.dtype == np.uint8 else found.clip(0, 1)


def _kind(dataset: Any) -> str:
    """The type of a dataset, or of the one inside Subsets."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return "images" if isinstance(dataset, Sequence | Iterator) else type(dataset).__name__


def _class_names(dataset: Any) -> list[str] | None:
    """``.classes`` of torchvision's datasets, also inside Subsets; None where there are no different texts."""
    if isinstance(dataset, ConcatDataset):
        found = [_class_names(each) for each in dataset.datasets]
        if any(each != found[0] for each in found):
            raise ValueError("the datasets in a ConcatDataset have different classes: give all the same .classes")
        return found[0]
    names = getattr(dataset, "classes", None)
    if names is None and isinstance(features := getattr(dataset, "features", None), Mapping):
        names = getattr(features.get("label"), "names", None)  # of Hugging Face's
    if names is None and hasattr(dataset, "dataset"):
        return _class_names(dataset.dataset)
    if not (isinstance(names, list | tuple) and names and all(isinstance(each, str) for each in names)):
        return None
    if _kind(dataset) == "MNIST":
        names = [each.split(" - ")[0] for each in names]  # "3 - three" is "3" here
    return list(names) if len(set(names)) == len(names) else None


def _named(labels: dict[str, list[int | str]], names: Mapping[str, list[str] | None], classes: Any) -> dict[str, Any]:
    """Labels and classes for `Data.from_arrays`: with names, where the datasets have names.

    The parts may number their classes in different ways: an ImageFolder leaves out a class without a folder.
    """
    known, known_test = names["training"], names["test"] or names["training"]
    numbered = not any(isinstance(each, str) for each in labels["training"])
    given = None
    if classes is not None and isinstance(classes, Sequence | np.ndarray | Tensor) and not isinstance(classes, str):
        given = [str(plain(each)) for each in classes]
    if known is None or not numbered or (given is not None and set(given) != set(known)):
        if known is not None and known_test != known:
            raise ValueError("the training and the test set have different classes: leave classes= out")
        return {"classes": classes}
    found = {}
    for part, listed in (("training", known), ("test", known_test)):
        if part in labels:
            assert listed is not None
            if wrong := [each for each in labels[part] if not (isinstance(each, int) and 0 <= each < len(listed))]:
                raise ValueError(
                    f"the label {shown(wrong[0])} of a {part} image has no name, as the set has {len(listed)} classes"
                )
            found["train_labels" if part == "training" else "test_labels"] = [
                listed[int(each)] for each in labels[part]
            ]
    used = {name for some in found.values() for name in some}
    if left_out := [name for name in known if name not in used]:
        log.warning("%d of %d classes have no image and are left out: %s", len(left_out), len(known), left_out[0])
    order = [name for name in given or known if name in used]
    return {**found, "classes": order + [name for name in known_test or () if name in used and name not in order]}


LOADERS: dict[str, Callable[..., Data]] = {
    "digits": _load_digits,
    **dict.fromkeys(TORCHVISION, _load_torchvision),
    **dict.fromkeys(BINARY, _load_cifar),
    "TinyImageNet": _load_tinyimagenet,
    "imagefolder": _load_imagefolder,
}
