"""Batches as a pure function of (seed, step).

The train interactions are read as one endless stream: pass after pass, each
in its own order, cut into batches of equal size. Position `p` of the stream
is interaction `permute(p % n)` under the key `(seed, p // n)`, computed
without any table: so any step can be formed at once, by any number of hosts,
and a resumed run needs to know nothing but its step.

Many interactions are cut into parts, each a stream of its own that fills its
own places in every batch. A host that forms some places of the batch then
reads some parts of the interactions, and batches are the same for any number
of hosts.

Several steps are stacked for one dispatch to the devices. `tf_batches` forms
them in tf.data; `numpy_batches` forms the same ones, bit for bit, without
TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from neggen_jax.catalog import Catalog
from neggen_jax.errors import InputError

Batch = dict[str, np.ndarray]

# Which order interactions are drawn in: whoever changes it counts on, so that
# no run goes on with other batches than it began with.
ORDER = 2

# Interactions are cut into so many parts at most,
_PARTS = 256
# and into none smaller than this: a batch has as many of each part.
_PART = 65_536

_ROUNDS = 6
# Odd multipliers, as hash finalisers use them; products wrap at 2^32.
_MULTIPLY = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How steps are grouped into dispatches and epochs.

    An epoch is the least number of steps that reads as many interactions as
    the train split holds. It is cut into dispatches of (nearly) equal length;
    only the last of an epoch may hold fewer steps than its stack has room
    for.

    Attributes:
      steps_per_epoch: optimiser steps in one epoch.
      steps_per_dispatch: batches stacked for one dispatch.
    """

    steps_per_epoch: int
    steps_per_dispatch: int

    @classmethod
    def make(cls, interactions: int, batch: int, stack: int) -> Schedule:
        """Cuts epochs into dispatches of at most `stack` steps."""
        steps = math.ceil(interactions / batch)
        dispatches = math.ceil(steps / stack)
        return cls(steps, math.ceil(steps / dispatches))

    @property
    def dispatches_per_epoch(self) -> int:
        """Dispatches in one epoch."""
        return math.ceil(self.steps_per_epoch / self.steps_per_dispatch)

    def start(self, dispatch: int) -> int:
        """First step of a dispatch."""
        epoch, part = divmod(dispatch, self.dispatches_per_epoch)
        return epoch * self.steps_per_epoch + part * self.steps_per_dispatch

    def count(self, dispatch: int) -> int:
        """Number of steps in a dispatch."""
        part = dispatch % self.dispatches_per_epoch
        left = self.steps_per_epoch - part * self.steps_per_dispatch
        return min(left, self.steps_per_dispatch)

    def dispatch(self, step: int) -> int:
        """The dispatch that starts at `step`.

        Raises:
          ValueError: if none does.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        part, rest = divmod(within, self.steps_per_dispatch)
        if rest:
            raise ValueError(f"no dispatch starts at step {step}")
        return epoch * self.dispatches_per_epoch + part


class _NumPy:
    """What NumPy and TensorFlow do differently."""

    shift = staticmethod(np.right_shift)

    @staticmethod
    def cast(x, dtype):
        return np.asarray(x).astype(dtype)

    @staticmethod
    def walk(encipher, index, key, size):
        x, key, size = np.broadcast_arrays(encipher(index, key), key, size)
        shape, x, key, size = x.shape, x.flatten(), key.ravel(), size.ravel()
        # Only those that are still outside: after a few rounds hardly any.
        out = np.flatnonzero(x >= size)
        while out.size:
            x[out] = encipher(x[out], key[out])
            out = out[x[out] >= size[out]]
        return x.reshape(shape)


class _TensorFlow:
    def __init__(self):
        import tensorflow as tf

        self.shift, self.cast = tf.bitwise.right_shift, tf.cast

        def walk(encipher, index, key, size):
            return tf.while_loop(
                lambda x: tf.reduce_any(x >= size),
                lambda x: (tf.where(x >= size, encipher(x, key), x),),
                (encipher(index, key),),
            )[0]

        self.walk = walk


def _mix(xp, x, key):
    """Scrambles uint32 `x` under a uint32 key."""
    x = (x ^ key) * _MULTIPLY[0]
    x = (x ^ xp.shift(x, 15)) * _MULTIPLY[1]
    x = (x ^ xp.shift(x, 13)) * _MULTIPLY[2]
    return x ^ xp.shift(x, 16)


def _encipher(xp, x, key, half: int):
    """A Feistel network: a keyed bijection of `[0, 4**half)`, int64."""
    mask = 2**half - 1
    left = xp.cast(xp.shift(x, half), "uint32")
    right = xp.cast(x & mask, "uint32")
    for _ in range(_ROUNDS):
        key = key + _MULTIPLY[0]
        left, right = right, left ^ (_mix(xp, right, key) & mask)
    return xp.cast(left, "int64") * 2**half + xp.cast(right, "int64")


def permute(index, key, size: int, xp=_NumPy):
    """Maps indices through a keyed permutation of `[0, size)`.

    Indices that leave the range are enciphered again until they return
    (cycle walking), which keeps the map a bijection of the range.

    Args:
      index: int64, in `[0, size)`.
      key: uint32, of the same shape.
      size: length of the range; or one for each index, none much smaller
        than another.
      xp: NumPy, or TensorFlow.
    """
    half = _half_bits(int(np.max(size)))
    return xp.walk(lambda x, key: _encipher(xp, x, key, half), index, key, size)


def _half_bits(size: int) -> int:
    return max(1, math.ceil((size - 1).bit_length() / 2))


def stream_order(start, offsets, seed: int, size, part=0, parts=1, xp=_NumPy):
    """The interactions at some positions of endless streams.

    Args:
      start: int64, first position.
      offsets: int64, any shape, added to it.
      seed: in `[0, 2**32)`.
      size: number of interactions in the stream of each offset.
      part: number of the stream of each offset.
      parts: how many streams there are.
      xp: NumPy, or TensorFlow.

    Returns:
      int64 indices of interactions of the streams, in the shape of `offsets`.
    """
    position = start + offsets
    passes = xp.cast(position // size * parts + part, "uint32")
    # Mixed twice: passes ^ seed alone would give seed 1 the passes of seed 0,
    # two by two exchanged.
    key = _mix(xp, _mix(xp, passes, 0), seed)
    return permute(position % size, key, size, xp)


def count_parts(interactions: int, batch: int) -> int:
    """How many parts the interactions are cut into.

    A power of two that divides the batch, whatever the number of hosts.

    Args:
      interactions: in all.
      batch: examples of one step.
    """
    parts = math.gcd(batch, _PARTS)
    while parts > 1 and interactions < parts * _PART:
        parts //= 2
    return parts


@dataclasses.dataclass(frozen=True)
class Stream:
    """The train interactions, ready to be batched by one process.

    Attributes:
      users: int32 `[n]`; of these and of `items`, only the parts whose places
        this process forms are read.
      items: int32 `[n]`.
      batch_size: examples of one step over all processes.
      seed: of the order.
      schedule: steps by dispatch.
      item_tables: name -> array `[num_items, ...]`; its rows at the batch's
        items are added to the batch (counterfactual vectors, say).
      places: int64, ascending, which of a batch's examples this process
        forms; all of them by default.
      parts: that the interactions are cut into; they divide the batch.
    """

    users: np.ndarray
    items: np.ndarray
    batch_size: int
    seed: int
    schedule: Schedule
    item_tables: Mapping[str, np.ndarray] = dataclasses.field(
        default_factory=dict
    )
    places: np.ndarray | None = None
    parts: int = 1

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(
                "A batch is too small.",
                where="config.train.batch_size",
                expected="at least 1",
                found=self.batch_size,
            )

    @property
    def columns(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Column of a batch -> shape of one example, and dtype."""
        tables = {"users": self.users, "items": self.items, **self.item_tables}
        return {k: (t.shape[1:], t.dtype) for k, t in tables.items()}

    @functools.cached_property
    def _mine(self) -> _Mine:
        share = self.batch_size // self.parts
        places = self.places
        if places is None:
            places = np.arange(self.batch_size)
        part, slot = np.divmod(places, share)
        bounds = len(self.users) * np.arange(self.parts + 1) // self.parts
        own = np.unique(part)
        sizes = np.diff(bounds)
        begin = np.cumsum(sizes[own]) - sizes[own]
        rows = np.arange(self.schedule.steps_per_dispatch) * share

        def held(column: np.ndarray) -> np.ndarray:
            first, last = own[0], own[-1]
            if last - first + 1 == len(own):
                return column[bounds[first] : bounds[last + 1]]
            pieces = [column[bounds[n] : bounds[n + 1]] for n in own]
            return np.concatenate(pieces)

        return _Mine(
            users=held(self.users),
            items=held(self.items),
            share=share,
            offsets=rows[:, None] + slot,
            part=part,
            size=sizes[part],
            begin=begin[np.searchsorted(own, part)],
        )

    @property
    def held(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of the parts that this process reads."""
        return self._mine.users, self._mine.items

    def positions(self, start: Any, xp: Any = _NumPy) -> Any:
        """Where this process' examples of a stack stand in `held`.

        Args:
          start: first step of the stack, int64.
          xp: NumPy, or TensorFlow.

        Returns:
          int64 `[steps_per_dispatch, batch_share]`.
        """
        mine = self._mine
        index = stream_order(
            start * mine.share,
            mine.offsets,
            self.seed,
            mine.size,
            mine.part,
            self.parts,
            xp,
        )
        return mine.begin + index


@dataclasses.dataclass(frozen=True)
class _Mine:
    """What one process holds of a stream, and where its places find it.

    Attributes:
      users: of its parts, one after another.
      items: alike.
      share: places that each part has in a batch.
      offsets: `[steps_per_dispatch, batch_share]`, positions in the streams
        of the parts, from that of the first step on.
      part: `[batch_share]`, the part of each place.
      size: interactions of that part.
      begin: where it begins in `users`.
    """

    users: np.ndarray
    items: np.ndarray
    share: int
    offsets: np.ndarray
    part: np.ndarray
    size: np.ndarray
    begin: np.ndarray


def make_stream(
    catalog: Catalog, batch_size: int, stack: int, seed: int, **options: Any
) -> Stream:
    """The stream of a catalogue's train split."""
    train = catalog.train
    schedule = Schedule.make(len(train), max(1, batch_size), stack)
    return Stream(
        train.users,
        train.items,
        batch_size,
        seed,
        schedule,
        parts=count_parts(len(train), max(1, batch_size)),
        **options,
    )


def numpy_batches(stream: Stream, first: int = 0) -> Iterator[Batch]:
    """Stacks of batches from dispatch `first` on, without end.

    Yields:
      "users" and "items", int32 `[steps_per_dispatch, batch_share]`, and the
      rows of each item table, `[steps_per_dispatch, batch_share, ...]`.
    """
    tables = stream.item_tables
    users, items = stream.held
    for dispatch in itertools.count(first):
        at = stream.positions(stream.schedule.start(dispatch))
        batch = {"users": users[at], "items": items[at]}
        yield batch | {k: t[batch["items"]] for k, t in tables.items()}


def tf_batches(stream: Stream, first: int = 0) -> Iterator[Batch]:
    """The same as `numpy_batches`, formed and prefetched by tf.data."""
    import tensorflow as tf

    # Training owns the accelerators; TensorFlow only feeds it.
    tf.config.set_visible_devices([], "GPU")
    xp, schedule, tables = _TensorFlow(), stream.schedule, stream.item_tables
    users, items = map(tf.constant, stream.held)

    def rows(items):
        # They may be mapped from disk: a constant would be a copy.
        return [table[items] for table in tables.values()]

    def form(dispatch):
        epoch = dispatch // schedule.dispatches_per_epoch
        part = dispatch % schedule.dispatches_per_epoch
        start = epoch * schedule.steps_per_epoch
        start += part * schedule.steps_per_dispatch
        at = stream.positions(start, xp)
        batch = {"users": tf.gather(users, at), "items": tf.gather(items, at)}
        if not tables:
            return batch
        kinds = [tf.as_dtype(table.dtype) for table in tables.values()]
        found = tf.numpy_function(rows, [batch["items"]], kinds)
        return batch | dict(zip(tables, found, strict=True))

    numbers = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
    dataset = numbers.map(form, num_parallel_calls=1).prefetch(2)
    return dataset.as_numpy_iterator()


def prefetched(batches: Iterator[Batch], ahead: int = 2) -> Iterator[Batch]:
    """The same batches, formed by a thread while those before are used.

    Args:
      batches: without end.
      ahead: how many wait at most.
    """
    done: queue.Queue[Batch | BaseException] = queue.Queue(ahead)
    over = threading.Event()

    def put(found: Batch | BaseException) -> None:
        while not over.is_set():
            try:
                return done.put(found, timeout=0.1)
            except queue.Full:
                pass

    def form() -> None:
        try:
            for batch in batches:
                put(batch)
                if over.is_set():
                    return
        except BaseException as error:
            put(error)

    threading.Thread(target=form, daemon=True).start()
    try:
        while True:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        over.set()


def _threaded(stream: Stream, first: int = 0) -> Iterator[Batch]:
    return prefetched(numpy_batches(stream, first))


def _fitting(stream: Stream, first: int = 0) -> Iterator[Batch]:
    """By tf.data if there is more to feed than pairs of numbers."""
    # TensorFlow takes half a gigabyte and seconds to begin with.
    form = tf_batches if stream.item_tables else _threaded
    return form(stream, first)


PIPELINES: dict[str, Callable[[Stream, int], Iterator[Batch]]] = {
    "auto": _fitting,
    "tf.data": tf_batches,
    "numpy": _threaded,
}
