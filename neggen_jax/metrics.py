"""Metrics: what `evaluate.py` reports, from top-k lists to numbers.

Stands at the very end of the way of the data: `evaluate.py` ranks the whole
catalogue on the device and brings back, for every evaluated user, the items
at ranks 1 to K and whether each is held out. All that follows is NumPy in
float64 on the host, and a function of these arrays alone:

- `hits`: bool or uint8 `[U, K]`, 1 where the item at that rank is held out;
- `relevant`: int `[U]`, the user's number of held-out items, at least 1;
- `lists`: int32 `[U, K]`, the recommended items; a negative entry is an empty
  place (a user with fewer than K items left to recommend).

Lists come ordered by falling score, ties by rising item index. No value
depends on how users were blocked or ordered, to the last digit: per-user
values are sums in rank order, counts are integers, means are `math.fsum`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from neggen_jax.errors import InputError
from neggen_jax.intervals import bootstrap

CUTOFFS = (5, 10, 20, 50)

# What there is of each cut-off; see `accuracy`.
NAMES = ("recall", "ndcg", "precision", "map", "mrr", "hitrate")

# Deciles of popularity, least popular first, that make up the tail.
TAIL = 8


def accuracy(
    hits: np.ndarray, relevant: np.ndarray, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, np.ndarray]:
    """Accuracy of each user's list at each cut-off.

    With `h_r` in {0, 1} the hit at rank r and R the user's held-out items:

    - `hitrate@k`   1 if any `h_r`, r <= k;
    - `recall@k`    sum h_r / R;
    - `precision@k` sum h_r / k, also where the list has empty places;
    - `mrr@k`       1 / rank of the first hit, 0 without one;
    - `ndcg@k`      sum h_r / log2(r + 1), over the same sum of the ideal
      list, which has hits at ranks 1 .. min(R, k);
    - `map@k`       sum h_r * precision@r / min(R, k).

    These are the definitions of RecBole and MMRec, and of ranx but for one:
    ranx (0.3.21, `average_precision.py`) divides `map@k` by R, so its value
    is ours times min(R, k) / R, and a perfect list scores below 1 whenever
    R > k.

    Args:
      hits: bool or uint8 `[U, K]`, in rank order.
      relevant: int `[U]`, at least 1.
      cutoffs: ranks k to report, each at most K.

    Returns:
      "metric@k" -> float64 `[U]`.

    Raises:
      InputError: shapes do not agree, a cut-off lies outside 1 .. K, or a
        user has no held-out item or more hits than held-out items.
    """
    relevant = np.asarray(relevant)
    hits = _checked_hits(hits, relevant, cutoffs)
    users, depth = hits.shape
    count = np.zeros(users, np.int64)
    dcg, precisions, first = np.zeros((3, users))
    discount = 1 / np.log2(np.arange(2, depth + 2))
    ideal = np.cumsum(discount)
    metrics: dict[str, np.ndarray] = {}
    for rank in range(1, depth + 1):
        hit = hits[:, rank - 1]
        first[hit & (count == 0)] = 1 / rank
        count += hit
        dcg += hit * discount[rank - 1]
        precisions += hit * (count / rank)
        if rank in cutoffs:
            best = np.minimum(relevant, rank)
            metrics |= {
                f"recall@{rank}": count / relevant,
                f"ndcg@{rank}": dcg / ideal[best - 1],
                f"precision@{rank}": count / rank,
                f"map@{rank}": precisions / best,
                f"mrr@{rank}": first.copy(),
                f"hitrate@{rank}": (count > 0).astype(np.float64),
            }
    return metrics


def summarize(per_user: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over users, correctly rounded and so the same in any order.

    Args:
      per_user: metric -> float `[U]`.

    Returns:
      metric -> mean. `math.fsum` rounds the exact sum once, whatever the
      order of the users and however they were blocked.

    Raises:
      InputError: there is no user to average over.
    """
    for name, values in per_user.items():
        if not len(values):
            raise InputError(
                "There is no user to average over.",
                where=name,
                expected="at least one user with a held-out item",
                fix="check that the split to evaluate is not empty",
            )
    return {
        name: math.fsum(np.asarray(values, np.float64).tolist()) / len(values)
        for name, values in per_user.items()
    }


