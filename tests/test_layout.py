"""The layout of a sparse matrix: which shards are made, and from what."""

import dataclasses
import json
import socket
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest

from neggen_jax import adjacency
from neggen_jax.adjacency import Adjacency, Index
from neggen_jax.errors import InputError
from neggen_jax.ops import layout, routes
from neggen_jax.ops.layout import both_ways, lay_out
from neggen_jax.ops.routes import Needed, in_rounds, lay_out_to_pull
from neggen_jax.ops.sparse import edge_weights, make_graph, subset
from neggen_jax.partition import EXCHANGES

pytestmark = pytest.mark.usefixtures("small_rounds")

SHARDS, SHAPE = 8, (40, 24)


def entries(seed=0, count=300, shape=SHAPE):
    """Both orientations, and rows, columns and weights in no order."""
    rng = np.random.default_rng(seed)
    cells = rng.choice(shape[0] * shape[1], count, replace=False)
    rows, columns = np.divmod(cells.astype(np.int32), shape[1])
    weights = rng.normal(size=count)
    index = Index.make(rows, columns, *shape)
    return both_ways(index, weights, shape), (rows, columns, weights)


def made(some, exchange, own=range(SHARDS)):
    """Shards of entries, and for each entry its column in the matrix.

    Padding has column -1.
    """
    own, width = list(own), some.shape[1] // SHARDS
    if exchange == "pull":
        rows, _, need = lay_out_to_pull(some, own, SHARDS)
        columns = asked_for(need, rows.columns, width)
    else:
        native = exchange == "gather"
        rows = lay_out(some, own, SHARDS, 1 if native else SHARDS, native)
        columns = rows.columns.copy()
        if exchange == "ring":
            columns += width * np.arange(SHARDS)[:, None]
    columns[rows.edges == len(some.pairs)] = -1
    return rows, columns


