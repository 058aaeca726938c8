"""The exchanges of sparse products: the same numbers, other memory.

A row of n entries is summed in float32 in some order; each exchange has its
own, and each is within `bound`, about n eps |A||x|, of the exact sum. So any
two differ by at most twice that.
"""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
from conftest import SOME_MESHES, on_mesh, some
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sparse import (
    assert_within,
    bound,
    product_and_gradient,
    subset_and_products,
)
from training import make_run

from neggen_jax.ops.sparse import dense, make_graph
from neggen_jax.partition import EXCHANGES, RULES

pytestmark = pytest.mark.usefixtures("small_rounds")

# Neither divides by 2 or by 8.
ROWS, COLUMNS, WIDTH = 29, 21, 5
ALL = ("data", "model")
OVER_ALL = {**RULES, "user": ALL, "item": ALL, "edge": ALL}


def graph_of(matrix, partition, exchange):
    """The graph of a matrix, padded to the mesh."""
    edges = np.stack(np.nonzero(matrix))
    shape = tuple(partition.padded(size, "edge") for size in matrix.shape)
    partition = dataclasses.replace(partition, exchange=exchange)
    return make_graph(edges, matrix[tuple(edges)], shape, partition)


def padded(values, rows):
    return np.pad(values, ((0, rows - len(values)), (0, 0)))


def products(matrix, partition, exchange, x, g):
    """Product and gradient, without padding."""
    graph = graph_of(matrix, partition, exchange)
    rows, columns = dense(graph).shape
    out, gradient = product_and_gradient(
        graph, padded(x, columns), padded(g, rows)
    )
    assert not np.asarray(out)[len(g) :].any()
    assert not np.asarray(gradient)[len(x) :].any()
    return np.asarray(out)[: len(g)], np.asarray(gradient)[: len(x)]


