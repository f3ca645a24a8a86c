from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trilemma_bench import fetch, registry
from trilemma_bench.data import _helpers, cifar10, image_folder, mnist, stackedmnist
from trilemma_bench.errors import DataError
from trilemma_bench.images import ArrayImages, fingerprint, write_npz, write_png_folder
from trilemma_bench.kinds import ImageSet, UInt8Images


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(fetch, "_require_network", refuse)


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> UInt8Images:
    """The data set cut to 5 x 4 training and 4 test images, so that its formats are quick to write."""
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), np.uint8)
    prints = {"train": fingerprint(ArrayImages(images[:20], "")), "test": fingerprint(ArrayImages(images[20:], ""))}
    monkeypatch.setattr(cifar10, "FINGERPRINTS", prints)
    monkeypatch.setattr(cifar10, "COUNTS", {"train": 20, "test": 4})
    return images


def batch(images: UInt8Images, start: int) -> dict[bytes, Any]:
    data = np.ascontiguousarray(images[start : start + 4].reshape(4, 3072))
    return {b"batch_label": b"b", b"labels": [1, 2, 3, 4], b"data": data, b"filenames": [b"x.png"] * 4}


def write_batches(folder: Path, images: UInt8Images, protocol: int = 2) -> Path:
    folder = folder / cifar10.FOLDER
    folder.mkdir(parents=True)
    for index, name in enumerate([*cifar10.BATCHES["train"], *cifar10.BATCHES["test"]]):
        (folder / name).write_bytes(pickle.dumps(batch(images, 4 * index), protocol=protocol))
    return folder


