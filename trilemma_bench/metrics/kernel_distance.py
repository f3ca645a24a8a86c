"""Kernel distance: unbiased MMD^2 with the kernel (x.y / D + 1)^3 (Bińkowski et al. 2018, arXiv:1801.01401).

On Inception features it is the KID. As the field has it, the value is the mean over random subsets of equal size on
both sides (100 of 1000 in the paper), each subset's estimate being unbiased at any size; it can fall below 0.

**The standard error.** Subsets of one sample overlap, so their spread is no standard error: it neither shrinks with
more images nor counts that the same images come again. Reported is the root of the sum of two variances: that of
the estimate over all images when the generated ones are drawn anew (delete-one jackknife, in closed form from the
kernel's row sums), and that of the draw of subsets (their variance over their number; given the images they are
independent).

With `draws = "torch-fidelity"` subsets are the very ones that torch-fidelity takes, so that on equal features, in the
order of its inputs, the value is its `kernel_inception_distance_mean`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Metric, Reference
from trilemma_bench.metrics import _helpers
from trilemma_bench.record import Score, ScoreKind

LANDMARKS = 10_000
"""Most samples that the jackknife's row means run over, so that its cost grows with N and not with its square."""


def kernel_distances(
    *, real: Array, generated: Array, real_subsets: _helpers.Int64, generated_subsets: _helpers.Int64
) -> _helpers.Float64:
    """Unbiased MMD^2 of each pair of subsets.

    Args:
        real: Features, float [N, D].
        generated: Features, float [M, D].
        real_subsets: int [S, m], rows of `real`, without repeats within a subset; m >= 2.
        generated_subsets: int [S, m], rows of `generated`.

    Returns:
        float64 [S]; lower is better, 0 is expected of equal distributions.

    Raises:
        ProtocolError: D differs, a wrong shape, or a feature is not finite.
    """
    real, generated = _helpers.check_pair(real, generated, minimum=2, why="an unbiased estimate needs pairs")
    size = real_subsets.shape[1]
    within_real = _subset_sums(real, real, real_subsets, real_subsets, same=True)
    within_generated = _subset_sums(generated, generated, generated_subsets, generated_subsets, same=True)
    between = _subset_sums(real, generated, real_subsets, generated_subsets, same=False)
    return (within_real + within_generated) / (size * (size - 1)) - 2 * between / size**2


def draw_subsets(count: int, *, size: int, subsets: int, rng: np.random.Generator) -> _helpers.Int64:
    """Rows of each subset, int64 [subsets, size], drawn from 0..count - 1 without repeats within a subset.

    Raises:
        ProtocolError: A subset larger than the sample, or of fewer than two.
    """
    _check_subsets(count, size=size, subsets=subsets)
    return np.stack([rng.choice(count, size, replace=False) for _ in range(subsets)])


def _check_subsets(count: int, *, size: int, subsets: int) -> None:
    if not 2 <= size <= count:
        raise ProtocolError(
            f"the kernel distance's subset_size must be between 2 and the number of images, here {count}; "
            f"got {size}. Sample more images or take a protocol with smaller subsets."
        )
    if subsets < 2:
        raise ProtocolError(f"the kernel distance needs at least 2 subsets; got {subsets}. The paper takes 100.")


def _draw_both(
    real: int, generated: int, *, size: int, subsets: int, rng: np.random.Generator, draws: str
) -> tuple[_helpers.Int64, _helpers.Int64]:
    """The subsets of both sides; torch-fidelity draws them in turn, the generated one first."""
    known = _helpers.torch_fidelitys_generator(draws)
    if known is None:
        first = draw_subsets(real, size=size, subsets=subsets, rng=rng)
        return first, draw_subsets(generated, size=size, subsets=subsets, rng=rng)
    for count in (real, generated):
        _check_subsets(count, size=size, subsets=subsets)
    pairs = [[known.choice(count, size, replace=False) for count in (generated, real)] for _ in range(subsets)]
    generated_subsets, real_subsets = np.stack(pairs, axis=1)
    return real_subsets, generated_subsets


def compute(
    *,
    real: Reference,
    generated: Mapping[str, Array],
    rng: np.random.Generator,
    subsets: int = 100,
    subset_size: int = 1000,
    draws: str = "own",
) -> dict[str, Score]:
    """Mean over random subsets, with the standard error that the module's docstring explains.

    Raises:
        ProtocolError: As for `kernel_distances` and `draw_subsets`.
    """
    reference, samples = _helpers.check_pair(
        real.features,
        generated["features"],
        minimum=3,
        why="an unbiased estimate and its error need three samples",
    )
    real_subsets, generated_subsets = _draw_both(
        len(reference), len(samples), size=subset_size, subsets=subsets, rng=rng, draws=draws
    )
    # What overflows is refused by `estimate`, with a message.
    with np.errstate(over="ignore", invalid="ignore"):
        values = kernel_distances(
            real=reference, generated=samples, real_subsets=real_subsets, generated_subsets=generated_subsets
        )
        value = float(values.mean())
        influences = sample_influences(real=reference, generated=samples, rng=rng)
        stderr = math.hypot(stats.mean_stderr(influences), stats.mean_stderr(values))
    (kind,) = _kinds(*_helpers.extractor_of(real))
    score = _helpers.estimate(
        value,
        stderr,
        uncertainty="jackknife over generated samples and the draw of subsets; the reference is fixed",
        n=len(samples),
        replicates=stats.leave_out(value, influences, groups=_helpers.GROUPS),
    )
    return {kind.name: score}


