"""User-item and item-item graphs of a catalogue.

Edges are found here, on the host or by blocks on the devices; how they are
laid out for products is the business of `ops/sparse.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from neggen_jax.catalog import Catalog, Features
from neggen_jax.errors import InputError
from neggen_jax.ops import ranking
from neggen_jax.ops.sparse import Graph, make_graph
from neggen_jax.partition import Partition

if TYPE_CHECKING:
    from neggen_jax.data.inputs import Sizes

# Items whose neighbours are sought at a time; only time depends on it.
_BLOCK = 4 * ranking.TILE_QUERIES


@dataclasses.dataclass(frozen=True, eq=False)
class Edges:
    """A sparse matrix over items, on the host.

    Attributes:
      ends: int64 `[2, n]`, row and column, unique pairs.
      weights: float64 `[n]`.
    """

    ends: np.ndarray
    weights: np.ndarray


def user_item(catalog: Catalog, size: Sizes, partition: Partition) -> Graph:
    """`D_U^-1/2 R D_I^-1/2` over the train interactions.

    It is the upper right block of the symmetric normalised adjacency of
    LightGCN (He et al., SIGIR 2020, eq. 3), which is all that is ever needed:
    the other block is its transpose.

    Returns:
      A graph `[user_rows, item_rows]`.
    """
    index = catalog.index

    def weights(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        of_user = index.by_user.degrees_of(users)
        return 1 / np.sqrt(of_user * index.by_item.degrees_of(items))

    shape = size.user_rows, size.item_rows
    return make_graph(index, weights, shape, partition)


def nearest_items(
    features: Features, neighbours: int, values: str, partition: Partition
) -> Edges:
    """The k nearest items of each item by cosine, itself included.

    Streams over blocks of items, so memory does not grow with items x items.
    Items without the modality are nobody's neighbour and have none.

    Args:
      features: one modality.
      neighbours: k.
      values: "binary" weighs each neighbour 1/k (FREEDOM, Zhou & Shen 2023,
        eq. 4-5); "cosine" keeps similarities above zero and scales them by
        the square roots of the row sums at both ends (MCI).
      partition: devices that search.

    Raises:
      InputError: for an unknown kind of values.
    """
    if values not in ("binary", "cosine"):
        raise InputError(
            "Unknown kind of item-item edge weights.",
            where="values",
            expected="'binary' or 'cosine'",
            found=repr(values),
        )
    present = np.flatnonzero(features.present)
    if not present.size:
        return Edges(np.zeros((2, 0), np.int64), np.zeros(0))
    similarity, found = _search(features.values, present, neighbours, partition)
    rows = np.repeat(np.arange(len(present)), found.shape[1])
    columns, weights = found.reshape(-1), similarity.reshape(-1)
    weights = weights.astype(np.float64)
    real = columns >= 0
    if values == "cosine":
        # A neighbour that points the other way is none.
        real &= weights > 0
    rows, columns, weights = rows[real], columns[real], weights[real]
    if values == "binary":
        weights = np.ones_like(weights)
    total = np.bincount(rows, weights, minlength=len(present))
    weights = weights / np.sqrt(total[rows] * total[columns])
    return Edges(np.stack([present[rows], present[columns]]), weights)


def near_known(
    features: Features,
    vectors: np.ndarray,
    neighbours: int,
    values: str,
    partition: Partition,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `nearest_items` for items that are not in the catalogue.

    As there, an item is its own first neighbour; of the k - 1 others all are
    items of the catalogue, whose own rows stay as they are.

    Args:
      features: one modality of the catalogue.
      vectors: of the new items, `[n, f]`; a zero row has no neighbours.
      neighbours: k.
      values: see `nearest_items`.
      partition: devices that search.
      rows: which items of the catalogue they are, if they only are to be seen
        as new ones: none is its own neighbour then.

    Returns:
      Items int32 and weights float32, `[n, k - 1]` each; a weight is 0 where
      there is no neighbour.
    """
    present = np.flatnonzero(features.present)
    here = np.flatnonzero(vectors.any(axis=1))
    k = min(neighbours - 1, len(present) - (rows is not None))
    items = np.zeros((len(vectors), k), np.int32)
    weights = np.zeros((len(vectors), k), np.float32)
    if not k or not len(here):
        return items, weights
    similarity, found = _search(
        features.values,
        present,
        k + (rows is not None),
        partition,
        vectors[here],
    )
    if rows is not None:
        own = present[found] == rows[here, None]
        # Alike items may have left it no place among them.
        own[:, -1] |= ~own.any(axis=1)
        similarity = similarity[~own].reshape(-1, k)
        found = found[~own].reshape(-1, k)
    similarity = similarity.astype(np.float64)
    if values == "binary":
        similarity = np.ones_like(similarity)
        total = np.full(len(present), float(min(neighbours, len(present))))
    else:
        similarity = np.maximum(similarity, 0)
        known, _ = _search(features.values, present, neighbours, partition)
        total = np.maximum(known, 0, dtype=np.float64).sum(axis=1)
    sums = 1 + similarity.sum(axis=1, keepdims=True)
    items[here] = present[found]
    weights[here] = similarity / np.sqrt(sums * total[found])
    return items, weights


