"""From what a user types after `--models` to a sampler that draws.

`ddpm` · `ddim:steps=20,eta=0` · `ddgan@path/netG_1200.pth` · `real:split=test` · `untrained:ddgan` · `exact:ddim` ·
`package.module:factory` (found on the Python path or in the current folder).

Beside the options of a sampler there are those of its weights: `train_seed=2` takes one of the networks that were
trained alike from several seeds (without it, all of them are measured), and what the cards of its baselines name
tells these apart.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import operator
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from trilemma_bench import registry
from trilemma_bench.cards import cards_of, find_card, load_card
from trilemma_bench.errors import TrilemmaError, UsageError, WeightsError, unknown_name
from trilemma_bench.fetch import file_sha256
from trilemma_bench.kinds import POINTS_TOLERANCE, Dataset, Sampler, SamplerKind, Shape, Weights, is_points
from trilemma_bench.nets import mlp
from trilemma_bench.samplers._helpers import make_weights, untrained, weights_digest
from trilemma_bench.spec import RunSpec, SamplerSpec, digest

EXACT = (0, 0.0)
TRAIN_SEED = "train_seed"
MAX_TRAIN_SEEDS = 100


def parse_models(text: str) -> list[SamplerSpec]:
    """The models of a comma-separated list; a part with `=` and no `:` or `@` before it belongs to the one before.

    Raises:
        UsageError: An unknown name or option, or a model named twice.
    """
    items: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        continues = "=" in part and not set(":@") & set(part.split("=")[0])
        if continues and items:
            items[-1] += "," + part
        elif part:
            items.append(part)
    if not items:
        raise UsageError(f"--models names no model. There are {', '.join(registry.names('sampler'))}.")
    specs = [parse_model(item) for item in items]
    for spec in specs:
        if specs.count(spec) > 1:
            raise UsageError(f"--models names {spec} twice. Name it once.")
    return specs


def parse_model(text: str) -> SamplerSpec:
    """One model: `[untrained:]name[:key=value,...][@weights]`, `real[:split=...]` or `module:factory`."""
    body, at, weights = text.partition("@")
    if at and not weights:
        raise UsageError(f"{text}: nothing follows the @. Give the path of a weights file, or leave the @ out.")
    head, _, rest = body.partition(":")
    if head == "real":
        options = _options(rest, text)
        unknown = set(options) - {"split"}
        if unknown:
            raise unknown_name("option of real", sorted(unknown)[0], ["split"])
        return SamplerSpec(name="real", options={"split": options.get("split", "test")}, kind="real")
    if head in ("untrained", "exact"):
        inner = parse_model(rest)
        if inner.kind != "builtin" or weights or TRAIN_SEED in inner.options:
            raise UsageError(f"{text}: {head} takes a built-in model without weights, such as {head}:ddgan.")
        if head == "exact":
            inner_kind: SamplerKind = registry.get("sampler", inner.name)
            for key in sorted(set(inner.options) - set(inner_kind.options.model_fields)):
                raise UsageError(f"{text}: {key} tells trained weights apart; the optimum has none. Leave it out.")
        return inner.model_copy(update={"kind": head})
    if head in registry.names("sampler"):
        kind: SamplerKind = registry.get("sampler", head)
        checked = _check_options(kind, _options(rest, text))
        return SamplerSpec(name=head, options=checked, weights=weights or None)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", body) and not weights:
        return SamplerSpec(name=body, kind="external")
    raise unknown_name("model", head, [*registry.names("sampler"), "real", "untrained", "exact", "module:factory"])


def _options(text: str, whole: str) -> dict[str, str]:
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UsageError(f"{whole}: expected key=value after the colon; got {part!r}.")
        if key.strip() in options:
            raise UsageError(f"{whole}: option {key.strip()!r} is given twice.")
        options[key.strip()] = value.strip()
    return options


def _check_options(kind: SamplerKind, given: dict[str, str]) -> dict[str, Any]:
    """The given options in their true types, those of the sampler in its own order, then those of the weights."""
    known = kind.options.model_fields
    of_weights = _weights_options(kind)
    for key in given:
        if key not in known and key not in of_weights:
            raise unknown_name(f"option of {kind.name}", key, [*known, *of_weights])
    chosen: dict[str, Any] = {}
    for key, value in given.items():
        if key in of_weights:
            if value not in of_weights[key]:
                listed = "training seeds 0, 1, 2 ..." if key == TRAIN_SEED else ", ".join(of_weights[key])
                raise UsageError(f"{kind.name}: option {key}={value}: there are weights for {listed}.")
            chosen[key] = of_weights[key][value]
    try:
        options = kind.options.model_validate({key: value for key, value in given.items() if key in known})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{kind.name}: option {name}={first['input']}: {first['msg']}.") from error
    found: dict[str, Any] = options.model_dump(mode="json", exclude_unset=True)
    for key, number in options:
        if isinstance(number, float) and not math.isfinite(number):
            raise UsageError(f"{kind.name}: option {key}={given[key]}: expected a finite number.")
    return {**found, **chosen}


def _weights_options(kind: SamplerKind) -> dict[str, dict[str, Any]]:
    """Options of the weights that ship for a sampler, but those that are the sampler's too: {name: {text: value}}."""
    found: dict[str, dict[str, Any]] = {TRAIN_SEED: {str(seed): seed for seed in range(MAX_TRAIN_SEEDS)}}
    for card in cards_of(kind.baseline) if kind.baseline else ():
        for key, value in card.options.items():
            if key not in kind.options.model_fields:
                found.setdefault(key, {})[str(value)] = value
    return found