def exposure(lists: np.ndarray, num_items: int, k: int = 20) -> np.ndarray:
    """How often each item is recommended within the first k ranks.

    Args:
      lists: int `[U, K]`, negative where a place is empty.
      num_items: size of the catalogue.
      k: cut-off, at most K.

    Returns:
      int64 `[num_items]`. Counts of blocks of users add up to the whole's.

    Raises:
      InputError: the lists are too short, or name an unknown item.
    """
    top = _top(lists, k)
    items = top[top >= 0]
    if items.size and items.max() >= num_items:
        raise InputError(
            "A list recommends an item that is not in the catalogue.",
            expected=f"item indices below {num_items}",
            found=int(items.max()),
        )
    return np.bincount(items, minlength=num_items)


def list_metrics(
    exposed: np.ndarray, popularity: np.ndarray, k: int = 20
) -> dict[str, float]:
    """What the lists of all users, taken together, look like.

    - `coverage@k`   share of the catalogue recommended at least once;
    - `gini@k`       Gini coefficient of exposure over the whole catalogue,
      items never recommended included: 0 if all are recommended equally
      often, (n - 1) / n if a single one of n always is;
    - `popularity@k` mean train count over all recommended places;
    - `novelty@k`    mean self-information -log2 p over all recommended
      places, in bits (Zhou et al., PNAS 2010, with the share of train
      interactions as p). p = (count + 1) / (interactions + num_items): the
      add-one keeps an item without train interactions finite, and p still
      sums to one.

    Args:
      exposed: int `[num_items]`, from `exposure` at the same k.
      popularity: int `[num_items]`, train interactions of each item.
      k: the cut-off, for the names only.

    Returns:
      "metric@k" -> value.

    Raises:
      InputError: lengths differ, or nothing was recommended at all.
    """
    exposed = np.asarray(exposed, np.int64)
    popularity = np.asarray(popularity, np.int64)
    if exposed.shape != popularity.shape or exposed.ndim != 1:
        raise InputError(
            "Exposure and popularity do not cover the same items.",
            expected=f"popularity of shape {exposed.shape}",
            found=popularity.shape,
        )
    total, n = int(exposed.sum()), len(exposed)
    if not total:
        raise InputError(
            "Nothing was recommended: every place of every list is empty.",
            fix="check the masks of the evaluation",
        )
    # Weights 1 - n, 3 - n .. n - 1 on rising counts: all integers, so exact.
    spread = int(np.dot(2 * np.arange(1, n + 1) - n - 1, np.sort(exposed)))
    information = -np.log2((popularity + 1) / (popularity.sum() + n))
    return {
        f"coverage@{k}": int(np.count_nonzero(exposed)) / n,
        f"gini@{k}": spread / (n * total),
        f"popularity@{k}": int(np.dot(exposed, popularity)) / total,
        f"novelty@{k}": math.fsum((exposed * information).tolist()) / total,
    }


def popularity_deciles(
    hits: np.ndarray,
    lists: np.ndarray,
    heldout: np.ndarray,
    popularity: np.ndarray,
    k: int = 20,
) -> dict[str, list]:
    """Recall by how popular the held-out item is.

    The catalogue, ordered by train count (equal counts by item index), is
    cut into ten groups that differ by at most one item. A group's recall is
    the number of its held-out items that were recommended over the number
    of its held-out items, pooled over users.

    Args:
      hits: bool or uint8 `[U, K]`.
      lists: int `[U, K]`, the items that `hits` speaks of.
      heldout: int `[n]`, the held-out items of all evaluated users, one
        entry per interaction, in any order.
      popularity: int `[num_items]`, train interactions of each item.
      k: cut-off, at most K.

    Returns:
      Ready for JSON, least popular decile first: "recall@k" -> 10 floats,
      None where no held-out item lies in the decile; "heldout" -> 10 counts.

    Raises:
      InputError: the lists are too short, or do not match the hits.
    """
    found, total = _by_decile(hits, lists, heldout, popularity, k)
    recall = [f / t if t else None for f, t in zip(found, total, strict=True)]
    return {f"recall@{k}": recall, "heldout": total}


