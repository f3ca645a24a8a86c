"""Training: the authors' step, runs that go on after a kill, what is left on disk, and the published sizes."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle_cases import OracleCase, ddgan_weights, load_oracle
from PIL import Image
from sampler_cases import TINY_UNET
from torch import Tensor, nn
from training_cases import BATCH, TINY_RECIPES, run, tiny_images, tiny_recipe, tiny_task

from trilemma_bench import registry
from trilemma_bench.diffusion import Chain, linear_betas
from trilemma_bench.errors import StoreError, TrainingError
from trilemma_bench.kinds import TrainerKind, is_points
from trilemma_bench.nets import ncsnpp, stylegan2, unet
from trilemma_bench.samplers._helpers import read_tensors
from trilemma_bench.training import _checkpoint, _loop
from trilemma_bench.training._ema import EmaSpec, ema_copy, ema_update
from trilemma_bench.training._loop import (
    WARM_UP_STEPS,
    Feed,
    Step,
    Task,
    batch_indices,
    clip_gradients,
    write_weights,
)
from trilemma_bench.training.ddgan import (
    RECIPES,
    DDGANRecipe,
    DDGANTask,
    cosine_lr,
    fake_loss,
    gradient_penalty,
    real_loss,
)

NAMES = registry.names("trainer")
DRAWING = [name for name in NAMES if name in registry.names("sampler")]
"""All but the classifier, whose weights are an extractor's."""
CPU = torch.device("cpu")


def test_every_trainer_has_a_tiny_recipe() -> None:
    missing = sorted(set(NAMES) - set(TINY_RECIPES))
    assert not missing, f"add tiny recipes of {missing} to TINY_RECIPES in tests/training_cases.py"
    assert sorted(TINY_RECIPES) == NAMES


# --- the DDGAN step of the authors


class GivenStep(Step):
    """Hands out given draws instead of random ones, in order."""

    def __init__(self, numbers: list[Tensor], noises: list[Tensor]) -> None:
        super().__init__(number=0, images_seen=0, rng=torch.Generator())
        self.numbers, self.noises = numbers, noises

    def randn(self, *shape: int, device: torch.device) -> Tensor:
        found = self.noises.pop(0)
        assert tuple(found.shape) == shape
        return found

    def randint(self, high: int, size: int, device: torch.device) -> Tensor:
        return self.numbers.pop(0)


@pytest.fixture(scope="module")
def case() -> OracleCase:
    return load_oracle("ddgan/train_step_small.npz")


@pytest.fixture
def task(case: OracleCase) -> DDGANTask:
    recipe = RECIPES["paper"].model_copy(
        update={
            "generator": case.meta["g_config"], "discriminator": case.meta["d_config"], "batch": 8,
            "num_timesteps": 4, "r1_gamma": case.meta["r1_gamma"],
        }
    )  # fmt: skip
    task = DDGANTask(recipe, CPU)
    for name, network in task.networks.items():
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        network.load_state_dict(ddgan_weights(shapes, case.meta[f"weight_seed_{name}"]))
    return task


def drawn(task: DDGANTask, case: OracleCase) -> tuple[Tensor, ...]:
    noises = [case[name] for name in ("noise_q", "noise_step", "noise_post", "z")]
    return task._draw(case["x0"], GivenStep([case["t"]], noises))


def test_the_ddgan_step_has_the_authors_losses_and_gradients(task: DDGANTask, case: OracleCase) -> None:
    draws = drawn(task, case)
    torch.testing.assert_close(draws[0], case["x_t"], atol=2e-6, rtol=0)
    torch.testing.assert_close(draws[1], case["x_tp1"], atol=2e-6, rtol=0)
    losses = task.discriminator_losses(*draws, penalised=True)
    for name, oracle in (("real", "errD_real"), ("fake", "errD_fake"), ("r1", "grad_penalty")):
        torch.testing.assert_close(losses[name].detach(), case[oracle], atol=2e-5, rtol=0, msg=name)
    check_gradients(task.networks["D"], torch.stack(list(losses.values())).sum(), case.meta["grad_norms"]["D"])
    loss = task.generator_loss(*draws)
    torch.testing.assert_close(loss.detach(), case["errG"], atol=2e-5, rtol=0)
    check_gradients(task.networks["G"], loss, case.meta["grad_norms"]["G"])


def check_gradients(network: nn.Module, loss: Tensor, expected: dict[str, float]) -> None:
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    norms = {name: float(gradient.norm()) for name, gradient in zip(names, gradients, strict=True)}
    assert norms.keys() == expected.keys()
    assert norms == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_ddgan_penalty_is_on_the_less_noisy_real_images_alone(task: DDGANTask, case: OracleCase) -> None:
    x_t = case["x_t"].clone().requires_grad_()
    logits = task.networks["D"](x_t, case["t"], case["x_tp1"])
    (gradient,) = torch.autograd.grad(logits.sum(), x_t, retain_graph=True)
    torch.testing.assert_close(gradient, case["grad_real"], atol=2e-5, rtol=1e-5)
    penalty = gradient_penalty(logits, x_t, 0.02)
    torch.testing.assert_close(penalty.detach(), case["grad_penalty"], atol=2e-5, rtol=0)
    torch.testing.assert_close(penalty.detach(), 0.01 * case["grad_real"].square().sum((1, 2, 3)).mean())


def test_the_ddgan_penalty_comes_every_interval_and_is_not_scaled(task: DDGANTask, case: OracleCase) -> None:
    with_r1 = task.discriminator_losses(*drawn(task, case), penalised=True)
    without = task.discriminator_losses(*drawn(task, case), penalised=False)
    assert set(with_r1) - set(without) == {"r1"}
    for name in without:
        torch.testing.assert_close(with_r1[name], without[name])
    seen = []
    tiny = tiny_task("ddgan", r1_interval=3)
    original = tiny.discriminator_losses
    tiny.discriminator_losses = lambda *a, penalised: seen.append(penalised) or original(*a, penalised=penalised)
    images = torch.zeros(BATCH, *tiny.image_shape)
    for number in range(5):
        tiny.step(images, None, Step(number, number * BATCH, torch.Generator()))
    assert seen == [True, False, False, True, False]


def test_the_ddgan_step_trains_each_network_by_its_own_loss(task: DDGANTask, case: OracleCase) -> None:
    losses = task.discriminator_losses(*drawn(task, case), penalised=False)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None for p in task.networks["G"].parameters())
    before = {k: v.clone() for k, v in task.networks["D"].state_dict().items()}
    task.update("G", task.generator_loss(*drawn(task, case)))
    after = task.networks["D"].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("end", [0.0, 2.0])
