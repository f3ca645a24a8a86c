"""What a DDGAN's networks are configured by, under the authors' option names (see `ncsnpp`)."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from trilemma_bench.errors import UsageError, unknown_name

SCRIPT_OPTIONS = """
    use_geometric beta_min beta_max num_timesteps exp dataset seed resume batch_size num_epoch lr_g lr_d
    beta1 beta2 no_lr_decay use_ema ema_decay r1_gamma lazy_reg save_content save_content_every
    save_ckpt_every epoch_id num_proc_node num_process_per_node node_rank local_rank master_address
"""
"""What the authors' configurations carry beside the networks' options: schedule, training, script."""

TAPS = (1.0, 3.0, 3.0, 1.0)
"""The FIR filter of the authors' configurations and of both critics."""


@dataclass(frozen=True)
class GeneratorConfig:
    """What fixes a generator; the defaults are the authors' for CIFAR-10. Build with `from_mapping`.

    Attributes:
        image_size: Pixels a side, a multiple of 2 ** (levels - 1).
        num_channels: Image channels.
        num_channels_dae: Width of the first level.
        ch_mult: Width multiplier of each level, finest first; its length is the number of levels.
        num_res_blocks: Residual blocks a level on the way down; one more on the way up.
        attn_resolutions: Sides (pixels) at which attention follows; the middle always has it.
        dropout: Probability, in training mode only.
        nz, z_emb_dim, n_mlp: Latent size, its embedding, and the hidden layers between.
        centered: Whether x is in [-1, 1]; otherwise [0, 1] is taken and mapped to it.
        conditional: Whether t reaches the residual blocks.
        not_use_tanh: Leave the output unbounded.
        fir, fir_kernel: Resample by a FIR filter (taps, or a square matrix) or by 2x2 means and copies.
        skip_rescale: Divide the sum of a skip and its block by sqrt(2).
        resblock_type, embedding_type: Only 'biggan' and 'positional'.
        progressive: 'none', 'output_skip' (images summed over levels), 'residual' (without FIR only).
        progressive_input: 'residual', 'input_skip' or 'none': how the resized input joins each level.
        progressive_combine: 'sum' or 'cat', for 'input_skip'.
        resamp_with_conv, fourier_scale: Accepted; without effect on what is supported.
    """

    image_size: int = 32
    num_channels: int = 3
    num_channels_dae: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.0
    nz: int = 100
    z_emb_dim: int = 256
    n_mlp: int = 4
    centered: bool = True
    conditional: bool = True
    not_use_tanh: bool = False
    fir: bool = True
    fir_kernel: tuple[Any, ...] = TAPS
    skip_rescale: bool = True
    resblock_type: str = "biggan"
    embedding_type: str = "positional"
    progressive: str = "none"
    progressive_input: str = "residual"
    progressive_combine: str = "sum"
    resamp_with_conv: bool = True
    fourier_scale: float = 16.0

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> GeneratorConfig:
        """Read the authors' option names; missing ones take the defaults, a script's are passed over.

        Raises:
            UsageError: An unknown name, a value of the wrong type or range, or an option not supported.
        """
        return cls(**_read_options(cls, config, "generator"))

    def __post_init__(self) -> None:
        for name in ("image_size", "num_channels", "num_channels_dae", "nz", "z_emb_dim"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("num_res_blocks", "n_mlp"):
            require(getattr(self, name) >= 0, f"{name} must not be negative; got {getattr(self, name)}.")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1); got {self.dropout}.")
        require(len(self.ch_mult) > 0 and min(self.ch_mult) >= 1, f"ch_mult must be positive; got {self.ch_mult}.")
        stride = 2 ** (len(self.ch_mult) - 1)
        require(
            self.image_size % stride == 0,
            f"{len(self.ch_mult)} levels of ch_mult halve the image {len(self.ch_mult) - 1} times: "
            f"image_size must be a multiple of {stride}; got {self.image_size}.",
        )
        _require_choice("resblock_type", self.resblock_type, ("biggan",))
        # 'fourier' takes the logarithm of t, which is not finite at the step t = 0 that every model here has.
        _require_choice("embedding_type", self.embedding_type, ("positional",))
        _require_choice("progressive", self.progressive, ("none", "output_skip", "residual"))
        _require_choice("progressive_input", self.progressive_input, ("none", "input_skip", "residual"))
        _require_choice("progressive_combine", self.progressive_combine, ("sum", "cat"))
        require(
            self.progressive != "residual" or not self.fir,
            "progressive = 'residual' is supported with fir = false only: with FIR there is no reference. "
            "Use progressive = 'none' or 'output_skip'.",
        )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of the image at each level, finest first."""
        return tuple(self.image_size // 2**level for level in range(len(self.ch_mult)))


DISCRIMINATOR_CLASSES = {
    "Discriminator_small": "Discriminator_small",
    "Discriminator_large": "Discriminator_large",
    "small": "Discriminator_small",
    "large": "Discriminator_large",
}


@dataclass(frozen=True)
class DiscriminatorConfig:
    """What fixes a critic. `nc` counts the channels of x and x_t together; `ngf` is half the first width."""

    nc: int = 6
    ngf: int = 64
    t_emb_dim: int = 256
    name: str = "Discriminator_small"

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> DiscriminatorConfig:
        """Read `nc`, `ngf`, `t_emb_dim` and `class`; without `nc`, twice `num_channels` if given.

        Raises:
            UsageError: An unknown name or class, or a value of the wrong type or range.
        """
        name = config.get("class", cls.name)
        if name not in DISCRIMINATOR_CLASSES:
            raise unknown_name("discriminator class", str(name), DISCRIMINATOR_CLASSES)
        options = _read_options(cls, config, "discriminator")
        if "num_channels" in config:
            num_channels = whole("num_channels", config["num_channels"])
            require(
                options.setdefault("nc", 2 * num_channels) == 2 * num_channels,
                f"nc must be twice num_channels, as x and x_t are concatenated; got nc {options['nc']} and "
                f"num_channels {num_channels}. Leave one of them out.",
            )
        return cls(**options, name=DISCRIMINATOR_CLASSES[name])

    def __post_init__(self) -> None:
        require(self.nc >= 2 and self.nc % 2 == 0, f"nc must be even: the channels of x and x_t; got {self.nc}.")
        require(self.ngf >= 1, f"ngf must be at least 1; got {self.ngf}.")
        require(self.t_emb_dim >= 4, f"t_emb_dim must be at least 4; got {self.t_emb_dim}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of `conv1`, `conv2`, ...; each but the small one's first halves the image."""
        if self.name == "Discriminator_small":
            return (2 * self.ngf, 4 * self.ngf, 8 * self.ngf, 8 * self.ngf)
        return (4 * self.ngf,) + 5 * (8 * self.ngf,)

    @property
    def halvings(self) -> int:
        """How many times the image is halved."""
        return 3 if self.name == "Discriminator_small" else 6


