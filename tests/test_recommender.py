"""A composition: by config, and of classes that are not in the package."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_mesh
from ml_collections import ConfigDict

from neggen_jax import losses, recommender
from neggen_jax.config import base
from neggen_jax.data.inputs import Needs, build, sizes
from neggen_jax.errors import InputError
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.negatives.source import Clock, Negatives, Source
from neggen_jax.recommender import Recommender


class Tags(Encoder):
    """A user's own encoder: a table of users, and items from their text."""

    def needs(self):
        return Needs(features=True, modalities=("text",))

    @nn.compact
    def __call__(self, inputs):
        users = self.user_table()
        text = inputs.features["text"].values
        items = nn.Dense(self.dim, name="words")(text)
        return Encoded(users, items, {"ego": (users, items)})


class Noisy(Source):
    """A user's own source: the positive, moved; it learns how far."""

    count: int = 2

    @nn.compact
    def __call__(self, encoded, inputs, batch, clock):
        width = self.param("width", nn.initializers.ones, ())
        near = encoded.items[batch["items"]][:, None]
        shape = (near.shape[0], self.count, near.shape[-1])
        noise = jax.random.normal(self.make_rng("negatives"), shape)
        return Negatives(
            jax.lax.stop_gradient(near) + width * noise,
            jnp.ones(shape[:2]),
            losses={"width": jnp.square(width - 0.5)},
            metrics={"epoch": clock.epoch, "width": width},
        )


def example(catalog):
    rows = np.arange(0, len(catalog.train), 11)[:32]
    return {
        "users": catalog.train.users[rows],
        "items": catalog.train.items[rows],
    }


def program(model, catalog):
    """Seed -> parameters, total, terms and gradients of one batch."""
    inputs = build(catalog, model.encoder.needs(), on_mesh(1, 1))
    batch = example(catalog)
    clock = Clock(jnp.int32(20), jnp.float32(2.0), jnp.float32(0.1))

    @jax.jit
    def first(inputs, seed):
        inputs = model.prepare(inputs, jax.random.key(5))
        keys = {"params": jax.random.key(0), "negatives": jax.random.key(seed)}
        params = nn.unbox(model.init(keys, inputs, batch, clock)["params"])

        def loss(params):
            return model.apply(
                {"params": params}, inputs, batch, clock, rngs=keys
            )

        step = jax.value_and_grad(loss, has_aux=True)
        (total, terms), gradients = step(params)
        return params, total, terms, gradients

    return lambda seed: jax.device_get(first(inputs, seed))


def run(model, catalog):
    return program(model, catalog)(1)


def config(**parts):
    out = base()
    out.encoder = {"name": "mf", "dim": 8}
    for part, value in parts.items():
        out[part] = ConfigDict(value)
    return out


def test_a_composition_by_config(catalog, one):
    settings = config(
        negatives={
            "sampled": {"name": "uniform", "count": 3},
            "common": {"name": "popularity", "count": 2},
        },
        losses={
            "easy": {"name": "bpr", "weight": 1.0, "source": "sampled"},
            "hard": {"name": "bpr", "weight": 0.25, "source": "common"},
            "small": {"name": "l2", "weight": 1e-3, "source": "common"},
        },
    )
    model = recommender.build(settings, sizes(catalog, one))
    params, total, terms, gradients = run(model, catalog)
    assert jax.tree.map(np.shape, params) == {
        "encoder": {"items": (41, 8), "users": (61, 8)}
    }
    assert set(terms) == {"loss", "easy", "hard", "small"}
    want = terms["easy"] + 0.25 * terms["hard"] + 1e-3 * terms["small"]
    np.testing.assert_allclose(total, want, rtol=1e-6)
    assert terms["loss"] == total
    assert terms["easy"] != terms["hard"]
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_keywords_reach_what_they_name(catalog, one):
    settings = config(
        encoder={
            "name": "mci",
            "dim": 4,
            "layers": 3,
            "modalities": ["text"],
            "modality_weights": {"text": 2.0},
        },
        negatives={"sampled": {"name": "popularity", "exponent": 0.5}},
        losses={
            "align": {
                "name": "infonce",
                "weight": 0.5,
                "left": "side",
                "right": "content",
            }
        },
    )
    model = recommender.build(settings.lock(), sizes(catalog, one))
    assert (model.encoder.dim, model.encoder.layers) == (4, 3)
    assert model.encoder.needs().item_item.modalities == ("text",)
    assert dict(model.encoder.modality_weights) == {"text": 2.0}
    assert model.sources["sampled"].exponent == 0.5
    assert model.losses["align"][0] == 0.5
    hash(model.encoder)


