"""Measuring a model while it trains: a callback for plain loops, diffusers and Lightning.

    metrics = Metrics(every=1000, num_samples=250, loggers=[to_tensorboard(writer)])
    for step, batch in enumerate(loader):
        ...
        metrics(step, sample)        # sample(seeds: int64 [N]) -> uint8 [N, C, H, W]

Every evaluation draws anew; nothing of it stays in the cache. Speed is not timed: a training run is no idle machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trilemma_bench.errors import UsageError
from trilemma_bench.images import to_uint8
from trilemma_bench.loggers import Logger
from trilemma_bench.record import ResultRecord
from trilemma_bench.run import Settings, evaluate, own_cache

Sample = Callable[[torch.Tensor], torch.Tensor]


class Metrics:
    """Evaluates a sampler every so many steps and tells the loggers.

    Args:
        every: Steps between evaluations; step 0 is left out.
        dataset: As after `--dataset`.
        protocol: As after `--protocol`.
        num_samples: Generated images; None takes the protocol's.
        image_shape: (C, H, W) of what is drawn.
        networks: Put into evaluation mode meanwhile, back after it; their calls are counted.
        loggers: See `loggers`.
        settings: Where things lie; `out` keeps the records.

    Attributes:
        records: All records so far, by step.
    """

    def __init__(
        self,
        *,
        every: int = 1,
        dataset: str = "cifar10",
        protocol: str = "lite",
        num_samples: int | None = None,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        networks: Mapping[str, torch.nn.Module] | None = None,
        loggers: Sequence[Logger] = (),
        settings: Settings | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"every={every}: expected a number of steps, at least 1.")
        self.every = every
        self.records: dict[int, ResultRecord] = {}
        self._run: dict[str, Any] = {"dataset": dataset, "protocol": protocol, "num_samples": num_samples}
        self._shape = image_shape
        self._networks = dict(networks or {})
        self._loggers = tuple(loggers)
        self._settings = settings or Settings()

    def __call__(self, step: int, sample: Sample) -> ResultRecord | None:
        """Evaluate where `step` is due; None where it is not.

        Args:
            step: Of the training.
            sample: int64 [N] -> uint8 [N, C, H, W]; image i depends on seeds[i] alone.
        """
        if step <= 0 or step % self.every:
            return None
        modes = {name: network.training for name, network in self._networks.items()}
        try:
            for network in self._networks.values():
                network.eval()
            with own_cache(self._settings) as settings, torch.no_grad():
                record = evaluate(_Sampler(sample, step, self._shape, self._networks), settings=settings, **self._run)
        finally:
            for name, network in self._networks.items():
                network.train(modes[name])
        self.records[step] = record
        for log in self._loggers:
            log(record, step)
        return record

    def lightning(self, sample: Callable[[Any], Sample]) -> Any:
        """A Lightning callback that evaluates after training batches.

        Args:
            sample: LightningModule -> its function sample(seeds).

        Raises:
            UsageError: Lightning is not installed.
        """
        try:
            from lightning.pytorch import Callback
        except ImportError:
            try:
                # Its older package, whose trainers take no other's callbacks.
                from pytorch_lightning import Callback
            except ImportError as error:
                raise UsageError("this needs Lightning: pip install lightning.") from error
        metrics = self

        class _Callback(Callback):  # type: ignore[misc,valid-type]
            def on_train_batch_end(self, trainer: Any, module: Any, *_: Any, **__: Any) -> None:
                if trainer.is_global_zero:
                    metrics(trainer.global_step, sample(module))

        return _Callback()


class _Sampler:
    """A function as a sampler; its step is its identity, since its weights are under way."""

    def __init__(
        self, sample: Sample, step: int, shape: tuple[int, int, int], networks: Mapping[str, torch.nn.Module]
    ) -> None:
        self.name = f"step-{step}"
        self.identity = self.name
        self.image_shape = shape
        self.networks = networks
        self.sample = sample


def pipeline_sample(pipeline: Any, **call: Any) -> Sample:
    """The sample function of a diffusers pipeline without prompts, such as `DDIMPipeline`.

    Each image has a generator of its own, seeded by all 64 bits of its seed.

    Args:
        pipeline: Takes `batch_size`, `generator` (a list) and `output_type="np"`.
        **call: Further arguments of its call, such as `num_inference_steps=50`.
    """

    def sample(seeds: torch.Tensor) -> torch.Tensor:
        mixed = [int(np.random.SeedSequence(int(seed)).generate_state(1)[0]) for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in mixed]
        images = pipeline(batch_size=len(seeds), generator=generators, output_type="np", **call).images
        # The pipeline gives floats [N, H, W, C] in 0..1.
        return to_uint8(torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2), low=0, high=1).contiguous()

    return sample
