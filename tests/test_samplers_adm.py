"""ADM and Improved DDPM: the network against diffusers', the chain against its scheduler, guidance in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from sampler_cases import TINY_ADM, GivenNoise, lively, tiny_sampler
from small_world import make_world
from torch import Tensor, nn

from trilemma_bench.diffusion import cosine_betas, ddim_pairs
from trilemma_bench.errors import ProtocolError, UsageError, WeightsError
from trilemma_bench.models import import_weights
from trilemma_bench.nets.adm import build_classifier, build_unet, time_embedding
from trilemma_bench.run import evaluate
from trilemma_bench.samplers import adm
from trilemma_bench.samplers._helpers import untrained
from trilemma_bench.speed import EvaluationCounter

DENOISER: dict[str, Any] = {
    "image_size": 16, "num_channels": 64, "channel_mult": [1, 2], "num_res_blocks": 2, "attention_resolutions": [8],
    "num_head_channels": 64, "num_classes": 7,
}  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the network


def diffusers_twin(config: dict[str, Any], tensors: dict[str, Tensor]) -> UNet2DModel:
    """The same network in diffusers, by its own names; two levels with attention on the second."""
    updown, width = config["resblock_updown"], config["num_channels"]
    kind = "resnet" if updown else "conv"
    twin = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=6, layers_per_block=2, block_out_channels=(width, 2 * width),
        down_block_types=("ResnetDownsampleBlock2D" if updown else "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D" if updown else "UpBlock2D"),
        downsample_type=kind, upsample_type=kind, attention_head_dim=64, norm_eps=1e-5, downsample_padding=1,
        resnet_time_scale_shift="scale_shift" if config["use_scale_shift_norm"] else "default",
        flip_sin_to_cos=True, freq_shift=0, num_class_embeds=7, attn_norm_num_groups=32,
    ).eval()  # fmt: skip
    stems = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
             "label_emb": "class_embedding", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out",
             "out.2": "conv_out", "input_blocks.3.0": "down_blocks.0.downsamplers.0",
             "output_blocks.2.2": "up_blocks.0.upsamplers.0",
             "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
             "middle_block.2": "mid_block.resnets.1"}  # fmt: skip
    for level, first in ((0, 1), (1, 4)):
        for index in range(2):
            stems[f"input_blocks.{first + index}.0"] = f"down_blocks.{level}.resnets.{index}"
            stems[f"input_blocks.{first + index}.1"] = f"down_blocks.{level}.attentions.{index}"
    for level in range(2):
        for index in range(3):
            stems[f"output_blocks.{3 * level + index}.0"] = f"up_blocks.{level}.resnets.{index}"
            stems[f"output_blocks.{3 * level + index}.1"] = f"up_blocks.{level}.attentions.{index}"
    parts = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
             "out_layers.3": "conv2", "skip_connection": "conv_shortcut", "op": "conv", "conv": "conv",
             "norm": "group_norm", "proj_out": "to_out.0", "": ""}  # fmt: skip
    state = {}
    for key, tensor in tensors.items():
        stem = max((s for s in stems if key.startswith(f"{s}.")), key=len)
        part, _, last = key.removeprefix(f"{stem}.").rpartition(".")
        if part == "qkv":
            for name, piece in zip(("to_q", "to_k", "to_v"), in_parts(tensor, config), strict=True):
                state[f"{stems[stem]}.{name}.{last}"] = piece
            continue
        name = ".".join(filter(None, (stems[stem], parts[part], last)))
        state[name] = tensor[:, :, 0] if part == "proj_out" and tensor.ndim == 3 else tensor
    twin.load_state_dict(state)
    return twin


def in_parts(tensor: Tensor, config: dict[str, Any]) -> list[Tensor]:
    """Rows of queries, keys and values: split first, or within each head of 64."""
    flat = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
    if config["use_new_attention_order"]:
        return list(flat.chunk(3))
    heads = flat.reshape(-1, 3, 64, *flat.shape[1:])
    return [heads[:, index].reshape(-1, *flat.shape[1:]) for index in range(3)]


@pytest.mark.parametrize(("updown", "order", "shift"), [
    (True, True, True), (True, False, True), (False, False, True), (False, True, False),
])  # fmt: skip
def test_the_denoiser_is_that_of_diffusers(updown: bool, order: bool, shift: bool) -> None:
    config = {**DENOISER, "resblock_updown": updown, "use_new_attention_order": order, "use_scale_shift_norm": shift}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build_unet(config).eval()
    tensors = {k: v + 0.02 * normal(*v.shape, seed=len(k)) for k, v in network.state_dict().items()}
    network.load_state_dict(tensors)
    twin = diffusers_twin(config, tensors)
    x, t, y = normal(3, 3, 16, 16), torch.tensor([0, 17, 999]), torch.tensor([6, 0, 3])
    with torch.no_grad():
        expected = twin(x, t, class_labels=y).sample
        assert expected.std() > 0.05
        torch.testing.assert_close(network(x, t, y), expected, atol=2e-5, rtol=1e-4)


class ByHand:
    """ADM's networks a second time, read from a state dict alone: levels and blocks as its key names say.

    What no name says is given: channels a head or heads, the order of attention, and the shift of norms.
    """

    def __init__(
        self, state: dict[str, Tensor], *, heads: dict[str, int], split_first: bool, shift: bool = True
    ) -> None:
        self.state, self.heads, self.split_first, self.shift = state, heads, split_first, shift

    def has(self, stem: str) -> bool:
        return f"{stem}.weight" in self.state

    def linear(self, stem: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{stem}.weight"], self.state[f"{stem}.bias"]
        return x @ weight.flatten(1).T + bias

    def conv(self, stem: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.state[f"{stem}.weight"], self.state[f"{stem}.bias"]
        return nn.functional.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, stem: str, x: Tensor) -> Tensor:
        parts = x.reshape(len(x), 32, -1)
        mean, variance = parts.mean(2, keepdim=True), parts.var(2, keepdim=True, correction=0)
        flat = ((parts - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
        shape = (1, -1, *([1] * (x.ndim - 2)))
        return flat * self.state[f"{stem}.weight"].reshape(shape) + self.state[f"{stem}.bias"].reshape(shape)

    def attend(self, qkv: Tensor, split_first: bool) -> Tensor:
        """qkv [N, L, 3 C]: a loop over heads, each softmax(q k / sqrt(channels)) v."""
        width = qkv.shape[2] // 3
        size = self.heads.get("channels") or width // self.heads["number"]
        parts = []
        for head in range(width // size):
            if split_first:
                places = [slice(part * width + head * size, part * width + (head + 1) * size) for part in range(3)]
            else:
                places = [slice((3 * head + part) * size, (3 * head + part + 1) * size) for part in range(3)]
            q, k, v = (qkv[:, :, place] for place in places)
            parts.append(torch.softmax(q @ k.transpose(1, 2) / size**0.5, 2) @ v)
        return torch.cat(parts, 2)

    def layer(self, stem: str, x: Tensor, embedding: Tensor, resample: str) -> Tensor:
        if self.has(f"{stem}.qkv"):
            tokens = self.norm(f"{stem}.norm", x.flatten(2)).transpose(1, 2)
            mixed = self.attend(self.linear(f"{stem}.qkv", tokens), self.split_first)
            return x + self.linear(f"{stem}.proj_out", mixed).transpose(1, 2).reshape(x.shape)
        if self.has(f"{stem}.op"):
            return self.conv(f"{stem}.op", x, stride=2)
        if self.has(f"{stem}.conv"):
            return self.conv(f"{stem}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        if not self.has(f"{stem}.in_layers.0"):
            return self.conv(stem, x)
        silu = nn.functional.silu
        h = silu(self.norm(f"{stem}.in_layers.0", x))
        if resample == "down":
            h, x = ((y[:, :, ::2] + y[:, :, 1::2]) / 2 for y in (h, x))
            h, x = ((y[..., ::2] + y[..., 1::2]) / 2 for y in (h, x))
        if resample == "up":
            h, x = (y.repeat_interleave(2, 2).repeat_interleave(2, 3) for y in (h, x))
        h = self.conv(f"{stem}.in_layers.2", h)
        told = self.linear(f"{stem}.emb_layers.1", silu(embedding))[:, :, None, None]
        if self.shift:
            scale, move = told.chunk(2, 1)
            h = self.norm(f"{stem}.out_layers.0", h) * (1 + scale) + move
        else:
            h = self.norm(f"{stem}.out_layers.0", h + told)
        skip = self.conv(f"{stem}.skip_connection", x) if self.has(f"{stem}.skip_connection") else x
        return skip + self.conv(f"{stem}.out_layers.3", silu(h))

    def block(self, stem: str, x: Tensor, embedding: Tensor, resample: dict[str, str]) -> Tensor:
        index = 0
        while any(key.startswith(f"{stem}.{index}.") for key in self.state):
            x = self.layer(f"{stem}.{index}", x, embedding, resample.get(f"{stem}.{index}", ""))
            index += 1
        return x

    def embedding(self, t: Tensor, y: Tensor | None) -> Tensor:
        half = self.state["time_embed.0.weight"].shape[1] // 2
        angles = t[:, None] / 10000.0 ** (torch.arange(half) / half)
        found = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
        found = self.linear("time_embed.2", nn.functional.silu(found))
        return found if y is None else found + self.state["label_emb.weight"][y]

    def encode(self, x: Tensor, embedding: Tensor, resample: dict[str, str]) -> list[Tensor]:
        found, index = [x], 0
        while any(key.startswith(f"input_blocks.{index}.") for key in self.state):
            found.append(self.block(f"input_blocks.{index}", found[-1], embedding, resample))
            index += 1
        return [*found[1:], self.block("middle_block", found[-1], embedding, resample)]

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None, resample: dict[str, str]) -> Tensor:
        embedding = self.embedding(t, y)
        *skips, h = self.encode(x, embedding, resample)
        for index in range(len(skips)):
            h = self.block(f"output_blocks.{index}", torch.cat([h, skips.pop()], 1), embedding, resample)
        return self.conv("out.2", nn.functional.silu(self.norm("out.0", h)))

    def classify(self, x: Tensor, t: Tensor, resample: dict[str, str]) -> Tensor:
        h = self.encode(x, self.embedding(t, None), resample)[-1]
        tokens = nn.functional.silu(self.norm("out.0", h)).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        tokens = tokens + self.state["out.2.positional_embedding"].T
        return self.linear("out.2.c_proj", self.attend(self.linear("out.2.qkv_proj", tokens), True))[:, 0]


def drawn_anew(network: nn.Module) -> dict[str, Tensor]:
    """Tensors that leave no part at rest, loaded into the network."""
    tensors = {k: v + 0.05 * normal(*v.shape, seed=len(k)) for k, v in network.state_dict().items()}
    network.load_state_dict(tensors)
    return tensors


@pytest.mark.parametrize(("order", "shift", "updown"), [(False, True, True), (True, True, True), (False, False, False)])
def test_four_heads_of_any_width_are_those_of_a_second_reading(order: bool, shift: bool, updown: bool) -> None:
    """What diffusers cannot express: heads by their number, as at 128 pixels and in Improved DDPM."""
    config = {**DENOISER, "num_head_channels": -1, "num_heads": 4, "use_new_attention_order": order,
              "use_scale_shift_norm": shift, "resblock_updown": updown}  # fmt: skip
    network = build_unet(config).eval()
    twin = ByHand(drawn_anew(network), heads={"number": 4}, split_first=order, shift=shift)
    resample = {"input_blocks.3.0": "down", "output_blocks.2.2": "up"} if updown else {}
    x, t, y = normal(2, 3, 16, 16), torch.tensor([0.0, 417.5]), torch.tensor([6, 0])
    with torch.no_grad():
        expected = twin.denoise(x, t, y, resample)
        assert expected.std() > 0.05
        torch.testing.assert_close(network(x, t, y), expected, atol=5e-5, rtol=1e-4)


def test_the_classifier_is_that_of_a_second_reading() -> None:
    """Heads of 64 channels in the blocks' old order, those of the pool in the new one, whatever the blocks have."""
    config = {"image_size": 16, "channel_mult": [1, 2], "classifier_width": 64, "attention_resolutions": [8],
              "num_classes": 7}  # fmt: skip
    network = build_classifier(config).eval()
    twin = ByHand(drawn_anew(network), heads={"channels": 64}, split_first=False)
    x, t = normal(2, 3, 16, 16), torch.tensor([3.0, 999.0])
    with torch.no_grad():
        expected = twin.classify(x, t, {"input_blocks.3.0": "down"})
        assert expected.std() > 0.05
        torch.testing.assert_close(network(x, t), expected, atol=5e-5, rtol=1e-4)


