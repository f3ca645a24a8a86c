"""Latent score models on points: an autoencoder, and a diffusion prior of its latents.

Vahdat, Kreis & Kautz 2021 (LSGM, arXiv 2106.05931). The autoencoder descends its own bound with a small weight on the
divergence, so that its latents tell what the point was and the prior has the work to do; then the prior learns to
predict the noise in them, every t alike (their w_un). They train both together and mix the prior with a standard normal
(section 3.2); one after the other is how latent diffusion does it (Rombach et al. 2022, arXiv 2112.10752). Here their
joint bound gave up one of two coordinates in most training seeds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trilemma_bench.diffusion import Chain, ddim_preview, linear_betas
from trilemma_bench.errors import UsageError
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import mlp, vae
from trilemma_bench.training._loop import Recipe, Step, Task, cosine_lr, initialising
from trilemma_bench.training._points import sizes

FIRST_GAIN, FIRST_LOG_DEVIATION = 10.0, -3.0
"""Of the posterior, before training: wider means and narrower deviations than a network begins with.

Where it tells little at first, the decoder may give up a coordinate for good.
"""


class LSGMRecipe(Recipe):
    """`kl_weight` is that of the divergence in the autoencoder's bound, `first` the part of the run that is its own."""

    autoencoder: dict[str, Any]
    prior: dict[str, Any]
    num_train_steps: int = 500
    betas: dict[str, float] = {"start": 1e-6, "end": 0.08, "power": 3.0}
    kl_weight: float = 0.1
    first: float = 0.35
    lr: float
    warmup_steps: int = 200
    scale: float = 5.0
    """Points of the data set are this times those of the networks."""


RECIPES = {
    "gaussians25-paper": LSGMRecipe(
        autoencoder={"class": "vae", "width": 512, "depth": 3, "nz": 2},
        prior={"class": "lsgm", "width": 512, "depth": 3}, lr=5e-4, **sizes(members=1, batch=512, steps=50_000),
    ),
    "gaussians25-cpu": LSGMRecipe(
        autoencoder={"class": "vae", "width": 64, "depth": 3, "frequencies": 4, "nz": 2, "members": 5},
        prior={"class": "lsgm", "width": 96, "depth": 3, "frequencies": 5, "members": 5},
        lr=3e-3, **sizes(members=5, batch=256, steps=8000),
    ),
}  # fmt: skip


class LSGMTask(Task):
    """Autoencoder and prior in training."""

    recipe: LSGMRecipe
    config: dict[str, Any]
    averaged = ("net",)

    def __init__(self, recipe: LSGMRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        size = vae.VAEConfig.model_validate({k: v for k, v in recipe.autoencoder.items() if k != "class"})
        if size.levels != 1:
            raise UsageError(f"lsgm: the prior is of one level of latents; got levels={size.levels}.")
        prior = {**recipe.prior, "dimensions": size.nz}
        with initialising(recipe.seed):
            autoencoder: Any = vae.build(recipe.autoencoder)
            last = autoencoder.encoders[0].last
            last.weight.data[..., : size.nz] *= FIRST_GAIN
            last.bias.data[..., size.nz :] += FIRST_LOG_DEVIATION
            net = nn.ModuleDict({"autoencoder": autoencoder, "prior": mlp.build(prior)})
        self.networks: dict[str, nn.Module] = {"net": net}
        self.optimizers = {"net": torch.optim.Adam(net.parameters(), lr=recipe.lr, fused=True)}
        self.chain = Chain(linear_betas(recipe.num_train_steps, **recipe.betas))
        self.config = {
            "autoencoder": dict(recipe.autoencoder), "prior": prior, "num_train_steps": recipe.num_train_steps,
            "betas": recipe.betas, "scale": recipe.scale,
        }  # fmt: skip
        self.nz, self.scale, self.image_shape = size.nz, recipe.scale, (size.dimensions,)
        self.set_up()

    def rates(self, step: Step) -> dict[str, float]:
        """It rises over `warmup_steps` and falls on a cosine to 1 % in each part of the run."""
        recipe, total = self.recipe, self.recipe.duration_kimg * 1000
        start, end = (0.0, self.first) if step.images_seen < self.first else (self.first, total)
        seen = int(step.images_seen - start)
        warmth = min(1.0, (seen / recipe.batch + 1) / max(recipe.warmup_steps, 1))
        return {"net": warmth * cosine_lr(recipe.lr, recipe.lr / 100, seen, (end - start) / 1000)}

    @property
    def first(self) -> float:
        """Points of the autoencoder's part of the run."""
        return self.recipe.first * self.recipe.duration_kimg * 1000

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        """The loss is that of the network whose turn it is."""
        recipe: LSGMRecipe = self.recipe
        draw = partial(step.randn, recipe.batch, self.nz, device=self.device)
        net: Any = self.networks["net"]
        noise = draw()
        if step.images_seen < self.first:
            loss = -net["autoencoder"].elbo(images, noise, recipe.kl_weight).mean()
        else:
            with torch.no_grad():
                (z,), _ = net["autoencoder"].encode(images, noise)
            eps, t = draw(), step.randint(len(self.chain), recipe.batch, self.device)
            loss = (net["prior"](self.chain.q_sample(z, t, eps), t) - eps).square().mean()
        # Who has no part in the loss has no gradient, and stands still.
        self.update("net", loss)
        return {"loss": loss.detach()}

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        """By DDIM in 50 steps."""
        normal = partial(torch.randn, num_images, generator=torch.Generator().manual_seed(0))
        net: Any = self.averages["net"]
        z = ddim_preview(self.chain, net["prior"], normal(self.nz).to(self.device), clip=False)
        points: Tensor = net["autoencoder"](z, normal(*self.image_shape).to(self.device))
        return points

    @property
    def product(self) -> nn.Module:
        return self.averages["net"]


TRAINER = TrainerKind(
    name="lsgm", recipes=RECIPES, task=LSGMTask, baseline="lsgm", source="Vahdat et al. 2021, arXiv 2106.05931"
)