# --- opening ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to draw.

    Attributes:
        family: For the record.
        samples_key: Digest of weights, options, precision, device type and micro-batch.
        weights: None for an external sampler.
        shipped: Folder of shards that come with the baseline, or None.
        tolerance: See `SamplerKind`; that of points is `POINTS_TOLERANCE`.
        remake: remake(micro_batch) -> the same sampler with another micro-batch.
        trusted: Whether the key names all that fixes the images; else cached images are spot-checked each time.
        train_seeds: Where the weights hold networks that were trained alike from several seeds and none was chosen,
            these seeds: a record is over all of them, and this model is the first.
    """

    sampler: Sampler
    image_shape: Shape
    family: str
    samples_key: str
    weights: Weights | None
    shipped: Path | None
    tolerance: tuple[float, float]
    remake: Callable[[int], Sampler]
    micro_batch: int
    load_seconds: float
    trusted: bool
    train_seeds: tuple[int, ...] = ()


def open_model(spec: RunSpec) -> OpenModel:
    """Build the sampler of a run.

    Raises:
        UsageError: A module, factory or attribute that is missing; a device that is not there.
        WeightsError: Weights that are missing, altered, or of another network.
    """
    check_device(spec.device)
    start = time.perf_counter()
    if spec.sampler.kind == "external":
        return _open_external(spec, start)
    if spec.sampler.weights:
        with _configuration_of(spec.sampler.name, spec.sampler.weights):
            return _open_builtin(spec, start)
    return _open_builtin(spec, start)


@contextmanager
def _configuration_of(name: str, source: str) -> Iterator[None]:
    """Within, what a broken configuration in a file from outside leads to becomes an error that names the file.

    Raises:
        WeightsError: A key that is missing, or a value of another type.
    """
    try:
        yield
    except TrilemmaError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{source}: its configuration is not one of {name} ({type(error).__name__}: {error}). Name the sampler "
            "that the weights were trained for, or export them again."
        ) from error


def _open_builtin(spec: RunSpec, start: float) -> OpenModel:
    kind: SamplerKind = registry.get("sampler", spec.sampler.name)
    weights, shipped = _weights(kind, spec)
    given = spec.sampler.options
    options = kind.options.model_validate({k: v for k, v in given.items() if k in kind.options.model_fields})
    members = mlp.members(weights.config)
    several = spec.sampler.kind == "builtin" and TRAIN_SEED not in given and members > 1
    if members > 1 or TRAIN_SEED in given:
        # Without a seed this is the first of them: what is asked of all alike, such as a timing, is asked of it.
        weights = of_train_seed(weights, int(given.get(TRAIN_SEED, 0)))

    def make(micro_batch: int | None) -> Any:
        return kind.build(
            options, weights, device=spec.device, dtype=spec.dtype, compile=spec.compile, micro_batch=micro_batch
        )

    sampler = make(spec.batch_size)
    key = digest(
        {
            "sampler": kind.name, "options": options.model_dump(mode="json"), "weights": weights.digest,
            "dtype": spec.dtype, "compile": spec.compile, "device": torch.device(spec.device).type,
            "micro_batch": sampler.micro_batch,
        }
    )  # fmt: skip
    return OpenModel(
        sampler=sampler,
        image_shape=sampler.image_shape,
        family=spec.sampler.kind if spec.sampler.kind in ("untrained", "exact") else kind.family,
        samples_key=key,
        weights=weights,
        shipped=shipped,
        tolerance=POINTS_TOLERANCE if is_points(sampler.image_shape) else kind.tolerance,
        remake=make,
        micro_batch=sampler.micro_batch,
        load_seconds=time.perf_counter() - start,
        trusted=True,
        train_seeds=tuple(range(members)) if several else (),
    )


def of_each_train_seed(spec: RunSpec, model: OpenModel) -> list[RunSpec]:
    """The spec of each network, where the model stands for several that were trained alike; else none."""
    options = [{**spec.sampler.options, TRAIN_SEED: seed} for seed in model.train_seeds]
    samplers = [spec.sampler.model_copy(update={"options": each}) for each in options]
    return [spec.model_copy(update={"sampler": sampler}) for sampler in samplers]


def check_device(device: str) -> None:
    """Raises UsageError where no number can be computed on a device."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]} Use --device cpu.") from error


