"""What kind of thing each item is, for measures of how varied lists are.

Read from the items' records when a run is evaluated, and when counterfactuals
are written, which leave the kind alone; nothing that trains sees it.
"""

from __future__ import annotations

import numpy as np

from neggen_jax.catalog import ItemRecords
from neggen_jax.errors import InputError, nearest

# What an item's kind is usually called; the first that exists is taken.
KINDS = (
    "category",
    "product_type",
    "product_group",
    "type",
    "department",
    "kind",
)


def categories(
    records: ItemRecords | None, name: str = ""
) -> np.ndarray | None:
    """Numbers the categories of a catalogue.

    Args:
      records: of the items, if there are any.
      name: the attribute to take; "" takes the first of `KINDS` that an
        item has.

    Returns:
      int64 `[num_items]`, -1 for an item without a category; None if there
      are no records, or none of `KINDS` is among their attributes.

    Raises:
      InputError: if no item has an attribute that was asked for by name.
    """
    known = {
        attribute
        for item in (records.attributes if records else ())
        for attribute, value in item.items()
        if value.strip()
    }
    if name and name not in known:
        raise InputError(
            f"No item has an attribute {name!r}.",
            where="config.evaluate.category",
            fix=nearest(name, known)
            if known
            else "leave it out: the dataset has no records with attributes",
        )
    chosen = name or next((kind for kind in KINDS if kind in known), "")
    if records is None or not chosen:
        return None
    words = [item.get(chosen, "").strip() for item in records.attributes]
    numbers = {word: n for n, word in enumerate(sorted({*words} - {""}))}
    return np.array([numbers.get(word, -1) for word in words], np.int64)
