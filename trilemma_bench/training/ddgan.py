"""Denoising diffusion GAN training (Xiao, Kreis & Vahdat 2022, arXiv 2112.07804, section 4).

The discriminator tells x_t ~ q(x_t | x_0) from x_t ~ q(x_t | x_{t+1}, G(x_{t+1}, t, z)), both given x_{t+1};
non-saturating losses, and the R1 penalty on the real, less noisy image alone. A relativistic loss is an option.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma_bench.diffusion import GanChain, at
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.nets import mlp, ncsnpp
from trilemma_bench.nets.pixel_blocks import in_pixel_blocks, inside
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import WARM_UP_STEPS, Recipe, Step, Task, cosine_lr, initialising, warm_up


class DDGANRecipe(Recipe):
    """Hyperparameters. R1 is added every `r1_interval` steps and, as released, not multiplied by the interval.

    `denoising` is the weight of the generator's mean squared error against what it predicts (x_0) at the start; it
    falls linearly to `denoising_end` over `denoising_kimg`. The paper has no such term; it saves a short run the time
    in which neither network knows anything (as super-resolution GANs begin by regression, Ledig et al. 2017, arXiv
    1609.04802). `regression_kimg` goes further: for so long the generator learns by the squared error alone, at a rate
    that falls from `lr_regression` to `lr_g`, and the critic not at all. For `critic_kimg` after it the critic learns
    alone, and over as many images again the generator's rate rises from nothing to `lr_g`: a generator that starts
    beside a critic that knows nothing runs away from it.
    """

    generator: dict[str, Any]
    discriminator: dict[str, Any]
    pixel_block: int = 1
    num_timesteps: int = 4
    lr_g: float
    lr_d: float
    betas: tuple[float, float] = (0.5, 0.9)
    loss: Literal["non_saturating", "relativistic"] = "non_saturating"
    """`relativistic` compares the logits of the real and of the generated x_t of one x_{t+1}, and adds R2, the penalty
    on the generated image, to R1 (Jolicoeur-Martineau 2018, arXiv 1807.00734; Huang et al. 2024, arXiv 2501.05441): a
    swing that all logits have in common costs nothing."""
    paired_noise: bool = False
    """The real x_t has the posterior noise of the generated one: q(x_t | x_{t+1}, x_0) with one draw for both. Each has
    its law, but the two differ by their x_0 alone, where else a relativistic loss compares two draws of noise."""
    critic_steps: int = 1
    """Steps of the discriminator for one of the generator; each is a step of the run."""
    lr_end: float = 1e-5
    cosine: bool = True
    """Learning rates fall on a cosine to `lr_end` over the duration, once an epoch of 50,000 images."""
    r1_gamma: float
    r1_interval: int
    denoising: float = 0.0
    denoising_end: float = 0.0
    denoising_kimg: float = 0.0
    denoising_last: float | None = None
    """Weight of the squared error at t = 0, where no step follows that could hide what is wrong; None: as elsewhere."""
    regression_kimg: float = 0.0
    lr_regression: float = 0.0
    critic_kimg: float = 0.0

    @model_validator(mode="after")
    def _fades_over_some_time(self) -> DDGANRecipe:
        if self.denoising != self.denoising_end and self.denoising_kimg <= 0:
            raise ValueError(
                f"denoising goes from {self.denoising} to {self.denoising_end} over denoising_kimg, which must be more "
                f"than 0; got {self.denoising_kimg}"
            )
        return self


class PointsRecipe(DDGANRecipe):
    """The same on points, with MLPs; `predict` of the generator is what its output stands for (`GanChain.previous`)."""

    scale: float
    """Points of the data set are this times those of the networks."""


def points_recipe(
    *,
    num_timesteps: int = 4,
    width: int,
    members: int,
    batch: int,
    steps: int,
    lr: float,
    frequencies: int = 0,
    denoising: float = 0.0,
    fade: float = 0.5,
    r1_gamma: float = 0.05,
    **network: Any,
) -> PointsRecipe:
    """A recipe for `steps` steps of batches of `batch` points a member; `network` goes to the generator.

    Points are not scaled: the schedule's last step but one then tells a point's mode from its neighbours, which lie two
    apart. Within [-1, 1] every step would be a GAN of all modes. A squared error of weight `denoising` is gone after
    the share `fade` of the run.
    """
    shared = {"class": "mlp", "width": width, "members": members, "time_dim": 16, "extent": 5.0}
    return PointsRecipe(
        batch=members * batch, duration_kimg=members * batch * steps / 1000, ema=EmaSpec(decay=0.998), flips=False,
        generator={**shared, "depth": 3, "nz": 4, "activation": "leaky_relu", "frequencies": frequencies,
            **network},
        discriminator={**shared, "depth": 3, "activation": "leaky_relu", "frequencies": frequencies},
        num_timesteps=num_timesteps, lr_g=lr, lr_d=lr, r1_gamma=r1_gamma, r1_interval=4, scale=1.0,
        betas=(0.5, 0.99) if denoising else (0.5, 0.9), denoising=denoising,
        denoising_kimg=fade * members * batch * steps / 1000,
    )  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "": {}, "-T1": {"num_timesteps": 1}, "-T2": {"num_timesteps": 2}, "-T8": {"num_timesteps": 8},
    "-no-latent": {"nz": 0}, "-direct": {"predict": "direct"}, "-eps": {"predict": "eps"},
}  # fmt: skip
"""Numbers of steps, and the ablations of Xiao et al. 2022, table 2: no latent variable, direct denoising, noise."""

PAPER: dict[str, Any] = {"width": 512, "members": 1, "batch": 512, "steps": 50_000, "lr": 1e-4}
CPU: dict[str, Any] = {
    "width": 64, "members": 5, "batch": 128, "steps": 6000, "lr": 2.5e-3, "frequencies": 5, "denoising": 2.0,
    "fade": 0.25,
}  # fmt: skip
CPU_ALONE: dict[str, dict[str, Any]] = {
    # Each of two steps has nearly all modes to choose from: with the others' batches two seeds of five lost two modes.
    "-T2": {"batch": 256, "steps": 4500, "fade": 0.35, "r1_gamma": 0.2},
}

RECIPES = {
    # The released CIFAR-10 configuration: batch 64 on each of 4 GPUs, the rates' cosine over 1,800 epochs. The
    # published weights are those after 1,200: --kimg 60000. The paper's notes differ in nz 256, R1 .05, lr_d 1e-4
    # and batch 128; the authors say that the released values are right.
    "paper": DDGANRecipe(
        batch=256, duration_kimg=90_000, ema=EmaSpec(decay=0.9999), flips=True,
        generator={
            "image_size": 32, "num_channels": 3, "num_channels_dae": 128, "ch_mult": [1, 2, 2, 2],
            "num_res_blocks": 2, "attn_resolutions": [16], "n_mlp": 4, "nz": 100, "z_emb_dim": 256,
        },
        discriminator={"class": "small", "nc": 6, "ngf": 64, "t_emb_dim": 256},
        lr_g=1.6e-4, lr_d=1.25e-4, r1_gamma=0.02, r1_interval=15,
    ),
    # First the squared error, then the critic alone, then both: what was tried stands in baselines/TRAINING.md. The
    # paper's loss stays at that of a guess though the critic knows the pairs, and a faster generator runs away from it.
    # At t = 0 the critic's gradient drowns a squared error of weight 1, and with it the recall.
    "cpu-small": DDGANRecipe(
        batch=64, duration_kimg=20_000, ema=EmaSpec(halflife_kimg=30, rampup=0.05), flips=True, bf16=True,
        channels_last=True, pixel_block=2,
        generator={
            "image_size": 16, "num_channels": 12, "num_channels_dae": 64, "ch_mult": [1, 2], "num_res_blocks": 1,
            "attn_resolutions": [8], "n_mlp": 3, "nz": 64, "z_emb_dim": 128,
        },
        discriminator={"class": "small", "nc": 24, "ngf": 24, "t_emb_dim": 128},
        lr_g=2e-4, lr_d=4e-4, betas=(0.5, 0.99), cosine=False, loss="relativistic", paired_noise=True, r1_gamma=1.0,
        r1_interval=15, denoising=0.3, denoising_end=0.3, denoising_last=300.0, regression_kimg=79.0,
        lr_regression=1e-3, critic_kimg=6.0,
    ),
    # Images that are black all around move the critic's logits as one, which a relativistic loss does not see. A critic
    # under a strong penalty, or with a second moment of .99, learns nothing of the noisier steps, where the digit is
    # chosen, and a generator at its pace runs away from it. What was tried stands in baselines/TRAINING.md.
    "stackedmnist-cpu": DDGANRecipe(
        batch=64, duration_kimg=1000, ema=EmaSpec(halflife_kimg=10, rampup=0.05), flips=False, bf16=True,
        channels_last=True, pixel_block=4,
        generator={
            "image_size": 8, "num_channels": 48, "num_channels_dae": 64, "ch_mult": [1, 2], "num_res_blocks": 1,
            "attn_resolutions": [], "n_mlp": 3, "nz": 64, "z_emb_dim": 128,
        },
        discriminator={"class": "small", "nc": 96, "ngf": 16, "t_emb_dim": 128},
        lr_g=1e-4, lr_d=1e-3, betas=(0.5, 0.9), cosine=False, loss="relativistic", r1_gamma=0.3, r1_interval=15,
        critic_steps=3, denoising=0.3, denoising_end=0.02, denoising_kimg=300, regression_kimg=80, lr_regression=1e-3,
    ),
    # Xiao et al. 2022: three layers of 512, batch 512, 50k iterations.
    **{
        f"gaussians25-paper{name}": points_recipe(**PAPER, **changes) for name, changes in VARIANTS.items()
    },
    # The squared error keeps the modes: where it was gone after a tenth of the run, up to 18 of 25 were lost. While it
    # lasts few points are of high quality; rates that are 2.5 times those of longer runs make the most of the rest.
    **{
        f"gaussians25-cpu{name}": points_recipe(**{**CPU, **changes, **CPU_ALONE.get(name, {})})
        for name, changes in VARIANTS.items()
    },
}  # fmt: skip


def real_loss(logits: Tensor) -> Tensor:
    """Mean softplus(-D): low where D takes them for real."""
    return F.softplus(-logits).mean()


def fake_loss(logits: Tensor) -> Tensor:
    """Mean softplus(D): low where D takes them for generated."""
    return F.softplus(logits).mean()


def gradient_penalty(logits: Tensor, images: Tensor, gamma: float) -> Tensor:
    """gamma / 2 times the mean squared norm of dD/dimages: R1 on real images, R2 on generated ones.

    Mescheder et al. 2018, arXiv 1801.04406.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gamma / 2 * gradient.square().flatten(1).sum(1).mean()


