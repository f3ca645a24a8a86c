"""Ancestral sampling of DDPM (Ho et al. 2020, arXiv 2006.11239, algorithm 2), all steps or a respaced chain.

x_{t-1} ~ N(mean of q(x_{t-1} | x_t, x_0), variance), with x_0 predicted from the noise and clipped to [-1, 1].
Fewer steps follow the respaced chain of Nichol & Dhariwal 2021 (arXiv 2102.09672).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import Spacing, ddim_pairs, predict_x0
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.samplers._epsilon import TOLERANCE, EpsilonSampler, load, micro_batch
from trilemma_bench.samplers._helpers import STEP, Noise
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`steps` None is the whole chain; `variance` is beta_t (fixed_large) or that of the posterior (fixed_small)."""

    steps: int | None = Field(default=None, ge=1)
    spacing: Spacing = "leading"
    variance: Literal["fixed_small", "fixed_large"] = "fixed_large"
    clip: bool = True


class DDPMSampler(EpsilonSampler):
    """Ancestral sampling."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        super().__init__("ddpm", weights, **settings)
        self.options = options
        self.pairs = ddim_pairs(len(self.chain), options.steps or len(self.chain), options.spacing)

    def step(self, x: Tensor, eps: Tensor, t: int, t_prev: int, noise: Noise) -> Tensor:
        now, before = self.alpha_bar(t), self.alpha_bar(t_prev)
        beta = 1 - now / before
        x0 = predict_x0(x, eps, now)
        if self.options.clip:
            x0 = x0.clamp(-1, 1)
        mean = math.sqrt(before) * beta / (1 - now) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        if t_prev < 0:
            return mean
        variance = beta if self.options.variance == "fixed_large" else beta * (1 - before) / (1 - now)
        return mean + math.sqrt(variance) * noise.normal(*self.image_shape, stream=STEP)


def build(options: Options, weights: Weights, **settings: Any) -> DDPMSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 50 (points: 1000) by default."""
    settings["micro_batch"] = settings.get("micro_batch") or micro_batch(weights)
    return DDPMSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="ddpm", family="diffusion", options=Options, build=build, load=load, baseline="ddpm", tolerance=TOLERANCE,
    source="Ho et al. 2020, arXiv 2006.11239",
)  # fmt: skip
