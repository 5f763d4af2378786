"""Data sets in memory, and the small synthetic sets that condensation makes of them.

Every loader goes through one door, `Data.from_arrays`, which validates, sorts by class and normalises: pixels in [0, 1], minus
their channel's mean, over its standard deviation. A `SyntheticSet` lives in that same normalised space and is stored as
safetensors, never as pickle.
"""

import errno
import hashlib
import io
import json
import os
import secrets
import socket
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.utils.data import TensorDataset

from .checks import check_number, plain
from .recipe import progress_bar

# torchvision and scikit-learn are imported where they are needed: each costs a second.

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
SET_FORMAT = "gmlib-set-1"
STORED_AS_JSON = ("classes", "mean", "std", "recipe")
STORED_DTYPES = (torch.float16, torch.float32, torch.float64)
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte, after which a download counts as failed

Images = np.ndarray | Tensor
Labels = np.ndarray | Tensor | Sequence[int]
Size = int | tuple[int, int] | None
Files = dict[str, list[Path]]  # {class: its image files}


# ---- a labelled data set in memory -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Data:
    """A labelled data set in memory, its training images sorted by class (first order kept inside a class).

    Attributes:
        name: "digits", "MNIST", "imagefolder:PATH", ...
        classes: the names of the C classes.
        mean, std: per channel, in [0, 1] pixel units.
        train_images: (N, channels, height, width) float32, normalised: (pixel in [0, 1] - mean) / std.
        train_labels: (N,) int64, non-decreasing.
        test_images, test_labels: likewise for the test images, in their first order.
        origin: where this copy comes from.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    origin: str = ""

    def __repr__(self) -> str:
        n = f"{len(self.train_labels)} + {len(self.test_labels)}"
        return f"Data({self.name}: {n} images of {self.shape}, {self.n_classes} classes)"

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image."""
        return tuple(self.train_images.shape[1:])

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of training images of each class."""
        return tuple(torch.bincount(self.train_labels, minlength=self.n_classes).tolist())

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """C + 1 positions among the training images: class c is _starts[c] to _starts[c + 1]."""
        return tuple(accumulate(self.counts, initial=0))

    @cached_property
    def class_weights(self) -> Tensor:
        """(C,) float64, on the data's device: each class's share of the training images (Eq. 5)."""
        counts = torch.tensor(self.counts, dtype=torch.float64, device=self.train_labels.device)
        return counts / counts.sum()

    @cached_property
    def fingerprint(self) -> str:
        """sha256, as 64 hex digits, of shapes and bytes of normalised images (as float32) and labels.

        Normalising is a chain of correctly rounded float32 operations: one copy of the data, one fingerprint, on any machine.
        """
        digest = hashlib.sha256()
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            for part in (images.to("cpu", torch.float32), labels.cpu()):
                digest.update(str(tuple(part.shape)).encode())
                digest.update(part.contiguous().numpy())
        return digest.hexdigest()

    def of_class(self, c: int) -> Tensor:
        """A view of the training images of class c, (counts[c], channels, height, width); ValueError where there is none."""
        if not 0 <= c < self.n_classes:
            raise ValueError(f"class {c} is outside 0..{self.n_classes - 1} of {self.name}")
        return self.train_images[self._starts[c] : self._starts[c + 1]]

    def sample(self, c: int, n: int, generator: torch.Generator) -> Tensor:
        """Draw n training images of class c, or all it has, without replacement: (n, channels, h, w).

        The draw happens on the generator's device and the images stay on the data's, so that one CPU generator gives the same
        images wherever the data lie. Raises ValueError for n < 1 and where there is no class c.
        """
        if n < 1:
            raise ValueError(f"cannot draw {n} images: n must be at least 1")
        images = self.of_class(c)
        chosen = torch.randperm(len(images), generator=generator, device=generator.device)[:n]
        return images[chosen.to(images.device)]

    def sample_classes(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """`sample` for every class in turn, the same images by the same draws, gathered at once where the data lie."""
        if n < 1:
            raise ValueError(f"cannot draw {n} images: n must be at least 1")
        starts = zip(self._starts, self.counts, strict=False)
        chosen = [start + torch.randperm(count, generator=generator)[:n] for start, count in starts]
        drawn = self.train_images[torch.cat(chosen).to(self.train_images.device, non_blocking=True)]
        return list(drawn.split([len(part) for part in chosen]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Data":
        """The same data, tensors on `device` and images as `dtype`; None leaves either as it is."""
        return replace(
            self,
            train_images=self.train_images.to(device=device, dtype=dtype),
            train_labels=self.train_labels.to(device=device),
            test_images=self.test_images.to(device=device, dtype=dtype),
            test_labels=self.test_labels.to(device=device),
        )

    @classmethod
    def from_arrays(
        cls,
        name: str,
        train_images: Images,
        train_labels: Labels,
        test_images: Images,
        test_labels: Labels,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        origin: str = "",
    ) -> "Data":
        """Check, sort and normalise arrays into a `Data` on the CPU; the arrays themselves stay as they are.

        train_images, test_images: uint8 (0..255) or floats in [0, 1]. Grey: (N, height, width). With 1 or 3 channels:
        (N, height, width, channels) in numpy, (N, channels, height, width) in torch.
        train_labels, test_labels: (N,) integers in 0..C-1; each class needs a training image.
        classes: the C names; None: "0", "1", ... up to the largest training label.
        mean, std: per channel, in [0, 1] pixel units; None: measured on the training images and rounded to 4 decimals, as such
        constants are published (std 1 for a channel that never varies).

        Raises ValueError: in one sentence, what is wrong with which array.
        """
        train, y_train = _checked(train_images, train_labels, f"{name} training")
        test, y_test = _checked(test_images, test_labels, f"{name} test")
        if train.shape[1:] != test.shape[1:]:
            shapes = " and ".join(str(tuple(x.shape[1:])) for x in (train, test))
            raise ValueError(f"{name}: training and test images must be alike, not {shapes} (channels, height, width)")
        classes = tuple(map(str, range(int(y_train.max()) + 1) if classes is None else classes))
        C = len(classes)
        if C < 2:
            raise ValueError(f"{name} has {C} class, and telling classes apart takes at least 2")
        for part, labels in (("training", y_train), ("test", y_test)):
            wrong = labels[(labels < 0) | (labels >= C)]
            if len(wrong):
                raise ValueError(f"{name}: {part} label {wrong[0]} is outside 0..{C - 1}: correct it or name every class")
        for c, count in enumerate(torch.bincount(y_train, minlength=C).tolist()):
            if count == 0:
                raise ValueError(f"{name}: class {classes[c]!r} (label {c}) has no training image: add some or drop it")
        if len(set(classes)) < C:
            raise ValueError(f"{name}: two classes have one name, {max(classes, key=classes.count)!r}: give each its own")
        measured = _mean_and_std(train) if mean is None or std is None else None
        mean, std = (tuple(map(float, np.atleast_1d(given))) for given in (
            measured[0] if mean is None else mean, measured[1] if std is None else std
        ))  # fmt: skip
        if {len(mean), len(std)} != {train.shape[1]} or not np.isfinite(mean + std).all() or min(std) <= 0:
            raise ValueError(f"{name}: mean {mean} and std {std} must each be {train.shape[1]} finite numbers, std above 0")
        order = torch.argsort(y_train, stable=True)
        x, x_test = _normalised(train[order], mean, std), _normalised(test, mean, std)
        return cls(name, classes, mean, std, x, y_train[order], x_test, y_test, origin)


def _checked(images: Images, labels: Labels, what: str) -> tuple[Tensor, Tensor]:
    """(N, channels, height, width) uint8 or float and (N,) int64 CPU tensors, copied only if need be."""
    wrong_type = what + " images are of type {}: give uint8 (0..255) or floats in [0, 1]"
    if isinstance(images, Tensor):
        x = images.detach().cpu()
        x = x[:, None] if x.ndim == 3 else x
    else:
        array = np.asarray(images)
        if array.dtype.kind not in "uf":
            raise ValueError(wrong_type.format(array.dtype))
        array = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
        array = array[:, None] if array.ndim == 3 else np.moveaxis(array, -1, 1) if array.ndim == 4 else array
        x = torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch takes no read-only arrays
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(
            f"{what} images have shape {tuple(np.shape(images))}: give (N, height, width), or with 1 or 3 channels "
            "(N, height, width, channels) in numpy, (N, channels, height, width) in torch, N above 0"
        )
    if x.is_floating_point():
        low, high = (bound.item() for bound in x.aminmax())  # NaN if any pixel is NaN
        if not (low >= 0 and high <= 1):
            found = "NaN" if low != low else f"values from {low:.4g} to {high:.4g}"
            raise ValueError(f"{what} images hold {found}: floats must lie in [0, 1]")
    elif x.dtype != torch.uint8:
        raise ValueError(wrong_type.format(x.dtype))
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise ValueError(f"{what} labels are {y.dtype} of shape {y.shape}: give an integer for each of {len(x)} images")
    return x, torch.from_numpy(y.astype(np.int64))


def _mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Per channel, in [0, 1] pixel units, rounded; summed in float64, chunk by chunk."""
    top, sums = 255 if images.dtype == torch.uint8 else 1, 0.0
    for chunk in images.split(256):
        x = chunk.double() / top
        sums += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
    mean, square = sums / images[:, 0].numel()
    std = (square - mean**2).clamp(min=0).sqrt()
    return [round(m, 4) for m in mean.tolist()], [round(s, 4) or 1.0 for s in std.tolist()]


