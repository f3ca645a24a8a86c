"""Charts as SVG text, for a page that must hold everything itself. Pure; imports no torch.

Colours come from the page by class, so that one chart serves light and dark; each mark is a link with a title and a
label of its own, so that it can be reached by keyboard and read aloud.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trilemma_bench.frontier import Frontier
from trilemma_bench.ranking import Column, Row, Table
from trilemma_bench.render import cell_text, header
from trilemma_bench.sweep import Curve

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 78, 20, 44, 52
RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five stops of viridis (Smith & van der Walt 2015, CC0): even in lightness, safe for colour-blind readers."""
MODE_PANEL = 240
"""Width of a panel of modes, about."""
LETTER = 7.8
"""Width of a letter of a name, about: bold, 13 px."""
CURVE_MARKS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Scale:
    """Values to pixels along one axis."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def __call__(self, value: float) -> float:
        position, low, high = (math.log10(v) if self.log else v for v in (value, self.low, self.high))
        part = (position - low) / (high - low) if high > low else 0.5
        return self.start + part * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values within the range: powers of ten on a log axis, steps of 1, 2 or 5 else."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return [10.0**power for power in powers]
        rough = (self.high - self.low) / 5 or 1.0
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(values: Sequence[float], start: float, stop: float, *, log: bool) -> Scale:
    """A scale that holds all values with a margin; on a log axis down to the decade."""
    low, high = min(values), max(values)
    if log:
        return Scale(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.001)), start, stop, log)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Scale(low - margin, high + margin, start, stop, log)


def trilemma(table: Table, found: Frontier, link: Callable[[Row], str]) -> str:
    """Quality against seconds (or evaluations) on a log axis, coverage as colour, the Pareto front of the two drawn.

    Args:
        table: What the frontier is of.
        found: Its rows are shown; empty rows give an empty text.
        link: Where a mark leads.
    """
    quality, coverage, cost = found.columns
    rows = [row for row in found.rows if (table.cell(row, cost).value or 0) > 0]
    if not rows:
        return ""
    x = scale([table.value(row, cost) for row in rows], LEFT, WIDTH - RIGHT, log=True)
    ends = [end for row in rows for end in table.cell(row, quality).ends]
    y = scale(ends, HEIGHT - BOTTOM, TOP, log=False)
    colour = [table.value(row, coverage) for row in rows]
    parts = [_axes(x, y, header(table, cost), header(table, quality)), _front(table, rows, quality, cost, x, y)]
    # The efficient ones choose first where their names stand.
    rows = sorted(rows, key=lambda row: row not in found.efficient)
    names = _labels([(x(table.value(row, cost)), y(table.value(row, quality)), row.label) for row in rows])
    for row, name in zip(rows, names, strict=True):
        cell, seconds = table.cell(row, quality), table.value(row, cost)
        low, high = cell.ends
        text = f"{row.label}: " + ", ".join(
            f"{column.label} {cell_text(table.cell(row, column), column)}" for column in found.columns
        )
        share = (table.value(row, coverage) - min(colour)) / ((max(colour) - min(colour)) or 1)
        efficient = " efficient" if row in found.efficient else ""
        parts.append(
            f'<a href="{html.escape(link(row))}" class="mark{efficient}" aria-label="{html.escape(text)}">'
            f"<title>{html.escape(text)}</title>"
            f'<line class="interval" x1="{x(seconds):.1f}" x2="{x(seconds):.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
            f'<circle cx="{x(seconds):.1f}" cy="{y(cell.value or 0):.1f}" r="8" fill="{ramp(share)}"/>{name}</a>'
        )  # fmt: skip
    parts.append(_legend(coverage, min(colour), max(colour)))
    return _svg(parts, f"{quality.label} against {cost.label}, coloured by {coverage.label}")


def curve_chart(table: Table, curves: Sequence[Curve], column: Column, link: Callable[[Row], str]) -> str:
    """A score against network evaluations on a log axis, a line for each curve."""
    points = [point for curve in curves for point in curve.points if point.nfe > 0]
    if not points:
        return ""
    x = scale([point.nfe for point in points], LEFT, WIDTH - RIGHT, log=True)
    y = scale([end for point in points for end in point.cell.ends], HEIGHT - BOTTOM, TOP, log=False)
    parts = [_axes(x, y, "network evaluations an image", header(table, column))]
    names = _labels([(x(curve.points[-1].nfe), y(curve.points[-1].value), curve.label) for curve in curves])
    for index, (curve, name) in enumerate(zip(curves, names, strict=True)):
        path = " ".join(f"{x(point.nfe):.1f},{y(point.value):.1f}" for point in curve.points)
        parts.append(f'<g class="curve c{index % 6}"><polyline points="{path}"/>')
        for point in curve.points:
            low, high = point.cell.ends
            text = f"{point.row.label}: {column.label} {cell_text(point.cell, column)} at {point.nfe:g} evaluations"
            parts.append(
                f'<a href="{html.escape(link(point.row))}" aria-label="{html.escape(text)}"><title>{html.escape(text)}'
                f'</title><line class="interval" x1="{x(point.nfe):.1f}" x2="{x(point.nfe):.1f}" y1="{y(low):.1f}" '
                f'y2="{y(high):.1f}"/>{_shape(CURVE_MARKS[index % 4], x(point.nfe), y(point.value))}</a>'
            )
        parts.append(f"{name}</g>")
    return _svg(parts, f"{column.label} against network evaluations")


def modes(label: str, counts: Sequence[int]) -> str:
    """A square for each mode, coloured by its samples over a fair share of them, full at twice; crossed where none is.

    Where the modes are n x n the squares lie as a grid in the plane, the second coordinate upwards; else in rows.

    Args:
        label: Whose samples they are.
        counts: Samples in each mode, one mode or more.
    """
    side, fair = math.isqrt(len(counts)), max(sum(counts), 1) / len(counts)
    square = side * side == len(counts)
    columns = side if square else math.ceil(math.sqrt(1.6 * len(counts)))
    lines = math.ceil(len(counts) / columns)
    cell = max(4, MODE_PANEL // columns)
    paths: dict[str, list[str]] = {}
    for index, count in enumerate(counts):
        column, row = (index // side, side - 1 - index % side) if square else (index % columns, index // columns)
        x, y, size = column * cell, row * cell, cell - 1
        if count == 0:
            paths.setdefault('class="missing"', []).append(f"M{x} {y}l{size} {size}m0 -{size}l-{size} {size}")
        else:
            # Eight steps, so that a thousand modes are eight paths.
            step = min(math.ceil(min(count / fair, 2.0) * 4), 8)
            paths.setdefault(f'fill="{ramp((step - 1) / 7)}"', []).append(f"M{x} {y}h{size}v{size}h-{size}z")
    found = sum(count > 0 for count in counts)
    text = (
        f"{label}: {found} of {len(counts)} modes have a sample; the fewest {min(counts)}, the most {max(counts)}, a "
        f"fair share {fair:.4g}"
    )
    drawn = "".join(f'<path {look} d="{"".join(parts)}"/>' for look, parts in paths.items())
    return (
        f'<svg class="modes" viewBox="0 0 {columns * cell} {lines * cell}" role="img" aria-label="{html.escape(text)}">'
        f"<title>{html.escape(text)}</title>{drawn}</svg>"
    )


def ramp(share: float) -> str:
    """The colour of a share 0..1 of the ramp, as #rrggbb."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    mixed = [a + (b - a) * (place - index) for a, b in zip(RAMP[index], RAMP[index + 1], strict=True)]
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


