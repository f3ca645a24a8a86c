"""What is promised of 25 Gaussians: the shipped weights keep it, and a network trained from nothing here does too."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from trilemma_bench import cards, registry
from trilemma_bench.diffusion import GanChain
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


def test_the_protocol_states_scale_steps_and_betas_of_every_shipped_network() -> None:
    text = (files("trilemma_bench") / "protocols" / "gaussians25-v1.toml").read_text().replace("#", " ")
    text = " ".join(text.split())
    states = lambda *parts: all(part in text for part in parts)  # noqa: E731
    for name in (name for name in cards.card_names() if name.startswith("gaussians25-")):
        card, folder = cards.load_card(name)
        config = registry.get("sampler", card.sampler).load(folder / card.weights).config
        unscaled = card.sampler == "ddgan" or card.options.get("variant") == "augment"
        assert config["scale"] == (1 if unscaled else 5), name
        if "betas" in config:
            start, end, steps = config["betas"]["start"], config["betas"]["end"], config["num_train_steps"]
            start = f"{start:.0e}".replace("e-0", "e-")
            assert config["betas"]["power"] == 3, name
            assert states(f"{steps} steps", f"betas from {start} to {end:g} that"), name
        if "bins" in config:
            assert states(f"{config['bins']} cells a coordinate")
        if "levels" in config:
            low, high, inner = config["sigma_min"], config["sigma_max"], config["langevin_steps"]
            assert states(f"ebm {config['levels']} steps, noise over signal from {low:g} to {high:g} in equal ratios")
            assert states(f"{inner} steps of Langevin dynamics of size {config['step_size']:g}")
        if "num_timesteps" in config:
            assert config["num_timesteps"] in (1, 2, 4, 8), name
    chain = GanChain(4)
    assert states("points divided by 5; those of ddgan and of gan:variant=augment divided by 1")
    assert states("4 steps (ddgan also 1, 2, 8)", f"schedule from {chain.beta_min:g} to {chain.beta_max:g}")


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
