"""A labelled data set in memory: checked, sorted by class and normalised."""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import check_number, choose, plain, shown
from .runtime import device_of, to_device

log = logging.getLogger(__name__)

PIECE = 2**21  # numbers in one piece of images, of which a copy in float64 is made (16 MiB)
SMALL_STD = 0.001  # 4 decimals hold a larger one to 5 %. A smaller one is rounded to 6 digits
LARGEST_SET = 2**30  # numbers in a synthetic set (4 GiB in float32)
Images = np.ndarray | Tensor
Labels = np.ndarray | Tensor | Sequence[int] | Sequence[str]
LAYOUTS = {
    "CHW": 1,
    "HWC": 3,
}  # the axis of the channels in (N, channels, height, width), (N, height, width, channels)


def fingerprint(*parts: Tensor) -> str:
    """sha256 (64 hex digits) of the shapes and bytes of tensors, floats as float32."""
    digest = hashlib.sha256()
    for part in parts:
        part = part.detach().to("cpu", torch.float32 if part.is_floating_point() else part.dtype)
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


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
        The same for the test images, in their given order. A class may have no test image. Accuracies then count over
        the others.
    origin : str
        Where this copy of the data comes from.

    Raises
    ------
    ValueError
        If types, shapes, labels or constants do not fit together. `from_arrays` also checks the pixels.
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

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            fits = isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim == 4 and x.is_floating_point()
            if not (fits and y.dtype == torch.int64 and y.shape == x.shape[:1]):
                raise ValueError(
                    f"{part} images must be a tensor of floats (N, channels, height, width), and their labels one of "
                    "N int64: make data from other arrays with Data.from_arrays"
                )
        parts, channels = (self.classes, self.mean, self.std), self.train_images.shape[1]
        fits = isinstance(self.name, str) and all(isinstance(part, tuple) for part in parts)
        fits = fits and all(isinstance(name, str) for name in self.classes)
        if not (fits and len(self.mean) == len(self.std) == channels == self.test_images.shape[1]):
            raise ValueError(
                f"name={shown(self.name)}, classes={shown(self.classes)}, mean={shown(self.mean)} and "
                f"std={shown(self.std)} do not fit: give a text, a tuple of texts and two tuples "
                "with one number per channel"
            )
        top = 1 + 1e-6  # for pixels in [0, 1]; as numbers of Python, which JSON can store
        mean = tuple(check_number("mean", value, least=0, below=top) for value in self.mean)
        std = tuple(check_number("std", value, above=0, below=top) for value in self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        y, y_test, C = self.train_labels, self.test_labels, len(self.classes)
        if y.is_meta:
            return
        if not torch.equal(torch.unique_consecutive(y), torch.arange(C, device=y.device)):
            raise ValueError(
                f"the training labels are not 0 to {C - 1}, sorted, with an image of each class: make data with "
                "Data.from_arrays, which sorts"
            )
        if len(wrong := y_test[(y_test < 0) | (y_test >= C)]):
            raise ValueError(f"test label {int(wrong[0])} is outside 0..{C - 1}: correct it or name every class")

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
        return fingerprint(self.train_images, self.train_labels, self.test_images, self.test_labels)

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
        c = plain(c)
        if not isinstance(c, int) or not 0 <= c < self.n_classes:
            raise ValueError(f"class {shown(c)} is outside 0..{self.n_classes - 1} of {self.name}")
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
        n = _check_draw(n, generator)
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
        n = _check_draw(n, generator)
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
        n = _check_draw(n, generator)
        return torch.randperm(len(self.train_labels), generator=generator)[:n]

    def on_device(self, chosen: Tensor) -> Tensor:
        """Copy numbers of training images to the data's device. The host does not wait for the copy."""
        if not isinstance(chosen, Tensor):
            raise ValueError(f"the numbers of images are a {type(chosen).__name__}: give a tensor")
        return to_device(chosen, self.train_images.device)

    def labels_of(self, ipc: int) -> Tensor:
        """The labels of a synthetic set: (C*ipc,) int64 on the data's device, ipc times 0, ipc times 1, ..."""
        ipc = check_number("ipc", ipc, least=1, whole=True)
        return torch.arange(self.n_classes, device=self.train_labels.device).repeat_interleave(ipc)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Data:
        """The same data with its tensors on ``device`` and its images as ``dtype``; None changes nothing."""
        device = None if device is None else device_of(device)
        if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
            raise ValueError(f"images cannot become {shown(dtype)}: give a type of floats, as torch.float32")
        return replace(
            self,
            train_images=self.train_images.to(device=device, dtype=dtype),
            train_labels=self.train_labels.to(device=device),
            test_images=self.test_images.to(device=device, dtype=dtype),
            test_labels=self.test_labels.to(device=device),
        )

    def rescaled(self, mean: Sequence[float] | float, std: Sequence[float] | float) -> Data:
        """The same images, normalised by other constants: those of a condensed set, for instance.

        Each number x becomes (x * std + mean - new mean) / new std, computed in float64 and rounded once. So the
        pixels stay the same to rounding, but not to the bit: `gmlib.load_data` and `from_arrays` take the constants
        too, and give the same bits as for the data that the set was made from.

        Parameters
        ----------
        mean, std : sequence of float, or float
            One number per channel, for pixels in [0, 1], such as ``S.mean`` and ``S.std``.

        Returns
        -------
        Data

        Raises
        ------
        ValueError
            If the numbers do not fit.
        """
        channels = self.shape[0]
        means = _checked_numbers(self.name, "mean", mean, channels)
        stds = _checked_numbers(self.name, "std", std, channels)
        new = replace(self, mean=tuple(means.tolist()), std=tuple(stds.tolist()))
        _check_scale(self.name, means, stds, [np.zeros(channels), np.ones(channels)], None)

        def changed(images: Tensor) -> Tensor:
            return rescaled(images, self.mean, self.std, new.mean, new.std)

        return replace(new, train_images=changed(self.train_images), test_images=changed(self.test_images))

    @classmethod
    def from_arrays(
        cls,
        name: str,
        train_images: Images,
        train_labels: Labels,
        test_images: Images | None = None,
        test_labels: Labels | None = None,
        *,
        classes: Sequence[str] | None = None,
        layout: str | None = None,
        test_share: float = 0.2,
        seed: int = 0,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        origin: str = "",
    ) -> Data:
        """Check, sort and normalise arrays. The given arrays are not changed.

        Besides the given arrays and the float32 images of the result, it needs at most some 150 MB, or 12 bytes for
        each number of one image if that is more.

        Parameters
        ----------
        name : str
        train_images, test_images : ndarray or Tensor
            uint8 in 0..255, or floats in [0, 1]. Grey images: (N, height, width). Images with 1 or 3 channels:
            (N, channels, height, width) or (N, height, width, channels), see ``layout``. Without test images, a part
            of the training images is kept for testing, see ``test_share``.
        train_labels, test_labels : ndarray, Tensor or sequence
            (N,) or (N, 1): integers in 0..C-1, or the names of the classes. Each class needs a training image. A
            class without test images is logged.
        classes : sequence of str, optional
            The names of the C classes, in the order of their numbers. None gives ``"0"``, ``"1"``, ... up to the
            largest training label; for labels that are names, it sorts them. Other whole numbers than 0..C-1 can be
            names too: for labels 1 to 10, give ``classes=range(1, 11)``.
        layout : {"CHW", "HWC"}, optional
            Where the channels are: before height and width, or after them. None takes the axis with 1 or 3 numbers.
            If both have as many, None takes "CHW" for a Tensor, as all of torch does, and refuses an ndarray.
        test_share : float
            The share of each class, between 0 and 1, that is kept for testing if there are no test images: at least
            one image if the class has two. Which ones is drawn with ``seed``, and ``origin`` says so.
        seed : int
            For ``test_share``.
        mean, std : sequence of float, optional
            One number per channel, for pixels in [0, 1]. None measures them on the training images and rounds them to
            4 decimals, as such constants are published. If a std is below 0.001, its channel gets as many decimals as
            6 digits of the std need. A constant channel gets a std of 1.
        origin : str
            Where this copy of the data comes from.

        Returns
        -------
        Data
            On the CPU.

        Raises
        ------
        ValueError
            If an array does not fit, all training images are equal, or mean and std have another scale than the
            pixels, for instance 0..255. The message says which one and why.
        """
        if not (isinstance(name, str) and name.strip() and isinstance(origin, str)):
            raise ValueError(f"name={shown(name)} and origin={shown(origin)} do not fit: give a name and a text")
        if (test_images is None) != (test_labels is None):
            given, missing = ("labels", "images") if test_images is None else ("images", "labels")
            raise ValueError(f"{name}: there are test {given} but no test {missing}: give both, or none for a split")
        train = _checked_images(train_images, f"{name} training", layout)
        y_train = _checked_labels(train_labels, len(train), f"{name} training")
        if test_images is None or test_labels is None:
            test, y_test = train, y_train[:0]
        else:
            test = _checked_images(test_images, f"{name} test", layout)
            y_test = _checked_labels(test_labels, len(test), f"{name} test")
        if train.shape[1:] != test.shape[1:]:
            shapes = f"{tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
            raise ValueError(
                f"{name}: training and test images differ, {shapes}: give both the same (channels, height, width)"
            )
        y, y_t, names = _numbered(name, classes, y_train, y_test)
        chosen = chosen_test = None  # None: all of them
        if test_images is None:
            chosen, chosen_test = split(name, y, test_share, seed)
            y_t, y = y[chosen_test], y[chosen]
            said = f"{100 * test_share:g} % of each class for testing, split with seed {seed}"
            origin = f"{origin}, {said}" if origin else said
        _warn_without_test(name, names, y_t)
        found = _measured(train, f"{name} training", chosen)
        found_test = _measured(test, f"{name} test", chosen_test)
        mean, std = _checked_scale(name, mean, std, found, found_test)
        order = torch.argsort(y, stable=True)
        x = _normalised(train, mean, std, order if chosen is None else chosen[order])
        x_test = _normalised(test, mean, std, chosen_test)
        return cls(name, names, mean, std, x, y[order], x_test, y_t, origin)

    @classmethod
    def from_dataset(
        cls,
        train: Any,
        test: Any = None,
        *,
        name: str | None = None,
        size: int | tuple[int, int] | None = None,
        classes: Sequence[str] | None = None,
        layout: str | None = None,
        test_share: float = 0.2,
        seed: int = 0,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        origin: str = "",
        progress: bool = True,
    ) -> Data:
        """Read a torch ``Dataset``, such as torchvision's, an ``ImageFolder``, a ``Subset`` or a ``TensorDataset``.

        Each item is read once. So leave out random transforms: what they give once would stay. Leave out a transform
        that normalises too, as Data normalises.

        Parameters
        ----------
        train, test : Dataset or sequence
            Their items are (image, label), or dicts with ``image`` (or ``img``) and ``label``, as Hugging Face's are.
            An image is a PIL image, or a Tensor or array of uint8 or of floats in [0, 1], (height, width) or with 1
            or 3 channels before or after them. PIL images are turned as their EXIF data say. Without ``test``, a part
            of ``train`` is kept for testing, see ``test_share``.
        name : str, optional
            None takes the type of the dataset, such as "ImageFolder", or "images" for a list.
        size : int or (int, int), optional
            Resize the images to (height, width) in pixels, or to a square, bicubically and smoothed, with values
            outside the range of pixels cut off. Images of unlike sizes need it.
        classes : sequence of str, optional
            The names of the classes, in the order of their numbers. None takes ``train.classes`` where it is; classes
            without an image are then left out, and logged. See `from_arrays` for data without names.
        layout, test_share, seed, mean, std, origin
            As in `from_arrays`.
        progress : bool
            Show a progress bar while reading.

        Returns
        -------
        Data
            On the CPU. If some images are grey and others in colour, the grey ones get three equal channels.

        Raises
        ------
        ValueError
            If an item does not fit, or the images have different sizes and ``size`` is None.
        """
        from .datasets import read_datasets  # that module imports this one

        kind, arrays = read_datasets(train, test, classes, layout, size, progress)
        if isinstance(origin, str) and not origin:
            origin = "a list of images" if kind == "images" else f"a dataset of type {kind}"
            origin += "" if size is None else ", resized"
        options: dict[str, Any] = {"test_share": test_share, "seed": seed, "mean": mean, "std": std, "origin": origin}
        return cls.from_arrays(kind if name is None else name, **arrays, layout="HWC", **options)


def _check_draw(n: int, generator: torch.Generator) -> int:
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"the generator is a {type(generator).__name__}: give a torch.Generator")
    return check_number("n", n, least=1, whole=True)


