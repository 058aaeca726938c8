"""Which vectors each shard is sent by each other one, and when.

For the exchange "pull" of `ops/exchange.py`; on the host, like the rest of
the layout.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from neggen_jax import hosts
from neggen_jax.ops.layout import Cutting, Entries, Rows, compress, fullest

# Vectors that a shard is sent in a round, about. TPUs keep so many in the
# memory of the chip's core (16 MiB in float32 and up to 128 wide), and work on
# them there. More pass through HBM several times, sooner or later; fewer make
# more rounds, and each goes over the sums again. LightGCN on 16 and 256 v6e
# chips (docs/plans.toml) moved 85 and 85 GB a step with 2^15, 74 and 198 with
# 2^16, and 86 on 256 with 2^14; on v5e 84 and 85, and 70 and 85.
ROUND = 2**15
# Rows of a tile of TPUs' memory.
_TILE = 8


def in_rounds(most: int, shards: int) -> tuple[int, int]:
    """Cuts what has to be sent into rounds.

    Args:
      most: vectors that any shard sends to any other.
      shards: that there are.

    Returns:
      Rounds, and the vectors that each shard sends each in one: at least one
      tile, and whole ones. Otherwise TPUs would copy what they have received
      to put it together.
    """
    rounds = max(1, math.ceil(shards * most / ROUND))
    tiles = math.ceil(most / rounds / _TILE)
    return rounds, max(1, tiles) * _TILE


@dataclasses.dataclass(frozen=True)
class Needed:
    """The columns in which a shard has entries, by their shards.

    They are dealt to rounds in turn, so that runs of columns that have most
    of the entries, as ids by popularity make them, are spread.

    Attributes:
      columns: distinct, ascending.
      starts: int64 `[S + 1]`, where those of each shard of columns begin.
      width: columns of one shard.
    """

    columns: np.ndarray
    starts: np.ndarray
    width: int

    @classmethod
    def make(cls, entries: Entries, shard: int, shards: int) -> Needed:
        """Looks them up for one shard of the rows."""
        width = entries.shape[1] // shards
        parts = [np.zeros(0, np.int32)] + [
            np.unique(ends)
            for _, ends, _ in entries.pairs.blocks(
                *entries.within(shard, shards)
            )
        ]
        columns = np.unique(np.concatenate(parts))
        starts = np.searchsorted(columns, width * np.arange(shards + 1))
        return cls(columns, starts, width)

    def most(self) -> int:
        """Columns of the shard that has most of them."""
        return int(np.diff(self.starts).max())

    def _deal(self, columns: np.ndarray, rounds: int) -> tuple[np.ndarray, ...]:
        """The round, the sender and the place among what it sends then."""
        sender = columns // self.width
        place = np.searchsorted(self.columns, columns)
        return place % rounds, sender, (place - self.starts[sender]) // rounds

    def cut(
        self, columns: np.ndarray, rounds: int, room: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A `Cut` into rounds, in each of which a shard sends `room`."""
        block, sender, place = self._deal(columns, rounds)
        return block, sender * room + place

    def lists(self, rounds: int, room: int) -> np.ndarray:
        """What to ask of each shard in each round, int32 `[B, S, c]`."""
        out = np.empty((rounds, len(self.starts) - 1, room), np.int32)
        # Nothing is added to padding's rows, but not to one row alone.
        out[:] = np.arange(room) % self.width
        out[self._deal(self.columns, rounds)] = self.columns % self.width
        return out


def lay_out_to_pull(
    entries: Entries, own: Sequence[int], shards: int
) -> tuple[Rows, Rows, np.ndarray]:
    """Lays some shards of a matrix, and of its transpose, out for "pull".

    All processes of a run have to come here, as they agree on the room.

    Args:
      entries: of the whole matrix.
      own: the shards to make.
      shards: that there are.

    Returns:
      The rows of the matrix, and those of its transpose, with only the shards
      in `own`, in that order, and no lists of what to send; and what these
      shards need of others, int32 `[len(own), B, S, c]`, rows within each.
    """
    needed = [Needed.make(entries, shard, shards) for shard in own]
    (most,) = hosts.largest(
        "laying out a graph", [max(n.most() for n in needed)]
    )
    rounds, sent = in_rounds(most, shards)
    cuts = [functools.partial(n.cut, rounds=rounds, room=sent) for n in needed]
    room = fullest(entries, own, cuts, shards, rounds)
    cutting = Cutting(shards, rounds, shards * sent)
    rows = compress(entries, own, cuts, cutting, room, native=False)
    turned = _turned(rows, entries.shape[1] // shards)
    return rows, turned, np.stack([n.lists(rounds, sent) for n in needed])


def _turned(rows: Rows, height: int) -> Rows:
    """The same entries by their columns, to push what comes of them.

    Args:
      rows: to pull; in each block padding has the last column.
      height: columns of a shard.
    """
    turned = jax.tree.map(np.empty_like, rows)
    for block in np.ndindex(rows.columns.shape[:2]):
        # Stable: padding follows what else has the last column.
        order = np.argsort(rows.columns[block], kind="stable")
        turned.rows[block] = rows.columns[block][order]
        turned.columns[block] = rows.rows[block][order]
        turned.weights[block] = rows.weights[block][order]
        if rows.edges is not None:
            turned.edges[block] = rows.edges[block][order]
    return dataclasses.replace(turned, height=height, pushes=True)