def test_own_encoder_and_own_source_without_touching_the_package(catalog, one):
    model = Recommender(
        encoder=Tags(sizes(catalog, one), dim=8),
        sources={"near": Noisy(count=3)},
        losses={
            "bpr": (
                1.0,
                lambda *args: losses.bpr(*args, source="near"),
            )
        },
    )
    params, total, terms, gradients = run(model, catalog)
    assert set(params) == {"encoder", "sources_near"}
    assert set(params["encoder"]) == {"users", "words"}
    assert set(terms) == {"loss", "bpr", "near/epoch", "near/width"}
    # The source's own loss is added as it is, its metrics are not.
    assert terms["near/width"] == 1.0
    assert terms["near/epoch"] == 2.0
    np.testing.assert_allclose(total, terms["bpr"] + 0.25, rtol=1e-6)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_own_classes_by_name(catalog, one, monkeypatch):
    """One registry line each."""
    monkeypatch.setitem(recommender.ENCODERS, "tags", Tags)
    monkeypatch.setitem(recommender.SOURCES, "noisy", Noisy)
    settings = config(
        encoder={"name": "tags", "dim": 8},
        negatives={"near": {"name": "noisy", "count": 3}},
        losses={"bpr": {"name": "bpr", "weight": 1.0, "source": "near"}},
    )
    model = recommender.build(settings, sizes(catalog, one))
    shapes = jax.eval_shape(lambda: program(model, catalog)(1))
    assert set(shapes[0]) == {"encoder", "sources_near"}
    assert "near/width" in shapes[2]


def test_sources_draw_apart_and_anew(catalog, one):
    """Two sources of one kind do not draw the same, nor do two steps."""

    class Seen(Source):
        @nn.compact
        def __call__(self, encoded, inputs, batch, clock):
            value = jax.random.normal(self.make_rng("negatives"), ())
            vectors = encoded.items[batch["items"]][:, None]
            weights = jnp.ones(vectors.shape[:2])
            return Negatives(vectors, weights, metrics={"drawn": value})

    model = Recommender(
        encoder=Tags(sizes(catalog, one), dim=8),
        sources={"a": Seen(), "b": Seen()},
        losses={},
    )
    step = program(model, catalog)
    drawn = {
        float(step(seed)[2][name])
        for seed in (1, 2)
        for name in ("a/drawn", "b/drawn")
    }
    assert len(drawn) == 4


def test_prepare_is_bound_or_not(catalog, one):
    """Sources find what they prepared, however prepare was called."""
    settings = config(
        negatives={
            name: {"name": "popularity", "exponent": exponent}
            for name, exponent in (("flat", 0.0), ("steep", 1.0))
        }
    )
    model = recommender.build(settings, sizes(catalog, one))
    inputs = build(catalog, Needs(), one)
    key = jax.random.key(0)
    left = model.prepare(inputs, key).prepared
    right = model.apply({}, inputs, key, method="prepare").prepared
    assert len(left) == 2
    jax.tree.map(np.testing.assert_array_equal, left, right)
    assert inputs.prepared == {}


@pytest.mark.parametrize(
    ("changes", "where", "hint"),
    [
        ({"encoder": {"name": "lightgnc"}}, "encoder.name", "'lightgcn'"),
        ({"encoder": {"dim": 8}}, "encoder.name", "known: bm3, freedom"),
        ({"encoder": {"name": "mci", "layer": 2}}, "encoder.layer", "'layers'"),
        ({"encoder": {"name": "mf", "sizes": 1}}, "encoder.sizes", "dim"),
        (
            {"negatives": {"sampled": {"name": "unifrom"}}},
            "negatives.sampled.name",
            "'uniform'",
        ),
        (
            {"negatives": {"sampled": {"name": "popularity", "power": 1}}},
            "negatives.sampled.power",
            "exponent",
        ),
        (
            {"losses": {"rank": {"name": "brp", "weight": 1.0}}},
            "losses.rank.name",
            "'bpr'",
        ),
        (
            {"losses": {"rank": {"name": "bpr", "wieght": 1.0}}},
            "losses.rank.wieght",
            "'weight'",
        ),
        (
            {"losses": {"rank": {"name": "bpr", "weight": 1.0, "vew": ""}}},
            "losses.rank.vew",
            "'view'",
        ),
        ({"losses": {"rank": {"name": "bpr"}}}, "losses.rank.weight", "needs"),
        (
            {"losses": {"cl": {"name": "infonce", "weight": 1, "left": "a"}}},
            "losses.cl.right",
            "needs 'right'",
        ),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(
    catalog, one, changes, where, hint
):
    with pytest.raises(InputError) as error:
        recommender.build(config(**changes), sizes(catalog, one))
    assert error.value.where == f"config.{where}"
    assert hint in str(error.value)


def test_a_loss_that_reads_what_nothing_draws(catalog, one):
    settings = config(
        losses={"bpr": {"name": "bpr", "weight": 1.0, "source": "sampled"}},
        negatives={"simple": {"name": "uniform"}},
    )
    model = recommender.build(settings, sizes(catalog, one))
    with pytest.raises(InputError, match="did you mean 'simple'"):
        run(model, catalog)
