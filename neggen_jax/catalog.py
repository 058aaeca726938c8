"""Catalog: one dataset in memory - what every other room is given.

A `Catalog` holds the interactions by split, one feature matrix per modality
and, when asked for, the items' own records (title, text, attributes, image
references) and counterfactuals of them (`data/counterfactuals.py`). Where it
comes from is the business of `neggen_jax/data/`; what is trained on it, of
everything else.

It is validated once, at the border: sources call `Catalog.validate` before
`data/store.py` writes a dataset directory, and the directory carries the
fingerprint of what was validated. Reading it back checks the fingerprint and
not the rules again.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from neggen_jax.adjacency import Adjacency, Index, ordered
from neggen_jax.data.counterfactuals import Counterfactuals, Rewritten
from neggen_jax.errors import InputError

__all__ = [
    "SPLITS",
    "Catalog",
    "Counterfactuals",
    "Features",
    "Interactions",
    "ItemRecords",
    "Rewritten",
]

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """Columns of one split; sorted by user and then item, once validated.

    Attributes:
      users: int32 `[n]`, in `[0, num_users)`.
      items: int32 `[n]`, in `[0, num_items)`.
      timestamps: int64 `[n]`, or None where the source has none. The unit is
        the source's (seconds, days or a bare order).
      offsets: int64 `[num_users + 1]`, where each user's begin; None where
        nobody has looked yet.
    """

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None = None
    offsets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def sorted(self) -> Interactions:
        """The same, by user and then item."""
        if ordered(self.users, self.items):
            return self
        order = np.lexsort((self.items, self.users))
        times = self.timestamps
        return Interactions(
            self.users[order],
            self.items[order],
            None if times is None else times[order],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """One modality's vectors.

    Attributes:
      values: float32 `[num_items, f]`; rows of absent items are zero.
      present: bool `[num_items]`; False where the item has no such content.
      manifest: how `values` came about (encoder, version, parameters,
        checksum); see `data/features.py`.
    """

    values: np.ndarray
    present: np.ndarray
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Width of one vector."""
        return self.values.shape[1]

    @property
    def learned_from(self) -> int:
        """How many of the items, from the first on, shaped the vectors.

        All, but of a dataset that was extended: encoder, mean and scale are
        those of the items that were there at first.
        """
        return int(self.manifest.get("learned_from", len(self.values)))

    @property
    def learned(self) -> tuple[np.ndarray, np.ndarray]:
        """`values` and `present` of those items."""
        first = slice(self.learned_from)
        return self.values[first], self.present[first]

    def release(self) -> None:
        """Gives back the memory of a mapped file, which can be read again."""
        mapped: Any = self.values
        while isinstance(mapped, np.ndarray):
            mapped = mapped.base
        # Of one that is written to, changes might be lost.
        if isinstance(mapped, mmap.mmap) and not self.values.flags.writeable:
            mapped.madvise(mmap.MADV_DONTNEED)


