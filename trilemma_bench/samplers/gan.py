"""One-shot GANs on points (Goodfellow et al. 2014, arXiv 1406.2661): x = G(z), one evaluation a point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from trilemma_bench.errors import WeightsError
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets import mlp
from trilemma_bench.samplers._helpers import LATENT, ImageSampler, Noise, built, make_weights, network_of, read_tensors
from trilemma_bench.spec import Frozen


class Options(Frozen):
    """None: such a generator knows nothing but z."""


class GANSampler(ImageSampler):
    """One call of the generator."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        generator = built(network_of(weights, "generator", mlp.build_decoder), weights)
        config = mlp.parse(weights.config["generator"])
        scale = float(weights.config.get("scale", 1.0))
        super().__init__(
            "gan", {"G": generator}, (config.dimensions,), identity=weights.digest, scale=scale, **settings
        )
        self.nz = config.nz

    @property
    def expected_nfe(self) -> int:
        return 1

    def draw(self, noise: Noise, count: int) -> Tensor:
        points: Tensor = self.networks["G"](noise.normal(self.nz, stream=LATENT))
        return points


def load(path: Path) -> Weights:
    """Weights of a generator, `.safetensors` of this package."""
    tensors, config = read_tensors(path)
    if config is None or config.get("generator", {}).get("class") != "mlp" or "num_timesteps" in config:
        raise WeightsError(f"{path}: not the generator of a one-shot GAN. Give what `trilemma-bench train gan` wrote.")
    return make_weights(tensors, config, str(path))


def build(options: Options, weights: Weights, **settings: Any) -> GANSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 1000 by default."""
    settings["micro_batch"] = settings.get("micro_batch") or 1000
    return GANSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="gan", family="gan", options=Options, build=build, load=load, baseline="gan", tolerance=(1, 0.001),
    source="Goodfellow et al. 2014, arXiv 1406.2661",
)  # fmt: skip
