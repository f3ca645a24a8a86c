"""The UNet of ADM and Improved DDPM, and ADM's classifier of noisy images.

    denoiser    eps or (eps, v) = UNet(x_t [N, 3, S, S], t [N], y [N] or None)    [N, 3 or 6, S, S]
    classifier  logits = Classifier(x_t, t)                                      [N, classes]

Dhariwal & Nichol 2021 (arXiv 2105.05233) and Nichol & Dhariwal 2021 (arXiv 2102.09672). Options have the names of
the authors' flags and tensors the names of their state dicts, so that released files load with `strict=True`.
Departure: float32 throughout, where the released flags run the inner blocks of ADM in float16.

There are no stored outputs of the authors' program to hold this to; it is held to diffusers' `UNet2DModel`, which
expresses the configurations with 64 channels a head, and, classifier included, to a second reading of the state dicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

from trilemma_bench.errors import ProtocolError, UsageError
from trilemma_bench.spec import Frozen

GROUPS = 32


class _Blocks(Frozen):
    """What denoiser and classifier share; `attention_resolutions` are sides in pixels, as in the authors' flags."""

    image_size: int = Field(ge=4)
    channel_mult: tuple[float, ...] = Field(min_length=1)
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_head_channels: int = -1
    """Channels of a head; -1 leaves it to `num_heads`."""
    num_heads: int = Field(default=4, ge=1)
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    """Whether queries, keys and values are split before the heads, or within each."""

    def width(self, base: int, level: int) -> int:
        """Channels of a level."""
        return int(self.channel_mult[level] * base)

    def heads(self, channels: int) -> int:
        """Heads of an attention layer of so many channels.

        Raises:
            UsageError: They do not divide the channels.
        """
        heads = self.num_heads if self.num_head_channels == -1 else channels // max(self.num_head_channels, 1)
        if not heads or channels % heads or channels // heads != self.num_head_channels != -1:
            raise UsageError(f"{channels} channels do not divide into heads of {self.num_head_channels}.")
        return heads


class UNetConfig(_Blocks):
    """The denoiser; `num_classes` None is unconditional."""

    num_channels: int = Field(ge=GROUPS)
    num_res_blocks: int = Field(ge=1)
    learn_sigma: bool = True
    num_classes: int | None = None


class ClassifierConfig(_Blocks):
    """The classifier, its output pooled by attention; defaults are those of all released ones."""

    classifier_width: int = Field(default=128, ge=GROUPS)
    classifier_depth: int = Field(default=2, ge=1)
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_head_channels: int = 64
    resblock_updown: bool = True
    num_classes: int = 1000


Config = TypeVar("Config", UNetConfig, ClassifierConfig)


def build_unet(config: Mapping[str, Any]) -> UNet:
    """The denoiser of a configuration, initialised by torch's defaults.

    Raises:
        UsageError: An unknown option, or a value that no such network has.
    """
    return UNet(_read(UNetConfig, config))


def build_classifier(config: Mapping[str, Any]) -> Classifier:
    """The classifier of a configuration; errors as for `build_unet`."""
    return Classifier(_read(ClassifierConfig, config))


def _read(cls: type[Config], config: Mapping[str, Any]) -> Config:
    try:
        found = cls.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}.") from error
    base = found.num_channels if isinstance(found, UNetConfig) else found.classifier_width
    widths = [found.width(base, level) for level in range(len(found.channel_mult))]
    bad = next((width for width in widths if width < GROUPS or width % GROUPS), None)
    if bad is not None:
        raise UsageError(f"a level of {bad} channels: widths must be multiples of {GROUPS}.")
    if found.image_size % 2 ** (len(widths) - 1):
        raise UsageError(f"image_size {found.image_size} cannot be halved {len(widths) - 1} times.")
    return found


