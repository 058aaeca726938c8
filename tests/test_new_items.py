"""Items that were not there in training, by their content."""

import dataclasses
import json
import shutil

import dense
import jax
import numpy as np
import pytest
from conftest import ITEMS
from recommending import made_up, opened

from neggen_jax.catalog import Features
from neggen_jax.data.features import encode_new, extract
from neggen_jax.errors import InputError
from neggen_jax.recommend import cold, ridge
from neggen_jax.recommend.asked import Asked
from neggen_jax.recommend.lists import Lister
from neggen_jax.recommend.trained import with_new

WIDTHS = {"text": 12, "image": 9}
NEW = 3


@pytest.fixture
def vectors():
    """Of new items; the second has no text, the third is item 4 again."""
    rng = np.random.default_rng(5)
    out = {
        name: rng.normal(size=(NEW, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }
    out["text"][1] = 0
    known = opened("vbpr").run.catalog.features
    for name in out:
        out[name][2] = known[name].values[4]
    return out


@pytest.fixture
def file(vectors, tmp_path):
    path = tmp_path / "new.jsonl"
    lines = []
    for row in range(NEW):
        given = {n: v[row].tolist() for n, v in vectors.items() if v[row].any()}
        lines.append({"id": f"n{row}", "title": "New", "vectors": given})
    # A title alone is no text where texts cannot be encoded.
    del lines[1]["title"]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def appended(features: Features, rows: np.ndarray) -> Features:
    values = np.concatenate([features.values, rows])
    return Features(values, values.any(axis=1))


def by_content(trained, vectors, rows=None):
    return cold.by_content(trained.run, trained.params, vectors, rows)


def test_vbpr_projects_their_content(vectors):
    trained = opened("vbpr")
    found = by_content(trained, vectors)
    dim = found.shape[1] // 2
    assert not found[:, :dim].any()
    np.testing.assert_allclose(
        found[2, dim:], trained.item_vectors[4, dim:], atol=1e-5
    )
    params = jax.device_get(trained.params["encoder"]["projection"])
    sides = []
    for name in ("image", "text"):
        known = trained.run.catalog.features[name]
        there = known.values[known.present].astype(np.float64)
        centred = vectors[name] - there.mean(axis=0)
        scale = np.sqrt(np.square(there - there.mean(axis=0)).mean())
        sides.append(centred / scale * vectors[name].any(axis=1)[:, None])
    want = np.hstack(sides) @ params["kernel"] + params["bias"]
    np.testing.assert_allclose(found[:, dim:], want, atol=1e-4)


def test_freedom_is_as_if_the_graph_had_them(vectors):
    trained = opened("freedom")
    found = by_content(trained, vectors)
    ego = jax.device_get(trained.params["encoder"]["items"])[:ITEMS]
    ego = np.concatenate([ego, np.zeros((NEW, ego.shape[1]))])
    want = np.zeros_like(ego[:NEW])
    for name, weight in (("text", 0.9), ("image", 0.1)):
        for row in range(NEW):
            # One at a time: new items are nobody's neighbours yet.
            one = vectors[name][row : row + 1]
            features = appended(trained.run.catalog.features[name], one)
            near = dense.nearest_items(features, 10, "binary")
            want[row] += weight * (near[-1] @ ego[: ITEMS + 1])
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_mci_is_near_what_is_like_it(vectors):
    trained = opened("mci")
    found = by_content(trained, vectors)
    ego = jax.device_get(trained.params["encoder"]["items"])[:ITEMS]
    want = np.zeros((NEW, ego.shape[1]))
    for name, weight in (("text", 0.9), ("image", 0.1)):
        known = trained.run.catalog.features[name]
        unit = known.values / np.maximum(
            np.linalg.norm(known.values, axis=1, keepdims=True), 1e-12
        )
        cosine = np.where(known.present, unit @ unit.T, -1)
        rows = np.sort(np.maximum(cosine, 0), axis=1)[:, ::-1][:, :10].sum(
            axis=1
        )
        for row in range(NEW):
            one = vectors[name][row]
            if not one.any():
                continue
            like = np.where(known.present, unit @ one / np.linalg.norm(one), -1)
            best = np.argsort(-like)[:9]
            kept = np.maximum(like[best], 0)
            scale = np.sqrt((1 + kept.sum()) * rows[best])
            want[row] += weight * (kept / scale) @ ego[best]
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("encoder", ["freedom", "mci"])
def test_known_items_seen_as_new_are_not_near_themselves(encoder):
    trained = opened(encoder)
    catalog = trained.run.catalog
    rows = np.array([2, 5, 8, 31])
    vectors = {n: catalog.features[n].values[rows] for n in WIDTHS}
    found = by_content(trained, vectors, rows)
    ego = jax.device_get(trained.params["encoder"]["items"])
    changed = jax.tree.map(lambda x: x, trained.params)
    for place, row in enumerate(rows):
        # Its own embedding is no part of what it is taken for.
        changed["encoder"]["items"] = jax.numpy.asarray(ego).at[row].set(9.0)
        again = by_content(
            dataclasses.replace(trained, params=changed), vectors, rows
        )
        np.testing.assert_array_equal(again[place], found[place])
        assert np.isfinite(found[place]).all()
    # As a new one it would have been its own nearest.
    assert np.abs(by_content(trained, vectors) - found).max() > 1e-3


@pytest.mark.parametrize("encoder", ["freedom", "mci", "vbpr"])
def test_what_content_does_not_tell_is_a_ridge_regression(encoder, vectors):
    trained = opened(encoder)
    catalog = trained.run.catalog
    # Whom nobody has in train teaches nothing, nor does one without content.
    there = catalog.popularity() > 0
    there &= np.any([catalog.features[n].present for n in WIDTHS], axis=0)
    rows = np.flatnonzero(there)
    assert len(rows) < ITEMS
    known = {n: catalog.features[n].values[rows] for n in WIDTHS}
    as_new = by_content(trained, known, rows).astype(np.float64)
    given = np.pad(as_new, ((0, 0), (0, 1)), constant_values=1)
    penalty = ridge.STRENGTH * np.eye(given.shape[1])
    rest = np.asarray(trained.items, np.float64)[rows] - as_new
    learned = np.linalg.solve(given.T @ given + penalty, given.T @ rest)
    new = by_content(trained, vectors).astype(np.float64)
    want = new + np.pad(new, ((0, 0), (0, 1)), constant_values=1) @ learned
    found = cold.embed(trained.run, trained.params, trained.items, vectors)
    np.testing.assert_allclose(found, want, atol=1e-3)


def test_they_are_ranked_with_the_others(file):
    trained = opened("freedom")
    found = with_new(trained, file)
    assert found.num_items == ITEMS + NEW
    vectors = found.item_vectors
    np.testing.assert_array_equal(vectors[:ITEMS], trained.item_vectors)
    lister = Lister(found.run, found.users, found.items, found.num_items, k=44)
    ((lists,), own) = lister([Asked("u3", 3)]), 44 - ITEMS
    assert own == NEW
    assert {*range(ITEMS, ITEMS + NEW)} <= {*lists.items[0]}
    user = np.asarray(trained.users)[3]
    at = [*lists.items[0]].index(ITEMS + 1)
    assert lists.scores[0, at] == pytest.approx(
        user @ vectors[ITEMS + 1], abs=1e-5
    )
    assert found.item_names[ITEMS + 1] == "n1"
    assert found.item_names.row("n2") == ITEMS + 2
    assert found.titles[ITEMS:] == ["New", "", "New"]


@pytest.mark.parametrize("encoder", ["mf", "lightgcn"])
def test_refused_where_content_is_not_read(file, encoder):
    with pytest.raises(InputError, match="by their interactions alone"):
        with_new(opened(encoder), file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"title": "x"}', "no identifier"),
        ('{"id": "i3"}', "called as one of the dataset"),
        ('{"id": "a", "vectors": {"text": [1]}}', "another width"),
        ('{"id": "a", "vectors": {"text": [[1]]}}', "vector of a new item"),
        ('{"id": "a", "vectors": {"text": ["x"]}}', "vector of a new item"),
        ('{"id": "a"}', "nothing that the encoder reads"),
        ('{"id": "a", "title": "words"}', "cannot be encoded"),
        ('{"id": "a"}\n{"id": "a"}', "Two new items"),
        ("{", "not JSON"),
        ("", "no new items"),
    ],
)
def test_refuses_bad_files(tmp_path, line, message):
    path = tmp_path / "new.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        with_new(opened("vbpr"), path)


