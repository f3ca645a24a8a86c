"""A normalising flow of points: affine couplings between invertible linear maps.

Couplings: Dinh et al. 2017 (RealNVP, arXiv 1605.08803, eq. 7-8); linear maps that begin as rotations: Kingma & Dhariwal
2018 (Glow, arXiv 1807.03039, section 3.2). Each step is x = W y with y = [a, b e^{s(a)} + t(a)].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from trilemma_bench.errors import UsageError
from trilemma_bench.nets.mlp import MLP, MLPConfig, parse_as

LOG_2PI = math.log(2 * math.pi)


class FlowConfig(MLPConfig):
    """`couplings` steps; scales of a step are within e^-`bound` and e^`bound`."""

    couplings: int = Field(default=8, ge=1)
    bound: float = Field(default=2.0, gt=0)
    time_dim: int = 0


class Flow(nn.Module):
    """z ~ N(0, I) -> x, one to one."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        if config.dimensions < 2:
            raise UsageError("couplings need at least 2 dimensions: one half moves the other.")
        self.config = config
        self.known = config.dimensions // 2
        moved = config.dimensions - self.known
        half = config.model_copy(update={"dimensions": self.known})
        self.steps = nn.ModuleList([MLP(half, self.known, 2 * moved) for _ in range(config.couplings)])
        shape = (config.members, config.couplings, config.dimensions, config.dimensions)
        self.maps = nn.Parameter(torch.linalg.qr(torch.randn(shape)).Q)
        self.shifts = nn.Parameter(torch.zeros(*shape[:2], 1, config.dimensions))

    def forward(self, z: Tensor) -> Tensor:
        """float [N, D] -> points float [N, D]."""
        x = z
        for index in range(self.config.couplings):
            first, second = self._halves(x)
            log_scale, shift = self._coupling(index, first)
            x = torch.cat([first, second * log_scale.exp() + shift], 1)
            x = self._rows(self._members(x) @ self.maps[:, index] + self.shifts[:, index])
        return x

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Points [N, D] -> z [N, D] and log |det dz/dx| [N]."""
        z = x
        log_det = x.new_zeros(self.config.members, len(x) // self.config.members)
        for index in reversed(range(self.config.couplings)):
            centred = self._members(z) - self.shifts[:, index]
            z = self._rows(torch.linalg.solve(self.maps[:, index], centred, left=False))
            log_det = log_det - torch.linalg.slogdet(self.maps[:, index]).logabsdet[:, None]
            first, second = self._halves(z)
            log_scale, shift = self._coupling(index, first)
            z = torch.cat([first, (second - shift) * (-log_scale).exp()], 1)
            log_det = log_det - self._members(log_scale).sum(2)
        return z, log_det.reshape(-1)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), nats [N], by the change of variables."""
        z, log_det = self.inverse(x)
        return log_det - (z**2 + LOG_2PI).sum(1) / 2

    def _coupling(self, index: int, first: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.steps[index].run(first, None).chunk(2, 1)  # type: ignore[operator]
        return self.config.bound * torch.tanh(raw / self.config.bound), shift

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.known], x[:, self.known :]

    def _members(self, x: Tensor) -> Tensor:
        return x.reshape(self.config.members, -1, x.shape[1])

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[2])


def build(config: Mapping[str, Any]) -> Flow:
    """The flow of a configuration."""
    return Flow(parse_as(FlowConfig, config))
