"""Executors: many runs, one after the other; what one of them breaks stays its own."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from trilemma_bench.errors import StoreError, TrilemmaError
from trilemma_bench.record import ResultRecord
from trilemma_bench.results import read_records
from trilemma_bench.run import (
    Data,
    Settings,
    check_protocol,
    check_sampler,
    evaluate_spec,
    failure_path,
    failure_record,
)
from trilemma_bench.spec import RunSpec
from trilemma_bench.store import check_writable, write_atomic


def check(specs: Sequence[RunSpec], data: Data, settings: Settings) -> None:
    """Read the records of `settings.out` and look at all that runs need: bad input is refused before any is measured.

    Raises:
        TrilemmaError: The first thing that cannot be used.
    """
    if settings.out is not None and settings.out.is_dir():
        read_records(settings.out)
    for protocol in {spec.protocol.name: spec.protocol for spec in specs}.values():
        check_protocol(protocol, data, settings)
    for spec in specs:
        check_sampler(spec, data)
    if settings.out is not None:
        check_writable(settings.out)


def run_all(
    specs: Sequence[RunSpec],
    data: Data,
    settings: Settings,
    *,
    failed: Callable[[RunSpec, BaseException, str], None] = lambda spec, error, trace: None,
) -> list[ResultRecord]:
    """Measure every spec in order. A model that raises becomes a record that says so, and the others go on.

    Args:
        specs: What to measure.
        data: The data set.
        settings: Where things lie.
        failed: Told of each failure, with its traceback.
    """
    records = []
    for spec in specs:
        try:
            record = evaluate_spec(spec, data, settings)
        except StoreError:
            raise
        except (Exception, SystemExit) as error:
            failed(spec, error, "" if isinstance(error, TrilemmaError) else traceback.format_exc())
            record = failure_record(spec, error)
            if settings.out is not None:
                write_atomic(failure_path(settings.out, spec), record.dumps().encode())
        records.append(record)
    return records
