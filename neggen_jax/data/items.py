"""What is known of the items, in other toolboxes' files -> `Catalog`.

Two kinds of files may lie beside an interaction file
(`data/sources/mmrec.py`): `items.jsonl`, one JSON object a line with title,
description, attributes and the path of an image, and matrices
`<modality>_feat*.npy` of vectors that somebody has extracted already.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.catalog import Features, ItemRecords
from neggen_jax.data.sources.columns import CONTENT, candidates
from neggen_jax.data.sources.lines import Line, object_of, read_lines
from neggen_jax.data.sources.matrices import features_of, read_matrix
from neggen_jax.errors import InputError

# Fields that may hold what the shop itself calls an item, best first.
IDS = ("item_id", "parent_asin", "asin", "article_id", "id")
_MATRIX = re.compile(r"(?P<modality>.+?)_feat(?P<kind>.*)\.npy")


def read_records(root: Path) -> ItemRecords | None:
    """Reads `items.jsonl`, whose line number (from 0) is the item's index.

    Fields: title, description and image (its path, relative to `root`) by any
    of the names in `columns.USUAL`; `attributes`, an object; the item's own
    identifier as `item_id`, `parent_asin`, `asin`, `article_id` or `id`. All
    are optional; `itemID`, where it stands, must be the line number. Lists of
    words are joined; empty attributes are left out. A note on stderr names
    the fields that are none of these.

    Args:
      root: the input directory.

    Returns:
      The records; None if there is no such file.

    Raises:
      InputError: naming the line that is not such an object.
    """
    path = root / "items.jsonl"
    if not path.exists():
        return None
    records = ItemRecords([], [], [], [], [], str(root))
    unread = Unread(path, "itemID", *IDS)
    for line in read_lines(path):
        number = line.number - 1
        item = item_of(line, path)
        unread.add(item)
        if item.get("itemID", number) != number:
            raise InputError(
                "An item does not stand on the line of its itemID.",
                where=f"{path}, line {line.number}",
                expected=f"itemID {number}",
                found=f"itemID {item['itemID']!r}",
                fix="sort the lines by itemID; leave none out",
            )
        append(records, first(item, IDS) or str(number), item)
    unread.tell()
    if not records.ids:
        raise InputError("The items' file is empty.", where=path)
    return records


def read_new(path: Path) -> tuple[ItemRecords, dict[str, dict[int, Any]]]:
    """Reads items that are in no dataset yet, one JSON object a line.

    Fields as `read_records` has them, but for `itemID`; the identifier is
    required, images are relative to the file, and `vectors` may hold one
    vector for each modality, which then stands for the content.

    Args:
      path: the file.

    Returns:
      The records, and modality -> row -> the vector that was given.

    Raises:
      InputError: naming the line that is not such an object.
    """
    records = ItemRecords([], [], [], [], [], str(path.parent))
    vectors: dict[str, dict[int, Any]] = {}
    lines: dict[str, int] = {}
    unread = Unread(path, "vectors", *IDS)
    for row, line in enumerate(read_lines(path)):
        item = item_of(line, path)
        unread.add(item)
        name, where = first(item, IDS), f"{path}, line {line.number}"
        if not name or name in lines:
            raise InputError(
                f"Two new items are called {name!r}."
                if name
                else "A new item has no identifier.",
                where=where,
                expected=f"one of {', '.join(IDS)}, each time another",
                found=f"also line {lines[name]}" if name else None,
            )
        lines[name] = line.number
        append(records, name, item)
        given = item.get("vectors") or {}
        for modality, vector in given.items():
            found = _vector(vector, modality, where)
            vectors.setdefault(modality, {})[row] = found
    unread.tell()
    if not records.ids:
        raise InputError("There are no new items in the file.", where=path)
    return records, vectors


def _vector(value: Any, modality: str, where: str) -> np.ndarray:
    try:
        vector = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        vector = np.zeros((0, 0), np.float32)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise InputError(
            f"The {modality} vector of a new item is none.",
            where=where,
            expected="a list of finite numbers",
            found=json.dumps(value)[:80],
        )
    return vector


def bare_records(ids: list[str]) -> ItemRecords:
    """Records of items of which nothing but identifiers is known."""
    empty = [""] * len(ids)
    attributes: list[dict[str, str]] = [{} for _ in ids]
    return ItemRecords(ids, empty, [*empty], attributes, [*empty])


def read_matrices(root: Path, num_items: int | None) -> dict[str, Features]:
    """Reads the feature matrices `<modality>_feat*.npy` of a directory.

    A row of zeros is an item without that content. Of several matrices of
    one modality, that without a word after `_feat` is taken.

    Args:
      root: the input directory.
      num_items: rows that they must have, or None if that is not known.

    Returns:
      Modality -> its features.

    Raises:
      InputError: if a file is no such matrix, or it is unclear which to take.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*_feat*.npy")):
        if match := _MATRIX.fullmatch(path.name):
            found.setdefault(match["modality"], []).append(path)
    features = {}
    for modality, paths in found.items():
        plain = [p for p in paths if p.name == f"{modality}_feat.npy"]
        if len(paths) > 1 and not plain:
            raise InputError(
                f"There are several matrices of the modality {modality!r}.",
                where=root,
                found=", ".join(path.name for path in paths),
                fix=f"rename the one that is meant to {modality}_feat.npy",
            )
        path = (plain or paths)[0]
        values = read_matrix(path, modality, num_items)
        features[modality] = features_of(values, path)
        num_items = len(features[modality].values)
    return features


