"""Likelihood models of points: autoencoders, flows, and models of cells, each against what is known in closed form."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from trilemma_bench import registry
from trilemma_bench.cards import load_card
from trilemma_bench.data.gaussians25 import MIXTURE, SCALE
from trilemma_bench.diffusion import DiscreteChain, draw_categorical, linear_betas
from trilemma_bench.errors import UsageError, WeightsError
from trilemma_bench.kinds import SamplerKind
from trilemma_bench.models import of_train_seed
from trilemma_bench.nets import flow, grid, vae
from trilemma_bench.samplers._helpers import make_weights
from trilemma_bench.training._loop import write_weights

MIXTURE_25 = {"centres": (MIXTURE.centres / SCALE).tolist(), "sigma": MIXTURE.sigma / SCALE}
THREE = {"centres": [[0.0, 0.5], [-0.7, 0.1], [0.4, -0.3]], "sigma": 0.1}


@pytest.fixture(autouse=True)
def _same_networks_each_time() -> None:
    """Networks are built from torch's global generator."""
    torch.manual_seed(0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lively(net: Any, seed: int = 0) -> Any:
    """The network in float64, every parameter moved off its first value."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.double().parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return net.requires_grad_(False)


def offsets(sampler: Any, count: int) -> np.ndarray:
    """From the nearest centres, in standard deviations of a mode, with the centres' numbers."""
    points = sampler.sample(torch.arange(count)).numpy()
    found: np.ndarray = (points - 2 * np.clip(np.round(points / 2), -2, 2)) / MIXTURE.sigma
    return found


# --- autoencoders -------------------------------------------------------------------------------------------


def test_the_bound_is_the_evidence_less_the_divergence_from_the_posterior() -> None:
    """Both by sums over a grid of one latent."""
    net = lively(vae.build({"dimensions": 1, "nz": 1, "width": 5, "depth": 1, "frequencies": 1}))
    count = 40_000
    x = torch.tensor([[0.3]], dtype=torch.float64)
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None]
    dz = float(z[1, 0] - z[0, 0])
    mean, log_s = net.likelihood([z])
    joint = (Normal(mean, log_s.exp()).log_prob(x) + Normal(0.0, 1.0).log_prob(z))[:, 0]
    evidence = torch.logsumexp(joint, 0) + math.log(dz)
    shift, log_ratio = vae.two(net.encoders[0], x)
    posterior = Normal(shift, log_ratio.exp()).log_prob(z)[:, 0]
    gap = (posterior.exp() * (posterior - joint + evidence)).sum() * dz
    assert gap > 0.01
    bounds = net.elbo(x.expand(count, 1), normal(count, 1))
    assert float(bounds.mean()) == pytest.approx(float(evidence - gap), abs=5 * float(bounds.std()) / math.sqrt(count))


def test_divergences_of_all_levels_are_those_of_normal_distributions() -> None:
    net = lively(vae.build({"nz": 3, "levels": 2, "width": 6, "members": 2}))
    x, noise = normal(8, 2), normal(8, 6, seed=1)
    latents, divergence = net.encode(x, noise)
    expected = torch.zeros(8, dtype=torch.float64)
    for level in range(2):
        mean, log_s = net.prior(level, latents[:level], latents[0])
        shift, log_ratio = vae.two(net.encoders[level], x, *latents[:level])
        posterior = Normal(mean + log_s.exp() * shift, (log_s + log_ratio).exp())
        drawn = posterior.loc + posterior.scale * noise[:, 3 * level : 3 * level + 3]
        torch.testing.assert_close(latents[level], drawn)
        expected += kl_divergence(posterior, Normal(mean, log_s.exp())).sum(1)
    torch.testing.assert_close(divergence, expected)
    whole = net.elbo(x, noise)
    torch.testing.assert_close(net.elbo(x, noise, 0.0) - whole, divergence)


