"""The networks of denoising diffusion GANs: the NCSN++ generator with adaptive norms, and its two critics.

    x_0 prediction   G(x, t, z)   : x [B, C, S, S] (the noisier image), t [B] step, z [B, nz] -> [B, C, S, S]
    critic           D(x, t, x_t) : x [B, C, H, W] (the less noisy image), x_t [B, C, H, W] -> [B, 1]

Written from the facts of Xiao, Kreis and Vahdat (ICLR 2022, arXiv 2112.07804) and of NCSN++ (Song et al.
2021, arXiv 2011.13456); module and option names are the authors', so that their checkpoints load key for key,
with the `module.` that their distributed wrapper puts before each key or without it. Pure torch: the FIR
filters are depthwise convolutions whose kernels are buffers outside the state dict.

An option that this file cannot follow with certainty is refused by name (UsageError), never approximated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma_bench.errors import ProtocolError, WeightsError
from trilemma_bench.nets._compiled import leaky_relu
from trilemma_bench.nets._ncsnpp_config import TAPS, DiscriminatorConfig, GeneratorConfig
from trilemma_bench.nets._ncsnpp_layers import (
    NIN,
    OUT,
    OUT_SILENT,
    SILENT,
    SQRT_HALF,
    Attention,
    Combine,
    Conv2d,
    Fir,
    Linear,
    PixelNorm,
    PyramidDown,
    PyramidUp,
    Residual,
    downsampler,
    group_norm,
    sinusoidal,
    upsampler,
)

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "GeneratorConfig",
    "NCSNpp",
    "build_discriminator",
    "build_generator",
]


class _Network(nn.Module):
    """Loads the authors' state dicts, and says in the project's words what does not fit."""

    def initialise(self, rng: torch.Generator | None = None) -> None:
        """Draw all weights anew; `rng` on the weights' device, torch's global generator without it."""
        for module in self.modules():
            if isinstance(module, Conv2d | Linear | NIN):
                with torch.no_grad():
                    module.initialise(rng)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; the prefix `module.`, if every key has it, is taken off.

        Raises:
            WeightsError: A key is missing or unknown (when strict), or a shape differs.
        """
        prefixed = len(state_dict) > 0 and all(key.startswith("module.") for key in state_dict)
        state = {key.removeprefix("module.") if prefixed else key: value for key, value in state_dict.items()}
        own = {key: tuple(value.shape) for key, value in self.state_dict().items()}
        faults = [
            f"{key} is {list(getattr(state[key], 'shape', ()))}, here {list(own[key])}"
            for key in own
            if key in state and tuple(getattr(state[key], "shape", ())) != own[key]
        ]
        if strict:
            faults += [f"{key} is missing" for key in own if key not in state]
            faults += [f"{key} has no place here" for key in state if key not in own]
        if faults:
            more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
            raise WeightsError(
                f"these weights are of another network than {type(self).__name__} as configured: "
                f"{'; '.join(faults[:3])}{more}. Check the configuration against the weights' own."
            )
        return super().load_state_dict(state, strict=strict, assign=assign)


