"""The report's figures for print: PNG and SVG by matplotlib (`pip install trilemma-bench[plot]`). Imports no torch.

Colours are viridis and Okabe & Ito's, marks differ in shape as well, so that neither colour-blind readers nor grey
printers lose anything; text in SVG stays text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trilemma_bench.errors import UsageError
from trilemma_bench.frontier import Frontier, frontier
from trilemma_bench.kinds import Array, is_points
from trilemma_bench.ranking import Cell, Column, Leaderboard, Row, Table, curve_column
from trilemma_bench.record import file_name
from trilemma_bench.render import header
from trilemma_bench.sweep import Curve, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = {"column": 3.25, "page": 6.75}
"""Inches: one column and the whole page of the field's proceedings."""
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
FORMATS = ("png", "svg")
MAX_NAMES = 12
"""Names beside the marks of one figure, at most; beyond them only efficient models have theirs."""
MIN_DECADES = 1e-6
"""Of a logarithmic axis; values closer together have a decade on either side."""


def write_figures(
    board: Leaderboard,
    folder: Path,
    *,
    metric: str | None = None,
    width: str = "page",
    serif: bool = False,
    samples: Mapping[str, Array] | None = None,
    centres: Mapping[str, Array] | None = None,
) -> list[Path]:
    """The trilemma figure, the curves and the samples of each table, as PNG (300 dpi) and SVG; returns the paths.

    Args:
        board: What is drawn.
        folder: Where the files go: `<protocol>-trilemma.png` ...
        metric: The column of the curves; None takes each table's first of quality.
        width: `column` or `page`.
        serif: Serif type, as in most papers' text.
        samples: Of records by their names, points [N, 2] or a sheet of images uint8 [H, W, C]; each has a panel.
        centres: Of the modes [K, 2], by data set.

    Raises:
        UsageError: No matplotlib, no such width, or nothing that could be drawn.
    """
    if width not in WIDTHS:
        raise UsageError(f"--width {width}: there are {', '.join(WIDTHS)}.")
    paths: list[Path] = []
    kept = samples or {}
    with _style(serif):
        for number, table in enumerate(board.tables):
            several = sum(other.protocol == table.protocol for other in board.tables) > 1
            stem = file_name(table.protocol) + (f"-{number}" if several else "")
            found = _figures(table, metric, WIDTHS[width])
            shown = [(row, kept[row.record.name]) for row in table.rows if row.record.name in kept]
            if shown and is_points(shown[0][1].shape[1:]):
                modes = (centres or {}).get(shown[0][0].record.spec.protocol.dataset)
                found.append(("points", point_panels(table, shown, modes, width=WIDTHS[width])))
            elif shown:
                found.append(("samples", image_panels(table, shown, width=WIDTHS[width])))
            for name, figure in found:
                paths += _save(figure, folder / f"{stem}-{name}")
    if not paths:
        raise UsageError(
            "nothing to draw: a figure needs models with quality, coverage and speed, or a sweep over steps. "
            "`trilemma-bench run` and `sweep` make them."
        )
    return paths


def _figures(table: Table, metric: str | None, width: float) -> list[tuple[str, Figure]]:
    found = []
    front = frontier(table)
    if front is not None and front.rows:
        found.append(("trilemma", trilemma(table, front, width=width)))
    column = curve_column(table, metric)
    lines = curves(table, column.name) if column is not None else []
    if column is not None and lines:
        found.append(("curves", curve_figure(table, lines, column, width=width)))
    return found


