"""Readers of data sets by name: digits, torchvision's sets, TinyImageNet, and a folder of your own images."""

from __future__ import annotations

import io
import os
import socket
import warnings
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checks import check_number, first_sentence, plain, require
from .data import Data
from .runtime import progress_bar

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
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte, after which a download counts as failed
Size = int | tuple[int, int] | None
Files = dict[str, list[Path]]  # {class: its image files}


def load_data(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
    size: Size = None,
    seed: int = 0,
    progress: bool = True,
) -> Data:
    """Load a data set by name.

    name: "digits" (1,797 handwritten digits of 8x8 pixels, which come with scikit-learn), "MNIST", "FashionMNIST", "SVHN",
    "CIFAR10", "CIFAR100", "TinyImageNet" (which has to be there: data_dir/tiny-imagenet-200), or "imagefolder:PATH" with
    PATH/train/CLASS/* and PATH/test/CLASS/*, or with PATH/CLASS/*, of which a fifth of each class become test images.
    data_dir: folder of the downloaded sets, in torchvision's layout; None: the environment variable GMLIB_DATA, or else ./data.
    An imagefolder's PATH is taken as it is, and is part of the data's name: spell it the same way every time.
    download: fetch a set that is missing. Files, and archives, that are there are used without a network.
    size: imagefolder and TinyImageNet only: resize the images to (height, width) in pixels, or to a square.
    seed: imagefolder only: which images of PATH/CLASS/* become test images.
    progress: show bars while downloading and while reading image files.

    Raises ValueError for an unknown name, a damaged file, or images and labels that do not fit together; FileNotFoundError where
    files are missing and could not, or should not, be downloaded.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"the data set is of type {type(name).__name__}: name it, a folder of images by imagefolder:PATH"
        )
    kind, _, path = name.partition(":")
    if kind not in LOADERS or bool(path) != (kind == "imagefolder"):
        known = ", ".join("imagefolder:PATH" if known == "imagefolder" else known for known in LOADERS)
        raise ValueError(f"unknown data set {name!r}: choose one of {known}")
    if size is not None and kind not in ("imagefolder", "TinyImageNet"):
        raise ValueError(
            f"size= is for imagefolder:PATH and TinyImageNet, and {name} has a size of its own: leave it out"
        )
    check_number("seed", seed, least=0, whole=True)
    if size is not None:
        sides = (size, size) if np.ndim(size) == 0 else tuple(size)
        if len(sides) != 2:
            raise ValueError(
                f"size={size!r} does not fit: give (height, width) in pixels, or one number for a square"
            )
        size = tuple(map(plain, sides))
        for side in size:
            check_number("size", side, least=1, whole=True, otherwise="(height, width)")
    folder = Path(path or data_dir or os.environ.get("GMLIB_DATA") or "data").expanduser()
    name = f"{kind}:{path.rstrip('/') or '/'}" if path else name  # the same with and without a slash at the end
    return LOADERS[kind](name, folder, download=download, size=size, seed=seed, progress=progress)


def _load_digits(name: str, folder: Path, **_: Any) -> Data:
    """scikit-learn's own digits, split once and for all into 1200 training and 597 test images."""
    train_test_split = require("sklearn.model_selection", "data").train_test_split
    pixels, y = require("sklearn.datasets", "data").load_digits(return_X_y=True)
    x = (pixels / 16).reshape(-1, 8, 8)  # 0..16 -> [0, 1]
    train, test = train_test_split(np.arange(len(y)), train_size=1200, stratify=y, random_state=0)
    train, test = np.sort(train), np.sort(test)
    mean, std = NORMALISATION[name]
    origin = "scikit-learn's load_digits (1,797 real digits of 8x8 pixels), stratified split with seed 0"
    return Data.from_arrays(name, x[train], y[train], x[test], y[test], mean=mean, std=std, origin=origin)


