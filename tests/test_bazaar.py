"""The bazaar: sizes, choices, causes and content are what they claim."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neggen_jax.catalog import SPLITS
from neggen_jax.data.bazaar import choices, render
from neggen_jax.data.bazaar.make import (
    ATTRIBUTES,
    MODALITIES,
    OFFSETS,
    Bazaar,
    make,
)
from neggen_jax.data.bazaar.truth import Truth
from neggen_jax.errors import InputError

NAMES = [a.name for a in ATTRIBUTES]
CAUSAL = [n for n, a in enumerate(ATTRIBUTES) if a.causal]
IRRELEVANT = [n for n, a in enumerate(ATTRIBUTES) if not a.causal]
SMALL = Bazaar(num_users=1_000, num_items=600, features="direct")
TINY = Bazaar(
    num_users=20, num_items=20, interactions_per_user=5.0, image_size=16
)


@pytest.fixture(scope="module")
def small():
    return make(SMALL)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    config = Bazaar(
        num_users=30,
        num_items=60,
        interactions_per_user=8.0,
        image_size=24,
        missing=0.2,
    )
    return make(config, tmp_path_factory.mktemp("pictures"))


def columns(catalog):
    """Users, items and split numbers of all interactions."""
    parts = [catalog.splits[split] for split in SPLITS]
    users = np.concatenate([part.users for part in parts])
    items = np.concatenate([part.items for part in parts])
    return users, items, np.repeat(range(3), [len(part) for part in parts])


def one_hot(item_values):
    table = np.zeros((len(item_values), OFFSETS[-1]), np.float32)
    np.put_along_axis(table, OFFSETS[:-1] + item_values, 1, axis=1)
    return table


# Sizes and splits.


@settings(max_examples=25, deadline=None)
@given(
    users=st.integers(1, 60),
    items=st.integers(20, 90),
    fullness=st.floats(0, 1),
    train=st.none() | st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_sizes_are_exact(users, items, fullness, train, seed):
    mean = 5 + fullness * (items / 4 - 5)
    total = max(5 * users, int(users * mean))
    if train is not None:
        train = users + round(train * (total - 3 * users))
    config = Bazaar(
        num_users=users,
        num_items=items,
        num_interactions=total,
        num_train=train,
        seed=seed,
        features="direct",
    )
    catalog, truth = make(config)  # validated: no pair twice, no cold user
    assert sum(map(len, catalog.splits.values())) == total == config.total
    if train is not None:
        assert len(catalog.train) == train
    for part in catalog.splits.values():
        assert np.bincount(part.users, minlength=users).min() >= 1
        assert (np.diff(part.users) >= 0).all()
    assert np.bincount(columns(catalog)[0]).min() >= choices.MIN_HISTORY
    assert truth.causes.shape == (users, len(ATTRIBUTES))
    assert truth.item_values.shape == (items, len(ATTRIBUTES))


def test_baby_has_the_size_of_amazon_baby():
    catalog, _ = make(Bazaar.baby())
    assert (catalog.num_users, catalog.num_items) == (19_445, 7_050)
    assert len(catalog.train) == 118_551
    assert sum(map(len, catalog.splits.values())) == 160_792


def test_direct_vectors_have_the_width_that_is_asked_for():
    config = dict(num_users=50, num_items=100, features="direct")
    catalog, _ = make(Bazaar(**config, text_width=7, image_width=300))
    assert catalog.features["text"].dim == 7
    assert catalog.features["image"].dim == 300
    # And as they were, where nothing is asked for.
    again, _ = make(Bazaar(**config, image_width=300))
    np.testing.assert_array_equal(
        again.features["text"].values,
        make(Bazaar(**config))[0].features["text"].values,
    )


def test_about_a_tenth_is_held_out_for_each_purpose(small):
    users, _, part = columns(small[0])
    length = np.bincount(users)
    for number in (1, 2):
        held = np.bincount(users[part == number])
        assert (np.abs(held - length / 10) <= 1).all()


def test_histories_and_popularity_are_long_tailed(small):
    catalog, _ = small
    length = np.sort(np.bincount(columns(catalog)[0]))[::-1]
    assert length[:100].sum() > 2 * length.sum() * 100 / len(length)
    popular = np.sort(catalog.popularity())[::-1]
    assert popular[:60].sum() > 2 * popular.sum() * 60 / len(popular)


def test_same_seed_same_bazaar(tmp_path):
    def files(root):
        paths = sorted(p for p in root.rglob("*") if p.is_file())
        return {p.relative_to(root): p.read_bytes() for p in paths}

    config = TINY
    (first, truth), (second, again) = (
        make(config, tmp_path / name) for name in ("first", "second")
    )
    other, _ = make(dataclasses.replace(config, seed=1), tmp_path / "other")
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert first.records.texts == second.records.texts != other.records.texts
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert files(tmp_path / "first") != files(tmp_path / "other")
    np.testing.assert_array_equal(truth.preferences, again.preferences)


def test_more_users_leave_the_items_alone(small):
    catalog, truth = small
    more = dataclasses.replace(SMALL, num_users=1_100, interactions_per_user=9)
    other, other_truth = make(more)
    np.testing.assert_array_equal(truth.item_values, other_truth.item_values)
    for modality in ("text", "image"):
        np.testing.assert_array_equal(
            catalog.features[modality].values, other.features[modality].values
        )


# Choices, against what they are meant to be.


def first_choices(people, kinds, copies):
    """How often each kind of item is taken first, found and by softmax."""
    rng = np.random.default_rng(0)
    appeal, gain = rng.normal(size=(2, kinds))
    kind = np.repeat(np.arange(kinds), copies)
    chosen = choices.choose(
        rng,
        appeal[kind],
        kind[:, None],
        np.tile(gain, (people, 1)),
        np.ones(people, np.int64),
    )
    odds = np.exp(appeal + gain)
    found = np.bincount(kind[chosen], minlength=kinds)
    return found, people * odds / odds.sum()


def test_the_first_choice_has_the_odds_of_its_utility():
    found, expected = first_choices(people=20_000, kinds=40, copies=2)
    chi_square = ((found - expected) ** 2 / expected).sum()
    # 39 degrees of freedom: above 80 by chance once in ten thousand.
    assert chi_square < 80


def test_so_it_has_in_a_large_bazaar(monkeypatch):
    """But for those who see no item of a kind that they would have taken."""
    monkeypatch.setattr(choices, "EXACT_ITEMS", 0)
    found, expected = first_choices(people=20_000, kinds=10, copies=3_000)
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_a_shelf_too_short_is_filled_again(monkeypatch):
    """Nearly all see the same few items, yet nobody takes one twice."""
    monkeypatch.setattr(choices, "EXACT_ITEMS", 0)
    monkeypatch.setattr(choices, "SHELF", 4)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, 300)
    appeal = -3 * np.log(np.arange(1.0, 1_001.0))
    chosen = choices.choose(
        rng, appeal, np.zeros((1_000, 1), int), np.zeros((300, 1)), lengths
    )
    pairs = np.repeat(np.arange(300), lengths) * 1_000 + chosen
    assert len(np.unique(pairs)) == lengths.sum()
    assert ((chosen >= 0) & (chosen < 1_000)).all()


def test_the_shelf_of_a_large_bazaar_keeps_the_causes(monkeypatch):
    monkeypatch.setattr(choices, "EXACT_ITEMS", 0)
    monkeypatch.setattr(choices, "SHELF", 128)
    catalog, truth = make(SMALL)
    users, items, _ = columns(catalog)
    utility = truth.utilities(np.arange(catalog.num_users)) - truth.appeal
    assert utility[users, items].mean() > utility.mean() + 2


def test_the_split_does_not_tell_what_is_liked_more(small):
    catalog, truth = small
    users, items, part = columns(catalog)
    utility = truth.utilities(np.arange(catalog.num_users))[users, items]
    train, held = utility[part == 0], utility[part > 0]
    error = np.hypot(
        train.std() / len(train) ** 0.5, held.std() / len(held) ** 0.5
    )
    assert abs(train.mean() - held.mean()) < 4 * error


def recall_at_20(catalog, scores):
    users, items, part = columns(catalog)
    scores = scores.astype(np.float64)
    scores[users[part < 2], items[part < 2]] = -np.inf
    top = np.argpartition(-scores, 20, axis=1)[:, :20]
    hit = np.zeros(scores.shape, bool)
    np.put_along_axis(hit, top, True, axis=1)
    test = catalog.splits["test"]
    found = np.bincount(test.users, hit[test.users, test.items])
    return (found / np.bincount(test.users)).mean()


def test_baselines_are_as_far_apart_as_models_must_be(small):
    catalog, truth = small
    known, everybody = one_hot(truth.item_values), np.arange(1_000)
    users, items, part = columns(catalog)
    profile = np.zeros((1_000, OFFSETS[-1]), np.float32)
    np.add.at(profile, users[part < 2], known[items[part < 2]])
    shape = (1_000, 600)
    rng = np.random.default_rng(0)
    random = recall_at_20(catalog, rng.random(shape))
    popularity = recall_at_20(
        catalog, np.broadcast_to(catalog.popularity(), shape)
    )
    content = recall_at_20(catalog, profile @ known.T)
    oracle = recall_at_20(catalog, truth.utilities(everybody))
    assert 20 / 600 * 0.7 < random < 20 / 600 * 1.4
    assert popularity > 2 * random
    assert content > 2 * popularity
    assert oracle > 1.3 * content
    assert oracle > 0.5


# Causes.


def explained(values, target):
    """Share of the variance of `target` between groups of equal value."""
    count = np.bincount(values)
    means = np.bincount(values, target) / count
    return (count * (means - target.mean()) ** 2).sum() / (
        len(target) * target.var()
    )


def test_only_irrelevant_attributes_go_with_popularity():
    catalog, truth = make(
        Bazaar(num_users=2_000, num_items=1_500, features="direct")
    )
    popularity = np.log1p(catalog.popularity())
    shares = {
        name: (
            explained(truth.item_values[:, n], truth.appeal),
            explained(truth.item_values[:, n], popularity),
        )
        for n, name in enumerate(NAMES)
    }
    for n in IRRELEVANT:
        assert min(shares[NAMES[n]]) > 0.1, shares
    for n in CAUSAL:
        # (values - 1) / items by chance; being liked adds to what is bought.
        assert shares[NAMES[n]][0] < 0.02, shares
        assert shares[NAMES[n]][1] < 0.05, shares


def test_without_confounding_nothing_goes_with_popularity():
    config = dataclasses.replace(SMALL, num_items=2_000, confounding=0.0)
    _, truth = make(config)
    for values in truth.item_values.T:
        assert explained(values, truth.appeal) < 0.02


def concentration(users, values, size):
    """How alike one user's choices are in an attribute, mean over users."""
    count = np.bincount(users * size + values).astype(float)
    count.resize((users.max() + 1, size))
    share = count / count.sum(1, keepdims=True)
    return (share**2).sum(1).mean()


