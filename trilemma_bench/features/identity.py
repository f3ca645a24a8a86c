"""The pixels themselves as features: for tests, for points, and for a look at what a network adds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Extractor, ExtractorKind
from trilemma_bench.spec import digest

NAME = "identity"


class Identity:
    """uint8 [N, C, H, W] -> `features` float32 [N, C * H * W] in 0..1; float points [N, D] stay."""

    name = NAME
    identity = digest([NAME, "uint8 / 255; float32"])
    verified = True
    batch_size = 1024

    def extract(self, images: Array) -> dict[str, npt.NDArray[np.float32]]:
        """Flatten; raises ProtocolError on anything but uint8 images and floating points [N, D]."""
        if images.dtype == np.uint8 and images.ndim == 4:
            return {"features": images.reshape(len(images), -1).astype(np.float32) / np.float32(255)}
        if images.dtype.kind == "f" and images.ndim == 2:
            return {"features": images.astype(np.float32)}
        raise ProtocolError(
            f"{NAME} takes uint8 images [N, C, H, W] or floating points [N, D]; got {images.dtype} "
            f"{list(images.shape)}."
        )


def available(weights: Path | None = None) -> str | None:
    """None: there is nothing to be had."""
    return None


def build(*, device: str = "cpu", weights: Path | None = None, allow_unverified: bool = False) -> Extractor:
    """Build the extractor; it has no weights and runs on the CPU."""
    return Identity()


EXTRACTOR = ExtractorKind(name=NAME, layers=("features",), build=build, available=available)