def test_times_may_be_fractions() -> None:
    whole, half = time_embedding(torch.tensor([3]), 8), time_embedding(torch.tensor([3.5]), 8)
    torch.testing.assert_close(whole[0, 0], torch.tensor(3.0).cos())
    torch.testing.assert_close(half[0, 4:], torch.sin(3.5 * torch.exp(-math.log(10000) * torch.arange(4) / 4)))


def test_the_pool_is_attention_of_the_mean_over_all_places() -> None:
    """With torch's own multi-head attention, whose heads are split as the pool's."""
    network = build_classifier(TINY_ADM["classifier"])
    pool: Any = network.out[2]
    x = normal(2, 64, 4, 4)
    tokens = torch.cat([x.flatten(2).mean(2, keepdim=True), x.flatten(2)], 2) + pool.positional_embedding
    tokens = tokens.permute(2, 0, 1)
    q, k, v = pool.qkv_proj.weight[:, :, 0].chunk(3)
    expected, _ = nn.functional.multi_head_attention_forward(
        tokens[:1], tokens, tokens, 64, pool.heads, None, pool.qkv_proj.bias, None, None, False, 0.0,
        pool.c_proj.weight[:, :, 0], pool.c_proj.bias, use_separate_proj_weight=True, q_proj_weight=q,
        k_proj_weight=k, v_proj_weight=v, need_weights=False,
    )  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(pool(x), expected[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("change", "message"), [
    ({"num_channels": 40}, "40 channels"), ({"no_such": 1}, "no_such"), ({"image_size": 15}, "cannot be halved"),
    ({"num_head_channels": 48}, "heads of 48"), ({"num_res_blocks": 0}, "num_res_blocks"),
])  # fmt: skip
def test_a_configuration_that_no_such_network_has_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_unet({**DENOISER, **change})


def test_labels_go_with_a_conditional_network_alone() -> None:
    for classes, y in ((None, torch.zeros(1, dtype=torch.int64)), (3, None)):
        network = build_unet({**TINY_ADM["denoiser"], "num_classes": classes})
        with pytest.raises(ProtocolError, match="labels go with a class-conditional network"):
            network(normal(1, 3, 8, 8), torch.zeros(1), y)


# --- the chain


def test_the_cosine_schedule_is_that_of_diffusers() -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=4000)
    torch.testing.assert_close(cosine_betas(4000).float(), scheduler.betas, atol=1e-7, rtol=1e-5)


