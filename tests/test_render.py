"""Tables as text: what a reader sees, and what hostile names cannot do."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from ranking_cases import FD, record, score, scored, speed, timing

from trilemma_bench import render
from trilemma_bench.errors import UsageError
from trilemma_bench.ranking import Cell, Column, rows
from trilemma_bench.record import ResultRecord, Score
from trilemma_bench.results import write_leaderboard

RECORDS = [
    record("ddgan", 41.23456, recall=0.42, found_speed=speed(2.5)),
    record("ddpm", 35.0, recall=0.5, found_speed=speed(4300, nfe=1000, timings=(timing(4300, "extrapolated"),))),
    record("mine", Score.failed("2 rows hold NaN"), found_speed=speed(9.0, nfe=None)),
    record("real:split=test", 3.0, family="real"),
]


def markdown(records: list[ResultRecord]) -> str:
    return render.to_markdown(rows(records))


def cells(text: str, start: str) -> list[str]:
    """Cells of the table row that begins with `start`; escaped bars do not divide."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def parsed(records: list[ResultRecord]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render.to_csv(rows(records)))))


def terminal(records: list[ResultRecord], width: int = 200) -> str:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), record=True)
    for table in rows(records).tables:
        console.print(render.to_terminal(table))
    return console.export_text()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1190.4, "1190"), (1130.0, "1130"), (50.0, "50"), (25.89, "25.89"), (0.5, "0.5"), (20000.2, "20000")],
)
def test_zeros_before_the_point_stay(value: float, shown: str) -> None:
    text = markdown([record("mine", 3.0, found_speed=speed(gflops_per_image=value))])
    header = cells(text, "model")
    assert cells(text, "mine")[next(i for i, name in enumerate(header) if name.startswith("GFLOPs"))] == shown


# --- Markdown ---------------------------------------------------------------------------------------------


def test_header_names_protocol_machine_precision_and_date() -> None:
    text = markdown(RECORDS)
    assert "## toy-v1: Toy data" in text
    assert "Speed on cpu (Zen 5, 2 threads), float32." in text
    assert "Measured on 2026-05-04." in text


def test_heads_have_arrows_and_rows_have_intervals() -> None:
    text = markdown(RECORDS)
    assert cells(text, "model") == [
        "model", "FD (toy) ↓", "recall ↑", "NFE ↓", "s / 100 images ↓", "GFLOPs / image ↓", "parameters",
    ]  # fmt: skip
    assert cells(text, "ddgan") == [
        "ddgan", "41.2 ± 1.0", "0.420 ± 0.010", "**4**", "**2.50 [2.25, 3.00]**", "1.16", "6.3 M",
    ]  # fmt: skip


def test_best_is_bold_and_real_rows_are_italic_and_never_bold() -> None:
    text = markdown(RECORDS)
    assert cells(text, "ddpm")[1:3] == ["**35.0 ± 1.0**", "**0.500 ± 0.010**"]
    real = cells(text, "*real")
    assert real[0] == "*real:split=test*" and real[1] == "3.0 ± 1.0"
    assert "not ranked" in text


def test_failures_say_why_and_unknown_counts_say_so() -> None:
    text = markdown(RECORDS)
    row = cells(text, "mine")
    assert row[1] == "failed"
    assert "- Failed (mine, FD (toy)): 2 rows hold NaN" in text
    assert row[2] == "–"
    assert row[3] == "not observed"


def test_extrapolated_seconds_have_a_dagger_and_a_footnote() -> None:
    text = markdown(RECORDS)
    assert cells(text, "ddpm")[4] == "4300 [3870, 5160]†"
    assert "† extrapolated" in text
    assert "†" not in markdown(RECORDS[:1])


def test_unverified_weights_have_a_mark_and_a_footnote() -> None:
    text = markdown([record("a", scores=(scored(FD, score(1.0), verified=False),))])
    assert cells(text, "a ")[1].endswith("‡") and "‡ unverified" in text


