from __future__ import annotations

import hashlib
import io
import json
import pickle
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma_bench import images as im
from trilemma_bench.errors import DataError, ProtocolError
from trilemma_bench.images import ArrayImages, FileImages, fingerprint, open_images, to_uint8
from trilemma_bench.kinds import Array, ImageSet, UInt8Images

RNG = np.random.default_rng(0)
RGB: UInt8Images = RNG.integers(0, 256, (7, 3, 5, 6), np.uint8)
GREY: UInt8Images = RNG.integers(0, 256, (4, 1, 5, 6), np.uint8)


def png(pixels: Array, mode: str | None = None, **options: object) -> bytes:
    """One image file of pixels [H, W] or [H, W, C]."""
    image = Image.fromarray(pixels)
    if mode is not None:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def hwc(image: UInt8Images) -> UInt8Images:
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read_all(images: ImageSet) -> UInt8Images:
    return images.read(0, len(images))


# --- the rule ---------------------------------------------------------------------------------------------


def test_to_uint8_maps_the_ends_and_rounds_to_the_nearest_level() -> None:
    levels = torch.arange(256, dtype=torch.float64)
    exact = levels / 127.5 - 1
    assert torch.equal(to_uint8(exact), levels.byte())
    assert torch.equal(to_uint8(exact + 0.49 / 127.5), levels.byte())
    assert torch.equal(to_uint8(torch.tensor([-5.0, -1.0, 1.0, 5.0])), torch.tensor([0, 0, 255, 255]).byte())
    assert torch.equal(to_uint8(torch.tensor([0.0, 0.5, 1.0]), low=0, high=1), torch.tensor([0, 128, 255]).byte())


def test_to_uint8_rounds_exact_halves_to_even() -> None:
    halves = torch.tensor([0.5, 1.5, 2.5, 127.5])
    assert to_uint8(halves, low=0, high=255).tolist() == [0, 2, 2, 128]


def test_to_uint8_is_styleganss_rule_but_for_halves() -> None:
    x = torch.from_numpy(RNG.uniform(-1.2, 1.2, 100_000))
    theirs = (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_uint8(x), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_to_uint8_takes_every_float_and_keeps_the_shape(dtype: torch.dtype) -> None:
    result = to_uint8(torch.zeros(2, 3, 4, dtype=dtype))
    assert (result.dtype, tuple(result.shape), int(result.max())) == (torch.uint8, (2, 3, 4), 128)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_to_uint8_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ProtocolError, match="1 of 3 pixel values are NaN or infinite"):
        to_uint8(torch.tensor([0.0, bad, 1.0]))


