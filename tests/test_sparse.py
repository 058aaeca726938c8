"""Sparse products against dense float64 ones, on every mesh, either exchange.

Tolerances: a row of n entries is summed in float32 in some order, so its
error is at most about n eps |A||x|; `bound` is that, entry by entry.
"""

import dataclasses
import functools

import dense as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import some
from hypothesis import given, settings
from hypothesis import strategies as st

from neggen_jax.ops import exchange, native
from neggen_jax.ops.sparse import (
    dense,
    make_graph,
    multiply,
    multiply_rows,
    picks,
    subset,
)
from neggen_jax.partition import EXCHANGES

ROWS, COLUMNS, WIDTH = 32, 24, 5


pytestmark = pytest.mark.usefixtures("small_rounds")


def random_edges(seed, count, empty_rows=(), empty_columns=()):
    """Unique edges in no order, and weights of either sign."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(ROWS * COLUMNS)
    edges = np.stack(np.divmod(cells, COLUMNS))
    taken = np.isin(edges[0], empty_rows) | np.isin(edges[1], empty_columns)
    edges = edges[:, ~taken][:, :count]
    return edges, rng.normal(size=edges.shape[1])


def as_dense(edges, weights):
    matrix = np.zeros((ROWS, COLUMNS))
    matrix[edges[0], edges[1]] = weights
    return matrix


def bound(matrix, x, eps=2.0**-24):
    entries = np.count_nonzero(matrix, axis=1, keepdims=True)
    return (entries + 1) * eps * (np.abs(matrix) @ np.abs(x))


def assert_within(got, want, tolerance):
    assert got.shape == want.shape
    error = np.abs(np.asarray(got, np.float64) - want)
    assert (error <= tolerance).all(), (error - tolerance).max()


@pytest.fixture(scope="module")
def problem():
    # On eight shards the first four rows, and so the whole first shard, are
    # empty; and so are the last ones, where padding points.
    empty = (0, 1, 2, 3, 9, 30, 31)
    edges, weights = random_edges(0, 150, empty, (0, 11, 23))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(COLUMNS, WIDTH)).astype(np.float32)
    g = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return edges, weights, as_dense(edges, weights), x, g


@pytest.fixture(scope="module", params=EXCHANGES)
def graph(request, problem, partition):
    edges, weights, *_ = problem
    partition = dataclasses.replace(partition, exchange=request.param)
    return make_graph(edges, weights, (ROWS, COLUMNS), partition)


@jax.jit
def product_and_gradient(graph, x, g):
    out, pull = jax.vjp(functools.partial(multiply, graph), x)
    return out, pull(g)[0]


def test_layout_holds_the_matrix_in_both_orientations(problem, graph):
    matrix = problem[2].astype(np.float32)
    np.testing.assert_array_equal(dense(graph), matrix)
    np.testing.assert_array_equal(dense(graph.transpose), matrix.T)


def test_entries_know_which_edge_they_were(problem, graph):
    edges, weights = problem[:2]
    for side in (graph.forward, graph.backward):
        real = np.asarray(side.edges) < edges.shape[1]
        kept = np.asarray(side.edges)[real]
        np.testing.assert_array_equal(np.sort(kept), np.arange(len(weights)))
        np.testing.assert_array_equal(
            np.asarray(side.weights)[real], weights[kept].astype(np.float32)
        )
        assert not np.asarray(side.weights)[~real].any()


def test_product_and_gradient_equal_the_dense_ones(problem, graph):
    *_, matrix, x, g = problem
    out, gradient = product_and_gradient(graph, x, g)
    assert_within(out, matrix @ x, bound(matrix, x))
    assert_within(gradient, matrix.T @ g, bound(matrix.T, g))
    assert not np.asarray(out)[[0, 1, 2, 3, 9, 30, 31]].any()
    assert not np.asarray(gradient)[[0, 11, 23]].any()


@pytest.fixture(scope="module")
def lone(problem, one):
    return make_graph(*problem[:2], (ROWS, COLUMNS), one)


@jax.jit
def rows_and_gradient(graph, x, ids, g):
    out, pull = jax.vjp(lambda x: multiply_rows(graph, x, ids), x)
    return out, pull(g)[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_some_rows_and_their_gradient_equal_the_dense_ones(problem, lone, data):
    # Few shapes, as each is compiled. Some rows have no entries.
    shape = data.draw(st.sampled_from([(0,), (1,), (9,), (40, 2)]))
    width = data.draw(st.sampled_from([1, 16, 64, 70]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kinds = data.draw(st.integers(1, 2 * ROWS))
    ids = rng.integers(-ROWS, ROWS, kinds)[rng.integers(0, kinds, shape)]
    x = rng.normal(size=(COLUMNS, width)).astype(np.float32)
    g = rng.normal(size=(*shape, width)).astype(np.float32)
    matrix = problem[2][ids.reshape(-1)]
    out, gradient = rows_and_gradient(lone, x, ids.astype(np.int32), g)
    want, flat = matrix @ x, g.reshape(-1, width)
    assert out.shape == g.shape
    assert_within(out.reshape(flat.shape), want, bound(matrix, x))
    assert_within(gradient, matrix.T @ flat, bound(matrix.T, flat))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_some_rows_are_those_of_the_whole_product(problem, lone, graph, dtype):
    assert picks(lone) == native.available()
    # On a mesh it is the whole product that is cut.
    assert picks(graph) == (graph.mesh.size == 1 and native.available())
    ids = np.int32([[3, -1], [20, 3]])
    x = jnp.asarray(problem[3], dtype)
    for each in (lone, graph):
        out = jax.jit(multiply_rows)(each, x, ids)
        assert out.dtype == x.dtype
        np.testing.assert_array_equal(out, jax.jit(multiply)(each, x)[ids])


def test_some_rows_of_some_edges(problem, lone):
    edges, *_, x, g = problem
    keep = np.random.default_rng(2).random(edges.shape[1]) < 0.3
    pruned = jax.jit(subset, static_argnums=2)(lone, keep, int(keep.sum()))
    ids = np.arange(ROWS, dtype=np.int32)[::-1]
    got, back = rows_and_gradient(pruned, x, ids, g)
    matrix = dense(pruned)[ids]
    np.testing.assert_allclose(got, matrix @ x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(back, matrix.T @ g, rtol=0, atol=1e-6)


def test_bfloat16_is_summed_in_float32(problem, graph):
    *_, matrix, x, g = problem
    x, g = jnp.asarray(x, jnp.bfloat16), jnp.asarray(g, jnp.bfloat16)
    for got, left, right in zip(
        product_and_gradient(graph, x, g),
        (matrix, matrix.T),
        (np.asarray(x, np.float64), np.asarray(g, np.float64)),
        strict=True,
    ):
        want = left @ right
        assert got.dtype == jnp.bfloat16
        # Only the result is rounded to 8 bits, once.
        rounding = np.abs(want) * 2.0**-8
        assert_within(got, want, rounding + bound(left, right))


def test_products_are_linear_in_the_transpose_too(problem, graph):
    *_, matrix, _, g = problem
    x = jax.jit(lambda graph, g: multiply(graph.transpose, g))(graph, g)
    assert_within(x, matrix.T @ g, bound(matrix.T, g))


def test_no_gradient_reaches_the_weights(problem, one):
    edges, weights, _, x, _ = problem
    graph = make_graph(edges, weights, (ROWS, COLUMNS), one)
    gradient = jax.grad(lambda graph: multiply(graph, x).sum(), allow_int=True)(
        graph
    )
    assert not np.asarray(gradient.forward.weights).any()


@pytest.mark.parametrize("side", ["forward", "backward"])
def test_the_segment_sum_of_accelerators_is_the_same(problem, partition, side):
    """The product that runs where there is no native kernel."""
    edges, weights, matrix, x, g = problem
    matrix, x = (matrix, x) if side == "forward" else (matrix.T, g)
    graph = make_graph(edges, weights, (ROWS, COLUMNS), partition)
    # Of the one block.
    rows = jax.tree.map(lambda v: v[:, 0], getattr(graph, side))
    product = jax.vmap(exchange._segment_product, in_axes=(0, None))
    out, half = jax.jit(
        lambda rows, x: (product(rows, x), product(rows, x.astype("bfloat16")))
    )(rows, x)
    out = np.asarray(out).reshape(len(matrix), WIDTH)
    assert_within(out, matrix @ x, bound(matrix, x))
    assert half.dtype == jnp.bfloat16
    half = np.asarray(half, np.float64).reshape(out.shape)
    x = np.asarray(x.astype("bfloat16"), np.float64)
    rounding = np.abs(matrix @ x) * 2.0**-8
    assert_within(half, matrix @ x, rounding + bound(matrix, x))


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, ROWS - 1), max_size=9))
@settings(max_examples=25)
def test_any_matrix(one, seed, empty):
    # 500 of 768 cells, always: one shape, and so one compilation.
    edges, weights = random_edges(seed, 500, tuple(empty))
    graph = make_graph(edges, weights, (ROWS, COLUMNS), one)
    matrix = as_dense(edges, weights)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(COLUMNS, WIDTH)).astype(np.float32)
    g = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    out, gradient = product_and_gradient(graph, x, g)
    assert_within(out, matrix @ x, bound(matrix, x))
    assert_within(gradient, matrix.T @ g, bound(matrix.T, g))


@functools.partial(jax.jit, static_argnums=2)
def subset_and_products(graph, keep, size, x, g):
    some = subset(graph, keep, size)
    return some, *product_and_gradient(some, x, g)


def check_subset(problem, graph, size):
    edges, _, _, x, g = problem
    keep = np.zeros(edges.shape[1], bool)
    keep[np.random.default_rng(size).permutation(keep.size)[:size]] = True
    matrix = reference.normalised(as_dense(edges[:, keep], 1.0))
    some, out, gradient = subset_and_products(graph, keep, size, x, g)
    # rsqrt of two degrees, and a product: four roundings.
    tolerance = 4 * 2.0**-23 * matrix
    assert_within(dense(some), matrix, tolerance)
    assert_within(dense(some.transpose), matrix.T, tolerance.T)
    assert_within(out, matrix @ x, 4 * bound(matrix, x, 2.0**-23))
    assert_within(gradient, matrix.T @ g, 4 * bound(matrix.T, g, 2.0**-23))


def test_subset_is_normalised_anew(problem, graph):
    check_subset(problem, graph, 40)


@pytest.mark.parametrize("exchange", some(EXCHANGES, "pull"))
@pytest.mark.parametrize("size", some([1, 150], 150))
def test_subset_of_any_size(problem, eight, size, exchange):
    edges, weights, *_ = problem
    eight = dataclasses.replace(eight, exchange=exchange)
    graph = make_graph(edges, weights, (ROWS, COLUMNS), eight)
    check_subset(problem, graph, size)


def test_a_subset_of_a_subset(problem, one):
    edges, weights, *_ = problem
    graph = make_graph(edges, weights, (ROWS, COLUMNS), one)
    first = np.arange(150) % 3 > 0
    second = np.arange(150) % 2 > 0
    both = first & second
    again = jax.jit(subset, static_argnums=2)
    some = again(again(graph, first, 100), both, int(both.sum()))
    np.testing.assert_allclose(
        dense(some),
        reference.normalised(as_dense(edges[:, both], 1.0)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_matrix_without_entries(partition, exchange):
    none = np.zeros((2, 0), np.int64)
    partition = dataclasses.replace(partition, exchange=exchange)
    graph = make_graph(none, np.zeros(0), (ROWS, COLUMNS), partition)
    product = jax.jit(multiply)(graph, np.ones((COLUMNS, 2)))
    assert not np.asarray(product).any()


def test_rows_must_cut_evenly(eight):
    with pytest.raises(ValueError, match="9 rows do not cut into 8 shards"):
        make_graph(np.zeros((2, 1), int), np.ones(1), (9, 8), eight)
