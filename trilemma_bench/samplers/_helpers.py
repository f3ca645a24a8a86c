"""What every image sampler shares: noise keyed by image, fixed micro-batches, precision, reading weights."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trilemma_bench.errors import DataError, ProtocolError, UsageError, WeightsError, unknown_name
from trilemma_bench.images import check_member_name, to_uint8
from trilemma_bench.kinds import Shape, Weights, is_points
from trilemma_bench.spec import digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


AHEAD = 128
"""Numbers of a stream that are drawn at once, at least."""


class Noise:
    """Random numbers of a micro-batch: each image has streams of its own, keyed by (seed, stream).

    Philox is a counter-based generator: streams with different keys are independent, on every machine the same.
    Numbers are drawn on the CPU, so that they do not depend on the device.
    """

    def __init__(self, seeds: Tensor, device: torch.device) -> None:
        self._seeds = seeds.to(torch.int64).cpu().numpy().view(np.uint64)
        self._device = device
        self._streams: dict[int, list[np.random.Generator]] = {}
        self._drawn: dict[int, npt.NDArray[np.float32]] = {}

    def normal(self, *shape: int, stream: int) -> Tensor:
        """The next N(0, I) numbers of `stream`, float32 [N, *shape]."""
        size = math.prod(shape)
        drawn = self._drawn.get(stream)
        if drawn is None or drawn.shape[1] < size:
            # A stream's numbers are one sequence: drawn ahead, for the many steps of small things, they are the same.
            ahead = self._draw(size * max(1, AHEAD // max(size, 1)), stream)
            drawn = ahead if drawn is None else np.concatenate([drawn, ahead], 1)
        self._drawn[stream] = drawn[:, size:]
        out = np.ascontiguousarray(drawn[:, :size]).reshape(len(drawn), *shape)
        return torch.from_numpy(out).to(self._device)

    def _draw(self, count: int, stream: int) -> npt.NDArray[np.float32]:
        out = np.empty((len(self._seeds), count), np.float32)
        for row, rng in enumerate(self._generators(stream)):
            rng.standard_normal(out=out[row], dtype=np.float32)
        return out

    def integers(self, high: int, *, stream: int) -> Tensor:
        """The next whole numbers in 0..high-1 of `stream`, int64 [N]; a stream gives these or normals, not both."""
        drawn = [rng.integers(high) for rng in self._generators(stream)]
        return torch.tensor(drawn, dtype=torch.int64, device=self._device)

    def _generators(self, stream: int) -> list[np.random.Generator]:
        if stream not in self._streams:
            keys = [np.array([seed, stream], np.uint64) for seed in self._seeds]
            self._streams[stream] = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        return self._streams[stream]


X_T, STEP, LATENT, LABEL = range(4)
"""Streams: the start of a chain, the noise of its steps, latent z, class labels."""


class ImageSampler(ABC):
    """A sampler of images in fixed micro-batches, the last one padded, so that companions do not matter.

    Args:
        name: As in the leaderboard.
        networks: The networks whose forward calls are the number of function evaluations.
        image_shape: (C, H, W), or (D,) for points.
        scale: Points are this times what the networks see; see `kinds.Dataset`.
        micro_batch: Images in one batch of the networks.
    """

    def __init__(
        self,
        name: str,
        networks: Mapping[str, nn.Module],
        image_shape: Shape,
        *,
        identity: str,
        scale: float = 1.0,
        device: str = "cpu",
        dtype: str = "float32",
        compile: bool = False,
        micro_batch: int = 50,
    ) -> None:
        self.name = name
        self.image_shape: Shape = image_shape
        self.scale = scale
        self.identity = identity
        self.micro_batch = micro_batch
        self.device = torch.device(device)
        if dtype not in DTYPES:
            raise unknown_name("dtype", dtype, DTYPES)
        self.dtype = DTYPES[dtype]
        self._eager = not compile
        self.networks = dict(networks)
        self.guides: dict[str, nn.Module] = {}
        for network in self.networks.values():
            network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            network.eval().requires_grad_(False)
            if compile:
                # The bound method, so that hooks on the module stay outside of what is compiled.
                network.forward = torch.compile(network.forward)  # type: ignore[method-assign]

    def add_guides(self, guides: Mapping[str, nn.Module]) -> None:
        """Take in networks whose gradient guides the others; their passes are counted apart."""
        for network in guides.values():
            network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            network.eval().requires_grad_(False)
        self.guides = {**self.guides, **guides}

    @abstractmethod
    def draw(self, noise: Noise, count: int) -> Tensor:
        """One micro-batch: float [count, *image_shape] in about [-1, 1]."""

    @property
    @abstractmethod
    def expected_nfe(self) -> int | None:
        """Evaluations an image by the formula of the method; the count must agree. None where no formula knows."""

    @torch.inference_mode()
    def sample(self, seeds: Tensor) -> Tensor:
        """int64 [N] -> uint8 [N, C, H, W], or points float64 [N, D]; item i depends on seeds[i] alone."""
        seeds = torch.as_tensor(seeds)
        if seeds.ndim != 1 or seeds.dtype != torch.int64:
            raise UsageError(f"seeds must be int64 [N]; got {seeds.dtype} {list(seeds.shape)}.")
        if not len(seeds):
            return torch.empty(
                0, *self.image_shape, dtype=torch.float64 if is_points(self.image_shape) else torch.uint8
            )
        padded = torch.cat([seeds, seeds.new_zeros(-len(seeds) % self.micro_batch)])
        finish = self._points if is_points(self.image_shape) else to_uint8
        parts = [finish(self.floats(batch)).cpu().contiguous() for batch in padded.split(self.micro_batch)]
        return torch.cat(parts)[: len(seeds)]

    def _points(self, x: Tensor) -> Tensor:
        """float64 [N, D] in the units of the data.

        Raises:
            ProtocolError: A coordinate is not finite.
        """
        bad = int((~x.isfinite()).any(1).sum())
        if bad:
            raise ProtocolError(
                f"{self.name}: {bad} of {len(x)} points are NaN or infinite. The sampler diverged; take smaller steps."
            )
        return x.double() * self.scale

    @torch.inference_mode()
    def floats(self, seeds: Tensor) -> Tensor:
        """One micro-batch before it is rounded to grey levels, or scaled: float32 [N, *image_shape]."""
        with ExitStack() as stack:
            if self.dtype != torch.float32:
                stack.enter_context(torch.autocast(self.device.type, self.dtype))
            if self.device.type == "cpu" and self._eager:
                stack.enter_context(_SameBitsInEveryPlace())
            return self.draw(Noise(seeds, self.device), len(seeds)).float()


class _SameBitsInEveryPlace(TorchFunctionMode):
    """Within, an image's last bits do not depend on its place in a batch on the CPU.

    Torch cuts a batch into one part a thread. Where a part ends beside a whole vector, SiLU takes another formula
    for the rest; where a part of a channels_last batch ends inside an image, group normalisation adds that image's
    pixels in two sums. Both are computed otherwise there, and only there: it costs them twice the time. MKL's matrix
    products add up the rows at the end of a part in another order than the rest. oneDNN's do not, and so linear layers,
    and convolutions that are one, are its; those of several members are where there are few rows, as on more MKL's are
    sound and twice as fast. A rounding apart is enough for another grey level here and there after hundreds of steps.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.silu and not kwargs.get("inplace") and _ends_beside_a_vector(args[0]):
            x = args[0].float()
            return (x / (torch.exp(-x) + 1)).to(args[0].dtype)
        if func is F.group_norm and len(args[0]) % torch.get_num_threads():
            return func(args[0].contiguous(), *args[1:], **kwargs)
        if func is F.linear and _is_onednns(args[0]):
            return _linear(*args, **kwargs)
        if func is F.conv1d and args[3:] == ONE_BY_ONE and args[1].shape[2] == 1 and _is_onednns(args[0]):
            return _linear(args[0].transpose(1, 2), args[1][:, :, 0], args[2]).transpose(1, 2)
        if func is torch.baddbmm and not kwargs and _is_of_members(*args) and _is_onednns(args[1]):
            products = [_linear(x, weight.t(), bias[0]) for bias, x, weight in zip(*args, strict=True)]
            return torch.stack(products) if len(products) > 1 else products[0][None]
        return func(*args, **kwargs)


