"""The algebra of the Fréchet distance, which its estimate at N samples and its extrapolation share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import scipy.linalg

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Moments
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score

Float64 = _helpers.Float64

SLACK = 1e-6
"""Rounding that a covariance may bring along, as a share of its largest number; float32 is well within."""


def checked_moments(found: Moments, what: str) -> Moments:
    """The same in float64; raises ProtocolError unless they are a mean [D] and a symmetric matrix [D, D], finite."""
    if found.mean.ndim != 1 or found.cov.shape != found.mean.shape * 2:
        raise ProtocolError(
            f"{what} must be a mean [D] and a covariance [D, D]; got {found.mean.shape} and {found.cov.shape}. "
            "Make them with moments(features)."
        )
    if not (np.isfinite(found.mean).all() and np.isfinite(found.cov).all()):
        raise ProtocolError(f"{what} hold NaN or Inf. Make them again from features that are finite.")
    mean, cov = found.mean.astype(np.float64), found.cov.astype(np.float64)
    apart, largest = float(np.abs(cov - cov.T).max(initial=0)), float(np.abs(cov).max(initial=0))
    if apart > SLACK * largest:
        raise ProtocolError(
            f"{what}: the covariance is not symmetric: two halves differ by {apart:.3g}, its largest number is "
            f"{largest:.3g}. Make them with moments(features)."
        )
    return Moments(found.n, mean, cov)


def checked(real: Moments, generated: Array) -> Array:
    """The generated features, checked for themselves and for the width of the real moments."""
    checked_moments(real, "real moments")
    features = _helpers.check_features(
        generated, what="generated features", minimum=2, why="a covariance needs two samples"
    )
    _helpers.check_same_width(real.mean[None], features)
    return features


def factor(cov: Float64) -> Float64:
    """L with cov = L L^T, float64 [D, rank]."""
    values, vectors = np.linalg.eigh(cov.astype(np.float64, copy=False))
    if values[0] < -SLACK * values[-1]:
        raise ProtocolError(
            f"a covariance has the eigenvalue {values[0]:.3g} beside {values[-1]:.3g}; none is below 0. "
            "Make it with moments(features)."
        )
    # Below this an eigenvalue is rounding, and its root would be 1e-8 of the largest instead of nothing.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def mean_and_factor(features: Array) -> tuple[Float64, Float64]:
    """Mean [D] of the features and L [D, r] with L L^T their covariance, r <= min(N, D)."""
    if len(features) > features.shape[1]:
        found = stats.moments(features)
        return found.mean, factor(found.cov)
    mean = features.mean(axis=0, dtype=np.float64)
    return mean, (features - mean).T / math.sqrt(len(features) - 1)


def distance(real: Moments, real_factor: Float64, mean: Float64, factor: Float64) -> float:
    """The Fréchet distance from means and factors of covariances."""
    shift = float(np.square(real.mean - mean).sum())
    overlap = float(scipy.linalg.svdvals(real_factor.T @ factor).sum()) if real_factor.size and factor.size else 0.0
    return max(0.0, shift + float(np.square(real_factor).sum() + np.square(factor).sum()) - 2 * overlap)


def influences(real_mean: Float64, real_factor: Float64, mean: Float64, factor: Float64, features: Array) -> Float64:
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


NAMES = {
    "inception_v3_tf_spatial": ("sfid", "sFID"),
    "inception_v3_tf_clean": ("fid_clean", "FID (clean)"),
    "inception_v3_tf_legacy_pytorch": ("fid_legacy_pytorch", "FID (legacy PyTorch)"),
    "inception_v3_tf_jpeg75": ("fid_jpeg75", "FID (JPEG 75)"),
    "inception_v3_tf_clean_jpeg75": ("fid_clean_jpeg75", "FID (clean, JPEG 75)"),
    "inception_v3_tf_legacy_pytorch_jpeg75": ("fid_legacy_pytorch_jpeg75", "FID (legacy PyTorch, JPEG 75)"),
}
"""Distances that the field calls by a name of their own; none of them is plain FID."""


def name_of(extractor: str, is_inception: bool) -> tuple[str, str]:
    """Name and label of the distance on an extractor's features."""
    return ("fid", "FID") if is_inception else NAMES.get(extractor, (f"fd_{extractor}", f"FD ({extractor})"))


def scored(value: float, influences: Float64, *, fixed: str, bounds: stats.Bounds = (None, None)) -> Score:
    """The score of a distance with the infinitesimal jackknife's error from each sample's influence, float64 [N].

    Args:
        value: The distance.
        influences: See `influences`.
        fixed: What the error takes for fixed, for the record.
        bounds: Of the interval.
    """
    stderr = stats.mean_stderr(influences)
    return _helpers.estimate(
        value,
        stderr,
        bounds=bounds,
        uncertainty=f"infinitesimal jackknife over generated samples; {fixed}",
        n=len(influences),
        replicates=stats.leave_out(value, influences, groups=_helpers.GROUPS),
    )
