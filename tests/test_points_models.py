"""Networks of points, and samplers with the optimum in place of a network: the samplers' oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampler_cases import tiny_sampler
from scipy.integrate import solve_ivp
from torch import Tensor

from trilemma_bench import registry
from trilemma_bench.data.gaussians25 import MIXTURE, SCALE
from trilemma_bench.diffusion import Chain, GanChain, linear_betas
from trilemma_bench.errors import ProtocolError, UsageError
from trilemma_bench.kinds import SamplerKind, TrainerKind
from trilemma_bench.nets import mixture, mlp
from trilemma_bench.samplers import score_sde
from trilemma_bench.samplers._helpers import STEP, X_T, Noise, make_weights
from trilemma_bench.speed import EvaluationCounter
from trilemma_bench.training._loop import Limits, train

SIGMA = MIXTURE.sigma / SCALE
CONFIG = {"centres": (MIXTURE.centres / SCALE).tolist(), "sigma": SIGMA}
RECIPE = registry.get("trainer", "ddpm").recipes["gaussians25-cpu"]
SHIPPED_CHAIN = {"num_train_steps": RECIPE.num_train_steps, "betas": RECIPE.betas}


def exact(name: str, options: dict[str, Any] | None = None, **chain: Any) -> Any:
    """The sampler with the optimum of 25 Gaussians as its network."""
    kind: SamplerKind = registry.get("sampler", name)
    weights = make_weights({}, {"mixture": CONFIG, "scale": SCALE, **chain}, "exact")
    return kind.build(kind.options(**(options or {})), weights, micro_batch=1000)


def offsets(sampler: Any, count: int = 2000) -> np.ndarray:
    """From the nearest centres, in standard deviations of a mode."""
    points = sampler.sample(torch.arange(count)).numpy()
    found: np.ndarray = (points - 2 * np.clip(np.round(points / 2), -2, 2)) / MIXTURE.sigma
    return found


def spread(sampler: Any, count: int = 2000) -> float:
    """Standard deviation about the centres, from the median radius, which points between modes do not move."""
    square = np.square(offsets(sampler, count)).sum(1)
    return math.sqrt(float(np.median(square)) / (2 * math.log(2)))


def chain_spread(sampler: Any) -> float:
    """The deviation that a linear chain leaves a single mode with, over a real one's, in closed form.

    It is that of modes far apart: a chain of few large steps leaves some points between them. Near a mode the optimal
    E[x_0 | x_t] is linear in x_t, and so is each step x' = m x + noise: variances follow v' = m^2 v + var. m and var
    are read off the sampler's own step, called at three points with no noise and with ones.
    """

    class Still(Noise):
        def __init__(self) -> None:
            pass

        def normal(self, *shape: int, stream: int) -> Tensor:
            return torch.zeros(3, *shape) if self.still else torch.ones(3, *shape)

        still = True

    noise, v = Still(), 1.0
    for t, t_prev in sampler.pairs:
        a, s = math.sqrt(sampler.alpha_bar(t)), math.sqrt(1 - sampler.alpha_bar(t))
        x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
        x0 = a * SIGMA**2 / (a**2 * SIGMA**2 + s**2) * x
        noise.still = True
        mean = sampler.step(x, (x - a * x0) / s, t, t_prev, noise)
        noise.still = False
        deviation = float((sampler.step(x, (x - a * x0) / s, t, t_prev, noise) - mean)[0, 0])
        v = float(mean[1, 0] - mean[0, 0]) ** 2 * v + deviation**2
    return math.sqrt(v) / SIGMA


# --- the optimum --------------------------------------------------------------------------------------------


@pytest.fixture
def three() -> dict[str, Any]:
    return {"centres": [[0.0, 0.5], [-0.7, 0.1], [0.4, -0.3]], "sigma": 0.1}


def test_the_exact_noise_is_the_score_of_the_noised_mixture(three: dict[str, Any]) -> None:
    chain = Chain(linear_betas(50, 1e-3, 0.3))
    net = mixture.Epsilon(three, chain.alpha_bar.sqrt(), (1 - chain.alpha_bar).sqrt())
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    t = torch.tensor([0, 1, 5, 20, 40, 49])
    a, s = chain.alpha_bar.sqrt()[t][:, None], (1 - chain.alpha_bar).sqrt()[t][:, None]
    variance = a**2 * 0.1**2 + s**2
    square = (x[:, None] - a[..., None] * torch.tensor(three["centres"], dtype=torch.float64)).square().sum(2)
    density = torch.logsumexp(-square / (2 * variance), 1)
    (score,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(net(x.detach(), t).double(), -s * score, rtol=1e-5, atol=1e-6)


def test_the_exact_posterior_has_the_moments_of_bayes(three: dict[str, Any]) -> None:
    """Against a sum over a fine grid of x_0."""
    chain = GanChain(4)
    net = mixture.Posterior(three, chain)
    x, count = torch.tensor([[0.1, 0.2]]), 200_000
    rng = torch.Generator().manual_seed(1)
    drawn = net(x.expand(count, 2), torch.zeros(count).long(), torch.randn(count, 3, generator=rng)).double()
    axis = torch.linspace(-1.3, 1.3, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    prior = torch.logsumexp(-(grid[:, None] - net.centres).square().sum(2) / (2 * 0.1**2), 1)
    a, s = chain.signal[1].double(), chain.noise[1].double()
    weight = torch.softmax(prior - (x - a * grid).square().sum(1) / (2 * s**2), 0)
    mean = weight @ grid
    torch.testing.assert_close(drawn.mean(0), mean, atol=5e-3, rtol=0)
    torch.testing.assert_close(drawn.var(0), weight @ (grid - mean).square(), atol=3e-3, rtol=0)


@pytest.mark.parametrize("num_timesteps", [1, 2, 4, 8])
def test_a_denoising_diffusion_gan_at_its_optimum_makes_real_points_in_any_number_of_steps(num_timesteps: int) -> None:
    found = offsets(exact("ddgan", num_timesteps=num_timesteps), 4000)
    # Of 4,000 points: four standard deviations.
    assert np.square(found).mean() == pytest.approx(1, abs=4 / math.sqrt(4000))
    assert (np.square(found).sum(1) <= 9).mean() == pytest.approx(1 - math.exp(-4.5), abs=4 * 0.00165)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_exact_ddpm_has_the_spread_of_its_own_chain(variance: str) -> None:
    sampler = exact("ddpm", {"variance": variance}, num_train_steps=200, betas={"start": 1e-4, "end": 0.1})
    limit = chain_spread(sampler)
    assert not 0.9 < limit < 1.1
    assert spread(sampler) == pytest.approx(limit, rel=0.05)


@pytest.mark.parametrize("options", [{"steps": 100}, {"steps": 250, "spacing": "trailing"}, {"steps": 50, "eta": 1.0}])
def test_exact_ddim_has_the_spread_of_its_own_chain(options: dict[str, Any]) -> None:
    sampler = exact("ddim", options, **SHIPPED_CHAIN)
    assert spread(sampler) == pytest.approx(chain_spread(sampler), rel=0.05)


def test_exact_samplers_on_the_shipped_chain_reach_real_points() -> None:
    assert RECIPE.betas["start"] <= 1e-6
    sampler = exact("ddpm", **SHIPPED_CHAIN)
    assert chain_spread(sampler) == pytest.approx(1, abs=0.03)
    found = offsets(sampler, 1000)
    assert (np.square(found).sum(1) <= 9).mean() == pytest.approx(1 - math.exp(-4.5), abs=0.01)


def test_a_chain_that_starts_with_much_noise_makes_narrow_modes() -> None:
    assert chain_spread(exact("ddpm", num_train_steps=1000)) < 0.85


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddgan"])
def test_points_do_not_depend_on_their_companions(name: str) -> None:
    sampler = exact(name, **SHIPPED_CHAIN) if name != "ddgan" else exact(name)
    sampler.micro_batch = 5
    seeds = torch.arange(7)
    points = sampler.sample(seeds)
    assert points.dtype == torch.float64
    torch.testing.assert_close(sampler.sample(seeds.flip(0)).flip(0), points, rtol=0, atol=1e-5)
    torch.testing.assert_close(sampler.sample(seeds[6:]), points[6:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("score_sde", {"solver": "reverse", "sde": "vp"}),
        ("score_sde", {"solver": "reverse", "sde": "ve"}),
        ("score_sde", {"solver": "pc", "sde": "ve"}),
        ("score_sde", {"solver": "ode", "tolerance": 1e-3}),
        ("score_sde", {"solver": "adaptive", "tolerance": 0.02}),
        ("ncsn", {}),
        ("diffusers", {"scheduler": "heun", "steps": 200}),
        ("diffusers", {"scheduler": "unipc", "steps": 200}),
        ("diffusers", {"scheduler": "dpmsolver++", "steps": 200}),
    ],
    ids=str,
)
def test_exact_score_samplers_with_enough_steps_reach_real_points(name: str, options: dict[str, Any]) -> None:
    """Each within the bias of its own steps, which was measured: 1 to 5 % of a mode's width."""
    sampler = exact(name, options, **SHIPPED_CHAIN)
    with EvaluationCounter(sampler.networks) as counter:
        points = sampler.sample(torch.arange(1000)).numpy()
    centres = 2 * np.clip(np.round(points / 2), -2, 2)
    square = np.square((points - centres) / MIXTURE.sigma).sum(1)
    assert math.sqrt(float(np.median(square)) / (2 * math.log(2))) == pytest.approx(1, abs=0.12)
    assert (square <= 9).mean() > 0.95
    assert len(np.unique(centres, axis=0)) == 25
    assert sampler.expected_nfe in (None, counter.images / 1000)


