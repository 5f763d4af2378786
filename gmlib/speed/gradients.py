"""Class gradients gS_c and gT_c (line 7 of Algorithm 1), by the fastest implementation for device and sizes.

All implementations give the same numbers to rounding:

- ``loop``: one backward pass per class.
- ``vmap``: all classes in one pass by torch.func. Classes need the same number of images.
- ``grouped``: the images of all classes in one pass. Only the weight gradients are computed class by class, from the
  input of each layer and the gradient of its output. This launches a few kernels per layer instead of per class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from ..how import as_rows
from ..networks import matched
from ..runtime import check_time, in_time
from .forward import Forward, fast_forward, fused_forward
from .passes import map_in_threads, pass_size
from .trust import is_own, is_right

MAX_VMAP_PIXELS = 640  # pixels per class and channel for which vmap is fastest: 10 images of 8x8


def class_gradients(
    network: nn.Module,
    batches: Sequence[Tensor],
    *,
    create_graph: bool = False,
    chunk: int | None = None,
    implementation: str | None = None,
    precision: str = "float32",
) -> list[Tensor]:
    """Compute the gradient of the mean cross-entropy of each class batch with respect to every matched weight.

    Parameters
    ----------
    network : nn.Module
    batches : sequence of Tensor
        C tensors (n_c, channels, height, width), the batch of class c at index c. Sizes n_c may differ.
    create_graph : bool
        Keep the graph, so that functions of the result can be differentiated with respect to the images (gS).
    chunk : int, optional
        Images in one pass at most, to save memory; None for no limit. The result is the same to rounding.
    implementation : str, optional
        A name in ``IMPLEMENTATIONS``; None for `fastest_implementation`.
    precision : str
        With "bf16" in it the pass runs in bfloat16: by `gmlib.speed.forward.fast_forward` if it is faster there, else
        by autocast.

    Returns
    -------
    list of Tensor
        One (C, rows, n) tensor per matched layer, in layer order, in the images' dtype and on their device.

    Source
    ------
    Line 7 of Algorithm 1.
    """
    with _autocast(batches[0], precision), attention(create_graph):
        name = implementation or fastest_implementation(network, batches, create_graph, chunk)
        g = IMPLEMENTATIONS[name](network, batches, create_graph, chunk)
    return _as_rows(network, g)


# Milliseconds for ten classes on one CPU core:            loop   vmap            grouped
#   S with its second derivative
#     8x8, ConvNet-3-32          1 image per class            22   7               6
#     8x8, ConvNet-3-32         10 images per class           40   16              21
#     28x28, ConvNet-3-128       1 image per class           140   112             114
#     28x28, ConvNet-3-128      10 images per class          991   far more        1404
#   real images
#     8x8, ConvNet-3-32         10 images per class           13   10              7
#     8x8, ConvNet-3-32         32 images per class           20   16              13
#     28x28, ConvNet-3-128      10 images per class          338   not measured    385
# So: grouped if the images of all classes fit into the cache together, vmap for several tiny images per class of S,
# else loop.
def fastest_implementation(
    network: nn.Module, batches: Sequence[Tensor], create_graph: bool, chunk: int | None
) -> str:
    """Return the name in ``IMPLEMENTATIONS`` to use: by measurements on a CPU, the one with fewest launches on CUDA.

    It is "loop" if the other one is wrong for this network.

    Parameters are those of `class_gradients`.
    """
    first = batches[0]
    sizes = [len(batch) for batch in batches]
    largest, total = max(sizes), sum(sizes)
    on_cuda = first.device.type == "cuda"
    # On CUDA a pass over real images can take some classes at a time. Graphs for S must all be held at once.
    can_split = on_cuda and not create_graph
    grouped = (chunk is None or (largest if can_split else total) <= chunk) and _supports_grouped(network)
    tiny = create_graph and not on_cuda and min(sizes) == largest and first[:, 0].numel() <= MAX_VMAP_PIXELS
    if tiny and chunk is None and (largest > 1 or not grouped):
        name = "vmap"
    else:
        memory_factor = 3 if on_cuda and create_graph else 1  # second derivatives hold about three times as much
        fitting = (pass_size(network, first) or total) // memory_factor
        name = "grouped" if grouped and (total <= fitting or can_split) else "loop"
    if name != "loop" and not is_right(name, IMPLEMENTATIONS[name], _loop, network, batches, create_graph):
        return "loop"
    return name


def batch_gradient(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    create_graph: bool = False,
    chunk: int | None = None,
    precision: str = "float32",
) -> list[Tensor]:
    """Compute the gradient of the mean cross-entropy of one batch of mixed classes.

    Parameters
    ----------
    network : nn.Module
    x : Tensor
        (n, channels, height, width).
    y : Tensor
        (n,) int64.
    create_graph, chunk, precision
        As in `class_gradients`.

    Returns
    -------
    list of Tensor
        One (rows, n) tensor per matched layer.
    """
    with _autocast(x, precision), attention(create_graph):
        return _as_rows(network, _gradient(network, x, y, create_graph, chunk))


def _autocast(x: Tensor, precision: str) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, enabled="bf16" in precision)


def attention(twice: bool) -> AbstractContextManager:
    """Of torch's ways to compute attention, take the one that can be differentiated twice."""
    return sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()


