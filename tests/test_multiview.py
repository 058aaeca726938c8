"""BM3, MGCN and SMORE: what is theirs alone.

Their embeddings are compared with the dense reference in test_models.py.
"""

import dataclasses
import functools
import pathlib

import dense
import dense_encoders
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ABSENT, MESHES, make_catalog, on_mesh, some
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritten import make_rewritten
from test_meshes import LAYOUTS
from training import make_config, make_run, small

from neggen_jax.data import graphs
from neggen_jax.data.graphs import Edges
from neggen_jax.data.inputs import ItemGraph, Needs, build, sizes, union
from neggen_jax.errors import InputError
from neggen_jax.models import ENCODERS
from neggen_jax.models.smore import SMORE, signal, spectrum, times
from neggen_jax.ops import sparse
from neggen_jax.run import Run
from neggen_jax.train import train_and_evaluate

DIM = 8
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
REFERENCES = {
    "bm3": dense_encoders.numpy_bm3,
    "mgcn": dense_encoders.numpy_mgcn,
    "smore": dense_encoders.numpy_smore,
}


@functools.cache
def made(name, catalog, mesh, **changes):
    """An encoder, what it reads, and its parameters."""
    partition = on_mesh(*mesh)
    keywords = {**dense_encoders.KEYWORDS[name], **changes}
    module = ENCODERS[name](sizes(catalog, partition), DIM, **keywords)
    inputs = build(catalog, module.needs(), partition)
    init = jax.jit(lambda inputs: module.init(jax.random.key(1), inputs))
    return jax.jit(module.apply), nn.unbox(init(inputs)), inputs


def encode(name, catalog, mesh=(1, 1), rngs=None, **changes):
    """Parameters in float64, and what an encoder makes of them."""
    apply, variables, inputs = made(name, catalog, mesh, **changes)
    encoded = apply(variables, inputs, rngs=rngs)
    params = jax.tree.map(
        lambda x: np.asarray(x, np.float64), variables["params"]
    )
    return params, encoded.whole()


def assert_is(encoded, expected):
    users, items, views = expected
    # Sums of at most a few dozen terms below 1, in float32.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6)
    close(encoded.users, users)
    close(encoded.items, items)
    for view, pair in views.items():
        for got, want in zip(encoded.views[view], pair, strict=True):
            close(got, want)


@pytest.mark.parametrize("name", ["mgcn", "smore"])
def test_the_form_that_was_released(name, catalog):
    params, encoded = encode(name, catalog, form="released")
    assert_is(encoded, REFERENCES[name](params, catalog, released=True))
    with pytest.raises(InputError, match="Unknown form"):
        encode(name, catalog, form="relaesed")


@pytest.mark.parametrize("name", REFERENCES)
def test_one_modality_is_enough(name, catalog):
    params, encoded = encode(name, catalog, modalities=("text",))
    assert_is(encoded, REFERENCES[name](params, catalog, ("text",)))


@pytest.mark.parametrize("name", ["mgcn", "smore"])
def test_an_item_without_modalities_is_its_behaviour(name, catalog):
    _, encoded = encode(name, catalog)
    (none,) = {*ABSENT["text"]} & {*ABSENT["image"]}
    side = np.asarray(encoded.views["side"][1])
    assert not side[none].any()
    np.testing.assert_array_equal(
        encoded.items[none], encoded.views["content"][1][none]
    )
    # Those that lack one have the other's alone.
    assert side[[8, 17]].any(axis=1).all()


def test_bm3_tells_which_items_have_a_modality(catalog):
    _, encoded = encode("bm3", catalog)
    for name, matrix in catalog.features.items():
        there = np.asarray(encoded.present[name])[:, 0]
        np.testing.assert_array_equal(there == 1, matrix.present)
        assert {*np.unique(there)} == {0, 1}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_spectrum_is_that_of_an_fft(dim, seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 3, dim))
    some, other = (
        spectrum(jnp.asarray(x, jnp.float32)),
        spectrum(jnp.asarray(y, jnp.float32)),
    )
    waves = [np.fft.rfft(v, axis=1, norm="ortho") for v in (x, y)]
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    close(some[0] + 1j * np.asarray(some[1]), waves[0])
    close(signal(some, dim), x)
    back = np.fft.irfft(waves[0] * waves[1], n=dim, axis=1, norm="ortho")
    close(signal(times(some, other), dim), back)


