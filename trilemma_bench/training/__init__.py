"""Trainers, one module each; the module name is the registry name. `train_model` is what the command line calls.

One's own trainer is a `kinds.TrainerKind` whose task is a `Task`: see docs/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trilemma_bench.training._ema import EmaSpec
from trilemma_bench.training._loop import Limits, Progress, Recipe, Step, Task, initialising, train

__all__ = ["EmaSpec", "Recipe", "Step", "Task", "initialising", "train_model"]


def train_model(
    model: str,
    *,
    dataset: str = "cifar10",
    recipe: str = "cpu-small",
    out: Path,
    kimg: float | None = None,
    minutes: float | None = None,
    device: str | None = None,
    compile: bool = False,
    data_root: Path | None = None,
    resume: Path | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Train a baseline by one of its recipes, or go on with the run that `out` holds.

    Args:
        model: Name of a trainer, or `package.module:constant` of one's own.
        dataset: Name of a data set, or path of one's own images.
        recipe: Name of one of the trainer's recipes.
        out: Folder of the run.
        kimg: Stop after so many thousand images in all; None is the recipe's duration.
        minutes: Stop after so many minutes of this session.
        device: Where to train; None is this process's GPU where there is one, else the CPU.
        compile: Whether networks go through torch.compile.
        data_root: Where data sets lie.
        resume: Folder of an earlier run or of a baseline whose networks a new run in `out` starts from, without the
            optimisers' moments; a run that `out` holds already goes on by itself.
        report: Told of losses and rate every few seconds.

    Returns:
        See `_loop.train`.

    Raises:
        TrilemmaError: An unknown name, data that cannot be read, or a run that cannot go on.
    """
    from accelerate import PartialState

    from trilemma_bench import registry
    from trilemma_bench.errors import DataError, UsageError, unknown_name
    from trilemma_bench.kinds import TrainerKind
    from trilemma_bench.models import check_device, find_attribute

    kind = find_attribute(model, registry.names("trainer")) if ":" in model else registry.get("trainer", model)
    if not isinstance(kind, TrainerKind):
        raise UsageError(f"{model} is {type(kind).__name__}; a kinds.TrainerKind is needed.")
    if recipe not in kind.recipes:
        raise unknown_name(f"recipe of {model}", recipe, kind.recipes)
    path = Path(dataset).expanduser()
    if dataset in registry.names("dataset"):
        data = registry.get("dataset", dataset).open("train", data_root)
    elif path.exists():
        data = registry.get("dataset", "image_folder").open("train", path)
    else:
        raise unknown_name("data set", dataset, registry.names("dataset"))
    for option, limit in (("--kimg", kimg), ("--minutes", minutes)):
        if limit is not None and not 0 < limit < math.inf:
            raise UsageError(f"{option} {limit:g}: a number above 0 is needed; leave it out for no such limit.")
    if device is not None:
        check_device(device)
    # Of several processes each has a device of its own, which this chooses.
    own = PartialState(cpu=device == "cpu").device
    chosen = own if device in (None, "cpu", "cuda") else device
    import torch

    task = kind.task(kind.recipes[recipe], torch.device(chosen), compile=compile)
    if tuple(data.shape) != task.image_shape:
        raise DataError(
            f"{data.name} has images of {list(data.shape)}; the recipe {recipe} of {model} needs "
            f"{list(task.image_shape)}. Name other images, or another of its recipes: {', '.join(kind.recipes)}."
        )
    limits = Limits(minutes=minutes, kimg=kimg)
    return train(task, data, Path(out), limits=limits, start=resume, report=report)
