"""Networks that are trained on S and on T, freshly drawn for every outer iteration and every evaluation (theta0 ~ P_theta0).

All take images (N, channels, height, width) and return logits (N, C). `build` is the door: it checks, seeds and constructs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convnet(channels: int, size: int, n_classes: int, *, width: int = 128, depth: int = 3) -> nn.Module:
    """ConvNet of the paper's Section 4: `depth` blocks of [3x3 convolution, instance norm, ReLU, 2x2 average pool], one linear.

    Grey 28x28 images are padded to 32x32 by the first convolution (padding 3), all others keep their size. The linear layer
    sees width * (size / 2^depth)^2 features. Raises ValueError where an image is too small for the depth.
    """
    pad = 3 if (channels, size) == (1, 28) else 1
    side = size + 2 * (pad - 1)
    if side < 2**depth:
        raise ValueError(
            f"images of {size}x{size} pixels are too small for a ConvNet of depth {depth}: "
            f"use depth {side.bit_length() - 1} or less"
        )
    blocks: list[nn.Module] = []
    for d in range(depth):
        blocks += [
            nn.Conv2d(channels if d == 0 else width, width, 3, padding=pad if d == 0 else 1),
            nn.GroupNorm(width, width),  # as many groups as channels: instance norm with scale and shift
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
        side //= 2
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * side * side, n_classes))


NETWORKS: dict[str, Callable[..., nn.Module]] = {"convnet": convnet}


def build(
    name: str,
    shape: tuple[int, int, int],
    n_classes: int,
    *,
    generator: torch.Generator,
    width: int = 128,
    depth: int = 3,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A freshly initialised network for images of `shape` (channels, height, width), PyTorch's default initialisation.

    The same generator seed gives the same float32 weights on every device and in every dtype. torch's own random state is
    left as it was. Raises ValueError for an unknown name, images that are not square, or a network that does not fit them.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose from {', '.join(NETWORKS)}")
    channels, height, width_px = shape
    if height != width_px:
        raise ValueError(f"images of {height}x{width_px} pixels are not square: crop or resize them (size=...) before use")
    with torch.random.fork_rng(devices=[]):
        # Modules draw their weights from torch's global generator, so that is the one to seed, for these lines only.
        torch.default_generator.manual_seed(generator.initial_seed())
        network = NETWORKS[name](channels, height, n_classes, width=width, depth=depth)
    return network.to(device=device, dtype=dtype)


def matched(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters whose gradients are matched: all but the one-dimensional ones, as (name, parameter) in layer order."""
    return [(name, p) for name, p in network.named_parameters() if p.ndim > 1]


def train_one_pass(
    network: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, batch: int, rng: torch.Generator
) -> None:
    """An epoch over x (n, channels, height, width) and its labels y (n,) in shuffled mini-batches, cross-entropy loss.

    This is one "step" of theta in Algorithm 1 (line 12): a single gradient step while S fits in one batch.
    """
    for chosen in torch.randperm(len(y), generator=rng).split(batch):
        chosen = chosen.to(y.device)
        loss = F.cross_entropy(network(x[chosen]), y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def fit(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    rng: torch.Generator,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 256,
    vary: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """Train `network` in place by the protocol of phase 2: SGD, the learning rate divided by 10 after half the epochs.

    vary: maps x to a varied copy of it, anew for each epoch. Returns the network.
    """
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    for epoch in range(epochs):
        if epoch == epochs // 2:
            optimiser.param_groups[0]["lr"] = lr / 10
        train_one_pass(network, optimiser, x if vary is None else vary(x), y, batch, rng)
    return network
