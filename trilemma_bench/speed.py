"""What sampling costs: counted evaluations, wall-clock by the protocol's rule, operations, memory."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trilemma_bench.kinds import Sampler
from trilemma_bench.record import Hardware, Timing
from trilemma_bench.spec import TimingSpec
from trilemma_bench.store import image_seeds


def networks_of(sampler: Sampler) -> dict[str, nn.Module]:
    """The networks whose calls are counted; empty where the sampler names none."""
    return dict(getattr(sampler, "networks", None) or {})


class EvaluationCounter:
    """Counts forward calls of networks while open: `images` over all calls, `calls` of any network.

    A batch doubled for guidance counts double, since images are counted and not calls.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._networks = networks
        self.images = 0
        self.calls = 0

    def __enter__(self) -> EvaluationCounter:
        self._handles = [
            network.register_forward_pre_hook(self._count, with_kwargs=True) for network in self._networks.values()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        self.images += len(first)
        self.calls += 1


class _Enough(Exception):
    """Leaves a sampler once enough of its evaluations were seen."""


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(sampler: Sampler) -> torch.device:
    return torch.device(getattr(sampler, "device", "cpu"))


def time_once(sampler: Sampler, num_images: int, seed: int) -> float:
    """Seconds for one call on `num_images` new seeds, device synchronised before and after."""
    seeds = torch.from_numpy(image_seeds(seed, 0, num_images))
    _synchronise(_device(sampler))
    start = time.perf_counter()
    sampler.sample(seeds)
    _synchronise(_device(sampler))
    return time.perf_counter() - start


def time_evaluations(sampler: Sampler, num_images: int, count: int, seed: int, warmup: int = 2) -> list[float]:
    """Seconds from each network evaluation to the next, `count` of them in place, then the sampler is left.

    An interval holds one evaluation and what the sampler does around it. Fewer come back where the sampler
    makes fewer evaluations.
    """
    moments: list[float] = []
    device = _device(sampler)

    def note(*_: Any) -> None:
        _synchronise(device)
        moments.append(time.perf_counter())
        if len(moments) > count + warmup:
            raise _Enough

    handles = [network.register_forward_pre_hook(note) for network in networks_of(sampler).values()]
    try:
        sampler.sample(torch.from_numpy(image_seeds(seed, 0, num_images)))
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    used = moments[warmup:]
    return [after - before for before, after in zip(used, used[1:], strict=False)]


def measure_timing(
    sampler: Sampler, spec: TimingSpec, *, nfe: float | None, load_seconds: float, full: bool = False
) -> Timing:
    """Seconds per 100 images by the protocol's rule.

    A sampler that names its networks and would need more than `extrapolate_above_seconds` for a batch is timed over
    `extrapolate_evaluations` of its evaluations in place, several times, and multiplied by the counted NFE.

    Args:
        sampler: Built with a micro-batch of `spec.num_images`, so that one batch is one batch.
        spec: The protocol's rule.
        nfe: Counted evaluations an image; None where not observed.
        load_seconds: Time that building took; noted, not counted.
        full: Never extrapolate.
    """
    per_100 = 100 / spec.num_images
    slow = False
    if nfe is not None and nfe > spec.extrapolate_evaluations and not full:
        probe = time_evaluations(sampler, spec.num_images, 3, seed=2**19)
        slow = bool(probe) and statistics.median(probe) * nfe > spec.extrapolate_above_seconds
    if slow:
        assert nfe is not None
        repeats = spec.extrapolate_repeats
        seconds = [
            statistics.median(time_evaluations(sampler, spec.num_images, spec.extrapolate_evaluations, 2**19 + i)) * nfe
            for i in range(repeats)
        ]
        warmup = 2
    else:
        repeats, warmup = spec.repeats, spec.warmup
        for i in range(warmup):
            time_once(sampler, spec.num_images, 2**19 + i)
        seconds = [time_once(sampler, spec.num_images, 2**19 + warmup + i) for i in range(repeats)]
    return Timing(
        method="extrapolated" if slow else "measured",
        seconds_per_100_images=statistics.median(seconds) * per_100,
        spread=(min(seconds) * per_100, max(seconds) * per_100),
        repeats=repeats,
        num_images=spec.num_images,
        warmup=warmup,
        load_seconds=load_seconds,
    )


def count_parameters(sampler: Sampler) -> int | None:
    """Parameters of the counted networks; None where the sampler names none."""
    networks = networks_of(sampler)
    return sum(p.numel() for network in networks.values() for p in network.parameters()) if networks else None


def gflops_per_image(sampler: Sampler, nfe: float | None) -> float | None:
    """Giga floating-point operations an image by torch's counter: one evaluation's, times the counted NFE.

    Multiply-adds count two. What a sampler does outside of its networks is not in it.
    """
    networks = networks_of(sampler)
    if not networks or nfe is None:
        return None
    counts: list[tuple[int, int]] = []
    for network in networks.values():
        with _count_flops(network, counts):
            try:
                sampler.sample(torch.from_numpy(image_seeds(2**19, 0, 1)))
            except _Enough:
                pass
    if not counts:
        return None
    flops, images = counts[0]
    return flops / images * nfe / 1e9


@contextmanager
def _count_flops(network: nn.Module, counts: list[tuple[int, int]]) -> Iterator[None]:
    """Count the operations of the first evaluation of `network`, then leave the sampler."""
    mode = FlopCounterMode(display=False)

    def before(*_: Any) -> None:
        mode.__enter__()

    def after(module: nn.Module, args: tuple[Any, ...], *_: Any) -> None:
        mode.__exit__(None, None, None)
        counts.append((mode.get_total_flops(), len(args[0])))
        raise _Enough

    handles = [network.register_forward_pre_hook(before), network.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def peak_memory(device: torch.device, found: list[float]) -> Iterator[None]:
    """Append to `found` the peak memory in MiB within: the process's resident memory, or the GPU's allocations.

    Nothing is appended where the system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield
        found.append(torch.cuda.max_memory_allocated(device) / 2**20)
        return
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        resettable = True
    except OSError:
        resettable = False
    yield
    if resettable:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                found.append(int(line.split()[1]) / 1024)


def hardware(device: str, dtype: str) -> Hardware:
    """This machine, as far as it moves a number."""
    if device.startswith("cuda"):
        model = torch.cuda.get_device_name(torch.device(device))
    else:
        model = _cpu_model()
    return Hardware(
        device=device, model=model, threads=torch.get_num_threads(), platform=platform.platform(), dtype=dtype
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
