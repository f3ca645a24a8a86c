"""One-step distillation of DDIM on points (Luhman & Luhman 2021, arXiv 2101.02388), from the shipped DDPM.

The student learns by squared error the x_0 that the teacher's DDIM makes of x_T; no data are needed. The pairs are made
once for each member, at the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma_bench.kinds import TrainerKind
from trilemma_bench.training._loop import Step
from trilemma_bench.training._points import StudentTask, TeacherRecipe, sizes


class DistilledRecipe(TeacherRecipe):
    """`pool` pairs for each member."""

    pool: int = 16_384


RECIPES = {
    "gaussians25-paper": DistilledRecipe(
        mlp={"class": "distilled", "width": 512, "depth": 3}, lr=5e-4, pool=65_536,
        **sizes(members=1, batch=512, steps=50_000),
    ),
    "gaussians25-cpu": DistilledRecipe(
        mlp={"class": "distilled", "width": 96, "depth": 3, "frequencies": 3, "members": 5}, lr=2e-3,
        **sizes(members=5, batch=192, steps=3500),
    ),
}  # fmt: skip


class DistilledTask(StudentTask):
    """Regression from noise to what the teacher makes of it."""

    recipe: DistilledRecipe
    _pairs: tuple[Tensor, Tensor] | None = None

    def loss(self, points: Tensor, step: Step) -> Tensor:
        noise, made = self.pairs()
        members = self.net.config.members
        chosen = step.randint(self.recipe.pool, self.recipe.batch, self.device)
        # A batch is that of the first member, then that of the second; so is the pool.
        rows = chosen + self.recipe.pool * torch.arange(members, device=self.device).repeat_interleave(
            len(chosen) // members
        )
        last = torch.full((len(rows),), len(self.chain) - 1, device=self.device)
        return (self.net(noise[rows], last) - made[rows]).square().mean()

    def pairs(self) -> tuple[Tensor, Tensor]:
        """x_T and x_0, float [members pool, D] each, keyed by the seed alone."""
        if self._pairs is None:
            count = self.net.config.members * self.recipe.pool
            rng = torch.Generator().manual_seed(self.recipe.seed)
            noise = torch.randn(count, self.image_shape[0], generator=rng).to(self.device)
            self._pairs = noise, self.teacher.solve(noise)
        return self._pairs


TRAINER = TrainerKind(
    name="distilled", recipes=RECIPES, task=DistilledTask, baseline="distilled",
    source="Luhman & Luhman 2021, arXiv 2101.02388",
)  # fmt: skip
