"""A gate over whole runs of a tiny sampler: each fault that it is there for is caught, at its stage."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from sampler_cases import TINY, TINY_UNET, lively
from small_world import make_world
from training_cases import run as train_tiny
from training_cases import tiny_task

from trilemma_bench import expectations, gate_text, models, run, speed
from trilemma_bench.cards import baselines_folder
from trilemma_bench.cli import main
from trilemma_bench.errors import StoreError, UsageError
from trilemma_bench.expectations import make_expectation, observe
from trilemma_bench.gate import Expectation, Observation, Verdict, expected_score, judge
from trilemma_bench.gate_images import compare, expected_images
from trilemma_bench.kinds import Weights
from trilemma_bench.metrics import precision_recall
from trilemma_bench.models import open_model, parse_model
from trilemma_bench.record import ResultRecord
from trilemma_bench.results import observations, read_expectations
from trilemma_bench.run import Settings, evaluate_spec, find_data, find_protocol, run_spec
from trilemma_bench.samplers import _epsilon, _helpers, ddim
from trilemma_bench.training._loop import write_weights

SEEDS = 6


class World(NamedTuple):
    folder: Path
    images: Path
    protocol: Path
    path: Path
    """Of the expectation."""

    @property
    def settings(self) -> Settings:
        return Settings(cache=self.folder / "cache")

    @property
    def options(self) -> dict[str, Any]:
        return {"dataset": str(self.images), "protocol": str(self.protocol)}


def small_load(device: str = "cpu") -> Callable[[], None]:
    """A reference load of about a millisecond."""
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))

    def work() -> None:
        x @ x

    return work


@pytest.fixture(scope="module", autouse=True)
def short_timing() -> Iterator[None]:
    """Timing takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "reference_load", small_load)
        patch.setattr(speed, "ratio_to_reference_load", partial(speed.ratio_to_reference_load, repeats=9))
        patch.setattr(expectations, "TIMED_SECONDS", 0.01)
        yield


class Blobs:
    """Images of the distribution of the data, keyed by all 64 bits of the seed."""

    name = "blobs"
    image_shape = (3, 8, 8)

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        coarse = [np.random.default_rng(int(seed)).normal(120, 40, (3, 4, 4)) for seed in seeds]
        return torch.from_numpy(np.stack(coarse).clip(0, 255).astype(np.uint8).repeat(2, 2).repeat(2, 3))


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An expectation of a sampler whose images have the distribution of the data; no score of it is degenerate."""
    folder = tmp_path_factory.mktemp("blobs")
    images, protocol = make_world(folder, count=40)
    place = World(folder, images, protocol, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "drawn", module_of(Blobs))
        options = {**place.options, "num_seeds": SEEDS, "num_images": 4}
        path = make_expectation(parse_model("drawn:make"), folder / "expected", place.settings, **options)
        yield place._replace(path=path)


def module_of(factory: Any) -> Any:
    module: Any = ModuleType("drawn")
    module.make = factory
    return module


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An expectation of DDIM in 4 steps on a tiny network."""
    folder = tmp_path_factory.mktemp("gate")
    images, protocol = make_world(folder, count=40)
    weights = folder / "weights.safetensors"
    config = {**TINY["ddim"].config, "num_train_steps": 200}
    found = lively("ddim", config)
    assert found.tensors is not None
    write_weights(weights, found.tensors, config=config)
    place = World(folder, images, protocol, folder)
    options = {**place.options, "num_seeds": SEEDS, "num_images": 6}
    path = make_expectation(parse_model(f"ddim:steps=4@{weights}"), folder / "expected", place.settings, **options)
    return place._replace(path=path)


def gate(world: World, path: Path | None = None) -> Verdict:
    expected = Expectation.read(path or world.path)
    return judge([(expected, observe(expected, path or world.path, world.settings))])


