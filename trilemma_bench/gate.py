"""Records against expectations: has anything moved, and at which stage? Pure; imports no torch.

An expectation is what a sampler gave under a protocol when all was well: its scores under at least five seeds, a few
dozen of its images (or points), and its time as a multiple of a fixed load's. A later observation is held against it:

- **samples**: the same images are drawn again. More than the sampler's tolerance apart is a drift of its own, as is
  another count of network evaluations. It sees what scores cannot: 1 % of noise on the weights, 49 steps for 50.
- **features**: digests of the extractor and of the reference; other digests are a drift.
- **metric**: where the images are the same and a seed is one of the expectation's, its scores must be the same numbers
  but for rounding and the smallest effect that matters; no test decides.
- **scores**: where images moved, or seeds are new, scores are held against the spread over the expected seeds.
- **speed**: the ratio to the load that was timed beside it.

A score or a speed drifts where the difference is significant AND larger than the smallest effect that matters; both
thresholds stand in the file, and better is a drift as well as worse. Significance is Student's t against the expected
spread (or the scores' own standard error where that is larger), corrected after Holm over all scores of a gate and over
all its speeds, at half of `alpha` each, so that a gate where nothing moved raises an alarm with a chance of at most
`alpha`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from trilemma_bench import stats
from trilemma_bench.kinds import is_points
from trilemma_bench.record import Hardware, ResultRecord, Score, ScoredMetric, ScoreKind, read_versioned
from trilemma_bench.spec import Frozen, RunSpec

SCHEMA_VERSION = 1
SUFFIX = ".expected.json"
MIN_SEEDS = 5
ALPHA = 0.005
MIN_SPEED_FACTOR = 1.25
MUST_SEE, SPEEDS = 1.5, 10
"""Where expected times spread so far that this factor would be no drift beside nine other models, none is judged."""
ROUNDINGS = 4.0
"""Scores of the same images differ by last bits; so many times what other micro-batches made of them is more."""

Stage = Literal["samples", "features", "metric", "scores", "speed"]
State = Literal["ok", "drift", "not judged", "unusable"]


# --- expectations -----------------------------------------------------------------------------------------


class ExpectedScore(Frozen):
    """A score under each seed, and from where on a difference matters."""

    kind: ScoreKind
    features_key: str
    score_key: str
    values: tuple[float, ...] = Field(min_length=MIN_SEEDS)
    """One a seed, in the order of the expectation's seeds."""
    min_effect: float = Field(ge=0)
    """Differences up to this one are no drift, however significant."""
    stderr: float = Field(ge=0)
    """Root mean square of the values' own standard errors: five seeds can lie close by chance."""
    rounding: float = Field(ge=0)
    """How far the score moved when the same images were drawn in other micro-batches."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return stats.mean_stderr(self.values) * math.sqrt(len(self.values))


class ExpectedImages(Frozen):
    """Images, or points, that lie beside the expectation as npz, in the order of their seeds."""

    file: str
    sha256: str
    """Over type, shape and values of the array."""
    seeds: tuple[int, ...] = Field(min_length=1)
    tolerance: tuple[float, float]
    """Largest difference, in grey levels or of a coordinate, and the fraction of values that may differ at all."""


class ExpectedSpeed(Frozen):
    """Time of `num_images` images over the time of the reference load, one ratio a session."""

    load: str
    num_images: int = Field(ge=1)
    ratios: tuple[float, ...] = Field(min_length=MIN_SEEDS)
    min_factor: float = Field(default=MIN_SPEED_FACTOR, gt=1)
    hardware: Hardware

    @property
    def usual(self) -> float:
        """Geometric mean of the ratios."""
        return math.exp(math.fsum(math.log(ratio) for ratio in self.ratios) / len(self.ratios))

    def is_usual(self, ratio: float) -> bool:
        """Whether a ratio lies within the smallest factor that matters."""
        return abs(math.log(ratio / self.usual)) <= math.log(self.min_factor)


class Expectation(Frozen):
    """What one sampler gave under one protocol when all was well; `trilemma-bench expect make` writes it."""

    schema_version: int = SCHEMA_VERSION
    model: str
    dataset: str
    """As the user named it."""
    protocol: str
    """As the user named it: the gate reads it anew, so that a change of its file is seen."""
    num_samples: int | None
    spec: RunSpec
    samples_key: str
    weights_digest: str | None
    seeds: tuple[int, ...] = ()
    samples_digests: tuple[str, ...] = ()
    """SHA-256 over all images of a run, one a seed."""
    nfe: float | None = None
    """Counted evaluations an image; None where none were observed, or where they depend on the seed."""
    scores: tuple[ExpectedScore, ...] = ()
    images: ExpectedImages | None = None
    speed: ExpectedSpeed | None = None
    reference_digests: dict[str, str] = {}
    extractor_identities: dict[str, str] = {}
    alpha: float = Field(default=ALPHA, gt=0, lt=1)
    package_version: str
    versions: dict[str, str] = {}
    command: str = ""
    created: str = ""

    @model_validator(mode="after")
    def _one_value_a_seed(self) -> Expectation:
        lengths = {len(score.values) for score in self.scores} | {len(self.samples_digests)}
        if lengths != {len(self.seeds)}:
            raise ValueError(f"{len(self.seeds)} seeds and lists of {sorted(lengths)} values")
        if not self.scores and self.images is None:
            raise ValueError("neither scores nor images: nothing to hold a run against")
        return self

    @classmethod
    def read(cls, path: Path) -> Expectation:
        """Read an expectation from its JSON file.

        Raises:
            StoreError: Not an expectation, or one of another schema.
        """
        again = "Make it again with `trilemma-bench expect make`."
        return read_versioned(
            cls, path, SCHEMA_VERSION, what="an expectation", remedy=again, other_version=again
        )  # fmt: skip

    def dumps(self) -> str:
        """The expectation as JSON text."""
        return self.model_dump_json(indent=1) + "\n"


def expected_score(found: Sequence[ScoredMetric], *, rounding: float) -> ExpectedScore:
    """The expectation of a score from its values under several seeds.

    The smallest effect that matters is a quarter of the spread over the seeds, at least 0.1 % of the mean; for
    fractions (within 0..1 and of coverage, with a target, or higher is better) at least 0.01: near 0 they are counts of
    a few images, whose spread over a few seeds says nothing.

    Args:
        found: The score under each seed, none of them failed.
        rounding: How far it moved on the same images in other micro-batches.
    """
    first = found[0]
    values = tuple(item.score.value for item in found if item.score.value is not None)
    squares = [(item.score.stderr or 0.0) ** 2 for item in found]
    stderr = math.sqrt(math.fsum(squares) / len(squares))
    plain = ExpectedScore(
        kind=first.kind, features_key=first.features_key, score_key=first.score_key, values=values,
        min_effect=0, stderr=stderr, rounding=rounding,
    )  # fmt: skip
    effects = [plain.spread / 4, abs(plain.mean) / 1000]
    is_fraction = first.kind.higher_is_better or first.kind.target is not None or first.kind.axis == "coverage"
    if is_fraction and all(0 <= value <= 1 for value in values):
        effects.append(0.01)
    return plain.model_copy(update={"min_effect": max(effects)})


# --- observations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageDifference:
    """How far images lie from those of the same seeds in an expectation.

    Attributes:
        count: Images, or points, that were compared.
        largest: Largest difference of a value, in grey levels or of a coordinate.
        differing: Fraction of values that differ at all.
        mean: Mean absolute difference, in the same unit.
        worst_seed: The seed of the image that is farthest from its expectation.
    """

    count: int
    largest: float
    differing: float
    mean: float
    worst_seed: int


@dataclass(frozen=True)
class Observation:
    """What was measured now, as far as it was.

    Attributes:
        records: Records of the model under the protocol, one a seed.
        images: None where no images were drawn again.
        speed: Ratio to the reference load, and the machine; None where it was not timed.
        failure: Why there is nothing to judge.
        weights_digest: Of the weights that drew the images; None where they are not known.
    """

    records: tuple[ResultRecord, ...] = ()
    images: ImageDifference | None = None
    speed: tuple[float, Hardware] | None = None
    failure: str | None = None
    weights_digest: str | None = None


@dataclass(frozen=True)
class Check:
    """One thing that was held against its expectation."""

    model: str
    protocol: str
    stage: Stage
    what: str
    state: State
    message: str
    expected: str = ""
    found: str = ""
    p: float | None = None
    """Set where the check is a test; the state then is that of a difference without effect until `judge` decided."""
    beyond: bool = False
    """Whether the effect is larger than the smallest that matters."""


@dataclass(frozen=True)
class Verdict:
    """All checks of a gate."""

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0 nothing moved, 1 drift, 2 something could not be judged that should have been."""
        states = {check.state for check in self.checks}
        return 2 if "unusable" in states or not states & {"ok", "drift"} else 1 if "drift" in states else 0

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that moved, the first cause first."""
        order: tuple[Stage, ...] = ("samples", "features", "metric", "scores", "speed")
        moved = {check.stage for check in self.checks if check.state == "drift"}
        return tuple(stage for stage in order if stage in moved)


def judge(pairs: Sequence[tuple[Expectation, Observation]]) -> Verdict:
    """Hold each observation against its expectation; significance is corrected over all of them together.

    Scores are corrected apart from speeds, at half of `alpha` each: a dozen scores a model would hide a model that is
    half as slow again.
    """
    checks = [check for expectation, observed in pairs for check in _checks(expectation, observed)]
    alpha = min((expectation.alpha for expectation, _ in pairs), default=ALPHA) / 2
    tests = [index for index, check in enumerate(checks) if check.p is not None]
    for of_speed in (False, True):
        family = [index for index in tests if (checks[index].stage == "speed") == of_speed]
        corrected = stats.holm([checks[index].p or 0.0 for index in family])
        for index, p in zip(family, corrected, strict=True):
            check = checks[index]
            if check.beyond:
                text = f"{check.message}; {'' if p <= alpha else 'not '}significant (corrected p {p:.2g})"
                checks[index] = replace(check, state="drift" if p <= alpha else check.state, message=text)
    return Verdict(tuple(checks))


def matching(expectation: Expectation, records: Sequence[ResultRecord]) -> tuple[ResultRecord, ...]:
    """The records of the expectation's model under its protocol and settings, whatever their seed."""
    spec = expectation.spec
    return tuple(
        record for record in records
        if record.model == expectation.model
        and record.samples_key  # a failure has none
        and record.spec.protocol.name == spec.protocol.name
        and record.spec.sampler == spec.sampler
        and (record.spec.device, record.spec.dtype, record.spec.compile) == (spec.device, spec.dtype, spec.compile)
        and record.spec.batch_size == spec.batch_size
    )  # fmt: skip