def tail_recall(
    hits: np.ndarray,
    lists: np.ndarray,
    heldout: np.ndarray,
    popularity: np.ndarray,
    k: int = 20,
) -> dict[str, float]:
    """Recall over the held-out items that are not popular.

    The tail are the items of the eight least popular deciles, as
    `popularity_deciles` cuts them: four fifths of the catalogue, whatever
    share of the interactions these have. Its recall is the number of held-out
    tail items that were recommended over the number of held-out tail items,
    pooled over users: a mean over users would leave most of them out.

    Args:
      hits: bool or uint8 `[U, K]`.
      lists: int `[U, K]`, the items that `hits` speaks of.
      heldout: int `[n]`, the held-out items of all evaluated users.
      popularity: int `[num_items]`, train interactions of each item.
      k: cut-off, at most K.

    Returns:
      "tail_recall@k" -> value; empty where no tail item is held out.

    Raises:
      InputError: the lists are too short, or do not match the hits.
    """
    found, total = _by_decile(hits, lists, heldout, popularity, k)
    if not sum(total[:TAIL]):
        return {}
    return {f"tail_recall@{k}": sum(found[:TAIL]) / sum(total[:TAIL])}


def _by_decile(
    hits: np.ndarray,
    lists: np.ndarray,
    heldout: np.ndarray,
    popularity: np.ndarray,
    k: int,
) -> tuple[list[int], list[int]]:
    """Held-out items by decile of popularity: those recommended, and all."""
    top, hit = _top(lists, k), _top(hits, k).astype(bool)
    if top.shape != hit.shape:
        raise InputError(
            "Hits and lists do not have the same users.",
            expected=f"{len(hit)} lists",
            found=f"{len(top)} lists",
        )
    decile = np.empty(len(popularity), np.int64)
    order = np.argsort(popularity, kind="stable")
    decile[order] = np.arange(len(popularity)) * 10 // len(popularity)
    found = np.bincount(decile[top[hit]], minlength=10).tolist()
    total = np.bincount(decile[heldout], minlength=10).tolist()
    return found, total


def category_entropy(
    lists: np.ndarray, categories: np.ndarray, k: int = 20
) -> np.ndarray:
    """How evenly each list is spread over the categories of its items.

    Shannon entropy in bits of the shares that categories have of the list:
    0 if all its items are of one category, log2 n if n have equal shares.

    Args:
      lists: int `[U, K]`, negative where a place is empty.
      categories: int `[num_items]`, the category of each item; negative for
        an item without one, which is left out of its list.
      k: cut-off, at most K.

    Returns:
      float64 `[U]`; NaN where no item of a list has a category.
    """
    top = _top(lists, k)
    found = np.where(top >= 0, categories[top], -1)
    user, place = np.nonzero(found >= 0)
    size = int(categories.max(initial=-1)) + 1
    # Each user's categories, rising, with how often they occur.
    pair, count = np.unique(
        user * size + found[user, place], return_counts=True
    )
    owner = pair // max(size, 1)
    total = np.bincount(owner, count, minlength=len(top))
    share = count / total[owner]
    entropy = np.bincount(owner, -share * np.log2(share), minlength=len(top))
    return np.where(total > 0, entropy, np.nan)


def intra_list_diversity(
    lists: np.ndarray, features: np.ndarray, present: np.ndarray, k: int = 20
) -> np.ndarray:
    """Mean cosine distance between the items of each list.

    `evaluate.py` computes this on the device; here it stands in float64 as
    the definition. For unit vectors, the cosines of all pairs add up to
    (|sum of vectors|^2 - n) / 2, so pairs need not be visited.

    Args:
      lists: int `[U, K]`, negative where a place is empty.
      features: float `[num_items, f]`, non-zero where `present`.
      present: bool `[num_items]`; pairs with an absent item are left out.
      k: cut-off, at most K.

    Returns:
      float64 `[U]` in [0, 2]: mean of 1 - cosine over the pairs; NaN where
      a list has fewer than two present items.
    """
    top = _top(lists, k)
    values = np.full(len(top), np.nan)
    for user, items in enumerate(top):
        items = items[items >= 0]
        vectors = features[items[present[items]]].astype(np.float64)
        n = len(vectors)
        if n > 1:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            cosines = np.square(vectors.sum(axis=0)).sum() - n
            values[user] = np.clip(1 - cosines / (n * (n - 1)), 0, 2)
    return values


