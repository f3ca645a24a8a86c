"""Consistency models on points (Song et al. 2023, arXiv 2303.01469, algorithm 1): x_0 = f(x_T, T), and refinements.

With more steps the point is noised again to a smaller t and mapped back.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from trilemma_bench.diffusion import Spacing
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.samplers._points import TOLERANCE, StudentSampler, loader
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """`steps` evaluations a point, spaced along the chain."""

    steps: int = Field(default=1, ge=1)
    spacing: Spacing = "trailing"


def build(options: Options, weights: Weights, **settings: Any) -> StudentSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return StudentSampler("consistency", weights, steps=options.steps, spacing=options.spacing, **settings)


SAMPLER = SamplerKind(
    name="consistency", family="distillation", options=Options, build=build, load=loader("consistency"),
    baseline="consistency", tolerance=TOLERANCE, source="Song et al. 2023, arXiv 2303.01469",
)  # fmt: skip
