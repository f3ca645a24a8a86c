"""Points: the data set of 25 Gaussians, files, and their way through a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trilemma_bench.data import gaussians25
from trilemma_bench.errors import DataError, ProtocolError
from trilemma_bench.images import fingerprint
from trilemma_bench.kinds import ImageSet
from trilemma_bench.points import ArrayPoints, open_points
from trilemma_bench.reference import load_reference, reference_path
from trilemma_bench.run import Settings, evaluate, find_data, find_protocol, run_spec, score_images
from trilemma_bench.spec import Protocol, SamplerSpec, load_protocol

# --- the data set -----------------------------------------------------------------------------------------


def test_points_are_the_mixture() -> None:
    points = gaussians25.draw(50_000, 0)
    modes = np.abs(points[:, None] - gaussians25.MIXTURE.centres).sum(2).argmin(1)
    offsets = (points - gaussians25.MIXTURE.centres[modes]) / gaussians25.MIXTURE.sigma
    counts = np.bincount(modes, minlength=25)
    assert ((counts - 2000) ** 2 / 2000).sum() < 51.2  # chi-squared, 24 degrees, 0.1 %
    assert np.abs(offsets.mean(0)).max() < 4 / np.sqrt(50_000)
    assert np.cov(offsets.T) == pytest.approx(np.eye(2), abs=0.03)
    # Normal, and not only of its variance: the fourth moment.
    assert (offsets**4).mean() == pytest.approx(3, abs=0.1)


def test_a_longer_draw_begins_with_the_shorter_one_and_seeds_differ() -> None:
    assert np.array_equal(gaussians25.draw(100, 4)[:40], gaussians25.draw(40, 4))
    assert not np.array_equal(gaussians25.draw(40, 4), gaussians25.draw(40, 5))


def test_splits_are_the_same_everywhere() -> None:
    """Golden digests: `fingerprint(open_split(...))` of this file with numpy 2.4, on a processor without AVX-512."""
    train, test = gaussians25.open_split("train"), gaussians25.open_split("test")
    assert isinstance(train, ImageSet)
    assert (len(train), len(test), train.shape) == (50_000, 10_000, (2,))
    assert np.array_equal(test.read(0, 2), GOLDEN)
    assert fingerprint(train) == "bbf169d550f725c1cedefb13eb62fbcb232d09bb177ecaf5742802b0d4337ed6"
    assert fingerprint(test) == "a4f57614a72ed3ad924cceba2de8e58df54ddafd1e9790a0f8494860c1ad3b26"


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_point_is_so_near_to_the_next_rounding_that_another_logarithm_moves_it(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bit of a coordinate is worth 1e-15 at most."""
    grid = gaussians25.RESOLUTION
    monkeypatch.setattr(gaussians25, "RESOLUTION", 2.0**-60)
    steps = gaussians25.draw(gaussians25.COUNTS[split], gaussians25.SEEDS[split]) / grid
    assert np.abs(steps - np.floor(steps) - 0.5).min() * grid > 1e-12


def test_the_reference_that_ships_is_of_these_points() -> None:
    protocol = load_protocol("gaussians25-v1")
    about = load_reference(reference_path(protocol, "identity")).about
    for split, key in (("train", "train"), ("test", "held_out")):
        assert about[key]["fingerprint"] == fingerprint(gaussians25.open_split(split))


GOLDEN = [[0.07145214080810547, 3.9472827911376953], [0.017859458923339844, -4.055707931518555]]


# --- files ------------------------------------------------------------------------------------------------

POINTS = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)


@pytest.mark.parametrize("kind", ["npy", "npz", "named.npz", "csv"])
def test_points_are_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"points.{kind}"
    if kind == "npy":
        np.save(path, POINTS)
    elif kind == "csv":
        np.savetxt(path, POINTS, delimiter=",")
    elif kind == "npz":
        np.savez(path, POINTS)
    else:
        np.savez(path, other=np.arange(3), points=POINTS)
    found = open_points(path)
    assert isinstance(found, ImageSet)
    assert found.read(3, 9) == pytest.approx(POINTS[3:9])
    assert found.read(0, 1).dtype == np.float64


def write(path: Path, array: object) -> Path:
    np.save(path, np.asarray(array), allow_pickle=True)
    return path


def test_files_that_hold_no_points_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "words.csv"
    text.write_text("one,two\n")
    several = tmp_path / "several.npz"
    np.savez(several, a=POINTS, b=POINTS)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04")
    cases = {
        tmp_path / "no.npy": "no such file",
        write(tmp_path / "images.npy", np.zeros((4, 3, 8, 8), np.uint8)): "expected floating-point points",
        write(tmp_path / "whole.npy", np.zeros((4, 2), np.int64)): "expected floating-point points",
        write(tmp_path / "none.npy", np.zeros((0, 2))): "expected floating-point points",
        write(tmp_path / "nan.npy", [[0.0, 1.0], [np.nan, 1.0]]): "1 of 2 points hold NaN or Inf, the first is row 1",
        write(tmp_path / "code.npy", np.array([{"a": 1}], object)): "cannot be read as points",
        text: "cannot be read as points",
        several: "Found a, b. Name it 'points'",
        broken: "cannot be read as points",
        tmp_path: "no such file",
    }
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            open_points(path)


