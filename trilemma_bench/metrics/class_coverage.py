"""Mode coverage where the modes are classes that a classifier tells apart: StackedMNIST's 1000.

An image's class is that of each of its `factors` independent parts together, such as the three digits of an image of
StackedMNIST: the logits [N, factors * C] are cut into `factors` parts, the largest of each is its digit, and the digits
in order are a number in base C. K = C^factors modes are set against equal weights; `_modes` has the formulas.

**Finite samples.** For K = 1000 and N = 26,000 (Lin et al. 2018, arXiv 1712.04086) both plain divergences of exactly
equal modes are 0.0192 nats too large on average. The real data's modes are not exactly equal (see `data.stackedmnist`),
and a classifier that errs spreads its errors over other modes: images of no digit are counted somewhere too, which is
why quality has scores of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Reference
from trilemma_bench.metrics import _helpers, _modes
from trilemma_bench.record import Score

MAX_MODES = 2**20

KINDS = (_modes.CAPTURED, _modes.HELD, _modes.KL, _modes.CORRECTED_KL, _modes.REVERSE_KL, _modes.TV)


def classes(logits: Array, factors: int) -> tuple[_helpers.Int64, int]:
    """The class of each image, int64 [N] in 0..K-1, and K, from logits float [N, factors * C].

    Raises:
        ProtocolError: Logits that cannot be cut into so many parts of two or more, or too many classes.
    """
    width = logits.shape[1]
    if factors < 1 or width % factors or width // factors < 2:
        raise ProtocolError(
            f"factors = {factors}: logits of {width} columns cannot be cut into so many parts of two or more classes."
        )
    base = width // factors
    if base**factors > MAX_MODES:
        raise ProtocolError(f"factors = {factors}: {base}^{factors} classes; at most {MAX_MODES} are counted.")
    digits = logits.reshape(len(logits), factors, base).argmax(2)
    return digits @ (base ** np.arange(factors)[::-1]), base**factors


def compute(
    *,
    real: Reference,
    generated: Mapping[str, Array],
    rng: np.random.Generator,
    factors: int = 3,
    share: float = 0.2,
) -> dict[str, Score]:
    """The scores of `KINDS` of the `logits` layer.

    Raises:
        ProtocolError: A parameter outside its range, logits that are not finite or that `classes` refuses, or a
            reference that does not name its extractor.
    """
    if not 0 < share <= 1:
        raise ProtocolError(f"share = {share}: must be in (0, 1].")
    _helpers.extractor_of(real)
    logits = _helpers.check_features(generated["logits"], what="generated logits")
    found, modes = classes(logits, factors)
    labels = stats.group_labels(len(found), groups=_helpers.GROUPS, rng=rng)
    return of_histogram(histogram(found, labels, modes), share=share)


def histogram(found: _helpers.Int64, labels: _helpers.Int64, modes: int) -> _helpers.Int64:
    """Samples by group (`labels` [N]) and class (`found` [N]): int64 [G, modes]."""
    groups = int(labels.max()) + 1
    return np.bincount(labels * modes + found, minlength=groups * modes).reshape(groups, modes)


def of_histogram(counts: _helpers.Int64, *, share: float = 0.2) -> dict[str, Score]:
    """The scores of counts [G, K] of G groups of samples, all of them together; intervals from leaving groups out."""
    total = counts.sum(0)
    found = summary(total, share=share)
    replicates = [summary(total - group, share=share) for group in counts] if len(counts) > 1 else []
    scores = {
        name: _modes.jackknifed(found[name], [each[name] for each in replicates], limits, int(total.sum()))
        for name, limits in _modes.bounds(len(total)).items()
    }
    name = _modes.CAPTURED.name
    return {**scores, name: _modes.captured(scores[name], total, total)}


def summary(counts: _helpers.Int64, *, share: float) -> dict[str, float]:
    """The scores of one histogram [K]."""
    return {
        _modes.CAPTURED.name: float((counts > 0).sum()),
        _modes.HELD.name: _modes.held(counts, int(counts.sum()), share=share),
        _modes.KL.name: _modes.kl(counts),
        _modes.CORRECTED_KL.name: _modes.corrected_kl(counts),
        _modes.REVERSE_KL.name: _modes.reverse_kl(counts),
        _modes.TV.name: _modes.total_variation(counts),
    }


METRIC = Metric(
    name="class_coverage",
    layers=("logits",),
    kinds=lambda extractor: KINDS,
    compute=compute,
    defaults={"factors": 3, "share": 0.2},
)