def test_several_machines_have_a_column_each_and_are_named() -> None:
    text = markdown(
        [
            *RECORDS[:2],
            record("gpu", 50.0, found_speed=speed(0.1), hardware={"device": "cuda", "model": "A100"}),
        ]
    )
    assert [head for head in cells(text, "model") if "100" in head] == [
        "s / 100 images (machine 1) ↓",
        "s / 100 images (machine 2) ↓",
    ]
    assert "1: cpu (Zen 5, 2 threads), float32; 2: cuda (A100), float32" in text


def test_intervals_say_how_they_were_got_and_what_they_leave_out() -> None:
    text = markdown(RECORDS)
    assert "do not cover the bias" in text
    assert "FD (toy), recall: jackknife" in text


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (104.234, 102.9, 105.57, "104.2 ± 1.3"),
        (0.98, 0.93, 1.0, "0.980 [0.930, 1.000]"),
        (-0.000012, -0.00004, 0.000016, "-0.000012 ± 0.000028"),
        (35211.7, 34000.0, 36423.4, "35212 ± 1212"),
        (0.0, 0.0, 0.0038, "0.0000 [0.0000, 0.0038]"),
        (0.7123456, None, None, "0.7123"),
        (1000.0, None, None, "1000"),
        (12.0, 12.0, 12.0, "12.00 ± 0.00"),
    ],
)
def test_digits_follow_the_interval(value: float, low: float | None, high: float | None, expected: str) -> None:
    column = Column("x", "x", "quality", True)
    assert render.cell_text(Cell("value", value, low, high), column) == expected


def test_several_protocols_are_several_tables() -> None:
    text = markdown([record("a", 1.0), record("a", 2.0, protocol_name="other-v1")])
    assert text.count("## ") == 2 and text.count("| model |") == 2


def test_nothing_is_said_to_be_nothing() -> None:
    assert markdown([]) == "No results.\n"
    assert render.to_csv(rows([])) == ""


# --- hostile names ----------------------------------------------------------------------------------------

HOSTILE = "a|b`c`<script>alert(1)</script>**best**\n| x | [l](http://e) \\| &amp; _i_"


def test_hostile_names_stay_in_their_cell() -> None:
    text = markdown([record(HOSTILE, 1.0), record("b", Score.failed(HOSTILE))])
    assert "<script>" not in text and "`c`" not in text.replace("\\`", "")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    for line in table:
        # An odd number of backslashes escapes a bar; what is left are the four of two columns.
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
    assert r"\*\*best\*\*" in text and r"\[l\](http://e)" in text and "&amp;amp;" in text and r"\_i\_" in text


def test_names_of_ours_read_as_they_are() -> None:
    assert render.escape("ddim:steps=50,eta=0 fd_efficientnet_lite0") == "ddim:steps=50,eta=0 fd_efficientnet_lite0"


def test_terminal_takes_no_markup_from_names() -> None:
    text = terminal([record("[bold red]x[/] \x1b[31m", 1.0)])
    assert "[bold red]x[/]" in text and "\x1b" not in text


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1"])
def test_no_text_in_csv_can_be_a_formula(name: str) -> None:
    assert parsed([record(name, 1.0)])[0]["model"] == "'" + re.sub(r"\s", " ", name)


def test_csv_quotes_what_needs_it_and_stays_on_one_line() -> None:
    found = [record('a,"b"\r\nc', 1.0)]
    assert parsed(found)[0]["model"] == 'a,"b"  c'
    assert len(render.to_csv(rows(found)).splitlines()) == 2


# --- CSV and terminal -------------------------------------------------------------------------------------


def test_csv_has_numbers_in_full_and_negative_ones_are_no_formulas() -> None:
    exact = -0.1234567890123456789
    (row,) = parsed([record("a", score(exact, 0.3), found_speed=speed(1 / 3))])
    assert float(row["fd_toy"]) == exact and row["fd_toy"].startswith("-0.")
    assert float(row["seconds_per_100_images"]) == 1 / 3
    assert float(row["fd_toy_stderr"]) == 0.3 / 1.96
    assert (row["fd_toy_low"], row["fd_toy_verified"], row["fd_toy_failure"]) == (
        str(exact - 0.3),
        "true",
        "",
    )


