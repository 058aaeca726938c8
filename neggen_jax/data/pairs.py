"""Interactions as plain arrays on disk, which are mapped and not read.

The folder `pairs/` of a dataset directory (`data/store.py`). Each split is
sorted by user, with offsets; the train split is there by item as well. A host
that holds some users and some items of a large catalogue touches their pages
of the files, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.adjacency import Adjacency, Index, ordered
from neggen_jax.catalog import SPLITS, Catalog, Interactions
from neggen_jax.errors import InputError

FOLDER = "pairs"

# Reads one file, or says what is wrong with it.
Read = Callable[[Path, type], np.ndarray]


def write(catalog: Catalog, directory: Path) -> list[Path]:
    """Writes the folder into a dataset directory.

    Args:
      catalog: validated, hence sorted.
      directory: of the dataset.

    Returns:
      The files.

    Raises:
      ValueError: if the interactions are not sorted.
    """
    for split, part in catalog.splits.items():
        if not ordered(part.users, part.items):
            raise ValueError(f"the split {split!r} is not sorted")
    folder = directory / FOLDER
    folder.mkdir()
    arrays: dict[str, np.ndarray | None] = {}
    for split in SPLITS:
        part = catalog.splits[split]
        arrays |= {
            f"{split}.users": np.asarray(part.users, np.int32),
            f"{split}.items": np.asarray(part.items, np.int32),
            f"{split}.timestamps": part.timestamps,
            f"{split}.offsets": catalog.by_user(split).offsets,
        }
    by_item = catalog.index.by_item
    arrays |= {
        "by_item.offsets": by_item.offsets,
        "by_item.users": by_item.ends,
        "by_item.numbers": by_item.numbers,
    }
    paths = []
    for name, array in arrays.items():
        if array is not None:
            paths.append(folder / f"{name}.npy")
            np.save(paths[-1], array)
    return paths


def read(
    directory: Path, files: Collection[str], read_array: Read
) -> tuple[dict[str, Interactions], Index]:
    """Maps the folder of a dataset directory.

    Args:
      directory: of the dataset.
      files: of the folder, relative to the directory.
      read_array: maps one file, of a dtype.

    Returns:
      The splits, and the index of the train split.
    """

    def column(name: str, dtype: type) -> np.ndarray:
        return read_array(directory / FOLDER / f"{name}.npy", dtype)

    def there(name: str) -> bool:
        return f"{FOLDER}/{name}.npy" in files

    splits = {
        split: Interactions(
            users=column(f"{split}.users", np.int32),
            items=column(f"{split}.items", np.int32),
            timestamps=(
                column(f"{split}.timestamps", np.int64)
                if there(f"{split}.timestamps")
                else None
            ),
            offsets=column(f"{split}.offsets", np.int64),
        )
        for split in SPLITS
    }
    train = splits["train"]
    assert train.offsets is not None
    wide = np.int32 if len(train) < 2**31 else np.int64
    by_item = Adjacency(
        offsets=column("by_item.offsets", np.int64),
        ends=column("by_item.users", np.int32),
        # None where that order is the same one.
        numbers=(
            column("by_item.numbers", wide)
            if there("by_item.numbers")
            else None
        ),
    )
    return splits, Index(Adjacency(train.offsets, train.items), by_item)


def check(
    directory: Path,
    known: Mapping[str, Any],
    splits: Mapping[str, Interactions],
    index: Index,
) -> None:
    """Refuses arrays of other lengths than the dataset's description tells.

    Args:
      directory: of the dataset.
      known: of `store.describe`.
      splits: of `read`.
      index: of `read`.

    Raises:
      InputError: for the first one that is not as it should be.
    """
    users, items, counts = (
        known[name] for name in ("num_users", "num_items", "counts")
    )
    expected: dict[str, tuple[np.ndarray | None, Any]] = {
        "by_item.offsets": (index.by_item.offsets, items + 1),
        "by_item.users": (index.by_item.ends, counts.get("train")),
        "by_item.numbers": (index.by_item.numbers, counts.get("train")),
    }
    for split, part in splits.items():
        for name in ("users", "items", "timestamps"):
            expected[f"{split}.{name}"] = getattr(part, name), counts.get(split)
        expected[f"{split}.offsets"] = part.offsets, users + 1
    for name, (array, length) in expected.items():
        if array is not None and array.shape != (length,):
            raise InputError(
                "An array is not as long as catalog.json says.",
                where=directory / FOLDER / f"{name}.npy",
                expected=length,
                found=array.shape,
                fix="prepare it again with launch/prepare.py, with --overwrite",
            )
