"""Density and coverage (Naeem et al. 2020, arXiv:2002.09797, eq. 2-3; k = 5 there).

Both look at balls around the real features only, so that an outlier among the generated ones spans no large ball.
Density counts the real balls that a generated feature lies in, over k; coverage is the fraction of real balls that
hold a generated feature at all. Balls are open (<), as in the authors' package prdc; those of improved precision
and recall are closed.

With M generated samples of the very distribution of the N real ones, density is 1 on average whatever the counts,
whereas coverage depends on them: 1 - (N / (N + M))^k for many, so 1 - 2^-k for M = N, and 0.6 for k = 5 and
1,000 against 5,000. That is why the counts are part of the score's key.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trilemma_bench import stats
from trilemma_bench.kinds import Array, Metric, Reference
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score, ScoreKind


def density(*, real: Array, generated: Array, k: int = 5) -> float:
    """Mean number of real balls that a generated feature lies in, over k.

    Args:
        real: Features, float [N, D], N > k.
        generated: Features, float [M, D]; M may differ from N.
        k: The neighbour that sets each ball's radius, the point itself not counted.

    Returns:
        Value >= 0, which can exceed 1; higher is better.

    Raises:
        ProtocolError: N <= k, no generated features, D differs, or a feature is not finite.
    """
    real, generated = _checked(real, generated, k)
    return float(_balls_around(generated, real, _helpers.kth_radii(real, k=k)).mean()) / k


def coverage(*, real: Array, generated: Array, k: int = 5) -> float:
    """Fraction of real balls with a generated feature inside, in [0, 1]; arguments and errors as for `density`."""
    real, generated = _checked(real, generated, k)
    closest = _helpers.nearest(real, generated, slack=_helpers.OPEN)[:, 0, 0]
    return float((closest < _helpers.kth_radii(real, k=k)).mean())


def compute(
    *, real: Reference, generated: Mapping[str, Array], rng: np.random.Generator, k: int = 5
) -> dict[str, Score]:
    """Density with its standard error as a mean, coverage with one from a jackknife; the reference is fixed.

    Raises:
        ProtocolError: As for `density`.
    """
    reference, samples = _checked(real.features, generated["features"], k)
    density_kind, coverage_kind = _kinds(*_helpers.extractor_of(real))
    radii = _helpers.kth_radii(reference, k=k)
    return {
        density_kind.name: _density_score(_balls_around(samples, reference, radii), k),
        coverage_kind.name: _coverage_score(reference, samples, radii, rng),
    }


def _kinds(extractor: str, is_inception: bool) -> tuple[ScoreKind, ScoreKind]:
    return (
        ScoreKind(name=f"density_{extractor}", axis="quality", higher_is_better=True, label="density"),
        ScoreKind(name=f"coverage_{extractor}", axis="coverage", higher_is_better=True, label="coverage"),
    )


def _checked(real: Array, generated: Array, k: int) -> tuple[Array, Array]:
    _helpers.check_k(k)
    why = f"the ball to neighbour k = {k} needs k + 1 samples"
    real = _helpers.check_features(real, what="real features", minimum=k + 1, why=why)
    generated = _helpers.check_features(generated, what="generated features")
    _helpers.check_same_width(real, generated)
    return real, generated


def _balls_around(points: Array, centres: Array, radii: _helpers.Float64) -> _helpers.Int64:
    """How many open balls each point lies in, int64 [len(points)]; radii are squared."""
    counts = np.zeros(len(points), dtype=np.int64)
    for rows, columns, distances in _helpers.tiles(points, centres, slack=_helpers.OPEN):
        counts[rows] += (distances < radii[columns]).sum(axis=1)
    return counts


def _density_score(counts: _helpers.Int64, k: int) -> Score:
    value = float(counts.mean()) / k
    if len(counts) < 2:
        return Score(value=value, uncertainty="none: a single generated sample", n=len(counts))
    stderr = stats.mean_stderr(counts / k)
    return _helpers.estimate(
        value,
        stderr,
        bounds=(0, None),
        uncertainty="standard error of the mean over generated samples; the reference is fixed",
        n=len(counts),
        replicates=stats.leave_out(value, counts / k, groups=_helpers.GROUPS),
    )


def _coverage_score(real: Array, generated: Array, radii: _helpers.Float64, rng: np.random.Generator) -> Score:
    labels = stats.group_labels(len(generated), groups=_helpers.GROUPS, rng=rng)
    closest = _helpers.nearest(real, generated, labels=labels, slack=_helpers.OPEN)[:, :, 0]
    hit = closest < radii[:, None]
    value = float(hit.any(axis=1).mean())
    if hit.shape[1] < 2:
        return Score(value=value, uncertainty="none: a single generated sample", n=len(labels))
    # A ball is still hit without group g if any of the other groups hits it.
    without = (hit.sum(axis=1)[:, None] - hit > 0).mean(axis=0)
    return _helpers.share_covered(int(hit.any(axis=1).sum()), len(hit), without, n=len(labels))


METRIC = Metric(
    name="density_coverage",
    layers=("features",),
    kinds=lambda extractor: _kinds(extractor.name, extractor.is_inception),
    compute=compute,
    defaults={"k": 5},
)
