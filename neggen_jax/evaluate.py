"""Full-catalogue evaluation, exact unless it is told otherwise.

Every held-out user is ranked against the whole catalogue, with what they are
known to have left out: train items for `valid`, train and valid items for
`test`. Users go through in blocks, items in tiles (`ops/ranking.py`); memory
does not grow with users x items, and the numbers depend neither on the block
size nor on the devices, to the last digit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax import hosts, metrics
from neggen_jax.catalog import Catalog, Features
from neggen_jax.errors import InputError
from neggen_jax.ops import ranking
from neggen_jax.ops.positives import Positives, contains, make_positives
from neggen_jax.partition import Partition

# Which splits a user is known to have interacted in when one is evaluated.
SEEN = {"valid": ("train",), "test": ("train", "valid")}

# Cut-off of the measures that look at lists rather than at hits.
LIST_CUTOFF = 20
# Bytes of a mapped file that are read before its memory is given back.
_TOUCHED = 2**26


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """The recommendations of every evaluated user.

    Attributes:
      users: int32 `[U]`, those with a held-out item, ascending.
      lists: int32 `[U, K]`; -1 where fewer than K items remained.
      hits: bool `[U, K]`, whether the item is held out.
      relevant: int64 `[U]`, number of held-out items.
      recall: of approximate lists, the share of the exact ones that is in
        them, for the first block of users; None of exact lists.
    """

    users: np.ndarray
    lists: np.ndarray
    hits: np.ndarray
    relevant: np.ndarray
    recall: float | None = None


class Ranker:
    """Ranks the catalogue for the held-out users of one split.

    Args:
      catalog: the dataset.
      split: "valid" or "test".
      partition: where the work is done.
      k: length of the lists.
      block_size: users ranked in one dispatch; rounded up to whole tiles,
        and without influence on any result.
      recall_target: below 1, TPUs choose approximately; see
        `ranking.top_k`.

    Raises:
      InputError: if the split is unknown or k exceeds the catalogue.
    """

    def __init__(
        self,
        catalog: Catalog,
        split: str,
        partition: Partition,
        *,
        k: int = 50,
        block_size: int = 4096,
        recall_target: float = 1.0,
    ):
        if split not in SEEN:
            raise InputError(
                f"The split {split!r} cannot be evaluated.",
                expected=" or ".join(map(repr, SEEN)),
            )
        if not 1 <= k <= catalog.num_items:
            raise InputError(
                "The lists are longer than the catalogue.",
                where="config.evaluate.cutoffs",
                expected=f"cut-offs from 1 to {catalog.num_items}",
                found=k,
                fix="leave the larger cut-offs out",
            )
        self.partition, self.k = partition, k
        self.catalog, self.split = catalog, split
        heldout = catalog.by_user(split)
        degrees = heldout.degrees
        self.users = np.flatnonzero(degrees).astype(np.int32)
        self.relevant = degrees[self.users]
        self._heldout = make_positives(heldout, catalog.num_items, partition)
        self._seen = [catalog.by_user(name) for name in SEEN[split]]
        self.block = block_rows(block_size, len(self.users), partition)
        seen = sum(part.degrees_of(self.users) for part in self._seen)
        starts = np.arange(0, len(self.users), self.block)
        self._width = int(np.add.reduceat(seen, starts).max())
        known: dict[str, Any] = {
            "num_items": catalog.num_items,
            "partition": partition,
        }

        def rank(target: float) -> Any:
            # Every process reads the lists.
            return jax.jit(
                functools.partial(
                    rank_block, k=k, recall_target=target, **known
                ),
                out_shardings=partition.sharding(),
            )

        self._rank = rank(recall_target)
        self._exact = rank(1.0) if recall_target < 1 else None
        self._tile = jax.jit(
            functools.partial(tiled, **known),
            out_shardings=partition.sharding("ranked", None),
        )

    def __call__(
        self,
        users: jax.Array,
        items: jax.Array,
        heed: Callable[[], object] = lambda: None,
    ) -> Ranked:
        """Ranks by inner product.

        Args:
          users: `[user_rows, d]`.
          items: `[item_rows, d]`.
          heed: called before each block of users; what it raises ends this.
        """
        table = self._tile(items)
        pending: list[Any] = []
        done: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(self.users), self.block):
            heed()
            block = self.users[start : start + self.block]
            # Others again, so that no device is asked for all that is padding.
            padded = np.resize(block, self.block)
            excluded = jax.tree.map(
                lambda v: self.partition.put(v, None),
                ranking.exclude(block, self._seen, self._width),
            )
            rows = self.partition.put(padded, "batch")
            given = users, table, rows, excluded, self._heldout
            pending.append(self._rank(*given))
            if start == 0 and self._exact is not None:
                exact = _fetch(self._exact(*given))[0][: len(block)]
            # One block computes while the one before is fetched, and no more
            # than that is ever held on the devices.
            if len(pending) > 1:
                done.append(_fetch(pending.pop(0)))
        done.extend(_fetch(block) for block in pending)
        count = len(self.users)
        lists, hits = (
            np.concatenate([block[part] for block in done])[:count]
            for part in (0, 1)
        )
        recall = None
        if self._exact is not None:
            recall = _share(exact, lists[: len(exact)])
        return Ranked(self.users, lists, hits, self.relevant, recall)


def block_rows(block_size: int, users: int, partition: Partition) -> int:
    """Users ranked in one dispatch: whole tiles, and no more than there are."""
    tile = ranking.TILE_QUERIES * partition.shards("batch")
    return max(1, -(-min(block_size, users) // tile)) * tile


def tiled(
    items: jax.Array, *, num_items: int, partition: Partition
) -> jax.Array:
    """The table `[item_rows, d]` as `ranking.top_k` wants it."""
    items = items[:num_items].astype(jnp.float32)
    size = ranking.tiled_size(num_items, partition)
    return jnp.pad(items, ((0, size - len(items)), (0, 0)))


def rank_block(
    users: jax.Array,
    items: jax.Array,
    block: jax.Array,
    excluded: ranking.Excluded,
    heldout: Positives,
    *,
    k: int,
    num_items: int,
    partition: Partition,
    recall_target: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Ranks one block of users.

    Args:
      users: `[user_rows, d]`.
      items: from `tiled`.
      block: int32 `[b]`, whom to rank.
      excluded: what they have left out.
      heldout: what they were to find.
      k: length of the lists.
      num_items: true number of items.
      partition: where the tables live.
      recall_target: see `ranking.top_k`.

    Returns:
      Lists int32 `[b, k]`, and bool `[b, k]` whether each is a hit.
    """
    queries = users[block].astype(jnp.float32)
    _, found = ranking.top_k(
        queries,
        items,
        excluded,
        k=k,
        num_items=num_items,
        partition=partition,
        recall_target=recall_target,
    )
    owners = jnp.broadcast_to(block[:, None], found.shape)
    return found, contains(heldout, owners, found) & (found >= 0)


