"""Variational autoencoders on points (Kingma & Welling 2014, arXiv 1312.6114): z ~ p(z), x ~ p(x | z), one evaluation.

Weights with two levels of latents stand for hierarchies such as NVAE (Vahdat & Kautz 2020, arXiv 2007.03898).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import vae
from trilemma_bench.samplers._helpers import LATENT, STEP, Noise
from trilemma_bench.samplers._points import TOLERANCE, PointsSampler, loader
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`temperature` multiplies the deviations of the prior, as NVAE's authors sample; 1 is the model itself."""

    temperature: float = Field(default=1.0, gt=0)


class VAESampler(PointsSampler):
    """A draw of the prior, decoded."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        super().__init__("vae", weights, vae.build, **settings)
        self.options = options

    @property
    def expected_nfe(self) -> int:
        return 1

    def draw(self, noise: Noise, count: int) -> Tensor:
        size = self.net.config.nz * self.net.config.levels
        z = self.options.temperature * noise.normal(size, stream=LATENT)
        points: Tensor = self.net(z, noise.normal(*self.image_shape, stream=STEP))
        return points


def build(options: Options, weights: Weights, **settings: Any) -> VAESampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return VAESampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="vae", family="vae", options=Options, build=build, load=loader("vae"), baseline="vae", tolerance=TOLERANCE,
    source="Kingma & Welling 2014, arXiv 1312.6114; Vahdat & Kautz 2020, arXiv 2007.03898",
)  # fmt: skip
