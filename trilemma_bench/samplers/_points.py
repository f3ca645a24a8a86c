"""What the samplers of points over one network have in common: the network, its files, and uniform numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trilemma_bench.diffusion import Chain, Spacing, ddim_pairs, linear_betas
from trilemma_bench.errors import WeightsError
from trilemma_bench.kinds import Weights
from trilemma_bench.nets import consistency
from trilemma_bench.samplers._helpers import (
    STEP,
    X_T,
    ImageSampler,
    Noise,
    built,
    make_weights,
    network_of,
    read_tensors,
)

TOLERANCE = (1, 0.001)
"""Of images, which these samplers do not make; that of points is `kinds.POINTS_TOLERANCE`."""
MICRO_BATCH = 1000


class PointsSampler(ImageSampler):
    """A sampler of points [N, D] over one network, by default 1000 at once.

    Args:
        name: Of the family.
        weights: Their configuration has the network's under `mlp`, or `mixture` in its place for the optimum.
        build: From a configuration to the network.
        exact: From the configuration of the weights to the optimum; None where it has no closed form.
    """

    def __init__(
        self,
        name: str,
        weights: Weights,
        build: Callable[[Mapping[str, Any]], nn.Module],
        *,
        exact: Callable[[Mapping[str, Any]], nn.Module] | None = None,
        **settings: Any,
    ) -> None:
        config = weights.config
        net: Any
        if "mixture" in config and exact is not None:
            net, dimensions = exact(config), len(config["mixture"]["centres"][0])
        else:
            net = built(network_of(weights, "mlp", build), weights)
            dimensions = net.config.dimensions
        settings["micro_batch"] = settings.get("micro_batch") or MICRO_BATCH
        scale = float(config.get("scale", 1.0))
        super().__init__(name, {"net": net}, (dimensions,), identity=weights.digest, scale=scale, **settings)

    @property
    def net(self) -> Any:
        """The network."""
        return self.networks["net"]


class StudentSampler(PointsSampler):
    """A consistency network: map x_T to the data; with more steps, noise again to a smaller t and map again."""

    def __init__(
        self, name: str, weights: Weights, *, steps: int = 1, spacing: Spacing = "trailing", **settings: Any
    ) -> None:
        self.chain = Chain(linear_betas(int(weights.config["num_train_steps"]), **weights.config["betas"]))
        super().__init__(name, weights, partial(consistency.build, chain=self.chain), **settings)
        self.times = [t for t, _ in ddim_pairs(len(self.chain), steps, spacing)]

    @property
    def expected_nfe(self) -> int:
        return len(self.times)

    def draw(self, noise: Noise, count: int) -> Tensor:
        x = noise.normal(*self.image_shape, stream=X_T)
        for index, t in enumerate(self.times):
            if index:
                a2 = float(self.chain.alpha_bar[t])
                x = math.sqrt(a2) * x + math.sqrt(1 - a2) * noise.normal(*self.image_shape, stream=STEP)
            x = self.net(x, torch.full((count,), t, device=self.device)).float()
        return x


def uniform(noise: Noise, *shape: int, stream: int) -> Tensor:
    """The next numbers of `stream`, uniform in [0, 1]: float64 [N, *shape]."""
    return torch.special.ndtr(noise.normal(*shape, stream=stream).double())


def loader(name: str) -> Callable[[Path], Weights]:
    """The `load` of a family: `.safetensors` of this package whose configuration names it."""

    def load(path: Path) -> Weights:
        tensors, config = read_tensors(path)
        found = (config or {}).get("mlp", {}).get("class")
        if config is None or found != name:
            raise WeightsError(
                f"{path}: weights of {found or 'another family'}, not of {name}. Give what `trilemma-bench train "
                f"{name}` wrote."
            )
        return make_weights(tensors, config, str(path))

    return load
