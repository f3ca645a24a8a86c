"""Inception Score (Salimans et al. 2016, arXiv:1606.03498): exp of the mean KL(p(y|x) || p(y)), over splits.

It bears that name only on the logits of the TF Inception network; on another classifier's it is a classifier score,
whose values compare with nobody's Inception Score. Splits are of a fixed shuffle: on samples ordered by class
an unshuffled split sees one class and reads 1. Fewer samples a split read lower. With `draws = "torch-fidelity"` the
shuffle is the one that torch-fidelity takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Reference
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score, ScoreKind


def inception_score(*, generated: Array, splits: int = 10, order: npt.ArrayLike | None = None) -> _helpers.Float64:
    """The score of each split; the field reports their mean and their standard deviation (ddof 0).

    Args:
        generated: Class logits, float [N, K], N >= `splits`.
        splits: Parts, contiguous in `order`, whose sizes differ by at most one.
        order: int [N], a permutation of the samples; None takes them as they come.

    Returns:
        float64 [splits], each in [1, K]; higher is better.

    Raises:
        ProtocolError: Fewer samples than splits, a wrong shape, or logits that are not finite.
    """
    if splits < 1:
        raise ProtocolError(f"splits must be at least 1; got {splits}. The field takes 10.")
    logits = _helpers.check_features(
        generated, what="generated logits", minimum=splits, why=f"{splits} splits need a sample each"
    )
    if order is not None:
        logits = logits[np.asarray(order)]
    count = len(logits)
    return np.array([_score(logits[part * count // splits : (part + 1) * count // splits]) for part in range(splits)])


def compute(
    *, real: Reference, generated: Mapping[str, Array], rng: np.random.Generator, splits: int = 10, draws: str = "own"
) -> dict[str, Score]:
    """Mean over the splits of a fixed shuffle, of `rng`'s or torch-fidelity's; splits are independent: hence its error.

    Raises:
        ProtocolError: As for `inception_score`.
    """
    logits = _helpers.check_features(generated["logits"], what="generated logits")
    order = (_helpers.torch_fidelitys_generator(draws) or rng).permutation(len(logits))
    values = inception_score(generated=logits, splits=splits, order=order)
    (kind,) = _kinds(*_helpers.extractor_of(real))
    value = float(values.mean())
    if splits < 2:
        return {kind.name: Score(value=value, uncertainty="none: a single split", n=len(logits))}
    stderr = stats.mean_stderr(values)
    return {
        kind.name: _helpers.estimate(
            value,
            stderr,
            dof=splits - 1,
            bounds=(1, logits.shape[1]),
            uncertainty=f"standard error over {splits} splits; the papers' standard deviation of splits is "
            f"{math.sqrt(splits - 1):.3g} times that",
            n=len(logits),
            replicates=tuple(((values.sum() - values) / (splits - 1)).tolist()),
        )
    }


def _kinds(extractor: str, is_inception: bool) -> tuple[ScoreKind]:
    if is_inception:
        return (ScoreKind(name="is", axis="quality", higher_is_better=True, label="IS"),)
    name, label = f"classifier_score_{extractor}", f"classifier score ({extractor})"
    return (ScoreKind(name=name, axis="quality", higher_is_better=True, label=label),)


def _score(logits: Array) -> float:
    logits = logits.astype(np.float64)
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    divergence = np.einsum("nk,nk->n", np.exp(log_p), log_p - log_marginal)
    # Of samples that are all alike rounding may leave it just below the 0 that it is.
    return float(np.exp(max(0.0, divergence.mean())))


METRIC = Metric(
    name="inception_score",
    layers=("logits",),
    kinds=lambda extractor: _kinds(extractor.name, extractor.is_inception),
    compute=compute,
    defaults={"splits": 10, "draws": "own"},
)
