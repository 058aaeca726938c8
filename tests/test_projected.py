"""Tables of which a step computes the rows that it reads."""

import dataclasses
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog, on_mesh, some
from training import make_config, make_run

from neggen_jax.data.inputs import build, sizes
from neggen_jax.models import ENCODERS
from neggen_jax.models.encoder import Encoded
from neggen_jax.models.lazy import Lazy
from neggen_jax.recommender import Recommender
from neggen_jax.train import train_and_evaluate

DIM = 8
ROOT = pathlib.Path(__file__).parents[1]
GDNSM = ROOT / "configs" / "gdnsm.py"


def lazy(table):
    return isinstance(table, Lazy)


@pytest.fixture(scope="module")
def catalog():
    return make_catalog()


@pytest.fixture(scope="module")
def one():
    return on_mesh(1, 1)


@pytest.mark.parametrize("name", some(["vbpr", "freedom", "bm3"], "bm3"))
def test_rows_are_those_of_the_whole_table(name, catalog, one):
    module = ENCODERS[name](sizes(catalog, one), dim=DIM)
    inputs = build(catalog, module.needs(), one)
    variables = nn.unbox(module.init(jax.random.key(0), inputs))
    ids = jnp.array([[3, 0], [0, 1]])

    def read(variables, whole):
        encoded = module.apply(variables, inputs)
        if whole:
            encoded = encoded.whole()
        views = [encoded.views[name][1] for name in sorted(encoded.views)]
        tables = [encoded.items, *views]
        return [encoded.take(table, ids) for table in tables], tables

    def loss(variables, whole):
        return sum(jnp.sum(jnp.sin(x)) for x in read(variables, whole)[0])

    rows, few = read(variables, False)
    again, tables = read(variables, True)
    assert any(map(lazy, few))
    for part, same, table, one_table in zip(
        rows, again, tables, few, strict=True
    ):
        assert table.shape == one_table.shape == (len(table), part.shape[-1])
        assert len(one_table) == len(table)
        assert table.dtype == one_table.dtype
        np.testing.assert_allclose(part, same, rtol=0, atol=1e-5)
    gradients = [jax.grad(loss)(variables, whole) for whole in (False, True)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4),
        *gradients,
    )


def test_rows_are_taken_once_in_a_loss(catalog, one):
    module = ENCODERS["mf"](sizes(catalog, one), dim=DIM)
    inputs = build(catalog, module.needs(), one)
    variables = nn.unbox(module.init(jax.random.key(0), inputs))
    ids = jnp.arange(4)

    def body(encoded):
        first = encoded.take(encoded.items, ids)
        assert encoded.take(encoded.views["ego"][1], ids) is first
        assert encoded.take(encoded.items, ids + 0) is not first

        # What a loop has taken is of no use outside of it, and the reverse.
        def one_more(_):
            return encoded.take(encoded.items, ids)

        looped = jax.lax.map(one_more, jnp.arange(2))
        return first + looped[0] + encoded.take(encoded.items, ids)

    def run(variables):
        encoded = module.apply(variables, inputs)
        return body(dataclasses.replace(encoded, taken={}))

    items = jax.jit(lambda v: module.apply(v, inputs).items)(variables)
    np.testing.assert_allclose(jax.jit(run)(variables), 3 * items[:4])


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("argument", "file"),
    [
        ("vbpr", None),
        pytest.param("vbpr,dns", None, marks=pytest.mark.slow),
        pytest.param("freedom", None, marks=pytest.mark.slow),
        ("bm3", None),
        pytest.param("vbpr,no_schedule", GDNSM, marks=pytest.mark.slow),
    ],
)
def test_a_step_is_that_with_whole_tables(argument, file, dtype, monkeypatch):
    changes = {"train__batch_size": 16, "train__dtype": dtype}
    if file is not None:
        changes["file"] = file
    met = []
    embed = Recommender.embed

    def seen(self, inputs, whole=True):
        encoded = embed(self, inputs, whole)
        met.append(any(map(lazy, jax.tree.leaves(encoded, is_leaf=lazy))))
        return encoded

    def after(embed):
        monkeypatch.setattr(Recommender, "embed", embed)
        run = make_run(argument, **changes)
        state, _ = run.start()
        inputs = jax.jit(run.program.prepare)(run.inputs, jnp.int32(0))
        batch = jax.tree.map(lambda x: x[0], next(run.batches(0)))
        state, terms = jax.jit(run.program.step)(state, inputs, batch)
        return state.params, terms

    params, terms = after(seen)
    assert met[-1]
    expected, wanted = after(lambda self, inputs, _=True: embed(self, inputs))
    # In bfloat16 rows are rounded alike, but not sums of their gradients.
    bound = 1e-4 if dtype == "float32" else 2e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=bound, atol=bound),
        (params, terms),
        (expected, wanted),
    )


def test_gradients_of_a_row_are_summed_in_float32(catalog, one):
    module = ENCODERS["vbpr"](sizes(catalog, one), dim=DIM)
    inputs = build(catalog, module.needs(), one)
    half = {
        "params": nn.unbox(module.init(jax.random.key(0), inputs))["params"]
    }
    half = jax.tree.map(lambda x: x.astype("bfloat16"), half)
    ids = jnp.zeros(2048, jnp.int32)

    def loss(half):
        encoded = module.apply(half, inputs)
        items = encoded.items.in_float32()
        assert items.dtype == jnp.float32
        rows = dataclasses.replace(encoded, items=items).take(items, ids[:16])
        # More rows than there are items are taken of the whole table.
        every = Encoded(encoded.users, items, {}).take(items, ids)
        return rows[:, :DIM].sum() + every[:, :DIM].sum()

    gradient = jax.grad(loss)(half)["params"]["items"]
    # A bfloat16 that counts by ones stops at 256.
    np.testing.assert_array_equal(gradient[0], 2048 + 16)


def test_the_encoder_of_the_docs_trains(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "encoders.md").read_text()
    code = re.search(r"## Your own encoder\n\n```python\n(.*?)```", page, re.S)
    made: dict = {}
    exec(code[1], made)
    monkeypatch.setitem(ENCODERS, "content", made["Content"])
    config = make_config("mf", train__epochs=1, train__batch_size=16)
    config.encoder.name = "content"
    results = train_and_evaluate(config, tmp_path / "run", make_catalog())
    assert np.isfinite(results["valid"]["recall@20"])
