"""What is computed for the rows of a batch is what whole tables have there."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog, some
from rewritten import NEGGEN, make_rewritten
from training import BASELINE, make_config, make_run

from neggen_jax.data.inputs import build, sizes
from neggen_jax.models import ENCODERS, lazy
from neggen_jax.models.mgcn import Layer
from neggen_jax.ops import native, sparse
from neggen_jax.run import Run

GDNSM = BASELINE.with_name("gdnsm.py")

needs_compiler = pytest.mark.skipif(
    not native.available(), reason="there is no C++ compiler"
)


class Counted:
    """`multiply`, and how often it was called."""

    calls = 0

    def __call__(self, graph, x):
        """Multiplies."""
        self.calls += 1
        return sparse.multiply(graph, x)


def step(argument):
    """Terms and gradients of one step, of batches that read some rows."""
    return first(make_run(argument, train__batch_size=16))


def first(run):
    """Those of the first step of a run."""
    state, _ = run.start()
    inputs = jax.jit(run.program.prepare)(run.inputs, jnp.int32(0))
    batch = jax.tree.map(lambda x: x[0], next(run.batches(0)))
    grads, terms, _ = jax.jit(run.program._gradient)(state, inputs, batch)
    return grads, terms


def alike(got, want):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max())
        ),
        got,
        want,
    )


@needs_compiler
@pytest.mark.parametrize(
    "argument",
    some(
        [
            f"{encoder},{negatives}"
            for encoder in ("lightgcn", "freedom", "mci")
            for negatives in ("uniform", "dns", "mixgcf")
        ]
        + ["mgcn,uniform"],
        "lightgcn,uniform",
        "freedom,dns",
        "mci,uniform",
    ),
)
def test_a_step_is_that_of_whole_products(argument, monkeypatch):
    met = []

    def seen(graph, x, ids):
        met.append(ids.size)
        return sparse.multiply_rows(graph, x, ids)

    monkeypatch.setattr(lazy, "multiply_rows", seen)
    few = step(argument)
    # Whoever mixes layers reads all of each.
    assert bool(met) == ("mixgcf" not in argument)
    monkeypatch.setattr(lazy, "picks", lambda graph: False)
    for got, want in zip(few, step(argument), strict=True):
        alike(got, want)


@needs_compiler
@pytest.mark.parametrize(
    ("file", "argument", "users"),
    [
        (NEGGEN, "lightgcn", 1),
        # A side view has users too.
        (NEGGEN, "mci", 2),
        # How hard negatives are is told for some users, read for that.
        (GDNSM, "mci", 4),
    ],
)
def test_positives_are_read_once_whoever_reads_them(
    file, argument, users, monkeypatch
):
    config = make_config(argument, file, train__batch_size=16)
    run = Run.make(config, make_rewritten(), jax.devices()[:1])
    met = []

    def seen(graph, x, ids):
        met.append(ids.shape)
        return sparse.multiply_rows(graph, x, ids)

    monkeypatch.setattr(lazy, "multiply_rows", seen)
    few = first(run)
    # As often as the step is traced; items together with their negatives.
    assert set(met) == {(16,), (16, 2)}
    assert met.count((16,)) == users * met.count((16, 2))
    monkeypatch.setattr(lazy, "picks", lambda graph: False)
    for got, want in zip(few, first(run), strict=True):
        alike(got, want)


@needs_compiler
@pytest.mark.parametrize("name", ["lightgcn", "freedom", "mci", "mgcn"])
def test_a_part_of_several_tables_is_computed_once(name, one, monkeypatch):
    catalog = make_catalog()
    module = ENCODERS[name](sizes(catalog, one), dim=8)
    inputs = build(catalog, module.needs(), one)
    variables = jax.jit(module.init)(jax.random.key(0), inputs)
    # Some lack a modality, and one comes twice.
    ids = jnp.array([[0, 5], [8, 17], [30, 5]])

    def read(variables, whole=False):
        encoded = lazy.in_float32(module.apply(variables, inputs))
        encoded = encoded.whole() if whole else encoded
        encoded = dataclasses.replace(encoded, taken={})
        views = [encoded.views[x] for x in sorted(encoded.views)]
        tables = [(encoded.users, encoded.items), *views]
        return [encoded.take(x, ids) for both in tables for x in both]

    met = []

    def seen(graph, x, ids):
        met.append(ids.shape)
        return sparse.multiply_rows(graph, x, ids)

    monkeypatch.setattr(lazy, "multiply_rows", seen)
    rows = jax.jit(read)(variables)
    # Users and items of the last layer, and the users' side view.
    assert met == [ids.shape] * (3 if name in ("mci", "mgcn") else 2)
    monkeypatch.setattr(lazy, "multiply", whole := Counted())
    every = jax.jit(read, static_argnums=1)(variables, True)
    for got, want in zip(rows, every, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    assert whole.calls == len(met)


def test_what_wants_an_array_gets_it(one):
    pairs = np.array([0, 2, 2]), np.array([1, 0, 1])
    graph = sparse.make_graph(pairs, np.arange(1.0, 4.0), (3, 2), one)
    table = lazy.added((jnp.ones((3, 4)), lazy.Product(graph, np.ones((2, 4)))))
    want = np.array([2.0, 1.0, 6.0])[:, None] * np.ones(4)
    np.testing.assert_array_equal(table, want)
    np.testing.assert_array_equal(list(table), want)
    np.testing.assert_array_equal(table[1:], want[1:])
    assert table.shape == np.shape(want)
    assert len(table) == 3


@needs_compiler
def test_whoever_takes_it_for_an_array_has_one(one):
    catalog = make_catalog()
    module = ENCODERS["lightgcn"](sizes(catalog, one), dim=8)
    inputs = build(catalog, module.needs(), one)
    variables = jax.jit(module.init)(jax.random.key(0), inputs)

    @jax.jit
    def read(variables):
        encoded = module.apply(variables, inputs)
        users, items = encoded.users, encoded.items
        assert isinstance(items, lazy.Lazy)
        whole = encoded.whole()
        odd = jnp.arange(len(items)) % 2 == 1
        ours = (
            users @ items.T,
            whole.users @ items.T,
            items + whole.items,
            jnp.mean(items),
            jnp.where(odd[:, None], items, 0),
            items[-3:],
            items[-2],
        )
        theirs = (
            *[whole.users @ whole.items.T] * 2,
            2 * whole.items,
            whole.items.mean(),
            jnp.where(odd[:, None], whole.items, 0),
            whole.items[-3:],
            whole.items[-2],
        )
        return ours, theirs

    for got, want in zip(*read(variables), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    encoded = module.apply(variables, inputs)
    odd = np.arange(len(encoded.items)) % 2 == 1
    np.testing.assert_allclose(
        encoded.items[odd], encoded.whole().items[odd], atol=1e-6
    )


def test_layers_of_later_rows_are_those_of_flax():
    """Checkpoints of either hold the same, and begin the same."""
    x = jnp.ones((2, 5))
    for bias in (True, False):
        ours = Layer(3, use_bias=bias).init(jax.random.key(1), 5)
        theirs = nn.Dense(3, use_bias=bias).init(jax.random.key(1), x)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