def _array(values: Any) -> np.ndarray:
    """Anything as an array. What numpy refuses becomes an array of one object, which no check accepts."""
    try:
        return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except Exception:  # of any kind, as the objects in a list have their own ways to become arrays
        return np.asarray(None)


def _checked_images(images: Images, what: str, layout: str | None = None, *, one: bool = False) -> Images:
    """Images of uint8 or floats as a view (N, channels, height, width). Their values are not checked.

    Parameters
    ----------
    images : ndarray or Tensor
        (N, height, width), (N, channels, height, width) or (N, height, width, channels) with 1 or 3 channels.
    what : str
        What they are, for the message.
    layout : {"CHW", "HWC"}, optional
        See `Data.from_arrays`.
    one : bool
        True for a single image, without N.

    Raises
    ------
    ValueError
        If type or shape do not fit.
    """
    if layout is not None:
        choose(LAYOUTS, "layout", layout)
    if isinstance(images, Tensor):
        x: Any = images.detach()
        fits = x.dtype == torch.uint8 or x.is_floating_point()
        dtype = x.dtype if x.layout == torch.strided and not x.is_meta else f"{x.layout} on {x.device}"
        fits = fits and dtype == x.dtype
    else:
        x = _array(images)
        dtype = x.dtype
        fits = dtype == np.uint8 or dtype.kind == "f"
    if not fits:
        are = "is" if one else "images are"
        raise ValueError(f"{what} {are} of type {dtype}: give uint8 (0..255) or floats in [0, 1]")
    shape = tuple(x.shape)
    what = f"{what} has" if one else f"{what} images have"
    x = x[None] if one else x
    if x.ndim == 3:
        x = x[:, None]
        axis = 1
    else:
        axis = _axis_of_channels(tuple(x.shape), shape, what, layout, isinstance(x, Tensor), "" if one else "N, ")
    if 0 in shape:
        raise ValueError(f"{what} shape {shape}: give at least one image of at least one pixel")
    if axis == 1:
        return x
    return x.movedim(axis, 1) if isinstance(x, Tensor) else np.moveaxis(x, axis, 1)


