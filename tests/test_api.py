"""Recommenders that are not ours: what they take, and that it is the same."""

import dataclasses
import functools
import importlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog, on_mesh
from ml_collections import ConfigDict
from rewritten import make_rewritten, standardised

from neggen_jax import api, metrics, recommender
from neggen_jax.data.inputs import sizes
from neggen_jax.errors import InputError
from neggen_jax.negatives.source import Clock

EXAMPLES = pathlib.Path(__file__).parents[1] / "docs" / "examples"
DIM = 8
NEGATIVES = {
    "rewritten": {"name": "counterfactual", "heads": 2},
    "drawn": {
        "name": "diffusion",
        # One level compiles sooner than three.
        "levels": "joint",
        "samples": 2,
        "start": 2.0,
        "unit": "epochs",
        "timesteps": 4,
        "hidden": 8,
        "steps": 2,
    },
}
LOSSES = {
    "bpr": {"name": "bpr", "weight": 0.5, "source": "drawn"},
    "alignment": {"name": "alignment", "weight": 1.0, "source": "rewritten"},
}


def tables(partition):
    """Embeddings as somebody's own loop may hold them."""
    catalog, rng = make_catalog(), np.random.default_rng(0)
    size = sizes(catalog, partition)
    out = []
    for axis, count in (("user", size.users), ("item", size.items)):
        table = np.zeros((getattr(size, f"{axis}_rows"), DIM), np.float32)
        table[:count] = rng.normal(size=(count, DIM))
        out.append(partition.put(table, axis, "embed"))
    return api.Encoded(*out)


def pairs():
    train = make_catalog().train
    some = np.arange(32) * 7
    return {"users": train.users[some], "items": train.items[some]}


@functools.cache
def attached(data=1, model=1):
    return api.attach(
        make_rewritten(),
        DIM,
        negatives=NEGATIVES,
        losses=LOSSES,
        batch_size=64,
        epochs=10,
        partition=on_mesh(data, model),
    )


@jax.jit
def run(ours, params, kept, encoded, batch, step):
    key = jax.random.key(7)

    def loss(params, encoded):
        drawn, after = ours.draw(params, kept, encoded, batch, step, key)
        total, terms = ours.loss(encoded, batch, drawn)
        return total, (drawn, after, terms)

    both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (total, (drawn, after, terms)), grads = both(params, encoded)
    return total, terms, drawn, after, grads


def ran(mesh=(1, 1), step=100):
    ours = attached(*mesh)
    params, kept = ours.init(jax.random.key(3))
    encoded = tables(on_mesh(*mesh))
    return run(ours, params, kept, encoded, pairs(), jnp.int32(step)), params


def test_it_is_what_our_own_step_computes(one):
    """The same loss as a recommender's whose encoder has these tables.

    And so are its gradients, of what sources learn and of embeddings.
    """
    (total, terms, *_, grads), params = ran()
    ours = attached()
    objective = recommender.build_objective(
        ConfigDict({"negatives": NEGATIVES, "losses": LOSSES})
    )

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def learn(params, encoded):
        return objective.apply(
            {"params": params},
            recommender.placed(encoded, ours.inputs),
            ours.inputs,
            pairs(),
            Clock.at(jnp.int32(100), ours.steps_per_epoch, 10),
            rngs={"negatives": jax.random.key(7)},
            method="loss",
        )

    (want, names), theirs = learn(params, tables(one))
    assert names.keys() == terms.keys()
    np.testing.assert_allclose(total, want, rtol=1e-6)
    for mine, other in zip(*map(jax.tree.leaves, (grads, theirs)), strict=True):
        size = np.abs(other).max()
        assert np.abs(mine).max() > 0 or size == 0
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5 * size)
    assert {"sources_rewritten", "sources_drawn"} == params.keys()


def test_generated_negatives_wait_for_their_time():
    steps = attached().steps_per_epoch
    for epochs, admitted in ((1, 0), (2, 2), (5, 2)):
        (_, terms, drawn, *_), _ = ran(step=epochs * steps)
        assert terms["drawn/admitted"] == admitted
        assert (np.asarray(drawn["drawn"].weights).sum(1) == admitted).all()


def test_what_would_draw_nothing_is_said():
    with pytest.warns(UserWarning, match="let in from 30 epochs on"):
        api.attach(
            make_rewritten(),
            DIM,
            negatives={"drawn": {"name": "diffusion"}},
            epochs=30,
        )


def test_a_batch_has_users_and_items():
    ours = attached()
    params, kept = ours.init(jax.random.key(3))
    encoded, wrong = tables(on_mesh(1, 1)), {"user": [0], "items": [0]}
    with pytest.raises(InputError, match="has no users") as caught:
        ours.draw(params, kept, encoded, wrong, 0, jax.random.key(0))
    assert caught.value.found == "user, items"


