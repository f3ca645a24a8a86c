"""Checkpoints that a kill at any moment leaves whole: written beside, synced, renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trilemma_bench.errors import TrainingError
from trilemma_bench.store import replacing

NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, and containers of them) as `folder/checkpoint.pt`, atomically.

    Raises:
        StoreError: It cannot be written, as on a full disk; the last one stays.
    """
    with replacing(folder / NAME) as partial:
        try:
            torch.save(state, partial)
        except RuntimeError as error:
            # Of a write that failed torch has an error of its own, after that of the system.
            raise OSError(str(error.__context__ or error).partition("\n")[0]) from error


def load(folder: Path) -> dict[str, Any] | None:
    """The state that `save` wrote, or None where there is none; nothing in the file is executed."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Torch's own text is long, and advises to load what may run code.
        raise TrainingError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}). Move it away, and the snapshots, to "
            "start this run anew."
        ) from error
    return state
