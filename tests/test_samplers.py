"""Each sampler against its reference: diffusers' schedulers, the authors' trajectories; and the files it reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from oracle_cases import ddgan_weights, load_oracle, oracle_names, stylegan2_weights
from safetensors.torch import load_file, save_file
from sampler_cases import TINY_STYLEGAN2, TINY_UNET, GivenNoise, tiny, tiny_sampler
from torch import Tensor, nn

from trilemma_bench.errors import UsageError, WeightsError
from trilemma_bench.images import to_uint8
from trilemma_bench.kinds import Weights
from trilemma_bench.models import open_model, parse_model
from trilemma_bench.nets import ncsnpp
from trilemma_bench.nets.stylegan2 import build_generator as build_stylegan2
from trilemma_bench.run import run_spec
from trilemma_bench.samplers import ddgan, ddim, ddpm, stylegan2
from trilemma_bench.samplers._helpers import LABEL, LATENT, STEP, X_T, Noise, make_weights, untrained
from trilemma_bench.spec import load_protocol

CPU = torch.device("cpu")
SEEDS = torch.tensor([5, 2**33 + 1, 0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- noise


def test_noise_is_keyed_by_seed_and_stream_and_not_by_companions() -> None:
    together, alone = Noise(SEEDS, CPU), Noise(SEEDS[1:2], CPU)
    for stream in (X_T, STEP, LATENT):
        assert torch.equal(together.normal(3, 4, stream=stream)[1], alone.normal(3, 4, stream=stream)[0])
    fresh = Noise(SEEDS, CPU)
    draws = [fresh.normal(50, stream=stream) for stream in (X_T, STEP, LATENT)]
    rows = torch.cat(draws)
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.6
    assert len({row.numpy().tobytes() for row in rows}) == 9


def test_a_stream_goes_on_where_it_stopped_whatever_else_was_drawn() -> None:
    plain, mixed = Noise(SEEDS, CPU), Noise(SEEDS, CPU)
    first, second = plain.normal(6, stream=STEP), plain.normal(6, stream=STEP)
    assert not torch.equal(first, second)
    assert torch.equal(mixed.normal(6, stream=STEP), first)
    mixed.normal(7, stream=LATENT)
    mixed.integers(10, stream=LABEL)
    assert torch.equal(mixed.normal(6, stream=STEP), second)


def test_noise_is_philox_of_numpy() -> None:
    key = np.array([2**33 + 1, STEP], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal((2, 3), np.float32)
    assert np.array_equal(Noise(SEEDS, CPU).normal(2, 3, stream=STEP)[1].numpy(), expected)


def test_noise_is_standard_normal_and_scalars_are_drawn_too() -> None:
    noise = Noise(torch.arange(4000), CPU)
    for drawn in (noise.normal(5, stream=X_T), noise.normal(stream=LATENT)):
        assert drawn.dtype == torch.float32
        assert abs(float(drawn.mean())) < 0.08
        assert abs(float(drawn.std()) - 1) < 0.05
    assert noise.normal(stream=LATENT).shape == (4000,)


def test_negative_seeds_have_noise_of_their_own() -> None:
    drawn = Noise(torch.tensor([-1, 1, 0]), CPU).normal(4, stream=X_T)
    assert len({row.numpy().tobytes() for row in drawn}) == 3


# --- DDPM and DDIM against diffusers


def in_step_with_diffusers(
    sampler: Any, scheduler: Any, steps: int, *, eta: float | None = None, tolerance: float = 1e-5
) -> None:
    """Along diffusers' trajectory every step of ours ends where theirs does, given the same noise."""
    scheduler.set_timesteps(steps)
    assert [t for t, _ in sampler.pairs] == scheduler.timesteps.tolist()
    shape = (2, *sampler.image_shape)
    x = normal(*shape)
    for row, (t, t_prev) in enumerate(sampler.pairs):
        noise = normal(*shape, seed=100 + row)
        with torch.inference_mode():
            eps = sampler.predict_noise(x, t)
        ours = sampler.step(x, eps, t, t_prev, GivenNoise(step=[noise]))
        generator = torch.Generator().manual_seed(100 + row)
        more = {"generator": generator} if eta is None else {"eta": eta, "variance_noise": noise if eta else None}
        x = scheduler.step(eps, t, x, **more).prev_sample
        torch.testing.assert_close(ours, x, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [7, 30])
