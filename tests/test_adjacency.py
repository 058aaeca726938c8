"""Pairs sorted by one end."""

import dataclasses

import numpy as np
import pytest
from conftest import make_catalog
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax import adjacency
from neggen_jax.adjacency import Adjacency, Index, ordered

ROWS, ENDS = 7, 5
pairs = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(0, ENDS - 1)), unique=True
)


def columns(drawn):
    table = np.array(drawn, np.int32).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def listed(made, first, last):
    """Pairs of some rows, as (row, end, name)."""
    return [
        triple
        for block in made.blocks(first, last)
        for triple in zip(*(column.tolist() for column in block), strict=True)
    ]


@given(pairs, st.integers(1, 4))
def test_rows_hold_their_pairs(drawn, block):
    rows, ends = columns(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adjacency, "BLOCK", block)
        made = Adjacency.make(rows, ends, ROWS)
        assert (len(made), made.size) == (len(drawn), ROWS)
        numbered = sorted((*pair, n) for n, pair in enumerate(drawn))
        assert listed(made, 0, ROWS) == numbered
        assert listed(made, 2, 5) == [t for t in numbered if 2 <= t[0] < 5]
        degrees = [sum(pair[0] == row for pair in drawn) for row in range(ROWS)]
        assert made.degrees.tolist() == degrees
        assert made.longest == max(degrees)
        assert ordered(rows, ends) == (drawn == sorted(drawn))


@given(pairs)
def test_both_orders_call_a_pair_the_same(drawn):
    users, items = columns(drawn)
    index = Index.make(users, items, ROWS, ENDS)
    by_user = {(u, i): n for u, i, n in listed(index.by_user, 0, ROWS)}
    by_item = {(u, i): n for i, u, n in listed(index.by_item, 0, ENDS)}
    assert by_user == by_item == {pair: n for n, pair in enumerate(drawn)}


def test_a_validated_catalogue_is_sorted():
    sound = make_catalog()
    rng = np.random.default_rng(0)
    splits = {}
    for name, part in sound.splits.items():
        order = rng.permutation(len(part))
        splits[name] = dataclasses.replace(
            part,
            users=part.users[order],
            items=part.items[order],
            timestamps=(part.users * 1000 + part.items)[order],
        )
    found = dataclasses.replace(sound, splits=splits).validate()
    for name, part in found.splits.items():
        np.testing.assert_array_equal(part.users, sound.splits[name].users)
        np.testing.assert_array_equal(part.items, sound.splits[name].items)
        np.testing.assert_array_equal(
            part.timestamps, part.users * 1000 + part.items
        )
    assert found.index.by_user.numbers is None
    assert found.validate() is found
