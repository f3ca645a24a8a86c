"""Normalising flows on points: maximum likelihood (Kingma & Dhariwal 2018, arXiv 1807.03039)."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import flow
from trilemma_bench.training._loop import Step
from trilemma_bench.training._points import MLPRecipe, MLPTask, sizes

RECIPES = {
    "gaussians25-paper": MLPRecipe(
        mlp={"class": "flow", "width": 512, "depth": 3, "couplings": 8}, lr=5e-4,
        **sizes(members=1, batch=512, steps=50_000),
    ),
    "gaussians25-cpu": MLPRecipe(
        mlp={"class": "flow", "width": 32, "depth": 2, "frequencies": 3, "couplings": 8, "members": 5}, lr=2e-3,
        **sizes(members=5, batch=256, steps=3000),
    ),
}  # fmt: skip


class FlowTask(MLPTask):
    """The likelihood in training."""

    def build(self) -> flow.Flow:
        return flow.build(self.recipe.mlp)

    def loss(self, points: Tensor, step: Step) -> Tensor:
        density: Tensor = self.net.log_density(points).mean()
        return -density

    def draw(self, net: flow.Flow, num_points: int, rng: torch.Generator) -> Tensor:
        return net(torch.randn(num_points, net.config.dimensions, generator=rng))


TRAINER = TrainerKind(
    name="flow", recipes=RECIPES, task=FlowTask, baseline="flow",
    source="Dinh et al. 2017, arXiv 1605.08803; Kingma & Dhariwal 2018, arXiv 1807.03039",
)  # fmt: skip
