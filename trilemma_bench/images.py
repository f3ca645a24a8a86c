"""The one float -> uint8 rule, and images in and out: folders, zips, npz and npy files.

Pixels are never resized, and never converted where something would be lost. What is read as it is: 8-bit grey
and 8-bit RGB. What is converted because nothing is lost: palettes without transparency (to RGB), bilevel
images (to grey 0 and 255), an alpha channel that is 255 everywhere (dropped), grey images in a set whose
first image is RGB (repeated to three channels). All else is refused by name: real transparency, 16 bits,
CMYK, sizes that differ. Files come from anywhere, so they are data: nothing is unpickled, nothing is
extracted to disk, names that lead out of an archive or a folder are refused, and sizes are checked before
anything is decoded.

Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from trilemma_bench.errors import DataError, ProtocolError
from trilemma_bench.kinds import Array, ImageSet, Shape, UInt8Images
from trilemma_bench.store import replacing

if TYPE_CHECKING:
    import torch

Layout = Literal["NCHW", "NHWC", "NHW"]
Labels = npt.NDArray[np.int64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Image files that are read."""
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 64 * 2**20
"""Largest encoded image file."""
MAX_PIXELS = 2**26
"""Largest image: 8192 x 8192."""
MAX_JSON_BYTES = 512 * 2**20
MAX_ARRAY_BYTES = 256 * 2**30
"""Largest array in an npz or npy file; uncompressed ones are memory-mapped."""
BOMB_BYTES, BOMB_RATIO = 2**30, 100
"""A compressed array over BOMB_BYTES may be at most BOMB_RATIO times its file: pictures never pack better."""

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_OTHER_IMAGES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".exr", ".ppm", ".pgm", ".tga")
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)
_BLOCK = 1000


# --- the rule ---------------------------------------------------------------------------------------------


