"""Users who are new, folded in; what items of a history are worth."""

import dense
import jax
import numpy as np
import pytest
from conftest import ITEMS, USERS
from recommending import opened, own_items

from neggen_jax.adjacency import Adjacency
from neggen_jax.recommend import folding, ridge
from neggen_jax.recommend.asked import Asked
from neggen_jax.recommend.folding import Folding, joined
from neggen_jax.recommend.lists import Lister
from neggen_jax.recommend.reasons import by_items

ENCODERS = ("lightgcn", "freedom", "mci", "mf", "vbpr")


def layers_but_the_first(trained) -> np.ndarray:
    """In float64: trained users without what is their own, `[users, d]`."""
    params = jax.device_get(trained.params["encoder"])
    users = params["users"][:USERS].astype(np.float64)
    items = params["items"][:ITEMS].astype(np.float64)
    graph = dense.user_item(trained.run.catalog)
    whole, _ = dense.propagate(graph, users, items, 2)
    out = whole - users / 3
    if trained.run.config.encoder.name == "mci":
        for name, weight in (("text", 0.9), ("image", 0.1)):
            features = trained.run.catalog.features[name]
            near = dense.nearest_items(features, 10, "cosine")
            out += graph @ (weight * near @ items)
    return out


@pytest.mark.parametrize("encoder", ["lightgcn", "freedom", "mci"])
def test_a_trained_user_is_exact_but_for_their_own_part(encoder):
    trained = opened(encoder)
    learned = trained.folding
    alone = Folding(
        learned.items,
        learned.received,
        np.zeros_like(learned.matrix),
        np.zeros_like(learned.constant),
    )
    found = alone(trained.run.catalog.index.by_user)
    want = layers_but_the_first(trained)
    # Float32 sums of at most a few hundred numbers below one.
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_rest_is_a_ridge_regression(encoder):
    trained = opened(encoder)
    learned = trained.folding
    rest = np.asarray(trained.users, np.float64)[:USERS]
    if learned.received is not None:
        rest = rest - layers_but_the_first(trained)
    items = np.asarray(trained.items, np.float64)[:ITEMS]
    means = np.stack(
        [
            items[own_items(trained, u, "train")].mean(axis=0)
            for u in range(USERS)
        ]
    )
    given = np.pad(means, ((0, 0), (0, 1)), constant_values=1)
    penalty = ridge.STRENGTH * np.eye(given.shape[1])
    want = np.linalg.solve(given.T @ given + penalty, given.T @ rest)
    np.testing.assert_allclose(learned.matrix, want[:-1], atol=1e-4)
    np.testing.assert_allclose(learned.constant, want[-1], atol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_vector_is_the_sum_of_its_parts(encoder):
    learned = opened(encoder).folding
    histories = [np.array([3]), np.array([0, 7, 40]), np.arange(ITEMS)]
    found = learned(joined([h.astype(np.int32) for h in histories]))
    for vector, history in zip(found, histories, strict=True):
        parts = learned.parts(history)
        assert parts.shape == (len(history), len(vector))
        want = parts.sum(axis=0) + learned.constant
        np.testing.assert_allclose(vector, want, atol=1e-5)
        worth = by_items(learned, history, learned.items[:5])
        said = worth.sum(axis=0) + learned.items[:5] @ learned.constant
        np.testing.assert_allclose(said, learned.items[:5] @ vector, atol=1e-4)


def test_new_users_are_ranked_by_their_own_vectors():
    trained = opened("mci")
    histories = [np.array([2, 9], np.int32), np.array([30], np.int32)]
    asked = [Asked("u4", 4), *(Asked("n", -1, h) for h in histories)]
    asked.insert(2, Asked("u0", 0))
    lister = Lister(
        trained.run,
        trained.users,
        trained.items,
        ITEMS,
        k=ITEMS,
        folding=trained.folding,
    )
    (found,) = lister(asked)
    known = np.asarray(trained.users)
    np.testing.assert_array_equal(found.vectors[[0, 2]], known[[4, 0]])
    np.testing.assert_allclose(
        found.vectors[[1, 3]], trained.folding(joined(histories)), atol=1e-6
    )
    assert {*found.items[1]} == {*range(ITEMS)} - {2, 9} | {-1}
    assert {*found.items[3]} == {*range(ITEMS)} - {30} | {-1}
    assert list(lister.history(asked[1])) == [2, 9]
    own = own_items(trained, 4, "train")
    np.testing.assert_array_equal(lister.history(asked[0]), own)


def test_nobody_is_folded_in_by_a_map_that_has_seen_them(monkeypatch):
    trained, seen = opened("mf"), []
    learn = folding.learn

    def spied(run, params, users, items, among):
        seen.append(among)
        return learn(run, params, users, items, among)

    monkeypatch.setattr(folding, "learn", spied)
    found = folding.measure(trained.run, trained.params)
    assert not {*seen[0]} & {*seen[1]}
    assert len({*seen[0]} | {*seen[1]}) == USERS
    ranked = trained.run.ranker("test")(trained.users, trained.items)
    hits = ranked.hits[:, :20].sum(axis=1) / ranked.relevant
    assert found["trained"] == pytest.approx(hits.mean())
    assert 0 <= found["folded"] <= 1
    assert "alone" not in found


def test_some_rows_of_pairs():
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(9, size=40))
    known = Adjacency.make(rows, rng.integers(99, size=40), 9)
    some = folding.histories_of(known, np.array([4, 0, 4, 8]))
    want = [known.ends[slice(*known.offsets[r : r + 2])] for r in (4, 0, 4, 8)]
    np.testing.assert_array_equal(some.ends, np.concatenate(want))
    np.testing.assert_array_equal(some.degrees, [len(w) for w in want])