def _normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """One new float32 tensor, and all the rest in place: large sets leave no room for a second copy."""
    x = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if images.dtype == torch.uint8:
        x.div_(255)
    return x.sub_(torch.tensor(mean).view(-1, 1, 1)).div_(torch.tensor(std).view(-1, 1, 1))


# ---- loading by name ---------------------------------------------------------------------------------------


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
        raise ValueError(f"the data set is of type {type(name).__name__}: name it, a folder of images by imagefolder:PATH")
    kind, _, path = name.partition(":")
    if kind not in LOADERS or bool(path) != (kind == "imagefolder"):
        known = ", ".join("imagefolder:PATH" if known == "imagefolder" else known for known in LOADERS)
        raise ValueError(f"unknown data set {name!r}: choose one of {known}")
    if size is not None and kind not in ("imagefolder", "TinyImageNet"):
        raise ValueError(f"size= is for imagefolder:PATH and TinyImageNet, and {name} has a size of its own: leave it out")
    check_number("seed", seed, least=0, whole=True)
    if size is not None:
        sides = (size, size) if np.ndim(size) == 0 else tuple(size)
        if len(sides) != 2:
            raise ValueError(f"size={size!r} does not fit: give (height, width) in pixels, or one number for a square")
        size = tuple(map(plain, sides))
        for side in size:
            check_number("size", side, least=1, whole=True, otherwise="(height, width)")
    folder = Path(path or data_dir or os.environ.get("GMLIB_DATA") or "data").expanduser()
    name = f"{kind}:{path.rstrip('/') or '/'}" if path else name  # the same with and without a slash at the end
    return LOADERS[kind](name, folder, download=download, size=size, seed=seed, progress=progress)


