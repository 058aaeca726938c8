"""Interactions as plain arrays on disk, which are mapped and not read.

The folder `pairs/` of a dataset directory (`data/store.py`). Each split is
sorted by user, with offsets; the train split is there by item as well. A host
that holds some users and some items of a large catalogue touches their pages
of the files, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from neggen_jax.adjacency import Adjacency, Index, ordered
from neggen_jax.catalog import SPLITS, Catalog, Interactions

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
