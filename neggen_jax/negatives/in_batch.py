"""Negatives that are the positives of other pairs of the batch.

The batch is the global one, over all devices. An item comes into it as often
as it is interacted with, which is Q; what that makes too much of is taken
back by Q: as weights of what is drawn, or in logits, where it is known as the
logQ correction (Bengio and Senecal, "Adaptive importance sampling to
accelerate training of a neural probabilistic language model", IEEE TNN 2008;
Yi et al., "Sampling-bias-corrected neural modeling for large corpus item
recommendations", RecSys 2019: `s(u, i) - log Q(i)`, there with Q estimated
from a stream, here as counted in the train split). Accidental hits, which are
train positives of the user, the pair's own item among them, are no negatives.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.catalogue import at_items
from neggen_jax.negatives.source import (
    Batch,
    Clock,
    Negatives,
    Shared,
    Source,
)
from neggen_jax.ops.positives import contains, contains_each

CORRECTED = ("all", "negatives")


def rarity(inputs: Inputs, items: jax.Array) -> jax.Array:
    """`1 / (n Q)` of items of the train split, in the shape of `items`.

    n is how many items are interacted with at all: over draws by Q, the mean
    is 1.
    """
    popularity = inputs.popularity
    count = (popularity > 0).sum()
    # Others never come into a batch; they only must not divide by 0.
    own = jnp.maximum(popularity[items], 1.0)
    return popularity.sum() / (count * own)


class InBatch(Source):
    """K items of the batch for each pair, drawn uniformly from its rows.

    They weigh `(1 / (n Q)) ** correction`: with 1, a loss that is a mean over
    negatives expects what it would of uniform ones. An accidental hit weighs
    0 (of K = 1, that pair has no negative in this step).

    Attributes:
      count: K, negatives per positive.
      correction: 0 takes items as they come, by popularity.
    """

    with_positives: ClassVar[bool] = True

    count: int = 1
    correction: float = 1.0

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Draws `[B, K]` items."""
        users, items = batch["users"], batch["items"]
        shape = len(users), self.count
        key = self.make_rng("negatives")
        drawn = items[jax.random.randint(key, shape, 0, len(items))]
        asked = jnp.broadcast_to(users[:, None], shape)
        fine = ~contains(inputs.positives, asked, drawn)
        weights = rarity(inputs, drawn) ** self.correction * fine
        return dataclasses.replace(
            at_items(encoded, drawn, batch), weights=weights
        )


class WholeBatch(Source):
    """All items of the batch are negatives of all its pairs.

    For the loss "softmax", which computes logits chunk by chunk. What is kept
    is which items are no negatives of which pair: B * M bytes over all
    devices, 4 MiB for the usual batch of 2048 and 4 GiB for one of 65,536,
    where `items` helps.

    Attributes:
      items: M, of how many pairs the items are lent, at equal distances, so
        that all parts of the interactions have some; 0 takes all B.
      correction: factor on log Q, which is taken from logits; 0 does without.
      corrected: which logits: those of "all", as Yi et al. have it, or of the
        "negatives" alone, as they alone are drawn. Then the sum over the
        batch, scaled to the n items of the catalogue, estimates that of the
        softmax over all items, as in Bengio and Senecal.
    """

    items: int = 0
    correction: float = 1.0
    corrected: str = "all"

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Shares `[M]` items; no pair has any of its own."""
        users, items = batch["users"], batch["items"]
        count = min(self.items, len(items)) or len(items)
        some = items[np.arange(count) * len(items) // count]
        offsets = self.correction * jnp.log(rarity(inputs, some))
        own = self.correction * jnp.log(rarity(inputs, items))
        if self.corrected == "negatives":
            real = (inputs.popularity > 0).sum()
            offsets += self.correction * jnp.log(real / count)
            own = jnp.zeros_like(own)
        left_out = contains_each(inputs.positives, users, some)
        none = jnp.zeros((len(items), 0, encoded.items.shape[1]))
        shared = Shared(some, left_out, offsets, own)
        return Negatives(none, none[..., 0], shared=shared)