def trilemma(table: Table, found: Frontier, *, width: float = WIDTHS["page"]) -> Figure:
    """Quality against cost on a log axis with 95 % intervals, coverage as colour, Pareto-efficient rows ringed.

    Where more than `MAX_NAMES` names would cover each other, the efficient rows alone have theirs.

    Args:
        table: What the frontier is of.
        found: Its rows are drawn.
        width: Inches.
    """
    quality, coverage, cost = found.columns
    figure, axes = _axes(width, header(table, cost), header(table, quality))
    named = found.rows if len(found.rows) <= MAX_NAMES else found.efficient
    values = [table.value(row, coverage) for row in found.rows]
    costs = [table.value(row, cost) for row in found.rows]
    _log_x(axes, costs, margin=0.12)
    for index, row in enumerate(found.rows):
        seconds, value = table.value(row, cost), table.value(row, quality)
        axes.errorbar(
            seconds, value, yerr=_error(table.cell(row, quality)), color="0.3", linewidth=0.8, capsize=2, zorder=1
        )
        edge = 1.6 if row in found.efficient else 0.5
        shown = axes.scatter(
            [seconds], [value], c=[values[index]], cmap="viridis", vmin=min(values), vmax=max(values), s=36,
            marker=MARKERS[index % len(MARKERS)], edgecolors="black", linewidths=edge, zorder=2,
        )  # fmt: skip
        if row in named:
            # A long name may leave the axes, but not squeeze them; those of the slowest models go to the left.
            slow = math.log(seconds / min(costs)) > 0.8 * math.log(max(costs) / min(costs))
            axes.annotate(
                _short(row.label), (seconds, value), (-4 if slow else 4, 5), textcoords="offset points",
                horizontalalignment="right" if slow else "left",
            ).set_in_layout(False)  # fmt: skip
    front = sorted((table.value(row, cost), table.value(row, quality)) for row in found.efficient)
    axes.plot(*zip(*front, strict=True), color="0.5", linestyle="--", linewidth=0.8, zorder=0)
    if len(set(values)) > 1:
        figure.colorbar(shown, ax=axes, label=_plain(header(table, coverage)))
    axes.margins(y=0.12)
    return figure


