"""The diffusion process: how noise is added, and how it is taken off again.

Ho et al. (DDPM, NeurIPS 2020), Nichol and Dhariwal (ICML 2021) for the cosine
schedule, Song et al. (DDIM, ICLR 2021) for sampling in fewer steps. Steps are
counted from 0, the least noise, to `T - 1`, pure noise whatever T is. All
coefficients are worked out in float64 and used in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

SCHEDULES = ("linear", "cosine", "quadratic", "sigmoid")
TARGETS = ("x0", "noise")
CRITERIA = ("l2", "l1", "huber")

# DDPM's schedule: its ends, and the number of steps it is made for.
_FIRST, _LAST, _STEPS = 1e-4, 0.02, 1000
_LARGEST = 0.999


def betas(schedule: str, timesteps: int) -> np.ndarray:
    """Share of the variance that each step replaces by noise.

    Fewer steps than the 1,000 that the schedules are made for are longer
    steps along the same way, and end in as little signal: sampling starts
    from pure noise. Betas times 1000 / T would end there too, but clipped
    below 1: of 5 steps 3 would be noise alone, and what a denoiser of noise
    gets wrong would be multiplied by 30 in each.

    Args:
      schedule: one of `SCHEDULES`.
      timesteps: T, from 2 to 1,000.

    Returns:
      float64 `[T]` in (0, 1), rising but where T does not divide 1,000.
    """
    if schedule == "cosine":
        # Nichol and Dhariwal, eq. 17, is made for any number of steps.
        time = np.arange(timesteps + 1) / timesteps
        left = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - left[1:] / left[:-1], _LARGEST)
    way = np.linspace(0, 1, _STEPS)
    if schedule == "linear":
        values = _FIRST + (_LAST - _FIRST) * way
    elif schedule == "quadratic":
        roots = math.sqrt(_FIRST), math.sqrt(_LAST)
        values = (roots[0] + (roots[1] - roots[0]) * way) ** 2
    elif schedule == "sigmoid":
        values = _FIRST + (_LAST - _FIRST) / (1 + np.exp(6 - 12 * way))
    else:
        raise ValueError(schedule)
    ends = np.ceil(np.arange(1, timesteps + 1) * _STEPS / timesteps)
    left = np.cumprod(1 - values)[ends.astype(int) - 1]
    return 1 - left / np.append(1.0, left[:-1])


@dataclasses.dataclass(frozen=True)
class Process:
    """A forward process, and what a denoiser predicts in it.

    Attributes:
      timesteps: T.
      schedule: of the noise, one of `SCHEDULES`.
      target: what the denoiser predicts, one of `TARGETS`.
      clip: largest magnitude of a predicted entry of x_0; 0 does not clip.
    """

    timesteps: int
    schedule: str
    target: str
    clip: float

    @functools.cached_property
    def signal(self) -> np.ndarray:
        """Variance of x_0 that is left after each step (alpha-bar)."""
        return np.cumprod(1 - betas(self.schedule, self.timesteps))

    def noised(
        self, clean: jax.Array, times: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """x_t for rows of x_0.

        Args:
          clean: `[B, d]`.
          times: int32 `[B]`.
          noise: standard normal `[B, d]`.
        """
        kept = jnp.asarray(np.sqrt(self.signal), jnp.float32)[times, None]
        added = jnp.asarray(np.sqrt(1 - self.signal), jnp.float32)
        return kept * clean + added[times, None] * noise

    def wanted(self, clean: jax.Array, noise: jax.Array) -> jax.Array:
        """What the denoiser should have predicted."""
        return {"x0": clean, "noise": noise}[self.target]

    def reverse(self, steps: int, eta: float) -> Reverse:
        """The way back from noise, over `steps` evenly spaced steps.

        Args:
          steps: evaluations of the denoiser; T takes every step.
          eta: 1 samples the posterior of each step (ancestral sampling), 0
            goes a deterministic way (DDIM); Song et al., eq. 12 and 16.
        """
        times = np.ceil(np.arange(steps, 0, -1) * self.timesteps / steps)
        times = times.astype(np.int32) - 1
        now = self.signal[times]
        after = np.append(now[1:], 1.0)
        spread = (1 - after) / (1 - now) * (1 - now / after)
        deviation = eta * np.sqrt(spread)
        # Of the noise that x_t holds, this much stays.
        stays = np.sqrt(np.maximum(1 - after - deviation**2, 0) / (1 - now))
        ones = np.ones(steps)
        from_x, from_output = (
            (0 * ones, ones)
            if self.target == "x0"
            else (1 / np.sqrt(now), -np.sqrt((1 - now) / now))
        )
        table = {
            "from_x": from_x,
            "from_output": from_output,
            "keep_clean": np.sqrt(after) - stays * np.sqrt(now),
            "keep_x": stays,
            "deviation": deviation,
        }
        return Reverse(
            time=jnp.asarray(times),
            **{k: jnp.asarray(v, jnp.float32) for k, v in table.items()},
            clip=self.clip,
            random=eta > 0,
        )


@flax.struct.dataclass
class Reverse:
    """Each step back is linear in x_t, the output and fresh noise.

        x_0      = clip(from_x * x_t + from_output * output)
        x_before = keep_clean * x_0 + keep_x * x_t + deviation * noise

    Attributes:
      time: int32 `[S]`, falling from T - 1 to the end of the first of S
        equal parts.
      from_x, from_output: float32 `[S]`.
      keep_clean, keep_x, deviation: float32 `[S]`.
      clip: see `Process`.
      random: whether any deviation is more than 0.
    """

    time: jax.Array
    from_x: jax.Array
    from_output: jax.Array
    keep_clean: jax.Array
    keep_x: jax.Array
    deviation: jax.Array
    clip: float = flax.struct.field(pytree_node=False)
    random: bool = flax.struct.field(pytree_node=False)

    def step(
        self, x: jax.Array, output: jax.Array, noise: jax.Array | float
    ) -> jax.Array:
        """One step back; `self` holds that step's coefficients alone."""
        clean = self.from_x * x + self.from_output * output
        if self.clip:
            clean = jnp.clip(clean, -self.clip, self.clip)
        return (
            self.keep_clean * clean + self.keep_x * x + self.deviation * noise
        )

    def keys(self, key: jax.Array) -> jax.Array:
        """`[S + 1]`, of the noise that it begins with and of each step's."""
        return jax.random.split(key, len(self.time) + 1)

    def table(self) -> jax.Array:
        """The coefficients of each step, `[S, 5]`, in their order."""
        return jnp.stack(
            [
                self.from_x,
                self.from_output,
                self.keep_clean,
                self.keep_x,
                self.deviation,
            ],
            axis=1,
        )

    def sample(
        self,
        denoise: Callable[[jax.Array, jax.Array], jax.Array],
        shape: tuple[int, ...],
        key: jax.Array,
    ) -> jax.Array:
        """Draws x_0 by going all the way back.

        Args:
          denoise: (x_t of `shape`, int32 scalar t) -> output, like x_t.
          shape: of what is drawn.
          key: of the draw.
        """
        keys = self.keys(key)

        def back(x: jax.Array, at: tuple[Reverse, jax.Array]):
            here, key = at
            noise = jax.random.normal(key, shape) if self.random else 0.0
            return here.step(x, denoise(x, here.time), noise), None

        start = jax.random.normal(keys[0], shape)
        return jax.lax.scan(back, start, (self, keys[1:]))[0]


def distance(output: jax.Array, wanted: jax.Array, criterion: str) -> jax.Array:
    """How far each row's output is off, `[B, d] -> [B]`, a mean over d.

    Args:
      output: of the denoiser.
      wanted: what it should be.
      criterion: one of `CRITERIA`; huber turns linear at 1.
    """
    off = output - wanted
    size = jnp.abs(off)
    if criterion == "l2":
        each = jnp.square(off)
    elif criterion == "l1":
        each = size
    elif criterion == "huber":
        each = jnp.where(size < 1, 0.5 * jnp.square(off), size - 0.5)
    else:
        raise ValueError(criterion)
    return each.mean(axis=-1)
