"""Moments, standard errors and intervals: pure functions, no random state of their own.

All intervals are 95 %. None of them knows of a bias that a metric has at a finite number of samples; they say how
far the same experiment with other samples, of the same number, would have come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from trilemma_bench.kinds import Array, Moments

Float64 = npt.NDArray[np.float64]

Bounds = tuple[float | None, float | None]
"""The least and the greatest value that a score can take; None: no such limit."""

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


def leave_out(value: float, influences: npt.ArrayLike, *, groups: int) -> tuple[float, ...] | None:
    """The estimate without each group of samples, to first order.

    Args:
        value: The estimate over all samples.
        influences: float [N], influence of each sample but for a constant; of a mean, the values themselves.
        groups: Number of groups; sample i is in group i mod `groups`, so that equal seeds share one.

    Returns:
        `groups` replicates; None where there are fewer samples than groups.
    """
    array = np.asarray(influences, dtype=np.float64)
    if len(array) < groups:
        return None
    sums = np.bincount(np.arange(len(array)) % groups, weights=array, minlength=groups)
    counts = np.bincount(np.arange(len(array)) % groups, minlength=groups)
    without = (array.sum() - sums) / (len(array) - counts)
    return tuple((value + without - array.mean()).tolist())


def mean_stderr(values: npt.ArrayLike) -> float:
    """Standard error of the mean of independent values, float [N] with N >= 2: std (ddof 1) / sqrt(N)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1)) / math.sqrt(len(array))


def symmetric_interval(
    value: float,
    stderr: float,
    *,
    dof: float | None = None,
    bounds: Bounds = (None, None),
) -> tuple[float, float]:
    """value -+ quantile * stderr, cut off at `bounds`; of the nearest bound where rounding left `value` beyond it.

    Args:
        value: The estimate.
        stderr: Its standard error, >= 0.
        dof: Degrees of freedom behind `stderr` for Student's t (groups - 1); None for the normal distribution.
        bounds: Range of values that the score can take at all.

    Returns:
        (low, high), bounds[0] <= low <= high <= bounds[1].
    """
    quantile = float(ndtri(_UPPER)) if dof is None else float(stdtrit(dof, _UPPER))
    low = -math.inf if bounds[0] is None else bounds[0]
    high = math.inf if bounds[1] is None else bounds[1]
    value = min(max(value, low), high)
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


