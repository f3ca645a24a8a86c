"""TF Inception with clean-fid's own resizing, its mode `clean` (Parmar et al. 2022, arXiv 2104.11222).

Each channel as floats through Pillow's bicubic filter, antialiased downwards, then clipped to 0..255 and not rounded.
Its `legacy_tensorflow` is the extractor `inception_v3_tf`.
"""

from __future__ import annotations

from trilemma_bench.features._helpers import pillow_bicubic, scaled
from trilemma_bench.features._inception import MEAN, SIZE, STD, kind

EXTRACTOR = kind(
    "inception_v3_tf_clean",
    lambda images: scaled(pillow_bicubic(images, SIZE), MEAN, STD),
    f"pillow bicubic float {SIZE}, clipped; (x - {MEAN:g}) / {STD:g}; float32",
)
