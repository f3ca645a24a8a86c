from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trilemma_bench import reference as ref
from trilemma_bench import registry
from trilemma_bench.errors import ProtocolError, StoreError
from trilemma_bench.features.identity import Identity
from trilemma_bench.images import ArrayImages, image_digests, open_images
from trilemma_bench.kinds import Array, ImageSet, Reference, UInt8Images
from trilemma_bench.reference import load_reference, make_reference, reference_from_features, save_reference
from trilemma_bench.spec import ReferenceSpec, load_protocol

RNG = np.random.default_rng(0)
TRAIN: UInt8Images = RNG.integers(0, 256, (60, 1, 4, 4), np.uint8)
TEST: UInt8Images = RNG.integers(0, 256, (25, 1, 4, 4), np.uint8)
SPEC = ReferenceSpec(num_features=20, sketch_dim=5)


def make(train: UInt8Images = TRAIN, test: UInt8Images | None = TEST, spec: ReferenceSpec = SPEC) -> Reference:
    held_out = None if test is None else ArrayImages(test, "mine:test")
    return make_reference(ArrayImages(train, "mine:train"), held_out, Identity(), spec)


def rows(array: Array) -> set[bytes]:
    return {row.tobytes() for row in array}


def half(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float32)


# --- what is kept -----------------------------------------------------------------------------------------


def test_moments_are_those_of_the_whole_split_over_n_minus_1() -> None:
    moments = make().moments
    pixels = TRAIN.reshape(60, 16).astype(np.float32) / np.float32(255)
    assert moments.n == 60
    assert np.allclose(moments.mean, pixels.mean(0, dtype=np.float64), rtol=1e-14)
    assert np.allclose(moments.cov, np.cov(pixels.astype(np.float64), rowvar=False, ddof=1), rtol=1e-12)
    assert np.array_equal(moments.cov, moments.cov.T)


def test_subset_and_sketches_hold_what_they_should() -> None:
    reference = make()
    pixels = TRAIN.reshape(60, 16).astype(np.float32) / np.float32(255)
    assert reference.features.shape == (20, 16)
    assert rows(reference.features) <= rows(half(pixels))
    assert len(rows(reference.features)) == 20
    assert reference.train_sketch.shape == (60, 5)
    assert reference.held_out_sketch is not None and reference.held_out_sketch.shape == (25, 5)
    assert reference.logits is None
    for array in (reference.features, reference.train_sketch, reference.components, reference.centre):
        assert array.dtype == np.float32
    order = ref.canonical_order(image_digests(ArrayImages(TRAIN, "x")))
    sketch = (pixels[order] - reference.centre) @ reference.components
    assert np.allclose(sketch, reference.train_sketch, atol=1e-3)


def test_components_are_the_leading_axes_with_a_fixed_sign() -> None:
    scales = np.array([1.0, 5.0, 3.0, 0.1])
    axes = ref.principal_axes(np.diag(scales), 3)
    assert np.array_equal(axes, np.eye(4, dtype=np.float32)[:, [1, 2, 0]])
    cov = np.cov(RNG.standard_normal((50, 6)), rowvar=False)
    axes = ref.principal_axes(cov, 6)
    assert (axes[np.abs(axes).argmax(0), np.arange(6)] > 0).all()
    assert np.allclose(axes.T @ axes, np.eye(6), atol=1e-6)
    assert (np.diff(np.diag(axes.T @ cov @ axes)) < 0).all()


def test_an_exact_reference_keeps_order_and_every_bit(tmp_path: Path) -> None:
    spec = ReferenceSpec(num_features=60, sketch_dim=5, exact=True)
    reference = make(spec=spec)
    pixels = TRAIN.reshape(60, 16).astype(np.float32) / np.float32(255)
    assert np.array_equal(reference.features, pixels)
    assert not np.array_equal(half(pixels), pixels)
    again = load_reference(save_reference(reference, tmp_path / "r.npz"))
    assert np.array_equal(again.features, pixels) and again.identity == reference.identity
    np.testing.assert_allclose(reference.moments.cov, make().moments.cov, rtol=1e-12)


