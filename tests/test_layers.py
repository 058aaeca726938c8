"""Embeddings by layer: given where somebody reads them, with the same mean."""

import functools

import dense
import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import on_mesh
from test_models import make

from neggen_jax.data.inputs import Needs, build, sizes, union
from neggen_jax.models import ENCODERS

# Name -> propagation steps of `test_models.KEYWORDS`.
LAYERS = {"lightgcn": 3, "freedom": 1, "mci": 1}


@functools.cache
def encoded(name, catalog, asked):
    partition = on_mesh(1, 1)
    module = make(name, sizes(catalog, partition))
    needs = union(module.needs(), Needs(layers=asked))
    inputs = build(catalog, needs, partition)

    @jax.jit
    def run(inputs):
        return module.init_with_output(jax.random.key(1), inputs)

    out, params = run(inputs)
    return jax.device_get(out.whole()), nn.unbox(params)["params"]


@pytest.mark.parametrize("name", LAYERS)
def test_their_mean_is_the_embedding(name, catalog):
    out, _ = encoded(name, catalog, True)
    assert len(out.layers) == LAYERS[name] + 1
    users, items = (np.mean(x, axis=0) for x in zip(*out.layers, strict=True))
    np.testing.assert_allclose(out.users, users, rtol=0, atol=1e-6)
    np.testing.assert_allclose(out.items, items, rtol=0, atol=1e-6)
    assert not np.allclose(*(items for _, items in out.layers[:2]))


def test_each_is_one_step_of_propagation(catalog):
    out, params = encoded("lightgcn", catalog, True)
    graph = dense.user_item(catalog)
    users, items = (np.asarray(params[n], float) for n in ("users", "items"))
    for got in out.layers:
        np.testing.assert_allclose(got[0], users, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got[1], items, rtol=0, atol=1e-6)
        users, items = graph @ items, graph.T @ users


@pytest.mark.parametrize("name", ENCODERS)
def test_nobody_has_them_who_did_not_ask(name, catalog):
    out, _ = encoded(name, catalog, False)
    assert out.layers == ()


def test_needs_unite():
    assert not union(Needs(), Needs()).layers
    assert union(Needs(layers=True), Needs()).layers
    assert union(Needs(), Needs(layers=True)).layers
