"""Kernels in C++ for CPU.

XLA's own forms of these run on one thread there, or write down what is read
once and forgotten. Its top-k keeps a heap for every row, and takes seven times
what the scores take that it looks at; where the processor has AVX2 or AVX-512,
`rank` computes and compares scores in one go, and none leaves the cache (with
AVX-512 VNNI most are ruled out by products of bytes), `project` multiplies rows
of wide tables where they lie, and `exps` and `draw` go on with products as soon
as they are there. Its sparse product takes twice as long as this one on two
cores; and Adam (`ops/adam.py`) is many passes over all parameters. Nothing
depends on these kernels: where there is no C++ compiler, XLA's are used, which
give the same, `multiply` and `top_k` to the last bit and the others up to
rounding. `ops/library.py` compiles them; attention's are called in
`ops/attention.py`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse as jsparse
from jax.sharding import Mesh

from neggen_jax.ops.library import load

# Entries of vectors from which on scores are filtered.
_FILTERED = 16
# Columns that projections make at once.
_STRIP = 64


def top_k(x: jax.Array, k: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of a matrix, on each device by itself.

    Args:
      x: float32 `[rows, width]`, of one device.
      k: at most `width`.
      mesh: that the device is of.

    Returns:
      Values `[rows, k]`, descending, and int32 columns `[rows, k]`; of equal
      values the earlier column comes first.
    """
    if k > x.shape[1]:
        raise ValueError(f"there are not {k} columns, but {x.shape[1]}")
    if not on_cpu(mesh) or not available():
        return jax.lax.top_k(x, k)
    shape = (len(x), k)
    call = jax.ffi.ffi_call(
        "neggen_top_k",
        (
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.int32),
        ),
    )
    values, columns = call(x)
    return values, columns


