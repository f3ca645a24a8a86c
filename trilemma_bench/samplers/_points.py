"""What the samplers of points over one network have in common: the network, its files, and uniform numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trilemma_bench.errors import WeightsError
from trilemma_bench.kinds import Weights
from trilemma_bench.samplers._helpers import ImageSampler, Noise, built, make_weights, network_of, read_tensors

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
        if "mixture" not in config:
            net: Any = built(network_of(weights, "mlp", build), weights)
            dimensions = net.config.dimensions
        elif exact is None:
            raise WeightsError(f"exact:{name}: the optimum of this family is not known in closed form.")
        else:
            net, dimensions = exact(config), len(config["mixture"]["centres"][0])
        settings["micro_batch"] = settings.get("micro_batch") or MICRO_BATCH
        scale = float(config.get("scale", 1.0))
        super().__init__(name, {"net": net}, (dimensions,), identity=weights.digest, scale=scale, **settings)

    @property
    def net(self) -> Any:
        """The network."""
        return self.networks["net"]


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