ONE_BY_ONE = ((1,), (0,), (1,), 1)
"""Stride, padding, dilation and groups of a convolution that is a linear layer."""
FEW_ROWS = 16
"""MKL's batched products of so many rows or more have the same bits in every place (5 to 11 had not)."""


def _is_of_members(bias: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Whether a batched product is an affine map of few rows for each member: its bias is one row a member."""
    return x.shape[1] < FEW_ROWS and bias.shape[:2] == (len(x), 1)


def _is_onednns(x: Tensor) -> bool:
    """Whether oneDNN's linear layer takes `x`: float32 that autocast leaves so, where torch has oneDNN."""
    return (
        x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not torch.is_autocast_enabled("cpu")
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by oneDNN; its gradient is that of `x` alone, as sampled networks do not learn."""
    if x.requires_grad:
        product: Tensor = _Linear.apply(x, weight, bias)
    else:
        product = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    """`_linear` where a gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _linear(x.detach(), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _linear(grads[0], weight.t()), None, None


def _ends_beside_a_vector(x: Tensor, grain: int = 32768, vector: int = 64) -> bool:
    """Whether any part of an elementwise operation, of at least `grain` numbers, is not of whole vectors."""
    parts = max(1, min(torch.get_num_threads(), -(-x.numel() // grain)))
    return bool(x.numel() % vector or -(-x.numel() // parts) % vector)


# --- weights ----------------------------------------------------------------------------------------------

NESTED = ("ema_model", "ema", "state_dict")
"""Keys under which checkpoints hold the state dict that is wanted, averaged weights first."""
MAX_RATIO = 4


def weights_digest(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 over configuration, names, types, shapes and bytes: the same for one content in every file format."""
    total = hashlib.sha256(digest(dict(config)).encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        total.update(f"{key}:{tensor.dtype}:{list(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def make_weights(tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> Weights:
    """Checked weights: floating-point numbers must be finite."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise WeightsError(f"{source}: {key} holds values that are not finite. Export the weights again.")
    return Weights(dict(config), dict(tensors), weights_digest(tensors, config), source)


def untrained(config: Mapping[str, Any], seed: int = 0) -> Weights:
    """Weights that the network's own initialisation makes from `seed`."""
    return Weights(dict(config), None, digest(["untrained", seed, dict(config)]), f"untrained, seed {seed}", seed)


def check_file(path: Path) -> None:
    """Refuse a path after the @ that is no file.

    Raises:
        WeightsError: Nothing there, or a folder.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise WeightsError(f"{path}: {what}. Give the path of a weights file after the @.")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors and, where the file holds it, the configuration; nothing in the file is executed.

    Reads `.safetensors` (configuration in the header, as `trilemma-bench train` writes it) and what
    `torch.load(weights_only=True)` takes, a bare state dict or one under a key of `NESTED`, averaged weights first.

    Raises:
        WeightsError: Missing, unreadable, or not a state dict.
    """
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            tensors, header = read_safetensors(path)
            return tensors, json.loads(header["config"]) if "config" in header else None
        _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:
        # Torch's own text advises to load what may run code.
        lines = [] if isinstance(error, pickle.UnpicklingError) else str(error).strip().splitlines()
        raise WeightsError(
            f"{path}: cannot be read as safetensors or as a plain state dict: "
            f"{lines[0][:300] if lines else type(error).__name__}. "
            "Files that would run code are refused; save the state dict alone."
        ) from error
    nested = next((key for key in NESTED if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    if nested is not None:
        content = content[nested]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path}: holds {type(content).__name__}, expected a state dict of tensors.")
    _check_sizes(content, path)
    return content, None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and the texts of the header.

    Raises:
        OSError, safetensors.SafetensorError: Missing, or not such a file.
    """
    from safetensors import safe_open

    with safe_open(str(path), "pt") as stream:
        return {key: stream.get_tensor(key) for key in stream.keys()}, stream.metadata() or {}  # noqa: SIM118


def _check_zip(path: Path) -> None:
    """Refuse a zip that torch did not write: it never compresses, and its names stay inside.

    Raises:
        WeightsError: A compressed member, or one that leads out of the archive.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            try:
                check_member_name(member.filename, str(path))
            except DataError as error:
                raise WeightsError(str(error)) from error
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
                raise WeightsError(
                    f"{path}: {member.filename!r} unpacks to {member.file_size} bytes; torch writes weights "
                    "uncompressed, and no other zip is read. Save the state dict with torch.save."
                )


def _check_sizes(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are more than the file: a stride of 0 makes any size out of one number."""
    total = 0
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        total += size
        if tensor.layout != torch.strided or tensor.is_quantized or size > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {key} {list(tensor.shape)} is no plain tensor of the file's numbers. Refused.")
    # Tied weights may stand in a file once; a few times the file is generous.
    if total > MAX_RATIO * path.stat().st_size:
        raise WeightsError(f"{path}: {total} bytes of tensors in a file of {path.stat().st_size}. Refused.")


def built(net: nn.Module, weights: Weights, load_into: nn.Module | None = None) -> nn.Module:
    """`net` with `weights` loaded strictly into it (or into `load_into`, a part of it).

    Raises:
        WeightsError: Missing, unexpected or wrongly shaped tensors; names the first of them.
    """
    if weights.tensors is None:
        return net
    target = net if load_into is None else load_into
    floats = {k: v.float() if v.is_floating_point() else v for k, v in weights.tensors.items()}
    try:
        target.load_state_dict(floats, strict=True)
    except (RuntimeError, WeightsError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = " ".join(lines[1:3] or lines)[:500]
        raise WeightsError(f"{weights.source}: these are not the weights of this network: {detail}") from error
    return net


def network_of(weights: Weights, part: str, build: Any) -> nn.Module:
    """`build(weights.config[part])`, initialised from `weights.seed` with torch's generator put back as it was.

    Raises:
        WeightsError: The configuration is not one of this family, or stands for an optimum that is not known.
    """
    config = weights.config.get(part)
    if "mixture" in weights.config:
        raise WeightsError(f"{weights.source}: the optimum of this family is not known in closed form.")
    if not isinstance(config, Mapping):
        found = ", ".join(sorted(weights.config)) or "nothing"
        raise WeightsError(
            f"{weights.source}: these are the weights of another family: the configuration has no {part!r}, "
            f"only {found}. Name the sampler that they were trained for."
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights.seed)
            net: nn.Module = build(config)
    except (UsageError, TypeError) as error:
        raise WeightsError(f"{weights.source}: its configuration is not one of this network: {error}") from error
    return net


def part_of(weights: Weights, name: str, build: Any) -> Any:
    """The network of one part of the configuration, with the tensors under its name.

    Raises:
        WeightsError: As `network_of` and `built`.
    """
    net = network_of(weights, name, build)
    if weights.tensors is None:
        return net
    prefix = f"{name}."
    own = {k.removeprefix(prefix): v for k, v in weights.tensors.items() if k.startswith(prefix)}
    return built(net, replace(weights, tensors=own, source=f"{weights.source} ({name})"))
