"""The shipped classifier of digits: how often it errs, and that channels and images do not see each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.datasets import load_digits

from trilemma_bench import registry
from trilemma_bench.errors import ProtocolError, WeightsError
from trilemma_bench.features import mnist_classifier
from trilemma_bench.kinds import Array, Extractor
from trilemma_bench.nets import digit_cnn
from trilemma_bench.training._loop import write_weights


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return mnist_classifier.build()


def foreign_digits() -> tuple[Array, Array]:
    """The 8 x 8 digits of scikit-learn, another country's and another decade's, enlarged into 28 x 28."""
    found = load_digits()
    small = torch.from_numpy(found.images[:300] * 255 / 16).float()[:, None]
    large = torch.nn.functional.interpolate(small, size=20, mode="bilinear").byte().numpy()
    return np.pad(large, ((0, 0), (0, 0), (4, 4), (4, 4))), found.target[:300]


def noise(count: int, channels: int = 3, side: int = 32) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, channels, side, side), np.uint8)


def test_the_accuracy_that_ships_is_that_on_the_test_digits(extractor: Extractor, data_root: Path) -> None:
    digits = registry.get("dataset", "mnist").open("test", data_root)
    wrong = int((extractor.extract(digits.read(0, 10_000))["logits"].argmax(1) != digits.labels).sum())
    with safe_open(str(mnist_classifier.shipped()), "pt") as stream:
        header = stream.metadata()
    assert int(header["test_errors"]) == pytest.approx(wrong, abs=1)  # rounding differs between machines
    assert float(header["test_accuracy"]) == 1 - int(header["test_errors"]) / 10_000
    assert 1 - wrong / 10_000 >= 0.994


def test_it_reads_digits_that_are_not_mnists(extractor: Extractor) -> None:
    images, labels = foreign_digits()
    assert (extractor.extract(images)["logits"].argmax(1) == labels).mean() > 0.9


def test_the_weights_that_ship_are_small_pinned_and_say_their_accuracy(extractor: Extractor) -> None:
    assert mnist_classifier.shipped().stat().st_size < 2e6
    assert extractor.verified
    assert mnist_classifier.available() is None
    note = extractor.note  # type: ignore[attr-defined]
    assert note.startswith("mnist_classifier: accuracy 99.")


def test_each_channel_is_read_by_itself_and_the_border_not_at_all(extractor: Extractor) -> None:
    images = noise(5)
    found = extractor.extract(images)
    assert (found["logits"].shape, found["features"].shape) == ((5, 30), (5, 96))
    assert found["logits"].dtype == found["features"].dtype == np.float32
    changed = images.copy()
    changed[:, 1] = 255 - changed[:, 1]
    changed[:, :, [0, 1, -2, -1]] = 7
    again = extractor.extract(changed)
    for layer, width in (("logits", 10), ("features", 32)):
        parts, others = (each[layer].reshape(5, 3, width) for each in (found, again))
        assert np.array_equal(parts[:, [0, 2]], others[:, [0, 2]])
        assert not np.allclose(parts[:, 1], others[:, 1])
    reversed_ = extractor.extract(images[:, ::-1])
    assert np.array_equal(reversed_["logits"].reshape(5, 3, 10)[:, ::-1], found["logits"].reshape(5, 3, 10))


def test_an_image_does_not_see_its_companions(extractor: Extractor) -> None:
    images = noise(130)
    whole = extractor.extract(images)
    for layer, part in extractor.extract(images[117:120]).items():
        assert np.array_equal(whole[layer][117:120], part)


def test_digits_without_a_border_are_read_as_with_one(extractor: Extractor) -> None:
    plain = noise(3, side=28)
    padded = np.pad(plain, ((0, 0), (0, 0), (2, 2), (2, 2)))
    for layer, values in extractor.extract(plain).items():
        assert np.array_equal(extractor.extract(padded)[layer], values)


@pytest.mark.parametrize(
    "images", [noise(2, side=26), noise(2, side=29), noise(0), noise(2)[0], noise(2).astype(float)]
)
def test_other_images_are_refused(extractor: Extractor, images: Array) -> None:
    with pytest.raises(ProtocolError, match="takes uint8 images"):
        extractor.extract(images)


def test_weights_of_another_digest_or_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    network = digit_cnn.build({"width": 4})
    write_weights(path, network.state_dict(), config={"classifier": {"width": 4}})
    with pytest.raises(WeightsError, match="SHA-256 begins"):
        mnist_classifier.build(weights=path)
    own = mnist_classifier.build(weights=path, allow_unverified=True)
    assert not own.verified
    assert own.identity != mnist_classifier.build().identity
    write_weights(path, network.state_dict(), config={"classifier": {"width": 5}})
    with pytest.raises(WeightsError, match="another network"):
        mnist_classifier.build(weights=path, allow_unverified=True)
    for config in ({"classifier": {"depth": 3}}, {"classifier": 3}, {}):
        write_weights(path, network.state_dict(), config=config)
        with pytest.raises(WeightsError):
            mnist_classifier.build(weights=path, allow_unverified=True)
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="not a classifier"):
        mnist_classifier.build(weights=path, allow_unverified=True)
    path.write_bytes(bytes(mnist_classifier.MAX_BYTES + 1))
    with pytest.raises(WeightsError, match="at most"):
        mnist_classifier.build(weights=path, allow_unverified=True)