def test_to_uint8_refuses_integers() -> None:
    with pytest.raises(ProtocolError, match="takes floats"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


# --- sets -------------------------------------------------------------------------------------------------


def test_array_and_file_images_are_image_sets(tmp_path: Path) -> None:
    assert isinstance(ArrayImages(RGB, "x"), ImageSet)
    assert isinstance(open_images(im.write_png_folder(RGB, tmp_path / "a")), ImageSet)


@pytest.mark.parametrize("images", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("kind", ["png", "npz", "zip", "npy"])
def test_what_is_written_is_read_back(tmp_path: Path, images: UInt8Images, kind: str) -> None:
    labels = np.arange(len(images)) % 3
    if kind == "png":
        opened = open_images(im.write_png_folder(images, tmp_path / "x", labels))
    elif kind == "npz":
        opened = open_images(im.write_npz(images, tmp_path / "x.npz", labels))
    elif kind == "zip":
        folder = im.write_png_folder(images, tmp_path / "x", labels)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        opened = open_images(make_zip(tmp_path / "x.zip", {name: (folder / name).read_bytes() for name in names}))
    else:
        np.save(tmp_path / "x.npy", images)
        opened = open_images(tmp_path / "x.npy")
    assert opened.shape == images.shape[1:]
    assert np.array_equal(read_all(opened), images)
    assert np.array_equal(opened.read(1, 3), images[1:3])
    assert kind == "npy" or (opened.labels is not None and np.array_equal(opened.labels, labels))
    assert fingerprint(opened) == fingerprint(ArrayImages(images, "x"))


def test_over_a_thousand_images_keep_their_order(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (1003, 1, 2, 2), np.uint8)
    assert np.array_equal(read_all(open_images(im.write_png_folder(images, tmp_path / "x"))), images)


def test_png_folder_refuses_to_mix_with_older_images(tmp_path: Path) -> None:
    im.write_png_folder(RGB, tmp_path / "x")
    with pytest.raises(DataError, match="not empty"):
        im.write_png_folder(RGB[:2], tmp_path / "x")


def test_fingerprint_is_the_stated_sum_whatever_the_order() -> None:
    total = sum(int.from_bytes(hashlib.sha256(hwc(image).tobytes()).digest(), "big") for image in RGB)
    assert fingerprint(ArrayImages(RGB, "x")) == f"{total % 2**256:064x}"
    assert fingerprint(ArrayImages(RGB[::-1], "x")) == fingerprint(ArrayImages(RGB, "x"))
    assert fingerprint(ArrayImages(RGB[:-1], "x")) != fingerprint(ArrayImages(RGB, "x"))


def test_reading_beyond_the_end_is_refused() -> None:
    with pytest.raises(DataError, match=r"images 5\.\.9 were asked for; there are 7"):
        ArrayImages(RGB, "x").read(5, 9)


def test_array_images_refuse_labels_of_another_length() -> None:
    with pytest.raises(DataError, match="one integer for each of 7 images"):
        ArrayImages(RGB, "x", [1, 2])


def test_zip_images_can_be_read_in_another_process(tmp_path: Path) -> None:
    opened = open_images(make_zip(tmp_path / "x.zip", {f"{i}.png": png(hwc(RGB[i])) for i in range(3)}))
    assert np.array_equal(read_all(pickle.loads(pickle.dumps(opened))), RGB[:3])


# --- layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((9, 8, 7, 3), None, (3, 8, 7)),
        ((9, 3, 8, 7), None, (3, 8, 7)),
        ((9, 1, 28, 28), None, (1, 28, 28)),
        ((9, 28, 28), None, (1, 28, 28)),
        ((9, 3, 32, 3), "NHWC", (3, 3, 32)),
        ((9, 3, 32, 3), "NCHW", (3, 32, 3)),
        ((9, 8, 3), "NHW", (1, 8, 3)),
    ],
)
def test_layout_is_told_by_the_channels_or_stated(
    tmp_path: Path, shape: tuple[int, ...], layout: str | None, expected: tuple[int, int, int]
) -> None:
    array = RNG.integers(0, 256, shape, np.uint8)
    np.save(tmp_path / "x.npy", array)
    opened = open_images(tmp_path / "x.npy", layout)
    assert opened.shape == expected
    first = array[0][..., None] if array.ndim == 3 else array[0]
    want = first if expected == first.shape else first.transpose(2, 0, 1)
    assert np.array_equal(opened.read(0, 1)[0], want)


@pytest.mark.parametrize("shape", [(9, 3, 32, 3), (9, 32, 32, 4), (32, 32, 3), (5,), (9, 8, 8, 8)])
def test_unclear_layout_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="State the layout"):
        open_images(tmp_path / "x.npy")


def test_stated_layout_must_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((9, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match="1 or 3 channels"):
        open_images(tmp_path / "x.npy", "NCHW")
    with pytest.raises(DataError, match="no layout named 'HWC'"):
        open_images(tmp_path / "x.npy", "HWC")


@pytest.mark.parametrize(("dtype", "advice"), [("float32", "to_uint8"), ("int64", r"astype\(numpy.uint8\)")])
def test_other_dtypes_are_refused_with_advice(tmp_path: Path, dtype: str, advice: str) -> None:
    np.savez(tmp_path / "x.npz", RGB.astype(dtype))
    with pytest.raises(DataError, match=f"images are {dtype}; expected uint8. .*{advice}"):
        open_images(tmp_path / "x.npz")


# --- npz --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_guided_diffusions_npz_is_read(tmp_path: Path, save: Callable[..., None]) -> None:
    nhwc = np.ascontiguousarray(RGB.transpose(0, 2, 3, 1))
    save(tmp_path / "x.npz", nhwc, np.arange(7))
    opened = open_images(tmp_path / "x.npz")
    assert np.array_equal(read_all(opened), RGB)
    assert opened.labels is not None and opened.labels.tolist() == list(range(7))


def test_stored_npz_is_mapped_and_not_read_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=RGB, y=np.zeros(7, np.int32))
    opened = open_images(tmp_path / "x.npz")
    assert isinstance(opened, ArrayImages)
    assert isinstance(opened.array, np.memmap)


def test_fortran_order_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(RGB))
    np.savez_compressed(tmp_path / "b.npz", images=np.asfortranarray(RGB))
    np.save(tmp_path / "c.npy", np.asfortranarray(RGB))
    for name in ("a.npz", "b.npz", "c.npy"):
        assert np.array_equal(read_all(open_images(tmp_path / name)), RGB)


