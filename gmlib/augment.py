"""Varied images: the augmentation of phase 2 (Section 4.1), and differentiable Siamese augmentation (the paper's [29]).

Both vary images in the normalised pixel space, where 0 is the mean pixel of the data set, as the published code of either does.
Siamese augmentation (Zhao and Bilen, ICML 2021) applies one randomly drawn transformation to the real and to the synthetic
images of a class at each matching step; gradients reach the synthetic images through it.

This is torch's affine_grid, grid_sample and take_along_dim, not kornia: its colour operations clip to pixels in [0, 1] and turn
saturation in HSV, which normalised pixels do not survive, and its draws come from the global random state, not a generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import choose

# Data sets whose images the paper's protocol varies while training on S, and with what; these train for 1000 epochs.
AUGMENTED: dict[str, tuple[str, ...]] = {"MNIST": ("crop", "scale", "rotate")}
WITH_BATCHNORM = ("crop", "noise")  # the same for networks with BatchNorm, whatever the data
PAD = 4  # pixels, the largest shift of a crop
STRETCH = 0.2  # scale: 0.8 to 1.2 times the size
TURN = math.pi / 4  # rotate: up to this angle, either way
NOISE = 0.001  # standard deviation, in normalised pixels

NO_FLIP = ("digits", "MNIST", "SVHN")  # a mirrored digit is no digit


# ---- phase 2: each image gets one of the operations listed for its data set ---------------------------------


def operations_for(data_name: str, has_batchnorm: bool = False) -> tuple[str, ...]:
    """Names in OPERATIONS with which the paper's protocol varies images in phase 2; () where it varies none.

    has_batchnorm: whether the trained network has BatchNorm layers, whose statistics a small S measures badly.
    """
    return WITH_BATCHNORM if has_batchnorm else AUGMENTED.get(data_name, ())


class Operation(NamedTuple):
    """What is drawn for some images is apart from what is done to them: one network's numbers do not hang on another's.

    draw: (number of images n, their shape (channels, height, width), generator) -> (n, ...), on the CPU.
    move: (images (n, channels, height, width), drawn, value of pixels from outside (1, channels, 1, 1)) -> varied images.
    """

    draw: Callable[[int, torch.Size, torch.Generator], Tensor]
    move: Callable[[Tensor, Tensor, Tensor], Tensor]


def _draw_shifts(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randint(-PAD, PAD + 1, (2, n), generator=rng).T  # (n, 2): down, right


def _draw_strengths(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return _uniform(rng, n)


def _draw_noise(n: int, shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randn((n, *shape), generator=rng)


def _crop(x: Tensor, shifts: Tensor, fill: Tensor) -> Tensor:
    return _moved(x, *shifts.T, fill)


def _scale(x: Tensor, u: Tensor, fill: Tensor) -> Tensor:
    step = 1 / _between(u, 1 - STRETCH, 1 + STRETCH)
    return _resized(x, step, step, fill)


def _rotate(x: Tensor, u: Tensor, fill: Tensor) -> Tensor:
    return _turned(x, _between(u, -TURN, TURN), fill)


def _noise(x: Tensor, drawn: Tensor, fill: Tensor) -> Tensor:
    return x + NOISE * _beside(x, drawn)


OPERATIONS: dict[str, Operation] = {
    "crop": Operation(_draw_shifts, _crop),
    "scale": Operation(_draw_strengths, _scale),
    "rotate": Operation(_draw_strengths, _rotate),
    "noise": Operation(_draw_noise, _noise),
}


def one_of(x: Tensor, operations: Sequence[str], rng: torch.Generator) -> Tensor:
    """A varied copy of x (n, channels, height, width): to each image one of `operations`, drawn evenly; () leaves x as it is.

    crop: moved by up to 4 whole pixels each way; scale: 0.8 to 1.2 times the size; rotate: up to 45 degrees; noise: Gaussian,
    standard deviation 0.001. Pixels from outside the image take the mean of their channel over x.
    rng: a CPU generator, wherever x lies. Raises ValueError for an operation outside OPERATIONS and for x that are no images.
    """
    return one_of_for_each(x, operations, [rng])[0]


def one_of_for_each(x: Tensor, operations: Sequence[str], rngs: Sequence[torch.Generator]) -> Tensor:
    """`one_of` by each of several generators, (len(rngs), n, channels, height, width): drawn one by one, moved all at once."""
    known = [choose(OPERATIONS, "operation", name) for name in operations]
    _check_images(x)
    if not known:
        return x.expand(len(rngs), *x.shape)
    which, drawn = [], []  # by generator; of drawn, then by operation
    for rng in rngs:
        which.append(torch.randint(len(known), (len(x),), generator=rng))
        listed = which[-1].tolist()
        drawn.append([op.draw(listed.count(k), x.shape[1:], rng) for k, op in enumerate(known)])
    fill = x.mean((0, 2, 3), keepdim=True)
    numbers = [
        torch.cat(of_op) for of_op in zip(*drawn, strict=True)
    ]  # in the order of the images, as `_by_group` hands them
    functions = [
        lambda part, _, op=op, own=own: op.move(part, own, fill) for op, own in zip(known, numbers, strict=True)
    ]
    return _by_group(x, torch.stack(which), functions)


# ---- differentiable Siamese augmentation -------------------------------------------------------------------
# An operation maps x (n, channels, height, width) and u (n or 1, 3), numbers in [0, 1) as float64 on the CPU. A single row of u
# serves all images. Sizes enter only here, so that one draw fits real and synthetic images alike.


def _flip_siamese(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(_per_image(u[:, 0] < 0.5, x), x.flip(-1), x)


def _crop_siamese(x: Tensor, u: Tensor) -> Tensor:
    """Moved by up to 1/8 of each side, in whole pixels; 0 comes in from outside."""
    most = [int(side * 0.125 + 0.5) for side in x.shape[-2:]]
    down, right = (_whole(u[:, axis], 2 * m + 1) - m for axis, m in enumerate(most))
    return _moved(x, down, right, 0.0)


def _cutout_siamese(x: Tensor, u: Tensor) -> Tensor:
    """A rectangle of half of each side becomes 0; its middle lies anywhere on the image, what sticks out is lost."""
    hidden = []
    for axis, side in enumerate(x.shape[-2:]):
        length = int(side * 0.5 + 0.5)
        start = _whole(u[:, axis], side + 1 - length % 2) - length // 2
        place = torch.arange(side) - start[:, None]
        hidden.append((place >= 0) & (place < length))
    rows, columns = hidden
    return x.masked_fill(_beside(x, rows[:, None, :, None] & columns[:, None, None, :]), 0.0)


def _scale_siamese(x: Tensor, u: Tensor) -> Tensor:
    """1/1.2 to 1.2 pixels of x to a pixel, down and across apart from each other."""
    return _resized(x, _between(u[:, 0], 1 / 1.2, 1.2), _between(u[:, 1], 1 / 1.2, 1.2), 0.0)


def _rotate_siamese(x: Tensor, u: Tensor) -> Tensor:
    return _turned(x, math.radians(15) * _between(u[:, 0], -1, 1), 0.0)


def _colour_siamese(x: Tensor, u: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast. Saturation does nothing to a grey image: a pixel is its own mean."""
    shift, saturation, contrast = (
        _per_image(_between(u[:, i], low, high), x) for i, (low, high) in enumerate([(-0.5, 0.5), (0, 2), (0.5, 1.5)])
    )
    x = x + shift
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
    """One drawn transformation: the same for every image it is called on, of whatever size, on whatever device.

    operation: a name in SIAMESE; u: three numbers in [0, 1) that fix its strength.
    """

    operation: str
    u: tuple[float, float, float]

    def __call__(self, x: Tensor) -> Tensor:
        """A varied copy of x (n, channels, height, width), differentiable with respect to x."""
        _check_images(x)
        return SIAMESE[self.operation](x, torch.tensor([self.u], dtype=torch.float64))


