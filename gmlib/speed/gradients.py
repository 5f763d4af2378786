"""Class gradients gS_c, gT_c (line 7 of Algorithm 1), by the way that is fastest where it runs.

A gradient is returned as `how` wants it: one (C, rows, n) tensor per matched layer. Three ways (WAYS) give the same numbers to
rounding, and `best_way` picks one by device and size of the work:

- loop: one backward pass per class. The passes are large enough to fill a CPU for real batches and full-size images.
- vmap: all classes in one pass by torch.func.
- grouped: the images of all classes in one pass; only the weight gradients are taken class by class, from what went into each
  layer and the gradient of what came out. A GPU is launched a few times for each layer and not for each class.

Measured on one CPU core, ten classes, milliseconds by loop, vmap, grouped. The pass over S with its second derivative: 8x8
images, ConvNet-3-32, 1 image per class 22, 7, 6; 10 per class 40, 16, 21. 28x28 images, ConvNet-3-128, 1 per class 140, 112,
114; 10 per class 991, far more, 1404. The pass over real images: 8x8 images, 10 per class 13, 10, 7; 32 per class 20, 16, 13;
28x28 images, 10 per class 338, not measured, 385. So grouped while the images of all classes fit the cache together, vmap
for several tiny images per class of S, else loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..how import as_rows
from ..networks import matched
from .passes import on_cores, pass_size

SMALL = 640  # pixels per class: 10 images of 8x8


def class_gradients(
    network: nn.Module,
    batches: Sequence[Tensor],
    *,
    create_graph: bool = False,
    chunk: int | None = None,
    way: str | None = None,
    precision: str = "float32",
) -> list[Tensor]:
    """Gradient of the mean cross-entropy of each class batch with respect to every matched weight.

    batches: C tensors (n_c, channels, height, width), the batch of class c at place c; sizes may differ.
    create_graph: keep what it takes to differentiate a function of the result with respect to the images (gS).
    chunk: at most so many images in one pass, for less memory; the result is the same to rounding (None: no limit).
    way: a name in WAYS; None: `best_way`. precision: "bf16" takes the pass in bfloat16, by autocast.
    Returns one (C, rows, n) tensor per matched layer, in layer order, in the images' dtype and on their device.
    """
    way = way or best_way(network, batches, create_graph, chunk)
    with _cast(batches[0], precision):
        g = WAYS[way](network, batches, create_graph, chunk)
    return _rows(network, g)


def best_way(network: nn.Module, batches: Sequence[Tensor], create_graph: bool, chunk: int | None) -> str:
    """The name in WAYS of the one to take: by measurement on a CPU, by what launches least on CUDA."""
    first, most, every = batches[0], max(map(len, batches)), sum(map(len, batches))
    on_cuda, even = first.device.type == "cuda", min(map(len, batches)) == most
    # On CUDA a pass over real images goes class group by class group where not all fit; graphs for S must all be held at once.
    in_groups = on_cuda and not create_graph
    grouped = (chunk is None or (most if in_groups else every) <= chunk) and _apart(network)
    small = create_graph and even and first[:, 0].numel() <= SMALL and not on_cuda
    if small and chunk is None and (most > 1 or not grouped) and not _wrong_under_vmap(network):
        return "vmap"
    thrice = 3 if on_cuda and create_graph else 1  # what second derivatives hold, about
    room = (pass_size(network, first) or every) // thrice
    return "grouped" if grouped and (every <= room or in_groups) else "loop"


def batch_gradient(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    create_graph: bool = False,
    chunk: int | None = None,
    precision: str = "float32",
) -> list[Tensor]:
    """Gradient of the mean cross-entropy of one batch of any classes: one (rows, n) tensor per matched layer.

    x: (n, channels, height, width), y: (n,) int64. create_graph, chunk, precision: see `class_gradients`.
    """
    with _cast(x, precision):
        return _rows(network, _gradient(network, x, y, create_graph, chunk))


def _cast(x: Tensor, precision: str) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, enabled="bf16" in precision)


def _rows(network: nn.Module, g: Sequence[Tensor]) -> list[Tensor]:
    return [as_rows(layer, p.ndim) for layer, (_, p) in zip(g, matched(network), strict=True)]


def _gradient(network: nn.Module, x: Tensor, y: Tensor, create_graph: bool, chunk: int | None) -> Sequence[Tensor]:
    parameters = [p for _, p in matched(network)]
    if not create_graph:
        chunk = min(chunk or len(x), pass_size(network, x) or len(x))
    if chunk is None or (len(x) <= chunk and not create_graph):
        return torch.autograd.grad(F.cross_entropy(network(x), y), parameters, create_graph=create_graph)
    if create_graph:
        return _Recomputed.apply(x, y, network, chunk)
    total = [torch.zeros_like(p) for p in parameters]
    for part, labels in zip(x.split(chunk), y.split(chunk), strict=True):
        # the mean over the batch is the sum over its parts, each divided by the size of the whole
        loss = F.cross_entropy(network(part), labels, reduction="sum") / len(x)
        torch._foreach_add_(total, torch.autograd.grad(loss, parameters))
    return total


class _Recomputed(torch.autograd.Function):
    """A batch's gradient that keeps no graph: its derivative in the images is computed afresh, chunk by chunk.

    For v = d loss / d g the derivative is d <g(x), v> / dx, in which every image stands for itself. It costs one more pass
    and holds the graph of one chunk at a time.
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, network: nn.Module, chunk: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, y)
        ctx.network, ctx.chunk = network, chunk
        with torch.enable_grad():
            return tuple(_gradient(network, x.detach(), y, False, chunk))

    @staticmethod
    def backward(ctx, *v: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        parameters = [p for _, p in matched(ctx.network)]
        derivative = []
        for part, labels in zip(x.split(ctx.chunk), y.split(ctx.chunk), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss = F.cross_entropy(ctx.network(part), labels, reduction="sum") / len(x)
                g = torch.autograd.grad(loss, parameters, create_graph=True)
                derivative += torch.autograd.grad(g, part, grad_outputs=v)
        return torch.cat(derivative), None, None, None


def _wrong_under_vmap(network: nn.Module) -> bool:
    """torch 2.14's LayerNorm with a weight of several dimensions: under vmap(grad) its derivative in the images is off."""
    return any(
        type(m) is nn.LayerNorm and m.elementwise_affine and len(m.normalized_shape) > 1 for m in network.modules()
    )


def _loop(network: nn.Module, batches: Sequence[Tensor], create_graph: bool, chunk: int | None) -> list[Tensor]:
    cast = torch.is_autocast_enabled("cpu")  # which a thread does not take over from the one that made it

    def of_class(c: int) -> Sequence[Tensor]:
        x = batches[c]
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            return _gradient(network, x, torch.full((len(x),), c, device=x.device), create_graph, chunk)

    C, first = len(batches), batches[0]
    fits = pass_size(network, first) if first.device.type == "cpu" and _known(network) else None
    large = not create_graph and fits is not None and len(first) >= fits // 2
    each = on_cores(of_class, range(C), min(C, torch.get_num_threads()) if large else 1)
    return [torch.stack(layer) for layer in zip(*each, strict=True)]


def _vmap(network: nn.Module, batches: Sequence[Tensor], create_graph: bool, chunk: int | None) -> list[Tensor]:
    theta = {name: p.detach() for name, p in network.named_parameters()}
    weights = {name: theta.pop(name) for name, _ in matched(network)}
    images = torch.stack(tuple(batches))
    labels = torch.arange(len(batches), device=images.device)[:, None].expand(images.shape[:2])

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, {**theta, **weights}, (x,)), y)

    return list(vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, labels).values())


