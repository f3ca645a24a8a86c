"""The one training loop: data order, precision, averaging, checkpoints, curves and grids for every family.

A family gives a `Task`: its networks, optimisers and one `step`. What a step draws is keyed by (seed, step), and the
order of the images by (seed, epoch), so that a run that was killed goes on exactly where its checkpoint stands.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

from trilemma_bench.errors import TrainingError, WeightsError
from trilemma_bench.images import to_uint8, write_grid
from trilemma_bench.kinds import ImageSet, Shape, is_points
from trilemma_bench.samplers._helpers import read_safetensors
from trilemma_bench.spec import Frozen
from trilemma_bench.store import make_folder, replacing, sha256
from trilemma_bench.training import _checkpoint
from trilemma_bench.training._ema import EmaSpec, ema_copy, ema_update

NUM_GRID_POINTS = 2000
"""Points in a picture of a run."""


class Recipe(Frozen):
    """What every family's recipe has; `batch` is over all processes together."""

    batch: int
    duration_kimg: float
    ema: EmaSpec
    flips: bool
    bf16: bool = False
    """Networks compute in bfloat16 where the device has it, else in float32; weights and optimisers are float32."""
    channels_last: bool = False
    seed: int = 0


@dataclass
class Step:
    """One step's place in the run, and its random numbers.

    `rng` is seeded by (seed, step) and is the same in every process; `local` cuts a tensor that was drawn for the
    whole batch down to this process's part, so that two processes do what one does with their batches joined.
    """

    number: int
    images_seen: int
    rng: torch.Generator
    rank: int = 0
    world: int = 1

    def local(self, batch: Tensor) -> Tensor:
        """This process's rows of a tensor over the whole batch."""
        return batch[self.rank :: self.world]

    def randn(self, *shape: int, device: torch.device) -> Tensor:
        """This process's rows of N(0, I) of `shape`, whose first axis is the whole batch."""
        return self.local(torch.randn(*shape, generator=self.rng)).to(device)

    def randint(self, high: int, size: int, device: torch.device) -> Tensor:
        """This process's part of `size` whole numbers in 0..high-1, int64."""
        return self.local(torch.randint(high, (size,), generator=self.rng)).to(device)


