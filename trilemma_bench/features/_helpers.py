"""What the network extractors share: weights, resizing as two matrix products, folding, fixed batches."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trilemma_bench.errors import ProtocolError, WeightsError
from trilemma_bench.kinds import UInt8Images

BATCH_SIZE = {"cpu": 16}
"""Images a batch; a part of how features come out, so that no option changes it."""
BATCH_SIZE_ELSEWHERE = 64

MAX_WEIGHTS_BYTES = 2 * 2**30


class NetworkExtractor:
    """An `Extractor` over a network, in fixed batches, the last one padded: no image sees its companions.

    Args:
        name: The registry name.
        identity: Digest of weights and preprocessing.
        verified: Whether the weights have the published digest.
        device: Where the network is.
        forward: uint8 [B, 3, H, W] on `device` -> {layer: [B, D]}.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: str,
        verified: bool,
        device: str,
        forward: Callable[[Tensor], dict[str, Tensor]],
    ) -> None:
        self.name = name
        self.identity = identity
        self.verified = verified
        self.batch_size = BATCH_SIZE.get(torch.device(device).type, BATCH_SIZE_ELSEWHERE)
        self._device = torch.device(device)
        self._forward = forward

    def extract(self, images: UInt8Images) -> dict[str, npt.NDArray[np.float32]]:
        """uint8 [N, C, H, W] -> {layer: float32 [N, D]}; grey images are repeated to three channels.

        Raises:
            ProtocolError: No images, or not uint8 [N, 1 or 3, H, W].
        """
        check_images(images, self.name)
        layers: dict[str, list[npt.NDArray[np.float32]]] = {}
        # TF32 would round features to 10 bits; it is on for convolutions by default.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for start in range(0, len(images), self.batch_size):
                part = images[start : start + self.batch_size]
                batch = np.zeros((self.batch_size, 3, *images.shape[2:]), np.uint8)
                batch[: len(part)] = part
                for layer, values in self._forward(torch.from_numpy(batch).to(self._device)).items():
                    layers.setdefault(layer, []).append(values[: len(part)].float().cpu().numpy())
        return {layer: np.concatenate(parts) for layer, parts in layers.items()}


def check_images(images: UInt8Images, name: str) -> None:
    """Raise ProtocolError unless `images` are uint8 [N, C, H, W] with N >= 1 and C of 1 or 3."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ProtocolError(
            f"{name} takes uint8 images [N, 1 or 3, H, W]; got {images.dtype} {list(images.shape)}. "
            "trilemma_bench.images.to_uint8 converts floats."
        )


# --- resizing ---------------------------------------------------------------------------------------------

Rule = Literal["half_pixel", "tensorflow1"]


def resize_weights(size: int, new_size: int, rule: Rule) -> Tensor:
    """The matrix [new_size, size] (float32) that resizes one axis bilinearly; a picture takes two products.

    half_pixel: output i looks at (i + 1/2) size / new_size - 1/2. Upwards between the two nearest pixels,
    edges clamped; downwards over a triangle as wide as the scale. This is torch's
    `interpolate(mode="bilinear", align_corners=False, antialias=True)`, which upwards is the same with and
    without antialias.
    tensorflow1: output i looks at i size / new_size, between the two nearest pixels, in both directions, as
    TensorFlow 1's `resize_bilinear` and torch-fidelity's copy of it in float32.
    """
    if rule == "tensorflow1":
        place = torch.arange(new_size, dtype=torch.float32) * torch.tensor(size / new_size, dtype=torch.float32)
        low = place.long()
        part = (place - low).double()
        weights = torch.zeros(new_size, size, dtype=torch.float64)
        rows = torch.arange(new_size)
        weights.index_put_((rows, low), 1 - part, accumulate=True)
        weights.index_put_((rows, (low + 1).clamp_max(size - 1)), part, accumulate=True)
        return weights.float()
    scale = size / new_size
    centre = (torch.arange(new_size, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    if scale > 1:
        weights = (1 - (pixels[None] - centre[:, None]).abs() / scale).clamp_min(0)
        return (weights / weights.sum(1, keepdim=True)).float()
    # Clamped to the outermost centres, so that the edge pixel takes what would fall outside.
    inside = centre.clamp(0.5, size - 0.5)
    return (1 - (pixels[None] - inside[:, None]).abs()).clamp_min(0).float()


class Resize(nn.Module):
    """Scale grey levels by (x - mean) / std and resize to `size` x `size`, whatever the aspect.

    Scaling comes first, as it commutes with the resize (whose weights sum to 1) and there are fewer pixels
    then.
    """

    def __init__(self, size: int, rule: Rule, *, mean: float, std: float) -> None:
        super().__init__()
        self.size, self.rule, self.mean, self.std = size, rule, mean, std
        self._weights: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32 [B, C, size, size]."""
        x = (images.float() - self.mean) / self.std
        rows, columns = (self._axis(length, images.device) for length in images.shape[2:])
        return (rows @ (x @ columns.T)).contiguous(memory_format=torch.channels_last)

    def _axis(self, length: int, device: torch.device) -> Tensor:
        key = (length, device)
        if key not in self._weights:
            self._weights[key] = resize_weights(length, self.size, self.rule).to(device)
        return self._weights[key]


