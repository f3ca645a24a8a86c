"""Records as one HTML page that holds everything itself: no request leaves it, and it reads without scripts. Pure.

What comes from outside (names, reasons, commands, paths) is escaped wherever it stands, and the page's policy allows
its own script and style by their digests and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from trilemma_bench import charts
from trilemma_bench.frontier import frontier
from trilemma_bench.published import SCORES, PublishedRow
from trilemma_bench.ranking import Cell, Column, Leaderboard, Row, Table, curve_column
from trilemma_bench.record import Hardware, ResultRecord
from trilemma_bench.render import PUBLISHED_NOTE, cell_text, header, notes, printable
from trilemma_bench.sweep import curves, fewest_evaluations

Grids = Mapping[str, bytes]
"""PNG of a record's first images, by the record's name."""
Published = Mapping[str, Sequence[PublishedRow]]
"""The papers' figures by data set."""
MOST_MODES = 2500
"""More modes than these are not drawn."""


def to_html(
    board: Leaderboard, *, grids: Grids, published: Published | None = None, title: str = "trilemma-bench",
    created: str = "",
) -> str:  # fmt: skip
    """The whole page.

    Args:
        board: What is shown.
        grids: Where a record has one it is shown, at full size on a click.
        published: Shown below what was measured, in tables of their own, for the data sets of the board.
        title: Heading of the page.
        created: When the page was made.
    """
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    anchors = {
        row.record.name: f"model-{index}"
        for index, row in enumerate(row for table in board.tables for row in table.rows)
    }
    sections = "\n".join(_section(table, grids, anchors) for table in board.tables) or "<p>No results.</p>"
    sections += "\n".join(_published(dataset, rows) for dataset, rows in (published or {}).items() if rows)
    articles = "\n".join(
        _article(row, table, grids, anchors[row.record.name]) for table in board.tables for row in table.rows
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the leaderboard</a>
<header><h1>{_text(title)}</h1>
<p class="soft">How good are a model's samples, how much of the data do they cover, how fast do they come.
{_text(f"Made {created}." if created else "")} <button id="theme" type="button" hidden>Light or dark</button></p>
</header>
{_filters(board)}
<main id="main">
{sections}
<section id="models"><h2>Models</h2>
<a class="back" href="#">Back to the leaderboard</a>
{articles}
</section>
</main>
<dialog id="grid" aria-label="Samples at full size"><img alt="" src="data:,"><p></p>
<button type="button">Close</button></dialog>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return (resources.files("trilemma_bench") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(content: object) -> str:
    return html.escape(printable(str(content)))


def _name(label: str) -> str:
    """A model's name that breaks between its parts, where it must."""
    return "<wbr>".join(_text(part) for part in re.split("(?<=[:,=@/])", label))


# --- leaderboard ------------------------------------------------------------------------------------------


def _filters(board: Leaderboard) -> str:
    records = [row.record for table in board.tables for row in table.rows]
    choices = {
        "protocol": ("Protocol", [record.spec.protocol.name for record in records]),
        "dataset": ("Data set", [record.spec.protocol.dataset for record in records]),
        "family": ("Family", [record.family for record in records]),
    }
    parts = []
    for name, (label, values) in choices.items():
        options = "".join(f'<option value="{_text(value)}">{_text(value)}</option>' for value in sorted(set(values)))
        parts.append(f'<label>{label}<select id="{name}"><option value="">all</option>{options}</select></label>')
    parts.append('<label>Model<input id="search" type="search" placeholder="part of its name"></label>')
    parts.append('<span id="status" class="soft" role="status"></span>')
    return f'<form class="bar" aria-label="Filters" hidden>{"".join(parts)}</form>'


def _section(table: Table, grids: Grids, anchors: Mapping[str, str]) -> str:
    protocol = table.rows[0].record.spec.protocol
    listed = "".join(f"<li>{_text(note)}</li>" for note in notes(table))
    return (
        f'<section class="protocol" data-protocol="{_text(table.protocol)}" data-dataset="{_text(protocol.dataset)}">'
        f"<h2>{_text(table.protocol)}</h2><p>{_text(table.title)}</p>"
        f"<h3>Measured</h3>{_board(table, anchors)}"
        f'<details><summary>How to read this table</summary><ul class="notes">{listed}</ul></details>'
        f"{_trilemma(table, anchors)}{_curves(table, anchors)}{_coverage(table)}{_modes(table)}{_gallery(table, grids)}"
        "</section>"
    )


def _published(dataset: str, found: Sequence[PublishedRow]) -> str:
    """The papers' figures on one data set; no cell is the best and no row has a page, for none was measured here."""
    scores = [score for score in SCORES if any(score in row.values for row in found)]
    heads = [_head("model", "ascending"), *(_head(SCORES[score], "ascending") for score in scores)]
    heads += ['<th scope="col">device</th>', '<th scope="col">from</th>']
    lines = []
    for row in found:
        cells = [f'<td data-value="{_text(row.model)}"{_title(row.note)}>{_text(row.model)}</td>']
        for score in scores:
            value = row.values.get(score)
            cells.append('<td class="none" data-value="">–</td>' if value is None
                         else f'<td data-value="{value!r}">{value:g}</td>')  # fmt: skip
        cells += [f"<td>{_text(row.device)}</td>", f"<td>{_text(f'{row.paper}, {row.table}')}</td>"]
        lines.append(f'<tr data-name="{_text(row.model)}" data-family="">{"".join(cells)}</tr>')
    return (
        f'<section class="protocol published" data-dataset="{_text(dataset)}"><h2>Published figures on '
        f"{_text(dataset)}: not measured here</h2><p>{_text(PUBLISHED_NOTE)}</p>"
        f"{_scroll(f'Published figures on {dataset}', 'board published', heads, lines)}</section>"
    )


def _head(text: str, first: str) -> str:
    return f'<th scope="col" data-first="{first}"><button type="button">{_text(text)}</button></th>'


def _title(note: str) -> str:
    return f' title="{_text(note)}"' if note else ""


def _scroll(label: str, kind: str, heads: Iterable[str], lines: Iterable[str]) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(label)}"><table class="{kind}"><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _board(table: Table, anchors: Mapping[str, str]) -> str:
    heads = [_head("model", "ascending")]
    for column in table.columns:
        heads.append(_head(header(table, column), "descending" if column.higher_is_better else "ascending"))
    lines = [_line(row, table.columns, anchors[row.record.name]) for row in table.rows]
    return _scroll(f"Leaderboard of {table.protocol}", "board", heads, lines)


def _line(row: Row, columns: Sequence[Column], anchor: str) -> str:
    cells = [f'<td data-value="{_text(row.label)}"><a href="#{anchor}">{_name(row.label)}</a></td>']
    cells += [_number(cell, column) for cell, column in zip(row.cells, columns, strict=True)]
    kind = "" if row.ranked else ' class="unranked"'
    name, family = _text(row.label), _text(row.record.family)
    return f'<tr{kind} data-name="{name}" data-family="{family}">{"".join(cells)}</tr>'


def _number(cell: Cell, column: Column) -> str:
    kind = "best" if cell.best else "none" if cell.value is None else ""
    value = "" if cell.value is None else repr(cell.value)
    return f'<td class="{kind}" data-value="{value}"{_title(cell.note)}>{_text(cell_text(cell, column))}</td>'


# --- figures ----------------------------------------------------------------------------------------------


def _trilemma(table: Table, anchors: Mapping[str, str]) -> str:
    found = frontier(table)
    chart = "" if found is None else charts.trilemma(table, found, lambda row: f"#{anchors[row.record.name]}")
    if not chart:
        return ""
    return (
        f"<h3>The trilemma</h3><figure>{chart}<figcaption>Bars are 95 % intervals; thick rings are the Pareto set of "
        "all three; the dashed line is the front of quality and cost. Hover, touch or tab to a mark for its name and "
        "numbers."
        "</figcaption></figure>"
    )


def _curves(table: Table, anchors: Mapping[str, str]) -> str:
    column = curve_column(table)
    found = curves(table, column.name) if column is not None else []
    if column is None or not found:
        return ""
    chart = charts.curve_chart(table, found, column, lambda row: f"#{anchors[row.record.name]}")
    items = []
    for curve in found:
        point = fewest_evaluations(curve, column)
        items.append(f"<li>{_text(curve.label)}: {point.nfe:g} evaluations are the fewest within 5 % of its best.</li>")
    return (
        f"<h3>Quality against evaluations</h3><figure>{chart}<figcaption>One line a sampler; bars are 95 % intervals."
        f"</figcaption></figure><ul>{''.join(items)}</ul>"
    )


def _coverage(table: Table) -> str:
    """Coverage scores as bars, a row a model: fractions on 0..1, counts and others against the largest."""
    columns = [
        (place, column) for place, column in enumerate(table.columns)
        if column.axis == "coverage" and any(row.cells[place].value is not None for row in table.rows)
    ]  # fmt: skip
    if not columns:
        return ""
    largest = {place: max((row.cells[place].value or 0.0 for row in table.rows), default=0.0) for place, _ in columns}
    lines = []
    for row in table.rows:
        cells = [_bar(row.cells[place], column, max(1.0, largest[place])) for place, column in columns]
        if any(row.cells[place].value is not None for place, _ in columns):
            lines.append(
                f'<tr data-name="{_text(row.label)}" data-family="{_text(row.record.family)}">'
                f"<td>{_name(row.label)}</td>{''.join(cells)}</tr>"
            )
    heads = [f'<th scope="col">{_text(name)}</th>' for name in ("model", *(header(table, each) for _, each in columns))]
    return f"<h3>Coverage</h3>{_scroll('Coverage', 'coverage', heads, lines)}"


def _bar(cell: Cell, column: Column, most: float) -> str:
    if cell.value is None:
        return '<td class="none">–</td>'
    bar = f'<meter min="0" max="{most!r}" value="{max(cell.value, 0.0)!r}">{cell.value:g}</meter>'
    return f"<td>{bar}<br>{_text(cell_text(cell, column))}</td>"


def _modes(table: Table) -> str:
    """A panel a model: which of the known modes its samples reach, and how evenly."""
    items = []
    for row in table.rows:
        counts = next((item.score.histogram for item in row.record.scores if item.score.histogram), ())
        if 0 < len(counts) <= MOST_MODES:
            items.append(
                f'<li data-name="{_text(row.label)}" data-family="{_text(row.record.family)}">'
                f"{charts.modes(row.label, counts)}{_name(row.label)}</li>"
            )
    if not items:
        return ""
    return (
        f'<h3>Modes</h3><ul class="gallery modes">{"".join(items)}</ul><p class="soft">A square for each mode: dark '
        "few samples, bright twice a fair share or more, crossed out none.</p>"
    )


def _gallery(table: Table, grids: Grids) -> str:
    items = []
    for row in table.rows:
        if row.record.name in grids:
            items.append(
                f'<li data-name="{_text(row.label)}" data-family="{_text(row.record.family)}">'
                f'<button type="button">{_image(row, grids)}{_name(row.label)}</button></li>'
            )
    return f'<h3>Samples</h3><ul class="gallery">{"".join(items)}</ul>' if items else ""


def _image(row: Row, grids: Grids) -> str:
    data = base64.b64encode(grids[row.record.name]).decode()
    return f'<img alt="The first samples of {_text(row.label)}, not chosen" src="data:image/png;base64,{data}">'


# --- models -----------------------------------------------------------------------------------------------


def _article(row: Row, table: Table, grids: Grids, anchor: str) -> str:
    record = row.record
    shown = "Its samples are shown with the leaderboard." if record.name in grids else ""
    details = f"<details><summary>The record in full</summary><pre>{html.escape(record.dumps())}</pre></details>"
    remarks = "".join(f"<li>{_text(note)}</li>" for note in record.notes)
    return (
        f'<article id="{anchor}"><h3 tabindex="-1">{_text(row.label)}</h3>'
        f"<p>{_text(record.family)}, under {_text(table.protocol)}. {shown}</p>"
        f"{f'<ul>{remarks}</ul>' if remarks else ''}"
        f"<h4>To make it again</h4><pre>{html.escape(printable(reproduce(record)))}</pre>"
        f"<h4>Scores</h4>{_scores(record)}<h4>Where the numbers come from</h4>{_facts(record)}{details}</article>"
    )


def reproduce(record: ResultRecord) -> str:
    """The command that makes a record again, from its spec."""
    spec, sampler = record.spec, record.spec.sampler
    name, _, count = spec.protocol.name.partition("@n")
    if record.family == "images":
        parts = ["trilemma-bench", "score", "PATH", "--name", sampler.name]
    else:
        parts = ["trilemma-bench", "run", "--models", str(sampler)]
    parts += ["--dataset", spec.protocol.dataset, "--protocol", name]
    parts += ["--num-samples", count] if count else []
    parts += ["--seed", str(spec.seed)] if spec.seed else []
    parts += ["--device", spec.device] if spec.device != "cpu" else []
    parts += ["--dtype", spec.dtype] if spec.dtype != "float32" else []
    parts += ["--compile"] if spec.compile else []
    parts += ["--batch-size", str(spec.batch_size)] if spec.batch_size is not None else []
    return shlex.join(parts)


def _scores(record: ResultRecord) -> str:
    lines = []
    for item in record.scores:
        score = item.score
        low, high = score.interval if score.interval is not None else (None, None)
        value = _text(f"failed: {score.failure}") if score.value is None else f"{score.value:.6g}"
        interval = f"{low:.6g} to {high:.6g}" if low is not None else "–"
        lines.append(
            f"<tr><td>{_text(item.kind.name)}</td><td>{value}</td><td>{interval}</td><td>{score.n or '–'}</td>"
            f"<td>{_text(score.uncertainty or '–')}</td></tr>"
        )
    heads = [f'<th scope="col">{name}</th>' for name in ("score", "value", "95 % interval", "n", "how")]
    return _scroll("Scores", "facts", heads, lines)


def _machine(hardware: Hardware) -> str:
    return f"{hardware.device}, {hardware.model}, {hardware.threads} threads, {hardware.dtype}"


def _facts(record: ResultRecord) -> str:
    source, speed, timing = record.provenance, record.speed, record.best_timing
    commit = f"{source.commit}{' (changed)' if source.dirty else ''}" if source.commit else "not known"
    facts: dict[str, object] = {
        "Weights": f"{source.weights_digest or 'none'} from {source.weights_source or 'no file'}",
        "Samples": f"{record.samples_key}; SHA-256 of all images {source.samples_digest or 'not known'}",
        "Where the samples came from": ", ".join(
            f"{what.replace('_', ' ')} {found}" for what, found in source.store.items()
        )
        or "not noted",
        "Data": source.data_fingerprint or "not known",
        **{f"Reference ({name})": digest for name, digest in source.reference_digests.items()},
        **{f"Extractor ({name})": digest for name, digest in source.extractor_identities.items()},
        "Program": f"trilemma-bench {source.package_version}, commit {commit}",
        "Versions": ", ".join(f"{name} {version}" for name, version in source.versions.items()) or "not noted",
        "Machine": _machine(record.hardware),
        "Command": source.command or "not noted",
        "Measured": f"{source.created or 'not noted'}, in {source.duration_seconds:g} s",
    }
    if speed is not None and timing is not None:
        facts["Timing"] = (
            f"{timing.method}, {timing.repeats} repeats of {timing.num_images} images after {timing.warmup} to warm "
            f"up; loading took {timing.load_seconds:.2f} s; on {_machine(record.timed_on)}"
        )
    lines = "".join(f'<tr><th scope="row">{_text(k)}</th><td>{_text(v)}</td></tr>' for k, v in facts.items())
    return f'<div class="scroll"><table class="facts"><tbody>{lines}</tbody></table></div>'
