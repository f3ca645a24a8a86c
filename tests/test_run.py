"""Whole runs, as a user has them: from the command line, killed and started again, with samplers of all kinds."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from small_world import make_world

import trilemma_bench
from trilemma_bench import speed
from trilemma_bench.cli import main
from trilemma_bench.errors import DataError, ProtocolError, UsageError
from trilemma_bench.images import fingerprint, open_images
from trilemma_bench.models import open_model, parse_model, parse_models
from trilemma_bench.ranking import rows
from trilemma_bench.record import ResultRecord
from trilemma_bench.run import Settings, evaluate_spec, find_data, find_protocol
from trilemma_bench.spec import RunSpec
from trilemma_bench.store import SampleShards, image_seeds

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def world(tmp_path, monkeypatch):
    yield from enter_world(tmp_path, monkeypatch, size=8)


@pytest.fixture(scope="session")
def references32(tmp_path_factory):
    """The reference of the larger images is slow to make (3072 features) and the same in every test."""
    return tmp_path_factory.mktemp("references")


@pytest.fixture
def world32(tmp_path, monkeypatch, references32):
    """Images of the size that the baselines make."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "references").symlink_to(references32)
    yield from enter_world(tmp_path, monkeypatch, size=32)


def enter_world(tmp_path, monkeypatch, size):
    images, protocol = make_world(tmp_path, size=size)
    if size == 32:
        # Its cost grows with the cube of the pixels.
        frechet = '[[scores]]\nmetric = "frechet_distance"\nextractor = "identity"\n'
        assert frechet in protocol.read_text()
        protocol.write_text(protocol.read_text().replace(frechet, ""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_plug_ins()
    yield tmp_path, images, protocol
    forget_plug_ins()


def forget_plug_ins():
    for name in ("blobs", "mine"):
        sys.modules.pop(name, None)


class Done(NamedTuple):
    stdout: str
    stderr: str


@pytest.fixture
def cli(capsys):
    """The command line in this process: cli(argument, ..., check=exit code)."""

    def call(*arguments, check):
        forget_plug_ins()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        done = Done(*capsys.readouterr())
        assert left.value.code == check, done.stdout + done.stderr
        return done

    return call


def run_arguments(images, protocol, models):
    return ["run", "--models", models, "--dataset", images, "--protocol", protocol]


def records(folder):
    return [ResultRecord.read(path) for path in sorted(Path(folder).glob("*/*.json"))]


def numbers(record):
    return {item.kind.name: item.score.model_dump() for item in record.scores}


def test_one_command_measures_models_and_real_images_and_writes_a_leaderboard(world32, cli):
    folder, images, protocol = world32
    models = "ddim:steps=3,untrained:ddgan,stylegan2,real:split=test"
    done = cli(*run_arguments(images, protocol, models), check=0)
    found = {record.model: record for record in records(folder / "results")}
    assert set(found) == {"ddim:steps=3", "untrained:ddgan", "stylegan2", "real:split=test"}
    assert {name: record.speed.nfe for name, record in found.items() if record.speed} == {
        "ddim:steps=3": 3, "untrained:ddgan": 4, "stylegan2": 1,
    }  # fmt: skip
    assert found["real:split=test"].speed is None
    for record in found.values():
        assert all(item.score.failure is None for item in record.scores)
    for name in ("leaderboard.md", "leaderboard.csv"):
        assert "untrained:ddgan" in (folder / "results" / name).read_text()
    assert "stylegan2" in done.stdout


def test_a_run_killed_at_random_moments_gives_the_same_scores(world, cli, monkeypatch):
    folder, images, protocol = world
    arguments = [*run_arguments(images, protocol, "blobs:make,blobs:Slow"), "--quiet"]
    monkeypatch.setenv("TRILEMMA_CACHE", str(folder / "cache-whole"))
    cli(*arguments, "--out", "whole", check=0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "BLOBS_DELAY": "0.2",
                   "TRILEMMA_CACHE": str(folder / "cache-killed")}  # fmt: skip
    command = [sys.executable, "-m", "trilemma_bench.cli", *map(str, arguments), "--out", "killed"]
    rng = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(rng.uniform(2.0, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setenv("TRILEMMA_CACHE", str(folder / "cache-killed"))
    cli(*arguments, "--out", "killed", check=0)
    whole, killed = records(folder / "whole"), records(folder / "killed")
    assert [numbers(record) for record in whole] == [numbers(record) for record in killed]
    assert [r.provenance.samples_digest for r in whole] == [r.provenance.samples_digest for r in killed]


def test_finished_work_is_not_repeated_and_more_samples_only_add(world, monkeypatch):
    folder, images, protocol = world
    log = folder / "log"
    monkeypatch.setenv("BLOBS_LOG", str(log))

    def drawn(**options):
        log.write_text("")
        record = trilemma_bench.evaluate("blobs:make", str(images), str(protocol), out=str(folder / "out"), **options)
        return {int(s) for s in log.read_text().split() if int(s) < 2**40}, record

    first, record = drawn()
    assert first == set(range(40))
    again, reused = drawn()
    # Of a finished record a handful too.
    assert len(again) == 4
    assert reused == record
    more, _ = drawn(num_samples=60)
    # Of the finished images a handful is made again, since this sampler states no identity.
    assert {seed for seed in more if seed >= 40} == set(range(40, 60))
    assert len({seed for seed in more if seed < 40}) == 4
    fresh, _ = drawn(fresh=True)
    assert fresh == set(range(40))


def test_retime_adds_a_timing_and_leaves_the_scores(world):
    folder, images, protocol = world
    first = trilemma_bench.evaluate("blobs:make", str(images), str(protocol), out="out")
    second = trilemma_bench.evaluate("blobs:make", str(images), str(protocol), out="out", retime=True)
    assert (len(first.speed.timings), len(second.speed.timings)) == (1, 2)
    assert numbers(first) == numbers(second)


def test_retime_fills_in_what_an_untimed_record_lacks(world):
    folder, images, protocol = world
    first = trilemma_bench.evaluate("blobs:make", str(images), str(protocol), out="out", timed=False)
    assert (first.speed.timings, first.speed.peak_memory_mib) == ((), None)
    second = trilemma_bench.evaluate("blobs:make", str(images), str(protocol), out="out", retime=True)
    third = trilemma_bench.evaluate("blobs:make", str(images), str(protocol), out="out", retime=True)
    assert len(second.speed.timings) == 1 and second.speed.peak_memory_mib > 0
    assert len(third.speed.timings) == 2 and third.speed.peak_memory_mib == second.speed.peak_memory_mib
    assert numbers(first) == numbers(third)


def test_a_record_that_is_timed_again_elsewhere_says_which_machine_was_timed(world, monkeypatch):
    folder, images, protocol = world
    first = trilemma_bench.evaluate("blobs:make", str(images), str(protocol), out="out")
    other = first.hardware.model_copy(update={"model": "another processor"})
    monkeypatch.setattr(speed, "hardware", lambda device, dtype: other)
    second = trilemma_bench.evaluate("blobs:make", str(images), str(protocol), out="out", retime=True)
    assert [timing.hardware for timing in second.speed.timings] == [None, other]
    assert second.hardware == first.hardware
    (frame,) = trilemma_bench.leaderboard([second]).to_dict("records")
    assert frame["hardware"] == "another processor"
    (table,) = rows([second]).tables
    assert {column.machine.model for column in table.columns if column.machine} == {"another processor"}


def test_the_same_seeds_give_the_same_record_from_python_and_from_the_command_line(world, cli):
    folder, images, protocol = world
    import blobs

    cli(*run_arguments(images, protocol, "blobs:make"), check=0)
    record = trilemma_bench.evaluate(blobs.Blobs(), str(images), str(protocol))
    assert numbers(record) == numbers(records(folder / "results")[0])
    frame = trilemma_bench.leaderboard([record])
    assert list(frame["model"]) == ["blobs"]


def test_a_model_that_breaks_is_a_record_that_says_so_and_the_others_go_on(world, cli):
    folder, images, protocol = world
    done = cli(*run_arguments(images, protocol, "blobs:Broken,blobs:make"), check=1)
    assert "out of luck" in done.stderr
    found = {record.model: record for record in records(folder / "results")}
    assert all(item.score.failure for item in found["blobs:Broken"].scores)
    assert all(item.score.value is not None for item in found["blobs"].scores)
    assert "out of luck" in (folder / "results" / "leaderboard.md").read_text()
    text = (
        (folder / "blobs.py").read_text().replace('raise RuntimeError("out of luck")', "return super().sample(seeds)")
    )
    (folder / "blobs.py").write_text(text)
    cli(*run_arguments(images, protocol, "blobs:Broken,blobs:make"), check=0)
    assert "out of luck" not in (folder / "results" / "leaderboard.md").read_text()


def test_samples_that_are_not_uint8_are_refused_with_what_was_found(world):
    folder, images, protocol = world
    with pytest.raises(ProtocolError, match=r"floats: .*uint8 \[10, 3, 8, 8\].*got float32"):
        trilemma_bench.evaluate("blobs:Floats", str(images), str(protocol))


def test_a_sampler_whose_images_depend_on_their_batch_is_told_so_on_its_first_run(world):
    folder, images, protocol = world
    (folder / "mine.py").write_text(
        "import torch\nfrom blobs import Blobs\nclass OneGenerator(Blobs):\n    name = 'one generator'\n"
        "    identity = 'fixed'\n    def sample(self, seeds):\n"
        "        generator = torch.Generator().manual_seed(int(seeds[0]))\n"
        "        return torch.randint(0, 255, (len(seeds), 3, 8, 8), generator=generator).byte()\n"
    )
    record = trilemma_bench.evaluate("mine:OneGenerator", str(images), str(protocol))
    assert any("does not depend on its seed alone: 4 made again" in note for note in record.notes)
    assert all(item.score.value is not None for item in record.scores)
    honest = trilemma_bench.evaluate("blobs:make", str(images), str(protocol))
    assert honest.provenance.store["made_again"]["agrees"] is True
    assert not any("seed alone" in note for note in honest.notes)


def test_an_unsteady_sampler_has_its_finished_images_set_aside(world):
    folder, images, protocol = world
    trilemma_bench.evaluate("blobs:Unsteady", str(images), str(protocol))
    record = trilemma_bench.evaluate("blobs:Unsteady", str(images), str(protocol))
    assert record.provenance.store["made_again"]["agrees"] is False
    assert record.provenance.store["generated"] == 40
    assert any("set aside" in note for note in record.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "ddpn"], "did you mean 'ddpm'"),
        (["--models", "ddim:step=5"], "did you mean 'steps'"),
        (["--models", "ddim:steps=0"], "steps"),
        (["--models", "ddgan@nowhere.pth"], "nowhere.pth: no such file"),
        (["--models", "stylegan2@."], ".: a folder, not a file"),
        (["--models", "nowhere:make"], "nowhere"),
        (["--models", "blobs:nothing"], "nothing"),
        (["--models", "ddgan", "--dtype", "float8"], "float8"),
        (["--models", "ddgan", "--device", "warp:0"], "warp"),
        (["--models", "ddgan", "--protocol", "heavy"], "heavy"),
        (["--models", "ddgan", "--dataset", "cifar11"], "did you mean 'cifar10'"),
        (["--models", "ddgan", "--dataset", "mnist"], "mnist has no protocol 'lite'"),
        (["--models", "ddgan", "--num-samples", "1"], "at least 2"),
        (["--models", "ddgan", "--seed", "9999999"], "seed = 9999999"),
    ],
)
def test_bad_input_exits_with_2_and_says_what_was_found(world, arguments, message, cli):
    folder, images, protocol = world
    done = cli("run", *arguments, check=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "results").exists()


def test_a_file_among_the_records_that_is_none_is_refused_before_anything_is_measured(world, cli):
    folder, images, protocol = world
    foreign = folder / "results" / "mine" / "notes.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"notes": 1}')
    done = cli(*run_arguments(images, protocol, "blobs:make"), check=2)
    assert str(Path("mine") / "notes.json") in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in (folder / "results").rglob("*.json")] == ["notes.json"]


