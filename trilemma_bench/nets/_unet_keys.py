"""Other programs' DDPM networks (Ho et al. 2020) under the names of diffusers' `UNet2DModel`.

Two programs that the field's weights come from build the same network under other names:

`pesser`: pytorch_diffusion's conversion of the authors' TensorFlow weights (`model-790000.ckpt`). Padding below and
right alone where it halves an image, eps 1e-6 in norms, time embedding over half - 1 frequencies.

`pytorch_ddpm`: pytorch-ddpm's (`ckpt.pt`). Symmetric padding, eps 1e-5, frequencies over half, sine and cosine
interleaved in a stored table: the table is held to the formula, and the columns of the first layer are sorted.

A file tells widths, depth and where attention is; the side of the image follows from the widths of its levels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trilemma_bench.errors import WeightsError

Tensors = dict[str, Tensor]

_SIDES = {(1, 2, 2, 2): 32, (1, 2, 2, 2, 4): 64, (1, 1, 2, 2, 4, 4): 256}
"""Width of each level, as multiples of the first -> side of the images that such networks were trained on."""

_RESNET = {"norm1": "norm1", "conv1": "conv1", "temb_proj": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
           "nin_shortcut": "conv_shortcut", "conv_shortcut": "conv_shortcut"}  # fmt: skip
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def from_other_program(tensors: Tensors, where: str) -> tuple[dict[str, Any], Tensors] | None:
    """(configuration of `UNet2DModel`, tensors under its names); None where this is neither program's state dict.

    Raises:
        WeightsError: One of theirs that cannot be followed with certainty; says what.
    """
    for sign, convert in (("temb.dense.0.weight", _pesser), ("time_embedding.timembedding.1.weight", _pytorch_ddpm)):
        if sign in tensors:
            try:
                return convert(tensors, where)
            except (KeyError, ValueError, IndexError, RuntimeError) as error:
                raise WeightsError(f"{where}: looks like {convert.__name__[1:]}'s UNet, but {error} fails.") from error
    return None


def _pesser(tensors: Tensors, where: str) -> tuple[dict[str, Any], Tensors]:
    levels = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("down."))
    renamed: Tensors = {}
    for key, tensor in tensors.items():
        renamed[_pesser_key(key, levels, where)] = _as_linear(key, tensor)
    widths = [tensors[f"down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    depth = len({key.split(".")[3] for key in tensors if key.startswith("down.0.block.")})
    attention = {int(key.split(".")[1]) for key in tensors if re.match(r"down\.\d+\.attn\.", key)}
    return _config(tensors["conv_in.weight"], widths, depth, attention, where, padding=0, eps=1e-6, shift=1), renamed


def _pesser_key(key: str, levels: int, where: str) -> str:
    """The name of one tensor; `up.0` is the finest level there, the last one in diffusers."""
    plain = {"conv_in": "conv_in", "conv_out": "conv_out", "norm_out": "conv_norm_out",
             "temb.dense.0": "time_embedding.linear_1", "temb.dense.1": "time_embedding.linear_2"}  # fmt: skip
    stem, _, last = key.rpartition(".")
    if stem in plain:
        return f"{plain[stem]}.{last}"
    match = re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(\w+)", stem)
    if match and match[5] in (_RESNET if match[3] == "block" else _ATTENTION):
        side, level, kind, index, part = match.groups()
        place = int(level) if side == "down" else levels - 1 - int(level)
        inner = f"resnets.{index}.{_RESNET[part]}" if kind == "block" else f"attentions.{index}.{_ATTENTION[part]}"
        return f"{side}_blocks.{place}.{inner}.{last}"
    match = re.fullmatch(r"(down|up)\.(\d+)\.(down|up)sample\.conv", stem)
    if match and match[1] == match[3]:
        place = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        return f"{match[1]}_blocks.{place}.{match[1]}samplers.0.conv.{last}"
    match = re.fullmatch(r"mid\.(block_1|block_2|attn_1)\.(\w+)", stem)
    if match and match[2] in (_ATTENTION if match[1] == "attn_1" else _RESNET):
        if match[1] == "attn_1":
            return f"mid_block.attentions.0.{_ATTENTION[match[2]]}.{last}"
        return f"mid_block.resnets.{int(match[1][-1]) - 1}.{_RESNET[match[2]]}.{last}"
    raise WeightsError(f"{where}: the tensor {key!r} has no place in DDPM's UNet.")


def _pytorch_ddpm(tensors: Tensors, where: str) -> tuple[dict[str, Any], Tensors]:
    plain = {"head": "conv_in", "tail.0": "conv_norm_out", "tail.2": "conv_out",
             "time_embedding.timembedding.1": "time_embedding.linear_1",
             "time_embedding.timembedding.3": "time_embedding.linear_2"}  # fmt: skip
    down, up = _flat_places(tensors, "down"), _flat_places(tensors, "up")
    middle = {"middleblocks.0": "mid_block.{}.0", "middleblocks.1": "mid_block.{}.1"}
    places = {**down, **up, **middle}
    renamed: Tensors = {}
    for key, tensor in tensors.items():
        stem, _, last = key.rpartition(".")
        block = ".".join(key.split(".")[:2])
        if stem in plain:
            renamed[f"{plain[stem]}.{last}"] = tensor
        elif block in places:
            renamed[_block_key(key, places[block], where)] = _as_linear(key, tensor)
        elif stem != "time_embedding.timembedding.0":
            raise WeightsError(f"{where}: the tensor {key!r} has no place in DDPM's UNet.")
    renamed["time_embedding.linear_1.weight"] = _sorted_embedding(tensors, where)
    shapes = [(place, tensors[f"{block}.block2.3.weight"].shape[0]) for block, place in down.items()
              if f"{block}.block2.3.weight" in tensors]  # fmt: skip
    levels = sorted({int(place.split(".")[1]) for place, _ in shapes})
    widths = [next(width for place, width in shapes if int(place.split(".")[1]) == level) for level in levels]
    depth = sum(place.startswith("down_blocks.0.") for place, _ in shapes)
    attention = {int(place.split(".")[1]) for block, place in down.items() if f"{block}.attn.proj.weight" in tensors}
    config = _config(tensors["head.weight"], widths, depth, attention, where, padding=1, eps=1e-5, shift=0)
    return config, renamed


def _flat_places(tensors: Mapping[str, Tensor], side: str) -> dict[str, str]:
    """`downblocks.5` -> `down_blocks.1.{}.0`: their list is flat, and a layer that resamples ends a level."""
    count = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith(f"{side}blocks."))
    places, level, index = {}, 0, 0
    for number in range(count):
        name = f"{side}blocks.{number}"
        if f"{name}.main.weight" in tensors:
            places[name] = f"{side}_blocks.{level}.{side}samplers.0.conv"
            level, index = level + 1, 0
        else:
            places[name] = f"{side}_blocks.{level}.{{}}.{index}"
            index += 1
    return places


def _block_key(key: str, place: str, where: str) -> str:
    resnet = {"block1.0": "norm1", "block1.2": "conv1", "temb_proj.1": "time_emb_proj", "block2.0": "norm2",
              "block2.3": "conv2", "shortcut": "conv_shortcut"}  # fmt: skip
    attention = {"group_norm": "group_norm", "proj_q": "to_q", "proj_k": "to_k", "proj_v": "to_v", "proj": "to_out.0"}
    part, _, last = key.split(".", 2)[2].rpartition(".")
    if part == "main":
        return f"{place}.{last}"
    if part in resnet:
        return f"{place.format('resnets')}.{resnet[part]}.{last}"
    if part.removeprefix("attn.") in attention and part.startswith("attn."):
        return f"{place.format('attentions')}.{attention[part.removeprefix('attn.')]}.{last}"
    raise WeightsError(f"{where}: the tensor {key!r} has no place in DDPM's UNet.")


def _sorted_embedding(tensors: Mapping[str, Tensor], where: str) -> Tensor:
    """The first layer's columns in the order all sines, all cosines; the stored table must be the formula's."""
    table, weight = tensors["time_embedding.timembedding.0.weight"], tensors["time_embedding.timembedding.1.weight"]
    steps, width = table.shape
    frequencies = torch.exp(-math.log(10000) * torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(steps, dtype=torch.float64)[:, None] * frequencies
    expected = torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(steps, width)
    if not torch.allclose(table.double(), expected, atol=2e-3):
        raise WeightsError(f"{where}: its table of time embeddings is not the sinusoidal one. Only that is built here.")
    return torch.cat([weight[:, 0::2], weight[:, 1::2]], dim=1)


def num_train_steps(tensors: Mapping[str, Tensor]) -> int:
    """Length of the chain: the rows of pytorch-ddpm's table of time embeddings, else the paper's 1000."""
    table = tensors.get("time_embedding.timembedding.0.weight")
    return 1000 if table is None else len(table)


def _as_linear(key: str, tensor: Tensor) -> Tensor:
    """Attention's 1x1 convolutions are linear layers in diffusers."""
    attention = ".attn." in key or "attn_1" in key
    return tensor[:, :, 0, 0] if attention and tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _config(
    stem: Tensor, widths: list[int], depth: int, attention: set[int], where: str, *,
    padding: int, eps: float, shift: int,
) -> dict[str, Any]:  # fmt: skip
    first = stem.shape[0]
    multiples = tuple(width // first for width in widths)
    if multiples not in _SIDES or any(width % first for width in widths):
        known = ", ".join(str(list(each)) for each in _SIDES)
        raise WeightsError(
            f"{where}: levels of {widths} channels on {first}; the side of its images is known for multiples of "
            f"{known}. Save it as a diffusers folder, whose config.json says."
        )
    kinds: Callable[[str, int], str] = lambda side, level: f"{'Attn' if level in attention else ''}{side}Block2D"  # noqa: E731
    levels = range(len(widths))
    return {
        "sample_size": _SIDES[multiples], "in_channels": stem.shape[1], "out_channels": stem.shape[1],
        "block_out_channels": widths, "layers_per_block": depth,
        "down_block_types": [kinds("Down", level) for level in levels],
        "up_block_types": [kinds("Up", level) for level in reversed(levels)],
        "attention_head_dim": None, "act_fn": "silu", "time_embedding_type": "positional", "flip_sin_to_cos": False,
        "freq_shift": shift, "downsample_padding": padding, "norm_eps": eps, "norm_num_groups": 32,
        "mid_block_scale_factor": 1, "center_input_sample": False,
    }  # fmt: skip
