"""Records on disk: what survives a kill, a full disk, and other settings."""

import dataclasses
import json
import multiprocessing
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.records import MODALITIES, Alternative, Record
from neggen_jax.generation.sets.ledger import (
    ACCEPTED,
    FAILED,
    OPEN,
    Ledger,
    Shard,
)

SETTINGS = {
    "backend": "attributes",
    "modalities": list(MODALITIES),
    "items": 6,
    "source": "digest",
    "seed": 0,
}
ONE = Shard(0, 1, 6)


def record(item, modality="text", error="", word="red"):
    made = ()
    if not error:
        made = (Alternative("a blue mug", {"colour": (word, "blue")}),)
    return Record(
        item=item,
        id=f"id{item}",
        modality=modality,
        description=f"a {word} mug \N{LATIN SMALL LETTER E WITH ACUTE}",
        negatives=made,
        backend="attributes",
        attempts=2,
        error=error,
    )


def every(shard=ONE):
    return [record(item, m) for item in shard.items for m in MODALITIES]


def opened(path, shard=ONE, **changes):
    settings = {**SETTINGS, **changes}
    return Ledger(path, shard, tuple(settings["modalities"]), settings)


def write(path, some, shard=ONE, finish=False, **changes):
    with opened(path, shard, **changes) as book:
        for one in some:
            book.append(one)
        if finish:
            book.finish()


def journal(path, shard=ONE):
    return path / f"records-{shard.label}.jsonl"


def complete(path, shard=ONE, some=None, **changes):
    write(path, every(shard) if some is None else some, shard, True, **changes)


# -- the journal -------------------------------------------------------------


def test_what_is_written_is_there_the_next_time(tmp_path):
    write(tmp_path, [record(3), record(1, "image", error="it failed")])
    with opened(tmp_path) as book:
        assert book.state(3, "text") == ACCEPTED
        assert book.state(1, "image") == FAILED
        assert book.state(1, "text") == OPEN
        assert (len(book), book.missing) == (12, 10)
        assert [json.loads(line)["item"] for line in book.lines()] == [1, 3]


def test_a_complete_journal_is_sorted(tmp_path):
    complete(tmp_path / "a", some=every()[::-1])
    complete(tmp_path / "b", some=every())
    lines = journal(tmp_path / "a").read_bytes()
    assert lines == journal(tmp_path / "b").read_bytes()
    assert lines.decode() == "".join(one.to_line() for one in every())


def test_a_failed_record_is_replaced_by_the_next_try(tmp_path):
    first = [record(i, m, error="no") for i in range(6) for m in MODALITIES]
    write(tmp_path, first)
    with opened(tmp_path) as book:
        assert {book.state(i, m) for i in range(6) for m in MODALITIES} == {
            FAILED
        }
        for one in every()[:-1]:
            book.append(one)
        book.finish()
    found = [
        records.parse(line, "here")
        for line in journal(tmp_path).read_bytes().splitlines()
    ]
    assert found == [*every()[:-1], first[-1]]


def test_an_accepted_record_is_never_replaced(tmp_path):
    with opened(tmp_path) as book:
        book.append(record(0))
        with pytest.raises(AssertionError, match="already written"):
            book.append(record(0, word="green"))
    assert journal(tmp_path).read_bytes().count(b"\n") == 1


@given(cut=st.integers(0, 10_000), order=st.permutations(every()))
def test_whatever_a_kill_leaves_whole_records_are_there(
    tmp_path_factory, cut, order
):
    path = tmp_path_factory.mktemp("kill")
    write(path, order)
    data = journal(path).read_bytes()
    cut = cut % (len(data) + 1)
    journal(path).write_bytes(data[:cut])
    whole = data[:cut].count(b"\n")
    with opened(path) as book:
        assert len(book) - book.missing == whole
        found = sorted(records.parse(x, "here").key for x in book.lines())
        assert found == sorted(one.key for one in order[:whole])
        for one in order[whole:]:
            book.append(one)
        book.finish()
    complete(path / "other")
    assert journal(path).read_bytes() == journal(path / "other").read_bytes()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"item": 1}\n', "not a record"),
        ("\n", "not a record"),
        (record(6).to_line(), "not of this shard"),
        (record(0).to_line(), "A task has two records"),
    ],
)
def test_damage_is_refused_by_its_line(tmp_path, line, problem):
    write(tmp_path, [record(0)])
    with journal(tmp_path).open("a") as file:
        file.write(line)
    before = journal(tmp_path).read_bytes()
    with pytest.raises(InputError, match=problem) as caught, opened(tmp_path):
        pass
    assert "line 2" in str(caught.value)
    assert journal(tmp_path).read_bytes() == before


