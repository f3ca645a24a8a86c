"""Sampling of StyleGAN2(-ADA) (Karras et al. 2020, arXiv 2006.06676): one evaluation an image.

Latents, noise images and, for conditional models, the label all come from the image's seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from trilemma_bench.errors import WeightsError
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.nets.stylegan2 import Generator, build_generator
from trilemma_bench.samplers._helpers import (
    LABEL,
    LATENT,
    STEP,
    ImageSampler,
    Noise,
    built,
    check_file,
    make_weights,
    network_of,
    read_tensors,
)
from trilemma_bench.samplers._persistence import generator_config, read_networks, tensors_of
from trilemma_bench.spec import Frozen

PICKLES = (".pkl", ".pickle")
"""Suffixes of the authors' files."""

TOLERANCE = (2, 0.001)
"""Far over what 200 images differ by as a whole: 1 grey level in 5e-5 of the values, in the worst of them in 7e-4.

Measured with the shipped weights between micro-batches of 1 and 100; those of 7 and 50, two threads for one, and AVX2
for AVX-512 changed nothing. A handful of images is what is compared.
`test_other_batches_and_threads_stay_within_half_the_tolerance` holds it.
"""


class Options(Frozen):
    """The authors' default evaluation: random noise, no truncation."""

    truncation_psi: float = 1.0
    noise_mode: Literal["random", "const", "none"] = "random"


class StyleGAN2Sampler(ImageSampler):
    """One pass of the generator."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        generator = network_of(weights, "generator", build_generator)
        assert isinstance(generator, Generator)
        built(generator, weights)
        self.options = options
        self._settings = generator.config
        self._noise_shapes = generator.synthesis.noise_shapes
        size = generator.config.img_resolution
        shape = (generator.config.img_channels, size, size)
        super().__init__("stylegan2", {"G": generator}, shape, identity=weights.digest, **settings)

    @property
    def expected_nfe(self) -> int:
        return 1

    def draw(self, noise: Noise, count: int) -> Tensor:
        settings, options = self._settings, self.options
        z = noise.normal(settings.z_dim, stream=LATENT)
        labels = None
        if settings.c_dim:
            labels = F.one_hot(noise.integers(settings.c_dim, stream=LABEL), settings.c_dim).float()
        drawn = None
        if options.noise_mode == "random":
            drawn = [noise.normal(1, *shape, stream=STEP) for shape in self._noise_shapes]
        images: Tensor = self.networks["G"](
            z, labels, noise_mode=options.noise_mode, truncation_psi=options.truncation_psi, noise=drawn
        )
        return images


def load(path: Path) -> Weights:
    """Weights of a generator: `.safetensors` of this package, or an official StyleGAN2-ADA pickle (`.pkl`).

    Of a pickle the averaged generator `G_ema` is taken; its configuration is read off attributes and shapes.
    """
    if path.suffix in PICKLES:
        return _load_official(path)
    tensors, config = read_tensors(path)
    if config is None:
        raise WeightsError(
            f"{path}: holds no network configuration. Give a .safetensors that `trilemma-bench train stylegan2` wrote, "
            "or an official pickle (.pkl)."
        )
    return make_weights(tensors, config, str(path))


def _load_official(path: Path) -> Weights:
    check_file(path)
    networks = read_networks(path)
    if "G_ema" not in networks:
        raise WeightsError(f"{path}: holds {', '.join(networks)}, and no averaged generator G_ema.")
    tensors = tensors_of(networks["G_ema"], str(path))
    config = generator_config(networks["G_ema"], tensors, str(path))
    return make_weights(tensors, {"generator": config}, f"{path} (G_ema)")


def build(options: Options, weights: Weights, **settings: Any) -> StyleGAN2Sampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 50 by default."""
    settings["micro_batch"] = settings.get("micro_batch") or 50
    return StyleGAN2Sampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="stylegan2", family="gan", options=Options, build=build, load=load, baseline="stylegan2",
    tolerance=TOLERANCE, source="Karras et al. 2020, arXiv 2006.06676",
)  # fmt: skip
