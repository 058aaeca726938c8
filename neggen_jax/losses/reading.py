"""What losses read; what is not there is an error that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from neggen_jax.errors import InputError, nearest
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Negatives

Drawn = Mapping[str, Negatives]


def drawn_by(negatives: Drawn, source: str) -> Negatives:
    """What a source has drawn."""
    if source not in negatives:
        raise InputError(
            f"A loss reads negatives of {source!r}, which nothing draws.",
            where="config.losses",
            fix=nearest(source, negatives),
        )
    return negatives[source]


def items_of(negatives: Drawn, source: str) -> jax.Array:
    """The items that a source has drawn, `[B, K]`."""
    items = drawn_by(negatives, source).items
    if items is None:
        raise InputError(
            "A loss looks negatives up in a table, and they stand in none.",
            where=f"config.losses, negatives of {source!r}",
            expected="a source that draws items of the catalogue",
        )
    return items


def own_of(negatives: Drawn, source: str) -> Negatives:
    """What a source has drawn that gives each pair some of its own."""
    drawn = drawn_by(negatives, source)
    if not drawn.weights.shape[1]:
        raise InputError(
            "A loss reads negatives of each pair, and all pairs share theirs.",
            where=f"config.losses, negatives of {source!r}",
            expected="the loss 'softmax', or another source",
        )
    return drawn


def view_of(encoded: Encoded, name: str) -> tuple[Any, Any]:
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


def unit(x: jax.Array) -> jax.Array:
    """Rows at length 1, in float32."""
    # As rows: over the last of [n, 1, d], sums take six times as long on CPU.
    rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    square = jnp.sum(rows * rows, axis=-1, keepdims=True)
    # The floor keeps the gradient of a zero row finite.
    rows *= jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    return rows.reshape(x.shape)
