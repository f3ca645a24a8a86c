"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1-2; k = 3 there).

Each sample spans a ball to its k-th nearest neighbour of its own set. Precision is the fraction of generated
features inside any real ball, recall the fraction of real features inside any generated ball. Balls are closed
(<=), as in the paper; the prdc package has them open (<).

**Unequal numbers** are welcome; each side uses all that it has. As a set grows its balls grow in number and shrink,
so values compare only between equal counts on both sides: the counts are part of the score's key.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trilemma_bench import stats
from trilemma_bench.kinds import Array, Metric, Reference
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score, ScoreKind


def precision(*, real: Array, generated: Array, k: int = 3) -> float:
    """Fraction of generated features inside the real manifold.

    Args:
        real: Features, float [N, D], N > k.
        generated: Features, float [M, D]; M may differ from N.
        k: The neighbour that sets each ball's radius, the point itself not counted.

    Returns:
        Value in [0, 1]; higher is better.

    Raises:
        ProtocolError: N <= k or M <= k, D differs, or a feature is not finite.
    """
    real, generated = _checked(real, generated, k)
    return float(_inside(generated, real, k).mean())


def recall(*, real: Array, generated: Array, k: int = 3) -> float:
    """Fraction of real features inside the generated manifold; arguments and errors as for `precision`."""
    real, generated = _checked(real, generated, k)
    return float(_inside(real, generated, k).mean())


def compute(
    *, real: Reference, generated: Mapping[str, Array], rng: np.random.Generator, k: int = 3
) -> dict[str, Score]:
    """Precision with a binomial interval, recall with one from a delete-a-group jackknife; the reference is fixed.

    Raises:
        ProtocolError: As for `precision`.
    """
    reference, samples = _checked(real.features, generated["features"], k)
    precision_kind, recall_kind = _kinds(*_helpers.extractor_of(real))
    return {
        precision_kind.name: _helpers.fraction(_inside(samples, reference, k), fixed="the reference is fixed"),
        recall_kind.name: _recall_score(reference, samples, k, rng),
    }


def _kinds(extractor: str, is_inception: bool) -> tuple[ScoreKind, ScoreKind]:
    def kind(name: str, axis: str) -> ScoreKind:
        return ScoreKind.model_validate(
            {"name": f"{name}_{extractor}", "axis": axis, "higher_is_better": True, "label": name}
        )

    return kind("precision", "quality"), kind("recall", "coverage")


def _checked(real: Array, generated: Array, k: int) -> tuple[Array, Array]:
    _helpers.check_k(k)
    return _helpers.check_pair(real, generated, minimum=k + 1, why=f"the ball to neighbour k = {k} needs k + 1 samples")


def _inside(points: Array, centres: Array, k: int) -> _helpers.Bool:
    """Whether each point lies in a closed ball of the centres' manifold, bool [len(points)]."""
    return _helpers.covered(points, centres, _helpers.kth_radii(centres, k=k)[:, None])[:, 0]


def _recall_score(real: Array, generated: Array, k: int, rng: np.random.Generator) -> Score:
    labels = stats.group_labels(len(generated), groups=_helpers.GROUPS, rng=rng)
    near = _helpers.nearest(generated, generated, k=k, labels=labels, itself=True)
    inside = _helpers.covered(real, generated, _radii_without_each_group(near, labels))
    values = inside.mean(axis=0)
    if not _jackknife_is_possible(labels, k):
        return Score(
            value=float(values[0]),
            uncertainty="none: too few generated samples to leave any out",
            n=len(labels),
        )
    return _helpers.share_covered(int(inside[:, 0].sum()), len(inside), values[1:], n=len(labels))


def _jackknife_is_possible(labels: _helpers.Int64, k: int) -> bool:
    """Whether each set that lacks one group still has k + 1 samples."""
    return len(labels) - int(np.bincount(labels).max()) > k


def _radii_without_each_group(near: _helpers.Float64, labels: _helpers.Int64) -> _helpers.Float64:
    """Squared radii in the whole set and in each set that lacks one group.

    Args:
        near: float64 [M, G, k], from `_helpers.nearest` by group.
        labels: int64 [M].

    Returns:
        float64 [M, 1 + G]: column 0 with all samples, column 1 + g without group g, -inf for its own members.
    """
    count, groups, k = near.shape
    radii = np.empty((count, 1 + groups))
    radii[:, 0] = np.partition(near.reshape(count, -1), k - 1, axis=1)[:, k - 1]
    for group in range(groups):
        rest = np.delete(near, group, axis=1).reshape(count, -1)
        radii[:, 1 + group] = np.partition(rest, k - 1, axis=1)[:, k - 1]
    radii[np.arange(count), 1 + labels] = -np.inf
    return radii


METRIC = Metric(
    name="precision_recall",
    layers=("features",),
    kinds=lambda extractor: _kinds(extractor.name, extractor.is_inception),
    compute=compute,
    defaults={"k": 3},
)
