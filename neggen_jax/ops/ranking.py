"""Top-k of inner products: blockwise, sharded, and (unless told) exact.

The k best items of each query are found item tile by item tile, and the
tiles' winners merged; no array of queries x items ever exists. Two rules
make the result the same to the last digit whatever the block size and the
number of devices:

- queries and items come in whole tiles of `TILE_QUERIES` and `TILE_ITEMS`
  rows: XLA's products of small and odd shapes round in ways of their own, and
  these alike, however many tiles it puts into one product (on CPU, where the
  tests compare bits; where `native.rank` is there, it adds up the entries of
  each product in their order);
- ties go to the item with the lower index, in a tile and between tiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from neggen_jax.adjacency import Adjacency
from neggen_jax.ops import native
from neggen_jax.partition import Partition

TILE_QUERIES = 256
TILE_ITEMS = 512
# Score tiles that are held at a time: [TILE_QUERIES, 16 * TILE_ITEMS] of
# float32 is 8 MiB. Accelerators hold those of all queries, 128 MiB of 4,096.
TILES_AT_ONCE = 16


@flax.struct.dataclass
class Excluded:
    """(query, item) pairs of one block of queries that must not be ranked.

    Attributes:
      queries: int32 `[n]`, row within the block; padding points past its end.
      items: int32 `[n]`.
    """

    queries: jax.Array | np.ndarray
    items: jax.Array | np.ndarray


def tiled_size(num_items: int, partition: Partition) -> int:
    """Rows that a table of items is padded to before it is ranked."""
    shards = partition.shards("ranked")
    tiles = -(-num_items // (TILE_ITEMS * shards))
    chunks = -(-tiles // TILES_AT_ONCE)
    tiles = -(-tiles // chunks) * chunks
    return tiles * TILE_ITEMS * shards


def top_k(
    queries: jax.Array,
    items: jax.Array,
    excluded: Excluded,
    *,
    k: int,
    num_items: int,
    partition: Partition,
    recall_target: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """The k items with the largest inner product with each query.

    Args:
      queries: `[Q, d]`, Q a multiple of `TILE_QUERIES` times the shards of
        `batch`.
      items: `[tiled_size(num_items), d]`, sharded by `ranked`.
      excluded: pairs that are left out.
      k: length of each list.
      num_items: true number of items; rows past it are padding.
      partition: where the tables live.
      recall_target: below 1, the best of each chunk of items are chosen by
        `jax.lax.approx_max_k`, which looks for this share of them: on TPU
        without sorting (Chern et al., 2022), elsewhere exactly.

    Returns:
      Scores `[Q, k]`, descending, and int32 items `[Q, k]`. Where fewer than
      k items remain, the score is -inf and the item -1.
    """
    (item_axis,), (batch_axis,) = map(partition.spec, ("ranked", "batch"))
    shards = partition.shards("ranked")
    chooser = Chooser(partition.mesh, recall_target)

    def local(queries, items, excluded):
        shard = jax.lax.axis_index(item_axis) if item_axis else 0
        first = shard * items.shape[0]
        rows = queries.shape[0]
        block = jax.lax.axis_index(batch_axis) * rows if batch_axis else 0
        mine = Excluded(excluded.queries - block, excluded.items - first)
        scores, found = _local_top_k(
            queries, items, mine, k, num_items - first, chooser
        )
        found = jnp.where(found >= 0, found + first, -1)
        if shards == 1:
            return scores, found
        # Shards are gathered in the order of their items, and top_k prefers
        # the earlier of two equals: the lower index still wins.
        scores = jax.lax.all_gather(scores, item_axis, axis=1, tiled=True)
        found = jax.lax.all_gather(found, item_axis, axis=1, tiled=True)
        scores, at = chooser.merge(scores, k)
        return scores, jnp.take_along_axis(found, at, axis=1)

    return jax.shard_map(
        local,
        mesh=partition.mesh,
        in_specs=(P(batch_axis), P(item_axis), P()),
        out_specs=(P(batch_axis), P(batch_axis)),
        check_vma=False,
    )(queries, items, excluded)


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Chooses the best of some columns.

    Attributes:
      mesh: of the devices that do.
      recall_target: of `choose`.
    """

    mesh: Mesh
    recall_target: float

    def choose(self, scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        """Values and columns of a chunk's best, `[rows, k]`."""
        if self.recall_target < 1:
            values, columns = jax.lax.approx_max_k(
                scores, k, recall_target=self.recall_target
            )
            return values, columns
        return self.merge(scores, k)

    def merge(self, scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        """The same of a few, and exactly."""
        return native.top_k(scores, k, self.mesh)


def _local_top_k(queries, items, excluded, k, num_items, chooser):
    """Top-k over one shard; item indices are the shard's own, -1 for none."""
    if native.ranks(chooser.mesh):
        pairs = excluded.queries, excluded.items
        scores, found = native.rank(queries, items, pairs, num_items, k)
        return scores, jnp.where(scores == -jnp.inf, -1, found)
    tiles = items.shape[0] // TILE_ITEMS
    chunks = -(-tiles // TILES_AT_ONCE)
    items = items.reshape(chunks, -1, *items.shape[1:])
    rows = len(queries)
    # A CPU's caches hold the scores of one tile of queries.
    held = TILE_QUERIES if native.on_cpu(chooser.mesh) else rows

    def some(number):
        part = jax.lax.dynamic_slice_in_dim(queries, number * held, held)
        mine = Excluded(excluded.queries - number * held, excluded.items)
        return tile_top_k(part, items, mine, k, num_items, chooser)

    if held == rows:
        scores, found = some(0)
    else:
        scores, found = jax.lax.map(some, jnp.arange(rows // held))
        scores, found = scores.reshape(rows, k), found.reshape(rows, k)
    return scores, jnp.where(scores == -jnp.inf, -1, found)


def tile_top_k(
    queries: jax.Array,
    items: jax.Array,
    excluded: Excluded,
    k: int,
    num_items: Any,
    chooser: Any,
) -> tuple[jax.Array, jax.Array]:
    """Top-k over chunks of items, one by one, on one device.

    Args:
      queries: `[Q, d]`, whole tiles of them.
      items: `[chunks, width, d]`, likewise.
      excluded: pairs that are left out.
      k: length of each list.
      num_items: true number of items.
      chooser: a `Chooser`, or what has its methods.

    Returns:
      Scores `[Q, k]`, descending, and int32 items `[Q, k]`; anything where
      the score is -inf.
    """
    rows, dim = queries.shape
    chunks, width, _ = items.shape
    queries = queries.reshape(-1, TILE_QUERIES, dim)

    def best(number, table):
        first = number * width
        table = table.reshape(-1, TILE_ITEMS, dim)
        # Accelerators would round the factors to fewer bits unless told.
        scores = jnp.einsum(
            "qud,tid->quti", queries, table, precision=jax.lax.Precision.HIGHEST
        )
        scores = scores.reshape(rows, width).astype(jnp.float32)
        real = first + jnp.arange(width) < num_items
        scores = jnp.where(real, scores, -jnp.inf)
        column = excluded.items - first
        inside = (column >= 0) & (column < width) & (excluded.queries >= 0)
        row = jnp.where(inside, excluded.queries, rows)
        scores = scores.at[row, column].set(-jnp.inf, mode="drop")
        scores, at = chooser.choose(scores, min(k, width))
        return scores, at + first

    def step(held, chunk):
        # What is held stands first: its items have lower indices.
        both = zip(held, best(*chunk), strict=True)
        scores, found = (jnp.concatenate(pair, axis=1) for pair in both)
        scores, at = chooser.merge(scores, k)
        return (scores, jnp.take_along_axis(found, at, axis=1)), None

    none = (
        jnp.full((rows, k), -jnp.inf),
        jnp.full((rows, k), -1, jnp.int32),
    )
    if chunks == 1 and k <= width:
        return best(0, items[0])
    (scores, found), _ = jax.lax.scan(step, none, (jnp.arange(chunks), items))
    return scores, found


def exclude(
    block: np.ndarray, known: Sequence[Adjacency], size: int
) -> Excluded:
    """Looks up what must not be ranked for one block of users, on the host.

    Args:
      block: users of the block.
      known: each user's items to leave out; of one of them or the other.
      size: length to pad to, so that every block has the same shape.
    """
    queries, items = [], []
    for part in known:
        starts = part.offsets[block]
        lengths = part.offsets[block + 1] - starts
        rows = np.repeat(np.arange(len(block), dtype=np.int32), lengths)
        within = np.arange(len(rows)) - np.repeat(
            np.cumsum(lengths) - lengths, lengths
        )
        queries.append(rows)
        items.append(part.ends[np.repeat(starts, lengths) + within])
    padding = (0, size - sum(map(len, queries)))
    return Excluded(
        queries=np.pad(np.concatenate(queries), padding, constant_values=2**30),
        items=np.pad(np.concatenate(items).astype(np.int32), padding),
    )