# --- checks -----------------------------------------------------------------------------------------------


def _checks(expectation: Expectation, observed: Observation) -> list[Check]:
    if observed.failure is not None:
        return [_check(expectation, "samples", "run", "unusable", observed.failure)]
    if expectation.scores and not observed.records:
        text = f"no record of {expectation.model} under {expectation.spec.protocol.name}"
        return [_check(expectation, "scores", "records", "unusable", text)]
    images = _image_check(expectation, observed)
    found = [images, *_evaluation_checks(expectation, observed), *_feature_checks(expectation, observed)]
    found += [_score_check(expectation, score, observed, images) for score in expectation.scores]
    return [*found, *_speed_checks(expectation, observed)]


def _check(expectation: Expectation, stage: Stage, what: str, state: State, message: str, **more: object) -> Check:
    name = expectation.spec.protocol.name
    return Check(expectation.model, name, stage, what, state, message, **more)  # type: ignore[arg-type]


def _image_check(expectation: Expectation, observed: Observation) -> Check:
    if expectation.images is None:
        return _check(expectation, "samples", "images", "not judged", "the expectation holds no images")
    found = observed.images
    if found is None:
        equal = observed.records and all(_same_digest(expectation, record) for record in observed.records)
        missing = "no images were drawn again, and no samples of run 0 are kept"
        text = "the digests of all images are the expected ones" if equal else missing
        return _check(expectation, "samples", "images", "ok" if equal else "not judged", text)
    largest, differing = expectation.images.tolerance
    moved = found.largest > largest or found.differing > differing
    points = is_points(expectation.spec.protocol.image_shape)
    levels = "" if points else " levels"
    text = f"{found.count} {'points' if points else 'images'} at fixed seeds"
    if moved:
        text += f" moved by {found.mean:.3g}{levels and ' grey'}{levels} on average, seed {found.worst_seed} the most"
        text += _why(expectation, observed)
    else:
        text += " are the expected ones within the sampler's tolerance"
    return _check(
        expectation, "samples", "images", "drift" if moved else "ok", text,
        expected=f"at most {largest:g}{levels} in {differing:.2%} of values",
        found=f"up to {found.largest:.3g}{levels} in {found.differing:.2%}",
    )  # fmt: skip