def curve_figure(table: Table, lines: Sequence[Curve], column: Column, *, width: float = WIDTHS["page"]) -> Figure:
    """A score against network evaluations on a log axis, a line for each sampler, with 95 % intervals."""
    figure, axes = _axes(width, "network evaluations per image", header(table, column))
    _log_x(axes, [point.nfe for curve in lines for point in curve.points])
    for index, curve in enumerate(lines):
        axes.errorbar(
            [point.nfe for point in curve.points],
            [point.value for point in curve.points],
            yerr=[list(side) for side in zip(*(_sides(point.cell) for point in curve.points), strict=True)],
            color=OKABE_ITO[index % len(OKABE_ITO)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=_short(curve.label),
        )
    axes.legend(frameon=False).set_in_layout(False)
    return figure


PANELS = {"column": 2, "page": 4}
"""Panels beside each other."""
PANEL_POINTS = 2000
PANEL_IMAGES = 6
"""Images beside and above each other in a panel."""
POINT_SCORES = ("modes_captured", "high_quality")
COSTS = ("nfe", "seconds_per_100_images")


def point_panels(
    table: Table, shown: Sequence[tuple[Row, Array]], centres: Array | None, *, width: float = WIDTHS["page"]
) -> Figure:
    """A panel for each row: at most `PANEL_POINTS` of its points [N, 2] over the centres, headed by what they cost.

    Args:
        table: Where the rows' numbers stand.
        shown: Rows with their points.
        centres: Of the modes [K, 2], drawn as crosses; None for none.
        width: Inches.
    """
    figure, panels = _panels(table, [row for row, _ in shown], POINT_SCORES, width)
    # All panels show the same part of the plane: that of the modes, or where most points of all lie.
    inside = centres if centres is not None else np.concatenate([np.quantile(p, [0.01, 0.99], 0) for _, p in shown])
    low, high = inside.min(), inside.max()
    margin = 0.15 * (high - low)
    for axes, (_, points) in zip(panels, shown, strict=True):
        if centres is not None:
            axes.plot(*centres.T, "+", color=OKABE_ITO[1], markersize=5, markeredgewidth=0.5, zorder=1)
        # Thousands of marks would make the SVG large: these alone are pixels in it.
        axes.plot(*points[:PANEL_POINTS].T, ".", color=OKABE_ITO[0], markersize=1, markeredgewidth=0, rasterized=True)
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    return figure


def image_panels(table: Table, shown: Sequence[tuple[Row, Array]], *, width: float = WIDTHS["page"]) -> Figure:
    """A panel for each row: a sheet of its images, headed by what they cost.

    Args:
        table: Where the rows' numbers stand.
        shown: Rows with their sheets uint8 [H, W, C], C 1 or 3.
        width: Inches.
    """
    front = frontier(table)
    figure, panels = _panels(
        table, [row for row, _ in shown], [column.name for column in front.columns[:2]] if front else [], width
    )
    for axes, (_, sheet) in zip(panels, shown, strict=True):
        axes.set_axis_off()
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    return figure


def _panels(table: Table, shown: Sequence[Row], scores: Sequence[str], width: float) -> tuple[Figure, list[Axes]]:
    """Square axes for each row without ticks, headed by its name, these scores and what it costs."""
    across = PANELS["column" if width <= WIDTHS["column"] else "page"]
    down = -(-len(shown) // across)
    figure = _figure(width, down * width / across * 1.3)
    panels = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes, row in zip(panels, shown, strict=False):
        axes.tick_params(labelbottom=False, labelleft=False, length=0)
        axes.grid(visible=False)
        lines = [_short(row.label), _values(table, row, scores), _values(table, row, COSTS)]
        axes.set_title("\n".join(lines), fontsize=5.5).set_in_layout(True)
    return figure, panels[: len(shown)]


def _values(table: Table, row: Row, names: Sequence[str]) -> str:
    """Short text of a row's values in these columns; what is not known is left out."""
    texts = {}
    for column in table.columns:
        value = table.cell(row, column).value
        if column.name in names and value is not None:
            texts[column.name] = f"{_plain(column.label)} {value:{'.0f' if abs(value) >= 100 else '.3g'}}"
    return ", ".join(texts[name] for name in names if name in texts)


def write_waterfalls(name: str, moves: Mapping[str, Sequence[tuple[str, float]]], folder: Path) -> list[Path]:
    """How far each fork of a protocol moves each score, a bar each, as PNG and SVG; returns the paths.

    Args:
        name: Begins the files' names.
        moves: By the score's label: (what was done otherwise, how far it moved the score).
        folder: Where the files go.

    Raises:
        UsageError: No matplotlib.
    """
    paths: list[Path] = []
    with _style(False):
        for label, bars in moves.items():
            ordered = sorted(bars, key=lambda bar: abs(bar[1]))
            figure, axes = _axes(WIDTHS["page"], f"moves {label} by", "")
            colours = [OKABE_ITO[0] if moved < 0 else OKABE_ITO[1] for _, moved in ordered]
            shown = axes.barh([_plain(what) for what, _ in ordered], [moved for _, moved in ordered], color=colours)
            axes.bar_label(shown, [f"{moved:+.3g}" for _, moved in ordered], padding=3)
            axes.axvline(0, color="0.3", linewidth=0.8)
            axes.margins(x=0.15)
            paths += _save(figure, folder / file_name(f"{name}-{label}"))
    return paths


# --- parts ------------------------------------------------------------------------------------------------


def _style(serif: bool) -> AbstractContextManager[None]:
    matplotlib = _matplotlib()
    size = 8
    return matplotlib.rc_context(
        {
            "font.family": "serif" if serif else "sans-serif", "font.size": size, "axes.labelsize": size,
            "legend.fontsize": size - 1, "xtick.labelsize": size - 1, "ytick.labelsize": size - 1,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
            "grid.linewidth": 0.5, "svg.fonttype": "none", "svg.hashsalt": "trilemma-bench", "figure.dpi": 100,
            # Names come from anywhere: a dollar sign in one is no formula.
            "text.parse_math": False,
        }
    )  # fmt: skip


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("figures need matplotlib: pip install 'trilemma-bench[plot]'.") from error
    return matplotlib


def _figure(width: float, height: float) -> Figure:
    _matplotlib()
    # Not pyplot: its figures belong to a global state, and to a window where there is one.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(width: float, x: str, y: str) -> tuple[Figure, Axes]:
    figure = _figure(width, width * 0.62)
    axes = figure.add_subplot()
    axes.set_xlabel(_plain(x))
    axes.set_ylabel(_plain(y))
    return figure, axes


def _log_x(axes: Axes, values: Sequence[float], *, margin: float = 0.05) -> None:
    """A logarithmic axis over `values` with plain numbers: powers are formulas to matplotlib, and formulas are off.

    The limits are set here: for a single value matplotlib may find two an ulp apart, and divides by their distance.
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    beyond = margin * (high - low) if high - low > MIN_DECADES else 1.0
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - beyond), 10 ** (high + beyond))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")


def _save(figure: Figure, stem: Path) -> list[Path]:
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{stem.parent}: no folder can be made there ({error}). Name another one.") from error
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in FORMATS]
    for path in paths:
        # No date: the same records give the same file.
        figure.savefig(path, dpi=300, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _sides(cell: Cell) -> tuple[float, float]:
    value, (low, high) = cell.value or 0.0, cell.ends
    return max(0.0, value - low), max(0.0, high - value)


def _error(cell: Cell) -> list[list[float]]:
    below, above = _sides(cell)
    return [[below], [above]]


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _short(text: str) -> str:
    return _plain(text) if len(text) <= 32 else _plain(text[:31]) + "…"
