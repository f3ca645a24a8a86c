"""One sampler over a grid of its options: which models that is, and what the records of them say. Pure; no torch.

A sweep adds no second pipeline: its points are models as `--models` takes them, measured and recorded as any other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trilemma_bench.errors import UsageError
from trilemma_bench.ranking import Cell, Column, Row, Table, find_column

MOST_POINTS = 200


@dataclass(frozen=True)
class Point:
    """One record of a curve: evaluations an image, and a score."""

    nfe: float
    cell: Cell
    row: Row

    @property
    def value(self) -> float:
        """The score."""
        return self.cell.value if self.cell.value is not None else math.nan


@dataclass(frozen=True)
class Curve:
    """Points of one sampler that differ in their number of evaluations, by that number."""

    label: str
    points: tuple[Point, ...]


def expand(model: str, over: Sequence[str]) -> list[str]:
    """The models of a grid: `ddim` over `steps=5,10` and `eta=0,1` is `ddim:steps=5,eta=0` and three more.

    Args:
        model: As after `--models`; options that it has already stay.
        over: `option=value,value,...`, each option once; the first varies slowest.

    Raises:
        UsageError: No grid, an option without values or twice, or more than `MOST_POINTS` points.
    """
    axes: dict[str, list[str]] = {}
    for text in over:
        name, equals, values = text.partition("=")
        name, listed = name.strip(), [value.strip() for value in values.split(",") if value.strip()]
        if not name or not equals or not listed:
            raise UsageError(f"--over {text!r}: expected option=value,value, such as steps=5,10,20.")
        if name in axes:
            raise UsageError(f"--over names {name!r} twice. Give all its values at once.")
        axes[name] = list(dict.fromkeys(listed))
    if not axes:
        raise UsageError("a sweep needs --over option=value,value, such as --over steps=5,10,20.")
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_POINTS:
        raise UsageError(f"{count} points; a sweep has at most {MOST_POINTS}. Take fewer values.")
    body, at, weights = model.partition("@")
    head, _, options = body.partition(":")
    if head in ("untrained", "exact"):
        name, _, options = options.partition(":")
        head = f"{head}:{name}"
    given = [part for part in options.split(",") if part]
    for part in given:
        if part.partition("=")[0].strip() in axes:
            raise UsageError(f"{model} sets {part.partition('=')[0]!r}, and --over varies it. Leave one of them out.")
    grid = itertools.product(*([f"{name}={value}" for value in values] for name, values in axes.items()))
    return [f"{head}:{','.join([*given, *point])}{at}{weights}" for point in grid]


def curves(table: Table, metric: str) -> list[Curve]:
    """Score against evaluations, one curve for each set of records that differ in `STEP_OPTIONS` alone.

    Other options that differ make curves of their own: eta = 0 and eta = 1 are two. A curve has at least two points.

    Raises:
        UsageError: See `find_column`.
    """
    column = find_column(table, metric)
    place, counts = table.columns.index(column), _place(table, "nfe")
    groups: dict[tuple[str, ...], list[Point]] = {}
    for row in table.rows:
        nfe = row.cells[counts].value if counts is not None else None
        cell, sampler = row.cells[place], row.record.spec.sampler
        if nfe is None or cell.value is None or sampler.kind not in ("builtin", "untrained", "exact"):
            continue
        others = sorted(f"{key}={value}" for key, value in sampler.options.items() if key not in STEP_OPTIONS)
        key = (sampler.kind, sampler.name, sampler.weights or "", *others)
        groups.setdefault(key, []).append(Point(nfe, cell, row))
    found = []
    for (kind, name, weights, *others), points in groups.items():
        if len({point.nfe for point in points}) > 1:
            label = ("" if kind == "builtin" else f"{kind}:") + ":".join(filter(None, [name, ",".join(others)]))
            ordered = tuple(sorted(points, key=lambda point: point.nfe))
            found.append(Curve(label + (f"@{weights}" if weights else ""), ordered))
    return sorted(found, key=lambda curve: curve.label)


STEP_OPTIONS = frozenset({"steps", "num_timesteps", "langevin_steps", "corrector_steps", "steps_each", "tolerance"})
"""Options that set the number of evaluations; a solver's tolerance does too."""


def _place(table: Table, name: str) -> int | None:
    return next((index for index, column in enumerate(table.columns) if column.name == name), None)


def fewest_evaluations(curve: Curve, column: Column, *, within: float = 0.05) -> Point:
    """The point with the fewest evaluations whose score is within a share of the curve's best.

    Args:
        curve: Of at least one point.
        column: Of its scores.
        within: Share of the best score's magnitude, at least 0.

    Raises:
        UsageError: The column has no better direction.
    """
    if not column.better:
        raise UsageError(f"{column.name} has no better direction. Ask for another column.")
    best = min((point.value for point in curve.points), key=column.better.loss)
    # A share of the best's magnitude: kernel distances can lie below 0.
    slack = within * abs(best)
    near = [point for point in curve.points if abs(point.value - best) <= slack]
    return min(near, key=lambda point: point.nfe)
