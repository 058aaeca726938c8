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
from neggen_jax.ops import exchange, native
from neggen_jax.ops.layout import (
    Array,
    Rows,
    Weigh,
    both_ways,
    lay_out,
    numbered,
)
from neggen_jax.ops.routes import in_rounds, lay_out_to_pull
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
    else. With "pull" vectors of columns travel, for the product and for its
    gradient: the larger side is to be that of the rows.

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
    own = partition.mine(shards, axis)
    (mesh_axis,) = partition.spec(axis)
    name, native = _exchange(partition, shards)

    def join(made: Any) -> Any:
        return jax.tree.map(
            lambda v: partition.join(v, own, shards, axis), made
        )

    if name == "pull":
        *both, need = lay_out_to_pull(forward, own.tolist(), shards)
        send = exchange.requests(join(need), partition.mesh, mesh_axis)
        rows = [dataclasses.replace(join(made), send=send) for made in both]
    else:
        blocks = shards if name == "ring" else 1
        rows = [
            join(lay_out(some, own.tolist(), shards, blocks, native))
            for some in (forward, backward)
        ]
    return Graph(rows[0], rows[1], partition.mesh, mesh_axis)


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
        also that of the columns that one shard needs of another. Their mean
        is that of columns drawn uniformly, which no other draw exceeds if
        columns are in no order: `m` entries meet `w (1 - exp(-m / w))` of `w`.
    """
    shards = partition.shards(axis)
    (mesh_axis,) = partition.spec(axis)
    name, native = _exchange(partition, shards)
    height, width = (size // shards for size in shape)
    skew = skew if shards > 1 else 1.0
    blocks = shards if name == "ring" else 1
    if name == "pull":
        distinct = -width * math.expm1(-count / shards**2 / width)
        asked = math.ceil(min(float(width), distinct * skew))
        blocks, sent = in_rounds(asked, shards)
    mean = count / shards / blocks
    room = max(1, math.ceil(mean * skew))
    fits_int32(room, "edges")

    def of(*sizes: int, dtype: Any = np.int32) -> Any:
        return partition.abstract((shards, blocks, *sizes), dtype, axis)

    send = of(shards, sent) if name == "pull" else None

    def rows(height: int) -> Rows:
        return Rows(
            columns=of(room),
            rows=of(room),
            weights=of(room, dtype=np.float32),
            edges=of(room) if numbered(count) else None,
            indptr=of(height + 1) if native else None,
            send=send,
            height=height,
        )

    forward, backward = rows(height), rows(width)
    backward = dataclasses.replace(backward, pushes=send is not None)
    return Graph(forward, backward, partition.mesh, mesh_axis)


def _exchange(partition: Partition, shards: int) -> tuple[str, bool]:
    """The exchange, and whether CPU's native kernel multiplies."""
    # On one shard there is nothing to exchange.
    name = partition.exchange if shards > 1 else "gather"
    return name, native.on_cpu(partition.mesh) and name == "gather"


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
    whole = exchange.reads_all(graph.forward)
    return _locally(
        lambda rows, x: exchange.product(rows, x, graph.axis),
        graph,
        x,
        whole=whole,
    )


def _multiply_forward(graph: Graph, x: jax.Array) -> tuple[jax.Array, Graph]:
    return multiply(graph, x), graph


def _multiply_backward(graph: Graph, g: jax.Array) -> tuple[None, jax.Array]:
    return None, multiply(graph.transpose, g)


multiply.defvjp(_multiply_forward, _multiply_backward)


def picks(graph: Graph) -> bool:
    """Whether `multiply_rows` computes no rows but those it is asked for."""
    rows = graph.forward
    return (
        graph.mesh.size == 1
        and rows.indptr is not None
        and rows.height > 0
        and native.available()
    )


def multiply_rows(graph: Graph, x: jax.Array, ids: jax.Array) -> jax.Array:
    """`multiply(graph, x)[ids]`: where it `picks`, these rows alone.

    Its gradient is then that of these rows alone, too.

    Args:
      graph: `R`, `[rows, columns]`.
      x: `[columns, d]`.
      ids: integers of any shape, as an array is indexed by.

    Returns:
      `[*ids.shape, d]`, in the dtype of `x`; sums run in float32.
    """
    if not picks(graph):
        return multiply(graph, x)[ids]
    flat = jnp.asarray(ids, jnp.int32).reshape(-1)
    # From the end, as of arrays.
    flat = jnp.where(flat < 0, flat + graph.forward.height, flat)
    made = _multiply_some(graph, x.astype(jnp.float32), flat)
    return made.astype(x.dtype).reshape(*jnp.shape(ids), x.shape[1])


@jax.custom_vjp
def _multiply_some(graph: Graph, x: jax.Array, ids: jax.Array) -> jax.Array:
    return native.multiply_some(*_compressed(graph.forward), x, ids)


