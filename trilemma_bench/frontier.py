"""The trilemma over a table: which models no other beats, how far they reach together, which is best under a limit.

Pure; imports no torch. A model is a point (quality, coverage, speed); one dominates another where it is at least as
good on every axis and better on one.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trilemma_bench.errors import UsageError
from trilemma_bench.ranking import AXES, Column, Row, Table, estimate, find_column, loss_estimate
from trilemma_bench.stats import rank_ranges

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Frontier:
    """The trilemma of a table.

    Attributes:
        columns: The column of each axis: quality, coverage, speed.
        rows: Ranked rows with a number on each of the three, in the order of the table.
        efficient: Those of them that no other dominates.
        hypervolume: Share, 0..1, of the box between the worst and the best of each axis that the rows dominate (Zitzler
            & Thiele 1999); seconds and evaluations on a log scale. Compares models within this table alone: another
            row can stretch the box. None where fewer than two rows have all three, or all agree on each.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    efficient: tuple[Row, ...]
    hypervolume: float | None


def frontier(table: Table) -> Frontier | None:
    """The Pareto set of a table's ranked rows, on the first column of each axis; None where an axis has no column."""
    columns = [_axis_column(table, axis) for axis in AXES]
    if any(column is None for column in columns):
        return None
    chosen = tuple(column for column in columns if column is not None)
    rows, points = [], []
    for row in table.rows:
        values = [table.cell(row, column).value for column in chosen]
        if row.ranked and None not in values:
            rows.append(row)
            points.append([_loss(column, value or 0.0) for column, value in zip(chosen, values, strict=True)])
    efficient = tuple(
        row for row, point in zip(rows, points, strict=True) if not any(dominates(other, point) for other in points)
    )
    return Frontier(chosen, tuple(rows), efficient, _hypervolume_share(points))


def _axis_column(table: Table, axis: str) -> Column | None:
    """The first column of an axis whose direction is known and which most ranked rows have; seconds before counts."""
    found = [column for column in table.columns if column.axis == axis and column.better]
    if axis == "speed":
        found.sort(key=lambda column: column.name != "seconds_per_100_images")
    ranked = [row for row in table.rows if row.ranked]

    def known(column: Column) -> int:
        return sum(table.cell(row, column).value is not None for row in ranked)

    return max(found, key=known, default=None)


def _loss(column: Column, value: float) -> float:
    """The value with its sign such that lower is better; costs that span orders of magnitude as logarithms."""
    if column.axis == "speed" and value > 0:
        value = math.log10(value)
    return column.better.loss(value)


def dominates(point: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `point` is at most `other` everywhere and less somewhere (lower is better)."""
    return all(a <= b for a, b in zip(point, other, strict=True)) and any(
        a < b for a, b in zip(point, other, strict=True)
    )


def _hypervolume_share(points: Sequence[Sequence[float]]) -> float | None:
    if len(points) < 2:
        return None
    axes = [(min(values), max(values)) for values in zip(*points, strict=True)]
    # An axis on which all agree tells nothing: it takes no part.
    scaled = [
        [(value - low) / (high - low) for value, (low, high) in zip(point, axes, strict=True) if high > low]
        for point in points
    ]
    # What another dominates adds no volume, and the work grows with the cube of the points.
    efficient = [point for point in scaled if not any(dominates(other, point) for other in scaled)]
    return hypervolume(efficient) if scaled[0] else None


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """Volume of the part of the unit box that is at least as far from the origin as some point, on each axis.

    Args:
        points: Numbers in 0..1, lower is better; all of one dimension, at most a handful.

    Returns:
        Value in 0..1, exact: the box is cut into slices at the last coordinates, and each has one dimension less.
    """
    if not points:
        return 0.0
    if not points[0]:
        return 1.0
    order = sorted(points, key=lambda point: point[-1])
    ends = [*(point[-1] for point in order[1:]), 1.0]
    return math.fsum(
        (end - point[-1]) * hypervolume([each[:-1] for each in order[:count]])
        for count, (point, end) in enumerate(zip(order, ends, strict=True), start=1) if end > point[-1]
    )  # fmt: skip


# --- questions ----------------------------------------------------------------------------------------------


def best(table: Table, metric: str, conditions: Sequence[str] = ()) -> list[Row]:
    """The ranked row with the best value of a column under conditions, then those that may be the best as well.

    Those are the rows whose ranks, among the ones that meet the conditions and have a standard error, begin with 1
    (`stats.rank_ranges`).

    Args:
        table: One table of a leaderboard.
        metric: See `find_column`.
        conditions: Such as `seconds<=0.5` or `recall>0.1`; a row without that number does not meet it.

    Returns:
        Empty where no row meets the conditions.

    Raises:
        UsageError: No such column, no direction of better, or a condition that is none.
    """
    column = find_column(table, metric)
    if not column.better:
        raise UsageError(f"{column.name} has no better direction. Ask for another column.")
    tests = [_condition(table, text) for text in conditions]
    found = [row for row in table.rows if row.ranked and table.cell(row, column).value is not None]
    found = [row for row in found if all(test(row) for test in tests)]
    found.sort(key=lambda row: column.better.loss(table.value(row, column)))
    estimates = [estimate(row.record, column.name) for row in found]
    known = {index: loss_estimate(each, column.better) for index, each in enumerate(estimates) if each is not None}
    if 0 not in known:
        # Counts and times have no standard error: what is equal is tied, and nothing else.
        return [row for row in found if table.value(row, column) == table.value(found[0], column)]
    ranges = zip(known, rank_ranges(list(known.values())), strict=True)
    return [found[index] for index, (first, _) in ranges if first == 1]


def _condition(table: Table, text: str) -> Callable[[Row], bool]:
    parts = re.fullmatch(r"\s*(.+?)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*", text)
    if parts is None:
        raise UsageError(f"{text!r} is no condition. Write such as 'seconds<=0.5' or 'recall>0.1'.")
    name, sign, number = parts.groups()
    try:
        limit = float(number)
    except ValueError as error:
        raise UsageError(f"{text!r}: {number!r} is not a number.") from error
    places = [index for index, column in enumerate(table.columns) if column.name == find_column(table, name).name]

    def test(row: Row) -> bool:
        # A speed stands under the one machine that it was measured on.
        values = [row.cells[place].value for place in places]
        return any(value is not None and _COMPARISONS[sign](value, limit) for value in values)

    return test