def test_a_range_outside_the_points_is_refused() -> None:
    with pytest.raises(DataError, match=r"points 25\.\.31 asked for; there are 30"):
        ArrayPoints(POINTS, "p").read(25, 31)


def test_a_fingerprint_knows_no_order_and_every_point() -> None:
    moved = POINTS.copy()
    moved[4, 1] += 1e-3
    first, turned, other = (fingerprint(ArrayPoints(points, "p")) for points in (POINTS, POINTS[::-1], moved))
    assert first == turned
    assert first != other


# --- whole runs -------------------------------------------------------------------------------------------

COUNT = 500


def small(**changes: object) -> Protocol:
    """The protocol with a tenth of the reference."""
    found = load_protocol("lite", dataset="gaussians25")
    reference = found.reference.model_copy(update={"num_features": 500})
    return found.model_copy(update={"reference": reference, "num_generated": COUNT, **changes})


def test_the_protocol_is_the_default_of_its_data_set() -> None:
    assert load_protocol("lite", dataset="gaussians25").name == "gaussians25-v1"
    assert find_protocol("gaussians25-v1", find_data("gaussians25", Settings())).image_shape == (2,)


def test_a_file_of_points_is_scored_and_its_record_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npy", gaussians25.draw(COUNT + 100, 9))
    settings = Settings(cache=tmp_path / "cache", out=tmp_path / "out")
    spec = run_spec(SamplerSpec(name="mine.npy", kind="external"), small())
    record = score_images(path, spec, find_data("gaussians25", settings), settings)
    captured, w2 = record.score("modes_captured"), record.score("wasserstein_identity")
    assert captured is not None and captured.value == 25
    assert w2 is not None and w2.value is not None and w2.value < 3
    assert record.notes == ("500 of 600 points, chosen by seed 0",)
    assert json.loads(next((tmp_path / "out").rglob("*.json")).read_text())["model"] == "mine.npy"


def test_points_of_other_dimensions_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "space.npy", np.zeros((COUNT, 3)))
    spec = run_spec(SamplerSpec(name="space", kind="external"), small())
    with pytest.raises(ProtocolError, match=r"makes points of \[3\]; gaussians25-v1 needs points of \[2\]"):
        score_images(path, spec, find_data("gaussians25", Settings()), Settings(cache=tmp_path))


def test_too_few_points_are_called_points(tmp_path: Path) -> None:
    path = write(tmp_path / "few.npy", np.zeros((5, 2)))
    spec = run_spec(SamplerSpec(name="few", kind="external"), small())
    with pytest.raises(ProtocolError, match=rf"needs {COUNT} generated points; .*few.npy has 5. --num-samples 5"):
        score_images(path, spec, find_data("gaussians25", Settings()), Settings(cache=tmp_path))


class Mine:
    """Real points, as anybody's own sampler would make them: every seed its own generator."""

    name = "mine"
    image_shape = (2,)
    dtype = np.float64

    def sample(self, seeds: object) -> np.ndarray:
        drawn = [gaussians25.draw(1, int(seed))[0] for seed in seeds]  # type: ignore[attr-defined]
        return np.array(drawn, self.dtype)


def test_anybodys_sampler_of_points_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        'name = "gaussians25-tiny-v1"\ntitle = "tiny"\ndataset = "gaussians25"\nimage_shape = [2]\n'
        'num_generated = 300\n[reference]\nnum_features = 300\nsketch_dim = 2\n[[scores]]\nmetric = "mode_coverage"\n'
        'extractor = "identity"\n[timing]\nnum_images = 10\nwarmup = 0\nrepeats = 1\n'
    )
    made = [evaluate(Mine(), "gaussians25", str(path), cache=tmp_path) for _ in range(2)]
    quality = made[0].score("high_quality")
    assert quality is not None and quality.value is not None and quality.value > 0.95
    # The second run found the first one's points and made a handful again.
    assert made[1].provenance.store["cached"] >= 300
    assert made[1].provenance.store["made_again"]["agrees"]


def test_points_of_another_type_are_refused(tmp_path: Path) -> None:
    sampler = Mine()
    sampler.dtype = np.float32  # type: ignore[misc]
    with pytest.raises(ProtocolError, match=r"must return float64 \[100, 2\] \(N, D\); got float32"):
        evaluate(sampler, "gaussians25", cache=tmp_path, num_samples=100)
