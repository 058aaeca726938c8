"""Lists of recommendations: who asks, what they are given, in which file."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from conftest import ITEMS, USERS
from etils import epath
from pyarrow import parquet
from recommending import opened, own_items

from neggen_jax import storage
from neggen_jax.errors import InputError
from neggen_jax.recommend import asked as people
from neggen_jax.recommend.asked import Asked, Names
from neggen_jax.recommend.lists import Lister
from neggen_jax.recommend.recommend import recommend


@pytest.fixture(scope="module")
def trained():
    return opened("lightgcn")


def lister(trained, **options):
    return Lister(
        trained.run, trained.users, trained.items, trained.num_items, **options
    )


@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)])
def test_lists_are_those_of_the_evaluation(mesh):
    trained = opened("lightgcn", mesh)
    ranked = trained.run.ranker("test")(trained.users, trained.items)
    asked = [Asked(f"u{row}", int(row)) for row in ranked.users]
    found = lister(trained, k=20, seen=("train", "valid"))(asked)
    lists = np.concatenate([block.items for block in found])
    np.testing.assert_array_equal(lists, ranked.lists[:, :20])


def test_scores_are_inner_products_and_ties_go_to_the_first(trained):
    items = np.asarray(trained.items).copy()
    items[7] = items[3]
    alike = dataclasses.replace(trained, items=items)
    (found,) = lister(alike, k=ITEMS, seen=())([Asked("u5", 5)])
    want = items[:ITEMS].astype(np.float64) @ np.asarray(trained.users)[5]
    np.testing.assert_allclose(found.scores[0], want[found.items[0]], atol=1e-5)
    assert sorted(found.items[0]) == list(range(ITEMS))
    assert (np.diff(found.scores[0]) <= 0).all()
    order = list(found.items[0])
    assert order.index(7) == order.index(3) + 1


@pytest.mark.parametrize(
    "seen", [(), ("train",), ("train", "valid"), ("train", "valid", "test")]
)
def test_what_a_user_has_is_left_out(trained, seen):
    asked = list(people.everybody(trained.user_names))
    (found,) = lister(trained, k=ITEMS, seen=seen)(asked)
    for user in range(USERS):
        own = own_items(trained, user, *seen) if seen else []
        given = found.items[user]
        assert {*given[given >= 0]} == {*range(ITEMS)} - {*own}
        assert (given[ITEMS - len(own) :] == -1).all()


def test_a_block_does_not_know_of_the_others(trained):
    asked = list(people.everybody(trained.user_names))
    whole = lister(trained, k=5)
    (one,) = whole(asked)
    parts = lister(trained, k=5)
    parts.block = 256
    many = [*parts(asked[40:] + asked * 9)]
    assert len(many) > 2
    items = np.concatenate([block.items for block in many])
    np.testing.assert_array_equal(items[: USERS - 40], one.items[40:])
    np.testing.assert_array_equal(items[-USERS:], one.items)


def test_refuses_lists_that_cannot_be(trained):
    with pytest.raises(InputError, match="longer than the catalogue"):
        lister(trained, k=ITEMS + 1)
    with pytest.raises(InputError, match="no split 'tests'"):
        lister(trained, seen=("tests",))


# -- who asks ----------------------------------------------------------------

USER_NAMES = Names(["ann", "bob", "7"], 3)
ITEM_NAMES = Names(["x", "y", "z"], 3)


def read(path, **options):
    return [*people.read(epath.Path(path), USER_NAMES, ITEM_NAMES, **options)()]


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("users.txt", "bob\n\n7\n"),
        ("users", "bob\n7"),
        ("users.jsonl", '{"user": "bob"}\n\n{"user_id": 7}\n'),
        ("users.jsonl", '"bob"\n7\n'),
        ("users.csv", "age,user\n3,bob\n4,7\n"),
        ("users.csv", "\N{BOM}user\r\nbob\r\n7\r\n"),
        ("users.tsv", "userID\tage\nbob\t3\n7\t4\n"),
    ],
)
def test_reads_users_of_every_format(tmp_path, name, text):
    found = read(write(tmp_path / name, text))
    assert [(one.name, one.row) for one in found] == [("bob", 1), ("7", 2)]


def test_reads_parquet_with_histories(tmp_path):
    path = tmp_path / "users.parquet"
    columns = {"user": ["bob", "new"], "items": [None, ["z", "x", "z"]]}
    parquet.write_table(pa.table(columns), path)
    bob, new = read(path)
    assert (bob.row, bob.items) == (1, None)
    assert (new.name, new.row, list(new.items)) == ("new", -1, [0, 2])


def test_indices_are_names_where_there_are_no_others():
    names = Names(None, 3)
    assert [names.row(n) for n in ("0", "2", "3", "-1", "x")] == [
        0,
        2,
        None,
        None,
        None,
    ]
    assert names[2] == "2"


def test_unknown_identifiers_are_told_by_line_or_skipped(tmp_path):
    path = write(
        tmp_path / "users.jsonl",
        '{"user": "bob"}\n{"user": "eve"}\n'
        '{"user": "a", "items": ["x", "q"]}\n{"user": "b", "items": ["q"]}\n'
        '{"user": "c", "items": []}\n',
    )
    with pytest.raises(InputError) as error:
        read(path)
    assert "4 identifiers" in error.value.problem
    for told in ("line 2: user 'eve'", "line 3: item 'q'", "line 5: no items"):
        assert told in error.value.found
    bob, one = read(path, unknown="skip")
    assert (bob.name, one.name, list(one.items)) == ("bob", "a", [0])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"user": "bob"}\n{"age": 3}\n', "line 2"),
        ("a.jsonl", '{"user": "bob"\n', "line 1"),
        ("a.jsonl", '{"user": "n", "items": "x"}\n', "line 1"),
        ("a.csv", "name\nbob\n", "no column of users"),
        ("a.txt", "\n", "nobody"),
        ("a.parquet", "none", "no Parquet file"),
    ],
)
def test_refuses_files_without_users(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / name, text))


def test_refuses_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read(tmp_path / "latin.txt")


# -- files -------------------------------------------------------------------


def test_both_files_say_the_same(trained, tmp_path):
    asked = write(tmp_path / "users.txt", "u3\nu1\nu3\n")
    for suffix in ("jsonl", "parquet"):
        path = tmp_path / f"out.{suffix}"
        assert recommend(trained, asked, path, k=4, reasons=2) == 3
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    again = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["user"] for row in rows] == ["u3", "u1", "u3"]
    assert rows[0] == rows[2] != rows[1]
    for one, other in zip(rows, again, strict=True):
        assert len(one["items"]) == 4
        for mine, theirs in zip(one["items"], other["items"], strict=True):
            # Parquet has a null where a line of JSON has nothing.
            assert mine.get("title") == theirs["title"]
            assert mine["item"] == theirs["item"]
            assert mine["score"] == pytest.approx(theirs["score"], rel=1e-6)
            said = [reason["item"] for reason in mine["reasons"]]
            assert said == [reason["item"] for reason in theirs["reasons"]]
    number = int(rows[0]["items"][0]["item"][1:])
    want = np.asarray(trained.users)[3] @ np.asarray(trained.items)[number]
    assert rows[0]["items"][0]["score"] == pytest.approx(want, abs=1e-5)


def test_prints_a_table(trained, tmp_path, capsys):
    recommend(trained, write(tmp_path / "users", "u2\n"), k=2, reasons=1)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "u2"
    assert [line.split()[0] for line in rest if " has " not in line] == [
        "1",
        "2",
    ]


def test_what_is_there_is_not_lost(trained, tmp_path):
    path = write(tmp_path / "out.jsonl", "mine\n")
    asked = write(tmp_path / "users", "u2\n")
    with pytest.raises(InputError, match="exists already"):
        recommend(trained, asked, path, k=2)
    with pytest.raises(InputError, match="longer than"):
        recommend(trained, asked, path, k=999, overwrite=True)
    assert path.read_text() == "mine\n"
    with pytest.raises(InputError, match=r"\*\.parquet"):
        recommend(trained, asked, tmp_path / "out.xlsx", k=2)
    assert {p.name for p in tmp_path.iterdir()} == {"out.jsonl", "users"}
    recommend(trained, asked, path, k=2, overwrite=True)
    assert json.loads(path.read_text())["user"] == "u2"


def test_a_full_disk_leaves_nothing(small_disk):
    with (
        pytest.raises(InputError, match="could not be written"),
        storage.appearing(epath.Path(small_disk / "lists")) as partial,
    ):
        partial.write_bytes(bytes(2**21))
    assert not [*small_disk.iterdir()]
