"""The lines of Algorithm 1 as functions. `algorithm.algorithm_1` puts them in the order of the print.

S is (C*ipc, channels, height, width), normalised and sorted by class. A gradient has one tensor per matched layer, of shape
(C, rows, n) for class gradients (see `how.as_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import how, networks, where
from .augment import siamese_for
from .data import Data
from .recipe import Recipe
from .runtime import generator
from .speed import batch_gradient, class_gradients
from .speed.recording import Runner
from .what import WHAT

# The released scripts' mixed mini-batches for the inter-class gradient, and the real images of each class from which
# BatchNorm's running statistics are taken before each update.
MIXED_REAL, MIXED_IMAGES, BATCHNORM_IMAGES = 1024, 256, 16
STREAMS = ("batches", "mixed", "augment", "validation", "shuffle")


def streams_of(recipe: Recipe, k: int, t: int) -> dict[str, torch.Generator]:
    """One random stream per purpose for inner iteration (k, t).

    Runs that differ only in `where` therefore meet the same networks and the same real batches.
    """
    return {purpose: generator(recipe.seed, purpose, k, t) for purpose in STREAMS}


# ---- line 1: S_0 -----------------------------------------------------------------------------------------


def initial(data: Data, recipe: Recipe) -> Tensor:
    """Line 1: S_0, from N(0, 1) in normalised pixels or random real images.

    Parameters
    ----------
    data : Data
        Its device and dtype are those of S_0.
    recipe : Recipe
        `init` says which of the two.

    Returns
    -------
    Tensor
        (C*ipc, channels, height, width), sorted by class.
    """
    C, ipc, seed = data.n_classes, recipe.ipc, recipe.seed
    if recipe.init == "real":
        return torch.cat([data.sample(c, ipc, generator(seed, "init", c)) for c in range(C)])
    noise = torch.randn(C * ipc, *data.shape, generator=generator(seed, "init"))
    return noise.to(data.train_images)


# ---- line 3: theta_0 -------------------------------------------------------------------------------------


def fresh_network(data: Data, recipe: Recipe, k: int) -> nn.Module:
    """Line 3: theta_0 ~ P_theta0, the network of outer iteration k, on the data's device and in its dtype."""
    return networks.build(
        recipe.network,
        data.shape,
        data.n_classes,
        width=recipe.width,
        depth=recipe.depth,
        generator=generator(recipe.seed, "network", k),
        device=data.train_images.device,
        dtype=data.train_images.dtype,
    )


# ---- lines 5-6: mini-batches -----------------------------------------------------------------------------


class Batches(NamedTuple):
    """What one update of S sees besides S itself.

    Attributes
    ----------
    images : tuple of Tensor
        The real images of all classes, (sum of sizes, channels, height, width). For `inter_batches="sampled"` also
        the places in S of the mixed synthetic batch, and the mixed real batch with its labels.
    sizes : list of int
        Real images of each class.
    transforms : list of callables
        One augmentation per class, applied to both sides.
    """

    images: tuple[Tensor, ...]
    sizes: list[int]
    transforms: list[Callable[[Tensor], Tensor]]

    @property
    def for_batchnorm(self) -> Tensor:
        """The first images of each class, from which BatchNorm's statistics are taken."""
        return torch.cat([real[:BATCHNORM_IMAGES] for real in self.images[0].split(self.sizes)])


def sample(data: Data, recipe: Recipe, streams: dict[str, torch.Generator]) -> Batches:
    """Lines 5-6: a mini-batch of each class of T. S is small, so its batches are all images of a class."""
    real = data.sample_classes(recipe.batch_real, streams["batches"])
    transforms = [siamese_for(recipe.augment, data.name, streams["augment"]) for _ in real]
    images: tuple[Tensor, ...] = (torch.cat(real),)
    if recipe.inter_batches == "sampled":
        some = torch.randperm(data.n_classes * recipe.ipc, generator=streams["mixed"])[:MIXED_IMAGES]
        x, y = data.sample_any(MIXED_REAL, streams["mixed"])
        images += (some.to(y.device), x, y)
    return Batches(images, [len(part) for part in real], transforms)


