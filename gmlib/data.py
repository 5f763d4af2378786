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
    """A labelled data set in memory. Its training images are sorted by class and keep their order within a class.

    Attributes
    ----------
    name : str
        ``"digits"``, ``"MNIST"``, ``"imagefolder:PATH"``, ...
    classes : tuple of str
        The names of the C classes.
    mean, std : tuple of float
        One number per channel, for pixels in [0, 1].
    train_images : Tensor
        (N, channels, height, width) float32, normalised: (pixel in [0, 1] - mean) / std.
    train_labels : Tensor
        (N,) int64, non-decreasing.
    test_images, test_labels : Tensor
        The same for the test images, in their given order.
    origin : str
        Where this copy of the data comes from.
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
        """Number of classes, C."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

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
        """Each class's share of the training images (Eq. 5), (C,) float64 on the data's device."""
        counts = torch.tensor(self.counts, dtype=torch.float64, device=self.train_labels.device)
        return counts / counts.sum()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (64 hex digits) of the shapes and bytes of the normalised images, as float32, and of the labels.

        Normalising uses correctly rounded float32 operations only, so equal data have equal fingerprints everywhere.
        """
        digest = hashlib.sha256()
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            for part in (images.to("cpu", torch.float32), labels.cpu()):
                digest.update(str(tuple(part.shape)).encode())
                digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def of_class(self, c: int) -> Tensor:
        """The training images of class c.

        Returns
        -------
        Tensor
            (counts[c], channels, height, width), a view.

        Raises
        ------
        ValueError
            If there is no class c.
        """
        if not 0 <= c < self.n_classes:
            raise ValueError(f"class {c} is outside 0..{self.n_classes - 1} of {self.name}")
        return self.train_images[self._starts[c] : self._starts[c + 1]]

    def sample(self, c: int, n: int, generator: torch.Generator) -> Tensor:
        """Draw training images of class c without replacement.

        The draw happens on the generator's device and the images stay on the data's device. So a CPU generator draws
        the same images for data on every device.

        Parameters
        ----------
        c : int
        n : int
            How many images to draw. A class with fewer images gives all of them.
        generator : torch.Generator

        Returns
        -------
        Tensor
            (min(n, counts[c]), channels, height, width).

        Raises
        ------
        ValueError
            If n < 1 or there is no class c.
        """
        _check_draw(n)
        images = self.of_class(c)
        chosen = torch.randperm(len(images), generator=generator, device=generator.device)[:n]
        return images[chosen.to(images.device)]

    def sample_classes(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Call `sample` for each class in turn. The images are the same, but one indexing operation gathers them all.

        Parameters
        ----------
        n : int
            Images per class.
        generator : torch.Generator
            On the CPU.

        Returns
        -------
        list of Tensor
            C tensors of shape (min(n, counts[c]), channels, height, width).

        Raises
        ------
        ValueError
            If n < 1.
        """
        chosen = self.choose_classes(n, generator)
        return list(self.train_images[self.on_device(torch.cat(chosen))].split([len(part) for part in chosen]))

    def choose_classes(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Choose what `sample_classes` draws.

        Returns
        -------
        list of Tensor
            C int64 tensors on the CPU, the numbers of the chosen training images.
        """
        _check_draw(n)
        return [
            start + torch.randperm(count, generator=generator)[:n]
            for start, count in zip(self._starts, self.counts, strict=False)
        ]

    def sample_any(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw min(n, N) training images of any class without replacement, with their labels."""
        chosen = self.on_device(self.choose_any(n, generator))
        return self.train_images[chosen], self.train_labels[chosen]

    def choose_any(self, n: int, generator: torch.Generator) -> Tensor:
        """Choose what `sample_any` draws: the numbers of training images, int64 on the CPU."""
        return torch.randperm(len(self.train_labels), generator=generator)[:n]

    def on_device(self, chosen: Tensor) -> Tensor:
        """Copy numbers of training images to the data's device. The host does not wait for the copy."""
        return chosen.to(self.train_images.device, non_blocking=True)

    def labels_of(self, ipc: int) -> Tensor:
        """The labels of a synthetic set: (C*ipc,) int64 on the data's device, ipc times 0, ipc times 1, ..."""
        return torch.arange(self.n_classes, device=self.train_labels.device).repeat_interleave(ipc)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Data:
        """The same data with its tensors on ``device`` and its images as ``dtype``; None changes nothing."""
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
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        origin: str = "",
    ) -> Data:
        """Check, sort and normalise arrays. The given arrays are not changed.

        Parameters
        ----------
        name : str
        train_images, test_images : ndarray or Tensor
            uint8 in 0..255, or floats in [0, 1]. Grey images: (N, height, width). Images with 1 or 3 channels:
            (N, height, width, channels) in numpy, (N, channels, height, width) in torch.
        train_labels, test_labels : ndarray, Tensor or sequence of int
            (N,) integers in 0..C-1. Each class needs a training image.
        classes : sequence of str, optional
            The names of the C classes. None gives ``"0"``, ``"1"``, ... up to the largest training label.
        mean, std : sequence of float, optional
            One number per channel, for pixels in [0, 1]. None measures them on the training images and rounds them to
            4 decimals, as such constants are published. A constant channel gets a std of 1.
        origin : str
            Where this copy of the data comes from.

        Returns
        -------
        Data
            On the CPU.

        Raises
        ------
        ValueError
            If an array does not fit. The message says which one and why.
        """
        train, y_train = _checked(train_images, train_labels, f"{name} training")
        test, y_test = _checked(test_images, test_labels, f"{name} test")
        if train.shape[1:] != test.shape[1:]:
            shapes = f"{tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
            raise ValueError(
                f"{name}: training and test images differ, {shapes}: give both the same (channels, height, width)"
            )
        names = tuple(str(c) for c in (range(int(y_train.max()) + 1) if classes is None else classes))
        _check_classes(name, names, y_train, y_test)
        if mean is None or std is None:
            measured_mean, measured_std = _mean_and_std(train)
            mean = measured_mean if mean is None else mean
            std = measured_std if std is None else std
        mean = tuple(map(float, np.atleast_1d(mean)))
        std = tuple(map(float, np.atleast_1d(std)))
        if {len(mean), len(std)} != {train.shape[1]} or not np.isfinite(mean + std).all() or min(std) <= 0:
            raise ValueError(
                f"{name}: mean {mean} and std {std} must each be {train.shape[1]} finite numbers, std above 0"
            )
        order = torch.argsort(y_train, stable=True)
        x_train = _normalised(train[order], mean, std)
        x_test = _normalised(test, mean, std)
        return cls(name, names, mean, std, x_train, y_train[order], x_test, y_test, origin)