def of_train_seed(weights: Weights, index: int) -> Weights:
    """The network that was trained from seed `index`, of those that these weights hold together.

    Raises:
        UsageError: There are not so many.
    """
    count = mlp.members(weights.config)
    if index >= count:
        raise UsageError(f"{weights.source}: {TRAIN_SEED}={index}; there are the training seeds 0..{count - 1}.")
    if count == 1:
        # Networks of images among them, whose tensors have no axis of members.
        return weights
    config = mlp.single(weights.config)
    if weights.tensors is None:
        return untrained(config, weights.seed)
    return make_weights(mlp.member(weights.tensors, index), config, f"{weights.source}, training seed {index}")


def _exact(config: Mapping[str, Any], dataset: Dataset) -> Weights:
    """No weights: the mixture of a data set, in the units and with the chain of the networks that were trained on it.

    Raises:
        UsageError: The distribution of the data set is not known in closed form.
    """
    if dataset.mixture is None:
        raise UsageError(f"exact: the distribution of {dataset.name} is not known in closed form. Use gaussians25.")
    chain = {key: value for key, value in config.items() if key not in mlp.PARTS}
    scale = float(config.get("scale", dataset.scale))
    mixture = {"centres": (dataset.mixture.centres / scale).tolist(), "sigma": dataset.mixture.sigma / scale}
    return make_weights({}, {**chain, "scale": scale, "mixture": mixture}, f"exact, {dataset.name}")


def _weights(kind: SamplerKind, run: RunSpec) -> tuple[Weights, Path | None]:
    """Weights from the path that the user gave, or of the baseline, with the folder of its finished shards."""
    spec = run.sampler
    if spec.weights:
        return kind.load(Path(spec.weights).expanduser()), None
    if kind.baseline is None:
        raise WeightsError(f"no weights of {kind.name} ship. Name a file or folder: {kind.name}@PATH.")
    card, folder = load_card(_baseline(kind, kind.baseline, run))
    path = folder / card.weights
    if not path.is_file():
        raise WeightsError(f"{path}: no such file, though the card names it. Install the package again.")
    found = file_sha256(path)
    if found != card.weights_digest:
        raise WeightsError(
            f"{path}: SHA-256 begins {found[:12]}..., the card says {card.weights_digest[:12]}.... "
            "Install the package again, or name your own weights as "
            f"{kind.name}@{card.weights}."
        )
    weights = kind.load(path)
    samples = folder / "samples"
    if spec.kind == "untrained":
        weights = untrained(weights.config)
    elif spec.kind == "exact":
        return _exact(weights.config, registry.get("dataset", run.protocol.dataset)), None
    return weights, samples if samples.is_dir() else None


