"""Exact 2-Wasserstein distance between subsamples, by optimal transport (Bonneel et al. 2011; the package POT).

W_2(real, generated) = sqrt(min over couplings of E|x - y|^2), in the units of the features. The network simplex is
exact, and cubic in the worst case: it runs on `subsample` samples of each side, `repeats` times on disjoint ones.

**Finite samples.** Two subsamples of one distribution are apart, too: the value of real samples is the floor, and
values compare between equal counts alone, which are part of the score's key.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Reference
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score, ScoreKind


def wasserstein2(*, real: Array, generated: Array) -> float:
    """The distance between all of these features, float [N, D] and [M, D], equally weighted each.

    Raises:
        ProtocolError: No features, D differs, or a feature is not finite.
    """
    # Imported late: it looks for every array library that is installed.
    import ot

    real, generated = _helpers.check_pair(real, generated, minimum=1, why="a coupling needs samples")
    cost = ot.dist(real.astype(np.float64), generated.astype(np.float64), metric="sqeuclidean")
    weights = [np.full(len(side), 1 / len(side)) for side in (real, generated)]
    # No limit of iterations: what it stops at would not be exact.
    square = float(ot.emd2(*weights, np.maximum(cost, 0), numItermax=10**9))
    return float(np.sqrt(max(square, 0.0)))


def compute(
    *,
    real: Reference,
    generated: Mapping[str, Array],
    rng: np.random.Generator,
    subsample: int = 1000,
    repeats: int = 5,
) -> dict[str, Score]:
    """Mean over `repeats` disjoint pairs of subsamples; fewer samples than they need make the subsamples smaller.

    Raises:
        ProtocolError: As for `wasserstein2`, fewer samples than `repeats`, or parameters under 1 and 2.
    """
    if subsample < 1 or repeats < 2:
        raise ProtocolError(f"subsample = {subsample}, repeats = {repeats}: at least 1 and 2 are needed.")
    name, _ = _helpers.extractor_of(real)
    reference, samples = _helpers.check_pair(
        real.features, generated["features"], minimum=repeats, why=f"{repeats} disjoint subsamples need a sample each"
    )
    size = min(subsample, len(reference) // repeats, len(samples) // repeats)
    rows = [rng.permutation(len(side))[: size * repeats].reshape(repeats, size) for side in (reference, samples)]
    values = [wasserstein2(real=reference[a], generated=samples[b]) for a, b in zip(*rows, strict=True)]
    value, stderr = float(np.mean(values)), stats.mean_stderr(values)
    score = _helpers.estimate(
        value,
        stderr,
        dof=repeats - 1,
        bounds=(0, None),
        uncertainty=f"t interval over {repeats} disjoint pairs of subsamples",
        n=len(samples),
    )
    return {kind.name: score for kind in _kinds(name)}


def _kinds(extractor: str) -> tuple[ScoreKind, ...]:
    return (ScoreKind(name=f"wasserstein_{extractor}", axis="quality", higher_is_better=False, label="W2"),)


METRIC = Metric(
    name="wasserstein",
    layers=("features",),
    kinds=lambda extractor: _kinds(extractor.name),
    compute=compute,
    defaults={"subsample": 1000, "repeats": 5},
)
