"""Score-based sampling by stochastic differential equations (Song et al. 2021, arXiv 2011.13456).

The score of x_t is -eps / s, from the noise-predicting network of DDPM, where x_t = a x_0 + s n. With `sde=vp` the
variables are those of the network; with `sde=ve` they are x_t / a, whose noise sigma = s / a grows without bound: the
two equations have one network (Karras et al. 2022, arXiv 2206.00364, appendix B). Steps are those of DDIM's spacings.

Solvers: `reverse` (the reverse diffusion predictor, appendix E), `pc` (with `corrector_steps` of Langevin dynamics
after each, algorithms 2 to 5), `ode` (the probability flow by Heun's method of order 2 with a step size for each
sample) and `adaptive` (the stochastic solver of Jolicoeur-Martineau et al. 2021, arXiv 2105.14080, algorithm 1, a step
size for each sample). Step sizes come from the error of one sample alone, and Langevin steps from expected norms, where
the authors take those of a batch.

`adaptive` leaves its algorithm in three places. Time is log sigma, and both stages of a step have the same noise, of
the exact variance of the step. The error is measured beside the point before the last taken step, where the authors
take that step's first stage. And a refused step keeps its noise, and the shorter one after it has that of
the same Brownian path, by the bridge to where the refused one ended (rejection sampling with memory, Rackauckas & Nie
2017, Discrete and Continuous Dynamical Systems B 22(7)). The authors draw it anew, so that noise which makes a small
error is taken more often. The mean over the many values of an image hides one noise from the error; that over the two
of a point does not: on 25 Gaussians the outer modes had up to eight times the samples of the middle.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from trilemma_bench.diffusion import Spacing, ddim_pairs
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import SamplerKind, Weights
from trilemma_bench.samplers._epsilon import TOLERANCE, NoisePredictor, load, micro_batch
from trilemma_bench.samplers._helpers import STEP, X_T, Noise
from trilemma_bench.spec import Frozen

CORRECTOR = 10
"""Stream of the corrector's noise."""
MAX_TRIALS = 10_000


class Options(Frozen):
    """`steps`, `spacing` and `sde` are of `reverse` and `pc`, `corrector_steps` and `snr` (signal-to-noise) of `pc`.

    `tolerance` is that of `ode` and `adaptive`, relative; absolute, for values under a tenth, it is a tenth of that.
    """

    sde: Literal["vp", "ve"] = "vp"
    solver: Literal["reverse", "pc", "ode", "adaptive"] = "reverse"
    steps: int | None = Field(default=None, ge=1)
    spacing: Spacing = "leading"
    corrector_steps: int = Field(default=1, ge=1)
    snr: float = Field(default=0.16, gt=0)
    tolerance: float = Field(default=1e-2, gt=0)


