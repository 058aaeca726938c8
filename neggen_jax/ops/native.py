"""Kernels in C++ for CPU, compiled where they are first used.

XLA's own forms of these run on one thread there. Its top-k keeps a heap for
every row, and takes seven times what the scores take that it looks at; where
the processor has AVX-512, `rank` computes and compares scores in one go, and
none leaves the cache, and `project` multiplies rows of wide tables where they
lie. Its sparse product takes twice as long as this one on two cores; and Adam
(`ops/adam.py`) is many passes over all parameters. Nothing depends on these
kernels: where there is no C++ compiler, XLA's are used, which give the same,
`multiply` and `top_k` to the last bit and the others up to rounding.

A kernel is a header in `cc/`, bound in `library.cc`, and named in `_KERNELS`.

The library is kept in the user's cache directory (`cache.py`), under a name
that follows from its source and from the version of jaxlib. `NEGGEN_NATIVE=0`
leaves it alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental import sparse as jsparse
from jax.sharding import Mesh

from neggen_jax import cache

_SOURCES = Path(__file__).with_name("cc")
# Sums are not contracted: on any processor they round alike. `rank` and
# `project` are for one kind, and ask for multiplications with additions.
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
)

_KERNELS = (
    "adam",
    "multiply",
    "project",
    "project_backward",
    "rank",
    "top_k",
)
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
    return on_cpu(mesh) and has_avx512()


def projects(tables: tuple[jax.Array, ...], kernel: jax.Array) -> bool:
    """Whether there is one device, and it has `project` for such arrays."""
    return (
        alone()
        and has_avx512()
        and all(x.dtype in (jnp.float32, jnp.bfloat16) for x in tables)
        and kernel.dtype == jnp.float32
        and len(tables[0]) > 0
    )


def has_avx512() -> bool:
    """Whether this processor has kernels that want AVX-512."""
    library = _library()
    return library is not None and bool(library.neggen_has_avx512())


def available() -> bool:
    """Whether the kernels are there; compiles them if they can be."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("NEGGEN_NATIVE", "1") == "0":
        return None
    try:
        library = ctypes.cdll.LoadLibrary(str(build(cache.directory())))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()
        line = said.partition("\n")[0]
        print(
            f"No kernels in C++, which would be faster: {line}", file=sys.stderr
        )
        return None
    library.neggen_has_avx512.restype = ctypes.c_bool
    for name in _KERNELS:
        made = jax.ffi.pycapsule(getattr(library, f"neggen_{name}"))
        jax.ffi.register_ffi_target(f"neggen_{name}", made, platform="cpu")
    return library


def sources() -> list[Path]:
    """The files of the library."""
    return sorted([*_SOURCES.glob("*.cc"), *_SOURCES.glob("*.h")])


def build(directory: Path) -> Path:
    """Compiles the library, unless it is there.

    Args:
      directory: to keep it in.

    Raises:
      OSError: if there is no compiler, nowhere to write, or a directory that
        others may write to.
      subprocess.CalledProcessError: if it does not compile.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    # Homes may be shared by machines of several kinds.
    said = " ".join(
        (compiler, *_FLAGS, jaxlib.__version__, *platform.uname()[::4])
    )
    source = b"".join(file.read_bytes() for file in sources())
    name = hashlib.sha256(source + said.encode()).hexdigest()[:16]
    target = directory / f"neggen_jax-{name}.so"
    cache.make_private(directory)
    if target.exists():
        return target
    # Several processes may come at once; each replaces what is the same.
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch) / target.name
        subprocess.run(
            [
                compiler,
                *_FLAGS,
                f"-I{jax.ffi.include_dir()}",
                str(_SOURCES / "library.cc"),
                "-o",
                str(made),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        made.replace(target)
    return target
