"""What shares a column, what is ranked, what is best."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from ranking_cases import FD, NEAR, PRECISION, RECALL, record, score, scored, speed, timing

from trilemma_bench.ranking import Cell, Leaderboard, Table, flat, rows, to_dataframe
from trilemma_bench.record import ResultRecord, Score, ScoreKind
from trilemma_bench.render import header
from trilemma_bench.spec import TimingSpec


def only_table(records: list[ResultRecord]) -> Table:
    (table,) = rows(records).tables
    return table


def labels(table: Table) -> list[str]:
    return [row.label for row in table.rows]


def cell(table: Table, label: str, column: str) -> Cell:
    index = [each.name for each in table.columns].index(column)
    return next(row for row in table.rows if row.label == label).cells[index]


def best_of(table: Table, column: str) -> list[str]:
    return [row.label for row in table.rows if cell(table, row.label, column).best]


# --- order and best ---------------------------------------------------------------------------------------


def test_rows_are_sorted_by_the_first_quality_column_best_first() -> None:
    assert labels(only_table([record("c", 30.0), record("a", 10.0), record("b", 20.0)])) == ["a", "b", "c"]
    rising = [
        record(name, scores=(scored(PRECISION, score(value, 0.01)),)) for name, value in (("low", 0.2), ("high", 0.8))
    ]
    assert labels(only_table(rising)) == ["high", "low"]


def test_the_order_of_records_does_not_matter() -> None:
    records = [
        record("a", 10.0, found_speed=speed()),
        record("b", 10.0),
        record("c", recall=0.1),
        record("c", 3.0),
    ]
    boards = [rows(list(order)) for order in itertools.permutations(records)]
    assert all(board == boards[0] for board in boards)


def test_the_best_of_each_column_follows_its_direction_and_ties_are_all_best() -> None:
    table = only_table([record("a", 10.0, recall=0.3), record("b", 20.0, recall=0.5), record("c", 10.0, recall=0.1)])
    assert best_of(table, "fd_toy") == ["a", "c"]
    assert best_of(table, "recall_toy") == ["b"]


def test_real_and_untrained_rows_come_last_and_are_never_best() -> None:
    table = only_table(
        [
            record("real:split=test", 1.0, family="real", recall=0.9),
            record("untrained:ddgan", 300.0, family="untrained", found_speed=speed(0.1)),
            record("good", 10.0, recall=0.4, found_speed=speed(5)),
            record("bad", 50.0, recall=0.2, found_speed=speed(3)),
        ]
    )
    assert labels(table) == ["good", "bad", "real:split=test", "untrained:ddgan"]
    assert [row.ranked for row in table.rows] == [True, True, False, False]
    assert best_of(table, "fd_toy") == best_of(table, "recall_toy") == ["good"]
    assert best_of(table, "seconds_per_100_images") == ["bad"]


def test_a_number_alone_is_not_the_best_of_anything_nor_are_numbers_that_are_all_equal() -> None:
    table = only_table([record("a", 10.0), record("real", 1.0, family="real")])
    assert best_of(table, "fd_toy") == []
    table = only_table([record("a", 10.0), record("b", 10.0)])
    assert best_of(table, "fd_toy") == []


def test_a_score_without_a_direction_and_the_parameters_rank_nobody() -> None:
    neutral = ScoreKind(name="brightness", axis="quality", higher_is_better=None)
    records = [
        record(name, scores=(scored(neutral, score(value)),), found_speed=speed())
        for name, value in (("a", 1.0), ("b", 2.0))
    ]
    table = only_table(records)
    assert best_of(table, "brightness") == best_of(table, "parameters") == []


def test_what_is_nearer_to_a_target_is_better_from_either_side() -> None:
    values = {"over": 1.0, "far": 0.5, "under": 0.985, "under too": 0.90}
    table = only_table([record(name, scores=(scored(NEAR, score(x, 0.001)),)) for name, x in values.items()])
    assert labels(table) == ["under", "over", "under too", "far"]
    assert best_of(table, "near_toy") == ["under"]
    assert [row.ranks for row in table.rows] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert header(table, table.columns[0]) == "near → 0.99"


def test_equally_far_on_both_sides_cannot_be_told_apart() -> None:
    pair = {"over": 0.999, "under": 0.981}
    table = only_table([record(name, scores=(scored(NEAR, score(x, 0.001)),)) for name, x in pair.items()])
    assert [row.ranks for row in table.rows] == [(1, 2), (1, 2)]


def test_columns_stand_in_the_order_of_the_axes() -> None:
    both = (scored(RECALL, score(0.5)), scored(FD, score(3.0)), scored(PRECISION, score(0.5)))
    table = only_table([record("a", scores=both, found_speed=speed())])
    assert [column.name for column in table.columns] == [
        "fd_toy", "precision_toy", "recall_toy", "nfe", "seconds_per_100_images", "gflops_per_image", "parameters",
    ]  # fmt: skip


# --- failures and gaps ------------------------------------------------------------------------------------


def test_a_failure_keeps_its_reason_and_has_no_number() -> None:
    table = only_table([record("broken", Score.failed("3 rows hold NaN")), record("a", 10.0), record("b", 11.0)])
    assert labels(table) == ["a", "b", "broken"]
    found = cell(table, "broken", "fd_toy")
    assert (found.state, found.value, found.note, found.best) == ("failed", None, "3 rows hold NaN", False)


def test_a_new_metric_leaves_old_rows_standing() -> None:
    table = only_table([record("old", 10.0), record("new", 20.0, recall=0.4)])
    assert labels(table) == ["old", "new"]
    assert cell(table, "old", "recall_toy").state == "not measured"


def test_rows_are_sorted_by_a_column_that_most_have() -> None:
    """FID is there for one row only, with Inception's weights at hand."""
    fid = scored(ScoreKind(name="fid", axis="quality", higher_is_better=False, label="FID"), score(5.0))
    table = only_table([record("b", 20.0, scores=(fid,)), record("a", 10.0)])
    assert table.columns[0].name == "fid"
    assert labels(table) == ["a", "b"]


