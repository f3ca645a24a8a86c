"""Consistency models on points (Song et al. 2023, arXiv 2303.01469, algorithm 1): x_0 = f(x_T, T), and refinements.

With more steps the point is noised again to a smaller t and mapped back.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import Chain, Spacing, ddim_pairs, linear_betas
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import consistency
from trilemma_bench.samplers._helpers import STEP, X_T, Noise
from trilemma_bench.samplers._points import TOLERANCE, PointsSampler, loader
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`steps` evaluations a point, spaced along the chain."""

    steps: int = Field(default=1, ge=1)
    spacing: Spacing = "trailing"


class ConsistencySampler(PointsSampler):
    """Map to the data, noise again, map again."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        self.chain = Chain(linear_betas(int(weights.config["num_train_steps"]), **weights.config["betas"]))
        super().__init__("consistency", weights, partial(consistency.build, chain=self.chain), **settings)
        self.times = [t for t, _ in ddim_pairs(len(self.chain), options.steps, options.spacing)]

    @property
    def expected_nfe(self) -> int:
        return len(self.times)

    def draw(self, noise: Noise, count: int) -> Tensor:
        x = noise.normal(*self.image_shape, stream=X_T)
        for index, t in enumerate(self.times):
            if index:
                a2 = float(self.chain.alpha_bar[t])
                x = math.sqrt(a2) * x + math.sqrt(1 - a2) * noise.normal(*self.image_shape, stream=STEP)
            x = self.net(x, torch.full((count,), t, device=self.device)).float()
        return x


def build(options: Options, weights: Weights, **settings: Any) -> ConsistencySampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return ConsistencySampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="consistency", family="distillation", options=Options, build=build, load=loader("consistency"),
    baseline="consistency", tolerance=TOLERANCE, source="Song et al. 2023, arXiv 2303.01469",
)  # fmt: skip
