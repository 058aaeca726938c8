"""Negatives of the batch: corrected by logQ, and no accidental hits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampled
from conftest import SOME_MESHES, on_mesh
from sampled import BATCH, COUNT, draw, keys, pairs, tables

from neggen_jax import losses
from neggen_jax.data.inputs import Needs, build
from neggen_jax.losses import logits
from neggen_jax.negatives import InBatch, WholeBatch
from neggen_jax.negatives.in_batch import rarity


def known(catalog):
    matrix = np.zeros((catalog.num_users, catalog.num_items), bool)
    matrix[catalog.train.users, catalog.train.items] = True
    return matrix


def rare(catalog):
    """1 / (n Q) of every item, in float64; infinite where nobody has it."""
    popularity = catalog.popularity().astype(np.float64)
    with np.errstate(divide="ignore"):
        return popularity.sum() / ((popularity > 0).sum() * popularity)


def test_rarity_has_a_mean_of_one_over_the_batches(catalog, one):
    inputs = build(catalog, Needs(), one)
    items = np.arange(catalog.num_items)
    got = np.asarray(rarity(inputs, jnp.asarray(items)), float)
    there = catalog.popularity() > 0
    np.testing.assert_allclose(got[there], rare(catalog)[there], rtol=1e-6)
    shares = catalog.popularity() / catalog.popularity().sum()
    np.testing.assert_allclose((shares * got).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("correction", [1.0, 0.0, 0.5])
def test_items_of_the_batch_by_their_rarity(catalog, correction):
    made = draw(catalog, InBatch(COUNT, correction))
    batch = pairs(catalog)
    which = jax.random.randint(keys(1)[0], (BATCH, COUNT), 0, BATCH)
    items = batch["items"][np.asarray(which)]
    np.testing.assert_array_equal(made.items, items)
    np.testing.assert_array_equal(made.vectors, tables(catalog)[0][1][items])
    hits = known(catalog)[batch["users"][:, None], items]
    assert hits.any()
    want = rare(catalog)[items] ** correction * ~hits
    np.testing.assert_allclose(made.weights, want, rtol=1e-6)


def test_uniform_negatives_are_what_they_stand_for(catalog):
    """Their weighted scores have the mean of those of a uniform draw."""
    batch = pairs(catalog)
    rows = np.arange(len(catalog.train))
    everything = {
        "users": np.full(len(rows), batch["users"][0], np.int32),
        "items": catalog.train.items,
    }
    popularity = catalog.popularity()
    weights = rare(catalog)[everything["items"]]
    values = tables(catalog)[0][1][:, 0].astype(float)
    # Over all draws that there can be, each as likely.
    got = (weights * values[everything["items"]]).mean()
    np.testing.assert_allclose(got, values[popularity > 0].mean(), rtol=1e-9)


@pytest.mark.parametrize("mesh", SOME_MESHES)
def test_draws_and_masks_do_not_depend_on_the_mesh(catalog, mesh):
    """Of the global batch: no device has negatives of its own."""
    for source in (InBatch(COUNT), WholeBatch()):
        jax.tree.map(
            np.testing.assert_array_equal,
            draw(catalog, source, mesh),
            draw(catalog, source),
        )


def shared(catalog, items=0, corrected="all", correction=1.0):
    """Items, who must not have them, and what is added to logits."""
    batch = pairs(catalog)
    count = items or BATCH
    some = batch["items"][np.arange(count) * BATCH // count]
    left_out = known(catalog)[batch["users"][:, None], some]
    offsets = correction * np.log(rare(catalog)[some])
    own = correction * np.log(rare(catalog)[batch["items"]])
    if corrected == "negatives":
        there = (catalog.popularity() > 0).sum()
        offsets += correction * np.log(there / count)
        own *= 0
    return some, left_out, offsets, own


CASES = [{}, {"items": 20}, {"corrected": "negatives"}, {"correction": 0.0}]


@pytest.mark.parametrize("case", CASES)
def test_all_items_are_shared(catalog, case):
    made = draw(catalog, WholeBatch(**case))
    some, left_out, offsets, own = shared(catalog, **case)
    np.testing.assert_array_equal(made.shared.items, some)
    np.testing.assert_array_equal(made.shared.left_out, left_out)
    np.testing.assert_allclose(made.shared.offsets, offsets, rtol=1e-5)
    np.testing.assert_allclose(made.shared.own, own, rtol=1e-5)
    assert made.vectors.shape == (BATCH, 0, sampled.DIM)
    # The pair's own item is among those that it must not have.
    if not case.get("items"):
        assert left_out.diagonal().all()
    assert left_out.sum() > len(some)


@pytest.mark.parametrize("case", [*CASES, {"temperature": 0.5}])
def test_softmax_over_the_batch(catalog, case):
    """`-log(e^p / (e^p + sum e^n))`, of scores less their log Q."""
    case = dict(case)
    temperature = case.pop("temperature", 1.0)
    made = draw(catalog, WholeBatch(**case))
    got = losses.softmax(
        sampled.encode(tables(catalog), catalog.num_items),
        pairs(catalog),
        {"sampled": made},
        temperature=temperature,
    )
    some, left_out, offsets, own = shared(catalog, **case)
    users, positives, vectors = sampled.rows(
        tables(catalog)[0], pairs(catalog), some
    )
    logits = users @ vectors.T / temperature + offsets
    weights = np.where(left_out, 0, np.exp(logits))
    own = np.exp((users * positives).sum(-1) / temperature + own)
    want = -np.log(own / (own + weights.sum(axis=1))).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_chunks_change_nothing_and_hold_no_square(catalog, monkeypatch):
    made = draw(catalog, WholeBatch())
    batch = pairs(catalog)
    encoded = sampled.encode(tables(catalog), catalog.num_items)

    def loss(users, items):
        tables = dataclasses.replace(encoded, users=users, items=items)
        return losses.softmax(tables, batch, {"sampled": made})

    given = encoded.users, encoded.items
    want = jax.value_and_grad(loss, (0, 1))(*given)
    for room in (BATCH * BATCH // 3, 1):
        monkeypatch.setattr(logits, "LIMIT", room)
        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*given))
        assert f"f32[{BATCH},{BATCH}]" not in text
        got = jax.value_and_grad(loss, (0, 1))(*given)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
            got,
            want,
        )


def test_one_to_whom_nothing_is_left_loses_nothing(catalog):
    made = draw(catalog, WholeBatch())
    nothing = np.ones_like(made.shared.left_out)
    made = made.replace(shared=made.shared.replace(left_out=nothing))
    encoded = sampled.encode(tables(catalog), catalog.num_items)

    def loss(items):
        tables = dataclasses.replace(encoded, items=items)
        return losses.softmax(tables, pairs(catalog), {"sampled": made})

    value, gradient = jax.value_and_grad(loss)(encoded.items)
    assert value == 0
    assert not np.asarray(gradient).any()


def test_no_array_is_as_large_as_all_vectors_of_all_pairs(catalog):
    """B x B x d would be the way to run out of memory."""
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    encoded = sampled.encode(tables(catalog), len(inputs.popularity))

    def loss(encoded):
        made = WholeBatch().apply({}, encoded, inputs, pairs(catalog), None)
        return losses.softmax(encoded, pairs(catalog), {"sampled": made})

    text = str(jax.make_jaxpr(jax.grad(loss))(encoded))
    assert f"[{BATCH},{BATCH}]" in text
    assert f"[{BATCH},{BATCH}," not in text
