"""A classifier of MNIST's digits, applied to each channel by itself: the modes and the features of StackedMNIST.

`logits` are the ten logits of red, green and blue, float32 [N, 30], whose largest in each ten make the mode
100 r + 10 g + b; `features` the last hidden layers, [N, 96]. Channels are cut to their middle 28 x 28 pixels. The
network was trained in house on single training digits (`trilemma-bench train mnist_classifier --dataset mnist`) and
comes along; its accuracy on MNIST's 10,000 test digits stands in the file and in every record that it served.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trilemma_bench.errors import ProtocolError, WeightsError
from trilemma_bench.features import _helpers
from trilemma_bench.kinds import Array, Extractor, ExtractorKind
from trilemma_bench.nets import digit_cnn
from trilemma_bench.spec import digest

NAME = "mnist_classifier"
FILE = "mnist_classifier.safetensors"
SHA256 = "65f9edaa1a66ba53dc8b3305c1f8e06230c8868e7c13df29167d08ede354fc4c"
PREPROCESSING = "each channel, middle 28 x 28, x / 127.5 - 1; float32"
MAX_BYTES = 2 * 2**20


class DigitClassifier:
    """An `Extractor`; see the module. `note` is what a record says of it."""

    name = NAME
    batch_size = 100

    def __init__(self, path: Path, *, device: str, allow_unverified: bool) -> None:
        network, found, header = _read(path)
        self.verified = found == SHA256
        if not self.verified and not allow_unverified:
            raise WeightsError(
                f"{path}: SHA-256 begins {found[:8]}..., expected {SHA256[:8]}.... Install the package again, or allow "
                "unverified weights, which marks the record."
            )
        self.identity = digest([NAME, found, PREPROCESSING])
        accuracy = header.get("test_accuracy")
        self.note = f"{NAME}: accuracy {'not stated' if accuracy is None else f'{float(accuracy):.2%}'} on MNIST's test"
        self._device = torch.device(device)
        network.to(device=self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network.eval().requires_grad_(False)

    def extract(self, images: Array) -> dict[str, npt.NDArray[np.float32]]:
        """uint8 [N, C, H, W] -> `features` [N, 32 C] and `logits` [N, 10 C], float32.

        Raises:
            ProtocolError: Not uint8 images of at least 28 x 28, with sides that leave as much on either hand.
        """
        side = digit_cnn.SIDE
        fits = images.ndim == 4 and len(images) and min(images.shape[2:]) >= side
        if images.dtype != np.uint8 or not fits or any(length % 2 for length in images.shape[2:]):
            raise ProtocolError(
                f"{NAME} takes uint8 images [N, C, H, W] whose sides are even and at least {side}; got {images.dtype} "
                f"{list(images.shape)}."
            )
        top, left = ((length - side) // 2 for length in images.shape[2:])
        digits = images[:, :, top : top + side, left : left + side].reshape(-1, 1, side, side)
        parts: dict[str, list[npt.NDArray[np.float32]]] = {"features": [], "logits": []}
        # TF32 would round features to 10 bits; it is on for convolutions by default.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            size = self.batch_size * images.shape[1]
            for start in range(0, len(digits), size):
                part = digits[start : start + size]
                # The last batch is padded: no digit sees its companions.
                batch = np.zeros((size, 1, side, side), np.uint8)
                batch[: len(part)] = part
                x = torch.from_numpy(batch).to(self._device).float() / 127.5 - 1
                features = self._network.features(x.contiguous(memory_format=torch.channels_last))
                for layer, values in (("features", features), ("logits", self._network.head(features))):
                    parts[layer].append(values[: len(part)].cpu().numpy())
        return {layer: np.concatenate(found).reshape(len(images), -1) for layer, found in parts.items()}


def _read(path: Path) -> tuple[digit_cnn.DigitCNN, str, dict[str, str]]:
    """The network of a file, the file's digest and its header."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are read.")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(str(path), "pt") as stream:
            header = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key).float() for key in stream.keys()}  # noqa: SIM118
        network = digit_cnn.build(json.loads(header["config"])["classifier"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a classifier that `trilemma-bench train {NAME}` wrote: {error}.") from error
    _helpers.load_strictly(network, tensors, path)
    return network, found, header


def shipped() -> Path:
    """Where the weights lie that come along."""
    return Path(str(resources.files("trilemma_bench"))) / "classifiers" / FILE


def available(weights: Path | None = None) -> str | None:
    """None: the weights come along."""
    return None


def build(*, device: str = "cpu", weights: Path | None = None, allow_unverified: bool = False) -> Extractor:
    """Build the extractor from the weights that come along, or from those of one's own training.

    Raises:
        WeightsError: No such file, another network's, or another digest.
    """
    return DigitClassifier(weights or shipped(), device=device, allow_unverified=allow_unverified)


EXTRACTOR = ExtractorKind(name=NAME, layers=("features", "logits"), build=build, available=available)
