"""Records to where a training run is watched: TensorBoard, Weights & Biases, MLflow. Imports none of them.

Each takes the writer or run that the training has already, so that nothing is configured twice:

    log = to_tensorboard(SummaryWriter("runs/mine"))
    log(record, step)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trilemma_bench.record import ResultRecord

Logger = Callable[[ResultRecord, int], None]
"""logger(record, step)"""


def scalars(record: ResultRecord) -> dict[str, float]:
    """The numbers of a record as `<axis>/<score>`, with `<axis>/<score>_stderr` beside; failures are left out."""
    found: dict[str, float] = {}
    for item in record.scores:
        name = f"{item.kind.axis}/{item.kind.name}"
        if item.score.value is not None:
            found[name] = item.score.value
        if item.score.stderr is not None and math.isfinite(item.score.stderr):
            found[f"{name}_stderr"] = item.score.stderr
    timing = record.best_timing
    if timing is not None:
        found["speed/seconds_per_100_images"] = timing.seconds_per_100_images
    if record.speed is not None and record.speed.nfe is not None:
        found["speed/nfe"] = record.speed.nfe
    return found


def to_tensorboard(writer: Any) -> Logger:
    """Log to a `torch.utils.tensorboard.SummaryWriter`, or whatever has `add_scalar(name, value, step)`."""

    def log(record: ResultRecord, step: int) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, step)

    return log


def to_wandb(run: Any) -> Logger:
    """Log to a run of Weights & Biases (`wandb.init(...)`), online or offline.

    The training's step is logged as `trilemma_step`: the run's own counts its calls, and must never go back.
    """

    def log(record: ResultRecord, step: int) -> None:
        run.log({**scalars(record), "trilemma_step": step})

    return log


def to_mlflow(client: Any) -> Logger:
    """Log to MLflow's active run: give the module `mlflow` itself."""

    def log(record: ResultRecord, step: int) -> None:
        client.log_metrics(scalars(record), step=step)

    return log
