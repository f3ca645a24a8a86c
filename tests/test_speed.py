"""Counting and timing, on samplers whose cost is known."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from trilemma_bench import speed
from trilemma_bench.spec import TimingSpec


class Sleeper(nn.Module):
    """A 3x3 convolution that takes its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.conv(x)


class Steps:
    """`steps` evaluations for a batch; with `guided` each on a doubled batch."""

    name = "steps"
    image_shape = (3, 8, 8)

    def __init__(self, steps: int, seconds: float = 0.0, *, guided: bool = False) -> None:
        self.networks = {"net": Sleeper(seconds)}
        self.steps = steps
        self.guided = guided

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        x = torch.zeros(len(seeds) * (2 if self.guided else 1), 3, 8, 8)
        for _ in range(self.steps):
            self.networks["net"](x)
        return torch.zeros(len(seeds), 3, 8, 8, dtype=torch.uint8)


class Unnamed(Steps):
    def __init__(self) -> None:
        super().__init__(2)
        self._hidden, self.networks = self.networks, {}

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(seeds), 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(("guided", "per_image"), [(False, 7), (True, 14)])
def test_evaluations_are_counted_per_image_and_doubled_batches_count_double(guided: bool, per_image: int) -> None:
    sampler = Steps(7, guided=guided)
    with speed.EvaluationCounter(sampler.networks) as counter:
        sampler.sample(torch.arange(5))
    assert counter.images == 5 * per_image
    assert counter.calls == 7
    sampler.sample(torch.arange(5))
    assert counter.calls == 7, "nothing is counted after it is closed"


def test_operations_are_those_of_the_convolution_times_the_evaluations() -> None:
    by_hand = 2 * 3 * 8 * 9 * 64 / 1e9
    assert speed.gflops_per_image(Steps(7), 7.0) == pytest.approx(7 * by_hand)
    assert speed.gflops_per_image(Unnamed(), None) is None


def test_fast_samplers_are_timed_whole() -> None:
    timing = speed.measure_timing(Steps(3, 0.01), TimingSpec(num_images=10, repeats=3), nfe=3.0, load_seconds=0.5)
    assert timing.method == "measured"
    assert timing.repeats == 3
    assert timing.spread[0] <= timing.seconds_per_100_images <= timing.spread[1]
    assert timing.seconds_per_100_images >= 3 * 0.01 * 10
    assert timing.load_seconds == 0.5


def test_slow_samplers_are_extrapolated_and_near_the_whole() -> None:
    rule = TimingSpec(num_images=100, warmup=0, repeats=1, extrapolate_above_seconds=0.5)
    sampler = Steps(60, 0.02)
    short = speed.measure_timing(sampler, rule, nfe=60.0, load_seconds=0)
    whole = speed.measure_timing(sampler, rule, nfe=60.0, load_seconds=0, full=True)
    assert (short.method, whole.method) == ("extrapolated", "measured")
    assert short.seconds_per_100_images == pytest.approx(whole.seconds_per_100_images, rel=0.3)


def test_doubled_batches_are_extrapolated_by_calls_and_not_by_images() -> None:
    rule = TimingSpec(num_images=100, warmup=0, repeats=1, extrapolate_above_seconds=0.5)
    sampler = Steps(60, 0.02, guided=True)
    short = speed.measure_timing(sampler, rule, nfe=120.0, load_seconds=0)
    whole = speed.measure_timing(sampler, rule, nfe=120.0, load_seconds=0, full=True)
    assert short.method == "extrapolated"
    assert short.seconds_per_100_images == pytest.approx(whole.seconds_per_100_images, rel=0.3)


def test_a_sampler_that_names_no_network_is_timed_and_not_counted() -> None:
    sampler = Unnamed()
    timing = speed.measure_timing(sampler, TimingSpec(num_images=5), nfe=None, load_seconds=0)
    assert timing.method == "measured"
    assert speed.count_parameters(sampler) is None


def test_peak_memory_sees_an_allocation() -> None:
    small: list[float] = []
    large: list[float] = []
    with speed.peak_memory(torch.device("cpu"), small):
        pass
    with speed.peak_memory(torch.device("cpu"), large):
        torch.ones(100 * 2**20 // 4)
    if small:
        assert large[0] > small[0] + 50
    else:
        assert not large


def test_hardware_names_the_machine() -> None:
    found = speed.hardware("cpu", "float32")
    assert found.model
    assert found.threads == torch.get_num_threads()
