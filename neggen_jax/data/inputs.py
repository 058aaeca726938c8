"""What an encoder reads beside its parameters, placed on the devices.

An encoder says what it `Needs`; `build` makes exactly that from a `Catalog`:
the user-item graph, item-item graphs, feature matrices. Tables are padded to
sizes that cut evenly over the mesh, and `Sizes` keeps both numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax import catalog as catalogued
from neggen_jax.catalog import Catalog
from neggen_jax.data import graphs, rewritten
from neggen_jax.data.moments import moments
from neggen_jax.data.rewritten import Counterfactuals
from neggen_jax.errors import InputError
from neggen_jax.ops import sparse
from neggen_jax.ops.positives import (
    Positives,
    abstract_positives,
    make_positives,
)
from neggen_jax.ops.sparse import Graph
from neggen_jax.partition import Partition


@dataclasses.dataclass(frozen=True)
class Sizes:
    """True sizes, and the padded ones that tables have on the devices."""

    users: int
    items: int
    user_rows: int
    item_rows: int


@dataclasses.dataclass(frozen=True)
class ItemGraph:
    """Which item-item graph: the k nearest items by cosine, per modality.

    Attributes:
      neighbours: k, the item itself included.
      values: "cosine" keeps the similarities and normalises symmetrically
        (MCI); "binary" weighs every neighbour alike (FREEDOM).
      modalities: which ones have a graph; () takes all that the catalogue
        has.
      fuse: modality -> weight; the graphs are added up, with these weights
        scaled to sum to 1, into one graph named "fused".
      pool: whether the largest weights that pairs have in any of the graphs
        make another one, beside them, named "fused".
    """

    neighbours: int = 10
    values: str = "cosine"
    modalities: tuple[str, ...] = ()
    fuse: Mapping[str, float] | None = None
    pool: bool = False


@dataclasses.dataclass(frozen=True)
class Needs:
    """What an encoder reads.

    Attributes:
      user_item: the normalised user-item graph.
      features: the feature matrix of each modality, standardised.
      item_item: graphs by modality, or one of all, or None.
      modalities: those that features are of; () takes all that the catalogue
        has.
      counterfactuals: what `config.data.counterfactuals` names.
      layers: the embeddings of each layer of propagation, which encoders then
        give beside their mean.
    """

    user_item: bool = False
    features: bool = False
    item_item: ItemGraph | None = None
    modalities: tuple[str, ...] = ()
    counterfactuals: bool = False
    layers: bool = False


def union(one: Needs, other: Needs) -> Needs:
    """What both need, made once.

    Raises:
      InputError: if they need different item-item graphs.
    """
    graphs = [n.item_item for n in (one, other) if n.item_item is not None]
    if graphs and graphs[0] != graphs[-1]:
        raise InputError(
            "Two parts of the recommender need different item-item graphs.",
            found=" and ".join(map(str, graphs)),
            fix="give them the same neighbours and modalities, or use one of "
            "them alone",
        )
    reading = [need for need in (one, other) if need.features]
    every = any(not need.modalities for need in reading)
    named = {name for need in reading for name in need.modalities}
    return Needs(
        user_item=one.user_item or other.user_item,
        features=one.features or other.features,
        item_item=graphs[0] if graphs else None,
        modalities=() if every else tuple(sorted(named)),
        counterfactuals=one.counterfactuals or other.counterfactuals,
        layers=one.layers or other.layers,
    )


@flax.struct.dataclass
class Matrix:
    """A feature matrix, with mean zero and, over all entries, mean square one.

    Encoders come in scales that differ by orders of magnitude, and some give
    every item nearly the same vector; side by side, such a modality drowns
    the others. Centred, an absent item's zero row is the mean of the rest.

    Attributes:
      values: float32 or bfloat16 `[item_rows, f]`.
      present: bool `[item_rows]`.
    """

    values: jax.Array
    present: jax.Array


@flax.struct.dataclass
class Inputs:
    """Everything a step reads beside parameters and batch.

    Attributes:
      positives: each user's train items.
      popularity: float32 `[item_rows]`, train interactions of each item.
      user_item: `D^-1/2 R D^-1/2`, `[user_rows, item_rows]`; None
        for an encoder that does not ask for it.
      item_item: modality, or "fused" -> graph over items.
      features: modality -> matrix.
      counterfactuals: of the items; None where nobody asks for them.
      layers: whether somebody reads `Encoded.layers`.
      prepared: what sources of negatives made for the epoch, by their names.
    """

    positives: Positives
    popularity: jax.Array
    user_item: Graph
    item_item: dict[str, Graph]
    features: dict[str, Matrix]
    counterfactuals: Counterfactuals
    layers: bool = flax.struct.field(default=False, pytree_node=False)
    prepared: dict[str, Any] = flax.struct.field(default_factory=dict)


def sizes(catalog: Catalog, partition: Partition) -> Sizes:
    """Sizes of the catalogue's tables over a mesh."""
    return Sizes(
        users=catalog.num_users,
        items=catalog.num_items,
        user_rows=partition.padded(catalog.num_users, "user"),
        item_rows=partition.padded(catalog.num_items, "item"),
    )


