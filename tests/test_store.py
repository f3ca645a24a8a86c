"""Shards and features on disk: what was written comes back, what was damaged does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trilemma_bench.errors import StoreError
from trilemma_bench.store import FeatureStore, SampleShards, Shard, image_seeds, sha256, write_atomic


def shard(shards: SampleShards, index: int) -> Shard:
    images = np.random.default_rng(index).integers(0, 256, (shards.size, 3, 4, 4), np.uint8)
    return Shard(images, shards.seeds(index), 4.0)


def test_a_shard_comes_back_as_it_was(tmp_path: Path) -> None:
    shards = SampleShards(tmp_path, "key", 2, 5)
    assert shards.read(1) is None
    shards.write(1, shard(shards, 1))
    found, origin = shards.read(1)
    assert origin == "cached"
    assert np.array_equal(found.images, shard(shards, 1).images)
    assert found.seeds.tolist() == [2 * 2**32 + i for i in range(5, 10)]
    assert found.nfe == 4.0


def test_other_keys_seeds_and_sizes_are_other_shards(tmp_path: Path) -> None:
    shards = SampleShards(tmp_path, "key", 0, 5)
    shards.write(0, shard(shards, 0))
    for other in (SampleShards(tmp_path, "kex", 0, 5), SampleShards(tmp_path, "key", 1, 5),
                  SampleShards(tmp_path, "key", 0, 6)):  # fmt: skip
        assert other.read(0) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_shard_is_set_aside_and_not_used(tmp_path: Path, damage: str) -> None:
    shards = SampleShards(tmp_path, "key", 0, 5)
    shards.write(0, shard(shards, 0))
    (path,) = tmp_path.rglob("*.npz")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 2] ^= 255
    else:
        content = bytearray()
    path.write_bytes(content)
    assert shards.read(0) is None
    assert not path.exists()
    assert path.with_suffix(".damaged").exists()
    shards.write(0, shard(shards, 0))
    assert shards.read(0) is not None


def test_own_shards_come_before_shipped_ones_which_can_be_set_aside(tmp_path: Path) -> None:
    made = SampleShards(tmp_path / "made", "key", 0, 5)
    made.write(0, shard(made, 0))
    shipped = next((tmp_path / "made").rglob("*.npz")).parent.parent
    shards = SampleShards(tmp_path / "own", "key", 0, 5, shipped)
    assert shards.read(0)[1] == "shipped"
    assert shards.without_shipped().read(0) is None
    shards.write(0, shard(shards, 0))
    assert shards.read(0)[1] == "cached"
    shards.drop()
    assert shards.read(0)[1] == "shipped"


def test_indices_cover_the_count() -> None:
    shards = SampleShards(Path(), "key", 0, 50)
    assert [len(list(shards.indices(n))) for n in (1, 50, 51, 1000)] == [1, 1, 2, 20]


def test_seeds_of_runs_do_not_overlap() -> None:
    assert image_seeds(0, 0, 10**6)[-1] < image_seeds(1, 0, 1)[0]


def test_features_come_back_by_identity_and_content(tmp_path: Path) -> None:
    features = {"features": np.ones((3, 2), np.float32), "logits": np.zeros((3, 4), np.float32)}
    FeatureStore(tmp_path, "a" * 64).write("d" * 64, features)
    found = FeatureStore(tmp_path, "a" * 64).read("d" * 64)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in features.items()
    }
    assert FeatureStore(tmp_path, "b" * 64).read("d" * 64) is None
    assert FeatureStore(tmp_path, "a" * 64).read("e" * 64) is None


def test_checksums_see_type_and_shape() -> None:
    zeros = np.zeros(4, np.uint8)
    assert len({sha256(zeros), sha256(zeros.reshape(2, 2)), sha256(zeros.view(np.int8)), sha256(zeros, zeros)}) == 4


def test_a_write_that_fails_leaves_the_old_file_and_says_why(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")
    with pytest.raises(StoreError, match="cannot be written"):
        write_atomic(target / "below", b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
