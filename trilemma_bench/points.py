"""Points [N, D] as a set that can be read by index, in memory and from npy, npz and csv files.

Files come from anywhere, so they are data: nothing is unpickled. Importing this module imports no torch.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trilemma_bench.errors import DataError
from trilemma_bench.kinds import Array, Shape

_BROKEN = (OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError)
"""What a file may raise that is cut off, encrypted, or none of its kind."""
MAX_FILE_BYTES = 2**30
"""Largest file of points; 64 million points in the plane."""
NAMES = ("points", "arr_0", "samples", "x")
"""What an npz may call its points, in this order; another name where it holds one array alone."""


class ArrayPoints:
    """Points in memory.

    Args:
        array: Floating point [N, D].
        name: Where they come from.
        labels: The class of each, int64 [N], where there are classes.

    Raises:
        DataError: Another dtype or shape, or values that are not finite.
    """

    def __init__(self, array: Array, name: str, labels: npt.NDArray[np.int64] | None = None) -> None:
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
            raise DataError(
                f"{name}: {array.dtype} {list(array.shape)}; expected floating-point points [N, D], one row a point."
            )
        bad = ~np.isfinite(array).all(1)
        if bad.any():
            raise DataError(
                f"{name}: {int(bad.sum())} of {len(array)} points hold NaN or Inf, the first is row "
                f"{int(bad.argmax())}. Leave them out or look for what made them."
            )
        self.array = array.astype(np.float64)
        self.name = name
        self.shape: Shape = (array.shape[1],)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.array)

    def read(self, start: int, stop: int) -> Array:
        """Points start..stop-1 as float64 [stop - start, D].

        Raises:
            DataError: A range that is not within the points.
        """
        if not 0 <= start <= stop <= len(self):
            raise DataError(f"{self.name}: points {start}..{stop} asked for; there are {len(self)}.")
        return self.array[start:stop].copy()


def open_points(path: str | Path) -> ArrayPoints:
    """The points of a .npy, .npz or .csv file (numbers only, separated by commas, one line a point).

    Raises:
        DataError: Nothing there, a file that is not one of these, or anything that `ArrayPoints` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Points are read from .npy, .npz and .csv.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read.")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected .npy, .npz or .csv with points; got {path.suffix or 'no suffix'}.")
    try:
        array = readers[path.suffix.lower()](path)
    except DataError:
        raise
    except (*_BROKEN, zlib.error, zipfile.BadZipFile, tokenize.TokenError) as error:
        raise DataError(f"{path}: cannot be read as points: {error}. Save them with numpy.save.") from error
    return ArrayPoints(array, str(path))


def _read_npy(path: Path) -> Array:
    with path.open("rb") as stream:
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _read_npz(path: Path) -> Array:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
        named = [name for name in NAMES if name in content.files][:1] or list(content.files)
        if len(named) != 1:
            found = ", ".join(content.files) or "none"
            raise DataError(f"{path}: which array holds the points? Found {found}. Name it 'points'.")
        array: Array = content[named[0]]
    return array


def _read_csv(path: Path) -> Array:
    array: Array = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64)
    return array
