"""A tiny recipe of every trainer, and a few random images to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sampler_cases import TINY_NCSNPP, TINY_STYLEGAN2, TINY_UNET

from trilemma_bench import registry
from trilemma_bench.images import ArrayImages
from trilemma_bench.kinds import TrainerKind, is_points
from trilemma_bench.points import ArrayPoints
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Limits, Task, train
from trilemma_bench.training.stylegan2 import AdaSpec

BATCH = 8

TINY_RECIPES: dict[str, dict[str, Any]] = {
    "adm": {
        "denoiser": {"class": "mlp", "width": 8, "members": 2},
        "classifier": {"class": "mlp", "width": 8, "num_classes": 3, "members": 2},
        "num_train_steps": 10,
    },
    "autoregressive": {"mlp": {"class": "autoregressive", "width": 8, "bins": 16, "members": 2}},
    "consistency": {"mlp": {"class": "consistency", "width": 8, "members": 2}},
    "d3pm": {"mlp": {"class": "d3pm", "width": 8, "bins": 16, "members": 2}, "num_train_steps": 5},
    "ddgan": {
        # Both networks from the first step on.
        "regression_kimg": 0.0,
        "critic_kimg": 0.0,
        # At the recipe's rate a few steps leave the image grey.
        "lr_g": 1e-3,
        "generator": TINY_NCSNPP,
        "discriminator": {"class": "small", "nc": 24, "ngf": 2, "t_emb_dim": 8},
        "r1_interval": 2,
        "cosine": True,
    },
    "ddpm": {"unet": {**TINY_UNET, "dropout": 0.1}, "num_train_steps": 10, "warmup_steps": 4},
    "distilled": {"mlp": {"class": "distilled", "width": 8, "members": 2}, "pool": 16, "teacher_steps": 2},
    "ebm": {"mlp": {"class": "ebm", "width": 8, "members": 2}, "levels": 3, "langevin_steps": 2},
    "flow": {"mlp": {"class": "flow", "width": 8, "couplings": 2, "members": 2}},
    "gan": {
        "generator": {"class": "mlp", "width": 8, "nz": 3, "members": 2},
        "discriminator": {"class": "mlp", "width": 8, "time_dim": 0, "members": 2},
    },
    "lsgm": {
        "autoencoder": {"class": "vae", "width": 8, "members": 2},
        "prior": {"class": "lsgm", "width": 8, "members": 2},
        "num_train_steps": 10,
        "first": 0.5,
    },
    "mnist_classifier": {"network": {"width": 4, "features": 6}, "warmup_steps": 2},
    "stylegan2": {
        "generator": TINY_STYLEGAN2,
        "discriminator": {
            "c_dim": 3, "img_resolution": 16, "channel_base": 128, "channel_max": 8, "architecture": "orig",
            "mbstd_group_size": 4,
        },
        "r1_interval": 3,
        # Steps of a whole in every batch: the augmentation is on from the second one.
        "ada": AdaSpec(target=-2.0, interval=1, speed_kimg=0.008),
    },
    "vae": {"mlp": {"class": "vae", "width": 8, "levels": 2, "members": 2}},
}  # fmt: skip


def tiny_recipe(name: str, *, steps: int = 6, **changes: Any) -> Any:
    """The `cpu-small` recipe of a trainer on a tiny network, `steps` batches of 8 long."""
    kind: TrainerKind = registry.get("trainer", name)
    common = {
        "batch": BATCH, "duration_kimg": steps * BATCH / 1000, "bf16": False,
        "ema": EmaSpec(halflife_kimg=0.02, rampup=0.5),
    }  # fmt: skip
    small = kind.recipes.get("cpu-small") or kind.recipes["gaussians25-cpu"]
    return small.model_copy(update={**common, **TINY_RECIPES[name], **changes})


def tiny_task(name: str, **changes: Any) -> Task:
    """A new task of a tiny recipe."""
    kind: TrainerKind = registry.get("trainer", name)
    task: Task = kind.task(tiny_recipe(name, **changes), torch.device("cpu"))
    return task


def tiny_images(task: Task, count: int = 20) -> ArrayImages | ArrayPoints:
    """Random images of the task's shape with three classes, or random points."""
    rng = np.random.default_rng(5)
    if is_points(task.image_shape):
        return ArrayPoints(rng.normal(size=(count, *task.image_shape)), "random", rng.integers(0, 3, count))
    images = rng.integers(0, 256, (count, *task.image_shape), np.uint8)
    return ArrayImages(images, "random", rng.integers(0, 3, count))


def run(task: Task, out: Path, start: Path | None = None, **limits: Any) -> dict[str, Any]:
    """Train on the random images; by default a checkpoint at the end alone, and a row of the curve for each step."""
    chosen = {"checkpoint_minutes": 1e9, "log_seconds": 0.0, **limits}
    return train(task, tiny_images(task), out, limits=Limits(**chosen), start=start)
