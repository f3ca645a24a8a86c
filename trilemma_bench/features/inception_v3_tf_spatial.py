"""The spatial features of sFID (Nash et al. 2021, arXiv 2103.03841), as ADM's evaluation takes them.

The first 7 channels of `mixed_6/conv`, the 1 x 1 branch of the third block at 17 x 17, at every place: 2023 numbers an
image. Preprocessing as `inception_v3_tf`. Its Fréchet distance is sFID.
"""

from __future__ import annotations

from trilemma_bench.features import _helpers
from trilemma_bench.features._inception import MEAN, SIZE, STD, kind, spatial

EXTRACTOR = kind(
    "inception_v3_tf_spatial",
    _helpers.Resize(SIZE, "tensorflow1", mean=MEAN, std=STD),
    f"mixed_6/conv:7 of bilinear tensorflow1 {SIZE}; (x - {MEAN:g}) / {STD:g}; float32",
    read=spatial,
    layers=("features",),
)