def jackknife_stderr(*, real: Array, generated: Array, rng: np.random.Generator) -> float:
    """Standard error of MMD^2 over all samples under a new draw of the generated ones; see `sample_influences`."""
    return stats.mean_stderr(sample_influences(real=real, generated=generated, rng=rng))


def sample_influences(*, real: Array, generated: Array, rng: np.random.Generator) -> _helpers.Float64:
    """Influence of each generated sample on MMD^2 over all samples but for a constant, the real ones fixed.

    Without sample i the estimate is a constant less 2 h_i / (M - 1), h_i = a_i (M - 1) / (M - 2) - b_i, where a_i is
    the mean kernel of i with the other generated samples and b_i that with the real ones: row means are enough.

    Args:
        real: Features, float [N, D].
        generated: Features, float [M, D], M >= 3.
        rng: Chooses the landmarks where there are more than LANDMARKS samples.

    Returns:
        float64 [M].
    """
    count = len(generated)
    among = _row_means(generated, _landmarks(count, rng), itself=True, pool=generated)
    across = _row_means(generated, _landmarks(len(real), rng), itself=False, pool=real)
    influences: _helpers.Float64 = 2 * (among * (count - 1) / (count - 2) - across)
    return influences


def _kinds(extractor: str, is_inception: bool) -> tuple[ScoreKind]:
    name, label = ("kid", "KID") if is_inception else (f"kd_{extractor}", f"KD ({extractor})")
    return (ScoreKind(name=name, axis="quality", higher_is_better=False, label=label),)


def _kernel(x: Array, y: Array) -> _helpers.Float64:
    base = x.astype(np.float64) @ y.astype(np.float64).T
    base /= x.shape[1]
    base += 1
    return base * base * base


def _subset_sums(
    x: Array, y: Array, x_subsets: _helpers.Int64, y_subsets: _helpers.Int64, *, same: bool
) -> _helpers.Float64:
    """Sum of the kernel over x_subsets[s] x y_subsets[s] for each s, float64 [S], without the diagonal if `same`."""
    subsets, size = x_subsets.shape
    if subsets * size * size < len(x) * len(y):
        pairs = ((x[rows], y[columns]) for rows, columns in zip(x_subsets, y_subsets, strict=True))
        sums = np.array([_kernel(*pair).sum() for pair in pairs])
        diagonal = _diagonal(x)[x_subsets].sum(axis=1) if same else 0
        return sums - diagonal
    # Where subsets overlap much, one pass over the whole kernel matrix with 0/1 weights is several times cheaper.
    x_weights, y_weights = _membership(x_subsets, len(x)), _membership(y_subsets, len(y))
    sums = np.zeros(subsets)
    for start in range(0, len(x), _helpers.TILE):
        rows = slice(start, start + _helpers.TILE)
        for other in range(0, len(y), _helpers.TILE):
            columns = slice(other, other + _helpers.TILE)
            if same and other < start:
                continue
            block = _kernel(x[rows], y[columns])
            if same and rows == columns:
                np.fill_diagonal(block, 0)
            part = np.einsum("sc,sc->s", x_weights[:, rows] @ block, y_weights[:, columns])
            sums += 2 * part if same and other > start else part
    return sums


def _membership(subsets: _helpers.Int64, count: int) -> _helpers.Float64:
    weights = np.zeros((len(subsets), count))
    weights[np.arange(len(subsets))[:, None], subsets] = 1
    return weights


def _diagonal(x: Array) -> _helpers.Float64:
    return (np.einsum("nd,nd->n", x, x, dtype=np.float64) / x.shape[1] + 1) ** 3


def _landmarks(count: int, rng: np.random.Generator) -> _helpers.Int64:
    return np.arange(count) if count <= LANDMARKS else np.sort(rng.choice(count, LANDMARKS, replace=False))


def _row_means(x: Array, chosen: _helpers.Int64, *, itself: bool, pool: Array) -> _helpers.Float64:
    """Mean kernel of each row of x with the chosen rows of the pool, itself left out, float64 [len(x)]."""
    sums = np.zeros(len(x))
    for start in range(0, len(x), _helpers.TILE):
        rows = slice(start, start + _helpers.TILE)
        for other in range(0, len(chosen), _helpers.TILE):
            sums[rows] += _kernel(x[rows], pool[chosen[other : other + _helpers.TILE]]).sum(axis=1)
    counts = np.full(len(x), len(chosen))
    if itself:
        sums[chosen] -= _diagonal(x)[chosen]
        counts[chosen] -= 1
    return sums / counts


METRIC = Metric(
    name="kernel_distance",
    layers=("features",),
    kinds=lambda extractor: _kinds(extractor.name, extractor.is_inception),
    compute=compute,
    defaults={"subsets": 100, "subset_size": 1000, "draws": "own"},
)
