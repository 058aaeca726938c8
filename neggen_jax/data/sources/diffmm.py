"""Matrices of users and items, as DiffMM and its kin publish them -> `Catalog`.

A directory with `trnMat.pkl`, `valMat.pkl` and `tstMat.pkl`, pickled sparse
matrices with a row for each user and a column for each item, and feature
matrices `<modality>_feat.npy` with a row for each item.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.catalog import Catalog
from neggen_jax.data.extension import Known, arranged, named
from neggen_jax.data.items import read_matrices, read_records
from neggen_jax.data.sources.assemble import assemble
from neggen_jax.data.sources.log import Column, Log
from neggen_jax.data.sources.pickles import read_matrix
from neggen_jax.errors import InputError

_FILES = ("trnMat.pkl", "valMat.pkl", "tstMat.pkl")  # in the order of SPLITS


def read_diffmm(
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    duplicates: str | None = None,
    cold_users: str | None = None,
    extends: Known | None = None,
) -> Catalog:
    """Reads such a directory; entries that are not 0 are interactions.

    Args:
      directory: with the three files. An `items.jsonl` in it is read as by
        `items.read_records`.
      name: of the catalogue; None: the directory's.
      duplicates: what to do with a pair that stands in several matrices:
        "error" (the default), or keep the "first".
      cold_users: what to do with users of valid and test who are not in
        train: "error" (the default), or "drop" them.
      extends: see `mmrec.read_mmrec`.

    Raises:
      InputError: if a file is missing, is no such matrix, or breaks a rule.
    """
    root = Path(directory).absolute()
    for file in _FILES:
        if not (root / file).is_file():
            raise InputError(
                "A matrix of interactions is missing.",
                where=root / file,
                expected=", ".join(_FILES),
                fix="cut a part of the train matrix off for it, if the "
                "dataset comes without",
            )
    rows, columns, labels, shape = [], [], [], None
    for label, file in enumerate(_FILES):
        matrix = read_matrix(root / file)
        if shape not in (None, matrix.shape):
            raise InputError(
                "Matrices of interactions differ in shape.",
                where=root / file,
                expected=f"{shape}, as {_FILES[0]}",
                found=matrix.shape,
            )
        shape = matrix.shape
        # An entry may be made of several that are added up.
        matrix.sum_duplicates()
        there = matrix.data != 0
        rows.append(matrix.row[there].astype(np.int32))
        columns.append(matrix.col[there].astype(np.int32))
        labels.append(np.full(len(rows[-1]), label, np.int8))
    assert shape is not None
    users, items = shape
    records, features = read_records(root), read_matrices(root, items)
    log = Log(
        Column(np.concatenate(rows), _numbers(users)),
        named(np.concatenate(columns), records, items),
        labels=np.concatenate(labels),
    )
    catalog = assemble(
        log,
        name or root.name,
        duplicates=duplicates,
        cold_users=cold_users,
        num_items=items,
        extends=extends,
    )
    if extends is not None:
        return arranged(catalog, records, features)
    return dataclasses.replace(catalog, features=features, records=records)


def _numbers(count: int) -> Any:
    import pyarrow as pa

    return pa.array(np.arange(count)).cast(pa.string())
