"""Lays the entries of a sparse matrix out in equal shards of its rows.

All of this happens on the host, before `ops/sparse.py` multiplies. Entries
come sorted by row, so that those of one shard are one piece of the list: a
process reads the pieces of its own devices, some entries at a time, and
nothing else. They may be mapped from disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import flax.struct
import jax
import numpy as np

from neggen_jax import hosts
from neggen_jax.adjacency import Adjacency, Index, fits_int32

# Built on the host, used on the devices.
Array = jax.Array | np.ndarray
# Given rows and columns of some entries, their weights.
Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Entries that int32 can number, with one number left over for padding.
_NUMBERED = 2**31 - 1


# Given columns of entries of one shard, their blocks, and where the vectors of
# the columns are in what that block is multiplied by.
Cut = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@flax.struct.dataclass
class Rows:
    """Sorted rows, cut into `S` shards, and the entries of each into `B`.

    What a block is depends on the exchange (see `ops/exchange.py`):

    - "gather" has one. Columns are those of the matrix.
    - "ring" has S: block b has the entries whose columns live in shard b of
      the columns, numbered from its beginning.
    - "pull" has one for each round, in which every shard of the columns sends
      c of its vectors (see `ops/routes.py`); columns are numbered in the order
      that they arrive in.
      Its transpose has the same entries in the same shards, which are those
      of its own columns: a block is sorted by what was the number of the
      column, and its sums leave in the order that the vectors came in.

    There is room for `S B n` entries, n those of the fullest block, and what
    is empty costs memory and work too. On 8 shards, B = 8 makes 1.3 times the
    room that the entries of a week of H&M need (1.2 times with B = 1), and
    1.2 to 1.5 times under Zipf's law if ids are dealt at random. But where
    ids follow popularity the first block has most of the entries: 15 to 18
    times, and 6 to 7 with B = 1. More shards make all of this worse: an item
    with a share p of all entries puts p/S of them into each of its blocks,
    where 1/S^2 is the mean, so that at least p S times the room is made.
    Rounds have no such trouble: columns are dealt to them in turn.

    Attributes:
      columns: int32 `[S, B, n]`, in what the block is multiplied by.
      rows: int32 `[S, B, n]`, row within the shard, ascending in each block;
        padding, at the end, repeats the last. If `pushes`, the place of the
        row's sum among the `S c` that leave in the round.
      weights: float32 `[S, B, n]`; padding is zero.
      edges: int32 `[S, B, n]`, position of each entry in the list that the
        matrix was built from; padding points past its end. None if the list
        is longer than int32 counts.
      indptr: int32 `[S, 1, height + 1]`, offsets into the shard's entries;
        None where nobody reads them: they take as much as a column of the
        whole table.
      send: int32 `[S, B, S, c]`, which of the vectors that a shard holds it
        sends to each shard in each round, padded at the end; None if the
        exchange is another one. If `pushes`, those that it is sent sums of.
      height: rows in one shard.
      pushes: whether entries lie where their columns do.
    """

    columns: Array
    rows: Array
    weights: Array
    edges: Array | None
    indptr: Array | None
    send: Array | None
    height: int = flax.struct.field(pytree_node=False)
    pushes: bool = flax.struct.field(pytree_node=False, default=False)


@dataclasses.dataclass(frozen=True)
class Entries:
    """The entries of a sparse matrix, sorted by row.

    Attributes:
      pairs: row and column of each; rows that it lacks are empty. No pair
        occurs twice.
      weights: by the names of the pairs, or a function of rows and columns.
      shape: of the matrix; at least as large as what `pairs` needs.
    """

    pairs: Adjacency
    weights: np.ndarray | Weigh
    shape: tuple[int, int]

    def within(self, shard: int, shards: int) -> tuple[int, int]:
        """The rows of a shard, from and to, without those that `pairs` lacks.

        Args:
          shard: which one.
          shards: that the rows are cut into.
        """
        height = self.shape[0] // shards
        first, last = height * shard, height * (shard + 1)
        return min(first, self.pairs.size), min(last, self.pairs.size)

    def sizes(self, shards: int) -> np.ndarray:
        """Entries of each shard, int64 `[shards]`; only offsets are read."""
        cuts = [self.within(shard, shards)[0] for shard in range(shards)]
        return np.diff(self.pairs.offsets[[*cuts, self.pairs.size]])

    def count(
        self, own: Sequence[int], cuts: Sequence[Cut], shards: int, blocks: int
    ) -> np.ndarray:
        """Entries of some shards by their blocks, int64 `[len(own), blocks]`.

        Args:
          own: the shards.
          cuts: of each of them.
          shards: that there are.
          blocks: that each is cut into.
        """
        counts = np.zeros((len(own), blocks), np.int64)
        for count, shard, cut in zip(counts, own, cuts, strict=True):
            for _, ends, _ in self.pairs.blocks(*self.within(shard, shards)):
                count += np.bincount(cut(ends)[0], minlength=blocks)
        return counts

    def weigh(
        self, names: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        """Weights of some entries."""
        if callable(self.weights):
            return self.weights(rows, columns)
        return self.weights[names]


def both_ways(
    index: Index, weights: np.ndarray | Weigh, shape: tuple[int, int]
) -> tuple[Entries, Entries]:
    """The entries of a matrix, and those of its transpose.

    Args:
      index: rows are its users, columns its items.
      weights: by the names of the pairs, or a function of rows and columns.
      shape: of the matrix.
    """
    swapped = weights
    if callable(weights):
        function = weights
        swapped = lambda columns, rows: function(rows, columns)  # noqa: E731
    return (
        Entries(index.by_user, weights, shape),
        Entries(index.by_item, swapped, shape[::-1]),
    )


def numbered(count: int) -> bool:
    """Whether entries that are so many have numbers."""
    return count <= _NUMBERED


@dataclasses.dataclass(frozen=True)
class Cutting:
    """Into what entries are cut.

    Attributes:
      shards: S, of rows.
      blocks: B, of the entries of each shard.
      width: columns that each block numbers.
    """

    shards: int
    blocks: int
    width: int


def lay_out(
    entries: Entries,
    own: Sequence[int],
    shards: int,
    blocks: int,
    native: bool,
) -> Rows:
    """Lays some shards of a matrix out for "gather" or the ring.

    All processes of a run have to come here, as they agree on the room.

    Args:
      entries: of the whole matrix.
      own: the shards to make.
      shards: that there are.
      blocks: 1, or as many as there are shards.
      native: whether to make `indptr`.

    Returns:
      Rows whose arrays have only the shards in `own`, in that order.
    """
    width = entries.shape[1] // blocks
    cuts: list[Cut] = [lambda columns: np.divmod(columns, width)] * len(own)
    if blocks == 1:
        room = int(entries.sizes(shards).max())
    else:
        room = fullest(entries, own, cuts, shards, blocks)
    cutting = Cutting(shards, blocks, width)
    return compress(entries, own, cuts, cutting, room, native)


def fullest(
    entries: Entries,
    own: Sequence[int],
    cuts: Sequence[Cut],
    shards: int,
    blocks: int,
) -> int:
    """Entries of the fullest block of all shards."""
    counts = entries.count(own, cuts, shards, blocks)
    (room,) = hosts.largest("laying out a graph", [int(counts.max())])
    return room


def compress(
    entries: Entries,
    own: Sequence[int],
    cuts: Sequence[Cut],
    cutting: Cutting,
    room: int,
    native: bool,
) -> Rows:
    """Cuts the entries of some shards into blocks.

    Args:
      entries: of the whole matrix.
      own: the shards to make.
      cuts: of each of them.
      cutting: into shards and blocks.
      room: for the entries of a block; every process must find the same.
      native: whether to make `indptr`; of one block.

    Returns:
      Rows whose arrays have only the shards in `own`, in that order.
    """
    fits_int32(room, "edges")
    shards, blocks = cutting.shards, cutting.blocks
    height, total = entries.shape[0] // shards, len(entries.pairs)
    space = len(own), blocks, max(1, room)
    # The last ones, so that padding stays at the end by either order.
    columns = np.full(space, cutting.width - 1, np.int32)
    rows = np.full(space, height - 1, np.int32)
    weights = np.zeros(space, np.float32)
    edges = np.full(space, total, np.int32) if numbered(total) else None
    for here, (shard, cut) in enumerate(zip(own, cuts, strict=True)):
        filled = np.zeros(blocks, np.int64)
        for row, column, names in entries.pairs.blocks(
            *entries.within(shard, shards)
        ):
            block, place = cut(column)
            order, at = _deal(block, filled)
            where = here, block[order], at
            rows[where] = row[order] - height * shard
            columns[where] = place[order]
            weights[where] = entries.weigh(names, row, column)[order]
            if edges is not None:
                edges[where] = names[order]
    indptr = None
    if native:
        indptr = np.stack([_offsets(entries, s, height) for s in own])
    return Rows(columns, rows, weights, edges, indptr, None, height)


def _deal(
    block: np.ndarray, filled: np.ndarray
) -> tuple[np.ndarray | slice, np.ndarray]:
    """Where entries go, each behind what its block has by now.

    Args:
      block: of each, `[n]`.
      filled: entries of each block; those that are dealt are added.

    Returns:
      An order of the entries in which each block keeps its own, and the
      positions that they then have in their blocks, `[n]`.
    """
    found = np.bincount(block, minlength=len(filled))
    before = filled - (np.cumsum(found) - found)
    filled += found
    if len(filled) == 1:
        return slice(None), before[0] + np.arange(len(block))
    order = np.argsort(block, kind="stable")
    return order, before[block[order]] + np.arange(len(block))


def _offsets(entries: Entries, shard: int, height: int) -> np.ndarray:
    """Where each row of a shard begins in it, int32 `[1, height + 1]`."""
    first, last = entries.within(shard, entries.shape[0] // height)
    offsets = np.asarray(entries.pairs.offsets[first : last + 1])
    offsets = np.pad(offsets, (0, height + first - last), mode="edge")
    return (offsets - offsets[0]).astype(np.int32)[None]
