"""Phase 2: train networks from scratch on a synthetic set S, and test them on real images (Section 4.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from . import networks
from .data import Data, SyntheticSet
from .recipe import choose, generator

TEST_BATCH = 2048  # images in one forward pass of the test

# Data sets whose images the paper's protocol varies while training on S, and with what; these train for 1000 epochs.
AUGMENTED = {"MNIST": ("crop", "scale", "rotate")}


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies, in percent, of networks trained on one synthetic set."""

    accuracies: tuple[float, ...]
    network: str
    seed: int
    protocol: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def n(self) -> int:
        return len(self.accuracies)

    @property
    def mean(self) -> float:
        return math.fsum(self.accuracies) / self.n

    @property
    def std(self) -> float:
        """Standard deviation between networks (n - 1 in the denominator); NaN for a single network."""
        if self.n < 2:
            return math.nan
        return math.sqrt(math.fsum((a - self.mean) ** 2 for a in self.accuracies) / (self.n - 1))

    @property
    def ci95(self) -> tuple[float, float]:
        """95% t interval of the mean over networks, for this one set: it says nothing about other sets."""
        from scipy.stats import t

        half = t.ppf(0.975, self.n - 1) * self.std / math.sqrt(self.n) if self.n > 1 else math.nan
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        return f"{self.mean:.1f}±{self.std:.1f} % (n = {self.n})"


def evaluate(
    S: SyntheticSet,
    data: Data,
    network: str = "convnet",
    n_networks: int = 50,
    seed: int = 0,
    *,
    width: int | None = None,
    depth: int | None = None,
    epochs: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 256,
    augment: str = "paper",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Train `n_networks` fresh networks on S by the paper's protocol and test each on `data`'s test images.

    SGD with momentum and weight decay, learning rate divided by 10 after half the epochs, the accuracy after the last epoch
    (never the best one). width, depth: None takes those S was condensed with, else 128 and 3.
    epochs: None takes 300, or 1000 where images are augmented. augment: "paper" varies MNIST images (one of crop by up to 4
    pixels, scale by up to 20 %, rotate by up to 45 degrees for each image) and no others; "none" varies nothing.

    Returns an Evaluation with n_networks accuracies in percent. The same seed gives the same bits on one machine.
    Raises ValueError where S does not fit the data, for an unknown network or augmentation, and for rates out of range.
    """
    operations = choose({"paper": AUGMENTED.get(data.name, ()), "none": ()}, "augmentation", augment)
    width = S.recipe.get("width", 128) if width is None else width
    depth = S.recipe.get("depth", 3) if depth is None else depth
    epochs = (1000 if operations else 300) if epochs is None else epochs
    _check(S, data, n_networks=n_networks, epochs=epochs, batch=batch, lr=lr, momentum=momentum, weight_decay=weight_decay)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    x, y = S.images.to(device), S.labels.to(device)
    x_test, y_test = data.test_images.to(device, x.dtype), data.test_labels.to(device)
    begun = time.monotonic()
    accuracies = []
    for j in tqdm(range(n_networks), desc="evaluate", unit="network", disable=not progress, mininterval=1):
        f = networks.build(
            network, data.shape, data.n_classes, width=width, depth=depth,
            generator=generator(seed, "evaluate", j), device=device, dtype=x.dtype,
        )  # fmt: skip
        rng = generator(seed, "evaluate batches", j)
        networks.fit(
            f, x, y, epochs=epochs, rng=rng, lr=lr, momentum=momentum, weight_decay=weight_decay, batch=batch,
            vary=partial(augmented, operations=operations, rng=rng) if operations else None,
        )  # fmt: skip
        accuracies.append(accuracy(f, x_test, y_test))
    protocol = {
        "width": width, "depth": depth, "epochs": epochs, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "batch": batch, "augment": "+".join(operations) or "none",
    }  # fmt: skip
    return Evaluation(tuple(accuracies), network, seed, protocol, time.monotonic() - begun)


def _check(S: SyntheticSet, data: Data, **numbers: float) -> None:
    if S.shape != data.shape or tuple(S.classes) != tuple(data.classes):
        raise ValueError(
            f"the set has {len(S.classes)} classes of {S.shape} images but {data.name} has {data.n_classes} of {data.shape}: "
            "evaluate it on the data it was made from"
        )
    for name in ("n_networks", "epochs", "batch"):
        if not isinstance(numbers[name], int) or numbers[name] < 1:
            raise ValueError(f"{name}={numbers[name]!r} does not fit: give a whole number of at least 1")
    if not 0 < numbers["lr"] < math.inf:
        raise ValueError(f"lr={numbers['lr']!r} does not fit: give a positive number")
    if not 0 <= numbers["momentum"] < 1:
        raise ValueError(f"momentum={numbers['momentum']!r} does not fit: give a number from 0 up to, not including, 1")
    if not 0 <= numbers["weight_decay"] < math.inf:
        raise ValueError(f"weight_decay={numbers['weight_decay']!r} does not fit: give a number of at least 0")


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of images (N, channels, height, width) that `network` puts into their class y (N,)."""
    network.eval()
    right = sum(
        (network(part).argmax(1) == labels).sum().item()
        for part, labels in zip(x.split(TEST_BATCH), y.split(TEST_BATCH), strict=True)
    )
    network.train()
    return 100.0 * right / len(y)


# ---- augmentation of phase 2: each image gets one of the operations listed for its data set ----------------


def _crop(n: int, rng: torch.Generator, side: int) -> Tensor:
    shift = torch.randint(-4, 5, (n, 2), generator=rng) * 2.0 / side  # whole pixels, in units of half the image
    return _affine(torch.ones(n), torch.zeros(n), shift)


def _scale(n: int, rng: torch.Generator, side: int) -> Tensor:
    factor = 1 + 0.2 * (2 * torch.rand(n, generator=rng) - 1)
    return _affine(1 / factor, torch.zeros(n), torch.zeros(n, 2))


def _rotate(n: int, rng: torch.Generator, side: int) -> Tensor:
    angle = math.pi / 4 * (2 * torch.rand(n, generator=rng) - 1)
    return _affine(torch.ones(n), angle, torch.zeros(n, 2))


def _affine(zoom: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """(n, 2, 3): from output to input coordinates, which run from -1 to 1 across the image."""
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    return torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)


OPERATIONS: dict[str, Callable[[int, torch.Generator, int], Tensor]] = {"crop": _crop, "scale": _scale, "rotate": _rotate}


def augmented(x: Tensor, operations: tuple[str, ...], rng: torch.Generator) -> Tensor:
    """A varied copy of x (n, channels, side, side): to each image one of `operations`, drawn evenly.

    Pixels from outside the image take the mean of their channel over x.
    """
    n, side = len(x), x.shape[-1]
    drawn = torch.stack([OPERATIONS[name](n, rng, side) for name in operations])  # (operations, n, 2, 3)
    which = torch.randint(len(operations), (n,), generator=rng)
    theta = drawn[which, torch.arange(n)].to(x)
    fill = x.mean((0, 2, 3), keepdim=True)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x - fill, grid, padding_mode="zeros", align_corners=False) + fill