def item_of(line: Line, path: Path) -> dict[str, Any]:
    """One line of `items.jsonl`; its attributes are always there.

    Raises:
      InputError: naming the line that is no such object.
    """
    item = object_of(line, path, "items' file")
    attributes = item.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise InputError(
            "The attributes of an item are not a JSON object.",
            where=f"{path}, line {line.number}",
            expected='{"name": "value", ...}',
            found=json.dumps(attributes)[:80],
        )
    return item | {"attributes": attributes}


class Unread:
    """Fields of JSON lines that no one reads.

    Whoever writes `"colour": "red"` beside the title means an attribute: that
    it is none should not be found out from a worse model.

    Args:
      path: the file.
      *read: fields that are read, beside title, description, image and
        attributes.
    """

    def __init__(self, path: Path, *read: str):
        self._path, self._read = path, {*read, "attributes"}
        self._names: dict[str, None] = {}

    def add(self, item: Mapping[str, Any]) -> None:
        """Notes those of one line."""
        names = tuple(item)
        content = (candidates(role, names) for role in CONTENT)
        read = self._read.union(*content)
        self._names.update((name, None) for name in names if name not in read)

    def tell(self) -> None:
        """Names them on stderr."""
        if self._names:
            print(
                f"note: {self._path.name}: not read: {', '.join(self._names)}; "
                'attributes belong into the object "attributes"',
                file=sys.stderr,
            )


def append(records: ItemRecords, name: str, item: Mapping[str, Any]) -> None:
    """Adds an item to records.

    Args:
      records: to which it is added.
      name: its identifier.
      item: of `item_of`.
    """
    title, text, image = (candidates(role, tuple(item)) for role in CONTENT)
    records.ids.append(name)
    records.titles.append(first(item, title))
    records.texts.append(first(item, text))
    pairs = {n: as_text(v, ", ") for n, v in item["attributes"].items()}
    records.attributes.append({n: v for n, v in pairs.items() if v})
    records.images.append(first(item, image))


def first(item: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the fields `names` that is there and not empty."""
    return next(filter(None, (as_text(item.get(name)) for name in names)), "")


def as_text(value: Any, glue: str = " ") -> str:
    """A JSON value as words: lists joined by `glue`, null empty."""
    if value is None:
        return ""
    if isinstance(value, list):
        return glue.join(filter(None, (as_text(part, glue) for part in value)))
    text = value if isinstance(value, str) else json.dumps(value)
    # JSON may hold halves of surrogate pairs, which no file can.
    return text.encode("utf-8", "replace").decode("utf-8")
