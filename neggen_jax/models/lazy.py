"""Tables of which a step computes the rows that it reads, and no more.

A batch reads a few thousand rows. Of a layer of propagation that nothing but
losses read, the last one, the others are of no use, nor are their gradients.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.ops.sparse import Graph, multiply, multiply_rows, picks


class Lazy:
    """A table that is indexed like an array; `whole` makes one of it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the width of each."""
        raise NotImplementedError

    @property
    def dtype(self) -> Any:
        """Of what indexing gives."""
        raise NotImplementedError

    def whole(self) -> jax.Array:
        """All rows, `shape`."""
        raise NotImplementedError

    def in_float32(self) -> Lazy:
        """With rows in float32, whatever they are computed from.

        So are then the sums of gradients of a row that occurs many times.
        """
        raise NotImplementedError

    def rows(self, ids: jax.Array) -> jax.Array:
        """Some rows, `[*ids.shape, d]`.

        Args:
          ids: integers of any shape.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Any) -> jax.Array:
        some = jnp.asarray(ids) if not isinstance(ids, slice) else None
        if some is None or not jnp.issubdtype(some.dtype, jnp.integer):
            return self.whole()[ids]
        return self.rows(some)

    # Row by row, as of a sequence, it would have no end.
    def __iter__(self) -> Iterator[jax.Array]:
        return iter(self.whole())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.whole(), dtype)

    # Whoever takes it for an array is given one.
    def __jax_array__(self) -> jax.Array:
        return self.whole()

    def __matmul__(self, other: Any) -> jax.Array:
        return self.whole() @ jnp.asarray(other)

    @property
    def T(self) -> jax.Array:
        """All rows, transposed."""
        return self.whole().T


Table: TypeAlias = jax.Array | Lazy


@flax.struct.dataclass
class Product(Lazy):
    """A sparse matrix times vectors.

    Attributes:
      graph: `[rows, columns]`.
      vectors: `[columns, d]`.
    """

    graph: Graph
    vectors: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the width of each."""
        rows = self.graph.forward
        return rows.height * len(rows.columns), self.vectors.shape[1]

    @property
    def dtype(self) -> Any:
        """That of the vectors."""
        return self.vectors.dtype

    def whole(self) -> jax.Array:
        """All rows."""
        return multiply(self.graph, self.vectors)

    def in_float32(self) -> Product:
        """Of vectors in float32."""
        return Product(self.graph, self.vectors.astype(jnp.float32))

    def rows(self, ids: jax.Array) -> jax.Array:
        """Some rows, and no others."""
        return multiply_rows(self.graph, self.vectors, ids)


class RowWise(Lazy):
    """A table whose rows are made of the same rows of others.

    Attributes:
      parts: the others; the first is of its shape and dtype.
    """

    parts: tuple[Table, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """That of the first part."""
        height, width = self.parts[0].shape
        return height, width

    @property
    def dtype(self) -> Any:
        """That of the first part."""
        return self.parts[0].dtype

    def whole(self) -> jax.Array:
        """All rows."""
        made: jax.Array = whole(self)
        return made

    def in_float32(self) -> RowWise:
        """Of parts in float32."""
        made: RowWise = in_float32(self)
        return made

    def rows(self, ids: jax.Array) -> jax.Array:
        """Some rows, of those of each part."""
        made: jax.Array = self.of([part[ids] for part in self.parts])
        return made

    def of(self, parts: Iterable[Any]) -> Any:
        """What it makes of the same rows of each part.

        Args:
          parts: rows, `[..., d]` of the same places.
        """
        raise NotImplementedError


@flax.struct.dataclass
class Sum(RowWise):
    """Tables of one shape, added up.

    Attributes:
      parts: the tables.
      over: what their sum is divided by.
    """

    parts: tuple[Table, ...]
    over: int = flax.struct.field(default=1, pytree_node=False)

    def of(self, parts: Iterable[Any]) -> Any:
        """Their sum, divided."""
        total = functools.reduce(operator.add, parts)
        return total if self.over == 1 else total / self.over


def product(graph: Graph, vectors: jax.Array) -> Table:
    """`multiply(graph, vectors)`; only what is read, if it can be.

    Args:
      graph: `[rows, columns]`.
      vectors: `[columns, d]`.
    """
    if picks(graph):
        return Product(graph, vectors)
    return multiply(graph, vectors)


def added(tables: Iterable[Table], over: int = 1) -> Table:
    """The sum of tables, and an array if they are.

    Args:
      tables: of one shape.
      over: what it is divided by.
    """
    both = Sum(tuple(tables), over)
    if any(isinstance(x, Lazy) for x in both.parts):
        return both
    return both.whole()


def whole(tree: Any) -> Any:
    """With an array for each table of a tree."""
    return _changed(
        tree,
        lambda x: x.whole() if isinstance(x, Lazy) else x,
        lambda table, parts: table.of(parts),
    )


def in_float32(tree: Any) -> Any:
    """With rows in float32 of each table of a tree."""

    def change(table: Table) -> Table:
        if isinstance(table, Lazy):
            return table.in_float32()
        return table.astype(jnp.float32)

    return _changed(
        tree,
        change,
        lambda table, parts: dataclasses.replace(table, parts=tuple(parts)),
    )


def _changed(tree: Any, change: Callable, join: Callable) -> Any:
    """What is a part of several tables is changed once, and stays one."""
    made: dict[int, Any] = {}

    def new(table: Table) -> Any:
        if id(table) not in made:
            if isinstance(table, RowWise):
                made[id(table)] = join(table, map(new, table.parts))
            else:
                made[id(table)] = change(table)
        return made[id(table)]

    return jax.tree.map(new, tree, is_leaf=lambda x: isinstance(x, Lazy))
