"""Annealed Langevin dynamics of NCSN (Song & Ermon 2019, arXiv 1907.05600, algorithm 1; 2020, arXiv 2006.09011).

At each of `levels` noise levels sigma_1 > ... > sigma_L, spaced geometrically, `steps_each` steps
y <- y + e_i score + sqrt(2 e_i) n with e_i = step_size sigma_i^2 / sigma_L^2; at the end the point is denoised
(Jolicoeur-Martineau et al. 2020, arXiv 2009.05475).

The score is that of DDPM's network: denoising score matching with NCSN's weight sigma^2 is its loss, with y = x_t / a
and sigma = s / a.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.errors import UsageError
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.samplers._epsilon import TOLERANCE, NoisePredictor, load, micro_batch
from trilemma_bench.samplers._helpers import STEP, X_T, Noise
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`step_size` is e_L in units of sigma_L^2; `sigma_max` and `sigma_min` None are those of the chain."""

    levels: int = Field(default=100, ge=2)
    steps_each: int = Field(default=5, ge=1)
    step_size: float = Field(default=0.2, gt=0)
    sigma_max: float | None = Field(default=4.0, gt=0)
    sigma_min: float | None = Field(default=None, gt=0)
    denoise: bool = True


class NCSNSampler(NoisePredictor):
    """Langevin dynamics from much noise to little."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        super().__init__("ncsn", weights, **settings)
        self.options = options
        sigmas = self.chain.sigma
        low = max(options.sigma_min or 0.0, float(sigmas[0]))
        high = min(options.sigma_max or math.inf, float(sigmas[-1]))
        if low >= high:
            raise UsageError(
                f"sigma_min must be below sigma_max; got {options.sigma_min or 'the least'} and "
                f"{options.sigma_max or 'the largest'} on a chain of {float(sigmas[0]):.2g} to {float(sigmas[-1]):.2g}."
            )
        wanted = torch.logspace(math.log10(high), math.log10(low), options.levels, dtype=torch.float64)
        # The nearest levels that the network was trained at, each as often as it comes.
        self.times = [int((sigmas.log() - level.log()).abs().argmin()) for level in wanted]

    @property
    def expected_nfe(self) -> int:
        return len(self.times) * self.options.steps_each + self.options.denoise

    def draw(self, noise: Noise, count: int) -> Tensor:
        first, last = self._sigma(self.times[0]), self._sigma(self.times[-1])
        y = noise.normal(*self.image_shape, stream=X_T) * math.sqrt(1 + first**2)
        for t in self.times:
            sigma = self._sigma(t)
            size = self.options.step_size * (sigma / last) ** 2 * last**2
            for _ in range(self.options.steps_each):
                drawn = noise.normal(*self.image_shape, stream=STEP)
                y = y - size / sigma * self._eps(y, t) + math.sqrt(2 * size) * drawn
        return y - last * self._eps(y, self.times[-1]) if self.options.denoise else y

    def _sigma(self, t: int) -> float:
        return float(self.chain.sigma[t])

    def _eps(self, y: Tensor, t: int) -> Tensor:
        return self.predict_noise(math.sqrt(self.alpha_bar(t)) * y, t)


def build(options: Options, weights: Weights, **settings: Any) -> NCSNSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 50 (points: 1000) by default."""
    settings["micro_batch"] = settings.get("micro_batch") or micro_batch(weights)
    return NCSNSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="ncsn", family="score", options=Options, build=build, load=load, baseline="ddpm", tolerance=TOLERANCE,
    source="Song & Ermon 2019, arXiv 1907.05600",
)  # fmt: skip
