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

Where recent interactions are to count for more, each place draws one by its
weight instead, with replacement: by a hash of the seed and its position.

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
from neggen_jax.data.order import (
    by_age,
    count_parts,
    cuts,
    hashed,
    stream_order,
)
from neggen_jax.errors import InputError

Batch = dict[str, np.ndarray]

# Which order interactions are drawn in: whoever changes it counts on, so that
# no run goes on with other batches than it began with.
ORDER = 2


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
      cumulative: int64 `[n]`, sums of what the interactions up to each weigh;
        None where all are read equally often.
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
    cumulative: np.ndarray | None = None

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
        bounds = cuts(self.parts, len(self.users), self.cumulative)
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
            weights=self._weights(bounds, part, held),
        )

    def _weights(
        self, bounds: np.ndarray, part: np.ndarray, held: Any
    ) -> _Weights | None:
        if self.cumulative is None:
            return None
        sums = np.append(0, self.cumulative)[bounds]
        return _Weights(held(self.cumulative), sums[part], np.diff(sums)[part])

    @property
    def held(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of the parts that this process reads."""
        return self._mine.users, self._mine.items

    def positions(self, start: int) -> np.ndarray:
        """Where this process' examples of a stack stand in `held`.

        Args:
          start: first step of the stack.

        Returns:
          int64 `[steps_per_dispatch, batch_share]`.
        """
        mine = self._mine
        weights = mine.weights
        if weights is not None:
            first = start * mine.share
            drawn = hashed(first, mine.offsets, self.seed, mine.part)
            drawn = weights.before + drawn % weights.total
            return np.searchsorted(weights.cumulative, drawn, "right")
        index = stream_order(
            start * mine.share,
            mine.offsets,
            self.seed,
            mine.size,
            mine.part,
            self.parts,
        )
        return mine.begin + index

    def stack(self, dispatch: int) -> Batch:
        """The batches of a dispatch.

        Returns:
          "users" and "items", int32 `[steps_per_dispatch, batch_share]`, and
          the rows of each item table, `[steps_per_dispatch, batch_share, ...]`.
        """
        at = self.positions(self.schedule.start(dispatch))
        users, items = (column[at] for column in self.held)
        tables = self.item_tables.items()
        return {
            "users": users,
            "items": items,
            **{name: table[items] for name, table in tables},
        }


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
      weights: where interactions weigh by age.
    """

    users: np.ndarray
    items: np.ndarray
    share: int
    offsets: np.ndarray
    part: np.ndarray
    size: np.ndarray
    begin: np.ndarray
    weights: _Weights | None


@dataclasses.dataclass(frozen=True)
class _Weights:
    """What the interactions weigh that one process holds.

    Attributes:
      cumulative: of them, sums up to each, as in the whole stream.
      before: `[batch_share]`, sum before the part of each place.
      total: `[batch_share]`, sum of that part.
    """

    cumulative: np.ndarray
    before: np.ndarray
    total: np.ndarray


def make_stream(
    catalog: Catalog,
    batch_size: int,
    stack: int,
    seed: int,
    half_life: float = 0.0,
    **options: Any,
) -> Stream:
    """The stream of a catalogue's train split.

    Args:
      catalog: the dataset.
      batch_size: see `Stream`.
      stack: steps of a dispatch, at most.
      seed: see `Stream`.
      half_life: see `by_age`; 0 reads all interactions equally often.
      **options: of `Stream`.

    Raises:
      InputError: if interactions are to count by age, and there are no times.
    """
    train, cumulative = catalog.train, None
    parts = count_parts(len(train), max(1, batch_size))
    if half_life:
        if half_life < 0 or train.timestamps is None:
            raise InputError(
                "Interactions cannot be drawn by their age.",
                where=f"config.data.half_life={half_life}",
                expected="a positive age, and a dataset that tells times",
                fix="prepare it with --time_column, or leave half_life at 0",
            )
        cumulative = np.cumsum(by_age(train.timestamps, half_life))
        # A part may not be empty, as where few weigh more than all others.
        while (np.diff(cuts(parts, len(train), cumulative)) < 1).any():
            parts //= 2
    schedule = Schedule.make(len(train), max(1, batch_size), stack)
    return Stream(
        train.users,
        train.items,
        batch_size,
        seed,
        schedule,
        parts=parts,
        cumulative=cumulative,
        **options,
    )


def numpy_batches(stream: Stream, first: int = 0) -> Iterator[Batch]:
    """`Stream.stack` from dispatch `first` on, without end."""
    return map(stream.stack, itertools.count(first))


def tf_batches(stream: Stream, first: int = 0) -> Iterator[Batch]:
    """The same as `numpy_batches`, formed and prefetched by tf.data."""
    import tensorflow as tf

    # Training owns the accelerators; TensorFlow only feeds it.
    tf.config.set_visible_devices([], "GPU")
    columns = stream.columns
    kinds = [tf.as_dtype(dtype) for _, dtype in columns.values()]

    def formed(dispatch: np.int64) -> list[np.ndarray]:
        stack = stream.stack(int(dispatch))
        return [stack[name] for name in columns]

    def form(dispatch):
        found = tf.numpy_function(formed, [dispatch], kinds)
        return dict(zip(columns, found, strict=True))

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
