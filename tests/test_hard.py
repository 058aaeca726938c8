"""Hard negatives: the hardest of those drawn, and never a positive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MESHES, on_mesh

from neggen_jax.data.inputs import Needs, build
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives import DNS
from neggen_jax.negatives.catalogue import uniform

BATCH, COUNT, CANDIDATES = 96, 3, 5


def tables(catalog):
    rng = np.random.default_rng(0)
    users = rng.normal(size=(catalog.num_users, 4)).astype(np.float32)
    items = rng.normal(size=(catalog.num_items, 4)).astype(np.float32)
    return users, items


def draw(catalog, source, mesh=(1, 1), seed=0):
    inputs = build(catalog, Needs(), on_mesh(*mesh))
    users, items = tables(catalog)
    padded = np.zeros((len(inputs.popularity), 4), np.float32)
    # Padding must lose even where every real item scores below it.
    padded[: len(items)] = items
    batch = {"users": np.arange(BATCH) % catalog.num_users}

    @jax.jit
    def run(inputs, batch):
        encoded = Encoded(jnp.asarray(users), jnp.asarray(padded), {})
        keys = {"negatives": jax.random.key(seed)}
        return source.apply({}, encoded, inputs, batch, None, rngs=keys)

    return jax.device_get(run(inputs, batch)), batch["users"], users, items


@pytest.mark.parametrize("mesh", MESHES)
def test_the_hardest_is_taken(catalog, mesh):
    source = DNS(count=COUNT, candidates=CANDIDATES)
    made, asked, users, items = draw(catalog, source, mesh)
    assert made.items.shape == (BATCH, COUNT)
    np.testing.assert_array_equal(made.vectors, items[made.items])
    # The same candidates, from the key that a module's stream begins with.
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    key = nn_key()
    shape = (BATCH, COUNT, CANDIDATES)
    asked3 = np.broadcast_to(asked[:, None, None], shape)
    drawn = np.asarray(uniform(key, inputs.positives, jnp.asarray(asked3)))
    scores = np.einsum("bd,bknd->bkn", users[asked], items[drawn])
    best = np.take_along_axis(drawn, scores.argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(made.items, best)


def nn_key():
    """The key that `make_rng` gives a module which asks for the first time."""
    import flax.linen as nn

    class Key(nn.Module):
        def __call__(self):
            return self.make_rng("negatives")

    return Key().apply({}, rngs={"negatives": jax.random.key(0)})


def test_never_a_positive(catalog):
    source = DNS(count=COUNT, candidates=CANDIDATES)
    own = set(
        zip(
            catalog.train.users.tolist(),
            catalog.train.items.tolist(),
            strict=True,
        )
    )
    for seed in range(3):
        made, asked, _, _ = draw(catalog, source, seed=seed)
        drawn = {
            (int(u), int(i))
            for u, row in zip(asked, made.items, strict=True)
            for i in row
        }
        assert not own & drawn


def test_more_candidates_are_harder(catalog):
    means = []
    for candidates in (1, 4, 16):
        source = DNS(count=8, candidates=candidates)
        made, asked, users, _ = draw(catalog, source)
        means.append(np.einsum("bd,bkd->bk", users[asked], made.vectors).mean())
    # Of standard normal scores times two, the highest of 4 lies about 1
    # standard deviation above the mean, of 16 about 1.8.
    assert means[0] + 0.5 < means[1]
    assert means[1] + 0.5 < means[2]


def test_no_gradient_through_the_choice(catalog):
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    users, items = tables(catalog)
    batch = {"users": np.arange(BATCH) % catalog.num_users}
    source = DNS(count=1, candidates=4)

    def total(users):
        encoded = Encoded(users, jnp.asarray(items), {})
        keys = {"negatives": jax.random.key(0)}
        made = source.apply({}, encoded, inputs, batch, None, rngs=keys)
        return made.vectors.sum()

    assert not np.asarray(jax.grad(total)(jnp.asarray(users))).any()
