"""What the trainers of points with one network and one loss have in common: recipe, optimiser, grid."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from trilemma_bench.nets import mlp
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Recipe, Step, Task, cosine_lr, initialising


class MLPRecipe(Recipe):
    """A network of points under Adam: the learning rate rises over `warmup_steps` and falls on a cosine to 1 %."""

    mlp: dict[str, Any]
    lr: float
    warmup_steps: int = 200
    gradient_clip: float | None = None
    """Largest norm of each member's gradient, of the mean of the members' losses."""
    scale: float = 5.0
    """Points of the data set are this times those of the network."""


def sizes(*, members: int, batch: int, steps: int, decay: float = 0.998, **changes: Any) -> dict[str, Any]:
    """Settings of a recipe of `steps` steps with `batch` points for each of the members."""
    common = {"batch": members * batch, "duration_kimg": members * batch * steps / 1000, "flips": False}
    return {**common, "ema": EmaSpec(decay=decay), **changes}


class MLPTask(Task):
    """One network in training. A family gives the network, its loss, and what its sampler makes of noise."""

    recipe: Any
    averaged = ("net",)

    def __init__(self, recipe: MLPRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        with initialising(recipe.seed):
            net = self.build()
        self.networks: dict[str, nn.Module] = {"net": net}
        self.optimizers = {"net": torch.optim.Adam(net.parameters(), lr=recipe.lr, fused=True)}
        self.config: dict[str, Any] = {"mlp": dict(recipe.mlp), "scale": recipe.scale}
        self.scale = recipe.scale
        size: mlp.MLPConfig = net.config  # type: ignore[assignment]
        self.image_shape = (size.dimensions,)
        self.set_up()

    @abstractmethod
    def build(self) -> nn.Module:
        """The network of the recipe, whose `config` is an `mlp.MLPConfig`."""

    @abstractmethod
    def loss(self, points: Tensor, step: Step) -> Tensor:
        """The scalar to descend, of points float [B, D] in the units of the network."""

    @abstractmethod
    def draw(self, net: Any, num_points: int, rng: torch.Generator) -> Tensor:
        """Points of `net`, float [num_points, D]."""

    @property
    def net(self) -> Any:
        """The network in training."""
        return self.networks["net"]

    def done(self, step: Step) -> float:
        """The part of the run that is over, in [0, 1]."""
        return min(1.0, step.images_seen / (self.recipe.duration_kimg * 1000))

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        loss = self.loss(images, step)
        self.update("net", loss, clip=self.recipe.gradient_clip)
        return {"loss": loss.detach()}

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        """Each member by its own norm: they know nothing of each other, and their axis is the first."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
        factors = (norm / norms.clamp(min=1e-12)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factors.reshape(-1, *[1] * (gradient.ndim - 1)))

    def rates(self, step: Step) -> dict[str, float]:
        recipe = self.recipe
        warm = min(1.0, (step.number + 1) / max(recipe.warmup_steps, 1))
        return {"net": warm * cosine_lr(recipe.lr, recipe.lr / 100, step.images_seen, recipe.duration_kimg)}

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        return self.draw(self.averages["net"], num_images, torch.Generator().manual_seed(0)).to(self.device)

    @property
    def product(self) -> nn.Module:
        return self.averages["net"]
