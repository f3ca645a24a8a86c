"""Moments, standard errors and intervals: pure functions, no random state of their own.

All intervals are 95 %. None of them knows of a bias that a metric has at a finite number of samples; they say how
far the same experiment with other samples, of the same number, would have come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from trilemma_bench.kinds import Array, Moments

Float64 = npt.NDArray[np.float64]

_UPPER = 0.975
_BLOCK = 2000


def group_labels(count: int, *, groups: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A group for each of `count` samples, at random and as equal in size as can be.

    Args:
        count: Number of samples.
        groups: Number of groups; where it exceeds `count`, each sample is a group of its own.
        rng: Source of the permutation.

    Returns:
        int64 [count], values 0..min(groups, count) - 1.
    """
    return rng.permutation(count).astype(np.int64) % min(groups, count)


def jackknife_stderr(replicates: npt.ArrayLike) -> float:
    """Standard error by the delete-a-group jackknife (Kott 2001; Efron and Tibshirani 1993, ch. 11).

    The groups must be of about equal size. On average it is too large rather than too small (Efron and Stein
    1981), and more so the less linear the estimate is in its samples.

    Args:
        replicates: float [G], the estimate without group g, for each g; G >= 2.

    Returns:
        sqrt((G - 1) / G * sum of squared deviations from the replicates' mean).
    """
    values = np.asarray(replicates, dtype=np.float64)
    groups = len(values)
    return math.sqrt((groups - 1) / groups * float(np.square(values - values.mean()).sum()))


def mean_stderr(values: npt.ArrayLike) -> float:
    """Standard error of the mean of independent values, float [N] with N >= 2: std (ddof 1) / sqrt(N)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1)) / math.sqrt(len(array))


def symmetric_interval(
    value: float,
    stderr: float,
    *,
    dof: int | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """value -+ quantile * stderr, cut off at `bounds`.

    Args:
        value: The estimate.
        stderr: Its standard error, >= 0.
        dof: Degrees of freedom behind `stderr` for Student's t (groups - 1); None for the normal distribution.
        bounds: Range of values that the score can take at all.

    Returns:
        (low, high), bounds[0] <= low <= high <= bounds[1] wherever `value` is within the bounds.
    """
    quantile = float(ndtri(_UPPER)) if dof is None else float(stdtrit(dof, _UPPER))
    low, high = bounds
    return max(low, value - quantile * stderr), min(high, value + quantile * stderr)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Wilson's score interval for a fraction of independent trials (Wilson 1927).

    Unlike the normal interval it stays within [0, 1] and has a width where all trials agree.

    Args:
        successes: 0..count.
        count: Number of trials, >= 1.

    Returns:
        (low, high) within [0, 1], holding successes / count.
    """
    z2 = float(ndtri(_UPPER)) ** 2
    fraction = successes / count
    centre = (fraction + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (fraction * (1 - fraction) + z2 / (4 * count)) / count) / (1 + z2 / count)
    # Rounding must not push the fraction itself out of its interval at 0 and 1.
    return max(0.0, min(fraction, centre - half)), min(1.0, max(fraction, centre + half))


def proportion_stderr(successes: int, count: int) -> float:
    """Standard error of a fraction of independent trials: sqrt(p (1 - p) / count)."""
    fraction = successes / count
    return math.sqrt(fraction * (1 - fraction) / count)


def moments(features: Array) -> Moments:
    """Count, mean and covariance (over n - 1) of finite features, float [N, D] with N >= 2, in float64.

    In two passes over blocks: no float64 copy of the whole, and nothing cancels however far from the origin they lie.
    """
    total = np.zeros(features.shape[1])
    for _, block in blocks(features):
        total += block.sum(0)
    mean = total / len(features)
    products = np.zeros((features.shape[1],) * 2)
    for _, block in blocks(features):
        block -= mean
        products += block.T @ block
    upper = np.triu(products / (len(features) - 1))
    return Moments(n=len(features), mean=mean, cov=upper + np.triu(upper, 1).T)


def blocks(features: Array) -> Iterator[tuple[int, Float64]]:
    """(first row, rows in float64) over features of any size, which may be mapped from a file."""
    for start in range(0, len(features), _BLOCK):
        yield start, features[start : start + _BLOCK].astype(np.float64)