def test_a_field_that_came_later_leaves_digests_of_others_alone() -> None:
    assert "exact" not in SPEC.model_dump(mode="json") and "exact" not in SPEC.model_dump_json()
    exact = ReferenceSpec(exact=True)
    assert exact.digest != ReferenceSpec().digest
    assert ReferenceSpec.model_validate_json(exact.model_dump_json()) == exact


def test_counts_are_cut_to_what_there_is() -> None:
    reference = make(spec=ReferenceSpec(num_features=5000, sketch_dim=64))
    assert reference.features.shape == (60, 16)
    assert reference.train_sketch.shape == (60, 16)


def test_without_held_out_images_there_is_no_held_out_sketch() -> None:
    reference = make(test=None)
    assert reference.held_out_sketch is None
    assert reference.about["held_out"] is None


def test_about_says_what_it_was_made_from() -> None:
    about = make().about
    assert about["train"]["count"] == 60
    assert about["train"]["fingerprint"] != about["held_out"]["fingerprint"]
    assert (about["extractor"], about["extractor_identity"]) == ("identity", Identity.identity)
    assert about["is_inception"] is False and about["verified"] is True
    assert about["spec"] == SPEC.model_dump(mode="json")
    assert about["command"].startswith("trilemma-bench reference make --dataset ")
    json.dumps(about)


