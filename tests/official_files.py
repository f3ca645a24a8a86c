"""Weights files as other programs write them, made here: true layout, random numbers, small widths."""

from __future__ import annotations

import io
import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = dict[str, Tensor]
WIDTH = 32
MULTIPLES = (1, 2, 2, 2)


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Weights that keep activations of order 1: normal over sqrt(fan_in), scales about 1."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for key, shape in shapes.items():
        drawn = torch.randn(shape, generator=rng)
        base = 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0
        found[key] = drawn / math.prod(shape[1:]) ** 0.5 if len(shape) > 1 else base + 0.1 * drawn
    return found


# --- DDPM: the network in two other programs, written down from their state dicts alone -----------------------


def _conv(t: Tensors, key: str, x: Tensor, **more: Any) -> Tensor:
    return F.conv2d(x, t[f"{key}.weight"], t[f"{key}.bias"], **more)


def _linear(t: Tensors, key: str, x: Tensor) -> Tensor:
    return F.linear(x, t[f"{key}.weight"], t[f"{key}.bias"])


def _norm(t: Tensors, key: str, x: Tensor, eps: float) -> Tensor:
    return F.group_norm(x, 32, t[f"{key}.weight"], t[f"{key}.bias"], eps)


def _attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, c, height, width = x.shape
    q, k, v = (part.reshape(n, c, -1) for part in (q, k, v))
    weights = torch.softmax(torch.einsum("ncp,ncs->nps", q, k) / math.sqrt(c), dim=-1)
    return torch.einsum("nps,ncs->ncp", weights, v).reshape(n, c, height, width)


def _shapes(prefix: str, kind: str, *sizes: int) -> dict[str, tuple[int, ...]]:
    """Weight and bias of one layer."""
    weight = {"conv": (sizes[-1], sizes[0], 3, 3), "point": (sizes[-1], sizes[0], 1, 1),
              "linear": (sizes[-1], sizes[0]), "norm": (sizes[0],)}[kind]  # fmt: skip
    return {f"{prefix}.weight": weight, f"{prefix}.bias": (sizes[-1],)}


