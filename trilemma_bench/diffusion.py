"""Diffusion, written once: schedules, q(x_t | x_0), posteriors, and the time steps of samplers.

A chain of T steps has betas beta_1..beta_T; here index t = 0..T-1 stands for step t + 1, as in the field's programs:
alpha_bar[t] = prod_{s <= t} (1 - beta[s]), x_t = sqrt(alpha_bar[t]) x_0 + sqrt(1 - alpha_bar[t]) eps.
All constants are float64 and are rounded once, where they meet the images.
Sources: Ho et al. 2020 (arXiv 2006.11239), Song et al. 2021 (arXiv 2010.02502), Xiao et al. 2022 (arXiv 2112.07804),
Salimans & Ho 2022 (arXiv 2202.00512).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trilemma_bench.errors import UsageError, unknown_name

Spacing = Literal["leading", "trailing", "quadratic", "even"]
PredictionType = Literal["epsilon", "v_prediction"]
"""What a network says of x_t, in diffusers' words: the noise in it, or v (see `Chain.v_of`)."""


@dataclass(frozen=True)
class Chain:
    """A Gaussian diffusion chain given by its betas, float64 [T] in (0, 1)."""

    betas: Tensor

    def __post_init__(self) -> None:
        betas = self.betas
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise UsageError(f"betas must be T numbers inside (0, 1); got {betas}.")

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """float64 [T]: signal variance left after step t."""
        return torch.cumprod(1 - self.betas, 0)

    @cached_property
    def sigma(self) -> Tensor:
        """float64 [T]: noise over signal, the deviation of the noise in x_t / sqrt(alpha_bar)."""
        return ((1 - self.alpha_bar) / self.alpha_bar).sqrt()

    @cached_property
    def alpha_bar_prev(self) -> Tensor:
        """float64 [T]: alpha_bar one step earlier; 1 before the first."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @cached_property
    def posterior_variance(self) -> Tensor:
        """float64 [T]: variance of q(x_{t-1} | x_t, x_0), 'fixed small'; 0 at t = 0 (Ho et al. eq. 7)."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_x0(self) -> Tensor:
        """float64 [T]: coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)

    @cached_property
    def posterior_xt(self) -> Tensor:
        """float64 [T]: coefficient of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        return (1 - self.alpha_bar_prev) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)

    @cached_property
    def log_variances(self) -> tuple[Tensor, Tensor]:
        """float64 [T] each: the logs of the posterior's variance, the first as the second, and of beta.

        A learnt variance lies between them (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15).
        """
        if len(self) == 1:
            raise UsageError("a learnt variance needs a chain of at least 2 steps.")
        return torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log(), self.betas.log()

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t given x_0 and noise, both [N, ...], at int64 t [N] (Ho et al. eq. 4)."""
        return at(self.alpha_bar.sqrt(), t, x0) * x0 + at((1 - self.alpha_bar).sqrt(), t, x0) * noise

    def v_of(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0, at int64 t [N] (Salimans & Ho 2022, arXiv 2202.00512)."""
        return at(self.alpha_bar.sqrt(), t, x0) * noise - at((1 - self.alpha_bar).sqrt(), t, x0) * x0

    def eps_of(self, v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t that v says: sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t."""
        return at(self.alpha_bar.sqrt(), t, x_t) * v + at((1 - self.alpha_bar).sqrt(), t, x_t) * x_t


def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries table[t], shaped [N, 1, ...] to multiply `like` [N, ...], in its dtype and on its device."""
    values = table.to(like.device)[t].to(like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1))


def linear_betas(num_steps: int = 1000, start: float = 1e-4, end: float = 0.02, power: float = 1.0) -> Tensor:
    """The linear schedule of Ho et al. 2020, section 4; float64 [num_steps].

    With another `power` p it is beta^(1/p) that rises linearly: 2 is the schedule of latent diffusion (`scaled_linear`
    in diffusers), and larger ones leave more steps to the little noise where narrow modes are made.
    """
    return torch.linspace(start ** (1 / power), end ** (1 / power), num_steps, dtype=torch.float64) ** power