def asked_for(need, numbers, width):
    """Columns of the matrix, from their numbers in the order of arrival."""
    sender, place = np.divmod(numbers, need.shape[-1])
    shard, block, _ = np.indices(numbers.shape)
    return need[shard, block, sender, place] + sender * width


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_rows_are_sorted_and_padding_is_last(exchange):
    both, (all_rows, all_columns, all_weights) = entries()
    for some, ends in zip(
        both, ((all_rows, all_columns), (all_columns, all_rows)), strict=True
    ):
        rows, columns = made(some, exchange)
        height, seen = some.shape[0] // SHARDS, []
        for here in np.ndindex(*rows.columns.shape[:2]):
            size = (rows.edges[here] < len(all_rows)).sum()
            edges = rows.edges[here][:size]
            row, column = ends[0][edges], ends[1][edges]
            assert (np.diff(row * some.shape[1] + column) > 0).all()
            assert (row // height == here[0]).all()
            np.testing.assert_array_equal(rows.rows[here][:size], row % height)
            np.testing.assert_array_equal(columns[here][:size], column)
            np.testing.assert_array_equal(
                rows.weights[here][:size],
                all_weights[edges].astype(np.float32),
            )
            assert (rows.rows[here][size:] == rows.height - 1).all()
            assert not rows.weights[here][size:].any()
            assert (rows.edges[here][size:] == len(all_rows)).all()
            seen.append(edges)
        sizes = list(map(len, seen))
        assert rows.columns.shape[2] == max(sizes)
        seen = np.sort(np.concatenate(seen))
        np.testing.assert_array_equal(seen, np.arange(len(all_rows)))
        by_shard = np.reshape(sizes, (SHARDS, -1)).sum(1)
        np.testing.assert_array_equal(some.sizes(SHARDS), by_shard)


def test_what_is_pushed_are_the_same_entries_by_their_columns():
    (some, _), (all_rows, all_columns, all_weights) = entries()
    rows, turned, need = lay_out_to_pull(some, range(SHARDS), SHARDS)
    height, width = (size // SHARDS for size in SHAPE)
    assert (rows.height, turned.height) == (height, width)
    assert turned.pushes
    assert not rows.pushes
    columns = asked_for(need, turned.rows, width)
    for here in np.ndindex(*rows.columns.shape[:2]):
        real = turned.edges[here] < len(all_rows)
        size = real.sum()
        assert real[:size].all()
        assert not turned.weights[here][size:].any()
        assert (np.diff(turned.rows[here]) >= 0).all()
        edges = turned.edges[here][:size]
        want = np.sort(rows.edges[here])[:size]
        np.testing.assert_array_equal(np.sort(edges), want)
        np.testing.assert_array_equal(columns[here][:size], all_columns[edges])
        row = turned.columns[here][:size] + height * here[0]
        np.testing.assert_array_equal(row, all_rows[edges])
        np.testing.assert_array_equal(
            turned.weights[here][:size], all_weights[edges].astype(np.float32)
        )


def test_each_vector_is_asked_for_once_and_as_many_in_each_round():
    """Even if ids follow popularity: entries of the first are in all rounds."""
    rng = np.random.default_rng(0)
    cells = np.unique(
        rng.integers(400, size=2000) * 2400
        + np.floor(2400 * rng.random(2000) ** 4).astype(int)
    )
    rows, columns = np.divmod(cells, 2400)
    some = both_ways(Index.make(rows, columns, 400, 2400), None, (400, 2400))[0]
    for shard in range(SHARDS):
        needed = Needed.make(some, shard, SHARDS)
        want = np.unique(columns[rows // 50 == shard])
        np.testing.assert_array_equal(needed.columns, want)
        counts = np.bincount(want // 300, minlength=SHARDS)
        assert needed.most() == counts.max()
        rounds, most = in_rounds(needed.most(), SHARDS)
        assert rounds > 5
        lists = needed.lists(rounds, most)
        assert lists.shape == (rounds, SHARDS, most)
        for sender in range(SHARDS):
            before = (want < 300 * sender).sum()
            first = (np.arange(rounds)[:, None] - before) % rounds
            inside = first + rounds * np.arange(most) < counts[sender]
            assert inside.sum() == counts[sender]
            assert np.ptp(inside.sum(1)) <= 1
            found = lists[:, sender][inside] + 300 * sender
            np.testing.assert_array_equal(
                np.sort(found), want[want // 300 == sender]
            )


@pytest.mark.parametrize("most", [0, 1, 8, 9, 1000])
@pytest.mark.parametrize("shards", [2, 8, 4096])
def test_rounds_have_room_for_everything_in_whole_tiles(most, shards):
    rounds, sent = in_rounds(most, shards)
    assert rounds * sent >= most
    assert sent % 8 == 0
    assert rounds >= 1
    # No round is needlessly large, nor are there too many.
    assert shards * sent <= routes.ROUND + 8 * shards
    assert rounds == 1 or (rounds - 1) * routes.ROUND < shards * most


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_rows_that_the_pairs_lack_are_empty(exchange):
    """Tables are padded to their shards, what is stored is not."""
    (some, _), (_, _, weights) = entries()
    pairs = some.pairs
    last = pairs.offsets[33]
    names = pairs.numbers[:last]
    cut = Adjacency(pairs.offsets[:34], pairs.ends[:last], np.arange(last))
    short = dataclasses.replace(some, pairs=cut, weights=weights[names])
    rows, _ = made(short, exchange)
    assert (rows.weights[6] != 0).sum() == last - pairs.offsets[30]
    assert not rows.weights[7].any()
    if exchange == "gather":
        assert (rows.indptr[6, 0, 3:] == last - pairs.offsets[30]).all()
        assert not rows.indptr[7].any()


class Guarded:
    """A column of pairs, some of which may not be read."""

    def __init__(self, values, first, last):
        self.values, self.allowed = values, (first, last)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, some):
        assert self.allowed[0] <= some.start <= some.stop <= self.allowed[1]
        return self.values[some]


@pytest.mark.parametrize("own", [[3], [6, 7], [2, 3, 4]])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_some_shards_are_those_of_all_and_read_nothing_else(
    exchange, own, monkeypatch
):
    # What processes would agree on.
    monkeypatch.setattr(routes, "in_rounds", lambda *_: (5, 8))
    for some in entries()[0]:
        every, columns = made(some, exchange)
        first, last = some.pairs.offsets[
            np.array([own[0], own[-1] + 1]) * (some.shape[0] // SHARDS)
        ]
        guarded = dataclasses.replace(
            some,
            pairs=Adjacency(
                some.pairs.offsets,
                Guarded(some.pairs.ends, first, last),
                Guarded(some.pairs.numbers, first, last),
            ),
        )
        mine, found = made(guarded, exchange, own)
        # Alone, these shards may need less room.
        room = mine.columns.shape[-1]
        np.testing.assert_array_equal(found, columns[own][..., :room])
        for name in ("rows", "weights", "edges"):
            kept = getattr(every, name)[own]
            np.testing.assert_array_equal(getattr(mine, name), kept[..., :room])
        assert not every.weights[own][..., room:].any()
        if exchange == "gather":
            np.testing.assert_array_equal(mine.indptr, every.indptr[own])
        with pytest.raises(AssertionError):
            made(guarded, exchange)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_blocks_of_the_list_make_no_difference(
    exchange, eight, tmp_path, monkeypatch
):
    """Nor do edges on disk, nor weights that a function gives."""
    both, (rows, columns, weights) = entries(1)
    eight = dataclasses.replace(eight, exchange=exchange)
    ends = np.stack([rows, columns])
    want = make_graph(ends, weights, SHAPE, eight)
    np.save(tmp_path / "edges.npy", ends)
    mapped = np.load(tmp_path / "edges.npy", mmap_mode="r")
    table = np.zeros(SHAPE)
    table[rows, columns] = weights
    monkeypatch.setattr(adjacency, "BLOCK", 7)
    index = Index(*(some.pairs for some in both))
    for pairs, given in (
        (mapped, weights),
        ((rows, columns), lambda rows, columns: table[rows, columns]),
        (index, weights),
    ):
        assert_same(make_graph(pairs, given, SHAPE, eight), want)


def test_edges_that_have_no_numbers(one, monkeypatch):
    _, (rows, columns, weights) = entries(2)
    monkeypatch.setattr(layout, "_NUMBERED", 299)
    graph = make_graph((rows, columns), weights, SHAPE, one)
    assert graph.forward.edges is None
    with pytest.raises(InputError, match="too many edges"):
        subset(graph, np.ones(300, bool), 300)
    with pytest.raises(InputError, match="too many edges"):
        edge_weights(graph, 300)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_memory_falls_with_the_shards_that_are_made(exchange, monkeypatch):
    """To an eighth, but for what a block of the pairs takes."""
    (some, _), _ = entries(3, 400_000, (40_000, 24_000))
    monkeypatch.setattr(adjacency, "BLOCK", 2**10)

    def peak(own):
        tracemalloc.start()
        made(some, exchange, own)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak([5]) < peak(range(SHARDS)) / 6


PROCESS = """
import json, sys, tracemalloc
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from neggen_jax import adjacency, hosts
from neggen_jax.ops import routes
from neggen_jax.ops.sparse import make_graph, multiply
from neggen_jax.partition import MESH_AXES, Partition

port, rank, count = map(int, sys.argv[1:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, rank)
most = hosts.largest("a test", [rank, -rank, 2**40 + rank])
assert most == [count - 1, 0, 2**40 + count - 1]
adjacency.BLOCK = 2**12
routes.ROUND = 2**9
rng = np.random.default_rng(0)
shape, n = (4000, 2400), 200_000
cells = rng.choice(shape[0] * shape[1], n, replace=False)
edges, weights = np.divmod(cells, shape[1]), rng.normal(size=n)
index = adjacency.Index.make(*edges, *shape)
x = rng.normal(size=(shape[1], 3)).astype(np.float32)
want = np.zeros((shape[0], 3))
np.add.at(want, edges[0], weights[:, None] * x[edges[1]])
devices = np.asarray(jax.devices()).reshape(1, 8)
peaks = {}
for exchange in ("gather", "ring", "pull"):
    partition = Partition(Mesh(devices, MESH_AXES), exchange=exchange)
    seen = []
    for _ in range(6):
        tracemalloc.start()
        graph = make_graph(index, weights, shape, partition)
        seen.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # JAX keeps an array of the host, and does not copy it, if it happens to
    # begin at a multiple of 64 bytes: the least is that without such luck.
    peaks[exchange] = min(seen)
    out = jax.jit(multiply)(graph, partition.put(x, "item", None))
    assert len(out.addressable_shards) == 8 // count
    for shard in out.addressable_shards:
        np.testing.assert_allclose(shard.data, want[shard.index], atol=1e-4)
print(json.dumps(peaks))
"""


def run_processes(count):
    """Peaks of host memory while graphs were made, of each process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // count}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(rank), str(count)],
            env={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * count
    return [json.loads(text.splitlines()[-1]) for text in said]


@pytest.mark.slow
def test_two_processes_make_half_a_graph_each():
    """Right products, and about half the memory.

    The numbers are sums of some 50 products of normal numbers: errors in
    float32 are some 1e-5 at the most. Of the memory a little is for a block
    of the pairs.
    """
    (alone,) = run_processes(1)
    for peaks in run_processes(2):
        for exchange in EXCHANGES:
            assert peaks[exchange] < 0.7 * alone[exchange]