def scaled(images: Tensor, mean: float, std: float) -> Tensor:
    """(x - mean) / std."""
    return (images - mean) / std


def imagenet_normalised(images: Tensor) -> Tensor:
    """RGB in 0..1, [B, 3, H, W], less ImageNet's mean and over its standard deviation."""
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    shift, scale = (torch.tensor(part, device=images.device)[:, None, None] for part in (mean, std))
    return (images - shift) / scale


def pillow_bicubic(images: Tensor, size: int) -> Tensor:
    """uint8 [B, C, H, W] -> float32 [B, C, size, size]: each channel as floats through Pillow, clipped to 0..255."""
    planes = images.cpu().numpy().astype(np.float32).reshape(-1, *images.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)) for plane in planes]
    found = np.stack(resized).clip(0, 255).reshape(*images.shape[:2], size, size)
    return torch.from_numpy(found).to(images.device)


def torch_bilinear(images: Tensor, size: int) -> Tensor:
    """uint8 [B, C, H, W] -> float32 [B, C, size, size]: bilinear without antialiasing, clipped to 0..255."""
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)
    return resized.clamp(0, 255)


def through_jpeg(images: Tensor, quality: int) -> Tensor:
    """uint8 RGB [B, 3, H, W], written as JPEG by Pillow and read again."""
    decoded = []
    for image in images.cpu().numpy():
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(stream, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(stream)).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(decoded)).to(images.device)


# --- networks ---------------------------------------------------------------------------------------------


def fold_batch_norm(module: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Fold each named batch norm of `module` into the convolution before it, in place; for evaluation."""
    for conv_name, norm_name in pairs:
        conv, norm = getattr(module, conv_name), getattr(module, norm_name)
        setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
        setattr(module, norm_name, nn.Identity())


def hub_folder() -> Path:
    """Where torch hub keeps weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(file: str, weights: Path | None, *, any_name: bool = False) -> Path | None:
    """A weights file: the argument's alone where it is given, else TRILEMMA_WEIGHTS' or torch hub's.

    Args:
        file: Its name.
        weights: The file, or a folder that holds it under its own name.
        any_name: Whether a file that TRILEMMA_WEIGHTS names is taken whatever it is called.
    """
    if weights is not None:
        place = weights.expanduser()
        found = place / file if place.is_dir() else place
        return found if found.is_file() else None
    named = os.environ.get("TRILEMMA_WEIGHTS")
    for place in [*([Path(named).expanduser()] if named else []), hub_folder()]:
        found = place / file if place.is_dir() else place
        if found.is_file() and (any_name or found.name == file):
            return found
    return None


def missing(name: str, file: str, url: str, weights: Path | None) -> str | None:
    """One line on how to get an extractor's weights file, or None where it is there."""
    if find_weights(file, weights) is not None:
        return None
    return f"{name}: its weights are not at hand; download {url} into a folder that TRILEMMA_WEIGHTS names."


def path_of(name: str, file: str, url: str, weights: Path | None) -> Path:
    """The weights file of an extractor.

    Raises:
        WeightsError: It is not at hand; says how to get it.
    """
    path = find_weights(file, weights)
    if path is None:
        raise WeightsError(str(missing(name, file, url, weights)))
    return path


def read_weights(path: Path, *, sha256: str, allow_unverified: bool) -> tuple[dict[str, Tensor], str, bool]:
    """Read a state dict as data (`weights_only`) and hold it to the published digest.

    Args:
        path: The .pth file.
        sha256: The digest that it must have, or its first digits.
        allow_unverified: Take a file of another digest all the same.

    Returns:
        State dict, the digest found, and whether it is the expected one.

    Raises:
        WeightsError: No such file, another digest, or not a state dict.
    """
    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise WeightsError(f"{path}: {path.stat().st_size} bytes; at most {MAX_WEIGHTS_BYTES} are read.")
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}.") from error
    found = hashlib.sha256(data).hexdigest()
    verified = bool(sha256) and found.startswith(sha256)
    if not verified and not allow_unverified:
        raise WeightsError(
            f"{path}: SHA-256 begins {found[:8]}..., expected {sha256[:8]}.... Delete the file and fetch it "
            "again, or allow unverified weights, which marks the record."
        )
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # torch.load raises whatever its parsers do.
    except Exception as error:
        raise WeightsError(f"{path}: not a state dict of tensors: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a state dict of tensors.")
    return state, found, verified


def load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path, *, assign: bool = False) -> None:
    """Load a state dict key for key; raises WeightsError where it belongs to another network."""
    try:
        network.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path}: the weights of another network: {reason}") from error
