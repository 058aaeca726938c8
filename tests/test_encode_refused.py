"""Sets that cannot be encoded are refused, and stay as they were."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import make_catalog
from test_encode import contents, make_records, quick, write_set

from neggen_jax.data import store
from neggen_jax.errors import InputError
from neggen_jax.generation.sets import encode as encoding


@pytest.fixture
def directory(tmp_path):
    """A dataset without a set."""
    store.save(make_catalog(), tmp_path / "data", source={})
    return tmp_path / "data"


# What is refused --------------------------------------------------------------


def rewrite(path, change):
    file = path / "records.jsonl"
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(change(lines)), "utf-8")


def with_surrogate(lines):
    fields = json.loads(lines[4])
    fields["description"] = "half \ud800 a character"
    return [*lines[:4], json.dumps(fields) + "\n", *lines[5:]]


REFUSED = {
    "two records in one place": (
        lambda path: rewrite(path, lambda x: [*x[:3], x[2], *x[3:]]),
        r"where it should.*line 4.*item 1, text",
    ),
    "records not in order": (
        lambda path: rewrite(path, lambda x: [*x[2:], *x[:2]]),
        "where it should.*line 81",
    ),
    "an item beyond the last": (
        lambda path: rewrite(
            path, lambda x: [*x[:-1], x[-1].replace('": 40', '": 41')]
        ),
        "where it should.*line 82.*below 41.*item 41",
    ),
    "no record": (
        lambda path: rewrite(path, lambda x: [*x[:2], "{}\n", *x[2:]]),
        "not a record.*line 3",
    ),
    "torn": (
        lambda path: rewrite(path, lambda x: [*x[:-1], x[-1][:40]]),
        "not a record.*line 82",
    ),
    "half a character": (
        lambda path: rewrite(path, with_surrogate),
        "surrogate.*line 5",
    ),
    "none accepted": (
        lambda path: rewrite(
            path, lambda x: [line for line in x if '"length"' in line]
        ),
        "No record of the set was accepted.*12 that failed, of them 12 for "
        "'length'",
    ),
    "empty": (
        lambda path: rewrite(path, lambda x: []),
        "No record of the set was accepted.*no records",
    ),
    "records gone": (
        lambda path: (path / "records.jsonl").unlink(),
        "cannot be opened",
    ),
    "no word": (
        lambda path: rewrite(
            path,
            lambda x: [
                re.sub(r'"text": "[^"]*"', r'"text": "!"', line) for line in x
            ],
        ),
        "No item has a counterfactual",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_records_are_refused_and_leave_nothing(directory, kind):
    path = write_set(directory, make_records())
    change, message = REFUSED[kind]
    change(path)
    before = contents(path)
    with pytest.raises(InputError, match=f"(?s){message}"):
        quick(directory)
    assert contents(path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "tfid"}, "did you mean 'tfidf'"),
        ({"encoder": "pixels"}, "known: tfidf, transformers"),
        ({"model": "x"}, "no weights"),
        ({"dim": 0}, "dim=0"),
        ({"dim": 4000}, "does not fill 4000"),
        ({"seed": -1}, "seed=-1"),
        ({"set_name": "rules"}, "did you mean 'rule'"),
    ],
)
def test_bad_options_are_refused(directory, options, message):
    write_set(directory, make_records())
    name = options.pop("set_name", "rule")
    with pytest.raises(InputError, match=f"(?s){message}"):
        quick(directory, name, **options)


def test_an_incomplete_set_is_not_encoded(directory):
    path = write_set(directory, make_records())
    (path / "manifest.json").unlink()
    with pytest.raises(InputError, match="not complete"):
        quick(directory)


def test_records_of_other_items_are_not_encoded(directory):
    write_set(directory, make_records(), source="0" * 32)
    with pytest.raises(InputError, match="of other items"):
        quick(directory)


def test_a_full_disk_leaves_what_was_there(small_disk):
    """An error, not a signal that ends the process."""
    directory = small_disk / "data"
    store.save(make_catalog(), directory, source={})
    path = write_set(directory, make_records())
    quick(directory, dim=4)
    before = contents(path)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "fill").write_bytes(b"x" * (free - 8_192))
    with pytest.raises(InputError, match=r"(?s)could not be written.*space"):
        quick(directory, dim=8)
    assert contents(path) == before
    assert store.load(directory, counterfactuals="rule").counterfactuals


def test_room_is_asked_for_before_it_is_used(small_disk):
    # Two megabytes on a disk of one: a mapped file alone would take them.
    with pytest.raises(OSError, match="No space left"):
        encoding._allocate(small_disk / "x.npy", (2**9, 2**10), np.float32)
