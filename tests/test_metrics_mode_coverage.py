"""Mode coverage: hand-made samples, closed forms of real ones, and known damage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from metric_cases import extractor, reference

from trilemma_bench.data.gaussians25 import AXIS, MIXTURE, draw
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array
from trilemma_bench.metrics import mode_coverage
from trilemma_bench.metrics.mode_coverage import METRIC, truncated_deviation
from trilemma_bench.record import Score
from trilemma_bench.spec import load_protocol

REAL = replace(reference(), features=draw(500, 3).astype(np.float32))
SIGMA = MIXTURE.sigma


def scores(points: Array, **params: Any) -> dict[str, Score]:
    return METRIC.compute(real=REAL, generated={"features": points}, rng=np.random.default_rng(0), **params)


def values(points: Array, **params: Any) -> dict[str, float]:
    return {name: float(found.value) for name, found in scores(points, **params).items() if found.value is not None}


def test_real_samples_have_the_values_of_the_closed_forms() -> None:
    found = scores(draw(40_000, 5))
    expected = {
        "high_quality": 1 - np.exp(-4.5), "mode_spread": 1.0, "modes_captured": 25, "modes_held": 25,
    }  # fmt: skip
    for name, value in expected.items():
        score = found[name]
        assert score.value is not None and score.stderr is not None
        assert abs(score.value - value) <= 4 * score.stderr
        assert score.stderr < 0.005
    # chi-squared with 24 degrees over 2 N, and the mean of |normal|, both within four standard deviations.
    assert found["mode_kl"].value == pytest.approx(24 / 80_000, abs=4 * np.sqrt(48) / 80_000)
    assert found["mode_tv"].value == pytest.approx(np.sqrt(25 / (2 * np.pi * 40_000)), rel=0.6)


def test_a_handful_of_points_is_counted_by_hand() -> None:
    at = np.array([[0.0, 0.0]] * 6 + [[2.0, 2.0]] * 2 + [[-4.0, 4.0], [1.1, 0.0]])
    at[0, 0] = 3 * SIGMA - 1e-9  # inside
    at[1, 1] = 3 * SIGMA + 1e-9  # outside
    found = values(at, share=1.0)
    assert found["high_quality"] == 8 / 10
    assert found["modes_captured"] == 3
    assert found["modes_held"] == 3  # a fair share of 10 points is 0.4
    p = np.array([6, 2, 1, 1]) / 10  # the last lies nearest to (2, 0)
    assert found["mode_kl"] == pytest.approx(float((p * np.log(25 * p)).sum()))
    assert found["mode_tv"] == pytest.approx((np.abs(p - 0.04).sum() + 21 * 0.04) / 2)


def test_a_mode_is_held_from_its_share_on() -> None:
    counts = np.full(25, 40)
    counts[:3] = (8, 7, 0)  # the fair share is about 37, a fifth of it about 7.4
    points = np.repeat(MIXTURE.centres, counts, axis=0)
    found = values(points)
    assert found["modes_captured"] == 24
    assert found["modes_held"] == 23


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.5])
def test_modes_that_are_too_narrow_have_a_small_spread_and_too_much_quality(factor: float) -> None:
    points = draw(20_000, 1)
    centres = 2 * np.clip(np.round(points / 2), -2, 2)
    found = values(centres + factor * (points - centres))
    assert found["high_quality"] == pytest.approx(1.0, abs=1e-4)
    assert found["mode_spread"] == pytest.approx(factor / truncated_deviation(3.0, 2), abs=0.02)


def test_a_mode_beside_its_centre_costs_quality_and_not_spread() -> None:
    found = values(draw(20_000, 1) + np.array([0.5 * SIGMA, 0]))
    assert found["high_quality"] < 0.985
    assert found["mode_spread"] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("dropped", [1, 5, 20])
def test_dropped_modes_are_missed_and_widen_the_divergences(dropped: int) -> None:
    points = draw(10_000, 2)
    modes = np.abs(points[:, None] - MIXTURE.centres).sum(2).argmin(1)
    found = values(points[modes >= dropped])
    assert found["modes_captured"] == found["modes_held"] == 25 - dropped
    assert found["mode_tv"] == pytest.approx(dropped / 25, abs=0.02)
    assert found["mode_kl"] == pytest.approx(np.log(25 / (25 - dropped)), abs=0.01)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_deviation_within_a_ball_is_that_of_samples(dimensions: int) -> None:
    x = np.random.default_rng(0).normal(size=(400_000, dimensions))
    inside = x[np.square(x).sum(1) <= 4]
    assert truncated_deviation(2.0, dimensions) == pytest.approx(np.sqrt(np.square(inside).mean()), rel=0.01)


def test_no_sample_of_high_quality_leaves_the_spread_without_a_value() -> None:
    found = scores(np.ones((50, 2)))
    assert found["mode_spread"].failure == "no mode has two samples of high quality"
    assert found["modes_captured"].value == 0
    assert found["high_quality"].value == 0


def test_the_order_of_the_grid_does_not_matter() -> None:
    points = draw(500, 0)
    assert values(points, grid="4 -4 2 0 -2") == pytest.approx(values(points))


def test_the_protocol_states_the_grid_of_the_data_set() -> None:
    params = next(s.params for s in load_protocol("gaussians25-v1").scores if s.metric == "mode_coverage")
    assert params == METRIC.defaults
    assert tuple(float(number) for number in str(params["grid"]).split()) == AXIS
    assert np.array_equal(mode_coverage.centres(str(params["grid"]), 2), MIXTURE.centres)
    assert params["sigma"] == SIGMA


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"grid": "1 two"}, "expected numbers parted by spaces"),
        ({"grid": "1 1"}, "expected different numbers"),
        ({"grid": ""}, "expected different numbers"),
        ({"grid": " ".join(map(str, range(2000)))}, "over 1048576 modes"),
        ({"sigma": 0.0}, "must be over 0"),
        ({"share": 1.5}, r"share in \(0, 1\]"),
    ],
)
def test_parameters_outside_their_range_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        scores(draw(50, 0), **params)


def test_the_best_fraction_of_high_quality_is_that_of_real_samples() -> None:
    kinds = {kind.name: kind for kind in METRIC.kinds_of(extractor(), (2,), {"radius": 2.0})}
    assert kinds["high_quality"].target == pytest.approx(1 - math.exp(-2))
    assert kinds["high_quality"].higher_is_better is None
    assert kinds["mode_spread"].target == 1
    kinds = {kind.name: kind for kind in METRIC.kinds_of(extractor(), (2,), {})}
    assert kinds["high_quality"].target == pytest.approx(0.98889, abs=1e-5)


def test_the_interval_names_the_groups_that_there_were() -> None:
    assert scores(draw(5, 1))["mode_kl"].uncertainty.startswith("jackknife over 5 groups")
    assert scores(draw(500, 1))["modes_captured"].uncertainty.startswith("jackknife over 20 groups")
