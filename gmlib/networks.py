"""The networks of Table 4 (theta_0 ~ P_theta0). Outer iterations and evaluations draw new ones.

Every network maps images (N, channels, height, width) to logits (N, C). `build` makes a network by name.
Their layers are those of the public baseline code (Zhao et al., "Dataset Condensation with Gradient Matching", ICLR
2021). That code is written for square images of 28 and 32 pixels; here the layer sizes follow from the image. All
networks use instance norm or no norm, except the two with a name that ends in "bn".
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .checks import check_number, choose
from .runtime import plain_torch

Factory = Callable[..., nn.Module]
Size = int | tuple[int, int]  # the side of square images, else (height, width)
LARGEST = 2**31  # weights of a ConvNet: 8 GiB in float32
SEEDING = threading.RLock()  # all threads share torch's global generator


# ---- layers ----------------------------------------------------------------------------------------------


def instance_norm(width: int) -> nn.Module:
    """Return instance norm with scale and shift, as a group norm with one channel per group."""
    return nn.GroupNorm(width, width)


class LayerNorm(nn.LayerNorm):
    """Layer norm over (channels, height, width) that applies its scale and shift in a separate step.

    In torch 2.14 a batched (vmap) gradient of nn.LayerNorm has a derivative with respect to the images that is wrong
    by some tenths of a percent, without a warning. The separate step avoids this.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each image of ``x``, then scale and shift it."""
        return F.layer_norm(x, self.normalized_shape, eps=self.eps) * self.weight + self.bias


class HalvingPool(nn.AvgPool2d):
    """2x2 average pool, computed as one matrix product on a CPU if ``side`` is even.

    Two rows of an image are adjacent in memory, so (their 2*side pixels) @ (2*side, side/2) averages 2x2 blocks. The
    result is the same to rounding. A matrix product is much faster on a CPU than torch's pool, which handles one
    pixel at a time: on one core, 16 images of 128x32x32 forward and backward take 2.9 ms instead of 8.4 ms.

    Parameters
    ----------
    side : int
        Height and width of a square feature map.
    """

    def __init__(self, side: int):
        super().__init__(2)
        self.average: Tensor | None = None  # (2*side, side/2), not a buffer: it is not part of the state
        if side % 2 == 0:
            half = torch.eye(side // 2).repeat_interleave(2, 0) / 4
            self.average = torch.cat([half, half])

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width of ``x``. Sizes other than ``side`` use torch's own pool."""
        side = x.shape[-1]
        if x.device.type != "cpu" or self.average is None or x.shape[-2:] != (len(self.average) // 2,) * 2:
            return super().forward(x)
        rows = x.reshape(*x.shape[:-2], side // 2, 2 * side)
        return rows @ self.average.to(x.dtype)


ACTIVATIONS: dict[str, Factory] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "leaky": partial(nn.LeakyReLU, 0.01)}


def average_pool(height: int, width: int) -> nn.Module:
    """Return a 2x2 average pool for feature maps of this height and width."""
    return HalvingPool(height) if height == width else nn.AvgPool2d(2)


# Functions of height and width of the feature map.
POOLINGS: dict[str, Factory | None] = {
    "avg": average_pool,
    "max": lambda height, width: nn.MaxPool2d(2),
    "none": None,
}

# Functions of the channels, height and width of the feature map.
NORMS: dict[str, Factory | None] = {
    "instance": lambda channels, height, width: instance_norm(channels),
    "batch": lambda channels, height, width: nn.BatchNorm2d(channels),
    # Its scale and shift are (channels, height, width), so they are matched, as `channels` rows each.
    "layer": lambda channels, height, width: LayerNorm((channels, height, width)),
    "group": lambda channels, height, width: nn.GroupNorm(4, channels),  # four groups, as in the public ConvNet code
    "none": None,
}


# ---- architectures: functions of (channels, size, n_classes) -----------------------------------------------


def sides(size: Size) -> tuple[int, int]:
    """(height, width) of images of this size."""
    return (size, size) if isinstance(size, int) else size


def _padding(channels: int, size: Size) -> int:
    """Extra padding of the first convolution: it turns grey 28x28 images into 32x32."""
    return 2 if (channels, sides(size)) == (1, (28, 28)) else 0


def _padded(channels: int, size: Size) -> tuple[int, int]:
    """Height and width of the feature map after the first convolution, if it keeps the size of the image."""
    height, width = (side + 2 * _padding(channels, size) for side in sides(size))
    return height, width


def _spelt(size: Size) -> str:
    """Height x width."""
    return "{}x{}".format(*sides(size))


def _check_size(smallest: int, network: str, channels: int, size: Size) -> None:
    if min(_padded(channels, size)) < smallest:
        padded = ", or 28x28, which is padded to that" if channels == 1 and smallest == 32 else ""
        raise ValueError(
            f"images of {_spelt(size)} pixels are too small for {network}: use {smallest}x{smallest} or more{padded}"
        )


def convnet(
    channels: int,
    size: Size,
    n_classes: int,
    *,
    width: int = 128,
    depth: int = 3,
    norm: str = "instance",
    pooling: str = "avg",
    activation: str = "relu",
) -> nn.Module:
    """Build a ConvNet: ``depth`` blocks of [3x3 convolution, norm, activation, 2x2 pool] and one linear layer.

    Convolutions keep the size of the image, but grey 28x28 images are padded to 32x32. Each pool halves both sides
    and rounds them down. The linear layer sees ``width`` features for each pixel that is left.

    Raises
    ------
    ValueError
        For an unknown option, a size out of range, an image too small for the depth, or group norm with a width that
        is no multiple of 4.

    Source
    ------
    Section 4.
    """
    make_norm = choose(NORMS, "norm", norm)
    make_pool = choose(POOLINGS, "pooling", pooling)
    make_activation = choose(ACTIVATIONS, "activation", activation)
    check_number("width", width, least=1, whole=True)
    check_number("depth", depth, least=1, below=1000, whole=True)
    if 9 * depth * width**2 > LARGEST:
        raise ValueError(f"a ConvNet of width {width} and depth {depth} is too large: take fewer channels or blocks")
    h, w = _padded(channels, size)
    if make_pool and min(h, w) < 2**depth:
        deepest = min(h, w).bit_length() - 1
        advice = f"use depth {deepest} or less" if deepest else "use larger images, or pooling=none"
        raise ValueError(f"images of {_spelt(size)} pixels are too small for a ConvNet of depth {depth}: {advice}")
    if norm == "group" and width % 4:
        raise ValueError(f"group norm needs a ConvNet width that is a multiple of 4: change {width}")
    layers: list[nn.Module] = []
    for block in range(depth):
        first = block == 0
        padding = 1 + (_padding(channels, size) if first else 0)
        layers.append(nn.Conv2d(channels if first else width, width, 3, padding=padding))
        if make_norm:
            layers.append(make_norm(width, h, w))
        layers.append(make_activation())
        if make_pool:
            layers.append(make_pool(h, w))
            h, w = h // 2, w // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * h * w, n_classes))


def mlp(channels: int, size: Size, n_classes: int) -> nn.Module:
    """Build a perceptron with two hidden layers of 128 units and ReLU, for images of any size."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * math.prod(sides(size)), 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, n_classes),
    )


def lenet(channels: int, size: Size, n_classes: int) -> nn.Module:
    """Build a LeNet: 5x5 convolutions to 6 and 16 channels, max pools, linear layers of 120, 84 and C. No norm.

    Raises
    ------
    ValueError
        If images are smaller than 16x16 pixels.
    """
    _check_size(16, "LeNet", channels, size)
    padding = _padding(channels, size)
    h, w = (((side - 4) // 2 - 4) // 2 for side in _padded(channels, size))
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * h * w, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, n_classes),
    )  # fmt: skip


def alexnet(channels: int, size: Size, n_classes: int) -> nn.Module:
    """Build a small AlexNet: five convolutions, three max pools and one linear layer. No norm and no dropout.

    Raises
    ------
    ValueError
        If images are smaller than 8x8 pixels.
    """
    _check_size(8, "AlexNet", channels, size)
    padding = _padding(channels, size)
    h, w = (side // 8 for side in _padded(channels, size))
    return nn.Sequential(
        nn.Conv2d(channels, 128, 5, padding=2 + padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(192, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 192, 3, padding=1), nn.ReLU(),
        nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(192 * h * w, n_classes),
    )  # fmt: skip


def vgg11(channels: int, size: Size, n_classes: int, *, norm: Factory = instance_norm) -> nn.Module:
    """Build a VGG-11: eight 3x3 convolutions with norm and ReLU, five max pools and one linear layer.

    Raises
    ------
    ValueError
        If images are smaller than 32x32 pixels. Grey 28x28 images are padded to that.
    """
    _check_size(32, "VGG-11", channels, size)
    padding = _padding(channels, size)
    layers: list[nn.Module] = []
    in_channels = channels
    for width in (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None):  # None: a pool
        if width is None:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(in_channels, width, 3, padding=1 if layers else 1 + padding), norm(width), nn.ReLU()]
            in_channels = width
    h, w = (side // 32 for side in _padded(channels, size))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * h * w, n_classes))


def vgg11bn(channels: int, size: Size, n_classes: int) -> nn.Module:
    """Build `vgg11` with BatchNorm."""
    return vgg11(channels, size, n_classes, norm=nn.BatchNorm2d)


class ResidualBlock(nn.Module):
    """ResNet's basic block. ``halve`` halves the feature map by a stride, or by an average pool if ``pooled``."""

    def __init__(self, in_channels: int, width: int, *, halve: bool, pooled: bool, norm: Factory):
        super().__init__()
        stride = 2 if halve and not pooled else 1
        pool = [nn.AvgPool2d(2)] if halve and pooled else []
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False), norm(width), nn.ReLU(), *pool,
            nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width),
        )  # fmt: skip
        self.shortcut = nn.Sequential()  # the identity
        if halve:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, width, 1, stride=stride, bias=False), *pool, norm(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's result to ``x``, or to what is left of it after halving."""
        return F.relu(self.body(x) + self.shortcut(x))


def _resnet18(
    channels: int, n_classes: int, *, pixels: int, last: list[nn.Module], pooled: bool, norm: Factory
) -> nn.Module:
    layers = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), norm(64), nn.ReLU()]
    in_channels = 64
    for width in (64, 128, 256, 512):
        layers.append(ResidualBlock(in_channels, width, halve=width != in_channels, pooled=pooled, norm=norm))
        layers.append(ResidualBlock(width, width, halve=False, pooled=pooled, norm=norm))
        in_channels = width
    return nn.Sequential(*layers, *last, nn.Flatten(), nn.Linear(512 * pixels, n_classes))