class NCSNpp(_Network):
    """The generator: predicts x_0 from a noisier image, its step and a latent. Build with `build_generator`.

    `all_modules` is one flat list in the order of use, as in the authors' checkpoints.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.gain = SQRT_HALF if config.skip_rescale else 1.0
        width = config.num_channels_dae
        modules: list[nn.Module] = []
        if config.conditional:
            modules += [Linear(width, 4 * width), Linear(4 * width, 4 * width)]
        skip_widths = self._add_encoder(modules)
        bottom = skip_widths[-1]
        modules += [
            Residual(bottom, bottom, config),
            Attention(bottom, config),
            Residual(bottom, bottom, config),
        ]
        self._add_decoder(modules, skip_widths)
        self.all_modules = nn.ModuleList(modules)
        mapping: list[nn.Module] = [PixelNorm(), Linear(config.nz, config.z_emb_dim, init=OUT), nn.SiLU()]
        for _ in range(config.n_mlp):
            mapping += [Linear(config.z_emb_dim, config.z_emb_dim, init=OUT), nn.SiLU()]
        self.z_transform = nn.Sequential(*mapping)

    def _add_encoder(self, modules: list[nn.Module]) -> list[int]:
        """Append the way down; the width of every skip it leaves."""
        config = self.config
        width, pyramid_width = config.num_channels_dae, config.num_channels
        modules.append(Conv2d(config.num_channels, width, 3))
        skip_widths = [width]
        for level, multiplier in enumerate(config.ch_mult):
            for _ in range(config.num_res_blocks):
                modules.append(Residual(width, config.num_channels_dae * multiplier, config))
                width = config.num_channels_dae * multiplier
                if config.resolutions[level] in config.attn_resolutions:
                    modules.append(Attention(width, config))
                skip_widths.append(width)
            if level == len(config.ch_mult) - 1:
                break
            modules.append(Residual(width, width, config, resample="down"))
            if config.progressive_input == "residual":
                modules.append(PyramidDown(pyramid_width, width, config))
                pyramid_width = width
            elif config.progressive_input == "input_skip":
                modules += [downsampler(config), Combine(pyramid_width, width, config.progressive_combine)]
                width *= 2 if config.progressive_combine == "cat" else 1
            skip_widths.append(width)
        return skip_widths

    def _add_decoder(self, modules: list[nn.Module], skip_widths: list[int]) -> None:
        """Append the way up, which takes the skips from the last to the first, and the output."""
        config = self.config
        width = pyramid_width = skip_widths[-1]
        remaining = list(skip_widths)
        for level, multiplier in reversed(list(enumerate(config.ch_mult))):
            for _ in range(config.num_res_blocks + 1):
                modules.append(Residual(width + remaining.pop(), config.num_channels_dae * multiplier, config))
                width = config.num_channels_dae * multiplier
            if config.resolutions[level] in config.attn_resolutions:
                modules.append(Attention(width, config))
            is_lowest = level == len(config.ch_mult) - 1
            if config.progressive == "output_skip":
                modules += [] if is_lowest else [upsampler(config)]
                modules += self._output(width)
            elif config.progressive == "residual":
                first = [group_norm(width), Conv2d(width, width, 3)]
                modules += first if is_lowest else [PyramidUp(pyramid_width, width)]
                pyramid_width = width
            if level > 0:
                modules.append(Residual(width, width, config, resample="up"))
        if config.progressive != "output_skip":
            modules += self._output(width)

    def _output(self, width: int) -> list[nn.Module]:
        return [group_norm(width), Conv2d(width, self.config.num_channels, 3, init=SILENT)]

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Predict x_0.

        Args:
            x: The noisier image x_{t+1}, float [B, num_channels, image_size, image_size].
            t: Index of the step, from 0 (the last to be denoised) to T - 1, [B].
            z: Latents, float [B, nz], standard normal.

        Returns:
            float [B, num_channels, image_size, image_size], in [-1, 1] unless `not_use_tanh`.

        Raises:
            ProtocolError: A shape is another.
        """
        config = self.config
        _check_images("x", x, config.num_channels, config.image_size)
        _check_shape("t", t, (x.shape[0],))
        _check_shape("z", z, (x.shape[0], config.nz))
        modules = iter(self.all_modules)
        zemb = self.z_transform(z)
        temb = None
        if config.conditional:
            temb = next(modules)(sinusoidal(t, config.num_channels_dae).to(x.dtype))
            temb = next(modules)(F.silu(temb))
        if not config.centered:
            x = 2 * x - 1
        skips = self._encode(modules, x, temb, zemb)
        h = next(modules)(skips[-1], temb, zemb)
        h = next(modules)(h)
        h = next(modules)(h, temb, zemb)
        h = self._decode(modules, h, skips, temb, zemb)
        return h if config.not_use_tanh else torch.tanh(h)

    def _encode(self, modules: Iterator[nn.Module], x: Tensor, temb: Tensor | None, zemb: Tensor) -> list[Tensor]:
        config = self.config
        pyramid = x
        skips = [next(modules)(x)]
        for level, side in enumerate(config.resolutions):
            for _ in range(config.num_res_blocks):
                h = next(modules)(skips[-1], temb, zemb)
                if side in config.attn_resolutions:
                    h = next(modules)(h)
                skips.append(h)
            if level == len(config.ch_mult) - 1:
                break
            h = next(modules)(skips[-1], temb, zemb)
            if config.progressive_input == "residual":
                h = pyramid = (next(modules)(pyramid) + h) * self.gain
            elif config.progressive_input == "input_skip":
                pyramid = next(modules)(pyramid)
                h = next(modules)(pyramid, h)
            skips.append(h)
        return skips

    def _decode(
        self, modules: Iterator[nn.Module], h: Tensor, skips: list[Tensor], temb: Tensor | None, zemb: Tensor
    ) -> Tensor:
        config = self.config
        pyramid: Tensor | None = None
        for level, side in reversed(list(enumerate(config.resolutions))):
            for _ in range(config.num_res_blocks + 1):
                h = next(modules)(torch.cat([h, skips.pop()], dim=1), temb, zemb)
            if side in config.attn_resolutions:
                h = next(modules)(h)
            if config.progressive == "output_skip":
                image = None if pyramid is None else next(modules)(pyramid)
                pyramid = _normalised_output(modules, h)
                pyramid = pyramid if image is None else image + pyramid
            elif config.progressive == "residual" and pyramid is None:
                pyramid = _normalised_output(modules, h)
            elif config.progressive == "residual":
                h = pyramid = (next(modules)(pyramid) + h) * self.gain
            if level > 0:
                h = next(modules)(h, temb, zemb)
        if config.progressive == "output_skip" and pyramid is not None:
            return pyramid
        return _normalised_output(modules, h)