def test_csv_has_a_row_a_record_with_its_keys() -> None:
    found = parsed(RECORDS)
    assert [row["model"] for row in found] == ["ddpm", "ddgan", "mine", "real:split=test"]
    assert {row["fd_toy_score_key"] for row in found} == {"s1"}
    assert found[2]["fd_toy"] == "" and found[2]["fd_toy_failure"] == "2 rows hold NaN"
    assert (found[0]["timing_method"], found[3]["ranked"]) == ("extrapolated", "false")


def test_terminal_table_shows_what_markdown_shows() -> None:
    text = terminal(RECORDS)
    for part in (
        "toy-v1: Toy data",
        "FD (toy) ↓",
        "41.2 ± 1.0",
        "4300 [3870, 5160]†",
        "Failed (mine, FD (toy)): 2 rows hold NaN",
    ):
        assert part in text


# --- precision, LaTeX, JSON ---------------------------------------------------------------------------------


def test_precision_is_significant_digits_of_the_value() -> None:
    text = render.to_markdown(rows(RECORDS), precision=3)
    assert cells(text, "ddgan")[1:4] == ["41.2 ± 1.0", "0.420 ± 0.010", "**4.00**"]
    assert cells(render.to_markdown(rows(RECORDS), precision=2), "ddgan")[1] == "41 ± 1"


def test_notes_name_the_pareto_set_and_its_hypervolume() -> None:
    assert "Pareto set of FD (toy), recall, s / 100 images: ddpm, ddgan. Hypervolume 0.000" in markdown(RECORDS)


def test_formats_go_by_their_long_names_too(tmp_path: Path) -> None:
    paths = write_leaderboard(rows(RECORDS), tmp_path, formats=["markdown", "latex"])
    assert [path.name for path in paths] == ["leaderboard.md", "leaderboard.tex"]
    with pytest.raises(UsageError, match="did you mean 'latex'"):
        write_leaderboard(rows(RECORDS), tmp_path, formats=["latx"])
    with pytest.raises(UsageError, match="names none"):
        write_leaderboard(rows(RECORDS), tmp_path, formats=[])


def test_latex_has_booktabs_rules_and_every_row_as_many_cells() -> None:
    text = render.to_latex(rows(RECORDS))
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(RECORDS)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {6}
    assert text.count("{") == text.count("}")
    assert r"\textbf{35.0 $\pm$ 1.0}" in text and r"4300 {[}3870, 5160]$^{\dagger}$" in text
    assert r"\textit{real:split=test}" in text and r"FD (toy) $\downarrow$" in text
    assert text.isascii()


def test_latex_takes_no_command_from_names() -> None:
    hostile = r"\input{/etc/passwd} a_b%c&d$e#f~g^h"
    text = render.to_latex(rows([record(hostile, 1.0), record("b", Score.failed(hostile))]))
    assert r"\input{" not in text
    assert r"\textbackslash{}input\{/etc/passwd\} a\_b\%c\&d\$e\#f\textasciitilde{}g\textasciicircum{}h" in text


def test_json_has_numbers_in_full_and_the_pareto_set() -> None:
    (table,) = json.loads(render.to_json(rows(RECORDS)))
    assert [column["name"] for column in table["columns"]][:2] == ["fd_toy", "recall_toy"]
    (ddgan,) = [row for row in table["rows"] if row["model"] == "ddgan"]
    assert ddgan["cells"][0]["value"] == 41.23456 and ddgan["ranked"] is True
    (mine,) = [row for row in table["rows"] if row["model"] == "mine"]
    assert mine["cells"][0] == {
        "state": "failed", "value": None, "low": None, "high": None, "note": "2 rows hold NaN", "best": False,
        "extrapolated": False, "verified": True,
    }  # fmt: skip
    assert table["pareto_set"] == ["ddpm", "ddgan"]
