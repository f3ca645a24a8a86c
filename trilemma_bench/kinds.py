"""What each kind of plug-in must be.

A plug-in is a module with one constant (`SAMPLER`, `DATASET`, `EXTRACTOR`, `METRIC`, `TRAINER`) of the class
below; its module name is its registry name. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from trilemma_bench.record import Score, ScoreKind
from trilemma_bench.spec import digest

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
UInt8Images = npt.NDArray[np.uint8]


# --- data -------------------------------------------------------------------------------------------------


Shape = tuple[int, ...]
"""(C, H, W) of an image, (D,) of a point: `len(shape)` tells them apart wherever both may come."""


POINTS_TOLERANCE = (1e-3, 1.0)
"""(largest difference of a coordinate, fraction that may differ at all) of finished points that are made again.

Points are not rounded, so that another batch size or machine moves nearly all of their last bits.
"""


def is_points(shape: Shape) -> bool:
    """Whether items of this shape are points, float64 [N, D], and not images, uint8 [N, C, H, W]."""
    return len(shape) == 1


@runtime_checkable
class ImageSet(Protocol):
    """Real or finished images, or points, that can be read by index."""

    name: str
    """Where they come from, as `<data set>:<split>` or a path."""
    shape: Shape
    """Channels, height, width of every image; dimensions of every point."""
    labels: npt.NDArray[np.int64] | None
    """int64 [N], or None where the images have no classes."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Array:
        """Images start..stop-1 as uint8 [stop - start, C, H, W]; points as float64 [stop - start, D]."""
        ...


@dataclass(frozen=True)
class Mixture:
    """Equal Gaussians with centres float64 [K, D] and one standard deviation in every direction."""

    centres: npt.NDArray[np.float64]
    sigma: float


@dataclass(frozen=True)
class Dataset:
    """A data set: `open(split, root)` finds, reads and checks it.

    `fingerprints` are sums modulo 2^256 of the SHA-256 of each image's raw bytes (height, width, channel order),
    one a split; empty where any images are welcome.
    """

    name: str
    shape: Shape
    splits: tuple[str, ...]
    open: Callable[..., ImageSet]
    """open(split: str, root: Path | None = None) -> ImageSet; raises DataError."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    num_classes: int | None = None
    citation: str = ""
    scale: float = 1.0
    """Points x are x / scale in the networks' range [-1, 1]; images have the grey levels' own rule."""
    mixture: Mixture | None = None
    """Set where the distribution is known in closed form, for the networks of `exact:`."""


# --- features ---------------------------------------------------------------------------------------------


class Extractor(Protocol):
    """images -> features, with an identity that changes whenever the features could.

    Optional member: `note` (str), which each record that it served keeps among its notes.
    """

    name: str
    identity: str
    """Digest of weights and preprocessing."""
    verified: bool
    """Whether the weights have the published digest."""
    batch_size: int

    def extract(self, images: Array) -> dict[str, npt.NDArray[np.float32]]:
        """uint8 [N, C, H, W] -> {layer: float32 [N, D]}; grey images are repeated to three channels."""
        ...


@dataclass(frozen=True)
class ExtractorKind:
    """How to build an extractor: `build(device=..., weights=None, allow_unverified=False) -> Extractor`.

    `layers` are what it offers: `features` for distances, `logits` for class scores.
    `available(weights) -> str | None` says in one line how to get what is missing, or None where nothing is.
    """

    name: str
    layers: tuple[str, ...]
    build: Callable[..., Extractor]
    available: Callable[[Path | None], str | None]
    is_inception: bool = False
    """True only for the network whose Frechet distance is called FID and whose class score is called IS."""
    inception_weights: bool = False
    """Whether it takes the TF Inception weights that the user names."""


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and covariance [D, D] (divided by n - 1) in float64; a count of 0 is not known."""

    n: int
    mean: npt.NDArray[np.float64]
    cov: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """What is kept of the real data under one extractor; made by `trilemma-bench reference make`.

    Attributes:
        moments: Of the `features` layer over the whole reference split.
        features: float32 [M, D], the `features` layer of a fixed random subset of that split.
        logits: float32 [M, K] of the same subset, or None: no metric of this package reads them.
        components: float32 [D, d], leading principal axes of the reference split; `centre` [D] is its mean.
        train_sketch: float32 [N, d], every image of the reference split, centred and projected.
        held_out_sketch: float32 [N', d], every image of the held-out split; None where there is none.
        identity: SHA-256 over all of these and over what they were made from: one file's, by which it is checked.
        about: Data fingerprint, counts, extractor identity, command.
    """

    moments: Moments
    features: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32] | None
    components: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    train_sketch: npt.NDArray[np.float32]
    held_out_sketch: npt.NDArray[np.float32] | None
    identity: str
    about: Mapping[str, Any]

    @property
    def key(self) -> str:
        """SHA-256 of what it is of: images, extractor, counts. By it records know that they share a reference.

        The same wherever it was made, while `identity` differs by package versions and roundings. Statistics of another
        program do not name their images: theirs is the identity.
        """
        splits = [self.about.get(split) for split in ("train", "held_out")]
        if not splits[0] or "fingerprint" not in splits[0]:
            return self.identity
        images = [item and [item["count"], item["fingerprint"], item.get("order")] for item in splits]
        return digest([images, self.about.get("extractor_identity"), self.about.get("spec")])


