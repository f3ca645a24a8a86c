"""What the trainers of points with one network and one loss have in common: recipe, optimiser, grid, teacher."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from trilemma_bench.cards import load_card
from trilemma_bench.diffusion import Chain, at, ddim_pairs, linear_betas
from trilemma_bench.nets import mlp
from trilemma_bench.nets.consistency import Consistency, ConsistencyConfig
from trilemma_bench.nets.consistency import build as build_consistency
from trilemma_bench.samplers._helpers import read_tensors
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Recipe, Step, Task, cosine_lr, initialising, warm_up


class MLPRecipe(Recipe):
    """A network of points under Adam: the learning rate rises over `warmup_steps` and falls on a cosine to 1 %."""

    mlp: dict[str, Any]
    lr: float
    warmup_steps: int = 200
    scale: float = 5.0
    """Points of the data set are this times those of the network."""


def sizes(*, members: int, batch: int, steps: int, decay: float = 0.998, **changes: Any) -> dict[str, Any]:
    """Settings of a recipe of `steps` steps with `batch` points for each of the members."""
    common = {"batch": members * batch, "duration_kimg": members * batch * steps / 1000, "flips": False}
    return {**common, "ema": EmaSpec(decay=decay), **changes}


def warmed_cosine_lr(recipe: Any, step: Step) -> float:
    """The learning rate of a recipe with `lr` and `warmup_steps`: it rises, and falls on a cosine to 1 %."""
    fallen = cosine_lr(recipe.lr, recipe.lr / 100, step.images_seen, recipe.duration_kimg)
    return warm_up(step, recipe.warmup_steps) * fallen


class MLPTask(Task):
    """One network in training. A family gives the network, its loss, and what its sampler makes of noise."""

    recipe: Any
    averaged = ("net",)

    def __init__(self, recipe: MLPRecipe, device: torch.device, *, compile: bool = False) -> None:
        super().__init__(recipe, device, compile=compile)
        with initialising(recipe.seed):
            net = self.build()
        self.networks: dict[str, nn.Module] = {"net": net}
        # Members share no norm of their gradients: there is no clipping.
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
        """Points of `net`, which is on the CPU: float [num_points, D]."""

    @property
    def net(self) -> Any:
        """The network in training."""
        return self.networks["net"]

    def done(self, step: Step) -> float:
        """The part of the run that is over, in [0, 1]."""
        return min(1.0, step.images_seen / (self.recipe.duration_kimg * 1000))

    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        loss = self.loss(images, step)
        self.update("net", loss)
        return {"loss": loss.detach()}

    def rates(self, step: Step) -> dict[str, float]:
        return {"net": warmed_cosine_lr(self.recipe, step)}

    @torch.no_grad()
    def grid(self, num_images: int) -> Tensor:
        # On the CPU, where a chain has its tables and a generator its numbers, wherever the network is trained.
        net = copy.deepcopy(self.averages["net"]).cpu()
        return self.draw(net, num_images, torch.Generator().manual_seed(0))

    @property
    def product(self) -> nn.Module:
        return self.averages["net"]


# --- teachers ---------------------------------------------------------------------------------------------


class TeacherRecipe(MLPRecipe):
    """A student of the DDPM that ships as `teacher`, whose probability flow DDIM follows in `teacher_steps` steps."""

    teacher: str = "gaussians25-ddpm"
    teacher_steps: int = 50


class Teacher:
    """A shipped DDPM of points: as many of its members as the student has, and the steps of DDIM down its chain.

    Attributes:
        net: (x_t float [N, D], t [N]) -> eps float [N, D].
        chain: Its chain.
        pairs: (t, t_prev) from noise to data; t_prev = -1 is the data.
    """

    def __init__(self, net: Any, chain: Chain, num_steps: int) -> None:
        self.net, self.chain = net, chain
        self.pairs = ddim_pairs(len(chain), num_steps, "trailing")

    @torch.no_grad()
    def step(self, x_t: Tensor, t: Tensor, t_prev: Tensor) -> Tensor:
        """x_{t_prev} by one step of DDIM (Song et al. 2021, arXiv 2010.02502, eq. 13), each row at its own t [N]."""
        # One place further: entry 0 is the data.
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), self.chain.alpha_bar])
        now, before = at(alpha_bar, t + 1, x_t), at(alpha_bar, t_prev + 1, x_t)
        eps = self.net(x_t, t)
        x0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
        return before.sqrt() * x0 + (1 - before).sqrt() * eps

    def solve(self, x: Tensor) -> Tensor:
        """x_0 float [N, D] of x_T, by all steps."""
        for t, t_prev in self.pairs:
            row = torch.full((len(x),), t, device=x.device)
            x = self.step(x, row, torch.full_like(row, t_prev))
        return x


class StudentTask(MLPTask):
    """A consistency network that learns from a teacher on its chain and in its units."""

    recipe: TeacherRecipe

    def __init__(self, recipe: TeacherRecipe, device: torch.device, *, compile: bool = False) -> None:
        card, folder = load_card(recipe.teacher)
        tensors, header = read_tensors(folder / card.weights)
        config = header or {}
        self.chain = Chain(linear_betas(int(config["num_train_steps"]), **config["betas"]))
        members = mlp.parse_as(ConsistencyConfig, recipe.mlp).members
        with initialising(recipe.seed):
            net = mlp.build({**config["mlp"], "members": members})
        net.load_state_dict({k: v[: net.config.members].float() for k, v in tensors.items()})  # type: ignore[union-attr]
        self.teacher = Teacher(net.to(device).eval().requires_grad_(False), self.chain, recipe.teacher_steps)
        super().__init__(recipe, device, compile=compile)
        self.config |= {key: config[key] for key in ("num_train_steps", "betas")}

    def build(self) -> Consistency:
        return build_consistency(self.recipe.mlp, self.chain)

    def draw(self, net: Consistency, num_points: int, rng: torch.Generator) -> Tensor:
        x = torch.randn(num_points, net.config.dimensions, generator=rng)
        return net(x, torch.full((num_points,), len(self.chain) - 1))