class DDGANTask(Task):
    """The two networks in training."""

    recipe: DDGANRecipe
    config: dict[str, Any]
    averaged = ("G",)

    def __init__(self, recipe: DDGANRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        block = recipe.pixel_block
        nets: Any = mlp if isinstance(recipe, PointsRecipe) else ncsnpp
        with initialising(recipe.seed):
            self.networks: dict[str, nn.Module] = {
                "G": in_pixel_blocks(nets.build_generator(recipe.generator), block),
                "D": in_pixel_blocks(nets.build_discriminator(recipe.discriminator), block, image_output=False),
            }
        self.optimizers = {
            name: torch.optim.Adam(self.networks[name].parameters(), lr=lr, betas=recipe.betas, fused=True)
            for name, lr in (("G", recipe.lr_g), ("D", recipe.lr_d))
        }
        self.config = {
            "generator": dict(recipe.generator), "pixel_block": block, "num_timesteps": recipe.num_timesteps,
        }  # fmt: skip
        if isinstance(recipe, PointsRecipe):
            self.scale = recipe.scale
            self.config |= {"scale": recipe.scale}
            self.image_shape = (mlp.parse(recipe.generator).dimensions,)
        else:
            size = int(recipe.generator["image_size"]) * block
            self.image_shape = (int(recipe.generator["num_channels"]) // block**2, size, size)
        self.predict = str(recipe.generator.get("predict", "x0"))
        self.chain = GanChain(recipe.num_timesteps)
        self.set_up()

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        if step.images_seen < 1000 * self.recipe.regression_kimg:
            return self._regress(images, step)
        penalised = self.recipe.r1_gamma > 0 and step.number % self.recipe.r1_interval == 0
        losses = self.discriminator_losses(*self._draw(images, step), penalised=penalised)
        self.update("D", torch.stack(list(losses.values())).sum())
        adversarial = [loss.detach() for name, loss in losses.items() if name not in ("r1", "r2")]
        if step.number % self.recipe.critic_steps == 0 and self._generator_share(step) > 0:
            loss_g = self.generator_loss(*self._draw(images, step), images=images, denoising=self._denoising(step))
            self.update("G", loss_g)
            self.extra["loss_g"] = float(loss_g.detach())
        loss_d = torch.stack(adversarial).sum()
        return {"loss_d": loss_d, "loss_g": torch.tensor(self.extra.get("loss_g", 0.0))}

    def _regress(self, images: Tensor, step: Step) -> dict[str, Tensor]:
        """One step of the generator by its squared error alone; the critic has no loss yet."""
        x_t, x_next, t, z, _ = self._draw(images, step)
        loss = F.mse_loss(self._predict(x_next, t, z), self._target(images, x_t, x_next, t))
        self.update("G", loss)
        return {"loss_d": torch.zeros_like(loss.detach()), "loss_g": loss.detach()}

    def discriminator_losses(
        self, x_t: Tensor, x_next: Tensor, t: Tensor, z: Tensor, noise: Tensor, *, penalised: bool
    ) -> dict[str, Tensor]:
        """Scalars whose sum D descends: `real` and `fake`, or `pairs`; `r1` and `r2` too where `penalised`.

        G gets no gradient.
        """
        relativistic = self.recipe.loss == "relativistic"
        with torch.no_grad():
            generated = self._generate(x_next, t, z, noise)
        losses = {}
        if penalised:
            real, losses["r1"] = self._penalised(x_t, x_next, t)
        else:
            real = self._logits(x_t, x_next, t)
        if penalised and relativistic:
            fake, losses["r2"] = self._penalised(generated, x_next, t)
        else:
            fake = self._logits(generated, x_next, t)
        if relativistic:
            return {**losses, "pairs": real_loss(real - fake)}
        return {**losses, "real": real_loss(real), "fake": fake_loss(fake)}

    def _logits(self, x_t: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        """D's logits, float32 [B, 1]."""
        with self.autocast():
            logits: Tensor = self.networks["D"](x_t, t, x_next)
        return logits.float()

    def _penalised(self, x_t: Tensor, x_next: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """D's logits of `x_t`, and the penalty on their gradient; fp32 and not compiled, as it differentiates twice."""
        x_t = x_t.detach().requires_grad_(True)
        logits = self.networks["D"].forward(x_t, t, x_next)
        return logits, gradient_penalty(logits, x_t, self.recipe.r1_gamma)

    def generator_loss(
        self,
        x_t: Tensor,
        x_next: Tensor,
        t: Tensor,
        z: Tensor,
        noise: Tensor,
        *,
        images: Tensor | None = None,
        denoising: float = 0.0,
    ) -> Tensor:
        """The scalar that G descends.

        `x_t`, drawn with x_{t+1}, serves the relativistic loss and `denoising`; `images` the latter alone.
        """
        output = self._predict(x_next, t, z)
        logits = self._logits(self.chain.previous(output, x_next, t, noise, predict=self.predict), x_next, t)
        if self.recipe.loss == "relativistic":
            with torch.no_grad():
                real = self._logits(x_t, x_next, t)
            logits = logits - real
        loss = real_loss(logits)
        last = denoising if self.recipe.denoising_last is None else self.recipe.denoising_last
        if images is None or not (denoising or last):
            return loss
        error = (output - self._target(images, x_t, x_next, t)).square().flatten(1).mean(1)
        return loss + (torch.where(t == 0, last, denoising) * error).mean()

    def _target(self, images: Tensor, x_t: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        """What the generator's output stands for: x_0, the noise in x_{t+1}, or x_t."""
        if self.predict == "eps":
            signal, noise = at(self.chain.signal, t + 1, images), at(self.chain.noise, t + 1, images)
            return (x_next - signal * images) / noise
        return x_t if self.predict == "direct" else images

    def _denoising(self, step: Step) -> float:
        """Weight of the squared error at this step."""
        recipe = self.recipe
        if recipe.denoising == recipe.denoising_end:
            return recipe.denoising
        left = max(0.0, 1 - step.images_seen / (1000 * recipe.denoising_kimg))
        return recipe.denoising_end + (recipe.denoising - recipe.denoising_end) * left

    def _generator_share(self, step: Step) -> float:
        """Of its learning rate, what the generator has beside a critic that has just begun."""
        recipe = self.recipe
        if recipe.critic_kimg <= 0:
            return 1.0
        since = step.images_seen / 1000 - recipe.regression_kimg - recipe.critic_kimg
        return min(1.0, max(0.0, since / recipe.critic_kimg))

    def _predict(self, x_next: Tensor, t: Tensor, z: Tensor) -> Tensor:
        with self.autocast():
            x0: Tensor = self.networks["G"](x_next, t, z)
        return x0.float()

    def _generate(self, x_next: Tensor, t: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        return self.chain.previous(self._predict(x_next, t, z), x_next, t, noise, predict=self.predict)

    def _draw(self, images: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(x_t, x_{t+1}, t, z, posterior noise) with fresh random numbers of this step."""
        batch, shape = self.recipe.batch, images.shape[1:]
        t = step.randint(self.recipe.num_timesteps, batch, self.device)
        noises = [step.randn(batch, *shape, device=self.device) for _ in range(3)]
        z = step.randn(batch, self._nz, device=self.device)
        x_t, x_next = self.chain.q_sample_pair(images, t, noises[0], noises[1])
        if self.recipe.paired_noise:
            x_t = self.chain.posterior_sample(images, x_next, t, noises[2])
        return x_t, x_next, t, z, noises[2]

    @property
    def _nz(self) -> int:
        return int(self.recipe.generator.get("nz", 100))

    def rates(self, step: Step) -> dict[str, float]:
        recipe, rates = self.recipe, {"G": self.recipe.lr_g, "D": self.recipe.lr_d}
        if step.images_seen < 1000 * recipe.regression_kimg:
            left = 1 - step.images_seen / (1000 * recipe.regression_kimg)
            rate = recipe.lr_g + (recipe.lr_regression - recipe.lr_g) * left
            return {**rates, "G": warm_up(step, WARM_UP_STEPS) * rate}
        if recipe.cosine:
            rates = {k: cosine_lr(v, recipe.lr_end, step.images_seen, recipe.duration_kimg) for k, v in rates.items()}
        return {**rates, "G": self._generator_share(step) * rates["G"]}

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(num_images, *self.image_shape, generator=rng).to(self.device)
        for index in reversed(range(self.recipe.num_timesteps)):
            t = torch.full((num_images,), index, device=self.device)
            z = torch.randn(num_images, self._nz, generator=rng).to(self.device)
            noise = torch.randn(x.shape, generator=rng).to(self.device)
            with self.autocast():
                x0 = self.averages["G"](x, t, z)
            x = self.chain.previous(x0.float(), x, t, noise, predict=self.predict)
        return x

    @property
    def product(self) -> nn.Module:
        return inside(self.averages["G"])


TRAINER = TrainerKind(
    name="ddgan", recipes=RECIPES, task=DDGANTask, baseline="ddgan",
    source="Xiao, Kreis & Vahdat 2022, arXiv 2112.07804",
)  # fmt: skip
