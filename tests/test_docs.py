"""What the site says can be typed is what the command line takes; its examples and its notebook run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from trilemma_bench import kinds, registry
from trilemma_bench.cli import app, main
from trilemma_bench.errors import UsageError
from trilemma_bench.models import parse_models
from trilemma_bench.results import read_records
from trilemma_bench.spec import Protocol, _parse_protocol, protocol_names
from trilemma_bench.training import train_model

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    found = []
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
        lines += re.findall(r"`(trilemma-bench [^`\n]+)`", page.read_text())
        for line in lines:
            line = line.replace("accelerate launch --multi_gpu $(which trilemma-bench)", "trilemma-bench")
            if line.startswith("trilemma-bench "):
                found.append(shlex.split(line, comments=True)[1:])
    return found


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_the_site_is_understood(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if not arguments:
        return  # a command that is spoken of
    context = command.make_context("trilemma-bench", list(arguments), resilient_parsing="--" not in " ".join(arguments))
    if context.params.get("models"):
        assert parse_models(context.params["models"])


def test_every_page_is_in_the_navigation_and_every_protocol_is_explained() -> None:
    config = (DOCS.parent / "mkdocs.yml").read_text()
    assert all(f": {page.name}\n" in config for page in PAGES)
    text = (DOCS / "protocols.md").read_text()
    assert all(f"`{name}`" in text for name in protocol_names())


def test_the_protocol_of_the_site_is_one() -> None:
    (whole, *_) = [block for block in blocks(DOCS / "protocols.md", "toml") if "name =" in block]
    assert isinstance(_parse_protocol(whole, source="docs"), Protocol)


def test_the_metric_of_the_site_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = [block for block in blocks(DOCS / "metric.md", "python") if "METRIC =" in block]
    found: dict[str, Any] = {}
    exec(compile(source, "docs/metric.md", "exec"), found)
    metric = found["METRIC"]
    assert isinstance(metric, kinds.Metric)
    (kind,) = metric.kinds(registry.get("extractor", "identity"))
    rng = np.random.default_rng(0)

    class Real:
        moments = kinds.Moments(100, np.zeros(5), np.eye(5))
        about = {"extractor": "identity"}

    features = rng.normal(size=(400, 5)) + np.array([3, 0, 0, 0, 0])
    score = metric.compute(real=Real, generated={"features": features}, rng=rng)
    assert score[kind.name].value == pytest.approx(3, abs=0.2)
    assert score[kind.name].stderr == pytest.approx(1 / 20, rel=0.2)


def test_the_model_of_the_site_draws_from_all_bits_of_its_seed() -> None:
    import torch

    (source,) = [block for block in blocks(DOCS / "model.md", "python") if "class Mine" in block]
    found: dict[str, Any] = {}
    exec(compile(source, "docs/model.md", "exec"), found)
    images = found["make"]().sample(torch.tensor([3, 2**32 + 3]))
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 32, 32)
    assert not torch.equal(images[0], images[1])


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = json.loads((DOCS / "notebook.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in content["cells"])
    names: dict[str, Any] = {}
    for number, cell in enumerate(content["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"notebook, cell {number}", "exec"), names)
    assert (names["folder"] / "report.html").is_file()


def test_the_trainer_of_the_site_trains_through_the_usual_command_and_its_sampler_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer, sampler = [block for block in blocks(DOCS / "training.md", "python") if "mlp" in block]
    assert len([line for line in trainer.splitlines() if line.strip()]) <= 30
    (tmp_path / "mine.py").write_text(trainer + sampler)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    data = "--dataset gaussians25"
    for command in (
        f"train mine:TRAINER {data} --recipe small --kimg 100 --out runs/mine --quiet",
        f"run --models mine:Sampler {data} --num-samples 100 --quiet",
    ):
        with pytest.raises(SystemExit) as left:
            main(command.split())
        assert left.value.code == 0
    (record,) = read_records(tmp_path / "results")
    score = record.score("modes_captured")
    assert score is not None and score.value is not None and 0 <= score.value <= 25
    assert record.speed is not None and record.speed.nfe == 20
    with np.load(next((tmp_path / "cache" / "samples").rglob("*.npz"))) as shard:
        assert np.abs(shard["data_images"]).max() > 2  # in the units of the data


def test_a_trainer_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "no_trainer.py").write_text("TRAINER = 5")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, message in (
        ("no_trainer:TRAINER", "is int; a kinds.TrainerKind is needed"),
        ("nowhere:T", "There are .*ddgan, ddpm"),
    ):
        with pytest.raises(UsageError, match=message):
            train_model(name, dataset="gaussians25", out=tmp_path / "run")
