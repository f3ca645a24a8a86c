"""The paper's protocol: other programs' statistics, and the self-test against published constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_world import make_world

from trilemma_bench import cli, registry, selftest
from trilemma_bench.errors import StoreError, UsageError
from trilemma_bench.kinds import Extractor
from trilemma_bench.metrics import frechet_distance, precision_recall
from trilemma_bench.models import parse_model
from trilemma_bench.reference import import_statistics
from trilemma_bench.run import Settings, _with_statistics, find_data, run_spec
from trilemma_bench.spec import load_protocol


class FakeExtractor:
    name, identity, verified, batch_size = "inception_v3_tf", "f" * 64, True, 4


FAKE: Extractor = FakeExtractor()  # type: ignore[assignment]


def statistics(path: Path, names: tuple[str, str] = ("mu", "sigma"), **more: Any) -> tuple[Path, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(200, 6))
    np.savez(path, **{names[0]: x.mean(0), names[1]: np.cov(x.T)}, **more)
    return path, x


@pytest.mark.parametrize("more", [{}, {"feats": np.zeros((3, 6))}, {"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}])
def test_statistics_of_other_programs_give_the_distance_to_them(more: dict[str, Any], tmp_path: Path) -> None:
    """pytorch-fid's and EDM's files, clean-fid's with features for KID beside, and ADM's with images beside."""
    path, x = statistics(tmp_path / "stats.npz", **more)
    found = import_statistics(path, FAKE)
    y = np.random.default_rng(1).normal(size=(300, 6)) + 0.3
    expected = frechet_distance.frechet_distance(
        real=frechet_distance.moments(x), generated=frechet_distance.moments(y)
    )
    scores = frechet_distance.compute(real=found, generated={"features": y}, rng=np.random.default_rng(0))
    assert scores["fid"].value == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="real features"):
        precision_recall.compute(real=found, generated={"features": y}, rng=np.random.default_rng(0))


def test_stylegans_sums_are_brought_to_the_same_divisor(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(200, 6)) + 2
    np.savez(tmp_path / "stats.npz", raw_mean=x.sum(0), raw_cov=x.T @ x, num_items=len(x), num_features=6)
    found = import_statistics(tmp_path / "stats.npz", FAKE).moments
    assert found.n == 200
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(x.T), atol=1e-12)
    np.savez(tmp_path / "none.npz", raw_mean=x.sum(0), raw_cov=x.T @ x, num_items=0)
    with pytest.raises(StoreError, match="num_items is 0"):
        import_statistics(tmp_path / "none.npz", FAKE)


def test_a_batch_of_images_alone_is_sent_to_where_images_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(StoreError, match="give the file after --dataset"):
        import_statistics(tmp_path / "batch.npz", FAKE)


def test_spatial_statistics_of_adms_batches_have_names_of_their_own(tmp_path: Path) -> None:
    path, _ = statistics(tmp_path / "batch.npz", ("mu_s", "sigma_s"), mu=np.zeros(2), sigma=np.eye(2))
    spatial: Any = FakeExtractor()
    spatial.name = "inception_v3_tf_spatial"
    assert import_statistics(path, spatial).moments.mean.shape == (6,)
    assert import_statistics(path, FAKE).moments.mean.shape == (2,)


def test_other_statistics_have_another_identity(tmp_path: Path) -> None:
    one, _ = statistics(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", mu=np.zeros(6), sigma=np.eye(6))
    assert import_statistics(one, FAKE).identity != import_statistics(tmp_path / "b.npz", FAKE).identity


@pytest.mark.parametrize(("arrays", "message"), [
    ({"m": np.zeros(3), "s": np.eye(3)}, "holds m, s; statistics for inception_v3_tf have mu and sigma"),
    ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"expected \[D\], \[D, D\]"),
    ({"mu": np.zeros(3), "sigma": np.eye(3) * np.nan}, "not finite, or not symmetric"),
    ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [0.0, 1.0]])}, "not finite, or not symmetric"),
    ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative eigenvalue"),
    ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "not a readable npz"),
])  # fmt: skip
def test_files_that_are_no_statistics_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(StoreError, match=message):
        import_statistics(tmp_path / "x.npz", FAKE)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip"])
def test_broken_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(StoreError, match="not a readable npz"):
        import_statistics(tmp_path / "x.npz", FAKE)


def test_the_papers_protocol_names_its_networks() -> None:
    protocol = load_protocol("cifar10-paper-v1")
    pairs = {(item.metric, item.extractor, item.optional) for item in protocol.scores}
    assert protocol.num_generated == protocol.reference.num_features == 50_000
    assert {("frechet_distance", "inception_v3_tf", False), ("frechet_distance", "inception_v3_tf_spatial", False),
            ("precision_recall", "inception_v3_tf", False), ("precision_recall", "vgg16_torchvision", True),
            ("frechet_distance", "dinov2_vitl14", True)} <= pairs  # fmt: skip
    names = {}
    for metric, extractor, _ in pairs:
        for kind in registry.get("metric", metric).kinds(registry.get("extractor", extractor)):
            names[kind.name] = kind.label
    assert names["fid"] == "FID" and names["sfid"] == "sFID" and names["kid"] == "KID"
    assert {"recall_vgg16_torchvision", "recall_inception_v3_tf", "fd_dinov2_vitl14"} <= names.keys()


@pytest.mark.parametrize("dataset", ["cifar10", "image_folder"])
def test_clean_fids_modes_from_png_and_jpeg_are_six_columns_with_keys_of_their_own(dataset: str) -> None:
    protocol = load_protocol("cleanfid", dataset=dataset)
    kinds = [
        registry.get("metric", item.metric).kinds(registry.get("extractor", item.extractor))[0]
        for item in protocol.scores
    ]
    assert [kind.name for kind in kinds] == [
        "fid_clean", "fid_clean_jpeg75", "fid", "fid_jpeg75", "fid_legacy_pytorch", "fid_legacy_pytorch_jpeg75",
    ]  # fmt: skip
    assert len({kind.label for kind in kinds}) == len({protocol.score_key(item) for item in protocol.scores}) == 6


def test_ones_own_images_are_measured_as_the_paper_measures() -> None:
    own, paper = load_protocol("paper", dataset="image_folder"), load_protocol("cifar10-paper-v1")
    assert own.scores == paper.scores and own.reference == paper.reference and own.timing == paper.timing
    assert paper.reference.exact
    draws = {item.metric: item.params.get("draws") for item in paper.scores}
    assert draws["kernel_distance"] == draws["inception_score"] == "torch-fidelity"


def test_a_run_against_statistics_is_a_protocol_of_its_own(tmp_path: Path) -> None:
    path, _ = statistics(tmp_path / "a.npz")
    spec = run_spec(parse_model("real:split=test"), load_protocol("cifar10-paper-v1"))
    named = _with_statistics(spec, Settings(statistics=path)).protocol.name
    assert named.startswith("cifar10-paper-v1@statistics-")
    assert _with_statistics(spec, Settings()) == spec
    with pytest.raises(UsageError, match="no such file"):
        _with_statistics(spec, Settings(statistics=tmp_path / "none.npz"))


# --- the self-test

GOLDEN = """
[[expect]]
sampler = "real:split=test"
num_samples = 30
metric = "frechet_distance"
extractor = "identity"
score = "fd_identity"
value = {value}
within = 0.01
source = "tiny"
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    images, protocol = make_world(tmp_path)
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    return str(images), str(protocol)


