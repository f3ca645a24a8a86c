"""Schedules, posteriors and time steps: closed forms, the authors' constants, diffusers' spacings."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from oracle_cases import load_oracle, oracle_names, oracle_path
from torch import Tensor

from trilemma_bench.diffusion import Chain, GanChain, at, ddgan_betas, ddim_pairs, linear_betas, predict_x0
from trilemma_bench.errors import UsageError


def table(num_steps: int) -> dict[str, Tensor]:
    constants: dict[str, Any] = json.loads(oracle_path("ddgan/schedules.json").read_text())[str(num_steps)]
    return {name: torch.tensor(values) for name, values in constants.items()}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the chain of DDPM


def test_alpha_bar_is_the_product_of_what_each_step_leaves() -> None:
    chain = Chain(torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64))
    assert chain.alpha_bar.tolist() == pytest.approx([0.9, 0.45, 0.36])
    assert chain.alpha_bar_prev.tolist() == pytest.approx([1.0, 0.9, 0.45])


def test_linear_schedule_has_the_papers_ends_and_leaves_almost_no_signal() -> None:
    chain = Chain(linear_betas())
    assert (len(chain), float(chain.betas[0]), float(chain.betas[-1])) == (1000, 1e-4, 0.02)
    # prod(1 - beta) by logarithms, independently.
    expected = math.exp(sum(math.log1p(-(1e-4 + (0.02 - 1e-4) * i / 999)) for i in range(1000)))
    assert float(chain.alpha_bar[-1]) == pytest.approx(expected, rel=1e-10)


def test_posterior_is_bayes_rule() -> None:
    """Precisions add: q(x_{t-1} | x_t, x_0) from q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    chain = Chain(linear_betas(20, 0.01, 0.4))
    t = torch.arange(1, 20)
    beta, before = chain.betas[t], chain.alpha_bar_prev[t]
    precision = (1 - beta) / beta + 1 / (1 - before)
    torch.testing.assert_close(chain.posterior_variance[t], 1 / precision)
    torch.testing.assert_close(chain.posterior_xt[t], (1 - beta).sqrt() / beta / precision)
    torch.testing.assert_close(chain.posterior_x0[t], before.sqrt() / (1 - before) / precision)


def test_posterior_of_the_first_step_is_the_clean_image() -> None:
    chain = Chain(linear_betas())
    first = [chain.posterior_x0[0], chain.posterior_xt[0], chain.posterior_variance[0]]
    assert torch.stack(first).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)


def test_posterior_keeps_the_marginals() -> None:
    """x_{t-1} drawn from the posterior of x_t ~ q(x_t | x_0) is distributed as q(x_{t-1} | x_0)."""
    chain = Chain(linear_betas(50, 0.001, 0.3))
    mean = chain.posterior_x0 + chain.posterior_xt * chain.alpha_bar.sqrt()
    variance = chain.posterior_variance + chain.posterior_xt**2 * (1 - chain.alpha_bar)
    torch.testing.assert_close(mean, chain.alpha_bar_prev.sqrt())
    torch.testing.assert_close(variance, 1 - chain.alpha_bar_prev)


def test_q_sample_mixes_signal_and_noise_per_image_and_predict_x0_undoes_it() -> None:
    chain = Chain(linear_betas())
    x0, noise, t = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), torch.tensor([0, 400, 999])
    x_t = chain.q_sample(x0, t, noise)
    for image, step in enumerate(t.tolist()):
        kept = float(chain.alpha_bar[step])
        expected = math.sqrt(kept) * x0[image] + math.sqrt(1 - kept) * noise[image]
        torch.testing.assert_close(x_t[image], expected)
        torch.testing.assert_close(predict_x0(x_t[image], noise[image], kept), x0[image])


