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
        self._known: dict[tuple, list[tuple[dict[str, str], int]]] = {}

    def others(
        self, attributes: Mapping[str, str], among: Mapping[str, str]
    ) -> list[tuple[dict[str, str], int]]:
        """Contrasting values for some of the group's attributes.

        Args:
          attributes: those to be changed, with their values.
          among: all attributes of the item.

        Returns:
          (new values, how often they were seen) in a fixed order. They come
          from the first level that has any, and are those that contrast most:
          in the most attributes, and not by a word alone that one has more
          ("blue" and "dark blue"). Empty if there are none at all.
        """
        names = tuple(name for name in self.group if name in attributes)
        places = tuple(_values(among, level) for level in self._levels)
        key = names, _values(attributes, names), places
        if key not in self._known:
            self._known[key] = self._look(*key)
        return self._known[key]

    def _look(
        self,
        names: tuple[str, ...],
        old: tuple[str, ...],
        places: tuple[tuple[str, ...], ...],
    ) -> list[tuple[dict[str, str], int]]:
        at = [self.group.index(name) for name in names]
        for seen, place in zip(self._seen, places, strict=True):
            found: dict[int, Counter[tuple[str, ...]]] = {}
            for values, count in seen.get(place, {}).items():
                new = tuple(values[i] for i in at)
                if any(map(vague, new)):
                    continue
                differ = sum(map(_contrast, new, old))
                found.setdefault(differ, Counter())[new] += count
            most = max(found, default=0)
            if most:
                return [
                    (dict(zip(names, new, strict=True)), count)
                    for new, count in sorted(found[most].items())
                ]
        return []


def _values(item: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(item.get(name, "") for name in names)


def _contrast(one: str, other: str) -> int:
    """0 for the same value, 1 if one says more of it, 2 for another one."""
    if contrast.same_value(one, other):
        return 0
    words = [set(contrast.normalised(value).split()) for value in (one, other)]
    return 1 if words[0] <= words[1] or words[1] <= words[0] else 2
