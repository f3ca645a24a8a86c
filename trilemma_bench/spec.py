"""What is to be measured, and under which rules: frozen objects whose digest is their name.

A `Protocol` fixes everything that moves a number; a `RunSpec` is one sampler under one protocol.
The digest of any of them is the SHA-256 of its canonical JSON, so that equal content has equal names
in every process and on every machine.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from trilemma_bench.errors import ProtocolError, unknown_name

Option = bool | int | float | str


def digest(content: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `content`: sorted keys, no white space, no NaN."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Frozen(BaseModel):
    """Base of all specs: immutable, unknown keys refused, digest of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of every field."""
        return digest(self.model_dump(mode="json"))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but the digest is the copy's own: pydantic copies cached properties too."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        return copied


class ScoreSpec(Frozen):
    """One metric on one extractor's features, with its parameters."""

    metric: str
    extractor: str
    params: dict[str, Option] = {}
    optional: bool = False
    """Left out, with a line that says how to get it, where the extractor's weights are not at hand."""


class ReferenceSpec(Frozen):
    """Which real images stand for the data, and how much of them is kept.

    Moments are of the whole `split`; `num_features` rows of it, chosen by `seed`, serve neighbour metrics and
    kernel distances; both splits are kept whole in `sketch_dim` principal components for memorisation.
    """

    split: str = "train"
    held_out_split: str | None = "test"
    num_features: int = Field(default=5000, ge=1)
    sketch_dim: int = Field(default=64, ge=1)
    seed: int = 0
    exact: bool = False
    """Keep features in full and in the order of the data set, so that other programs' draws can be repeated on them."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A field that came later is not a part of the digests of what does without it.
        found: dict[str, Any] = dump(self)
        if not self.exact:
            del found["exact"]
        return found


class TimingSpec(Frozen):
    """The rule for wall-clock: one batch of `num_images`, warmed up, repeated; the median counts."""

    num_images: int = Field(default=100, ge=1)
    warmup: int = Field(default=1, ge=0)
    repeats: int = Field(default=3, ge=1)
    extrapolate_above_seconds: float = Field(default=30.0, gt=0)
    extrapolate_evaluations: int = Field(default=20, ge=1)
    extrapolate_repeats: int = Field(default=3, ge=1)


class Protocol(Frozen):
    """Everything that fixes a number: data, counts, extractors, metric parameters, timing rule."""

    name: str
    title: str
    dataset: str
    image_shape: tuple[int, ...]
    """(C, H, W), or (D,) for points."""
    num_generated: int = Field(ge=2)
    rng_seed: int = 0
    """Seeds the generator that a metric draws subsets and resamples from."""
    reference: ReferenceSpec
    scores: tuple[ScoreSpec, ...]
    timing: TimingSpec = TimingSpec()

    @property
    def extractors(self) -> tuple[str, ...]:
        """Names of the extractors that the scores need, in order of first use."""
        return tuple(dict.fromkeys(score.extractor for score in self.scores))

    def with_num_generated(self, count: int) -> Protocol:
        """The variant of this protocol with another sample count: its name gains `@n<count>`, its title says it."""
        if count == self.num_generated:
            return self
        if count < 2:
            raise ProtocolError(f"{self.name} needs at least 2 generated samples; got --num-samples {count}.")
        title = self.title.replace(f"{self.num_generated:,}", f"{count:,}")
        return self.model_copy(update={"name": f"{self.name}@n{count}", "title": title, "num_generated": count})

    @property
    def features_key(self) -> str:
        """Digest of what fixes the reference: the data, the split and the counts (extractors add their own)."""
        return digest([self.dataset, self.image_shape, self.reference.model_dump(mode="json")])

    def score_key(self, score: ScoreSpec) -> str:
        """Digest of what fixes one score beside its features: metric, parameters, counts, generator seed."""
        content = score.model_dump(mode="json", exclude={"optional"})
        return digest([content, self.num_generated, self.rng_seed])


class SamplerSpec(Frozen):
    """One sampler as the user named it: `name[:key=value,...][@weights]`."""

    name: str
    options: dict[str, Option] = {}
    weights: str | None = None
    kind: Literal["builtin", "untrained", "exact", "real", "external"] = "builtin"

    def __str__(self) -> str:
        prefix = f"{self.kind}:" if self.kind in ("untrained", "exact", "real") else ""
        name = "" if self.kind == "real" else self.name
        options = ",".join(f"{key}={_plain(value)}" for key, value in self.options.items())
        text = prefix + name + (":" if options and name else "") + options
        return text + (f"@{self.weights}" if self.weights else "")


class RunSpec(Frozen):
    """One sampler under one protocol, on one device in one precision."""

    sampler: SamplerSpec
    protocol: Protocol
    seed: int = Field(default=0, ge=0, lt=2**20)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    batch_size: int | None = Field(default=None, ge=1)
    """Images in a micro-batch; None takes the sampler's own."""


def _plain(value: Option) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def protocol_names() -> list[str]:
    """Names of the protocols that ship with the package."""
    folder = resources.files("trilemma_bench") / "protocols"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_protocol(name: str, *, dataset: str | None = None) -> Protocol:
    """Read a protocol by name, by path to a TOML file, or by its short name (`lite`, `paper`) and a data set.

    Raises:
        UsageError: No such protocol.
        ProtocolError: A file that is not a valid protocol; says which key.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ProtocolError(f"{name}: no such protocol file. Give a name from {', '.join(protocol_names())}.")
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ProtocolError(f"{name}: cannot be read as text: {error}. Give a protocol as a TOML file.") from error
        return _parse_protocol(text, source=name)
    known = protocol_names()
    if name not in known and dataset is not None:
        # A data set with one kind of protocol needs no name for it: gaussians25-v1.
        starts = [f"{dataset}-{name}-v", *([f"{dataset}-v"] if name == "lite" else [])]
        versions = next((found for start in starts if (found := [k for k in known if k.startswith(start)])), [])
        if versions:
            name = max(versions, key=lambda item: int(item.rsplit("-v", 1)[1]))
    short = sorted({item.split("-")[1] for item in known if item.count("-") > 1})
    if name in short:
        having = sorted({item.split("-")[0] for item in known if f"-{name}-v" in item})
        raise ProtocolError(
            f"{dataset} has no protocol {name!r}; {', '.join(having)} have. Write one as a TOML file and give its "
            "path, or give the images as a folder."
        )
    if name not in known:
        raise unknown_name("protocol", name, [*known, *short])
    text = (resources.files("trilemma_bench") / "protocols" / f"{name}.toml").read_text()
    return _parse_protocol(text, source=name)


def _parse_protocol(text: str, *, source: str) -> Protocol:
    try:
        return Protocol.model_validate(tomllib.loads(text))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise ProtocolError(f"{source}: not a valid protocol: {error}") from error
