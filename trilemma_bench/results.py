"""A results folder: `<protocol>/<model>-<digest>.json` records, and the leaderboard over them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trilemma_bench.errors import StoreError
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