def test_a_draw_of_an_autoencoder_goes_down_its_levels() -> None:
    net = lively(vae.build({"nz": 1, "levels": 2, "width": 4}))
    z, noise = normal(5, 2), normal(5, 2, seed=1)
    mean, log_s = vae.two(net.priors[0], z[:, :1])
    second = mean + log_s.exp() * z[:, 1:]
    mean, log_s = vae.two(net.decoder, torch.cat([z[:, :1], second], 1))
    torch.testing.assert_close(net(z, noise), mean + log_s.clamp(min=math.log(1e-3)).exp() * noise)


# --- flows --------------------------------------------------------------------------------------------------


@pytest.fixture
def a_flow() -> Any:
    return lively(flow.build({"width": 6, "depth": 1, "couplings": 3, "members": 2, "frequencies": 2}))


def test_a_flow_undoes_itself(a_flow: Any) -> None:
    z = normal(8, 2)
    torch.testing.assert_close(a_flow.inverse(a_flow(z))[0], z)


def test_the_determinant_of_a_flow_is_that_of_its_jacobian(a_flow: Any) -> None:
    x = normal(2, 2)
    jacobian = torch.autograd.functional.jacobian(lambda rows: a_flow.inverse(rows)[0], x)
    expected = torch.stack([torch.linalg.slogdet(jacobian[i, :, i]).logabsdet for i in range(2)])
    torch.testing.assert_close(a_flow.inverse(x)[1], expected)
    # The second member knows nothing of the first one's point.
    assert torch.equal(jacobian[1, :, 0], torch.zeros_like(jacobian[1, :, 0]))


def test_the_density_of_a_flow_sums_to_one() -> None:
    net = lively(flow.build({"width": 6, "depth": 1, "couplings": 2, "bound": 0.5}))
    reach = 1.1 * float(net(normal(20_000, 2)).abs().max())
    axis = torch.linspace(-reach, reach, 800, dtype=torch.float64)
    total = net.log_density(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1, abs=2e-3)


def test_a_flow_needs_two_coordinates() -> None:
    with pytest.raises(UsageError, match="at least 2 dimensions"):
        flow.build({"dimensions": 1})


# --- chains of cells ----------------------------------------------------------------------------------------


def test_gaussian_transitions_are_those_of_the_formula() -> None:
    k, beta = 4, 0.3
    found = DiscreteChain(k, torch.tensor([beta], dtype=torch.float64)).transitions[0]
    total = sum(math.exp(-4 * n * n / ((k - 1) ** 2 * beta)) for n in range(-(k - 1), k))
    for i, j in itertools.product(range(k), range(k)):
        away = [math.exp(-4 * (i - n) ** 2 / ((k - 1) ** 2 * beta)) / total for n in range(k) if n != i]
        expected = 1 - sum(away) if i == j else math.exp(-4 * (i - j) ** 2 / ((k - 1) ** 2 * beta)) / total
        assert float(found[i, j]) == pytest.approx(expected)


def test_uniform_transitions_draw_a_state_anew_with_probability_beta() -> None:
    found = DiscreteChain(4, torch.tensor([0.2], dtype=torch.float64), "uniform").transitions[0]
    assert found[1].tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_a_chain_of_cells_is_the_product_of_its_transitions_and_ends_uniform(kind: str) -> None:
    chain = DiscreteChain(6, linear_betas(60, 0.05, 0.9), kind)
    expected = torch.eye(6, dtype=torch.float64)
    for t in range(4):
        expected = expected @ chain.transitions[t]
    torch.testing.assert_close(chain.from_data[4], expected)
    torch.testing.assert_close(chain.from_data[2] @ chain.between(2, 4), expected)
    torch.testing.assert_close(chain.transitions.sum(1), torch.ones(60, 6, dtype=torch.float64))
    torch.testing.assert_close(chain.transitions.sum(2), torch.ones(60, 6, dtype=torch.float64))
    torch.testing.assert_close(chain.from_data[-1], torch.full((6, 6), 1 / 6, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("earlier", "later"), [(0, 1), (2, 3), (1, 5), (0, 5)])
def test_the_way_back_is_bayes_rule_where_the_posterior_is_exact(earlier: int, later: int) -> None:
    chain = DiscreteChain(5, linear_betas(5, 0.05, 0.6))
    data = torch.tensor([0.5, 0.0, 0.2, 0.25, 0.05], dtype=torch.float64)
    x_t = torch.arange(5)[:, None]
    posterior = data * chain.from_data[later].T
    found = chain.reverse((posterior / posterior.sum(1, keepdim=True))[:, None], x_t, earlier, later)[:, 0]
    expected = (data @ chain.from_data[earlier]) * chain.between(earlier, later).T
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))


