"""What a run keeps on disk so that nothing is done twice: sample shards and features.

A shard is named by what fixes its content (`samples_key`: weights, options, precision, micro-batch) and by its seeds;
features are named by the extractor's identity and the SHA-256 of the images themselves. Every file carries the
checksum of its content, is written beside and renamed, and is set aside, not used, where the checksum does not hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trilemma_bench.errors import StoreError

SEED_STRIDE = 2**32
"""Image i of a run with `--seed s` has the seed s * 2^32 + i: more samples only add, and runs never overlap."""


def image_seeds(seed: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """int64 [stop - start]: the seeds of images start..stop-1 of run `seed`."""
    return seed * SEED_STRIDE + np.arange(start, stop, dtype=np.int64)


def cache_folder() -> Path:
    """`TRILEMMA_CACHE`, or `~/.cache/trilemma-bench`."""
    return Path(os.environ.get("TRILEMMA_CACHE") or Path.home() / ".cache" / "trilemma-bench")


def sha256(*arrays: npt.NDArray[Any]) -> str:
    """SHA-256 over type, shape and bytes of arrays, in order."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{list(array.shape)}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder with those above it, where it is not there.

    Raises:
        StoreError: It cannot be made, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: no folder can be made there ({error}). Name another one.") from error


def check_writable(folder: Path) -> None:
    """Make the folder where it is not there, and see that files can be written to it.

    Raises:
        StoreError: They cannot.
    """
    make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written to ({error}). Name another folder.") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to; at the end it takes the place of `path`, after an error it is gone.

    Raises:
        StoreError: It cannot be written.
    """
    # No other writer has this name, be it a thread or a container whose processes have the same numbers.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error}). Free space or name another folder.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whatever interrupts.

    Raises:
        StoreError: It cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


@dataclass(frozen=True)
class Shard:
    """Images of consecutive seeds: `images` uint8 [n, C, H, W], or points float64 [n, D].

    `nfe` and `gradient_evaluations` are counted per image, None where not observed.
    """

    images: npt.NDArray[Any]
    seeds: npt.NDArray[np.int64]
    nfe: float | None
    gradient_evaluations: float | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the images."""
        return sha256(self.images)


def _pack(arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    header = json.dumps({**meta, "checksum": sha256(*(arrays[name] for name in sorted(arrays)))})
    named: dict[str, Any] = {f"data_{name}": array for name, array in arrays.items()}
    np.savez_compressed(stream, meta=np.array(header), **named)
    return stream.getvalue()


_DAMAGE = (
    ValueError, TypeError, KeyError, OSError, EOFError, MemoryError, OverflowError, NotImplementedError, RuntimeError,
    struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What reading a file raises whose bytes were altered or cut off, depending on where."""


def _unpack(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
    """Content of a file that `_pack` made; None where there is none or it is damaged."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            meta = json.loads(str(content["meta"]))
            arrays = {k.removeprefix("data_"): content[k] for k in content.files if k != "meta"}
        intact = meta["checksum"] == sha256(*(arrays[name] for name in sorted(arrays)))
    except _DAMAGE:
        return None
    return (arrays, meta) if intact else None


def _set_aside(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rename(path.with_suffix(".damaged"))


class SampleShards:
    """The shards of one samples key and one seed, `size` images each.

    `shipped` is a read-only folder that comes with a baseline; what lies there is used unless it was set aside.
    A shard that is damaged, or that is not the one that its name says, is not used; an own one is renamed.
    """

    def __init__(self, root: Path, key: str, seed: int, size: int, shipped: Path | None = None) -> None:
        self.key = key
        self.seed = seed
        self.size = size
        self._own = root / "samples" / key[:2] / key
        self._shipped = shipped / key if shipped is not None else None

    def _name(self, index: int) -> str:
        return f"s{self.seed}-n{self.size}-{index:06d}.npz"

    def read(self, index: int) -> tuple[Shard, str] | None:
        """Shard `index` and where it came from (`cached` or `shipped`), or None where there is none."""
        for folder, origin in ((self._own, "cached"), (self._shipped, "shipped")):
            if folder is None or not (folder / self._name(index)).is_file():
                continue
            shard = self._checked(_unpack(folder / self._name(index)), index)
            if shard is not None:
                return shard, origin
            if origin == "cached":
                _set_aside(folder / self._name(index))
        return None

    def _checked(self, found: tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None, index: int) -> Shard | None:
        """The shard where key and seeds are those of shard `index`."""
        if found is None or not {"images", "seeds"} <= found[0].keys() or found[1].get("key") != self.key:
            return None
        arrays, meta = found
        if not np.array_equal(arrays["seeds"], self.seeds(index)) or len(arrays["images"]) != self.size:
            return None
        return Shard(arrays["images"], arrays["seeds"], meta.get("nfe"), meta.get("gradient_evaluations"))

    def write(self, index: int, shard: Shard) -> None:
        """Keep shard `index`."""
        counts = {"nfe": shard.nfe, "gradient_evaluations": shard.gradient_evaluations}
        content = _pack({"images": shard.images, "seeds": shard.seeds}, {**counts, "key": self.key})
        write_atomic(self._own / self._name(index), content)

    def without_shipped(self) -> SampleShards:
        """The same shards, those that ship with the baseline set aside."""
        other = object.__new__(SampleShards)
        other.__dict__.update(self.__dict__, _shipped=None)
        return other

    def drop(self) -> None:
        """Forget this seed's own shards (those that ship stay where they are)."""
        for path in self._own.glob(f"s{self.seed}-n{self.size}-*.npz"):
            path.unlink()

    def indices(self, count: int) -> Iterator[int]:
        """Indices of the shards that hold the first `count` images."""
        return iter(range(-(-count // self.size)))

    def seeds(self, index: int) -> npt.NDArray[np.int64]:
        """Seeds of shard `index`."""
        return image_seeds(self.seed, index * self.size, (index + 1) * self.size)


def kept_images(key: str, seed: int, count: int, *folders: Path) -> npt.NDArray[Any] | None:
    """The first images of a run, from its first finished shard; None where there is none.

    They are as the shard has them: uint8 [<= count, C, H, W], or points float64 [<= count, D].

    Args:
        key: The samples key.
        seed: Of the run.
        count: Images at most.
        *folders: Which hold a folder named `key`, looked through in this order.
    """
    for folder in folders:
        for path in sorted((folder / key).glob(f"s{seed}-n*-000000.npz")):
            found = _unpack(path)
            if found is not None and "images" in found[0] and found[1].get("key") == key:
                return found[0]["images"][:count]
    return None


class FeatureStore:
    """Features by extractor identity and content of the images."""

    def __init__(self, root: Path, identity: str) -> None:
        self._folder = root / "features" / identity[:32]

    def read(self, images_digest: str) -> dict[str, npt.NDArray[np.float32]] | None:
        """{layer: float32 [N, D]} of images with that SHA-256, or None."""
        path = self._folder / f"{images_digest[:40]}.npz"
        if not path.is_file():
            return None
        found = _unpack(path)
        if found is None:
            _set_aside(path)
            return None
        return found[0]

    def write(self, images_digest: str, features: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Keep the features of images with that SHA-256."""
        write_atomic(self._folder / f"{images_digest[:40]}.npz", _pack(features, {}))
