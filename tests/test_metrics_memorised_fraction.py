"""Memorised fraction: copies are found, held-out data and noise are not, whatever the sizes of the splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from metric_cases import extractor, features, layers, reference

from trilemma_bench.errors import ProtocolError
from trilemma_bench.metrics import memorised_fraction as mf

RNG = np.random.default_rng


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def fraction(generated: np.ndarray, *, count: int = 1500, held_out: int = 700) -> float:
    found = mf.compute(real=reference(count=count, held_out=held_out), generated=layers(generated), rng=RNG(0))
    value = found["memorised_fraction_toy"].value
    assert value is not None
    return value


def test_points_on_a_line_are_memorised_within_the_ratio() -> None:
    # Distances to training 0 and held-out 3: (0.9, 2.1), (1.1, 1.9), (0, 3), (3, 0), and the tie at 1 against 2.
    generated = column(0.9, 1.1, 0, 3, 1)
    found = mf.memorised(train=column(0), held_out=column(3), generated=generated, ratio=0.5)
    assert found.tolist() == [True, False, True, False, False]


def test_what_coincides_with_both_splits_is_not_memorised() -> None:
    both = column(1.0)
    assert not mf.memorised(train=both, held_out=both, generated=both).any()


@pytest.mark.parametrize(("count", "held_out"), [(1500, 1500), (1500, 300), (600, 1500)])
def test_fresh_samples_are_not_memorised_at_any_sizes_of_the_splits(count: int, held_out: int) -> None:
    assert fraction(features(400, seed=70), count=count, held_out=held_out) < 0.03


@pytest.mark.parametrize(("count", "held_out"), [(1500, 1500), (1500, 300), (600, 1500)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_copies_of_training_samples_are_memorised_even_with_a_little_noise(
    count: int, held_out: int, noise: float
) -> None:
    train = features(count, seed=0)[:400]
    copies = train + (RNG(1).normal(size=train.shape) * noise).astype(np.float32)
    assert fraction(copies, count=count, held_out=held_out) > 0.9


def test_half_copies_are_half_memorised_with_an_interval_around_it() -> None:
    mixed = np.concatenate([features(1500, seed=0)[:200], features(200, seed=71)])
    found = mf.compute(real=reference(), generated=layers(mixed), rng=RNG(0))["memorised_fraction_toy"]
    assert found.value == pytest.approx(0.5, abs=0.02)
    assert found.interval is not None and found.interval[0] < 0.47 and found.interval[1] > 0.53


def test_held_out_samples_themselves_are_not_memorised() -> None:
    assert fraction(features(700, seed=1)) == 0


def test_what_training_and_held_out_images_share_is_not_memorised() -> None:
    """In float64 and of many columns, where each search rounds a distance of 0 in its own way."""
    for seed in range(20):
        rng = RNG(seed)
        shared = rng.normal(size=(10, 64))
        train, held_out = (np.concatenate([shared, rng.normal(size=(200, 64))]) for _ in range(2))
        assert not mf.memorised(train=train, held_out=held_out + 0.0, generated=shared).any()


def test_noise_far_from_all_data_is_not_memorised() -> None:
    assert fraction(RNG(2).normal(size=(300, 16)).astype(np.float32) * 30) == 0


def test_without_a_held_out_split_the_score_fails_and_says_so() -> None:
    found = mf.compute(real=reference(held_out=None), generated=layers(features(50, seed=3)), rng=RNG(0))
    score = found["memorised_fraction_toy"]
    assert score.value is None and score.failure is not None and "no held-out split" in score.failure


def test_lower_is_better_on_the_axis_of_coverage() -> None:
    (kind,) = mf.METRIC.kinds(extractor("vgg16"))
    assert (kind.name, kind.axis, kind.higher_is_better) == ("memorised_fraction_vgg16", "coverage", False)


@pytest.mark.parametrize("ratio", [0, -1, 1.5])
def test_ratios_out_of_range_are_refused(ratio: float) -> None:
    with pytest.raises(ProtocolError, match=r"ratio must be in \(0, 1\]"):
        mf.memorised(train=column(0), held_out=column(1), generated=column(2), ratio=ratio)


def test_sketches_of_another_width_are_refused() -> None:
    found = replace(reference(), held_out_sketch=np.zeros((5, 3), dtype=np.float32))
    with pytest.raises(ProtocolError, match="3 columns"):
        mf.compute(real=found, generated=layers(features(20, seed=4)), rng=RNG(0))
