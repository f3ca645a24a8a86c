"""The experiment: draw samples, extract features, compute scores, time the sampler, write the record.

`evaluate_spec` reads as the experiment does; each step below it is resumable, because what it makes lies in the store
under the name of what fixed it.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

import trilemma_bench
from trilemma_bench import reference as references
from trilemma_bench import registry, speed
from trilemma_bench.cards import baselines_folder
from trilemma_bench.errors import NoSplitError, ProtocolError, UsageError, WeightsError, unknown_name
from trilemma_bench.fetch import file_sha256
from trilemma_bench.images import fingerprint, image_digests, open_images, sum_digests
from trilemma_bench.kinds import (
    Array,
    Dataset,
    Extractor,
    ExtractorKind,
    ImageSet,
    Metric,
    Reference,
    Sampler,
    Shape,
    is_points,
)
from trilemma_bench.models import OpenModel, adopt, check_device, of_each_train_seed, open_model, parse_model
from trilemma_bench.points import open_points
from trilemma_bench.record import Hardware, Provenance, ResultRecord, Score, ScoredMetric, Speed
from trilemma_bench.spec import Protocol, ReferenceSpec, RunSpec, SamplerSpec, ScoreSpec, digest, load_protocol
from trilemma_bench.stats import mean_stderr, symmetric_interval
from trilemma_bench.store import FeatureStore, SampleShards, Shard, cache_folder, make_folder, write_atomic

Report = Callable[[str, int, int], None]
"""report(what is done, how much of it, of how much)"""

CHUNK, CHUNK_OF_POINTS = 100, 2000
"""Images, points that are read and whose features are kept together, where they come from files."""
HANDFUL = 4
"""Images of finished shards that are made again in each run."""


@dataclass(frozen=True)
class Settings:
    """How to run, as far as it moves no number.

    Attributes:
        out: Results folder; None writes nothing.
        data_root: Where data sets lie, beside the places that are always looked at.
        cache: Samples, features and references; None takes `TRILEMMA_CACHE` or the user's cache.
        inception_weights: Path of the TF Inception weights.
        statistics: Another program's mean and covariance (npz), in place of the reference of Inception's features.
        allow_unverified: Take extractor weights of another digest; the record says so.
        fresh: Make all samples anew, use no finished shards.
        retime: Add a timing to a finished record.
        full_timing: Never extrapolate the time of slow samplers.
        timed: Time the sampler; else its record says what was counted and no more.
        report: Told of progress.
    """

    out: Path | None = None
    data_root: Path | None = None
    cache: Path | None = None
    inception_weights: Path | None = None
    statistics: Path | None = None
    allow_unverified: bool = False
    fresh: bool = False
    retime: bool = False
    full_timing: bool = False
    timed: bool = True
    report: Report = lambda what, done, total: None

    @property
    def cache_folder(self) -> Path:
        """Where samples, features and references are kept."""
        return self.cache or cache_folder()


@contextmanager
def own_cache(settings: Settings) -> Iterator[Settings]:
    """The settings with an empty cache, but for the references of the usual one: all is drawn anew, nothing timed."""
    with tempfile.TemporaryDirectory(prefix="trilemma-") as folder:
        kept = settings.cache_folder / "references"
        kept.mkdir(parents=True, exist_ok=True)
        (Path(folder) / "references").symlink_to(kept.resolve(), target_is_directory=True)
        yield replace(settings, cache=Path(folder), timed=False, fresh=True)


# --- data and protocol ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """A data set by name, or anybody's folder or file of images."""

    dataset: Dataset
    root: Path | None

    def open(self, split: str) -> ImageSet:
        """The images of a split; checked against the fingerprint where one is known."""
        return self.dataset.open(split, self.root)

    def held_out(self, spec: ReferenceSpec) -> ImageSet | None:
        """The held-out images; None where the protocol names no such split, or one's own data have none."""
        if spec.held_out_split is None:
            return None
        try:
            return self.open(spec.held_out_split)
        except NoSplitError:
            return None

    def key(self, spec: ReferenceSpec) -> str:
        """64 hex digits of the images that a reference is made of: both splits, and their order where it is exact.

        Those of the reference split alone, in whatever order, have the fingerprint.
        """
        held_out = self.held_out(spec)
        sets = [image_digests(images) for images in (self.open(spec.split), held_out) if images is not None]
        parts = [sum_digests(rows) for rows in sets]
        if spec.exact:
            parts += [hashlib.sha256(b"".join(rows)).hexdigest() for rows in sets]
        return parts[0] if len(parts) == 1 else digest(parts)

    @cached_property
    def is_own(self) -> bool:
        """Whether these are a user's own images."""
        return self.dataset.name == "image_folder"


def find_data(name: str, settings: Settings) -> Data:
    """The data set of that name, or the images at that path.

    Raises:
        UsageError: Neither a name nor a path.
    """
    if name in registry.names("dataset") and name != "image_folder":
        return Data(registry.get("dataset", name), settings.data_root)
    path = Path(name).expanduser()
    if path.exists():
        return Data(registry.get("dataset", "image_folder"), path)
    known = [item for item in registry.names("dataset") if item != "image_folder"]
    raise unknown_name("data set", name, [*known, "a path of images"])