def write_tar(path: Path, folder: Path, *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for item in extra:
            archive.addfile(item, io.BytesIO(bytes(item.size if item.isreg() else 0)))
        archive.add(folder, arcname=folder.name)
    return path


def check_both_splits(images: UInt8Images, root: Path) -> None:
    for split, expected in (("train", images[:20]), ("test", images[20:])):
        opened = cifar10.open_split(split, root)
        assert isinstance(opened, ImageSet)
        assert (opened.name, opened.shape) == (f"cifar10:{split}", (3, 32, 32))
        assert np.array_equal(opened.read(0, len(opened)), expected)
        assert opened.labels is not None and opened.labels.tolist() == [1, 2, 3, 4] * (len(expected) // 4)


# --- real data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_real_test_split_has_the_published_fingerprint(data_root: Path, cifar10_test: ImageSet, name: str) -> None:
    dataset = registry.get("dataset", name)
    images = cifar10_test if name == "cifar10" else dataset.open("test", data_root)
    assert (len(images), images.shape) == (10_000, dataset.shape)
    assert fingerprint(images) == dataset.fingerprints["test"]
    assert images.labels is not None and np.bincount(images.labels).min() >= 800


def test_real_images_written_as_pickles_are_read_the_same(cifar10_test: ImageSet, tmp_path: Path) -> None:
    images = cifar10_test
    assert images.labels is not None
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    content = {"data": images.read(0, 10_000).reshape(-1, 3072), "labels": images.labels.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    again = cifar10.open_split("test", tmp_path)
    assert np.array_equal(again.read(0, 10_000), images.read(0, 10_000))


# --- forms of CIFAR-10 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["", "cifar10"])
def test_pickles_of_every_protocol_are_read(
    small_cifar: UInt8Images, tmp_path: Path, protocol: int, place: str
) -> None:
    write_batches(tmp_path / place, small_cifar, protocol)
    check_both_splits(small_cifar, tmp_path)


def test_pickle_of_python_2_is_read(small_cifar: UInt8Images) -> None:
    # Python 2 wrote str as BINSTRING and named numpy.core; made by hand, as pickle.dumps no longer can.
    raw = small_cifar[:1].tobytes()
    data = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
        b"U\x01b\x87Rq\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", len(raw))
        + raw
        + b"tbU\x06labelsq\x08]q\x09K\x07au."
    )
    content = _helpers.read_pickle(data, "x")
    assert content["labels"] == [7]
    assert np.array_equal(content["data"].reshape(1, 3, 32, 32), small_cifar[:1])


def test_archive_is_read_in_memory(small_cifar: UInt8Images, tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "made", small_cifar)
    (tmp_path / "root").mkdir()
    write_tar(tmp_path / "root" / cifar10.ARCHIVE, folder)
    check_both_splits(small_cifar, tmp_path / "root")
    assert [item.name for item in (tmp_path / "root").iterdir()] == [cifar10.ARCHIVE]


@pytest.mark.parametrize("form", ["folder", "zip", "npz"])
def test_other_forms_are_read(small_cifar: UInt8Images, tmp_path: Path, form: str) -> None:
    labels = np.tile([1, 2, 3, 4], 5)
    for split, images in (("train", small_cifar[:20]), ("test", small_cifar[20:])):
        if form == "npz":
            write_npz(images, tmp_path / "cifar10" / f"{split}.npz", labels[: len(images)])
            continue
        folder = write_png_folder(images, tmp_path / "cifar10" / split, labels[: len(images)])
        if form == "zip":
            shutil.make_archive(str(folder), "zip", folder)
            shutil.rmtree(folder)
    check_both_splits(small_cifar, tmp_path)


def test_the_data_sets_own_folder_serves_as_root(small_cifar: UInt8Images, tmp_path: Path) -> None:
    write_batches(tmp_path / "cifar10", small_cifar)
    check_both_splits(small_cifar, tmp_path / "cifar10")


def test_edms_name_is_the_training_set(small_cifar: UInt8Images, tmp_path: Path) -> None:
    folder = write_png_folder(small_cifar[:20], tmp_path / "x")
    shutil.make_archive(str(tmp_path / "cifar10-32x32"), "zip", folder)
    assert len(cifar10.open_split("train", tmp_path)) == 20
    with pytest.raises(DataError, match="cifar10:test was not found"):
        cifar10.open_split("test", tmp_path)


def test_altered_images_are_refused(small_cifar: UInt8Images, tmp_path: Path) -> None:
    small_cifar[3, 0, 0, 0] ^= 1
    write_batches(tmp_path, small_cifar)
    with pytest.raises(DataError, match="not the images of cifar10:train: fingerprint begins"):
        cifar10.open_split("train", tmp_path)


def test_other_count_is_refused(small_cifar: UInt8Images, tmp_path: Path) -> None:
    write_npz(small_cifar[:19], tmp_path / "train.npz")
    with pytest.raises(DataError, match=r"19 images of shape \[3, 32, 32\]; cifar10:train has 20"):
        cifar10.open_split("train", tmp_path)


def test_missing_batch_is_named(small_cifar: UInt8Images, tmp_path: Path) -> None:
    (write_batches(tmp_path, small_cifar) / "data_batch_3").unlink()
    with pytest.raises(DataError, match="has no data_batch_3"):
        cifar10.open_split("train", tmp_path)


# --- where ------------------------------------------------------------------------------------------------


def test_nothing_found_says_in_one_line_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        cifar10.open_split("train", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), "no network in tests", cifar10.ARCHIVE, "--data-root", "TRILEMMA_DATA"):
        assert part in message


def test_roots_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILEMMA_DATA", str(tmp_path / "env"))
    assert _helpers.roots(None) == [tmp_path / "env", Path("data"), _helpers.CACHE.expanduser()]
    assert _helpers.roots(tmp_path) == [tmp_path]
    monkeypatch.delenv("TRILEMMA_DATA")
    assert _helpers.roots(None)[0] == Path("data")