def modalities(catalog: Catalog, needs: Needs | ItemGraph) -> tuple[str, ...]:
    """The modalities of features or graphs, in alphabetical order.

    Raises:
      InputError: if one is asked for that the catalogue lacks, or if some
        are needed and the catalogue has none.
    """
    wanted = needs.modalities or tuple(catalog.features)
    missing = sorted(set(wanted) - set(catalog.features))
    if missing or not wanted:
        raise InputError(
            "The recommender needs modalities that the dataset does not have.",
            where=f"dataset {catalog.name!r}",
            expected=", ".join(wanted) or "at least one modality",
            found=", ".join(sorted(catalog.features)) or "none",
            fix="prepare the dataset with features, or choose another encoder "
            "or other negatives",
        )
    return tuple(sorted(wanted))


def contents(catalog: Catalog, needs: Needs) -> tuple[str, ...]:
    """The modalities of features and of graphs, in alphabetical order.

    Raises:
      InputError: see `modalities`.
    """
    names: set[str] = set()
    if needs.features:
        names |= {*modalities(catalog, needs)}
    if needs.item_item is not None:
        names |= {*modalities(catalog, needs.item_item)}
    return tuple(sorted(names))


def build(
    catalog: Catalog,
    needs: Needs,
    partition: Partition,
    feed: str = "tables",
    dtype: str = "float32",
    placed: Mapping[str, Matrix] = MappingProxyType({}),
) -> Inputs:
    """Makes and places what an encoder needs.

    Args:
      catalog: the dataset.
      needs: of the whole recommender.
      partition: the mesh.
      feed: how counterfactuals reach a step, one of `rewritten.FEEDS`.
      dtype: that vectors of items are kept in.
      placed: features that are there already.

    Raises:
      InputError: see `modalities`.
    """
    size = sizes(catalog, partition)
    user_item: Any = None
    item_item: dict[str, Graph] = {}
    features: dict[str, Matrix] = {}
    if needs.user_item:
        user_item = graphs.user_item(catalog, size, partition)
    if needs.item_item is not None:
        similar = {
            name: graphs.nearest_items(
                catalog.features[name],
                needs.item_item.neighbours,
                needs.item_item.values,
                partition,
            )
            for name in modalities(catalog, needs.item_item)
        }
        if needs.item_item.fuse is not None:
            similar = {"fused": graphs.fuse(similar, needs.item_item.fuse)}
        if needs.item_item.pool:
            similar["fused"] = graphs.pool(similar)
        item_item = {
            name: graphs.place(edges, size.item_rows, partition)
            for name, edges in similar.items()
        }
    if needs.features:
        features = {
            name: placed[name]
            if name in placed
            else _place_features(catalog, name, size, partition, dtype)
            for name in modalities(catalog, needs)
        }
    counterfactuals: Any = None
    if needs.counterfactuals:
        counterfactuals = rewritten.place(
            _counterfactuals(catalog), size.item_rows, feed, partition, dtype
        )
    popularity = np.zeros(size.item_rows, np.float32)
    popularity[: size.items] = catalog.popularity()
    return Inputs(
        positives=make_positives(catalog.index.by_user, size.items, partition),
        popularity=partition.put(popularity, None),
        user_item=user_item,
        item_item=item_item,
        features=features,
        counterfactuals=counterfactuals,
        layers=needs.layers,
    )


