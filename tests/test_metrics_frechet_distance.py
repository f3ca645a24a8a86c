"""Fréchet distance: closed forms, algebra at its edges, oracles, and how honest its standard error is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from metric_cases import extractor, features, layers, reference

from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Moments
from trilemma_bench.metrics import _frechet
from trilemma_bench.metrics import frechet_distance as fd

RNG = np.random.default_rng


def gaussian(mean: list[float], cov: list[list[float]]) -> Moments:
    return Moments(1000, np.array(mean, dtype=float), np.array(cov, dtype=float))


# --- closed forms -----------------------------------------------------------------------------------------


def test_distance_of_diagonal_gaussians_is_that_of_their_means_and_standard_deviations() -> None:
    real = gaussian([0, 1, 2], np.diag([1.0, 4.0, 9.0]).tolist())
    generated = gaussian([3, 1, -2], np.diag([4.0, 4.0, 0.25]).tolist())
    # |m|^2 = 9 + 16; standard deviations 1, 2, 3 against 2, 2, 0.5.
    assert fd.frechet_distance(real=real, generated=generated) == pytest.approx(25 + 1 + 0 + 6.25, rel=1e-12)


def test_distance_of_commuting_rotated_gaussians() -> None:
    turn = np.linalg.qr(RNG(0).normal(size=(7, 7)))[0]
    first, second = np.arange(1.0, 8), np.linspace(0, 3, 7)
    real = Moments(9, np.zeros(7), turn @ np.diag(first**2) @ turn.T)
    generated = Moments(9, np.zeros(7), turn @ np.diag(second**2) @ turn.T)
    expected = float(np.square(first - second).sum())
    assert fd.frechet_distance(real=real, generated=generated) == pytest.approx(expected, rel=1e-12)


def test_distance_of_two_by_two_covariances_that_do_not_commute() -> None:
    first, second = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    # For 2 x 2: tr (S1 S2)^(1/2) = sqrt(tr(S1 S2) + 2 sqrt(det(S1 S2))).
    product = first @ second
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    found = fd.frechet_distance(real=Moments(9, np.zeros(2), first), generated=Moments(9, np.zeros(2), second))
    assert found == pytest.approx(3 + 4 - 2 * root, rel=1e-12)


@pytest.mark.parametrize("count", [5, 40, 400])
def test_distance_of_moments_to_themselves_is_nothing(count: int) -> None:
    found = fd.moments(features(count, seed=1))
    assert 0 <= fd.frechet_distance(real=found, generated=found) <= 1e-8 * np.trace(found.cov)


def test_singular_covariance_of_a_wide_scale_is_at_no_distance_from_itself() -> None:
    rows = RNG(2).normal(size=(30, 200)) * np.logspace(3, -6, 200)
    found = fd.moments(rows)
    scale = float(np.trace(found.cov))
    assert fd.frechet_distance(real=found, generated=found) <= 1e-8 * scale
    assert fd.frechet_distance_to_features(real=found, generated=rows) <= 1e-8 * scale


def test_collapse_to_a_point_costs_the_whole_variance() -> None:
    real = fd.moments(features(500, seed=3))
    point = np.repeat(real.mean[None], 50, axis=0)
    found = fd.frechet_distance_to_features(real=real, generated=point)
    assert found == pytest.approx(float(np.trace(real.cov)), rel=1e-12)


# --- algebra ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 15, 16, 17, 300])
def test_features_and_their_moments_give_one_distance(count: int) -> None:
    real, generated = fd.moments(features(700, seed=4)), features(count, seed=5)
    low_rank = fd.frechet_distance_to_features(real=real, generated=generated)
    assert low_rank == pytest.approx(fd.frechet_distance(real=real, generated=fd.moments(generated)), rel=1e-9)


def test_distance_is_symmetric_and_turns_with_the_features() -> None:
    real, generated = features(300, seed=6), features(90, seed=7, classes=2)
    turn = np.linalg.qr(RNG(8).normal(size=(16, 16)))[0]
    plain = fd.frechet_distance(real=fd.moments(real), generated=fd.moments(generated))
    assert plain == pytest.approx(fd.frechet_distance(real=fd.moments(generated), generated=fd.moments(real)))
    turned = fd.frechet_distance(real=fd.moments(real @ turn + 5), generated=fd.moments(generated @ turn + 5))
    assert turned == pytest.approx(plain, rel=1e-9)


# --- oracles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("real_count", "generated_count"), [(700, 400), (400, 10), (12, 9)])
def test_distance_is_torch_fidelitys(real_count: int, generated_count: int) -> None:
    """torch-fidelity 0.4.0, `fid_statistics_to_metric`, on the same float64 features."""
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("torch_fidelity.metric_fid")
    real = features(real_count, seed=10).astype(np.float64)
    generated = features(generated_count, seed=11, classes=3).astype(np.float64)
    statistics = [oracle.fid_features_to_statistics(torch.from_numpy(each)) for each in (real, generated)]
    expected = oracle.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    found = fd.frechet_distance_to_features(real=fd.moments(real), generated=generated)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The `disp` argument")
def test_distance_is_clean_fids() -> None:
    """clean-fid 0.1.35, `frechet_distance`, on the same moments."""
    oracle = pytest.importorskip("cleanfid.fid")
    real, generated = fd.moments(features(700, seed=12)), fd.moments(features(400, seed=13, classes=2))
    expected = oracle.frechet_distance(real.mean, real.cov, generated.mean, generated.cov)
    assert fd.frechet_distance(real=real, generated=generated) == pytest.approx(expected, rel=1e-5)


# --- uncertainty ------------------------------------------------------------------------------------------


def spread_and_stderr(draw: Array, count: int, *, draws: int = 150) -> tuple[float, float]:
    """Spread of the distance over draws of `count` rows, and the mean standard error that it gives itself."""
    rng, found = RNG(20), reference()
    scores = []
    for _ in range(draws):
        sample = draw[rng.choice(len(draw), count, replace=False)]
        scores.append(fd.compute(real=found, generated={"features": sample}, rng=rng)["fd_toy"])
    values = [score.value for score in scores if score.value is not None]
    return float(np.std(values, ddof=1)), float(np.mean([score.stderr for score in scores]))


@pytest.mark.parametrize("count", [100, 1000])
def test_standard_error_is_the_spread_where_the_distance_is_far_above_its_bias(count: int) -> None:
    spread, stderr = spread_and_stderr(features(60_000, seed=14, classes=4), count)
    assert stderr == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("count", [20, 50, 200])
def test_standard_error_errs_to_the_wide_side_where_bias_rules(count: int) -> None:
    spread, stderr = spread_and_stderr(features(60_000, seed=15), count)
    assert 0.85 * spread <= stderr <= 2.5 * spread


@pytest.mark.parametrize("count", [9, 60])
def test_influences_are_the_derivative_by_a_samples_weight(count: int) -> None:
    real, sample = fd.moments(features(700, seed=16)), features(count, seed=17).astype(np.float64)
    found = _frechet.influences(real.mean, _frechet.factor(real.cov), *_frechet.mean_and_factor(sample), sample)

    def weighted(index: int, step: float) -> float:
        weights = np.full(count, (1 - step) / count)
        weights[index] += step
        mean = weights @ sample
        cov = (sample - mean).T @ np.diag(weights) @ (sample - mean) * count / (count - 1)
        return fd.frechet_distance(real=real, generated=Moments(count, mean, cov))

    slopes = np.array([(weighted(index, 1e-5) - weighted(index, -1e-5)) / 2e-5 for index in range(5)])
    np.testing.assert_allclose(slopes - slopes[0], found[:5] - found[0], rtol=1e-4, atol=1e-4 * np.ptp(found))


# --- names and errors -------------------------------------------------------------------------------------


def test_only_inception_features_make_a_fid() -> None:
    plain, inception = (
        fd.METRIC.kinds(extractor()),
        fd.METRIC.kinds(extractor("inception_v3_tf", is_inception=True)),
    )
    assert [(kind.name, kind.label) for kind in (*plain, *inception)] == [
        ("fd_toy", "FD (toy)"),
        ("fid", "FID"),
    ]
    scores = fd.compute(real=reference(is_inception=True), generated=layers(features(50, seed=1)), rng=RNG(0))
    assert list(scores) == ["fid"]


@pytest.mark.parametrize(
    ("generated", "message"),
    [
        (features(1, seed=1), "at least 2 rows; got 1"),
        (features(9, seed=1)[:, :7], "16 columns and generated ones 7"),
        (np.zeros((4, 4, 16)), r"got shape \(4, 4, 16\)"),
        (
            np.where(np.arange(144).reshape(9, 16) == 40, np.nan, 1.0),
            "1 of 9 rows hold NaN or Inf, the first is row 2",
        ),
        (np.zeros((9, 16), dtype=np.uint8), "floating-point; got uint8"),
    ],
)
def test_features_that_cannot_be_scored_are_refused(generated: Array, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        fd.compute(real=reference(), generated={"features": generated}, rng=RNG(0))


def test_broken_moments_are_refused() -> None:
    good = fd.moments(features(20, seed=1))
    with pytest.raises(ProtocolError, match="NaN or Inf"):
        fd.frechet_distance(real=good, generated=Moments(20, good.mean * np.nan, good.cov))
    with pytest.raises(ProtocolError, match=r"covariance \[D, D\]"):
        fd.frechet_distance(real=good, generated=Moments(20, good.mean, good.cov[:3]))
    with pytest.raises(ProtocolError, match="at least 2 rows; got 1"):
        fd.moments(features(1, seed=1))


@pytest.mark.parametrize(
    ("cov", "message"), [([[1.0, 5.0], [0.0, 1.0]], "not symmetric"), ([[1.0, 0.0], [0.0, -1.0]], "eigenvalue -1")]
)
def test_matrices_that_are_no_covariances_are_refused(cov: list[list[float]], message: str) -> None:
    whole = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    for pair in ({"real": gaussian([0.0, 0.0], cov), "generated": whole},
                 {"real": whole, "generated": gaussian([0.0, 0.0], cov)}):  # fmt: skip
        with pytest.raises(ProtocolError, match=message):
            fd.frechet_distance(**pair)


def test_moments_in_float32_are_computed_with_in_float64() -> None:
    found = fd.moments(features(10, seed=1))
    single = Moments(found.n, found.mean.astype(np.float32), found.cov.astype(np.float32))  # type: ignore[arg-type]
    double = Moments(found.n, single.mean.astype(np.float64), single.cov.astype(np.float64))
    real = fd.moments(features(300, seed=2))
    assert fd.frechet_distance(real=real, generated=single) == fd.frechet_distance(real=real, generated=double)
