"""The real side of every score: made once from the real images, saved, and read again without them.

A reference keeps the moments of the whole reference split in float64 (the covariance, over N - 1, as its
upper triangle), a random subset of its features, and every image of both splits in a few principal
components. Subset and sketches are rounded to float16 when the reference is made; the rounding (2^-11
relative, below the noise of any metric) is a part of the reference, so that what is saved is what was made,
bit for bit.

Images count in the order of the SHA-256 of their pixels. So the same images give the same subset from
pickles, zips or folders, whatever order these have. An `exact` reference keeps the data set's own order and does not
round, because other programs draw subsets by position: a kernel distance can equal theirs on nothing else.

The shipped references were made by `trilemma-bench reference make`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trilemma_bench import __version__, registry, stats
from trilemma_bench.errors import ProtocolError, StoreError
from trilemma_bench.images import image_digests, sum_digests
from trilemma_bench.kinds import Array, Extractor, ImageSet, Moments, Reference
from trilemma_bench.spec import Protocol, ReferenceSpec, digest
from trilemma_bench.store import replacing

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
"""progress(images done, images in all)"""

FORMAT = 1
MAX_DIMENSIONS = 16_384
"""A covariance of more has over 2 GB."""

_READ = 250
"""Images that are read at once, about."""
_FEW_COLUMNS = 8
_ARRAYS = ("features", "logits", "components", "centre", "train_sketch", "held_out_sketch")


# --- where ------------------------------------------------------------------------------------------------


def reference_name(protocol: Protocol, extractor: str) -> str:
    """File name of a reference: data set, extractor, and the key of the data, split and counts."""
    return f"{protocol.dataset}-{extractor}-{protocol.features_key[:12]}.npz"


def reference_path(protocol: Protocol, extractor: str) -> Path:
    """Where a shipped reference lies; the file exists only for what is shipped."""
    return Path(str(resources.files("trilemma_bench"))) / "references" / reference_name(protocol, extractor)


# --- making -----------------------------------------------------------------------------------------------


def make_reference(
    train: ImageSet,
    held_out: ImageSet | None,
    extractor: Extractor,
    spec: ReferenceSpec,
    progress: Progress | None = None,
) -> Reference:
    """Extract the features of the real images and keep what the metrics need.

    Features lie in a temporary file meanwhile (N x D x 4 bytes).

    Args:
        train: The reference split.
        held_out: The held-out split, or None where there is none.
        extractor: Its `features` layer is kept.
        spec: How much is kept; counts are cut to what there is.
        progress: Called with (images done, images in all) after each block.

    Raises:
        ProtocolError: Fewer than two images, shapes that differ, or features that are not finite.
    """
    sets = [train] if held_out is None else [train, held_out]
    if held_out is not None and held_out.shape != train.shape:
        raise ProtocolError(
            f"{train.name} has images of shape {list(train.shape)}, {held_out.name} of "
            f"{list(held_out.shape)}. Both splits must be of one size."
        )
    done, total = 0, sum(len(images) for images in sets)

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with tempfile.TemporaryDirectory(prefix="trilemma-reference-") as folder:
        digests = [image_digests(images) for images in sets]
        found = [
            _extract(images, rows, extractor, Path(folder, f"{index}.npy"), report, exact=spec.exact)
            for index, (images, rows) in enumerate(zip(sets, digests, strict=True))
        ]
        about = describe(sets, digests, extractor, spec)
        return reference_from_features(found[0], found[1] if held_out is not None else None, spec=spec, about=about)


def reference_from_features(
    train: Array, held_out: Array | None, *, spec: ReferenceSpec, about: Mapping[str, Any]
) -> Reference:
    """Make a reference from features that are there already.

    Args:
        train: Float [N, D], the reference split in the order of its images' digests, or in its own where `spec` is
            exact; may be mapped from a file.
        held_out: Float [N', D], the same of the held-out split, or None.
        spec: How much is kept; counts are cut to what there is.
        about: What they were made from; JSON. `extractor` (its name) and `is_inception` are read by metrics.

    Raises:
        ProtocolError: Fewer than two rows, D differs or is over MAX_DIMENSIONS, or a value is not finite.
    """
    _check_features(train, "the reference split", minimum=2)
    if held_out is not None:
        _check_features(held_out, "the held-out split", minimum=1)
        if held_out.shape[1] != train.shape[1]:
            raise ProtocolError(
                f"features of the splits have {train.shape[1]} and {held_out.shape[1]} columns. Use one extractor."
            )
    moments = stats.moments(train)
    components = principal_axes(moments.cov, min(spec.sketch_dim, len(train) - 1, train.shape[1]))
    centre = moments.mean.astype(np.float32)
    chosen = np.random.default_rng(spec.seed).permutation(len(train))[: spec.num_features]
    features = np.asarray(train[np.sort(chosen)], np.float32)
    reference = Reference(
        moments=moments,
        features=features if spec.exact else _rounded(features),
        logits=None,
        components=components,
        centre=centre,
        train_sketch=_sketch(train, centre, components),
        held_out_sketch=None if held_out is None else _sketch(held_out, centre, components),
        identity="",
        about=json.loads(json.dumps(dict(about))),
    )
    return replace(reference, identity=identity_of(reference))


def describe(
    sets: Sequence[ImageSet], digests: Sequence[Sequence[bytes]], extractor: Extractor, spec: ReferenceSpec
) -> dict[str, Any]:
    """What a reference is made from: data with fingerprints, extractor, counts, versions, command.

    Args:
        sets: The reference split, and the held-out one where there is one.
        digests: The `image_digests` of each.
        extractor: What made the features.
        spec: How much is kept.
    """
    images: list[dict[str, Any]] = [
        {"name": item.name, "count": len(item), "fingerprint": sum_digests(rows)}
        for item, rows in zip(sets, digests, strict=True)
    ]
    if spec.exact:
        # Features stay in the order of the data set, and what is drawn from them depends on it.
        for item, rows in zip(images, digests, strict=True):
            item["order"] = hashlib.sha256(b"".join(rows)).hexdigest()
    known = extractor.name in registry.names("extractor")
    command = f"trilemma-bench reference make --dataset {_dataset(sets[0])} --extractor {extractor.name}"
    return {
        "format": FORMAT,
        "train": images[0],
        "held_out": images[1] if len(images) > 1 else None,
        "image_shape": list(sets[0].shape),
        "extractor": extractor.name,
        "extractor_identity": extractor.identity,
        "verified": extractor.verified,
        "is_inception": known and registry.get("extractor", extractor.name).is_inception,
        "spec": spec.model_dump(mode="json"),
        "versions": _versions(),
        "command": command,
    }


def canonical_order(digests: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Indices that put images into the order of their digests."""
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), np.int64)


