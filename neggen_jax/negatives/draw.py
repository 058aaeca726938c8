"""Negatives drawn by a denoiser, on several levels at once.

The denoiser is told of a level's modalities alone, or of several sets of them
whose outputs guidance weighs (`difficulty.py`); from noise to x_0 it goes by
`process.py`. On one CPU with AVX2 a few rows go all the way back together,
and nothing of the way is written down.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from neggen_jax.models.denoiser import Conditions, Denoiser
from neggen_jax.negatives.difficulty import Level
from neggen_jax.negatives.process import Reverse
from neggen_jax.ops import native

# What a level's negatives are drawn by: each of some sets of conditions,
# `[B, w]`, and its weight.
_Told: TypeAlias = tuple[tuple[jax.Array, ...], tuple[float, ...]]


def generate(
    denoiser: Denoiser,
    variables: Mapping,
    reverse: Reverse,
    levels: tuple[Level, ...],
    samples: int,
    conditions: Conditions,
    present: dict[str, jax.Array],
    key: jax.Array,
) -> jax.Array:
    """Draws x_0 on several levels at once, with guidance.

    No gradient comes back.

    Args:
      denoiser: unbound.
      variables: its parameters.
      reverse: the way back.
      levels: what each is conditioned on.
      samples: how many are drawn of each level.
      conditions: by the same denoiser, of B rows.
      present: modality -> bool `[B]`, whether there is anything to be told.
      key: of the draw.

    Returns:
      `[len(levels) * samples, B, d]`, level by level.
    """
    variables, conditions = jax.lax.stop_gradient((variables, conditions))
    # Once for a batch: every step and level reads the same ones.
    drives = {
        kept: conditions.drive(
            {n: there & (n in kept) for n, there in present.items()}
        )
        for level in levels
        for kept, _ in level.branches
    }
    told = [
        (
            tuple(drives[kept] for kept, _ in level.branches),
            tuple(weight for _, weight in level.branches),
        )
        for level in levels
    ]
    given = denoiser, variables, reverse, told, samples
    draws = native.draws(key, conditions.user, denoiser.dim)
    if not denoiser.hidden or not draws:
        return _by_xla(*given, key)
    drawn: jax.Array = jax.lax.platform_dependent(
        key,
        cpu=functools.partial(_by_kernel, *given),
        default=functools.partial(_by_xla, *given),
    )
    return drawn


def _by_xla(
    denoiser: Denoiser,
    variables: Mapping,
    reverse: Reverse,
    told: list[_Told],
    samples: int,
    key: jax.Array,
) -> jax.Array:
    times: Any = denoiser.apply(variables, method="times")
    rows, dim = len(told[0][0][0]), denoiser.dim

    def denoise(noisy: jax.Array, time: jax.Array) -> jax.Array:
        # Level by level: joined before the denoiser instead of after it,
        # XLA would compute them four times slower on CPU.
        parts: list[Any] = []
        for number, by in enumerate(told):
            some = noisy[number * samples : (number + 1) * samples]
            parts.append(denoiser.apply(variables, some, times[time], *by))
        return jnp.concatenate(parts)

    return reverse.sample(denoise, (len(told) * samples, rows, dim), key)


def _by_kernel(
    denoiser: Denoiser,
    variables: Mapping,
    reverse: Reverse,
    told: list[_Told],
    samples: int,
    key: jax.Array,
) -> jax.Array:
    layers: Any = denoiser.apply(variables, method="layers")
    first, shifts, last, bias = layers
    parts = [
        native.draw(
            jax.random.key_data(reverse.keys(key)),
            reverse.table(),
            (first, shifts[reverse.time], last, bias),
            *by,
            range(number * samples, (number + 1) * samples),
            reverse.clip,
        )
        for number, by in enumerate(told)
    ]
    return jnp.concatenate(parts)
