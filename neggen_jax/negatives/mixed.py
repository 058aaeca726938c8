"""Negatives that are mixed, layer by layer, of the positive and of others."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs, Needs
from neggen_jax.models.encoder import Encoded
from neggen_jax.models.lazy import Table
from neggen_jax.negatives.hard import candidates, pick, scores
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source


def layers(encoded: Encoded, by_layer: bool) -> tuple[tuple[Table, Table], ...]:
    """Users and items of each layer; the final ones where there is none."""
    if by_layer and encoded.layers:
        return encoded.layers
    return ((encoded.users, encoded.items),)


class MixGCF(Source):
    """Positive mixing and hop mixing.

    Huang et al., "MixGCF: an improved training method for graph neural
    network-based recommender systems", KDD 2021. In each layer l, candidates
    are mixed with the positive, `a_l p_l + (1 - a_l) n_l`, `a_l` uniform in
    (0, 1); of these, the one that the user scores highest is taken, another
    in each layer; the negative is their mean, as an item is the mean of its
    layers. Users score with their final embedding, as in the
    released code. One `a_l` serves all candidates of a negative, so that it
    is the highest `n_l` that is taken, whatever `a_l`. The gradient goes
    through what is mixed, to the positive too, and not through the choice.

    With encoders that give no layers (all but LightGCN, FREEDOM and MCI), the
    embedding is the only one. `items` of what it gives are those of layer 0,
    the free embeddings: losses that look negatives up read these.

    Attributes:
      count: K, negatives per positive.
      candidates: N, uniform non-positives for each.
      by_layer: whether layers are mixed apart; if not, final embeddings are,
        as if they were the only layer.
      most: coefficients are uniform from 0 to this; 0 mixes hops alone.
    """

    count: int = 1
    candidates: int = 16
    by_layer: bool = True
    most: float = 1.0

    def needs(self) -> Needs:
        """The layers, where there are any."""
        return Needs(layers=self.by_layer)

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Mixes `[B, K, d]` vectors."""
        draw_key, mix_key = jax.random.split(self.make_rng("negatives"))
        users, positives = batch["users"], batch["items"]
        several = self.candidates
        drawn = candidates(draw_key, inputs, users, self.count, several)
        fixed = jax.lax.stop_gradient(encoded)
        by_whom = fixed.take(fixed.users, users)
        mixed, chosen = [], []
        for number, ((_, table), (_, still)) in enumerate(
            zip(
                layers(encoded, self.by_layer),
                layers(fixed, self.by_layer),
                strict=True,
            )
        ):
            best = jnp.argmax(scores(by_whom, fixed.take(still, drawn)), -1)
            chosen.append(pick(drawn, best))
            key = jax.random.fold_in(mix_key, number)
            share = self.most * jax.random.uniform(key, best.shape)[..., None]
            own = encoded.take(table, positives)[:, None]
            other = encoded.take(table, chosen[-1])
            mixed.append(share * own + (1 - share) * other)
        vectors = jnp.stack(mixed).mean(axis=0)
        weights = jnp.ones(vectors.shape[:2], vectors.dtype)
        return Negatives(vectors, weights, chosen[0])
