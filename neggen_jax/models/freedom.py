"""FREEDOM.

Zhou and Shen, "A tale of two graphs: freezing and denoising graph structures
for multimodal recommendation", ACM MM 2023: a frozen item-item graph of the
modalities (eq. 4-7), a user-item graph whose edges are pruned anew each
epoch, popular ends first (eq. 8-10), and a pairwise loss on the projected
features (eq. 15), which is `bpr` on the views this encoder gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.sharding import NamedSharding, PartitionSpec

from neggen_jax.data.inputs import Inputs, ItemGraph, Needs
from neggen_jax.data.new_items import NewItems
from neggen_jax.errors import InputError
from neggen_jax.models.encoder import Encoded, Encoder, Params, Received
from neggen_jax.models.lazy import added, product
from neggen_jax.models.lightgcn import layered, mean, received
from neggen_jax.models.projected import Projection
from neggen_jax.ops.sparse import Graph, edge_weights, multiply, subset


def prune(graph: Graph, key: jax.Array, num_edges: int, keep: int) -> Graph:
    """Keeps edges drawn without replacement, in proportion to their weight.

    With weights `1 / sqrt(d_u d_i)` edges between popular ends go first.
    Drawing is by Gumbel top-k, which equals drawing one after another.

    Args:
      graph: the normalised user-item graph.
      key: of the draw.
      num_edges: edges in the graph.
      keep: edges to keep.
    """
    # In the order of the edges, and whole on every device: the draw is then
    # the same on any mesh, and top_k never runs along a sharded axis.
    weights = jax.lax.with_sharding_constraint(
        edge_weights(graph, num_edges),
        NamedSharding(graph.mesh, PartitionSpec()),
    )
    scores = jnp.log(weights) + jax.random.gumbel(key, (num_edges,))
    _, drawn = jax.lax.top_k(scores, keep)
    kept = jnp.zeros(num_edges, bool).at[drawn].set(True)
    return subset(graph, kept, keep)


class FREEDOM(Encoder):
    """LightGCN on a pruned graph, plus item vectors smoothed by content.

    Attributes:
      layers: propagation steps on the user-item graph.
      item_layers: propagation steps on the item-item graph.
      neighbours: nearest items kept for each item, itself included.
      dropout: share of the user-item edges left out of each epoch.
      graph_weights: modality -> weight of its item-item graph; see
        `data.graphs.shares`.
      modalities: which ones to read; () reads all.
      train_features: also learn the raw features, as the authors' code does.
    """

    layers: int = 2
    item_layers: int = 1
    neighbours: int = 10
    dropout: float = 0.8
    graph_weights: Mapping[str, float] = FrozenDict(text=0.9, image=0.1)
    modalities: tuple[str, ...] = ()
    train_features: bool = False

    def needs(self) -> Needs:
        """Both graphs and the feature matrices."""
        modalities = tuple(self.modalities)
        graph = ItemGraph(
            self.neighbours, "binary", modalities, self.graph_weights
        )
        return Needs(
            user_item=True,
            features=True,
            item_item=graph,
            modalities=modalities,
        )

    def prepare(self, inputs: Inputs, key: jax.Array) -> Inputs:
        """Prunes the user-item graph.

        Raises:
          InputError: unless `0 <= dropout < 1`.
        """
        if not 0 <= self.dropout < 1:
            raise InputError(
                "The share of edges to leave out is no share.",
                where="config.encoder.dropout",
                expected="from 0 to less than 1",
                found=self.dropout,
            )
        edges = inputs.positives.count
        keep = max(1, round(edges * (1 - self.dropout)))
        if keep == edges:
            return inputs
        pruned = prune(inputs.user_item, key, edges, keep)
        return dataclasses.replace(inputs, user_item=pruned)

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Propagates over both graphs; views hold the projected features."""
        ego = self.user_table(), self.item_table()
        # Who reads the layers apart reads all of each.
        last = multiply if inputs.layers else product
        layers = layered(inputs.user_item, *ego, self.layers, last)
        users, items = mean(layers)
        similar = ego[1]
        for _ in range(self.item_layers):
            similar = multiply(inputs.item_item["fused"], similar)
        views = {"ego": ego}
        for name in sorted(self.modalities or inputs.features):
            values: Any = inputs.features[name].values
            if self.train_features:
                # Parameters are of float32, whatever they begin as.
                values = self.param(
                    f"{name}_features",
                    nn.with_partitioning(
                        lambda _, v=values: v.astype(jnp.float32),
                        ("item", "feature"),
                    ),
                )
            content = Projection(self.dim, name=name)((values,))
            # Of features that learn, every row has a gradient.
            learns = self.train_features
            views[name] = (users, content.whole() if learns else content)
        kept: tuple[tuple[jax.Array, jax.Array], ...] = ()
        if inputs.layers:
            # Similar items are a part of each, so that their mean is right.
            kept = tuple((u, i + similar) for u, i in layers)
        return Encoded(users, added((items, similar)), views, layers=kept)

    def received(self, params: Params, inputs: Inputs) -> Received:
        """Layers 1 to L."""
        ego = params["users"], params["items"]
        return Received(received(inputs.user_item, *ego, self.layers))

    def cold(
        self, params: Params, inputs: Inputs, new: NewItems
    ) -> jax.Array | None:
        """What is near by content; nothing of the user-item graph."""
        if not self.item_layers:
            return None
        similar = params["items"]
        for _ in range(self.item_layers - 1):
            similar = multiply(inputs.item_item["fused"], similar)
        return new.item_item["fused"].of(similar)
