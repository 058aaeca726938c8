"""Dense layers from wide vectors, such as features, to narrow ones.

The gradient of their kernel, `x^T g`, is thin and long. XLA on CPU folds any
transposition into the product and then takes four times as long for it as for
`g^T x`, which is computed here and transposed when it is done.
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
