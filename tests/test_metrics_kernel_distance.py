"""Kernel distance: closed forms, both ways of summing, torch-fidelity, and how honest its standard error is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from metric_cases import extractor, features, layers, reference

from trilemma_bench.errors import ProtocolError
from trilemma_bench.metrics import kernel_distance as kd

RNG = np.random.default_rng


def by_hand(real: np.ndarray, generated: np.ndarray) -> float:
    """The definition, pair by pair."""
    dim = real.shape[1]

    def mean(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return float(np.mean([(x @ y / dim + 1) ** 3 for x, y in pairs]))

    def unequal(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]

    return mean(unequal(real)) + mean(unequal(generated)) - 2 * mean([(x, y) for x in real for y in generated])


def test_distance_of_two_points_each_is_the_definition() -> None:
    real, generated = np.array([[1.0, 0], [0, 1.0]]), np.array([[1.0, 1.0], [2.0, 0]])
    # k = (x.y / 2 + 1)^3: within real 1; within generated 2^3 = 8; between 1.5^3 x 2, 2^3, 1^3 over 4.
    both = np.array([[0, 1]])
    found = kd.kernel_distances(real=real, generated=generated, real_subsets=both, generated_subsets=both)
    assert found == pytest.approx([1 + 8 - 2 * (2 * 1.5**3 + 8 + 1) / 4], rel=1e-12)


@pytest.mark.parametrize("subsets", [2, 90])
def test_few_and_many_subsets_are_summed_to_the_definition(subsets: int) -> None:
    """Two subsets of 7 go one by one; 90 go through the whole kernel matrix."""
    real, generated = (
        features(60, seed=1).astype(np.float64),
        features(45, seed=2, classes=2).astype(np.float64),
    )
    rows = kd.draw_subsets(60, size=7, subsets=subsets, rng=RNG(3))
    columns = kd.draw_subsets(45, size=7, subsets=subsets, rng=RNG(4))
    found = kd.kernel_distances(real=real, generated=generated, real_subsets=rows, generated_subsets=columns)
    expected = [by_hand(real[first], generated[second]) for first, second in zip(rows, columns, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_tiles_do_not_change_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = features(130, seed=5), features(101, seed=6)
    drawn = {
        "real_subsets": kd.draw_subsets(130, size=30, subsets=50, rng=RNG(0)),
        "generated_subsets": kd.draw_subsets(101, size=30, subsets=50, rng=RNG(1)),
    }
    whole = kd.kernel_distances(real=real, generated=generated, **drawn)
    error = kd.jackknife_stderr(real=real, generated=generated, rng=RNG(0))
    monkeypatch.setattr("trilemma_bench.metrics._helpers.TILE", 32)
    np.testing.assert_allclose(kd.kernel_distances(real=real, generated=generated, **drawn), whole, rtol=1e-10)
    assert kd.jackknife_stderr(real=real, generated=generated, rng=RNG(0)) == pytest.approx(error, rel=1e-10)


def test_equal_distributions_are_at_no_distance_on_average() -> None:
    found = [
        kd.compute(
            real=reference(seed=10 * draw), generated={"features": features(300, seed=10 * draw + 5)},
            rng=RNG(draw), subsets=20, subset_size=100,
        )["kd_toy"].value
        for draw in range(30)
    ]  # fmt: skip
    values = np.array(found, dtype=float)
    assert abs(values.mean()) < 3 * values.std(ddof=1) / np.sqrt(30)
    assert values.min() < 0 < values.max()


def test_distance_is_torch_fidelitys_on_its_subsets() -> None:
    """torch-fidelity 0.4.0, `kid_features_to_metric`, which draws from RandomState(seed), real first here."""
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("torch_fidelity.metric_kid")
    real = features(500, seed=7).astype(np.float64)
    generated = features(300, seed=8, classes=3).astype(np.float64)
    expected = oracle.kid_features_to_metric(
        torch.from_numpy(real), torch.from_numpy(generated), kid_subsets=40, kid_subset_size=100, rng_seed=11,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1,
        verbose=False,
    )  # fmt: skip
    state = np.random.RandomState(11)
    drawn = [(state.choice(500, 100, replace=False), state.choice(300, 100, replace=False)) for _ in range(40)]
    found = kd.kernel_distances(
        real=real,
        generated=generated,
        real_subsets=np.array([first for first, _ in drawn]),
        generated_subsets=np.array([second for _, second in drawn]),
    )
    assert found.mean() == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert found.std() == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-5)


def test_row_means_give_the_delete_one_jackknife() -> None:
    real, generated = features(40, seed=9), features(25, seed=10, classes=2)

    def over_all(rows: np.ndarray) -> float:
        return by_hand(real.astype(np.float64), rows.astype(np.float64))

    without = np.array([over_all(np.delete(generated, index, axis=0)) for index in range(25)])
    expected = np.sqrt(24 / 25 * np.square(without - without.mean()).sum())
    assert kd.jackknife_stderr(real=real, generated=generated, rng=RNG(0)) == pytest.approx(expected, rel=1e-9)


def test_landmarks_stand_for_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = features(600, seed=11), features(500, seed=12, classes=3)
    whole = kd.jackknife_stderr(real=real, generated=generated, rng=RNG(0))
    monkeypatch.setattr(kd, "LANDMARKS", 300)
    found = [kd.jackknife_stderr(real=real, generated=generated, rng=RNG(draw)) for draw in range(40)]
    assert np.mean(found) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize(("classes", "widest"), [(3, 1.2), (6, 2.0)])
def test_standard_error_is_the_spread_over_new_samples(classes: int, widest: float) -> None:
    """Where the distributions are equal the estimate is degenerate and the jackknife errs to the wide side."""
    found, rng = reference(), RNG(13)
    scores = [
        kd.compute(
            real=found, generated={"features": features(200, seed=1000 + draw, classes=classes)}, rng=rng,
            subsets=30, subset_size=80,
        )["kd_toy"]
        for draw in range(120)
    ]  # fmt: skip
    spread = np.std([score.value for score in scores if score.value is not None], ddof=1)
    ratio = np.mean([score.stderr for score in scores]) / spread
    assert 0.8 <= ratio <= widest


def test_subsets_have_no_repeats_and_follow_the_generator() -> None:
    drawn = kd.draw_subsets(50, size=20, subsets=30, rng=RNG(1))
    assert drawn.shape == (30, 20)
    assert all(len(set(subset)) == 20 for subset in drawn.tolist())
    assert np.array_equal(drawn, kd.draw_subsets(50, size=20, subsets=30, rng=RNG(1)))


def test_subsets_larger_than_the_sample_are_refused_with_both_numbers() -> None:
    with pytest.raises(ProtocolError, match="here 60; got 100"):
        kd.compute(
            real=reference(),
            generated={"features": features(60, seed=1)},
            rng=RNG(0),
            subsets=5,
            subset_size=100,
        )


def test_only_inception_features_make_a_kid() -> None:
    (inception,) = kd.METRIC.kinds(extractor("inception_v3_tf", is_inception=True))
    (plain,) = kd.METRIC.kinds(extractor())
    assert (inception.name, inception.label, plain.name, plain.label) == ("kid", "KID", "kd_toy", "KD (toy)")
    found = kd.compute(
        real=reference(is_inception=True), generated=layers(features(60, seed=1)), rng=RNG(0), subset_size=20
    )
    assert list(found) == ["kid"]


def test_torch_fidelitys_draws_give_torch_fidelitys_mean_over_subsets() -> None:
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, generated = features(60, seed=1), features(45, seed=2, classes=2)
    params = {"subsets": 10, "subset_size": 20}
    known = replace(reference(), features=real)
    found = kd.compute(
        real=known, generated=layers(generated), rng=RNG(0), **params, draws="torch-fidelity"
    )  # fmt: skip
    theirs = kid_features_to_metric(
        torch.from_numpy(generated).double(), torch.from_numpy(real).double(), kid_subsets=10, kid_subset_size=20,
        verbose=False,
    )  # fmt: skip
    (score,) = found.values()
    assert score.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    (own,) = kd.compute(real=known, generated=layers(generated), rng=RNG(0), **params).values()
    assert own.value != score.value
    with pytest.raises(ProtocolError, match="draws = 'mine'; a protocol says one of own, torch-fidelity"):
        kd.compute(real=known, generated=layers(generated), rng=RNG(0), **params, draws="mine")
    with pytest.raises(ProtocolError, match="here 45; got 50"):
        kd.compute(
            real=known, generated=layers(generated), rng=RNG(0), subset_size=50, draws="torch-fidelity"
        )  # fmt: skip


def test_features_too_large_for_the_kernel_are_refused_in_words() -> None:
    huge = (features(60, seed=1) * np.float32(1e30)).astype(np.float32)
    with pytest.raises(ProtocolError, match="features of that size overflow"):
        kd.compute(real=reference(), generated=layers(huge), rng=np.random.default_rng(0), subset_size=10)
