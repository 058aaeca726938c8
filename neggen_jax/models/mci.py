"""MCI, the encoder of GDNSM.

Ma et al., "Generating difficulty-aware negative samples via conditional
diffusion for multi-modal recommendation", SIGIR 2025: a content view from
the user-item graph and a side view from the items' modalities, aligned by a
contrastive loss (`infonce` between the two views) and added up.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from neggen_jax.data.graphs import shares
from neggen_jax.data.inputs import Inputs, ItemGraph, Needs
from neggen_jax.data.new_items import NewItems
from neggen_jax.models.encoder import Encoded, Encoder, Params, Received
from neggen_jax.models.lazy import added, product
from neggen_jax.models.lightgcn import layered, mean, received
from neggen_jax.ops.sparse import multiply


class MCI(Encoder):
    """Content view plus side view.

    Attributes:
      layers: propagation steps on the user-item graph.
      item_layers: propagation steps on each item-item graph.
      neighbours: nearest items kept for each item, itself included.
      modality_weights: modality -> weight of its side view; see `shares`.
      side_scale: factor on the side view; the authors' code uses 1/3.
      modalities: which ones to read; () reads all.
    """

    layers: int = 2
    item_layers: int = 1
    neighbours: int = 10
    modality_weights: Mapping[str, float] = FrozenDict(text=0.9, image=0.1)
    side_scale: float = 1.0
    modalities: tuple[str, ...] = ()

    def needs(self) -> Needs:
        """The user-item graph and one item-item graph per modality."""
        return Needs(
            user_item=True,
            item_item=ItemGraph(
                self.neighbours, "cosine", tuple(self.modalities)
            ),
        )

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Returns content + side; views hold the two apart."""
        ego = self.user_table(), self.item_table()
        # Who reads the layers apart reads all of each.
        last = multiply if inputs.layers else product
        layers = layered(inputs.user_item, *ego, self.layers, last)
        content = mean(layers)
        side_items = self._side(ego[1], inputs)
        # The user side of each modality is R^ times its item side; the sum
        # over modalities may be taken first, and one product is enough.
        side = last(inputs.user_item, side_items), side_items
        kept: tuple[tuple[jax.Array, jax.Array], ...] = ()
        if inputs.layers:
            # The side view is a part of each, so that their mean is right.
            kept = tuple((u + side[0], i + side[1]) for u, i in layers)
        return Encoded(
            added((content[0], side[0])),
            added((content[1], side[1])),
            {"ego": ego, "content": content, "side": side},
            layers=kept,
        )

    def received(self, params: Params, inputs: Inputs) -> Received:
        """Layers 1 to L of the content view, and all of the side view."""
        ego = params["users"], params["items"]
        content = received(inputs.user_item, *ego, self.layers)
        return Received(content + self._side(ego[1], inputs))

    def cold(
        self, params: Params, inputs: Inputs, new: NewItems
    ) -> jax.Array | None:
        """The side view, to which known items are near; no content view."""
        if not self.item_layers:
            return None
        side = jnp.zeros(())
        for name, weight in self._weights(inputs).items():
            similar = params["items"]
            for _ in range(self.item_layers - 1):
                similar = multiply(inputs.item_item[name], similar)
            side += self.side_scale * weight * new.item_item[name].of(similar)
        return side

    def _side(self, items: jax.Array, inputs: Inputs) -> jax.Array:
        """The items' side view."""
        side = jnp.zeros_like(items)
        for name, weight in self._weights(inputs).items():
            similar = items
            for _ in range(self.item_layers):
                similar = multiply(inputs.item_item[name], similar)
            side += self.side_scale * weight * similar
        return side

    def _weights(self, inputs: Inputs) -> dict[str, float]:
        names = sorted(self.modalities or inputs.item_item)
        return shares(names, self.modality_weights)
