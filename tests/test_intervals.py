"""Intervals hold what they say: coverage by simulation where the truth is known; ranks; seeds pooled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from ranking_cases import FD, record, score, scored
from small_world import make_world

from trilemma_bench import cli, stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Moments, Reference
from trilemma_bench.metrics import (
    frechet_distance,
    frechet_distance_infinity,
    inception_score,
    kernel_distance,
    precision_recall,
)
from trilemma_bench.ranking import estimate, flat, loss_estimate, rows
from trilemma_bench.record import Better, ResultRecord, Score
from trilemma_bench.render import to_markdown

REPEATS = 200


def gaussian_reference(dim: int) -> Reference:
    """Exact moments of N(0, I)."""
    moments = Moments(10**9, np.zeros(dim), np.eye(dim))
    none = np.zeros((1, dim), np.float32)
    return Reference(
        moments=moments, features=none, logits=None, components=none.T, centre=none[0], train_sketch=none,
        held_out_sketch=None, identity="0" * 64, about={"extractor": "toy", "is_inception": False},
    )  # fmt: skip


def samples(count: int, dim: int, shift: float, scale: float, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) * scale + shift


def coverage(metric: object, *, dim: int, count: int, shift: float, scale: float) -> float:
    """How often the 95 % interval of the first score holds the distance of the two Gaussians."""
    truth = dim * (shift**2 + (scale - 1) ** 2)
    real, hits = gaussian_reference(dim), 0
    for repeat in range(REPEATS):
        generated = {"features": samples(count, dim, shift, scale, repeat, dim)}
        found = next(iter(metric.compute(real=real, generated=generated, rng=np.random.default_rng(0)).values()))
        hits += found.interval[0] <= truth <= found.interval[1]
    return hits / REPEATS


@pytest.mark.parametrize(
    ("dim", "count", "shift", "scale"),
    [(2, 500, 0.7, 1.0), (4, 600, 0.5, 1.3), (3, 900, 0.4, 0.8)],
)
@pytest.mark.parametrize("metric", [frechet_distance, frechet_distance_infinity])
def test_intervals_of_the_frechet_distance_cover_the_truth(
    metric: object, dim: int, count: int, shift: float, scale: float
) -> None:
    """Nominal 95 %, where the bias at this number of samples is small beside the interval."""
    assert 0.90 <= coverage(metric, dim=dim, count=count, shift=shift, scale=scale) <= 0.98


def test_the_extrapolation_covers_the_truth_where_the_bias_does_not_let_the_distance() -> None:
    """16 features and 1,200 samples: a bias of two standard errors, of which the plain interval does not know."""
    case = {"dim": 16, "count": 1200, "shift": 0.15, "scale": 1.0}
    assert coverage(frechet_distance, **case) < 0.75
    assert 0.90 <= coverage(frechet_distance_infinity, **case) <= 0.98


def test_the_stated_bias_is_what_the_distance_has_too_much() -> None:
    real, truth, found, biases = gaussian_reference(8).moments, 8 * 0.3**2, [], []
    for repeat in range(100):
        generated = samples(400, 8, 0.3, 1.0, repeat)
        plain = frechet_distance.frechet_distance_to_features(real=real, generated=generated)
        found.append(plain - truth)
        biases.append(plain - frechet_distance_infinity.extrapolate(real=real, generated=generated))
    assert np.mean(biases) == pytest.approx(np.mean(found), abs=0.02)
    assert np.mean(biases) > 0.04


def test_the_leaderboard_states_the_bias() -> None:
    beyond = scored(FD.model_copy(update={"name": "fd_toy_infinity", "label": "FD, infinite N"}), score(8.5))
    text = to_markdown(rows([record("a", 10.0, scores=(beyond,)), record("b", 20.0)]))
    assert "Bias of FD (toy) at this number of images: a +1.5." in text


def test_too_few_samples_for_an_extrapolation_are_refused() -> None:
    with pytest.raises(ProtocolError, match="needs 32 images on 8 features; got 31"):
        frechet_distance_infinity.extrapolate(real=gaussian_reference(8).moments, generated=samples(31, 8, 0, 1, 0))


# --- several seeds


@pytest.mark.parametrize("extra", [0.0, 2.0])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_pooled_intervals_cover_the_truth_with_and_without_a_spread_of_seeds(count: int, extra: float) -> None:
    """`extra` is how far a seed moves the score beside its samples, in standard errors of one seed."""
    rng = np.random.default_rng([count, int(extra)])
    hits = 0
    for _ in range(4000):
        values = rng.normal(size=count) * math.hypot(1, extra)
        found = stats.pool(values, np.ones(count), bounds=(-math.inf, math.inf))
        hits += found.interval[0] <= 0 <= found.interval[1]
    # The wider of two intervals errs to the safe side, the more so the fewer the seeds.
    assert 0.94 <= hits / 4000 <= 0.999


def test_pooling_tells_the_spread_of_seeds_from_that_of_samples() -> None:
    found = stats.pool([10.0, 14.0, 12.0], [0.5, 0.5, 0.5], bounds=(0, math.inf))
    assert (found.value, found.between, found.within) == (12.0, 2.0, 0.5)
    assert found.stderr == pytest.approx(2 / math.sqrt(3))
    assert found.interval[1] - 12 == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-5)
    calm = stats.pool([10.0, 10.01, 9.99], [0.5, 0.5, 0.5], bounds=(0, math.inf))
    assert calm.stderr == pytest.approx(0.5 / math.sqrt(3))
    assert calm.interval[1] - 10 == pytest.approx(1.959964 * 0.5 / math.sqrt(3), rel=1e-5)


def of_seed(model: str, seed: int, value: float, **changed: object) -> ResultRecord:
    return record(model, Score(value=value, stderr=0.5, interval=(value - 1, value + 1), n=100), seed=seed)


def test_records_of_several_seeds_are_one_row_with_their_mean() -> None:
    found = [of_seed("a", seed, value) for seed, value in ((0, 10.0), (1, 14.0), (2, 12.0))]
    for order in (found, found[::-1]):
        (table,) = rows(order).tables
        (row,) = table.rows
        assert (row.cells[0].value, row.seeds, row.label) == (12.0, (0, 1, 2), "a")
        assert row.spreads == {"fd_toy": 4.0}
        text = to_markdown(rows(order))
        assert "a: mean of seeds 0, 1, 2. Spread between them over the standard error of one" in text
        assert "FD (toy) 4." in text
    assert flat(rows(found))[0]["seed"] == "0 1 2"


@pytest.mark.parametrize("lacking", [Score.failed("too few samples"), None])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_mean_of_some_seeds_does_not_pass_for_one_of_all(where: int, lacking: Score | None) -> None:
    found = [of_seed("a", seed, 10.0) for seed in range(3)]
    kept = [item for item in found[where].scores if item.kind.name != "fd_toy"]
    item = next(item for item in found[where].scores if item.kind.name == "fd_toy")
    if lacking is not None:
        kept.append(item.model_copy(update={"score": lacking}))
    found[where] = found[where].model_copy(update={"scores": tuple(kept)})
    (row,) = rows(found).tables[0].rows
    assert row.cells[0].state == "failed"
    assert row.cells[0].note == f"1 of 3 seeds, such as {where}: {lacking.failure if lacking else 'not measured'}"


def test_other_samples_are_not_pooled() -> None:
    found = [of_seed("a", 0, 10.0), of_seed("b", 1, 10.0)]
    assert len(rows(found).tables[0].rows) == 2


# --- differences and ranks


def test_holm_is_the_step_down_of_the_paper() -> None:
    """By hand: sorted p times 4, 3, 2, 1, never falling."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert len(stats.holm([])) == 0