def _grouped(network: nn.Module, batches: Sequence[Tensor], create_graph: bool, chunk: int | None) -> list[Tensor]:
    labels = [torch.full((len(batch),), c, device=batch.device) for c, batch in enumerate(batches)]
    room = min(chunk or sum(map(len, batches)), pass_size(network, batches[0]) or sum(map(len, batches)))
    most = max(1, room // max(map(len, batches)))  # classes in a pass
    passes = [slice(i, i + most) for i in range(0, len(batches), most)]
    each = [_grouped_pass(network, batches[part], labels[part], create_graph) for part in passes]
    return [torch.cat(layer) for layer in zip(*each, strict=True)]


def _grouped_pass(
    network: nn.Module, batches: Sequence[Tensor], labels: Sequence[Tensor], create_graph: bool
) -> list[Tensor]:
    sizes = [len(batch) for batch in batches]
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # layer -> what went in, what came out
    layers = _layers(network)
    hooks = [layer.register_forward_hook(lambda layer, x, y: seen.update({layer: (x[0], y)})) for layer in layers]
    try:
        losses = F.cross_entropy(network(torch.cat(tuple(batches))), torch.cat(tuple(labels)), reduction="none")
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(loss.mean() for loss in losses.split(sizes))  # an image's gradient is that of its own class's mean
    dy = torch.autograd.grad(total, [seen[layer][1] for layer in layers], create_graph=create_graph)
    pairs = [(seen[layer][0].split(sizes), d.split(sizes)) for layer, d in zip(layers, dy, strict=True)]
    with torch.set_grad_enabled(create_graph):  # what went into a layer still hangs on the weights of those before it
        return [
            torch.stack([_weight_gradient(layer, *pair) for pair in zip(*by_class, strict=True)])
            for layer, by_class in zip(layers, pairs, strict=True)
        ]


def _weight_gradient(layer: nn.Conv2d | nn.Linear, x: Tensor, dy: Tensor) -> Tensor:
    """Of the images x that went into a layer, and the gradient dy of what came out: (*weight.shape), differentiable in both."""
    if isinstance(layer, nn.Linear):
        return (dy.flatten(0, -2).T @ x.flatten(0, -2).to(dy)).to(layer.weight)
    sizes = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
    weight = layer.weight.detach().to(dy)
    return torch.ops.aten.convolution_backward(dy, x.to(dy), weight, None, *sizes, (False, True, False))[1].to(
        layer.weight
    )


def _layers(network: nn.Module) -> list[nn.Module]:
    """The convolutions and linear layers, in the order of their weights; an empty list where others have weights to match, or
    two have the same."""
    holders = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    owners = {id(m.weight): m for m in holders}
    layers = [owners.get(id(p)) for _, p in matched(network)]
    return [] if None in layers or len(owners) < len(holders) else layers


def _known(network: nn.Module) -> bool:
    """Whether all modules are torch's or gmlib's own: of others nobody knows what they do to a batch, or keep of it."""
    return all(type(m).__module__.startswith(("torch.nn.modules", "gmlib.networks")) for m in network.modules())


def _apart(network: nn.Module) -> bool:
    """Whether the way "grouped" is open: convolutions and linear layers hold every weight that is matched, each is used once, and
    no image has a part in another's score."""
    mixing = any(isinstance(m, (_BatchNorm, _DropoutNd)) and m.training for m in network.modules())
    layers = _layers(network)
    once = len(list(network.named_modules(remove_duplicate=False))) == len(list(network.modules()))
    usual = all(
        m.padding_mode == "zeros" and not isinstance(m.padding, str) for m in layers if isinstance(m, nn.Conv2d)
    )
    return _known(network) and not mixing and once and usual and bool(layers)


WAYS: dict[str, Callable[[nn.Module, Sequence[Tensor], bool, int | None], list[Tensor]]] = {
    "loop": _loop,
    "vmap": _vmap,
    "grouped": _grouped,
}