def find_protocol(name: str, data: Data, *, num_samples: int | None = None) -> Protocol:
    """The protocol of that name for this data; own images fill in their key and shape.

    Raises:
        UsageError: No such protocol.
        ProtocolError: One that belongs to another data set.
    """
    protocol = load_protocol(name, dataset=data.dataset.name)
    if protocol.dataset != data.dataset.name:
        raise ProtocolError(
            f"{protocol.name} measures on {protocol.dataset}; --dataset says {data.dataset.name}. "
            f"Use --dataset {protocol.dataset} or another protocol."
        )
    if data.is_own:
        found = data.key(protocol.reference)
        protocol = protocol.model_copy(
            update={
                "name": protocol.name.replace("image_folder", f"images-{found[:8]}"),
                "dataset": f"images-{found[:16]}",
                "image_shape": data.open(protocol.reference.split).shape,
            }
        )
    return protocol if num_samples is None else protocol.with_num_generated(num_samples)


# --- the experiment ---------------------------------------------------------------------------------------


def evaluate(
    sampler: str | Sampler | Any,
    dataset: str = "cifar10",
    protocol: str = "lite",
    *,
    num_samples: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    compile: bool = False,
    batch_size: int | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> ResultRecord:
    """Measure one sampler: the public one-call form of `trilemma-bench run`.

    Args:
        sampler: As after `--models` (`"ddim:steps=20"`), or an object with `name`, `image_shape` and `sample(seeds)`.
        dataset: Name of a data set, or path of one's own images.
        protocol: `lite`, `paper`, a full name, or the path of a TOML file.
        num_samples: Generated images; None takes the protocol's. Another count is a variant of the protocol.
        seed: Which images: image i has the seed `seed * 2**32 + i`.
        device: Where the networks run, such as `cpu` or `cuda:0`.
        dtype: `float32`, or autocast to `bfloat16` or `float16`.
        compile: Whether networks go through torch.compile.
        batch_size: Images in a micro-batch; None takes the sampler's own.
        settings: Where things lie; see `Settings`.
        **options: Fields of `Settings` by name, such as `out="results"`.

    Returns:
        The record; written below `out` where one is given.

    Raises:
        TrilemmaError: Input that cannot be used; says what to do.
    """
    settings = _with_options(settings or Settings(), options)
    data = find_data(str(dataset), settings)
    found = find_protocol(protocol, data, num_samples=num_samples)
    if isinstance(sampler, str):
        named, model = parse_model(sampler), None
    else:
        model = adopt(sampler, type(sampler).__name__, batch_size=batch_size)
        named = SamplerSpec(name=str(model.sampler.name), kind="external")
    spec = run_spec(
        named, found, seed=seed, device=device, dtype=dtype, compile=compile, batch_size=batch_size
    )  # fmt: skip
    return evaluate_spec(spec, data, settings, model=model)


def _with_options(settings: Settings, options: dict[str, Any]) -> Settings:
    """`settings` with fields by name; paths may be text."""
    known = {item.name for item in fields(Settings)}
    for name in options:
        if name not in known:
            raise unknown_name("argument of evaluate", name, known)
    paths = ("out", "data_root", "cache", "inception_weights", "statistics")
    changed: dict[str, Any] = {k: Path(v) if k in paths and v is not None else v for k, v in options.items()}
    return replace(settings, **changed)


def run_spec(sampler: SamplerSpec, protocol: Protocol, **settings: Any) -> RunSpec:
    """The spec of one run.

    Raises:
        UsageError: A setting outside its range; says which.
    """
    try:
        return RunSpec.model_validate({"sampler": sampler, "protocol": protocol, **settings})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{name} = {first['input']!r}: {first['msg']}.") from error


def evaluate_spec(
    spec: RunSpec, data: Data, settings: Settings, *, model: OpenModel | None = None, images: ImageSet | None = None
) -> ResultRecord:
    """One sampler (or finished `images`) under one protocol; reuses a finished record below `settings.out`."""
    started = time.perf_counter()
    check_device(spec.device)
    spec = _with_statistics(spec, settings)
    source = _source(spec, data, settings, model, images)
    path = None if settings.out is None else _record_path(spec, source, settings.out)
    wanted = _available_scores(spec.protocol, settings)
    finished = _finished(path, wanted, settings) if path is not None else None
    if finished is not None and not _still_its_own(source, spec, settings):
        finished = None
    if finished is not None and not settings.retime:
        return finished
    if finished is not None and source.model is not None and finished.speed is not None:
        again = _speed(source, spec, settings, nfe=finished.speed.nfe)
        here = speed.hardware(spec.device, spec.dtype)
        there = {} if here == finished.hardware else {"hardware": here}
        # What a record has stays, but for another machine's memory; one that was made untimed lacks the operations too.
        known = {key: value for key, value in finished.speed if value is not None}
        if here != finished.timed_on:
            known.pop("peak_memory_mib", None)
        known["timings"] = (*finished.speed.timings, *(timing.model_copy(update=there) for timing in again.timings))
        record = finished.model_copy(update={"speed": again.model_copy(update=known)})
    else:
        record = _without_speed(spec, data, settings, source, wanted, started)
        if source.model is not None:
            record = record.model_copy(update={"speed": _speed(source, spec, settings, nfe=source.nfe)})
    if path is not None and settings.out is not None:
        write_atomic(path, record.dumps().encode())
        failure_path(settings.out, spec).unlink(missing_ok=True)
    return record


def _with_statistics(spec: RunSpec, settings: Settings) -> RunSpec:
    """The spec under a protocol of its own where another program's statistics stand for the data."""
    if settings.statistics is None:
        return spec
    if not settings.statistics.is_file():
        raise UsageError(f"--statistics {settings.statistics}: no such file.")
    names = {score.extractor: score.optional for score in spec.protocol.scores}
    used = [name for name, optional in names.items() if not (optional and missing_extractor(name, settings))]
    if not any(registry.get("extractor", name).inception_weights for name in used):
        raise UsageError(
            f"--statistics {settings.statistics}: they stand for real images in scores on Inception's features, and "
            f"{spec.protocol.name} has none, or its weights are not at hand. Use --protocol paper, with "
            "--inception-weights."
        )
    name = f"{spec.protocol.name}@statistics-{file_sha256(settings.statistics)[:8]}"
    return spec.model_copy(update={"protocol": spec.protocol.model_copy(update={"name": name})})


def _without_speed(
    spec: RunSpec, data: Data, settings: Settings, source: _Source, wanted: list[ScoreSpec], started: float
) -> ResultRecord:
    """The record but for what sampling costs."""
    protocol = spec.protocol
    _check_shape(source.label, source.shape, protocol)
    extractors = {name: Extraction(name, settings, spec.device) for name in _names(wanted)}
    real: dict[str, Reference] = {}
    found = []
    for each in source.parts or [source]:
        features = _features(each, protocol, extractors, settings)
        # After the features, so that images which cannot be used are refused before a long reference is made.
        real = real or {
            name: find_reference(protocol, data, item.extractor, settings) for name, item in extractors.items()
        }
        found.append(
            [
                item
                for score in wanted
                for item in score_features(
                    score, protocol, extractors[score.extractor], real[score.extractor], features[score.extractor]
                )
            ]
        )
    scores = found[0]
    if parts := source.parts:
        scores = [_over_training_seeds(items) for items in zip(*found, strict=True)]
        source.nfe, source.notes = parts[0].nfe, [note for each in parts for note in each.notes]
        source.gradient_evaluations = parts[0].gradient_evaluations
        source.digest, source.store = digest([each.digest for each in parts]), {"training_seeds": len(parts)}
    return ResultRecord(
        model=source.label,
        family=source.family,
        spec=spec,
        samples_key=source.key,
        scores=tuple(scores),
        speed=None,
        hardware=speed.hardware(spec.device, spec.dtype),
        provenance=_provenance(source, extractors, real, started),
        notes=(*source.notes, *_notes_of(extractors), *_notes_of_few(real, protocol)),
    )


def check_protocol(protocol: Protocol, data: Data, settings: Settings) -> None:
    """Look at what runs under a protocol need before any draws: extractors, metrics, parameters, the real side.

    Raises:
        TrilemmaError: What cannot be used.
    """
    for score in _available_scores(protocol, settings):
        _parameters(score, protocol)
        name = references.reference_name(protocol, score.extractor)
        kept = references.reference_path(protocol, score.extractor).is_file() or any(
            (settings.cache_folder / "references").glob(f"*-{name}")
        )
        if not kept and settings.statistics is None:
            data.open(protocol.reference.split)


def check_sampler(spec: RunSpec, data: Data) -> None:
    """Open the model or split of a spec and look at its shape, before anything is drawn.

    Raises:
        TrilemmaError: What cannot be used.
    """
    if spec.sampler.kind == "real":
        images = _open_real(spec, data)
        _check_count(images, spec)
        shape = images.shape
    else:
        shape = open_model(spec).image_shape
    _check_shape(str(spec.sampler), shape, spec.protocol)


def _check_shape(label: str, shape: Shape, protocol: Protocol) -> None:
    if tuple(shape) != tuple(protocol.image_shape):
        raise ProtocolError(
            f"{label} makes {_what(shape)} of {list(shape)}; {protocol.name} needs "
            f"{_what(protocol.image_shape)} of {list(protocol.image_shape)}. "
            "Bring them to that shape as the real ones were (docs/protocols.md; nothing is resized silently), "
            "or name another data set."
        )


def _parameters(score: ScoreSpec, protocol: Protocol) -> dict[str, Any]:
    """The parameters of a score's metric, those of the protocol over its defaults.

    Raises:
        UsageError: No such metric, or a parameter that it has not.
        ProtocolError: It needs a layer that the extractor has not.
    """
    metric: Metric = registry.get("metric", score.metric)
    layers = registry.get("extractor", score.extractor).layers
    if missing := [layer for layer in metric.layers if layer not in layers]:
        raise ProtocolError(f"{protocol.name}: {score.metric} needs {missing[0]}, which {score.extractor} has not.")
    params = {**metric.defaults, **score.params}
    if unknown := set(params) - set(metric.defaults):
        raise unknown_name(f"parameter of {score.metric}", sorted(unknown)[0], metric.defaults)
    return params


def _notes_of_few(real: dict[str, Reference], protocol: Protocol) -> list[str]:
    """What is to be said of references with fewer images than the protocol keeps features of."""
    few = {reference.moments.n for reference in real.values()} - {0}
    return [
        f"measured against {count} real {_what(protocol.image_shape)} alone: so few say little"
        for count in few if count < protocol.reference.num_features
    ]  # fmt: skip


def _notes_of(extractors: dict[str, Extraction]) -> list[str]:
    """What the extractors want said of themselves in each record."""
    return [item.extractor.note for item in extractors.values() if hasattr(item.extractor, "note")]


def recompute(record: ResultRecord, data: Data, settings: Settings) -> ResultRecord | str:
    """The record again, without speed, from samples that are finished; or in a line why that cannot be.

    Raises:
        TrilemmaError: Weights, extractor or reference are not at hand.
    """
    spec, started = record.spec, time.perf_counter()
    if record.family in ("images", "external"):
        return "the record does not say where its images or its sampler are"
    source = _source(spec, data, settings, None, None)
    if source.key != record.samples_key:
        return f"other weights or options: the samples key is now {source.key[:12]}, was {record.samples_key[:12]}"
    missing = 0
    for model in [each.model for each in source.parts or [source] if each.model is not None]:
        shards = SampleShards(settings.cache_folder, model.samples_key, spec.seed, model.micro_batch, model.shipped)
        missing += sum(shards.read(index) is None for index in shards.indices(spec.protocol.num_generated))
    if missing:
        return f"{missing} shards of its samples are not in the cache; `trilemma-bench run` makes them"
    return _without_speed(spec, data, settings, source, _available_scores(spec.protocol, settings), started)


def images_of(spec: RunSpec, data: Data, settings: Settings) -> tuple[str, npt.NDArray[np.uint8]]:
    """Name and images of a spec's samples, uint8 [num_generated, C, H, W], from the cache where they are there."""
    source = _source(spec, data, settings, None, None)
    count = spec.protocol.num_generated
    found = np.concatenate(list(source.chunks(count, settings.report)))[:count]
    _check_shape(source.label, found.shape[1:], spec.protocol)
    return source.label, found


def points_of(record: ResultRecord, settings: Settings) -> Array | str:
    """Points [N, D] of a finished record, from the cache or drawn again, or in a line why there are none.

    Where networks of several training seeds were measured, those of the first.
    """
    spec = record.spec
    if record.family in ("images", "external"):
        return "the record does not say where its points or its sampler are"
    data = find_data(spec.protocol.dataset, settings)
    source = _source(spec, data, settings, None, None)
    if source.key != record.samples_key:
        return f"other weights or options: the samples key is now {source.key[:12]}, was {record.samples_key[:12]}"
    return images_of(spec, data, settings)[1]


def _over_training_seeds(items: Sequence[ScoredMetric]) -> ScoredMetric:
    """One score of networks that were trained alike: their mean, with a t interval over the training seeds."""
    values = [item.score.value for item in items]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        first = values.index(None)
        score = Score.failed(
            f"{len(values) - len(known)} of {len(values)} training seeds: {items[first].score.failure}"
        )
    else:
        mean, stderr = float(np.mean(known)), mean_stderr(known)
        score = Score(
            value=mean, stderr=stderr, bounds=items[0].score.bounds, dof=len(known) - 1, n=items[0].score.n,
            interval=symmetric_interval(mean, stderr, dof=len(known) - 1, bounds=items[0].score.bounds),
            uncertainty=f"t interval over {len(known)} training seeds", per_seed=tuple(known),
            histogram=tuple(int(sum(each)) for each in zip(*(item.score.histogram for item in items), strict=True)),
        )  # fmt: skip
    return items[0].model_copy(update={"score": score})


def failure_record(spec: RunSpec, error: BaseException) -> ResultRecord:
    """The record of a model that could not be measured: every score says why."""
    reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:500]
    scores = []
    for score in spec.protocol.scores:
        if score.optional:
            continue
        metric: Metric = registry.get("metric", score.metric)
        kind: ExtractorKind = registry.get("extractor", score.extractor)
        key = spec.protocol.score_key(score)
        scores += [
            ScoredMetric(kind=item, score=Score.failed(reason), features_key="", score_key=key)
            for item in metric.kinds_of(kind, spec.protocol.image_shape, score.params)
        ]
    return ResultRecord(
        model=str(spec.sampler), family="external" if spec.sampler.kind == "external" else spec.sampler.name,
        spec=spec, samples_key="", scores=tuple(scores), speed=None,
        hardware=Hardware(device=spec.device, model="", threads=0, platform="", dtype=spec.dtype),
        provenance=Provenance(
            package_version=trilemma_bench.__version__, commit=None, dirty=None, versions={}, weights_digest=None,
            weights_source=None, data_fingerprint=None, reference_digests={}, extractor_identities={},
            samples_digest="", created=_now(), command=_command(),
        ),
        notes=(reason,),
    )  # fmt: skip