def test_even_spacing_takes_both_ends() -> None:
    assert [t for t, _ in ddim_pairs(10, 4, "even")] == [9, 6, 3, 0]
    times = [t for t, _ in ddim_pairs(1000, 250, "even")]
    assert (len(set(times)), times[0], times[-1]) == (250, 999, 0)
    assert [t for t, _ in ddim_pairs(1000, 1000, "even")] == list(range(999, -1, -1))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("learned", [True, False])
def test_ancestral_steps_are_those_of_diffusers(schedule: str, learned: bool) -> None:
    config = {**TINY_ADM, "schedule": schedule, "denoiser": {**TINY_ADM["denoiser"], "learn_sigma": learned}}
    sampler = tiny_sampler("adm", config=config, options={"steps": 12})
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2" if schedule == "cosine" else "linear",
        variance_type="learned_range" if learned else "fixed_large", clip_sample=True,
    )  # fmt: skip
    # diffusers has float32 constants, which are a few digits short where cosine's alpha_bar is 1e-9.
    torch.testing.assert_close(scheduler.betas, sampler.chain.betas.float(), atol=1e-7, rtol=1e-5)
    scheduler.alphas_cumprod = sampler.chain.alpha_bar
    scheduler.set_timesteps(timesteps=[t for t, _ in sampler.pairs])
    x = normal(2, 3, 8, 8)
    for row, (t, _) in enumerate(sampler.pairs):
        out = 0.7 * normal(2, 6 if learned else 3, 8, 8, seed=row)
        given = GivenNoise(step=[normal(2, 3, 8, 8, seed=100 + row)])
        ours = sampler.step(x, out, row, None, given)
        x = scheduler.step(out, t, x, generator=torch.Generator().manual_seed(100 + row)).prev_sample
        torch.testing.assert_close(ours, x, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_implicit_steps_are_those_of_diffusers(eta: float) -> None:
    sampler = tiny_sampler("adm", options={"steps": 20, "method": "ddim", "eta": eta})
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(20)
    x = normal(2, 3, 8, 8)
    for row, (t, _) in enumerate(sampler.pairs):
        out, noise = normal(2, 6, 8, 8, seed=row), normal(2, 3, 8, 8, seed=100 + row)
        ours = sampler.step(x, out, row, None, GivenNoise(step=[noise]))
        # The authors take eps anew from the clipped x_0, as diffusers does where it is told to.
        more = {"use_clipped_model_output": True, "eta": eta, "variance_noise": noise if eta else None}
        x = scheduler.step(out[:, :3], t, x, **more).prev_sample
        torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-3)


