"""Dense layers of many rows, such as features, whose gradients are fast on CPU.

The gradient of a kernel is `x^T g`. XLA on CPU folds any transposition into the
product, and takes four times as long for it, where `x` is wide, as for `g^T x`,
which is computed here and transposed when it is done. There is no forward-mode
derivative.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`.

    Args:
      x: `[..., f]`.
      kernel: `[f, d]`.

    Returns:
      `[..., d]`.
    """
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> Any:
    return project(x, kernel), (x, kernel)


def _backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows, gradients = (v.reshape(-1, v.shape[-1]) for v in (x, g))
    # The barrier keeps the transposition out of the product.
    turned = jax.lax.optimization_barrier(gradients.T @ rows)
    return g @ kernel.T, turned.T


project.defvjp(_forward, _backward)


def _dot_general(x: Any, kernel: Any, *_: Any, **__: Any) -> jax.Array:
    return project(x, kernel)


# As `nn.Dense`, whose only product is that of its last axis.
Dense = functools.partial(nn.Dense, dot_general=_dot_general)
