"""What a training run bought: python baselines/evidence.py ddgan runs/ddgan --data-root DATA.

From the snapshots of a run's folder, into baselines/<name>/:

    scores.csv        FD, KD, precision, recall with intervals against images seen and hours, 1,000 images each
    scores.png        the same as curves
    grid.png          36 images of fixed seeds from the first, the middle and the last snapshot
    neighbours.png    generated images, each before a white column and then its five nearest training images, by the
                      extractor's features; two such groups in a row

A snapshot whose weights scores.csv knows already is not measured again; rows of snapshots that are gone stay. DDPM is
measured by DDIM in 20 steps: 50 times cheaper. grid.png wants the snapshots of a run from nothing: one that was resumed
into a new folder has none of the start.
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
from trilemma_bench.fetch import file_sha256
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


def hours_at(images_seen: int, run: Path) -> str:
    """Hours of training when so many images had been seen, by the run's curve."""
    with open(run / "curve.csv", newline="") as stream:
        rows = sorted((int(row["images_seen"]), float(row["hours"])) for row in csv.DictReader(stream))
    seen, hours = zip(*rows, strict=True)
    return f"{np.interp(images_seen, seen, hours):.3f}"


def measure(name: str, run: Path, target: Path) -> list[dict[str, str]]:
    """A row for each snapshot; what `target` has of the same weights is kept, with the hours of this run's curve."""
    kept = {int(row["images_seen"]): row for row in read_rows(target)}
    rows = {images_seen: {**row, "hours": hours_at(images_seen, run)} for images_seen, row in kept.items()}
    for path in sorted((run / "snapshots").glob("*.safetensors")):
        images_seen, weights = int(path.stem), file_sha256(path)
        # Rows from before the weights were noted have none.
        if images_seen in rows and rows[images_seen].get("weights") in (None, "", weights):
            continue
        record = evaluate(f"{model_of(name)}@{path}", dataset="cifar10", protocol="lite", timed=False)
        row = {"images_seen": str(images_seen), "hours": hours_at(images_seen, run)}
        for item in record.scores:
            if item.kind.name not in SCORES:
                continue
            if item.score.value is None:
                raise SystemExit(f"{path}: no {item.kind.name}: {item.score.failure}")
            low, high = item.score.interval or (item.score.value, item.score.value)
            row |= {item.kind.name: f"{item.score.value:.6g}", f"{item.kind.name}_low": f"{low:.6g}",
                    f"{item.kind.name}_high": f"{high:.6g}"}  # fmt: skip
        rows[images_seen] = {**row, "weights": weights}
        write_rows(target, [rows[key] for key in sorted(rows)])
        print(" ".join(f"{k} {v}" for k, v in row.items() if "_low" not in k and "_high" not in k), flush=True)
    found = [rows[key] for key in sorted(rows)]
    write_rows(target, found)
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """The rows as CSV, whole or not at all: each took minutes to measure."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, stream.getvalue().encode())


def plot(name: str, rows: list[dict[str, str]], path: Path) -> None:
    """One panel a score, with 95 % intervals, over images seen and, below, over hours."""
    matplotlib.rcParams["svg.hashsalt"] = name
    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplots(2, len(SCORES), sharey="col")
    for line, (key, axis) in zip(panels, {"images_seen": "images seen", "hours": "hours"}.items(), strict=True):
        along = np.array([float(row[key]) for row in rows])
        for axes, score in zip(line, SCORES, strict=True):
            value, low, high = (
                np.array([float(row[f"{score}{end}"]) for row in rows]) for end in ("", "_low", "_high")
            )
            axes.fill_between(along, low, high, alpha=0.25, linewidth=0)
            axes.plot(along, value, marker=".")
            axes.set(xscale="log", xlabel=axis)
    for axes, label in zip(panels[0], SCORES.values(), strict=True):
        axes.set(title=f"{label} ({EXTRACTOR})" if "distance" in label else label)
    figure.suptitle(f"{name}, 1,000 images by {model_of(name)}, cifar10-lite-v1")
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
    white = np.full((3, 32, 32), 255, np.uint8)
    tiles: list[Array] = []
    for place, (image, found) in enumerate(zip(generated, np.argsort(distances, axis=1)[:, :nearest], strict=True)):
        gap = [white, white] if place % 2 else []
        tiles += [*gap, image, white, *(train.read(int(order[i]), int(order[i]) + 1)[0] for i in found)]
    write_grid(path, np.stack(tiles), columns=2 * (nearest + 2) + 2)


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
