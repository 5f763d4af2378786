"""Coresets: real images chosen to represent their class. They are baselines for condensed sets (Section 4.5).

"random" draws images. "herding" [6, 2] keeps their mean close to the class mean. "kcenter" spreads them over the
class. The last two use Euclidean distances between pixels, or between the features of a network trained on the
whole training set, which is the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import networks
from .checkpoint import TrainingCheckpoint, training_folder
from .checks import check_flag, check_number, choose, shown
from .data import Data, check_ipc
from .runtime import check_deadline, device_of, generator, in_time, plain_torch, progress_bar, time_limit
from .sets import SyntheticSet
from .speed.precision import matmul_precision
from .speed.recording import step_recorder
from .speed.training import fit

FIT_BATCH = 64  # images per training step of the feature network: small data sets need many steps per epoch
FEATURE_BATCH = 512  # images in one forward pass for features
KEPT = 8  # trained feature networks kept in memory
TRAINING = "training-features.safetensors"  # the feature network in training


_trained: dict[tuple, nn.Module] = {}


def random_choice(x: Tensor, ipc: int, rng: torch.Generator) -> Tensor:
    """Draw ``ipc`` indices without replacement, all equally likely."""
    ipc = _checked(x, ipc)
    if not isinstance(rng, torch.Generator):
        raise ValueError(f"rng is a {type(rng).__name__}: give a torch.Generator")
    return torch.randperm(len(x), generator=rng)[:ipc]


def herding(x: Tensor, ipc: int, rng: torch.Generator | None = None) -> Tensor:
    """Greedily choose the row that brings the mean of the chosen rows closest to the mean of all rows.

    Parameters
    ----------
    x : Tensor
        (n, ...), the features of one image in each row. Distances are Euclidean, in float64.
    ipc : int
    rng : torch.Generator, optional
        Not used.

    Returns
    -------
    Tensor
        (ipc,) indices of different rows in the order of choice. If rows are equally good, the first is taken.

    Raises
    ------
    ValueError
        If x is no tensor, or ``ipc`` is not from 1 to n.
    """
    ipc = _checked(x, ipc)
    x = x.flatten(1).double()
    mean = x.mean(0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(x), dtype=torch.bool, device=x.device)
    chosen = []
    for k in in_time(range(1, ipc + 1)):
        # || mean - (total + x_i) / k || is smallest where x_i is closest to k * mean - total
        i = _distances(x, k * mean - total).where(free, torch.inf).argmin()
        total = total + x[i]
        free[i] = False
        chosen.append(i)
    return torch.stack(chosen)


def kcenter(x: Tensor, ipc: int, rng: torch.Generator | None = None) -> Tensor:
    """Greedy k-centre: choose the row closest to the mean, then always the row farthest from those chosen.

    Parameters
    ----------
    x, ipc, rng
        As in `herding`.

    Returns
    -------
    Tensor
        (ipc,) indices of different rows in the order of choice. If rows are equally good, the first is taken.

    Raises
    ------
    ValueError
        If x is no tensor, or ``ipc`` is not from 1 to n.
    """
    ipc = _checked(x, ipc)
    x = x.flatten(1).double()
    chosen = [_distances(x, x.mean(0)).argmin()]
    nearest = _distances(x, x[chosen[0]])  # distance to the nearest chosen row
    for _ in in_time(range(1, ipc)):
        nearest[chosen[-1]] = -1  # not again, even if all images are equal and all distances 0
        chosen.append(nearest.argmax())
        nearest = nearest.minimum(_distances(x, x[chosen[-1]]))
    return torch.stack(chosen)


def _checked(x: Tensor, ipc: int) -> int:
    if not isinstance(x, Tensor) or x.ndim < 2:
        raise ValueError(f"x is a {type(x).__name__}: give a tensor with the features of one image in each row")
    return check_number("ipc", ipc, least=1, below=len(x) + 1, whole=True)


def _distances(x: Tensor, point: Tensor) -> Tensor:
    """(n,) Euclidean distances of rows to a point, without matrix products, so that equal rows have equal bits."""
    return torch.cdist(x, point[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


CORESETS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "random": random_choice,
    "herding": herding,
    "herding-pixel": herding,
    "kcenter": kcenter,
    "kcenter-pixel": kcenter,
}


def features(network: nn.Module, images: Tensor) -> Tensor:
    """The inputs of the last linear layer of ``network``.

    Parameters
    ----------
    network : nn.Module
    images : Tensor
        (n, channels, height, width).

    Returns
    -------
    Tensor
        (n, d), on the network's device.

    Raises
    ------
    ValueError
        If the network has no linear layer, or a feature is not finite.
    """
    if not (isinstance(network, nn.Module) and isinstance(images, Tensor) and images.ndim == 4):
        raise ValueError(
            "give a network and a tensor (n, channels, height, width), "
            f"not {type(network).__name__} and {type(images).__name__}"
        )
    last = _last_linear(network)
    inputs: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: inputs.append(given[0].flatten(1)))
    try:
        with torch.no_grad():
            for batch in in_time(images.split(FEATURE_BATCH)):
                network(batch.to(last.weight.device))
    finally:
        hook.remove()
    found = torch.cat(inputs)
    if not found.isfinite().all():
        raise ValueError(
            "the training of the feature network diverged: take another seed= or network=, or space='pixel'"
        )
    return found


def _last_linear(network: nn.Module, name: str = "given") -> nn.Linear:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"the network {name!r} has no linear layer for features: use another, or space='pixel'")
    return layers[-1]


def feature_network(
    data: Data, recipe: dict[str, Any], device: torch.device, progress: bool = False, checkpoint: Path | None = None
) -> nn.Module:
    """Train a network on all training images. The last few networks are kept in memory.

    Parameters
    ----------
    data : Data
    recipe : dict
        What `recipe_of` returns. Its seed decides the first weights and the mini-batches.
    device : torch.device
    progress : bool
        Show a progress bar.
    checkpoint : Path, optional
        As in `coreset`.

    Returns
    -------
    nn.Module
        In evaluation mode.

    Raises
    ------
    ValueError
        If ``recipe`` is for no network, or the device cannot be used.
    """
    if not (isinstance(data, Data) and isinstance(recipe, dict) and "network" in recipe):
        raise ValueError(
            f"give a Data and what recipe_of returns for features, not {type(data).__name__} and {shown(recipe)}"
        )
    device = device_of(device)
    seed, epochs, dtype = recipe["seed"], recipe["epochs"], data.train_images.dtype
    factory = networks.NETWORKS[networks.parse_name(recipe["network"])[0]]  # a name can be registered again
    key = (data.fingerprint, dtype, device, factory, *_choices(recipe).values())
    if key not in _trained:
        network = _build(data, recipe, device, dtype)
        x, y = data.train_images.to(device), data.train_labels.to(device)
        with progress_bar("feature network", epochs, "epoch", progress) as bar:

            def count_epoch(x: Tensor) -> Tensor:
                bar.update()
                return x

            rng = generator(seed, "coreset batches")
            as_recorded = step_recorder(device)
            kept = features_checkpoint(data, recipe, checkpoint)
            fit(
                network, x, y, epochs=epochs, rng=rng, batch=FIT_BATCH, vary=count_epoch, as_recorded=as_recorded,
                checkpoint=kept,
            )  # fmt: skip
        while len(_trained) >= KEPT:
            del _trained[next(iter(_trained))]  # the oldest
        _trained[key] = network.eval()
    return _trained[key]


def _choices(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: recipe[name] for name in ("seed", "network", "width", "depth", "epochs")}


def features_checkpoint(data: Data, recipe: dict[str, Any], folder: Path | None) -> TrainingCheckpoint:
    """The file of the feature network in training. ``recipe`` is what `recipe_of` returns."""
    of = {"data": data.fingerprint, "batch": FIT_BATCH}
    path = folder / TRAINING if folder and "network" in recipe else None
    return TrainingCheckpoint(path, of | (_choices(recipe) if path else {}))


def _build(
    data: Data, recipe: dict[str, Any], device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    rng = generator(recipe["seed"], "coreset network")
    size = {"width": recipe["width"], "depth": recipe["depth"]}
    return networks.build(
        recipe["network"], data.shape, data.n_classes, generator=rng, device=device, dtype=dtype, **size
    )


def _network_space(
    data: Data, recipe: dict[str, Any], device: torch.device, progress: bool, checkpoint: Path | None
) -> Callable[[Tensor], Tensor]:
    return partial(features, feature_network(data, recipe, device, progress, checkpoint))


def _pixel_space(
    data: Data, recipe: dict[str, Any], device: torch.device, progress: bool, checkpoint: Path | None
) -> Callable[[Tensor], Tensor]:
    return lambda images: images.to(device)


# Each function makes the map from images (n, channels, height, width) to features (n, ...) for one data set.
SPACES = {"network": _network_space, "pixel": _pixel_space}

# The spaces in which each coreset can be chosen, its default first.
SPACES_OF: dict[str, tuple[str, ...]] = {
    "random": (),
    "herding": ("network", "pixel"),
    "herding-pixel": ("pixel",),
    "kcenter": ("network", "pixel"),
    "kcenter-pixel": ("pixel",),
}


def recipe_of(
    method: str,
    data: Data,
    ipc: int,
    seed: int = 0,
    *,
    space: str | None = None,
    network: str = "convnet",
    width: int = 128,
    depth: int = 3,
    epochs: int = 20,
) -> dict[str, Any]:
    """Check the arguments of `coreset` and return the recipe of its set, without any computation.

    Parameters
    ----------
    method, data, ipc, seed, space, network, width, depth, epochs
        As in `coreset`.

    Returns
    -------
    dict
        Only the choices that the set depends on: method, dataset, ipc and seed; space, if distances are measured;
        network, width, depth and epochs, if they are between features of a network.

    Raises
    ------
    ValueError
        As `coreset`.
    """
    if not isinstance(data, Data):
        raise ValueError(
            f"give the name of a coreset, then a Data, not {type(method).__name__}, {type(data).__name__}"
        )
    choose(CORESETS, "coreset", method)
    ipc = check_ipc(data, ipc)
    seed = check_number("seed", seed, least=0, whole=True)
    recipe: dict[str, Any] = {"method": method, "dataset": data.name, "ipc": ipc, "seed": seed}
    if space is not None:
        choose(SPACES, "space", space)
        if space not in SPACES_OF[method]:
            raise ValueError(f"coreset {method!r} has no space={space!r}: leave space= out or take another coreset")
    space = space or next(iter(SPACES_OF[method]), None)
    if space is None:
        return recipe
    recipe["space"] = space
    if space == "network":
        size = {"width": width, "depth": depth, "epochs": epochs}
        size = {name: check_number(name, value, least=1, whole=True) for name, value in size.items()}
        recipe |= {"network": network, **size}
        _last_linear(_build(data, recipe), network)  # raises if the network does not fit or has no features
    return recipe


@plain_torch()
@matmul_precision("float32")
def coreset(
    method: str,
    data: Data,
    ipc: int,
    seed: int = 0,
    *,
    space: str | None = None,
    network: str = "convnet",
    width: int = 128,
    depth: int = 3,
    epochs: int = 20,
    device: torch.device | str | None = None,
    progress: bool = False,
    deadline: float | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> SyntheticSet:
    """Choose ``ipc`` real training images per class.

    Parameters
    ----------
    method : str
        A name in ``CORESETS``. ``"herding-pixel"`` and ``"kcenter-pixel"`` are the same as ``"herding"`` and
        ``"kcenter"`` with ``space="pixel"``.
    data : Data
    ipc : int
        Images per class.
    seed : int
        The same seed gives the same images on one machine. With ``space="pixel"`` nothing depends on it.
    space : str, optional
        ``"network"`` or ``"pixel"``, where distances are measured. None takes ``"network"`` if possible.
    network : str
        Trained on all training images with SGD (learning rate 0.01, a tenth of it after half the epochs, momentum
        0.9, mini-batches of 64). The features are the inputs of its last linear layer.
    width, depth : int
        Of the network, see `networks.build`.
    epochs : int
        Of the network's training.
    device : torch.device or str, optional
        For training and distances. None takes CUDA if there is a GPU, else the CPU.
    progress : bool
        Show progress bars.
    deadline : float, optional
        In the unit of ``time.monotonic()``.
    checkpoint : path, optional
        A folder that exists. The network in training is stored there after an epoch, at most once a minute, and the
        same call continues it. Delete training-features.safetensors once the set is saved.

    Returns
    -------
    SyntheticSet
        On the data's device, sorted by class, the images of a class in the order of choice.

    Raises
    ------
    ValueError
        If a name is unknown, the method has no such space, the network does not fit the images, or ``ipc`` is not
        from 1 to the size of the smallest class. This is checked before any work.
    OutOfTime
        At the deadline. Without ``checkpoint`` nothing is saved.

    Source
    ------
    Section 4.5.
    """
    recipe = recipe_of(method, data, ipc, seed, space=space, network=network, width=width, depth=depth, epochs=epochs)
    check_flag("progress", progress)
    check_deadline(deadline)
    folder = training_folder(checkpoint)
    device, ipc, seed = device_of(device), recipe["ipc"], recipe["seed"]
    used_space = recipe.get("space")
    chosen = []
    advice = "run again to continue" if folder and used_space == "network" else "give it more time"
    with time_limit(deadline, lambda: f"out of time before the coreset {method!r} was chosen: {advice}"):
        as_features: Callable[[Tensor], Tensor] = lambda images: images  # noqa: E731
        if used_space:
            as_features = SPACES[used_space](data, recipe, device, progress, folder)
        with progress_bar(method, data.n_classes, "class", progress) as bar:
            for c in in_time(range(data.n_classes)):
                images = data.of_class(c)
                indices = CORESETS[method](as_features(images), ipc, generator(seed, "coreset", method, c))
                chosen.append(images[indices.to(images.device)])
                bar.update()
    return SyntheticSet(
        images=torch.cat(chosen),
        labels=data.labels_of(ipc),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        recipe=recipe,
    )
