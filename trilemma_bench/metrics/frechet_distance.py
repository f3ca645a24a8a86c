"""Fréchet distance between Gaussians fitted to real and generated features (Heusel et al. 2017, arXiv:1706.08500).

    d = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))

with covariances over n - 1. It bears the name FID only on TF Inception features. With S = L L^T the last trace is the
nuclear norm of L1^T L2, a sum of singular values: no matrix square root to turn imaginary, no loss of half the
digits where a covariance is singular. Fewer samples than features need no covariance at all: their centred rows
over sqrt(n - 1) are such a factor.

**Bias.** The distance falls as the number of samples grows (1,000 real CIFAR-10 images are some 27 away from the rest
on EfficientNet-Lite0 features), so that values compare at equal counts only.

**The standard error** is the infinitesimal jackknife: the standard deviation of each generated sample's influence on
the distance over sqrt(n). A bootstrap would add to the bias by its repeated rows, and a jackknife by groups costs
twenty times as much. Where n is near or under the number of features the distance is far from linear in its
samples, and this error comes out too large: by up to a factor of two in simulations. Under 20 samples it can be
too small, by a third.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trilemma_bench import stats
from trilemma_bench.kinds import Array, Metric, Moments, Reference
from trilemma_bench.metrics import _frechet, _helpers
from trilemma_bench.record import Score, ScoreKind


def moments(features: Array) -> Moments:
    """Mean and covariance (over n - 1) of features, float [N, D] with N >= 2, in float64.

    Raises:
        ProtocolError: Fewer than two samples, a wrong shape, or features that are not finite.
    """
    why = "a covariance needs two samples"
    return stats.moments(_helpers.check_features(features, what="features", minimum=2, why=why))


def frechet_distance(*, real: Moments, generated: Moments) -> float:
    """Fréchet distance of two Gaussians.

    Args:
        real: Mean [D] and covariance [D, D], which may be singular.
        generated: The same of the generated features.

    Returns:
        Value >= 0 in the features' unit squared; lower is better.

    Raises:
        ProtocolError: D differs, a shape is wrong, a number is not finite, or a matrix is no covariance.
    """
    real = _frechet.checked_moments(real, "real moments")
    generated = _frechet.checked_moments(generated, "generated moments")
    _helpers.check_same_width(real.mean[None], generated.mean[None])
    return _frechet.distance(real, _frechet.factor(real.cov), generated.mean, _frechet.factor(generated.cov))


def frechet_distance_to_features(*, real: Moments, generated: Array) -> float:
    """The same between moments and features, float [N, D] with N >= 2: faster than moments where N < D."""
    features = _frechet.checked(real, generated)
    return _frechet.distance(real, _frechet.factor(real.cov), *_frechet.mean_and_factor(features))


def compute(*, real: Reference, generated: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Score]:
    """The distance to the reference moments, with the standard error that the module's docstring explains.

    Raises:
        ProtocolError: As for `frechet_distance_to_features`.
    """
    features = _frechet.checked(real.moments, generated["features"])
    real_factor = _frechet.factor(real.moments.cov)
    mean, factor = _frechet.mean_and_factor(features)
    value = _frechet.distance(real.moments, real_factor, mean, factor)
    influences = _frechet.influences(real.moments.mean, real_factor, mean, factor, features)
    (kind,) = _kinds(*_helpers.extractor_of(real))
    score = _frechet.scored(value, influences, fixed="the reference is fixed", bounds=(0, None))
    return {kind.name: score}


def _kinds(extractor: str, is_inception: bool) -> tuple[ScoreKind]:
    name, label = _frechet.name_of(extractor, is_inception)
    return (ScoreKind(name=name, axis="quality", higher_is_better=False, label=label),)


METRIC = Metric(
    name="frechet_distance",
    layers=("features",),
    kinds=lambda extractor: _kinds(extractor.name, extractor.is_inception),
    compute=compute,
)
