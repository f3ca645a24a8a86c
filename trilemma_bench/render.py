"""Tables to text: Markdown, CSV, LaTeX, JSON and a terminal table. Pure; imports no torch.

Names in a table come from anywhere: Markdown cells are escaped, CSV cells cannot start a formula, and the terminal
table takes no markup from them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trilemma_bench.frontier import frontier
from trilemma_bench.published import SCORES, PublishedRow
from trilemma_bench.ranking import AXES, Cell, Column, Leaderboard, Row, Table, flat

if TYPE_CHECKING:
    import rich.table

ARROWS = {True: " ↑", False: " ↓", None: ""}
EXTRAPOLATED = "†"
UNVERIFIED = "‡"
PUBLISHED_NOTE = (
    "Printed in the papers named, by their authors' own protocols and machines; not one states the protocol of the "
    "rows above, so none is ranked with them. Each figure's origin is in trilemma_bench/published."
)


def to_markdown(leaderboard: Leaderboard, *, precision: int | None = None) -> str:
    """The leaderboard as GitHub Markdown: a heading, a table and its notes for each table.

    Args:
        leaderboard: Any.
        precision: Significant digits of each value; None takes two of its interval.
    """
    if not leaderboard.tables:
        return "No results.\n"
    return "\n".join(_markdown_table(table, precision) for table in leaderboard.tables)


def to_csv(leaderboard: Leaderboard) -> str:
    """One line a record with the columns of `leaderboard.flat`: numbers in full, None empty, true and false.

    A text that a spreadsheet would take for a formula (it begins with =, +, - or @) gets an apostrophe in front;
    control characters, line breaks among them, become spaces.
    """
    lines = flat(leaderboard)
    if not lines:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_csv_cell(key) for key in lines[0])
    writer.writerows([_csv_cell(content) for content in line.values()] for line in lines)
    return text.getvalue()


def to_json(leaderboard: Leaderboard) -> str:
    """The tables as JSON: columns, rows with numbers in full, the Pareto set and its hypervolume."""
    return (
        json.dumps([_json_table(table) for table in leaderboard.tables], indent=1, ensure_ascii=False, allow_nan=False)
        + "\n"
    )


def to_latex(leaderboard: Leaderboard, *, precision: int | None = None) -> str:
    """The leaderboard as LaTeX for the package booktabs: a table with its notes as the caption for each table."""
    return "\n".join(_latex_table(table, precision) for table in leaderboard.tables)


def to_terminal(table: Table, *, precision: int | None = None) -> rich.table.Table:
    """One table of a leaderboard for rich's console, best values in bold, with its notes as the caption."""
    from rich.table import Table as RichTable
    from rich.text import Text

    found = RichTable(
        title=Text(_heading(table)),
        caption=Text("\n".join(notes(table))),
        caption_justify="left",
        title_justify="left",
    )
    found.add_column("model", overflow="fold")
    for column in table.columns:
        found.add_column(Text(header(table, column)), justify="right")
    for row in table.rows:
        name = Text(printable(row.label), style="" if row.ranked else "italic dim")
        cells = [
            Text(cell_text(cell, column, precision), style="bold" if cell.best else "dim" if cell.value is None else "")
            for cell, column in zip(row.cells, table.columns, strict=True)
        ]
        found.add_row(name, *cells)
    return found


# --- text of the parts ------------------------------------------------------------------------------------


def header(table: Table, column: Column) -> str:
    """A column's head: label, unit, machine where there are several, and the direction of better."""
    unit = f" [{column.unit}]" if column.unit else ""
    several = column.machine is not None and len(table.machines) > 1
    machine = f" (machine {_number_of(table, column)})" if several else ""
    toward = ARROWS[column.higher_is_better] if column.target is None else f" → {column.target:.4g}"
    return f"{column.label}{unit}{machine}{toward}"


def cell_text(cell: Cell, column: Column, precision: int | None = None) -> str:
    """What stands in a cell, without emphasis: the number with its interval and marks, or why there is none."""
    if cell.value is None:
        return "–" if cell.state == "not measured" else cell.state
    marks = EXTRAPOLATED * cell.extrapolated + UNVERIFIED * (not cell.verified)
    return _number(cell, column, precision) + marks