def to_uint8(x: torch.Tensor, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    """Floats in low..high to grey levels: scaled to 0..255, clamped, rounded half to even.

    For low=-1, high=1 this is clamp((x + 1) * 127.5, 0, 255).round(), as the DDPM family saves its samples.
    StyleGAN's own rule, clamp(x * 127.5 + 128, 0, 255) cut off to whole numbers, is the same but for exact
    halves: floor(x * 127.5 + 128) = floor((x * 127.5 + 127.5) + 0.5) rounds them up, this rule to the even
    level.

    Args:
        x: Floating point, any shape and device; half precisions are scaled in float32.
        low: The value that becomes 0.
        high: The value that becomes 255.

    Returns:
        uint8 of the same shape and device.

    Raises:
        ProtocolError: x is not of floating point, or holds NaN or infinity.
    """
    if not x.is_floating_point():
        raise ProtocolError(f"to_uint8 takes floats in {low:g}..{high:g}; got {x.dtype}. uint8 needs no conversion.")
    if x.element_size() < 4:
        x = x.float()
    bad = int((~x.isfinite()).sum())
    if bad:
        raise ProtocolError(
            f"{bad} of {x.numel()} pixel values are NaN or infinite. The network overflowed "
            "(try --dtype float32) or its weights are broken."
        )
    return ((x - low) * (255.0 / (high - low))).clamp(0, 255).round().byte()


# --- sets of images ---------------------------------------------------------------------------------------


class ArrayImages:
    """An ImageSet over an array in memory or mapped from a file.

    Args:
        array: uint8 [N, C, H, W]; any strides, so that a transposed view of an NHWC file serves as it is.
        name: Where the images come from.
        labels: Integers [N], or None.

    Raises:
        DataError: Another dtype or shape, or labels of another length.
    """

    lossy = False

    def __init__(self, array: Array, name: str, labels: Sequence[int] | Array | None = None) -> None:
        if array.dtype != np.uint8:
            raise DataError(_not_uint8(name, array.dtype))
        if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
            raise DataError(f"{name}: shape {list(array.shape)}; expected [N, C, H, W] with 1 or 3 channels.")
        self.array = array
        self.name = name
        self.shape: Shape = (array.shape[1], array.shape[2], array.shape[3])
        self.labels = None if labels is None else _checked_labels(labels, len(array), name)

    def __len__(self) -> int:
        return len(self.array)

    def read(self, start: int, stop: int) -> UInt8Images:
        """Images start..stop-1 as uint8 [stop - start, C, H, W], C-contiguous."""
        _check_range(self, start, stop)
        return np.ascontiguousarray(self.array[start:stop])


class FileImages:
    """An ImageSet over image files in a folder or zip, in the order of their names, decoded when read.

    The first image fixes the shape; each other one is held to it when it is read.

    Args:
        path: Folder or zip file.
        subfolder: Only the images under this folder of it; labels are then relative to it.

    Attributes:
        files: Names of the images, relative, with forward slashes, sorted.
        lossy: Whether any of them is a JPEG or WebP, whose pixels are not those that were compressed.
        labels: From dataset.json (StyleGAN's layout: {"labels": [[file, class], ...]}), else the index of the
            class subfolder in sorted order where every image lies in one of at least two, else None. Folders
            named by five digits are StyleGAN's shards, not classes.

    Raises:
        DataError: No images, a name or link that leads out of `path`, a broken or oversized file, labels that
            do not fit, and when reading: an image of another size or of a mode that cannot be taken without
            loss.
    """

    def __init__(self, path: str | Path, subfolder: str | None = None) -> None:
        self._source = _ZipSource(Path(path)) if Path(path).is_file() else _FolderSource(Path(path))
        self._prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        self.name = f"{path}/{self._prefix}".rstrip("/") if subfolder else str(path)
        inside = [name[len(self._prefix) :] for name in self._source.names if name.startswith(self._prefix)]
        visible = [name for name in inside if not _is_hidden(name)]
        self.files = sorted(name for name in visible if name.lower().endswith(SUFFIXES))
        other = next((name for name in sorted(visible) if name.lower().endswith(_OTHER_IMAGES)), None)
        if other is not None:
            raise DataError(
                f"{self.name}: {other} is of a format that is not read. Save the images as PNG; read are "
                f"{', '.join(SUFFIXES)}."
            )
        if not self.files:
            raise DataError(f"{self.name}: no images found. Expected files that end in {', '.join(SUFFIXES)}.")
        self.lossy = any(name.lower().endswith(LOSSY_SUFFIXES) for name in self.files)
        self.shape: Shape = _shape(self._decode(0))
        self.labels = self._json_labels() if "dataset.json" in inside else self._folder_labels()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, start: int, stop: int) -> UInt8Images:
        """Images start..stop-1 as uint8 [stop - start, C, H, W]."""
        _check_range(self, start, stop)
        images = np.empty((stop - start, *self.shape), np.uint8)
        for row, index in enumerate(range(start, stop)):
            image = self._decode(index)
            if image.shape[1:] != self.shape[1:] or image.shape[0] > self.shape[0]:
                raise DataError(
                    f"{self.name}: {self.files[index]} is {_size(image.shape)}, but {self.files[0]} is "
                    f"{_size(self.shape)}. Images are never resized here: give all one size and one mode."
                )
            images[row] = image
        return images

    def _decode(self, index: int) -> UInt8Images:
        file = self.files[index]
        return decode_image(self._source.read(self._prefix + file, MAX_FILE_BYTES), f"{self.name}: {file}")

    def _json_labels(self) -> Labels | None:
        where = f"{self.name}: dataset.json"
        try:
            content = json.loads(self._source.read(f"{self._prefix}dataset.json", MAX_JSON_BYTES))
            pairs = content.get("labels")
            table = None if pairs is None else {str(file): label for file, label in dict(pairs).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f'{where} is not {{"labels": [[file, class], ...]}}: {error}.') from error
        if not table:
            return None
        missing = next((file for file in self.files if file not in table), None)
        if missing is not None:
            raise DataError(f"{where} has no label for {missing}. Give every image one, or set labels to null.")
        return _checked_labels([table[file] for file in self.files], len(self.files), where)

    def _folder_labels(self) -> Labels | None:
        parts = [PurePosixPath(file).parts[:-1] for file in self.files]
        # One folder around all of it, as archives often have, tells nothing.
        depth = 0
        while all(len(part) > depth for part in parts) and len({part[depth] for part in parts}) == 1:
            depth += 1
        if not all(len(part) > depth for part in parts):
            return None
        folders = sorted({part[depth] for part in parts})
        if all(len(folder) == 5 and folder.isdigit() for folder in folders):
            return None
        index = {folder: label for label, folder in enumerate(folders)}
        return np.array([index[part[depth]] for part in parts], np.int64)


