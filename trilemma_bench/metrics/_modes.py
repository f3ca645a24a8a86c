"""What a histogram over modes says, wherever the modes come from: centres in the plane or the classes of a classifier.

Counts n_k of N samples over K modes are set against equal weights q_k = 1 / K, with p_k = n_k / N:

* captured: modes with a sample (Srivastava et al. 2017, arXiv 1705.07761; Lin et al. 2018, arXiv 1712.04086);
* held: modes with `share` of a fair share N / K of them;
* KL(p, q) = sum p_k log(K p_k), in nats, and total variation sum |p_k - q_k| / 2;
* corrected KL: log K less Grassberger's estimate of the entropy (2003, arXiv physics/0307138), whose bias is negligible
  from about two samples a mode on; it may fall below 0;
* reverse KL(q, p~) = sum log(1 / (K p~_k)) / K with p~_k = (n_k + 1/2) / (N + K / 2) (Krichevsky & Trofimov 1981):
  without the half a single missing mode would make it infinite.

**Finite samples.** With N samples of equal modes both plain divergences are (K - 1) / (2 N) on average to first order,
and total variation about sqrt(K / (2 pi N)), not 0.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import digamma

from trilemma_bench import stats
from trilemma_bench.kinds import Array
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score, ScoreKind

CAPTURED = ScoreKind(name="modes_captured", axis="coverage", higher_is_better=True, label="modes")
HELD = ScoreKind(name="modes_held", axis="coverage", higher_is_better=True, label="modes held")
KL = ScoreKind(name="mode_kl", axis="coverage", higher_is_better=False, label="mode KL")
CORRECTED_KL = ScoreKind(
    name="mode_kl_corrected", axis="coverage", higher_is_better=False, label="mode KL (bias corrected)"
)
REVERSE_KL = ScoreKind(name="mode_kl_reverse", axis="coverage", higher_is_better=False, label="reverse mode KL")
TV = ScoreKind(name="mode_tv", axis="coverage", higher_is_better=False, label="mode TV")


CERTAIN = 0.05
"""Modes: a standard error under this, a mode more or less in one of 400 draws, is none."""


def bounds(modes: int) -> dict[str, stats.Bounds]:
    """The range of each score over a histogram of so many modes."""
    return {
        CAPTURED.name: (0, modes), HELD.name: (0, modes), KL.name: (0, None), CORRECTED_KL.name: (None, None),
        REVERSE_KL.name: (0, None), TV.name: (0, 1),
    }  # fmt: skip


def held(good: Array, total: int, *, share: float) -> float:
    """Modes of whose samples `good` [K] at least `share` of total / K are; one that nobody entered is never held."""
    return float(((good > 0) & (good >= share * total / len(good))).sum())


def kl(counts: Array) -> float:
    """KL(p, q) in nats of counts [K] against equal weights."""
    weight = counts / counts.sum()
    taken = weight[weight > 0]
    return max(0.0, float((taken * np.log(taken * len(weight))).sum()))


def corrected_kl(counts: Array) -> float:
    """KL(p, q) in nats without the bias of few samples: log K - log N + sum n_k G(n_k) / N.

    G(n) = psi(n) + (-1)^n / 2 (psi((n + 1) / 2) - psi(n / 2)).
    """
    n = counts[counts > 0].astype(np.float64)
    total = n.sum()
    g = digamma(n) + np.where(n % 2 == 0, 0.5, -0.5) * (digamma((n + 1) / 2) - digamma(n / 2))
    return math.log(len(counts)) - math.log(total) + float((n * g).sum() / total)


def reverse_kl(counts: Array) -> float:
    """KL(q, p~) in nats, p~ with half a sample more in each mode."""
    weight = (counts + 0.5) / (counts.sum() + len(counts) / 2)
    return max(0.0, float(-np.log(weight * len(weight)).mean()))


def total_variation(counts: Array) -> float:
    """Half the sum of |p_k - q_k|."""
    return float(np.abs(counts / counts.sum() - 1 / len(counts)).sum() / 2)


def jackknifed(value: float, replicates: list[float], limits: stats.Bounds, count: int) -> Score:
    """A score with the delete-a-group jackknife's interval; replicates that are NaN do not count."""
    known = [each for each in replicates if not np.isnan(each)]
    if len(known) < 2:
        return Score(value=value, uncertainty="none: too few samples", n=count, bounds=limits)
    return _helpers.estimate(
        value, stats.jackknife_stderr(known), dof=len(known) - 1, bounds=limits, n=count,
        uncertainty=f"jackknife over {len(known)} groups of generated samples",
    )  # fmt: skip


def captured(score: Score, counts: Array, histogram: Array) -> Score:
    """The jackknifed score of modes with a sample, with its histogram; an error where the jackknife sees no spread.

    Args:
        score: See `jackknifed`.
        counts: Samples that count in each mode, [K]; for `redrawn_stderr`.
        histogram: Samples in each mode, [K], for the record.
    """
    redrawn = redrawn_stderr(counts)
    if score.stderr == 0 and redrawn > CERTAIN:
        assert score.value is not None and score.n is not None
        score = _helpers.estimate(
            score.value, redrawn, bounds=score.bounds, n=score.n,
            uncertainty="new samples of the modes as filled here, as a jackknife over groups sees no spread",
        )  # fmt: skip
    return score.model_copy(update={"histogram": tuple(histogram.tolist())})


def redrawn_stderr(counts: Array) -> float:
    """Standard error of the number of modes with a sample, from the samples in each, where a jackknife sees none.

    Of n samples in a mode as many new ones lose it with probability exp(-n) (Poisson); all empty modes together count
    as one of half a sample, as by Good's estimate (1953) unseen modes weigh little where none has a single sample.
    """
    n = counts[counts > 0].astype(np.float64)
    if len(n) < len(counts):
        n = np.append(n, 0.5)
    lost = np.exp(-n)
    return math.sqrt(float((lost * (1 - lost)).sum()))
