"""Augmentation: the operations of the paper's phase 2 (Section 4.1), and differentiable Siamese augmentation (DSA).

Both vary images in the normalised pixel space, where 0 is the mean pixel of the data set, as the published code of
both does. DSA (Zhao and Bilen, ICML 2021; the paper's [29]) applies one randomly drawn transformation to the real and
to the synthetic images of a class at each matching step. Gradients reach the synthetic images through it.

Augmentation is our own code because kornia clamps pixels to [0, 1] and torchvision v2 takes no generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import choose

# The operations that the paper's protocol uses while training on S. These data sets train for 1000 epochs.
DATASET_OPERATIONS: dict[str, tuple[str, ...]] = {"MNIST": ("crop", "scale", "rotate")}
BATCHNORM_OPERATIONS = ("crop", "noise")  # for networks with BatchNorm, on any data set
MAX_SHIFT = 4  # pixels, of a crop
MAX_ZOOM = 0.2  # scale by 0.8 to 1.2
MAX_ANGLE = math.pi / 4  # rotate by -45 to 45 degrees
NOISE_STD = 0.001  # in normalised pixels

NO_FLIP = ("digits", "MNIST", "SVHN")  # a mirrored digit is no longer a digit


# ---- phase 2: one operation per image ----------------------------------------------------------------------


def operations_for(data_name: str, has_batchnorm: bool = False) -> tuple[str, ...]:
    """Return the names in ``OPERATIONS`` that the paper's protocol uses in phase 2, () for none.

    Parameters
    ----------
    data_name : str
    has_batchnorm : bool
        True if the trained network has BatchNorm layers: a small S gives poor estimates of their statistics.
    """
    return BATCHNORM_OPERATIONS if has_batchnorm else DATASET_OPERATIONS.get(data_name, ())


class Operation(NamedTuple):
    """A random operation in two steps, so that the numbers drawn for one network do not depend on another.

    Attributes
    ----------
    draw : callable
        (number of images n, their shape (channels, height, width), generator) -> drawn numbers (n, ...) on the CPU.
    apply : callable
        (images (n, channels, height, width), drawn numbers, fill value (1, channels, 1, 1)) -> varied images.
    """

    draw: Callable[[int, torch.Size, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]


def _draw_shifts(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2, n), generator=rng).T  # (n, 2): down, right


def _draw_strengths(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return _uniform(rng, n)


def _draw_noise(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randn((n, *shape), generator=rng)


def _crop(x: Tensor, shifts: Tensor, fill: Tensor) -> Tensor:
    down, right = shifts.T
    return _shift(x, down, right, fill)


def _scale(x: Tensor, u: Tensor, fill: Tensor) -> Tensor:
    step = 1 / _between(u, 1 - MAX_ZOOM, 1 + MAX_ZOOM)
    return _zoom(x, step, step, fill)


def _rotate(x: Tensor, u: Tensor, fill: Tensor) -> Tensor:
    return _turn(x, _between(u, -MAX_ANGLE, MAX_ANGLE), fill)


def _noise(x: Tensor, drawn: Tensor, fill: Tensor) -> Tensor:
    return x + NOISE_STD * _on_device_of(x, drawn)


OPERATIONS: dict[str, Operation] = {
    "crop": Operation(_draw_shifts, _crop),
    "scale": Operation(_draw_strengths, _scale),
    "rotate": Operation(_draw_strengths, _rotate),
    "noise": Operation(_draw_noise, _noise),
}


def apply_operations(x: Tensor, operations: Sequence[str], rngs: Sequence[torch.Generator]) -> Tensor:
    """Vary each image by one of ``operations``, drawn evenly, once for every generator.

    Operations: "crop" shifts by up to 4 whole pixels each way, "scale" zooms by 0.8 to 1.2, "rotate" turns by up to
    45 degrees, "noise" adds Gaussian noise of standard deviation 0.001.

    Parameters
    ----------
    x : Tensor
        (n, channels, height, width). Pixels from outside an image take the mean of their channel over ``x``.
    operations : sequence of str
        Names in ``OPERATIONS``. With () every copy is ``x`` itself.
    rngs : sequence of torch.Generator
        CPU generators. Each draws the same numbers as it would alone.

    Returns
    -------
    Tensor
        (len(rngs), n, channels, height, width).

    Raises
    ------
    ValueError
        For an unknown operation, or if ``x`` holds no images.

    Source
    ------
    Section 4.1.
    """
    chosen = [choose(OPERATIONS, "operation", name) for name in operations]
    _check_images(x)
    if not chosen:
        return x.expand(len(rngs), *x.shape)
    which = []
    drawn: list[list[Tensor]] = [[] for _ in chosen]  # per operation, one tensor per generator
    for rng in rngs:
        indices = torch.randint(len(chosen), (len(x),), generator=rng)
        counts = indices.bincount(minlength=len(chosen)).tolist()
        for numbers, operation, n in zip(drawn, chosen, counts, strict=True):
            numbers.append(operation.draw(n, x.shape[1:], rng))
        which.append(indices)
    fill = x.mean((0, 2, 3), keepdim=True)

    def apply(operation: Operation, numbers: list[Tensor], images: Tensor, indices: Tensor) -> Tensor:
        return operation.apply(images, torch.cat(numbers), fill)  # in the order of the images

    functions = [partial(apply, operation, numbers) for operation, numbers in zip(chosen, drawn, strict=True)]
    return _apply_by_group(x, torch.stack(which), functions)


def paper_transform(
    data_name: str, has_batchnorm: bool = False, rng: torch.Generator | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the augmentation that the paper's protocol uses in phase 2, for a training loop of your own.

    Call it on the normalised images of a whole set, once in each epoch, as `gmlib.evaluate` does::

        vary = gm.augment.paper_transform("MNIST")
        for epoch in range(1000):
            loss = F.cross_entropy(network(vary(S.images)), S.labels)

    It also takes the batches of a DataLoader, or one image as the last of torchvision's transforms. Pixels from
    outside an image take the mean of the whole set, of the batch, or of the one image.

    Parameters
    ----------
    data_name : str
        "MNIST" has augmentation for every network. Images of other data sets are returned as they are, unless the
        network has BatchNorm.
    has_batchnorm : bool
        True if the trained network has BatchNorm layers.
    rng : torch.Generator, optional
        A CPU generator. None takes torch's own, which ``torch.manual_seed`` seeds.

    Returns
    -------
    callable
        (n, channels, height, width) or (channels, height, width) floats -> a varied copy. See `apply_operations`.

    Raises
    ------
    ValueError
        If ``data_name`` is "MNIST" in another spelling, such as "mnist".

    Source
    ------
    Section 4.1.
    """
    for known in DATASET_OPERATIONS:
        if data_name != known and data_name.casefold() == known.casefold():
            raise ValueError(f"data_name={data_name!r} does not fit: write {known!r}")
    return partial(_vary, operations=operations_for(data_name, has_batchnorm), rng=rng)


