"""Evaluation: exact, the same in any blocks and on any mesh, and bounded."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neggen_jax import evaluate, metrics
from neggen_jax.catalog import SPLITS, Catalog, Features, Interactions
from neggen_jax.errors import InputError
from neggen_jax.evaluate import Ranker
from neggen_jax.ops import native, ranking

# Past one tile of 256 users and of 512 items.
USERS, ITEMS, DIM = 700, 1100, 16
CUTOFFS = (5, 20, 50)


@pytest.fixture(scope="module")
def large() -> Catalog:
    """Uneven histories; a third of the users is not held out in valid."""
    rng = np.random.default_rng(0)
    columns = {split: ([], []) for split in SPLITS}
    for user in range(USERS):
        sizes = rng.integers(1, 30), rng.integers(0, 3), rng.integers(1, 4)
        items = rng.choice(ITEMS, sum(sizes), replace=False)
        parts = np.split(items, np.cumsum(sizes)[:-1])
        for split, part in zip(SPLITS, parts, strict=True):
            columns[split][0].extend([user] * len(part))
            columns[split][1].extend(part)
    splits = {
        split: Interactions(np.array(u, np.int32), np.array(i, np.int32))
        for split, (u, i) in columns.items()
    }
    return Catalog("large", USERS, ITEMS, splits).validate()


def embeddings(catalog, partition, whole=False, seed=0):
    """Random vectors, of whole numbers where ties are wanted."""
    rng = np.random.default_rng(seed)
    tables = []
    for size, axis in (
        (catalog.num_users, "user"),
        (catalog.num_items, "item"),
    ):
        rows = partition.padded(size, axis)
        # Padding rows would win every ranking, if they took part.
        table = np.full((rows, DIM), 99, np.float32)
        shape = size, DIM
        table[:size] = (
            rng.integers(-1, 2, shape) if whole else rng.normal(size=shape)
        )
        tables.append(partition.put(table, axis, "embed"))
    return tables


def brute_force(catalog, users, items, split, k):
    """Lists and hits in float64, user by user, straight from the protocol."""
    seen = {"valid": ["train"], "test": ["train", "valid"]}[split]
    held = catalog.splits[split]
    scores = np.asarray(users, np.float64) @ np.asarray(items, np.float64).T
    scores = scores[: catalog.num_users, : catalog.num_items]
    lists, hits, relevant = [], [], []
    evaluated = sorted(set(held.users.tolist()))
    for user in evaluated:
        row = scores[user].copy()
        for name in seen:
            part = catalog.splits[name]
            row[part.items[part.users == user]] = -np.inf
        order = np.argsort(-row, kind="stable")
        order = order[row[order] > -np.inf][:k]
        lists.append(np.pad(order, (0, k - len(order)), constant_values=-1))
        wanted = held.items[held.users == user]
        hits.append(np.isin(lists[-1], wanted))
        relevant.append(len(wanted))
    return evaluated, np.array(lists), np.array(hits), np.array(relevant)


COLUMNS = "users", "lists", "hits", "relevant"


def columns(ranked):
    return [getattr(ranked, name) for name in COLUMNS]


def assert_same(ranked, want) -> None:
    for name, value in zip(COLUMNS, want, strict=True):
        np.testing.assert_array_equal(getattr(ranked, name), value, name)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("k", [1, 20, 41])
def test_ranks_as_brute_force_does(catalog, partition, split, k):
    """Whole numbers: scores are exact, and ties are many."""
    users, items = embeddings(catalog, partition, whole=True)
    ranked = Ranker(catalog, split, partition, k=k)(users, items)
    assert_same(ranked, brute_force(catalog, users, items, split, k))
    if k == catalog.num_items:
        # Nothing is left to recommend where something is masked.
        assert (ranked.lists[:, -1] == -1).all()
        assert not ranked.hits[ranked.lists < 0].any()


def test_ranks_more_than_one_tile(large, one):
    users, items = embeddings(large, one, whole=True)
    for split in ("valid", "test"):
        ranked = Ranker(large, split, one)(users, items)
        want = brute_force(large, users, items, split, 50)
        assert_same(ranked, want)
        assert len(ranked.users) < USERS or split == "test"


@pytest.fixture(scope="module")
def whole(large, one):
    """What is to come out, whatever the blocks and the mesh."""
    users, items = embeddings(large, one)
    ranked = Ranker(large, "test", one, block_size=1024)(users, items)
    return ranked, evaluate.report(ranked, large, "test", CUTOFFS)


@pytest.mark.parametrize("block_size", [1, 300, 5000])
def test_blocks_change_nothing(large, one, whole, block_size):
    """To the last digit, of random embeddings."""
    users, items = embeddings(large, one)
    ranker = Ranker(large, "test", one, block_size=block_size)
    ranked = ranker(users, items)
    assert_same(ranked, columns(whole[0]))
    assert evaluate.report(ranked, large, "test", CUTOFFS) == whole[1]
    # Small blocks are really more than one, and large ones no larger.
    assert ranker.block == {1: 256, 300: 512, 5000: 768}[block_size]


def test_approximate_lists_are_exact_where_a_device_knows_no_better(
    large, partition, whole
):
    users, items = embeddings(large, partition)
    ranked = Ranker(large, "test", partition, recall_target=0.9)(users, items)
    assert ranked.recall == 1
    assert_same(ranked, columns(whole[0]))


def test_says_what_approximate_lists_lack(large, one, whole, monkeypatch):
    def forgetful(self, scores, k):
        if self.recall_target < 1:
            # As if it had not seen each seventh item.
            scores = scores.at[:, ::7].set(-jnp.inf)
        return self.merge(scores, k)

    # Where nothing is approximate, there is one kernel for all.
    monkeypatch.setattr(native, "ranks", lambda mesh: False)
    monkeypatch.setattr(ranking.Chooser, "choose", forgetful)
    users, items = embeddings(large, one)
    # More than one block: what the first lacks stands for all.
    ranker = Ranker(large, "test", one, block_size=256, recall_target=0.9)
    exact, lists = whole[0].lists, ranker(users, items).lists
    assert not np.isin(lists, np.arange(0, large.num_items, 7)).any()
    lacks = [
        len(np.setdiff1d(a, b))
        for a, b in zip(exact[:256], lists[:256], strict=True)
    ]
    want = 1 - np.sum(lacks) / exact[:256].size
    assert 0.5 < want < 0.95
    assert ranker(users, items).recall == pytest.approx(want)


def test_meshes_change_nothing(large, partition, whole):
    users, items = embeddings(large, partition)
    ranked = Ranker(large, "test", partition)(users, items)
    assert_same(ranked, columns(whole[0]))
    assert evaluate.report(ranked, large, "test", CUTOFFS) == whole[1]


@pytest.mark.parametrize(
    ("split", "held"), [("valid", 2**22), ("test", 300), ("test", 1)]
)
def test_popular_items_are_those_of_a_vector_of_popularity(
    large, one, split, held
):
    users, items = (np.zeros(np.shape(t)) for t in embeddings(large, one))
    users[:, 0], items[: large.num_items, 0] = 1, large.popularity()
    tables = (np.asarray(table, np.float32) for table in (users, items))
    want = Ranker(large, split, one, k=20)(*map(one.put, tables))
    got = evaluate.most_popular(large, split, 20, held=held)
    assert_same(got, columns(want))


def slow_report(ranked, catalog, cutoffs, k):
    """Definitions, one user and one rank at a time."""
    rows = {}
    for hits, relevant in zip(ranked.hits, ranked.relevant, strict=True):
        for n in cutoffs:
            at = [rank for rank in range(1, n + 1) if hits[rank - 1]]
            best = range(1, min(n, relevant) + 1)
            gain = [1 / math.log2(rank + 1) for rank in at]
            ideal = [1 / math.log2(rank + 1) for rank in best]
            exact = [(j + 1) / rank for j, rank in enumerate(at)]
            for name, value in {
                "recall": len(at) / relevant,
                "precision": len(at) / n,
                "hitrate": float(bool(at)),
                "mrr": 1 / at[0] if at else 0.0,
                "ndcg": sum(gain) / sum(ideal),
                "map": sum(exact) / min(n, relevant),
            }.items():
                rows.setdefault(f"{name}@{n}", []).append(value)
    values = {name: sum(v) / len(v) for name, v in rows.items()}
    shown = [i for row in ranked.lists[:, :k] for i in row if i >= 0]
    counts = np.bincount(shown, minlength=catalog.num_items)
    popularity = np.zeros(catalog.num_items)
    for item in catalog.train.items:
        popularity[item] += 1
    share = (popularity + 1) / (popularity + 1).sum()
    gaps = np.abs(counts[:, None] - counts[None]).sum()
    return values | {
        f"coverage@{k}": len(set(shown)) / catalog.num_items,
        f"gini@{k}": gaps / (2 * catalog.num_items * counts.sum()),
        f"popularity@{k}": np.mean([popularity[i] for i in shown]),
        f"novelty@{k}": np.mean([-math.log2(share[i]) for i in shown]),
    }


def test_the_report_holds_what_the_definitions_say(catalog, one):
    users, items = embeddings(catalog, one)
    ranked = Ranker(catalog, "test", one, k=41)(users, items)
    got, deciles = evaluate.report(ranked, catalog, "test", (1, 5, 20))
    want = slow_report(ranked, catalog, (1, 5, 20), 20)
    want |= metrics.tail_recall(
        ranked.hits,
        ranked.lists,
        catalog.splits["test"].items,
        catalog.popularity(),
        20,
    )
    assert "tail_recall@20" in want
    for name, matrix in catalog.features.items():
        spread = metrics.intra_list_diversity(
            ranked.lists, matrix.values, matrix.present, 20
        )
        want[f"diversity_{name}@20"] = np.nanmean(spread)
    assert got.keys() == want.keys()
    for name, value in want.items():
        # Diversity is summed in float32 on the device.
        rel = 1e-5 if name.startswith("diversity") else 1e-12
        assert got[name] == pytest.approx(value, rel=rel), name
    assert sum(deciles["heldout"]) == len(catalog.splits["test"])


def test_categories_are_measured_where_they_are_known(catalog, one):
    users, items = embeddings(catalog, one)
    ranked = Ranker(catalog, "test", one, k=41)(users, items)
    plain, _ = evaluate.report(ranked, catalog, "test", (5,))
    kinds = np.arange(catalog.num_items) % 3
    found, _ = evaluate.report(ranked, catalog, "test", (5,), kinds)
    per_user = metrics.category_entropy(ranked.lists, kinds, 20)
    assert found == {
        **plain, "category_entropy@20": pytest.approx(per_user.mean(), 1e-12)
    }  # fmt: skip
    # Nothing can be said of lists without a category.
    unknown = np.full(catalog.num_items, -1)
    again, _ = evaluate.report(ranked, catalog, "test", (5,), unknown)
    assert again == plain


def test_short_lists_are_measured_as_far_as_they_go(catalog, one):
    users, items = embeddings(catalog, one)
    ranked = Ranker(catalog, "valid", one, k=5)(users, items)
    values, _ = evaluate.report(ranked, catalog, "valid", (5,))
    assert {"recall@5", "coverage@5", "diversity_text@5"} <= values.keys()
    assert not any(name.endswith("@20") for name in values)


def test_diversity_is_that_of_the_definition():
    """Empty places, absent items, lists too short, more than one block."""
    rng = np.random.default_rng(0)
    present = rng.random(90) < 0.7
    values = rng.normal(size=(90, 12)).astype(np.float32) * present[:, None]
    lists = np.array([rng.permutation(90)[:20] for _ in range(300)], np.int32)
    lists[rng.random(lists.shape) < 0.3] = -1
    lists[7], lists[8] = -1, np.flatnonzero(~present)[:20]
    lists[9, 1:], lists[9, 0] = -1, np.flatnonzero(present)[0]
    got = evaluate.diversity(lists, Features(values, present))
    want = metrics.intra_list_diversity(lists, values, present)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(got[7:10]).all()
    # Twenty float32 unit vectors are added up.
    np.testing.assert_allclose(got, want, rtol=0, atol=20 * 2**-23)


def test_identical_items_have_no_diversity():
    same = Features(np.ones((4, 3), np.float32), np.ones(4, bool))
    got = evaluate.diversity(np.array([[0, 1, 2, 3]], np.int32), same)
    assert 0 <= got[0] <= 1e-6


@pytest.mark.parametrize("k", [0, 42])
def test_refuses_lists_that_do_not_fit_the_catalogue(catalog, one, k):
    with pytest.raises(InputError, match="cut-offs from 1 to 41"):
        Ranker(catalog, "test", one, k=k)


def test_refuses_to_evaluate_what_was_trained_on(catalog, one):
    with pytest.raises(InputError, match="'train' cannot be evaluated"):
        Ranker(catalog, "train", one)


def sizes_of(jaxpr):
    """Elements of every array that a program makes, at any depth."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield math.prod(variable.aval.shape)
        for part in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from sizes_of(inner)


