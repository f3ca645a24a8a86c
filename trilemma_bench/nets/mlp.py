"""Small fully connected networks for points [N, D], conditioned on a step t; several training seeds as one network.

The networks of 25-Gaussians in Xiao et al. 2022 (arXiv 2112.07804, appendix) are three fully connected layers. Here a
sinusoidal embedding of t (Vaswani et al. 2017, arXiv 1706.03762) is added in every hidden layer, and the coordinates
may be joined by their sines and cosines (Tancik et al. 2020, arXiv 2006.10739): a narrow network then learns modes
that are a two-hundredth of the data's width.

`members` networks that know nothing of each other are trained at once: every weight has a leading axis of members,
and a batch of N rows is that of the first member (N / members rows), then that of the second, and so on. `member`
takes one of them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma_bench.errors import UsageError
from trilemma_bench.spec import Frozen

ACTIVATIONS = {"silu": F.silu, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "relu": F.relu}


class MLPConfig(Frozen):
    """Sizes of one network; `frequencies` sines and cosines, at 1/2, 1, 2 ... periods over [-1, 1], a coordinate."""

    dimensions: int = Field(default=2, ge=1)
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=3, ge=1)
    """Hidden layers."""
    nz: int = Field(default=0, ge=0)
    """Size of the latent z; 0 for a network that has none."""
    time_dim: int = Field(default=64, ge=0, multiple_of=2)
    """Size of the embedding of t; 0 for a network that knows no t."""
    frequencies: int = Field(default=0, ge=0)
    extent: float = Field(default=1.0, gt=0)
    """Points are divided by this on their way in and multiplied by it on their way out."""
    activation: Literal["silu", "leaky_relu", "relu"] = "silu"
    spectral_norm: bool = False
    members: int = Field(default=1, ge=1)


class Linear(nn.Module):
    """An affine map for each member: [S, B, in] -> [S, B, out], first weights as torch.nn.Linear's.

    With `spectral_norm` the weight is divided by its largest singular value, by one step of power iteration a
    training call (Miyato et al. 2018, arXiv 1802.05957).
    """

    def __init__(self, inputs: int, outputs: int, members: int, *, spectral_norm: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))
        if spectral_norm:
            self.u: Tensor
            self.register_buffer("u", F.normalize(torch.randn(members, 1, inputs), dim=2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self._normalised() if hasattr(self, "u") else self.weight)

    def _normalised(self) -> Tensor:
        with torch.no_grad():
            v = F.normalize(self.u @ self.weight, dim=2)
            if self.training:
                self.u.copy_(F.normalize(v @ self.weight.mT, dim=2))
        # A copy: the next call moves u before this one's gradient is computed.
        return self.weight / (self.u.clone() @ self.weight @ v.mT)


class MLP(nn.Module):
    """[x, further inputs] -> outputs; the further inputs are latents or a second point. The subclasses name them."""

    def __init__(self, config: MLPConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.config = config
        sizes = [inputs + 2 * config.frequencies * config.dimensions, *[config.width] * config.depth]
        options: dict[str, Any] = {"spectral_norm": config.spectral_norm}
        layer = lambda a, b: Linear(a, b, config.members, **options)  # noqa: E731
        self.layers = nn.ModuleList([layer(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)])
        times = range(config.depth if config.time_dim else 0)
        self.times = nn.ModuleList([layer(config.time_dim, config.width) for _ in times])
        self.last = layer(config.width, outputs)

    def run(self, x: Tensor, t: Tensor | None, *others: Tensor) -> Tensor:
        """Float [N, D], t [N] (whole numbers or between them), [N, .] each -> [N, outputs]."""
        config = self.config
        if len(x) % config.members:
            raise UsageError(f"{len(x)} rows cannot be cut into {config.members} equal parts, one a member.")
        x = x / config.extent
        h = self._by_member(torch.cat([x, *_waves(x, config.frequencies), *others], 1))
        embedded = self._by_member(sinusoids(t, config.time_dim)) if t is not None and self.times else None
        for index, layer in enumerate(self.layers):
            h = layer(h)
            if embedded is not None:
                h = h + self.times[index](embedded)
            h = ACTIVATIONS[config.activation](h)
        out: Tensor = self.last(h)
        return out.reshape(len(x), -1)

    def _by_member(self, rows: Tensor) -> Tensor:
        return rows.reshape(self.config.members, -1, rows.shape[1])


def sinusoids(t: Tensor, size: int, longest: float = 10_000.0) -> Tensor:
    """Sines and cosines of t [N] at `size` / 2 frequencies from 1 down to 1 / `longest`: float32 [N, size]."""
    half = size // 2
    places = torch.arange(half, dtype=torch.float32, device=t.device) / max(half - 1, 1)
    angles = t.float()[:, None] * torch.exp(-math.log(longest) * places)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _waves(x: Tensor, count: int) -> list[Tensor]:
    angles = [x * (math.pi / 2 * 2**index) for index in range(count)]
    return [wave for angle in angles for wave in (angle.sin(), angle.cos())]


class Epsilon(MLP):
    """Predicts the noise: (x_t float [N, D], t [N]) -> eps float [N, D]."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config, config.dimensions, config.dimensions)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.config.extent * self.run(x_t, t)


