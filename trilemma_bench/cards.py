"""Baselines: `baselines/<name>/card.toml` says what one is, and the files beside it are its weights and samples."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trilemma_bench.errors import WeightsError, unknown_name
from trilemma_bench.spec import Frozen, Option


class Card(Frozen):
    """What a baseline is: network, training, licence, and what is known of it."""

    name: str
    title: str
    sampler: str
    dataset: str
    weights: str
    """File name beside the card."""
    weights_digest: str
    """SHA-256 of the file."""
    licence: str
    parameters: int
    gflops_per_evaluation: float
    training: dict[str, Any]
    """Recipe, command, hours, CPU, images seen, seed, commit."""
    options: dict[str, Option] = {}
    """What tells these weights from others of the same sampler and data set: `{"num_timesteps": 2}`."""
    notes: str = ""


def baselines_folder() -> Path:
    """Where the baselines lie: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "baselines"
    return inside if inside.is_dir() else here.parent / "baselines"


def card_names() -> list[str]:
    """Names of the baselines that ship."""
    return sorted(path.parent.name for path in baselines_folder().glob("*/card.toml"))


def load_card(name: str) -> tuple[Card, Path]:
    """The card of a baseline and its folder.

    Raises:
        UsageError: No such baseline.
        WeightsError: A card that cannot be read.
    """
    if name not in card_names():
        raise unknown_name("baseline", name, card_names())
    folder = baselines_folder() / name
    try:
        card = Card.model_validate(tomllib.loads((folder / "card.toml").read_text()))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise WeightsError(f"{folder / 'card.toml'}: not a valid card: {error}") from error
    return card, folder


def cards_of(sampler: str) -> tuple[Card, ...]:
    """All baselines of a sampler, by name."""
    cards = (load_card(name)[0] for name in card_names())
    return tuple(card for card in cards if card.sampler == sampler)


def find_card(sampler: str, dataset: str, options: Mapping[str, Option]) -> Card | None:
    """The baseline of a sampler for a data set whose own options are the most of those asked for.

    None where the sampler has no baseline for this data set whose options are all asked for.
    """
    fitting = [
        card for card in cards_of(sampler)
        if card.dataset == dataset and card.options.items() <= dict(options).items()
    ]  # fmt: skip
    return max(fitting, key=lambda card: len(card.options), default=None)