def test_progress_counts_every_image() -> None:
    seen: list[tuple[int, int]] = []
    make_reference(
        ArrayImages(TRAIN, "a"),
        ArrayImages(TEST, "b"),
        Identity(),
        SPEC,
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (85, 85)


# --- identity ---------------------------------------------------------------------------------------------


def test_reference_does_not_depend_on_the_order_of_the_images() -> None:
    again = make(train=TRAIN[RNG.permutation(60)], test=TEST[RNG.permutation(25)])
    assert (again.identity, again.key) == (make().identity, make().key)


@pytest.mark.parametrize(
    "other",
    [
        lambda: make(train=TRAIN[:-1]),
        lambda: make(test=TEST[:-1]),
        lambda: make(test=None),
        lambda: make(spec=ReferenceSpec(num_features=20, sketch_dim=5, seed=1)),
        lambda: make(spec=ReferenceSpec(num_features=21, sketch_dim=5)),
        lambda: make(spec=ReferenceSpec(num_features=20, sketch_dim=6)),
    ],
)
def test_identity_and_key_change_with_everything_it_is_made_from(other: Callable[[], Reference]) -> None:
    assert other().identity != make().identity
    assert other().key != make().key


def test_the_key_is_the_same_for_other_roundings_versions_and_names() -> None:
    """As a reference that another machine made: records of both share their columns."""
    here = make()
    train = {**here.about["train"], "name": "/home/somebody/images"}
    moments = replace(here.moments, mean=np.nextafter(here.moments.mean, 1.0))
    about = {**here.about, "train": train, "versions": {"numpy": "9.9"}, "command": "another"}
    there = replace(here, moments=moments, about=about)
    assert ref.identity_of(there) != here.identity
    assert there.key == here.key
    assert replace(here, about={**here.about, "extractor_identity": "0" * 64}).key != here.key


def test_the_key_of_an_exact_reference_is_of_the_order_too() -> None:
    spec = ReferenceSpec(num_features=60, sketch_dim=5, exact=True)
    assert make(spec=spec).key == make(spec=spec).key
    assert make(train=TRAIN[::-1].copy(), spec=spec).key != make(spec=spec).key


def test_the_key_of_statistics_that_name_no_images_is_their_identity() -> None:
    reference = make()
    assert replace(reference, about={**reference.about, "train": None}).key == reference.identity


def test_identity_covers_every_array() -> None:
    reference = make()
    assert ref.identity_of(reference) == reference.identity
    for name in ("features", "components", "centre", "train_sketch", "held_out_sketch"):
        array = getattr(reference, name).copy()
        array.flat[0] += 1
        assert ref.identity_of(replace(reference, **{name: array})) != reference.identity
    for name in ("mean", "cov"):
        array = getattr(reference.moments, name).copy()
        array.flat[0] += 1
        assert ref.identity_of(replace(reference, moments=replace(reference.moments, **{name: array}))) != (
            reference.identity
        )


# --- files ------------------------------------------------------------------------------------------------


def check_equal(found: Reference, expected: Reference) -> None:
    assert (found.identity, dict(found.about)) == (expected.identity, dict(expected.about))
    assert np.array_equal(found.moments.mean, expected.moments.mean)
    assert np.array_equal(found.moments.cov, expected.moments.cov)
    for name in ("features", "logits", "components", "centre", "train_sketch", "held_out_sketch"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == np.float32 and np.array_equal(ours, theirs))


@pytest.mark.parametrize("test", [TEST, None], ids=["held out", "none held out"])
def test_what_is_saved_is_read_bit_for_bit(tmp_path: Path, test: UInt8Images | None) -> None:
    reference = make(test=test)
    check_equal(load_reference(save_reference(reference, tmp_path / "new" / "x.npz")), reference)
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["x.npz"]


def test_features_beyond_float16_are_kept_in_float32(tmp_path: Path) -> None:
    features = RNG.standard_normal((30, 4)) * 1e5
    reference = reference_from_features(features, None, spec=SPEC, about={})
    assert rows(reference.features) <= rows(features.astype(np.float32))
    check_equal(load_reference(save_reference(reference, tmp_path / "x.npz")), reference)


def test_altered_reference_is_refused(tmp_path: Path) -> None:
    path = save_reference(make(), tmp_path / "x.npz")
    with np.load(path) as file:
        arrays = dict(file)
    arrays["train_sketch"][0, 0] += 1
    np.savez(path, **arrays)
    with pytest.raises(StoreError, match=r"x.npz: its content has SHA-256 .* but it says .*make it again"):
        load_reference(path)


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_truncated_reference_is_refused(tmp_path: Path, part: float) -> None:
    path = save_reference(make(), tmp_path / "x.npz")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(StoreError, match="not a readable reference"):
        load_reference(path)


@pytest.mark.parametrize(
    "arrays", [{"a": np.zeros(3)}, {"about": np.array([{}], object)}, {"about": np.zeros(2, np.uint8)}]
)
def test_other_npz_files_are_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(StoreError, match="not a readable reference"):
        load_reference(tmp_path / "x.npz")


def test_missing_reference_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such reference. Make it with `trilemma-bench reference make`"):
        load_reference(tmp_path / "x.npz")


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held_out", "reason"),
    [
        (np.zeros((1, 4)), None, "N of at least 2"),
        (np.zeros((5, 4), int), None, "floats"),
        (np.zeros(5), None, "floats"),
        (np.full((5, 4), np.nan), None, "row 0 holds NaN or Inf"),
        (np.ones((5, 4)), np.ones((5, 3)), "have 4 and 3 columns"),
        (np.zeros((2, 20_000), np.float32), None, "20000 columns"),
    ],
)
def test_features_that_make_no_reference_are_refused(train: Array, held_out: Array | None, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        reference_from_features(train, held_out, spec=SPEC, about={})


def test_splits_of_different_sizes_are_refused() -> None:
    with pytest.raises(ProtocolError, match="Both splits must be of one size"):
        make(test=np.zeros((3, 1, 5, 5), np.uint8))


def test_reference_of_another_extractor_or_protocol_is_refused() -> None:
    protocol = load_protocol("cifar10-lite-v1").model_copy(update={"image_shape": (1, 4, 4), "reference": SPEC})
    reference, extractor = make(), Identity()
    ref.check_fits(reference, protocol=protocol, extractor=extractor)
    with pytest.raises(ProtocolError, match="has spec"):
        other = protocol.model_copy(update={"reference": ReferenceSpec(num_features=7)})
        ref.check_fits(reference, protocol=other, extractor=extractor)
    with pytest.raises(ProtocolError, match="has image_shape"):
        other = protocol.model_copy(update={"image_shape": (3, 4, 4)})
        ref.check_fits(reference, protocol=other, extractor=extractor)
    extractor.identity = "0" * 64
    with pytest.raises(ProtocolError, match="was made by identity .* this one is identity 000000000000"):
        ref.check_fits(reference, protocol=protocol, extractor=extractor)


def test_name_of_a_reference_changes_with_the_counts() -> None:
    protocol = load_protocol("cifar10-lite-v1")
    other = protocol.model_copy(update={"reference": ReferenceSpec(num_features=7)})
    assert ref.reference_name(protocol, "identity") != ref.reference_name(other, "identity")
    assert ref.reference_name(protocol, "identity") == ref.reference_name(protocol.with_num_generated(5000), "identity")


# --- the shipped reference against the real images --------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Reference:
    return load_reference(ref.reference_path(load_protocol("cifar10-lite-v1"), "efficientnet_lite0"))


@pytest.fixture(scope="module")
def lite0() -> Any:
    return registry.get("extractor", "efficientnet_lite0").build()


def test_shipped_reference_fits_its_protocol_and_its_data(shipped: Reference, lite0: Any) -> None:
    protocol = load_protocol("cifar10-lite-v1")
    ref.check_fits(shipped, protocol=protocol, extractor=lite0)
    published = registry.get("dataset", "cifar10").fingerprints
    assert shipped.about["train"]["fingerprint"] == published["train"]
    assert shipped.about["held_out"]["fingerprint"] == published["test"]
    assert shipped.moments.n == len(shipped.train_sketch) == 50_000
    assert shipped.held_out_sketch is not None and len(shipped.held_out_sketch) == 10_000
    assert shipped.features.shape == (5000, 1280)


def test_shipped_references_stay_small() -> None:
    folder = ref.reference_path(load_protocol("cifar10-lite-v1"), "efficientnet_lite0").parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30 * 2**20


def test_shipped_moments_agree_with_the_sketches_of_all_images(shipped: Reference) -> None:
    # The sketch holds all 50,000 images, so its moments are those of the features along the components.
    sketch = shipped.train_sketch.astype(np.float64)
    components = shipped.components.astype(np.float64)
    along = components.T @ shipped.moments.cov @ components
    scale = np.sqrt(np.diag(along))
    assert (np.abs(sketch.mean(0)) < 1e-4 * scale).all()
    assert (np.abs(np.cov(sketch, rowvar=False) - along) < 1e-4 * np.outer(scale, scale)).all()
    assert np.allclose(along, np.diag(np.diag(along)), atol=1e-5 * scale[0] ** 2)


def test_shipped_features_are_rows_of_the_sketch_in_order(shipped: Reference) -> None:
    chosen = np.sort(np.random.default_rng(0).permutation(50_000)[:5000])
    sketch = (shipped.features - shipped.centre) @ shipped.components
    assert np.allclose(sketch, shipped.train_sketch[chosen], atol=0.02)


def test_shipped_held_out_sketch_is_that_of_the_real_test_images(
    shipped: Reference, lite0: Any, cifar10_test: ImageSet
) -> None:
    place = np.argsort(ref.canonical_order(image_digests(cifar10_test)))
    features = lite0.extract(cifar10_test.read(0, 160))["features"]
    sketch = (features - shipped.centre) @ shipped.components
    assert shipped.held_out_sketch is not None
    assert np.allclose(sketch, shipped.held_out_sketch[place[:160]], atol=0.01)


def test_shipped_train_sketch_holds_the_real_training_images(
    shipped: Reference, lite0: Any, cifar10_test: ImageSet, data_root: Path
) -> None:
    train = open_images(data_root / "cifar10" / "train.zip")

    def nearest(images: UInt8Images) -> Array:
        sketch = (lite0.extract(images)["features"] - shipped.centre) @ shipped.components
        return np.array([np.abs(shipped.train_sketch - row).max(1).min() for row in sketch])

    assert (nearest(train.read(20_000, 20_064)) < 0.01).all()
    assert (nearest(cifar10_test.read(0, 16)) > 0.1).all()
