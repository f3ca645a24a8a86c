"""ADM and Improved DDPM with learned variances, respaced chains and classifier guidance.

Nichol & Dhariwal 2021 (arXiv 2102.09672) and Dhariwal & Nichol 2021 (arXiv 2105.05233). The network predicts eps and
v in [-1, 1]: log variance = (v + 1) / 2 log beta + (1 - v) / 2 log of the posterior's. A classifier of noisy images
guides towards the class y of each image, which comes from its seed:

    ddpm: mean  <- mean + s variance grad log p(y | x_t)
    ddim: eps   <- eps - s sqrt(1 - alpha_bar) grad log p(y | x_t)

The classifier's passes, forward and backward, are counted apart from the denoiser's evaluations. On points the classes
are the modes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trilemma_bench.diffusion import Chain, Spacing, cosine_betas, ddim_pairs, linear_betas, predict_x0
from trilemma_bench.errors import UsageError, WeightsError, unknown_name
from trilemma_bench.kinds import SamplerKind, Shape, Weights, is_points
from trilemma_bench.nets import mixture, mlp
from trilemma_bench.nets.adm import build_classifier, build_unet
from trilemma_bench.samplers._helpers import (
    LABEL,
    STEP,
    X_T,
    ImageSampler,
    Noise,
    make_weights,
    part_of,
    read_tensors,
)
from trilemma_bench.spec import Frozen

TOLERANCE = (2, 0.002)
"""That of the other chains over a UNet; no weights ship with which it could be measured at full size."""

SCHEDULES = {
    # The range of the linear schedule is stated for 1000 steps and scales with their number.
    "linear": lambda steps: linear_betas(steps, 0.1 / steps, 20 / steps),
    "cosine": cosine_betas,
}


class Options(Frozen):
    """`guidance` is the classifier's scale s (0: none); `eta` is for `method=ddim` alone.

    Chains are respaced as in the authors' program: evenly with both ends for `ddpm`, by a whole stride for `ddim`.
    """

    steps: int = Field(default=250, ge=1)
    method: Literal["ddpm", "ddim"] = "ddpm"
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    guidance: float = Field(default=0.0, ge=0.0)
    clip: bool = True


class ADMSampler(ImageSampler):
    """A respaced chain, guided where there is a classifier and a scale."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        config = weights.config
        self.chain = _chain(config)
        denoiser, shape = _denoiser(weights, self.chain)
        scale = float(config.get("scale", 1.0))
        super().__init__("adm", {"denoiser": denoiser}, shape, identity=weights.digest, scale=scale, **settings)
        self.options = options
        self.num_classes: int | None = denoiser.num_classes if is_points(shape) else denoiser.config.num_classes
        if options.guidance:
            self._add_classifier(weights)
        # Improved DDPM's networks were told t on the scale of 1000 steps, whatever the number of theirs.
        self._time_scale = 1000 / len(self.chain) if config.get("rescale_timesteps") else 1.0
        spacing: Spacing = "even" if options.method == "ddpm" else "leading"
        self.pairs = ddim_pairs(len(self.chain), options.steps, spacing)

    def _add_classifier(self, weights: Weights) -> None:
        if "mixture" in weights.config:
            self.add_guides({"classifier": mixture.Classifier(weights.config["mixture"], self.chain)})
            return
        if "classifier" not in weights.config:
            raise UsageError(
                f"guidance={self.options.guidance:g} needs a classifier, and {weights.source} has none. Give a folder "
                "that holds both files, such as 64x64_diffusion.pt and 64x64_classifier.pt."
            )
        if is_points(self.image_shape):
            self.add_guides({"classifier": part_of(weights, "classifier", mlp.build_classifier)})
            return
        classifier = part_of(weights, "classifier", build_classifier)
        size, classes = classifier.config.image_size, classifier.config.num_classes
        if size != self.image_shape[1] or self.num_classes not in (None, classes):
            raise WeightsError(
                f"{weights.source}: the classifier has {classes} classes at {size} pixels, the denoiser "
                f"{self.num_classes} at {self.image_shape[1]}. Give two files that belong together."
            )
        self.add_guides({"classifier": classifier})

    @property
    def expected_nfe(self) -> int:
        return len(self.pairs)

    def draw(self, noise: Noise, count: int) -> Tensor:
        labels = self._labels(noise)
        x = noise.normal(*self.image_shape, stream=X_T)
        for row, (t, _) in enumerate(self.pairs):
            told = torch.full((count,), t * self._time_scale, device=self.device)
            y = labels if self.num_classes is not None else None
            out = self.networks["denoiser"](x, told, y).float()
            push = self._push(x, told, labels) if labels is not None and self.guides else None
            x = self.step(x, out, row, push, noise)
        return x

    def _labels(self, noise: Noise) -> Tensor | None:
        """A class for each image, uniformly from its seed; None where nothing asks for one."""
        classes = self.num_classes
        if classes is None and self.guides:
            guide: Any = self.guides["classifier"]
            classes = guide.num_classes if is_points(self.image_shape) else guide.config.num_classes
        return None if classes is None else noise.integers(classes, stream=LABEL)

    def _push(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """s grad log p(y | x_t), float32 [N, C, H, W]."""
        with torch.inference_mode(False), torch.enable_grad():
            x, labels = x.clone().requires_grad_(True), labels.clone()
            logits = self.guides["classifier"](x, t.clone()).float()
            chosen = torch.log_softmax(logits, dim=1).gather(1, labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, x)
        return self.options.guidance * gradient.float()

    def step(self, x: Tensor, out: Tensor, row: int, push: Tensor | None, noise: Noise) -> Tensor:
        """x_{t_prev} given x_t and the network's output at pair `row` of the chain; the last pair adds no noise."""
        t, t_prev = self.pairs[row]
        now, before = self._alpha_bar(t), self._alpha_bar(t_prev)
        eps = out[:, : x.shape[1]]
        x0 = predict_x0(x, eps, now)
        if self.options.clip:
            x0 = x0.clamp(-1, 1)
        if self.options.method == "ddim":
            return self._implicit(x, x0, now, before, push, noise)
        beta = 1 - now / before
        mean = math.sqrt(before) * beta / (1 - now) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        variance = self._variance(out[:, x.shape[1] :], row, beta)
        if push is not None:
            mean = mean + variance * push
        return mean if t_prev < 0 else mean + variance.sqrt() * noise.normal(*self.image_shape, stream=STEP)

    def _variance(self, v: Tensor, row: int, beta: float) -> Tensor:
        """Of the step at pair `row`: between beta (v = 1) and the posterior's (v = -1); beta where none is learned."""
        if not v.shape[1]:
            return torch.tensor(beta, device=v.device)
        part = (v + 1) / 2
        return torch.exp(part * math.log(beta) + (1 - part) * math.log(self._posterior_variance(row)))

    def _posterior_variance(self, row: int) -> float:
        """Of q(x_{t_prev} | x_t, x_0); at the last pair, where it is 0, that of the pair before, as the authors do."""
        if row == len(self.pairs) - 1:
            return self._posterior_variance(row - 1) if row else 1e-20
        now, before = (self._alpha_bar(t) for t in self.pairs[row])
        return (1 - now / before) * (1 - before) / (1 - now)

    def _implicit(self, x: Tensor, x0: Tensor, now: float, before: float, push: Tensor | None, noise: Noise) -> Tensor:
        """DDIM's step from the clipped x_0, guided through eps."""
        eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        if push is not None:
            eps = eps - math.sqrt(1 - now) * push
            x0 = predict_x0(x, eps, now)
        sigma = self.options.eta * math.sqrt((1 - before) / (1 - now) * (1 - now / before))
        x = math.sqrt(before) * x0 + math.sqrt(max(1 - before - sigma**2, 0.0)) * eps
        return x + sigma * noise.normal(*self.image_shape, stream=STEP) if sigma > 0 else x

    def _alpha_bar(self, t: int) -> float:
        return float(self.chain.alpha_bar[t]) if t >= 0 else 1.0


def _chain(config: Mapping[str, Any]) -> Chain:
    """The chain of weights: of their own betas, or one of the authors' schedules."""
    steps = int(config.get("num_train_steps", 1000))
    if "betas" in config:
        return Chain(linear_betas(steps, **config["betas"]))
    schedule = config.get("schedule", "linear")
    if schedule not in SCHEDULES:
        raise unknown_name("noise schedule", str(schedule), SCHEDULES)
    return Chain(SCHEDULES[schedule](steps))


def _denoiser(weights: Weights, chain: Chain) -> tuple[Any, Shape]:
    """The network and the shape of what it sees: a UNet of images, an MLP or the optimum of points."""
    config = weights.config
    if "mixture" in config:
        exact = mixture.EpsilonAndVariance(config["mixture"], chain)
        return exact, (exact.centres.shape[1],)
    if config.get("denoiser", {}).get("class") == "mlp":
        points: Any = part_of(weights, "denoiser", mlp.build_variance)
        return points, (points.config.dimensions,)
    net = part_of(weights, "denoiser", build_unet)
    return net, (3, net.config.image_size, net.config.image_size)


# --- files --------------------------------------------------------------------------------------------------

_MULTIPLES = {32: [1, 2, 2, 2], 64: [1, 2, 3, 4], 128: [1, 1, 2, 3, 4], 256: [1, 1, 2, 2, 4, 4],
              512: [0.5, 1, 1, 2, 2, 4, 4]}  # fmt: skip
_IMPROVED = {"num_train_steps": 4000, "schedule": "cosine"}
_ADM = {"num_head_channels": 64, "num_res_blocks": 2, "resblock_updown": True, "attention_resolutions": [32, 16, 8]}
_RELEASED: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"image_size": 32, "num_res_blocks": 3}, {**_IMPROVED, "rescale_timesteps": True}),
    ({"image_size": 64, "num_res_blocks": 3}, {**_IMPROVED, "rescale_timesteps": True}),
    ({"image_size": 64, "num_res_blocks": 3, "num_classes": 1000}, _IMPROVED),
    ({"image_size": 256, "num_res_blocks": 2, "num_heads": 1, "use_scale_shift_norm": False,
      "attention_resolutions": [16]}, {}),
    ({**_ADM, "image_size": 64, "num_res_blocks": 3, "num_classes": 1000, "use_new_attention_order": True},
     {"schedule": "cosine"}),
    ({**_ADM, "image_size": 128, "num_head_channels": -1, "num_heads": 4, "num_classes": 1000}, {}),
    ({**_ADM, "image_size": 256, "num_classes": 1000}, {}),
    ({**_ADM, "image_size": 256}, {}),
    ({**_ADM, "image_size": 512, "num_classes": 1000}, {}),
)  # fmt: skip
"""What the authors' READMEs state for each released denoiser, and for its chain (linear and 1000 steps where empty):
no file says it. Widths and the number of classes are read off the shapes."""
_CLASSIFIERS = ({"image_size": 64, "classifier_depth": 4}, {"image_size": 128}, {"image_size": 256},
                {"image_size": 512})  # fmt: skip


