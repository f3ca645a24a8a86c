"""What sampling costs: counted evaluations, wall-clock by the protocol's rule, operations, memory."""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trilemma_bench.errors import UsageError
from trilemma_bench.kinds import Sampler
from trilemma_bench.record import Hardware, Timing
from trilemma_bench.spec import TimingSpec
from trilemma_bench.store import image_seeds


def networks_of(sampler: Sampler) -> dict[str, nn.Module]:
    """The networks whose calls are counted; empty where the sampler names none."""
    return dict(getattr(sampler, "networks", None) or {})


def guides_of(sampler: Sampler) -> dict[str, nn.Module]:
    """The networks whose gradient guides the others; empty where the sampler names none."""
    return dict(getattr(sampler, "guides", None) or {})


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
        self.images += _batch_size(args, kwargs)
        self.calls += 1


def _batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Images in a call of a network: the length of the first tensor that it is given, numbers alone left aside.

    Raises:
        UsageError: There is none.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim:
            return len(value)
    raise UsageError(
        "a network that the sampler names was called without a batch, so that its evaluations cannot be counted. Name "
        "in `networks` the modules that are given tensors [N, ...]."
    )


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


def time_evaluations(sampler: Sampler, num_images: int, count: int, seed: int, warmup: int = 2) -> float | None:
    """Seconds of one image in one network evaluation: the mean over `count` calls in place; then the sampler is left.

    The time runs from each call to the next, so that what the sampler does around its networks is in it. It is
    divided by the images in the calls: micro-batches and batches doubled for guidance need no care.
    None where the sampler makes too few evaluations.
    """
    moments: list[float] = []
    images: list[int] = []
    device = _device(sampler)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _synchronise(device)
        moments.append(time.perf_counter())
        images.append(_batch_size(args, kwargs))
        if len(moments) > count + warmup:
            raise _Enough

    handles = [network.register_forward_pre_hook(note, with_kwargs=True) for network in networks_of(sampler).values()]
    try:
        sampler.sample(torch.from_numpy(image_seeds(seed, 0, num_images)))
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if len(moments) < warmup + 2:
        return None
    # The last call's images were not seen to their end.
    return (moments[-1] - moments[warmup]) / sum(images[warmup:-1])


def measure_timing(
    sampler: Sampler, spec: TimingSpec, *, nfe: float | None, load_seconds: float, full: bool = False
) -> Timing:
    """Seconds per 100 images by the protocol's rule.

    A sampler that names its networks and would need more than `extrapolate_above_seconds` for a batch is timed over
    `extrapolate_evaluations` of its evaluations in place, several times, and multiplied by the counted NFE.

    Args:
        sampler: Built with a micro-batch of `spec.num_images`, where it has one.
        spec: The protocol's rule.
        nfe: Counted evaluations an image; None where not observed.
        load_seconds: Time that building took; noted, not counted.
        full: Never extrapolate.
    """
    per_100 = 100 / spec.num_images
    evaluations = (nfe or 0) * spec.num_images
    slow = False
    if nfe is not None and nfe > spec.extrapolate_evaluations and not full:
        probe = time_evaluations(sampler, spec.num_images, 3, seed=2**19)
        slow = probe is not None and probe * evaluations > spec.extrapolate_above_seconds
    if slow:
        repeats, warmup = spec.extrapolate_repeats, 2
        found = [
            time_evaluations(sampler, spec.num_images, spec.extrapolate_evaluations, 2**19 + i, warmup)
            for i in range(repeats)
        ]
        seconds = [each * evaluations for each in found if each is not None]
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


# --- against a fixed load ---------------------------------------------------------------------------------

REFERENCE_LOAD = "conv-v2"
"""Name of what `reference_load` computes; another computation is another name."""
PATIENCE = 5
"""How many times as long a model is timed whose speed seems to be another."""
_WAITED = Path("/proc/thread-self/schedstat")


def reference_load(device: str = "cpu") -> Callable[[], None]:
    """A fixed piece of work of the kind that samplers do: 3 x 3 convolutions, group norms and SiLU in float32.

    4 images [64, 16, 16], 4 layers, 8 times: 2.4 GFLOP in all. It fits into a core's own cache, as small networks do:
    on one that does not, a neighbour's use of memory weighs more than on what is timed beside it. Numbers come from a
    generator of its own.
    """
    rng = torch.Generator().manual_seed(0)
    place = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU()) for _ in range(4)]
    net = nn.Sequential(*layers).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) / 24
    net.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, 64, 16, 16, generator=rng).to(place, memory_format=torch.channels_last)

    def work() -> None:
        with torch.inference_mode():
            for _ in range(8):
                net(x)
        _synchronise(place)

    return work


