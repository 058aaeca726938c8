"""Measures of generated negatives against float64 ones, pair by pair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_mesh
from hypothesis import assume, given
from hypothesis import strategies as st

from neggen_jax.adjacency import Adjacency
from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives import hardness
from neggen_jax.negatives.catalogue import uniform
from neggen_jax.ops.positives import make_positives

DIM, ITEMS = 4, 120
# Train positives of each user: one, as many as are compared, and more.
DEGREES = (1, 5, 31, 32, 33, 100)
LEVELS = {"1-easy": [0, 1, 2], "2-hard": [3, 4], "3-one": [5]}
PAIRS, COUNT = 12, 6
MEASURES = ("score", "hardness", "distance", "false_negatives", "diversity")
KEY = jax.random.key(3)
# Float32 rounds by 6e-8; some ten terms of sizes up to ten, and a few steps.
ROUNDING = 1e-5


@functools.cache
def interactions():
    """User -> sorted train positives."""
    rng = np.random.default_rng(0)
    return [
        np.sort(rng.choice(ITEMS, degree, replace=False)) for degree in DEGREES
    ]


@functools.cache
def inputs():
    owned = interactions()
    users = np.repeat(np.arange(len(owned)), DEGREES)
    positives = make_positives(
        Adjacency.make(users, np.concatenate(owned), len(owned)),
        ITEMS,
        on_mesh(1, 1),
    )
    # Nothing else is read.
    return Inputs(positives, jnp.ones(ITEMS), None, {}, {}, None)


@functools.cache
def compiled():
    @jax.jit
    def measure(encoded, pairs, vectors, weights):
        drawn = uniform(KEY, inputs().positives, pairs["users"])
        return hardness.measure(
            KEY, encoded, inputs(), pairs, vectors, weights, LEVELS
        ), drawn

    return measure


def measured(tables, pairs, vectors, weights):
    """What is measured, and the uniform negatives that it compares with."""
    users, items = (jnp.asarray(t, jnp.float32) for t in tables)
    return jax.device_get(
        compiled()(
            Encoded(users, items, {}),
            pairs,
            jnp.asarray(vectors, jnp.float32),
            jnp.asarray(weights, jnp.float32),
        )
    )


def cosine_distance(x, y):
    return 1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def compared(user, item):
    """Of 32 train positives or fewer, all; of more, 32 evenly; and the own."""
    owned = interactions()[user]
    if len(owned) > 32:
        owned = owned[[n * len(owned) // 32 for n in range(32)]]
    return {*owned, item}


def mean(values, weights):
    total = sum(weights)
    if not total:
        return np.nan
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total


def reference(tables, pairs, vectors, weights, drawn):
    """Everything by the docstring of `measure`, in float64."""
    users, items = (np.asarray(t, np.float64) for t in tables)
    rows = list(zip(pairs["users"], pairs["items"], strict=True))
    positive = np.mean([users[u] @ items[i] for u, i in rows])
    sampled = np.mean(
        [
            users[u] @ items[j]
            for u, j in zip(pairs["users"], drawn, strict=True)
        ]
    )
    out = {"score/positive": positive, "score/uniform": sampled}
    for name, places in LEVELS.items():
        scores, near, weight = [], [], []
        for row, (user, item) in enumerate(rows):
            for place in places:
                vector = vectors[row, place].astype(np.float64)
                scores.append(users[user] @ vector)
                near.append(
                    min(
                        cosine_distance(vector, items[other])
                        for other in compared(user, item)
                    )
                )
                weight.append(weights[row, place])
        out[f"score/{name}"] = mean(scores, weight)
        out[f"hardness/{name}"] = (mean(scores, weight) - sampled) / (
            positive - sampled
        )
        out[f"distance/{name}"] = mean(near, weight)
        out[f"false_negatives/{name}"] = mean(np.less(near, 0.1), weight)
        if len(places) > 1:
            apart = [
                np.mean(
                    [
                        cosine_distance(vectors[row, a], vectors[row, b])
                        for a in places
                        for b in places
                        if a < b
                    ]
                )
                for row in range(len(rows))
            ]
            all_of_it = weights[:, places].min(axis=1)
            out[f"diversity/{name}"] = mean(apart, all_of_it)
        # A share is told apart where no distance is near the margin.
        assume(np.abs(np.asarray(near) - hardness.MARGIN).min() > 1e-4)
    return out


def example(seed, near=1.0):
    """Tables, pairs of train positives, and vectors near a positive."""
    rng = np.random.default_rng(seed)
    tables = (
        rng.normal(size=(len(DEGREES), DIM)).astype(np.float32),
        rng.normal(size=(ITEMS, DIM)).astype(np.float32),
    )
    users = np.arange(PAIRS, dtype=np.int32) % len(DEGREES)
    owned = interactions()
    items = np.array([rng.choice(owned[u]) for u in users], np.int32)
    others = np.array([rng.choice(owned[u], COUNT) for u in users])
    noise = rng.normal(size=(PAIRS, COUNT, DIM)) * near
    vectors = (tables[1][others] + noise).astype(np.float32)
    return tables, {"users": users, "items": items}, vectors


@given(
    seed=st.integers(0, 10**6),
    near=st.sampled_from((0.0, 0.1, 0.5, 3.0)),
    share=st.sampled_from((0.1, 0.5, 1.0)),
    absent=st.sets(st.sampled_from(tuple(LEVELS))),
)
def test_measures_are_the_references(seed, near, share, absent):
    tables, pairs, vectors = example(seed, near)
    rng = np.random.default_rng(seed)
    weights = (rng.random((PAIRS, COUNT)) < share).astype(np.float32)
    for name in absent:
        weights[:, LEVELS[name]] = 0
    got, drawn = measured(tables, pairs, vectors, weights)
    want = reference(tables, pairs, vectors, weights, drawn)
    assert got.keys() == want.keys()
    # A difference between means divides what it measures by.
    gap = abs(want["score/positive"] - want["score/uniform"])
    assume(gap > 0.05)
    for name, value in want.items():
        size = 10 / gap**2 if name.startswith("hardness") else 1
        np.testing.assert_allclose(
            got[name], value, rtol=0, atol=ROUNDING * size, err_msg=name
        )
    for name in absent:
        assert all(
            np.isnan(value) for key, value in got.items() if key.endswith(name)
        )


def test_the_positives_themselves_are_as_hard_and_as_wrong_as_can_be():
    tables, pairs, vectors = example(0)
    vectors = np.repeat(tables[1][pairs["items"]][:, None], COUNT, axis=1)
    got, _ = measured(tables, pairs, vectors, np.ones((PAIRS, COUNT)))
    for name, places in LEVELS.items():
        values = [got.get(f"{m}/{name}", 0.0) for m in MEASURES]
        want = [got["score/positive"], 1, 0, 1, 0]
        np.testing.assert_allclose(values, want, atol=1e-4)
        assert (f"diversity/{name}" in got) == (len(places) > 1)


def test_uniform_negatives_have_no_hardness():
    tables, pairs, vectors = example(1)
    ones = np.ones((PAIRS, COUNT))
    _, drawn = measured(tables, pairs, vectors, ones)
    vectors = np.repeat(tables[1][drawn][:, None], COUNT, axis=1)
    got, again = measured(tables, pairs, vectors, ones)
    np.testing.assert_array_equal(drawn, again)
    for name in LEVELS:
        # Sums of thousands of scores of about 1, in another order.
        uniform = pytest.approx(got["score/uniform"], abs=1e-6)
        assert got[f"score/{name}"] == uniform
        assert got[f"hardness/{name}"] == pytest.approx(0, abs=1e-4)
    owned = interactions()
    assert not any(
        item in owned[user]
        for user, item in zip(pairs["users"], drawn, strict=True)
    )


def test_opposite_negatives_are_as_far_apart_as_can_be():
    """Two opposite vectors: cosine distance 2, whatever their lengths."""
    tables, pairs, vectors = example(2)
    vectors[:, 4] = -3 * vectors[:, 3]
    weights = np.ones((PAIRS, COUNT))
    # Where one of them does not count, neither does their distance.
    weights[3:, 4] = 0
    got, _ = measured(tables, pairs, vectors, weights)
    assert got["diversity/2-hard"] == pytest.approx(2, abs=1e-5)
    weights[:3, 3] = 0
    got, _ = measured(tables, pairs, vectors, weights)
    assert np.isnan(got["diversity/2-hard"])
    assert np.isfinite(got["distance/2-hard"])


def test_the_length_of_vectors_only_counts_for_scores():
    tables, pairs, vectors = example(4, near=0.3)
    ones = np.ones((PAIRS, COUNT))
    one, _ = measured(tables, pairs, vectors, ones)
    two, _ = measured(tables, pairs, 2 * vectors, ones)
    for name, value in one.items():
        measure, _, level = name.partition("/")
        if measure == "hardness":
            continue
        factor = 2 if measure == "score" and level in LEVELS else 1
        assert two[name] == pytest.approx(factor * value, abs=1e-5), name
