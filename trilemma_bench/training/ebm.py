"""Energy-based models on points by recovery likelihood (Gao et al. 2021, arXiv 2012.08125, algorithm 1).

A point is noised to x_{t+1}; the energy of y = sqrt(1 - beta_t) x_t is lowered, and that of what short-run Langevin
dynamics recovers from x_{t+1} raised.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from trilemma_bench.diffusion import Chain, at, geometric_betas
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import ebm
from trilemma_bench.training._loop import Step
from trilemma_bench.training._points import MLPRecipe, MLPTask, sizes


class EBMRecipe(MLPRecipe):
    """`levels` of noise, from `sigma_min` to `sigma_max` times the signal; `langevin_steps` at each, of `step_size`.

    `energy_penalty` is the weight of the squared energies of both sides (Du & Mordatch 2019, arXiv 1903.08689, section
    3.3): without it energies grow steep until the dynamics overshoot, and then without end.
    """

    levels: int = 10
    sigma_min: float = 0.01
    sigma_max: float = 10.0
    langevin_steps: int = 12
    step_size: float = 0.3
    energy_penalty: float = 0.005


RECIPES = {
    "gaussians25-paper": EBMRecipe(
        mlp={"class": "ebm", "width": 512, "depth": 3, "frequencies": 8}, lr=2e-4,
        **sizes(members=1, batch=512, steps=50_000),
    ),
    "gaussians25-cpu": EBMRecipe(
        mlp={"class": "ebm", "width": 64, "depth": 2, "frequencies": 8, "members": 5}, lr=2e-3,
        **sizes(members=5, batch=128, steps=2200),
    ),
}  # fmt: skip


class EBMTask(MLPTask):
    """Recovery in training."""

    recipe: EBMRecipe

    def __init__(self, recipe: EBMRecipe, device: torch.device, *, compile: bool = False) -> None:
        self.chain = Chain(geometric_betas(recipe.levels, recipe.sigma_min, recipe.sigma_max))
        super().__init__(recipe, device, compile=compile)
        names = ("levels", "sigma_min", "sigma_max", "langevin_steps", "step_size")
        self.config |= {name: getattr(recipe, name) for name in names}

    def build(self) -> ebm.Energy:
        return ebm.build(self.recipe.mlp, self.chain)

    def loss(self, points: Tensor, step: Step) -> Tensor:
        recipe, chain = self.recipe, self.chain
        draw = partial(step.randn, recipe.batch, points.shape[1], device=self.device)
        t = step.randint(len(chain), recipe.batch, self.device)
        kept, beta = at((1 - chain.betas).sqrt(), t, points), at(chain.betas, t, points)
        before = chain.alpha_bar_prev
        y = kept * (at(before.sqrt(), t, points) * points + at((1 - before).sqrt(), t, points) * draw())
        x_next = y + beta.sqrt() * draw()
        recovered = ebm.recover(self.net, chain, x_next, t, recipe.step_size, recipe.langevin_steps, draw)
        given, found = self.net.log_density(y, t), self.net.log_density(recovered, t)
        return (found - given + recipe.energy_penalty * (found.square() + given.square())).mean()

    def draw(self, net: ebm.Energy, num_points: int, rng: torch.Generator) -> Tensor:
        normal = partial(torch.randn, num_points, net.config.dimensions, generator=rng)
        return ebm.descend(net, self.chain, normal(), self.recipe.step_size, self.recipe.langevin_steps, normal)


TRAINER = TrainerKind(
    name="ebm", recipes=RECIPES, task=EBMTask, baseline="ebm", source="Gao et al. 2021, arXiv 2012.08125"
)
