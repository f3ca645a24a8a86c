"""What metrics share: checks of features, names of scores, exact neighbour search in bounded memory.

Distances are squared, in float64, from |x|^2 + |y|^2 - 2 x.y over tiles of features that were centred first. The
rounding of that sum is some 1e-15 of the norms; points that agree to `TIE` of them count as equally far, so that
copies and lattices are decided by the ball's being open or closed, never by rounding, tile size or order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from trilemma_bench import stats
from trilemma_bench.errors import ProtocolError
from trilemma_bench.kinds import Array, Reference
from trilemma_bench.record import Score

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

TILE = 2048
TREE_COLUMNS = 3
"""Features of at most so many columns, such as points in the plane, have their neighbours found by a tree."""
TIE = 1e-12
GROUPS = 20
"""Groups of the delete-a-group jackknife."""

OPEN = TIE
"""Slack of distances that are compared with `<`: a tie lies outside."""
CLOSED = -TIE
"""Slack of distances that are compared with `<=`: a tie lies inside."""


# --- checks -----------------------------------------------------------------------------------------------


def check_features(features: Array, *, what: str, minimum: int = 1, why: str = "a score needs a sample") -> Array:
    """The array itself, if it is a finite float [N, D] with N >= `minimum`.

    Args:
        features: What the extractor gave.
        what: How messages call it, such as `generated features`.
        minimum: Rows that the metric needs.
        why: What they are needed for.

    Raises:
        ProtocolError: Not two-dimensional, not floating-point, too few rows, or not finite.
    """
    array = np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ProtocolError(f"{what} must be [N, D] with D >= 1; got shape {array.shape}. Give one row an image.")
    if not np.issubdtype(array.dtype, np.floating):
        raise ProtocolError(f"{what} must be floating-point; got {array.dtype}. Convert them with astype('float32').")
    if len(array) < minimum:
        raise ProtocolError(f"{what}: {why}, at least {minimum} rows; got {len(array)}. Give more images.")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ProtocolError(
            f"{what}: {len(array) - int(finite.sum())} of {len(array)} rows hold NaN or Inf, the first is row "
            f"{int(np.argmin(finite))}. Look for broken images there, or for an overflow of float16."
        )
    return array


def check_same_width(real: Array, generated: Array) -> None:
    """Raises ProtocolError unless both have the same number of columns."""
    if real.shape[-1] != generated.shape[-1]:
        raise ProtocolError(
            f"real features have {real.shape[-1]} columns and generated ones {generated.shape[-1]}. "
            "Both must come from the same layer of the same extractor."
        )


def check_pair(real: Array, generated: Array, *, minimum: int, why: str) -> tuple[Array, Array]:
    """Both feature arrays, checked by `check_features` and for equal width."""
    real = check_features(real, what="real features", minimum=minimum, why=why)
    generated = check_features(generated, what="generated features", minimum=minimum, why=why)
    check_same_width(real, generated)
    return real, generated


def check_k(k: int) -> None:
    """Raises ProtocolError unless `k` is a count of neighbours."""
    if k < 1:
        raise ProtocolError(f"k must be at least 1; got {k}. Take the paper's number of neighbours.")


# --- draws ------------------------------------------------------------------------------------------------

TORCH_FIDELITYS_SEED = 2020
DRAWS = ("own", "torch-fidelity")


def torch_fidelitys_generator(draws: str) -> np.random.RandomState | None:
    """The generator that torch-fidelity 0.4 starts each metric with, or None where `draws` are `own`.

    Raises:
        ProtocolError: `draws` is neither.
    """
    if draws not in DRAWS:
        raise ProtocolError(f"draws = {draws!r}; a protocol says one of {', '.join(DRAWS)}.")
    # numpy's legacy generator, whose stream is the only one that gives its subsets.
    return np.random.RandomState(TORCH_FIDELITYS_SEED) if draws == "torch-fidelity" else None


# --- names ------------------------------------------------------------------------------------------------


def extractor_of(real: Reference) -> tuple[str, bool]:
    """Name of the extractor that a reference belongs to, and whether it is Inception, from `about`.

    Raises:
        ProtocolError: The reference does not say.
    """
    name = real.about.get("extractor")
    if not isinstance(name, str):
        raise ProtocolError(
            f"the reference {real.identity[:12]} does not name its extractor ('extractor' in `about`). "
            "Make it again with `trilemma-bench reference make`."
        )
    return name, bool(real.about.get("is_inception", False))


# --- scores -----------------------------------------------------------------------------------------------


def fraction(hits: Bool, *, fixed: str) -> Score:
    """The share of generated samples that are hits, bool [N], with Wilson's interval.

    `fixed` ends the text on its uncertainty: what of the comparison is not drawn.
    """
    count, total = int(hits.sum()), len(hits)
    return Score(
        value=count / total,
        stderr=stats.proportion_stderr(count, total),
        interval=stats.wilson_interval(count, total),
        uncertainty=f"Wilson interval over the generated samples; {fixed}",
        n=total,
        bounds=(0, 1),
        replicates=stats.leave_out(count / total, hits, groups=GROUPS),
    )


def estimate(
    value: float,
    stderr: float,
    *,
    uncertainty: str,
    n: int,
    dof: int | None = None,
    bounds: stats.Bounds = (None, None),
    replicates: tuple[float, ...] | None = None,
) -> Score:
    """The score of an estimate with a standard error, its interval symmetric but for `bounds`; see `Score`.

    Raises:
        ProtocolError: It is not finite, though the features are.
    """
    if not (math.isfinite(value) and math.isfinite(stderr)):
        raise ProtocolError(
            f"the score is {value:g} +- {stderr:g}: features of that size overflow. Look at what the sampler makes."
        )
    return Score(
        value=value, stderr=stderr, interval=stats.symmetric_interval(value, stderr, dof=dof, bounds=bounds),
        uncertainty=uncertainty, n=n, dof=dof, bounds=bounds, replicates=replicates,
    )  # fmt: skip


def share_covered(found: int, total: int, without: Float64, *, n: int) -> Score:
    """The share of real samples that generated ones reach, with a jackknife over groups of the latter.

    Where leaving out any of the groups does the same, as where no real sample is reached, the jackknife sees no
    spread: the interval is then Wilson's over the real samples. With none reached it ends at 3.8 of them, near the
    three that the rule of three allows where each generated sample reaches one at most.

    Args:
        found: Real samples that are reached.
        total: Real samples.
        without: The share without each of at least two groups, float64 [G].
        n: Generated samples.
    """
    value = found / total
    dof, replicates = len(without) - 1, tuple(without.tolist())
    stderr = stats.jackknife_stderr(without)
    if stderr > 0:
        text = f"jackknife over {len(without)} groups of generated samples; the reference is fixed"
        return estimate(value, stderr, uncertainty=text, n=n, dof=dof, bounds=(0, 1), replicates=replicates)
    return Score(
        value=value, stderr=stats.proportion_stderr(found, total), interval=stats.wilson_interval(found, total), n=n,
        uncertainty="Wilson interval over the real samples, as a jackknife over generated ones sees no spread",
        bounds=(0, 1), replicates=replicates,
    )  # fmt: skip


# --- neighbours -------------------------------------------------------------------------------------------


def _centre(points: Array) -> Float64:
    """Near the bulk of the points [N, D], float64 [D]: the median of about a thousand of them.

    Their mean would not do: a single sample that diverged takes it along, and all other norms, whose rounding counts.
    """
    centre: Float64 = np.median(points[:: max(1, len(points) // 1000)].astype(np.float64), axis=0)
    return centre


def tiles(
    points: Array, others: Array, *, slack: float = 0.0, half: bool = False
) -> Iterator[tuple[slice, slice, Float64]]:
    """Squared distances in tiles of at most TILE x TILE, row of tiles by row of tiles.

    Args:
        points: Float [N, D].
        others: Float [M, D].
        slack: The norms in |x|^2 + |y|^2 - 2 x.y count 1 + slack times; see OPEN and CLOSED.
        half: Leave out the tiles under the diagonal, where both are the same samples.

    Yields:
        (rows of points, rows of others, float64 squared distances); rounding may leave one just below 0.
    """
    centre = _centre(others)
    for start in range(0, len(points), TILE):
        rows = slice(start, start + TILE)
        x = points[rows] - centre
        x2 = (1 + slack) * np.einsum("nd,nd->n", x, x)
        for other_start in range(start if half else 0, len(others), TILE):
            columns = slice(other_start, other_start + TILE)
            y = others[columns] - centre
            distances = x @ y.T
            distances *= -2
            distances += x2[:, None]
            distances += (1 + slack) * np.einsum("nd,nd->n", y, y)
            yield rows, columns, distances


def nearest(
    points: Array,
    others: Array,
    *,
    k: int = 1,
    labels: Int64 | None = None,
    itself: bool = False,
    slack: float = 0.0,
) -> Float64:
    """Squared distances from each point to its k nearest of the others, in each group of the others.

    Args:
        points: Float [N, D].
        others: Float [M, D].
        k: Neighbours to keep.
        labels: int64 [M], the group of each of the others; None for one group.
        itself: Whether `others` are the same samples as `points`; none is then its own neighbour.
        slack: See `tiles`.

    Returns:
        float64 [N, G, k], ascending along k, not below 0 unless `slack` is; infinite where a group has fewer.
    """
    groups = np.zeros(len(others), dtype=np.int64) if labels is None else labels
    if points.shape[1] <= TREE_COLUMNS:
        return _nearest_by_tree(points, others, k=k, groups=groups, itself=itself, slack=slack)
    best = np.full((len(points), int(groups.max()) + 1, k), np.inf)
    for rows, columns, distances in tiles(points, others, slack=slack, half=itself):
        if itself and rows == columns:
            np.fill_diagonal(distances, np.inf)
        if slack == 0:
            np.maximum(distances, 0, out=distances)
        _keep_nearest(best[rows], distances, groups[columns])
        if itself and rows != columns:
            _keep_nearest(best[columns], distances.T, groups[rows])
    return np.sort(best, axis=2)


def _nearest_by_tree(points: Array, others: Array, *, k: int, groups: Int64, itself: bool, slack: float) -> Float64:
    """`nearest` by a tree for each group: distances come from differences, so that nothing cancels."""
    centre = _centre(others)
    x, y = points - centre, others - centre
    norms = [slack * np.einsum("nd,nd->n", side, side) for side in (x, y)]
    best = np.full((len(points), int(groups.max()) + 1, k), np.inf)
    for group in range(best.shape[1]):
        members = np.flatnonzero(groups == group)
        if not len(members):
            continue
        wanted = min(k + itself, len(members))
        distances, places = cKDTree(y[members]).query(x, k=list(range(1, wanted + 1)))
        found = members[places]
        distances = np.square(distances) + norms[0][:, None] + norms[1][found]
        if itself:
            distances[found == np.arange(len(points))[:, None]] = np.inf
            distances.sort(axis=1)
        best[:, group, : min(k, wanted)] = distances[:, :k]
    return np.sort(best, axis=2)


def _keep_nearest(best: Float64, distances: Float64, groups: Int64) -> None:
    """Take a tile's distances [B, C] into the k least so far [B, G, k], each column into its group's."""
    k = best.shape[2]
    for group in range(best.shape[1]):
        part = distances if best.shape[1] == 1 else distances[:, groups == group]
        if part.shape[1] > k:
            part = np.partition(part, k - 1, axis=1)[:, :k]
        merged = np.concatenate([best[:, group], part], axis=1)
        best[:, group] = np.partition(merged, k - 1, axis=1)[:, :k]


def kth_radii(points: Array, *, k: int) -> Float64:
    """Squared distance of each point to its k-th nearest other point, float64 [N]; needs N > k."""
    return nearest(points, points, k=k, itself=True)[:, 0, k - 1]


def covered(points: Array, centres: Array, radii: Float64) -> Bool:
    """Whether each point lies in at least one closed ball, for several sets of radii at once.

    Args:
        points: Float [N, D].
        centres: Float [M, D].
        radii: float64 [M, V], squared; -inf leaves a ball out.

    Returns:
        bool [N, V].
    """
    widest = radii.max(axis=1)
    inside = np.zeros((len(points), radii.shape[1]), dtype=bool)
    for rows, columns, distances in tiles(points, centres, slack=CLOSED):
        point, ball = np.nonzero(distances <= widest[columns])
        # Pairs in portions, so that memory stays bounded where every ball holds every point.
        for start in range(0, len(point), TILE * TILE // radii.shape[1]):
            part = slice(start, start + TILE * TILE // radii.shape[1])
            which, reach = point[part], radii[columns][ball[part]]
            hits = distances[which, ball[part], None] <= reach
            first = np.flatnonzero(np.diff(which, prepend=-1))
            inside[which[first] + rows.start] |= np.logical_or.reduceat(hits, first, axis=0)
    return inside
