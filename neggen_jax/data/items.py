"""What is known of the items, in other toolboxes' files -> `Catalog`.

Two kinds of files may lie beside an interaction file
(`data/interactions.py`): `items.jsonl`, one JSON object a line with title,
description, attributes and the path of an image, and matrices
`<modality>_feat*.npy` of vectors that somebody has extracted already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.catalog import Features, ItemRecords
from neggen_jax.errors import InputError

# Fields that may hold what the shop itself calls an item, best first.
_IDS = ("item_id", "parent_asin", "asin", "article_id", "id")
_TEXTS = ("description", "text")
_IMAGES = ("image", "image_path")
_MATRIX = re.compile(r"(?P<modality>.+?)_feat(?P<kind>.*)\.npy")


def read_records(root: Path) -> ItemRecords | None:
    """Reads `items.jsonl`, whose line number (from 0) is the item's index.

    Fields: `title`; `description` or `text`; `attributes`, an object; `image`
    or `image_path`, relative to `root`; the item's own identifier as
    `item_id`, `parent_asin`, `asin`, `article_id` or `id`. All are optional;
    `itemID`, where it stands, must be the line number. Lists of words are
    joined; empty attributes are left out.

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
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file):
            item = _parse(line, number, start, path)
            start += len(line)
            _append(records, item, _first(item, _IDS) or str(number))
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
    with _opened(path) as file:
        start = 0
        for number, line in enumerate(file):
            item = _parse(line, number, start, path)
            start += len(line)
            name, where = _first(item, _IDS), f"{path}, line {number + 1}"
            if not name or name in lines:
                raise InputError(
                    f"Two new items are called {name!r}."
                    if name
                    else "A new item has no identifier.",
                    where=where,
                    expected=f"one of {', '.join(_IDS)}, each time another",
                    found=f"also line {lines[name]}" if name else None,
                )
            lines[name] = number + 1
            _append(records, item, name)
            given = item.get("vectors") or {}
            for modality, vector in given.items():
                found = _vector(vector, modality, where)
                vectors.setdefault(modality, {})[number] = found
    if not records.ids:
        raise InputError("There are no new items in the file.", where=path)
    return records, vectors


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            "The items' file cannot be read.", where=path, found=error.strerror
        ) from error


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


def _append(records: ItemRecords, item: Mapping[str, Any], name: str) -> None:
    records.ids.append(name)
    records.titles.append(_text(item.get("title")))
    records.texts.append(_first(item, _TEXTS))
    pairs = {n: _text(v, ", ") for n, v in item["attributes"].items()}
    records.attributes.append({n: v for n, v in pairs.items() if v})
    records.images.append(_first(item, _IMAGES))


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
        features[modality] = _read_matrix(path, num_items)
        num_items = len(features[modality].values)
    return features


def _read_matrix(path: Path, num_items: int | None) -> Features:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            "A feature matrix cannot be read.",
            where=path,
            expected="a .npy file of numbers",
            found=error,
        ) from error
    rows = "items" if num_items is None else str(num_items)
    if (
        not isinstance(values, np.ndarray)
        or values.dtype.kind not in "fiu"
        or values.ndim != 2
        or len(values) != (num_items or len(values))
    ):
        raise InputError(
            "A file is not a matrix with one row of features per item.",
            where=path,
            expected=f"numbers of the shape ({rows}, f)",
            found=f"{values.dtype} of the shape {values.shape}"
            if isinstance(values, np.ndarray)
            else "an archive of arrays",
            fix="rows must be in the order of the item indices",
        )
    with np.errstate(over="ignore"):  # infinity is found by validation
        values = np.asarray(values, np.float32)
    manifest = {
        "encoder": "file",
        "version": None,
        "parameters": {"file": path.name},
    }
    return Features(values, np.asarray(values.any(axis=1)), manifest)


def _parse(line: bytes, number: int, start: int, path: Path) -> dict[str, Any]:
    """One line of `items.jsonl`; its attributes are always there."""
    where = f"{path}, line {number + 1}"
    try:
        item = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            "The items' file is not UTF-8.",
            where=f"{where}, byte {start + error.start} of the file",
            found=f"byte 0x{line[error.start]:02x}",
            fix="convert it, e.g. iconv -f latin1 -t utf-8",
        ) from None
    except ValueError as error:
        raise InputError(
            "A line of the items' file is not JSON.", where=where, found=error
        ) from None
    if not isinstance(item, dict):
        raise InputError(
            "A line of the items' file is not a JSON object.",
            where=where,
            found=type(item).__name__,
        )
    if item.get("itemID", number) != number:
        raise InputError(
            "An item does not stand on the line of its itemID.",
            where=where,
            expected=f"itemID {number}",
            found=f"itemID {item['itemID']!r}",
            fix="sort the lines by itemID; leave none out",
        )
    attributes = item.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise InputError(
            "The attributes of an item are not a JSON object.",
            where=where,
            expected='{"name": "value", ...}',
            found=json.dumps(attributes)[:80],
        )
    return item | {"attributes": attributes}


def _first(item: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the fields `names` that is there and not empty."""
    return next(filter(None, (_text(item.get(name)) for name in names)), "")


def _text(value: Any, glue: str = " ") -> str:
    """A JSON value as words: lists joined by `glue`, null empty."""
    if value is None:
        return ""
    if isinstance(value, list):
        return glue.join(filter(None, (_text(part, glue) for part in value)))
    text = value if isinstance(value, str) else json.dumps(value)
    # JSON may hold halves of surrogate pairs, which no file can.
    return text.encode("utf-8", "replace").decode("utf-8")
