"""The lines of Algorithm 1 as functions. `gmlib.algorithm.algorithm_1` calls them in the order of the print.

S is (C*ipc, channels, height, width), normalised and sorted by class. Class gradients are one (C, rows, n) tensor per
matched layer, see `gmlib.how.as_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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

MIXED_REAL = 1024  # real images in a batch of mixed classes, as in the released scripts
MIXED_IMAGES = 256  # condensed images in such a batch, at most
BATCHNORM_IMAGES = 16  # real images per class that BatchNorm's statistics are taken from before each update of S
STREAMS = ("batches", "mixed", "augment", "validation", "shuffle")


def streams_of(recipe: Recipe, k: int, t: int) -> dict[str, torch.Generator]:
    """One random stream for each purpose in inner iteration (k, t).

    The streams depend on the seed, k and t alone. So runs that differ only in ``where`` use the same real batches.

    Returns
    -------
    dict
        A generator for each name in ``STREAMS``.
    """
    return {purpose: generator(recipe.seed, purpose, k, t) for purpose in STREAMS}


# ---- line 1: S_0 -----------------------------------------------------------------------------------------


def initial(data: Data, recipe: Recipe) -> Tensor:
    """Draw S_0: noise from N(0, 1) in normalised pixels, or random real images.

    Parameters
    ----------
    data : Data
        S_0 gets its device and dtype.
    recipe : Recipe
        Its ``init`` chooses.

    Returns
    -------
    Tensor
        (C*ipc, channels, height, width), sorted by class.

    Source
    ------
    Line 1 of Algorithm 1.
    """
    C, ipc, seed = data.n_classes, recipe.ipc, recipe.seed
    if recipe.init == "real":
        return torch.cat([data.sample(c, ipc, generator(seed, "init", c)) for c in range(C)])
    noise = torch.randn(C * ipc, *data.shape, generator=generator(seed, "init"))
    return noise.to(data.train_images)


# ---- line 3: theta_0 -------------------------------------------------------------------------------------


def fresh_network(data: Data, recipe: Recipe, k: int, device: str | None = None) -> nn.Module:
    """Draw theta_0 ~ P_theta0, the network of outer iteration k, in the dtype of the data.

    Parameters
    ----------
    data : Data
    recipe : Recipe
    k : int
    device : str, optional
        None takes the data's device.

    Source
    ------
    Line 3 of Algorithm 1.
    """
    return networks.build(
        recipe.network,
        data.shape,
        data.n_classes,
        width=recipe.width,
        depth=recipe.depth,
        generator=generator(recipe.seed, "network", k),
        device=device or data.train_images.device,
        dtype=data.train_images.dtype,
    )


# ---- lines 5-6: mini-batches -----------------------------------------------------------------------------


class Chosen(NamedTuple):
    """The random choices of one update of S, on the host.

    Attributes
    ----------
    real : list of Tensor
        Numbers of the real training images of each class, int64.
    mixed : tuple of Tensor
        With inter_batches="sampled": numbers of the images of S and of the real training images in the batches of
        mixed classes, int64. Otherwise empty.
    transforms : list of callables
        One augmentation per class.
    """

    real: list[Tensor]
    mixed: tuple[Tensor, ...]
    transforms: list[Callable[[Tensor], Tensor]]


@dataclass(eq=False)
class Batches:
    """The mini-batches of one update of S.

    Attributes
    ----------
    images : tuple of Tensor
        The real images of all classes, (sum of sizes, channels, height, width). With inter_batches="sampled" the real
        batch of mixed classes and its labels follow.
    sizes : list of int
        Number of real images of each class.
    transforms : list of callables
        One augmentation per class, applied to both sides.
    mixed_S : tuple of Tensor
        With inter_batches="sampled": the indices in S of its batch of mixed classes. Otherwise empty.
    gT : RealGradients or None
        The gradients of the real images, if `gmlib.draws.Draws` keeps them for further runs.
    """

    images: tuple[Tensor, ...]
    sizes: list[int]
    transforms: list[Callable[[Tensor], Tensor]]
    mixed_S: tuple[Tensor, ...] = ()
    gT: RealGradients | None = None

    @property
    def for_batchnorm(self) -> Tensor:
        """The first real images of each class, for BatchNorm's statistics."""
        return torch.cat([real[:BATCHNORM_IMAGES] for real in self.images[0].split(self.sizes)])