def test_what_was_not_observed_says_so() -> None:
    table = only_table([record("a", 1.0, found_speed=speed(nfe=None)), record("images", 2.0)])
    assert cell(table, "a", "nfe").state == "not observed"
    assert cell(table, "images", "nfe").state == "not measured"
    assert cell(table, "images", "seconds_per_100_images").state == "not measured"


def test_no_speed_columns_where_no_record_has_speed() -> None:
    assert [column.axis for column in only_table([record("a", 1.0)]).columns] == ["quality"]


# --- what is never compared -------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"features_key": "f2"}, {"score_key": "s2"}])
def test_other_keys_stand_in_a_table_of_their_own(changed: dict[str, str]) -> None:
    board = rows([record("a", 10.0), record("b", 20.0), record("c", scores=(scored(FD, score(1.0), **changed),))])
    assert sorted(labels(table) for table in board.tables) == [["a", "b"], ["c"]]


def test_a_failed_record_stands_with_the_others_whatever_its_keys() -> None:
    failed = record("broken", scores=(scored(FD, Score.failed("no weights"), features_key=""),))
    assert labels(only_table([record("a", 10.0), failed])) == ["a", "broken"]


def test_a_record_of_few_scores_joins_a_table_instead_of_starting_one() -> None:
    other = record("b", scores=(scored(FD, score(1.0), score_key="s2"), scored(RECALL, score(0.2))))
    board = rows([record("a", 10.0, recall=0.3), other, record("few", recall=0.1)])
    assert sorted(labels(table) for table in board.tables) == [["a", "few"], ["b"]]


def test_speeds_by_another_rule_stand_in_a_table_of_their_own() -> None:
    same, other = (record(model, 10.0, found_speed=speed()) for model in "ab")
    changed = other.spec.protocol.model_copy(update={"timing": TimingSpec(num_images=1)})
    other = other.model_copy(update={"spec": other.spec.model_copy(update={"protocol": changed})})
    assert [len(table.rows) for table in rows([same, other]).tables] == [1, 1]
    assert len(rows([same, other.model_copy(update={"speed": None})]).tables) == 1


def test_protocols_stand_in_tables_of_their_own() -> None:
    board = rows([record("a", 10.0), record("a", 9.0, protocol_name="toy-v1@n5000"), record("b", 20.0)])
    assert [(table.protocol, labels(table)) for table in board.tables] == [
        ("toy-v1", ["a", "b"]),
        ("toy-v1@n5000", ["a"]),
    ]


@pytest.mark.parametrize("changed", [{"model": "M4"}, {"device": "cuda"}, {"dtype": "bfloat16"}, {"threads": 8}])
def test_speeds_of_different_machines_are_never_ranked_together(changed: dict[str, object]) -> None:
    table = only_table(
        [
            record("a", 1.0, found_speed=speed(9)),
            record("b", 2.0, found_speed=speed(7)),
            record("c", 3.0, found_speed=speed(1), hardware=changed),
        ]
    )
    seconds = [index for index, column in enumerate(table.columns) if column.name == "seconds_per_100_images"]
    assert len(seconds) == len(table.machines) == 2
    values = [[row.cells[index].value for row in table.rows] for index in seconds]
    assert sorted(values, key=lambda column: column.count(None)) == [[9, 7, None], [None, None, 1]]
    best = [[row.label for row in table.rows if row.cells[index].best] for index in seconds]
    assert sorted(best) == [[], ["b"]]
    # Quality does not depend on the machine and is ranked over all.
    assert best_of(table, "fd_toy") == ["a"]


