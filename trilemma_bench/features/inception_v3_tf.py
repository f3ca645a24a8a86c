"""Inception-v3 of 2015-12-05 from TensorFlow, as torch-fidelity converted it: the network of FID, KID and IS.

Preprocessing as in TensorFlow 1's graph: `resize_bilinear` to 299 x 299 without antialiasing or half-pixel
centres, (x - 128) / 128. Layers: `features`, the 2048 averages before the classifier (torch-fidelity's
'2048'); `logits`, the 1008 class scores without the classifier's bias (torch-fidelity's 'logits_unbiased',
which its `isc` uses).

The resize is done as two matrix products.
"""

from __future__ import annotations

from trilemma_bench.features import _helpers
from trilemma_bench.features._inception import MEAN, SIZE, STD, kind

PREPROCESSING = f"bilinear tensorflow1 {SIZE}; (x - {MEAN:g}) / {STD:g}; float32"

EXTRACTOR = kind(
    "inception_v3_tf",
    _helpers.Resize(SIZE, "tensorflow1", mean=MEAN, std=STD),
    PREPROCESSING,
    is_inception=True,
)
