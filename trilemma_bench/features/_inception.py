"""The TF Inception network of 2015-12-05, which extractors with different ways of resizing share.

The network and the weights are torch-fidelity's. Batch norm is folded, and features differ from torch-fidelity's by
float32 rounding only (about 1e-5).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma_bench.errors import WeightsError
from trilemma_bench.features import _helpers
from trilemma_bench.fetch import FetchError, fetch
from trilemma_bench.kinds import Extractor, ExtractorKind
from trilemma_bench.spec import digest

FILE = "weights-inception-2015-12-05-6726825d.pth"
PYTORCH_FIDS = "pt_inception-2015-12-05-6726825d.pth"
"""The same file under pytorch-fid's name."""
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE, MEAN, STD = 299, 128.0, 128.0
JPEG_QUALITY = 75
"""Pillow's default, at which testers that write JPEG without a word write it."""

# The modules in the order in which a picture passes them, by torch-fidelity's names.
_TRUNK = (
    *(
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "MaxPool_1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "MaxPool_2",
    ),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


Prepare = Callable[[Tensor], Tensor]
"""uint8 [B, 3, H, W] -> float32 [B, 3, 299, 299], scaled by (x - 128) / 128."""
Read = Callable[[Any, Tensor], dict[str, Tensor]]
"""(network, prepared images) -> layers."""


def kind(
    name: str, prepare: Prepare, preprocessing: str, *, read: Read | None = None,
    layers: tuple[str, ...] = ("features", "logits"), is_inception: bool = False,
) -> ExtractorKind:  # fmt: skip
    """An extractor over this network.

    Args:
        name: The registry name.
        prepare: How images get to 299 x 299.
        preprocessing: The same in words; a part of the identity.
        read: What is taken of the network; None for `pool_and_logits`.
        layers: Names of what `read` gives.
        is_inception: Whether its distances bear the plain names FID and KID.
    """

    def available(weights: Path | None = None) -> str | None:
        """One line on how to get what is missing, or None where nothing is; downloads nothing."""
        if _find(weights) is not None:
            return None
        where = f"{weights} is not there" if weights is not None else "its weights are not at hand"
        return f"{name} (FID, IS): {where}; download {URL} and name it with --inception-weights or TRILEMMA_WEIGHTS."

    def build(*, device: str = "cpu", weights: Path | None = None, allow_unverified: bool = False) -> Extractor:
        """Build the extractor.

        Args:
            device: Where it runs.
            weights: The .pth file, or a folder that holds it under its own name; by default TRILEMMA_WEIGHTS (a
                file or folder), then torch hub's cache, then a download into that cache.
            allow_unverified: Take weights of another digest and say so (`verified`).

        Raises:
            WeightsError: No weights and no network, or weights that are altered or of another network.
        """
        path = _find(weights)
        if path is None:
            if weights is not None:
                raise WeightsError(str(available(weights)))
            try:
                path = fetch(URL, _helpers.hub_folder(), sha256=SHA256)
            except FetchError as error:
                raise WeightsError(f"{available()} ({error})") from error
        state, found, verified = _helpers.read_weights(path, sha256=SHA256, allow_unverified=allow_unverified)
        network = _network(state, path)
        for module in network.modules():
            if hasattr(module, "conv") and hasattr(module, "bn"):
                _helpers.fold_batch_norm(module, [("conv", "bn")])
        network.to(device=device, memory_format=torch.channels_last)
        take = read or pool_and_logits
        return _helpers.NetworkExtractor(
            name=name,
            identity=digest([name, found, preprocessing]),
            verified=verified,
            device=device,
            forward=lambda images: take(network, prepare(images).contiguous(memory_format=torch.channels_last)),
        )

    return ExtractorKind(
        name=name, layers=layers, build=build, available=available, is_inception=is_inception, inception_weights=True
    )


def _find(weights: Path | None) -> Path | None:
    places = (_helpers.find_weights(file, weights, any_name=True) for file in (FILE, PYTORCH_FIDS))
    return next((place for place in places if place is not None), None)


def pool_and_logits(network: Any, x: Tensor) -> dict[str, Tensor]:
    """`features`: the 2048 averages before the classifier; `logits`: class scores without the classifier's bias."""
    for part in _TRUNK:
        x = getattr(network, part)(x)
    features = x.mean((2, 3))
    return {"features": features, "logits": features @ network.fc.weight.T}


def spatial(network: Any, x: Tensor) -> dict[str, Tensor]:
    """`features`: the first 7 channels of `mixed_6/conv` at all 17 x 17 places, 2023 numbers."""
    for part in _TRUNK[: _TRUNK.index("Mixed_6d")]:
        x = getattr(network, part)(x)
    return {"features": network.Mixed_6d.branch1x1(x)[:, :7].flatten(1)}


def _network(state: dict[str, Tensor], path: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles whatever file it is given; it gets a buffer of the tensors that were read as
    # data.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path}: the weights of another network: {reason}") from error
