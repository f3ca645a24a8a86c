"""Working on blocks of pixels: a network that sees each block x block patch as one pixel of block^2 C channels.

The rearrangement loses nothing and costs nothing (Shi et al. 2016, arXiv 1609.05158); it lets a wide network run at
a small resolution, which is where a CPU is fast. The `cpu-small` recipes use it; the papers' networks do not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class PixelBlocks(nn.Module):
    """Calls `net` on rearranged images: every image argument [N, C, H, W] becomes [N, C b^2, H / b, W / b].

    Args:
        net: Called with the rearranged images and all other arguments as they are.
        block: Side b of a block, in pixels; H and W must divide by it.
        image_output: Whether the output is an image too, and is rearranged back.
    """

    def __init__(self, net: nn.Module, block: int, *, image_output: bool = True) -> None:
        super().__init__()
        self.net = net
        self.block = block
        self.image_output = image_output

    def forward(self, *args: Any) -> Tensor:
        blocks = [F.pixel_unshuffle(a, self.block) if getattr(a, "ndim", 0) == 4 else a for a in args]
        out: Tensor = self.net(*blocks)
        return F.pixel_shuffle(out, self.block) if self.image_output else out


def in_pixel_blocks(net: nn.Module, block: int, *, image_output: bool = True) -> nn.Module:
    """`net` on blocks of `block` pixels; `net` itself where `block` is 1."""
    return net if block == 1 else PixelBlocks(net, block, image_output=image_output)


def inside(net: nn.Module) -> nn.Module:
    """The network inside the blocks, whose state dict has the authors' keys; `net` itself where there are none."""
    return net.net if isinstance(net, PixelBlocks) else net
