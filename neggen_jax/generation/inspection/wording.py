"""Which words two texts differ in, and where a text's masks are.

What `summary.py` counts and `inspect.py` shows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from neggen_jax.generation.records import Record

SAME, OLD, NEW = "same", "old", "new"
# Pairs of words that are compared at most: difflib is quadratic where texts
# have little in common.
_MOST_PAIRS = 4_000_000
_MASK = re.compile(r"\[MASK_([1-9]\d*)\]")


def difference(before: str, after: str) -> list[tuple[str, str]]:
    """Takes two texts apart into what they share and what they do not.

    Returns:
      (kind, words) in order, kind being `SAME`, `OLD` (only in `before`) or
      `NEW` (only in `after`). Joined without `NEW` they are `before`, without
      `OLD` they are `after`.
    """
    cut = re.compile(r"\s+|\w+|[^\w\s]")
    pieces: list[tuple[str, str]] = []
    old, new = "", ""
    for kind, one, other in _blocks(cut.findall(before), cut.findall(after)):
        same = "".join(one)
        if kind != SAME:
            old, new = old + same, new + "".join(other)
        elif (old or new) and same.isspace():
            # A space between two changes is part of one change - unless it
            # turns out to be the last of them.
            old, new = old + same, new + same
        else:
            pieces += _change(old, new)
            old, new = "", ""
            pieces.append((SAME, same))
    return _joined([*pieces, *_change(old, new)])


def changed_share(before: str, after: str) -> float:
    """Share of the words of two texts that they do not have in common.

    1 - 2 m / n, where m words are in both, in the same order, and n is the
    number of words of both together; 0 for two texts without a word.
    """
    cut = re.compile(r"\w+")
    one, other = cut.findall(before), cut.findall(after)
    alike = sum(len(b) for kind, b, _ in _blocks(one, other) if kind == SAME)
    return 1 - 2 * alike / max(1, len(one) + len(other)) if one or other else 0


def masked(record: Record) -> list[tuple[str, str]]:
    """A record's description, cut at its masks.

    Returns:
      (words, attribute), attribute being "" outside masks. Joined they are
      the description; where it does not fit its masked text, that one, as it
      is.
    """
    parts = _MASK.split(record.masked or record.description)
    names = list(record.attributes)
    found: list[tuple[str, str]] = []
    at = 0
    for place, part in enumerate(parts):
        if place % 2 == 0:
            if record.description[at : at + len(part)] != part:
                return _unplaced(parts, names)
            found.append((part, ""))
            at += len(part)
            continue
        if int(part) > len(names):
            return _unplaced(parts, names)
        name = names[int(part) - 1]
        value = record.attributes[name]
        end = at + len(value)
        if record.description[at:end].casefold() != value.casefold():
            # Put in other words: they end where what follows begins.
            follows = parts[place + 1]
            end = record.description.find(follows, at + 1)
            if place == len(parts) - 2:
                end = len(record.description) - len(follows)
            if end <= at:
                return _unplaced(parts, names)
        found.append((record.description[at:end], name))
        at = end
    if at != len(record.description):
        return _unplaced(parts, names)
    return [pair for pair in found if pair[0]]


def changes_of(changes: Mapping[str, tuple[str, str]]) -> list[str]:
    """Changes in words: "colour: red -> blue"."""
    return [f"{n}: {old} -> {new}" for n, (old, new) in changes.items()]


def _blocks(
    one: Sequence[str], other: Sequence[str]
) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """Yields (kind, of one, of other); kind is `SAME` or another word."""
    # Texts differ in a few words: most of the work is done by two loops.
    shortest = min(len(one), len(other))
    head = 0
    while head < shortest and one[head] == other[head]:
        head += 1
    tail = 0
    while tail < shortest - head and one[-1 - tail] == other[-1 - tail]:
        tail += 1
    ends = len(one) - tail, len(other) - tail
    left, right = one[head : ends[0]], other[head : ends[1]]
    if head:
        yield SAME, one[:head], other[:head]
    if len(left) * len(right) > _MOST_PAIRS:
        yield OLD, left, right
    elif left or right:
        matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
        for tag, i, j, k, m in matcher.get_opcodes():
            yield SAME if tag == "equal" else OLD, left[i:j], right[k:m]
    if tail:
        yield SAME, one[ends[0] :], other[ends[1] :]


def _change(old: str, new: str) -> Iterator[tuple[str, str]]:
    """A change without the spaces in which both of its sides end."""
    space = ""
    while old and new and old[-1] == new[-1] and old[-1].isspace():
        space = old[-1] + space
        old, new = old[:-1], new[:-1]
    yield from ((OLD, old), (NEW, new), (SAME, space))


def _joined(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbours of one kind together, empty ones left out."""
    found: list[tuple[str, str]] = []
    for kind, words in pieces:
        if words and found and found[-1][0] == kind:
            found[-1] = kind, found[-1][1] + words
        elif words:
            found.append((kind, words))
    return found


def _unplaced(
    parts: Sequence[str], names: Sequence[str]
) -> list[tuple[str, str]]:
    """A masked text whose values cannot be put back."""
    found = []
    for place, part in enumerate(parts):
        known = place % 2 and int(part) <= len(names)
        name = names[int(part) - 1] if known else ""
        found.append((f"[MASK_{part}]" if place % 2 else part, name))
    return [pair for pair in found if pair[0]]
