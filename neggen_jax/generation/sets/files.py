"""Files of a set: written whole or not at all, and what they must agree in."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from neggen_jax.errors import InputError

_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that becomes `path` at the end, if there was no error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def disk(path: Path, what: str = "records") -> Iterator[None]:
    """Turns what a disk refuses into an `InputError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise InputError(
            f"The {what} could not be written; those there are, stay.",
            where=path,
            found=error.strerror,
            fix="free some space, and run the same command again",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object.

    Raises:
      InputError: if it is none.
    """
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"{type(value).__name__} instead of an object")
    except (OSError, ValueError) as error:
        raise InputError(
            "The settings of a shard cannot be read.",
            where=path,
            found=error,
            fix="name another --set, or bring the file back",
        ) from error
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    with replacing(path) as file:
        file.write(f"{text}\n".encode())


def check_source(where: Path, known: Mapping[str, Any], source: str) -> None:
    """Refuses a set whose records are of other items than the dataset's.

    Args:
      where: the set is.
      known: its settings, or its manifest; it may not say of which items.
      source: digest of the items as they are, of `store.items_digest`.

    Raises:
      InputError: if they differ.
    """
    if known.get("source", source) != source:
        raise InputError(
            "The set was made of other items.",
            where=where,
            expected=f"items of digest {source}, as the dataset has now",
            found=known["source"],
            fix="generate it again, or prepare the dataset as it was",
        )


def check_same(
    where: Path, known: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Refuses settings that differ from those of records that are there.

    Args:
      where: the known settings are from.
      known: what the records were written with.
      ours: what they would be written with now.

    Raises:
      InputError: naming what differs.
    """
    for name in dict.fromkeys((*known, *ours)):
        one, other = known.get(name), ours.get(name)
        if one != other:
            raise InputError(
                f"The set was begun with another setting of {name!r}.",
                where=where,
                expected=json.dumps(one, ensure_ascii=False),
                found=json.dumps(other, ensure_ascii=False),
                fix="go on with the setting it was begun with, or name "
                "another --set",
            )
