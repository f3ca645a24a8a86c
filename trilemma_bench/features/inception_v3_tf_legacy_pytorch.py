"""TF Inception with the resizing of early pytorch-fid, clean-fid's mode `legacy_pytorch`.

Bilinear between half-pixel centres without antialiasing, clipped to 0..255 and not rounded.
"""

from __future__ import annotations

from trilemma_bench.features._helpers import scaled, torch_bilinear
from trilemma_bench.features._inception import MEAN, SIZE, STD, kind

EXTRACTOR = kind(
    "inception_v3_tf_legacy_pytorch",
    lambda images: scaled(torch_bilinear(images, SIZE), MEAN, STD),
    f"torch bilinear {SIZE} without antialiasing, clipped; (x - {MEAN:g}) / {STD:g}; float32",
)
