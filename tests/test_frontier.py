"""The Pareto set and its hypervolume by hand, and questions to a leaderboard."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ranking_cases import NEAR, record, score, scored, speed

from trilemma_bench.errors import UsageError
from trilemma_bench.frontier import best, dominates, frontier, hypervolume
from trilemma_bench.ranking import Table, arrange, find_column, rows
from trilemma_bench.record import Score

RECORDS = [
    record("slow", 10.0, recall=0.6, found_speed=speed(1000, nfe=1000)),
    record("quick", 30.0, recall=0.2, found_speed=speed(0.1, nfe=1)),
    record("middle", 20.0, recall=0.4, found_speed=speed(10, nfe=4)),
    record("worse", 25.0, recall=0.3, found_speed=speed(20, nfe=8)),
    record("untimed", 5.0, recall=0.9),
    record("failed", Score.failed("NaN"), recall=0.1, found_speed=speed(1)),
    record("real:split=test", 1.0, recall=0.95, family="real", found_speed=speed(0.01)),
]


def table(records: list = RECORDS) -> Table:  # type: ignore[type-arg]
    return rows(records).tables[0]


def names(found: list) -> list[str]:  # type: ignore[type-arg]
    return [row.label for row in found]


def test_pareto_set_holds_what_no_other_beats_and_neither_real_images_nor_rows_without_a_number() -> None:
    found = frontier(table())
    assert found is not None
    assert [column.name for column in found.columns] == ["fd_toy", "recall_toy", "seconds_per_100_images"]
    assert names(list(found.rows)) == ["slow", "middle", "worse", "quick"]
    assert names(list(found.efficient)) == ["slow", "middle", "quick"]


def test_hypervolume_of_a_table_by_hand() -> None:
    """Scaled losses: slow (0, 0, 1), middle (1/2, 1/2, 1/2), quick (1, 1, 0): only the middle one has a volume."""
    found = frontier(table())
    assert found is not None and found.hypervolume == pytest.approx(1 / 8)


def test_hypervolume_is_that_of_the_union_of_boxes() -> None:
    assert hypervolume([(0.0, 0.0, 0.0)]) == 1
    assert hypervolume([(0.5, 0.0, 0.0), (0.0, 0.5, 0.0)]) == pytest.approx(0.75)
    assert hypervolume([(0.2, 0.6), (0.6, 0.2), (0.7, 0.7)]) == pytest.approx(0.32 + 0.32 - 0.16)


def test_hypervolume_agrees_with_counting_random_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((6, 3))
    drawn = rng.random((200_000, 3))
    counted = (drawn[:, None] >= points[None]).all(2).any(1).mean()
    assert hypervolume(points.tolist()) == pytest.approx(counted, abs=0.005)


def test_a_dominated_point_adds_nothing_and_order_does_not_matter() -> None:
    points = [(0.2, 0.5, 0.3), (0.4, 0.1, 0.6), (0.5, 0.6, 0.7)]
    assert dominates(points[0], points[2]) and not dominates(points[0], points[1])
    assert not dominates(points[0], points[0])
    values = {round(hypervolume(list(order)), 12) for order in itertools.permutations(points)}
    assert values == {round(hypervolume(points[:2]), 12)}


def test_many_models_have_a_hypervolume_in_no_time() -> None:
    """Cells grow with the cube of the points: of two hundred there would be eight million."""
    rng = np.random.default_rng(0)
    found = frontier(table([
        record(f"m{index}", score(10 + a), recall=0.5 - 0.1 * b, found_speed=speed(10 ** c, nfe=4))
        for index, (a, b, c) in enumerate(rng.random((200, 3)) + np.arange(200)[:, None] / 40)
    ]))  # fmt: skip
    assert found is not None and found.hypervolume is not None and 0 < found.hypervolume < 1
    assert len(found.efficient) < 60


def test_no_frontier_without_an_axis() -> None:
    assert frontier(table([record("a", 1.0), record("b", 2.0)])) is None


# --- questions --------------------------------------------------------------------------------------------


def test_columns_are_found_by_name_label_or_beginning() -> None:
    for name in ("fd_toy", "FD (toy)", "fd", "FD"):
        assert find_column(table(), name).name == "fd_toy"
    assert find_column(table(), "seconds").name == "seconds_per_100_images"


def test_fid_is_never_taken_from_other_features() -> None:
    with pytest.raises(UsageError, match="TF Inception features only"):
        find_column(table(), "fid")


def test_best_under_conditions_and_with_those_that_are_tied() -> None:
    assert names(best(table(), "fd")) == ["untimed"]
    assert names(best(table(), "fd", ["seconds<=50"])) == ["middle"]
    assert names(best(table(), "recall", ["seconds < 10", "nfe<=4"])) == ["quick"]
    assert names(best(table(), "seconds", ["recall_toy>=0.3"])) == ["middle"]
    assert best(table(), "fd", ["seconds<=0.01"]) == []
    tied = table([record("a", 10.0), record("b", 10.5), record("c", 30.0)])
    assert names(best(tied, "fd")) == ["a", "b"]


@pytest.mark.parametrize("condition", ["seconds", "seconds<=x", "seconds=1", "<=1", "seconds<=1e", "colour<=1"])
def test_what_is_no_condition_is_refused(condition: str) -> None:
    with pytest.raises(UsageError):
        best(table(), "fd", [condition])


def test_a_column_without_a_direction_has_no_best() -> None:
    with pytest.raises(UsageError, match="no better direction"):
        best(table(), "parameters")


# --- views ------------------------------------------------------------------------------------------------


def test_rows_sort_by_any_column_with_missing_numbers_after_and_unranked_last() -> None:
    (found,) = arrange(rows(RECORDS), sort="seconds").tables
    assert names(list(found.rows)) == ["quick", "failed", "middle", "worse", "slow", "untimed", "real:split=test"]
    (found,) = arrange(rows(RECORDS), sort="recall").tables
    assert names(list(found.rows))[:2] == ["untimed", "slow"]


def test_columns_come_in_the_order_named_and_once() -> None:
    (found,) = arrange(rows(RECORDS), columns=["seconds", "fd", "FD (toy)"]).tables
    assert [column.name for column in found.columns] == ["seconds_per_100_images", "fd_toy"]
    assert all(len(row.cells) == 2 for row in found.rows)
    with pytest.raises(UsageError, match="colour"):
        arrange(rows(RECORDS), columns=["colour"])


# --- targets ------------------------------------------------------------------------------------------------


def test_the_frontier_counts_the_distance_from_a_target() -> None:
    """`far` is higher, slower and covers no more: it is not efficient."""
    numbers = {"over": (1.2, 1.0), "near": (0.98, 2.0), "far": (1.3, 3.0)}
    rows_of = [
        record(name, recall=0.5, scores=(scored(NEAR, score(x)),), found_speed=speed(seconds))
        for name, (x, seconds) in numbers.items()
    ]
    found = frontier(table(rows_of))
    assert found is not None
    assert sorted(row.label for row in found.efficient) == ["near", "over"]


def test_best_is_what_is_nearest_to_a_target() -> None:
    values = {"over": 1.0, "under": 0.985, "under too": 0.90}
    found = table([record(name, scores=(scored(NEAR, score(x, 0.001)),)) for name, x in values.items()])
    assert [row.label for row in best(found, "near")] == ["under"]
    assert [row.label for row in best(found, "near", ["near<0.95"])] == ["under too"]


def test_the_hypervolume_of_many_efficient_rows_is_quick_and_exact() -> None:
    """A slice at a time: cell by cell, 200 points in three dimensions would take hours."""
    angle = np.linspace(0.01, np.pi / 2 - 0.01, 200)
    flat = [(1 - float(np.cos(a)), 1 - float(np.sin(a))) for a in angle]
    assert hypervolume([(*point, 0.5) for point in flat]) == pytest.approx(hypervolume(flat) / 2)
    assert hypervolume(flat) == pytest.approx(np.pi / 4, abs=0.01)
    rng = np.random.default_rng(0)
    points = np.abs(rng.normal(size=(120, 3)))
    points = 1 - points / np.linalg.norm(points, axis=1, keepdims=True)
    drawn = rng.random((50_000, 3))
    counted = np.mean([(point >= points).all(1).any() for point in drawn])
    assert hypervolume(points.tolist()) == pytest.approx(counted, abs=0.01)
