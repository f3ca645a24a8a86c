"""Put the averaged weights of a training run beside a card: python baselines/ship.py ddpm runs/ddpm --command "...".

Copies weights.safetensors, the training curve and the last grid; counts parameters and operations on the network that
the sampler builds. Samples of slow baselines are added with --samples-of RECORD --cache CACHE, from a finished run.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

from trilemma_bench import registry, speed
from trilemma_bench.models import of_train_seed
from trilemma_bench.nets import mlp
from trilemma_bench.record import ResultRecord

HERE = Path(__file__).resolve().parent
TITLES = {"cifar10": "CIFAR-10", "gaussians25": "25 Gaussians", "stackedmnist": "StackedMNIST"}
POINTS = ("gaussians25",)


def toml(value: object) -> str:
    """A value as TOML: JSON's text serves for strings, numbers, flags and flat lists."""
    return json.dumps(value)


def ship(
    name: str,
    run: Path,
    *,
    folder: Path,
    dataset: str,
    options: dict[str, object],
    command: str,
    cpu: str,
    compiled: bool,
    notes: str = "",
) -> None:
    """Write `folder` from a run's; `options` tell these weights from others of the same sampler and data set."""
    about = json.loads((run / "run.json").read_text())
    recipe, trainer = about["recipe"], registry.get("trainer", name)
    recipe_name = next((key for key, found in trainer.recipes.items() if found.model_dump(mode="json") == recipe), None)
    grids = sorted((run / "grids").glob("*.png"))
    if recipe_name is None or not grids:
        raise SystemExit(f"{run}: {'of no recipe' if grids else 'without a grid'} of {name}; nothing was written")
    folder.mkdir(exist_ok=True)
    # Networks of points are trained anew in minutes: nothing to go on from.
    resumable = dataset not in POINTS
    for file in ("weights.safetensors", "resume.safetensors") if resumable else ("weights.safetensors",):
        shutil.copyfile(run / file, folder / file)
    thin_curve(run / "curve.csv", folder / "curve.csv")
    shutil.copyfile(grids[-1], folder / "grid.png")
    kind = registry.get("sampler", name)
    weights = kind.load(folder / "weights.safetensors")
    members = mlp.members(weights.config)
    sampler = kind.build(kind.options(), of_train_seed(weights, 0) if members > 1 else weights, micro_batch=1)
    per_evaluation = speed.gflops_per_image(sampler, 1.0)
    head = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    top = {
        "name": folder.name,
        "title": f"{name}, small network trained in house on {TITLES.get(dataset, dataset)}",
        "sampler": name,
        "dataset": dataset,
        "weights": "weights.safetensors",
        "weights_digest": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "parameters": speed.count_parameters(sampler),
        "gflops_per_evaluation": float(f"{per_evaluation or 0.0:.4g}"),
        "notes": "EMA weights in fp16; computed in fp32. A small network, not the paper's: compare nothing here with "
        "the paper's figures." + (f" {notes}" if notes else ""),
    }
    training = {
        "recipe": recipe_name,
        "source": trainer.source,
        "command": command,
        "images_seen": about["images_seen"],
        **{
            f"until_{images_seen}_images": f"by a recipe of digest {digest[:12]}"
            for images_seen, digest in about.get("earlier_recipes", {}).items()
        },
        "hours": round(about["hours"], 3),
        "cpu": cpu,
        "threads": 1,
        "compiled": compiled,
        "precision": about["precision"],
        "batch": recipe["batch"],
        "seed": recipe["seed"],
        "training_seeds": members,
        "commit": commit,
        "resume": "from resume.safetensors by --resume; the optimisers' moments are not shipped and warm up anew"
        if resumable
        else "the optimisers' state is not shipped",
    }
    lines = [f"{key} = {toml(value)}" for key, value in top.items()]
    if options:
        lines += ["", "[options]", *(f"{key} = {toml(value)}" for key, value in options.items())]
    lines += ["", "[training]", *(f"{key} = {toml(value)}" for key, value in training.items())]
    (folder / "card.toml").write_text("\n".join(lines) + "\n")


def thin_curve(source: Path, target: Path, rows: int = 200) -> None:
    """At most about `rows` rows of a curve, evenly spread, the last one kept."""
    with open(source, newline="") as stream:
        found = list(csv.reader(stream))
    header, body = found[0], found[1:]
    every = max(1, len(body) // rows)
    kept = body[::every]
    if body and kept[-1] != body[-1]:
        kept.append(body[-1])
    with open(target, "w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *kept])


def add_samples(folder: Path, record: Path, cache: Path) -> None:
    """Copy the finished shards of a record from a cache into `folder`/samples, in place of what is there."""
    key = ResultRecord.read(record).samples_key
    source = cache / "samples" / key[:2] / key
    if not source.is_dir():
        raise SystemExit(f"{source}: no such folder; the samples of {record} are not in this cache")
    shutil.rmtree(folder / "samples", ignore_errors=True)
    shutil.copytree(source, folder / "samples" / key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--command", default="")
    parser.add_argument("--cpu", default="")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--notes", default="", help="what else a reader must know, such as how the run began")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--folder", help="below baselines/, where it is not the sampler's name")
    parser.add_argument("--option", action="append", default=[], help="KEY=VALUE that these weights were trained for")
    parser.add_argument("--samples-of", type=Path, help="record whose shards are added")
    parser.add_argument("--cache", type=Path, help="where these shards are; needed with --samples-of")
    given = parser.parse_args()
    if (given.samples_of is None) != (given.cache is None):
        parser.error("--samples-of and --cache go together")
    if wrong := [item for item in given.option if "=" not in item]:
        parser.error(f"--option {wrong[0]}: expected KEY=VALUE")
    folder = HERE / (given.folder or given.name)
    if given.run is not None:
        options = dict(item.split("=", 1) for item in given.option)
        ship(
            given.name, given.run, folder=folder, dataset=given.dataset,
            options={key: int(value) if value.isdigit() else value for key, value in options.items()},
            command=given.command, cpu=given.cpu, compiled=given.compiled, notes=given.notes,
        )  # fmt: skip
    if given.samples_of is not None:
        add_samples(folder, given.samples_of, given.cache)
