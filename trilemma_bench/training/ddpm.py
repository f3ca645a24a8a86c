"""DDPM training: predict the noise, mean squared error (Ho et al. 2020, arXiv 2006.11239, algorithm 1).

Or predict v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, arXiv 2202.00512, app. D): a narrow
network need not carry all the noise of x_t to its output, where an error of 7 % hides the image at most steps.
The weights serve the samplers `ddpm` and `ddim`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from trilemma_bench.diffusion import Chain, PredictionType, at, ddim_preview, linear_betas
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import mlp, unet
from trilemma_bench.nets.prediction import noise_predictor
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Recipe, Step, Task, cosine_lr, initialising, inverse_sqrt, warm_up


class DDPMRecipe(Recipe):
    """Hyperparameters of a denoising network; `loss_weight` 'min_snr' is Hang et al. 2023, arXiv 2303.09556."""

    unet: dict[str, Any]
    prediction_type: PredictionType = "epsilon"
    """What the network predicts, and what its squared error is of."""
    num_train_steps: int = 1000
    lr: float
    warmup_steps: int
    decay_kimg: float | None = None
    """From here on, in thousands of images, `lr` falls as one over the square root of the images seen (Karras et al.
    2024, arXiv 2312.02696, section 3): so a run need not know its end. None: constant."""
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    loss_weight: Literal["simple", "min_snr"] = "simple"
    log_sigma: tuple[float, float] | None = None
    """How t is drawn: uniformly (None), or so that log(sqrt(1 - alpha_bar) / sqrt(alpha_bar)), the noise's deviation in
    units of the image, is normal of this mean and deviation (Karras et al. 2022, arXiv 2206.00364, table 1: -1.2, 1.2):
    most steps are then spent where an image's details come to be."""


class PublishedRecipe(DDPMRecipe):
    """The same, begun from weights as the authors' program draws them: see `nets.unet.initialise_as_published`."""


class PointsRecipe(DDPMRecipe):
    """The same on points: an MLP, the learning rate on a cosine down to a hundredth."""

    unet: dict[str, Any] = {}
    mlp: dict[str, Any]
    betas: dict[str, float]
    scale: float
    """Points of the data set are this times those of the network."""


_POINTS: dict[str, Any] = {
    "flips": False, "scale": 5.0,
    # The first noise, 0.001, is well below a mode's deviation of 0.01, and enough steps follow around it: the optimal
    # network then makes modes of 1.03 times their width. The linear schedule makes 1.13, and 0.84 from 1e-4 on.
    "num_train_steps": 500, "betas": {"start": 1e-6, "end": 0.08, "power": 3.0},
    # Members share no norm: the gradient is not clipped.
    "gradient_clip": 1e9,
}  # fmt: skip

# Where there is time for some hundred thousand images only: small batches, for more steps.
_FEW_IMAGES: dict[str, Any] = {
    "prediction_type": "v_prediction", "batch": 16, "warmup_steps": 200,
    "bf16": True, "channels_last": True,
}  # fmt: skip
_UNET_64: dict[str, Any] = {
    "sample_size": 16, "in_channels": 12, "out_channels": 12, "pixel_block": 2,
    "block_out_channels": [64, 128], "layers_per_block": 1, "attention_head_dim": 128,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 16, "norm_eps": 1e-6, "downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False,
}  # fmt: skip

RECIPES = {
    # Ho et al. 2020, appendix B: batch 128, 800k steps, Adam 2e-4, warm-up 5000, EMA .9999, flips, dropout 0.1.
    "paper": PublishedRecipe(
        batch=128, duration_kimg=102_400, ema=EmaSpec(decay=0.9999), flips=True,
        unet={**unet.CIFAR10_PAPER, "dropout": 0.1}, lr=2e-4, warmup_steps=5000,
    ),
    "cpu-small": DDPMRecipe(
        duration_kimg=20_000, flips=True, lr=1.5e-3, decay_kimg=50, unet=_UNET_64, log_sigma=(-1.2, 1.2),
        ema=EmaSpec(halflife_kimg=100, rampup=0.1, every=4), **_FEW_IMAGES,
    ),
    "stackedmnist-cpu": DDPMRecipe(
        duration_kimg=2000, flips=False, lr=2e-3, decay_kimg=30, unet=_UNET_64,
        ema=EmaSpec(halflife_kimg=100, rampup=0.1), **_FEW_IMAGES,
    ),
    # Xiao et al. 2022: three layers of 512, batch 512, 50k iterations.
    "gaussians25-paper": PointsRecipe(
        batch=512, duration_kimg=25_600, ema=EmaSpec(decay=0.999), lr=1e-3, warmup_steps=500,
        mlp={"width": 512, "depth": 3}, **_POINTS,
    ),
    "gaussians25-cpu": PointsRecipe(
        batch=5 * 256, duration_kimg=5 * 256 * 6, ema=EmaSpec(decay=0.998), lr=4e-3, warmup_steps=200,
        mlp={"width": 96, "depth": 3, "frequencies": 5, "members": 5}, **_POINTS,
    ),
}  # fmt: skip


