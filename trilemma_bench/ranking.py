"""Records to rows: which numbers share a column, which are ranked, and which is best. Pure; imports no torch.

A column holds numbers that can be compared and no others. Scores share one where name, features key and score key
are equal; records that have other keys under the same name stand in a table of their own, as do other protocols.
Wall-clock and memory share a column only on one machine, device and precision.

Records that differ in the seed alone are one row: the mean of their scores, with an interval that holds for other
seeds. The rows of the column that sorts a table have ranks: a range for each, from comparisons of all pairs
(`stats.rank_ranges`), so that models which cannot be told apart share ranks.

Rows whose family or kind of sampler is in `UNRANKED` (real images, exact and untrained networks) are shown as ceiling
and floor: they are neither sorted among the models nor ever best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from trilemma_bench.errors import UsageError, unknown_name
from trilemma_bench.record import Axis, Better, ResultRecord, Score, ScoredMetric, ScoreKind, Speed, Timing
from trilemma_bench.stats import Estimate, pool, rank_ranges

if TYPE_CHECKING:
    import pandas

UNRANKED = frozenset({"real", "exact", "untrained"})
AXES: tuple[Axis, ...] = ("quality", "coverage", "speed")

Flat = dict[str, "str | int | float | bool | None"]


@dataclass(frozen=True)
class Machine:
    """What wall-clock depends on: numbers of two machines never share a column."""

    device: str
    model: str
    threads: int
    dtype: str
    compiled: bool

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads != 1 else ''}" if self.device == "cpu" else ""
        return f"{self.device} ({self.model}{threads}), {self.dtype}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class Column:
    """One quantity that can be compared over its whole length."""

    name: str
    label: str
    axis: Axis
    higher_is_better: bool | None
    unit: str = ""
    machine: Machine | None = None
    """Set where the number belongs to one machine."""
    target: float | None = None
    """The value of real data, where what is nearer to it is better."""

    @property
    def better(self) -> Better:
        """What is better."""
        return Better(self.higher_is_better, self.target)


@dataclass(frozen=True)
class Cell:
    """One number with its interval, or why there is none.

    `state` is `value`; `failed` with the reason in `note`; `not observed` where the sampler gave no means to count;
    `not measured` where the record does not have this column at all.
    """

    state: Literal["value", "failed", "not observed", "not measured"]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    best: bool = False
    extrapolated: bool = False
    verified: bool = True

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; the value twice where there is none, 0 where there is no value."""
        value = self.value or 0.0
        return (self.low if self.low is not None else value), (self.high if self.high is not None else value)


@dataclass(frozen=True)
class Row:
    """One record, or several that differ in the seed alone: its label, its cells in the order of the columns.

    `record` is the pooled one; `ranks` the best and the worst rank that it may have in the column that sorts.
    """

    label: str
    ranked: bool
    cells: tuple[Cell, ...]
    record: ResultRecord
    seeds: tuple[int, ...] = (0,)
    spreads: Mapping[str, float] = field(default_factory=dict)
    """By score: how much more seeds differ than their own standard errors say; 1 where samples explain all."""
    ranks: tuple[int, int] | None = None


@dataclass(frozen=True)
class Table:
    """Rows that share a protocol and the keys of their scores."""

    protocol: str
    title: str
    machines: tuple[Machine, ...]
    created: tuple[str, str] | None
    """Date (YYYY-MM-DD) of the oldest and of the newest record; None where no record says."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    uncertainties: Mapping[str, str] = field(default_factory=dict)
    """How the intervals of a column were got, by the column's name."""
    sorted_by: Column | None = None
    """The column that sorts the ranked rows, and that their ranks are of."""

    def cell(self, row: Row, column: Column) -> Cell:
        """The cell of a row in one of this table's columns."""
        return row.cells[self.columns.index(column)]

    def value(self, row: Row, column: Column) -> float:
        """Its number; 0 where there is none."""
        return self.cell(row, column).value or 0.0


@dataclass(frozen=True)
class Leaderboard:
    """All tables, by protocol; records that cannot be compared are never in one."""

    tables: tuple[Table, ...]