def _search(
    vectors: np.ndarray,
    among: np.ndarray,
    k: int,
    partition: Partition,
    sought: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine top-k among some rows: of each of them, or of other vectors.

    Args:
      vectors: `[n, f]`; each process reads those of its own devices, and the
        block that is sought for.
      among: which of them.
      k: how many.
      partition: devices that search.
      sought: `[m, f]`; None takes the rows themselves.

    Returns:
      Similarities and positions in `among`, `[m or len(among), k]` each.
    """
    count = len(among)
    size = ranking.tiled_size(count, partition)
    asked = count if sought is None else len(sought)

    def known(rows: np.ndarray) -> np.ndarray:
        return vectors[among[rows]]

    def unit(some: np.ndarray, room: int) -> np.ndarray:
        norms = np.linalg.norm(some, axis=1, keepdims=True)
        out = np.zeros((room, some.shape[1]), np.float32)
        out[: len(some)] = some / norms
        return out

    mine = partition.mine(size, "ranked")
    own = unit(known(mine[mine < count]), len(mine))
    items = partition.join(own, mine, size, "ranked")
    none = ranking.Excluded(np.full(1, 2**30, np.int32), np.zeros(1, np.int32))
    search = jax.jit(
        functools.partial(
            ranking.top_k,
            k=min(k, count),
            num_items=count,
            partition=partition,
        ),
        # Every process reads them.
        out_shardings=partition.sharding(),
    )
    block = _BLOCK * partition.shards("batch")
    scores, found = [], []
    for start in range(0, asked, block):
        rows = np.arange(start, min(start + block, asked))
        some = known(rows) if sought is None else sought[rows]
        padded = unit(some, block)
        best = search(partition.put(padded, "batch", None), items, none)
        best = jax.device_get(best)
        scores.append(best[0][: len(rows)])
        found.append(best[1][: len(rows)])
    return np.concatenate(scores), np.concatenate(found)


def shares(
    modalities: Iterable[str], weights: Mapping[str, float]
) -> dict[str, float]:
    """Each modality's share of the whole.

    Args:
      modalities: those that the dataset has.
      weights: modality -> weight; one that is not named weighs as much as
        the named ones do on average.

    Returns:
      The weights of `modalities`, scaled to sum to 1.

    Raises:
      InputError: if a weight is negative, or all are zero.
    """
    usual = sum(weights.values()) / len(weights) if weights else 1.0
    chosen = {name: weights.get(name, usual) for name in modalities}
    total = sum(chosen.values())
    if min(chosen.values()) < 0 or total <= 0:
        raise InputError(
            "The modalities have no sensible weights.",
            where="config.encoder",
            expected="none below zero, and one above",
            found=chosen,
        )
    return {name: weight / total for name, weight in chosen.items()}


def fuse(graphs: Mapping[str, Edges], weights: Mapping[str, float]) -> Edges:
    """Adds item-item graphs up, weighted by `shares`.

    Raises:
      InputError: see `shares`.
    """
    share = shares(graphs, weights)
    ends, place = _union(graphs)
    values = [graphs[name].weights * share[name] for name in graphs]
    return Edges(ends, np.bincount(place, np.concatenate(values)))


def pool(graphs: Mapping[str, Edges]) -> Edges:
    """The largest weight that each pair of items has in any graph."""
    ends, place = _union(graphs)
    values = np.zeros(ends.shape[1])
    # No weight is negative.
    np.maximum.at(
        values, place, np.concatenate([g.weights for g in graphs.values()])
    )
    return Edges(ends, values)


def _union(graphs: Mapping[str, Edges]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of all graphs, and the place of each graph's among them."""
    ends = np.concatenate([graph.ends for graph in graphs.values()], axis=1)
    unique, place = np.unique(ends, axis=1, return_inverse=True)
    return unique, place.reshape(-1)


def place(edges: Edges, rows: int, partition: Partition) -> Graph:
    """Lays an item-item graph out on the devices, `[rows, rows]`."""
    return make_graph(edges.ends, edges.weights, (rows, rows), partition)