def test_the_denoising_term_falls_to_its_end_and_the_papers_recipe_has_none(end: float) -> None:
    task = tiny_task("ddgan", denoising=10.0, denoising_end=end, denoising_kimg=2 * BATCH / 1000)
    images = torch.rand(BATCH, *task.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def loss_g(task: Any, number: int) -> float:
        step = Step(number, number * BATCH, torch.Generator().manual_seed(3))
        return float(task.step(images, None, step)["loss_g"])

    state = copy.deepcopy(task.state())
    extra = []
    for number in range(4):
        task.load_state(copy.deepcopy(state))
        extra.append(loss_g(task, number) - loss_g(tiny_task("ddgan", denoising=0.0, denoising_end=0.0), number))
    assert extra[0] == pytest.approx(10 * float(images.square().mean()), rel=0.2)  # an untrained network says nearly 0
    assert extra[1] == pytest.approx(extra[0] * (10 + end) / 20, rel=0.01)
    assert extra[2] == pytest.approx(extra[0] * end / 10, rel=0.01)
    assert extra[3] == pytest.approx(extra[2], rel=0.01)
    assert RECIPES["paper"].denoising == 0


def test_a_denoising_term_that_fades_over_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="denoising_kimg, which must be more than 0; got 0"):
        DDGANRecipe.model_validate({**RECIPES["paper"].model_dump(), "denoising": 2.0})


def test_the_last_step_can_have_a_squared_error_of_its_own_weight(task: DDGANTask, case: OracleCase) -> None:
    parts = drawn(task, case)
    images, t = parts[0], parts[2]
    error = (task._predict(parts[1], t, parts[3]) - images).square().mean((1, 2, 3)).detach()
    assert 0 < int((t == 0).sum()) < len(t)
    task.recipe = task.recipe.model_copy(update={"denoising_last": 5.0})
    for denoising in (0.0, 2.0):
        extra = task.generator_loss(*parts, images=images, denoising=denoising) - task.generator_loss(*parts)
        torch.testing.assert_close(extra, (torch.where(t == 0, 5.0, denoising) * error).mean(), atol=1e-5, rtol=1e-5)
    assert RECIPES["paper"].denoising_last is None


def test_relativistic_losses_compare_the_two_images_of_one_noisier_image(task: DDGANTask, case: OracleCase) -> None:
    def logits(x: Tensor) -> Tensor:
        return task.networks["D"](x, case["t"], case["x_tp1"])

    task.recipe = task.recipe.model_copy(update={"loss": "relativistic"})
    x_t, x_next, t, z, noise = drawn(task, case)
    generated = task._generate(x_next, t, z, noise).detach().requires_grad_()
    margin = logits(x_t) - logits(generated)
    losses = task.discriminator_losses(x_t, x_next, t, z, noise, penalised=True)
    assert set(losses) == {"pairs", "r1", "r2"}
    torch.testing.assert_close(losses["pairs"], -torch.sigmoid(margin).log().mean(), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(logits(generated).sum(), generated)
    expected = task.recipe.r1_gamma / 2 * gradient.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(losses["r2"].detach(), expected, atol=2e-5, rtol=1e-5)
    assert set(task.discriminator_losses(x_t, x_next, t, z, noise, penalised=False)) == {"pairs"}
    loss_g = task.generator_loss(x_t, x_next, t, z, noise)
    torch.testing.assert_close(loss_g, -torch.sigmoid(-margin).log().mean(), atol=1e-5, rtol=1e-5)
    assert RECIPES["paper"].loss == "non_saturating"


def test_paired_noise_leaves_the_images_alone_between_real_and_generated() -> None:
    """The real x_t keeps its law given x_0 and x_{t+1}; it is the generated one where the generator knows x_0."""
    task = tiny_task("ddgan", paired_noise=True)
    images = torch.linspace(-1, 1, 4)[:, None, None, None].repeat(200, *task.image_shape)
    step = Step(0, 0, torch.Generator().manual_seed(0))
    task.recipe = task.recipe.model_copy(update={"batch": len(images)})
    x_t, x_next, t, _, noise = task._draw(images, step)
    torch.testing.assert_close(x_t, task.chain.previous(images, x_next, t, noise))
    signal, scale = (values[t].float()[:, None, None, None] for values in (task.chain.signal, task.chain.noise))
    for index in range(task.recipe.num_timesteps):
        mine = (x_t - signal * images)[t == index]
        assert float(mine.std()) == pytest.approx(float(scale[t == index][0]), rel=0.01)
        # x_{t+1} comes of x_t by the forward step, whose noise knows nothing of x_t.
        beta = float(task.chain.betas[index])
        forward = (x_next[t == index] - (1 - beta) ** 0.5 * x_t[t == index]) / beta**0.5
        assert float(forward.std()) == pytest.approx(1, rel=0.01)
        assert abs(float((forward * mine).mean())) < 0.01
    assert not RECIPES["paper"].paired_noise


def test_the_generator_learns_by_regression_first_and_the_critic_not_at_all() -> None:
    settings = {"regression_kimg": 2 * BATCH / 1000, "lr_regression": 0.01, "lr_g": 0.001}
    task = tiny_task("ddgan", loss="relativistic", **settings)
    images = torch.rand(BATCH, *task.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed = []
    for number in range(3):
        before = copy.deepcopy(task.state()["networks"])
        step = Step(number, number * BATCH, torch.Generator().manual_seed(number))
        task.set_rates(step)
        losses = task.step(images, None, step)
        after = task.state()["networks"]
        changed.append({k for k in "GD" if any(not torch.equal(before[k][n], after[k][n]) for n in before[k])})
        if number == 0:
            assert float(losses["loss_g"]) == pytest.approx(float(images.square().mean()), rel=0.2)
    assert changed == [{"G"}, {"G"}, {"G", "D"}]
    rates = [tiny_task("ddgan", **settings).rates(Step(n, n * BATCH, torch.Generator()))["G"] for n in range(3)]
    assert rates == pytest.approx([0.01 / WARM_UP_STEPS, 0.0055 * 2 / WARM_UP_STEPS, 0.001])
    assert RECIPES["paper"].regression_kimg == 0


def test_the_critic_learns_alone_before_the_generator_starts() -> None:
    kimg = BATCH / 1000
    task = tiny_task("ddgan", regression_kimg=kimg, critic_kimg=2 * kimg, lr_regression=0.01, lr_g=0.001)
    images = torch.zeros(BATCH, *task.image_shape)
    trained, rates = [], []
    task.update = lambda name, loss, **_: trained.append(name)
    for number in range(6):
        step = Step(number, number * BATCH, torch.Generator())
        rates.append(task.rates(step)["G"])
        task.step(images, None, step)
    assert "".join(trained) == "G" + "D" + "D" + "D" + "DG" + "DG"
    assert rates[1:] == pytest.approx([0.0, 0.0, 0.0, 0.0005, 0.001])
    assert RECIPES["paper"].critic_kimg == 0


def test_the_critic_takes_several_steps_for_one_of_the_generator() -> None:
    task = tiny_task("ddgan", critic_steps=3)
    images = torch.zeros(BATCH, *task.image_shape)
    trained = []
    task.update = lambda name, loss, **_: trained.append(name)
    for number in range(2, 7):
        task.step(images, None, Step(number, number * BATCH, torch.Generator()))
    assert "".join(trained) == "D" + "DG" + "DD" + "DG"


def test_the_losses_are_those_of_a_logistic_classifier() -> None:
    logits = torch.tensor([-30.0, 0.0, 2.0])
    probability = torch.sigmoid(logits.double())
    assert float(real_loss(logits)) == pytest.approx(float(-probability.log().mean()), rel=1e-6)
    assert float(fake_loss(logits)) == pytest.approx(float(-(1 - probability).log().mean()), rel=1e-6)


# --- the other families' steps


def test_the_ddpm_loss_is_the_mean_square_of_the_noise_at_first() -> None:
    """An untrained network whose last layer is zero predicts no noise at all: the loss is the noise's variance."""
    task = tiny_task("ddpm", batch=64, gradient_clip=1e9)
    last = task.networks["eps"].unet.conv_out  # type: ignore[union-attr]
    nn.init.zeros_(last.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(last.bias)  # type: ignore[union-attr, arg-type]
    images = torch.zeros(64, *task.image_shape)
    labels = torch.arange(4) if task.image_shape == (2,) else None
    losses = task.step(images, labels, Step(0, 0, torch.Generator().manual_seed(1)))
    assert float(losses["loss"]) == pytest.approx(1.0, abs=0.05)


def test_min_snr_weighs_the_clean_steps_less() -> None:
    found = {}
    for weight in ("simple", "min_snr"):
        task = tiny_task("ddpm", loss_weight=weight, log_sigma=None, num_train_steps=1000, unet=TINY_UNET)
        step = GivenStep([torch.zeros(BATCH, dtype=torch.long)], [torch.ones(BATCH, *task.image_shape)])
        found[weight] = float(task.step(torch.zeros(BATCH, *task.image_shape), None, step)["loss"])
    snr = (1 - 1e-4) / 1e-4
    assert found["min_snr"] == pytest.approx(found["simple"] * 5 / snr, rel=1e-4)


def test_the_noise_of_lognormal_timesteps_has_that_mean_and_deviation() -> None:
    """The chain has many steps in that range: what rounding to one of them adds is small."""
    task = tiny_task("ddpm", log_sigma=(-0.4, 1.2), num_train_steps=1000, unet=TINY_UNET)
    seen: list[Tensor] = []
    task.networks["eps"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))  # type: ignore[union-attr]
    for number in range(200):
        step = Step(number, 0, torch.Generator().manual_seed(number))
        task.step(torch.zeros(BATCH, *task.image_shape), None, step)
    log_noise = Chain(linear_betas()).sigma[torch.cat(seen)].log()
    assert float(log_noise.mean()) == pytest.approx(-0.4, abs=5 * 1.2 / math.sqrt(len(log_noise)))
    assert float(log_noise.std()) == pytest.approx(1.2, rel=5 / math.sqrt(2 * len(log_noise)))


def test_a_unet_written_for_the_compiler_is_the_same() -> None:
    torch.manual_seed(0)
    net = unet.build(registry.get("trainer", "ddpm").recipes["cpu-small"].unet)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, t, names = torch.randn(2, 3, 32, 32), torch.tensor([3, 700]), set(net.state_dict())
    expected = net(x, t)
    unet.write_for_compiler(net)
    assert set(net.state_dict()) == names
    torch._dynamo.reset()
    for function in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(function(x, t), expected, atol=1e-5, rtol=1e-5)
    assert not [module for module in net.modules() if type(module) in (nn.GroupNorm, nn.SiLU)]
    kinds = {type(module.processor).__name__ for module in net.modules() if hasattr(module, "processor")}
    assert kinds == {"AttnProcessor"}


@pytest.mark.parametrize("weight", ["simple", "min_snr"])
@pytest.mark.parametrize("t", [0, 500, 999])
def test_a_network_that_predicts_v_learns_v(t: int, weight: str) -> None:
    """One that says 0 has v for an error: here of x_0 = 1/2 and noise 1 everywhere."""
    drawn_by = {"log_sigma": None, "num_train_steps": 1000}
    task = tiny_task("ddpm", prediction_type="v_prediction", loss_weight=weight, unet=TINY_UNET, **drawn_by)
    for parameter in task.networks["eps"].unet.conv_out.parameters():  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    shape = (BATCH, *task.image_shape)
    step = GivenStep([torch.full((BATCH,), t)], [torch.ones(shape)])
    alpha_bar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * s / 999) for s in range(t + 1))
    snr = alpha_bar / (1 - alpha_bar)
    expected = (math.sqrt(alpha_bar) - 0.5 * math.sqrt(1 - alpha_bar)) ** 2
    expected *= min(snr, 5) / (snr + 1) if weight == "min_snr" else 1
    assert float(task.step(torch.full(shape, 0.5), None, step)["loss"]) == pytest.approx(expected, rel=1e-4)


