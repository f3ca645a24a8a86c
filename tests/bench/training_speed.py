"""How much faster our training steps are than a plain fp32 loop: python tests/bench/training_speed.py [MODEL ...].

For each `cpu-small` recipe, images per second of a step in fp32, plain layout, eager ("plain") and as the recipe says
with torch.compile ("ours"). Both take turns in one process, so that other load falls on both; the median
of the rounds counts. Exits with 1 where ours is under --at-least times plain. Compiling takes minutes the first time.
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

Steps = Callable[[], float]
"""Takes some steps and returns their images per second."""


def steps_of(task: Task, count: int) -> Steps:
    """Takes `count` steps on random images; the lazy penalties come as often as in training."""
    batch = task.recipe.batch
    images = torch.rand(batch, *task.image_shape) * 2 - 1
    if task.recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    number = 0

    def take() -> float:
        nonlocal number
        start = time.perf_counter()
        for _ in range(count):
            step = Step(number, number * batch, torch.Generator().manual_seed(number))
            task.step(images, None, step)
            task.average(step)
            number += 1
        return count * batch / (time.perf_counter() - start)

    return take


def compare(name: str, rounds: int, count: int) -> tuple[float, float]:
    """Images per second of the plain loop and of ours, medians of the rounds after one to warm up."""
    kind: TrainerKind = registry.get("trainer", name)
    ours, device = kind.recipes["cpu-small"], torch.device("cpu")
    plain = ours.model_copy(update={"bf16": False, "channels_last": False})
    loops = [steps_of(kind.task(plain, device), count), steps_of(kind.task(ours, device, compile=True), count)]
    for loop in loops:
        loop()
    rates = [[loop() for loop in loops] for _ in range(rounds)]
    slow, fast = (statistics.median(column) for column in zip(*rates, strict=True))
    return slow, fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=registry.names("trainer"))
    parser.add_argument("--at-least", type=float, default=2.5, help="ratio below which the exit code is 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="steps a round: a multiple of the penalties' intervals")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"images per second in training, {given.threads} threads, medians of {given.rounds} rounds")
    found = {}
    for name in given.models:
        plain, ours = compare(name, given.rounds, given.steps)
        found[name] = ours / plain
        print(f"{name:10} plain {plain:7.1f}   ours {ours:7.1f}   {ours / plain:5.2f} times", flush=True)
    slow = [name for name, ratio in found.items() if ratio < given.at_least]
    if slow:
        sys.exit(f"under {given.at_least} times the plain loop: {', '.join(slow)}")


if __name__ == "__main__":
    main()
