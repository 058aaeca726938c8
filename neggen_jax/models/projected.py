"""Tables of projected features, of which only the rows that are read are made.

A catalogue's features are wide, and a batch reads a few thousand items of it:
to project them all in each step, as is usual, grows with the catalogue.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from neggen_jax.models.lazy import Lazy
from neggen_jax.ops import wide


@flax.struct.dataclass
class Projected(Lazy):
    """Free vectors beside a projection of features, or the latter alone.

    Attributes:
      features: `[rows, f]` each, side by side.
      kernel: `[sum of f, d]`.
      bias: `[d]`.
      free: `[rows, e]`, or None.
    """

    features: tuple[jax.Array, ...]
    kernel: jax.Array
    bias: jax.Array
    free: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the width of each."""
        width = self.bias.size + (0 if self.free is None else _width(self.free))
        return len(self.features[0]), width

    @property
    def dtype(self) -> Any:
        """Of what indexing gives."""
        return self.bias.dtype

    def whole(self) -> jax.Array:
        """All rows, `shape`."""
        made = wide.project_all(self.features, self.kernel)
        return self._joined(made, self.free)

    def then(self, other: Projected) -> Projected:
        """What another projection makes of this one's rows.

        Args:
          other: whose kernel and bias act on them.
        """
        return Projected(
            self.features,
            self.kernel @ other.kernel,
            self.bias @ other.kernel + other.bias,
        )

    def in_float32(self) -> Projected:
        """With rows in float32, whatever features and kernel are in.

        So are then the sums of gradients of a row that occurs many times.
        """
        bias, free = jax.tree.map(
            lambda x: x.astype(jnp.float32), (self.bias, self.free)
        )
        return dataclasses.replace(self, bias=bias, free=free)

    def rows(self, ids: jax.Array) -> jax.Array:
        """Some rows; of the others nothing is projected."""
        made = wide.project_rows(self.features, ids, self.kernel)
        return self._joined(made, None if self.free is None else self.free[ids])

    def _joined(self, made: jax.Array, free: jax.Array | None) -> jax.Array:
        out = (self.bias + made).astype(self.bias.dtype)
        return out if free is None else jnp.concatenate([free, out], axis=-1)


def _width(table: jax.Array) -> int:
    return table.shape[1]


class Projection(nn.Module):
    """The parameters of a `Projected`, named like those of `nn.Dense`.

    Attributes:
      dim: d.
      kernel_init: of the kernel.
    """

    dim: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, features: tuple[jax.Array, ...], free: jax.Array | None = None
    ) -> Projected:
        """Projects features `[rows, f]`, side by side; beside free vectors."""
        height = sum(map(_width, features))
        kernel = self.param("kernel", self.kernel_init, (height, self.dim))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.dim,))
        return Projected(features, kernel, bias, free)
