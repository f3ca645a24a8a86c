"""What fixes a StyleGAN2 network: two frozen configurations, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from trilemma_bench.errors import UsageError, unknown_name

_ARCHITECTURES = ("orig", "skip", "resnet")


@dataclass(frozen=True)
class GeneratorConfig:
    """What fixes a generator; the defaults are the `cifar` configuration of stylegan2-ada.

    `conv_clamp` bounds activations to +-conv_clamp after the gain (None: no bound). Channels at resolution r
    are min(channel_base // r, channel_max). `num_fp16_res` belongs to the original and changes nothing here.
    """

    z_dim: int = 512
    c_dim: int = 0
    w_dim: int = 512
    img_resolution: int = 32
    img_channels: int = 3
    mapping_layers: int = 2
    channel_base: int = 32768
    channel_max: int = 512
    num_fp16_res: int = 4
    conv_clamp: float | None = 256
    architecture: str = "skip"

    def __post_init__(self) -> None:
        _check_config(self, "generator", lowest_resolution=4)

    @property
    def resolutions(self) -> list[int]:
        """The blocks' resolutions in the order they run: 4, 8, ..., img_resolution."""
        return [2**i for i in range(2, self.img_resolution.bit_length())]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """What fixes a discriminator; the defaults are the `cifar` configuration of stylegan2-ada.

    `mbstd_group_size` is how many images share one standard deviation (None: the whole batch), `cmap_dim` the
    width of the label's embedding (None: the channels at 4x4); `mapping_layers` matters only with labels.
    """

    c_dim: int = 0
    img_resolution: int = 32
    img_channels: int = 3
    architecture: str = "orig"
    channel_base: int = 32768
    channel_max: int = 512
    num_fp16_res: int = 4
    conv_clamp: float | None = 256
    cmap_dim: int | None = None
    mapping_layers: int = 8
    mbstd_group_size: int | None = 32
    mbstd_num_channels: int = 1

    def __post_init__(self) -> None:
        # The original has none for 4x4 images: its last block takes features, never an image alone.
        _check_config(self, "discriminator", lowest_resolution=8)
        if self.mbstd_num_channels and channels_at(self, 4) % self.mbstd_num_channels:
            raise UsageError(
                f"discriminator: mbstd_num_channels must divide the {channels_at(self, 4)} channels at 4x4; "
                f"got {self.mbstd_num_channels}."
            )

    @property
    def resolutions(self) -> list[int]:
        """The blocks' resolutions in the order they run: img_resolution, ..., 16, 8."""
        return [2**i for i in range(self.img_resolution.bit_length() - 1, 2, -1)]


Config = TypeVar("Config", GeneratorConfig, DiscriminatorConfig)


def channels_at(config: GeneratorConfig | DiscriminatorConfig, resolution: int) -> int:
    """Feature channels at a resolution: min(channel_base // resolution, channel_max)."""
    return min(config.channel_base // resolution, config.channel_max)


def _check_config(config: GeneratorConfig | DiscriminatorConfig, kind: str, *, lowest_resolution: int) -> None:
    """Refuses by name each option whose value no such network has; raises UsageError."""
    may_be_zero = {"c_dim", "num_fp16_res", "mbstd_num_channels"}
    may_be_none = {"cmap_dim", "mbstd_group_size"}
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if name in ("architecture", "conv_clamp") or (value is None and name in may_be_none):
            continue
        lowest = 0 if name in may_be_zero else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise UsageError(f"{kind}: {name} must be a whole number of at least {lowest}; got {value!r}.")
    clamp = 1.0 if config.conv_clamp is None else config.conv_clamp
    if isinstance(clamp, bool) or not isinstance(clamp, (int, float)) or not clamp > 0:
        raise UsageError(f"{kind}: conv_clamp must be a positive number, or None; got {clamp!r}.")
    if config.architecture not in _ARCHITECTURES:
        raise unknown_name(f"{kind} architecture", str(config.architecture), _ARCHITECTURES)
    resolution = config.img_resolution
    if resolution < lowest_resolution or resolution & (resolution - 1):
        wanted = f"a power of two of at least {lowest_resolution}"
        raise UsageError(f"{kind}: img_resolution must be {wanted}; got {resolution}.")
    if channels_at(config, resolution) < 1:
        wanted = f"at least {resolution}, the resolution"
        raise UsageError(f"{kind}: channel_base must be {wanted}; got {config.channel_base}.")


def read_config(cls: type[Config], options: Mapping[str, Any] | None, kind: str) -> Config:
    """A configuration object from a mapping; raises UsageError for a key that the class does not have."""
    known = [field.name for field in fields(cls)]
    for key in options or {}:
        if key not in known:
            raise unknown_name(f"{kind} option", str(key), known)
    return cls(**(options or {}))
