"""What a training run bought: python baselines/evidence.py ddgan runs/ddgan --data-root DATA.

From the snapshots of a run's folder, into baselines/<name>/:

    scores.csv        FD, KD, precision, recall with intervals against images seen and hours, 1,000 images each
    scores.png        the same as curves
    grid.png          36 images of fixed seeds from the first, the middle and the last snapshot
    neighbours.png    generated images (left), each beside its five nearest training images, by the extractor's features

A snapshot that scores.csv knows already is not measured again. DDPM is measured by DDIM in 20 steps: 50 times cheaper.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from trilemma_bench import evaluate, registry
from trilemma_bench.images import image_digests, write_grid
from trilemma_bench.kinds import Array
from trilemma_bench.models import parse_model
from trilemma_bench.reference import canonical_order, load_reference, reference_path
from trilemma_bench.run import Settings, find_data, find_protocol, images_of, run_spec
from trilemma_bench.spec import load_protocol
from trilemma_bench.store import write_atomic

HERE = Path(__file__).resolve().parent
MODELS = {"ddpm": "ddim:steps=20"}
"""How the weights of a baseline are sampled here, where it is not by its own name alone."""
EXTRACTOR = "efficientnet_lite0"
SCORES = {
    f"fd_{EXTRACTOR}": "Fréchet distance",
    f"kd_{EXTRACTOR}": "kernel distance",
    f"precision_{EXTRACTOR}": "precision",
    f"recall_{EXTRACTOR}": "recall",
}
COLUMNS = 6


def model_of(name: str) -> str:
    """What `--models` calls the sampler of a baseline's weights here."""
    return MODELS.get(name, name)


def draw(name: str, weights: Path, count: int) -> Array:
    """The first `count` images of seed 0, uint8 [count, C, H, W]."""
    settings = Settings()
    data = find_data("cifar10", settings)
    protocol = find_protocol("lite", data, num_samples=count)
    return images_of(run_spec(parse_model(f"{model_of(name)}@{weights}"), protocol), data, settings)[1]


# --- scores -----------------------------------------------------------------------------------------------------


def hours_at(run: Path) -> dict[int, float]:
    """Hours of training by images seen, from the run's curve."""
    with open(run / "curve.csv", newline="") as stream:
        return {int(row["images_seen"]): float(row["hours"]) for row in csv.DictReader(stream)}


def measure(name: str, run: Path, target: Path) -> list[dict[str, str]]:
    """A row for each snapshot; those of `target` are kept as they are."""
    rows = {int(row["images_seen"]): row for row in read_rows(target)}
    seen, hours = zip(*sorted(hours_at(run).items()), strict=True)
    for path in sorted((run / "snapshots").glob("*.safetensors")):
        images_seen = int(path.stem)
        if images_seen in rows:
            continue
        record = evaluate(f"{model_of(name)}@{path}", dataset="cifar10", protocol="lite", timed=False)
        row = {"images_seen": str(images_seen), "hours": f"{np.interp(images_seen, seen, hours):.3f}"}
        for item in record.scores:
            if item.kind.name not in SCORES:
                continue
            if item.score.value is None:
                raise SystemExit(f"{path}: no {item.kind.name}: {item.score.failure}")
            low, high = item.score.interval or (item.score.value, item.score.value)
            row |= {item.kind.name: f"{item.score.value:.6g}", f"{item.kind.name}_low": f"{low:.6g}",
                    f"{item.kind.name}_high": f"{high:.6g}"}  # fmt: skip
        rows[images_seen] = row
        write_rows(target, [rows[key] for key in sorted(rows)])
        print(" ".join(f"{k} {v}" for k, v in row.items() if "_low" not in k and "_high" not in k), flush=True)
    return [rows[key] for key in sorted(rows)]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """The rows as CSV, whole or not at all: each took minutes to measure."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, stream.getvalue().encode())


def plot(name: str, rows: list[dict[str, str]], path: Path) -> None:
    """One panel a score, with 95 % intervals, over hours; images seen stand above."""
    matplotlib.rcParams["svg.hashsalt"] = name
    figure = Figure(figsize=(13, 3), layout="constrained")
    hours = np.array([float(row["hours"]) for row in rows])
    seen = np.array([float(row["images_seen"]) for row in rows])
    for axes, (score, label) in zip(figure.subplots(1, len(SCORES)), SCORES.items(), strict=True):
        value, low, high = (np.array([float(row[f"{score}{end}"]) for row in rows]) for end in ("", "_low", "_high"))
        axes.fill_between(seen, low, high, alpha=0.25, linewidth=0)
        axes.plot(seen, value, marker=".")
        axes.set(xscale="log", xlabel="images seen", title=f"{label} ({EXTRACTOR})" if "distance" in label else label)
    model = model_of(name)
    figure.suptitle(f"{name}, 1,000 images by {model}, {hours[0]:.2f} to {hours[-1]:.2f} hours of training")
    figure.savefig(path, dpi=90, metadata={"Software": None})


# --- images -----------------------------------------------------------------------------------------------------


def grids(name: str, run: Path, path: Path) -> None:
    """First, middle (of the logarithmic axis) and last snapshot side by side, the same seeds in each."""
    snapshots = sorted((run / "snapshots").glob("*.safetensors"))
    chosen = sorted({snapshots[0], snapshots[len(snapshots) // 2], snapshots[-1]})
    blocks = [draw(name, weights, COLUMNS**2).reshape(COLUMNS, COLUMNS, 3, 32, 32) for weights in chosen]
    gap = np.full((COLUMNS, 1, 3, 32, 32), 255, np.uint8)
    sheet = np.concatenate([part for block in blocks for part in (gap, block)][1:], axis=1)
    write_grid(path, sheet.reshape(-1, 3, 32, 32), columns=sheet.shape[1])


def neighbours(name: str, run: Path, path: Path, data_root: Path | None, count: int = 24, nearest: int = 5) -> None:
    """Generated images, each followed by the training images that the memorised fraction finds nearest to it."""
    protocol = load_protocol("lite", dataset="cifar10")
    real = load_reference(reference_path(protocol, EXTRACTOR))
    train = registry.get("dataset", "cifar10").open("train", data_root)
    order = canonical_order(image_digests(train))
    generated = draw(name, run / "weights.safetensors", count)
    extractor = registry.get("extractor", EXTRACTOR).build(device="cpu")
    sketch = (extractor.extract(generated)["features"] - real.centre) @ real.components
    distances = np.square(real.train_sketch[None] - sketch[:, None]).sum(-1)
    rows = []
    for image, found in zip(generated, np.argsort(distances, axis=1)[:, :nearest], strict=True):
        rows += [image, *(train.read(int(order[i]), int(order[i]) + 1)[0] for i in found)]
    write_grid(path, np.stack(rows), columns=2 * (nearest + 1))


def main() -> None:
    """Parse the command line and do it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    folder = HERE / given.name
    rows = measure(given.name, given.run, folder / "scores.csv")
    plot(given.name, rows, folder / "scores.png")
    grids(given.name, given.run, folder / "grid.png")
    neighbours(given.name, given.run, folder / "neighbours.png", given.data_root)


if __name__ == "__main__":
    main()