def test_npz_with_two_candidates_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=RGB, b=RGB)
    with pytest.raises(DataError, match=r"which array holds the images\? Found a \[7, 3, 5, 6\], b"):
        open_images(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_pickled_arrays_are_refused(tmp_path: Path, suffix: str) -> None:
    array = np.array([{"a": 1}], dtype=object)
    (np.savez if suffix == "npz" else np.save)(tmp_path / f"x.{suffix}", array)
    with pytest.raises(DataError, match="pickled Python objects, which are not read"):
        open_images(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize("suffix", ["npz", "npy", "zip"])
@pytest.mark.parametrize("part", [0, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        make_zip(path, {f"{i}.png": png(hwc(RGB[i])) for i in range(3)})
    else:
        (np.savez if suffix == "npz" else np.save)(path, RGB)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=str(path)):
        read_all(open_images(path))


def test_npy_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 3, 1000, 1000)}
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match="claims shape|needs .* bytes of data; it has 0"):
        open_images(tmp_path / "x.npy")


def test_array_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(im, "BOMB_BYTES", 10_000)
    np.savez_compressed(tmp_path / "x.npz", np.zeros((1000, 3, 16, 16), np.uint8))
    with pytest.raises(DataError, match="that unpack to"):
        open_images(tmp_path / "x.npz")


# --- files ------------------------------------------------------------------------------------------------


def test_class_subfolders_give_labels(tmp_path: Path) -> None:
    for index, name in enumerate(["cat", "dog", "cat"]):
        (tmp_path / "x" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name / f"{index}.png").write_bytes(png(hwc(RGB[index])))
    opened = open_images(tmp_path / "x")
    assert isinstance(opened, FileImages)
    assert opened.files == ["cat/0.png", "cat/2.png", "dog/1.png"]
    assert opened.labels is not None and opened.labels.tolist() == [0, 0, 1]


def test_class_subfolders_under_one_folder_give_labels(tmp_path: Path) -> None:
    files = {f"set/{name}/{i}.png": png(hwc(RGB[i])) for i, name in enumerate(["b", "a"])}
    opened = open_images(make_zip(tmp_path / "x.zip", files))
    assert opened.labels is not None and opened.labels.tolist() == [0, 1]


def test_shard_folders_are_no_classes(tmp_path: Path) -> None:
    files = {f"0000{i}/img{i}.png": png(hwc(RGB[i])) for i in range(3)}
    assert open_images(make_zip(tmp_path / "x.zip", files)).labels is None


@pytest.mark.parametrize("content", [{}, {"labels": None}])
def test_dataset_json_without_labels_gives_none(tmp_path: Path, content: dict[str, None]) -> None:
    files = {f"{name}/0.png": png(hwc(RGB[0])) for name in "ab"}
    opened = open_images(make_zip(tmp_path / "x.zip", {**files, "dataset.json": json.dumps(content).encode()}))
    assert opened.labels is None


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([["a.png", 1]], "has no label for b.png"),
        ([["a.png", 1], ["b.png", [0.5]]], "labels"),
        ([["a.png", 0.5], ["b.png", 1.0]], "one integer"),
        (5, "is not"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: object, reason: str) -> None:
    files = {f"{name}.png": png(hwc(RGB[0])) for name in "ab"}
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    with pytest.raises(DataError, match=reason):
        open_images(make_zip(tmp_path / "x.zip", files))


def test_mixed_sizes_are_refused_naming_the_file(tmp_path: Path) -> None:
    files = {"a.png": png(hwc(RGB[0])), "b.png": png(hwc(RGB[1])[:4])}
    opened = open_images(make_zip(tmp_path / "x.zip", files))
    with pytest.raises(DataError, match=r"b.png is 6 x 4 RGB, but a.png is 6 x 5 RGB\. Images are never resized"):
        read_all(opened)


def test_grey_among_rgb_is_repeated_but_rgb_among_grey_is_refused(tmp_path: Path) -> None:
    grey, colour = png(GREY[0][0]), png(hwc(RGB[0]))
    opened = open_images(make_zip(tmp_path / "a.zip", {"a.png": colour, "b.png": grey}))
    assert np.array_equal(read_all(opened), np.stack([RGB[0], GREY[0].repeat(3, 0)]))
    with pytest.raises(DataError, match="b.png is 6 x 5 RGB, but a.png is 6 x 5 grey"):
        read_all(open_images(make_zip(tmp_path / "b.zip", {"a.png": grey, "b.png": colour})))


def test_what_loses_nothing_is_converted() -> None:
    rgb, grey = hwc(RGB[0]), GREY[0][0]
    opaque = np.dstack([rgb, np.full((5, 6), 255, np.uint8)])
    few = np.ascontiguousarray(np.where(rgb > 127, 255, 0).astype(np.uint8))
    bilevel = np.where(grey > 127, 255, 0).astype(np.uint8)
    assert np.array_equal(im.decode_image(png(opaque), "x"), RGB[0])
    assert np.array_equal(im.decode_image(png(np.dstack([grey, np.full((5, 6), 255, np.uint8)])), "x")[0], grey)
    assert np.array_equal(im.decode_image(png(few, "P"), "x"), few.transpose(2, 0, 1))
    assert np.array_equal(im.decode_image(png(bilevel, "1"), "x")[0], bilevel)