def test_each_side_has_its_own_gradient():
    """No gradient of the generator's loss goes to embeddings, nor back."""
    (*_, (params, encoded)), _ = ran()
    for part in (params["sources_rewritten"], params["sources_drawn"]):
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(part))
    assert np.abs(encoded.users).max() > 0
    alone = {"drawn": NEGATIVES["drawn"]}
    ours = api.attach(make_catalog(), DIM, negatives=alone)
    values, kept = ours.init(jax.random.key(3))
    known = tables(on_mesh(1, 1))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def generators(params, encoded):
        key = jax.random.key(7)
        drawn, _ = ours.draw(params, kept, encoded, pairs(), 100, key)
        return drawn["drawn"].losses["denoiser"]

    params, encoded = generators(values, known)
    assert all(not np.any(x) for x in jax.tree.leaves(encoded))
    assert any(np.any(x) for x in jax.tree.leaves(params["sources_drawn"]))


@pytest.mark.slow
def test_the_same_on_eight_devices():
    """Sums of some hundred terms in another order: a hundred roundings."""
    tolerance = 100 * float(np.finfo(np.float32).eps)
    (one, terms, drawn, *_), _ = ran()
    (many, others, away, *_), _ = ran((4, 2))
    np.testing.assert_allclose(one, many, rtol=tolerance)
    for name in ("bpr", "alignment", "drawn/denoiser"):
        np.testing.assert_allclose(terms[name], others[name], rtol=tolerance)
    for name, some in drawn.items():
        np.testing.assert_allclose(
            some.vectors, away[name].vectors, rtol=0, atol=10 * tolerance
        )


def test_a_bank_is_carried_from_step_to_step():
    """What is drawn for one pair in two is read for its user again."""
    bank = {"drawn": {**NEGATIVES["drawn"], "bank": 2}}
    ours = api.attach(make_catalog(), DIM, negatives=bank)
    encoded, batch = tables(on_mesh(1, 1)), pairs()
    params, kept = ours.init(jax.random.key(3))

    @jax.jit
    def draw(kept, step):
        key = jax.random.fold_in(jax.random.key(7), step)
        return ours.draw(params, kept, encoded, batch, step, key)

    assert kept.keys() == {"bank"}
    drawn, kept = draw(kept, jnp.int32(0))
    assert not np.any(drawn["drawn"].weights)
    for step in (200, 201):
        drawn, kept = draw(kept, jnp.int32(step))
        (table,) = (x for x in jax.tree.leaves(kept) if x.ndim == 3)
        read = np.asarray(table)[batch["users"]] * encoded.items.std()
        np.testing.assert_allclose(read, drawn["drawn"].vectors, rtol=1e-5)
        there = np.isin(batch["users"], batch["users"][::2])
        told = np.asarray(drawn["drawn"].weights)
        np.testing.assert_array_equal(told.all(axis=1), there)


def test_rewritten_items_are_handed_out():
    known = standardised(make_rewritten().counterfactuals)
    items = np.array([3, 11, 2])
    got = attached().rewritten(jnp.asarray(items))
    assert got.keys() == known.keys()
    for name, rows in got.items():
        np.testing.assert_allclose(
            rows.counterfactual,
            known[name].counterfactual[items],
            rtol=0,
            atol=1e-5,
        )
        np.testing.assert_array_equal(rows.present, known[name].present[items])


def test_rankings_have_the_effects():
    ours, encoded = attached(), tables(on_mesh(1, 1))
    params, _ = ours.init(jax.random.key(3))
    moved = ours.extend(params, encoded)
    apart = np.abs(moved.items - encoded.items).max(axis=1)
    known = make_rewritten().counterfactuals.modalities.values()
    there = np.any([part.present.any(axis=1) for part in known], axis=0)
    np.testing.assert_array_equal(apart > 0, there)
    np.testing.assert_array_equal(moved.users, encoded.users)


def test_accuracy_equals_ranking_by_hand(catalog):
    rng = np.random.default_rng(1)
    users = rng.normal(size=(catalog.num_users, 3))
    items = rng.normal(size=(catalog.num_items, 3))
    scores = users.astype(np.float32) @ items.astype(np.float32).T
    for name in ("train", "valid"):
        part = catalog.splits[name]
        scores[part.users, part.items] = -np.inf
    lists = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    test = catalog.splits["test"]
    hits = {
        user: np.isin(lists[user], test.items[test.users == user])
        for user in np.unique(test.users)
    }
    want = metrics.summarize(
        metrics.accuracy(
            np.stack([*hits.values()]),
            np.bincount(test.users)[[*hits]],
            (5,),
        )
    )
    got = api.accuracy(catalog, users, items, "test", (5,))
    assert got == pytest.approx(want)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"negatives": {"x": {"name": "difusion"}}}, "diffusion"),
        ({"negatives": {"x": {"name": "diffusion", "stpes": 1}}}, "steps"),
        ({"negatives": {"x": {"name": "diffusion", "eta": 2.0}}}, "eta"),
        ({"losses": {"y": {"name": "bpr"}}}, "weight"),
    ],
)
def test_what_cannot_be_attached_is_named(changes, said, catalog):
    given = {"negatives": {}, "losses": {}} | changes
    with pytest.raises(api.InputError, match=said):
        api.attach(catalog, DIM, **given)


