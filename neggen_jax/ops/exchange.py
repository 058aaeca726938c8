"""Products of one shard of rows: how it comes by the vectors of others.

All of this runs on one device, inside `shard_map`. There are three exchanges:

- "gather": each device holds all of `x` while it multiplies.
- "ring": `x` stays cut into shards, which go round the devices; each adds up
  those parts of its rows whose columns it holds just now. What a device needs
  does not grow with the table: two shards of `x`, the sums of its own rows,
  and the messages of one block of entries. But the whole table passes
  through it, and it goes over its sums as often as there are devices.
- "pull": each device is sent the vectors of the columns that its entries
  have, once each, in rounds of a fixed size. The transpose goes the same way
  back: a device adds up what its entries have for each column, and sends the
  sums to whoever holds it. So whichever way it goes, rows stay where they are
  and columns travel. A device holds one round of vectors, and lists of those
  to send. All pairs of devices are padded to the one that needs most: where
  columns follow popularity they are to be dealt, as for the ring.

On CPU the product of "gather" is a native kernel (`ops/native.py`); all others
are segment sums over sorted rows.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from neggen_jax.ops import native
from neggen_jax.ops.layout import Rows

# A mesh axis, or several.
Axis = Any


def reads_all(rows: Rows) -> bool:
    """Whether `product` wants all of `x`; else the shard of the device."""
    return rows.send is None and rows.columns.shape[1] == 1


def product(rows: Rows, x: jax.Array, axis: Axis) -> jax.Array:
    """The rows of one shard times `x`.

    Args:
      rows: of one shard: `[B, n]` where all of them have `[S, B, n]`.
      x: `[columns, d]`, or a shard of it; see `reads_all`.
      axis: that the shards are spread over.

    Returns:
      `[height, d]`, in the dtype of `x`; sums run in float32.
    """
    if rows.pushes:
        return _push_product(rows, x, axis)
    if rows.send is not None:
        return _pull_product(rows, x, axis)
    if len(rows.columns) > 1:
        return _ring_product(rows, x, axis)
    rows = jax.tree.map(lambda v: v[0], rows)
    if rows.indptr is not None:
        return _native_product(rows, x)
    return _segment_product(rows, x)


def _native_product(rows: Rows, x: jax.Array) -> jax.Array:
    # The kernel knows float32 alone.
    x32: Any = x.astype(jnp.float32)
    parts: Any = (rows.indptr, rows.columns, rows.weights, x32)
    return native.multiply(*parts).astype(x.dtype)


def _segment_product(rows: Rows, x: jax.Array) -> jax.Array:
    sums = jnp.zeros((rows.height, x.shape[1]), jnp.float32)
    return _add_messages(sums, rows, x).astype(x.dtype)


def _ring_product(rows: Rows, x: jax.Array, axis: Axis) -> jax.Array:
    """Begins with the device's own shard; a block of entries for each."""
    shards, me = len(rows.columns), jax.lax.axis_index(axis)
    to_previous = [(i, (i - 1) % shards) for i in range(shards)]

    def add(step: Any, held: jax.Array, sums: jax.Array) -> jax.Array:
        block = (me + step) % shards
        return _add_messages(sums, jax.tree.map(lambda v: v[block], rows), held)

    def body(step: Any, carry: tuple) -> tuple:
        held, sums = carry
        # Asked for before the product, which it does not wait for.
        following = jax.lax.ppermute(held, axis, to_previous)
        return following, add(step, held, sums)

    sums = jnp.zeros((rows.height, x.shape[1]), jnp.float32)
    held, sums = jax.lax.fori_loop(0, shards - 1, body, (x, sums))
    return add(shards - 1, held, sums).astype(x.dtype)


def _pull_product(rows: Rows, x: jax.Array, axis: Axis) -> jax.Array:
    """A block of entries for each round of vectors."""
    send: Any = rows.send

    def body(step: Any, sums: jax.Array) -> jax.Array:
        held = x[send[step].reshape(-1)]
        held = jax.lax.all_to_all(held, axis, 0, 0, tiled=True)
        return _add_messages(sums, jax.tree.map(lambda v: v[step], rows), held)

    sums = jnp.zeros((rows.height, x.shape[1]), jnp.float32)
    sums = jax.lax.fori_loop(0, len(send), body, sums)
    return sums.astype(x.dtype)


def _push_product(rows: Rows, x: jax.Array, axis: Axis) -> jax.Array:
    """A block of entries, and what they add up to, for each round."""
    send: Any = rows.send

    def body(step: Any, sums: jax.Array) -> jax.Array:
        own = jnp.zeros((send[step].size, x.shape[1]), jnp.float32)
        own = _add_messages(own, jax.tree.map(lambda v: v[step], rows), x)
        # In float32, whatever x is: these are parts of sums.
        parts = jax.lax.all_to_all(own, axis, 0, 0, tiled=True)
        return sums.at[send[step].reshape(-1)].add(parts)

    sums = jnp.zeros((rows.height, x.shape[1]), jnp.float32)
    sums = jax.lax.fori_loop(0, len(send), body, sums)
    return sums.astype(x.dtype)


def _add_messages(sums: jax.Array, rows: Rows, x: jax.Array) -> jax.Array:
    """Adds one block of entries `[n]` times `x` to `sums`."""
    messages = x[rows.columns].astype(jnp.float32) * rows.weights[:, None]
    return sums.at[rows.rows].add(messages, indices_are_sorted=True)


def pulled(rows: Rows, values: jax.Array, axis: Axis) -> jax.Array:
    """The number that each entry's column has.

    Args:
      rows: of one shard, for "pull".
      values: `[w]`, of the columns of the device's shard.
      axis: that the shards are spread over.

    Returns:
      `[B, n]`.
    """
    held = jax.lax.all_to_all(values[rows.send], axis, 1, 1, tiled=True)
    held = held.reshape(len(held), -1)
    return jnp.take_along_axis(held, rows.columns, axis=1)


def counted(rows: Rows, axis: Axis) -> jax.Array:
    """Entries in each row of the device's shard, where weights are 1 or 0.

    Args:
      rows: of one shard, that pushes.
      axis: that the shards are spread over.

    Returns:
      int32 `[height]`.
    """
    send: Any = rows.send
    # Float32 would stop counting at 2**24.
    zeros = jnp.zeros((len(send), send[0].size), jnp.int32)
    block = jnp.arange(len(send))[:, None]
    own = zeros.at[block, rows.rows].add(rows.weights.astype(jnp.int32))
    parts = jax.lax.all_to_all(own.reshape(send.shape), axis, 1, 1, tiled=True)
    return jnp.zeros(rows.height, jnp.int32).at[send].add(parts)


def requests(need: jax.Array, mesh: Mesh, axis: Axis) -> jax.Array:
    """What every shard has to send, from what every shard needs.

    Args:
      need: int32 `[S, B, S, c]`, by who needs and who sends; the first axis
        is spread over the devices.
      mesh: the devices.
      axis: that the shards are spread over.

    Returns:
      The same by who sends and who needs.
    """
    return _turn(mesh, axis)(need)


@functools.cache
def _turn(mesh: Mesh, axis: Axis) -> Any:
    spread = P(axis)
    turn = jax.shard_map(
        lambda lists: jax.lax.all_to_all(lists, axis, 2, 2, tiled=True),
        mesh=mesh,
        in_specs=spread,
        out_specs=spread,
        check_vma=False,
    )
    return jax.jit(turn)
