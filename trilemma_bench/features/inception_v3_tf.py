"""Inception-v3 of 2015-12-05 from TensorFlow, as torch-fidelity converted it: the network of FID, KID and IS.

Preprocessing as in TensorFlow 1's graph: `resize_bilinear` to 299 x 299 without antialiasing or half-pixel
centres, (x - 128) / 128. Layers: `features`, the 2048 averages before the classifier (torch-fidelity's
'2048'); `logits`, the 1008 class scores without the classifier's bias (torch-fidelity's 'logits_unbiased',
which its `isc` uses).

The network and the weights are torch-fidelity's. Batch norm is folded and the resize done as two matrix
products; features differ from torch-fidelity's by float32 rounding only (about 1e-5).
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trilemma_bench.errors import WeightsError
from trilemma_bench.features import _helpers
from trilemma_bench.fetch import FetchError, fetch
from trilemma_bench.kinds import Extractor, ExtractorKind
from trilemma_bench.spec import digest

NAME = "inception_v3_tf"
FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE, MEAN, STD = 299, 128.0, 128.0
PREPROCESSING = f"bilinear tensorflow1 {SIZE}; (x - {MEAN:g}) / {STD:g}; float32"

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


def available(weights: Path | None = None) -> str | None:
    """One line on how to get what is missing, or None where nothing is; downloads nothing."""
    if _find(weights) is not None:
        return None
    where = f"{weights} is not there" if weights is not None else "its weights are not at hand"
    return f"{NAME} (FID, IS): {where}; download {URL} and name it with --inception-weights or TRILEMMA_WEIGHTS."


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
            path = fetch(URL, _hub(), sha256=SHA256)
        except FetchError as error:
            raise WeightsError(f"{available()} ({error})") from error
    state, found, verified = _helpers.read_weights(path, sha256=SHA256, allow_unverified=allow_unverified)
    network = _network(state, path)
    for module in network.modules():
        if hasattr(module, "conv") and hasattr(module, "bn"):
            _helpers.fold_batch_norm(module, [("conv", "bn")])
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trunk = nn.Sequential(*(getattr(network, name) for name in _TRUNK))
    classes: Tensor = network.fc.weight
    resize = _helpers.Resize(SIZE, "tensorflow1", mean=MEAN, std=STD)

    def forward(images: Tensor) -> dict[str, Tensor]:
        features = trunk(resize(images)).mean((2, 3))
        return {"features": features, "logits": features @ classes.T}

    return _helpers.NetworkExtractor(
        name=NAME,
        identity=digest([NAME, found, PREPROCESSING]),
        verified=verified,
        device=device,
        forward=forward,
    )


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


def _find(weights: Path | None) -> Path | None:
    """The weights file: the argument's alone where it is given, else TRILEMMA_WEIGHTS' or torch hub's."""
    named = os.environ.get("TRILEMMA_WEIGHTS")
    places = [Path(weights)] if weights is not None else [*([Path(named)] if named else []), _hub()]
    for place in places:
        file = place.expanduser() / FILE if place.expanduser().is_dir() else place.expanduser()
        if file.is_file():
            return file
    return None


def _hub() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


EXTRACTOR = ExtractorKind(name=NAME, layers=("features", "logits"), build=build, available=available, is_inception=True)
