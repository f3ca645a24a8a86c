"""Why is my number not the paper's? The same samples under each fork of the protocol, and how far each moves it.

A fork changes one thing and leaves the rest: JPEG before the features, another count, another reference split, a
covariance over N, another resize, another number of splits, another k. What a fork needs and is not at hand (the real
images, Inception's weights) is said in its place; it is never left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trilemma_bench import registry
from trilemma_bench.errors import ProtocolError, TrilemmaError
from trilemma_bench.features._helpers import pillow_bicubic, through_jpeg
from trilemma_bench.kinds import Array, Moments, Reference
from trilemma_bench.record import Score
from trilemma_bench.run import Data, Extraction, Settings, find_reference, images_of, score_rng
from trilemma_bench.spec import Protocol, RunSpec, ScoreSpec

UInt8 = npt.NDArray[np.uint8]
BLOCK = 100

SIDES = {"efficientnet_lite0": 224, "inception_v3_tf": 299}
"""Side to which an extractor resizes."""


@dataclass(frozen=True)
class Fork:
    """One fork of one score.

    Attributes:
        score: Name of the score.
        label: How it is headed.
        what: What was done otherwise; empty for the protocol's own value.
        value: The score under the fork; None where it could not be measured, and `why` says why.
        moved: `value` less the protocol's own.
        why: The reason of the fork, or of its absence.
    """

    score: str
    label: str
    what: str
    value: float | None
    moved: float | None
    why: str


@dataclass(frozen=True)
class Explanation:
    """All forks of one model's samples."""

    model: str
    protocol: str
    count: int
    forks: tuple[Fork, ...]


def explain(spec: RunSpec, data: Data, settings: Settings) -> Explanation:
    """Measure the samples of a spec under its protocol and under each fork of it.

    Raises:
        TrilemmaError: The protocol's own value cannot be measured.
    """
    label, images = images_of(spec, data, settings)
    bench = _Bench(spec, data, settings, images)
    forks = [*_of_distance(bench), *_of_class_score(bench), *_of_precision(bench)]
    return Explanation(label, spec.protocol.name, len(images), tuple(forks))


class _Bench:
    """The samples, and features and references of them, made when they are asked for."""

    def __init__(self, spec: RunSpec, data: Data, settings: Settings, images: UInt8) -> None:
        self.protocol: Protocol = spec.protocol
        self.images = images
        self._spec, self._data, self._settings = spec, data, settings
        self._extractions: dict[str, Extraction] = {}
        self._features: dict[tuple[str, str], dict[str, Array]] = {}
        inception = [item.extractor for item in self.protocol.scores if item.extractor == "inception_v3_tf"]
        names = [*inception, *(item.extractor for item in self.protocol.scores)]
        self.extractor = next(name for name in names if self._is_at_hand(name))

    def _is_at_hand(self, name: str) -> bool:
        weights = self._settings.inception_weights
        kind = registry.get("extractor", name)
        return kind.available(weights if kind.inception_weights else None) is None

    def extraction(self, name: str) -> Extraction:
        if name not in self._extractions:
            self._extractions[name] = Extraction(name, self._settings, self._spec.device)
        return self._extractions[name]

    def features(self, name: str, change: str = "", images: UInt8 | None = None) -> dict[str, Array]:
        """Features of the samples, or of changed ones; `change` names the change."""
        if (name, change) not in self._features:
            chosen = self.images if images is None else images
            parts = []
            for start in range(0, len(chosen), BLOCK):
                parts.append(self.extraction(name).of(chosen[start : start + BLOCK]))
                done = min(start + BLOCK, len(chosen))
                self._settings.report(f"features ({name}{', ' if change else ''}{change})", done, len(chosen))
            self._features[name, change] = {
                layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]
            }
        return self._features[name, change]

    def reference(self, name: str, protocol: Protocol | None = None) -> Reference:
        extractor = self.extraction(name).extractor
        return find_reference(protocol or self.protocol, self._data, extractor, self._settings)

    def _score_spec(self, metric: str, name: str) -> ScoreSpec:
        """The protocol's score of this metric, else one with the metric's defaults."""
        found = (item for item in self.protocol.scores if (item.metric, item.extractor) == (metric, name))
        return next(found, ScoreSpec(metric=metric, extractor=name))

    def own(self, metric: str, name: str, parameter: str) -> Any:
        """What the protocol sets a parameter to."""
        return {**registry.get("metric", metric).defaults, **self._score_spec(metric, name).params}[parameter]

    def scores(self, metric: str, name: str, real: Reference, features: dict[str, Array], **params: Any) -> list[Score]:
        """The scores of a metric; its parameters and its generator are the protocol's, but for `params`."""
        spec, plugin = self._score_spec(metric, name), registry.get("metric", metric)
        chosen = {**plugin.defaults, **spec.params, **params}
        rng = score_rng(self.protocol, self.protocol.score_key(spec))
        return list(plugin.compute(real=real, generated=features, rng=rng, **chosen).values())