def open_images(path: str | Path, layout: str | None = None, *, subfolder: str | None = None) -> ImageSet:
    """Open finished images: a folder or zip of image files, an .npz, or an .npy.

    An .npz holds the images as `images`, `arr_0` (guided-diffusion's samples), `samples`, `x`, or as its only
    array of three or four dimensions, and optional integer labels [N] as `labels`, `label`, `arr_1` or `y`.

    Args:
        path: Where they are.
        layout: NCHW, NHWC or NHW (grey), for arrays whose shape leaves it open.
        subfolder: For folders and zips: only the images under this folder.

    Returns:
        Images that are read when they are asked for; arrays are mapped where the file is not compressed.

    Raises:
        DataError: Nothing there, not uint8, an unclear layout, anything that `FileImages` refuses.
    """
    path = Path(path)
    if layout not in (None, "NCHW", "NHWC", "NHW"):
        raise DataError(f"no layout named {layout!r}. There are NCHW, NHWC, NHW.")
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        if layout is not None:
            raise DataError(f"{path}: a layout is for .npz and .npy; image files have their own. Leave it out.")
        return FileImages(path, subfolder)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder.")
    if path.suffix.lower() == ".npz":
        return _open_npz(path, layout)
    if path.suffix.lower() == ".npy":
        return _from_array(_map_npy(path), str(path), layout, None)
    raise DataError(f"{path}: expected a folder, .zip, .npz or .npy of images; got {path.suffix or 'no suffix'}.")


def top_folders(path: str | Path, below: str = "") -> set[str]:
    """Names of the folders, but for hidden ones, in a folder or a zip or its folder `below`; none for other files."""
    path = Path(path)
    found: set[str] = set()
    if path.is_dir():
        found = {item.name for item in (path / below).iterdir() if item.is_dir()}
    elif path.is_file() and path.suffix.lower() == ".zip":
        prefix = f"{below}/" if below else ""
        inside = [name[len(prefix) :] for name in _ZipSource(path).names if name.startswith(prefix)]
        found = {name.split("/", 1)[0] for name in inside if "/" in name}
    return {name for name in found if not _is_hidden(name)}


def blocks(images: ImageSet, size: int = _BLOCK) -> Iterator[Array]:
    """All images in order, `size` at a time: uint8 [<= size, C, H, W]; points float64 [<= size, D]."""
    for start in range(0, len(images), size):
        yield images.read(start, min(start + size, len(images)))


def image_digests(images: ImageSet) -> list[bytes]:
    """SHA-256 (32 bytes) of each image's raw bytes in height, width, channel order (grey: height, width).

    Of a point it is that of its float64 coordinates.
    """
    digests: list[bytes] = []
    for block in blocks(images):
        rows = block if block.ndim == 2 else block.transpose(0, 2, 3, 1)
        rows = np.ascontiguousarray(rows).reshape(len(block), -1)
        digests.extend(hashlib.sha256(row.data).digest() for row in rows)
    return digests


def fingerprint(images: ImageSet) -> str:
    """64 hex digits that name a set of images whatever their order and file format.

    The sum modulo 2^256 of the SHA-256 of each image's raw bytes (see `image_digests`).
    """
    return sum_digests(image_digests(images))


def sum_digests(digests: Iterable[bytes]) -> str:
    """The fingerprint of images whose digests are known already."""
    return f"{sum(int.from_bytes(digest, 'big') for digest in digests) % 2**256:064x}"