def test_a_measured_timing_goes_before_an_extrapolated_one_and_a_new_before_an_old() -> None:
    several = speed(timings=(timing(5), timing(6), timing(1, "extrapolated")))
    table = only_table([record("a", 1.0, found_speed=several), record("b", 2.0, found_speed=speed(timings=()))])
    found = cell(table, "a", "seconds_per_100_images")
    assert (found.value, found.extrapolated) == (6, False)
    assert (found.low, found.high) == pytest.approx((5.4, 7.2))
    assert cell(table, "b", "seconds_per_100_images").state == "not measured"
    estimated = record("a", found_speed=speed(timings=(timing(1, "extrapolated"),)))
    assert cell(only_table([estimated]), "a", "seconds_per_100_images").extrapolated


# --- labels -----------------------------------------------------------------------------------------------


def test_records_of_one_model_are_told_apart() -> None:
    other = record("a", 2.0).model_copy(update={"samples_key": "of other weights"})
    table = only_table([record("a", 1.0), other, record("b", 3.0)])
    first, second, third = labels(table)
    assert first.startswith("a #") and second.startswith("a #") and first != second and third == "b"


def test_columns_of_two_extractors_with_one_label_go_by_their_names() -> None:
    other = ScoreKind(name="recall_vgg16", axis="coverage", higher_is_better=True, label="recall")
    table = only_table([record("a", 1.0, recall=0.3, scores=(scored(other, score(0.2, 0.01)),))])
    assert [column.label for column in table.columns] == ["FD (toy)", "recall_vgg16", "recall_toy"]


def test_weights_that_were_not_verified_are_marked() -> None:
    table = only_table([record("a", scores=(scored(FD, score(1.0), verified=False),))])
    assert not cell(table, "a", "fd_toy").verified


# --- flat -------------------------------------------------------------------------------------------------


def test_flat_has_one_line_a_record_with_all_keys() -> None:
    records = [
        record("a", 10.0, recall=0.4, found_speed=speed(3)),
        record("b", Score.failed("too few samples")),
    ]
    first, second = flat(rows(records))
    assert list(first) == list(second)
    assert (first["fd_toy"], first["fd_toy_low"], first["fd_toy_high"]) == (10, 9, 11)
    assert (first["fd_toy_features_key"], first["fd_toy_score_key"], first["samples_key"]) == (
        "f1",
        "s1",
        "samples of a",
    )
    assert (second["fd_toy"], second["fd_toy_failure"], second["recall_toy"]) == (
        None,
        "too few samples",
        None,
    )
    assert (first["seconds_per_100_images"], first["timing_method"], second["nfe"]) == (3, "measured", None)
    assert first["record"] == records[0].name


def test_dataframe_has_the_rows_of_the_leaderboard_and_numbers_as_numbers() -> None:
    frame = to_dataframe([record("b", 20.0), record("a", 10.0), record("broken", Score.failed("reason"))])
    assert frame["model"].tolist() == ["a", "b", "broken"]
    assert frame["fd_toy"].dtype == float
    assert frame["fd_toy"].isna().tolist() == [False, False, True]


def test_nothing_gives_no_table() -> None:
    assert rows([]) == Leaderboard(())
    assert to_dataframe([]).empty


def test_leaderboard_and_render_import_without_torch_or_pandas() -> None:
    code = "import sys, trilemma_bench.render; print({'torch', 'pandas'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_mean_over_seeds_has_no_interval_beyond_what_the_score_can_be() -> None:
    spread = [
        record("m", 100.0 + seed, scores=(scored(RECALL, Score(value=value, stderr=0.01, bounds=(0, 1))),), seed=seed)
        for seed, value in enumerate([0.05, 0.2])
    ]
    found = only_table(spread).rows[0].record.score("recall_toy")
    assert found is not None and found.interval is not None
    assert found.interval[0] == 0 and found.interval[1] == 1 and found.bounds == (0, 1)
    unbound = only_table([record("m", 3.0, seed=0), record("m", 6.0, seed=1)]).rows[0].record.score("fd_toy")
    assert unbound is not None and unbound.interval is not None and unbound.interval[0] < 0
