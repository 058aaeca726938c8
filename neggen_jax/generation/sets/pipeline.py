"""Tasks to a writer and records to the journal, many at a time.

Used by `generate.py`. What completes is written down at once; a run
that is told to stop waits a little for what is in flight, and drops the rest:
the next run asks for it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from neggen_jax.errors import InputError
from neggen_jax.generation.records import Record
from neggen_jax.generation.tasks import Task
from neggen_jax.generation.writers import Writer

# Seconds in which requests in flight may end when a run is told to stop.
GRACE = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(
    work: Iterable[Task], writer: Writer, keep: Callable[[Record], None]
) -> int:
    """Has all tasks written.

    Args:
      work: the tasks.
      writer: who writes; closed afterwards.
      keep: called with each record, in the order in which they complete.

    Returns:
      0, or the number of the signal that has stopped it.

    Raises:
      InputError: if there is no going on; what has completed is kept.
    """
    loop = asyncio.new_event_loop()
    stopped = 0
    try:
        stopped = loop.run_until_complete(_run(work, writer, keep))
    finally:
        if not stopped:
            # Who was told to stop does not wait for threads.
            loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    return stopped


async def _run(
    work: Iterable[Task], writer: Writer, keep: Callable[[Record], None]
) -> int:
    flight = _Flight(writer, keep)
    stop = _told()
    try:
        for task in work:
            if stop.done():
                break
            await flight.take(task, stop)
        await flight.land(stop)
    except BaseException:
        await flight.drop()
        raise
    finally:
        await _closed(writer, GRACE if stop.done() else None)
    return stop.result() if stop.done() else 0


class _Flight:
    """What is being written."""

    def __init__(self, writer: Writer, keep: Callable[[Record], None]):
        self._writer, self._keep = writer, keep
        self._running: set[asyncio.Task[Record]] = set()

    async def take(self, task: Task, stop: asyncio.Future[int]) -> None:
        """Begins a task as soon as there is room for it."""
        if task.missing:
            self._keep(_failed(task, self._writer))
            await asyncio.sleep(0)
            return
        self._running.add(asyncio.create_task(self._writer.write(task)))
        while (
            len(self._running) >= self._writer.concurrency and not stop.done()
        ):
            await self._wait(stop)

    async def land(self, stop: asyncio.Future[int]) -> None:
        """Waits for all that is in flight, or for a while after `stop`."""
        while self._running and not stop.done():
            await self._wait(stop)
        if self._running:
            await asyncio.wait(self._running, timeout=GRACE)
            self._collect()
            await self.drop()

    async def drop(self) -> None:
        """Gives up what is in flight."""
        with contextlib.suppress(InputError):
            self._collect()
        for one in self._running:
            one.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=1.0)
        for one in self._running:
            # Whatever it was, it is not needed any more.
            if one.done() and not one.cancelled():
                one.exception()

    async def _wait(self, stop: asyncio.Future[int]) -> None:
        waited: set[asyncio.Future[Any]] = {*self._running, stop}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        self._collect()

    def _collect(self) -> None:
        """Keeps what is done; raises what went wrong when the rest is kept."""
        done = {one for one in self._running if one.done()}
        self._running -= done
        trouble = None
        for one in done:
            error = one.exception()
            if error is None:
                self._keep(one.result())
            elif trouble is None:
                trouble = error
        if trouble is not None:
            raise trouble


def _failed(task: Task, writer: Writer) -> Record:
    """The record of a task in which there is nothing to describe."""
    return Record(
        item=task.item,
        id=task.id,
        modality=task.modality,
        backend=writer.name,
        model=writer.model,
        prompt_version=writer.prompt_version,
        error=task.missing,
    )


def _told() -> asyncio.Future[int]:
    """What will be the number of the signal to stop."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def tell(number: int) -> None:
        if not stop.done():
            print("\nstopping: waiting for what is in flight", flush=True)
            stop.set_result(number)

    # Only the main thread can be told. Handlers go with the loop.
    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
        for number in _SIGNALS:
            loop.add_signal_handler(number, tell, int(number))
    return stop


async def _closed(writer: Writer, seconds: float | None) -> None:
    closing: Coroutine[Any, Any, None] = writer.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(closing, seconds)
