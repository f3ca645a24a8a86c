"""Improved DDPM with learnt variances, and its classifier of noisy points; on points alone.

The denoiser's loss is L_simple + weight L_vlb (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 16), in which L_vlb moves
the variance alone; the classifier's is the cross-entropy of the class given x_t (Dhariwal & Nichol 2021, arXiv
2105.05233, section 4). The weights serve the sampler `adm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma_bench.diffusion import Chain, at, ddim_preview, linear_betas
from trilemma_bench.errors import TrainingError
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import mlp
from trilemma_bench.training._loop import Recipe, Step, Task, initialising
from trilemma_bench.training._points import sizes, warmed_cosine_lr


class ADMRecipe(Recipe):
    """Two networks, the chain, and the weight of the variational bound."""

    denoiser: dict[str, Any]
    classifier: dict[str, Any]
    # The chain of the DDPM recipes of points.
    num_train_steps: int = 500
    betas: dict[str, float] = {"start": 1e-6, "end": 0.08, "power": 3.0}
    bound_weight: float = 1e-3
    lr: float
    warmup_steps: int = 200
    scale: float = 5.0
    """Points of the data set are this times those of the networks."""


def _recipe(width: int, lr: float, *, frequencies: int = 0, members: int = 1, **settings: Any) -> ADMRecipe:
    shared = {"class": "mlp", "width": width, "depth": 3, "frequencies": frequencies, "members": members}
    return ADMRecipe(
        denoiser=shared, classifier={**shared, "width": width // 2, "depth": 2, "num_classes": 25}, lr=lr,
        **sizes(members=members, **settings),
    )  # fmt: skip


RECIPES = {
    "gaussians25-paper": _recipe(512, 1e-3, batch=512, steps=50_000),
    "gaussians25-cpu": _recipe(96, 4e-3, frequencies=5, members=5, batch=192, steps=3500),
}


class ADMTask(Task):
    """Denoiser and classifier in training."""

    recipe: ADMRecipe
    averaged = ("denoiser", "classifier")

    def __init__(self, recipe: ADMRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        with initialising(recipe.seed):
            self.networks: dict[str, nn.Module] = {
                "denoiser": mlp.build_variance(recipe.denoiser), "classifier": mlp.build_classifier(recipe.classifier),
            }  # fmt: skip
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=recipe.lr, fused=True) for name, net in self.networks.items()
        }
        self.config = {
            "denoiser": dict(recipe.denoiser), "classifier": dict(recipe.classifier), "betas": recipe.betas,
            "num_train_steps": recipe.num_train_steps, "scale": recipe.scale,
        }  # fmt: skip
        self.scale = recipe.scale
        self.image_shape = (mlp.parse(recipe.denoiser).dimensions,)
        self.chain = Chain(linear_betas(recipe.num_train_steps, **recipe.betas))
        self.set_up()

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        if labels is None:
            raise TrainingError("a classifier of noisy points needs classes, which this data set has not.")
        t = step.randint(len(self.chain), self.recipe.batch, self.device)
        noise = step.randn(self.recipe.batch, images.shape[1], device=self.device)
        x_t = self.chain.q_sample(images, t, noise)
        out = self.networks["denoiser"](x_t, t)
        eps, v = out.chunk(2, 1)
        simple = (eps - noise).square().mean()
        bound = bound_terms(self.chain, images, x_t, eps.detach(), v, t).mean() * len(self.chain)
        self.update("denoiser", simple + self.recipe.bound_weight * bound)
        entropy = F.cross_entropy(self.networks["classifier"](x_t, t), labels)
        self.update("classifier", entropy)
        return {"loss": simple.detach(), "bound": bound.detach(), "cross_entropy": entropy.detach()}

    def rates(self, step: Step) -> dict[str, float]:
        return dict.fromkeys(self.networks, warmed_cosine_lr(self.recipe, step))

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        """By DDIM in 50 steps, whatever the variances."""
        net = self.averages["denoiser"]
        x = torch.randn(num_images, *self.image_shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        return ddim_preview(self.chain, lambda x_t, t: net(x_t, t).chunk(2, 1)[0], x)

    @property
    def product(self) -> nn.Module:
        return nn.ModuleDict(self.averages)


def bound_terms(chain: Chain, x0: Tensor, x_t: Tensor, eps: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The terms of the variational bound at t [N], nats a coordinate [N, D], by predictions eps and v [N, D].

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and -log p(x_0 | x_1) at t = 0, with x_0 continuous.
    """
    low, high = (at(table, t, x_t) for table in chain.log_variances)
    log_variance = (v + 1) / 2 * high + (1 - v) / 2 * low
    predicted = (x_t - at((1 - chain.alpha_bar).sqrt(), t, x_t) * eps) / at(chain.alpha_bar.sqrt(), t, x_t)
    offset = at(chain.posterior_x0, t, x_t) * (predicted - x0)
    # At t = 0 the posterior is x_0 itself: what is left of the divergence is a density.
    first = (t == 0)[:, None]
    own = torch.where(first, 0.0, (low - log_variance).exp())
    constant = torch.where(first, torch.full_like(low, torch.pi * 2).log(), -1 - low)
    return (log_variance + own + constant + offset**2 * (-log_variance).exp()) / 2


TRAINER = TrainerKind(
    name="adm", recipes=RECIPES, task=ADMTask, baseline="adm",
    source="Nichol & Dhariwal 2021, arXiv 2102.09672; Dhariwal & Nichol 2021, arXiv 2105.05233",
)  # fmt: skip
