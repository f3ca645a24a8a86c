"""Measuring while training: when, on what, and where it is told; each logger on its own local store."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranking_cases import record, speed
from small_world import make_world

import trilemma_bench
from trilemma_bench import loggers
from trilemma_bench.errors import UsageError
from trilemma_bench.monitor import Metrics, pipeline_sample
from trilemma_bench.record import Score
from trilemma_bench.run import Settings

RECORD = record("a", 10.0, recall=0.5, found_speed=speed(2.0))


def sample(seeds: torch.Tensor) -> torch.Tensor:
    coarse = [np.random.default_rng(int(seed)).normal(120, 40, (3, 4, 4)) for seed in seeds]
    return torch.from_numpy(np.stack(coarse).clip(0, 255).astype(np.uint8).repeat(2, 2).repeat(2, 3))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("monitor")
    images, protocol = make_world(folder, count=40)
    settings = Settings(cache=folder / "cache")
    return {"dataset": str(images), "protocol": str(protocol), "image_shape": (3, 8, 8), "settings": settings}


def test_metrics_measure_when_due_and_tell_every_logger(world: dict[str, Any]) -> None:
    told: list[tuple[int, float]] = []
    network = torch.nn.Dropout()
    seen = []

    def watched(seeds: torch.Tensor) -> torch.Tensor:
        seen.append(network.training)
        return sample(seeds)

    metrics = Metrics(
        every=10, networks={"net": network}, **world,
        loggers=[lambda found, step: told.append((step, loggers.scalars(found)["quality/fd_identity"]))],
    )  # fmt: skip
    for step in range(21):
        metrics(step, watched)
    assert [step for step, _ in told] == [10, 20] == list(metrics.records)
    # The same images at both steps.
    assert told[0][1] == told[1][1] > 0
    assert seen and not any(seen) and network.training


def test_a_later_step_is_measured_anew_though_its_name_is_the_same(world: dict[str, Any]) -> None:
    first, other = Metrics(**world), Metrics(**world)
    a = first(1, sample)
    b = other(1, lambda seeds: 255 - sample(seeds))
    assert a is not None and b is not None
    assert a.provenance.samples_digest != b.provenance.samples_digest
    assert not (world["settings"].cache / "samples").exists()


def test_every_must_be_a_number_of_steps() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Metrics(every=0)


def test_lightning_is_asked_for_only_where_it_is_used(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Callback:
        pass

    import sys

    monkeypatch.setitem(sys.modules, "lightning", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lightning.pytorch", SimpleNamespace(Callback=Callback))
    metrics = Metrics(every=2, **world)
    callback = metrics.lightning(lambda module: module.draw)
    for step in range(1, 4):
        trainer = SimpleNamespace(global_step=step, is_global_zero=True)
        callback.on_train_batch_end(trainer, SimpleNamespace(draw=sample), None, None, 0)
    assert list(metrics.records) == [2]
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace(Callback=Callback))
    assert isinstance(metrics.lightning(lambda module: module.draw), Callback)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(UsageError, match="pip install lightning"):
        metrics.lightning(lambda module: module.draw)


def test_a_diffusers_pipeline_draws_each_image_from_its_own_seed() -> None:
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    from sampler_cases import TINY_UNET

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = DDIMPipeline(UNet2DModel(**TINY_UNET), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    draw = pipeline_sample(pipeline, num_inference_steps=2)
    together = draw(torch.tensor([3, 2**32 + 3]))
    assert together.dtype == torch.uint8 and together.shape == (2, 3, 8, 8)
    assert not torch.equal(together[0], together[1])
    assert (draw(torch.tensor([2**32 + 3])).int() - together[1:].int()).abs().max() <= 1


# --- loggers ----------------------------------------------------------------------------------------------


def test_scalars_have_axis_name_and_error_and_no_failures() -> None:
    found = loggers.scalars(RECORD)
    assert found["quality/fd_toy"] == 10.0 and found["quality/fd_toy_stderr"] == pytest.approx(1 / 1.96)
    assert found["coverage/recall_toy"] == 0.5
    assert (found["speed/nfe"], found["speed/seconds_per_100_images"]) == (4, 2.0)
    assert loggers.scalars(record("b", Score.failed("NaN"))) == {}


def test_tensorboard_has_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="no TensorBoard: pip install trilemma-bench[loggers]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        loggers.to_tensorboard(writer)(RECORD, 7)
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Scalars("quality/fd_toy")
    assert (event.step, event.value) == (7, 10.0)


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="no wandb: pip install trilemma-bench[loggers]")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", project="trilemma", dir=str(tmp_path)) as run:
        loggers.to_wandb(run)(RECORD, 7)
        assert run.summary["quality/fd_toy"] == 10.0 and run.summary["trilemma_step"] == 7
    assert list(tmp_path.rglob("*.wandb"))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_a_local_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="no MLflow: pip install trilemma-bench[loggers]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    with mlflow.start_run() as run:
        loggers.to_mlflow(mlflow)(RECORD, 7)
    (metric,) = mlflow.MlflowClient().get_metric_history(run.info.run_id, "quality/fd_toy")
    assert (metric.step, metric.value) == (7, 10.0)


# --- a data frame -----------------------------------------------------------------------------------------


def test_a_results_folder_is_a_data_frame_in_one_call(tmp_path: Path) -> None:
    (tmp_path / "toy-v1").mkdir()
    (tmp_path / "toy-v1" / "a.json").write_text(RECORD.dumps())
    for folder in (tmp_path, str(tmp_path)):
        frame = trilemma_bench.leaderboard(folder)
        assert list(frame["model"]) == ["a"] and frame["fd_toy"][0] == 10.0