# --- parts ------------------------------------------------------------------------------------------------


def _front(table: Table, rows: list[Row], quality: Column, cost: Column, x: Scale, y: Scale) -> str:
    """A staircase under the rows that no other beats on quality and cost alone."""
    loss = quality.better.loss
    ordered = sorted(rows, key=lambda row: (table.value(row, cost), loss(table.value(row, quality))))
    corners: list[tuple[float, float]] = []
    for row in ordered:
        value = table.value(row, quality)
        if not corners or loss(value) < loss(corners[-1][1]):
            corners.append((table.value(row, cost), value))
    steps = []
    for (seconds, value), following in zip(corners, [*corners[1:], None], strict=True):
        steps.append(f"{x(seconds):.1f},{y(value):.1f}")
        end = x(following[0]) if following is not None else WIDTH - RIGHT
        steps.append(f"{end:.1f},{y(value):.1f}")
    return f'<polyline class="front" points="{" ".join(steps)}"/>'


def _axes(x: Scale, y: Scale, x_title: str, y_title: str) -> str:
    parts = ['<g class="axes" aria-hidden="true">']
    for tick in x.ticks():
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
                 f"{html.escape(x_title)}</text>")  # fmt: skip
    parts.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
                 f"{html.escape(y_title)}</text></g>")  # fmt: skip
    return "".join(parts)


def _legend(column: Column, low: float, high: float) -> str:
    stops = "".join(f'<rect x="{WIDTH - 150 + 24 * i}" y="10" width="24" height="9" fill="{ramp(i / 4)}"/>'
                    for i in range(5))  # fmt: skip
    text = html.escape(f"{column.label} {low:.3g} to {high:.3g}")
    return (
        f'<g class="legend" aria-hidden="true">{stops}'
        f'<text x="{WIDTH - 160}" y="19" text-anchor="end">{text}</text></g>'
    )


def _labels(marks: Sequence[tuple[float, float, str]]) -> list[str]:
    """A text beside each mark (x, y, name); where there is no room left it is crowded: shown while its mark is chosen.

    Earlier marks choose first.
    """
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y, _ in marks]
    found = []
    for x, y, text in marks:
        shown = text if len(text) <= 32 else text[:31] + "…"
        width = LETTER * len(shown)
        # Right of the mark before left of it; above it before below and beside.
        places = [(left, y + down) for left in (x + 12, x - 12 - width) for down in (-10, 19, 5)]
        boxes = [(left, base - 11, left + width, base + 3) for left, base in places]
        inside = [box for box in boxes if box[0] >= LEFT and box[2] <= WIDTH and box[3] <= HEIGHT - BOTTOM]
        free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
        left, _, right, bottom = (free or inside or boxes)[0]
        if free:
            taken.append(free[0])
        place = f'x="{left:.1f}"' if left > x else f'x="{right:.1f}" text-anchor="end"'
        kind = "name" if free else "name crowded"
        found.append(f'<text class="{kind}" {place} y="{bottom - 3:.1f}">{html.escape(shown)}</text>')
    return found


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shape(kind: str, x: float, y: float) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    if kind == "square":
        return f'<rect x="{x - 5.5:.1f}" y="{y - 5.5:.1f}" width="11" height="11"/>'
    corners = {"diamond": [(0, -8), (8, 0), (0, 8), (-8, 0)], "triangle": [(0, -8), (7, 6), (-7, 6)]}[kind]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
