"""A dataset that grows: what is known, and what comes to it.

`launch/prepare.py --extends=DIR` makes a new dataset directory of an old one,
which stays as it is, and of what a source brings:

- Users and items of the old one keep their indices; others come behind them,
  in the order of their identifiers.
- All old interactions, whatever split they were in, are train: they are the
  past. Those of the source that are not among them are split as always.
- Old items keep records and vectors. New ones are encoded by the encoder as
  the old dataset had it, and later standardised by the old mean and scale.

`sources/assemble.py` asks for the first two, `prepare.py` for the third.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.catalog import SPLITS, Catalog, Features, ItemRecords
from neggen_jax.data import store
from neggen_jax.data.features import ENCODERS, encode_new
from neggen_jax.data.items import bare_records
from neggen_jax.data.sources.log import Column, Log, join
from neggen_jax.errors import InputError

# What the description of a dataset says of its attributes, which
# `launch/generate.py` reads.
_TOLD = ("image_attributes", "text_attributes", "told")


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """The dataset that is extended.

    Attributes:
      directory: of it.
      catalog: with the items' records.
      source: how it was made.
    """

    directory: Path
    catalog: Catalog
    source: Mapping[str, Any]

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Known:
        """Opens a dataset directory.

        Raises:
          InputError: see `store.load`.
        """
        path = Path(directory).absolute()
        catalog = store.load(path, records=True)
        return cls(path, catalog, store.describe(path)["source"])

    @functools.cached_property
    def users(self) -> list[str]:
        """The users' identifiers."""
        return self.catalog.user_names()

    @functools.cached_property
    def items(self) -> list[str]:
        """The items' identifiers."""
        return self.catalog.item_names()

    def about(self) -> dict[str, Any]:
        """For the description of the new dataset directory."""
        told = {
            name: self.source[name] for name in _TOLD if name in self.source
        }
        return told | {
            "extends": {
                "input": os.fspath(self.directory),
                "fingerprint": self.catalog.fingerprint,
                "users": self.catalog.num_users,
                "items": self.catalog.num_items,
            }
        }

    def unseen(self, log: Log) -> Log:
        """The interactions that the dataset does not have yet.

        Raises:
          InputError: if there are none, or nobody in them is known.
        """
        users = self._places(log.users, self.users, "users")
        items = self._places(log.items, self.items, "items")
        size = self.catalog.num_items
        parts = [self.catalog.splits[split] for split in SPLITS]
        pairs = [
            part.users.astype(np.int64) * size + part.items for part in parts
        ]
        mine = np.where((users < 0) | (items < 0), -1, users * size + items)
        left = log.only(~np.isin(mine, np.concatenate(pairs)))
        if not len(left):
            raise InputError(
                "There are no interactions that the dataset does not have.",
                where=f"--extends={self.directory}",
                found=f"{len(log):,} interactions, all of them known",
            )
        return left

    def _places(
        self, column: Column, names: Sequence[str], what: str
    ) -> np.ndarray:
        """Indices of a column's rows in the dataset; -1 for new ones."""
        import pyarrow as pa
        from pyarrow import compute

        values = pa.array(names, pa.string())
        places = compute.index_in(column.names, value_set=values)
        out = places.fill_null(-1).to_numpy().astype(np.int64)[column.codes]
        if len(out) and out.max() < 0:
            raise InputError(
                f"None of the {what} is in the dataset that is extended.",
                where=f"--extends={self.directory}",
                expected=f"identifiers as there, such as {names[0]!r}",
                found=f"such as {column.names[int(column.codes[0])]}",
                fix="call users and items as they were called, or prepare a "
                "dataset of its own",
            )
        return out

    def before(self, log: Log) -> Log:
        """All interactions of the dataset, as train, and then a log's.

        The first names of users and items are those of the dataset, by
        index.

        Raises:
          InputError: if the log does not tell when, and the dataset does.
        """
        import pyarrow as pa

        parts = [self.catalog.splits[split] for split in SPLITS]
        users, items = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("users", "items")
        )
        stamps = [p.timestamps for p in parts if p.timestamps is not None]
        times = np.concatenate(stamps) if len(stamps) == len(parts) else None
        if times is not None and log.times is None:
            raise InputError(
                "The new interactions have no times, those of the dataset do.",
                where=f"--extends={self.directory}",
                fix="name their column, as with --time_column",
            )
        if times is None:
            log = dataclasses.replace(log, times=None)
        past = Log(
            Column(users, pa.array(self.users, pa.string())),
            Column(items, pa.array(self.items, pa.string())),
            times,
            np.zeros(len(users), np.int8),
        )
        return join([past, log])


def named(codes: np.ndarray, records: ItemRecords | None, size: int) -> Column:
    """A column of a source that numbers items, by their identifiers.

    Args:
      codes: int32 `[n]`, the source's numbers.
      records: of the source; without, the numbers are the identifiers.
      size: how many items there are.

    Raises:
      InputError: if two items have the same identifier.
    """
    import pyarrow as pa

    ids = _ids(records, size)
    if len(set(ids)) != len(ids):
        (twice, _), *_ = collections.Counter(ids).most_common(1)
        raise InputError(
            "Two items have the same identifier.",
            where="items.jsonl",
            found=repr(twice),
        )
    return Column(codes, pa.array(ids, pa.string()))