def _load_torchvision(name: str, folder: Path, *, download: bool, progress: bool, **_: Any) -> Data:
    """A set that torchvision knows; unpacked or downloaded first where a file of it is missing."""
    files, archives = _files_of(name, folder)
    if not all(path.is_file() for path in files):
        wanted = f"put {_names(files)} into {_folder(files)}"
        if archives:
            packed = "the same as .gz" if len(archives) == len(files) else _names(archives)
            wanted += f", or {packed} into {_folder(archives)}"
        unpackable = archives and all(_is_whole(path, md5) for path, md5 in archives.items())
        if not (download or unpackable):
            raise FileNotFoundError(f"{name} is not there: {wanted}, or let it be downloaded (download=True)")
        try:
            _download(name, folder, files | archives, progress)
        except Exception as error:
            raise FileNotFoundError(f"{name} could not be downloaded ({first_sentence(error)}): {wanted}") from error
    try:
        train, test = _open(name, folder, train=True), _open(name, folder, train=False)
        if name == "SVHN":  # the one with (N, channels, height, width) images, and with no names of classes
            arrays, classes = [a for part in (train, test) for a in (torch.from_numpy(part.data), part.labels)], None
        else:
            arrays = [a for part in (train, test) for a in (part.data, part.targets)]
            classes = [label.split(" - ")[0] for label in train.classes]  # MNIST's "3 - three" -> "3"
        (mean, std), origin = NORMALISATION[name], f"the {name} files that torchvision reads"
        return Data.from_arrays(name, *arrays, classes=classes, mean=mean, std=std, origin=origin)
    except (OSError, MemoryError):  # no sign of damage, and they say for themselves what is wrong
        raise
    except Exception as error:  # readers meet damage in many ways
        damaged = [path for path, md5 in files.items() if not _is_whole(path, md5)] or files
        raise ValueError(
            f"{name} is damaged ({first_sentence(error)}): delete {_names(damaged)} in {_folder(damaged)} and load again"
        ) from error


def _files_of(name: str, folder: Path) -> tuple[dict[Path, str | None], dict[Path, str]]:
    """The files that torchvision reads, and the archives it unpacks them from, as {path: md5 if known}."""
    datasets = require("torchvision.datasets", "data")
    source = getattr(datasets, name)
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
    """torchvision's own object for the training or the test split."""
    datasets = require("torchvision.datasets", "data")
    split = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    with warnings.catch_warnings():
        # numpy 2.4.0 to 2.4.4 warn of CIFAR's old pickles, Python 3.12 and 3.13 of torchvision's way with tar
        warnings.simplefilter("ignore")
        return getattr(datasets, name)(folder, download=download, **split)


def _download(name: str, folder: Path, files: dict[Path, str | None], progress: bool) -> None:
    """Fetch and unpack with torchvision; where that fails, take back half-written files and empty folders."""
    new_files = [path for path in files if not path.exists()]
    new_folders = {parent for path in files for parent in path.parents if not parent.exists()}
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none, and would wait for ever
        with nullcontext() if progress else redirect_stderr(io.StringIO()):
            for train in (True, False):
                _open(name, folder, train, download=True)
    except BaseException:  # Ctrl-C too
        with suppress(OSError):
            for path in new_files:
                if path.exists() and not _is_whole(path, files[path]):
                    path.unlink()
        for path in sorted(new_folders, reverse=True):  # inner ones first
            with suppress(OSError):  # not empty, or never made
                path.rmdir()
        raise
    finally:
        socket.setdefaulttimeout(timeout)


def _is_whole(path: Path, md5: str | None) -> bool:
    """Whether a file has its published md5; one without, an IDX file, must hold what its header says."""
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


def _load_tinyimagenet(name: str, folder: Path, *, size: Size, progress: bool, **_: Any) -> Data:
    """folder/tiny-imagenet-200 as it is unpacked; its val images are the test set, since the test labels are not public.

    wnids.txt names the classes, in their order; images are in train/WNID/images, and in val/images, whose classes stand in
    val/val_annotations.txt: file name, WNID and more in each line, with tabs between.
    """
    root = (folder / "tiny-imagenet-200").absolute()
    lists = (root / "wnids.txt", root / "val" / "val_annotations.txt")
    for path in (*lists, root / "train", root / "val" / "images"):
        if not path.exists():
            raise FileNotFoundError(
                f"{name} is not there, {path} is missing: put the unpacked folder tiny-imagenet-200 into {root.parent}, "
                "since this set is never downloaded"
            )
    wnids, table = (path.read_text("utf-8", errors="replace") for path in lists)
    classes, rows = wnids.split(), [line.split("\t") for line in table.splitlines()]
    class_of = {row[0]: row[1] for row in rows if len(row) > 1 and row[1] in classes}
    train = {wnid: sorted((root / "train" / wnid / "images").glob("*.JPEG")) for wnid in classes}
    val = sorted((root / "val" / "images").glob("*.JPEG"))
    damage = {f"train/{wnid}/images holds no image": not paths for wnid, paths in train.items()} | {
        "wnids.txt does not name different classes": len(train) < max(2, len(classes)),
        "a line of val_annotations.txt is not a new file and a class": len(class_of) < len(rows),
        "val_annotations.txt and val/images differ": sorted(class_of) != [path.name for path in val],
    }
    for what, found in damage.items():
        if found:
            raise ValueError(f"{name} is damaged ({what}): delete {root} and unpack it again")
    test = {wnid: [path for path in val if class_of[path.name] == wnid] for wnid in classes}
    origin = "the unpacked files of tiny-imagenet-200, val for testing" + ("" if size is None else ", resized")
    return _from_files(name, train, test, size, progress, origin)