def test_networks_of_4000_steps_are_told_t_on_a_scale_of_1000() -> None:
    config = {**TINY_ADM, "num_train_steps": 4000, "rescale_timesteps": True}
    sampler = tiny_sampler("adm", config=config, options={"steps": 2})
    told: list[Tensor] = []
    sampler.networks["denoiser"].register_forward_pre_hook(lambda _, args: told.append(args[1]))
    sampler.sample(torch.arange(1))
    assert [float(t[0]) for t in told] == [3999 / 4, 0]


# --- guidance


class Linear(nn.Module):
    """log p(y | x) of logits a_y . x: the gradient is a_y - sum_k p_k a_k."""

    def __init__(self, directions: Tensor) -> None:
        super().__init__()
        self.directions = nn.Parameter(directions, requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.flatten(1) @ self.directions.T


def gradient(x: Tensor, directions: Tensor, y: Tensor) -> Tensor:
    share = torch.softmax(x.flatten(1) @ directions.T, 1)
    return (directions[y] - share @ directions).reshape(x.shape)


def guided(scale: float, **options: Any) -> tuple[Any, Tensor]:
    sampler = tiny_sampler("adm", options={"steps": 5, "guidance": scale, **options})
    directions = normal(3, 192, seed=5)
    sampler.guides = {"classifier": Linear(directions)}
    return sampler, directions


def test_the_push_is_the_scale_times_the_gradient_of_the_classs_log_probability() -> None:
    sampler, directions = guided(3.0)
    x, y = normal(4, 3, 8, 8) / 10, torch.tensor([0, 2, 1, 1])
    with torch.inference_mode():
        push = sampler._push(x.clone(), torch.zeros(4), y.clone())
    torch.testing.assert_close(push, 3 * gradient(x, directions, y), atol=1e-5, rtol=1e-4)


def test_guidance_moves_the_mean_by_the_variance_times_the_push() -> None:
    sampler, _ = guided(3.0)
    x, out, push = normal(2, 3, 8, 8), normal(2, 6, 8, 8, seed=1), normal(2, 3, 8, 8, seed=2)
    noise = lambda: GivenNoise(step=[torch.zeros_like(x)])  # noqa: E731
    for row in (0, 2, 4):
        moved = sampler.step(x, out, row, push, noise()) - sampler.step(x, out, row, None, noise())
        beta = 1 - sampler._alpha_bar(sampler.pairs[row][0]) / sampler._alpha_bar(sampler.pairs[row][1])
        expected = sampler._variance(out[:, 3:], row, beta) * push
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-3)
    one = GivenNoise(step=[torch.ones_like(x)])
    spread = sampler.step(x, out, 1, push, one) - sampler.step(x, out, 1, push, noise())
    beta = 1 - sampler._alpha_bar(sampler.pairs[1][0]) / sampler._alpha_bar(sampler.pairs[1][1])
    torch.testing.assert_close(spread**2, sampler._variance(out[:, 3:], 1, beta), atol=1e-4, rtol=1e-2)


