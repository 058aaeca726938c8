"""The contract of an encoder, and the tables that most of them start from.

An encoder is a Flax module that turns `Inputs` (graphs, features) into one
vector for every user and item. Whoever brings their own recommender
implements `__call__` and, if it reads more than ids, `needs`; training,
generated negatives, ranking and sharding then work with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from neggen_jax.data.inputs import Inputs, Needs, Sizes
from neggen_jax.data.new_items import NewItems
from neggen_jax.models import lazy
from neggen_jax.models.lazy import Lazy, RowWise, Table
from neggen_jax.ops.lookup import Spread, take

Params = Mapping[str, Any]
Pair = tuple[Table | None, Table | None]


@flax.struct.dataclass
class Encoded:
    """What an encoder gives; a user's score of an item is `users @ items.T`.

    Attributes:
      users: `[user_rows, d]`; an array, or rows that wait to be read.
      items: `[item_rows, d]`, alike.
      views: name -> (users, items), further tables that losses read; "ego"
        holds the embeddings that regularisation acts on.
      present: view -> 1 or 0 in `[item_rows, 1]`, whether an item has what
        the view tells of; all have, where a view is not named.
      layers: (users, items) of each layer of propagation, of which the final
        tables are the mean; where `inputs.layers` asks for them, and () from
        an encoder that has none.
      spread: where the tables lie, for `take`; the recommender sets it.
      taken: what `take` has given before, if that is to be kept.
    """

    users: Table
    items: Table
    views: dict[str, Pair] = flax.struct.field(default_factory=dict)
    layers: tuple[tuple[jax.Array, jax.Array], ...] = ()
    present: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    spread: Spread | None = flax.struct.field(default=None, pytree_node=False)
    taken: dict[Any, Any] | None = flax.struct.field(
        default=None, pytree_node=False
    )

    def take(self, table: Table, ids: jax.Array) -> jax.Array:
        """Rows of one of the tables, `[*ids.shape, d]`.

        What `table[ids]` gives, at a cost that does not grow with the mesh.
        In a loss, the same rows are taken once, however many read them: so
        their gradients are added up before they go back to the table.

        Args:
          table: `users`, `items`, or one of a view.
          ids: int32, any shape; its first axis is that of the batch.
        """
        return self.take_together(table, ids)[0]

    def take_together(
        self, table: Table, *ids: jax.Array
    ) -> tuple[jax.Array, ...]:
        """`take` of each of `ids`, in one go.

        Rows that several have are then read once, projected once, and sent
        over the mesh once; later each can be taken by itself.

        Args:
          table: as of `take`.
          ids: as of `take`; their first axes are of one size.
        """
        if self.taken is None:
            return self._read(table, ids)
        leaves, tree = jax.tree.flatten(table)
        keys = [(tree, *map(id, [*leaves, x])) for x in ids]
        # What is computed in a loop must not be read outside of it.
        now = get_opaque_trace_state(convention="flax")
        new = {
            key: x
            for key, x in zip(keys, ids, strict=True)
            if key not in self.taken or self.taken[key][0] != now
        }
        found = self._read(table, tuple(new.values()))
        for (key, x), rows in zip(new.items(), found, strict=True):
            # With what was read: nothing else gets its identity meanwhile.
            self.taken[key] = now, rows, (leaves, x)
        return tuple(self.taken[key][1] for key in keys)

    def _read(
        self, table: Table, ids: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        if isinstance(table, RowWise):
            # What others read of a part of it is not computed again.
            read = [self.take_together(part, *ids) for part in table.parts]
            return tuple(map(table.of, zip(*read, strict=True)))
        if len(ids) < 2:
            return tuple(self._rows(table, x) for x in ids)
        flat = [x.reshape(len(x), math.prod(x.shape[1:])) for x in ids]
        rows = self._rows(table, jnp.concatenate(flat, axis=1))
        parts = jax.lax.split(rows, [x.shape[1] for x in flat], axis=1)
        return tuple(
            part.reshape(*x.shape, rows.shape[-1])
            for part, x in zip(parts, ids, strict=True)
        )

    def _rows(self, table: Table, ids: jax.Array) -> jax.Array:
        if not isinstance(table, Lazy):
            return take(table, ids, self.spread)
        if ids.size < len(table):
            return table[ids]
        # Of more rows than there are, each is computed once.
        return take(table.whole(), ids, self.spread)

    def whole(self) -> Encoded:
        """With arrays alone."""
        made: Encoded = lazy.whole(self)
        return made


@flax.struct.dataclass
class Received:
    """What a user's vector has of each of their items, beside its own part.

    With d_u and d_i the train interactions of a user and of an item, a
    user's vector is

        sum over their items i of items[i] / sqrt(d_u d_i), plus a free part.

    Attributes:
      items: `[item_rows, d]`.
    """

    items: jax.Array


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
        """Embeds every user and item.

        A step of training has a key, `self.make_rng("dropout")`, a function
        of the run's seed and the step; where `self.has_rng("dropout")` is
        False, nothing is to be dropped.
        """
        raise NotImplementedError

    def received(self, params: Params, inputs: Inputs) -> Received | None:
        """How users follow from their items; None if they do not.

        By it users are folded in who were not there in training.

        Args:
          params: of the encoder, trained.
          inputs: as ranking reads them.
        """
        del params, inputs
        return None

    def cold(
        self, params: Params, inputs: Inputs, new: NewItems
    ) -> jax.Array | None:
        """Vectors of items that were not there in training, `[n, d]`.

        Args:
          params: of the encoder, trained.
          inputs: as ranking reads them.
          new: the items' content.

        Returns:
          None if they cannot be told by their content.
        """
        del params, inputs, new
        return None

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
