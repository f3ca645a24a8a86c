"""Mode coverage by classes: histograms counted by hand, the bias of few samples, swaps and dropped modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from metric_cases import reference

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array
from trilemma_bench.metrics import _modes
from trilemma_bench.metrics.class_coverage import METRIC, classes, histogram, of_histogram
from trilemma_bench.record import Score

REAL = reference()


def logits_of(labels: Array, *, base: int = 10, factors: int = 3, seed: int = 0) -> Array:
    """Logits float32 [N, factors * base] whose largest are the digits of the labels, most significant first."""
    digits = np.stack([labels // base**place % base for place in reversed(range(factors))], 1)
    noise = np.random.default_rng(seed).uniform(size=(len(labels), factors, base))
    return (noise + 2 * np.eye(base)[digits]).reshape(len(labels), -1).astype(np.float32)


def scores(logits: Array, **params: Any) -> dict[str, Score]:
    return METRIC.compute(real=REAL, generated={"logits": logits}, rng=np.random.default_rng(0), **params)


def values(logits: Array, **params: Any) -> dict[str, float]:
    return {name: float(found.value) for name, found in scores(logits, **params).items() if found.value is not None}


def grassberger(n: int) -> float:
    """G(n) by the recursion of Grassberger 2003: the same for an even number and the odd one after it."""
    return -np.euler_gamma - np.log(2) + sum(2 / odd for odd in range(1, n, 2))


def test_a_class_is_the_digits_of_the_channels_in_order() -> None:
    labels = np.array([314, 0, 999, 70, 7])
    found, modes = classes(logits_of(labels), 3)
    assert (found.tolist(), modes) == (labels.tolist(), 1000)
    found, modes = classes(logits_of(np.array([0, 5, 8]), base=3, factors=2), 2)
    assert (found.tolist(), modes) == ([0, 5, 8], 9)


def test_a_histogram_is_scored_by_hand() -> None:
    """Nine modes; counts 4, 2, 1, 1."""
    labels = np.array([0, 0, 0, 0, 3, 3, 5, 8])
    found = values(logits_of(labels, base=3, factors=2), factors=2, share=1.0)
    p = np.array([4, 2, 1, 1]) / 8
    smooth = np.array([4.5, 2.5, 1.5, 1.5, *[0.5] * 5]) / 12.5
    assert found["modes_captured"] == 4
    assert found["modes_held"] == 4  # a fair share is 8 / 9 of a sample
    assert found["mode_kl"] == pytest.approx(float((p * np.log(9 * p)).sum()))
    assert found["mode_kl_reverse"] == pytest.approx(float(np.log(1 / (9 * smooth)).mean()))
    assert found["mode_tv"] == pytest.approx(float((np.abs(p - 1 / 9).sum() + 5 / 9) / 2))
    entropy = np.log(8) - (4 * grassberger(4) + 2 * grassberger(2) + 2 * grassberger(1)) / 8
    assert found["mode_kl_corrected"] == pytest.approx(np.log(9) - entropy)


def test_equal_counts_are_no_divergence_at_all() -> None:
    found = values(logits_of(np.repeat(np.arange(1000), 27)))
    assert found["modes_captured"] == found["modes_held"] == 1000
    for name in ("mode_kl", "mode_kl_reverse", "mode_tv"):
        assert found[name] == pytest.approx(0, abs=1e-12)
    # Samples would not come out so evenly: the correction takes off what chance adds.
    assert found["mode_kl_corrected"] == pytest.approx(grassberger(27) - np.log(27))
    assert found["mode_kl_corrected"] < -0.03


@pytest.mark.parametrize("per_mode", [2, 26])
def test_the_correction_takes_the_bias_off_and_the_plain_estimate_keeps_it(per_mode: int) -> None:
    """Unequal weights with a known divergence; means of 40 draws, within four standard errors."""
    modes, draws = 1000, 40
    rng = np.random.default_rng(per_mode)
    weights = 1 + 0.8 * np.sin(np.arange(modes))
    weights /= weights.sum()
    true = float((weights * np.log(modes * weights)).sum())
    counts = rng.multinomial(per_mode * modes, weights, size=draws)
    plain = np.array([_modes.kl(each) for each in counts])
    corrected = np.array([_modes.corrected_kl(each) for each in counts])
    stderr = corrected.std(ddof=1) / np.sqrt(draws)
    # What is left decays with the samples in a mode.
    assert abs(corrected.mean() - true) < 4 * stderr + {2: 0.003, 26: 0.0}[per_mode]
    assert plain.mean() - true > 30 * stderr
    if per_mode == 26:
        assert plain.mean() - true == pytest.approx((modes - 1) / (2 * per_mode * modes), rel=0.06)


def test_the_reverse_divergence_has_the_stated_bias_for_equal_modes() -> None:
    counts = np.random.default_rng(0).multinomial(26_000, np.full(1000, 1e-3), size=40)
    mean = np.mean([_modes.reverse_kl(each) for each in counts])
    assert mean == pytest.approx(999 / 52_000, rel=0.06)


def test_swapped_channels_change_nothing() -> None:
    labels = np.random.default_rng(1).integers(0, 600, 3000)
    logits = logits_of(labels)
    swapped = logits.reshape(-1, 3, 10)[:, ::-1].reshape(-1, 30)
    assert values(swapped) == pytest.approx(values(logits))
    assert not np.array_equal(classes(swapped, 3)[0], classes(logits, 3)[0])


@pytest.mark.parametrize("dropped", [10, 100, 500])
def test_dropped_modes_are_missed_and_counted_in_both_directions(dropped: int) -> None:
    labels = dropped + np.random.default_rng(2).integers(0, 1000 - dropped, 26_000)
    found = values(logits_of(labels))
    assert found["modes_captured"] == found["modes_held"] == 1000 - dropped
    assert found["mode_kl_corrected"] == pytest.approx(np.log(1000 / (1000 - dropped)), abs=0.004)
    assert found["mode_tv"] > dropped / 1000
    missing = np.log(26_500 / 500) * dropped / 1000  # half a sample in each of them
    kept = (1000 - dropped) / 1000 * np.log((1000 - dropped) / 1000)
    assert found["mode_kl_reverse"] == pytest.approx(missing + kept, abs=0.03)


def test_a_digit_dropped_in_one_channel_drops_a_tenth_of_the_modes() -> None:
    labels = np.random.default_rng(3).integers(0, 1000, 26_000)
    assert values(logits_of(labels[labels // 10 % 10 != 4]))["modes_captured"] == 900


def test_scores_of_stored_classes_are_those_of_their_logits() -> None:
    labels = np.random.default_rng(4).integers(0, 1000, 2000)
    stored = of_histogram(histogram(labels, np.zeros(2000, np.int64), 1000))
    assert {name: found.value for name, found in stored.items()} == values(logits_of(labels))
    assert stored["mode_kl"].uncertainty == "none: too few samples"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"factors": 4}, "30 columns cannot be cut"),
        ({"factors": 0}, "30 columns cannot be cut"),
        ({"factors": 30}, "30 columns cannot be cut"),
        ({"share": 0.0}, r"share = 0.0: must be in \(0, 1\]"),
    ],
)
def test_parameters_outside_their_range_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        scores(logits_of(np.arange(50)), **params)
    with pytest.raises(ProtocolError, match="at most 1048576"):
        scores(np.zeros((5, 42), np.float32), factors=21)


def test_no_divergence_is_below_nothing_by_rounding() -> None:
    for modes in range(2, 300):
        even = np.full(modes, 7)
        assert _modes.kl(even) >= 0 and _modes.reverse_kl(even) >= 0


@pytest.mark.parametrize(("rare", "expected"), [(1, 1.0), (1, 3.0), (2, 3.0), (5, 0.2), (0, 0.0)])
def test_intervals_of_the_captured_modes_hold_their_mean_over_new_samples(rare: int, expected: float) -> None:
    """Also where each rare mode has none or several samples, so that leaving out a group changes nothing."""
    rng, count, modes, draws = np.random.default_rng(rare), 2000, 25, 200
    weight = np.full(modes, (1 - rare * expected / count) / (modes - rare))
    weight[:rare] = expected / count
    mean = float((1 - (1 - weight) ** count).sum())
    held = []
    for _ in range(draws):
        labels = stats.group_labels(count, groups=20, rng=rng)
        counts = histogram(rng.choice(modes, count, p=weight), labels, modes)
        found = of_histogram(counts)["modes_captured"]
        assert found.interval is not None and found.interval[0] >= 0 and found.interval[1] <= modes
        held.append(found.interval[0] - 1e-6 <= mean <= found.interval[1] + 1e-6)
    assert np.mean(held) >= 0.93
