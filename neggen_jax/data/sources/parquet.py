"""Interactions in Parquet files -> `Log`, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.data.sources.columns import LABELS, Columns
from neggen_jax.data.sources.log import Log, Words
from neggen_jax.errors import InputError

_ROWS = 2**17  # of a block


def names_of(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
      InputError: if it is no Parquet file.
    """
    with _opened(path) as file:
        return file.schema_arrow.names


def blocks(path: Path, names: list[str] | None = None) -> Iterator[Any]:
    """Yields Arrow record batches of some columns, or of all.

    Raises:
      InputError: if the file is damaged.
    """
    import pyarrow as pa

    row = 0
    with _opened(path) as file:
        steps = file.iter_batches(_ROWS, columns=names)
        while True:
            try:
                block = next(steps, None)
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    "A Parquet file is damaged.",
                    where=f"{path}, after row {row}",
                    found=error,
                ) from None
            if block is None:
                return
            yield block
            row += len(block)


def read_parquet(
    path: Path,
    columns: Columns,
    *,
    labels: Mapping[str, int] = LABELS,
    min_rating: float | None = None,
) -> Log:
    """Reads a table.

    Args:
      path: of the file.
      columns: what those that matter are called; they must be there.
      labels: words of the split column -> position in `SPLITS`.
      min_rating: leave out rows with a lower one.

    Raises:
      InputError: naming the row that is wrong, counted from 0.
    """
    users, items, marks = Words(), Words(), Words()
    times: list[np.ndarray] = [np.empty(0, np.int64)]
    row = 0
    used = [name for name in dict.fromkeys(columns) if name]
    for block in blocks(path, used):
        where = f"{path}, from row {row}"
        row += len(block)
        if min_rating is not None:
            assert columns.rating
            ratings = _numbers(block.column(columns.rating), where, "rating")
            block = block.filter(ratings >= min_rating)
        users.add(_identifiers(block.column(columns.user), where, "user"))
        items.add(_identifiers(block.column(columns.item), where, "item"))
        if columns.split:
            words = _identifiers(block.column(columns.split), where, "split")
            marks.add(words)
        if columns.time:
            found = _numbers(block.column(columns.time), where, "timestamp")
            times.append(found.astype(np.int64))
    if not row:
        raise InputError("The interaction file has no rows.", where=path)
    split = None
    if columns.split:
        codes, names = marks.column()
        words = names.to_pylist()
        places = [labels.get(word.strip().lower(), -1) for word in words]
        if -1 in places:
            raise InputError(
                "Unknown split label.",
                where=f"{path}, column {columns.split!r}",
                expected=", ".join(labels),
                found=repr(words[places.index(-1)]),
            )
        split = np.array(places, np.int8)[codes]
    when = np.concatenate(times) if columns.time else None
    return Log(users.column(), items.column(), when, split)


def _opened(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            "This is not a Parquet file.", where=path, found=error
        ) from None


def _identifiers(column: Any, where: str, role: str) -> Any:
    """A column as strings, of which none is missing."""
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (string or pa.types.is_integer(kind)):
        raise InputError(
            f"The {role} column has values that are no names.",
            where=where,
            expected="strings or whole numbers",
            found=kind,
        )
    words = column.cast(pa.string())
    absent = compute.or_kleene(
        compute.is_null(words),
        compute.fill_null(compute.equal(words, ""), True),
    )
    _check_present(absent, where, f"{role} is")
    return words


def _numbers(column: Any, where: str, what: str) -> np.ndarray:
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    if pa.types.is_temporal(kind):
        # Dates count days; timestamps, their own unit.
        column = column.cast(pa.int32() if kind == pa.date32() else pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"A {what} is not a number.", where=where, found=kind)
    _check_present(
        compute.is_null(column, nan_is_null=True), where, f"{what} is"
    )
    return column.to_numpy(zero_copy_only=False)


def _check_present(absent: Any, where: str, what: str) -> None:
    rows = np.flatnonzero(absent.to_numpy(zero_copy_only=False))
    if rows.size:
        raise InputError(
            f"A {what} missing.", where=f"{where}, row {rows[0]} of these"
        )
