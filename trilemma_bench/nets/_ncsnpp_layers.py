"""Layers and blocks of the DDGAN networks (see `ncsnpp`), named as in the authors' state dicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma_bench.nets._compiled import modulated_group_norm
from trilemma_bench.nets._ncsnpp_config import GeneratorConfig, require

SQRT_HALF = math.sqrt(0.5)


class Init(NamedTuple):
    """Uniform weights of variance `scale / fan`; biases are 0."""

    scale: float = 1.0
    fan: Literal["average", "out"] = "average"


_NEARLY_ZERO = 1e-10
_DEFAULT = Init()
SILENT = Init(_NEARLY_ZERO)
OUT = Init(fan="out")
OUT_SILENT = Init(_NEARLY_ZERO, "out")


class Conv2d(nn.Conv2d):
    """A convolution with 'same' padding."""

    def __init__(self, in_ch: int, out_ch: int, kernel: int, *, init: Init = _DEFAULT, **options: Any) -> None:
        super().__init__(in_ch, out_ch, kernel, **{"padding": kernel // 2, **options})
        self.init = init

    def reset_parameters(self) -> None:
        """Left to `initialise`, so that building does not draw from torch's global generator."""

    def initialise(self, rng: torch.Generator | None) -> None:
        _fill(self.weight, self.init, rng)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int, *, init: Init = _DEFAULT) -> None:
        super().__init__(in_features, out_features)
        self.init = init

    def reset_parameters(self) -> None:
        """Left to `initialise`, so that building does not draw from torch's global generator."""

    def initialise(self, rng: torch.Generator | None) -> None:
        _fill(self.weight, self.init, rng)
        nn.init.zeros_(self.bias)


class Style(Linear):
    """The latent's embedding to (gamma, beta), at first about (1, 0)."""

    def __init__(self, z_emb_dim: int, channels: int) -> None:
        super().__init__(z_emb_dim, 2 * channels, init=OUT)

    def initialise(self, rng: torch.Generator | None) -> None:
        super().initialise(rng)
        nn.init.ones_(self.bias[: self.out_features // 2])


class NIN(nn.Module):
    """y = x W + b over the last axis; W is [in, out]."""

    def __init__(self, in_ch: int, out_ch: int, *, init: Init) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(in_ch, out_ch))
        self.b = nn.Parameter(torch.empty(out_ch))
        self.init = init

    def initialise(self, rng: torch.Generator | None) -> None:
        _fill(self.W, self.init, rng)
        nn.init.zeros_(self.b)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W.t(), self.b)


def _fill(weight: Tensor, init: Init, rng: torch.Generator | None) -> None:
    if weight.is_meta:
        return
    pixels = math.prod(weight.shape[2:])
    fan_out, fan_in = weight.shape[0] * pixels, weight.shape[1] * pixels
    fan = fan_out if init.fan == "out" else (fan_in + fan_out) / 2
    bound = math.sqrt(3 * init.scale / fan)
    nn.init.uniform_(weight, -bound, bound, generator=rng)


def num_groups(channels: int) -> int:
    groups = min(channels // 4, 32)
    require(
        groups >= 1 and channels % groups == 0,
        f"num_channels_dae and ch_mult give a layer of {channels} channels, which group normalisation cannot "
        f"split into {groups} groups. Use a multiple of 4 under 128 channels, of 32 above.",
    )
    return groups


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups(channels), channels, eps=1e-6)


class AdaptiveGroupNorm(nn.Module):
    """Group normalisation whose scale and shift come from the latent's embedding, not from the step."""

    def __init__(self, channels: int, z_emb_dim: int) -> None:
        super().__init__()
        self.num_groups = num_groups(channels)
        self.style = Style(z_emb_dim, channels)

    def forward(self, x: Tensor, zemb: Tensor) -> Tensor:
        gamma, beta = self.style(zemb).chunk(2, dim=1)
        return modulated_group_norm(x, self.num_groups, gamma, beta, eps=1e-6)