def rows(records: Sequence[ResultRecord]) -> Leaderboard:
    """The leaderboard of these records, the same whatever their order.

    Ranked rows come first, sorted by the quality column that most of them have (the first of such); a row without
    a value there follows those with one. Unranked rows come last.
    """
    # Full records first: one that has few scores then joins a table instead of starting one.
    ordered = sorted(records, key=lambda record: (record.spec.protocol.name, -len(_keys(record)), record.name))
    groups: list[_Group] = []
    for record in ordered:
        group = next((group for group in groups if group.takes(record)), None)
        if group is None:
            group = _Group(record.spec.protocol.name)
            groups.append(group)
        group.add(record)
    return Leaderboard(tuple(_table(sorted(group.records, key=_by_name)) for group in groups))


def to_dataframe(records: Sequence[ResultRecord]) -> pandas.DataFrame:
    """One row a record in the order of the leaderboard, with the columns of `flat`; failures are NaN."""
    import pandas as pd

    return pd.DataFrame(flat(rows(records)))


# --- tables and columns -----------------------------------------------------------------------------------


@dataclass
class _Group:
    """Records of one protocol of which no two have different keys under one score's name."""

    protocol: str
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)
    records: list[ResultRecord] = field(default_factory=list)

    def takes(self, record: ResultRecord) -> bool:
        agrees = all(self.keys.get(name, key) == key for name, key in _keys(record).items())
        return record.spec.protocol.name == self.protocol and agrees

    def add(self, record: ResultRecord) -> None:
        self.records.append(record)
        self.keys |= _keys(record)


def _keys(record: ResultRecord) -> dict[str, tuple[str, str]]:
    """What fixed each number that a record has: features key and score key, or the rule by which it was timed.

    A failure is no number to be compared.
    """
    found = {
        item.kind.name: (item.features_key, item.score_key)
        for item in record.scores
        if item.score.failure is None
    }  # fmt: skip
    if record.speed is not None and record.speed.timings:
        found["seconds_per_100_images"] = ("", record.spec.protocol.timing.digest)
    return found


def _by_name(record: ResultRecord) -> tuple[str, str]:
    return record.model, record.name


def _is_ranked(record: ResultRecord) -> bool:
    return record.family not in UNRANKED and record.spec.sampler.kind not in UNRANKED


def _table(records: Sequence[ResultRecord]) -> Table:
    machines = tuple(dict.fromkeys(_machine(record) for record in records if record.speed is not None))
    columns = (*_score_columns(records), *_speed_columns(records, machines))
    pooled = [_pooled(group) for group in _by_seed(records)]
    labels = _labels([record for record, _, _ in pooled])
    found = [
        Row(label, _is_ranked(record), tuple(_cell(record, column) for column in columns), record, seeds, spreads)
        for label, (record, seeds, spreads) in zip(labels, pooled, strict=True)
    ]
    by = _sorting(found, columns)
    dates = sorted(record.provenance.created[:10] for record in records if record.provenance.created)
    return Table(
        protocol=records[0].spec.protocol.name,
        title=records[0].spec.protocol.title,
        machines=machines,
        created=(dates[0], dates[-1]) if dates else None,
        columns=columns,
        rows=tuple(_sorted(_with_ranks(_with_best(found, columns), by), by)),
        uncertainties=_uncertainties([record for record, _, _ in pooled]),
        sorted_by=by,
    )


def _machine(record: ResultRecord) -> Machine:
    hardware = record.timed_on
    return Machine(hardware.device, hardware.model, hardware.threads, hardware.dtype, record.spec.compile)


def _labels(records: Sequence[ResultRecord]) -> list[str]:
    """Model names; where two records share one, the digest that ends the record's name tells them apart."""
    counts = Counter(record.model for record in records)
    return [
        record.model if counts[record.model] == 1 else f"{record.model} #{record.name.rsplit('-', 1)[1][:6]}"
        for record in records
    ]


