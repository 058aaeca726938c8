"""Shapes told without arrays are those of the arrays."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from conftest import make_catalog
from rewritten import make_counterfactuals
from training import make_run

from neggen_jax.data import inputs, rewritten
from neggen_jax.data.inputs import ItemGraph, Needs
from neggen_jax.ops import sparse
from neggen_jax.partition import EXCHANGES

COSINE = ItemGraph(5, "cosine")
NEEDS = {
    "ids": Needs(),
    "graph": Needs(user_item=True),
    "mci": Needs(user_item=True, item_item=COSINE),
    "freedom": Needs(
        user_item=True,
        features=True,
        item_item=ItemGraph(5, "binary", fuse={"text": 0.9, "image": 0.1}),
    ),
    "smore": Needs(item_item=ItemGraph(5, "cosine", pool=True)),
    "text": Needs(
        features=True,
        item_item=ItemGraph(5, "cosine", ("text",)),
        modalities=("text",),
    ),
    "neggen": Needs(user_item=True, counterfactuals=True),
}
# What is as long as the fullest shard has entries, of graphs and positives.
ENTRIES = {".columns", ".rows", ".weights", ".edges", ".send", ".items"}


@pytest.fixture(scope="module")
def known():
    return dataclasses.replace(
        make_catalog(), counterfactuals=make_counterfactuals()
    )


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.parametrize(
    ("exchange", "feed"),
    [
        *((name, "tables") for name in EXCHANGES),
        *(("gather", feed) for feed in rewritten.FEEDS if feed != "tables"),
    ],
)
@pytest.mark.parametrize("name", NEEDS)
def test_inputs_are_told_as_they_are_built(
    name, feed, exchange, known, partition
):
    partition = dataclasses.replace(partition, exchange=exchange)
    real = inputs.build(known, NEEDS[name], partition, feed)
    longest = int(np.bincount(known.train.users).max())
    told = inputs.abstract(
        known, NEEDS[name], partition, feed, skew=4.0, longest=longest
    )
    assert jax.tree.structure(told) == jax.tree.structure(real)
    for (path, said), (_, is_) in zip(leaves(told), leaves(real), strict=True):
        where = jax.tree_util.keystr(path)
        assert said.dtype == is_.dtype, where
        assert said.sharding == is_.sharding, where
        if str(path[-1]) in ENTRIES:
            # Padded to the fullest shard, which the skew covers here.
            assert said.shape[:-1] == is_.shape[:-1], where
            assert said.shape[-1] >= is_.shape[-1], where
        else:
            assert said.shape == is_.shape, where


def test_one_shard_has_exactly_its_edges(known, one):
    told = inputs.abstract(known, NEEDS["graph"], one, skew=4.0)
    count = len(known.train)
    for rows in (told.user_item.forward, told.user_item.backward):
        assert rows.columns.shape == rows.edges.shape == (1, 1, count)


def test_shards_have_room_for_their_skew(eight):
    graph = sparse.abstract_graph(1000, (64, 16), eight, skew=1.1)
    assert graph.forward.weights.shape == (8, 1, 138)  # ceil(1000 / 8 * 1.1)
    assert graph.forward.indptr.shape == (8, 1, 9)
    assert graph.backward.indptr.shape == (8, 1, 3)
    ring = dataclasses.replace(eight, exchange="ring")
    graph = sparse.abstract_graph(1000, (64, 16), ring, skew=1.1)
    assert graph.forward.weights.shape == (8, 8, 18)  # ceil(1000 / 64 * 1.1)
    assert graph.forward.indptr is None
    # There are 2 columns in a shard: they need one round, of a tile.
    pull = dataclasses.replace(eight, exchange="pull")
    graph = sparse.abstract_graph(1000, (64, 16), pull, skew=1.1)
    assert graph.forward.weights.shape == (8, 1, 138)
    assert graph.forward.send.shape == (8, 1, 8, 8)
    assert not graph.forward.pushes
    assert graph.backward.pushes
    # 100 000 (1 - exp(-.15625)) = 14 466 columns of 100 000; 15 913 with the
    # skew, 8 times that in 4 rounds, of 498 tiles each.
    graph = sparse.abstract_graph(10**6, (8_000, 800_000), pull, skew=1.1)
    assert graph.forward.send.shape == (8, 4, 8, 3984)
    assert graph.forward.weights.shape == (8, 4, 34_375)


@pytest.mark.parametrize("rows", [64, 8_000])
def test_no_draw_of_columns_needs_more_than_the_uniform(rows, eight):
    """What plans take for granted of the vectors that are sent."""
    pull = dataclasses.replace(eight, exchange="pull")
    rng = np.random.default_rng(0)
    for power in (1, 3):
        drawn = rng.integers(rows, size=50_000) * 16_000
        drawn += np.floor(16_000 * rng.random(50_000) ** power).astype(int)
        row, column = np.divmod(np.unique(drawn), 16_000)
        # Ids that do not follow popularity.
        pairs = row, rng.permutation(16_000)[column]
        real = sparse.make_graph(
            pairs, np.ones(len(pairs[0])), (rows, 16_000), pull
        )
        told = sparse.abstract_graph(50_000, (rows, 16_000), pull, skew=1.1)
        said, is_ = (math.prod(x.forward.send.shape) for x in (told, real))
        assert is_ <= said
        if power == 1:
            assert is_ >= 0.8 * said


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__ema": 0.9},
        # A group masks what the other optimiser trains.
        {"optimizer__groups": {"encoder/users": {"learning_rate": 0.1}}},
    ],
)
def test_the_state_is_told_as_it_is_made(changes):
    run = make_run("lightgcn", (4, 2), **changes)
    state, told = run.start()
    assert jax.tree.structure(told) == jax.tree.structure(state)
    for (path, said), (_, is_) in zip(leaves(told), leaves(state), strict=True):
        where = jax.tree_util.keystr(path)
        assert (said.shape, said.dtype) == (is_.shape, is_.dtype), where
        assert said.sharding == is_.sharding, where