def pesser_tensors() -> Tensors:
    """The state dict of pytorch_diffusion's Model for 32 pixels, attention on level 1, two blocks a level."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(prefix: str, kind: str, *sizes: int) -> None:
        shapes.update(_shapes(prefix, kind, *sizes))

    def resnet(prefix: str, n: int, m: int) -> None:
        layer(f"{prefix}.norm1", "norm", n)
        layer(f"{prefix}.conv1", "conv", n, m)
        layer(f"{prefix}.temb_proj", "linear", 4 * WIDTH, m)
        layer(f"{prefix}.norm2", "norm", m)
        layer(f"{prefix}.conv2", "conv", m, m)
        if n != m:
            layer(f"{prefix}.nin_shortcut", "point", n, m)

    def attention(prefix: str, n: int) -> None:
        layer(f"{prefix}.norm", "norm", n)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{prefix}.{part}", "point", n, n)

    layer("temb.dense.0", "linear", WIDTH, 4 * WIDTH)
    layer("temb.dense.1", "linear", 4 * WIDTH, 4 * WIDTH)
    layer("conv_in", "conv", 3, WIDTH)
    now, skips = WIDTH, [WIDTH]
    for level, multiple in enumerate(MULTIPLES):
        for index in range(2):
            resnet(f"down.{level}.block.{index}", now, WIDTH * multiple)
            now = WIDTH * multiple
            if level == 1:
                attention(f"down.{level}.attn.{index}", now)
            skips.append(now)
        if level < 3:
            layer(f"down.{level}.downsample.conv", "conv", now, now)
            skips.append(now)
    resnet("mid.block_1", now, now)
    attention("mid.attn_1", now)
    resnet("mid.block_2", now, now)
    for level in (3, 2, 1, 0):
        for index in range(3):
            resnet(f"up.{level}.block.{index}", now + skips.pop(), WIDTH * MULTIPLES[level])
            now = WIDTH * MULTIPLES[level]
            if level == 1:
                attention(f"up.{level}.attn.{index}", now)
        if level:
            layer(f"up.{level}.upsample.conv", "conv", now, now)
    layer("norm_out", "norm", now)
    layer("conv_out", "conv", now, 3)
    return random_tensors(shapes)


def pesser_eps(t: Tensors, x: Tensor, step: int) -> Tensor:
    """What that network predicts: eps [N, 3, 32, 32]."""
    half = WIDTH // 2
    angle = step * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))
    temb = torch.cat([angle.sin(), angle.cos()])[None]
    temb = _linear(t, "temb.dense.1", F.silu(_linear(t, "temb.dense.0", temb)))

    def resnet(prefix: str, x: Tensor) -> Tensor:
        h = _conv(t, f"{prefix}.conv1", F.silu(_norm(t, f"{prefix}.norm1", x, 1e-6)), padding=1)
        h = h + _linear(t, f"{prefix}.temb_proj", F.silu(temb))[:, :, None, None]
        h = _conv(t, f"{prefix}.conv2", F.silu(_norm(t, f"{prefix}.norm2", h, 1e-6)), padding=1)
        return h + (_conv(t, f"{prefix}.nin_shortcut", x) if f"{prefix}.nin_shortcut.weight" in t else x)

    def attention(prefix: str, x: Tensor) -> Tensor:
        h = _norm(t, f"{prefix}.norm", x, 1e-6)
        return x + _conv(t, f"{prefix}.proj_out", _attend(h, *(_conv(t, f"{prefix}.{part}", h) for part in "qkv")))

    h = _conv(t, "conv_in", x, padding=1)
    skips = [h]
    for level in range(4):
        for index in range(2):
            h = resnet(f"down.{level}.block.{index}", h)
            h = attention(f"down.{level}.attn.{index}", h) if level == 1 else h
            skips.append(h)
        if level < 3:
            h = _conv(t, f"down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
            skips.append(h)
    h = resnet("mid.block_2", attention("mid.attn_1", resnet("mid.block_1", h)))
    for level in (3, 2, 1, 0):
        for index in range(3):
            h = resnet(f"up.{level}.block.{index}", torch.cat([h, skips.pop()], 1))
            h = attention(f"up.{level}.attn.{index}", h) if level == 1 else h
        if level:
            h = _conv(t, f"up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0), padding=1)
    return _conv(t, "conv_out", F.silu(_norm(t, "norm_out", h, 1e-6)), padding=1)


def pytorch_ddpm_tensors(steps: int = 40) -> Tensors:
    """The state dict of pytorch-ddpm's UNet for a chain of `steps`: the lists of blocks are flat."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(prefix: str, kind: str, *sizes: int) -> None:
        shapes.update(_shapes(prefix, kind, *sizes))

    def block(prefix: str, n: int, m: int, attention: bool) -> None:
        layer(f"{prefix}.block1.0", "norm", n)
        layer(f"{prefix}.block1.2", "conv", n, m)
        layer(f"{prefix}.temb_proj.1", "linear", 4 * WIDTH, m)
        layer(f"{prefix}.block2.0", "norm", m)
        layer(f"{prefix}.block2.3", "conv", m, m)
        if n != m:
            layer(f"{prefix}.shortcut", "point", n, m)
        if attention:
            layer(f"{prefix}.attn.group_norm", "norm", m)
            for part in ("proj_q", "proj_k", "proj_v", "proj"):
                layer(f"{prefix}.attn.{part}", "point", m, m)

    layer("time_embedding.timembedding.1", "linear", WIDTH, 4 * WIDTH)
    layer("time_embedding.timembedding.3", "linear", 4 * WIDTH, 4 * WIDTH)
    layer("head", "conv", 3, WIDTH)
    now, skips, number = WIDTH, [WIDTH], 0
    for level, multiple in enumerate(MULTIPLES):
        for _ in range(2):
            block(f"downblocks.{number}", now, WIDTH * multiple, level == 1)
            now, number = WIDTH * multiple, number + 1
            skips.append(now)
        if level < 3:
            layer(f"downblocks.{number}.main", "conv", now, now)
            number += 1
            skips.append(now)
    block("middleblocks.0", now, now, True)
    block("middleblocks.1", now, now, False)
    number = 0
    for level in (3, 2, 1, 0):
        for _ in range(3):
            block(f"upblocks.{number}", now + skips.pop(), WIDTH * MULTIPLES[level], level == 1)
            now, number = WIDTH * MULTIPLES[level], number + 1
        if level:
            layer(f"upblocks.{number}.main", "conv", now, now)
            number += 1
    layer("tail.0", "norm", now)
    layer("tail.2", "conv", now, 3)
    angles = torch.arange(steps)[:, None] * torch.exp(-math.log(10000) * torch.arange(0, WIDTH, 2) / WIDTH)
    table = torch.stack([angles.sin(), angles.cos()], -1).reshape(steps, WIDTH)
    return {"time_embedding.timembedding.0.weight": table, **random_tensors(shapes, 1)}