def test_given_popularity_choices_depend_on_causes_alone(small):
    """A permutation test: values change places among equally popular items."""
    catalog, truth = small
    users, items, _ = columns(catalog)
    users = users.astype(np.int64)
    rng = np.random.default_rng(0)
    ranked = np.argsort(truth.appeal).reshape(-1, 10)
    scores = {}
    for n, attribute in enumerate(ATTRIBUTES):
        values, size = truth.item_values[:, n], len(attribute.values)
        chance = []
        for _ in range(30):
            swapped = np.empty_like(values)
            swapped[ranked] = values[rng.permuted(ranked, axis=1)]
            chance.append(concentration(users, swapped[items], size))
        found = concentration(users, values[items], size)
        scores[attribute.name] = (found - np.mean(chance)) / np.std(chance)
    for n in IRRELEVANT:
        assert abs(scores[NAMES[n]]) < 4, scores
    for n in CAUSAL:
        assert scores[NAMES[n]] > 10, scores


def test_each_user_has_one_to_three_causes(small):
    _, truth = small
    count = truth.causes.sum(1)
    assert set(count) == {1, 2, 3}
    assert truth.causal.tolist() == truth.causes.any(0).tolist()
    groups = np.split(truth.preferences, OFFSETS[1:-1], axis=1)
    for n, liked in enumerate(groups):
        gains = liked[liked > 0]
        assert ((liked > 0).any(1) == truth.causes[:, n]).all()
        assert ((liked > 0).sum(1) <= 2).all()
        if n in CAUSAL:
            assert gains.mean() == pytest.approx(SMALL.cause_strength, rel=0.1)


