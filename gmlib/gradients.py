"""Class gradients gS_c, gT_c (line 7 of Algorithm 1): the only module that knows about speed.

A gradient is returned as `how` wants it: one (C, rows, n) tensor per matched layer. Two ways give the same numbers to
rounding; `class_gradients` picks by the size of the work:

- loop: one backward pass per class. The passes are large enough to fill a CPU for real batches and full-size images.
- vmap: all classes in one batched pass. Where images are tiny, most of the loop is overhead, and this halves it.

Measured on two CPU cores, ConvNet-3, ten classes, one pass over S with its second derivative: 8x8 images, width 32, 1 image
per class: loop 21 ms, vmap 7 ms; 10 per class: 41 and 14 ms. 28x28 images, width 128, 1 per class: 129 and 251 ms; 10 per
class: 760 and 5078 ms. So vmap up to `SMALL` pixels per class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .how import as_rows
from .networks import matched, pass_size

SMALL = 640  # pixels per class: 10 images of 8x8


def class_gradients(
    network: nn.Module, batches: Sequence[Tensor], *, create_graph: bool = False, chunk: int | None = None
) -> list[Tensor]:
    """Gradient of the mean cross-entropy of each class batch with respect to every matched weight.

    batches: C tensors (n_c, channels, height, width), the batch of class c at place c; sizes may differ.
    create_graph: keep what it takes to differentiate a function of the result with respect to the images (gS).
    chunk: at most so many images in one pass, for less memory; the result is the same to rounding (None: no limit).
    Returns one (C, rows, n) tensor per matched layer, in layer order, in the images' dtype and on their device.
    """
    sizes = {len(b) for b in batches}
    small = len(sizes) == 1 and batches[0][:, 0].numel() <= SMALL
    if small and create_graph and chunk is None and not _wrong_under_vmap(network):
        g = _vmap(network, batches)
    else:
        labels = [torch.full((len(batch),), c, device=batch.device) for c, batch in enumerate(batches)]
        each = [_gradient(network, x, y, create_graph, chunk) for x, y in zip(batches, labels, strict=True)]
        g = [torch.stack(layer) for layer in zip(*each, strict=True)]
    return _rows(network, g)


def batch_gradient(
    network: nn.Module, x: Tensor, y: Tensor, *, create_graph: bool = False, chunk: int | None = None
) -> list[Tensor]:
    """Gradient of the mean cross-entropy of one batch of any classes: one (rows, n) tensor per matched layer.

    x: (n, channels, height, width), y: (n,) int64. create_graph, chunk: see `class_gradients`.
    """
    return _rows(network, _gradient(network, x, y, create_graph, chunk))


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
    return any(type(m) is nn.LayerNorm and m.elementwise_affine and len(m.normalized_shape) > 1 for m in network.modules())


def _vmap(network: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    theta = {name: p.detach() for name, p in network.named_parameters()}
    weights = {name: theta.pop(name) for name, _ in matched(network)}
    images = torch.stack(tuple(batches))
    labels = torch.arange(len(batches), device=images.device)[:, None].expand(images.shape[:2])

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, {**theta, **weights}, (x,)), y)

    return list(vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, labels).values())