def _why(expectation: Expectation, observed: Observation) -> str:
    others = observed.weights_digest not in (None, expectation.weights_digest)
    return "; the weights are others than the expectation's" if others else ""


def _same_digest(expectation: Expectation, record: ResultRecord) -> bool:
    known = dict(zip(expectation.seeds, expectation.samples_digests, strict=True))
    return known.get(record.spec.seed) == record.provenance.samples_digest


def _evaluation_checks(expectation: Expectation, observed: Observation) -> list[Check]:
    counts = {record.speed.nfe for record in observed.records if record.speed is not None}
    if expectation.nfe is None or not counts:
        return []
    listed = ", ".join("not observed" if count is None else f"{count:g}" for count in sorted(counts, key=str))
    state: State = "ok" if counts == {expectation.nfe} else "drift"
    text = "counted network evaluations an image"
    return [
        _check(expectation, "samples", "NFE", state, text, expected=f"{expectation.nfe:g}", found=listed),
    ]


def _feature_checks(expectation: Expectation, observed: Observation) -> list[Check]:
    """One check for each extractor: its own digest, and that of the reference under it."""
    found = []
    for name, identity in expectation.extractor_identities.items() if observed.records else ():
        wanted = {"extractor": identity, "reference": expectation.reference_digests.get(name, "")}
        moved = []
        for record in observed.records:
            now = {
                "extractor": record.provenance.extractor_identities.get(name),
                "reference": record.provenance.reference_digests.get(name),
            }
            moved += [
                f"{part} {str(now[part])[:12]} instead of {digest[:12]}"
                for part, digest in wanted.items() if now[part] != digest
            ]  # fmt: skip
        text = f"other digests: {', '.join(dict.fromkeys(moved))}" if moved else "digests of extractor and reference"
        found.append(_check(expectation, "features", name, "drift" if moved else "ok", text))
    return found


