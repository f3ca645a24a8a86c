"""Making expectations, and observing what is held against them: the running side of the gate.

A gate draws everything anew: samples and features go to a cache of its own, because a cache trusts that the program is
still the one that filled it, which is what a gate is to find out. References are taken from where they are kept; their
digests are checked.
"""

from __future__ import annotations

import datetime
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import trilemma_bench
from trilemma_bench import speed
from trilemma_bench.errors import TrilemmaError, UsageError
from trilemma_bench.gate import (
    MIN_SEEDS,
    MIN_SPEED_FACTOR,
    SUFFIX,
    Expectation,
    ExpectedImages,
    ExpectedScore,
    ExpectedSpeed,
    Observation,
    expected_score,
)
from trilemma_bench.gate_images import compare, expected_images, write_images
from trilemma_bench.kinds import Array, Sampler
from trilemma_bench.models import OpenModel, of_each_train_seed, open_model
from trilemma_bench.record import Hardware, ResultRecord, file_name
from trilemma_bench.run import Settings, evaluate_spec, find_data, find_protocol, own_cache, run_spec
from trilemma_bench.spec import RunSpec, SamplerSpec, digest
from trilemma_bench.store import image_seeds, sha256, write_atomic

TIMED_SECONDS = 0.1
"""About how long the timed batch of a gate takes: of short pairs of times there can be many."""
LONGEST_STEM = 150


# --- making -----------------------------------------------------------------------------------------------