def _vary(x: Tensor, operations: Sequence[str], rng: torch.Generator | None) -> Tensor:
    if x.ndim == 3:
        return _vary(x[None], operations, rng)[0]
    return apply_operations(x, operations, [rng or torch.default_generator])[0]


# ---- differentiable Siamese augmentation -------------------------------------------------------------------

# A function maps x (n, channels, height, width) and u (n or 1, 3), numbers in [0, 1) as float64 on the CPU. A single
# row of u serves all images. Image sizes are used only here, so one draw fits images of different sizes.


def _flip_siamese(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(_per_image(u[:, 0] < 0.5, x), x.flip(-1), x)


def _crop_siamese(x: Tensor, u: Tensor) -> Tensor:
    """Shift by up to 1/8 of each side, in whole pixels, and fill with 0."""
    limits = [int(side * 0.125 + 0.5) for side in x.shape[-2:]]
    down, right = (_integer(u[:, axis], 2 * limit + 1) - limit for axis, limit in enumerate(limits))
    return _shift(x, down, right, 0.0)


def _cutout_siamese(x: Tensor, u: Tensor) -> Tensor:
    """Set a rectangle of half of each side to 0. Its centre can be any pixel, so the image may cut it off."""
    hidden = []
    for axis, side in enumerate(x.shape[-2:]):
        length = int(side * 0.5 + 0.5)
        start = _integer(u[:, axis], side + 1 - length % 2) - length // 2
        place = torch.arange(side) - start[:, None]
        hidden.append((place >= 0) & (place < length))
    rows, columns = hidden
    return x.masked_fill(_on_device_of(x, rows[:, None, :, None] & columns[:, None, None, :]), 0.0)


def _scale_siamese(x: Tensor, u: Tensor) -> Tensor:
    """Zoom by 1/1.2 to 1.2, independently down and across."""
    return _zoom(x, _between(u[:, 0], 1 / 1.2, 1.2), _between(u[:, 1], 1 / 1.2, 1.2), 0.0)


def _rotate_siamese(x: Tensor, u: Tensor) -> Tensor:
    return _turn(x, math.radians(15) * _between(u[:, 0], -1, 1), 0.0)


def _colour_siamese(x: Tensor, u: Tensor) -> Tensor:
    """Change brightness, then saturation, then contrast. Saturation does not change a grey image."""
    brightness = _per_image(_between(u[:, 0], -0.5, 0.5), x)
    saturation = _per_image(_between(u[:, 1], 0, 2), x)
    contrast = _per_image(_between(u[:, 2], 0.5, 1.5), x)
    x = x + brightness
    grey = x.mean(1, keepdim=True)
    x = grey + saturation * (x - grey)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + contrast * (x - mean)


SIAMESE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flip": _flip_siamese,
    "crop": _crop_siamese,
    "cutout": _cutout_siamese,
    "scale": _scale_siamese,
    "rotate": _rotate_siamese,
    "colour": _colour_siamese,
}


