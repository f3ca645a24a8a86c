"""DDIM distilled into one step, on points (Luhman & Luhman 2021, arXiv 2101.02388): x_0 = f(x_T), one evaluation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from trilemma_bench.diffusion import Chain, linear_betas
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import consistency
from trilemma_bench.samplers._helpers import X_T, Noise
from trilemma_bench.samplers._points import TOLERANCE, PointsSampler, loader
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """None: the student knows the end of the chain alone."""


class DistilledSampler(PointsSampler):
    """One call of the student."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        self.chain = Chain(linear_betas(int(weights.config["num_train_steps"]), **weights.config["betas"]))
        super().__init__("distilled", weights, partial(consistency.build, chain=self.chain), **settings)

    @property
    def expected_nfe(self) -> int:
        return 1

    def draw(self, noise: Noise, count: int) -> Tensor:
        last = torch.full((count,), len(self.chain) - 1, device=self.device)
        points: Tensor = self.net(noise.normal(*self.image_shape, stream=X_T), last)
        return points


def build(options: Options, weights: Weights, **settings: Any) -> DistilledSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return DistilledSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="distilled", family="distillation", options=Options, build=build, load=loader("distilled"),
    baseline="distilled", tolerance=TOLERANCE, source="Luhman & Luhman 2021, arXiv 2101.02388",
)  # fmt: skip
