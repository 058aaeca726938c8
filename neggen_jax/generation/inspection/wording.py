"""Which words two texts differ in, and where a text's masks are.

What `summary.py` counts and `page.py` shows.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterator, Sequence

from neggen_jax.generation.records import Record
from neggen_jax.generation.writers.masked import MASK

SAME, OLD, NEW = "same", "old", "new"
# Pairs of words that are compared at most: difflib is quadratic where texts
# have little in common.
_MOST_PAIRS = 4_000_000


def difference(before: str, after: str) -> list[tuple[str, str]]:
    """Takes two texts apart into what they share and what they do not.

    Returns:
      (kind, words) in order, kind being `SAME`, `OLD` (only in `before`) or
      `NEW` (only in `after`). Joined without `NEW` they are `before`, without
      `OLD` they are `after`.
    """
    # With the space before a word: words that change together are one change.
    cut = re.compile(r"\s*(?:\w+|[^\w\s]|\Z)")
    pieces: list[tuple[str, str]] = []
    for same, old, new in _blocks(cut.findall(before), cut.findall(after)):
        if same:
            pieces.append((SAME, "".join(old)))
            continue
        one, other = "".join(old), "".join(new)
        # A space before both of them is part of neither.
        alike = os.path.commonprefix([one, other])  # noqa: RUF071 - of words
        size = len(alike) - len(alike.lstrip())
        pieces += [(SAME, one[:size]), (OLD, one[size:]), (NEW, other[size:])]
    return [
        (kind, "".join(words for _, words in some))
        for kind, some in itertools.groupby(
            (piece for piece in pieces if piece[1]), lambda piece: piece[0]
        )
    ]


def changed_share(before: str, after: str) -> float:
    """Share of the words of two texts that they do not have in common.

    1 - 2 m / n, where m words are in both, in the same order, and n is the
    number of words of both together; 0 for two texts without a word.
    """
    one, other = re.findall(r"\w+", before), re.findall(r"\w+", after)
    alike = sum(len(old) for same, old, _ in _blocks(one, other) if same)
    return 1 - 2 * alike / (len(one) + len(other)) if one or other else 0


def masked(record: Record) -> list[tuple[str, str]]:
    """A record's description, cut at its masks.

    Returns:
      (words, attribute), attribute being "" outside masks. Joined they are
      the description; where it does not fit its masked text, that one, as it
      is.
    """
    parts = MASK.split(record.masked or record.description)
    names = dict(enumerate(record.attributes, 1))
    masks = [names.get(int(number), "") for number in parts[1::2]]
    # Behind each mask stands what follows it, behind the last one the end.
    behind = [re.escape(part) for part in parts[2::2]]
    behind[-1:] = [end + r"\Z" for end in behind[-1:]]
    pattern = re.escape(parts[0])
    for name, follows in zip(masks, behind, strict=True):
        # The attribute's value if it is there, else whatever is put for it. An
        # atomic group is not tried again: no description takes long.
        value = re.escape(record.attributes.get(name, ""))
        pattern += rf"((?>(?i:{value})(?={follows})|.+?(?={follows}))){follows}"
    found = re.fullmatch(pattern, record.description, re.DOTALL)
    words = found.groups() if found else [f"[MASK_{n}]" for n in parts[1::2]]
    pieces = [(parts[0], "")]
    for said, name, part in zip(words, masks, parts[2::2], strict=True):
        pieces += [(said, name), (part, "")]
    return [piece for piece in pieces if piece[0]]


def _blocks(
    one: Sequence[str], other: Sequence[str]
) -> Iterator[tuple[bool, Sequence[str], Sequence[str]]]:
    """Yields (whether they are the same, words of one, words of other)."""
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
        yield True, one[:head], other[:head]
    if len(left) * len(right) > _MOST_PAIRS:
        yield False, left, right
    elif left or right:
        matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
        for tag, i, j, k, m in matcher.get_opcodes():
            yield tag == "equal", left[i:j], right[k:m]
    if tail:
        yield True, one[ends[0] :], other[ends[1] :]