def record_path(out: Path, label: str, spec: RunSpec, samples_key: str) -> Path:
    """Where the record of a model under a spec lies: `<out>/<protocol>/<model>-<digest>.json`."""
    record = ResultRecord.model_construct(model=label, spec=spec, samples_key=samples_key)
    return out / spec.protocol.name / f"{record.name}.json"


def failure_path(out: Path, spec: RunSpec) -> Path:
    """Where the failure of a spec lies until it succeeds."""
    return record_path(out, str(spec.sampler), spec, "")


# --- where the images come from -----------------------------------------------------------------------------


@dataclass
class _Source:
    """The images of one record, chunk by chunk, and what became known while they were read."""

    label: str
    family: str
    key: str
    shape: Shape
    chunks: Callable[[int, Report], Iterator[Array]]
    """chunks(count, report): uint8 [n, C, H, W] or points [n, D] each, at least `count` in all, always cut alike."""
    model: OpenModel | None = None
    nfe: float | None = None
    gradient_evaluations: float | None = None
    digest: str = ""
    store: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    parts: list[_Source] = field(default_factory=list)
    """A source for each network, where several were trained alike and the record is their mean."""


def _source(spec: RunSpec, data: Data, settings: Settings, model: OpenModel | None, images: ImageSet | None) -> _Source:
    if images is not None:
        return _image_source(images, spec, label=spec.sampler.name, family="images")
    if spec.sampler.kind == "real":
        return _image_source(_open_real(spec, data), spec, label=str(spec.sampler), family="real")
    opened = model or open_model(spec)
    source = _model_source(opened, spec, settings)
    for one in of_each_train_seed(spec, opened):
        source.parts.append(_model_source(open_model(one), one, settings))
    if source.parts:
        source.key = digest([each.key for each in source.parts])
    return source