def test_a_full_disk_loses_nothing(small_disk):
    shard, shown = Shard(0, 1, 99), "x" * 70_000
    some = [
        dataclasses.replace(record(item), description=shown)
        for item in range(99)
    ]
    with pytest.raises(InputError, match="could not be written") as caught:
        write(small_disk / "set", some, shard, items=99)
    assert "free some space" in str(caught.value)
    with opened(small_disk / "set", shard, items=99) as book:
        assert 10 < len(book) - book.missing < 15
        parsed = [records.parse(line, "here") for line in book.lines()]
    assert parsed == some[: len(parsed)]


def test_a_line_that_found_no_room_leaves_no_trace(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 900_000)
    long = dataclasses.replace(record(1), description="x" * 200_000)
    with opened(small_disk / "set") as book:
        book.append(record(0))
        with pytest.raises(InputError, match="could not be written"):
            book.append(long)
        ballast.unlink()
        book.append(long)
        assert [records.parse(x, "here").item for x in book.lines()] == [0, 1]
    with opened(small_disk / "set") as book:
        assert book.missing == 10


def test_a_full_disk_stops_sorting_and_loses_nothing(small_disk):
    some = [
        dataclasses.replace(one, description="x" * 70_000) for one in every()
    ]
    write(small_disk / "set", some)
    before = journal(small_disk / "set").read_bytes()
    with (
        pytest.raises(InputError, match="could not be written"),
        opened(small_disk / "set") as book,
    ):
        book.finish()
    assert journal(small_disk / "set").read_bytes() == before
    names = {path.name for path in (small_disk / "set").iterdir()}
    assert not any("partial" in name for name in names)


# -- settings ----------------------------------------------------------------


def test_other_settings_are_refused(tmp_path):
    write(tmp_path, [record(0)])
    with (
        pytest.raises(InputError, match="another setting of 'seed'") as caught,
        opened(tmp_path, seed=7),
    ):
        pass
    assert "expected: 0" in str(caught.value)
    assert "found:    7" in str(caught.value)
    with opened(tmp_path) as book:
        assert book.missing == 11


def test_settings_other_than_those_of_another_shard_are_refused(tmp_path):
    other = Shard(1, 2, 6)
    write(tmp_path, [record(0)], Shard(0, 2, 6))
    with pytest.raises(InputError, match="another setting of 'seed'") as caught:
        write(tmp_path, [], other, seed=7)
    assert "shard-0-of-2.json" in str(caught.value)
    assert not (tmp_path / "shard-1-of-2.json").exists()
    write(tmp_path, [record(4)], other)


def test_shards_of_which_nothing_is_written_bind_nobody(tmp_path):
    write(tmp_path, [], Shard(0, 2, 6), seed=7)
    write(tmp_path, [record(4)], Shard(1, 2, 6))


def test_nothing_is_written_yet_so_settings_may_change(tmp_path):
    write(tmp_path, [])
    write(tmp_path, [record(0)], seed=7)
    about = json.loads((tmp_path / "shard-0-of-1.json").read_text())
    assert about["seed"] == 7


def test_records_without_their_settings_are_refused(tmp_path):
    write(tmp_path, [record(0)])
    (tmp_path / "shard-0-of-1.json").unlink()
    with (
        pytest.raises(InputError, match="settings of a shard"),
        opened(tmp_path),
    ):
        pass


def test_another_number_of_shards_is_refused(tmp_path):
    write(tmp_path, [record(0)], Shard(0, 2, 6))
    with (
        pytest.raises(InputError, match="another number of shards"),
        opened(tmp_path, Shard(0, 3, 6)),
    ):
        pass


def hold(path, ready):
    with opened(path):
        ready.set()
        time.sleep(600)


def test_two_processes_cannot_write_one_shard(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready))
    other.start()
    try:
        assert ready.wait(120)
        with (
            pytest.raises(InputError, match="Another process") as caught,
            opened(tmp_path),
        ):
            pass
        assert f"process {other.pid} on" in str(caught.value)
        # Another shard is another's.
        with opened(tmp_path / "other"):
            pass
        # However it ends, the lock ends with it.
        other.kill()
        other.join()
        with opened(tmp_path) as book:
            assert book.missing == 12
    finally:
        other.kill()
        other.join()


@given(items=st.integers(1, 60), count=st.integers(1, 12))
def test_shards_cut_the_items_evenly(items, count):
    shards = [Shard(i, count, items) for i in range(count)]
    assert [i for shard in shards for i in shard.items] == list(range(items))
    sizes = [len(shard.items) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["1/1", "2/2", "0/0", "0/7", "-1/2", "1", ""])
def test_no_shard_is_refused(text):
    with pytest.raises(InputError, match="not a shard"):
        Shard.parse(text, 6)


def test_shards_are_counted_from_0():
    assert Shard.parse("1/2", 6) == Shard(1, 2, 6)
    assert list(Shard.parse("1/2", 6).items) == [3, 4, 5]
