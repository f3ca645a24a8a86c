"""Energy-based models of points by recovery likelihood: Langevin dynamics against closed forms, and training."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trilemma_bench import registry
from trilemma_bench.data.gaussians25 import MIXTURE, SCALE
from trilemma_bench.diffusion import Chain, geometric_betas
from trilemma_bench.errors import UsageError
from trilemma_bench.kinds import SamplerKind
from trilemma_bench.models import parse_model
from trilemma_bench.nets import ebm, mixture
from trilemma_bench.points import ArrayPoints
from trilemma_bench.samplers._helpers import make_weights
from trilemma_bench.speed import EvaluationCounter
from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import train

RECIPE = registry.get("trainer", "ebm").recipes["gaussians25-cpu"]
LEVELS = {name: getattr(RECIPE, name) for name in ("levels", "sigma_min", "sigma_max", "langevin_steps", "step_size")}
THREE = {"centres": [[0.0, 0.5], [-0.7, 0.1], [0.4, -0.3]], "sigma": 0.1}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(**options: Any) -> Any:
    kind: SamplerKind = registry.get("sampler", "ebm")
    config = {"centres": (MIXTURE.centres / SCALE).tolist(), "sigma": MIXTURE.sigma / SCALE}
    return kind.build(kind.options(**options), make_weights({}, {"mixture": config, "scale": SCALE, **LEVELS}, "exact"))


def test_noise_over_signal_rises_geometrically() -> None:
    chain = Chain(geometric_betas(4, 0.1, 6.4))
    torch.testing.assert_close(chain.sigma, torch.tensor([0.1, 0.4, 1.6, 6.4], dtype=torch.float64))
    with pytest.raises(UsageError, match="sigma_max must be above sigma_min, and both above 0; got 0.1 and 0.1"):
        geometric_betas(4, 0.1, 0.1)


def test_the_exact_score_is_the_gradient_of_the_density_of_what_a_step_keeps() -> None:
    chain = Chain(geometric_betas(4, 0.1, 3.0))
    y, t = normal(8, 2).requires_grad_(True), torch.arange(8) % 4
    # y = sqrt(1 - beta_t) x_t, by the chain's own words: x_t is one step before.
    kept = (1 - chain.betas[t]).sqrt()[:, None]
    a, s = kept * chain.alpha_bar_prev[t].sqrt()[:, None], kept * (1 - chain.alpha_bar_prev[t]).sqrt()[:, None]
    variance = (a * THREE["sigma"]) ** 2 + s**2
    away = y[:, None] - a[..., None] * torch.tensor(THREE["centres"], dtype=torch.float64)
    density = torch.logsumexp(-away.square().sum(2) / (2 * variance), 1)
    (expected,) = torch.autograd.grad(density.sum(), y)
    found = mixture.Score(THREE, chain)(y.detach(), t)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_call_of_the_network_is_the_gradient_of_its_energy() -> None:
    net = ebm.build({"width": 6, "depth": 2, "frequencies": 2, "members": 2}, Chain(geometric_betas(4, 0.1, 3.0)))
    y, t, step = normal(4, 2).float(), torch.arange(4), 2e-3
    found = net(y, t)
    for d in range(2):
        moved = torch.zeros(2)
        moved[d] = step
        slope = (net.log_density(y + moved, t) - net.log_density(y - moved, t)) / (2 * step)
        torch.testing.assert_close(found[:, d], slope.detach(), rtol=1e-2, atol=1e-4)
    with torch.inference_mode():
        assert torch.equal(net(y, t), found)


@pytest.mark.parametrize("num_steps", [1, 3, 60])
def test_dynamics_of_a_gaussian_have_the_moments_of_their_recursion(num_steps: int) -> None:
    """Of y ~ N(0, s^2) given x_{t+1}, each step is linear: mean and variance follow in closed form."""
    chain, t, s2, b, count = Chain(torch.tensor([0.2, 0.5]).double()), 1, 0.3, 0.4, 60_000
    x_next = torch.full((count, 2), 1.5, dtype=torch.float64)
    noise = partial(torch.randn, count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row = torch.full((count,), t)
    y = ebm.recover(lambda y, _: -y / s2, chain, x_next, row, b, num_steps, noise)
    beta = 0.5
    rate, mean, variance = b**2 / 2 * (beta / s2 + 1), 1.5, 0.0
    for _ in range(num_steps):
        mean, variance = (1 - rate) * mean + b**2 / 2 * 1.5, (1 - rate) ** 2 * variance + b**2 * beta
    assert float(y.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / (2 * count)))
    assert float(y.var()) == pytest.approx(variance, rel=4 / math.sqrt(count))
    if num_steps == 60:
        # Many steps reach the posterior, but for what their size adds to its variance.
        assert mean == pytest.approx(1.5 * s2 / (s2 + beta), rel=1e-3)
        assert variance == pytest.approx(s2 * beta / (s2 + beta) / (1 - rate / 2), rel=1e-3)


def test_exact_energies_make_real_points_and_the_nearer_the_finer_the_dynamics() -> None:
    spreads = []
    for options in ({}, {"langevin_steps": 60, "step_size": 0.2}):
        sampler = exact(**options)
        with EvaluationCounter(sampler.networks) as counter:
            points = sampler.sample(torch.arange(1000)).numpy()
        assert counter.images / 1000 == sampler.expected_nfe
        centres = 2 * np.clip(np.round(points / 2), -2, 2)
        square = np.square((points - centres) / MIXTURE.sigma).sum(1)
        assert len(np.unique(centres, axis=0)) == 25
        assert (square <= 9).mean() > 0.88
        spreads.append(math.sqrt(float(np.median(square)) / (2 * math.log(2))))
    assert abs(spreads[1] - 1) < 0.1 < 0.2 < spreads[0] - 1 < 0.5


def test_training_finds_where_the_points_are(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={
        "mlp": {"class": "ebm", "width": 16, "depth": 2, "members": 2}, "batch": 128, "duration_kimg": 128 * 0.2,
        "lr": 5e-3, "warmup_steps": 10, "ema": EmaSpec(decay=0.9), "levels": 4, "sigma_min": 0.1, "sigma_max": 5.0,
    })  # fmt: skip
    task = registry.get("trainer", "ebm").task(recipe, torch.device("cpu"))
    before = task.grid(400)
    centre = torch.tensor([0.5, -0.3])
    points = 5 * (centre + 0.1 * normal(500, 2)).numpy()
    assert train(task, ArrayPoints(points, "one"), tmp_path)["finished"]
    after = task.grid(400)
    for member in (slice(0, 200), slice(200, 400)):
        assert float((before[member].mean(0) - centre).norm()) > 0.3
        assert float((after[member].mean(0) - centre).norm()) < 0.15
        assert float(after[member].std(0).mean()) < 0.5 * float(before[member].std(0).mean())


def test_pictures_of_a_run_are_drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the network is trained: a generator has its numbers there, and chains their tables."""
    task = registry.get("trainer", "ebm").task(RECIPE, torch.device("cpu"))
    moved = []
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda module: moved.append(module) or module)
    task.grid(5)
    assert [type(net) for net in moved] == [ebm.Energy] and moved[0] is not task.averages["net"]


def test_steps_without_size_are_refused() -> None:
    for option in ("step_size=0", "langevin_steps=0"):
        with pytest.raises(UsageError, match=f"ebm: option {option}"):
            parse_model(f"ebm:{option}")