def test_finished_images_are_scored_without_speed(world, cli):
    folder, images, protocol = world
    rng = np.random.default_rng(1)
    content = rng.integers(0, 255, (45, 8, 8, 3), np.uint8)
    np.savez(folder / "samples.npz", arr_0=content)
    cli("score", "samples.npz", "--dataset", images, "--protocol", protocol, check=0)
    (record,) = records(folder / "results")
    assert record.model == "samples.npz"
    assert record.speed is None
    assert record.notes == ("40 of 45 images, chosen by seed 0",)
    np.savez(folder / "few.npz", arr_0=content[:10])
    done = cli("score", "few.npz", "--dataset", images, "--protocol", protocol, check=2)
    assert "needs 40" in done.stderr
    assert "--num-samples 10" in done.stderr


def test_a_reference_is_made_for_any_data_and_serves_the_next_run(world, cli):
    folder, images, protocol = world
    done = cli("reference", "make", "--dataset", images, "--protocol", protocol, "--extractor", "identity", check=0)
    (made,) = (folder / "cache" / "references").iterdir()
    assert str(made) in done.stdout
    before = made.stat().st_mtime_ns
    cli(*run_arguments(images, protocol, "blobs:make"), check=0)
    assert made.stat().st_mtime_ns == before


def test_json_prints_records_and_nothing_else(world, cli):
    folder, images, protocol = world
    done = cli(*run_arguments(images, protocol, "blobs:make"), "--json", check=0)
    assert ResultRecord.model_validate(json.loads(done.stdout)[0]).model == "blobs"


