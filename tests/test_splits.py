"""Splits and cores of interactions, against plain Python."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.data.sources.core import core
from neggen_jax.data.sources.splits import SPLITTERS, split
from neggen_jax.errors import InputError

TRAIN, VALID, TEST = range(3)
# Distinct pairs of user and item, each with a time; times repeat.
LOGS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 9)),
    min_size=1,
    max_size=80,
    unique_by=lambda row: row[:2],
)


def columns(rows):
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def by_user(rows, labels):
    found = collections.defaultdict(collections.Counter)
    for (user, _, _), label in zip(rows, labels, strict=True):
        found[user][int(label)] += 1
    return found


@given(LOGS, st.integers(0, 3))
def test_random_gives_each_user_the_shares(rows, seed):
    labels = split("random", *columns(rows), seed=seed)
    for counts in by_user(rows, labels).values():
        n = counts.total()
        held = max(1, n // 10)
        want = {1: (1, 0, 0), 2: (1, 0, 1)}.get(n, (n - 2 * held, held, held))
        assert tuple(counts[label] for label in range(3)) == want


@given(LOGS, st.sampled_from(sorted(SPLITTERS)), st.randoms())
def test_the_order_of_rows_does_not_matter(rows, word, random):
    labels = dict(zip(rows, split(word, *columns(rows)).tolist(), strict=True))
    random.shuffle(rows)
    again = split(word, *columns(rows)).tolist()
    assert dict(zip(rows, again, strict=True)) == labels


def test_seeds_and_ratios():
    users = np.repeat(np.arange(20), 30)
    items = np.tile(np.arange(30), 20)
    one = split("random", users, items, None, seed=1)
    np.testing.assert_array_equal(
        one, split("random", users, items, None, seed=1)
    )
    assert (one != split("random", users, items, None, seed=2)).any()
    assert np.bincount(one).tolist() == [20 * 24, 20 * 3, 20 * 3]
    halves = split("random", users, items, None, ["0.5", "0.2", "0.3"])
    assert np.bincount(halves).tolist() == [20 * 15, 20 * 6, 20 * 9]
    # Held out are others for each user: not always the same items.
    assert len({tuple(one[users == user]) for user in range(20)}) > 10


@given(LOGS)
def test_leave_last_out(rows):
    labels = split("leave_last_out", *columns(rows)).tolist()
    of = dict(zip(rows, labels, strict=True))
    for user in {row[0] for row in rows}:
        own = sorted(
            (r for r in rows if r[0] == user), key=lambda r: (r[2], r[1])
        )
        want = [TRAIN] * len(own)
        if len(own) > 1:
            want[-1] = TEST
        if len(own) > 2:
            want[-2] = VALID
        assert [of[row] for row in own] == want


@given(LOGS)
def test_temporal_cuts_time_twice_for_all(rows):
    labels = split("temporal", *columns(rows))
    times = np.array([row[2] for row in rows])
    # Never later in a split that comes first, and no time in two of them.
    for early, late in ((TRAIN, VALID), (VALID, TEST), (TRAIN, TEST)):
        before, after = times[labels == early], times[labels == late]
        if before.size and after.size:
            assert before.max() < after.min()
    # Every split begins at the place of its share, or with its time.
    ordered = np.sort(times)
    assert (labels == TRAIN).sum() <= math.ceil(0.8 * len(rows))
    place = math.ceil(round(0.9 * len(rows), 6))
    if place < len(rows):
        assert (labels == TEST).sum() == (times >= ordered[place]).sum()


def test_temporal_meets_the_shares_where_times_differ():
    n = 1000
    times = np.random.default_rng(0).permutation(n)
    labels = split("temporal", np.arange(n) % 7, np.arange(n), times)
    assert np.bincount(labels).tolist() == [800, 100, 100]


@pytest.mark.parametrize(
    ("word", "times", "ratios", "message"),
    [
        ("randm", None, (0.8, 0.1, 0.1), "'randm'.*did you mean 'random'"),
        ("temporal", None, (0.8, 0.1, 0.1), "needs timestamps"),
        ("leave_last_out", None, (0.8, 0.1, 0.1), "needs timestamps"),
        ("random", None, (0.8, 0.1), "no shares.*0.8,0.1"),
        ("random", None, (0.8, 0.1, 0.3), "no shares"),
        ("random", None, (1.2, -0.1, -0.1), "no shares"),
        ("random", None, (0, 0.5, 0.5), "no shares"),
        ("random", None, ("a", "b", "c"), "no shares.*a,b,c"),
        ("random", None, (float("nan"), 0.5, 0.5), "no shares"),
    ],
)
def test_splits_that_cannot_be(word, times, ratios, message):
    rows = np.arange(5)
    with pytest.raises(InputError, match=f"(?s){message}"):
        split(word, rows, rows, times, ratios)


@given(LOGS, st.integers(0, 4))
def test_core_is_the_largest_part_that_holds(rows, k):
    left = list(rows)
    while True:
        counts = collections.Counter(("u", row[0]) for row in left)
        counts.update(("i", row[1]) for row in left)
        kept = [
            r for r in left if counts["u", r[0]] >= k and counts["i", r[1]] >= k
        ]
        if len(kept) == len(left):
            break
        left = kept
    users, items, _ = columns(rows)
    if not left:
        with pytest.raises(InputError, match=f"left of the {k}-core"):
            core(users, items, k)
        return
    inside = core(users, items, k)
    assert [r for r, keep in zip(rows, inside, strict=True) if keep] == left