def load(path: Path) -> Weights:
    """Weights of a denoiser, with or without its classifier.

    A folder holds one file of a denoiser and at most one with `classifier` in its name. Each is a bare state dict of
    the authors' (`.pt`), whose configuration is the released one with the same tensors, or that in a file of the same
    name with `.json` in place of the suffix; or a `.safetensors` that `trilemma-bench weights import` wrote.
    """
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    denoisers = [file for file in files if "classifier" not in file.name]
    classifiers = [file for file in files if "classifier" in file.name]
    if len(denoisers) != 1 or len(classifiers) > 1:
        raise WeightsError(
            f"{path}: expected one .pt of a denoiser and at most one with 'classifier' in its name; found "
            f"{', '.join(file.name for file in files) or 'none'}. Give a folder with those two alone."
        )
    tensors, config = read_tensors(denoisers[0])
    if config is None:
        config = _configuration(denoisers[0], tensors, "denoiser")
        tensors = {f"denoiser.{key}": tensor for key, tensor in tensors.items()}
    for file in classifiers:
        more, _ = read_tensors(file)
        config = {**config, **_configuration(file, more, "classifier")}
        tensors |= {f"classifier.{key}": tensor for key, tensor in more.items()}
    return make_weights(tensors, config, str(path))


def _configuration(file: Path, tensors: Mapping[str, Tensor], part: Literal["denoiser", "classifier"]) -> Any:
    """{part: configuration} and, of a denoiser, its chain: from the file beside it, or the released one that fits."""
    beside = file.with_suffix(".json")
    if beside.is_file():
        try:
            found = json.loads(beside.read_text())
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{beside}: is not JSON: {error}.") from error
        if not isinstance(found, dict) or not isinstance(found.get(part), dict):
            raise WeightsError(f'{beside}: expected {{"{part}": {{...}}, ...}}.')
        return found
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for config, chain in _candidates(shapes, part):
        if _fits(config, shapes, build_unet if part == "denoiser" else build_classifier):
            return {part: config, **chain}
    raise WeightsError(
        f"{file}: {len(tensors)} tensors that are no {part} that OpenAI released. State its configuration in "
        f"{beside.name}, under the names of the authors' flags."
    )


