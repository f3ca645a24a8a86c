"""Discrete diffusion of points on a grid (Austin et al. 2021, D3PM, arXiv 2107.03006).

The loss is the authors' auxiliary one, the cross-entropy of p(x_0 | x_t) at every t (section 3.4), alone: its optimum
is that of the variational bound, and the chain of `DiscreteChain.reverse` is then exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma_bench.diffusion import DiscreteChain, draw_categorical, linear_betas
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import grid
from trilemma_bench.training._loop import Step
from trilemma_bench.training._points import MLPRecipe, MLPTask, sizes


class D3PMRecipe(MLPRecipe):
    """The chain: its length, its betas and the kind of its transitions."""

    num_train_steps: int = 50
    # The first transitions move by about a cell, the last ones make any cell as likely.
    betas: dict[str, float] = {"start": 1e-4, "end": 0.8, "power": 3.0}
    transition: str = "gaussian"


RECIPES = {
    "gaussians25-paper": D3PMRecipe(
        mlp={"class": "d3pm", "width": 512, "depth": 3, "bins": 256}, lr=5e-4,
        **sizes(members=1, batch=512, steps=50_000),
    ),
    "gaussians25-cpu": D3PMRecipe(
        mlp={"class": "d3pm", "width": 64, "depth": 3, "frequencies": 4, "time_dim": 32, "bins": 256, "members": 5},
        lr=2e-3, **sizes(members=5, batch=192, steps=3000),
    ),
}  # fmt: skip


class D3PMTask(MLPTask):
    """The posterior of cells in training."""

    recipe: D3PMRecipe

    def __init__(self, recipe: D3PMRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        self.bins = self.net.config.bins
        chain: dict[str, Any] = {"num_train_steps": recipe.num_train_steps, "betas": recipe.betas}
        self.config |= {**chain, "transition": recipe.transition, "bins": self.bins}
        betas = linear_betas(recipe.num_train_steps, **recipe.betas)
        self.chain = DiscreteChain(self.bins, betas, recipe.transition)
        self.cumulative = self.chain.from_data[1:].cumsum(2).float()

    def build(self) -> grid.Denoiser:
        return grid.build_denoiser(self.recipe.mlp)

    def loss(self, points: Tensor, step: Step) -> Tensor:
        x0 = grid.cells(points, self.bins)
        t = step.randint(len(self.chain), self.recipe.batch, self.device)
        drawn = step.local(torch.rand(self.recipe.batch, x0.shape[1], generator=step.rng)).to(self.device)
        rows = self.cumulative.to(self.device)[t[:, None], x0]
        x_t = torch.searchsorted(rows, drawn[..., None])[..., 0].clamp(max=self.bins - 1)
        logits = self.net(x_t, t)
        return F.cross_entropy(logits.flatten(0, 1), x0.flatten()) * x0.shape[1]

    def draw(self, net: grid.Denoiser, num_points: int, rng: torch.Generator) -> Tensor:
        x = torch.randint(self.bins, (num_points, net.config.dimensions), generator=rng)
        for later in range(len(self.chain), 0, -1):
            logits = net(x, torch.full((num_points,), later - 1)).double()
            found = self.chain.reverse(torch.softmax(logits, 2), x, later - 1, later)
            x, _ = draw_categorical(found, torch.rand(x.shape, generator=rng, dtype=torch.float64))
        return grid.coordinates(x, self.bins)


TRAINER = TrainerKind(
    name="d3pm", recipes=RECIPES, task=D3PMTask, baseline="d3pm", source="Austin et al. 2021, arXiv 2107.03006"
)
