"""The report: records from a results folder, images from the caches, one HTML file that works offline."""

from __future__ import annotations

import datetime
import io
from collections.abc import Sequence
from pathlib import Path

from trilemma_bench import published
from trilemma_bench.cards import baselines_folder
from trilemma_bench.errors import UsageError
from trilemma_bench.gate import SUFFIX, Expectation
from trilemma_bench.gate_images import expected_images
from trilemma_bench.images import whole_rows, write_grid
from trilemma_bench.kinds import Array
from trilemma_bench.page import to_html
from trilemma_bench.ranking import rows
from trilemma_bench.record import ResultRecord
from trilemma_bench.store import cache_folder, kept_images, write_atomic

MOST_BYTES = 8_000_000
COLUMNS = 8
"""Images beside and above each other in a grid."""


def write_report(
    records: Sequence[ResultRecord], path: Path, *, cache: Path | None = None, title: str = "trilemma-bench"
) -> list[str]:
    """Write the page of these records; returns what was left out, a line each.

    Grids are of the first images of each run, as far as its samples are still kept or ship with a baseline or its
    expectation; they go in as long as the page stays under `MOST_BYTES`.

    Raises:
        UsageError: The tables alone are larger than that.
    """
    board = rows(records)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    datasets = dict.fromkeys(record.spec.protocol.dataset for record in records)
    papers = {dataset: published.rows(published.figures(dataset)) for dataset in datasets}
    size = len(to_html(board, grids={}, published=papers, title=title, created=created).encode())
    if size > MOST_BYTES:
        raise UsageError(f"{len(records)} records make a page of {size} bytes; at most {MOST_BYTES}. Report fewer.")
    grids: dict[str, bytes] = {}
    left_out = []
    for record in [row.record for table in board.tables for row in table.rows]:
        png = grid(record, cache or cache_folder())
        if png is None:
            left_out.append(f"{record.model}: its samples are no longer kept, so it has no grid")
        # Base64 has four letters for three bytes; the rest is what stands around the image.
        elif size + len(png) * 4 // 3 + 1000 > MOST_BYTES:
            left_out.append(f"{record.model}: its grid would make the page larger than {MOST_BYTES} bytes")
        else:
            size += len(png) * 4 // 3 + 1000
            grids[record.name] = png
    write_atomic(path, to_html(board, grids=grids, published=papers, title=title, created=created).encode())
    return left_out


def grid(record: ResultRecord, cache: Path) -> bytes | None:
    """PNG of the first images of a record, or None where they are not kept."""
    images = first_images(record, cache, COLUMNS)
    if images is None:
        return None
    content = io.BytesIO()
    write_grid(content, images, columns=min(COLUMNS, len(images)))
    return content.getvalue()


def first_images(record: ResultRecord, cache: Path, columns: int) -> Array | None:
    """The first images of a record that fill rows of `columns`, at most as many rows, or None where they are not kept.

    uint8 [N, 1 or 3, H, W]. None of them is chosen: they are the first of the seed.
    """
    key = record.samples_key
    folders = [cache / "samples" / key[:2], *sorted(baselines_folder().glob("*/samples"))]
    images = kept_images(key, record.spec.seed, columns**2, *folders) if key else None
    images = _shipped_images(record) if images is None else images
    if images is None or images.ndim != 4 or images.shape[1] not in (1, 3):
        return None
    return whole_rows(images[: columns**2], columns)


def _shipped_images(record: ResultRecord) -> Array | None:
    """The images of an expectation that ships, where they are of this record's samples."""
    for path in sorted(baselines_folder().glob(f"expected/*{SUFFIX}")) if record.spec.seed == 0 else ():
        expectation = Expectation.read(path)
        if expectation.samples_key == record.samples_key and expectation.images is not None:
            return expected_images(expectation, path)
    return None