class Task(ABC):
    """A family in training.

    `networks` are trained, `averaged` names those whose average is kept; `optimizers` are stepped by `step`.
    `extra` is state of other kinds that a checkpoint must hold: numbers, text and tensors.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    averaged: tuple[str, ...]
    config: Mapping[str, Any]
    """What a sampler needs to build the same network."""
    image_shape: Shape
    scale: float = 1.0
    """Points in the units of the data are this times those that `step` sees."""

    def __init__(self, recipe: Recipe, device: torch.device, *, compile: bool = False) -> None:
        self.recipe = recipe
        self.device = device
        self.compile = compile
        self.averages: dict[str, nn.Module] = {}
        self.extra: dict[str, Any] = {}

    @abstractmethod
    def step(self, images: Tensor, labels: Tensor | None, step: Step) -> dict[str, Tensor]:
        """One update on images, float [B, *image_shape] in [-1, 1]; returns the losses by name."""

    @abstractmethod
    def grid(self, num_images: int) -> Tensor:
        """Images of the averaged network at fixed noise, float [num_images, *image_shape] in [-1, 1]."""

    @abstractmethod
    def rates(self, step: Step) -> dict[str, float]:
        """The learning rate of each optimiser at this step, by name."""

    @property
    @abstractmethod
    def product(self) -> nn.Module:
        """The averaged network that a sampler loads; its state dict has the authors' keys."""

    def set_up(self) -> None:
        """Move to the device, choose the layout, start the averages, compile: call at the end of `__init__`."""
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        for network in self.networks.values():
            network.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.averages = {name: ema_copy(self.networks[name]) for name in self.averaged}
        if self.compile:
            for network in self.networks.values():
                network.compile()  # in place: parameters and their names stay as they are

    @property
    def precision(self) -> str:
        """What networks compute in: `bfloat16` where the recipe asks for it and the device has it, else `float32`."""
        return "bfloat16" if self.recipe.bf16 and computes_bf16(self.device) else "float32"

    def autocast(self) -> torch.autocast:
        """Networks compute in `precision` within."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def set_rates(self, step: Step, warmth: float = 1.0) -> None:
        """Give the optimisers their learning rates of this step, times `warmth`."""
        for name, rate in self.rates(step).items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * warmth

    def update(self, name: str, loss: Tensor, *, clip: float | None = None) -> None:
        """Back-propagate into one network alone, average over processes, and step its optimiser."""
        parameters = [p for p in self.networks[name].parameters() if p.requires_grad]
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        average_gradients(parameters)
        if clip is not None:
            clip_gradients(parameters, clip)
        optimizer.step()

    def average(self, step: Step) -> None:
        """Move the averages towards the networks, where the recipe has an update after this step."""
        if (step.number + 1) % self.recipe.ema.every:
            return
        decay = self.recipe.ema.decay_at(step.images_seen, self.recipe.batch)
        for name, average in self.averages.items():
            ema_update(average, self.networks[name], decay)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold of this task."""
        return {
            "networks": {k: v.state_dict() for k, v in self.networks.items()},
            "averages": {k: v.state_dict() for k, v in self.averages.items()},
            "optimizers": {k: v.state_dict() for k, v in self.optimizers.items()},
            "extra": self.extra,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; a kind that is not there stays as it is."""
        for kind in ("networks", "averages", "optimizers"):
            for name, part in state.get(kind, {}).items():
                getattr(self, kind)[name].load_state_dict(part)
        self.extra = dict(state["extra"])


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16.

    Others compute in it all the same, but a convolution then takes 15 to 30 times as long as in float32 (measured on a
    processor with AVX2 alone).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean of the gradients over all processes; nothing to do in one."""
    state = PartialState()
    grads = [p.grad for p in parameters if p.grad is not None]
    if state.num_processes == 1 or not grads:
        return
    flat = torch._utils._flatten_dense_tensors(grads)
    torch.distributed.all_reduce(flat)
    flat /= state.num_processes
    for grad, mean in zip(grads, torch._utils._unflatten_dense_tensors(flat, grads), strict=True):
        grad.copy_(mean)


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> None:
    """Scale the gradients down to a norm of `largest` where theirs, over all of them, is more.

    As torch's own, which writes all gradients anew even where it scales them by 1: on a CPU, where looking at the norm
    costs nothing, that pass over memory is left out.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.device.type != "cpu" or norm + 1e-6 > largest:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)


def all_rows(part: Tensor) -> Tensor:
    """The rows of all processes, one process's after another's."""
    state = PartialState()
    if state.num_processes == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(state.num_processes)]
    torch.distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


@contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Within, networks draw their first weights from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def warm_up(step: Step, num_steps: int) -> float:
    """The part of a learning rate that rises linearly to 1 over the first steps."""
    return min(1.0, (step.number + 1) / max(num_steps, 1))


def inverse_sqrt(step: Step, kimg: float) -> float:
    """The part of a learning rate left after `kimg` thousand images: 1 until then, later sqrt(kimg / images seen)."""
    return math.sqrt(kimg / max(step.images_seen / 1000, kimg))


def cosine_lr(start: float, end: float, images_seen: int, duration_kimg: float, epoch: int = 50_000) -> float:
    """Learning rate on a cosine from `start` to `end`, constant within an epoch of `epoch` images."""
    done = min(images_seen // epoch * epoch / (duration_kimg * 1000), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


# --- data -------------------------------------------------------------------------------------------------


def batch_indices(num_images: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices [batch] of step `step`: epochs are permutations keyed by (seed, epoch), joined end to end."""
    start = step * batch
    parts = []
    while start < (step + 1) * batch:
        epoch, offset = divmod(start, num_images)
        order = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(num_images)
        taken = order[offset : offset + (step + 1) * batch - start]
        parts.append(taken)
        start += len(taken)
    return np.concatenate(parts)


@dataclass
class Feed:
    """Batches of a data set held in memory, as float [-1, 1], flipped at random where the recipe says so.

    Points are divided by `scale`.
    """

    images: np.ndarray
    labels: np.ndarray | None
    recipe: Recipe
    device: torch.device
    scale: float = 1.0

    def __call__(self, step: Step) -> tuple[Tensor, Tensor | None]:
        chosen = batch_indices(len(self.images), self.recipe.batch, step.number, self.recipe.seed)
        flip = torch.rand(self.recipe.batch, generator=step.rng) < 0.5 if self.recipe.flips else None
        chosen = chosen[step.rank :: step.world]
        drawn = torch.from_numpy(self.images[chosen]).to(self.device).float()
        labels = None if self.labels is None else torch.from_numpy(self.labels[chosen]).to(self.device)
        if is_points(self.images.shape[1:]):
            return drawn / self.scale, labels
        images = drawn / 127.5 - 1
        if flip is not None:
            images = torch.where(step.local(flip).to(self.device)[:, None, None, None], images.flip(3), images)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels


# --- the loop ---------------------------------------------------------------------------------------------


@dataclass
class Limits:
    """When to stop and how often to write; times in minutes, `kimg` in thousands of images.

    A snapshot is kept whenever the images seen are `snapshot_growth` times those of the last.
    """

    minutes: float | None = None
    kimg: float | None = None
    checkpoint_minutes: float = 3.0
    grid_minutes: float = 10.0
    log_seconds: float = 10.0
    snapshot_growth: float = 1.25


WARM_UP_STEPS = 500
"""Steps over which learning rates rise where the optimisers' moments had to be made anew."""
NEVER = -WARM_UP_STEPS


@dataclass(frozen=True)
class Place:
    """Where a run stands: steps done, seconds of training, and the step at which the moments were made anew.

    `earlier` holds digests of other recipes that its weights were trained by, each with the images seen until its end.
    """

    step: int = 0
    seconds: float = 0.0
    moments_from: int = NEVER
    earlier: tuple[tuple[str, int], ...] = ()

    def at(self, step: int, seconds: float) -> Place:
        """The same run later."""
        return replace(self, step=step, seconds=seconds)


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows."""

    images_seen: int
    total_images: int
    images_per_second: float
    losses: Mapping[str, float]


def train(
    task: Task,
    data: ImageSet,
    out: Path,
    *,
    limits: Limits | None = None,
    start: Path | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Train until the recipe's duration, a time limit or a signal; go on from `out/checkpoint.pt` if it is there.

    Where there is none, `start` is a folder to start from: `weights.safetensors` (averaged) and `resume.safetensors`
    (as trained) of an earlier run, both in fp16 and without the optimisers' moments. Step, order of the data and
    averages go on where they were; learning rates rise from nothing to their value over `WARM_UP_STEPS` steps. The
    recipe of that run may be another one for the same networks; `run.json` then names it under `earlier_recipes`.

    Writes `checkpoint.pt`, `weights.safetensors`, `resume.safetensors`, `curve.csv`, `grids/*.png`,
    `snapshots/*.safetensors` (averaged weights, each after a quarter more images than the one before) and `run.json`
    into `out`.

    Returns:
        `images_seen`, `hours`, `finished`, whether a signal `interrupted` it, the `precision` that networks compute
        in, and the last `losses`.

    Raises:
        TrainingError: A loss that is not finite: the last good checkpoint stays; an `out` of another recipe or of
            other data; or a `start` of other networks.
        StoreError: `out` cannot be made.
    """
    limits = limits or Limits()
    process = PartialState()
    recipe = task.recipe
    if recipe.batch % process.num_processes:
        raise TrainingError(f"a batch of {recipe.batch} cannot be cut into {process.num_processes} processes.")
    make_folder(out)
    images = data.read(0, len(data))
    about_data = {"name": data.name, "count": len(data), "sha256": sha256(images)}
    place = _resume(task, out, about_data) or (_start_from(task, start, out) if start else Place())
    number, seconds = place.step, place.seconds
    feed = Feed(images, data.labels, recipe, task.device, task.scale)
    kimg = recipe.duration_kimg if limits.kimg is None else limits.kimg
    total = math.ceil(kimg * 1000 / recipe.batch)
    writer = _Writer(task, out, limits, about_data, main=process.is_main_process)
    clock = _Clock(seconds, limits.minutes)
    losses: dict[str, float] = {}
    interrupted = False
    with _stop_signals() as stopped, _own_global_rng(task.device):
        while number < total and not _any_process(stopped() or clock.over()):
            rng = torch.Generator().manual_seed(_key(recipe.seed, number))
            step = Step(number, number * recipe.batch, rng, process.process_index, process.num_processes)
            # Dropout alone draws from torch's global generator.
            torch.manual_seed(_key(recipe.seed, number, process.process_index + 1))
            task.set_rates(step, warmth=min(1.0, (number - place.moments_from + 1) / WARM_UP_STEPS))
            found = task.step(*feed(step), step)
            task.average(step)
            number += 1
            if writer.log_is_due() or number == total:
                losses = _finite(found, number, out)
                rate = writer.log(number * recipe.batch, clock.seconds, losses)
                report(Progress(number * recipe.batch, total * recipe.batch, rate, losses))
            writer.save_if_due(place.at(number, clock.seconds))
        interrupted = stopped()
    writer.save(place.at(number, clock.seconds))
    return {
        "images_seen": number * recipe.batch,
        "hours": clock.seconds / 3600,
        "finished": number >= total,
        "interrupted": interrupted and number < total,
        "precision": task.precision,
        "losses": losses,
    }


def _key(seed: int, number: int, stream: int = 0) -> int:
    """A seed for a step's draws, of the 32 bits that torch's generator keeps on CPUs.

    `number` itself where the others are 0: so were the shipped runs trained, which go on to the bit.
    """
    begin = np.random.SeedSequence((seed, stream)).generate_state(1)[0] if seed or stream else 0
    return (number + int(begin)) % 2**32


def _own_global_rng(device: torch.device) -> AbstractContextManager[None]:
    """Within, torch's global generators may be seeded; after it they are as before."""
    return torch.random.fork_rng(devices=[] if device.type != "cuda" else [device])


def _any_process(stop: bool) -> bool:
    """Whether any process wants to stop: one that left alone would leave the others waiting for its gradients."""
    state = PartialState()
    if state.num_processes == 1:
        return stop
    flag = torch.tensor([float(stop)], device=state.device)
    torch.distributed.all_reduce(flag)
    return bool(flag.item())


def _finite(losses: Mapping[str, Tensor], number: int, out: Path) -> dict[str, float]:
    values = {name: float(loss) for name, loss in losses.items()}
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        raise TrainingError(
            f"step {number}: loss is not finite ({bad}). The last good checkpoint is {out / _checkpoint.NAME}; "
            "lower the learning rate or train in fp32, and start again to go on from it."
        )
    return values


def _resume(task: Task, out: Path, data: Mapping[str, Any]) -> Place | None:
    state = _checkpoint.load(out)
    if state is None:
        if any(path.stem.isdecimal() for path in (out / "snapshots").glob("*.safetensors")):
            raise TrainingError(
                f"{out} holds snapshots of a run and not its {_checkpoint.NAME}. Give another --out, with --resume "
                f"{out} to go on from its weights, or move the snapshots away."
            )
        if PartialState().is_main_process:
            # Of a run that was killed before its first checkpoint.
            _cut_curve(out / "curve.csv", 0)
        return None
    if state["recipe"] != task.recipe.digest:
        raise TrainingError(
            f"{out} holds a run of another recipe (digest {state['recipe'][:12]}, this one is "
            f"{task.recipe.digest[:12]}). Give another --out."
        )
    # Those from before this was kept do not say.
    before = state.get("data", data)
    if before["sha256"] != data["sha256"]:
        raise TrainingError(
            f"{out} holds a run on {before['count']} images of {before['name']}, and {data['name']} has "
            f"{data['count']} others. Give another --out, with --resume {out} to go on from its weights."
        )
    task.load_state(state["task"])
    if PartialState().is_main_process:
        _cut_curve(out / "curve.csv", int(state["step"]) * task.recipe.batch)
    earlier = tuple((str(recipe), int(images_seen)) for recipe, images_seen in state.get("earlier", ()))
    return Place(int(state["step"]), float(state["seconds"]), int(state.get("moments_from", NEVER)), earlier)


def _start_from(task: Task, folder: Path, out: Path) -> Place:
    """Networks, averages and curve of a run whose folder keeps no checkpoint, such as a shipped baseline."""
    networks, about = _read_weights(folder / "resume.safetensors")
    averaged, _ = _read_weights(folder / "weights.safetensors")
    try:
        task.load_state({"networks": _by_network(networks), "extra": about["extra"]})
        task.product.load_state_dict(averaged)
    except (RuntimeError, KeyError, WeightsError) as error:
        raise TrainingError(f"{folder}: does not hold the networks of this recipe: {str(error)[:300]}") from error
    # The recipe that it was trained by may have had batches of another size.
    images_seen = int(about.get("images_seen", about["step"] * task.recipe.batch))
    step = images_seen // task.recipe.batch
    earlier = tuple((str(recipe), int(until)) for recipe, until in about.get("earlier", ()))
    if about["recipe"] != task.recipe.digest:
        earlier += ((about["recipe"], images_seen),)
    if PartialState().is_main_process and (folder / "curve.csv").is_file():
        shutil.copyfile(folder / "curve.csv", out / "curve.csv")
        _cut_curve(out / "curve.csv", step * task.recipe.batch)
    return Place(step, float(about["seconds"]), moments_from=step, earlier=earlier)


def _by_network(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`G/conv.weight` -> {"G": {"conv.weight"}}."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        network, _, name = key.partition("/")
        found.setdefault(network, {})[name] = tensor
    return found


class _Clock:
    """Seconds of training, earlier sessions included, and the limit of this one."""

    def __init__(self, before: float, minutes: float | None) -> None:
        self._before = before
        self._start = time.monotonic()
        self._limit = math.inf if minutes is None else minutes * 60

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def over(self) -> bool:
        return time.monotonic() - self._start >= self._limit


class _Writer:
    """What a run leaves on disk; only the main process writes."""

    def __init__(self, task: Task, out: Path, limits: Limits, data: Mapping[str, Any], *, main: bool) -> None:
        self._task, self._out, self._limits, self._data, self._main = task, out, limits, dict(data), main
        self._logged = self._saved = time.monotonic()
        self._drawn = -math.inf
        self._images_logged: int | None = None

    def log_is_due(self) -> bool:
        return time.monotonic() - self._logged >= self._limits.log_seconds

    def log(self, images_seen: int, seconds: float, losses: Mapping[str, float]) -> float:
        """Add a row to curve.csv; returns images per second since the last."""
        now = time.monotonic()
        before = images_seen if self._images_logged is None else self._images_logged
        rate = (images_seen - before) / max(now - self._logged, 1e-9)
        self._logged, self._images_logged = now, images_seen
        if self._main:
            row = {"images_seen": images_seen, "hours": f"{seconds / 3600:.4f}", "images_per_second": f"{rate:.1f}"}
            _append(self._out / "curve.csv", {**row, **{k: f"{v:.6g}" for k, v in losses.items()}})
        return rate

    def save_if_due(self, place: Place) -> None:
        if time.monotonic() - self._saved >= self._limits.checkpoint_minutes * 60:
            self.save(place)

    def save(self, place: Place) -> None:
        """Checkpoint, weights, and a grid and a snapshot where they are due."""
        self._saved = time.monotonic()
        if not self._main:
            return
        task, out, number = self._task, self._out, place.step
        for name, network in (*task.networks.items(), *task.averages.items()):
            if any(not bool(torch.isfinite(v).all()) for v in network.state_dict().values()):
                raise TrainingError(
                    f"step {number}: the weights of {name} are not finite. The last good checkpoint is "
                    f"{out / _checkpoint.NAME}; lower the learning rate or train in fp32, and start again to go on "
                    "from it."
                )
        images_seen = number * task.recipe.batch
        about = {"step": number, "seconds": place.seconds, "recipe": task.recipe.digest, "earlier": place.earlier}
        moments = {"moments_from": place.moments_from, "task": task.state()}
        _checkpoint.save(out, {**about, "data": self._data, **moments})
        averaged = task.product.state_dict()
        write_weights(out / "weights.safetensors", averaged, config=task.config)
        trained = {f"{name}/{k}": v for name, net in task.networks.items() for k, v in net.state_dict().items()}
        about |= {"images_seen": images_seen, "extra": task.extra}
        write_weights(out / "resume.safetensors", trained, about=about)
        # By the images seen until its end: a recipe may come back.
        earlier = {str(until): digest for digest, until in place.earlier}
        run = {"recipe": task.recipe.model_dump(mode="json"), "config": task.config, "hours": place.seconds / 3600,
               "images_seen": images_seen, "data": self._data, "earlier_recipes": earlier,
               "precision": task.precision}  # fmt: skip
        with replacing(out / "run.json") as partial:
            partial.write_text(json.dumps(run, indent=2) + "\n")
        self._keep_snapshot(averaged, images_seen)
        if self._saved - self._drawn >= self._limits.grid_minutes * 60:
            self._drawn = self._saved
            (out / "grids").mkdir(exist_ok=True)
            with torch.no_grad():
                if is_points(task.image_shape):
                    images = histogram(task.grid(NUM_GRID_POINTS).cpu().numpy())
                else:
                    images = to_uint8(task.grid(64)).cpu().numpy()
            write_grid(out / "grids" / f"{images_seen:09d}.png", images, columns=min(8, len(images)))

    def _keep_snapshot(self, averaged: Mapping[str, Tensor], images_seen: int) -> None:
        """Points of a learning curve: evenly spaced on a logarithmic axis, so that they stay few."""
        folder = self._out / "snapshots"
        folder.mkdir(exist_ok=True)
        last = max((int(path.stem) for path in folder.glob("*.safetensors") if path.stem.isdecimal()), default=0)
        if images_seen > last and images_seen >= self._limits.snapshot_growth * last:
            write_weights(folder / f"{images_seen:09d}.safetensors", averaged, config=self._task.config)


def histogram(points: np.ndarray, side: int = 256) -> np.ndarray:
    """A picture of points [N, 2] but outliers: uint8 [1, 1, side, side], white where there are none, y upwards."""
    bound = 1.1 * float(np.quantile(np.abs(points), 0.99)) or 1.0
    edges = np.linspace(-bound, bound, side + 1)
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=(edges, edges))[0]
    shade = 255 * np.exp(-counts)
    picture: np.ndarray = shade.T[::-1].astype(np.uint8)[None, None]
    return picture


def write_weights(path: Path, tensors: Mapping[str, Tensor], **header: Any) -> None:
    """Weights as fp16 safetensors with JSON in the header, such as `config`; whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    half = {key: _half(tensor.detach()).contiguous() for key, tensor in tensors.items()}
    with replacing(path) as partial:
        try:
            save_file(half, str(partial), metadata={key: json.dumps(value) for key, value in header.items()})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in float32, and the header's `about`."""
    from safetensors import SafetensorError

    try:
        tensors, header = read_safetensors(path)
        about = json.loads(header.get("about", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(
            f"{path}: cannot be read ({error}). A folder to start from holds weights.safetensors and "
            "resume.safetensors, as a run's folder and the baselines of the repository do."
        ) from error
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}, about


def _half(tensor: Tensor) -> Tensor:
    """The tensor in fp16 where it fits: larger numbers than 65504 stay as they are."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if bool(torch.isfinite(half).all()) else tensor


def _append(path: Path, row: Mapping[str, Any]) -> None:
    new = not path.exists()
    with open(path, "a", newline="") as stream:
        writer = csv.DictWriter(stream, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _cut_curve(path: Path, images_seen: int) -> None:
    """Drop the rows of steps that a killed run made after its last checkpoint: they are made again."""
    if not path.is_file():
        return
    with open(path, newline="") as stream:
        header, *rows = list(csv.reader(stream)) or [[]]
    kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= images_seen]
    with replacing(path) as partial, open(partial, "w", newline="") as stream:
        csv.writer(stream).writerows([header, *kept])


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Within, SIGINT and SIGTERM ask for a stop after the step under way, so that nothing is lost."""
    asked: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda n, _: asked.append(n))
    except ValueError:  # not in the main thread: signals stay whose they are
        pass
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
