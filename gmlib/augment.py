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
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import choose

# The operations that the paper's protocol uses while training on S. These data sets train for 1000 epochs.
DATASET_OPERATIONS: dict[str, tuple[str, ...]] = {"MNIST": ("shift", "stretch", "turn")}
BATCHNORM_OPERATIONS = ("shift", "noise")  # for networks with BatchNorm, on any data set
MAX_SHIFT = 4  # pixels
MAX_STRETCH = 0.2  # of each side
MAX_DEGREES = 45
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


# The details, such as the one-sided ranges of whole numbers, are those of the baseline's published code.


def _draw_shifts(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randint(1 - MAX_SHIFT, MAX_SHIFT + 1, (n, 2), generator=rng)  # down, right


def _draw_sizes(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    factors = _between(_uniform(rng, n, 2), 1 - MAX_STRETCH, 1 + MAX_STRETCH)
    return (factors * torch.tensor(shape[-2:])).long()  # (n, 2): the new height and width, in whole pixels


def _draw_degrees(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randint(-MAX_DEGREES, MAX_DEGREES, (n,), generator=rng)


def _draw_noise(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randn((n, *shape), generator=rng)


def _shift_by(x: Tensor, shifts: Tensor, fill: Tensor) -> Tensor:
    down, right = shifts.T
    return _shift(x, down, right, fill)


def _stretch(x: Tensor, sizes: Tensor, fill: Tensor) -> Tensor:
    """Resize each image about its centre to its own height and width, by nearest pixels, and fill with 0."""
    canvas = torch.tensor(x.shape[-2:]).amax().maximum(sizes.amax(1))  # (n,): a square that holds both sizes

    def read(side: int, size: Tensor) -> Tensor:
        # The row or column of the resized image that becomes row or column 0.
        first = (canvas - side) // 2 - (canvas - size) // 2
        place = torch.arange(side) + first[:, None]
        source = place * (torch.tensor(side, dtype=torch.float32) / size)[:, None]  # rounded as F.interpolate does
        return torch.where((place >= 0) & (place < size[:, None]), source.long(), -1)

    height, width = x.shape[-2:]
    return _read(x, read(height, sizes[:, 0]), read(width, sizes[:, 1]), 0.0)


def _turn_by_degrees(x: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """Turn x anticlockwise about its centre by ``degrees`` (n,), an integer on the CPU, by cubic splines.

    The published code turns it with scipy onto a canvas that holds the whole image, and cuts out the middle. If an
    odd number of rows or columns is cut off, one more is cut off below or right, so what is kept is half a pixel off.
    """
    height, width = x.shape[-2:]
    angle = _on_device_of(x, degrees).double().deg2rad()[:, None, None]
    cos, sin = angle.cos(), angle.sin()

    def from_centre(side: int, canvas: Tensor) -> Tensor:
        half = ((canvas + 0.5).long() - side) % 2 / 2
        return torch.arange(side, device=x.device) - (side - 1) / 2 - half

    down = from_centre(height, cos * height + sin.abs() * width).mT
    right = from_centre(width, sin.abs() * height + cos * width)
    row = (height - 1) / 2 + cos * down + sin * right  # (n, height, width)
    column = (width - 1) / 2 - sin * down + cos * right
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
    x64 = x.double()  # not rounded to TF32, and no matter for autocast
    coefficients = _on_device_of(x64, _spline(height)) @ x64 @ _on_device_of(x64, _spline(width)).T
    coefficients = coefficients.to(x.dtype).flatten(2)
    first_row, first_column = row.floor().clamp(0, height - 1), column.floor().clamp(0, width - 1)
    first = (first_row * (width + 3) + first_column).long().flatten(1)[:, None].expand(-1, x.shape[1], -1)
    across = _spline_weights((column - first_column)[:, None].to(x.dtype))
    turned = torch.zeros_like(x)
    for i, weight_down in enumerate(_spline_weights((row - first_row)[:, None].to(x.dtype))):
        line = torch.zeros_like(x)
        for j, weight_across in enumerate(across):
            near = coefficients[:, :, i * (width + 3) + j :].gather(2, first).view_as(x)
            line.addcmul_(near, weight_across)
        turned.addcmul_(line, weight_down)
    return torch.where(inside[:, None], turned, fill.mean(1, keepdim=True))


def _noise(x: Tensor, drawn: Tensor, fill: Tensor) -> Tensor:
    return x + NOISE_STD * _on_device_of(x, drawn)


OPERATIONS: dict[str, Operation] = {
    "shift": Operation(_draw_shifts, _shift_by),
    "stretch": Operation(_draw_sizes, _stretch),
    "turn": Operation(_draw_degrees, _turn_by_degrees),
    "noise": Operation(_draw_noise, _noise),
}


def apply_operations(x: Tensor, operations: Sequence[str], rngs: Sequence[torch.Generator]) -> Tensor:
    """Vary each image by one of ``operations``, drawn evenly, once for every generator.

    Operations:

    - "shift" moves the image by -3 to 4 whole pixels, down and right.
    - "stretch" resizes its height and its width, each by a factor of 0.8 to 1.2, with nearest pixels.
    - "turn" turns it by -45 to 44 whole degrees, with cubic splines.
    - "noise" adds Gaussian noise of standard deviation 0.001.

    Parameters
    ----------
    x : Tensor
        (n, channels, height, width). Pixels from outside an image take the mean of ``x``: "shift" that of their
        channel, "turn" that of all channels. "stretch" gives them 0.
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
    Section 4.1. Ranges, fill values and interpolation are those of the published code of Zhao et al., "Dataset
    Condensation with Gradient Matching", ICLR 2021; their turn is scipy.ndimage.rotate.
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
    rows, columns = torch.arange(height) - down[:, None], torch.arange(width) - right[:, None]
    return _read(x, rows, columns, fill)


def _read(x: Tensor, rows: Tensor, columns: Tensor, fill: Tensor | float) -> Tensor:
    """Read each pixel at its row and column of x: (n, height) and (n, width), or (1, ...), int64 on the CPU."""
    height, width = x.shape[-2:]
    rows, columns = _on_device_of(x, rows)[:, None, :, None], _on_device_of(x, columns)[:, None, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    found = x.take_along_dim(rows.clamp(0, height - 1), 2).take_along_dim(columns.clamp(0, width - 1), 3)
    return torch.where(inside, found, fill)


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


@lru_cache
def _spline(side: int) -> Tensor:
    """(side + 3, side) float64: from a row of pixels to the coefficients -1 to side + 1 of the cubic B-spline
    through them. Both are mirrored at the ends.
    """
    pixels = torch.zeros(side, side, dtype=torch.float64)
    for step, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        pixels[torch.arange(side), _mirrored(torch.arange(side) + step, side)] += weight
    return pixels.inverse()[_mirrored(torch.arange(-1, side + 2), side)]


def _mirrored(place: Tensor, side: int) -> Tensor:
    period = max(2 * (side - 1), 1)
    return (place % period).minimum(-place % period)


def _spline_weights(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights of the four coefficients around a place, which is ``t`` after the second: 0 <= t < 1."""
    u = 1 - t
    return u * u * u / 6, ((3 * t - 6) * t * t + 4) / 6, ((3 * u - 6) * u * u + 4) / 6, t * t * t / 6


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"cannot vary {x.dtype} of shape {tuple(x.shape)}: give floats (n, channels, height, width) with n > 0"
        )