def make_expectation(
    sampler: SamplerSpec,
    out: Path,
    settings: Settings,
    *,
    dataset: str = "cifar10",
    protocol: str = "lite",
    num_samples: int | None = None,
    num_seeds: int = 10,
    num_images: int = 32,
    images_only: bool = False,
    min_speed_factor: float = MIN_SPEED_FACTOR,
    **run: Any,
) -> Path:
    """Measure one sampler under several seeds and write its expectation, images beside it; returns the path.

    Args:
        sampler: What is measured.
        out: Folder of expectations.
        settings: Where things lie; its cache serves references alone.
        dataset: As after `--dataset`.
        protocol: As after `--protocol`.
        num_samples: Generated images; None takes the protocol's.
        num_seeds: Runs 0..num_seeds - 1, and sessions of timing; at least 5.
        num_images: Images of run 0 that are kept.
        images_only: Keep images and nothing else: for samplers too slow to be scored in a gate.
        min_speed_factor: From which factor on another speed matters; above 1.
        **run: `device`, `dtype`, `compile`, `batch_size` of the run.

    Raises:
        UsageError: Too few seeds, nothing to keep, or a factor that is none.
        TrilemmaError: Input that cannot be used, or a sampler that depends on more than its seeds.
    """
    if num_seeds < MIN_SEEDS and not images_only:
        raise UsageError(f"--seeds {num_seeds}: a spread needs at least {MIN_SEEDS} seeds.")
    if num_images < 1:
        raise UsageError(f"--images {num_images}: a gate needs at least one image.")
    if not 1 < min_speed_factor < math.inf:
        raise UsageError(
            f"--speed-factor {min_speed_factor:g}: must be a number above 1, such as {MIN_SPEED_FACTOR:g}."
        )
    with own_cache(settings) as fresh:
        data = find_data(dataset, fresh)
        found = find_protocol(protocol, data, num_samples=num_samples)
        spec = run_spec(sampler, found, **run)
        model = open_model(spec)
        images, seeds = draw(spec, model, num_images)
        _check_repeatable(spec, model, images)
        made = Expectation(
            model=_label(spec, model), dataset=dataset, protocol=protocol, num_samples=num_samples, spec=spec,
            samples_key=model.samples_key, weights_digest=model.weights.digest if model.weights else None,
            images=ExpectedImages(
                file=f"{_stem(_label(spec, model), found.name)}.npz", sha256=sha256(images),
                seeds=tuple(int(seed) for seed in seeds), tolerance=model.tolerance,
            ),
            package_version=trilemma_bench.__version__, command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        if not images_only:
            made = made.model_copy(update=_measured(spec, model, fresh, dataset, num_seeds, min_speed_factor))
    assert made.images is not None
    write_images(images, out / made.images.file)
    path = out / f"{_stem(made.model, found.name)}{SUFFIX}"
    # Read back what is written: an expectation that cannot be read would be found by the next gate alone.
    write_atomic(path, Expectation.model_validate(made.model_dump()).dumps().encode())
    return path


def _label(spec: RunSpec, model: OpenModel) -> str:
    return str(model.sampler.name) if spec.sampler.kind == "external" else str(spec.sampler)


def _stem(model: str, protocol: str) -> str:
    """Of the files of an expectation; file systems take names of 255 bytes, and models are named with their paths."""
    text = file_name(f"{model}.{protocol}")
    return text if len(text) <= LONGEST_STEM else f"{text[:LONGEST_STEM]}-{digest(text)[:12]}"


def _check_repeatable(spec: RunSpec, model: OpenModel, images: Array) -> None:
    """Raise where one image, drawn alone, is not the one that it was among others."""
    again, seeds = draw(spec, model, 1, micro_batch=1)
    difference = compare(again[:1], images[:1], seeds[:1])
    if difference.largest > model.tolerance[0] or difference.differing > model.tolerance[1]:
        raise UsageError(
            f"{model.sampler.name}: image 0 drawn alone differs by up to {difference.largest:g} from itself drawn "
            "among others. A gate needs images that depend on their seed alone: key the noise by the seed. Where only "
            "last bits differ, give the sampler a `tolerance`, such as (2, 0.002)."
        )


def _measured(
    spec: RunSpec, model: OpenModel, settings: Settings, dataset: str, num_seeds: int, min_speed_factor: float
) -> dict[str, Any]:
    """Scores and speed over the seeds, as fields of an expectation."""
    data = find_data(dataset, settings)
    records, ratios = [], []
    count = timed_count(model, spec.protocol.timing.num_images)
    for seed in range(num_seeds):
        settings.report("expectation", seed, num_seeds)
        records.append(evaluate_spec(spec.model_copy(update={"seed": seed}), data, settings, model=model))
        if len({record.provenance.samples_digest for record in records}) < len(records):
            raise UsageError(
                f"{model.sampler.name}: run {seed} has the images of an earlier run. Image i of run s has the seed "
                "s * 2^32 + i: use all 64 bits (numpy.random.default_rng(seed) does; torch.Generator().manual_seed on "
                "the CPU takes the low 32)."
            )
        ratios.append(speed.ratio_to_reference_load(model.remake(count), count))
    # The same images in other micro-batches: their last bits differ, and nothing else.
    other = spec.model_copy(update={"batch_size": max(1, model.micro_batch // 2)})
    rounded = evaluate_spec(other, data, settings) if spec.sampler.kind != "external" else None
    settings.report("expectation", num_seeds, num_seeds)
    first = records[0]
    counts = {record.speed.nfe if record.speed is not None else None for record in records}
    return {
        "seeds": tuple(range(num_seeds)),
        "samples_digests": tuple(record.provenance.samples_digest for record in records),
        # Solvers that choose their steps take others for other seeds.
        "nfe": counts.pop() if len(counts) == 1 else None,
        "scores": tuple(_expected_scores(records, rounded)),
        "speed": ExpectedSpeed(
            load=speed.REFERENCE_LOAD, num_images=count, ratios=tuple(ratios), min_factor=min_speed_factor,
            hardware=machine(spec),
        ),
        "reference_digests": first.provenance.reference_digests,
        "extractor_identities": first.provenance.extractor_identities,
        "versions": first.provenance.versions,
    }  # fmt: skip


def _expected_scores(records: Sequence[ResultRecord], rounded: ResultRecord | None) -> Iterator[ExpectedScore]:
    for position, item in enumerate(records[0].scores):
        found = [record.scores[position] for record in records]
        failure = next((each.score.failure for each in found if each.score.failure is not None), None)
        if failure is not None:
            said = failure.rstrip(".")
            raise UsageError(f"{item.kind.name} failed: {said}. An expectation needs scores; take more samples.")
        other = rounded.scores[position].score.value if rounded is not None else item.score.value
        assert other is not None and item.score.value is not None
        yield expected_score(found, rounding=abs(other - item.score.value))


def machine(spec: RunSpec) -> Hardware:
    """This machine, as far as it moves a ratio: beside a processor's name the instructions that torch uses of it.

    Virtual machines give many processors one name; AVX2 for AVX-512 slows a sampler otherwise than the load.
    """
    found = speed.hardware(spec.device, spec.dtype)
    if torch.device(spec.device).type != "cpu":
        return found
    return found.model_copy(update={"model": f"{found.model}, {torch.backends.cpu.get_cpu_capability()}"})


def timed_count(model: OpenModel, most: int) -> int:
    """Images that take about `TIMED_SECONDS`, 4 to `most`: as many on a busy machine as on an idle one."""
    sampler = model.remake(10)
    speed.time_once(sampler, 10, seed=2**19)
    each = min(speed.own_seconds(lambda: speed.time_once(sampler, 10, seed=2**19)) for _ in range(3)) / 10
    return max(4, min(most, round(TIMED_SECONDS / each)))


# --- observing --------------------------------------------------------------------------------------------


def observe(expectation: Expectation, path: Path, settings: Settings) -> Observation:
    """Run the model of an expectation again: images, scores under its first seed, speed.

    What a model raises becomes the observation's failure.

    Args:
        expectation: What will be held against it.
        path: Its file, beside which its images lie.
        settings: Where things lie; records are written to `out` where it is set.
    """
    try:
        with own_cache(settings) as fresh:
            return _observe(expectation, path, fresh)
    except Exception as error:
        name = "" if isinstance(error, TrilemmaError) else f"{type(error).__name__}: "
        return Observation(failure=f"{name}{error}")


def _observe(expectation: Expectation, path: Path, settings: Settings) -> Observation:
    wanted = expectation.spec
    data = find_data(expectation.dataset, settings)
    protocol = find_protocol(expectation.protocol, data, num_samples=expectation.num_samples)
    spec = wanted.model_copy(update={"protocol": protocol, "seed": expectation.seeds[0] if expectation.seeds else 0})
    if protocol.name != wanted.protocol.name:
        raise UsageError(
            f"{expectation.protocol} is {protocol.name} now; the expectation is of {wanted.protocol.name}. "
            "Make it again with `trilemma-bench expect make`."
        )
    model = open_model(spec)
    images = None
    if expectation.images is not None:
        kept = expected_images(expectation, path)
        drawn, seeds = draw(spec, model, len(set(expectation.images.seeds)))
        images = compare(drawn, kept, seeds)
    records = (evaluate_spec(spec, data, settings, model=model),) if expectation.scores else ()
    ratio = None
    if expectation.speed is not None:
        if expectation.speed.load != speed.REFERENCE_LOAD:
            raise UsageError(
                f"the expectation was timed beside the load {expectation.speed.load}; this program has "
                f"{speed.REFERENCE_LOAD}. Make it again with `trilemma-bench expect make`."
            )
        count = expectation.speed.num_images
        found = speed.ratio_to_reference_load(model.remake(count), count, enough=expectation.speed.is_usual)
        ratio = (found, machine(spec))
    weights_digest = model.weights.digest if model.weights is not None else None
    return Observation(records=records, images=images, speed=ratio, weights_digest=weights_digest)


def draw(
    spec: RunSpec, model: OpenModel, count: int, *, micro_batch: int | None = None
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Images or points 0..count-1 of run 0, and their seeds, int64 [N]: uint8 [N, C, H, W] or float64 [N, D].

    N is `count`; where the networks of several training seeds are measured together, each draws so many, in turn.
    """
    seeds = image_seeds(0, 0, count)
    models = [open_model(one) for one in of_each_train_seed(spec, model)]
    # A padded batch of slow steps would cost as much as a full one.
    samplers = [each.remake(micro_batch or min(count, each.micro_batch)) for each in models or [model]]
    return np.concatenate([_drawn(sampler, seeds) for sampler in samplers]), np.tile(seeds, len(samplers))


def _drawn(sampler: Sampler, seeds: npt.NDArray[np.int64]) -> Array:
    found: Any = sampler.sample(torch.from_numpy(seeds))
    return np.ascontiguousarray(found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found)
