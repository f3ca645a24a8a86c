"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trilemma_bench.kinds import ImageSet

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; tests that need it are skipped where there is none."""
    named = os.environ.get("TRILEMMA_DATA")
    places = [Path(named)] if named else []
    places.append(CHECKOUT.parent / "shared" / "data")
    for place in places:
        if (place / "cifar10").is_dir():
            return place
    pytest.skip(f"no real data: neither TRILEMMA_DATA nor {places[-1]} has a folder cifar10")


@pytest.fixture(scope="session")
def cifar10_test(data_root: Path) -> ImageSet:
    """CIFAR-10's test split, read once."""
    from trilemma_bench.data.cifar10 import open_split

    return open_split("test", data_root)
