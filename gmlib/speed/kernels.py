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


@triton.jit
def _load(z, width, N: tl.constexpr, BLOCK: tl.constexpr):
    """The feature map of this program: its number, its N 2x2 blocks, where their pixels are, and these in float32."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < N
    half = width // 2
    at = 4 * N * row + (i // half) * 2 * width + (i % half) * 2
    upper_left = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    upper_right = tl.load(z + at + 1, mask=inside, other=0.0).to(tl.float32)
    lower_left = tl.load(z + at + width, mask=inside, other=0.0).to(tl.float32)
    lower_right = tl.load(z + at + width + 1, mask=inside, other=0.0).to(tl.float32)
    return row, i, inside, at, upper_left, upper_right, lower_left, lower_right


@triton.jit
def _forward(z, gamma, beta, pooled, mean, scale, channels, width, eps, N: tl.constexpr, BLOCK: tl.constexpr):
    """One feature map: its N blocks of z to pooled, and its mean and 1 / sqrt(variance + eps)."""
    row, i, inside, _, a, b, c, d = _load(z, width, N, BLOCK)
    m = tl.sum(a + b + c + d, 0) / (4 * N)
    a, b, c, d = a - m, b - m, c - m, d - m
    variance = tl.sum(tl.where(inside, a * a + b * b + c * c + d * d, 0.0), 0) / (4 * N)
    s = 1.0 / tl.sqrt(variance + eps)
    g = tl.load(gamma + row % channels).to(tl.float32) * s
    h = tl.load(beta + row % channels).to(tl.float32)
    y = (
        tl.maximum(a * g + h, 0.0)
        + tl.maximum(b * g + h, 0.0)
        + tl.maximum(c * g + h, 0.0)
        + tl.maximum(d * g + h, 0.0)
    )
    tl.store(pooled + N * row + i, (y / 4).to(pooled.dtype.element_ty), mask=inside)
    tl.store(mean + row, m)
    tl.store(scale + row, s)


@triton.jit
def _backward(
    dp, z, gamma, beta, mean, scale, dz, dgamma, dbeta, channels, width, N: tl.constexpr, BLOCK: tl.constexpr
):
    """One feature map: dz from the gradient dp of the pooled map; its parts of dgamma and dbeta."""
    row, i, inside, at, a, b, c, d = _load(z, width, N, BLOCK)
    m, s = tl.load(mean + row), tl.load(scale + row)
    g, h = tl.load(gamma + row % channels).to(tl.float32), tl.load(beta + row % channels).to(tl.float32)
    a, b, c, d = (a - m) * s, (b - m) * s, (c - m) * s, (d - m) * s
    dy = tl.load(dp + N * row + i, mask=inside, other=0.0).to(tl.float32) / 4
    da, db = tl.where(a * g + h > 0, dy, 0.0), tl.where(b * g + h > 0, dy, 0.0)
    dc, dd = tl.where(c * g + h > 0, dy, 0.0), tl.where(d * g + h > 0, dy, 0.0)
    of_beta = tl.sum(da + db + dc + dd, 0)
    of_gamma = tl.sum(da * a + db * b + dc * c + dd * d, 0)
    tl.store(dbeta + row, of_beta)
    tl.store(dgamma + row, of_gamma)
    k, u, v = g * s, of_beta / (4 * N), of_gamma / (4 * N)
    kind = dz.dtype.element_ty
    tl.store(dz + at, (k * (da - u - a * v)).to(kind), mask=inside)
    tl.store(dz + at + 1, (k * (db - u - b * v)).to(kind), mask=inside)
    tl.store(dz + at + width, (k * (dc - u - c * v)).to(kind), mask=inside)
    tl.store(dz + at + width + 1, (k * (dd - u - d * v)).to(kind), mask=inside)


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        z = z.contiguous()
        n, channels, height, width = z.shape
        pooled = z.new_empty(n, channels, height // 2, width // 2)
        mean, scale = (torch.empty(n * channels, device=z.device, dtype=torch.float32) for _ in range(2))
        size = {"N": height * width // 4, "BLOCK": triton.next_power_of_2(height * width // 4)}
        _forward[(n * channels,)](z, gamma, beta, pooled, mean, scale, channels, width, eps, **size)
        ctx.save_for_backward(z, gamma, beta, mean, scale)
        ctx.size = size
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dp: Tensor) -> tuple[Tensor | None, ...]:
        z, gamma, beta, mean, scale = ctx.saved_tensors
        n, channels, _, width = z.shape
        dz = torch.empty_like(z)
        dgamma, dbeta = torch.empty_like(mean), torch.empty_like(mean)
        arguments = (dp.contiguous(), z, gamma, beta, mean, scale, dz, dgamma, dbeta, channels, width)
        _backward[(n * channels,)](*arguments, **ctx.size)
        dgamma, dbeta = (part.view(n, channels).sum(0).to(gamma) for part in (dgamma, dbeta))
        return dz, dgamma, dbeta, None


def norm_relu_pool(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Instance norm with weights, ReLU and 2x2 average pool. There are no second derivatives.

    Parameters
    ----------
    z : Tensor
        (n, channels, height, width), float32 or bfloat16, with even height and width. Sums are taken in float32.
    gamma, beta : Tensor
        (channels,).
    eps : float

    Returns
    -------
    Tensor
        (n, channels, height / 2, width / 2), in the dtype of ``z``.
    """
    return _NormReluPool.apply(z, gamma, beta, eps)
