"""The items and users that a report shows: titles, pictures, histories."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np

from neggen_jax.catalog import Catalog, ItemRecords
from neggen_jax.data import store
from neggen_jax.errors import InputError
from neggen_jax.evaluate import SEEN
from neggen_jax.generation.backends import RequestError
from neggen_jax.generation.backends.pictures import data_url
from neggen_jax.reporting.told import Told

# Longer side of a picture in pixels, and its quality.
SIDE, QUALITY = 144, 72
# Characters of all pictures on a page; further items have none.
ROOM = 2_500_000


@dataclasses.dataclass(eq=False)
class Shop:
    """One dataset, as people would see it.

    Attributes:
      catalog: its interactions.
      records: of its items, if they are known.
      room: characters that are left for pictures.
      seen: item -> its picture, once somebody has asked.
    """

    catalog: Catalog
    records: ItemRecords | None
    room: int = dataclasses.field(default_factory=lambda: ROOM)
    seen: dict[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(
        cls,
        told: Told,
        data: str | None = None,
        catalog: Catalog | None = None,
        most: float = math.inf,
    ) -> Shop:
        """The dataset that a run was trained on.

        Args:
          told: the run.
          data: where the dataset is now, if it has moved.
          catalog: it, if it is in memory.
          most: of how many items titles and pictures are read; they come
            one after the other, some thousands in a second.

        Raises:
          InputError: it is not there any more, or another one.
        """
        path = data or told.config.get("data", {}).get("path", "")
        if not path and catalog is None:
            raise InputError(
                "The run does not tell where its dataset is.",
                where=told.directory,
                fix="name it with --data",
            )
        wanted = told.dataset["fingerprint"]
        if catalog is None:
            catalog = store.load(path, trust=True)
            if catalog.fingerprint != wanted:
                raise InputError(
                    "This is not the dataset that the run was trained on.",
                    where=path,
                    expected=wanted,
                    found=catalog.fingerprint,
                    fix="name that one with --data",
                )
        records = catalog.records
        read = records is None and catalog.num_items <= most
        # A catalogue that was in memory may be another one.
        if path and read and store.describe(path)["fingerprint"] == wanted:
            records = store.read_records(path)
        return cls(catalog, records)

    def title(self, item: int) -> str:
        """What an item is called."""
        title = self.records.titles[item] if self.records else ""
        return title.strip() or f"item {item}"

    def picture(self, item: int) -> str:
        """An item's picture as a data URL; "" if there is none to be seen."""
        if item not in self.seen:
            self.seen[item] = self._picture(item)
        url = self.seen[item]
        if len(url) > self.room:
            return ""
        self.room -= len(url)
        return url

    def _picture(self, item: int) -> str:
        records = self.records
        if records is None or not records.images[item]:
            return ""
        path = os.path.join(records.image_root, records.images[item])
        try:
            return data_url(path, SIDE, QUALITY)
        except RequestError:
            return ""

    def heldout(self, user: int, split: str = "test") -> list[int]:
        """What a user is to find."""
        return self._of(user, split)[0].tolist()

    def history(self, user: int, split: str = "test") -> list[int]:
        """What is known of a user before `split`, the latest first.

        In the order of the indices where there are no times.
        """
        parts = [self._of(user, name) for name in SEEN[split]]
        items = np.concatenate([items for items, _ in parts])
        times = np.concatenate([times for _, times in parts])
        return items[np.argsort(-times, kind="stable")].tolist()

    def _of(self, user: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        """A user's items in a split, and their times, 0 where unknown."""
        part = self.catalog.splits[split]
        # Sorted by user, once validated.
        first, last = np.searchsorted(part.users, [user, user + 1])
        items = np.asarray(part.items[first:last])
        if part.timestamps is None:
            return items, np.zeros(len(items), np.int64)
        return items, np.asarray(part.timestamps[first:last], np.int64)