# --- layers -------------------------------------------------------------------------------------------------


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t [N] (which may be a fraction) at exp(-ln(10000) i / half): float32 [N, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class _Norm(nn.GroupNorm):
    """Group normalisation over 32 groups, eps 1e-5."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)


def _conv(n: int, m: int, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(n, m, 3, padding=1, **more)


class _Resample(nn.Module):
    """Twice or half the side: nearest neighbour or 2x2 means, with a convolution unless a block has its own."""

    def __init__(self, channels: int, direction: Literal["up", "down"], *, with_conv: bool) -> None:
        super().__init__()
        self.direction = direction
        if with_conv and direction == "up":
            self.conv = _conv(channels, channels)
        elif with_conv:
            self.op = _conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if self.direction == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            return cast(Tensor, self.conv(x)) if hasattr(self, "conv") else x
        return cast(Tensor, self.op(x)) if hasattr(self, "op") else F.avg_pool2d(x, 2)


class _Residual(nn.Module):
    """A residual block that is told the time; with `direction` it resamples between its norm and its convolution."""

    def __init__(
        self, n: int, m: int, embedding: int, config: _Blocks, direction: Literal["up", "down"] | None = None
    ) -> None:
        super().__init__()
        self.scale_shift = config.use_scale_shift_norm
        self.in_layers = nn.Sequential(_Norm(n), nn.SiLU(), _conv(n, m))
        self.resample = _Resample(n, direction, with_conv=False) if direction else None
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * m if self.scale_shift else m))
        # The authors' dropout stands third, so that the convolution is number 3 in their state dicts.
        self.out_layers = nn.Sequential(_Norm(m), nn.SiLU(), nn.Identity(), _conv(m, m))
        self.skip_connection = nn.Identity() if n == m else nn.Conv2d(n, m, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        told = self.emb_layers(embedding)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        for layer in rest:
            h = layer(h)
        return cast(Tensor, self.skip_connection(x) + h)


def _attend(qkv: Tensor, heads: int, *, split_first: bool) -> Tensor:
    """Attention of qkv [N, 3 C, L]: [N, C, L]; `split_first` is the authors' new order."""
    n, width, length = qkv.shape
    channels = width // 3 // heads
    if split_first:
        q, k, v = (part.reshape(n, heads, channels, length) for part in qkv.chunk(3, dim=1))
    else:
        q, k, v = qkv.reshape(n, heads, 3 * channels, length).chunk(3, dim=2)
    scale = channels**-0.25
    weights = torch.softmax(torch.einsum("nhcl,nhcm->nhlm", q * scale, k * scale).float(), dim=-1).to(v.dtype)
    return torch.einsum("nhlm,nhcm->nhcl", weights, v).reshape(n, -1, length)


class _Attention(nn.Module):
    def __init__(self, channels: int, config: _Blocks, *, split_first: bool) -> None:
        super().__init__()
        self.heads, self.split_first = config.heads(channels), split_first
        self.norm = _Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(*x.shape[:2], -1)
        h = _attend(self.qkv(self.norm(flat)), self.heads, split_first=self.split_first)
        return x + self.proj_out(h).reshape(x.shape)


class _Step(nn.ModuleList):
    """Layers in a row, of which residual blocks are told the time."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, _Residual) else layer(x)
        return x


def _encoder(config: _Blocks, base: int, depth: int) -> tuple[nn.ModuleList, _Step, list[int]]:
    """Input blocks, middle block, and the channels that each input block puts out."""
    split_first = isinstance(config, UNetConfig) and config.use_new_attention_order
    embedding, side = 4 * base, config.image_size
    now = config.width(base, 0)
    blocks, widths = [_Step([_conv(3, now)])], [now]
    for level in range(len(config.channel_mult)):
        for _ in range(depth):
            out = config.width(base, level)
            layers: list[nn.Module] = [_Residual(now, out, embedding, config)]
            if side in config.attention_resolutions:
                layers.append(_Attention(out, config, split_first=split_first))
            blocks.append(_Step(layers))
            now = out
            widths.append(now)
        if level != len(config.channel_mult) - 1:
            blocks.append(_Step([_resampler(now, embedding, config, "down")]))
            widths.append(now)
            side //= 2
    middle = _Step([
        _Residual(now, now, embedding, config),
        _Attention(now, config, split_first=split_first),
        _Residual(now, now, embedding, config),
    ])  # fmt: skip
    return nn.ModuleList(blocks), middle, widths


def _resampler(channels: int, embedding: int, config: _Blocks, direction: Literal["up", "down"]) -> nn.Module:
    if config.resblock_updown:
        return _Residual(channels, channels, embedding, config, direction)
    return _Resample(channels, direction, with_conv=True)


def _time_mlp(base: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))


# --- networks -----------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """The denoiser; see the module's docstring. Build with `build_unet`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, levels = config.num_channels, len(config.channel_mult)
        embedding = 4 * base
        self.time_embed = _time_mlp(base)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, embedding)
        self.input_blocks, self.middle_block, widths = _encoder(config, base, config.num_res_blocks)
        now, side = widths[-1], config.image_size >> (levels - 1)
        blocks = []
        for level in reversed(range(levels)):
            out = config.width(base, level)
            for index in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [_Residual(now + widths.pop(), out, embedding, config)]
                if side in config.attention_resolutions:
                    layers.append(_Attention(out, config, split_first=config.use_new_attention_order))
                if level and index == config.num_res_blocks:
                    layers.append(_resampler(out, embedding, config, "up"))
                    side *= 2
                blocks.append(_Step(layers))
                now = out
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(_Norm(now), nn.SiLU(), _conv(now, 6 if config.learn_sigma else 3))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x_t float [N, 3, S, S], t [N], labels int64 [N] of a conditional network -> [N, 3 or 6, S, S].

        Raises:
            ProtocolError: Labels that are missing, or given to an unconditional network.
        """
        if (y is not None) != (self.config.num_classes is not None):
            raise ProtocolError("labels go with a class-conditional network, and only with one.")
        embedding = self.time_embed(time_embedding(t, self.config.num_channels))
        if y is not None:
            embedding = embedding + self.label_emb(y)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return cast(Tensor, self.out(h))


class _AttentionPool(nn.Module):
    """The mean over all places attends to every place and itself: [N, C, s, s] -> [N, classes]."""

    def __init__(self, side: int, channels: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.heads = config.heads(channels)
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, config.num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(*x.shape[:2], -1)
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1) + self.positional_embedding
        # The pool always splits first, whatever order the blocks have.
        return cast(Tensor, self.c_proj(_attend(self.qkv_proj(x), self.heads, split_first=True))[:, :, 0])


class Classifier(nn.Module):
    """The classifier of noisy images; see the module's docstring. Build with `build_classifier`."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        base = config.classifier_width
        self.time_embed = _time_mlp(base)
        self.input_blocks, self.middle_block, widths = _encoder(config, base, config.classifier_depth)
        side = config.image_size >> (len(config.channel_mult) - 1)
        self.out = nn.Sequential(_Norm(widths[-1]), nn.SiLU(), _AttentionPool(side, widths[-1], config))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x_t float [N, 3, S, S], t [N] -> logits [N, classes]."""
        embedding = self.time_embed(time_embedding(t, self.config.classifier_width))
        for block in self.input_blocks:
            x = block(x, embedding)
        return cast(Tensor, self.out(self.middle_block(x, embedding)))