@dataclasses.dataclass(frozen=True, eq=False)
class ItemRecords:
    """What a person would know of each item; row number = item index.

    Attributes:
      ids: the source's own identifiers.
      titles: short names; "" where there is none.
      texts: descriptions; "" where there is none.
      attributes: name -> value for each item; {} where there is none.
      images: image files relative to `image_root`; "" where there is none.
      image_root: directory that `images` are relative to.
    """

    ids: list[str]
    titles: list[str]
    texts: list[str]
    attributes: list[dict[str, str]]
    images: list[str]
    image_root: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, rows: Iterable[int]) -> ItemRecords:
        """Some of the items, in that order."""
        rows = [*rows]
        columns: dict[str, Any] = {
            name: [getattr(self, name)[row] for row in rows]
            for name in ("ids", "titles", "texts", "attributes", "images")
        }
        return dataclasses.replace(self, **columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """One dataset.

    Attributes:
      name: short name, used in results and plots.
      num_users: users are `0 .. num_users - 1`.
      num_items: items are `0 .. num_items - 1`.
      splits: "train", "valid" and "test" -> `Interactions`.
      features: modality name -> `Features`; any number, also none.
      records: the items' own records, when they were asked for.
      user_ids: the source's own user identifiers, or None if they are the
        indices themselves.
      counterfactuals: of the items, when a set of them was asked for.
      indexed: the train interactions sorted both ways, where that was done
        before; see `index`.
      verified: the fingerprint, where somebody else has found it.
    """

    name: str
    num_users: int
    num_items: int
    splits: Mapping[str, Interactions]
    features: Mapping[str, Features] = dataclasses.field(default_factory=dict)
    records: ItemRecords | None = None
    user_ids: list[str] | None = None
    counterfactuals: Counterfactuals | None = None
    indexed: Index | None = None
    verified: str = ""

    @property
    def train(self) -> Interactions:
        """The interactions that may be learned from."""
        return self.splits["train"]

    @functools.cached_property
    def index(self) -> Index:
        """The train interactions by user and by item.

        They are called by their positions in `train`.
        """
        if self.indexed is not None:
            return self.indexed
        train = self.train
        return Index.make(
            train.users, train.items, self.num_users, self.num_items
        )

    def user_names(self) -> list[str]:
        """The users' identifiers, by index; see `user_ids`."""
        if self.user_ids is not None:
            return self.user_ids
        return [str(user) for user in range(self.num_users)]

    def item_names(self) -> list[str]:
        """The items' identifiers, by index; indices where nobody knows any."""
        if self.records is not None:
            return self.records.ids
        return [str(item) for item in range(self.num_items)]

    def by_user(self, split: str) -> Adjacency:
        """The interactions of a split by user.

        They are called by their positions in it.
        """
        part = self.splits[split]
        if part.offsets is not None:
            return Adjacency(part.offsets, part.items)
        return Adjacency.make(part.users, part.items, self.num_users)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything that training and evaluation can see.

        Covers sizes, interactions and feature vectors; not the name, nor
        the records, which no training step reads. Counterfactuals have a
        fingerprint of their own.
        """
        if self.verified:
            return self.verified
        digest = hashlib.sha256()
        digest.update(
            json.dumps([int(self.num_users), int(self.num_items)]).encode()
        )
        for split in SPLITS:
            part = self.splits[split]
            digest.update(f"{split}:{len(part)}".encode())
            digest.update(_raw(part.users, np.int32))
            digest.update(_raw(part.items, np.int32))
            if part.timestamps is not None:
                digest.update(_raw(part.timestamps, np.int64))
        for modality in sorted(self.features):
            matrix = self.features[modality]
            digest.update(f"{modality}:{matrix.values.shape}".encode())
            digest.update(_raw(matrix.values, np.float32))
            digest.update(_raw(matrix.present, np.bool_))
            if matrix.learned_from < len(matrix.values):
                digest.update(f"learned:{matrix.learned_from}".encode())
        return digest.hexdigest()[:32]

    @property
    def identity(self) -> str:
        """The fingerprint, and that of the counterfactuals beside it."""
        parts = [self.fingerprint]
        if self.counterfactuals is not None:
            parts.append(self.counterfactuals.fingerprint)
        return "-".join(parts)

    def popularity(self) -> np.ndarray:
        """Number of train interactions of each item, int64 `[num_items]`."""
        return self.index.by_item.degrees

    def validate(self) -> Catalog:
        """Checks every rule that the rest of the package relies on.

        Returns:
          The catalogue itself; with its interactions sorted, if they are not.

        Raises:
          InputError: naming the first rule that does not hold, and where.
        """
        if self.num_users < 1 or self.num_items < 2:
            raise InputError(
                f"The catalogue {self.name!r} is too small to rank.",
                expected="at least 1 user and 2 items",
                found=f"{self.num_users} users, {self.num_items} items",
            )
        for split in SPLITS:
            _validate_split(self, split)
        _validate_across_splits(self)
        for modality in self.features:
            _validate_features(self, modality)
        if self.records is not None:
            _validate_records(self)
        if self.counterfactuals is not None:
            self.counterfactuals.validate(self.num_items)
        splits = {name: part.sorted() for name, part in self.splits.items()}
        if all(splits[name] is part for name, part in self.splits.items()):
            return self
        return dataclasses.replace(self, splits=splits, indexed=None)


def _raw(column: np.ndarray, dtype: type) -> memoryview:
    return np.ascontiguousarray(column, dtype).data


def _validate_split(catalog: Catalog, split: str) -> None:
    if split not in catalog.splits or not len(catalog.splits[split]):
        raise InputError(
            f"The split {split!r} is empty.",
            where=f"catalogue {catalog.name!r}",
            expected="at least one interaction in each of " + ", ".join(SPLITS),
            found={s: len(p) for s, p in catalog.splits.items()},
            fix="split the interactions again, or check the split column",
        )
    part = catalog.splits[split]
    columns = {"items": part.items, "timestamps": part.timestamps}
    for name, column in columns.items():
        if column is not None and column.shape != part.users.shape:
            raise InputError(
                f"Columns of the split {split!r} differ in length.",
                where=name,
                expected=part.users.shape,
                found=column.shape,
            )
    for name, column, size in (
        ("users", part.users, catalog.num_users),
        ("items", part.items, catalog.num_items),
    ):
        low, high = int(column.min()), int(column.max())
        if low < 0 or high >= size:
            bad = low if low < 0 else high
            row = int(np.flatnonzero(column == bad)[0])
            raise InputError(
                f"Unknown id in the column {name!r} of {split!r}.",
                where=f"interaction {row} of the split",
                expected=f"an index in [0, {size})",
                found=bad,
            )


def _validate_across_splits(catalog: Catalog) -> None:
    keys, origin = [], []
    for number, split in enumerate(SPLITS):
        part = catalog.splits[split]
        keys.append(part.users.astype(np.int64) * catalog.num_items)
        keys[-1] += part.items
        origin.append(np.full(len(part), number, np.int8))
    key, split_of = np.concatenate(keys), np.concatenate(origin)
    order = np.argsort(key, kind="stable")
    same = np.flatnonzero(key[order][1:] == key[order][:-1])
    if same.size:
        first, second = order[same[0]], order[same[0] + 1]
        user, item = divmod(int(key[first]), catalog.num_items)
        raise InputError(
            "The same user and item stand in the interactions twice.",
            where=f"user {user}, item {item}, splits "
            f"{SPLITS[split_of[first]]!r} and {SPLITS[split_of[second]]!r}",
            expected="each (user, item) pair once over all splits",
            found=f"{same.size} repeated pairs",
            fix="prepare with --duplicates=first to keep the first of each",
        )
    degree = np.bincount(catalog.train.users, minlength=catalog.num_users)
    for split in SPLITS[1:]:
        users = catalog.splits[split].users
        cold = np.unique(users[degree[users] == 0])
        if cold.size:
            raise InputError(
                f"{cold.size} users of {split!r} have no train interaction.",
                where=f"users {cold[:5].tolist()}",
                expected="every evaluated user to have train interactions",
                fix="prepare with --cold_users=drop to leave them out",
            )
    full = np.flatnonzero(degree >= catalog.num_items)
    if full.size:
        raise InputError(
            "A user has interacted with every item: no negative exists.",
            where=f"user {int(full[0])}",
            expected=f"fewer than {catalog.num_items} train items",
            fix="remove such users",
        )


def _validate_features(catalog: Catalog, modality: str) -> None:
    where = f"features of the modality {modality!r}"
    matrix = catalog.features[modality]
    if matrix.values.ndim != 2 or len(matrix.values) != catalog.num_items:
        raise InputError(
            "A feature matrix does not have one row per item.",
            where=where,
            expected=f"shape ({catalog.num_items}, f)",
            found=f"shape {matrix.values.shape}",
            fix="rows must be in the order of the item indices",
        )
    if matrix.present.shape != (catalog.num_items,):
        raise InputError(
            "The mask of present items has the wrong length.",
            where=where,
            expected=(catalog.num_items,),
            found=matrix.present.shape,
        )
    finite, nonzero = np.empty((2, catalog.num_items), np.bool_)
    # By blocks: of a mapped matrix little is in memory at a time.
    for start in range(0, catalog.num_items, 4096):
        block = slice(start, start + 4096)
        finite[block] = np.isfinite(matrix.values[block]).all(axis=1)
        nonzero[block] = (matrix.values[block] != 0).any(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise InputError(
            f"{bad.size} feature rows hold NaN or infinity.",
            where=f"{where}, items {bad[:5].tolist()}",
            expected="finite values",
            fix="extract the features again, or mark the items absent",
        )
    wrong = np.flatnonzero(nonzero != matrix.present)
    if wrong.size:
        item = int(wrong[0])
        raise InputError(
            f"{wrong.size} feature rows contradict the mask of present items.",
            where=f"{where}, item {item}",
            expected="a zero row exactly where the item is marked absent",
            found=f"present={bool(matrix.present[item])}, "
            f"zero={not nonzero[item]}",
            fix="mark items without content as absent",
        )
    if not matrix.present.any():
        raise InputError(
            "No item has this modality.",
            where=where,
            fix="leave the modality out",
        )


def _validate_records(catalog: Catalog) -> None:
    records = catalog.records
    assert records is not None
    for name in ("ids", "titles", "texts", "attributes", "images"):
        length = len(getattr(records, name))
        if length != catalog.num_items:
            raise InputError(
                "The item records do not cover the items.",
                where=f"records.{name}",
                expected=f"{catalog.num_items} entries",
                found=f"{length} entries",
            )
    if len(set(records.ids)) != len(records.ids):
        ((twice, _),) = collections.Counter(records.ids).most_common(1)
        raise InputError(
            "Two items have the same identifier.",
            where="records.ids",
            found=repr(twice),
        )