def test_ddpm_steps_are_those_of_diffusers(steps: int, variance: str, clip: bool) -> None:
    sampler = tiny_sampler("ddpm", options={"steps": steps, "variance": variance, "clip": clip})
    scheduler = DDPMScheduler(variance_type=variance, clip_sample=clip, timestep_spacing="leading")
    in_step_with_diffusers(sampler, scheduler, steps)


def test_the_whole_chain_of_ddpm_is_that_of_diffusers() -> None:
    """All 1000 steps, with a network that costs nothing.

    diffusers computes its constants in float32, where 1 - alpha_bar is rounded by up to 8e-5 of itself at t < 6.
    With constants of float64 its steps are ours.
    """
    sampler = tiny_sampler("ddpm", config=tiny("ddim").config, options={"variance": "fixed_small"})
    sampler.networks["eps"] = ShrinkingNet()
    assert sampler.expected_nfe == 1000
    scheduler = DDPMScheduler(variance_type="fixed_small", clip_sample=True)
    in_step_with_diffusers(sampler, scheduler, 1000, tolerance=1e-4)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    in_step_with_diffusers(sampler, scheduler, 1000, tolerance=2e-6)


class ShrinkingNet(nn.Module):
    """Takes a part of x for noise, more of it at small t."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * (0.2 + 0.6 * t[0] / 1000) + 0.1


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps_are_those_of_diffusers(eta: float, clip: bool, spacing: str) -> None:
    sampler = tiny_sampler("ddim", options={"steps": 20, "eta": eta, "clip": clip, "spacing": spacing})
    scheduler = DDIMScheduler(clip_sample=clip, timestep_spacing=spacing, set_alpha_to_one=True)
    in_step_with_diffusers(sampler, scheduler, 20, eta=eta)


def test_ddim_with_eta_one_and_all_steps_is_ddpm_with_the_small_variance() -> None:
    one = tiny_sampler("ddim", options={"steps": 1000, "spacing": "leading", "eta": 1.0})
    options = {"variance": "fixed_small", "clip": False}
    other = tiny_sampler("ddpm", config=tiny("ddim").config, options=options)
    assert one.pairs == other.pairs
    x, eps, noise = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1), normal(2, 3, 8, 8, seed=2)
    for t, t_prev in ((999, 998), (500, 499), (1, 0), (0, -1)):
        steps = [sampler.step(x, eps, t, t_prev, GivenNoise(step=[noise])) for sampler in (one, other)]
        torch.testing.assert_close(steps[0], steps[1], atol=1e-6, rtol=1e-5)


def test_ddim_with_eta_zero_ignores_the_step_stream() -> None:
    class Failing(Noise):
        def normal(self, *shape: int, stream: int) -> Tensor:
            assert stream == X_T
            return super().normal(*shape, stream=stream)

    sampler = tiny_sampler("ddim", options={"steps": 5, "eta": 0.0})
    with torch.inference_mode():
        drawn = sampler.draw(Failing(SEEDS, CPU), 3)
        assert torch.equal(drawn, sampler.draw(Noise(SEEDS, CPU), 3))
    stochastic = tiny_sampler("ddim", options={"steps": 5, "eta": 0.3})
    with torch.inference_mode(), pytest.raises(AssertionError):
        stochastic.draw(Failing(SEEDS, CPU), 3)


def test_a_quadratic_step_that_occurs_twice_changes_nothing_the_first_time() -> None:
    sampler = tiny_sampler("ddim", options={"steps": 50, "eta": 1.0})
    assert sampler.pairs[-2:] == [(0, 0), (0, -1)]
    x, eps = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1)
    torch.testing.assert_close(sampler.step(x, eps, 0, 0, GivenNoise(step=[])), x)
    ancestral = tiny_sampler("ddpm", options={"steps": 50, "spacing": "quadratic"})
    y = normal(2, 3, 16, 16)
    noise = GivenNoise(step=[torch.ones_like(y)])
    torch.testing.assert_close(ancestral.step(y, y * 0.1, 0, 0, noise), y)


def test_perfect_noise_prediction_leads_ddim_to_the_image() -> None:
    """Where eps is the noise that is in x_t, any number of deterministic steps ends at x_0 itself."""
    sampler = tiny_sampler("ddim", options={"steps": 10})
    x0, noise = normal(2, 3, 8, 8).clamp(-1, 1), normal(2, 3, 8, 8, seed=1)
    x = sampler.chain.q_sample(x0, torch.full((2,), 800), noise)
    for t, t_prev in sampler.pairs:
        x = sampler.step(x, noise, t, t_prev, GivenNoise())
    torch.testing.assert_close(x, x0, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": -1}, {"variance": "learned"}, {"spacing": "linspace"}])
def test_options_that_ddpm_has_not_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ddpm.Options(**options)


@pytest.mark.parametrize("options", [{"steps": 0}, {"eta": -0.1}, {"eta": 1.1}, {"spacing": "linspace"}])
def test_options_that_ddim_has_not_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ddim.Options(**options)


def test_more_steps_than_the_chain_has_are_refused() -> None:
    with pytest.raises(UsageError, match=r"steps must be in 1\.\.1000"):
        tiny_sampler("ddim", options={"steps": 1001})
    with pytest.raises(UsageError, match=r"steps must be in 2\.\.1000"):
        tiny_sampler("diffusers", options={"steps": 1001})


def test_noise_that_would_rise_is_refused() -> None:
    for options in ({"sigma_max": 1e-4}, {"sigma_min": 2.0, "sigma_max": 1.0}, {"sigma_min": 1e6}):
        with pytest.raises(UsageError, match="sigma_min must be below sigma_max; got"):
            tiny_sampler("ncsn", options=options)


# --- DDGAN and StyleGAN2 against the authors'


@pytest.mark.parametrize("name", oracle_names("ddgan/generator_*.npz"))
def test_ddgan_samples_along_the_authors_trajectory(name: str) -> None:
    case = load_oracle(name)
    config = {"generator": case.meta["config"], "num_timesteps": case.meta["config"]["num_timesteps"]}
    tensors = ddgan_weights(case.meta["keys"], case.meta["weight_seed"])
    sampler = ddgan.build(ddgan.Options(), make_weights(tensors, config, name), micro_batch=2)
    inputs, outputs = [], []
    sampler.networks["G"].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    sampler.networks["G"].register_forward_hook(lambda _, args, out: outputs.append(out))
    noise = GivenNoise(x_t=[case["traj_x_T"]], latent=case["traj_z"], step=case["traj_noise"][:-1])
    with torch.inference_mode():
        image = sampler.draw(noise, 2)
    assert noise.used_up
    assert len(outputs) == sampler.expected_nfe == case.meta["config"]["num_timesteps"]
    torch.testing.assert_close(torch.stack(outputs), case["traj_x0"], atol=2e-5, rtol=0)
    torch.testing.assert_close(torch.stack([*inputs[1:], image]), case["traj_x_next"], atol=2e-5, rtol=0)


def test_ddgan_takes_its_steps_from_the_weights_where_they_say_them_and_else_from_the_option() -> None:
    assert tiny_sampler("ddgan").expected_nfe == 4
    with pytest.raises(ValueError, match="num_timesteps"):
        ddgan.Options(num_timesteps=0)
    protocol = load_protocol("gaussians25-v1")
    with pytest.raises(WeightsError, match="trained for T = 4 steps; got num_timesteps=3. Every T needs weights"):
        open_model(run_spec(parse_model("ddgan:num_timesteps=3"), protocol))
    # What was not trained belongs to no chain.
    for kind in ("exact", "untrained"):
        model = open_model(run_spec(parse_model(f"{kind}:ddgan:num_timesteps=3"), protocol))
        assert model.sampler.expected_nfe == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", oracle_names("stylegan2/*.npz"))
def test_stylegan2_samples_the_authors_images(name: str) -> None:
    case = load_oracle(name)
    config = case.meta["config"]["G"]
    tensors = stylegan2_weights(case.meta["keys_G"], case.meta["weight_seed_G"])
    weights = make_weights(tensors, {"generator": config}, name)
    label = [case["c"].argmax(1)] if config["c_dim"] else []
    layers = [case[f"noise_{i}"] for i in range(7)]
    for options, expected in (({}, "img_random"), ({"noise_mode": "const"}, "img_const"),
                              ({"noise_mode": "none"}, "img_none"),
                              ({"noise_mode": "const", "truncation_psi": 0.7}, "img_const_psi0.7")):  # fmt: skip
        sampler = stylegan2.build(stylegan2.Options(**options), weights, micro_batch=3)
        noise = GivenNoise(latent=[case["z"]], label=label, step=[] if options else layers)
        with torch.inference_mode():
            images = sampler.draw(noise, 3)
        assert noise.used_up
        torch.testing.assert_close(images, case[expected], atol=1e-4, rtol=0, msg=expected)


def test_labels_of_a_conditional_stylegan2_come_from_the_seeds() -> None:
    sampler = tiny_sampler("stylegan2")
    seen: list[Tensor] = []
    sampler.networks["G"].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    seeds = torch.arange(60)
    sampler.sample(seeds)
    sampler.sample(seeds.flip(0))
    labels, flipped = (torch.cat(part)[:60].argmax(1) for part in (seen[:15], seen[15:]))
    assert torch.equal(labels, flipped.flip(0))
    assert torch.equal(torch.cat(seen).sum(1), torch.ones(120))
    counts = torch.bincount(labels, minlength=TINY_STYLEGAN2["c_dim"])
    assert counts.min() >= 8
    assert torch.equal(labels, Noise(seeds, CPU).integers(3, stream=LABEL))


# --- files: DDPM and DDIM


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return UNet2DModel(**TINY_UNET).eval()


@pytest.fixture
def folder(unet: UNet2DModel, tmp_path: Path) -> Path:
    unet.save_pretrained(tmp_path)
    DDPMScheduler(beta_end=0.01, num_train_timesteps=500).save_pretrained(tmp_path)
    return tmp_path


def predicts_as(weights: Weights, unet: UNet2DModel) -> bool:
    sampler = ddim.build(ddim.Options(steps=2), weights, micro_batch=1)
    x = normal(2, 3, 8, 8)
    with torch.no_grad():
        expected = unet(x, 7).sample
        return torch.allclose(sampler.predict_noise(x, 7), expected, atol=1e-5)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_that_diffusers_saved_loads(folder: Path, unet: UNet2DModel) -> None:
    weights = ddpm.load(folder)
    assert predicts_as(weights, unet)
    sampler = ddpm.build(ddpm.Options(), weights)
    assert sampler.expected_nfe == 500
    assert float(sampler.chain.betas[-1]) == 0.01


def test_a_folder_that_predicts_v_is_walked_as_diffusers_walks_it(folder: Path, unet: UNet2DModel) -> None:
    edit(folder / "scheduler_config.json", prediction_type="v_prediction")
    sampler = ddim.build(ddim.Options(steps=20, spacing="leading", clip=True), ddim.load(folder))
    scheduler = DDIMScheduler.from_pretrained(folder, clip_sample=True)
    scheduler.set_timesteps(20)
    x = normal(2, 3, 8, 8)
    for (t, t_prev), theirs in zip(sampler.pairs, scheduler.timesteps.tolist(), strict=True):
        assert t == theirs
        with torch.inference_mode():
            v = unet(x, t).sample
            ours = sampler.step(x, sampler.predict_noise(x, t), t, t_prev, GivenNoise())
        x = scheduler.step(v, t, x).prev_sample
        torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


def test_a_pipeline_folder_and_a_bin_file_load_too(unet: UNet2DModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    DDPMScheduler(num_train_timesteps=200).save_pretrained(tmp_path / "scheduler")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.bin").is_file()
    weights = ddim.load(tmp_path)
    assert predicts_as(weights, unet)
    assert weights.config["num_train_steps"] == 200


def test_a_folder_without_a_scheduler_has_the_papers_chain(unet: UNet2DModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    sampler = ddpm.build(ddpm.Options(), ddpm.load(tmp_path))
    assert (len(sampler.chain), float(sampler.chain.betas[-1])) == (1000, 0.02)


def test_old_names_of_attention_weights_load(folder: Path, unet: UNet2DModel) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for key, tensor in load_file(file).items():
        for new, name in names.items():
            key = key.replace(new, name)
        old[key] = tensor
    assert any(".proj_attn." in key for key in old)
    save_file(old, file)
    assert predicts_as(ddpm.load(folder), unet)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel"),
        ("config.json", {"num_class_embeds": 10}, "conditioned on classes"),
        ("config.json", {"out_channels": 6}, "3 channels in and 6 out"),
        ("config.json", {"sample_size": None}, "sample_size is None"),
        ("config.json", {"no_such_option": 1}, "no_such_option"),
        ("config.json", {"block_out_channels": [8, 16]}, "not the weights of this network"),
        ("config.json", {"down_block_types": ["NoBlock", "NoBlock"]}, "refuses this configuration"),
        ("scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ("scheduler_config.json", {"prediction_type": "sample"}, "'sample'; only epsilon and v_prediction are read"),
        ("scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_a_folder_of_another_network_or_schedule_is_refused(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(folder / file, **changes)
    with pytest.raises(WeightsError, match=message):
        ddpm.build(ddpm.Options(), ddpm.load(folder))


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_configuration_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(WeightsError, match=r"config\.json"):
        ddpm.load(folder)


def test_a_folder_with_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"expected config\.json"):
        ddpm.load(folder)


# --- files: DDGAN


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A state dict as the authors save it, at a quarter of the width."""
    config = {"num_channels_dae": 32, "nz": 12, "z_emb_dim": 24}
    network = ncsnpp.build_generator(config)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    return {f"module.{key}": tensor for key, tensor in ddgan_weights(shapes, 1).items()}


