"""One's own interactions in CSV or Parquet -> `Catalog`.

A table of users and items, perhaps with ratings, times and splits, and perhaps
a file that tells of the items beside it (CSV, Parquet or JSON lines). Columns
are found by the names that people use (`data/sources/columns.py`), or named.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from neggen_jax.catalog import Catalog, ItemRecords
from neggen_jax.data.items import IDS, Unread, append, as_text, first, item_of
from neggen_jax.data.sources import columns as naming
from neggen_jax.data.sources import delimited, parquet
from neggen_jax.data.sources.assemble import Rules, assemble
from neggen_jax.data.sources.columns import guess
from neggen_jax.data.sources.lines import read_lines, text_of
from neggen_jax.data.sources.log import Log, join
from neggen_jax.errors import InputError, nearest

_KINDS = {
    "csv": ("*.csv", "*.tsv", "*.csv.gz", "*.tsv.gz"),
    "parquet": ("*.parquet",),
}
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tiff")
_ITEMS = ("items.jsonl", "items.csv", "items.tsv", "items.parquet")


def read_files(
    kind: str,
    input: str | os.PathLike[str],
    *,
    file: str | None = None,
    name: str | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    rating_column: str | None = None,
    time_column: str | None = None,
    split_column: str | None = None,
    min_rating: float | None = None,
    items_file: str | None = None,
    title_column: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    **rules: Unpack[Rules],
) -> Catalog:
    """Reads one's own interactions, and what is known of the items.

    Args:
      kind: "csv" (also separated by tabs, semicolons or bars; also
        gzipped) or "parquet".
      input: the file, or a directory with one of that kind.
      file: name of the file in the directory, or a pattern (`part-*.csv`) of
        several that are parts of one table.
      name: of the catalogue; None: the file's.
      user_column: and so on: names of the columns; None to find them.
      min_rating: leave out interactions with a lower rating.
      items_file: CSV, Parquet or JSON lines with the items' identifiers;
        None for `items.csv`, `items.parquet` or `items.jsonl` beside the
        interactions, if there is one. Items that nobody has interacted with
        are left out.
      title_column: and so on: names of that file's columns; None to find
        them.
      **rules: see `assemble.assemble`.

    Raises:
      InputError: if a file is missing, cannot be read, or breaks a rule.
    """
    given = Path(input).absolute()
    root = given if given.is_dir() else given.parent
    known = _items_file(root, items_file)
    paths = _find(kind, given, file, known)
    told = {
        "user": user_column,
        "item": item_column,
        "rating": rating_column,
        "time": time_column,
        "split": split_column,
    }
    if rules.get("split") not in (None, "given") and split_column is None:
        told["split"] = ""
    need = ["user", "item"] + ["rating"] * (min_rating is not None)
    logs = [_read(kind, path, told, need, min_rating) for path in paths]
    for path, log in zip(paths, logs, strict=True):
        for column in ("times", "labels"):
            if (getattr(log, column) is None) != (
                getattr(logs[0], column) is None
            ):
                raise InputError(
                    f"Parts of one table do not all have {column}.",
                    where=path,
                )
    catalog = assemble(
        join(logs),
        name or paths[0].name.partition(".")[0],
        **rules,
    )
    if known is not None:
        content = {
            "title": title_column,
            "text": text_column,
            "image": image_column,
        }
        records = read_items(known, catalog.item_names(), content)
        catalog = dataclasses.replace(catalog, records=records)
    return catalog


def read_items(
    path: Path,
    ids: Sequence[str],
    content: dict[str, str | None] | None = None,
) -> ItemRecords:
    """Reads what a file tells of some items, in the order of `ids`.

    In CSV and Parquet, columns that are neither identifier, title,
    description nor image are attributes; JSON lines are those of
    `items.read_records`. Images are relative to the file.

    Args:
      path: a .csv, .tsv, .parquet or .jsonl file.
      ids: the items; of those that it does not tell of nothing is known.
      content: role of `columns.CONTENT` -> the name of its column, where
        somebody has told it; not of JSON lines.

    Raises:
      InputError: if it cannot be read, tells of an item twice, or of none.
    """
    places = {name: place for place, name in enumerate(ids)}
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    example = ""
    for where, name, item in _rows(path, content or {}):
        example = example or name
        place = places.get(name)
        if place is None:
            continue
        if place in found:
            raise InputError(
                "The items' file tells of an item twice.",
                where=where,
                found=repr(name),
            )
        found[place] = name, item
    if not found:
        raise InputError(
            "The items' file tells of none of the items.",
            where=path,
            expected=f"identifiers such as {ids[0]!r}",
            found=repr(example) if example else "an empty file",
        )
    records = ItemRecords([], [], [], [], [], os.fspath(path.parent))
    for place, name in enumerate(ids):
        empty: dict[str, Any] = {"attributes": {}}
        append(records, name, found.get(place, (name, empty))[1])
    _doubt_images(path, records)
    return records


def _doubt_images(path: Path, records: ItemRecords) -> None:
    """Warns of attributes whose values are names of pictures."""
    seen: collections.Counter[str] = collections.Counter()
    pictures: collections.Counter[str] = collections.Counter()
    for attributes in records.attributes:
        seen.update(attributes.keys())
        pictures.update(
            name
            for name, value in attributes.items()
            if str(value).lower().endswith(_PICTURES)
        )
    for name, count in pictures.items():
        if 2 * count > seen[name]:
            print(
                f"warning: {path.name}: {name!r} is taken as an attribute, and "
                "its values look like pictures; --image_column names the "
                "column of the pictures' files",
                file=sys.stderr,
            )


def _read(
    kind: str,
    path: Path,
    told: dict[str, str | None],
    need: Sequence[str],
    min_rating: float | None,
) -> Log:
    # "" is to be left alone, None to be looked for.
    alone = [role for role, name in told.items() if name == ""]
    if kind == "parquet":
        names = parquet.names_of(path)
    else:
        line = delimited.header(path)
        delimiter = delimited.separator(line)
        names = delimited.fields(line, delimiter)
    columns = naming.choose(names, path, given=told, need=need)
    if not columns.time:
        others = ", ".join(n for n in names if n not in columns)
        print(
            f"note: no column of {path.name} looks like that of the time"
            + (f" ({others}); --time_column names it" if others else ""),
            file=sys.stderr,
        )
    columns = columns._replace(**dict.fromkeys(alone, ""))
    if min_rating is None:
        columns = columns._replace(rating="")
    if kind == "parquet":
        return parquet.read_parquet(path, columns, min_rating=min_rating)
    return delimited.read_delimited(
        path, columns, delimiter, min_rating=min_rating
    )


def _find(
    kind: str, given: Path, file: str | None, known: Path | None
) -> list[Path]:
    """The files that are meant."""
    if given.is_file() and file is None:
        return [given]
    if not given.is_dir():
        raise InputError("There is no such input.", where=given)
    files = [p for p in sorted(given.iterdir()) if p.is_file() and p != known]
    if file is not None:
        chosen = [p for p in files if fnmatch.fnmatchcase(p.name, file)]
        if not chosen:
            raise InputError(
                "There is no such interaction file.",
                where=given / file,
                fix=nearest(file, (p.name for p in files)),
            )
        return chosen
    chosen = [
        path
        for path in files
        if path.name not in _ITEMS
        and any(fnmatch.fnmatchcase(path.name, k) for k in _KINDS[kind])
    ]
    if len(chosen) != 1:
        raise InputError(
            "It is not clear which interaction file is meant."
            if chosen
            else "The input directory has no interaction file.",
            where=given,
            expected=f"one file {_KINDS[kind][0]}",
            found=", ".join(path.name for path in chosen) or "none",
            fix="name one with --file" if chosen else None,
        )
    return chosen


def _items_file(root: Path, given: str | None) -> Path | None:
    if given is None:
        beside = (root / name for name in _ITEMS)
        return next((path for path in beside if path.is_file()), None)
    # Beside the interactions, or anywhere.
    path = next((p for p in (root / given, Path(given)) if p.is_file()), None)
    if path is None:
        raise InputError("There is no such items' file.", where=given)
    return path.absolute()


def _rows(
    path: Path, content: dict[str, str | None]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where an item stands, its identifier, and what is told of it."""
    suffixes = path.suffixes
    if ".jsonl" in suffixes:
        unread = Unread(path, "itemID", *IDS)
        for line in read_lines(path):
            item = item_of(line, path)
            unread.add(item)
            where = f"{path}, line {line.number}"
            name = first(item, ("itemID", *IDS))
            if not name:
                raise InputError(
                    "An item has no identifier.",
                    where=where,
                    expected=f"a field itemID, {', '.join(IDS)}",
                    found=", ".join(item),
                )
            yield where, name, item
        unread.tell()
    elif ".parquet" in suffixes:
        names = parquet.names_of(path)
        make = _Maker(names, path, content)
        row = 0
        for block in parquet.blocks(path):
            for values in zip(
                *(block.column(name).to_pylist() for name in names),
                strict=True,
            ):
                yield make(f"{path}, row {row}", values)
                row += 1
    else:
        yield from _csv_rows(path, content)


