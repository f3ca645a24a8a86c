"""Consistency models of points (Song et al. 2023, arXiv 2303.01469): from x_t at any t to the end of its trajectory.

f(x_t, t) = c_skip(sigma) y + c_out(sigma) F(x_t, t), with y = x_t / a and sigma = s / a of a `Chain` (section 3,
parametrisation of appendix C): c_skip = d^2 / ((sigma - sigma_0)^2 + d^2) and c_out = d (sigma - sigma_0) /
sqrt(d^2 + sigma^2), where d is the deviation of the data and sigma_0 the chain's first noise: there f is y itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import Chain, at
from trilemma_bench.nets.mlp import MLP, MLPConfig, parse_as


class ConsistencyConfig(MLPConfig):
    """`deviation` is that of the data, in the units of the network."""

    deviation: float = Field(default=0.57, gt=0)


class Consistency(MLP):
    """(x_t float [N, D], t int64 [N]) -> x_0 float [N, D]."""

    config: ConsistencyConfig

    def __init__(self, config: ConsistencyConfig, chain: Chain) -> None:
        super().__init__(config, config.dimensions, config.dimensions)
        self.chain = chain

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        skip, out = self.coefficients(t, x_t)
        return skip * x_t / at(self.chain.alpha_bar.sqrt(), t, x_t) + out * self.run(x_t, t)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out at t [N], shaped to multiply `like` [N, D]."""
        d, sigma = self.config.deviation, at(self.chain.sigma, t, like)
        away = sigma - float(self.chain.sigma[0])
        return d**2 / (away**2 + d**2), d * away * torch.rsqrt(d**2 + sigma**2)


def build(config: Mapping[str, Any], chain: Chain) -> Consistency:
    """The network of a configuration, on a chain."""
    return Consistency(parse_as(ConsistencyConfig, config), chain)
