import math
from itertools import combinations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neggen_jax import metrics
from neggen_jax.errors import InputError

CUTOFFS = (1, 5, 10, 20)
DEPTH = 20
ITEMS = 60


@pytest.fixture(scope="module")
def ranx():
    """ranx as plain Python: compiling it takes a minute, running it does not.

    The switch must be set before the first import.
    """
    numba = pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)
        yield pytest.importorskip("ranx")


def ranking(scores, k):
    """Falling score, ties by rising index: the rule of the whole package."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)


def problem(seed, levels, users=50):
    """Scores with `levels` distinct values, lists, held-out sets and hits."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(users, ITEMS)).astype(np.float32)
    # Between one held-out item and more than the deepest cut-off.
    sizes = rng.integers(1, 31, size=users)
    heldout = [rng.choice(ITEMS, size=n, replace=False) for n in sizes]
    lists = ranking(scores, DEPTH)
    hits = np.stack(
        [np.isin(top, h) for top, h in zip(lists, heldout, strict=True)]
    )
    return scores, lists, heldout, hits


@st.composite
def hit_tables(draw, max_users=12, depth=DEPTH):
    users = draw(st.integers(1, max_users))
    bits = st.lists(st.booleans(), min_size=depth, max_size=depth)
    rows = st.lists(bits, min_size=users, max_size=users)
    hits = np.array(draw(rows), bool)
    missed = st.lists(st.integers(0, 30), min_size=users, max_size=users)
    relevant = np.maximum(hits.sum(axis=1) + np.array(draw(missed)), 1)
    return hits, relevant


# -- accuracy ---------------------------------------------------------------


@pytest.mark.parametrize("levels", [10**6, 3])
def test_accuracy_agrees_with_ranx(ranx, levels):
    """At random, and where three score values leave almost only ties.

    ranx sorts by score with an unstable sort, so it is given the ranks that
    our tie rule makes of the scores.
    """
    _, lists, heldout, hits = problem(0, levels)
    relevant = np.array([len(h) for h in heldout])
    qrels = {
        f"u{user:03}": {f"i{item}": 1 for item in items}
        for user, items in enumerate(heldout)
    }
    run = {
        f"u{user:03}": {f"i{item}": -float(r) for r, item in enumerate(items)}
        for user, items in enumerate(lists)
    }
    ours = metrics.accuracy(hits, relevant, CUTOFFS)
    names = [name.replace("hitrate", "hit_rate") for name in ours]
    theirs = ranx.evaluate(
        ranx.Qrels(qrels), ranx.Run(run), names, return_mean=False
    )
    for name, ranx_name in zip(ours, names, strict=True):
        expected, k = theirs[ranx_name], int(name.split("@")[1])
        if name.startswith("map"):  # ranx divides by all held-out items
            expected = expected * relevant / np.minimum(relevant, k)
        np.testing.assert_allclose(
            ours[name], expected, rtol=1e-12, atol=0, err_msg=name
        )


def test_ties_are_ordered_by_rising_item_index():
    """The rule the metrics presuppose is the one of `jax.lax.top_k`."""
    scores, lists, _, _ = problem(1, levels=3)
    np.testing.assert_array_equal(jax.lax.top_k(scores, 20)[1], lists)
    by_hand = [
        sorted(range(ITEMS), key=lambda i, s=row: (-s[i], i))[:20]
        for row in scores
    ]
    np.testing.assert_array_equal(lists, by_hand)


def user_by_loop(hits, relevant, k):
    """All metrics of one user, spelled out from their definitions."""
    ranks = [r for r in range(1, k + 1) if hits[r - 1]]
    best = min(relevant, k)
    dcg = sum(1 / math.log2(r + 1) for r in ranks)
    ideal = sum(1 / math.log2(r + 1) for r in range(1, best + 1))
    return {
        "recall": len(ranks) / relevant,
        "ndcg": dcg / ideal,
        "precision": len(ranks) / k,
        "map": sum(n / r for n, r in enumerate(ranks, 1)) / best,
        "mrr": 1 / ranks[0] if ranks else 0.0,
        "hitrate": float(bool(ranks)),
    }


