"""Exact top-k against a stable sort of float64 scores.

Vectors of small whole numbers have exact products, so the reference must be
met to the last index; and they have few distinct scores, so ties are
everywhere. With random floats the rounding is the implementation's own, but
it must not depend on blocks or devices.
"""

import functools

import jax
import numpy as np
import pytest
from conftest import on_mesh

from neggen_jax.adjacency import Adjacency
from neggen_jax.ops import native, ranking
from neggen_jax.ops.ranking import TILE_ITEMS, TILE_QUERIES, tiled_size

QUERIES, ITEMS = 700, 1500


@pytest.fixture(params=["one kernel", "tile by tile"])
def form(request, monkeypatch):
    """Both ways to rank, where processors have both."""
    if request.param == "tile by tile":
        monkeypatch.setattr(native, "ranks", lambda mesh: False)
    return request.param


def whole_numbers(rows, dim, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, size=(rows, dim)).astype(np.float32)


def reference(queries, items, k, indptr=None, seen=None):
    """Scores, and items by falling score and rising index; -1 past the end."""
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    if indptr is not None:
        rows = np.repeat(np.arange(len(queries)), np.diff(indptr))
        scores[rows, seen] = -np.inf
    found = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, found, axis=1)
    return best, np.where(best == -np.inf, -1, found)


