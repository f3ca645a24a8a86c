"""Autoregressive networks of points on a grid: maximum likelihood, every coordinate given those before it.

Of PixelCNN's family: van den Oord et al. 2016, arXiv 1601.06759.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma_bench.diffusion import draw_categorical
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import grid
from trilemma_bench.training._loop import Step
from trilemma_bench.training._points import MLPRecipe, MLPTask, sizes

RECIPES = {
    "gaussians25-paper": MLPRecipe(
        mlp={"class": "autoregressive", "width": 512, "depth": 3, "bins": 256}, lr=5e-4,
        **sizes(members=1, batch=512, steps=50_000),
    ),
    "gaussians25-cpu": MLPRecipe(
        mlp={"class": "autoregressive", "width": 48, "depth": 2, "frequencies": 4, "time_dim": 16, "bins": 256,
             "members": 5}, lr=2e-3,
        **sizes(members=5, batch=256, steps=3000),
    ),
}  # fmt: skip


class AutoregressiveTask(MLPTask):
    """The likelihood of cells in training."""

    def __init__(self, recipe: MLPRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        self.bins = self.config["bins"] = self.net.config.bins

    def build(self) -> grid.Autoregressive:
        return grid.build_autoregressive(self.recipe.mlp)

    def loss(self, points: Tensor, step: Step) -> Tensor:
        x = grid.cells(points, self.bins)
        parts = [F.cross_entropy(self.net(x, torch.full_like(x[:, 0], d)), x[:, d]) for d in range(x.shape[1])]
        return torch.stack(parts).sum()

    def draw(self, net: grid.Autoregressive, num_points: int, rng: torch.Generator) -> Tensor:
        x = torch.zeros(num_points, net.config.dimensions, dtype=torch.int64)
        for d in range(x.shape[1]):
            probabilities = torch.softmax(net(x, torch.full_like(x[:, 0], d)), 1)
            x[:, d], _ = draw_categorical(probabilities, torch.rand(num_points, generator=rng))
        return grid.coordinates(x, self.bins)


TRAINER = TrainerKind(
    name="autoregressive", recipes=RECIPES, task=AutoregressiveTask, baseline="autoregressive",
    source="van den Oord et al. 2016, arXiv 1601.06759",
)  # fmt: skip
