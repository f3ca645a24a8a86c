"""What stands after `--models`: lists with paths, samplers of other people, weights with a broken configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sampler_cases import TINY, lively

from trilemma_bench.errors import UsageError, WeightsError
from trilemma_bench.models import (
    adopt,
    find_attribute,
    import_weights,
    of_train_seed,
    open_model,
    parse_model,
    parse_models,
)
from trilemma_bench.run import run_spec
from trilemma_bench.spec import load_protocol
from trilemma_bench.training._loop import write_weights


def test_a_path_with_an_equals_sign_is_no_option_of_the_model_before() -> None:
    found = parse_models("ddpm,ddgan@runs/lr=1e-4/w.safetensors,ddim:steps=20,eta=0.5@runs/a=b/c=d.safetensors")
    assert [str(item) for item in found] == [
        "ddpm", "ddgan@runs/lr=1e-4/w.safetensors", "ddim:steps=20,eta=0.5@runs/a=b/c=d.safetensors",
    ]  # fmt: skip


# --- samplers of other people -----------------------------------------------------------------------------


def own(**members: Any) -> Any:
    return SimpleNamespace(**{"name": "own", "image_shape": (3, 8, 8), "sample": lambda seeds: seeds, **members})


@pytest.mark.parametrize("shape", [None, "3x8x8", (3, 8.5, 8), (), (2, 8, 8), (8, 8)])
def test_a_shape_that_is_none_is_refused(shape: Any) -> None:
    with pytest.raises(UsageError, match="image_shape must be"):
        adopt(own(image_shape=shape), "mine")


@pytest.mark.parametrize("size", ["many", -5, 2.5])
def test_a_micro_batch_that_is_no_count_is_refused(size: Any) -> None:
    with pytest.raises(UsageError, match="micro_batch must be a whole number"):
        adopt(own(micro_batch=size), "mine")
    assert adopt(own(micro_batch=7), "mine").micro_batch == 7
    assert adopt(own(), "mine").micro_batch == 100


def test_a_factory_that_raises_is_named_with_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("mine")
    module.make = lambda path: own()
    monkeypatch.setitem(sys.modules, "mine", module)
    with pytest.raises(UsageError, match="mine:make: calling it failed: TypeError: .*'path'"):
        open_model(run_spec(parse_model("mine:make"), load_protocol("cifar10-lite-v1")))


def test_a_module_is_told_from_one_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the name of the one begins with that of the other."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torchlike_sampler.py").write_text("import torchlike\n")
    with pytest.raises(UsageError, match="importing torchlike_sampler failed: No module named 'torchlike'"):
        find_attribute("torchlike_sampler:make", ["ddpm"])
    (tmp_path / "leaving_sampler.py").write_text("import sys\nsys.exit(7)\n")
    with pytest.raises(UsageError, match="importing leaving_sampler failed: SystemExit: 7"):
        find_attribute("leaving_sampler:make", ["ddpm"])
    with pytest.raises(UsageError, match="no model and no module named 'absent.part'"):
        find_attribute("absent.part:make", ["ddpm"])


def test_the_only_training_seed_of_weights_of_images_is_these_weights() -> None:
    weights = lively("ddim", TINY["ddim"].config)
    assert of_train_seed(weights, 0) is weights
    with pytest.raises(UsageError, match="train_seed=1; there are the training seeds 0..0"):
        of_train_seed(weights, 1)


# --- weights with a broken configuration --------------------------------------------------------------------


@pytest.mark.parametrize(("name", "changed"), [
    ("ebm", {"levels": None}), ("ebm", {"step_size": "x"}), ("lsgm", {"betas": {"from": 1}}), ("lsgm", {"prior": "x"}),
    ("consistency", {"num_train_steps": None}), ("d3pm", {"bins": {}}), ("flow", {"scale": "x"}),
])  # fmt: skip
def test_a_broken_configuration_in_a_file_is_named(name: str, changed: dict[str, Any], tmp_path: Path) -> None:
    config = TINY[name].config
    path = tmp_path / "w.safetensors"
    kept = {key: value for key, value in {**config, **changed}.items() if value is not None}
    write_weights(path, lively(name, config).tensors or {}, config=kept)
    said = rf"{path}: its configuration is not one of {name} \("
    with pytest.raises(WeightsError, match=said):
        open_model(run_spec(parse_model(f"{name}@{path}"), load_protocol("gaussians25-v1")))
    with pytest.raises(WeightsError, match=said):
        import_weights(name, path, tmp_path / "out.safetensors")
