"""DENS, against the paper's formulas in float64."""

import functools

import jax
import numpy as np
import pytest
import sampled
from conftest import on_mesh
from sampled import CANDIDATES, COUNT, DIM, draw, keys, pairs, tables

from neggen_jax.data.inputs import Needs, build
from neggen_jax.negatives import DENS
from neggen_jax.negatives.disentangled import Factors, contrast

SIZE = {"count": COUNT, "candidates": CANDIDATES}
LAYERS = 2
NAMES = ("user_gate", "item_gate", "positive_gate", "negative_gate")


def gates():
    rng = np.random.default_rng(5)
    return {
        "gates": {
            name: {
                "kernel": rng.normal(size=(DIM, DIM)).astype(np.float32),
                "bias": rng.normal(size=DIM).astype(np.float32),
            }
            for name in NAMES
        }
    }


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gate(name, x):
    part = gates()["gates"][name]
    return x @ part["kernel"].astype(float) + part["bias"]


def factors(users, positives, negatives):
    """Relevant parts of positives `[B, d]` and negatives `[B, ..., d]`."""
    relevant = positives * sigmoid(
        gate("item_gate", positives) + gate("user_gate", users)
    )
    beside = gate("positive_gate", relevant)
    beside = beside.reshape(len(beside), *(1,) * (negatives.ndim - 2), DIM)
    return relevant, negatives * sigmoid(
        gate("negative_gate", negatives) + beside
    )


def wanted(catalog, layers, share):
    """The choice of each layer, the negatives, and the contrastive loss."""
    items = sampled.drawn(catalog, keys(1)[0])
    batch, chosen, parts = pairs(catalog), [], []
    for layer in layers:
        users, positives, vectors = sampled.rows(layer, batch, items)
        own, relevant = factors(users, positives, vectors)
        both = (1 - share) * (vectors - relevant) - share * relevant
        best = np.einsum("bd,bknd->bkn", users, both).argmax(-1)
        chosen.append(sampled.pick(items, best))
        vectors, relevant = (sampled.pick(x, best) for x in (vectors, relevant))
        parts.append(
            (users, own, positives - own, relevant, vectors - relevant)
        )
    users, p_r, p_ir, n_r, n_ir = (
        np.mean(x, axis=0) for x in zip(*parts, strict=True)
    )
    score = functools.partial(np.einsum, "bd,bkd->bk", users)
    p_r, p_ir = score(p_r[:, None]), score(p_ir[:, None])
    vectors, n_r, n_ir = n_r + n_ir, score(n_r), score(n_ir)
    loss = sum(
        np.logaddexp(0, worse - better).mean()
        for better, worse in (
            (p_r, p_ir),
            (n_ir, n_r),
            (p_r, n_r),
            (n_ir, p_ir),
        )
    )
    return chosen, vectors, loss / 4


@pytest.mark.parametrize(
    ("mesh", "epoch", "share"),
    [
        pytest.param((1, 1), 2.0, 0.4, marks=pytest.mark.slow),
        ((4, 2), 2.0, 0.4),
        pytest.param((1, 1), 50.0, 0.8, marks=pytest.mark.slow),
    ],
)
def test_choice_and_contrast(catalog, mesh, epoch, share):
    source = DENS(**SIZE, warmup=4.0, relevance=0.8, weight=0.5)
    made = draw(
        catalog, source, mesh, layers=LAYERS, epoch=epoch, params=gates()
    )
    chosen, vectors, loss = wanted(catalog, tables(catalog, LAYERS), share)
    assert (chosen[0] != chosen[1]).mean() > 0.3
    np.testing.assert_array_equal(made.items, chosen[0])
    np.testing.assert_allclose(made.vectors, vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.losses["contrast"], 0.5 * loss, rtol=1e-5)
    for items in chosen:
        sampled.assert_no_positives(catalog, pairs(catalog)["users"], items)


def test_without_layers_or_warm_up(catalog):
    made = draw(catalog, DENS(**SIZE, warmup=0.0), params=gates())
    chosen, *_ = wanted(catalog, tables(catalog), 1.0)
    np.testing.assert_array_equal(made.items, chosen[0])
    np.testing.assert_array_equal(
        made.vectors, tables(catalog)[0][1][made.items]
    )
    assert DENS().needs().layers
    assert not DENS(by_layer=False).needs().layers


def test_gradients(catalog):
    """Of the negatives, none to users or gates; of the contrast, to all."""
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    layers = tables(catalog, LAYERS)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(of, params, layers):
        def total(params, layers):
            made = DENS(**SIZE).apply(
                {"params": params},
                sampled.encode(layers, len(inputs.popularity)),
                inputs,
                pairs(catalog),
                sampled.clock(1.0),
                rngs={"negatives": jax.random.key(0)},
            )
            contrast = made.losses["contrast"]
            return contrast if of == "contrast" else made.vectors.sum()

        return jax.grad(total, (0, 1))(params, layers)

    of_gates, of_layers = gradient("vectors", gates(), layers)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(of_gates))
    for users, items in of_layers:
        assert not np.asarray(users).any()
        assert np.asarray(items).any()
    for leaf in jax.tree.leaves(gradient("contrast", gates(), layers)):
        assert np.asarray(leaf).any()


def test_what_is_parted_as_it_should_be_has_no_contrast():
    """Far on the right side of all four tasks the loss is 0; else not."""
    users = np.ones((2, DIM), np.float32)
    high, low = 30 * users, -30 * users
    right = Factors(high, low), Factors(low[:, None], high[:, None])
    assert contrast(users, *right) < 1e-6
    wrong = Factors(low, high), Factors(high[:, None], low[:, None])
    # Each task is wrong by twice 30 in each of the coordinates.
    np.testing.assert_allclose(contrast(users, *wrong), 60 * DIM, rtol=1e-6)
