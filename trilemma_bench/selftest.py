"""Can an installation's numbers be trusted? Published constants measured again, and known damage that must be seen.

`run` measures what others publish of the real images; `detect` damages real samples whose modes are known, and finds
the smallest dose that each score sees.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from trilemma_bench.errors import UsageError
from trilemma_bench.kinds import Mixture, Reference
from trilemma_bench.models import parse_model
from trilemma_bench.record import ScoredMetric
from trilemma_bench.reference import reference_from_features
from trilemma_bench.run import Data, Extraction, Settings, evaluate_spec, find_protocol, run_spec, score_features
from trilemma_bench.spec import Frozen, Protocol
from trilemma_bench.stats import new_draws_p_value

Float64 = npt.NDArray[np.float64]


# --- published constants ------------------------------------------------------------------------------------


class Constant(Frozen):
    """One published constant: a score of real images under a protocol, and how near it must be."""

    sampler: str
    num_samples: int
    metric: str
    extractor: str
    score: str
    value: float
    within: float = Field(gt=0)
    source: str


class Outcome(Frozen):
    """What was expected and what was found; `found` None where there was no number, and then `failure` says why."""

    expected: Constant
    found: float | None
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether the number is as near as it must be."""
        return self.found is not None and abs(self.found - self.expected.value) <= self.expected.within