def test_the_readmes_example_plug_in_runs(world32, cli):
    folder, images, protocol = world32
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- example: begin -->\n```python\n(.*?)```", text, re.DOTALL)
    (folder / "mine.py").write_text(block.group(1))
    cli(*run_arguments(images, protocol, "mine:make"), check=0)
    assert records(folder / "results")[0].model == "mine"


# --- shards that ship with a baseline -------------------------------------------------------------------------


def shipped_world(folder, images, protocol, *, change=0):
    """Draw with ddim, then hand the shards over as if they had come with the baseline."""
    settings = Settings(cache=folder / "cache")
    data = find_data(str(images), settings)
    spec = RunSpec(sampler=parse_model("ddim:steps=3"), protocol=find_protocol(str(protocol), data))
    record = evaluate_spec(spec, data, settings)
    model = open_model(spec)
    own = folder / "cache" / "samples" / model.samples_key[:2]
    (own).rename(folder / "shipped")
    if change:
        shards = SampleShards(folder / "none", model.samples_key, 0, model.micro_batch, folder / "shipped")
        shard, _ = shards.read(0)
        other = SampleShards(folder / "other", model.samples_key, 0, model.micro_batch)
        altered = shard.images.astype(np.int16) + change
        other.write(0, type(shard)(altered.clip(0, 255).astype(np.uint8), shard.seeds, shard.nfe))
        (folder / "shipped").rename(folder / "unused")
        (folder / "other" / "samples" / model.samples_key[:2]).rename(folder / "shipped")
    from dataclasses import replace

    again = evaluate_spec(spec, data, settings, model=replace(model, shipped=folder / "shipped"))
    return record, again


