"""Names to plug-ins: built-in modules by the names of their files, other packages' by their entry points.

A built-in plug-in is a module in the folder of its kind, and its file name is its registry name; modules that
begin with `_` are none. Other packages join through entry points (`trilemma_bench.samplers`, ...) whose name
is the registry name and whose object is the constant itself or a module that holds it. Listing imports no
plug-in.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata, resources
from typing import Any, NamedTuple

from trilemma_bench import kinds
from trilemma_bench.errors import UsageError, unknown_name


class Kind(NamedTuple):
    """Where the plug-ins of one kind live and what they must be."""

    folder: str
    constant: str
    entry_points: str
    type: type[Any]


KINDS: dict[str, Kind] = {
    "sampler": Kind("samplers", "SAMPLER", "trilemma_bench.samplers", kinds.SamplerKind),
    "dataset": Kind("data", "DATASET", "trilemma_bench.datasets", kinds.Dataset),
    "extractor": Kind("features", "EXTRACTOR", "trilemma_bench.extractors", kinds.ExtractorKind),
    "metric": Kind("metrics", "METRIC", "trilemma_bench.metrics", kinds.Metric),
    "trainer": Kind("training", "TRAINER", "trilemma_bench.trainers", kinds.TrainerKind),
}


def names(kind: str) -> list[str]:
    """Names of all plug-ins of a kind (`sampler`, `dataset`, `extractor`, `metric`, `trainer`), sorted.

    Raises:
        UsageError: No such kind, or two plug-ins with one name.
    """
    return sorted(_table(_kind(kind)))


def get(kind: str, name: str) -> Any:
    """The plug-in of that name; imports its module and no other.

    Raises:
        UsageError: No such kind or name, a name that two plug-ins claim, a module that cannot be imported or
            that does not hold what its kind asks for.
    """
    found = _kind(kind)
    table = _table(found)
    if name not in table:
        raise unknown_name(kind, name, table)
    return _load(kind, name, table[name])


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise unknown_name("kind of plug-in", kind, KINDS)
    return KINDS[kind]


@cache
def _builtin(folder: str) -> tuple[str, ...]:
    place = resources.files("trilemma_bench") / folder
    if not place.is_dir():
        return ()
    files = (item.name for item in place.iterdir())
    return tuple(sorted(file[:-3] for file in files if file.endswith(".py") and not file.startswith("_")))


def _table(kind: Kind) -> dict[str, str]:
    """Registry name -> `module` or `module:attribute`; nothing is imported."""
    table = {name: f"trilemma_bench.{kind.folder}.{name}" for name in _builtin(kind.folder)}
    for entry in metadata.entry_points(group=kind.entry_points):
        # The same distribution may be seen twice, as a checkout and as installed: one value is no clash.
        if table.setdefault(entry.name, entry.value) != entry.value:
            raise UsageError(
                f"two plug-ins are named {entry.name!r} ({kind.entry_points}): {table[entry.name]} and "
                f"{entry.value}. Rename or uninstall one of them."
            )
    return table


def _load(kind: str, name: str, value: str) -> Any:
    wanted = KINDS[kind]
    module_name, _, attribute = value.partition(":")
    try:
        plugin: Any = importlib.import_module(module_name.strip())
        for part in (attribute.strip() or wanted.constant).split("."):
            plugin = getattr(plugin, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the {kind} {name!r} ({value}) cannot be loaded: {error}.") from error
    if isinstance(plugin, type(importlib)):
        plugin = getattr(plugin, wanted.constant, None)
    if not isinstance(plugin, wanted.type):
        raise UsageError(
            f"the {kind} {name!r} ({value}) is a {type(plugin).__name__}; expected a "
            f"kinds.{wanted.type.__name__} in a constant {wanted.constant}."
        )
    if plugin.name != name:
        raise UsageError(f"the {kind} {name!r} ({value}) calls itself {plugin.name!r}. Give both one name.")
    return plugin
