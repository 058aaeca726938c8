"""Where arrays live: a mesh, and one small table from logical to mesh axes.

Modules and data name what an axis *means* (`user`, `item`, `batch`); only
this file says which devices it is spread over. A run on one device is a run
on a mesh of one: there is no second code path.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from neggen_jax.errors import InputError, nearest

MESH_AXES = ("data", "model")
EXCHANGES = ("gather", "ring", "pull")

# One mesh axis, several that act as one (the first is the slowest), or none.
Axes = str | tuple[str, ...] | None

# Logical axis -> mesh axes; None keeps the axis whole on every device.
RULES: dict[str, Axes] = {
    "batch": "data",
    "user": "model",
    "item": "model",
    "edge": "model",
    # Items while they are ranked for a batch of users.
    "ranked": "model",
    "embed": None,
    "feature": None,
    "step": None,
}

# What `config.mesh.tables` may be -> over which axes the rows of tables,
# features and graphs are spread.
TABLES: dict[str, Axes] = {"model": "model", "all": MESH_AXES}


@dataclasses.dataclass(frozen=True)
class Partition:
    """A mesh and the rules that map logical axes to it.

    Attributes:
      mesh: devices arranged by `MESH_AXES`.
      rules: logical axis -> mesh axes.
      exchange: how sparse products on several shards come by the rows of
        others, one of `EXCHANGES`; see `ops/exchange.py`.
    """

    mesh: Mesh
    rules: Mapping[str, Axes] = dataclasses.field(default_factory=lambda: RULES)
    exchange: str = "gather"

    def spec(self, *axes: str | None) -> PartitionSpec:
        """Maps logical axes to a `PartitionSpec`; None is never spread.

        Raises:
          InputError: for an axis without a rule, and for two axes of one
            array that claim the same mesh axis.
        """
        out: list[Axes] = []
        taken: set[str] = set()
        for axis in axes:
            if axis is not None and axis not in self.rules:
                raise InputError(
                    f"No rule for the logical axis {axis!r}.",
                    where=f"partition of {axes}",
                    fix=nearest(axis, self.rules),
                )
            target = None if axis is None else self.rules[axis]
            twice = taken & {*_names(target)}
            if twice:
                raise InputError(
                    "Two axes of one array map to the mesh axis "
                    f"{min(twice)!r}.",
                    where=f"partition of {axes}",
                    fix="map one of them to None in partition.RULES",
                )
            taken |= {*_names(target)}
            out.append(target)
        return PartitionSpec(*out)

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Maps logical axes to a sharding over the mesh."""
        return NamedSharding(self.mesh, self.spec(*axes))

    def shards(self, axis: str) -> int:
        """Number of pieces that a logical axis is cut into."""
        (target,) = self.spec(axis)
        return math.prod(self.mesh.shape[name] for name in _names(target))

    def padded(self, size: int, axis: str) -> int:
        """The smallest size >= `size` that cuts into equal pieces."""
        pieces = self.shards(axis)
        return math.ceil(size / pieces) * pieces

    def put(self, value: Any, *axes: str | None) -> jax.Array:
        """Places a host array that every process holds whole."""
        value = np.asarray(value)
        return jax.make_array_from_callback(
            value.shape, self.sharding(*axes), lambda index: value[index]
        )

    def mine(self, size: int, axis: str) -> np.ndarray:
        """Which of `size` rows, cut by `axis`, devices of this process hold.

        Returns:
          int64, ascending.
        """
        held = self.sharding(axis).addressable_devices_indices_map((size,))
        # Devices may hold the same rows.
        pieces = {index[0].indices(size) for index in held.values() if index}
        rows = [np.arange(*piece) for piece in sorted(pieces)]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *rows]))

    def own(self, value: np.ndarray, size: int, axis: str) -> np.ndarray:
        """The rows of a table that this process' devices hold.

        Args:
          value: `[n, ...]`, of which nothing else is read.
          size: rows of the table, n or more; those past n are zero.
          axis: that cuts the table.
        """
        rows = self.mine(size, axis)
        out = np.zeros((len(rows), *value.shape[1:]), value.dtype)
        real = rows[rows < len(value)]
        out[: len(real)] = value[real]
        return out

    def join(
        self, value: np.ndarray, rows: np.ndarray, size: int, *axes: str
    ) -> jax.Array:
        """Makes one array of what processes hold in part.

        Args:
          value: this process' part; its dimension of the last of `axes` has
            those rows alone.
          rows: `mine(size, axes[-1])`.
          size: of that dimension, whole.
          *axes: of the leading dimensions; the others are never spread.
        """
        cut = len(axes) - 1

        def part(index):
            first, last, _ = index[cut].indices(size)
            here = slice(*np.searchsorted(rows, (first, last)))
            return value[(slice(None),) * cut + (here,)]

        return jax.make_array_from_callback(
            (*value.shape[:cut], size, *value.shape[cut + 1 :]),
            self.sharding(*axes),
            part,
        )

    def abstract(
        self, shape: tuple[int, ...], dtype: Any, *axes: str | None
    ) -> Any:
        """A `ShapeDtypeStruct` of what `put` would make, without an array."""
        return jax.ShapeDtypeStruct(
            shape, jnp.dtype(dtype), sharding=self.sharding(*axes)
        )

    def tree_shardings(self, abstract: Any) -> Any:
        """Shardings of boxed variables, from the axes that modules named.

        Args:
          abstract: result of `jax.eval_shape` over `Module.init`, with
            `flax.linen.Partitioned` boxes where a module named its axes;
            whatever is not boxed is kept whole.
        """
        specs = nn.get_partition_spec(abstract)
        return jax.tree.map(
            lambda spec: self.sharding(*spec),
            specs,
            is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
        )


def _names(axes: Axes) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def make_partition(
    data: int = -1,
    model: int = 1,
    devices: list[Any] | None = None,
    tables: str = "model",
    exchange: str = "gather",
) -> Partition:
    """Arranges devices as a `data` x `model` mesh.

    Args:
      data: devices that share a batch between them; -1 takes all that
        `model` leaves.
      model: devices that share the items that a batch of users is ranked
        against.
      devices: all devices of all processes, by default.
      tables: which devices share the rows of tables, features and graphs:
        those of "model", or "all".
      exchange: of sparse products, one of `EXCHANGES`.

    Raises:
      InputError: if the mesh does not use every device exactly once, or for
        an unknown name.
    """
    if exchange not in EXCHANGES:
        raise InputError(
            f"Unknown exchange {exchange!r}.",
            where="config.mesh.exchange",
            fix=nearest(exchange, EXCHANGES),
        )
    if tables not in TABLES:
        raise InputError(
            "Unknown devices to spread tables over.",
            where="config.mesh.tables",
            expected=" or ".join(TABLES),
            found=tables,
        )
    devices = jax.devices() if devices is None else devices
    if data == -1 and model > 0 and len(devices) % model == 0:
        data = len(devices) // model
    if data < 1 or model < 1 or data * model != len(devices):
        raise InputError(
            "The mesh does not fit the devices.",
            where="config.mesh",
            expected=f"data * model == {len(devices)} (devices found)",
            found=f"data={data}, model={model}",
            fix="set --config.mesh.data=-1 and a --config.mesh.model that "
            f"divides {len(devices)}",
        )
    grid = np.asarray(devices).reshape(data, model)
    spread = dict.fromkeys(("user", "item", "edge"), TABLES[tables])
    return Partition(Mesh(grid, MESH_AXES), RULES | spread, exchange)
