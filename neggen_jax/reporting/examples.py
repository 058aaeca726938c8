"""Users to look at: whom a report chooses, and what it shows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from neggen_jax.reporting.document import Block, Example, Shelf, Tile, Words
from neggen_jax.reporting.shop import Shop
from neggen_jax.reporting.told import Told

# Users of each kind, and items of a row.
EACH = 2
RANDOM = "drawn at random"
SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A user, and why.

    Attributes:
      why: kind of users that they stand for.
      row: of the user in the columns of `history.read_users`.
    """

    why: str
    row: int


def of_one(told: Told, shop: Shop, seed: int = 0) -> tuple[Block, ...]:
    """Users that one run serves well, badly and as usual."""
    columns = told.users["test"]
    key = told.headline("ndcg")
    values = columns[key]
    known = _known(shop, columns["users"])
    kinds = {
        RANDOM: (),
        "among the best served": (-values,),
        "among the worst served": (values, -known),
    }
    found = 100 * (values > 0).mean()
    how = (
        f"{EACH} of each kind: typical users, drawn at random from all "
        f"{len(values):,} (seed {seed}), {found:.0f} % of whom have a hit in "
        f"their first {told.headline('').strip('@')}; those with the highest "
        f"{key} on test; and, of those with the lowest, the ones of whom the "
        "most is known. "
        "Ties are broken at random."
    )
    people = [
        _example(shop, chosen, [told], key)
        for chosen in choose(kinds, len(values), seed)
    ]
    return Words(how, "faint"), *people


def of_two(
    one: Told, other: Told, shop: Shop, seed: int = 0
) -> tuple[Block, ...]:
    """Users whom one run serves better, the other, or both alike."""
    key = one.headline("ndcg")
    before, after = (run.users["test"][key] for run in (one, other))
    gain = after - before
    kinds = {
        RANDOM: (),
        f"better served by {other.name}": (-gain,),
        f"better served by {one.name}": (gain,),
    }
    better, worse = (100 * (gain * sign > 0).mean() for sign in (1, -1))
    how = (
        f"{EACH} of each kind: typical users, drawn at random from all "
        f"{len(gain):,} (seed {seed}); and those with the largest difference "
        f"in {key} on test, either way. Ties are broken at random. "
        f"{better:.0f} % of the users are better served by {other.name}, "
        f"{worse:.0f} % by {one.name}."
    )
    people = [
        _example(shop, chosen, [one, other], key)
        for chosen in choose(kinds, len(gain), seed)
    ]
    return Words(how, "faint"), *people


def choose(
    kinds: dict[str, tuple[np.ndarray, ...]],
    number: int,
    seed: int,
    each: int = EACH,
) -> list[Chosen]:
    """The first users of each kind, nobody twice.

    Args:
      kinds: name -> what users are sorted by, `[number]` each, the most
        important first, the least value first; nothing: at random.
      number: of users.
      seed: of the order of those that are alike.
      each: users of a kind.
    """
    lot = np.random.default_rng(seed).permutation(number)
    taken: set[int] = set()
    found = []
    for why, keys in kinds.items():
        # np.lexsort wants the most important last.
        order = np.lexsort((lot, *keys[::-1]))
        first = [int(row) for row in order[: each + len(taken)]]
        rows = [row for row in first if row not in taken][:each]
        taken.update(rows)
        found += [Chosen(why, row) for row in rows]
    return found


def _known(shop: Shop, users: np.ndarray) -> np.ndarray:
    """How many train interactions each user has."""
    return shop.catalog.by_user("train").degrees_of(users)


def _example(
    shop: Shop, chosen: Chosen, runs: Sequence[Told], key: str
) -> Example:
    user = int(runs[0].users["test"]["users"][chosen.row])
    heldout, before = shop.heldout(user), shop.history(user)
    lists = [run.users["test"]["lists"][chosen.row] for run in runs]
    values = [run.users["test"][key][chosen.row] for run in runs]
    about = ", ".join(
        f"{key} {value:.3f}" + (f" ({run.name})" if len(runs) > 1 else "")
        for run, value in zip(runs, values, strict=True)
    )
    shelves = [
        _shelf(shop, f"history, {len(before)} items", before),
        _heldout(shop, heldout, lists, runs),
    ]
    for run, ranked in zip(runs, lists, strict=True):
        label = "recommended" + (f" by {run.name}" if len(runs) > 1 else "")
        shelves.append(_ranked(shop, label, ranked, heldout))
    title = f"User {user}: {chosen.why}"
    return Example(title, about, tuple(shelves))


def _shelf(shop: Shop, label: str, items: Sequence[int]) -> Shelf:
    tiles = [Tile(shop.title(i), shop.picture(i)) for i in items[:SHOWN]]
    left = len(items) - len(tiles)
    return Shelf(label, tuple(tiles), f"and {left:,} more" if left else "")


def _heldout(
    shop: Shop,
    items: Sequence[int],
    lists: Sequence[np.ndarray],
    runs: Sequence[Told],
) -> Shelf:
    tiles, missed = [], False
    for item in items[:SHOWN]:
        places = []
        for run, ranked in zip(runs, lists, strict=True):
            (at,) = np.nonzero(ranked == item)
            where = f" ({run.name})" if len(runs) > 1 else ""
            places += [f"rank {at[0] + 1}{where}"] if at.size else []
        missed |= not places
        mark = ", ".join(places)
        tiles.append(Tile(shop.title(item), shop.picture(item), 0, mark))
    left = len(items) - len(tiles)
    more = [f"and {left:,} more"] if left else []
    if missed:
        depth = len(lists[0])
        more.append(f"Items without a rank are not among the first {depth}.")
    return Shelf("held out, to be found", tuple(tiles), ". ".join(more))


def _ranked(
    shop: Shop, label: str, ranked: np.ndarray, heldout: Sequence[int]
) -> Shelf:
    items = [int(item) for item in ranked if item >= 0]
    tiles = [
        Tile(shop.title(i), shop.picture(i), rank, "hit" * (i in heldout))
        for rank, i in enumerate(items[:SHOWN], 1)
    ]
    later = sum(item in heldout for item in items[SHOWN:])
    more = f"{later} more found by rank {len(items)}" if later else ""
    return Shelf(label, tuple(tiles), more)