def test_the_authors_files_load_and_their_configuration_is_read_off_the_shapes(
    released: dict[str, Tensor], tmp_path: Path
) -> None:
    assert len(released) == 384
    torch.save(released, tmp_path / "netG_1200.pth")
    weights = ddgan.load(tmp_path / "netG_1200.pth")
    assert weights.config == {
        "generator": {
            "image_size": 32, "ch_mult": [1, 2, 2, 2], "num_channels": 3, "num_channels_dae": 32,
            "num_res_blocks": 2, "attn_resolutions": [16], "n_mlp": 4, "nz": 12, "z_emb_dim": 24,
        },
        "pixel_block": 1,
        "usual_num_timesteps": 4,
    }  # fmt: skip
    sampler = ddgan.build(ddgan.Options(num_timesteps=1), weights, micro_batch=1)
    assert sampler.image_shape == (3, 32, 32)
    assert sampler.sample(torch.tensor([1])).float().std() > 5
    loaded = sampler.networks["G"].state_dict()
    assert all(torch.equal(loaded[key.removeprefix("module.")], tensor) for key, tensor in released.items())


def test_the_prefix_and_the_format_leave_the_digest_alone(released: dict[str, Tensor], tmp_path: Path) -> None:
    plain = {key.removeprefix("module."): tensor for key, tensor in released.items()}
    torch.save(released, tmp_path / "prefixed.pth")
    torch.save({"state_dict": plain}, tmp_path / "plain.pth")
    config = ddgan.load(tmp_path / "plain.pth").config
    save_file(plain, tmp_path / "one.safetensors", {"config": json.dumps(config)})
    digests = {ddgan.load(path).digest for path in tmp_path.iterdir()}
    assert len(digests) == 1
    plain["all_modules.0.bias"] = plain["all_modules.0.bias"] + 1
    torch.save(plain, tmp_path / "other.pth")
    assert ddgan.load(tmp_path / "other.pth").digest not in digests