def decode_image(data: bytes, where: str) -> UInt8Images:
    """Decode one image file to uint8 [C, H, W], C of 1 or 3, by the rule at the head of this module.

    Args:
        data: The encoded file.
        where: Its name, for errors.

    Raises:
        DataError: Not a PNG, JPEG, BMP or WebP, broken, too large, animated, or of a mode that loses
            something.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(f"{where}: {width} x {height} pixels; at most {MAX_PIXELS} are read.")
                if getattr(image, "n_frames", 1) != 1:
                    raise DataError(f"{where}: an animation. Save its frames as images.")
                if image.format == "PNG" and data[24] > 8:
                    # Pillow opens such files of several channels in 8 bits, by cutting off the rest.
                    raise DataError(f"{where}: {data[24]} bits a channel. Save it as 8-bit RGB or grey.")
                pixels = _lossless(image, where)
    except DataError:
        raise
    except _DECODE_ERRORS as error:
        reason = str(error).replace("<_io.BytesIO object", "<file")
        raise DataError(f"{where}: cannot be decoded: {reason}. Is the file complete?") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _lossless(image: Image.Image, where: str) -> UInt8Images:
    """Pixels as uint8 [H, W] or [H, W, 3]."""
    mode = image.mode
    if "transparency" in image.info:
        image, mode = image.convert("RGBA"), "RGBA"
    if mode in ("RGBA", "LA"):
        pixels = np.array(image)
        if (pixels[..., -1] != 255).any():
            raise DataError(f"{where}: has transparent pixels. Put it on a background and save it as RGB.")
        return pixels[..., 0] if mode == "LA" else pixels[..., :3]
    if mode in ("1", "P"):
        image = image.convert("L" if mode == "1" else "RGB")
    elif mode not in ("L", "RGB"):
        raise DataError(f"{where}: mode {mode} would lose something in 8 bits. Save it as 8-bit RGB or grey.")
    return np.array(image)


# --- writing ----------------------------------------------------------------------------------------------


def write_png_folder(images: ImageSet | UInt8Images, path: str | Path, labels: Array | None = None) -> Path:
    """Write images as PNG in StyleGAN's layout: `00000/img00000000.png` ..., and dataset.json for labels.

    Args:
        images: An ImageSet, or uint8 [N, C, H, W].
        path: A folder that is new or empty, so that no older images stay among them.
        labels: Integers [N]; by default those of the image set.

    Returns:
        The folder.

    Raises:
        DataError: The folder is not empty.
    """
    images = _as_images(images, labels)
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: not empty. Give a new folder, so that old images do not mix with these.")
    names = [f"{index // 1000:05d}/img{index:08d}.png" for index in range(len(images))]
    for start in range(0, len(images), 1000):
        block = images.read(start, min(start + 1000, len(images)))
        (path / names[start]).parent.mkdir(parents=True)
        for name, image in zip(names[start : start + 1000], block, strict=True):
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(pixels)).save(path / name)
    if images.labels is not None:
        pairs = [[name, int(label)] for name, label in zip(names, images.labels, strict=True)]
        (path / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return path


def write_grid(path: str | Path | IO[bytes], images: UInt8Images, columns: int = 8) -> None:
    """One PNG of images uint8 [N, C, H, W] side by side, `columns` in a row, without gaps."""
    pixels = sheet(images, columns)
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(path, format="PNG")


def sheet(images: UInt8Images, columns: int = 8) -> UInt8Images:
    """Images uint8 [N, C, H, W] side by side, `columns` in a row: uint8 [rows * H, columns * W, C].

    A last row that is not full ends in black.
    """
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    full = np.zeros((rows * columns, channels, height, width), np.uint8)
    full[:count] = images
    full = full.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return full.reshape(rows * height, columns * width, channels)


def whole_rows(images: UInt8Images, columns: int) -> UInt8Images:
    """As many of `images` as fill rows of `columns`; all of them where there are fewer than one row takes."""
    return images[: len(images) // columns * columns or len(images)]


def write_npz(images: ImageSet | UInt8Images, path: str | Path, labels: Array | None = None) -> Path:
    """Write images as guided-diffusion does: `arr_0` uint8 [N, H, W, C], and for labels `arr_1` int64 [N].

    The file appears whole or not at all.

    Returns:
        The path.

    Raises:
        StoreError: It cannot be written.
    """
    images = _as_images(images, labels)
    path = Path(path)
    arrays: dict[str, Array] = {"arr_0": np.concatenate([block.transpose(0, 2, 3, 1) for block in blocks(images)])}
    if images.labels is not None:
        arrays["arr_1"] = images.labels
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    return path


# --- arrays -----------------------------------------------------------------------------------------------


def _open_npz(path: Path, layout: str | None) -> ImageSet:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            headers = {name: _npy_header(archive, info, path) for name, info in members.items()}
            key = _images_key(path, headers)
            array = _read_member(archive, members[key], headers[key], path)
            label_key = next((name for name in ("labels", "label", "arr_1", "y") if name in headers), None)
            labels = None
            if label_key is not None:
                labels = _read_member(archive, members[label_key], headers[label_key], path)
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,  # encrypted, or compressed in a way that Python does not know
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
        MemoryError,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable npz file: {error}. Is it complete?") from error
    return _from_array(array, str(path), layout, labels)


def _images_key(path: Path, headers: dict[str, _Header]) -> str:
    named: list[str] = [name for name in ("images", "arr_0", "samples", "x") if name in headers]
    candidates = named[:1] or [name for name, header in headers.items() if len(header.shape) in (3, 4)]
    if len(candidates) != 1:
        found = ", ".join(f"{name} {list(header.shape)}" for name, header in headers.items())
        raise DataError(f"{path}: which array holds the images? Found {found or 'none'}. Name it 'images'.")
    return candidates[0]


class _Header:
    """What the head of an npy file says: shape, dtype, order, and where in the file the data begin."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        start = file.tell()
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"{where}: npy version {version}; versions 1.0 and 2.0 are read.")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            self.shape, self.fortran, self.dtype = read(file)
        except tokenize.TokenError as error:
            raise DataError(
                f"{where}: the head of the npy file is broken: {error}. Save it with numpy.save."
            ) from error
        self.length = file.tell() - start
        if self.dtype.hasobject:
            raise DataError(f"{where}: holds pickled Python objects, which are not read. Save a uint8 array.")
        count = 1
        for size in self.shape:
            count *= int(size)
        self.num_bytes = count * self.dtype.itemsize
        if min(self.shape, default=0) < 0 or self.num_bytes > MAX_ARRAY_BYTES:
            raise DataError(f"{where}: claims shape {list(self.shape)}, {self.num_bytes} bytes; refused.")