def _axis_of_channels(
    x: tuple[int, ...], shape: tuple[int, ...], what: str, layout: str | None, in_torch: bool, n: str
) -> int:
    """The axis of the channels in the shape x = (N, ...) of images, which the caller gave in this shape."""
    possible = [name for name, axis in LAYOUTS.items() if len(x) == 4 and x[axis] in (1, 3)]
    if layout in possible:
        return LAYOUTS[layout]
    if layout is None and possible:
        if len(possible) == 2 and not in_torch:
            raise ValueError(
                f"{what} shape {shape}, which can be read in two ways: say where the channels are, "
                'by layout="CHW" (before height and width) or layout="HWC" (after them)'
            )
        return LAYOUTS[possible[0]]
    if possible:
        advice = f"layout={possible[0]!r} fits them, or leave layout out"
    elif len(x) == 4 and 4 in (x[1], x[3]):
        advice = "take three of the four channels, without transparency"
    elif len(x) == 2 and not n:
        advice = "give (height, width), or add 1 or 3 channels"
    else:
        advice = (
            f"give ({n}height, width), or with 1 or 3 channels ({n}channels, height, width) or "
            f"({n}height, width, channels)"
        )
    raise ValueError(f"{what} shape {shape}: {advice}")


def _checked_labels(labels: Labels, n: int, what: str) -> Tensor | list[str]:
    """(n,) int64 on the CPU, or the names of n classes."""
    y = _array(labels)
    if y.shape == (n, 1):
        y = y[:, 0]
    values = y.tolist() if y.shape == (n,) and y.dtype.kind in "UO" else []
    if values and all(isinstance(value, str) for value in values):
        if not all(value.strip() for value in values):
            raise ValueError(f"a label of the {what} images is an empty text: give the name of its class")
        return values
    if y.shape != (n,) or y.dtype.kind not in "iu":
        advice = f"give one whole number or class name per image, {n} in all"
        if y.ndim == 2 and len(y) == n:
            advice += ", such as labels.argmax(1) if they are one-hot"
        elif y.dtype.kind == "f" and (y == y.round()).all():
            advice += ", such as labels.astype(int)"
        raise ValueError(f"{what} labels are {y.dtype} of shape {y.shape}: {advice}")
    return torch.from_numpy(y.astype(np.int64))


