"""Negatives drawn from the catalogue.

None of these ever gives a user one of their own train positives.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source
from neggen_jax.ops.positives import (
    Positives,
    contains,
    kth_negative,
    num_negatives,
)


def uniform(
    key: jax.Array, positives: Positives, users: jax.Array
) -> jax.Array:
    """A uniform draw from the items that are not a positive of each user.

    Exact and without rejection: a uniform rank among the non-positives,
    turned into its item.

    Args:
      key: of the draw.
      positives: train positives.
      users: int32, any shape.

    Returns:
      int32 items, in the shape of `users`.
    """
    count = num_negatives(positives, users)
    rank = jax.random.randint(key, users.shape, 0, count)
    return kth_negative(positives, users, rank)


def at_items(encoded: Encoded, items: jax.Array, batch: Batch) -> Negatives:
    """Negatives of a batch that are the given catalogue items, `[B, K]`."""
    weights = jnp.ones(items.shape, encoded.items.dtype)
    # Losses read the positives beside them.
    _, vectors = encoded.take_together(encoded.items, batch["items"], items)
    return Negatives(vectors, weights, items)


class Uniform(Source):
    """Uniform over a user's non-positives (Rendle et al., BPR, UAI 2009).

    Attributes:
      count: K, negatives per positive.
    """

    with_positives: ClassVar[bool] = True

    count: int = 1

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Draws `[B, K]` items."""
        users = jnp.repeat(batch["users"][:, None], self.count, axis=1)
        key = self.make_rng("negatives")
        items = uniform(key, inputs.positives, users)
        return at_items(encoded, items, batch)


class Popularity(Source):
    """In proportion to `popularity ** exponent` (Mikolov et al., NIPS 2013).

    Attributes:
      count: K, negatives per positive.
      exponent: 0 is uniform, 1 is popularity itself.
      tries: draws for each negative; where every one is a positive of the
        user, a uniform non-positive stands in.
    """

    with_positives: ClassVar[bool] = True

    count: int = 1
    exponent: float = 0.75
    tries: int = 8

    def prepare(self, inputs: Inputs, key: jax.Array) -> Inputs:
        """Makes the cumulative distribution, once an epoch."""
        real = jnp.arange(inputs.popularity.size) < inputs.positives.num_items
        mass = jnp.where(real, inputs.popularity**self.exponent, 0.0)
        # Counted in whole shares of 2^-30: a float32 sum over millions of
        # items would lose the rare ones, and integers lose nothing.
        shares = jnp.ceil(mass / mass.sum() * 2**30).astype(jnp.int32)
        table = {str(self.name): jnp.cumsum(shares)}
        return dataclasses.replace(inputs, prepared=inputs.prepared | table)

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Draws `[B, K]` items."""
        cumulative = inputs.prepared[str(self.name)]
        draw_key, spare_key = jax.random.split(self.make_rng("negatives"))
        users = jnp.repeat(batch["users"][:, None], self.count, axis=1)
        shape = (self.tries, *users.shape)
        share = jax.random.randint(draw_key, shape, 0, cumulative[-1])
        tries = jnp.searchsorted(cumulative, share, side="right")
        # The batch comes first, as it is spread over the devices.
        tries = jnp.moveaxis(tries.astype(jnp.int32), 0, -1)
        everybody = jnp.broadcast_to(users[..., None], tries.shape)
        allowed = ~contains(inputs.positives, everybody, tries)
        first = jnp.argmax(allowed, axis=-1, keepdims=True)
        drawn = jnp.take_along_axis(tries, first, axis=-1)[..., 0]
        spare = uniform(spare_key, inputs.positives, users)
        items = jnp.where(allowed.any(axis=-1), drawn, spare)
        return at_items(encoded, items, batch)
