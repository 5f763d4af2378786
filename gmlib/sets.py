"""A synthetic set: the small training set that condensation makes. Stored as safetensors, never as pickle."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.utils.data import TensorDataset

from .checks import first_sentence
from .data import Data
from .files import write_atomically

SET_FORMAT = "gmlib-set-1"
STORED_AS_JSON = ("classes", "mean", "std", "recipe")
STORED_DTYPES = (torch.float16, torch.float32, torch.float64)


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
        C = self.n_classes
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
            raise ValueError(f"images and labels must be tensors, not {type(x).__name__} and {type(y).__name__}")
        if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
            raise ValueError(
                "synthetic images must be floats of shape (C*ipc, channels, height, width), "
                f"not {x.dtype} of shape {tuple(x.shape)}"
            )
        if {len(self.mean), len(self.std)} != {x.shape[1]}:
            raise ValueError(
                f"mean {self.mean} and std {self.std} must each be {x.shape[1]} numbers, one per channel"
            )
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

    def pixels(self) -> Tensor:
        """The images as pixels, clipped to [0, 1] for display: (C*ipc, channels, height, width)."""
        mean, std = (self.images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (self.images.detach() * std + mean).clamp(0, 1)

    def to_dataset(self) -> TensorDataset:
        """A dataset of (normalised image, label) pairs for a torch DataLoader."""
        return TensorDataset(self.images.detach(), self.labels)

    def save(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Write the set as a safetensors file, atomically. The same set always gives the same bytes.

        The file's metadata: ``format`` is ``gmlib-set-1``; ``classes``, ``mean``, ``std`` and ``recipe`` are JSON.

        Parameters
        ----------
        path : path
        dtype : torch.dtype, optional
            Of the stored images: float16, float32 or float64. None takes float64 for float64 images, else float32.

        Raises
        ------
        ValueError
            If the dtype is another one or too small for the images, or the recipe is not JSON.
        OSError
            If the file cannot be written. No partial file remains.
        """
        dtype = dtype or (torch.float64 if self.images.dtype == torch.float64 else torch.float32)
        if dtype not in STORED_DTYPES:
            raise ValueError(f"images cannot be stored as {dtype}: choose from {', '.join(map(str, STORED_DTYPES))}")
        images = self.images.detach().to("cpu", dtype).contiguous()
        if not images.isfinite().all():
            raise ValueError(f"the images exceed the range of {dtype}: store them as torch.float32")
        try:
            metadata = {key: json.dumps(getattr(self, key)) for key in STORED_AS_JSON}
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a set's recipe must contain only plain JSON types ({first_sentence(error)})"
            ) from error
        tensors = {"images": images, "labels": self.labels.cpu().contiguous()}
        write_atomically(path, _ordered(to_safetensors(tensors, {"format": SET_FORMAT, **metadata})))

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
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no synthetic set {path}: check the path, or make the set first")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != SET_FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r} and not {SET_FORMAT!r}")
                # clone, since safetensors may return memory that is mapped to the file
                images = file.get_tensor("images").clone()
                labels = file.get_tensor("labels").clone()
            classes, mean, std, recipe = (json.loads(metadata[key]) for key in STORED_AS_JSON)
            images = images if images.dtype == torch.float64 else images.float()
            return cls(images, labels, tuple(classes), tuple(map(float, mean)), tuple(map(float, std)), dict(recipe))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a complete gmlib set ({first_sentence(error)}): make or download it again"
            ) from error


def _ordered(blob: bytes) -> bytes:
    """The same safetensors file with a sorted JSON header, since safetensors writes it in random order."""
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.dumps(json.loads(blob[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # keeps the tensors after it aligned
    return len(header).to_bytes(8, "little") + header + blob[end:]


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
    if S.shape != data.shape or tuple(S.classes) != tuple(data.classes):
        raise ValueError(
            f"the set has {len(S.classes)} classes of {S.shape} images but {data.name} has {data.n_classes} "
            f"of {data.shape}: give the data it was made from"
        )
    if (tuple(S.mean), tuple(S.std)) != (data.mean, data.std):
        raise ValueError(
            f"the set is normalised by mean {tuple(S.mean)} and std {tuple(S.std)} but {data.name} by {data.mean} "
            f"and {data.std}: use the same numbers for both"
        )