def _numbered(
    name: str, classes: Any, y_train: Tensor | list[str], y_test: Tensor | list[str]
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The labels of both parts in 0..C-1, and the names of the classes."""
    classes = plain(classes)
    if classes is not None and (
        not isinstance(classes, Collection) or isinstance(classes, (str, bytes, Mapping, set, frozenset))
    ):
        raise ValueError(f"{name}: classes={shown(classes)} does not fit: give a list of the names of the classes")
    number_of: dict[Any, int] = {}
    if isinstance(y_train, list) and isinstance(y_test, list):
        if classes is None:
            classes = sorted(set(y_train))
        number_of = {str(plain(each)): c for c, each in enumerate(classes)}
    elif isinstance(y_train, list) or isinstance(y_test, list):
        kinds = ("names", "numbers") if isinstance(y_train, list) else ("numbers", "names")
        raise ValueError(f"{name}: training labels are {kinds[0]} and test labels {kinds[1]}: give both as names")
    elif classes is not None and len(classes) <= len(y_train) and ((y_train < 0) | (y_train >= len(classes))).any():
        numbers = [plain(each) for each in classes]
        if all(isinstance(each, int) for each in numbers) and set(y_train.tolist()) <= set(numbers):
            number_of = {each: c for c, each in enumerate(numbers)}
    y, y_t = (_looked_up(name, *each, number_of) for each in (("training", y_train), ("test", y_test)))
    return y, y_t, _checked_classes(name, classes, y, y_t)


def _looked_up(name: str, part: str, labels: Tensor | list[str], number_of: Mapping[Any, int]) -> Tensor:
    """The numbers of classes. Without ``number_of`` the labels are these numbers."""
    if isinstance(labels, Tensor) and not number_of:
        return labels
    values: list[Any] = labels if isinstance(labels, list) else labels.tolist()
    if unknown := [value for value in values if value not in number_of]:
        advice = "name every class" if part == "training" else "remove its images, as no training image has it"
        raise ValueError(
            f"{name}: the {part} label {shown(unknown[0])} is not among the {len(number_of)} classes "
            f"{shown(list(number_of))}: correct it, or {advice}"
        )
    return torch.tensor([number_of[value] for value in values], dtype=torch.int64)


def _checked_classes(name: str, classes: Any, y_train: Tensor, y_test: Tensor) -> tuple[str, ...]:
    """The names of the classes, if the labels lie in 0..C-1 and each class has a training image and its own name."""
    present = torch.unique(y_train).tolist()
    as_names = ""
    if classes is None:
        classes = range(min(present[-1] + 1, sys.maxsize))  # not yet a list, since a wrong label can be large
        few = f"classes={present}" if len(present) <= 10 else "classes=sorted(set(labels))"
        in_a_row = present[-1] - present[0] == len(present) - 1
        few = f"classes=range({present[0]}, {present[-1] + 1})" if in_a_row else few
        as_names = f", or give {few} to keep the numbers as names"
        if in_a_row and present[0] > 0:
            raise ValueError(
                f"{name}: training labels are {present[0]} to {present[-1]}, but classes are numbered from 0: "
                f"subtract {present[0]}{as_names}"
            )
    C = len(classes)
    if C < 2 and len(present) < 2:
        raise ValueError(f"{name} has {C} class: give data with at least 2")
    for part, labels in (("training", y_train), ("test", y_test)):
        wrong = labels[(labels < 0) | (labels >= C)]
        if len(wrong):
            advice = "correct it or name every class" + (as_names if part == "training" else "")
            if part == "training" and not as_names and len(present) == C:
                advice = "number the classes from 0"
            raise ValueError(f"{name}: {part} label {wrong[0]} is outside 0..{C - 1}: {advice}")
    if len(present) < C:
        c = next((c for c, label in enumerate(present) if c != label), len(present))
        missing = str(next(islice(classes, c, None)))
        raise ValueError(
            f"{name}: class {missing!r} (label {c}) has no training image: add some, or remove the class and number "
            f"the others from 0 without gaps{as_names}"
        )
    names = [plain(each) for each in classes]
    odd = [each for each in names if not isinstance(each, (str, int, float))]
    if odd:
        raise ValueError(f"{name}: the class name {shown(odd[0])} is no text: give each class a name")
    names = [str(each) for each in names]
    if len(set(names)) < C:
        raise ValueError(f"{name}: two classes are named {max(names, key=names.count)!r}: give each its own name")
    return tuple(names)


def _warn_without_test(name: str, classes: Sequence[str], y_test: Tensor) -> None:
    C = len(classes)
    if without := sorted(set(range(C)) - set(y_test.tolist())):
        log.warning(
            "%s: %d of %d classes have no test image (%s): accuracies count over the others",
            name,
            len(without),
            C,
            ", ".join(classes[c] for c in without[:5]) + (", ..." if len(without) > 5 else ""),
        )


def split(name: str, labels: Tensor, test_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split images, each class for itself.

    Parameters
    ----------
    name : str
        Of the data, for messages.
    labels : Tensor
        (N,) int64.
    test_share : float
        Between 0 and 1. A class of two images or more gives at least one to each part. A single one is for training.
    seed : int
        Decides which ones.

    Returns
    -------
    train, test : Tensor
        Their positions, int64 and ascending.

    Raises
    ------
    ValueError
        If ``test_share`` or ``seed`` do not fit, or each class has one image.
    """
    test_share = check_number("test_share", test_share, above=0, below=1)
    rng = torch.Generator().manual_seed(check_number("seed", seed, least=0, below=2**63, whole=True))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for c in torch.unique(labels):
        places = (labels == c).nonzero().flatten()
        n = len(places)
        n_test = min(n - 1, max(1, round(n * test_share)))
        is_test[places[torch.randperm(n, generator=rng)[:n_test]]] = True
    if not is_test.any():
        raise ValueError(
            f"{name}: each class has one image, so none is left for testing: add at least one to a class"
        )
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()


def _piece_of(images: Images) -> int:
    """How many images make one piece."""
    return min(256, max(1, PIECE // math.prod(images.shape[1:])))


def _pieces(images: Images, order: Tensor | None = None) -> Iterator[Tensor]:
    """Parts of the images on the CPU, in this order: uint8, float32 or float64 (n, channels, height, width)."""
    n = _piece_of(images)
    for i in range(0, len(images) if order is None else len(order), n):
        if order is None:
            part = images[i : i + n]
        elif isinstance(images, np.ndarray):
            part = images[order[i : i + n].numpy()]  # numpy takes a tensor of one number for that number
        else:
            part = images[order[i : i + n].to(images.device)]
        if isinstance(part, np.ndarray):
            yield torch.from_numpy(np.array(part, np.uint8 if part.dtype == np.uint8 else np.float32, order="C"))
        else:
            part = part.cpu()
            yield part if part.dtype in (torch.uint8, torch.float64) else part.float()


class _Measured(NamedTuple):
    """What images look like, for pixels in [0, 1]: (channels,) float64 arrays, and what is equal in all of them."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    are_flat: bool  # every image has one value per channel
    are_equal: bool  # to each other


def _measured(images: Images, what: str, chosen: Tensor | None = None) -> _Measured:
    """Measure images, or those chosen, if floats lie in [0, 1]. Sums are in float64."""
    channels, pixels = images.shape[1], math.prod(images.shape[2:])
    n = (len(images) if chosen is None else len(chosen)) * pixels
    low = torch.full((channels,), torch.inf, dtype=torch.float64)
    high = -low
    sums = torch.zeros(2, channels, dtype=torch.float64)
    first, are_flat, are_equal, top = None, pixels > 1, True, 1
    for piece in _pieces(images, chosen):
        top = 255 if piece.dtype == torch.uint8 else 1
        lows, highs = piece.flatten(2).amin(2), piece.flatten(2).amax(2)  # NaN if any pixel is NaN
        first = piece[0].clone() if first is None else first
        are_flat = are_flat and torch.equal(lows, highs)
        are_equal = are_equal and bool((piece == first).all())
        low, high = low.minimum(lows.amin(0) / top), high.maximum(highs.amax(0) / top)
        x = piece.to(torch.float64, copy=True).div_(top)
        sums += torch.stack([x.sum((0, 2, 3)), x.square_().sum((0, 2, 3))])
    if not (low.min() >= 0 and high.max() <= 1):
        least, most = low.min().item(), high.max().item()
        if low.isnan().any():
            problem, advice = "NaN", "floats must lie in [0, 1]"
        else:
            problem = f"values from {least:.4g} to {most:.4g}"
            advice = "floats must lie in [0, 1], so leave out a step that normalises them, as Data does that itself"
            if least >= 0 and 2 < most <= 255:
                advice = "floats must lie in [0, 1], so divide by 255, or give uint8"
        raise ValueError(f"{what} images contain {problem}: {advice}")
    mean, square = sums / n
    varies = low.float() < high.float()  # in float32, in which the images are kept
    std = (square - mean**2).clamp(min=0).sqrt() * varies
    if (small := varies & (std < SMALL_STD)).any():  # the difference of squares has lost its digits
        pieces = _pieces(images, chosen)
        squares = sum((p.double() / top - mean.view(-1, 1, 1)).square_().sum((0, 2, 3)) for p in pieces)
        std = torch.where(small, (squares / n).sqrt(), std)
    return _Measured(low.numpy(), high.numpy(), mean.numpy(), std.numpy(), are_flat, are_equal)


def _as_published(mean: float, std: float) -> tuple[float, float]:
    """Round to 4 decimals, or to 6 digits of a small std. A std of 0 becomes 1."""
    decimals = 4 if std == 0 or std >= SMALL_STD else 5 - math.floor(math.log10(std))
    return round(mean, decimals), round(std, decimals) or 1.0


def _checked_scale(
    name: str, mean: Any, std: Any, found: _Measured, found_test: _Measured
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std, measured unless given, if they fit the pixels. What makes a set hard to learn is logged."""
    varies = found.std > 0
    if found.are_equal or not varies.any():
        raise ValueError(
            f"{name}: all training images are equal, so no class can be learned: check how they were read"
        )
    measured = [_as_published(*each) for each in zip(found.mean.tolist(), found.std.tolist(), strict=True)]
    measured_mean, measured_std = zip(*measured, strict=True)
    means = _checked_numbers(name, "mean", measured_mean if mean is None else mean, len(varies))
    stds = _checked_numbers(name, "std", measured_std if std is None else std, len(varies))
    bounds = [bound for each in (found, found_test) for bound in each[:2]]
    _check_scale(name, means, stds, bounds, np.stack([found.mean, found.std]))
    real, real_test = (np.stack([each.mean, each.std])[:, varies] for each in (found, found_test))
    if _are_255_apart(real, real_test):
        raise ValueError(
            f"{name}: training and test images have different scales (a channel has a std of {real[1, 0]:.2g} and "
            f"{real_test[1, 0]:.2g}): divide both by 255, or none"
        )
    spread = (found.std / stds)[varies]
    worst = spread[np.abs(np.log(spread)).argmax()]
    for problem, is_found in {
        f"channel {np.argmin(varies)} is the same in all training images": not varies.all(),
        "each training image has one colour only": found.are_flat,
        f"a channel of the normalised images has a std of {worst:.2g}": not 0.02 <= worst <= 50,
    }.items():
        if is_found:
            log.warning("%s: %s, so S may learn little: check how the images were read", name, problem)
    return tuple(means.tolist()), tuple(stds.tolist())


def _check_scale(
    name: str, means: np.ndarray, stds: np.ndarray, bounds: Sequence[np.ndarray], real: np.ndarray | None
) -> None:
    """ValueError if mean and std have another scale than pixels within ``bounds``, whose own are ``real``, (2, n)."""
    if stds.min() <= 0:
        raise ValueError(f"{name}: std={tuple(stds.tolist())} does not fit: give numbers above 0")
    with np.errstate(over="ignore"):
        farthest = max(np.abs((bound - means) / stds).max() for bound in bounds)
    outside = means.min() < 0 or max(means.max(), stds.max()) > 1 or farthest > 1e9
    varies = slice(None) if real is None else real[1] > 0
    if outside or (real is not None and _are_255_apart(np.stack([means, stds])[:, varies], real[:, varies])):
        found = ""
        if real is not None:
            measured = [_as_published(*each) for each in real.T.tolist()]
            found = f" (mean and std are {', '.join(f'{m:g} and {s:g}' for m, s in measured)})"
        raise ValueError(
            f"{name}: mean {tuple(means.tolist())} and std {tuple(stds.tolist())} have another scale than the "
            f"pixels{found}: give both for pixels in [0, 1], or leave them out"
        )


def check_constants(name: str, mean: Any, std: Any, usual: tuple[Sequence[float], Sequence[float]] | None) -> None:
    """Check constants before images are read.

    Parameters
    ----------
    name : str
    mean, std
        As in `Data.from_arrays`.
    usual : pair of sequence of float, optional
        The known mean and std of these images. None if they are not known.

    Raises
    ------
    ValueError
        If the numbers do not fit.
    """
    if mean is None and std is None:
        return
    if usual is None:
        channels = 3 if 3 in (np.size(_array(mean)), np.size(_array(std))) else 1
        instead: Any = ([0.5] * channels, [0.5] * channels)  # they fit all images
    else:
        channels, instead = len(usual[0]), usual
    means = _checked_numbers(name, "mean", instead[0] if mean is None else mean, channels)
    stds = _checked_numbers(name, "std", instead[1] if std is None else std, channels)
    bounds = [np.zeros(channels), np.ones(channels)]
    _check_scale(name, means, stds, bounds, None if usual is None else np.array(usual))


def _checked_numbers(name: str, what: str, given: Any, n: int) -> np.ndarray:
    """(n,) float64."""
    numbers = np.atleast_1d(_array(given))
    if numbers.shape != (n,) or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise ValueError(
            f"{name}: {what}={shown(given)} does not fit: give {n} finite number{'s' * (n > 1)}, one per channel"
        )
    return numbers.astype(np.float64)


def _are_255_apart(one: np.ndarray, other: np.ndarray) -> bool:
    """True if all numbers of one array are about 255 times, or a 255th of, those of the other."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a 0 or a negative number is not apart in this way
        return bool((np.abs(np.abs(np.log(one / other)) - np.log(255)) < 0.25).all())


def _normalised(images: Images, mean: Sequence[float], std: Sequence[float], order: Tensor | None = None) -> Tensor:
    """The normalised images in this order as a new float32 tensor. Nothing else of its size is made."""
    n = len(images) if order is None else len(order)
    x = torch.empty((n, *images.shape[1:]), dtype=torch.float32)
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    rest = x
    for piece in _pieces(images, order):
        part, rest = rest[: len(piece)], rest[len(piece) :]
        part.copy_(piece)
        if piece.dtype == torch.uint8:
            part.div_(255)
        part.sub_(shift).div_(scale)
    return x


def rescaled(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    new_mean: Sequence[float],
    new_std: Sequence[float],
) -> Tensor:
    """The same pixels, normalised by other numbers: (x * std + mean - new mean) / new std, in float64.

    Equal numbers change no bit.
    """
    if (tuple(mean), tuple(std)) == (tuple(new_mean), tuple(new_std)):
        return images
    m, s, m2, s2 = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (mean, std, new_mean, new_std))
    found = torch.empty_like(images)
    n = _piece_of(images)
    for part, result in zip(images.detach().split(n), found.split(n), strict=True):
        result.copy_((part.cpu().double() * s + m - m2) / s2)
    return found


def check_data(data: Any) -> None:
    """ValueError unless this is a Data."""
    if not isinstance(data, Data):
        raise ValueError(f"data is a {type(data).__name__}: give a Data, as gmlib.load_data returns it")


def check_ipc(data: Data, ipc: int, from_real: bool = True) -> int:
    """Check a number of images per class.

    Parameters
    ----------
    data : Data
    ipc : int
    from_real : bool
        True if a set consists of training images or starts from them. Then each class needs ``ipc`` of them.

    Returns
    -------
    int
        ``ipc``

    Raises
    ------
    ValueError
        If ``ipc`` does not fit.
    """
    check_data(data)
    ipc, largest, why = plain(ipc), min(data.counts), "the size of its smallest class"
    if not from_real:
        largest = LARGEST_SET // (data.n_classes * math.prod(data.shape))
        why = f"so that the set has at most {LARGEST_SET} numbers"
    if not isinstance(ipc, int) or isinstance(ipc, bool) or not 1 <= ipc <= largest:
        raise ValueError(f"ipc={shown(ipc)} does not fit {data.name}: give a whole number from 1 to {largest}, {why}")
    return ipc