def _score_check(expectation: Expectation, expected: ExpectedScore, observed: Observation, images: Check) -> Check:
    name = expected.kind.name
    items = [item for record in observed.records for item in record.scores if item.kind.name == name]
    if len(items) < len(observed.records):
        return _check(expectation, "scores", name, "unusable", "a record has no such score", expected=_range(expected))
    failed = [item.score.failure for item in items if item.score.failure is not None]
    if failed:
        text = f"failed: {failed[0]}"
        return _check(expectation, "metric", name, "drift", text, expected=_range(expected), found="failed")
    if any(item.score_key != expected.score_key for item in items):
        text = "the metric's parameters or the counts in the protocol are others (score key)"
        return _check(expectation, "metric", name, "drift", text, expected=_range(expected), found=_text(items))
    if any(item.features_key != expected.features_key for item in items):
        text = "its features are others; see there"
        return _check(expectation, "features", name, "not judged", text, expected=_range(expected), found=_text(items))
    values = [item.score.value for item in items if item.score.value is not None]
    pairs = _paired(expectation, expected, observed, images)
    if pairs is not None:
        return _paired_check(expectation, expected, pairs, items)
    mean = math.fsum(values) / len(values)
    difference = mean - expected.mean
    return _check(
        expectation, "samples" if images.state == "drift" else "scores", name, "ok",
        f"differs by {difference:+.4g} from the mean of {len(expected.values)} seeds; up to {expected.min_effect:.2g} "
        "does not matter",
        expected=_range(expected), found=_text(items),
        p=stats.new_draws_p_value(expected.values, values, stderr=expected.stderr),
        beyond=abs(difference) > expected.min_effect,
    )  # fmt: skip


