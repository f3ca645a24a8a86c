"""One-shot GANs on points: non-saturating with R1, spectral norm, or Wasserstein with a gradient penalty.

Goodfellow et al. 2014, arXiv 1406.2661 (non-saturating loss); Mescheder et al. 2018, arXiv 1801.04406 (R1); SNGAN:
Miyato et al. 2018, arXiv 1802.05957; WGAN-GP: Gulrajani et al. 2017, arXiv 1704.00028, algorithm 1. Diffusion as
augmentation: Xiao, Kreis & Vahdat 2022, arXiv 2112.07804, section 5.2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma_bench.diffusion import GanChain, at
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import mlp
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Recipe, Step, Task, cosine_lr, initialising


class GANRecipe(Recipe):
    """`penalty` is gamma of R1 for `ns`, lambda of the gradient penalty for `wgan_gp`, each step."""

    generator: dict[str, Any]
    discriminator: dict[str, Any]
    loss: Literal["ns", "wgan_gp"] = "ns"
    penalty: float = 0.0
    critic_steps: int = 1
    """Steps of the discriminator for one of the generator; each is a step of the run."""
    augment: int = 0
    """Real and generated points reach the discriminator as x_t of DDGAN's chain of so many steps, with t, the first of
    which is clean; 0 for points as they are."""
    lr: float
    scale: float
    """Points of the data set are this times those of the networks."""


def recipe(*, width: int, members: int, batch: int, steps: int, lr: float, frequencies: int = 0, **changes: Any) -> Any:
    """A recipe for `steps` steps of batches of `batch` points a member."""
    shared = {
        "class": "mlp", "width": width, "depth": 3, "members": members, "activation": "leaky_relu",
        "time_dim": 16 if changes.get("augment") else 0, "extent": changes.pop("extent", 1.0),
    }  # fmt: skip
    critic = {**shared, "frequencies": frequencies, "spectral_norm": changes.pop("spectral_norm", False)}
    settings = {
        "batch": members * batch, "duration_kimg": members * batch * steps / 1000, "ema": EmaSpec(decay=0.998),
        "flips": False, "lr": lr, "scale": 5.0, "penalty": 0.002, **changes,
    }  # fmt: skip
    return GANRecipe(generator={**shared, "nz": 4}, discriminator=critic, **settings)


SIZES: dict[str, dict[str, Any]] = {
    "paper": {"width": 512, "members": 1, "batch": 512, "steps": 50_000, "lr": 1e-4},
    "cpu": {"width": 64, "members": 5, "batch": 128, "steps": 10_000, "lr": 1e-3, "frequencies": 5},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {}, "-sn": {"spectral_norm": True, "penalty": 0.0},
    "-wgan-gp": {"loss": "wgan_gp", "penalty": 0.1, "critic_steps": 5},
    # Not scaled, as DDGAN's points are, so that the chain's noises are the same ones.
    "-augment": {"augment": 4, "scale": 1.0, "extent": 5.0, "penalty": 0.05},
}  # fmt: skip

RECIPES = {f"gaussians25-{size}{name}": recipe(**SIZES[size], **VARIANTS[name]) for size in SIZES for name in VARIANTS}


class GANTask(Task):
    """The two networks in training."""

    recipe: GANRecipe
    config: dict[str, Any]
    averaged = ("G", "D")

    def __init__(self, recipe: GANRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        with initialising(recipe.seed):
            self.networks: dict[str, nn.Module] = {
                "G": mlp.build_decoder(recipe.generator), "D": mlp.build_critic(recipe.discriminator),
            }  # fmt: skip
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=recipe.lr, betas=(0.5, 0.9), fused=True)
            for name, net in self.networks.items()
        }
        self.config = {
            "generator": dict(recipe.generator), "discriminator": dict(recipe.discriminator), "scale": recipe.scale,
        }  # fmt: skip
        self.chain = GanChain(recipe.augment) if recipe.augment else None
        self.scale = recipe.scale
        found = mlp.parse(recipe.generator)
        self.nz, self.image_shape = found.nz, (found.dimensions,)
        self.set_up()

    def rates(self, step: Step) -> dict[str, float]:
        recipe = self.recipe
        return dict.fromkeys("GD", cosine_lr(recipe.lr, recipe.lr / 100, step.images_seen, recipe.duration_kimg))

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        recipe = self.recipe
        with torch.no_grad():
            generated = self.networks["G"](step.randn(recipe.batch, self.nz, device=self.device))
        loss_d = self.discriminator_loss(*self._shown(images, generated, step), step)
        self.update("D", loss_d)
        losses = {"loss_d": loss_d.detach()}
        if step.number % recipe.critic_steps == 0:
            generated = self.networks["G"](step.randn(recipe.batch, self.nz, device=self.device))
            _, shown, t = self._shown(images, generated, step)
            loss_g = self.generator_loss(shown, t)
            self.update("G", loss_g)
            self.extra["loss_g"] = float(loss_g.detach())
        return {**losses, "loss_g": torch.tensor(self.extra["loss_g"])}

    def _shown(self, real: Tensor, generated: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor | None]:
        """What D sees of both, and the t that it is told."""
        if self.chain is None:
            return real, generated, None
        t = step.randint(self.recipe.augment, self.recipe.batch, self.device)
        a, s = at(self.chain.signal, t, real), at(self.chain.noise, t, real)
        noises = [step.randn(self.recipe.batch, *self.image_shape, device=self.device) for _ in range(2)]
        return a * real + s * noises[0], a * generated + s * noises[1], t

    def discriminator_loss(self, real: Tensor, generated: Tensor, t: Tensor | None, step: Step) -> Tensor:
        """The scalar that D descends, its penalty included."""
        wasserstein, net = self.recipe.loss == "wgan_gp", self.networks["D"]
        seen = real
        if wasserstein:
            part = step.local(torch.rand(self.recipe.batch, 1, generator=step.rng)).to(real.device)
            seen = part * real + (1 - part) * generated
        seen = seen.detach().requires_grad_(True)
        logits = net(seen, t)
        penalty = logits.new_zeros(())
        if self.recipe.penalty:
            (gradient,) = torch.autograd.grad(logits.sum(), seen, create_graph=True)
            norm = gradient.square().sum(1)
            penalty = ((norm + 1e-12).sqrt() - 1).square().mean() if wasserstein else norm.mean() / 2
        if wasserstein:
            return net(generated, t).mean() - net(real, t).mean() + self.recipe.penalty * penalty
        return F.softplus(-logits).mean() + F.softplus(net(generated, t)).mean() + self.recipe.penalty * penalty

    def generator_loss(self, generated: Tensor, t: Tensor | None) -> Tensor:
        """The scalar that G descends."""
        logits: Tensor = self.networks["D"](generated, t)
        return -logits.mean() if self.recipe.loss == "wgan_gp" else F.softplus(-logits).mean()

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        z = torch.randn(num_images, self.nz, generator=torch.Generator().manual_seed(0))
        points: Tensor = self.averages["G"](z.to(self.device))
        return points

    @property
    def product(self) -> nn.Module:
        return nn.ModuleDict({"generator": self.averages["G"], "discriminator": self.averages["D"]})


TRAINER = TrainerKind(
    name="gan", recipes=RECIPES, task=GANTask, baseline="gan", source="Goodfellow et al. 2014, arXiv 1406.2661"
)