class ScoreSDESampler(NoisePredictor):
    """Reverse SDE, predictor-corrector, probability flow, adaptive SDE."""

    def __init__(self, options: Options, weights: Weights, **settings: Any) -> None:
        super().__init__("score_sde", weights, **settings)
        self.options = options
        steps = options.steps or len(self.chain)
        self.pairs = ddim_pairs(len(self.chain), steps, options.spacing)
        # The continuous solvers measure time by it.
        self.log_sigma = torch.log(self.chain.sigma)

    @property
    def expected_nfe(self) -> int | None:
        """None where the solver decides: the count is then the only source."""
        if self.options.solver in ("ode", "adaptive"):
            return None
        correctors = self.options.corrector_steps if self.options.solver == "pc" else 0
        # No corrector after the last predictor, which is at the data.
        return len(self.pairs) + correctors * (len(self.pairs) - 1)

    def draw(self, noise: Noise, count: int) -> Tensor:
        x = noise.normal(*self.image_shape, stream=X_T)
        if self.options.solver in ("ode", "adaptive"):
            return self._continuous(x, noise)
        for t, t_prev in self.pairs:
            x = self.predictor(x, self.predict_noise(x, t), t, t_prev, noise)
            if self.options.solver == "pc" and t_prev >= 0:
                for _ in range(self.options.corrector_steps):
                    x = self.corrector(x, self.predict_noise(x, t_prev), t_prev, noise)
        return x

    def predictor(self, x: Tensor, eps: Tensor, t: int, t_prev: int, noise: Noise) -> Tensor:
        """x_{t_prev} by one step of reverse diffusion, in the variables of the network; no noise at the last.

        vp: x' = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) n. ve: the same of x / a, with beta = 0 in the drift
        and sigma_t^2 - sigma_prev^2 in the place of beta.
        """
        now, before = self.alpha_bar(t), self.alpha_bar(t_prev)
        if self.options.sde == "vp":
            beta = 1 - now / before
            x = (2 - math.sqrt(1 - beta)) * x - beta / math.sqrt(1 - now) * eps
            deviation = math.sqrt(beta)
        else:
            sigma, sigma_prev = math.sqrt((1 - now) / now), math.sqrt((1 - before) / before)
            gap = sigma**2 - sigma_prev**2
            x = math.sqrt(before) * (x / math.sqrt(now) - gap / sigma * eps)
            deviation = math.sqrt(before * gap)
        return x if t_prev < 0 else x + deviation * noise.normal(*self.image_shape, stream=STEP)

    def corrector(self, x: Tensor, eps: Tensor, t: int, noise: Noise) -> Tensor:
        """One step of Langevin dynamics at t: x + e score + sqrt(2 e) n, e = 2 alpha (snr |n| / |score|)^2.

        Of the mean norms the ratio is s, as |n| and |eps| are equal on average; a single point's own would be far off.
        """
        drawn = noise.normal(*self.image_shape, stream=CORRECTOR)
        before = self.alpha_bar(t - 1)
        alpha = self.alpha_bar(t) / before if self.options.sde == "vp" else 1.0
        s = math.sqrt(1 - self.alpha_bar(t))
        step = 2 * alpha * (self.options.snr * s) ** 2
        return x - step / s * eps + math.sqrt(2 * step) * drawn

    # --- solvers with a step size of their own --------------------------------------------------------------

    def _continuous(self, x: Tensor, noise: Noise) -> Tensor:
        """From the largest sigma to the least, then the denoised point; y = x / a, and time is log sigma.

        The probability flow is dy = eps d sigma. The reverse SDE of ve has twice that drift, and its noise has the
        variance sigma^2 - sigma'^2; that of vp in these variables is the same equation.
        """
        start, end = float(self.log_sigma[-1]), float(self.log_sigma[0])
        y = x.double() * math.sqrt(1 + math.exp(2 * start))
        now = torch.full((len(x), *[1] * (x.ndim - 1)), start, dtype=torch.float64, device=x.device)
        size = torch.full_like(now, 0.05)
        path = _BrownianPath(y) if self.options.solver == "adaptive" else None
        previous = y.clone()
        for _ in range(MAX_TRIALS):
            rows = torch.nonzero(now.flatten() > end + 1e-9)[:, 0]
            if not len(rows):
                sigma = now.exp()
                return (y - sigma * self._eps(y, now)).float()
            h, kick = torch.minimum(size[rows], now[rows] - end), None
            if path is not None:
                # Every sample has a number at every trial, so that its noise does not depend on who is on the way.
                drawn = noise.normal(*self.image_shape, stream=STEP).double()
                h, kick = path.ahead(rows, now[rows], h, drawn[rows])
            new, error = self._trial(y[rows], previous[rows], now[rows], h, kick)
            if not bool(error.isfinite().all()):
                raise ProtocolError(
                    "score_sde: NaN or infinite values on the way. The network overflowed (try --dtype float32) or its "
                    "weights are broken."
                )
            taken = error.flatten() <= 1
            kept = rows[taken]
            y[kept], previous[kept] = new[taken], y[kept]
            now[kept] -= h[taken]
            if path is not None:
                path.take(kept)
            power = 0.5 if path is None else 0.9
            size[rows] = (0.9 * h * error.clamp(min=1e-8) ** -power).clamp(1e-4, 1.0)
        raise ProtocolError(f"score_sde: {MAX_TRIALS} steps did not reach the data. Give a larger tolerance.")

    def _trial(self, y: Tensor, previous: Tensor, now: Tensor, h: Tensor, kick: Tensor | None) -> tuple[Tensor, Tensor]:
        """A step of size `h` in log sigma and its error against the tolerance, [N, 1, ...]; at most 1 is good.

        `kick` is the noise of the reverse SDE; None for the probability flow.
        """
        sigma, after = now.exp(), (now - h).exp()
        drift = 1.0 if kick is None else 2.0
        pushed = y if kick is None else y + kick
        euler = pushed + drift * (after - sigma) * self._eps(y, now)
        second = pushed + drift * (after - sigma) * self._eps(euler, now - h)
        better = (euler + second) / 2
        largest = torch.maximum(euler.abs(), previous.abs()) if kick is not None else y.abs()
        # In the units of the data where sigma is small, of the noise where it is large.
        allowed = self.options.tolerance * torch.maximum(largest, torch.ones_like(largest) * 1e-1)
        error = ((euler - better) / allowed).square().flatten(1).mean(1).sqrt()
        return better, error.reshape(now.shape)

    def _eps(self, y: Tensor, log_sigma: Tensor) -> Tensor:
        """eps float64 of y = x / a at log sigma [N, 1, ...], at the place between two steps that has this sigma."""
        table = self.log_sigma.to(y.device)
        value = log_sigma.flatten().clamp(float(table[0]), float(table[-1]))
        high = torch.searchsorted(table, value.contiguous()).clamp(1, len(table) - 1)
        t = high - 1 + (value - table[high - 1]) / (table[high] - table[high - 1])
        scale = (1 + (2 * log_sigma).exp()).rsqrt()
        eps: Tensor = self.networks["eps"]((y * scale).float(), t.float())
        return eps.double()


