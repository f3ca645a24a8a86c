"""Memorised fraction: generated images that lie far closer to a training image than to any held-out one.

A generated feature counts as memorised where its nearest training image is nearer than `ratio` times its nearest
held-out image. Both are searched whole, in the leading principal components of the reference (`train_sketch`,
`held_out_sketch`). The idea is that of the data-copying tests (Meehan et al. 2020, arXiv:2004.05675) and of the
distance ratios for diffusion models (Yoon et al. 2023), with held-out data in place of a second neighbour.

**Splits of unequal size.** The nearest of more images is nearer: fresh data have a median ratio of about
(N_held_out / N_train)^(1/d) in d intrinsic dimensions. `ratio` = 0.5 lies far under that: of CIFAR-10 test images set
against other ones on EfficientNet-Lite0 features, 64 components, 0.1 % fall under it at 5,000 against 2,500, and 0.3 %
at 5,000 against 1,000 (median ratios 0.96 and 0.92), near-duplicates in the data among them; copies all do, and 99.9 %
still with Gaussian noise of 0.3 standard deviations on each feature. In few dimensions or with a far smaller
held-out split the bias grows: compare with fresh real images then. Held-out images themselves read 0, each being its
own nearest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Reference
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score, ScoreKind


def memorised(*, train: Array, held_out: Array, generated: Array, ratio: float = 0.5) -> _helpers.Bool:
    """Which generated samples are memorised.

    Args:
        train: Float [N, d], every training image.
        held_out: Float [N', d], every held-out image; N' may differ from N.
        generated: Float [M, d].
        ratio: The nearest training image must be nearer than this times the nearest held-out one; in (0, 1].

    Returns:
        bool [M]. A sample that coincides with a training and with a held-out image alike is not memorised.

    Raises:
        ProtocolError: An array is empty, not finite, or of another width; or `ratio` is out of range.
    """
    if not 0 < ratio <= 1:
        raise ProtocolError(f"ratio must be in (0, 1]; got {ratio}. The protocols take 0.5.")
    generated = _helpers.check_features(generated, what="generated sketch")
    sketches = {"training sketch": train, "held-out sketch": held_out}
    for what, sketch in sketches.items():
        _helpers.check_same_width(_helpers.check_features(sketch, what=what), generated)
    nearest_train, nearest_held_out = (_helpers.nearest(generated, sketch)[:, 0, 0] for sketch in sketches.values())
    # Of two that coincide the squared distance is 0 but for rounding, which each search does in its own way.
    norms = np.square(generated - held_out.mean(axis=0, dtype=np.float64)).sum(1)
    nearest_held_out[nearest_held_out <= _helpers.TIE * norms] = 0
    return nearest_train < ratio**2 * nearest_held_out


def compute(
    *, real: Reference, generated: Mapping[str, Array], rng: np.random.Generator, ratio: float = 0.5
) -> dict[str, Score]:
    """The memorised fraction with a binomial interval; a failure where the reference has no held-out split.

    Raises:
        ProtocolError: As for `memorised`.
    """
    (kind,) = _kinds(*_helpers.extractor_of(real))
    if real.held_out_sketch is None:
        reason = (
            "the reference has no held-out split: of images of your own these are in a folder 'test' beside 'train'; "
            "else name one as `held_out_split` of the protocol. Then make the reference again"
        )
        return {kind.name: Score.failed(reason)}
    features = _helpers.check_features(generated["features"], what="generated features")
    _helpers.check_same_width(real.centre[None], features)
    sketch = (features - real.centre) @ real.components
    found = memorised(train=real.train_sketch, held_out=real.held_out_sketch, generated=sketch, ratio=ratio)
    return {kind.name: _helpers.fraction(found, fixed="both sets of real images are fixed")}


def _kinds(extractor: str, is_inception: bool) -> tuple[ScoreKind]:
    name = f"memorised_fraction_{extractor}"
    return (ScoreKind(name=name, axis="coverage", higher_is_better=False, label="memorised"),)


METRIC = Metric(
    name="memorised_fraction",
    layers=("features",),
    kinds=lambda extractor: _kinds(extractor.name, extractor.is_inception),
    compute=compute,
    defaults={"ratio": 0.5},
)
