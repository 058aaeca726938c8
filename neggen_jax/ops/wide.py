"""Rows of wide tables, such as features, and dense layers that read them.

Nothing needs the gradient of features, but that of a kernel, `x^T g`, costs as
much as the product itself. Four things make the difference on CPU:

- XLA folds any transposition into a product, and takes four times as long for
  it, where `x` is wide, as for `g^T x`, which is computed here and transposed
  when it is done;
- in bfloat16, products of matrices that lie in memory as they are multiplied
  run on the CPU's units for that, if it has any, several times as fast as in
  float32, provided that sums are asked for in float32;
- XLA takes rows of bfloat16 from a copy of the table in float32;
- it writes down rows that are taken to be multiplied, and multiplies those that
  occur many times as often. On one CPU with AVX2 a kernel reads them where
  they lie, once each (`project_rows`).

There is no forward-mode derivative.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from neggen_jax.ops import native


@jax.custom_vjp
def take(table: jax.Array, rows: jax.Array) -> jax.Array:
    """`table[rows]`.

    Args:
      table: `[n, ...]`.
      rows: integers of any shape.
    """
    if table.dtype != jnp.bfloat16:
        return table[rows]

    def as_bits(table: jax.Array, rows: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(table, jnp.uint16)[rows]
        return jax.lax.bitcast_convert_type(bits, table.dtype)

    found: jax.Array = jax.lax.platform_dependent(
        table, rows, cpu=as_bits, default=lambda table, rows: table[rows]
    )
    return found


def _take_forward(table: jax.Array, rows: jax.Array) -> Any:
    return take(table, rows), (table, rows)


def _take_backward(kept: Any, g: jax.Array) -> tuple[jax.Array, None]:
    table, rows = kept
    # A row may be taken often: sums are of float32.
    zeros = jnp.zeros(table.shape, jnp.float32)
    return zeros.at[rows].add(g.astype(jnp.float32)).astype(table.dtype), None


take.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, in bfloat16 if one of them is; sums run in float32.

    Args:
      x: `[..., f]`.
      kernel: `[f, d]`.

    Returns:
      `[..., d]`, in the dtype of the kernel.
    """
    return _product(x, kernel).astype(kernel.dtype)


def _forward(x: jax.Array, kernel: jax.Array) -> Any:
    return project(x, kernel), (x, kernel)


def _backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows, gradients = (v.reshape(-1, v.shape[-1]) for v in (x, g))
    turned = _product(_turned(gradients.astype(x.dtype)), rows)
    along = (g @ kernel.T).astype(x.dtype)
    return along, turned.T.astype(kernel.dtype)


project.defvjp(_forward, _backward)


Tables = tuple[jax.Array, ...]


def project_all(tables: Tables, kernel: jax.Array) -> jax.Array:
    """`project` of all rows of tables that lie side by side.

    Args:
      tables: `[n, f_i]`.
      kernel: `[sum of f_i, d]`.

    Returns:
      float32 `[n, d]`.
    """
    parts = jax.lax.split(kernel, [x.shape[-1] for x in tables])
    products = map(project, tables, parts)
    return sum((x.astype(jnp.float32) for x in products), jnp.float32(0))


def project_rows(
    tables: Tables, rows: jax.Array, kernel: jax.Array
) -> jax.Array:
    """`project_all` of some rows.

    Args:
      tables: `[n, f_i]`.
      rows: integers of any shape, as an array is indexed by.
      kernel: `[sum of f_i, d]`.

    Returns:
      float32 `[*rows.shape, d]`.
    """
    integers = jnp.issubdtype(jnp.asarray(rows).dtype, jnp.integer)
    if not integers or not native.projects(tables, kernel):
        return _rows_of_all(tables, rows, kernel)
    flat = jnp.asarray(rows, jnp.int32).reshape(-1)
    # From the end, as of arrays.
    flat = jnp.where(flat < 0, flat + len(tables[0]), flat)
    made = _project_rows(tables, flat, kernel)
    return made.reshape(*jnp.shape(rows), kernel.shape[1])


@jax.custom_vjp
def _project_rows(
    tables: Tables, rows: jax.Array, kernel: jax.Array
) -> jax.Array:
    made: jax.Array = jax.lax.platform_dependent(
        tables, rows, kernel, cpu=native.project, default=_rows_of_all
    )
    return made


def _rows_of_all(
    tables: Tables, rows: jax.Array, kernel: jax.Array
) -> jax.Array:
    return project_all(tuple(take(x, rows) for x in tables), kernel)


def _rows_forward(tables: Tables, rows: jax.Array, kernel: jax.Array) -> Any:
    return _project_rows(tables, rows, kernel), (tables, rows, kernel)


def _rows_backward(kept: Any, g: jax.Array) -> Any:
    tables, rows, kernel = kept
    parts = jax.lax.split(kernel, [x.shape[-1] for x in tables])

    def along(table: jax.Array, part: jax.Array) -> jax.Array:
        # Of tables that do not learn, nobody computes this.
        zeros = jnp.zeros(table.shape, jnp.float32)
        return zeros.at[rows].add(g @ part.T).astype(table.dtype)

    def by_xla(tables: Tables, rows: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda k: _rows_of_all(tables, rows, k), kernel)[1](g)[0]

    gradient = jax.lax.platform_dependent(
        tables, rows, g, cpu=native.project_backward, default=by_xla
    )
    return tuple(map(along, tables, parts)), None, gradient


_project_rows.defvjp(_rows_forward, _rows_backward)


@flax.struct.dataclass
class Picked:
    """Rows of a table that are taken only where they are multiplied.

    Attributes:
      table: `[n, ..., f]`.
      rows: integers of any shape, in range.
    """

    table: jax.Array
    rows: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `taken()`."""
        return *self.rows.shape, *self.table.shape[1:]

    def taken(self) -> jax.Array:
        """The rows."""
        return take(self.table, self.rows)

    def times(self, kernel: jax.Array) -> jax.Array:
        """`project(taken(), kernel)`."""
        flat = self.table.reshape(-1, self.table.shape[-1])
        if not native.projects((flat,), kernel):
            # On a mesh the table keeps the shape that it is cut in.
            return project(self.taken(), kernel)
        each = len(flat) // max(len(self.table), 1)
        places = self.rows[..., None] * each + jnp.arange(each)
        made = project_rows((flat,), places, kernel)
        return made.reshape(*self.shape[:-1], kernel.shape[1])


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    if jnp.bfloat16 in (x.dtype, y.dtype):
        x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    # The barrier keeps a transposition that follows out of the product.
    return jax.lax.optimization_barrier(
        jnp.dot(x, y, preferred_element_type=jnp.float32)
    )


def _turned(x: jax.Array) -> jax.Array:
    """`x.T`; in bfloat16 on one CPU, as it then lies in memory."""
    # Over several devices such a constraint would have all of it gathered.
    if x.dtype != jnp.bfloat16 or not native.alone():
        return x.T

    def as_it_lies(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x.T, Layout(major_to_minor=(0, 1)))

    turned: jax.Array = jax.lax.platform_dependent(
        x, cpu=as_it_lies, default=lambda x: x.T
    )
    return turned


class Dense(nn.Module):
    """As `nn.Dense`, by `project`.

    Attributes:
      features: d.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array | Picked) -> jax.Array:
        """Maps `[..., f]` to `[..., d]`, in the dtype of the parameters."""
        shape = x.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape[1:])
        if isinstance(x, Picked):
            return x.times(kernel) + bias
        return project(x, kernel) + bias
