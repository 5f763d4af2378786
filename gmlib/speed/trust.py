"""Which networks the faster ways are right for.

They rely on layers that change no tensor in place, keep no state and do not mix images, except BatchNorm. The layers
of gmlib's own networks are like that. With other layers a faster way is first compared with the plain way, on random
numbers in float64. But no comparison can show that a class of a user's own treats every image alone: its code might
look at the values of a batch. So its batches stay as they are.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import networks
from ..runtime import OutOfTime

log = logging.getLogger(__name__)

TOLERANCE = 1e-6  # relative; in float64 the right ways differ by less than 1e-12
FEW = 2  # images per class, and classes, that a way is compared on
OWN = {
    nn.Sequential, nn.Conv2d, nn.Linear, nn.Flatten, nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.AvgPool2d, nn.MaxPool2d,
    nn.GroupNorm, nn.BatchNorm2d, networks.LayerNorm, networks.HalvingPool, networks.ResidualBlock,
}  # fmt: skip
SIMPLE = (bool, int, float, str, type(None), type, FunctionType, BuiltinFunctionType, torch.dtype, torch.device)
OF_MODULES = vars(nn.Module()).keys() - {"training"}  # weights, buffers, modules and hooks
DEEPEST = 5  # attributes inside attributes
_RESULTS: dict[Any, bool] = {}  # kind of network, way and images -> the result of a comparison
_LOGGED: set[tuple] = set()  # ways and classes of modules
_KINDS: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()


def is_own(network: nn.Module) -> bool:
    """True if the network consists of the layers of gmlib's networks, without hooks and nothing in place."""
    return not _is_hooked(network) and all(
        type(module) in OWN and not getattr(module, "inplace", False) for module in network.modules()
    )


def _is_hooked(network: nn.Module) -> bool:
    """True if the forward pass of a module of this network was changed."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in network.modules()
    )


def _is_torchs(network: nn.Module) -> bool:
    """True if all modules are torch's or gmlib's."""
    return all(type(module).__module__.startswith(("torch.nn.", "gmlib.")) for module in network.modules())


def mixes_images(network: nn.Module, x: Tensor) -> bool:
    """True if the result for an image may depend on the other images of its batch, or on earlier batches.

    Parameters
    ----------
    network : nn.Module
    x : Tensor
        (n, channels, height, width), images like those that it will get.
    """
    if any(isinstance(module, _BatchNorm) and module.training for module in network.modules()):
        return True
    if is_own(network):
        return False
    if _is_hooked(network) or not _is_torchs(network):
        return True

    def split(network: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
        return [network(image[None]) for image in torch.cat(list(batches))]

    def whole(network: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
        return list(network(torch.cat(list(batches)))[:, None])

    return not _agree("smaller passes", split, whole, network, [x] * FEW)


def is_right(
    name: str,
    way: Callable[..., Sequence[Tensor]],
    plain: Callable[..., Sequence[Tensor]],
    network: nn.Module,
    batches: Sequence[Tensor],
    create_graph: bool,
) -> bool:
    """True if a way to compute class gradients is right for this network.

    Parameters
    ----------
    name : str
        Of the way.
    way, plain : callable
        Functions in `gmlib.speed.gradients.IMPLEMENTATIONS`.
    network : nn.Module
    batches : sequence of Tensor
        Images like those that it will get, one batch per class.
    create_graph : bool
        Compare also a derivative of the gradients with respect to the images.
    """
    if is_own(network):
        return True
    if _is_hooked(network) or (name == "grouped" and not _is_torchs(network)):
        return False  # "grouped" puts the images of all classes into one batch

    def gradients(way: Callable[..., Sequence[Tensor]]) -> Callable[..., list[Tensor]]:
        def compute(network: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
            S = [batch.requires_grad_(create_graph) for batch in batches]
            g = list(way(network, S, create_graph, None))
            if create_graph:
                rng = torch.Generator().manual_seed(0)
                v = [torch.randn(layer.shape, generator=rng).to(layer) for layer in g]
                g += torch.autograd.grad(g, S, grad_outputs=v)
            return g

        return compute

    return _agree(f"{name}, {create_graph}", gradients(way), gradients(plain), network, batches)


def _agree(
    name: str,
    way: Callable[[nn.Module, list[Tensor]], list[Tensor]],
    plain: Callable[[nn.Module, list[Tensor]], list[Tensor]],
    network: nn.Module,
    batches: Sequence[Tensor],
) -> bool:
    """Compare two ways once for each kind of network, on copies of it. False also if one of them fails."""
    sizes = tuple(min(len(batch), FEW) for batch in batches[:FEW])
    first = batches[0]
    kind = (name, sizes, first.shape[1:], first.device, _kind(network), tuple(m.training for m in network.modules()))
    with networks.SEEDING:  # other threads must not draw weights meanwhile
        if kind not in _RESULTS:
            devices = [first.device] if first.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                like = [first.new_empty(n, *first.shape[1:]) for n in sizes]
                _RESULTS[kind] = _same_results(way, plain, network, like)
            classes = (name, *(type(module).__name__ for module in network.modules()))
            if not _RESULTS[kind] and classes not in _LOGGED:
                _LOGGED.add(classes)
                log.info("%s is not right for this %s: taking the plain way", name, type(network).__name__)
        return _RESULTS[kind]


def _same_results(way: Any, plain: Any, network: nn.Module, like: Sequence[Tensor]) -> bool:
    rng = torch.Generator().manual_seed(0)
    images = [torch.randn(each.shape, generator=rng, dtype=torch.float64).to(each.device) for each in like]
    found = []
    try:
        for seed, compute in enumerate((way, plain)):
            _seed(seed, images[0].device)  # random networks, as with dropout, must not agree
            own = copy.deepcopy(network).double()
            before = [buffer.clone() for buffer in own.buffers()]
            with torch.enable_grad(), torch.autocast(images[0].device.type, enabled=False):
                results = compute(own, [image.clone() for image in images])
            if not all(map(torch.equal, before, own.buffers())):
                return False  # it keeps a state
            found.append([result.detach() for result in results])
    except OutOfTime:
        raise
    except Exception:  # a network of somebody else can raise anything
        return False
    return all(
        a.shape == b.shape and (a - b).norm() <= TOLERANCE * (b.norm() + TOLERANCE)
        for a, b in zip(*found, strict=True)
    )


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of one device. `torch.manual_seed` would seed those of all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _kind(network: nn.Module) -> tuple:
    """What decides how a network computes: the classes and the attributes of its modules.

    It is read once for each object, since a network may count its calls.
    """
    if network not in _KINDS:
        _KINDS[network] = tuple(
            (
                type(module),
                *((name, _as_key(value)) for name, value in vars(module).items() if name not in OF_MODULES),
            )
            for module in network.modules()
        )
    return _KINDS[network]


def _as_key(value: Any, depth: int = 0) -> Any:
    """A value as a part of a kind. One of an unknown class equals nothing, so its network is a kind alone."""
    inside = partial(_as_key, depth=depth + 1)
    if isinstance(value, SIMPLE):
        return value
    if depth > DEEPEST:
        return object()
    if isinstance(value, (list, tuple)):
        return (type(value), *map(inside, value))
    if isinstance(value, dict):
        return (dict, *((inside(name), inside(each)) for name, each in value.items()))
    if isinstance(value, partial):
        return (partial, *map(inside, (value.func, value.args, value.keywords)))
    if type(value).__mro__ == (type(value), object) and hasattr(value, "__dict__"):  # a class of options, mostly
        return (type(value), inside(vars(value)))
    return object()
