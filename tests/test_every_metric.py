"""What holds for every metric in the folder; a new file joins by itself."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from metric_cases import extractor, features, layers, reference

import trilemma_bench.metrics
from trilemma_bench import registry
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Reference
from trilemma_bench.record import Score, ScoreKind

FOLDER = Path(inspect.getfile(trilemma_bench.metrics)).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
SMALL = {"subset_size": 60, "subsets": 40, "grid": "-1 1", "sigma": 4.0}
"""Parameters that fit the small samples of these tests, where a metric has them."""

REAL = reference()


def metric(name: str) -> Metric:
    found: Metric = registry.get("metric", name)
    return found


def score(name: str, generated: Mapping[str, Array], *, real: Reference = REAL, seed: int = 0) -> dict[str, Score]:
    found = metric(name)
    params = {**found.defaults, **{key: value for key, value in SMALL.items() if key in found.defaults}}
    return found.compute(real=real, generated=generated, rng=np.random.default_rng(seed), **params)


def each_score() -> list[tuple[str, ScoreKind]]:
    """Every score that has a direction."""
    found = [(name, kind) for name in NAMES for kind in metric(name).kinds(extractor())]
    return [(name, kind) for name, kind in found if kind.higher_is_better is not None]


def damaged(kind: ScoreKind, count: int) -> dict[str, Array]:
    """Noise for what measures quality; copies of four training images for what measures coverage."""
    if kind.axis == "coverage":
        return layers(np.tile(REAL.features[:4], (count // 4, 1)))
    noisy = features(count, seed=5) + np.random.default_rng(6).normal(size=(count, 16)).astype(np.float32) * 4
    # A classifier is unsure of noise.
    return {"features": noisy, "logits": layers(noisy)["logits"] * np.float32(0.02)}


# --- the contract -----------------------------------------------------------------------------------------


def test_the_folder_is_the_list() -> None:
    assert [name for name in registry.names("metric") if name in NAMES] == NAMES
    assert len(NAMES) >= 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_inception", [False, True])
def test_compute_gives_the_scores_that_kinds_lists(name: str, is_inception: bool) -> None:
    real = reference(is_inception=is_inception)
    listed = [kind.name for kind in metric(name).kinds(extractor(is_inception=is_inception))]
    assert list(score(name, layers(features(200, seed=1)), real=real)) == listed


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_needs_only_the_layers_it_names(name: str) -> None:
    generated = layers(features(200, seed=1))
    named = {layer: generated[layer] for layer in metric(name).layers}
    assert score(name, named) == score(name, generated)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_the_defaults_of_compute(name: str) -> None:
    found = metric(name)
    signature = inspect.signature(found.compute).parameters.values()
    named = {item.name: item.default for item in signature if item.default is not inspect.Parameter.empty}
    assert named == dict(found.defaults)
    assert all(item.kind is inspect.Parameter.KEYWORD_ONLY for item in signature)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_imports_neither_torch_nor_another_metric(name: str) -> None:
    imported: list[str] = []
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
    assert not [module for module in imported if module.split(".")[0] in ("torch", "torchvision", "torch_fidelity")]
    siblings = [module for module in imported if module.startswith("trilemma_bench.metrics.")]
    assert all(module.startswith("trilemma_bench.metrics._") for module in siblings)


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scores_have_an_interval_that_holds_them_and_say_how_it_was_got(name: str) -> None:
    for found in score(name, layers(features(211, seed=2))).values():
        assert found.value is not None and found.stderr is not None and found.interval is not None
        assert found.interval[0] <= found.value <= found.interval[1]
        assert found.stderr >= 0 and found.n == 211
        assert found.uncertainty


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_gives_the_same_bytes(name: str) -> None:
    generated = layers(features(200, seed=3))
    first, second = ([found.model_dump_json() for found in score(name, generated, seed=7).values()] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_are(name: str) -> None:
    generated = layers(features(200, seed=3))
    before = {layer: array.copy() for layer, array in generated.items()}
    kept = {field: getattr(REAL, field).copy() for field in ("features", "train_sketch", "held_out_sketch")}
    score(name, generated)
    assert all(np.array_equal(generated[layer], before[layer]) for layer in before)
    assert all(np.array_equal(getattr(REAL, field), kept[field]) for field in kept)


@pytest.mark.parametrize(
    "name",
    # These draw splits and subsets by position: another order is another draw.
    [name for name in NAMES if name not in ("inception_score", "kernel_distance", "wasserstein")],
)
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    sample, rng = features(230, seed=4), np.random.default_rng(0)
    plain = score(name, layers(sample))
    shuffled = replace(REAL, features=rng.permutation(REAL.features), train_sketch=rng.permutation(REAL.train_sketch))
    moved = score(name, layers(rng.permutation(sample)), real=shuffled)
    for key, found in plain.items():
        assert moved[key].value == pytest.approx(found.value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_wider_floats_give_the_same_scores(name: str) -> None:
    single = layers(features(200, seed=8))
    double = {layer: array.astype(np.float64) for layer, array in single.items()}
    wide = score(name, double)
    for key, found in score(name, single).items():
        assert wide[key].value == pytest.approx(found.value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("name", "kind"), each_score(), ids=lambda item: getattr(item, "name", None))
def test_damage_makes_every_metric_worse(name: str, kind: ScoreKind) -> None:
    good = score(name, layers(features(240, seed=5)))[kind.name]
    bad = score(name, damaged(kind, 240))[kind.name]
    assert good.value is not None and bad.value is not None
    assert kind.higher_is_better is not None
    worse = bad.value < good.value if kind.higher_is_better else bad.value > good.value
    assert worse
    assert good.interval is not None
    assert not good.interval[0] <= bad.value <= good.interval[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [12, 200])
def test_a_generator_that_makes_one_image_is_scored(name: str, count: int) -> None:
    """The covariance is nothing, every neighbour is at distance 0, every logit is the same."""
    params = {key: value for key, value in {**SMALL, "subset_size": 6}.items() if key in metric(name).defaults}
    generated = layers(np.repeat(features(1, seed=12), count, axis=0))
    found = metric(name).compute(real=REAL, generated=generated, rng=np.random.default_rng(0), **params)
    for each in found.values():
        if name == "frechet_distance_infinity" and count == 12:
            assert each.failure is not None and "needs 64 images on 16 features; got 12" in each.failure
            continue
        assert each.value is not None and each.interval is not None
        assert each.interval[0] <= each.value <= each.interval[1]


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(name: str, broken: float) -> None:
    generated = layers(features(200, seed=9))
    for array in generated.values():
        array[17, 3] = broken
    with pytest.raises(ProtocolError, match="1 of 200 rows hold NaN or Inf, the first is row 17"):
        score(name, generated)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 16), (200,), (200, 4, 4), ()])
def test_wrong_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype=np.float32)
    with pytest.raises(ProtocolError):
        score(name, {"features": array, "logits": array})


@pytest.mark.parametrize("name", [name for name in NAMES if metric(name).layers == ("features",)])
def test_features_of_another_width_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="16 columns and generated ones 12"):
        score(name, {"features": features(200, seed=10)[:, :12]})


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_without_its_extractors_name_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="does not name its extractor"):
        score(name, layers(features(200, seed=11)), real=replace(REAL, about={}))
