"""Fast solvers of diffusers on the network of DDPM: DPM-Solver++, UniPC and Heun, by their schedulers.

DPM-Solver++: Lu et al. 2022, arXiv 2211.01095; UniPC: Zhao et al. 2023, arXiv 2302.04867; Heun: Karras et al. 2022,
arXiv 2206.00364, algorithm 1 without churn, which evaluates twice a step but for the last.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler
from pydantic import Field
from torch import Tensor

from trilemma_bench.errors import UsageError
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.samplers._epsilon import TOLERANCE, NoisePredictor, load, micro_batch
from trilemma_bench.samplers._helpers import X_T, Noise
from trilemma_bench.spec import Frozen

SCHEDULERS: dict[str, Any] = {
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
}


class Options(Frozen):
    """`order` is that of the multistep solvers; Heun's is 2. Steps are spaced `trailing`, the chain's last one in."""

    scheduler: Literal["dpmsolver++", "unipc", "heun"] = "dpmsolver++"
    steps: int = Field(default=20, ge=2)
    order: int = Field(default=2, ge=1, le=3)


class DiffusersSampler(NoisePredictor):
    """A scheduler's loop; each micro-batch has a scheduler of its own, which keeps the outputs of earlier steps."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        super().__init__("diffusers", weights, **settings)
        if options.steps > len(self.chain):
            raise UsageError(
                f"steps must be in 2..{len(self.chain)}, the length of the trained chain; got {options.steps}."
            )
        self.options = options

    def scheduler(self) -> Any:
        """A new scheduler on the chain of the network, its time steps set."""
        settings: dict[str, Any] = {
            "num_train_timesteps": len(self.chain), "trained_betas": self.chain.betas.numpy(),
            "timestep_spacing": "trailing",
        }  # fmt: skip
        if self.options.scheduler != "heun":
            settings["solver_order"] = self.options.order
        found = SCHEDULERS[self.options.scheduler](**settings)
        found.set_timesteps(self.options.steps)
        return found

    @property
    def expected_nfe(self) -> int:
        return 2 * self.options.steps - 1 if self.options.scheduler == "heun" else self.options.steps

    def draw(self, noise: Noise, count: int) -> Tensor:
        scheduler = self.scheduler()
        x = noise.normal(*self.image_shape, stream=X_T) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            eps = self.predict_noise(scheduler.scale_model_input(x, t).float(), int(t))
            x = scheduler.step(eps, t, x).prev_sample
        found: Tensor = torch.as_tensor(x)
        return found


def build(options: Options, weights: Weights, **settings: Any) -> DiffusersSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 50 (points: 1000) by default."""
    settings["micro_batch"] = settings.get("micro_batch") or micro_batch(weights)
    return DiffusersSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="diffusers", family="diffusion", options=Options, build=build, load=load, baseline="ddpm",
    tolerance=TOLERANCE, source="Lu et al. 2022, arXiv 2211.01095; Zhao et al. 2023, arXiv 2302.04867",
)  # fmt: skip
