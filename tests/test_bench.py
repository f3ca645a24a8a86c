"""The programs under `bench` begin; what they measure is theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from trilemma_bench import registry

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import training_speed


def test_trainers_with_the_timed_recipe_are_timed_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    names = training_speed.timed_trainers()
    assert "ddpm" in names and "ebm" not in names
    with pytest.raises(SystemExit) as left:
        training_speed.main(["ebm"])
    assert left.value.code == 2 and "there are ddgan, ddpm" in capsys.readouterr().err


def test_a_trainer_that_needs_classes_can_be_timed() -> None:
    kind = registry.get("trainer", "mnist_classifier")
    recipe = kind.recipes[training_speed.RECIPE].model_copy(update={"batch": 4})
    assert training_speed.steps_of(kind.task(recipe, torch.device("cpu")), 1)() > 0
