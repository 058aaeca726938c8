"""What the tests of samplers share: random tables, and draws from them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from conftest import on_mesh

from neggen_jax.data.inputs import Needs, build
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.hard import candidates
from neggen_jax.negatives.source import Clock

BATCH, COUNT, CANDIDATES, DIM = 96, 3, 5, 4


def tables(catalog, layers=1, seed=0):
    """Users and items of each layer, float32."""
    rng = np.random.default_rng(seed)
    return [
        tuple(
            rng.normal(size=(rows, DIM)).astype(np.float32)
            for rows in (catalog.num_users, catalog.num_items)
        )
        for _ in range(layers)
    ]


def mean(layers):
    return tuple(np.mean(x, axis=0) for x in zip(*layers, strict=True))


def pairs(catalog):
    """A batch of train pairs; users and items occur more than once."""
    rows = np.random.default_rng(1).integers(len(catalog.train), size=BATCH)
    return {
        "users": catalog.train.users[rows],
        "items": catalog.train.items[rows],
    }


def encode(layers, rows):
    """As an encoder gives them, with items padded to some rows."""
    padded = [
        (users, jnp.pad(items, ((0, rows - len(items)), (0, 0))))
        for users, items in layers
    ]
    every = tuple(padded)
    users, items = (sum(x) / len(x) for x in zip(*padded, strict=True))
    return Encoded(users, items, {}, every if len(layers) > 1 else ())


def clock(epoch):
    return Clock(jnp.int32(0), jnp.float32(epoch), jnp.float32(0))


def draw(
    catalog, source, mesh=(1, 1), seed=0, layers=1, epoch=0.0, params=None
):
    """What a source gives the batch of `pairs`, on the host."""
    inputs = build(catalog, Needs(), on_mesh(*mesh))
    encoded = encode(tables(catalog, layers), len(inputs.popularity))

    @jax.jit
    def run(inputs, encoded, batch):
        return source.apply(
            {"params": params or {}},
            encoded,
            inputs,
            batch,
            clock(epoch),
            rngs={"negatives": jax.random.key(seed)},
        )

    return jax.device_get(run(inputs, encoded, pairs(catalog)))


def keys(count, seed=0):
    """The first keys that a module's `make_rng` gives."""

    class Keys(nn.Module):
        def __call__(self):
            return [self.make_rng("negatives") for _ in range(count)]

    return Keys().apply({}, rngs={"negatives": jax.random.key(seed)})


def drawn(catalog, key, several=CANDIDATES):
    """The candidates that a key gives the batch of `pairs`, `[B, K, N]`."""
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    users = jnp.asarray(pairs(catalog)["users"])
    return np.asarray(candidates(key, inputs, users, COUNT, several))


def rows(layer, batch, items):
    """Users, positives and candidates of a layer, in float64."""
    users, table = (x.astype(np.float64) for x in layer)
    return users[batch["users"]], table[batch["items"]], table[items]


def pick(several, place):
    """Of `[B, K, N, ...]` the one at a place `[B, K]`."""
    b, k = np.indices(place.shape)
    return several[b, k, place]


def assert_no_positives(catalog, users, items):
    known = np.zeros((catalog.num_users, catalog.num_items), bool)
    known[catalog.train.users, catalog.train.items] = True
    assert items.shape[0] == len(users)
    assert not known[users[:, None], items].any()
    assert items.min() >= 0
