"""A results folder: `<protocol>/<model>-<digest>.json` records, and the leaderboard over them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trilemma_bench import published
from trilemma_bench.errors import StoreError, UsageError, unknown_name
from trilemma_bench.gate import SUFFIX, Expectation, Observation, matching
from trilemma_bench.gate_images import of_records
from trilemma_bench.ranking import Leaderboard
from trilemma_bench.record import ResultRecord
from trilemma_bench.render import (
    published_latex,
    published_markdown,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    to_terminal,
)
from trilemma_bench.store import write_atomic

if TYPE_CHECKING:
    import rich.table


def read_records(folder: Path) -> list[ResultRecord]:
    """All records below a results folder, by path.

    Raises:
        StoreError: No such folder, or a JSON file in a protocol's folder that is not a record.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder. `trilemma-bench run --out {folder}` makes it.")
    return [ResultRecord.read(path) for path in sorted(folder.glob("*/*.json"))]


def listing(folder: Path) -> list[str]:
    """One line a record: its name, protocol, seed, date, and the digests of weights and samples."""
    lines = []
    for record in read_records(folder):
        said = record.provenance
        weights = (said.weights_digest or "none")[:12]
        lines.append(
            f"{record.spec.protocol.name}/{record.name}  seed {record.spec.seed}  {said.created[:10] or 'no date'}  "
            f"weights {weights}  samples {said.samples_digest[:12] or 'none'}  commit {(said.commit or 'none')[:12]}"
            f"{' (changed)' if said.dirty else ''}"
        )
    return lines


def find_record(text: str, folder: Path) -> ResultRecord:
    """The record at a path, or the one of that name or model in a results folder.

    Raises:
        UsageError: None of that name, or several.
        StoreError: Not a record.
    """
    found = _candidates(text, folder)
    if not found:
        raise unknown_name("record", text, {record.model for record in read_records(folder)})
    if len(found) > 1:
        names = ", ".join(record.name for record in found)
        raise UsageError(f"{folder} has {len(found)} records of {text}: {names}. Name one of these, or its file.")
    return found[0]


def find_pair(a: str, b: str, folder: Path) -> tuple[ResultRecord, ResultRecord]:
    """Two records as `find_record` finds them; a model measured under several protocols is taken under the other's.

    Raises:
        UsageError: Not found, or still several.
        StoreError: Not a record.
    """
    first, second = _candidates(a, folder), _candidates(b, folder)
    pairs = [(one, other) for one in first for other in second if one.spec.protocol.name == other.spec.protocol.name]
    if len(pairs) == 1 and max(len(first), len(second)) > 1:
        return pairs[0]
    return find_record(a, folder), find_record(b, folder)


def _candidates(text: str, folder: Path) -> list[ResultRecord]:
    """The record at a path, or those of that name or model in a results folder."""
    if text.endswith(".json") and Path(text).is_file():
        return [ResultRecord.read(Path(text))]
    return [record for record in read_records(folder) if text in (record.name, record.model)]


def read_expectations(folder: Path) -> list[tuple[Path, Expectation]]:
    """All expectations in a folder and below it, by path.

    Raises:
        StoreError: No such folder, none in it, or one that is not an expectation.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder. `trilemma-bench expect make --out {folder}` makes it.")
    paths = sorted(folder.rglob(f"*{SUFFIX}"))
    if not paths:
        raise StoreError(f"{folder}: holds no {SUFFIX} file. `trilemma-bench expect make --out {folder}` makes one.")
    return [(path, Expectation.read(path)) for path in paths]


def observations(
    found: Sequence[tuple[Path, Expectation]], records: Sequence[ResultRecord], cache: Path
) -> list[tuple[Expectation, Observation]]:
    """What records say of each expectation, and their samples as far as they are still kept below `cache`.

    Raises:
        StoreError: An expectation's images are not there, or altered.
    """
    pairs = []
    for path, item in found:
        own = matching(item, records)
        pairs.append((item, Observation(records=own, images=of_records(item, path, own, cache))))
    return pairs


FORMATS: dict[str, Callable[[Leaderboard, int | None], str]] = {
    "md": lambda board, precision: to_markdown(board, precision=precision),
    "csv": lambda board, precision: to_csv(board),
    "tex": lambda board, precision: to_latex(board, precision=precision),
    "json": lambda board, precision: to_json(board),
}
"""File endings of a leaderboard and what writes them; CSV and JSON have numbers in full."""
PublishedText = Callable[[str, Sequence[published.PublishedRow]], str]
PUBLISHED: dict[str, PublishedText] = {"md": published_markdown, "tex": published_latex}
"""Formats for readers, which the papers' figures may join."""
LONG_NAMES = {"markdown": "md", "latex": "tex"}


def write_leaderboard(
    board: Leaderboard,
    folder: Path,
    *,
    formats: Sequence[str] = ("md", "csv"),
    precision: int | None = None,
    with_published: bool = False,
) -> list[Path]:
    """Write `leaderboard.md`, `leaderboard.csv` ... into `folder`; returns their paths.

    Args:
        board: What was measured.
        folder: Where the files go.
        formats: Endings, see `FORMATS`, or `LONG_NAMES` of them.
        precision: Significant digits; None takes two of each interval.
        with_published: Whether the papers' figures on the same data stand below the Markdown and the LaTeX, in tables
            of their own.

    Raises:
        UsageError: No such format, or none at all.
    """
    if not formats:
        raise UsageError(f"--format names none. There are {', '.join([*FORMATS, *LONG_NAMES])}.")
    chosen = [LONG_NAMES.get(name, name) for name in formats]
    for name in chosen:
        if name not in FORMATS:
            raise unknown_name("format", name, [*FORMATS, *LONG_NAMES])
    paths = {name: folder / f"leaderboard.{name}" for name in chosen}
    for name, path in paths.items():
        text = FORMATS[name](board, precision)
        if with_published and name in PUBLISHED:
            text = "\n".join([text, *published_tables(board, PUBLISHED[name])])
        write_atomic(path, text.encode())
    return list(paths.values())


def published_tables(board: Leaderboard, to_text: PublishedText = published_markdown) -> list[str]:
    """The papers' figures, one table for each data set of the board that has any."""
    datasets = dict.fromkeys(row.record.spec.protocol.dataset for table in board.tables for row in table.rows)
    found = {dataset: published.rows(published.figures(dataset)) for dataset in datasets}
    return [to_text(dataset, each) for dataset, each in found.items() if each]


def tables(board: Leaderboard, *, precision: int | None = None) -> list[rich.table.Table]:
    """The tables of a leaderboard for rich's console."""
    return [to_terminal(table, precision=precision) for table in board.tables]