class EpsilonAndVariance(MLP):
    """Predicts the noise and v, of the variance of a step (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15).

    (x_t float [N, D], t [N]) -> float [N, 2 D]; a third argument, the classes, is not looked at.
    """

    num_classes: int | None = None

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config, config.dimensions, 2 * config.dimensions)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.config.extent * self.run(x_t, t)


class ClassifierConfig(MLPConfig):
    """Sizes, and the number of classes."""

    num_classes: int = Field(default=2, ge=2)


class Classifier(MLP):
    """(x_t float [N, D], t [N]) -> logits of the classes of noisy points, float [N, num_classes]."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config, config.dimensions, config.num_classes)
        self.num_classes = config.num_classes

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.run(x_t, t)


class Generator(MLP):
    """(x float [N, D], t [N], z float [N, nz]) -> a point, float [N, D]; `nz` 0 is a network without z."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config, config.dimensions + config.nz, config.dimensions)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return self.config.extent * (self.run(x, t, z) if self.config.nz else self.run(x, t))


class Discriminator(MLP):
    """(x_t float [N, D], t [N], x_{t+1} float [N, D]) -> logits float [N, 1]."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config, 2 * config.dimensions, 1)

    def forward(self, x_t: Tensor, t: Tensor, x_next: Tensor) -> Tensor:
        return self.run(x_t, t, x_next / self.config.extent)


class Decoder(MLP):
    """z float [N, nz] -> a point, float [N, D], in one shot."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config.model_copy(update={"time_dim": 0, "frequencies": 0}), config.nz, config.dimensions)

    def forward(self, z: Tensor) -> Tensor:
        return self.config.extent * self.run(self.config.extent * z, None)


class Critic(MLP):
    """(x float [N, D], t [N] or None) -> one number, float [N, 1]; `time_dim` 0 is a network that knows no t."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config, config.dimensions, 1)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return self.run(x, t)


ConfigT = TypeVar("ConfigT", bound=MLPConfig)


def parse(config: Mapping[str, Any]) -> MLPConfig:
    """A checked configuration of a plain network; see `parse_as`."""
    return parse_as(MLPConfig, config)


def parse_as(kind: type[ConfigT], config: Mapping[str, Any]) -> ConfigT:
    """A checked configuration; the keys `class` and `predict`, which say what a network is for, are left out.

    Raises:
        UsageError: An unknown key, or a value outside its range.
    """
    try:
        return kind.model_validate({key: value for key, value in config.items() if key not in ("class", "predict")})
    except ValueError as error:
        raise UsageError(f"not a configuration of an MLP: {error}") from error


def build(config: Mapping[str, Any]) -> nn.Module:
    """The noise-predicting network of a configuration."""
    return Epsilon(parse(config))


def build_variance(config: Mapping[str, Any]) -> nn.Module:
    """The network of noise and variance of a configuration."""
    return EpsilonAndVariance(parse(config))


def build_classifier(config: Mapping[str, Any]) -> nn.Module:
    """The classifier of noisy points of a configuration."""
    return Classifier(parse_as(ClassifierConfig, config))


def build_generator(config: Mapping[str, Any]) -> nn.Module:
    """The generator of a configuration."""
    return Generator(parse(config))


def build_decoder(config: Mapping[str, Any]) -> nn.Module:
    """The one-shot generator of a configuration."""
    return Decoder(parse(config))


def build_critic(config: Mapping[str, Any]) -> nn.Module:
    """The unconditional discriminator of a configuration."""
    return Critic(parse(config))


def build_discriminator(config: Mapping[str, Any]) -> nn.Module:
    """The discriminator of a configuration."""
    return Discriminator(parse(config))


PARTS = ("mlp", "generator", "discriminator", "denoiser", "classifier", "autoencoder", "prior")
"""Keys under which the configuration of weights may hold that of a network."""


def members(config: Mapping[str, Any]) -> int:
    """How many networks the weights of this configuration hold."""
    return max(int(config.get(part, {}).get("members", 1)) for part in PARTS)


def single(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the weights of one of several members."""
    return {k: {**v, "members": 1} if k in PARTS and "members" in v else v for k, v in config.items()}


def member(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The tensors of one of several members, for a network of one member."""
    return {key: tensor[index : index + 1] for key, tensor in tensors.items()}