def cosine_betas(num_steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """The cosine schedule of Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17; float64 [num_steps].

    alpha_bar(s) = cos^2((s + offset) / (1 + offset) pi / 2) at s = i / T; betas are cut off at `largest`.
    """
    s = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bar = torch.cos((s + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)


def geometric_betas(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Betas of a chain whose noise over signal rises geometrically, `sigma_min` to `sigma_max`; float64 [num_steps].

    Those are the levels of Song & Ermon 2019 (arXiv 1907.05600) for a chain that keeps the variance.

    Raises:
        UsageError: Levels that do not rise.
    """
    if not 0 < sigma_min < sigma_max:
        raise UsageError(f"sigma_max must be above sigma_min, and both above 0; got {sigma_max} and {sigma_min}.")
    sigma = torch.logspace(math.log10(sigma_min), math.log10(sigma_max), num_steps, dtype=torch.float64)
    variance = torch.cat([torch.ones(1, dtype=torch.float64), 1 + sigma**2])
    return 1 - variance[:-1] / variance[1:]


def predict_x0(x_t: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """x_0 from x_t and the noise in it (Ho et al. eq. 15)."""
    return (x_t - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)


def ddim_step(
    x: Tensor,
    eps: Tensor,
    now: float,
    before: float,
    *,
    eta: float = 0.0,
    clip: bool = False,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """x_{t_prev} from x_t and the noise in it by one step of DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    Args:
        x: x_t, [N, ...].
        eps: The noise predicted in it, [N, ...].
        now: alpha_bar at t.
        before: alpha_bar at t_prev; 1 for the data.
        eta: 0 for the deterministic step, 1 for DDPM's with the posterior's variance.
        clip: Whether the predicted x_0 is clipped to [-1, 1]; the direction eps stays as it is.
        noise: Gives N(0, I), [N, ...], where the step has noise.
    """
    x0 = predict_x0(x, eps, now)
    if clip:
        x0 = x0.clamp(-1, 1)
    sigma = eta * math.sqrt((1 - before) / (1 - now) * (1 - now / before))
    x = math.sqrt(before) * x0 + math.sqrt(max(1 - before - sigma**2, 0.0)) * eps
    return x + sigma * noise() if sigma > 0 and noise is not None else x


def ddim_preview(
    chain: Chain, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, num_steps: int = 50, *, clip: bool = True
) -> Tensor:
    """What x_T leads to by DDIM in quadratic steps: enough to look at a network in training.

    Args:
        chain: Of the network; a shorter one is walked in as many steps as it has.
        predict: (x_t [N, ...], t int64 [N]) -> eps, float32 [N, ...].
        x: x_T, float32 [N, ...].
        num_steps: Evaluations.
        clip: Whether x_0 is clipped to [-1, 1].

    Returns:
        float32 [N, ...].
    """
    for t, t_prev in ddim_pairs(len(chain), min(num_steps, len(chain)), "quadratic"):
        eps = predict(x, torch.full((len(x),), t, device=x.device))
        before = float(chain.alpha_bar[t_prev]) if t_prev >= 0 else 1.0
        x = ddim_step(x, eps, float(chain.alpha_bar[t]), before, clip=clip)
    return x


def ddim_pairs(num_train_steps: int, num_steps: int, spacing: Spacing = "leading") -> list[tuple[int, int]]:
    """The (t, t_prev) pairs of a sampler of `num_steps` steps, from noise to image; t_prev = -1 is the clean image.

    `leading`: t = i (T // S), diffusers' default for DDIM. `trailing`: t = round(T - i T / S) - 1, the last step of
    the chain included (Lin et al. 2024, arXiv 2305.08891). `quadratic`: t = floor((i sqrt(0.8 T) / (S - 1))^2), as
    Song et al. 2021 used it on CIFAR-10: it starts at 0.8 T; a step that occurs twice is taken twice, the second
    time without change, so that the count of evaluations stays `num_steps`. `even`: from 0 to T - 1, both taken,
    as Nichol & Dhariwal 2021 respace their chains.

    Raises:
        UsageError: `num_steps` outside 1..T, or an unknown spacing.
    """
    total, steps = num_train_steps, num_steps
    if not 1 <= steps <= total:
        raise UsageError(f"steps must be in 1..{total}, the length of the trained chain; got {steps}.")
    if spacing == "leading":
        times = [i * (total // steps) for i in range(steps)]
    elif spacing == "trailing":
        times = [round(total - i * total / steps) - 1 for i in range(steps)][::-1]
    elif spacing == "quadratic":
        if steps < 2:
            raise UsageError("quadratic spacing needs at least 2 steps: one step would start at t = 0; use trailing.")
        # numpy's linspace, so that the floor falls as it does in the authors' program.
        times = [int(root**2) for root in np.linspace(0, np.sqrt(0.8 * total), steps)]
    elif spacing == "even":
        # Added up step by step, so that halves round as they do in the authors' program.
        stride = (total - 1) / (steps - 1) if steps > 1 else 1.0
        times = [round(place) for place in itertools.accumulate([stride] * (steps - 1), initial=0.0)]
    else:
        raise UsageError(f"spacing must be leading, trailing, quadratic or even; got {spacing!r}.")
    previous = [-1, *times[:-1]]
    return list(zip(reversed(times), reversed(previous), strict=True))


# --- denoising diffusion GAN --------------------------------------------------------------------------------


def ddgan_betas(num_steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """The variance-preserving schedule of DDGAN: few steps, large betas; float64 [num_steps].

    s_i = 1e-3 + 0.999 i / T and alpha_bar(s) = exp(-(beta_max - beta_min) s^2 / 2 - beta_min s);
    beta_i = 1 - alpha_bar(s_i) / alpha_bar(s_{i-1}) (Xiao et al. 2022; the released program's constants).
    """
    if num_steps < 1:
        raise UsageError(f"num_timesteps must be at least 1; got {num_steps}.")
    s = 1e-3 + 0.999 * torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bar = torch.exp(-0.5 * (beta_max - beta_min) * s**2 - beta_min * s)
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


PREDICTIONS = ("x0", "eps", "direct")
"""What a generator's output may stand for; see `GanChain.previous`."""


@dataclass(frozen=True)
class GanChain:
    """DDGAN's chain x_0 -> x_1 -> ... -> x_T, T = len(betas), where x_0 is clean.

    Index t = 0..T-1 is the transition x_{t+1} -> x_t, and `chain` holds its betas. The released program
    rounds the betas to float32 first and goes on from there; so does this one, in order to agree with it.
    """

    num_steps: int
    beta_min: float = 0.1
    beta_max: float = 20.0

    @cached_property
    def betas(self) -> Tensor:
        """float32 [T]."""
        return ddgan_betas(self.num_steps, self.beta_min, self.beta_max).float()

    @cached_property
    def signal(self) -> Tensor:
        """float32 [T + 1]: x_t = signal[t] x_0 + noise[t] eps; 1 at t = 0."""
        return torch.cat([torch.ones(1), torch.cumprod((1 - self.betas).sqrt(), 0)])

    @cached_property
    def noise(self) -> Tensor:
        """float32 [T + 1]: standard deviation of the noise in x_t; 0 at t = 0."""
        return (1 - self.signal**2).clamp(min=0).sqrt()

    @cached_property
    def chain(self) -> Chain:
        """The same chain with double precision constants for the posteriors."""
        return Chain(self.betas.double())

    def q_sample_pair(self, x0: Tensor, t: Tensor, noise: Tensor, step_noise: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, x_{t+1}) for x_0 [N, ...] at transitions t [N]; both noises are independent N(0, I)."""
        x_t = at(self.signal, t, x0) * x0 + at(self.noise, t, x0) * noise
        beta = at(self.betas, t, x0)
        return x_t, (1 - beta).sqrt() * x_t + beta.sqrt() * step_noise

    def posterior_sample(self, x0: Tensor, x_next: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_{t+1}, x_0) [N, ...]; deterministic (x_0 itself) at t = 0."""
        mean = at(self.chain.posterior_x0, t, x0) * x0 + at(self.chain.posterior_xt, t, x0) * x_next
        return mean + at(self.chain.posterior_variance.sqrt(), t, x0) * noise

    def previous(self, output: Tensor, x_next: Tensor, t: Tensor, noise: Tensor, *, predict: str = "x0") -> Tensor:
        """x_t [N, ...] from what a generator made of x_{t+1}, by the parametrisations of Xiao et al. 2022, section 5.2.

        Args:
            output: x_0, the noise in x_{t+1}, or x_t itself, as `predict` says.
            x_next: x_{t+1}.
            t: Transitions, int64 [N].
            noise: N(0, I) of the posterior.
            predict: `x0`, `eps` or `direct`.

        Raises:
            UsageError: Another word for `predict`.
        """
        if predict == "direct":
            return output
        if predict == "eps":
            output = (x_next - at(self.noise, t + 1, output) * output) / at(self.signal, t + 1, output)
        elif predict != "x0":
            raise unknown_name("prediction", predict, PREDICTIONS)
        return self.posterior_sample(output, x_next, t, noise)


# --- discrete states ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiscreteChain:
    """A diffusion chain over `num_states` ordered states (Austin et al. 2021, D3PM, arXiv 2107.03006).

    Index t = 0..T-1 is the transition to x_{t+1}, as in `Chain`. `uniform`: with probability beta a state is drawn
    anew (eq. of appendix A.2.1). `gaussian`: it moves by a discretised Gaussian whose variance is about
    beta (K - 1)^2 / 8 cells^2, and what would leave the range stays (appendix A.2.3). Both are doubly stochastic, so
    that the end of a long chain is uniform.

    Raises:
        UsageError: Betas outside (0, 1), or another kind.
    """

    num_states: int
    betas: Tensor
    kind: str = "gaussian"

    def __post_init__(self) -> None:
        Chain(self.betas)
        if self.kind not in ("gaussian", "uniform"):
            raise unknown_name("transition", self.kind, ("gaussian", "uniform"))

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def transitions(self) -> Tensor:
        """float64 [T, K, K]: q(x_{t+1} = j | x_t = i) in row i."""
        k = self.num_states
        beta = self.betas[:, None, None]
        if self.kind == "uniform":
            return (1 - beta) * torch.eye(k, dtype=torch.float64) + beta / k
        steps = torch.arange(k, dtype=torch.float64)
        away = torch.arange(1 - k, k, dtype=torch.float64)
        total = torch.exp(-4 * away**2 / ((k - 1) ** 2 * beta)).sum(2, keepdim=True)
        moved = torch.exp(-4 * (steps[:, None] - steps) ** 2 / ((k - 1) ** 2 * beta)) / total
        moved.diagonal(dim1=1, dim2=2).zero_()
        return moved + torch.diag_embed(1 - moved.sum(2))

    @cached_property
    def from_data(self) -> Tensor:
        """float64 [T + 1, K, K]: q(x_t = j | x_0 = i) in row i; the identity at t = 0."""
        found = [torch.eye(self.num_states, dtype=torch.float64)]
        for transition in self.transitions:
            found.append(found[-1] @ transition)
        return torch.stack(found)

    def between(self, earlier: int, later: int) -> Tensor:
        """float64 [K, K]: q(x_later = j | x_earlier = i) in row i, `earlier` and `later` in 0..T."""
        found = torch.eye(self.num_states, dtype=torch.float64)
        for transition in self.transitions[earlier:later]:
            found = found @ transition
        return found

    def reverse(self, x0: Tensor, x_t: Tensor, earlier: int, later: int, step: Tensor | None = None) -> Tensor:
        """p(x_earlier | x_later) = sum over x_0 of q(x_earlier | x_later, x_0) p(x_0 | x_later), float64 [N, D, K].

        The authors' eq. 4 has q(x_earlier, x_later | x_0) in the sum; with q(x_earlier | x_later, x_0) the chain is
        exact where p(x_0 | x_later) is, whatever its steps.

        Args:
            x0: Probabilities of x_0, float64 [N, D, K]; those from which x_later cannot be reached have no part.
            x_t: x_later, int64 [N, D].
            earlier: In 0..T - 1.
            later: In 1..T.
            step: `between(earlier, later)`, where it is at hand.
        """
        step = self.between(earlier, later) if step is None else step
        reached = self.from_data[later].T[x_t]
        ratio = torch.where(reached > 1e-150, x0 / reached.clamp(min=1e-150), 0)
        found = step.T[x_t] * (ratio @ self.from_data[earlier])
        return found / found.sum(2, keepdim=True)


def draw_categorical(probabilities: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """States int64 [...] of probabilities [..., K] at uniform numbers [...] in [0, 1], by the inverse of the sum.

    Returns:
        The states, and what of the numbers is left: uniform in [0, 1] too, given the states, and a place within them
        that moves continuously with the probabilities.
    """
    cumulative = probabilities.cumsum(-1)
    wanted = (uniform * cumulative[..., -1])[..., None]
    state = torch.searchsorted(cumulative, wanted).clamp(max=probabilities.shape[-1] - 1)
    share = probabilities.gather(-1, state)
    left = 1 - (cumulative.gather(-1, state) - wanted) / share.clamp(min=1e-300)
    return state[..., 0], left.clamp(0, 1)[..., 0]
