"""Evaluations counted, operations by hand, and the timing rule on samplers whose cost is known."""

from __future__ import annotations

import itertools
import mmap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sampler_cases import TINY_UNET, tiny_sampler
from torch import Tensor, nn

from trilemma_bench import speed
from trilemma_bench.errors import UsageError
from trilemma_bench.samplers import ddim
from trilemma_bench.samplers._helpers import untrained
from trilemma_bench.spec import TimingSpec
from trilemma_bench.speed import (
    EvaluationCounter,
    count_parameters,
    gflops_per_image,
    hardware,
    measure_timing,
    networks_of,
    peak_memory,
    ratio_to_reference_load,
    reference_load,
    time_evaluations,
    time_once,
)

SHAPE = (3, 8, 8)


class Convolutions(nn.Module):
    """3 -> 5 channels by 3x3, then 5 -> 3 by 1x1, at 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 3, 1, bias=False)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return self.second(self.first(x).relu())


FLOPS = 2 * 64 * (3 * 5 * 9 + 5 * 3)
"""Of one image: a multiplication and an addition for each weight at each of 64 pixels."""


class Steps:
    """A sampler of `steps` calls for each micro-batch; `copies` is how often guidance repeats the batch."""

    name = "steps"
    image_shape = SHAPE

    def __init__(
        self,
        network: nn.Module,
        steps: int = 4,
        *,
        copies: int = 1,
        micro_batch: int | None = None,
        keyword: bool = False,
        others: dict[str, nn.Module] | None = None,
    ) -> None:
        self.networks = {"net": network, **(others or {})}
        self.steps, self.copies, self.keyword = steps, copies, keyword
        self.size = micro_batch
        self.finished = 0

    @torch.inference_mode()
    def sample(self, seeds: Tensor) -> Tensor:
        parts = [self._draw(part) for part in seeds.split(self.size or len(seeds))]
        self.finished += 1
        return torch.cat(parts)

    def _draw(self, seeds: Tensor) -> Tensor:
        x = torch.zeros(len(seeds), *SHAPE)
        for _ in range(self.steps):
            batch = x.repeat(self.copies, 1, 1, 1)
            for network in self.networks.values():
                out = network(x=batch) if self.keyword else network(batch, torch.zeros(len(batch)))
            x = out[: len(seeds)]
        return x.to(torch.uint8)


class Nameless:
    """What is enough of a sampler: no networks are named."""

    name = "nameless"
    image_shape = SHAPE

    def sample(self, seeds: Tensor) -> Tensor:
        return torch.zeros(len(seeds), *SHAPE, dtype=torch.uint8)


class Clock:
    """Stands for the machine's clock; only the networks below move it, so that a busy machine does not."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Ticking(nn.Module):
    """Takes a millisecond for each image of its batch; the first call takes a second more."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.called = False

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        self.clock.now += 0.001 * len(x) + (0.0 if self.called else 1.0)
        self.called = True
        return x


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return Ticking(clock)


def rule(**changes: Any) -> TimingSpec:
    return TimingSpec(**{"num_images": 4, "warmup": 1, "repeats": 3, **changes})


# --- counting


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize(("copies", "images", "calls"), [(1, 28, 4), (2, 56, 4), (3, 84, 4)])
def test_doubled_batches_count_double(copies: int, images: int, calls: int, keyword: bool) -> None:
    sampler = Steps(Convolutions(), copies=copies, keyword=keyword)
    with EvaluationCounter(networks_of(sampler)) as counter:
        sampler.sample(torch.arange(7))
    assert (counter.images, counter.calls) == (images, calls)


def test_counting_ends_with_the_context_and_takes_all_networks() -> None:
    sampler = Steps(Convolutions(), others={"second": Convolutions()})
    with EvaluationCounter(networks_of(sampler)) as counter:
        sampler.sample(torch.arange(3))
    sampler.sample(torch.arange(3))
    assert counter.images == 2 * 4 * 3


def test_a_sampler_that_names_no_networks_is_not_observed() -> None:
    sampler = Nameless()
    with EvaluationCounter(networks_of(sampler)) as counter:
        sampler.sample(torch.arange(3))
    assert (networks_of(sampler), counter.images) == ({}, 0)
    assert gflops_per_image(sampler, None) is None
    assert count_parameters(sampler) is None
    assert time_evaluations(sampler, 4, 3, seed=1) is None
    timing = measure_timing(sampler, rule(), nfe=None, load_seconds=0.5)
    assert (timing.method, timing.load_seconds) == ("measured", 0.5)


class Scaled(nn.Module):
    """Called with a number alone before the batch."""

    def forward(self, t: Any, x: Any = None) -> Any:
        return x


def test_the_batch_is_what_has_rows_and_a_call_without_one_is_refused() -> None:
    network = Scaled()
    with EvaluationCounter({"net": network}) as counter:
        network(torch.tensor(0.5), torch.zeros(6, *SHAPE))
        with pytest.raises(UsageError, match="called without a batch"):
            network(0.5, [1, 2])
    assert counter.images == 6


def test_a_network_that_raises_leaves_no_counter_behind() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        gflops_per_image(Steps(Failing()), 4.0)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_parameters_are_those_of_all_networks() -> None:
    sampler = Steps(Convolutions(), others={"second": Convolutions()})
    assert count_parameters(sampler) == 2 * (3 * 5 * 9 + 5 + 5 * 3)


# --- operations


@pytest.mark.parametrize("keyword", [False, True])
def test_operations_of_convolutions_are_those_by_hand(keyword: bool) -> None:
    sampler = Steps(Convolutions(), steps=4, keyword=keyword)
    assert gflops_per_image(sampler, 4.0) == pytest.approx(4 * FLOPS / 1e9)
    assert sampler.finished == 0  # one evaluation is enough


def test_operations_are_an_image_and_not_a_batch() -> None:
    """A padded micro-batch and a batch doubled for guidance: the NFE says how many there are of each image."""
    padded = ddim.build(ddim.Options(steps=4), untrained({"unet": TINY_UNET}), micro_batch=6)
    single = ddim.build(ddim.Options(steps=4), untrained({"unet": TINY_UNET}), micro_batch=1)
    assert gflops_per_image(padded, 4.0) == pytest.approx(gflops_per_image(single, 4.0))
    assert gflops_per_image(Steps(Convolutions(), copies=2), 8.0) == pytest.approx(8 * FLOPS / 1e9)


def test_operations_of_several_networks_are_added_by_their_calls() -> None:
    sampler = Steps(Convolutions(), steps=3, others={"head": OneByOne()})
    assert gflops_per_image(sampler, 6.0) == pytest.approx(3 * (FLOPS + 2 * 64 * 9) / 1e9)


class OneByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("name", ["ddgan", "ddim", "stylegan2"])
def test_operations_grow_with_the_counted_evaluations(name: str) -> None:
    sampler = tiny_sampler(name)
    once = gflops_per_image(sampler, 1.0)
    assert once is not None
    assert once > 0
    assert gflops_per_image(sampler, 10.0) == pytest.approx(10 * once)
    assert not any(network._forward_hooks or network._forward_pre_hooks for network in sampler.networks.values())


# --- time


class Sleeping(nn.Module):
    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        time.sleep(0.002)
        return x


def test_real_time_is_measured() -> None:
    sampler = Steps(Sleeping(), steps=10)
    assert time_once(sampler, 4, seed=1) >= 0.02
    found = time_evaluations(sampler, 4, 5, seed=1)
    assert found is not None
    assert 0.0005 <= found < 0.05


@pytest.mark.parametrize(("copies", "micro_batch"), [(1, None), (2, None), (1, 2)])
def test_the_time_of_an_evaluation_is_an_images(ticking: Ticking, copies: int, micro_batch: int | None) -> None:
    """Calls of 4, of 8 and of 2 images: a millisecond an image in all of them, warm-up left out."""
    sampler = Steps(ticking, steps=50, copies=copies, micro_batch=micro_batch)
    assert time_evaluations(sampler, 4, 8, seed=1) == pytest.approx(0.001)
    assert sampler.finished == 0
    assert not ticking._forward_pre_hooks


def test_too_few_evaluations_have_no_time(ticking: Ticking) -> None:
    assert time_evaluations(Steps(ticking, steps=3), 4, 8, seed=1) is None
    assert time_evaluations(Steps(ticking, steps=4), 4, 8, seed=1) == pytest.approx(0.001)


@pytest.mark.parametrize(("copies", "micro_batch"), [(1, None), (2, None), (1, 2)])
def test_extrapolated_time_is_the_full_time(ticking: Ticking, copies: int, micro_batch: int | None) -> None:
    """Whatever a call holds: the whole batch, a batch doubled for guidance, a micro-batch."""
    sampler = Steps(ticking, steps=40, copies=copies, micro_batch=micro_batch)
    spec = rule(extrapolate_above_seconds=0.1, repeats=2)
    nfe = float(40 * copies)
    quick = measure_timing(sampler, spec, nfe=nfe, load_seconds=0.0)
    assert sampler.finished == 0
    full = measure_timing(sampler, spec, nfe=nfe, load_seconds=0.0, full=True)
    assert (quick.method, full.method) == ("extrapolated", "measured")
    assert quick.seconds_per_100_images == pytest.approx(full.seconds_per_100_images)
    assert full.seconds_per_100_images == pytest.approx(0.001 * nfe * 100)
    assert (quick.repeats, full.repeats, quick.num_images, full.num_images) == (3, 2, 4, 4)


def test_several_networks_are_timed_together(ticking: Ticking) -> None:
    """Calls alternate between a slow network and one that costs nothing: the mean counts, not the median."""
    sampler = Steps(ticking, steps=40, others={"head": OneByOne()})
    spec = rule(extrapolate_above_seconds=0.05, extrapolate_evaluations=20)
    timing = measure_timing(sampler, spec, nfe=80.0, load_seconds=0.0)
    assert timing.method == "extrapolated"
    assert timing.seconds_per_100_images == pytest.approx(0.001 * 40 * 100)


def test_a_fast_sampler_and_one_of_few_evaluations_are_timed_whole(ticking: Ticking) -> None:
    fast = measure_timing(Steps(ticking, steps=30), rule(), nfe=30.0, load_seconds=0.0)
    few = measure_timing(Steps(ticking, steps=20), rule(extrapolate_above_seconds=1e-6), nfe=20.0, load_seconds=0.0)
    assert (fast.method, few.method) == ("measured", "measured")


def test_time_is_stated_for_100_images_with_its_spread(ticking: Ticking) -> None:
    sampler = Steps(ticking, steps=2)
    timing = measure_timing(sampler, rule(num_images=5, warmup=2), nfe=2.0, load_seconds=0.25)
    assert timing.seconds_per_100_images == pytest.approx(0.2)
    assert timing.spread == pytest.approx((0.2, 0.2))
    assert (timing.repeats, timing.warmup, timing.num_images, timing.load_seconds) == (3, 2, 5, 0.25)
    assert sampler.finished == 5


def test_the_spread_and_the_median_are_of_the_repeats(ticking: Ticking) -> None:
    timing = measure_timing(Steps(ticking, steps=2), rule(warmup=0), nfe=2.0, load_seconds=0.0)
    assert timing.seconds_per_100_images == pytest.approx(0.2)
    assert timing.spread == pytest.approx((0.2, 25.2))  # the first call's second, for 4 images


# --- memory and machine


def test_peak_memory_sees_what_was_held_within() -> None:
    before: list[float] = []
    within: list[float] = []
    with peak_memory(torch.device("cpu"), before):
        pass
    if not before:
        pytest.skip("this system does not tell the peak of resident memory")
    # Straight from the system: an allocator may give memory that an earlier test had held.
    with peak_memory(torch.device("cpu"), within), mmap.mmap(-1, 128 * 2**20) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    assert within[0] - before[0] == pytest.approx(128, abs=40)


def test_hardware_names_the_machine() -> None:
    found = hardware("cpu", "float32")
    assert found.model
    assert (found.device, found.dtype, found.threads) == ("cpu", "float32", torch.get_num_threads())


# --- against a fixed load


class Loads:
    """A sampler whose images cost `each` reference loads."""

    name = "loads"
    image_shape = SHAPE

    def __init__(self, each: float) -> None:
        self._work, self._each = reference_load(), each

    def sample(self, seeds: Tensor) -> Tensor:
        for _ in range(round(len(seeds) * self._each)):
            self._work()
        return torch.zeros(len(seeds), *SHAPE, dtype=torch.uint8)


class Machine:
    """A clock and a scheduler that the works below move: (seconds of a work, seconds that others take meanwhile)."""

    def __init__(self, patch: pytest.MonkeyPatch, waits: Iterator[float]) -> None:
        self.now, self.waited, self.waits = 0.0, 0.0, waits
        patch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: self.now))
        patch.setattr(speed, "_seconds_waited", lambda: self.waited)
        patch.setattr(speed, "reference_load", lambda device: lambda: self.work(0.5))

    def work(self, seconds: float) -> None:
        wait = next(self.waits)
        self.now += seconds + wait
        self.waited += wait


class Timed:
    """A sampler of so many seconds a call, in turn."""

    name = "timed"
    image_shape = SHAPE

    def __init__(self, clock: Machine, seconds: Iterator[float]) -> None:
        self._clock, self._seconds, self.calls = clock, seconds, 0

    def sample(self, seeds: Tensor) -> Tensor:
        self.calls += 1
        self._clock.work(next(self._seconds))
        return torch.zeros(len(seeds), *SHAPE, dtype=torch.uint8)


def test_time_that_others_took_of_the_processor_is_in_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, itertools.cycle([0.0, 3.0, 0.0, 0.7]))
    assert ratio_to_reference_load(Timed(machine, itertools.repeat(1.0)), 2, repeats=3) == pytest.approx(2)
    waited = Path("/proc/thread-self/schedstat")
    assert waited == speed._WAITED and (not waited.exists() or int(waited.read_text().split()[1]) >= 0)


def test_a_doubtful_ratio_is_timed_on_and_taken_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls to know how long it takes, a disturbed first round of three pairs, quiet ones after it."""
    for seconds, expected, calls in (([1] * 3 + [2] * 3, 2, 3 + 9), ([1.5] * 3 + [1.5] * 3, 3, 3 + 15)):
        machine = Machine(monkeypatch, itertools.repeat(0.0))
        sampler = Timed(machine, itertools.chain(seconds, itertools.repeat(seconds[0])))
        ratio = ratio_to_reference_load(sampler, 2, repeats=3, enough=lambda ratio: ratio < 2.5)
        assert (ratio, sampler.calls) == (pytest.approx(expected), calls)


def test_a_sampler_of_three_loads_has_the_ratio_three() -> None:
    assert ratio_to_reference_load(Loads(1.5), 2, repeats=3) == pytest.approx(3, rel=0.25)


def test_the_reference_load_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    reference_load()()
    assert torch.equal(torch.rand(3), expected)
