"""FREEDOM's pruning: which edges stay, how many, and with what weights.

Its embeddings are compared with the dense reference in test_models.py.
"""

import functools

import dense
import jax
import numpy as np
import pytest
from conftest import MESHES, on_mesh, some
from scipy import stats

from neggen_jax.data.inputs import Needs, build, sizes, union
from neggen_jax.errors import InputError
from neggen_jax.models import FREEDOM, LightGCN
from neggen_jax.models.freedom import prune
from neggen_jax.ops import sparse


@functools.cache
def pruner(catalog, data=1, model=1, dropout=0.8):
    """Key -> the kept edges' weights, dense, on one mesh."""
    partition = on_mesh(data, model)
    size = sizes(catalog, partition)
    whole = build(catalog, LightGCN(size).needs(), partition)
    prepare = jax.jit(FREEDOM(size, dropout=dropout).prepare)

    def dense_pruned(key):
        pruned = prepare(whole, jax.random.key(key)).user_item
        return sparse.dense(pruned)[: size.users, : size.items]

    return dense_pruned


@pytest.mark.parametrize("mesh", some(MESHES, (4, 2)), ids=str)
def test_pruning_keeps_that_many_edges_normalised_anew(catalog, mesh):
    prune = pruner(catalog, *mesh)
    matrix, other = prune(5), prune(6)
    kept = matrix > 0
    assert kept.sum() == round(0.2 * len(catalog.train))
    assert not kept[dense.user_item(catalog) == 0].any()
    np.testing.assert_allclose(
        matrix, dense.normalised(kept.astype(float)), rtol=1e-6
    )
    # Another epoch keeps others: by chance, a fifth of them or somewhat more.
    assert (kept & (other > 0)).sum() < 0.4 * kept.sum()
    # The draw follows from the key alone, not from the mesh.
    np.testing.assert_array_equal(kept, pruner(catalog)(5) > 0)


def test_pruning_nothing_or_all(catalog):
    whole = pruner(catalog, dropout=0.0)(0)
    np.testing.assert_allclose(whole, dense.user_item(catalog), rtol=1e-6)
    assert (pruner(catalog, dropout=0.99999)(0) > 0).sum() == 1
    for dropout in (1.0, -0.1):
        with pytest.raises(InputError, match="is no share"):
            pruner(catalog, dropout=dropout)(0)


def test_its_graph_is_of_its_own_modalities(catalog, one):
    """Whatever else reads features, as a source of negatives may."""
    size = sizes(catalog, one)
    needs = FREEDOM(size, modalities=("text",), neighbours=4).needs()
    inputs = build(catalog, union(needs, Needs(features=True)), one)
    assert set(inputs.features) == {"text", "image"}
    graph = sparse.dense(inputs.item_item["fused"])
    want = dense.nearest_items(catalog.features["text"], 4, "binary")
    np.testing.assert_allclose(
        graph[: size.items, : size.items], want, atol=1e-7
    )


def test_two_graphs_of_different_items_are_refused(catalog, one):
    size = sizes(catalog, one)
    ours = FREEDOM(size, modalities=("text",)).needs()
    assert union(ours, union(Needs(), ours)) == ours
    for other in (FREEDOM(size), FREEDOM(size, graph_weights={"text": 1.0})):
        with pytest.raises(InputError, match="different item-item graphs"):
            union(ours, other.needs())


@pytest.mark.slow
def test_pruning_prefers_edges_between_rare_ends(catalog, one):
    """One edge kept: chosen with odds 1 / sqrt(d_u d_i), by chi-square."""
    draws, edges = 4000, len(catalog.train)
    needs = LightGCN(sizes(catalog, one)).needs()
    graph = build(catalog, needs, one).user_item

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def draw(graph, key):
        return prune(graph, key, edges, 1).forward.edges[0, 0, 0]

    counts = np.bincount(
        draw(graph, jax.random.split(jax.random.key(0), draws)),
        minlength=edges,
    )
    weights = dense.user_item(catalog)
    odds = weights[catalog.train.users, catalog.train.items]
    expected = draws * odds / odds.sum()
    assert expected.min() > 3
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    assert stats.chisquare(counts).pvalue < 1e-9
    # A fifth of the edges kept: the odds still rule, one draw after another.
    kept = np.mean([pruner(catalog)(key) > 0 for key in range(60)], axis=0)
    rare = weights >= np.median(odds)
    common = (weights > 0) & ~rare
    assert kept[rare].mean() > kept[common].mean() + 0.05
