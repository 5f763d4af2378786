"""Section 5's max-min hypothesis: how far from its start does training on S come to rest? (Eq. 13-15; Section 3.2)

    max_S min_{theta, theta0} ||theta - theta0||    s.t.    ||grad_theta L(S, theta)|| < eps,    theta0 ~ P_theta0

A point below eps is a trap: gradient descent cannot leave it. `reach` measures the inner minimum for a given S over random
starts, `by_eps` sums the starts up, and `rank_correlation` asks what the distance predicts over many sets. For Section 3.2,
`paths` measures Figure 2, training on S and on T from one theta0, and `alignment` follows the gradients of S and of T, layer by
layer, while training on S ("why magnitude matters").

Starts run one after another. Batching eight of them with torch.func.vmap was measured on 8x8 digits (ConvNet-2 of width 32,
one CPU core): 2.9 ms per step and start against 3.0 at 1 image per class, 18 against 10 at 10. It does not pay.

"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

if TYPE_CHECKING:
    import pandas as pd

from . import networks
from .checks import check_number, require
from .data import Data
from .evaluation import accuracy
from .lines import initial
from .recipe import Recipe
from .runtime import OutOfTime, deadline_passed, device_of, generator, progress_bar
from .sets import SyntheticSet, check_pair
from .speed.precision import matmul_precision

BATCH = 1024  # images in one backward pass: bounds memory, changes results by rounding only
Gradient = Sequence[Tensor]  # one tensor per parameter
LossAndGradient = Callable[[Sequence[Tensor]], tuple[Tensor, Gradient]]


def walk(
    loss_and_gradient: LossAndGradient, theta: Sequence[Tensor], lr: float, steps: int
) -> Iterator[tuple[int, Tensor, Gradient]]:
    """Move theta in place by theta -= lr * grad L(theta), and yield (step, L, grad L) at each theta, step = 0 .. steps.

    loss_and_gradient: theta -> (L, grad L), a scalar and one tensor per tensor of theta.
    """
    values = [p.detach() for p in theta]  # the same memory, out of autograd's sight
    for step in range(steps + 1):
        loss, gradient = loss_and_gradient(theta)
        yield step, loss, gradient
        if step < steps:
            torch._foreach_add_(values, list(gradient), alpha=-lr)


class Stop(NamedTuple):
    """Where a descent first met ||grad L|| < eps; where it never did, its last loss and gradient, and NaN otherwise."""

    eps: float
    reached: bool
    steps: float
    distance: float  # ||theta - theta0||_2 over all parameters
    loss: float
    gradient_norm: float


def descend(
    loss_and_gradient: LossAndGradient, theta: Sequence[Tensor], eps: Sequence[float], lr: float, max_steps: int
) -> Iterator[Stop]:
    """`walk` until the gradient is small: yield one `Stop` for each threshold, the largest first.

    One trajectory serves all thresholds: each `Stop` is yielded while theta lies at its point, so that the caller can measure
    more there. Without momentum, since Eq. 14's point is one that plain gradient descent cannot leave. Ends early once the last
    threshold is met or the gradient is no longer finite; thresholds not met by then come last, with reached=False.
    """
    theta0 = [p.detach().clone() for p in theta]
    waiting = sorted({float(e) for e in eps}, reverse=True)
    for steps, loss, gradient in walk(loss_and_gradient, theta, lr, max_steps):
        norm = get_total_norm(gradient).item()
        while waiting and norm < waiting[0]:  # ||grad_theta L(S, theta)|| < eps, Eq. 14
            distance = get_total_norm(displacement(theta, theta0)).item()
            yield Stop(waiting.pop(0), True, steps, distance, float(loss), norm)
        if not waiting or not math.isfinite(norm):
            break
    for e in waiting:
        yield Stop(e, False, math.nan, math.nan, float(loss), norm)


def loss_and_gradient(network: nn.Module, theta: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Gradient]:
    """Mean cross-entropy over all of x (n, channels, height, width) with labels y (n,), in nats, and its gradient.

    Gathered over batches of `BATCH` images, so memory does not grow with n.
    """
    if len(y) <= BATCH:
        loss = F.cross_entropy(network(x), y)
        return loss.detach(), torch.autograd.grad(loss, theta)
    total, gradient = x.new_zeros(()), [torch.zeros_like(p) for p in theta]
    for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        loss = F.cross_entropy(network(part), labels, reduction="sum") / len(y)
        total += loss.detach()
        torch._foreach_add_(gradient, torch.autograd.grad(loss, theta))
    return total, gradient


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
    max_real: int = 4096,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Train on S from `n_starts` random theta0 by full-batch gradient descent; say where ||grad L(S, theta)|| < eps first.

    S: a synthetic set, or a Data for its own training images (every step then passes over all of them).
    eps: thresholds of the gradient's norm over all parameters, in any order; one trajectory serves all.
    data: the real data T, to measure test accuracy and T's own loss and gradient at each point.
    width, depth: None takes those S was condensed with, else 128 and 3. Coresets and noise carry none: give both to compare.
    max_steps: the default at lr 0.01 goes about as far (lr x steps, momentum counted) as the 300 epochs of phase 2.
    max_real: at most so many training images, drawn by `seed`, stand for T in real_loss and real_gradient_norm.

    Returns one row per start and threshold, the largest first: start, eps, reached, steps, distance (||theta - theta0||_2 over
    all parameters), train_loss (nats), gradient_norm, test_accuracy (percent), real_loss, real_gradient_norm. Without data
    the last three are NaN. Where eps was not reached: reached False, train_loss and gradient_norm as they were last, the
    others NaN. The same seed gives the same starts for every S, and the same bits on one machine.
    Raises ValueError, before any work, for an S that is not of `data`, no thresholds, or numbers out of range.
    Source: Eq. 13-15, Section 5, for a given S.
    """
    if not isinstance(eps, (int, float, Sequence, np.ndarray)) or isinstance(eps, str):
        raise ValueError(
            f"eps is a {type(eps).__name__}: give thresholds of the gradient's norm, and the data as data="
        )
    eps = np.atleast_1d(np.asarray(eps, dtype=float)).ravel().tolist()
    if not eps or not all(0 < e < math.inf for e in eps):
        raise ValueError(f"eps={eps!r} does not fit: give one or more positive thresholds of the gradient's norm")
    check_numbers(lr, n_starts=n_starts, max_steps=max_steps, max_real=max_real)
    check_pair(S, data)
    device, x, y, start = setting(S, network, width, depth, seed, device)
    if data is not None:
        x_T, y_T = (v.to(device) for v in data.sample_any(max_real, generator(seed, "reach real")))
        x_T, x_test, y_test = x_T.to(x.dtype), data.test_images.to(device, x.dtype), data.test_labels.to(device)

    pd = require("pandas", "analysis")
    rows = []
    bar = progress_bar("reach", n_starts, "start", progress)
    for j in range(n_starts):
        if deadline_passed(deadline):
            bar.close()
            raise OutOfTime(
                f"out of time after {j} of {n_starts} starts, of which none is kept: run again with more time"
            )
        f = start(j)
        theta, there, measured_at = list(f.parameters()), {}, None
        for stop in descend(lambda theta, f=f: loss_and_gradient(f, theta, x, y), theta, eps, lr, max_steps):
            if not stop.reached or data is None:
                there = dict.fromkeys(("test_accuracy", "real_loss", "real_gradient_norm"), math.nan)
            elif stop.steps != measured_at:  # thresholds met at the same step share its measurements
                loss_T, gT = on_real(f, theta, x_T, y_T)
                there = {
                    "test_accuracy": accuracy(f, x_test, y_test),
                    "real_loss": loss_T.item(),
                    "real_gradient_norm": get_total_norm(gT).item(),
                }
                measured_at = stop.steps
            rows.append({
                "start": j, "eps": stop.eps, "reached": stop.reached, "steps": stop.steps, "distance": stop.distance,
                "train_loss": stop.loss, "gradient_norm": stop.gradient_norm, **there,
            })  # fmt: skip
        bar.update()
    bar.close()
    return pd.DataFrame(rows).astype({"steps": float})


