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

from neggen_jax.errors import InputError
from neggen_jax.ops import layout
from neggen_jax.ops.layout import Entries, compress
from neggen_jax.ops.sparse import edge_weights, make_graph, subset
from neggen_jax.partition import EXCHANGES

SHARDS, SHAPE = 8, (40, 24)


def entries(seed=0, count=300, shape=SHAPE):
    rng = np.random.default_rng(seed)
    cells = rng.choice(shape[0] * shape[1], count, replace=False)
    rows, columns = np.divmod(cells.astype(np.int32), shape[1])
    return Entries(rows, columns, rng.normal(size=count), shape)


def counted(some, exchange):
    counts = some.count(SHARDS)
    return counts if exchange == "ring" else counts.sum(1, keepdims=True)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_entries_are_counted_by_both_shards():
    some = entries()
    want = np.zeros((SHARDS, SHARDS), int)
    np.add.at(want, (some.rows // 5, some.columns // 3), 1)
    np.testing.assert_array_equal(some.count(SHARDS), want)
    np.testing.assert_array_equal(some.transpose.count(SHARDS), want.T)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_rows_are_sorted_and_padding_is_last(exchange):
    some = entries()
    counts = counted(some, exchange)
    rows = compress(some, counts, list(range(SHARDS)), native=False)
    assert rows.columns.shape == (*counts.shape, counts.max())
    width = SHAPE[1] // counts.shape[1]
    for shard, block in np.ndindex(*counts.shape):
        size, here = counts[shard, block], (shard, block)
        edges = rows.edges[here][:size]
        row, column = some.rows[edges], some.columns[edges]
        assert (np.diff(row * SHAPE[1] + column) > 0).all()
        assert (row // 5 == shard).all()
        assert (column // width == block).all()
        np.testing.assert_array_equal(rows.rows[here][:size], row % 5)
        np.testing.assert_array_equal(rows.columns[here][:size], column % width)
        np.testing.assert_array_equal(
            rows.weights[here][:size], some.weights[edges].astype(np.float32)
        )
        assert (rows.rows[here][size:] == rows.height - 1).all()
        assert not rows.weights[here][size:].any()
        assert (rows.edges[here][size:] == len(some.rows)).all()


@pytest.mark.parametrize("own", [[3], [0, 7], [2, 4, 5]])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_some_shards_are_those_of_all(exchange, own):
    some = entries()
    native = exchange == "gather"
    counts = counted(some, exchange)
    every = compress(some, counts, list(range(SHARDS)), native)
    mine = compress(some, counts, own, native)
    assert_same(mine, jax.tree.map(lambda x: x[own], every))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_blocks_of_the_list_make_no_difference(
    exchange, eight, tmp_path, monkeypatch
):
    """Nor do edges on disk, nor weights that a function gives."""
    some = entries(1)
    eight = dataclasses.replace(eight, exchange=exchange)
    ends = np.stack([some.rows, some.columns])
    want = make_graph(ends, some.weights, SHAPE, eight)
    np.save(tmp_path / "edges.npy", ends)
    mapped = np.load(tmp_path / "edges.npy", mmap_mode="r")
    table = np.zeros(SHAPE)
    table[some.rows, some.columns] = some.weights
    monkeypatch.setattr(layout, "_BLOCK", 7)
    for edges, weights in (
        (mapped, some.weights),
        ((some.rows, some.columns), lambda rows, columns: table[rows, columns]),
    ):
        assert_same(make_graph(edges, weights, SHAPE, eight), want)


def test_edges_that_have_no_numbers(one, monkeypatch):
    some = entries(2)
    monkeypatch.setattr(layout, "_NUMBERED", 299)
    graph = make_graph((some.rows, some.columns), some.weights, SHAPE, one)
    assert graph.forward.edges is None
    with pytest.raises(InputError, match="too many edges"):
        subset(graph, np.ones(300, bool), 300)
    with pytest.raises(InputError, match="too many edges"):
        edge_weights(graph, 300)


def test_memory_falls_with_the_shards_that_are_made(monkeypatch):
    """To an eighth, but for what sorting one block of the list takes."""
    some = entries(3, 400_000, (40_000, 24_000))
    counts = counted(some, "ring")
    monkeypatch.setattr(layout, "_BLOCK", 2**10)

    def peak(own):
        tracemalloc.start()
        compress(some, counts, own, native=False)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak([5]) < peak(list(range(SHARDS))) / 6


PROCESS = """
import json, sys, tracemalloc
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from neggen_jax.ops import layout
from neggen_jax.ops.sparse import make_graph, multiply
from neggen_jax.partition import MESH_AXES, Partition

port, rank, count = map(int, sys.argv[1:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, rank)
layout._BLOCK = 2**12
rng = np.random.default_rng(0)
shape, n = (4000, 2400), 200_000
cells = rng.choice(shape[0] * shape[1], n, replace=False)
edges, weights = np.divmod(cells, shape[1]), rng.normal(size=n)
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
        graph = make_graph(edges, weights, shape, partition)
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
    of the list.
    """
    (alone,) = run_processes(1)
    for peaks in run_processes(2):
        for exchange in EXCHANGES:
            assert peaks[exchange] < 0.7 * alone[exchange]