@pytest.mark.parametrize("like", [torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 1, 4, 4).bfloat16()])
def test_at_is_shaped_and_typed_for_what_it_multiplies(like: Tensor) -> None:
    values = at(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), torch.tensor([2, 0, 0]), like)
    assert values.dtype == like.dtype
    assert values.shape == (3, *[1] * (like.ndim - 1))
    assert values.flatten().tolist() == [0.75, 0.25, 0.25]


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.5, 1.0], [0.1, float("nan")], [[0.1, 0.2]]])
def test_a_chain_refuses_betas_that_are_none(betas: list[Any]) -> None:
    with pytest.raises(UsageError, match="betas must be T numbers inside"):
        Chain(torch.tensor(betas, dtype=torch.float64))


# --- the time steps of samplers


def chained(pairs: list[tuple[int, int]]) -> bool:
    return all(before == after for (_, before), (after, _) in zip(pairs, pairs[1:], strict=False))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "quadratic"])
@pytest.mark.parametrize(("total", "steps"), [(1000, 2), (1000, 7), (1000, 50), (1000, 1000), (10, 4), (999, 13)])
def test_pairs_lead_from_noise_to_the_clean_image(spacing: Any, total: int, steps: int) -> None:
    pairs = ddim_pairs(total, steps, spacing)
    assert len(pairs) == steps
    assert chained(pairs)
    assert pairs[-1][1] == -1
    assert all(total > t >= t_prev >= -1 for t, t_prev in pairs)
    repeated = [t for t, t_prev in pairs if t == t_prev]
    assert not repeated or spacing == "quadratic"


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 10, 50, 100, 300, 1000])
def test_uniform_spacings_are_those_of_diffusers(spacing: Any, steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert [t for t, _ in ddim_pairs(1000, steps, spacing)] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [2, 10, 20, 50, 100, 799, 1000])
def test_quadratic_spacing_is_that_of_the_authors(steps: int) -> None:
    """seq = linspace(0, sqrt(0.8 T), S)^2, cut off to whole numbers (Song et al. 2021, appendix D.2)."""
    roots = np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2
    expected = [int(root) for root in roots.tolist()]
    assert [t for t, _ in reversed(ddim_pairs(1000, steps, "quadratic"))] == expected


def test_fifty_quadratic_steps_start_at_four_fifths_and_repeat_zero() -> None:
    times = [t for t, _ in ddim_pairs(1000, 50, "quadratic")]
    assert times[0] == 800
    assert times[-3:] == [1, 0, 0]
    assert len(set(times)) == 49


def test_trailing_spacing_includes_the_last_step_and_all_steps_are_the_whole_chain() -> None:
    assert ddim_pairs(1000, 4, "trailing") == [(999, 749), (749, 499), (499, 249), (249, -1)]
    assert ddim_pairs(1000, 4, "leading") == [(750, 500), (500, 250), (250, 0), (0, -1)]
    whole = [(t, t - 1) for t in reversed(range(5))]
    assert ddim_pairs(5, 5, "leading") == ddim_pairs(5, 5, "trailing") == whole


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_of_the_chain_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=rf"steps must be in 1\.\.1000, .*got {steps}\."):
        ddim_pairs(1000, steps)


def test_one_quadratic_step_and_unknown_spacings_are_refused() -> None:
    with pytest.raises(UsageError, match="use trailing"):
        ddim_pairs(1000, 1, "quadratic")
    with pytest.raises(UsageError, match="got 'linspace'"):
        ddim_pairs(1000, 10, "linspace")  # type: ignore[arg-type]


# --- denoising diffusion GAN


