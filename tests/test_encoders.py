"""The encoders without weights, against references and by neighbours."""

import math
import re
import shutil
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from contents import (
    TEXTS,
    check_invariants,
    make_records,
    paint,
    paint_shop,
    quick,
)

from neggen_jax.data import encoders
from neggen_jax.errors import InputError


@pytest.fixture
def shop(tmp_path):
    return paint_shop(tmp_path)


# ---- tfidf


def test_tfidf_marks_items_without_words_absent():
    features = quick(make_records(TEXTS), "text", "tfidf")
    check_invariants(features, len(TEXTS))
    absent = [i for i, text in enumerate(TEXTS) if text in ("", "!!!")]
    assert np.flatnonzero(~features.present).tolist() == absent
    again = quick(make_records(TEXTS), "text", "tfidf")
    assert (again.values == features.values).all()
    assert again.manifest == features.manifest


def reference_cosines(texts):
    """TF-IDF and damped SVD in float64 by NumPy alone."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    words = sorted(set().union(*counts))
    n = len(texts)
    matrix = np.zeros((n, len(words)))
    for row, count in enumerate(counts):
        for word, times in count.items():
            found_in = sum(word in other for other in counts)
            idf = math.log((1 + n) / (1 + found_in)) + 1
            matrix[row, words.index(word)] = (1 + math.log(times)) * idf
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    values = u * np.sqrt(s)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values @ values.T


def test_tfidf_agrees_with_a_float64_reference():
    texts = [text for text in TEXTS if text not in ("", "!!!")]
    values = quick(make_records(texts), "text", "tfidf").values
    # Rotations and signs of the axes are free; cosines are not.
    np.testing.assert_allclose(
        values @ values.T, reference_cosines(texts), atol=2e-5
    )


def test_tfidf_in_blocks_is_the_same_and_a_sample_is_enough(monkeypatch):
    whole = quick(make_records(TEXTS * 4), "text", "tfidf")
    monkeypatch.setattr(encoders.Tfidf, "block", 3)
    blocks = quick(make_records(TEXTS * 4), "text", "tfidf")
    np.testing.assert_allclose(blocks.values, whole.values, atol=1e-6)
    monkeypatch.setattr(encoders.Tfidf, "sample", 20)
    sampled = quick(make_records(TEXTS * 4), "text", "tfidf")
    check_invariants(sampled, len(TEXTS) * 4)
    same = sampled.values.reshape(4, len(TEXTS), -1)
    np.testing.assert_allclose(same[1:], same[:1].repeat(3, 0), atol=1e-6)


def test_tfidf_encodes_other_texts_into_the_same_space():
    texts = [text for text in TEXTS if text]
    coder = encoders.Tfidf()
    values = coder.fit_transform(texts)
    other = coder.transform([texts[2], "zzz unheard of words zzz", texts[0]])
    np.testing.assert_allclose(other[[0, 2]], values[[2, 0]], atol=1e-6)
    assert (other[1, :] == 0).sum() == 0  # "of" is known
    assert (coder.transform(["zzz"]) == 0).all()


def test_dim_is_what_was_asked_for_or_an_error():
    records = make_records(TEXTS)
    assert quick(records, "text", "tfidf", dim=3).dim == 3
    assert quick(records, "text", "tfidf").dim == 6  # texts that have words
    with pytest.raises(InputError, match="dim <= 6"):
        quick(records, "text", "tfidf", dim=7)


@hypothesis.given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
@hypothesis.settings(max_examples=50, deadline=None)
def test_any_texts_give_sound_features_or_one_error(texts):
    try:
        features = quick(make_records(texts), "text", "tfidf")
    except InputError:
        assert not any(re.search(r"\w", text) for text in texts)
    else:
        check_invariants(features, len(texts))


# ---- pixels


def test_pixels_tell_colours_and_patterns_apart(shop):
    records, kinds = shop
    features = quick(records, "image", "pixels")
    check_invariants(features, len(kinds))
    cosines = features.values @ features.values.T
    np.fill_diagonal(cosines, -1)
    nearest = cosines.argmax(1)
    assert [kinds[i] for i in nearest] == kinds


def test_pixels_depend_on_pictures_not_on_places(shop, tmp_path):
    records, _ = shop
    features = quick(records, "image", "pixels")
    copy = tmp_path / "copy"
    copy.mkdir()
    renamed = []
    for name in records.images:
        renamed.append(f"copy-of-{name}")
        shutil.copy(tmp_path / name, copy / renamed[-1])
    moved = make_records(images=renamed, root=copy)
    again = quick(moved, "image", "pixels")
    assert again.manifest == features.manifest
    assert (again.values == features.values).all()
    paint(copy / renamed[0], "green", False)
    other = quick(moved, "image", "pixels").manifest
    assert other["source"] != features.manifest["source"]


def test_pixels_learn_from_a_sample_in_any_order(shop, monkeypatch):
    records, kinds = shop
    monkeypatch.setattr(encoders.Pixels, "sample", 9)
    monkeypatch.setattr(encoders.Pixels, "block", 2)
    values = quick(records, "image", "pixels").values
    coder = encoders.Pixels()
    paths = [f"{records.image_root}/{name}" for name in records.images]
    rows = coder.fit_transform(paths)
    np.testing.assert_allclose(coder.transform(paths), rows, atol=1e-5)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, values, atol=1e-5)
    cosines = values @ values.T
    np.fill_diagonal(cosines, -1)
    assert [kinds[i] for i in cosines.argmax(1)] == kinds


def test_items_without_an_image_are_absent(shop):
    records, kinds = shop
    records.images[3] = ""
    features = quick(records, "image", "pixels")
    check_invariants(features, len(kinds))
    assert np.flatnonzero(~features.present).tolist() == [3]


def test_images_that_are_all_alike_are_refused(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        paint(tmp_path / name, "red", True)
    records = make_records(images=["a.png", "b.png", "c.png"], root=tmp_path)
    with pytest.raises(InputError, match="Nothing tells the items apart"):
        quick(records, "image", "pixels")
