"""How hard generated negatives are, and how wrong; to be logged.

Everything here is measured on a few pairs of the batch and gives scalars by
the name of a level. A level that has no negatives yet gives NaN, which is not
logged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.catalogue import uniform
from neggen_jax.negatives.source import Batch
from neggen_jax.ops.positives import kth_positive, num_positives

# Train positives of a user that a negative is compared with, at most.
_POSITIVES = 32
# Nearer than this (cosine distance) to a train positive, a negative is false.
MARGIN = 0.1


def measure(
    key: jax.Array,
    encoded: Encoded,
    inputs: Inputs,
    pairs: Batch,
    vectors: jax.Array,
    weights: jax.Array,
    levels: dict[str, list[int]],
) -> dict[str, jax.Array]:
    """Measures of each level.

    `hardness` is 0 where a negative scores no more than a uniform one of the
    same user and 1 where it scores as much as the positive; `score` is that
    inner product itself, also of "positive" and "uniform". `distance` is the
    cosine distance to the user's nearest train positive, and
    `false_negatives` the share nearer than `MARGIN`. `diversity` is the mean
    cosine distance among the samples of one pair.

    Args:
      key: of the uniform draw.
      encoded: of all users and items.
      inputs: for train positives.
      pairs: users and items, `[P]` each.
      vectors: of their negatives, `[P, Q, d]`.
      weights: `[P, Q]`, 0 for a negative that does not count.
      levels: name -> its places among the Q.

    Returns:
      "<measure>/<level>" -> float32 scalar.
    """
    users, items = encoded.users[pairs["users"]], encoded.items[pairs["items"]]
    drawn = encoded.items[uniform(key, inputs.positives, pairs["users"])]
    positive = (users * items).sum(-1).mean()
    sampled = (users * drawn).sum(-1).mean()
    scores = jnp.einsum("pd,pqd->pq", users, vectors)
    near = _nearest(encoded, inputs, pairs, vectors)
    out = {"score/positive": positive, "score/uniform": sampled}
    # Near 0, and worth nothing, until the encoder has learnt something.
    gap = positive - sampled
    for name, places in levels.items():
        at = jnp.asarray(places)
        weight = weights[:, at]
        score = _mean(scores[:, at], weight)
        out[f"score/{name}"] = score
        out[f"hardness/{name}"] = (score - sampled) / gap
        out[f"distance/{name}"] = _mean(near[:, at], weight)
        out[f"false_negatives/{name}"] = _mean(near[:, at] < MARGIN, weight)
        if len(places) > 1:
            out[f"diversity/{name}"] = _spread(vectors[:, at], weight)
    return out


def _nearest(
    encoded: Encoded, inputs: Inputs, pairs: Batch, vectors: jax.Array
) -> jax.Array:
    """Cosine distance to the nearest train positive, `[P, Q]`."""
    users, positives = pairs["users"][:, None], inputs.positives
    degree = num_positives(positives, users)
    # Evenly over the user's positives, in float32 for want of int64.
    way = jnp.arange(_POSITIVES) / _POSITIVES
    places = (way * degree).astype(jnp.int32)
    users = jnp.broadcast_to(users, places.shape)
    others = kth_positive(positives, users, places)
    everyone = jnp.concatenate([others, pairs["items"][:, None]], axis=1)
    unit = _unit(encoded.items[everyone])
    cosines = jnp.einsum("pnd,pqd->pqn", unit, _unit(vectors))
    return 1 - cosines.max(axis=-1)


def _spread(vectors: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean cosine distance between the samples of a pair, where all count."""
    count = vectors.shape[1]
    total = jnp.square(_unit(vectors).sum(axis=1)).sum(-1)
    apart = 1 - (total - count) / (count * (count - 1))
    return _mean(apart, weight.min(axis=1))


def _mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    return (values * weight).sum() / weight.sum()


def _unit(x: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(norm, 1e-12)
