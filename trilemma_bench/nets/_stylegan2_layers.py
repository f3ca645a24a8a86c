"""StyleGAN2's layers: resampling by FIR filters, linear and convolution layers, modulated convolutions.

Weights are stored as unit normals and scaled at run time by gain / sqrt(fan_in).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2.0)


def fir_buffer() -> Tensor:
    """The resampling filter outer([1, 3, 3, 1]) with sum 1, float32 [4, 4]."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64.0


def _depthwise(fir: Tensor, x: Tensor, gain: float = 1.0) -> Tensor:
    """`fir` [4, 4] as the weight [C, 1, 4, 4] that filters each channel of x [N, C, H, W] by itself."""
    return (fir * gain).to(x.dtype).expand(x.shape[1], 1, -1, -1)


def _blur(x: Tensor, fir: Tensor, *, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    """True convolution with `fir`: zero padding on all sides, then every `stride`-th sample."""
    # conv2d correlates, hence the flip.
    weight = _depthwise(fir.flip((0, 1)), x, gain)
    return F.conv2d(x, weight, padding=padding, stride=stride, groups=x.shape[1])


def upsample(x: Tensor, fir: Tensor) -> Tensor:
    """Twice the size, [N, C, H, W] -> [N, C, 2H, 2W]: zeros inserted, padded (2, 1), filtered, gain 4."""
    return F.conv_transpose2d(x, _depthwise(fir, x, 4.0), stride=2, padding=1, groups=x.shape[1])


def downsample(x: Tensor, fir: Tensor) -> Tensor:
    """Half the size, [N, C, H, W] -> [N, C, H / 2, W / 2]: padded (1, 1), filtered, every second sample."""
    return _blur(x, fir, padding=1, stride=2)


def _leaky(x: Tensor, clamp: float | None) -> Tensor:
    """Leaky ReLU and clamp; the gain is already in x, which the positive homogeneity of the ReLU allows."""
    x = F.leaky_relu(x, LEAKY_SLOPE)
    return x if clamp is None else x.clamp(-clamp, clamp)


def full_precision(x: Tensor) -> torch.autocast:
    """A block whose operations keep their tensors' own precision, also inside of `torch.autocast`."""
    return torch.autocast(x.device.type, enabled=False)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Linear(nn.Module):
    """Fully connected layer, [N, in] -> [N, out]; `lr_multiplier` scales both weight and bias."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        leaky: bool,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.leaky = leaky
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))

    def forward(self, x: Tensor) -> Tensor:
        gain = LEAKY_GAIN if self.leaky else 1.0
        x = F.linear(x, self.weight * (self.weight_gain * gain), self.bias * (self.bias_gain * gain))
        return _leaky(x, None) if self.leaky else x


class Conv(nn.Module):
    """Convolution with a 1x1 or 3x3 kernel: of equal size, halving (`down`), or doubling 1x1 (`up`)."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        leaky: bool = True,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.leaky, self.up, self.down, self.clamp = leaky, up, down, clamp
        self.padding = kernel // 2
        self.weight_gain = 1.0 / math.sqrt(in_channels * kernel**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("resample_filter", fir_buffer())

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """x [N, in, H, W] -> [N, out, H', W']; `gain` scales the output and its clamp."""
        clamp = None if self.clamp is None else self.clamp * gain
        scale = gain * (LEAKY_GAIN if self.leaky else 1.0)
        weight = self.weight * (self.weight_gain * scale)
        bias = None if self.bias is None else self.bias * scale
        if self.down and self.padding:
            x = F.conv2d(_blur(x, self.resample_filter, padding=self.padding + 1), weight, bias, stride=2)
        elif self.down:
            x = F.conv2d(downsample(x, self.resample_filter), weight, bias)
        else:
            x = F.conv2d(x, weight, bias, padding=self.padding)
            x = upsample(x, self.resample_filter) if self.up else x
        return _leaky(x, clamp) if self.leaky else x


class StyledConv(nn.Module):
    """3x3 convolution modulated by a style, with noise: one layer of the synthesis network.

    y = clamp(sqrt 2 leaky(demod * conv(weight, style * x) + strength * noise + bias)), style = affine(w),
    demod[n, o] = 1 / sqrt(sum_(i, k) (weight[o, i, k] style[n, i])^2 + 1e-8). With `up` the size doubles.
    """

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        *,
        up: bool,
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.up, self.clamp, self.resolution = up, clamp, resolution
        # Named in the order of the original's state dict.
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", fir_buffer())
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.affine = Linear(w_dim, in_channels, leaky=False, bias_init=1.0)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None, gain: float = 1.0) -> Tensor:
        """x [N, in, H, W], w [N, w_dim], noise [N, 1, r, r], [r, r] or None -> [N, out, r, r]."""
        clamp = None if self.clamp is None else self.clamp * gain
        gain = gain * LEAKY_GAIN
        style, demod = self._scales(w)
        x = x * style.to(x.dtype)[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = _blur(x, self.resample_filter, padding=1, gain=4.0)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        # Bias before noise here, where the original adds the noise first: the same sum.
        x = torch.addcmul(
            (self.bias * gain).to(x.dtype)[:, None, None], x, (demod * gain).to(x.dtype)[:, :, None, None]
        )
        if noise is not None:
            x = x + (noise * (self.noise_strength * gain)).to(x.dtype)
        return _leaky(x, clamp)

    def _scales(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The style of each input channel, [N, in], and the demodulation of each output channel, [N, out]."""
        with full_precision(w):
            style = self.affine(w)
            energy = self.weight.square().sum(dim=(2, 3))
            return style, (F.linear(style.square(), energy) + 1e-8).rsqrt()


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to image channels: neither demodulated nor activated."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int, *, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.weight_gain = 1.0 / math.sqrt(in_channels)
        self.weight = nn.Parameter(torch.randn(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))
        self.affine = Linear(w_dim, in_channels, leaky=False, bias_init=1.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        with full_precision(w):
            style = self.affine(w) * self.weight_gain
        x = F.conv2d(x * style.to(x.dtype)[:, :, None, None], self.weight, self.bias)
        return _at_least_float32(x if self.clamp is None else x.clamp(-self.clamp, self.clamp))