def noise_set(data: Data, ipc: int, seed: int = 0) -> SyntheticSet:
    """A control: S as it is at k = 0, N(0, 1) in normalised pixels. The images a run of this `seed` starts from (line 1)."""
    images = initial(data, Recipe(dataset=data.name, ipc=ipc, inner_loops=1, zeta_theta=1, init="noise", seed=seed))
    return SyntheticSet(
        images=images,
        labels=data.labels_of(ipc),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        recipe={"method": "noise", "dataset": data.name, "ipc": ipc, "seed": seed},
    )


def setting(
    S: SyntheticSet | Data,
    network: str,
    width: int | None,
    depth: int | None,
    seed: int,
    device: torch.device | str | None,
) -> tuple[torch.device, Tensor, Tensor, Callable[[int], nn.Module]]:
    """The device, S's images and labels there, and the function j -> the network of start j (theta0 ~ P_theta0, Eq. 15)."""
    device, (images, labels) = device_of(device), images_of(S)
    recipe = {} if isinstance(S, Data) else S.recipe
    width = recipe.get("width", 128) if width is None else width
    depth = recipe.get("depth", 3) if depth is None else depth
    for name, value, least in (("width", width, 1), ("depth", depth, 1), ("seed", seed, 0)):
        check_number(name, value, least=least, whole=True)

    def start(j: int) -> nn.Module:
        return networks.build(
            network, S.shape, S.n_classes, width=width, depth=depth,
            generator=generator(seed, "reach", j), device=device, dtype=images.dtype,
        )  # fmt: skip

    start(0)  # a network that does not fit is told here, before any work
    return device, images.to(device), labels.to(device), start


def images_of(S: SyntheticSet | Data) -> tuple[Tensor, Tensor]:
    return (S.train_images, S.train_labels) if isinstance(S, Data) else (S.images.detach(), S.labels)


def displacement(theta: Sequence[Tensor], theta0: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_sub([p.detach() for p in theta], theta0)


def on_real(network: nn.Module, theta: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Gradient]:
    """L(T, theta) and its gradient, leaving running statistics, where a network has them, as training on S left them."""
    network.eval()
    found = loss_and_gradient(network, theta, x, y)
    network.train()
    return found


def check_numbers(lr: float, **whole: int) -> None:
    for name, value in whole.items():
        check_number(name, value, least=1, whole=True)
    check_number("lr", lr, above=0)