class DDPMTask(Task):
    """Noise prediction in training."""

    recipe: DDPMRecipe
    config: dict[str, Any]
    averaged = ("eps",)

    def __init__(self, recipe: DDPMRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        with initialising(recipe.seed):
            net = mlp.build(recipe.mlp) if isinstance(recipe, PointsRecipe) else unet.build(recipe.unet)
            if isinstance(recipe, PublishedRecipe):
                unet.initialise_as_published(net)
        if compile and device.type == "cpu":
            unet.write_for_compiler(net)
        self.networks = {"eps": net}
        self.optimizers = {
            "eps": torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        }
        betas: dict[str, float] = {}
        if isinstance(recipe, PointsRecipe):
            betas, self.scale = recipe.betas, recipe.scale
            self.config = {"mlp": dict(recipe.mlp), "betas": betas, "scale": recipe.scale}
            self.image_shape = (mlp.parse(recipe.mlp).dimensions,)
        else:
            self.config = {"unet": dict(recipe.unet)}
            block = int(recipe.unet.get("pixel_block", 1))
            size = int(recipe.unet["sample_size"]) * block
            self.image_shape = (int(recipe.unet["in_channels"]) // block**2, size, size)
        self.config |= {"num_train_steps": recipe.num_train_steps}
        if recipe.prediction_type != "epsilon":
            self.config["prediction_type"] = recipe.prediction_type
        self.chain = Chain(linear_betas(recipe.num_train_steps, **betas))
        self.set_up()

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        recipe = self.recipe
        t = self._timesteps(step)
        noise = step.randn(recipe.batch, *images.shape[1:], device=self.device)
        x_t = self.chain.q_sample(images, t, noise)
        with self.autocast():
            predicted = self.networks["eps"](x_t, t)
        target = noise if recipe.prediction_type == "epsilon" else self.chain.v_of(images, noise, t)
        errors = (predicted.float() - target).square().mean(tuple(range(1, noise.ndim)))
        if recipe.loss_weight == "min_snr":
            snr = self.chain.alpha_bar / (1 - self.chain.alpha_bar)
            # A unit of error in x_0 counts snr in the noise, snr + 1 in v; here min(snr, 5) of it counts.
            counts = snr if recipe.prediction_type == "epsilon" else snr + 1
            errors = errors * at(snr.clamp(max=5) / counts, t, errors)
        loss = errors.mean()
        self.update("eps", loss, clip=recipe.gradient_clip)
        return {"loss": loss.detach()}

    def _timesteps(self, step: Step) -> Tensor:
        """Which t each image of the batch is noised to, [batch] int64."""
        recipe = self.recipe
        if recipe.log_sigma is None:
            return step.randint(len(self.chain), recipe.batch, self.device)
        mean, deviation = recipe.log_sigma
        drawn = (mean + deviation * step.randn(recipe.batch, device=self.device)).exp()
        sigma = self.chain.sigma.to(self.device, drawn.dtype)
        return torch.searchsorted(sigma, drawn).clamp(max=len(self.chain) - 1)

    def rates(self, step: Step) -> dict[str, float]:
        recipe = self.recipe
        lr = recipe.lr * warm_up(step, recipe.warmup_steps)
        if recipe.decay_kimg is not None:
            lr *= inverse_sqrt(step, recipe.decay_kimg)
        if isinstance(recipe, PointsRecipe):
            lr *= cosine_lr(1.0, 0.01, step.images_seen, recipe.duration_kimg)
        return {"eps": lr}

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        """By DDIM in 50 steps, twenty times faster than the chain."""
        net = noise_predictor(self.averages["eps"], self.recipe.prediction_type, self.chain)
        x = torch.randn(num_images, *self.image_shape, generator=torch.Generator().manual_seed(0)).to(self.device)

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            with self.autocast():
                eps: Tensor = net(x_t, t)
            return eps.float()

        return ddim_preview(self.chain, predict, x)

    @property
    def product(self) -> nn.Module:
        average = self.averages["eps"]
        return average if isinstance(self.recipe, PointsRecipe) else unet.unet_of(average)


TRAINER = TrainerKind(
    name="ddpm", recipes=RECIPES, task=DDPMTask, baseline="ddpm", source="Ho et al. 2020, arXiv 2006.11239"
)
