"""The classifier of MNIST's digits behind StackedMNIST's mode counts: cross-entropy on digits moved at random.

Each digit is turned, sheared, scaled and shifted a little (affine distortions: Simard et al. 2003, ICDAR), and the
averaged weights are kept. The weights serve the extractor `mnist_classifier`; `baselines/ship_classifier.py` puts them
there with their measured accuracy.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma_bench.errors import DataError
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import digit_cnn
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Recipe, Step, Task, cosine_lr, initialising, warm_up


class ClassifierRecipe(Recipe):
    """Hyperparameters; digits are moved uniformly within these bounds, both ways."""

    network: dict[str, Any] = {}
    lr: float
    warmup_steps: int
    weight_decay: float
    turn_degrees: float
    shear: float
    scale: float
    """Factor - 1."""
    shift_pixels: float


RECIPES = {
    "cpu-small": ClassifierRecipe(
        batch=128, duration_kimg=600, ema=EmaSpec(halflife_kimg=15, rampup=0.05), flips=False, bf16=True,
        channels_last=True, lr=2e-3, warmup_steps=200, weight_decay=0.01, turn_degrees=12, shear=0.15, scale=0.12,
        shift_pixels=2,
    ),
}  # fmt: skip


def moved(images: Tensor, uniform: Tensor, recipe: ClassifierRecipe) -> Tensor:
    """Each image under an affine map of its own, by `uniform` [B, 6] in [0, 1); black comes in at the edges.

    The numbers are those of the turn, the shear, the scales of both axes and the shifts of both.
    """
    amount = 2 * uniform - 1
    angle = amount[:, 0] * math.radians(recipe.turn_degrees)
    shear = amount[:, 1] * recipe.shear
    across, down = (1 + amount[:, 2:4] * recipe.scale).unbind(1)
    # Shifts in the units of `affine_grid`: 2 is the whole side.
    right, below = (amount[:, 4:] * 2 * recipe.shift_pixels / images.shape[-1]).unbind(1)
    cosine, sine = angle.cos(), angle.sin()
    first = torch.stack([across * cosine, across * (shear * cosine - sine), right], 1)
    second = torch.stack([down * sine, down * (shear * sine + cosine), below], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    # Zero is what is outside: black, and not grey, once images are in [0, 2].
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


class ClassifierTask(Task):
    """The classifier in training."""

    recipe: ClassifierRecipe
    config: dict[str, Any]
    averaged = ("classifier",)

    def __init__(self, recipe: ClassifierRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        with initialising(recipe.seed):
            network = digit_cnn.build(recipe.network)
        if compile and device.type == "cpu":
            network.write_for_compiler()
        self.networks = {"classifier": network}
        self.optimizers = {
            "classifier": torch.optim.AdamW(
                network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
            )
        }
        self.config = {"classifier": dict(recipe.network)}
        self.image_shape = (1, digit_cnn.SIDE, digit_cnn.SIDE)
        self._shown = torch.full((1, *self.image_shape), -1.0)
        self.set_up()

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        if labels is None:
            raise DataError("a classifier needs images with classes. Train it on --dataset mnist.")
        uniform = step.local(torch.rand(self.recipe.batch, 6, generator=step.rng)).to(self.device)
        self._shown = moved(images, uniform, self.recipe)
        with self.autocast():
            logits = self.networks["classifier"](self._shown)
        loss = F.cross_entropy(logits.float(), labels)
        self.update("classifier", loss)
        error = (logits.argmax(1) != labels).float().mean()
        return {"loss": loss.detach(), "error": error.detach()}

    def rates(self, step: Step) -> dict[str, float]:
        recipe = self.recipe
        warmth = warm_up(step, recipe.warmup_steps)
        return {"classifier": warmth * cosine_lr(recipe.lr, 0.0, step.images_seen, recipe.duration_kimg, epoch=1)}

    def grid(self, num_images: int) -> Tensor:
        """What the network was last shown: a classifier draws nothing."""
        return self._shown[:num_images]

    @property
    def product(self) -> nn.Module:
        return self.averages["classifier"]


TRAINER = TrainerKind(
    name="mnist_classifier", recipes=RECIPES, task=ClassifierTask, baseline=None,
    source="Simard, Steinkraus & Platt 2003, Best practices for convolutional neural networks (ICDAR)",
)  # fmt: skip
