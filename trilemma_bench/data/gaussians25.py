"""25 Gaussians on a grid: centres {-4, -2, 0, 2, 4}^2, standard deviation 0.05, equal weights.

The toy data of mode coverage since PacGAN's 2D-grid (Lin et al. 2018, arXiv 1712.04086; Xiao et al. 2022, arXiv
2112.07804, use it without naming grid and deviation). Nothing is read from disk: the points of a split are drawn
from its seed, by Philox, and rounded, so that they are the same on every machine: numpy's logarithm and cosine are not,
in their last bits.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from trilemma_bench.data import _helpers
from trilemma_bench.kinds import Dataset, ImageSet, Mixture
from trilemma_bench.points import ArrayPoints

NAME = "gaussians25"
AXIS = (-4.0, -2.0, 0.0, 2.0, 4.0)
MIXTURE = Mixture(centres=np.array(list(itertools.product(AXIS, AXIS))), sigma=0.05)
SCALE = 5.0
"""The networks see x / 5: the grid within [-0.8, 0.8] and a mode's deviation 0.01."""

RESOLUTION = 2.0**-20
"""Coordinates are multiples of this; a mode's deviation is 50,000 times as much."""

COUNTS = {"train": 50_000, "test": 10_000}
SEEDS = {"train": 0, "test": 1}


def draw(count: int, seed: int) -> np.ndarray:
    """Samples of the mixture, float64 [count, 2], in multiples of RESOLUTION; point i depends on (seed, i) alone."""
    return draw_labelled(count, seed)[0]


def draw_labelled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, and the Gaussian that each is from, int64 [count] in the order of the centres."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, 25], np.uint64)))
    # Three uniforms a point, so that a longer draw begins with the shorter one.
    uniform = rng.random((count, 3))
    modes = (uniform[:, 0] * len(MIXTURE.centres)).astype(np.int64)
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, 1])), 2 * np.pi * uniform[:, 2]
    normal = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    points: np.ndarray = np.rint((MIXTURE.centres[modes] + MIXTURE.sigma * normal) / RESOLUTION) * RESOLUTION
    return points, modes


def open_split(split: str, root: Path | None = None) -> ImageSet:
    """The points of a split; `root` is not looked at.

    Raises:
        DataError: No such split.
    """
    _helpers.check_split(NAME, split, tuple(COUNTS))
    points, modes = draw_labelled(COUNTS[split], SEEDS[split])
    return ArrayPoints(points, f"{NAME}:{split}", modes)


DATASET = Dataset(
    name=NAME,
    shape=(2,),
    splits=tuple(COUNTS),
    open=open_split,
    scale=SCALE,
    mixture=MIXTURE,
    num_classes=len(MIXTURE.centres),
    citation="Z. Lin et al., PacGAN: The power of two samples in generative adversarial networks, 2018",
)
