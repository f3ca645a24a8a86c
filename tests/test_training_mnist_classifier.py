"""The classifier of digits in training: how digits are moved, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_cases import run, tiny_images, tiny_recipe, tiny_task

from trilemma_bench.errors import DataError
from trilemma_bench.features import mnist_classifier
from trilemma_bench.images import ArrayImages
from trilemma_bench.training._loop import Limits, Step, train
from trilemma_bench.training.mnist_classifier import moved

RECIPE = tiny_recipe("mnist_classifier", turn_degrees=90, shear=0.5, scale=0.5, shift_pixels=2)
STILL = torch.full((1, 6), 0.5)


def square() -> torch.Tensor:
    """A white rectangle off the middle on black, [1, 1, 28, 28] in [-1, 1]."""
    image = torch.full((1, 1, 28, 28), -1.0)
    image[:, :, 8:14, 12:16] = 1
    return image


def changed(place: int, value: float) -> torch.Tensor:
    uniform = STILL.clone()
    uniform[:, place] = value
    return uniform


def test_the_middle_of_every_range_leaves_a_digit_as_it_is() -> None:
    torch.testing.assert_close(moved(square(), STILL, RECIPE), square(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("place", "axis"), [(4, 3), (5, 2)])
def test_shifts_are_in_pixels_and_black_comes_in(place: int, axis: int) -> None:
    image = torch.ones(1, 1, 28, 28)
    found = moved(image, changed(place, 1.0), RECIPE)
    edge = found.movedim(axis, 0)
    assert torch.allclose(edge[:26], torch.ones(()), atol=1e-4)
    assert torch.allclose(edge[26:], -torch.ones(()), atol=1e-4)
    torch.testing.assert_close(moved(square(), changed(place, 1.0), RECIPE), square().roll(-2, axis), atol=1e-4, rtol=0)


def test_a_turn_is_by_its_angle() -> None:
    turned = moved(square(), changed(0, 1.0), RECIPE)
    assert any(torch.allclose(turned, torch.rot90(square(), k, (2, 3)), atol=1e-3) for k in (1, 3))


@pytest.mark.parametrize(("place", "columns", "rows"), [(2, 8, 6), (3, 4, 12)])
def test_scales_are_of_one_axis_each(place: int, columns: int, rows: int) -> None:
    """At half the step in the grid a thing is twice as large."""
    found = moved(square(), changed(place, 0.0), RECIPE)[0, 0] > 0
    assert int(found.any(0).sum()) == pytest.approx(columns, abs=1)
    assert int(found.any(1).sum()) == pytest.approx(rows, abs=1)


def test_images_without_classes_are_refused() -> None:
    task = tiny_task("mnist_classifier")
    with pytest.raises(DataError, match="needs images with classes"):
        task.step(torch.zeros(8, *task.image_shape), None, Step(0, 0, torch.Generator()))


def test_it_learns_and_its_weights_are_an_extractor(tmp_path: Path) -> None:
    """Bars at ten heights stand for digits."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400)
    images = rng.integers(0, 60, (400, 1, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 + 2 * label : 6 + 2 * label, 4:24] = 255
    recipe = {"network": {"width": 8}, "lr": 3e-3, "turn_degrees": 0, "shear": 0, "scale": 0, "shift_pixels": 0}
    task = tiny_task("mnist_classifier", batch=32, steps=480, warmup_steps=10, **recipe)
    result = train(task, ArrayImages(images, "bars", labels), tmp_path, limits=Limits(log_seconds=0))
    assert result["finished"]
    assert result["losses"]["loss"] < 0.2
    extractor = mnist_classifier.build(weights=tmp_path / "weights.safetensors", allow_unverified=True)
    assert not extractor.verified
    found = extractor.extract(images)["logits"].argmax(1)
    assert (found == labels).mean() > 0.95


def test_its_learning_rate_falls_to_nothing() -> None:
    task = tiny_task("mnist_classifier", duration_kimg=1.0, lr=1e-3, warmup_steps=0)
    rates = [task.rates(Step(5, seen, torch.Generator()))["classifier"] for seen in (0, 500, 1000)]
    assert rates == pytest.approx([1e-3, 5e-4, 0.0])


def test_the_grid_is_what_it_was_shown(tmp_path: Path) -> None:
    task = tiny_task("mnist_classifier")
    run(task, tmp_path, kimg=8 / 1000)
    assert tuple(task.grid(5).shape) == (5, *task.image_shape)
    assert len(tiny_images(task)) > 5