def _value(score: Score) -> float:
    if score.value is None:
        raise ProtocolError(score.failure or "no number")
    return score.value


def _forks(score: str, label: str, base: float, forks: list[tuple[str, str, Callable[[], float]]]) -> Iterator[Fork]:
    """The protocol's own value, and each fork, or why there is none."""
    yield Fork(score, label, "", base, 0.0, "the protocol's own value")
    for what, why, measure in forks:
        try:
            value = measure()
        except TrilemmaError as error:
            yield Fork(score, label, what, None, None, str(error))
        else:
            yield Fork(score, label, what, value, value - base, why)


# --- the forks ----------------------------------------------------------------------------------------------


def _of_distance(bench: _Bench) -> Iterator[Fork]:
    name = bench.extractor
    real, features = bench.reference(name), bench.features(name)
    kind = registry.get("metric", "frechet_distance").kinds(registry.get("extractor", name))[0]

    def distance(real: Reference, found: dict[str, Array], extractor: str = name) -> float:
        return _value(bench.scores("frechet_distance", extractor, real, found)[0])

    def changed(change: str, make: Callable[[UInt8], UInt8]) -> float:
        return distance(real, bench.features(name, change, make(bench.images)))

    def variant(other: str) -> float:
        return distance(bench.reference(other), bench.features(other), other)

    count = len(bench.images)
    few = max(2, count // 5)
    forks: list[tuple[str, str, Callable[[], float]]] = [
        (f"JPEG {quality} before the features, samples alone", "some testers write their samples as JPEG",
         partial(changed, f"JPEG {quality}", partial(_jpeg, quality=quality)))
        for quality in (75, 90)
    ]  # fmt: skip
    if name in SIDES:
        side = SIDES[name]
        forks.append((
            f"resized to {side} by Pillow's bicubic filter and rounded, samples alone",
            "images saved at another size, or a loader that resizes",
            partial(changed, f"bicubic {side}", partial(_resized, side=side)),
        ))  # fmt: skip
    forks += [
        (f"{few:,} of the {count:,} samples", "the distance falls as the number of samples grows",
         lambda: distance(real, {layer: rows[:few] for layer, rows in features.items()})),
        ("covariances over N in place of N - 1", "StyleGAN2-ADA divides by N, others by N - 1",
         lambda: _over_count(real, features["features"])),
        ("against the test split in place of the training set", "another reference",
         lambda: distance(bench.reference(name, _against_test(bench.protocol)), features)),
    ]  # fmt: skip
    if name == "inception_v3_tf":
        forks += [
            (f"the extractor {other}", why, partial(variant, other)) for other, why in (
                ("inception_v3_tf_clean", "clean-fid's own resize, reference alike"),
                ("inception_v3_tf_legacy_pytorch", "early pytorch-fid's resize, reference alike"),
                ("inception_v3_tf_jpeg75", "JPEG 75, reference alike"),
                ("inception_v3_tf_clean_jpeg75", "clean-fid's own resize of JPEG 75, reference alike"),
                ("inception_v3_tf_legacy_pytorch_jpeg75", "early pytorch-fid's resize of JPEG 75, reference alike"),
            )
        ]  # fmt: skip
    yield from _forks(kind.name, kind.label, distance(real, features), forks)


def _of_class_score(bench: _Bench) -> Iterator[Fork]:
    name = bench.extractor
    extractor = registry.get("extractor", name)
    if "logits" not in extractor.layers:
        return
    real, features = bench.reference(name), bench.features(name)
    kind = registry.get("metric", "inception_score").kinds(extractor)[0]

    own = bench.own("inception_score", name, "splits")

    def score(splits: int = own, rows: int | None = None) -> float:
        chosen = {"logits": features["logits"][:rows]}
        return _value(bench.scores("inception_score", name, real, chosen, splits=splits)[0])

    few = max(own, len(bench.images) // 5)
    yield from _forks(kind.name, kind.label, score(), [
        (f"one split in place of {own}", "the formula over all samples reads higher", partial(score, 1)),
        (f"{2 * own} splits in place of {own}", "fewer samples a split read lower", partial(score, 2 * own)),
        (f"{few:,} samples in {own} splits", "fewer samples read lower", partial(score, rows=few)),
    ])  # fmt: skip


def _of_precision(bench: _Bench) -> Iterator[Fork]:
    name = bench.extractor
    real, features = bench.reference(name), bench.features(name)
    kinds = registry.get("metric", "precision_recall").kinds(registry.get("extractor", name))
    fewer = replace(real, features=real.features[: max(10, len(real.features) // 5)])

    own = int(bench.own("precision_recall", name, "k"))
    other = 3 if own == 5 else 5

    def score(index: int, real: Reference = real, rows: int | None = None, k: int = own) -> float:
        chosen = {"features": features["features"][:rows]}
        return _value(bench.scores("precision_recall", name, real, chosen, k=k)[index])

    few = max(10, len(bench.images) // 5)
    for index, kind in enumerate(kinds):
        yield from _forks(kind.name, kind.label, score(index), [
            (f"k = {other} in place of {own}", "larger balls cover more", partial(score, index, k=other)),
            (f"{few:,} of the {len(bench.images):,} samples", "fewer samples have larger balls",
             partial(score, index, rows=few)),
            (f"{len(fewer.features):,} of the {len(real.features):,} real features", "the same on the other side",
             partial(score, index, real=fewer)),
        ])  # fmt: skip


# --- what a fork does ---------------------------------------------------------------------------------------


def _jpeg(images: UInt8, quality: int) -> UInt8:
    colour = np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images
    return through_jpeg(torch.from_numpy(colour), quality).numpy()


def _resized(images: UInt8, side: int) -> UInt8:
    parts = [pillow_bicubic(torch.from_numpy(images[start : start + BLOCK]), side).round().byte().numpy()
             for start in range(0, len(images), BLOCK)]  # fmt: skip
    return np.concatenate(parts)


def _over_count(real: Reference, features: Array) -> float:
    """The distance with both covariances over N."""
    from trilemma_bench.metrics.frechet_distance import frechet_distance, moments

    def shrunk(found: Moments) -> Moments:
        return replace(found, cov=found.cov * (found.n - 1) / found.n)

    if real.moments.n < 2:
        raise ProtocolError("the reference does not say how many images it was made of.")
    return frechet_distance(real=shrunk(real.moments), generated=shrunk(moments(features)))


def _against_test(protocol: Protocol) -> Protocol:
    reference = protocol.reference
    if reference.held_out_split is None:
        raise ProtocolError(f"{protocol.name} knows no other split.")
    swapped = reference.model_copy(update={"split": reference.held_out_split, "held_out_split": None})
    return protocol.model_copy(update={"reference": swapped})


def moves(explanation: Explanation) -> dict[str, list[tuple[str, float]]]:
    """By the label of each score, what was done otherwise and how far it moved the score."""
    found: dict[str, list[tuple[str, float]]] = {}
    for fork in explanation.forks:
        if fork.what and fork.moved is not None:
            found.setdefault(fork.label, []).append((fork.what, fork.moved))
    return found


# --- as text --------------------------------------------------------------------------------------------------


def to_markdown(explanation: Explanation) -> str:
    """A table for each score, the largest move first."""
    from trilemma_bench.render import escape

    lines = [f"# {escape(explanation.model)} under the forks of {escape(explanation.protocol)}", "",
             f"The same {explanation.count:,} samples throughout; each line changes one thing."]  # fmt: skip
    for score in dict.fromkeys(fork.score for fork in explanation.forks):
        own, *others = [fork for fork in explanation.forks if fork.score == score]
        lines += ["", f"## {escape(own.label)}: {own.value:.5g}", "", "| fork | value | moved by | why |",
                  "| :-- | --: | --: | :-- |"]  # fmt: skip
        for fork in sorted(others, key=lambda fork: -abs(fork.moved) if fork.moved is not None else math.inf):
            value = "not measured" if fork.value is None else f"{fork.value:.5g}"
            moved = "" if fork.moved is None else f"{fork.moved:+.3g}"
            lines.append(f"| {escape(fork.what)} | {value} | {moved} | {escape(fork.why)} |")
    return "\n".join([*lines, ""])
