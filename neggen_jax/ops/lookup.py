"""Rows of a table that is spread over the devices of a whole mesh.

Each device is sent the rows that its examples have, once each, by the devices
that hold them; gradients go back the same way. What a device moves follows
from its own share of the batch. Left to the compiler, every device would add
up rows of the whole batch, which grows with the mesh. Questions about rows,
which are not for all to answer either, go the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from neggen_jax.partition import MESH_AXES, Axes

# Rows that are asked of one device come in whole tiles of TPUs' memory.
_TILE = 8


@dataclasses.dataclass(frozen=True)
class Spread:
    """Where tables and batches lie.

    Attributes:
      mesh: the devices.
      axis: mesh axes that the rows of tables are spread over.
    """

    mesh: Mesh
    axis: Axes

    def cuts(self, rows: int, count: int) -> bool:
        """Whether rows are looked up by need: both lie over all devices.

        Args:
          rows: of the table.
          count: examples of the batch.
        """
        return (
            self.axis == MESH_AXES
            and self.mesh.size > 1
            and rows % self.mesh.size == 0
            and count % self.mesh.shape[MESH_AXES[0]] == 0
        )


def take(table: jax.Array, ids: jax.Array, spread: Spread | None) -> jax.Array:
    """`table[ids]`, and its gradient.

    Args:
      table: `[rows, d]`.
      ids: int32, any shape, its first axis that of the batch; in range.
      spread: where they lie; None leaves it to the compiler.

    Returns:
      `[*ids.shape, d]`.
    """
    if (
        spread is None
        or table.ndim != 2
        or not spread.cuts(len(table), len(ids))
    ):
        return table[ids]
    return _take(spread, table, ids.reshape(-1)).reshape(*ids.shape, -1)


def ask(
    held: Any,
    answer: Callable[..., jax.Array],
    ids: jax.Array,
    about: tuple[jax.Array, ...],
    spread: Spread,
    height: int,
) -> jax.Array:
    """Has the device that holds a row answer a question about it.

    Args:
      held: tree of arrays, their first axis that of the devices.
      answer: of a device's `held` without that axis, row numbers within it,
        and what `about` says of them; int32, of the shape of the row numbers.
      ids: int32, any shape, its first axis that of the batch; in range.
      about: int32 arrays of the same shape.
      spread: where rows and batches lie; it has to cut them.
      height: rows that each device holds.

    Returns:
      int32, of the shape of `ids`.
    """
    data, model = MESH_AXES
    questions = ids.size // len(ids)

    def local(held, ids, *about):
        held = jax.tree.map(lambda x: x[0], held)
        route = _Route.make(_own(ids), spread, height, questions)
        like = jnp.zeros(len(route.rows), jnp.int32)
        own = [like.at[route.where].set(_own(x)) for x in about]
        found = route.ask(functools.partial(answer, held), like, *own)
        every = jax.lax.all_gather(found, model, tiled=True)
        return every[: len(ids)]

    specs = P(MESH_AXES), P(data), *[P(data) for _ in about]
    flat = [x.reshape(-1) for x in (ids, *about)]
    return _over(spread, local, specs, P(data))(held, *flat).reshape(ids.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take(spread: Spread, table: jax.Array, ids: jax.Array) -> jax.Array:
    data, model = MESH_AXES

    def local(table, ids):
        route = _Route.make(_own(ids), spread, len(table))
        rows = route.fetch(table)
        every = jax.lax.all_gather(rows, model, tiled=True)
        return every[: len(ids)]

    return _over(spread, local, (P(MESH_AXES), P(data)), P(data))(table, ids)


def _take_forward(spread: Spread, table: jax.Array, ids: jax.Array) -> Any:
    # Of the table, only the shape is read once more.
    return _take(spread, table, ids), (ids, jnp.zeros((len(table), 0)))


def _take_backward(spread: Spread, kept: Any, gradient: jax.Array) -> Any:
    ids, like = kept
    data, _ = MESH_AXES

    def local(like, ids, gradient):
        route = _Route.make(_own(ids), spread, len(like))
        return route.add(_own(gradient), len(like))

    specs = P(MESH_AXES), P(data), P(data)
    whole = _over(spread, local, specs, P(MESH_AXES))
    return whole(like, ids, gradient), None


_take.defvjp(_take_forward, _take_backward)


def _over(spread: Spread, local: Any, inside: Any, outside: Any) -> Any:
    return jax.shard_map(
        local,
        mesh=spread.mesh,
        in_specs=inside,
        out_specs=outside,
        check_vma=False,
    )


def _own(values: jax.Array) -> jax.Array:
    """This device's piece of what the devices of `model` have alike."""
    model = MESH_AXES[1]
    pieces = jax.lax.axis_size(model)
    size = math.ceil(len(values) / pieces)
    extra = [(0, size * pieces - len(values))] + [(0, 0)] * (values.ndim - 1)
    first = jax.lax.axis_index(model) * size
    return jax.lax.dynamic_slice_in_dim(jnp.pad(values, extra), first, size)