def test_the_authors_256_pixel_files_are_recognised(tmp_path: Path) -> None:
    config = {"image_size": 256, "ch_mult": [1, 1, 2, 2, 4, 4], "num_channels_dae": 8, "n_mlp": 3, "nz": 7}
    torch.save(ncsnpp.build_generator(config).state_dict(), tmp_path / "netG_550.pth")
    weights = ddgan.load(tmp_path / "netG_550.pth")
    found = {key: weights.config["generator"][key] for key in config}
    assert (found, weights.config["usual_num_timesteps"]) == (config, 2)
    assert ddgan.build(ddgan.Options(), weights).image_shape == (3, 256, 256)


def test_another_number_of_tensors_is_refused(released: dict[str, Tensor], tmp_path: Path) -> None:
    some = dict(list(released.items())[:-1])
    torch.save(some, tmp_path / "netG.pth")
    with pytest.raises(WeightsError, match="383 tensors that are not a released DDGAN generator"):
        ddgan.load(tmp_path / "netG.pth")


# --- files of every family

LOADS = {"ddgan": ddgan, "ddim": ddim, "ddpm": ddpm, "stylegan2": stylegan2}


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Malicious.target),)

    target: Path


@pytest.mark.parametrize("name", LOADS)
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(name: str, tmp_path: Path) -> None:
    Malicious.target = tmp_path / "ran"
    torch.save({"weight": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="Files that would run code are refused"):
        LOADS[name].load(tmp_path / "weights.pth")
    assert not Malicious.target.exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not weights", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("name", LOADS)
def test_a_broken_or_missing_file_is_refused(name: str, suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    with pytest.raises(WeightsError, match="no such file"):
        LOADS[name].load(path)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{path.name}: cannot be read"):
        LOADS[name].load(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, torch.zeros(2)])
@pytest.mark.parametrize("name", LOADS)
def test_a_file_that_is_no_state_dict_is_refused(name: str, content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="expected a state dict of tensors"):
        LOADS[name].load(tmp_path / "weights.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", LOADS)
def test_weights_that_are_not_finite_are_refused(name: str, value: float, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "b": torch.tensor([1.0, value]).half()}
    save_file(tensors, tmp_path / "weights.safetensors", {"config": json.dumps({"generator": {}, "unet": {}})})
    with pytest.raises(WeightsError, match="b holds values that are not finite"):
        LOADS[name].load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", LOADS)
def test_weights_without_a_configuration_are_refused(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="configuration"):
        LOADS[name].load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", LOADS)
def test_the_weights_of_another_family_are_refused(name: str, tmp_path: Path) -> None:
    other = build_stylegan2(TINY_STYLEGAN2) if name != "stylegan2" else UNet2DModel(**TINY_UNET)
    config = {"generator": TINY_STYLEGAN2} if name != "stylegan2" else {"unet": TINY_UNET}
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in other.state_dict().items()}, path,
              {"config": json.dumps(config)})  # fmt: skip
    module = LOADS[name]
    with pytest.raises(WeightsError, match="weights of another family|configuration is not one of this network"):
        module.build(module.Options(), module.load(path))


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused_by_the_name_of_a_tensor(damage: str) -> None:
    config = {"generator": TINY_STYLEGAN2}
    tensors = dict(build_stylegan2(TINY_STYLEGAN2).state_dict())
    key = "mapping.fc0.weight"
    if damage == "unexpected":
        key = "mapping.fc9.weight"
        tensors[key] = torch.zeros(1)
    else:
        tensor = tensors.pop(key)
        tensors.update({key: tensor[:1]} if damage == "shape" else {})
    with pytest.raises(WeightsError, match=rf"tiny: these are not the weights of this network: .*{key}"):
        stylegan2.build(stylegan2.Options(), make_weights(tensors, config, "tiny"))


