"""Synthetic sets in the formats of others: image folders, numpy archives, Hugging Face, and files of other projects.

A function that reads gives the parts of a set as a dict. `SyntheticSet` checks them.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from . import data as arrays
from . import datasets as readers
from .checks import check_flag, check_number, first_sentence, plain, require, shown
from .data import Data, Images, check_data
from .files import as_json, as_path, damaged, json_bytes, parse_json, read_json, slug, write_atomically

if TYPE_CHECKING:
    from .sets import SyntheticSet

log = logging.getLogger(__name__)

Numbers = Sequence[float] | float
NOTE = "gmlib-set.json"  # beside the class folders of an exported set
README = "README.txt"
OWN_FILES = {NOTE.casefold(), README.casefold()}
FOLDER_FORMAT = "gmlib-folder-1"
NPZ_ARRAYS = ("images", "labels", "classes", "mean", "std", "recipe")
FAR = 10.0  # pixels farther from [0, 1] than this were hardly condensed: their scale is wrong

# What the scripts of Zhao et al. (DC, DSA, DM) and Cazenavette et al. (MTT) normalise images by. Versions of them
# differ for CIFAR-100, so it is not here.
SCRIPTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    **{name: readers.NORMALISATION[name] for name in ("MNIST", "FashionMNIST", "SVHN")},
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
OTHER_ORDER = ("TinyImageNet",)  # the scripts number its classes in another order than gmlib


@dataclass(frozen=True)
class PixelLoss:
    """What pixels lose when they are clipped to [0, 1] and rounded to 8 bits. Black is 0 and white is 1.

    Attributes
    ----------
    largest : float
        The largest change of a pixel.
    mean : float
        The mean change of a pixel.
    clipped : float
        Share of the pixels that lie outside [0, 1].
    """

    largest: float
    mean: float
    clipped: float

    def __str__(self) -> str:
        cut = f"{share(self.clipped)} of the pixels lie outside [0, 1] and are clipped"
        if not self.clipped:
            cut = "no pixel is clipped"
        return f"{cut}; a pixel changes by {self.largest:.2g} at most and by {self.mean:.2g} on average"


class FolderNote(msgspec.Struct):
    """gmlib-set.json. ``folders`` are those of the classes, in the order of the labels."""

    format: str
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.format != FOLDER_FORMAT:
            raise ValueError(f"its format is {self.format!r} and not {FOLDER_FORMAT!r} of this version")
        if len(self.classes) != len(self.folders) or len(set(self.folders)) < len(self.folders):
            raise ValueError("its classes and folders do not fit together")


# ---- out


def share(part: float) -> str:
    """A share in percent, such as "87 %". It is 0 % or 100 % only if it is exactly that."""
    if 0 < part < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 <= part < 1 else f"{100 * part:.0f} %"


def levels(S: SyntheticSet) -> np.ndarray:
    """The pixels of a set, clipped to [0, 1], in 8 bits: (N, height, width, channels) uint8.

    Raises
    ------
    ValueError
        If the images have neither 1 nor 3 channels.
    """
    if S.shape[0] not in (1, 3):
        raise ValueError(f"the set has images of {S.shape[0]} channels: a picture needs 1 or 3, so use to_npz")
    return (S.pixels() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def pixel_loss(S: SyntheticSet) -> PixelLoss:
    """What `levels` loses."""
    exact = S.pixels(clip=False).double().cpu()
    change = (torch.from_numpy(levels(S)).permute(0, 3, 1, 2).double() / 255 - exact).abs()
    return PixelLoss(change.max().item(), change.mean().item(), S.outside)


def class_folders(classes: Sequence[str], numbered: bool | None = None) -> list[str]:
    """A folder for each class. Sorted by name, as loaders of image folders sort, they are in the order of the labels.

    Parameters
    ----------
    classes : sequence of str
    numbered : bool, optional
        Put the label in front of each name. None does so only if the names alone are in another order, if two of
        them are the same on some file systems, or if one is that of a file beside the folders.
    """
    names = [slug(name) for name in classes]
    if numbered is None:
        folded = {name.casefold() for name in names}
        numbered = names != sorted(names) or len(folded) < len(names) or not folded.isdisjoint(OWN_FILES)
    digits = len(str(len(classes) - 1))
    return [slug(f"{c:0{digits}}-{name}") for c, name in enumerate(classes)] if numbered else names


def png_files(S: SyntheticSet, numbered: bool | None = None, digits: int = 3) -> dict[str, bytes]:
    """{path: PNG file} of every image: a folder for each class, and a number for each image.

    Parameters
    ----------
    S : SyntheticSet
    numbered : bool, optional
        As in `class_folders`.
    digits : int
        Of the file names, at least.
    """
    folders, digits = class_folders(S.classes, numbered), max(digits, len(str(S.ipc - 1)))
    images, files = iter(levels(S)), {}
    for folder, n in zip(folders, S.counts, strict=True):
        for j in range(n):
            files[f"{folder}/{j:0{digits}}.png"] = png_bytes(as_image(next(images)))
    return files


def as_image(bytes_: np.ndarray) -> Any:
    """An image of Pillow from (height, width, 1 or 3) uint8."""
    return require("PIL.Image", "data").fromarray(bytes_[..., 0] if bytes_.shape[-1] == 1 else bytes_)


def png_bytes(image: Any, **options: Any) -> bytes:
    """A small PNG file of an image of Pillow. The same image gives the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True, **options)
    return buffer.getvalue()


