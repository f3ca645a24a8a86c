"""DDPM training: predict the noise, mean squared error (Ho et al. 2020, arXiv 2006.11239, algorithm 1).

The weights serve the samplers `ddpm` and `ddim`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from trilemma_bench.diffusion import Chain, at, ddim_pairs, linear_betas, predict_x0
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import unet
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Recipe, Step, Task, initialising


class DDPMRecipe(Recipe):
    """Hyperparameters of epsilon prediction; `loss_weight` 'min_snr' is Hang et al. 2023, arXiv 2303.09556."""

    unet: dict[str, Any]
    num_train_steps: int = 1000
    lr: float
    warmup_steps: int
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    loss_weight: Literal["simple", "min_snr"] = "simple"


RECIPES = {
    # Ho et al. 2020, appendix B: batch 128, 800k steps, Adam 2e-4, warm-up 5000, EMA .9999, flips, dropout 0.1.
    "paper": DDPMRecipe(
        batch=128, duration_kimg=102_400, ema=EmaSpec(decay=0.9999), flips=True,
        unet={**unet.CIFAR10_PAPER, "dropout": 0.1}, lr=2e-4, warmup_steps=5000,
    ),
    "cpu-small": DDPMRecipe(
        batch=64, duration_kimg=20_000, ema=EmaSpec(halflife_kimg=50, rampup=0.05), flips=True, bf16=True,
        channels_last=True, lr=6e-4, warmup_steps=300,
        unet={
            "sample_size": 16, "in_channels": 12, "out_channels": 12, "pixel_block": 2,
            "block_out_channels": [32, 96], "layers_per_block": 1, "attention_head_dim": 96,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "norm_num_groups": 16, "norm_eps": 1e-6, "downsample_padding": 0, "freq_shift": 1,
            "flip_sin_to_cos": False,
        },
    ),
}  # fmt: skip


class DDPMTask(Task):
    """Noise prediction in training."""

    recipe: DDPMRecipe
    averaged = ("eps",)

    def __init__(self, recipe: DDPMRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        with initialising(recipe.seed):
            net = unet.build(recipe.unet)
        self.networks = {"eps": net}
        self.optimizers = {
            "eps": torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        }
        self.config = {"unet": dict(recipe.unet), "num_train_steps": recipe.num_train_steps}
        block = int(recipe.unet.get("pixel_block", 1))
        size = int(recipe.unet["sample_size"]) * block
        self.image_shape = (int(recipe.unet["in_channels"]) // block**2, size, size)
        self.chain = Chain(linear_betas(recipe.num_train_steps))
        self.set_up()

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        recipe = self.recipe
        t = step.randint(len(self.chain), recipe.batch, self.device)
        noise = step.randn(recipe.batch, *images.shape[1:], device=self.device)
        x_t = self.chain.q_sample(images, t, noise)
        with self.autocast():
            predicted = self.networks["eps"](x_t, t)
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        if recipe.loss_weight == "min_snr":
            snr = self.chain.alpha_bar / (1 - self.chain.alpha_bar)
            errors = errors * at((5 / snr).clamp(max=1), t, errors)
        loss = errors.mean()
        self.update("eps", loss, clip=recipe.gradient_clip)
        return {"loss": loss.detach()}

    def rates(self, step: Step) -> dict[str, float]:
        return {"eps": self.recipe.lr * min(1.0, (step.number + 1) / max(self.recipe.warmup_steps, 1))}

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        """By DDIM in 50 quadratic steps: enough to look at, twenty times faster than the chain."""
        net = self.averages["eps"]
        x = torch.randn(num_images, *self.image_shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        steps = min(50, len(self.chain))
        for t, t_prev in ddim_pairs(len(self.chain), steps, "quadratic"):
            with self.autocast():
                eps = net(x, torch.full((num_images,), t, device=self.device)).float()
            before = float(self.chain.alpha_bar[t_prev]) if t_prev >= 0 else 1.0
            x0 = predict_x0(x, eps, float(self.chain.alpha_bar[t])).clamp(-1, 1)
            x = before**0.5 * x0 + (1 - before) ** 0.5 * eps
        return x

    @property
    def product(self) -> nn.Module:
        return unet.unet_of(self.averages["eps"])


TRAINER = TrainerKind(
    name="ddpm", recipes=RECIPES, task=DDPMTask, baseline="ddpm", source="Ho et al. 2020, arXiv 2006.11239"
)