def test_half_precision_files_are_computed_in_float32(tmp_path: Path) -> None:
    state = build_stylegan2(TINY_STYLEGAN2).state_dict()
    half = {key: value.half() for key, value in state.items()}
    save_file(half, tmp_path / "w.safetensors", {"config": json.dumps({"generator": TINY_STYLEGAN2})})
    sampler = stylegan2.build(stylegan2.Options(), stylegan2.load(tmp_path / "w.safetensors"))
    loaded = sampler.networks["G"].state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[key], value.float()) for key, value in half.items())


def test_the_digest_of_weights_sees_values_names_types_and_configuration() -> None:
    base = make_weights({"a": torch.ones(2)}, {"k": 1}, "x").digest
    assert base == make_weights({"a": torch.ones(2)}, {"k": 1}, "elsewhere").digest
    others = [
        make_weights({"a": torch.tensor([1.0, 2.0])}, {"k": 1}, "x"),
        make_weights({"b": torch.ones(2)}, {"k": 1}, "x"),
        make_weights({"a": torch.ones(2).half()}, {"k": 1}, "x"),
        make_weights({"a": torch.ones(1, 2)}, {"k": 1}, "x"),
        make_weights({"a": torch.ones(2)}, {"k": 2}, "x"),
        untrained({"k": 1}),
        untrained({"k": 1}, 1),
    ]
    assert len({base, *(other.digest for other in others)}) == 8


def test_grey_levels_of_a_sampler_are_those_of_the_one_rule() -> None:
    sampler = tiny_sampler("stylegan2")
    assert torch.equal(tiny_sampler("stylegan2", micro_batch=3).sample(SEEDS), to_uint8(sampler.floats(SEEDS)))
