"""The optimum in closed form: denoisers of a noised mixture of equal Gaussians, in place of trained networks.

With x = a x_0 + s n, n ~ N(0, I) and x_0 from K Gaussians of centres c_k and deviation sigma, x is a mixture with
centres a c_k and variance v = a^2 sigma^2 + s^2. Given x, the mode has the weights softmax_k(-|x - a c_k|^2 / (2 v)),
and x_0 is then N(c_k + (a sigma^2 / v) (x - a c_k), sigma^2 s^2 / v). Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trilemma_bench.diffusion import Chain, GanChain, at


class MixtureDenoiser(nn.Module):
    """What is known of x_0 from x = a x_0 + s n, for every pair (a, s) of a table.

    Args:
        config: `centres` [K][D] and `sigma`, in the units of the networks.
        signal: float64 [T], a of each index t.
        noise: float64 [T], s of each index t.
    """

    centres: Tensor
    signal: Tensor
    noise: Tensor

    def __init__(self, config: Mapping[str, Any], signal: Tensor, noise: Tensor) -> None:
        super().__init__()
        # Buffers that no state dict holds: nothing here is trained.
        self.register_buffer("centres", torch.tensor(config["centres"], dtype=torch.float64), persistent=False)
        self.register_buffer("signal", signal.double(), persistent=False)
        self.register_buffer("noise", noise.double(), persistent=False)
        self.sigma = float(config["sigma"])

    def modes(self, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights [N, K] of the modes, means [N, K, D] and variances [N, 1] of x_0 within each, for x [N, D].

        `a` and `s` are [N, 1].
        """
        x = x.double()
        variance = a**2 * self.sigma**2 + s**2
        offset = x[:, None] - a[..., None] * self.centres
        log_weights = torch.log_softmax(-offset.square().sum(2) / (2 * variance), 1)
        means = self.centres + (a * self.sigma**2 / variance)[..., None] * offset
        return log_weights, means, self.sigma**2 * s**2 / variance

    def expected(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """E[x_0 | x], float64 [N, D]."""
        log_weights, means, _ = self.modes(x, a, s)
        return (log_weights.exp()[..., None] * means).sum(1)

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), float64 [N, 1], at indices t [N]; between whole numbers by linear interpolation."""
        if not t.is_floating_point():
            return at(self.signal, t, like.double()), at(self.noise, t, like.double())
        low = t.floor().long().clamp(0, len(self.signal) - 1)
        high = (low + 1).clamp(max=len(self.signal) - 1)
        part = (t - low).double()[:, None]
        a, s = (
            at(table, low, like.double()) * (1 - part) + at(table, high, like.double()) * part
            for table in (self.signal, self.noise)
        )
        return a, s


class Epsilon(MixtureDenoiser):
    """The exact noise prediction E[n | x_t]: (x_t float [N, D], t [N]) -> eps float32 [N, D]."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        a, s = self.scales(t, x_t)
        return ((x_t.double() - a * self.expected(x_t, a, s)) / s).float()


class Score(MixtureDenoiser):
    """The exact score of y = sqrt(1 - beta_t) x_t on a chain: (y [N, D], t [N]) -> grad log p(y) float32 [N, D].

    y is what a step of the chain keeps of the point before it, which at t = 0 is the data.
    """

    def __init__(self, config: Mapping[str, Any], chain: Chain) -> None:
        noise = ((1 - chain.betas) * (1 - chain.alpha_bar_prev)).sqrt()
        super().__init__(config, chain.alpha_bar.sqrt(), noise)

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        a, s = self.scales(t, y)
        log_weights, _, _ = self.modes(y, a, s)
        centre = a * (log_weights.exp() @ self.centres)
        return ((centre - y.double()) / (a**2 * self.sigma**2 + s**2)).float()


class EpsilonAndVariance(MixtureDenoiser):
    """The exact noise prediction and the v of the best variance of a step: (x_t [N, D], t [N]) -> float32 [N, 2 D].

    Given x_t, x_{t-1} has the variance of q(x_{t-1} | x_t, x_0) and that of its mean, which x_0's is
    (Bao et al. 2022, arXiv 2201.06503, theorem 1); here of each coordinate. A third argument is not looked at.
    """

    num_classes: int | None = None

    def __init__(self, config: Mapping[str, Any], chain: Chain) -> None:
        super().__init__(config, chain.alpha_bar.sqrt(), (1 - chain.alpha_bar).sqrt())
        self.chain = chain

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        a, s = self.scales(t.long(), x_t)
        log_weights, means, within = self.modes(x_t, a, s)
        weights = log_weights.exp()[..., None]
        x0 = (weights * means).sum(1)
        spread = within + (weights * (means - x0[:, None]).square()).sum(1)
        like, chain, t = x_t.double(), self.chain, t.long()
        variance = at(chain.posterior_variance, t, like) + at(chain.posterior_x0, t, like) ** 2 * spread
        low, high = (at(table, t, like) for table in chain.log_variances)
        v = 2 * (variance.log() - low) / (high - low).clamp(min=1e-12) - 1
        return torch.cat([(x_t.double() - a * x0) / s, v], 1).float()


class Classifier(MixtureDenoiser):
    """The exact classifier of noisy points: (x_t float [N, D], t [N]) -> log p(mode | x_t), float64 [N, K]."""

    def __init__(self, config: Mapping[str, Any], chain: Chain) -> None:
        super().__init__(config, chain.alpha_bar.sqrt(), (1 - chain.alpha_bar).sqrt())
        self.num_classes = len(self.centres)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.modes(x_t, *self.scales(t.long(), x_t))[0]


class Posterior(MixtureDenoiser):
    """An exact draw of q(x_0 | x_{t+1}): (x float [N, D], t [N], z ~ N(0, I) float [N, 1 + D]) -> x_0 float32 [N, D].

    It is the optimum of a denoising diffusion GAN: with it every chain, however short, makes real samples.
    """

    def __init__(self, config: Mapping[str, Any], chain: GanChain) -> None:
        super().__init__(config, chain.signal[1:], chain.noise[1:])

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        log_weights, means, variance = self.modes(x, *self.scales(t, x))
        uniform = torch.special.ndtr(z[:, :1].double())
        # The last cumulative weight may be a rounding below 1.
        mode = torch.searchsorted(log_weights.exp().cumsum(1), uniform).clamp(max=len(self.centres) - 1)
        mean = means.gather(1, mode[..., None].expand(-1, -1, means.shape[2]))[:, 0]
        return (mean + variance.sqrt() * z[:, 1:].double()).float()
