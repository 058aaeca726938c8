"""A bank of generated negatives: for each user, those drawn last."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Bank(nn.Module):
    """Negatives by user, kept from step to step in the collection "bank".

    Attributes:
      rows: of the table, padding included.
      count: Q, negatives of a user.
      dim: d.
    """

    rows: int
    count: int
    dim: int

    def setup(self) -> None:
        """Makes the tables, empty."""
        shape = self.rows, self.count, self.dim
        self.vectors: Any = self.variable(
            "bank",
            "vectors",
            nn.with_partitioning(
                lambda: jnp.zeros(shape), ("user", None, "embed")
            ),
        )
        self.valid: Any = self.variable(
            "bank",
            "valid",
            nn.with_partitioning(
                lambda: jnp.zeros(self.rows, jnp.int32), ("user",)
            ),
        )

    def write(
        self, users: jax.Array, drawn: jax.Array, valid: jax.Array
    ) -> None:
        """Replaces what is kept for some users.

        Args:
          users: int32 `[B]`; of those that occur twice the first counts.
          drawn: `[B, Q, d]`.
          valid: int32 scalar, how many of the Q count; 0 replaces nothing.
        """
        order = jnp.argsort(users, stable=True)
        ordered = users[order]
        first = jnp.ones_like(ordered, bool)
        first = first.at[1:].set(ordered[1:] != ordered[:-1])
        # What is beyond the table is dropped.
        rows = jnp.where(first & (valid > 0), ordered, self.rows)
        if self.is_initializing():
            return
        self.vectors.value = self.vectors.value.at[rows].set(
            drawn[order], mode="drop"
        )
        self.valid.value = self.valid.value.at[rows].set(valid, mode="drop")

    def read(self, users: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is kept: `[B, Q, d]`, and how many of the Q count, `[B]`."""
        return self.vectors.value[users], self.valid.value[users]