class PixelNorm(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of t [B] at frequencies 1 to 1e-4: float32 [B, dim], the last 0 if dim is odd."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / (half - 1)))
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


# --- resampling


def fir_matrix(taps: Sequence[Any]) -> npt.NDArray[np.float32]:
    """The filter as float32 [L, L] with sum 1: the outer product of taps, or a square matrix as it is."""
    try:
        matrix = np.asarray(taps, dtype=np.float32)
    except (TypeError, ValueError):
        matrix = np.empty(0, dtype=np.float32)
    if matrix.ndim == 1:
        matrix = np.outer(matrix, matrix)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    require(
        square and bool(np.isfinite(matrix).all()) and matrix.sum() != 0,
        f"fir_kernel must be taps or a square matrix whose sum is not 0, such as [1, 3, 3, 1]; got {list(taps)}.",
    )
    return matrix / matrix.sum()


class Fir(nn.Module):
    """Depthwise zero-padded filtering, kernel flipped (true convolution), with zero insertion or decimation.

    Args:
        taps: The filter, see `fir_matrix`.
        up: 2 puts a zero after each pixel first, and quadruples the filter's gain.
        down: 2 keeps every second pixel afterwards.
        extra: Pixels that a following unpadded convolution takes off.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[Any], *, up: int = 1, down: int = 1, extra: int = 0) -> None:
        super().__init__()
        matrix = fir_matrix(taps)
        length = matrix.shape[0]
        surplus = length - 2 + extra
        self.up, self.down = up, down
        if up == 2:
            # conv_transpose2d flips the kernel itself, and pads by length - 1 on both sides.
            kernel = 4 * matrix
            self.before, self.after = (surplus + 1) // 2 + 2 - length, surplus // 2 + 2 - length
        else:
            kernel = matrix[::-1, ::-1].copy()
            self.before, self.after = (surplus + 1) // 2, surplus // 2
        # Outside the state dict: the authors' checkpoints hold no filters.
        self.register_buffer("kernel", torch.from_numpy(kernel)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self._filter(x)
        # oneDNN's transposed depthwise convolution (up, the gradient of down) is 10 times slower in bfloat16.
        with torch.autocast("cpu", enabled=False):
            return self._filter(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)

    def _filter(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        if self.up == 2:
            crop = max(0, min(-self.before, -self.after))
            x = F.conv_transpose2d(x, kernel, stride=2, padding=crop, groups=channels)
            return _pad(x, self.before + crop, self.after + crop)
        pad = max(0, min(self.before, self.after))
        x = _pad(x, self.before - pad, self.after - pad)
        return F.conv2d(x, kernel, stride=self.down, padding=pad, groups=channels)


def _pad(x: Tensor, before: int, after: int) -> Tensor:
    """Zeros around both spatial axes; negative counts crop."""
    return F.pad(x, (before, after, before, after)) if before or after else x


class Mean2x2(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


class Copy2x2(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


def upsampler(config: GeneratorConfig) -> nn.Module:
    return Fir(config.fir_kernel, up=2) if config.fir else Copy2x2()


def downsampler(config: GeneratorConfig) -> nn.Module:
    return Fir(config.fir_kernel, down=2) if config.fir else Mean2x2()


class PyramidDown(nn.Module):
    """A 3x3 convolution of stride 2, behind the FIR filter or a zero row and column at the end."""

    def __init__(self, in_ch: int, out_ch: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.fir = Fir(config.fir_kernel, extra=2) if config.fir else None
        self.convolution = "Conv_0" if self.fir is None else "Conv2d_0"
        self.add_module(self.convolution, Conv2d(in_ch, out_ch, 3, stride=2, padding=0))

    def forward(self, x: Tensor) -> Tensor:
        x = _pad(x, 0, 1) if self.fir is None else self.fir(x)
        return self.get_submodule(self.convolution)(x)


class PyramidUp(nn.Module):
    """Copies 2x2 and convolves 3x3: the 'residual' output pyramid without FIR."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.copy = Copy2x2()
        self.Conv_0 = Conv2d(in_ch, out_ch, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(self.copy(x))


class Combine(nn.Module):
    """Joins the resized input to h: a 1x1 convolution, then 'sum' or 'cat' (which adds h's width to h)."""

    def __init__(self, in_ch: int, out_ch: int, method: str) -> None:
        super().__init__()
        self.Conv = Conv2d(in_ch, out_ch, 1)
        self.method = method

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x = self.Conv(x)
        return torch.cat([x, h], dim=1) if self.method == "cat" else x + h


# --- blocks


class Residual(nn.Module):
    """The BigGAN-style residual block, modulated by the latent and shifted by the step."""

    def __init__(
        self, in_ch: int, out_ch: int, config: GeneratorConfig, resample: Literal["up", "down"] | None = None
    ) -> None:
        super().__init__()
        self.gain = SQRT_HALF if config.skip_rescale else 1.0
        self.GroupNorm_0 = AdaptiveGroupNorm(in_ch, config.z_emb_dim)
        self.Conv_0 = Conv2d(in_ch, out_ch, 3)
        # There even where the step does not reach it, as in the authors' state dicts.
        self.Dense_0 = Linear(4 * config.num_channels_dae, out_ch)
        self.GroupNorm_1 = AdaptiveGroupNorm(out_ch, config.z_emb_dim)
        self.Dropout_0 = nn.Dropout(config.dropout)
        self.Conv_1 = Conv2d(out_ch, out_ch, 3, init=SILENT)
        self.Conv_2 = Conv2d(in_ch, out_ch, 1) if in_ch != out_ch or resample else None
        self.resample = {"up": upsampler, "down": downsampler}[resample](config) if resample else None

    def forward(self, x: Tensor, temb: Tensor | None, zemb: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x, zemb))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h)
        if temb is not None:
            h = h + self.Dense_0(F.silu(temb))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h, zemb))))
        if self.Conv_2 is not None:
            x = self.Conv_2(x)
        return (x + h) * self.gain


class Attention(nn.Module):
    """One head of self-attention over all pixels."""

    def __init__(self, channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.gain = SQRT_HALF if config.skip_rescale else 1.0
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0 = NIN(channels, channels, init=Init(0.1))
        self.NIN_1 = NIN(channels, channels, init=Init(0.1))
        self.NIN_2 = NIN(channels, channels, init=Init(0.1))
        self.NIN_3 = NIN(channels, channels, init=SILENT)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        query, key, value = self.NIN_0(pixels), self.NIN_1(pixels), self.NIN_2(pixels)
        # Written out: scaled_dot_product_attention has no second derivative on the CPU.
        weights = torch.softmax((query * x.shape[1] ** -0.5) @ key.transpose(1, 2), dim=-1)
        h = self.NIN_3(weights @ value)
        return (x + h.transpose(1, 2).reshape(x.shape)) * self.gain
