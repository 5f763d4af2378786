"""Networks that are trained on S and on T, freshly drawn for every outer iteration and every evaluation (theta0 ~ P_theta0).

All take images (N, channels, height, width) and return logits (N, C). `build` is the door: it checks, seeds and constructs.
NETWORKS holds those of Table 4 and what `register` adds; the shapes are those of the public baseline code (Zhao et al.,
"Dataset Condensation with Gradient Matching", ICLR 2021), whose sizes for 28 and 32 pixels are here derived from the image.
Norm is instance norm everywhere but in the two networks whose name ends in "bn", the sources of Table 4.

"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .checks import choose

Make = Callable[..., nn.Module]
_DRAWING = threading.Lock()  # torch's global generator is one for all threads


def instance_norm(width: int) -> nn.Module:
    """As many groups as channels: instance norm with scale and shift."""
    return nn.GroupNorm(width, width)


class LayerNorm(nn.LayerNorm):
    """Layer norm over (channels, height, width) whose scale and shift, of that shape, are applied in a step of their own.

    The derivative with respect to the images of a batched (vmap) gradient in nn.LayerNorm's own weight is wrong by some
    tenths of a percent in torch 2.14, silently; that of the two steps is right.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, eps=self.eps) * self.weight + self.bias


class HalvingPool(nn.AvgPool2d):
    """2x2 average pool; on a CPU, for images of an even `side`, as one matrix product.

    Two rows of an image lie side by side in memory, and (their 2*side pixels) @ (2*side, side/2) averages them two by two: the
    same to rounding, and a product runs at the rate of convolutions while the pool's own code takes a pixel at a time.
    Measured on one core, 16 images of 128x32x32 forward and backward: 8.4 ms by the pool, 2.9 ms by the product.
    """

    def __init__(self, side: int):
        super().__init__(2)
        half = torch.eye(side // 2).repeat_interleave(2, 0) / 4
        self.average = (
            torch.cat([half, half]) if side % 2 == 0 else None
        )  # (2*side, side/2); no buffer: it is no state

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1]
        if x.device.type != "cpu" or self.average is None or x.shape[-2:] != (len(self.average) // 2,) * 2:
            return super().forward(x)
        rows = x.reshape(*x.shape[:-2], side // 2, 2 * side)
        return rows @ self.average.to(x.dtype)


ACTIVATIONS: dict[str, Make] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "leaky": partial(nn.LeakyReLU, 0.01)}


POOLINGS: dict[str, Make | None] = {  # of (side of the feature map)
    "avg": HalvingPool,
    "max": lambda side: nn.MaxPool2d(2),
    "none": None,
}


NORMS: dict[str, Make | None] = {  # of (width, side of the feature map)
    "instance": lambda width, side: instance_norm(width),
    "batch": lambda width, side: nn.BatchNorm2d(width),
    "layer": lambda width, side: LayerNorm(
        (width, side, side)
    ),  # scale and shift (width, side, side): matched, as width rows
    "group": lambda width, side: nn.GroupNorm(4, width),  # four groups, as in the public ConvNet code
    "none": None,
}


def convnet(
    channels: int,
    size: int,
    n_classes: int,
    *,
    width: int = 128,
    depth: int = 3,
    norm: str = "instance",
    pooling: str = "avg",
    activation: str = "relu",
) -> nn.Module:
    """ConvNet of the paper's Section 4: `depth` blocks of [3x3 convolution, norm, activation, 2x2 pool], one linear.

    Grey 28x28 images are padded to 32x32 by the first convolution (padding 3), all others keep their size. The linear layer
    sees width * (size / 2^depth)^2 features, and without pooling width * size^2. Raises ValueError for unknown options, where
    an image is too small for the depth, and for a width that four groups do not divide.
    """
    make_norm, make_pool = choose(NORMS, "norm", norm), choose(POOLINGS, "pooling", pooling)
    make_activation = choose(ACTIVATIONS, "activation", activation)
    side = size + 2 * _padding(channels, size)
    if make_pool and side < 2**depth:
        raise ValueError(
            f"images of {size}x{size} pixels are too small for a ConvNet of depth {depth}: "
            f"use depth {side.bit_length() - 1} or less"
        )
    if norm == "group" and width % 4:
        raise ValueError(f"four groups do not divide a ConvNet's width of {width}: use a multiple of 4")
    blocks: list[nn.Module] = []
    for d in range(depth):
        first = d == 0
        padding = 1 + (_padding(channels, size) if first else 0)
        blocks.append(nn.Conv2d(channels if first else width, width, 3, padding=padding))
        if make_norm:
            blocks.append(make_norm(width, side))
        blocks.append(make_activation())
        if make_pool:
            blocks.append(make_pool(side))
            side //= 2
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * side * side, n_classes))


