"""Shards of a set in one file: whole, in order, and of the same settings."""

import contextlib
import dataclasses
import json
import os

import pytest
from test_ledger import complete, every, journal, opened, record, write

from neggen_jax.errors import InputError
from neggen_jax.generation.sets import files, merging
from neggen_jax.generation.sets.ledger import (
    Shard,
)

# -- merging -----------------------------------------------------------------


def test_shards_merged_equal_one_run(tmp_path):
    complete(tmp_path / "one")
    for shard in (Shard(1, 3, 6), Shard(0, 3, 6), Shard(2, 3, 6)):
        complete(tmp_path / "three", shard, every(shard)[::-1])
    manifests = [
        merging.merge(tmp_path / name, "digest") for name in ("one", "three")
    ]
    files = [
        (tmp_path / name / "records.jsonl").read_bytes()
        for name in ("one", "three")
    ]
    assert files[0] == files[1] == journal(tmp_path / "one").read_bytes()
    assert manifests[0].pop("shards") == 1
    assert manifests[1].pop("shards") == 3
    assert manifests[0] == manifests[1]


def test_the_manifest_counts(tmp_path):
    some = every()
    some[2] = record(1, error="mask: item 7 has 'x': it is 12 words")
    some[4] = record(2, error="mask: item 8 has 'yy': it is 3 words")
    complete(tmp_path, some=some)
    manifest = merging.merge(tmp_path, "digest")
    assert manifest["counts"] == {
        "text": {
            "accepted": 4,
            "failed": 2,
            "counterfactuals": 4,
            "reasons": {"mask: item N has '...': it is N words": 2},
            "changed": {"colour": 4},
        },
        "image": {
            "accepted": 6,
            "failed": 0,
            "counterfactuals": 6,
            "reasons": {},
            "changed": {"colour": 6},
        },
    }
    assert manifest["attempts"] == 24
    assert manifest["seed"] == 0
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


def test_a_missing_shard_is_refused(tmp_path):
    complete(tmp_path, Shard(0, 3, 6))
    complete(tmp_path, Shard(2, 3, 6))
    with pytest.raises(InputError, match="Not all shards") as caught:
        merging.merge(tmp_path, "digest")
    assert "none of 1/3" in str(caught.value)
    assert not (tmp_path / "records.jsonl").exists()


def test_a_shard_with_gaps_is_refused(tmp_path):
    complete(tmp_path, Shard(0, 2, 6))
    write(tmp_path, every(Shard(1, 2, 6))[:4], Shard(1, 2, 6))
    with pytest.raises(InputError, match="not complete") as caught:
        merging.merge(tmp_path, "digest")
    assert "2 missing of shard 1/2" in str(caught.value)
    assert "--shard=1/2" in str(caught.value)


def test_shards_of_other_settings_are_refused(tmp_path):
    complete(tmp_path, Shard(0, 2, 6))
    # Brought from a host that did not see the other.
    complete(tmp_path / "x", Shard(1, 2, 6), seed=3)
    for name in ("shard-1-of-2.json", "records-1-of-2.jsonl"):
        os.rename(tmp_path / "x" / name, tmp_path / name)
    with pytest.raises(InputError, match="another setting of 'seed'"):
        merging.merge(tmp_path, "digest")


def test_a_record_of_another_shard_is_refused(tmp_path):
    complete(tmp_path, Shard(0, 2, 6))
    complete(tmp_path, Shard(1, 2, 6))
    with journal(tmp_path, Shard(1, 2, 6)).open("a") as file:
        file.write(record(0).to_line())
    with pytest.raises(InputError, match="not of this shard"):
        merging.merge(tmp_path, "digest")


def test_two_cuts_of_the_items_are_refused(tmp_path):
    complete(tmp_path, Shard(0, 2, 6))
    complete(tmp_path / "x", Shard(0, 3, 6))
    for name in ("shard-0-of-3.json", "records-0-of-3.jsonl"):
        os.rename(tmp_path / "x" / name, tmp_path / name)
    with pytest.raises(InputError, match="shards"):
        merging.merge(tmp_path, "digest")


def test_a_shard_that_is_being_written_is_not_merged(tmp_path):
    complete(tmp_path)
    again = pytest.raises(InputError, match="Another process")
    with opened(tmp_path), again:
        merging.merge(tmp_path, "digest")


def test_records_of_other_items_are_refused(tmp_path):
    complete(tmp_path)
    with pytest.raises(InputError, match="other items"):
        merging.merge(tmp_path, "new digest")


def test_nothing_to_merge_is_refused(tmp_path):
    with pytest.raises(InputError, match="no shards"):
        merging.merge(tmp_path, "digest")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"shard": 0, "shards": 2}', '{"shard": 1}']
)
def test_damaged_settings_are_refused(tmp_path, text):
    complete(tmp_path)
    (tmp_path / "shard-0-of-1.json").write_text(text)
    with pytest.raises(InputError, match="settings of a shard"):
        merging.merge(tmp_path, "digest")


def test_vectors_stay_known_as_long_as_texts_are_the_same(tmp_path):
    complete(tmp_path)
    manifest = merging.merge(tmp_path, "digest")
    assert "encoding" not in manifest
    files.write_json(
        tmp_path / "manifest.json", {**manifest, "encoding": {"dim": 3}}
    )
    assert merging.merge(tmp_path, "digest")["encoding"] == {"dim": 3}
    with journal(tmp_path).open("r+b") as file:
        text = file.read().replace(b"blue mug", b"teal mug")
        file.seek(0)
        file.write(text)
    assert "encoding" not in merging.merge(tmp_path, "digest")


def test_a_manifest_never_tells_of_other_records(tmp_path):
    complete(tmp_path)
    merging.merge(tmp_path, "digest")
    data = journal(tmp_path).read_bytes().replace(b"blue mug", b"teal mug")
    journal(tmp_path).write_bytes(data)
    # Whatever keeps the new one from being written.
    (tmp_path / ".manifest.json.partial").mkdir()
    with pytest.raises(OSError, match="directory"):
        merging.merge(tmp_path, "digest")
    assert b"teal mug" in (tmp_path / "records.jsonl").read_bytes()
    assert not (tmp_path / "manifest.json").exists()


def test_a_full_disk_stops_merging_and_loses_nothing(small_disk):
    some = [
        dataclasses.replace(one, description="x" * 60_000) for one in every()
    ]
    write(small_disk / "set", some)
    with pytest.raises(InputError, match="could not be written"):
        merging.merge(small_disk / "set", "digest")
    names = {path.name for path in (small_disk / "set").iterdir()}
    assert not any("partial" in name for name in names)
    assert "manifest.json" not in names
    with opened(small_disk / "set") as book:
        assert book.missing == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("the item has no text", "the item has no text"),
        (
            "mask: the request failed: HTTP 503: overloaded",
            "mask: the request failed: HTTP 503",
        ),
        (
            "mask: Value 2 is 'Red', not \"x\"; no.",
            "mask: Value N is '...', not '...'",
        ),
        ("describe: It has 212 words. Say less.", "describe: It has N words"),
        ("", "unknown"),
    ],
)
def test_a_kind_of_reason_leaves_particulars_out(error, kind):
    assert merging.reason_kind(error) == kind


def test_nothing_is_left_open_by_what_is_refused(tmp_path):
    write(tmp_path, [record(0)])
    for _ in range(3):
        with contextlib.suppress(InputError), opened(tmp_path, seed=9):
            pass
    with opened(tmp_path) as book:
        assert book.missing == 11
