"""Every form of a leaderboard is made from the records that ship with the checkout."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import trilemma_bench
from trilemma_bench import published
from trilemma_bench.cli import main
from trilemma_bench.gate import SUFFIX, Expectation, expected_score
from trilemma_bench.ranking import rows
from trilemma_bench.record import ResultRecord
from trilemma_bench.results import FORMATS, read_records
from trilemma_bench.sweep import curves

RESULTS = Path(__file__).resolve().parent.parent / "results"
RECORDS = read_records(RESULTS)
MODELS = {record.model for record in RECORDS}


@pytest.fixture(autouse=True)
def no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh checkout: nothing is cached."""
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_every_format_of_the_leaderboard_names_every_model(tmp_path: Path) -> None:
    assert {"ddgan", "ddpm", "ddim:steps=50", "stylegan2"} <= MODELS
    formats = ",".join(FORMATS)
    assert command("leaderboard", RESULTS, "--format", formats, "--out", tmp_path, "--with-published", "--quiet") == 0
    written = {path.suffix[1:]: path.read_text() for path in tmp_path.glob("leaderboard.*")}
    assert written.keys() == FORMATS.keys()
    assert all(model in written["md"] for model in MODELS)
    assert "not measured here" in written["md"] and "Denoising Diffusion GAN (ours), T=4" in written["md"]
    assert {row["model"] for row in csv.DictReader(io.StringIO(written["csv"]))} == MODELS
    assert {row["model"] for table in json.loads(written["json"]) for row in table["rows"]} == MODELS
    # A table for each protocol, and one of the papers' figures.
    protocols = {record.spec.protocol.name: record.spec.protocol.dataset for record in RECORDS}
    papers = [data for data in set(protocols.values()) if published.figures(data)]
    assert written["tex"].count(r"\toprule") == len(protocols) + len(papers)
    assert r"\textit{Denoising Diffusion GAN (ours), T=4} & 3.75" in written["tex"]


def test_the_board_that_ships_is_the_one_of_its_records(tmp_path: Path) -> None:
    assert command("leaderboard", RESULTS, "--out", tmp_path, "--quiet") == 0
    for name in ("leaderboard.md", "leaderboard.csv"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), f"run trilemma-bench leaderboard ({name})"


def test_the_page_holds_every_model_and_stays_small(tmp_path: Path) -> None:
    assert command("report", RESULTS, "--out", tmp_path / "report.html", "--quiet") == 0
    text = (tmp_path / "report.html").read_text()
    assert len(text.encode()) < 8_000_000
    assert text.count("<article ") == len(RECORDS)
    # The samples of ddpm ship with its baseline.
    assert "data:image/png;base64," in text


def expected_of(record: ResultRecord) -> Expectation:
    """What a gate would hold against this record, had five seeds given what one gave."""
    said = record.provenance
    return Expectation(
        model=record.model, dataset="cifar10", protocol="lite", num_samples=None, spec=record.spec,
        samples_key=record.samples_key, weights_digest=said.weights_digest, seeds=tuple(range(5)),
        samples_digests=(said.samples_digest,) * 5, nfe=record.speed.nfe if record.speed is not None else None,
        scores=tuple(expected_score([item] * 5, rounding=0) for item in record.scores),
        reference_digests=said.reference_digests, extractor_identities=said.extractor_identities,
        package_version=said.package_version,
    )  # fmt: skip