def write_folder(S: SyntheticSet, path: str | os.PathLike, *, quiet: bool = False) -> PixelLoss:
    """`SyntheticSet.to_folder`. The loss is logged unless ``quiet``."""
    path = check_new_folder(path)
    require("PIL.Image", "data")
    lost = pixel_loss(S)
    note = {
        "format": FOLDER_FORMAT,
        "classes": list(S.classes),
        "folders": class_folders(S.classes),
        "mean": list(S.mean),
        "std": list(S.std),
        "recipe": S.recipe,
    }
    files = png_files(S)
    files[README] = _readme(S, lost).encode()
    files[NOTE] = json_bytes(note, "recipe of a set")  # the last one, so a folder that has it is complete
    _write_all(path, files)
    if not quiet:
        log.log(logging.WARNING if lost.clipped else logging.INFO, "%s: %s", path, lost)
    return lost


def check_new_folder(path: str | os.PathLike) -> Path:
    """The path of a folder that is to be written. ValueError if there is something in it.

    What a killed process left of its own is no hindrance, and is deleted.
    """
    path = Path(os.path.abspath(as_path(path)))  # "new/.." is the folder around it
    if path.is_dir():
        for scratch in path.glob(f".{'[0-9a-f]' * 16}.tmp"):
            shutil.rmtree(scratch, ignore_errors=True)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        kind = "is not empty" if path.is_dir() else "is a file"
        raise ValueError(f"{path} {kind}: name a new folder, or one without files")
    return path


def _write_all(path: Path, files: dict[str, bytes]) -> None:
    """Write files into an empty or missing folder: all of them, or none."""
    existed, there = path.exists(), []
    scratch = path / f".{secrets.token_hex(8)}.tmp"
    try:
        try:
            for name, content in files.items():
                target = scratch / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            for name in dict.fromkeys(name.partition("/")[0] for name in files):
                there.append(path / name)
                (scratch / name).rename(path / name)
        except BaseException:
            for done in there:
                shutil.rmtree(done, ignore_errors=True) if done.is_dir() else done.unlink(missing_ok=True)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except BaseException as error:
        if not existed:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot write {path} ({error.strerror}): choose another place") from error
        raise


def _readme(S: SyntheticSet, lost: PixelLoss) -> str:
    channels, height, width = S.shape
    grey = "Grayscale(), " if channels == 1 else ""
    return f"""{len(S.images)} images of {width} x {height} pixels: a small training set.

Each folder is a class. Sorted by name, the folders are in the order of the labels:
{", ".join(S.classes)}.

The PNG files have 8 bits: {lost}.
Black is 0 and white is 1. A set saved as .npz or .safetensors keeps its exact numbers.

A network gets (pixels - mean) / std, with
mean = {list(S.mean)}
std = {list(S.std)}

With torchvision:
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, Normalize, ToTensor
S = ImageFolder(PATH, Compose([{grey}ToTensor(), Normalize({list(S.mean)}, {list(S.std)})]))

With gmlib: S = gmlib.SyntheticSet.from_folder(PATH)
"""


