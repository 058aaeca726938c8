"""Membership and the k-th non-member, against sets."""

import itertools
import math
import re

import jax
import numpy as np
import pytest
from conftest import SOME_MESHES, some
from hypothesis import given, settings
from hypothesis import strategies as st

from neggen_jax.adjacency import Adjacency
from neggen_jax.ops.positives import (
    abstract_positives,
    contains,
    contains_each,
    kth_negative,
    kth_positive,
    make_positives,
    num_negatives,
    num_positives,
)
from neggen_jax.partition import make_partition

contains = jax.jit(contains)
contains_each = jax.jit(contains_each)
kth_negative = jax.jit(kth_negative)
kth_positive = jax.jit(kth_positive)
num_negatives = jax.jit(num_negatives)
num_positives = jax.jit(num_positives)


def check_everything(rows, num_items, partition):
    """Asks for every user and item, and for every k that exists."""
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    items = np.array([item for row in rows for item in row], int)
    order = np.random.default_rng(0).permutation(len(users))
    positives = make_positives(
        Adjacency.make(users[order], items[order], len(rows)),
        num_items,
        partition,
    )
    every = np.indices((len(rows), num_items), np.int32)
    want = np.array([[i in row for i in range(num_items)] for row in rows])
    np.testing.assert_array_equal(contains(positives, *every), want)
    # In an order of its own, and some of them twice.
    items = np.random.default_rng(1).integers(num_items, size=num_items + 3)
    got = contains_each(positives, np.arange(len(rows)), items)
    np.testing.assert_array_equal(got, want[:, items])
    left = num_negatives(positives, np.arange(len(rows)))
    np.testing.assert_array_equal(left, (~want).sum(axis=1))
    # Past a user's last non-positive there is nothing to ask for.
    asked = every[1] < np.asarray(left)[:, None]
    got = np.asarray(kth_negative(positives, *every))
    np.testing.assert_array_equal(got[asked], np.nonzero(~want)[1])
    count = num_positives(positives, np.arange(len(rows)))
    np.testing.assert_array_equal(count, want.sum(axis=1))
    asked = every[1] < np.asarray(count)[:, None]
    got = np.asarray(kth_positive(positives, *every))
    np.testing.assert_array_equal(got[asked], np.nonzero(want)[1])


def test_every_set_of_six_items(one):
    rows = [
        set(row)
        for size in range(7)
        for row in itertools.combinations(range(6), size)
    ]
    assert len(rows) == 64
    check_everything(rows, 6, one)


@given(st.permutations(range(8 * 16)), st.integers(0, 7))
@settings(max_examples=40)
def test_any_rows(one, cells, full):
    # Always 40 pairs of 8 users and 16 items, so that shapes repeat; one
    # user has all items but one, the longest row that may be.
    taken = {(full, item) for item in range(15)}
    for cell in cells:
        user, item = divmod(cell, 16)
        if len(taken) < 40 and user != full:
            taken.add((user, item))
    rows = [{i for u, i in taken if u == user} for user in range(8)]
    check_everything(rows, 16, one)


def test_users_with_more_positives_than_one_round_asks_for(one):
    rng = np.random.default_rng(0)
    rows = [set(rng.choice(200, n, False)) for n in (0, 1, 32, 33, 150)]
    check_everything(rows, 200, one)


@pytest.mark.parametrize("tables", ["model", "all"])
# A batch of one for each user cuts over the devices, or does not.
@pytest.mark.parametrize("count", some([24, 19], 19))
@pytest.mark.parametrize("mesh", SOME_MESHES[1:])
def test_the_shard_that_has_a_user_answers(mesh, count, tables):
    rng = np.random.default_rng(0)
    partition = make_partition(*mesh, tables=tables)
    rows = [set(rng.choice(16, rng.integers(16), False)) for _ in range(count)]
    check_everything(rows, 16, partition)
    shards = mesh[0] * mesh[1] if tables == "all" else mesh[1]
    positives = make_positives(
        Adjacency.make(np.arange(count), np.zeros(count, int), count),
        16,
        partition,
    )
    held = {s.data.shape for s in positives.items.addressable_shards}
    assert held == {(1, -(-count // shards))}


def test_a_device_answers_for_its_own_users_alone():
    """Not the whole batch on each of them, which grows with the pod."""
    partition, batch = make_partition(4, 2, tables="all"), 4096
    positives = abstract_positives(8192, 1024, 512, partition, longest=9)
    users = partition.abstract((batch,), np.int32, "batch")
    text = kth_negative.lower(positives, users, users).compile().as_text()
    # A mesh of 4 x 2: its share, and room for draws that are uneven.
    shapes = re.findall(r"\b[su]\d+\[([\d,]+)\]", text)
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert largest < batch / 2


def test_rows_of_every_length(one):
    """Every search depth, at the lengths where it changes."""
    for longest in (1, 2, 3, 4):
        rows = [set(range(0, 2 * n, 2)) for n in range(longest + 1)]
        check_everything(rows, 2 * longest + 1, one)


def test_indices_near_the_end_of_int32(one):
    top = 2**31 - 2
    positives = make_positives(
        Adjacency.make(np.array([0, 0]), np.array([top, 3]), 1), top + 1, one
    )
    user = np.zeros(3, np.int32)
    k = np.array([2, 3, top - 2], np.int32)
    np.testing.assert_array_equal(
        kth_negative(positives, user, k), [2, 4, top - 1]
    )
    item = np.array([3, top - 1, top], np.int32)
    np.testing.assert_array_equal(
        contains(positives, user, item), [True, False, True]
    )


def test_any_shape_is_kept(one):
    positives = make_positives(
        Adjacency.make(np.array([1]), np.array([4]), 3), 9, one
    )
    users = np.array([[[1, 0], [1, 2]]], np.int32)
    items = np.full_like(users, 4)
    np.testing.assert_array_equal(
        contains(positives, users, items), [[[True, False], [True, False]]]
    )
    np.testing.assert_array_equal(
        kth_negative(positives, users, items), [[[5, 4], [5, 4]]]
    )
