"""Each fork of the protocol against the same thing done by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from small_world import make_world

from trilemma_bench import cli, registry
from trilemma_bench.explain import Explanation, Fork, explain, moves, to_markdown
from trilemma_bench.metrics import frechet_distance as fd
from trilemma_bench.models import parse_model
from trilemma_bench.run import Settings, find_data, find_protocol, images_of, run_spec


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def case(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Explanation, np.ndarray, Any]:
    """The forks of the test split as 'samples', those samples, and the data."""
    images, protocol = world
    settings = Settings(cache=tmp_path_factory.mktemp("cache"))
    data = find_data(str(images), settings)
    spec = run_spec(parse_model("real:split=test"), find_protocol(str(protocol), data))
    return explain(spec, data, settings), images_of(spec, data, settings)[1], data


def fork(case: tuple[Explanation, np.ndarray, Any], part: str, score: str = "fd_identity") -> Fork:
    (found,) = [each for each in case[0].forks if part in each.what and each.score == score]
    return found


def pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


def split(case: tuple[Explanation, np.ndarray, Any], name: str) -> np.ndarray:
    found = case[2].open(name)
    return pixels(found.read(0, len(found)))


def distance(real: np.ndarray, generated: np.ndarray) -> float:
    return fd.frechet_distance(real=fd.moments(real), generated=fd.moments(generated))


def test_the_protocols_own_value_comes_first_and_moves_nothing(case: tuple[Explanation, np.ndarray, Any]) -> None:
    own = case[0].forks[0]
    assert (own.what, own.moved) == ("", 0.0)
    assert own.value == pytest.approx(distance(split(case, "train"), pixels(case[1])), rel=1e-4)
    assert {each.score for each in case[0].forks} == {"fd_identity", "precision_identity", "recall_identity"}


@pytest.mark.parametrize("quality", [75, 90])
def test_jpeg_is_what_pillow_makes_of_the_samples(quality: int, case: tuple[Explanation, np.ndarray, Any]) -> None:
    again = []
    for image in case[1]:
        stream = io.BytesIO()
        PIL.Image.fromarray(image.transpose(1, 2, 0)).save(stream, "JPEG", quality=quality)
        again.append(np.asarray(PIL.Image.open(stream)).transpose(2, 0, 1))
    found = fork(case, f"JPEG {quality}")
    assert found.value == pytest.approx(distance(split(case, "train"), pixels(np.stack(again))), rel=1e-4)
    assert found.moved == pytest.approx(found.value - case[0].forks[0].value)


def test_fewer_samples_raise_the_distance(case: tuple[Explanation, np.ndarray, Any]) -> None:
    found = fork(case, "8 of the 40 samples")
    assert found.value == pytest.approx(distance(split(case, "train"), pixels(case[1][:8])), rel=1e-4)
    assert found.moved is not None and found.moved > 0


def test_the_other_split_is_the_other_reference(case: tuple[Explanation, np.ndarray, Any]) -> None:
    """The samples are 40 of the 50 images of that split: they come nearer."""
    found = fork(case, "test split")
    assert found.value == pytest.approx(distance(split(case, "test"), pixels(case[1])), rel=1e-3)
    assert found.moved is not None and found.moved < 0


def test_covariances_over_n_are_smaller_by_a_share_of_one_n(case: tuple[Explanation, np.ndarray, Any]) -> None:
    real, generated = (fd.moments(each) for each in (split(case, "train"), pixels(case[1])))
    by_hand = fd.frechet_distance(
        real=type(real)(real.n, real.mean, np.cov(split(case, "train").T, bias=True)),
        generated=type(real)(generated.n, generated.mean, np.cov(pixels(case[1]).T, bias=True)),
    )
    assert fork(case, "over N").value == pytest.approx(by_hand, rel=1e-4)


def test_a_larger_k_covers_more(case: tuple[Explanation, np.ndarray, Any]) -> None:
    for score in ("precision_identity", "recall_identity"):
        moved = fork(case, "k = 5", score).moved
        assert moved is not None and moved >= 0


def test_what_a_fork_lacks_is_said_in_its_place(world: tuple[Path, Path], tmp_path: Path) -> None:
    images, protocol = world
    alone = tmp_path / "train"
    alone.mkdir()
    for path in (images / "train").rglob("*.png"):
        (alone / path.name).write_bytes(path.read_bytes())
    settings = Settings(cache=tmp_path / "cache")
    data = find_data(str(alone), settings)
    spec = run_spec(parse_model("real:split=train"), find_protocol(str(protocol), data))
    found = explain(spec, data, settings)
    (missing,) = [each for each in found.forks if "test split" in each.what]
    assert (missing.value, missing.moved) == (None, None) and missing.why
    assert "not measured" in to_markdown(found)
    assert all("test split" not in what for bars in moves(found).values() for what, _ in bars)


def test_the_table_has_the_largest_move_first() -> None:
    forks = (Fork("s", "S", "", 10.0, 0.0, ""), Fork("s", "S", "small", 10.1, 0.1, "w"),
             Fork("s", "S", "none", None, None, "no data"), Fork("s", "S", "large", 8.0, -2.0, "w"))  # fmt: skip
    lines = to_markdown(Explanation("m", "p", 5, forks)).splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert rows == ["large", "small", "none"]


def test_the_command_writes_a_table_and_figures(
    world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    images, protocol = world
    with pytest.raises(SystemExit) as left:
        cli.main(["explain", "real:split=test", "--dataset", str(images), "--protocol", str(protocol), "--quiet",
                  "--out", str(tmp_path / "out")])  # fmt: skip
    assert left.value.code == 0
    written = sorted(path.name for path in (tmp_path / "out").rglob("explain-*"))
    assert "explain-real_split_test.md" in written
    assert sum(name.endswith(".svg") for name in written) == sum(name.endswith(".png") for name in written) == 3
    assert "wrote" in capsys.readouterr().out


def test_class_scores_have_their_forks(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an extractor that has logits: the splits are those of the metric."""
    from trilemma_bench.features import identity
    from trilemma_bench.metrics.inception_score import inception_score

    kind = registry.get("extractor", "identity")
    monkeypatch.setattr(
        identity, "EXTRACTOR", kind.__class__(kind.name, ("features", "logits"), kind.build, kind.available)
    )
    plain = identity.Identity.extract

    def extract(self: Any, images: Any) -> Any:
        found = plain(self, images)
        return {**found, "logits": found["features"][:, :12] * 5}

    monkeypatch.setattr(identity.Identity, "extract", extract)
    monkeypatch.setattr(identity.Identity, "identity", "with logits")
    images, protocol = world
    settings = Settings(cache=tmp_path / "cache")
    data = find_data(str(images), settings)
    spec = run_spec(parse_model("real:split=test"), find_protocol(str(protocol), data))
    found = explain(spec, data, settings)
    logits = extract(identity.Identity(), images_of(spec, data, settings)[1])["logits"]
    (one,) = [each for each in found.forks if "one split" in each.what]
    assert one.value == pytest.approx(float(inception_score(generated=logits, splits=1)[0]), rel=1e-5)
    (many,) = [each for each in found.forks if "20 splits" in each.what]
    assert many.value is not None and one.value is not None and many.value < one.value
