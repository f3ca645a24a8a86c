"""Result records for the tests of the leaderboard and of its rendering."""

from __future__ import annotations

from typing import Any

from trilemma_bench.record import (
    Hardware,
    Provenance,
    ResultRecord,
    Score,
    ScoredMetric,
    ScoreKind,
    Speed,
    Timing,
)
from trilemma_bench.spec import Protocol, ReferenceSpec, RunSpec, SamplerSpec, ScoreSpec

FD = ScoreKind(name="fd_toy", axis="quality", higher_is_better=False, label="FD (toy)")
RECALL = ScoreKind(name="recall_toy", axis="coverage", higher_is_better=True, label="recall")
PRECISION = ScoreKind(name="precision_toy", axis="quality", higher_is_better=True, label="precision")

NEAR = ScoreKind(name="near_toy", axis="quality", higher_is_better=None, label="near", target=0.99)


def protocol(name: str = "toy-v1") -> Protocol:
    return Protocol(
        name=name,
        title="Toy data",
        dataset="toy",
        image_shape=(3, 4, 4),
        num_generated=100,
        reference=ReferenceSpec(),
        scores=(ScoreSpec(metric="frechet_distance", extractor="toy"),),
    )


def score(value: float, half: float = 1.0) -> Score:
    return Score(value=value, stderr=half / 1.96, interval=(value - half, value + half), uncertainty="jackknife", n=100)


def scored(kind: ScoreKind, found: Score, **changed: Any) -> ScoredMetric:
    return ScoredMetric(**{"kind": kind, "score": found, "features_key": "f1", "score_key": "s1", **changed})


def timing(seconds: float, method: str = "measured") -> Timing:
    return Timing.model_validate(
        {
            "method": method,
            "seconds_per_100_images": seconds,
            "spread": (seconds * 0.9, seconds * 1.2),
            "repeats": 3,
            "num_images": 100,
            "warmup": 1,
            "load_seconds": 0.1,
        }
    )


def speed(seconds: float = 2.0, **changed: Any) -> Speed:
    contents = {"nfe": 4.0, "parameters": 6_300_000, "gflops_per_image": 1.16, "timings": (timing(seconds),)}
    return Speed(**{**contents, **changed})


def record(
    model: str,
    fd: float | Score | None = None,
    *,
    recall: float | None = None,
    scores: tuple[ScoredMetric, ...] = (),
    found_speed: Speed | None = None,
    family: str = "ddpm",
    protocol_name: str = "toy-v1",
    seed: int = 0,
    hardware: dict[str, Any] | None = None,
    created: str = "2026-05-04T10:00:00+00:00",
) -> ResultRecord:
    """A record of a model with a Fréchet distance and a recall, beside the `scores` given in full."""
    listed = list(scores)
    if fd is not None:
        listed.append(scored(FD, fd if isinstance(fd, Score) else score(fd)))
    if recall is not None:
        listed.append(scored(RECALL, score(recall, 0.01)))
    machine = {"device": "cpu", "model": "Zen 5", "threads": 2, "platform": "linux", "dtype": "float32"}
    return ResultRecord(
        model=model,
        family=family,
        spec=RunSpec(sampler=SamplerSpec(name="ddpm"), protocol=protocol(protocol_name), seed=seed),
        samples_key=f"samples of {model}",
        scores=tuple(listed),
        speed=found_speed,
        hardware=Hardware(**{**machine, **(hardware or {})}),
        provenance=Provenance(
            package_version="0.1", commit=None, dirty=None, versions={}, weights_digest=None, weights_source=None,
            data_fingerprint=None, reference_digests={}, extractor_identities={}, samples_digest="0", created=created,
        ),
    )  # fmt: skip
