"""Lines that are Python literals: the metadata of 2014.

They are dicts as Python prints them, no JSON. They are parsed and not run, by
`ast.literal_eval`, which knows no calls and no names; and as Python's parser
may take long over what is deep or long, both are bounded.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from neggen_jax.data.sources.lines import Line, text_of
from neggen_jax.errors import InputError

LIMIT = 2**20  # bytes of such a line; the longest that were seen have a tenth
DEPTH = 16  # of lists in lists; real ones have three
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def literal_of(line: Line, path: Path, what: str) -> dict[str, Any]:
    """A line as the dict that it spells.

    Args:
      line: of the file `path`.
      path: for the error.
      what: the file is called there.

    Raises:
      InputError: if it is none, or too long or deep, naming the line.
    """
    where = f"{path}, line {line.number}"
    text = text_of(line, path, what).strip()
    if len(line.data) > LIMIT or _depth(text) > DEPTH:
        raise InputError(
            f"A line of the {what} is too long or too deep to be parsed.",
            where=where,
            expected=f"at most {LIMIT:,} bytes, {DEPTH} lists deep",
            found=f"{len(line.data):,} bytes",
        )
    try:
        value = ast.literal_eval(text)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        RecursionError,
        MemoryError,
    ) as error:
        raise InputError(
            f"A line of the {what} is not a Python literal.",
            where=where,
            found=str(error)[:200],
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"A line of the {what} is not a dict.",
            where=where,
            found=type(value).__name__,
        )
    return value


def _depth(text: str) -> int:
    """How deep brackets are nested, those in strings aside."""
    if sum(map(text.count, "([{")) <= DEPTH:
        return 0
    depth = deepest = 0
    for sign in re.findall(r"[\[\](){}]", _STRING.sub("", text)):
        depth += 1 if sign in "([{" else -1
        deepest = max(deepest, depth)
    return deepest