# Truth.


def test_utilities_add_up(small):
    _, truth = small
    for user, row in zip(
        [3, 7], truth.utilities(np.array([3, 7])), strict=True
    ):
        for item in (0, 11, 599):
            expected = float(truth.appeal[item])
            for n, value in enumerate(truth.item_values[item]):
                place = sum(map(len, truth.values[:n])) + value
                expected += float(truth.preferences[user, place])
            assert row[item] == pytest.approx(expected, abs=1e-5)


def test_truth_survives_storage(small, tmp_path):
    _, truth = small
    truth.save(tmp_path / "truth.npz")
    again = Truth.load(tmp_path / "truth.npz")
    for field in dataclasses.fields(Truth):
        before = getattr(truth, field.name)
        after = getattr(again, field.name)
        assert type(before) is type(after)
        assert np.asarray(before == after).all()
    assert again.values == tuple(a.values for a in ATTRIBUTES)


@pytest.mark.parametrize("content", [None, b"", b"not an archive", "cut"])
def test_unreadable_truth_is_told(small, tmp_path, content):
    path = tmp_path / "truth.npz"
    if content == "cut":
        small[1].save(path)
        content = path.read_bytes()[:5_000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="truth"):
        Truth.load(path)


# Content.


def decodable(features, values):
    """Accuracy of a linear classifier fitted on one half of the items."""
    half = len(values) // 2
    target = np.eye(values.max() + 1)[values]
    centred = np.c_[features, np.ones(len(features))]
    weights = np.linalg.lstsq(centred[:half], target[:half], rcond=None)[0]
    return ((centred[half:] @ weights).argmax(1) == values[half:]).mean()