def sample(data: Data, recipe: Recipe, streams: dict[str, torch.Generator]) -> Batches:
    """Draw a mini-batch of each class of T. S is small, so its mini-batches are all its images of a class.

    Parameters
    ----------
    data : Data
    recipe : Recipe
        Uses ``batch_real``, ``augment`` and ``inter_batches``.
    streams : dict
        From `streams_of`. Drawing advances them.

    Returns
    -------
    Batches

    Source
    ------
    Lines 5 and 6 of Algorithm 1.
    """
    return gather(data, choose_images(data, recipe, streams))


def choose_images(data: Data, recipe: Recipe, streams: dict[str, torch.Generator]) -> Chosen:
    """Make the random choices of `sample`, without the data's device. Parameters are those of `sample`."""
    real = data.choose_classes(recipe.batch_real, streams["batches"])
    transforms = [siamese_for(recipe.augment, data.name, streams["augment"]) for _ in real]
    mixed: tuple[Tensor, ...] = ()
    if recipe.inter_batches == "sampled":
        some = torch.randperm(data.n_classes * recipe.ipc, generator=streams["mixed"])[:MIXED_IMAGES]
        mixed = (some, data.choose_any(MIXED_REAL, streams["mixed"]))
    return Chosen(real, mixed, transforms)


def gather(data: Data, chosen: Chosen) -> Batches:
    """Take the chosen images, on the data's device."""
    images: tuple[Tensor, ...] = (data.train_images[data.on_device(torch.cat(chosen.real))],)
    sizes = [len(part) for part in chosen.real]
    if not chosen.mixed:
        return Batches(images, sizes, chosen.transforms)
    some, any_class = map(data.on_device, chosen.mixed)
    images += (data.train_images[any_class], data.train_labels[any_class])
    return Batches(images, sizes, chosen.transforms, (some,))


def runner_for(data: Data, recipe: Recipe) -> Runner:
    """Make the `gmlib.speed.recording.Runner` that a run on the data's device passes to its steps."""
    largest = max(recipe.batch_real, recipe.ipc, MIXED_REAL if recipe.inter_batches == "sampled" else 0)
    return Runner(data.train_images.device, largest, data.n_classes)


# ---- line 7: gradients -----------------------------------------------------------------------------------


class RealGradients(NamedTuple):
    """Gradients of T.

    Attributes
    ----------
    classes : list of Tensor
        Class gradients gT, (C, rows, n) per matched layer.
    mixed : list of Tensor
        Gradient of the batch of mixed classes, (rows, n) per matched layer, with inter_batches="sampled". Otherwise
        empty.
    """

    classes: how.Gradient
    mixed: how.Gradient


class Gradients(NamedTuple):
    """Gradients of S and of T.

    Attributes
    ----------
    S, T : list of Tensor
        Class gradients gS and gT, (C, rows, n) per matched layer. gS can be differentiated with respect to the
        images.
    mixed : tuple or None
        Gradients of the mixed batches of S and of T, (rows, n) per matched layer each, with inter_batches="sampled".
    """

    S: how.Gradient
    T: how.Gradient
    mixed: tuple[how.Gradient, how.Gradient] | None = None

    @property
    def detached(self) -> Gradients:
        """The class gradients without a graph."""
        return Gradients([layer.detach() for layer in self.S], self.T)


def real_gradients(theta: nn.Module, B: Batches, recipe: Recipe, runner: Runner) -> RealGradients:
    """Compute the class gradients of T, after freezing BatchNorm at the statistics of real images.

    Parameters
    ----------
    theta : nn.Module
        The network.
    B : Batches
        From `sample`.
    recipe : Recipe
        Uses ``precision``.
    runner : Runner
        Repeats the step in smaller passes if memory runs out. On CUDA it records the step once and replays it.

    Returns
    -------
    RealGradients
        On CUDA the next call with the same runner overwrites them.

    Source
    ------
    Line 7 of Algorithm 1.
    """
    if recipe.precision == "auto":
        raise ValueError('precision="auto" is for condense: take "bf16" or "float32"')
    networks.freeze_batchnorm(theta, B.for_batchnorm)

    def line_7(real: Tensor, *mixed: Tensor) -> RealGradients:
        B_T = [transform(x) for transform, x in zip(B.transforms, real.split(B.sizes), strict=True)]
        # gT_c = grad L(B_c^T, theta)
        gT = class_gradients(theta, B_T, chunk=runner.chunk, precision=recipe.precision)
        if not mixed:
            return RealGradients(gT, [])
        x, y = mixed
        return RealGradients(gT, batch_gradient(theta, x, y, chunk=runner.chunk, precision=recipe.precision))

    # Augmentation makes every call different, so nothing can be recorded.
    return runner("T" if recipe.augment == "none" else None, line_7, *B.images)