def test_the_gate_judges_them_and_writes_each_of_its_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    found = [record for record in RECORDS if record.model in ("ddgan", "stylegan2")]
    found = [record for record in found if record.spec.protocol.name == "cifar10-lite-v1"]
    assert len(found) == 2
    for record in found:
        (tmp_path / f"{record.model}{SUFFIX}").write_text(expected_of(record).dumps())
    files = ("--markdown", tmp_path / "gate.md", "--junit", tmp_path / "gate.xml", "--github")
    assert command("gate", "--expect", tmp_path, "--results", RESULTS, *files) == 0
    printed = capsys.readouterr().out
    assert "nothing moved" in printed and "::error" not in printed
    (tmp_path / "results" / "cifar10-lite-v1").mkdir(parents=True)
    for record in found:
        content = json.loads(record.dumps())
        content["scores"][0]["score"]["value"] *= 1.01
        (tmp_path / "results" / "cifar10-lite-v1" / f"{record.model}.json").write_text(json.dumps(content))
    assert command("gate", "--expect", tmp_path, "--results", tmp_path / "results", *files) == 1
    assert capsys.readouterr().out.count("::error title=trilemma-bench gate%2C metric::") == 2
    assert (tmp_path / "gate.md").read_text().startswith("### Gate: drift in metric; 2 of ")
    assert (tmp_path / "step.md").read_text().endswith((tmp_path / "gate.md").read_text())
    suites = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert {suite.get("name"): suite.get("failures") for suite in suites} == {"ddgan": "1", "stylegan2": "1"}


def test_the_table_of_ablations_is_that_of_the_records() -> None:
    rows_of_table = re.findall(
        r"^\| .*? \| `(\S+)` \| ([\d, ]+) \| ([\d.]+) \|",
        (RESULTS.parent / "docs/coverage.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows_of_table) == 8
    found = {record.model: record for record in RECORDS if record.spec.protocol.name == "gaussians25-v1"}
    for model, modes, quality in rows_of_table:
        captured, high = found[model].score("modes_captured"), found[model].score("high_quality")
        assert captured is not None and high is not None and high.value is not None
        assert [int(count) for count in modes.split(",")] == list(captured.per_seed), model
        assert f"{high.value:.2f}" == quality, model


def test_the_sweep_that_ships_is_a_curve_and_has_its_fewest_evaluations(tmp_path: Path) -> None:
    """DDGAN in 1, 2, 4 and 8 steps, as `trilemma-bench sweep --over num_timesteps=...` leaves them."""
    (table,) = [table for table in rows(RECORDS).tables if table.protocol == "gaussians25-v1"]
    found = {curve.label: [point.nfe for point in curve.points] for curve in curves(table, "high_quality")}
    assert any(nfe == [1, 2, 4, 8] for nfe in found.values()), found
    assert command("report", RESULTS, "--out", tmp_path / "report.html", "--quiet") == 0
    text = (tmp_path / "report.html").read_text()
    assert "Quality against evaluations" in text and "are the fewest within 5 % of its best" in text


def test_figures_are_drawn_from_them(tmp_path: Path) -> None:
    """Points are drawn anew where no cache has them: those of a few fast models here, all scores of images."""
    few = ("real:split=test", "ddgan", "flow", "consistency", "consistency:steps=2")
    for record in RECORDS:
        if record.spec.protocol.dataset != "gaussians25" or record.model in few:
            path = tmp_path / "results" / record.spec.protocol.name / f"{record.model.replace(':', '_')}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(record.dumps())
    assert command("plot", tmp_path / "results", "--out", tmp_path / "figures", "--width", "column", "--serif") == 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = ("cifar10-lite-v1-trilemma", "gaussians25-v1-points", "gaussians25-v1-curves")
    assert {f"{stem}.{end}" for stem in stems for end in ("png", "svg")} <= names


def test_questions_lists_and_comparisons_read_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("best", RESULTS, "--metric", "fd", "--max-seconds", "5") == 0
    assert "stylegan2" in capsys.readouterr().out
    assert command("ls", "results", "--out", RESULTS) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(RECORDS)
    # By their files: StackedMNIST has a record of each too.
    pair = [next((RESULTS / "cifar10-lite-v1").glob(f"{name}-*.json")).stem for name in ("stylegan2", "ddgan")]
    assert command("compare", *pair, "--out", RESULTS) == 0
    assert "a is better" in capsys.readouterr().out
    frame = trilemma_bench.leaderboard(str(RESULTS))
    assert set(frame["model"]) == MODELS