@pytest.mark.parametrize("modality", ["text", "image"])
def test_vectors_show_what_their_modality_shows(modality):
    config = dataclasses.replace(SMALL, num_items=3_000, confounding=0.0)
    catalog, truth = make(config)
    features = catalog.features[modality]
    assert features.manifest["encoder"] == "bazaar-direct"
    for n, attribute in enumerate(ATTRIBUTES):
        accuracy = decodable(features.values, truth.item_values[:, n])
        if modality in attribute.seen_in:
            assert accuracy > 0.9, attribute
        else:
            assert accuracy < 1 / len(attribute.values) + 0.05, attribute


def test_missing_content_is_marked(rendered):
    catalog, _ = rendered
    records = catalog.records
    assert sum(text == "" for text in records.texts) == 12
    assert sum(image == "" for image in records.images) == 12
    both = 0
    for title, text, image, known in zip(
        records.titles,
        records.texts,
        records.images,
        records.attributes,
        strict=True,
    ):
        assert bool(title) == bool(text)
        shown = {"text"} & {"text" * bool(text)}
        shown |= {"image"} & {"image" * bool(image)}
        visible = {a.name for a in ATTRIBUTES if shown & set(a.seen_in)}
        assert set(known) == visible
        both += len(shown) == 2
    assert both > 30
    direct, _ = make(dataclasses.replace(SMALL, missing=0.25))
    for features in direct.features.values():
        assert (~features.present).sum() == 150