def test_an_unknown_transition_is_refused() -> None:
    with pytest.raises(UsageError, match="no transition named 'absorb'"):
        DiscreteChain(5, linear_betas(5, 0.1, 0.6), "absorb")


def test_states_are_drawn_by_the_inverse_of_the_sum() -> None:
    probabilities = torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64).expand(4, 3)
    uniform = torch.tensor([0.0, 0.2, 0.3, 1.0], dtype=torch.float64)
    states, left = draw_categorical(probabilities, uniform)
    assert states.tolist() == [0, 0, 2, 2]
    assert left.tolist() == pytest.approx([0.0, 0.8, 0.05 / 0.75, 1.0])


# --- models of cells ----------------------------------------------------------------------------------------


def joint_of_three(bins: int) -> Tensor:
    """The probabilities of all cells of the plane, [bins, bins]."""
    config = {"mixture": THREE, "bins": bins}
    masses = grid.GridMixture(config).masses
    found: Tensor = torch.einsum("mi,mj->ij", masses[0], masses[1]) / 3
    return found


def test_cells_are_found_again_and_the_outermost_ones_are_open() -> None:
    cell = torch.arange(10)
    for place in (0.01, 0.5, 0.99):
        assert torch.equal(grid.cells(grid.coordinates(cell, 10, place), 10), cell)
    assert grid.cells(torch.tensor([-3.0, 1.0, 7.0]), 10).tolist() == [0, 9, 9]
    torch.testing.assert_close(grid.GridMixture({"mixture": THREE, "bins": 7}).masses.sum(2), torch.ones(2, 3).double())


def test_the_exact_conditionals_multiply_to_the_joint() -> None:
    bins = 12
    net = grid.ExactAutoregressive({"mixture": THREE, "bins": bins})
    x = torch.cartesian_prod(torch.arange(bins), torch.arange(bins))
    total = sum(net(x, torch.full((len(x),), d)).gather(1, x[:, d : d + 1])[:, 0] for d in range(2))
    torch.testing.assert_close(total.exp().reshape(bins, bins), joint_of_three(bins))


@pytest.mark.parametrize("t", [0, 2, 5])
def test_the_exact_posterior_of_cells_is_bayes_rule(t: int) -> None:
    """Against all pairs of cells; the marginals of the two coordinates."""
    bins = 9
    chain = DiscreteChain(bins, linear_betas(6, 0.02, 0.5))
    net = grid.ExactDenoiser({"mixture": THREE, "bins": bins}, chain)
    x_t = torch.tensor([[0, 3], [7, 2], [4, 4]])
    found = net(x_t, torch.full((3,), t)).exp()
    forward = chain.from_data[t + 1]
    for row, (a, b) in enumerate(x_t.tolist()):
        joint = joint_of_three(bins) * forward[:, a][:, None] * forward[:, b]
        joint /= joint.sum()
        torch.testing.assert_close(found[row, 0], joint.sum(1))
        torch.testing.assert_close(found[row, 1], joint.sum(0))


def test_a_network_of_cells_does_not_look_ahead() -> None:
    net = grid.build_autoregressive({"bins": 8, "width": 5})
    x, d = torch.tensor([[1, 5]]), torch.tensor([1])
    assert torch.equal(net(x, d), net(torch.tensor([[1, 0]]), d))
    assert not torch.equal(net(x, d), net(torch.tensor([[2, 5]]), d))
    assert torch.equal(net(x, d * 0), net(torch.tensor([[2, 0]]), d * 0))