def _open_real(spec: RunSpec, data: Data) -> ImageSet:
    return data.open(str(spec.sampler.options["split"]))


def _check_count(images: ImageSet, spec: RunSpec) -> None:
    count = spec.protocol.num_generated
    if len(images) < count:
        advice = f"--num-samples {len(images)} measures them under a variant with that count."
        raise ProtocolError(
            f"{spec.protocol.name} needs {count} generated {_what(images.shape)}; {images.name} has {len(images)}. "
            f"{advice if len(images) > 1 else 'Two are the fewest that can be measured.'}"
        )


def _image_source(images: ImageSet, spec: RunSpec, *, label: str, family: str) -> _Source:
    """As many of the images as the protocol asks for, chosen by the seed where there are more."""
    _check_count(images, spec)
    count = spec.protocol.num_generated
    rng = np.random.Generator(np.random.Philox(key=np.array([spec.seed, 0], np.uint64)))
    chosen = np.sort(rng.permutation(len(images))[:count])

    size = CHUNK_OF_POINTS if is_points(images.shape) else CHUNK

    def chunks(count: int, report: Report) -> Iterator[Array]:
        for start in range(0, count, size):
            part = chosen[start : start + size]
            yield np.concatenate([images.read(int(i), int(i) + 1) for i in part])
            report(f"reading {label}", min(start + size, count), count)

    key = digest(["images", fingerprint(images), count, spec.seed])
    source = _Source(label, family, key, images.shape, chunks)
    if len(images) > count:
        source.notes.append(f"{count} of {len(images)} {_what(images.shape)}, chosen by seed {spec.seed}")
    if getattr(images, "lossy", False):
        source.notes.append("read from JPEG or WebP files: their pixels are not those that were compressed")
    return source


