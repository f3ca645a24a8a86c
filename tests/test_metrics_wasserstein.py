"""2-Wasserstein distance: closed forms, and the assignment problem as an oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from metric_cases import reference
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from trilemma_bench.errors import ProtocolError
from trilemma_bench.metrics.wasserstein import METRIC, wasserstein2


def points(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2))


def test_a_shift_is_as_far_as_it_is_long() -> None:
    x = points(80, 0)
    assert wasserstein2(real=x, generated=x[::-1] + np.array([3, 4])) == pytest.approx(5)
    # The cost comes from |x|^2 + |y|^2 - 2 x.y, whose rounding a square root makes larger.
    assert wasserstein2(real=x, generated=x[::-1]) == pytest.approx(0, abs=1e-6)


def test_on_a_line_it_is_that_of_the_sorted_samples() -> None:
    x, y = points(60, 1)[:, :1], 2 * points(60, 2)[:, :1] + 1
    assert wasserstein2(real=x, generated=y) == pytest.approx(np.sqrt(np.square(np.sort(x, 0) - np.sort(y, 0)).mean()))


def test_of_equal_numbers_it_is_the_best_assignment() -> None:
    x, y = points(70, 3), points(70, 4) + 0.3
    cost = cdist(x, y, "sqeuclidean")
    assert wasserstein2(real=x, generated=y) == pytest.approx(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def test_samples_counted_twice_change_nothing() -> None:
    x, y = points(20, 5), points(30, 6)
    assert wasserstein2(real=x, generated=np.tile(y, (2, 1))) == pytest.approx(wasserstein2(real=x, generated=y))


def test_the_score_is_the_mean_over_disjoint_pairs_and_as_small_as_they_must_be() -> None:
    real = replace(reference(), features=points(500, 7))
    generated = {"features": points(103, 8) + np.array([1, 0])}
    found = METRIC.compute(real=real, generated=generated, rng=np.random.default_rng(0), subsample=1000, repeats=5)
    (score,) = found.values()
    assert score.value is not None and score.interval is not None
    # Two Gaussians a unit apart, and the distance of finite samples on top of it.
    assert 0.9 < score.value < 1.6
    assert score.interval[0] < score.value < score.interval[1]
    smaller = METRIC.compute(real=real, generated=generated, rng=np.random.default_rng(0), subsample=20, repeats=5)
    assert smaller == found


@pytest.mark.parametrize(("count", "params"), [(3, {}), (50, {"repeats": 1}), (50, {"subsample": 0})])
def test_too_few_samples_and_parameters_out_of_range_are_refused(count: int, params: dict[str, int]) -> None:
    real = replace(reference(), features=points(100, 9))
    with pytest.raises(ProtocolError):
        METRIC.compute(real=real, generated={"features": points(count, 0)}, rng=np.random.default_rng(0), **params)
