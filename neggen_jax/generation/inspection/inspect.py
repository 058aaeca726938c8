"""A page to look at: what was written of some items, and figures of all.

`launch/inspect_records.py` calls `inspect`. A set that is being written can
be looked at, too. Figures are made in `summary.py` and laid out in `page.py`;
here is what they are given.
"""

from __future__ import annotations

import array
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.catalog import Catalog
from neggen_jax.data import counterfactuals as sets
from neggen_jax.data import store
from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.backends import RequestError
from neggen_jax.generation.backends.pictures import data_url
from neggen_jax.generation.inspection import page, summary
from neggen_jax.generation.inspection.page import Page, Shown
from neggen_jax.generation.records import Record
from neggen_jax.generation.sets import files, merging

# Longer side of a picture, in pixels.
THUMBNAIL = 320
# Failed records that are listed of each kind of reason.
LISTED = 20
# Of a manifest: what the figures tell better, and what tells a person nothing.
_UNTOLD = {
    "format",
    "items",
    "source",
    "shard",
    "shards",
    "counts",
    "attempts",
    "records",
    "encoding",
    "probes",
}


def inspect(
    directory: str | os.PathLike[str],
    set_name: str | None = None,
    *,
    items: int = 20,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Writes a page about a set.

    Args:
      directory: of the dataset.
      set_name: of the set; by default the only one that there is.
      items: how many are shown, drawn at random. If records have failed, at
        least a quarter of the items are such of which one did.
      seed: another one shows others.
      output: file to write; by default `inspect.html` beside the records.

    Returns:
      The file, and the figures on it.

    Raises:
      InputError: if there is no such set, it has no records, they belong to
        other items or cannot be read, or the page cannot be written.
    """
    directory = Path(directory).absolute()
    path = _locate(directory, set_name)
    if items < 0:
        raise InputError(
            "A page cannot show so many items.", expected=">= 0", found=items
        )
    content = _collect(directory, path, items, seed)
    target = Path(output) if output else path / "inspect.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page.render(content), "utf-8")
    except OSError as error:
        raise InputError(
            "The page cannot be written.",
            where=target,
            found=error.strerror,
            fix="name another file with --output",
        ) from error
    return target, content.figures


def read(path: Path) -> Iterator[tuple[Path, int, Record]]:
    """Yields (file, first byte, record) of a set, each task once.

    Records of a complete set are in order; those of one that is being
    written, as they came. Of a task that was tried again, only the last one
    counts.

    Args:
      path: directory of the set.

    Raises:
      InputError: if there are no records, or a line is not one.
    """
    merged = path / sets.RECORDS
    if (path / sets.MANIFEST).exists() and merged.exists():
        for at, record, _ in records.read(merged, torn=True):
            yield merged, at, record
        return
    journals = sorted(path.glob("records-*-of-*.jsonl"))
    if not any(file.stat().st_size for file in journals):
        raise InputError(
            "The set has no records yet.",
            where=path,
            fix="write some: launch/generate.py",
        )
    for file in journals:
        last = {r.key: at for at, r, _ in records.read(file, torn=True)}
        for at, record, _ in records.read(file, torn=True):
            # It may have grown meanwhile.
            if last.get(record.key) == at:
                yield file, at, record


# -- what goes on the page ---------------------------------------------------


def _locate(directory: Path, set_name: str | None) -> Path:
    if set_name is None:
        folder = directory / sets.FOLDER
        found = [p.name for p in folder.glob("*") if p.is_dir()]
        if len(found) > 1:
            raise InputError(
                "The dataset has several sets of counterfactuals.",
                where=folder,
                found=", ".join(sorted(found)),
                fix="name one with --set",
            )
        set_name = found[0] if found else "attributes"
    path = sets.locate(directory, set_name)
    if not path.is_dir():
        sets.read_manifest(directory, set_name)  # raises, and says which are
    return path


def _collect(directory: Path, path: Path, number: int, seed: int) -> Page:
    catalog = store.load(directory, records=True)
    source = store.items_digest(store.describe(directory))
    complete = (path / sets.MANIFEST).exists()
    settings: dict[str, Any] = {}
    if complete:
        settings = sets.read_manifest(directory, path.name)
    elif begun := sorted(path.glob("shard-*-of-*.json")):
        settings = files.read_json(begun[0])
    files.check_source(path, settings, source)
    made, notes = None, []
    try:
        made = sets.read(directory, path.name, catalog.num_items, source)
    except InputError as error:
        notes.append(f"Without similarities: {error.problem}")
    index = _Index(catalog.num_items, seed)
    figures = summary.summary(index.seen(read(path)), made, seed=seed)
    if not complete:
        notes.insert(0, "The set is not complete: figures are of what is there")
    about = [
        (name.replace("_", " "), _told(value))
        for name, value in settings.items()
        if name not in _UNTOLD and value not in ("", None, [], {})
    ]
    return Page(
        title=f'"{path.name}" of {catalog.name}',
        about=tuple(about),
        notes=tuple(notes),
        figures=figures,
        items=tuple(_show(catalog, index, i) for i in index.choose(number)),
        having_failed=len(index.failed_items),
        failures=index.failures,
    )


class _Index:
    """Where the records are of which a page may want to show some."""

    def __init__(self, num_items: int, seed: int):
        self._num_items, self._seed = num_items, seed
        self._files: list[Path] = []
        self._rows = array.array("q")  # item, file, first byte, failed
        self.failures: dict[str, list[Record]] = {}

    def seen(
        self, found: Iterator[tuple[Path, int, Record]]
    ) -> Iterator[Record]:
        """Passes records on, and notes where they are."""
        for file, at, record in found:
            if record.item >= self._num_items:
                raise InputError(
                    "A record is of an item that the dataset does not have.",
                    where=file,
                    expected=f"items below {self._num_items}",
                    found=record.item,
                )
            if file not in self._files[-1:]:
                self._files.append(file)
            failed = not record.accepted
            row = record.item, len(self._files) - 1, at, failed
            self._rows.extend(row)
            kind = merging.reason_kind(record.error)
            if failed and len(self.failures.setdefault(kind, [])) < LISTED:
                self.failures[kind].append(record)
            yield record

    @functools.cached_property
    def _table(self) -> np.ndarray:
        return np.array(self._rows, np.int64).reshape(-1, 4)

    @property
    def failed_items(self) -> np.ndarray:
        """Items of which a record failed."""
        table = self._table
        return np.unique(table[table[:, 3] != 0, 0])

    def choose(self, number: int) -> list[int]:
        """Random items, those that are all right first."""
        failed = self.failed_items
        good = np.setdiff1d(self._table[:, 0], failed)
        # What is rare is shown more often than it would come up.
        rate = len(failed) / max(1, len(failed) + len(good))
        bad = min(len(failed), math.ceil(number * max(rate, 0.25)))
        rng = np.random.default_rng(self._seed)
        some = rng.permutation(good)[: number - bad]
        others = rng.permutation(failed)[:bad]
        return [*np.sort(some).tolist(), *np.sort(others).tolist()]

    def of(self, item: int) -> tuple[Record, ...]:
        """All records of an item."""
        found = []
        table = self._table
        for _, file, at, _ in table[table[:, 0] == item]:
            with self._files[file].open("rb") as lines:
                lines.seek(at)
                found.append(records.parse(lines.readline(), lines.name))
        return tuple(sorted(found, key=lambda record: record.key))


def _show(catalog: Catalog, index: _Index, item: int) -> Shown:
    found, known = index.of(item), catalog.records
    title, picture, trouble = "", "", ""
    if known is not None:
        title = known.titles[item]
        if known.images[item]:
            file = os.path.join(known.image_root, known.images[item])
            try:
                picture = data_url(file, THUMBNAIL, 80)
            except RequestError as error:
                # A page may be sent away: it names no file of this machine.
                cause = error.__cause__
                reason = getattr(cause, "strerror", None)
                reason = reason or type(cause).__name__
                trouble = f"The picture cannot be read: {reason}"
    return Shown(item, found[0].id, title, picture, trouble, found)


def _told(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, dict):
        return "; ".join(f"{k}: {_told(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value)) or "none"
    return str(value)