def resnet18(channels: int, size: Size, n_classes: int) -> nn.Module:
    """Build a ResNet-18 for small images: 3x3 stem without pool, eight basic blocks, 4x4 average pool, one linear.

    Raises
    ------
    ValueError
        If images are smaller than 25x25 pixels. Three strides leave ceil(side / 8) pixels, and the pool needs 4.
    """
    _check_size(25, "ResNet-18", channels, size)
    pixels = math.prod((side + 7) // 8 // 4 for side in sides(size))
    return _resnet18(channels, n_classes, pixels=pixels, last=[nn.AvgPool2d(4)], pooled=False, norm=instance_norm)


def resnet18bn(channels: int, size: Size, n_classes: int) -> nn.Module:
    """Build a ResNet-18 with BatchNorm, 2x2 average pools in place of strides, and no pool before the linear layer.

    The linear layer sees 512 * (height / 8) * (width / 8) features: 512x4x4 for 32x32 images, 512x3x3 for 28x28.

    Raises
    ------
    ValueError
        If images are smaller than 8x8 pixels.
    """
    _check_size(8, "ResNet-18 with average pooling", channels, size)
    pixels = math.prod(side // 8 for side in sides(size))
    return _resnet18(channels, n_classes, pixels=pixels, last=[], pooled=True, norm=nn.BatchNorm2d)


# ---- names -----------------------------------------------------------------------------------------------

NETWORKS: dict[str, Factory] = {
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
CONVNET_OPTIONS: dict[str, Mapping[str, Factory | None]] = {
    "norm": NORMS,
    "pooling": POOLINGS,
    "activation": ACTIVATIONS,
}


def parse_name(name: str) -> tuple[str, dict[str, str]]:
    """Read a network's name: "convnet:norm=batch,pooling=max" gives ("convnet", {"norm": "batch", "pooling": "max"}).

    Only "convnet" takes options: norm, pooling and activation, in any order.

    Raises
    ------
    ValueError
        For an unknown network, option or value, an option given twice, or a network where its name is expected.
    """
    if isinstance(name, nn.Module) or callable(name):
        kind = type(name).__name__ if isinstance(name, nn.Module) else getattr(name, "__name__", type(name).__name__)
        raise ValueError(
            f"network={kind} is a network, and its name is expected here: call gm.register_network('mine', factory), "
            "where factory(channels, size, n_classes) makes a new one, and give network='mine'"
        )
    base, colon, suffix = name.partition(":") if isinstance(name, str) else (name, "", "")
    choose(NETWORKS, "network", base)
    if colon and base != "convnet":
        raise ValueError(f"the network {base!r} has no options: write {base!r} alone")
    options: dict[str, str] = {}
    for part in suffix.split(",") if colon else []:
        option, _, value = (word.strip() for word in part.partition("="))
        choose(choose(CONVNET_OPTIONS, "option of the convnet", option), option, value)
        if option in options:
            raise ValueError(f"{name!r} gives the option {option!r} twice: give it once")
        options[option] = value
    return base, options


def is_built_in(name: str) -> bool:
    """True if a network of this name is not a registered one."""
    return parse_name(name)[0] in BUILT_IN


def register(name: str, factory: Factory) -> None:
    """Make your own network available as ``Recipe(network=name)`` and ``evaluate(network=name)``.

    A name can be registered again to replace its factory. Runs store only the name: register it in every new process.

    Parameters
    ----------
    name : str
        Letters, digits, "-", "_" and ".".
    factory : callable
        (channels, size, n_classes) -> a new nn.Module on the CPU that maps images to logits (N, n_classes). ``size``
        is an int for square images (N, channels, size, size). For other images (N, channels, height, width) it is the
        tuple (height, width). The factory draws its weights from torch's global generator, as torch's layers do;
        `build` seeds it. It also gets ``width`` and ``depth`` if it has parameters of these names. The seed of a run
        does not cover layers that draw numbers in every pass, such as dropout.

    Raises
    ------
    ValueError
        For the name of a built-in network, a name with other characters, or a factory that cannot be called.
    """
    # The name becomes part of file names, and `parse_name` gives ":" and "," a meaning.
    if not (isinstance(name, str) and name and all(c.isalnum() or c in "-_." for c in name)):
        raise ValueError(f'{name!r} cannot name a network: use only letters, digits, "-", "_" and "."')
    if name in BUILT_IN:
        raise ValueError(f"the network {name!r} is built in: register yours under another name")
    if not callable(factory):
        raise ValueError(f"the factory of {name!r} cannot be called: give a function of (channels, size, n_classes)")
    try:
        inspect.signature(factory)
    except ValueError:
        raise ValueError(
            f"the factory of {name!r} does not say what it takes: give a function of (channels, size, n_classes)"
        ) from None
    NETWORKS[name] = factory


# ---- building --------------------------------------------------------------------------------------------


@plain_torch()
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
    """Build a network with fresh weights from PyTorch's default initialisation.

    Parameters
    ----------
    name : str
        See `parse_name`.
    shape : tuple of int
        (channels, height, width) of the images.
    generator : torch.Generator
        Its seed decides the weights: the same float32 values on every device and in every dtype. torch's global
        random state does not change.
    width, depth : int
        Used by the ConvNet and by registered factories that take them.

    Raises
    ------
    ValueError
        For an unknown name or option, images that do not fit the network, or a registered factory that does not
        return a fitting network.
    """
    base, options = parse_name(name)
    channels, height, columns = shape
    size: Size = height if height == columns else (height, columns)
    factory = NETWORKS[base]
    parameters = inspect.signature(factory).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {"width": width, "depth": depth}
    given = {key: value for key, value in given.items() if takes_all or key in parameters}
    with SEEDING, torch.random.fork_rng(devices=[]):
        # Modules draw their weights from torch's global generator, so seed that one, and only for these lines.
        torch.default_generator.manual_seed(generator.initial_seed())
        if base in BUILT_IN:
            network = factory(channels, size, n_classes, **given, **options)
        else:
            network = _build_registered(factory, base, shape, size, n_classes, given)
    return network.to(device=device, dtype=dtype)


def _build_registered(
    factory: Factory, name: str, shape: tuple[int, int, int], size: Size, n_classes: int, given: dict[str, int]
) -> nn.Module:
    """Build a registered network and try it on two blank images. ValueError if it does not fit."""
    arguments = (shape[0], size, n_classes)
    try:
        network = factory(*arguments, **given)
    except Exception as error:  # somebody else's code can raise anything
        advice = "change it"
        if not isinstance(size, int):
            advice = "let it take (height, width) as size, since these images are not square, or resize them"
        raise ValueError(f"the factory of {name!r} fails for {arguments}, {advice}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"the factory of {name!r} returned a {type(network).__name__}: return a torch.nn.Module")
    try:
        with torch.no_grad():
            scores = network.eval()(torch.zeros(2, *shape))  # eval mode does not change BatchNorm's statistics
    except Exception as error:  # somebody else's code can raise anything
        raise ValueError(f"the network {name!r} does not take images of shape {shape}: {error}") from error
    network.train()
    if scores.shape != (2, n_classes):
        raise ValueError(
            f"the network {name!r} maps two images to shape {tuple(scores.shape)}: return {(2, n_classes)} instead"
        )
    if not matched(network):
        raise ValueError(f"the network {name!r} has no weight with two or more dimensions to match: add one")
    return network


# ---- what matching needs from a network --------------------------------------------------------------------


def matched(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (name, parameter) for every matched parameter, in layer order: those with two or more dimensions."""
    return [(name, p) for name, p in network.named_parameters() if p.ndim > 1]


@torch.no_grad()
def freeze_batchnorm(network: nn.Module, images: Tensor) -> bool:
    """Fix the statistics of every BatchNorm layer to those of ``images``, before gradients are matched.

    One forward pass replaces the running mean and (unbiased) variance of each layer by those of the batch. Then only
    the BatchNorm layers are put in eval mode. So the output for an image depends on that image alone, and the
    gradient of a single image per class is meaningful. Training puts the layers back in train mode.

    Parameters
    ----------
    images : Tensor
        (n, channels, height, width).

    Returns
    -------
    bool
        True if the network has BatchNorm layers.

    Raises
    ------
    ValueError
        If a BatchNorm layer keeps no running statistics.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return False
    if not all(layer.track_running_stats for layer in layers):
        raise ValueError(
            "a BatchNorm layer without running statistics cannot be frozen: leave out track_running_stats=False"
        )
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0  # the new statistics replace the old ones
    network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
    return True


def has_batchnorm(network: nn.Module) -> bool:
    """Return True if the network has BatchNorm layers."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())
