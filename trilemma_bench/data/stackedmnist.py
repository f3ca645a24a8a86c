"""StackedMNIST: three MNIST digits as the channels of one image of 3 x 32 x 32; 1000 classes, the modes.

Made from the files of `mnist`, by fixed seeds, the same on every machine. In a round each channel has every digit of
the split once, in an order of its own; `train` is one round of the 60,000 training digits, `test` three rounds of the
10,000 test digits (protocols take 26,000, after Lin et al. 2018, arXiv 1712.04086). Digits of 28 x 28 stand in the
middle of 32 x 32 zeros, as in the data set of the authors of denoising diffusion GANs (arXiv 2112.07804), whose
networks want sides that halve often. The class is 100 r + 10 g + b of the digits in red, green and blue.

Digits are not equally frequent in MNIST, so neither are the classes: endlessly many triplets would be KL = 0.0043 nats
(train; test 0.0052) away from equal classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trilemma_bench import registry
from trilemma_bench.data import _helpers
from trilemma_bench.images import ArrayImages
from trilemma_bench.kinds import Array, Dataset, ImageSet

NAME = "stackedmnist"
CHANNELS, PAD = 3, 2
SHAPE = (CHANNELS, 32, 32)
ROUNDS = {"train": 1, "test": 3}
COUNTS = {"train": 60_000, "test": 30_000}
SEEDS = {"train": 0, "test": 1}
FINGERPRINTS = {
    "train": "b98ba788d1afb39d1c6b8ea0609f7b8e22192eb8d137b1a10aa7cfee40536772",
    "test": "32934e25506c395fdea00ade9803eb642fc9ff06e7f71ecc6a3fb2ccf55ebcf0",
}


def orders(digits: int, rounds: int, seed: int) -> Array:
    """Which digit stands in each channel of each image: int64 [rounds * digits, CHANNELS]."""
    columns = []
    for channel in range(CHANNELS):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, channel], np.uint64)))
        # Sorted uniforms: numpy promises the uniforms of a Philox stream, not those of its shuffles.
        columns.append(np.argsort(rng.random((rounds, digits)), axis=1, kind="stable").reshape(-1))
    return np.stack(columns, 1)


def stack(digits: ImageSet, order: Array) -> ArrayImages:
    """Images uint8 [len(order), 3, H + 4, W + 4] of the digits that `order` names, with their classes."""
    grey = np.pad(digits.read(0, len(digits))[:, 0], ((0, 0), (PAD, PAD), (PAD, PAD)))
    assert digits.labels is not None
    classes = digits.labels[order] @ (10 ** np.arange(CHANNELS)[::-1])
    return ArrayImages(grey[order], NAME, classes.astype(np.int64))


def open_split(split: str, root: Path | None = None) -> ImageSet:
    """Read the digits of one split and stack them.

    Args:
        split: train or test.
        root: Folder in which `mnist` is looked for; by default TRILEMMA_DATA, ./data, ~/.cache/trilemma-bench/data.

    Returns:
        The images in memory (184 MB for train, 92 MB for test) with their classes, 0..999.

    Raises:
        DataError: No such split, or `mnist` cannot be read.
    """
    _helpers.check_split(NAME, split, tuple(COUNTS))
    digits = registry.get("dataset", "mnist").open(split, root)
    images = stack(digits, orders(len(digits), ROUNDS[split], SEEDS[split]))
    return _helpers.checked(
        images, name=f"{NAME}:{split}", shape=SHAPE, count=COUNTS[split], expected=FINGERPRINTS[split]
    )


DATASET = Dataset(
    name=NAME,
    shape=SHAPE,
    splits=tuple(COUNTS),
    open=open_split,
    fingerprints=FINGERPRINTS,
    num_classes=10**CHANNELS,
    citation="A. Srivastava et al., VEEGAN: Reducing mode collapse in GANs using implicit variational learning, 2017",
)