def _some_forward(graph: Graph, x: jax.Array, ids: jax.Array) -> Any:
    return _multiply_some(graph, x, ids), (graph, ids)


def _some_backward(kept: Any, g: jax.Array) -> tuple[None, jax.Array, None]:
    graph, ids = kept
    entries, height = _compressed(graph.backward), graph.forward.height
    return None, native.multiply_some_backward(*entries, g, ids, height), None


_multiply_some.defvjp(_some_forward, _some_backward)


def _compressed(rows: Rows) -> tuple[Any, Any, Any]:
    """Offsets, columns and weights of the one shard, which is one block."""
    parts: Any = (rows.indptr, rows.columns, rows.weights)
    return tuple(x[0, 0] for x in parts)


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
    some = dataclasses.replace(graph, forward=forward, backward=backward)
    row_scale, column_scale = (
        jax.lax.rsqrt(jnp.maximum(_degrees(one), 1.0))
        for one in (some, some.transpose)
    )
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
        rows=jnp.where(real, rows.rows[index], rows.rows[-1]),
        weights=real.astype(jnp.float32),
        edges=jnp.where(real, edges[index], keep.size),
        indptr=indptr,
    )


def _degrees(graph: Graph) -> jax.Array:
    """Entries in each row, `[rows]`, where weights are 1 or 0."""
    rows = graph.forward
    if rows.pushes:
        counts = _locally(
            lambda rows: exchange.counted(rows, graph.axis), graph
        )
        return counts.astype(jnp.float32)

    def count(ends: Any, real: Any) -> jax.Array:
        # Float32 would stop counting at 2**24.
        zeros = jnp.zeros(rows.height, jnp.int32)
        return zeros.at[ends].add(real.astype(jnp.int32))

    counts = jax.vmap(count)(rows.rows, rows.weights)
    return counts.reshape(-1).astype(jnp.float32)


def _reweigh(graph: Graph, mine: jax.Array, theirs: jax.Array) -> Rows:
    rows = graph.forward
    scale = _of_rows(graph, mine) * _of_columns(graph, theirs)
    return dataclasses.replace(rows, weights=rows.weights * scale)


def _of_rows(graph: Graph, values: Any) -> Any:
    """What each entry's row has of `values` `[rows]`, `[S, B, n]`."""
    rows = graph.forward
    if rows.pushes:
        return _of_columns(_swapped(graph), values)
    return _locally(lambda rows, v: v[rows.rows][None], graph, values)


def _of_columns(graph: Graph, values: Any) -> Any:
    """What each entry's column has of `values` `[columns]`, `[S, B, n]`."""
    rows = graph.forward
    if rows.pushes:
        return _of_rows(_swapped(graph), values)
    if rows.send is not None:
        return _locally(
            lambda rows, v: exchange.pulled(rows, v, graph.axis)[None],
            graph,
            values,
        )
    blocks = rows.columns.shape[1]
    width = values.size // blocks
    return values[rows.columns + width * np.arange(blocks)[:, None]]


def _swapped(graph: Graph) -> Graph:
    """The entries of a graph that pushes, in their order, as if pulled."""
    pushed, pulls = graph.forward, graph.backward
    entries = dataclasses.replace(
        pulls,
        rows=pushed.columns,
        columns=pushed.rows,
        weights=pushed.weights,
        edges=pushed.edges,
    )
    return dataclasses.replace(graph, forward=entries, backward=pushed)


def _locally(
    function: Any, graph: Graph, *values: Any, whole: bool = False
) -> Any:
    """`function(rows, *values)` of each shard of `graph.forward`.

    Args:
      function: what a device computes, of its shards.
      graph: whose axis shards are spread over, also those of the result.
      *values: cut alike.
      whole: whether each device is given all of the values instead.
    """
    spread = P(graph.axis)

    def local(rows: Rows, *values: Any) -> Any:
        return function(jax.tree.map(lambda v: v[0], rows), *values)

    return jax.shard_map(
        local,
        mesh=graph.mesh,
        in_specs=(spread, *[P() if whole else spread for _ in values]),
        out_specs=spread,
        check_vma=False,
    )(graph.forward, *values)


def dense(graph: Graph) -> np.ndarray:
    """The matrix as dense float64 `[rows, columns]`: for tests, not for use."""
    shards = len(graph.forward.columns)
    shape = graph.forward.height * shards, graph.backward.height * shards
    rows, columns = (
        of(graph, jnp.arange(size, dtype=jnp.int32))
        for of, size in zip((_of_rows, _of_columns), shape, strict=True)
    )
    rows, columns, weights = jax.device_get(
        (rows, columns, graph.forward.weights)
    )
    out = np.zeros(shape)
    # Padding adds zero.
    np.add.at(out, (rows, columns), weights)
    return out
