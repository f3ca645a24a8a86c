"""Consistency distillation on points (Song et al. 2023, arXiv 2303.01469, algorithm 2), from the shipped DDPM.

f(x_t, t) is moved towards the averaged network at (x_{t_prev}, t_prev), one step of the teacher's probability flow
further down; at the data it is the point itself. The distance is the pseudo-Huber one (Song & Dhariwal 2023, arXiv
2310.14189, section 3.3), sqrt(|d|^2 + c^2) - c: a squared one is that of the few points between two modes, which have
nowhere right to go. It is in the units of what the network adds (c_out), so that little noise counts as much as much
(as in Karras et al. 2022, arXiv 2206.00364, section 5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma_bench.kinds import TrainerKind
from trilemma_bench.training._loop import Step
from trilemma_bench.training._points import StudentTask, TeacherRecipe, sizes


class ConsistencyRecipe(TeacherRecipe):
    """`huber` is c of the distance, in the units of c_out, whose largest is the deviation of the data."""

    huber: float = 0.01


RECIPES = {
    "gaussians25-paper": ConsistencyRecipe(
        mlp={"class": "consistency", "width": 512, "depth": 3}, lr=5e-4,
        **sizes(members=1, batch=512, steps=50_000, decay=0.99),
    ),
    "gaussians25-cpu": ConsistencyRecipe(
        mlp={"class": "consistency", "width": 96, "depth": 3, "frequencies": 5, "members": 5}, lr=3e-3,
        # What is learnt of little noise goes up one level a few steps of the average: few levels, a short average.
        teacher_steps=18, **sizes(members=5, batch=192, steps=3500, decay=0.95),
    ),
}  # fmt: skip


class ConsistencyTask(StudentTask):
    """Neighbours of a trajectory brought together."""

    recipe: ConsistencyRecipe

    def loss(self, points: Tensor, step: Step) -> Tensor:
        recipe, pairs = self.recipe, torch.tensor(self.teacher.pairs, device=self.device)
        t, t_prev = pairs[step.randint(len(pairs), recipe.batch, self.device)].T
        noise = step.randn(recipe.batch, points.shape[1], device=self.device)
        x_t = self.chain.q_sample(points, t, noise)
        with torch.no_grad():
            before = self.teacher.step(x_t, t, t_prev)
            mapped = self.averages["net"](before, t_prev.clamp(min=0))
            target = torch.where((t_prev < 0)[:, None], before, mapped)
        _, out = self.net.coefficients(t, x_t)
        apart = ((self.net(x_t, t) - target) / out).square().sum(1)
        return ((apart + recipe.huber**2).sqrt() - recipe.huber).mean()


TRAINER = TrainerKind(
    name="consistency", recipes=RECIPES, task=ConsistencyTask, baseline="consistency",
    source="Song et al. 2023, arXiv 2303.01469",
)  # fmt: skip
