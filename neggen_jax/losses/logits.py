"""Logits of a whole batch, of which no `[B, B]` is ever held."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Logits that are held at a time, of all devices: 256 MiB.
LIMIT = 2**26


def by_chunks(
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
    wanted = min(count, math.ceil(count * width / LIMIT))
    chunks = next(n for n in range(wanted, count + 1) if count % n == 0)
    if chunks == 1:
        return chunk(*rows)
    # Every n-th is of the same chunk: each device cuts what it holds.
    cut = [x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1) for x in rows]
    again = jax.checkpoint(chunk)
    out = jax.lax.map(lambda some: again(*some), tuple(cut))
    return out.swapaxes(0, 1).reshape(-1)


def log_sum_exp(logits: jax.Array, bound: float) -> jax.Array:
    """Log-sum-exp of each row of logits that lie within +-`bound`."""
    if 2 * bound > 80:
        # Shifted by the bound, every term might underflow.
        return jax.nn.logsumexp(logits, axis=1)
    # The known bound spares the search for each row's maximum, forward and
    # backward: over three times as fast on CPU.
    return bound + jnp.log(jnp.exp(logits - bound).sum(axis=1))