def require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


def _require_choice(name: str, found: str, supported: Sequence[str]) -> None:
    require(found in supported, f"{name} = {found!r} is not supported; use {' or '.join(map(repr, supported))}.")


def whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number; got {value!r}.") from None


def _typed(name: str, value: Any, default: Any) -> Any:
    """The value as the type that the default has, or UsageError."""
    if isinstance(default, bool):
        require(isinstance(value, bool), f"{name} must be true or false; got {value!r}.")
        return value
    if isinstance(default, int):
        return whole(name, value)
    if isinstance(default, float):
        require(
            isinstance(value, int | float) and math.isfinite(value),
            f"{name} must be a number; got {value!r}.",
        )
        return float(value)
    if isinstance(default, str):
        require(isinstance(value, str), f"{name} must be a word; got {value!r}.")
        return value.lower()  # The authors' programs take these words in either case.
    require(isinstance(value, Sequence) and not isinstance(value, str), f"{name} must be a list; got {value!r}.")
    return tuple(value) if name == "fir_kernel" else tuple(whole(name, item) for item in value)


def _read_options(cls: type, config: Mapping[str, Any], network: str) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(cls) if field.name != "name"}
    both = (GeneratorConfig, DiscriminatorConfig)
    elsewhere = {field.name for each in both for field in fields(each)} - {"name"}
    elsewhere |= {"class", *SCRIPT_OPTIONS.split()}
    for key in config:
        if key not in defaults and key not in elsewhere:
            raise unknown_name(f"{network} option", str(key), set(defaults) | elsewhere)
    return {name: _typed(name, config[name], default) for name, default in defaults.items() if name in config}