def mlp(channels: int, size: int, n_classes: int) -> nn.Module:
    """Multi-layer perceptron: two hidden layers of 128, ReLU. Fits images of any size."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, n_classes),
    )


def lenet(channels: int, size: int, n_classes: int) -> nn.Module:
    """LeNet: 5x5 convolutions to 6 and 16 channels, ReLU and 2x2 max pool after each, then 120, 84, C. No norm.

    Neither convolution pads (but see `_padding`), so images need 16x16 pixels. ValueError for smaller ones.
    """
    _at_least(16, "LeNet", channels, size)
    padding = _padding(channels, size)
    side = ((size + 2 * padding - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, n_classes),
    )  # fmt: skip


def alexnet(channels: int, size: int, n_classes: int) -> nn.Module:
    """The small AlexNet: 5x5 convolutions to 128 and 192 channels, 3x3 to 256, 192, 192, three max pools, one linear.

    No norm and no dropout. ValueError for images below 8x8 pixels.
    """
    _at_least(8, "AlexNet", channels, size)
    padding = _padding(channels, size)
    side = (size + 2 * padding) // 8
    return nn.Sequential(
        nn.Conv2d(channels, 128, 5, padding=2 + padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(192, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 192, 3, padding=1), nn.ReLU(),
        nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(192 * side * side, n_classes),
    )  # fmt: skip


def vgg11(channels: int, size: int, n_classes: int, *, norm: Make = instance_norm) -> nn.Module:
    """VGG-11: eight 3x3 convolutions, each with norm and ReLU, five 2x2 max pools, one linear.

    ValueError for images below 32x32 pixels (grey 28x28 is padded to that).
    """
    _at_least(32, "VGG-11", channels, size)
    padding = _padding(channels, size)
    layers: list[nn.Module] = []
    inside = channels
    for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inside, width, 3, padding=1 if layers else 1 + padding), norm(width), nn.ReLU()]
            inside = width
    side = (size + 2 * padding) // 32
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * side * side, n_classes))


class _Residual(nn.Module):
    """ResNet's basic block; `halve` halves the side of the feature map, by stride or, where `pooled`, by average pooling."""

    def __init__(self, inside: int, width: int, *, halve: bool, pooled: bool, norm: Make):
        super().__init__()
        stride = 2 if halve and not pooled else 1
        pool = [nn.AvgPool2d(2)] if halve and pooled else []
        self.body = nn.Sequential(
            nn.Conv2d(inside, width, 3, stride=stride, padding=1, bias=False), norm(width), nn.ReLU(), *pool,
            nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width),
        )  # fmt: skip
        self.shortcut = nn.Sequential()  # the identity
        if halve:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, width, 1, stride=stride, bias=False), *pool, norm(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _resnet18(
    channels: int, n_classes: int, *, side: int, last: list[nn.Module], pooled: bool, norm: Make
) -> nn.Module:
    layers = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), norm(64), nn.ReLU()]
    inside = 64
    for width in (64, 128, 256, 512):
        layers.append(_Residual(inside, width, halve=width != inside, pooled=pooled, norm=norm))
        layers.append(_Residual(width, width, halve=False, pooled=pooled, norm=norm))
        inside = width
    return nn.Sequential(*layers, *last, nn.Flatten(), nn.Linear(512 * side * side, n_classes))


