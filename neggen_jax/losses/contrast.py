"""Losses that tell one vector apart from others by cosines (InfoNCE)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.errors import InputError
from neggen_jax.losses.logits import by_chunks, log_sum_exp
from neggen_jax.losses.reading import Drawn, drawn_by, unit, view_of
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Batch


def infonce(
    encoded: Encoded,
    batch: Batch,
    negatives: Drawn,
    *,
    left: str,
    right: str,
    temperature: float = 0.2,
) -> jax.Array:
    """In-batch InfoNCE between two views, users and positive items.

    Each row's own counterpart is its positive, the other rows' are its
    negatives; similarity is the cosine (van den Oord et al., 2018).

    Args:
      encoded: embeddings.
      batch: positive pairs.
      negatives: unused.
      left: view of the anchors.
      right: view that they are told apart in.
      temperature: divides the cosines.
    """
    del negatives
    total = jnp.zeros(())
    for side, rows in enumerate((batch["users"], batch["items"])):
        anchors = unit(encoded.take(view_of(encoded, left)[side], rows))
        others = unit(encoded.take(view_of(encoded, right)[side], rows))
        own = (anchors * others).sum(-1) / temperature
        total += jnp.mean(_normaliser(anchors, others, temperature) - own)
    return total


def alignment(
    encoded: Encoded,
    batch: Batch,
    negatives: Drawn,
    *,
    source: str = "counterfactual",
    temperature: float = 0.2,
    anchor: str = "item",
    others: int = 0,
) -> jax.Array:
    """Draws the causal effect of an item towards an embedding (NegGen).

    InfoNCE by cosines: the anchor is the embedding `e_i`, its positive the
    effect `c_i`, its negatives the item's counterfactual effects `c~_ik`. As
    released, the loss has no positive in the denominator and no lower bound;
    here it has both.

    Args:
      encoded: embeddings.
      batch: positive pairs.
      negatives: by source.
      source: which has the effects.
      temperature: divides the cosines.
      anchor: "item", or "user" for `e_u` instead: the effect is then what
        tells the items that a user chose.
      others: how many of the batch's pairs lend the effects of their items
        as further negatives; at equal distances, so that all parts of the
        interactions have some (`data/batches.py`).

    Returns:
      The mean over the pairs whose item has an effect.
    """
    effect = drawn_by(negatives, source).effect
    if effect is None:
        raise InputError(
            "A loss reads causal effects, and the source has none.",
            where=f"config.losses, negatives of {source!r}",
            expected="a source that is 'counterfactual'",
        )
    if anchor not in ("item", "user"):
        raise InputError(
            "A loss has an unknown anchor.",
            where="config.losses, alignment",
            expected="'item' or 'user'",
            found=repr(anchor),
        )
    users, items = batch["users"], batch["items"]
    by_user = anchor == "user"
    table, rows = (encoded.users, users) if by_user else (encoded.items, items)
    anchors = unit(encoded.take(table, rows))
    ours, theirs = unit(effect.factual), unit(effect.counterfactual)
    own = (anchors * ours).sum(-1) / temperature
    wrong = jnp.einsum("bd,bkd->bk", anchors, theirs) / temperature
    wrong = jnp.where(effect.present, wrong, -jnp.inf)
    beside = jnp.concatenate([own[:, None], wrong], axis=1)
    if others:
        # The same item again is no negative of itself, nor are those of a
        # user's own items that the batch shows to be such.
        count = min(others, len(items))
        some = np.arange(count) * len(items) // count
        left_out = (items[:, None] == items[some]) | ~effect.known[some]
        if by_user:
            left_out |= users[:, None] == users[some]
        total = log_sum_exp(
            anchors / temperature, ours[some], 1 / temperature, left_out, beside
        )
    else:
        total = jax.nn.logsumexp(beside, axis=1)
    there = effect.known
    if not others:
        # Told from nothing, an effect learns nothing.
        there &= effect.present.any(axis=1)
    return ((total - own) * there).sum() / jnp.maximum(there.sum(), 1)


def _normaliser(
    anchors: jax.Array, others: jax.Array, temperature: float
) -> jax.Array:
    """Log-sum-exp of each anchor's cosines with all others, `[B]`.

    Of the whole batch, whatever the devices; by chunks of anchors, which the
    backward pass computes once more, so that no `[B, B]` is ever held.
    """

    def chunk(some: jax.Array) -> jax.Array:
        return log_sum_exp(some / temperature, others, 1 / temperature)

    return by_chunks(chunk, len(others), anchors)
