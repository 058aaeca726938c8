"""Losses: pure functions of what was encoded, the batch and its negatives.

Each takes `(encoded, batch, negatives)` and keywords from the config, and
returns a scalar. `negatives` maps the names that the config gave its sources
to what they drew. A loss that draws random numbers asks for a `key`, which is
one of the step's. All means are over the batch, in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.errors import InputError, nearest
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Batch, Negatives, Shared

Drawn = Mapping[str, Negatives]

# In-batch logits that are held at a time, of all devices: 256 MiB.
_LOGITS = 2**26
# What stands for a logit that is none; its exponential is 0.
_NEVER = -1e30


def _drawn(negatives: Drawn, source: str) -> Negatives:
    if source not in negatives:
        raise InputError(
            f"A loss reads negatives of {source!r}, which nothing draws.",
            where="config.losses",
            fix=nearest(source, negatives),
        )
    return negatives[source]


def _items(negatives: Drawn, source: str) -> jax.Array:
    items = _drawn(negatives, source).items
    if items is None:
        raise InputError(
            "A loss looks negatives up in a table, and they stand in none.",
            where=f"config.losses, negatives of {source!r}",
            expected="a source that draws items of the catalogue",
        )
    return items


def _own(negatives: Drawn, source: str) -> Negatives:
    """Of a source that gives each pair some of its own."""
    drawn = _drawn(negatives, source)
    if not drawn.weights.shape[1]:
        raise InputError(
            "A loss reads negatives of each pair, and all pairs share theirs.",
            where=f"config.losses, negatives of {source!r}",
            expected="the loss 'softmax', or another source",
        )
    return drawn


def _view(encoded: Encoded, name: str) -> tuple[Any, Any]:
    """The tables of a view; "" stands for the final embeddings."""
    if not name:
        return encoded.users, encoded.items
    if name not in encoded.views:
        raise InputError(
            f"A loss reads the view {name!r}, which the encoder lacks.",
            where="config.losses",
            fix=nearest(name, encoded.views),
        )
    return encoded.views[name]


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
    drawn = _own(negatives, source)
    user_table, item_table = _view(encoded, view)
    users = encoded.take(user_table, batch["users"]).astype(jnp.float32)
    items = encoded.take(item_table, batch["items"]).astype(jnp.float32)
    if drawn.positives is not None and not view:
        items = drawn.positives
    vectors = drawn.vectors
    if view:
        vectors = encoded.take(item_table, _items(negatives, source))
    weights = drawn.weights.astype(jnp.float32)
    positive = (users * items).sum(-1, keepdims=True)
    negative = _products(users, vectors.astype(jnp.float32))
    losses = jax.nn.softplus(negative - positive) * weights
    return losses.sum() / jnp.maximum(weights.sum(), 1.0)


def _products(users: jax.Array, vectors: jax.Array) -> jax.Array:
    """Inner products of `[B, d]` with `[B, K, d]`, `[B, K]`."""
    if vectors.shape[1] == 1:
        # CPUs are slow at batches of products of single vectors.
        return (users * vectors[:, 0]).sum(-1, keepdims=True)
    return jnp.einsum("bd,bkd->bk", users, vectors)


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
    user_table, item_table = _view(encoded, view)
    squares = (
        _squares(encoded.take(user_table, batch["users"])).sum()
        + _squares(encoded.take(item_table, batch["items"])).sum()
    )
    if not source:
        return squares / (2 * len(batch["users"]))
    weights = _drawn(negatives, source).weights
    if count := weights.shape[1]:
        drawn = _squares(encoded.take(item_table, _items(negatives, source)))
        squares += (drawn * weights).sum() / count
    return squares / (2 * len(batch["users"]))


def _squares(x: jax.Array) -> jax.Array:
    return jnp.square(x.astype(jnp.float32)).sum(-1)


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
    drawn = _drawn(negatives, source)
    users = encoded.take(encoded.users, batch["users"]).astype(jnp.float32)
    items = encoded.take(encoded.items, batch["items"])
    if drawn.positives is not None:
        items = drawn.positives
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


def _shared(encoded: Encoded, users: jax.Array, shared: Shared) -> jax.Array:
    """Log-sum-exp of each user's logits of the shared items, `[B]`."""
    items = encoded.take(encoded.items, shared.items).astype(jnp.float32)

    def chunk(some: jax.Array, left_out: jax.Array) -> jax.Array:
        logits = some @ items.T + shared.offsets
        # Finite, so that one to whom nothing is left has a gradient: of 0.
        return jax.nn.logsumexp(jnp.where(left_out, _NEVER, logits), axis=1)

    return _by_chunks(chunk, len(items), users, shared.left_out)


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
        anchors = _unit(encoded.take(_view(encoded, left)[side], rows))
        others = _unit(encoded.take(_view(encoded, right)[side], rows))
        own = (anchors * others).sum(-1) / temperature
        total += jnp.mean(_normaliser(anchors, others, temperature) - own)
    return total


def _normaliser(
    anchors: jax.Array, others: jax.Array, temperature: float
) -> jax.Array:
    """Log-sum-exp of each anchor's cosines with all others, `[B]`.

    Of the whole batch, whatever the devices; by chunks of anchors, which the
    backward pass computes once more, so that no `[B, B]` is ever held.
    """

    def chunk(some: jax.Array) -> jax.Array:
        return _log_sum_exp(some @ others.T / temperature, 1 / temperature)

    return _by_chunks(chunk, len(others), anchors)


