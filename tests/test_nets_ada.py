"""ADA and DiffAugment: what is left alone, what is exact, how often and how strongly the rest happens."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from trilemma_bench.errors import ProtocolError, TrainingError, UsageError
from trilemma_bench.nets import ada
from trilemma_bench.nets.ada import PIPELINES, AdaController, augment, diffaugment, draw_color, draw_geometry

N_DRAWS = 4000


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int = 6, channels: int = 3, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(n, channels, size, size, generator=_rng(1), dtype=torch.float64) * 2 - 1).to(dtype)


def _smooth(size: int = 32) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    waves = [torch.sin(3 * x + y), torch.cos(4 * y - 2 * x), x * y]
    return torch.stack(waves)[None]


def _frequency(count: Tensor | float, expected: float, n: int = N_DRAWS) -> None:
    """Fails where a share of n draws is more than 4 standard errors from its expectation."""
    error = math.sqrt(max(expected * (1 - expected), 1e-12) / n)
    assert abs(float(count) / n - expected) <= 4 * error


# ------------------------------------------------------------------------------------- identity, shape, type


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
@pytest.mark.parametrize("channels", [1, 3])
def test_probability_zero_returns_the_images(pipeline: str, channels: int) -> None:
    images = _images(channels=channels)
    assert (augment(images, 0.0, generator=_rng(), pipeline=pipeline) - images).abs().max() <= 1e-6


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_augmented_images_keep_shape_and_type(pipeline: str, channels: int, dtype: torch.dtype) -> None:
    images = _images(channels=channels, dtype=dtype)
    out = augment(images, 0.8, generator=_rng(), pipeline=pipeline)
    assert out.shape == images.shape and out.dtype == dtype
    assert torch.isfinite(out).all() and not torch.equal(out, images)


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    images = _images()
    first, again, other = (augment(images, 0.7, generator=_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_higher_probability_keeps_the_transformations_of_a_lower_one() -> None:
    low, _ = draw_geometry(N_DRAWS, 32, 0.3, generator=_rng(), transforms=["scale"])
    high, _ = draw_geometry(N_DRAWS, 32, 0.6, generator=_rng(), transforms=["scale"])
    happened = low[:, 0, 0] != 1
    assert torch.equal(low[happened], high[happened])


def test_images_of_a_batch_are_augmented_apart() -> None:
    images = _images(1).expand(8, -1, -1, -1)
    out = augment(images, 1.0, generator=_rng())
    assert all(not torch.equal(out[0], other) for other in out[1:])


def test_autocast_changes_nothing() -> None:
    images = _images()
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment(images, 0.9, generator=_rng())
    assert torch.equal(inside, augment(images, 0.9, generator=_rng()))


# -------------------------------------------------------------------------------------------------- geometry


def test_flips_are_exact() -> None:
    images = _images(64)
    out = augment(images, 1.0, generator=_rng(), pipeline=["xflip"])
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(out, images, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(out, images, strict=True)])
    assert torch.all(flipped | kept) and flipped.any() and kept.any()


@pytest.mark.parametrize("size", [15, 16])
def test_quarter_turns_are_exact_and_take_all_four_directions(size: int) -> None:
    images = _images(64, size=size)
    out = augment(images, 1.0, generator=_rng(), pipeline=["rotate90"])
    turns = [[k for k in range(4) if torch.equal(a, b.rot90(k, (1, 2)))] for a, b in zip(out, images, strict=True)]
    assert {tuple(found) for found in turns} == {(0,), (1,), (2,), (3,)}


def test_whole_pixel_shifts_are_exact_and_reflect_at_the_border() -> None:
    images = torch.arange(16.0).expand(64, 1, 16, 16)
    out = augment(images, 1.0, generator=_rng(), pipeline=["xint"])
    # An inner row of a horizontal ramp shows the shift; all shifts are at most 16 / 8 pixels.
    shifts = out[:, 0, 8, 8] - 8
    assert set(shifts.tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    for row, shift in zip(out[:, 0, 8], shifts, strict=True):
        source = (torch.arange(16) + shift).abs()
        assert torch.equal(row, torch.minimum(source, 30 - source))


def test_resampling_by_the_identity_gives_the_image_back() -> None:
    images, identity = _images(), torch.eye(3, dtype=torch.float64).repeat(6, 1, 1)
    assert (ada._resample(images, identity) - images).abs().max() < 1e-5


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_resampling_by_a_quarter_turn_shows_no_shift(quarter: int) -> None:
    image, angle = _smooth(), torch.tensor([quarter * math.pi / 2], dtype=torch.float64)
    matrix = ada._rotation(angle.cos(), angle.sin())
    found, exact = ada._resample(image, matrix), ada._move_pixels(image, matrix)
    # Were the filter's delay left out, the image would shift by 0.4 pixels: a difference of 0.08 to 0.10.
    assert (found - exact)[..., 4:-4, 4:-4].abs().max() < 0.005


def test_resampling_follows_the_matrix() -> None:
    y, x = torch.meshgrid(torch.arange(32.0) - 15.5, torch.arange(32.0) - 15.5, indexing="ij")
    image = (0.02 * x + 0.03 * y)[None, None]
    matrix = torch.tensor([[[0.8, 0.1, 1.3], [-0.2, 0.7, -0.4], [0, 0, 1]]], dtype=torch.float64)
    expected = 0.02 * (0.8 * x + 0.1 * y + 1.3) + 0.03 * (-0.2 * x + 0.7 * y - 0.4)
    # Linear images pass the filters and the bilinear step unchanged.
    assert (ada._resample(image, matrix)[0, 0] - expected)[8:-8, 8:-8].abs().max() < 1e-4


def test_constant_images_stay_constant_under_geometry() -> None:
    images = torch.full((32, 3, 16, 16), 0.25)
    assert (augment(images, 0.7, generator=_rng(), pipeline="bg") - images).abs().max() < 1e-3


def test_the_filter_is_an_orthogonal_lowpass_with_six_vanishing_moments() -> None:
    taps = torch.tensor(ada.SYM6, dtype=torch.float64)
    assert float(taps.sum()) == pytest.approx(math.sqrt(2), abs=1e-10)
    for shift in range(6):
        assert float((taps[2 * shift :] * taps[: 12 - 2 * shift]).sum()) == pytest.approx(float(shift == 0), abs=1e-10)
    index = torch.arange(12, dtype=torch.float64)
    for power in range(6):
        assert float(((-1.0) ** index * index**power * taps).sum()) == pytest.approx(0, abs=1e-8)


# ----------------------------------------------------------------------------------------------- frequencies


def _changed(matrix: Tensor) -> Tensor:
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return ((matrix - eye).abs().amax(dim=(1, 2)) > 1e-12).sum()


@pytest.mark.parametrize("p", [0.2, 0.7, 1.0])
@pytest.mark.parametrize(
    ("name", "share"),
    # A choice of 2 or 4 holds the identity; whole-pixel shifts of 8 / 8 pixels round to (0, 0) in a quarter.
    [
        ("xflip", 1 / 2),
        ("rotate90", 3 / 4),
        ("xint", 3 / 4),
        ("scale", 1),
        ("rotate", 1),
        ("aniso", 1),
        ("xfrac", 1),
    ],
)
def test_each_geometric_transformation_happens_with_probability_p(name: str, share: float, p: float) -> None:
    matrix, is_general = draw_geometry(N_DRAWS, 8, p, generator=_rng(), transforms=[name])
    _frequency(_changed(matrix), p * share)
    _frequency(is_general.sum(), p if name in PIPELINES["geom"] else 0.0)


@pytest.mark.parametrize("p", [0.2, 0.7, 1.0])
@pytest.mark.parametrize(
    ("name", "share"),
    [("brightness", 1), ("contrast", 1), ("lumaflip", 1 / 2), ("hue", 1), ("saturation", 1)],
)
def test_each_colour_transformation_happens_with_probability_p(name: str, share: float, p: float) -> None:
    _frequency(_changed(draw_color(N_DRAWS, p, generator=_rng(), transforms=[name])), p * share)


def _std(values: Tensor) -> float:
    return float(values.std())


def test_strengths_are_those_of_the_paper() -> None:
    def geometry(name: str) -> Tensor:
        return draw_geometry(N_DRAWS, 32, 1.0, generator=_rng(), transforms=[name])[0]

    def color(name: str) -> Tensor:
        return draw_color(N_DRAWS, 1.0, generator=_rng(), transforms=[name])

    scale, aniso = geometry("scale"), geometry("aniso")
    assert torch.equal(scale[:, 0, 0], scale[:, 1, 1])
    assert _std(scale[:, 0, 0].log2()) == pytest.approx(0.2, rel=0.05)
    torch.testing.assert_close(aniso[:, 0, 0] * aniso[:, 1, 1], torch.ones(N_DRAWS, dtype=torch.float64))
    assert _std(aniso[:, 0, 0].log2()) == pytest.approx(0.2, rel=0.05)
    assert _std(geometry("xfrac")[:, :2, 2]) == pytest.approx(32 * 0.125, rel=0.05)
    assert geometry("xint")[:, :2, 2].abs().max() == 4
    angle = torch.atan2(geometry("rotate")[:, 1, 0], geometry("rotate")[:, 0, 0])
    assert _std(angle) == pytest.approx(math.pi / math.sqrt(3), rel=0.05)
    assert _std(color("brightness")[:, 0, 3]) == pytest.approx(0.2, rel=0.05)
    assert _std(color("contrast")[:, 0, 0].log2()) == pytest.approx(0.5, rel=0.05)
    # A colour of the plane across the grey axis is scaled by the saturation alone.
    across = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    saturation = (color("saturation") @ across).norm(dim=1) / math.sqrt(2)
    assert _std(saturation.log2()) == pytest.approx(1.0, rel=0.05)


# ---------------------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize("name", ["hue", "saturation"])
def test_hue_and_saturation_leave_grey_alone(name: str) -> None:
    grey = _images(channels=1).expand(-1, 3, -1, -1)
    assert (augment(grey, 1.0, generator=_rng(), pipeline=[name]) - grey).abs().max() < 1e-5
    images = _images()
    out = augment(images, 1.0, generator=_rng(), pipeline=[name])
    assert (out - images).abs().max() > 0.1
    assert (out.mean(dim=1) - images.mean(dim=1)).abs().max() < 1e-5


def test_hue_and_luma_flip_keep_a_colours_length() -> None:
    images = _images()
    out = augment(images, 1.0, generator=_rng(), pipeline=["hue", "lumaflip"])
    torch.testing.assert_close(out.norm(dim=1), images.norm(dim=1))


@pytest.mark.parametrize("name", ["brightness", "contrast", "lumaflip"])
def test_one_channel_is_coloured_as_grey_is(name: str) -> None:
    grey = _images(channels=1)
    alone = augment(grey, 1.0, generator=_rng(), pipeline=[name])
    as_three = augment(grey.expand(-1, 3, -1, -1), 1.0, generator=_rng(), pipeline=[name])
    torch.testing.assert_close(alone.expand(-1, 3, -1, -1), as_three)
    assert not torch.equal(alone, grey)


def test_one_channel_ignores_hue_and_saturation() -> None:
    grey = _images(channels=1)
    assert torch.equal(augment(grey, 1.0, generator=_rng(), pipeline=["hue", "saturation"]), grey)


# ------------------------------------------------------------------------------------------------- gradients


def test_gradients_flow_twice_through_every_transformation() -> None:
    images = _images(4, size=6, dtype=torch.float64).requires_grad_(True)
    for p in (0.3, 1.0):

        def run(x: Tensor, p: float = p) -> Tensor:
            return augment(x, p, generator=_rng(5))

        assert torch.autograd.gradcheck(run, images, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, images, fast_mode=True)


def test_training_after_inference_mode_can_use_the_same_filters() -> None:
    images = _images(dtype=torch.float64)
    with torch.inference_mode():
        augment(images, 1.0, generator=_rng())
    images.requires_grad_(True)
    augment(images, 1.0, generator=_rng()).sum().backward()
    assert images.grad is not None


# -------------------------------------------------------------------------------------------------- refusals


def test_unknown_pipelines_and_transformations_are_refused_by_name() -> None:
    images = _images()
    with pytest.raises(UsageError, match="no augmentation pipeline named 'bgcf'; did you mean 'bgc'"):
        augment(images, 0.5, generator=_rng(), pipeline="bgcf")
    with pytest.raises(UsageError, match="no augmentation named 'xflips'; did you mean 'xflip'"):
        augment(images, 0.5, generator=_rng(), pipeline=["xflips"])


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_probabilities_outside_of_0_and_1_are_refused(p: float) -> None:
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\]"):
        augment(_images(), p, generator=_rng())


@pytest.mark.parametrize(
    "run", [lambda x: augment(x, 0.5, generator=_rng()), lambda x: diffaugment(x, generator=_rng())]
)
@pytest.mark.parametrize("shape", [(2, 3, 16, 15), (2, 4, 16, 16), (3, 16, 16), (2, 3, 1, 1)])
def test_images_of_other_shapes_are_refused(run: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="square images"):
        run(torch.zeros(shape))


def test_integer_images_are_refused() -> None:
    with pytest.raises(ProtocolError, match="floating-point"):
        augment(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.5, generator=_rng())


# ------------------------------------------------------------------------------------------------ controller


def test_controller_rises_on_overfitting_falls_otherwise_and_stays_within_0_and_1() -> None:
    controller = AdaController(batch_size=8, interval=1, speed_kimg=0.016)
    real, mixed = torch.ones(8), torch.tensor([1.0, -1.0] * 4)
    assert [controller.update(real) for _ in range(3)] == [0.5, 1.0, 1.0]
    assert controller.r_t == 1.0
    assert [controller.update(mixed) for _ in range(3)] == [0.5, 0.0, 0.0]
    assert controller.r_t == 0.0


def test_controller_crosses_0_to_1_in_its_speed() -> None:
    controller = AdaController(batch_size=64, speed_kimg=500)
    for _ in range(1000):
        controller.update(torch.full((64, 1), 3.0))
    assert controller.p == pytest.approx(1000 * 64 / 500_000)


def test_controller_moves_once_an_interval_of_whole_batches() -> None:
    controller = AdaController(batch_size=4, interval=2, speed_kimg=1)
    # Four halves of a batch are two batches.
    assert [controller.update(torch.ones(2)) for _ in range(4)] == [0.0, 0.0, 0.0, 0.008]


def test_controller_rests_at_its_target() -> None:
    controller = AdaController(batch_size=10, interval=1, target=0.6, p=0.3)
    assert controller.update(torch.tensor([1.0] * 8 + [-1.0] * 2)) == 0.3


def test_controller_resumes_in_the_middle_of_an_interval() -> None:
    first, second = (AdaController(batch_size=4, interval=2, speed_kimg=1) for _ in range(2))
    first.update(torch.ones(4))
    second.load_state_dict(first.state_dict())
    assert second.update(torch.ones(4)) == first.update(torch.ones(4)) == 0.008
    with pytest.raises(TrainingError, match="must hold p, r_t, sign_sum, num_logits; found p"):
        second.load_state_dict({"p": 0.1})


def test_controller_refuses_nan_and_impossible_settings() -> None:
    with pytest.raises(TrainingError, match="NaN"):
        AdaController(batch_size=1).update(torch.tensor([math.nan]))
    with pytest.raises(UsageError, match="interval of at least 1"):
        AdaController(batch_size=1, interval=0)


# ----------------------------------------------------------------------------------------------- DiffAugment


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "color,translation,cutout"])
@pytest.mark.parametrize("channels", [1, 3])
def test_diffaugment_keeps_shape_and_is_differentiable_twice(policy: str, channels: int) -> None:
    images = _images(3, channels, 8, dtype=torch.float64).requires_grad_(True)

    def run(x: Tensor) -> Tensor:
        return diffaugment(x, policy, generator=_rng(2))

    assert run(images).shape == images.shape and not torch.equal(run(images), images)
    assert torch.equal(run(images), run(images))
    assert torch.autograd.gradcheck(run, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, images, fast_mode=True)


def test_diffaugment_with_an_empty_policy_is_the_identity() -> None:
    images = _images()
    assert torch.equal(diffaugment(images, "", generator=_rng()), images)
    with pytest.raises(UsageError, match="no DiffAugment policy named 'colour'; did you mean 'color'"):
        diffaugment(images, "colour", generator=_rng())


def test_translation_moves_by_at_most_an_eighth_and_fills_with_zeros() -> None:
    out = diffaugment(torch.ones(200, 1, 16, 16), "translation", generator=_rng())[:, 0]
    missing_rows = (out.amax(dim=2) == 0).sum(dim=1)
    missing_columns = (out.amax(dim=1) == 0).sum(dim=1)
    assert set(missing_rows.tolist()) == set(missing_columns.tolist()) == {0, 1, 2}
    torch.testing.assert_close(out.sum(dim=(1, 2)), ((16 - missing_rows) * (16 - missing_columns)).float())


def test_cutout_blanks_a_square_of_half_the_size_centred_anywhere() -> None:
    out = diffaugment(torch.ones(500, 1, 16, 16), "cutout", generator=_rng())[:, 0]
    rows, columns = (out.amin(dim=2) == 0).sum(dim=1), (out.amin(dim=1) == 0).sum(dim=1)
    assert rows.max() == columns.max() == 8 and rows.min() == columns.min() == 4
    torch.testing.assert_close((1 - out).sum(dim=(1, 2)), (rows * columns).float())


def test_diffaugment_color_keeps_the_strengths_of_the_paper() -> None:
    images = torch.zeros(N_DRAWS, 3, 2, 2)
    brightness = diffaugment(images, "color", generator=_rng())[:, 0, 0, 0]
    assert brightness.abs().max() <= 0.5 and _std(brightness) == pytest.approx(1 / math.sqrt(12), rel=0.05)
    colourful = torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(N_DRAWS, 3, 2, 2)
    # Saturation and contrast scale a colour whose mean is 0: by U(0, 2) U(0.5, 1.5), mean 1.
    out = diffaugment(colourful, "color", generator=_rng())
    factor = (out[:, 0] - out[:, 1])[:, 0, 0] / 2
    assert float(factor.min()) >= 0 and float(factor.max()) <= 3
    assert float(factor.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(factor.var()) == pytest.approx(4 / 12 + 1 / 12 + 4 / 144, rel=0.1)


@pytest.mark.parametrize("apply", [partial(augment, p=0.8), diffaugment], ids=["ADA", "DiffAugment"])
def test_processes_that_share_a_batch_augment_it_as_one_would(apply: Callable[..., Tensor]) -> None:
    images = _images(6)
    whole = apply(images, generator=_rng())
    parts = [apply(images[rank::2], generator=_rng(), part=(rank, 2)) for rank in range(2)]
    torch.testing.assert_close(torch.stack(parts, 1).flatten(0, 1), whole, atol=1e-4, rtol=0)
    assert not torch.equal(parts[0], apply(images[0::2], generator=_rng()))
