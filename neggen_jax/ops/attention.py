"""Attention of a few tokens to one another, and the mean of what they find.

Multi-head scaled dot-product attention (Vaswani et al., 2017). As it is
usually computed, these are very many products of tiny matrices, over which
CPUs take several times as long: XLA multiplies all entries of a pair of
tokens, and adds them up head by head; on one CPU a kernel reads every token
once (`cc/attend.h`), and there is no forward-mode derivative.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.ops import native

# Tokens and entries that the kernel holds at once.
_TOKENS, _ENTRIES = 8, 16


def attend(mapped: jax.Array, shares: jax.Array, heads: int) -> jax.Array:
    """The weighted mean of what tokens attend to.

    Args:
      mapped: `[m, n, ..., 3 d]`, the query, key and value of each of m
        tokens.
      shares: `[m, n]`, of each token in the mean; nothing attends to those
        whose share is 0. No gradient reaches them.
      heads: h; they divide d.

    Returns:
      `[n, ..., d]`; zeros where no token has a share.
    """
    dim = mapped.shape[-1] // 3
    inner = mapped.shape[1:-1]
    flat = mapped.reshape(len(mapped), -1, 3 * dim)
    of = _natively if attends(flat, heads) else _by_xla
    shares = jax.lax.stop_gradient(shares).astype(jnp.float32)
    mean: jax.Array = of(flat, shares, heads)
    return mean.reshape(*inner, dim)


def attends(mapped: jax.Array, heads: int) -> bool:
    """Whether there is one device, and it has a kernel for such tokens.

    Args:
      mapped: `[m, N, 3 d]`.
      heads: h.
    """
    tokens, rows, wide = mapped.shape
    return (
        native.alone()
        and native.available()
        and mapped.dtype == jnp.float32
        and 0 < tokens <= _TOKENS
        and rows > 0
        and wide // 3 % _ENTRIES == 0
        and _ENTRIES % (wide // 3 // heads) == 0
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _natively(mapped: jax.Array, shares: jax.Array, heads: int) -> jax.Array:
    made: jax.Array = jax.lax.platform_dependent(
        mapped,
        shares,
        cpu=functools.partial(_by_kernel, heads=heads),
        default=functools.partial(_by_xla, heads=heads),
    )
    return made


def _forward(mapped: jax.Array, shares: jax.Array, heads: int) -> Any:
    return _natively(mapped, shares, heads), (mapped, shares)


def _backward(heads: int, kept: Any, g: jax.Array) -> tuple[jax.Array, None]:
    def by_xla(mapped: jax.Array, shares: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _by_xla(x, shares, heads), mapped)[1](g)[0]

    gradient: jax.Array = jax.lax.platform_dependent(
        *kept,
        g,
        cpu=functools.partial(_gradient_by_kernel, heads=heads),
        default=by_xla,
    )
    return gradient, None


_natively.defvjp(_forward, _backward)


def _by_kernel(mapped: jax.Array, shares: jax.Array, heads: int) -> jax.Array:
    """`attend` of tokens `[m, N, 3 d]`; of shares, `[m, N / each]`."""
    _, rows, wide = mapped.shape
    like = jax.ShapeDtypeStruct((rows, wide // 3), jnp.float32)
    return _call("neggen_attend", like, heads, mapped, shares)


def _gradient_by_kernel(
    mapped: jax.Array, shares: jax.Array, g: jax.Array, heads: int
) -> jax.Array:
    """That of the tokens, for `g` `[N, d]` of what `_by_kernel` returns."""
    like = jax.ShapeDtypeStruct(mapped.shape, jnp.float32)
    name = "neggen_attend_backward"
    return _call(name, like, heads, mapped, shares, g)


def _call(
    name: str, like: jax.ShapeDtypeStruct, heads: int, *given: jax.Array
) -> jax.Array:
    width = np.int64(given[0].shape[-1] // 3 // heads)
    call = jax.ffi.ffi_call(name, like, vmap_method="sequential")
    made: jax.Array = call(*given, width=width)
    return made


def _by_xla(mapped: jax.Array, shares: jax.Array, heads: int) -> jax.Array:
    """`attend` of tokens `[m, N, 3 d]`, in any XLA."""
    # Of each row, as many have their shares in common as there are.
    each = mapped.shape[1] // max(shares.shape[1], 1)
    shares = jnp.repeat(shares, each, axis=1)[..., None].astype(mapped.dtype)
    # Whatever is not there, even what is no number, counts for nothing.
    mapped = jnp.where(shares > 0, mapped, 0)
    queries, keys, values = jnp.split(mapped, 3, axis=-1)
    width = queries.shape[-1] // heads
    # Which entries are of which head, `[d, h]`.
    of_head = np.repeat(np.eye(heads, dtype=mapped.dtype), width, axis=0)
    mean = jnp.zeros(())
    for query, share in zip(queries, shares, strict=True):
        logits = []
        for key, known in zip(keys, shares > 0, strict=True):
            logit = (query * key) @ of_head / math.sqrt(width)
            never = jnp.finfo(logit.dtype).min
            logits.append(jnp.where(known, logit, never))
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
        exps = [jnp.exp(logit - top) for logit in logits]
        scale = share / functools.reduce(jnp.add, exps)
        for exp, value in zip(exps, values, strict=True):
            mean += (exp * scale) @ of_head.T * value
    return mean