def test_environment_names_the_data(small_cifar: UInt8Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_batches(tmp_path, small_cifar)
    monkeypatch.setenv("TRILEMMA_DATA", str(tmp_path))
    assert len(cifar10.open_split("train")) == 20


def test_another_projects_images_do_not_hide_the_data_set(
    small_cifar: UInt8Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_png_folder(small_cifar[:3], tmp_path / "data" / "train")
    with pytest.raises(DataError, match=r"3 images of shape .*cifar10:train has 20"):
        cifar10.open_split("train")
    monkeypatch.setattr(_helpers, "CACHE", tmp_path / "cache")
    write_batches(tmp_path / "cache", small_cifar)
    assert len(cifar10.open_split("train")) == 20


@pytest.mark.parametrize("name", ["cifar10", "mnist", "image_folder"])
def test_unknown_split_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no split 'valid'. There are train, test"):
        registry.get("dataset", name).open("valid", tmp_path)


def test_download_lands_whole_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download_url(url: str, root: str, filename: str, md5: str | None) -> None:
        Path(root, filename).write_bytes(b"content")

    monkeypatch.setattr(fetch, "_require_network", lambda url: None)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    assert fetch.fetch("https://x.org/a.bin", tmp_path / "new").read_bytes() == b"content"
    with pytest.raises(fetch.FetchError, match=r"its SHA-256 begins ed7002b4\.\.\., expected 00000000"):
        fetch.fetch("https://x.org/b.bin", tmp_path / "new", sha256="0" * 64)
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["a.bin"]


# --- hostile files ----------------------------------------------------------------------------------------


class Call:
    """Pickles as a call, as an attack would."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_with_a_command_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"data": Call(os.system, f"touch {tmp_path}/run")}, protocol=protocol)
    with pytest.raises(DataError, match=r"data_batch_1: the pickle asks for (posix|nt)\.system"):
        _helpers.read_pickle(data, "data_batch_1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("function", [eval, getattr, np.load, np.fromfile, Path, bytearray])
def test_every_other_name_is_refused(function: Any) -> None:
    with pytest.raises(DataError, match="the pickle asks for .*Refused"):
        _helpers.read_pickle(pickle.dumps({"data": Call(function, "1")}), "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "uses NEWOBJ"),
        (b"(inumpy\ndtype\n.", "uses INST"),
        (b"Pname\n.", "uses PERSID"),
        (b"\x80\x02\x82\x01.", "uses EXT1"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo entries"),
        (b"\x80\x02T\xff\xff\xff\x7fab.", "not a readable pickle"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "not a readable pickle"),
        (b"", "not a readable pickle"),
        (b"hello", "not a readable pickle|uses"),
        (pickle.dumps([1]), "holds a list; expected a dict"),
        (pickle.dumps({"data": np.zeros(3)}), "an array of f8; expected uint8"),
        (pickle.dumps({"data": np.array([{}], object)}), "an array of O8; expected uint8"),
        (b"\x80\x02}U\x01acnumpy\ndtype\nK\x01\x85RK\x02bs.", "."),
    ],
)
def test_malformed_pickles_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        content = _helpers.read_pickle(data, "x")
        # What is left of a type's name is no array; the reader of the batch refuses it.
        raise DataError(f"harmless: {content}")


def test_array_with_a_shape_that_does_not_fit_is_refused() -> None:
    data = pickle.dumps({"data": np.zeros(8, np.uint8)}, protocol=2).replace(b"K\x08\x85", b"K\x09\x85")
    with pytest.raises(DataError, match="cannot reshape"):
        _helpers.read_pickle(data, "x")


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (tar_member("../escape"), "would lie outside"),
        (tar_member("/absolute"), "would lie outside"),
        (tar_member("a/../../escape"), "would lie outside"),
        (tar_member("cifar-10-batches-py/link", tarfile.SYMTYPE), "is a link or device"),
        (tar_member("cifar-10-batches-py/link", tarfile.LNKTYPE), "is a link or device"),
        (tar_member("cifar-10-batches-py/device", tarfile.CHRTYPE), "is a link or device"),
        (tar_member("cifar-10-batches-py/big", size=65 * 2**20), "claims 68157440 bytes; refused"),
    ],
)
def test_hostile_archives_are_refused(
    small_cifar: UInt8Images, tmp_path: Path, member: tarfile.TarInfo, reason: str
) -> None:
    folder = write_batches(tmp_path / "made", small_cifar)
    (tmp_path / "root").mkdir()
    write_tar(tmp_path / "root" / cifar10.ARCHIVE, folder, member)
    with pytest.raises(DataError, match=reason):
        cifar10.open_split("train", tmp_path / "root")


def test_gzip_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(DataError, match="unpacks to over 1000 bytes; refused"):
        _helpers.gunzip(tmp_path / "x.gz", 1000)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_truncated_archive_is_refused(small_cifar: UInt8Images, tmp_path: Path, part: float) -> None:
    folder = write_batches(tmp_path / "made", small_cifar)
    (tmp_path / "root").mkdir()
    path = write_tar(tmp_path / "root" / cifar10.ARCHIVE, folder)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DataError, match="Delete it and fetch it again"):
        cifar10.open_split("train", tmp_path / "root")


def test_archive_without_a_batch_is_refused(small_cifar: UInt8Images, tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "made", small_cifar)
    (folder / "data_batch_2").unlink()
    (tmp_path / "root").mkdir()
    write_tar(tmp_path / "root" / cifar10.ARCHIVE, folder)
    with pytest.raises(DataError, match="has no cifar-10-batches-py/data_batch_2"):
        cifar10.open_split("train", tmp_path / "root")


def test_oversized_batch_is_refused(small_cifar: UInt8Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_batches(tmp_path, small_cifar)
    monkeypatch.setattr(cifar10, "_MAX_BATCH_BYTES", 1000)
    with pytest.raises(DataError, match="Refused"):
        cifar10.open_split("train", tmp_path)


# --- MNIST ------------------------------------------------------------------------------------------------


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[UInt8Images, UInt8Images]]:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    monkeypatch.setattr(mnist, "COUNTS", {"train": 6, "test": 6})
    monkeypatch.setattr(mnist, "FINGERPRINTS", {"test": fingerprint(ArrayImages(images[:, None], ""))})
    yield images, np.arange(6, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
def test_idx_files_are_read(
    small_mnist: tuple[UInt8Images, UInt8Images], tmp_path: Path, suffix: str, folder: str
) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, array in zip(("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"), small_mnist, strict=True):
        data = idx(array)
        (tmp_path / folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    opened = mnist.open_split("test", tmp_path)
    assert np.array_equal(opened.read(0, 6)[:, 0], small_mnist[0])
    assert opened.labels is not None and opened.labels.tolist() == list(range(6))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", b"\x00\x00\x08\x03\x00", idx(np.zeros((2, 2), np.uint8))[:-1]],
)
def test_broken_idx_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match=r"not an idx file|Is the file complete\?"):
        mnist.read_idx(tmp_path / "x")


# --- StackedMNIST -----------------------------------------------------------------------------------------


def write_mnist(folder: Path, split: str, pixels: UInt8Images, labels: np.ndarray[Any, Any]) -> None:
    for name, array in ((f"{split}-images-idx3-ubyte", pixels), (f"{split}-labels-idx1-ubyte", labels)):
        (folder / name).write_bytes(idx(array))


def test_stacked_digits_stand_in_the_middle_and_the_class_reads_red_green_blue() -> None:
    digits = np.random.default_rng(0).integers(1, 256, (7, 1, 28, 28), np.uint8)
    labels = np.array([3, 1, 4, 1, 5, 9, 2])
    images = stackedmnist.stack(ArrayImages(digits, "", labels), np.array([[0, 1, 2], [5, 5, 6]]))
    pixels = images.read(0, 2)
    assert pixels.shape == (2, 3, 32, 32)
    assert np.array_equal(pixels[0, :, 2:-2, 2:-2], digits[:3, 0])
    assert not pixels[:, :, [0, 1, -2, -1]].any() and not pixels[:, :, :, [0, 1, -2, -1]].any()
    assert images.labels is not None and images.labels.tolist() == [314, 992]


def test_each_channel_has_each_digit_once_a_round_in_an_order_of_its_own() -> None:
    order = stackedmnist.orders(50, 2, seed=0)
    assert order.shape == (100, 3)
    for column in range(3):
        for start in (0, 50):
            assert sorted(order[start : start + 50, column]) == list(range(50))
    assert len({tuple(column) for column in order.reshape(2, 50, 3).transpose(0, 2, 1).reshape(6, 50)}) == 6
    assert np.array_equal(order, stackedmnist.orders(50, 2, seed=0))
    assert not np.array_equal(order, stackedmnist.orders(50, 2, seed=1))


def test_stacked_mnist_is_made_of_the_digits_on_disk(
    small_mnist: tuple[UInt8Images, UInt8Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path, "t10k", *small_mnist)
    monkeypatch.setattr(stackedmnist, "COUNTS", {"test": 18})
    with pytest.raises(DataError, match="not the images of stackedmnist:test"):
        stackedmnist.open_split("test", tmp_path)
    made = stackedmnist.stack(mnist.open_split("test", tmp_path), stackedmnist.orders(6, 3, seed=1))
    monkeypatch.setattr(stackedmnist, "FINGERPRINTS", {"test": fingerprint(made)})
    opened = stackedmnist.open_split("test", tmp_path)
    assert (opened.name, len(opened), opened.shape) == ("stackedmnist:test", 18, (3, 32, 32))
    assert opened.labels is not None and np.bincount(opened.labels // 100).tolist() == [3] * 6


def test_real_stacked_mnist_has_its_fingerprint_and_nearly_all_classes(data_root: Path) -> None:
    images = registry.get("dataset", "stackedmnist").open("test", data_root)
    assert fingerprint(images) == stackedmnist.FINGERPRINTS["test"]
    assert images.labels is not None
    assert len(np.unique(images.labels)) == 1000


# --- one's own images -------------------------------------------------------------------------------------


def test_own_folder_is_the_training_split(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    write_png_folder(images, tmp_path / "x")
    opened = image_folder.open_split("train", tmp_path / "x")
    assert np.array_equal(opened.read(0, 5), images)
    with pytest.raises(DataError, match="has no test images"):
        image_folder.open_split("test", tmp_path / "x")


@pytest.mark.parametrize("zipped", [False, True])
def test_own_train_and_test_folders_are_splits(tmp_path: Path, zipped: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    write_png_folder(images[:3], tmp_path / "x" / "train", np.arange(3))
    write_png_folder(images[3:], tmp_path / "x" / "test")
    root = Path(shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "x")) if zipped else tmp_path / "x"
    train, test = image_folder.open_split("train", root), image_folder.open_split("test", root)
    assert np.array_equal(train.read(0, 3), images[:3])
    assert np.array_equal(test.read(0, 2), images[3:])
    assert train.labels is not None and train.labels.tolist() == [0, 1, 2]
    assert test.labels is None


def test_own_images_need_a_path() -> None:
    with pytest.raises(DataError, match="needs to know where the images are"):
        image_folder.open_split("train")


@pytest.mark.parametrize("zipped", [False, True])
def test_splits_in_the_one_folder_of_an_archive_are_splits(tmp_path: Path, zipped: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), np.uint8)
    write_png_folder(images[:4], tmp_path / "x" / "mine" / "train", np.arange(4) % 2)
    write_png_folder(images[4:], tmp_path / "x" / "mine" / "test")
    (tmp_path / "x" / "__MACOSX").mkdir()
    root = Path(shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "x")) if zipped else tmp_path / "x"
    train, test = (image_folder.open_split(split, root) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 2)
    assert train.labels is not None and sorted(train.labels) == [0, 0, 1, 1]


def test_validation_images_do_not_become_training_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
    write_png_folder(images, tmp_path / "x" / "train")
    write_png_folder(images, tmp_path / "x" / "val")
    with pytest.raises(DataError, match="folders 'train' and 'val'"):
        image_folder.open_split("train", tmp_path / "x")
