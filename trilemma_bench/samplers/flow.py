"""Normalising flows on points, of Glow's family (Kingma & Dhariwal 2018, arXiv 1807.03039): x = f(z) at once."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import flow
from trilemma_bench.samplers._helpers import LATENT, Noise
from trilemma_bench.samplers._points import TOLERANCE, PointsSampler, loader
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`temperature` multiplies the deviation of z, as Glow's authors sample; 1 is the model itself."""

    temperature: float = Field(default=1.0, gt=0)


class FlowSampler(PointsSampler):
    """The flow of a draw of N(0, I)."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        super().__init__("flow", weights, flow.build, **settings)
        self.options = options

    @property
    def expected_nfe(self) -> int:
        return 1

    def draw(self, noise: Noise, count: int) -> Tensor:
        points: Tensor = self.net(self.options.temperature * noise.normal(*self.image_shape, stream=LATENT))
        return points


def build(options: Options, weights: Weights, **settings: Any) -> FlowSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return FlowSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="flow", family="flow", options=Options, build=build, load=loader("flow"), baseline="flow",
    tolerance=TOLERANCE, source="Dinh et al. 2017, arXiv 1605.08803; Kingma & Dhariwal 2018, arXiv 1807.03039",
)  # fmt: skip