def _npy_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Header:
    where = f"{path}: {info.filename}"
    with archive.open(info) as file:
        header = _Header(file, where)
    if header.length + header.num_bytes != info.file_size:
        raise DataError(
            f"{where}: shape {list(header.shape)} needs {header.num_bytes} bytes; it has "
            f"{info.file_size - header.length}. Is the file complete?"
        )
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        raise DataError(f"{where}: {info.compress_size} bytes that unpack to {info.file_size}; refused.")
    return header


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: _Header, path: Path) -> Array:
    """An array of an npz: mapped where it is stored as it is, else unpacked into memory."""
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    if info.compress_type == zipfile.ZIP_STORED and header.num_bytes:
        offset = _data_offset(path, info) + header.length
        return np.memmap(path, header.dtype, "r", offset, header.shape, order)
    with archive.open(info) as file:
        file.read(header.length)
        data = file.read(header.num_bytes)
    return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    # The local header repeats the name and may have another extra field than the directory: APPNOTE 4.3.7.
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(30)
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise DataError(f"{path}: {info.filename} has no local header. Is the file complete?")
    name_length, extra_length = struct.unpack("<HH", head[26:30])
    return int(info.header_offset + 30 + name_length + extra_length)


def _map_npy(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            header = _Header(file, str(path))
        found = path.stat().st_size - header.length
        if found < header.num_bytes:
            raise DataError(f"{path}: needs {header.num_bytes} bytes of data; it has {found}. Is it complete?")
        order: Literal["F", "C"] = "F" if header.fortran else "C"
        if not header.num_bytes:
            return np.empty(header.shape, header.dtype)
        return np.memmap(path, header.dtype, "r", header.length, header.shape, order)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable npy file: {error}.") from error


def _from_array(array: Array, name: str, layout: str | None, labels: Array | None) -> ArrayImages:
    if array.dtype != np.uint8:
        raise DataError(_not_uint8(name, array.dtype))
    layout = layout or _guess_layout(array.shape, name)
    if array.ndim != len(layout):
        raise DataError(f"{name}: shape {list(array.shape)} is not {layout}.")
    if layout == "NHW":
        array = array[:, None]
    elif layout == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    return ArrayImages(array, name, labels)


def _guess_layout(shape: tuple[int, ...], name: str) -> Layout:
    if len(shape) == 3 and not {1, 3}.intersection(shape[1:]):
        return "NHW"
    first, last = len(shape) == 4 and shape[1] in (1, 3), len(shape) == 4 and shape[3] in (1, 3)
    if first == last:
        found = "may be NCHW or NHWC" if first else "is no clear stack of images"
        raise DataError(
            f"{name}: shape {list(shape)} {found}. State the layout (NCHW, NHWC, or NHW for grey); channels are 1 or 3."
        )
    return "NCHW" if first else "NHWC"


def _not_uint8(name: str, dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        advice = "Convert floats with trilemma_bench.images.to_uint8, which asks for their range"
    else:
        advice = "Save grey levels 0..255 with .astype(numpy.uint8)"
    return f"{name}: images are {dtype}; expected uint8. {advice}."


# --- folders and zips -------------------------------------------------------------------------------------


class _FolderSource:
    """Files under a folder, by relative name."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder.")
        self._path = path
        root = path.resolve()
        self.names = []
        for folder, folders, files in os.walk(path, followlinks=False):
            for item in [*folders, *files]:
                place = Path(folder, item)
                if not place.is_symlink():
                    continue
                # A linked folder is not walked into, so its images would be missing without a word.
                if item in folders or not place.resolve().is_relative_to(root):
                    raise DataError(f"{place}: a link to {os.readlink(place)}. Give the folder that it points to.")
            self.names += [Path(folder, file).relative_to(path).as_posix() for file in files]

    def read(self, name: str, limit: int) -> bytes:
        place = self._path / name
        try:
            size = place.stat().st_size
            if size > limit:
                raise DataError(f"{place}: {size} bytes; at most {limit} are read.")
            return place.read_bytes()
        except OSError as error:
            raise DataError(f"{place}: cannot be read: {error}.") from error


class _ZipSource:
    """Files in a zip, by name; read in memory, opened anew in each process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = -1
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._opened().infolist():
            if info.is_dir():
                continue
            check_member_name(info.filename, str(path))
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{path}: {info.filename} is a link; archives with links are refused.")
            if info.filename in self._members:
                raise DataError(f"{path}: holds {info.filename} twice; which one counts? Pack it anew.")
            self._members[info.filename] = info
        self.names = list(self._members)

    def read(self, name: str, limit: int) -> bytes:
        info = self._members[name]
        where = f"{self._path}: {name}"
        if info.file_size > limit:
            raise DataError(f"{where}: {info.file_size} bytes unpacked; at most {limit} are read.")
        try:
            with self._opened().open(info) as file:
                return file.read(limit)
        except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error) as error:
            raise DataError(f"{where}: cannot be read: {error}. Is the file complete?") from error
        except zipfile.BadZipFile as error:
            raise DataError(f"{where}: cannot be read: {error}. Is the file complete?") from error

    def _opened(self) -> zipfile.ZipFile:
        # Processes must not share a file position.
        if self._archive is None or self._process != os.getpid():
            try:
                self._archive = zipfile.ZipFile(self._path)
            except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
                raise DataError(f"{self._path}: not a readable zip: {error}. Is the file complete?") from error
            self._process = os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


def check_member_name(name: str, archive: str) -> None:
    """Refuse the name of an archive's member that would lead out of it.

    Raises:
        DataError: The name is absolute, has a drive or a backslash, or a `..` in it.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.split("/")[0] or "\0" in name:
        raise DataError(f"{archive}: the member {name!r} would lie outside of the archive; refused.")


# --- small things -----------------------------------------------------------------------------------------


def _as_images(images: ImageSet | UInt8Images, labels: Array | None) -> ImageSet:
    if isinstance(images, np.ndarray):
        return ArrayImages(images, "images", labels)
    if labels is None:
        return images
    return ArrayImages(np.concatenate(list(blocks(images))), images.name, labels)


def _checked_labels(labels: Sequence[int] | Array, count: int, where: str) -> Labels:
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise DataError(f"{where}: labels are not one integer an image: {error}.") from error
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise DataError(
            f"{where}: labels are {array.dtype} {list(array.shape)}; expected one integer for each of {count} images."
        )
    return array.astype(np.int64)


def _check_range(images: ImageSet, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= len(images):
        raise DataError(f"{images.name}: images {start}..{stop} were asked for; there are {len(images)}.")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _shape(image: UInt8Images) -> tuple[int, int, int]:
    channels, height, width = image.shape
    return channels, height, width


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]} {'grey' if shape[0] == 1 else 'RGB'}"
