"""DDIM distilled into one step, on points (Luhman & Luhman 2021, arXiv 2101.02388): x_0 = f(x_T), one evaluation."""

from __future__ import annotations

from typing import Any

from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.samplers._points import TOLERANCE, StudentSampler, loader
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """None: the student knows the end of the chain alone."""


def build(options: Options, weights: Weights, **settings: Any) -> StudentSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return StudentSampler("distilled", weights, **settings)


SAMPLER = SamplerKind(
    name="distilled", family="distillation", options=Options, build=build, load=loader("distilled"),
    baseline="distilled", tolerance=TOLERANCE, source="Luhman & Luhman 2021, arXiv 2101.02388",
)  # fmt: skip
