"""Latent score models of points: the two networks, whose turn it is in training, and the way from noise to points."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sampler_cases import tiny_sampler
from torch import Tensor, nn
from training_cases import BATCH, run, tiny_task

from trilemma_bench import registry
from trilemma_bench.diffusion import Chain, ddim_step, linear_betas
from trilemma_bench.errors import UsageError, WeightsError
from trilemma_bench.kinds import SamplerKind, TrainerKind
from trilemma_bench.samplers._helpers import STEP, X_T, Noise, make_weights
from trilemma_bench.training._loop import Step, write_weights


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class OfNormal(nn.Module):
    """The optimum for latents that are N(0, I): eps = s_t z_t."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.noise = (1 - chain.alpha_bar).sqrt()

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.noise[t][:, None].float() * z


@pytest.mark.parametrize("clip", [False, True])
def test_ancestral_steps_have_the_moments_of_the_posterior(clip: bool) -> None:
    """Eta 1 is DDPM's step with the posterior's variance (Ho et al. 2020, eq. 7)."""
    chain = Chain(linear_betas(20, 1e-3, 0.3))
    t, x, eps = 9, normal(5, 2), normal(5, 2, seed=1)
    now, before = float(chain.alpha_bar[t]), float(chain.alpha_bar[t - 1])
    found = [ddim_step(x, eps, now, before, eta=1.0, noise=lambda value=v: torch.full_like(x, value)) for v in (0, 1)]
    x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
    torch.testing.assert_close(found[0], chain.posterior_x0[t] * x0 + chain.posterior_xt[t] * x)
    torch.testing.assert_close(found[1] - found[0], torch.full_like(x, float(chain.posterior_variance[t].sqrt())))
    # The last step has no noise to add; a clipped one ends within [-1, 1].
    last = ddim_step(x, eps, now, 1.0, eta=1.0, clip=clip, noise=lambda: torch.full_like(x, math.nan))
    torch.testing.assert_close(last, x0.clamp(-1, 1) if clip else x0)


def test_with_the_prior_of_an_autoencoder_the_points_are_those_of_the_autoencoder() -> None:
    sampler = tiny_sampler("lsgm", options={"steps": None})
    sampler.networks["prior"] = OfNormal(sampler.chain)
    seeds = torch.arange(4)
    noise = Noise(seeds, torch.device("cpu"))
    z = noise.normal(3, stream=X_T)
    # A step of DDIM turns by the angle between two noises: the latent is shortened by its cosine.
    angles = [0.0, *torch.arcsin((1 - sampler.chain.alpha_bar).sqrt()).tolist()]
    z = z * math.prod(math.cos(b - a) for a, b in zip(angles[:-1], angles[1:], strict=True))
    expected = sampler.networks["autoencoder"](z, noise.normal(2, stream=2))
    torch.testing.assert_close(sampler.floats(seeds), expected.detach(), rtol=1e-4, atol=1e-5)


def test_an_evaluation_of_the_decoder_counts_and_noise_is_drawn_where_there_is_some() -> None:
    assert tiny_sampler("lsgm", options={"steps": 4}).expected_nfe == 5
    still, moved = (tiny_sampler("lsgm", options={"steps": 4, "eta": eta}) for eta in (0.0, 1.0))

    class Counting(Noise):
        drawn = 0

        def normal(self, *shape: int, stream: int) -> Tensor:
            self.drawn += stream == STEP
            return super().normal(*shape, stream=stream)

    for sampler, expected in ((still, 0), (moved, 3)):
        noise = Counting(torch.arange(2), torch.device("cpu"))
        with torch.inference_mode():
            sampler.draw(noise, 2)
        assert noise.drawn == expected


def test_the_autoencoder_learns_first_and_stands_still_for_the_prior(tmp_path: Path) -> None:
    task = tiny_task("lsgm", steps=8)  # its first half is the autoencoder's
    moved: dict[str, list[bool]] = {"autoencoder": [], "prior": []}
    plain, parts = task.step, task.networks["net"]
    assert isinstance(parts, nn.ModuleDict)

    def step(images: Tensor, labels: Tensor | None, place: Step) -> Any:
        before = {name: [p.clone() for p in net.parameters()] for name, net in parts.items()}
        losses = plain(images, labels, place)
        for name, net in parts.items():
            pairs = zip(before[name], net.parameters(), strict=True)
            moved[name].append(any(not torch.equal(a, b) for a, b in pairs))
        return losses

    task.step = step  # type: ignore[method-assign]
    run(task, tmp_path)
    assert moved == {"autoencoder": [True] * 4 + [False] * 4, "prior": [False] * 4 + [True] * 4}


def test_each_part_of_a_run_has_a_warm_up_and_a_fall_of_its_own() -> None:
    task = tiny_task("lsgm", steps=100_000, warmup_steps=10, lr=1.0)
    rate = lambda number: task.rates(Step(number, number * BATCH, torch.Generator()))["net"]  # noqa: E731
    assert rate(4) == rate(50_004) == pytest.approx(0.5)
    assert rate(10_000) > 0.8 and rate(60_000) > 0.8
    assert rate(49_999) < 0.06 and rate(99_999) < 0.06


def test_posteriors_begin_narrow_beside_their_means() -> None:
    kind: TrainerKind = registry.get("trainer", "lsgm")
    task: Any = kind.task(kind.recipes["gaussians25-cpu"], torch.device("cpu"))
    points = torch.from_numpy(registry.get("dataset", "gaussians25").open("test").read(0, 500)).float() / task.scale
    mean, log_s = task.networks["net"]["autoencoder"].encoders[0].run(points, None).chunk(2, 1)
    spread = mean.reshape(5, 100, 2).std(1)
    assert (spread > log_s.exp().reshape(5, 100, 2).mean(1)).all()
    assert (log_s.exp() < 0.2).all()


def test_a_prior_of_two_levels_is_refused() -> None:
    with pytest.raises(UsageError, match="one level of latents; got levels=2"):
        tiny_task("lsgm", autoencoder={"class": "vae", "width": 8, "levels": 2})


def test_other_weights_and_exact_ones_are_refused(tmp_path: Path) -> None:
    kind: SamplerKind = registry.get("sampler", "lsgm")
    path = tmp_path / "weights.safetensors"
    write_weights(path, {"a": torch.zeros(1)}, config={"mlp": {"class": "vae"}})
    with pytest.raises(WeightsError, match="not of a latent score model. Give what `trilemma-bench train lsgm` wrote"):
        kind.load(path)
    with pytest.raises(WeightsError, match="exact: the optimum of this family is not known"):
        kind.build(kind.options(), make_weights({}, {"mixture": {"centres": [[0.0, 0.0]], "sigma": 1.0}}, "exact"))
