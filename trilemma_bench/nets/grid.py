"""Networks of points on a grid: each coordinate in [-1, 1] is one of `bins` equal cells, 0..bins-1.

The autoregressive one is of PixelCNN's family (van den Oord et al. 2016, arXiv 1601.06759): coordinate after
coordinate, each as one of the cells. The denoiser is that of D3PM (Austin et al. 2021, arXiv 2107.03006): p(x_0 | x_t).
The optimum of both is a closed form for a mixture of Gaussians with the same deviation in every direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from trilemma_bench.diffusion import DiscreteChain
from trilemma_bench.nets.mlp import MLP, MLPConfig, parse_as


class GridConfig(MLPConfig):
    """`bins` cells a coordinate."""

    bins: int = Field(default=256, ge=2)


def cells(x: Tensor, bins: int) -> Tensor:
    """int64 cells of coordinates; what is outside of [-1, 1] is in the outermost ones."""
    return ((x + 1) * (bins / 2)).floor().long().clamp(0, bins - 1)


def coordinates(cell: Tensor, bins: int, place: Tensor | float = 0.5) -> Tensor:
    """Float coordinates of int64 cells, at `place` in [0, 1] between their edges."""
    return (cell + place) * (2 / bins) - 1


class Autoregressive(MLP):
    """(cells int64 [N, D], d int64 [N]) -> logits [N, bins] of coordinate d; those from d on are not looked at."""

    config: GridConfig

    def __init__(self, config: GridConfig) -> None:
        super().__init__(config, config.dimensions, config.bins)

    def forward(self, x: Tensor, d: Tensor) -> Tensor:
        seen = torch.arange(x.shape[1], device=x.device) < d[:, None]
        return self.run(coordinates(x, self.config.bins) * seen, d)


class Denoiser(MLP):
    """(x_t cells int64 [N, D], t int64 [N]) -> logits [N, D, bins] of x_0."""

    config: GridConfig

    def __init__(self, config: GridConfig) -> None:
        super().__init__(config, config.dimensions, config.dimensions * config.bins)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.run(coordinates(x_t, self.config.bins), t).unflatten(1, (-1, self.config.bins))


class GridMixture(nn.Module):
    """The probabilities of the cells for each Gaussian of a mixture, coordinate by coordinate; float64 [D, M, bins].

    Args:
        config: Of the weights: `bins`, and under `mixture` centres [M][D] and sigma in the units of the networks.
    """

    masses: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        mixture, bins = config["mixture"], int(config["bins"])
        edges = coordinates(torch.arange(1, bins, dtype=torch.float64), bins, 0.0)
        centres = torch.tensor(mixture["centres"], dtype=torch.float64).T[..., None]
        below = torch.special.ndtr((edges - centres) / float(mixture["sigma"]))
        ends = torch.zeros_like(below[..., :1])
        self.register_buffer("masses", torch.cat([ends, below, ends + 1], 2).diff(dim=2), persistent=False)


class ExactAutoregressive(GridMixture):
    """log p(x_d | x_<d), float64 [N, bins], as `Autoregressive`."""

    def forward(self, x: Tensor, d: Tensor) -> Tensor:
        # [N, D, M] -> [N, M]: what the coordinates before d say of the mode.
        of_mode = torch.stack([mass[:, column].T for mass, column in zip(self.masses, x.T, strict=True)], 1)
        seen = torch.arange(x.shape[1], device=x.device)[:, None] < d[:, None, None]
        weights = torch.where(seen, of_mode, 1.0).prod(1)
        joint = (weights[:, :, None] * self.masses[d]).sum(1)
        return (joint / joint.sum(1, keepdim=True)).clamp(min=1e-300).log()


class ExactDenoiser(GridMixture):
    """log p(x_0 | x_t) of each coordinate, float64 [N, D, bins], as `Denoiser`."""

    from_data: Tensor

    def __init__(self, config: Mapping[str, Any], chain: DiscreteChain) -> None:
        super().__init__(config)
        self.register_buffer("from_data", chain.from_data, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        found = torch.empty(*x_t.shape, self.masses.shape[2], dtype=torch.float64, device=x_t.device)
        for step in t.unique():
            rows = t == step
            found[rows] = self._at(x_t[rows], self.from_data[step + 1])
        return found

    def _at(self, x_t: Tensor, from_data: Tensor) -> Tensor:
        # [D, N, M]: how likely each coordinate is from a mode, and all but that one.
        of_mode = torch.stack(
            [(mass @ from_data)[:, column].T for mass, column in zip(self.masses, x_t.T, strict=True)]
        )
        others = torch.stack([of_mode[torch.arange(len(of_mode)) != d].prod(0) for d in range(len(of_mode))])
        found = from_data.T[x_t] * (others @ self.masses).transpose(0, 1)
        return (found / found.sum(2, keepdim=True)).clamp(min=1e-300).log()


def parse(config: Mapping[str, Any]) -> GridConfig:
    """A checked configuration."""
    return parse_as(GridConfig, config)


def build_autoregressive(config: Mapping[str, Any]) -> Autoregressive:
    """The autoregressive network of a configuration."""
    return Autoregressive(parse(config))


def build_denoiser(config: Mapping[str, Any]) -> Denoiser:
    """The denoiser of a configuration."""
    return Denoiser(parse(config))