@dataclass(frozen=True)
class Transform:
    """One drawn transformation, the same for every image, of any size and on any device.

    Attributes
    ----------
    operation : str
        A name in ``SIAMESE``.
    u : tuple of float
        Three numbers in [0, 1) that set its strength.
    """

    operation: str
    u: tuple[float, float, float]

    def __call__(self, x: Tensor) -> Tensor:
        """Return a varied copy of ``x`` (n, channels, height, width), differentiable with respect to ``x``."""
        _check_images(x)
        return SIAMESE[self.operation](x, torch.tensor([self.u], dtype=torch.float64))


def published_strategy(data_name: str) -> tuple[str, ...]:
    """Return DSA's published strategy for a data set: all names in ``SIAMESE``, but without "flip" for digits."""
    return tuple(name for name in SIAMESE if not (name == "flip" and data_name in NO_FLIP))


def parse_strategy(strategy: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names in a strategy such as "crop+scale" or ("crop", "scale").

    Raises
    ------
    ValueError
        For an empty strategy or an unknown name.
    """
    names = tuple(strategy.replace(" ", "").split("+")) if isinstance(strategy, str) else tuple(strategy)
    if names in ((), ("",)):
        raise ValueError(f"the strategy is empty: join one or more of {', '.join(SIAMESE)} with +")
    for name in names:
        choose(SIAMESE, "Siamese operation", name)
    return names


def draw_transform(strategy: str | Sequence[str], rng: torch.Generator) -> Transform:
    """Draw one operation of ``strategy``, evenly, and its strength.

    Parameters
    ----------
    strategy : str or sequence of str
        See `parse_strategy`.
    rng : torch.Generator
        A CPU generator.
    """
    names = parse_strategy(strategy)
    which, u = _draw(len(names), 1, rng)
    first, second, third = u[0].tolist()
    return Transform(names[int(which)], (first, second, third))


def apply_transforms(x: Tensor, strategy: str | Sequence[str], rngs: Sequence[torch.Generator]) -> Tensor:
    """Vary each image by its own operation and strength, once for every generator. For training on S in phase 2.

    The published code draws the operation once per mini-batch and only the strength per image.

    Parameters
    ----------
    x : Tensor
        (n, channels, height, width).
    strategy : str or sequence of str
        See `parse_strategy`.
    rngs : sequence of torch.Generator
        CPU generators. Each draws the same numbers as it would alone.

    Returns
    -------
    Tensor
        (len(rngs), n, channels, height, width).

    Raises
    ------
    ValueError
        For an empty strategy or an unknown name, or if ``x`` holds no images.
    """
    names = parse_strategy(strategy)
    _check_images(x)
    draws = [_draw(len(names), len(x), rng) for rng in rngs]
    which = torch.stack([indices for indices, _ in draws])
    u = torch.cat([strengths for _, strengths in draws])

    def apply(name: str, images: Tensor, indices: Tensor) -> Tensor:
        return SIAMESE[name](images, u[indices])

    return _apply_by_group(x, which, [partial(apply, name) for name in names])


# ---- the `augment` field of recipes and protocols ------------------------------------------------------------


def canonical_name(augment: str, others: Sequence[str]) -> str:
    """Return the canonical spelling of an ``augment``: one of ``others``, "dsa", or "dsa:" and a strategy.

    Raises
    ------
    ValueError
        For any other value.
    """
    kind, _, strategy = augment.partition(":") if isinstance(augment, str) else (augment, "", "")
    choose(dict.fromkeys((*others, "dsa")), "augment", kind, "dsa: and your own operations, as in dsa:crop+scale")
    if kind == augment:
        return kind
    return f"{kind}:{'+'.join(parse_strategy(strategy if kind == 'dsa' else ''))}"


def strategy_of(augment: str, data_name: str) -> tuple[str, ...]:
    """Return the names in ``SIAMESE`` that "dsa:STRATEGY" lists; for plain "dsa" the data set's published ones."""
    strategy = augment.partition(":")[2]
    return parse_strategy(strategy) if strategy else published_strategy(data_name)


def siamese_for(augment: str, data_name: str, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Draw the transformation of one class at one matching step: call it on its real and on its synthetic images.

    Parameters
    ----------
    augment : str
        As in a recipe: "none", "dsa" or "dsa:STRATEGY".
    data_name : str
    rng : torch.Generator
        A CPU generator.
    """
    if augment == "none":
        return lambda x: x
    return draw_transform(strategy_of(augment, data_name), rng)


# ---- drawing numbers ---------------------------------------------------------------------------------------


def _uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _integer(u: Tensor, n: int) -> Tensor:
    """Map [0, 1) evenly to 0..n-1."""
    return (u * n).long()


def _draw(n_operations: int, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Operations (n,) and strengths (n, 3). Always three numbers, so later draws do not depend on the operation."""
    return torch.randint(n_operations, (n,), generator=rng), _uniform(rng, n, 3)


# ---- moving pixels -----------------------------------------------------------------------------------------


def _on_device_of(x: Tensor, v: Tensor) -> Tensor:
    """Copy v from the CPU to x's device, in x's dtype if v is real, without waiting for the device."""
    return v.to(x.device, x.dtype if v.is_floating_point() else v.dtype, non_blocking=x.is_cuda)


def _per_image(v: Tensor, x: Tensor) -> Tensor:
    """v (m,) as (m, 1, 1, 1) on x's device."""
    return _on_device_of(x, v)[:, None, None, None]


def _apply_by_group(x: Tensor, which: Tensor, functions: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
    """Apply functions[which[j, i]] to image i in copy j of x: (copies, n, channels, height, width).

    Each function is called once with (its images, their ascending positions in the flattened ``which``).
    """
    flat = which.flatten()
    order = flat.argsort(stable=True)  # positions of the first function's images, then of the second's, ...
    counts = flat.bincount(minlength=len(functions)).tolist()
    order_there = _on_device_of(x, order)
    groups = zip(functions, x[order_there % len(x)].split(counts), order.split(counts), strict=True)
    varied = torch.cat([function(images, indices) for function, images, indices in groups if len(indices)])
    return torch.empty_like(varied).index_copy_(0, order_there, varied).view(*which.shape, *x.shape[1:])


def _shift(x: Tensor, down: Tensor, right: Tensor, fill: Tensor | float) -> Tensor:
    """Shift x by whole pixels. down, right: (n,) or (1,) int64 on the CPU."""
    height, width = x.shape[-2:]
    # The row and column of x that each pixel is read from.
    rows = (torch.arange(height, device=x.device) - _on_device_of(x, down)[:, None])[:, None, :, None]
    columns = (torch.arange(width, device=x.device) - _on_device_of(x, right)[:, None])[:, None, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    shifted = x.take_along_dim(rows.clamp(0, height - 1), 2).take_along_dim(columns.clamp(0, width - 1), 3)
    return torch.where(inside, shifted, fill)


def _zoom(x: Tensor, down: Tensor, across: Tensor, fill: Tensor | float) -> Tensor:
    """Zoom about the centre: a pixel covers ``down`` x ``across`` pixels of x. Both (n,) or (1,)."""
    zero = torch.zeros_like(down)
    return _resample(x, [across, zero, zero, down], fill)


def _turn(x: Tensor, angle: Tensor, fill: Tensor | float) -> Tensor:
    """Turn x anticlockwise about its centre by ``angle`` (n,) or (1,), in radians."""
    height, width = x.shape[-2:]
    cos, sin = angle.cos(), angle.sin()
    # Coordinates run from -1 to 1 along both sides, so unequal sides need their ratio.
    return _resample(x, [cos, -sin * height / width, sin * width / height, cos], fill)


def _resample(x: Tensor, matrix: Sequence[Tensor], fill: Tensor | float) -> Tensor:
    """Read x bilinearly at [[a, b], [c, d]] @ (across, down) for each pixel. The four entries are (n,) or (1,)."""
    a, b, c, d = matrix
    zero = torch.zeros_like(a)
    affine = _on_device_of(x, torch.stack([a, b, zero, c, d, zero], 1).view(-1, 2, 3))
    grid = F.affine_grid(affine, [len(affine), *x.shape[1:]], align_corners=False).expand(len(x), -1, -1, -1)
    return F.grid_sample(x - fill, grid, padding_mode="zeros", align_corners=False) + fill


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"cannot vary {x.dtype} of shape {tuple(x.shape)}: give floats (n, channels, height, width) with n > 0"
        )