def _ids(records: ItemRecords | None, size: int) -> list[str]:
    return [*map(str, range(size))] if records is None else records.ids


def arranged(
    catalog: Catalog,
    records: ItemRecords | None,
    features: Mapping[str, Features],
) -> Catalog:
    """Gives a catalogue's items what a source tells of them in its own order.

    Args:
      catalog: of an extended dataset.
      records: of the source.
      features: of the source.

    Returns:
      The catalogue; items that the source does not tell of have nothing.
    """
    sizes = [len(matrix.values) for matrix in features.values()]
    ids = _ids(records, max(sizes, default=0))
    rows = {name: row for row, name in enumerate(ids)}
    names = catalog.item_names()
    places = np.array([rows.get(name, -1) for name in names])
    here = np.flatnonzero(places >= 0)
    moved = {}
    for name, matrix in features.items():
        values = np.zeros((len(names), matrix.dim), np.float32)
        values[here] = matrix.values[places[here]]
        moved[name] = Features(
            values, np.asarray(values.any(axis=1)), matrix.manifest
        )
    if records is not None:
        found = {name: records.only([row]) for name, row in rows.items()}
        out = bare_records(names)
        for place in here:
            one = found[names[place]]
            for column in ("titles", "texts", "attributes", "images"):
                getattr(out, column)[place] = getattr(one, column)[0]
        records = dataclasses.replace(out, image_root=records.image_root)
    return dataclasses.replace(
        catalog, records=records or catalog.records, features=moved
    )


def with_content(
    known: Known,
    catalog: Catalog,
    own: Mapping[str, Any],
    models: Mapping[str, str | None],
    bad_images: str,
) -> Catalog:
    """Gives a catalogue the content of the dataset that it extends.

    Args:
      known: that dataset.
      catalog: whose first users and items are those of the dataset; with
        records and features as its source has them.
      own: modalities of which vectors were given with `--embedding`.
      models: modality -> where the weights of a neural encoder are now.
      bad_images: see `features.extract`.

    Raises:
      InputError: if new items cannot be given vectors like the known ones'.
    """
    first, last = known.catalog.num_items, catalog.num_items
    records = catalog.records
    if records is None:
        records = bare_records(catalog.item_names())
    new = records.only(range(first, last))
    features = {}
    for name, matrix in known.catalog.features.items():
        made = name in ENCODERS and matrix.manifest["encoder"] in ENCODERS[name]
        if first == last:
            features[name] = matrix
            continue
        if made and name not in own:
            rows = encode_new(
                matrix,
                name,
                known.catalog.records,
                new,
                models.get(name),
                bad_images,
            )
        else:
            rows = _given(catalog, name, matrix)[first:]
        features[name] = _appended(matrix, rows)
    kept = known.catalog.records
    if kept is None and catalog.records is None:
        return dataclasses.replace(catalog, features=features)
    kept = kept or bare_records(known.items)
    return dataclasses.replace(
        catalog, features=features, records=_joined(kept, new)
    )


def _given(catalog: Catalog, name: str, like: Features) -> np.ndarray:
    """Vectors that came with the new items."""
    matrix = catalog.features.get(name)
    if matrix is None:
        raise InputError(
            f"The new items have no {name} vectors.",
            where=f"modality {name!r}",
            expected=f"vectors of width {like.dim}, like those of the dataset, "
            "which were given too",
            fix=f"give them with --embedding={name}=FILE, zero rows for items "
            "without",
        )
    if matrix.dim != like.dim:
        raise InputError(
            f"The {name} vectors of the new items are of another width.",
            where=f"modality {name!r}",
            expected=f"{like.dim}, as the dataset has",
            found=matrix.dim,
            fix="make them with the encoder that made the others, or prepare "
            "a dataset of its own",
        )
    return matrix.values


def _appended(matrix: Features, rows: np.ndarray) -> Features:
    values = np.concatenate([matrix.values, rows])
    present = np.concatenate([matrix.present, rows.any(axis=1)])
    manifest = {
        **matrix.manifest,
        "items": len(values),
        "absent": int((~present).sum()),
        "learned_from": matrix.learned_from,
    }
    return Features(values, present, manifest)


def _joined(first: ItemRecords, then: ItemRecords) -> ItemRecords:
    """Records one after another, with one root for all images."""
    roots = [part.image_root for part in (first, then) if any(part.images)]
    root = os.path.commonpath(roots) if roots else ""

    def images(part: ItemRecords) -> list[str]:
        inside = os.path.relpath(part.image_root or ".", root or ".")
        return [
            os.path.normpath(os.path.join(inside, image)) if image else ""
            for image in part.images
        ]

    return ItemRecords(
        ids=first.ids + then.ids,
        titles=first.titles + then.titles,
        texts=first.texts + then.texts,
        attributes=first.attributes + then.attributes,
        images=images(first) + images(then),
        image_root=root,
    )
