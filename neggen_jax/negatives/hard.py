"""Hard negatives: of several that are drawn, those that score highest."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.catalogue import at_items, uniform
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source


class DNS(Source):
    """Dynamic negative sampling (Zhang et al., SIGIR 2013).

    Attributes:
      count: K, negatives per positive.
      candidates: N, uniform draws for each, of which the one that the user
        scores highest at the moment is taken.
    """

    count: int = 1
    candidates: int = 8

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Draws `[B, K]` items."""
        users = batch["users"]
        shape = (len(users), self.count, self.candidates)
        asked = jnp.broadcast_to(users[:, None, None], shape)
        key = self.make_rng("negatives")
        drawn = uniform(key, inputs.positives, asked)
        # Which one is chosen is no function that could be differentiated.
        fixed = jax.lax.stop_gradient(encoded)
        scores = jnp.einsum(
            "bd,bknd->bkn",
            fixed.take(fixed.users, users),
            fixed.take(fixed.items, drawn),
        )
        best = jnp.argmax(scores, axis=-1, keepdims=True)
        items = jnp.take_along_axis(drawn, best, axis=-1)[..., 0]
        return at_items(encoded, items)
