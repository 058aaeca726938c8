"""Rows of wide tables and layers over them, in both of their dtypes."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog
from hypothesis import given, settings
from hypothesis import strategies as st
from training import make_config, make_run

from neggen_jax import train
from neggen_jax.ops import native, wide

EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-8}


@pytest.fixture(params=[False, True], ids=["of many", "alone"])
def alone(request, monkeypatch):
    """As where there is one CPU device, and as where there are several."""
    monkeypatch.setattr(native, "alone", lambda: request.param)


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(native, "alone", lambda: True)


def exact(dtype, shape, seed):
    """Random numbers that the dtype has, and the same in float64."""
    value = np.random.default_rng(seed).normal(size=shape)
    value = jnp.asarray(value, dtype)
    return value, np.asarray(value.astype(jnp.float32), np.float64)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kernel_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(300,), (40, 3)])
def test_a_product_and_its_gradients(dtype, kernel_dtype, shape):
    x, x64 = exact(dtype, (*shape, 500), 0)
    kernel, kernel64 = exact(kernel_dtype, (500, 16), 1)
    g, g64 = exact(kernel_dtype, (*shape, 16), 2)

    @jax.jit
    def both(x, kernel, g):
        out, backward = jax.vjp(wide.project, x, kernel)
        return out, *backward(g)

    lower = max((dtype, kernel_dtype), key=EPSILON.__getitem__)
    want = (
        (x64 @ kernel64, kernel_dtype),
        (g64 @ kernel64.T, dtype),
        (x64.reshape(-1, 500).T @ g64.reshape(-1, 16), kernel_dtype),
    )
    for got, (value, kind) in zip(both(x, kernel, g), want, strict=True):
        assert got.dtype == kind
        # Factors are rounded once; sums of up to 500 are of float32, in an
        # order that processors do not have in common.
        share = max(2 * EPSILON[lower], 1e-5)
        np.testing.assert_allclose(
            np.asarray(got, np.float64),
            value,
            rtol=2 * EPSILON[lower],
            atol=share * np.abs(value).max(),
        )


needs_simd = pytest.mark.skipif(
    not native.has_simd(), reason="there is neither AVX2 nor AVX-512"
)


def some_rows(data, height):
    """Row numbers, which may repeat, or be none at all."""
    count = data.draw(st.sampled_from([0, 1, 5, 6, 7, 40, 130, 300]))
    seed = data.draw(st.integers(0, 99))
    return np.random.default_rng(seed).integers(height, size=count)


@pytest.mark.parametrize("one", [False, pytest.param(True, marks=needs_simd)])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_are_projected_where_they_lie(one, data):
    widths = data.draw(
        st.lists(st.sampled_from([1, 7, 16, 100, 193, 515]), min_size=1)
    )[:3]
    height, d = data.draw(st.sampled_from([(1, 3), (9, 64), (400, 70)]))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16"]))
    rows = some_rows(data, height).astype(np.int32)
    made = [exact(dtype, (height, f), n) for n, f in enumerate(widths)]
    tables, tables64 = tuple(x for x, _ in made), [x for _, x in made]
    kernel, kernel64 = exact("float32", (sum(widths), d), 7)
    g, g64 = exact("float32", (len(rows), d), 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "alone", lambda: one)
        assert native.projects(tables, kernel) is one

        @jax.jit
        def all_of_it(tables, kernel, g):
            out, backward = jax.vjp(
                lambda tables, kernel: wide.project_rows(tables, rows, kernel),
                tables,
                kernel,
            )
            return out, *backward(g)

        out, along, gradient = all_of_it(tables, kernel, g)
    taken = np.concatenate([x[rows] for x in tables64], axis=1)
    back = np.zeros((height, sum(widths)))
    np.add.at(back, rows, g64 @ kernel64.T)
    along = np.concatenate([x.astype(jnp.float32) for x in along], axis=1)
    for got, want in (
        (out, taken @ kernel64),
        (gradient, taken.T @ g64),
        (along, back),
    ):
        assert got.shape == want.shape
        # XLA rounds the kernel as well; a bound for sums of random signs.
        size = np.abs(want).max(initial=1)
        np.testing.assert_allclose(
            got,
            want,
            rtol=0,
            atol=4e-2 * size if dtype == "bfloat16" else 1e-5 * size,
        )


@needs_simd
@pytest.mark.usefixtures("one_device")
def test_features_in_bfloat16_are_multiplied_as_they_are():
    table, table64 = exact("bfloat16", (50, 700), 0)
    kernel, kernel64 = exact("float32", (700, 64), 1)
    rows = np.array([3, 3, 49, 0], np.int32)
    out = wide.project_rows((table,), rows, kernel)
    # Not rounded: the kernel stays in float32.
    np.testing.assert_allclose(out, table64[rows] @ kernel64, atol=2e-4)


@needs_simd
@pytest.mark.usefixtures("one_device")
def test_rows_are_indexed_as_arrays_are():
    table, table64 = exact("float32", (5, 30), 0)
    kernel, kernel64 = exact("float32", (30, 64), 1)
    for rows, same in (
        (np.array([7, 4, -1, -5, -9, 0], np.int32), [4, 4, 4, 0, 0, 0]),
        (np.array([True, False, False, True, False]), [0, 3]),
    ):
        out = wide.project_rows((table,), rows, kernel)
        want = table64[same] @ kernel64
        np.testing.assert_allclose(out, want, atol=1e-4)


@needs_simd
@pytest.mark.usefixtures("one_device")
def test_rows_of_several_batches_are_projected():
    table, table64 = exact("float32", (5, 30), 0)
    kernel, kernel64 = exact("float32", (30, 64), 1)
    rows = np.array([[0, 4], [2, 2], [1, 0]], np.int32)
    out = jax.vmap(lambda some: wide.project_rows((table,), some, kernel))(rows)
    np.testing.assert_allclose(out, table64[rows] @ kernel64, atol=1e-4)


@needs_simd
@pytest.mark.usefixtures("one_device")
def test_other_platforms_do_without_the_kernel():
    table, _ = exact("float32", (5, 30), 0)
    kernel, _ = exact("float32", (30, 64), 1)
    rows = jnp.array([1, 4])

    def loss(kernel):
        return wide.project_rows((table,), rows, kernel).sum()

    text = {
        platform: jax.jit(jax.grad(loss))
        .trace(kernel)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "tpu")
    }
    assert "neggen_project_backward" in text["cpu"]
    assert "neggen" not in text["tpu"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("inner", [(), (3,)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dense_layer_takes_rows_where_they_lie(dtype, inner):
    table, _ = exact(dtype, (20, *inner, 50), 0)
    rows = jnp.array([[3, 3], [19, 0]])
    picked = wide.Picked(table, rows)
    assert picked.shape == (2, 2, *inner, 50)
    layer = wide.Dense(8)
    variables = layer.init(jax.random.key(0), picked)
    g, _ = exact("float32", (2, 2, *inner, 8), 1)

    def both(x):
        out, backward = jax.vjp(lambda v: layer.apply(v, x), variables)
        return out, backward(g)[0]

    assert picked.taken().shape == picked.shape
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=10 * EPSILON[dtype] * np.abs(b).max()
        ),
        both(picked),
        both(picked.taken()),
    )


def test_a_dense_layer_is_that_of_flax():
    x, _ = exact("float32", (30, 20), 0)
    key = jax.random.key(3)
    ours, theirs = wide.Dense(8), nn.Dense(8)
    params = ours.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(key, x))
    np.testing.assert_allclose(
        ours.apply(params, x), theirs.apply(params, x), atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_taken_to_the_bit(dtype):
    odd = [np.nan, -np.nan, np.inf, -0.0, 1e-40]
    table, _ = exact(dtype, (50, 40), 0)
    table = table.at[7, :5].set(jnp.asarray(odd, dtype))
    rows = jnp.array([[7, 3, 7], [49, 0, 1]])
    got = np.asarray(jax.jit(wide.take)(table, rows))
    want = np.asarray(table)[np.asarray(rows)]
    kind = {2: np.uint16, 4: np.uint32}[want.itemsize]
    np.testing.assert_array_equal(got.view(kind), want.view(kind))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_are_taken_have_a_gradient(dtype):
    table, _ = exact(dtype, (6, 4), 0)
    rows = jnp.array([[1, 3], [1, 1]])
    got = jax.grad(lambda t: wide.take(t, rows).astype(jnp.float32).sum())(
        table
    )
    np.testing.assert_array_equal(
        got.astype(jnp.float32)[:, 0], [0, 3, 0, 1, 0, 0]
    )


def test_rows_of_bfloat16_are_not_taken_from_a_copy():
    table, _ = exact("bfloat16", (5000, 64), 0)
    taken = jax.jit(wide.take).lower(table, jnp.arange(9)).compile()
    assert taken.memory_analysis().temp_size_in_bytes < table.nbytes


@pytest.mark.parametrize(
    "change",
    [{"data__feature_dtype": "bfloat16"}, {"train__dtype": "bfloat16"}],
)
def test_features_are_kept_in_half_the_memory(change):
    whole, half = (make_run("vbpr", **c).inputs.features for c in ({}, change))
    for name, matrix in whole.items():
        assert half[name].values.dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            half[name].values, matrix.values.astype(jnp.bfloat16)
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vbpr", pytest.param("freedom", marks=pytest.mark.slow)]
)
def test_trains_alike_in_either(name, tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        config = make_config(name, data__feature_dtype=dtype)
        results = train.train_and_evaluate(
            config, tmp_path / dtype, make_catalog()
        )
        assert results["config"]["data"]["feature_dtype"] == dtype
        lines = (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()
        said = [json.loads(line) for line in lines]
        losses.append(
            [line["train/loss"] for line in said if "train/loss" in line]
        )
    np.testing.assert_allclose(*losses, rtol=0.01)
    assert losses[0] != losses[1]
