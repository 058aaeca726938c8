"""NegGen's source: what it gives, what is ranked, and whole runs of it."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rewritten import make_counterfactuals, make_neggen, make_rewritten
from training import make_config, numbers

from neggen_jax import train
from neggen_jax.data import rewritten
from neggen_jax.errors import InputError
from neggen_jax.models.causal import CausalEffect
from neggen_jax.run import Run, reopen

STRENGTH = 0.4


def make_run(argument="lightgcn", mesh=(1, 1), catalog=None, **changes):
    config = make_neggen(argument, **changes)
    config.mesh.data, config.mesh.model = mesh
    devices = jax.devices()[: mesh[0] * mesh[1]]
    return Run.make(config, catalog or make_rewritten(), devices)


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def state(run):
    return run.start()[0]


def first_batch(run):
    return {k: v[0] for k, v in next(run.batches(0)).items()}


def drawn(run, state, batch):
    """What the source gives a batch, and the embeddings it is given."""
    model = run.program.recommender

    def draw(model, inputs, batch):
        encoded = model.encoder(inputs)
        source = model.sources["counterfactual"]
        clock = run.program.clock(jnp.int32(0))
        return encoded, source(encoded, inputs, batch, clock)

    made = nn.apply(draw, model)({"params": state.params}, run.inputs, batch)
    return jax.device_get(made)


def effects(run, state, items=None):
    """The causal effect by itself, outside of any source."""
    params = state.params["sources_counterfactual"]["causal"]
    rows = rewritten.rows(run.inputs.counterfactuals, {}, items)
    module = CausalEffect(effect=source_of(run).effect)
    return jax.device_get(module.apply({"params": params}, rows, 8))


def source_of(run):
    return run.program.recommender.sources["counterfactual"]


def added(run, base, effect):
    """Embeddings `[..., d]` plus lambda times effects, in float64."""
    base, effect = np.float64(base), np.float64(effect)
    if source_of(run).length == "embedding":
        norms = [
            np.linalg.norm(x, axis=-1, keepdims=True) for x in (base, effect)
        ]
        effect = effect * norms[0] / np.maximum(norms[1], 1e-6)
    return base + STRENGTH * effect


@pytest.mark.parametrize(
    "argument",
    ["lightgcn", pytest.param("lightgcn,published", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("score", ["symmetric", "paper"])
def test_negatives(state, argument, score):
    run = make_run(argument, negatives__counterfactual__score=score)
    batch = first_batch(run)
    encoded, made = drawn(run, state, batch)
    items = np.asarray(batch["items"])
    effect = effects(run, state, items)
    base = encoded.items[items]
    wrong = effect.counterfactual
    if score == "symmetric":
        wrong = added(run, base[:, None], wrong)
    # The same numbers, of sums in another order.
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(made.vectors, wrong, **close)
    np.testing.assert_allclose(
        made.positives, added(run, base, effect.factual), **close
    )
    np.testing.assert_array_equal(made.weights, effect.present)
    assert 0 < made.weights.mean() < 1
    assert made.items is None


def test_without_contrast_there_are_effects_and_no_negatives(state):
    batch = first_batch(make_run())
    _, full = drawn(make_run(), state, batch)
    _, made = drawn(make_run("lightgcn,no_negatives"), state, batch)
    assert not np.asarray(made.weights).any()
    assert not np.asarray(made.effect.present).any()
    np.testing.assert_array_equal(made.positives, full.positives)
    np.testing.assert_array_equal(made.effect.known, full.effect.known)
    assert np.asarray(full.effect.present).any()


def test_the_length_of_an_embedding_is_no_way_to_please_a_loss(state):
    """An effect as long as its embedding does not lengthen it."""
    run = make_run()
    batch = first_batch(run)
    model = run.program.recommender

    def size(items):
        def read(model, items):
            encoded = model.encoder(run.inputs)
            encoded = dataclasses.replace(encoded, items=items)
            source = model.sources["counterfactual"]
            clock = run.program.clock(jnp.int32(0))
            made = source(encoded, run.inputs, batch, clock)
            # Only what was added, so only through the length.
            return jnp.sum(made.positives - items[batch["items"]])

        return nn.apply(read, model)({"params": state.params}, items)

    items = run.encode(state.params)[1]
    assert abs(float(size(items))) > 0
    assert not np.asarray(jax.grad(size)(jnp.asarray(items))).any()


@pytest.mark.parametrize("field", ["effect", "length", "score"])
def test_unknown_words_are_named(field):
    with pytest.raises(InputError, match=f"(?i)unknown.*{field}") as caught:
        make_run(**{f"negatives__counterfactual__{field}": "sideways"}).start()
    assert "sideways" in str(caught.value)


@pytest.mark.parametrize("feed", rewritten.FEEDS)
def test_ranks_by_embedding_plus_effect(run, state, feed):
    # Blocks that do not divide the items, and overlap at the end.
    other = make_run(data__counterfactuals__feed=feed, evaluate__block_size=16)
    users, items = other.encode(state.params)
    model = run.program.recommender.encoder
    plain = model.apply({"params": state.params["encoder"]}, run.inputs)
    effect = effects(run, state).factual
    np.testing.assert_allclose(users, plain.users, rtol=1e-6)
    want = added(run, plain.items, effect)
    np.testing.assert_allclose(items, want, rtol=1e-5, atol=1e-6)
    assert np.abs(STRENGTH * effect).max() > 0.1


@pytest.mark.slow
def test_feeds_train_alike(tmp_path):
    """From tables, and in batches that tf.data has formed."""
    found = []
    for feed, pipeline in (("tables", "numpy"), ("batches", "tf.data")):
        config = make_neggen(
            "lightgcn",
            data__counterfactuals__feed=feed,
            data__pipeline=pipeline,
            train__epochs=2,
        )
        train.train_and_evaluate(config, tmp_path / feed, make_rewritten())
        lines = (tmp_path / feed / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    for mine, theirs in zip(*found, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            # What XLA fuses around a gather differs between the feeds.
            assert value == pytest.approx(theirs[key], rel=1e-4), key


@pytest.mark.parametrize(
    ("mesh", "feed"),
    [
        pytest.param((8, 1), "batches", marks=pytest.mark.slow),
        ((1, 8), "tables"),
    ],
)
def test_a_step_is_the_same_on_every_mesh(run, state, mesh, feed):
    batch = first_batch(run)
    _, want = jax.jit(run.program.step)(state, run.inputs, batch)
    other = make_run(mesh=mesh, data__counterfactuals__feed=feed)
    theirs, _ = other.start()
    same = first_batch(other)
    _, got = jax.jit(other.program.step)(theirs, other.inputs, same)
    for name, value in want.items():
        # Sums of some thousand terms in another order; see test_configs.
        near = 100 * float(np.finfo(np.float32).eps)
        if name == "update_norm":
            # Adam's first step has the size of the rate wherever a gradient
            # is not exactly zero, were it all noise.
            near = 1e-3
        assert float(got[name]) == pytest.approx(
            float(value), rel=near, abs=near
        ), name


def test_shuffled_effects_are_those_of_others(run):
    known = make_counterfactuals()
    moved = known.shuffled(0)
    for name, part in known.modalities.items():
        other = moved.modalities[name]
        np.testing.assert_array_equal(other.factual, part.factual)
        np.testing.assert_array_equal(other.present, part.present)
    masks = np.concatenate(
        [p.present for p in known.modalities.values()], axis=1
    )
    _, kind, size = np.unique(
        masks, axis=0, return_inverse=True, return_counts=True
    )
    company = (size[kind] > 1) & masks.any(axis=1)
    kept = np.ones(len(masks), bool)
    for name, part in known.modalities.items():
        other = moved.modalities[name]
        kept &= (part.counterfactual == other.counterfactual).all(axis=(1, 2))
    assert company.sum() > 20
    assert not kept[company].any()


@pytest.mark.parametrize(
    "argument",
    [
        pytest.param("vbpr,text", marks=pytest.mark.slow),
        pytest.param("mf,shuffled", marks=pytest.mark.slow),
        pytest.param("mci,conditioned", marks=pytest.mark.slow),
        "lightgcn,published",
    ],
)
def test_experiments_train(argument, tmp_path):
    config = make_neggen(argument, train__epochs=1)
    results = train.train_and_evaluate(config, tmp_path, make_rewritten())
    assert 0 <= results["test"]["recall@20"] <= 1
    assert results["config"]["data"]["counterfactuals"]["name"] == "attributes"


def test_without_effect_nothing_is_added(tmp_path):
    run = make_run("lightgcn,no_effect")
    state, _ = run.start()
    model = run.program.recommender.encoder
    plain = model.apply({"params": state.params["encoder"]}, run.inputs)
    np.testing.assert_array_equal(run.encode(state.params)[1], plain.items)


def test_says_what_is_missing():
    with pytest.raises(InputError, match="no set is named") as caught:
        make_run(
            catalog=dataclasses.replace(make_rewritten(), counterfactuals=None)
        )
    assert "launch/generate.py" in caught.value.fix


def test_refuses_a_modality_that_was_not_rewritten():
    """Rather than training with no counterfactual at all."""
    known = make_counterfactuals()
    told = dataclasses.replace(
        known, modalities={"text": known.modalities["text"]}
    )
    catalog = dataclasses.replace(make_rewritten(), counterfactuals=told)
    with pytest.raises(InputError, match="has none") as caught:
        make_run("lightgcn,image", catalog=catalog)
    assert caught.value.expected == "some of text"


def test_a_workdir_is_tied_to_its_counterfactuals(tmp_path):
    config = make_neggen("lightgcn", train__epochs=1)
    train.train_and_evaluate(config, tmp_path, make_rewritten())
    other = dataclasses.replace(
        make_rewritten(), counterfactuals=make_counterfactuals(seed=1)
    )
    with pytest.raises(InputError, match="other data"):
        train.train_and_evaluate(config, tmp_path, other)


@pytest.fixture
def base(tmp_path):
    """The workdir of a trained MCI, whose data stays in memory."""
    config = make_config("mci", train__epochs=1)
    train.train_and_evaluate(config, tmp_path / "base", make_rewritten())
    return tmp_path / "base"


def test_starts_from_a_trained_encoder(base, tmp_path):
    _, trained, _ = reopen(base, catalog=make_rewritten())
    config = make_neggen("mci", train__start_from=str(base))
    config.optimizer.learning_rate = 0.0
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path / "warm", make_rewritten())
    _, state, _ = reopen(tmp_path / "warm", catalog=make_rewritten())
    got = numbers(state.params["encoder"])
    want = numbers(trained.params["encoder"])
    assert got.keys() == want.keys()
    for name, value in want.items():
        rows = min(len(value), len(got[name]))
        np.testing.assert_array_equal(got[name][:rows], value[:rows])


def test_starts_from_the_same_encoder_alone(base, tmp_path):
    config = make_neggen("mci", train__start_from=str(base), encoder__layers=1)
    with pytest.raises(InputError, match="another encoder"):
        train.train_and_evaluate(config, tmp_path / "warm", make_rewritten())
