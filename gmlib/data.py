"""A labelled data set in memory: checked, sorted by class and normalised."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

Images = np.ndarray | Tensor
Labels = np.ndarray | Tensor | Sequence[int]


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

    def sample_any(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """min(n, N) training images of any class with their labels, without replacement."""
        chosen = torch.randperm(len(self.train_labels), generator=generator)[:n]
        chosen = chosen.to(self.train_labels.device, non_blocking=True)
        return self.train_images[chosen], self.train_labels[chosen]

    def labels_of(self, ipc: int) -> Tensor:
        """(C*ipc,) int64, on the data's device: the labels of a synthetic set, ipc times 0, ipc times 1, ..."""
        return torch.arange(self.n_classes, device=self.train_labels.device).repeat_interleave(ipc)

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
            raise ValueError(
                f"{name}: training and test images must be alike, not {shapes} (channels, height, width)"
            )
        classes = tuple(map(str, range(int(y_train.max()) + 1) if classes is None else classes))
        C = len(classes)
        if C < 2:
            raise ValueError(f"{name} has {C} class, and telling classes apart takes at least 2")
        for part, labels in (("training", y_train), ("test", y_test)):
            wrong = labels[(labels < 0) | (labels >= C)]
            if len(wrong):
                raise ValueError(
                    f"{name}: {part} label {wrong[0]} is outside 0..{C - 1}: correct it or name every class"
                )
        for c, count in enumerate(torch.bincount(y_train, minlength=C).tolist()):
            if count == 0:
                raise ValueError(
                    f"{name}: class {classes[c]!r} (label {c}) has no training image: add some or drop it"
                )
        if len(set(classes)) < C:
            raise ValueError(
                f"{name}: two classes have one name, {max(classes, key=classes.count)!r}: give each its own"
            )
        measured = _mean_and_std(train) if mean is None or std is None else None
        mean, std = (tuple(map(float, np.atleast_1d(given))) for given in (
            measured[0] if mean is None else mean, measured[1] if std is None else std
        ))  # fmt: skip
        if {len(mean), len(std)} != {train.shape[1]} or not np.isfinite(mean + std).all() or min(std) <= 0:
            raise ValueError(
                f"{name}: mean {mean} and std {std} must each be {train.shape[1]} finite numbers, std above 0"
            )
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
        raise ValueError(
            f"{what} labels are {y.dtype} of shape {y.shape}: give an integer for each of {len(x)} images"
        )
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


def check_ipc(data: Data, ipc: int) -> None:
    """ValueError unless every class of `data` has at least `ipc` >= 1 training images."""
    smallest = min(data.counts)
    if not isinstance(ipc, int) or isinstance(ipc, bool) or not 1 <= ipc <= smallest:
        raise ValueError(
            f"ipc={ipc!r} does not fit {data.name}: give a whole number from 1 to {smallest}, the size of its smallest class"
        )
