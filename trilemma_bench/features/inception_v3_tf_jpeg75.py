"""TF Inception on images that went through JPEG at quality 75, Pillow's default: a fork hidden in some testers.

clean-fid's mode `legacy_tensorflow` on JPEG files.

The released tester of DDGAN writes its samples as JPEG before it measures them. Reference and samples go through it
alike here; a reference of PNGs against samples of JPEGs is further off still.
"""

from __future__ import annotations

from trilemma_bench.features import _helpers
from trilemma_bench.features._inception import JPEG_QUALITY, MEAN, SIZE, STD, kind

_resize = _helpers.Resize(SIZE, "tensorflow1", mean=MEAN, std=STD)

EXTRACTOR = kind(
    "inception_v3_tf_jpeg75",
    lambda images: _resize(_helpers.through_jpeg(images, JPEG_QUALITY)),
    f"JPEG {JPEG_QUALITY}; bilinear tensorflow1 {SIZE}; (x - {MEAN:g}) / {STD:g}; float32",
)