def runner_for(data: Data, recipe: Recipe) -> Runner:
    """What runs the steps of a run on the data's device."""
    largest = max(recipe.batch_real, recipe.ipc, MIXED_REAL if recipe.inter_batches == "sampled" else 0)
    return Runner(data.train_images.device, largest, data.n_classes)


# ---- line 7: gradients -----------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """Gradients of S and of T, one tensor per matched layer on each side.

    Attributes
    ----------
    S, T : list of Tensor
        Class gradients gS_c and gT_c, (C, rows, n). S can be differentiated with respect to the images.
    mixed : tuple or None
        Gradients of the mixed batches of S and T, (rows, n), for `inter_batches="sampled"`.
    """

    S: how.Gradient
    T: how.Gradient
    mixed: tuple[how.Gradient, how.Gradient] | None = None

    @property
    def detached(self) -> Gradients:
        """The class gradients without what could be differentiated."""
        return Gradients([layer.detach() for layer in self.S], self.T)


def gradients(
    theta: nn.Module,
    S: Tensor,
    labels: Tensor,
    B: Batches,
    recipe: Recipe,
    chunk: int | None = None,
    images: tuple[Tensor, ...] | None = None,
) -> Gradients:
    """Line 7: gS_c = grad L(B_c^S, theta) and gT_c = grad L(B_c^T, theta), for every class c.

    Parameters
    ----------
    theta : nn.Module
        The network.
    S, labels : Tensor
        The synthetic images and their classes.
    B : Batches
        From `sample`.
    recipe : Recipe
        Its `ipc` and `precision` count.
    chunk : int, optional
        Images in one pass at most; None for no limit. The result is the same to rounding.
    images : tuple of Tensor, optional
        Taken in place of `B.images`: the buffers of a recorded step.

    Returns
    -------
    Gradients
    """
    real, *mixed = B.images if images is None else images
    B_S = [transform(x) for transform, x in zip(B.transforms, S.split(recipe.ipc), strict=True)]
    B_T = [transform(x) for transform, x in zip(B.transforms, real.split(B.sizes), strict=True)]
    gS = class_gradients(theta, B_S, create_graph=True, chunk=chunk)
    gT = class_gradients(theta, B_T, chunk=chunk, precision=recipe.precision)
    if not mixed:
        return Gradients(gS, gT)
    some, x, y = mixed
    mixed_S = batch_gradient(theta, S[some], labels[some], create_graph=True, chunk=chunk)
    mixed_T = batch_gradient(theta, x, y, chunk=chunk, precision=recipe.precision)
    return Gradients(gS, gT, (mixed_S, mixed_T))


# ---- line 8: the matching loss ---------------------------------------------------------------------------


def class_weights(data: Data, recipe: Recipe) -> Tensor:
    """Eq. 5's weight of each class, (C,) float64 with sum 1."""
    if recipe.class_weights == "share":
        return data.class_weights
    return torch.full_like(data.class_weights, 1 / data.n_classes)


