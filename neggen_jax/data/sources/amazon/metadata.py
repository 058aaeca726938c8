"""Files of products -> `ItemRecords` of the items that are left.

One line in memory at a time; lines of other products are not parsed.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neggen_jax.catalog import ItemRecords
from neggen_jax.data.items import as_text, bare_records
from neggen_jax.data.sources.amazon.literals import literal_of
from neggen_jax.data.sources.lines import object_of, read_lines
from neggen_jax.errors import InputError

_WHAT = "metadata file"
_NAME = re.compile(rb"""['"](?:parent_)?asin['"]:\s*['"]([^'"]+)['"]""")
_TAG = re.compile(r"<[^<>]{1,300}>")
_SPACE = re.compile(r"\s+")
# Of the many details of 2023, those that a text or a picture shows.
_DETAILS = ("Color", "Material", "Style", "Pattern", "Theme", "Shape")


def read_metadata(path: Path, ids: Sequence[str]) -> ItemRecords:
    """Reads what is known of some items.

    Title; description and features as one text; attributes: brand (2023:
    the store), category (the narrowest), and of 2023 colour, material and
    the like. Pictures are named by URLs there: an item has one if there is a
    file `images/<id>.jpg` (or .png) beside the metadata. Of an item that
    occurs several times the first line counts.

    Args:
      path: the file: lines of Python literals (2014) or of JSON.
      ids: the items, in the order of the records.

    Returns:
      Records of all of them; of items that it does not tell of, identifiers
      alone.

    Raises:
      InputError: naming the line that is wrong; or if it tells of none.
    """
    records = bare_records(list(ids))
    places = {name.encode(): place for place, name in enumerate(ids)}
    left = set(places)
    parse = None
    for line in read_lines(path, label="metadata"):
        if parse is None:
            # Python prints single quotes.
            old = line.data.lstrip().startswith(b"{'")
            parse = literal_of if old else object_of
        names = _NAME.findall(line.data)
        if names and left.isdisjoint(names):
            if not line.data.rstrip().endswith(b"}"):
                parse(line, path, _WHAT)  # says what is wrong
            continue
        product = parse(line, path, _WHAT)
        name = as_text(product.get("parent_asin") or product.get("asin"))
        if not name:
            raise InputError(
                "A product has no identifier.",
                where=f"{path}, line {line.number}",
                expected="a field asin or parent_asin",
                found=", ".join(map(str, product))[:200] or "no fields",
            )
        if name.encode() in left:
            left.remove(name.encode())
            _tell(records, places[name.encode()], product)
    if parse is None:
        raise InputError("The metadata file is empty.", where=path)
    if len(left) == len(places):
        raise InputError(
            "The metadata tells of none of the items.",
            where=path,
            expected=f"products such as {ids[0]!r}",
            fix="is it of another category or release than the reviews?",
        )
    return _with_images(records, path.parent / "images")


def _tell(records: ItemRecords, place: int, product: Mapping[str, Any]) -> None:
    title = _clean(product.get("title"))
    # Of 2018 some are what a script of the page left.
    records.titles[place] = "" if "getTime" in title else title
    parts = [
        _clean(product.get(name))
        for name in ("description", "feature", "features")
    ]
    records.texts[place] = " ".join(filter(None, parts))
    details = product.get("details")
    details = details if isinstance(details, dict) else {}
    brand = product.get("brand") or details.get("Brand") or product.get("store")
    found = {
        "brand": _clean(brand),
        "category": _narrowest(product),
        **{name.lower(): _clean(details.get(name)) for name in _DETAILS},
    }
    kept = {name: value for name, value in found.items() if value}
    records.attributes[place].update(kept)


def _narrowest(product: Mapping[str, Any]) -> str:
    """The last of the categories, which go from wide to narrow."""
    path = product.get("categories") or product.get("category")
    if isinstance(path, list) and path and isinstance(path[0], list):
        path = path[0]  # 2014 has several such paths
    if isinstance(path, list):
        # 2018 goes on with features, which are sentences or tags.
        short = [c for c in map(_clean, path) if c and len(c) <= 40]
        path = short[-1] if short else ""
    return _clean(path) or _clean(product.get("main_category"))


def _clean(value: Any) -> str:
    """A value as plain text: no entities, no tags."""
    text = html.unescape(as_text(value))
    return _SPACE.sub(" ", _TAG.sub(" ", text)).strip()


def _with_images(records: ItemRecords, directory: Path) -> ItemRecords:
    if not directory.is_dir():
        return records
    there = {
        path.stem: path.name
        for path in directory.iterdir()
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    }
    files = [there.get(name, "") for name in records.ids]
    return ItemRecords(
        records.ids,
        records.titles,
        records.texts,
        records.attributes,
        files,
        os.fspath(directory),
    )