def test_graphs_are_pooled_by_the_largest_weight():
    rng = np.random.default_rng(0)
    made, matrices = {}, []
    for name in ("a", "b", "c"):
        matrix = rng.random((7, 7)) * (rng.random((7, 7)) < 0.4)
        ends = np.stack(np.nonzero(matrix))
        made[name] = Edges(ends, matrix[tuple(ends)])
        matrices.append(matrix)
    pooled = graphs.pool(made)
    got = np.zeros((7, 7))
    np.add.at(got, tuple(pooled.ends), pooled.weights)
    np.testing.assert_array_equal(got, np.max(matrices, axis=0))


@pytest.mark.parametrize("mesh", some(MESHES, (4, 2)), ids=str)
def test_pooled_graphs_stand_beside_their_parts(mesh, catalog):
    partition = on_mesh(*mesh)
    needs = Needs(item_item=ItemGraph(6, "cosine", pool=True))
    inputs = build(catalog, union(Needs(features=True), needs), partition)
    parts = {
        name: dense.nearest_items(matrix, 6, "cosine")
        for name, matrix in catalog.features.items()
    }
    parts["fused"] = np.max([*parts.values()], axis=0)
    assert {*inputs.item_item} == {*parts}
    for name, want in parts.items():
        got = sparse.dense(inputs.item_item[name])
        size = catalog.num_items
        np.testing.assert_allclose(got[:size, :size], want, atol=1e-6)
    with pytest.raises(InputError, match="different item-item graphs"):
        union(needs, Needs(item_item=ItemGraph(6, "cosine")))


@pytest.mark.parametrize("mesh", [(1, 1), (1, 8)], ids=str)
def test_gates_are_dropped_where_there_is_a_key(mesh, catalog):
    size = catalog.num_items

    def run(key, mesh=mesh):
        rngs = key if key is None else {"dropout": jax.random.key(key)}
        return encode("smore", catalog, mesh, rngs, dropout=0.5)[1]

    some, other, still = run(0), run(1), run(None)
    np.testing.assert_array_equal(some.items, run(0).items)
    assert np.abs(some.items - other.items).max() > 1e-3
    # The behaviour is nobody's to drop.
    for part in range(2):
        np.testing.assert_array_equal(
            some.views["content"][part], still.views["content"][part]
        )
    # What is dropped follows from the key, not from the mesh.
    np.testing.assert_allclose(
        some.items[:size], run(0, (1, 1)).items[:size], rtol=0, atol=1e-6
    )
    none = encode("smore", catalog)[1]
    np.testing.assert_allclose(
        still.items[:size], none.items[:size], rtol=0, atol=1e-6
    )


@pytest.mark.slow
def test_dropped_gates_are_right_on_average(catalog, one):
    """The side is linear in the gates: their mean gives its mean."""
    module = SMORE(sizes(catalog, one), DIM, dropout=0.5)
    inputs = build(catalog, module.needs(), one)
    variables = nn.unbox(module.init(jax.random.key(1), inputs))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def sides(key, inputs):
        encoded = module.apply(variables, inputs, rngs={"dropout": key})
        return encoded.views["side"][0]

    draws = np.asarray(sides(jax.random.split(jax.random.key(0), 600), inputs))
    real = draws[:, : catalog.num_users]
    want = module.apply(variables, inputs).views["side"][0]
    error = real.std(axis=0) / np.sqrt(len(real))
    far = np.abs(real.mean(axis=0) - want[: catalog.num_users]) / error
    # Of 488 means, one beyond 4.5 errors comes once in 300 runs.
    assert far.max() < 4.5
    assert (real.std(axis=0) > 0).all()