def principal_axes(cov: Float64, count: int) -> Float32:
    """The leading eigenvectors [D, count] of a covariance, each with its largest entry positive."""
    _, vectors = np.linalg.eigh(cov)
    axes = vectors[:, ::-1][:, :count]
    largest = axes[np.abs(axes).argmax(0), np.arange(count)]
    return np.ascontiguousarray((axes * np.where(largest < 0, -1.0, 1.0)).astype(np.float32))


def identity_of(reference: Reference) -> str:
    """SHA-256 over all arrays of a reference and over what it was made from."""
    content = hashlib.sha256(digest([reference.about, reference.moments.n]).encode())
    moments = {"mean": reference.moments.mean, "cov": _packed(reference.moments.cov)}
    for name, array in {**moments, **{name: getattr(reference, name) for name in _ARRAYS}}.items():
        head = None if array is None else [str(array.dtype), list(array.shape)]
        content.update(json.dumps([name, head]).encode())
        if array is not None:
            content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def check_fits(reference: Reference, *, protocol: Protocol, extractor: Extractor) -> None:
    """Refuse a reference that was made for another protocol or by another extractor.

    Raises:
        ProtocolError: Another extractor or extractor identity, image shape, split or count.
    """
    about = reference.about
    again = "Make it again with `trilemma-bench reference make`."
    if about.get("extractor_identity") != extractor.identity:
        raise ProtocolError(
            f"the reference {reference.identity[:12]} was made by {about.get('extractor')} "
            f"{str(about.get('extractor_identity'))[:12]}; this one is {extractor.name} "
            f"{extractor.identity[:12]}. {again}"
        )
    wanted = {"image_shape": list(protocol.image_shape), "spec": protocol.reference.model_dump(mode="json")}
    for key, value in wanted.items():
        if about.get(key) != value:
            raise ProtocolError(
                f"the reference {reference.identity[:12]} has {key} {about.get(key)}; {protocol.name} needs "
                f"{value}. {again}"
            )


# --- files ------------------------------------------------------------------------------------------------


def save_reference(reference: Reference, path: str | Path) -> Path:
    """Write a reference as npz, whole or not at all; what was rounded to float16 is kept as float16.

    Raises:
        StoreError: It cannot be written.
    """
    path = Path(path)
    arrays: dict[str, Array] = {
        "about": np.frombuffer(json.dumps(reference.about).encode(), np.uint8),
        "identity": np.frombuffer(reference.identity.encode(), np.uint8),
        "n": np.array(reference.moments.n, np.int64),
        "mean": reference.moments.mean,
        "cov": _packed(reference.moments.cov),
    }
    for name in _ARRAYS:
        array = getattr(reference, name)
        if array is not None:
            arrays[name] = _narrow(array)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    return path