def notes(table: Table) -> list[str]:
    """The lines under a table: machine, dates, axes, signs, and how the intervals were got."""
    lines = []
    if len(table.machines) == 1:
        lines.append(f"Speed on {printable(str(table.machines[0]))}.")
    elif table.machines:
        listed = "; ".join(f"{index}: {each}" for index, each in enumerate(table.machines, start=1))
        lines.append(f"Speed on {printable(listed)}; machines are not ranked together.")
    if table.created is not None:
        first, last = table.created
        lines.append(f"Measured on {first}." if first == last else f"Measured from {first} to {last}.")
    lines += [
        _axes_note(table),
        "↑ higher is better, ↓ lower is better; the best value of a column is in bold.",
    ]
    if any(column.target is not None for column in table.columns):
        lines.append("→ nearer to this number, which real data have, is better.")
    if not all(row.ranked for row in table.rows):
        lines.append("Real images, exact and untrained networks are the ceiling and the floor: shown last, not ranked.")
    cells = [cell for row in table.rows for cell in row.cells]
    if any(cell.extrapolated for cell in cells):
        lines.append(f"{EXTRAPOLATED} extrapolated: network evaluations timed in place, times the counted NFE.")
    if not all(cell.verified for cell in cells):
        lines.append(f"{UNVERIFIED} unverified: the extractor's weights do not have the published digest.")
    return [
        *lines,
        *_rank_notes(table),
        *_frontier_notes(table),
        *_bias_notes(table),
        *_seed_notes(table),
        *_failure_notes(table),
        *_interval_notes(table),
    ]


def _rank_notes(table: Table) -> list[str]:
    """The ranks of the rows: models that share one cannot be told apart."""
    ranked = [(row.ranks, row.label) for row in table.rows if row.ranks is not None]
    if not ranked or table.sorted_by is None:
        return []
    shown = [f"{low} {label}" if low == high else f"{low} to {high} {label}" for (low, high), label in ranked]
    return [printable(
        f"Ranks by {table.sorted_by.label}: {'; '.join(shown)}. Models whose ranks overlap cannot be told apart at 5 % "
        "(all pairs compared, paired over groups of samples where both have them, corrected after Holm)."
    )]  # fmt: skip


def _bias_notes(table: Table) -> list[str]:
    """How much too large a distance is at its number of images, where it was extrapolated to infinitely many."""
    index = {column.name: place for place, column in enumerate(table.columns)}
    lines = []
    for name, place in index.items():
        other = index.get(f"{name}_infinity")
        pairs = [] if other is None else [(row.label, row.cells[place].value, row.cells[other].value)
                                          for row in table.rows]  # fmt: skip
        biases = [f"{label} {at - beyond:+.3g}" for label, at, beyond in pairs if at is not None and beyond is not None]
        if biases:
            lines.append(printable(f"Bias of {table.columns[place].label} at this number of images: "
                                   f"{'; '.join(biases)}."))  # fmt: skip
    return lines


def _seed_notes(table: Table) -> list[str]:
    """For each row over several seeds: how much more the seeds differ than samples of one seed explain."""
    labels = {column.name: column.label for column in table.columns}
    lines = []
    for row in table.rows:
        if len(row.seeds) > 1:
            ratios = "; ".join(f"{labels[name]} {ratio:.2g}" for name, ratio in row.spreads.items() if name in labels)
            seeds = ", ".join(str(seed) for seed in row.seeds)
            lines.append(printable(
                f"{row.label}: mean of seeds {seeds}. Spread between them over the standard error of one (about 1 "
                f"where a seed moves nothing but its samples): {ratios or 'not known'}."
            ))  # fmt: skip
    return lines


def _frontier_notes(table: Table) -> list[str]:
    """Which models no other beats on all of the trilemma, and how much of it they reach together."""
    found = frontier(table)
    if found is None or found.hypervolume is None:
        return []
    axes = ", ".join(column.label for column in found.columns)
    names = ", ".join(row.label for row in found.efficient)
    return [
        printable(
            f"Pareto set of {axes}: {names}. Hypervolume {found.hypervolume:.3f} of the box between the worst and the "
            "best value of each (seconds on a log scale); within this table only."
        )
    ]


def _failure_notes(table: Table) -> list[str]:
    """One line for each reason why there is no number, with the rows and columns that it stands for."""
    reasons: dict[str, list[str]] = {}
    for row in table.rows:
        for cell, column in zip(row.cells, table.columns, strict=True):
            if cell.state == "failed":
                reasons.setdefault(cell.note, []).append(f"{row.label}, {column.label}")
    return [f"Failed ({printable('; '.join(where))}): {printable(reason)}" for reason, where in reasons.items()]


