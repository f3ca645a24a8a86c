"""Variational autoencoders of points, with one level of latents or a hierarchy of them.

Kingma & Welling 2014 (arXiv 1312.6114); hierarchies with residual normal posteriors as in NVAE (Vahdat & Kautz 2020,
arXiv 2007.03898, section 3.2): where the prior is p(z_l | z_<l) = N(m, s^2), the posterior is
q(z_l | z_<l, x) = N(m + s dm, (s ds)^2), with dm and ds of x. The decoder's deviation is learnt for every z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from trilemma_bench.nets.mlp import MLP, MLPConfig, parse_as

LOG_2PI = math.log(2 * math.pi)


class VAEConfig(MLPConfig):
    """`nz` numbers in each of `levels` latents."""

    nz: int = Field(default=2, ge=1)
    levels: int = Field(default=1, ge=1)
    time_dim: int = 0


class VAE(nn.Module):
    """x = decoder(z_1, ..., z_L), z_1 ~ N(0, I), z_l ~ N(prior_l(z_<l))."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        size, levels = config.nz, range(config.levels)
        of_latents = lambda level: config.model_copy(update={"dimensions": level * size})  # noqa: E731
        self.encoders = nn.ModuleList([MLP(config, config.dimensions + level * size, 2 * size) for level in levels])
        self.priors = nn.ModuleList([MLP(of_latents(level), level * size, 2 * size) for level in levels[1:]])
        self.decoder = MLP(of_latents(config.levels), config.levels * size, 2 * config.dimensions)

    def forward(self, z: Tensor, noise: Tensor) -> Tensor:
        """N(0, I) of the latents float [N, L nz] and of the decoder float [N, D] -> points float [N, D]."""
        latents: list[Tensor] = []
        for level, part in enumerate(z.split(self.config.nz, 1)):
            mean, log_s = self.prior(level, latents, part)
            latents.append(mean + log_s.exp() * part)
        return self.decode(latents, noise)

    def decode(self, latents: list[Tensor], noise: Tensor) -> Tensor:
        """Latents [N, nz] each and N(0, I) float [N, D] -> points float [N, D]."""
        mean, log_s = self.likelihood(latents)
        return mean + log_s.exp() * noise

    def encode(self, x: Tensor, noise: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents [N, nz] each of points [N, D] with N(0, I) [N, L nz], and the divergences of all levels, nats [N]."""
        latents: list[Tensor] = []
        divergence = x.new_zeros(len(x))
        for level, part in enumerate(noise.split(self.config.nz, 1)):
            shift, log_ratio = two(self.encoders[level], x, *latents)
            mean, log_s = self.prior(level, latents, part)
            latents.append(mean + log_s.exp() * (shift + log_ratio.exp() * part))
            # KL(N(m + s dm, (s ds)^2) || N(m, s^2)) = (dm^2 + ds^2 - 1) / 2 - log ds
            divergence = divergence + ((shift**2 + (2 * log_ratio).exp() - 1) / 2 - log_ratio).sum(1)
        return latents, divergence

    def elbo(self, x: Tensor, noise: Tensor, weight: float = 1.0) -> Tensor:
        """An unbiased estimate of the evidence lower bound, nats [N], its divergences times `weight`.

        `x` is [N, D] and `noise` ~ N(0, I) [N, L nz].
        """
        latents, divergence = self.encode(x, noise)
        mean, log_s = self.likelihood(latents)
        error = (x - mean) * (-log_s).exp()
        return -(error**2 / 2 + log_s + LOG_2PI / 2).sum(1) - weight * divergence

    def prior(self, level: int, latents: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of z_l given the levels before it, [N, nz] each."""
        if level:
            return two(self.priors[level - 1], torch.cat(latents, 1))
        return torch.zeros_like(like), torch.zeros_like(like)

    def likelihood(self, latents: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of x given all latents, [N, D] each."""
        mean, log_s = two(self.decoder, torch.cat(latents, 1))
        # Narrower ones than a thousandth are no more than spikes of the likelihood.
        return mean, log_s.clamp(min=math.log(1e-3))


def two(net: Any, x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of what an `MLP` makes of x and further inputs: a mean and a log deviation."""
    first, second = net.run(x, None, *others).chunk(2, 1)
    return first, second


def build(config: Mapping[str, Any]) -> VAE:
    """The autoencoder of a configuration."""
    return VAE(parse_as(VAEConfig, config))
