"""A synthetic set: the small training set that condensation makes. Stored as safetensors, never as pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from . import exchange, pictures
from .checks import check_number, shown
from .data import Data, Images, fingerprint, rescaled
from .exchange import Numbers, PixelLoss
from .files import as_json, as_path, check_tensor_path, damaged, read_tensors, write_tensors

SET_FORMAT = "gmlib-set-2"
STORED_DTYPES = (torch.float16, torch.float32, torch.float64)
HALF_A_STEP = 0.5 / 255  # of an 8-bit pixel: rounding a real image to float16 puts no pixel outside [0, 1]
ITS_DATA = "give the data it was made from"


class Description(msgspec.Struct):
    """What the metadata of a stored set hold as JSON, besides its format and its digest."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """A small training set, condensed or selected: some images for each of C classes.

    A notebook shows its images. gmlib makes sets with equally many images of each class. Sets of others may have
    different numbers.

    Attributes
    ----------
    images : Tensor
        (N, channels, height, width) finite floats, normalised, sorted by class. Pixels may lie outside [0, 1].
    labels : Tensor
        (N,) int64, sorted: some 0, then some 1, ... up to C-1. Each class has at least one image.
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
                "synthetic images must be floats of shape (N, channels, height, width), "
                f"not {x.dtype} of shape {tuple(x.shape)}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not _is_list(values) or len(values) != x.shape[1]:
                raise ValueError(f"{name} {values} does not fit: give {x.shape[1]} numbers, one per channel")
            above = 0 if name == "std" else -math.inf
            object.__setattr__(self, name, tuple(check_number(name, value, above=above) for value in values))
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise ValueError(f"labels must be int64, one for each of the {len(x)} images")
        wrong = y[(y < 0) | (y >= C)]
        if len(wrong):
            raise ValueError(f"label {int(wrong[0])} is outside 0..{C - 1}")
        if torch.unique_consecutive(y).tolist() != list(range(C)):
            raise ValueError(f"labels must be sorted, with at least one image of each of the {C} classes")
        if not x.isfinite().all():
            raise ValueError("synthetic images contain NaN or infinite values")

    def __repr__(self) -> str:
        return f"SyntheticSet({self._sizes(str(self.shape))}, {self._range()})"

    def _repr_html_(self) -> str | None:
        """The picture in a notebook. None without Pillow, or if it has no picture: a notebook then shows the repr."""
        try:
            return pictures.as_html(self)
        except (ModuleNotFoundError, ValueError):
            return None

    def _sizes(self, shape: str) -> str:
        n, fewest, most = len(self.images), min(self.counts), max(self.counts)
        per_class = str(most) if fewest == most else f"{fewest} to {most}"
        return f"{n} image{'s' if n > 1 else ''} of {shape}, {per_class} for each of {self.n_classes} classes"

    def _range(self) -> str:
        pixels = self.pixels(clip=False)
        low, high = (f"{round(bound.item(), 2) + 0.0:.2f}" for bound in (pixels.min(), pixels.max()))  # no "-0.00"
        outside = exchange.share(self.outside) if self.outside else "none"
        return f"pixels {low} to {high}, {outside} outside [0, 1]"

    @property
    def summary(self) -> str:
        """What it is, in a few words: numbers of images and classes, and their size."""
        return self._sizes(" × ".join(map(str, self.shape)))

    @property
    def n_classes(self) -> int:
        """Number of classes, C."""
        return len(self.classes)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of images of each class."""
        return tuple(torch.bincount(self.labels, minlength=self.n_classes).tolist())

    @property
    def ipc(self) -> int:
        """Images per class. If their numbers differ, the largest."""
        return max(self.counts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """sha256 (64 hex digits) of the shapes and bytes of the images, as float32, and of the labels."""
        return fingerprint(self.images, self.labels)

    @property
    def outside(self) -> float:
        """Share of the pixels that lie outside [0, 1] by more than rounding to 8 bits changes a pixel."""
        pixels = self.pixels(clip=False)
        beyond = (pixels < -HALF_A_STEP) | (pixels > 1 + HALF_A_STEP)
        return beyond.count_nonzero().item() / beyond.numel()

    def pixels(self, clip: bool = True) -> Tensor:
        """The images as pixels: (N, channels, height, width), with black at 0 and white at 1.

        Parameters
        ----------
        clip : bool
            True clips them to [0, 1] for display. False keeps those outside.
        """
        mean, std = (self.images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixels = self.images.detach() * std + mean
        return pixels.clamp(0, 1) if clip else pixels

    def rescaled(self, mean: Numbers, std: Numbers) -> SyntheticSet:
        """The same pixels, normalised by other numbers, for a network that is tested on images of another scale.

        Parameters
        ----------
        mean, std : sequence of float or float
            One number per channel, or one for all, for pixels in [0, 1].

        Returns
        -------
        SyntheticSet
            Its images are (images * self.std + self.mean - mean) / std, computed in float64. An accuracy that is
            known for this set is not kept, since it is for its own scale.

        Raises
        ------
        ValueError
            If the numbers do not fit.
        """
        mean, std = exchange.scale_of(mean, std, self.shape[0])

        def moved(images: Tensor) -> Tensor:
            return rescaled(images, self.mean, self.std, mean, std)

        snapshots = {k: moved(images) for k, images in self.snapshots.items()}
        images = moved(self.images)
        return SyntheticSet(images, self.labels, self.classes, mean, std, self.recipe, self.history, snapshots)

    # ---- see it

    def picture(self, full_range: bool = False) -> Any:
        """The images as one picture, with a column for each class and the names above.

        Small images are enlarged without smoothing. At most 20 classes and 20 images of each are shown; what is left
        out is logged. It needs Pillow (extra "data").

        Parameters
        ----------
        full_range : bool
            False clips pixels to [0, 1]. True shows the darkest pixel of the set as black and its lightest as white.

        Returns
        -------
        PIL.Image.Image

        Raises
        ------
        ValueError
            If the images have neither 1 nor 3 channels.
        ModuleNotFoundError
            Without Pillow.
        """
        return pictures.as_picture(self, full_range)

    def show(self, path: str | os.PathLike | None = None, full_range: bool = False) -> Path | None:
        """Show the images in a notebook, or write them as one PNG file.

        Parameters
        ----------
        path : path, optional
            A name that ends in ``.png``. An existing file is replaced, atomically.
        full_range : bool
            As in `picture`.

        Returns
        -------
        Path or None
            The file, if a path was given.

        Raises
        ------
        ValueError
            If there is neither a notebook nor a path, or the name has another ending.
        OSError
            If the file cannot be written. No partial file remains.
        """
        if path is not None:
            return pictures.write_picture(self, path, full_range)
        pictures.display(self, full_range)
        return None

    # ---- take it

    def to_folder(self, path: str | os.PathLike) -> PixelLoss:
        """Write PNG files: a folder for each class, as torchvision's ``ImageFolder`` and many other tools read them.

        Pixels are clipped to [0, 1] and rounded to 8 bits. What this loses is returned and logged, with a warning if
        pixels are clipped. For exact numbers take `to_npz` or `save`.

        A folder has the name of its class, with characters that file systems refuse replaced. Tools sort folders by
        name. If this would change the order of the labels, each name gets its label in front. README.txt explains the
        folder, and gmlib-set.json holds classes, mean and std for `from_folder`.

        Parameters
        ----------
        path : path
            A folder that is empty or does not exist yet.

        Returns
        -------
        PixelLoss
            ``largest`` and ``mean`` change of a pixel, and the share ``clipped``.

        Raises
        ------
        ValueError
            If the folder is not empty, or the images have neither 1 nor 3 channels.
        OSError
            If a file cannot be written. Nothing remains then.
        """
        return exchange.write_folder(self, path)

    def to_npz(self, path: str | os.PathLike) -> Path:
        """Write a numpy archive, atomically. The same set always gives the same bytes.

        Its arrays are ``images`` (normalised, float32; float64 for float64 images), ``labels`` (int64), ``classes``,
        ``mean``, ``std``, and ``recipe`` as a JSON text. ``numpy.load`` reads them without pickle.

        Parameters
        ----------
        path : path
            A name that ends in ``.npz``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ValueError
            If the name has another ending, or the recipe is not JSON.
        OSError
            If the file cannot be written. No partial file remains.
        """
        return exchange.write_npz(self, path)

    def to_huggingface(self) -> Any:
        """A ``datasets.Dataset`` of Hugging Face with the features ``image`` and ``label``.

        Pixels are clipped to [0, 1] and rounded to 8 bits, as in `to_folder`, and what this loses is logged. The
        package ``datasets`` must be installed; it is no dependency of gmlib.

        Raises
        ------
        ModuleNotFoundError
            Without the package ``datasets`` or without Pillow.
        ValueError
            If the images have neither 1 nor 3 channels.
        """
        return exchange.to_huggingface(self)

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

    # ---- bring one

    @classmethod
    def from_arrays(
        cls,
        images: Images,
        labels: Any,
        classes: Sequence[str] | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        *,
        normalised: bool,
        data: Data | None = None,
        layout: str | None = None,
    ) -> SyntheticSet:
        """Make a set of arrays: somebody else's, or your own choice of images. The given arrays are not changed.

        Images are sorted by class and keep their order within a class. They become float32.

        Parameters
        ----------
        images : ndarray or Tensor
            Grey images: (N, height, width). Images with 1 or 3 channels: (N, channels, height, width) or
            (N, height, width, channels), see ``layout``.
        labels : ndarray, Tensor or sequence
            (N,) class numbers 0..C-1, or names of classes.
        classes : sequence of str, optional
            The names of the C classes, in the order of the numbers. None takes those of ``data``; without it the
            sorted names among the labels, or ``"0"``, ``"1"``, ...
        mean, std : sequence of float or float, optional
            One number per channel, or one for all, for pixels in [0, 1]. None takes those of ``data``.
        normalised : bool
            What ``images`` are. This is never guessed.

            - False: pixels, as uint8 in 0..255 or as floats in [0, 1]. They are normalised by mean and std.
            - True: floats that were normalised by mean and std already. For floats whose black is 0 and white is 1,
              but which may lie outside, give ``mean=0, std=1``.
        data : Data, optional
            The data set that networks will be tested on. The set gets its classes, in its order, and its scale.
            Images that were normalised by another mean and std are rescaled.
        layout : {"CHW", "HWC"}, optional
            Where the channels are: before height and width, or after them. None takes the axis with 1 or 3 numbers.

        Returns
        -------
        SyntheticSet

        Raises
        ------
        ValueError
            If the arrays do not fit together or do not fit the data, or the scale is not known.
        """
        given = (images, labels, classes, mean, std, data)
        return cls._of(exchange.parts_from_arrays(*given, normalised=normalised, layout=layout), data)

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike,
        data: Data | None = None,
        *,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        classes: Sequence[str] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> SyntheticSet:
        """Read what `to_folder` wrote, or any folder with one folder of images for each class.

        Files are sorted by name. Their 8-bit pixels are divided by 255 and normalised. The formats are those of
        `gmlib.load_data`. Needs Pillow (extra "data").

        Parameters
        ----------
        path : path
        data : Data, optional
            The data set that networks will be tested on. The set gets its classes, in its order, and its scale.
        mean, std : sequence of float or float, optional
            One number per channel, or one for all, for pixels in [0, 1]. None takes those of ``data``, or those that
            `to_folder` wrote.
        classes : sequence of str, optional
            The names of the classes, in the order of the labels. None takes those of ``data``, or those that
            `to_folder` wrote, or the sorted names of the folders.
        size : int or (int, int), optional
            Resize the images to (height, width) in pixels, or to a square.

        Returns
        -------
        SyntheticSet

        Raises
        ------
        ValueError
            If a file is damaged, the folder does not fit the data, or the scale is not known.
        FileNotFoundError
            If there is no such folder.
        """
        return cls._of(exchange.parts_from_folder(path, data, mean, std, classes, size), data)

    @classmethod
    def from_npz(cls, path: str | os.PathLike) -> SyntheticSet:
        """Read a file that `to_npz` wrote, bit for bit. Nothing is unpickled.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged, or lacks an array. Give the arrays of another file to `from_arrays`.
        """
        return cls._of(exchange.parts_from_npz(path), None)

    @classmethod
    def from_pt(
        cls,
        path: str | os.PathLike,
        data: Data,
        labels_path: str | os.PathLike | None = None,
        which: int = -1,
        *,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        classes: Sequence[str] | None = None,
    ) -> SyntheticSet:
        """Read a .pt file of another project. Nothing is unpickled: torch loads it with ``weights_only=True``.

        These files are known:

        - ``res_DC_MNIST_ConvNet_1ipc.pt`` and others of the scripts DC, DSA and DM:
          ``{"data": [[images, labels], ...], ...}``, with one pair for each experiment;
        - ``images_best.pt`` with ``labels_best.pt`` as ``labels_path``, of MTT;
        - a pair ``(images, labels)``, or ``{"images": ..., "labels": ...}``.

        Images must be normalised floats, (N, channels, height, width). A set that was made on ZCA-whitened data has
        no pixels, so its accuracy here would mean nothing: read the file ``images_zca_*.pt`` of MTT instead, with
        ``mean=0, std=1``.

        Parameters
        ----------
        path : path
        data : Data
            The data set that networks will be tested on. The set gets its classes and its scale.
        labels_path : path, optional
            The file of the labels, if they have their own.
        which : int
            The experiment, counted from 0, or from the end with -1 for the last one.
        mean, std : sequence of float or float, optional
            What the images in the file were normalised by. None takes the numbers of the scripts, for MNIST,
            FashionMNIST, SVHN and CIFAR10. They differ from gmlib's for CIFAR10, so such images are rescaled.
        classes : sequence of str, optional
            The names of the classes in the order of the file's labels. None takes the order of ``data``.

        Returns
        -------
        SyntheticSet

        Raises
        ------
        ValueError
            If the file would have to be unpickled, holds no set, or does not fit the data, or its scale is not known.
        FileNotFoundError
            If there is no such file.

        Source
        ------
        main.py in github.com/VICO-UoE/DatasetCondensation, and distill.py in
        github.com/GeorgeCazenavette/mtt-distillation.
        """
        return cls._of(exchange.parts_from_pt(path, data, labels_path, which, mean, std, classes), data)

    @classmethod
    def _of(cls, parts: dict[str, Any], data: Data | None) -> SyntheticSet:
        """A set of these parts, if it fits the data."""
        S = cls(**parts)
        check_pair(S, data)
        return S

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
            f"and {data.std}: bring one to the scale of the other, as S.rescaled(data.mean, data.std) or "
            "data.rescaled(S.mean, S.std)"
        )


def _names(classes: Iterable[str]) -> str:
    """The first of these classes by name; empty if there is none."""
    names = list(classes)
    listed = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"the class{'es' if len(names) > 1 else ''} {listed}" if names else ""
