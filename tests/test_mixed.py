"""MixGCF, against the paper's formulas in float64."""

import jax
import numpy as np
import pytest
import sampled
from conftest import on_mesh, some
from sampled import BATCH, CANDIDATES, COUNT, draw, keys, pairs, tables

from neggen_jax.data.inputs import Needs, build
from neggen_jax.negatives import MixGCF

SIZE = {"count": COUNT, "candidates": CANDIDATES}
LAYERS = 3


def wanted(catalog, layers, most=1.0):
    """Each layer's mixtures are formed, scored, chosen and averaged."""
    (key,) = keys(1)
    draw_key, mix_key = jax.random.split(key)
    items = sampled.drawn(catalog, draw_key)
    batch = pairs(catalog)
    by_whom = np.mean([users.astype(np.float64) for users, _ in layers], 0)
    by_whom = by_whom[batch["users"]]
    chosen, mixed = [], []
    for number, layer in enumerate(layers):
        _, positives, vectors = sampled.rows(layer, batch, items)
        key = jax.random.fold_in(mix_key, number)
        share = np.asarray(jax.random.uniform(key, (BATCH, COUNT)), float)
        share = most * share[..., None, None]
        mixture = share * positives[:, None, None] + (1 - share) * vectors
        best = np.einsum("bd,bknd->bkn", by_whom, mixture).argmax(-1)
        chosen.append(sampled.pick(items, best))
        mixed.append(sampled.pick(mixture, best))
    return chosen, np.mean(mixed, axis=0)


@pytest.mark.parametrize("mesh", some([(1, 1), (4, 2)], (4, 2)))
def test_mixed_and_chosen_in_each_layer(catalog, mesh):
    made = draw(catalog, MixGCF(**SIZE), mesh, layers=LAYERS)
    chosen, vectors = wanted(catalog, tables(catalog, LAYERS))
    # Other layers have other candidates as their hardest.
    assert (chosen[0] != chosen[1]).mean() > 0.3
    np.testing.assert_array_equal(made.items, chosen[0])
    np.testing.assert_allclose(made.vectors, vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made.weights, np.ones((BATCH, COUNT)))
    for items in chosen:
        sampled.assert_no_positives(catalog, pairs(catalog)["users"], items)


def test_without_layers_the_embedding_is_the_only_one(catalog):
    made = draw(catalog, MixGCF(**SIZE))
    _, vectors = wanted(catalog, tables(catalog))
    np.testing.assert_allclose(made.vectors, vectors, rtol=1e-5, atol=1e-6)


def test_layers_may_be_taken_as_one(catalog):
    source = MixGCF(**SIZE, by_layer=False, most=0.5)
    made = draw(catalog, source, layers=LAYERS)
    one = sampled.mean(tables(catalog, LAYERS))
    _, vectors = wanted(catalog, [one], 0.5)
    np.testing.assert_allclose(made.vectors, vectors, rtol=1e-5, atol=1e-6)
    assert not source.needs().layers
    assert MixGCF().needs().layers


def test_without_mixing_it_is_the_hardest_of_each_layer(catalog):
    made = draw(catalog, MixGCF(**SIZE, most=0.0))
    _, table = tables(catalog)[0]
    np.testing.assert_array_equal(made.vectors, table[made.items])


def test_gradients_go_to_what_is_mixed_alone(catalog):
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    layers = tables(catalog, LAYERS)

    def total(layers):
        made = MixGCF(**SIZE).apply(
            {},
            sampled.encode(layers, len(inputs.popularity)),
            inputs,
            pairs(catalog),
            None,
            rngs={"negatives": jax.random.key(0)},
        )
        return made.vectors.sum()

    for of_users, of_items in jax.jit(jax.grad(total))(layers):
        assert not np.asarray(of_users).any()
        # A layer's share of each coordinate, whoever it comes from.
        np.testing.assert_allclose(
            np.asarray(of_items).sum(axis=0), BATCH * COUNT / LAYERS, rtol=1e-4
        )
        assert np.asarray(of_items)[np.unique(pairs(catalog)["items"])].all()
