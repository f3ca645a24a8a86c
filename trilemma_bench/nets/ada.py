"""Augmentation of what the discriminator sees: ADA (Karras et al. 2020, arXiv 2006.06676) and DiffAugment.

ADA draws every transformation for every image with probability p, composes the geometric ones into one matrix
and the colour ones into another, and applies each matrix once; a controller moves p so that the discriminator
calls about (1 + target) / 2 of the training images real. The transformations and their strengths are those of
appendix B of the paper.

Departures from the authors' program, each towards what the paper describes:

* An image that drew only flips, quarter turns and whole-pixel shifts is copied pixel by pixel, unfiltered.
* The filter's delay is taken into account: sym6 is not quite symmetric, and uncorrected a half turn would
  shift the image by 0.4 pixels.
* p stays within [0, 1]; the program lets it pass 1, where it changes nothing but takes longer to come back.
* Image-space filtering, noise and cutout (the pipelines `bgcf`, `bgcfn`, `bgcfnc`) are left out; the `cifar`
  configuration of the paper uses `bgc`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma_bench.errors import ProtocolError, TrainingError, UsageError, unknown_name

__all__ = ["PIPELINES", "AdaController", "augment", "diffaugment", "draw_color", "draw_geometry"]

_BLIT = ("xflip", "rotate90", "xint")
_GEOMETRY = ("scale", "rotate", "aniso", "xfrac")
_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")

# The authors' names: pixel blitting, general geometry, colour.
PIPELINES = {
    "blit": _BLIT,
    "geom": _GEOMETRY,
    "color": _COLOR,
    "bg": _BLIT + _GEOMETRY,
    "bgc": _BLIT + _GEOMETRY + _COLOR,
}

# Strengths from appendix B. Lengths in image sizes, colours in units of the [-1, 1] range.
_XINT_MAX = 0.125
_SCALE_LOG2_STD = 0.2
_ANISO_LOG2_STD = 0.2
_XFRAC_STD = 0.125
_BRIGHTNESS_STD = 0.2
_CONTRAST_LOG2_STD = 0.5
_SATURATION_LOG2_STD = 1.0

# Daubechies' least asymmetric orthogonal lowpass with six vanishing moments, sum sqrt 2: PyWavelets' `sym6`.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_TAPS = len(SYM6)
_LEAD = _TAPS // 2 - 1  # how many fine samples a pixel's filter begins before the pixel's own first one
# Where a pixel's energy lies among its fine samples; 0.5, between its two, for a symmetric filter.
_DELAY = sum(i * tap for i, tap in enumerate(SYM6)) / sum(SYM6) - _LEAD


# ------------------------------------------------------------------------------------------------------- ADA


Part = tuple[int, int]
"""(r, w): these images are the rows r, r + w, r + 2 w ... of a batch, for all of which there are draws."""


def augment(
    images: Tensor,
    p: float,
    *,
    generator: torch.Generator,
    pipeline: str | Sequence[str] = "bgc",
    part: Part = (0, 1),
) -> Tensor:
    """Images augmented as ADA does, each on its own; differentiable, twice too (for R1).

    Args:
        images: float [N, C, R, R] in [-1, 1], C = 1 or 3, R >= 2; for C = 1 hue and saturation are left out.
        p: Probability of each transformation, in [0, 1]; 0 returns the images' values unchanged.
        generator: Draws everything; on its own device, so that one seed gives the same on every device.
        pipeline: A name of `PIPELINES`, or names of single transformations.
        part: Which of a batch these images are, so that several processes draw what one would.

    Returns:
        Same shape, dtype and device; values may leave [-1, 1], as in the paper.

    Raises:
        UsageError: an unknown pipeline or transformation, or p outside [0, 1].
        ProtocolError: images of another shape or type.
    """
    transforms = _transforms(pipeline)
    _check_images(images)
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"the augmentation probability must lie in [0, 1]; got {p!r}.")
    channels, size = images.shape[1:3]
    n, rows = _whole(images, part)
    matrix, is_general = (
        drawn[rows] for drawn in draw_geometry(n, size, p, generator=generator, transforms=transforms)
    )
    color = draw_color(n, p, generator=generator, transforms=transforms, channels=channels)[rows]
    # In bfloat16 the filters would no longer cancel: autocast is off, and half-precision images are widened.
    with torch.autocast(images.device.type, enabled=False):
        out = images.to(torch.promote_types(images.dtype, torch.float32))
        if set(transforms) & set(_BLIT + _GEOMETRY):
            out = _transform_geometry(out, matrix.to(images.device), is_general.to(images.device))
        if set(transforms) & set(_COLOR):
            out = _transform_color(out, color.to(out))
    return out.to(images.dtype)


def draw_geometry(
    n: int, size: int, p: float, *, generator: torch.Generator, transforms: Sequence[str] = PIPELINES["bg"]
) -> tuple[Tensor, Tensor]:
    """What moves each image, drawn.

    Args:
        n: How many images.
        size: Their height and width in pixels.
        p: Probability of each transformation.
        generator: Draws it.
        transforms: Names of transformations; those of colour are ignored.

    Returns:
        Matrices, float64 [n, 3, 3], from a pixel of the result to its place in the image, in pixels from the
        centre (x right, y down); and where more than flips, quarter turns and whole pixels came, bool [n].
    """
    draw = _Draw(n, p, generator)
    inverse = torch.eye(3, dtype=torch.float64, device=generator.device).repeat(n, 1, 1)
    is_general = torch.zeros(n, dtype=torch.bool, device=generator.device)
    if "xflip" in transforms:
        sign = (1 - 2 * draw.choice(2)).double()
        inverse = inverse @ _scaling(sign, torch.ones_like(sign))
    if "rotate90" in transforms:
        turns = draw.choice(4)
        # Exact sines and cosines keep the blits exact.
        quarter = torch.tensor([1, 0, -1, 0], dtype=torch.float64, device=turns.device)
        inverse = inverse @ _rotation(quarter[turns], -quarter[turns - 1])
    if "xint" in transforms:
        shift = (draw.uniform(2) * (_XINT_MAX * size)).round()
        inverse = inverse @ _translation(-shift)

    if "scale" in transforms:
        factor, drawn = draw.log_normal(_SCALE_LOG2_STD)
        inverse, is_general = inverse @ _scaling(1 / factor, 1 / factor), is_general | drawn
    # With anisotropic scaling between two rotations, images are stretched along any direction.
    if "rotate" in transforms:
        angle, drawn = draw.half_rotation()
        inverse, is_general = inverse @ _rotation(angle.cos(), angle.sin()), is_general | drawn
    if "aniso" in transforms:
        factor, drawn = draw.log_normal(_ANISO_LOG2_STD)
        inverse, is_general = inverse @ _scaling(1 / factor, factor), is_general | drawn
    if "rotate" in transforms:
        angle, drawn = draw.half_rotation()
        inverse, is_general = inverse @ _rotation(angle.cos(), angle.sin()), is_general | drawn
    if "xfrac" in transforms:
        shift, drawn = draw.normal(2)
        inverse, is_general = inverse @ _translation(shift * (-_XFRAC_STD * size)), is_general | drawn
    return inverse, is_general


def draw_color(
    n: int,
    p: float,
    *,
    generator: torch.Generator,
    transforms: Sequence[str] = PIPELINES["color"],
    channels: int = 3,
) -> Tensor:
    """What recolours each image, drawn: float64 [n, 4, 4], acting on the column (red, green, blue, 1).

    Args:
        n: How many images.
        p: Probability of each transformation.
        generator: Draws it.
        transforms: Names of transformations; those of geometry are ignored.
        channels: With 1, hue and saturation are left out.
    """
    draw = _Draw(n, p, generator)
    device = generator.device
    color = torch.eye(4, dtype=torch.float64, device=device).repeat(n, 1, 1)
    eye = torch.eye(3, dtype=torch.float64, device=device)
    luma = torch.full((3, 3), 1 / 3, dtype=torch.float64, device=device)  # v v^T of the grey axis v
    if "brightness" in transforms:
        shift, _ = draw.normal(1)
        color = _affine(eye.repeat(n, 1, 1), (shift * _BRIGHTNESS_STD).expand(-1, 3)) @ color
    if "contrast" in transforms:
        factor, _ = draw.log_normal(_CONTRAST_LOG2_STD)
        color = _affine(eye * factor[:, None, None]) @ color
    if "lumaflip" in transforms:
        color = _affine(eye - 2 * luma * draw.choice(2)[:, None, None]) @ color
    if "hue" in transforms and channels > 1:
        angle = draw.uniform(1) * math.pi
        color = _affine(_rotation_about_grey(angle[:, :, None])) @ color
    if "saturation" in transforms and channels > 1:
        factor, _ = draw.log_normal(_SATURATION_LOG2_STD)
        color = _affine(luma + (eye - luma) * factor[:, None, None]) @ color
    return color


class _Draw:
    """Draws for n images, each replaced by 'nothing happens' with probability 1 - p.

    How many numbers are drawn does not depend on p, so that one seed means the same transformations at any p.
    """

    def __init__(self, n: int, p: float, generator: torch.Generator) -> None:
        self.n, self.p, self.generator = n, p, generator

    def _uniform(self, width: int = 1) -> Tensor:
        shape = (self.n, width)
        return torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)

    def _happens(self, p: float) -> Tensor:
        return self._uniform()[:, 0] < p

    def choice(self, count: int) -> Tensor:
        """int64 [n], uniform on 0 ... count - 1; 0 where nothing happens."""
        drawn = (self._uniform()[:, 0] * count).long()
        return drawn * self._happens(self.p)

    def uniform(self, width: int) -> Tensor:
        """[n, width], uniform on [-1, 1); 0 where nothing happens."""
        drawn = self._uniform(width) * 2 - 1
        return drawn * self._happens(self.p)[:, None]

    def half_rotation(self) -> tuple[Tensor, Tensor]:
        """Angles [n], one of two rotations that happen with probability p in all; and where this one does."""
        angle = (self._uniform()[:, 0] * 2 - 1) * math.pi
        happens = self._happens(1 - math.sqrt(1 - self.p))
        return angle * happens, happens

    def normal(self, width: int) -> tuple[Tensor, Tensor]:
        """[n, width], standard normal, 0 where nothing happens; and where it does."""
        shape, device = (self.n, width), self.generator.device
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64, device=device)
        happens = self._happens(self.p)
        return drawn * happens[:, None], happens

    def log_normal(self, log2_std: float) -> tuple[Tensor, Tensor]:
        """[n], 2^(log2_std N(0, 1)), 1 where nothing happens; and where it does."""
        drawn, happens = self.normal(1)
        return torch.exp2(drawn[:, 0] * log2_std), happens


# -------------------------------------------------------------------------------------------------- matrices


def _affine(linear: Tensor, shift: Tensor | None = None) -> Tensor:
    """Homogeneous matrices [n, d + 1, d + 1] from linear parts [n, d, d] and shifts [n, d]."""
    n, d, _ = linear.shape
    matrix = torch.eye(d + 1, dtype=linear.dtype, device=linear.device).repeat(n, 1, 1)
    matrix[:, :d, :d] = linear
    if shift is not None:
        matrix[:, :d, d] = shift
    return matrix


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return _affine(torch.diag_embed(torch.stack([x, y], dim=-1)))


def _rotation(cos: Tensor, sin: Tensor) -> Tensor:
    return _affine(torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2))


def _translation(shift: Tensor) -> Tensor:
    return _affine(torch.eye(2, dtype=shift.dtype, device=shift.device).repeat(len(shift), 1, 1), shift)


def _rotation_about_grey(angle: Tensor) -> Tensor:
    """Rotations [n, 3, 3] of colours about the axis (1, 1, 1) / sqrt 3, for angles [n, 1, 1] (Rodrigues)."""
    luma = torch.full((3, 3), 1 / 3, dtype=angle.dtype, device=angle.device)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=angle.dtype, device=angle.device)
    eye = torch.eye(3, dtype=angle.dtype, device=angle.device)
    return luma + (eye - luma) * angle.cos() + cross / math.sqrt(3) * angle.sin()


# ------------------------------------------------------------------------------------------------- execution


def _transform_color(images: Tensor, color: Tensor) -> Tensor:
    """Applies [N, 4, 4] to images of three channels, or its mean over the channels to images of one."""
    linear, shift = color[:, :3, :3], color[:, :3, 3:]
    if images.shape[1] == 1:
        # A grey value stands for three equal ones, and the three that come out are averaged.
        linear, shift = linear.sum(dim=2).mean(dim=1)[:, None, None], shift.mean(dim=1, keepdim=True)
    return (linear @ images.flatten(2) + shift).reshape(images.shape)


def _transform_geometry(images: Tensor, matrix: Tensor, is_general: Tensor) -> Tensor:
    """Moves whole pixels where that is all, and resamples the other images."""
    rows = is_general.nonzero()[:, 0]
    if len(rows) == len(images):
        return _resample(images, matrix)
    out = _move_pixels(images, matrix)
    return out if not len(rows) else out.index_copy(0, rows, _resample(images[rows], matrix[rows]))


def _move_pixels(images: Tensor, matrix: Tensor) -> Tensor:
    """Copies each pixel from its rounded source, reflected at the borders."""
    size = images.shape[-1]
    axis = torch.arange(size, dtype=torch.float64, device=images.device)
    x, y = _sources(matrix, axis, size).round().long()
    index = _reflect(y, size) * size + _reflect(x, size)
    return _take(images, index)


def _resample(images: Tensor, matrix: Tensor) -> Tensor:
    """Affine resampling without aliases: to twice the resolution by sym6, bilinear there, and back by sym6.

    With the identity the two filters cancel, as they are orthogonal. Beyond the border the image goes on
    reflected, as far as its own size; further out it is 0.
    """
    size = images.shape[-1]
    # Fine sample q of a pixel grid lies at (q - delay) / 2 pixels; the result needs those under its filters.
    first, stop = -_LEAD, 2 * size + _LEAD
    fine = torch.arange(first, stop, dtype=torch.float64, device=images.device)
    sources = _sources(matrix, (fine - _DELAY) / 2, size)
    reach = max(-float(sources.min()), float(sources.max()) - (size - 1))
    margin = min(max(math.ceil(reach) + 1, 0), size - 1)
    up = _fine_from_pixels(size, -2 * margin, 2 * (size + margin), reflect=True).to(images)
    # grid_sample's coordinates run over (-1, 1) from edge to edge of its input, here up's rows.
    grid = (sources * 2 + _DELAY + 2 * margin + 0.5) * (2 / len(up)) - 1
    moved = _Bilinear.apply(_separable(images, up), grid.permute(1, 2, 3, 0).to(images))
    down = _fine_from_pixels(size, first, stop, reflect=False).to(images)
    return _separable(moved, down.t() / 2)


def _sources(matrix: Tensor, axis: Tensor, size: int) -> Tensor:
    """Where the result's points (axis[j], axis[i]) come from: x and y in pixels, float64 [2, N, len, len]."""
    centre = (size - 1) / 2
    y, x = torch.meshgrid(axis - centre, axis - centre, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)])
    return torch.einsum("nab,bij->anij", matrix[:, :2], points) + centre