def _score_columns(records: Sequence[ResultRecord]) -> list[Column]:
    # The fullest record leads, so that a column which only some have comes where the protocol lists it.
    fullest = sorted(records, key=lambda record: -len(record.scores))
    kinds: dict[str, ScoreKind] = {}
    for item in (item for record in fullest for item in record.scores):
        # Records of before a score had a target do not take it from the others.
        if item.kind.name not in kinds or item.kind.target is not None:
            kinds[item.kind.name] = item.kind
    labels = Counter(kind.label or kind.name for kind in kinds.values())
    columns = [
        Column(
            name=kind.name,
            label=kind.label if kind.label and labels[kind.label] == 1 else kind.name,
            axis=kind.axis,
            higher_is_better=kind.higher_is_better,
            unit=kind.unit,
            target=kind.target,
        )
        for kind in kinds.values()
    ]
    return [column for axis in AXES for column in columns if column.axis == axis]


def _speed_columns(records: Sequence[ResultRecord], machines: Sequence[Machine]) -> list[Column]:
    if not machines:
        return []
    columns = [Column("nfe", "NFE", "speed", False)]
    columns += [Column("seconds_per_100_images", "s / 100 images", "speed", False, "", each) for each in machines]
    columns += [Column("gflops_per_image", "GFLOPs / image", "speed", False)]
    columns += [Column("parameters", "parameters", "speed", None)]
    speeds = [record.speed for record in records if record.speed is not None]
    if any(speed.peak_memory_mib is not None for speed in speeds):
        columns += [Column("peak_memory_mib", "peak memory", "speed", False, "MiB", each) for each in machines]
    if any(speed.gradient_evaluations for speed in speeds):
        columns.insert(1, Column("gradient_evaluations", "gradients", "speed", False))
    return columns


def _uncertainties(records: Iterable[ResultRecord]) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for item in record.scores:
            if item.score.interval is not None and item.score.uncertainty:
                found.setdefault(item.kind.name, {})[item.score.uncertainty] = None
    return {name: ", or ".join(texts) for name, texts in found.items()}


# --- cells ------------------------------------------------------------------------------------------------


def _cell(record: ResultRecord, column: Column) -> Cell:
    item = next((item for item in record.scores if item.kind.name == column.name), None)
    if item is not None:
        return _score_cell(item)
    if record.speed is None or (column.machine is not None and column.machine != _machine(record)):
        return Cell("not measured")
    if column.name == "seconds_per_100_images":
        return _timing_cell(record.best_timing)
    if column.name not in Speed.model_fields:
        return Cell("not measured")
    value = getattr(record.speed, column.name)
    return Cell("not observed") if value is None else Cell("value", float(value))


def _score_cell(item: ScoredMetric) -> Cell:
    score: Score = item.score
    if score.failure is not None:
        return Cell("failed", note=score.failure, verified=item.verified)
    low, high = score.interval if score.interval is not None else (None, None)
    return Cell("value", score.value, low, high, verified=item.verified)


def _timing_cell(timing: Timing | None) -> Cell:
    if timing is None:
        return Cell("not measured")
    low, high = timing.spread
    extrapolated = timing.method == "extrapolated"
    return Cell("value", timing.seconds_per_100_images, low, high, extrapolated=extrapolated)


# --- order ------------------------------------------------------------------------------------------------


