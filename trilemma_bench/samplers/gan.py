"""One-shot GANs on points (Goodfellow et al. 2014, arXiv 1406.2661): x = G(z), one evaluation a point.

With `dgflow` steps of discriminator gradient flow (Ansari, Ang & Soh 2021, arXiv 2012.00780, algorithm 1) the points
follow the gradient flow of an entropy-regularised f-divergence between what G makes and the data,

    x <- x - step_size grad f'(p_g / p_data)(x) + sqrt(2 noise step_size) n,   n ~ N(0, I),

in which the discriminator's logits d stand for log p_data / p_g. With `kl` the drift is grad d, with `js` it is
sigmoid(d) grad d, with `log_d` sigmoid(-d) grad d. A critic of a Wasserstein GAN is no log ratio; its gradient
is followed all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.errors import WeightsError
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import mlp
from trilemma_bench.samplers._helpers import LATENT, STEP, ImageSampler, Noise, make_weights, part_of, read_tensors
from trilemma_bench.spec import Frozen

DRIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": torch.ones_like,
    "js": torch.sigmoid,
    "log_d": lambda d: torch.sigmoid(-d),
}
"""-f''(p_g / p_data) d(p_g / p_data) / dd of each divergence, from d."""


class Options(Frozen):
    """`dgflow` steps of refinement (the paper has 25 of size 0.01 with noise 0.01, for other data).

    `step_size` and `noise` are in the units of the networks, in which a mode of 25-Gaussians has a deviation of 0.01.
    """

    dgflow: int = Field(default=0, ge=0)
    divergence: Literal["kl", "js", "log_d"] = "kl"
    step_size: float = Field(default=1e-3, gt=0)
    noise: float = Field(default=1e-3, ge=0)


class GANSampler(ImageSampler):
    """One call of the generator, and `dgflow` gradients of the discriminator, which are counted apart."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        generator = part_of(weights, "generator", mlp.build_decoder)
        config = mlp.parse(weights.config["generator"])
        scale = float(weights.config.get("scale", 1.0))
        super().__init__(
            "gan", {"generator": generator}, (config.dimensions,), identity=weights.digest, scale=scale, **settings
        )
        self.nz = config.nz
        self.options = options
        if options.dgflow:
            self.add_guides({"discriminator": part_of(weights, "discriminator", mlp.build_critic)})

    @property
    def expected_nfe(self) -> int:
        return 1

    def draw(self, noise: Noise, count: int) -> Tensor:
        x: Tensor = self.networks["generator"](noise.normal(self.nz, stream=LATENT)).float()
        size = self.options.step_size
        for _ in range(self.options.dgflow):
            n = noise.normal(*self.image_shape, stream=STEP)
            x = x + size * self._drift(x) + math.sqrt(2 * self.options.noise * size) * n
        return x

    def _drift(self, x: Tensor) -> Tensor:
        """-grad f'(p_g / p_data)(x), float32 [N, D]."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_(True)
            logits = self.guides["discriminator"](x).float()
            (gradient,) = torch.autograd.grad(logits.sum(), x)
        return DRIFTS[self.options.divergence](logits.detach()) * gradient.float()


def load(path: Path) -> Weights:
    """Weights of a generator and its discriminator, `.safetensors` of this package."""
    tensors, config = read_tensors(path)
    if config is None or config.get("generator", {}).get("class") != "mlp" or "num_timesteps" in config:
        raise WeightsError(f"{path}: not the generator of a one-shot GAN. Give what `trilemma-bench train gan` wrote.")
    return make_weights(tensors, config, str(path))


def build(options: Options, weights: Weights, **settings: Any) -> GANSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    settings["micro_batch"] = settings.get("micro_batch") or 1000
    return GANSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="gan", family="gan", options=Options, build=build, load=load, baseline="gan", tolerance=(1, 0.001),
    source="Goodfellow et al. 2014, arXiv 1406.2661; DGflow: Ansari et al. 2021, arXiv 2012.00780",
)  # fmt: skip
