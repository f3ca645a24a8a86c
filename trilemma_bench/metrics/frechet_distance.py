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

import math
from collections.abc import Iterator, Mapping

import numpy as np
import scipy.linalg

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Moments, Reference
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score, ScoreKind

Float64 = _helpers.Float64


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
        ProtocolError: D differs, a shape is wrong, or a number is not finite.
    """
    _check_moments(real, "real moments")
    _check_moments(generated, "generated moments")
    _helpers.check_same_width(real.mean[None], generated.mean[None])
    return _distance(real, _factor(real.cov), generated.mean, _factor(generated.cov))


def frechet_distance_to_features(*, real: Moments, generated: Array) -> float:
    """The same between moments and features, float [N, D] with N >= 2: faster than moments where N < D."""
    features = _checked(real, generated)
    return _distance(real, _factor(real.cov), *_mean_and_factor(features))


def compute(*, real: Reference, generated: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Score]:
    """The distance to the reference moments, with the standard error that the module's docstring explains.

    Raises:
        ProtocolError: As for `frechet_distance_to_features`.
    """
    features = _checked(real.moments, generated["features"])
    real_factor = _factor(real.moments.cov)
    mean, factor = _mean_and_factor(features)
    value = _distance(real.moments, real_factor, mean, factor)
    stderr = stats.mean_stderr(_influences(real.moments.mean, real_factor, mean, factor, features))
    (kind,) = _kinds(*_helpers.extractor_of(real))
    score = Score(
        value=value,
        stderr=stderr,
        interval=stats.symmetric_interval(value, stderr, bounds=(0, math.inf)),
        uncertainty="infinitesimal jackknife over generated samples; the reference is fixed",
        n=len(features),
    )
    return {kind.name: score}


def _kinds(extractor: str, is_inception: bool) -> tuple[ScoreKind]:
    name, label = ("fid", "FID") if is_inception else (f"fd_{extractor}", f"FD ({extractor})")
    return (ScoreKind(name=name, axis="quality", higher_is_better=False, label=label),)


def _check_moments(found: Moments, what: str) -> None:
    if found.mean.ndim != 1 or found.cov.shape != found.mean.shape * 2:
        raise ProtocolError(
            f"{what} must be a mean [D] and a covariance [D, D]; got {found.mean.shape} and {found.cov.shape}. "
            "Make them with moments(features)."
        )
    if not (np.isfinite(found.mean).all() and np.isfinite(found.cov).all()):
        raise ProtocolError(f"{what} hold NaN or Inf. Make them again from features that are finite.")


def _checked(real: Moments, generated: Array) -> Array:
    _check_moments(real, "real moments")
    features = _helpers.check_features(
        generated, what="generated features", minimum=2, why="a covariance needs two samples"
    )
    _helpers.check_same_width(real.mean[None], features)
    return features


def _factor(cov: Float64) -> Float64:
    """L with cov = L L^T, float64 [D, rank]."""
    values, vectors = np.linalg.eigh(cov)
    # Below this an eigenvalue is rounding, and its root would be 1e-8 of the largest instead of nothing.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _mean_and_factor(features: Array) -> tuple[Float64, Float64]:
    """Mean [D] of the features and L [D, r] with L L^T their covariance, r <= min(N, D)."""
    if len(features) > features.shape[1]:
        found = moments(features)
        return found.mean, _factor(found.cov)
    mean = features.mean(axis=0, dtype=np.float64)
    return mean, (features - mean).T / math.sqrt(len(features) - 1)


def _distance(real: Moments, real_factor: Float64, mean: Float64, factor: Float64) -> float:
    shift = float(np.square(real.mean - mean).sum())
    overlap = float(scipy.linalg.svdvals(real_factor.T @ factor).sum()) if real_factor.size and factor.size else 0.0
    return max(0.0, shift + float(np.square(real_factor).sum() + np.square(factor).sum()) - 2 * overlap)


def _influences(real_mean: Float64, real_factor: Float64, mean: Float64, factor: Float64, features: Array) -> Float64:
    """Influence of each sample on the distance but for a constant, float64 [N].

    The derivative of the distance by the weight of sample i is 2 x.(mean - real_mean) + n / (n - 1) (|x|^2 - x^T M x),
    x = features[i] - mean, where M = L1 (L1^T S2 L1)^(-1/2) L1^T is the optimal map of the Gaussians. Where n <= D,
    x^T M x is n - 1 times the diagonal of (L2^T S1 L2)^(1/2), a matrix of n rows.
    """
    count, dim = features.shape
    overlap = real_factor.T @ factor
    if count <= dim:
        values, vectors = np.linalg.eigh(overlap.T @ overlap)
        mapped = (count - 1) * (np.square(vectors) @ np.sqrt(np.maximum(values, 0)))
    else:
        values, vectors = np.linalg.eigh(overlap @ overlap.T)
        kept = values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps
        half = real_factor @ (vectors[:, kept] / np.sqrt(np.sqrt(values[kept])))
        mapped = np.concatenate([np.square(tile @ half).sum(axis=1) for tile in _centred_tiles(features, mean)])
    plain = [
        np.stack([tile @ (mean - real_mean), np.square(tile).sum(axis=1)]) for tile in _centred_tiles(features, mean)
    ]
    along, squares = np.concatenate(plain, axis=1)
    return 2 * along + (squares - mapped) * (count / (count - 1))


def _centred_tiles(features: Array, mean: Float64) -> Iterator[Float64]:
    for start in range(0, len(features), _helpers.TILE):
        yield features[start : start + _helpers.TILE] - mean


METRIC = Metric(
    name="frechet_distance",
    layers=("features",),
    kinds=lambda extractor: _kinds(extractor.name, extractor.is_inception),
    compute=compute,
)