def _by_chunks(
    chunk: Callable[..., jax.Array], width: int, *rows: jax.Array
) -> jax.Array:
    """Computes logits of chunks of rows, one after another.

    Args:
      chunk: of some of the rows, one number each.
      width: logits of a row.
      *rows: `[B, ...]` each.

    Returns:
      `[B]`.
    """
    count = len(rows[0])
    wanted = min(count, math.ceil(count * width / _LOGITS))
    chunks = next(n for n in range(wanted, count + 1) if count % n == 0)
    if chunks == 1:
        return chunk(*rows)
    # Every n-th is of the same chunk: each device cuts what it holds.
    cut = [x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1) for x in rows]
    again = jax.checkpoint(chunk)
    out = jax.lax.map(lambda some: again(*some), tuple(cut))
    return out.swapaxes(0, 1).reshape(-1)


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
    effect = _drawn(negatives, source).effect
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
    anchors = _unit(encoded.take(table, rows))
    ours, theirs = _unit(effect.factual), _unit(effect.counterfactual)
    own = (anchors * ours).sum(-1) / temperature
    wrong = jnp.einsum("bd,bkd->bk", anchors, theirs) / temperature
    logits = [own[:, None], jnp.where(effect.present, wrong, -jnp.inf)]
    if others:
        # The same item again is no negative of itself, nor are those of a
        # user's own items that the batch shows to be such.
        count = min(others, len(items))
        some = np.arange(count) * len(items) // count
        left_out = (items[:, None] == items[some]) | ~effect.known[some]
        if by_user:
            left_out |= users[:, None] == users[some]
        cross = anchors @ ours[some].T / temperature
        logits.append(jnp.where(left_out, -jnp.inf, cross))
    apart = jax.nn.logsumexp(jnp.concatenate(logits, axis=1), axis=1) - own
    there = effect.known
    if not others:
        # Told from nothing, an effect learns nothing.
        there &= effect.present.any(axis=1)
    return (apart * there).sum() / jnp.maximum(there.sum(), 1)


def bootstrap(
    encoded: Encoded,
    batch: Batch,
    negatives: Drawn,
    *,
    key: jax.Array,
    dropout: float = 0.3,
) -> jax.Array:
    """Users and items of a pair predict each other (BM3, WWW 2023, eq. 8).

    `2 - cos(p_u, t_i) - cos(p_i, t_u)`: final embeddings p against those of
    the view "target", t, of which entries are dropped, without a gradient.
    No negatives keep them from all being alike, only that stopped gradient.

    Args:
      encoded: embeddings, with a view "target".
      batch: positive pairs.
      negatives: unused.
      key: of what is dropped.
      dropout: share of the targets' entries that is 0.
    """
    del negatives
    rows = batch["users"], batch["items"]
    keys = jax.random.split(key)
    online, targets = [], []
    for table, met, ids, one in zip(
        _view(encoded, ""), _view(encoded, "target"), rows, keys, strict=True
    ):
        online.append(_unit(encoded.take(table, ids)))
        targets.append(_target(encoded, met, ids, one, dropout))
    agree = (online[0] * targets[1] + online[1] * targets[0]).sum(-1)
    return 2 - agree.mean()


def content_bootstrap(
    encoded: Encoded,
    batch: Batch,
    negatives: Drawn,
    *,
    key: jax.Array,
    dropout: float = 0.3,
    views: tuple[str, ...] = (),
) -> jax.Array:
    """Modalities predict the item, and themselves (BM3, eq. 10-11).

    The sum over modality views m of `2 - cos(p_m, t_i) - cos(p_m, t_m)`, the
    mean over the pairs whose item has the modality; targets as of
    `bootstrap`.

    Args:
      encoded: embeddings, with a view "target", and for each modality's
        another, with `_target` at the end of its name.
      batch: positive pairs.
      negatives: unused.
      key: of what is dropped.
      dropout: share of the targets' entries that is 0.
      views: which ones; () takes all that have a target.
    """
    del negatives
    # In an order of their own, by which keys are dealt.
    names = views or sorted(
        name for name in encoded.views if f"{name}_target" in encoded.views
    )
    items = batch["items"]
    keys = jax.random.split(key, len(names) + 1)
    met = _view(encoded, "target")[1]
    item = _target(encoded, met, items, keys[0], dropout)
    total = jnp.zeros(())
    for name, one in zip(names, keys[1:], strict=True):
        predicted = _unit(encoded.take(_view(encoded, name)[1], items))
        own = _view(encoded, f"{name}_target")[1]
        both = item + _target(encoded, own, items, one, dropout)
        apart = 2 - (predicted * both).sum(-1)
        there = jnp.ones_like(apart)
        if name in encoded.present:
            there = encoded.take(encoded.present[name], items)[:, 0]
        total += (apart * there).sum() / jnp.maximum(there.sum(), 1)
    return total


def _target(
    encoded: Encoded, table: Any, ids: jax.Array, key: jax.Array, dropout: float
) -> jax.Array:
    """Rows at length 1, some of their entries dropped, without a gradient."""
    rows = jax.lax.stop_gradient(encoded.take(table, ids))
    kept = jax.random.bernoulli(key, 1 - dropout, rows.shape)
    return _unit(jnp.where(kept, rows, 0))


def _log_sum_exp(logits: jax.Array, bound: float) -> jax.Array:
    """Log-sum-exp of each row of logits that lie within +-`bound`."""
    if 2 * bound > 80:
        # Shifted by the bound, every term might underflow.
        return jax.nn.logsumexp(logits, axis=1)
    # The known bound spares the search for each row's maximum, forward and
    # backward: over three times as fast on CPU.
    return bound + jnp.log(jnp.exp(logits - bound).sum(axis=1))


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # The floor keeps the gradient of a zero row finite.
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "alignment": alignment,
    "bootstrap": bootstrap,
    "bpr": bpr,
    "content_bootstrap": content_bootstrap,
    "content_bpr": content_bpr,
    "infonce": infonce,
    "l2": l2,
    "softmax": softmax,
}