def _with_best(found: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """The rows with the best cell of each ranked column flagged; several if they are equal, none if all are."""
    cells = [list(row.cells) for row in found]
    for index, column in enumerate(columns):
        if not column.better:
            continue
        values = [row.cells[index].value for row in found if row.ranked]
        known = [column.better.loss(value) for value in values if value is not None]
        if len(set(known)) < 2:
            continue
        for row, line in zip(found, cells, strict=True):
            value = line[index].value
            if row.ranked and value is not None and column.better.loss(value) == min(known):
                line[index] = replace(line[index], best=True)
    return [replace(row, cells=tuple(line)) for row, line in zip(found, cells, strict=True)]


def _sorting(found: Sequence[Row], columns: Sequence[Column]) -> Column | None:
    """The quality column that most ranked rows have, the first of such."""
    quality = [
        (index, column) for index, column in enumerate(columns)
        if column.axis == "quality" and column.better
    ]  # fmt: skip
    ranked = [row for row in found if row.ranked]
    best = max(quality, key=lambda item: sum(row.cells[item[0]].value is not None for row in ranked), default=None)
    return None if best is None else best[1]


def _with_ranks(found: Sequence[Row], by: Column | None) -> list[Row]:
    """The rows with their ranks in the column that sorts, where there are several with a standard error there."""
    estimates = {
        index: found_estimate
        for index, row in enumerate(found)
        if by is not None and row.ranked and (found_estimate := estimate(row.record, by.name)) is not None
    }
    if by is None or len(estimates) < 2:
        return list(found)
    ranges = rank_ranges([loss_estimate(each, by.better) for each in estimates.values()])
    ranks = dict(zip(estimates, ranges, strict=True))
    return [replace(row, ranks=ranks.get(index)) for index, row in enumerate(found)]


def estimate(record: ResultRecord, name: str) -> Estimate | None:
    """A score as comparisons take it; None where the record has none, or one without a standard error."""
    score = record.score(name)
    if score is None or score.value is None or score.stderr is None:
        return None
    # Records of before name no degrees of freedom where they list what training seeds have.
    dof = len(score.per_seed) - 1 if score.dof is None and score.per_seed else score.dof
    return Estimate(score.value, score.stderr, score.replicates, dof)


def loss_estimate(found: Estimate, better: Better) -> Estimate:
    """The estimate of a score's loss, lower is better: its value turned, with the errors that it has.

    Near a target the distance is taken along the line that it is on at the value.
    """
    slope, start = better.slope(found.value), better.target or 0.0
    replicates = found.replicates and tuple(slope * (value - start) for value in found.replicates)
    return Estimate(better.loss(found.value), found.stderr, replicates, found.dof)


def _sorted(found: Sequence[Row], by: Column | None) -> list[Row]:
    def key(row: Row) -> tuple[bool, bool, float]:
        score = None if by is None else row.record.score(by.name)
        if by is None or score is None or score.value is None:
            return not row.ranked, True, 0.0
        return not row.ranked, False, by.better.loss(score.value)

    return sorted(found, key=key)


# --- several seeds ----------------------------------------------------------------------------------------


def _by_seed(records: Sequence[ResultRecord]) -> list[list[ResultRecord]]:
    """Records in groups that differ in the seed alone, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[ResultRecord]] = {}
    for record in records:
        same = (record.model, record.samples_key, record.spec.model_copy(update={"seed": 0}).digest, record.timed_on)
        key = (*same, record.name) if record.family in ("images", "real") else same
        groups.setdefault(key, []).append(record)
    found: list[list[ResultRecord]] = []
    for group in groups.values():
        distinct = len({record.spec.seed for record in group}) == len(group)
        found += [sorted(group, key=lambda record: record.spec.seed)] if distinct else [[record] for record in group]
    return found


def _pooled(group: Sequence[ResultRecord]) -> tuple[ResultRecord, tuple[int, ...], dict[str, float]]:
    """One record for a group of seeds, the seeds, and by score how much more they differ than their errors say."""
    first = group[0]
    seeds = tuple(record.spec.seed for record in group)
    if len(group) == 1:
        return first, seeds, {}
    scores, spreads = [], {}
    for item in {item.kind.name: item for record in reversed(group) for item in record.scores}.values():
        score, spread = _over_seeds([record.score(item.kind.name) for record in group], seeds)
        scores.append(item.model_copy(update={"score": score}))
        if spread is not None:
            spreads[item.kind.name] = spread
    timings = [timing for record in group if record.speed is not None for timing in record.speed.timings]
    speed = first.speed and first.speed.model_copy(update={"timings": tuple(timings)})
    return first.model_copy(update={"scores": tuple(scores), "speed": speed}), seeds, spreads


def _over_seeds(found: Sequence[Score | None], seeds: Sequence[int]) -> tuple[Score, float | None]:
    """The mean over all seeds, or a failure that says which seeds it lacks: a mean of some passes for one of all."""
    known = [score for score in found if score is not None and score.failure is None]
    if len(known) == len(seeds):
        return _pooled_score(known)
    reasons = {seed: "not measured" if score is None else score.failure
               for seed, score in zip(seeds, found, strict=True) if score not in known}  # fmt: skip
    seed, reason = next(iter(reasons.items()))
    return Score.failed(f"{len(reasons)} of {len(seeds)} seeds, such as {seed}: {reason}"), None


def _pooled_score(scores: Sequence[Score]) -> tuple[Score, float | None]:
    values = [score.value for score in scores if score.value is not None]
    stderrs = [score.stderr for score in scores if score.stderr is not None]
    found = pool(values, stderrs if len(stderrs) == len(scores) else None, bounds=scores[0].bounds)
    from_spread = found.within is None or found.between > found.within
    dofs = [score.dof for score in scores if score.dof is not None]
    dof = len(scores) - 1 if from_spread else sum(dofs) if len(dofs) == len(scores) else None
    replicates = None
    # They know of the samples alone, and not of what else a seed moves.
    if not from_spread and all(score.replicates is not None for score in scores):
        # Without one group of one seed the mean moves by a share of what that seed's score does.
        replicates = tuple(
            found.value + (replicate - score.value) / len(scores)
            for score in scores if score.value is not None for replicate in score.replicates or ()
        )  # fmt: skip
    pooled = Score(
        value=found.value, stderr=found.stderr, interval=found.interval, dof=dof, n=scores[0].n, replicates=replicates,
        bounds=scores[0].bounds,
        uncertainty=f"mean over {len(scores)} seeds; the wider of the intervals from their spread and from samples",
    )  # fmt: skip
    return pooled, found.between / found.within if found.within else None


# --- views ------------------------------------------------------------------------------------------------

ALIASES = {"seconds": "seconds_per_100_images", "evaluations": "nfe"}


def arrange(board: Leaderboard, *, sort: str | None = None, columns: Sequence[str] = ()) -> Leaderboard:
    """The leaderboard with other columns, in their order, and rows sorted by one of them, the best first.

    Args:
        board: Any.
        sort: See `find_column`; where a column has no better direction, the smallest first.
        columns: Those to keep; empty keeps all.

    Raises:
        UsageError: No table has such a column; where some have, the others stay as they are.
    """
    tables = list(board.tables)
    for name in dict.fromkeys([*columns, *([sort] if sort else [])]):
        if tables and not any(has_column(table, name) for table in tables):
            find_column(tables[0], name)
    if sort:
        tables = [_sorted_by(table, find_column(table, sort)) if has_column(table, sort) else table for table in tables]
    if columns:
        tables = [_narrowed(table, [name for name in columns if has_column(table, name)]) for table in tables]
    return Leaderboard(tuple(tables))


def has_column(table: Table, name: str) -> bool:
    """Whether `find_column` finds one."""
    try:
        find_column(table, name)
    except UsageError:
        return False
    return True


def curve_column(table: Table, name: str | None = None) -> Column | None:
    """The column that a curve of this table shows: the one asked for, else the first of quality; None where none is."""
    if name is not None:
        return find_column(table, name) if has_column(table, name) else None
    return next((column for column in table.columns if column.axis == "quality" and column.better), None)


def _sorted_by(table: Table, column: Column) -> Table:
    place = table.columns.index(column)

    def key(row: Row) -> tuple[bool, bool, float]:
        value = row.cells[place].value
        return not row.ranked, value is None, column.better.loss(value) if value is not None else 0.0

    return replace(table, rows=tuple(sorted(table.rows, key=key)))


def _narrowed(table: Table, names: Sequence[str]) -> Table:
    kept = [find_column(table, name).name for name in names]
    places = [i for name in dict.fromkeys(kept) for i, column in enumerate(table.columns) if column.name == name]
    return replace(
        table,
        columns=tuple(table.columns[place] for place in places),
        rows=tuple(replace(row, cells=tuple(row.cells[place] for place in places)) for row in table.rows),
    )


def find_column(table: Table, name: str) -> Column:
    """The column of that name, its label, or its name without the extractor: `fd` finds `fd_efficientnet_lite0`.

    Where a speed stands under several machines, the first of its columns.

    Raises:
        UsageError: None, or several; `fid` never finds a distance on other features.
    """
    wanted = ALIASES.get(name.lower(), name.lower())
    for matches in (
        lambda column: column.name.lower() == wanted,
        lambda column: column.label.lower() == wanted,
        lambda column: column.name.lower().startswith(f"{wanted}_"),
    ):
        found = [column for column in table.columns if matches(column)]
        names = sorted({column.name for column in found})
        if len(names) > 1:
            raise UsageError(f"{name!r} is the beginning of several columns: {', '.join(names)}. Name one in full.")
        if found:
            return found[0]
    hint = ""
    if wanted == "fid":
        hint = " FID is measured on TF Inception features only; the Fréchet distance on others is called fd_...."
    error = unknown_name("column", name, {column.name for column in table.columns})
    raise UsageError(f"{error}{hint}")


# --- flat -------------------------------------------------------------------------------------------------


def flat(leaderboard: Leaderboard) -> list[Flat]:
    """One dictionary a record, all with the same keys in the same order, numbers in full.

    Each score has `<name>`, `<name>_stderr`, `_low`, `_high`, `_failure`, `_verified`, `_features_key` and
    `_score_key`; None stands where a record has no such number. `table` counts the tables from 0: numbers of
    different tables must not be compared.
    """
    lines = [_flat_row(index, row) for index, table in enumerate(leaderboard.tables) for row in table.rows]
    columns = dict.fromkeys(column.name for table in leaderboard.tables for column in table.columns)
    scores = {item.kind.name for table in leaderboard.tables for row in table.rows for item in row.record.scores}
    head = ["table", "protocol", "model", "family", "ranked", "samples_key"]
    scored = [name + ending for name in columns if name in scores for ending in _SCORE_ENDINGS]
    keys = dict.fromkeys([*head, *scored, *(key for line in lines for key in line)])
    return [{key: line.get(key) for key in keys} for line in lines]


_SCORE_ENDINGS = ("", "_stderr", "_low", "_high", "_failure", "_verified", "_features_key", "_score_key")


def _flat_row(table: int, row: Row) -> Flat:
    record = row.record
    line: Flat = {
        "table": table,
        "protocol": record.spec.protocol.name,
        "model": record.model,
        "family": record.family,
        "ranked": row.ranked,
        "samples_key": record.samples_key,
        "rank_low": row.ranks[0] if row.ranks else None,
        "rank_high": row.ranks[1] if row.ranks else None,
    }
    for item in record.scores:
        score = item.score
        low, high = score.interval if score.interval is not None else (None, None)
        contents = (
            score.value,
            score.stderr,
            low,
            high,
            score.failure,
            item.verified,
            item.features_key,
            item.score_key,
        )
        line |= {item.kind.name + ending: content for ending, content in zip(_SCORE_ENDINGS, contents, strict=True)}
    return {**line, **_flat_speed(record), "seed": " ".join(str(seed) for seed in row.seeds)}


def _flat_speed(record: ResultRecord) -> Flat:
    speed, timing, hardware = record.speed, record.best_timing, record.timed_on
    return {
        "nfe": speed.nfe if speed else None,
        "gradient_evaluations": speed.gradient_evaluations if speed else None,
        "seconds_per_100_images": timing.seconds_per_100_images if timing else None,
        "seconds_per_100_images_low": timing.spread[0] if timing else None,
        "seconds_per_100_images_high": timing.spread[1] if timing else None,
        "timing_method": timing.method if timing else None,
        "timing_repeats": timing.repeats if timing else None,
        "gflops_per_image": speed.gflops_per_image if speed else None,
        "parameters": speed.parameters if speed else None,
        "peak_memory_mib": speed.peak_memory_mib if speed else None,
        "device": hardware.device,
        "hardware": hardware.model,
        "threads": hardware.threads,
        "platform": hardware.platform,
        "dtype": hardware.dtype,
        "compiled": record.spec.compile,
        "created": record.provenance.created,
        "record": record.name,
    }
