"""What is promised of 25 Gaussians: the shipped weights keep it, and a network trained from nothing here does too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trilemma_bench import registry
from trilemma_bench.run import evaluate
from trilemma_bench.training import EmaSpec
from trilemma_bench.training._loop import train
from trilemma_bench.training.ddgan import points_recipe

COUNT = 2000
PROMISES = {
    "ddgan": (25, 0.8),
    "ddgan:num_timesteps=2": (25, 0.7),
    "ddgan:num_timesteps=8": (25, 0.8),
    "ddgan:predict=eps": (25, 0.8),
    "ddpm": (25, 0.9),
    "ddim:steps=50": (25, 0.85),
}
"""Modes captured, and the least fraction of points of high quality."""


def measured(model: str, cache: Path) -> dict[str, float]:
    record = evaluate(model, dataset="gaussians25", num_samples=COUNT, cache=cache, timed=False)
    return {item.kind.name: item.score.value for item in record.scores if item.score.value is not None}


@pytest.mark.parametrize("model", PROMISES)
def test_the_shipped_weights_of_one_seed_keep_what_is_promised(model: str, tmp_path: Path) -> None:
    modes, quality = PROMISES[model]
    found = measured(model + (":" if ":" not in model else ",") + "train_seed=1", tmp_path)
    assert found["modes_captured"] == modes
    assert found["high_quality"] >= quality
    assert found["mode_kl"] < 0.6


def test_a_denoising_diffusion_gan_trained_from_nothing_captures_every_mode(tmp_path: Path) -> None:
    """The recipe of the baseline on one seed, a quarter as long; the squared error lasts as many steps."""
    recipe = points_recipe(
        width=64, members=1, batch=256, steps=1000, lr=2.5e-3, frequencies=5, denoising=2.0, fade=0.7
    ).model_copy(update={"ema": EmaSpec(decay=0.99)})
    task = registry.get("trainer", "ddgan").task(recipe, torch.device("cpu"))
    assert train(task, registry.get("dataset", "gaussians25").open("train"), tmp_path)["finished"]
    found = measured(f"ddgan@{tmp_path / 'weights.safetensors'}", tmp_path / "cache")
    assert found["modes_captured"] == 25
    assert found["high_quality"] > 0.2
