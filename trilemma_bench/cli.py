"""The command line: it parses, calls and prints; what it does lies in `run`, `jobs` and `training`.

Exit codes: 0 all done; 1 a model could not be measured (its record says why); 2 input that cannot be used, nothing
lost; 130 interrupted, and the same command goes on from there.
"""

from __future__ import annotations

import json
import os
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
expect_app = typer.Typer(help="What a gate holds runs against.", no_args_is_help=True)
app.add_typer(expect_app, name="expect")

ModelsOption = Annotated[
    str,
    typer.Option(
        help="Comma-separated: ddpm, ddim:steps=20,eta=0, ddgan@PATH, real:split=test, untrained:ddgan, "
        "package.module:factory."
    ),
]

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
ResultsArgument = Annotated[Path, typer.Argument(help="Results folder.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, no table.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the records as JSON and nothing else.")]

INTERRUPTED = 130
"""The exit code after a signal, Ctrl-C's among them."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script: turns errors into one message and an exit code."""
    try:
        code = app(args=argv, standalone_mode=False)
    except TrilemmaError as error:
        _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        shown: Any = getattr(error, "show", None)
        if shown is not None:
            shown()
        code = error.exit_code
    if code == INTERRUPTED:
        _fail("interrupted; the same command goes on from here", INTERRUPTED)
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
    models: ModelsOption,
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
        jobs.check(specs, data, settings)
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
def sweep(
    model: Annotated[str, typer.Option(help="One model, as after --models of `run`.")],
    over: Annotated[list[str], typer.Option(help="An option and its values: steps=5,10,20; repeat it for a grid.")],
    metric: Annotated[
        str | None, typer.Option(help="The column that the curve shows; else the first of quality.")
    ] = None,
    within: Annotated[float, typer.Option(help="What counts as near the best: a share of it.", min=0.0)] = 0.05,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for the curves as PNG and SVG; needs trilemma-bench\\[plot].")
    ] = None,
    dataset: DatasetOption = "cifar10",
    protocol: ProtocolOption = "lite",
    out: OutOption = Path("results"),
    num_samples: NumSamplesOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    batch_size: BatchOption = None,
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    full_timing: Annotated[bool, typer.Option("--full-timing", help="Never extrapolate a time.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure one model over values of its options: a record a point, and the fewest evaluations that do."""
    from trilemma_bench import jobs
    from trilemma_bench.models import parse_model
    from trilemma_bench.ranking import curve_column, find_column, rows
    from trilemma_bench.run import Settings, find_data, find_protocol, run_spec
    from trilemma_bench.sweep import curves, expand, fewest_evaluations

    named = [parse_model(item) for item in expand(model, over)]
    with _progress(quiet or as_json) as report:
        settings = Settings(
            out=out, data_root=data_root, inception_weights=inception_weights, full_timing=full_timing, report=report
        )
        data = find_data(dataset, settings)
        found = find_protocol(protocol, data, num_samples=num_samples)
        specs = [run_spec(item, found, seed=seed, device=device, batch_size=batch_size) for item in named]
        jobs.check(specs, data, settings)
        records = jobs.run_all(specs, data, settings, failed=_print_failure)
    if figures is not None:
        from trilemma_bench.figures import write_figures

        write_figures(rows(records), figures, metric=metric)
    tables = rows(records).tables
    if metric is not None and tables and all(curve_column(table, metric) is None for table in tables):
        find_column(tables[0], metric)  # says what there is
    if not as_json:
        for table in tables:
            column = curve_column(table, metric)
            if column is None:
                continue
            for curve in curves(table, column.name):
                point = fewest_evaluations(curve, column, within=within)
                print(f"{curve.label}: {point.nfe:g} evaluations are the fewest within {within:.0%} of the best "
                      f"{column.label} ({point.value:.4g} at {point.row.label})")  # fmt: skip
    _finish(records, out, settings, found, quiet=quiet, as_json=as_json)


@app.command(epilog=EPILOG)
def score(
    path: Annotated[
        Path, typer.Argument(help="Images: folder, zip, npz (also arr_0 in NHWC), npy of uint8. Points: npy, npz, csv.")
    ],
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
    from trilemma_bench.store import check_writable

    with _progress(quiet or as_json) as report:
        settings = Settings(
            out=out, data_root=data_root, inception_weights=inception_weights, allow_unverified=allow_unverified,
            statistics=statistics, report=report,
        )  # fmt: skip
        data = find_data(dataset, settings)
        found = find_protocol(protocol, data, num_samples=num_samples)
        check_writable(out)
        sampler = SamplerSpec(name=name or path.resolve().name, kind="external")
        spec = run_spec(sampler, found, seed=seed, device=device)
        records = [score_images(path, spec, data, settings, layout=layout)]
    _finish(records, out, settings, found, quiet=quiet, as_json=as_json)


@app.command(epilog=EPILOG)
def leaderboard(
    results: ResultsArgument = Path("results"),
    format: Annotated[
        str, typer.Option(help="Files to write: md or markdown, csv, tex or latex (booktabs), json.")
    ] = "md,csv",
    sort: Annotated[str | None, typer.Option(help="Column to sort by, such as recall; the best first.")] = None,
    columns: Annotated[str, typer.Option(help="Columns to show, in order: fd,recall,seconds.")] = "",
    precision: Annotated[
        int | None, typer.Option(min=1, max=9, help="Significant digits; else two of each interval.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; else the results folder.")] = None,
    with_published: Annotated[
        bool,
        typer.Option("--with-published", help="The papers' figures below, apart and never ranked with the others."),
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the leaderboard anew from the records of a results folder, and print it."""
    from trilemma_bench.ranking import arrange, rows
    from trilemma_bench.results import published_tables, read_records, write_leaderboard

    records = read_records(results)
    board = arrange(rows(records), sort=sort, columns=_names(columns))
    paths = write_leaderboard(
        board, out or results, formats=_names(format), precision=precision, with_published=with_published
    )
    if as_json:
        _print_json(records)
    elif not quiet:
        _print_tables(board, precision)
        print("\n".join(published_tables(board) if with_published else []))
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
    from trilemma_bench.results import find_pair

    first, second = find_pair(a, b, out)
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
    dataset: Annotated[str | None, typer.Option(help="Path of one's own images; else the record's data set.")] = None,
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    statistics: StatisticsOption = None,
    allow_unverified: UnverifiedOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make again what can be made again of a record, from the cache, and say what agrees."""
    from dataclasses import asdict

    from trilemma_bench.provenance import data_of
    from trilemma_bench.provenance import verify as verified
    from trilemma_bench.run import Settings

    with _progress(quiet or as_json) as report:
        settings = Settings(
            data_root=data_root, inception_weights=inception_weights, statistics=statistics,
            allow_unverified=allow_unverified, report=report,
        )  # fmt: skip
        checks = verified(record, data_of(record, dataset, settings), settings)
    if as_json:
        print(json.dumps([asdict(each) for each in checks], indent=2))
    else:
        for each in checks:
            print(f"{each.verdict}: {each.what}: {each.detail}")
    if any(each.verdict == "differs" for each in checks):
        raise typer.Exit(1)


@app.command(epilog="Exit codes: 0 there is one; 1 no model meets the conditions; 2 input that cannot be used.")
def best(
    results: ResultsArgument = Path("results"),
    metric: Annotated[str, typer.Option(help="A column: fid, fd, recall, seconds ...")] = "fd",
    max_seconds: Annotated[float | None, typer.Option(help="Most seconds per 100 images.")] = None,
    max_nfe: Annotated[float | None, typer.Option(help="Most network evaluations an image.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="A condition such as 'recall>=0.3'; repeat it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Which model is the best under conditions, and which cannot be told from it?"""
    from trilemma_bench import frontier
    from trilemma_bench.ranking import find_column, has_column, rows
    from trilemma_bench.render import cell_text, printable
    from trilemma_bench.results import read_records

    conditions = list(where or [])
    conditions += [f"seconds<={max_seconds!r}"] if max_seconds is not None else []
    conditions += [f"nfe<={max_nfe!r}"] if max_nfe is not None else []
    answers = []
    board = rows(read_records(results)).tables
    # Where some tables have the column, the others have nothing to say; where none has, the error says what there is.
    for table in [table for table in board if has_column(table, metric)] or board[:1]:
        column = find_column(table, metric)
        for index, row in enumerate(frontier.best(table, metric, conditions)):
            cell = table.cell(row, column)
            answers.append({"protocol": table.protocol, "model": row.label, "metric": column.name, "value": cell.value,
                            "low": cell.low, "high": cell.high, "tied": index > 0})  # fmt: skip
            if not as_json:
                tied = " (cannot be told apart from it)" if index else ""
                print(f"{printable(table.protocol)}: {printable(row.label)}, {column.name} "
                      f"{cell_text(cell, column).rstrip('≈')}{tied}")  # fmt: skip
    if as_json:
        print(json.dumps(answers, indent=2))
    elif not answers:
        print(f"no model meets {', '.join(conditions)}" if conditions else "no model has a number there")
    raise typer.Exit(0 if answers else 1)


@app.command(epilog=EPILOG)
def plot(
    results: ResultsArgument = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("figures"),
    metric: Annotated[str | None, typer.Option(help="The column of the curves; else the first of quality.")] = None,
    width: Annotated[str, typer.Option(help="column or page, as in the field's proceedings.")] = "page",
    serif: Annotated[bool, typer.Option("--serif", help="Serif type.")] = False,
) -> None:
    r"""Write the trilemma figure, the curves of sweeps and the samples as PNG and SVG.

    Needs trilemma-bench\[plot]. Images come from the cache or from what ships; points too, or they are drawn again.
    """
    from trilemma_bench.figures import write_figures
    from trilemma_bench.ranking import rows
    from trilemma_bench.results import read_records

    records = read_records(results)
    samples, centres = _points(records)
    samples |= _images(records)
    paths = write_figures(rows(records), out, metric=metric, width=width, serif=serif, samples=samples, centres=centres)
    print(f"wrote {', '.join(str(path) for path in paths)}")


def _points(records: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Points in the plane of the records that have them, by name, and centres of modes by data set."""
    from trilemma_bench import registry
    from trilemma_bench.run import Settings, points_of

    found, centres = {}, {}
    for record in [each for each in records if tuple(each.spec.protocol.image_shape) == (2,)]:
        try:
            points = points_of(record, Settings())
        except TrilemmaError as error:
            points = str(error)
        if isinstance(points, str):
            print(f"{record.model}: no panel: {points}", file=sys.stderr)
            continue
        found[record.name] = points
        mixture = registry.get("dataset", record.spec.protocol.dataset).mixture
        if mixture is not None:
            centres[record.spec.protocol.dataset] = mixture.centres
    return found, centres


def _images(records: list[Any]) -> dict[str, Any]:
    """A sheet of the first images of each record whose images are kept, by name."""
    from trilemma_bench.figures import PANEL_IMAGES
    from trilemma_bench.images import sheet
    from trilemma_bench.kinds import is_points
    from trilemma_bench.report import first_images
    from trilemma_bench.store import cache_folder

    cache = cache_folder()
    shown = [record for record in records if not is_points(record.spec.protocol.image_shape)]
    found = {record.name: first_images(record, cache, PANEL_IMAGES) for record in shown}
    return {name: sheet(images, min(PANEL_IMAGES, len(images))) for name, images in found.items() if images is not None}


@app.command(epilog=EPILOG)
def report(
    results: ResultsArgument = Path("results"),
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "trilemma-bench",
    quiet: QuietOption = False,
) -> None:
    """Write one self-contained HTML page: tables, figures, sample grids, a page for each model."""
    from trilemma_bench.report import write_report
    from trilemma_bench.results import read_records

    left_out = write_report(read_records(results), out, title=title)
    if not quiet:
        print("\n".join([*left_out, f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)"]))


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _finish(records: list[Any], out: Path, settings: Any, protocol: Any, *, quiet: bool, as_json: bool) -> None:
    """Write the leaderboard over everything in `out`, print these records, and exit with 1 where one failed."""
    from trilemma_bench.ranking import rows
    from trilemma_bench.results import read_records, write_leaderboard
    from trilemma_bench.run import left_out

    paths = write_leaderboard(rows(read_records(out)), out)
    if as_json:
        _print_json(records)
    elif not quiet:
        _print_tables(rows(records))
        for line in left_out(protocol, settings):
            print(line)
        for record in records:
            for note in record.notes:
                print(f"{record.model}: {note}")
        print(f"wrote {', '.join(str(path) for path in paths)}")
    failed = [record for record in records if record.scores and all(item.score.failure for item in record.scores)]
    for record in failed:
        print(f"{record.model}: no score could be computed: {record.scores[0].score.failure}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _print_json(records: list[Any]) -> None:
    print(json.dumps([record.model_dump(mode="json") for record in records], indent=2))


def _print_tables(board: Any, precision: int | None = None) -> None:
    from rich.console import Console

    from trilemma_bench.results import tables

    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables(board, precision=precision):
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


# --- the gate ---------------------------------------------------------------------------------------------


@expect_app.command("make", epilog=EPILOG)
def expect_make(
    models: ModelsOption,
    out: Annotated[Path, typer.Option(help="Folder of expectations.")],
    dataset: DatasetOption = "cifar10",
    protocol: ProtocolOption = "lite",
    num_samples: NumSamplesOption = None,
    seeds: Annotated[int, typer.Option(help="Runs whose spread is the expectation's; at least 5.")] = 10,
    images: Annotated[int, typer.Option(help="Images that are kept and drawn again by the gate.")] = 32,
    images_only: Annotated[bool, typer.Option("--images-only", help="No scores, no speed: for slow samplers.")] = False,
    speed_factor: Annotated[float, typer.Option(help="From which factor on another speed matters.")] = 1.25,
    device: DeviceOption = "cpu",
    batch_size: BatchOption = None,
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure models under several seeds and write what a gate shall expect, images included."""
    from trilemma_bench.expectations import make_expectation
    from trilemma_bench.models import parse_models
    from trilemma_bench.run import Settings

    for item in parse_models(models):
        with _progress(quiet) as report:
            settings = Settings(data_root=data_root, inception_weights=inception_weights, report=report)
            path = make_expectation(
                item, out, settings, dataset=dataset, protocol=protocol, num_samples=num_samples, num_seeds=seeds,
                num_images=images, images_only=images_only, min_speed_factor=speed_factor, device=device,
                batch_size=batch_size,
            )  # fmt: skip
        print(f"wrote {path}")


@app.command(epilog="Exit codes: 0 nothing moved; 1 drift; 2 something could not be judged.")
def gate(
    expect: Annotated[Path, typer.Option(help="Folder of expectations, looked through to its depth.")],
    results: Annotated[
        Path | None, typer.Option(help="Judge the records of this folder instead of running the models.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the records of the run here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a pull request.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    github: Annotated[
        bool, typer.Option(envvar="GITHUB_ACTIONS", help="Print annotations and add to GitHub's step summary.")
    ] = False,
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    quiet: QuietOption = False,
) -> None:
    """Hold models against their expectations: has anything moved, and at which stage?"""
    from trilemma_bench import gate_text
    from trilemma_bench.gate import judge
    from trilemma_bench.results import observations, read_expectations, read_records
    from trilemma_bench.store import cache_folder, write_atomic

    found = read_expectations(expect)
    if results is not None:
        pairs = observations(found, read_records(results), cache_folder())
    else:
        from trilemma_bench.expectations import observe
        from trilemma_bench.run import Settings

        with _progress(quiet) as report:
            settings = Settings(out=out, data_root=data_root, inception_weights=inception_weights, report=report)
            pairs = [(item, observe(item, path, settings)) for path, item in found]
    verdict = judge(pairs)
    for path, text in ((markdown, gate_text.to_markdown(verdict)), (junit, gate_text.to_junit(verdict))):
        if path is not None:
            write_atomic(path, text.encode())
    if github:
        for line in gate_text.to_annotations(verdict):
            print(line)
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(summary, "a") as stream:
                stream.write(gate_text.to_markdown(verdict))
    print("\n".join(gate_text.to_lines(verdict)))
    raise typer.Exit(verdict.exit_code)


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
    model: Annotated[str, typer.Argument(help="A trainer (`ls trainers`), or package.module:CONSTANT of your own.")],
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
        stopped = "interrupted" if result["interrupted"] else "stopped; the same command goes on"
        done = "finished" if result["finished"] else stopped
        hours = f"{result['hours']:.2f} hours in all, in {result['precision']}"
        print(f"{done}: {result['images_seen']} images, {hours}; {out}")
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)


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
def explain(
    model: Annotated[str, typer.Argument(help="As after --models: ddgan, ddim:steps=20, ddgan@PATH ...")],
    dataset: DatasetOption = "cifar10",
    protocol: ProtocolOption = "lite",
    out: OutOption = Path("results"),
    num_samples: NumSamplesOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    batch_size: BatchOption = None,
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    quiet: QuietOption = False,
) -> None:
    """Why is my number not the paper's? The same samples under each fork of the protocol, as a table and figures."""
    from trilemma_bench import explain as forks
    from trilemma_bench.figures import write_waterfalls
    from trilemma_bench.models import parse_model
    from trilemma_bench.record import file_name
    from trilemma_bench.run import Settings, find_data, find_protocol, run_spec
    from trilemma_bench.store import write_atomic

    with _progress(quiet) as report:
        settings = Settings(data_root=data_root, inception_weights=inception_weights, report=report)
        data = find_data(dataset, settings)
        found = find_protocol(protocol, data, num_samples=num_samples)
        spec = run_spec(parse_model(model), found, seed=seed, device=device, batch_size=batch_size)
        explanation = forks.explain(spec, data, settings)
    text = forks.to_markdown(explanation)
    name = f"explain-{file_name(model, kept='')[:80]}"
    path = out / found.name / f"{name}.md"
    write_atomic(path, text.encode())
    paths = [path]
    try:
        paths += write_waterfalls(name, forks.moves(explanation), path.parent)
    except UsageError as error:
        print(f"no figures: {error}", file=sys.stderr)
    if not quiet:
        print(text)
    print(f"wrote {', '.join(str(each) for each in paths)}")


@app.command(epilog=EPILOG)
def selftest(
    protocol: Annotated[
        str | None, typer.Option(help="paper, or a full name: published constants of it; else known damage.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set; else gaussians25 for damage, cifar10 for published constants.")
    ] = None,
    golden: Annotated[Path | None, typer.Option(help="Another file of published constants (TOML).")] = None,
    num_samples: Annotated[int, typer.Option(help="Samples in each damaged set.", min=2)] = 1000,
    device: DeviceOption = "cpu",
    data_root: DataRootOption = None,
    inception_weights: InceptionOption = None,
    quiet: QuietOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the doses as JSON and nothing else.")] = False,
) -> None:
    """Does this installation see known damage, and measure what the field does?

    Without --protocol real samples are damaged in growing doses, and the table says the smallest dose that each score
    sees; exit code 1 where no score sees one of the damages. With --protocol paper, published constants of the real
    images are measured again.
    """
    from trilemma_bench import selftest as tests
    from trilemma_bench.run import Settings, find_data, find_protocol

    with _progress(quiet or as_json) as report:
        settings = Settings(data_root=data_root, inception_weights=inception_weights, report=report)
        if protocol is None and golden is None:
            data = find_data(dataset or "gaussians25", settings)
            found = tests.detect(data, find_protocol("lite", data), settings, num_samples=num_samples)
        else:
            data = find_data(dataset or "cifar10", settings)
            name = find_protocol(protocol or "paper", data).name
            outcomes = tests.run(data, protocol or "paper", settings, tests.read_golden(golden or name))
    if protocol is None and golden is None:
        _print_detections(found, as_json=as_json)
        raise typer.Exit(1 if tests.unseen(found) else 0)
    for each in outcomes:
        verdict = "holds" if each.holds else "DOES NOT HOLD"
        value = each.failure if each.found is None else f"{each.found:.4f}"
        print(f"{verdict}: {each.expected.source}: {value}, expected {each.expected.value} ± {each.expected.within}")
    if not all(each.holds for each in outcomes):
        raise typer.Exit(1)


def _print_detections(found: list[Any], *, as_json: bool) -> None:
    """The smallest dose that each score sees: a row a score, a column a damage."""
    from dataclasses import asdict

    from trilemma_bench import selftest as tests

    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    print(tests.to_markdown(found))


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