def _normalised_output(modules: Iterator[nn.Module], h: Tensor) -> Tensor:
    h = F.silu(next(modules)(h))
    return next(modules)(h)


class _CriticBlock(nn.Module):
    """The critics' residual block: the step enters after the first convolution, halving before the second."""

    def __init__(self, in_ch: int, out_ch: int, t_emb_dim: int, *, halves: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(Conv2d(in_ch, out_ch, 3, init=OUT))
        self.conv2 = nn.Sequential(Conv2d(out_ch, out_ch, 3, init=OUT_SILENT))
        self.dense_t1 = Linear(t_emb_dim, out_ch, init=OUT)
        self.skip = nn.Sequential(Conv2d(in_ch, out_ch, 1, init=OUT, bias=False))
        self.fir = Fir(TAPS, down=2) if halves else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(leaky_relu(x, 0.2))
        h = leaky_relu(h + self.dense_t1(temb)[:, :, None, None], 0.2)
        if self.fir is not None:
            h, x = self.fir(h), self.fir(x)
        return (self.conv2(h) + self.skip(x)) * SQRT_HALF


class _StepEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.main = nn.Sequential(Linear(dim, dim, init=OUT), nn.LeakyReLU(0.2), Linear(dim, dim, init=OUT))
        self.dim = dim

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.main(sinusoidal(t, self.dim).to(dtype))


class Discriminator(_Network):
    """The critic of neighbouring steps, small (32 pixels) or large (256). Build with `build_discriminator`.

    An image's logit depends on the others of its group, by the minibatch standard deviation.
    """

    GROUP = 4

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.t_embed = _StepEmbedding(config.t_emb_dim)
        width = 2 * config.ngf
        self.start_conv = Conv2d(config.nc, width, 1, init=OUT)
        not_halved = len(config.widths) - config.halvings
        for number, out_width in enumerate(config.widths, start=1):
            block = _CriticBlock(width, out_width, config.t_emb_dim, halves=number > not_halved)
            self.add_module(f"conv{number}", block)
            width = out_width
        final = OUT_SILENT if config.name == "Discriminator_small" else OUT
        self.final_conv = Conv2d(width + 1, width, 3, init=final)
        self.end_linear = Linear(width, 1, init=OUT)

    def forward(self, x: Tensor, t: Tensor, x_t: Tensor) -> Tensor:
        """Logits of "x comes from the data, given x_t".

        Args:
            x: The less noisy images, real or generated, float [B, nc / 2, H, W]; sides from 8 (large: 64).
            t: Index of the step between x and x_t, [B].
            x_t: The noisier images, as x.

        Returns:
            float [B, 1].

        Raises:
            ProtocolError: A shape is another, or B is neither under 4 nor a multiple of 4.
        """
        _check_images("x", x, self.config.nc // 2)
        _check_shape("x_t", x_t, tuple(x.shape))
        _check_shape("t", t, (x.shape[0],))
        least = 2**self.config.halvings
        if min(x.shape[2:]) < least:
            raise ProtocolError(f"{self.config.name} needs images of {least} pixels or more; got {list(x.shape[2:])}.")
        temb = leaky_relu(self.t_embed(t, x.dtype), 0.2)
        h = self.start_conv(torch.cat([x, x_t], dim=1))
        for number in range(1, len(self.config.widths) + 1):
            h = self.get_submodule(f"conv{number}")(h, temb)
        # In half precision the logits of a real and of a generated image were often one number; as in StyleGAN2-ADA.
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(x.dtype)
            h = torch.cat([h, _minibatch_deviation(h, self.GROUP)], dim=1)
            h = leaky_relu(self.final_conv(h), 0.2)
            return self.end_linear(h.sum(dim=(2, 3)))


def _minibatch_deviation(h: Tensor, group: int) -> Tensor:
    """Mean deviation (biased) among `group` images, the i-th being those at i modulo B / group: [B, 1, H, W].

    Raises:
        ProtocolError: The batch does not divide into groups.
    """
    batch, _, height, width = h.shape
    group = min(batch, group)
    if batch == 0 or batch % group:
        raise ProtocolError(
            f"the minibatch standard deviation takes groups of {group}; got a batch of {batch}. "
            f"Use a multiple of {group}, or drop the last partial batch."
        )
    grouped = h.to(torch.promote_types(h.dtype, torch.float32)).unflatten(0, (group, batch // group))
    deviation = torch.sqrt(grouped.var(dim=0, correction=0) + 1e-8).mean(dim=(1, 2, 3))
    return deviation.to(h.dtype).repeat(group)[:, None, None, None].expand(batch, 1, height, width)


def _check_images(name: str, x: Tensor, channels: int, size: int | None = None) -> None:
    fits = x.ndim == 4 and x.shape[1] == channels and (size is None or tuple(x.shape[2:]) == (size, size))
    if not fits:
        expected = f"[B, {channels}, {size or 'H'}, {size or 'W'}]"
        raise ProtocolError(f"{name} must be {expected} for this network as configured; got {list(x.shape)}.")
    if not x.is_floating_point():
        raise ProtocolError(f"{name} must hold floats; got {x.dtype}. Map uint8 images to [-1, 1] first.")


def _check_shape(name: str, found: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(found.shape) != expected:
        raise ProtocolError(f"{name} must be {list(expected)} beside x; got {list(found.shape)}.")


def build_generator(config: Mapping[str, Any], *, rng: torch.Generator | None = None) -> NCSNpp:
    """A generator G(x, t, z) with fresh weights.

    Args:
        config: The authors' option names, see `GeneratorConfig`; missing ones are those of CIFAR-10.
        rng: Where the weights are drawn from; without it torch's global generator.

    Raises:
        UsageError: An option that does not exist, has an impossible value or is not supported.
    """
    network = NCSNpp(GeneratorConfig.from_mapping(config))
    network.initialise(rng)
    return network


def build_discriminator(config: Mapping[str, Any], *, rng: torch.Generator | None = None) -> Discriminator:
    """A critic D(x, t, x_t) with fresh weights, small unless `class` says otherwise.

    Args:
        config: `nc`, `ngf`, `t_emb_dim` and `class` ('Discriminator_small', 'Discriminator_large', or
            'small', 'large'); missing ones are those of CIFAR-10.
        rng: Where the weights are drawn from; without it torch's global generator.

    Raises:
        UsageError: An option that does not exist or has an impossible value.
    """
    network = Discriminator(DiscriminatorConfig.from_mapping(config))
    network.initialise(rng)
    return network