def pytorch_ddpm_eps(t: Tensors, x: Tensor, step: int) -> Tensor:
    """What that network predicts: eps [N, 3, 32, 32]."""
    temb = t["time_embedding.timembedding.0.weight"][step][None]
    temb = F.silu(_linear(t, "time_embedding.timembedding.1", temb))
    temb = _linear(t, "time_embedding.timembedding.3", temb)

    def block(prefix: str, x: Tensor) -> Tensor:
        h = _conv(t, f"{prefix}.block1.2", F.silu(_norm(t, f"{prefix}.block1.0", x, 1e-5)), padding=1)
        h = h + _linear(t, f"{prefix}.temb_proj.1", F.silu(temb))[:, :, None, None]
        h = _conv(t, f"{prefix}.block2.3", F.silu(_norm(t, f"{prefix}.block2.0", h, 1e-5)), padding=1)
        h = h + (_conv(t, f"{prefix}.shortcut", x) if f"{prefix}.shortcut.weight" in t else x)
        if f"{prefix}.attn.proj.weight" not in t:
            return h
        inner = _norm(t, f"{prefix}.attn.group_norm", h, 1e-5)
        parts = (_conv(t, f"{prefix}.attn.proj_{part}", inner) for part in "qkv")
        return h + _conv(t, f"{prefix}.attn.proj", _attend(inner, *parts))

    h = _conv(t, "head", x, padding=1)
    skips = [h]
    for number in range(11):
        resample = f"downblocks.{number}.main"
        halves = f"{resample}.weight" in t
        h = _conv(t, resample, h, stride=2, padding=1) if halves else block(f"downblocks.{number}", h)
        skips.append(h)
    h = block("middleblocks.1", block("middleblocks.0", h))
    for number in range(15):
        if f"upblocks.{number}.main.weight" in t:
            h = _conv(t, f"upblocks.{number}.main", F.interpolate(h, scale_factor=2.0), padding=1)
        else:
            h = block(f"upblocks.{number}", torch.cat([h, skips.pop()], 1))
    return _conv(t, "tail.2", F.silu(_norm(t, "tail.0", h, 1e-5)), padding=1)


# --- StyleGAN2-ADA: persistent objects -------------------------------------------------------------------------


class EasyDict(dict):
    """A stand-in for the authors' class of this name."""


class Persistent:
    """A module as their program pickles it: its class's source text and its attributes."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = "raise SystemExit('was run')") -> None:
        self.meta = EasyDict(type="class", version=6, module_src=source, class_name=class_name, state=state)

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def fake_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the names that official pickles refer to importable, so that the test can write such a file."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the file was unpickled in earnest")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")
    for name, module in (("torch_utils", types.ModuleType("torch_utils")), ("torch_utils.persistence", persistence),
                         ("dnnlib", types.ModuleType("dnnlib")), ("dnnlib.util", util)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)


def persistent(module: nn.Module, class_name: str, extra: dict[str, dict[str, Any]], path: str = "") -> Persistent:
    """A module of this package as a persistent object; `extra` adds attributes by the path of a submodule."""
    kept = ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backward_hooks")
    state = {k: v for k, v in module.__dict__.items() if k in kept}
    inner = {
        name: persistent(child, type(child).__name__, extra, f"{path}.{name}".strip("."))
        for name, child in module._modules.items()
        if child is not None
    }
    return Persistent(class_name, {**state, "_modules": inner, **extra.get(path, {})})


def stylegan2_pickle(generator: nn.Module, protocol: int, **networks: Any) -> bytes:
    """An official file around a generator of this package; needs `fake_programs`."""
    config = generator.config  # type: ignore[attr-defined]
    names = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
    layer = {"activation": "lrelu", "use_noise": True, "conv_clamp": config.conv_clamp}
    extra = {
        "": {**{name: getattr(config, name) for name in names}, "_init_kwargs": EasyDict(mapping_kwargs=EasyDict())},
        "mapping.fc0": {"bias_gain": 0.01},
        "synthesis.b4": {"architecture": config.architecture},
        "synthesis.b4.conv1": layer,
    }
    content = {
        "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", use_labels=True),
        "G": None, "D": None, "augment_pipe": None, "G_ema": persistent(generator, "Generator", extra), **networks,
    }  # fmt: skip
    return dump(content, protocol)


def dump(content: Any, protocol: int) -> bytes:
    """A pickle as python 3 writes it."""
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=protocol).dump(content)
    return stream.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
