"""trilemma-bench: is this generative model good, does it cover the data, and is it fast?

    record = trilemma_bench.evaluate("ddgan", dataset="cifar10", protocol="lite")
    trilemma_bench.leaderboard([record])

Both names are imported when they are first used, so that `import trilemma_bench` stays quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from trilemma_bench.record import ResultRecord

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "leaderboard"]


def evaluate(sampler: Any, dataset: str = "cifar10", protocol: str = "lite", **options: Any) -> ResultRecord:
    """Measure one sampler under a protocol; see `trilemma_bench.run.evaluate` for all arguments.

    Args:
        sampler: As after `--models` (`"ddim:steps=20"`), or an object with `name`, `image_shape` (C, H, W) and
            `sample(seeds: int64 [N]) -> uint8 [N, C, H, W]`.
        dataset: Name of a data set, or path of one's own images.
        protocol: `lite`, `paper`, a full name, or the path of a TOML file.
        **options: `num_samples`, `seed`, `device`, `dtype`, `out`, `data_root`, ...

    Raises:
        TrilemmaError: Input that cannot be used; says what was found and what to do.
    """
    from trilemma_bench.run import evaluate as run

    return run(sampler, dataset, protocol, **options)


def leaderboard(records: Sequence[ResultRecord] | str | Path) -> pandas.DataFrame:
    """One row a record, sorted as the leaderboard is, with values, errors, intervals, keys and hardware.

    Args:
        records: Records, or the results folder that holds them.
    """
    from trilemma_bench.ranking import to_dataframe
    from trilemma_bench.results import read_records

    return to_dataframe(read_records(Path(records)) if isinstance(records, str | Path) else records)
