"""Autoregressive sampling of points on a grid, of PixelCNN's family (van den Oord et al. 2016, arXiv 1601.06759).

Coordinate after coordinate is drawn from p(x_d | x_<d) over equal cells, and the point uniformly within its cell: as
many evaluations as there are coordinates.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import draw_categorical
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import grid
from trilemma_bench.samplers._helpers import STEP, Noise
from trilemma_bench.samplers._points import TOLERANCE, PointsSampler, loader, uniform
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`temperature` divides the logits; 1 is the model itself."""

    temperature: float = Field(default=1.0, gt=0)


class AutoregressiveSampler(PointsSampler):
    """One coordinate after another."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        super().__init__(
            "autoregressive", weights, grid.build_autoregressive, exact=grid.ExactAutoregressive, **settings
        )
        self.options = options
        self.bins = int(weights.config["bins"])

    @property
    def expected_nfe(self) -> int:
        return self.image_shape[0]

    def draw(self, noise: Noise, count: int) -> Tensor:
        numbers = uniform(noise, *self.image_shape, stream=STEP)
        x = torch.zeros(count, *self.image_shape, dtype=torch.int64, device=self.device)
        place = torch.zeros_like(numbers)
        for d in range(self.image_shape[0]):
            logits = self.net(x, torch.full((count,), d, device=self.device)).double()
            found = draw_categorical(torch.softmax(logits / self.options.temperature, 1), numbers[:, d])
            x[:, d], place[:, d] = found
        return grid.coordinates(x, self.bins, place)


def build(options: Options, weights: Weights, **settings: Any) -> AutoregressiveSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return AutoregressiveSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="autoregressive", family="autoregressive", options=Options, build=build, load=loader("autoregressive"),
    baseline="autoregressive", tolerance=TOLERANCE, source="van den Oord et al. 2016, arXiv 1601.06759",
)  # fmt: skip
