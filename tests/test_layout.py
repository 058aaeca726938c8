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
from neggen_jax.ops import layout
from neggen_jax.ops.layout import both_ways, compress
from neggen_jax.ops.sparse import edge_weights, make_graph, subset
from neggen_jax.partition import EXCHANGES

SHARDS, SHAPE = 8, (40, 24)


def entries(seed=0, count=300, shape=SHAPE):
    """Both orientations, and rows, columns and weights in no order."""
    rng = np.random.default_rng(seed)
    cells = rng.choice(shape[0] * shape[1], count, replace=False)
    rows, columns = np.divmod(cells.astype(np.int32), shape[1])
    weights = rng.normal(size=count)
    index = Index.make(rows, columns, *shape)
    return both_ways(index, weights, shape), (rows, columns, weights)


def made(some, exchange, own=range(SHARDS), native=False):
    """Shards of entries, and how many entries each block has."""
    counts = some.count(range(SHARDS), SHARDS)
    if exchange == "gather":
        counts = counts.sum(1, keepdims=True)
    blocks, most = counts.shape[1], int(counts.max())
    return compress(some, own, SHARDS, blocks, most, native), counts


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_entries_are_counted_by_both_shards():
    (forward, backward), (rows, columns, _) = entries()
    want = np.zeros((SHARDS, SHARDS), int)
    np.add.at(want, (rows // 5, columns // 3), 1)
    every = range(SHARDS)
    np.testing.assert_array_equal(forward.count(every, SHARDS), want)
    np.testing.assert_array_equal(backward.count(every, SHARDS), want.T)
    np.testing.assert_array_equal(
        backward.count([6, 1], SHARDS), want.T[[6, 1]]
    )
    np.testing.assert_array_equal(forward.sizes(SHARDS), want.sum(1))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_rows_are_sorted_and_padding_is_last(exchange):
    (some, _), (all_rows, all_columns, all_weights) = entries()
    rows, counts = made(some, exchange)
    assert rows.columns.shape == (*counts.shape, counts.max())
    width = SHAPE[1] // counts.shape[1]
    for shard, block in np.ndindex(*counts.shape):
        size, here = counts[shard, block], (shard, block)
        edges = rows.edges[here][:size]
        row, column = all_rows[edges], all_columns[edges]
        assert (np.diff(row * SHAPE[1] + column) > 0).all()
        assert (row // 5 == shard).all()
        assert (column // width == block).all()
        np.testing.assert_array_equal(rows.rows[here][:size], row % 5)
        np.testing.assert_array_equal(rows.columns[here][:size], column % width)
        np.testing.assert_array_equal(
            rows.weights[here][:size], all_weights[edges].astype(np.float32)
        )
        assert (rows.rows[here][size:] == rows.height - 1).all()
        assert not rows.weights[here][size:].any()
        assert (rows.edges[here][size:] == len(all_rows)).all()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_rows_that_the_pairs_lack_are_empty(exchange):
    """Tables are padded to their shards, what is stored is not."""
    (some, _), _ = entries()
    pairs = some.pairs
    first = pairs.offsets[33]
    short = dataclasses.replace(
        some,
        pairs=Adjacency(
            pairs.offsets[:34], pairs.ends[:first], pairs.numbers[:first]
        ),
    )
    native = exchange == "gather"
    rows, counts = made(short, exchange, native=native)
    np.testing.assert_array_equal(counts[7], 0)
    assert (rows.weights[6] != 0).sum() == first - pairs.offsets[30]
    assert not rows.weights[7].any()
    if native:
        assert (rows.indptr[6, 0, 3:] == first - pairs.offsets[30]).all()
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
def test_some_shards_are_those_of_all_and_read_nothing_else(exchange, own):
    for some in entries()[0]:
        native = exchange == "gather"
        every, counts = made(some, exchange, native=native)
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
        mine = compress(
            guarded, own, SHARDS, counts.shape[1], int(counts.max()), native
        )
        assert_same(mine, jax.tree.map(lambda x: x[own], every))
        np.testing.assert_array_equal(
            guarded.count(own, SHARDS), some.count(own, SHARDS)
        )
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
from neggen_jax.ops.sparse import make_graph, multiply
from neggen_jax.partition import MESH_AXES, Partition

port, rank, count = map(int, sys.argv[1:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, rank)
most = hosts.largest("a test", [rank, -rank, 2**40 + rank])
assert most == [count - 1, 0, 2**40 + count - 1]
adjacency.BLOCK = 2**12
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
for exchange in ("gather", "ring"):
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