def test_bm3_reads_no_negatives():
    config = make_config("bm3")
    assert not config.negatives
    assert {loss.name for loss in config.losses.values()} == {
        "l2",
        "bootstrap",
        "content_bootstrap",
    }
    with_them = make_config("bm3,popularity")
    assert with_them.negatives.sampled.name == "popularity"
    assert "bpr" in with_them.losses


@pytest.mark.parametrize("batches", [1, 3])
def test_a_step_follows_from_seed_and_step(batches):
    it = small("bm3", train__batches_per_step=batches)
    batch = it.batch(0)
    _, terms = it.step(it.state, it.inputs, batch)
    _, again = it.step(it.state, it.inputs, batch)
    later = dataclasses.replace(it.state, step=it.state.step + 1)
    _, other = it.step(later, it.inputs, batch)
    for name in ("bootstrap", "content"):
        assert terms[name] == again[name]
        assert terms[name] != other[name]
    # What does not draw is the same.
    assert terms["l2"] == other["l2"]


def test_batches_of_a_step_drop_entries_of_their_own():
    """Of one batch twice, the mean is not what either of them has."""
    it = small("bm3", train__batches_per_step=2)
    twice = jax.tree.map(lambda x: jnp.repeat(x[:64], 2), it.batch(0))
    _, terms = it.step(it.state, it.inputs, twice)
    alone = small("bm3")
    half = jax.tree.map(lambda x: x[:64], it.batch(0))
    _, single = alone.step(alone.state, alone.inputs, half)
    np.testing.assert_allclose(terms["l2"], single["l2"], rtol=1e-6)
    assert terms["bootstrap"] != single["bootstrap"]


GENERATED = [
    pytest.param("gdnsm", "bm3", marks=pytest.mark.slow),
    pytest.param("gdnsm", "mgcn", marks=pytest.mark.slow),
    ("neggen", "bm3"),
    pytest.param("neggen", "mgcn", marks=pytest.mark.slow),
    pytest.param("gdnsm", "smore", marks=pytest.mark.slow),
    pytest.param("neggen", "smore,gdnsm", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "argument"), GENERATED)
def test_generated_negatives_come_on_top(file, argument, tmp_path):
    config = make_config(argument, CONFIGS / f"{file}.py", train__epochs=1)
    assert ("sampled" in config.negatives) == (not argument.startswith("bm3"))
    if file == "gdnsm":
        config.negatives.generated.start = 0.0
    results = train_and_evaluate(config, tmp_path, make_rewritten())
    assert np.isfinite(results["valid"]["recall@20"])


@pytest.mark.parametrize("name", some(REFERENCES, "mgcn"))
def test_features_in_bfloat16_are_read_as_such(name):
    run = make_run(name, data__feature_dtype="bfloat16")
    assert {
        matrix.values.dtype.name for matrix in run.inputs.features.values()
    } == {"bfloat16"}
    whole = make_run(name)
    # The same parameters, read beside features rounded to 8 bits.
    state, _ = whole.start()
    for one, other in zip(
        run.encode(state.params), whole.encode(state.params), strict=True
    ):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.02)


def test_a_bound_on_dropout():
    config = make_config("bm3")
    config.losses.bootstrap.dropout = 1.0
    with pytest.raises(InputError) as caught:
        Run.make(config, make_catalog(), jax.devices()[:1])
    assert caught.value.where == "config.losses.bootstrap.dropout"


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(x, marks=() if x == "4x2-all-pull" else pytest.mark.slow)
        for x in LAYOUTS
    ],
)
@pytest.mark.parametrize("name", some(REFERENCES, "mgcn"))
def test_everybody_is_embedded_alike_on_any_mesh(name, layout):
    """What is ranked; ranking itself is exact on any mesh."""
    tables = []
    for data, model, spread, exchange in (
        (1, 1, "model", "gather"),
        LAYOUTS[layout],
    ):
        run = make_run(
            name,
            (data, model),
            mesh__tables=spread,
            mesh__exchange=exchange,
        )
        state, _ = run.start()
        users, items = run.encode(state.params)
        catalog = run.catalog
        tables.append((users[: catalog.num_users], items[: catalog.num_items]))
    for got, want in zip(*tables, strict=True):
        # Sums of at most a few dozen terms below 1, in another order.
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
