"""A tiny configuration of every sampler, and samplers built from it with weights of the first size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from trilemma_bench import registry
from trilemma_bench.kinds import SamplerKind, Weights, is_points
from trilemma_bench.samplers._helpers import Noise, make_weights, untrained

TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 12],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
TINY_NCSNPP: dict[str, Any] = {
    "image_size": 8,
    "num_channels": 12,
    "num_channels_dae": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "n_mlp": 1,
    "nz": 5,
    "z_emb_dim": 6,
}
TINY_STYLEGAN2: dict[str, Any] = {
    "z_dim": 8,
    "w_dim": 12,
    "c_dim": 3,
    "img_resolution": 16,
    "img_channels": 3,
    "mapping_layers": 2,
    "channel_base": 128,
    "channel_max": 8,
}


@dataclass(frozen=True)
class Tiny:
    """What the tests of every sampler need: a configuration that samples in milliseconds, and options."""

    config: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, ...] = (3, 16, 16)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if is_points(self.image_shape) else torch.uint8


TINY_ADM: dict[str, Any] = {
    "denoiser": {
        "image_size": 8, "num_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "num_heads": 2,
        "attention_resolutions": [4], "num_classes": 3, "resblock_updown": True,
    },
    "classifier": {
        "image_size": 8, "classifier_width": 32, "channel_mult": [1, 2], "classifier_depth": 1,
        "attention_resolutions": [4], "num_head_channels": 16, "num_classes": 3,
    },
    "schedule": "cosine",
}  # fmt: skip

TINY: dict[str, Tiny] = {
    "adm": Tiny(TINY_ADM, {"steps": 4, "guidance": 2.0}, (3, 8, 8)),
    "autoregressive": Tiny(
        {"mlp": {"class": "autoregressive", "width": 8, "bins": 64}, "bins": 64, "scale": 20.0}, image_shape=(2,)
    ),
    "consistency": Tiny(
        {
            "mlp": {"class": "consistency", "width": 8},
            "num_train_steps": 10,
            "betas": {"start": 1e-3, "end": 0.5},
            "scale": 20.0,
        },
        {"steps": 3},
        (2,),
    ),
    "d3pm": Tiny(
        {
            "mlp": {"class": "d3pm", "width": 8, "bins": 64},
            "bins": 64,
            "num_train_steps": 3,
            "scale": 20.0,
            "transition": "gaussian",
            "betas": {"start": 1e-3, "end": 0.5},
        },
        image_shape=(2,),
    ),
    "ddgan": Tiny({"generator": TINY_NCSNPP, "pixel_block": 2, "num_timesteps": 4}),
    "ddim": Tiny({"unet": TINY_UNET}, {"steps": 4, "eta": 0.5}, (3, 8, 8)),
    "ddpm": Tiny({"unet": {**TINY_UNET, "in_channels": 12, "out_channels": 12, "pixel_block": 2}}, {"steps": 4}),
    "diffusers": Tiny({"unet": TINY_UNET}, {"steps": 4}, (3, 8, 8)),
    "distilled": Tiny(
        {
            "mlp": {"class": "distilled", "width": 8},
            "num_train_steps": 10,
            "betas": {"start": 1e-3, "end": 0.5},
            "scale": 20.0,
        },
        image_shape=(2,),
    ),
    "ebm": Tiny(
        {
            "mlp": {"class": "ebm", "width": 8},
            "levels": 3,
            "sigma_min": 0.1,
            "sigma_max": 2.0,
            "langevin_steps": 2,
            "step_size": 0.4,
            "scale": 20.0,
        },
        image_shape=(2,),
    ),
    "flow": Tiny({"mlp": {"class": "flow", "width": 8, "couplings": 3}, "scale": 20.0}, image_shape=(2,)),
    "gan": Tiny(
        {
            "generator": {"class": "mlp", "width": 8, "nz": 3, "time_dim": 0},
            "discriminator": {"class": "mlp", "width": 8, "time_dim": 0},
            "scale": 20.0,
        },
        {"dgflow": 2, "step_size": 0.01, "noise": 0.01},
        (2,),
    ),
    "lsgm": Tiny(
        {
            "autoencoder": {"class": "vae", "width": 8, "nz": 3},
            "prior": {"class": "lsgm", "width": 8, "dimensions": 3},
            "num_train_steps": 10,
            "betas": {"start": 1e-3, "end": 0.5},
            "scale": 20.0,
        },
        {"steps": 3, "eta": 0.5},
        (2,),
    ),
    "ncsn": Tiny({"unet": TINY_UNET}, {"levels": 2, "steps_each": 2}, (3, 8, 8)),
    "score_sde": Tiny({"unet": TINY_UNET}, {"steps": 3, "solver": "pc"}, (3, 8, 8)),
    "stylegan2": Tiny({"generator": TINY_STYLEGAN2}),
    "vae": Tiny({"mlp": {"class": "vae", "width": 8, "levels": 2}, "scale": 20.0}, image_shape=(2,)),
}


def tiny(name: str) -> Tiny:
    """The tiny configuration of a sampler; fails the calling test where there is none."""
    if name not in TINY:
        pytest.fail(
            f"the sampler {name!r} has no tiny configuration. Add one to TINY in tests/sampler_cases.py: its "
            "weights' configuration, so small that an image takes milliseconds, and the options that keep it short."
        )
    return TINY[name]


def lively(name: str, config: dict[str, Any]) -> Weights:
    """Weights of a tiny network: some layers begin at zero, so every parameter is moved off its first value."""
    kind: SamplerKind = registry.get("sampler", name)
    options = kind.options(**tiny(name).options) if name in TINY and config == tiny(name).config else kind.options()
    sampler: Any = kind.build(options, untrained(config))
    rng = torch.Generator().manual_seed(1)
    tensors = {}
    for part, net in {**sampler.networks, **sampler.guides}.items():
        for inner in ("net", "unet"):  # in pixel blocks; diffusers' model
            net = getattr(net, inner, net)
        # Networks that are a part of a configuration have their tensors under its name.
        prefix = f"{part}." if part in config else ""
        for key, value in net.state_dict().items():
            fan_in = value[0].numel() if value.ndim > 1 else 4
            moved = value + torch.randn(value.shape, generator=rng) / fan_in**0.5
            tensors[f"{prefix}{key}"] = value if "filter" in key else moved
    return make_weights(tensors, config, "tiny")


_WEIGHTS: dict[str, Weights] = {}


def tiny_sampler(
    name: str, *, options: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **settings: Any
) -> Any:
    """A sampler of a tiny network; `options` and `config` replace those of the table, the rest goes to `build`."""
    kind: SamplerKind = registry.get("sampler", name)
    config = config or tiny(name).config
    key = repr(config)
    if key not in _WEIGHTS:
        _WEIGHTS[key] = lively(name, config)
    options = tiny(name).options if options is None else options
    return kind.build(kind.options(**options), _WEIGHTS[key], **{"micro_batch": 4, **settings})


class GivenNoise(Noise):
    """Hands out given tensors instead of random numbers, stream by stream, in order."""

    def __init__(self, **streams: list[Tensor] | Tensor) -> None:
        self._left = {name: list(tensors) for name, tensors in streams.items()}

    def normal(self, *shape: int, stream: int) -> Tensor:
        found = self._next(stream)
        assert tuple(found.shape[1:]) == shape
        return found

    def integers(self, high: int, *, stream: int) -> Tensor:
        found = self._next(stream)
        assert int(found.max()) < high
        return found

    def _next(self, stream: int) -> Tensor:
        return self._left[("x_t", "step", "latent", "label")[stream]].pop(0)

    @property
    def used_up(self) -> bool:
        """Whether every tensor was asked for."""
        return not any(self._left.values())
