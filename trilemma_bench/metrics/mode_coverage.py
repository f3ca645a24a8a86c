"""Mode coverage where the modes are known: equal Gaussians on a grid, such as 25-Gaussians.

A sample belongs to its nearest centre, and is of high quality within `radius` standard deviations of it. Modes are
captured by one such sample, and held where `share` of a fair share of the samples are of high quality there. The
histogram of nearest centres, whatever the quality, is set against equal weights; `_modes` has the formulas.

**Finite samples.** With N samples of the very distribution neither KL nor total variation is 0: they are 0.0012 and
0.020 on average for K = 25 and N = 10,000.

**Spread ratio.** The standard deviation of the high-quality samples about the mean of their mode, over that of a real
mode cut at the same radius, as the mean over modes with two such samples at least. Under 1 a sampler is too sure of
itself; a high-quality fraction above that of real samples, 1 - exp(-radius^2 / 2) in the plane, says the same: both
are the better the nearer they are to what real samples have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammainc

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Reference, Shape
from trilemma_bench.metrics import _helpers, _modes
from trilemma_bench.record import Score, ScoreKind

MAX_MODES = 2**20

KINDS = (
    ScoreKind(name="high_quality", axis="quality", higher_is_better=None, label="high quality"),
    ScoreKind(name="mode_spread", axis="quality", higher_is_better=None, label="spread ratio", target=1.0),
    _modes.CAPTURED,
    _modes.HELD,
    _modes.KL,
    _modes.TV,
)


@dataclass(frozen=True)
class Counts:
    """Sums over samples by group and mode, from which every score follows: all [G, K] or, `square`, [G, K].

    Attributes:
        nearest: Samples whose nearest centre this is.
        good: Those of high quality.
        total: float64 [G, K, D], sums of the offsets of the latter from their centre.
        square: Sums of the squared lengths of these offsets.
    """

    nearest: _helpers.Int64
    good: _helpers.Int64
    total: _helpers.Float64
    square: _helpers.Float64

    def without(self, group: int) -> Counts:
        """The same sums without one group, as a single group."""
        fields = (self.nearest, self.good, self.total, self.square)
        return Counts(*(field.sum(0, keepdims=True) - field[[group]] for field in fields))

    def joined(self) -> Counts:
        """The sums over all groups, as a single group."""
        return Counts(*(field.sum(0, keepdims=True) for field in (self.nearest, self.good, self.total, self.square)))


def centres(grid: str, dimensions: int) -> _helpers.Float64:
    """The points of `grid` (numbers parted by spaces) in each of `dimensions`: float64 [K, dimensions].

    Raises:
        ProtocolError: Not numbers, a number twice, or more than `MAX_MODES` modes.
    """
    try:
        axis = [float(part) for part in grid.split()]
    except ValueError as error:
        raise ProtocolError(f"grid {grid!r}: expected numbers parted by spaces, such as '-1 0 1'.") from error
    if not axis or len(set(axis)) != len(axis) or not np.isfinite(axis).all():
        raise ProtocolError(f"grid {grid!r}: expected different numbers, such as '-1 0 1'.")
    if len(axis) ** dimensions > MAX_MODES:
        raise ProtocolError(
            f"a grid of {len(axis)} numbers in {dimensions} dimensions has over {MAX_MODES} modes. "
            "Are these the features of points?"
        )
    return np.array(list(itertools.product(axis, repeat=dimensions)))


def compute(
    *,
    real: Reference,
    generated: Mapping[str, Array],
    rng: np.random.Generator,
    grid: str = "-4 -2 0 2 4",
    sigma: float = 0.05,
    radius: float = 3.0,
    share: float = 0.2,
) -> dict[str, Score]:
    """The scores of `KINDS`; `sigma` is a mode's standard deviation, in the units of the points.

    Raises:
        ProtocolError: A parameter outside its range, features that are not finite, or not as wide as the reference's.
    """
    if not (sigma > 0 and radius > 0 and 0 < share <= 1):
        raise ProtocolError(
            f"sigma = {sigma}, radius = {radius}, share = {share}: sigma and radius must be over 0, share in (0, 1]."
        )
    _helpers.extractor_of(real)
    samples = _helpers.check_features(generated["features"], what="generated features")
    _helpers.check_same_width(real.features, samples)
    dimensions = samples.shape[1]
    modes = centres(grid, dimensions)
    labels = stats.group_labels(len(samples), groups=_helpers.GROUPS, rng=rng)
    counts = count(samples, modes, labels, radius=radius * sigma)
    deviation = sigma * truncated_deviation(radius, dimensions)
    joined = counts.joined()
    found = summary(joined, deviation=deviation, share=share)
    groups = len(counts.nearest)
    replicates = [summary(counts.without(group), deviation=deviation, share=share) for group in range(groups)]
    bounds = {**_modes.bounds(len(modes)), "mode_spread": (0, None)}
    scores = {"high_quality": _fraction(int(counts.good.sum()), len(samples))}
    for name, value in found.items():
        if np.isnan(value):
            scores[name] = Score.failed("no mode has two samples of high quality")
        else:
            scores[name] = _modes.jackknifed(value, [each[name] for each in replicates], bounds[name], len(samples))
    name = _modes.CAPTURED.name
    scores[name] = _modes.captured(scores[name], joined.good[0], joined.nearest[0])
    return {kind.name: scores[kind.name] for kind in KINDS}


def count(samples: Array, modes: _helpers.Float64, labels: _helpers.Int64, *, radius: float) -> Counts:
    """Sums over samples [N, D] by group (`labels` [N]) and nearest of the modes [K, D]; the ball is closed.

    The axes of a grid are independent: the nearest centre is the nearest number in each dimension.
    """
    axis = np.unique(modes[:, 0])
    points = samples.astype(np.float64)
    between = (axis[1:] + axis[:-1]) / 2
    steps = np.searchsorted(between, points)
    offset = points - axis[steps]
    # `modes` come in the order of itertools.product over the axis as it was given.
    order = {value: index for index, value in enumerate(dict.fromkeys(modes[:, -1]))}
    place = np.array([order[value] for value in axis])[steps]
    mode = place @ (len(axis) ** np.arange(points.shape[1])[::-1])
    square = np.square(offset).sum(1)
    good = square <= radius**2
    shape = (int(labels.max()) + 1, len(modes))
    cell = labels * len(modes) + mode

    def sums(weights: _helpers.Float64) -> _helpers.Float64:
        return np.bincount(cell, weights, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

    total = np.stack([sums(np.where(good, column, 0.0)) for column in offset.T], 2)
    return Counts(
        nearest=sums(np.ones(len(cell))).astype(np.int64),
        good=sums(good.astype(np.float64)).astype(np.int64),
        total=total,
        square=sums(np.where(good, square, 0.0)),
    )


def summary(counts: Counts, *, deviation: float, share: float) -> dict[str, float]:
    """The scores but the high-quality fraction from the sums of one group; `deviation` is a real mode's."""
    nearest, good = counts.nearest[0], counts.good[0]
    several = good >= 2
    n = good[several]
    variance = (counts.square[0][several] - np.square(counts.total[0][several]).sum(1) / n) / (n - 1)
    spread = np.sqrt(np.maximum(variance, 0) / counts.total.shape[2]) / deviation
    return {
        "modes_captured": float((good > 0).sum()),
        "modes_held": _modes.held(good, int(nearest.sum()), share=share),
        "mode_kl": _modes.kl(nearest),
        "mode_tv": _modes.total_variation(nearest),
        "mode_spread": float(spread.mean()) if len(spread) else np.nan,
    }


def truncated_deviation(radius: float, dimensions: int) -> float:
    """Standard deviation, in each direction, of a standard normal sample within `radius` of its centre.

    E[|x|^2; |x| <= r] / D = P(chi^2 with D + 2 degrees <= r^2).
    """
    half = radius**2 / 2
    return float(np.sqrt(gammainc(dimensions / 2 + 1, half) / gammainc(dimensions / 2, half)))


def targets(shape: Shape, *, radius: float, **_: Any) -> dict[str, float]:
    """The fraction of real samples that are of high quality: P(chi^2 with D degrees <= radius^2)."""
    return {"high_quality": float(gammainc(math.prod(shape) / 2, radius**2 / 2))}


def _fraction(good: int, count: int) -> Score:
    return Score(
        value=good / count, stderr=stats.proportion_stderr(good, count), interval=stats.wilson_interval(good, count),
        uncertainty="Wilson interval over the generated samples", n=count, bounds=(0, 1),
    )  # fmt: skip


METRIC = Metric(
    name="mode_coverage",
    layers=("features",),
    kinds=lambda extractor: KINDS,
    compute=compute,
    targets=targets,
    defaults={"grid": "-4 -2 0 2 4", "sigma": 0.05, "radius": 3.0, "share": 0.2},
)
