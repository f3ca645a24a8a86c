"""The command line: it parses, calls and prints; what it does lies in `run`, `jobs` and `training`.

Exit codes: 0 all done; 1 a model could not be measured (its record says why); 2 input that cannot be used, nothing
lost; 130 interrupted, and the same command goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from trilemma_bench import __version__
from trilemma_bench.errors import TrilemmaError, UsageError, unknown_name

EPILOG = (
    "Exit codes: 0 all done; 1 a model could not be measured, its record says why; "
    "2 input that cannot be used; 130 interrupted, the same command goes on."
)
app = typer.Typer(
    name="trilemma-bench",
    help="Measure generative models: how good, how diverse, how fast.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
reference_app = typer.Typer(help="The real side of every score.", no_args_is_help=True)
app.add_typer(reference_app, name="reference")
weights_app = typer.Typer(help="Official weights, read as data.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

DatasetOption = Annotated[str, typer.Option(help="Data set by name, or a folder, zip, npz of your own images.")]
ProtocolOption = Annotated[str, typer.Option(help="lite, paper, a full name, or the path of a TOML file.")]
OutOption = Annotated[Path, typer.Option(help="Results folder.")]
NumSamplesOption = Annotated[
    int | None, typer.Option(help="Generated images; another count than the protocol's is a variant of it.")
]
SeedOption = Annotated[int, typer.Option(help="Image i has the seed SEED * 2^32 + i.", min=0)]
DeviceOption = Annotated[str, typer.Option(help="Where networks run: cpu, cuda, cuda:1 ...")]
BatchOption = Annotated[int | None, typer.Option(help="Images in a micro-batch; part of the samples key.", min=1)]
DataRootOption = Annotated[Path | None, typer.Option(help="Where data sets lie; else TRILEMMA_DATA, ./data.")]
InceptionOption = Annotated[
    Path | None, typer.Option(help="TF Inception weights (pt_inception-2015-12-05-6726825d.pth) for FID and IS.")
]
UnverifiedOption = Annotated[
    bool, typer.Option("--allow-unverified-weights", help="Take Inception weights of another digest; marked.")
]
StatisticsOption = Annotated[
    Path | None,
    typer.Option(help="Mean and covariance of pytorch-fid, clean-fid, EDM or ADM (npz) for Inception's distances."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, no table.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the records as JSON and nothing else.")]


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script: turns errors into one message and an exit code."""
    try:
        code = app(args=argv, standalone_mode=False)
    except TrilemmaError as error:
        _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from here", 130)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        shown: Any = getattr(error, "show", None)
        if shown is not None:
            shown()
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def _version(value: bool) -> None:
    if value:
        print(f"trilemma-bench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


# --- measuring ----------------------------------------------------------------------------------------------


@app.command(epilog=EPILOG)
def run(
    models: Annotated[
        str,
        typer.Option(
            help="Comma-separated: ddpm, ddim:steps=20,eta=0, ddgan@PATH, real:split=test, untrained:ddgan, "
            "package.module:factory."
        ),
    ],
    dataset: DatasetOption = "cifar10",
    protocol: ProtocolOption = "lite",
    out: OutOption = Path("results"),
    num_samples: NumSamplesOption = None,
    seed: SeedOption = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Several seeds, as 0,1,2: a record for each, one row for all in the leaderboard.")
    ] = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, or autocast to bfloat16 or float16; in the record.")] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the networks; in the record.")] = False,
    batch_size: BatchOption = None,
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    statistics: StatisticsOption = None,
    allow_unverified: UnverifiedOption = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make all samples anew; use no finished ones.")] = False,
    retime: Annotated[bool, typer.Option("--retime", help="Add a timing to finished records.")] = False,
    full_timing: Annotated[bool, typer.Option("--full-timing", help="Never extrapolate a time.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Sample models, measure them under a protocol, and write the leaderboard."""
    from trilemma_bench import jobs
    from trilemma_bench.models import parse_models
    from trilemma_bench.run import Settings, find_data, find_protocol, run_spec

    with _progress(quiet or as_json) as report:
        settings = Settings(
            out=out, data_root=data_root, inception_weights=inception_weights, allow_unverified=allow_unverified,
            fresh=fresh, retime=retime, full_timing=full_timing, statistics=statistics, report=report,
        )  # fmt: skip
        named = parse_models(models)
        data = find_data(dataset, settings)
        found = find_protocol(protocol, data, num_samples=num_samples)
        specs = [
            run_spec(item, found, seed=each, device=device, dtype=dtype, compile=compile, batch_size=batch_size)
            for item in named
            for each in _seeds(seeds, seed)
        ]
        jobs.check(specs)
        records = jobs.run_all(specs, data, settings, failed=_print_failure)
    _finish(records, out, settings, found, quiet=quiet, as_json=as_json)


def _seeds(several: str | None, one: int) -> list[int]:
    """The seeds of `--seeds 0,1,2`, else that of `--seed`."""
    if several is None:
        return [one]
    try:
        found = [int(part) for part in several.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds {several}: expected whole numbers with commas between, such as 0,1,2.") from error
    if len(set(found)) < len(found):
        raise UsageError(f"--seeds {several}: names a seed twice. Name it once.")
    return found


@app.command(epilog=EPILOG)
def score(
    path: Annotated[Path, typer.Argument(help="Folder, zip, npz (also arr_0 in NHWC) or npy of uint8 images.")],
    dataset: DatasetOption = "cifar10",
    protocol: ProtocolOption = "lite",
    out: OutOption = Path("results"),
    name: Annotated[str | None, typer.Option(help="The name in the leaderboard; else the path's last part.")] = None,
    layout: Annotated[str | None, typer.Option(help="NCHW or NHWC, where the shape does not tell.")] = None,
    num_samples: NumSamplesOption = None,
    seed: Annotated[int, typer.Option(help="Chooses images where there are more than needed.", min=0)] = 0,
    device: DeviceOption = "cpu",
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    statistics: StatisticsOption = None,
    allow_unverified: UnverifiedOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure images that exist already: quality and coverage, without speed."""
    from trilemma_bench.run import Settings, find_data, find_protocol, run_spec, score_images
    from trilemma_bench.spec import SamplerSpec

    with _progress(quiet or as_json) as report:
        settings = Settings(
            out=out, data_root=data_root, inception_weights=inception_weights, allow_unverified=allow_unverified,
            statistics=statistics, report=report,
        )  # fmt: skip
        data = find_data(dataset, settings)
        found = find_protocol(protocol, data, num_samples=num_samples)
        sampler = SamplerSpec(name=name or path.name, kind="external")
        spec = run_spec(sampler, found, seed=seed, device=device)
        records = [score_images(path, spec, data, settings, layout=layout)]
    _finish(records, out, settings, found, quiet=quiet, as_json=as_json)


@app.command(epilog=EPILOG)
def leaderboard(
    results: Annotated[Path, typer.Argument(help="Results folder.")] = Path("results"),
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write leaderboard.md and leaderboard.csv anew from the records of a results folder, and print it."""
    from trilemma_bench.results import read_records, write_leaderboard

    records = read_records(results)
    paths = write_leaderboard(records, results)
    if as_json:
        _print_json(records)
    elif not quiet:
        _print_tables(records)
        print(f"wrote {', '.join(str(path) for path in paths)}")


@app.command(epilog=EPILOG)
def compare(
    a: Annotated[str, typer.Argument(help="A record: its file, or its name or model in the results folder.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    out: OutOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Compare two records score by score: difference, 95 % interval, p (corrected after Holm), verdict."""
    from dataclasses import asdict

    from trilemma_bench.comparison import compare as compared
    from trilemma_bench.results import find_record

    first, second = find_record(a, out), find_record(b, out)
    found = compared(first, second)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    print(f"a: {first.name} ({first.spec.protocol.name})\nb: {second.name} ({second.spec.protocol.name})")
    for each in found:
        if each.difference is None:
            print(f"{each.label}: not comparable: {each.note}")
            continue
        low, high = each.difference.interval
        change = f"{each.difference.value:+.4g} [{low:+.4g}, {high:+.4g}]"
        print(
            f"{each.label}: a {each.a:.5g}, b {each.b:.5g}, a - b {change}, p {each.p:.2g}: {each.verdict} "
            f"({each.note})"
        )


@app.command(epilog=EPILOG)
def verify(
    record: Annotated[Path, typer.Argument(help="A record: results/PROTOCOL/MODEL-DIGEST.json.")],
    dataset: DatasetOption = "cifar10",
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make again what can be made again of a record, from the cache, and say what agrees."""
    from dataclasses import asdict

    from trilemma_bench.provenance import verify as verified
    from trilemma_bench.run import Settings, find_data

    with _progress(quiet or as_json) as report:
        settings = Settings(data_root=data_root, inception_weights=inception_weights, report=report)
        checks = verified(record, find_data(dataset, settings), settings)
    if as_json:
        print(json.dumps([asdict(each) for each in checks], indent=2))
    else:
        for each in checks:
            print(f"{each.verdict}: {each.what}: {each.detail}")
    if any(each.verdict == "differs" for each in checks):
        raise typer.Exit(1)


def _finish(records: list[Any], out: Path, settings: Any, protocol: Any, *, quiet: bool, as_json: bool) -> None:
    """Write the leaderboard over everything in `out`, print these records, and exit with 1 where one failed."""
    from trilemma_bench.results import read_records, write_leaderboard
    from trilemma_bench.run import left_out

    paths = write_leaderboard(read_records(out), out)
    if as_json:
        _print_json(records)
    elif not quiet:
        _print_tables(records)
        for line in left_out(protocol, settings):
            print(line)
        for record in records:
            for note in record.notes:
                print(f"{record.model}: {note}")
        print(f"wrote {', '.join(str(path) for path in paths)}")
    failed = [record for record in records if any(item.score.failure for item in record.scores)]
    if any(record.speed is None and not record.samples_key for record in failed):
        raise typer.Exit(1)


def _print_json(records: list[Any]) -> None:
    print(json.dumps([record.model_dump(mode="json") for record in records], indent=2))


def _print_tables(records: list[Any]) -> None:
    from rich.console import Console

    from trilemma_bench.results import tables

    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables(records):
        console.print(table)


def _print_failure(spec: Any, error: BaseException, trace: str) -> None:
    if trace:
        print(trace, file=sys.stderr)
    print(f"{spec.sampler}: {type(error).__name__}: {error}", file=sys.stderr)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar for each thing that is reported, on standard error."""
    if quiet:
        yield lambda what, done, total, text="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    bars: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def report(what: str, done: int, total: int, text: str = "") -> None:
            """`text` stands beside the name and may change."""
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total, description=f"{what} {text}".strip())

        yield report


# --- references, training, listing --------------------------------------------------------------------------


@reference_app.command("make", epilog=EPILOG)
def reference_make(
    dataset: DatasetOption = "cifar10",
    extractor: Annotated[str, typer.Option(help="Which features.")] = "efficientnet_lite0",
    protocol: ProtocolOption = "lite",
    out: Annotated[Path | None, typer.Option(help="File to write; else the cache.")] = None,
    device: DeviceOption = "cpu",
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    allow_unverified: UnverifiedOption = False,
    quiet: QuietOption = False,
) -> None:
    """Extract and keep the features and moments of a data set."""
    from trilemma_bench.run import Settings, build_reference

    with _progress(quiet) as report:
        settings = Settings(
            data_root=data_root, inception_weights=inception_weights, allow_unverified=allow_unverified, report=report
        )
        path, identity = build_reference(dataset, protocol, extractor, settings, device=device, out=out)
    print(f"wrote {path} (identity {identity[:16]})")


@weights_app.command("import", epilog=EPILOG)
def weights_import(
    model: Annotated[str, typer.Argument(help="The sampler that the weights belong to: ddpm, stylegan2, adm ...")],
    path: Annotated[Path, typer.Argument(help="The official file or folder; nothing in it is run.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
) -> None:
    """Read official weights, check that they fit their network, and write them as safetensors."""
    from trilemma_bench.models import import_weights

    found = import_weights(model, path, out)
    shape = "x".join(str(n) for n in found.image_shape)
    print(f"wrote {found.path}: {found.parameters} numbers, images of {shape}, content SHA-256 {found.digest}")
    print(f"measure them with: trilemma-bench run --models {model}@{found.path}")


@app.command(epilog=EPILOG)
def train(
    model: Annotated[str, typer.Argument(help="ddgan, ddpm or stylegan2.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on.")],
    dataset: DatasetOption = "cifar10",
    recipe: Annotated[str, typer.Option(help="paper, or cpu-small for two CPU cores.")] = "cpu-small",
    kimg: Annotated[float | None, typer.Option(help="Stop after so many thousand images; else the recipe's.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes; start again to go on.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to train; else a GPU where there is one.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the networks.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Start a new run from the networks of a baseline's or another run's folder.")
    ] = None,
    data_root: DataRootOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a baseline; kill it at any moment and start it again to go on.

    Several GPUs: accelerate launch --multi_gpu $(which trilemma-bench) train ...
    """
    from trilemma_bench.training import train_model

    with _training_bar(quiet) as report:
        result = train_model(
            model, dataset=dataset, recipe=recipe, out=out, kimg=kimg, minutes=minutes, device=device,
            compile=compile, data_root=data_root, resume=resume, report=report,
        )  # fmt: skip
    if not quiet:
        done = "finished" if result["finished"] else "stopped; the same command goes on"
        print(f"{done}: {result['images_seen']} images, {result['hours']:.2f} hours in all, in {out}")


@contextmanager
def _training_bar(quiet: bool) -> Iterator[Callable[[Any], None]]:
    """A bar with losses and rate, on standard error."""
    with _progress(quiet) as report:

        def show(progress: Any) -> None:
            losses = " ".join(f"{name} {value:.4f}" for name, value in progress.losses.items())
            text = f"{losses} | {progress.images_per_second:.0f} images/s"
            report("training", progress.images_seen, progress.total_images, text)

        yield show


@app.command(epilog=EPILOG)
def selftest(
    protocol: ProtocolOption = "paper",
    dataset: DatasetOption = "cifar10",
    golden: Annotated[Path | None, typer.Option(help="Another file of published constants (TOML).")] = None,
    device: DeviceOption = "cpu",
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure published constants of the real data again: does this installation measure what the field does?"""
    from trilemma_bench import selftest as tests
    from trilemma_bench.run import Settings, find_data, find_protocol

    with _progress(quiet) as report:
        settings = Settings(data_root=data_root, inception_weights=inception_weights, report=report)
        data = find_data(dataset, settings)
        name = find_protocol(protocol, data).name
        outcomes = tests.run(data, protocol, settings, tests.read_golden(golden or name))
    for each in outcomes:
        verdict = "holds" if each.holds else "DOES NOT HOLD"
        found = each.failure if each.found is None else f"{each.found:.4f}"
        print(f"{verdict}: {each.expected.source}: {found}, expected {each.expected.value} ± {each.expected.within}")
    if not all(each.holds for each in outcomes):
        raise typer.Exit(1)


LISTS = {
    "models": "sampler",
    "datasets": "dataset",
    "metrics": "metric",
    "extractors": "extractor",
    "trainers": "trainer",
}


@app.command("ls", epilog=EPILOG)
def list_names(
    what: Annotated[
        str, typer.Argument(help="models, datasets, metrics, extractors, trainers, protocols, or results.")
    ],
    out: OutOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """List what can be named; `results` lists the records of a results folder."""
    from trilemma_bench import registry
    from trilemma_bench.spec import protocol_names

    if what == "protocols":
        found = protocol_names()
    elif what in LISTS:
        found = registry.names(LISTS[what])
    elif what == "results":
        from trilemma_bench.results import listing

        found = listing(out)
    else:
        raise unknown_name("list", what, [*LISTS, "protocols", "results"])
    print(json.dumps(found, indent=2) if as_json else "\n".join(found))


__all__ = ["UsageError", "app", "main"]

if __name__ == "__main__":
    main()
