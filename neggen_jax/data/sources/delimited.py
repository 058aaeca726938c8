"""Interactions in text tables (CSV, tab-separated, gzipped too) -> `Log`.

Columns are handled as arrays throughout; Python looks at single lines only to
say what is wrong with them.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.data.sources.columns import LABELS, Columns
from neggen_jax.data.sources.lines import Line, is_gzip, read_lines, text_of
from neggen_jax.data.sources.log import Column, Log, Words
from neggen_jax.errors import InputError

_WHAT = "interaction file"
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def header(path: Path) -> str:
    """The first line of a text file.

    Raises:
      InputError: if it cannot be read, or is not UTF-8.
    """
    line = next(read_lines(path), Line(1, 0, b""))
    return text_of(line, path, _WHAT).removeprefix("\ufeff").rstrip("\r\n")


def separator(line: str) -> str:
    """What separates the fields of a header, as far as one can tell."""
    return max(SEPARATORS, key=line.count)


def fields(line: str, delimiter: str) -> list[str]:
    """The fields of one line, which may be quoted; none of an empty line."""
    line = line.rstrip("\r\n")
    return next(csv.reader([line], delimiter=delimiter), [])


def read_delimited(
    path: Path,
    columns: Columns,
    delimiter: str,
    *,
    labels: Mapping[str, int] = LABELS,
    min_rating: float | None = None,
) -> Log:
    """Reads a table with a header.

    Args:
      path: of the file.
      columns: what those that matter are called; they must be there.
      delimiter: one character.
      labels: words of the split column -> position in `SPLITS`.
      min_rating: leave out rows with a lower one.

    Raises:
      InputError: naming the line that is wrong.
    """
    table = _table(path, columns, delimiter)
    if not table.num_rows:
        raise InputError(f"The {_WHAT} has no rows.", where=path)
    users, items = (
        _words(table, name, path) for name in (columns.user, columns.item)
    )
    marks, times = None, None
    if columns.split:
        marks = split_of(_words(table, columns.split, path), labels, path)
    if columns.time:
        times = _numbers(table, columns.time, "timestamp", path)
        times = times.astype(np.int64)
    log = Log(users, items, times, marks)
    if min_rating is None:
        return log
    assert columns.rating
    ratings = _numbers(table, columns.rating, "rating", path)
    return log.only(ratings >= min_rating)


def line_of(path: Path, row: int) -> str:
    """Where the row `row` of the columns stands in the file."""
    lines = (x.number for x in read_lines(path) if x.data.strip(b"\r\n"))
    return f"{path}, line {next(itertools.islice(lines, row + 1, None))}"


def first_line(path: Path, column: Column, wrong: np.ndarray) -> str:
    """Where the first row stands whose name is one of those marked."""
    return line_of(path, int(np.argmax(wrong[column.codes])))


def split_of(
    column: Column, labels: Mapping[str, int], path: Path
) -> np.ndarray:
    """Position in SPLITS of every row, int8 `[n]`.

    Raises:
      InputError: naming the line of an unknown word.
    """
    names = column.names.to_pylist()
    places = [labels.get(name.strip().lower(), -1) for name in names]
    wrong = np.array(places) < 0
    if wrong.any():
        raise InputError(
            "Unknown split label.",
            where=first_line(path, column, wrong),
            expected=", ".join(labels)
            if labels is LABELS
            else "0 (train), 1 (valid) or 2 (test)",
            found=repr(names[int(np.argmax(wrong))]),
        )
    return np.array(places, np.int8)[column.codes]


def _table(path: Path, columns: Columns, delimiter: str) -> Any:
    """The columns that matter, as an Arrow table."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    words = pa.dictionary(pa.int32(), pa.string())
    names = (columns.user, columns.item, columns.split)
    types = dict.fromkeys((name for name in names if name), words)
    if columns.rating:
        types[columns.rating] = pa.float64()
    failure: Exception | None = None
    # Whole numbers first: nanoseconds do not fit into a float.
    for number in (pa.int64(), pa.float64(), pa.timestamp("us")):
        if columns.time:
            types[columns.time] = number
        try:
            # Arrow would tell compression by the file's name alone.
            kind = "gzip" if is_gzip(path) else None
            with pa.input_stream(str(path), compression=kind) as file:
                return arrow_csv.read_csv(
                    file,
                    parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
                    convert_options=arrow_csv.ConvertOptions(
                        column_types=types, include_columns=list(types)
                    ),
                ).unify_dictionaries()
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
            failure = error
    raise _explain(path, columns, delimiter, failure)


def _words(table: Any, name: str, path: Path) -> Column:
    words = Words()
    words.add(table.column(name))
    column = words.column()
    absent = np.array([not word for word in column.names.to_pylist()])
    if absent.any():
        raise InputError(
            f"A value is missing in the column {name!r}.",
            where=first_line(path, column, absent),
        )
    return column


def _numbers(table: Any, name: str, what: str, path: Path) -> np.ndarray:
    column = table.column(name)
    wrong = column.is_null().to_numpy()
    values = column.to_numpy()
    if values.dtype.kind == "f":
        wrong = wrong | ~np.isfinite(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"A {what} is missing.", where=line_of(path, row))
    return values


def _explain(
    path: Path, columns: Columns, delimiter: str, error: object
) -> InputError:
    """What is wrong with a file that Arrow refuses, found line by line."""
    names: list[str] = []
    for line in read_lines(path):
        where = f"{path}, line {line.number}"
        found = fields(text_of(line, path, _WHAT), delimiter)
        if line.number == 1:
            names = [name.removeprefix("\ufeff") for name in found]
            continue
        if found and len(found) != len(names):
            return InputError(
                "A line has the wrong number of fields.",
                where=where,
                expected=f"{len(names)} fields, separated by "
                + SEPARATORS.get(delimiter, repr(delimiter)),
                found=f"{len(found)} fields",
            )
        for what, name in (
            ("timestamp", columns.time),
            ("rating", columns.rating),
        ):
            if not found or not name:
                continue
            word = found[names.index(name)]
            try:
                float(word)
            except ValueError:
                return InputError(
                    f"A {what} is not a number.", where=where, found=repr(word)
                )
    return InputError(f"The {_WHAT} cannot be read.", where=path, found=error)
