"""Ways to split interactions into train, valid and test.

`assemble.py` asks for one of `SPLITTERS` where the source brings no split of
its own. A split depends on who interacted with what and when, and on the
seed; not on the order of rows in a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from neggen_jax.errors import InputError, nearest

RATIOS = (0.8, 0.1, 0.1)
_TRAIN, _VALID, _TEST = range(3)  # positions in SPLITS


def split(
    word: str,
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray | None,
    ratios: Sequence[float | str] = RATIOS,
    seed: int = 0,
) -> np.ndarray:
    """Splits interactions.

    Args:
      word: one of `SPLITTERS`.
      users: int `[n]`, not negative.
      items: int `[n]`, not negative.
      times: int64 `[n]`, if they are known.
      ratios: shares of train, valid and test.
      seed: of "random".

    Returns:
      int8 `[n]`, positions in `SPLITS`.

    Raises:
      InputError: for another word, impossible ratios, or times that are
        needed and not known.
    """
    if word not in SPLITTERS:
        raise InputError(
            f"There is no split {word!r}.",
            where="--split",
            fix=nearest(word, SPLITTERS),
        )
    shares = _shares(ratios)
    if times is None and word != "random":
        raise InputError(
            f"The split {word!r} needs timestamps, and there are none.",
            where=f"--split={word}",
            fix="name their column (--time_column), or pass --split=random",
        )
    # The order of rows in a file must not matter.
    order = np.lexsort((items, users))
    labels = np.empty(len(users), np.int8)
    labels[order] = SPLITTERS[word](
        users[order],
        None if times is None else times[order],
        shares,
        np.random.default_rng(seed),
    )
    return labels


def random(
    users: np.ndarray,
    times: np.ndarray | None,
    shares: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Of each user's interactions, shares drawn at random.

    Valid and test get `max(1, floor(share * n))` of a user with n >= 3; of
    two interactions one is for test, of one none: train always has some.
    """
    del times
    order = np.lexsort((rng.random(len(users)), users))
    return _last(users, order, _held(users, shares))


def leave_last_out(
    users: np.ndarray,
    times: np.ndarray | None,
    shares: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Each user's last interaction for test, the one before it for valid.

    Of two interactions one is for test, of one none. What happened at the
    same time goes by the item's index.
    """
    del shares, rng
    assert times is not None
    order = np.lexsort((times, users))
    counts = np.bincount(users)
    return _last(users, order, ((counts >= 3) * 1, (counts >= 2) * 1))


def temporal(
    users: np.ndarray,
    times: np.ndarray | None,
    shares: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Cuts time in two places, the same for all users.

    What happened at the same time stays together, so shares are met as
    nearly as that allows. Users may have nothing in train.
    """
    del rng
    assert times is not None
    ordered = np.sort(times)
    labels = np.zeros(len(users), np.int8)
    for share in (shares[0], shares[0] + shares[1]):
        # Rounded, for .8 + .1 is a little less than .9.
        place = math.ceil(round(share * len(ordered), 6))
        if place < len(ordered):
            labels += times >= ordered[place]
    return labels


Splitter = Callable[
    [np.ndarray, np.ndarray | None, Sequence[float], np.random.Generator],
    np.ndarray,
]
SPLITTERS: dict[str, Splitter] = {
    "random": random,
    "leave_last_out": leave_last_out,
    "temporal": temporal,
}


def _held(
    users: np.ndarray, shares: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """How many of each user's interactions are for valid and for test."""
    counts = np.bincount(users)
    held = []
    for share, least in ((shares[_VALID], 3), (shares[_TEST], 2)):
        # Rounded, for .1 * 30 may be a little less than 3.
        number = np.floor(np.round(share * counts, 6)).astype(np.int64)
        number = np.maximum(number, int(share > 0))
        held.append(np.where(counts >= least, number, 0))
    # Of very few, both might take all.
    valid, test = held
    test = np.minimum(test, np.maximum(counts - 1, 0))
    return np.minimum(valid, np.maximum(counts - 1 - test, 0)), test


def _last(
    users: np.ndarray,
    order: np.ndarray,
    held: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Labels the last of each user's interactions, in the order given.

    Args:
      users: `[n]`.
      order: `[n]`, rows by user.
      held: how many of each user's are for valid, and for test.
    """
    valid, test = held
    ends = np.cumsum(np.bincount(users))
    owner = users[order]
    # 1 for the last one of a user.
    from_end = ends[owner] - np.arange(len(order))
    labels = np.full(len(order), _TRAIN, np.int8)
    labels[order] = np.where(
        from_end <= test[owner],
        _TEST,
        np.where(from_end <= (test + valid)[owner], _VALID, _TRAIN),
    )
    return labels


def _shares(ratios: Sequence[float | str]) -> list[float]:
    try:
        shares = [float(ratio) for ratio in ratios]
    except ValueError:
        shares = []
    # Compared so that NaN is refused.
    fine = len(shares) == 3 and all(share >= 0 for share in shares)
    if not fine or not abs(sum(shares) - 1) < 1e-6 or not shares[0]:
        raise InputError(
            "These are no shares of train, valid and test.",
            where="--ratios",
            expected="three numbers that add up to 1, such as 0.8,0.1,0.1",
            found=",".join(map(str, ratios)),
        )
    return shares