def _baseline(kind: SamplerKind, baseline: str, run: RunSpec) -> str:
    """Name of the baseline for this data set and these options; one's own images have the one of CIFAR-10.

    Raises:
        WeightsError: There is none.
    """
    options, dataset = run.sampler.options, run.protocol.dataset
    found = find_card(baseline, dataset, options)
    if found is None and not is_points(run.protocol.image_shape) and dataset not in registry.names("dataset"):
        found = find_card(baseline, "cifar10", options)
    if found is None:
        raise WeightsError(
            f"{kind.name} has no baseline for {dataset}. Train one (`trilemma-bench train {baseline} --dataset "
            f"{dataset}`) and name its weights: {kind.name}@PATH."
        )
    chosen = {key: value for key, value in options.items() if key in _weights_options(kind) and key != TRAIN_SEED}
    if not chosen.items() <= found.options.items():
        raise WeightsError(f"{kind.name} has no weights for {chosen} on {dataset}. Leave out one of these options.")
    return found.name


# --- weights of other programs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """What `import_weights` wrote: `digest` is over content, the same for the file that it was read from."""

    path: Path
    digest: str
    parameters: int
    image_shape: Shape


def import_weights(name: str, source: Path, out: Path) -> Imported:
    """Read official weights as data, build their network once, and write them as `.safetensors` with configuration.

    Args:
        name: The sampler that they belong to.
        source: File or folder in any format that `name@source` takes.
        out: The file to write; never written over.

    Raises:
        UsageError: No such sampler, or a file that is there already.
        WeightsError: Weights that are missing, unsafe, or of another network.
    """
    from safetensors.torch import save

    from trilemma_bench.store import write_atomic

    kind: SamplerKind = registry.get("sampler", name)
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: must end in .safetensors.")
    if out.exists():
        raise UsageError(f"--out {out}: is there already. Name another file, or delete it.")
    with _configuration_of(name, str(source)):
        weights = kind.load(source.expanduser())
        sampler = kind.build(kind.options(), weights, micro_batch=1)
    assert weights.tensors is not None
    tensors = {key: tensor.contiguous() for key, tensor in weights.tensors.items()}
    header = {"config": json.dumps(dict(weights.config)), "source": Path(weights.source).name}
    write_atomic(out, save(tensors, header))
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return Imported(out, weights.digest, parameters, sampler.image_shape)  # type: ignore[attr-defined]


# --- samplers of other people -----------------------------------------------------------------------------


def _open_external(spec: RunSpec, start: float) -> OpenModel:
    factory = find_attribute(spec.sampler.name, registry.names("sampler"))
    if not callable(factory):
        raise UsageError(f"{spec.sampler.name} is {type(factory).__name__}; a factory without arguments is needed.")
    if spec.compile or spec.dtype != "float32":
        raise UsageError(
            f"{spec.sampler.name}: --dtype and --compile are for built-in samplers; how its networks compute is "
            "for its factory to say. Leave them out."
        )
    try:
        sampler = factory()
    except TrilemmaError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{spec.sampler.name}: calling it failed: {type(error).__name__}: {error}.") from error
    return adopt(sampler, spec.sampler.name, start=start, batch_size=spec.batch_size)