def _candidates(shapes: Mapping[str, tuple[int, ...]], part: str) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Released configurations, with the widths and classes of these shapes."""
    width = shapes.get("time_embed.0.weight", (0, 0))[-1]
    if part == "classifier":
        classes = shapes.get("out.2.c_proj.weight", (0,))[0]
        for settings in _CLASSIFIERS:
            multiples = _MULTIPLES[int(settings["image_size"])]
            yield {**settings, "channel_mult": multiples, "classifier_width": width, "num_classes": classes}, {}
        return
    own: dict[str, Any] = {"num_channels": width, "learn_sigma": shapes.get("out.2.weight", (0,))[0] == 6}
    for settings, chain in _RELEASED:
        labels = shapes.get("label_emb.weight")
        if (labels is None) == ("num_classes" not in settings):
            own["num_classes"] = labels[0] if labels else None
            yield {**settings, **own, "channel_mult": _MULTIPLES[settings["image_size"]]}, chain


def _fits(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], build: Any) -> bool:
    try:
        with torch.device("meta"):
            net: nn.Module = build(config)
    except UsageError:
        return False
    return {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()} == shapes


def build(options: Options, weights: Weights, **settings: Any) -> ADMSampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 25 (points: 1000) by default."""
    points = "mixture" in weights.config or weights.config.get("denoiser", {}).get("class") == "mlp"
    settings["micro_batch"] = settings.get("micro_batch") or (1000 if points else 25)
    return ADMSampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="adm", family="diffusion", options=Options, build=build, load=load, baseline="adm", tolerance=TOLERANCE,
    source="Dhariwal & Nichol 2021, arXiv 2105.05233; Nichol & Dhariwal 2021, arXiv 2102.09672",
)  # fmt: skip
