"""StyleGAN2 training with adaptive discriminator augmentation (Karras et al. 2020, arXiv 2006.06676).

Non-saturating losses; R1 on real images every `r1_interval` batches, multiplied by the interval; the optimisers'
rates and betas are rescaled for their lazy intervals, as in the authors' `cifar` configuration. No path-length term.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets.ada import AdaController, augment, diffaugment
from trilemma_bench.nets.stylegan2 import Discriminator, Generator, build_discriminator, build_generator
from trilemma_bench.spec import Frozen
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Recipe, Step, Task, all_rows, initialising


class AdaSpec(Frozen):
    """The controller of the augmentation's probability; see `nets.ada.AdaController`."""

    target: float = 0.6
    interval: int = 4
    speed_kimg: float = 500
    pipeline: str = "bgc"


class StyleGAN2Recipe(Recipe):
    """Hyperparameters; one of `ada` and `diffaugment`, or neither."""

    generator: dict[str, Any]
    discriminator: dict[str, Any]
    lr: float
    betas: tuple[float, float] = (0.0, 0.99)
    r1_gamma: float
    g_interval: int = 4
    r1_interval: int = 16
    w_avg_beta: float = 0.995
    ada: AdaSpec | None = None
    diffaugment: Literal["", "color", "translation", "color,translation", "color,translation,cutout"] = ""


RECIPES = {
    "paper": StyleGAN2Recipe(
        batch=64, duration_kimg=100_000, ema=EmaSpec(halflife_kimg=500, rampup=0.05), flips=False,
        generator={"z_dim": 512, "w_dim": 512, "c_dim": 0, "img_resolution": 32, "img_channels": 3,
                   "mapping_layers": 2, "channel_base": 32768, "channel_max": 512, "conv_clamp": 256},
        discriminator={"c_dim": 0, "img_resolution": 32, "channel_base": 32768, "channel_max": 512,
                       "architecture": "orig", "mbstd_group_size": 32, "conv_clamp": 256},
        lr=0.0025, r1_gamma=0.01, ada=AdaSpec(),
    ),
    "cpu-small": StyleGAN2Recipe(
        batch=64, duration_kimg=20_000, ema=EmaSpec(halflife_kimg=20, rampup=0.05), flips=True, bf16=True,
        channels_last=True,
        generator={"z_dim": 128, "w_dim": 128, "c_dim": 0, "img_resolution": 32, "img_channels": 3,
                   "mapping_layers": 2, "channel_base": 1024, "channel_max": 96, "conv_clamp": 256},
        discriminator={"c_dim": 0, "img_resolution": 32, "channel_base": 1024, "channel_max": 96,
                       "architecture": "orig", "mbstd_group_size": 32, "conv_clamp": 256},
        lr=0.0025, r1_gamma=0.01,
    ),
    # Narrower, and a stronger penalty: digits are mostly black, where a critic soon finds a way to tell.
    "stackedmnist-cpu": StyleGAN2Recipe(
        batch=64, duration_kimg=1000, ema=EmaSpec(halflife_kimg=10, rampup=0.05), flips=False, bf16=True,
        channels_last=True,
        generator={"z_dim": 64, "w_dim": 64, "c_dim": 0, "img_resolution": 32, "img_channels": 3,
                   "mapping_layers": 2, "channel_base": 512, "channel_max": 64, "conv_clamp": 256},
        discriminator={"c_dim": 0, "img_resolution": 32, "channel_base": 512, "channel_max": 64,
                       "architecture": "orig", "mbstd_group_size": 32, "conv_clamp": 256},
        lr=0.0025, r1_gamma=0.1,
    ),
}  # fmt: skip


