"""How the people of the bazaar choose: tastes, histories, choices, splits.

Arrays in, arrays out; `make.py` knows what the columns mean. Nothing of the
size users x items is ever held: people are served in chunks of at most `CELLS`
(user, item) cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MIN_HISTORY = 5  # interactions of the least active user, as in 5-core data
MAX_CAUSES = 3
CELLS = 1 << 20  # cells of one chunk: bounds memory, fits the cache
EXACT_ITEMS = 20_000  # catalogues up to this size are seen whole
SHELF = 512  # least number of items that somebody sees of a larger one


def draw_tastes(
    rng: np.random.Generator,
    num_users: int,
    sizes: Sequence[int],
    active: Sequence[int],
    strength: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What moves each user: one to three attributes, and values of them.

    Args:
      rng: where the randomness comes from.
      num_users: U.
      sizes: number of values of each of the A attributes; V is their sum.
      active: attributes that may move somebody at all.
      strength: mean gain in log-odds of an item that has a liked value.

    Returns:
      causes, bool `[U, A]`, and preferences, float16 `[U, V]`: the gain for
      each value, attribute after attribute; 0 for what leaves a user cold.
    """
    offsets = np.cumsum([0, *sizes])
    causes = np.zeros((num_users, len(sizes)), np.bool_)
    preferences = np.zeros((num_users, offsets[-1]), np.float16)
    people = np.arange(num_users)
    count = rng.choice(MAX_CAUSES, num_users, p=[0.2, 0.4, 0.4]) + 1
    shuffled = rng.random((num_users, len(active)), np.float32).argsort(1)
    for rank in range(min(MAX_CAUSES, len(active))):
        attribute = np.asarray(active)[shuffled[:, rank]]
        size, offset = np.asarray(sizes)[attribute], offsets[attribute]
        liked = rng.integers(0, size)
        also = (liked + rng.integers(1, size)) % size
        gain = strength * rng.uniform(0.7, 1.3, num_users)
        moved = count > rank
        broad = moved & (rng.random(num_users) < 0.3)  # likes two values
        causes[people[moved], attribute[moved]] = True
        for who, value in ((moved, liked), (broad, also)):
            preferences[people[who], (offset + value)[who]] = gain[who]
    return causes, preferences


def draw_histories(
    rng: np.random.Generator, num_users: int, total: int, most: int
) -> np.ndarray:
    """Long-tailed numbers of interactions, int64 `[U]`, with an exact sum.

    Args:
      rng: where the randomness comes from.
      num_users: U.
      total: their sum, in `[U * MIN_HISTORY, U * most)`.
      most: the largest number allowed.
    """
    activity = rng.lognormal(size=num_users)
    lengths = np.full(num_users, MIN_HISTORY)
    while left := total - int(lengths.sum()):
        share = activity * (lengths < most)
        lengths += rng.multinomial(left, share / share.sum())
        np.minimum(lengths, most, out=lengths)
    return lengths