def test_pairing_finds_what_an_unpaired_comparison_cannot() -> None:
    """Two models that share most of what their samples vary by."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=2000)
    a, b = shared, shared + 0.1 + 0.1 * rng.normal(size=2000)
    estimates = [
        stats.Estimate(x.mean(), stats.mean_stderr(x), stats.leave_out(float(x.mean()), x, groups=20)) for x in (a, b)
    ]
    paired = stats.difference(*estimates)
    assert paired.paired and paired.p < 1e-6
    assert paired.interval[0] < -0.1 < paired.interval[1]
    alone = stats.difference(*(stats.Estimate(each.value, each.stderr) for each in estimates))
    assert not alone.paired and alone.p > 0.001
    assert alone.stderr == pytest.approx(math.hypot(*(each.stderr for each in estimates)))


def test_welchs_degrees_of_freedom_are_those_of_the_textbook() -> None:
    a, b = stats.Estimate(1.0, 3.0, dof=4), stats.Estimate(0.0, 4.0, dof=9)
    assert stats.welch_dof(a, b) == pytest.approx(25**2 / (81 / 4 + 256 / 9))
    assert stats.welch_dof(stats.Estimate(1.0, 0.0, dof=4), b) == pytest.approx(9)
    assert stats.welch_dof(stats.Estimate(1.0, 3.0), stats.Estimate(0.0, 4.0)) is None
    assert stats.difference(a, b).interval[1] - 1 == pytest.approx(scipy.stats.t.ppf(0.975, 625 / 48.6944444) * 5)


def test_equal_models_of_five_values_each_are_seldom_told_apart() -> None:
    """A normal distribution in place of Student's t tells some pair of ten equal models apart in 22 % of cases."""
    rng, told = np.random.default_rng(3), 0
    for _ in range(400):
        values = rng.normal(size=(10, 5))
        found = [stats.Estimate(float(x.mean()), stats.mean_stderr(x), dof=4) for x in values]
        told += stats.rank_ranges(found) != [(1, 10)] * 10
    assert told / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_a_ranking_takes_the_degrees_of_freedom_of_training_seeds_also_from_older_records() -> None:
    score = Score(value=2.0, stderr=0.5, interval=(1, 3), per_seed=(1.0, 2.0, 3.0))
    for found, dof in ((score, 2), (score.model_copy(update={"dof": 7}), 7)):
        taken = estimate(record("a", found), "fd_toy")
        assert taken is not None and taken.dof == dof


