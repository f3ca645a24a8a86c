"""What was measured: one model under one protocol, with everything needed to trace it and make it again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from trilemma_bench.errors import StoreError
from trilemma_bench.spec import Frozen, RunSpec, digest

SCHEMA_VERSION = 1
Versioned = TypeVar("Versioned", bound=Frozen)

Axis = Literal["quality", "coverage", "speed"]


def file_name(text: str, *, kept: str = "._=-@") -> str:
    """`text` as part of a file name: letters, digits and `kept` as they are, all else as `_`."""
    return "".join(letter if letter.isalnum() or letter in kept else "_" for letter in text)


def read_versioned(
    kind: type[Versioned], path: Path, version: int, *, what: str, remedy: str, other_version: str
) -> Versioned:
    """A model from its JSON file, whose `schema_version` must be `version`.

    Args:
        kind: What to read.
        path: The file.
        version: The schema version that this program reads.
        what: How errors call it, such as `a result record`.
        remedy: What to do about a file that is none; a sentence.
        other_version: What to do about one of another version.

    Raises:
        StoreError: Not such a file, or one of another schema.
    """
    try:
        content = json.loads(path.read_text())
        found = content.get("schema_version")
        if found != version:
            raise StoreError(f"{path}: schema version {found!r}, this program reads {version}. {other_version}")
        return kind.model_validate(content)
    except (
        json.JSONDecodeError,
        ValidationError,
        AttributeError,
        OSError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise StoreError(f"{path}: not {what}: {error}. {remedy}") from error


@dataclass(frozen=True)
class Better:
    """Which of two values of a score is better: the higher one, the lower one, the nearer one to a target, or none."""

    higher: bool | None
    target: float | None = None

    def __bool__(self) -> bool:
        """Whether any is."""
        return self.higher is not None or self.target is not None

    def loss(self, value: float) -> float:
        """The value such that lower is better; the distance where there is a target."""
        if self.target is not None:
            return abs(value - self.target)
        return -value if self.higher else value

    def slope(self, value: float) -> float:
        """The sign by which the loss moves with the value, -1 or 1."""
        if self.target is not None:
            return 1.0 if value >= self.target else -1.0
        return -1.0 if self.higher else 1.0


class ScoreKind(Frozen):
    """What a score is: its name, the axis of the trilemma it speaks of, its direction and unit.

    `higher_is_better` is None where neither direction is better by itself: nothing is better then, or what is nearer
    to `target`, the value of real data.
    """

    name: str
    axis: Axis
    higher_is_better: bool | None
    unit: str = ""
    label: str = ""
    """How a leaderboard heads the column; the name where empty."""
    target: float | None = None

    @property
    def better(self) -> Better:
        """What is better."""
        return Better(self.higher_is_better, self.target)


class Score(Frozen):
    """One number with its uncertainty, or the reason why there is none.

    `interval` is a 95 % interval and `uncertainty` says how it and `stderr` were got.
    """

    value: float | None
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    uncertainty: str = ""
    n: int | None = None
    failure: str | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    """The least and the greatest value that the score can take, which no interval goes beyond; None: no such limit."""
    dof: int | None = Field(default=None, ge=1)
    """Degrees of freedom behind `stderr` where it is of a few values, which `interval` allows for; None: of many."""
    replicates: tuple[float, ...] | None = None
    """The score without each of several groups of samples, the same groups for every model in a column: what a
    comparison of two models pairs (delete-a-group jackknife)."""
    per_seed: tuple[float, ...] = ()
    """Where `value` is a mean over networks that were trained alike from several seeds: theirs, in order."""
    histogram: tuple[int, ...] = ()
    """Samples in each mode, in the order of the modes, on the score that counts modes; empty elsewhere."""

    @model_validator(mode="after")
    def _value_or_failure(self) -> Score:
        if (self.value is None) == (self.failure is None):
            raise ValueError("a score has a value or a failure, and never both")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a score is finite or a failure; got {self.value}")
        if self.stderr is not None and not 0 <= self.stderr < math.inf:
            raise ValueError(f"a standard error is finite and at least 0, or None; got {self.stderr}")
        if self.interval is not None and not -math.inf < self.interval[0] <= self.interval[1] < math.inf:
            raise ValueError(f"an interval is two finite numbers, the lower first, or None; got {self.interval}")
        return self

    @classmethod
    def failed(cls, reason: str) -> Score:
        """A score that could not be computed, and why."""
        return cls(value=None, failure=reason)


class ScoredMetric(Frozen):
    """A score with what it is and the keys of what fixed it."""

    kind: ScoreKind
    score: Score
    features_key: str
    score_key: str
    verified: bool = True
    """False where the extractor's weights did not have the published digest."""


