"""The papers' figures: each with a source, none from memory, apart from what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranking_cases import record

from trilemma_bench import published
from trilemma_bench.errors import StoreError
from trilemma_bench.ranking import rows
from trilemma_bench.results import write_leaderboard


def test_every_figure_has_a_source_and_none_is_from_memory() -> None:
    found = published.figures()
    assert len(found) > 400
    assert all(figure.source and figure.paper and "memory" not in figure.origin for figure in found)
    assert {figure.paper.split(" (")[1] for figure in found} == {
        "arXiv 2112.07804)", "arXiv 2006.11239)", "arXiv 2010.02502)", "arXiv 2105.05233)"
    }  # fmt: skip
    keys = [(figure.paper, figure.table, figure.dataset, figure.model, figure.score) for figure in found]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("table", "model", "values"), [
    ("Table 1", "Denoising Diffusion GAN (ours), T=4",
     {"is": 9.63, "fid": 3.75, "recall": 0.57, "nfe": 4, "seconds_per_100_images": 0.21}),
    ("Table 1", "DDPM (L_simple)", {"is": 9.46, "fid": 3.17}),
    ("Table 1", "DDIM, eta 0.0, 50 steps, quadratic", {"fid": 4.67}),
    ("Table 2", "DDGAN, steps: T=8", {"is": 9.43, "fid": 4.36, "recall": 0.56}),
])  # fmt: skip
def test_known_rows_are_as_printed(table: str, model: str, values: dict[str, float]) -> None:
    (row,) = [row for row in published.rows(published.figures("cifar10")) if (row.table, row.model) == (table, model)]
    assert row.values == values


def test_a_figure_from_memory_is_refused() -> None:
    row = {"paper": "p", "table": "t", "dataset": "d", "model": "m", "score": "fid", "value": "1", "source": "x"}
    published._figure({**row, "origin": "notes"}, "x")
    for change in ({"origin": "memory"}, {"origin": "notes", "source": ""}, {"origin": "notes", "score": "fidd"},
                   {"origin": "notes", "value": "about 3"}):  # fmt: skip
        with pytest.raises(StoreError):
            published._figure({**row, **change}, "x")


def of_cifar10(model: str, fd: float) -> object:
    measured = record(model, fd)
    protocol = measured.spec.protocol.model_copy(update={"dataset": "cifar10"})
    return measured.model_copy(update={"spec": measured.spec.model_copy(update={"protocol": protocol})})


def test_published_rows_stand_apart_and_are_never_ranked(tmp_path: Path) -> None:
    records = [of_cifar10("a", 10.0), of_cifar10("b", 20.0)]
    plain = write_leaderboard(rows(records), tmp_path)[0].read_text()  # type: ignore[arg-type]
    both = write_leaderboard(rows(records), tmp_path, with_published=True)[0].read_text()  # type: ignore[arg-type]
    assert both.startswith(plain)
    below = both[len(plain) :]
    assert "## Published figures on cifar10: not measured here" in below
    assert "*Denoising Diffusion GAN (ours), T=4*" in below and "V100" in below
    assert "**" not in below
    assert "Ranks" not in below
    # The CSV is of what was measured alone.
    assert "Denoising" not in (tmp_path / "leaderboard.csv").read_text()


def test_a_data_set_without_published_figures_has_no_such_table(tmp_path: Path) -> None:
    assert "Published" not in write_leaderboard(rows([record("a", 1.0)]), tmp_path, with_published=True)[0].read_text()