def _what(shape: Shape) -> str:
    return "points" if is_points(shape) else "images"


def _model_source(model: OpenModel, spec: RunSpec, settings: Settings) -> _Source:
    shards = SampleShards(settings.cache_folder, model.samples_key, spec.seed, model.micro_batch, model.shipped)
    label = str(spec.sampler) if spec.sampler.kind != "external" else str(model.sampler.name)
    source = _Source(label, model.family, model.samples_key, model.image_shape, lambda *_: iter(()), model=model)

    def chunks(count: int, report: Report) -> Iterator[Array]:
        usable = _usable_shards(shards, model, source, count, settings)
        counts = {"generated": 0, "cached": 0, "shipped": 0}
        shards_seen: list[Shard] = []
        for index in usable.indices(count):
            shard, origin = usable.read(index) or (_draw(model, usable, index), "generated")
            if spec.sampler.kind == "external" and not shards_seen and origin == "generated":
                _check_seeds(shard, model, source)
            counts[origin] += len(shard.images)
            shards_seen.append(shard)
            yield shard.images
            report(f"sampling {label}", min((index + 1) * usable.size, count), count)
        source.nfe = _mean_of([shard.nfe for shard in shards_seen])
        source.gradient_evaluations = _mean_of([shard.gradient_evaluations for shard in shards_seen])
        source.store.update(counts)

    source.chunks = chunks
    return source


