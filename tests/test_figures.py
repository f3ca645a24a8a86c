"""Figures for print: what is drawn, the same bytes each time, and names that are no formulas."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from ranking_cases import FD, RECALL, record, score, scored, speed

pytest.importorskip("matplotlib", reason="no matplotlib: pip install trilemma-bench[plot]")

from PIL import Image

from trilemma_bench import figures
from trilemma_bench.cli import main
from trilemma_bench.errors import UsageError
from trilemma_bench.frontier import frontier
from trilemma_bench.images import sheet, whole_rows
from trilemma_bench.ranking import rows
from trilemma_bench.record import ResultRecord
from trilemma_bench.spec import SamplerSpec


def swept(steps: int, fd: float) -> ResultRecord:
    sampler = SamplerSpec(name="ddim", options={"steps": steps})
    found = record(
        str(sampler), scores=(scored(FD, score(fd)), scored(RECALL, score(0.5, 0.01))),
        found_speed=speed(steps * 0.4, nfe=steps),
    )  # fmt: skip
    return found.model_copy(update={"spec": found.spec.model_copy(update={"sampler": sampler})})


RECORDS = [
    swept(5, 40.0), swept(10, 20.0), swept(50, 15.0), record("$x^2$ <b>", 30.0, recall=0.2, found_speed=speed(0.1)),
]  # fmt: skip


def test_png_and_svg_of_both_figures_at_the_width_asked_for(tmp_path: Path) -> None:
    paths = figures.write_figures(rows(RECORDS), tmp_path, width="column")
    assert [path.name for path in paths] == [
        "toy-v1-trilemma.png", "toy-v1-trilemma.svg", "toy-v1-curves.png", "toy-v1-curves.svg",
    ]  # fmt: skip
    with Image.open(paths[0]) as image:
        assert image.width == round(3.25 * 300)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="no folder can be made there"):
        figures.write_figures(rows(RECORDS), tmp_path / "file")


def test_text_in_svg_is_text_and_names_are_no_formulas(tmp_path: Path) -> None:
    paths = figures.write_figures(rows(RECORDS), tmp_path, serif=True)
    text = " ".join(
        "".join(node.itertext()) for node in ElementTree.parse(paths[1]).iter("{http://www.w3.org/2000/svg}text")
    )
    assert "$x^2$ <b>" in text and "ddim:steps=50" in text and "FD (toy)" in text
    assert "mathdefault" not in text and {"0.1", "1", "10"} <= set(text.split())


@pytest.mark.parametrize(("count", "named"), [(12, 12), (13, 1)])
def test_where_names_would_cover_each_other_the_efficient_ones_stay(count: int, named: int) -> None:
    found = [record(f"m{i}", 10.0 + i, recall=0.5, found_speed=speed(1.0 + i)) for i in range(count)]
    table = rows(found).tables[0]
    efficient = frontier(table)
    assert efficient is not None
    with figures._style(serif=False):
        axes = figures.trilemma(table, efficient).axes[0]
    assert len(axes.texts) == named


def test_the_name_of_the_slowest_model_lies_on_its_left() -> None:
    table = rows(RECORDS).tables[0]
    found = frontier(table)
    assert found is not None
    with figures._style(serif=False):
        names = figures.trilemma(table, found).axes[0].texts
    sides = {name.xy[0]: name.get_horizontalalignment() for name in names}
    assert sides == {0.1: "left", 2.0: "left", 4.0: "left", 20.0: "right"}


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in figures.write_figures(rows(RECORDS), tmp_path / "a")]
    again = [path.read_bytes() for path in figures.write_figures(rows(RECORDS), tmp_path / "b")]
    assert first == again


def test_long_names_are_cut_and_squeeze_nothing(tmp_path: Path) -> None:
    name = "ddim@" + "/a/long/path" * 20
    found = [record(f"{name}{i}", 10.0 * i, recall=0.1 * i, found_speed=speed(i)) for i in (1, 2, 3)]
    paths = figures.write_figures(rows(found), tmp_path, width="column")
    assert name not in paths[1].read_text()


def test_marks_lie_where_the_numbers_are() -> None:
    table = rows(RECORDS).tables[0]
    found = frontier(table)
    assert found is not None
    with figures._style(serif=False):
        axes = figures.trilemma(table, found).axes[0]
    places = {tuple(mark.get_offsets()[0]) for mark in axes.collections if len(mark.get_offsets()) == 1}
    assert {(2.0, 40.0), (4.0, 20.0), (20.0, 15.0), (0.1, 30.0)} <= places
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("seconds", [943.8205348079804, 0.0031644104920775656, 3.365986061580921e-06])
def test_models_of_one_time_are_drawn_wherever_it_is_rounded(seconds: float) -> None:
    """At these times matplotlib's own limits of a logarithmic axis are as wide as one rounding of the number."""
    same = [record(name, fd, recall=0.5, found_speed=speed(seconds)) for name, fd in (("ddgan", 40.0), ("ddim", 20.0))]
    table = rows(same).tables[0]
    found = frontier(table)
    assert found is not None
    with figures._style(serif=False):
        figure = figures.trilemma(table, found)
        figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    assert low == pytest.approx(seconds / 10) and high == pytest.approx(seconds * 10)