def adopt(sampler: Any, label: str, *, start: float | None = None, batch_size: int | None = None) -> OpenModel:
    """Take in anybody's sampler: an object with `name`, `image_shape` and `sample(seeds)`.

    Its key is its `identity` where it has one; else the digest of its source file and of the weights of the networks
    that it names, and cached images are spot-checked in each run, since the key may not see all.

    Raises:
        UsageError: A member is missing, or of the wrong type.
    """
    for member in ("name", "image_shape", "sample"):
        if not hasattr(sampler, member):
            raise UsageError(
                f"{label}: {type(sampler).__name__} has no `{member}`. A sampler needs `name`, `image_shape` "
                "(C, H, W) and `sample(seeds)` -> uint8 [N, C, H, W]; for points (D,) and float64 [N, D]."
            )
    shape = _whole_numbers(sampler.image_shape)
    if not is_points(shape) and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise UsageError(
            f"{label}: image_shape must be (C, H, W) with C = 1 or 3, or (D,) for points; got {sampler.image_shape}."
        )
    own = getattr(sampler, "micro_batch", None)
    (micro_batch,) = _whole_numbers((batch_size or own or 100,)) or (0,)
    if micro_batch < 1:
        raise UsageError(f"{label}: micro_batch must be a whole number of images, at least 1; got {own!r}.")
    identity = getattr(sampler, "identity", None)
    key = digest(
        {
            "sampler": f"{type(sampler).__module__}.{type(sampler).__qualname__}", "name": str(sampler.name),
            "identity": str(identity) if identity is not None else _own_identity(sampler),
            "micro_batch": micro_batch,
        }
    )  # fmt: skip
    return OpenModel(
        sampler=sampler, image_shape=shape, family="external", samples_key=key, weights=None, shipped=None,
        tolerance=_own_tolerance(sampler, label, shape), remake=lambda _: sampler, micro_batch=micro_batch,
        load_seconds=time.perf_counter() - start if start is not None else 0.0, trusted=identity is not None,
    )  # fmt: skip


def _whole_numbers(values: Any) -> tuple[int, ...]:
    """The values as whole numbers; none where one of them is something else."""
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        return ()


def _own_tolerance(sampler: Any, label: str, shape: Shape) -> tuple[float, float]:
    """What anybody's sampler says of its last bits; else images are exact, and points to `POINTS_TOLERANCE`."""
    given = getattr(sampler, "tolerance", POINTS_TOLERANCE if is_points(shape) else EXACT)
    try:
        largest, differing = (float(value) for value in given)
    except (TypeError, ValueError):
        largest = differing = -1.0
    if not (0 <= largest < math.inf and 0 <= differing <= 1):
        raise UsageError(
            f"{label}: tolerance must be (largest difference, fraction of values that may differ at all), such as "
            f"(2, 0.002); got {given!r}."
        )
    return largest, differing


def _own_identity(sampler: Any) -> str:
    """Digest of what can be seen of a sampler without an `identity`: its source file and its networks."""
    parts = []
    with suppress(OSError, TypeError):
        source = inspect.getsourcefile(type(sampler))
        if source:
            parts.append(hashlib.sha256(Path(source).read_bytes()).hexdigest())
    networks = getattr(sampler, "networks", None) or {}
    if not isinstance(networks, Mapping):
        raise UsageError(
            f"the sampler's `networks` must be a mapping of names to modules; got {type(networks).__name__}."
        )
    for name, network in sorted(networks.items()):
        if not isinstance(network, torch.nn.Module):
            raise UsageError(f"the sampler's network {name!r} must be a torch module; got {type(network).__name__}.")
        parts.append(weights_digest(network.state_dict(), {"network": name}))
    return digest(parts)


def find_attribute(name: str, known: Sequence[str]) -> Any:
    """What `package.module:attribute` names; modules of the current folder are found as well.

    Args:
        name: As the user wrote it.
        known: What else could have been named, for the error.

    Raises:
        UsageError: No such module or attribute, or a module that cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{name}: importing {module_name} failed: {error}.") from error
        raise UsageError(
            f"{name}: no model and no module named {module_name!r}. There are {', '.join(known)}; modules are looked "
            f"up on the Python path and in {here}."
        ) from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{name}: importing {module_name} failed: {type(error).__name__}: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{name}: {module_name} has no {attribute!r}. Name what stands in it.")
        found = getattr(found, part)
    return found