@dataclasses.dataclass(frozen=True)
class _Route:
    """Whom this device asks for which rows, in rounds of equal size.

    Attributes:
      where: `[n]`, the place of each id among the distinct ones, or among
        all in their order.
      rows: `[n]`, of the id at each place, its row where it is held.
      owner: `[n]`, the device that holds it; past the last one for places
        that are empty.
      turn: `[n]`, its number among those that this device is asked for.
      devices: S.
      room: c, ids that a device is asked for in one round.
      rounds: until all devices have been served.
    """

    where: jax.Array
    rows: jax.Array
    owner: jax.Array
    turn: jax.Array
    devices: int
    room: int
    rounds: jax.Array

    @classmethod
    def make(
        cls, ids: jax.Array, spread: Spread, height: int, questions: int = 0
    ) -> _Route:
        """Plans it.

        Args:
          ids: int32 `[n]`, that this device wants.
          spread: where tables lie.
          height: rows that each device holds.
          questions: how many there are about an id that a batch draws, each
            with an answer of its own; 0 if the answer is always the same, and
            an id that occurs again need be asked for but once.
        """
        count, devices = len(ids), spread.mesh.size
        order = jnp.argsort(ids)
        ordered = ids[order]
        new = jnp.ones(count, bool)
        if not questions:
            new = new.at[1:].set(jnp.diff(ordered) > 0)
        place = jnp.cumsum(new) - 1
        distinct = jnp.full(count, devices * height, ids.dtype)
        distinct = distinct.at[place].set(ordered)
        owner = distinct // height
        first = jnp.searchsorted(distinct, owner * height)
        turn = jnp.arange(count) - first
        # Where ids are dealt at random, one round is nearly always enough;
        # questions about the same id come together.
        mean, alike = count / devices, max(1, questions)
        room = mean + 4 * math.sqrt(mean * alike)
        room = max(1, math.ceil(room / _TILE)) * _TILE
        most = jnp.max(jnp.where(owner < devices, turn, 0)) // room + 1
        return cls(
            where=jnp.zeros(count, place.dtype).at[order].set(place),
            rows=distinct % height,
            owner=owner,
            turn=turn,
            devices=devices,
            room=room,
            rounds=jax.lax.pmax(most, MESH_AXES),
        )

    def _slots(self, number: Any) -> tuple[jax.Array, jax.Array]:
        """Where the ids of one round stand; past the end for the others."""
        at = self.turn - number * self.room
        now = (at >= 0) & (at < self.room)
        return jnp.where(now, self.owner, self.devices), at

    def _told(
        self, slots: tuple[jax.Array, jax.Array], values: jax.Array
    ) -> jax.Array:
        """What all devices tell this one of `values` `[n, ...]`, `[S, c, ...]`.

        Places that are empty have zero.
        """
        empty = (self.devices, self.room, *values.shape[1:])
        sent = jnp.zeros(empty, values.dtype)
        return _swap(sent.at[slots].set(values, mode="drop"))

    def ask(
        self,
        answer: Callable[..., jax.Array],
        like: jax.Array,
        *about: jax.Array,
    ) -> jax.Array:
        """What the holders of the ids answer.

        Args:
          answer: of rows `[S, c]`, and of what `about` says of them.
          like: zeros `[n, ...]`, as answers are.
          *about: `[n]`, by the places of the ids.

        Returns:
          `[n, ...]`, of the ids as they were wanted.
        """

        def body(number, found):
            slots = self._slots(number)
            told = [self._told(slots, x) for x in (self.rows, *about)]
            sent = _swap(answer(*told))
            now = slots[0] < self.devices
            now = now.reshape(-1, *[1] * (found.ndim - 1))
            return jnp.where(now, sent.at[slots].get(mode="clip"), found)

        return jax.lax.fori_loop(0, self.rounds, body, like)[self.where]

    def fetch(self, table: jax.Array) -> jax.Array:
        """The rows that were wanted, `[n, d]`, of a table cut in shards."""
        like = jnp.zeros((len(self.rows), table.shape[1]), table.dtype)
        return self.ask(lambda rows: table[rows], like)

    def add(self, values: jax.Array, height: int) -> jax.Array:
        """Adds what belongs to the rows up where they are held.

        Args:
          values: `[n, d]`, of the ids as they were wanted.
          height: rows that each device holds.

        Returns:
          `[height, d]`.
        """
        sums = jnp.zeros_like(values).at[self.where].add(values)

        def body(number, out):
            slots = self._slots(number)
            # Places that are empty add nothing to row 0.
            rows = self._told(slots, self.rows)
            return out.at[rows].add(self._told(slots, sums))

        out = jnp.zeros((height, values.shape[1]), values.dtype)
        return jax.lax.fori_loop(0, self.rounds, body, out)


def _swap(values: jax.Array) -> jax.Array:
    """Sends `[S, ...]` to the devices, one entry each."""
    return jax.lax.all_to_all(values, MESH_AXES, 0, 0, tiled=True)