def png16(colour_type: int) -> bytes:
    """A PNG of two opaque pixels by one with 16 bits a channel, of which Pillow keeps 8."""
    channels = {2: 3, 4: 2, 6: 4}[colour_type]
    row = b"\0" + b"\xff\x80" * (2 * channels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(np.dstack([hwc(RGB[0]), np.full((5, 6), 254, np.uint8)])), "transparent pixels"),
        (png(GREY[0][0], transparency=int(GREY[0][0][0, 0])), "transparent pixels"),
        (png(GREY[0][0].astype(np.uint16) * 257), "16 bits a channel"),
        (png16(2), "16 bits a channel"),
        (png16(4), "16 bits a channel"),
        (png16(6), "16 bits a channel"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
        (b"GIF89a" + bytes(100), "cannot be decoded"),
        (b"", "cannot be decoded"),
        (png(hwc(RGB[0]))[:-60], "cannot be decoded"),
    ],
    ids=[
        "alpha",
        "tRNS",
        "16 bit",
        "16 bit RGB",
        "16 bit grey and alpha",
        "16 bit RGBA",
        "head only",
        "gif",
        "empty",
        "truncated",
    ],
)  # fmt: skip
def test_other_images_are_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"^some.png: .*{reason}"):
        im.decode_image(data, "some.png")


def test_cmyk_jpeg_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(buffer, format="JPEG")
    with pytest.raises(DataError, match="mode CMYK"):
        im.decode_image(buffer.getvalue(), "x.jpg")


def test_animation_is_refused() -> None:
    buffer = io.BytesIO()
    frames = [Image.fromarray(hwc(image)) for image in RGB[:3]]
    frames[0].save(buffer, format="PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animation"):
        im.decode_image(buffer.getvalue(), "x.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize("size", [9000, 60_000])
def test_decompression_bomb_is_refused_before_it_is_decoded(size: int) -> None:
    head = size.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match="pixels"):
        im.decode_image(data, "bomb.png")


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "C:/x.png", "a\\..\\x.png"])
def test_zip_member_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": png(hwc(RGB[0])), name: png(hwc(RGB[1]))})
    with pytest.raises(DataError, match="would lie outside of the archive; refused"):
        open_images(path)


def test_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("b.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png(hwc(RGB[0])))
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="b.png is a link"):
        open_images(tmp_path / "x.zip")


def test_zip_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", png(hwc(RGB[0])))
        archive.writestr("a.png", png(hwc(RGB[1])))
    with pytest.raises(DataError, match="a.png twice"):
        open_images(tmp_path / "x.zip")


def test_zip_member_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(im, "MAX_FILE_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(100_000))
    with pytest.raises(DataError, match="100000 bytes unpacked; at most 10000"):
        open_images(tmp_path / "x.zip")


def test_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(hwc(RGB[0])))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(png(hwc(RGB[0])))
    (tmp_path / "x" / "b.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="b.png: a link to"):
        open_images(tmp_path / "x")


def test_linked_folder_is_refused_and_not_skipped(tmp_path: Path) -> None:
    im.write_png_folder(RGB, tmp_path / "real")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "more").symlink_to(tmp_path / "real")
    with pytest.raises(DataError, match="more: a link to"):
        open_images(tmp_path / "x")


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    files = {"a.png": png(hwc(RGB[0])), "__MACOSX/._a.png": b"x", ".hidden.png": b"x", "fid.txt": b"x"}
    assert len(open_images(make_zip(tmp_path / "x.zip", files))) == 1


@pytest.mark.parametrize(("name", "reason"), [("a.tif", "format that is not read"), ("a.txt", "no images found")])
def test_folder_without_readable_images_says_so(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=reason):
        open_images(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "nothing.zip", "nothing.npz"])
def test_missing_path_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: no such file or folder"):
        open_images(tmp_path / name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(b"x")
    with pytest.raises(DataError, match="expected a folder, .zip, .npz or .npy of images; got .mat"):
        open_images(tmp_path / "x.mat")


def test_lossy_formats_are_known(tmp_path: Path) -> None:
    Image.fromarray(hwc(RGB[0])).save(tmp_path / "a.jpg")
    opened = open_images(tmp_path)
    assert isinstance(opened, FileImages) and opened.lossy
    assert not ArrayImages(RGB, "x").lossy


def test_importing_images_imports_no_torch() -> None:
    code = "import sys, trilemma_bench.images; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_npy_file_whose_head_has_no_end_is_refused(tmp_path: Path) -> None:
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 3, 4, 4".ljust(117) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(48))
    with pytest.raises(DataError, match="x.npy"):
        open_images(tmp_path / "x.npy")


def test_an_encrypted_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=RGB)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DataError, match="x.npz: not a readable npz"):
        open_images(tmp_path / "x.npz")