def paired_test(
    a: np.ndarray,
    b: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Is `a` different from `b`, user by user or seed by seed?

    Args:
      a: float `[n]`, one method's values, such as recall of each user.
      b: float `[n]`, the other's, of the same users in the same order.
      confidence: level of the bootstrap interval.
      resamples: bootstrap resamples, each n draws with replacement.
      seed: of the bootstrap.

    Returns:
      "n"; "mean_difference" of a - b; two-sided "t_p" of the paired t-test
      and "wilcoxon_p" of the signed-rank test (pairs without a difference
      dropped); "ci_low" and "ci_high", the interval of `bootstrap` of the
      mean difference. Without any difference both p are 1. Five seeds
      cannot bring "wilcoxon_p" below 1/16: look at "t_p" there.

    Raises:
      InputError: the arrays are not paired, hold NaN, or have fewer than
        two values.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise InputError(
            "A paired test needs two arrays of equal length.",
            expected="shapes (n,) and (n,) with n >= 2",
            found=f"shapes {a.shape} and {b.shape}",
        )
    difference = a - b
    if not np.isfinite(difference).all():
        raise InputError(
            "A paired test needs finite values.",
            found=f"{np.count_nonzero(~np.isfinite(difference))} others",
            fix="leave out the users for whom the metric is not defined",
        )
    n, mean = len(difference), math.fsum(difference.tolist()) / len(difference)
    t_p = wilcoxon_p = 1.0
    if difference.any():
        # A constant difference has no variance: t is infinite and p is 0.
        constant = (difference == difference[0]).all()
        t_p = 0.0 if constant else float(stats.ttest_rel(a, b).pvalue)
        wilcoxon_p = float(stats.wilcoxon(difference).pvalue)
    low, high = bootstrap(
        difference[:, None],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return {
        "n": n,
        "mean_difference": mean,
        "t_p": t_p,
        "wilcoxon_p": wilcoxon_p,
        "ci_low": float(low[0]),
        "ci_high": float(high[0]),
    }


def _top(lists: np.ndarray, k: int) -> np.ndarray:
    """The first k ranks, or an error if there are fewer."""
    lists = np.asarray(lists)
    if lists.ndim != 2 or not 1 <= k <= lists.shape[1]:
        raise InputError(
            "The cut-off is deeper than the lists.",
            expected=f"lists of shape [U, K] with K >= {k} >= 1",
            found=f"shape {lists.shape}",
            fix="rank at least as deep as the largest cut-off",
        )
    return lists[:, :k]


def _checked_hits(
    hits: np.ndarray, relevant: np.ndarray, cutoffs: Sequence[int]
) -> np.ndarray:
    """`hits` as bool, once shapes, cut-offs and counts agree."""
    _top(hits, min(cutoffs, default=0))
    hits = _top(hits, max(cutoffs)).astype(bool)
    if relevant.shape != (len(hits),):
        raise InputError(
            "There must be one number of held-out items for each user.",
            expected=(len(hits),),
            found=relevant.shape,
        )
    wrong = np.flatnonzero((relevant < 1) | (hits.sum(axis=1) > relevant))
    if wrong.size:
        user = int(wrong[0])
        raise InputError(
            f"{wrong.size} users have no held-out item, or more hits than "
            "held-out items.",
            where=f"row {user}",
            expected="1 <= held-out items and hits <= held-out items",
            found=f"{int(relevant[user])} held-out items, "
            f"{int(hits[user].sum())} hits",
            fix="evaluate only users with a held-out item in the split",
        )
    return hits
