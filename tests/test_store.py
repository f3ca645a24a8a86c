"""The cache: what was written comes back, what is damaged does not, and a kill leaves nothing half-made."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from trilemma_bench.errors import StoreError
from trilemma_bench.store import (
    FeatureStore,
    SampleShards,
    Shard,
    cache_folder,
    image_seeds,
    sha256,
    write_atomic,
)

KEY = "ab" * 32


def shards(root: Path, *, key: str = KEY, seed: int = 3, size: int = 4, shipped: Path | None = None) -> SampleShards:
    return SampleShards(root, key, seed, size, shipped)


def shard(store: SampleShards, index: int = 0, *, nfe: float | None = 4.0, side: int = 5) -> Shard:
    images = np.random.default_rng(index).integers(0, 256, (store.size, 3, side, side), np.uint8)
    return Shard(images, store.seeds(index), nfe)


def only_file(root: Path) -> Path:
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) == 1
    return files[0]


# --- seeds


def test_seeds_of_runs_never_overlap_and_more_samples_only_add() -> None:
    assert image_seeds(0, 0, 3).tolist() == [0, 1, 2]
    assert image_seeds(2, 5, 7).tolist() == [2 * 2**32 + 5, 2 * 2**32 + 6]
    assert image_seeds(1, 0, 1)[0] > image_seeds(0, 2**32 - 1, 2**32)[0]
    assert np.array_equal(image_seeds(7, 0, 9)[:5], image_seeds(7, 0, 5))


def test_the_largest_seeds_are_whole_numbers_of_64_bits() -> None:
    last = image_seeds(2**20 - 1, 2**32 - 2, 2**32)
    assert last.dtype == np.int64
    assert last.tolist() == [2**52 - 2, 2**52 - 1]


def test_shards_cut_the_seeds_of_a_run_end_to_end(tmp_path: Path) -> None:
    store = shards(tmp_path, size=4)
    assert list(store.indices(9)) == [0, 1, 2]
    assert list(store.indices(8)) == [0, 1]
    assert list(store.indices(0)) == []
    assert np.concatenate([store.seeds(i) for i in store.indices(9)]).tolist() == image_seeds(3, 0, 12).tolist()


# --- shards


@pytest.mark.parametrize("nfe", [4.0, 1000.0, None])
def test_a_shard_comes_back_as_it_was_written(tmp_path: Path, nfe: float | None) -> None:
    store = shards(tmp_path)
    assert store.read(1) is None
    written = shard(store, 1, nfe=nfe)
    store.write(1, written)
    found = store.read(1)
    assert found is not None
    assert np.array_equal(found[0].images, written.images)
    assert found[0].images.dtype == np.uint8
    assert np.array_equal(found[0].seeds, written.seeds)
    assert (found[0].nfe, found[1]) == (nfe, "cached")
    assert found[0].digest == written.digest


def test_shards_of_another_key_seed_size_or_index_are_not_taken(tmp_path: Path) -> None:
    store = shards(tmp_path)
    store.write(0, shard(store))
    others = [shards(tmp_path, key="cd" * 32), shards(tmp_path, seed=4), shards(tmp_path, size=5)]
    assert [other.read(0) for other in others] == [None, None, None]
    assert store.read(1) is None


def test_a_shard_under_a_name_that_is_not_its_own_is_set_aside(tmp_path: Path) -> None:
    store = shards(tmp_path)
    store.write(0, shard(store))
    path = only_file(tmp_path)
    path.rename(path.with_name(path.name.replace("000000", "000007")))
    assert store.read(7) is None
    assert only_file(tmp_path).suffix == ".damaged"


def test_a_shard_of_another_key_in_this_keys_folder_is_set_aside(tmp_path: Path) -> None:
    other, store = shards(tmp_path / "a", key="cd" * 32), shards(tmp_path / "b")
    other.write(0, shard(other))
    target = tmp_path / "b" / "samples" / KEY[:2] / KEY
    target.mkdir(parents=True)
    path = only_file(tmp_path / "a")
    path.rename(target / path.name)
    assert store.read(0) is None
    assert only_file(tmp_path).suffix == ".damaged"


def test_any_altered_byte_gives_the_same_shard_or_none(tmp_path: Path) -> None:
    """Some bytes of a zip mean nothing, such as its time stamps; none may change an image or raise."""
    store = shards(tmp_path)
    written = shard(store, side=2)
    store.write(0, written)
    path = only_file(tmp_path)
    content = path.read_bytes()
    survivors = 0
    for place in range(0, len(content), 2):
        altered = bytearray(content)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        found = store.read(0)
        path.with_suffix(".damaged").unlink(missing_ok=True)
        if found is not None:
            survivors += 1
            assert np.array_equal(found[0].images, written.images)
            assert np.array_equal(found[0].seeds, written.seeds)
            assert found[0].nfe == written.nfe
    assert survivors < len(content) / 6


@pytest.mark.parametrize("keep", [0, 1, 30, 0.3, 0.9, -1])
def test_a_shard_that_was_cut_off_is_set_aside_and_can_be_written_again(tmp_path: Path, keep: float) -> None:
    store = shards(tmp_path)
    store.write(0, shard(store))
    path = only_file(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    assert store.read(0) is None
    assert not path.exists()
    assert path.with_suffix(".damaged").exists()
    assert store.read(0) is None
    store.write(0, shard(store))
    assert store.read(0) is not None


def test_objects_in_a_shard_are_not_unpickled(tmp_path: Path) -> None:
    store = shards(tmp_path)
    store.write(0, shard(store))
    path = only_file(tmp_path)
    np.savez(path, meta=np.array('{"checksum": ""}'), data_images=np.array([{"a": 1}], dtype=object))
    assert store.read(0) is None


def test_shipped_shards_serve_until_an_own_one_is_there(tmp_path: Path) -> None:
    maker = shards(tmp_path / "maker")
    maker.write(0, shard(maker))
    shipped = tmp_path / "baseline"
    shipped.mkdir()
    (tmp_path / "maker" / "samples" / KEY[:2] / KEY).rename(shipped / KEY)
    store = shards(tmp_path / "cache", shipped=shipped)
    found = store.read(0)
    assert found is not None
    assert found[1] == "shipped"
    assert store.without_shipped().read(0) is None
    store.write(0, shard(store, nfe=9.0))
    again = store.read(0)
    assert again is not None
    assert (again[0].nfe, again[1]) == (9.0, "cached")


def test_a_damaged_shipped_shard_is_passed_over_and_left_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "baseline" / KEY).mkdir(parents=True)
    path = tmp_path / "baseline" / KEY / "s3-n4-000000.npz"
    path.write_bytes(b"damaged")
    assert shards(tmp_path / "cache", shipped=tmp_path / "baseline").read(0) is None
    assert path.read_bytes() == b"damaged"


def test_a_damaged_own_shard_gives_way_to_the_shipped_one(tmp_path: Path) -> None:
    maker = shards(tmp_path / "maker")
    maker.write(0, shard(maker))
    (tmp_path / "baseline").mkdir()
    (tmp_path / "maker" / "samples" / KEY[:2] / KEY).rename(tmp_path / "baseline" / KEY)
    store = shards(tmp_path / "cache", shipped=tmp_path / "baseline")
    store.write(0, shard(store))
    only_file(tmp_path / "cache").write_bytes(b"")
    found = store.read(0)
    assert found is not None
    assert found[1] == "shipped"


def test_dropping_forgets_one_seed_and_leaves_the_others(tmp_path: Path) -> None:
    one, other = shards(tmp_path, seed=3), shards(tmp_path, seed=30)
    for store in (one, other):
        store.write(0, shard(store))
    one.drop()
    assert one.read(0) is None
    assert other.read(0) is not None


# --- writing


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match="No space left on device.*Free space or name another folder"):
        write_atomic(path, b"new content")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new content")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below" / "x", b"")


def test_writing_makes_the_folders_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"


# --- features


def test_features_come_back_by_the_digest_of_their_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = {
        "features": rng.standard_normal((6, 8)).astype(np.float32),
        "logits": rng.standard_normal((6, 3)).astype(np.float32),
    }
    images = rng.integers(0, 256, (6, 3, 4, 4), np.uint8)
    store = FeatureStore(tmp_path, "identity-one")
    assert store.read(sha256(images)) is None
    store.write(sha256(images), features)
    found = store.read(sha256(images))
    assert found is not None
    assert found.keys() == features.keys()
    assert all(np.array_equal(found[name], features[name]) for name in features)
    assert all(found[name].dtype == np.float32 for name in features)
    assert store.read(sha256(images[::-1])) is None
    assert FeatureStore(tmp_path, "identity-two").read(sha256(images)) is None


def test_damaged_features_are_set_aside(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "identity")
    store.write("d" * 64, {"features": np.ones((2, 3), np.float32)})
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    assert store.read("d" * 64) is None
    assert only_file(tmp_path).suffix == ".damaged"


# --- digests and places


def test_the_digest_of_arrays_sees_type_shape_order_and_values() -> None:
    array = np.arange(6, dtype=np.uint8)
    variants = [
        (array,), (array.reshape(2, 3),), (array.astype(np.int16),), (array[::-1],), (array[:3], array[3:]),
        (np.empty((0, 3), np.uint8),), (np.empty((3, 0), np.uint8),), (),
    ]  # fmt: skip
    assert len({sha256(*arrays) for arrays in variants}) == len(variants)
    assert sha256(array.reshape(2, 3).T) == sha256(np.ascontiguousarray(array.reshape(2, 3).T))


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("TRILEMMA_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "trilemma-bench"


def test_writers_of_one_file_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    contents = [bytes([65 + index]) * 4096 for index in range(4)]

    def write(content: bytes) -> None:
        for _ in range(50):
            write_atomic(path, content)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["x.json"]