# --- several seeds, two models --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled:
    """A score over several seeds.

    Attributes:
        value: Mean over the seeds.
        stderr: Standard error of that mean; None where there is only one seed and it has none.
        interval: 95 % interval; None with `stderr`.
        between: Standard deviation between the seeds (ddof 1).
        within: Root mean square of the seeds' own standard errors, which say how far other samples of the same
            number move the score; None where they have none.
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    between: float
    within: float | None


def pool(values: npt.ArrayLike, stderrs: npt.ArrayLike | None, *, bounds: Bounds) -> Pooled:
    """Pool the scores of S >= 2 seeds.

    Other seeds are other samples, so `between` and `within` estimate one variance as long as the seed moves nothing
    beside the samples. The interval is the wider of Student's from `between`, with S - 1 degrees of freedom, and the
    normal one from `within`: with few seeds `between` may be small by chance, and where a seed moves more than its
    samples `within` is too small. So it holds at least 95 %, and more with few seeds.
    """
    array = np.asarray(values, dtype=np.float64)
    between = float(array.std(ddof=1))
    within = None if stderrs is None else math.sqrt(float(np.square(np.asarray(stderrs, dtype=np.float64)).mean()))
    root, value = math.sqrt(len(array)), float(array.mean())
    intervals = [symmetric_interval(value, between / root, dof=len(array) - 1, bounds=bounds)]
    if within is not None:
        intervals.append(symmetric_interval(value, within / root, bounds=bounds))
    interval = min(low for low, _ in intervals), max(high for _, high in intervals)
    stderr = max(between, within or 0.0) / root
    return Pooled(value, stderr, interval, between, within)


@dataclass(frozen=True)
class Difference:
    """a - b with its standard error, 95 % interval and two-sided p for no difference."""

    value: float
    stderr: float
    interval: tuple[float, float]
    p: float
    paired: bool


@dataclass(frozen=True)
class Estimate:
    """What a comparison needs of a score: value, standard error, and replicates where it has them.

    `dof` are the degrees of freedom behind `stderr`; None where they are so many that it counts as known.
    """

    value: float
    stderr: float
    replicates: tuple[float, ...] | None = None
    dof: float | None = None


def difference(a: Estimate, b: Estimate) -> Difference:
    """How two scores of a column differ.

    Paired where both have replicates over the same groups of samples: what moves both alike, such as a common start
    of two samplers' chains, then cancels. Else as of independent samples, by Welch's t where a standard error is of a
    few values alone.
    """
    value = a.value - b.value
    paired = a.replicates is not None and b.replicates is not None and len(a.replicates) == len(b.replicates)
    dof: float | None
    if paired:
        replicates = np.subtract(a.replicates or (), b.replicates or ())
        stderr, dof = jackknife_stderr(replicates), len(replicates) - 1
    else:
        stderr, dof = math.hypot(a.stderr, b.stderr), welch_dof(a, b)
    if stderr == 0:
        p = 1.0 if value == 0 else 0.0
    else:
        tail = -abs(value) / stderr
        p = 2 * float(ndtr(tail) if dof is None else stdtr(dof, tail))
    return Difference(value, stderr, symmetric_interval(value, stderr, dof=dof), p, paired)


def welch_dof(a: Estimate, b: Estimate) -> float | None:
    """Degrees of freedom of the difference of two independent estimates (Welch 1947); None as in `Estimate`."""
    found = [(each.stderr, each.dof) for each in (a, b) if each.dof is not None and each.stderr > 0]
    if not found:
        return None
    total = math.hypot(a.stderr, b.stderr)
    return 1 / sum((stderr / total) ** 4 / dof for stderr, dof in found)


def holm(ps: npt.ArrayLike) -> Float64:
    """p values corrected for their number by Holm's step-down (Holm 1979): float64, in the given order, at most 1."""
    array = np.asarray(ps, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    stepped = np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1))
    corrected = np.empty(len(array))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def rank_ranges(losses: Sequence[Estimate], *, level: float = 0.05) -> list[tuple[int, int]]:
    """(best, worst) rank that each may have, lower is better, by Holm-corrected comparisons of all pairs at `level`.

    Of n estimates, one that is told apart from b better and w worse ones has ranks 1 + b to n - w. Equal ranges that
    overlap cannot be told apart.
    """
    count = len(losses)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    found = [difference(losses[i], losses[j]) for i, j in pairs]
    better, worse = [0] * count, [0] * count
    for (i, j), each, p in zip(pairs, found, holm([each.p for each in found]), strict=True):
        if p < level:
            first, second = (i, j) if each.value < 0 else (j, i)
            worse[first] += 1
            better[second] += 1
    return [(1 + better[i], count - worse[i]) for i in range(count)]


# --- differences ------------------------------------------------------------------------------------------


def new_draws_p_value(expected: npt.ArrayLike, found: npt.ArrayLike, *, stderr: float = 0.0) -> float:
    """Two-sided p-value that new values come from where the expected ones did (a prediction interval's test).

    t = (mean(found) - mean(expected)) / (s sqrt(1 / k + 1 / m)) by Student's t with k - 1 degrees of freedom, where s
    is the spread of the expected values alone: a fault that changes the new spread must not widen its own margin.

    Args:
        expected: float [k], k >= 2.
        found: float [m], m >= 1.
        stderr: Standard error that a value is known to have by itself; s is not less, however close a few values lie.

    Returns:
        Value in [0, 1]. Without any spread: 1 where the means are equal, else 0.
    """
    old, new = np.asarray(expected, dtype=np.float64), np.asarray(found, dtype=np.float64)
    difference = float(new.mean() - old.mean())
    error = max(float(old.std(ddof=1)), stderr) * math.sqrt(1 / len(old) + 1 / len(new))
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stdtr(len(old) - 1, -abs(difference) / error))