@pytest.mark.parametrize("num_steps", [2, 4])
def test_gan_chain_has_the_authors_constants(num_steps: int) -> None:
    """Index 0 of the authors' betas, sigmas and a_s is a 1e-8 that they put before the chain."""
    theirs, ours = table(num_steps), GanChain(num_steps)
    chain = ours.chain
    pairs = {
        "betas": (ours.betas, theirs["betas"][1:]),
        "sigmas": (ours.betas.sqrt(), theirs["sigmas"][1:]),
        "a_s": ((1 - ours.betas).sqrt(), theirs["a_s"][1:]),
        "a_s_cum": (ours.signal, theirs["a_s_cum"]),
        "sigmas_cum": (ours.noise, theirs["sigmas_cum"]),
        "alphas_cumprod": (chain.alpha_bar, theirs["alphas_cumprod"]),
        "posterior_mean_coef1": (chain.posterior_x0, theirs["posterior_mean_coef1"]),
        "posterior_mean_coef2": (chain.posterior_xt, theirs["posterior_mean_coef2"]),
        "posterior_variance": (chain.posterior_variance, theirs["posterior_variance"]),
        "posterior_log_variance_clipped": (
            chain.posterior_variance.clamp(min=1e-20).log(),
            theirs["posterior_log_variance_clipped"],
        ),
    }
    assert pairs.keys() | {"t_cont"} == theirs.keys()
    for name, (found, expected) in pairs.items():
        assert found.float().tolist() == pytest.approx(expected.tolist(), abs=3e-7, rel=3e-6), name


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8])
def test_gan_schedule_is_the_variance_preserving_process(num_steps: int) -> None:
    """alpha_bar at s = 1 over that at s = 1e-3, whatever T: -log alpha_bar(s) = integral of beta(s)."""
    alpha_bar = torch.cumprod(1 - ddgan_betas(num_steps), 0)
    exponent = 9.95 * (1 - 1e-6) + 0.1 * (1 - 1e-3)
    assert float(alpha_bar[-1]) == pytest.approx(math.exp(-exponent), rel=1e-9)


def test_gan_pair_steps_from_x_t_to_x_next() -> None:
    chain = GanChain(4)
    x0, a, b, t = normal(4, 1, 2, 2), normal(4, 1, 2, 2, seed=1), normal(4, 1, 2, 2, seed=2), torch.arange(4)
    x_t, x_next = chain.q_sample_pair(x0, t, a, b)
    torch.testing.assert_close(x_t[0], x0[0])  # x_0 is clean
    beta = chain.betas.double()[t].reshape(4, 1, 1, 1)
    torch.testing.assert_close(x_next, (1 - beta).sqrt() * x_t + beta.sqrt() * b, atol=1e-6, rtol=1e-6)
    # The two noises together have the variance of the marginal of x_{t+1}.
    torch.testing.assert_close(
        (1 - chain.betas) * chain.noise[:-1] ** 2 + chain.betas, chain.noise[1:] ** 2, atol=1e-6, rtol=1e-6
    )


def test_gan_posterior_returns_x0_at_the_last_transition() -> None:
    chain, x0, noise = GanChain(4), normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    found = chain.posterior_sample(x0, normal(2, 3, 4, 4, seed=2), torch.zeros(2, dtype=torch.long), noise)
    torch.testing.assert_close(found, x0)


@pytest.mark.parametrize("name", oracle_names("ddgan/generator_*.npz"))
def test_posterior_sample_follows_the_authors_trajectory(name: str) -> None:
    case = load_oracle(name)
    chain, x = GanChain(case.meta["config"]["num_timesteps"]), case["traj_x_T"]
    for row, step in enumerate(reversed(range(chain.num_steps))):
        t = torch.full((len(x),), step)
        x = chain.posterior_sample(case["traj_x0"][row], x, t, case["traj_noise"][row])
        torch.testing.assert_close(x, case["traj_x_next"][row], atol=2e-6, rtol=0)


def test_training_pair_is_the_authors() -> None:
    case = load_oracle("ddgan/train_step_small.npz")
    chain = GanChain(case.meta["g_config"]["num_timesteps"])
    x_t, x_next = chain.q_sample_pair(case["x0"], case["t"], case["noise_q"], case["noise_step"])
    torch.testing.assert_close(x_t, case["x_t"], atol=2e-6, rtol=0)
    torch.testing.assert_close(x_next, case["x_tp1"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("num_steps", [0, -4])
def test_gan_chain_without_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(UsageError, match="num_timesteps must be at least 1"):
        ddgan_betas(num_steps)
