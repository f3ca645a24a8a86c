"""A data set, a protocol and samplers small enough that whole runs take a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trilemma_bench.images import write_png_folder

PROTOCOL = """
name = "image_folder-tiny-v1"
title = "tiny"
dataset = "image_folder"
image_shape = [3, 8, 8]
num_generated = {count}

[reference]
num_features = 60
sketch_dim = 8

[[scores]]
metric = "frechet_distance"
extractor = "identity"

[[scores]]
metric = "kernel_distance"
extractor = "identity"
params = {{ subsets = 5, subset_size = 20 }}

[[scores]]
metric = "precision_recall"
extractor = "identity"

[timing]
num_images = 10
warmup = 0
repeats = 2
"""

PLUGIN = '''
import os
import time

import torch


class Blobs:
    name = "blobs"
    image_shape = (3, 8, 8)
    micro_batch = 10
    delay = float(os.environ.get("BLOBS_DELAY", "0"))

    def sample(self, seeds):
        time.sleep(self.delay)
        if log := os.environ.get("BLOBS_LOG"):
            with open(log, "a") as stream:
                stream.write(" ".join(str(int(s)) for s in seeds) + "\\n")
        coarse = [torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        images = torch.nn.functional.interpolate(torch.stack(coarse), size=8, mode="nearest")
        return (images * 40 + 120).clamp(0, 255).byte()


def make():
    return Blobs()


class Slow(Blobs):
    """The same with more to do and other images."""

    name = "slow"
    image_shift = 7

    def sample(self, seeds):
        return super().sample(seeds + self.image_shift)


class Broken(Blobs):
    name = "broken"

    def sample(self, seeds):
        raise RuntimeError("out of luck")


class Floats(Blobs):
    name = "floats"

    def sample(self, seeds):
        return torch.zeros(len(seeds), 3, 8, 8)


class Unsteady(Blobs):
    """Its images depend on when they are drawn."""

    name = "unsteady"
    calls = 0

    def sample(self, seeds):
        Unsteady.calls += 1
        rng = torch.Generator().manual_seed(time.time_ns())
        return torch.randint(0, 255, (len(seeds), 3, 8, 8), generator=rng).byte()
'''  # fmt: skip


def make_world(folder: Path, count: int = 40, size: int = 8) -> tuple[Path, Path]:
    """(image folder with train and test, protocol file) below `folder`; the plug-in lies there as blobs.py.

    Features are pixels, so that larger images than 8 x 8 cost more than they tell.
    """
    rng = np.random.default_rng(0)
    for split, number in (("train", 90), ("test", 50)):
        coarse = rng.normal(120, 40, (number, 3, 4, 4)).clip(0, 255).astype(np.uint8)
        write_png_folder(coarse.repeat(size // 4, 2).repeat(size // 4, 3), folder / "images" / split)
    protocol = folder / "tiny.toml"
    protocol.write_text(PROTOCOL.format(count=count))
    (folder / "blobs.py").write_text(PLUGIN)
    return folder / "images", protocol
