"""A network that predicts v as one that predicts the noise, which is what every sampler asks for."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from trilemma_bench.diffusion import Chain, PredictionType
from trilemma_bench.errors import WeightsError


class NoiseOfV(nn.Module):
    """Predicts the noise in x_t by a network that predicts v: both (x_t [N, ...], t int64 [N]) -> [N, ...]."""

    def __init__(self, net: nn.Module, chain: Chain) -> None:
        super().__init__()
        self.net = net
        self.chain = chain

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.chain.eps_of(self.net(x_t, t).float(), x_t, t)


def noise_predictor(net: nn.Module, prediction_type: str, chain: Chain) -> nn.Module:
    """`net` as a predictor of the noise, whatever it was trained to predict.

    Raises:
        WeightsError: A prediction type that is neither `epsilon` nor `v_prediction`.
    """
    if prediction_type not in get_args(PredictionType):
        known = " and ".join(get_args(PredictionType))
        raise WeightsError(f"prediction_type {prediction_type!r}; only {known} are read.")
    return net if prediction_type == "epsilon" else NoiseOfV(net, chain)
