"""GDNSM's conditional denoiser.

Ma et al., SIGIR 2025: from a noisy item embedding, the time, the user and the
item's modalities, to the noise or to the clean embedding. A modality that is
dropped or missing is replaced by a vector that is learned for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.ops import wide

# Sinusoids are made for steps of a process of this length, so that few steps
# lie as far apart as many.
_LENGTH = 1000


@flax.struct.dataclass
class Conditions:
    """What the denoiser is told of each row, as its first layer sees it.

    Attributes:
      user: `[B, w]`.
      sides: modality -> `[B, w]`.
      nulls: modality -> `[w]`, in place of one that is dropped.
    """

    user: jax.Array
    sides: dict[str, jax.Array]
    nulls: dict[str, jax.Array]

    def every(self, n: int) -> Conditions:
        """Of every n-th row."""
        user, sides = jax.tree.map(lambda x: x[::n], (self.user, self.sides))
        return Conditions(user, sides, self.nulls)

    def drive(self, keep: dict[str, jax.Array]) -> jax.Array:
        """All conditions together.

        Args:
          keep: modality -> bool `[B]`, false where it is dropped.

        Returns:
          `[B, w]`.
        """
        total = self.user
        for name, side in self.sides.items():
            total += jnp.where(keep[name][:, None], side, self.nulls[name])
        return total


class Denoiser(nn.Module):
    """`Linear(concat[x_t; time; user; modalities]) - GELU - Linear`.

    The first layer is kept apart by what it reads: conditions pass through it
    once for a batch, the time once for all rows, and only x_t in every step.

    Attributes:
      dim: d, width of embeddings.
      modalities: that conditions come from.
      timesteps: T.
      hidden: units between the two layers; 0 leaves one layer, without GELU.
    """

    dim: int
    modalities: tuple[str, ...]
    timesteps: int
    hidden: int = 128

    def setup(self) -> None:
        """Makes the layers."""
        width = self.hidden or self.dim
        # As if the parts were one matrix over their concatenation.
        init = nn.initializers.variance_scaling(
            1 / (3 + len(self.modalities)), "fan_in", "truncated_normal"
        )

        def part() -> nn.Dense:
            return nn.Dense(width, use_bias=False, kernel_init=init)

        self.from_noisy = nn.Dense(width, kernel_init=init)
        self.from_time = part()
        self.from_user = part()
        self.from_side = {name: part() for name in self.modalities}
        self.time = [nn.Dense(2 * self.dim), nn.Dense(self.dim)]
        self.side = {
            name: [wide.Dense(self.dim), nn.Dense(self.dim)]
            for name in self.modalities
        }
        self.null = {
            name: self.param(
                f"null_{name}", nn.initializers.normal(1.0), (self.dim,)
            )
            for name in self.modalities
        }
        self.head = nn.Dense(self.dim) if self.hidden else None

    def times(self) -> jax.Array:
        """What the first layer sees of each step, `[T, w]`."""
        steps = np.arange(self.timesteps) * (_LENGTH / self.timesteps)
        half = self.dim // 2
        rates = np.exp(-np.log(10_000) * np.arange(half) / half)
        angles = steps[:, None] * rates
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        first, second = self.time
        time = second(nn.gelu(first(jnp.asarray(waves, jnp.float32))))
        return self.from_time(time)

    def conditions(
        self,
        users: jax.Array,
        features: Mapping[str, jax.Array | wide.Picked],
    ) -> Conditions:
        """What the first layer sees of each row.

        Args:
          users: `[B, d]`.
          features: modality -> raw vectors of the positive items, `[B, f]`.
        """
        sides, nulls = {}, {}
        for name in self.modalities:
            first, second = self.side[name]
            side = second(nn.gelu(first(features[name])))
            sides[name] = self.from_side[name](side)
            nulls[name] = self.from_side[name](self.null[name])
        return Conditions(self.from_user(users), sides, nulls)

    def __call__(
        self,
        noisy: jax.Array,
        time: jax.Array,
        drives: tuple[jax.Array, ...],
        weights: tuple[float, ...] = (1.0,),
    ) -> jax.Array:
        """Predicts, for one set of conditions or for a weighted sum of them.

        The last layer is linear, so that outputs are weighted before it, and
        any number of conditions costs two matrix products.

        Args:
          noisy: x_t, `[..., B, d]`.
          time: rows of `times()` that broadcast to `[..., B, w]`.
          drives: of `Conditions.drive`, `[B, w]` each.
          weights: one for each of `drives`; they must sum to 1.
        """
        base = self.from_noisy(noisy) + time
        total = jnp.zeros(())
        for weight, drive in zip(weights, drives, strict=True):
            unit = base + drive
            total += weight * (nn.gelu(unit) if self.head else unit)
        return self.head(total) if self.head else total

    def layers(self) -> tuple[jax.Array, ...]:
        """What `x_t` goes through if there are hidden units.

        Returns:
          The first matrix `[d, w]`, what is added after it in each step
          `[T, w]`, the last matrix `[w, d]`, and what is added after that.
        """
        if not self.head:
            raise ValueError("a denoiser without hidden units has one layer")
        first, last = (
            layer.variables["params"] for layer in (self.from_noisy, self.head)
        )
        shifts = first["bias"] + self.times()
        return first["kernel"], shifts, last["kernel"], last["bias"]
