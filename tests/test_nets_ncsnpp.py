"""The DDGAN networks against the authors' own, by the oracles, and what holds in any configuration."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle_cases import OracleCase, ddgan_weights, load_oracle, oracle_names, oracle_path
from torch import Tensor, nn

from trilemma_bench.errors import ProtocolError, UsageError, WeightsError
from trilemma_bench.nets._ncsnpp_layers import Attention, Fir, PyramidDown, Residual
from trilemma_bench.nets.ncsnpp import build_discriminator, build_generator

TOLERANCE = 2e-5  # tests/oracles/README.md
GENERATORS = oracle_names("ddgan/generator_*.npz")
DISCRIMINATORS = oracle_names("ddgan/discriminator_*.npz")

TINY: dict[str, Any] = {
    "image_size": 8,
    "num_channels_dae": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "n_mlp": 1,
    "nz": 5,
    "z_emb_dim": 6,
}
CELEBA_256: dict[str, Any] = {
    "image_size": 256,
    "num_channels_dae": 64,
    "ch_mult": [1, 1, 2, 2, 4, 4],
    "n_mlp": 3,
}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def seeded(network: nn.Module, seed: int = 7) -> nn.Module:
    network.load_state_dict(ddgan_weights(shapes(network), seed))
    return network.eval()


def tiny_generator(**options: Any) -> nn.Module:
    return seeded(build_generator(TINY | options))


def generator_inputs(network: nn.Module, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    config, rng = network.config, torch.Generator().manual_seed(0)
    x = torch.randn(batch, config.num_channels, config.image_size, config.image_size, generator=rng)
    return x, torch.arange(batch) % 4, torch.randn(batch, config.nz, generator=rng)


def critic_inputs(batch: int, channels: int = 3, side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x, x_t = torch.randn(2, batch, channels, side, side, generator=rng)
    return x, torch.arange(batch) % 4, x_t


def from_oracle(case: OracleCase, config: str = "config", seed: str = "weight_seed") -> nn.Module:
    network = build_generator(case.meta[config]).eval()
    network.load_state_dict(ddgan_weights(case.meta.get("keys", shapes(network)), case.meta[seed]))
    return network


def schedule(num_timesteps: int) -> SimpleNamespace:
    constants = json.loads(oracle_path("ddgan/schedules.json").read_text())[str(num_timesteps)]
    return SimpleNamespace(**{name: torch.tensor(values) for name, values in constants.items()})


def posterior_sample(table: SimpleNamespace, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    column = t[:, None, None, None]
    mean = table.posterior_mean_coef1[column] * x0 + table.posterior_mean_coef2[column] * x_t
    return mean + (column > 0) * (0.5 * table.posterior_log_variance_clipped[column]).exp() * noise


# --- the authors' networks


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_computes_what_the_authors_does(name: str) -> None:
    case = load_oracle(name)
    generator = from_oracle(case)
    with torch.no_grad():
        out = generator(case["x"], case["t"], case["z"])
    torch.testing.assert_close(out, case["out"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_state_dict_is_the_authors_key_for_key(name: str) -> None:
    meta = load_oracle(name).meta
    generator = build_generator(meta["config"])
    assert list(shapes(generator).items()) == [(key, tuple(shape)) for key, shape in meta["keys"].items()]
    assert sum(parameter.numel() for parameter in generator.parameters()) == meta["n_params"]


@pytest.mark.parametrize("name", GENERATORS)
def test_sampling_follows_the_authors_trajectory(name: str) -> None:
    case = load_oracle(name)
    generator, steps = from_oracle(case), case.meta["config"]["num_timesteps"]
    table, x = schedule(steps), case["traj_x_T"]
    for row, step in enumerate(reversed(range(steps))):
        t = torch.full((len(x),), step)
        with torch.no_grad():
            x0 = generator(x, t, case["traj_z"][row])
        x = posterior_sample(table, x0, x, t, case["traj_noise"][row])
        torch.testing.assert_close(x0, case["traj_x0"][row], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(x, case["traj_x_next"][row], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_computes_what_the_authors_does(name: str, batch: int) -> None:
    case = load_oracle(name)
    critic = build_discriminator(case.meta["config"])
    critic.load_state_dict(ddgan_weights(case.meta["keys"], case.meta["weight_seed"]))
    with torch.no_grad():
        out = critic(case[f"x_b{batch}"], case[f"t_b{batch}"], case[f"x_t_b{batch}"])
    torch.testing.assert_close(out, case[f"out_b{batch}"], atol=TOLERANCE, rtol=0)


def test_a_training_step_has_the_authors_losses_and_gradients() -> None:
    case = load_oracle("ddgan/train_step_small.npz")
    table = schedule(case.meta["g_config"]["num_timesteps"])
    generator = from_oracle(case, "g_config", "weight_seed_G").train()
    critic = build_discriminator(case.meta["d_config"])
    critic.load_state_dict(ddgan_weights(shapes(critic), case.meta["weight_seed_D"]))
    t, column = case["t"], case["t"][:, None, None, None]

    x_t = table.a_s_cum[column] * case["x0"] + table.sigmas_cum[column] * case["noise_q"]
    x_tp1 = table.a_s[column + 1] * x_t + table.sigmas[column + 1] * case["noise_step"]
    x_t.requires_grad_()
    d_real = critic(x_t, t, x_tp1).view(-1)
    real_loss = F.softplus(-d_real).mean()
    (r1_gradient,) = torch.autograd.grad(d_real.sum(), x_t, create_graph=True)
    penalty = case.meta["r1_gamma"] / 2 * r1_gradient.flatten(1).square().sum(1).mean()
    x0_pred = generator(x_tp1, t, case["z"])
    sample = posterior_sample(table, x0_pred, x_tp1, t, case["noise_post"])
    fake_loss = F.softplus(critic(sample.detach(), t, x_tp1)).mean()
    (real_loss + penalty + fake_loss).backward()
    d_norms = gradient_norms(critic)
    d_fake = critic(sample, t, x_tp1).view(-1)
    generator_loss = F.softplus(-d_fake).mean()
    generator_loss.backward()

    found = {
        "x_t": x_t,
        "x_tp1": x_tp1,
        "D_real": d_real,
        "errD_real": real_loss,
        "grad_real": r1_gradient,
        "grad_penalty": penalty,
        "x0_pred": x0_pred,
        "x_pos_sample": sample,
        "D_fake": d_fake,
        "errD_fake": fake_loss,
        "errG": generator_loss,
    }
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), case[name], atol=TOLERANCE, rtol=1e-5, msg=name)
    for found_norms, letter in ((d_norms, "D"), (gradient_norms(generator), "G")):
        expected = case.meta["grad_norms"][letter]
        assert found_norms.keys() == expected.keys()
        assert found_norms == pytest.approx(expected, rel=1e-4, abs=1e-7)


def gradient_norms(network: nn.Module) -> dict[str, float]:
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: 0.0 if grad is None else grad.norm().item() for name, grad in gradients.items()}


# --- sizes and keys of the published models


@pytest.mark.parametrize(
    ("build", "config", "parameters", "entries"),
    [
        (build_generator, {}, 48_432_515, 384),
        (build_generator, CELEBA_256, 39_726_979, 548),
        (build_discriminator, {}, 12_741_633, 38),
        (build_discriminator, {"class": "Discriminator_large"}, 27_737_217, 52),
    ],
    ids=["cifar10", "celeba_hq_256", "small", "large"],
)
def test_published_sizes(build: Any, config: dict[str, Any], parameters: int, entries: int) -> None:
    with torch.device("meta"):
        network = build(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(network.state_dict()) == entries


def test_module_list_of_the_cifar10_generator() -> None:
    with torch.device("meta"):
        modules = build_generator({}).all_modules
    assert len(modules) == 40
    assert indices(modules, Attention) == [8, 10, 20, 33]
    assert indices(modules, PyramidDown) == [6, 12, 16]
    resampling = [i for i, m in enumerate(modules) if isinstance(m, Residual) and m.resample is not None]
    assert resampling == [5, 11, 15, 25, 29, 34]
    assert [tuple(modules[i].Conv_0.weight.shape[:2]) for i in (22, 30, 32, 35, 36)] == [
        (256, 512),
        (256, 512),
        (256, 384),
        (128, 384),
        (128, 256),
    ]


def test_keys_of_the_256_pixel_generator() -> None:
    with torch.device("meta"):
        generator = build_generator(CELEBA_256)
    keys = shapes(generator)
    assert len(generator.all_modules) == 56
    assert [key for key in keys if key.startswith("z_transform") and key.endswith("weight")] == [
        f"z_transform.{i}.weight" for i in (1, 3, 5, 7)
    ]
    assert keys["all_modules.2.weight"] == (64, 3, 3, 3)
    assert keys["all_modules.6.Conv2d_0.weight"] == (64, 3, 3, 3)
    # Attention at 16 pixels, the fifth level: after each block down, once up; and in the middle, at 8 pixels.
    assert len(indices(generator.all_modules, Attention)) == 4
    assert len(indices(generator.all_modules, PyramidDown)) == 5
    assert keys["all_modules.55.weight"] == (3, 64, 3, 3)


def indices(modules: nn.ModuleList, kind: type) -> list[int]:
    return [index for index, module in enumerate(modules) if isinstance(module, kind)]


def test_keys_of_the_large_discriminator() -> None:
    with torch.device("meta"):
        keys = shapes(build_discriminator({"class": "large"}))
    assert keys["conv1.conv1.0.weight"] == (256, 128, 3, 3)
    assert keys["conv6.skip.0.weight"] == (512, 512, 1, 1)
    assert keys["final_conv.weight"] == (512, 513, 3, 3)
    assert "conv1.skip.0.bias" not in keys


# --- FIR resampling, by its definition


def upfirdn(x: np.ndarray, taps: Any, up: int, down: int, before: int, after: int) -> np.ndarray:
    """Zeros after each pixel, padding (negative: cropping), true convolution, decimation; float64 [H, W]."""
    kernel = np.asarray(taps, dtype=np.float64)
    kernel = np.outer(kernel, kernel) if kernel.ndim == 1 else kernel
    kernel = kernel / kernel.sum() * up**2
    side = up * x.shape[0]
    grid = np.zeros((side + 8 + max(after, 0), side + 8 + max(after, 0)))
    grid[before : before + side : up, before : before + side : up] = x
    grid = grid[: side + before + after, : side + before + after]
    length = len(kernel)
    full = len(grid) - length + 1
    out = np.array(
        [[(grid[i : i + length, j : j + length] * kernel[::-1, ::-1]).sum() for j in range(full)] for i in range(full)]
    )
    return out[::down, ::down]


KERNELS = [
    [1, 3, 3, 1],
    [1],
    [1, 1],
    [1, 2, 1],
    [1, 2, 4],
    [1, 4, 6, 4, 1],
    [1, 2, 3, 4, 5, 6],
    [[1, 2], [3, 5]],
]


@pytest.mark.parametrize("taps", KERNELS, ids=str)
def test_fir_resampling_is_zero_insertion_and_true_convolution(taps: Any) -> None:
    x = np.random.default_rng(0).standard_normal((6, 6))
    surplus = len(taps) - 2
    half, rest = (surplus + 1) // 2, surplus // 2
    cases = [
        (Fir(taps, up=2), upfirdn(x, taps, 2, 1, half + 1, rest), 12),
        (Fir(taps, down=2), upfirdn(x, taps, 1, 2, half, rest), 3),
        (Fir(taps, extra=2), upfirdn(x, taps, 1, 1, (surplus + 3) // 2, (surplus + 2) // 2), 7),
    ]
    for module, expected, side in cases:
        found = module.double()(torch.from_numpy(x)[None, None].expand(2, 3, -1, -1))
        assert found.shape == (2, 3, side, side)
        np.testing.assert_allclose(found[1, 2].numpy(), expected, atol=1e-6)


def test_filters_stay_out_of_the_state_dict_and_follow_the_module() -> None:
    generator = build_generator(TINY)
    assert len(generator.state_dict()) == len(list(generator.parameters()))
    assert all(buffer.dtype == torch.float64 for buffer in generator.double().buffers())


# --- any configuration


VARIANTS: list[dict[str, Any]] = [
    {"ch_mult": [1]},
    {"ch_mult": [1, 1, 2]},
    {"ch_mult": [1, 1, 2, 2], "num_res_blocks": 2},
    {"ch_mult": [1, 1, 1, 1, 1, 2], "image_size": 32, "attn_resolutions": [32, 4, 1]},
    {"attn_resolutions": []},
    {"attn_resolutions": [8, 4]},
    {"num_channels": 1},
    {"num_channels_dae": 5, "ch_mult": [1]},
    {"num_res_blocks": 0},
    {"num_res_blocks": 3, "n_mlp": 0},
    {"fir_kernel": [1, 2, 1]},
    {"fir_kernel": [1, 4, 6, 4, 1]},
    {"fir": False},
    {"conditional": False},
    {"skip_rescale": False},
    {"progressive_input": "none"},
    {"progressive_input": "input_skip"},
    {"progressive_input": "input_skip", "progressive_combine": "cat", "ch_mult": [1, 1, 2]},
    {"progressive": "output_skip", "ch_mult": [1, 1, 2]},
    {"progressive": "residual", "fir": False, "ch_mult": [1, 1, 2]},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_accepted_configuration_is_finite_and_uses_all_its_modules(options: dict[str, Any]) -> None:
    generator = tiny_generator(**options)
    x, t, z = generator_inputs(generator)
    z.requires_grad_()
    out = generator(x, t, z)
    assert out.shape == x.shape and out.abs().max() <= 1
    out.square().sum().backward()
    assert z.grad is not None and bool((z.grad.flatten(1).norm(dim=1) > 0).all())
    unused = {name for name, parameter in generator.named_parameters() if parameter.grad is None}
    if options.get("conditional", True):
        assert not unused
    else:
        assert unused and all("Dense_0" in name for name in unused)


@pytest.mark.parametrize("options", VARIANTS[::3], ids=str)
def test_an_image_does_not_depend_on_its_batch(options: dict[str, Any]) -> None:
    generator = tiny_generator(**options).double()
    x, t, z = generator_inputs(generator, batch=5)
    x, z = x.double(), z.double()
    with torch.no_grad():
        together = generator(x, t, z)
        apart = torch.cat([generator(x[i : i + 1], t[i : i + 1], z[i : i + 1]) for i in range(5)])
    # In float64, where the order of sums, which follows the batch, is far below any real dependence.
    torch.testing.assert_close(together, apart, atol=1e-12, rtol=0)


def test_not_use_tanh_leaves_out_only_the_tanh() -> None:
    bounded, unbounded = tiny_generator(), tiny_generator(not_use_tanh=True)
    inputs = generator_inputs(bounded)
    with torch.no_grad():
        torch.testing.assert_close(bounded(*inputs), torch.tanh(unbounded(*inputs)))


def test_uncentered_data_are_mapped_from_the_unit_interval() -> None:
    centered, uncentered = tiny_generator(), tiny_generator(centered=False)
    x, t, z = generator_inputs(centered)
    with torch.no_grad():
        torch.testing.assert_close(uncentered((x + 1) / 2, t, z), centered(x, t, z), atol=1e-5, rtol=0)


def test_unconditional_generator_ignores_the_step() -> None:
    x, t, z = generator_inputs(conditional := tiny_generator())
    unconditional = tiny_generator(conditional=False)
    with torch.no_grad():
        assert not torch.equal(conditional(x, t, z), conditional(x, t + 1, z))
        assert torch.equal(unconditional(x, t, z), unconditional(x, t + 1, z))


def test_the_latent_is_normalised() -> None:
    generator = tiny_generator()
    x, t, z = generator_inputs(generator)
    with torch.no_grad():
        torch.testing.assert_close(generator(x, t, z), generator(x, t, 3 * z), atol=1e-5, rtol=0)


def test_output_skip_sums_the_images_of_all_levels() -> None:
    generator = tiny_generator(progressive="output_skip", fir=False, ch_mult=[1, 1, 2], not_use_tanh=True)
    outputs = [m for m in generator.all_modules[3:] if isinstance(m, nn.Conv2d)]
    assert len(outputs) == 3
    with torch.no_grad():
        for level, output in enumerate(outputs):
            output.weight.zero_()
            output.bias.fill_(10.0**level)
        out = generator(*generator_inputs(generator))
    torch.testing.assert_close(out, torch.full_like(out, 111.0))


def test_naive_resampling_copies_and_averages() -> None:
    generator = tiny_generator(fir=False)
    down, up = (m.resample for m in generator.modules() if isinstance(m, Residual) and m.resample is not None)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(down(x), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert torch.equal(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_dropout_acts_in_training_only() -> None:
    generator = tiny_generator(dropout=0.5)
    inputs = generator_inputs(generator)
    with torch.no_grad():
        assert torch.equal(generator(*inputs), tiny_generator()(*inputs))
        assert not torch.equal(generator.train()(*inputs), generator(*inputs))


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(("name", "side"), [("small", 8), ("small", 28), ("large", 64)])
def test_discriminators_take_any_size_they_can_halve(name: str, side: int, num_channels: int) -> None:
    critic = seeded(build_discriminator({"class": name, "nc": 2 * num_channels, "ngf": 4, "t_emb_dim": 9}))
    logits = critic(*critic_inputs(4, num_channels, side))
    assert logits.shape == (4, 1) and bool(logits.isfinite().all())


def test_discriminator_groups_are_strided() -> None:
    critic = seeded(build_discriminator({"ngf": 4, "t_emb_dim": 16}))
    x, t, x_t = critic_inputs(8)
    with torch.no_grad():
        logits = critic(x, t, x_t)
        even = critic(x[::2], t[::2], x_t[::2])
        first_half = critic(x[:4], t[:4], x_t[:4])
    torch.testing.assert_close(logits[::2], even, atol=1e-5, rtol=0)
    assert not torch.allclose(logits[:4], first_half, atol=1e-5)


# --- weights: drawing and loading


def test_fresh_weights_have_the_authors_variances() -> None:
    rng = torch.Generator().manual_seed(0)
    generator = build_generator({"num_channels_dae": 64, "z_emb_dim": 128}, rng=rng)
    critic = build_discriminator({"ngf": 32}, rng=rng)
    g, d = dict(generator.named_parameters()), dict(critic.named_parameters())
    assert deviation(g["all_modules.3.Conv_0.weight"]) == pytest.approx(1 / math.sqrt(64 * 9), rel=0.02)
    assert deviation(g["all_modules.7.Conv_0.weight"]) == pytest.approx(1 / math.sqrt(96 * 9), rel=0.02)
    assert deviation(g["all_modules.0.weight"]) == pytest.approx(1 / math.sqrt(160), rel=0.02)
    assert deviation(g["all_modules.8.NIN_0.W"]) == pytest.approx(math.sqrt(0.1 / 128), rel=0.02)
    assert deviation(g["z_transform.1.weight"]) == pytest.approx(1 / math.sqrt(128), rel=0.02)
    assert deviation(g["all_modules.3.GroupNorm_0.style.weight"]) == pytest.approx(1 / math.sqrt(128), rel=0.02)
    for key in ("all_modules.3.Conv_1.weight", "all_modules.8.NIN_3.W", "all_modules.39.weight"):
        assert 0 < deviation(g[key]) < 1e-5
    style = g["all_modules.3.GroupNorm_0.style.bias"]
    assert style.tolist() == [1.0] * 64 + [0.0] * 64
    assert deviation(d["conv1.conv1.0.weight"]) == pytest.approx(1 / math.sqrt(64 * 9), rel=0.02)
    assert deviation(d["conv2.skip.0.weight"]) == pytest.approx(1 / math.sqrt(128), rel=0.02)
    for key in ("conv1.conv2.0.weight", "final_conv.weight"):
        assert 0 < deviation(d[key]) < 1e-5
    assert not any(value.any() for key, value in (g | d).items() if key.endswith((".b", "Conv_0.bias")))


def deviation(values: Tensor) -> float:
    return values.detach().std().item()


def test_weights_come_from_the_given_generator_alone() -> None:
    state = torch.get_rng_state()
    one, two = (build_generator(TINY, rng=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("build", [lambda: build_generator(TINY), lambda: build_discriminator({"ngf": 4})])
def test_checkpoints_of_the_distributed_wrapper_load(build: Any) -> None:
    network = build()
    weights = ddgan_weights(shapes(network), 5)
    network.load_state_dict({f"module.{key}": value for key, value in weights.items()}, strict=True)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in weights.items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_another_network_are_refused(prefix: str) -> None:
    network = build_generator(TINY)
    weights = {prefix + key: value for key, value in network.state_dict().items()}
    missing = {key: value for key, value in weights.items() if not key.endswith("all_modules.0.bias")}
    with pytest.raises(WeightsError, match=r"all_modules\.0\.bias is missing"):
        network.load_state_dict(missing)
    with pytest.raises(WeightsError, match="elsewhere has no place here"):
        network.load_state_dict(weights | {prefix + "elsewhere": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"all_modules\.0\.bias is \[3\], here \[32\]"):
        network.load_state_dict(weights | {prefix + "all_modules.0.bias": torch.zeros(3)})
    network.load_state_dict(missing, strict=False)


# --- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resblock_type": "ddpm"}, "resblock_type = 'ddpm' is not supported"),
        ({"resblock_type": "biggan_oneadagn"}, "resblock_type"),
        ({"embedding_type": "fourier"}, "embedding_type = 'fourier' is not supported"),
        ({"progressive": "residual"}, "progressive = 'residual'"),
        ({"progressive": "sideways"}, "progressive = 'sideways'"),
        ({"progressive_input": "cat"}, "progressive_input = 'cat'"),
        ({"progressive_combine": "mean"}, "progressive_combine = 'mean'"),
        ({"ch_mul": [1, 2]}, "'ch_mul'; did you mean 'ch_mult'"),
        ({"num_channel": 3}, "'num_channel'; did you mean 'num_channels'"),
        ({"ch_mult": []}, "ch_mult"),
        ({"ch_mult": 2}, "ch_mult must be a list"),
        ({"ch_mult": [1, 1.5]}, "ch_mult must be a whole number"),
        ({"image_size": 30, "ch_mult": [1, 1, 1]}, "image_size must be a multiple of 4; got 30"),
        ({"num_channels_dae": 18}, "18 channels"),
        ({"num_channels_dae": 3}, "3 channels"),
        ({"nz": 0}, "nz must be at least 1"),
        ({"n_mlp": -1}, "n_mlp"),
        ({"nz": True}, "nz must be a whole number"),
        ({"dropout": 1.0}, "dropout"),
        ({"centered": "yes"}, "centered must be true or false"),
        ({"fir": 1}, "fir must be true or false"),
        ({"fir_kernel": [1, -1]}, "fir_kernel"),
        ({"fir_kernel": [[1, 2, 1]]}, "fir_kernel"),
        ({"fir_kernel": []}, "fir_kernel"),
        ({"fir_kernel": ["a"]}, "fir_kernel"),
    ],
    ids=str,
)
def test_generator_options_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r".*".join(map(_escaped, words.split()))):
        build_generator(TINY | options)


def _escaped(word: str) -> str:
    return "".join("\\" + letter if not letter.isalnum() and letter != "_" else letter for letter in word)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"class": "Discriminator_medium"}, "discriminator class named 'Discriminator_medium'"),
        ({"nfg": 64}, "'nfg'; did you mean 'ngf'"),
        ({"nc": 5}, "nc must be even"),
        ({"nc": 6, "num_channels": 1}, "nc must be twice num_channels"),
        ({"t_emb_dim": 3}, "t_emb_dim must be at least 4"),
        ({"ngf": 0}, "ngf must be at least 1"),
    ],
    ids=str,
)
def test_discriminator_options_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_discriminator(config)


def test_options_of_the_authors_scripts_are_passed_over() -> None:
    options = {"num_timesteps": 4, "beta_min": 0.1, "use_geometric": False, "lr_g": 1.6e-4, "r1_gamma": 0.02}
    config = TINY | {"num_channels": 1, "ngf": 4, "t_emb_dim": 16} | options
    assert build_generator(config).config.num_channels == 1
    assert build_discriminator(config).config.nc == 2


def test_generator_says_which_input_has_the_wrong_shape() -> None:
    generator = tiny_generator()
    x, t, z = generator_inputs(generator)
    with pytest.raises(ProtocolError, match=r"x must be \[B, 3, 8, 8\].*got \[3, 3, 4, 4\]"):
        generator(x[..., :4, :4], t, z)
    with pytest.raises(ProtocolError, match=r"x must be \[B, 3, 8, 8\].*got \[3, 1, 8, 8\]"):
        generator(x[:, :1], t, z)
    with pytest.raises(ProtocolError, match=r"t must be \[3\].*got \[1\]"):
        generator(x, t[:1], z)
    with pytest.raises(ProtocolError, match=r"z must be \[3, 5\].*got \[3, 4\]"):
        generator(x, t, z[:, :4])
    with pytest.raises(ProtocolError, match=r"x must hold floats; got torch\.uint8"):
        generator(x.to(torch.uint8), t, z)


@pytest.mark.parametrize("batch", [0, 5, 6, 7])
def test_discriminator_refuses_batches_that_do_not_split_into_groups(batch: int) -> None:
    critic = build_discriminator({"ngf": 4})
    with pytest.raises(ProtocolError, match=f"got a batch of {batch}"):
        critic(*critic_inputs(batch))


def test_discriminator_says_which_input_has_the_wrong_shape() -> None:
    critic = build_discriminator({"ngf": 4})
    x, t, x_t = critic_inputs(4)
    with pytest.raises(ProtocolError, match=r"x must be \[B, 3, H, W\]"):
        critic(torch.cat([x, x_t], 1), t, x_t)
    with pytest.raises(ProtocolError, match="x_t must be"):
        critic(x, t, x_t[:2])
    with pytest.raises(ProtocolError, match="t must be"):
        critic(x, t[:, None], x_t)
    with pytest.raises(ProtocolError, match="images of 8 pixels or more"):
        critic(x[..., :4, :4], t, x_t[..., :4, :4])


# --- ways of running


def test_channels_last_computes_the_same() -> None:
    generator = tiny_generator()
    x, t, z = generator_inputs(generator)
    with torch.no_grad():
        plain = generator(x, t, z)
        generator.to(memory_format=torch.channels_last)
        last = generator(x.to(memory_format=torch.channels_last), t, z)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=0)


def test_bfloat16_autocast_stays_near_and_trains() -> None:
    generator = tiny_generator()
    critic = seeded(build_discriminator({"ngf": 4, "t_emb_dim": 16}))
    inputs = generator_inputs(generator, batch=4)
    x, t, x_t = critic_inputs(4, side=8)
    x.requires_grad_()
    plain, plain_logits = generator(*inputs), critic(x, t, x_t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near, logits = generator(*inputs), critic(x, t, x_t)
    torch.testing.assert_close(near.float(), plain, atol=0.15, rtol=0)
    torch.testing.assert_close(logits.float(), plain_logits, atol=0.1, rtol=0.05)
    (r1_gradient,) = torch.autograd.grad(logits.float().sum(), x, create_graph=True)
    (near.float().square().sum() + r1_gradient.square().sum()).backward()
    for network in (generator, critic):
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_double_precision_runs_throughout() -> None:
    generator = tiny_generator().double()
    x, t, z = generator_inputs(generator)
    assert generator(x.double(), t, z.double()).dtype == torch.float64


def test_second_derivatives_of_the_discriminator_are_those_of_differences() -> None:
    critic = seeded(build_discriminator({"ngf": 2, "t_emb_dim": 8, "nc": 2})).double()
    x, t, x_t = (value.double() if value.is_floating_point() else value for value in critic_inputs(2, 1, 8))
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda image: critic(image, t, x_t), (x,), atol=1e-4)


def test_networks_compile_to_one_graph() -> None:
    generator, critic = tiny_generator(), seeded(build_discriminator({"ngf": 4, "t_emb_dim": 16}))
    for network, inputs in ((generator, generator_inputs(generator)), (critic, critic_inputs(4, side=8))):
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), network(*inputs))


def test_copies_for_weight_averaging_are_whole() -> None:
    generator = tiny_generator()
    twin = copy.deepcopy(generator)
    inputs = generator_inputs(generator)
    with torch.no_grad():
        assert torch.equal(twin(*inputs), generator(*inputs))
