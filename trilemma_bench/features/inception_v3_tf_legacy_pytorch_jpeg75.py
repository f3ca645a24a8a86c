"""clean-fid's mode `legacy_pytorch` on images that were saved as JPEG, at quality 75, Pillow's default."""

from __future__ import annotations

from trilemma_bench.features._helpers import scaled, through_jpeg, torch_bilinear
from trilemma_bench.features._inception import JPEG_QUALITY, MEAN, SIZE, STD, kind

EXTRACTOR = kind(
    "inception_v3_tf_legacy_pytorch_jpeg75",
    lambda images: scaled(torch_bilinear(through_jpeg(images, JPEG_QUALITY), SIZE), MEAN, STD),
    f"JPEG {JPEG_QUALITY}; torch bilinear {SIZE} without antialiasing, clipped; (x - {MEAN:g}) / {STD:g}; float32",
)
