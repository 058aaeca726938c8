"""Logits of a whole batch, of which no `[B, B]` is ever held."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from neggen_jax.ops import native, wide

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


def log_sum_exp(
    anchors: jax.Array, others: jax.Array, bound: float
) -> jax.Array:
    """Log-sum-exp of each anchor's inner products with all others.

    Args:
      anchors: float32 `[n, d]`.
      others: float32 `[m, d]`.
      bound: the products lie within +-`bound`.

    Returns:
      `[n]`.
    """
    if 2 * bound > 80:
        # Shifted by the bound, every term might underflow.
        return jax.nn.logsumexp(anchors @ others.T, axis=1)
    # The known bound spares the search for each row's maximum, forward and
    # backward: over three times as fast on CPU.
    of = _sums if native.alone() and native.has_avx512() else _by_xla
    return bound + jnp.log(of(anchors, others, bound)[1])


Exps = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sums(anchors: jax.Array, others: jax.Array, bound: float) -> Exps:
    """Exponentials, of which there is no gradient, and sums of their rows."""
    made: Exps = jax.lax.platform_dependent(
        anchors,
        others,
        cpu=functools.partial(native.exps, bound=bound),
        default=functools.partial(_by_xla, bound=bound),
    )
    return made


def _forward(anchors: jax.Array, others: jax.Array, bound: float) -> Any:
    made = _sums(anchors, others, bound)
    return made, (made[0], anchors, others)


def _backward(bound: float, kept: Any, given: Exps) -> Exps:
    del bound
    exps, anchors, others = kept
    g = given[1][:, None]
    # Vectors are scaled, and not the exponentials: they are far fewer.
    rows = jnp.arange(len(exps))
    product = functools.partial(wide.project_rows, (exps,), rows)
    of_anchors, backward = jax.vjp(product, others)
    return g * of_anchors, *backward(g * anchors)


_sums.defvjp(_forward, _backward)


def _by_xla(anchors: jax.Array, others: jax.Array, bound: float) -> Exps:
    exps = jnp.exp(anchors @ others.T - bound)
    return exps, exps.sum(axis=1)
