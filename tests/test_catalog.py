"""What a catalogue must be, and how it says that it is not."""

import copy
import dataclasses

import numpy as np
import pytest
from conftest import ITEMS, USERS, make_catalog

from neggen_jax.catalog import SPLITS, Catalog, Features, ItemRecords
from neggen_jax.errors import InputError


@pytest.fixture
def draft() -> Catalog:
    """A valid catalogue whose arrays a test may spoil."""
    catalog = copy.deepcopy(make_catalog())
    records = ItemRecords(
        ids=[f"item {i}" for i in range(ITEMS)],
        titles=[""] * ITEMS,
        texts=[""] * ITEMS,
        attributes=[{} for _ in range(ITEMS)],
        images=[""] * ITEMS,
    )
    return dataclasses.replace(
        catalog,
        records=records,
        splits=dict(catalog.splits),
        features=dict(catalog.features),
    )


def spoil(part, **columns):
    return dataclasses.replace(part, **columns)


def refused(catalog, match) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        catalog.validate()
    return caught.value


def test_a_valid_one_is_itself(draft):
    assert draft.validate() is draft
    bare = dataclasses.replace(draft, features={}, records=None)
    assert bare.validate() is bare


@pytest.mark.parametrize("changes", [{"num_users": 0}, {"num_items": 1}])
def test_too_small(draft, changes):
    error = refused(dataclasses.replace(draft, **changes), "too small to rank")
    assert "at least 1 user and 2 items" in error.expected


@pytest.mark.parametrize("split", SPLITS)
def test_empty_split(draft, split):
    none = np.zeros(0, np.int32)
    draft.splits[split] = spoil(draft.splits[split], users=none, items=none)
    error = refused(draft, f"split '{split}' is empty")
    assert error.found[split] == 0
    del draft.splits[split]
    refused(draft, f"split '{split}' is empty")


@pytest.mark.parametrize("column", ["items", "timestamps"])
def test_columns_of_different_length(draft, column):
    part = draft.splits["valid"]
    short = np.zeros(len(part) - 1, np.int64)
    draft.splits["valid"] = spoil(part, **{column: short})
    error = refused(draft, "differ in length")
    assert error.where == column
    assert error.found == (len(part) - 1,)


@pytest.mark.parametrize(
    ("column", "bad"),
    [("users", -1), ("users", USERS), ("items", -7), ("items", ITEMS)],
)
@pytest.mark.parametrize("split", SPLITS)
def test_unknown_id(draft, split, column, bad):
    values = getattr(draft.splits[split], column).copy()
    values[3] = bad
    draft.splits[split] = spoil(draft.splits[split], **{column: values})
    error = refused(draft, f"column '{column}' of '{split}'")
    assert error.found == bad
    assert error.where == "interaction 3 of the split"


@pytest.mark.parametrize("other", SPLITS)
def test_duplicate_within_or_across_splits(draft, other):
    train, part = draft.train, draft.splits[other]
    user, item = int(train.users[5]), int(train.items[5])
    draft.splits[other] = spoil(
        part,
        users=np.append(part.users, np.int32(user)),
        items=np.append(part.items, np.int32(item)),
    )
    error = refused(draft, "twice")
    assert f"user {user}, item {item}" in error.where
    assert f"'train' and '{other}'" in error.where
    assert error.found == "1 repeated pairs"
    assert "--duplicates=first" in error.fix


@pytest.mark.parametrize("split", ["valid", "test"])
def test_user_without_train_items(draft, split):
    user = int(draft.splits[split].users[0])
    for name in SPLITS:
        keep = draft.splits[name].users != user
        if name == split:
            continue
        part = draft.splits[name]
        draft.splits[name] = spoil(
            part, users=part.users[keep], items=part.items[keep]
        )
    error = refused(draft, f"users of '{split}' have no train interaction")
    assert str(user) in error.where
    assert "--cold_users=drop" in error.fix


def test_user_who_has_everything(draft):
    user = 9
    for name in SPLITS:
        part = draft.splits[name]
        keep = part.users != user
        draft.splits[name] = spoil(
            part, users=part.users[keep], items=part.items[keep]
        )
    part = draft.train
    draft.splits["train"] = spoil(
        part,
        users=np.append(part.users, np.full(ITEMS, user, np.int32)),
        items=np.append(part.items, np.arange(ITEMS, dtype=np.int32)),
    )
    error = refused(draft, "no negative exists")
    assert error.where == f"user {user}"