def test_v_says_the_noise() -> None:
    chain, t = Chain(linear_betas()), torch.tensor([0, 500, 999])
    x0, noise = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    said = chain.eps_of(chain.v_of(x0, noise, t), chain.q_sample(x0, t, noise), t)
    torch.testing.assert_close(said, noise, atol=1e-5, rtol=1e-5)


def test_ddpm_learning_rate_warms_up_and_stays() -> None:
    task = tiny_task("ddpm", warmup_steps=4, lr=0.8e-3)
    rates = [task.rates(Step(number, 0, torch.Generator()))["eps"] for number in range(6)]
    assert rates == pytest.approx([0.2e-3, 0.4e-3, 0.6e-3, 0.8e-3, 0.8e-3, 0.8e-3])


def test_ddpms_learning_rate_falls_as_one_over_the_root_of_the_images_seen() -> None:
    task = tiny_task("ddpm", warmup_steps=1, lr=1e-3, decay_kimg=100)
    rates = [task.rates(Step(9, images_seen, torch.Generator()))["eps"] for images_seen in (0, 100_000, 400_000)]
    assert rates == pytest.approx([1e-3, 1e-3, 0.5e-3])


def test_ddgan_learning_rates_fall_on_the_cosine_of_torch_once_an_epoch() -> None:
    epochs, start, end = 7, 1.6e-4, 1e-5
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=start)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=end)
    for epoch in range(epochs + 1):
        for images_seen in (epoch * 50_000, epoch * 50_000 + 49_999):
            expected = optimizer.param_groups[0]["lr"]
            assert cosine_lr(start, end, images_seen, epochs * 50) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        scheduler.step()
    assert cosine_lr(start, end, 10**9, 350) == pytest.approx(end)


@pytest.mark.parametrize("cosine", [True, False])
def test_ddgan_sets_both_learning_rates_by_its_recipe(cosine: bool) -> None:
    task = tiny_task("ddgan", cosine=cosine, duration_kimg=100, lr_g=2e-4, lr_d=1e-4)
    task.set_rates(Step(1, 50_000, torch.Generator()))
    rates = [task.optimizers[name].param_groups[0]["lr"] for name in ("G", "D")]
    assert rates == pytest.approx([(2e-4 + 1e-5) / 2, (1e-4 + 1e-5) / 2] if cosine else [2e-4, 1e-4])


def test_stylegan2_rescales_its_optimisers_for_lazy_regularisation() -> None:
    task = tiny_task("stylegan2", lr=0.002, g_interval=4, r1_interval=16)
    for name, ratio in (("G", 4 / 5), ("D", 16 / 17)):
        group = task.optimizers[name].param_groups[0]
        assert group["lr"] == pytest.approx(0.002 * ratio)
        assert group["betas"] == pytest.approx((0.0, 0.99**ratio))


# --- order of the data