# -- encoded as the others were ----------------------------------------------

WORDS = [
    "red",
    "blue",
    "green",
    "wool",
    "silk",
    "linen",
    "coat",
    "dress",
    "shirt",
    "long",
    "short",
    "warm",
]


def texts(count, seed):
    rng = np.random.default_rng(seed)
    records = made_up(count)
    said = [" ".join(rng.choice(WORDS, 5)) for _ in range(count)]
    return dataclasses.replace(records, texts=said, titles=[""] * count)


@pytest.mark.parametrize("dim", [None, 4])
def test_texts_are_encoded_as_those_known(dim):
    records = texts(30, 0)
    known = extract(records, "text", "tfidf", dim=dim, progress=False)
    again = dataclasses.replace(
        records,
        **{
            n: getattr(records, n)[:5]
            for n in vars(records)
            if n != "image_root"
        },
    )
    made = encode_new(known, "text", records, again)
    np.testing.assert_allclose(made, known.values[:5], atol=1e-5)
    blank = dataclasses.replace(again, texts=["", *again.texts[1:]])
    made = encode_new(known, "text", records, blank)
    assert not made[0].any()
    np.testing.assert_allclose(made[1:], known.values[1:5], atol=1e-5)


def test_images_are_encoded_as_those_known(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    names = []
    for n in range(6):
        names.append(f"{n}.png")
        noise = rng.integers(255, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / names[-1])
    records = dataclasses.replace(
        made_up(6), images=names, image_root=str(tmp_path)
    )
    known = extract(records, "image", "pixels", progress=False)
    shutil.copy(tmp_path / "3.png", tmp_path / "new.png")
    new = dataclasses.replace(
        made_up(1), images=["new.png"], image_root=str(tmp_path)
    )
    made = encode_new(known, "image", records, new)
    np.testing.assert_allclose(made[0], known.values[3], atol=1e-5)


def test_refuses_an_encoder_that_gives_other_vectors():
    records = texts(30, 0)
    known = extract(records, "text", "tfidf", progress=False)
    turned = dataclasses.replace(known, values=-known.values)
    with pytest.raises(InputError, match="by another encoder"):
        encode_new(turned, "text", records, texts(2, 1))