def _load_imagefolder(name: str, folder: Path, *, size: Size, seed: int, progress: bool, **_: Any) -> Data:
    """folder/train/CLASS/* and folder/test/CLASS/*, or folder/CLASS/* with a seeded split of each class."""
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        train, test = _list_images(folder / "train"), _list_images(folder / "test")
        if odd := sorted(train.keys() ^ test.keys()):
            raise ValueError(
                f"class {odd[0]!r} is in only one of train and test in {folder}: give both the same classes"
            )
        origin = "the user's own images, in train and test folders"
    else:
        train, test = _split(_list_images(folder), torch.Generator().manual_seed(seed))
        origin = f"the user's own images, a fifth of each class for testing, split with seed {seed}"
    return _from_files(name, train, test, size, progress, origin)


def _from_files(name: str, train: Files, test: Files, size: Size, progress: bool, origin: str) -> Data:
    """The images of both parts, read into one array; in colour where `name` has constants of three channels."""
    mean, std = NORMALISATION.get(name, (None, None))
    paths = [path for part in (train, test) for paths in part.values() for path in paths]
    x = _read_images(paths, size, progress, colour=mean is not None)
    y, y_test = ([c for c, paths in enumerate(part.values()) for _ in paths] for part in (train, test))
    n = len(y)
    return Data.from_arrays(name, x[:n], y, x[n:], y_test, classes=list(train), mean=mean, std=std, origin=origin)


def _list_images(folder: Path) -> Files:
    """{class name: its image files}, both sorted so that no file system's own order shows."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: make it, with one folder of images for each class")
    Image = require("PIL.Image", "data")
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    classes = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        classes[inner.name] = sorted(path for path in inner.iterdir() if path.suffix.lower() in suffixes)
        if not classes[inner.name]:
            deeper = any(path.is_dir() for path in inner.iterdir())
            why = ", only folders (two parts are named train and test, in small letters)" if deeper else ""
            raise ValueError(f"class folder {inner} holds no image file{why}: add some or remove the folder")
    if not classes:
        raise ValueError(f"{folder} holds no class folders: put the images of each class into a folder of its own")
    return classes


def _split(classes: Files, generator: torch.Generator) -> tuple[Files, Files]:
    """(train, test): of each class a fifth, and at least one image, goes to test."""
    train, test = {}, {}
    for name, paths in classes.items():
        if len(paths) < 2:
            raise ValueError(f"class {name!r} has one image ({paths[0]}), and a split takes at least 2: add some")
        shuffled = [paths[i] for i in torch.randperm(len(paths), generator=generator)]
        n_test = max(1, round(len(paths) / 5))
        train[name], test[name] = sorted(shuffled[n_test:]), sorted(shuffled[:n_test])
    return train, test


def _read_images(paths: list[Path], size: Size, progress: bool, colour: bool = False) -> np.ndarray:
    """(N, height, width) uint8 if all images are grey and need no colour, else (N, height, width, 3); transparency goes."""
    bar = progress_bar("reading images", len(paths), "image", progress, leave=False)
    for i, path in enumerate(paths):
        image = _read_image(path, size)
        bar.update()
        if i == 0:
            h, w = image.shape[:2]
            x = np.empty((len(paths), h, w, 3) if colour else (len(paths), *image.shape), np.uint8)
        if image.shape[:2] != (h, w):
            odd_h, odd_w = image.shape[:2]
            raise ValueError(
                f"images differ in size, {paths[0]} is {w}x{h} but {path} is {odd_w}x{odd_h}: "
                "make them equal or give size= to resize them"
            )
        if image.ndim == x.ndim:  # the first in colour among grey ones
            x = np.stack([x] * 3, axis=-1)
        x[i] = image if image.ndim == x.ndim - 1 else image[..., None]
    bar.close()
    return x


def _read_image(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """(height, width) uint8 for PIL's modes L and 1, else (height, width, 3); resized to size, if given."""
    Image = require("PIL.Image", "data")
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # PIL would turn most of these pixels white without a word
                raise ValueError(f"mode {image.mode} has more than the 8 bits per channel that are kept")
            if image.mode == "P":  # PIL warns where a palette's transparency is dropped unasked
                image = image.convert("RGBA")
            image = image.convert("L" if image.mode in ("L", "1") else "RGB")
            return np.asarray(image if size is None else image.resize((size[1], size[0])))
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({first_sentence(error)}): delete it or put a good copy there, and load again"
        ) from error


LOADERS = {
    "digits": _load_digits,
    **dict.fromkeys(TORCHVISION, _load_torchvision),
    "TinyImageNet": _load_tinyimagenet,
    "imagefolder": _load_imagefolder,
}
