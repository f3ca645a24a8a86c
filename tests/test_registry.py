from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from trilemma_bench import kinds, registry
from trilemma_bench.errors import UsageError

PLUGIN = """
from trilemma_bench.kinds import Dataset
DATASET = Dataset(name="{name}", shape=(1, 2, 2), splits=("train",), open=lambda split, root=None: None)
"""


def entry_points(
    monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str], group: str = "trilemma_bench.datasets"
) -> None:
    points = [metadata.EntryPoint(name=name, value=value, group=group) for name, value in entries]
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: [item for item in points if item.group == group])


def add_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, text: str) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("dataset", "cifar10"), ("dataset", "mnist"), ("extractor", "identity"), ("extractor", "efficientnet_lite0")],
)
def test_built_in_plugins_are_found_by_the_names_of_their_files(kind: str, name: str) -> None:
    assert name in registry.names(kind)
    plugin = registry.get(kind, name)
    assert plugin.name == name
    assert isinstance(plugin, registry.KINDS[kind].type)


def test_modules_with_an_underscore_are_no_plugins() -> None:
    for kind in registry.KINDS:
        assert not [name for name in registry.names(kind) if name.startswith("_")]


def test_listing_imports_no_plugin_and_no_torch() -> None:
    code = (
        "import sys; from trilemma_bench import registry; [registry.names(kind) for kind in registry.KINDS]; "
        "bad = [name for name in sys.modules if name == 'torch' or name.startswith('trilemma_bench.features')]; "
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no dataset named 'cifar1O'; did you mean 'cifar10'"):
        registry.get("dataset", "cifar1O")


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="no kind of plug-in named 'metrics'; did you mean 'metric'"):
        registry.names("metrics")


@pytest.mark.parametrize("value", ["my_data", "my_data:DATASET"])
def test_other_packages_join_by_entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    add_module(monkeypatch, tmp_path, "my_data", PLUGIN.format(name="mine"))
    entry_points(monkeypatch, ("mine", value))
    assert "mine" in registry.names("dataset")
    assert "my_data" not in sys.modules
    assert isinstance(registry.get("dataset", "mine"), kinds.Dataset)


def test_entry_point_to_a_function_that_returns_no_plugin_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_module(monkeypatch, tmp_path, "my_broken", "DATASET = 5")
    entry_points(monkeypatch, ("mine", "my_broken"))
    with pytest.raises(UsageError, match=r"'mine' \(my_broken\) is a int; expected a kinds.Dataset"):
        registry.get("dataset", "mine")


@pytest.mark.parametrize(
    "entries", [[("cifar10", "other")], [("mine", "one"), ("mine", "two")]], ids=["built-in", "two packages"]
)
def test_a_clash_is_an_error(monkeypatch: pytest.MonkeyPatch, entries: list[tuple[str, str]]) -> None:
    entry_points(monkeypatch, *entries)
    with pytest.raises(UsageError, match="two plug-ins are named"):
        registry.names("dataset")


def test_one_distribution_seen_twice_is_no_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, ("mine", "one"), ("mine", "one"))
    assert "mine" in registry.names("dataset")


def test_plugin_under_another_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_module(monkeypatch, tmp_path, "my_other", PLUGIN.format(name="other"))
    entry_points(monkeypatch, ("mine", "my_other"))
    with pytest.raises(UsageError, match="calls itself 'other'"):
        registry.get("dataset", "mine")


def test_module_that_fails_to_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, ("mine", "no_such_module_here"))
    with pytest.raises(UsageError, match="'mine' .*cannot be loaded: No module named 'no_such_module_here'"):
        registry.get("dataset", "mine")


def test_every_kind_names_its_folder_constant_and_class() -> None:
    for kind in registry.KINDS.values():
        assert isinstance(kind.type, type)
        assert kind.entry_points.startswith("trilemma_bench.")