@given(hit_tables(), st.sampled_from([np.bool_, np.uint8]))
def test_accuracy_agrees_with_a_loop_over_the_definitions(table, dtype):
    hits, relevant = table
    values = metrics.accuracy(hits.astype(dtype), relevant, CUTOFFS)
    assert len(values) == 6 * len(CUTOFFS)
    for k in CUTOFFS:
        for user, row in enumerate(hits):
            loop = user_by_loop(row, int(relevant[user]), k)
            for name, expected in loop.items():
                found = values[f"{name}@{k}"][user]
                assert found == pytest.approx(expected, rel=1e-13), name


@given(hit_tables())
def test_accuracy_is_bounded_and_grows_with_the_cutoff(table):
    values = metrics.accuracy(*table, CUTOFFS)
    for name, value in values.items():
        assert ((value >= 0) & (value <= 1 + 1e-15)).all(), name
    for name in ("recall", "hitrate", "mrr"):
        by_k = np.stack([values[f"{name}@{k}"] for k in CUTOFFS])
        assert (np.diff(by_k, axis=0) >= 0).all(), name


@given(st.integers(1, 40))
def test_a_perfect_ranking_is_one_to_the_last_digit(relevant):
    hits = (np.arange(20) < relevant)[None]
    values = metrics.accuracy(hits, np.array([relevant]), CUTOFFS)
    for k in CUTOFFS:
        for name in ("ndcg", "map", "mrr", "hitrate"):
            assert values[f"{name}@{k}"] == [1.0]
        assert values[f"recall@{k}"] == [min(1.0, k / relevant)]
        assert values[f"precision@{k}"] == [min(1.0, relevant / k)]


@given(hit_tables(), st.randoms(use_true_random=False))
def test_means_are_the_same_in_any_order_and_any_blocks(table, random):
    hits, relevant = table
    whole = metrics.accuracy(hits, relevant, CUTOFFS)
    order = list(range(len(hits)))
    random.shuffle(order)
    cut = random.randint(0, len(order))
    blocks = [
        metrics.accuracy(hits[part], relevant[part], CUTOFFS)
        for part in (order[:cut], order[cut:])
        if part
    ]
    rejoined = {n: np.concatenate([b[n] for b in blocks]) for n in whole}
    assert metrics.summarize(rejoined) == metrics.summarize(whole)


def test_means_are_correctly_rounded():
    # Summed in this order in float64, the ones vanish: the mean would be 0.
    values = np.array([1e16, 1.0, 1.0, -1e16])
    assert metrics.summarize({"m": values}) == {"m": 0.5}
    assert metrics.summarize({"m": values[::-1]}) == {"m": 0.5}


@pytest.mark.parametrize(
    ("hits", "relevant", "cutoffs", "says"),
    [
        (np.ones((2, 5)), np.array([5, 5]), (10,), "deeper than the lists"),
        (np.ones((2, 5)), np.array([5, 5]), (0, 5), "deeper than the lists"),
        (np.ones((2, 5)), np.array([5, 5]), (), "deeper than the lists"),
        (np.ones(5), np.array([5]), (5,), "deeper than the lists"),
        (np.ones((2, 5)), np.array([5]), (5,), "one number of held-out"),
        (np.zeros((2, 5)), np.array([5, 0]), (5,), "row 1"),
        (np.ones((2, 5)), np.array([4, 5]), (5,), "row 0"),
    ],
)
def test_accuracy_refuses_what_does_not_fit(hits, relevant, cutoffs, says):
    with pytest.raises(InputError, match=says):
        metrics.accuracy(hits, relevant, cutoffs)


def test_summarize_refuses_no_users():
    with pytest.raises(InputError, match="no user to average"):
        metrics.summarize({"recall@10": np.zeros(0)})


