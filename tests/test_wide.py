"""Rows of wide tables and layers over them, in both of their dtypes."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog
from training import make_config, make_run

from neggen_jax import train
from neggen_jax.ops import native, wide

EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-8}


@pytest.fixture(params=[False, True], ids=["of many", "alone"])
def alone(request, monkeypatch):
    """As where there is one CPU device, and as where there are several."""
    monkeypatch.setattr(native, "alone", lambda: request.param)


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
        # Factors are rounded once, sums of up to 500 are of float32.
        np.testing.assert_allclose(
            np.asarray(got, np.float64),
            value,
            rtol=2 * EPSILON[lower],
            atol=2 * EPSILON[lower] * np.abs(value).max(),
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