def npz_bytes(S: SyntheticSet) -> bytes:
    """The set as a numpy archive. The same set gives the same bytes."""
    images = S.images.detach().cpu()
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=(images if images.dtype == torch.float64 else images.float()).numpy(),
        labels=S.labels.cpu().numpy(),
        classes=np.array(S.classes),
        mean=np.array(S.mean),
        std=np.array(S.std),
        recipe=np.array(json.dumps(as_json(S.recipe, "recipe of a set"))),
    )
    return buffer.getvalue()


def write_npz(S: SyntheticSet, path: str | os.PathLike) -> Path:
    """`SyntheticSet.to_npz`."""
    path = file_to_write(path, ".npz")
    write_atomically(path, npz_bytes(S))
    return path


def file_to_write(path: str | os.PathLike, ending: str) -> Path:
    """The path of a file that is to be written. ValueError unless its name ends in this way."""
    path = as_path(path)
    if path.suffix.lower() != ending or path.is_dir():
        raise ValueError(f"{path} does not fit: give the name of a file that ends in {ending}")
    return path


def to_huggingface(S: SyntheticSet) -> Any:
    """`SyntheticSet.to_huggingface`."""
    try:
        hub: Any = importlib.import_module("datasets")
        Dataset, Features, Image, ClassLabel = hub.Dataset, hub.Features, hub.Image, hub.ClassLabel
    except (ModuleNotFoundError, AttributeError) as error:  # a folder "datasets" can be imported too, and is empty
        raise ModuleNotFoundError("datasets is needed for this: pip install datasets", name="datasets") from error
    images = [as_image(image) for image in levels(S)]
    features = Features({"image": Image(), "label": ClassLabel(names=list(S.classes))})
    lost = pixel_loss(S)
    log.log(logging.WARNING if lost.clipped else logging.INFO, "in 8 bits, %s", lost)
    return Dataset.from_dict({"image": images, "label": S.labels.tolist()}, features=features)


# ---- in