def test_guidance_of_ddim_goes_through_eps() -> None:
    sampler, _ = guided(3.0, method="ddim", clip=False)
    x, eps, push = normal(2, 3, 8, 8), normal(2, 6, 8, 8, seed=1), normal(2, 3, 8, 8, seed=2)
    now = sampler._alpha_bar(sampler.pairs[2][0])
    shifted = eps.clone()
    shifted[:, :3] -= math.sqrt(1 - now) * push
    torch.testing.assert_close(
        sampler.step(x, eps, 2, push, GivenNoise()),
        sampler.step(x, shifted, 2, None, GivenNoise()),
        atol=1e-4,
        rtol=1e-3,
    )


def test_a_larger_scale_leads_further_into_the_class() -> None:
    """What guidance is for: the classifier's own probability of the wanted class rises with the scale."""
    found = []
    for scale in (1e-6, 0.3, 3.0):
        sampler, directions = guided(scale)
        seen: list[Tensor] = []
        keep = sampler._labels
        sampler._labels = lambda noise, keep=keep, seen=seen: seen.append(keep(noise)) or seen[-1]
        x = sampler.sample(torch.arange(24)).float() / 127.5 - 1
        share = torch.softmax(x.flatten(1) @ directions.T, 1)
        found.append(float(share.gather(1, torch.cat(seen)[:24, None]).mean()))
    assert found[0] < found[1] < found[2]
    assert found[2] > 0.9