# --- metrics ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """features -> scores.

    `compute(*, real: Reference, generated: Mapping[str, float32 [N, D]], rng: numpy Generator, **params)` returns
    a Score for each name that `kinds(extractor)` lists; it sees features, never images or models.
    """

    name: str
    layers: tuple[str, ...]
    kinds: Callable[[ExtractorKind], tuple[ScoreKind, ...]]
    compute: Callable[..., dict[str, Score]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    targets: Callable[..., Mapping[str, float]] = lambda shape, **params: {}
    """targets(shape, **params) -> the values that real data have, of scores for which these are the best."""

    def kinds_of(self, extractor: ExtractorKind, shape: Shape, params: Mapping[str, Any]) -> tuple[ScoreKind, ...]:
        """The kinds under one protocol, with the targets of its parameters."""
        targets = self.targets(shape, **{**self.defaults, **params})
        kinds = self.kinds(extractor)
        return tuple(
            kind.model_copy(update={"target": targets[kind.name]}) if kind.name in targets else kind for kind in kinds
        )


# --- samplers ---------------------------------------------------------------------------------------------


@runtime_checkable
class Sampler(Protocol):
    """A trained model with its way of drawing. These three members are enough for anybody's own.

    Optional members: `networks` (name -> torch module: their forward calls are the NFE), `guides` (the same for
    networks whose gradient guides; their passes are counted apart), `micro_batch` (images a call), `identity` (str,
    changes when the samples would), `load_seconds`, `tolerance` (see `SamplerKind`).
    """

    name: str
    image_shape: Shape
    """(C, H, W), or (D,) for points."""

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        """int64 [N] -> uint8 [N, C, H, W], or points float64 [N, D]; item i depends on seeds[i] alone."""
        ...


@dataclass(frozen=True)
class Weights:
    """Weights and the configuration of the network that they belong to.

    `tensors` None means: initialise anew from `seed` (the untrained floor).
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] | None
    digest: str
    source: str
    seed: int = 0


@dataclass(frozen=True)
class SamplerKind:
    """How to build one family of samplers.

    Attributes:
        name: The registry name.
        options: Frozen pydantic model of the options; unknown ones are refused.
        build: build(options, weights, device=..., dtype=..., compile=..., micro_batch=None) -> Sampler.
        load: load(path) -> Weights: reads the formats of the field for this family, from a path given by the user.
        baseline: Folder under `baselines/` whose weights serve when none are named; None where none ship.
        tolerance: (largest grey-level difference, fraction of values that may differ at all) measured between
            micro-batch sizes and machines, for images; points have `POINTS_TOLERANCE`.
    """

    name: str
    family: str
    options: type[Any]
    build: Callable[..., Sampler]
    load: Callable[[Path], Weights]
    baseline: str | None
    tolerance: tuple[int, float]
    source: str


# --- training ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainerKind:
    """How to train one family: `task(recipe, device=...)` gives what the shared loop in `training/_loop` drives."""

    name: str
    recipes: Mapping[str, Any]
    task: Callable[..., Any]
    baseline: str | None
    """Folder below `baselines/`; None where the weights are no sampler's."""
    source: str