def abstract(
    catalog: Catalog,
    needs: Needs,
    partition: Partition,
    feed: str = "tables",
    dtype: str = "float32",
    *,
    skew: float = 1.0,
    longest: int = 4095,
) -> Inputs:
    """The shapes and shardings of what `build` makes.

    Nothing is computed, and of the catalogue only sizes and shapes are read.
    Items have all their k neighbours, in every modality, and no pair of
    items is near in two of them: the most edges that there can be.

    Args:
      catalog: of which there need be no more than that.
      needs: of the whole recommender.
      partition: the mesh.
      feed: how counterfactuals reach a step.
      dtype: that vectors of items are kept in.
      skew: of edges and positives over the shards; see
        `sparse.abstract_graph`.
      longest: positives of the user who has most.
    """
    size, edges = sizes(catalog, partition), len(catalog.train)
    user_item: Any = None
    item_item: dict[str, Graph] = {}
    features: dict[str, Matrix] = {}
    if needs.user_item:
        user_item = sparse.abstract_graph(
            edges, (size.user_rows, size.item_rows), partition, skew=skew
        )
    if needs.item_item is not None:
        names = modalities(catalog, needs.item_item)
        near = size.items * min(needs.item_item.neighbours, size.items)
        counts = dict.fromkeys(names, near)
        if needs.item_item.fuse is not None:
            counts = {"fused": near * len(names)}
        if needs.item_item.pool:
            counts["fused"] = near * len(names)
        shape = size.item_rows, size.item_rows
        item_item = {
            name: sparse.abstract_graph(count, shape, partition, skew=skew)
            for name, count in counts.items()
        }
    if needs.features:
        for name in modalities(catalog, needs):
            rows = size.item_rows, catalog.features[name].dim
            values: Any = partition.abstract(rows, dtype, "item")
            present: Any = partition.abstract(rows[:1], np.bool_, "item")
            features[name] = Matrix(values, present)
    counterfactuals: Any = None
    if needs.counterfactuals:
        counterfactuals = rewritten.abstract(
            _counterfactuals(catalog), size.item_rows, feed, partition, dtype
        )
    popularity: Any = partition.abstract((size.item_rows,), np.float32, None)
    return Inputs(
        positives=abstract_positives(
            edges,
            size.users,
            size.items,
            partition,
            longest=longest,
            skew=skew,
        ),
        popularity=popularity,
        user_item=user_item,
        item_item=item_item,
        features=features,
        counterfactuals=counterfactuals,
        layers=needs.layers,
    )


def _counterfactuals(catalog: Catalog) -> catalogued.Counterfactuals:
    if catalog.counterfactuals is None:
        raise InputError(
            "The recommender needs counterfactuals, and no set is named.",
            where="config.data.counterfactuals.name",
            fix="give a set that launch/generate.py has made, such as "
            "--config.data.counterfactuals.name=attributes; in Python, "
            "store.load(DIR, counterfactuals='attributes')",
        )
    return catalog.counterfactuals


def _place_features(
    catalog: Catalog,
    name: str,
    size: Sizes,
    partition: Partition,
    dtype: str,
) -> Matrix:
    matrix = catalog.features[name]
    mean, scale = moments(name, *matrix.learned)
    # Each process reads and standardises the rows of its own devices.
    rows = partition.mine(size.item_rows, "item")
    present = partition.own(matrix.present, size.item_rows, "item")
    values = partition.own(matrix.values, size.item_rows, "item")
    # Epochs do not read the file any more.
    matrix.release()
    values -= mean
    values /= scale
    values[~present] = 0
    values = values.astype(jnp.dtype(dtype), copy=False)
    return Matrix(
        values=partition.join(values, rows, size.item_rows, "item"),
        present=partition.join(present, rows, size.item_rows, "item"),
    )