def test_shipped_samples_are_used_after_a_handful_was_made_again(world32):
    record, again = shipped_world(*world32)
    store = again.provenance.store
    assert (store["shipped"], store["generated"]) == (50, 0)
    assert store["made_again"]["agrees"] is True
    assert len(store["made_again"]["seeds"]) == 4
    assert numbers(record) == numbers(again)
    assert record.provenance.weights_source == "baselines/ddpm/weights.safetensors"


def test_altered_shipped_samples_are_set_aside_and_drawn_anew(world32):
    record, again = shipped_world(*world32, change=5)
    store = again.provenance.store
    assert (store["shipped"], store["generated"]) == (0, 50)
    assert store["made_again"]["agrees"] is False
    assert any("set aside" in note for note in again.notes)
    assert numbers(record) == numbers(again)


# --- names ------------------------------------------------------------------------------------------------------


def test_options_stay_with_their_model_in_a_list():
    found = parse_models("ddgan@a/b.pth,ddim:steps=20,eta=0.5,real:split=test,untrained:ddim:steps=3,my.module:make")
    assert [str(item) for item in found] == [
        "ddgan@a/b.pth", "ddim:steps=20,eta=0.5", "real:split=test", "untrained:ddim:steps=3", "my.module:make",
    ]  # fmt: skip


def test_a_model_named_twice_is_refused():
    with pytest.raises(UsageError, match="twice"):
        parse_models("ddgan,ddgan")


def test_seeds_of_different_runs_never_overlap():
    assert not set(image_seeds(0, 0, 1000)) & set(image_seeds(1, 0, 1000))
    assert torch.from_numpy(image_seeds(3, 5, 7)).tolist() == [3 * 2**32 + 5, 3 * 2**32 + 6]


# --- what one's own images are -------------------------------------------------------------------------------


