"""The contract of an encoder, and the tables that most of them start from.

An encoder is a Flax module that turns `Inputs` (graphs, features) into one
vector for every user and item. Whoever brings their own recommender
implements `__call__` and, if it reads more than ids, `needs`; training,
generated negatives, ranking and sharding then work with it.
"""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs, Needs, Sizes
from neggen_jax.ops.lookup import Spread, take

Pair = tuple[jax.Array | None, jax.Array | None]


@flax.struct.dataclass
class Encoded:
    """What an encoder gives; a user's score of an item is `users @ items.T`.

    Attributes:
      users: `[user_rows, d]`.
      items: `[item_rows, d]`.
      views: name -> (users, items), further tables that losses read; "ego"
        holds the embeddings that regularisation acts on.
      spread: where the tables lie, for `take`; the recommender sets it.
    """

    users: jax.Array
    items: jax.Array
    views: dict[str, Pair]
    spread: Spread | None = flax.struct.field(default=None, pytree_node=False)

    def take(self, table: jax.Array, ids: jax.Array) -> jax.Array:
        """Rows of one of the tables, `[*ids.shape, d]`.

        What `table[ids]` gives, at a cost that does not grow with the mesh.

        Args:
          table: `users`, `items`, or one of a view.
          ids: int32, any shape; its first axis is that of the batch.
        """
        return take(table, ids, self.spread)


class Encoder(nn.Module):
    """Base of all encoders.

    Attributes:
      sizes: of the tables.
      dim: width of the embeddings.
    """

    sizes: Sizes
    dim: int = 64

    def needs(self) -> Needs:
        """What `__call__` reads from `Inputs`."""
        return Needs()

    def prepare(self, inputs: Inputs, key: jax.Array) -> Inputs:
        """Inputs of one training epoch; pure, and run before the epoch.

        Evaluation reads the inputs as they were.

        Args:
          inputs: as built.
          key: of the epoch.
        """
        del key
        return inputs

    def __call__(self, inputs: Inputs) -> Encoded:
        """Embeds every user and item."""
        raise NotImplementedError

    def user_table(self, name: str = "users", dim: int | None = None):
        """A trained table with a row for every user, `[user_rows, dim]`."""
        rows, size = self.sizes.user_rows, self.sizes.users
        return self._table(name, "user", rows, size, dim or self.dim)

    def item_table(self, name: str = "items", dim: int | None = None):
        """A trained table with a row for every item, `[item_rows, dim]`."""
        rows, size = self.sizes.item_rows, self.sizes.items
        return self._table(name, "item", rows, size, dim or self.dim)

    def _table(self, name: str, axis: str, rows: int, size: int, dim: int):
        # Xavier-uniform over the true size: padding rows, which only exist
        # on some meshes, must not change how the others begin.
        bound = math.sqrt(6 / (size + dim))

        def init(key: jax.Array) -> jax.Array:
            table = jax.random.uniform(
                key, (rows, dim), jnp.float32, -bound, bound
            )
            # Padding begins, and so stays, at 0: a checkpoint can leave it
            # out, or add it, on a mesh with other padding.
            return jnp.where(jnp.arange(rows)[:, None] < size, table, 0.0)

        boxed = nn.with_partitioning(init, (axis, "embed"))
        return self.param(name, boxed)


def concatenated(inputs: Inputs, modalities: tuple[str, ...] = ()) -> jax.Array:
    """Feature matrices side by side, `[item_rows, f]`; () takes all."""
    names = sorted(modalities or inputs.features)
    return jnp.concatenate(
        [inputs.features[name].values for name in names], axis=1
    )