def _reflect(index: Tensor, size: int) -> Tensor:
    """Whole indices folded into 0 ... size - 1 about the border pixels, which are not repeated."""
    period = 2 * (size - 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # else a matrix first made under it could not serve training later
def _fine_from_pixels(size: int, first: int, stop: int, *, reflect: bool) -> Tensor:
    """Fine samples first ... stop - 1 of a line of pixels, as a matrix: float64 [stop - first, size].

    Fine sample q is sqrt 2 * sum_k SYM6[q - 2 k + lead] pixel[k]; pixels outside are reflected, or else 0.
    """
    fine = torch.arange(first, stop)[:, None]
    taps = torch.arange(_TAPS)[None, :]
    twice_pixel = fine + _LEAD - taps
    pixel = twice_pixel.div(2, rounding_mode="floor")
    weight = torch.tensor(SYM6, dtype=torch.float64) * math.sqrt(2) * (twice_pixel % 2 == 0)
    if reflect:
        pixel = _reflect(pixel, size)
    else:
        weight = weight * ((pixel >= 0) & (pixel < size))
        pixel = pixel.clamp(0, size - 1)
    return torch.zeros(stop - first, size, dtype=torch.float64).scatter_add(1, pixel, weight)


def _separable(images: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ image @ matrix^T for every channel: [N, C, size, size] -> [N, C, rows, rows]."""
    columns = images.transpose(2, 3) @ matrix.t()
    return columns.transpose(2, 3) @ matrix.t()


def _take(images: Tensor, index: Tensor) -> Tensor:
    """Pixels of each image by flat index [N, h, w] -> [N, C, h, w]."""
    n, channels = images.shape[:2]
    flat = index.reshape(n, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, flat).reshape(n, channels, *index.shape[1:])


class _Bilinear(torch.autograd.Function):
    """`grid_sample` (zeros outside) of an image, linear in it; unlike torch's it can be differentiated twice.

    R1 needs that: its gradient passes through the augmentation. The grid gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.input_shape = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _BilinearAdjoint.apply(grad, grid, ctx.input_shape), None


class _BilinearAdjoint(torch.autograd.Function):
    """The transpose of `_Bilinear`, whose own transpose is `_Bilinear` again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, input_shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # The kernel asks for the images' shape; it reads their values only for the grid's gradient.
        shape_only = grad.new_empty(1).expand(input_shape)
        backward = torch.ops.aten.grid_sampler_2d_backward
        return backward(grad.contiguous(), shape_only, grid, 0, 0, False, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Bilinear.apply(grad.contiguous(), grid), None, None


# ------------------------------------------------------------------------------------------------ controller


@dataclass
class AdaController:
    """Moves p so that r_t = E[sign(D(real))] stays at its target (section 3.1 of the paper).

    After every `interval` batches p goes up by one step where r_t is above the target (the discriminator
    overfits), else down; the step is such that p goes from 0 to 1 in `speed_kimg` thousand images.

    Args:
        batch_size: Real images in a training step; parts of a batch may be handed in one by one.
        target: r_t to hold, in [-1, 1].
        interval: Batches between two steps.
        speed_kimg: Thousands of images for p to cross [0, 1].
        p: Where to begin.
    """

    batch_size: int
    target: float = 0.6
    interval: int = 4
    speed_kimg: float = 500.0
    p: float = 0.0
    r_t: float | None = field(default=None, init=False)
    _sign_sum: float = field(default=0.0, init=False, repr=False)
    _num_logits: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.batch_size >= 1 and self.interval >= 1 and self.speed_kimg > 0 and 0 <= self.p <= 1):
            wanted = "batch_size and interval of at least 1, speed_kimg above 0 and p in [0, 1]"
            raise UsageError(f"the augmentation's controller needs {wanted}; got {self}.")

    def update(self, real_logits: Tensor) -> float:
        """Takes the logits of a step's real images, augmented as they were, any shape; returns the p to use.

        Raises:
            TrainingError: a logit is NaN.
        """
        logits = real_logits.detach()
        if logits.isnan().any():
            raise TrainingError("the discriminator's logits of real images hold NaN; the run has diverged.")
        self._sign_sum += float(logits.sign().sum())
        self._num_logits += logits.numel()
        if self._num_logits >= self.interval * self.batch_size:
            self.r_t = self._sign_sum / self._num_logits
            direction = (self.r_t > self.target) - (self.r_t < self.target)
            step = self._num_logits / (self.speed_kimg * 1000)
            self.p = min(max(self.p + direction * step, 0.0), 1.0)
            self._sign_sum, self._num_logits = 0.0, 0
        return self.p

    def state_dict(self) -> dict[str, float | int | None]:
        """What a resumed run needs, as plain numbers."""
        return {
            "p": self.p,
            "r_t": self.r_t,
            "sign_sum": self._sign_sum,
            "num_logits": self._num_logits,
        }

    def load_state_dict(self, state: dict[str, float | int | None]) -> None:
        """Takes up a `state_dict`; raises TrainingError where a key is missing or unknown."""
        if set(state) != set(self.state_dict()):
            wanted, found = ", ".join(self.state_dict()), ", ".join(state) or "nothing"
            raise TrainingError(f"the augmentation's state must hold {wanted}; found {found}.")
        self.p, self.r_t = float(state["p"] or 0), state["r_t"]
        self._sign_sum, self._num_logits = float(state["sign_sum"] or 0), int(state["num_logits"] or 0)


# ----------------------------------------------------------------------------------------------- DiffAugment


def diffaugment(
    images: Tensor, policy: str = "color,translation,cutout", *, generator: torch.Generator, part: Part = (0, 1)
) -> Tensor:
    """Images augmented by DiffAugment (Zhao et al. 2020, arXiv 2006.10738); differentiable.

    color: brightness + U(-0.5, 0.5), saturation x U(0, 2) about the pixel's mean, contrast x U(0.5, 1.5)
    about the image's mean. translation: up to 1/8 of the size along each axis, zeros move in. cutout: a
    square of half the size set to 0, its centre anywhere in the image. Every image draws its own.

    Args:
        images: float [N, C, R, R] in [-1, 1], C = 1 or 3.
        policy: Names with commas between, applied in that order; empty for none.
        generator: Draws everything.
        part: As for `augment`.

    Raises:
        UsageError: an unknown name in the policy.
        ProtocolError: images of another shape or type.
    """
    _check_images(images)
    for name in filter(None, policy.split(",")):
        if name not in _DIFFAUGMENT:
            raise unknown_name("DiffAugment policy", name, _DIFFAUGMENT)
        images = _DIFFAUGMENT[name](images, generator, *_whole(images, part))
    return images


def _diff_color(images: Tensor, generator: torch.Generator, n: int, part: slice) -> Tensor:
    drawn = torch.rand(3, n, 1, 1, 1, generator=generator, device=generator.device)[:, part].to(images)
    brightness, saturation, contrast = drawn[0] - 0.5, drawn[1] * 2, drawn[2] + 0.5
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


def _diff_translation(images: Tensor, generator: torch.Generator, n: int, part: slice) -> Tensor:
    size = images.shape[2]
    limit = int(size / 8 + 0.5)
    shape, device = (2, n, 1), generator.device
    shift = torch.randint(-limit, limit + 1, shape, generator=generator, device=device)[:, part].to(images.device)
    rows, columns = torch.arange(size, device=images.device) + shift
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    index = rows.clamp(0, size - 1)[:, :, None] * size + columns.clamp(0, size - 1)[:, None, :]
    return _take(images, index) * inside[:, None]


def _diff_cutout(images: Tensor, generator: torch.Generator, n: int, part: slice) -> Tensor:
    size = images.shape[2]
    side = int(size / 2 + 0.5)
    # An even square has its centre between pixels, hence one place more.
    places, shape, device = size + 1 - side % 2, (2, n, 1), generator.device
    drawn = torch.randint(0, places, shape, generator=generator, device=device)[:, part]
    first = drawn.to(images.device) - side // 2
    axis = torch.arange(size, device=images.device)
    rows, columns = (axis >= first) & (axis < first + side)
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


_DIFFAUGMENT = {"color": _diff_color, "translation": _diff_translation, "cutout": _diff_cutout}


# ---------------------------------------------------------------------------------------------------- checks


def _transforms(pipeline: str | Sequence[str]) -> tuple[str, ...]:
    """The transformations' names; raises UsageError for an unknown pipeline or name."""
    if isinstance(pipeline, str):
        if pipeline not in PIPELINES:
            raise unknown_name("augmentation pipeline", pipeline, PIPELINES)
        return PIPELINES[pipeline]
    for name in pipeline:
        if name not in PIPELINES["bgc"]:
            raise unknown_name("augmentation", name, PIPELINES["bgc"])
    return tuple(pipeline)


def _whole(images: Tensor, part: Part) -> tuple[int, slice]:
    """How many images the whole batch has, and which rows of it these are."""
    return len(images) * part[1], slice(part[0], None, part[1])


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3] or shape[2] < 2:
        raise ProtocolError(f"augmentation takes square images [N, 1 or 3, R, R]; got {list(shape)}.")
    if not images.is_floating_point():
        raise ProtocolError(f"augmentation takes floating-point images in [-1, 1]; got {images.dtype}.")
