"""Training: the authors' losses, exact resuming, what a run leaves on disk, the published configurations."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle_cases import ddgan_weights, load_oracle

from trilemma_bench import registry
from trilemma_bench.errors import DataError, TrainingError, UsageError
from trilemma_bench.images import ArrayImages
from trilemma_bench.training import train_model
from trilemma_bench.training._ema import EmaSpec, ema_copy, ema_update
from trilemma_bench.training._loop import Limits, Step, batch_indices, train
from trilemma_bench.training.ddgan import DDGANTask, cosine_lr

UNET = {
    "sample_size": 8, "in_channels": 12, "out_channels": 12, "pixel_block": 2, "block_out_channels": [8, 8],
    "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
SHARED: dict[str, Any] = {"batch": 8, "duration_kimg": 0.064, "bf16": False}
TINY: dict[str, dict[str, Any]] = {
    "ddpm": {"unet": UNET, "num_train_steps": 20, **SHARED},
    "ddgan": {
        "generator": {"image_size": 8, "num_channels": 12, "num_channels_dae": 8, "ch_mult": [1, 1],
                      "num_res_blocks": 1, "attn_resolutions": [4], "n_mlp": 1, "nz": 4, "z_emb_dim": 8},
        "discriminator": {"nc": 24, "ngf": 4, "t_emb_dim": 8}, "r1_interval": 2, **SHARED,
    },
    "stylegan2": {
        "generator": {"z_dim": 8, "w_dim": 8, "img_resolution": 16, "channel_base": 128, "channel_max": 8},
        "discriminator": {"img_resolution": 16, "channel_base": 128, "channel_max": 8}, "r1_interval": 2,
        "ada": {"speed_kimg": 0.05}, **SHARED,
    },
}  # fmt: skip
FAMILIES = sorted(TINY)


def tiny_recipe(name: str, **changes: Any) -> Any:
    recipe = registry.get("trainer", name).recipes["cpu-small"]
    return type(recipe).model_validate({**recipe.model_dump(), **TINY[name], **changes})


def tiny_task(name: str, **changes: Any) -> Any:
    return registry.get("trainer", name).task(tiny_recipe(name, **changes), torch.device("cpu"))


def data(count: int = 20) -> ArrayImages:
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), np.uint8)
    return ArrayImages(images, name="noise")


def state(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoint.pt", weights_only=True)["task"]
    return {f"{kind}.{name}.{key}": value for kind in ("networks", "averages") for name in content[kind]
            for key, value in content[kind][name].items()}  # fmt: skip


def test_every_trainer_is_tested_here() -> None:
    assert registry.names("trainer") == FAMILIES


# --- the authors' step ----------------------------------------------------------------------------------------


def test_ddgan_losses_and_gradients_are_the_authors() -> None:
    case = load_oracle("ddgan/train_step_small.npz")
    meta, arrays = case.meta, case.tensors
    recipe = tiny_recipe("ddgan", generator=meta["g_config"], discriminator=meta["d_config"], pixel_block=1,
                         r1_gamma=meta["r1_gamma"], channels_last=False)  # fmt: skip
    task = DDGANTask(recipe, torch.device("cpu"))
    for name, key in (("G", "weight_seed_G"), ("D", "weight_seed_D")):
        shapes = {k: tuple(v.shape) for k, v in task.networks[name].state_dict().items()}
        task.networks[name].load_state_dict(ddgan_weights(shapes, meta[key]))
    x_t, x_next = task.chain.q_sample_pair(arrays["x0"], arrays["t"], arrays["noise_q"], arrays["noise_step"])
    assert torch.allclose(x_t, arrays["x_t"], atol=2e-5)
    assert torch.allclose(x_next, arrays["x_tp1"], atol=2e-5)
    drawn = (x_t, x_next, arrays["t"], arrays["z"], arrays["noise_post"])
    losses = task.discriminator_losses(*drawn, r1=True)
    for mine, theirs in (("real", "errD_real"), ("fake", "errD_fake"), ("r1", "grad_penalty")):
        assert losses[mine].item() == pytest.approx(arrays[theirs].item(), abs=2e-5)
    torch.stack(list(losses.values())).sum().backward()
    assert_norms(task.networks["D"], meta["grad_norms"]["D"])
    assert all(parameter.grad is None for parameter in task.networks["G"].parameters())
    task.networks["D"].zero_grad()
    loss = task.generator_loss(*drawn)
    assert loss.item() == pytest.approx(arrays["errG"].item(), abs=2e-5)
    loss.backward()
    assert_norms(task.networks["G"], meta["grad_norms"]["G"])


def assert_norms(network: torch.nn.Module, expected: dict[str, float]) -> None:
    found = {name: float(p.grad.norm()) for name, p in network.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, norm in expected.items():
        assert found[name] == pytest.approx(norm, rel=2e-4, abs=1e-6), name


# --- the loop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = train(tiny_task(name), data(), tmp_path / "whole")
    assert whole["finished"]
    assert whole["images_seen"] == 64
    train(tiny_task(name), data(), tmp_path / "parts", limits=Limits(kimg=0.024))
    again = train(tiny_task(name), data(), tmp_path / "parts")
    assert again["images_seen"] == 64
    first, second = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_leaves_what_a_sampler_loads(name: str, tmp_path: Path) -> None:
    train(tiny_task(name), data(), tmp_path, limits=Limits(log_seconds=0))
    with open(tmp_path / "curve.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert int(rows[-1]["images_seen"]) == 64
    assert all(float(value) == float(value) for key, value in rows[-1].items() if key.startswith("loss"))
    assert json.loads((tmp_path / "run.json").read_text())["images_seen"] == 64
    assert list((tmp_path / "grids").glob("*.png"))
    kind = registry.get("sampler", name)
    sampler = kind.build(kind.options(), kind.load(tmp_path / "weights.safetensors"), micro_batch=2)
    assert sampler.sample(torch.arange(2)).shape == (2, 3, 16, 16)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    train(tiny_task("ddpm"), data(), tmp_path, limits=Limits(kimg=0.024))
    before = state(tmp_path)
    task = tiny_task("ddpm")
    step = task.step

    def broken(images: Any, labels: Any, at: Step) -> Any:
        with torch.no_grad():
            next(iter(task.networks["eps"].parameters())).fill_(float("nan"))
        return step(images, labels, at)

    task.step = broken
    with pytest.raises(TrainingError, match="not finite"):
        train(task, data(), tmp_path, limits=Limits(log_seconds=0))
    after = state(tmp_path)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(tiny_task("ddpm"), data(), tmp_path, limits=Limits(kimg=0.008))
    with pytest.raises(TrainingError, match="another recipe"):
        train(tiny_task("ddpm", lr=1e-3), data(), tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(tiny_task("ddpm"), data(), tmp_path)


@pytest.mark.parametrize("num_images", [20, 7])
def test_every_epoch_takes_each_image_once_in_a_new_order(num_images: int) -> None:
    batch = 8
    steps = 2 * num_images
    taken = np.concatenate([batch_indices(num_images, batch, step, seed=3) for step in range(steps)])
    epochs = taken[: len(taken) // num_images * num_images].reshape(-1, num_images)
    assert all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_kill_in_the_middle_loses_minutes_at_most_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL while the loop writes a checkpoint after every step: what is on disk is always whole."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training import *
train(tiny_task("ddpm", duration_kimg=4.0), data(), Path(sys.argv[1]), limits=Limits(checkpoint_minutes=0))
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "killed")])
    curve = tmp_path / "killed" / "checkpoint.pt"
    while not curve.exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    reached = torch.load(curve, weights_only=True)["step"]
    assert 0 < reached < 500
    limits = Limits(kimg=(reached + 3) * 8 / 1000)
    train(tiny_task("ddpm", duration_kimg=4.0), data(), tmp_path / "killed", limits=limits)
    train(tiny_task("ddpm", duration_kimg=4.0), data(), tmp_path / "whole", limits=limits)
    first, second = state(tmp_path / "killed"), state(tmp_path / "whole")
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- rules ----------------------------------------------------------------------------------------------------


def test_ema_half_life_halves_the_old_weights_after_that_many_images() -> None:
    spec = EmaSpec(halflife_kimg=1)
    assert spec.decay_at(10**9, 100) ** 10 == pytest.approx(0.5)
    assert EmaSpec(halflife_kimg=500, rampup=0.05).decay_at(1000, 50) == pytest.approx(0.5)
    assert EmaSpec(decay=0.9999).decay_at(5, 5) == 0.9999


def test_ema_moves_by_one_minus_decay() -> None:
    module, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    average = ema_copy(average)
    expected = 0.9 * average.weight + 0.1 * module.weight
    ema_update(average, module, 0.9)
    assert torch.allclose(average.weight, expected)


def test_ema_has_one_rule() -> None:
    with pytest.raises(ValueError, match="a decay or a half-life"):
        EmaSpec()


def test_learning_rate_falls_on_a_cosine_by_epochs() -> None:
    rates = [cosine_lr(1e-3, 1e-5, seen, 100) for seen in (0, 49_999, 50_000, 100_000)]
    assert rates == pytest.approx([1e-3, 1e-3, (1e-3 + 1e-5) / 2, 1e-5])


# --- recipes --------------------------------------------------------------------------------------------------

PUBLISHED = {"ddpm": ("eps", 35_746_307), "ddgan": ("G", 48_432_515), "stylegan2": ("G", 19_947_539)}


@pytest.mark.parametrize("name", FAMILIES)
def test_paper_recipes_have_the_published_size(name: str) -> None:
    kind = registry.get("trainer", name)
    network, count = PUBLISHED[name]
    task = kind.task(kind.recipes["paper"], torch.device("cpu"))
    parameters = sum(parameter.numel() for parameter in task.networks[network].parameters())
    assert parameters == count
    assert task.image_shape == (3, 32, 32)


def test_unknown_recipes_and_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        train_model("ddpm", recipe="papr", out=tmp_path)
    np.savez(tmp_path / "small.npz", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="needs"):
        train_model("ddpm", dataset=str(tmp_path / "small.npz"), out=tmp_path / "out", device="cpu")
