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
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.models.lightgcn import mean, propagate
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
            item_item=ItemGraph(self.neighbours, "cosine"),
            modalities=tuple(self.modalities),
        )

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Returns content + side; views hold the two apart."""
        ego = self.user_table(), self.item_table()
        layers = propagate(inputs.user_item, *ego, self.layers)
        content = mean(layers)
        names = sorted(self.modalities or inputs.item_item)
        weights = shares(names, self.modality_weights)
        side_items = jnp.zeros_like(ego[1])
        for name, weight in weights.items():
            similar = ego[1]
            for _ in range(self.item_layers):
                similar = multiply(inputs.item_item[name], similar)
            side_items += self.side_scale * weight * similar
        # The user side of each modality is R^ times its item side; the sum
        # over modalities may be taken first, and one product is enough.
        side = multiply(inputs.user_item, side_items), side_items
        kept: tuple[tuple[jax.Array, jax.Array], ...] = ()
        if inputs.layers:
            # The side view is a part of each, so that their mean is right.
            kept = tuple((u + side[0], i + side[1]) for u, i in layers)
        return Encoded(
            content[0] + side[0],
            content[1] + side[1],
            {"ego": ego, "content": content, "side": side},
            kept,
        )
