"""Feature vectors that somebody has extracted already: .npy, .safetensors.

Sources read those beside their interactions (`data/items.py`), and
`data/prepare.py` those that are named with --embedding for any source. Files
are mapped, so that only rows which are taken come into memory; nothing in
them is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.catalog import Catalog, Features
from neggen_jax.data.sources.lines import read_lines, text_of
from neggen_jax.data.sources.log import integers
from neggen_jax.errors import InputError

_BLOCK = 4096  # rows that are looked at at a time


def read_matrix(path: Path, modality: str, rows: int | None) -> np.ndarray:
    """Reads a matrix of numbers.

    Args:
      path: a .npy file, or a .safetensors file that holds one tensor, or
        one named as the modality.
      modality: for that, and for errors.
      rows: how many it must have; None if that is not known.

    Returns:
      `[rows, f]`, of the file's own type; mapped where the format allows.

    Raises:
      InputError: if the file is none, of another shape or type, or holds NaN
        or infinity.
    """
    if not path.is_file():
        raise InputError(
            "There is no such feature matrix.",
            where=path,
            fix="name a .npy or .safetensors file",
        )
    safe = path.suffix == ".safetensors"
    values = _safetensors(path, modality) if safe else _npy(path)
    # bfloat16 is of no kind that NumPy knows.
    number = (
        isinstance(values, np.ndarray)
        and not values.dtype.hasobject
        and (values.dtype.kind in "fiu" or values.dtype.name == "bfloat16")
    )
    if not number or values.ndim != 2 or len(values) != (rows or len(values)):
        raise InputError(
            "A file is not a matrix with one row of features per item.",
            where=path,
            expected="numbers of the shape "
            f"({'items' if rows is None else rows}, f)",
            found=f"{values.dtype} of the shape {values.shape}"
            if isinstance(values, np.ndarray)
            else "an archive of arrays",
            fix="rows must be in the order of the item indices",
        )
    _check_finite(values, path, modality)
    return values


def features_of(values: np.ndarray, path: Path) -> Features:
    """Features of a matrix whose zero rows are items without content.

    Args:
      values: `[num_items, f]`.
      path: where it is from.
    """
    manifest = {
        "encoder": "file",
        "version": None,
        "parameters": {"file": path.name},
    }
    values = np.asarray(values, np.float32)
    present = np.empty(len(values), np.bool_)
    for start in range(0, len(values), _BLOCK):
        rows = slice(start, start + _BLOCK)
        present[rows] = values[rows].any(axis=1)
    return Features(values, present, manifest)


def read_embedding(
    path: Path, modality: str, catalog: Catalog, indexed: bool
) -> Features:
    """Reads vectors for the items of a catalogue.

    A file `<name>.ids` beside `<name>.npy` tells whose the rows are, one
    identifier a line; items that it does not name are absent. Without, row
    number = the item's index where the source has numbered the items, else
    the item's identifier, which then must be a number.

    Args:
      path: of the matrix.
      modality: that the vectors are of.
      catalog: with the items.
      indexed: whether the source itself numbers items by their rows.

    Raises:
      InputError: if the matrix is bad, or it is unclear whose rows it has.
    """
    names = path.with_suffix(".ids")
    items = catalog.num_items
    if not names.exists() and indexed:
        return features_of(read_matrix(path, modality, items), path)
    ids = catalog.item_names()
    if names.exists():
        rows = _named(names, ids)
        values = read_matrix(path, modality, None)
        if len(values) != rows.pop("lines"):
            raise InputError(
                "A matrix and its identifiers differ in length.",
                where=path,
                expected=f"one row for each line of {names.name}",
                found=f"{len(values)} rows",
            )
        places = np.array([rows.get(name, -1) for name in ids])
    else:
        places = _numbered(path, ids)
        values = read_matrix(path, modality, None)
        if places.max() >= len(values):
            raise InputError(
                "A matrix has no row for an item.",
                where=path,
                expected=f"row {places.max()}, for item {places.max()}",
                found=f"{len(values)} rows",
            )
    if (places < 0).all():
        raise InputError(
            "None of the identifiers is that of an item.",
            where=names,
            expected=f"such as {ids[0]!r}",
        )
    taken = np.zeros((items, values.shape[1]), np.float32)
    taken[places >= 0] = values[places[places >= 0]]
    return features_of(taken, path)


def _npy(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            "A feature matrix cannot be read.",
            where=path,
            expected="a .npy file of numbers",
            found=error,
        ) from error


def _safetensors(path: Path, modality: str) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            name = names[0] if len(names) == 1 else modality
            if name in names:
                return file.get_tensor(name)
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(
            "A feature matrix cannot be read.",
            where=path,
            expected="a .safetensors file of numbers",
            found=error,
        ) from error
    raise InputError(
        "It is not clear which tensor is meant.",
        where=path,
        expected=f"a single one, or one named {modality!r}",
        found=", ".join(names) or "none",
    )


def _check_finite(values: np.ndarray, path: Path, modality: str) -> None:
    bad: list[int] = []
    for start in range(0, len(values), _BLOCK):
        with np.errstate(over="ignore"):  # becomes infinity, which is found
            block = np.asarray(values[start : start + _BLOCK], np.float32)
        wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
        bad += (start + wrong).tolist()
    if bad:
        raise InputError(
            f"{len(bad)} feature rows hold NaN or infinity.",
            where=f"{path}, modality {modality!r}, items {bad[:5]}",
            expected="finite values, in single precision",
            fix="extract the features again, or make such rows zero (absent)",
        )


def _named(path: Path, ids: Sequence[str]) -> dict[str, int]:
    """Identifier -> row, of the items `ids`; "lines": how many rows."""
    wanted, rows, lines = set(ids), {}, 0
    for line in read_lines(path):
        name = text_of(line, path, "list of identifiers").strip()
        lines += 1
        if name not in wanted:
            continue
        if name in rows:
            raise InputError(
                "An identifier stands twice.",
                where=f"{path}, line {line.number}",
                found=repr(name),
            )
        rows[name] = line.number - 1
    return {**rows, "lines": lines}


def _numbered(path: Path, ids: Sequence[str]) -> np.ndarray:
    import pyarrow as pa

    numbers = integers(pa.array(ids, pa.string()))
    if numbers is None or (numbers < 0).any():
        raise InputError(
            "It is not clear whose vectors the rows of a matrix are.",
            where=path,
            found=f"items are called {ids[0]!r} ...",
            fix=f"write their identifiers, one for each row, to a file "
            f"{path.with_suffix('.ids').name} beside it",
        )
    return numbers
