"""Improved precision and recall: closed forms, ties, known failures of generators, oracles, intervals."""

from __future__ import annotations

import numpy as np
import pytest
from metric_cases import extractor, features, layers, reference

from trilemma_bench.errors import ProtocolError
from trilemma_bench.metrics import _helpers
from trilemma_bench.metrics import precision_recall as pr

RNG = np.random.default_rng


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


# --- closed forms -----------------------------------------------------------------------------------------


def test_points_on_a_line_are_inside_closed_balls() -> None:
    # k = 1: the balls around 0, 1, 3 have radii 1, 1, 2 and reach over [-1, 5].
    real, generated = column(0, 1, 3), column(-1, 5, 5.5, -1.5)
    assert pr.precision(real=real, generated=generated, k=1) == 0.5
    # The balls around 5, 5.5, -1, -1.5 have radius 0.5 and hold none of 0, 1, 3.
    assert pr.recall(real=real, generated=generated, k=1) == 0


def test_precision_and_recall_swap_with_their_arguments() -> None:
    real, generated = features(300, seed=1), features(120, seed=2, classes=3)
    assert pr.precision(real=real, generated=generated) == pr.recall(real=generated, generated=real)
    assert pr.precision(real=real, generated=generated) != pr.recall(real=real, generated=generated)


def test_the_point_itself_is_no_neighbour_and_k_counts_from_one() -> None:
    np.testing.assert_allclose(_helpers.kth_radii(column(0, 1, 3, 7), k=2), [9, 4, 9, 36], rtol=1e-12)


def test_a_lattice_is_decided_by_closed_balls_wherever_it_lies() -> None:
    """Every distance is a tie: the neighbour at 1 lies on the ball of radius 1, and must count."""
    lattice = np.stack(np.meshgrid(*[np.arange(6.0)] * 3), axis=-1).reshape(-1, 3)
    turn = np.linalg.qr(RNG(0).normal(size=(3, 3)))[0]
    beyond = lattice + np.array([1.0, 0, 0])
    for move in (
        lambda points: points,
        lambda points: 0.1 * points + 77.7,
        lambda points: (points + 50) @ turn,
    ):
        assert pr.precision(real=move(lattice), generated=move(beyond), k=1) == 1


def test_copies_are_at_no_distance() -> None:
    real = features(50, seed=3) + np.float32(500)
    copies = np.repeat(real[:10], 3, axis=0)
    assert pr.precision(real=real, generated=copies) == 1
    # Balls of copies of copies have radius 0; they still hold the originals, and nothing else.
    assert pr.recall(real=real, generated=copies, k=2) == pytest.approx(10 / 50)


# --- what they are for ------------------------------------------------------------------------------------


def test_collapsed_generator_keeps_precision_but_loses_recall() -> None:
    real, one_mode = features(600, seed=4), features(400, seed=5, classes=1)
    assert pr.precision(real=real, generated=one_mode) > 0.7
    assert pr.recall(real=real, generated=one_mode) < 0.3


def test_noisy_generator_loses_precision_but_keeps_recall() -> None:
    real = features(600, seed=6)
    noisy = features(400, seed=7) + RNG(8).normal(size=(400, 16)) * 2
    assert pr.precision(real=real, generated=noisy) < 0.2
    assert pr.recall(real=real, generated=noisy) > 0.8


# --- blocks and oracles -----------------------------------------------------------------------------------


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, sample = reference(), {"features": features(333, seed=9)}
    whole = pr.compute(real=found, generated=sample, rng=RNG(0))
    monkeypatch.setattr(_helpers, "TILE", 40)
    assert pr.compute(real=found, generated=sample, rng=RNG(0)) == whole


@pytest.mark.parametrize(("real_count", "generated_count", "k"), [(400, 250, 3), (150, 300, 5), (30, 9, 1)])
def test_values_are_torch_fidelitys(real_count: int, generated_count: int, k: int) -> None:
    """torch-fidelity 0.4.0, `prc_features_to_metric`, float64; its first argument is the generated set."""
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("torch_fidelity.metric_prc")
    real, generated = (
        features(count, seed=seed, classes=classes).astype(np.float64)
        for count, seed, classes in ((real_count, 10, 6), (generated_count, 11, 4))
    )
    expected = oracle.prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real),
        prc_neighborhood=k, prc_batch_size=100, save_cpu_ram=False, verbose=False,
    )  # fmt: skip
    # torch takes the mean of 0/1 in float32.
    assert pr.precision(real=real, generated=generated, k=k) == pytest.approx(expected["precision"], abs=1e-7)
    assert pr.recall(real=real, generated=generated, k=k) == pytest.approx(expected["recall"], abs=1e-7)


