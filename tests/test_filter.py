"""Products of bytes rule out only scores that cannot matter.

Lists have to be those of float32 to the last bit, with and without the filter
(`native.rank`): whatever the vectors are, however many scores are left, and
whoever else is asked about.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neggen_jax.ops import native

pytestmark = pytest.mark.skipif(
    not native.has_vnni(), reason="there is no AVX-512 VNNI, or no compiler"
)
rank = jax.jit(native.rank, static_argnums=(4, 5))


def ranked(queries, items, k, pairs=(), count=None, filtered=True):
    """Scores as bits, as no NaN is equal to another, and items."""
    given = np.asarray(pairs, np.int32).reshape(-1, 2).T
    count = len(items) if count is None else count
    queries, items = (np.asarray(x, np.float32) for x in (queries, items))
    scores, found = rank(queries, items, tuple(given), count, k, filtered)
    scores = np.asarray(scores)
    return scores.view(np.int32), np.where(scores == -np.inf, -1, found)


def assert_same(*given, **more):
    ours = ranked(*given, **more)
    plain = ranked(*given, **more, filtered=False)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    return ours


def normal(rng, rows, dim):
    return rng.normal(size=(rows, dim))


def decades(rng, rows, dim):
    return normal(rng, rows, dim) * 10 ** rng.uniform(-2, 2, (rows, 1))


def one_direction(rng, rows, dim):
    return normal(rng, rows, dim) + 1000 * np.ones(dim)


def one_heavy_entry(rng, rows, dim):
    x = normal(rng, rows, dim)
    x[:, rng.integers(dim)] *= 500
    return x


def few_and_zeros(rng, rows, dim):
    return normal(rng, 9, dim)[rng.integers(0, 9, rows)] * (
        rng.random((rows, 1)) < 0.9
    )


def whole_numbers(rng, rows, dim):
    return rng.integers(-2, 3, (rows, dim))


def odd(rng, rows, dim):
    """With a few entries that have no bytes."""
    x = normal(rng, rows, dim)
    those = rng.integers(0, x.size, 1 + rows // 50)
    x.flat[those] = rng.choice([np.nan, np.inf, -np.inf, 1e30, -3e38], 1)
    return x


def as_floats(x):
    """In float32, of which the largest may be infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


KINDS = (
    normal,
    decades,
    one_direction,
    one_heavy_entry,
    few_and_zeros,
    whole_numbers,
    odd,
)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_vectors_are_ranked_as_without_it(data):
    # Few shapes, as each is compiled: panels of 64 queries, groups of 12
    # items, chunks of 3,072; bytes by fours, floats by sixteens.
    rows, held, dim, k = data.draw(
        st.sampled_from(
            [
                (1, 700, 1, 7),
                (70, 900, 3, 2),
                (64, 700, 17, 50),
                (9, 7000, 64, 5),
            ]
        )
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kinds = [data.draw(st.sampled_from(KINDS)) for _ in range(2)]
    scales = [data.draw(st.sampled_from([1, 1, 1e-20, 1e12])) for _ in range(2)]
    queries, items = (
        as_floats(kind(rng, n, dim) * scale)
        for kind, n, scale in zip(kinds, (rows, held), scales, strict=True)
    )
    count = data.draw(st.sampled_from([held, held - 5, 3, 0]))
    # Of some all the best.
    pairs = np.stack(
        [rng.integers(0, rows, 900), rng.integers(0, held, 900)], 1
    )
    assert_same(queries, items, k, pairs, count)


@pytest.mark.parametrize("dim", [16, 50, 128])
def test_lists_are_those_of_float64(dim):
    rng = np.random.default_rng(dim)
    queries, items = (
        normal(rng, n, dim).astype(np.float32) for n in (100, 8000)
    )
    pairs = np.stack(
        [np.arange(100).repeat(80), rng.integers(0, 8000, 8000)], 1
    )
    scores = queries.astype(np.float64) @ items.T.astype(np.float64)
    scores[pairs[:, 0], pairs[:, 1]] = -np.inf
    want = np.argsort(-scores, axis=1, kind="stable")[:, :50]
    bits, found = assert_same(queries, items, 50, pairs)
    # The same but where scores are as good as equal.
    best = np.take_along_axis(scores, want, axis=1)
    got = np.take_along_axis(scores, found, axis=1)
    np.testing.assert_allclose(got, best, rtol=0, atol=1e-4)
    np.testing.assert_allclose(bits.view(np.float32), got, rtol=0, atol=1e-4)
    assert (found == want).mean() > 0.999


# Of the best, the scores of others: few come near, so that bytes decide, and
# from the first chunk on there are enough to fill a list.
OTHERS = np.linspace(0, 0.5, 4000)
OTHERS[20:3000:60] = 0.999


def assert_the_last_are_best(query, others, best, shift):
    """Also where every vector is shifted, by what is none of its own."""
    items = np.concatenate([others, best])
    # With its opposite each: their mean is the shift.
    items = np.concatenate([items, -items]) + shift
    _, found = assert_same(query[None], items, len(best))
    assert sorted(found[0]) == list(range(len(others), len(others) + len(best)))


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_what_bytes_of_a_query_do_not_say(shift):
    # Its entries but the first are too small for a byte: the best items score
    # by these alone, and bytes tell nothing of them.
    signs = np.where(np.arange(63) % 3, 1.0, -1.0)
    query = np.r_[127, 0.49 * signs]
    best = np.tile(np.r_[0, signs], (5, 1))
    others = np.outer(OTHERS * 0.49 * 63 / 127, np.eye(64)[0])
    assert_the_last_are_best(query, others, best, shift)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_what_bytes_of_an_item_do_not_say(shift):
    # The same the other way round; and others have bytes that tell all.
    signs = np.where(np.arange(63) % 3, 1.0, -1.0)
    query = np.r_[0, signs]
    best = np.tile(np.r_[127, 0.49 * signs], (5, 1))
    others = np.outer(OTHERS * 0.49, query)
    assert_the_last_are_best(query, others, best, shift * np.eye(64)[0])


def test_of_equals_the_earlier_comes_first():
    rng = np.random.default_rng(0)
    items = normal(rng, 7000, 32).astype(np.float32)
    query = normal(rng, 1, 32).astype(np.float32)
    best = np.argmax(items @ query[0])
    places = [3, 500, 3100, 6999]
    items[places] = items[best]
    _, found = assert_same(query, items, 3)
    assert list(found[0]) == sorted({best, *places})[:3]


def test_a_list_is_of_its_query_alone():
    rng = np.random.default_rng(1)
    queries, items = normal(rng, 130, 20), normal(rng, 5000, 20)
    # Whose neighbours have no bytes, or leave too much.
    queries[5:60], queries[[70, 80]] = 0, np.nan
    scores, found = ranked(queries, items, 10)
    for row in (0, 63, 64, 129):
        alone = ranked(queries[row : row + 1], items, 10)
        np.testing.assert_array_equal(alone[0][0], scores[row])
        np.testing.assert_array_equal(alone[1][0], found[row])


def test_the_best_of_all_are_left_out():
    rng = np.random.default_rng(2)
    query, items = normal(rng, 1, 24), normal(rng, 4000, 24)
    order = np.argsort(-(items @ query[0]))
    pairs = [[0, item] for item in order[:3000]]
    _, found = assert_same(query, items, 20, pairs)
    np.testing.assert_array_equal(found[0], order[3000:3020])
