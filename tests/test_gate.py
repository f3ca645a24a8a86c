"""What a gate decides from numbers alone, how often it is wrong, and how its verdict reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from ranking_cases import FD, PRECISION, RECALL, record, score, scored, speed

from trilemma_bench import gate_text
from trilemma_bench.errors import StoreError
from trilemma_bench.gate import (
    ALPHA,
    Expectation,
    ExpectedImages,
    ExpectedSpeed,
    ImageDifference,
    Observation,
    expected_score,
    judge,
    matching,
)
from trilemma_bench.record import Hardware, ResultRecord, Score, ScoreKind

KINDS = {FD: (40.0, 1.0), RECALL: (0.4, 0.02), PRECISION: (0.7, 0.02)}
MEMORISED = ScoreKind(name="memorised_toy", axis="coverage", higher_is_better=False)
HARDWARE = Hardware(device="cpu", model="Zen 5", threads=2, platform="linux", dtype="float32")
SAME = ImageDifference(count=32, largest=1, differing=1e-4, mean=1e-4, worst_seed=3)


def measured(seed: int, values: dict[ScoreKind, float], *, model: str = "ddpm", digest: str = "new") -> ResultRecord:
    found = record(
        model, scores=tuple(scored(kind, score(value)) for kind, value in values.items()), seed=seed,
        found_speed=speed(timings=()),
    )  # fmt: skip
    return found.model_copy(update={"provenance": found.provenance.model_copy(update={"samples_digest": digest})})


def expectation(
    values: dict[ScoreKind, list[float]],
    *,
    model: str = "ddpm",
    rounding: float = 0.0,
    half: float = 0.0,
    **changed: Any,
) -> Expectation:
    count = len(next(iter(values.values())))
    spec = measured(0, {}, model=model).spec
    contents = {
        "model": model, "dataset": "toy", "protocol": "toy-v1", "num_samples": None, "spec": spec,
        "samples_key": "k", "weights_digest": None, "seeds": tuple(range(count)),
        "samples_digests": tuple(f"run {seed}" for seed in range(count)), "nfe": 4.0, "package_version": "0.1",
        "scores": tuple(
            expected_score([scored(kind, score(value, half=half)) for value in found], rounding=rounding)
            for kind, found in values.items()
        ),
    }  # fmt: skip
    return Expectation(**{**contents, **changed})


def with_images(found: Expectation) -> Expectation:
    images = ExpectedImages(file="x.npz", sha256="0", seeds=(0, 1), tolerance=(2, 0.002))
    return found.model_copy(update={"images": images})


def with_speed(found: Expectation, ratios: list[float], **more: Any) -> Expectation:
    timed = ExpectedSpeed(load="conv-v2", num_images=10, ratios=tuple(ratios), hardware=HARDWARE, **more)
    return found.model_copy(update={"speed": timed})


STEADY = {FD: [40.0, 41.0, 39.0, 40.5, 39.5, 40.2], RECALL: [0.40, 0.42, 0.38, 0.41, 0.39, 0.40]}


def states(found: Expectation, observed: Observation) -> dict[str, tuple[str, str]]:
    return {check.what: (check.stage, check.state) for check in judge([(found, observed)]).checks}


# --- how often it is wrong --------------------------------------------------------------------------------


def drawn(rng: np.random.Generator, size: int) -> dict[ScoreKind, np.ndarray]:
    return {kind: rng.normal(mean, spread, size) for kind, (mean, spread) in KINDS.items()}


def test_two_hundred_gates_of_three_models_without_drift_raise_at_most_four_alarms() -> None:
    """Expectations and runs come from one distribution; each gate has nine scores and three speeds.

    The smallest speed that matters is so small that significance alone decides.
    """
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(200):
        pairs = []
        for model in ("a", "b", "c"):
            wanted = expectation({kind: list(v) for kind, v in drawn(rng, 6).items()}, model=model)
            wanted = with_speed(wanted, list(np.exp(rng.normal(0.7, 0.03, 10))), min_factor=1.001)
            now = measured(99, {kind: float(v[0]) for kind, v in drawn(rng, 1).items()}, model=model)
            ratio = float(np.exp(rng.normal(0.7, 0.03)))
            pairs.append((wanted, Observation(records=(now,), speed=(ratio, HARDWARE))))
        verdict = judge(pairs)
        assert sum(check.p is not None for check in verdict.checks) == 12
        alarms += verdict.exit_code != 0
    assert alarms <= 4


@pytest.mark.parametrize(("shift", "least"), [(20, 190), (12, 120)])
def test_power_of_a_score_against_six_seeds(shift: float, least: int) -> None:
    """Of 200 gates how many see one score move by so many spreads: what images are for is everything smaller."""
    rng = np.random.default_rng(3)
    seen = 0
    for _ in range(200):
        wanted = expectation({kind: list(v) for kind, v in drawn(rng, 6).items()})
        values = {kind: float(v[0]) for kind, v in drawn(rng, 1).items()}
        values[FD] += shift * KINDS[FD][1] * rng.choice([-1, 1])
        seen += judge([(wanted, Observation(records=(measured(99, values),)))]).exit_code == 1
    assert seen >= least


def test_fractions_near_zero_raise_no_alarm_by_a_few_images() -> None:
    wanted = expectation({MEMORISED: [0.0] * 6, RECALL: [0.0, 0.0, 0.0, 0.0, 0.0002, 0.0]})
    now = Observation(records=(measured(99, {MEMORISED: 0.008, RECALL: 0.004}),))
    assert judge([(wanted, now)]).exit_code == 0
    moved = Observation(records=(measured(99, {MEMORISED: 0.1, RECALL: 0.004}),))
    assert states(wanted, moved)["memorised_toy"] == ("scores", "drift")


# --- which stage ------------------------------------------------------------------------------------------


def test_new_seeds_are_held_against_the_spread_in_both_directions() -> None:
    wanted = expectation(STEADY)
    for value, state in ((40.7, "ok"), (60.0, "drift"), (20.0, "drift")):
        now = Observation(records=(measured(99, {FD: value, RECALL: 0.4}),))
        assert states(wanted, now)["fd_toy"] == ("scores", state)
        (check,) = [check for check in judge([(wanted, now)]).checks if check.what == "fd_toy"]
        assert ("; not significant (corrected p" in check.message) == (state == "ok")
        assert ("; significant (corrected p" in check.message) == (state == "drift")


def test_seeds_that_lie_close_by_chance_do_not_narrow_what_a_score_knows_of_itself() -> None:
    close = {FD: [40.0, 40.01, 39.99, 40.0, 40.02, 40.01]}
    now = Observation(records=(measured(99, {FD: 41.0}),))
    assert states(expectation(close), now)["fd_toy"] == ("scores", "drift")
    assert states(expectation(close, half=1.0), now)["fd_toy"] == ("scores", "ok")


def test_a_significant_difference_without_effect_is_no_drift() -> None:
    wanted = expectation({FD: [40.0, 40.0001, 40.0002, 39.9999, 40.0, 40.0001]})
    assert wanted.scores[0].min_effect == pytest.approx(0.04, rel=1e-3)
    close = Observation(records=(measured(99, {FD: 40.03}),))
    (check,) = [check for check in judge([(wanted, close)]).checks if check.what == "fd_toy"]
    assert check.p is not None and check.p < 1e-6 and check.state == "ok"
    assert states(wanted, Observation(records=(measured(99, {FD: 40.05}),)))["fd_toy"] == ("scores", "drift")


@pytest.mark.parametrize("known_by", ["digest", "images"])
def test_another_number_on_the_same_images_is_the_metrics_doing(known_by: str) -> None:
    """0.6 is well within the spread of other seeds, and no rounding makes it on the same images."""
    wanted = with_images(expectation(STEADY))
    now = measured(2, {FD: 39.6, RECALL: 0.38}, digest="run 2" if known_by == "digest" else "last bits")
    observed = Observation(records=(now,), images=SAME if known_by == "images" else None)
    found = states(wanted, observed)
    assert found["images"] == ("samples", "ok")
    assert found["fd_toy"] == ("metric", "drift") and found["recall_toy"] == ("metric", "ok")


def test_same_images_allow_what_other_last_bits_made_of_a_score() -> None:
    now = Observation(records=(measured(2, {FD: 39.6, RECALL: 0.38}, digest="run 2"),))
    assert states(expectation(STEADY, rounding=0.2), now)["fd_toy"] == ("metric", "ok")
    assert states(expectation(STEADY, rounding=0.1), now)["fd_toy"] == ("metric", "drift")


@pytest.mark.parametrize(
    ("largest", "differing", "state"), [(2, 0.002, "ok"), (3, 0.0001, "drift"), (1, 0.0021, "drift")]
)
def test_images_drift_beyond_the_tolerance_of_the_sampler(largest: int, differing: float, state: str) -> None:
    wanted = with_images(expectation(STEADY))
    images = ImageDifference(count=2, largest=largest, differing=differing, mean=0.1, worst_seed=1)
    observed = Observation(records=(measured(0, {FD: 40.0, RECALL: 0.4}),), images=images)
    assert states(wanted, observed)["images"] == ("samples", state)


def test_points_that_moved_are_no_grey_levels() -> None:
    images = ExpectedImages(file="x.npz", sha256="0", seeds=(0, 1), tolerance=(0.001, 1.0))
    wanted = expectation(STEADY).model_copy(update={"images": images})
    protocol = wanted.spec.protocol.model_copy(update={"image_shape": (2,)})
    wanted = wanted.model_copy(update={"spec": wanted.spec.model_copy(update={"protocol": protocol})})
    moved = ImageDifference(count=2, largest=0.5, differing=1.0, mean=0.25, worst_seed=1)
    observed = Observation(records=(measured(0, {FD: 40.0, RECALL: 0.4}),), images=moved)
    (check,) = [check for check in judge([(wanted, observed)]).checks if check.what == "images"]
    assert check.state == "drift" and "2 points" in check.message and "levels" not in str(check)


def test_moved_images_say_where_the_weights_are_others() -> None:
    wanted = with_images(expectation(STEADY, weights_digest="w1"))
    images = ImageDifference(count=2, largest=200, differing=0.9, mean=20, worst_seed=1)
    for digest, said in (("w2", True), ("w1", False), (None, False)):
        now = (measured(0, {FD: 40.0, RECALL: 0.4}),)
        verdict = judge([(wanted, Observation(records=now, images=images, weights_digest=digest))])
        assert ("the weights are others" in verdict.checks[0].message) == said


def test_moved_images_give_their_stage_to_moved_scores() -> None:
    wanted = with_images(expectation(STEADY))
    images = ImageDifference(count=2, largest=200, differing=0.9, mean=20, worst_seed=1)
    observed = Observation(records=(measured(0, {FD: 90.0, RECALL: 0.4}),), images=images)
    assert states(wanted, observed)["fd_toy"] == ("samples", "drift")
    assert judge([(wanted, observed)]).stages == ("samples",)


def test_another_count_of_evaluations_is_a_drift_of_the_samples() -> None:
    now = measured(99, {FD: 40.0, RECALL: 0.4})
    assert now.speed is not None
    now = now.model_copy(update={"speed": now.speed.model_copy(update={"nfe": 3.0})})
    assert states(expectation(STEADY), Observation(records=(now,)))["NFE"] == ("samples", "drift")


def test_other_digests_are_a_drift_of_the_features_and_scores_are_left_alone() -> None:
    wanted = expectation(STEADY, extractor_identities={"toy": "e" * 20}, reference_digests={"toy": "r" * 20})
    now = record("ddpm", scores=(scored(FD, score(90), features_key="f2"), scored(RECALL, score(0.4))), seed=99)
    provenance = now.provenance.model_copy(
        update={"extractor_identities": {"toy": "e" * 20}, "reference_digests": {"toy": "t" * 20}}
    )
    verdict = judge([(wanted, Observation(records=(now.model_copy(update={"provenance": provenance}),)))])
    found = {check.what: check for check in verdict.checks}
    assert verdict.stages == ("features",)
    assert "reference tttttttttttt instead of rrrrrrrrrrrr" in found["toy"].message
    assert "extractor" not in found["toy"].message
    assert found["fd_toy"].state == "not judged"


def test_other_parameters_of_a_metric_are_its_drift() -> None:
    now = record("ddpm", scores=(scored(FD, score(40), score_key="s2"), scored(RECALL, score(0.4))), seed=99)
    found = states(expectation(STEADY), Observation(records=(now,)))
    assert found["fd_toy"] == ("metric", "drift") and found["recall_toy"][1] == "ok"


def test_a_score_that_fails_now_is_a_drift() -> None:
    failed = Score.failed("2 rows hold NaN")
    now = record("ddpm", scores=(scored(FD, failed), scored(RECALL, score(0.4))), seed=99)
    assert states(expectation(STEADY), Observation(records=(now,)))["fd_toy"] == ("metric", "drift")


@pytest.mark.parametrize(("factor", "state"), [(1.0, "ok"), (1.2, "ok"), (1.5, "drift"), (0.6, "drift")])
def test_speed_is_a_ratio_with_a_smallest_factor_that_matters(factor: float, state: str) -> None:
    wanted = with_speed(expectation(STEADY), [2.0, 2.04, 1.97, 2.02, 1.99, 2.01])
    now = Observation(records=(measured(99, {FD: 40, RECALL: 0.4}),), speed=(2.0 * factor, HARDWARE))
    assert states(wanted, now)["time of 10 images / reference load"] == ("speed", state)


def test_half_as_slow_again_is_seen_among_the_scores_of_many_models() -> None:
    """The spread of times is as wide as may be; corrected with all those scores, 1.5 would not be significant."""
    logs = 0.05 * np.array([-1.6, -1, -0.7, -0.4, -0.1, 0.1, 0.4, 0.7, 1, 1.6])
    slow = with_speed(expectation(STEADY), list(2 * np.exp(logs)))
    well = Observation(records=(measured(99, {FD: 40, RECALL: 0.4}),))
    others = [(expectation(STEADY, model=f"m{index}"), well) for index in range(60)]
    verdict = judge([(slow, replace(well, speed=(3.0, HARDWARE))), *others])
    assert verdict.stages == ("speed",)
    (check,) = [check for check in verdict.checks if check.stage == "speed"]
    assert check.p is not None and check.p * 123 > ALPHA / 2


@pytest.mark.parametrize(("spread", "state"), [(0.03, "drift"), (0.2, "not judged")])
def test_times_that_spread_too_far_to_tell_are_said_and_not_judged(spread: float, state: str) -> None:
    ratios = list(2 * np.exp(spread * np.array([-1.5, -1, -0.5, 0, 0.1, 0.4, 0.8, 1.2, 1.5, -0.9])))
    now = Observation(records=(measured(99, {FD: 40, RECALL: 0.4}),), speed=(3.1, HARDWARE))
    verdict = judge([(with_speed(expectation(STEADY), ratios), now)])
    (check,) = [check for check in verdict.checks if check.stage == "speed"]
    assert check.state == state and ("quieter machine" in check.message) == (state == "not judged")


def test_speed_of_another_machine_is_shown_and_not_judged() -> None:
    wanted = with_speed(expectation(STEADY), [2.0] * 6)
    other = HARDWARE.model_copy(update={"model": "Xeon"})
    now = Observation(records=(measured(99, {FD: 40, RECALL: 0.4}),), speed=(9.0, other))
    assert states(wanted, now)["time of 10 images / reference load"] == ("speed", "not judged")


# --- unusable ---------------------------------------------------------------------------------------------


def test_exit_codes() -> None:
    wanted = expectation(STEADY)
    well = Observation(records=(measured(99, {FD: 40, RECALL: 0.4}),))
    moved = Observation(records=(measured(99, {FD: 90, RECALL: 0.4}),))
    assert judge([(wanted, well)]).exit_code == 0
    assert judge([(wanted, well), (wanted, moved)]).exit_code == 1
    assert judge([(wanted, moved), (wanted, Observation(failure="no such weights"))]).exit_code == 2
    assert judge([(wanted, Observation())]).exit_code == 2
    assert judge([(wanted, Observation(records=(measured(99, {FD: 40}),)))]).exit_code == 2
    assert judge([]).exit_code == 2


def test_an_expectation_of_images_alone_cannot_be_judged_by_records() -> None:
    wanted = with_images(expectation(STEADY)).model_copy(update={"scores": (), "seeds": (), "samples_digests": ()})
    assert judge([(wanted, Observation())]).exit_code == 2
    assert judge([(wanted, Observation(images=SAME))]).exit_code == 0


def test_matching_takes_records_of_the_model_and_protocol_and_no_failures() -> None:
    wanted = expectation(STEADY)
    good = [measured(seed, {FD: 40.0, RECALL: 0.4}) for seed in (3, 4)]
    others = [
        measured(0, {FD: 40.0}, model="other"),
        record("ddpm", 40.0, protocol_name="other-v1"),
        good[0].model_copy(update={"samples_key": ""}),
        good[0].model_copy(update={"spec": good[0].spec.model_copy(update={"dtype": "bfloat16"})}),
    ]
    assert matching(wanted, [*others, *good]) == tuple(good)


def test_expectations_come_back_from_their_file(tmp_path: Path) -> None:
    wanted = with_speed(with_images(expectation(STEADY)), [2.0] * 6)
    path = tmp_path / "x.expected.json"
    path.write_text(wanted.dumps())
    assert Expectation.read(path) == wanted
    for broken in ("{}", "[", '{"schema_version": 9}', wanted.dumps().replace('"seeds"', '"sods"')):
        path.write_text(broken)
        with pytest.raises(StoreError, match="expect make"):
            Expectation.read(path)


@pytest.mark.parametrize("count", [4, 1])
def test_fewer_than_five_seeds_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="at least 5"):
        expectation({FD: [40.0 + i for i in range(count)]})


# --- how it reads -----------------------------------------------------------------------------------------

HOSTILE = "a|b<script>\n::error::x%\x07&`"


def hostile_verdict() -> Any:
    wanted = expectation({FD: STEADY[FD]}, model=HOSTILE)
    moved = Observation(records=(measured(99, {FD: 90.0}, model=HOSTILE),))
    return judge([(wanted, moved), (wanted, Observation(failure=HOSTILE))])


def test_junit_has_a_case_a_check_and_survives_hostile_names() -> None:
    root = ElementTree.fromstring(gate_text.to_junit(hostile_verdict()))
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "1")
    assert "<script>" in str(suite.get("name"))
    (failure,) = suite.iter("failure")
    assert "expected 40.03" in str(failure.get("message"))


def test_annotations_stay_on_one_line_each() -> None:
    for line in gate_text.to_annotations(hostile_verdict()):
        assert line.startswith("::error title=trilemma-bench gate%2C ") and line.count("\n") == 0
        assert "%25" in line and "\x07" not in line


def test_markdown_says_what_moved_and_what_to_do() -> None:
    verdict = hostile_verdict()
    drifted = replace(verdict, checks=tuple(check for check in verdict.checks if check.state != "unusable"))
    text = gate_text.to_markdown(drifted)
    assert text.startswith("### Gate: drift in scores; 1 of 2 checks")
    assert "expect make" in text and "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("| a")]
    assert [row.split(" | ")[2] for row in rows] == ["fd_toy", "images", "NFE", "fd_toy"]


def test_a_gate_where_nothing_moved_says_so() -> None:
    verdict = judge([(expectation(STEADY), Observation(records=(measured(99, {FD: 40.0, RECALL: 0.4}),)))])
    first, *others = gate_text.to_lines(verdict)
    assert first == "Gate: nothing moved; 3 checks, 1 could not be judged here"
    (left,) = (check for check in verdict.checks if check.state == "not judged")
    assert len(others) == 1 and others[0].startswith("  not judged: ") and left.what in others[0]
    assert gate_text.to_annotations(verdict) == []


def test_of_several_seeds_one_drift_up_does_not_hide_one_down() -> None:
    fd, recall = STEADY[FD], STEADY[RECALL]
    up = measured(0, {FD: fd[0] + 5, RECALL: recall[0]}, digest="run 0")
    down = measured(1, {FD: fd[1] - 5, RECALL: recall[1]}, digest="run 1")
    for records in ((up, down), (up,), (down,)):
        assert states(expectation(STEADY), Observation(records=records))["fd_toy"] == ("metric", "drift")
