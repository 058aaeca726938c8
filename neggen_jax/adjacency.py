"""Pairs sorted by one of their ends, as NumPy arrays that may be mapped.

Who holds some rows of a table reads the pairs of those rows as one piece of
a file, and nothing else of it: so many hosts share what none could hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from neggen_jax.errors import InputError

# Pairs that are read at a time.
BLOCK = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Adjacency:
    """Pairs by their first end: the rows of a sparse matrix of ones.

    Attributes:
      offsets: int64 `[rows + 1]`, where each row's pairs begin.
      ends: int32 `[n]`, the other end; ascending within each row.
      numbers: int32 or int64 `[n]`, what each pair is called, in
        `[0, n)`; None where its name is its position here.
    """

    offsets: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray | None = None

    @classmethod
    def make(cls, rows: np.ndarray, ends: np.ndarray, size: int) -> Adjacency:
        """Sorts pairs; each is called by its position in the arguments.

        Args:
          rows: int `[n]`, in `[0, size)`.
          ends: int `[n]`.
          size: number of rows.
        """
        counts = np.bincount(rows, minlength=size)
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if ordered(rows, ends):
            return cls(offsets, np.asarray(ends, np.int32))
        order = np.lexsort((ends, rows))
        numbers = order.astype(np.int32 if len(rows) < 2**31 else np.int64)
        return cls(offsets, ends[order].astype(np.int32), numbers)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.ends)

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    @property
    def degrees(self) -> np.ndarray:
        """Pairs of each row, int64 `[rows]`."""
        return np.diff(self.offsets)

    def degrees_of(self, rows: np.ndarray) -> np.ndarray:
        """Pairs of some rows, int64; nothing is read of the others."""
        return self.offsets[rows + 1] - self.offsets[rows]

    @property
    def longest(self) -> int:
        """Pairs of the row that has most; read by blocks."""
        most = 0
        for first in range(0, self.size, BLOCK):
            some = np.diff(self.offsets[first : first + BLOCK + 1])
            most = max(most, int(some.max(initial=0)))
        return most

    def blocks(
        self, first: int, last: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The pairs of rows `first .. last - 1`, in order, some at a time.

        Yields:
          Rows int64, ends int32, and the names of the pairs, `[m]` each with
          m at most `BLOCK`.
        """
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        starts = np.asarray(self.offsets[first : last + 1])
        for start in range(begin, end, BLOCK):
            stop = min(start + BLOCK, end)
            position = np.arange(start, stop)
            rows = np.searchsorted(starts, position, side="right") - 1 + first
            names = position
            if self.numbers is not None:
                names = np.asarray(self.numbers[start:stop])
            yield rows, np.asarray(self.ends[start:stop]), names


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The same pairs of users and items, sorted by either.

    Attributes:
      by_user: rows are users; pairs have their positions in the list that
        the index was made from as names.
      by_item: rows are items; the same names.
    """

    by_user: Adjacency
    by_item: Adjacency

    @classmethod
    def make(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        num_users: int,
        num_items: int,
    ) -> Index:
        """Sorts pairs both ways."""
        return cls(
            Adjacency.make(users, items, num_users),
            Adjacency.make(items, users, num_items),
        )


def ordered(rows: np.ndarray, ends: np.ndarray) -> bool:
    """Whether pairs are sorted by row and then by end; read by blocks."""
    for first in range(0, len(rows), BLOCK):
        row = np.asarray(rows[first : first + BLOCK + 1], np.int64)
        end = np.asarray(ends[first : first + BLOCK + 1], np.int64)
        step = np.diff(row)
        if (step < 0).any() or ((step == 0) & (np.diff(end) < 0)).any():
            return False
    return True


def fits_int32(count: int, what: str) -> None:
    """Refuses more entries than an int32 offset can point at.

    Raises:
      InputError: if so.
    """
    if count >= 2**31:
        raise InputError(
            f"There are too many {what} for one table.",
            expected="fewer than 2**31 on each shard",
            found=count,
        )
