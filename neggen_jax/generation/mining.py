"""Attributes that nobody has written down, found in the items' own words.

For the writer without a model: an item without a category still says in its
title what it is.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import re
from collections.abc import Set

from neggen_jax.catalog import ItemRecords
from neggen_jax.generation import contrast
from neggen_jax.generation.tasks import KINDS

KIND = "kind"
# Items that must share a word before it passes for a kind.
_SHARED = 4
# Where the name of the thing ends and the particulars begin.
_CUT = re.compile(
    r"[,;:()\[\]/|\u2013\u2014]|\s-|-\s"
    r"|\s(?:with|for|in|by|w/|and|&|of|from|to|at|on)\s",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\w-])[^\W\d_]{3,}(?:-[^\W\d_]+)*(?![\w-])")
# Words that end names of things without saying what they are.
_EMPTY = frozenset(
    """
    pack set count piece box roll case kit size color colour style series
    edition model new all black white blue red green clear assorted each
    reg plus wireless compatible replacement
    """.split()  # noqa: SIM905
)


def with_kinds(records: ItemRecords) -> ItemRecords:
    """Gives each item an attribute "kind", the thing its title names.

    That is, in English, the last noun before the particulars: "label" of
    "Avery Removable Labels, 1 inch, pack of 600". Words that few titles end
    with give way to those before them.

    Args:
      records: the items.

    Returns:
      The records themselves if there is an attribute that says the kind.
    """
    known = {name for item in records.attributes for name in item}
    if known & {KIND, *KINDS}:
        return records
    # "Canon" is what a thing may be called, but a brand.
    named = {
        contrast.normalised(value)
        for item in records.attributes
        for value in item.values()
    }
    words = [_candidates(title, named) for title in records.titles]
    ends = collections.Counter(each[0] for each in words if each)
    attributes = []
    for item, each in zip(records.attributes, words, strict=True):
        usual = [word for word in each if ends[word] >= _SHARED]
        kind = (usual or each or [""])[0]
        attributes.append({**item, KIND: kind} if kind else item)
    return dataclasses.replace(records, attributes=attributes)


def _candidates(title: str, named: Set[str]) -> list[str]:
    """What a title may name, the likeliest first."""
    for part in _CUT.split(html.unescape(title)):
        words = [contrast.normalised(word) for word in _WORD.findall(part)]
        words = [word for word in words[::-1] if word not in _EMPTY | named]
        if words:
            return words
    return []
