"""Products with a sparse matrix, forward and backward, sharded by rows.

A `Graph` keeps one sparse matrix in both orientations, each as sorted rows
cut into equal row shards. The gradient of `R x` is `R^T g`, so with both at
hand each device computes just the rows it owns, in either direction.
`multiply` is `shard_map` over row shards, with one of two exchanges:

- "gather": each device holds all of `x` while it multiplies.
- "ring": `x` stays cut into shards, which go round the devices; each adds up
  those parts of its rows whose columns it holds just now. What a device needs
  does not grow with the table: two shards of `x`, the sums of its own rows,
  and the messages of one block of entries.

On CPU the product of "gather" is XLA's native CSR kernel (through BCSR); all
others are segment sums over sorted rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse as jsparse
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from neggen_jax import hosts
from neggen_jax.adjacency import Index
from neggen_jax.errors import InputError
from neggen_jax.ops.layout import (
    Array,
    Entries,
    Rows,
    Weigh,
    both_ways,
    compress,
    numbered,
)
from neggen_jax.ops.positives import fits_int32
from neggen_jax.partition import Partition


@flax.struct.dataclass
class Graph:
    """A sparse matrix `R` `[rows, columns]`, and its transpose.

    Attributes:
      forward: rows of `R`; in one block for each shard of its columns if the
        exchange is a ring, in one block otherwise.
      backward: rows of `R^T`, alike.
      mesh: devices that the row shards live on.
      axis: what the shards are spread over: a mesh axis, several, or None.
    """

    forward: Rows
    backward: Rows
    mesh: Mesh = flax.struct.field(pytree_node=False)
    axis: str | tuple[str, ...] | None = flax.struct.field(pytree_node=False)

    @property
    def transpose(self) -> Graph:
        """`R^T`, without a copy."""
        return dataclasses.replace(
            self, forward=self.backward, backward=self.forward
        )


def make_graph(
    pairs: Index | np.ndarray | tuple[np.ndarray, np.ndarray],
    weights: np.ndarray | Weigh,
    shape: tuple[int, int],
    partition: Partition,
    axis: str = "edge",
) -> Graph:
    """Lays out a sparse matrix over the devices, for one exchange.

    Each process makes the shards of its own devices alone, and reads nothing
    else.

    Args:
      pairs: rows and columns of the entries: sorted both ways, or int `[n]`
        each, in any order, which are sorted here. No pair occurs twice.
      weights: by the names of the pairs, which are positions in the arrays;
        or a function of rows and columns of some entries that gives theirs.
      shape: rows and columns, both multiples of `partition.shards(axis)`.
      partition: where the shards go, and by which exchange they multiply.
      axis: logical axis of the shards.
    """
    shards = partition.shards(axis)
    for size in shape:
        if size % shards:
            raise ValueError(f"{size} rows do not cut into {shards} shards")
    if not isinstance(pairs, Index):
        pairs = Index.make(pairs[0], pairs[1], *shape)
    forward, backward = both_ways(pairs, weights, shape)
    (mesh_axis,) = partition.spec(axis)
    return Graph(
        _lay_out(forward, partition, axis),
        _lay_out(backward, partition, axis),
        partition.mesh,
        mesh_axis,
    )


def abstract_graph(
    count: int,
    shape: tuple[int, int],
    partition: Partition,
    axis: str = "edge",
    *,
    skew: float = 1.0,
) -> Graph:
    """The shapes of what `make_graph` makes.

    Args:
      count: of the entries.
      shape: rows and columns, both multiples of `partition.shards(axis)`.
      partition: where the shards go, and by which exchange they multiply.
      axis: logical axis of the shards.
      skew: entries of the fullest shard, or block of the ring, over those of
        the mean one, which all are padded to; a single shard has none.
    """
    shards = partition.shards(axis)
    (mesh_axis,) = partition.spec(axis)
    blocks, native = _blocks(partition, shards)
    mean = count / shards / blocks
    room = max(1, math.ceil(mean * (skew if shards > 1 else 1)))
    fits_int32(room, "edges")

    def rows(height: int) -> Rows:
        def of(size: int, dtype: Any = np.int32) -> Any:
            return partition.abstract((shards, blocks, size), dtype, axis)

        return Rows(
            columns=of(room),
            rows=of(room),
            weights=of(room, np.float32),
            edges=of(room) if numbered(count) else None,
            indptr=of(height // shards + 1) if native else None,
            height=height // shards,
        )

    return Graph(rows(shape[0]), rows(shape[1]), partition.mesh, mesh_axis)


def _blocks(partition: Partition, shards: int) -> tuple[int, bool]:
    """Blocks of each shard, and whether the native kernel multiplies them."""
    # On one shard there is nothing to exchange.
    ring = partition.exchange == "ring" and shards > 1
    on_cpu = partition.mesh.devices.flat[0].platform == "cpu"
    return shards if ring else 1, on_cpu and not ring


def _lay_out(entries: Entries, partition: Partition, axis: str) -> Rows:
    """One orientation, on the devices."""
    shards = partition.shards(axis)
    blocks, native = _blocks(partition, shards)
    own = partition.mine(shards, axis)
    if blocks == 1:
        most = int(entries.sizes(shards).max())
    else:
        most = int(entries.count(own.tolist(), shards).max())
        (most,) = hosts.largest("laying out a graph", [most])
    fits_int32(most, "edges")
    host = compress(entries, own.tolist(), shards, blocks, max(1, most), native)
    return jax.tree.map(lambda v: partition.join(v, own, shards, axis), host)


@jax.custom_vjp
def multiply(graph: Graph, x: jax.Array) -> jax.Array:
    """`R x`, with gradient `R^T g` with respect to `x`.

    The weights of the graph are constants: no gradient reaches them.

    Args:
      graph: `R`, `[rows, columns]`.
      x: `[columns, d]`.

    Returns:
      `[rows, d]`, in the dtype of `x`; sums run in float32.
    """
    spread = P(graph.axis)
    ring = graph.forward.columns.shape[1] > 1

    def local(rows: Rows, x: jax.Array) -> jax.Array:
        rows = jax.tree.map(lambda v: v[0], rows)
        if ring:
            return _ring_product(rows, x, graph.axis)
        rows = jax.tree.map(lambda v: v[0], rows)
        if rows.indptr is not None:
            return _native_product(rows, x)
        return _segment_product(rows, x)

    return jax.shard_map(
        local,
        mesh=graph.mesh,
        in_specs=(spread, spread if ring else P()),
        out_specs=spread,
        check_vma=False,
    )(graph.forward, x)


def _multiply_forward(graph: Graph, x: jax.Array) -> tuple[jax.Array, Graph]:
    return multiply(graph, x), graph


def _multiply_backward(graph: Graph, g: jax.Array) -> tuple[None, jax.Array]:
    return None, multiply(graph.transpose, g)


multiply.defvjp(_multiply_forward, _multiply_backward)


def _native_product(rows: Rows, x: jax.Array) -> jax.Array:
    entries: Any = (rows.weights, rows.columns, rows.indptr)
    matrix = jsparse.BCSR(
        entries,
        shape=(rows.height, x.shape[0]),
        indices_sorted=True,
        unique_indices=True,
    )
    # The native kernel knows float32 alone.
    return (matrix @ x.astype(jnp.float32)).astype(x.dtype)


def _segment_product(rows: Rows, x: jax.Array) -> jax.Array:
    sums = jnp.zeros((rows.height, x.shape[1]), jnp.float32)
    return _add_messages(sums, rows, x).astype(x.dtype)


def _ring_product(rows: Rows, x: jax.Array, axis: Any) -> jax.Array:
    """Rows of one shard times the shards of `x`, one after another.

    Args:
      rows: `[B, n]`, a block for each shard.
      x: the shard that this device begins with.
      axis: mesh axis, or axes, of the ring.
    """
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


def _add_messages(sums: jax.Array, rows: Rows, x: jax.Array) -> jax.Array:
    """Adds one block of entries `[n]` times `x` to `sums`."""
    messages = x[rows.columns].astype(jnp.float32) * rows.weights[:, None]
    return sums.at[rows.rows].add(messages, indices_are_sorted=True)


def edge_weights(graph: Graph, num_edges: int) -> jax.Array:
    """Weights in the order of the edges that the graph was built from.

    Args:
      graph: not a subset.
      num_edges: that it was built from.

    Returns:
      float32 `[num_edges]`.

    Raises:
      InputError: if there are too many edges to have numbers.
    """
    edges, weights = _numbers(graph.forward), graph.forward.weights
    # Padding belongs to no edge and is dropped.
    return jnp.zeros(num_edges).at[edges].set(weights, mode="drop")


def subset(graph: Graph, keep: jax.Array, size: int) -> Graph:
    """The graph of some of its edges, with weights normalised anew.

    Args:
      graph: any weights; only its structure is used.
      keep: bool `[num_edges]`, in the order of the edges that the graph was
        built from.
      size: number of True in `keep`; static, so that shapes are.

    Returns:
      `D^-1/2 A D^-1/2` over the kept edges, `D` counted among them.

    Raises:
      InputError: if there are too many edges to have numbers.
    """
    forward = _select(graph.forward, _numbers(graph.forward), keep, size)
    backward = _select(graph.backward, _numbers(graph.backward), keep, size)
    row_scale, column_scale = (
        jax.lax.rsqrt(jnp.maximum(_degrees(rows), 1.0))
        for rows in (forward, backward)
    )
    forward = _reweigh(forward, row_scale, column_scale)
    backward = _reweigh(backward, column_scale, row_scale)
    return dataclasses.replace(graph, forward=forward, backward=backward)


def _numbers(rows: Rows) -> Array:
    if rows.edges is None:
        raise InputError(
            "The graph has too many edges to choose among them.",
            expected="fewer than 2**31",
            fix="set --config.encoder.dropout=0, or choose another encoder",
        )
    return rows.edges


# Over the shards, and over the blocks of each.
@functools.partial(jax.vmap, in_axes=(0, 0, None, None))
@functools.partial(jax.vmap, in_axes=(0, 0, None, None))
def _select(rows: Rows, edges: Array, keep: jax.Array, size: int) -> Rows:
    kept = jnp.append(keep, False)[jnp.minimum(edges, keep.size)]
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(kept)])
    capacity = min(size, kept.size)
    (index,) = jnp.nonzero(kept, size=capacity, fill_value=kept.size - 1)
    real = jnp.arange(capacity) < before[-1]
    indptr = rows.indptr
    if indptr is not None:
        indptr = before[indptr].astype(jnp.int32)
    return Rows(
        columns=jnp.where(real, rows.columns[index], 0),
        rows=jnp.where(real, rows.rows[index], rows.height - 1),
        weights=real.astype(jnp.float32),
        edges=jnp.where(real, edges[index], keep.size),
        indptr=indptr,
        height=rows.height,
    )


def _degrees(rows: Rows) -> jax.Array:
    """Entries in each row, `[S height]`, where weights are 1 or 0."""

    def count(ends: Any, real: Any) -> jax.Array:
        # Float32 would stop counting at 2**24.
        zeros = jnp.zeros(rows.height, jnp.int32)
        return zeros.at[ends].add(real.astype(jnp.int32))

    counts = jax.vmap(count)(rows.rows, rows.weights)
    return counts.reshape(-1).astype(jnp.float32)


def _reweigh(rows: Rows, mine: jax.Array, theirs: jax.Array) -> Rows:
    shards, blocks, _ = rows.columns.shape
    width = theirs.size // blocks
    row = rows.rows + rows.height * jnp.arange(shards)[:, None, None]
    column = rows.columns + width * jnp.arange(blocks)[:, None]
    return dataclasses.replace(
        rows, weights=rows.weights * mine[row] * theirs[column]
    )


def dense(graph: Graph) -> np.ndarray:
    """The matrix as dense float64 `[rows, columns]`: for tests, not for use."""
    rows = jax.device_get(graph.forward)
    shards, blocks, _ = rows.columns.shape
    shape = rows.height * shards, graph.backward.height * shards
    row = rows.rows + rows.height * np.arange(shards)[:, None, None]
    column = rows.columns + shape[1] // blocks * np.arange(blocks)[:, None]
    out = np.zeros(shape)
    # Padding adds zero.
    np.add.at(out, (row, column), rows.weights)
    return out
