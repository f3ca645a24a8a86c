"""Learnt variances and classifier guidance on points, where the best variance and the classifier are closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trilemma_bench import registry
from trilemma_bench.data.gaussians25 import MIXTURE, SCALE, draw_labelled
from trilemma_bench.diffusion import Chain, linear_betas
from trilemma_bench.errors import TrainingError
from trilemma_bench.kinds import SamplerKind
from trilemma_bench.nets import mixture
from trilemma_bench.samplers._helpers import LABEL, Noise, make_weights
from trilemma_bench.speed import EvaluationCounter
from trilemma_bench.training._loop import Step
from trilemma_bench.training.adm import bound_terms

CONFIG = {"centres": (MIXTURE.centres / SCALE).tolist(), "sigma": MIXTURE.sigma / SCALE}
THREE = {"centres": [[0.0, 0.5], [-0.7, 0.1], [0.4, -0.3]], "sigma": 0.1}
RECIPE = registry.get("trainer", "adm").recipes["gaussians25-cpu"]
CHAIN = Chain(linear_betas(20, 1e-3, 0.4))


def exact(**options: Any) -> Any:
    kind: SamplerKind = registry.get("sampler", "adm")
    config = {"mixture": CONFIG, "scale": SCALE, "num_train_steps": RECIPE.num_train_steps, "betas": RECIPE.betas}
    return kind.build(kind.options(**options), make_weights({}, config, "exact"), micro_batch=100)


def test_the_best_variance_is_that_of_the_step_before() -> None:
    """Against draws of x_0 given x_t and of the posterior given both."""
    t, count = torch.tensor([8]), 400_000
    x_t = torch.tensor([[0.2, 0.1]])
    rng = torch.Generator().manual_seed(0)
    net = mixture.EpsilonAndVariance(THREE, CHAIN)
    log_weights, means, within = net.modes(x_t, *net.scales(t, x_t))
    chosen = torch.multinomial(log_weights.exp()[0], count, replacement=True, generator=rng)
    x0 = means[0, chosen] + within.sqrt() * torch.randn(count, 2, generator=rng, dtype=torch.float64)
    drawn = CHAIN.posterior_x0[8] * x0 + CHAIN.posterior_variance[8].sqrt() * torch.randn(
        count, 2, generator=rng, dtype=torch.float64
    )
    low, high = (table[8] for table in CHAIN.log_variances)
    v = net(x_t, t)[0, 2:].double()
    torch.testing.assert_close(((v + 1) / 2 * high + (1 - v) / 2 * low).exp(), drawn.var(0), rtol=0.02, atol=0)


def test_the_exact_classifier_is_bayes_rule() -> None:
    net = mixture.Classifier(THREE, CHAIN)
    x_t, t = torch.tensor([[0.2, 0.1], [-0.5, 0.3]], dtype=torch.float64), torch.tensor([2, 15])
    for row in range(2):
        a2 = CHAIN.alpha_bar[t[row]]
        centres = a2.sqrt() * torch.tensor(THREE["centres"], dtype=torch.float64)
        variance = a2 * 0.1**2 + 1 - a2
        likelihood = torch.exp(-(x_t[row] - centres).square().sum(1) / (2 * variance))
        torch.testing.assert_close(net(x_t, t)[row].exp(), likelihood / likelihood.sum())


def test_the_bound_is_least_at_the_best_variance_and_equals_the_divergence() -> None:
    x0 = 0.1 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 1, 4, 9, 15, 19])
    x_t = CHAIN.q_sample(x0, t, noise)
    eps, v = 0.7 * noise, torch.full((6, 2), 0.3)
    found = bound_terms(CHAIN, x0, x_t, eps, v, t)
    low, high = CHAIN.log_variances
    for row in range(1, 6):
        step = int(t[row])
        a2 = CHAIN.alpha_bar[step]
        means = [
            CHAIN.posterior_x0[step] * start + CHAIN.posterior_xt[step] * x_t[row]
            for start in (x0[row], (x_t[row] - (1 - a2).sqrt() * eps[row]) / a2.sqrt())
        ]
        deviation = (0.65 * high[step] + 0.35 * low[step]).mul(0.5).exp()
        ours = torch.distributions.Normal(means[1].double(), deviation)
        theirs = torch.distributions.Normal(means[0].double(), CHAIN.posterior_variance[step].sqrt())
        expected = torch.distributions.kl_divergence(theirs, ours)
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-3, atol=1e-4)
    first = torch.distributions.Normal(
        ((x_t[0] - (1 - CHAIN.alpha_bar[0]).sqrt() * eps[0]) / CHAIN.alpha_bar[0].sqrt()).double(),
        (0.65 * high[0] + 0.35 * low[0]).mul(0.5).exp(),
    )
    torch.testing.assert_close(found[0].double(), -first.log_prob(x0[0].double()), rtol=1e-3, atol=1e-3)


def test_a_chain_with_the_best_variance_makes_modes_of_their_width() -> None:
    """A fixed variance makes them wider by 3 % on this chain; the best one has no such error."""
    points = exact(steps=500).sample(torch.arange(1000)).numpy()
    offsets = (points - 2 * np.clip(np.round(points / 2), -2, 2)) / MIXTURE.sigma
    assert np.square(offsets).mean() == pytest.approx(1, abs=4 * math.sqrt(2 / 2000))


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_guidance_by_the_exact_classifier_leads_to_the_wanted_mode(method: str) -> None:
    """At scale 1 the guided score is that of the class alone: Bayes' rule."""
    sampler, seeds = exact(steps=500, method=method, guidance=1.0), torch.arange(100)
    with EvaluationCounter(sampler.networks) as counter:
        points = sampler.sample(seeds).numpy()
    wanted = MIXTURE.centres[Noise(seeds, torch.device("cpu")).integers(25, stream=LABEL).numpy()]
    away = np.sqrt(np.square(points - wanted).sum(1)) / MIXTURE.sigma
    assert (away < 4.5).mean() >= 0.97
    assert counter.images / 100 == sampler.expected_nfe == 500


def test_labels_are_the_gaussians_that_points_are_from() -> None:
    points, labels = draw_labelled(2000, 3)
    nearest = np.abs(points[:, None] - MIXTURE.centres).sum(2).argmin(1)
    assert np.array_equal(labels, nearest)
    assert np.array_equal(registry.get("dataset", "gaussians25").open("test").labels[:9], draw_labelled(9, 1)[1])


def test_a_classifier_without_classes_is_refused(tmp_path: Path) -> None:
    task = registry.get("trainer", "adm").task(RECIPE, torch.device("cpu"))
    with pytest.raises(TrainingError, match="needs classes"):
        task.step(torch.zeros(RECIPE.batch, 2), None, Step(0, 0, torch.Generator()))
