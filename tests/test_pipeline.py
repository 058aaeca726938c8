"""Many tasks at a time: writers that wait, fail, and are stopped."""

import asyncio
import os
import signal
import time

import pytest
from contents import make_records
from test_counterfactuals import COLOURS, folder, keys, save
from test_tasks import SHOP

from neggen_jax.errors import InputError
from neggen_jax.generation import tasks
from neggen_jax.generation.records import Alternative, Record
from neggen_jax.generation.sets import pipeline
from neggen_jax.generation.sets.generate import generate

# -- writers that wait, fail and are stopped ---------------------------------


class Slow:
    """Writes after a while; some tasks never."""

    name, model, prompt_version, concurrency = "slow", "m", "v", 4

    def __init__(self, on_write=lambda task: None, endless=()):
        self.on_write, self.endless = on_write, set(endless)
        self.flying, self.most, self.asked, self.closed = 0, 0, [], False

    async def write(self, task):
        self.flying += 1
        self.most = max(self.most, self.flying)
        self.asked.append(task.item)
        try:
            self.on_write(task)
            # Later ones come sooner.
            await asyncio.sleep(
                600
                if task.item in self.endless
                else 0.002 * (5 - task.item % 5)
            )
        finally:
            self.flying -= 1
        made = Alternative("b", {"x": ("a", "b")})
        return Record(task.item, task.id, task.modality, negatives=(made,))

    async def close(self):
        assert not self.flying
        self.closed = True


WORK = list(tasks.make(SHOP, tasks.plan(SHOP, modalities=["text"])))


def test_as_many_are_in_flight_as_the_writer_can_do():
    writer, kept = Slow(), []
    assert pipeline.run(WORK, writer, kept.append) == 0
    assert writer.most == 4
    assert writer.closed
    assert sorted(record.item for record in kept) == list(range(len(WORK)))
    assert [record.item for record in kept] != sorted(
        record.item for record in kept
    )


def test_tasks_are_taken_in_order_and_no_sooner_than_needed():
    taken = []

    def work():
        for task in WORK:
            taken.append(task.item)
            yield task

    def on_write(task):
        assert len(taken) - taken.index(task.item) <= 5

    writer = Slow(on_write)
    pipeline.run(work(), writer, lambda record: None)
    assert writer.asked == list(range(len(WORK)))


def test_who_cannot_go_on_keeps_what_is_done():
    def on_write(task):
        if task.item == 20:
            raise InputError("The server is gone.")

    writer, kept = Slow(on_write, endless=[19]), []
    with pytest.raises(InputError, match="server is gone"):
        pipeline.run(WORK, writer, kept.append)
    items = {record.item for record in kept}
    assert items.isdisjoint({19, 20})
    # Only what was in flight is lost.
    assert len(set(range(20)) - items) <= 4
    # Those that were in flight with it, and no more.
    assert max(writer.asked) <= 23
    assert writer.closed


def test_told_to_stop_it_takes_no_more_and_drops_what_does_not_end():
    def on_write(task):
        if task.item == 30:
            os.kill(os.getpid(), signal.SIGINT)

    writer, kept = Slow(on_write, endless=[28]), []
    start = time.monotonic()
    assert pipeline.run(WORK, writer, kept.append) == signal.SIGINT
    # It waits for what is in flight, but not for ever.
    assert pipeline.GRACE <= time.monotonic() - start < pipeline.GRACE + 30
    items = {record.item for record in kept}
    assert items >= {29, 30}
    assert 28 not in items
    assert max(items) <= 32
    assert writer.closed
    # Afterwards the signal means what it meant before.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_record_that_cannot_be_kept_ends_it():
    def keep(record):
        if record.item == 10:
            raise InputError("The disk is full.")

    writer = Slow()
    with pytest.raises(InputError, match="disk is full"):
        pipeline.run(WORK, writer, keep)
    assert writer.closed
    assert len(writer.asked) < 20


def test_a_full_disk_is_said_and_gone_on_from(small_disk):
    some = make_records(
        [f"A {c} mug " + "x" * 3_700 for c in COLOURS] * 12,
        attributes=[{"colour": c} for c in COLOURS] * 12,
    )
    data = save(some, small_disk / "data")
    (small_disk / "other").write_bytes(b"x" * 100_000)
    with pytest.raises(InputError, match="could not be written"):
        generate(data, encode=False)
    journal = folder(data) / "records-0-of-1.jsonl"
    found = len(keys(journal))
    assert 0 < found <= 60
    assert journal.read_bytes().endswith(b"\n")
    (small_disk / "other").unlink()
    # There is room for the journal now, and still none to merge it.
    with pytest.raises(InputError, match="could not be written"):
        generate(data, encode=False)
    assert len(set(keys(journal))) == 60
