"""The self-test on known damage: each damage is what it says, and a score that cannot see one is reported so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trilemma_bench import cli, registry, selftest
from trilemma_bench.data.gaussians25 import MIXTURE, draw
from trilemma_bench.errors import UsageError
from trilemma_bench.kinds import Metric
from trilemma_bench.record import Score
from trilemma_bench.run import Settings, find_data, find_protocol
from trilemma_bench.selftest import DAMAGES, Damage, Detection, add_noise, detect, drop_modes, duplicate, unseen
from trilemma_bench.spec import Protocol

RNG = np.random.default_rng(0)


def modes(points: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.square(points[:, None] - MIXTURE.centres).sum(2).argmin(1)
    return found


def protocol(*metrics: str) -> Protocol:
    full = find_protocol("lite", find_data("gaussians25", Settings()))
    scores = tuple(each for each in full.scores if each.metric in metrics)
    small = full.reference.model_copy(update={"num_features": 1000})
    return full.model_copy(update={"scores": scores, "reference": small})


def doses(*metrics: str, damages: tuple[Damage, ...], num_samples: int = 200) -> dict[tuple[str, str], Detection]:
    settings = Settings()
    found = detect(
        find_data("gaussians25", settings), protocol(*metrics), settings, num_samples=num_samples, damages=damages
    )
    return {(each.damage, each.score): each for each in found}


# --- the damages ------------------------------------------------------------------------------------------


def test_dropped_modes_are_empty_and_the_others_keep_their_shape() -> None:
    points = draw(2000, 3)
    for dose in (1, 5, 20):
        damaged = drop_modes(points, dose, MIXTURE, RNG)
        assert len(np.unique(modes(damaged))) == 25 - dose
        offsets = points - MIXTURE.centres[modes(points)]
        np.testing.assert_allclose(damaged - MIXTURE.centres[modes(damaged)], offsets, atol=1e-12)
    more, fewer = (set(modes(drop_modes(points, dose, MIXTURE, RNG))) for dose in (2, 5))
    assert fewer < more


def test_duplicates_are_copies_of_what_is_left() -> None:
    points = draw(200, 3)
    damaged = duplicate(points, 0.3, MIXTURE, np.random.default_rng(1))
    assert (damaged != points).all(1).sum() == 60
    assert len(np.unique(damaged, axis=0)) == 140
    assert set(map(tuple, damaged)) <= set(map(tuple, points))


def test_noise_is_in_deviations_of_a_mode() -> None:
    points = draw(5000, 3)
    moved = add_noise(points, 2, MIXTURE, np.random.default_rng(1)) - points
    assert moved.std() == pytest.approx(2 * MIXTURE.sigma, rel=0.03)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_doses_grow_and_leave_the_count_as_it_is(damage: Damage) -> None:
    assert list(damage.doses) == sorted(set(damage.doses))
    points = draw(100, 3)
    for dose in damage.doses:
        damaged = damage.apply(points, dose, MIXTURE, np.random.default_rng(1))
        assert damaged.shape == points.shape and (damaged != points).any()


# --- what is seen -----------------------------------------------------------------------------------------


def test_each_score_sees_what_it_measures_and_is_said_not_to_see_the_rest() -> None:
    found = doses("mode_coverage", damages=(DAMAGES[0], DAMAGES[2]), num_samples=400)
    assert found["dropped modes", "modes"] == Detection("dropped modes", "modes of 25", "modes", 1, "worse")
    assert found["dropped modes", "high quality"].dose is None
    dose = found["noise", "high quality"].dose
    assert dose is not None and 0.2 < dose <= 2 and found["noise", "high quality"].change == "worse"
    assert found["noise", "spread ratio"].change == "worse"


def test_recall_takes_noise_for_diversity_and_the_table_says_so() -> None:
    found = doses("precision_recall", damages=(replace(DAMAGES[2], doses=(0.1, 1)),), num_samples=500)
    assert found["noise", "precision"].change == "worse"
    assert found["noise", "recall"].change == "better"
    assert "1 (as better)" in selftest.to_markdown(list(found.values()))


def test_only_what_treats_the_sides_differently_sees_that_they_were_swapped() -> None:
    found = doses("mode_coverage", "wasserstein", damages=(replace(DAMAGES[3], doses=(10,)),))
    swap = DAMAGES[3].name
    assert found[swap, "modes"].dose == 10 and found[swap, "modes"].change == "other"
    assert found[swap, "W2"].dose is None  # a distance


def test_a_dose_that_is_seen_below_one_that_is_not_does_not_count() -> None:
    flips = Damage("flips", "", (1, 2, 3), lambda points, dose, *_: points * (0 if dose in (1, 3) else 1))
    assert doses("mode_coverage", damages=(flips,), num_samples=400)["flips", "modes"].dose == 3


def test_no_damage_is_not_seen() -> None:
    nothing = Damage("nothing", "", (0,), lambda points, *_: points)
    found = doses("mode_coverage", "wasserstein", damages=(nothing,))
    assert [key for key, each in found.items() if each.dose is not None] == []
    assert unseen(list(found.values())) == ["nothing"]


def test_a_score_that_fails_under_damage_has_seen_it() -> None:
    far = Damage("outside", "", (1,), lambda points, *_: points + 1.0)
    assert doses("mode_coverage", damages=(far,))["outside", "spread ratio"].change == "worse"


# --- a broken metric --------------------------------------------------------------------------------------


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode coverage that never looks at its samples."""
    true: Metric = registry.get("metric", "mode_coverage")

    def compute(**given: Any) -> dict[str, Score]:
        return {kind.name: Score(value=25.0, stderr=0.0) for kind in true.kinds(None)}  # type: ignore[arg-type]

    get = registry.get
    broken = replace(true, compute=compute)
    monkeypatch.setattr(
        registry, "get", lambda kind, name: broken if (kind, name) == ("metric", "mode_coverage") else get(kind, name)
    )


def test_a_metric_that_cannot_see_a_damage_is_reported_so(blind: None) -> None:
    found = list(doses("mode_coverage", damages=DAMAGES).values())
    assert all(each.dose is None and each.change is None for each in found)
    assert unseen(found) == [damage.name for damage in DAMAGES]
    text = selftest.to_markdown(found)
    assert text.count("not seen") == 4 * len({each.score for each in found})
    assert "no score sees duplicates: the protocol is blind to it" in text


def test_the_command_fails_where_a_damage_is_seen_by_no_score(
    blind: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trilemma_bench.run.find_protocol", lambda *_: protocol("mode_coverage"))
    for extra in ([], ["--dataset", "gaussians25", "--json"]):
        with pytest.raises(SystemExit) as left:
            cli.main(["selftest", "--num-samples", "100", "--quiet", *extra])
        assert left.value.code == 1
    out = capsys.readouterr().out
    assert {item["dose"] for item in json.loads(out[out.index("[\n") :])} == {None}


# --- errors -----------------------------------------------------------------------------------------------


def test_data_without_known_modes_is_refused() -> None:
    settings = Settings()
    data = find_data("cifar10", settings)
    with pytest.raises(UsageError, match="modes of cifar10 are not known.*--protocol paper"):
        detect(data, find_protocol("lite", data), settings)


def test_more_samples_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="10 sets of 1001 samples are asked for.*takes 2 to 1000"):
        doses("mode_coverage", damages=(), num_samples=1001)
