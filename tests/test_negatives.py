"""Negatives: never a train positive, and with the odds that are promised.

Draws follow from fixed keys, so a test of odds gives the same p-value each
time; it fails when the odds are wrong, not once in a thousand runs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import UNSEEN, on_mesh
from scipy import stats

from neggen_jax.adjacency import Adjacency
from neggen_jax.data.inputs import Needs, build
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives import Popularity, Uniform
from neggen_jax.negatives.catalogue import uniform
from neggen_jax.ops.positives import make_positives

BATCH, COUNT = 128, 400
UNIFORM, POPULARITY = Uniform(count=COUNT), Popularity(count=COUNT)
ONE_TRY = Popularity(count=COUNT, tries=1)


def everybody(catalog):
    return np.arange(BATCH) % catalog.num_users


def table(catalog):
    rng = np.random.default_rng(0)
    return rng.normal(size=(catalog.num_items, 4)).astype(np.float32)


@functools.cache
def drawer(source, catalog, data, model):
    """A source, compiled for batches of one size."""
    inputs = build(catalog, Needs(), on_mesh(data, model))
    encoded = Encoded(jnp.zeros((1, 4)), jnp.asarray(table(catalog)), {})

    @jax.jit
    def run(inputs, users):
        inputs = source.apply({}, inputs, jax.random.key(0), method="prepare")
        return source.apply(
            {},
            encoded,
            inputs,
            {"users": users, "items": jnp.zeros_like(users)},
            jnp.zeros(()),
            rngs={"negatives": jax.random.key(1)},
        )

    return run, inputs


def draw(source, catalog, users, mesh=(1, 1), popularity=None):
    """What a source gives a batch of users, or of one user over and over."""
    run, inputs = drawer(source, catalog, *mesh)
    if popularity is not None:
        inputs = dataclasses.replace(inputs, popularity=popularity)
    users = np.broadcast_to(np.asarray(users, np.int32), BATCH)
    return jax.device_get(run(inputs, users))


def positives(catalog):
    matrix = np.zeros((catalog.num_users, catalog.num_items), bool)
    matrix[catalog.train.users, catalog.train.items] = True
    return matrix


def odds(catalog, user, exponent, tries):
    """Rejection, up to `tries` times, then a uniform non-positive."""
    mass = catalog.popularity() ** exponent
    mass = mass / mass.sum()
    taken = positives(catalog)[user]
    refused = mass[taken].sum()
    left = np.where(taken, 0, mass) / (1 - refused)
    spare = ~taken / (~taken).sum()
    return left * (1 - refused**tries) + spare * refused**tries


def assert_drawn_by(items, expected):
    counts = np.bincount(items.ravel(), minlength=len(expected))
    possible = expected > 0
    assert not counts[~possible].any()
    expected = expected[possible] * items.size
    assert expected.min() > 3
    assert stats.chisquare(counts[possible], expected).pvalue > 1e-3


@pytest.mark.parametrize("source", [UNIFORM, POPULARITY, ONE_TRY])
def test_never_a_train_positive(catalog, source):
    users = everybody(catalog)
    items = draw(source, catalog, users).items
    assert items.shape == (BATCH, COUNT)
    assert items.min() >= 0
    assert items.max() < catalog.num_items
    assert not positives(catalog)[users[:, None], items].any()


@pytest.mark.parametrize("source", [UNIFORM, POPULARITY])
def test_draws_do_not_depend_on_the_mesh(catalog, source):
    """Nor on the padding that a mesh of eight shards needs."""
    users = everybody(catalog)
    np.testing.assert_array_equal(
        draw(source, catalog, users).items,
        draw(source, catalog, users, (1, 8)).items,
    )


def test_vectors_are_those_of_the_items(catalog):
    drawn = draw(UNIFORM, catalog, everybody(catalog))
    np.testing.assert_array_equal(drawn.vectors, table(catalog)[drawn.items])
    np.testing.assert_array_equal(drawn.weights, np.ones((BATCH, COUNT)))
    assert drawn.losses == drawn.metrics == {}


def test_uniform_over_the_non_positives(catalog):
    degrees = positives(catalog).sum(axis=1)
    for user in (degrees.argmax(), degrees.argmin()):
        left = ~positives(catalog)[user]
        assert_drawn_by(draw(UNIFORM, catalog, user).items, left / left.sum())
    assert degrees.max() > 10 > 2 > degrees.min()


def test_uniform_where_one_item_is_left(one):
    items = np.delete(np.arange(9), 4)
    rows = make_positives(Adjacency.make(np.zeros(8, int), items, 1), 9, one)
    users = jnp.zeros((3, 5), jnp.int32)
    drawn = jax.jit(uniform)(jax.random.key(0), rows, users)
    np.testing.assert_array_equal(drawn, np.full((3, 5), 4))


@pytest.mark.parametrize(
    "source", [POPULARITY, ONE_TRY, Popularity(COUNT, 1.0, 2)]
)
def test_popularity_by_its_power(catalog, source):
    user = (positives(catalog) @ catalog.popularity()).argmax()
    expected = odds(catalog, user, source.exponent, source.tries)
    assert_drawn_by(draw(source, catalog, user).items, expected)
    # Draws by another power would be told apart: their chi-square would be
    # larger by this, and beyond 73 stands a p-value of 1e-3 for 41 items.
    for exponent in {0.0, 0.75, 1.0} - {source.exponent}:
        other = odds(catalog, user, exponent, source.tries)
        real = expected > 0
        gap = (other - expected)[real] ** 2 / expected[real]
        assert BATCH * COUNT * gap.sum() > 80


def test_what_nobody_has_is_not_drawn_by_popularity(catalog):
    items = draw(POPULARITY, catalog, everybody(catalog)).items
    # Only the uniform stand-in may give them, once in thousands of draws.
    assert np.isin(items, UNSEEN).mean() < 1e-3


def test_uniform_stands_in_where_every_try_is_a_positive(catalog):
    """All mass on one user's positives: rejection never ends for them."""
    taken = positives(catalog)[3]
    popularity = jnp.where(taken, 5.0, 0.0)
    items = draw(POPULARITY, catalog, 3, popularity=popularity).items
    assert_drawn_by(items, ~taken / (~taken).sum())


def test_rare_items_of_a_large_catalogue_keep_their_share(one, catalog):
    """Shares are whole numbers: a float32 sum would lose the rare ones."""
    size = 3_000_000
    popularity = np.ones(size, np.float32)
    popularity[0] = 1e7
    inputs = build(catalog, Needs(), one)
    inputs = dataclasses.replace(
        inputs,
        popularity=jnp.asarray(popularity),
        positives=inputs.positives.replace(num_items=size),
    )
    source = Popularity(exponent=1.0)
    prepare = functools.partial(source.apply, {}, method="prepare")
    prepared = jax.jit(prepare)(inputs, jax.random.key(0))
    (cumulative,) = prepared.prepared.values()
    shares = np.diff(np.asarray(cumulative, np.int64), prepend=0)
    assert cumulative.dtype == jnp.int32
    assert 2**30 <= shares.sum() < 2**31
    # 2^30 in 13 million parts is 82.6; each is rounded up.
    np.testing.assert_array_equal(shares[1:], 83)


def test_keys_make_the_draws(catalog):
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    users = jnp.arange(60)
    draw = jax.jit(uniform)
    first, again, other = (
        draw(jax.random.key(seed), inputs.positives, users)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).sum() > 40
