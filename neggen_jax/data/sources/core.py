"""The k-core of interactions: nobody in it has fewer than k.

`data/sources/assemble.py` asks for it before it splits.
"""

from __future__ import annotations

import numpy as np

from neggen_jax.errors import InputError


def core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Finds the largest part in which all users and items have k rows.

    Taking away an item may leave a user with fewer than k, and so on: it is
    done until it holds. The order in which that happens does not matter.

    Args:
      users: int `[n]`, not negative.
      items: likewise.
      k: fewest interactions of a user, and of an item; of 1 or less, all
        rows are in it.

    Returns:
      Mask `[n]` of the rows that are in it.

    Raises:
      InputError: if there is no such part.
    """
    rows = np.arange(len(users))
    while k > 1 and len(rows):
        often = np.ones(len(rows), np.bool_)
        for column in (users[rows], items[rows]):
            often &= np.bincount(column)[column] >= k
        if often.all():
            break
        rows = rows[often]
    if not len(rows):
        raise InputError(
            f"No interactions are left of the {k}-core.",
            where=f"--core={k}",
            found=f"{len(users):,} interactions before",
            fix="ask for a smaller one; 0 leaves them as they are",
        )
    inside = np.zeros(len(users), np.bool_)
    inside[rows] = True
    return inside
