"""What the attributes of a catalogue are like: values, and what goes together.

`tasks.py` asks which attributes say the item's kind again, `attributes.py`
which other values an attribute could have. Built once from the items'
records; memory is bounded by the distinct combinations of values, not by the
number of items.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from neggen_jax.generation.values import contrast

# One attribute is held to determine another if knowing it takes away this
# share of the errors of guessing the other. Measured on fashion: product
# group by product type .99, garment group by product type .66, perceived
# colour by colour group .69 to .85; what is not related, below .2.
DETERMINED = 0.6
# Items that must have both.
_LEAST = 20
# Items from which that is learned, at most.
_SAMPLE = 100_000
# Other values that are kept for the next item with the same one, at most.
_KEPT = 2_000_000

# New values of some attributes, and how often they were seen together.
Seen = tuple[dict[str, str], int]
# Of a value, the form in which it is the same as others, and its words.
_Compared = tuple[str, frozenset[str]]


def vague(value: str) -> bool:
    """Whether a value tells nothing: "Unknown", "Other pattern", ""."""
    if not any(letter.isalnum() for letter in value):
        return True
    word = contrast.normalised(value)
    return word == contrast.UNKNOWN or word.startswith("other ")


def names_of(items: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """All attributes, in the order in which they first occur."""
    return tuple(dict.fromkeys(name for item in items for name in item))


class Dependencies:
    """Which attribute tells another one.

    Args:
      items: attributes of each item.
    """

    def __init__(self, items: Sequence[Mapping[str, str]]):
        step = -(-len(items) // _SAMPLE) or 1
        self._columns: dict[str, dict[int, str]] = {}
        for row, item in enumerate(items[::step]):
            for name, value in item.items():
                if value:
                    self._columns.setdefault(name, {})[row] = value

    def determines(self, known: str, other: str) -> bool:
        """Whether `known` tells `other`."""
        return self.share(known, other) >= DETERMINED

    @functools.cache  # noqa: B019 - lives as long as the plan is made
    def share(self, known: str, other: str) -> float:
        """Share of the errors of guessing `other` that `known` takes away.

        Goodman and Kruskal's lambda, by leaving one out: each item is guessed
        from the others, so that values that occur once tell nothing.

        Returns:
          At most 1; 0 or less where `known` does not help, and where there is
          nothing to guess or to learn it from.
        """
        one, two = self._columns.get(known, {}), self._columns.get(other, {})
        rows = one.keys() & two.keys()
        pairs = Counter((one[row], two[row]) for row in rows)
        groups: dict[str, list[int]] = {}
        whole: Counter[str] = Counter()
        for (value, told), count in pairs.items():
            groups.setdefault(value, []).append(count)
            whole[told] += count
        total = pairs.total()
        if total < _LEAST:
            return 0.0
        blind = total - _guessed(whole.values())
        wrong = total - sum(map(_guessed, groups.values()))
        return 1 - wrong / blind if blind else 0.0


def _guessed(counts: Iterable[int]) -> int:
    """How many are guessed right when the most frequent of the others is."""
    ranked = sorted(counts, reverse=True)
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else 0
    # Without itself an item's value must still be the most frequent one.
    return first if first - 1 > second else 0


def together(
    names: Sequence[str], relations: Dependencies
) -> tuple[tuple[str, ...], ...]:
    """Attributes that are functions of one another, as groups.

    To change a colour and leave its shade would contradict itself; so what
    determines or is determined by an attribute is in its group.

    Args:
      names: of the attributes.
      relations: of the catalogue.

    Returns:
      Each attribute in one group; groups and their members in the order of
      `names`.
    """
    group = {name: {name} for name in names}
    for one in names:
        for other in names:
            related = one != other and relations.determines(one, other)
            if related and group[one] is not group[other]:
                group[one] |= group[other]
                for name in group[other]:
                    group[name] = group[one]
    return tuple(
        dict.fromkeys(
            tuple(name for name in names if name in group[first])
            for first in names
        )
    )


class Combinations:
    """Which values a group of attributes has been seen with, and how often.

    Args:
      items: attributes of each item.
      group: names of the attributes.
      levels: names of attributes, most specific first: others items that
        agree in all of them are looked at first. The last should be ().
    """

    def __init__(
        self,
        items: Iterable[Mapping[str, str]],
        group: tuple[str, ...],
        levels: Sequence[tuple[str, ...]],
    ):
        self.group = group
        self._levels = tuple(dict.fromkeys(levels))
        self._seen: list[dict[tuple[str, ...], Counter[tuple[str, ...]]]]
        self._seen = [{} for _ in self._levels]
        for item in items:
            values = _values(item, group)
            for seen, level in zip(self._seen, self._levels, strict=True):
                seen.setdefault(_values(item, level), Counter())[values] += 1
        self._candidates: dict[tuple, _Candidates] = {}
        self._known: dict[tuple, list[Seen]] = {}
        self._kept = 0

    def others(
        self, attributes: Mapping[str, str], among: Mapping[str, str]
    ) -> list[Seen]:
        """Contrasting values for some of the group's attributes.

        Args:
          attributes: those to be changed, with their values.
          among: all attributes of the item.

        Returns:
          (new values, how often they were seen) in a fixed order, not to be
          changed. They come from the first level that has any, and are those
          that contrast most: in the most attributes, and not by a word alone
          that one has more ("blue" and "dark blue"). Empty if there are none
          at all.
        """
        names = tuple(name for name in self.group if name in attributes)
        places = tuple(_values(among, level) for level in self._levels)
        key = names, _values(attributes, names), places
        if key not in self._known:
            found = self._look(*key)
            self._kept += len(found)
            if self._kept > _KEPT:
                # A thousand brands have each nearly a thousand others.
                self._known.clear()
                self._kept = len(found)
            self._known[key] = found
        return self._known[key]

    def _look(
        self,
        names: tuple[str, ...],
        old: tuple[str, ...],
        places: tuple[tuple[str, ...], ...],
    ) -> list[Seen]:
        ours = tuple(map(_compared, old))
        for level, place in enumerate(places):
            if found := self._at(names, level, place).contrasting(ours):
                return found
        return []

    def _at(
        self, names: tuple[str, ...], level: int, place: tuple[str, ...]
    ) -> _Candidates:
        key = names, level, place
        if key not in self._candidates:
            at = [self.group.index(name) for name in names]
            counts: Counter[tuple[str, ...]] = Counter()
            for values, count in self._seen[level].get(place, {}).items():
                new = tuple(values[i] for i in at)
                if not any(map(vague, new)):
                    counts[new] += count
            self._candidates[key] = _Candidates(names, counts)
        return self._candidates[key]


class _Candidates:
    """All values of some attributes that were seen at one place.

    Args:
      names: of the attributes.
      counts: their values -> how often these were seen.
    """

    def __init__(
        self, names: tuple[str, ...], counts: Mapping[tuple[str, ...], int]
    ):
        self._rows: list[Seen] = []
        self._compared: list[tuple[_Compared, ...]] = []
        self._having: dict[tuple[int, str], list[int]] = {}
        for row, (new, count) in enumerate(sorted(counts.items())):
            compared = tuple(map(_compared, new))
            self._rows.append((dict(zip(names, new, strict=True)), count))
            self._compared.append(compared)
            for word in _marks(compared):
                self._having.setdefault(word, []).append(row)

    def contrasting(self, ours: tuple[_Compared, ...]) -> list[Seen]:
        """Those that contrast most with an item's own values, in order."""
        # Values without a word in common are in full contrast; to look at
        # the others alone keeps a catalogue of many brands from comparing
        # each with each.
        near = {row for m in _marks(ours) for row in self._having.get(m, ())}
        differ = {
            row: sum(map(_contrast, self._compared[row], ours)) for row in near
        }
        most = 2 * len(ours)
        if len(near) == len(self._rows):
            most = max(differ.values(), default=0)
        if not most:
            return []
        less = {row for row, contrasts in differ.items() if contrasts < most}
        return [one for row, one in enumerate(self._rows) if row not in less]


def _values(item: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(item.get(name, "") for name in names)


def _compared(value: str) -> _Compared:
    return contrast.key(value), frozenset(contrast.normalised(value).split())


def _marks(compared: tuple[_Compared, ...]) -> set[tuple[int, str]]:
    """What values that are not in full contrast share at least one of."""
    return {
        (number, word)
        for number, (key, words) in enumerate(compared)
        for word in (key, *words)
    }


def _contrast(one: _Compared, other: _Compared) -> int:
    """0 for the same value, 1 if one says more of it, 2 for another one."""
    if one[0] == other[0]:
        return 0
    return 1 if one[1] <= other[1] or other[1] <= one[1] else 2
