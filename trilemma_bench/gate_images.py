"""The images, or points, of expectations: written, read, found again among kept samples, compared. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trilemma_bench.errors import DataError, StoreError, UsageError
from trilemma_bench.gate import Expectation, ImageDifference
from trilemma_bench.images import open_images, write_npz
from trilemma_bench.kinds import Array, is_points
from trilemma_bench.points import open_points
from trilemma_bench.record import ResultRecord
from trilemma_bench.store import image_seeds, kept_images, sha256, write_atomic


def compare(found: Array, expected: Array, seeds: npt.NDArray[np.int64]) -> ImageDifference:
    """The difference of two sets of images, uint8 [N, C, H, W], or of points, float64 [N, D], N >= 1, with their seeds.

    A coordinate that is not a number is infinitely far from all others.

    Raises:
        UsageError: The shapes differ.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise UsageError(
            f"the model makes images {found.dtype} {list(found.shape)}; the expectation holds {expected.dtype} "
            f"{list(expected.shape)}. Make it again with `trilemma-bench expect make`."
        )
    with np.errstate(invalid="ignore"):
        distance = np.abs(found.astype(np.float64) - expected)
    distance[np.isnan(distance)] = np.inf
    of_each = distance.reshape(len(distance), -1).mean(1)
    return ImageDifference(
        count=len(found), largest=float(distance.max()), differing=float((distance > 0).mean()),
        mean=float(distance.mean()), worst_seed=int(seeds[int(of_each.argmax())]),
    )  # fmt: skip


def write_images(items: Array, path: Path) -> None:
    """Write images, uint8 [N, C, H, W], or points, float64 [N, D], as npz."""
    if not is_points(items.shape[1:]):
        write_npz(items, path)
        return
    stream = io.BytesIO()
    np.savez_compressed(stream, points=items)
    write_atomic(path, stream.getvalue())


def expected_images(expectation: Expectation, path: Path) -> Array:
    """What lies beside the expectation at `path`: images, uint8 [N, C, H, W], or points, float64 [N, D].

    Raises:
        StoreError: They cannot be read, or are not the ones that it names.
    """
    wanted = expectation.images
    assert wanted is not None
    file = path.parent / Path(wanted.file).name
    try:
        images = open_points(file) if is_points(expectation.spec.protocol.image_shape) else open_images(file)
        found = images.read(0, len(images))
    except DataError as error:
        raise StoreError(f"{file}: the images of {path.name} cannot be read: {error}") from error
    if sha256(found) != wanted.sha256 or len(found) != len(wanted.seeds):
        raise StoreError(
            f"{file}: not the images that {path.name} names (their SHA-256 begins {sha256(found)[:12]}, expected "
            f"{wanted.sha256[:12]}). Restore both files, or make them again with `trilemma-bench expect make`."
        )
    return found


def of_records(
    expectation: Expectation, path: Path, records: Sequence[ResultRecord], cache: Path
) -> ImageDifference | None:
    """How far the kept samples of run 0 lie from an expectation's images; None where none are kept.

    Args:
        expectation: What the records are held against.
        path: Its file, beside which its images lie.
        records: Of its model; only samples under their keys are looked for.
        cache: Where samples are kept.

    Raises:
        StoreError: The expectation's images are not there, or altered.
        UsageError: The samples are of another shape.
    """
    if expectation.images is None:
        return None
    expected = expected_images(expectation, path)
    for key in dict.fromkeys(record.samples_key for record in records if record.spec.seed == 0):
        found = kept_images(key, 0, len(expected), cache / "samples" / key[:2])
        if found is not None:
            count = min(len(found), len(expected))
            return compare(found[:count], expected[:count], image_seeds(0, 0, count))
    return None
