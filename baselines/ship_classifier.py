"""Put a trained classifier of digits into the package: python baselines/ship_classifier.py RUN --command "...".

Measures it on MNIST's test digits and writes trilemma_bench/classifiers/mnist_classifier.safetensors, whose header says
what it was trained by and how often it errs; prints the digest that trilemma_bench/features/mnist_classifier.py pins.
A classifier under 99.4 % is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from trilemma_bench import registry
from trilemma_bench.features import mnist_classifier
from trilemma_bench.samplers._helpers import read_tensors
from trilemma_bench.training._loop import write_weights

LEAST_ACCURACY = 0.994


def errors(weights: Path, data_root: Path | None) -> tuple[int, int]:
    """Test digits that the weights take for others, and all of them."""
    digits = registry.get("dataset", "mnist").open("test", data_root)
    extractor = mnist_classifier.build(weights=weights, allow_unverified=True)
    found = extractor.extract(digits.read(0, len(digits)))["logits"].argmax(1)
    assert digits.labels is not None
    return int((found != digits.labels).sum()), len(digits)


def ship(run: Path, *, command: str, data_root: Path | None) -> None:
    """Write the weights of a run with their accuracy, or stop where it is too low."""
    wrong, count = errors(run / "weights.safetensors", data_root)
    print(f"{wrong} of {count} test digits wrong: accuracy {1 - wrong / count:.2%}")
    if 1 - wrong / count < LEAST_ACCURACY:
        raise SystemExit(f"at least {LEAST_ACCURACY:.1%} is asked for; nothing was written")
    tensors, config = read_tensors(run / "weights.safetensors")
    about = json.loads((run / "run.json").read_text())
    path = mnist_classifier.shipped()
    path.parent.mkdir(exist_ok=True)
    write_weights(
        path, tensors, config=config or {}, test_accuracy=1 - wrong / count, test_errors=wrong, command=command,
        recipe=about["recipe"], images_seen=about["images_seen"], hours=round(about["hours"], 3), licence="Apache-2.0",
    )  # fmt: skip
    print(f"{path}: {path.stat().st_size} bytes, SHA256 = {hashlib.sha256(path.read_bytes()).hexdigest()!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, help="what the run was made by")
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    ship(given.run, command=given.command, data_root=given.data_root)
