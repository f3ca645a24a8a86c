"""Does this installation measure what the field does? Published constants of the real data, measured again."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from pydantic import Field, ValidationError

from trilemma_bench.errors import UsageError
from trilemma_bench.models import parse_model
from trilemma_bench.run import Data, Settings, evaluate_spec, find_protocol, run_spec
from trilemma_bench.spec import Frozen, Protocol


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