def _load_digits(name: str, folder: Path, **_: Any) -> Data:
    """scikit-learn's own digits, split once and for all into 1200 training and 597 test images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, y = load_digits(return_X_y=True)
    x = (pixels / 16).reshape(-1, 8, 8)  # 0..16 -> [0, 1]
    train, test = train_test_split(np.arange(len(y)), train_size=1200, stratify=y, random_state=0)
    train, test = np.sort(train), np.sort(test)
    mean, std = NORMALISATION[name]
    origin = "scikit-learn's load_digits (1,797 real digits of 8x8 pixels), stratified split with seed 0"
    return Data.from_arrays(name, x[train], y[train], x[test], y[test], mean=mean, std=std, origin=origin)


# ---- torchvision's sets ------------------------------------------------------------------------------------


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
            raise FileNotFoundError(f"{name} could not be downloaded ({_line(error)}): {wanted}") from error
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
            f"{name} is damaged ({_line(error)}): delete {_names(damaged)} in {_folder(damaged)} and load again"
        ) from error


def _files_of(name: str, folder: Path) -> tuple[dict[Path, str | None], dict[Path, str]]:
    """The files that torchvision reads, and the archives it unpacks them from, as {path: md5 if known}."""
    from torchvision import datasets

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
    from torchvision import datasets

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
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor
    from torchvision.datasets.utils import check_integrity

    if md5 is not None:
        return check_integrity(path, md5)
    try:
        read_sn3_pascalvincent_tensor(path)
    except (OSError, ValueError, RuntimeError, AssertionError, KeyError):
        return False
    return True


def _names(paths: Iterable[Path]) -> str:
    *most, last = (path.name for path in paths)
    return f"{', '.join(most)} and {last}" if most else last


def _folder(paths: Iterable[Path]) -> Path:
    return next(iter(paths)).parent.absolute()


def _line(error: Exception) -> str:
    """An error's first sentence, to be set in brackets."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__