def _mean_of(counts: list[float | None]) -> float | None:
    """The mean of what was counted; None unless all was."""
    known = [count for count in counts if count is not None]
    return float(np.mean(known)) if known and len(known) == len(counts) else None


def _draw(model: OpenModel, shards: SampleShards, index: int) -> Shard:
    """Sample one shard, count its network evaluations, and keep it."""
    seeds = shards.seeds(index)
    networks, guides = speed.networks_of(model.sampler), speed.guides_of(model.sampler)
    with speed.EvaluationCounter(networks) as counter, speed.EvaluationCounter(guides) as gradients:
        images = _checked_images(model.sampler, seeds)
    shard = Shard(
        images, seeds, counter.images / len(seeds) if networks else None,
        gradients.images / len(seeds) if guides else None,
    )  # fmt: skip
    shards.write(index, shard)
    return shard


def _checked_images(sampler: Sampler, seeds: npt.NDArray[np.int64]) -> Array:
    found: Any = sampler.sample(torch.from_numpy(seeds))
    images = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    expected = (len(seeds), *sampler.image_shape)
    points = is_points(sampler.image_shape)
    if images.dtype != (np.float64 if points else np.uint8) or images.shape != expected:
        wanted = f"float64 {list(expected)} (N, D)" if points else f"uint8 {list(expected)} (N, C, H, W)"
        raise ProtocolError(
            f"{sampler.name}: sample(seeds) must return {wanted}; got {images.dtype} {list(images.shape)}."
        )
    return np.ascontiguousarray(images)


def _usable_shards(
    shards: SampleShards, model: OpenModel, source: _Source, count: int, settings: Settings
) -> SampleShards:
    """The finished shards, after a random handful of images was made again and compared.

    Shards that were drawn here from weights that the key names are trusted; those that ship, and those of samplers
    whose key may not see everything, are not.
    """
    if settings.fresh:
        shards.drop()
        return shards.without_shipped()
    doubtful = []
    for index in shards.indices(count):
        found = shards.read(index)
        if found is not None and (found[1] == "shipped" or not model.trusted):
            doubtful.append(found[0])
    if not doubtful:
        return shards
    check = _remake_handful(doubtful, model)
    source.store["made_again"] = check
    if check["agrees"]:
        return shards
    source.notes.append(
        f"finished images were set aside: {len(check['seeds'])} made again differ in {_differences(check, source)}"
    )
    if not model.trusted:
        shards.drop()
    return shards.without_shipped()


def _still_its_own(source: _Source, spec: RunSpec, settings: Settings) -> bool:
    """Whether a finished record is of this sampler: always where its key sees all, else as far as images show."""
    model = source.model
    if model is None or model.trusted:
        return True
    shards = SampleShards(settings.cache_folder, model.samples_key, spec.seed, model.micro_batch, model.shipped)
    _usable_shards(shards, model, source, spec.protocol.num_generated, settings)
    return bool(source.store.get("made_again", {}).get("agrees"))


def _check_seeds(first: Shard, model: OpenModel, source: _Source) -> None:
    """Say so where the images of somebody's sampler, just drawn, are others in another batch and order."""
    check = _remake_handful([first], model)
    source.store.setdefault("made_again", check)
    if not check["agrees"]:
        source.notes.append(
            f"an image does not depend on its seed alone: {len(check['seeds'])} made again in another batch differ in "
            f"{_differences(check, source)}. They cannot be made again one by one; if it is rounding, say so by the "
            "sampler's tolerance"
        )


def _differences(check: dict[str, Any], source: _Source) -> str:
    unit = "" if is_points(source.shape) else " grey levels"
    return f"{check['differing']:.2%} of their values, by up to {check['largest']}{unit}"


def _remake_handful(shards: list[Shard], model: OpenModel) -> dict[str, Any]:
    """Images of these shards, drawn again beside each other in an order of their own, against what they were."""
    rng = np.random.default_rng()
    images = np.concatenate([shard.images for shard in shards])
    seeds = np.concatenate([shard.seeds for shard in shards])
    rows = rng.permutation(len(images))[:HANDFUL]
    again = _checked_images(model.remake(len(rows)), seeds[rows])
    points = is_points(model.image_shape)
    distance = np.abs(again.astype(np.float64) - images[rows])
    largest, differing = distance.max().item(), float((distance > 0).mean())
    largest = largest if points else int(largest)
    return {
        "seeds": [int(seed) for seed in seeds[rows]], "largest": largest, "differing": differing,
        "tolerance": list(model.tolerance),
        "agrees": largest <= model.tolerance[0] and differing <= model.tolerance[1],
    }  # fmt: skip