def read_golden(source: str | Path) -> list[Constant]:
    """The published constants of a protocol by its name, or of a TOML file.

    Raises:
        UsageError: No such file, or one that is not valid.
    """
    try:
        if isinstance(source, Path):
            text = source.read_text()
        else:
            text = (resources.files("trilemma_bench") / "published" / f"golden-{source}.toml").read_text()
        return [Constant.model_validate(item) for item in tomllib.loads(text)["expect"]]
    except FileNotFoundError as error:
        raise UsageError(f"{source} has no published constants to be tested against; cifar10-paper-v1 has.") from error
    except (ValidationError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{source}: not a golden file: {error}") from error


def run(data: Data, protocol_name: str, settings: Settings, golden: Sequence[Constant]) -> list[Outcome]:
    """Measure each constant, with its metric alone.

    Raises:
        DataError: The real images are not at hand.
        WeightsError: The extractor's weights are not at hand.
    """
    outcomes = []
    for item in golden:
        protocol = _only(find_protocol(protocol_name, data, num_samples=item.num_samples), item)
        record = evaluate_spec(run_spec(parse_model(item.sampler), protocol), data, replace(settings, out=None))
        score = record.score(item.score)
        if score is None:
            raise UsageError(f"{item.metric} on {item.extractor} gives no score named {item.score!r}.")
        outcomes.append(Outcome(expected=item, found=score.value, failure=score.failure or ""))
    return outcomes


def _only(protocol: Protocol, item: Constant) -> Protocol:
    chosen = tuple(each for each in protocol.scores if (each.metric, each.extractor) == (item.metric, item.extractor))
    if not chosen:
        raise UsageError(f"{protocol.name} has no {item.metric} on {item.extractor}.")
    return protocol.model_copy(update={"scores": chosen})


# --- known damage -------------------------------------------------------------------------------------------

EXPECTED, FOUND = 8, 2
"""Sets of undamaged samples that say what a score is expected to be, and sets at each dose."""
LEVEL = 0.01
"""A dose is seen where its scores are other than the expected ones at this level."""


@dataclass(frozen=True)
class Damage:
    """One way to spoil samples of a mixture, at doses that grow.

    Attributes:
        name: As in the table.
        unit: What a dose counts.
        doses: From small to large.
        apply: apply(points float64 [N, D], dose, mixture, rng) -> as many points, damaged.
        swapped: The damage is done to the real side alone, and what is expected is the same damage to the generated
            side: a score sees it where it tells which side is which.
    """

    name: str
    unit: str
    doses: tuple[float, ...]
    apply: Callable[[Float64, float, Mixture, np.random.Generator], Float64]
    swapped: bool = False


def drop_modes(points: Float64, dose: float, mixture: Mixture, rng: np.random.Generator) -> Float64:
    """The points of `dose` modes moved, with their offsets, to modes that are left."""
    centres = mixture.centres
    modes = np.square(points[:, None] - centres).sum(2).argmin(1)
    # The same modes in every set, and more of them at each dose.
    dropped, kept = np.split(np.random.default_rng(0).permutation(len(centres)), [int(dose)])
    target = np.where(np.isin(modes, dropped), rng.choice(kept, len(points)), modes)
    moved: Float64 = points + centres[target] - centres[modes]
    return moved


def duplicate(points: Float64, dose: float, mixture: Mixture, rng: np.random.Generator) -> Float64:
    """A share `dose` of the points replaced by copies of the others."""
    copies, originals = np.split(rng.permutation(len(points)), [round(dose * len(points))])
    damaged = points.copy()
    damaged[copies] = points[rng.choice(originals, len(copies))]
    return damaged


def add_noise(points: Float64, dose: float, mixture: Mixture, rng: np.random.Generator) -> Float64:
    """Gaussian noise of `dose` times a mode's standard deviation on every coordinate."""
    noisy: Float64 = points + dose * mixture.sigma * rng.standard_normal(points.shape)
    return noisy


MODES = (1, 2, 5, 10, 20)
DAMAGES = (
    Damage("dropped modes", "modes of 25", MODES, drop_modes),
    Damage("duplicates", "of the samples", (0.02, 0.05, 0.1, 0.2, 0.5, 0.9), duplicate),
    Damage("noise", "deviations of a mode", (0.1, 0.2, 0.5, 1, 2, 5), add_noise),
    Damage("real and generated swapped", "modes that one side lacks", MODES, drop_modes, swapped=True),
)


@dataclass(frozen=True)
class Detection:
    """The smallest dose of a damage from which on a score sees every dose; None where it does not see the largest.

    `change` is what the score says of the largest dose: `other` where it has no direction or the sides were swapped.
    """

    damage: str
    unit: str
    score: str
    dose: float | None
    change: Literal["worse", "better", "other"] | None


def detect(
    data: Data, protocol: Protocol, settings: Settings, *, num_samples: int = 1000, damages: Sequence[Damage] = DAMAGES
) -> list[Detection]:
    """Which dose of each damage does each score of the protocol see?

    Real samples of the held-out split, in disjoint sets of `num_samples`, are scored against the reference split:
    `EXPECTED` sets as they are, and `FOUND` others, which change from dose to dose, with the damage. A dose is seen
    where `stats.new_draws_p_value` tells these apart at `LEVEL`, or where the score fails. Everything is drawn from the
    protocol's seed.

    Raises:
        UsageError: The modes of the data set are not known, or it has too few samples.
    """
    mixture = data.dataset.mixture
    if mixture is None:
        raise UsageError(
            f"the modes of {data.dataset.name} are not known, so that none can be dropped. Use --dataset gaussians25, "
            "or --protocol paper for published constants of CIFAR-10."
        )
    held_out, train = (
        data.open(split) for split in (protocol.reference.held_out_split or "test", protocol.reference.split)
    )
    sets = EXPECTED + FOUND
    if not 2 <= num_samples <= len(held_out) // sets:
        raise UsageError(
            f"{sets} sets of {num_samples} samples are asked for; {held_out.name} has {len(held_out)}. "
            f"--num-samples takes 2 to {len(held_out) // sets}."
        )
    points = held_out.read(0, sets * num_samples).reshape(sets, num_samples, -1)
    real = train.read(0, len(train))
    bench = _Bench(protocol.with_num_generated(num_samples), settings)
    clean = bench.reference(real)
    undamaged = [bench.scores(clean, each) for each in points]
    found = []
    for index, damage in enumerate(damages):
        judged = []
        for number, dose in enumerate(damage.doses):
            settings.report(damage.name, number, len(damage.doses))
            rng = np.random.default_rng([protocol.rng_seed, index])
            # Other sets at each dose: else a set that is odd by itself would be seen at every one.
            order = np.roll(np.arange(sets), FOUND * number)
            old, new = order[:EXPECTED], order[EXPECTED:]
            if damage.swapped:
                expected = [bench.scores(clean, damage.apply(points[i], dose, mixture, rng)) for i in old]
                other = bench.reference(damage.apply(real, dose, mixture, rng))
                fresh = [bench.scores(other, points[i]) for i in new]
            else:
                expected = [undamaged[i] for i in old]
                fresh = [bench.scores(clean, damage.apply(points[i], dose, mixture, rng)) for i in new]
            judged.append((dose, _moved(expected, fresh)))
        settings.report(damage.name, len(damage.doses), len(damage.doses))
        found += [_detection(damage, item, judged) for item in undamaged[0]]
    return found


class _Bench:
    """The scores of a protocol, as a run has them, of points in memory."""

    def __init__(self, protocol: Protocol, settings: Settings) -> None:
        self._protocol = protocol
        self._extractions = {name: Extraction(name, settings, "cpu") for name in protocol.extractors}

    def reference(self, real: Float64) -> dict[str, Reference]:
        """The real side of these points [N, D], for each extractor; nothing is held out."""
        return {
            name: reference_from_features(
                each.extractor.extract(real)["features"], None, spec=self._protocol.reference,
                about={"extractor": name, "is_inception": each.kind.is_inception},
            )
            for name, each in self._extractions.items()
        }  # fmt: skip

    def scores(self, real: dict[str, Reference], points: Float64) -> list[ScoredMetric]:
        """Every score of points [N, D]."""
        features = {name: each.extractor.extract(points) for name, each in self._extractions.items()}
        return [
            item
            for score in self._protocol.scores
            for item in score_features(
                score, self._protocol, self._extractions[score.extractor], real[score.extractor],
                features[score.extractor],
            )
        ]  # fmt: skip


def _moved(expected: Sequence[Sequence[ScoredMetric]], found: Sequence[Sequence[ScoredMetric]]) -> dict[str, float]:
    """By how much each score that was seen to move did; infinitely where it fails now."""
    moved = {}
    for items, fresh in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True):
        old, new = ([item.score.value for item in side if item.score.value is not None] for side in (items, fresh))
        if len(old) < len(items):
            continue
        if len(new) < len(fresh):
            moved[items[0].kind.name] = np.inf
        elif new_draws_p_value(old, new) < LEVEL:
            moved[items[0].kind.name] = float(np.mean(new) - np.mean(old))
    return moved


