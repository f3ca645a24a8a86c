"""MNIST: 60,000 training and 10,000 test digits, 28 x 28, grey, 10 classes.

Read from the idx files of its publisher, plain or gzipped, in the root's folder `mnist`, `MNIST/raw`
(torchvision's place) or the root itself; where there are none they are downloaded. The images are held to
their fingerprint.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from trilemma_bench.data import _helpers
from trilemma_bench.errors import DataError
from trilemma_bench.fetch import FetchError, fetch
from trilemma_bench.images import ArrayImages
from trilemma_bench.kinds import Dataset, ImageSet, UInt8Images

NAME = "mnist"
SHAPE = (1, 28, 28)
STEMS = {"train": "train", "test": "t10k"}
COUNTS = {"train": 60_000, "test": 10_000}
FINGERPRINTS = {
    "train": "a9e53d6704774bf4a8c18b4b47284154762d971ea90e4fbf8176e9000f3bff0c",
    "test": "0fc24f87329eb25d2c054204bc7a3bbbb0f9e0b377055a7347926730541a6c80",
}
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}

_FOLDERS = ("mnist", "MNIST/raw", "MNIST")
_MAX_BYTES = 256 * 2**20


def open_split(split: str, root: Path | None = None) -> ImageSet:
    """Find, read and check one split.

    Args:
        split: train or test.
        root: Folder to look in; by default TRILEMMA_DATA, ./data, ~/.cache/trilemma-bench/data.

    Returns:
        The images in memory (47 MB for train) with their labels.

    Raises:
        DataError: Not found and not to be downloaded, other images, or files that are broken.
    """
    _helpers.check_split(NAME, split, tuple(COUNTS))
    images_path = _file(f"{STEMS[split]}-images-idx3-ubyte", split, root)
    labels_path = _file(f"{STEMS[split]}-labels-idx1-ubyte", split, root)
    pixels = read_idx(images_path)
    labels = read_idx(labels_path)
    if pixels.ndim != 3 or labels.shape != (len(pixels),):
        raise DataError(f"{images_path}: shapes {list(pixels.shape)} and {list(labels.shape)} do not belong together.")
    images = ArrayImages(pixels[:, None], str(images_path), labels.astype(np.int64))
    return _helpers.checked(
        images, name=f"{NAME}:{split}", shape=SHAPE, count=COUNTS[split], expected=FINGERPRINTS[split]
    )


def read_idx(path: Path) -> UInt8Images:
    """Read an idx file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each of them as a
    big-endian int32, and the values.

    Raises:
        DataError: Another type, or a length that the dimensions do not give.
    """
    data = _helpers.gunzip(path, _MAX_BYTES) if path.suffix == ".gz" else _read(path)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path}: not an idx file of unsigned bytes. Delete it and fetch it again.")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(f"{path}: {len(data) - start} values for shape {list(shape)}. Is the file complete?")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read(path: Path) -> bytes:
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes; at most {_MAX_BYTES} are read.")
    return path.read_bytes()


def _file(name: str, split: str, root: Path | None) -> Path:
    found = next(_helpers.find([name, f"{name}.gz"], folders=_FOLDERS, root=root), None)
    if found is not None:
        return found
    try:
        return fetch(f"{MIRROR}/{name}.gz", _helpers.download_root(root) / NAME, md5=MD5[name])
    except FetchError as error:
        raise _helpers.not_found(NAME, split, wanted=f"{name}.gz", root=root, why=str(error)) from error


DATASET = Dataset(
    name=NAME,
    shape=SHAPE,
    splits=tuple(COUNTS),
    open=open_split,
    fingerprints=FINGERPRINTS,
    num_classes=10,
    citation="Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, 1998",
)