def load_reference(path: str | Path) -> Reference:
    """Read a reference and hold it to its own digest.

    Raises:
        StoreError: No such file, not a reference, or one that was altered.
    """
    path = Path(path)
    again = "Delete it and make it again with `trilemma-bench reference make`."
    try:
        # numpy leaves a broken file open that it opened itself.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays["about"].tobytes())
        identity = arrays["identity"].tobytes().decode("ascii")
        moments = Moments(n=int(arrays["n"]), mean=arrays["mean"], cov=_unpacked(arrays["cov"], len(arrays["mean"])))
        reference = Reference(
            moments=moments,
            features=_wide(arrays["features"]),
            logits=_wide(arrays["logits"]) if "logits" in arrays else None,
            components=_wide(arrays["components"]),
            centre=_wide(arrays["centre"]),
            train_sketch=_wide(arrays["train_sketch"]),
            held_out_sketch=_wide(arrays["held_out_sketch"]) if "held_out_sketch" in arrays else None,
            identity=identity,
            about=about,
        )
        found = identity_of(reference)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such reference. Make it with `trilemma-bench reference make`.") from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise StoreError(f"{path}: not a readable reference: {error}. {again}") from error
    if found != identity:
        raise StoreError(f"{path}: its content has SHA-256 {found[:12]}..., but it says {identity[:12]}.... {again}")
    return reference


# --- other programs' statistics -----------------------------------------------------------------------------

_STATISTICS = {"inception_v3_tf_spatial": ("mu_s", "sigma_s")}
"""Names of mean and covariance in ADM's reference batches for spatial features; elsewhere `mu` and `sigma`."""
MAX_STATISTICS_BYTES = 4 * 2**30


def import_statistics(path: str | Path, extractor: Extractor) -> Reference:
    """Mean and covariance that another program saved, as a reference for Fréchet distances alone.

    Read are npz files of pytorch-fid, clean-fid and EDM (`mu`, `sigma`), ADM's reference batches (`mu`, `sigma`,
    `mu_s`, `sigma_s`, beside images that are left alone), and StyleGAN's sums (`raw_mean`, `raw_cov`, `num_items`),
    whose covariance is brought from N to N - 1. None of them says which network or resize made it, and none but the
    last the number of images: that is the caller's word, and the reference says whose file it is.

    Args:
        path: The npz file.
        extractor: What the statistics are held to be made by.

    Raises:
        StoreError: Not such a file, arrays of a wrong shape, or numbers that no covariance has.
    """
    path = Path(path)
    mean_name, cov_name = _STATISTICS.get(extractor.name, ("mu", "sigma"))
    sums = ("raw_mean", "raw_cov", "num_items")
    count = 0
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = list(file.files)
            are_sums = set(sums) <= set(names) and extractor.name not in _STATISTICS and mean_name not in names
            if are_sums:
                mean_name, cov_name, _ = sums
            elif not {mean_name, cov_name} <= set(names):
                images = " Images are data: give the file after --dataset." if names == ["arr_0"] else ""
                raise StoreError(
                    f"{path}: holds {', '.join(names) or 'nothing'}; statistics for {extractor.name} have {mean_name} "
                    f"and {cov_name}. Give an npz of pytorch-fid, clean-fid, EDM, ADM or StyleGAN.{images}"
                )
            wanted = {f"{name}.npy" for name in (mean_name, cov_name, "num_items")}
            size = sum(item.file_size for item in file.zip.infolist() if item.filename in wanted)
            if size > MAX_STATISTICS_BYTES:
                raise StoreError(f"{path}: {size} bytes of statistics; at most {MAX_STATISTICS_BYTES} are read.")
            mean, cov = (np.asarray(file[name], np.float64) for name in (mean_name, cov_name))
            count = int(file["num_items"]) if are_sums else 0
    except StoreError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        AttributeError,
    ) as error:
        raise StoreError(f"{path}: not a readable npz of statistics: {error}.") from error
    if mean.ndim != 1 or cov.shape != mean.shape * 2 or mean.size > MAX_DIMENSIONS:
        raise StoreError(
            f"{path}: {mean_name} is {list(mean.shape)} and {cov_name} {list(cov.shape)}; expected [D], [D, D]."
        )
    if are_sums:
        if count < 2:
            raise StoreError(f"{path}: num_items is {count}; a covariance is of at least 2 images.")
        mean, cov = mean / count, (cov - np.outer(mean, mean) / count) / (count - 1)
    largest = float(np.abs(cov).max(initial=0))
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()) or np.abs(cov - cov.T).max(initial=0) > 1e-6 * largest:
        raise StoreError(f"{path}: {cov_name} is not a covariance: not finite, or not symmetric.")
    if np.linalg.eigvalsh(cov)[0] < -1e-6 * largest:
        raise StoreError(f"{path}: {cov_name} is not a covariance: it has a negative eigenvalue.")
    about = {
        "format": FORMAT, "statistics": path.name, "extractor": extractor.name, "held_out": None, "train": None,
        "extractor_identity": extractor.identity, "verified": extractor.verified, "command": "imported",
        "is_inception": registry.get("extractor", extractor.name).is_inception,
    }  # fmt: skip
    none = np.zeros((0, len(mean)), np.float32)
    found = Reference(
        moments=Moments(n=count, mean=mean, cov=(cov + cov.T) / 2), features=none, logits=None,
        components=np.zeros((len(mean), 0), np.float32), centre=mean.astype(np.float32),
        train_sketch=np.zeros((0, 0), np.float32), held_out_sketch=None, identity="", about=about,
    )  # fmt: skip
    return replace(found, identity=identity_of(found))


