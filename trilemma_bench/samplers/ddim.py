"""DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): few steps, deterministic at eta = 0.

x_prev = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev - sigma^2) eps + sigma noise, sigma = eta times DDPM's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import Spacing, ddim_pairs, ddim_step
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.samplers._epsilon import TOLERANCE, EpsilonSampler, load, micro_batch
from trilemma_bench.samplers._helpers import STEP, Noise
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`quadratic` is the paper's spacing on CIFAR-10; `leading` is diffusers'. x_0 is not clipped, as in the paper.

    `clip` clips the predicted x_0 and leaves the direction eps as it is, as diffusers does.
    """

    steps: int = Field(default=50, ge=1)
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    spacing: Spacing = "quadratic"
    clip: bool = False


class DDIMSampler(EpsilonSampler):
    """Implicit sampling along explicit (t, t_prev) pairs."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        super().__init__("ddim", weights, **settings)
        self.options = options
        self.pairs = ddim_pairs(len(self.chain), options.steps, options.spacing)

    def step(self, x: Tensor, eps: Tensor, t: int, t_prev: int, noise: Noise) -> Tensor:
        drawn = partial(noise.normal, *self.image_shape, stream=STEP)
        return ddim_step(
            x, eps, self.alpha_bar(t), self.alpha_bar(t_prev), eta=self.options.eta, clip=self.options.clip, noise=drawn
        )


def build(options: Options, weights: Weights, **settings: Any) -> DDIMSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 50 (points: 1000) by default."""
    settings["micro_batch"] = settings.get("micro_batch") or micro_batch(weights)
    return DDIMSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="ddim", family="diffusion", options=Options, build=build, load=load, baseline="ddpm", tolerance=TOLERANCE,
    source="Song et al. 2021, arXiv 2010.02502",
)  # fmt: skip