# -- lists ------------------------------------------------------------------


def list_metrics(lists, popularity, k):
    exposed = metrics.exposure(lists, len(popularity), k)
    return metrics.list_metrics(exposed, popularity, k)


@pytest.mark.parametrize("empty", [False, True])
def test_list_metrics_agree_with_loops(empty):
    rng = np.random.default_rng(2)
    popularity = rng.integers(0, 30, size=ITEMS) * rng.integers(0, 2, ITEMS)
    lists = ranking(rng.normal(size=(40, ITEMS)) + popularity / 20, 20)
    if empty:
        lists[3, 7:] = -1
    places = [int(i) for row in lists for i in row[:10] if i >= 0]
    counts = [places.count(i) for i in range(ITEMS)]
    smoothed = popularity.sum() + ITEMS
    # Gini as half the relative mean absolute difference of all pairs.
    apart = sum(abs(x - y) for x in counts for y in counts)
    expected = {
        "coverage@10": len(set(places)) / ITEMS,
        "gini@10": apart / (2 * ITEMS * sum(counts)),
        "popularity@10": sum(popularity[i] for i in places) / len(places),
        "novelty@10": sum(
            -math.log2((popularity[i] + 1) / smoothed) for i in places
        )
        / len(places),
    }
    found = list_metrics(lists, popularity, 10)
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0 < found["coverage@10"] < 1  # the example tells something


def test_list_metrics_at_their_extremes():
    popularity = np.zeros(4, int)
    same = list_metrics(np.zeros((8, 1), int), popularity, 1)
    assert same["coverage@1"] == 1 / 4
    assert same["gini@1"] == 3 / 4
    even = list_metrics(np.arange(8).reshape(8, 1) % 4, popularity, 1)
    assert even["coverage@1"] == 1.0
    assert even["gini@1"] == 0.0
    # Without train counts the smoothing makes all items equally likely.
    assert even["novelty@1"] == same["novelty@1"] == 2.0


@given(st.permutations(range(30)), st.integers(1, 29))
def test_list_metrics_do_not_know_the_order_of_users(order, cut):
    rng = np.random.default_rng(3)
    lists = ranking(rng.normal(size=(30, ITEMS)), 20)
    popularity = rng.integers(0, 50, size=ITEMS)
    exposed = metrics.exposure(lists, ITEMS)
    parts = np.split(lists[list(order)], [cut])
    blocks = sum(metrics.exposure(part, ITEMS) for part in parts)
    np.testing.assert_array_equal(blocks, exposed)
    assert metrics.list_metrics(blocks, popularity) == metrics.list_metrics(
        exposed, popularity
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: metrics.exposure(np.zeros((2, 5), int), 9, 6), "deeper"),
        (lambda: metrics.exposure(np.full((2, 5), 9), 9, 5), "not in the cat"),
        (
            lambda: metrics.list_metrics(np.ones(3), np.ones(4)),
            "same items",
        ),
        (
            lambda: metrics.list_metrics(np.zeros(3), np.ones(3)),
            "Nothing was recommended",
        ),
    ],
)
def test_list_metrics_refuse_what_does_not_fit(call, says):
    with pytest.raises(InputError, match=says):
        call()


# -- popularity deciles -----------------------------------------------------