# ---- sets of image files: TinyImageNet, and a user's own ---------------------------------------------------


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
            raise ValueError(f"class {odd[0]!r} is in only one of train and test in {folder}: give both the same classes")
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
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # PIL would turn most of these pixels white without a word
                raise ValueError(f"mode {image.mode} has more than the 8 bits per channel that are kept")
            if image.mode == "P":  # PIL warns where a palette's transparency is dropped unasked
                image = image.convert("RGBA")
            image = image.convert("L" if image.mode in ("L", "1") else "RGB")
            return np.asarray(image if size is None else image.resize((size[1], size[0])))
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({_line(error)}): delete it or put a good copy there, and load again") from error


LOADERS = {
    "digits": _load_digits,
    **dict.fromkeys(TORCHVISION, _load_torchvision),
    "TinyImageNet": _load_tinyimagenet,
    "imagefolder": _load_imagefolder,
}


# ---- a synthetic set ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """A small training set, condensed or selected: `ipc` images for each of C classes.

    Attributes:
        images: (C*ipc, channels, height, width) finite floats, normalised, sorted by class; never clipped.
        labels: (C*ipc,) int64: ipc times 0, ipc times 1, ... up to C-1.
        classes: the names of the C classes.
        mean, std: per channel; images * std + mean are pixels in [0, 1] units.
        recipe: how the set was made, in plain JSON types.
        history: one dict for each outer iteration; not stored in the file.
        snapshots: {number of outer iterations: images after them}; not stored in the file.

    Raises ValueError where these do not fit together, or an image is not finite.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    snapshots: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        x, y, C = self.images, self.labels, self.n_classes
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
            raise ValueError(f"images and labels must be tensors, not {type(x).__name__} and {type(y).__name__}")
        if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
            raise ValueError(
                f"synthetic images must be floats of shape (C*ipc, channels, height, width), not {x.dtype} "
                f"of shape {tuple(x.shape)}"
            )
        if {len(self.mean), len(self.std)} != {x.shape[1]}:
            raise ValueError(f"mean {self.mean} and std {self.std} must each be {x.shape[1]} numbers, one per channel")
        wrong = y[(y < 0) | (y >= C)]
        if len(wrong):
            raise ValueError(f"label {int(wrong[0])} is outside 0..{C - 1}")
        if y.dtype != torch.int64 or y.tolist() != [c for c in range(C) for _ in range(self.ipc)] or len(y) != len(x):
            raise ValueError(f"labels must be int64, and sorted, and the same number for each of {C} classes")
        if not x.isfinite().all():
            raise ValueError("synthetic images hold NaN or infinite values")

    def __repr__(self) -> str:
        return f"SyntheticSet({len(self.images)} images of {self.shape}, {self.ipc} for each of {self.n_classes} classes)"

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.images) // self.n_classes

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image."""
        return tuple(self.images.shape[1:])

    def pixels(self) -> Tensor:
        """The images as pixels in [0, 1], clipped, for looking at: (C*ipc, channels, height, width)."""
        mean, std = (self.images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (self.images.detach() * std + mean).clamp(0, 1)

    def to_dataset(self) -> TensorDataset:
        """(normalised image, label) pairs, as a torch DataLoader takes them."""
        return TensorDataset(self.images.detach(), self.labels)

    def save(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Write the set as safetensors, atomically; the same set always gives the same bytes.

        Metadata, all strings: "format" is "gmlib-set-1"; "classes", "mean", "std" and "recipe" hold JSON.
        dtype: of the stored images: float16, float32 or float64; None: float32, or float64 if they are.

        Raises ValueError for another dtype, one too small for the images, or a recipe that JSON cannot hold, and OSError where
        the file cannot be written; nothing is left behind.
        """
        dtype = dtype or (torch.float64 if self.images.dtype == torch.float64 else torch.float32)
        if dtype not in STORED_DTYPES:
            raise ValueError(f"images cannot be stored as {dtype}: choose one of {', '.join(map(str, STORED_DTYPES))}")
        images = self.images.detach().to("cpu", dtype).contiguous()
        if not images.isfinite().all():
            raise ValueError(f"the images go beyond the range of {dtype}: store them as torch.float32")
        try:
            metadata = {key: json.dumps(getattr(self, key)) for key in STORED_AS_JSON}
        except (TypeError, ValueError) as error:
            raise ValueError(f"a set's recipe must hold plain JSON types only ({_line(error)})") from error
        tensors = {"images": images, "labels": self.labels.cpu().contiguous()}
        write_atomically(path, _ordered(to_safetensors(tensors, {"format": SET_FORMAT, **metadata})))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SyntheticSet":
        """Read what `save` wrote, onto the CPU; float16 images come back as float32, float64 ones as such.

        Raises FileNotFoundError where there is no such file, and ValueError for a truncated or damaged file, one that is not a
        gmlib set, a label out of range, or NaN in an image.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no synthetic set {path}: check the path, or make the set first")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != SET_FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r} and not {SET_FORMAT!r}")
                # cloned, since the library may hand out the file's own memory
                images, labels = file.get_tensor("images").clone(), file.get_tensor("labels").clone()
            classes, mean, std, recipe = map(json.loads, (metadata[key] for key in STORED_AS_JSON))
            images = images if images.dtype == torch.float64 else images.float()
            return cls(images, labels, tuple(classes), tuple(map(float, mean)), tuple(map(float, std)), dict(recipe))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a whole gmlib set ({_line(error)}): make or fetch it again") from error


def _ordered(blob: bytes) -> bytes:
    """The same safetensors file with its JSON header sorted: the library leaves that order to chance."""
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.dumps(json.loads(blob[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors behind it stay aligned
    return len(header).to_bytes(8, "little") + header + blob[end:]


def check_pair(S: SyntheticSet | Data, data: Data | None) -> None:
    """ValueError unless S is a set, or data, that goes with `data`: the same classes, shape and normalisation. None does."""
    if not isinstance(S, SyntheticSet | Data) or not isinstance(data, Data | None):
        raise ValueError(f"give a SyntheticSet, or a Data, and then the Data it goes with, not {_kind(S)} and {_kind(data)}")
    if data is None:
        return
    if S.shape != data.shape or tuple(S.classes) != tuple(data.classes):
        raise ValueError(
            f"the set has {len(S.classes)} classes of {S.shape} images but {data.name} has {data.n_classes} of {data.shape}: "
            "give the data it was made from"
        )
    if (tuple(S.mean), tuple(S.std)) != (data.mean, data.std):
        raise ValueError(
            f"the set is normalised by mean {tuple(S.mean)} and std {tuple(S.std)} but {data.name} by {data.mean} and "
            f"{data.std}: bring one to the other's"
        )


def _kind(thing: Any) -> str:
    return f"a {type(thing).__name__}"


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that it is there whole or not at all; missing folders are made.

    Raises OSError, of the cause's own kind, in one sentence that names the file; then no temporary file is left behind, and an
    older file of that name stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # the same folder, so surely the same disk
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            way_out = "free some space or choose another folder" if error.errno == errno.ENOSPC else "choose another place"
            reason = f"cannot write {path} ({error.strerror}): {way_out}"
            raise OSError(error.errno, reason) from error
        raise
