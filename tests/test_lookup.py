"""Rows of tables that are spread over a whole mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neggen_jax.ops.lookup import Spread, ask, take
from neggen_jax.partition import make_partition

ROWS, DIM = 64, 3


def drawn(kind, shape):
    """Ids under several skews."""
    rng = np.random.default_rng(0)
    if kind == "uniform":
        ids = rng.integers(0, ROWS, shape)
    elif kind == "one":
        ids = np.full(shape, 41)
    else:
        # All distinct, and all held by one device: as many rounds as can be.
        ids = np.resize(np.arange(8, 16), shape)
    return jnp.asarray(ids, jnp.int32)


@pytest.mark.parametrize("kind", ["uniform", "one", "neighbours"])
@pytest.mark.parametrize(
    # The share of a device need not cut over those of "model".
    ("mesh", "shape"),
    [
        ((8, 1), (32, 2)),
        ((4, 2), (20,)),
        ((1, 8), (32, 2)),
        ((1, 8), (13,)),
        ((2, 4), (10, 3)),
    ],
)
def test_rows_and_gradients_are_those_of_the_table(mesh, shape, kind):
    partition = make_partition(*mesh, tables="all")
    spread = Spread(partition.mesh, partition.rules["user"])
    rng = np.random.default_rng(1)
    table = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    ids = drawn(kind, shape)
    assert spread.cuts(ROWS, len(ids))
    weights = rng.normal(size=(*ids.shape, DIM)).astype(np.float32)

    def loss(table, ids, weights):
        rows = take(table, ids, spread)
        return (rows * weights).sum(), rows

    (_, rows), gradient = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        out_shardings=((None, None), partition.sharding("user", None)),
    )(
        partition.put(table, "user", None),
        partition.put(np.asarray(ids), "batch"),
        partition.put(weights, "batch"),
    )
    np.testing.assert_array_equal(rows, table[ids])
    want = np.zeros((ROWS, DIM))
    np.add.at(want, np.asarray(ids), weights.astype(np.float64))
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "one", "neighbours"])
@pytest.mark.parametrize(
    ("mesh", "shape"), [((8, 1), (32, 50)), ((4, 2), (20,)), ((1, 8), (13, 3))]
)
def test_each_question_has_its_own_answer(mesh, shape, kind):
    """Also many about one row, for which there is no room in one round."""
    partition = make_partition(*mesh, tables="all")
    spread = Spread(partition.mesh, partition.rules["user"])
    rng = np.random.default_rng(2)
    table = rng.integers(100, size=(8, ROWS // 8)).astype(np.int32)
    ids = np.asarray(drawn(kind, shape))
    about = rng.integers(100, size=(2, *shape)).astype(np.int32)
    answers = jax.jit(
        lambda table, ids, *about: ask(
            {"here": table},
            lambda held, rows, x, y: held["here"][rows] * x - y,
            ids,
            about,
            spread,
            ROWS // 8,
        )
    )(
        partition.put(table, "user"),
        *(partition.put(x, "batch") for x in (ids, *about)),
    )
    want = table.reshape(-1)[ids] * about[0] - about[1]
    np.testing.assert_array_equal(answers, want)


def test_a_device_sees_its_own_share_of_the_batch():
    """The compiler by itself adds rows of the whole batch up everywhere."""
    partition = make_partition(4, 2, tables="all")
    spread = Spread(partition.mesh, partition.rules["user"])
    batch = 4096
    shapes = (
        partition.abstract((8192, 8), np.float32, "user"),
        partition.abstract((batch,), np.int32, "batch"),
    )

    def largest(how):
        step = jax.grad(lambda table, ids: jnp.sin(take(table, ids, how)).sum())
        text = jax.jit(step).lower(*shapes).compile().as_text()
        found = re.findall(r"\bf32\[([\d,]+)\]", text)
        return max(np.prod([int(n) for n in x.split(",")]) for x in found)

    assert largest(None) >= batch * 8
    # Its rows of the table, or those of its part of the batch with room for
    # uneven draws.
    assert largest(spread) < batch * 8 / 2


def test_other_tables_are_left_to_the_compiler():
    mesh = make_partition(4, 2, tables="all").mesh
    table = jnp.arange(ROWS * DIM, dtype=jnp.float32).reshape(ROWS, DIM)
    ids = jnp.arange(8) * 7
    assert Spread(mesh, ("data", "model")).cuts(ROWS, 8)
    assert not Spread(mesh, "model").cuts(ROWS, 8)
    assert not Spread(mesh, ("data", "model")).cuts(63, 8)
    assert not Spread(mesh, ("data", "model")).cuts(ROWS, 6)
    spread = Spread(mesh, ("data", "model"))
    for some in (table[:63], table[:, 0]):
        np.testing.assert_array_equal(take(some, ids, spread), some[ids])
    np.testing.assert_array_equal(take(table, ids, None), table[ids])
