"""The denoising network of DDPM and DDIM: diffusers' `UNet2DModel` (Ho et al. 2020, arXiv 2006.11239).

A configuration is that model's own, with one key beside it: `pixel_block` (see `pixel_blocks`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from trilemma_bench.errors import WeightsError, unknown_name
from trilemma_bench.nets._compiled import modulated_group_norm, silu
from trilemma_bench.nets.pixel_blocks import in_pixel_blocks, inside

CIFAR10_PAPER: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "act_fn": "silu",
    "time_embedding_type": "positional",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "mid_block_scale_factor": 1,
    "center_input_sample": False,
}
"""google/ddpm-cifar10-32: 35,746,307 parameters."""


class Denoiser(nn.Module):
    """Predicts the noise in x_t, or v: (x_t float [N, C, H, W], t int64 [N]) -> float [N, C, H, W]."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        predicted: Tensor = self.unet(x_t, t, return_dict=False)[0]
        return predicted


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network of a `UNet2DModel` configuration: (x_t, t) -> what it was trained to predict.

    Raises:
        UsageError: A key that is not one of `UNet2DModel`'s.
        WeightsError: A combination that diffusers refuses; says why.
    """
    known = set(inspect.signature(UNet2DModel.__init__).parameters) - {"self"}
    settings = {k: v for k, v in config.items() if k != "pixel_block" and not k.startswith("_")}
    for key in settings:
        if key not in known:
            raise unknown_name("UNet2DModel option", key, known)
    try:
        unet = UNet2DModel(**settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise WeightsError(f"UNet2DModel refuses this configuration: {error}") from error
    return in_pixel_blocks(Denoiser(unet), int(config.get("pixel_block", 1)))


@torch.no_grad()
def initialise_as_published(net: nn.Module) -> None:
    """Weights of what `build` returned as the program of Ho et al. begins: uniform by the mean of fan in and fan out.

    Biases are 0, and so nearly are the last layers of residual blocks, of attention and of the network, of variance
    1e-10 times that: it begins by predicting nothing.
    """
    last = [unet_of(net).conv_out]
    for module in net.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Attention):
            last.append(module.to_out[0])
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=1e-5 if any(module is it for it in last) else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def unet_of(net: nn.Module) -> UNet2DModel:
    """The `UNet2DModel` inside what `build` returned: its state dict has diffusers' keys."""
    net = inside(net)
    assert isinstance(net, Denoiser), "built by build()"
    return net.unet


class _GroupNorm(nn.GroupNorm):
    """As torch's; the input's axes after the channels may be one or two."""

    def forward(self, x: Tensor) -> Tensor:
        images = x if x.ndim == 4 else x[..., None]
        normed = modulated_group_norm(images, self.num_groups, self.weight, self.bias, eps=self.eps)
        return normed.reshape(x.shape)


class _SiLU(nn.SiLU):
    """As torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


def write_for_compiler(net: nn.Module) -> None:
    """Write what `build` returned in the order that torch.compile makes fast code of on CPUs; its weights stay.

    Group norms and SiLUs become those of `_compiled`, and attention two products around a softmax: the backward pass
    of torch's fused attention is the slower one there.
    """
    for module in net.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
        elif type(module) is nn.GroupNorm:
            module.__class__ = _GroupNorm
        elif type(module) is nn.SiLU:
            module.__class__ = _SiLU
