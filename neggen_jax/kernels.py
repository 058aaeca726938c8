"""The kernels that most time is spent in, and others' forms of the same.

What they take is timed by `kernel_timing.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
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
from neggen_jax.evaluate import Ranker
from neggen_jax.ops import native, ranking, wide
from neggen_jax.ops.sparse import multiply
from neggen_jax.partition import Partition, make_partition

DIM = 64
# Layers in one call, as in a step: what is written once is not what counts.
_LAYERS = 8
_K = 50
# Users whose scores the reference holds: of more it makes less at a time.
_HELD = 1024
# Of a batch whose items' features are projected.
_PAIRS = 2048


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
        features = np.array(widest.values)
        # As a batch reads them: positives, and uniform negatives.
        rows = np.concatenate(
            [
                rng.choice(catalog.train.items, _PAIRS),
                rng.integers(catalog.num_items, size=_PAIRS),
            ]
        ).astype(np.int32)
        for suffix, dtype in (("", "float32"), (" in bfloat16", "bfloat16")):
            made[f"projection{suffix}"] = _projection(
                features, rows, rng, jnp.dtype(dtype)
            )
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
    features: np.ndarray,
    rows: np.ndarray,
    rng: np.random.Generator,
    dtype: Any,
) -> Kernel:
    """Some items' features to embeddings, and the gradient of the kernel.

    Args:
      features: of all items.
      rows: which ones, and as often.
      rng: of other factors.
      dtype: that features are kept in; the reference's are of float32.
    """
    count, width = len(rows), features.shape[1]
    kernel = rng.standard_normal((width, DIM), np.float32)
    gradient = rng.standard_normal((count, DIM), np.float32)
    some = jnp.asarray(rows)
    given = [
        jnp.asarray(features, dtype),
        jnp.asarray(kernel),
        jnp.asarray(gradient),
    ]

    @jax.jit
    def run(table, kernel, g):
        out, backward = jax.vjp(
            lambda kernel: wide.project_rows((table,), some, kernel), kernel
        )
        return out, backward(g)

    def reference():
        taken = features[rows]
        return taken @ kernel, taken.T @ gradient

    # The gradient comes after the product, and reads the features again.
    differ = len(np.unique(rows))
    read = 2 * differ * width * given[0].dtype.itemsize
    moved = read + 2 * kernel.nbytes + 2 * gradient.nbytes
    return Kernel(
        lambda: jax.block_until_ready(run(*given)),
        reference,
        moved,
        4 * differ * width * DIM,
    )
