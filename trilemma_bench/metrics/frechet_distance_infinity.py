"""The Fréchet distance extrapolated to infinitely many samples (Chong & Forsyth 2020, arXiv:1911.07023).

At N samples the distance is too large by about c / N, where c depends on the model: a ranking at one N can be a
ranking of biases. Here it is taken at N and in parts of 1/2, 1/4 and 1/8 of the samples, each part used once, and a
straight line in 1 / N is laid through the means; its intercept is the distance at 1 / N = 0, and what lies between is
the bias at N. Departures from the paper: means over all parts in place of one random subset at each of 15 sizes, so
that every sample weighs the same and the result draws nothing; and the generated features are those of the protocol,
not of a quasi-random latent.

A line fits only where N is well above the number of features: parts of fewer than `MIN_RATIO` times as many samples
are left out, and without two sizes there is no score. The standard error is that of the distance at N: to first order
each sample moves both alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Moments, Reference
from trilemma_bench.metrics import _frechet, _helpers
from trilemma_bench.record import Score, ScoreKind

PARTS = (1, 2, 4, 8)
MIN_RATIO = 2


def extrapolate(*, real: Moments, generated: Array) -> float:
    """The distance at infinitely many samples; rounding and noise may take it below 0.

    Args:
        real: Mean [D] and covariance [D, D].
        generated: Features, float [N, D] with N >= 2 MIN_RATIO D; their order does not matter.

    Raises:
        ProtocolError: Too few samples, D differs, or a number is not finite.
    """
    features = _frechet.checked(real, generated)
    count, dim = features.shape
    usable = [parts for parts in PARTS if count // parts >= MIN_RATIO * dim]
    if len(usable) < 2:
        raise ProtocolError(
            f"the extrapolation to infinitely many samples needs {2 * MIN_RATIO * dim} images on {dim} features; got "
            f"{count}. Below that the distance is no straight line in 1 / N."
        )
    factor = _frechet.factor(real.cov)
    mixed = features[_order(features)]
    means = [
        float(np.mean([
            _frechet.distance(real, factor, *_frechet.mean_and_factor(mixed[part::parts])) for part in range(parts)
        ]))
        for parts in usable
    ]  # fmt: skip
    _, intercept = np.polyfit(np.array(usable) / count, means, 1)
    return float(intercept)


def _order(features: Array) -> list[int]:
    """Samples as if drawn at random, the same whatever order they come in: sorted by a digest of each."""
    rows = np.ascontiguousarray(features, dtype=np.float32)
    digests = [hashlib.sha256(row.data).digest() for row in rows]
    return sorted(range(len(digests)), key=digests.__getitem__)


def compute(*, real: Reference, generated: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Score]:
    """The extrapolated distance; a failure where there are too few images for it.

    Raises:
        ProtocolError: Features of a wrong shape, or that are not finite.
    """
    features = _frechet.checked(real.moments, generated["features"])
    (kind,) = _kinds(*_helpers.extractor_of(real))
    try:
        value = extrapolate(real=real.moments, generated=features)
    except ProtocolError as error:
        return {kind.name: Score.failed(str(error))}
    factor = _frechet.factor(real.moments.cov)
    influences = _frechet.influences(real.moments.mean, factor, *_frechet.mean_and_factor(features), features)
    score = _frechet.scored(value, influences, fixed="the reference and its bias are fixed")
    return {kind.name: score}


def _kinds(extractor: str, is_inception: bool) -> tuple[ScoreKind]:
    name, label = _frechet.name_of(extractor, is_inception)
    return (ScoreKind(name=f"{name}_infinity", axis="quality", higher_is_better=False, label=f"{label}, infinite N"),)


METRIC = Metric(
    name="frechet_distance_infinity",
    layers=("features",),
    kinds=lambda extractor: _kinds(extractor.name, extractor.is_inception),
    compute=compute,
)