def blockwise(queries, items, k, partition, block, indptr=None, seen=None):
    """Ranks `block` queries at a time, as evaluation does."""
    if indptr is None:
        indptr, seen = np.zeros(len(queries) + 1, int), np.zeros(0, int)
    padding = tiled_size(len(items), partition) - len(items)
    table = partition.put(np.pad(items, ((0, padding), (0, 0))), "item", None)
    rank = jax.jit(
        functools.partial(
            ranking.top_k, k=k, num_items=len(items), partition=partition
        )
    )
    widest = max(
        np.diff(indptr)[start : start + block].sum()
        for start in range(0, len(queries), block)
    )
    parts = []
    for start in range(0, len(queries), block):
        rows = np.arange(start, min(start + block, len(queries)))
        padded = np.zeros((block, queries.shape[1]), queries.dtype)
        padded[: len(rows)] = queries[rows]
        excluded = ranking.exclude(rows, [Adjacency(indptr, seen)], widest)
        best = rank(partition.put(padded, "batch", None), table, excluded)
        parts.append([np.asarray(column)[: len(rows)] for column in best])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def some_seen(seed=3):
    """Items to leave out, by user; user 5 keeps 3 items, user 6 none."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(ITEMS)[: rng.integers(0, 60)] for _ in range(QUERIES)
    ]
    rows[5] = np.setdiff1d(np.arange(ITEMS), [0, 700, ITEMS - 1])
    rows[6] = np.arange(ITEMS)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return indptr, np.concatenate(rows)


def assert_equal(got, want):
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])


def test_equals_a_stable_sort_with_exclusions(partition, form):
    queries, items = whole_numbers(QUERIES, 6, 0), whole_numbers(ITEMS, 6, 1)
    seen = some_seen()
    want = reference(queries, items, 20, *seen)
    block = TILE_QUERIES * partition.shards("batch")
    assert_equal(blockwise(queries, items, 20, partition, block, *seen), want)
    assert sorted(want[1][5][:3]) == [0, 700, ITEMS - 1]
    assert (want[1][5][3:] == -1).all()
    assert (want[1][6] == -1).all()


def test_lists_longer_than_a_tile(eight, form):
    # A shard holds 512 items, and half of the shards hold none at all.
    queries, items = whole_numbers(50, 4, 0), whole_numbers(ITEMS, 4, 1)
    want = reference(queries, items, ITEMS)
    assert_equal(blockwise(queries, items, ITEMS, eight, 256), want)


def test_several_chunks_of_tiles(one, form):
    count = (ranking.TILES_AT_ONCE + 1) * TILE_ITEMS + 7
    queries, items = whole_numbers(40, 2, 0), whole_numbers(count, 2, 1)
    want = reference(queries, items, 50)
    # With two entries of five values each list is one long tie.
    assert (want[0] == want[0][:, :1]).mean() > 0.9
    assert count > 2 * 3072, "what the kernel in C++ holds at once"
    assert_equal(blockwise(queries, items, 50, one, 256), want)


@pytest.fixture(
    scope="module",
    params=[(64, True), (64, False), (384, False)],
    ids=["64, one kernel", "64, tile by tile", "384, tile by tile"],
)
def floats(request, one):
    dim, in_one = request.param
    with pytest.MonkeyPatch.context() as patch:
        if not in_one:
            patch.setattr(native, "ranks", lambda mesh: False)
        yield ranked_floats(one, dim)


def ranked_floats(one, dim):
    rng = np.random.default_rng(dim)
    queries = rng.normal(size=(QUERIES, dim)).astype(np.float32)
    items = rng.normal(size=(9000, dim)).astype(np.float32)
    # Exact ties between distant items too.
    items[8000] = items[17]
    seen = some_seen()
    best = blockwise(queries, items, 20, one, TILE_QUERIES, *seen)
    return queries, items, seen, best


@pytest.mark.parametrize(
    ("data", "model", "tiles"),
    [(1, 1, 3), (8, 1, 1), (4, 2, 1), (1, 8, 1), (1, 8, 2)],
)
def test_bits_depend_neither_on_blocks_nor_on_devices(
    floats, data, model, tiles
):
    queries, items, seen, want = floats
    partition = on_mesh(data, model)
    block = tiles * data * TILE_QUERIES
    assert_equal(blockwise(queries, items, 20, partition, block, *seen), want)


def test_scores_are_the_products_to_rounding(floats):
    queries, items, seen, (scores, found) = floats
    full = found >= 0
    rows = np.broadcast_to(np.arange(QUERIES)[:, None], found.shape)[full]
    left, right = queries[rows], items[found[full]]
    want = np.sum(left * right, axis=1, dtype=np.float64)
    size = np.sum(np.abs(left * right), axis=1)
    error = np.abs(scores[full] - want)
    assert (error <= queries.shape[1] * 2.0**-24 * size).all()
    # Nothing that was left out lies above the list by more than rounding.
    best, _ = reference(queries, items, 20, *seen)
    np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-4)


def test_tiled_size_cuts_into_equal_chunks(partition):
    shards = partition.shards("item")
    for count in (1, 511, 512, 513, 8192, 8193, 50_000, 1_000_003):
        size = tiled_size(count, partition)
        tiles, rest = divmod(size, shards * TILE_ITEMS)
        chunks = -(-tiles // ranking.TILES_AT_ONCE)
        assert rest == 0
        assert tiles % chunks == 0
        assert 0 <= size - count < (chunks + 1) * shards * TILE_ITEMS


def test_exclude_looks_up_each_row():
    indptr = np.array([0, 2, 2, 5, 6])
    items = np.array([7, 1, 3, 4, 5, 9])
    got = ranking.exclude(np.array([2, 1, 0]), [Adjacency(indptr, items)], 7)
    pairs = list(zip(got.queries[:5], got.items[:5], strict=True))
    assert pairs == [(0, 3), (0, 4), (0, 5), (2, 7), (2, 1)]
    assert (got.queries[5:] >= 3).all()
    assert len(got.queries) == len(got.items) == 7


def test_memory_does_not_grow_with_queries_times_items(one, monkeypatch):
    """What the compiled search needs, at 1 k queries x 100 k items."""
    monkeypatch.setattr(native, "ranks", lambda mesh: False)
    count, block = 100_000, 1024
    compiled = (
        jax.jit(
            functools.partial(
                ranking.top_k, k=10, num_items=count, partition=one
            )
        )
        .lower(
            jax.ShapeDtypeStruct((block, 8), np.float32),
            jax.ShapeDtypeStruct((tiled_size(count, one), 8), np.float32),
            ranking.Excluded(*2 * [jax.ShapeDtypeStruct((1,), np.int32)]),
        )
        .compile()
    )
    chunk = block * ranking.TILES_AT_ONCE * TILE_ITEMS * 4
    needed = compiled.memory_analysis().temp_size_in_bytes
    assert needed < 4 * chunk < block * count * 4