def printable(text: str) -> str:
    """The text on one line, without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _heading(table: Table) -> str:
    return printable(f"{table.protocol}: {table.title}" if table.title else table.protocol)


def _number_of(table: Table, column: Column) -> str:
    return str(1 + [*table.machines].index(column.machine)) if column.machine is not None else ""


def _axes_note(table: Table) -> str:
    parts = []
    for axis in AXES:
        labels = dict.fromkeys(column.label for column in table.columns if column.axis == axis)
        if labels:
            parts.append(f"{axis.capitalize()}: {', '.join(labels)}.")
    return printable(" ".join(parts))


def _interval_notes(table: Table) -> list[str]:
    how: dict[str, list[str]] = {}
    for column in table.columns:
        if column.name in table.uncertainties:
            how.setdefault(table.uncertainties[column.name], []).append(column.label)
    if not how:
        return []
    listed = "; ".join(f"{', '.join(labels)}: {text}" for text, labels in how.items())
    return [
        "± and brackets are 95 % intervals for other samples of the same number; they do not cover the bias that a "
        "metric has at this number. For seconds, brackets are the fastest and the slowest repeat.",
        printable(f"Intervals from: {listed}."),
    ]


# --- numbers ----------------------------------------------------------------------------------------------


def _number(cell: Cell, column: Column, precision: int | None) -> str:
    value = cell.value if cell.value is not None else math.nan
    if precision is not None and column.name != "parameters":
        return _with_digits(cell, column, precision)
    if column.name == "parameters":
        return f"{value / 1e6:.3g} M"
    if cell.low is None or cell.high is None:
        text = f"{value:.{_decimals(value, significant=4)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    below, above = value - cell.low, cell.high - value
    half = max(below, above)
    decimals = _decimals(half, significant=2) if half > 0 else _decimals(value, significant=4)
    # An interval that was cut off or is skewed is written out; ± would say more than is known.
    if column.name != "seconds_per_100_images" and abs(above - below) <= 0.1 * half:
        return f"{value:.{decimals}f} ± {half:.{decimals}f}"
    return f"{value:.{decimals}f} [{cell.low:.{decimals}f}, {cell.high:.{decimals}f}]"


def _with_digits(cell: Cell, column: Column, precision: int) -> str:
    """The value with so many significant digits, its interval to the same decimal."""
    assert cell.value is not None
    decimals = _decimals(cell.value, significant=precision)
    text = f"{cell.value:.{decimals}f}"
    if cell.low is None or cell.high is None:
        return text
    below, above = cell.value - cell.low, cell.high - cell.value
    if column.name != "seconds_per_100_images" and abs(above - below) <= 0.1 * max(below, above):
        return f"{text} ± {max(below, above):.{decimals}f}"
    return f"{text} [{cell.low:.{decimals}f}, {cell.high:.{decimals}f}]"


def _decimals(value: float, *, significant: int) -> int:
    """Decimals that show `significant` digits of a value, 0..9."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(9, max(0, significant - 1 - math.floor(math.log10(abs(value)))))


# --- published figures ------------------------------------------------------------------------------------


def published_markdown(dataset: str, found: Sequence[PublishedRow]) -> str:
    """Published figures of a data set as a Markdown table of its own: never ranked, none of them in bold."""
    scores = [score for score in SCORES if any(score in row.values for row in found)]
    heads = ["model", *(escape(SCORES[score]) for score in scores), "device", "from"]
    lines = [
        f"## Published figures on {escape(dataset)}: not measured here", "", _line(heads),
        _line([":--", *["--:"] * len(scores), ":--", ":--"]),
    ]  # fmt: skip
    for row in found:
        cells = [f"{row.values[score]:g}" if score in row.values else "–" for score in scores]
        lines.append(_line([f"*{escape(row.model)}*", *cells, escape(row.device), escape(f"{row.paper}, {row.table}")]))
    remarks = dict.fromkeys(f"{row.model}: {row.note}." for row in found if row.note)
    notes = [PUBLISHED_NOTE, *remarks]
    return "\n".join([*lines, "", *(f"- {escape(note)}" for note in notes), ""])


# --- Markdown and CSV -------------------------------------------------------------------------------------


def _markdown_table(table: Table, precision: int | None) -> str:
    heads = [escape("model"), *(escape(header(table, column)) for column in table.columns)]
    lines = [f"## {escape(_heading(table))}", "", _line(heads), _line([":--", *["--:"] * len(table.columns)])]
    lines += [_markdown_row(row, table.columns, precision) for row in table.rows]
    return "\n".join([*lines, "", *(f"- {escape(note)}" for note in notes(table)), ""])


