"""The causal module against float64 NumPy, written from METHODS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neggen_jax.data.rewritten import Rewritten
from neggen_jax.models.causal import EFFECTS, CausalEffect

ROWS, KINDS, DIM, HEADS = 7, 3, 16, 4
WIDTHS = {"image": 5, "text": 9}


def make_rows(seed=0, absent=True):
    """Rows of which some lack a modality, a counterfactual, or all."""
    rng = np.random.default_rng(seed)
    rows = {}
    for name, width in WIDTHS.items():
        described = np.ones(ROWS, bool)
        present = np.ones((ROWS, KINDS), bool)
        if absent:
            described[1 if name == "text" else 2] = False
            present[:, 0] = rng.random(ROWS) < 0.5
            described[5], present[6] = False, False
            present &= described[:, None]
        factual = rng.normal(size=(ROWS, width)) * described[:, None]
        other = rng.normal(size=(ROWS, KINDS, width)) * present[..., None]
        rows[name] = Rewritten(
            factual.astype(np.float32),
            described,
            other.astype(np.float32),
            present,
        )
    return rows


def attended(params, tokens, there):
    """Softmax attention of `[m, d]` tokens over those that are there; mean."""
    if not there.any():
        return np.zeros(tokens.shape[1])

    first, last = params["query_key_value"], params["out"]
    mapped = tokens @ first["kernel"] + first["bias"]
    query, key, value = (
        part.reshape(len(tokens), HEADS, -1) for part in np.split(mapped, 3, 1)
    )
    logits = np.einsum("qhk,mhk->hqm", query, key) / np.sqrt(query.shape[-1])
    logits[:, :, ~there] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("hqm,mhk->qhk", weights, value)
    out = mixed.reshape(len(tokens), -1) @ last["kernel"] + last["bias"]
    return out[there].mean(0)


def reference(params, rows, modalities=(), effect="difference"):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    names = sorted(rows)

    def projected(x):
        first, second = params["project_in"], params["project_out"]
        hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
        return hidden @ second["kernel"] + second["bias"]

    def token(name, vector):
        part = params[f"embed_{name}"]
        return vector.astype(np.float64) @ part["kernel"] + part["bias"]

    c = np.zeros((ROWS, DIM))
    counter = np.zeros((ROWS, KINDS, DIM))
    changed = np.zeros((ROWS, KINDS), bool)
    known = np.zeros(ROWS, bool)
    for i in range(ROWS):
        there = np.array([rows[n].described[i] for n in names])
        fact = np.stack([token(n, rows[n].factual[i]) for n in names])
        h = attended(params["attention"], fact, there)
        effects = []
        for k in range(KINDS):
            tokens = fact.copy()
            for m, name in enumerate(names):
                if rows[name].present[i, k] and (
                    not modalities or name in modalities
                ):
                    changed[i, k] = True
                    tokens[m] = token(name, rows[name].counterfactual[i, k])
            other = attended(params["attention"], tokens, there)
            counter[i, k] = projected(other)
            if changed[i, k]:
                effects.append(projected(h - other))
        if effect == "content":
            known[i] = there.any()
            c[i] = projected(h) if known[i] else 0
        elif effects:
            known[i] = True
            c[i] = np.mean(effects, axis=0)
    return c, known, counter, changed


def make(rows, **options):
    module = CausalEffect(HEADS, **options)
    params = module.init(jax.random.key(0), rows, DIM)["params"]
    # Biases begin at zero, and would hide what is done with them.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params
    )
    return module, params


@pytest.mark.parametrize("modalities", [(), ("text",), ("image",)])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("effect", EFFECTS)
def test_effect(modalities, absent, effect):
    rows = make_rows(absent=absent)
    module, params = make(rows, modalities=modalities, effect=effect)
    got = jax.jit(module.apply, static_argnums=2)({"params": params}, rows, DIM)
    c, known, counter, changed = reference(params, rows, modalities, effect)
    np.testing.assert_array_equal(got.known, known)
    np.testing.assert_array_equal(got.present, changed)
    # Sums of some dozens of products of order one, in float32.
    np.testing.assert_allclose(got.factual, c, atol=2e-5)
    np.testing.assert_allclose(got.counterfactual, counter, atol=2e-5)


def test_an_item_without_counterfactuals_has_no_effect():
    rows = make_rows()
    module, params = make(rows)
    got = module.apply({"params": params}, rows, DIM)
    without = ~np.asarray(got.present).any(axis=1)
    assert without.any()
    assert not np.asarray(got.factual)[without].any()
    assert np.asarray(got.factual)[~without].any(axis=1).all()


def test_what_is_absent_is_not_read():
    rows = make_rows()
    module, params = make(rows)

    def effect(rows):
        return module.apply({"params": params}, rows, DIM)

    filled = {
        name: row.replace(
            factual=np.where(row.described[:, None], row.factual, 7.0),
            counterfactual=np.where(
                row.present[..., None], row.counterfactual, 7.0
            ),
        )
        for name, row in rows.items()
    }
    jax.tree.map(np.testing.assert_array_equal, effect(rows), effect(filled))


def test_gradients_are_finite_where_nothing_is_known():
    rows = jax.tree.map(np.zeros_like, make_rows())
    module, params = make(rows)

    def total(params):
        got = module.apply({"params": params}, rows, DIM)
        return got.factual.sum() + got.counterfactual.sum()

    grads = jax.grad(total)(params)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_modalities_attend_to_one_another():
    """A change in one modality must pass through the attention."""
    rows = make_rows(absent=False)
    module, params = make(rows)
    muted = jax.tree.map(lambda x: x, params)
    # Queries alone: a third of the layer.
    muted["attention"]["query_key_value"] = jax.tree.map(
        lambda x: x.at[..., :DIM].set(0),
        params["attention"]["query_key_value"],
    )
    got = module.apply({"params": params}, rows, DIM).factual
    flat = module.apply({"params": muted}, rows, DIM).factual
    assert np.abs(got - flat).max() > 1e-3