def _paired(
    expectation: Expectation, expected: ExpectedScore, observed: Observation, images: Check
) -> list[float] | None:
    """Differences to the expected values of the same seeds, where all images are the expected ones; else None."""
    known = dict(zip(expectation.seeds, expected.values, strict=True))
    found = []
    for record in observed.records:
        same = _same_digest(expectation, record) or (observed.images is not None and images.state == "ok")
        score = record.score(expected.kind.name)
        if not same or record.spec.seed not in known or score is None or score.value is None:
            return None
        found.append(score.value - known[record.spec.seed])
    return found


def _paired_check(
    expectation: Expectation, expected: ExpectedScore, differences: list[float], items: list[ScoredMetric]
) -> Check:
    # Each on its own: of several seeds, one that went up must not hide one that went down.
    difference = max(differences, key=abs)
    moved = abs(difference) > max(expected.min_effect, ROUNDINGS * expected.rounding)
    text = f"differs by {difference:+.4g} on the same images"
    if moved:
        text += f" and features; up to {expected.min_effect:.2g} does not matter"
    return _check(
        expectation, "metric", expected.kind.name, "drift" if moved else "ok", text, expected=_range(expected),
        found=_text(items),
    )  # fmt: skip


def _range(expected: ExpectedScore) -> str:
    return f"{expected.mean:.4g} ± {expected.spread:.2g}"


def _text(items: Sequence[ScoredMetric]) -> str:
    scores: list[Score] = [item.score for item in items]
    return ", ".join(f"{score.value:.4g}" for score in scores if score.value is not None)


def _speed_checks(expectation: Expectation, observed: Observation) -> list[Check]:
    wanted = expectation.speed
    if wanted is None:
        return []
    usual = wanted.usual
    what = f"time of {wanted.num_images} images / reference load"
    if observed.speed is None:
        text = "records alone hold no reference load"
        return [_check(expectation, "speed", what, "not judged", text, expected=f"{usual:.3g}")]
    ratio, machine = observed.speed
    if _kind_of(machine) != _kind_of(wanted.hardware):
        text = f"the expectation is of another machine ({wanted.hardware.model}, {wanted.hardware.threads} threads)"
        return [_check(expectation, "speed", what, "not judged", text, expected=f"{usual:.3g}", found=f"{ratio:.3g}")]
    logs = [math.log(each) for each in wanted.ratios]
    if stats.new_draws_p_value(logs, [math.log(usual * MUST_SEE)]) > expectation.alpha / 2 / SPEEDS:
        text = (
            f"the expected times lie from {min(wanted.ratios):.3g} to {max(wanted.ratios):.3g}, too far apart to tell "
            f"{MUST_SEE:g} times slower; make the expectation again on a quieter machine"
        )
        return [_check(expectation, "speed", what, "not judged", text, expected=f"{usual:.3g}", found=f"{ratio:.3g}")]
    factor = ratio / usual
    text = f"{factor:.2f} times the expected time; up to {wanted.min_factor:g} does not matter"
    p = stats.new_draws_p_value(logs, [math.log(ratio)])
    beyond = not wanted.is_usual(ratio)
    more = {"expected": f"{usual:.3g}", "found": f"{ratio:.3g}", "p": p, "beyond": beyond}
    return [_check(expectation, "speed", what, "ok", text, **more)]


def _kind_of(machine: Hardware) -> tuple[str, str, int, str]:
    return machine.device, machine.model, machine.threads, machine.dtype
