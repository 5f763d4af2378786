"""Coresets: real images chosen to stand for their class, the baselines a condensed set has to beat (Section 4.5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .data import Data, SyntheticSet
from .recipe import choose, generator


def random(images: Tensor, ipc: int, rng: torch.Generator) -> Tensor:
    """`ipc` images drawn without replacement. images: (n, ...) of one class -> (ipc, ...)."""
    return images[torch.randperm(len(images), generator=rng)[:ipc].to(images.device)]


CORESETS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {"random": random}


def check_ipc(data: Data, ipc: int) -> None:
    """ValueError unless every class of `data` has at least `ipc` >= 1 training images."""
    smallest = min(data.counts)
    if not isinstance(ipc, int) or isinstance(ipc, bool) or not 1 <= ipc <= smallest:
        raise ValueError(
            f"ipc={ipc!r} does not fit {data.name}: give a whole number from 1 to {smallest}, the size of its smallest class"
        )


def coreset(method: str, data: Data, ipc: int, seed: int = 0) -> SyntheticSet:
    """`ipc` real training images per class, as a SyntheticSet, sorted by class.

    method: a name in CORESETS. Raises ValueError for an unknown method or an ipc outside 1..smallest class.
    """
    select = choose(CORESETS, "coreset", method)
    check_ipc(data, ipc)
    chosen = [select(data.of_class(c), ipc, generator(seed, "coreset", method, c)) for c in range(data.n_classes)]
    return SyntheticSet(
        images=torch.cat(chosen).clone(),
        labels=torch.arange(data.n_classes, device=chosen[0].device).repeat_interleave(ipc),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        recipe={"method": method, "dataset": data.name, "ipc": ipc, "seed": seed},
    )
