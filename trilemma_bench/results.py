"""A results folder: `<protocol>/<model>-<digest>.json` records, and the leaderboard over them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trilemma_bench.errors import StoreError, UsageError, unknown_name
from trilemma_bench.ranking import rows
from trilemma_bench.record import ResultRecord
from trilemma_bench.render import to_csv, to_markdown, to_terminal
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
    if text.endswith(".json") and Path(text).is_file():
        return ResultRecord.read(Path(text))
    records = read_records(folder)
    found = [record for record in records if text in (record.name, record.model)]
    if not found:
        raise unknown_name("record", text, {record.model for record in records})
    if len(found) > 1:
        names = ", ".join(record.name for record in found)
        raise UsageError(f"{folder} has {len(found)} records of {text}: {names}. Name one of these, or its file.")
    return found[0]


def write_leaderboard(records: Sequence[ResultRecord], folder: Path) -> list[Path]:
    """Write `leaderboard.md` and `leaderboard.csv` into `folder`; returns their paths."""
    board = rows(records)
    texts = {"leaderboard.md": to_markdown(board), "leaderboard.csv": to_csv(board)}
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]


def tables(records: Sequence[ResultRecord]) -> list[rich.table.Table]:
    """The leaderboard of these records for rich's console."""
    return [to_terminal(table) for table in rows(records).tables]
