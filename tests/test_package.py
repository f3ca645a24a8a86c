"""What a user installs: the wheel carries what the command needs, and the command answers at once."""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from trilemma_bench import __version__, cards, registry
from trilemma_bench.spec import protocol_names

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = CHECKOUT / "trilemma_bench"
HEAVY = ("accelerate", "diffusers", "pandas", "scipy", "torch", "torchvision")
COMMAND = "import sys; from trilemma_bench.cli import main; main(sys.argv[1:])"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed; no setting of this project's reaches it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRILEMMA_", "PYTHON"))}
    found = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
    return found.stdout


def python(*arguments: str, cwd: Path) -> str:
    """This Python on the checkout, installed or not."""
    return run(sys.executable, *arguments, cwd=cwd, PYTHONPATH=str(CHECKOUT))


def files_below(folder: Path) -> dict[str, bytes]:
    """Path below `folder` -> content, without what Python leaves behind."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- quick ------------------------------------------------------------------------------------------------------


def test_help_takes_under_a_second(tmp_path: Path) -> None:
    """In CPU time, which other work on the machine hardly moves."""
    python("-c", COMMAND, "--help", cwd=tmp_path)  # fills the disk cache

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    taken = []
    for _ in range(3):
        start = seconds()
        python("-c", COMMAND, "--help", cwd=tmp_path)
        taken.append(seconds() - start)
    assert min(taken) < 1.0


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["train", "--help"], ["ls", "models"], ["ls", "protocols"]],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    report = f"print('\\nheavy:', *sorted(set({HEAVY}) & set(sys.modules)))"
    code = f"import atexit, sys; atexit.register(lambda: {report}); {COMMAND}"
    assert python("-c", code, *arguments, cwd=tmp_path).endswith("\nheavy:\n")


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "results",
        "ranking",
        "render",
        "record",
        "spec",
        "kinds",
        "registry",
        "cards",
        "stats",
        "store",
        "gate",
        "gate_text",
        "frontier",
        "sweep",
        "charts",
        "figures",
        "page",
        "report",
        "loggers",
    ],
)
def test_module_imports_without_torch(module: str, tmp_path: Path) -> None:
    """torch is made impossible to import, so that a late import would be found too."""
    code = f"import sys; sys.modules['torch'] = None; import trilemma_bench.{module}"
    python("-W", "error", "-c", code, cwd=tmp_path)


# --- the wheel --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, CHECKOUT, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel alone; what it depends on is borrowed from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", interpreter]
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-compile", wheel, cwd=folder)
    site = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path named in a .pth file has its own .pth files unread: an editable install of the checkout stays out of sight.
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return folder


def test_wheel_holds_the_files_of_the_checkout(wheel: Path) -> None:
    prefix = "trilemma_bench/"
    with zipfile.ZipFile(wheel) as archive:
        shipped = {
            name.removeprefix(prefix): archive.read(name) for name in archive.namelist() if name.startswith(prefix)
        }
    baselines = files_below(CHECKOUT / "baselines")
    expected = files_below(PACKAGE)
    for_checkouts = ("resume.safetensors", "modes.json", "modes.npz")  # what training and our own tests go on from
    expected |= {
        f"baselines/{name}": content
        for name, content in baselines.items()
        if "/" in name and not name.endswith(for_checkouts)
    }
    assert sorted(shipped) == sorted(expected)
    assert [name for name in shipped if shipped[name] != expected[name]] == []
    for wanted in (
        "protocols/cifar10-lite-v1.toml",
        "py.typed",
        *(f"baselines/{name}/card.toml" for name in cards.card_names()),
    ):
        assert wanted in shipped
    for reference in ("cifar10-efficientnet_lite0", "gaussians25-identity", "stackedmnist-mnist_classifier"):
        assert any(name.startswith(f"references/{reference}-") for name in shipped)
    assert cards.card_names()


def test_version_is_everywhere_the_same(wheel: Path, tmp_path: Path) -> None:
    name = f"trilemma_bench-{__version__}"
    with zipfile.ZipFile(wheel) as archive:
        assert f"\nVersion: {__version__}\n" in archive.read(f"{name}.dist-info/METADATA").decode()
    assert wheel.name == f"{name}-py3-none-any.whl"
    assert python("-c", COMMAND, "--version", cwd=tmp_path) == f"trilemma-bench {__version__}\n"
    assert re.findall(r"^## \[([\d.]+)\]", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == __version__


def test_installed_wheel_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    command = installed / "venv" / "bin" / "trilemma-bench"
    assert run(command, "ls", "models", cwd=tmp_path).split() == registry.names("sampler")
    assert run(command, "ls", "protocols", cwd=tmp_path).split() == protocol_names()


def test_installed_wheel_has_baselines_and_references_of_its_own(installed: Path, tmp_path: Path) -> None:
    code = """if True:
        from trilemma_bench import cards
        from trilemma_bench.reference import reference_path
        from trilemma_bench.spec import load_protocol
        print(cards.baselines_folder())
        print(reference_path(load_protocol("cifar10-lite-v1"), "efficientnet_lite0").resolve(strict=True))
        for name in cards.card_names():
            card, folder = cards.load_card(name)
            print((folder / card.weights).resolve(strict=True))
    """
    found = run(installed / "venv" / "bin" / "python", "-c", code, cwd=tmp_path).split()
    assert len(found) == 2 + len(cards.card_names())
    assert all(Path(path).is_relative_to(installed.resolve()) for path in found)


def test_editable_install_is_a_path_and_no_copy(tmp_path: Path) -> None:
    code = f"import os, hatchling.build as b; os.chdir({str(CHECKOUT)!r}); print(b.build_editable({str(tmp_path)!r}))"
    name = python("-c", code, cwd=tmp_path).split()[-1]
    with zipfile.ZipFile(tmp_path / name) as archive:
        (link,) = (item for item in archive.namelist() if ".dist-info/" not in item)
        assert archive.read(link).decode().split() == [str(CHECKOUT)]


# --- dependencies -----------------------------------------------------------------------------------------------


def test_what_is_imported_is_what_is_required() -> None:
    imported: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "trilemma_bench"}
    providers = metadata.packages_distributions()
    found = {_normal(providers.get(name, [name])[0]) for name in imported}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    required = _names(project["dependencies"])
    optional = {name for extra in OPTIONAL for name in _names(project["optional-dependencies"][extra])}
    assert found - optional - OPTIONAL_IMPORTS == required


OPTIONAL = ("plot",)
"""Extras that modules import late, and say so where they are missing."""
OPTIONAL_IMPORTS = {"lightning", "pytorch-lightning"}
"""What a user who gives its objects has already."""


def _names(lines: list[str]) -> set[str]:
    return {_normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