def _csv_rows(
    path: Path, content: dict[str, str | None]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    line = delimited.header(path)
    delimiter = delimited.separator(line)
    names = delimited.fields(line, delimiter)
    make = _Maker(names, path, content)
    lines = read_lines(path)
    next(lines, None)
    for line_ in lines:
        where = f"{path}, line {line_.number}"
        values = delimited.fields(
            text_of(line_, path, "items' file"), delimiter
        )
        if not values:
            continue
        if len(values) != len(names):
            raise InputError(
                "A line has the wrong number of fields.",
                where=where,
                expected=f"{len(names)} fields",
                found=f"{len(values)} fields",
            )
        yield make(where, values)


class _Maker:
    """Makes of a row of a table what `items.append` takes."""

    def __init__(
        self, names: Sequence[str], path: Path, content: dict[str, str | None]
    ):
        name = guess("item", names) or next(
            (name for name in names if name.lower() == "id"), ""
        )
        if not name:
            raise InputError(
                "No column looks like that of the items' identifiers.",
                where=path,
                expected="one called as item_id, id ...",
                found=", ".join(names) or "none",
            )
        self._place = list(names).index(name)
        roles = naming.choose_content(names, path, content)
        self._roles = [roles.get(name, "") for name in names]
        self._names = names
        rest = [n for n in names if n not in roles and n != name]
        said = [f"{role}: {name}" for name, role in roles.items()]
        said += [f"attributes: {', '.join(rest)}"] if rest else []
        if said:
            print(f"note: {path.name}: {'; '.join(said)}", file=sys.stderr)

    def __call__(
        self, where: str, values: Collection[Any]
    ) -> tuple[str, str, dict[str, Any]]:
        item: dict[str, Any] = {"attributes": {}}
        name = ""
        for place, value in enumerate(values):
            text = as_text(value, ", ")
            if place == self._place:
                name = text
            elif self._roles[place]:
                item[self._roles[place]] = text
            else:
                item["attributes"][self._names[place]] = text
        if not name:
            raise InputError("An item has no identifier.", where=where)
        return where, name, item