def ratio_to_reference_load(
    sampler: Sampler, num_images: int, *, repeats: int = 15, enough: Callable[[float], bool] = lambda ratio: True
) -> float:
    """Time of `num_images` images over the time of the reference load: the median of pairs, timed in turn.

    Time that other programs took of this one's processor does not count. What else slows a machine (its clock, shared
    caches) slows both of a pair, as they follow each other closely; the shorter is repeated, and timed as one, until
    it takes about as long as the other.

    Args:
        sampler: What is timed; its micro-batch should not exceed `num_images`.
        num_images: Images in one call.
        repeats: Pairs, after calls to warm up.
        enough: Asked with the ratio so far; where it says no, timing goes on, to `PATIENCE` times the repeats. The
            ratio is over all pairs: nothing is chosen among several answers.
    """
    load, device = reference_load(str(_device(sampler))), _device(sampler)
    runs = itertools.count(2**19)

    def sample() -> None:
        sampler.sample(torch.from_numpy(image_seeds(next(runs), 0, num_images)))
        _synchronise(device)

    once = [min(own_seconds(work, 1) for _ in range(3)) for work in (sample, load)]
    of_sample, of_load = (max(1, round(max(once) / each)) for each in once)
    pairs: list[float] = []
    for _ in range(PATIENCE):
        for _ in range(repeats):
            sampled = own_seconds(sample, of_sample) / of_sample
            pairs.append(sampled / (own_seconds(load, of_load) / of_load))
        if enough(statistics.median(pairs)):
            break
    return statistics.median(pairs)


def own_seconds(work: Callable[[], object], times: int = 1) -> float:
    """Seconds for `times` calls of `work`, without the time that other programs had this thread's processor."""
    # Whoever takes the processor between two clocks makes this longer, never shorter.
    start = time.perf_counter()
    waited = _seconds_waited()
    for _ in range(times):
        work()
    waited = _seconds_waited() - waited
    return time.perf_counter() - start - waited


def _seconds_waited() -> float:
    """How long this thread stood ready to run while others had its processor; 0 where the system does not tell."""
    try:
        return int(_WAITED.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def count_parameters(sampler: Sampler) -> int | None:
    """Parameters of the counted networks and of those that guide them; None where the sampler names none."""
    networks = networks_of(sampler)
    every = [*networks.values(), *guides_of(sampler).values()]
    return sum(p.numel() for network in every for p in network.parameters()) if networks else None


def gflops_per_image(sampler: Sampler, nfe: float | None) -> float | None:
    """Giga floating-point operations an image by torch's counter: one evaluation's, times the counted NFE.

    Multiply-adds count two. What a sampler does outside of its networks is not in it; None where networks guide, as
    one evaluation does not tell what their gradients cost.
    """
    networks = networks_of(sampler)
    if not networks or nfe is None or guides_of(sampler):
        return None
    # With several networks one pass to the end tells how often each is called.
    counters = [_FlopCounter(leave=len(networks) == 1) for _ in networks]
    with ExitStack() as stack:
        for counter, network in zip(counters, networks.values(), strict=True):
            stack.enter_context(counter.on(network))
        try:
            sampler.sample(torch.from_numpy(image_seeds(2**19, 0, 1)))
        except _Enough:
            pass
    images = sum(counter.images for counter in counters)
    if not images:
        return None
    return sum(counter.flops_per_image * counter.images for counter in counters) / images * nfe / 1e9


def _more_formulas() -> dict[Any, Callable[..., int]]:
    """Operations that samplers call and torch's counter does not know: oneDNN's linear layer, where torch has it."""

    def linear(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    operation = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return {} if operation is None else {operation: linear}


class _FlopCounter:
    """Operations an image in the first call of a network, and the images in all its calls."""

    def __init__(self, *, leave: bool) -> None:
        self.flops_per_image = 0.0
        self.images = 0
        self._leave = leave

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        """Within, the calls of `network` are counted; where `leave`, the first one ends the sampling."""
        mode = FlopCounterMode(display=False, custom_mapping=_more_formulas())
        # Left in any case: a mode that outlives a call which raises counts, and slows, all that comes after it.
        counting = ExitStack()

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.images:
                counting.enter_context(mode)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            size = _batch_size(args, kwargs)
            if not self.images:
                counting.close()
                self.flops_per_image = mode.get_total_flops() / size
            self.images += size
            if self._leave:
                raise _Enough

        handles = [
            network.register_forward_pre_hook(before, with_kwargs=True),
            network.register_forward_hook(after, with_kwargs=True),
        ]
        with counting:
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
