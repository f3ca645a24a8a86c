"""VGG16's second fully connected layer after its ReLU, with torchvision's ImageNet weights.

Improved precision and recall (Kynkäänniemi et al. 2019) are defined on this layer. The authors' script has weights
converted from the original Caffe network, on 0..255 BGR images; torchvision's were trained anew, on normalised RGB:
another network, whose values are not the script's, hence the name. Preprocessing as torch-fidelity's `vgg16`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trilemma_bench.features import _helpers
from trilemma_bench.kinds import Extractor, ExtractorKind
from trilemma_bench.spec import digest

NAME = "vgg16_torchvision"
FILE = "vgg16-397923af.pth"
URL = f"https://download.pytorch.org/models/{FILE}"
SHA256 = "397923af"
"""The first digits of its digest, which are all that the publisher states."""
SIZE = 224
PREPROCESSING = f"bilinear tensorflow1 {SIZE}; ImageNet mean and deviation; fc2 after ReLU; float32"


def available(weights: Path | None = None) -> str | None:
    """One line on how to get what is missing, or None where nothing is; downloads nothing."""
    return _helpers.missing(NAME, FILE, URL, weights)


def build(*, device: str = "cpu", weights: Path | None = None, allow_unverified: bool = False) -> Extractor:
    """Build the extractor; `weights` is the file or a folder that holds it.

    Raises:
        WeightsError: No weights, or weights that are altered or of another network.
    """
    path = _helpers.path_of(NAME, FILE, URL, weights)
    state, found, verified = _helpers.read_weights(path, sha256=SHA256, allow_unverified=allow_unverified)
    from torchvision.models import vgg16

    with torch.device("meta"):
        network = vgg16()
    _helpers.load_strictly(network, state, path, assign=True)
    network.classifier = network.classifier[:5]
    network.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)
    resize = _helpers.Resize(SIZE, "tensorflow1", mean=0.0, std=255.0)

    def forward(images: Tensor) -> dict[str, Tensor]:
        return {"features": network(_helpers.imagenet_normalised(resize(images)))}

    return _helpers.NetworkExtractor(
        name=NAME, identity=digest([NAME, found, PREPROCESSING]), verified=verified, device=device, forward=forward
    )


EXTRACTOR = ExtractorKind(name=NAME, layers=("features",), build=build, available=available)
