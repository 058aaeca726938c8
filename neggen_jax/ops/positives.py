"""Each user's sorted positives, and two exact queries over them.

Membership and the k-th non-member are both binary searches, branch-free and
of fixed length, so that negatives are drawn on the device for a whole batch
at once and are *never* a train positive of their user.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.errors import InputError
from neggen_jax.partition import Partition


@flax.struct.dataclass
class Positives:
    """Sorted positives by user.

    Attributes:
      indptr: int32 `[num_users + 1]`.
      items: int32 `[n]`, ascending within each user.
      num_items: items that exist; candidates are `0 .. num_items - 1`.
      depth: binary-search steps that the longest row needs.
    """

    indptr: jax.Array
    items: jax.Array
    num_items: int = flax.struct.field(pytree_node=False)
    depth: int = flax.struct.field(pytree_node=False)


def fits_int32(count: int, what: str) -> None:
    """Refuses more entries than an int32 offset can point at.

    Raises:
      InputError: if so.
    """
    if count >= 2**31:
        raise InputError(
            f"There are too many {what} for one table.",
            expected="fewer than 2**31 on each shard",
            found=count,
        )


def make_positives(
    users: np.ndarray,
    items: np.ndarray,
    num_users: int,
    num_items: int,
    partition: Partition,
) -> Positives:
    """Sorts (user, item) pairs into rows."""
    fits_int32(len(items), "positives")
    order = np.lexsort((items, users))
    degree = np.bincount(users, minlength=num_users)
    indptr = np.concatenate([[0], np.cumsum(degree)]).astype(np.int32)
    return Positives(
        indptr=partition.put(indptr, None),
        items=partition.put(items[order].astype(np.int32), None),
        num_items=num_items,
        depth=int(degree.max()).bit_length(),
    )


def abstract_positives(
    count: int,
    num_users: int,
    num_items: int,
    partition: Partition,
    *,
    longest: int,
) -> Positives:
    """The shapes of what `make_positives` makes.

    Args:
      count: of the pairs.
      num_users: that have a row.
      num_items: that exist.
      partition: the mesh.
      longest: positives of the user who has most.
    """
    fits_int32(count, "positives")
    return Positives(
        indptr=partition.abstract((num_users + 1,), np.int32, None),
        items=partition.abstract((count,), np.int32, None),
        num_items=num_items,
        depth=longest.bit_length(),
    )


def _count_while(positives: Positives, users: jax.Array, below) -> jax.Array:
    """Length of each row's longest prefix on which `below(k, item)` holds."""
    start = positives.indptr[users]
    low, high = jnp.zeros_like(start), positives.indptr[users + 1] - start
    for _ in range(positives.depth):
        active = low < high
        middle = (low + high) // 2
        go_up = below(middle, positives.items[start + middle]) & active
        low = jnp.where(go_up, middle + 1, low)
        high = jnp.where(active & ~go_up, middle, high)
    return low


def contains(
    positives: Positives, users: jax.Array, items: jax.Array
) -> jax.Array:
    """Whether each item is a positive of each user.

    Args:
      positives: rows to search.
      users: int32, any shape.
      items: int32, the same shape.

    Returns:
      bool, the same shape.
    """
    rank = _count_while(positives, users, lambda _, item: item < items)
    end = positives.indptr[users + 1]
    at = positives.indptr[users] + rank
    found = positives.items[jnp.minimum(at, positives.items.size - 1)] == items
    return found & (at < end)


def num_negatives(positives: Positives, users: jax.Array) -> jax.Array:
    """Number of items that are not a positive of each user."""
    degree = positives.indptr[users + 1] - positives.indptr[users]
    return positives.num_items - degree


def kth_negative(
    positives: Positives, users: jax.Array, k: jax.Array
) -> jax.Array:
    """The k-th (from 0) item, in index order, that is not a positive.

    With positives `p_0 < p_1 < ...` there are `p_r - r` non-positives below
    `p_r`; so as many positives lie below the answer as have `p_r - r <= k`,
    and that condition is monotone in `r`.

    Args:
      positives: rows to search.
      users: int32, any shape.
      k: int32, the same shape, in `[0, num_negatives)`.

    Returns:
      int32 items, the same shape.
    """
    below = _count_while(positives, users, lambda rank, item: item - rank <= k)
    return k + below