class Hardware(Frozen):
    """The machine, as far as it moves a number."""

    device: str
    model: str
    threads: int
    platform: str
    dtype: str


class Timing(Frozen):
    """Seconds per 100 images by the protocol's timing rule.

    `method` is `measured`, or `extrapolated` where network evaluations were timed in place and multiplied by `nfe`.
    """

    method: Literal["measured", "extrapolated"]
    seconds_per_100_images: float = Field(gt=0)
    spread: tuple[float, float]
    """Smallest and largest repeat, in seconds per 100 images."""
    repeats: int
    num_images: int
    warmup: int
    load_seconds: float
    """Time to read and build the model; not part of the speed."""
    hardware: Hardware | None = None
    """The machine that was timed, where it is not the record's."""


class Speed(Frozen):
    """What sampling costs: counted, timed, and computed. None means: not observed."""

    nfe: float | None
    """Forward calls of the named networks, per image."""
    gradient_evaluations: float | None = None
    parameters: int | None = None
    gflops_per_image: float | None = None
    peak_memory_mib: float | None = None
    timings: tuple[Timing, ...] = ()


class Provenance(Frozen):
    """Where the numbers come from: digests of all inputs, versions, commit, command."""

    package_version: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    weights_digest: str | None
    weights_source: str | None
    data_fingerprint: str | None
    reference_digests: dict[str, str]
    """What each extractor's reference is of; see `kinds.Reference.key`."""
    extractor_identities: dict[str, str]
    samples_digest: str
    """SHA-256 over the generated images in order of their seeds."""
    store: dict[str, Any] = {}
    """Where the samples came from: generated, cached, shipped; what was made again and how it compared."""
    command: str = ""
    created: str = ""
    duration_seconds: float = 0.0


class ResultRecord(Frozen):
    """One model under one protocol."""

    schema_version: int = SCHEMA_VERSION
    model: str
    """The name in the leaderboard."""
    family: str
    spec: RunSpec
    samples_key: str
    scores: tuple[ScoredMetric, ...]
    speed: Speed | None
    """None where images were scored that this program did not make."""
    hardware: Hardware
    provenance: Provenance
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`<model>-<first 12 digits of the spec's and weights' digest>`: the file name of the record."""
        safe = file_name(self.model, kept="._=-")
        key = digest([self.spec.digest, self.samples_key])
        return f"{safe[:80]}-{key[:12]}"

    def score(self, name: str) -> Score | None:
        """The score of that name, or None where the record has none."""
        return next((item.score for item in self.scores if item.kind.name == name), None)

    @classmethod
    def read(cls, path: Path) -> ResultRecord:
        """Read a record from its JSON file.

        Raises:
            StoreError: Not a record, or one of a newer schema.
        """
        return read_versioned(
            cls, path, SCHEMA_VERSION, what="a result record",
            remedy="Move it away and measure again.",
            other_version="Use the version of trilemma-bench that wrote it, or measure again.",
        )  # fmt: skip

    @property
    def best_timing(self) -> Timing | None:
        """The newest measured timing, else the newest extrapolated one, else None."""
        timings = self.speed.timings if self.speed is not None else ()
        measured = [timing for timing in timings if timing.method == "measured"]
        return next(iter([*reversed(measured), *reversed(timings)]), None)

    @property
    def timed_on(self) -> Hardware:
        """The machine of the best timing; the record's own where that names none or there is none."""
        timing = self.best_timing
        return timing.hardware if timing is not None and timing.hardware is not None else self.hardware

    def dumps(self) -> str:
        """The record as JSON text."""
        return self.model_dump_json(indent=2) + "\n"