def _as_rows(network: nn.Module, g: Sequence[Tensor]) -> list[Tensor]:
    return [as_rows(layer, p.ndim) for layer, (_, p) in zip(g, matched(network), strict=True)]


# ---- the gradient of one batch -----------------------------------------------------------------------------


def _gradient(network: nn.Module, x: Tensor, y: Tensor, create_graph: bool, chunk: int | None) -> Sequence[Tensor]:
    parameters = [p for _, p in matched(network)]
    if create_graph:
        if chunk is not None:
            return _RecomputedGradient.apply(x, y, network, chunk)
        return torch.autograd.grad(F.cross_entropy(network(x), y), parameters, create_graph=True)
    in_bf16 = torch.is_autocast_enabled(x.device.type)
    forward = fast_forward(network, x, torch.bfloat16 if in_bf16 else None)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=in_bf16 and (x.is_cuda or forward is network)):
        return _summed_gradient(forward, parameters, x, y, min(chunk or len(x), pass_size(network, x) or len(x)))


def _summed_gradient(
    forward: Forward, parameters: list[Tensor], x: Tensor, y: Tensor, chunk: int
) -> Sequence[Tensor]:
    """The gradient of the mean loss, summed over parts of the batch."""
    if len(x) <= chunk:
        return torch.autograd.grad(F.cross_entropy(forward(x), y), parameters)
    total = [torch.zeros_like(p) for p in parameters]
    for part, labels in in_time(zip(x.split(chunk), y.split(chunk), strict=True)):
        # mean over the batch = sum over its parts of (sum over the part) / (size of the batch)
        loss = F.cross_entropy(forward(part), labels, reduction="sum") / len(x)
        torch._foreach_add_(total, torch.autograd.grad(loss, parameters))
    return total