@pytest.mark.parametrize("num_items", [60, 57])
def test_popularity_deciles_agree_with_a_loop(num_items):
    rng = np.random.default_rng(4)
    popularity = rng.integers(0, 12, size=num_items)  # many equal counts
    lists = ranking(rng.normal(size=(50, num_items)) + popularity / 4, 20)
    heldout = [rng.choice(num_items, 4, replace=False) for _ in lists]
    hits = np.stack([np.isin(*x) for x in zip(lists, heldout, strict=True)])

    order = sorted(range(num_items), key=lambda i: (popularity[i], i))
    groups = [
        {i for r, i in enumerate(order) if r * 10 // num_items == d}
        for d in range(10)
    ]
    sizes = [len(g) for g in groups]
    assert max(sizes) - min(sizes) <= 1
    found, total = np.zeros((2, 10))
    for top, items in zip(lists, heldout, strict=True):
        for d, group in enumerate(groups):
            found[d] += len(group & set(items) & set(top))
            total[d] += len(group & set(items))
    deciles = metrics.popularity_deciles(
        hits, lists, np.concatenate(heldout), popularity
    )
    assert deciles["heldout"] == total.tolist()
    assert deciles["recall@20"] == (found / total).tolist()
    # Pooled over deciles, this is the share of held-out items recommended.
    assert np.sum(found) == hits.sum()


def test_an_empty_decile_has_no_recall():
    lists, heldout = np.arange(20)[None], np.array([19])
    deciles = metrics.popularity_deciles(
        lists == 19, lists, heldout, popularity=np.arange(20)
    )
    assert deciles == {
        "recall@20": [None] * 9 + [1.0],
        "heldout": [0] * 9 + [1],
    }
    with pytest.raises(InputError, match="same users"):
        metrics.popularity_deciles(
            np.zeros((2, 20)), lists, heldout, np.arange(20)
        )


@pytest.mark.parametrize("num_items", [60, 57])
def test_tail_recall_agrees_with_a_loop(num_items):
    rng = np.random.default_rng(5)
    popularity = rng.integers(0, 12, size=num_items)
    lists = ranking(rng.normal(size=(50, num_items)) + popularity / 4, 20)
    heldout = [rng.choice(num_items, 4, replace=False) for _ in lists]
    hits = np.stack([np.isin(*x) for x in zip(lists, heldout, strict=True)])
    order = sorted(range(num_items), key=lambda i: (popularity[i], i))
    tail = {i for r, i in enumerate(order) if r < 0.8 * num_items}
    found = total = 0
    for top, items in zip(lists, heldout, strict=True):
        found += len(tail & set(items) & set(top[:10]))
        total += len(tail & set(items))
    got = metrics.tail_recall(
        hits, lists, np.concatenate(heldout), popularity, 10
    )
    assert got == {"tail_recall@10": found / total}
    # It is not what all items together would give.
    assert found / total < hits[:, :10].sum() / (4 * len(lists))


def test_without_a_tail_item_there_is_no_tail_recall():
    lists, popularity = np.arange(20)[None], np.arange(20)
    for item, want in ((15, {"tail_recall@20": 1.0}), (16, {})):
        assert want == metrics.tail_recall(
            lists == item, lists, np.array([item]), popularity
        )


# -- categories -------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_category_entropy_agrees_with_scipy(seed, kinds):
    rng = np.random.default_rng(seed)
    categories = rng.integers(-1, kinds, ITEMS)
    lists = ranking(rng.normal(size=(6, ITEMS)), 20)
    lists[0, 12:], lists[1] = -1, -1
    found = metrics.category_entropy(lists, categories, 15)
    for row, value in zip(lists, found, strict=True):
        words = [categories[i] for i in row[:15] if i >= 0]
        counts = np.bincount([w for w in words if w >= 0], minlength=kinds)
        if not counts.sum():
            assert np.isnan(value)
            continue
        # Sums of six terms below one.
        want = stats.entropy(counts, base=2)
        assert value == pytest.approx(want, rel=1e-12, abs=1e-15)
        assert not np.signbit(value)
    some = rng.permutation(len(lists))
    again = metrics.category_entropy(lists[some], categories, 15)
    np.testing.assert_array_equal(again, found[some])


def test_category_entropy_of_lists_that_are_known():
    categories = np.array([0, 0, 1, 1, 2, 3, -1])
    lists = np.array([[0, 1, 6], [0, 2, -1], [6, -1, -1], [4, 2, 5]])
    found = metrics.category_entropy(lists, categories, 3)
    np.testing.assert_allclose(found, [0, 1, np.nan, np.log2(3)], rtol=1e-15)
    none = metrics.category_entropy(lists, np.full(7, -1), 3)
    assert np.isnan(none).all()


# -- diversity --------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_diversity_agrees_with_a_loop_over_pairs(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(ITEMS, 8)).astype(np.float32)
    present = rng.random(ITEMS) < 0.8
    features[~present] = 0
    lists = ranking(rng.normal(size=(5, ITEMS)), 20)
    lists[0, 12:] = -1
    found = metrics.intra_list_diversity(lists, features, present, 15)
    for row, value in zip(lists, found, strict=True):
        vectors = [
            features[i].astype(float) for i in row[:15] if i >= 0 and present[i]
        ]
        distances = [
            1 - x @ y / (math.sqrt(x @ x) * math.sqrt(y @ y))
            for x, y in combinations(vectors, 2)
        ]
        assert value == pytest.approx(np.mean(distances), rel=1e-10)


def test_diversity_of_too_few_items_is_not_a_number():
    features = np.array([[1.0, 0], [0, 2.0], [0, 0]])
    present = np.array([True, True, False])
    lists = np.array([[0, 1], [0, 2], [-1, 1], [0, 0]])
    found = metrics.intra_list_diversity(lists, features, present, 2)
    np.testing.assert_array_equal(found, [1.0, np.nan, np.nan, 0.0])


# -- significance -----------------------------------------------------------


def test_paired_test_agrees_with_scipy_and_theory():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 400))
    a = a + 0.3
    result = metrics.paired_test(a, b)
    # The t statistic by hand, and a normal interval: bootstrap comes close.
    d = a - b
    error = d.std(ddof=1) / math.sqrt(400)
    assert result["n"] == 400
    assert result["mean_difference"] == pytest.approx(d.mean())
    t_p = 2 * stats.t.sf(abs(d.mean()) / error, 399)
    assert result["t_p"] == pytest.approx(t_p, rel=1e-9)
    assert result["wilcoxon_p"] == stats.wilcoxon(a, b).pvalue
    assert result["ci_low"] == pytest.approx(
        d.mean() - 1.96 * error, abs=0.2 * error
    )
    assert result["ci_high"] == pytest.approx(
        d.mean() + 1.96 * error, abs=0.2 * error
    )