def gradients(
    theta: nn.Module,
    S: Tensor,
    labels: Tensor,
    B: Batches,
    gT: RealGradients,
    recipe: Recipe,
    chunk: int | None = None,
) -> Gradients:
    """Compute the class gradients of S, to be matched with those of T.

    Parameters
    ----------
    theta : nn.Module
        The network, as `real_gradients` left it.
    S, labels : Tensor
        The synthetic images and their classes.
    B : Batches
        From `sample`.
    gT : RealGradients
        From `real_gradients` with the same ``theta`` and ``B``.
    recipe : Recipe
        Uses ``ipc``.
    chunk : int, optional
        Largest number of images in one pass; None for no limit. The result is the same up to rounding.

    Returns
    -------
    Gradients

    Source
    ------
    Line 7 of Algorithm 1.
    """
    B_S = [transform(x) for transform, x in zip(B.transforms, S.split(recipe.ipc), strict=True)]
    # gS_c = grad L(B_c^S, theta)
    gS = class_gradients(theta, B_S, create_graph=True, chunk=chunk)
    if not B.mixed_S:
        return Gradients(gS, gT.classes)
    (some,) = B.mixed_S
    mixed_S = batch_gradient(theta, S[some], labels[some], create_graph=True, chunk=chunk)
    return Gradients(gS, gT.classes, (mixed_S, gT.mixed))


# ---- line 8: the matching loss ---------------------------------------------------------------------------


def class_weights(data: Data, recipe: Recipe) -> Tensor:
    """The weight of each class in Eq. 5, (C,) float64 with sum 1."""
    if recipe.class_weights == "share":
        return data.class_weights
    return torch.full_like(data.class_weights, 1 / data.n_classes)


