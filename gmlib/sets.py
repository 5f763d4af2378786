"""A synthetic set: the small training set that condensation makes, stored as safetensors, never as pickle."""

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
            raise ValueError(
                f"mean {self.mean} and std {self.std} must each be {x.shape[1]} numbers, one per channel"
            )
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
            raise ValueError(
                f"images cannot be stored as {dtype}: choose one of {', '.join(map(str, STORED_DTYPES))}"
            )
        images = self.images.detach().to("cpu", dtype).contiguous()
        if not images.isfinite().all():
            raise ValueError(f"the images go beyond the range of {dtype}: store them as torch.float32")
        try:
            metadata = {key: json.dumps(getattr(self, key)) for key in STORED_AS_JSON}
        except (TypeError, ValueError) as error:
            raise ValueError(f"a set's recipe must hold plain JSON types only ({first_sentence(error)})") from error
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
            raise ValueError(
                f"{path} is not a whole gmlib set ({first_sentence(error)}): make or fetch it again"
            ) from error


def _ordered(blob: bytes) -> bytes:
    """The same safetensors file with its JSON header sorted: the library leaves that order to chance."""
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.dumps(json.loads(blob[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors behind it stay aligned
    return len(header).to_bytes(8, "little") + header + blob[end:]


def check_pair(S: SyntheticSet | Data, data: Data | None) -> None:
    """ValueError unless S is a set, or data, that goes with `data`: the same classes, shape and normalisation. None does."""
    if not isinstance(S, SyntheticSet | Data) or not isinstance(data, Data | None):
        raise ValueError(
            f"give a SyntheticSet, or a Data, and then the Data it goes with, not {_kind(S)} and {_kind(data)}"
        )
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
