"""Graphs of a catalogue against dense float64 ones.

Similarities of random vectors carry float32 rounding, which may swap near
neighbours. So lists are compared on vectors whose cosines are exact: entries
of 0 and 1, with 1, 4 or 16 of the latter, have norms 1, 2 and 4 - and so few
distinct cosines that nearly every list ends in a tie.
"""

import subprocess
import sys

import dense
import numpy as np
import pytest

from neggen_jax.catalog import Features
from neggen_jax.data import graphs
from neggen_jax.data.inputs import ItemGraph, Needs, build, modalities, sizes
from neggen_jax.errors import InputError
from neggen_jax.ops import sparse


def exact_features(count, seed, dim=24):
    """Vectors with exact cosines; about a fifth of the items lack one."""
    rng = np.random.default_rng(seed)
    values = np.zeros((count, dim), np.float32)
    ones = rng.choice([0, 1, 4, 16], count, p=[0.2, 0.2, 0.4, 0.2])
    for row, number in zip(values, ones, strict=True):
        row[rng.permutation(dim)[:number]] = rng.choice([1.0, 3.0])
    # Opposite vectors: cosines below zero.
    values[rng.random(count) < 0.3] *= -1
    return Features(values, ones > 0)


def as_dense(edges, count):
    matrix = np.zeros((count, count))
    np.add.at(matrix, tuple(edges.ends), edges.weights)
    return matrix


def test_user_item_is_normalised_at_both_ends(catalog, partition):
    size = sizes(catalog, partition)
    want = np.zeros((size.user_rows, size.item_rows))
    want[: size.users, : size.items] = dense.user_item(catalog)
    assert not want.any(axis=0)[: size.items].all()
    graph = graphs.user_item(catalog, size, partition)
    np.testing.assert_allclose(sparse.dense(graph), want, rtol=2e-7)


@pytest.mark.parametrize("values", ["binary", "cosine"])
@pytest.mark.parametrize("k", [1, 10])
def test_nearest_items_by_brute_force(one, values, k):
    features = exact_features(600, k)
    edges = graphs.nearest_items(features, k, values, one)
    got, want = as_dense(edges, 600), dense.nearest_items(features, k, values)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=0)
    absent = ~features.present
    assert not got[absent].any()
    assert not got[:, absent].any()
    pairs = edges.ends[0] * 600 + edges.ends[1]
    assert len(np.unique(pairs)) == len(pairs)
    if values == "binary":
        np.testing.assert_array_equal(
            edges.weights, np.full(len(edges.weights), 1 / k)
        )


def test_the_search_does_not_depend_on_the_mesh(partition):
    features = exact_features(1100, 2)
    edges = graphs.nearest_items(features, 10, "cosine", partition)
    np.testing.assert_allclose(
        as_dense(edges, 1100),
        dense.nearest_items(features, 10, "cosine"),
        rtol=1e-12,
    )


def test_more_neighbours_than_items(one):
    features = exact_features(7, 0)
    for values in ("binary", "cosine"):
        edges = graphs.nearest_items(features, 50, values, one)
        np.testing.assert_allclose(
            as_dense(edges, 7),
            dense.nearest_items(features, 50, values),
            rtol=1e-12,
        )


