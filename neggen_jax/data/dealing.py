"""Deals users and items to indices at random.

Tables are cut into shards of rows that follow one another. Where indices
follow popularity, or the time at which somebody came, one shard has most of
the interactions, and all others are padded to its size.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from neggen_jax.catalog import Catalog
from neggen_jax.data.items import bare_records


def deal(catalog: Catalog, seed: int = 0) -> Catalog:
    """The same catalogue with other indices; identifiers tell the old ones.

    Args:
      catalog: with any of its parts but counterfactuals.
      seed: of the order.

    Raises:
      ValueError: if it has counterfactuals.

    Returns:
      A catalogue that is to be validated. It has user identifiers and item
      records; where there were none, identifiers are the old indices.
    """
    if catalog.counterfactuals is not None:
        raise ValueError("counterfactuals are made of items that were dealt")
    rng = np.random.default_rng(seed)
    # New index -> old one.
    users = rng.permutation(catalog.num_users)
    items = rng.permutation(catalog.num_items)
    new_user, new_item = _inverse(users), _inverse(items)
    names = catalog.user_ids
    records = catalog.records
    if records is None:
        records = bare_records([str(n) for n in range(catalog.num_items)])
    return dataclasses.replace(
        catalog,
        splits={
            name: dataclasses.replace(
                part,
                users=new_user[part.users],
                items=new_item[part.items],
                offsets=None,
            )
            for name, part in catalog.splits.items()
        },
        features={
            name: dataclasses.replace(
                matrix,
                values=matrix.values[items],
                present=matrix.present[items],
            )
            for name, matrix in catalog.features.items()
        },
        records=records.only(items),
        user_ids=[names[n] if names else str(n) for n in users],
        indexed=None,
        verified="",
    )


def _inverse(order: np.ndarray) -> np.ndarray:
    out = np.empty(len(order), np.int32)
    out[order] = np.arange(len(order), dtype=np.int32)
    return out