def own_protocol(images: Path, name: str = "lite"):
    return find_protocol(name, find_data(str(images), Settings()))


def test_own_images_are_told_apart_by_their_held_out_images_too(world) -> None:
    """Else a reference that is in the cache would be used for other held-out images, and a record for it."""
    _, images, _ = world
    before = own_protocol(images)
    shutil.copytree(images, images.parent / "same")
    assert own_protocol(images.parent / "same").dataset == before.dataset
    first, second = sorted((images / "test").rglob("*.png"))[:2]
    shutil.copy(first, second)
    after = own_protocol(images)
    assert after.dataset != before.dataset and after.name != before.name
    shutil.rmtree(images / "test")
    (images / "train").rename(images.parent / "alone")
    alone = own_protocol(images.parent / "alone")
    assert alone.dataset == f"images-{fingerprint(open_images(images.parent / 'alone'))[:16]}"


def test_held_out_images_that_are_broken_are_no_missing_ones(world) -> None:
    _, images, _ = world
    first = sorted((images / "test").rglob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:40])
    with pytest.raises(DataError, match="cannot be decoded"):
        own_protocol(images)


def test_the_order_of_own_images_counts_where_features_are_kept_in_it(world) -> None:
    _, images, _ = world
    names = [own_protocol(images, each).dataset for each in ("lite", "paper")]
    first, second = sorted((images / "train").rglob("*.png"))[:2]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    assert own_protocol(images, "lite").dataset == names[0]
    assert own_protocol(images, "paper").dataset != names[1]


def test_a_record_of_jpeg_files_says_so(world, cli) -> None:
    folder, images, protocol = world
    (folder / "jpeg").mkdir()
    for path in sorted((images / "train").rglob("*.png"))[:40]:
        Image.open(path).save(folder / "jpeg" / f"{path.stem}.jpg")
    cli("score", "jpeg", "--dataset", images, "--protocol", protocol, check=0)
    (path,) = (folder / "results").rglob("*jpeg*.json")
    assert any("JPEG" in note for note in ResultRecord.read(path).notes)


# --- refused before anything is measured, or said at the end -------------------------------------------------