def test_nearest_items_of_random_vectors(catalog, one):
    """Every neighbour is as near as brute force says, to float32 rounding."""
    features = catalog.features["text"]
    edges = graphs.nearest_items(features, 5, "binary", one)
    unit = features.values[features.present].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    place = np.cumsum(features.present) - 1
    cosine = (unit @ unit.T)[place[edges.ends[0]], place[edges.ends[1]]]
    want = -np.sort(-(unit @ unit.T), axis=1)[:, :5]
    got = -np.sort(-cosine.reshape(want.shape), axis=1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_unknown_weights_are_refused(catalog, one):
    with pytest.raises(InputError, match="edge weights"):
        graphs.nearest_items(catalog.features["text"], 3, "cosin", one)


SEARCH = """
import resource, sys
import numpy as np
from neggen_jax.catalog import Features
from neggen_jax.data.graphs import nearest_items
from neggen_jax.partition import make_partition

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def search(count):
    vectors = np.random.default_rng(0).normal(size=(count, 8))
    features = Features(vectors.astype(np.float32), np.ones(count, bool))
    edges = nearest_items(features, 4, "cosine", make_partition(1, 1))
    assert len(edges.weights) > count

search(2_000)
before = peak()
search(16_000)
print(peak() - before)
"""


@pytest.mark.slow
def test_the_search_makes_no_array_of_items_by_items():
    """Measured in a process of its own: a peak never goes down again."""
    output = subprocess.run(
        [sys.executable, "-c", SEARCH],
        env={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # 16 k x 16 k float32 would be 977 MiB; a block of scores is 32 MiB, and
    # XLA holds a few of them.
    assert float(output) < 250


def test_fuse_adds_with_weights_that_sum_to_one():
    graph = {
        "text": graphs.Edges(np.array([[0, 1, 2], [0, 2, 1]]), np.ones(3)),
        "image": graphs.Edges(np.array([[1, 2], [2, 2]]), np.array([0.5, 2])),
    }
    fused = graphs.fuse(graph, {"text": 3, "image": 1, "sound": 7})
    want = np.array([[0.75, 0, 0], [0, 0, 0.875], [0, 0.75, 0.5]])
    np.testing.assert_allclose(as_dense(fused, 3), want, rtol=1e-15)
    assert len(fused.weights) == 4


def test_shares_sum_to_one_and_the_unnamed_get_the_mean():
    names = ("text", "image", "sound")
    assert graphs.shares(names, {"text": 3, "image": 1}) == {
        "text": 0.5,
        "image": 1 / 6,
        "sound": 1 / 3,
    }
    assert graphs.shares(("text",), {"text": 9, "image": 1}) == {"text": 1}
    assert graphs.shares(("a", "b"), {}) == {"a": 0.5, "b": 0.5}
    for bad in ({"text": 0.0}, {"text": -1.0, "image": 3.0}):
        with pytest.raises(InputError, match="no sensible weights"):
            graphs.shares(("text", "image"), bad)


def test_place_lays_out_on_every_mesh(partition):
    features = exact_features(33, 0)
    edges = graphs.nearest_items(features, 4, "cosine", partition)
    rows = partition.padded(33, "item")
    want = np.zeros((rows, rows))
    want[:33, :33] = dense.nearest_items(features, 4, "cosine")
    placed = sparse.dense(graphs.place(edges, rows, partition))
    np.testing.assert_allclose(placed, want, rtol=2e-7)


def test_build_makes_what_is_needed_and_no_more(catalog, partition):
    size = sizes(catalog, partition)
    bare = build(catalog, Needs(), partition)
    assert bare.user_item is None
    assert bare.item_item == bare.features == bare.prepared == {}
    np.testing.assert_array_equal(
        bare.popularity[: size.items], catalog.popularity()
    )
    assert not np.asarray(bare.popularity[size.items :]).any()

    needs = Needs(
        user_item=True,
        features=True,
        item_item=ItemGraph(4, "binary", ("image",), {"image": 2.0}),
        modalities=("image",),
    )
    inputs = build(catalog, needs, partition)
    assert sparse.dense(inputs.user_item).shape == (
        size.user_rows,
        size.item_rows,
    )
    image = catalog.features["image"]
    matrix = inputs.features["image"]
    assert list(inputs.features) == ["image"]
    np.testing.assert_allclose(
        matrix.values[: size.items], dense.standardised(image), atol=1e-6
    )
    np.testing.assert_array_equal(matrix.present[: size.items], image.present)
    assert not np.asarray(matrix.values[size.items :]).any()
    assert not np.asarray(matrix.present[size.items :]).any()
    assert list(inputs.item_item) == ["fused"]
    np.testing.assert_allclose(
        sparse.dense(inputs.item_item["fused"])[: size.items, : size.items],
        dense.nearest_items(image, 4, "binary"),
        atol=1e-7,
    )


def test_modalities_are_all_or_those_asked_for(catalog):
    assert modalities(catalog, Needs()) == ("image", "text")
    assert modalities(catalog, Needs(modalities=("text",))) == ("text",)
    with pytest.raises(
        InputError, match="modalities that the dataset"
    ) as error:
        modalities(catalog, Needs(modalities=("text", "sound")))
    assert error.value.found == "image, text"