def check(matrix, partition, seed=0, exchanges=EXCHANGES):
    """Exchanges against the dense reference, and each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(matrix.shape[1], WIDTH)).astype(np.float32)
    g = rng.normal(size=(matrix.shape[0], WIDTH)).astype(np.float32)
    limits = bound(matrix, x), bound(matrix.T, g)
    every = [products(matrix, partition, name, x, g) for name in exchanges]
    for out in every:
        for got, left, right, limit in zip(
            out, (matrix, matrix.T), (x, g), limits, strict=True
        ):
            assert_within(got, left @ right.astype(np.float64), limit)
    for first, *others, limit in zip(*every, limits, strict=True):
        for other in others:
            assert_within(first, np.asarray(other, np.float64), 2 * limit)


def random_matrix(seed, share=0.3):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(ROWS, COLUMNS))
    return np.where(rng.random(matrix.shape) < share, matrix, 0)


@pytest.mark.parametrize("mesh", SOME_MESHES, ids=str)
def test_all_equal_the_dense_product_and_gradient(mesh):
    check(random_matrix(0), on_mesh(*mesh))


@pytest.mark.parametrize("mesh", some([(4, 2), (2, 4)], (2, 4)), ids=str)
def test_shards_over_several_axes_of_the_mesh(mesh):
    partition = dataclasses.replace(on_mesh(*mesh), rules=OVER_ALL)
    matrix = random_matrix(1)
    graph = graph_of(matrix, partition, "ring")
    shards = mesh[0] * mesh[1]
    assert graph.forward.columns.shape[:2] == (shards, shards)
    assert graph.axis == ALL
    check(matrix, partition)


@st.composite
def matrices(draw):
    """With empty shards, single rows and columns, or no entries at all."""
    matrix = random_matrix(
        draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.05, 0.5, 1]))
    )
    for lines in (matrix, matrix.T):
        every = range(len(lines))
        few = st.sets(st.sampled_from(every), max_size=3)
        kept = draw(st.one_of(st.just(set(every)), few))
        lines[sorted(set(every) - kept)] = 0
    return matrix


@pytest.mark.slow
@given(
    matrices(), st.sampled_from([(1, 8), (4, 2)]), st.sampled_from(EXCHANGES)
)
@settings(max_examples=6)
def test_any_matrix(matrix, mesh, exchange):
    check(matrix, on_mesh(*mesh), exchanges=(exchange,))


def test_these_take_several_rounds(eight):
    graph = graph_of(random_matrix(0), eight, "pull")
    shards, rounds, *_ = graph.forward.send.shape
    assert shards == 8
    assert rounds > 1
    assert graph.backward.pushes


def test_one_shard_makes_one_program(one):
    """And on CPU it is that of the native kernel."""
    first, *others = [
        graph_of(random_matrix(2), one, name) for name in EXCHANGES
    ]
    assert first.forward.indptr is not None
    for other in others:
        assert jax.tree.structure(first) == jax.tree.structure(other)
        jax.tree.map(np.testing.assert_array_equal, first, other)


@pytest.mark.slow
def test_subset_does_not_depend_on_the_exchange(eight):
    matrix = random_matrix(3)
    keep = np.random.default_rng(0).random(np.count_nonzero(matrix)) < 0.4
    x, g = np.ones((24, 1), np.float32), np.ones((32, 1), np.float32)
    some = [
        subset_and_products(
            graph_of(matrix, eight, name), keep, int(keep.sum()), x, g
        )[0]
        for name in EXCHANGES
    ]
    # The same operations on the same numbers.
    for graph in some[1:]:
        np.testing.assert_array_equal(dense(graph), dense(some[0]))
        np.testing.assert_array_equal(
            dense(graph.transpose), dense(some[0].transpose)
        )


def compiled_text(partition, exchange):
    graph = graph_of(random_matrix(4), partition, exchange)
    rows, columns = dense(graph).shape
    x, g = (
        partition.put(np.ones((size, WIDTH), np.float32), axis, None)
        for size, axis in ((columns, "item"), (rows, "user"))
    )
    return product_and_gradient.lower(graph, x, g).compile().as_text()


@pytest.mark.parametrize("mesh", [(4, 2), (1, 8)], ids=str)
def test_the_program_does_not_grow_with_the_devices(mesh):
    """One exchange in a loop for the product, and one for its gradient."""
    partition = on_mesh(*mesh)
    text = compiled_text(partition, "ring")
    assert len(re.findall(r" collective-permute(?:-start)?\(", text)) == 2
    assert " all-gather" not in text
    text = compiled_text(partition, "pull")
    assert len(re.findall(r" all-to-all(?:-start)?\(", text)) == 2
    assert " all-gather" not in text
    text = compiled_text(partition, "gather")
    assert " collective-permute" not in text
    assert " all-gather" in text


def largest_array(text):
    """Elements of the largest float array in a compiled program.

    It is the one that each device runs, so shapes are what a device holds.
    """
    shapes = re.findall(r"\b(?:f|bf)\d+\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def largest(run):
    """That of the training dispatch."""
    state, _ = run.start()
    prepared = jax.jit(run.program.prepare)(run.inputs, np.int32(0))
    dispatch = jax.jit(run.program.dispatch, donate_argnums=0)
    lowered = dispatch.lower(state, prepared, next(run.batches(0)), np.int32(3))
    return largest_array(lowered.compile().as_text())


@pytest.mark.parametrize("argument", ["lightgcn", "mci"])
def test_no_device_holds_a_table_with_the_ring(argument):
    """A batch is smaller than the smaller table, of 48 rows with padding."""
    dim = 32
    make = functools.partial(
        make_run, argument, (1, 8), encoder__dim=dim, train__batch_size=16
    )
    assert largest(make(mesh__exchange="gather")) >= 64 * dim
    assert largest(make(mesh__exchange="ring")) < 48 * dim


def test_no_device_holds_a_table_to_pull(eight):
    """It holds its shard, an eighth, and less than that in each round.

    Of this table: its rounds are of whole tiles, 8 rows from each of 8 shards.
    """
    rows, count = 4096, 10_000
    rng = np.random.default_rng(5)
    edges = np.divmod(rng.choice(rows**2, count, replace=False), rows)
    x = eight.put(rng.normal(size=(rows, WIDTH)), "item", None)
    sizes = {}
    for exchange in ("gather", "pull"):
        partition = dataclasses.replace(eight, exchange=exchange)
        graph = make_graph(edges, np.ones(count), (rows, rows), partition)
        lowered = product_and_gradient.lower(graph, x, x)
        sizes[exchange] = largest_array(lowered.compile().as_text())
    assert sizes["gather"] >= rows * WIDTH
    assert sizes["pull"] <= rows * WIDTH / 8
