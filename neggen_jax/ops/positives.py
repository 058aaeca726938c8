"""Each user's sorted positives, and exact queries over them.

Membership and the k-th non-member are both binary searches, branch-free and
of fixed length, so that negatives are drawn on the device for a whole batch
at once and are *never* a train positive of their user.

Users are spread over the devices as the rows of their table are. Where that is
over all of them, a query goes to the one that has the user. Otherwise it goes
to all that share the users, and the sum of all answers is its answer. Users
that are asked for exist, and the first axis of a query is best the batch's,
as that is how it is spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from neggen_jax.adjacency import Adjacency, fits_int32
from neggen_jax.ops.lookup import Spread, ask
from neggen_jax.partition import Axes, Partition

# Positives of each user that `contains_each` asks for at a time.
_ROUND = 32


@flax.struct.dataclass
class Positives:
    """Sorted positives by user, in `S` shards of equally many users.

    Attributes:
      indptr: int32 `[S, users / S + 1]`, offsets into the shard's own items.
      items: int32 `[S, n]`, ascending within each user; padded at the end.
      count: of all pairs.
      num_items: items that exist; candidates are `0 .. num_items - 1`.
      depth: binary-search steps that the longest row needs.
      mesh: devices that the shards live on.
      axis: mesh axes that the shards are spread over.
    """

    indptr: jax.Array
    items: jax.Array
    count: int = flax.struct.field(pytree_node=False)
    num_items: int = flax.struct.field(pytree_node=False)
    depth: int = flax.struct.field(pytree_node=False)
    mesh: Mesh = flax.struct.field(pytree_node=False)
    axis: Axes = flax.struct.field(pytree_node=False)


def make_positives(
    known: Adjacency, num_items: int, partition: Partition
) -> Positives:
    """Places the items of each user.

    Each process reads those of its own devices' users alone.

    Args:
      known: items by user.
      num_items: that exist.
      partition: the mesh.
    """
    shards = partition.shards("user")
    size = partition.padded(known.size, "user") // shards
    # Users that only pad the table have none.
    bounds = np.minimum(np.arange(shards + 1) * size, known.size)
    width = max(1, int(np.diff(known.offsets[bounds]).max()))
    fits_int32(width, "positives")
    own = partition.mine(shards, "user")
    indptr = np.zeros((len(own), size + 1), np.int32)
    items = np.zeros((len(own), width), np.int32)
    for row, shard in enumerate(own):
        first, last = bounds[shard : shard + 2]
        offsets = known.offsets[first : last + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        indptr[row] = end - begin
        indptr[row, : len(offsets)] = offsets - begin
        items[row, : end - begin] = known.ends[begin:end]
    return Positives(
        indptr=partition.join(indptr, own, shards, "user"),
        items=partition.join(items, own, shards, "user"),
        count=len(known),
        num_items=num_items,
        depth=known.longest.bit_length(),
        mesh=partition.mesh,
        axis=partition.rules["user"],
    )


def abstract_positives(
    count: int,
    num_users: int,
    num_items: int,
    partition: Partition,
    *,
    longest: int,
    skew: float = 1.0,
) -> Positives:
    """The shapes of what `make_positives` makes.

    Args:
      count: of the pairs.
      num_users: that have a row.
      num_items: that exist.
      partition: the mesh.
      longest: positives of the user who has most.
      skew: pairs of the fullest shard over those of the mean one, which every
        shard is padded to; a single shard has none.
    """
    shards = partition.shards("user")
    size = partition.padded(num_users, "user") // shards
    width = max(1, math.ceil(count / shards * (skew if shards > 1 else 1)))
    fits_int32(width, "positives")
    return Positives(
        indptr=partition.abstract((shards, size + 1), np.int32, "user"),
        items=partition.abstract((shards, width), np.int32, "user"),
        count=count,
        num_items=num_items,
        depth=longest.bit_length(),
        mesh=partition.mesh,
        axis=partition.rules["user"],
    )


def _ask(
    positives: Positives,
    answer: Callable[..., jax.Array],
    users: jax.Array,
    *about: jax.Array,
) -> jax.Array:
    """Has the shard of each user answer.

    Args:
      positives: rows to search.
      answer: of the shard's `indptr` and `items`, row numbers within the
        shard, and `about`; int32, of the shape of the row numbers.
      users: int32, any shape, its first axis that of the batch.
      *about: int32, of the same shape.
    """
    shards, size = positives.indptr.shape[0], positives.indptr.shape[1] - 1
    spread = Spread(positives.mesh, positives.axis)
    held = positives.indptr, positives.items
    if users.size and users.ndim and spread.cuts(shards * size, len(users)):
        return ask(
            held,
            lambda held, *asked: answer(*held, *asked),
            users,
            about,
            spread,
            size,
        )

    def local(indptr, items, users, *about):
        if shards == 1:
            return answer(indptr[0], items[0], users, *about)
        first = jax.lax.axis_index(positives.axis) * size
        mine = (users >= first) & (users < first + size)
        rows = jnp.where(mine, users - first, 0)
        found = answer(indptr[0], items[0], rows, *about)
        return jax.lax.psum(jnp.where(mine, found, 0), positives.axis)

    cut = P(positives.axis)
    return jax.shard_map(
        local,
        mesh=positives.mesh,
        in_specs=(cut, cut, P(), *[P() for _ in about]),
        out_specs=P(),
        check_vma=False,
    )(*held, users, *about)


def _prefix(
    depth: int,
    start: jax.Array,
    end: jax.Array,
    below: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Length of the longest prefix of `start .. end` on which `below` holds.

    Args:
      depth: binary-search steps.
      start: int32, places.
      end: int32, places past the last one, alike.
      below: of a rank within the prefix, and its place.
    """
    low, high = jnp.zeros_like(start), end - start
    for _ in range(depth):
        active = low < high
        middle = (low + high) // 2
        go_up = below(middle, start + middle) & active
        low = jnp.where(go_up, middle + 1, low)
        high = jnp.where(active & ~go_up, middle, high)
    return low


