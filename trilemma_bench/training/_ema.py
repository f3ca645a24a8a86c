"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn

from trilemma_bench.spec import Frozen


class EmaSpec(Frozen):
    """Either a constant `decay` a step, or a half-life in thousands of images, shorter at the start.

    With a half-life H and ramp-up r the half-life after n images is min(H, r n) (Karras et al. 2020, 2006.06676).
    """

    decay: float | None = None
    halflife_kimg: float | None = None
    rampup: float | None = None
    every: int = Field(default=1, ge=1)
    """Steps from one update of the average to the next, which counts for all of them."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A field that came later is not a part of the digests of what does without it.
        found: dict[str, Any] = dump(self)
        if self.every == 1:
            del found["every"]
        return found

    @model_validator(mode="after")
    def _one_rule(self) -> EmaSpec:
        if (self.decay is None) == (self.halflife_kimg is None):
            raise ValueError("an EMA has a decay or a half-life, and not both")
        return self

    def decay_at(self, images_seen: int, batch: int) -> float:
        """Weight of the old average in an update: `every` steps over `batch` images, after `images_seen` images."""
        if self.decay is not None:
            return self.decay**self.every
        assert self.halflife_kimg is not None
        halflife = self.halflife_kimg * 1000
        if self.rampup is not None:
            halflife = min(halflife, self.rampup * images_seen)
        return 0.5 ** (self.every * batch / max(halflife, 1e-8))


def ema_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` in evaluation mode whose parameters need no gradient."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def ema_update(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) module for parameters; buffers are copied."""
    mine: list[torch.Tensor] = list(average.parameters())
    theirs: list[torch.Tensor] = list(module.parameters())
    torch._foreach_lerp_(mine, theirs, 1 - decay)
    for buffer, other in zip(average.buffers(), module.buffers(), strict=True):
        buffer.copy_(other)