# --- features and scores ------------------------------------------------------------------------------------


def _names(scores: list[ScoreSpec]) -> list[str]:
    return list(dict.fromkeys(score.extractor for score in scores))


def _available_scores(protocol: Protocol, settings: Settings) -> list[ScoreSpec]:
    """The protocol's scores, without the optional ones whose extractor is not at hand.

    Raises:
        WeightsError: An extractor that the protocol cannot do without is not at hand; says how to get it.
    """
    wanted = []
    for score in protocol.scores:
        missing = missing_extractor(score.extractor, settings)
        if missing is None:
            wanted.append(score)
        elif not score.optional:
            raise WeightsError(f"{protocol.name} needs {score.extractor}. {missing}")
    return wanted


def missing_extractor(name: str, settings: Settings) -> str | None:
    """One line on how to get what this extractor lacks, or None."""
    kind: ExtractorKind = registry.get("extractor", name)
    return kind.available(settings.inception_weights if kind.inception_weights else None)


class Extraction:
    """An extractor, built when it is first needed, and its kept features."""

    def __init__(self, name: str, settings: Settings, device: str) -> None:
        self.kind: ExtractorKind = registry.get("extractor", name)
        weights = settings.inception_weights if self.kind.inception_weights else None
        self.extractor: Extractor = self.kind.build(
            device=device, weights=weights, allow_unverified=settings.allow_unverified
        )
        self._store = FeatureStore(settings.cache_folder, digest([self.extractor.identity, device.split(":")[0]]))

    def of(self, images: Array) -> dict[str, npt.NDArray[np.float32]]:
        """{layer: float32 [N, D]}, from the store where they are there."""
        key = Shard(images, np.empty(0, np.int64), None).digest
        found = self._store.read(key)
        if found is None:
            found = self.extractor.extract(images)
            self._store.write(key, found)
        return found


def _features(
    source: _Source, protocol: Protocol, extractors: dict[str, Extraction], settings: Settings
) -> dict[str, dict[str, npt.NDArray[np.float32]]]:
    """One pass over the images: {extractor: {layer: float32 [num_generated, D]}}; notes the images' digest."""
    count, seen = protocol.num_generated, 0
    total = hashlib.sha256()
    parts: dict[str, list[dict[str, npt.NDArray[np.float32]]]] = {name: [] for name in extractors}
    for images in source.chunks(count, settings.report):
        total.update(np.ascontiguousarray(images[: count - seen]).data)
        for name, extraction in extractors.items():
            parts[name].append(extraction.of(images))
        seen += len(images)
    if seen < count:
        raise ProtocolError(f"{protocol.name} needs {count} generated {_what(protocol.image_shape)}; got {seen}.")
    source.digest = total.hexdigest()
    return {
        name: {layer: np.concatenate([part[layer] for part in found])[:count] for layer in found[0]}
        for name, found in parts.items()
    }


def find_reference(protocol: Protocol, data: Data, extractor: Extractor, settings: Settings) -> Reference:
    """The real side: shipped, cached, or made now from the data.

    Raises:
        DataError: It has to be made and the data is not there.
    """
    if settings.statistics is not None and registry.get("extractor", extractor.name).inception_weights:
        return references.import_statistics(settings.statistics, extractor)
    shipped = references.reference_path(protocol, extractor.name)
    name = references.reference_name(protocol, extractor.name)
    cached = settings.cache_folder / "references" / f"{extractor.identity[:16]}-{name}"
    for path in (shipped, cached):
        if path.is_file():
            reference = references.load_reference(path)
            references.check_fits(reference, protocol=protocol, extractor=extractor)
            return reference
    return make_reference(protocol, data, extractor, settings, cached)


def make_reference(protocol: Protocol, data: Data, extractor: Extractor, settings: Settings, path: Path) -> Reference:
    """Make the reference of a protocol from its data, and keep it at `path`."""
    wanted = protocol.reference
    train = data.open(wanted.split)
    held_out = data.held_out(wanted)
    reference = references.make_reference(
        train, held_out, extractor, wanted,
        progress=lambda done, total: settings.report(f"reference features ({extractor.name})", done, total),
    )  # fmt: skip
    make_folder(path.parent)
    references.save_reference(reference, path)
    return reference


def score_rng(protocol: Protocol, key: str) -> np.random.Generator:
    """What a score draws from: a generator of its own, so that a new metric leaves the others as they were."""
    return np.random.default_rng([protocol.rng_seed, int(key[:12], 16)])


def score_features(
    score: ScoreSpec,
    protocol: Protocol,
    extraction: Extraction,
    real: Reference,
    generated: dict[str, npt.NDArray[np.float32]],
) -> list[ScoredMetric]:
    """The scores of one metric; what it cannot compute is a failure that says why."""
    metric: Metric = registry.get("metric", score.metric)
    params = _parameters(score, protocol)
    key = protocol.score_key(score)
    rng = score_rng(protocol, key)
    kinds = metric.kinds_of(extraction.kind, protocol.image_shape, params)
    try:
        found = metric.compute(real=real, generated=generated, rng=rng, **params)
    except ProtocolError as error:
        found = {kind.name: Score.failed(str(error)) for kind in kinds}
    features_key = digest([extraction.extractor.identity, real.key])
    return [
        ScoredMetric(
            kind=kind, score=found[kind.name], features_key=features_key, score_key=key,
            verified=extraction.extractor.verified,
        )
        for kind in kinds
    ]  # fmt: skip


