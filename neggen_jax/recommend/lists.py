"""The best items of some users, block by block.

What `evaluate.Ranker` does for held-out users, for whoever asks: by the same
kernel, so the same lists to the last digit, ties included.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax import evaluate
from neggen_jax.adjacency import Adjacency
from neggen_jax.catalog import SPLITS
from neggen_jax.errors import InputError, nearest
from neggen_jax.ops import ranking
from neggen_jax.partition import Partition
from neggen_jax.recommend import asked as people
from neggen_jax.recommend.asked import Asked
from neggen_jax.recommend.folding import Folding, histories_of, joined
from neggen_jax.run import Run

# Users ranked in one dispatch, at most.
_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Lists:
    """Recommendations of one block of users.

    Attributes:
      asked: who they are for.
      vectors: float32 `[b, d]`, of the users.
      scores: float32 `[b, k]`, descending; -inf where there is no item.
      items: int32 `[b, k]`; -1 where fewer than k items remained.
    """

    asked: Sequence[Asked]
    vectors: np.ndarray
    scores: np.ndarray
    items: np.ndarray


class Lister:
    """Ranks items for any users.

    Args:
      run: composed.
      users: `[user_rows, d]`, final vectors.
      items: `[num_items or more, d]`, likewise; those past the catalogue's
        are new.
      num_items: how many, new ones included.
      k: length of the lists.
      seen: splits whose items a user is known to have, and is not given.
      folding: for users who are not in the catalogue; None if there are none.

    Raises:
      InputError: if k exceeds the catalogue, or a split is unknown.
    """

    def __init__(
        self,
        run: Run,
        users: jax.Array,
        items: jax.Array,
        num_items: int,
        *,
        k: int = 20,
        seen: Sequence[str] = ("train",),
        folding: Folding | None = None,
    ):
        if not 1 <= k <= num_items:
            raise InputError(
                "The lists are longer than the catalogue.",
                where="--k",
                expected=f"from 1 to {num_items}",
                found=k,
            )
        for split in seen:
            if split not in SPLITS:
                raise InputError(
                    f"There is no split {split!r}.",
                    where="--seen",
                    fix=nearest(split, SPLITS),
                )
        partition: Partition = run.partition
        self._users, self._partition, self._folding = users, partition, folding
        self._train = run.catalog.index.by_user
        self._known = [run.catalog.by_user(split) for split in seen]
        # One who asks alone waits for a whole block.
        rows = min(run.config.evaluate.block_size, _AT_ONCE)
        self.block = evaluate.block_rows(rows, 2**30, partition)
        self._items = jax.jit(
            functools.partial(
                evaluate.tiled, num_items=num_items, partition=partition
            ),
            out_shardings=partition.sharding("ranked", None),
        )(items)
        self._rank = jax.jit(
            functools.partial(
                ranking.top_k, k=k, num_items=num_items, partition=partition
            ),
            out_shardings=partition.sharding(),
        )

        def vectors(users, rows, folded):
            known = users[jnp.maximum(rows, 0)].astype(jnp.float32)
            return jnp.where(rows[:, None] < 0, folded, known)

        self._vectors = jax.jit(
            vectors, out_shardings=partition.sharding("batch", None)
        )

    def __call__(self, asked: Iterable[Asked]) -> Iterator[Lists]:
        """Yields the lists of all who ask, in order, a block at a time."""
        before: Any = None
        for block in people.blocks(asked, self.block):
            # One block computes while the one before is fetched and written.
            begun = block, *self._begin(block)
            if before is not None:
                yield self._end(*before)
            before = begun
        if before is not None:
            yield self._end(*before)

    def history(self, asked: Asked) -> np.ndarray:
        """The items by which somebody is known, ascending."""
        if asked.items is not None:
            return asked.items
        # Of training alone: it is by these that vectors came about.
        first, last = self._train.offsets[asked.row : asked.row + 2]
        return self._train.ends[first:last]

    def _begin(self, block: Sequence[Asked]) -> tuple[jax.Array, Any]:
        rows = np.array([one.row for one in block], np.int32)
        given = _given(block)
        new = [n for n, history in enumerate(given) if len(history)]
        folded = np.zeros((len(block), self._users.shape[1]), np.float32)
        if new:
            assert self._folding is not None
            folded[new] = self._folding(joined([h for h in given if len(h)]))
        # Others again, so that no device is asked for all that is padding.
        rows = np.resize(rows, self.block)
        folded = np.resize(folded, (self.block, folded.shape[1]))
        put = self._partition.put
        vectors = self._vectors(
            self._users, put(rows, "batch"), put(folded, "batch", None)
        )
        excluded = jax.tree.map(lambda x: put(x, None), self._excluded(block))
        return vectors, self._rank(vectors, self._items, excluded)

    def _end(self, block: Sequence[Asked], vectors: Any, best: Any) -> Lists:
        size = len(block)
        vectors, (scores, items) = jax.device_get((vectors, best))
        return Lists(block, vectors[:size], scores[:size], items[:size])

    def _excluded(self, block: Sequence[Asked]) -> ranking.Excluded:
        """What each of a block has, in arrays of few different lengths."""
        rows = np.array([max(one.row, 0) for one in block])
        known = np.array([one.items is None for one in block])
        parts = [joined(_given(block))]
        for part in self._known:
            some = histories_of(part, rows[known])
            lengths = np.zeros(len(block), np.int64)
            lengths[known] = some.degrees
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            parts.append(Adjacency(offsets, some.ends))
        total = sum(len(part.ends) for part in parts)
        # Powers of two: programs are compiled for each length.
        size = 1 << max(total - 1, 1).bit_length()
        return ranking.exclude(np.arange(len(block)), parts, size)


def _given(block: Sequence[Asked]) -> list[np.ndarray]:
    """The items that new users bring; none of those who are known."""
    none = np.zeros(0, np.int32)
    return [none if one.items is None else one.items for one in block]
