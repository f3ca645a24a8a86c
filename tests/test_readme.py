"""What README says can be typed is what the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from trilemma_bench.cli import app
from trilemma_bench.models import parse_models
from trilemma_bench.registry import names
from trilemma_bench.spec import protocol_names

ROOT = Path(__file__).resolve().parent.parent
README, TRAINING = ((ROOT / name).read_text() for name in ("README.md", "baselines/TRAINING.md"))


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", README + TRAINING, re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    parts = [part for line in lines for part in line.split("&&")]
    # Behind accelerate's launcher stands the same program.
    parts = [re.sub(r"accelerate launch .*\$\(which trilemma-bench\)", "trilemma-bench", part) for part in parts]
    return [shlex.split(part)[1:] for part in parts if part.strip().startswith("trilemma-bench")]


def test_readme_has_the_main_job_and_the_tests_as_commands() -> None:
    assert "pip install . && trilemma-bench run --models ddgan,ddpm --dataset cifar10" in README
    assert "pip install tox && tox" in README


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_readme_and_training_is_understood(arguments: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context("trilemma-bench", list(arguments))
    if context.params.get("models"):
        assert parse_models(context.params["models"])


@pytest.mark.parametrize("kind", ["sampler"])
def test_readme_names_every_model(kind: str) -> None:
    assert all(f"`{name}`" in README for name in names(kind))


def test_readme_explains_the_protocols_that_ship() -> None:
    for name in protocol_names():
        kind = name.split("-")[1] if name.count("-") > 1 else name
        assert f"**`{kind}`**" in README


def test_readme_shows_a_leaderboard_that_the_command_wrote() -> None:
    board = README.partition("<!-- leaderboard: begin -->")[2].partition("<!-- leaderboard: end -->")[0]
    rows = [line for line in board.splitlines() if line.startswith("|")]
    assert {"ddgan", "ddpm", "stylegan2"} <= {row.split("|")[1].strip() for row in rows}
