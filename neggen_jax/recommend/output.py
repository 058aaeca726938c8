"""Lists of recommendations on their way out: JSON lines, Parquet, a table.

One row a user, the same fields in both files:

    {"user": ID, "items": [{"item": ID, "score": 1.5, "title": "...",
                            "reasons": [...]}, ...]}

A file appears whole or not at all (`storage.appearing`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from neggen_jax import storage
from neggen_jax.errors import InputError

Row = dict[str, Any]
Write = Callable[[list[Row]], None]


@contextlib.contextmanager
def to_file(
    path: epath.Path, overwrite: bool, reasons: bool
) -> Iterator[Write]:
    """Yields what writes rows to a file; it is there when all are.

    Args:
      path: ends in `.jsonl` or `.parquet`.
      overwrite: whether it may replace a file.
      reasons: whether items have reasons.

    Raises:
      InputError: for another suffix, a file that is there already, or a disk
        that takes no more.
    """
    writers = {".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in writers:
        raise InputError(
            "Recommendations are not written to such a file.",
            where=path,
            expected=" or ".join(f"*{suffix}" for suffix in writers),
        )
    with (
        storage.appearing(path, overwrite) as partial,
        writers[path.suffix](partial, reasons) as write,
    ):
        yield write


@contextlib.contextmanager
def to_terminal() -> Iterator[Write]:
    """Yields what prints rows as they come."""

    def write(rows: list[Row]) -> None:
        for row in rows:
            print(row["user"])
            for rank, item in enumerate(row["items"], 1):
                title = item.get("title", "")
                line = f"  {rank:>3}  {item['score']:>9.4f}  {item['item']}"
                print(f"{line}  {title}".rstrip())
                for reason in item.get("reasons", ()):
                    print(f"                  {told(reason)}")

    yield write


def told(reason: Row) -> str:
    """A reason as a person reads it."""
    worth = f"{reason['worth']:+.4f}"
    if reason["kind"] == "item":
        title = reason.get("title") or ""
        return f"{worth}  has {reason['item']}  {title}".rstrip()
    where = f" ({reason['modality']})"
    return (
        f"{worth}  {reason['attribute']} is {reason['value']}, "
        f"not {reason['instead']}{where}"
    )


@contextlib.contextmanager
def _jsonl(path: Path, reasons: bool) -> Iterator[Write]:
    del reasons
    with path.open("w", encoding="utf-8") as file:

        def write(rows: list[Row]) -> None:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield write


@contextlib.contextmanager
def _parquet(path: Path, reasons: bool) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    why = {
        "kind": text,
        "worth": pa.float32(),
        "item": text,
        "attribute": text,
        "value": text,
        "instead": text,
        "modality": text,
    }
    one = {"item": text, "score": pa.float32(), "title": text}
    if reasons:
        one["reasons"] = pa.list_(
            pa.struct(list((why | {"title": text}).items()))
        )
    items = pa.list_(pa.struct(list(one.items())))
    schema = pa.schema([("user", text), ("items", items)])
    with parquet.ParquetWriter(path, schema) as writer:
        yield lambda rows: writer.write_table(
            pa.Table.from_pylist(rows, schema=schema)
        )