def test_passes_of_the_classifier_are_counted_apart() -> None:
    for guidance, expected in ((0.0, 0), (1.0, 6)):
        sampler = tiny_sampler("adm", options={"steps": 6, "guidance": guidance})
        with EvaluationCounter(sampler.networks) as counter, EvaluationCounter(sampler.guides) as gradients:
            sampler.sample(torch.arange(4))
        assert (counter.images / 4, gradients.images / 4) == (6, expected)


def test_no_guidance_is_the_unguided_chain() -> None:
    plain = tiny_sampler("adm", options={"steps": 4})
    assert not plain.guides
    other = tiny_sampler("adm", options={"steps": 4, "guidance": 5.0})
    assert not torch.equal(plain.sample(torch.arange(3)), other.sample(torch.arange(3)))


# --- files


def split(weights: Any, part: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{part}."): v for k, v in weights.tensors.items() if k.startswith(f"{part}.")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A denoiser and its classifier as two bare state dicts, with their configurations beside them."""
    weights = lively("adm", TINY_ADM)
    for part, name in (("denoiser", "8x8_diffusion"), ("classifier", "8x8_classifier")):
        torch.save(split(weights, part), tmp_path / f"{name}.pt")
        config = {part: TINY_ADM[part], **({"schedule": "cosine"} if part == "denoiser" else {})}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    return tmp_path


def test_a_folder_of_two_files_loads_with_its_classifier(folder: Path) -> None:
    weights = adm.load(folder)
    assert weights.digest == lively("adm", TINY_ADM).digest
    options = adm.Options(steps=4, guidance=2.0)
    assert torch.equal(adm.build(options, weights, micro_batch=4).sample(torch.arange(2)),
                       tiny_sampler("adm").sample(torch.arange(2)))  # fmt: skip


def test_guidance_without_a_classifier_is_refused(folder: Path) -> None:
    weights = adm.load(folder / "8x8_diffusion.pt")
    adm.build(adm.Options(), weights)
    with pytest.raises(UsageError, match="guidance=1 needs a classifier"):
        adm.build(adm.Options(guidance=1.0), weights)


def test_a_classifier_of_other_classes_is_refused() -> None:
    config = {**TINY_ADM, "classifier": {**TINY_ADM["classifier"], "num_classes": 4}}
    with pytest.raises(WeightsError, match="the classifier has 4 classes at 8 pixels, the denoiser 3 at 8"):
        adm.build(adm.Options(guidance=1.0), untrained(config))


def test_a_folder_with_other_files_is_refused(folder: Path) -> None:
    torch.save({}, folder / "another.pt")
    with pytest.raises(WeightsError, match=r"expected one \.pt of a denoiser .* found .*another\.pt"):
        adm.load(folder)
    with pytest.raises(WeightsError, match="that OpenAI released"):
        adm.load(folder / "another.pt")


@pytest.mark.parametrize("index", range(len(adm._RELEASED)))
def test_every_released_denoiser_is_recognised_by_its_tensors(index: int) -> None:
    settings, chain = adm._RELEASED[index]
    width = {32: 128, 64: 192}.get(settings["image_size"], 256)
    config = {**settings, "num_channels": width, "channel_mult": adm._MULTIPLES[settings["image_size"]]}
    with torch.device("meta"):
        tensors = build_unet(config).state_dict()
    found = adm._configuration(Path("x.pt"), tensors, "denoiser")
    assert {key: found["denoiser"][key] for key in config} == config
    assert {key: value for key, value in found.items() if key != "denoiser"} == chain


@pytest.mark.parametrize(("size", "depth"), [(64, 4), (128, 2), (256, 2), (512, 2)])
def test_every_released_classifier_is_recognised_by_its_tensors(size: int, depth: int) -> None:
    config = {"image_size": size, "classifier_depth": depth, "channel_mult": adm._MULTIPLES[size]}
    with torch.device("meta"):
        tensors = build_classifier(config).state_dict()
    found = adm._configuration(Path("x.pt"), tensors, "classifier")["classifier"]
    assert (found["image_size"], found["classifier_width"], found["num_classes"]) == (size, 128, 1000)


def test_published_counts_of_parameters() -> None:
    """Improved DDPM's file names say 50M, 100M and 270M; ADM's paper 296M, 422M, 554M, 559M (Table 12)."""
    counts = []
    for index, width in ((0, 128), (1, 128), (2, 192), (4, 192), (5, 256), (6, 256), (8, 256)):
        settings, _ = adm._RELEASED[index]
        with torch.device("meta"):
            network = build_unet({**settings, "num_channels": width,
                                  "channel_mult": adm._MULTIPLES[settings["image_size"]]})  # fmt: skip
        counts.append(round(sum(p.numel() for p in network.parameters()) / 1e6))
    assert counts[3:] == [296, 422, 554, 559]
    assert 48 <= counts[0] <= 54 and 95 <= counts[1] <= 125 and 265 <= counts[2] <= 275


def test_imported_weights_are_the_same_and_a_record_counts_gradients_apart(folder: Path, tmp_path: Path) -> None:
    images, protocol = make_world(tmp_path / "world")
    path = import_weights("adm", folder, tmp_path / "adm.safetensors").path
    assert adm.load(path).digest == adm.load(folder).digest
    record = evaluate(
        f"adm:steps=3,guidance=1@{path}", dataset=str(images), protocol=str(protocol), cache=tmp_path / "cache"
    )
    assert record.speed is not None
    assert (record.speed.nfe, record.speed.gradient_evaluations) == (3, 3)
    assert record.speed.gflops_per_image is None
    networks = [build_unet(TINY_ADM["denoiser"]), build_classifier(TINY_ADM["classifier"])]
    assert record.speed.parameters == sum(p.numel() for network in networks for p in network.parameters())
    assert record.provenance.weights_digest == adm.load(folder).digest


def test_a_file_that_is_there_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adm.safetensors").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"adm\.safetensors: is there already"):
        import_weights("adm", folder, tmp_path / "adm.safetensors")
