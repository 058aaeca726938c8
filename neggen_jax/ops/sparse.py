"""Products with a sparse matrix, forward and backward, sharded by rows.

A `Graph` keeps one sparse matrix in both orientations, each as sorted rows
cut into equal row shards. The gradient of `R x` is `R^T g`, so with both at
hand each device computes just the rows it owns, in either direction.
`multiply` is `shard_map` over row shards; how each comes by the rows of
others is in `ops/exchange.py`, how entries are laid out in `ops/layout.py`.
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
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from neggen_jax.adjacency import Index, fits_int32
from neggen_jax.errors import InputError
from neggen_jax.ops import exchange
from neggen_jax.ops.layout import (
    ROUNDS,
    Array,
    Entries,
    Rows,
    Weigh,
    both_ways,
    lay_out,
    numbered,
    tiled,
)
from neggen_jax.partition import Partition


@flax.struct.dataclass
class Graph:
    """A sparse matrix `R` `[rows, columns]`, and its transpose.

    Attributes:
      forward: rows of `R`.
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
      skew: entries of the fullest block of any shard over those of the mean
        one, which all are padded to; a single shard has none. Of "pull" it is
        also that of the vectors that one shard needs of another. Their mean
        is that of columns drawn uniformly, which no other draw exceeds: `m`
        entries meet `w (1 - exp(-m / w))` of `w` columns.
    """
    shards = partition.shards(axis)
    (mesh_axis,) = partition.spec(axis)
    name, native = _exchange(partition, shards)
    blocks = {"gather": 1, "ring": shards, "pull": ROUNDS}[name]
    mean = count / shards / blocks
    skew = skew if shards > 1 else 1.0
    room = max(1, math.ceil(mean * skew))
    fits_int32(room, "edges")

    def rows(height: int, width: int) -> Rows:
        def of(*sizes: int, dtype: Any = np.int32) -> Any:
            return partition.abstract((shards, blocks, *sizes), dtype, axis)

        send = None
        if name == "pull":
            distinct = -width * math.expm1(-count / shards**2 / width)
            asked = min(float(width), distinct * skew)
            send = of(shards, tiled(math.ceil(asked / ROUNDS)))
        return Rows(
            columns=of(room),
            rows=of(room),
            weights=of(room, dtype=np.float32),
            edges=of(room) if numbered(count) else None,
            indptr=of(height + 1) if native else None,
            send=send,
            height=height,
        )

    height, width = (size // shards for size in shape)
    return Graph(
        rows(height, width), rows(width, height), partition.mesh, mesh_axis
    )


def _exchange(partition: Partition, shards: int) -> tuple[str, bool]:
    """The exchange, and whether CPU's native kernel multiplies."""
    # On one shard there is nothing to exchange.
    name = partition.exchange if shards > 1 else "gather"
    on_cpu = partition.mesh.devices.flat[0].platform == "cpu"
    return name, on_cpu and name == "gather"


def _lay_out(entries: Entries, partition: Partition, axis: str) -> Rows:
    """One orientation, on the devices."""
    shards = partition.shards(axis)
    own = partition.mine(shards, axis)
    rows, need = lay_out(
        entries, own.tolist(), shards, *_exchange(partition, shards)
    )
    rows, need = jax.tree.map(
        lambda v: partition.join(v, own, shards, axis), (rows, need)
    )
    if need is None:
        return rows
    (mesh_axis,) = partition.spec(axis)
    send = exchange.requests(need, partition.mesh, mesh_axis)
    return dataclasses.replace(rows, send=send)


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
    whole = exchange.reads_all(graph.forward)

    def local(rows: Rows, x: jax.Array) -> jax.Array:
        rows = jax.tree.map(lambda v: v[0], rows)
        return exchange.product(rows, x, graph.axis)

    return jax.shard_map(
        local,
        mesh=graph.mesh,
        in_specs=(spread, P() if whole else spread),
        out_specs=spread,
        check_vma=False,
    )(graph.forward, x)


def _multiply_forward(graph: Graph, x: jax.Array) -> tuple[jax.Array, Graph]:
    return multiply(graph, x), graph


def _multiply_backward(graph: Graph, g: jax.Array) -> tuple[None, jax.Array]:
    return None, multiply(graph.transpose, g)


multiply.defvjp(_multiply_forward, _multiply_backward)


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
    some = dataclasses.replace(graph, forward=forward, backward=backward)
    return dataclasses.replace(
        some,
        forward=_reweigh(some, row_scale, column_scale),
        backward=_reweigh(some.transpose, column_scale, row_scale),
    )


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
    return dataclasses.replace(
        rows,
        columns=jnp.where(real, rows.columns[index], 0),
        rows=jnp.where(real, rows.rows[index], rows.height - 1),
        weights=real.astype(jnp.float32),
        edges=jnp.where(real, edges[index], keep.size),
        indptr=indptr,
    )


def _degrees(rows: Rows) -> jax.Array:
    """Entries in each row, `[S height]`, where weights are 1 or 0."""

    def count(ends: Any, real: Any) -> jax.Array:
        # Float32 would stop counting at 2**24.
        zeros = jnp.zeros(rows.height, jnp.int32)
        return zeros.at[ends].add(real.astype(jnp.int32))

    counts = jax.vmap(count)(rows.rows, rows.weights)
    return counts.reshape(-1).astype(jnp.float32)


def _reweigh(graph: Graph, mine: jax.Array, theirs: jax.Array) -> Rows:
    rows, scale = graph.forward, _of_columns(graph, theirs)
    return dataclasses.replace(
        rows, weights=rows.weights * mine[_row_numbers(rows)] * scale
    )


def _row_numbers(rows: Rows) -> Any:
    """The row of each entry in the whole matrix, `[S, B, n]`."""
    shards = len(rows.rows)
    return rows.rows + rows.height * np.arange(shards)[:, None, None]


def _of_columns(graph: Graph, values: Any) -> Any:
    """What each entry's column has of `values` `[columns]`, `[S, B, n]`."""
    rows = graph.forward
    if rows.send is not None:
        spread = P(graph.axis)
        return jax.shard_map(
            lambda rows, v: exchange.pulled(
                jax.tree.map(lambda x: x[0], rows), v, graph.axis
            )[None],
            mesh=graph.mesh,
            in_specs=(spread, spread),
            out_specs=spread,
            check_vma=False,
        )(rows, values)
    blocks = rows.columns.shape[1]
    width = values.size // blocks
    return values[rows.columns + width * np.arange(blocks)[:, None]]


def dense(graph: Graph) -> np.ndarray:
    """The matrix as dense float64 `[rows, columns]`: for tests, not for use."""
    shards = len(graph.forward.columns)
    shape = graph.forward.height * shards, graph.backward.height * shards
    columns = _of_columns(graph, jnp.arange(shape[1], dtype=jnp.int32))
    rows, columns = jax.device_get((graph.forward, columns))
    out = np.zeros(shape)
    # Padding adds zero.
    np.add.at(out, (_row_numbers(rows), columns), rows.weights)
    return out