def matching_loss(
    g: Gradients, S: Tensor, weights: Tensor, recipe: Recipe, k: int, retain_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute the matching loss and its gradient with respect to S.

    Parameters
    ----------
    g : Gradients
        From `gradients`.
    S : Tensor
        The images that ``g`` was computed from.
    weights : Tensor
        (C,), from `class_weights`.
    recipe : Recipe
        ``what`` chooses the terms, ``how`` is D, and ``lam`` is the weight of the inter-class term.
    k : int
        Outer iteration. Only what="interleaved" depends on it.
    retain_graph : bool
        True allows a further loss of the same gradients.

    Returns
    -------
    loss : Tensor
        A scalar, detached.
    dS : Tensor
        Shape of S.

    Source
    ------
    Eq. 6, Section 3.1; line 8 of Algorithm 1.
    """
    lam = len(weights) if recipe.lam is None else recipe.lam
    D = how.distance(recipe.how)
    # loss = sum_c D(gS_c, gT_c) + lam * D(mean_c gS_c, mean_c gT_c)
    loss = WHAT[recipe.what](D, g.S, g.T, lam=lam, weights=weights, k=k, mixed=g.mixed)
    (dS,) = torch.autograd.grad(loss, S, retain_graph=retain_graph)
    return loss.detach(), dS


def match(
    theta: nn.Module,
    S: Tensor,
    labels: Tensor,
    B: Batches,
    gT: RealGradients,
    weights: Tensor,
    recipe: Recipe,
    k: int,
    runner: Runner,
) -> tuple[Tensor, Tensor, how.Gradient]:
    """Run line 7 for S, and line 8, as one step.

    Parameters
    ----------
    theta, S, labels, B, gT, weights, recipe, k
        See `gradients` and `matching_loss`.
    runner : Runner
        Repeats the step in smaller passes if memory runs out. On CUDA it records the step once and replays it.

    Returns
    -------
    loss, dS : Tensor
        See `matching_loss`.
    gS : list of Tensor
        Detached class gradients of S. On CUDA the next call overwrites all three.

    Source
    ------
    Lines 7 and 8 of Algorithm 1.
    """
    n = len(gT.classes)

    def lines_7_and_8(*inputs: Tensor) -> tuple[Tensor, Tensor, how.Gradient]:
        # A recorded step reads its own buffers, which hold these inputs.
        real = RealGradients(inputs[:n], inputs[n : n + len(gT.mixed)])
        own = replace(B, mixed_S=inputs[n + len(gT.mixed) :])
        g = gradients(theta, S, labels, own, real, recipe, runner.chunk)  # line 7
        loss, dS = matching_loss(g, S, weights, recipe, k)  # line 8
        return loss, dS, g.detached.S

    # Only interleaved matching depends on k. Augmentation makes every call different, so nothing can be recorded.
    name = None if recipe.augment != "none" else ("S", recipe.what == "interleaved" and k % 2)
    return runner(name, lines_7_and_8, *gT.classes, *gT.mixed, *B.mixed_S)


# ---- lines 10-13: how far theta goes ---------------------------------------------------------------------


class ThetaPath:
    """theta_t^0, theta_t^1, ... of lines 10 to 13, with the losses along them and the test for overfitting.

    The losses are measured only if the recipe updates theta until overfitting, or if ``watch`` is set.

    Parameters
    ----------
    theta : nn.Module
        The network. The caller trains it.
    S, labels : Tensor
        The synthetic images and their classes.
    data : Data
    recipe : Recipe
        Uses ``where`` and ``gap``.
    rng : torch.Generator
        Draws the real images that represent T.
    watch : bool
        Measure the losses for every recipe.

    Attributes
    ----------
    steps : int
        Steps of theta so far.
    losses : list of Losses
        L(S, theta) and L(T, theta) at each theta so far, if measured. L(S, theta) is NaN if the test does not need
        it.
    detection : tuple or None
        (i, L(S, theta), L(T, theta)) if step i, counted from 0, overfitted S.

    Source
    ------
    Section 3.3; lines 10 to 13 of Algorithm 1.
    """

    def __init__(
        self,
        theta: nn.Module,
        S: Tensor,
        labels: Tensor,
        data: Data,
        recipe: Recipe,
        rng: torch.Generator,
        watch: bool = False,
    ):
        self.theta, self.S, self.labels = theta, S, labels
        self.criterion, self.gap = where.STOP.get(recipe.where), recipe.gap
        self.measured = watch or self.criterion is not None
        self.on_S = watch or recipe.where in where.NEED_S
        self.steps = 0
        self.losses: list[where.Losses] = []
        self.detection: tuple[int, float, float] | None = None
        if self.measured:
            self.validation = data.sample_any(where.VALIDATION_BATCH, rng)
            self._measure()

    def step_overfits(self) -> bool:
        """Count a step of theta that was just taken. Returns True if it overfitted S."""
        self.steps += 1
        if not self.measured:
            return False
        self._measure()
        before, after = self.losses[-2:]
        if self.criterion is None or not self.criterion(before, after, self.gap):
            return False
        loss_S = after.S if self.on_S else loss_on(self.theta, self.S, self.labels)
        self.detection = (self.steps - 1, loss_S, after.T)
        return True

    def _measure(self) -> None:
        self.losses.append(measure_losses(self.theta, self.S, self.labels, self.validation, self.on_S))


def measure_losses(
    theta: nn.Module, S: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor], on_S: bool = True
) -> where.Losses:
    """Measure L(S, theta) and L(T, theta).

    Parameters
    ----------
    theta : nn.Module
        The network.
    S, labels : Tensor
        The synthetic images and their classes.
    validation : tuple of Tensor
        One batch of real images and their classes, in place of T.
    on_S : bool
        False gives NaN for L(S, theta), which saves time.

    Returns
    -------
    Losses
        In nats.
    """
    return where.Losses(loss_on(theta, S, labels) if on_S else math.nan, loss_on(theta, *validation))


@torch.no_grad()
def loss_on(theta: nn.Module, x: Tensor, y: Tensor) -> float:
    """The mean cross-entropy in nats, with the network in training mode: BatchNorm normalises by this batch."""
    theta.train()
    return F.cross_entropy(theta(x), y).item()