def strategy_for(data_name: str) -> tuple[str, ...]:
    """The published strategy for a data set, names in SIAMESE: all of them, but without flip where images are digits."""
    return tuple(name for name in SIAMESE if not (name == "flip" and data_name in NO_FLIP))


def parse_strategy(strategy: str | Sequence[str]) -> tuple[str, ...]:
    """The names in a strategy given as "crop+scale" or as ("crop", "scale"). ValueError if empty or of unknown names."""
    names = tuple(strategy.replace(" ", "").split("+")) if isinstance(strategy, str) else tuple(strategy)
    if names in ((), ("",)):
        raise ValueError(f"the strategy is empty: join one or more of {', '.join(SIAMESE)} by +")
    for name in names:
        choose(SIAMESE, "Siamese operation", name)
    return names


def draw_transform(strategy: str | Sequence[str], rng: torch.Generator) -> Transform:
    """One operation of `strategy`, drawn evenly, and its strength. rng: a CPU generator. Errors: see `parse_strategy`."""
    names = parse_strategy(strategy)
    (which,), (u,) = _draws(len(names), 1, rng)
    return Transform(names[which], tuple(u.tolist()))


def siamese(strategy: str | Sequence[str], rng: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The transformation of one class at one matching step: call it on the real images, and on the synthetic ones."""
    return draw_transform(strategy, rng)


def independent(x: Tensor, strategy: str | Sequence[str], rng: torch.Generator) -> Tensor:
    """A varied copy of x (n, channels, height, width), each image by a draw of its own: for training on S in phase 2.

    The published code draws the operation once for a mini-batch and only its strength for each image.
    rng: a CPU generator. Raises ValueError for x that are no images, else see `parse_strategy`.
    """
    return independent_for_each(x, strategy, [rng])[0]


def independent_for_each(x: Tensor, strategy: str | Sequence[str], rngs: Sequence[torch.Generator]) -> Tensor:
    """`independent` by each of several generators, (len(rngs), n, channels, height, width), moved all at once."""
    names = parse_strategy(strategy)
    _check_images(x)
    which, u = (torch.stack(drawn) for drawn in zip(*(_draws(len(names), len(x), rng) for rng in rngs), strict=True))
    u = u.flatten(0, 1)
    return _by_group(x, which, [lambda part, i, vary=SIAMESE[name]: vary(part, u[i]) for name in names])


def canonical_name(augment: str, others: Sequence[str]) -> str:
    """The one spelling of this; ValueError unless it is one of the others, "dsa", or "dsa:" and a strategy: "dsa:crop+scale"."""
    kind, _, strategy = augment.partition(":") if isinstance(augment, str) else (augment, "", "")
    choose(dict.fromkeys((*others, "dsa")), "augment", kind, "dsa: and operations of your own, as in dsa:crop+scale")
    return kind if kind == augment else f"{kind}:{'+'.join(parse_strategy(strategy if kind == 'dsa' else ''))}"


def strategy_of(augment: str, data_name: str) -> tuple[str, ...]:
    """The names in SIAMESE of an `augment` that begins with "dsa": its own, else the published ones for the data set."""
    own = augment.partition(":")[2]
    return parse_strategy(own) if own else strategy_for(data_name)


def siamese_for(augment: str, data_name: str, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
    """By `Recipe.augment`, the function for both sides of one class at one matching step."""
    return (lambda x: x) if augment == "none" else siamese(strategy_of(augment, data_name), rng)


# ---- drawing, and moving pixels ----------------------------------------------------------------------------


def _uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _whole(u: Tensor, n: int) -> Tensor:
    """0..n-1, evenly."""
    return (u * n).long()


def _draws(n_operations: int, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which operation (n,), and how strong (n, 3): always three numbers, so that what is drawn later does not depend on which."""
    return torch.randint(n_operations, (n,), generator=rng), _uniform(rng, n, 3)


def _beside(x: Tensor, v: Tensor) -> Tensor:
    """v, drawn on the CPU, on the device of x and, if real, in its dtype; without waiting for what the device is still at."""
    return v.to(x.device, x.dtype if v.is_floating_point() else v.dtype, non_blocking=x.is_cuda)


def _per_image(v: Tensor, x: Tensor) -> Tensor:
    """v (m,), beside x, as (m, 1, 1, 1)."""
    return _beside(x, v)[:, None, None, None]


def _by_group(x: Tensor, which: Tensor, functions: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
    """functions[which[j, i]] of image i, for every copy j of x: (copies, n, channels, height, width).

    which: (copies, n). Each function is called once, on (its images, their places in the flattened `which`, ascending).
    """
    order = which.flatten().argsort(
        stable=True
    )  # the places of the first function's images, then of the second's, ...
    listed = which.flatten().tolist()
    counts = [listed.count(k) for k in range(len(functions))]
    beside = _beside(x, order)
    groups = zip(functions, x[beside % len(x)].split(counts), order.split(counts), strict=True)
    varied = torch.cat([function(images, places) for function, images, places in groups if len(places)])
    return torch.empty_like(varied).index_copy_(0, beside, varied).view(*which.shape, *x.shape[1:])


def _moved(x: Tensor, down: Tensor, right: Tensor, fill: Tensor | float) -> Tensor:
    """x moved by whole pixels, exactly. down, right: (n,) or (1,) int64 on the CPU; what comes in from outside is `fill`."""
    height, width = x.shape[-2:]
    rows = (torch.arange(height, device=x.device) - _beside(x, down)[:, None])[
        :, None, :, None
    ]  # of x, that each is taken from
    columns = (torch.arange(width, device=x.device) - _beside(x, right)[:, None])[:, None, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = x.take_along_dim(rows.clamp(0, height - 1), 2).take_along_dim(columns.clamp(0, width - 1), 3)
    return torch.where(inside, moved, fill)


def _resized(x: Tensor, down: Tensor, across: Tensor, fill: Tensor | float) -> Tensor:
    """x about its centre, `down` and `across` pixels of x to one pixel: below 1 enlarges. Both (n,) or (1,)."""
    zero = torch.zeros_like(down)
    return _sampled(x, [across, zero, zero, down], fill)


def _turned(x: Tensor, angle: Tensor, fill: Tensor | float) -> Tensor:
    """x turned anticlockwise about its centre by `angle` (n,) or (1,), in radians."""
    height, width = x.shape[-2:]
    cos, sin = angle.cos(), angle.sin()
    # Coordinates run from -1 to 1 across either side: a turn of pixels is one of coordinates only where the sides are equal.
    return _sampled(x, [cos, -sin * height / width, sin * width / height, cos], fill)


def _sampled(x: Tensor, linear: Sequence[Tensor], fill: Tensor | float) -> Tensor:
    """x read off, bilinearly, at [[a, b], [c, d]] (across, down) of each pixel's place; the four are (n,) or (1,)."""
    a, b, c, d = linear
    zero = torch.zeros_like(a)
    theta = _beside(x, torch.stack([a, b, zero, c, d, zero], 1).view(-1, 2, 3))
    grid = F.affine_grid(theta, [len(theta), *x.shape[1:]], align_corners=False).expand(len(x), -1, -1, -1)
    return F.grid_sample(x - fill, grid, padding_mode="zeros", align_corners=False) + fill


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"cannot vary {x.dtype} of shape {tuple(x.shape)}: give floats (n, channels, height, width), n above 0"
        )