def resnet18(channels: int, size: int, n_classes: int) -> nn.Module:
    """ResNet-18 in the form used for CIFAR: 3x3 stem without pool, eight basic blocks, 4x4 average pool, one linear.

    Three strides leave a side of size / 8, rounded up, of which the pool needs 4: ValueError for images below 25x25 pixels.
    """
    _at_least(25, "ResNet-18", channels, size)
    side = (size + 7) // 8 // 4
    return _resnet18(channels, n_classes, side=side, last=[nn.AvgPool2d(4)], pooled=False, norm=instance_norm)


def vgg11bn(channels: int, size: int, n_classes: int) -> nn.Module:
    """`vgg11` with BatchNorm, a source of Table 4."""
    return vgg11(channels, size, n_classes, norm=nn.BatchNorm2d)


def resnet18bn(channels: int, size: int, n_classes: int) -> nn.Module:
    """ResNet-18 as a source of Table 4: BatchNorm, 2x2 average pools in place of strides, no pool before the linear layer.

    That layer sees 512 * (size / 8)^2 features: 512x4x4 of 32x32 images, 512x3x3 of 28x28. ValueError below 8x8 pixels.
    """
    _at_least(8, "ResNet-18 with average pooling", channels, size)
    return _resnet18(channels, n_classes, side=size // 8, last=[], pooled=True, norm=nn.BatchNorm2d)


def _padding(channels: int, size: int) -> int:
    """What the first convolution pads beyond its usual: grey 28x28 images become 32x32 (not in the MLP and ResNets)."""
    return 2 if (channels, size) == (1, 28) else 0


def _at_least(smallest: int, network: str, channels: int, size: int) -> None:
    """ValueError unless images have `smallest` x `smallest` pixels once padded."""
    if size + 2 * _padding(channels, size) < smallest:
        padded = ", or 28x28, which is padded to that" if channels == 1 and smallest == 32 else ""
        raise ValueError(
            f"images of {size}x{size} pixels are too small for {network}: use {smallest}x{smallest} or more{padded}"
        )


NETWORKS: dict[str, Make] = {
    "convnet": convnet,
    "mlp": mlp,
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
    "vgg11bn": vgg11bn,
    "resnet18bn": resnet18bn,
}


BUILT_IN = frozenset(NETWORKS)


OPTIONS = {"norm": NORMS, "pooling": POOLINGS, "activation": ACTIVATIONS}  # of "convnet", spelt in its name


def parse_name(name: str) -> tuple[str, dict[str, str]]:
    """Read a network's name: "convnet:norm=batch,pooling=max" -> ("convnet", {"norm": "batch", "pooling": "max"}).

    Any of ConvNet's options norm, pooling, activation may follow its name, in any order; no other network has options.
    Raises ValueError for an unknown network, option or value (the known ones are listed), or an option given twice.
    """
    base, colon, spelt = name.partition(":") if isinstance(name, str) else (name, "", "")
    choose(NETWORKS, "network", base)
    if colon and base != "convnet":
        raise ValueError(f"the network {base!r} has no options: write {base!r} alone")
    options: dict[str, str] = {}
    for part in spelt.split(",") if colon else []:
        option, _, value = (word.strip() for word in part.partition("="))
        choose(choose(OPTIONS, "option of the convnet", option), option, value)
        if option in options:
            raise ValueError(f"the option {option!r} stands twice in {name!r}: give it once")
        options[option] = value
    return base, options


def register(name: str, factory: Make) -> None:
    """Make a network of your own known by `name`, in Recipe(network=name) and evaluate(network=name).

    factory: (channels, size, n_classes) -> a new nn.Module on the CPU, from images (N, channels, size, size) to logits
    (N, n_classes), its weights drawn from torch's global generator, as torch's layers do (`build` seeds it); keywords `width`
    and `depth` are passed where it takes them. A layer that draws numbers in use, such as dropout, is outside the run's seed.
    A name can be registered again, to replace its factory. A run stores the name only: register it in every new process.
    Raises ValueError for the name of a built-in network, or one that is no plain word (letters, digits, "-", "_", ".").
    """
    # It becomes part of file names; ":" and "," have a meaning in `parse_name`.
    if not (isinstance(name, str) and name and all(c.isalnum() or c in "-_." for c in name)):
        raise ValueError(f'{name!r} cannot name a network: use letters, digits, "-", "_" and "." only, without ":"')
    if name in BUILT_IN:
        raise ValueError(f"the network {name!r} is built in: register yours under another name")
    if not callable(factory):
        raise ValueError(f"the factory of {name!r} is no function: give one of (channels, size, n_classes)")
    NETWORKS[name] = factory


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

    name: see `parse_name`. width, depth: of the ConvNet, or of a registered factory that takes them; other networks ignore them.
    The same generator seed gives the same float32 weights on every device and in every dtype. torch's own random state is
    left as it was. Raises ValueError for an unknown name or option, images that are not square, a network that does not fit
    them, or a registered factory that does not return a fitting network.
    """
    base, options = parse_name(name)
    channels, height, width_px = shape
    if height != width_px:
        raise ValueError(
            f"images of {height}x{width_px} pixels are not square: crop or resize them (size=...) before use"
        )
    factory = NETWORKS[base]
    taken = inspect.signature(factory).parameters.values()
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in taken)
    sizes = {
        key: value
        for key, value in (("width", width), ("depth", depth))
        if any_keyword or key in {p.name for p in taken}
    }
    with _DRAWING, torch.random.fork_rng(devices=[]):
        # Modules draw their weights from torch's global generator, so that is the one to seed, for these lines only.
        torch.default_generator.manual_seed(generator.initial_seed())
        if base in BUILT_IN:
            network = factory(channels, height, n_classes, **sizes, **options)
        else:
            network = _made(factory, base, shape, n_classes, sizes)
    return network.to(device=device, dtype=dtype)


def _made(factory: Make, name: str, shape: tuple[int, int, int], n_classes: int, sizes: dict[str, int]) -> nn.Module:
    """What a registered factory makes; ValueError unless it has weights and maps images of `shape` to n_classes logits."""
    channels, size, _ = shape
    try:
        network = factory(channels, size, n_classes, **sizes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the factory of {name!r} makes no network of ({channels}, {size}, {n_classes}): {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"the factory of {name!r} returned a {type(network).__name__}: return a torch.nn.Module")
    # Two blank images tell the shape of the output; in eval mode they leave BatchNorm's statistics as they are.
    try:
        with torch.no_grad():
            scores = network.eval()(torch.zeros(2, *shape))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the network {name!r} takes no images of shape {shape}: {error}") from error
    network.train()
    if scores.shape != (2, n_classes):
        found, wanted = tuple(scores.shape), (2, n_classes)
        raise ValueError(f"the network {name!r} gives scores of shape {found} for two images: let it give {wanted}")
    if not matched(network):
        raise ValueError(
            f"the network {name!r} has no weights of two or more dimensions, so nothing could be matched: add some"
        )
    return network


def matched(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters whose gradients are matched: all but the one-dimensional ones, as (name, parameter) in layer order."""
    return [(name, p) for name, p in network.named_parameters() if p.ndim > 1]


@torch.no_grad()
def freeze_batchnorm(network: nn.Module, images: Tensor) -> bool:
    """Fix the statistics of every BatchNorm layer to those of `images` (n, channels, height, width), for matching.

    One forward pass in which each layer normalises by its batch and keeps that mean and (unbiased) variance as its running
    statistics, whatever stood there before. Then the BatchNorm layers, and only they, are in eval mode: a score depends on
    its own image alone, and the gradient of one image per class makes sense. `train_one_pass` lets them go again.

    Returns whether there were such layers. Raises ValueError where one keeps no running statistics.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return False
    if not all(layer.track_running_stats for layer in layers):
        raise ValueError(
            "a BatchNorm layer without running statistics cannot be frozen: leave out track_running_stats=False"
        )
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0  # the new statistics replace the old ones
    network(images)
    for layer, momentum in zip(layers, usual, strict=True):
        layer.momentum = momentum
        layer.eval()
    return True


def has_batchnorm(network: nn.Module) -> bool:
    """Whether the network holds BatchNorm layers."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())