def test_a_model_of_which_no_score_could_be_computed_fails(world, cli) -> None:
    folder, images, protocol = world
    (folder / "mine.py").write_text(
        "import torch\n"
        "class NaN:\n"
        "    name, point_dimensions, preferred_batch = 'nan', 2, 32\n"
        "    image_shape = (2,)\n"
        "    def sample(self, seeds):\n"
        "        return torch.full((len(seeds), 2), float('nan'), dtype=torch.float64)\n"
    )
    done = cli("run", "--models", "mine:NaN", "--dataset", "gaussians25", "--num-samples", 60, "--quiet", check=1)
    assert "no score could be computed" in done.stderr or "NaN" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("score", "images/train", "--dataset", "images", "--device", "nowhere"), "--device nowhere"),
        (("score", "images/train", "--dataset", "images", "--device", "meta"), "--device meta"),
        (("score", "images/train", "--dataset", "images", "--statistics", "tiny.toml"), "on Inception's features"),
        (("score", "images/train", "--dataset", "images", "--protocol", "bytes.toml"), "cannot be read as text"),
        (("run", "--models", "ddgan@"), "nothing follows the @"),
        (("run", "--models", "blobs:make,real:split=foo", "--dataset", "images"), "no split 'foo'"),
        (("run", "--models", "blobs:make,real:split=test", "--dataset", "images", "--num-samples", 99999),
         "needs 99999 generated images"),
        (("run", "--models", "mine:make", "--dataset", "images", "--protocol", "tiny.toml"), "must be a mapping"),
        (("train", "ddpm", "--out", "tiny.toml", "--dataset", "gaussians25", "--recipe", "gaussians25-cpu"), "folder"),
        (("train", "ddpm", "--out", "o", "--dataset", "gaussians25", "--recipe", "gaussians25-cpu", "--kimg", "nan"),
         "--kimg nan: a number above 0"),
        (("train", "ddpm", "--out", "o", "--dataset", "gaussians25", "--recipe", "gaussians25-cpu", "--minutes", "-1"),
         "--minutes -1: a number above 0"),
        (("train", "ddpm", "--out", "o", "--dataset", "gaussians25", "--recipe", "gaussians25-cpu", "--device", "foo"),
         "--device foo"),
        (("train", "ddpm", "--out", "o", "--dataset", "gaussians25"), "another of its recipes: paper, cpu-small"),
    ],
)  # fmt: skip
def test_input_that_cannot_be_used_is_refused_in_one_message(world, cli, arguments, reason) -> None:
    folder, _, _ = world
    (folder / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    (folder / "mine.py").write_text(
        "from blobs import Blobs\nclass Listed(Blobs):\n    networks = [1]\ndef make(**_):\n    return Listed()\n"
    )
    done = cli(*arguments, check=2)
    assert reason in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_plug_in_that_leaves_the_program_leaves_the_others_to_be_measured(world, cli) -> None:
    folder, images, protocol = world
    (folder / "mine.py").write_text(
        "import sys\nfrom blobs import Blobs\ndef make():\n    sys.exit(0)\n"
        "class Leaving(Blobs):\n    def sample(self, seeds):\n        sys.exit(0)\n"
    )
    done = cli(*run_arguments(images, protocol, "mine:make"), check=2)
    assert "calling it failed: SystemExit" in done.stderr
    cli(*run_arguments(images, protocol, "mine:Leaving,blobs:make"), "--quiet", check=1)
    found = {record.model: record for record in records("results")}
    assert any(item.score.value is not None for item in found["blobs"].scores)
    assert any("SystemExit" in (item.score.failure or "") for item in found["mine:Leaving"].scores)


def test_a_record_of_a_plug_in_that_has_changed_is_made_anew(world, cli) -> None:
    """Its key does not see the file that it reads: images that are made again do."""
    folder, images, protocol = world
    (folder / "mine.py").write_text(
        "from pathlib import Path\nfrom blobs import Blobs\nclass Weighted(Blobs):\n    name = 'weighted'\n"
        "    def sample(self, seeds):\n        return super().sample(seeds) // int(Path('w.txt').read_text())\n"
    )
    found = []
    for weight in ("1", "1", "3"):
        (folder / "w.txt").write_text(weight)
        cli(*run_arguments(images, protocol, "mine:Weighted"), "--quiet", check=0)
        (record,) = records("results")
        found.append(record)
    assert found[0] == found[1]
    assert found[2].samples_key == found[0].samples_key and numbers(found[2]) != numbers(found[0])
    assert any("were set aside" in note for note in found[2].notes)


@pytest.mark.parametrize(
    ("changed", "out", "reason"),
    [
        (('metric = "kernel_distance"', 'metric = "kernel_distanc"'), "results", "did you mean 'kernel_distance'"),
        (("subsets = 5", "subset = 5"), "results", "parameter of kernel_distance"),
        (("[reference]", '[reference]\nsplit = "validation"'), "results", "validation"),
        (("", ""), "tiny.toml", "no folder can be made there"),
        (("", ""), "/proc/none", "no folder can be made there"),
    ],
)
def test_what_is_wrong_from_the_start_is_said_before_anything_is_drawn(
    world, cli, monkeypatch, changed, out, reason
) -> None:
    folder, images, protocol = world
    monkeypatch.setenv("BLOBS_LOG", str(folder / "log"))
    protocol.write_text(protocol.read_text().replace(*changed, 1))
    done = cli(*run_arguments(images, protocol, "blobs:make"), "--out", out, check=2)
    assert reason in done.stderr, done.stderr
    done = cli(*run_arguments(images, protocol, "blobs:make,untrained:ddpm"), check=2)
    assert not changed[0] or reason in done.stderr
    assert changed[0] or "untrained:ddpm makes images of [3, 32, 32]" in done.stderr
    assert not (folder / "log").exists()


def test_options_that_a_plug_in_would_not_see_are_refused(world, cli) -> None:
    _, images, protocol = world
    for option in (("--dtype", "bfloat16"), ("--compile",)):
        done = cli(*run_arguments(images, protocol, "blobs:make"), *option, check=2)
        assert "are for built-in samplers" in done.stderr


def test_an_interrupted_command_says_that_it_goes_on(monkeypatch, capsys) -> None:
    for end in (130, KeyboardInterrupt()):

        def stopped(end=end, **_):
            if isinstance(end, BaseException):
                raise end
            return end

        monkeypatch.setattr("trilemma_bench.cli.app", stopped)
        with pytest.raises(SystemExit) as left:
            main(["ls"])
        assert left.value.code == 130
        assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"
