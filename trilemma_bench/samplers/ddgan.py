"""Sampling of denoising diffusion GANs (Xiao, Kreis & Vahdat 2022, arXiv 2112.07804): T evaluations an image.

For t = T-1 .. 0: a fresh z, x_0 = G(x_{t+1}, t, z), x_t ~ q(x_t | x_{t+1}, x_0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from trilemma_bench.diffusion import GanChain
from trilemma_bench.errors import WeightsError
from trilemma_bench.kinds import SamplerKind, Shape, Weights
from trilemma_bench.nets import mlp, ncsnpp
from trilemma_bench.nets.mixture import Posterior
from trilemma_bench.nets.pixel_blocks import in_pixel_blocks
from trilemma_bench.samplers._helpers import (
    LATENT,
    STEP,
    X_T,
    ImageSampler,
    Noise,
    built,
    make_weights,
    network_of,
    read_tensors,
)
from trilemma_bench.spec import Frozen

TOLERANCE = (2, 0.001)
"""Over twice what was measured: 1 grey level, in 3.3e-4 of the values of the worst of 200 images (1.5e-5 of all).

With the shipped weights, for AVX2 in place of AVX-512 and (1e-5) micro-batches of 1 in place of 100; those of 7 and 50
and two threads for one changed nothing.
`test_other_batches_and_threads_stay_within_half_the_tolerance` holds it.
"""


class Options(Frozen):
    """`num_timesteps` T is for weights that do not say theirs (the authors' files); else it must be what they say."""

    num_timesteps: int | None = Field(default=None, ge=1)


class DDGANSampler(ImageSampler):
    """T steps of generate and diffuse back."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        config = weights.config
        self.chain = GanChain(_num_timesteps(options, weights))
        generator, shape = _network(weights, self.chain)
        scale = float(config.get("scale", 1.0))
        super().__init__("ddgan", {"G": generator}, shape, identity=weights.digest, scale=scale, **settings)
        points = "mixture" in config
        self.nz = 1 + shape[0] if points else int(config["generator"].get("nz", 100))
        self.predict = "x0" if points else str(config["generator"].get("predict", "x0"))

    @property
    def expected_nfe(self) -> int:
        return self.chain.num_steps

    def draw(self, noise: Noise, count: int) -> Tensor:
        return self.denoise(noise.normal(*self.image_shape, stream=X_T), noise, self.chain.num_steps)

    def denoise(self, x: Tensor, noise: Noise, steps: int) -> Tensor:
        """x_0 [N, *image_shape] from x_t at t = `steps`, by the last `steps` of the chain."""
        for index in reversed(range(steps)):
            t = torch.full((len(x),), index, device=self.device)
            z = noise.normal(self.nz, stream=LATENT)
            output = self.networks["G"](x, t, z).float()
            step = noise.normal(*self.image_shape, stream=STEP) if index else torch.zeros_like(x)
            x = self.chain.previous(output, x, t, step, predict=self.predict)
        return x


def _num_timesteps(options: Options, weights: Weights) -> int:
    """T of the chain.

    Raises:
        WeightsError: Another one than the weights were trained for.
    """
    config, wanted = weights.config, options.num_timesteps
    trained = config.get("num_timesteps")
    # Neither the optimum nor a network before training belongs to a chain.
    if weights.tensors and trained is not None and wanted not in (None, trained):
        raise WeightsError(
            f"{weights.source}: trained for T = {trained} steps; got num_timesteps={wanted}. Every T needs weights of "
            "its own: leave the option out, or name them as ddgan@PATH."
        )
    return wanted or int(trained or config.get("usual_num_timesteps", 4))


def _network(weights: Weights, chain: GanChain) -> tuple[nn.Module, Shape]:
    """The generator of these weights and the shape of what it makes: images, or points by an MLP or the optimum."""
    config = weights.config
    if "mixture" in config:
        exact = Posterior(config["mixture"], chain)
        return exact, (exact.centres.shape[1],)
    if config.get("generator", {}).get("class") == "mlp":
        points = network_of(weights, "generator", mlp.build_generator)
        return built(points, weights), (mlp.parse(config["generator"]).dimensions,)
    generator = built(network_of(weights, "generator", ncsnpp.build_generator), weights)
    block = int(config.get("pixel_block", 1))
    size = int(config["generator"]["image_size"]) * block
    channels = int(config["generator"]["num_channels"]) // block**2
    return in_pixel_blocks(generator, block), (channels, size, size)


def load(path: Path) -> Weights:
    """Weights of a generator: `.safetensors` of this package, or the authors' `netG_*.pth`.

    The authors' files hold no configuration: width, depth of the mapping and sizes of z are read off the shapes,
    the rest is the released configuration of CIFAR-10 (384 tensors) or of the 256-pixel sets (548 tensors).
    """
    tensors, config = read_tensors(path)
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    if config is None:
        config = _released_config(tensors, path)
    return make_weights(tensors, config, str(path))


def _released_config(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    topologies = {
        384: {"image_size": 32, "ch_mult": [1, 2, 2, 2]},
        548: {"image_size": 256, "ch_mult": [1, 1, 2, 2, 4, 4]},
    }
    if len(tensors) not in topologies or not {"all_modules.2.weight", "z_transform.1.weight"} <= tensors.keys():
        raise WeightsError(
            f"{path}: {len(tensors)} tensors that are not a released DDGAN generator (384 or 548 tensors). "
            "Convert it to .safetensors with its configuration under the header key `config`."
        )
    topology = topologies[len(tensors)]
    linears = [key for key in tensors if key.startswith("z_transform.") and key.endswith(".weight")]
    stem, first = tensors["all_modules.2.weight"], tensors["z_transform.1.weight"]
    generator = {
        **topology, "num_channels": int(stem.shape[1]), "num_channels_dae": int(stem.shape[0]), "num_res_blocks": 2,
        "attn_resolutions": [16], "n_mlp": len(linears) - 1, "nz": int(first.shape[1]),
        "z_emb_dim": int(first.shape[0]),
    }  # fmt: skip
    return {"generator": generator, "pixel_block": 1, "usual_num_timesteps": 4 if topology["image_size"] == 32 else 2}


def build(options: Options, weights: Weights, **settings: Any) -> DDGANSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 50 (points: 1000) by default."""
    points = "mixture" in weights.config or weights.config.get("generator", {}).get("class") == "mlp"
    settings["micro_batch"] = settings.get("micro_batch") or (1000 if points else 50)
    return DDGANSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="ddgan", family="ddgan", options=Options, build=build, load=load, baseline="ddgan", tolerance=TOLERANCE,
    source="Xiao, Kreis & Vahdat 2022, arXiv 2112.07804",
)  # fmt: skip