def contains(
    positives: Positives, users: jax.Array, items: jax.Array
) -> jax.Array:
    """Whether each item is a positive of each user.

    Args:
      positives: rows to search.
      users: int32, any shape.
      items: int32, the same shape.

    Returns:
      bool, the same shape.
    """

    def answer(indptr, known, rows, items):
        start, end = indptr[rows], indptr[rows + 1]
        at = start + _prefix(
            positives.depth, start, end, lambda _, place: known[place] < items
        )
        found = known[jnp.minimum(at, known.size - 1)] == items
        return (found & (at < end)).astype(jnp.int32)

    return _ask(positives, answer, users, items) > 0


def contains_each(
    positives: Positives, users: jax.Array, items: jax.Array
) -> jax.Array:
    """Whether each of some items is a positive of each of some users.

    `contains` of every pair, but at the cost of the users' positives, which
    are few, and of what is written: `len(users) * len(items)` bytes.

    Args:
      positives: rows to read.
      users: int32 `[n]`.
      items: int32 `[m]`; they may repeat.

    Returns:
      bool `[n, m]`.
    """
    size = len(items)
    # Of those that are the same item, one is marked for all.
    place = jnp.full(positives.num_items, size, jnp.int32)
    place = place.at[items].min(jnp.arange(size, dtype=jnp.int32))
    count = num_positives(positives, users)[:, None]
    rows = jnp.broadcast_to(users[:, None], (len(users), _ROUND))

    def mark(row: jax.Array, at: jax.Array) -> jax.Array:
        return row.at[at].set(True, mode="drop")

    def body(number: jax.Array, found: jax.Array) -> jax.Array:
        k = number * _ROUND + jnp.broadcast_to(jnp.arange(_ROUND), rows.shape)
        own = kth_positive(positives, rows, jnp.where(k < count, k, 0))
        return jax.vmap(mark)(found, jnp.where(k < count, place[own], size))

    none = jnp.zeros((len(users), size), bool)
    rounds = -(-jnp.max(count) // _ROUND)
    return jax.lax.fori_loop(0, rounds, body, none)[:, place[items]]


def num_positives(positives: Positives, users: jax.Array) -> jax.Array:
    """Number of positives of each user."""

    def answer(indptr, known, rows):
        del known
        return indptr[rows + 1] - indptr[rows]

    return _ask(positives, answer, users)


def num_negatives(positives: Positives, users: jax.Array) -> jax.Array:
    """Number of items that are not a positive of each user."""
    return positives.num_items - num_positives(positives, users)


def kth_positive(
    positives: Positives, users: jax.Array, k: jax.Array
) -> jax.Array:
    """The k-th (from 0) positive of each user, in index order.

    Args:
      positives: rows to read.
      users: int32, any shape.
      k: int32, the same shape, in `[0, num_positives)`.
    """

    def answer(indptr, known, rows, k):
        return known[jnp.minimum(indptr[rows] + k, known.size - 1)]

    return _ask(positives, answer, users, k)


def kth_negative(
    positives: Positives, users: jax.Array, k: jax.Array
) -> jax.Array:
    """The k-th (from 0) item, in index order, that is not a positive.

    With positives `p_0 < p_1 < ...` there are `p_r - r` non-positives below
    `p_r`; so as many positives lie below the answer as have `p_r - r <= k`,
    and that condition is monotone in `r`.

    Args:
      positives: rows to search.
      users: int32, any shape.
      k: int32, the same shape, in `[0, num_negatives)`.

    Returns:
      int32 items, the same shape.
    """

    def answer(indptr, known, rows, k):
        start, end = indptr[rows], indptr[rows + 1]
        return _prefix(
            positives.depth,
            start,
            end,
            lambda rank, place: known[place] - rank <= k,
        )

    return k + _ask(positives, answer, users, k)
