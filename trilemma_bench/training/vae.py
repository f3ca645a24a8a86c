"""Variational autoencoders on points: the evidence lower bound, its divergences warmed up.

Kingma & Welling 2014 (arXiv 1312.6114); the warm-up is that of Sønderby et al. 2016 (arXiv 1602.02282) and NVAE
(Vahdat & Kautz 2020, arXiv 2007.03898), without it the latents of a hierarchy stay unused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import vae
from trilemma_bench.training._loop import Step
from trilemma_bench.training._points import MLPRecipe, MLPTask, sizes


class VAERecipe(MLPRecipe):
    """`warmup_kl` is the part of the run over which the weight of the divergences rises from 0 to 1."""

    warmup_kl: float = 0.3


_CPU: dict[str, Any] = sizes(members=5, batch=256, steps=4000, lr=3e-3)
_SMALL: dict[str, Any] = {"class": "vae", "width": 64, "depth": 3, "frequencies": 4, "nz": 2, "members": 5}
_PAPER: dict[str, Any] = sizes(members=1, batch=512, steps=50_000, lr=1e-3)
_LARGE: dict[str, Any] = {"class": "vae", "width": 512, "depth": 3, "nz": 2}

RECIPES = {
    "gaussians25-paper": VAERecipe(mlp=_LARGE, **_PAPER),
    "gaussians25-paper-levels2": VAERecipe(mlp={**_LARGE, "levels": 2}, **_PAPER),
    "gaussians25-cpu": VAERecipe(mlp=_SMALL, **_CPU),
    "gaussians25-cpu-levels2": VAERecipe(mlp={**_SMALL, "levels": 2}, **_CPU),
}


class VAETask(MLPTask):
    """The bound in training."""

    def build(self) -> vae.VAE:
        return vae.build(self.recipe.mlp)

    def loss(self, points: Tensor, step: Step) -> Tensor:
        config = self.net.config
        noise = step.randn(self.recipe.batch, config.levels * config.nz, device=self.device)
        weight = min(1.0, self.done(step) / max(self.recipe.warmup_kl, 1e-9))
        bound: Tensor = self.net.elbo(points, noise, weight).mean()
        return -bound

    def draw(self, net: vae.VAE, num_points: int, rng: torch.Generator) -> Tensor:
        z = torch.randn(num_points, net.config.levels * net.config.nz, generator=rng)
        return net(z, torch.randn(num_points, net.config.dimensions, generator=rng))


TRAINER = TrainerKind(
    name="vae", recipes=RECIPES, task=VAETask, baseline="vae",
    source="Kingma & Welling 2014, arXiv 1312.6114; Vahdat & Kautz 2020, arXiv 2007.03898",
)  # fmt: skip
