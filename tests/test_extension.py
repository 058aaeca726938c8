"""Dataset directories that extend others: what stays, and what comes."""

import json

import numpy as np
import pytest
from growing import ITEMS, NAMES, NOW, PAST, PRESENT, past, present, write
from training import digests

from neggen_jax.catalog import SPLITS
from neggen_jax.data import store
from neggen_jax.data.encoders import Tfidf
from neggen_jax.data.features import item_text, unit_rows
from neggen_jax.data.moments import moments
from neggen_jax.data.prepare import prepare
from neggen_jax.errors import InputError
from neggen_jax.generation.sets.generate import Scope, generate


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Both directories, and what the first held before the second came."""
    root = tmp_path_factory.mktemp("growing")
    before = digests(past(root))
    present(root)
    return root, before


def opened(path):
    return store.load(path, records=True)


def told(catalog, split):
    part = catalog.splits[split]
    users, items = catalog.user_names(), catalog.item_names()
    return {
        (users[u], items[i], int(t))
        for u, i, t in zip(part.users, part.items, part.timestamps, strict=True)
    }


def test_old_indices_stay_and_new_ones_come_behind(both):
    root, before = both
    old, new = opened(root / "past"), opened(root / "present")
    assert digests(root / "past") == before
    for one, other in (
        (old.user_names(), new.user_names()),
        (old.item_names(), new.item_names()),
    ):
        assert other[: len(one)] == one
        assert len(other) > len(one)
        assert other[len(one) :] == sorted(other[len(one) :])
    assert new.name == old.name
    known = store.describe(root / "present")["source"]["extends"]
    assert known["fingerprint"] == old.fingerprint
    assert known["users"] == old.num_users


def test_the_past_is_train_and_the_present_is_split(both):
    root, _ = both
    old, new = opened(root / "past"), opened(root / "present")
    before = set().union(*(told(old, split) for split in SPLITS))
    parts = {split: told(new, split) for split in SPLITS}
    pairs = {row[:2] for row in before}
    fresh = {row for row in PRESENT if row[:2] not in pairs}
    assert fresh < set(PRESENT)
    assert parts["train"] >= before
    came = parts["train"] - before
    assert came | parts["valid"] | parts["test"] <= fresh
    assert {row for row in fresh if row[2] <= max(r[2] for r in came)} <= came
    assert min(r[2] for r in came) >= NOW
    # Known users need no train interaction in the present to be evaluated.
    late = {row[0] for row in parts["test"]} - {row[0] for row in came}
    assert late & set(old.user_names())


def test_old_vectors_stay_and_new_ones_are_of_the_same_space(both):
    root, _ = both
    old, new = opened(root / "past"), opened(root / "present")
    was, now = old.features["text"], new.features["text"]
    np.testing.assert_array_equal(now.values[: old.num_items], was.values)
    assert now.learned_from == old.num_items
    texts = [item_text(new.records, item) for item in range(new.num_items)]
    coder = Tfidf()
    first = coder.fit_transform(texts[: old.num_items])
    longest = np.linalg.norm(first, axis=1).max()
    want = unit_rows(coder.transform([text or " " for text in texts]), longest)
    np.testing.assert_allclose(now.values, want, atol=1e-4)
    assert not now.present[new.item_names().index("i03")]
    for got, wanted in zip(
        moments("text", *now.learned),
        moments("text", was.values, was.present),
        strict=True,
    ):
        np.testing.assert_array_equal(got, wanted)


def test_the_whole_log_again_is_the_same_as_what_is_new(both, tmp_path):
    root, _ = both
    past(tmp_path)
    whole = opened(present(tmp_path, [*PAST, *PRESENT]))
    assert whole.fingerprint == opened(root / "present").fingerprint


def test_what_was_extended_can_be_extended(both, tmp_path):
    root, _ = both
    rows = [("u02", f"i{item:02d}", 3000 + item) for item in range(ITEMS)]
    rows += [("zoe", f"i{item:02d}", 4000 + item) for item in range(1, 6)]
    file = write(tmp_path / "raw" / "more.csv", rows)
    prepare(
        "csv",
        file,
        tmp_path / "more",
        extends=root / "present",
        split="random",
    )
    old, new = opened(root / "present"), opened(tmp_path / "more")
    assert new.user_names() == [*old.user_names(), "zoe"]
    was, now = old.features["text"], new.features["text"]
    np.testing.assert_array_equal(now.values[: old.num_items], was.values)
    assert now.learned_from == was.learned_from
    # Newcomers are told by what the first items have taught.
    assert new.num_items > old.num_items
    assert now.present[old.num_items :].any()


def test_vectors_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"i{item:02d}" for item in range(ITEMS)]
    vectors = tmp_path / "image.npy"
    vectors.with_suffix(".ids").write_text("\n".join(ids))
    values = rng.normal(size=(ITEMS, 5)).astype(np.float32)
    np.save(vectors, values)
    own = {"image": vectors}
    old = opened(past(tmp_path, embeddings=own))
    with pytest.raises(InputError, match="have no image vectors"):
        present(tmp_path)
    np.save(vectors, rng.normal(size=(ITEMS, 6)))
    with pytest.raises(InputError, match="of another width"):
        present(tmp_path, embeddings=own)
    assert not (tmp_path / "present").exists()
    np.save(vectors, values + 1)
    new = opened(present(tmp_path, embeddings=own))
    rows = np.array([ids.index(name) for name in new.item_names()])
    want = np.where(
        np.arange(len(rows))[:, None] < old.num_items,
        values[rows],
        values[rows] + 1,
    )
    np.testing.assert_array_equal(new.features["image"].values, want)


def test_a_source_that_numbers_items(tmp_path):
    """Its numbers are of its own file; identifiers tell who is who."""
    for name, items, rows in (
        ("one", "abcd", ["00", "01", "12", "13", "20", "23"]),
        ("two", "xdcba", ["00", "01", "14", "30", "31", "32"]),
    ):
        root = tmp_path / name
        root.mkdir()
        lines = [
            json.dumps({"id": item, "text": f"a {item}{item}"})
            for item in items
        ]
        (root / "items.jsonl").write_text("\n".join(lines))
        labels = (0, 1, 0, 2, 0, 0) if name == "one" else (1, 2, 0, 0, 0, 0)
        body = [
            f"{r[0]}\t{r[1]}\t{n}" for r, n in zip(rows, labels, strict=True)
        ]
        text = "\n".join(["userID\titemID\tx_label", *body])
        (root / "shop.inter").write_text(text)
    prepare("mmrec", tmp_path / "one", tmp_path / "old")
    old = opened(tmp_path / "old")
    prepare(
        "mmrec", tmp_path / "two", tmp_path / "new", extends=tmp_path / "old"
    )
    new = opened(tmp_path / "new")
    assert new.item_names() == ["a", "b", "c", "d", "x"]
    assert new.user_names() == ["0", "1", "2", "3"]
    assert new.records.texts == [f"a {item}{item}" for item in "abcdx"]
    pairs = {
        split: {*zip(part.users.tolist(), part.items.tolist(), strict=True)}
        for split, part in new.splits.items()
    }
    past = {(0, 0), (0, 1), (1, 2), (1, 3), (2, 0), (2, 3)}
    assert pairs["train"] == past | {(1, 0), (3, 4), (3, 3), (3, 2)}
    assert pairs["valid"] == {(0, 4)}
    assert pairs["test"] == {(0, 3)}
    np.testing.assert_array_equal(
        new.features["text"].values[:4], old.features["text"].values
    )


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (PAST, {}, "no interactions that the dataset does not have"),
        (
            [(f"new {u}", i, t) for u, i, t in PRESENT],
            {},
            "None of the users is in the dataset",
        ),
        (
            [(u, f"new {i}", t) for u, i, t in PRESENT],
            {},
            "None of the items is in the dataset",
        ),
        (PRESENT, {"core": 2}, "no k-core"),
        (PRESENT, {"text": "tfidf"}, "settled"),
        (PRESENT, {"order": "dealt"}, "settled"),
        (PRESENT, {"text_attributes": ["colour"]}, "settled"),
        (PRESENT, {"extends": "nowhere"}, "no such dataset directory"),
    ],
)
def test_refused(both, tmp_path, table, options, message):
    root, before = both
    options = {"extends": root / "past", **options}
    with pytest.raises(InputError, match=message):
        present(tmp_path, table, **options)
    assert not (tmp_path / "present").exists()
    assert digests(root / "past") == before


def test_refused_in_its_own_place_and_of_a_bazaar(both):
    root, before = both
    with pytest.raises(InputError, match="not extended in its place"):
        prepare(
            "csv",
            root / "raw" / "present.csv",
            root / "past",
            extends=root / "past",
            overwrite=True,
        )
    with pytest.raises(InputError, match="no option 'extends'"):
        prepare("bazaar", None, root / "x", extends=root / "past")
    assert digests(root / "past") == before


def test_times_must_not_be_missing(both, tmp_path):
    root, _ = both
    file = write(
        tmp_path / "raw" / "p.csv", [r[:2] for r in PRESENT], NAMES[:2]
    )
    with pytest.raises(InputError, match="have no times"):
        prepare("csv", file, tmp_path / "p", extends=root / "past")


def test_counterfactuals_of_known_items_are_taken_over(tmp_path, capsys):
    past(tmp_path)
    told = {"backend": "attributes", "changeable": ["colour"]}
    old = generate(tmp_path / "past", **told)
    path = present(tmp_path)
    first = store.describe(tmp_path / "past")["num_items"]
    made = generate(path, scope=Scope(limit=1), **told)
    assert made is None
    assert "are taken over" in capsys.readouterr().out
    was = records_of(tmp_path / "past")
    journal = path / "counterfactuals/attributes/records-0-of-1.jsonl"
    assert journal.read_text().splitlines()[: len(was)] == was
    assert len(journal.read_text().splitlines()) == len(was) + 1
    new = generate(path, **told)
    now = records_of(path)
    assert now[: len(was)] == was
    assert len(now) == store.describe(path)["num_items"] > first
    assert new["encoding"]["items"] == len(now) > old["encoding"]["items"]
    # Others are not: they would have been written otherwise.
    other = {**told, "contrast": "random"}
    assert generate(path, set_name="other", **other)
    assert "taken over" not in capsys.readouterr().out
    generate(tmp_path / "past", set_name="third", **told)
    generate(path, set_name="third", **other)
    assert "not taken over" in capsys.readouterr().out


def records_of(path):
    text = (path / "counterfactuals/attributes/records.jsonl").read_text()
    return text.splitlines()
