"""Interactions as a source has them, before they are a `Catalog`.

Sources (`mmrec.py`, `own_files.py`, `amazon/` ...) read their files into a
`Log`; `assemble.py` makes a catalogue of it. Of each interaction it keeps
numbers alone: a word that occurs a million times is kept once, so that a log
takes some 20 bytes an interaction, and its identifiers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


class Column(NamedTuple):
    """Words of which many rows have the same.

    Attributes:
      codes: int32 `[n]`, positions in `names`.
      names: the distinct words, an Arrow array of strings.
    """

    codes: np.ndarray
    names: pa.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Log:
    """Interactions in the order of their file.

    Attributes:
      users: identifiers, `[n]`.
      items: identifiers, `[n]`.
      times: int64 `[n]` in the source's unit; None where it has none.
      labels: int8 `[n]`, positions in `SPLITS`; None where nobody has split
        them yet.
    """

    users: Column
    items: Column
    times: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users.codes)

    def only(self, rows: np.ndarray) -> Log:
        """The rows where the mask `rows` is True."""
        if rows.all():
            return self
        users, items = (
            Column(codes[rows], names)
            for codes, names in (self.users, self.items)
        )
        times, labels = (
            None if column is None else column[rows]
            for column in (self.times, self.labels)
        )
        return Log(users, items, times, labels)


class Words:
    """A `Column` in the making, given part by part.

    Each part is encoded as it comes, so that Python's strings do not pile up.
    """

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []

    def add(self, words: Any) -> None:
        """Adds rows: strings, or an Arrow array that can be cast to them."""
        import pyarrow as pa

        if isinstance(words, Sequence):
            words = pa.array(words, pa.string())
        if not pa.types.is_dictionary(words.type):
            words = words.cast(pa.string()).dictionary_encode()
        if isinstance(words, pa.ChunkedArray):
            self._parts += words.chunks
        else:
            self._parts.append(words)

    def column(self) -> Column:
        """What was added, without values that are missing."""
        import pyarrow as pa

        kind = pa.dictionary(pa.int32(), pa.string())
        parts = pa.chunked_array(self._parts, kind).unify_dictionaries()
        self._parts = []
        if not parts.num_chunks:
            return Column(np.empty(0, np.int32), pa.array([], pa.string()))
        codes = [part.indices.to_numpy() for part in parts.chunks]
        return Column(np.concatenate(codes), parts.chunk(0).dictionary)


class Numbered(NamedTuple):
    """Rows by number.

    Attributes:
      codes: int32 `[n]`, the index of each row.
      names: what each index was called; None where names and indices are the
        same.
      size: how many indices there are.
    """

    codes: np.ndarray
    names: list[str] | None
    size: int


def number(column: Column, first: int = 0, every: bool = False) -> Numbered:
    """Numbers words: whole numbers by size, others by their letters.

    Args:
      column: of which names that no row has are left out.
      first: how many names at the beginning keep their places, used or not.
      every: leave no name out.
    """
    from pyarrow import compute

    names = column.names
    used = np.bincount(column.codes, minlength=len(names)) > 0
    numbers = integers(names)
    if numbers is not None:
        order = np.argsort(numbers)
    else:
        order = compute.sort_indices(names).to_numpy().astype(np.int64)
    used |= every
    used[:first] = True
    order = order[used[order] & (order >= first)]
    order = np.concatenate([np.arange(first), order])
    index = np.full(len(names), -1, np.int32)
    index[order] = np.arange(len(order))
    if numbers is not None and (numbers[order] == np.arange(len(order))).all():
        return Numbered(index[column.codes], None, len(order))
    called = names.take(order).to_pylist()
    return Numbered(index[column.codes], called, len(order))


def integers(names: pa.Array) -> np.ndarray | None:
    """The names as int64, or None if one is not a plainly written integer."""
    import pyarrow as pa
    from pyarrow import compute

    try:
        numbers = compute.cast(names, pa.int64())
    except pa.ArrowInvalid:
        return None
    # "007" and "7" are two identifiers, not one number.
    plain = compute.equal(compute.cast(numbers, pa.string()), names)
    return numbers.to_numpy() if compute.all(plain).as_py() else None


def first_of_each_pair(log: Log) -> np.ndarray:
    """Mask `[n]`: of each user and item, the first by time, then by row."""
    pairs = log.users.codes.astype(np.int64)
    pairs *= int(log.items.codes.max(initial=0)) + 1
    pairs += log.items.codes
    if log.times is None:
        order = np.argsort(pairs, kind="stable")
    else:
        order = np.lexsort((log.times, pairs))
    pairs = pairs[order]
    rows = np.zeros(len(pairs), np.bool_)
    rows[order[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]]] = True
    return rows


def join(logs: Sequence[Log]) -> Log:
    """One log of several, in that order.

    All of them have times, or none has; and likewise labels.
    """
    import pyarrow as pa

    if len(logs) == 1:
        return logs[0]
    users, items = Words(), Words()
    for log in logs:
        for words, (codes, names) in (
            (users, log.users),
            (items, log.items),
        ):
            words.add(pa.DictionaryArray.from_arrays(pa.array(codes), names))
    times, labels = (
        None
        if getattr(logs[0], name) is None
        else np.concatenate([getattr(log, name) for log in logs])
        for name in ("times", "labels")
    )
    return Log(users.column(), items.column(), times, labels)
