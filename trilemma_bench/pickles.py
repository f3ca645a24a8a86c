"""Pickles from outside, read as data: no name in them is looked up, no code in them runs.

A pickle is a program for a small machine. Here its operations are checked before the first of them runs, and the
names that it asks for are answered from a table of the caller's: classes that only remember what they are given.
Every other name is refused. Importing this module imports no torch.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from trilemma_bench.errors import TrilemmaError

Allowed = Mapping[tuple[str, str], Callable[..., Any]]
"""(module, name) -> what stands for it."""

MAX_MEMO = 1_000_000
MAX_OPERATIONS = 5_000_000

PLAIN = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE BUILD NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
    LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE
    BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    """.split()
)
"""What lists, dicts, strings, numbers and arrays are written with, protocols 0 to 5. Not among them: persistent ids,
extension codes, out-of-band buffers, and the operations that make class instances."""

OBJECTS = PLAIN | {"NEWOBJ", "EMPTY_SET", "ADDITEMS"}
"""With sets, and instances of the classes that the caller's table holds."""


def load(
    data: bytes,
    where: str,
    *,
    allowed: Allowed,
    operations: frozenset[str] = PLAIN,
    error: type[TrilemmaError],
    purpose: str,
    advice: str,
    encoding: str = "ASCII",
) -> Any:
    """The content of a pickle, running nothing in it.

    Args:
        data: The pickle, of Python 2 or 3.
        where: Its name, for errors.
        allowed: What stands for each name that it may ask for; these are called with what the pickle gives them.
        operations: Names of the operations (as in `pickletools`) that it may use.
        error: What is raised.
        purpose: What it holds, as in "which images have no need of".
        advice: What to do about a refused one; a sentence.
        encoding: How strings of Python 2 are read.

    Raises:
        TrilemmaError: `error`, for another name or operation, or a broken pickle.
    """

    def refused(what: str) -> TrilemmaError:
        return error(f"{where}: the pickle {what}, which {purpose} have no need of. Refused; nothing in it was run. "
                     f"{advice}")  # fmt: skip

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise refused(f"asks for {module}.{name}")
            return allowed[module, name]

    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name not in operations:
                raise refused(f"uses {opcode.name}")
            # A huge memo index would make the unpickler allocate a table of that size.
            if opcode.name.endswith("PUT") and int(argument or 0) > MAX_MEMO:
                raise refused(f"claims {argument} memo entries")
            if count > MAX_OPERATIONS:
                raise refused(f"has over {MAX_OPERATIONS} operations")
        return Restricted(io.BytesIO(data), encoding=encoding).load()
    except TrilemmaError:
        raise
    # A pickle made to harm may raise anything; none of it is an error of this program.
    except Exception as problem:
        raise error(f"{where}: not a readable pickle: {problem}. {advice}") from problem


class Encoder:
    """Stands for `_codecs.encode`, with which old protocols write bytes; encodes no more than the file has bytes.

    A pickle that has one long string encoded again and again would grow without end.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def __call__(self, text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
        self._left -= len(text)
        if self._left < 0:
            raise ValueError("it writes more bytes than the file has")
        return str(text).encode("latin1")
