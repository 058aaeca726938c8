"""Counterfactuals on their way to a step: tables, batches and blocks."""

import jax
import numpy as np
import pytest
from conftest import ITEMS, SOME_MESHES, on_mesh
from rewritten import batch_columns, make_counterfactuals, standardised

from neggen_jax.data import moments, rewritten
from neggen_jax.data.inputs import sizes
from neggen_jax.errors import InputError


def assert_close(got, want):
    # Standardised numbers of order one, after a subtraction and a division.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got, want
    )


@pytest.fixture(scope="module")
def known():
    return make_counterfactuals()


@pytest.mark.parametrize("mesh", SOME_MESHES)
def test_tables_are_standardised_by_what_is_factual(known, catalog, mesh):
    partition = on_mesh(*mesh)
    rows = sizes(catalog, partition).item_rows
    placed = rewritten.place(known, rows, "tables", partition)
    got = rewritten.rows(placed, {}, None)
    assert all(len(part.factual) == rows for part in got.values())
    padding = jax.tree.map(lambda x: np.asarray(x)[ITEMS:], got)
    assert not any(leaf.any() for leaf in jax.tree.leaves(padding))
    real = jax.tree.map(lambda x: np.asarray(x)[:ITEMS], got)
    assert_close(real, standardised(known))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_bring_the_same_rows(known, one, dtype):
    items = np.array([3, 40, 3, 5, 17, 0])
    tables = rewritten.place(known, ITEMS, "tables", one, dtype)
    fed = rewritten.place(known, ITEMS, "batches", one, dtype)
    assert not fed.tables
    batch = batch_columns(known, items)
    got = rewritten.rows(fed, batch, items)
    want = rewritten.rows(tables, {}, items)
    assert {str(x.dtype) for x in jax.tree.leaves(got)} == {dtype, "bool"}
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_block_is_rows_of_the_tables(known, one):
    placed = rewritten.place(known, ITEMS, "tables", one)
    block = rewritten.block(rewritten.columns(known), 7, 9, one)
    got = rewritten.standardised(placed, block)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y[7:16]),
        got,
        placed.tables,
    )


def test_says_that_nobody_brings_them(known, one):
    fed = rewritten.place(known, ITEMS, "batches", one)
    with pytest.raises(InputError, match="not on the devices") as caught:
        rewritten.rows(fed, {}, None)
    assert caught.value.where == "config.data.counterfactuals.feed"


def test_moments_do_not_depend_on_blocks(known, monkeypatch):
    part = known.modalities["text"]
    monkeypatch.setattr(moments, "_BLOCK", 7)
    mean, scale = moments.moments("text", part.factual, part.described)
    there = part.factual[part.described].astype(np.float64)
    np.testing.assert_allclose(mean, there.mean(axis=0), rtol=1e-6)
    want = np.sqrt(np.square(there - there.mean(axis=0)).mean())
    np.testing.assert_allclose(scale, want, rtol=1e-6)