def largest_array(num_items, one):
    """Of the program that ranks one block; nothing is computed."""
    few = np.arange(3000, dtype=np.int32)
    splits = {
        split: Interactions(few, few + number)
        for number, split in enumerate(SPLITS)
    }
    catalog = Catalog("wide", 3000, num_items, splits)
    ranker = Ranker(catalog, "test", one, block_size=1024)

    def block(users, items):
        chosen = jnp.zeros(ranker.block, jnp.int32)
        none = jnp.zeros(ranker._width, jnp.int32)
        excluded = evaluate.ranking.Excluded(none, none)
        known = {"num_items": num_items, "partition": one}
        table = evaluate.tiled(items, **known)
        return evaluate.rank_block(
            users, table, chosen, excluded, ranker._heldout, k=50, **known
        )

    tables = (
        jax.ShapeDtypeStruct((size, 64), jnp.float32)
        for size in (3000, num_items)
    )
    sizes = list(sizes_of(jax.make_jaxpr(block)(*tables).jaxpr))
    # The items themselves, tiled, are the one thing that may grow.
    table = max(size for size in sizes if size >= 64 * num_items)
    assert table < 1.5 * 64 * num_items
    return max(size for size in sizes if size < 64 * num_items), ranker.block


def test_memory_does_not_grow_with_users_times_items(one, monkeypatch):
    """Scores exist for 1,024 users and 8,192 items at a time, never more."""
    monkeypatch.setattr(native, "ranks", lambda mesh: False)
    for num_items in (200_000, 1_000_000):
        largest, block = largest_array(num_items, one)
        assert block == 1024
        assert largest <= block * 16 * 512
        assert largest < 3000 * num_items / 50
