"""Losses that rank a positive above negatives, and the norms beside them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from neggen_jax.errors import InputError
from neggen_jax.losses.logits import by_chunks
from neggen_jax.losses.reading import (
    Drawn,
    drawn_by,
    items_of,
    own_of,
    view_of,
)
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Batch, Negatives, Shared

# What stands for a logit that is none; its exponential is 0.
_NEVER = -1e30


def bpr(
    encoded: Encoded,
    batch: Batch,
    negatives: Drawn,
    *,
    source: str = "sampled",
    view: str = "",
) -> jax.Array:
    """Bayesian personalised ranking (Rendle et al., UAI 2009).

    The mean over pairs and their negatives of `softplus(y_neg - y_pos)`,
    which is `-log sigmoid(y_pos - y_neg)` in its stable form.

    Args:
      encoded: embeddings.
      batch: positive pairs.
      negatives: by source.
      source: whose negatives.
      view: which tables score; a view needs negatives that are items.
    """
    drawn = own_of(negatives, source)
    user_table, item_table = view_of(encoded, view)
    users = encoded.take(user_table, batch["users"]).astype(jnp.float32)
    if view:
        items, vectors = encoded.take_together(
            item_table, batch["items"], items_of(negatives, source)
        )
    else:
        items, vectors = _positives(encoded, batch, drawn), drawn.vectors
    items = items.astype(jnp.float32)
    weights = drawn.weights.astype(jnp.float32)
    positive = (users * items).sum(-1, keepdims=True)
    negative = _products(users, vectors.astype(jnp.float32))
    losses = jax.nn.softplus(negative - positive) * weights
    return losses.sum() / jnp.maximum(weights.sum(), 1.0)


def content_bpr(
    encoded: Encoded,
    batch: Batch,
    negatives: Drawn,
    *,
    source: str = "sampled",
    views: tuple[str, ...] = (),
) -> jax.Array:
    """The sum of `bpr` over modality views (FREEDOM, ACM MM 2023, eq. 15).

    Args:
      encoded: embeddings.
      batch: positive pairs.
      negatives: by source.
      source: whose negatives.
      views: which ones; () takes all but "ego".
    """
    names = views or tuple(name for name in encoded.views if name != "ego")
    if not names:
        raise InputError(
            "A loss reads the views of an encoder that has none but 'ego'.",
            where="config.losses, content_bpr",
            fix="leave the loss out, or choose another encoder",
        )
    terms = [
        bpr(encoded, batch, negatives, source=source, view=name)
        for name in names
    ]
    return jnp.sum(jnp.stack(terms))


def softmax(
    encoded: Encoded,
    batch: Batch,
    negatives: Drawn,
    *,
    source: str = "sampled",
    temperature: float = 1.0,
) -> jax.Array:
    """Sampled softmax: the positive among its negatives.

    The mean over pairs of `log(e^p + sum_k w_k e^n_k) - p`, of scores as items
    are ranked by (Bengio and Senecal, IEEE TNN 2008). Negatives that the
    whole batch shares, over all devices, stand in the sum beside the pair's
    own, and what their source adds to logits is added to p as well (logQ;
    Yi et al., RecSys 2019).

    Args:
      encoded: embeddings.
      batch: positive pairs.
      negatives: by source.
      source: whose negatives.
      temperature: divides the scores.
    """
    drawn = drawn_by(negatives, source)
    users = encoded.take(encoded.users, batch["users"]).astype(jnp.float32)
    items = _positives(encoded, batch, drawn)
    users = users / temperature
    positive = (users * items.astype(jnp.float32)).sum(-1)
    sums = []
    if drawn.weights.shape[1]:
        weights = drawn.weights.astype(jnp.float32)
        logits = _products(users, drawn.vectors.astype(jnp.float32))
        sums.append(jax.nn.logsumexp(logits, axis=1, b=weights))
    if drawn.shared is not None:
        positive += drawn.shared.own
        sums.append(_shared(encoded, users, drawn.shared))
    sums.append(positive)
    total = functools.reduce(jnp.logaddexp, sums)
    return (total - positive).mean()


def l2(
    encoded: Encoded,
    batch: Batch,
    negatives: Drawn,
    *,
    source: str = "sampled",
    view: str = "ego",
) -> jax.Array:
    """Half the squared norms of the embeddings that the batch reads, per pair.

    A negative counts by its weight, and the K of a pair as one together.
    Those that all pairs share are positives, and count as such.

    Args:
      encoded: embeddings.
      batch: positive pairs.
      negatives: by source; they must be items.
      source: whose negatives; "" for those of pairs alone.
      view: "ego" for free embeddings, "" for the final ones.
    """
    user_table, item_table = view_of(encoded, view)
    users = encoded.take(user_table, batch["users"])
    weights = jnp.zeros((len(users), 0))
    if source:
        weights = drawn_by(negatives, source).weights
    if count := weights.shape[1]:
        drawn = items_of(negatives, source)
        items, vectors = encoded.take_together(
            item_table, batch["items"], drawn
        )
        squares = (_squares(vectors) * weights).sum() / count
    else:
        items = encoded.take(item_table, batch["items"])
        squares = jnp.zeros(())
    squares += _squares(users).sum() + _squares(items).sum()
    return squares / (2 * len(users))


def _positives(encoded: Encoded, batch: Batch, drawn: Negatives) -> jax.Array:
    """What the positives are scored by beside some negatives, `[B, d]`."""
    if drawn.positives is not None:
        return drawn.positives
    return encoded.take(encoded.items, batch["items"])


def _products(users: jax.Array, vectors: jax.Array) -> jax.Array:
    """Inner products of `[B, d]` with `[B, K, d]`, `[B, K]`."""
    if vectors.shape[1] == 1:
        # CPUs are slow at batches of products of single vectors.
        return (users * vectors[:, 0]).sum(-1, keepdims=True)
    return jnp.einsum("bd,bkd->bk", users, vectors)


def _shared(encoded: Encoded, users: jax.Array, shared: Shared) -> jax.Array:
    """Log-sum-exp of each user's logits of the shared items, `[B]`."""
    items = encoded.take(encoded.items, shared.items).astype(jnp.float32)

    def chunk(some: jax.Array, left_out: jax.Array) -> jax.Array:
        logits = some @ items.T + shared.offsets
        # Finite, so that one to whom nothing is left has a gradient: of 0.
        return jax.nn.logsumexp(jnp.where(left_out, _NEVER, logits), axis=1)

    return by_chunks(chunk, len(items), users, shared.left_out)


def _squares(x: jax.Array) -> jax.Array:
    return jnp.square(x.astype(jnp.float32)).sum(-1)
