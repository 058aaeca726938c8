"""Lines of text files that others have made, with bounds and places.

Whoever reads interactions or items line by line reads them here: plain or
gzipped (told by content, not by name), at most `LIMIT` bytes of a line in
memory, and with an `InputError` that names file, line and byte where a file
is cut off or is not what it should be.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from neggen_jax.errors import InputError

LIMIT = 2**24  # bytes of a line
_GZIP = b"\x1f\x8b"


class Line(NamedTuple):
    """One line of a file.

    Attributes:
      number: from 1.
      start: byte of the (unpacked) file that it begins at.
      data: its bytes, with what ends it.
    """

    number: int
    start: int
    data: bytes


def is_gzip(path: Path) -> bool:
    """Whether a file is gzipped, by its first bytes.

    Raises:
      InputError: if it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(2) == _GZIP
    except OSError as error:
        raise InputError(
            "A file cannot be opened.", where=path, found=error.strerror
        ) from None


def read_lines(
    path: Path, *, limit: int | None = None, label: str = ""
) -> Iterator[Line]:
    """Yields the lines of a file, one in memory at a time.

    Args:
      path: plain or gzipped.
      limit: bytes that a line may have; None for `LIMIT`.
      label: shown beside a progress bar on stderr; without it there is none.

    Raises:
      InputError: if the file cannot be opened, is cut off in its gzip, or
        has a longer line.
    """
    limit = LIMIT if limit is None else limit
    zipped = is_gzip(path)
    number, start = 1, 0
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(_opened(path, label))
        file = raw
        if zipped:
            file = stack.enter_context(gzip.GzipFile(fileobj=raw))
        while True:
            try:
                data = file.readline(limit + 1)
            except (EOFError, OSError, zlib.error) as error:
                raise InputError(
                    "A file cannot be read to its end.",
                    where=f"{path}, after line {number - 1}",
                    expected="a whole gzip file" if zipped else None,
                    found=error,
                    fix="download or copy it again",
                ) from None
            if not data:
                return
            if len(data) > limit:
                raise InputError(
                    "A line is too long.",
                    where=f"{path}, line {number}, byte {start} of the file",
                    expected=f"at most {limit:,} bytes",
                    fix="it may be no file of lines, or not of this kind",
                )
            yield Line(number, start, data)
            start += len(data)
            number += 1


def text_of(line: Line, path: Path, what: str) -> str:
    """A line as text.

    Args:
      line: of the file `path`.
      path: for the error.
      what: the file is called there: "items' file".

    Raises:
      InputError: if it is not UTF-8, naming the byte.
    """
    try:
        return line.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The {what} is not UTF-8.",
            where=f"{path}, line {line.number}, "
            f"byte {line.start + error.start} of the file",
            found=f"byte 0x{line.data[error.start]:02x}",
            fix="convert it, e.g. iconv -f latin1 -t utf-8",
        ) from None


def object_of(line: Line, path: Path, what: str) -> dict[str, Any]:
    """A line as the JSON object that it holds.

    Args:
      line: of the file `path`.
      path: for the error.
      what: the file is called there: "items' file".

    Raises:
      InputError: if it is none, naming the line.
    """
    where = f"{path}, line {line.number}"
    try:
        value = json.loads(text_of(line, path, what))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"A line of the {what} is not JSON.", where=where, found=error
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"A line of the {what} is not a JSON object.",
            where=where,
            found=type(value).__name__,
        )
    return value


def _opened(path: Path, label: str) -> Any:
    if not label:
        return path.open("rb")
    from rich import progress
    from rich.console import Console

    # Only a terminal is drawn on; elsewhere, one line at the end.
    return progress.open(
        path, "rb", description=f"{label:<16}", console=Console(stderr=True)
    )
