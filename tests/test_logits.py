"""Log-sum-exp of inner products against float64 NumPy, in both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neggen_jax.losses.logits import log_sum_exp
from neggen_jax.ops import native

needs_simd = pytest.mark.skipif(
    not native.has_simd(), reason="there is neither AVX2 nor AVX-512"
)
forms = pytest.mark.parametrize(
    "one", [False, pytest.param(True, marks=needs_simd)]
)


def unit(rng, count, dim):
    x = rng.normal(size=(count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@forms
@settings(max_examples=20, deadline=None)
@given(
    # Blocks are of 6 anchors and 64 others; rests of them, and one of each.
    st.sampled_from([(1, 1, 1), (7, 65, 3), (13, 64, 64), (100, 130, 70)]),
    st.sampled_from([0.05, 1.0, 5.0, 40.0, 100.0]),
    st.integers(0, 99),
    st.booleans(),
)
def test_it_and_its_gradients(one, shape, bound, seed, some):
    rows, columns, dim = shape
    rng = np.random.default_rng(seed)
    anchors, others = bound * unit(rng, rows, dim), unit(rng, columns, dim)
    # The ends of what may be: the same vector, and its opposite.
    others[0], others[-1] = -anchors[0] / bound, anchors[0] / bound
    g = rng.normal(size=rows)
    # Where not all count, one row has none, and others beside them.
    left_out = rng.random((rows, columns)) < 0.5 if some else None
    beside = bound * rng.uniform(-1, 1, (rows, 2)) if some else None
    if some:
        left_out[0], beside[rows // 2, 1] = True, -np.inf

    @jax.jit
    def every(anchors, others, beside, g):
        def of(anchors, others, beside):
            return log_sum_exp(anchors, others, bound, left_out, beside)

        out, backward = jax.vjp(of, anchors, others, beside)
        return out, *backward(g)

    given_ = jax.tree.map(jnp.float32, (anchors, others, beside, g))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "alone", lambda: one)
        got = every(*given_)
    logits = anchors @ others.T
    if some:
        counted = np.where(left_out, -np.inf, logits)
        logits = np.concatenate([counted, beside], axis=1)
    top = logits.max(axis=1, keepdims=True)
    want = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    slopes = np.exp(logits - want[:, None]) * g[:, None]
    # Logits are rounded by 2^-23 of the bound, and some of it as sums are.
    error = 2e-6 * max(1, bound)
    np.testing.assert_allclose(got[0], want, atol=error)
    pairs = [
        (got[1], slopes[:, :columns] @ others),
        (got[2], slopes[:, :columns].T @ anchors),
    ]
    if some:
        pairs.append((got[3], slopes[:, columns:]))
    for ours, theirs in pairs:
        scale = max(1, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, atol=4 * error * scale)


@needs_simd
def test_other_platforms_do_without_the_kernel(monkeypatch):
    monkeypatch.setattr(native, "alone", lambda: True)
    x = jnp.eye(8)

    def loss(x):
        return log_sum_exp(x, x, 1.0).sum()

    text = {
        platform: jax.jit(jax.grad(loss))
        .trace(x)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "tpu")
    }
    assert "neggen_exps" in text["cpu"]
    assert "neggen" not in text["tpu"]


@forms
def test_what_is_no_number_is_not_hidden(one, monkeypatch):
    monkeypatch.setattr(native, "alone", lambda: one)
    x = jnp.eye(8).at[3, 3].set(jnp.nan)
    out = np.asarray(log_sum_exp(jnp.eye(8), x, 1.0))
    assert np.isnan(out).all()
