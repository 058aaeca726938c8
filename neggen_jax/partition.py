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

# Logical axis -> mesh axis; None keeps the axis whole on every device.
RULES: dict[str, str | None] = {
    "batch": "data",
    "user": "model",
    "item": "model",
    "edge": "model",
    "embed": None,
    "feature": None,
    "step": None,
}


@dataclasses.dataclass(frozen=True)
class Partition:
    """A mesh and the rules that map logical axes to it.

    Attributes:
      mesh: devices arranged by `MESH_AXES`.
      rules: logical axis -> mesh axis or None.
    """

    mesh: Mesh
    rules: Mapping[str, str | None] = dataclasses.field(
        default_factory=lambda: RULES
    )

    def spec(self, *axes: str | None) -> PartitionSpec:
        """Maps logical axes to a `PartitionSpec`; None is never spread.

        Raises:
          InputError: for an axis without a rule, and for two axes of one
            array that claim the same mesh axis.
        """
        out: list[str | None] = []
        for axis in axes:
            if axis is not None and axis not in self.rules:
                raise InputError(
                    f"No rule for the logical axis {axis!r}.",
                    where=f"partition of {axes}",
                    fix=nearest(axis, self.rules),
                )
            target = None if axis is None else self.rules[axis]
            if target is not None and target in out:
                raise InputError(
                    f"Two axes of one array map to the mesh axis {target!r}.",
                    where=f"partition of {axes}",
                    fix="map one of them to None in partition.RULES",
                )
            out.append(target)
        return PartitionSpec(*out)

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Maps logical axes to a sharding over the mesh."""
        return NamedSharding(self.mesh, self.spec(*axes))

    def shards(self, axis: str) -> int:
        """Number of pieces that a logical axis is cut into."""
        (target,) = self.spec(axis)
        return 1 if target is None else self.mesh.shape[target]

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


def make_partition(
    data: int = -1, model: int = 1, devices: list[Any] | None = None
) -> Partition:
    """Arranges devices as a `data` x `model` mesh.

    Args:
      data: devices that share a batch between them; -1 takes all that
        `model` leaves.
      model: devices that share the rows of tables, features and graphs.
      devices: all devices of all processes, by default.

    Raises:
      InputError: if the mesh does not use every device exactly once, or if
        there are several processes, which training does not support yet.
    """
    if jax.process_count() > 1:
        raise InputError(
            "Runs over several processes are not supported yet.",
            where="jax.distributed",
            expected="1 process",
            found=jax.process_count(),
            fix="run one process; it may use all the devices it has",
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
            fix="set --config.mesh.data=-1 and a model size that divides",
        )
    grid = np.asarray(devices).reshape(data, model)
    return Partition(Mesh(grid, MESH_AXES))
