"""Users who were not there in training, folded in by their items.

A trained user's vector is to be foreseen from nothing but the items of their
history S, so that a new user's can be. It is the sum of

- what the encoder itself would make of S (`Encoder.received`): for
  propagation over the user-item graph all layers but the user's own, with
  1 / sqrt(|S| d_i) of the trained graph, d_i the train interactions of an
  item, or 1 where it has none;
- the mean of the items' final vectors, times a matrix, plus a constant. These
  two are found in closed form: by a ridge regression, over the users of
  training, of what the first part leaves of their vectors.

The first part is exact for the graph as it was trained: neither the degrees
nor the vectors of items know of the new user. The second is an approximation;
without the first (all but LightGCN, FREEDOM, MCI) it is all there is. Both are
sums over items, so a score says what each item has contributed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from neggen_jax import evaluate, metrics
from neggen_jax.adjacency import Adjacency
from neggen_jax.balance import metric
from neggen_jax.recommend.ridge import Ridge
from neggen_jax.run import Run

# Users that a regression learns from, and those it is given at a time.
_SAMPLE, _BLOCK = 2**17, 2**13


@dataclasses.dataclass(frozen=True, eq=False)
class Folding:
    """A linear map from a history to a user's vector.

    Attributes:
      items: float32 `[I, d]`, final vectors of the items.
      received: float32 `[I, d]`, what they hand to users, over sqrt(d_i);
        None for encoders without.
      matrix: float32 `[d, d]`, by which means are multiplied.
      constant: float32 `[d]`.
    """

    items: np.ndarray
    received: np.ndarray | None
    matrix: np.ndarray
    constant: np.ndarray

    def parts(self, history: np.ndarray) -> np.ndarray:
        """What each item of a history adds to the vector, `[n, d]`."""
        size = max(len(history), 1)
        parts = self.items[history] @ (self.matrix / size)
        if self.received is not None:
            parts = parts + self.received[history] / np.sqrt(size)
        return parts

    def __call__(self, histories: Adjacency) -> np.ndarray:
        """Vectors of users, float32 `[n, d]`.

        Args:
          histories: items by user.
        """
        found = _means(histories, self.items) @ self.matrix + self.constant
        if self.received is not None:
            found += _received(histories, self.received)
        return found.astype(np.float32)


def learn(
    run: Run,
    params: Any,
    users: jax.Array,
    items: jax.Array,
    among: np.ndarray | None = None,
) -> Folding:
    """Fits the map to the users of training.

    Args:
      run: composed.
      params: of the recommender.
      users: their final vectors.
      items: final vectors of the items.
      among: rows of the users to learn from; by default all, or a sample.
    """
    catalog = run.catalog
    count = catalog.num_items
    vectors = np.asarray(items[:count], np.float32)
    handed = _handed(run, params)
    histories = catalog.index.by_user
    if among is None:
        among = np.flatnonzero(histories.degrees)
    if len(among) > _SAMPLE:
        drawn = np.random.default_rng(run.config.seed).permutation(len(among))
        among = np.sort(among[drawn[:_SAMPLE]])
    width = vectors.shape[1]
    ridge = Ridge(width, width)
    for start in range(0, len(among), _BLOCK):
        rows = among[start : start + _BLOCK]
        part = histories_of(histories, rows)
        wanted = np.asarray(users[jnp.asarray(rows)], np.float64)
        if handed is not None:
            wanted -= _received(part, handed)
        ridge.add(_means(part, vectors), wanted)
    return Folding(vectors, handed, *ridge.solve())


def histories_of(known: Adjacency, rows: np.ndarray) -> Adjacency:
    """Some rows of pairs, by themselves."""
    lengths = known.degrees_of(rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.repeat(known.offsets[rows] - offsets[:-1], lengths)
    ends = np.asarray(known.ends[starts + np.arange(offsets[-1])], np.int32)
    return Adjacency(offsets, ends)


def joined(histories: list[np.ndarray]) -> Adjacency:
    """Histories, one after another."""
    lengths = [len(history) for history in histories]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    none = np.zeros(0, np.int32)
    return Adjacency(offsets, np.concatenate([none, *histories]))


def measure(run: Run, params: Any, split: str = "test") -> dict[str, Any]:
    """What folding costs: users of training, by their vectors and folded in.

    Everybody is folded in by their train items, with a map that was learned
    from the other half of the users.

    Args:
      run: composed.
      params: of the recommender.
      split: whose held-out items are to be found.

    Returns:
      "metric"; "trained" and "folded", its values; "alone", by what the
      encoder receives alone, if it does.
    """
    users, items = run.encode(params)
    histories = run.catalog.index.by_user
    everybody = np.flatnonzero(histories.degrees)
    half = np.random.default_rng(run.config.seed).permutation(everybody)
    halves = np.array_split(half, 2)
    folded = np.zeros(users.shape, np.float32)
    alone = np.zeros(users.shape, np.float32)
    for rows, others in (halves, halves[::-1]):
        folding = learn(run, params, users, items, np.sort(others))
        part = histories_of(histories, rows)
        folded[rows] = folding(part)
        if folding.received is not None:
            alone[rows] = _received(part, folding.received)
    name, k = metric(run)
    ranker = run.ranker(split)
    found: dict[str, Any] = {"metric": name, "split": split}
    tables = {
        "trained": users,
        "folded": run.partition.put(folded, "user", None),
    }
    if alone.any():
        tables["alone"] = run.partition.put(alone, "user", None)
    for word, table in tables.items():
        ranked = ranker(table, items)
        values = metrics.summarize(evaluate.accuracy(ranked, (k,)))
        found[word] = values[name]
    return found


def _handed(run: Run, params: Any) -> np.ndarray | None:
    """`Encoder.received` over the square root of the items' degrees."""
    encoder = run.program.recommender.encoder
    found = jax.jit(encoder.received)(params["encoder"], run.inputs)
    if found is None:
        return None
    degrees = np.maximum(run.catalog.popularity(), 1)
    table = np.asarray(found.items[: len(degrees)], np.float32)
    return table / np.sqrt(degrees, dtype=np.float32)[:, None]


def _means(histories: Adjacency, table: np.ndarray) -> np.ndarray:
    sums = _sums(histories, table)
    return sums / np.maximum(histories.degrees, 1)[:, None]


def _received(histories: Adjacency, table: np.ndarray) -> np.ndarray:
    sums = _sums(histories, table)
    return sums / np.sqrt(np.maximum(histories.degrees, 1))[:, None]


def _sums(histories: Adjacency, table: np.ndarray) -> np.ndarray:
    """Sums of the rows of a table by user, float64."""
    some, columns = np.unique(histories.ends, return_inverse=True)
    matrix = scipy.sparse.csr_array(
        (np.ones(len(columns)), columns, histories.offsets),
        shape=(histories.size, len(some)),
    )
    return np.asarray(matrix @ table[some].astype(np.float64))
