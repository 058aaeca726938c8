"""Sparse matrices in pickle files, read without running anything.

A pickle is a program: loading one may call whatever it names. Here it may
name only what a pickled SciPy matrix or NumPy array is made of, and even
these are not called: in their place stand inert records of what would have
been done, of which the matrix is then put together by our own hands. So a
hostile file is refused, or at worst describes a matrix that is no matrix.
"""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse

from neggen_jax.errors import InputError

_FORMATS = ("coo", "csr", "csc")
# What may be named -> what it stands for. Modules have moved over the years.
_KNOWN = {
    **{
        (module, f"{kind}_{noun}"): kind
        for kind in _FORMATS
        for noun in ("matrix", "array")
        for module in (
            f"scipy.sparse.{kind}",
            f"scipy.sparse._{kind}",
            "scipy.sparse",
        )
    },
    **{
        (f"numpy.{core}.{module}", name): role
        for core in ("core", "_core")
        for module, name, role in (
            ("multiarray", "_reconstruct", "array"),
            ("multiarray", "scalar", "scalar"),
            ("numeric", "_frombuffer", "buffer"),
        )
    },
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "bytes",
    ("copyreg", "_reconstructor"): "object",
    ("copy_reg", "_reconstructor"): "object",
    ("builtins", "object"): "base",
    ("__builtin__", "object"): "base",
}


class _Refused(ValueError):
    """A pickle names, or is, what is not allowed."""


class _Inert:
    """Stands for a call: what would be called, and with what."""

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any
    role = ""

    def __new__(cls, *args: Any) -> _Inert:
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        # Made anew for each file, for a pickle may set attributes of them.
        self._kinds = {
            role: type(role, (_Inert,), {"role": role, "__slots__": ()})
            for role in set(_KNOWN.values())
        }

    def find_class(self, module: str, name: str) -> type[_Inert]:
        role = _KNOWN.get((module, name))
        if role is None:
            raise _Refused(f"{module}.{name}")
        return self._kinds[role]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object that is kept elsewhere")


def read_matrix(path: Path) -> scipy.sparse.coo_matrix:
    """Reads a pickled sparse matrix (COO, CSR or CSC).

    Args:
      path: of the file.

    Raises:
      InputError: if it is something else, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            _check_sizes(file, path.stat().st_size)
            file.seek(0)
            return _matrix(_Reader(file).load())
    except _Refused as error:
        raise InputError(
            "A pickle holds what is no sparse matrix; nothing of it was run.",
            where=path,
            expected="a scipy.sparse matrix (COO, CSR or CSC) of numbers",
            found=error,
            fix="do not open it with anything else if it is not your own",
        ) from None
    except OSError as error:
        raise InputError(
            "A file cannot be opened.", where=path, found=error.strerror
        ) from None
    except Exception as error:
        # A pickle that is damaged can fail in any way.
        raise InputError(
            "A pickle is damaged.",
            where=path,
            expected="a scipy.sparse matrix",
            found=f"{type(error).__name__}: {error}",
        ) from None


def _check_sizes(file: IO[bytes], size: int) -> None:
    """Refuses what would take more memory than the file has bytes.

    The reader believes lengths and places before it has seen the bytes.
    """
    for code, argument, _ in pickletools.genops(file):
        if "PUT" in code.name and int(argument or 0) > size:
            raise _Refused(f"a memo of {argument} places")


def _matrix(value: Any) -> scipy.sparse.coo_matrix:
    role, state = _role(value), getattr(value, "state", None)
    if role == "object" and value.args:
        role = getattr(value.args[0], "role", "")
    if role not in _FORMATS or not isinstance(state, dict):
        raise _Refused(_name(value))
    shape = state.get("_shape", state.get("shape"))
    rows, columns = (_whole(number) for number in _pair(shape))
    if min(rows, columns) < 0 or max(rows, columns) >= 2**31:
        raise _Refused(f"a matrix of the shape {(rows, columns)}")
    data = _array(state.get("data"))
    if role == "coo":
        # Newer ones keep both in `coords`.
        given = state.get("coords") or (state.get("row"), state.get("col"))
        row, column = (_array(part) for part in _pair(given))
    else:
        row, column = _expanded(state, rows if role == "csr" else columns)
        if role == "csc":
            row, column = column, row
    if not len(data) == len(row) == len(column):
        raise _Refused("a matrix whose parts differ in length")
    for index, bound in ((row, rows), (column, columns)):
        if index.size and (index.min() < 0 or index.max() >= bound):
            raise _Refused(f"a place outside of {(rows, columns)}")
    return scipy.sparse.coo_matrix((data, (row, column)), (rows, columns))


def _expanded(
    state: dict[str, Any], major: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both indices of each entry of a compressed matrix, major one first."""
    starts, minor = _array(state.get("indptr")), _array(state.get("indices"))
    counts = np.diff(starts)
    if len(counts) != major or (counts < 0).any() or counts.sum() != len(minor):
        raise _Refused("a compressed matrix whose parts do not fit")
    return np.repeat(np.arange(major), counts), minor


def _array(value: Any) -> np.ndarray:
    """The array of numbers, with one axis, that a record describes."""
    role = _role(value)
    if role == "array" and isinstance(value.state, tuple):
        _, shape, dtype, _, data = value.state
    elif role == "buffer":
        data, dtype, shape, _ = value.args
    else:
        raise _Refused(_name(value))
    kind = _dtype(dtype)
    data = _bytes(data)
    # Nothing deeper is printed: it might be endless.
    if len(shape) != 1 or len(data) != kind.itemsize * _whole(shape[0]):
        raise _Refused(f"an array that does not fill its {len(data)} bytes")
    # SciPy wants numbers in this machine's order of bytes.
    values = np.frombuffer(data, kind)
    return values.astype(kind.newbyteorder("="), copy=False)


def _dtype(value: Any) -> np.dtype:
    if _role(value) != "dtype" or not isinstance(value.args[0], str):
        raise _Refused(_name(value))
    order = value.state[1] if isinstance(value.state, tuple) else "="
    if order not in ("<", ">", "=", "|"):
        raise _Refused("numbers in an unknown order of bytes")
    sign = "" if order in "=|" else order
    name = value.args[0]
    # Bool, integers and floats, by their letter and size.
    if name[:1] not in tuple("biuf") or not name[1:].isdigit():
        raise _Refused(f"values of the type {name[:20]!r}")
    return np.dtype(sign + name)


def _bytes(value: Any) -> bytes:
    if _role(value) == "bytes":
        text, encoding = value.args
        if encoding == "latin1" and isinstance(text, str):
            return text.encode("latin1")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise _Refused(_name(value))


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise _Refused(_name(value))
    return value


def _whole(value: Any) -> int:
    if _role(value) == "scalar":
        kind, data = value.args
        return int(np.frombuffer(_bytes(data), _dtype(kind))[0])
    if not isinstance(value, int):
        raise _Refused(_name(value))
    return value


def _role(value: Any) -> str:
    return value.role if isinstance(value, _Inert) else ""


def _name(value: Any) -> str:
    return _role(value) or type(value).__name__