def test_seeds_that_differ_by_more_than_their_samples_are_not_compared_by_their_samples() -> None:
    """Two equal models of three seeds each: their jackknife's groups know nothing of what a seed moves."""
    rng, told = np.random.default_rng(4), 0
    for _ in range(200):
        found = []
        for model in "ab":
            for seed in range(3):
                value = 10 + float(rng.normal())
                near = tuple(value + 0.01 * rng.normal(size=20))
                score = Score(value=value, stderr=0.03, interval=(value - 0.1, value + 0.1), replicates=near)
                found.append(record(model, score, seed=seed))
        told += {row.ranks for row in rows(found).tables[0].rows} != {(1, 2)}
    assert told / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("wrong", [{"stderr": math.nan}, {"stderr": -1.0}, {"interval": (3, 1)},
                                   {"interval": (0, math.inf)}, {"interval": (math.nan, 1)}])  # fmt: skip
def test_errors_that_no_record_could_hold_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="standard error|interval"):
        Score(value=1.0, **wrong)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_paired_intervals_cover_the_difference(share: float) -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(1000):
        common = rng.normal(size=(400, 1)) * math.sqrt(share)
        x = common + rng.normal(size=(400, 2)) * math.sqrt(1 - share) + [0.0, 0.3]
        a, b = (stats.Estimate(float(c.mean()), stats.mean_stderr(c), stats.leave_out(float(c.mean()), c, groups=20))
                for c in x.T)  # fmt: skip
        found = stats.difference(b, a)
        hits += found.interval[0] <= 0.3 <= found.interval[1]
    assert 0.93 <= hits / 1000 <= 0.97


