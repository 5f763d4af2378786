"""Instance norm, ReLU and 2x2 average pool in one kernel each way, in Triton, which comes with torch for CUDA.

These layers move much memory for little arithmetic. Torch's read or write the feature maps of a block about nineteen
times in a training step. A feature map of the ConvNet fits into the registers of one program, so here it is read once
forward, and read and written once backward, and the pooled map, a quarter of its size, twice.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PROGRAM = 2048  # 2x2 blocks that a program takes with the channels last: 32 numbers of z for each of 256 threads


@triton.jit
def _places(width, channels, N: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Where the feature maps of this program are: some channels of one image.

    (GROUP,): channels, the numbers of their maps, and whether there is such a channel. (BLOCK, GROUP): the upper left
    pixels of the N 2x2 blocks of each map, their pixels in the pooled map, and whether there is such a block. At the
    end, the steps to the next pixel of a row and to the next row.
    """
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    there = channel < channels
    i = tl.arange(0, BLOCK)
    half = width // 2
    if LAST:  # (n, height, width, channels) in memory
        step = channels
        map_of_z, map_of_pooled = channel, channel
    else:
        step = 1
        map_of_z, map_of_pooled = channel * 4 * N, channel * N
    at = ((i // half) * 2 * width + (i % half) * 2)[:, None] * step + map_of_z[None, :] + image * channels * 4 * N
    pooled_at = i[:, None] * step + map_of_pooled[None, :] + image * channels * N
    inside = (i < N)[:, None] & there[None, :]
    return channel, image * channels + channel, there, at, pooled_at, inside, step, width * step


@triton.jit
def _load(z, at, inside, step, down):
    """The four pixels of each 2x2 block, in float32."""
    upper_left = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    upper_right = tl.load(z + at + step, mask=inside, other=0.0).to(tl.float32)
    lower_left = tl.load(z + at + down, mask=inside, other=0.0).to(tl.float32)
    lower_right = tl.load(z + at + down + step, mask=inside, other=0.0).to(tl.float32)
    return upper_left, upper_right, lower_left, lower_right


@triton.jit
def _weights(gamma, beta, channel, there):
    g = tl.load(gamma + channel, mask=there, other=0.0).to(tl.float32)
    h = tl.load(beta + channel, mask=there, other=0.0).to(tl.float32)
    return g[None, :], h[None, :]


@triton.jit
def _forward(
    width, channels, z, gamma, beta, eps, pooled, mean, scale,
    N: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """z to pooled, and the mean and 1 / sqrt(variance + eps) of each feature map."""
    channel, row, there, at, pooled_at, inside, step, down = _places(width, channels, N, LAST, BLOCK, GROUP)
    a, b, c, d = _load(z, at, inside, step, down)
    m = tl.sum(a + b + c + d, 0) / (4 * N)
    a, b, c, d = a - m[None, :], b - m[None, :], c - m[None, :], d - m[None, :]
    variance = tl.sum(tl.where(inside, a * a + b * b + c * c + d * d, 0.0), 0) / (4 * N)
    s = 1.0 / tl.sqrt(variance + eps)
    g, h = _weights(gamma, beta, channel, there)
    g = g * s[None, :]
    y = (
        tl.maximum(a * g + h, 0.0)
        + tl.maximum(b * g + h, 0.0)
        + tl.maximum(c * g + h, 0.0)
        + tl.maximum(d * g + h, 0.0)
    )
    tl.store(pooled + pooled_at, (y / 4).to(pooled.dtype.element_ty), mask=inside)
    tl.store(mean + row, m, mask=there)
    tl.store(scale + row, s, mask=there)


@triton.jit
def _backward(
    width, channels, z, gamma, beta, mean, scale, dp, dz, dgamma, dbeta,
    N: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dz from the gradient dp of the pooled maps, and the part of each map in dgamma and dbeta."""
    channel, row, there, at, pooled_at, inside, step, down = _places(width, channels, N, LAST, BLOCK, GROUP)
    a, b, c, d = _load(z, at, inside, step, down)
    m = tl.load(mean + row, mask=there, other=0.0)[None, :]
    s = tl.load(scale + row, mask=there, other=0.0)[None, :]
    g, h = _weights(gamma, beta, channel, there)
    a, b, c, d = (a - m) * s, (b - m) * s, (c - m) * s, (d - m) * s
    dy = tl.load(dp + pooled_at, mask=inside, other=0.0).to(tl.float32) / 4
    da, db = tl.where(a * g + h > 0, dy, 0.0), tl.where(b * g + h > 0, dy, 0.0)
    dc, dd = tl.where(c * g + h > 0, dy, 0.0), tl.where(d * g + h > 0, dy, 0.0)
    of_beta = tl.sum(da + db + dc + dd, 0)
    of_gamma = tl.sum(da * a + db * b + dc * c + dd * d, 0)
    tl.store(dbeta + row, of_beta, mask=there)
    tl.store(dgamma + row, of_gamma, mask=there)
    k, u, v = g * s, (of_beta / (4 * N))[None, :], (of_gamma / (4 * N))[None, :]
    kind = dz.dtype.element_ty
    tl.store(dz + at, (k * (da - u - a * v)).to(kind), mask=inside)
    tl.store(dz + at + step, (k * (db - u - b * v)).to(kind), mask=inside)
    tl.store(dz + at + down, (k * (dc - u - c * v)).to(kind), mask=inside)
    tl.store(dz + at + down + step, (k * (dd - u - d * v)).to(kind), mask=inside)


def _launch(kernel: Any, z: Tensor, *arguments: Any) -> None:
    """Start ``kernel`` for all feature maps of z."""
    n, channels, height, width = z.shape
    N = height * width // 4
    block, last = triton.next_power_of_2(N), _is_last(z)
    # With the channels last, neighbours in memory are other maps. A GPU reads 32 bytes at once: eight of them. Larger
    # maps than 32x32 leave room for four.
    group = min(triton.next_power_of_2(channels), max(PROGRAM // block, 4)) if last else 1
    warps = min(max(block * group // 256, 4), 16)
    size = {"N": N, "LAST": last, "BLOCK": block, "GROUP": group, "num_warps": warps}
    kernel[(n, triton.cdiv(channels, group))](width, channels, z, *arguments, **size)


def _is_last(z: Tensor) -> bool:
    return not z.is_contiguous() and z.is_contiguous(memory_format=torch.channels_last)


def _layout_of(z: Tensor) -> torch.memory_format:
    return torch.channels_last if _is_last(z) else torch.contiguous_format


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        z = z.contiguous(memory_format=_layout_of(z))
        n, channels, height, width = z.shape
        size = (n, channels, height // 2, width // 2)
        pooled = torch.empty(size, dtype=z.dtype, device=z.device, memory_format=_layout_of(z))
        mean, scale = (torch.empty(n * channels, device=z.device, dtype=torch.float32) for _ in range(2))
        _launch(_forward, z, gamma, beta, eps, pooled, mean, scale)
        ctx.save_for_backward(z, gamma, beta, mean, scale)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dp: Tensor) -> tuple[Tensor | None, ...]:
        z, gamma, beta, mean, scale = ctx.saved_tensors
        dz = torch.empty_like(z)
        dgamma, dbeta = torch.empty_like(mean), torch.empty_like(mean)
        dp = dp.contiguous(memory_format=_layout_of(z))
        _launch(_backward, z, gamma, beta, mean, scale, dp, dz, dgamma, dbeta)
        dgamma, dbeta = (part.view(z.shape[:2]).sum(0).to(gamma) for part in (dgamma, dbeta))
        return dz, dgamma, dbeta, None


def norm_relu_pool(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Instance norm with weights, ReLU and 2x2 average pool. There are no second derivatives.

    Parameters
    ----------
    z : Tensor
        (n, channels, height, width), float32 or bfloat16, with even height and width, in either layout of memory:
        channels first or last. Sums are taken in float32.
    gamma, beta : Tensor
        (channels,).
    eps : float

    Returns
    -------
    Tensor
        (n, channels, height / 2, width / 2), in the dtype and layout of ``z``.
    """
    return _NormReluPool.apply(z, gamma, beta, eps)
