"""clean-fid's mode `clean` on images that were saved as JPEG, at quality 75, Pillow's default."""

from __future__ import annotations

from trilemma_bench.features._helpers import pillow_bicubic, scaled, through_jpeg
from trilemma_bench.features._inception import JPEG_QUALITY, MEAN, SIZE, STD, kind

EXTRACTOR = kind(
    "inception_v3_tf_clean_jpeg75",
    lambda images: scaled(pillow_bicubic(through_jpeg(images, JPEG_QUALITY), SIZE), MEAN, STD),
    f"JPEG {JPEG_QUALITY}; pillow bicubic float {SIZE}, clipped; (x - {MEAN:g}) / {STD:g}; float32",
)
