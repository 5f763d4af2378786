"""Section 5's max-min hypothesis: how far from its start does training on S stop? ::

    Eq. 13:  max_S min_{theta, theta0} ||theta - theta0||
    Eq. 14:  s.t. ||grad_theta L(S, theta)|| < eps
    Eq. 15:  theta0 ~ P_theta0

A point where Eq. 14 holds is a trap: gradient descent hardly moves there. `reach` measures the inner minimum for a
given S over random starts. ``gmlib.analysis`` summarises what `reach` returns and measures whole paths (Figure 2).

Starts run one after another. Eight starts in one batch, by ``torch.func.vmap``, were not faster on 8x8 digits
(ConvNet-2 of width 32, one CPU core): 2.9 instead of 3.0 ms per step and start at 1 image per class, 18 instead of
10 ms at 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

if TYPE_CHECKING:
    import pandas as pd

from . import networks
from .checks import check_number, require, shown
from .data import Data
from .evaluation import accuracy
from .lines import initial
from .recipe import Recipe
from .runtime import (
    check_deadline,
    check_time,
    device_of,
    generator,
    in_time,
    plain_torch,
    progress_bar,
    time_limit,
)
from .sets import SyntheticSet, check_pair, images_of
from .speed.forward import fast_forward
from .speed.passes import pass_size
from .speed.precision import matmul_precision

BATCH = 1024  # most images in one backward pass: limits memory
ON_REAL = ("test_accuracy", "real_loss", "real_gradient_norm")  # columns of `reach` that are measured on real images
Gradient = Sequence[Tensor]  # one tensor per parameter
LossAndGradient = Callable[[Sequence[Tensor]], tuple[Tensor, Gradient]]


def walk(
    loss_and_gradient: LossAndGradient, theta: Sequence[Tensor], lr: float, steps: int
) -> Iterator[tuple[int, Tensor, Gradient]]:
    """Gradient descent: theta -= lr * grad L(theta), in place.

    Parameters
    ----------
    loss_and_gradient : callable
        theta -> (L, grad L), a scalar and one tensor per tensor of theta.
    theta : sequence of Tensor
    lr : float
    steps : int

    Yields
    ------
    step, L, grad L
        At each theta, for step = 0, 1, ..., steps. theta has moved ``step`` times when it is yielded.
    """
    values = [p.detach() for p in theta]  # the same memory, not tracked by autograd
    for step in range(steps + 1):
        loss, gradient = loss_and_gradient(theta)
        yield step, loss, gradient
        if step < steps:
            torch._foreach_add_(values, list(gradient), alpha=-lr)


class Stop(NamedTuple):
    """The first point of a descent with ``||grad L|| < eps``.

    Attributes
    ----------
    eps : float
        The threshold.
    reached : bool
        False if the descent has no such point.
    steps : float
        Number of steps; NaN if not reached.
    distance : float
        ``||theta - theta0||_2`` over all parameters; NaN if not reached.
    loss, gradient_norm : float
        At this point; at the last point if not reached.
    """

    eps: float
    reached: bool
    steps: float
    distance: float
    loss: float
    gradient_norm: float


def descend(
    loss_and_gradient: LossAndGradient,
    theta: Sequence[Tensor],
    eps: Sequence[float],
    lr: float,
    max_steps: int,
) -> Iterator[Stop]:
    """Follow `walk` until the gradient is small.

    One trajectory serves all thresholds. There is no momentum, because Eq. 14 is about plain gradient
    descent. The descent ends after the last threshold, after ``max_steps``, or when the gradient is no longer
    finite.

    Parameters
    ----------
    loss_and_gradient, theta, lr
        As in `walk`.
    eps : sequence of float
        Thresholds of the gradient's norm.
    max_steps : int

    Yields
    ------
    Stop
        One for each threshold, the largest first. theta is at this point when it is yielded, so that the caller can
        measure more there. Thresholds that were not reached come last.

    Source
    ------
    Eq. 13 and Eq. 14, Section 5.
    """
    theta0 = [p.detach().clone() for p in theta]
    remaining = sorted({float(e) for e in eps}, reverse=True)
    for steps, loss, gradient in walk(loss_and_gradient, theta, lr, max_steps):
        norm = get_total_norm(gradient).item()
        # Eq. 14: ||grad_theta L(S, theta)|| < eps
        while remaining and norm < remaining[0]:
            # Eq. 13: ||theta - theta0||
            distance = get_total_norm(displacement(theta, theta0)).item()
            yield Stop(remaining.pop(0), True, steps, distance, float(loss), norm)
        if not remaining or not math.isfinite(norm):
            break
    for e in remaining:
        yield Stop(e, False, math.nan, math.nan, float(loss), norm)


def loss_and_gradient(network: nn.Module, theta: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Gradient]:
    """Mean cross-entropy over all images and its gradient, summed over parts that fit the memory and the cache.

    Parts change the result by rounding only, except for networks that mix images.

    Parameters
    ----------
    network : nn.Module
        If it may mix images, as BatchNorm does in train mode, the parts have ``BATCH`` images.
    theta : sequence of Tensor
        Its parameters.
    x : Tensor
        (n, channels, height, width) images.
    y : Tensor
        (n,) labels.

    Returns
    -------
    loss : Tensor
        Scalar, in nats, detached.
    gradient : sequence of Tensor
        One tensor per parameter.
    """
    check_time()
    forward = fast_forward(network, x)
    size = min(BATCH, pass_size(network, x) or BATCH)
    if len(y) <= size:
        loss = F.cross_entropy(forward(x), y)
        return loss.detach(), torch.autograd.grad(loss, theta)
    total = x.new_zeros(())
    gradient = [torch.zeros_like(p) for p in theta]
    for part, labels in in_time(zip(x.split(size), y.split(size), strict=True)):
        loss = F.cross_entropy(forward(part), labels, reduction="sum") / len(y)
        total += loss.detach()
        torch._foreach_add_(gradient, torch.autograd.grad(loss, theta))
    return total, gradient


@plain_torch()
@matmul_precision("float32")
def reach(
    S: SyntheticSet | Data,
    eps: Sequence[float],
    n_starts: int = 64,
    seed: int = 0,
    *,
    data: Data | None = None,
    network: str = "convnet",
    width: int | None = None,
    depth: int | None = None,
    lr: float = 0.01,
    max_steps: int = 2000,
    n_real: int | None = None,
    max_real: int = 4096,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Train on S from random theta0 by gradient descent, and measure where ``||grad L(S, theta)|| < eps`` first.

    Parameters
    ----------
    S : SyntheticSet or Data
        A Data means all its training images. Every step then passes over all of them.
    eps : sequence of float
        Thresholds of the gradient's norm over all parameters, in any order.
    n_starts : int
        Number of random theta0. Each descends by full-batch gradient descent.
    seed : int
        The same seed gives the same starts for every S, and the same bits on one machine's CPU.
    data : Data, optional
        The real data T, to measure the test accuracy, and the loss and gradient on T, at each point.
    n_real : int, optional
        T is used from the first ``n_real`` starts only; None means all. For a small S this takes most of the time.
    network : str
        A name that `networks.build` knows.
    width, depth : int, optional
        None takes the width and depth that S was condensed with, or 128 and 3. Coresets and noise have none: give
        both to compare them with condensed sets.
    lr : float
        Learning rate.
    max_steps : int
        With the default learning rate, the default goes about as far as the 300 epochs of phase 2 with their
        momentum.
    max_real : int
        T is at most this many training images, drawn by ``seed``.
    device : torch.device or str, optional
        None takes CUDA if there is a GPU, else the CPU.
    progress : bool
        Show a progress bar.
    deadline : float, optional
        In the unit of ``time.monotonic()``.

    Returns
    -------
    DataFrame
        One row per start and threshold, the largest threshold first. Columns: start, eps, reached, steps, distance
        (``||theta - theta0||_2`` over all parameters), train_loss (nats), gradient_norm, test_accuracy (percent),
        real_loss (nats), real_gradient_norm. The last three are NaN without ``data`` and after ``n_real`` starts. If
        eps was not reached, train_loss and gradient_norm are the last ones, and other measurements are NaN.

    Raises
    ------
    ValueError
        If S does not fit ``data``, there is no threshold, or a number is out of range. This is checked before any
        work.
    OutOfTime
        At the deadline. Nothing is saved.

    Source
    ------
    Eq. 13 for a given S, with Eq. 14 and Eq. 15, Section 5.
    """
    if not isinstance(eps, (int, float, Sequence, np.ndarray)) or isinstance(eps, str):
        raise ValueError(
            f"eps is a {type(eps).__name__}: give thresholds of the gradient's norm, and the data as data="
        )
    thresholds = []
    with suppress(TypeError, ValueError):  # no numbers, or nested lists of different lengths
        thresholds = np.ravel(np.asarray(eps, dtype=float)).tolist()
    if not thresholds or not all(0 < e < math.inf for e in thresholds):
        raise ValueError(
            f"eps={shown(thresholds or eps)} does not fit: give positive thresholds of the gradient's norm"
        )
    n_real = n_starts if n_real is None else n_real
    check_numbers(lr, n_starts=n_starts, max_steps=max_steps, n_real=n_real, max_real=max_real)
    check_deadline(deadline)
    check_pair(S, data)
    pd = require("pandas", "analysis")
    device, x, y, network_at = prepare(S, network, width, depth, seed, device)
    if data is not None:
        x_T, y_T = data.sample_any(max_real, generator(seed, "reach real"))
        x_T, y_T = x_T.to(device, x.dtype), y_T.to(device)
        x_test, y_test = data.test_images.to(device, x.dtype), data.test_labels.to(device)

    rows = []
    with progress_bar("reach", n_starts, "start", progress) as bar, time_limit(deadline):
        for start in range(n_starts):
            f = network_at(start)
            theta = list(f.parameters())
            measured_at = None
            for stop in descend(partial(loss_and_gradient, f, x=x, y=y), theta, thresholds, lr, max_steps):
                if not stop.reached or data is None or start >= n_real:
                    on_real = dict.fromkeys(ON_REAL, math.nan)
                elif stop.steps != measured_at:  # thresholds reached at the same step share the measurements
                    loss_T, gT = loss_and_gradient_on_real(f, theta, x_T, y_T)
                    norm_T = get_total_norm(gT).item()
                    on_real = dict(zip(ON_REAL, (accuracy(f, x_test, y_test), loss_T.item(), norm_T), strict=True))
                    measured_at = stop.steps
                rows.append({"start": start, **stop._asdict(), **on_real})
            bar.update()
    return pd.DataFrame(rows).rename(columns={"loss": "train_loss"}).astype({"steps": float})