CHAIN = {name: getattr(registry.get("trainer", "d3pm").recipes["gaussians25-cpu"], name)
         for name in ("num_train_steps", "betas", "transition")}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"), [("autoregressive", {}), ("d3pm", {"steps": 4}), ("d3pm", {"steps": 1})], ids=str
)
def test_exact_models_of_cells_make_real_points_in_any_number_of_steps(name: str, options: dict[str, Any]) -> None:
    """25 Gaussians on a grid are one product: the chain's coordinates, which step apart, lose nothing."""
    kind: SamplerKind = registry.get("sampler", name)
    weights = make_weights({}, {"mixture": MIXTURE_25, "scale": SCALE, "bins": 256, **CHAIN}, "exact")
    found = offsets(kind.build(kind.options(**options), weights), 1500)
    cell = 2 / 256 / MIXTURE_25["sigma"]
    # A uniform place within a cell adds the variance of one. Four standard deviations of 3,000 numbers.
    expected = 1 + cell**2 / 12 + (cell**2 / 12)
    assert np.square(found).mean() == pytest.approx(expected, abs=4 * math.sqrt(2 / 3000))
    assert (np.square(found).sum(1) <= 9).mean() > 0.96


def test_the_shipped_chain_of_cells_ends_uniform() -> None:
    betas = linear_betas(CHAIN["num_train_steps"], **CHAIN["betas"])
    last = DiscreteChain(256, betas, CHAIN["transition"]).from_data[-1]
    assert float((256 * last - 1).abs().max()) < 0.02


# --- files --------------------------------------------------------------------------------------------------


def test_weights_of_another_family_of_points_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    config = {"mlp": {"class": "flow", "width": 4}}
    write_weights(path, flow.build(config["mlp"]).state_dict(), config=config)
    assert registry.get("sampler", "flow").load(path).config == config
    with pytest.raises(WeightsError, match="weights of flow, not of vae. Give what `trilemma-bench train vae` wrote"):
        registry.get("sampler", "vae").load(path)


@pytest.mark.parametrize("name", ["vae", "flow", "gan"])
def test_a_family_without_a_closed_form_has_no_exact_network(name: str) -> None:
    kind: SamplerKind = registry.get("sampler", name)
    with pytest.raises(WeightsError, match="exact: the optimum of this family is not known"):
        kind.build(kind.options(), make_weights({}, {"mixture": MIXTURE_25}, "exact"))


# --- shipped weights ----------------------------------------------------------------------------------------

SHIPPED = [
    ("gaussians25-autoregressive", {}, 0.96),
    ("gaussians25-d3pm", {"steps": 10}, 0.96),
    ("gaussians25-vae", {}, 0.04),
    ("gaussians25-vae-levels2", {}, 0.17),
    ("gaussians25-flow", {}, 0.15),
    ("gaussians25-lsgm", {}, 0.6),
    ("gaussians25-ebm", {"langevin_steps": 30}, 0.58),
    ("gaussians25-distilled", {}, 0.33),
    ("gaussians25-consistency", {"steps": 2}, 0.31),
    ("gaussians25-adm", {"steps": 100}, 0.85),
]


@pytest.mark.parametrize(("baseline", "options", "least"), SHIPPED)
def test_shipped_families_have_the_quality_that_they_had(baseline: str, options: dict[str, Any], least: float) -> None:
    """One training seed, 600 points; `least` is below what was measured by four standard deviations."""
    card, folder = load_card(baseline)
    kind: SamplerKind = registry.get("sampler", card.sampler)
    sampler = kind.build(kind.options(**options), of_train_seed(kind.load(folder / card.weights), 1))
    found = offsets(sampler, 600)
    assert (np.square(found).sum(1) <= 9).mean() >= least