def test_records_tell_the_truth(rendered):
    catalog, truth = rendered
    for known, row in zip(
        catalog.records.attributes, truth.item_values, strict=True
    ):
        for name, value in known.items():
            n = NAMES.index(name)
            assert value == truth.values[n][row[n]]


def test_texts_tell_what_texts_tell_and_nothing_else(rendered):
    catalog, truth = rendered
    vocabulary = {v.lower() for values in truth.values for v in values}
    texts = catalog.records.texts
    for text, row in zip(texts, truth.item_values, strict=True):
        if text:
            words = {w.strip(".,:").lower() for w in text.split()}
            told = {
                a.values[value].lower()
                for a, value in zip(ATTRIBUTES, row, strict=True)
                if "text" in a.seen_in
            }
            assert words & vocabulary == told
            assert "{" not in text
    assert len(set(texts)) > 40


def test_pictures_are_pictures(rendered):
    catalog, _ = rendered
    records = catalog.records
    files = [f for f in records.images if f]
    for file in files:
        with Image.open(f"{records.image_root}/{file}") as picture:
            picture.load()
            assert picture.size == (24, 24)
            assert picture.mode == "RGB"
            assert np.asarray(picture).std() > 10
    assert len(files) == len(set(files)) == 48


def known_item(**changes):
    return {a.name: a.values[0] for a in ATTRIBUTES} | changes


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=NAMES)
def test_content_depends_only_on_what_it_shows(attribute):
    """Same pose, light and words: only the attribute's value changes."""
    pictures, texts = [], []
    for value in attribute.values:
        known = known_item(**{attribute.name: value})
        rng = np.random.default_rng(0)
        pictures.append(render.paint(known, 32, 0.3, rng).astype(float))
        texts.append(render.label(known, np.random.default_rng(0))[1])
    for i in range(1, len(texts)):
        for j in range(i):
            difference = np.abs(pictures[i] - pictures[j]).mean()
            if "image" in attribute.seen_in:
                assert difference > 2
            else:
                assert difference == 0
            assert (texts[i] != texts[j]) == ("text" in attribute.seen_in)


def test_no_two_pictures_of_the_same_item_are_alike():
    rng = np.random.default_rng(0)
    pictures = [render.paint(known_item(), 24, 0, rng) for _ in range(9)]
    assert len({picture.tobytes() for picture in pictures}) == 9


def test_every_sentence_can_come_up():
    rng = np.random.default_rng(0)
    seen = collections.Counter()
    for _ in range(400):
        seen.update(render.label(known_item(), rng)[1].split(". "))
    assert len(seen) >= 5 * 5 + 8


# What cannot be had.


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"num_users": 0}, "num_users=0"),
        ({"num_items": 19}, "num_items=19"),
        ({"num_items": 2e3}, "num_items=2000.0"),
        ({"interactions_per_user": 4.9}, "interactions_per_user=4.9"),
        ({"interactions_per_user": 501.0}, "interactions_per_user=501"),
        ({"num_interactions": 14_999}, "num_interactions=14999"),
        ({"num_train": 42_001}, "num_train=42001"),
        ({"num_train": 2_999}, "num_train=2999"),
        ({"seed": -1}, "seed=-1"),
        ({"image_size": 8}, "image_size=8"),
        ({"popularity_bias": -0.1}, "popularity_bias=-0.1"),
        ({"cause_strength": float("nan")}, "cause_strength=nan"),
        ({"noise": float("inf")}, "noise=inf"),
        ({"missing": 1.0}, "missing=1.0"),
        ({"features": "rendered"}, "did you mean 'render'"),
    ],
)
def test_impossible_bazaars_are_refused(changes, found):
    with pytest.raises(InputError, match=found):
        Bazaar(**changes)


def test_pictures_need_a_place(tmp_path):
    with pytest.raises(InputError, match="directory to put them"):
        make(TINY)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        make(TINY, tmp_path / "file")


def test_vectors_need_no_place():
    catalog, _ = make(SMALL)
    assert catalog.records is None
    assert set(catalog.features) == set(MODALITIES)
