"""Hard negatives: the right one of those drawn, and never a positive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampled
from conftest import MESHES, on_mesh, some
from sampled import BATCH, CANDIDATES, COUNT, draw, keys, pairs, tables

from neggen_jax.data.inputs import Needs, build
from neggen_jax.negatives import AHNS, DNS, TopOfDNS

SIZE = {"count": COUNT, "candidates": CANDIDATES}
SOURCES = {
    "dns": DNS(**SIZE),
    "dns_mn": TopOfDNS(**SIZE, top=2),
    "ahns": AHNS(**SIZE, alpha=0.5, beta=0.4),
    "cosine": AHNS(**SIZE, beta=0.9, similarity="cosine"),
}


def scored(catalog, number=1):
    """Candidates, their scores and the positives', in float64; further keys."""
    first, *others = keys(number)
    items = sampled.drawn(catalog, first)
    (layer,) = tables(catalog)
    users, positives, vectors = sampled.rows(layer, pairs(catalog), items)
    scores = np.einsum("bd,bknd->bkn", users, vectors)
    own = (users * positives).sum(-1)[:, None, None]
    return items, scores, own, others


@pytest.mark.parametrize("mesh", some(MESHES, (4, 2)))
def test_the_hardest_is_taken(catalog, mesh):
    made = draw(catalog, SOURCES["dns"], mesh)
    items, scores, *_ = scored(catalog)
    assert made.items.shape == (BATCH, COUNT)
    np.testing.assert_array_equal(
        made.items, sampled.pick(items, scores.argmax(-1))
    )
    np.testing.assert_array_equal(
        made.vectors, tables(catalog)[0][1][made.items]
    )
    np.testing.assert_array_equal(made.weights, np.ones((BATCH, COUNT)))


def test_one_of_the_hardest_is_taken(catalog):
    made = draw(catalog, SOURCES["dns_mn"])
    items, scores, _, (key,) = scored(catalog, 2)
    which = np.asarray(jax.random.randint(key, (BATCH, COUNT), 0, 2))
    order = np.argsort(-scores, axis=-1, kind="stable")
    want = sampled.pick(items, sampled.pick(order, which))
    np.testing.assert_array_equal(made.items, want)
    assert 0 < which.mean() < 1


@pytest.mark.slow
def test_with_one_of_the_top_it_is_dns_and_with_all_uniform(catalog):
    items, scores, *_ = scored(catalog)
    one = draw(catalog, TopOfDNS(**SIZE, top=1))
    np.testing.assert_array_equal(
        one.items, sampled.pick(items, scores.argmax(-1))
    )
    every = draw(catalog, TopOfDNS(**SIZE, top=CANDIDATES))
    place = np.argsort(np.argsort(-scores, axis=-1), axis=-1)
    taken = place[every.items[..., None] == items]
    # Each rank as often as any other: some 58 of 288 draws.
    assert np.bincount(taken, minlength=CANDIDATES).min() > 35


def test_the_nearest_to_the_wanted_hardness_is_taken(catalog):
    made = draw(catalog, SOURCES["ahns"])
    items, scores, own, _ = scored(catalog)
    # A positive that is scored below -alpha has the hardest one that is.
    wanted = 0.4 * np.maximum(own + 0.5, 1e-3) ** -1.0
    assert (own < -0.5).any()
    place = np.abs(scores - wanted).argmin(-1)
    np.testing.assert_array_equal(made.items, sampled.pick(items, place))
    low = own[:, 0, 0] < -0.5
    np.testing.assert_array_equal(place[low], scores.argmax(-1)[low])


@pytest.mark.slow
def test_hardness_by_cosines(catalog):
    made = draw(catalog, SOURCES["cosine"])
    items, scores, own, _ = scored(catalog)
    users, positives, vectors = (
        np.linalg.norm(x, axis=-1)
        for x in sampled.rows(tables(catalog)[0], pairs(catalog), items)
    )
    scores /= users[:, None, None] * vectors
    own /= (users * positives)[:, None, None]
    place = np.abs(scores - 0.9 * (own + 1) ** -1.0).argmin(-1)
    np.testing.assert_array_equal(made.items, sampled.pick(items, place))


@pytest.mark.slow
def test_without_a_floor_the_power_keeps_its_sign(catalog):
    """As the released code has it."""
    made = draw(catalog, AHNS(**SIZE, alpha=0.5, beta=0.4, floor=-1e30))
    items, scores, own, _ = scored(catalog)
    place = np.abs(scores - 0.4 / (own + 0.5)).argmin(-1)
    np.testing.assert_array_equal(made.items, sampled.pick(items, place))


def test_the_higher_the_positive_the_easier(catalog):
    """The point of the paper: hardness falls with the positive's score."""
    source = AHNS(count=8, candidates=32, alpha=4.0, beta=8.0)
    made = draw(catalog, source)
    users, positives, vectors = sampled.rows(
        tables(catalog)[0], pairs(catalog), made.items[:, None]
    )
    own = (users * positives).sum(-1)
    hardness = np.einsum("bd,bknd->b", users, vectors) / 8
    assert np.corrcoef(own, hardness)[0, 1] < -0.3


@pytest.mark.parametrize("name", SOURCES)
def test_never_a_positive_on_any_mesh(catalog, name):
    made = draw(catalog, SOURCES[name], seed=3)
    sampled.assert_no_positives(catalog, pairs(catalog)["users"], made.items)
    spread = draw(catalog, SOURCES[name], (4, 2), seed=3)
    np.testing.assert_array_equal(made.items, spread.items)


def test_more_candidates_are_harder(catalog):
    means = []
    for several in (1, 4, 16):
        made = draw(catalog, DNS(count=8, candidates=several))
        users = tables(catalog)[0][0][pairs(catalog)["users"]]
        means.append(np.einsum("bd,bkd->bk", users, made.vectors).mean())
    # Of standard normal scores times two, the highest of 4 lies about 1
    # standard deviation above the mean, of 16 about 1.8.
    assert means[0] + 0.5 < means[1]
    assert means[1] + 0.5 < means[2]


@pytest.mark.parametrize("name", some(SOURCES, "dns"))
def test_no_gradient_through_the_choice(catalog, name):
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    (layer,) = tables(catalog)

    def total(users, items):
        made = SOURCES[name].apply(
            {},
            sampled.encode([(users, items)], len(inputs.popularity)),
            inputs,
            pairs(catalog),
            None,
            rngs={"negatives": jax.random.key(0)},
        )
        return made.vectors.sum(), made.items

    (of_users, of_items), chosen = jax.grad(total, (0, 1), has_aux=True)(
        *map(jnp.asarray, layer)
    )
    assert not np.asarray(of_users).any()
    # Each time that an item is chosen, its row is added to the sum.
    counts = np.bincount(chosen.ravel(), minlength=catalog.num_items)
    np.testing.assert_array_equal(of_items[:, 0], counts)
