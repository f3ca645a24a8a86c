"""StackedMNIST's protocol from end to end, without the data set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from trilemma_bench import cards, models, published, registry
from trilemma_bench import reference as references
from trilemma_bench.cli import app
from trilemma_bench.data import stackedmnist
from trilemma_bench.errors import ProtocolError, WeightsError
from trilemma_bench.features import mnist_classifier
from trilemma_bench.kinds import UInt8Images
from trilemma_bench.metrics import class_coverage
from trilemma_bench.models import open_model, parse_model
from trilemma_bench.record import ResultRecord
from trilemma_bench.run import Settings, find_data, run_spec, score_images
from trilemma_bench.spec import Option, SamplerSpec, load_protocol

PROTOCOL = load_protocol("stackedmnist-v1")


def triplets(count: int) -> tuple[UInt8Images, np.ndarray]:
    """Images of digits that are not MNIST's (scikit-learn's, doubled in size), with the classes that they stand for."""
    found = load_digits()
    small = (found.images * 255 / 16).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    digits = np.pad(small, ((0, 0), (8, 8), (8, 8)))
    order = np.random.default_rng(0).integers(0, len(digits), (count, 3))
    return digits[order], found.target[order] @ np.array([100, 10, 1])


def test_the_protocol_states_the_data_and_ships_its_reference() -> None:
    assert load_protocol("lite", dataset="stackedmnist").name == "stackedmnist-v1"
    assert PROTOCOL.image_shape == stackedmnist.SHAPE
    assert PROTOCOL.num_generated == 26_000 <= stackedmnist.COUNTS["test"]
    assert dict(PROTOCOL.scores[0].params) == dict(class_coverage.METRIC.defaults)
    path = references.reference_path(PROTOCOL, "mnist_classifier")
    assert path.stat().st_size < 2.5e6
    reference = references.load_reference(path)
    references.check_fits(reference, protocol=PROTOCOL, extractor=mnist_classifier.build())
    assert reference.about["train"]["fingerprint"] == stackedmnist.FINGERPRINTS["train"]
    assert reference.about["train"]["count"] == stackedmnist.COUNTS["train"]


def test_score_counts_the_modes_of_a_file_without_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRILEMMA_DATA", str(tmp_path / "none"))
    images, classes = triplets(300)
    np.savez(tmp_path / "images.npz", images)
    arguments = ["score", str(tmp_path / "images.npz"), "--dataset", "stackedmnist", "--num-samples", "300"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "mnist_classifier: accuracy 99." in result.output
    (path,) = (tmp_path / "out" / "stackedmnist-v1@n300").glob("*.json")
    record = ResultRecord.read(path)
    assert any(re.fullmatch(r"mnist_classifier: accuracy 99\.\d\d% on MNIST's test", note) for note in record.notes)
    names = {"modes_captured", "mode_kl", "mode_kl_corrected", "mode_kl_reverse", "fd_mnist_classifier"}
    assert names <= {item.kind.name for item in record.scores}
    assert all(item.score.value is not None for item in record.scores)
    captured = record.score("modes_captured")
    assert captured is not None
    # Nine in ten of these digits or more are read as what they are.
    assert captured.value == pytest.approx(len(set(classes.tolist())), rel=0.1)


def test_digits_without_their_margin_are_refused_and_not_to_be_resized(tmp_path: Path) -> None:
    """28 x 28 is how others stack them; stretched to 32 x 32 they would be other digits."""
    images, _ = triplets(8)
    np.save(tmp_path / "small.npy", images[:, :, 2:30, 2:30])
    spec = run_spec(SamplerSpec(name="small", kind="external"), PROTOCOL.with_num_generated(8))
    with pytest.raises(
        ProtocolError, match=r"\[3, 28, 28\]; .*needs images of \[3, 32, 32\]. Bring them .* as the real"
    ):
        score_images(tmp_path / "small.npy", spec, find_data("stackedmnist", Settings()), Settings(cache=tmp_path))


def test_collapsed_images_keep_one_mode() -> None:
    images, _ = triplets(1)
    logits = mnist_classifier.build().extract(np.repeat(images, 40, axis=0))["logits"]
    found, modes = class_coverage.classes(logits, 3)
    scores = class_coverage.of_histogram(class_coverage.histogram(found, np.arange(40) % 20, modes))
    assert scores["modes_captured"].value == 1
    assert scores["mode_kl"].value == pytest.approx(np.log(1000))


def test_a_model_without_a_baseline_for_these_images_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not draw those of CIFAR-10, as it does for one's own images."""

    def only_cifar10(baseline: str, dataset: str, options: Mapping[str, Option]) -> cards.Card | None:
        return cards.find_card(baseline, dataset, options) if dataset == "cifar10" else None

    monkeypatch.setattr(models, "find_card", only_cifar10)
    with pytest.raises(WeightsError, match="stylegan2 has no baseline for stackedmnist. Train one"):
        open_model(run_spec(parse_model("stylegan2"), PROTOCOL))


def test_published_figures_of_stacked_mnist_are_those_with_a_source() -> None:
    found = {row.model: row.values for row in published.rows(published.figures(PROTOCOL.dataset))}
    assert found["DDGAN (ours)"] == {"modes": 1000, "kl": 0.071}
    assert found["StyleGAN2"] == {"modes": 940, "kl": 0.424}
    assert PROTOCOL.dataset in registry.names("dataset")


@pytest.mark.parametrize("name", [name for name in cards.card_names() if name.startswith("stackedmnist-")])
def test_the_modes_that_ship_are_counted_and_drawn_again(name: str) -> None:
    """All are counted as stored; a few hundred images are drawn and read anew."""
    folder = cards.load_card(name)[1]
    stored = np.load(folder / "modes.npz")["modes"].astype(np.int64)
    assert len(stored) == PROTOCOL.num_generated
    scores = class_coverage.of_histogram(class_coverage.histogram(stored, np.arange(len(stored)) % 20, 1000))
    said = json.loads((folder / "modes.json").read_text())
    assert said.pop("protocol") == PROTOCOL.with_num_generated(len(stored)).name
    model = open_model(run_spec(parse_model(said.pop("model")), PROTOCOL, batch_size=100))
    assert {name: found.value for name, found in scores.items()} == pytest.approx(said)
    images = model.sampler.sample(torch.arange(200)).numpy()
    fresh, _ = class_coverage.classes(mnist_classifier.build().extract(images)["logits"], 3)
    # Another machine's rounding may turn a digit that is read either way.
    assert (fresh == stored[:200]).mean() >= 0.97
