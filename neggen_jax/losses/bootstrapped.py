"""Losses without negatives: what is encoded predicts itself (BM3)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from neggen_jax.losses.reading import Drawn, unit, view_of
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Batch


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
    tables, met = view_of(encoded, ""), view_of(encoded, "target")
    for table, target, ids, one in zip(tables, met, rows, keys, strict=True):
        online.append(unit(encoded.take(table, ids)))
        targets.append(_target(encoded, target, ids, one, dropout))
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
    met = view_of(encoded, "target")[1]
    item = _target(encoded, met, items, keys[0], dropout)
    total = jnp.zeros(())
    for name, one in zip(names, keys[1:], strict=True):
        predicted = unit(encoded.take(view_of(encoded, name)[1], items))
        own = view_of(encoded, f"{name}_target")[1]
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
    return unit(jnp.where(kept, rows, 0))