def test_the_selftest_holds_where_the_constant_is_right_and_fails_where_it_is_not(
    world: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, protocol = world
    golden = tmp_path / "golden.toml"
    golden.write_text(GOLDEN.format(value=1.0))
    settings = Settings()
    (outcome,) = selftest.run(find_data(images, settings), protocol, settings, selftest.read_golden(golden))
    assert outcome.found is not None and not outcome.holds
    for value, code in ((outcome.found, 0), (outcome.found + 0.02, 1)):
        golden.write_text(GOLDEN.format(value=value))
        with pytest.raises(SystemExit) as left:
            cli.main(["selftest", "--protocol", protocol, "--dataset", images, "--golden", str(golden), "--quiet"])
        assert left.value.code == code
        assert ("DOES NOT HOLD" in capsys.readouterr().out) == bool(code)


def test_the_published_constants_ship() -> None:
    found = {item.score: (item.sampler, item.num_samples, item.value)
             for item in selftest.read_golden("cifar10-paper-v1")}  # fmt: skip
    assert found == {"fid": ("real:split=test", 10_000, 3.15), "is": ("real:split=train", 50_000, 11.24)}
    protocol = load_protocol("cifar10-paper-v1")
    for item in selftest.read_golden("cifar10-paper-v1"):
        (chosen,) = selftest._only(protocol, item).scores
        kinds = registry.get("metric", chosen.metric).kinds(registry.get("extractor", chosen.extractor))
        assert item.score in [kind.name for kind in kinds]


def test_the_selftest_without_weights_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRILEMMA_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        cli.main(["selftest", "--protocol", "paper", "--quiet", "--data-root", str(tmp_path)])
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err