# --- parts ------------------------------------------------------------------------------------------------


def _extract(
    images: ImageSet,
    digests: Sequence[bytes],
    extractor: Extractor,
    path: Path,
    report: Callable[[int], None],
    *,
    exact: bool,
) -> Array:
    """Features [N, D] in a file at `path`, in the order of the images' digests or, where `exact`, of the data set."""
    place = np.arange(len(digests))
    if not exact:
        place[canonical_order(digests)] = np.arange(len(digests))
    features: Array | None = None
    # Whole batches of the extractor, so that nothing is padded but the end.
    step = max(1, _READ // extractor.batch_size) * extractor.batch_size
    for start in range(0, len(images), step):
        stop = min(start + step, len(images))
        block = extractor.extract(images.read(start, stop))["features"]
        if features is None:
            shape = (len(images), block.shape[1])
            features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        features[place[start:stop]] = block
        report(stop - start)
    if features is None:
        raise ProtocolError(f"{images.name} has no images; a reference needs at least two.")
    return features


def _check_features(features: Array, what: str, *, minimum: int) -> None:
    if features.ndim != 2 or len(features) < minimum or features.dtype.kind != "f":
        raise ProtocolError(
            f"features of {what}: {features.dtype} {list(features.shape)}; a reference needs floats [N, D] "
            f"with N of at least {minimum}."
        )
    if features.shape[1] > MAX_DIMENSIONS:
        raise ProtocolError(
            f"features of {what} have {features.shape[1]} columns; a covariance of at most {MAX_DIMENSIONS} "
            "fits. Use an extractor with fewer."
        )
    for start, block in stats.blocks(features):
        finite = np.isfinite(block).all(1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ProtocolError(f"features of {what}: row {row} holds NaN or Inf. Look for broken images.")


def _sketch(features: Array, centre: Float32, components: Float32) -> Float32:
    parts = [(block.astype(np.float32) - centre) @ components for _, block in stats.blocks(features)]
    return _rounded(np.concatenate(parts))


def _rounded(array: Float32) -> Float32:
    """Rounded to float16 where its range allows; features of a few columns, such as points, stay as they are."""
    if array.shape[1] < _FEW_COLUMNS or np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        return array
    return array.astype(np.float16).astype(np.float32)


def _narrow(array: Array) -> Array:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array


def _wide(array: Array) -> Float32:
    return array.astype(np.float32)


def _symmetric(matrix: Float64) -> Float64:
    """The matrix with its lower triangle set to its upper one."""
    upper = np.triu(matrix)
    return upper + np.triu(matrix, 1).T


def _packed(matrix: Float64) -> Float64:
    return matrix[np.triu_indices(len(matrix))]


def _unpacked(values: Float64, size: int) -> Float64:
    if values.shape != (size * (size + 1) // 2,):
        raise ValueError(f"{len(values)} values are no upper triangle of {size} columns")
    upper = np.zeros((size, size))
    upper[np.triu_indices(size)] = values
    return _symmetric(upper)


def _dataset(images: ImageSet) -> str:
    """What `--dataset` calls it: the name before the split, or the path."""
    name = images.name.rpartition(":")[0]
    return name if name in registry.names("dataset") else images.name


def _versions() -> dict[str, str]:
    found = {"trilemma-bench": __version__}
    for package in ("torch", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
