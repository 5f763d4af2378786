"""Coresets: real images chosen to stand for their class, the baselines a condensed set has to beat (Section 4.5).

"random" draws them. "herding" [6, 2] keeps their mean close to the class mean, "kcenter" spreads them over the class; both go by
Euclidean distances, in pixel space or, by default, in the feature space of a network trained on the whole training set.

"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import networks
from .checks import check_number, choose, plain
from .data import Data, check_ipc
from .runtime import device_of, generator, progress_bar
from .sets import SyntheticSet
from .speed.precision import matmul_precision
from .speed.recording import step_recorder
from .speed.training import fit

FIT_BATCH = (
    64  # images per step of the feature network: small data sets need the many steps to be learnt in few epochs
)
FEATURE_BATCH = 512  # images in one forward pass for features
KEPT = 8  # feature networks of this process that are kept for the next coreset


_trained: dict[tuple, nn.Module] = {}


def random_choice(x: Tensor, ipc: int, rng: torch.Generator) -> Tensor:
    """`ipc` indices without replacement, all equally likely."""
    return torch.randperm(len(x), generator=rng)[:ipc]


def herding(x: Tensor, ipc: int, rng: torch.Generator | None = None) -> Tensor:
    """Greedily, the row not yet chosen that brings the mean of the chosen closest to the mean of all; of equals, the first.

    x: (n, ...), one image's features in each row; distances are Euclidean, in float64. Nothing is drawn from rng.
    """
    x = x.flatten(1).double()
    mean, total, free = x.mean(0), torch.zeros_like(x[0]), torch.ones(len(x), dtype=torch.bool, device=x.device)
    chosen = []
    for k in range(1, ipc + 1):
        # || mean - (total + x_i) / k || is smallest where x_i is closest to k * mean - total
        i = _distances(x, k * mean - total).where(free, torch.inf).argmin()
        total, free[i] = total + x[i], False
        chosen.append(i)
    return torch.stack(chosen)


def kcenter(x: Tensor, ipc: int, rng: torch.Generator | None = None) -> Tensor:
    """Greedy k-centre: first the row closest to the mean of all, then always the one farthest from those chosen.

    x, distances, equals, rng: as in `herding`.
    """
    x = x.flatten(1).double()
    chosen = [_distances(x, x.mean(0)).argmin()]
    nearest = _distances(x, x[chosen[0]])  # to the nearest of those chosen
    for _ in range(1, ipc):
        nearest[chosen[-1]] = -1  # never again, where images are equal and all distances 0
        chosen.append(nearest.argmax())
        nearest = nearest.minimum(_distances(x, x[chosen[-1]]))
    return torch.stack(chosen)


def _distances(x: Tensor, point: Tensor) -> Tensor:
    """(n,) Euclidean distances of rows to a point, term by term: equal rows get equal bits, and there is no (n, d) copy."""
    return torch.cdist(x, point[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


CORESETS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "random": random_choice,
    "herding": herding,
    "herding-pixel": herding,
    "kcenter": kcenter,
    "kcenter-pixel": kcenter,
}


def features(network: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer of `network` takes in for images (n, channels, height, width): (n, d), on its device."""
    last, seen = _last_linear(network), []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    try:
        with torch.no_grad():
            for batch in images.split(FEATURE_BATCH):
                network(batch.to(last.weight.device))
    finally:
        hook.remove()
    return torch.cat(seen)


def _last_linear(network: nn.Module, name: str = "given") -> nn.Linear:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"the network {name!r} has no linear layer to take features from: use another, or space='pixel'"
        )
    return layers[-1]


def feature_network(data: Data, recipe: dict[str, Any], device: torch.device, progress: bool = False) -> nn.Module:
    """A network trained on all training images by `networks.fit`, in evaluation mode; the last few are kept in memory.

    recipe: see `recipe_of`; its seed decides about the first weights and the mini-batches.
    """
    seed, epochs, dtype = recipe["seed"], recipe["epochs"], data.train_images.dtype
    factory = networks.NETWORKS[
        networks.parse_name(recipe["network"])[0]
    ]  # a user's name may come to stand for another one
    choices = [recipe[name] for name in ("seed", "network", "width", "depth", "epochs")]
    key = (data.fingerprint, dtype, device, factory, *choices)
    if key not in _trained:
        network = _fresh(data, recipe, device, dtype)
        x, y = data.train_images.to(device), data.train_labels.to(device)
        with progress_bar("feature network", epochs, "epoch", progress) as bar:

            def count(x: Tensor) -> Tensor:
                bar.update()
                return x

            rng, as_recorded = generator(seed, "coreset batches"), step_recorder(device)
            fit(network, x, y, epochs=epochs, rng=rng, batch=FIT_BATCH, vary=count, as_recorded=as_recorded)
        while len(_trained) >= KEPT:
            del _trained[next(iter(_trained))]  # the oldest
        _trained[key] = network.eval()
    return _trained[key]


