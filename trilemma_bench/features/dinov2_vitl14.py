"""DINOv2 ViT-L/14 (Oquab et al. 2023, arXiv 2304.07193): the normalised class token, 1024 numbers an image.

Fréchet distances on it agree better with people than FID (Stein et al. 2023, arXiv 2306.04675). The weights come from a
local file, `dinov2_vitl14_pretrain.pth`; the publisher's own way, torch.hub, runs a program from the network. The
network is torch's `TransformerEncoder`: LayerScale is folded into the projections before it. Preprocessing as
torch-fidelity's `dinov2-vit-l-14`. The publisher states no digest, so that records are marked as not verified.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma_bench.errors import WeightsError
from trilemma_bench.features import _helpers
from trilemma_bench.kinds import Extractor, ExtractorKind
from trilemma_bench.spec import digest

NAME = "dinov2_vitl14"
FILE = "dinov2_vitl14_pretrain.pth"
URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{FILE}"
SIZE, PATCH, HEAD = 224, 14, 64
OFFSET = 0.1
"""What the authors add to the new number of patches before they divide: a part of where positions are taken."""
PREPROCESSING = f"bilinear tensorflow1 {SIZE}; ImageNet mean and deviation; class token; float32"


class ViT(nn.Module):
    """A vision transformer: images float [N, 3, S, S] -> class tokens [N, D]. Built from the authors' state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        width = state["cls_token"].shape[-1]
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.token = nn.Parameter(state["cls_token"])
        self.positions = nn.Parameter(state["pos_embed"])
        layer = nn.TransformerEncoderLayer(
            width, width // HEAD, 4 * width, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width, eps=1e-6), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        side = x.shape[-1]
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        tokens: Tensor = self.blocks(x + self._positions_for(side))
        return tokens[:, 0]

    def _positions_for(self, side: int) -> Tensor:
        """Positions [1, 1 + side^2, D], resized from those of the training's grid."""
        count, width = self.positions.shape[1] - 1, self.positions.shape[2]
        old = round(count**0.5)
        if old == side:
            return self.positions
        grid = self.positions[:, 1:].reshape(1, old, old, width).permute(0, 3, 1, 2)
        scale = (side + OFFSET) / old
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, width)], dim=1)


def network_of(state: dict[str, Tensor], path: Path) -> ViT:
    """The network of the authors' state dict.

    Raises:
        WeightsError: Another network's.
    """
    try:
        network = ViT(state)
        _helpers.load_strictly(network, _renamed(state), path)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, AssertionError) as error:
        raise WeightsError(f"{path}: the weights of another network than DINOv2: {error}.") from error
    return network.eval().requires_grad_(False)


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under torch's names, each block's LayerScale folded into the projection before it."""
    names = {"attn.qkv": "self_attn.in_proj_", "attn.proj": "self_attn.out_proj.", "mlp.fc1": "linear1.",
             "mlp.fc2": "linear2.", "norm1": "norm1.", "norm2": "norm2."}  # fmt: skip
    scales = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}
    plain = {"cls_token": "token", "pos_embed": "positions", "patch_embed.proj.weight": "patches.weight",
             "patch_embed.proj.bias": "patches.bias", "norm.weight": "blocks.norm.weight",
             "norm.bias": "blocks.norm.bias"}  # fmt: skip
    found = {}
    for key, tensor in state.items():
        if key in plain:
            found[plain[key]] = tensor
        elif key != "mask_token" and not key.endswith(".gamma"):
            _, number, rest = key.split(".", 2)
            part, last = rest.rsplit(".", 1)
            if part in scales:
                gamma = state[f"blocks.{number}.{scales[part]}"]
                tensor = gamma[:, None] * tensor if tensor.ndim == 2 else gamma * tensor
            found[f"blocks.layers.{number}.{names[part]}{last}"] = tensor
    return found


def available(weights: Path | None = None) -> str | None:
    """One line on how to get what is missing, or None where nothing is; downloads nothing."""
    return _helpers.missing(NAME, FILE, URL, weights)


def build(*, device: str = "cpu", weights: Path | None = None, allow_unverified: bool = False) -> Extractor:
    """Build the extractor; `weights` is the file or a folder that holds it.

    Raises:
        WeightsError: No weights, or those of another network.
    """
    path = _helpers.path_of(NAME, FILE, URL, weights)
    state, found, _ = _helpers.read_weights(path, sha256="", allow_unverified=True)
    network = network_of(state, path).to(device)
    resize = _helpers.Resize(SIZE, "tensorflow1", mean=0.0, std=255.0)

    def forward(images: Tensor) -> dict[str, Tensor]:
        return {"features": network(_helpers.imagenet_normalised(resize(images)))}

    return _helpers.NetworkExtractor(
        name=NAME, identity=digest([NAME, found, PREPROCESSING]), verified=False, device=device, forward=forward
    )


EXTRACTOR = ExtractorKind(name=NAME, layers=("features",), build=build, available=available)
