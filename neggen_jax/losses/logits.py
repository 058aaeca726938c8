"""Logits of a whole batch, of which just so many are ever held.

On one CPU with AVX2 there is no forward-mode derivative.
"""

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
    anchors: jax.Array,
    others: jax.Array,
    bound: float,
    left_out: jax.Array | None = None,
    beside: jax.Array | None = None,
) -> jax.Array:
    """Log-sum-exp of each anchor's inner products with all others.

    Args:
      anchors: float32 `[n, d]`.
      others: float32 `[m, d]`.
      bound: the products, and what stands beside them, lie within +-`bound`.
      left_out: bool `[n, m]`, which products do not count; all do, if None.
        Something is to count in each row, a product or what stands beside.
      beside: `[n, k]`, logits that count as well; -inf does not.

    Returns:
      `[n]`.
    """
    if 2 * bound > 80:
        # Shifted by the bound, every term might underflow.
        logits = anchors @ others.T
        if left_out is not None:
            logits = jnp.where(left_out, -jnp.inf, logits)
        if beside is not None:
            logits = jnp.concatenate([logits, beside], axis=1)
        return jax.nn.logsumexp(logits, axis=1)
    # The known bound spares the search for each row's maximum, forward and
    # backward: over three times as fast on CPU.
    if native.exponentiates(anchors, others):
        sums = _sums(anchors, others, left_out, bound)
    else:
        exps = jnp.exp(anchors @ others.T - bound)
        sums = _counted(exps, left_out).sum(axis=1)
    if beside is not None:
        sums += jnp.exp(beside - bound).sum(axis=1)
    return bound + jnp.log(sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sums(
    anchors: jax.Array,
    others: jax.Array,
    left_out: jax.Array | None,
    bound: float,
) -> jax.Array:
    """Sums of exponentials of what products exceed the bound by."""
    return _exps(anchors, others, left_out, bound)[1]


def _exps(
    anchors: jax.Array,
    others: jax.Array,
    left_out: jax.Array | None,
    bound: float,
) -> tuple[jax.Array, jax.Array]:
    """The exponentials, `[n, m]`, and the sums of their rows."""

    def by_xla(anchors: jax.Array, others: jax.Array) -> Any:
        exps = jnp.exp(anchors @ others.T - bound)
        return exps, exps.sum(axis=1)

    exps, sums = jax.lax.platform_dependent(
        anchors,
        others,
        cpu=functools.partial(native.exps, bound=bound),
        default=by_xla,
    )
    if left_out is None:
        return exps, sums
    exps = _counted(exps, left_out)
    return exps, exps.sum(axis=1)


def _counted(exps: jax.Array, left_out: jax.Array | None) -> jax.Array:
    return exps if left_out is None else jnp.where(left_out, 0, exps)


def _forward(
    anchors: jax.Array,
    others: jax.Array,
    left_out: jax.Array | None,
    bound: float,
) -> Any:
    exps, sums = _exps(anchors, others, left_out, bound)
    return sums, (exps, anchors, others)


def _backward(bound: float, kept: Any, g: jax.Array) -> Any:
    del bound
    exps, anchors, others = kept
    # Vectors are scaled, and not the exponentials: they are far fewer.
    rows = jnp.arange(len(exps))
    product = functools.partial(wide.project_rows, (exps,), rows)
    of_anchors, backward = jax.vjp(product, others)
    return g[:, None] * of_anchors, *backward(g[:, None] * anchors), None


_sums.defvjp(_forward, _backward)