def test_solvers_with_step_sizes_of_their_own_do_not_look_at_companions() -> None:
    """Who is still on the way changes the batch of the network, and so its last bits alone."""
    sampler = exact("score_sde", {"solver": "adaptive", "tolerance": 0.05}, **SHIPPED_CHAIN)
    sampler.micro_batch = 4
    points = sampler.sample(torch.arange(4))
    torch.testing.assert_close(sampler.sample(torch.tensor([2, 9, 8, 7]))[0], points[2], rtol=0, atol=1e-4)


def test_the_probability_flow_ends_where_scipys_solver_ends() -> None:
    """RK45 is what the authors solve it with; its step size is that of a batch, ours that of a sample."""
    sampler = exact("score_sde", {"solver": "ode", "tolerance": 1e-4}, **SHIPPED_CHAIN)
    sampler.micro_batch = 8
    seeds = torch.arange(8)
    start, end = float(sampler.log_sigma[-1]), float(sampler.log_sigma[0])

    def eps(log_sigma: float, y: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(y.reshape(-1, 2))
        found: np.ndarray = sampler._eps(rows, torch.full((len(rows), 1), log_sigma).double()).numpy().ravel()
        return found

    x_T = Noise(seeds, torch.device("cpu")).normal(2, stream=X_T).double().numpy().ravel()
    flow = solve_ivp(
        lambda s, y: math.exp(s) * eps(s, y), (start, end), x_T * math.sqrt(1 + math.exp(2 * start)),
        method="RK45", rtol=1e-6, atol=1e-6,
    )  # fmt: skip
    last = flow.y[:, -1]
    expected = SCALE * (last - math.exp(end) * eps(end, last)).reshape(-1, 2)
    found = sampler.sample(seeds).numpy()
    assert np.abs(found - expected).max() < 0.2 * MIXTURE.sigma


def test_the_adaptive_solver_weighs_the_modes_as_they_are() -> None:
    """With noise drawn anew after each refused step the divergence is 0.2; of real points it is 24 / 2N = 0.012."""
    sampler = exact("score_sde", {"solver": "adaptive", "tolerance": 0.05}, **SHIPPED_CHAIN)
    points = sampler.sample(torch.arange(1000)).numpy()
    mode = (np.clip(np.round(points / 2), -2, 2) + 2) @ np.array([5, 1])
    share = np.bincount(mode.astype(int), minlength=25) / len(points)
    assert float((share * np.log(25 * share)).sum()) < 0.03


def test_refused_steps_leave_the_noise_of_the_whole_way_as_it_was() -> None:
    """Refusing what moves far, as a solver does; noise drawn anew would have about half of the variance."""
    count, end = 20_000, 0.0
    rng = torch.Generator().manual_seed(0)
    now = torch.full((count, 1), 1.0, dtype=torch.float64)
    path, total, refused = score_sde._BrownianPath(torch.zeros(count, 2).double()), torch.zeros(count, 2).double(), 0
    size = torch.full_like(now, 1.0)
    while len(rows := torch.nonzero(now[:, 0] > end + 1e-9)[:, 0]):
        drawn = torch.randn(len(rows), 2, generator=rng, dtype=torch.float64)
        h, move = path.ahead(rows, now[rows], torch.minimum(size[rows], now[rows] - end), drawn)
        taken = (move.square().sum(1) < 1.0) | (h[:, 0] < 0.05)
        refused += int((~taken).sum())
        total[rows[taken]] += move[taken]
        now[rows[taken]] -= h[taken]
        path.take(rows[taken])
        size[rows] = torch.where(taken[:, None], 1.5 * h, 0.6 * h)
    assert refused > count
    variance = math.exp(2.0) - 1
    # Of 40,000 numbers: four standard deviations.
    assert float(total.square().mean()) == pytest.approx(variance, rel=4 * math.sqrt(2 / (2 * count)))
    assert float(total.pow(4).mean()) == pytest.approx(3 * variance**2, rel=0.1)
    assert abs(float((total[:, 0] * total[:, 1]).mean())) < 4 * variance / math.sqrt(count)


@pytest.mark.parametrize("solver", ["ode", "adaptive"])
def test_solvers_with_step_sizes_of_their_own_take_images_too(solver: str) -> None:
    sampler = tiny_sampler("score_sde", options={"solver": solver, "tolerance": 0.5}, micro_batch=3)
    images = sampler.sample(torch.arange(3))
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(sampler.sample(torch.tensor([2, 5, 6]))[0], images[2])


@pytest.mark.parametrize("solver", ["ode", "adaptive"])
def test_values_that_are_no_numbers_are_said_at_once(solver: str) -> None:
    sampler = exact("score_sde", {"solver": solver}, **SHIPPED_CHAIN)
    sampler.networks["eps"].centres.fill_(math.nan)
    with EvaluationCounter(sampler.networks) as counter, pytest.raises(ProtocolError, match="NaN or infinite"):
        sampler.sample(torch.arange(3))
    assert counter.calls <= 2


# --- noise ------------------------------------------------------------------------------------------------


def test_a_stream_is_one_sequence_however_it_is_cut() -> None:
    seeds = torch.tensor([3, 2**40])
    whole = Noise(seeds, torch.device("cpu")).normal(700, stream=STEP)
    noise = Noise(seeds, torch.device("cpu"))
    parts = [noise.normal(*shape, stream=STEP).flatten(1) for shape in ((2,), (3, 2), (1,), (300,), (7, 13), (300,))]
    assert torch.equal(torch.cat(parts, 1), whole)


# --- networks ---------------------------------------------------------------------------------------------


def test_members_are_networks_that_know_nothing_of_each_other() -> None:
    config = mlp.MLPConfig(width=7, depth=2, members=3, time_dim=4, frequencies=2, nz=2)
    net = mlp.Generator(config)
    x, t, z = torch.randn(6, 2), torch.arange(6), torch.randn(6, 2)
    out = net(x, t, z)
    for index in range(3):
        alone = mlp.Generator(config.model_copy(update={"members": 1}))
        alone.load_state_dict(mlp.member(net.state_dict(), index))
        rows = slice(2 * index, 2 * index + 2)
        torch.testing.assert_close(alone(x[rows], t[rows], z[rows]), out[rows])
    out[2:4].sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        moved = parameter.grad.flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [False, True, False]


def test_a_batch_that_members_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match="7 rows cannot be cut into 3 equal parts"):
        mlp.Epsilon(mlp.MLPConfig(members=3))(torch.zeros(7, 2), torch.zeros(7))


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(UsageError, match="not a configuration of an MLP"):
        mlp.build({"widht": 3})


