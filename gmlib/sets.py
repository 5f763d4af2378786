"""A synthetic set: the small training set that condensation makes. Stored as safetensors, never as pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .checks import check_number, shown
from .data import Data, fingerprint
from .files import as_json, as_path, check_tensor_path, damaged, read_tensors, write_tensors

SET_FORMAT = "gmlib-set-2"
STORED_DTYPES = (torch.float16, torch.float32, torch.float64)
ITS_DATA = "give the data it was made from"


class Description(msgspec.Struct):
    """What the metadata of a stored set hold as JSON, besides its format and its digest."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """A small training set, condensed or selected: ``ipc`` images for each of C classes.

    Attributes
    ----------
    images : Tensor
        (C*ipc, channels, height, width) finite floats, normalised, sorted by class. Pixels may lie outside [0, 1].
    labels : Tensor
        (C*ipc,) int64: ipc times 0, ipc times 1, ... up to C-1.
    classes : tuple of str
        The names of the C classes.
    mean, std : tuple of float
        One number per channel. images * std + mean are pixels, with black at 0 and white at 1.
    recipe : dict
        How the set was made, in plain JSON types.
    history : list of dict
        One for each outer iteration. Not stored in the file.
    snapshots : dict
        {number of outer iterations: images after them}. Not stored in the file.

    Raises
    ------
    ValueError
        If these do not fit together, or an image contains NaN or infinity.
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
        x, y = self.images, self.labels
        if not _is_list(self.classes) or not all(isinstance(name, str) for name in self.classes) or not self.classes:
            raise ValueError(f"classes={self.classes!r} does not fit: give the name of each class")
        C = self.n_classes
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
            raise ValueError(f"images and labels must be tensors, not {type(x).__name__} and {type(y).__name__}")
        if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
            raise ValueError(
                "synthetic images must be floats of shape (C*ipc, channels, height, width), "
                f"not {x.dtype} of shape {tuple(x.shape)}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not _is_list(values) or len(values) != x.shape[1]:
                raise ValueError(f"{name} {values} does not fit: give {x.shape[1]} numbers, one per channel")
            for value in values:
                check_number(name, value, above=0 if name == "std" else -math.inf)
        wrong = y[(y < 0) | (y >= C)]
        if len(wrong):
            raise ValueError(f"label {int(wrong[0])} is outside 0..{C - 1}")
        expected = [c for c in range(C) for _ in range(self.ipc)]
        if y.dtype != torch.int64 or y.tolist() != expected or len(y) != len(x):
            raise ValueError(f"labels must be int64, sorted, and equally many for each of the {C} classes")
        if not x.isfinite().all():
            raise ValueError("synthetic images contain NaN or infinite values")

    def __repr__(self) -> str:
        per_class = f"{self.ipc} for each of {self.n_classes} classes"
        return f"SyntheticSet({len(self.images)} images of {self.shape}, {per_class})"

    @property
    def n_classes(self) -> int:
        """Number of classes, C."""
        return len(self.classes)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.images) // self.n_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """sha256 (64 hex digits) of the shapes and bytes of the images, as float32, and of the labels."""
        return fingerprint(self.images, self.labels)

    def pixels(self) -> Tensor:
        """The images as pixels, clipped to [0, 1] for display: (C*ipc, channels, height, width)."""
        mean, std = (self.images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (self.images.detach() * std + mean).clamp(0, 1)

    def to_dataset(self) -> TensorDataset:
        """A dataset of (normalised image, label) pairs for a torch DataLoader."""
        return TensorDataset(self.images.detach(), self.labels)

    def save(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> str:
        """Write the set as a safetensors file, atomically. The same set always gives the same bytes.

        The file's metadata: ``format`` is ``gmlib-set-2``; ``classes``, ``mean``, ``std`` and ``recipe`` are JSON;
        ``sha256`` is the digest of everything else in the file.

        Parameters
        ----------
        path : path
            Its name ends in ``.safetensors``, or has no ending.
        dtype : torch.dtype, optional
            Of the stored images: float16, float32 or float64. None takes float64 for float64 images, else float32.

        Returns
        -------
        str
            The digest.

        Raises
        ------
        ValueError
            If the name has another ending, the dtype is another one or too small for the images, or the recipe is not
            JSON.
        OSError
            If the file cannot be written. No partial file remains.
        """
        path = check_tensor_path(path)
        if dtype is None:
            dtype = torch.float64 if self.images.dtype == torch.float64 else torch.float32
        check_dtype(dtype)
        images = self.images.detach().to("cpu", dtype)
        if not images.isfinite().all():
            raise ValueError(f"the images exceed the range of {dtype}: store them as torch.float32")
        description = {
            name: as_json(getattr(self, name), f"{name} of a set") for name in Description.__struct_fields__
        }
        metadata = {"format": SET_FORMAT, **{name: json.dumps(value) for name, value in description.items()}}
        return write_tensors(path, {"images": images, "labels": self.labels}, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> SyntheticSet:
        """Read a file that `save` wrote.

        Returns
        -------
        SyntheticSet
            On the CPU. Images are float64 if the file has float64 images, else float32.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged or is not a set of gmlib.
        """
        return cls.load_with_digest(path)[0]

    @classmethod
    def load_with_digest(
        cls, path: str | os.PathLike, advice: str = "make or download it again"
    ) -> tuple[SyntheticSet, str]:
        """The same as `load`, and the digest of the file. ``advice`` says what to do after deleting a damaged one."""
        path = as_path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no synthetic set {path}: check the path, or make the set first")
        tensors, metadata = read_tensors(path, SET_FORMAT, advice)
        try:
            if set(tensors) != {"images", "labels"} or tensors["images"].dtype not in STORED_DTYPES:
                raise ValueError(f"it must hold images, as floats, and labels, not {', '.join(tensors)}")
            found = {name: json.loads(metadata[name]) for name in Description.__struct_fields__ if name in metadata}
            described = msgspec.structs.asdict(msgspec.convert(found, Description))
            images = tensors["images"] if tensors["images"].dtype == torch.float64 else tensors["images"].float()
            return cls(images, tensors["labels"], **described), metadata["sha256"]
        except (msgspec.MsgspecError, ValueError) as error:
            raise damaged(path, error, advice) from error


def _is_list(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str)


def check_dtype(dtype: Any) -> None:
    """ValueError unless images can be stored with this dtype."""
    if not isinstance(dtype, torch.dtype) or dtype not in STORED_DTYPES:
        known = ", ".join(map(str, STORED_DTYPES))
        raise ValueError(f"images cannot be stored as {shown(dtype)}: choose from {known}")


def images_of(S: SyntheticSet | Data) -> tuple[Tensor, Tensor]:
    """The images and labels to train on: those of a set, or all training images of a Data."""
    return (S.train_images, S.train_labels) if isinstance(S, Data) else (S.images.detach(), S.labels)


def check_pair(S: SyntheticSet | Data, data: Data | None) -> None:
    """Check that S has the classes, the shape and the normalisation of ``data``. None allows every S.

    Raises
    ------
    ValueError
        If S and ``data`` differ, or are of other types.
    """
    if not isinstance(S, SyntheticSet | Data) or not isinstance(data, Data | None):
        raise ValueError(
            f"give a SyntheticSet or a Data, then a Data, not a {type(S).__name__} and a {type(data).__name__}"
        )
    if data is None:
        return
    if S.shape != data.shape:
        raise ValueError(f"the set has images of {S.shape} but {data.name} of {data.shape}: {ITS_DATA}")
    ours, theirs = list(S.classes), list(data.classes)
    if ours != theirs:
        alone = _names(name for name in ours if name not in theirs)
        missing = _names(name for name in theirs if name not in ours)
        if alone and missing:
            difference = f"has {alone} where {data.name} has {missing}"
        elif alone:
            difference = f"has {alone}, which {data.name} lacks"
        elif missing:
            difference = f"lacks {missing} of {data.name}"
        else:
            difference = f"has the classes of {data.name} in another order"
        raise ValueError(f"the set {difference}: {ITS_DATA}")
    if (tuple(S.mean), tuple(S.std)) != (data.mean, data.std):
        raise ValueError(
            f"the set is normalised by mean {tuple(S.mean)} and std {tuple(S.std)} but {data.name} by {data.mean} "
            f"and {data.std}: use the same numbers for both"
        )


def _names(classes: Iterable[str]) -> str:
    """The first of these classes by name; empty if there is none."""
    names = list(classes)
    listed = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"the class{'es' if len(names) > 1 else ''} {listed}" if names else ""