class StyleGAN2Task(Task):
    """The two networks in training."""

    recipe: StyleGAN2Recipe
    averaged = ("G",)

    def __init__(self, recipe: StyleGAN2Recipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        with initialising(recipe.seed):
            self.G: Generator = build_generator(recipe.generator)
            self.D: Discriminator = build_discriminator(recipe.discriminator)
        self.networks: dict[str, nn.Module] = {"G": self.G, "D": self.D}
        self.optimizers = {name: self._adam(name) for name in self.networks}
        self.config = {"generator": dict(recipe.generator)}
        self.image_shape = (self.G.config.img_channels, self.G.config.img_resolution, self.G.config.img_resolution)
        self.controller = None
        if recipe.ada:
            self.controller = AdaController(recipe.batch, recipe.ada.target, recipe.ada.interval, recipe.ada.speed_kimg)
        self.set_up()

    def _lazy_ratio(self, name: str) -> float:
        """What an optimiser's rate and betas are rescaled by for the steps that its regularisation takes."""
        interval = {"G": self.recipe.g_interval, "D": self.recipe.r1_interval}[name]
        return interval / (interval + 1)

    def _adam(self, name: str) -> torch.optim.Optimizer:
        ratio = self._lazy_ratio(name)
        first, second = self.recipe.betas
        return torch.optim.Adam(
            self.networks[name].parameters(), lr=self.recipe.lr * ratio, betas=(first**ratio, second**ratio),
            eps=1e-8, fused=True,
        )  # fmt: skip

    def rates(self, step: Step) -> dict[str, float]:
        return {name: self.recipe.lr * self._lazy_ratio(name) for name in self.networks}

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        c = self._one_hot(labels)
        loss_g = self._update_generator(c, step, images)
        loss_d, logits = self._update_discriminator(images, c, step)
        if step.number % self.recipe.r1_interval == 0:
            self._update_r1(images, c, step)
        if self.controller is not None:
            self.controller.update(all_rows(logits))
            self.extra["ada"] = self.controller.state_dict()
        return {"loss_d": loss_d.detach(), "loss_g": loss_g.detach()}

    def load_state(self, state: Any) -> None:
        super().load_state(state)
        if self.controller is not None and "ada" in self.extra:
            self.controller.load_state_dict(self.extra["ada"])

    def _update_generator(self, c: Tensor | None, step: Step, images: Tensor) -> Tensor:
        self.D.requires_grad_(False)
        with self.autocast():
            z = step.randn(self.recipe.batch, self.G.config.z_dim, device=self.device)
            generated = self.G(z, c, noise=self._noise(step), update_w_avg_beta=self.recipe.w_avg_beta)
            logits = self.D(self._augment(generated, step), c)
        loss = F.softplus(-logits.float()).mean()
        self.update("G", loss)
        self.D.requires_grad_(True)
        return loss

    def _update_discriminator(self, images: Tensor, c: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
        z = step.randn(self.recipe.batch, self.G.config.z_dim, device=self.device)
        with torch.no_grad(), self.autocast():
            generated = self.G(z, c, noise=self._noise(step), update_w_avg_beta=self.recipe.w_avg_beta)
        with self.autocast():
            fake = self.D(self._augment(generated.float(), step), c).float()
            real = self.D(self._augment(images, step), c).float()
        loss = F.softplus(fake).mean() + F.softplus(-real).mean()
        self.update("D", loss)
        return loss, real.detach()

    def _update_r1(self, images: Tensor, c: Tensor | None, step: Step) -> None:
        """In fp32 and not compiled: the penalty differentiates twice."""
        images = images.detach().requires_grad_(True)
        logits = self.D.forward(self._augment(images, step), c)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        penalty = self.recipe.r1_gamma / 2 * gradient.square().sum((1, 2, 3)).mean()
        self.update("D", penalty * self.recipe.r1_interval)

    def _noise(self, step: Step) -> list[Tensor]:
        shapes = self.G.synthesis.noise_shapes
        return [step.randn(self.recipe.batch, 1, *shape, device=self.device) for shape in shapes]

    def _augment(self, images: Tensor, step: Step) -> Tensor:
        part = (step.rank, step.world)
        if self.recipe.diffaugment:
            return diffaugment(images.float(), self.recipe.diffaugment, generator=step.rng, part=part)
        if self.controller is not None and self.recipe.ada and self.controller.p > 0:
            return augment(
                images.float(), self.controller.p, generator=step.rng, pipeline=self.recipe.ada.pipeline, part=part
            )
        return images

    def _one_hot(self, labels: Tensor | None) -> Tensor | None:
        if not self.G.config.c_dim or labels is None:
            return None
        return F.one_hot(labels, self.G.config.c_dim).float()

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        z = torch.randn(num_images, self.G.config.z_dim, generator=rng).to(self.device)
        c = None
        if self.G.config.c_dim:
            c = F.one_hot(torch.arange(num_images, device=self.device) % self.G.config.c_dim, self.G.config.c_dim)
        images: Tensor = self.averages["G"](z, None if c is None else c.float(), noise_mode="const")
        return images.clamp(-1, 1)

    @property
    def product(self) -> nn.Module:
        return self.averages["G"]


TRAINER = TrainerKind(
    name="stylegan2", recipes=RECIPES, task=StyleGAN2Task, baseline="stylegan2",
    source="Karras et al. 2020, arXiv 2006.06676",
)  # fmt: skip
