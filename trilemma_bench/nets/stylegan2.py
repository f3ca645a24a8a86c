"""StyleGAN2's generator and discriminator (Karras et al. 2020) in plain torch, without compiled operations.

As stylegan2-ada trains them (arXiv 1912.04958 and 2006.06676):

    ws  = mapping(z, c)          [N, num_ws, w_dim]; one w for each convolution and the last toRGB
    img = synthesis(ws, noise)   [N, C, R, R], nominally in [-1, 1]
    logits = discriminator(img, c)                    [N, 1]

The state dicts have the authors' keys and shapes, so that converted official weights load with `strict=True`.
Weights are stored as unit normals and scaled at run time ("equalised learning rate"). Departures from the
original, none of which changes a value beyond rounding:

* float32 throughout: `num_fp16_res` is read and has no effect. Under `torch.autocast` the convolutions take
  its type; mapping, styles, demodulation, image sums and the discriminator's last block stay in float32.
* The modulated convolution scales activations, not weights: conv(w s d, x) = d conv(w, s x). One shared
  weight is several times faster on a CPU than one group for each image.
* An up layer runs its transposed convolution first and the FIR filter after it: both linear, so they commute.
* Tensors run in channels_last order inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from trilemma_bench.errors import ProtocolError, UsageError, unknown_name
from trilemma_bench.nets._stylegan2_config import (
    DiscriminatorConfig,
    GeneratorConfig,
    channels_at,
    read_config,
)
from trilemma_bench.nets._stylegan2_layers import (
    Conv,
    Linear,
    StyledConv,
    ToRGB,
    downsample,
    fir_buffer,
    full_precision,
    upsample,
)

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "Generator",
    "GeneratorConfig",
    "build_discriminator",
    "build_generator",
]

NoiseMode = Literal["random", "const", "none"]

_NOISE_MODES = ("random", "const", "none")
_MAPPING_LR_MULTIPLIER = 0.01


def build_generator(config: Mapping[str, Any] | GeneratorConfig | None = None) -> Generator:
    """A generator with fresh weights; keys that `config` lacks take the `cifar` configuration's values.

    Raises:
        UsageError: an unknown key or an unsupported value, named.
    """
    if not isinstance(config, GeneratorConfig):
        config = read_config(GeneratorConfig, config, "generator")
    return Generator(config)


def build_discriminator(config: Mapping[str, Any] | DiscriminatorConfig | None = None) -> Discriminator:
    """A discriminator with fresh weights; keys that `config` lacks take the `cifar` configuration's values.

    Raises:
        UsageError: an unknown key or an unsupported value, named.
    """
    if not isinstance(config, DiscriminatorConfig):
        config = read_config(DiscriminatorConfig, config, "discriminator")
    return Discriminator(config)


class _Mapping(nn.Module):
    """z [N, z_dim] and labels c [N, c_dim] -> w; z_dim = 0 or c_dim = 0 where one of the two is missing.

    With `num_ws` the result is [N, num_ws, w_dim] and there is a running mean `w_avg`; else it is [N, w_dim].
    """

    w_avg: Tensor
    fc0: Linear

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, *, num_layers: int, num_ws: int | None) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.num_ws = z_dim, c_dim, num_ws
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))
        if c_dim:
            self.embed = Linear(c_dim, w_dim, leaky=False)
        self.layers = [f"fc{i}" for i in range(num_layers)]
        width = z_dim + (w_dim if c_dim else 0)
        for i, name in enumerate(self.layers):
            layer = Linear(width if i == 0 else w_dim, w_dim, leaky=True, lr_multiplier=_MAPPING_LR_MULTIPLIER)
            self.add_module(name, layer)

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        update_w_avg_beta: float | None = None,
    ) -> Tensor:
        """The w of each latent.

        Args:
            z: Standard normal latents, float [N, z_dim].
            c: One-hot labels, float [N, c_dim]; None or [N, 0] for an unconditional network.
            truncation_psi: w becomes w_avg + psi (w - w_avg); 1 leaves it alone.
            update_w_avg_beta: In training: `w_avg` moves to the batch's mean by 1 - beta (beta 0.995 there).

        Raises:
            UsageError: labels that are missing, or given to an unconditional network.
            ProtocolError: a shape that does not fit.
        """
        _check_labels(c, self.c_dim, None if z is None else len(z))
        weight = self.fc0.weight
        inputs = []
        with full_precision(weight):
            if self.z_dim:
                if z is None or z.ndim != 2 or z.shape[1] != self.z_dim:
                    raise ProtocolError(f"latents must be [N, {self.z_dim}]; got {_shape(z)}.")
                inputs.append(_unit_second_moment(z.to(weight.dtype)))
            if self.c_dim and c is not None:
                inputs.append(_unit_second_moment(self.embed(c.to(weight.dtype))))
            w = torch.cat(inputs, dim=1)
            for name in self.layers:
                w = self.get_submodule(name)(w)
        if self.num_ws is None:
            return w
        if update_w_avg_beta is not None:
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, update_w_avg_beta))
        if truncation_psi != 1:
            w = self.w_avg.lerp(w, truncation_psi)
        return w.unsqueeze(1).expand(-1, self.num_ws, -1)


class _SynthesisBlock(nn.Module):
    """All layers of one resolution: the constant at 4x4 or an up layer, a convolution, maybe toRGB."""

    resample_filter: Tensor

    def __init__(self, config: GeneratorConfig, resolution: int) -> None:
        super().__init__()
        self.is_first = resolution == 4
        self.is_resnet = config.architecture == "resnet" and not self.is_first
        self.has_torgb = config.architecture == "skip" or resolution == config.img_resolution
        out, w_dim, clamp = channels_at(config, resolution), config.w_dim, config.conv_clamp
        if self.is_first:
            self.const = nn.Parameter(torch.randn(out, 4, 4))
        self.register_buffer("resample_filter", fir_buffer())
        if not self.is_first:
            below = channels_at(config, resolution // 2)
            self.conv0 = StyledConv(below, out, w_dim, resolution, up=True, clamp=clamp)
        self.conv1 = StyledConv(out, out, w_dim, resolution, up=False, clamp=clamp)
        if self.has_torgb:
            self.torgb = ToRGB(out, config.img_channels, w_dim, clamp=clamp)
        if self.is_resnet:
            self.skip = Conv(below, out, 1, leaky=False, bias=False, up=True)

    @property
    def convs(self) -> list[StyledConv]:
        """The block's convolutions in the order they run; each takes one w and one noise image."""
        return [self.conv1] if self.is_first else [self.conv0, self.conv1]

    def forward(
        self, x: Tensor | None, img: Tensor | None, ws: Sequence[Tensor], noises: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Features and image of the resolution below -> those of this one; `ws` ends with toRGB's."""
        if x is None:
            const = self.const.expand(len(ws[0]), -1, -1, -1)
            x = self.conv1(const.contiguous(memory_format=torch.channels_last), ws[0], noises[0])
        elif self.is_resnet:
            gain = math.sqrt(0.5)
            skip = self.skip(x, gain=gain)
            x = skip + self.conv1(self.conv0(x, ws[0], noises[0]), ws[1], noises[1], gain=gain)
        else:
            x = self.conv1(self.conv0(x, ws[0], noises[0]), ws[1], noises[1])
        if img is not None:
            with full_precision(img):
                img = upsample(img, self.resample_filter)
        if self.has_torgb:
            rgb = self.torgb(x, ws[-1])
            img = rgb if img is None else img + rgb
        return x, img


class _Synthesis(nn.Module):
    """ws [N, num_ws, w_dim] and noise -> images [N, C, R, R]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.resolutions = config.resolutions
        self.w_dim = config.w_dim
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", _SynthesisBlock(config, resolution))
        self.num_ws = len(self.noise_shapes) + 1

    @property
    def blocks(self) -> list[_SynthesisBlock]:
        return [cast(_SynthesisBlock, self.get_submodule(f"b{r}")) for r in self.resolutions]

    @property
    def noise_shapes(self) -> list[tuple[int, int]]:
        """Height and width of each layer's noise image, in layer order."""
        return [(conv.resolution, conv.resolution) for block in self.blocks for conv in block.convs]

    def forward(
        self,
        ws: Tensor,
        *,
        noise_mode: NoiseMode = "random",
        noise: Sequence[Tensor] | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """The images of `ws`.

        Args:
            ws: float [N, num_ws, w_dim].
            noise_mode: `random` draws anew for each image, `const` takes the stored noise, `none` adds none.
            noise: The draws of mode `random`, one [N, 1, r, r] for each of `noise_shapes`, so that each image
                can have a seed of its own.
            rng: What draws the noise where `noise` is not given; None means torch's default generator.

        Raises:
            UsageError: an unknown mode, or noise in a mode that takes none.
            ProtocolError: a shape or a number of noise images that does not fit.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ProtocolError(f"ws must be [N, {self.num_ws}, {self.w_dim}]; got {_shape(ws)}.")
        noises = iter(self._noises(ws, noise_mode, noise, rng))
        layer_ws = ws.to(self.blocks[0].const.dtype).unbind(dim=1)
        x: Tensor | None = None
        img: Tensor | None = None
        first = 0
        for block in self.blocks:
            num_convs = len(block.convs)
            # toRGB shares its w with the next block's first convolution.
            block_ws = layer_ws[first : first + num_convs + block.has_torgb]
            x, img = block(x, img, block_ws, [next(noises) for _ in range(num_convs)])
            first += num_convs
        assert img is not None
        return img.contiguous()

    def _noises(
        self, ws: Tensor, mode: str, given: Sequence[Tensor] | None, rng: torch.Generator | None
    ) -> Sequence[Tensor | None]:
        """One noise image for each convolution, [N, 1, r, r] or [r, r], or None where there is none."""
        if mode not in _NOISE_MODES:
            raise unknown_name("noise mode", str(mode), _NOISE_MODES)
        if mode != "random" and given is not None:
            raise UsageError(f"noise goes with noise_mode 'random'; got it with {mode!r}.")
        if mode == "none":
            return [None] * len(self.noise_shapes)
        if mode == "const":
            return [conv.noise_const for block in self.blocks for conv in block.convs]
        shapes = [(len(ws), 1, *shape) for shape in self.noise_shapes]
        if given is None:
            device = ws.device if rng is None else rng.device
            return [torch.randn(shape, generator=rng, device=device).to(ws.device) for shape in shapes]
        if [tuple(noise.shape) for noise in given] != shapes:
            raise ProtocolError(f"noise must have the shapes {shapes}; got {[tuple(n.shape) for n in given]}.")
        return [noise.to(ws.device) for noise in given]


class Generator(nn.Module):
    """StyleGAN2's generator; see `build_generator`."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.synthesis = _Synthesis(config)
        self.mapping = _Mapping(
            config.z_dim,
            config.c_dim,
            config.w_dim,
            num_layers=config.mapping_layers,
            num_ws=self.synthesis.num_ws,
        )

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        *,
        noise_mode: NoiseMode = "random",
        truncation_psi: float = 1.0,
        noise: Sequence[Tensor] | None = None,
        rng: torch.Generator | None = None,
        update_w_avg_beta: float | None = None,
    ) -> Tensor:
        """Latents z [N, z_dim] and one-hot labels c [N, c_dim] -> images [N, C, R, R], nominally in [-1, 1].

        Arguments and errors are those of `mapping` and `synthesis`; to uint8 by `img * 127.5 + 128`, clamped.
        """
        ws = self.mapping(z, c, truncation_psi=truncation_psi, update_w_avg_beta=update_w_avg_beta)
        return self.synthesis(ws, noise_mode=noise_mode, noise=noise, rng=rng)


class _DiscriminatorBlock(nn.Module):
    """Two convolutions at one resolution, the second of which halves it."""

    resample_filter: Tensor

    def __init__(self, config: DiscriminatorConfig, resolution: int) -> None:
        super().__init__()
        self.architecture = config.architecture
        self.has_fromrgb = resolution == config.img_resolution or config.architecture == "skip"
        width, out = channels_at(config, resolution), channels_at(config, resolution // 2)
        clamp = config.conv_clamp
        self.register_buffer("resample_filter", fir_buffer())
        if self.has_fromrgb:
            self.fromrgb = Conv(config.img_channels, width, 1, clamp=clamp)
        self.conv0 = Conv(width, width, 3, clamp=clamp)
        self.conv1 = Conv(width, out, 3, down=True, clamp=clamp)
        if config.architecture == "resnet":
            self.skip = Conv(width, out, 1, leaky=False, bias=False, down=True)

    def forward(self, x: Tensor | None, img: Tensor) -> tuple[Tensor, Tensor]:
        """Features (None in the first block) and image of this resolution -> those of the one below."""
        if self.has_fromrgb:
            rgb = self.fromrgb(img)
            x = rgb if x is None else x + rgb
        assert x is not None
        if self.architecture == "skip":
            with full_precision(img):
                img = downsample(img, self.resample_filter)
        if self.architecture == "resnet":
            gain = math.sqrt(0.5)
            return self.skip(x, gain=gain) + self.conv1(self.conv0(x), gain=gain), img
        return self.conv1(self.conv0(x)), img


class _Epilogue(nn.Module):
    """4x4 features -> [N, 1], or [N, cmap_dim] with labels: minibatch deviation, conv, two linears."""

    def __init__(self, config: DiscriminatorConfig, cmap_dim: int) -> None:
        super().__init__()
        self.group_size, self.mbstd_channels = config.mbstd_group_size, config.mbstd_num_channels
        width = channels_at(config, 4)
        self.has_fromrgb = config.architecture == "skip"
        if self.has_fromrgb:
            # Without a clamp, unlike the other blocks': so the original has it.
            self.fromrgb = Conv(config.img_channels, width, 1)
        self.conv = Conv(width + self.mbstd_channels, width, 3, clamp=config.conv_clamp)
        self.fc = Linear(width * 16, width, leaky=True)
        self.out = Linear(width, cmap_dim or 1, leaky=False)

    def forward(self, x: Tensor, img: Tensor) -> Tensor:
        with full_precision(x):
            x = x.to(self.fc.weight.dtype)
            if self.has_fromrgb:
                x = x + self.fromrgb(img)
            if self.mbstd_channels:
                x = _append_group_deviation(x, self.group_size, self.mbstd_channels)
            return self.out(self.fc(self.conv(x).flatten(1)))


class Discriminator(nn.Module):
    """StyleGAN2's discriminator; see `build_discriminator`."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.cmap_dim = (config.cmap_dim or channels_at(config, 4)) if config.c_dim else 0
        for resolution in config.resolutions:
            self.add_module(f"b{resolution}", _DiscriminatorBlock(config, resolution))
        if config.c_dim:
            self.mapping = _Mapping(0, config.c_dim, self.cmap_dim, num_layers=config.mapping_layers, num_ws=None)
        self.b4 = _Epilogue(config, self.cmap_dim)

    def forward(self, img: Tensor, c: Tensor | None = None) -> Tensor:
        """Images [N, C, R, R] and one-hot labels c [N, c_dim] -> logits [N, 1]; above 0 reads as real.

        The images of a batch touch each other through the minibatch deviation: image i is in the group of
        i modulo N / group, where group = min(mbstd_group_size, N).

        Raises:
            UsageError: labels that are missing, or given to an unconditional network.
            ProtocolError: a shape that does not fit, or a batch that its groups do not divide.
        """
        config = self.config
        size = (config.img_channels, config.img_resolution, config.img_resolution)
        if img.ndim != 4 or tuple(img.shape[1:]) != size:
            raise ProtocolError(f"images must be [N, {', '.join(map(str, size))}]; got {_shape(img)}.")
        _check_labels(c, config.c_dim, len(img))
        x: Tensor | None = None
        img = img.to(self.b4.fc.weight.dtype).contiguous(memory_format=torch.channels_last)
        for resolution in config.resolutions:
            x, img = self.get_submodule(f"b{resolution}")(x, img)
        assert x is not None
        logits = self.b4(x, img)
        if not config.c_dim:
            return logits
        return (logits * self.mapping(None, c)).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)


def _unit_second_moment(x: Tensor) -> Tensor:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _append_group_deviation(x: Tensor, group_size: int | None, num_channels: int) -> Tensor:
    """x [N, C, H, W] with `num_channels` more: each group's standard deviation, averaged over its features.

    Raises:
        ProtocolError: the batch is not a multiple of min(group_size, N); the original fails there as well.
    """
    n, channels, height, width = x.shape
    group = n if group_size is None else min(group_size, n)
    if group == 0 or n % group:
        raise ProtocolError(
            f"minibatch deviation needs a batch that is a multiple of its groups of {group}; got {n} images. "
            "Change the batch size or mbstd_group_size."
        )
    # Strided groups: members lie n // group apart.
    y = x.reshape(group, n // group, num_channels, channels // num_channels, height, width)
    deviation = ((y - y.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt().mean(dim=(2, 3, 4))
    deviation = deviation[:, :, None, None].repeat(group, 1, height, width)
    return torch.cat([x, deviation], dim=1).contiguous(memory_format=torch.channels_last)


def _check_labels(c: Tensor | None, c_dim: int, n: int | None) -> None:
    if c_dim == 0 and c is not None and c.numel():
        raise UsageError(f"the network is unconditional; got labels {_shape(c)}. Pass c=None.")
    if c_dim and c is None:
        raise UsageError(f"the network is conditional: it needs one-hot labels [N, {c_dim}]; got none.")
    if c_dim and c is not None and (c.ndim != 2 or c.shape[1] != c_dim or n not in (None, len(c))):
        raise ProtocolError(f"labels must be one-hot, [{n or 'N'}, {c_dim}]; got {_shape(c)}.")


def _shape(x: Tensor | None) -> str:
    return "None" if x is None else str(list(x.shape))