def test_spectral_norm_brings_every_members_largest_singular_value_to_one() -> None:
    net = mlp.Critic(mlp.MLPConfig(width=9, members=2, spectral_norm=True))
    for _ in range(200):
        net(torch.randn(4, 2))
    for layer in (*net.layers, net.last):
        weight = layer._normalised()
        torch.testing.assert_close(torch.linalg.matrix_norm(weight, 2), torch.ones(2), rtol=1e-3, atol=0)
    net.eval()
    before = net.last.u.clone()
    net(torch.randn(4, 2))
    assert torch.equal(net.last.u, before)


def test_time_is_seen_between_whole_steps_too() -> None:
    t = torch.tensor([0.0, 2.0, 2.5])
    found = mlp.sinusoids(t, 6, longest=100.0)
    angles = t[:, None] * torch.tensor([1.0, 0.1, 0.01])
    torch.testing.assert_close(found, torch.cat([angles.sin(), angles.cos()], 1))


# --- denoising diffusion GAN ------------------------------------------------------------------------------


def test_every_parametrisation_says_the_same_point() -> None:
    chain = GanChain(4)
    rng = torch.Generator().manual_seed(0)
    x0, eps, noise = (torch.randn(4, 2, generator=rng) for _ in range(3))
    t = torch.arange(4)
    x_next = chain.signal[t + 1][:, None] * x0 + chain.noise[t + 1][:, None] * eps
    expected = chain.posterior_sample(x0, x_next, t, noise)
    torch.testing.assert_close(chain.previous(x0, x_next, t, noise), expected)
    torch.testing.assert_close(chain.previous(eps, x_next, t, noise, predict="eps"), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(chain.previous(expected, x_next, t, noise, predict="direct"), expected)
    with pytest.raises(UsageError, match="no prediction named 'x_0'"):
        chain.previous(x0, x_next, t, noise, predict="x_0")


# --- recipes ----------------------------------------------------------------------------------------------


def points_trainers() -> list[tuple[str, str]]:
    found = []
    for name in registry.names("trainer"):
        kind: TrainerKind = registry.get("trainer", name)
        found += [(name, recipe) for recipe in kind.recipes if recipe.startswith("gaussians25")]
    return found


def test_every_small_recipe_of_points_has_one_of_the_papers_size() -> None:
    found = set(points_trainers())
    assert all((name, recipe.replace("cpu", "paper")) in found for name, recipe in found)


@pytest.mark.parametrize(("name", "recipe"), points_trainers())
def test_a_recipe_of_points_trains_and_its_weights_sample(name: str, recipe: str, tmp_path: Path) -> None:
    kind: TrainerKind = registry.get("trainer", name)
    chosen = kind.recipes[recipe]
    members = mlp.members({part: getattr(chosen, part, {}) for part in mlp.PARTS})
    assert members == (5 if "cpu" in recipe else 1)
    if "paper" in recipe:  # three layers of 512 (the classifier of `adm` is smaller), batch 512, 50,000 iterations
        sizes = [getattr(chosen, part, None) or {} for part in mlp.PARTS if part != "classifier"]
        assert {(size["width"], size["depth"]) for size in sizes if size} == {(512, 3)}
        assert (chosen.batch, chosen.duration_kimg) == (512, 25_600)
    short = chosen.model_copy(update={"batch": 8 * members, "duration_kimg": 3 * 8 * members / 1000})
    task = kind.task(short, torch.device("cpu"))
    data = registry.get("dataset", "gaussians25").open("test")
    assert task.scale in (1.0, SCALE)
    result = train(task, data, tmp_path, limits=Limits(log_seconds=0))
    assert result["finished"]
    assert list((tmp_path / "grids").glob("*.png"))
    sampler_kind: SamplerKind = registry.get("sampler", name)
    weights = sampler_kind.load(tmp_path / "weights.safetensors")
    assert mlp.members(weights.config) == members
    one = make_weights(mlp.member(weights.tensors or {}, members - 1), mlp.single(weights.config), "one")
    points = sampler_kind.build(sampler_kind.options(), one).sample(torch.arange(3))
    assert points.shape == (3, 2)
    assert points.dtype == torch.float64
