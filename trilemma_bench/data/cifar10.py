"""CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 in 10 classes.

Read from, in this order, in the root's folder `cifar10` and in the root itself:
`cifar-10-batches-py/` or `cifar-10-python.tar.gz` (the official Python version, read without executing
anything in it); zips, npz files and image folders of one split (`train.zip`, `cifar10-train.zip`,
`train.npz`, `train/` ...); StyleGAN's and EDM's `cifar10.zip`, `cifar10-32x32.zip` (the training images).
Where there is none of these it is downloaded. The images are always held to the published fingerprint.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from trilemma_bench.data import _helpers
from trilemma_bench.errors import DataError
from trilemma_bench.fetch import FetchError, fetch
from trilemma_bench.images import ArrayImages, open_images
from trilemma_bench.kinds import Dataset, ImageSet

NAME = "cifar10"
SHAPE = (3, 32, 32)
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "c58f30108f718f92721af3d95e74349a"
BATCHES = {"train": tuple(f"data_batch_{index}" for index in range(1, 6)), "test": ("test_batch",)}
COUNTS = {"train": 50_000, "test": 10_000}
FINGERPRINTS = {
    "train": "a38d4b4d73812cb260a6b7978197547ed8fa70bcb91a73b8607cad5e9cac31be",
    "test": "f487795b4dc656de3857b3b3eddbddf39d523add4ee8d39765e94ce27c34821b",
}

_MAX_BATCH_BYTES = 64 * 2**20
_MAX_ARCHIVE_BYTES = 512 * 2**20


def open_split(split: str, root: Path | None = None) -> ImageSet:
    """Find, read and check one split.

    Args:
        split: train or test.
        root: Folder to look in; by default TRILEMMA_DATA, ./data, ~/.cache/trilemma-bench/data.

    Returns:
        The images in memory (150 MB for train), with int64 labels where the files have them.

    Raises:
        DataError: Not found and not to be downloaded, other images, or files that are broken or unsafe.
    """
    _helpers.check_split(NAME, split, tuple(COUNTS))
    refused: DataError | None = None
    for path in _helpers.find(_candidates(split), folders=("cifar10", "cifar-10", "CIFAR10"), root=root):
        try:
            return _read(path, split)
        except DataError as error:
            # A folder `train` may be any project's: what lies further on may still be CIFAR-10.
            refused = refused or error
    if refused:
        raise refused
    return _read(_download(split, root), split)


def _read(path: Path, split: str) -> ImageSet:
    images: ImageSet
    if path.name == FOLDER:
        images = _from_folder(path, split)
    elif path.name == ARCHIVE:
        images = _from_archive(path, split)
    else:
        images = open_images(path)
    return _helpers.checked(
        images, name=f"{NAME}:{split}", shape=SHAPE, count=COUNTS[split], expected=FINGERPRINTS[split]
    )


def _candidates(split: str) -> list[str]:
    stems = [split, f"{NAME}-{split}", f"{NAME}_{split}", f"{NAME}-{split}-32x32", f"{NAME}-32x32-{split}"]
    if split == "train":
        stems += ["cifar10-32x32", NAME]
    files = [f"{stem}{suffix}" for stem in stems for suffix in (".zip", ".npz")]
    return [FOLDER, ARCHIVE, *files, split]


def _from_folder(path: Path, split: str) -> ArrayImages:
    batches = {}
    for name in BATCHES[split]:
        file = path / name
        if not file.is_file():
            raise DataError(f"{path}: has no {name}. Is it complete?")
        if file.stat().st_size > _MAX_BATCH_BYTES:
            raise DataError(f"{file}: {file.stat().st_size} bytes; a batch has about 31 million. Refused.")
        batches[name] = file.read_bytes()
    return _from_batches(batches, path, split)


def _from_archive(path: Path, split: str) -> ArrayImages:
    names = {f"{FOLDER}/{name}": name for name in BATCHES[split]}
    members = _helpers.read_tar(path, names.keys(), limit=_MAX_ARCHIVE_BYTES, member_limit=_MAX_BATCH_BYTES)
    return _from_batches({names[member]: data for member, data in members.items()}, path, split)


def _from_batches(batches: dict[str, bytes], path: Path, split: str) -> ArrayImages:
    arrays, labels = [], []
    for name in BATCHES[split]:
        where = f"{path}: {name}"
        content = _helpers.read_pickle(batches[name], where)
        images, classes = content.get("data"), content.get("labels")
        if (
            not isinstance(images, np.ndarray)
            or images.shape[1:] != (math.prod(SHAPE),)
            or not isinstance(classes, list)
        ):
            raise DataError(f"{where}: expected 'data', uint8 [N, 3072], and a list 'labels'. Fetch it again.")
        arrays.append(images.reshape(-1, *SHAPE))
        labels.extend(classes)
    return ArrayImages(np.concatenate(arrays), str(path), labels)


def _download(split: str, root: Path | None) -> Path:
    try:
        return fetch(URL, _helpers.download_root(root) / NAME, md5=MD5)
    except FetchError as error:
        wanted = f"{ARCHIVE}, {FOLDER}/ or a StyleGAN zip named {split}.zip"
        raise _helpers.not_found(NAME, split, wanted=wanted, root=root, why=str(error)) from error


DATASET = Dataset(
    name=NAME,
    shape=SHAPE,
    splits=tuple(COUNTS),
    open=open_split,
    fingerprints=FINGERPRINTS,
    num_classes=10,
    citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
)