def states(verdict: Verdict) -> dict[str, tuple[str, str]]:
    return {check.what: (check.stage, check.state) for check in verdict.checks}


def without_speed(world: World, tmp_path: Path) -> World:
    """The same expectation for tests where what else the machine does must not matter."""
    expected = Expectation.read(world.path).model_copy(update={"speed": None})
    assert expected.images is not None
    (tmp_path / expected.images.file).write_bytes((world.path.parent / expected.images.file).read_bytes())
    path = tmp_path / world.path.name
    path.write_text(expected.dumps())
    return world._replace(path=path)


# --- nothing moved ----------------------------------------------------------------------------------------


def test_an_expectation_holds_scores_images_and_speed_of_all_its_seeds(world: World) -> None:
    expected = Expectation.read(world.path)
    assert expected.seeds == tuple(range(SEEDS)) and len(set(expected.samples_digests)) == SEEDS
    assert {score.kind.name for score in expected.scores} == {
        "fd_identity", "kd_identity", "precision_identity", "recall_identity",
    }  # fmt: skip
    assert all(len(score.values) == SEEDS and score.min_effect > 0 for score in expected.scores)
    assert expected.nfe == 4
    assert expected.images is not None and len(expected.images.seeds) == 6
    assert expected.speed is not None and len(expected.speed.ratios) == SEEDS and min(expected.speed.ratios) > 0


def test_the_same_program_passes_its_own_gate(world: World, tmp_path: Path) -> None:
    verdict = gate(without_speed(world, tmp_path))
    assert verdict.exit_code == 0, verdict
    assert {state for _, state in states(verdict).values()} == {"ok"}


