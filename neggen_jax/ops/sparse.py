"""Products with a sparse matrix, forward and backward, without scatters.

A `Graph` keeps one sparse matrix in both orientations, each as compressed
sparse rows cut into equal row shards. The gradient of `R x` is `R^T g`, so
with both at hand neither direction ever scatters, and each device computes
just the rows it owns: `multiply` is `shard_map` over row shards, with `x`
gathered beforehand.

On CPU the row product is XLA's native CSR kernel (through BCSR); elsewhere
it is a segment sum over sorted rows.
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

from neggen_jax.ops.positives import fits_int32
from neggen_jax.partition import Partition

# Built on the host, used on the devices.
Array = jax.Array | np.ndarray


@flax.struct.dataclass
class Rows:
    """Compressed sparse rows, cut into `S` shards of equal row count.

    Attributes:
      indptr: int32 `[S, R/S + 1]`, offsets into the shard's own entries.
      columns: int32 `[S, n]`, padded at the end.
      rows: int32 `[S, n]`, row within the shard; padding repeats the last.
      weights: float32 `[S, n]`; padding is zero.
      edges: int32 `[S, n]`, position of each entry in the list of edges that
        the graph was built from; padding points past its end.
    """

    indptr: Array
    columns: Array
    rows: Array
    weights: Array
    edges: Array


@flax.struct.dataclass
class Graph:
    """A sparse matrix `R` `[rows, columns]`, and its transpose.

    Attributes:
      forward: rows of `R`.
      backward: rows of `R^T`.
      mesh: devices that the row shards live on.
      axis: mesh axis that the shards are spread over, or None.
    """

    forward: Rows
    backward: Rows
    mesh: Mesh = flax.struct.field(pytree_node=False)
    axis: str | None = flax.struct.field(pytree_node=False)

    @property
    def transpose(self) -> Graph:
        """`R^T`, without a copy."""
        return dataclasses.replace(
            self, forward=self.backward, backward=self.forward
        )


def make_graph(
    edges: np.ndarray,
    weights: np.ndarray,
    shape: tuple[int, int],
    partition: Partition,
    axis: str = "edge",
) -> Graph:
    """Lays out a sparse matrix over the devices.

    Args:
      edges: int `[2, n]`, row and column of each entry; any order, unique.
      weights: `[n]`.
      shape: rows and columns, both multiples of `partition.shards(axis)`.
      partition: where the shards go.
      axis: logical axis of the shards.
    """
    shards = partition.shards(axis)
    (mesh_axis,) = partition.spec(axis)
    both = []
    for rows, columns, height in (
        (edges[0], edges[1], shape[0]),
        (edges[1], edges[0], shape[1]),
    ):
        host = _compress(rows, columns, weights, height, shards)
        both.append(jax.tree.map(lambda v: partition.put(v, axis, None), host))
    return Graph(both[0], both[1], partition.mesh, mesh_axis)


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
      partition: where the shards go.
      axis: logical axis of the shards.
      skew: entries of the fullest shard over those of the mean one, which
        every shard is padded to; a single shard has none.
    """
    shards = partition.shards(axis)
    (mesh_axis,) = partition.spec(axis)
    width = max(1, math.ceil(count / shards * (skew if shards > 1 else 1)))
    fits_int32(width, "edges")

    def rows(height: int) -> Rows:
        def of(size: int, dtype: Any = np.int32) -> Any:
            return partition.abstract((shards, size), dtype, axis, None)

        return Rows(
            indptr=of(height // shards + 1),
            columns=of(width),
            rows=of(width),
            weights=of(width, np.float32),
            edges=of(width),
        )

    return Graph(rows(shape[0]), rows(shape[1]), partition.mesh, mesh_axis)


def _compress(
    rows: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    height: int,
    shards: int,
) -> Rows:
    if height % shards:
        raise ValueError(f"{height} rows do not cut into {shards} shards")
    local = height // shards
    order = np.lexsort((columns, rows))
    counts = np.bincount(rows, minlength=height).reshape(shards, local)
    width = max(1, int(counts.sum(axis=1).max()))
    fits_int32(width, "edges")
    indptr = np.zeros((shards, local + 1), np.int32)
    np.cumsum(counts, axis=1, out=indptr[:, 1:])
    out = Rows(
        indptr=indptr,
        columns=np.zeros((shards, width), np.int32),
        rows=np.full((shards, width), local - 1, np.int32),
        weights=np.zeros((shards, width), np.float32),
        edges=np.full((shards, width), len(rows), np.int32),
    )
    start = 0
    for shard in range(shards):
        size = indptr[shard, -1]
        mine = order[start : start + size]
        out.columns[shard, :size] = columns[mine]
        out.rows[shard, :size] = rows[mine] - shard * local
        out.weights[shard, :size] = weights[mine]
        out.edges[shard, :size] = mine
        start += size
    return out


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
    on_cpu = graph.mesh.devices.flat[0].platform == "cpu"
    kernel = _native_product if on_cpu else _segment_product

    def local(rows: Rows, x: jax.Array) -> jax.Array:
        return kernel(jax.tree.map(lambda v: v[0], rows), x)

    return jax.shard_map(
        local,
        mesh=graph.mesh,
        in_specs=(P(graph.axis), P()),
        out_specs=P(graph.axis),
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
        shape=(rows.indptr.size - 1, x.shape[0]),
        indices_sorted=True,
        unique_indices=True,
    )
    # The native kernel knows float32 alone.
    return (matrix @ x.astype(jnp.float32)).astype(x.dtype)


def _segment_product(rows: Rows, x: jax.Array) -> jax.Array:
    messages = x[rows.columns].astype(jnp.float32) * rows.weights[:, None]
    out = jax.ops.segment_sum(
        messages,
        rows.rows,
        num_segments=rows.indptr.size - 1,
        indices_are_sorted=True,
    )
    return out.astype(x.dtype)


def subset(graph: Graph, keep: jax.Array, size: int) -> Graph:
    """The graph of some of its edges, with weights normalised anew.

    Args:
      graph: any weights; only its structure is used.
      keep: bool `[num_edges]`, in the order of the edges that the graph was
        built from.
      size: number of True in `keep`; static, so that shapes are.

    Returns:
      `D^-1/2 A D^-1/2` over the kept edges, `D` counted among them.
    """
    forward = _select(graph.forward, keep, size)
    backward = _select(graph.backward, keep, size)
    row_scale, column_scale = (
        jax.lax.rsqrt(jnp.maximum(_degrees(rows), 1.0)).reshape(-1)
        for rows in (forward, backward)
    )
    forward = _reweigh(forward, row_scale, column_scale)
    backward = _reweigh(backward, column_scale, row_scale)
    return dataclasses.replace(graph, forward=forward, backward=backward)


@functools.partial(jax.vmap, in_axes=(0, None, None))
def _select(rows: Rows, keep: jax.Array, size: int) -> Rows:
    kept = jnp.append(keep, False)[jnp.minimum(rows.edges, keep.size)]
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(kept)])
    capacity = min(size, kept.size)
    (index,) = jnp.nonzero(kept, size=capacity, fill_value=kept.size - 1)
    real = jnp.arange(capacity) < before[-1]
    local = rows.indptr.size - 1
    return Rows(
        indptr=before[rows.indptr].astype(jnp.int32),
        columns=jnp.where(real, rows.columns[index], 0),
        rows=jnp.where(real, rows.rows[index], local - 1),
        weights=real.astype(jnp.float32),
        edges=jnp.where(real, rows.edges[index], keep.size),
    )


def _degrees(rows: Rows) -> jax.Array:
    return jnp.diff(rows.indptr, axis=1).astype(jnp.float32)


def _reweigh(rows: Rows, mine: jax.Array, theirs: jax.Array) -> Rows:
    shards, local = rows.indptr.shape[0], rows.indptr.shape[1] - 1
    row = rows.rows + local * jnp.arange(shards)[:, None]
    return dataclasses.replace(
        rows, weights=rows.weights * mine[row] * theirs[rows.columns]
    )


def dense(graph: Graph) -> np.ndarray:
    """The matrix as dense float64 `[rows, columns]`: for tests, not for use."""
    rows = jax.device_get(graph.forward)
    height, width = (
        side.indptr.shape[0] * (side.indptr.shape[1] - 1)
        for side in (graph.forward, graph.backward)
    )
    out = np.zeros((height, width))
    local = height // rows.indptr.shape[0]
    for shard, ends in enumerate(rows.indptr[:, -1]):
        row = rows.rows[shard, :ends] + shard * local
        np.add.at(
            out, (row, rows.columns[shard, :ends]), rows.weights[shard, :ends]
        )
    return out