# --- scores -----------------------------------------------------------------------------------------------


def test_scores_carry_the_values_of_the_plain_functions() -> None:
    found, sample = reference(), features(210, seed=12, classes=4)
    scores = pr.compute(real=found, generated=layers(sample), rng=RNG(0))
    assert scores["precision_toy"].value == pr.precision(real=found.features, generated=sample)
    assert scores["recall_toy"].value == pr.recall(real=found.features, generated=sample)


def test_replicates_of_recall_are_recalls_without_a_group() -> None:
    real, generated = features(200, seed=13), features(90, seed=14)
    labels = RNG(0).permutation(90) % 20
    near = _helpers.nearest(generated, generated, k=3, labels=labels, itself=True)
    inside = _helpers.covered(real, generated, pr._radii_without_each_group(near, labels)).mean(axis=0)
    expected = [pr.recall(real=real, generated=generated[labels != group]) for group in range(20)]
    assert inside[1:].tolist() == expected


@pytest.mark.parametrize("classes", [4, 6])
def test_standard_errors_cover_the_spread_over_new_samples(classes: int) -> None:
    found = reference()
    drawn = [
        pr.compute(real=found, generated={"features": features(300, seed=200 + draw, classes=classes)}, rng=RNG(draw))
        for draw in range(60)
    ]
    for name, widest in (("precision_toy", 1.3), ("recall_toy", 2.0)):
        scores = [scores[name] for scores in drawn]
        spread = np.std([score.value for score in scores if score.value is not None], ddof=1)
        assert 0.75 <= np.mean([score.stderr for score in scores]) / spread <= widest, name


def test_too_few_samples_to_leave_any_out_give_a_value_without_an_error() -> None:
    scores = pr.compute(real=reference(), generated={"features": features(4, seed=15)}, rng=RNG(0))
    recall = scores["recall_toy"]
    assert recall.value is not None and recall.stderr is None and "too few" in recall.uncertainty


def test_names_say_whose_features_they_are_of() -> None:
    names = [kind.name for kind in pr.METRIC.kinds(extractor("vgg16"))]
    assert names == ["precision_vgg16", "recall_vgg16"]


@pytest.mark.parametrize(("count", "k", "message"), [(3, 3, "k = 3 needs .* at least 4 rows; got 3"), (9, 0, "got 0")])
def test_k_and_count_must_fit(count: int, k: int, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        pr.precision(real=features(50, seed=16), generated=features(count, seed=17), k=k)


def test_no_real_sample_inside_is_told_from_none_at_all_with_an_interval() -> None:
    far = layers(features(300, seed=4) + 1000)
    recall = pr.compute(real=reference(), generated=far, rng=np.random.default_rng(0))["recall_toy"]
    assert recall.value == 0 and recall.interval == pytest.approx((0, 0.00636), abs=1e-4)
    assert "over the real samples" in recall.uncertainty


@pytest.mark.parametrize("dimensions", [2, 8])
def test_one_sample_that_diverged_leaves_the_others_as_they_are(dimensions: int) -> None:
    """Its size must not enter the rounding of all distances, as it would through a mean that is taken off."""
    rng = np.random.default_rng(0)
    real, generated = (
        (rng.integers(0, 5, (600, dimensions)) * 2 - 4 + rng.normal(size=(600, dimensions)) * 0.05).astype(np.float32)
        for _ in range(2)
    )
    expected = pr.recall(real=real, generated=generated), pr.precision(real=real, generated=generated)
    generated[0] = 0
    generated[0, 0] = 1e8
    found = pr.recall(real=real, generated=generated), pr.precision(real=real, generated=generated)
    assert found == pytest.approx(expected, abs=0.01)
