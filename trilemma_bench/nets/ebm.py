"""Energies of noisy points, and the Langevin dynamics that recovers less noisy ones.

Gao, Song, Poole, Wu & Kingma 2021 (recovery likelihood, arXiv 2012.08125): with x_{t+1} = sqrt(1 - beta_t) x_t +
sqrt(beta_t) n and y = sqrt(1 - beta_t) x_t,

    p(y | x_{t+1}) = exp(f(y, t) - |x_{t+1} - y|^2 / (2 beta_t)) / Z(x_{t+1}),

where exp(f) is the density of y alone, not normalised (eq. 8). f is minus half the squared norm of a network's output
(as in Du et al. 2023, arXiv 2302.11552, section 4): what it must put out is then of the size of the noise.

The sines and cosines of the points are damped as by half the noise of a level (as in Barron et al. 2021, arXiv
2103.13415): with fast ones at much noise the energy grows too steep for the dynamics, and with slow ones alone at
little noise it learns next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import Chain, at
from trilemma_bench.nets.mlp import MLP, MLPConfig, parse_as

LARGEST_PUSH = 8.0
"""Of a gradient, in units of one over the noise of its level."""


class EnergyConfig(MLPConfig):
    """`features` numbers whose squared norm is the energy."""

    features: int = Field(default=4, ge=1)


class Energy(MLP):
    """The gradient of f: (y float [N, D], t int64 [N]) -> float32 [N, D]. A call is one gradient of the energy."""

    config: EnergyConfig

    def __init__(self, config: EnergyConfig, chain: Chain) -> None:
        count = 2 * config.frequencies * config.dimensions
        super().__init__(config.model_copy(update={"frequencies": 0}), config.dimensions + count, config.features)
        self.frequencies, self.chain = config.frequencies, chain

    def log_density(self, y: Tensor, t: Tensor) -> Tensor:
        """f, nats [N], up to a constant of each t."""
        beta = at(self.chain.betas, t, y)
        waves: list[Tensor] = []
        for index in range(self.frequencies):
            omega = math.pi / 2 * 2**index
            damping = torch.exp(-(omega**2) * beta / 8)
            waves += [damping * (omega * y).sin(), damping * (omega * y).cos()]
        return -self.run(y, t, *waves).square().sum(1) / 2

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        # Samplers draw in inference mode, of which torch records nothing.
        with torch.inference_mode(False), torch.enable_grad():
            y = y.detach().clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.log_density(y, t.clone()).sum(), y)
        return gradient.float()


def recover(
    score: Callable[[Tensor, Tensor], Tensor],
    chain: Chain,
    x_next: Tensor,
    t: Tensor,
    step_size: float,
    num_steps: int,
    noise: Callable[[], Tensor],
) -> Tensor:
    """y of p(y | x_{t+1}), about, by Langevin dynamics from x_{t+1} itself (Gao et al. 2021, eq. 9 and 17).

    y <- y + b^2 beta_t / 2 (grad f(y, t) + (x_{t+1} - y) / beta_t) + b sqrt(beta_t) n, `num_steps` times. Gradients of
    more than `LARGEST_PUSH` / sqrt(beta_t), many times those of a right energy, are cut to that size: a steep energy
    early in training would throw the points away for good.

    Args:
        score: (y [N, D], t [N]) -> grad f [N, D].
        chain: Of T steps; t is the transition from x_t to x_{t+1}.
        x_next: x_{t+1}, float [N, D].
        t: int64 [N].
        step_size: b.
        num_steps: K.
        noise: Gives N(0, I), float [N, D], anew at every call.
    """
    beta = at(chain.betas, t, x_next)
    y = x_next
    for _ in range(num_steps):
        push = beta.sqrt() * score(y, t)
        push = push * (LARGEST_PUSH / push.norm(dim=1, keepdim=True).clamp(min=LARGEST_PUSH))
        y = y + step_size**2 / 2 * (beta.sqrt() * push + x_next - y) + step_size * beta.sqrt() * noise()
    return y


def descend(
    score: Callable[[Tensor, Tensor], Tensor],
    chain: Chain,
    x: Tensor,
    step_size: float,
    num_steps: int,
    noise: Callable[[], Tensor],
) -> Tensor:
    """x_0 of x_T [N, D], level after level (Gao et al. 2021, algorithm 2); the arguments are those of `recover`."""
    for t in reversed(range(len(chain))):
        row = torch.full((len(x),), t, device=x.device)
        y = recover(score, chain, x, row, step_size, num_steps, noise)
        x = y / math.sqrt(1 - float(chain.betas[t]))
    return x


def build(config: Mapping[str, Any], chain: Chain) -> Energy:
    """The energy of a configuration, on a chain."""
    return Energy(parse_as(EnergyConfig, config), chain)
