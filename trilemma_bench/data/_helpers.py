"""Where data sets are looked for, how they are checked, and read without running anything in them."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trilemma_bench import pickles
from trilemma_bench.errors import DataError
from trilemma_bench.images import ArrayImages, blocks, check_member_name, fingerprint
from trilemma_bench.kinds import Array, ImageSet

CACHE = Path("~/.cache/trilemma-bench/data")


# --- where ------------------------------------------------------------------------------------------------


def roots(root: Path | None) -> list[Path]:
    """Folders to look in: `root` alone where it is given, else TRILEMMA_DATA, ./data and CACHE."""
    if root is not None:
        return [Path(root).expanduser()]
    named = os.environ.get("TRILEMMA_DATA")
    places = [Path(named).expanduser()] if named else []
    return [*places, Path("data"), CACHE.expanduser()]


def download_root(root: Path | None) -> Path:
    """Where a download goes: the place that the user named, else the cache."""
    named = os.environ.get("TRILEMMA_DATA")
    return Path(root or named or CACHE).expanduser()


def find(candidates: Iterable[str], *, folders: Collection[str], root: Path | None) -> Iterator[Path]:
    """The candidates that exist, in each root's `folders` and then in the root itself."""
    names = list(candidates)
    for place in roots(root):
        for base in [*(place / folder for folder in folders), place]:
            yield from (base / name for name in names if (base / name).exists())


def not_found(dataset: str, split: str, *, wanted: str, root: Path | None, why: str) -> DataError:
    """The one wording for a data set that is nowhere: where it was looked for, and what to do."""
    looked = ", ".join(str(place) for place in roots(root))
    return DataError(
        f"{dataset}:{split} was not found in {looked}, and {why}. Put {wanted} there, or say where it is "
        "with --data-root or TRILEMMA_DATA."
    )


def check_split(dataset: str, split: str, splits: Collection[str]) -> None:
    """Raise DataError where there is no such split."""
    if split not in splits:
        raise DataError(f"{dataset} has no split {split!r}. There are {', '.join(splits)}.")


# --- what -------------------------------------------------------------------------------------------------


def checked(images: ImageSet, *, name: str, shape: tuple[int, int, int], count: int, expected: str) -> ArrayImages:
    """Read all images into memory and hold them to the published shape, count and fingerprint.

    Raises:
        DataError: They are other images than the data set's.
    """
    if images.shape != shape or len(images) != count:
        raise DataError(
            f"{images.name}: {len(images)} images of shape {list(images.shape)}; {name} has {count} of {list(shape)}."
        )
    array = np.concatenate(list(blocks(images)))
    result = ArrayImages(array, name, images.labels)
    found = fingerprint(result)
    if found != expected:
        raise DataError(
            f"{images.name}: these are not the images of {name}: fingerprint begins {found[:8]}..., expected "
            f"{expected[:8]}.... Were they resized or saved as JPEG? Delete or replace it."
        )
    return result


# --- archives ---------------------------------------------------------------------------------------------


def gunzip(path: Path, limit: int) -> bytes:
    """Unpack a gzip file in memory.

    Raises:
        DataError: Not gzip, truncated, or over `limit` bytes unpacked.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}. Delete it and fetch it again.") from error
    if len(data) > limit:
        raise DataError(f"{path}: unpacks to over {limit} bytes; refused.")
    return data


def read_tar(path: Path, names: Collection[str], *, limit: int, member_limit: int) -> dict[str, bytes]:
    """Read the named members of a tar.gz in memory; nothing is written to disk.

    Raises:
        DataError: A member that is missing, over `member_limit` bytes, a link or device, or named so that it
            would lie outside; an archive that is broken or unpacks to over `limit` bytes.
    """
    data = gunzip(path, limit)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                check_member_name(member.name, str(path))
                if not (member.isreg() or member.isdir()):
                    raise DataError(f"{path}: {member.name} is a link or device; such archives are refused.")
                if member.size > member_limit:
                    raise DataError(f"{path}: {member.name} claims {member.size} bytes; refused.")
                name = member.name.removeprefix("./")
                if name in names and member.isreg():
                    file = archive.extractfile(member)
                    found[name] = file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable tar: {error}. Delete it and fetch it again.") from error
    missing = sorted(set(names) - set(found))
    if missing:
        raise DataError(f"{path}: has no {missing[0]}. Is it the right archive, and complete?")
    return found


# --- pickles ----------------------------------------------------------------------------------------------


class _PickledType:
    """Stands for numpy.dtype: remembers the name it was made with."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        pass


class _PickledArray:
    """Stands for numpy.ndarray: remembers its state; becomes an array only once that is checked."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, Any, Any, Any] = (None, None, None, None)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5:
            self.state = state[1:]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _PickledArray:
    array = _PickledArray()
    array.state = (shape, dtype, order == "F", data)
    return array


_NUMPY_CORES = ("numpy.core", "numpy._core")
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    **{(f"{core}.multiarray", "_reconstruct"): _PickledArray for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _NUMPY_CORES},
}


def read_pickle(data: bytes, where: str) -> Mapping[str, Any]:
    """Read a pickled dict of lists, numbers, strings and uint8 arrays, running nothing in it.

    No name in the pickle is looked up: the few that an array needs stand for classes of this module that only
    remember what they are given, and every other name is refused. Opcodes are checked before anything is
    built.

    Args:
        data: The pickle, of Python 2 or 3.
        where: Its name, for errors.

    Returns:
        The dict; keys as str, uint8 arrays as numpy arrays, other bytes as they are.

    Raises:
        DataError: Another name or opcode, an array of another dtype, a broken pickle, not a dict.
    """
    content = pickles.load(
        data, where, allowed={**_ALLOWED, ("_codecs", "encode"): pickles.Encoder(len(data))}, error=DataError,
        purpose="images", advice="Delete it and get the data set from its publisher.", encoding="bytes",
    )  # fmt: skip
    if not isinstance(content, dict):
        raise DataError(f"{where}: holds a {type(content).__name__}; expected a dict.")
    try:
        return {_text(key): _plain(value, f"{where}: {_text(key)}") for key, value in content.items()}
    except DataError:
        raise
    # What the checks did not foresee is still no error of this program.
    except Exception as error:
        raise DataError(f"{where}: not a readable pickle: {error}. Delete it and fetch it again.") from error


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def _plain(value: Any, where: str) -> Any:
    if not isinstance(value, _PickledArray):
        return value
    shape, dtype, fortran, raw = value.state
    code = dtype.code if isinstance(dtype, _PickledType) else None
    if code not in ("u1", "|u1", "uint8") or not isinstance(raw, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise DataError(f"{where}: an array of {code}; expected uint8.")
    array: Array = np.frombuffer(raw, np.uint8)
    return array.reshape(shape, order="F" if fortran else "C")
