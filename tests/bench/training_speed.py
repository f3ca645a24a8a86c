"""How much faster our training steps are than a plain fp32 loop: python tests/bench/training_speed.py [MODEL ...].

For each trainer with a `cpu-small` recipe, images per second of a step in fp32, plain layout, eager, with torch's
default optimiser ("plain") and as the recipe says with torch.compile and the fused optimiser ("ours"). Both take turns
in one process, so that other load falls on both; the median of the rounds counts. Exits with 1 where ours is under
--at-least times plain. Compiling takes minutes the first time. Most of the gain is bfloat16's: where the processor has
no such instructions, ours is in float32 too, and the table says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from trilemma_bench import registry
from trilemma_bench.kinds import TrainerKind
from trilemma_bench.training._loop import Step, Task

RECIPE = "cpu-small"

Steps = Callable[[], float]
"""Takes some steps and returns their images per second."""


def timed_trainers() -> list[str]:
    """Names of the trainers that have the recipe: those of images."""
    return [name for name in registry.names("trainer") if RECIPE in registry.get("trainer", name).recipes]


def steps_of(task: Task, count: int) -> Steps:
    """Takes `count` steps of the middle of a run, when every part of the loss takes part, on random images of ten
    classes; the lazy penalties come as often as in training."""
    batch = task.recipe.batch
    seen = int(task.recipe.duration_kimg * 1000 / 2)
    images = torch.rand(batch, *task.image_shape) * 2 - 1
    labels = torch.randint(10, (batch,))
    if task.recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    number = 0

    def take() -> float:
        nonlocal number
        start = time.perf_counter()
        for _ in range(count):
            step = Step(number, seen + number * batch, torch.Generator().manual_seed(number))
            task.step(images, labels, step)
            task.average(step)
            number += 1
        return count * batch / (time.perf_counter() - start)

    return take


def compare(name: str, rounds: int, count: int) -> tuple[float, float, str]:
    """Images per second of the plain loop and of ours, medians of the rounds after one to warm up; ours' precision."""
    kind: TrainerKind = registry.get("trainer", name)
    ours, device = kind.recipes[RECIPE], torch.device("cpu")
    plain = kind.task(ours.model_copy(update={"bf16": False, "channels_last": False}), device)
    for optimizer in plain.optimizers.values():
        for group in optimizer.param_groups:
            group["fused"] = None
    task = kind.task(ours, device, compile=True)
    loops = [steps_of(plain, count), steps_of(task, count)]
    for loop in loops:
        loop()
    rates = [[loop() for loop in loops] for _ in range(rounds)]
    slow, fast = (statistics.median(column) for column in zip(*rates, strict=True))
    return slow, fast, task.precision


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = timed_trainers()
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)}; else all of them")
    parser.add_argument("--at-least", type=float, default=2.5, help="ratio below which the exit code is 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="steps a round: a multiple of the penalties' intervals")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(argv)
    if unknown := set(given.models) - set(known):
        parser.error(f"no trainer with a recipe {RECIPE} is named {sorted(unknown)[0]}; there are {', '.join(known)}")
    torch.set_num_threads(given.threads)
    print(f"images per second in training, {given.threads} threads, medians of {given.rounds} rounds")
    found = {}
    for name in given.models or known:
        plain, ours, precision = compare(name, given.rounds, given.steps)
        found[name] = ours / plain
        times = f"{ours / plain:5.2f} times   ours in {precision}"
        print(f"{name:16} plain {plain:7.1f}   ours {ours:7.1f}   {times}", flush=True)
    slow = [name for name, ratio in found.items() if ratio < given.at_least]
    if slow:
        sys.exit(f"under {given.at_least} times the plain loop: {', '.join(slow)}")


if __name__ == "__main__":
    main()