def test_paired_test_is_seeded_and_changes_sign_with_its_sides():
    rng = np.random.default_rng(6)
    a, b = rng.random((2, 30))
    one, other = metrics.paired_test(a, b), metrics.paired_test(b, a)
    assert one == metrics.paired_test(a, b)
    assert one["ci_low"] != metrics.paired_test(a, b, seed=1)["ci_low"]
    for name in ("t_p", "wilcoxon_p"):
        assert one[name] == pytest.approx(other[name])
    assert one["mean_difference"] == pytest.approx(-other["mean_difference"])
    assert one["ci_low"] == pytest.approx(-other["ci_high"])
    assert one["ci_low"] < one["mean_difference"] < one["ci_high"]


@pytest.mark.parametrize(
    ("shift", "t_p", "wilcoxon_p"), [(0.0, 1.0, 1.0), (0.5, 0.0, 0.0625)]
)
def test_paired_test_of_constant_differences(shift, t_p, wilcoxon_p):
    b = np.arange(5.0)
    result = metrics.paired_test(b + shift, b)
    assert result == {
        "n": 5,
        "mean_difference": shift,
        "t_p": t_p,
        "wilcoxon_p": pytest.approx(wilcoxon_p),
        "ci_low": shift,
        "ci_high": shift,
    }


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (np.zeros(3), np.zeros(4), "equal length"),
        (np.zeros(1), np.zeros(1), "n >= 2"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "equal length"),
        (np.array([0, np.nan]), np.zeros(2), "1 others"),
    ],
)
def test_paired_test_refuses_what_is_not_paired(a, b, says):
    with pytest.raises(InputError, match=says):
        metrics.paired_test(a, b)
