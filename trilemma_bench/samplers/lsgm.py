"""Latent score models on points (Vahdat, Kreis & Kautz 2021, LSGM, arXiv 2106.05931).

A latent is drawn by diffusion, down the chain of the prior by steps of DDIM (Song et al. 2021, arXiv 2010.02502,
eq. 12), and decoded by the autoencoder in one more evaluation. With `eta` 1 the steps are ancestral, with 0 they follow
the probability flow, as the authors sample.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import Chain, Spacing, ddim_pairs, ddim_step, linear_betas
from trilemma_bench.errors import WeightsError
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import mlp, vae
from trilemma_bench.samplers._helpers import (
    LATENT,
    STEP,
    X_T,
    ImageSampler,
    Noise,
    make_weights,
    part_of,
    read_tensors,
)
from trilemma_bench.samplers._points import MICRO_BATCH, TOLERANCE
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`steps` of the prior, as many as `eta` of noise; None is the whole chain."""

    steps: int | None = Field(default=50, ge=1)
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    spacing: Spacing = "trailing"


class LSGMSampler(ImageSampler):
    """The reverse chain of the latent, and one call of the decoder."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        config = weights.config
        self.options = options
        self.chain = Chain(linear_betas(int(config.get("num_train_steps", 1000)), **(config.get("betas") or {})))
        autoencoder = part_of(weights, "autoencoder", vae.build)
        networks = {"autoencoder": autoencoder, "prior": part_of(weights, "prior", mlp.build)}
        self.nz, dimensions = autoencoder.config.nz, autoencoder.config.dimensions
        settings["micro_batch"] = settings.get("micro_batch") or MICRO_BATCH
        scale = float(config.get("scale", 1.0))
        super().__init__("lsgm", networks, (dimensions,), identity=weights.digest, scale=scale, **settings)
        self.pairs = ddim_pairs(len(self.chain), options.steps or len(self.chain), options.spacing)
        self.alpha_bar = [*self.chain.alpha_bar.tolist(), 1.0]
        """Of step t; the last one is of t = -1, the latent itself."""

    @property
    def expected_nfe(self) -> int:
        return len(self.pairs) + 1

    def draw(self, noise: Noise, count: int) -> Tensor:
        z, drawn = noise.normal(self.nz, stream=X_T), partial(noise.normal, self.nz, stream=STEP)
        for t, t_prev in self.pairs:
            eps = self.networks["prior"](z, torch.full((count,), t, device=self.device)).float()
            z = ddim_step(z, eps, self.alpha_bar[t], self.alpha_bar[t_prev], eta=self.options.eta, noise=drawn)
        points: Tensor = self.networks["autoencoder"](z, noise.normal(*self.image_shape, stream=LATENT))
        return points


def load(path: Path) -> Weights:
    """Weights of an autoencoder and its prior, `.safetensors` of this package."""
    tensors, config = read_tensors(path)
    if config is None or config.get("prior", {}).get("class") != "lsgm":
        raise WeightsError(f"{path}: not of a latent score model. Give what `trilemma-bench train lsgm` wrote.")
    return make_weights(tensors, config, str(path))


def build(options: Options, weights: Weights, **settings: Any) -> LSGMSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return LSGMSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="lsgm", family="diffusion", options=Options, build=build, load=load, baseline="lsgm", tolerance=TOLERANCE,
    source="Vahdat et al. 2021, arXiv 2106.05931",
)  # fmt: skip
