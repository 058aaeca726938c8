"""Interactions, item records and user identifiers as record files.

The three TFDS datasets of a dataset directory (`data/store.py` has the
layout), written through `data/records.py`; the last two are read back, with
NumPy alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from neggen_jax.catalog import SPLITS, Interactions, ItemRecords
from neggen_jax.data import records

BLOCK = 65_536  # interactions, or users, in one record
_BLOCKS_PER_FILE = 128  # about 128 MiB
_ITEMS_PER_FILE = 2**18
_COLUMNS = {"users": "<i4", "items": "<i4", "timestamps": "<i8"}
_PAIR = ("attributes/name", "attributes/value")


def write_interactions(
    splits: Mapping[str, Interactions], directory: Path, name: str
) -> dict[str, list[Path]]:
    """Writes the interactions into an existing directory.

    Returns:
      Split -> its files, in order.
    """
    import tensorflow_datasets as tfds

    features = {
        column: tfds.features.Tensor(
            shape=(None,), dtype=np.dtype(dtype), encoding="bytes"
        )
        for column, dtype in _COLUMNS.items()
    }
    blocks = {split: _blocks(splits[split]) for split in SPLITS}
    return records.write(directory, name, features, blocks, _BLOCKS_PER_FILE)


def write_items(items: ItemRecords, directory: Path, name: str) -> list[Path]:
    """Writes the items' records into a new directory."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    # Several times faster to write than a sequence of texts, and the same
    # in the file and to its readers.
    texts = tfds.features.Tensor(shape=(None,), dtype=np.str_)
    features = {
        "id": text,
        "title": text,
        "text": text,
        "attributes": {"name": texts, "value": texts},
        "image": text,
    }
    rows = zip(
        items.ids,
        items.titles,
        items.texts,
        ({"name": [*a], "value": [*a.values()]} for a in items.attributes),
        items.images,
        strict=True,
    )
    examples = (dict(zip(features, row, strict=True)) for row in rows)
    directory.mkdir()
    splits = {"items": examples}
    return records.write(directory, name, features, splits, _ITEMS_PER_FILE)[
        "items"
    ]


def read_items(paths: Sequence[Path], image_root: str) -> ItemRecords:
    """Reads the items' records.

    Args:
      paths: their files, as `write_items` left them.
      image_root: directory that the paths of images are relative to.

    Raises:
      InputError: if a file is missing or damaged.
    """
    items = ItemRecords([], [], [], [], [], image_root)
    for path in paths:
        for record in records.read(path):
            item = _texts(record, path)
            items.ids.extend(item["id"])
            items.titles.extend(item["title"])
            items.texts.extend(item["text"])
            names, values = (item[part] for part in _PAIR)
            items.attributes.append(dict(zip(names, values, strict=True)))
            items.images.extend(item["image"])
    return items


def write_users(user_ids: list[str], directory: Path, name: str) -> list[Path]:
    """Writes the users' own identifiers into a new directory."""
    from tensorflow_datasets import features as kinds

    features = {"ids": kinds.Sequence(kinds.Text())}
    starts = range(0, len(user_ids), BLOCK)
    blocks = ({"ids": user_ids[at : at + BLOCK]} for at in starts)
    directory.mkdir()
    splits = {"users": blocks}
    return records.write(directory, name, features, splits, _BLOCKS_PER_FILE)[
        "users"
    ]


def read_users(paths: Sequence[Path]) -> list[str]:
    """Reads the users' own identifiers.

    Raises:
      InputError: if a file is missing or damaged.
    """
    user_ids: list[str] = []
    for path in paths:
        for record in records.read(path):
            user_ids += _texts(record, path)["ids"]
    return user_ids


def _blocks(part: Interactions) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(part), BLOCK):
        block = {}
        for name, dtype in _COLUMNS.items():
            column = getattr(part, name)
            rows = [] if column is None else column[start : start + BLOCK]
            block[name] = np.asarray(rows, dtype)
        yield block


def _texts(record: bytes, path: Path) -> dict[str, list[str]]:
    return {
        name: [str(value, "utf-8") for value in values]
        for name, values in records.parse(record, path).items()
    }
