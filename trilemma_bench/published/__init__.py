"""The papers' own figures, each with where it is from. None was measured here; imports no torch.

Files hold one figure a row: `paper, table, dataset, model, score, value, device, origin, source, note`. A figure that
nobody but somebody's memory vouches for is none: its origin would be `memory`, and such rows are refused.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources

from pydantic import ValidationError

from trilemma_bench.errors import StoreError
from trilemma_bench.spec import Frozen

SCORES = {
    "fid": "FID", "sfid": "sFID", "is": "IS", "precision": "precision", "recall": "recall", "modes": "modes",
    "kl": "KL", "nfe": "NFE", "seconds_per_100_images": "s / 100 images",
}  # fmt: skip
"""What is published, and how a column of it is headed."""


class Figure(Frozen):
    """One published number."""

    paper: str
    table: str
    dataset: str
    model: str
    score: str
    value: float
    device: str = ""
    origin: str
    source: str
    note: str = ""


class PublishedRow(Frozen):
    """A model's figures in one table of a paper: score -> value as printed there."""

    paper: str
    table: str
    model: str
    values: dict[str, float]
    device: str
    note: str


def figures(dataset: str | None = None) -> list[Figure]:
    """All figures that ship, or those of a data set, in the order of the files.

    Raises:
        StoreError: A row that is no figure, or one that is from memory; the package was altered.
    """
    found = []
    files = sorted((item for item in resources.files(__name__).iterdir() if item.name.endswith(".csv")),
                   key=lambda item: item.name)  # fmt: skip
    for file in files:
        for number, row in enumerate(csv.DictReader(file.read_text().splitlines()), start=2):
            found.append(_figure(row, f"{file.name}, line {number}"))
    return [figure for figure in found if dataset in (None, figure.dataset)]


def _figure(row: dict[str, str], where: str) -> Figure:
    try:
        figure = Figure.model_validate(row)
    except ValidationError as error:
        raise StoreError(f"{where}: not a published figure: {error}") from error
    if "memory" in figure.origin or not figure.source or figure.score not in SCORES:
        raise StoreError(
            f"{where}: {figure.model}, {figure.score}: no figure with a source; install the package again."
        )
    return figure


def rows(found: Sequence[Figure]) -> list[PublishedRow]:
    """One row for each model in each table, in order."""
    groups: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in found:
        groups.setdefault((figure.paper, figure.table, figure.model), []).append(figure)
    return [
        PublishedRow(
            paper=paper, table=table, model=model, values={each.score: each.value for each in group},
            device=next((each.device for each in group if each.device), ""),
            note=next((each.note for each in group if each.note), ""),
        )
        for (paper, table, model), group in groups.items()
    ]  # fmt: skip
