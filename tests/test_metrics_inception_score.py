"""Inception Score: closed forms, the shuffle, torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
from metric_cases import extractor, features, layers, reference

from trilemma_bench.errors import ProtocolError
from trilemma_bench.metrics import inception_score as isc

RNG = np.random.default_rng


def certain(labels: np.ndarray, classes: int) -> np.ndarray:
    """Logits of a classifier that is certain of each label."""
    return 1000 * np.eye(classes)[labels]


def test_certain_and_even_classes_score_their_number() -> None:
    logits = certain(np.tile(np.arange(7), 30), 7)
    np.testing.assert_allclose(isc.inception_score(generated=logits, splits=10), 7, rtol=1e-12)


def test_a_classifier_that_knows_nothing_scores_one() -> None:
    np.testing.assert_allclose(isc.inception_score(generated=np.zeros((50, 5)), splits=5), 1, rtol=1e-12)


def test_two_soft_classes_score_the_mutual_information() -> None:
    p = 0.9
    logits = np.log([[p, 1 - p], [1 - p, p]])
    expected = np.exp(np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(isc.inception_score(generated=logits, splits=1), expected, rtol=1e-12)


def test_samples_ordered_by_class_score_one_without_a_shuffle_and_not_with_it() -> None:
    logits = certain(np.repeat(np.arange(10), 100), 10)
    assert isc.inception_score(generated=logits, splits=10) == pytest.approx(1)
    found = isc.compute(real=reference(), generated={"logits": logits}, rng=RNG(0))["classifier_score_toy"]
    assert found.value == pytest.approx(9.6, abs=0.3)


def test_splits_share_all_samples() -> None:
    """23 in 10 splits: sizes 2 and 3, and the last sample counts."""
    logits = RNG(1).normal(size=(23, 4))
    changed = logits.copy()
    changed[-1] *= -3
    first, second = (isc.inception_score(generated=each, splits=10) for each in (logits, changed))
    assert np.array_equal(first[:9], second[:9]) and first[9] != second[9]


def test_logits_may_be_shifted_and_large() -> None:
    logits = RNG(2).normal(size=(40, 6)) * 3
    plain = isc.inception_score(generated=logits, splits=4)
    np.testing.assert_allclose(isc.inception_score(generated=logits + 1e4, splits=4), plain, rtol=1e-10)


@pytest.mark.parametrize("count", [103, 400])
def test_score_is_torch_fidelitys_in_its_order(count: int) -> None:
    """torch-fidelity 0.4.0, `isc_features_to_metric`, shuffled by RandomState(2020)."""
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("torch_fidelity.metric_isc")
    logits = layers(features(count, seed=3))["logits"]
    expected = oracle.isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=True, rng_seed=2020)
    order = np.random.RandomState(2020).permutation(count)
    found = isc.inception_score(generated=logits, splits=10, order=order)
    assert found.mean() == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    assert found.std() == pytest.approx(expected["inception_score_std"], rel=1e-5)


def test_standard_error_is_the_spread_over_new_samples() -> None:
    found = reference()
    scores = [
        isc.compute(real=found, generated=layers(0.3 * features(400, seed=100 + draw)), rng=RNG(draw))
        for draw in range(120)
    ]
    values = [score["classifier_score_toy"] for score in scores]
    spread = np.std([score.value for score in values if score.value is not None], ddof=1)
    assert np.mean([score.stderr for score in values]) == pytest.approx(spread, rel=0.2)


def test_the_papers_deviation_of_splits_is_a_fixed_multiple_of_the_standard_error() -> None:
    generated = layers(features(400, seed=1))
    found = isc.compute(real=reference(), generated=generated, rng=RNG(5))["classifier_score_toy"]
    values = isc.inception_score(generated=generated["logits"], order=RNG(5).permutation(400))
    assert found.stderr == pytest.approx(values.std() / 3, rel=1e-12)
    assert "3 times" in found.uncertainty


def test_only_inceptions_logits_make_an_inception_score() -> None:
    (inception,) = isc.METRIC.kinds(extractor("inception_v3_tf", is_inception=True))
    (plain,) = isc.METRIC.kinds(extractor())
    assert (inception.name, inception.label, plain.name) == ("is", "IS", "classifier_score_toy")


def test_fewer_samples_than_splits_are_refused() -> None:
    with pytest.raises(ProtocolError, match="10 splits need a sample each, at least 10 rows; got 9"):
        isc.compute(real=reference(), generated=layers(features(9, seed=1)), rng=RNG(0))


def test_torch_fidelitys_shuffle_gives_torch_fidelitys_score() -> None:
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * RNG(4).normal(size=(57, 6))
    (score,) = isc.compute(
        real=reference(), generated={"logits": logits}, rng=RNG(0), splits=10, draws="torch-fidelity"
    ).values()
    theirs = isc_features_to_metric(torch.from_numpy(logits))
    assert score.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)


@pytest.mark.parametrize("classes", [10, 1000])
def test_images_that_are_all_alike_score_one_whatever_their_number(classes: int) -> None:
    """Rounding must not take the score, nor its interval, below what it can be."""
    rng = np.random.default_rng(1)
    for count in range(20, 400, 10):
        logits = np.tile(rng.normal(size=classes) * 3, (count, 1)).astype(np.float32)
        generated = {"features": logits, "logits": logits}
        (found,) = isc.compute(real=reference(), generated=generated, rng=rng).values()
        assert found.value is not None and found.interval is not None
        assert 1 <= found.interval[0] <= found.value <= found.interval[1] == pytest.approx(1)