# --- speed --------------------------------------------------------------------------------------------------


def _speed(source: _Source, spec: RunSpec, settings: Settings, *, nfe: float | None) -> Speed:
    """Counted and timed with one batch of the protocol's size, in a pass of its own."""
    assert source.model is not None
    rule = spec.protocol.timing
    if not settings.timed:
        return Speed(nfe=nfe, parameters=speed.count_parameters(source.model.sampler))
    settings.report(f"timing {source.label}", 0, 1)
    start = time.perf_counter()
    sampler = source.model.remake(rule.num_images)
    load_seconds = max(time.perf_counter() - start, source.model.load_seconds)
    device = torch.device(spec.device)
    memory: list[float] = []
    flops = None if spec.compile else speed.gflops_per_image(sampler, nfe)
    gradients = source.gradient_evaluations
    with speed.peak_memory(device, memory):
        timing = speed.measure_timing(
            sampler, rule, nfe=nfe, load_seconds=load_seconds, full=settings.full_timing
        )  # fmt: skip
    settings.report(f"timing {source.label}", 1, 1)
    return Speed(
        nfe=nfe, gradient_evaluations=gradients, parameters=speed.count_parameters(sampler), gflops_per_image=flops,
        peak_memory_mib=memory[0] if memory else None, timings=(timing,),
    )  # fmt: skip


# --- records ------------------------------------------------------------------------------------------------


def _record_path(spec: RunSpec, source: _Source, out: Path) -> Path:
    return record_path(out, source.label, spec, source.key)


def _finished(path: Path, wanted: list[ScoreSpec], settings: Settings) -> ResultRecord | None:
    """The record at `path` where it has every score that can be had now."""
    if settings.fresh or not path.is_file():
        return None
    record = ResultRecord.read(path)
    keys = {item.score_key for item in record.scores}
    return record if all(record.spec.protocol.score_key(score) in keys for score in wanted) else None


def _provenance(
    source: _Source, extractors: dict[str, Extraction], real: dict[str, Reference], started: float
) -> Provenance:
    commit, dirty = _commit()
    weights = source.model.weights if source.model is not None else None
    train = next((item.about["train"] for item in real.values() if item.about.get("train")), None)
    return Provenance(
        package_version=trilemma_bench.__version__,
        commit=commit,
        dirty=dirty,
        versions=_versions(),
        weights_digest=weights.digest if weights is not None else None,
        # A shipped baseline lies elsewhere on every machine.
        weights_source=weights.source.removeprefix(f"{baselines_folder().parent}/") if weights is not None else None,
        data_fingerprint=train["fingerprint"] if train else None,
        reference_digests={name: item.key for name, item in real.items()},
        extractor_identities={name: item.extractor.identity for name, item in extractors.items()},
        samples_digest=source.digest,
        store=source.store,
        command=_command(),
        created=_now(),
        duration_seconds=round(time.perf_counter() - started, 3),
    )


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "scipy", "scikit-learn", "diffusers", "torch-fidelity", "pillow")
    found = {"python": sys.version.split()[0]}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package lies in, and whether it was changed; (None, None) elsewhere."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None, None
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        return run("rev-parse", "HEAD"), bool(run("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def score_images(
    path: Path, spec: RunSpec, data: Data, settings: Settings, *, layout: str | None = None
) -> ResultRecord:
    """Measure images, or points, that exist already: quality and coverage, no speed.

    Raises:
        DataError: Images that cannot be read as stated.
    """
    images = open_points(path) if is_points(spec.protocol.image_shape) else open_images(path, layout)
    if len(images) == 0:
        raise UsageError(f"{path}: holds no images.")
    return evaluate_spec(spec, data, settings, images=images)


def left_out(protocol: Protocol, settings: Settings) -> list[str]:
    """One line for each extractor whose optional scores were left out: how to get them."""
    names = dict.fromkeys(score.extractor for score in protocol.scores if score.optional)
    return [line for name in names if (line := missing_extractor(name, settings)) is not None]


def build_reference(
    dataset: str, protocol: str, extractor: str, settings: Settings, *, device: str = "cpu", out: Path | None = None
) -> tuple[Path, str]:
    """Make the reference of a protocol for any data set and extractor; returns its path and identity."""
    data = find_data(dataset, settings)
    found = find_protocol(protocol, data)
    built = Extraction(extractor, settings, device).extractor
    name = references.reference_name(found, extractor)
    path = out or settings.cache_folder / "references" / f"{built.identity[:16]}-{name}"
    return path, make_reference(found, data, built, settings, path).identity