def test_a_cache_does_not_hide_a_change(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key lies in the user's cache with finished samples; the gate draws anew all the same."""
    world = without_speed(world, tmp_path)
    expected = Expectation.read(world.path)
    data = find_data(world.options["dataset"], world.settings)
    evaluate_spec(expected.spec, data, Settings(cache=world.folder / "cache", timed=False))
    monkeypatch.setattr(_helpers, "to_uint8", truncated)
    assert gate(world).exit_code == 1


def test_two_hundred_gates_of_real_runs_without_drift_raise_at_most_four_alarms(blobs: World, tmp_path: Path) -> None:
    """Runs of the whole pipeline; for each gate ten of them make an expectation and another is held against it."""
    made = Expectation.read(blobs.path)
    settings = Settings(cache=tmp_path, timed=False)
    (tmp_path / "references").symlink_to(blobs.folder / "cache" / "references")
    data = find_data(blobs.options["dataset"], settings)
    specs = [made.spec.model_copy(update={"seed": seed}) for seed in range(50)]
    records = [evaluate_spec(spec, data, settings) for spec in specs]
    assert len({record.provenance.samples_digest for record in records}) == 50
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        chosen = [records[int(row)] for row in rng.permutation(50)[:11]]
        scores = [
            expected_score([record.scores[place] for record in chosen[:10]], rounding=0)
            for place in range(len(made.scores))
        ]
        wanted = made.model_copy(
            update={"scores": tuple(scores), "seeds": tuple(range(1000, 1010)), "samples_digests": ("",) * 10}
        )
        verdict = judge([(wanted, Observation(records=(chosen[10],)))])
        assert sum(check.p is not None for check in verdict.checks) == len(scores)
        alarms += verdict.exit_code != 0
    assert alarms <= 4


# --- the faults -------------------------------------------------------------------------------------------


def truncated(x: torch.Tensor) -> torch.Tensor:
    return ((x + 1) * 127.5).clamp(0, 255).byte()


def test_weights_perturbed_by_one_per_cent_are_a_drift_of_the_samples(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(0)

    def perturbed(net: Any, weights: Weights, *rest: Any) -> Any:
        assert weights.tensors is not None
        noisy = {k: v * (1 + 0.01 * torch.randn(v.shape, generator=rng)) for k, v in weights.tensors.items()}
        return _helpers.built(net, Weights(weights.config, noisy, weights.digest, weights.source), *rest)

    monkeypatch.setattr(_epsilon, "built", perturbed)
    verdict = gate(without_speed(world, tmp_path))
    assert verdict.exit_code == 1 and verdict.stages == ("samples",)


def test_one_ddim_step_off_is_a_drift_of_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """49 steps for 50, which scores do not see; gated by images alone, as slow samplers are."""
    images, protocol = make_world(tmp_path)
    config = {**TINY["ddim"].config, "num_train_steps": 200}
    tensors = lively("ddim", config).tensors
    assert tensors is not None
    write_weights(tmp_path / "w.safetensors", tensors, config=config)
    world = World(tmp_path, images, protocol, tmp_path)
    model = parse_model(f"ddim:steps=50@{tmp_path / 'w.safetensors'}")
    path = make_expectation(model, tmp_path, world.settings, **world.options, num_images=6, images_only=True)
    assert gate(world, path).exit_code == 0
    monkeypatch.setattr(ddim, "ddim_pairs", lambda chain, steps, spacing: ddim_pairs(chain, steps - 1, spacing))
    assert states(gate(world, path))["images"] == ("samples", "drift")


def ddim_pairs(*arguments: Any) -> Any:
    from trilemma_bench.diffusion import ddim_pairs as found

    return found(*arguments)


def test_one_step_off_is_seen_by_the_count_of_evaluations_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ddim, "ddim_pairs", lambda chain, steps, spacing: ddim_pairs(chain, steps - 1, spacing))
    found = states(gate(without_speed(world, tmp_path)))
    assert found["NFE"] == ("samples", "drift") and found["images"] == ("samples", "drift")


def test_a_forgotten_ema_is_a_drift_of_the_samples(tmp_path: Path) -> None:
    """Weights from one training: the averaged ones make the expectation, the last ones the run."""
    images, protocol = make_world(tmp_path)
    world = World(tmp_path, images, protocol, tmp_path)
    task = tiny_task("ddpm", unet={**TINY_UNET, "dropout": 0.0}, steps=12)
    train_tiny(task, tmp_path / "run")
    averaged = {key: value.clone() for key, value in task.product.state_dict().items()}
    for name, average in task.averages.items():
        average.load_state_dict(task.networks[name].state_dict())
    path = tmp_path / "w.safetensors"
    write_weights(path, averaged, config=task.config)
    model = parse_model(f"ddim:steps=5@{path}")
    made = make_expectation(model, tmp_path, world.settings, **world.options, num_images=6, images_only=True)
    assert gate(world, made).exit_code == 0
    write_weights(path, task.product.state_dict(), config=task.config)
    assert states(gate(world, made))["images"] == ("samples", "drift")


def test_truncation_for_rounding_is_a_drift_of_the_samples(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_helpers, "to_uint8", truncated)
    verdict = gate(without_speed(world, tmp_path))
    assert verdict.stages == ("samples",) and states(verdict)["images"] == ("samples", "drift")


def test_the_test_sets_features_for_the_references_are_a_drift_of_the_features(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Swapped(run.Data):
        def open(self, split: str) -> Any:
            return super().open({"train": "test", "test": "train"}[split])

    def swapped(protocol: Any, data: run.Data, extractor: Any, settings: Settings) -> Any:
        data = Swapped(data.dataset, data.root)
        return run.make_reference(protocol, data, extractor, settings, tmp_path / "swapped.npz")

    monkeypatch.setattr(run, "find_reference", swapped)
    verdict = gate(without_speed(world, tmp_path))
    assert verdict.exit_code == 1 and verdict.stages == ("features",)


def test_another_k_in_the_protocol_is_a_drift_of_the_metric(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = world.protocol.read_text()
    world.protocol.write_text(text.replace('"precision_recall"\n', '"precision_recall"\nparams = { k = 5 }\n'))
    try:
        verdict = gate(without_speed(world, tmp_path))
    finally:
        world.protocol.write_text(text)
    assert verdict.stages == ("metric",)
    assert {what for what, found in states(verdict).items() if found[1] == "drift"} == {
        "precision_identity", "recall_identity",
    }  # fmt: skip


def test_another_k_in_the_program_is_a_drift_of_the_metric(
    blobs: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key tells of it: the number on the same images does."""
    right = precision_recall.METRIC
    wrong = replace(right, compute=lambda **given: right.compute(**{**given, "k": 5}))
    monkeypatch.setattr(precision_recall, "METRIC", wrong)
    verdict = gate(without_speed(blobs, tmp_path))
    assert verdict.stages == ("metric",)
    assert {what for what, found in states(verdict).items() if found[1] == "drift"} == {"recall_identity"}


class Paced:
    """A sampler that takes the time of one reference load for two images, times `slower`.

    Sampling and load share what else the machine does, as real ones do; a tiny network would be timed on its calls.
    """

    name = "paced"
    image_shape = (3, 8, 8)
    identity = "paced"
    slower = 1.0

    def __init__(self) -> None:
        self._load = speed.reference_load()

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        for _ in range(max(1, round(len(seeds) / 2 * Paced.slower))):
            self._load()
        return Blobs().sample(seeds)


class Forgetful(Blobs):
    name = "forgetful"

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        rngs = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        return torch.stack([torch.randint(0, 256, (3, 8, 8), generator=rng) for rng in rngs]).byte()


def test_sampling_one_and_a_half_times_slower_is_a_drift_of_the_speed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "paced", module_of(Paced))
    monkeypatch.setattr(expectations, "timed_count", lambda model, most: 20)
    for attempt in ("first", "second", "third"):
        monkeypatch.setattr(Paced, "slower", 1.0)
        path = make_expectation(
            parse_model("paced:make"),
            tmp_path / attempt,
            world.settings,
            **world.options,
            num_seeds=SEEDS,
            num_images=4,
        )
        assert gate(world, path).exit_code == 0
        monkeypatch.setattr(Paced, "slower", 1.5)
        verdict = gate(world, path)
        # Made while others took the machine, the expected times may lie too far apart to judge by, which it says.
        if ("speed", "not judged") not in states(verdict).values():
            break
    assert verdict.exit_code == 1 and verdict.stages == ("speed",)


def test_points_are_held_for_each_network_that_was_trained_alike(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped DDGAN of 25 Gaussians is five networks; 1 % on the weights of the fourth is seen."""
    options = {"dataset": "gaussians25", "protocol": "lite", "num_samples": 200, "num_images": 8, "images_only": True}
    path = make_expectation(parse_model("ddgan"), tmp_path, world.settings, **options)
    expected = Expectation.read(path)
    assert expected.images is not None and expected.images.seeds == tuple(range(8)) * 5
    points = expected_images(expected, path)
    assert points.shape == (40, 2) and len(np.unique(points, axis=0)) == 40
    assert states(gate(world, path))["images"] == ("samples", "ok")
    right = models.of_train_seed
    rng = torch.Generator().manual_seed(0)

    def wrong(weights: Weights, index: int) -> Weights:
        found = right(weights, index)
        assert found.tensors is not None
        if index != 3:
            return found
        noisy = {k: v * (1 + 0.01 * torch.randn(v.shape, generator=rng)) for k, v in found.tensors.items()}
        return Weights(found.config, noisy, found.digest, found.source)

    monkeypatch.setattr(models, "of_train_seed", wrong)
    verdict = gate(world, path)
    assert states(verdict)["images"] == ("samples", "drift") and "40 points" in verdict.checks[0].message


def test_kept_points_are_held_against_their_expectation(world: World, tmp_path: Path) -> None:
    options = {"dataset": "gaussians25", "protocol": "lite", "num_samples": 100, "num_images": 8, "images_only": True}
    path = make_expectation(parse_model("exact:ddim:steps=4"), tmp_path, world.settings, **options)
    expected = Expectation.read(path)
    record = evaluate_spec(expected.spec, find_data("gaussians25", Settings()), Settings(cache=tmp_path, timed=False))
    ((_, observed),) = observations([(path, expected)], [record], tmp_path)
    assert observed.images is not None and observed.images.count == 8 and observed.images.largest == 0


def test_other_micro_batches_are_those_of_every_network_that_was_trained_alike(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    right = run._draw

    def noted(model: Any, *rest: Any) -> Any:
        drawn.append(model.micro_batch)
        return right(model, *rest)

    monkeypatch.setattr(run, "_draw", noted)
    monkeypatch.setattr(speed, "ratio_to_reference_load", lambda *_: 1.0)
    options = {"dataset": "gaussians25", "protocol": "lite", "num_samples": 200, "num_images": 2, "num_seeds": 5}
    make_expectation(parse_model("ddgan"), tmp_path, world.settings, **options)
    assert drawn == [1000] * 5 * 5 + [500] * 5


class Restless(Blobs):
    """Its network is called more often for some seeds than for others, as by a solver that chooses its steps."""

    name = "restless"

    def __init__(self) -> None:
        self.networks = {"net": torch.nn.Identity()}

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        for seed in seeds:
            for _ in range(1 + int(seed >> 32) % 3):
                self.networks["net"](seed[None])
        return super().sample(seeds)


def test_evaluations_that_depend_on_the_seed_are_not_expected(
    blobs: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "drawn", module_of(Restless))
    options = {**blobs.options, "num_seeds": SEEDS, "num_images": 2}
    expected = Expectation.read(make_expectation(parse_model("drawn:make"), tmp_path, blobs.settings, **options))
    assert expected.nfe is None


def test_the_speed_of_other_instructions_is_not_judged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a virtual machine gives another processor the same name."""
    assert torch.backends.cpu.get_cpu_capability() in Expectation.read(world.path).model_dump_json()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
    (check,) = [check for check in gate(world).checks if check.stage == "speed"]
    assert check.state == "not judged" and "another machine" in check.message


# --- what cannot be judged --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 0.5, float("nan"), float("inf")])
def test_a_speed_factor_that_is_none_is_refused_before_anything_is_measured(
    factor: float, world: World, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--speed-factor"):
        make_expectation(parse_model("none:such"), tmp_path, world.settings, min_speed_factor=factor)


def test_models_with_long_paths_have_expectations_with_names_of_their_own() -> None:
    long = [expectations._stem(f"ddim@{'folder/' * 60}{name}.safetensors", "toy-v1") for name in "ab"]
    assert len(set(long)) == 2 and max(map(len, long)) < 200
    assert expectations._stem("ddim:steps=10", "toy-v1") == "ddim_steps=10.toy-v1"


def test_points_that_are_no_numbers_are_not_where_they_were() -> None:
    points = np.zeros((3, 2))
    broken = np.array([[0, 0], [np.nan, 0], [0, np.inf]])
    found = compare(broken, points, np.arange(3))
    assert found.largest == np.inf and found.differing == pytest.approx(2 / 6) and found.worst_seed in (1, 2)


def test_a_sampler_that_depends_on_its_companions_gets_no_expectation(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.folder)
    monkeypatch.syspath_prepend(str(world.folder))
    with pytest.raises(UsageError, match="depend on their seed alone"):
        make_expectation(parse_model("blobs:Unsteady"), tmp_path, world.settings, **world.options, images_only=True)


class LastBits(Blobs):
    """One value in 192 is a level off where an image is drawn alone, as a network's rounding may make it."""

    tolerance: Any = (1, 0.01)

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        images = super().sample(seeds)
        images[:, 0, 0, 0] = images[:, 0, 0, 0].clamp(0, 254) + (len(seeds) == 1)
        return images


@pytest.mark.parametrize(("tolerance", "problem"), [
    ((1, 0.01), None), ((0, 0.0), "give the sampler a `tolerance`"), ((1, 0.001), "give the sampler a `tolerance`"),
    ("much", "such as"), ((1, 2), "such as"), ((float("nan"), 0.5), "such as"),
])  # fmt: skip
def test_a_sampler_may_say_how_far_its_last_bits_move(
    tolerance: Any, problem: str | None, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "drawn", module_of(LastBits))
    monkeypatch.setattr(LastBits, "tolerance", tolerance)
    make = partial(make_expectation, parse_model("drawn:make"), tmp_path, world.settings, **world.options)
    if problem is not None:
        with pytest.raises(UsageError, match=problem):
            make(images_only=True)
        return
    expected = Expectation.read(make(images_only=True))
    assert expected.images is not None and expected.images.tolerance == tolerance


def test_a_sampler_that_forgets_half_of_the_seed_gets_no_expectation(world: World, tmp_path: Path) -> None:
    """torch's generator on the CPU takes the low 32 bits: every run has the images of run 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "drawn", module_of(Forgetful))
        with pytest.raises(UsageError, match="all 64 bits"):
            make_expectation(parse_model("drawn:make"), tmp_path, world.settings, **world.options, num_seeds=SEEDS)


def test_too_few_seeds_are_refused_before_anything_runs(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 5"):
        make_expectation(parse_model("ddim"), tmp_path, world.settings, **world.options, num_seeds=4)


def test_altered_images_are_no_expectation(world: World, tmp_path: Path) -> None:
    world = without_speed(world, tmp_path)
    (npz,) = tmp_path.glob("*.npz")
    with np.load(npz) as content:
        arrays = dict(content)
    first = next(iter(arrays))
    np.savez_compressed(npz, **{**arrays, first: arrays[first] ^ np.uint8(1)})
    (check,) = gate(world).checks
    assert check.state == "unusable" and "not the images" in check.message
    npz.unlink()
    assert gate(world).exit_code == 2


def test_a_model_that_raises_is_unusable_and_says_why(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ddim, "ddim_pairs", lambda *_: 1 / 0)
    (check,) = gate(without_speed(world, tmp_path)).checks
    assert check.state == "unusable" and "ZeroDivisionError" in check.message


def test_shipped_expectations_are_whole_and_of_the_weights_that_ship() -> None:
    shipped = read_expectations(baselines_folder())
    scored = {(each.model, each.dataset) for _, each in shipped if each.scores and each.speed is not None}
    assert {("stylegan2", "cifar10"), ("ddgan", "gaussians25")} <= scored
    assert {"ddim:steps=10"} <= {each.model for _, each in shipped}
    assert sum(path.stat().st_size for path in (baselines_folder() / "expected").iterdir()) < 3_000_000
    for path, expected in shipped:
        assert expected.images is not None
        assert len(expected_images(expected, path)) == len(expected.images.seeds)
        again = f"{path}: make it again with tox -e expect"
        assert open_model(expected.spec).samples_key == expected.samples_key, again


# --- the command ------------------------------------------------------------------------------------------


def command(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_gate_command_writes_a_summary_junit_and_annotations(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRILEMMA_CACHE", str(world.folder / "cache"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    (tmp_path / "expected").mkdir()
    world = without_speed(world, tmp_path / "expected")
    files = ["--markdown", tmp_path / "gate.md", "--junit", tmp_path / "gate.xml", "--out", tmp_path / "out"]
    arguments = ["gate", "--expect", tmp_path, "--quiet", *files]
    assert command(*arguments) == 0
    assert "nothing moved" in capsys.readouterr().out and not (tmp_path / "step.md").exists()
    monkeypatch.setattr(_helpers, "to_uint8", truncated)
    assert command(*arguments, "--github") == 1
    printed = capsys.readouterr().out
    assert "::error title=" in printed and "Gate: drift in samples" in printed
    assert (tmp_path / "step.md").read_text() == (tmp_path / "gate.md").read_text()
    assert ElementTree.parse(tmp_path / "gate.xml").getroot().find("testsuite") is not None
    assert len(list((tmp_path / "out").glob("*/*.json"))) == 1


def test_gate_command_judges_records_that_exist(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = without_speed(world, tmp_path)
    expected = Expectation.read(world.path)
    data = find_data(world.options["dataset"], world.settings)
    protocol = find_protocol(world.options["protocol"], data)
    spec = run_spec(expected.spec.sampler, protocol, seed=3)
    record = evaluate_spec(spec, data, Settings(cache=world.folder / "cache", out=tmp_path / "results", timed=False))
    arguments = ["gate", "--expect", world.path.parent, "--results", tmp_path / "results"]
    assert command(*arguments) == 0
    assert "nothing moved" in capsys.readouterr().out
    path = next((tmp_path / "results").glob("*/*.json"))
    content = json.loads(path.read_text())
    content["scores"][0]["score"]["value"] *= 1.05
    path.write_text(json.dumps(content))
    assert ResultRecord.read(path).name == record.name
    assert command(*arguments) == 1
    assert "drift in metric" in capsys.readouterr().out
    path.unlink()
    assert command(*arguments) == 2


def test_records_are_held_by_their_kept_samples_where_there_are_some(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = without_speed(world, tmp_path)
    expected = Expectation.read(world.path)
    data = find_data(world.options["dataset"], world.settings)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "references").symlink_to(world.folder / "cache" / "references")

    def judged(cache: Path) -> Verdict:
        record = evaluate_spec(expected.spec, data, Settings(cache=cache, timed=False))
        images_only = expected.model_copy(update={"model": "slow", "scores": (), "seeds": (), "samples_digests": ()})
        found = [(world.path, expected), (world.path, images_only)]
        return judge(observations(found, [record], cache))

    verdict = judged(tmp_path / "cache")
    assert verdict.exit_code == 0
    # No record is of the model `slow`, whose images nobody can see: said, and no reason to fail the others.
    assert [check.state for check in verdict.checks if check.what == "images"] == ["ok", "not judged"]
    assert "could not be judged here" in gate_text.headline(verdict)
    (alone,) = judge(
        observations([(world.path, expected.model_copy(update={"scores": (), "seeds": (), "samples_digests": ()}))], [],
                     tmp_path)
    ).checks  # fmt: skip
    assert alone.state == "not judged" and Verdict((alone,)).exit_code == 2
    monkeypatch.setattr(_helpers, "to_uint8", truncated)
    other = tmp_path / "other"
    other.mkdir()
    (other / "references").symlink_to(world.folder / "cache" / "references")
    verdict = judged(other)
    assert verdict.exit_code == 1 and states(verdict)["NFE"] == ("samples", "ok")
    assert [check.state for check in verdict.checks if check.what == "images"] == ["drift", "not judged"]


def test_gate_command_without_expectations_is_unusable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("gate", "--expect", tmp_path) == 2
    assert "expect make" in capsys.readouterr().err
    with pytest.raises(StoreError, match="no such folder"):
        read_expectations(tmp_path / "none")


def test_expect_command_writes_a_file_and_its_images(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILEMMA_CACHE", str(world.folder / "cache"))
    options = ["--dataset", world.images, "--protocol", world.protocol, "--images", "3", "--images-only", "--quiet"]
    sampler = f"ddim:steps=3@{world.folder / 'weights.safetensors'}"
    assert command("expect", "make", "--models", sampler, "--out", tmp_path / "new", *options) == 0
    assert len(os.listdir(tmp_path / "new")) == 2
    assert command("gate", "--expect", tmp_path / "new", "--quiet") == 0