def test_embeddings_of_another_shape_are_refused():
    ours, encoded = attached(), tables(on_mesh(1, 1))
    params, kept = ours.init(jax.random.key(3))
    short = dataclasses.replace(encoded, items=encoded.items[:-1])
    with pytest.raises(api.InputError, match="items have another shape"):
        ours.draw(params, kept, short, pairs(), 0, jax.random.key(0))


def test_without_counterfactuals_there_is_nothing_rewritten(catalog):
    ours = api.attach(catalog, DIM, negatives={"x": {"name": "uniform"}})
    with pytest.raises(api.InputError, match="counterfactual"):
        ours.rewritten(jnp.arange(3))


# --- by their names in a config ----------------------------------------------


@pytest.fixture
def examples(monkeypatch):
    """The modules of docs/examples, importable."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names = ("own_encoder", "own_loop")
    yield tuple(map(importlib.import_module, names))
    for name in (*names, "small_shop"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_encoder:Towr", "Towr"),
        ("no_such_module:Tower", "no_such_module"),
        ("own_loop:bpr", "subclass of neggen_jax.models.encoder.Encoder"),
    ],
)
def test_a_name_that_is_no_encoders_is_refused(name, said, examples, one):
    config = examples[0].get_config("baseline")
    with config.unlocked():
        config.encoder.name = name
    with pytest.raises(api.InputError, match=re.escape(said)):
        recommender.build(config, sizes(make_catalog(), one))


def regions(path):
    """Lines of code that take our negatives, and all others."""
    inside, ours, others, document = False, [], [], False
    for line in path.read_text().splitlines():
        text = line.strip()
        if text.startswith("# --- "):
            inside = text.startswith("# --- ours")
        elif text.startswith('"""'):
            document = not document and text.count('"""') == 1
        elif text and not document and not text.startswith("#"):
            (ours if inside else others).append(text)
    return ours, others


@pytest.mark.parametrize("name", ["own_encoder", "own_loop"])
def test_an_example_takes_negatives_in_few_lines(name):
    ours, others = regions(EXAMPLES / f"{name}.py")
    assert 3 < len(ours) < 30
    # Nothing of it stands elsewhere.
    told = re.compile(r"\b(attach|draw|drawn|extend|after|load_config)\(")
    assert not [line for line in others if told.search(line)]


def test_a_loop_of_ones_own_learns(examples):
    """On its own negatives, and with both kinds of generated ones."""
    _, loop = examples
    catalog = make_rewritten()
    small = {**loop.NEGATIVES["gdnsm"], "start": 1.0, "unit": "steps"}
    small |= {"levels": "joint", "timesteps": 5, "steps": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "BATCH", 128)
        given = {**loop.NEGATIVES, "gdnsm": small}
        told, users, items = loop.train(catalog, given, loop.LOSSES, 80, 0)
    assert told[-9:].mean() < 0.8 * told[:9].mean()
    assert users.shape == (catalog.num_users, loop.DIM)
    assert items.shape == (catalog.num_items, loop.DIM)


@pytest.mark.parametrize("word", ["baseline", "neggen", "gdnsm"])
def test_an_encoder_of_ones_own_stands_in_configs(word, examples, one):
    config = examples[0].get_config(word)
    model = recommender.build(config, sizes(make_catalog(), one))
    assert isinstance(model.encoder, api.Encoder)
    assert type(model.encoder).__name__ == "Tower"
    assert ("generated" in model.sources) == (word == "gdnsm")
    assert ("counterfactual" in model.sources) == (word == "neggen")


@pytest.mark.slow
@pytest.mark.parametrize("word", ["neggen", "gdnsm"])
def test_an_encoder_of_ones_own_trains(word, examples, tmp_path):
    from neggen_jax.train import train_and_evaluate

    config = examples[0].get_config(word)
    small = {"encoder.dim": 8, "train.batch_size": 64, "train.epochs": 2}
    small |= {"evaluate.report": False, "data.pipeline": "numpy"}
    if word == "gdnsm":
        small |= {"negatives.generated.start": 0.0}
    config.update_from_flattened_dict(small)
    with config.unlocked():
        config.evaluate.cutoffs = (5, 20)
    results = train_and_evaluate(config, tmp_path, make_rewritten())
    assert results["config"]["encoder"]["name"] == "own_encoder:Tower"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    losses = [line["train/loss"] for line in told if "train/loss" in line]
    assert losses[-1] < losses[0]
