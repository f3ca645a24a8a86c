"""A small convolutional classifier of MNIST's digits: four convolutions, a linear layer of features, ten logits.

It has no normalisation over the batch, so that an image's logits are its own and the averaged weights are all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma_bench.errors import WeightsError
from trilemma_bench.nets._compiled import relu
from trilemma_bench.spec import Frozen

SIDE, CLASSES = 28, 10


class DigitConfig(Frozen):
    """Channels at 14 x 14 and at 7 x 7 pixels, and the width of the features."""

    width: int = Field(default=48, ge=1)
    features: int = Field(default=32, ge=1)


class DigitCNN(nn.Module):
    """Build with `build`."""

    def __init__(self, config: DigitConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = nn.Conv2d(1, width, 5, stride=2, padding=2)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(9 * 2 * width, config.features)
        self.head = nn.Linear(config.features, CLASSES)
        self._max_pool: Callable[..., Tensor] = F.max_pool2d
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=0.01)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, float [B, features], not below 0, of digits [B, 1, 28, 28] in [-1, 1]."""
        x = relu(self.stem(x))
        x = self._max_pool(relu(self.conv1(x)), 2)
        x = relu(self.conv2(x))
        x = self._max_pool(relu(self.conv3(x)), 3, stride=2)
        return relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of digits float [B, 1, 28, 28] in [-1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def write_for_compiler(self) -> None:
        """Leave pooling to torch's own kernels: what torch.compile makes of it on CPUs takes half of a step."""
        self._max_pool = torch.compiler.disable(F.max_pool2d)


def build(config: Mapping[str, Any]) -> DigitCNN:
    """The network of a configuration, with first weights from torch's generator.

    Raises:
        WeightsError: Not such a configuration.
    """
    try:
        return DigitCNN(DigitConfig.model_validate(config))
    except ValidationError as error:
        raise WeightsError(f"not the configuration of a classifier of digits: {error.errors()[0]['msg']}.") from error
