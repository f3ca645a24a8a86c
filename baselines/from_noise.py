"""Where a chain loses its images: python baselines/from_noise.py --data-root DATA.

The first 1,000 test images are noised to a step of the chain, and the rest of it is run from there. What noise leaves
of them covers what real images do, so that the recall they lose is lost after that step. Writes
baselines/from_noise.csv: a row for each start of DDGAN and of DDPM (by DDIM in even steps), FD, precision and recall
under cifar10-lite-v1 with 95 % intervals, and the digest of the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from evidence import EXTRACTOR, write_rows
from torch import Tensor

from trilemma_bench import evaluate, registry
from trilemma_bench.images import to_uint8
from trilemma_bench.kinds import Array
from trilemma_bench.samplers._helpers import X_T, Noise

HERE = Path(__file__).resolve().parent
COUNT = 1000
DDIM_STEPS = {100: 5, 250: 8, 400: 10, 600: 12, 800: 16}
"""Steps from each t of DDPM's 1,000; at t = 250 the noise is that of DDGAN's x_1."""
SCORES = {f"{name}_{EXTRACTOR}": name for name in ("fd", "precision", "recall")}


class FromNoise:
    """Image i is test image i, noised to `signal` x_0 + `sigma` eps and drawn from there by `denoise`."""

    image_shape = (3, 32, 32)
    micro_batch = 50
    tolerance = registry.get("sampler", "ddim").tolerance

    def __init__(
        self, name: str, real: Array, signal: float, sigma: float, denoise: Callable[[Tensor, Noise], Tensor]
    ) -> None:
        self.name, self.real, self.signal, self.sigma, self.denoise = name, real, signal, sigma, denoise

    def sample(self, seeds: Tensor) -> Tensor:
        """uint8 [N, 3, 32, 32]."""
        x_0 = torch.from_numpy(self.real[seeds.numpy()]).float() / 127.5 - 1
        noise = Noise(seeds, torch.device("cpu"))
        x = self.signal * x_0 + self.sigma * noise.normal(*self.image_shape, stream=X_T)
        with torch.no_grad():
            return to_uint8(self.denoise(x, noise))


def starts(real: Array) -> dict[FromNoise, tuple[int, str]]:
    """Each start with the evaluations that follow it and the digest of the weights."""
    found = {FromNoise("real images themselves", real, 1.0, 0.0, lambda x, _: x): (0, "")}
    kind = registry.get("sampler", "ddgan")
    weights = kind.load(HERE / "ddgan" / "weights.safetensors")
    ddgan = kind.build(kind.options(), weights)
    for step in range(1, ddgan.chain.num_steps):
        signal, sigma = float(ddgan.chain.signal[step]), float(ddgan.chain.noise[step])
        rest = FromNoise(f"ddgan from x_{step}", real, signal, sigma, partial(ddgan.denoise, steps=step))
        found[rest] = step, weights.digest
    kind = registry.get("sampler", "ddim")
    weights = kind.load(HERE / "ddpm" / "weights.safetensors")
    ddim = kind.build(kind.options(), weights)
    for t, steps in DDIM_STEPS.items():
        times = [round(time) for time in np.linspace(t, -1, steps + 1)]
        pairs = list(zip(times[:-1], times[1:], strict=True))
        alpha_bar = ddim.alpha_bar(t)
        signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        rest = FromNoise(f"ddim from t = {t}", real, signal, sigma, partial(ddim.denoise, pairs=pairs))
        found[rest] = steps, weights.digest
    return found


def main() -> None:
    """Measure every start and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    real = registry.get("dataset", "cifar10").open("test", given.data_root).read(0, COUNT)
    rows = []
    for sampler, (evaluations, digest) in starts(real).items():
        record = evaluate(sampler, "cifar10", timed=False)
        row = {
            "begun": sampler.name, "signal": f"{sampler.signal:.4f}", "noise": f"{sampler.sigma:.4f}",
            "evaluations": str(evaluations),
        }  # fmt: skip
        for item in record.scores:
            if item.kind.name in SCORES:
                assert item.score.interval is not None, item
                low, high = item.score.interval
                name = SCORES[item.kind.name]
                row |= {name: f"{item.score.value:.4g}", f"{name}_low": f"{low:.4g}", f"{name}_high": f"{high:.4g}"}
        rows.append({**row, "weights": digest})
        print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        write_rows(HERE / "from_noise.csv", rows)


if __name__ == "__main__":
    main()
