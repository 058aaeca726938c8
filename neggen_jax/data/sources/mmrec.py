"""Interaction logs in the files of the MMRec toolbox -> `Catalog`.

`read_mmrec` reads the layout that most published multi-modal data comes in: a
directory with `<name>.inter` (tab-separated, with a header: userID, itemID,
x_label and, if known, timestamp; x_label is 0 for train, 1 for valid, 2 for
test), and perhaps `items.jsonl` and feature matrices (`data/items.py`).
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from neggen_jax.catalog import Catalog
from neggen_jax.data.extension import Known, arranged, named
from neggen_jax.data.items import read_matrices, read_records
from neggen_jax.data.sources.assemble import assemble
from neggen_jax.data.sources.columns import Columns
from neggen_jax.data.sources.delimited import (
    fields,
    first_line,
    header,
    read_delimited,
)
from neggen_jax.data.sources.log import Column, integers
from neggen_jax.errors import InputError, nearest

_USER, _ITEM, _LABEL, _TIME = "userID", "itemID", "x_label", "timestamp"
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # all of these fit in int64
_LABELS = {"0": 0, "1": 1, "2": 2}


def read_mmrec(
    directory: str | os.PathLike[str],
    *,
    file: str | None = None,
    name: str | None = None,
    duplicates: str = "error",
    cold_users: str = "error",
    extends: Known | None = None,
) -> Catalog:
    """Reads a directory in the layout of the MMRec toolbox.

    Identifiers that are whole numbers from 0 on without gaps are taken as
    the indices. Others (strings, numbers with gaps) are numbered in sorted
    order and kept as `user_ids` and `records.ids`; for items only if neither
    items.jsonl nor a feature matrix fixes their order.

    Args:
      directory: with one `.inter` file, or several of which one is named as
        the directory or given by `file`.
      file: name of the `.inter` file.
      name: of the catalogue; None: the `.inter` file's.
      duplicates: what to do with a (user, item) pair that occurs again:
        "error", or keep the "first" by time, then by line.
      cold_users: what to do with users of valid and test who are not in
        train: "error", or "drop" them.
      extends: the dataset that the interactions come to. Items are known by
        the identifiers that items.jsonl gives them, or else by their numbers.

    Returns:
      The validated catalogue. It has records if there is anything to know of
      the items, and the features that the directory has matrices of.

    Raises:
      InputError: if a file is missing, cannot be read, or breaks a rule.
    """
    root = Path(directory).absolute()
    path = _find(root, file)
    log = read_delimited(path, _columns(path), "\t", labels=_LABELS)
    records = read_records(root)
    features = read_matrices(root, None if records is None else len(records))
    # Either of them says how many items there are and in which order.
    sizes = [len(matrix.values) for matrix in features.values()]
    num_items = len(records) if records is not None else max(sizes, default=0)
    if num_items:
        known = _known_items(log.items, num_items, path)
        items = Column(known[log.items.codes], log.items.names)
        if extends is not None:
            items = named(items.codes, records, num_items)
        log = dataclasses.replace(log, items=items)
    catalog = assemble(
        log,
        name or path.stem,
        duplicates=duplicates,
        cold_users=cold_users,
        num_items=num_items or None,
        extends=extends,
    )
    if extends is not None:
        return arranged(catalog, records, features)
    return dataclasses.replace(
        catalog, features=features, records=records or catalog.records
    ).validate()


def _find(root: Path, file: str | None) -> Path:
    """The `.inter` file that is meant."""
    if not root.is_dir():
        raise InputError("There is no such input directory.", where=root)
    if file is not None:
        if not (root / file).is_file():
            raise InputError(
                "There is no such interaction file.",
                where=root / file,
                fix=nearest(file, (p.name for p in root.glob("*.inter"))),
            )
        return root / file
    paths = sorted(root.glob("*.inter"))
    named = root / f"{root.name}.inter"
    if named in paths:
        return named
    if len(paths) != 1:
        raise InputError(
            "It is not clear which interaction file is meant."
            if paths
            else "The input directory has no interaction file.",
            where=root,
            expected=f"one file *.inter, or {named.name}",
            found=", ".join(path.name for path in paths) or "none",
            fix="name one with --file" if paths else None,
        )
    return paths[0]


def _columns(path: Path) -> Columns:
    line = header(path)
    names = fields(line, "\t")
    missing = [n for n in (_USER, _ITEM, _LABEL) if n not in names]
    if missing:
        raise InputError(
            f"The interaction file has no column {missing[0]!r}.",
            where=f"{path}, line 1",
            expected=f"{_USER}, {_ITEM}, {_LABEL} and perhaps {_TIME}, "
            "separated by tabs",
            found=", ".join(names) if line.strip() else "an empty line",
        )
    time = _TIME if _TIME in names else ""
    return Columns(_USER, _ITEM, time=time, split=_LABEL)


def _known_items(items: Column, num_items: int, path: Path) -> np.ndarray:
    """The item index that each distinct name stands for, int32."""
    numbers = integers(items.names)
    names = items.names.to_pylist()
    if numbers is None:
        problem = "An item id is not a whole number."
        wrong = np.array([not _WHOLE.fullmatch(name) for name in names])
    else:
        problem = "Unknown item id."
        wrong = (numbers < 0) | (numbers >= num_items)
    if numbers is None or wrong.any():
        raise InputError(
            problem,
            where=first_line(path, items, wrong),
            expected=f"an index in [0, {num_items}): the items' file or "
            f"feature matrices have {num_items} lines or rows",
            found=repr(names[int(np.argmax(wrong))]),
            fix="number the items by their lines, or remove those files",
        )
    return numbers.astype(np.int32)
