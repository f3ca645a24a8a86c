"""Discrete diffusion of points on a grid (Austin et al. 2021, D3PM, arXiv 2107.03006).

From cells that are uniform, every coordinate steps by p(x_{t-1} | x_t) = sum over x_0 of q(x_{t-1} | x_t, x_0)
p(x_0 | x_t); see `diffusion.DiscreteChain.reverse`. Fewer steps go along the same chain, several transitions at once.
The point is uniform within its last cell.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import DiscreteChain, Spacing, ddim_pairs, draw_categorical, linear_betas
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import grid
from trilemma_bench.samplers._helpers import STEP, X_T, Noise
from trilemma_bench.samplers._points import TOLERANCE, PointsSampler, loader, uniform
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`steps` None is the whole chain."""

    steps: int | None = Field(default=None, ge=1)
    spacing: Spacing = "trailing"


class D3PMSampler(PointsSampler):
    """The reverse chain of cells."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        config = weights.config
        self.bins = int(config["bins"])
        betas = linear_betas(int(config["num_train_steps"]), **config["betas"])
        self.chain = DiscreteChain(self.bins, betas, str(config["transition"]))
        exact = partial(grid.ExactDenoiser, chain=self.chain)
        super().__init__("d3pm", weights, grid.build_denoiser, exact=exact, **settings)
        pairs = ddim_pairs(len(self.chain), options.steps or len(self.chain), options.spacing)
        # Here t counts states, of which 0 is the data; in `pairs` it counts transitions.
        self.steps = [(t, t + 1, t_prev + 1, self.chain.between(t_prev + 1, t + 1)) for t, t_prev in pairs]

    @property
    def expected_nfe(self) -> int:
        return len(self.steps)

    def draw(self, noise: Noise, count: int) -> Tensor:
        place = uniform(noise, *self.image_shape, stream=X_T)
        x = (place * self.bins).long().clamp(max=self.bins - 1)
        for t, later, earlier, step in self.steps:
            logits = self.net(x, torch.full((count,), t, device=self.device)).double()
            found = self.chain.reverse(torch.softmax(logits, 2).cpu(), x.cpu(), earlier, later, step)
            x, place = draw_categorical(found.to(self.device), uniform(noise, *self.image_shape, stream=STEP))
        return grid.coordinates(x, self.bins, place)


def build(options: Options, weights: Weights, **settings: Any) -> D3PMSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return D3PMSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="d3pm", family="diffusion", options=Options, build=build, load=loader("d3pm"), baseline="d3pm",
    tolerance=TOLERANCE, source="Austin et al. 2021, arXiv 2107.03006",
)  # fmt: skip
