"""Energy-based models of recovery likelihood on points (Gao et al. 2021, arXiv 2012.08125, algorithm 2).

From x_T ~ N(0, I) down the levels of noise: at each, Langevin dynamics draws y = sqrt(1 - beta_t) x_t given x_{t+1}.
An evaluation is one gradient of the energy. The optimum in closed form is the density of the noised mixture; what its
points lack, the few steps of the dynamics lack.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import Chain, geometric_betas
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import ebm, mixture
from trilemma_bench.samplers._helpers import STEP, X_T, Noise
from trilemma_bench.samplers._points import TOLERANCE, PointsSampler, loader
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """Langevin steps at each level and their size b; None is what the energy was trained with."""

    langevin_steps: int | None = Field(default=None, ge=1)
    step_size: float | None = Field(default=None, gt=0)


class EBMSampler(PointsSampler):
    """Langevin dynamics level after level."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        config = weights.config
        betas = geometric_betas(int(config["levels"]), float(config["sigma_min"]), float(config["sigma_max"]))
        self.chain = Chain(betas)
        exact = lambda config: mixture.Score(config["mixture"], self.chain)  # noqa: E731
        super().__init__("ebm", weights, partial(ebm.build, chain=self.chain), exact=exact, **settings)
        self.langevin_steps = options.langevin_steps or int(config["langevin_steps"])
        self.step_size = options.step_size or float(config["step_size"])

    @property
    def expected_nfe(self) -> int:
        return len(self.chain) * self.langevin_steps

    def draw(self, noise: Noise, count: int) -> Tensor:
        x = noise.normal(*self.image_shape, stream=X_T)
        normal = partial(noise.normal, *self.image_shape, stream=STEP)
        return ebm.descend(self.net, self.chain, x, self.step_size, self.langevin_steps, normal)


def build(options: Options, weights: Weights, **settings: Any) -> EBMSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    return EBMSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="ebm", family="energy", options=Options, build=build, load=loader("ebm"), baseline="ebm", tolerance=TOLERANCE,
    source="Gao et al. 2021, arXiv 2012.08125",
)  # fmt: skip
