"""What the kernels take, beside what they must take and what others take.

Each runs turn by turn with a NumPy or SciPy form of the same, in one process:
seconds say little from one machine to the next, ratios say more. Its floor is
the time for the bytes that it has to move, each once, at the bandwidth of
copying, or for its multiplications and additions at the speed of a large
product of matrices: whichever is longer, both as measured here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse as jsparse
from scipy import sparse

from neggen_jax import optimizer as optimizers
from neggen_jax.catalog import Catalog
from neggen_jax.config import base
from neggen_jax.data import graphs
from neggen_jax.data.inputs import sizes
from neggen_jax.errors import InputError
from neggen_jax.evaluate import Ranker
from neggen_jax.ops import native, ranking, wide
from neggen_jax.ops.sparse import multiply
from neggen_jax.partition import Partition, make_partition
from neggen_jax.storage import first_line

DIM = 64
# Layers in one call, as in a step: what is written once is not what counts.
_LAYERS = 8
# A ratio that has fallen below this share of the accepted one is a regression;
# from run to run they differ by a tenth, that of Adam by almost half: what is
# accepted is best the lowest of a few.
KEEPS = 0.7
_K = 50
# Users whose scores the reference holds: of more it makes less at a time.
_HELD = 1024
# Seconds: of rest before a kernel is timed, and of calls that are not timed.
_PAUSE, _WARM = 0.2, 0.1


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Something that is timed.

    Attributes:
      ours: does it, and waits until it is done.
      reference: the same in NumPy or SciPy.
      moved: bytes that have to be read or written, each counted once.
      flops: multiplications and additions.
    """

    ours: Callable[[], Any]
    reference: Callable[[], Any]
    moved: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians.

    Attributes:
      seconds: of ours.
      reference: seconds of the reference.
      ratio: how many times ours it takes, the median over the turns.
      floor: seconds that no implementation falls below.
      binds: "bytes" or "flops", what the floor comes from.
    """

    seconds: float
    reference: float
    ratio: float
    floor: float
    binds: str

    @property
    def share(self) -> float:
        """Of the floor that is reached."""
        return self.floor / self.seconds


def make(catalog: Catalog) -> dict[str, Kernel]:
    """Those that most time is spent in, at the size of a catalogue."""
    partition = make_partition(1, 1, jax.devices()[:1])
    rng = np.random.default_rng(0)
    users = rng.standard_normal((catalog.num_users, DIM), np.float32)
    items = rng.standard_normal((catalog.num_items, DIM), np.float32)
    propagation = _propagation(catalog, partition, items)
    made = {
        # What training uses, and other forms of it that XLA has.
        "propagation": propagation("used"),
        "propagation by segments": propagation("segments"),
        "propagation by BCSR": propagation("bcsr"),
        "ranking": _ranking(catalog, partition, users, items),
        "Adam": _adam(np.concatenate([users, items]), partition, rng),
    }
    if catalog.features:
        widest = max(catalog.features.values(), key=lambda m: m.dim)
        count = min(2048, catalog.num_items)
        rows = np.array(widest.values[:count])
        made["projection"] = _projection(rows, rng, jnp.float32)
        made["projection in bfloat16"] = _projection(rows, rng, jnp.bfloat16)
    return made


def _propagation(
    catalog: Catalog, partition: Partition, items: np.ndarray
) -> Callable[[str], Kernel]:
    """Layers of `users = R items`, `items = R^T users`, in some form."""
    graph = graphs.user_item(catalog, sizes(catalog, partition), partition)
    table = partition.put(items, "item", None)

    def segments(rows, x):
        messages = x[rows.columns[0, 0]] * rows.weights[0, 0, :, None]
        return jax.ops.segment_sum(
            messages, rows.rows[0, 0], rows.height, indices_are_sorted=True
        )

    def bcsr(rows, x):
        # Where its entries begin; "gather" has that on CPU alone.
        every = jnp.arange(rows.height + 1)
        starts = jnp.searchsorted(rows.rows[0, 0], every).astype(jnp.int32)
        matrix = jsparse.BCSR(
            (rows.weights[0, 0], rows.columns[0, 0], starts),
            shape=(rows.height, len(x)),
            indices_sorted=True,
            unique_indices=True,
        )
        return matrix @ x

    @functools.partial(jax.jit, static_argnames="form")
    def run(graph, x, form):
        def layer(_, x):
            if form == "used":
                return multiply(graph.transpose, multiply(graph, x))
            product = {"segments": segments, "bcsr": bcsr}[form]
            return product(graph.backward, product(graph.forward, x))

        return jax.lax.fori_loop(0, _LAYERS, layer, x)

    train = catalog.train
    degrees = [np.bincount(ends) for ends in (train.users, train.items)]
    weights = 1 / np.sqrt(degrees[0][train.users] * degrees[1][train.items])
    shape = catalog.num_users, catalog.num_items
    matrix = sparse.csr_array(
        (weights.astype(np.float32), (train.users, train.items)), shape
    )
    other = matrix.T.tocsr()

    def reference():
        x = items
        for _ in range(_LAYERS):
            x = other @ (matrix @ x)
        return x

    entries, rows = len(train), sum(shape)
    # Both ways: a column and a weight of each entry, where rows begin, the
    # table that is read and the one that is written.
    moved = 2 * (8 * entries + 4 * rows // 2 + 4 * DIM * rows)
    return lambda form: Kernel(
        lambda: jax.block_until_ready(run(graph, table, form)),
        reference,
        _LAYERS * moved,
        _LAYERS * 4 * entries * DIM,
    )


def _ranking(
    catalog: Catalog,
    partition: Partition,
    users: np.ndarray,
    items: np.ndarray,
) -> Kernel:
    """An evaluation: the best items of all users, but for those they know."""
    k = min(_K, catalog.num_items)
    ranker = Ranker(catalog, "valid", partition, k=k)
    tables = (
        partition.put(users, "user", None),
        partition.put(items, "item", None),
    )
    seen, heldout = catalog.by_user("train"), catalog.by_user("valid")

    def reference():
        lists = []
        for start in range(0, len(ranker.users), _HELD):
            block = ranker.users[start : start + _HELD]
            count = int(seen.degrees_of(block).sum())
            known = ranking.exclude(block, [seen], count)
            wanted = np.zeros((len(block), len(items)), bool)
            found = int(heldout.degrees_of(block).sum())
            hit = ranking.exclude(block, [heldout], found)
            wanted[hit.queries, hit.items] = True
            scores = users[block] @ items.T
            scores[known.queries, known.items] = -np.inf
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
            best = np.take_along_axis(best, order, 1)
            lists.append((best, np.take_along_axis(wanted, best, 1)))
        return lists

    # For each block of users the items' vectors, and theirs; lists and hits:
    # scores need never leave a cache.
    count = len(ranker.users)
    blocks = -(-count // ranker.block)
    moved = 4 * DIM * (count + blocks * len(items)) + 5 * k * count
    return Kernel(
        lambda: ranker(*tables),
        reference,
        moved,
        2 * count * len(items) * DIM,
    )


def _adam(
    table: np.ndarray, partition: Partition, rng: np.random.Generator
) -> Kernel:
    """Steps of Adam on all embeddings, with the same gradient."""
    config = base().optimizer
    optimizer = optimizers.make(config, 1, native.on_cpu(partition.mesh))
    gradient = rng.standard_normal(table.shape, np.float32)
    given = jnp.asarray(table), jnp.asarray(gradient)

    @jax.jit
    def run(table, gradient):
        def step(_, carry):
            made = optimizer.apply(gradient, *carry)
            return made.state, made.params

        start = optimizer.init(table), table
        return jax.lax.fori_loop(0, _LAYERS, step, start)[1]

    def reference():
        x, m, v = table.copy(), *np.zeros((2, *table.shape), np.float32)
        b1, b2 = np.float32(config.beta1), np.float32(config.beta2)
        for step in range(1, _LAYERS + 1):
            m *= b1
            m += (1 - b1) * gradient
            v *= b2
            v += (1 - b2) * gradient**2
            size = np.sqrt(v / (1 - b2**step)) + config.epsilon
            x -= config.learning_rate * m / (1 - b1**step) / size
        return x

    # Gradient, both moments and the table are read, all but the first written.
    return Kernel(
        lambda: jax.block_until_ready(run(*given)),
        reference,
        _LAYERS * 7 * table.nbytes,
        _LAYERS * 12 * table.size,
    )


def _projection(
    features: np.ndarray, rng: np.random.Generator, dtype: Any
) -> Kernel:
    """Features to embeddings, and the gradient of the kernel.

    Args:
      features: of the items of a batch.
      rng: of other factors.
      dtype: that features are kept in; the reference's are of float32.
    """
    count, width = features.shape
    kernel = rng.standard_normal((width, DIM), np.float32)
    gradient = rng.standard_normal((count, DIM), np.float32)
    given = [
        jnp.asarray(features, dtype),
        jnp.asarray(kernel),
        jnp.asarray(gradient),
    ]

    @jax.jit
    def run(x, kernel, g):
        out, backward = jax.vjp(lambda kernel: wide.project(x, kernel), kernel)
        return out, backward(g)

    def reference():
        return features @ kernel, features.T @ gradient

    moved = given[0].nbytes + 2 * kernel.nbytes + 2 * gradient.nbytes
    return Kernel(
        lambda: jax.block_until_ready(run(*given)),
        reference,
        moved,
        4 * count * width * DIM,
    )


def measure(some: Mapping[str, Kernel], turns: int) -> dict[str, Timing]:
    """Times each kernel and its reference, turn by turn.

    Args:
      some: by name.
      turns: of each; one more warms up.
    """
    bandwidth, speed = copy_bandwidth(), product_speed()
    out = {}
    for name, kernel in some.items():
        pairs = [
            (_rested(kernel.ours), _rested(kernel.reference))
            for _ in range(turns + 1)
        ][1:]
        floors = {
            "bytes": kernel.moved / bandwidth,
            "flops": kernel.flops / speed,
        }
        binds = max(floors, key=floors.__getitem__)
        ours, theirs = map(statistics.median, zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        out[name] = Timing(ours, theirs, ratio, floors[binds], binds)
    return out


def copy_bandwidth(megabytes: int = 128) -> float:
    """Bytes a second that all cores copy, those read and those written."""
    cores = len(os.sched_getaffinity(0))
    size = megabytes * 2**20 // cores
    pairs = [tuple(np.ones((2, size), np.int8)) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:

        def copy():
            list(pool.map(lambda pair: np.copyto(*pair), pairs))

        seconds = statistics.median(_seconds(copy) for _ in range(9))
    return 2 * size * cores / seconds


def product_speed(size: int = 2048) -> float:
    """Multiplications and additions a second in a product of matrices."""
    x = jnp.ones((size, size))
    run = jax.jit(lambda x: x @ x)
    jax.block_until_ready(run(x))
    each = [_seconds(lambda: jax.block_until_ready(run(x))) for _ in range(5)]
    return 2 * size**3 / statistics.median(each)


def _rested(call: Callable[[], Any]) -> float:
    # Threads of NumPy's BLAS spin on for a while when they are done, and
    # would take the cores from whoever is next.
    time.sleep(_PAUSE)
    # Nor is it to find what another has left of the caches, and cores asleep:
    # in training one step follows another.
    started = time.perf_counter()
    while time.perf_counter() - started < _WARM:
        call()
    return _seconds(call)


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def read_accepted(path: str | os.PathLike[str], size: str) -> dict[str, float]:
    """The ratios that were accepted last for a size; empty if none were.

    Raises:
      InputError: if the file cannot be read.
    """
    try:
        said = json.loads(Path(path).read_text())
        return {k: float(v) for k, v in said.get(size, {}).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            "There are no accepted ratios.",
            where=path,
            expected="{SIZE: {KERNEL: ratio}}",
            found=first_line(error),
            fix="write them with --accept",
        ) from error


def accept(
    path: str | os.PathLike[str], size: str, timings: Mapping[str, Timing]
) -> None:
    """Writes the ratios of a size; those of other sizes stay."""
    path = Path(path)
    said = json.loads(path.read_text()) if path.exists() else {}
    said[size] = {k: round(t.ratio, 2) for k, t in timings.items()}
    path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def fallen(
    timings: Mapping[str, Timing], accepted: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Kernels whose ratio has fallen: name -> (ratio, the accepted one)."""
    return {
        name: (timing.ratio, accepted[name])
        for name, timing in timings.items()
        if name in accepted and timing.ratio < KEEPS * accepted[name]
    }


def table(
    timings: Mapping[str, Timing], accepted: Mapping[str, float], title: str
) -> Any:
    """As a `rich.table.Table`."""
    from rich.table import Table

    out = Table(title=title)
    out.add_column("kernel", min_width=max(map(len, timings), default=0))
    for label in (
        "ms",
        "reference ms",
        "reference : ours",
        "accepted",
        "floor ms",
        "binds",
        "share of floor",
    ):
        out.add_column(label, justify="right")
    for name, timing in timings.items():
        known = accepted.get(name)
        out.add_row(
            name,
            f"{timing.seconds * 1e3:.2f}",
            f"{timing.reference * 1e3:.2f}",
            f"{timing.ratio:.1f}",
            "-" if known is None else f"{known:.1f}",
            f"{timing.floor * 1e3:.2f}",
            timing.binds,
            f"{timing.share:.0%}",
        )
    return out