class _RecomputedGradient(torch.autograd.Function):
    """A batch's gradient that keeps no graph. Its derivative in the images is recomputed chunk by chunk.

    For v = d loss / d g the derivative is d <g(x), v> / dx, a sum over images. This costs one more pass and holds the
    graph of one chunk at a time.
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, network: nn.Module, chunk: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, y)
        ctx.network = network
        ctx.chunk = chunk
        with torch.enable_grad():
            return tuple(_gradient(network, x.detach(), y, False, chunk))

    @staticmethod
    def backward(ctx, *v: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        parameters = [p for _, p in matched(ctx.network)]
        derivative = []
        for part, labels in in_time(zip(x.split(ctx.chunk), y.split(ctx.chunk), strict=True)):
            with torch.enable_grad(), attention(True):
                part = part.detach().requires_grad_()
                loss = F.cross_entropy(ctx.network(part), labels, reduction="sum") / len(x)
                g = torch.autograd.grad(loss, parameters, create_graph=True)
                derivative += torch.autograd.grad(g, part, grad_outputs=v)
        return torch.cat(derivative), None, None, None


# ---- implementations ---------------------------------------------------------------------------------------


def _loop(network: nn.Module, batches: Sequence[Tensor], create_graph: bool, chunk: int | None) -> list[Tensor]:
    autocast = torch.is_autocast_enabled("cpu")  # new threads do not inherit it

    def gradient_of_class(c: int) -> Sequence[Tensor]:
        check_time()
        x = batches[c]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return _gradient(network, x, torch.full((len(x),), c, device=x.device), create_graph, chunk)

    C, first = len(batches), batches[0]
    n_threads = 1
    if not create_graph and first.device.type == "cpu" and is_own(network):
        fitting = pass_size(network, first)
        if fitting is not None and len(first) >= fitting // 2:
            n_threads = min(C, torch.get_num_threads())
    by_class = map_in_threads(gradient_of_class, range(C), n_threads)
    return [torch.stack(layer) for layer in zip(*by_class, strict=True)]


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
    total = sum(len(batch) for batch in batches)
    fitting = min(chunk or total, pass_size(network, batches[0]) or total)
    classes_per_pass = max(1, fitting // max(len(batch) for batch in batches))
    passes = [slice(c, c + classes_per_pass) for c in range(0, len(batches), classes_per_pass)]
    each = [_grouped_pass(network, batches[part], labels[part], create_graph) for part in in_time(passes)]
    return [torch.cat(layer) for layer in zip(*each, strict=True)]


def _grouped_pass(
    network: nn.Module, batches: Sequence[Tensor], labels: Sequence[Tensor], create_graph: bool
) -> list[Tensor]:
    sizes = [len(batch) for batch in batches]
    layers = _matched_layers(network)
    forward = network if create_graph else fused_forward(network, batches[0])
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # layer -> its input and output
    hooks = [layer.register_forward_hook(lambda layer, x, y: seen.update({layer: (x[0], y)})) for layer in layers]
    try:
        losses = F.cross_entropy(forward(torch.cat(tuple(batches))), torch.cat(tuple(labels)), reduction="none")
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(loss.mean() for loss in losses.split(sizes))  # each image adds to the mean of its own class only
    dy = torch.autograd.grad(total, [seen[layer][1] for layer in layers], create_graph=create_graph)
    gradients = []
    with torch.set_grad_enabled(create_graph):  # a layer's input depends on the weights of earlier layers
        for layer, dy_layer in zip(layers, dy, strict=True):
            by_class = zip(seen[layer][0].split(sizes), dy_layer.split(sizes), strict=True)
            gradients.append(torch.stack([_weight_gradient(layer, x, dy_c) for x, dy_c in by_class]))
    return gradients


def _weight_gradient(layer: nn.Conv2d | nn.Linear, x: Tensor, dy: Tensor) -> Tensor:
    """A layer's weight gradient from its input x and the gradient dy of its output, differentiable in both."""
    if isinstance(layer, nn.Linear):
        return (dy.flatten(0, -2).T @ x.flatten(0, -2).to(dy)).to(layer.weight)
    options = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
    weight = layer.weight.detach().to(dy)
    only_weight = (False, True, False)
    _, g, _ = torch.ops.aten.convolution_backward(dy, x.to(dy), weight, None, *options, only_weight)
    return g.to(layer.weight)


IMPLEMENTATIONS: dict[str, Callable[[nn.Module, Sequence[Tensor], bool, int | None], list[Tensor]]] = {
    "loop": _loop,
    "vmap": _vmap,
    "grouped": _grouped,
}


# ---- which networks an implementation supports -------------------------------------------------------------


def _supports_grouped(network: nn.Module) -> bool:
    """True if convolutions and linear layers hold all matched weights, run once each, and images do not mix."""
    layers = _matched_layers(network)
    mixes = any(isinstance(m, _BatchNorm) and m.training for m in network.modules())
    runs_once = len(list(network.named_modules(remove_duplicate=False))) == len(list(network.modules()))
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    pads_zeros = all(m.padding_mode == "zeros" and not isinstance(m.padding, str) for m in convolutions)
    return bool(layers) and not mixes and runs_once and pads_zeros


def _matched_layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The layers that hold the matched weights, in order. [] if other modules hold some, or layers share one."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    # A layer with a parametrization has no such parameter. To read its weight may change its state.
    own = [dict(m.named_parameters(recurse=False)).get("weight") for m in layers]
    by_weight = {id(p): m for m, p in zip(layers, own, strict=True) if p is not None}
    weights = [id(p) for _, p in matched(network)]
    if len(by_weight) < len(layers) or any(weight not in by_weight for weight in weights):
        return []
    return [by_weight[weight] for weight in weights]