class _BrownianPath:
    """The noise of the reverse SDE ahead of each sample, as far as a trial has looked: W with variance sigma^2.

    A stack of adjoining intervals for each sample, the next one on top: where it ends in log sigma, and how far W moves
    in it. A taken step takes the top away; after a refused one it is cut, by the Brownian bridge.
    """

    def __init__(self, like: Tensor) -> None:
        self._depth = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        self._ends = like.new_zeros(len(like), 1, *[1] * (like.ndim - 1))
        self._moves = torch.zeros_like(like)[:, None]

    def ahead(self, rows: Tensor, now: Tensor, wanted: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The next step of samples `rows` [M] and W's move in it: h [M, 1, ...] in log sigma, and [M, ...].

        Args:
            rows: Of the samples.
            now: Their log sigma, float64 [M, 1, ...].
            wanted: The longest step, [M, 1, ...].
            drawn: N(0, I), float64 [M, ...]; used where an interval is begun or cut.
        """
        fresh = self._depth[rows] == 0
        self._push(rows[fresh], (now - wanted)[fresh], (_deviation(now, now - wanted) * drawn)[fresh])
        end, move = self._top(rows)
        # Into equal parts, so that no sliver is left at the end of an interval.
        parts = torch.ceil((now - end) / wanted - 1e-9)
        cut = ~fresh & (parts.flatten() > 1)
        middle = now - (now - end) / parts.clamp(min=1)
        first = _deviation(now, middle)
        share = (first / _deviation(now, end)) ** 2
        moved = (share * move + first * (1 - share).clamp(min=0).sqrt() * drawn)[cut]
        self._moves[rows[cut], self._depth[rows[cut]] - 1] -= moved
        self._push(rows[cut], middle[cut], moved)
        end, move = self._top(rows)
        return now - end, move

    def take(self, rows: Tensor) -> None:
        """Samples `rows` have gone along their next interval."""
        self._depth[rows] -= 1

    def _top(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        place = self._depth[rows] - 1
        return self._ends[rows, place], self._moves[rows, place]

    def _push(self, rows: Tensor, end: Tensor, move: Tensor) -> None:
        place = self._depth[rows]
        if len(rows) and int(place.max()) == self._ends.shape[1]:
            self._ends, self._moves = (
                torch.cat([part, torch.zeros_like(part)], 1) for part in (self._ends, self._moves)
            )
        self._ends[rows, place], self._moves[rows, place] = end, move
        self._depth[rows] += 1


def _deviation(start: Tensor, end: Tensor) -> Tensor:
    """Of the noise between two log sigmas."""
    return ((2 * start).exp() - (2 * end).exp()).sqrt()


def build(options: Options, weights: Weights, **settings: Any) -> ScoreSDESampler:
    """The sampler on `device`, in `dtype`, with micro-batches of 50 (points: 1000) by default."""
    settings["micro_batch"] = settings.get("micro_batch") or micro_batch(weights)
    return ScoreSDESampler(options, weights, **settings)


SAMPLER = SamplerKind(
    name="score_sde", family="score", options=Options, build=build, load=load, baseline="ddpm", tolerance=TOLERANCE,
    source="Song et al. 2021, arXiv 2011.13456",
)  # fmt: skip
