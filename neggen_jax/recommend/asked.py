"""Who is to be given recommendations: files of users, old and new.

A user is called by the dataset's own identifier, or is new and comes with a
list of items; see `read`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from neggen_jax.errors import InputError, nearest

# What a column or a field of identifiers may be called.
USER = ("user", "user_id", "userID")
_SHOWN = 5  # unknown identifiers that an error names
UNKNOWN = ("error", "skip")


@dataclasses.dataclass(frozen=True)
class Asked:
    """Somebody who is to be given recommendations.

    Attributes:
      name: identifier, as it was given.
      row: of the catalogue's users; -1 for one who is folded in.
      items: int32, ascending, of one who is folded in; None otherwise.
    """

    name: str
    row: int
    items: np.ndarray | None = None


class Names:
    """Identifiers of users or items, and their rows.

    Args:
      ids: the source's own; None if they are the indices themselves.
      size: how many.
    """

    def __init__(self, ids: Sequence[str] | None, size: int):
        self._ids, self._size = ids, size
        self._rows: dict[str, int] | None = None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: int) -> str:
        return str(row) if self._ids is None else self._ids[row]

    def row(self, name: str) -> int | None:
        """The row of an identifier; None for an unknown one."""
        if self._ids is None:
            known = name.isdecimal() and int(name) < self._size
            return int(name) if known else None
        if self._rows is None:
            self._rows = {name: row for row, name in enumerate(self._ids)}
        return self._rows.get(name)


@dataclasses.dataclass(frozen=True)
class _Line:
    where: int
    user: str
    items: list[str] | None


def everybody(users: Names) -> Iterator[Asked]:
    """All users of the catalogue."""
    return (Asked(users[row], row) for row in range(len(users)))


def read(
    path: epath.Path, users: Names, items: Names, unknown: str = "error"
) -> Callable[[], Iterator[Asked]]:
    """Reads a file of users.

    By its suffix: `.jsonl`, objects `{"user": ID}`, or `{"user": NAME,
    "items": [ID, ...]}` of somebody who is folded in; `.csv` and `.tsv` with a
    column "user"; `.parquet` with such a column, and perhaps one "items";
    anything else has one identifier a line.

    The file is read twice, so that what is wrong in it is told before anybody
    is ranked; never is it held in memory.

    Args:
      path: the file.
      users: of the catalogue.
      items: of the catalogue.
      unknown: "error" refuses identifiers that the catalogue lacks, "skip"
        leaves such users out, and such items out of histories.

    Returns:
      What begins to read, each time anew.

    Raises:
      InputError: if it cannot be read, nobody is in it, or, with the lines,
        for unknown identifiers.
    """
    if unknown not in UNKNOWN:
        raise InputError(
            f"Unknown identifiers cannot be met with {unknown!r}.",
            where="--unknown",
            fix=nearest(unknown, UNKNOWN),
        )
    wrong: list[str] = []
    count = found = 0
    for line in _lines(path):
        asked, strange = _resolve(line, users, items)
        found += asked is not None
        count += len(strange)
        wrong += strange[: _SHOWN - len(wrong)]
    if count and unknown == "error":
        raise InputError(
            f"{count} identifiers are not in the dataset.",
            where=path,
            expected="identifiers as the dataset's source has them",
            found="; ".join(wrong) + ("; ..." if count > len(wrong) else ""),
            fix="correct them, or pass --unknown=skip; give new users as "
            '{"user": NAME, "items": [ID, ...]}',
        )
    if not found:
        raise InputError("The file names nobody who is known.", where=path)

    def begin() -> Iterator[Asked]:
        for line in _lines(path):
            asked, _ = _resolve(line, users, items)
            if asked is not None:
                yield asked

    return begin


def blocks(asked: Iterable[Asked], size: int) -> Iterator[list[Asked]]:
    """Some at a time."""
    iterator = iter(asked)
    while block := list(itertools.islice(iterator, size)):
        yield block


def _resolve(
    line: _Line, users: Names, items: Names
) -> tuple[Asked | None, list[str]]:
    """Who a line asks for, and what in it is unknown, as an error tells it."""
    if line.items is None:
        row = users.row(line.user)
        if row is None:
            return None, [f"line {line.where}: user {line.user!r}"]
        return Asked(line.user, row), []
    rows, strange = [], []
    for name in line.items:
        row = items.row(name)
        if row is None:
            strange.append(f"line {line.where}: item {name!r}")
        else:
            rows.append(row)
    if not rows:
        return None, strange or [f"line {line.where}: no items"]
    history = np.unique(np.array(rows, np.int32))
    return Asked(line.user, -1, history), strange


def _lines(path: epath.Path) -> Iterator[_Line]:
    suffix = path.suffix.lower()
    reader = {
        ".jsonl": _jsonl,
        ".csv": _table,
        ".tsv": _table,
        ".parquet": _parquet,
    }.get(suffix, _plain)
    try:
        with path.open("rb") as file:
            yield from reader(file, path)
    except UnicodeDecodeError as error:
        raise InputError(
            "The users' file is not UTF-8.", where=path, found=error
        ) from error
    except OSError as error:
        raise InputError(
            "The users' file cannot be read.",
            where=path,
            found=error.strerror or error,
        ) from error


def _plain(file: Any, path: epath.Path) -> Iterator[_Line]:
    del path
    for number, line in enumerate(file, 1):
        if name := line.decode("utf-8").strip():
            yield _Line(number, name, None)


def _jsonl(file: Any, path: epath.Path) -> Iterator[_Line]:
    for number, line in enumerate(file, 1):
        text = line.decode("utf-8").strip()
        if not text:
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            raise _no_user(path, number, error) from None
        if not isinstance(value, dict):
            value = {"user": value}
        yield _line(value, number, path)


def _table(file: Any, path: epath.Path) -> Iterator[_Line]:
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    rows = csv.DictReader(text, dialect=dialect)
    column = _column(rows.fieldnames or (), path)
    for row in rows:
        yield _line({"user": row[column]}, rows.line_num, path)


def _parquet(file: Any, path: epath.Path) -> Iterator[_Line]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise InputError(
            "The users' file is no Parquet file.", where=path, found=error
        ) from error
    names = table.schema_arrow.names
    column = _column(names, path)
    columns = [column, *(["items"] if "items" in names else [])]
    number = 0
    for batch in table.iter_batches(columns=columns):
        for row in batch.to_pylist():
            number += 1
            row["user"] = row.pop(column)
            yield _line(row, number, path)


def _column(names: Iterable[str], path: epath.Path) -> str:
    """The column that names users."""
    for name in USER:
        if name in names:
            return name
    raise InputError(
        "The users' file has no column of users.",
        where=path,
        expected=" or ".join(USER),
        found=", ".join(names) or "no columns",
    )


def _line(value: dict[str, Any], number: int, path: epath.Path) -> _Line:
    name = next((value[key] for key in USER if key in value), None)
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise _no_user(path, number, json.dumps(value)[:80])
    items = value.get("items")
    if items is not None:
        if not isinstance(items, list) or not all(
            isinstance(item, str | int) for item in items
        ):
            raise _no_user(path, number, f"items {json.dumps(items)[:80]}")
        items = [str(item) for item in items]
    return _Line(number, str(name), items)


def _no_user(path: epath.Path, number: int, found: object) -> InputError:
    return InputError(
        "A line names no user.",
        where=f"{path}, line {number}",
        expected='an identifier, {"user": ID} or {"user": NAME, "items": '
        "[ID, ...]}",
        found=found,
    )
