"""Is a record what it says? What can be made again from the cache is made again and compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trilemma_bench.errors import TrilemmaError, UsageError
from trilemma_bench.record import ResultRecord
from trilemma_bench.run import Data, Settings, find_data, recompute
from trilemma_bench.spec import load_protocol

RELATIVE = 1e-5
"""How far a score made again may be off: other thread counts move features by float32 rounding."""


@dataclass(frozen=True)
class Check:
    """One thing that a record says, and whether it holds; `detail` says what was found, or why nothing was."""

    what: str
    verdict: Literal["agrees", "differs", "not checked"]
    detail: str


def data_of(path: Path, dataset: str | None, settings: Settings) -> Data:
    """The data that a record was measured on: what `dataset` names, else the data set of its protocol.

    Raises:
        StoreError: Not a record.
        UsageError: The images were somebody's own, and `dataset` does not say where they are.
    """
    name = dataset or ResultRecord.read(path).spec.protocol.dataset
    if dataset is None and name.startswith("images-"):
        raise UsageError(f"{path}: measured on images of your own. Say with --dataset where they are.")
    return find_data(name, settings)


def verify(path: Path, data: Data, settings: Settings) -> list[Check]:
    """Check the record in a file: its name, its protocol, and from the cache its samples, features and scores.

    Raises:
        StoreError: Not a record.
    """
    record = ResultRecord.read(path)
    checks = [
        _equal("file name", record.name, path.stem),
        _protocol(record),
    ]
    try:
        again = recompute(record, data, settings)
    except TrilemmaError as error:
        return [*checks, Check("samples and scores", "not checked", str(error))]
    if isinstance(again, str):
        return [*checks, Check("samples and scores", "not checked", again)]
    ours, theirs = record.provenance, again.provenance
    checks.append(_equal("weights", ours.weights_digest, theirs.weights_digest))
    checks.append(_samples(record, again))
    for what, said, found in (("extractor", ours.extractor_identities, theirs.extractor_identities),
                              ("reference", ours.reference_digests, theirs.reference_digests)):  # fmt: skip
        checks += [_equal(f"{what} {name}", digest, found.get(name)) for name, digest in said.items()]
    return [*checks, *_scores(record, again)]


def _equal(what: str, said: str | None, found: str | None) -> Check:
    if found is None:
        return Check(what, "not checked", "not at hand")
    same = said == found
    return Check(what, "agrees" if same else "differs", f"{found[:16]}" if same else f"says {said}, found {found}")


def _samples(record: ResultRecord, again: ResultRecord) -> Check:
    check = _equal("samples", record.provenance.samples_digest, again.provenance.samples_digest)
    there, here = record.hardware.model, again.hardware.model
    if check.verdict != "differs" or there == here:
        return check
    why = f"drawn on {there}, here is {here}: processors round otherwise, and scores follow within their intervals"
    return replace(check, detail=f"{check.detail}; {why}")


def _protocol(record: ResultRecord) -> Check:
    """Whether the protocol that ships under this name is the one of the record, but for scores that were added."""
    name = record.spec.protocol.name.partition("@")[0]
    try:
        shipped = load_protocol(name)
    except TrilemmaError:
        return Check("protocol", "not checked", f"no protocol named {name} ships")
    variant = shipped.with_num_generated(record.spec.protocol.num_generated)
    # Names and titles move no number.
    same = {"name": "", "title": "", "scores": ()}
    theirs, ours = (each.model_copy(update=same).digest for each in (variant, record.spec.protocol))
    added = all(score in shipped.scores for score in record.spec.protocol.scores)
    if theirs == ours and added:
        return Check("protocol", "agrees", ours[:16])
    return Check("protocol", "differs", f"{record.spec.protocol.name} is not what ships under that name")


def _scores(record: ResultRecord, again: ResultRecord) -> list[Check]:
    checks = []
    for item in record.scores:
        what, found = f"score {item.kind.name}", again.score(item.kind.name)
        if found is None or (found.failure is not None and item.score.failure is None):
            detail = "its extractor is not at hand" if found is None else str(found.failure)
            checks.append(Check(what, "not checked", detail))
        elif item.score.value is None or found.value is None:
            same = (item.score.value is None) == (found.value is None)
            checks.append(Check(what, "agrees" if same else "differs", item.score.failure or "now a number"))
        else:
            off = abs(found.value - item.score.value)
            near = off <= RELATIVE * max(abs(item.score.value), 1e-6)
            detail = f"{item.score.value:.10g}, again {found.value:.10g}"
            checks.append(Check(what, "agrees" if near else "differs", detail))
    return checks