def _check_draw(n: int) -> None:
    if n < 1:
        raise ValueError(f"cannot draw {n} images: n must be at least 1")


def _checked(images: Images, labels: Labels, what: str) -> tuple[Tensor, Tensor]:
    """(N, channels, height, width) uint8 or float and (N,) int64 tensors on the CPU, copied only if necessary."""
    if isinstance(images, Tensor):
        x = images.detach().cpu()
        x = x[:, None] if x.ndim == 3 else x
    else:
        array = np.asarray(images)
        if array.dtype.kind not in "uf":
            raise _wrong_type(what, array.dtype)
        if array.dtype.kind == "f":
            array = array.astype(np.float32, copy=False)
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4:
            array = np.moveaxis(array, -1, 1)
        x = torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch warns of read-only arrays
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(
            f"{what} images have shape {tuple(np.shape(images))}: give (N, height, width), or with 1 or 3 channels "
            "(N, height, width, channels) in numpy, (N, channels, height, width) in torch, N above 0"
        )
    if x.is_floating_point():
        low, high = (bound.item() for bound in x.aminmax())  # NaN if any pixel is NaN
        if not (low >= 0 and high <= 1):
            found = "NaN" if low != low else f"values from {low:.4g} to {high:.4g}"
            raise ValueError(f"{what} images contain {found}: floats must lie in [0, 1]")
    elif x.dtype != torch.uint8:
        raise _wrong_type(what, x.dtype)
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise ValueError(
            f"{what} labels are {y.dtype} of shape {y.shape}: give one integer per image, {len(x)} in all"
        )
    return x, torch.from_numpy(y.astype(np.int64))


def _wrong_type(what: str, dtype: object) -> ValueError:
    return ValueError(f"{what} images are of type {dtype}: give uint8 (0..255) or floats in [0, 1]")


def _check_classes(name: str, classes: tuple[str, ...], y_train: Tensor, y_test: Tensor) -> None:
    """ValueError unless the labels lie in 0..C-1, each class has a training image, and no two names are equal."""
    C = len(classes)
    if C < 2:
        raise ValueError(f"{name} has {C} class: give data with at least 2")
    for part, labels in (("training", y_train), ("test", y_test)):
        wrong = labels[(labels < 0) | (labels >= C)]
        if len(wrong):
            raise ValueError(f"{name}: {part} label {wrong[0]} is outside 0..{C - 1}: correct it or name every class")
    for c, count in enumerate(torch.bincount(y_train, minlength=C).tolist()):
        if count == 0:
            raise ValueError(f"{name}: class {classes[c]!r} (label {c}) has no training image: add some or remove it")
    if len(set(classes)) < C:
        raise ValueError(f"{name}: two classes are named {max(classes, key=classes.count)!r}: give each its own name")


def _mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and std of each channel, for pixels in [0, 1], summed in float64 and rounded to 4 decimals."""
    top = 255 if images.dtype == torch.uint8 else 1
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in images.split(256):  # a float64 copy of all images might not fit into memory
        x = chunk.double() / top
        sums += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
    mean, square = sums / images[:, 0].numel()
    std = (square - mean**2).clamp(min=0).sqrt()
    return [round(m, 4) for m in mean.tolist()], [round(s, 4) or 1.0 for s in std.tolist()]


def _normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The normalised images as one new float32 tensor. In place, since a large set may fit into memory only once."""
    x = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if images.dtype == torch.uint8:
        x.div_(255)
    return x.sub_(torch.tensor(mean).view(-1, 1, 1)).div_(torch.tensor(std).view(-1, 1, 1))


def check_ipc(data: Data, ipc: int) -> None:
    """Check that every class has at least ``ipc`` >= 1 training images.

    Raises
    ------
    ValueError
        If ``ipc`` does not fit.
    """
    smallest = min(data.counts)
    if not isinstance(ipc, int) or isinstance(ipc, bool) or not 1 <= ipc <= smallest:
        raise ValueError(
            f"ipc={ipc!r} does not fit {data.name}: give a whole number from 1 to {smallest}, "
            "the size of its smallest class"
        )
