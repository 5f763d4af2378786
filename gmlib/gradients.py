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
from .networks import matched

SMALL = 640  # pixels per class: 10 images of 8x8


def class_gradients(network: nn.Module, batches: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradient of the mean cross-entropy of each class batch with respect to every matched weight.

    batches: C tensors (n_c, channels, height, width), the batch of class c at place c; sizes may differ.
    create_graph: keep the graph, so that a function of the result can be differentiated with respect to the images (gS).
    Returns one (C, rows, n) tensor per matched layer, in layer order, in the images' dtype and on their device.
    """
    sizes = {len(b) for b in batches}
    small = len(sizes) == 1 and batches[0][:, 0].numel() <= SMALL
    g = _vmap(network, batches) if small and create_graph else _loop(network, batches, create_graph)
    ndims = [p.ndim for _, p in matched(network)]
    return [as_rows(layer, ndim) for layer, ndim in zip(g, ndims, strict=True)]


def _loop(network: nn.Module, batches: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
    parameters = [p for _, p in matched(network)]
    per_class = []
    for c, batch in enumerate(batches):
        labels = torch.full((len(batch),), c, device=batch.device)
        loss = F.cross_entropy(network(batch), labels)
        per_class.append(torch.autograd.grad(loss, parameters, create_graph=create_graph))
    return [torch.stack(layer) for layer in zip(*per_class, strict=True)]


def _vmap(network: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    theta = {name: p.detach() for name, p in network.named_parameters()}
    weights = {name: theta.pop(name) for name, _ in matched(network)}
    images = torch.stack(tuple(batches))
    labels = torch.arange(len(batches), device=images.device)[:, None].expand(images.shape[:2])

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, {**theta, **weights}, (x,)), y)

    return list(vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, labels).values())
