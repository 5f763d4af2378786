"""A faster forward pass of the ConvNet, for training and testing on images that need no gradient.

On a CPU feature maps are (n, side, side, width) here. With the width last in memory, norm, ReLU and pooling are
faster: they move much memory for little arithmetic. The first block has the largest feature maps and few input
channels, so its norm becomes a part of its filters (`_FirstBlock`). The other convolutions need a quarter of the
multiplications (`_Convolution`). On one core, with ConvNet-3-128 and ten grey 28x28 images, a training step takes
18 ms instead of 31, and a forward pass 6 ms instead of 9. On CUDA see `fused_forward`. Wide networks of other kinds
train faster with `SmallMaps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from ..networks import HalvingPool

Forward = Callable[[Tensor], Tensor]  # images -> logits: a network, or what `fast_forward` returns

# Norm, ReLU and pool in one kernel on CUDA (`gmlib.speed.kernels`), and the layout of feature maps in memory: "nchw",
# or "nhwc", which suits TF32 and bfloat16. None is torch's own layers: no GPU has measured the others yet.
FUSED: str | None = None
SMALLEST = 2**16  # numbers in a feature map of the first block from which this is faster
TILE = 4  # side of the squares of outputs that `_Convolution` computes together
WIDE = 256  # input channels from which a convolution may have more weights than its maps have numbers

threshold_backward = torch.ops.aten.threshold_backward  # (gradient, y, 0) -> the gradient where y > 0, else 0


def fast_forward(network: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Forward:
    """Return a function that computes the logits of ``network``, faster than ``network`` does if there is a way.

    Its values and gradients are those of ``network`` to rounding. But the faster function gives no gradient with
    respect to images and no second derivatives.

    Parameters
    ----------
    network : nn.Module
        The ConvNet with instance norm, ReLU, average pools and only even sides has a faster function on a CPU, if it
        is wide enough, and on CUDA that of `fused_forward`. On a CPU any other network with a wide convolution gets
        `SmallMaps`, where a gradient is taken and ``dtype`` is None. The rest are returned as they are.
    x : Tensor
        (n, channels, side, side), images like those that the function will get.
    dtype : torch.dtype, optional
        torch.bfloat16 rounds feature maps, and the factors of their products. Products are summed in float32, and
        gradients keep the dtype of the parameters. None computes in the dtype of the images.
    """
    if x.device.type != "cpu":
        return fused_forward(network, x)
    blocks, side = _blocks(network, x)
    if not blocks:
        wide = (module.in_channels >= WIDE for module in network.modules() if isinstance(module, nn.Conv2d))
        exact = torch.is_grad_enabled() and dtype is None  # in bfloat16 the caller runs the network by autocast
        return partial(_with_small_maps, network) if exact and any(wide) else network
    if side**2 * blocks[0][0].out_channels < SMALLEST:
        return network
    *_, flatten, last = network.children()

    def forward(x: Tensor) -> Tensor:
        for i, (convolution, norm, *_) in enumerate(blocks):
            parameters = convolution.bias, norm.weight, norm.bias, norm.eps
            if i == 0:
                patches = _patches(x, convolution.padding[0])
                x = _FirstBlock.apply(patches, convolution.weight, *parameters, dtype or x.dtype)
            else:
                x = _NormReluPool.apply(_convolve(x, convolution.weight.to(x.dtype)), *parameters)
        return last(flatten(x.permute(0, 3, 1, 2)).to(last.weight.dtype))

    return forward


def fused_forward(network: nn.Module, x: Tensor) -> Forward:
    """As `fast_forward`, for CUDA: torch's convolutions, with norm, ReLU and pool in one kernel.

    Each convolution is called as a module, so a hook sees its input and output. Without Triton, for other networks
    and in float64 the network is returned as it is.
    """
    if not (FUSED and x.device.type == "cuda" and x.dtype == torch.float32) or find_spec("triton") is None:
        return network
    blocks, _ = _blocks(network, x)
    return _fused(network, blocks) if blocks else network


def _fused(network: nn.Module, blocks: list[Any]) -> Forward:
    from .kernels import norm_relu_pool  # needs Triton

    *_, flatten, last = network.children()
    channels_last = FUSED == "nhwc"

    def forward(x: Tensor) -> Tensor:
        if channels_last:  # a copy, also of grey images: cuDNN goes by the strides
            x = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
        for convolution, norm, *_ in blocks:
            x = norm_relu_pool(convolution(x), norm.weight, norm.bias, norm.eps)
        return last(flatten(x))

    return forward


def _blocks(network: nn.Module, x: Tensor) -> tuple[list[Any], int]:
    """The layers of each block [3x3 convolution, instance norm, ReLU, average pool], and the width of its first maps.

    No blocks if the network has other layers, or a pool would meet an odd side.
    """
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    layers = list(network) if type(network) is nn.Sequential and not hooked else []
    blocks: list[Any] = [layers[i : i + 4] for i in range(0, len(layers) - 2, 4)]
    kinds = [nn.Conv2d, nn.GroupNorm, nn.ReLU, HalvingPool] * len(blocks) + [nn.Flatten, nn.Linear]
    if not blocks or [type(layer) for layer in layers] != kinds:
        return [], 0
    fits = all(
        convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.padding in {(1, 1), (3, 3) if block == 0 else (1, 1)}  # the first one may enlarge the image
        and (convolution.groups, convolution.padding_mode) == (1, "zeros")
        and (convolution.bias is not None and norm.affine and norm.num_groups == norm.num_channels)
        for block, (convolution, norm, *_) in enumerate(blocks)
    )
    if not fits:
        return [], 0
    sides = [side + 2 * blocks[0][0].padding[0] - 2 for side in x.shape[-2:]]
    return ([], 0) if any(side % 2 ** len(blocks) for side in sides) else (blocks, sides[-1])


# ---- the first block -------------------------------------------------------------------------------------


def _patches(x: Tensor, padding: int) -> Tensor:
    """The 3x3 patch that a filter sees at each pixel, minus the mean patch of the image: (n, channels * 9, pixels).

    The order of the pixels is (2, 2, side/2, side/2): first the upper left one of every 2x2 block, and so on.
    """
    patches = F.pad(x, (padding,) * 4).unfold(2, 3, 1).unfold(3, 3, 1).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    patches = patches.permute(0, 1, 6, 7, 3, 5, 2, 4).flatten(4).flatten(1, 3)
    return patches - patches.mean(2, keepdim=True)


class _FirstBlock(torch.autograd.Function):
    """Convolution, instance norm, ReLU and 2x2 average pool of images, given as centred patches X (n, K, P).

    A filter w maps X to w X, which has mean 0 and variance w cov w' with cov = X X' / P. So the norm is known before
    the convolution: with a = gamma / sqrt(w cov w' + eps), the filter a w and the bias beta give its output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        n, _, P = X.shape
        w = weight.flatten(1)
        # In float64: the variance of a filter that sees edges only is a small difference of large numbers.
        X64, w64 = X.double(), w.double()
        w_cov = w64 @ (X64 @ X64.mT / P)  # (n, width, K)
        scale = (torch.linalg.vecdot(w_cov, w64) + eps).rsqrt().to(X)  # (n, width)
        a = scale * gamma
        filters = torch.cat([a[..., None] * w, beta[:, None].expand(n, -1, 1)], 2).mT.to(dtype)
        # One pixel of each 2x2 block at a time: their outputs fit into the cache.
        parts = torch.cat([X, X.new_ones(n, 1, P)], 1).to(dtype).chunk(4, 2)
        ys = [torch.bmm(parts[0].mT, filters).relu_()]
        pooled = ys[0] / 4
        for part in parts[1:]:
            ys.append(torch.bmm(part.mT, filters).relu_())
            pooled.add_(ys[-1], alpha=0.25)
        ctx.save_for_backward(w, w_cov.to(X), scale, a, *parts, *ys)
        return pooled.unflatten(1, (math.isqrt(P // 4), -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dp: Tensor) -> tuple[Tensor | None, ...]:
        w, w_cov, scale, a, *rest = ctx.saved_tensors
        parts, ys = rest[:4], rest[4:]
        dy = (dp / 4).contiguous().flatten(1, 2)  # where y > 0
        G = torch.stack([torch.bmm(X, threshold_backward(dy, y, 0)) for X, y in zip(parts, ys, strict=True)])
        G = G.to(w).sum(0)
        G, dbeta = G[:, :-1].mT, G[:, -1].sum(0)  # (n, width, K): dy X', summed over pixels
        dgamma = scale * torch.linalg.vecdot(G, w)  # (n, width)
        dw = (a[..., None] * (G - (dgamma * scale)[..., None] * w_cov)).sum(0)
        return None, dw.view(len(w), -1, 3, 3), torch.zeros_like(dbeta), dgamma.sum(0), dbeta, None, None


# ---- the other blocks ------------------------------------------------------------------------------------


class _NormReluPool(torch.autograd.Function):
    """Instance norm, ReLU and 2x2 average pool of z (n, side, side, width). The norm would remove a bias of z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        rows = z.flatten(1, 2)
        centred = rows - _mean(rows).to(z)
        scale = (_mean(centred.square()) + eps).rsqrt()  # (n, 1, width)
        a = (scale * gamma).to(z)
        y = torch.addcmul(beta.to(z), centred, a).relu_()
        ctx.save_for_backward(centred, y, scale, a)
        return F.avg_pool2d(y.view_as(z).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dp: Tensor) -> tuple[Tensor | None, ...]:
        centred, y, scale, a = ctx.saved_tensors
        n, half, _, width = dp.shape
        dy = (dp / 4).contiguous()[:, :, None, :, None].expand(n, half, 2, half, 2, width)
        dy = threshold_backward(dy, y.view(dy.shape), 0).view_as(y)
        dbeta = _mean(dy)  # (n, 1, width), divided by the number of pixels
        dgamma = _mean(dy * centred) * scale
        dz = (
            (dy - dbeta.to(dy))
            .addcmul_(centred, (scale * dgamma).to(dy), value=-1)
            .mul_(a)
            .view(n, 2 * half, 2 * half, width)
        )
        dgamma, dbeta = (4 * half**2 * each.sum((0, 1)) for each in (dgamma, dbeta))
        return dz, torch.zeros_like(dbeta), dgamma, dbeta, None


def _mean(rows: Tensor) -> Tensor:
    """The mean over pixels of rows (n, pixels, width), (n, 1, width). In bfloat16 it is taken in float32."""
    if rows.dtype != torch.bfloat16:
        return rows.mean(1, keepdim=True)
    # Products with ones are fast. They add up in float32 but round their results, so each adds up only some pixels.
    parts = rows.unflatten(1, (math.isqrt(rows.shape[1]), -1)).flatten(0, 1)
    sums = torch.bmm(rows.new_ones(1, 1, 1).expand(len(parts), 1, parts.shape[1]), parts)
    return sums.view(len(rows), -1, rows.shape[2]).float().sum(1, keepdim=True) / rows.shape[1]


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    """The 3x3 convolution of x (n, side, side, width)."""
    if x.shape[1] % TILE == 0 and x.dtype in TRANSFORMS:  # torch's own is faster in bfloat16, and more exact
        return _Convolution.apply(x, weight)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1).contiguous()


class _Convolution(torch.autograd.Function):
    """3x3 convolution by Winograd's method: 2.25 products for an output pixel and two channels instead of 9.

    A tile of 4x4 output pixels is A [(G w) * (B d)], from its 6x6 input pixels d: 36 products for 16 pixels, and
    small matrices A, G, B. Sums over input channels come before A, so they are matrix products.

    Source
    ------
    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        A, G, B = TRANSFORMS[x.dtype]
        n, side, _, width = x.shape
        d = F.pad(x, (0, 0, 1, 1, 1, 1)).unfold(1, TILE + 2, TILE).unfold(2, TILE + 2, TILE).permute(4, 5, 0, 1, 2, 3)
        Bd = (B @ d.reshape(len(B), -1)).view(len(B), -1, width)  # (36, tiles, width)
        Gw = (G @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(len(G), width, -1)  # (36, width, width)
        ctx.save_for_backward(Bd, Gw)
        y = (A @ torch.bmm(Bd, Gw).flatten(1)).view(TILE, TILE, n, side // TILE, side // TILE, -1)
        return y.permute(2, 3, 0, 4, 1, 5).reshape(n, side, side, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        Bd, Gw = ctx.saved_tensors
        A, G, B = TRANSFORMS[dy.dtype]
        n, side, _, width = dy.shape
        tiles = side // TILE
        dy = dy.view(n, tiles, TILE, tiles, TILE, width).permute(2, 4, 0, 1, 3, 5)
        dM = (A.mT @ dy.reshape(len(A), -1)).view(len(Bd), -1, width)  # of the products
        dw = G.mT @ torch.bmm(Bd.mT, dM).flatten(1)
        dd = (B.mT @ torch.bmm(dM, Gw.mT).flatten(1)).view(TILE + 2, TILE + 2, n, tiles, tiles, -1)
        # The last two rows and columns of a tile are the first of the next one.
        dx = dd.new_zeros(n, tiles + 1, TILE, tiles + 1, TILE, dd.shape[-1])
        for i in (0, 1):
            for j in (0, 1):
                part = dd[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE].permute(2, 3, 0, 4, 1, 5)
                dx[:, i : tiles + i, : part.shape[2], j : tiles + j, : part.shape[4]] += part
        dx = dx.flatten(3, 4).flatten(1, 2)[:, 1 : side + 1, 1 : side + 1]
        return dx, dw.view(3, 3, -1, width).permute(3, 2, 0, 1)


def _transforms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A (16, 36), G (36, 9) and B (36, 36): polynomials are evaluated and interpolated at five points and infinity.

    The usual points 0, 1, -1, 2, -2 give five times the rounding error of a direct convolution, these two times.
    """
    points = torch.tensor([0, 2 / 3, -2 / 3, 3 / 2, -3 / 2], dtype=torch.float64, device="cpu")

    def at_points(terms: int) -> Tensor:
        """Values of a polynomial at the points; its last coefficient at infinity."""
        last = torch.eye(terms, dtype=torch.float64, device="cpu")[-1:]
        return torch.cat([torch.vander(points, N=terms, increasing=True), last])

    A, G, B = at_points(TILE).mT, at_points(3), torch.linalg.inv(at_points(TILE + 2)).mT
    A, G, B = (torch.kron(each.contiguous(), each.contiguous()).to(dtype) for each in (A, G, B))
    return A, G, B


# Made at the import: a first pass may be one on fake tensors, or under another default device.
TRANSFORMS = {dtype: _transforms(dtype) for dtype in (torch.float32, torch.float64)}


# ---- networks of other kinds -----------------------------------------------------------------------------


class SmallMaps(TorchFunctionMode):
    """Within it, a convolution of a few small maps is a product of matrices.

    The last layers of VGG and ResNet have maps of 2x2 and 4x4 pixels. With ten images their weights are most of what
    is moved, and oneDNN moves them several times. Forward and backward, on one core with ten images and 512 channels,
    2x2 pixels take 13 ms instead of 29, and 4x4 pixels 31 instead of 45. With more pixels than input channels there
    is no gain.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.conv2d or len(args) < 7:  # nn.Conv2d gives all seven
            return func(*args, **(kwargs or {}))
        x, weight, bias, stride, padding, dilation, groups = args
        if x.ndim == 4 and x.shape[1] >= WIDE and groups == 1 and not isinstance(padding, str):
            kernel = weight.shape[2:]
            sides = [
                (side + 2 * pad - wide * (k - 1) - 1) // step + 1
                for side, pad, wide, k, step in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
            ]
            if len(x) * math.prod(sides) <= x.shape[1]:
                patches = F.unfold(x, kernel, dilation, padding, stride).mT  # (n, pixels, channels * k * k)
                return F.linear(patches, weight.flatten(1), bias).mT.unflatten(2, sides)
        return func(*args)


def _with_small_maps(network: nn.Module, x: Tensor) -> Tensor:
    with SmallMaps():
        return network(x)