@pytest.mark.parametrize(("num_images", "batch"), [(10, 4), (10, 5), (7, 3), (10, 25), (6, 6), (5, 1)])
def test_each_epoch_has_every_image_exactly_once(num_images: int, batch: int) -> None:
    epochs = 3
    steps = -(-epochs * num_images // batch)
    order = np.concatenate([batch_indices(num_images, batch, step, seed=2) for step in range(steps)])
    parts = order[: epochs * num_images].reshape(epochs, num_images)
    assert all(sorted(part) == list(range(num_images)) for part in parts)
    assert len({tuple(part) for part in parts}) == epochs
    assert all(len(batch_indices(num_images, batch, step, seed=2)) == batch for step in range(steps))


def test_the_order_is_of_the_seed() -> None:
    orders = {tuple(batch_indices(50, 50, 0, seed)) for seed in (0, 0, 1, 2)}
    assert len(orders) == 3


def test_a_batch_is_the_chosen_images_in_minus_one_to_one_flipped_at_random() -> None:
    task = tiny_task("ddpm", flips=True)
    data = tiny_images(task, 30)
    feed = Feed(data.read(0, 30), data.labels, task.recipe, CPU)
    step = Step(2, 0, torch.Generator().manual_seed(3))
    images, labels = feed(step)
    chosen = batch_indices(30, BATCH, 2, 0)
    plain = torch.from_numpy(data.array[chosen]).float() / 127.5 - 1
    flipped = [torch.equal(image, original.flip(2)) for image, original in zip(images, plain, strict=True)]
    kept = [torch.equal(image, original) for image, original in zip(images, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 0 < sum(flipped) < BATCH
    assert labels is not None
    assert data.labels is not None
    assert labels.tolist() == data.labels[chosen].tolist()
    assert (float(plain.min()), float(plain.max())) == (-1.0, 1.0)


def test_two_processes_together_have_one_processs_batch_and_draws() -> None:
    task = tiny_task("ddpm")
    data = tiny_images(task)
    feed = Feed(data.read(0, 20), data.labels, task.recipe, CPU)

    def at(rank: int, world: int) -> tuple[Tensor, ...]:
        step = Step(1, BATCH, torch.Generator().manual_seed(4), rank, world)
        images, labels = feed(step)
        assert labels is not None
        return images, labels, step.randint(9, BATCH, CPU), step.randn(BATCH, 3, device=CPU)

    for whole, first, second in zip(at(0, 1), at(0, 2), at(1, 2), strict=True):
        assert torch.equal(whole[0::2], first)
        assert torch.equal(whole[1::2], second)


# --- averages


def test_an_average_has_one_rule() -> None:
    for wrong in ({}, {"decay": 0.9, "halflife_kimg": 1.0}):
        with pytest.raises(ValueError, match="a decay or a half-life, and not both"):
            EmaSpec(**wrong)
    assert EmaSpec(decay=0.999).decay_at(0, 64) == 0.999


def test_after_a_half_life_half_of_the_old_average_is_left() -> None:
    spec = EmaSpec(halflife_kimg=2)
    assert spec.decay_at(10**6, 500) ** 4 == pytest.approx(0.5)


def test_the_ramp_shortens_the_half_life_to_a_part_of_what_was_seen() -> None:
    spec = EmaSpec(halflife_kimg=500, rampup=0.05)
    assert spec.decay_at(0, 64) == 0.0
    assert spec.decay_at(64_000, 64) == pytest.approx(0.5 ** (64 / 3200))
    assert spec.decay_at(10**9, 64) == pytest.approx(0.5 ** (64 / 500_000))


@pytest.mark.parametrize("spec", [{"decay": 0.9}, {"halflife_kimg": 2}])
def test_an_update_every_few_steps_counts_for_all_of_them(spec: dict[str, float]) -> None:
    often, seldom = EmaSpec(**spec), EmaSpec(**spec, every=4)
    assert seldom.decay_at(10**6, 64) == pytest.approx(often.decay_at(10**6, 64) ** 4)


def test_an_average_every_few_steps_moves_after_the_last_of_them() -> None:
    task = tiny_task("ddpm", ema=EmaSpec(decay=0.5, every=3), unet=TINY_UNET)
    (parameter, *_), (average, *_) = task.networks["eps"].parameters(), task.averages["eps"].parameters()
    start = average.clone()
    with torch.no_grad():
        parameter.add_(8)
    for number, moved in enumerate([0, 0, 7, 7, 7, 7.875]):
        task.average(Step(number, number * BATCH, torch.Generator()))
        torch.testing.assert_close(average, start + moved)


def test_how_often_is_a_part_of_the_digest_where_it_is_not_after_each_step() -> None:
    """Digests of recipes without it are those of before: the weights that ship name them."""
    assert EmaSpec(decay=0.9).model_dump(mode="json") == {"decay": 0.9, "halflife_kimg": None, "rampup": None}
    assert EmaSpec(decay=0.9, every=4).model_dump(mode="json")["every"] == 4
    with pytest.raises(ValueError, match="every"):
        EmaSpec(decay=0.9, every=0)


@pytest.mark.parametrize("norm", [0.5, 1.0, 1.000001, 3.0])
def test_gradients_are_clipped_as_torch_clips_them(norm: float) -> None:
    found = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    expected = [nn.Parameter(p.detach().clone()) for p in found]
    for parameters in (found, expected):
        parameters[0].grad, parameters[1].grad = torch.tensor([0.0, 0.6, 0.0]) * norm, torch.full((2, 2), 0.4) * norm
    clip_gradients(found, 1.0)
    torch.nn.utils.clip_grad_norm_(expected, 1.0)
    for mine, theirs in zip(found[:2], expected, strict=False):
        assert torch.equal(mine.grad, theirs.grad)  # type: ignore[arg-type]
    assert found[2].grad is None


def test_an_average_moves_parameters_and_copies_buffers() -> None:
    network = nn.BatchNorm1d(2)
    average = ema_copy(network)
    assert not average.training
    assert not any(p.requires_grad for p in average.parameters())
    with torch.no_grad():
        network.weight.fill_(5.0)
        network.running_mean.fill_(7.0)  # type: ignore[union-attr]
    ema_update(average, network, 0.75)
    assert average.weight.tolist() == [2.0, 2.0]  # type: ignore[union-attr, operator]
    assert average.running_mean.tolist() == [7.0, 7.0]  # type: ignore[union-attr, operator]
    assert network.weight.tolist() == [5.0, 5.0]
    ema_update(average, network, 0.0)
    assert average.weight.tolist() == [5.0, 5.0]  # type: ignore[union-attr, operator]


# --- going on after a stop


def state_of(out: Path) -> dict[str, Any]:
    state = _checkpoint.load(out)
    assert state is not None
    return {"step": state["step"], **state["task"]}


def assert_same(one: Any, other: Any) -> None:
    """Bitwise, through all containers."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert one == other


def stop_at(task: Task, number: int, what: Callable[[], None]) -> Task:
    """The same task, which does `what` before step `number`."""
    original = task.step

    def step(images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        if step.number == number:
            what()
        return original(images, labels, step)

    task.step = step  # type: ignore[method-assign]
    return task


def kill() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("name", "bf16"), [*((name, False) for name in NAMES), ("ddgan", True)])
def test_a_killed_run_goes_on_to_the_very_same_weights(
    name: str, bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps after the last checkpoint are lost and made again; dropout, augmentation and optimisers come along."""
    monkeypatch.setattr(_loop, "computes_bf16", lambda device: True)
    result = run(tiny_task(name, bf16=bf16), tmp_path / "straight")
    assert (result["finished"], result["images_seen"]) == (True, 6 * BATCH)
    run(tiny_task(name, bf16=bf16), tmp_path / "killed", kimg=3 * BATCH / 1000)
    assert state_of(tmp_path / "killed")["step"] == 3
    with pytest.raises(KeyboardInterrupt):
        run(stop_at(tiny_task(name, bf16=bf16), 5, kill), tmp_path / "killed")
    assert state_of(tmp_path / "killed")["step"] == 3
    result = run(tiny_task(name, bf16=bf16), tmp_path / "killed")
    assert (result["finished"], result["images_seen"]) == (True, 6 * BATCH)
    assert_same(state_of(tmp_path / "straight"), state_of(tmp_path / "killed"))
    weights = [read_tensors(tmp_path / run_ / "weights.safetensors")[0] for run_ in ("straight", "killed")]
    assert_same(*weights)
    curves = [curve(tmp_path / run_) for run_ in ("straight", "killed")]
    losses = [[{k: v for k, v in row.items() if "loss" in k} for row in rows] for rows in curves]
    assert losses[0] == losses[1]


def curve(out: Path) -> list[dict[str, str]]:
    with open(out / "curve.csv", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(("asked", "has"), [(True, True), (True, False), (False, True)])
def test_networks_compute_in_bfloat16_where_recipe_and_device_both_do(
    asked: bool, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 else: a CPU without such instructions takes many times as long for them."""
    monkeypatch.setattr(_loop, "computes_bf16", lambda device: has)
    task = tiny_task("ddgan", bf16=asked)
    seen = []
    convolution = next(part for part in task.networks["G"].modules() if isinstance(part, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    run(task, tmp_path, kimg=BATCH / 1000)
    expected = torch.bfloat16 if asked and has else torch.float32
    assert set(seen) == {expected}
    assert json.loads((tmp_path / "run.json").read_text())["precision"] == str(expected).removeprefix("torch.")


def test_the_augmentation_of_the_tiny_stylegan2_run_is_on(tmp_path: Path) -> None:
    """So that the test above says something about its state."""
    run(tiny_task("stylegan2"), tmp_path, kimg=2 * BATCH / 1000)
    assert state_of(tmp_path)["extra"]["ada"]["p"] == 1.0


def test_training_moves_every_network_and_its_average(tmp_path: Path) -> None:
    for name in NAMES:
        # The whole of a short run: a latent score model trains its prior in the later part alone.
        task = tiny_task(name, duration_kimg=3 * BATCH / 1000)
        before = {key: [p.clone() for p in net.parameters()] for key, net in task.networks.items()}
        run(task, tmp_path / name, kimg=3 * BATCH / 1000)
        for key, net in task.networks.items():
            moved = [not torch.equal(a, b) for a, b in zip(before[key], net.parameters(), strict=True)]
            assert sum(moved) > 0.9 * len(moved), (name, key)
        for key, average in task.averages.items():
            pairs = zip(before[key], task.networks[key].parameters(), average.parameters(), strict=True)
            between = [not torch.equal(mean, new) and not torch.equal(mean, old) for old, new, mean in pairs]
            assert sum(between) > 0.9 * len(between), (name, key)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_under_way_with_nothing_lost(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    result = run(stop_at(tiny_task("ddpm"), 2, lambda: signal.raise_signal(number)), tmp_path)
    assert (result["finished"], result["interrupted"], result["images_seen"]) == (False, True, 3 * BATCH)
    assert state_of(tmp_path)["step"] == 3
    assert not run(tiny_task("ddpm"), tmp_path)["interrupted"]
    assert signal.getsignal(number) is before


def test_a_time_limit_stops_with_a_checkpoint_and_a_finished_run_stays_finished(tmp_path: Path) -> None:
    assert run(tiny_task("ddpm"), tmp_path, minutes=0.0)["images_seen"] == 0
    assert state_of(tmp_path)["step"] == 0
    assert run(tiny_task("ddpm"), tmp_path)["finished"]
    content = (tmp_path / "weights.safetensors").read_bytes()
    again = run(tiny_task("ddpm"), tmp_path)
    assert (again["finished"], again["images_seen"], again["losses"]) == (True, 6 * BATCH, {})
    assert (tmp_path / "weights.safetensors").read_bytes() == content


def test_hours_add_up_over_sessions(tmp_path: Path) -> None:
    run(tiny_task("ddpm"), tmp_path, kimg=3 * BATCH / 1000)
    checkpoint = _checkpoint.load(tmp_path)
    assert checkpoint is not None
    assert run(tiny_task("ddpm"), tmp_path)["hours"] > checkpoint["seconds"] / 3600 > 0


def test_a_folder_of_another_recipe_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(tiny_task("ddpm"), tmp_path, kimg=BATCH / 1000)
    content = (tmp_path / "checkpoint.pt").read_bytes()
    for other in (tiny_task("ddpm", lr=0.5), tiny_task("ddgan")):
        with pytest.raises(TrainingError, match="run of another recipe.*Give another --out"):
            run(other, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


def test_a_changed_recipe_has_another_digest_even_after_the_first_was_read() -> None:
    recipe = tiny_recipe("ddpm")
    first = recipe.digest
    assert recipe.model_copy(update={"lr": 0.5}).digest != first
    assert recipe.model_copy().digest == first


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_a_broken_checkpoint_is_refused_by_its_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: cannot be read as a checkpoint .* Move it away"):
        run(tiny_task("ddpm"), tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"recipe": Runs()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="cannot be read"):
        run(tiny_task("ddpm"), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_interrupted_checkpoint_leaves_the_last_one_and_nothing_beside_it(tmp_path: Path) -> None:
    _checkpoint.save(tmp_path, {"step": 1})
    with pytest.raises(TypeError):
        _checkpoint.save(tmp_path, {"step": 2, "no": (item for item in ())})
    assert _checkpoint.load(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


# --- a run that cannot go on


def poison(task: Task, network: str) -> Callable[[], None]:
    """Makes one weight NaN."""

    def act() -> None:
        with torch.no_grad():
            next(p for p in task.networks[network].parameters() if p.ndim == 1)[0] = math.nan

    return act


@pytest.mark.parametrize(("name", "network"), [("ddpm", "eps"), ("ddgan", "G"), ("ddgan", "D"), ("stylegan2", "G")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    name: str, network: str, tmp_path: Path
) -> None:
    task = tiny_task(name, ada=None) if name == "stylegan2" else tiny_task(name)
    stop_at(task, 3, poison(task, network))
    with pytest.raises(TrainingError, match=r"step 4: loss is not finite .*start again to go on from it"):
        run(task, tmp_path, checkpoint_minutes=0.0)
    assert state_of(tmp_path)["step"] == 3
    assert all(torch.isfinite(v).all() for net in state_of(tmp_path)["networks"].values() for v in net.values())
    assert run(tiny_task(name, ada=None) if name == "stylegan2" else tiny_task(name), tmp_path)["finished"]


@pytest.mark.parametrize("network", ["G", "D"])
def test_weights_that_are_not_finite_are_never_saved(network: str, tmp_path: Path) -> None:
    """Between two rows of the curve nobody looks at the losses; the last row comes after the checkpoint here."""
    run(tiny_task("ddgan"), tmp_path, kimg=2 * BATCH / 1000)
    content = (tmp_path / "checkpoint.pt").read_bytes()
    task = tiny_task("ddgan")
    original = task.average
    # After the step, so that no loss and no average has seen it yet.
    task.average = lambda step: (original(step), poison(task, network)())  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=f"the weights of {network} are not finite. The last good checkpoint"):
        run(task, tmp_path, log_seconds=1e9, checkpoint_minutes=0.0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


# --- what a run leaves on disk


@pytest.mark.parametrize("name", DRAWING)
def test_a_run_leaves_a_curve_a_grid_its_recipe_and_weights_that_sample(name: str, tmp_path: Path) -> None:
    task = tiny_task(name)
    run(task, tmp_path, kimg=3 * BATCH / 1000)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        "checkpoint.pt", "weights.safetensors", "resume.safetensors", "curve.csv", "run.json", "grids", "snapshots",
    }  # fmt: skip
    rows = curve(tmp_path)
    assert [int(row["images_seen"]) for row in rows] == [BATCH, 2 * BATCH, 3 * BATCH]
    losses = [key for key in rows[0] if key.startswith("loss")]
    assert losses
    assert all(math.isfinite(float(row[key])) for row in rows for key in losses)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["recipe"] == task.recipe.model_dump(mode="json")
    assert about["images_seen"] == 3 * BATCH
    (grid,) = (tmp_path / "grids").iterdir()
    side = 32 if is_points(task.image_shape) else task.image_shape[1]
    with Image.open(grid) as image:
        assert image.size == (8 * side, 8 * side)
        assert len(np.unique(np.asarray(image))) > 3

    kind = registry.get("sampler", name)
    weights = kind.load(tmp_path / "weights.safetensors")
    steps = {"steps": 2} if "steps" in kind.options.model_fields else {}
    sampler = kind.build(kind.options(**steps), weights, micro_batch=2)
    assert sampler.sample(torch.arange(2)).shape == (2, *task.image_shape)
    # A GAN of points keeps its discriminator beside the generator, which comes first.
    average = next(iter(task.averages.values()))
    networks: dict[str, torch.nn.Module] = sampler.networks
    network = next(iter(networks.values())) if len(networks) == 1 else torch.nn.ModuleDict(networks)
    pairs = zip(average.state_dict().items(), network.state_dict().values(), strict=True)
    for (key, ours), loaded in pairs:
        assert torch.equal(ours.half().float(), loaded), key


def test_grids_come_when_they_are_due(tmp_path: Path) -> None:
    run(tiny_task("stylegan2", steps=3), tmp_path, checkpoint_minutes=0.0, grid_minutes=0.0)
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == [
        f"{BATCH * step:09d}.png" for step in (1, 2, 3)
    ]


def test_a_curve_that_a_kill_cut_off_goes_on_after_its_last_whole_row(tmp_path: Path) -> None:
    run(tiny_task("ddpm"), tmp_path, kimg=3 * BATCH / 1000)
    with open(tmp_path / "curve.csv", "a") as stream:
        stream.write("32,0.1,5.0,0.9\r\n40,0.1")
    run(tiny_task("ddpm"), tmp_path)
    assert [int(row["images_seen"]) for row in curve(tmp_path)] == [BATCH * step for step in range(1, 7)]
    assert all(len(row) == 4 and row["loss"] for row in curve(tmp_path))


def test_progress_is_reported_with_losses(tmp_path: Path) -> None:
    from trilemma_bench.training._loop import Limits, train

    task, seen = tiny_task("ddpm", steps=3), []
    train(task, tiny_images(task), tmp_path, limits=Limits(log_seconds=0.0), report=seen.append)
    assert [each.images_seen for each in seen] == [8, 16, 24]
    assert all(each.total_images == 24 and math.isfinite(each.losses["loss"]) for each in seen)


def test_large_weights_are_not_lost_in_half_precision(tmp_path: Path) -> None:
    tensors = {"large": torch.tensor([1e6, 1.0]), "small": torch.tensor([0.1]), "whole": torch.tensor([3])}
    write_weights(tmp_path / "w.safetensors", tensors, config={"a": [1, 2]})
    found, config = read_tensors(tmp_path / "w.safetensors")
    assert config == {"a": [1, 2]}
    assert {key: value.dtype for key, value in found.items()} == {
        "large": torch.float32, "small": torch.float16, "whole": torch.int64,
    }  # fmt: skip
    assert found["large"].tolist() == [1e6, 1.0]


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name in NAMES:
        run(tiny_task(name), tmp_path / name, kimg=BATCH / 1000)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_first_weights_are_of_the_recipes_seed() -> None:
    for name in NAMES:
        drawn = [tiny_task(name, seed=seed).networks for seed in (0, 0, 1)]
        flat = [torch.cat([p.flatten() for net in nets.values() for p in net.parameters()]) for nets in drawn]
        assert torch.equal(flat[0], flat[1])
        assert not torch.equal(flat[0], flat[2])


# --- the papers' sizes

SIZES = [
    ("ddgan", lambda recipe: ncsnpp.build_generator(recipe.generator), 48_432_515),
    ("ddgan", lambda recipe: ncsnpp.build_discriminator(recipe.discriminator), 12_741_633),
    ("ddpm", lambda recipe: unet.build(recipe.unet), 35_746_307),
    ("stylegan2", lambda recipe: stylegan2.build_generator(recipe.generator), 19_947_539),
    ("stylegan2", lambda recipe: stylegan2.build_discriminator(recipe.discriminator), 20_720_641),
]


@pytest.mark.parametrize(("name", "build", "parameters"), SIZES)
def test_the_paper_recipes_have_the_published_sizes(name: str, build: Any, parameters: int) -> None:
    with torch.device("meta"):
        network = build(registry.get("trainer", name).recipes["paper"])
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("name", DRAWING)
def test_the_papers_recipe_trains(name: str) -> None:
    """As published but for the batch: 4 images instead of 64 to 256. The first step has the lazy penalties too.

    The second is as most are: without them, and StyleGAN2-ADA's with augmentations.
    """
    kind: TrainerKind = registry.get("trainer", name)
    paper = kind.recipes.get("paper") or kind.recipes["gaussians25-paper"]
    task = kind.task(paper.model_copy(update={"batch": 4}), torch.device("cpu"))
    images = torch.rand(4, *task.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = {key: [p.clone() for p in net.parameters()] for key, net in task.networks.items()}
    labels = torch.arange(4) if task.image_shape == (2,) else None
    for number in range(2):
        losses = task.step(images, labels, Step(number, 4 * number, torch.Generator().manual_seed(number)))
        assert all(math.isfinite(float(loss)) for loss in losses.values())
        if controller := getattr(task, "controller", None):
            controller.p = 0.5
    for key, net in task.networks.items():
        assert any(not torch.equal(old, new) for old, new in zip(before[key], net.parameters(), strict=True))


def test_ddpms_paper_recipe_begins_by_predicting_nothing() -> None:
    """Ho et al.: the last layers begin at variance 1e-10 of the others, whose fans are averaged; biases at 0."""
    paper = registry.get("trainer", "ddpm").recipes["paper"]
    small = {**paper.unet, "block_out_channels": [32, 64, 64, 64]}
    net = registry.get("trainer", "ddpm").task(paper.model_copy(update={"unet": small}), CPU).networks["eps"]
    with torch.no_grad():
        predicted = net(torch.randn(2, 3, 32, 32), torch.tensor([0, 999]))
    assert predicted.abs().max() < 1e-3
    for name, module in unet.unet_of(net).named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fans = (module.weight.shape[0] + module.weight.shape[1]) * module.weight[0, 0].numel()
            last = name.endswith(("conv2", "to_out.0", "conv_out"))
            assert float(module.weight.detach().std()) == pytest.approx(
                (1e-5 if last else 1) * (2 / fans) ** 0.5, rel=0.1
            ), name
            assert not module.bias.any()


def test_ddgans_paper_recipe_has_the_released_rates() -> None:
    """A cosine over 1,800 epochs, of which the published weights saw 1,200."""
    paper = RECIPES["paper"]
    rates = [cosine_lr(paper.lr_g, paper.lr_end, 50_000 * epoch, paper.duration_kimg) for epoch in (0, 600, 900, 1200)]
    assert rates == pytest.approx([1.6e-4, 1.225e-4, 8.5e-5, 4.75e-5], rel=1e-3)


@pytest.mark.parametrize("name", DRAWING)
def test_every_trainer_has_the_papers_recipe_and_a_small_one(name: str) -> None:
    kind = registry.get("trainer", name)
    of_points = {"gaussians25-paper", "gaussians25-cpu"}
    assert {"paper", "cpu-small"} <= kind.recipes.keys() or of_points <= kind.recipes.keys()
    assert (kind.recipes.get("paper") or kind.recipes["gaussians25-paper"]).batch >= 64
    assert kind.baseline == name
    assert kind.source


@pytest.mark.parametrize("name", ["ddgan", "ddpm", "stylegan2"])
def test_the_recipes_of_stacked_mnist_make_its_images(name: str) -> None:
    recipe = registry.get("trainer", name).recipes["stackedmnist-cpu"]
    assert not recipe.flips  # a digit that is mirrored is none
    task = registry.get("trainer", name).task(recipe.model_copy(update={"batch": 4}), CPU)
    assert task.image_shape == registry.get("dataset", "stackedmnist").shape
    losses = task.step(torch.rand(4, 3, 32, 32) * 2 - 1, None, Step(0, 0, torch.Generator().manual_seed(0)))
    assert all(math.isfinite(float(loss)) for loss in losses.values())


# --- from the weights of an earlier run


@pytest.mark.parametrize("name", NAMES)
def test_a_run_starts_from_the_weights_of_another(name: str, tmp_path: Path) -> None:
    """Networks, averages, step, clock and curve go on; in fp16, as a baseline's folder holds them."""
    run(tiny_task(name), tmp_path / "first", kimg=3 * BATCH / 1000)
    (tmp_path / "first" / "checkpoint.pt").unlink()
    task = tiny_task(name)
    result = run(task, tmp_path / "second", minutes=0.0, start=tmp_path / "first")
    assert (result["finished"], result["images_seen"]) == (False, 3 * BATCH)
    assert result["hours"] > 0
    for file in ("weights.safetensors", "resume.safetensors"):
        assert_same(*(read_tensors(tmp_path / part / file)[0] for part in ("first", "second")))
    assert curve(tmp_path / "second") == curve(tmp_path / "first")
    assert task.extra == state_of(tmp_path / "second")["extra"]
    assert run(tiny_task(name), tmp_path / "second")["finished"]
    assert [int(row["images_seen"]) for row in curve(tmp_path / "second")] == [BATCH * n for n in range(1, 7)]


SHIPPED = sorted(path.parent for path in (Path(__file__).parent.parent / "baselines").glob("*/resume.safetensors"))


def test_every_baseline_of_images_can_be_trained_on() -> None:
    assert {path.name for path in SHIPPED} >= {"ddgan", "ddpm", "stylegan2"}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_training_goes_on_from_the_shipped_weights(folder: Path, tmp_path: Path) -> None:
    """With the clock, the count of images and the recipe that the card and its curve state."""
    card = tomllib.loads((folder / "card.toml").read_text())
    kind, training = registry.get("trainer", card["sampler"]), card["training"]
    task = kind.task(kind.recipes[training["recipe"]], CPU)
    task.grid = lambda count: torch.zeros(count, *task.image_shape)
    result = run(task, tmp_path, minutes=0.0, start=folder)
    assert result["images_seen"] == training["images_seen"]
    assert result["hours"] == pytest.approx(training["hours"], abs=0.01)
    assert 0 <= training["hours"] - float(curve(folder)[-1]["hours"]) < 0.01
    trained, shipped = (read_tensors(path / "weights.safetensors")[0] for path in (tmp_path, folder))
    assert_same(trained, shipped)


def test_learning_rates_warm_up_where_moments_are_new_and_there_alone(tmp_path: Path) -> None:
    """Without moments the first step of Adam is a whole learning rate for every weight."""
    full = tiny_task("ddpm", warmup_steps=1).optimizers["eps"].param_groups[0]["lr"]

    def rates(out: Path, **settings: Any) -> list[float]:
        task, found = tiny_task("ddpm", warmup_steps=1), []
        original = task.step
        task.step = lambda *a: (found.append(task.optimizers["eps"].param_groups[0]["lr"]), original(*a))[1]
        run(task, out, **settings)
        return [rate / full for rate in found]

    assert rates(tmp_path / "first", kimg=3 * BATCH / 1000) == [1, 1, 1]
    started = rates(tmp_path / "second", kimg=5 * BATCH / 1000, start=tmp_path / "first")
    assert started == pytest.approx([1 / WARM_UP_STEPS, 2 / WARM_UP_STEPS])
    assert rates(tmp_path / "second") == pytest.approx([3 / WARM_UP_STEPS])


def test_a_run_that_starts_from_another_recipes_weights_says_so(tmp_path: Path) -> None:
    first = tiny_task("ddpm")
    run(first, tmp_path / "first", kimg=4 * BATCH / 1000)
    half = tiny_task("ddpm", lr=0.5, batch=BATCH // 2)
    for images_seen in (6 * BATCH, 7 * BATCH):  # the second goes on from the checkpoint
        run(half, tmp_path / "second", start=tmp_path / "first", kimg=images_seen / 1000)
        about = json.loads((tmp_path / "second" / "run.json").read_text())
        assert (about["images_seen"], about["earlier_recipes"]) == (images_seen, {str(4 * BATCH): first.recipe.digest})
    assert json.loads((tmp_path / "first" / "run.json").read_text())["earlier_recipes"] == {}
    # The first recipe comes back, and then another.
    run(tiny_task("ddpm"), tmp_path / "third", start=tmp_path / "second", kimg=8 * BATCH / 1000)
    run(tiny_task("ddpm", lr=0.25), tmp_path / "fourth", start=tmp_path / "third", kimg=9 * BATCH / 1000)
    found = json.loads((tmp_path / "fourth" / "run.json").read_text())["earlier_recipes"]
    digest = first.recipe.digest
    assert found == {str(4 * BATCH): digest, str(7 * BATCH): half.recipe.digest, str(8 * BATCH): digest}


def test_what_a_run_cannot_start_from_is_refused(tmp_path: Path) -> None:
    run(tiny_task("ddpm"), tmp_path / "first", kimg=BATCH / 1000)
    with pytest.raises(TrainingError, match="first: does not hold the networks of this recipe"):
        run(tiny_task("ddgan"), tmp_path / "other", start=tmp_path / "first")
    (tmp_path / "first" / "resume.safetensors").write_bytes(b"no")
    with pytest.raises(TrainingError, match=r"resume.safetensors: cannot be read"):
        run(tiny_task("ddpm"), tmp_path / "other", start=tmp_path / "first")
    (tmp_path / "first" / "resume.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"holds weights.safetensors and resume.safetensors"):
        run(tiny_task("ddpm"), tmp_path / "other", start=tmp_path / "first")


def test_snapshots_are_evenly_spaced_on_a_logarithmic_axis(tmp_path: Path) -> None:
    run(tiny_task("ddpm"), tmp_path, checkpoint_minutes=0.0, snapshot_growth=1.5)
    kept = sorted(int(path.stem) // BATCH for path in (tmp_path / "snapshots").iterdir())
    assert kept == [1, 2, 3, 5]


def test_the_seed_of_a_recipe_moves_all_that_a_step_draws() -> None:
    """Of a generator's seed torch keeps 32 bits on CPUs; the processes of a run may not meet within it."""
    seeds = [0, 1, 2, 7, 100, 2**24, 20240101, 2**40 + 1]
    drawn = [torch.randn(4, generator=torch.Generator().manual_seed(_loop._key(seed, 5))) for seed in seeds]
    assert len({tuple(noise.tolist()) for noise in drawn}) == len(seeds)
    for seed in seeds:
        keys = sorted(_loop._key(seed, 0, stream) for stream in range(9))
        assert min(np.diff([*keys, keys[0] + 2**32])) > 2_000_000


def test_two_seeds_train_on_other_noise(tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        task = tiny_task("ddpm", seed=seed)
        original = task.step
        task.step = lambda *a, original=original: (found.append(a[2].rng.initial_seed()), original(*a))[1]
        run(task, tmp_path / str(seed), kimg=2 * BATCH / 1000)
    assert found[:2] == [0, 1] and len(set(found)) == 4


def test_the_curve_of_a_run_that_died_before_its_first_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    run(tiny_task("ddpm"), tmp_path / "whole", kimg=3 * BATCH / 1000)
    rows = (tmp_path / "whole" / "curve.csv").read_text()
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "curve.csv").write_text(rows)
    run(tiny_task("ddpm"), tmp_path / "dead", kimg=4 * BATCH / 1000)
    assert [int(row["images_seen"]) for row in curve(tmp_path / "dead")] == [BATCH * n for n in range(1, 5)]


def test_snapshots_without_their_checkpoint_are_left_alone(tmp_path: Path) -> None:
    run(tiny_task("ddpm"), tmp_path, kimg=BATCH / 1000)
    (tmp_path / "checkpoint.pt").unlink()
    before = files_of(tmp_path)
    with pytest.raises(TrainingError, match=r"holds snapshots of a run and not its checkpoint\.pt\. Give another"):
        run(tiny_task("ddpm"), tmp_path, kimg=BATCH / 1000)
    assert files_of(tmp_path) == before


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stylegan2s_mean_latent_moves_with_every_batch_that_is_mapped() -> None:
    """As in the authors' program: in the discriminator's phase too."""
    task, betas = tiny_task("stylegan2"), []
    original = task.G.forward
    task.G.forward = lambda *a, **k: (betas.append(k.get("update_w_avg_beta")), original(*a, **k))[1]
    labels = torch.zeros(BATCH, dtype=torch.long)
    task.step(torch.zeros(BATCH, *task.image_shape), labels, Step(0, 0, torch.Generator()))
    assert betas == [task.recipe.w_avg_beta] * 2


# --- several processes

TWO = """
import sys
import torch
from pathlib import Path
from accelerate import PartialState
from training_cases import run, tiny_task
out, state = Path({out!r}), PartialState(cpu=True)
assert state.num_processes == 2
assert run(tiny_task("ddpm", unet={unet!r}, lr=2e-4), out)["finished"]
# One process is out of time: both stop, or the other would wait for it for ever.
limit = 0.0 if state.process_index else None
assert run(tiny_task("ddpm", unet={unet!r}), out / "stopped", minutes=limit)["images_seen"] == 0
# The augmentation's controller sees the logits of both: one whole batch is its interval.
task = tiny_task("stylegan2")
run(task, out / "stylegan2", kimg=0.008)
assert task.controller.p == 1.0, task.controller
assert run(tiny_task("ddgan"), out / "ddgan", kimg=0.016)["images_seen"] == 16
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    """Without dropout DDPM is exact up to the order of sums; minibatch deviations make the GANs another thing.

    At the paper's rate: a bias of all keys moves no softmax, so that its gradient is rounding, of which Adam makes
    steps in proportion to the rate.
    """
    run(tiny_task("ddpm", unet=TINY_UNET, lr=2e-4), tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # What `accelerate launch` sets for each process; without a GPU it starts several through MPI alone.
    tests = Path(__file__).parent
    common = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    command = [sys.executable, "-c", TWO.format(unet=TINY_UNET, out=str(tmp_path / "two"))]
    started = [
        subprocess.Popen(command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    try:
        errors = [process.communicate(timeout=240)[1].decode()[-2000:] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    one, two = (state_of(tmp_path / name) for name in ("one", "two"))
    assert one["step"] == two["step"] == 6
    for key, weight in one["networks"]["eps"].items():
        torch.testing.assert_close(two["networks"]["eps"][key], weight, atol=2e-5, rtol=1e-4, msg=key)


def test_a_run_on_other_images_is_refused_and_left_alone(tmp_path: Path) -> None:
    task = tiny_task("ddpm")
    limits = _loop.Limits(kimg=BATCH / 1000)
    _loop.train(task, tiny_images(task), tmp_path, limits=limits)
    about = json.loads((tmp_path / "run.json").read_text())["data"]
    assert about["count"] == 20 and len(about["sha256"]) == 64
    content = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match="a run on 20 images .* has 21 others. Give another --out, with --resume"):
        _loop.train(tiny_task("ddpm"), tiny_images(task, 21), tmp_path, limits=limits)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


def test_a_checkpoint_that_cannot_be_written_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_task("ddpm"), tmp_path, kimg=BATCH / 1000)
    content = (tmp_path / "checkpoint.pt").read_bytes()

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 0 vs 1")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StoreError, match=r"checkpoint\.pt: cannot be written .*Free space"):
        run(tiny_task("ddpm"), tmp_path, kimg=2 * BATCH / 1000)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


def test_other_files_among_the_snapshots_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "best.safetensors").write_bytes(b"mine")
    run(tiny_task("ddpm"), tmp_path, kimg=BATCH / 1000)
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == {
        f"{BATCH:09d}.safetensors",
        "best.safetensors",
    }
