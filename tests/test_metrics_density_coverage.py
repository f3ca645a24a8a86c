"""Density and coverage: closed forms, ties, prdc, intervals."""

from __future__ import annotations

import numpy as np
import pytest
from metric_cases import extractor, features, reference

from trilemma_bench.errors import ProtocolError
from trilemma_bench.metrics import _helpers
from trilemma_bench.metrics import density_coverage as dc

RNG = np.random.default_rng


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def test_points_on_a_line_are_counted_in_open_balls() -> None:
    # k = 1: the balls around 0, 1, 3 are (-1, 1), (0, 2), (1, 5); 1 lies in (0, 2) only, 1.5 in the last two.
    real, generated = column(0, 1, 3), column(1, 1.5, 5)
    assert dc.density(real=real, generated=generated, k=1) == pytest.approx((1 + 2 + 0) / 3)
    assert dc.coverage(real=real, generated=generated, k=1) == pytest.approx(2 / 3)


def test_real_features_against_themselves_have_density_one_and_full_coverage() -> None:
    """Each ball holds its centre and k - 1 neighbours; the k-th lies on its edge, which is outside."""
    real = features(300, seed=1) * np.float32(0.1) + np.float32(10)
    assert dc.density(real=real, generated=real) == pytest.approx(1, abs=1e-12)
    assert dc.coverage(real=real, generated=real[::-1]) == 1


@pytest.mark.parametrize(("generated", "k"), [(100, 3), (400, 5)])
def test_equal_distributions_have_the_expected_coverage(generated: int, k: int) -> None:
    """Of the N - 1 + M others the k nearest must all be real for a ball to be missed."""
    real, found = 200, []
    missed = np.prod([(real - 1 - i) / (real - 1 + generated - i) for i in range(k)])
    for draw in range(60):
        pair = {"real": features(real, seed=2 * draw), "generated": features(generated, seed=2 * draw + 1)}
        found.append((dc.coverage(**pair, k=k), dc.density(**pair, k=k)))
    coverage, density = np.mean(found, axis=0)
    assert coverage == pytest.approx(1 - missed, abs=0.01)
    assert density == pytest.approx(1, abs=0.03)


def test_an_outlier_among_generated_samples_covers_nothing() -> None:
    real, generated = features(200, seed=2), features(1, seed=3) + np.float32(100)
    assert dc.coverage(real=real, generated=generated) == 0
    assert dc.density(real=real, generated=generated) == 0


def test_collapsed_generator_keeps_density_but_loses_coverage() -> None:
    real, one_mode = features(600, seed=4), features(400, seed=5, classes=1)
    assert dc.density(real=real, generated=one_mode) > 0.8
    assert dc.coverage(real=real, generated=one_mode) < 0.3


@pytest.mark.parametrize(("real_count", "generated_count", "k"), [(400, 250, 5), (150, 300, 3), (30, 9, 1)])
def test_values_are_prdcs(real_count: int, generated_count: int, k: int) -> None:
    """prdc 0.2, `compute_prdc`, on the same float64 features."""
    oracle = pytest.importorskip("prdc")
    real = features(real_count, seed=6).astype(np.float64)
    generated = features(generated_count, seed=7, classes=4).astype(np.float64)
    expected = oracle.compute_prdc(real_features=real, fake_features=generated, nearest_k=k)
    assert dc.density(real=real, generated=generated, k=k) == pytest.approx(expected["density"], rel=1e-12)
    assert dc.coverage(real=real, generated=generated, k=k) == pytest.approx(expected["coverage"], rel=1e-12)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, sample = reference(), {"features": features(333, seed=9)}
    whole = dc.compute(real=found, generated=sample, rng=RNG(0))
    monkeypatch.setattr(_helpers, "TILE", 40)
    assert dc.compute(real=found, generated=sample, rng=RNG(0)) == whole
    assert whole["density_toy"].value == dc.density(real=found.features, generated=sample["features"])
    assert whole["coverage_toy"].value == dc.coverage(real=found.features, generated=sample["features"])


@pytest.mark.parametrize("classes", [3, 6])
def test_standard_errors_cover_the_spread_over_new_samples(classes: int) -> None:
    found = reference()
    drawn = [
        dc.compute(real=found, generated={"features": features(300, seed=300 + draw, classes=classes)}, rng=RNG(draw))
        for draw in range(60)
    ]
    for name, widest in (("density_toy", 1.3), ("coverage_toy", 1.8)):
        scores = [scores[name] for scores in drawn]
        spread = np.std([score.value for score in scores if score.value is not None], ddof=1)
        assert 0.75 <= np.mean([score.stderr for score in scores]) / spread <= widest, name


def test_a_single_generated_sample_gives_values_without_errors() -> None:
    scores = dc.compute(real=reference(), generated={"features": features(1, seed=10)}, rng=RNG(0))
    assert [score.stderr for score in scores.values()] == [None, None]


def test_names_say_whose_features_they_are_of() -> None:
    assert [kind.name for kind in dc.METRIC.kinds(extractor("vgg16"))] == ["density_vgg16", "coverage_vgg16"]


def test_k_needs_more_real_samples() -> None:
    with pytest.raises(ProtocolError, match="k = 5 needs .* at least 6 rows; got 5"):
        dc.density(real=features(5, seed=11), generated=features(9, seed=12))


def test_one_sample_that_diverged_leaves_the_coverage_of_the_others() -> None:
    rng = np.random.default_rng(0)
    real, generated = (rng.normal(size=(600, 2)).astype(np.float32) for _ in range(2))
    expected = dc.coverage(real=real, generated=generated)
    generated[0] = 1e8
    assert dc.coverage(real=real, generated=generated) == pytest.approx(expected, abs=0.01)
