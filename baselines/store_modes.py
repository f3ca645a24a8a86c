"""Keep which modes a baseline of StackedMNIST drew: python baselines/store_modes.py stackedmnist-ddgan --cache CACHE.

Draws the protocol's 26,000 images (or takes them from the cache of a finished run), has the classifier read them, and
writes baselines/<name>/modes.npz: `modes`, int16 [N], of seeds 0, 1, 2 ..., and what they say as modes.json. The
tests count them, and draw a few hundred of the images again. A slow sampler is named with fewer steps:
python baselines/store_modes.py stackedmnist-ddpm --model ddim:steps=20.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from trilemma_bench import registry
from trilemma_bench.cards import load_card
from trilemma_bench.metrics import class_coverage
from trilemma_bench.models import parse_model
from trilemma_bench.run import Settings, find_data, find_protocol, images_of, run_spec


def store(name: str, model: str | None, settings: Settings, num_samples: int | None) -> None:
    """Write the modes of a baseline's samples, drawn by `model` (None: the card's sampler), and print what they say."""
    card, folder = load_card(name)
    model = model or card.sampler
    data = find_data(card.dataset, settings)
    protocol = find_protocol("lite", data, num_samples=num_samples)
    _, images = images_of(run_spec(parse_model(model), protocol), data, settings)
    (score,) = [score for score in protocol.scores if score.metric == "class_coverage"]
    logits = registry.get("extractor", score.extractor).build().extract(images)["logits"]
    params = {**class_coverage.METRIC.defaults, **score.params}
    modes, count = class_coverage.classes(logits, int(params["factors"]))
    np.savez_compressed(folder / "modes.npz", modes=modes.astype(np.int16))
    scores = class_coverage.of_histogram(class_coverage.histogram(modes, np.arange(len(modes)) % 20, count))
    said = {"model": model, "protocol": protocol.name}
    text = json.dumps({**said, **{key: found.value for key, found in scores.items()}}, indent=2)
    (folder / "modes.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--model", help="what draws, where it is not the card's sampler as it is")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--num-samples", type=int, help="images, where not the protocol's")
    given = parser.parse_args()
    store(given.name, given.model, Settings(cache=given.cache), given.num_samples)
