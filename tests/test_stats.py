"""Standard errors and intervals: closed forms, then how often they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from trilemma_bench import stats


def test_jackknife_of_a_mean_with_groups_of_one_is_the_standard_error_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=37)
    without = [np.delete(values, index).mean() for index in range(37)]
    assert stats.jackknife_stderr(without) == pytest.approx(stats.mean_stderr(values), rel=1e-12)


def test_jackknife_by_groups_finds_the_spread_of_a_correlation() -> None:
    rng = np.random.default_rng(1)

    def draw() -> np.ndarray:
        return rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=400)

    spread = np.std([np.corrcoef(draw().T)[0, 1] for _ in range(400)])
    found = []
    for _ in range(60):
        sample = draw()
        labels = stats.group_labels(400, groups=20, rng=rng)
        found.append(stats.jackknife_stderr([np.corrcoef(sample[labels != group].T)[0, 1] for group in range(20)]))
    assert np.mean(found) == pytest.approx(spread, rel=0.12)


def test_group_sizes_differ_by_one_at_most_and_depend_on_the_generator_alone() -> None:
    labels = stats.group_labels(103, groups=20, rng=np.random.default_rng(3))
    assert set(np.bincount(labels)) == {5, 6}
    assert np.array_equal(labels, stats.group_labels(103, groups=20, rng=np.random.default_rng(3)))


def test_fewer_samples_than_groups_are_groups_of_one() -> None:
    assert sorted(stats.group_labels(7, groups=20, rng=np.random.default_rng(0))) == list(range(7))


def test_symmetric_interval_is_1_96_standard_errors_and_wider_with_few_degrees_of_freedom() -> None:
    assert stats.symmetric_interval(2.0, 0.5) == pytest.approx((2 - 0.979982, 2 + 0.979982), abs=1e-6)
    # t_{0.975, 19} = 2.0930 (any table of Student's t).
    assert stats.symmetric_interval(0.0, 1.0, dof=19) == pytest.approx((-2.0930, 2.0930), abs=1e-4)


def test_symmetric_interval_stays_within_its_bounds() -> None:
    low, high = stats.symmetric_interval(0.9, 0.2, bounds=(0, 1))
    assert low == pytest.approx(0.508007, abs=1e-6)
    assert high == 1


def test_wilson_interval_of_the_textbook_case() -> None:
    # 8 of 10: Newcombe 1998's formula by hand gives 0.4902 to 0.9433.
    assert stats.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize("successes", [0, 50])
def test_wilson_interval_has_a_width_at_both_ends(successes: int) -> None:
    low, high = stats.wilson_interval(successes, 50)
    assert 0 <= low <= successes / 50 <= high <= 1
    assert high - low > 0.05


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.9])
def test_wilson_interval_holds_the_truth_in_19_of_20_cases(fraction: float) -> None:
    draws = np.random.default_rng(5).binomial(200, fraction, size=4000)
    intervals = [stats.wilson_interval(int(draw), 200) for draw in draws]
    assert np.mean([low <= fraction <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.03)


def test_proportion_stderr_is_the_root_of_p_q_over_n() -> None:
    assert stats.proportion_stderr(30, 100) == pytest.approx(math.sqrt(0.3 * 0.7 / 100))


def test_moments_far_from_the_origin_lose_nothing() -> None:
    features = np.random.default_rng(3).standard_normal((5001, 3)) * [1, 2, 3] + 1e6
    assert np.allclose(stats.moments(features).cov, np.cov(features - 1e6, rowvar=False), rtol=1e-8)


def test_moments_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(3).standard_normal((1000, 7)).astype(np.float32)
    whole = stats.moments(features)
    monkeypatch.setattr(stats, "_BLOCK", 64)
    blocks = stats.moments(features)
    assert np.allclose(whole.mean, blocks.mean, atol=1e-15)
    assert np.allclose(whole.cov, blocks.cov, rtol=1e-12)


# --- differences


def test_new_draws_have_the_p_value_of_a_prediction_interval() -> None:
    """scipy's Student t on numbers worked out by hand: mean 3, s = sqrt(2.5), k = 5, m = 1."""
    t = (7 - 3) / (math.sqrt(2.5) * math.sqrt(1 / 5 + 1))
    expected = 2 * scipy.stats.t.sf(t, 4)
    assert stats.new_draws_p_value([1, 2, 3, 4, 5], [7]) == pytest.approx(expected, rel=1e-12)
    assert stats.new_draws_p_value([1, 2, 3, 4, 5], [-1]) == pytest.approx(expected, rel=1e-12)
    assert stats.new_draws_p_value([1, 2, 3, 4, 5], [7], stderr=10) > 0.5


def test_without_spread_any_difference_is_one() -> None:
    assert stats.new_draws_p_value([2, 2, 2], [2]) == 1
    assert stats.new_draws_p_value([2, 2, 2], [2.1]) == 0


def test_p_values_are_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    found = [stats.new_draws_p_value(rng.normal(size=5), rng.normal(size=2)) for _ in range(2000)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01