def test_equal_models_are_seldom_told_apart() -> None:
    """The chance that any of 10 pairs is told apart stays at 5 %."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(1000):
        ranges = stats.rank_ranges([stats.Estimate(v, 1.0) for v in rng.normal(size=5)])
        wrong += any(each != (1, 5) for each in ranges)
    assert wrong / 1000 <= 0.065


def test_ranks_are_ranges_of_what_is_told_apart() -> None:
    losses = [stats.Estimate(value, 1.0) for value in (-30.0, -10.0, -11.0, 0.0)]
    assert stats.rank_ranges(losses) == [(1, 1), (2, 3), (2, 3), (4, 4)]


@pytest.mark.parametrize(
    ("better", "values"),
    [
        (Better(True), (30.0, 10.0, 11.0, 0.0)),
        (Better(False), (0.0, 20.0, 19.0, 30.0)),
        # On both sides of it: 1, 21, 20 and 31 away.
        (Better(None, 50.0), (51.0, 29.0, 70.0, 81.0)),
    ],
)
def test_ranks_follow_what_is_better(better: Better, values: tuple[float, ...]) -> None:
    losses = [loss_estimate(stats.Estimate(value, 1.0), better) for value in values]
    assert stats.rank_ranges(losses) == [(1, 1), (2, 3), (2, 3), (4, 4)]


def test_the_loss_of_an_estimate_keeps_its_errors() -> None:
    found = loss_estimate(stats.Estimate(0.9, 0.1, (0.8, 1.0)), Better(None, 1.0))
    assert found.value == pytest.approx(0.1) and found.stderr == 0.1
    assert found.replicates == pytest.approx((0.2, 0.0))
    assert loss_estimate(stats.Estimate(3.0, 1.0), Better(True)) == stats.Estimate(-3.0, 1.0)


def test_a_leaderboard_groups_models_that_cannot_be_told_apart() -> None:
    board = rows([record("a", 10.0), record("b", 10.5), record("c", 40.0), record("r", 1.0, family="real")])
    ranks = {row.label: row.ranks for row in board.tables[0].rows}
    assert ranks == {"a": (1, 2), "b": (1, 2), "c": (3, 3), "r": None}
    assert "Ranks by FD (toy): 1 to 2 a; 1 to 2 b; 3 c." in to_markdown(board)
    lines = {line["model"]: (line["rank_low"], line["rank_high"]) for line in flat(board)}
    assert lines["c"] == (3, 3) and lines["r"] == (None, None)


def test_a_score_without_an_error_has_no_rank() -> None:
    bare = record("bare", scores=(scored(FD, Score(value=3.0, n=10)),))
    ranks = {row.label: row.ranks for row in rows([record("a", 10.0), record("b", 20.0), bare]).tables[0].rows}
    assert ranks == {"a": (1, 1), "b": (2, 2), "bare": None}


# --- replicates of each metric


def test_replicates_give_back_each_metrics_standard_error() -> None:
    from metric_cases import features, layers, reference

    real, found = reference(), layers(features(800, seed=5))
    for metric in (frechet_distance, kernel_distance, precision_recall, inception_score):
        params = {"subset_size": 200} if metric is kernel_distance else {}
        scores = metric.compute(real=real, generated=found, rng=np.random.default_rng(0), **params)
        for name, each in scores.items():
            assert stats.jackknife_stderr(each.replicates) == pytest.approx(each.stderr, rel=0.45), name
            assert np.mean(each.replicates) == pytest.approx(each.value, abs=each.stderr), name


def test_replicates_are_what_leaving_a_group_out_gives() -> None:
    from metric_cases import features, reference

    real, x = reference(), features(800, seed=6)
    found = frechet_distance.compute(real=real, generated={"features": x}, rng=np.random.default_rng(0))["fd_toy"]
    for group in (0, 7, 19):
        rest = x[np.arange(800) % 20 != group]
        exact = frechet_distance.frechet_distance_to_features(real=real.moments, generated=rest)
        # Leaving samples out adds bias, which is the same for every group; the first order has none.
        assert found.replicates[group] - found.value == pytest.approx(exact - found.value, abs=0.2 * found.stderr)


# --- the command line


def test_several_seeds_are_a_record_each_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, protocol = make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "--models", "blobs:make", "--dataset", str(images), "--protocol", str(protocol),
                  "--seeds", "0,3", "--quiet"])  # fmt: skip
    assert left.value.code == 0
    records = [ResultRecord.read(path) for path in sorted(Path("results").glob("*/*.json"))]
    assert sorted(each.spec.seed for each in records) == [0, 3]
    (row,) = rows(records).tables[0].rows
    assert row.seeds == (0, 3)
    values = [each.score("fd_identity").value for each in records]
    assert row.record.score("fd_identity").value == pytest.approx(np.mean(values))


@pytest.mark.parametrize(("text", "message"), [("0,x", "expected whole numbers"), ("1,1", "names a seed twice")])
def test_seeds_that_are_none_are_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "--models", "ddgan", "--seeds", text])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