def with_features(draft, values=None, present=None):
    matrix = draft.features["text"]
    draft.features["text"] = Features(
        matrix.values.copy() if values is None else values,
        matrix.present.copy() if present is None else present,
    )
    return draft


@pytest.mark.parametrize("shape", [(ITEMS - 1, 12), (ITEMS + 1, 12), (ITEMS,)])
def test_features_of_the_wrong_length(draft, shape):
    values = np.ones(shape, np.float32)
    error = refused(with_features(draft, values), "one row per item")
    assert error.found == f"shape {shape}"
    assert "'text'" in error.where


def test_mask_of_the_wrong_length(draft):
    present = np.ones(ITEMS - 1, bool)
    refused(with_features(draft, present=present), "mask of present items")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(draft, value):
    values = draft.features["text"].values.copy()
    values[11, 2] = values[30, 0] = value
    error = refused(with_features(draft, values), "2 feature rows hold NaN")
    assert "items [11, 30]" in error.where


def test_zero_by_accident(draft):
    values = draft.features["text"].values.copy()
    values[20] = 0
    error = refused(with_features(draft, values), "contradict the mask")
    assert "item 20" in error.where
    assert error.found == "present=True, zero=True"


def test_absent_but_not_zero(draft):
    present = draft.features["text"].present.copy()
    present[21] = False
    error = refused(with_features(draft, present=present), "contradict")
    assert error.found == "present=False, zero=False"


def test_a_modality_that_nothing_has(draft):
    values = np.zeros((ITEMS, 3), np.float32)
    spoiled = with_features(draft, values, np.zeros(ITEMS, bool))
    refused(spoiled, "No item has this modality")


@pytest.mark.parametrize(
    "name", ["ids", "titles", "texts", "attributes", "images"]
)
def test_records_that_do_not_cover_the_items(draft, name):
    getattr(draft.records, name).pop()
    error = refused(draft, "do not cover the items")
    assert error.where == f"records.{name}"
    assert error.found == f"{ITEMS - 1} entries"


def test_two_items_of_one_name(draft):
    draft.records.ids[4] = draft.records.ids[7]
    assert refused(draft, "same identifier").found == "'item 7'"


def test_popularity_counts_train_alone(draft):
    counts = draft.popularity()
    assert counts.shape == (ITEMS,)
    assert counts.sum() == len(draft.train)
    for item in (0, 7, 40):
        assert counts[item] == (draft.train.items == item).sum()


def changed(catalog, what):
    """The catalogue with one thing changed."""
    if what == "order":
        part = catalog.train
        flip = spoil(part, users=part.users[::-1], items=part.items[::-1])
        return {"splits": {**catalog.splits, "train": flip}}
    if what == "timestamps":
        part = catalog.splits["test"]
        dated = spoil(part, timestamps=np.arange(len(part)))
        return {"splits": {**catalog.splits, "test": dated}}
    if what == "split":
        valid, test = catalog.splits["valid"], catalog.splits["test"]
        return {"splits": {**catalog.splits, "valid": test, "test": valid}}
    if what == "num_users":
        return {"num_users": USERS + 1}
    matrix = catalog.features["text"]
    if what == "modality":
        features = {"words": matrix, "image": catalog.features["image"]}
        return {"features": features}
    values = matrix.values.copy()
    values[0, 0] = np.nextafter(values[0, 0], np.float32(9))
    return {
        "features": {
            **catalog.features,
            "text": Features(values, matrix.present),
        }
    }


@pytest.mark.parametrize(
    "what",
    ["order", "timestamps", "split", "num_users", "modality", "one last bit"],
)
def test_the_fingerprint_sees_all_that_training_sees(catalog, what):
    other = dataclasses.replace(catalog, **changed(catalog, what))
    assert other.fingerprint != catalog.fingerprint


def test_the_fingerprint_sees_nothing_else(catalog, draft):
    assert draft.fingerprint == catalog.fingerprint
    renamed = dataclasses.replace(draft, name="x", user_ids=["u"] * USERS)
    assert renamed.fingerprint == catalog.fingerprint
    wide = {
        name: spoil(p, users=p.users.astype(np.int64))
        for name, p in draft.splits.items()
    }
    assert (
        dataclasses.replace(draft, splits=wide).fingerprint
        == catalog.fingerprint
    )
