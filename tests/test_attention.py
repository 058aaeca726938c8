"""Attention of a few tokens against float64 NumPy, by XLA and in C++."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neggen_jax.ops import native
from neggen_jax.ops.attention import attend, attends

needs_compiler = pytest.mark.skipif(
    not native.available(), reason="there is no C++ compiler"
)


@pytest.fixture(params=[False, pytest.param(True, marks=needs_compiler)])
def alone(request, monkeypatch):
    """As where there are several devices, and as where there is one CPU."""
    monkeypatch.setattr(native, "alone", lambda: request.param)
    return request.param


def reference(mapped, shares, heads):
    """The mean, from the definition: softmax over the tokens with a share."""
    tokens, rows = mapped.shape[:2]
    parts = np.split(mapped, 3, axis=2)
    query, key, value = (x.reshape(tokens, rows, heads, -1) for x in parts)
    logits = np.einsum("tnhw,snhw->tsnh", query, key) / key.shape[-1] ** 0.5
    logits[:, shares == 0] = -np.inf
    # Of a row without any token, anything: all its shares are 0.
    most = np.maximum(logits.max(1, keepdims=True), -1e300)
    weights = np.exp(logits - most)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-300)
    mean = np.einsum("tn,tsnh,snhw->nhw", shares, weights, value)
    return mean.reshape(rows, -1)


def make(rng, tokens, rows, each, dim, absent=0.3, size=1.0):
    """Tokens, of which some are not there, and how much each counts."""
    mapped = size * rng.normal(size=(tokens, rows, each, 3 * dim))
    there = rng.random((tokens, rows)) >= absent
    shares = there / np.maximum(there.sum(0), 1)
    return mapped.astype(np.float32), shares.astype(np.float32)


def slope(mapped, shares, heads, g, along):
    """How the mean, summed up by `g`, changes along a direction."""
    step = 1e-5
    far, near = (
        (reference(mapped + s * along, shares, heads) * g).sum()
        for s in (step, -step)
    )
    return (far - near) / (2 * step)


@functools.cache
def compiled(shape, heads, one):
    """The mean and its gradient, of tokens of a shape."""

    def both(mapped, shares, g):
        out, backward = jax.vjp(lambda x: attend(x, shares, heads), mapped)
        return out, *backward(g)

    rows, dim = shape[1:-1], shape[-1] // 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "alone", lambda: one)
        like = (shape, shape[:2], (*rows, dim))
        given = (jax.ShapeDtypeStruct(s, np.float32) for s in like)
        return jax.jit(both).lower(*given).compile()


# Tokens, rows, versions of each, d, h: heads of 1, 2, 4, 8 and 16 entries,
# which the kernel has, and of 32 and 5, which it has not.
SHAPES = [
    (1, 1, 1, 16, 16),
    (2, 300, 2, 64, 8),
    (3, 5, 1, 32, 8),
    (8, 4, 3, 48, 3),
    (2, 9, 2, 64, 2),
    (2, 9, 1, 32, 16),
    (2, 9, 1, 10, 2),
    (9, 3, 1, 16, 2),
]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 99), st.sampled_from([0.1, 3.0]))
@pytest.mark.parametrize(
    "one", [False, pytest.param(True, marks=needs_compiler)]
)
def test_the_mean_and_its_gradient(one, shape, seed, size):
    *sizes, dim, heads = shape
    rng = np.random.default_rng(seed)
    mapped, shares = make(rng, *sizes, dim, size=size)
    g = rng.normal(size=(*mapped.shape[1:3], dim)).astype(np.float32)

    both = compiled(mapped.shape, heads, one)
    out, gradient = map(np.asarray, both(mapped, shares, g))
    flat = mapped.astype(np.float64).reshape(len(mapped), -1, 3 * dim)
    every = np.repeat(shares, sizes[2], axis=1)
    want = reference(flat, every, heads).reshape(g.shape)
    # Weights are off by what logits are, a sum of some squares of `size`.
    np.testing.assert_allclose(out, want, atol=1e-5 * max(1, size**3))
    along = rng.normal(size=flat.shape)
    rise = slope(flat, every, heads, g.reshape(-1, dim), along)
    ours = (gradient.reshape(flat.shape) * along).sum()
    bound = np.abs(gradient.reshape(flat.shape) * along).sum() + 1
    np.testing.assert_allclose(ours, rise, atol=2e-5 * max(1, size**3) * bound)


def test_nothing_attends_to_what_is_not_there(alone):
    mapped, shares = make(np.random.default_rng(0), 3, 40, 2, 16, 0.5)
    assert attends(mapped.reshape(3, -1, 48), 4) == alone
    absent = np.broadcast_to((shares == 0)[..., None, None], mapped.shape)
    none = (shares == 0).all(0)
    assert none.any()

    def total(mapped):
        out = attend(mapped, shares, 4)
        return (out * out).sum(), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(mapped)
    other = attend(np.where(absent, np.nan, mapped), shares, 4)
    np.testing.assert_array_equal(out, other)
    assert not np.asarray(out)[none].any()
    assert not np.asarray(gradient)[absent].any()
    assert np.asarray(gradient)[~absent].any()


@pytest.mark.usefixtures("alone")
def test_what_is_no_number_stays_none():
    mapped, _ = make(np.random.default_rng(0), 2, 3, 1, 16)
    # In a query, a key and a value, each of another row, with any bits.
    odd = np.uint32(0x7FC00055).view(np.float32)
    mapped[0, 0, 0, 3] = mapped[1, 1, 0, 20] = mapped[1, 2, 0, 40] = odd
    out = attend(mapped, np.full((2, 3), 0.5, np.float32), 4)
    assert np.isnan(out).any(axis=-1).all()


@needs_compiler
def test_a_row_does_not_depend_on_others(monkeypatch):
    monkeypatch.setattr(native, "alone", lambda: True)
    mapped, shares = make(np.random.default_rng(1), 2, 700, 2, 64)
    # Rows of one part, and in their places among many.
    some = attend(mapped[:, 200:260], shares[:, 200:260], 8)
    every = attend(mapped, shares, 8)
    np.testing.assert_array_equal(some, every[200:260])


@needs_compiler
def test_programs_for_other_platforms_have_no_such_kernel(monkeypatch):
    monkeypatch.setattr(native, "alone", lambda: True)
    mapped, shares = make(np.random.default_rng(2), 2, 8, 1, 16)

    def gradient(mapped):
        return jax.grad(lambda x: attend(x, shares, 4).sum())(mapped)

    def said(platform):
        made = (
            jax.jit(gradient)
            .trace(mapped)
            .lower(lowering_platforms=(platform,))
        )
        return made.as_text()

    assert "neggen" not in said("tpu")
    assert "neggen_attend_backward" in said("cpu")
