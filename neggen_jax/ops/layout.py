"""Lays the entries of a sparse matrix out in equal shards of its rows.

All of this happens on the host, before `ops/sparse.py` multiplies. A process
goes over the list of entries by blocks, so that it may be mapped from disk,
and keeps what belongs to the shards of its own devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import flax.struct
import jax
import numpy as np

from neggen_jax.ops.positives import fits_int32

# Built on the host, used on the devices.
Array = jax.Array | np.ndarray
# Given rows and columns of some entries, their weights.
Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Entries that are read at a time.
_BLOCK = 2**20
# Entries that int32 can number, with one number left over for padding.
_NUMBERED = 2**31 - 1


@flax.struct.dataclass
class Rows:
    """Sorted rows, cut into `S` shards, and the entries of each into `B`.

    B is 1, or else S: block b of a shard then has the entries whose columns
    live in shard b of the columns, numbered from its beginning.

    There is room for `S B n` entries, n those of the fullest block, and what
    is empty costs memory and work too. On 8 shards, B = 8 makes 1.3 times the
    room that the entries of a week of H&M need (1.2 times with B = 1), and
    1.2 to 1.5 times under Zipf's law if ids are dealt at random. But where
    ids follow popularity the first block has most of the entries: 15 to 18
    times, and 6 to 7 with B = 1. More shards make all of this worse: an item
    with a share p of all entries puts p/S of them into each of its blocks,
    where 1/S^2 is the mean, so that at least p S times the room is made.

    Attributes:
      columns: int32 `[S, B, n]`, padded at the end.
      rows: int32 `[S, B, n]`, row within the shard; padding repeats the last.
      weights: float32 `[S, B, n]`; padding is zero.
      edges: int32 `[S, B, n]`, position of each entry in the list that the
        matrix was built from; padding points past its end. None if the list
        is longer than int32 counts.
      indptr: int32 `[S, 1, height + 1]`, offsets into the shard's entries;
        None where nobody reads them: they take as much as a column of the
        whole table.
      height: rows in one shard.
    """

    columns: Array
    rows: Array
    weights: Array
    edges: Array | None
    indptr: Array | None
    height: int = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Entries:
    """The entries of a sparse matrix, in any order.

    Attributes:
      rows: int `[n]`.
      columns: int `[n]`; no pair occurs twice.
      weights: `[n]`, or a function that gives those of some entries.
      shape: of the matrix.
    """

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray | Weigh
    shape: tuple[int, int]

    @property
    def transpose(self) -> Entries:
        """The same entries with rows and columns exchanged."""
        weights = self.weights
        if callable(weights):
            function = weights
            weights = lambda columns, rows: function(rows, columns)  # noqa: E731
        return Entries(self.columns, self.rows, weights, self.shape[::-1])

    def blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Where each block of the list begins, its rows and its columns."""
        for start in range(0, len(self.rows), _BLOCK):
            some = slice(start, start + _BLOCK)
            yield start, self.rows[some], self.columns[some]

    def weigh(
        self, positions: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        """Weights of the entries at some positions of the list."""
        if callable(self.weights):
            return self.weights(rows, columns)
        return self.weights[positions]

    def count(self, shards: int) -> np.ndarray:
        """Entries by the shard of their row and that of their column.

        Args:
          shards: that rows and columns are both cut into.

        Returns:
          int64 `[shards, shards]`.
        """
        height, width = (size // shards for size in self.shape)
        counts = np.zeros(shards**2, np.int64)
        for _, rows, columns in self.blocks():
            block = rows // height * shards + columns // width
            counts += np.bincount(block, minlength=counts.size)
        return counts.reshape(shards, shards)


def numbered(count: int) -> bool:
    """Whether entries that are so many have numbers."""
    return count <= _NUMBERED


def compress(
    entries: Entries, counts: np.ndarray, own: list[int], native: bool
) -> Rows:
    """Sorts the entries of some shards.

    Args:
      entries: of the whole matrix.
      counts: entries in each block of each shard, `[S, B]`, of all shards:
        every process must find the same room.
      own: the shards to make.
      native: whether to make `indptr`.

    Returns:
      Rows whose arrays have only the shards in `own`, in that order.
    """
    shards, blocks = counts.shape
    height, width = entries.shape[0] // shards, entries.shape[1] // blocks
    room, total = max(1, int(counts.max(initial=0))), len(entries.rows)
    fits_int32(room, "edges")
    sizes = counts[own].reshape(-1)
    space = sizes.size, room
    columns = np.zeros(space, np.int32)
    rows = np.full(space, height - 1, np.int32)
    weights = np.zeros(space, np.float32)
    edges = np.full(space, total, np.int32) if numbered(total) else None
    first = np.full(shards, -1)
    first[own] = np.arange(len(own)) * blocks
    filled = np.zeros(sizes.size, np.int64)
    for start, all_rows, all_columns in entries.blocks():
        block = first[all_rows // height]
        mine = np.flatnonzero(block >= 0)
        row, column = all_rows[mine], all_columns[mine]
        block = block[mine] + column // width
        # Each goes behind what its block has by now.
        order = np.argsort(block, kind="stable")
        block, row, column = block[order], row[order], column[order]
        found = np.bincount(block, minlength=sizes.size)
        before = filled - (np.cumsum(found) - found)
        at = block * room + before[block] + np.arange(block.size)
        filled += found
        position = start + mine[order]
        rows.reshape(-1)[at] = row % height
        columns.reshape(-1)[at] = column % width
        weights.reshape(-1)[at] = entries.weigh(position, row, column)
        if edges is not None:
            edges.reshape(-1)[at] = position
    arrays = [x for x in (rows, columns, weights, edges) if x is not None]
    for block, size in enumerate(sizes):
        key = rows[block, :size].astype(np.int64) * width
        order = np.argsort(key + columns[block, :size])
        for array in arrays:
            array[block, :size] = array[block, order]
    indptr = _offsets(rows, sizes, height) if native else None
    return jax.tree.map(
        lambda x: x.reshape(len(own), blocks, -1),
        Rows(columns, rows, weights, edges, indptr, height),
    )


def _offsets(rows: np.ndarray, sizes: np.ndarray, height: int) -> np.ndarray:
    out = np.zeros((len(rows), height + 1), np.int32)
    for block, size in enumerate(sizes):
        count = np.bincount(rows[block, :size], minlength=height)
        np.cumsum(count, out=out[block, 1:])
    return out