def scale_of(mean: Any, std: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in [0, 1], one number for each channel. One number alone is for all channels.

    Raises
    ------
    ValueError
        If they do not fit, for instance if they are for pixels in 0..255.
    """
    found = []
    for name, given in (("mean", mean), ("std", std)):
        given = given.tolist() if isinstance(given, np.ndarray | Tensor) else plain(given)
        values = [given] * channels if isinstance(given, int | float) else given
        if not isinstance(values, Collection) or isinstance(values, str) or len(values) != channels:
            raise ValueError(f"{name}={shown(given)} does not fit: give {channels} numbers, one per channel")
        if any(isinstance(value, int | float) and value > 1 + 1e-6 for value in values):
            raise ValueError(f"{name}={shown(given)} does not fit pixels in [0, 1]: divide it by 255")
        bounds: dict[str, Any] = {"least": 0} if name == "mean" else {"above": 0}
        found.append(tuple(float(check_number(name, value, **bounds)) for value in values))
    return found[0], found[1]


def _goal(data: Data | None, mean: Any, std: Any, otherwise: str) -> tuple[Any, Any]:
    """The mean and std to normalise by: the data's, or those that were given."""
    if data is not None:
        check_data(data)
    if (mean is None) != (std is None):
        raise ValueError("one of mean and std is missing: give both")
    if mean is None and data is None:
        raise ValueError(
            f"the scale of the images is not known: {otherwise}, or data= with the data that networks are tested on"
        )
    return (data.mean, data.std) if mean is None and data is not None else (mean, std)


def parts_from_arrays(
    images: Images,
    labels: Any,
    classes: Sequence[str] | None,
    mean: Numbers | None,
    std: Numbers | None,
    data: Data | None,
    *,
    normalised: bool,
    layout: str | None = None,
) -> dict[str, Any]:
    """`SyntheticSet.from_arrays`."""
    normalised = check_flag("normalised", normalised)
    mean, std = _goal(data, mean, std, "give mean= and std=")
    x = arrays._checked_images(images, "synthetic", layout)
    is_float = x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"
    if normalised and not is_float:
        raise ValueError(f"normalised=True does not fit images of {x.dtype}: give floats, or normalised=False")
    if data is not None and tuple(x.shape[1:]) != data.shape:
        raise ValueError(
            f"the images are of {tuple(x.shape[1:])} but those of {data.name} of {data.shape}: give others"
        )
    y, names = _labels(labels, len(x), classes, data)
    mean, std = scale_of(mean, std, x.shape[1])
    order = torch.argsort(y, stable=True)
    if normalised:
        x = torch.cat([piece.float() for piece in arrays._pieces(x, order)])
        _check_normalised(x, mean, std)
        if data is not None:
            x = arrays.rescaled(x, mean, std, data.mean, data.std)
            mean, std = data.mean, data.std
    else:
        if data is not None and (mean, std) != (data.mean, data.std):
            raise ValueError("pixels have no scale yet: give data=, or mean= and std=, but not both")
        if is_float:
            _check_pixels(x)
        x = arrays._normalised(x, mean, std, order)
    return {"images": x, "labels": y[order], "classes": names, "mean": mean, "std": std}


def _check_pixels(x: Images) -> None:
    """ValueError unless these floats lie in [0, 1]."""
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 1:
        return
    found = f"the images hold {'NaN' if low != low else f'values from {low:.4g} to {high:.4g}'}"
    if low >= 0 and high > FAR:
        raise ValueError(f"{found}, but pixels of floats lie in [0, 1]: divide them by 255")
    raise ValueError(
        f"{found}, but pixels lie in [0, 1]: if they were normalised, give normalised=True and the mean and std that "
        "were used (mean=0, std=1 for pixels outside [0, 1])"
    )


def _check_normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Log if normalised images look like pixels, or if their pixels lie far outside [0, 1]."""
    m, s = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    pixels = x * s + m
    low, high = pixels.min().item(), pixels.max().item()
    if low < -FAR or high > 1 + FAR:
        log.warning("pixels would run from %.3g to %.3g, far outside [0, 1]: check mean and std", low, high)
    elif x.min() >= 0 and x.max() <= 1 and (pixels != x).any():
        log.warning("all normalised images lie in [0, 1], as pixels do: if they are pixels, give normalised=False")


def _labels(labels: Any, n: int, classes: Any, data: Data | None) -> tuple[Tensor, tuple[str, ...]]:
    """(n,) int64 labels, and the names of the classes. With ``data`` they are in its order."""
    y = arrays._checked_labels(labels, n, "synthetic")
    names = data.classes if data is not None else None
    if classes is not None:
        names = class_names(classes)
    if isinstance(y, list):
        names = names or tuple(sorted(set(y)))
        place = {name: c for c, name in enumerate(names)}
        if odd := [name for name in y if name not in place]:
            raise ValueError(f"the label {shown(odd[0])} is none of the classes: choose from {_listed(names)}")
        y = torch.tensor([place[name] for name in y])
    elif names is None:
        names = tuple(map(str, range(min(int(y.max()) + 1, n))))  # with more classes than images one has none
    if len(wrong := y[(y < 0) | (y >= len(names))]):
        raise ValueError(f"label {int(wrong[0])} is outside 0..{len(names) - 1}: correct it or name every class")
    if data is not None and names != data.classes:
        check_same(names, data.classes, data.name)
        y = torch.tensor([data.classes.index(name) for name in names])[y]
        names = data.classes
    if missing := sorted(set(range(len(names))) - set(y.tolist())):
        raise ValueError(f"class {names[missing[0]]!r} has no image: give each class at least one")
    return y, names


def class_names(classes: Any) -> tuple[str, ...]:
    """Names of classes as texts. ValueError unless they are a list of different names."""
    if not isinstance(classes, Collection) or isinstance(classes, str | bytes | dict | set) or not len(classes):
        raise ValueError(f"classes={shown(classes)} does not fit: give a list of the names of the classes")
    names = tuple(str(plain(name)) for name in classes)
    if len(set(names)) < len(names):
        raise ValueError(f"two classes are named {max(names, key=names.count)!r}: give each its own name")
    return names


def check_same(ours: Sequence[str], theirs: Sequence[str], of: str) -> None:
    """ValueError unless the same classes are here and there, in any order. ``of`` says where theirs are."""
    for each, problem in (
        (set(ours) - set(theirs), f"is not in {of}"),
        (set(theirs) - set(ours), f"of {of} is missing"),
    ):
        if each:
            raise ValueError(f"the class {min(each)!r} {problem}: give exactly the classes {_listed(theirs)}")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def parts_from_folder(
    path: str | os.PathLike,
    data: Data | None,
    mean: Numbers | None,
    std: Numbers | None,
    classes: Sequence[str] | None,
    size: int | tuple[int, int] | None,
) -> dict[str, Any]:
    """`SyntheticSet.from_folder`."""
    path = as_path(path)
    if data is not None and not (mean is None and std is None and classes is None):
        raise ValueError("data= has a mean, a std and classes: give data=, or the others, but not both")
    note = None
    if (path / NOTE).is_file():
        advice = "give mean=, std= and classes="
        content = read_json(path / NOTE, FolderNote, advice=advice, sealed=False)
        note = msgspec.convert(content, FolderNote)
    if note is not None and data is None:
        mean, std = (note.mean, note.std) if mean is None and std is None else (mean, std)
    mean, std = _goal(data, mean, std, "give mean= and std=")
    files = readers._list_images(path)
    wanted, of = (classes, "classes=") if data is None else (data.classes, data.name)
    names = _classes_of(list(files), note, wanted, of, path)
    ordered = [files[folder] for folder in names]
    colour = None if np.ndim(mean) == 0 else np.size(mean) == 3  # None: as the files are
    sides = None if size is None else readers._height_and_width(size)
    paths = [file for some in ordered for file in some]
    x = readers._read_images(paths, sides, progress=False, colour=bool(colour))
    if colour is False and x.ndim == 4:  # torchvision's save_image writes grey images in colour
        if (x != x[..., :1]).any():
            raise ValueError(f"{path} has images in colour, but mean and std are for grey ones: give 3 numbers each")
        x = x[..., 0]
    labels = [c for c, some in enumerate(ordered) for _ in some]
    parts = parts_from_arrays(x, labels, list(names.values()), mean, std, None, normalised=False)
    return parts | {"recipe": dict(note.recipe) if note else {}}


def _classes_of(folders: list[str], note: FolderNote | None, classes: Any, of: str, path: Path) -> dict[str, str]:
    """{folder: name of its class}, in the order of the labels.

    A folder has the name of its class, this name made safe, or a number in front of it, or is listed in the note.
    """
    if note is not None:
        if set(folders) != set(note.folders):
            raise ValueError(
                f"{path} has other folders than its {NOTE} says: name them {_listed(note.folders)}, or delete that "
                "file and give data=, or mean=, std= and classes="
            )
        named = dict(zip(note.folders, note.classes, strict=True))
        if classes is None:
            return named
        wanted = class_names(classes)
        check_same(list(named.values()), wanted, of)
        return dict(sorted(named.items(), key=lambda item: wanted.index(item[1])))
    if classes is None:
        return {folder: folder for folder in folders}
    wanted = class_names(classes)
    for spelled in (list(wanted), class_folders(wanted, False), class_folders(wanted, True)):
        if set(spelled) == set(folders):
            return dict(zip(spelled, wanted, strict=True))
    check_same(folders, class_folders(wanted, False), f"{of} (a class has the name of its folder in {path})")
    raise AssertionError  # they were the same


def parts_from_npz(path: str | os.PathLike) -> dict[str, Any]:
    """`SyntheticSet.from_npz`."""
    path = _existing(path)
    advice = "make it again, or give its arrays to SyntheticSet.from_arrays"
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no numpy archive")
        with np.load(path, allow_pickle=False) as archive:
            missing = {*NPZ_ARRAYS} - set(archive.files)
            if missing:
                raise ValueError(f"it has no array {min(missing)!r}")
            found = {name: archive[name] for name in NPZ_ARRAYS}
            if odd := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
                raise ValueError(f"{odd[0]!r} is no array")
    except Exception as error:  # zipfile, its decompressors and numpy raise errors of many kinds
        raise ValueError(f"{path} cannot be read ({first_sentence(error)}): {advice}") from error
    images, labels, classes = found["images"], found["labels"], found["classes"]
    kinds = images.dtype.kind == "f" and labels.dtype.kind in "iu" and classes.dtype.kind == "U" and classes.ndim == 1
    if not kinds or any(found[name].ndim != 1 or found[name].dtype.kind not in "iuf" for name in ("mean", "std")):
        raise ValueError(f"{path} cannot be read (the types of its arrays do not fit): {advice}")
    wide = images.dtype == np.float64
    try:
        recipe = parse_json(str(found["recipe"]))
    except ValueError as error:
        raise damaged(path, error, advice) from error
    return {
        "images": torch.from_numpy(np.array(images, np.float64 if wide else np.float32)),
        "labels": torch.from_numpy(labels.astype(np.int64)),
        "classes": class_names(classes.tolist()),
        "mean": tuple(map(float, found["mean"])),
        "std": tuple(map(float, found["std"])),
        "recipe": recipe,
    }


def _existing(path: str | os.PathLike) -> Path:
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: check the path")
    return path


def parts_from_pt(
    path: str | os.PathLike,
    data: Data,
    labels_path: str | os.PathLike | None,
    which: int,
    mean: Numbers | None,
    std: Numbers | None,
    classes: Sequence[str] | None,
) -> dict[str, Any]:
    """`SyntheticSet.from_pt`."""
    check_data(data)
    which = check_number("which", which, whole=True)
    path = _existing(path)
    content = load_tensors(path)
    by_script = labels_path is not None
    if labels_path is not None:
        pair = [content, load_tensors(_existing(labels_path))]
    elif isinstance(content, dict) and isinstance(content.get("data"), list):
        experiments = content["data"]
        if not -len(experiments) <= which < len(experiments):
            held = f"{len(experiments)} set{'s' * (len(experiments) != 1)}"
            raise ValueError(f"which={which} does not fit: {path} holds {held}, numbered from 0")
        pair, by_script = experiments[which], True
    elif isinstance(content, dict) and {"images", "labels"} <= set(content):
        pair = [content["images"], content["labels"]]
    else:
        pair = content
    if which not in (0, -1) and not (isinstance(content, dict) and isinstance(content.get("data"), list)):
        raise ValueError(f"which={which} does not fit: {path} holds one set")
    if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], list):
        pair = [pair[0], torch.tensor(pair[1])] if all(type(y) is int for y in pair[1]) else pair
    is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(each, Tensor) for each in pair)
    if isinstance(content, Tensor) and labels_path is None:
        raise ValueError(f"{path} holds one tensor: name the file of the labels too, as labels_path=")
    if not is_pair or pair[0].ndim != 4:
        raise ValueError(
            f"{path} holds no set: it needs a pair of tensors (images, labels) with images (N, channels, height, "
            "width), or "
            "{'data': [[images, labels], ...]}"
        )
    if classes is None and data.name in OTHER_ORDER:
        raise ValueError(
            f"the order of the classes of {data.name} differs between projects: give classes= in the order of the "
            "file's labels (classes=sorted(data.classes) for MTT, classes=data.classes for gmlib)"
        )
    if mean is None and std is None:
        mean, std = _scale_of_script(path, data, by_script)
    images, labels = pair
    if labels.is_floating_point() and labels.ndim == 1 and (labels == labels.round()).all():
        labels = labels.long()
    if not images.is_floating_point():
        raise ValueError(f"{path} has images of {images.dtype}: give them to SyntheticSet.from_arrays")
    parts = parts_from_arrays(images, labels, classes, mean, std, data, normalised=True)
    log.info("%s: its images are taken as normalised by mean %s and std %s", path, mean, std)
    return parts


def _scale_of_script(path: Path, data: Data, by_script: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the images of a file were normalised by, if there is no doubt."""
    known = SCRIPTS.get(data.name)
    if known is None or (not by_script and known != (data.mean, data.std)):
        raise ValueError(
            f"{path} does not say how its images were normalised: give mean= and std= (mean=data.mean, std=data.std "
            f"if it was by those of {data.name})"
        )
    return known


def load_tensors(path: Path) -> Any:
    """What torch.save wrote, without unpickling: tensors, numbers, texts, lists and dicts, and numbers of numpy.

    Raises
    ------
    ValueError
        If the file holds anything else, or is damaged.
    """
    scalar = np.float64(0).__reduce__()[0]  # numpy's own function that makes a number from its bytes
    types = {type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")}
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # the scripts store accuracies as numbers of numpy
    allowed: list[Any] = [*((scalar, f"{module}.scalar") for module in modules), np.dtype, *types]
    try:
        if zipfile.is_zipfile(path):  # torch does not compare the checksums of its files
            with zipfile.ZipFile(path) as archive:
                if damaged_part := archive.testzip():
                    raise ValueError(f"its part {damaged_part} is damaged")
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds for a damaged file
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds {named[1]}" if named else "it is no file of tensors that torch.save wrote"
        raise ValueError(
            f"{path} is not opened ({reason}), since unpickling can run code: save its images and labels with "
            "torch.save, as a tuple of tensors"
        ) from error
