"""Adam of one array, with the sums that its norms are made of.

Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, as
`optax.adamw` has it. XLA on CPU goes over an array once for everything that
is made of it, some 16 times altogether; the kernel in C++ does it in one go,
and so moves what has to be read and written, once each.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from neggen_jax.ops import native

# Fewer numbers than this are done sooner than a kernel is called.
_LEAST = 2**14


@flax.struct.dataclass
class Moments:
    """What Adam keeps of an array.

    Attributes:
      mean: running mean of gradients.
      square: running mean of their squares.
    """

    mean: jax.Array
    square: jax.Array


@flax.struct.dataclass
class Rates:
    """Numbers of one step, float32 scalars.

    Attributes:
      clip: factor on gradients.
      beta1: decay of the mean.
      beta2: decay of the mean square.
      rest1: 1 - beta1, rounded once.
      rest2: 1 - beta2, alike.
      unbias1: factor that makes up for a mean that began at 0.
      unbias2: the same of the mean square.
      epsilon: beside the root of the mean square.
      rate: the learning rate.
      decay: of weights.
    """

    clip: jax.Array
    beta1: jax.Array
    beta2: jax.Array
    rest1: jax.Array
    rest2: jax.Array
    unbias1: jax.Array
    unbias2: jax.Array
    epsilon: jax.Array
    rate: jax.Array
    decay: jax.Array


@flax.struct.dataclass
class Sums:
    """Sums of squares, float32 scalars.

    Attributes:
      gradient: of the gradient, before it is clipped.
      update: of what was added to the parameter.
    """

    gradient: jax.Array
    update: jax.Array


def apply(
    gradient: jax.Array,
    moments: Moments,
    parameter: jax.Array,
    rates: Rates,
    lazy: bool,
    one_cpu: bool,
) -> tuple[jax.Array, Moments, Sums]:
    """One step.

    Args:
      gradient: float32, of any shape.
      moments: before it.
      parameter: before it.
      rates: of this step.
      lazy: leaves rows, by the first axis, as they are, moments too, where the
        gradient is zero in all of the row.
      one_cpu: whether all of this is on one device, and that a CPU.

    Returns:
      Parameter and moments after it, and sums of squares.
    """
    kernel = (
        one_cpu
        and parameter.size >= _LEAST
        and parameter.ndim > 0
        and native.available()
    )
    if kernel:
        given = gradient, moments.mean, moments.square, parameter
        made = native.adam(*given, _vector(rates), lazy)
        mean, square, parameter, parts = made
        total = parts.sum(axis=0)
        return parameter, Moments(mean, square), Sums(total[0], total[1])
    clipped = gradient * rates.clip
    mean = rates.beta1 * moments.mean + rates.rest1 * clipped
    square = rates.beta2 * moments.square + rates.rest2 * clipped * clipped
    size = jnp.sqrt(square * rates.unbias2) + rates.epsilon
    update = mean * rates.unbias1 / size + rates.decay * parameter
    update = -rates.rate * update
    after = Moments(mean, square)
    if lazy and gradient.ndim:
        axes = tuple(range(1, gradient.ndim))
        touched = jnp.any(gradient != 0, axis=axes, keepdims=True)
        update = jnp.where(touched, update, 0)
        after = Moments(
            jnp.where(touched, mean, moments.mean),
            jnp.where(touched, square, moments.square),
        )
    return parameter + update, after, Sums(squared(gradient), squared(update))


def _vector(rates: Rates) -> jax.Array:
    return jnp.stack([jnp.float32(x) for x in jax.tree.leaves(rates)])


def squared(x: jax.Array) -> jax.Array:
    """The sum of the squares of all numbers."""
    # As a product: for a sum of squares, CPUs write the squares down first.
    return jnp.vdot(x, x, precision=jax.lax.Precision.HIGHEST)
