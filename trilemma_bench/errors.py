"""The errors that trilemma-bench raises on bad input.

    TrilemmaError
    ├── UsageError      an option, a name or a combination that does not exist
    ├── ProtocolError   numbers that the protocol cannot accept: counts, shapes, NaN
    ├── DataError       a data set or an image file that cannot be read as stated
    │   └── NoSplitError    a split that the data do not have
    ├── WeightsError    weights that are missing, altered, or of another network
    ├── StoreError      a cache or a results folder that cannot be used
    └── TrainingError   a training run that cannot go on

Every message says what is wrong, what was found, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrilemmaError(Exception):
    """Base of all errors that are the caller's to mend; the command line exits with 2 on it."""


class UsageError(TrilemmaError, ValueError):
    """An option, a name or a combination that does not exist."""


class ProtocolError(TrilemmaError, ValueError):
    """Numbers that the protocol cannot accept: counts, shapes, values that are not finite."""


class DataError(TrilemmaError, ValueError):
    """A data set or an image file that cannot be read as stated."""


class NoSplitError(DataError):
    """A split that the data do not have, where they might have had it."""


class WeightsError(TrilemmaError, ValueError):
    """Weights that are missing, altered, or of another network."""


class StoreError(TrilemmaError, RuntimeError):
    """A cache or a results folder that cannot be used."""


class TrainingError(TrilemmaError, RuntimeError):
    """A training run that cannot go on, such as a loss that is not finite."""


def unknown_name(kind: str, found: str, known: Iterable[str]) -> UsageError:
    """The one wording for a name that nobody has: what was found, the nearest, and all there are."""
    names = sorted(known)
    near = difflib.get_close_matches(found, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UsageError(f"no {kind} named {found!r}{hint} There are {', '.join(names) or 'none'}.")
