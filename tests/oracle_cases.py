"""The original networks' inputs and outputs (tests/oracles/README.md), and weights by the seeded rule.

The folder: `TRILEMMA_ORACLES`, else tests/oracles, else ../shared/oracles beside the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class OracleCase:
    """One file: its tensors by name, and `meta` (configuration, weight seed, every key with its shape)."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def oracle_dir() -> Path | None:
    """The first folder that there is; None where there is none."""
    stated = os.environ.get("TRILEMMA_ORACLES")
    if stated:
        return Path(stated) if Path(stated).is_dir() else None
    places = (ROOT / "tests" / "oracles", ROOT.parent / "shared" / "oracles")
    return next((place for place in places if (place / "ddgan").is_dir()), None)


def oracle_path(name: str) -> Path:
    """Path of an oracle file such as 'ddgan/schedules.json'; skips the calling test where it is absent."""
    folder = oracle_dir()
    if folder is None:
        pytest.skip("no oracles: neither TRILEMMA_ORACLES, tests/oracles nor ../shared/oracles is a folder of them")
    if not (folder / name).is_file():
        pytest.skip(f"no oracle {name} in {folder}")
    return folder / name


def oracle_names(pattern: str) -> list[str]:
    """Names of the oracle files that match a glob such as 'ddgan/generator_*.npz', for parametrisation."""
    folder = oracle_dir()
    return [] if folder is None else sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))


def load_oracle(name: str) -> OracleCase:
    """Read one .npz; skips the calling test where it is absent."""
    with np.load(oracle_path(name), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(str(arrays.pop("meta")))
    return OracleCase({key: torch.from_numpy(array) for key, array in arrays.items()}, meta)


def _normal(seed: int, key: str, shape: Sequence[int]) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()
    rng = np.random.default_rng(int(digest[:16], 16))
    return np.asarray(rng.standard_normal(tuple(shape)), dtype=np.float32)


def ddgan_weights(keys: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """A DDGAN state dict by the seeded rule, for keys with their shapes."""
    return {key: torch.from_numpy(_ddgan_weight(key, tuple(shape), seed)) for key, shape in keys.items()}


def _ddgan_weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    a = _normal(seed, key, shape)
    if len(shape) >= 2:
        fan_in = shape[0] if key.endswith(".W") else prod(shape[1:])
        return a / np.float32(sqrt(fan_in))
    base = np.full(shape, 1.0 if key.endswith(".weight") else 0.0, dtype=np.float32)
    if key.endswith(".style.bias"):
        base[: shape[0] // 2] = 1.0
    return base + np.float32(0.1) * a


def stylegan2_weights(keys: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """A StyleGAN2 state dict by the seeded rule, filters included, for keys with their shapes."""
    return {key: torch.tensor(_stylegan2_weight(key, tuple(shape), seed)) for key, shape in keys.items()}


def _stylegan2_weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if key.endswith("resample_filter"):
        taps = np.array([1, 3, 3, 1], dtype=np.float32)
        return np.outer(taps, taps) / np.float32(64)
    a, tenth = _normal(seed, key, shape), np.float32(0.1)
    if key.endswith("noise_strength"):
        return tenth + np.float32(0.05) * a
    if key.endswith("affine.bias"):
        return 1 + tenth * a
    if key.endswith((".bias", "w_avg")):
        return tenth * a
    if key.startswith("mapping.") and key.endswith(".weight"):
        return 100 * a
    return a