def matching_loss(
    g: Gradients, S: Tensor, weights: Tensor, recipe: Recipe, k: int, retain_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Line 8: loss = sum_c D(gS_c, gT_c) + lam * D(mean_c gS_c, mean_c gT_c), and its gradient with respect to S.

    Parameters
    ----------
    g : Gradients
        From `gradients`.
    S : Tensor
        The images that `g` was computed from.
    weights : Tensor
        (C,), from `class_weights`.
    recipe : Recipe
        `what` chooses the terms, `how` is D, `lam` their weight.
    k : int
        Outer iteration; only `what="interleaved"` depends on it.
    retain_graph : bool
        Keep what a further loss of the same gradients needs.

    Returns
    -------
    loss : Tensor
        A scalar, detached.
    dS : Tensor
        Shape of S.

    Source: Eq. 6, Section 3.1.
    """
    lam = len(weights) if recipe.lam is None else recipe.lam
    D = how.distance(recipe.how)
    loss = WHAT[recipe.what](D, g.S, g.T, lam=lam, weights=weights, k=k, mixed=g.mixed)
    (dS,) = torch.autograd.grad(loss, S, retain_graph=retain_graph)
    return loss.detach(), dS


def match(
    theta: nn.Module, S: Tensor, labels: Tensor, B: Batches, weights: Tensor, recipe: Recipe, k: int, run: Runner
) -> tuple[Tensor, Tensor, Gradients]:
    """Lines 7 and 8 as one step, which `run` repeats in smaller passes if memory runs out and records on CUDA.

    Parameters are those of `gradients` and `matching_loss`. Freezes BatchNorm at the statistics of the real images first.

    Returns
    -------
    loss, dS : Tensor
        As `matching_loss`.
    g : Gradients
        Detached. On CUDA the next call overwrites all three.
    """
    networks.freeze_batchnorm(theta, B.for_batchnorm)

    def lines_7_and_8(*images: Tensor) -> tuple[Tensor, Tensor, Gradients]:
        g = gradients(theta, S, labels, B, recipe, run.chunk, images)  # line 7
        loss, dS = matching_loss(g, S, weights, recipe, k)  # line 8
        return loss, dS, g.detached

    # Augmentation makes every call different, and only interleaved matching depends on k.
    name = None if recipe.augment != "none" else ("match", recipe.what == "interleaved" and k % 2)
    return run(name, lines_7_and_8, *B.images)


# ---- lines 10-13: how far theta goes ---------------------------------------------------------------------


class Path:
    """theta_t^0, theta_t^1, ... of lines 10-13: the losses along them, and the test for overfitting (Section 3.3).

    Nothing is measured unless the recipe updates until overfitting, or `always` is set.

    Attributes
    ----------
    steps : int
        Steps of theta so far.
    losses : list of Losses
        L(S, theta) and L(T, theta) at each theta so far, if measured. L(S, theta) is NaN where the test does not need it.
    detection : tuple or None
        (i, L(S, theta), L(T, theta)) if step i, counted from 0, overfitted S.
    """

    def __init__(
        self,
        network: nn.Module,
        S: Tensor,
        labels: Tensor,
        data: Data,
        recipe: Recipe,
        rng: torch.Generator,
        always: bool = False,
    ):
        self.network, self.S, self.labels = network, S, labels
        self.overfits, self.gap = where.STOP.get(recipe.where), recipe.gap
        self.measured = always or self.overfits is not None
        self.on_S = always or recipe.where in where.NEED_S
        self.steps = 0
        self.losses: list[where.Losses] = []
        self.detection: tuple[int, float, float] | None = None
        if self.measured:
            self.validation = data.sample_any(where.VALIDATION_BATCH, rng)
            self.losses.append(measure(network, S, labels, self.validation, self.on_S))

    def ends(self) -> bool:
        """Count the step just taken, and say if it overfitted S."""
        self.steps += 1
        if not self.measured:
            return False
        self.losses.append(measure(self.network, self.S, self.labels, self.validation, self.on_S))
        before, after = self.losses[-2:]
        if self.overfits is None or not self.overfits(before, after, self.gap):
            return False
        loss_S = after.S if self.on_S else loss_on(self.network, self.S, self.labels)
        self.detection = (self.steps - 1, loss_S, after.T)
        return True


def measure(
    network: nn.Module, S: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor], on_S: bool = True
) -> where.Losses:
    """L(S, theta), NaN unless `on_S`, and L(T, theta) on one batch of real images, in nats."""
    return where.Losses(loss_on(network, S, labels) if on_S else math.nan, loss_on(network, *validation))


@torch.no_grad()
def loss_on(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """The mean cross-entropy in nats, in training mode: BatchNorm normalises by the batch."""
    network.train()
    return F.cross_entropy(network(x), y).item()
