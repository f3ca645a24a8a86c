"""Functions that torch.compile makes slow code of on CPUs, written for it in another order.

Elsewhere they are torch's own, to the bit; for that compiler they agree with those up to rounding.
baselines/TRAINING.md has what they bring.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _compiling_for_cpu(x: Tensor) -> bool:
    return torch.compiler.is_compiling() and x.device.type == "cpu"


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """F.leaky_relu. The compiler would keep a bool for each value for the backward pass, and storing those is slow."""
    if not _compiling_for_cpu(x):
        return F.leaky_relu(x, slope)
    return (1 + slope) / 2 * x + (1 - slope) / 2 * x.abs()


def relu(x: Tensor) -> Tensor:
    """F.relu, for the same reason as `leaky_relu`; where x is 0 the compiler's gradient is a half."""
    if not _compiling_for_cpu(x):
        return F.relu(x)
    return leaky_relu(x, 0.0)


class _SiLU(torch.autograd.Function):
    """x / (1 + 2^(-x log2(e))): the compiler computes `exp2` again where it is used, and stores `exp` and `sigmoid`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x / (1 + torch.exp2(-math.log2(math.e) * x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        sigmoid = 1 / (1 + torch.exp2(-math.log2(math.e) * x))
        return grads[0] * sigmoid * (1 + x * (1 - sigmoid))


def silu(x: Tensor) -> Tensor:
    """F.silu. The compiler would write its sigmoid out as float32 for the backward pass."""
    if not _compiling_for_cpu(x):
        return F.silu(x)
    silu: Tensor = _SiLU.apply(x)
    return silu


def modulated_group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """weight F.group_norm(x) + bias, [N, C, H, W].

    To the compiler the groups meet in a product of [N, C] with a matrix: a loop over pixels that has to find the group
    of each channel is not vectorised, in the backward pass least of all.

    Args:
        x: [N, C, H, W].
        groups: Of C / groups channels each.
        weight: [N, C] or [C].
        bias: As `weight`.
        eps: Added to the variance.
    """
    if not _compiling_for_cpu(x):
        return torch.addcmul(bias[..., None, None], weight[..., None, None], F.group_norm(x, groups, eps=eps))
    channels = x.shape[1]
    with torch.autocast(x.device.type, enabled=False):
        values = x.float()
        group = torch.arange(channels, device=x.device) // (channels // groups)
        to_means = (group[:, None] == group).float() / (channels // groups * x[0, 0].numel())
        sums = torch.stack([values.sum((2, 3)), values.square().sum((2, 3))])
        mean, square = (sums @ to_means).unbind()
        variance = square - mean.square()
        scale = weight * torch.rsqrt(variance.clamp(min=0) + eps)
        shift = bias - mean * scale
        return (values * scale[..., None, None] + shift[..., None, None]).to(x.dtype)
