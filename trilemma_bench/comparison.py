"""Two records, score by score: difference, interval, p and verdict. Pure; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trilemma_bench.ranking import estimate
from trilemma_bench.record import ResultRecord, ScoredMetric
from trilemma_bench.stats import Difference, difference, holm

Verdict = Literal["a is better", "b is better", "cannot be told apart", "differs", "not comparable"]


@dataclass(frozen=True)
class Comparison:
    """One score of two records.

    `difference` is a - b, None where the two are not comparable, for the reason in `note`; `p` is corrected for the
    number of scores compared (Holm).
    """

    name: str
    label: str
    a: float | None
    b: float | None
    difference: Difference | None
    p: float | None
    verdict: Verdict
    note: str = ""


def compare(a: ResultRecord, b: ResultRecord, *, level: float = 0.05) -> list[Comparison]:
    """Every score that either record has, in the order of the first."""
    names = dict.fromkeys(item.kind.name for record in (a, b) for item in record.scores)
    found = {name: _difference(_item(a, name), _item(b, name), a, b) for name in names}
    measured = [name for name, each in found.items() if isinstance(each, Difference)]
    ps = dict(zip(measured, holm([each.p for each in found.values() if isinstance(each, Difference)]), strict=True))
    return [_comparison(name, a, b, found[name], ps.get(name), level) for name in names]


def _item(record: ResultRecord, name: str) -> ScoredMetric | None:
    return next((item for item in record.scores if item.kind.name == name), None)


def _difference(
    first: ScoredMetric | None, second: ScoredMetric | None, a: ResultRecord, b: ResultRecord
) -> Difference | str:
    """a - b, or why there is none."""
    for item, record in ((first, a), (second, b)):
        if item is None:
            return f"{record.model} has no such score"
        if item.score.failure is not None:
            return f"{record.model}: {item.score.failure}"
    assert first is not None and second is not None
    if first.features_key != second.features_key:
        return "other features: extractor or reference differ"
    if first.score_key != second.score_key:
        return "other parameters or counts"
    one, other = estimate(a, first.kind.name), estimate(b, first.kind.name)
    if one is None or other is None:
        return "no standard error"
    return difference(one, other)


def _comparison(
    name: str, a: ResultRecord, b: ResultRecord, found: Difference | str, p: float | None, level: float
) -> Comparison:
    kind = next(item.kind for record in (a, b) for item in record.scores if item.kind.name == name)
    values = [score.value if (score := record.score(name)) is not None else None for record in (a, b)]
    if isinstance(found, str) or p is None:
        return Comparison(name, kind.label or name, values[0], values[1], None, None, "not comparable", str(found))
    verdict: Verdict = "cannot be told apart"
    if p < level:
        verdict = "differs"
        one, other = (value or 0.0 for value in values)
        # Of values on either side of a target this p does not say which is nearer.
        if kind.better and kind.better.slope(one) == kind.better.slope(other):
            verdict = "a is better" if kind.better.loss(one) < kind.better.loss(other) else "b is better"
    note = "paired over groups of samples" if found.paired else "as independent samples"
    return Comparison(name, kind.label or name, values[0], values[1], found, float(p), verdict, note)