def test_points_have_a_panel_each_with_what_they_cost(tmp_path: Path) -> None:
    table = rows(RECORDS).tables[0]
    centres = np.array([[-1.0, 0.0], [1.0, 0.0]])
    clouds = {row.record.name: np.repeat(centres, 5, 0) + index for index, row in enumerate(table.rows[:3])}
    paths = figures.write_figures(rows(RECORDS), tmp_path, samples=clouds, centres={"toy": centres})
    assert [path.name for path in paths][-2:] == ["toy-v1-points.png", "toy-v1-points.svg"]
    with figures._style(serif=False):
        panels = figures.point_panels(table, [(row, clouds[row.record.name]) for row in table.rows[:3]], centres)
    shown = [axes for axes in panels.axes if axes.get_visible()]
    assert len(shown) == 3
    for axes, row in zip(shown, table.rows, strict=False):
        crosses, dots = axes.lines
        np.testing.assert_array_equal(crosses.get_xydata(), centres)
        np.testing.assert_array_equal(dots.get_xydata(), clouds[row.record.name])
        assert row.label in axes.get_title() and f"NFE {row.record.speed.nfe:g}" in axes.get_title()
        assert axes.get_xlim() == shown[0].get_xlim() and axes.get_xlim()[0] < -1 < 1 < axes.get_xlim()[1]


def test_points_without_known_modes_are_drawn_where_most_of_them_lie() -> None:
    table = rows(RECORDS).tables[0]
    cloud = np.concatenate([np.random.default_rng(0).normal(size=(500, 2)), [[1e6, 1e6]]])
    with figures._style(serif=False):
        (axes,) = figures.point_panels(table, [(table.rows[0], cloud)], None, width=3.25).axes[:1]
    assert 2 < axes.get_xlim()[1] < 6


def test_images_have_a_panel_each_the_first_of_their_seed(tmp_path: Path) -> None:
    table = rows(RECORDS).tables[0]
    rng = np.random.default_rng(0)
    images = {
        row.record.name: rng.integers(256, size=(count, channels, 4, 4), dtype=np.uint8)
        for row, count, channels in zip(table.rows, (40, 13, 3), (3, 1, 3), strict=False)
    }
    rows_of = {name: whole_rows(found[: figures.PANEL_IMAGES**2], 6) for name, found in images.items()}
    sheets = {name: sheet(found, min(6, len(found))) for name, found in rows_of.items()}
    paths = figures.write_figures(rows(RECORDS), tmp_path, samples=sheets)
    assert [path.name for path in paths][-2:] == ["toy-v1-samples.png", "toy-v1-samples.svg"]
    shown = [(row, images[row.record.name]) for row in table.rows[:3]]
    with figures._style(serif=False):
        given = [(row, sheets[row.record.name]) for row, _ in shown]
        panels = [axes for axes in figures.image_panels(table, given).axes if axes.get_visible()]
    sizes = [(24, 24), (8, 24), (4, 12)]
    for axes, (row, found), size in zip(panels, shown, sizes, strict=True):
        drawn = np.asarray(axes.images[0].get_array())
        assert drawn.shape[:2] == size
        np.testing.assert_array_equal(drawn[:4, 4:8].reshape(4, 4, -1), found[1].transpose(1, 2, 0))
        assert row.label in axes.get_title() and f"NFE {row.record.speed.nfe:g}" in axes.get_title()


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        figures.write_figures(rows([record("a", 1.0)]), tmp_path)
    with pytest.raises(UsageError, match="column, page"):
        figures.write_figures(rows(RECORDS), tmp_path, width="huge")


def test_plot_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, found in enumerate(RECORDS):
        (tmp_path / "results" / "toy-v1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / "toy-v1" / f"{index}.json").write_text(found.dumps())
    with pytest.raises(SystemExit) as left:
        main(["plot", str(tmp_path / "results"), "--out", str(tmp_path / "figures"), "--serif"])
    assert left.value.code == 0
    assert len(list((tmp_path / "figures").iterdir())) == 4 and "wrote" in capsys.readouterr().out