def choose(
    rng: np.random.Generator,
    appeal: np.ndarray,
    columns: np.ndarray,
    preferences: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """What everybody takes from the bazaar.

    A user draws `lengths[u]` different items, one after the other, with
    probability proportional to exp(appeal + the user's gains): an exponential
    race, which is the same as Gumbel top-k. In a catalogue of more than
    `EXACT_ITEMS` the race is run among those that the user sees, drawn by
    appeal alone.

    Args:
      rng: where the randomness comes from.
      appeal: float `[I]`, log of the items' popularity.
      columns: int `[I, C]`, each item's columns in `preferences`.
      preferences: float `[U, V]`, see `draw_tastes`.
      lengths: int `[U]`, how many items each user takes.

    Returns:
      int32 `[sum(lengths)]`: the items of user 0, then of user 1, ...; those
      of one user in random order.
    """
    ends = np.cumsum(lengths)
    items = np.empty(ends[-1], np.int32)
    display = _display(appeal)
    columns = np.asfortranarray(columns, np.intp)
    pending, width = np.argsort(-lengths, kind="stable"), SHELF
    while pending.size:
        short = []
        for who, seen in _chunks(lengths, pending, width, len(appeal)):
            gains = preferences[who].astype(np.float32)
            shelf, keys = _race(rng, display, appeal, columns, gains, seen)
            taken, ok = _first(rng, shelf, keys, lengths[who])
            slots = np.arange(taken.shape[1]) < lengths[who, None]
            rows = (ends - lengths)[who, None] + np.arange(taken.shape[1])
            items[rows[slots]] = taken[slots]
            short.append(who[~ok])
        # Who saw too few different items looks again, at twice as many.
        pending, width = np.concatenate(short), 2 * width
    return items


def split(
    rng: np.random.Generator, lengths: np.ndarray, num_train: int | None = None
) -> np.ndarray:
    """Splits each user's interactions about 80 / 10 / 10.

    Every user keeps at least one interaction in each split.

    Args:
      rng: where the randomness comes from.
      lengths: int `[U]`, interactions of each user, at least 3.
      num_train: exact size of train over all users, in
        `[U, sum(lengths) - 2 U]`; None leaves it to rounding.

    Returns:
      int8 `[sum(lengths)]`, user after user: 0 train, 1 valid, 2 test.
    """
    held = np.maximum(2, np.rint(0.2 * lengths).astype(np.int64))
    if num_train is not None:
        while surplus := int(lengths.sum() - held.sum()) - num_train:
            free = held < lengths - 1 if surplus > 0 else held > 2
            able = np.flatnonzero(free)
            count = min(abs(surplus), able.size)
            held[rng.choice(able, count, replace=False)] += np.sign(surplus)
    test = (held + 1) // 2
    starts = np.cumsum(lengths) - lengths
    place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    part = (place < np.repeat(held, lengths)).astype(np.int8)
    part += place < np.repeat(test, lengths)
    return part


def _display(appeal: np.ndarray) -> np.ndarray:
    """Items repeated in proportion to exp(appeal): one gather draws one."""
    chance = np.exp(appeal - appeal.max(), dtype=np.float64).cumsum()
    slots = max(1 << 16, 16 * len(appeal))
    ends = np.rint(chance * (slots / chance[-1])).astype(np.int64)
    return np.repeat(
        np.arange(len(appeal), dtype=np.int32), np.diff(ends, prepend=0)
    )


def _chunks(
    lengths: np.ndarray, pending: np.ndarray, width: int, num_items: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Users that are served at once, most active first, and what they see."""
    begin = 0
    while begin < pending.size:
        # Eight times what is taken keeps the choice a choice.
        seen = max(width, 8 * int(lengths[pending[begin]]) * width // SHELF)
        if num_items <= max(EXACT_ITEMS, seen):
            seen = num_items
        end = begin + max(1, CELLS // seen)
        yield pending[begin:end], seen
        begin = end


def _race(
    rng: np.random.Generator,
    display: np.ndarray,
    appeal: np.ndarray,
    columns: np.ndarray,
    gains: np.ndarray,
    seen: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Items seen, `[b, seen]`, and when they arrive: smaller is preferred.

    Who sees everything, sees it weighted by its appeal; else the appeal has
    decided what is seen. What is seen twice arrives once.
    """
    people, values = gains.shape
    if whole := seen == len(appeal):
        shelf = np.arange(seen)[None]
        keys = np.repeat(-appeal[None].astype(np.float32), people, axis=0)
    else:
        slots = rng.integers(0, len(display), (people, seen), np.int32)
        shelf = np.sort(display[slots], axis=1)
        keys = np.zeros(shelf.shape, np.float32)
    own = np.arange(0, gains.size, values)[:, None]
    for column in columns.T:
        keys -= gains.take(column.take(shelf) + own)
    np.exp(keys, out=keys)
    keys *= rng.standard_exponential(keys.shape, np.float32)
    if not whole:
        keys[:, 1:][shelf[:, 1:] == shelf[:, :-1]] = np.inf
    return np.broadcast_to(shelf, keys.shape), keys


def _first(
    rng: np.random.Generator,
    shelf: np.ndarray,
    keys: np.ndarray,
    lengths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The first `lengths[b]` to arrive, `[b, max(lengths)]`, shuffled.

    Also returns bool `[b]`: whether there were that many.
    """
    most = int(lengths.max())
    best = np.argpartition(keys, most - 1, axis=1)[:, :most]
    best_keys = np.take_along_axis(keys, best, 1)
    order = best_keys.argsort(1)
    last = np.take_along_axis(order, lengths[:, None] - 1, 1)
    ok = np.isfinite(np.take_along_axis(best_keys, last, 1))[:, 0]
    # Order of arrival tells how much an item is liked: nobody may see it.
    blind = rng.random(best.shape, np.float32)
    blind[np.arange(most) >= lengths[:, None]] = 2.0
    order = np.take_along_axis(order, blind.argsort(1), 1)
    best = np.take_along_axis(best, order, 1)
    return np.take_along_axis(shelf, best, 1), ok