def _detection(damage: Damage, item: ScoredMetric, judged: Sequence[tuple[float, dict[str, float]]]) -> Detection:
    kind, smallest, last = item.kind, None, None
    for dose, moved in reversed(judged):
        if kind.name not in moved:
            break
        smallest, last = dose, moved[kind.name] if last is None else last
    change: Literal["worse", "better", "other"] | None = None
    if last is not None:
        change = "other"
        if kind.better and not damage.swapped:
            before = item.score.value or 0.0
            nearer = kind.better.loss(before + last) < kind.better.loss(before)
            change = "better" if nearer and np.isfinite(last) else "worse"
    return Detection(damage.name, damage.unit, kind.label or kind.name, smallest, change)


def unseen(found: Sequence[Detection]) -> list[str]:
    """The damages that no score sees at any dose."""
    seen = {each.damage for each in found if each.dose is not None}
    return [name for name in dict.fromkeys(each.damage for each in found) if name not in seen]


def to_markdown(found: Sequence[Detection]) -> str:
    """A row for each score, a column for each damage: the smallest dose, and where the score says better of it."""
    damages = {each.damage: each.unit for each in found}
    cells = {(each.score, each.damage): each for each in found}
    lines = ["| score | " + " | ".join(f"{name} ({unit})" for name, unit in damages.items()) + " |"]
    lines.append("| :-- |" + " --: |" * len(damages))
    for score in dict.fromkeys(each.score for each in found):
        lines.append(f"| {score} | " + " | ".join(_cell(cells[score, name]) for name in damages) + " |")
    lines += [f"no score sees {name}: the protocol is blind to it" for name in unseen(found)]
    return "\n".join(lines)


def _cell(each: Detection) -> str:
    if each.dose is None:
        return "not seen"
    return f"{each.dose:g}" + (" (as better)" if each.change == "better" else "")