def rank(
    queries: jax.Array,
    items: jax.Array,
    excluded: tuple[jax.Array, jax.Array],
    num_items: jax.Array | int,
    k: int,
    filtered: bool | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k items of largest inner product, on one device where `ranks`.

    Args:
      queries: float32 `[Q, d]`.
      items: float32 `[n, d]`.
      excluded: int32 `[pairs]` each, rows of `queries` and of `items` that must
        not come together; what is out of range counts for nothing.
      num_items: int32 scalar; rows of `items` past it are padding.
      k: length of each list.
      filtered: whether products of bytes tell first which scores cannot matter,
        where the processor has AVX-512 VNNI; by default where that pays. It
        makes no difference to the result.

    Returns:
      Scores `[Q, k]`, descending, and int32 items `[Q, k]`, of equal scores the
      earlier first; anything where the score is -inf.
    """
    shape = (len(queries), k)
    call = jax.ffi.ffi_call(
        "neggen_rank",
        (
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.int32),
        ),
    )
    count = jnp.full(1, num_items, jnp.int32)
    if filtered is None:
        filtered = queries.shape[1] >= _FILTERED
    given = queries, items, *excluded, count
    values, columns = call(*given, filtered=np.bool_(filtered))
    return values, columns


def multiply(
    starts: jax.Array,
    columns: jax.Array,
    weights: jax.Array,
    x: jax.Array,
) -> jax.Array:
    """A sparse matrix by rows times a dense one, on one CPU device.

    Args:
      starts: int32 `[rows + 1]`, where the entries of each row begin.
      columns: int32 `[n]`; in range. Entries past the last row's are padding.
      weights: float32 `[n]`.
      x: float32 `[columns, d]`.

    Returns:
      float32 `[rows, d]`.
    """
    rows = starts.size - 1
    if not available():
        entries: Any = (weights, columns, starts)
        matrix = jsparse.BCSR(
            entries,
            shape=(rows, len(x)),
            indices_sorted=True,
            unique_indices=True,
        )
        return matrix @ x
    shape = jax.ShapeDtypeStruct((rows, x.shape[1]), jnp.float32)
    product: jax.Array = jax.ffi.ffi_call("neggen_multiply", shape)(
        starts, columns, weights, x
    )
    return product


def multiply_some(
    starts: jax.Array,
    columns: jax.Array,
    weights: jax.Array,
    x: jax.Array,
    ids: jax.Array,
) -> jax.Array:
    """Some rows of `multiply`, each computed once, where `available`.

    Args:
      starts: as of `multiply`; of one row at least.
      columns: as of `multiply`.
      weights: as of `multiply`.
      x: as of `multiply`.
      ids: int32 `[m]`, in range.

    Returns:
      float32 `[m, d]`.
    """
    like = jax.ShapeDtypeStruct((ids.size, x.shape[1]), jnp.float32)
    call = jax.ffi.ffi_call(
        "neggen_multiply_some", like, vmap_method="sequential"
    )
    made: jax.Array = call(starts, columns, weights, x, ids)
    return made


def multiply_some_backward(
    starts: jax.Array,
    columns: jax.Array,
    weights: jax.Array,
    gradient: jax.Array,
    ids: jax.Array,
    height: int,
) -> jax.Array:
    """The gradient of `multiply_some`'s `x`.

    Args:
      starts: of the transposed matrix, int32 `[columns + 1]`.
      columns: of the transposed matrix.
      weights: of the transposed matrix.
      gradient: float32 `[m, d]`, of what it returns.
      ids: as of `multiply_some`.
      height: rows of the matrix.

    Returns:
      float32 `[columns, d]`.
    """
    shape = starts.size - 1, gradient.shape[1]
    like = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(
        "neggen_multiply_some_backward", like, vmap_method="sequential"
    )
    made: jax.Array = call(
        starts, columns, weights, gradient, ids, height=np.int64(height)
    )
    return made


def project(
    tables: tuple[jax.Array, ...], rows: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Rows of tables side by side times a matrix, where `projects`.

    Args:
      tables: `[n, f_i]`, float32 or bfloat16.
      rows: int32 `[m]`, in range.
      kernel: float32 `[sum of f_i, d]`.

    Returns:
      float32 `[m, d]`.
    """
    return _by_strips("neggen_project", len(rows), tables, rows, kernel)


def project_backward(
    tables: tuple[jax.Array, ...], rows: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The gradient of `project`'s kernel.

    Args:
      tables: as of `project`.
      rows: as of `project`.
      gradient: float32 `[m, d]`, of what it returns.

    Returns:
      float32 `[sum of f_i, d]`.
    """
    height = sum(table.shape[1] for table in tables)
    return _by_strips("neggen_project_backward", height, tables, rows, gradient)


def _by_strips(
    name: str,
    height: int,
    tables: tuple[jax.Array, ...],
    rows: jax.Array,
    x: jax.Array,
) -> jax.Array:
    """Calls what wants the columns of `x` in strips of `_STRIP`."""
    width = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (0, -width % _STRIP)))
    like = jax.ShapeDtypeStruct((height, padded.shape[1]), jnp.float32)
    call = jax.ffi.ffi_call(name, like, vmap_method="sequential")
    of = np.int64(len(tables[0]))
    made: jax.Array = call(rows, padded, *tables, height=of)
    return made[:, :width]


def draw(
    keys: jax.Array,
    steps: jax.Array,
    layers: tuple[jax.Array, ...],
    drives: tuple[jax.Array, ...],
    weights: tuple[float, ...],
    samples: range,
    clip: float,
) -> jax.Array:
    """Goes all the way back by a denoiser of two layers, where `draws`.

    Each step's output is, of what x is before it,

        (sum_k weights_k gelu(x @ first + shift + drives_k)) @ last + bias

    Args:
      keys: uint32 `[S + 1, 2]`, data of the keys of the noise, first that of
        the start; each is drawn as `jax.random.normal` draws `[Q, B, d]`.
      steps: float32 `[S, 5]`, coefficients in the order of `process.Reverse`.
      layers: first `[d, w]`, a shift for each step `[S, w]`, last `[w, d]` and
        bias `[d]`.
      drives: float32 `[B, w]` each.
      weights: one for each of `drives`.
      samples: which of the Q are drawn, one after another.
      clip: see `process.Reverse`.

    Returns:
      float32 `[len(samples), B, d]`.
    """
    shape = len(samples), len(drives[0]), len(layers[0])
    like = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call("neggen_draw", like, vmap_method="sequential")
    by = jnp.array(weights, jnp.float32)
    made: jax.Array = call(
        keys,
        steps,
        *layers,
        by,
        *drives,
        clip=np.float32(clip),
        offset=np.int64(samples.start),
    )
    return made


def exps(
    anchors: jax.Array, others: jax.Array, bound: float
) -> tuple[jax.Array, jax.Array]:
    """Exponentials of inner products, where `exponentiates`.

    Args:
      anchors: float32 `[n, d]`.
      others: float32 `[m, d]`.
      bound: which no product exceeds, and which is taken from each.

    Returns:
      `[n, m]`, and the sums of its rows, `[n]`.
    """
    rows, columns = len(anchors), len(others)
    call = jax.ffi.ffi_call(
        "neggen_exps",
        (
            jax.ShapeDtypeStruct((rows, columns), jnp.float32),
            jax.ShapeDtypeStruct((rows,), jnp.float32),
        ),
        vmap_method="sequential",
    )
    made, sums = call(anchors, others, bound=np.float32(bound))
    return made, sums


def adam(
    gradient: jax.Array,
    mean: jax.Array,
    square: jax.Array,
    parameter: jax.Array,
    rates: jax.Array,
    lazy: bool,
) -> tuple[jax.Array, ...]:
    """A step of Adam on one CPU device.

    Args:
      gradient: float32, at least one axis.
      mean: of gradients, alike.
      square: the mean of their squares, alike.
      parameter: alike.
      rates: float32 `[10]`; see `adam.Rates`.
      lazy: see `adam.apply`.

    Returns:
      Mean, square and parameter after it, and float32 `[n, 2]`: parts of the
      sums of squares of gradient and update.
    """
    like = jax.ShapeDtypeStruct(parameter.shape, jnp.float32)
    # Many, so that sums do not depend on how many cores there are.
    parts = jax.ShapeDtypeStruct((min(64, len(parameter)), 2), jnp.float32)
    call = jax.ffi.ffi_call(
        "neggen_adam",
        (like, like, like, parts),
        input_output_aliases={1: 0, 2: 1, 3: 2},
    )
    given = gradient, mean, square, parameter, rates
    made: tuple[jax.Array, ...] = tuple(call(*given, lazy=np.bool_(lazy)))
    return made


def alone() -> bool:
    """Whether a CPU is the one device that anything can be on."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices of a mesh are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def ranks(mesh: Mesh) -> bool:
    """Whether the devices of a mesh have `rank`."""
    return on_cpu(mesh) and has_simd()


def projects(tables: tuple[jax.Array, ...], kernel: jax.Array) -> bool:
    """Whether there is one device, and it has `project` for such arrays."""
    return (
        alone()
        and has_simd()
        and all(x.dtype in (jnp.float32, jnp.bfloat16) for x in tables)
        and kernel.dtype == jnp.float32
        and len(tables[0]) > 0
    )


def exponentiates(anchors: jax.Array, others: jax.Array) -> bool:
    """Whether there is one device, and it has `exps` for such vectors."""
    return (
        alone() and has_simd() and anchors.dtype == others.dtype == jnp.float32
    )


def draws(key: jax.Array, drive: jax.Array, dim: int) -> bool:
    """Whether there is one device, and it has `draw`.

    Args:
      key: of the noise.
      drive: one of what the denoiser is told.
      dim: d.
    """
    return (
        alone()
        and has_simd()
        and drive.dtype == jnp.float32
        and drive.size > 0
        and drive.shape[1] % _STRIP == 0
        and dim % _STRIP == 0
        # Noise is to be the same everywhere.
        and not jax.config.jax_enable_x64  # type: ignore[attr-defined]
        and jax.random.key_impl(key) == "threefry2x32"
        and jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    )


def has_simd() -> bool:
    """Whether this processor has kernels that want AVX2 or AVX-512."""
    library = load()
    return library is not None and bool(library.neggen_has_simd())


def has_vnni() -> bool:
    """Whether this processor has products of bytes for `rank`."""
    library = load()
    return library is not None and bool(library.neggen_has_vnni())


def available() -> bool:
    """Whether the kernels are there; compiles them if they can be."""
    return load() is not None