def _markdown_row(row: Row, columns: tuple[Column, ...], precision: int | None) -> str:
    name = escape(row.label)
    cells = [name if row.ranked else f"*{name}*"]
    for cell, column in zip(row.cells, columns, strict=True):
        text = cell_text(cell, column, precision)
        # Numbers are ours and read better in the source without backslashes; reasons come from anywhere.
        text = escape(text) if cell.state == "failed" else text
        cells.append(f"**{text}**" if cell.best else text)
    return _line(cells)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line, in a table cell or outside."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`|*\[\]~])", r"\\\1", text)
    # Within a word an underscore means nothing to GitHub's Markdown.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def _csv_cell(content: str | int | float | bool | None) -> str | int | float | None:
    if isinstance(content, bool):
        return "true" if content else "false"
    if not isinstance(content, str):
        return content
    text = printable(content)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


# --- LaTeX and JSON ---------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "×": r"$\times$", "≈": r"$^{\approx}$",
    "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$",
    "–": "--",
}  # fmt: skip


def latex_escape(text: str) -> str:
    """Text that LaTeX sets as it is; what is left outside of ASCII needs an engine that reads UTF-8."""
    return "".join(_LATEX.get(letter, letter) for letter in printable(text))


def published_latex(dataset: str, found: Sequence[PublishedRow]) -> str:
    """Published figures of a data set as a LaTeX table of its own: never ranked, none of them in bold."""
    scores = [score for score in SCORES if any(score in row.values for row in found)]
    heads = ["model", *(SCORES[score] for score in scores), "device", "from"]
    lines = []
    for row in found:
        cells = [rf"\textit{{{latex_escape(row.model)}}}"]
        cells += [f"{row.values[score]:g}" if score in row.values else "--" for score in scores]
        cells += [latex_escape(row.device), latex_escape(f"{row.paper}, {row.table}")]
        lines.append(f"    {' & '.join(cells)} \\\\")
    caption = f"Published figures on {dataset}: not measured here. {PUBLISHED_NOTE}"
    return _latex(caption, f"l{'r' * len(scores)}ll", heads, lines)


def _latex(caption: str, columns: str, heads: Sequence[str], lines: Sequence[str]) -> str:
    head = " & ".join(latex_escape(text) for text in heads)
    parts = [
        r"\begin{table}", r"  \centering", f"  \\caption{{{latex_escape(caption)}}}",
        f"  \\begin{{tabular}}{{{columns}}}", r"    \toprule", f"    {head} \\\\", r"    \midrule", *lines,
    ]  # fmt: skip
    return "\n".join([*parts, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def _latex_table(table: Table, precision: int | None) -> str:
    heads = ["model", *(header(table, column) for column in table.columns)]
    lines = []
    previous = True
    for row in table.rows:
        if previous and not row.ranked and row is not table.rows[0]:
            lines.append(r"    \midrule")
        previous = row.ranked
        cells = [latex_escape(row.label) if row.ranked else rf"\textit{{{latex_escape(row.label)}}}"]
        for cell, column in zip(row.cells, table.columns, strict=True):
            # A bracket after a line's end would be taken for its argument.
            text = latex_escape(cell_text(cell, column, precision)).replace("[", "{[}")
            cells.append(rf"\textbf{{{text}}}" if cell.best else text)
        lines.append(f"    {' & '.join(cells)} \\\\")
    return _latex(f"{_heading(table)}. {' '.join(notes(table))}", f"l{'r' * len(table.columns)}", heads, lines)


def _json_table(table: Table) -> dict[str, Any]:
    found = frontier(table)
    return {
        "protocol": table.protocol,
        "title": table.title,
        "columns": [
            {
                "name": column.name, "label": column.label, "axis": column.axis, "unit": column.unit,
                "higher_is_better": column.higher_is_better, "target": column.target,
                "machine": str(column.machine) if column.machine is not None else None,
            }
            for column in table.columns
        ],
        "rows": [
            {
                "model": row.label, "ranked": row.ranked, "ranks": row.ranks, "seeds": row.seeds,
                "record": row.record.name,
                "cells": [
                    {
                        "state": cell.state, "value": cell.value, "low": cell.low, "high": cell.high,
                        "note": cell.note, "best": cell.best, "extrapolated": cell.extrapolated,
                        "verified": cell.verified,
                    }
                    for cell in row.cells
                ],
            }
            for row in table.rows
        ],
        "pareto_set": [row.label for row in found.efficient] if found is not None else [],
        "pareto_axes": [column.name for column in found.columns] if found is not None else [],
        "hypervolume": found.hypervolume if found is not None else None,
        "notes": notes(table),
    }  # fmt: skip