def _fetch(block: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    lists, hits = jax.device_get(block)
    hosts.alive()
    return lists, hits


def _share(exact: np.ndarray, lists: np.ndarray) -> float:
    """Of the items in exact lists `[U, K]`, those that other lists have."""
    found = np.zeros(exact.shape, bool)
    for column in lists.T:
        found |= exact == column[:, None]
    return float(found[exact >= 0].mean())


def most_popular(
    catalog: Catalog,
    split: str,
    k: int,
    heed: Callable[[], object] = lambda: None,
    held: int = 2**22,
) -> Ranked:
    """Shows everybody the items that most have interacted with in train.

    But for those that they are known to have, as `Ranker` does; on the host.
    It is what a recommender has to beat.

    Args:
      catalog: the dataset.
      split: "valid" or "test".
      k: length of the lists.
      heed: called before each block of users; what it raises ends this.
      held: places that are looked at at a time; without influence on any
        result.
    """
    order = np.argsort(-catalog.popularity(), kind="stable").astype(np.int32)
    place = np.argsort(order, kind="stable")
    known = [catalog.by_user(name) for name in SEEN[split]]
    heldout = catalog.by_user(split)
    users = np.flatnonzero(heldout.degrees).astype(np.int32)

    def marked(some: np.ndarray, parts: list[Any], width: int) -> np.ndarray:
        """Which of the first places users' items have, bool `[b, width]`."""
        count = sum(int(part.degrees_of(some).sum()) for part in parts)
        pairs = ranking.exclude(some, parts, count)
        at = place[pairs.items]
        out = np.zeros((len(some), width), bool)
        out[pairs.queries[at < width], at[at < width]] = True
        return out

    lists = np.full((len(users), k), -1, np.int32)
    hits = np.zeros((len(users), k), bool)
    # Those with long histories, who need many places, by themselves.
    counts = sum((part.degrees_of(users) for part in known), 0 * users)
    longest, start = np.argsort(-counts, kind="stable"), 0
    while start < len(users):
        heed()
        hosts.alive()
        width = min(catalog.num_items, k + int(counts[longest[start]]))
        at = longest[start : start + max(1, held // width)]
        start += len(at)
        some = users[at]
        seen = marked(some, known, width)
        # The first places that are left, and then those that are not.
        first = np.argsort(seen, axis=1, kind="stable")[:, :k]
        left = ~np.take_along_axis(seen, first, 1)
        found = np.take_along_axis(marked(some, [heldout], width), first, 1)
        lists[at] = np.where(left, order[first], -1)
        hits[at] = found & left
    return Ranked(users, lists, hits, heldout.degrees[users])


def accuracy(ranked: Ranked, cutoffs: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Accuracy of every user at every cut-off; see `metrics.accuracy`."""
    return metrics.accuracy(ranked.hits, ranked.relevant, cutoffs)


def report(
    ranked: Ranked,
    catalog: Catalog,
    split: str,
    cutoffs: tuple[int, ...],
    categories: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, list]]:
    """All measures of METHODS: accuracy, and what the lists look like.

    Args:
      ranked: from `Ranker`, with lists at least as long as every cut-off.
      catalog: the dataset.
      split: that was ranked.
      cutoffs: of the accuracy metrics.
      categories: int `[num_items]`, of the items (`data/categories.py`), if
        they are known.

    Returns:
      Measure -> value, and recall by popularity decile. A measure of which
      there is nothing to measure is left out.
    """
    k = min(LIST_CUTOFF, ranked.lists.shape[1])
    values = metrics.summarize(accuracy(ranked, cutoffs))
    popularity = catalog.popularity()
    exposed = metrics.exposure(ranked.lists, catalog.num_items, k)
    values |= metrics.list_metrics(exposed, popularity, k)
    spreads = {
        f"diversity_{name}@{k}": diversity(ranked.lists[:, :k], matrix)
        for name, matrix in catalog.features.items()
    }
    if categories is not None:
        spreads[f"category_entropy@{k}"] = metrics.category_entropy(
            ranked.lists, categories, k
        )
    for name, spread in spreads.items():
        spread = spread[np.isfinite(spread)]
        if spread.size:
            values |= metrics.summarize({name: spread})
    heldout = catalog.splits[split].items
    found = ranked.hits, ranked.lists, heldout, popularity, k
    values |= metrics.tail_recall(*found)
    return values, metrics.popularity_deciles(*found)


def diversity(lists: np.ndarray, matrix: Features) -> np.ndarray:
    """Mean cosine distance between the items of each list, by one modality.

    The same as `metrics.intra_list_diversity`, on the device in float32.

    Args:
      lists: int32 `[U, k]`.
      matrix: features of the items.

    Returns:
      float64 `[U]`; NaN where a list has fewer than two present items.
    """
    # Of as many lists as a cache has room for the vectors of.
    block = min(256, max(1, 2**21 // (lists.shape[1] * matrix.dim)))
    out, touched = [], 0
    for start in range(0, len(lists), block):
        part = lists[start : start + block]
        padded = np.pad(part, ((0, block - len(part)), (0, 0)))
        # Of a matrix that no device may have room for, just these rows.
        real = (padded >= 0) & matrix.present[padded]
        found = np.asarray(_diversity(matrix.values[padded], real))
        out.append(found[: len(part)])
        hosts.alive()
        touched += padded.size * matrix.values[:1].nbytes
        if touched > _TOUCHED:
            matrix.release()
            touched = 0
    matrix.release()
    return np.concatenate(out).astype(np.float64)


@functools.partial(jax.jit)
def _diversity(vectors, real):
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    unit = vectors / jnp.maximum(norms, 1e-12)
    n = real.sum(axis=1)
    total = jnp.where(real[..., None], unit, 0.0).sum(axis=1)
    cosines = jnp.square(total).sum(axis=-1) - n
    mean = 1 - cosines / jnp.maximum(n * (n - 1), 1)
    return jnp.where(n > 1, jnp.clip(mean, 0, 2), jnp.nan)