def noise_set(data: Data, ipc: int, seed: int = 0) -> SyntheticSet:
    """A control: the random images, N(0, 1) in normalised pixels, from which a run of this seed starts (line 1).

    Parameters
    ----------
    data : Data
    ipc : int
        Images per class.
    seed : int
    """
    images = initial(data, Recipe(dataset=data.name, ipc=ipc, inner_loops=1, zeta_theta=1, init="noise", seed=seed))
    return SyntheticSet(
        images=images,
        labels=data.labels_of(ipc),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        recipe={"method": "noise", "dataset": data.name, "ipc": ipc, "seed": seed},
    )


def prepare(
    S: SyntheticSet | Data,
    network: str,
    width: int | None,
    depth: int | None,
    seed: int,
    device: torch.device | str | None,
) -> tuple[torch.device, Tensor, Tensor, Callable[[int], nn.Module]]:
    """The device, S's images and labels on it, and the function j -> the network of start j."""
    device = device_of(device)
    images, labels = images_of(S)
    recipe = {} if isinstance(S, Data) else S.recipe
    width = recipe.get("width", 128) if width is None else width
    depth = recipe.get("depth", 3) if depth is None else depth
    for name, value, least in (("width", width, 1), ("depth", depth, 1), ("seed", seed, 0)):
        check_number(name, value, least=least, whole=True)
    size = {"width": width, "depth": depth}

    def network_at(j: int) -> nn.Module:
        # Eq. 15: theta0 ~ P_theta0
        rng = generator(seed, "reach", j)
        return networks.build(network, S.shape, S.n_classes, generator=rng, device=device, dtype=images.dtype, **size)

    network_at(0)  # a network that does not fit raises here, before any work
    return device, images.to(device), labels.to(device), network_at


def displacement(theta: Sequence[Tensor], theta0: Sequence[Tensor]) -> list[Tensor]:
    """theta - theta0, one tensor per parameter."""
    return [p.detach() - p0 for p, p0 in zip(theta, theta0, strict=True)]


def loss_and_gradient_on_real(
    network: nn.Module, theta: Sequence[Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, Gradient]:
    """L(T, theta) and its gradient, with BatchNorm's running statistics from training on S. They are not changed."""
    network.eval()
    found = loss_and_gradient(network, theta, x, y)
    network.train()
    return found


def check_numbers(lr: float, **whole: int) -> None:
    """ValueError unless ``lr`` is positive and all others are whole numbers of at least 1."""
    for name, value in whole.items():
        check_number(name, value, least=1, whole=True)
    check_number("lr", lr, above=0)