def _fresh(
    data: Data, recipe: dict[str, Any], device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    return networks.build(
        recipe["network"], data.shape, data.n_classes, width=recipe["width"], depth=recipe["depth"],
        generator=generator(recipe["seed"], "coreset network"), device=device, dtype=dtype,
    )  # fmt: skip


def _network_space(
    data: Data, recipe: dict[str, Any], device: torch.device, progress: bool
) -> Callable[[Tensor], Tensor]:
    return partial(features, feature_network(data, recipe, device, progress))


def _pixel_space(
    data: Data, recipe: dict[str, Any], device: torch.device, progress: bool
) -> Callable[[Tensor], Tensor]:
    return lambda images: images.to(device)


# name -> the function that, made once for a data set, maps images (n, channels, height, width) to features (n, ...).
SPACES = {"network": _network_space, "pixel": _pixel_space}


# The spaces that each coreset can be chosen in, its default first.
SPACES_OF = {
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
    """The recipe of the set that `coreset` makes of these: every choice that it depends on, and no other. Nothing is computed.

    Keys: method, dataset, ipc, seed; "space" where distances are measured; network, width, depth, epochs where that is
    between a network's features. Raises ValueError as `coreset` does.
    """
    if not isinstance(data, Data):
        raise ValueError(
            f"give the coreset's name and then data, not {type(method).__name__} and {type(data).__name__}"
        )
    choose(CORESETS, "coreset", method)
    ipc, seed, width, depth, epochs = map(plain, (ipc, seed, width, depth, epochs))
    check_ipc(data, ipc)
    check_number("seed", seed, least=0, whole=True)
    recipe = {"method": method, "dataset": data.name, "ipc": ipc, "seed": seed}
    if space is not None:
        choose(SPACES, "space", space)
        if space not in SPACES_OF[method]:
            raise ValueError(
                f"coreset {method!r} is not chosen in space={space!r}: leave space= out or take another coreset"
            )
    space = space or next(iter(SPACES_OF[method]), None)
    if space is None:
        return recipe
    recipe["space"] = space
    if space == "network":
        size = {"width": width, "depth": depth, "epochs": epochs}
        for name, value in size.items():
            check_number(name, value, least=1, whole=True)
        recipe |= {"network": network, **size}
        _last_linear(
            _fresh(data, recipe), network
        )  # the architecture must be known, fit the images, and have features
    return recipe


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
) -> SyntheticSet:
    """`ipc` real training images per class, as a SyntheticSet on the data's device, sorted by class, in the order of choice.

    method: a name in CORESETS. The same seed gives the same images on one machine.
    space: "network" or "pixel", where "herding" and "kcenter" measure distances; None: "network", the paper's use.
    "herding-pixel" and "kcenter-pixel" are the same with "pixel", and like it do not depend on the seed.
    network, width, depth, epochs: of the network (see `networks.build`) that is trained on all training images; what its last
    linear layer takes in are the features. SGD, lr 0.01 and a tenth of it after half the epochs, momentum 0.9, mini-batches of
    64, first weights by `seed`. One process trains it once for all ipc and methods.
    device: for training and distances; None takes CUDA where there is one, else the CPU. progress: show bars.

    Raises ValueError for an unknown method, space or network, a space that the method does not take, a network that does not
    fit the images, or an ipc outside 1..smallest class, before any work.
    """
    recipe = recipe_of(method, data, ipc, seed, space=space, network=network, width=width, depth=depth, epochs=epochs)
    space, select = recipe.get("space"), CORESETS[method]
    device = device_of(device)
    as_features = SPACES[space](data, recipe, device, progress) if space else lambda images: images
    chosen = []
    bar = progress_bar(method, data.n_classes, "class", progress)
    for c in range(data.n_classes):
        images = data.of_class(c)
        picked = select(as_features(images), ipc, generator(seed, "coreset", method, c))
        chosen.append(images[picked.to(images.device)])
        bar.update()
    bar.close()
    return SyntheticSet(
        images=torch.cat(chosen),
        labels=torch.arange(data.n_classes, device=chosen[0].device).repeat_interleave(ipc),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        recipe=recipe,
    )
